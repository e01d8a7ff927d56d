"""Smoothing, gap filling and unwrapping of masked signals, frames first.

A mask is True where a sample is present. What lies under a False one is never read, and it is NaN in what
these functions return. A segment is a run of present frames of one channel.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import signal

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError

PADDING_PER_COEFFICIENT = 3
"""SciPy's ``filtfilt`` pads by three times the number of filter coefficients."""

_UNROLL = 8  # scan steps a loop turn: a step alone is too little work


def lowpass(
    values: Float[Array, "T *channels"],
    present: Bool[Array, "T *channels"],
    *,
    rate_hz: float,
    cutoff_hz: float,
    order: int = 2,
) -> Float[Array, "T *channels"]:
    """Butterworth filter forwards and backwards over each segment, which shifts no phase.

    A segment gives what ``scipy.signal.filtfilt(*butter(order, cutoff_hz / (rate_hz / 2)))`` gives with its
    own odd padding of ``3 (order + 1)`` samples. SciPy refuses segments that are not longer than that; here
    they are padded by the n - 1 samples that they have, so that a lone sample stays as it is. Filtering
    twice lowers the gain at ``cutoff_hz`` to a half.

    Args:
        values: any unit; what is not present is not read.
        present: the mask; it holds for the result too.
        rate_hz: frames per second.
        cutoff_hz: where one pass has lost 3 dB; below half the rate.
        order: of one pass.

    Returns:
        Filtered values; NaN where not present.

    Raises:
        ShapeError: the cutoff or the order is out of range.
    """
    if not 0 < cutoff_hz < rate_hz / 2:
        raise ShapeError(f"cutoff_hz is {cutoff_hz}; valid is above 0 and below half of {rate_hz} Hz")
    if order < 1:
        raise ShapeError(f"order is {order}; valid is at least 1")
    design = np.asarray(signal.butter(order, cutoff_hz / (rate_hz / 2)))
    settled = signal.lfilter_zi(*design)
    above, below = jnp.asarray(design, values.dtype)
    return _filter_segments(values, present, above, below, jnp.asarray(settled, values.dtype))


@jax.jit
def _filter_segments(
    values: Float[Array, "T *channels"],
    present: Bool[Array, "T *channels"],
    above: Float[Array, " coefficients"],
    below: Float[Array, " coefficients"],
    settled: Float[Array, " order"],
) -> Float[Array, "T *channels"]:
    flat, mask = _columns(values), _columns(present)
    if not flat.size:
        return values
    before, after = _nearest(~mask)
    padding = jnp.minimum(PADDING_PER_COEFFICIENT * len(above), after - before - 2)
    flat = jnp.where(mask, flat, 0.0)
    step = partial(_step, above, below)
    settled = settled[:, None, None]
    longest = PADDING_PER_COEFFICIENT * len(above)

    # What precedes a segment (its first samples turned about the first) and its effect on the filter, for
    # every frame as if a segment began there; the scan then takes the ones it needs.
    def precede(back: Array, state: Array) -> Array:
        j = longest - back
        sample = 2 * flat - _shifted(flat, -j)
        state = jnp.where(j == padding, settled * sample, state)
        return jnp.where(j <= padding, step(state, sample)[0], state)

    initial = jnp.broadcast_to(settled * flat, (len(settled), *flat.shape))
    state = lax.fori_loop(0, longest, precede, initial)
    starts, ends = mask & ~_shifted_mask(mask, 1), mask & ~_shifted_mask(mask, -1)
    forwards, states = _scan(step, flat, state, starts, reverse=False)

    def follow(state: Array, j: Array) -> tuple[Array, Array]:
        return step(state, 2 * flat - _shifted(flat, j))

    tails = lax.scan(follow, states, 1 + jnp.arange(longest))[1]

    def return_through(back: Array, state: Array) -> Array:
        j = longest - back
        sample = tails[j - 1]
        state = jnp.where(j == padding, settled * sample, state)
        return jnp.where(j <= padding, step(state, sample)[0], state)

    initial = jnp.broadcast_to(settled * forwards, initial.shape)
    state = lax.fori_loop(0, longest, return_through, initial)
    both, _ = _scan(step, forwards, state, ends, reverse=True)
    return jnp.where(mask, both, jnp.nan).reshape(values.shape)


def _columns(values: Array) -> Array:
    """[T *channels] as [T C]."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _step(above: Array, below: Array, state: Array, sample: Array) -> tuple[Array, Array]:
    """New state [order ...] and output of the filter in transposed direct form II."""
    output = above[0] * sample + state[0]
    shape = (-1, *(1,) * sample.ndim)
    moved = jnp.concatenate([state[1:], jnp.zeros_like(state[:1])])
    return moved + above[1:].reshape(shape) * sample - below[1:].reshape(shape) * output, output


def _scan(step, samples: Array, initial: Array, resets: Array, *, reverse: bool) -> tuple[Array, Array]:
    """Outputs [T C] and states after each sample [order T C], beginning anew at ``resets``."""

    def frame(state: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        sample, fresh, reset = inputs
        state, output = step(jnp.where(reset, fresh, state), sample)
        return state, (output, state)

    inputs = samples, jnp.moveaxis(initial, 1, 0), resets
    outputs, states = lax.scan(frame, jnp.zeros_like(initial[:, 0]), inputs, reverse=reverse, unroll=_UNROLL)[
        1
    ]
    return outputs, jnp.moveaxis(states, 0, 1)


def _shifted(values: Float[Array, "T C"], by: Int[Array, ""] | int) -> Float[Array, "T C"]:
    """``values[t - by]``; what comes from beyond the ends wraps round and is not to be read."""
    return jnp.roll(values, by, axis=0)


def _shifted_mask(mask: Bool[Array, "T C"], by: int) -> Bool[Array, "T C"]:
    """The mask of the frame before (1) or after (-1); False beyond the ends."""
    edge = jnp.zeros_like(mask[:1])
    return jnp.concatenate([edge, mask[:-1]]) if by == 1 else jnp.concatenate([mask[1:], edge])


def _nearest(mask: Bool[Array, "T C"]) -> tuple[Int[Array, "T C"], Int[Array, "T C"]]:
    """The nearest True frame at or before each, or -1, and at or after each, or T."""
    frame = jnp.arange(len(mask))[:, None]
    before = lax.cummax(jnp.where(mask, frame, -1), axis=0)
    after = lax.cummin(jnp.where(mask, frame, len(mask)), axis=0, reverse=True)
    return before, after


@partial(jax.jit, static_argnames=("method",))
def fill_gaps(
    values: Float[Array, "T *channels"],
    present: Bool[Array, "T *channels"],
    *,
    max_gap: int | Int[Array, ""],
    method: Literal["linear", "cubic"] = "cubic",
) -> tuple[Float[Array, "T *channels"], Bool[Array, "T *channels"]]:
    """Interpolates gaps of up to ``max_gap`` frames; longer ones, and those at the ends, stay.

    Args:
        values: any unit; what is not present is not read.
        present: the mask.
        max_gap: frames; seconds times the rate.
        method: ``"linear"`` between the two samples next to the gap, or ``"cubic"``: the polynomial through
            the two nearest samples on each side. Where a side has one sample alone, cubic is linear too.

    Returns:
        Values, NaN where still missing, and their mask.
    """
    flat, mask = _columns(values), _columns(present)
    if not flat.size:
        return values, present
    flat = jnp.where(mask, flat, 0.0)
    near, next_ = _nearest(mask)
    inside = (near >= 0) & (next_ < len(flat)) & (next_ - near - 1 <= max_gap)
    filled = _through(flat, mask, [near, next_])
    if method == "cubic":
        earlier, later = _nearest(mask)
        further = jnp.take_along_axis(_before(earlier), jnp.maximum(near, 0), axis=0)
        beyond = jnp.take_along_axis(_after(later), jnp.minimum(next_, len(flat) - 1), axis=0)
        both = (further >= 0) & (beyond < len(flat))
        filled = jnp.where(both, _through(flat, mask, [further, near, next_, beyond]), filled)
    known = mask | inside
    result = jnp.where(mask, flat, jnp.where(inside, filled, jnp.nan))
    return result.reshape(values.shape), known.reshape(values.shape)


def _before(nearest: Int[Array, "T C"]) -> Int[Array, "T C"]:
    """The nearest present frame strictly before each."""
    return jnp.concatenate([jnp.full_like(nearest[:1], -1), nearest[:-1]])


def _after(nearest: Int[Array, "T C"]) -> Int[Array, "T C"]:
    return jnp.concatenate([nearest[1:], jnp.full_like(nearest[:1], len(nearest))])


def _through(
    values: Float[Array, "T C"], mask: Bool[Array, "T C"], frames: list[Int[Array, "T C"]]
) -> Float[Array, "T C"]:
    """Lagrange's polynomial through the samples of these frames, at each missing frame; finite everywhere."""
    at = jnp.arange(len(values), dtype=values.dtype)[:, None]
    total = jnp.zeros_like(values)
    for i, frame in enumerate(frames):
        weight = jnp.ones_like(values)
        for j, other in enumerate(frames):
            if i != j:
                apart = (frame - other).astype(values.dtype)
                weight = weight * (at - other) / jnp.where(apart == 0, 1.0, apart)
        sample = jnp.take_along_axis(values, jnp.clip(frame, 0, len(values) - 1), axis=0)
        total = total + weight * sample
    return total


@jax.jit
def unwrap(
    angles: Float[Array, "T *channels"], present: Bool[Array, "T *channels"]
) -> Float[Array, "T *channels"]:
    """Angles (rad) that differ by at most pi from the present one before, across gaps too; NaN where missing.

    The first present angle of a channel stays as it is.
    """
    flat, mask = _columns(angles), _columns(present)
    if not flat.size:
        return angles
    flat = jnp.where(mask, flat, 0.0)
    previous = _before(_nearest(mask)[0])
    step = flat - jnp.take_along_axis(flat, jnp.maximum(previous, 0), axis=0)
    turns = jnp.where(mask & (previous >= 0), -jnp.round(step / (2 * math.pi)), 0.0)
    turned = flat + 2 * np.pi * jnp.cumsum(turns, axis=0)
    return jnp.where(mask, turned, jnp.nan).reshape(angles.shape)
