"""Levenberg and Marquardt's method for all frames and the shared vector at once.

Each step solves the bordered system of `solvers.bordered`: frames are tied to their neighbours by a penalty
on accelerations, and all of them to the shared vector. Coordinates at a bound that are pulled beyond it are
held there. The damping is a share of the matrix' diagonal (Marquardt), raised where a step fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.fitting.terms import (
    Equations,
    Fixed,
    FrameData,
    Setting,
    cost_of,
    equations,
    pose_precision,
)
from simspine_jax.kinematics.clip import Smoothing, coupling, stencils
from simspine_jax.solvers.banded import Factor, factorise
from simspine_jax.solvers.bordered import Bordered, border, solve_bordered

CHUNK = 64
"""Frames whose matrices are made at once."""

FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-9, 1e8
HARDER, SOFTER = 8.0, 0.2
ROUNDING = 100.0
GOOD = 0.25
"""A step that gains less than this share of what it promised doesn't lessen the damping."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whole:
    """All data of a fit.

    Attributes:
        data: of the frames, ``[C T …]``.
        fixed: model and rig.
        prior_precision: ``[P P]`` of the shared vector about its mean.
        prior_mean: ``[P]``; 0 but for what is known of the subject's height.
        free: ``[P]`` what of it is fitted, as 1 and 0.
        acceleration_precision: ``[C Q]`` of each clip's accelerations, (s^2/rad)^2.
        velocity_precision: of all velocities, (s/rad)^2.
        valid: frames that belong to a clip.
        rate_hz: frames a second.
        spread: ``[C T S Q]`` poses beside each frame's own over which its objective is a mean; see
            `fitting.spread`. One of zeros is the pose itself.
    """

    data: FrameData
    fixed: Fixed
    prior_precision: Float[Array, "P P"]
    prior_mean: Float[Array, " P"]
    free: Float[Array, " P"]
    acceleration_precision: Float[Array, "C Q"]
    velocity_precision: Float[Array, ""]
    valid: Bool[Array, "C T"]
    rate_hz: Float[Array, ""]
    spread: Float[Array, "C T S Q"]


class _State(NamedTuple):
    q: Array
    theta: Array
    f: Array
    e: Equations  # of q and theta, frames [C T …]
    stale: Array  # whether e and f are still to be made
    damping: Array
    steps: Array
    converged: Array


class Fitted(NamedTuple):
    """What a descent ends with."""

    q: Float[Array, "C T Q"]
    theta: Float[Array, " P"]
    objective: Float[Array, ""]
    steps: Array
    converged: Bool[Array, ""]


@partial(jax.jit, static_argnums=0)
def descend(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
    max_steps: Array | int,
    tolerance: Array | float,
) -> Fitted:
    """The least objective near a start.

    Args:
        setting: static.
        whole: data and priors.
        q: poses to start from.
        theta: shared vector to start from.
        max_steps: at most, failed ones included.
        tolerance: of the objective; a step that gains, promising less, ends it. In the posterior's deviations
            the least is then about the root of twice as much away.
    """
    low, high = (x.astype(q.dtype) for x in (whole.fixed.model.lower, whole.fixed.model.upper))
    q = jnp.clip(q, low, high)

    def fresh(s: _State) -> tuple[Equations, Array]:
        e = all_equations(setting, whole, s.q, s.theta)
        return e, jnp.sum(e.cost) + _penalties(whole, s.q, s.theta)

    def body(s: _State) -> _State:
        e, before = lax.cond(s.stale, fresh, lambda s: (s.e, s.f), s)
        held = held_at_bounds(whole, e, s.q)
        factor, sides = factorised(whole, e, held, s.damping)
        step, move = _solved(factor, sides, e, held, whole.free)
        q = jnp.where(held, s.q, jnp.clip(s.q - step, low, high))
        theta = s.theta - move
        after = objective(setting, whole, q, theta)
        promise = _promise(whole, e, q - s.q, -move)
        better = jnp.isfinite(after) & (after < before)
        good = before - after > GOOD * promise
        # A step that fails promises little only because it is damped.
        small = better & (jnp.abs(promise) <= tolerance)
        # Rounding of the sum hides gains that are smaller than it.
        noise = ~better & (jnp.abs(promise) <= ROUNDING * jnp.finfo(q.dtype).eps * before)
        softer = jnp.where(good, s.damping * SOFTER, s.damping)
        damping = jnp.clip(jnp.where(better, softer, s.damping * HARDER), LEAST_DAMPING, MOST_DAMPING)
        q, theta = jnp.where(better, q, s.q), jnp.where(better, theta, s.theta)
        return _State(
            q, theta, jnp.where(better, after, before), e, better, damping, s.steps + 1, small | noise
        )

    def unfinished(s: _State) -> Array:
        going = ~s.converged & (s.steps < max_steps) & (s.damping < MOST_DAMPING)
        return going & (s.stale | jnp.isfinite(s.f))

    blank = jax.eval_shape(lambda q, theta: all_equations(setting, whole, q, theta), q, theta)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
    first = _State(
        q, theta, jnp.asarray(jnp.inf, q.dtype), nothing, jnp.asarray(True),
        jnp.asarray(FIRST_DAMPING, q.dtype), jnp.int32(0), jnp.asarray(False),
    )  # fmt: skip
    end = lax.while_loop(unfinished, body, first)
    return Fitted(end.q, end.theta, end.f, end.steps, end.converged)


def held_at_bounds(whole: Whole, e: Equations, q: Float[Array, "C T Q"]) -> Bool[Array, "C T Q"]:
    """Coordinates that stay: at a bound and pulled beyond it, or of frames that aren't there."""
    low, high = (x.astype(q.dtype) for x in (whole.fixed.model.lower, whole.fixed.model.upper))
    held = ((q <= low) & (e.gradient > 0)) | ((q >= high) & (e.gradient < 0))
    return held | ~whole.valid[..., None]


def objective(setting: Setting, whole: Whole, q: Float[Array, "C T Q"], theta: Float[Array, " P"]) -> Array:
    """The whole objective."""
    costs = _by_chunks(lambda data, pose: cost_of(setting, whole.fixed, theta, data, pose), whole, q)
    return jnp.sum(costs) + _penalties(whole, q, theta)


def _penalties(whole: Whole, q: Float[Array, "C T Q"], theta: Float[Array, " P"]) -> Array:
    """What the motion and the shared vector cost by themselves."""
    off = theta - whole.prior_mean
    return _moving(whole, q) + 0.5 * off @ (whole.prior_precision @ off)


def _moving(whole: Whole, q: Float[Array, "C T Q"]) -> Array:
    steps, bends = stencils(whole.valid)
    step = (q[:, 1:] - q[:, :-1]) * whole.rate_hz
    bend = (q[:, 2:] - 2 * q[:, 1:-1] + q[:, :-2]) * whole.rate_hz**2
    slow = jnp.sum(jnp.where(steps[:, 1:, None], step**2, 0.0)) * whole.velocity_precision
    squares = jnp.where(bends[:, 2:, None], bend**2, 0.0)
    return 0.5 * (slow + jnp.sum(squares * whole.acceleration_precision[:, None]))


def motion_blocks(whole: Whole, dtype: jnp.dtype) -> tuple[Float[Array, "C T Q"], ...]:
    """The matrix of what the motion costs: its diagonal and two off-diagonals, of each coordinate."""
    slow, smooth = (
        coupling(Smoothing(*weights, whole.rate_hz), whole.valid, dtype)
        for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    stiff, still = whole.acceleration_precision.astype(dtype)[:, None], whole.velocity_precision.astype(dtype)
    return tuple(a[..., None] * still + b[..., None] * stiff for a, b in zip(slow, smooth, strict=True))


def prior_factor(whole: Whole) -> Factor:
    """Of the priors' matrix of poses, each coordinate of each clip ``[T C*Q]`` by itself.

    Ones stand for coordinates that are pulled to no pose, and for frames that aren't there.
    """
    pull = pose_precision(whole.fixed, whole.data)
    diagonal, first, second = motion_blocks(whole, pull.dtype)
    proper = jnp.any(pull > 0, axis=1, keepdims=True)
    own = pull + diagonal
    own = jnp.where(proper & (own > 0), own, 1.0)
    blocks = [own, *(jnp.where(proper, x, 0.0) for x in (first, second))]
    a, d1, d2 = (jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, 1) for x in blocks)
    return factorise(a[..., None], d1, d2)


def all_equations(
    setting: Setting, whole: Whole, q: Float[Array, "C T Q"], theta: Float[Array, " P"]
) -> Equations:
    """Gradient and matrix at a point, with the penalties in the gradient and the priors in theta's parts."""
    clips, frames, n = q.shape

    def one(data: FrameData, pose: Array) -> Equations:
        return equations(setting, whole.fixed, theta, data, pose)

    e = _summed_chunks(one, whole, q)
    pull = jax.grad(lambda x: _moving(whole, x))(q)
    return Equations(
        e.cost.reshape(clips, frames),
        e.gradient.reshape(clips, frames, n) + pull,
        e.matrix.reshape(clips, frames, n, n),
        e.border.reshape(clips, frames, n, -1),
        e.shared_gradient + whole.prior_precision @ (theta - whole.prior_mean),
        e.shared_matrix + whole.prior_precision,
    )


def factorised(
    whole: Whole, e: Equations, held: Bool[Array, "C T Q"], damping: Array | float
) -> tuple[Bordered, Float[Array, "T C Q P"]]:
    """The system's factor over what isn't held, and its sides."""
    dtype, n = e.gradient.dtype, e.gradient.shape[-1]
    bent, first, second = motion_blocks(whole, dtype)
    free = (~held).astype(dtype)
    own = jnp.diagonal(e.matrix, axis1=-2, axis2=-1)
    # A unit pivot for what is held, and for what nothing at all determines.
    alone = held | (own + bent <= 0)
    added = bent * free + damping * own * free + jnp.where(alone, 1.0, 0.0)
    a = e.matrix * free[..., :, None] * free[..., None, :] + added[..., None] * jnp.eye(n, dtype=dtype)
    d1 = first * free * _earlier(free, 1)
    d2 = second * free * _earlier(free, 2)
    banded = factorise(*(jnp.moveaxis(x, 1, 0) for x in (a, d1, d2)))
    sides = jnp.moveaxis(e.border * free[..., None] * whole.free, 1, 0)
    corner = e.shared_matrix * whole.free[:, None] * whole.free
    corner = corner + jnp.diag(damping * jnp.diagonal(corner) + 1 - whole.free)
    return border(banded, sides, corner), sides


def _earlier(x: Float[Array, "C T Q"], by: int) -> Float[Array, "C T Q"]:
    return jnp.pad(x, ((0, 0), (by, 0), (0, 0)))[:, : x.shape[1]]


def _solved(
    factor: Bordered, sides: Array, e: Equations, held: Array, free: Array
) -> tuple[Float[Array, "C T Q"], Float[Array, " P"]]:
    right = jnp.moveaxis(jnp.where(held, 0.0, e.gradient), 1, 0)
    step, move = solve_bordered(factor, sides, right, e.shared_gradient * free)
    return jnp.moveaxis(step, 1, 0), move


def _promise(whole: Whole, e: Equations, step: Float[Array, "C T Q"], move: Float[Array, " P"]) -> Array:
    """What a step gains by the model of the objective."""
    inner = jnp.einsum("ctij,ctj->cti", e.matrix, step, precision="highest")
    inner = inner + 2 * jnp.einsum("ctip,p->cti", e.border, move, precision="highest")
    second = jnp.sum(step * inner) + 2 * _moving(whole, step) + move @ (e.shared_matrix @ move)
    return -(jnp.sum(step * e.gradient) + move @ e.shared_gradient + 0.5 * second)


def _averaged(function):
    """The function's mean over the spread of a chunk's poses."""

    def averaged(data: FrameData, pose: Float[Array, "W Q"], spread: Float[Array, "W S Q"]):
        beside = jnp.moveaxis(pose[:, None] + spread, 1, 0)
        if len(beside) == 1:
            return function(data, beside[0])
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), lax.map(partial(function, data), beside))

    return averaged


def _by_chunks(function, whole: Whole, q: Float[Array, "C T Q"]):
    return lax.map(lambda part: _averaged(function)(*part), chunked((whole.data, q, whole.spread)))


def _summed_chunks(function, whole: Whole, q: Float[Array, "C T Q"]) -> Equations:
    """Equations of all frames; the shared parts are added up chunk by chunk."""
    chunks = chunked((whole.data, q, whole.spread))
    count = q.shape[0] * q.shape[1]

    def step(sums, part):
        e = _averaged(function)(*part)
        sums = (sums[0] + e.shared_gradient, sums[1] + e.shared_matrix)
        return sums, (e.cost, e.gradient, e.matrix, e.border)

    first = jax.eval_shape(_averaged(function), *jax.tree.map(lambda x: x[0], chunks))
    zeros = tuple(jnp.zeros(x.shape, x.dtype) for x in (first.shared_gradient, first.shared_matrix))
    sums, parts = lax.scan(step, zeros, chunks)
    flat = (x.reshape(-1, *x.shape[2:])[:count] for x in parts)
    return Equations(*flat, *sums)


def chunked(frames: Any) -> Any:
    """Arrays ``[C T …]`` in chunks of frames; the last is filled up with frames that don't count."""
    leaf = jax.tree.leaves(frames)[0]
    count = leaf.shape[0] * leaf.shape[1]
    width = min(CHUNK, count)
    spare = -count % width

    def cut(x: Array) -> Array:
        flat = x.reshape(count, *x.shape[2:])
        full = jnp.pad(flat, [(0, spare), *[(0, 0)] * (flat.ndim - 1)])
        return full.reshape((count + spare) // width, width, *flat.shape[1:])

    return jax.tree.map(cut, frames)
