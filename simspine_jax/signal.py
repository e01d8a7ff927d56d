"""Smoothing, gap filling and unwrapping of masked signals, frames first.

A mask is True where a sample is present. What lies under a False one is never read, and it is NaN in what
these functions return. A segment is a run of present frames of one channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray
from scipy import signal

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError

PADDING_PER_COEFFICIENT = 3
"""SciPy's ``filtfilt`` pads by three times the number of filter coefficients."""


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
    longest = PADDING_PER_COEFFICIENT * len(above)
    step = partial(_step, above, below)
    run_in = partial(_run_in, step, settled[:, None])
    margin = jnp.zeros((longest, flat.shape[1]), flat.dtype)
    behind, ahead = jnp.concatenate([margin, flat]), jnp.concatenate([flat, margin])

    def before_start(frame: Array) -> Array:
        window = lax.dynamic_slice_in_dim(ahead, frame, longest + 1)
        return run_in(2 * window[0] - window[1:], window[0], padding[frame])

    def after_end(frame: Array) -> Array:
        window = lax.dynamic_slice_in_dim(behind, frame, longest + 1)[::-1]
        beyond = lax.scan(step, states[frame], 2 * window[0] - window[1:])[1]
        return run_in(beyond, forwards[frame], padding[frame])

    starts, ends = mask & ~_shifted_mask(mask, 1), mask & ~_shifted_mask(mask, -1)
    zero = jnp.zeros((len(settled), flat.shape[1]), flat.dtype)
    forwards, states = _scan(step, zero, flat, starts, before_start, reverse=False)
    both, _ = _scan(step, zero, forwards, ends, after_end, reverse=True)
    return jnp.where(mask, both, jnp.nan).reshape(values.shape)


def _run_in(step, settled: Array, outside: Array, first: Array, padding: Array) -> Array:
    """The state with which a pass begins a segment, after ``padding`` samples outside of it.

    The pass starts settled at the outermost sample; ``outside`` is [longest C], nearest first, and ``first``
    the segment's own first sample, at which it starts where there is no padding.
    """

    def inwards(state: Array, sample: tuple[Array, Array]) -> tuple[Array, None]:
        distance, value = sample
        state = jnp.where(distance == padding, settled * value, state)
        return jnp.where(distance <= padding, step(state, value)[0], state), None

    samples = 1 + jnp.arange(len(outside)), outside
    return lax.scan(inwards, settled * first, samples, reverse=True)[0]


def _columns(values: Array) -> Array:
    """[T *channels] as [T C]."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _step(above: Array, below: Array, state: Array, sample: Array) -> tuple[Array, Array]:
    """New state [order ...] and output of the filter in transposed direct form II."""
    output = above[0] * sample + state[0]
    shape = (-1, *(1,) * sample.ndim)
    moved = jnp.concatenate([state[1:], jnp.zeros_like(state[:1])])
    return moved + above[1:].reshape(shape) * sample - below[1:].reshape(shape) * output, output


def _scan(
    step, state: Array, samples: Array, resets: Array, fresh: Callable[[Array], Array], *, reverse: bool
) -> tuple[Array, Array]:
    """Outputs [T C] and states after each sample [T order C], from ``fresh(frame)`` on at ``resets``."""

    def advance(state: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        frame, sample, reset = inputs
        # Segments are few, so most frames skip the work of beginning one.
        state = lax.cond(
            reset.any(), lambda state: jnp.where(reset, fresh(frame), state), lambda state: state, state
        )
        state, output = step(state, sample)
        return state, (output, state)

    inputs = jnp.arange(len(samples)), samples, resets
    return lax.scan(advance, state, inputs, reverse=reverse)[1]


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


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last frame of each run of True in a mask [T], on the host."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


def nearest_samples(
    there: NDArray[np.float64], here: NDArray[np.float64], within: float
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each of the times ``here`` the nearest of ``there``, on the host.

    Args:
        there: [S] increasing times, s; at least one.
        here: [T] times, s.
        within: farthest that a sample may be away, s.

    Returns:
        indices [T] into ``there``, and [T] whether that sample is within reach.
    """
    after = np.clip(np.searchsorted(there, here), 1, max(len(there) - 1, 1))
    pair = np.stack([after - 1, np.minimum(after, len(there) - 1)])
    distance = np.abs(there[pair] - here)
    nearest = pair[distance.argmin(axis=0), np.arange(len(here))]
    return nearest, distance.min(axis=0) <= within


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
