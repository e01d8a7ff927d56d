"""Bounded Levenberg-Marquardt over many problems at once, each started from its predecessor.

A clip's frames are dealt to lanes, a run of consecutive frames to each lane. All lanes step together; a lane
whose frame has converged goes on to its next frame in the same step, starting from the pose just found, and
one that has come to the end of its run takes over a part of another's. So every matrix operation has all
lanes to work on, nobody waits for the slowest frame of a batch, and all but each lane's first frame start
close to their solution (a few iterations instead of tens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.solvers.cholesky import solve_spd

# How many times its promise a problem may still gain before its start is given up for a known better result.
HOPE = 2.0
# Damping below which a step is taken for an undamped one.
SETTLED_DAMPING = 1e-4
# The least improvement on a known result that is worth finding.
WORTHWHILE = 5e-4
# Levenberg's damping beside Marquardt's: a step of 1 rad (or m) costs this share of the objective, times the
# damping beyond the first, and a floor. Directions that the data barely show, where a quadratic model is soon
# wrong, then move only as far as that pays. The floor vanishes where a step promises less than CLOSE.
RIDGE, RIDGE_FLOOR, CLOSE = 10.0, 1e-3, 1e-5
# Below this share of what a step promised without the bounds, it is looked for again with those that it met
# held: so many lanes (or an eighth of all) at a time, so many times.
KEPT, AGAIN, MOST_AGAIN = 0.5, 16, 6
# A coordinate that meets its bound within this share of a step stands in the step's way.
BLOCKING = 0.3
# How many problems a lane may have before it for another to take half of them from the same pose.
NEARBY = 16
# How far a lane's next frame is started along the last change of pose: all of it would double the noise.
EXTRAPOLATION = 0.5

# Evaluates problems `index` at q: objective [W], gradient [Q W], matrix [Q Q W], which is Gauss-Newton's
# plus `bend` [W] times the rest of the Hessian.
Evaluate = Callable[[Float[Array, "Q W"], Int[Array, " W"], Float[Array, " W"]], tuple[Array, Array, Array]]
# Below this promised fraction of the objective a problem is near its solution, and the full Hessian is used:
# Gauss-Newton alone converges slowly where the residuals stay large. Where that is indefinite, Gauss-Newton
# goes on down to the second fraction of the first.
NEAR, NEARER = 0.1, 0.01


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Options:
    """Numbers of the method (Marquardt 1963; damping update after Madsen, Nielsen, Tingleff 2004)."""

    tolerance: float = 1e-6  # stop where a step promises less than this fraction of the objective
    floor: float = 1e-13  # objective (m²) under which a frame is solved: 0.4 micrometres
    first_damping: float = 1e-3
    least_damping: float = 1e-6
    most_damping: float = 1e8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracked:
    """Solutions of all problems: poses, objectives, iterations spent, and whether each converged.

    ``curvature`` is the diagonal of each solution's matrix: how sharply each coordinate is determined.
    ``tried`` says whether each was started from the present result of the problem before it, and after it.
    """

    q: Float[Array, "T Q"]
    curvature: Float[Array, "T Q"]
    objective: Float[Array, " T"]
    iterations: Int[Array, " T"]
    converged: Bool[Array, " T"]
    tried: Bool[Array, "T 2"]

    @classmethod
    def nothing(cls, total: int, q: Float[Array, "#T Q"]) -> Tracked:
        """No results; ``q`` only holds places for poses."""
        poses = jnp.broadcast_to(q, (total, q.shape[-1]))
        return cls(
            poses, jnp.zeros_like(poses), jnp.full(total, jnp.inf, q.dtype), jnp.zeros(total, jnp.int32),
            jnp.zeros(total, bool), jnp.zeros((total, 2), bool),
        )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Route:
    """Which problems the lanes take, and from where they start.

    A lane takes the problems of its range ``[begin, end)`` that ``wanted`` marks, in the direction ``step``,
    from where its predecessor ended. With ``retry`` it starts each from the result of the nearest allowed
    problem before it in the direction of ``step``, whoever solved that (with ``own`` from what stands in its
    own place, coordinates at a bound moved to ``inside`` where that is a number), and goes on to the next
    allowed problem of its range, wanted or not, as long as this improves results.
    """

    begin: Int[Array, " W"]
    end: Int[Array, " W"]
    wanted: Bool[Array, " T"]
    allowed: Bool[Array, " T"]
    step: Int[Array, ""]
    retry: Bool[Array, ""]
    own: Bool[Array, ""]
    inside: Float[Array, " Q"]


class _Lanes(NamedTuple):
    frame: Array  # [W] problem in work
    limit: Array  # [W] where the lane's range ends (exclusive, in its direction)
    way: Array  # [W] direction, 1 or -1
    fresh: Array  # [W] the trial is the first evaluation of its problem
    solved: Array  # [W] the lane has solved a problem of its range
    trial: Array  # [Q W] where to evaluate next
    q: Array  # [Q W] best of this problem so far, with its f, g and h
    f: Array
    g: Array
    h: Array
    last: Array  # [Q W] solution of the problem before
    damping: Array
    expected: Array  # [W] decrease that the trial promises
    count: Array  # [W] evaluations of this problem
    bend: Array  # [W] 1 where the next evaluation shall give the full Hessian
    near: Array  # [W] promised share of the objective below which it does
    results: Tracked

    @property
    def working(self) -> Array:
        """[W] The lane has a problem."""
        return self.way * (self.limit - self.frame) > 0


def track(
    evaluate: Evaluate,
    start: Float[Array, "Q W"],
    route: Route,
    bounds: tuple[Float[Array, " Q"], Float[Array, " Q"]],
    initial: Tracked,
    max_iterations: Int[Array, ""] | int,
    options: Options,
) -> Tracked:
    """Solves the route's problems; entries of ``initial`` are replaced where the new ones are better.

    A lane that has nothing left takes over half of what the busiest one still has before it.

    Args:
        evaluate: objective, gradient and matrix.
        start: where each lane's first problem starts (unless the route retries).
        route: the problems.
        bounds: least and greatest q, infinite where there is none.
        initial: results so far.
        max_iterations: evaluations for each problem.
        options: the method's numbers.
    """
    n, lanes = start.shape
    dtype, total = start.dtype, route.wanted.shape[0]
    low, high = bounds[0][:, None], bounds[1][:, None]
    wanted, allowed = _Queue.of(route.wanted), _Queue.of(route.allowed)

    def from_neighbour(frame: Array, results: Tracked, otherwise: Array) -> Array:
        before = allowed.at(frame - route.step, -route.step)
        source = jnp.where(route.own, frame, before)
        pose = results.q[jnp.clip(source, 0, total - 1)].T
        stuck = route.own & ((pose <= low) | (pose >= high)) & jnp.isfinite(route.inside)[:, None]
        pose = jnp.where(stuck, route.inside[:, None], pose)
        known = route.retry & (source >= 0) & (source < total) & jnp.isfinite(pose)
        return jnp.where(known, pose, otherwise)

    def mark(s: _Lanes) -> _Lanes:
        """Notes of the problems just begun from which neighbour's result they were."""
        beside = jnp.where(route.retry, ~route.own, s.solved)
        side = jnp.where(beside, jnp.where(s.way > 0, 0, 1), 2)
        spot = jnp.where(s.fresh & s.working, s.frame, total)
        tried = s.results.tried.at[spot, side].set(True, mode="drop")
        return s._replace(results=replace(s.results, tried=tried))

    first = wanted.at(jnp.where(route.step > 0, route.begin, route.end - 1), route.step)
    begin = jnp.clip(from_neighbour(first, initial, start), low, high)
    zero = jnp.zeros(lanes, dtype)
    state = _Lanes(
        frame=first, limit=jnp.where(route.step > 0, route.end, route.begin - 1),
        way=jnp.full(lanes, route.step), fresh=jnp.ones(lanes, bool), solved=jnp.zeros(lanes, bool),
        trial=begin, q=begin, f=zero, g=jnp.zeros((n, lanes), dtype), h=jnp.zeros((n, n, lanes), dtype),
        last=begin, damping=jnp.full(lanes, options.first_damping, dtype), expected=zero,
        count=jnp.zeros(lanes, jnp.int32), bend=zero, near=zero + NEAR, results=initial,
    )  # fmt: skip

    def advance(s: _Lanes) -> _Lanes:
        index = jnp.clip(s.frame, 0, total - 1)
        s, step, refused = _move(s, evaluate(s.trial, index, s.bend), (low, high), options)
        known = s.results.objective[index]
        final = s.results.converged[index]
        likely = step.likely(s.damping)
        solved, given_up = _judge(s, likely, refused, (known, final), options)
        spent = s.count >= max_iterations
        done = s.working & (solved | given_up | spent | (s.damping >= options.most_damping))
        # The last step is small and its promise is kept; it needs no evaluation of its own.
        last = solved & jnp.isfinite(step.promise)
        ended, value = (
            jnp.where(last, _inside(s.q + step.delta, (low, high)), s.q),
            jnp.where(last, jnp.maximum(s.f - step.promise, 0), s.f),
        )
        # What was given up is no result, even where it is a little lower than the one known.
        value = jnp.where(given_up & ~solved, jnp.inf, value)
        # Both neighbours may now be worth another try.
        ways = jnp.array([[-1], [1]])
        beside = allowed.at(s.frame + ways, ways)
        results = _record(s, _Entry(done, index, ended, value, solved, beside))
        # Where a start was given up, what is known is the better pose to go on from.
        best = results.q[index].T
        ended = jnp.where(jnp.isfinite(best), best, ended)
        gained = route.retry & (value < known * (1 - WORTHWHILE))
        place = s.frame + s.way
        ahead = jnp.where(gained, allowed.at(place, s.way), wanted.at(place, s.way))
        speed = jnp.where(s.solved, EXTRAPOLATION, 0) * (ended - s.last)
        # Where the full Hessian turned out indefinite, it is asked for again only much nearer.
        indefinite = (s.bend > 0) & ~jnp.isfinite(step.promise)
        near = jnp.where(done, NEAR, jnp.where(indefinite, NEARER * s.near, s.near))
        after, moved = _share(s._replace(
            frame=jnp.where(done, ahead, s.frame), fresh=done, solved=s.solved | done,
            trial=jnp.where(done, ended + speed, s.q + step.delta), last=jnp.where(done, ended, s.last),
            damping=jnp.where(done, jnp.minimum(s.damping, options.first_damping), s.damping),
            expected=step.promise, count=jnp.where(done, 0, s.count), near=near, results=results,
            bend=(~done & jnp.isfinite(step.promise) & (likely < near * s.f)).astype(dtype),
        ), route, wanted)  # fmt: skip
        began = jnp.where(after.fresh, from_neighbour(after.frame, results, after.trial), after.trial)
        damping = jnp.where(moved, options.first_damping, after.damping)
        return mark(after._replace(trial=_inside(began, (low, high)), damping=damping))

    return lax.while_loop(lambda s: jnp.any(s.working), advance, mark(state)).results


def _move(
    s: _Lanes, found: tuple[Array, Array, Array], bounds: tuple[Array, Array], options: Options
) -> tuple[_Lanes, _Step, Array]:
    """Takes the trials that are better, finds the next step, and says which refused trials met rounding."""
    f, g, h = found
    accept = s.fresh | (f <= s.f)
    noise = jnp.finfo(f.dtype).eps ** 0.66
    rounding = ~accept & (s.expected <= noise * s.f)
    last = jnp.where(s.fresh, jnp.inf, s.expected)
    moved = s._replace(
        q=jnp.where(accept, s.trial, s.q), f=jnp.where(accept, f, s.f), g=jnp.where(accept, g, s.g),
        h=jnp.where(accept, h, s.h), damping=_next_damping(s, f, accept, options), count=s.count + 1,
    )  # fmt: skip
    # Near the solution steps are short anyway, and must become Newton's.
    close = jnp.minimum(1, last / (CLOSE * jnp.maximum(moved.f, options.floor)))
    extra = jnp.maximum(moved.damping - options.first_damping, 0) + RIDGE_FLOOR * close**2
    ridge = RIDGE * extra * moved.f
    return moved, _step(moved.q, moved.g, moved.h, (moved.damping, ridge), bounds, s.working), rounding


def _judge(
    s: _Lanes, likely: Array, rounding: Array, before: tuple[Array, Array], options: Options
) -> tuple[Array, Array]:
    """Which lanes' problems are solved, and which starts can't reach what is known already."""
    tolerance = jnp.maximum(options.tolerance, 32 * jnp.finfo(s.f.dtype).eps)
    # Damping hides what flat directions still promise, so it must have gone first.
    enough = jnp.where(s.damping <= SETTLED_DAMPING, tolerance, SETTLED_DAMPING * tolerance)
    # At the greatest damping no step, however small, leads down: rounding, or no solution.
    stuck = (s.damping >= options.most_damping) & (likely <= jnp.finfo(s.f.dtype).eps ** 0.66 * s.f)
    solved = (likely <= enough * s.f) | (s.f <= options.floor) | rounding | stuck
    known, final = before
    hopeless = s.f - HOPE * likely >= known * (1 - WORTHWHILE)
    return solved, hopeless & (final | (s.f > known))


def _share(s: _Lanes, route: Route, wanted: _Queue) -> tuple[_Lanes, Array]:
    """Gives each idle lane the far half of a busy lane's range, if there is work; also which lanes moved.

    The idle lane works from the far end back where the pose beyond that end is known, so that it too starts
    close to its solution; where it is not, it may start from the busy lane's pose, but not from far.
    """
    lanes, total = s.frame.shape[0], route.wanted.shape[0]
    beyond = jnp.clip(s.limit, 0, total - 1)
    meets = ~route.retry & (beyond == s.limit) & jnp.isfinite(s.results.objective[beyond])
    places = jnp.maximum(s.way * (s.limit - s.frame) - 1, 0)
    half = (places + 1) // 2
    split = s.limit - s.way * half
    left = wanted.between(split, s.limit, s.way)
    near = route.retry | (places <= NEARBY)
    left = jnp.where(s.working & (places > 0) & (meets | near), left, 0)
    # The k-th idle lane goes to the k-th busiest.
    busiest = jnp.argsort(-left).astype(jnp.int32)
    rank = jnp.cumsum(~s.working) - 1
    donor = busiest[jnp.clip(rank, 0, lanes - 1)]
    takes = ~s.working & (left[donor] > 0)
    gives = jnp.zeros(lanes, bool).at[jnp.where(takes, donor, lanes)].set(True, mode="drop")
    limit = jnp.where(gives, split, s.limit)
    # A helper's range, from the donor's former limit and the share of it.
    way = s.way[donor]
    back = meets[donor]
    far, near_end = s.limit[donor] - way, limit[donor]
    begin = jnp.where(back, far, near_end)
    helper_way = jnp.where(back, -way, way)
    helper_limit = jnp.where(back, near_end - way, s.limit[donor])
    pose = jnp.where(back, s.results.q[beyond[donor]].T, s.q[:, donor])
    return s._replace(
        frame=jnp.where(takes, wanted.at(begin, helper_way), s.frame),
        limit=jnp.where(takes, helper_limit, limit),
        way=jnp.where(takes, helper_way, s.way),
        fresh=s.fresh | takes, solved=s.solved & ~takes,
        trial=jnp.where(takes, pose, s.trial), last=jnp.where(takes, pose, s.last),
        count=jnp.where(takes, 0, s.count), bend=jnp.where(takes, 0, s.bend),
        near=jnp.where(takes, NEAR, s.near),
    ), takes  # fmt: skip


class _Queue(NamedTuple):
    """Finds the nearest problem of a set in either direction."""

    ahead: Int[Array, " T"]
    behind: Int[Array, " T"]
    before: Int[Array, " T+1"]  # how many of the set come before each place

    @classmethod
    def of(cls, members: Bool[Array, " T"]) -> _Queue:
        """The queue of a set."""
        total = members.shape[0]
        index = jnp.arange(total, dtype=jnp.int32)
        count = jnp.cumsum(members.astype(jnp.int32))
        return cls(
            lax.cummin(jnp.where(members, index, total), reverse=True),
            lax.cummax(jnp.where(members, index, -1)),
            jnp.concatenate([jnp.zeros(1, jnp.int32), count]),
        )

    def at(self, place: Array, way: Array) -> Array:
        """The nearest member at or beyond ``place`` in the direction ``way``; T or -1 where there is none."""
        total = self.ahead.shape[0]
        inside = jnp.clip(place, 0, total - 1)
        found = jnp.where(way > 0, self.ahead[inside], self.behind[inside])
        return jnp.where((place < 0) | (place >= total), jnp.where(way > 0, total, -1), found)

    def between(self, place: Array, limit: Array, way: Array) -> Array:
        """How many members there are from ``place`` on and before ``limit``."""
        total = self.ahead.shape[0]
        first = jnp.where(way > 0, place, limit + 1)
        last = jnp.where(way > 0, limit, place + 1)
        return self.before[jnp.clip(last, 0, total)] - self.before[jnp.clip(first, 0, total)]


class _Entry(NamedTuple):
    done: Array  # [W] lanes that have finished a problem
    index: Array  # [W] which
    q: Array  # [Q W] where they ended, with its objective
    f: Array
    solved: Array  # [W] they converged
    beside: Array  # [2 W] the problems before and after


def _record(s: _Lanes, e: _Entry) -> Tracked:
    """Enters the finished lanes' results where they improve on what is there; adds up the iterations."""
    r, total = s.results, s.results.objective.shape[0]
    known = r.objective[e.index]
    at = jnp.where(e.done & ((e.f < known) | (e.solved & (e.f <= known))), e.index, total)
    changed = e.done & (e.f < known * (1 - WORTHWHILE))
    converged = e.solved | (r.converged[e.index] & ~changed)
    stale = jnp.where(changed & (e.beside >= 0), e.beside, total)
    tried = r.tried.at[stale, jnp.array([[1], [0]])].set(False, mode="drop")
    return Tracked(
        r.q.at[at].set(e.q.T, mode="drop"),
        r.curvature.at[at].set(jnp.diagonal(s.h, axis1=0, axis2=1), mode="drop"),
        r.objective.at[at].set(e.f, mode="drop"),
        r.iterations.at[jnp.where(e.done, e.index, total)].add(s.count, mode="drop"),
        r.converged.at[at].set(converged, mode="drop"),
        tried,
    )


def _next_damping(s: _Lanes, f: Array, accept: Array, options: Options) -> Array:
    """Less where the step kept its promise, more where it didn't."""
    ratio = (s.f - f) / jnp.maximum(s.expected, jnp.finfo(f.dtype).tiny)
    kept = jnp.where(ratio > 0.75, s.damping / 10, jnp.where(ratio < 0.25, s.damping * 3, s.damping))
    damping = jnp.where(accept, kept, jnp.maximum(s.damping * 6, options.first_damping))
    return jnp.where(s.fresh, s.damping, jnp.maximum(damping, options.least_damping))


class _Step(NamedTuple):
    delta: Array  # [Q W] within the bounds
    promise: Array  # [W] decrease that the quadratic model promises; infinite where there is no model
    whole: Array  # [W] decrease without regard to the bounds that the step met
    fixed: Array  # [Q W] coordinates that are held, or that go to their bound
    moved: Array  # [Q W] what the fixed ones move
    blocked: Array  # [W] a coordinate has just been fixed

    @property
    def short(self) -> Array:
        """[W] A bound took most of the step."""
        return self.promise < KEPT * self.whole

    def likely(self, damping: Array) -> Array:
        """[W] What an undamped step would promise."""
        return jnp.maximum(self.promise, jnp.where(self.short, self.whole, 0)) * (1 + damping)


def _step(
    q: Array, g: Array, h: Array, damping: tuple[Array, Array], bounds: tuple[Array, Array], working: Array
) -> _Step:
    """The damped step within the bounds.

    A step that leaves the bounds is cut off at them, coordinate by coordinate, or shortened as a whole to
    where it meets the first of them, whichever promises more. Where neither keeps much of what the whole step
    promised, the coordinates that would leave soonest go to their bound and the others are solved for again:
    a few lanes need this at a time, and it is done for those alone.
    """
    low, high = bounds
    held = ((q <= low) & (g > 0)) | ((q >= high) & (g < 0))
    step = _attempt(q, g, h, damping, bounds, held, jnp.zeros_like(q))
    few = min(max(AGAIN, q.shape[1] // 8), q.shape[1])

    def again(carry: tuple[Array, _Step]) -> tuple[Array, _Step]:
        count, step = carry
        index = jnp.nonzero(working & step.short & step.blocked, size=few, fill_value=q.shape[1])[0]
        lane = jnp.minimum(index, q.shape[1] - 1)
        part = _attempt(
            q[:, lane], g[:, lane], h[:, :, lane], (damping[0][lane], damping[1][lane]), bounds,
            step.fixed[:, lane], step.moved[:, lane],
        )  # fmt: skip
        # Known now to be blocked by more, the step found before may still be the better one.
        worse = part.promise < step.promise[lane]
        part = part._replace(
            delta=jnp.where(worse, step.delta[:, lane], part.delta),
            promise=jnp.where(worse, step.promise[lane], part.promise),
        )
        return count + 1, jax.tree.map(lambda a, b: a.at[..., index].set(b, mode="drop"), step, part)

    def unfinished(carry: tuple[Array, _Step]) -> Array:
        return (carry[0] < MOST_AGAIN) & jnp.any(working & carry[1].short & carry[1].blocked)

    step = lax.while_loop(unfinished, again, (jnp.int32(0), step))[1]
    # Of coordinates fixed one after the other, some may be free to move once the others are: where going down
    # the gradient promises more, that is the step.
    doubtful = working & jnp.any(step.fixed & ~held, axis=0)
    return lax.cond(jnp.any(doubtful), lambda: _descend(step, q, g, h, bounds, held), lambda: step)


def _descend(step: _Step, q: Array, g: Array, h: Array, bounds: tuple[Array, Array], held: Array) -> _Step:
    """The step down the scaled gradient, cut off at the bounds, where it promises more."""
    diagonal = jnp.diagonal(h, axis1=0, axis2=1).T
    down = jnp.where(held | (diagonal <= 0), 0, -g / jnp.where(diagonal > 0, diagonal, 1))
    # What is about to meet its bound goes there; it is no measure for the others.
    gap = jnp.where(down > 0, bounds[1] - q, q - bounds[0])
    meets = gap < BLOCKING * jnp.abs(down)
    rest = jnp.where(meets, 0, down)
    slope = jnp.sum(g * rest, axis=0)
    curve = jnp.sum(rest * jnp.sum(h * rest[:, None], axis=0), axis=0)
    length = -slope / jnp.where(curve > 0, curve, 1)
    delta = jnp.clip(q + jnp.where(meets, down, length * rest), *bounds) - q
    promise = -jnp.sum(delta * (g + 0.5 * jnp.sum(h * delta[:, None], axis=0)), axis=0)
    better = (curve > 0) & (promise > step.promise)
    return step._replace(
        delta=jnp.where(better, delta, step.delta), promise=jnp.where(better, promise, step.promise)
    )


def _inside(q: Float[Array, "Q W"], bounds: tuple[Array, Array]) -> Float[Array, "Q W"]:
    """Within the bounds, and exactly on a bound where only rounding is between."""
    low, high = bounds
    near = 8 * jnp.finfo(q.dtype).eps
    q = jnp.where(q <= low + near * jnp.abs(low), low, q)
    return jnp.where(q >= high - near * jnp.abs(high), high, q)


def _attempt(
    q: Array,
    g: Array,
    h: Array,
    damping: tuple[Array, Array],
    bounds: tuple[Array, Array],
    fixed: Array,
    moved: Array,
) -> _Step:
    """The damped step of the coordinates that are not ``fixed``; those make the steps ``moved``.

    ``damping`` is Marquardt's, relative to the diagonal, and Levenberg's, absolute.

    The matrix is scaled to a unit diagonal, which is Marquardt's damping and keeps float32 factorisable.
    """
    low, high = bounds
    n, dtype = q.shape[0], q.dtype
    diagonal = jnp.where(fixed, 0, jnp.diagonal(h, axis1=0, axis2=1).T)
    top = jnp.max(jnp.abs(diagonal), axis=0)
    seen = diagonal > jnp.finfo(dtype).eps ** 2 * top
    scale = jnp.where(seen, lax.rsqrt(jnp.where(seen, diagonal, 1)), 0)
    added = damping[0] + jnp.finfo(dtype).eps * n + damping[1] * scale**2
    eye = jnp.eye(n, dtype=dtype)[..., None]
    scaled = jnp.where(eye > 0, 1 + added, h * scale[:, None] * scale[None])
    push = g + jnp.sum(h * moved[:, None], axis=0)
    part = solve_spd(scaled, scale * push)
    broken = ~jnp.all(jnp.isfinite(part), axis=0) | jnp.any(diagonal < -jnp.finfo(dtype).eps * top, axis=0)
    part = jnp.where(broken, 0, part)
    delta = -scale * part
    # What moving the fixed ones gains, and then the others.
    given = -0.5 * jnp.sum(moved * (g + push), axis=0)
    slope = jnp.sum(push * delta, axis=0)
    curve = -slope - jnp.sum(added * part**2, axis=0)
    whole = given - slope - 0.5 * curve
    delta = jnp.where(fixed, moved, delta)
    cut = jnp.clip(q + delta, low, high) - q
    left = ~fixed & (cut != delta)
    room = jnp.where(delta > 0, high - q, q - low) / jnp.maximum(jnp.abs(delta), jnp.finfo(dtype).tiny)
    share = jnp.min(jnp.where(left, room, 1), axis=0, initial=1)
    promise = -jnp.sum(cut * (g + 0.5 * jnp.sum(h * cut[:, None], axis=0)), axis=0)
    shortened = given - share * (slope + 0.5 * share * curve)
    less = jnp.where(fixed, moved, share * delta)
    better = shortened > promise
    best = jnp.where(better, jnp.clip(q + less, low, high) - q, cut)
    promise = jnp.maximum(promise, shortened)
    promise = jnp.where(broken, jnp.inf, promise)
    blocking = left & (room < BLOCKING)
    return _Step(
        best, promise, jnp.where(broken, 0, whole), fixed | blocking, jnp.where(blocking, cut, moved),
        jnp.any(blocking, axis=0),
    )  # fmt: skip
