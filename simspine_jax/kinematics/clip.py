"""Whole-clip inverse kinematics: all frames of a clip at once, with penalties on velocity and acceleration.

The objective is the sum of the frames' objectives (``residuals``) and, over the clip::

    velocity / 2     * sum_t |(q_t - q_{t-1}) rate|^2
    acceleration / 2 * sum_t |(q_{t+1} - 2 q_t + q_{t-1}) rate^2|^2

(SimSpine, section 3.1, step 3). Its matrix is block pentadiagonal with diagonal off-diagonal blocks,
factorised exactly (``solvers.banded``). Far from the solution it is Gauss and Newton's; near it the exact
Hessian, with which the last steps converge where Gauss and Newton's would creep. One factorisation serves
several steps with fresh gradients; it is renewed when a step falls short of what it promised, or when other
coordinates are at their bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

# Steps whose objective was looked at, and rounds for each, with those that only found what to hold.
MAX_STEPS, MOST_ROUNDS = 60, 3
# A step that misses its promise by more than this share of it, either way, renews the frames' matrices.
MISJUDGED = 0.3
# A step is computed again, with what it would take beyond a bound held there, where the bounds take more than
# this share of its gain; so many times at most.
BLOCKED, MOST_AGAIN = 0.1, 8
# The exact Hessian only serves near the solution, where a step gains less than this share of the objective;
# nearer each time that it turns out not to be positive definite.
NEAR, NEARER = 1e-2, 0.1
# Relative to the diagonal of the frames' own matrices. Most of the penalties' share is left out: it would
# outweigh what holds a coordinate that the markers hardly show.
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-7, 1e8
# m², of a frame: markers off by a third of a micrometre.
FLOOR = 1e-13
HARDER, SOFTER = 30.0, 0.05
PENALTIES_SHARE = 1e-3
ROUNDING = 4
# Steps whose gain rounding hides go on while each promises less than this share of the one before.
STALLED = 0.3
CHUNK = 128
# Clips of a group wait for the slowest of them. A CPU needs no more frames at a time than fill its vectors.
CPU_FRAMES = 256


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
    h: Array  # [C T Q Q] the frames' matrices, without the penalties
    factor: Factor
    held: Array  # [C T Q] coordinates that the factor leaves out
    aim: Array  # [C T Q] how far these move, to their bounds; 0 elsewhere
    stale: Array  # [] whether the frames' matrices are to be renewed, and
    renew: Array  # [] whether to factorise, before the next step
    damping: Array  # [C]
    bend: Array  # [C] 1 for the exact Hessian, 0 for Gauss-Newton
    near: Array  # [C] share of the objective below which a step's gain makes the exact Hessian serve
    fresh: Array  # [C] whether the frames' matrices are those of q
    again: Array  # [C] how often this step has been computed again
    done: Array  # [C]
    converged: Array  # [C]
    last: Array  # [C] what the last step promised
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
    n_clips, n_frames = valid.shape
    size = n_clips if jax.default_backend() != "cpu" else min(n_clips, max(1, CPU_FRAMES // n_frames))
    n_groups = -(-n_clips // size)

    def group(clips: Array):
        here = jnp.minimum(clips, n_clips - 1)

        def rows(x: Array) -> Array:
            return x.reshape(n_clips, n_frames, *x.shape[1:])[here].reshape(size * n_frames, *x.shape[1:])

        part = replace(
            problem,
            targets=rows(problem.targets),
            weights=rows(problem.weights),
            task_targets=rows(problem.task_targets),
            usable=rows(problem.usable),
        )
        there = valid[here] & (clips < n_clips)[:, None]
        goal = _Goal(structure, model, part, smoothing, there)
        return _descend(goal, start[here], max_steps, tolerance)

    groups = jnp.arange(n_groups * size, dtype=jnp.int32).reshape(n_groups, size)
    parts = lax.map(group, groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n_clips], parts)


@dataclass(frozen=True)
class _Goal:
    """What a group of clips minimises."""

    structure: Structure
    model: SpineModel
    problem: Problem
    smoothing: Smoothing
    valid: Bool[Array, "C T"]

    @property
    def counts(self) -> Bool[Array, "C T"]:
        return self.problem.usable.reshape(self.valid.shape) & self.valid

    def bounds(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        return self.model.lower.astype(dtype), self.model.upper.astype(dtype)

    def equations(self, q: Float[Array, "C T Q"]) -> tuple[Float[Array, " C"], Float[Array, "C T Q"]]:
        """The objective and its gradient."""

        def one(data: Slice, pose: Array):
            return normal_equations(self.model, self.structure, data, pose)[:2]

        f, g = _by_chunks(one, self.problem, q)
        f = jnp.sum(jnp.where(self.counts, f, 0), axis=1) + smoothness(self.smoothing, self.valid, q)
        return f, jnp.where(self.counts[..., None], g, 0) + self.pull(q)

    def pull(self, x: Float[Array, "C T Q"]) -> Float[Array, "C T Q"]:
        """The penalties' matrix times x, which is also their gradient at x."""
        return jax.grad(lambda y: jnp.sum(smoothness(self.smoothing, self.valid, y)))(x)

    def frame_matrices(self, q: Float[Array, "C T Q"], bend: Float[Array, " C"]) -> Float[Array, "C T Q Q"]:
        """The frames' own matrices; see ``normal_equations`` for ``bend``."""

        def one(data: Slice, pose: Array, strength: Array):
            return normal_equations(self.model, self.structure, data, pose, strength)[2:]

        (h,) = _by_chunks(one, self.problem, q, jnp.broadcast_to(bend[:, None], self.valid.shape))
        return jnp.where(self.counts[..., None, None], h, 0)

    def product(self, h: Float[Array, "C T Q Q"], x: Float[Array, "C T Q"]) -> Float[Array, "C T Q"]:
        """The whole matrix times x."""
        return jnp.einsum("ctij,ctj->cti", h, x) + self.pull(x)

    def held(self, q: Array, g: Array) -> Bool[Array, "C T Q"]:
        """Coordinates that don't move: at a bound and pulled beyond it, or of fixed frames."""
        return _held(q, g, *self.bounds(q.dtype)) | self.fixed[..., None]

    @property
    def fixed(self) -> Bool[Array, "C T"]:
        """Frames that nothing moves."""
        return ~_moving(self.counts)[:, None] | ~self.valid


def _descend(
    goal: _Goal, start: Float[Array, "C T Q"], max_steps: int, tolerance: float
) -> tuple[Array, Array, Array, Array]:
    """Solves a group of clips; see ``solve_clips``."""

    def body(s: _Clips) -> _Clips:
        s = _prepare(goal, s)
        step, promise, ideal = _step(goal, s)
        broken = ~jnp.isfinite(ideal) & ~s.done
        beyond = (_trial(goal, s, step) != s.q + step) & ~s.held
        blocked = (promise < (1 - BLOCKED) * ideal) & (s.again < MOST_AGAIN) & ~s.done
        blocked = blocked & jnp.any(beyond, axis=(1, 2))
        judged = ~(s.done | broken | blocked)
        s = _hold(goal, s, step, beyond, blocked)
        s = _soften(s, broken)
        return _judge(goal, s, step, promise, judged, tolerance)

    def unfinished(s: _Clips) -> Array:
        return jnp.any(~s.done & (s.steps < max_steps)) & (s.rounds < MOST_ROUNDS * max_steps)

    end = lax.while_loop(unfinished, body, _first(goal, start))
    return end.q, end.f, end.converged, end.steps


def _first(goal: _Goal, start: Float[Array, "C T Q"]) -> _Clips:
    n_clips, n_frames, n = start.shape
    dtype = start.dtype
    q = jnp.clip(start, *goal.bounds(dtype))
    f, g = goal.equations(q)
    blank = jnp.zeros((n_frames, n_clips, n, n), dtype)
    yes, none, zero = jnp.asarray(True), jnp.zeros(n_clips, bool), jnp.zeros(n_clips, jnp.int32)
    return _Clips(
        q, f, g, jnp.zeros((n_clips, n_frames, n, n), dtype), Factor(blank, blank, blank[..., 0]),
        goal.held(q, g), jnp.zeros_like(q), yes, yes, jnp.full(n_clips, FIRST_DAMPING, dtype),
        jnp.zeros(n_clips, dtype), jnp.full(n_clips, NEAR, dtype), none, zero,
        ~_moving(goal.counts), none, jnp.full(n_clips, jnp.inf, dtype), zero, jnp.int32(0),
    )  # fmt: skip


def _prepare(goal: _Goal, s: _Clips) -> _Clips:
    """Matrix and factor as they are wanted."""
    h = lax.cond(s.stale, lambda: goal.frame_matrices(s.q, s.bend), lambda: s.h)

    def renewed() -> Factor:
        return factorise(*_blocks(goal.smoothing, goal.valid, h, s.held, s.damping))

    factor = lax.cond(s.renew, renewed, lambda: s.factor)
    no = jnp.asarray(False)
    return s._replace(h=h, factor=factor, fresh=s.fresh | s.stale, stale=no, renew=no)


def _step(goal: _Goal, s: _Clips) -> tuple[Float[Array, "C T Q"], Float[Array, " C"], Float[Array, " C"]]:
    """The step, what its part inside the bounds promises to gain, and what the whole would."""
    right = jnp.where(s.held, 0, s.g + goal.product(s.h, s.aim))
    step = s.aim - jnp.moveaxis(solve(s.factor, jnp.moveaxis(right, 1, 0)), 0, 1)

    def gain(x: Array) -> Array:
        return -jnp.sum(x * (s.g + 0.5 * goal.product(s.h, x)), axis=(1, 2))

    return step, gain(_trial(goal, s, step) - s.q), gain(step)


def _trial(goal: _Goal, s: _Clips, step: Float[Array, "C T Q"]) -> Float[Array, "C T Q"]:
    """Where the step leads, inside the bounds."""
    return jnp.where(s.held, _aimed(goal, s), jnp.clip(s.q + step, *goal.bounds(s.q.dtype)))


def _aimed(goal: _Goal, s: _Clips) -> Float[Array, "C T Q"]:
    """Where held coordinates are to come: to the last digit at their bounds, which q plus a step is not."""
    low, high = goal.bounds(s.q.dtype)
    return jnp.where(s.aim > 0, high, jnp.where(s.aim < 0, low, s.q))


def _hold(
    goal: _Goal, s: _Clips, step: Array, beyond: Bool[Array, "C T Q"], blocked: Bool[Array, " C"]
) -> _Clips:
    """Holds at its bound what the step of these clips would take beyond, for the step to be computed again.

    What the step pulls away from a bound where it was held is let go (a primal-dual active set).
    """
    here = blocked[:, None, None]
    aimed = _aimed(goal, s)
    kept = _held(aimed, s.g + goal.product(s.h, step), *goal.bounds(s.q.dtype)) | goal.fixed[..., None]
    held = jnp.where(here & s.held, kept, s.held)
    beyond = beyond & here
    aim = jnp.where(held, s.aim, 0)
    return s._replace(
        held=held | beyond,
        aim=jnp.where(beyond, _trial(goal, s, step) - s.q, aim),
        again=s.again + blocked,
        renew=s.renew | jnp.any(blocked),
    )


def _soften(s: _Clips, broken: Bool[Array, " C"]) -> _Clips:
    """Another matrix for clips whose own is not positive definite: Gauss and Newton's, then more damping."""
    exact = broken & (s.bend > 0)
    return s._replace(
        bend=jnp.where(exact, 0, s.bend),
        near=jnp.where(exact, s.near * NEARER, s.near),
        damping=jnp.where(broken & ~exact, s.damping * HARDER, s.damping),
        stale=s.stale | jnp.any(exact),
        renew=s.renew | jnp.any(broken),
    )


def _judge(
    goal: _Goal,
    s: _Clips,
    step: Float[Array, "C T Q"],
    promise: Float[Array, " C"],
    judged: Bool[Array, " C"],
    tolerance: float,
) -> _Clips:
    """Takes the step in clips where the objective falls, and sees what the next one needs."""
    trial = jnp.where(judged[:, None, None], _trial(goal, s, step), s.q)
    total, slope = lax.cond(jnp.any(judged), lambda: goal.equations(trial), lambda: (s.f, s.g))
    # What a step gains here is less than the rounding errors of the objective, but not of its gradient: steps
    # are taken for as long as each promises much less than the one before.
    unseen = ROUNDING * jnp.finfo(s.q.dtype).eps * s.f
    fine = (s.bend > 0) & (jnp.abs(promise) <= unseen)
    accept = (total <= s.f + jnp.where(fine, unseen, 0)) & judged
    take_it = accept[:, None, None]
    q, f, g = jnp.where(take_it, trial, s.q), jnp.where(accept, total, s.f), jnp.where(take_it, slope, s.g)
    here = judged[:, None, None]
    held = jnp.where(here, goal.held(q, g), s.held)
    # A coordinate has come to a bound, or leaves one: the factor is for another set of coordinates.
    moved = jnp.any(held != s.held, axis=(1, 2))
    # Damping hides what flat directions still promise, so most of it must have gone first. An objective at
    # the floor is solved to rounding.
    settled = s.damping <= FIRST_DAMPING
    small = ((jnp.abs(promise) <= tolerance * s.f) & settled) | (f <= FLOOR * goal.counts.sum(axis=1))
    stalled = fine & s.fresh & (jnp.abs(promise) > STALLED * s.last)
    noise = s.fresh & (jnp.abs(promise) <= jnp.finfo(q.dtype).eps ** 0.66 * s.f)
    converged = s.converged | (judged & ((small & accept & ~moved) | (noise & ~accept) | stalled))
    done = s.done | converged | (s.damping >= MOST_DAMPING)
    going = judged & ~done
    missed = ~(jnp.abs(s.f - total - promise) <= MISJUDGED * promise)
    misjudged = going & jnp.where(fine, jnp.abs(promise) > STALLED * s.last, missed)
    # Only a matrix of this very pose is to blame for a step that fails.
    failed = going & ~accept & s.fresh
    damping = jnp.where(
        failed, s.damping * HARDER, jnp.where(accept & ~misjudged, s.damping * SOFTER, s.damping)
    )
    near = accept & ~misjudged & (promise <= s.near * s.f)
    bend = jnp.where(near, 1, s.bend)
    misjudged = misjudged | (going & (bend != s.bend))
    return s._replace(
        q=q, f=f, g=g, held=held,
        aim=jnp.where(here, 0, s.aim), again=jnp.where(judged, 0, s.again),
        damping=jnp.maximum(damping, LEAST_DAMPING),
        bend=bend,
        fresh=s.fresh & ~accept,
        stale=s.stale | jnp.any(misjudged & ~failed),
        # So that a factor is never more damped than the state, where that counts.
        renew=s.renew | jnp.any(misjudged | failed | (going & (moved | (s.damping > FIRST_DAMPING)))),
        done=done, converged=converged,
        last=jnp.where(judged, jnp.abs(promise), s.last),
        steps=s.steps + judged, rounds=s.rounds + 1,
    )  # fmt: skip


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
    alone = jnp.diagonal(h, axis1=-2, axis2=-1)
    own = alone + diagonal[..., None]
    # A pivot's rounding errors are in proportion to its own diagonal. Without a diagonal nothing determines
    # the coordinate, and it gets a unit pivot.
    rounding = ROUNDING * jnp.finfo(dtype).eps * own
    damped = damping[:, None, None] * (jnp.abs(alone) + PENALTIES_SHARE * own)
    added = damped + rounding + jnp.where((own <= 0) | held, 1, 0)
    a = h * free[..., :, None] * free[..., None, :]
    a = a + (diagonal[..., None] * free + added)[..., :, None] * jnp.eye(n, dtype=dtype)
    d1 = first[..., None] * free * _shift(free, 1)
    d2 = second[..., None] * free * _shift(free, 2)
    return jnp.moveaxis(a, 1, 0), jnp.moveaxis(d1, 1, 0), jnp.moveaxis(d2, 1, 0)


def _by_chunks(function, problem: Problem, q: Float[Array, "C T Q"], *more: Float[Array, "C T"]):
    """Applies a frames-last function of (data, q, *more) to all frames, a few at a time to stay in cache."""
    n_clips, n_frames, n = q.shape
    total = n_clips * n_frames
    width = min(CHUNK, total)
    run = -(-total // width)
    index = jnp.minimum(jnp.arange(run * width, dtype=jnp.int32), total - 1).reshape(run, width)
    flat, others = q.reshape(total, n), [x.reshape(total) for x in more]

    def one(rows: Array):
        parts = function(take(problem, rows), flat[rows].T, *(x[rows] for x in others))
        return [jnp.moveaxis(jnp.broadcast_to(x, (*x.shape[:-1], width)), -1, 0) for x in parts]

    parts = lax.map(one, index)
    return [x.reshape(-1, *x.shape[2:])[:total].reshape(n_clips, n_frames, *x.shape[2:]) for x in parts]


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
    # JAX traces these rules outside of the context of the computation that they belong to.
    with jax.default_matmul_precision("highest"):
        result = solve_clips(method[0], model, problem, smoothing, start, method[1], valid, method[2])
    return result, (model, problem, smoothing, result[0], valid)


def _backward(method, saved, cotangents):
    model, problem, smoothing, q, valid = saved
    with jax.default_matmul_precision("highest"):
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
