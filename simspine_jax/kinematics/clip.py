"""Whole-clip inverse kinematics: all frames of a clip at once, with penalties on velocity and acceleration.

The objective is the sum of the frames' objectives (``residuals``) and, over the clip::

    velocity / 2     * sum_t |(q_t - q_{t-1}) rate|^2
    acceleration / 2 * sum_t |(q_{t+1} - 2 q_t + q_{t-1}) rate^2|^2

(SimSpine, section 3.1, step 3). Its Gauss-Newton matrix is block pentadiagonal with diagonal off-diagonal
blocks, factorised exactly (``solvers.banded``). One factorisation serves several steps with fresh gradients;
it is renewed when a step falls short of what it promised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.residuals import Problem, Slice, Structure, normal_equations, objective, take
from simspine_jax.solvers.banded import Factor, factorise, solve

MAX_STEPS = 60
# A step that achieves less than this share of its promise renews the factorisation.
POOR_STEP = 0.6
MOST_DAMPING = 1e8
CHUNK = 128


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Smoothing:
    """Weights of the penalties, in m² per (rad/s)² and m² per (rad/s²)² of one coordinate.

    They compare with the frame's objective, a mean squared marker error (m²) over 2. Velocities of 1 rad/s
    at ``velocity=1e-6`` weigh as much as a marker error of 1 mm.
    """

    velocity: Array | float = 0.0
    acceleration: Array | float = 0.0
    rate_hz: Array | float = 50.0

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "rate_hz"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not (
                np.isfinite(value) and value >= 0 and (value > 0 or name != "rate_hz")
            ):
                raise ShapeError(
                    f"The smoothing's {name} must be a finite number that is not negative, not {value}"
                )


class _Clips(NamedTuple):
    q: Array  # [C T Q]
    f: Array  # [C]
    g: Array  # [C T Q]
    factor: Factor
    held: Array  # [C T Q] coordinates that the factor leaves out
    renew: Array  # [] whether to factorise before the next step
    damping: Array  # [C]
    done: Array  # [C]
    converged: Array  # [C]
    steps: Array  # [C]
    rounds: Array


def stencils(valid: Bool[Array, "C T"]) -> tuple[Float[Array, "C T"], Float[Array, "C T"]]:
    """1 where a velocity ends at frame t (t - 1 and t in the clip), and an acceleration (t - 2, t - 1, t)."""
    before = jnp.pad(valid, ((0, 0), (1, 0)))[:, :-1]
    earlier = jnp.pad(valid, ((0, 0), (2, 0)))[:, :-2]
    return valid & before, valid & before & earlier


def smoothness(
    smoothing: Smoothing, valid: Bool[Array, "C T"], q: Float[Array, "C T Q"]
) -> Float[Array, " C"]:
    """The penalties of each clip."""
    velocity, acceleration = _weights(smoothing, valid, q.dtype)
    d1 = q - _shift(q, 1)
    d2 = q - 2 * _shift(q, 1) + _shift(q, 2)
    return 0.5 * jnp.sum(velocity[..., None] * d1**2 + acceleration[..., None] * d2**2, axis=(1, 2))


def _shift(x: Array, by: int) -> Array:
    return jnp.pad(x, ((0, 0), (by, 0), (0, 0)))[:, :-by] if x.shape[1] > by else jnp.zeros_like(x)


def _weights(smoothing: Smoothing, valid: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    rate = jnp.asarray(smoothing.rate_hz, dtype)
    has_velocity, has_acceleration = stencils(valid)
    velocity = jnp.asarray(smoothing.velocity, dtype) * rate**2
    acceleration = jnp.asarray(smoothing.acceleration, dtype) * rate**4
    return velocity * has_velocity.astype(dtype), acceleration * has_acceleration.astype(dtype)


def coupling(smoothing: Smoothing, valid: Bool[Array, "C T"], dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """The penalties' matrix, the same for each coordinate: its diagonal and two off-diagonals ``[C T]``."""
    v, a = _weights(smoothing, valid, dtype)
    ahead1 = jnp.pad(v, ((0, 0), (0, 1)))[:, 1:]
    a1 = jnp.pad(a, ((0, 0), (0, 1)))[:, 1:]
    a2 = jnp.pad(a, ((0, 0), (0, 2)))[:, 2:]
    return v + ahead1 + a + 4 * a1 + a2, -v - 2 * a - 2 * a1, a


@partial(jax.jit, static_argnums=(0, 5))
def solve_clips(
    structure: Structure,
    model: SpineModel,
    problem: Problem,
    smoothing: Smoothing,
    start: Float[Array, "C T Q"],
    max_steps: int,
    valid: Bool[Array, "C T"],
    tolerance: float,
) -> tuple[Float[Array, "C T Q"], Float[Array, " C"], Bool[Array, " C"], Array]:
    """Poses of all clips, their objectives, whether they converged, and the steps taken.

    ``valid`` marks frames that belong to a clip; frames inside a clip without usable markers take part
    through the penalties alone.
    """
    n_clips = start.shape[0]
    dtype = start.dtype
    low, high = model.lower.astype(dtype), model.upper.astype(dtype)
    counts = problem.usable.reshape(n_clips, -1) & valid

    def frame_equations(q: Array) -> tuple[Array, Array, Array]:
        f, g, h = _by_chunks(lambda data, pose: normal_equations(model, structure, data, pose), problem, q)
        return (
            jnp.where(counts, f, 0),
            jnp.where(counts[..., None], g, 0),
            jnp.where(counts[..., None, None], h, 0),
        )

    def with_penalties(q: Array, f: Array, g: Array) -> tuple[Array, Array]:
        slope = jax.grad(lambda x: jnp.sum(smoothness(smoothing, valid, x)))(q)
        return jnp.sum(f, axis=1) + smoothness(smoothing, valid, q), g + slope

    def held_at(q: Array, g: Array) -> Array:
        return _held(q, g, low, high) | ~_moving(counts)[:, None, None] | ~valid[..., None]

    def build(q: Array, h: Array, g: Array, damping: Array) -> tuple[Factor, Array]:
        held = held_at(q, g)
        return factorise(*_blocks(smoothing, valid, h, held, damping)), held

    q = jnp.clip(start, low, high)
    f, g, h = frame_equations(q)
    total, slope = with_penalties(q, f, g)
    damping = jnp.full(n_clips, 1e-4, dtype)
    factor, held = build(q, h, slope, damping)
    none = jnp.zeros(n_clips, bool)
    state = _Clips(
        q, total, slope, factor, held, jnp.asarray(False), damping,
        ~_moving(counts), none, jnp.zeros(n_clips, jnp.int32), jnp.int32(0),
    )  # fmt: skip

    def renewed(s: _Clips) -> _Clips:
        factor, held = build(s.q, frame_equations(s.q)[2], s.g, s.damping)
        return s._replace(factor=factor, held=held, renew=jnp.asarray(False))

    def body(s: _Clips) -> _Clips:
        s = lax.cond(s.renew, renewed, lambda x: x, s)
        pull = jnp.where(s.held, 0, s.g)
        delta = -jnp.moveaxis(solve(s.factor, jnp.moveaxis(pull, 1, 0)), 0, 1)
        trial = jnp.clip(s.q + jnp.where(jnp.isfinite(delta), delta, 0), low, high)
        delta = trial - s.q
        promise = -0.5 * jnp.sum(pull * delta, axis=(1, 2))
        f, g, _ = frame_equations(trial)
        total, slope = with_penalties(trial, f, g)
        accept = (total <= s.f) & ~s.done
        # A coordinate has come to a bound, or leaves one: the factor is for another set of coordinates.
        moved = jnp.any(held_at(jnp.where(accept[:, None, None], trial, s.q), slope) != s.held, axis=(1, 2))
        small = (promise > 0) & (promise <= tolerance * s.f)
        noise = (promise > 0) & ~accept & (promise <= jnp.finfo(dtype).eps ** 0.66 * s.f)
        converged = s.converged | (((small & accept & ~moved) | noise) & ~s.done)
        done = s.done | converged | (s.damping >= MOST_DAMPING)
        poor = ~done & ~((s.f - total) >= POOR_STEP * promise)
        damping = jnp.where(
            accept & ~poor, s.damping * 0.3, jnp.where(done | accept, s.damping, s.damping * 10)
        )
        take_it = accept[:, None, None]
        return _Clips(
            jnp.where(take_it, trial, s.q), jnp.where(accept, total, s.f), jnp.where(take_it, slope, s.g),
            s.factor, s.held, jnp.any(poor | (moved & ~done)), jnp.maximum(damping, 1e-6), done, converged,
            s.steps + ~s.done, s.rounds + 1,
        )  # fmt: skip

    end = lax.while_loop(lambda s: ~jnp.all(s.done) & (s.rounds < max_steps), body, state)
    return end.q, end.f, end.converged, end.steps


def _moving(counts: Bool[Array, "C T"]) -> Bool[Array, " C"]:
    """Clips with any usable frame; the others have nothing to solve."""
    return jnp.any(counts, axis=1)


def _held(q: Array, g: Array, low: Array, high: Array) -> Array:
    """Coordinates that sit at a bound and are pulled beyond it."""
    return ((q <= low) & (g > 0)) | ((q >= high) & (g < 0))


def _blocks(
    smoothing: Smoothing, valid: Bool[Array, "C T"], h: Array, held: Array, damping: Float[Array, " C"]
) -> tuple[Array, Array, Array]:
    """The whole matrix over the coordinates that are not held, as ``factorise`` takes it."""
    dtype, n = h.dtype, h.shape[-1]
    diagonal, first, second = coupling(smoothing, valid, dtype)
    free = (~held).astype(dtype)
    own = jnp.diagonal(h, axis1=-2, axis2=-1) + diagonal[..., None]
    # Coordinates that nothing determines get a unit pivot.
    floor = jnp.finfo(dtype).eps * n * jnp.max(own, axis=-1, keepdims=True)
    added = damping[:, None, None] * own + floor + jnp.where((own <= floor) | held, 1, 0)
    a = h * free[..., :, None] * free[..., None, :]
    a = a + (diagonal[..., None] * free + added)[..., :, None] * jnp.eye(n, dtype=dtype)
    d1 = first[..., None] * free * _shift(free, 1)
    d2 = second[..., None] * free * _shift(free, 2)
    return jnp.moveaxis(a, 1, 0), jnp.moveaxis(d1, 1, 0), jnp.moveaxis(d2, 1, 0)


def _by_chunks(function, problem: Problem, q: Float[Array, "C T Q"]) -> tuple[Array, Array, Array]:
    """Applies a frames-last function of (data, q) to all frames, a few at a time to stay in cache."""
    n_clips, n_frames, n = q.shape
    total = n_clips * n_frames
    width = min(CHUNK, total)
    run = -(-total // width)
    index = jnp.minimum(jnp.arange(run * width, dtype=jnp.int32), total - 1).reshape(run, width)
    flat = q.reshape(total, n)

    def one(rows: Array):
        f, g, h = function(take(problem, rows), flat[rows].T)
        return f, g.T, jnp.moveaxis(jnp.broadcast_to(h, (n, n, width)), -1, 0)

    f, g, h = lax.map(one, index)
    shape = (n_clips, n_frames)
    return (
        f.reshape(-1)[:total].reshape(shape),
        g.reshape(-1, n)[:total].reshape(*shape, n),
        h.reshape(-1, n, n)[:total].reshape(*shape, n, n),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def optimum(
    method: tuple[Structure, int, float],
    model: SpineModel,
    problem: Problem,
    smoothing: Smoothing,
    start: Float[Array, "C T Q"],
    valid: Bool[Array, "C T"],
) -> tuple[Float[Array, "C T Q"], Float[Array, " C"], Bool[Array, " C"], Array]:
    """``solve_clips`` with the derivative of the solution by the implicit function theorem."""
    structure, max_steps, tolerance = method
    return solve_clips(structure, model, problem, smoothing, start, max_steps, valid, tolerance)


def _forward(method, model, problem, smoothing, start, valid):
    result = solve_clips(method[0], model, problem, smoothing, start, method[1], valid, method[2])
    return result, (model, problem, smoothing, result[0], valid)


def _backward(method, saved, cotangents):
    model, problem, smoothing, q, valid = saved
    bars = _implicit(method[0], model, problem, smoothing, q, valid, cotangents[0])
    return None, bars[0], bars[1], None, None


@partial(jax.jit, static_argnums=0)
def _implicit(
    structure: Structure, model: SpineModel, problem: Problem, smoothing: Smoothing, q, valid, cotangent
):
    """Multiplies the cotangent by the inverse of the exact, banded Hessian, then by the mixed derivative."""
    dtype, n = q.dtype, q.shape[-1]

    def exact(data: Slice, pose: Array):
        return normal_equations(model, structure, data, pose, jnp.ones(pose.shape[1], dtype))

    counts = problem.usable.reshape(valid.shape) & valid
    _, g, h = _by_chunks(exact, problem, q)
    h = jnp.where(counts[..., None, None], h, 0)
    g = jnp.where(counts[..., None], g, 0)
    g = g + jax.grad(lambda x: jnp.sum(smoothness(smoothing, valid, x)))(q)
    held = _held(q, g, model.lower.astype(dtype), model.upper.astype(dtype))
    held = held | ~valid[..., None] | ~_moving(counts)[:, None, None]
    factor = factorise(*_blocks(smoothing, valid, h, held, jnp.zeros(len(q), dtype)))
    pull = jnp.where(held, 0, cotangent)
    multiplier = jnp.where(held, 0, jnp.moveaxis(solve(factor, jnp.moveaxis(pull, 1, 0)), 0, 1))

    def slope(parts):
        inner, smooth = parts

        def total(x: Array) -> Array:
            data = take(inner, jnp.arange(inner.targets.shape[0]))
            frames = objective(model, structure, data, x.reshape(-1, n).T).reshape(valid.shape)
            return jnp.sum(jnp.where(counts, frames, 0)) + jnp.sum(smoothness(smooth, valid, x))

        return jax.jvp(total, (q,), (multiplier,))[1]

    return jax.tree.map(
        lambda x: x if x.dtype == jax.dtypes.float0 else -x,
        jax.grad(slope, allow_int=True)((problem, smoothing)),
    )


optimum.defvjp(_forward, _backward)
