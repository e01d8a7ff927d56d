"""Inverse kinematics: free coordinates from marker positions, batched over frames and differentiable."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.io.ik_setup import IKSetup
from simspine_jax.kinematics import clip
from simspine_jax.kinematics.clip import Smoothing
from simspine_jax.kinematics.coordinates import free_to_full
from simspine_jax.kinematics.forward import Frames, scaled_frames
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.residuals import (
    Problem,
    Residual,
    Slice,
    Structure,
    markers_at,
    normal_equations,
    objective,
    objective_of,
    take,
)
from simspine_jax.kinematics.starts import cold_starts
from simspine_jax.solvers.levenberg_marquardt import Options, Route, Tracked, track

# The default prior pulls as markers of 5 mm noise and coordinates of 1 rad spread would.
PRIOR_MARKER_STD_M, PRIOR_COORDINATE_STD = 0.005, 1.0
MAX_ITERATIONS = 80
# A cold start only has to find the basin; tracking finishes it.
COLD_ITERATIONS = 30
# The whole-clip solve moves every frame, so that its start only has to lie in the right basin.
START_TOLERANCE = 1e-3
CPU_LANES, ACCELERATOR_LANES = 128, 4096
MAX_REPAIRS = 8
# A frame is tried again from its neighbour's pose where its objective is this many times the neighbour's, or
# where a coordinate jumps by this much (rad or m) and this alone would cost so many times the objective.
SUSPICIOUS_RATIO, SUSPICIOUS_JUMP, SUSPICIOUS_SHARE = 2.0, 0.8, 4.0


class IKStatus(enum.IntEnum):
    """How a frame's solution ended."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    TOO_FEW_MARKERS = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class IKSolution:
    """Result of ``solve_ik``, a row for each frame; frames with too few markers are NaN."""

    q: Float[Array, "*clips T Q"]
    coordinates: Float[Array, "*clips T C"]
    markers: Float[Array, "*clips T K 3"]
    marker_rmse: Float[Array, "*clips T"]  # metres, over the frame's markers with positive weight
    objective: Float[Array, "*clips T"]
    status: Int[Array, "*clips T"]  # an IKStatus
    iterations: Int[Array, "*clips T"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prior:
    """The default's pull of the inner joints' coordinates to the model's default pose; the root is free.

    A coordinate that is ``coordinate_std`` away costs as much as one marker of mean weight that is
    ``marker_std_m`` off: what a posterior mode costs for Gaussian errors and postures of these deviations.

    Attributes:
        marker_std_m: metres; of 5 mm by default, so that only what markers hardly show is held.
        coordinate_std: rad or m, of all free coordinates or of each.
    """

    marker_std_m: Array | float = PRIOR_MARKER_STD_M
    coordinate_std: Float[Array, " Q"] | float = PRIOR_COORDINATE_STD


@dataclass(frozen=True)
class _Method:
    """What is static in a solve."""

    structure: Structure
    lanes: int
    max_iterations: int
    tolerance: float
    n_frames: int  # of each clip


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Given:
    """The arrays of a solve, clips laid end to end."""

    markers: Float[Array, "T K 3"]
    weights: Float[Array, "#T K"]
    task_targets: Float[Array, "#T n"]
    task_weights: Float[Array, " n"]
    scale_factors: Float[Array, "B #3"] | None
    marker_offsets: Float[Array, "K 3"] | None
    guess: Float[Array, "T Q"] | None
    smoothing: Smoothing | None
    lengths: Int[Array, " C"]
    min_markers: Int[Array, ""] | None


def solve_ik(
    model: SpineModel,
    markers: Float[Array, "*clips T K 3"],
    *,
    weights: Float[Array, " K"] | Float[Array, "*clips T K"] | Mapping[str, float] | None = None,
    setup: IKSetup | None = None,
    coordinate_targets: Float[Array, "*clips T n"] | None = None,
    prior: Prior | None = None,
    scale_factors: Float[Array, "B #3"] | None = None,
    marker_offsets: Float[Array, "K 3"] | None = None,
    residuals: Sequence[Residual] = (),
    smoothing: Smoothing | None = None,
    lengths: Int[Array, "*clips"] | None = None,
    initial_q: Float[Array, "*clips T Q"] | None = None,
    min_markers: int | None = None,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 1e-6,
    lanes: int | None = None,
) -> IKSolution:
    """Free coordinates whose markers come nearest to ``markers``, for each frame or for whole clips.

    Bounded Levenberg-Marquardt with the analytic Jacobian (``solvers.levenberg_marquardt``), clamped
    coordinates within their ranges. Differentiable, by the implicit function theorem with the exact
    Hessian, in ``markers``, ``weights``, ``coordinate_targets``, ``scale_factors`` and ``marker_offsets``.

    Args:
        markers: positions in the model's ground frame (Y up), metres, in ``model.marker_names`` order; NaN
            where a marker is missing.
        weights: per marker, per frame and marker, or by name (others 1); not negative; default 1 for each.
        setup: an OpenSim IK setup: its marker weights and coordinate tasks make OpenSim's objective, without
            the default prior. Default: ``weights`` and a weak pull of inner joints to their default pose
            that settles what the markers don't show.
        coordinate_targets: values of the setup's coordinate tasks for each frame, in the order of the
            applied tasks; default: as the setup says.
        prior: how strongly the default pose pulls, where there is no setup; default: ``Prior()``.
        scale_factors: see ``forward_kinematics``.
        marker_offsets: see ``forward_kinematics``.
        residuals: functions of one frame's (q [Q], marker positions [K 3]) that return more residuals [M];
            each adds ``|r|^2 / 2`` to the objective.
        smoothing: penalties on velocity and acceleration; each clip is then solved as a whole (``clip``).
            Frames with too few markers are bridged by the penalties inside, and still reported as NaN.
        lengths: frames of each clip, where clips of different lengths are padded to one; what lies beyond
            is reported as ``TOO_FEW_MARKERS``.
        initial_q: a first guess for every frame, tried before the built-in starts.
        min_markers: least number of markers with weight that a frame needs; default: see ``needed_markers``.
        max_iterations: evaluations per frame and start; a whole clip takes up to 60 more together.
        tolerance: a frame is solved with the step that promises less than this fraction of its objective.
        lanes: frames in work at a time; default 128 on a CPU, 4096 on an accelerator.

    Returns:
        The solution; see ``IKSolution`` and ``IKStatus``.

    Raises:
        ShapeError: an argument's shape or value doesn't fit.
        UnknownNameError: a weight or task names something that the model lacks.
    """
    markers = _as_markers(model, markers)
    clips, n_frames = markers.shape[:-3], markers.shape[-3]
    flat = markers.reshape(-1, *markers.shape[-2:])
    marker_weights = _marker_weights(model, weights, setup, flat, clips)
    if prior is not None and setup is not None:
        raise ShapeError("Give either a prior or a setup, whose coordinate tasks take its place")
    rows, task_targets, task_weights = _tasks(model, setup, coordinate_targets, prior or Prior(), flat)
    guess = None if initial_q is None else jnp.asarray(initial_q, flat.dtype)
    if guess is not None and guess.shape != (*clips, n_frames, model.n_free):
        raise ShapeError(f"initial_q has shape {guess.shape}; it must be {(*clips, n_frames, model.n_free)}")
    if smoothing is None and lengths is not None:
        raise ShapeError("lengths goes with smoothing; without it, missing frames are NaN")
    n_clips = flat.shape[0] // n_frames
    if lengths is not None and jnp.size(lengths) != n_clips:
        raise ShapeError(f"lengths has {jnp.size(lengths)} entries for {n_clips} clips")
    width = lanes or (CPU_LANES if jax.default_backend() == "cpu" else ACCELERATOR_LANES)
    method = _Method(
        Structure(rows, tuple(residuals)),
        lanes=min(width, max(1, -(-flat.shape[0] // 4))),
        max_iterations=max_iterations,
        tolerance=tolerance,
        n_frames=n_frames,
    )
    given = _Given(
        flat, marker_weights, task_targets, task_weights,
        None if scale_factors is None else jnp.asarray(scale_factors),
        None if marker_offsets is None else jnp.asarray(marker_offsets),
        None if guess is None else guess.reshape(-1, model.n_free), smoothing,
        jnp.full(n_clips, n_frames) if lengths is None else jnp.asarray(lengths).reshape(-1),
        None if min_markers is None else jnp.asarray(min_markers),
    )  # fmt: skip
    solution: IKSolution = _solve(method, model, given)
    return jax.tree.map(lambda x: x.reshape(*clips, n_frames, *x.shape[1:]), solution)


@partial(jax.jit, static_argnums=0)
def _solve(method: _Method, model: SpineModel, given: _Given) -> IKSolution:
    """The whole computation as one program."""
    # Accelerators would multiply float32 matrices in fewer digits by default.
    with jax.default_matmul_precision("highest"):
        frames = scaled_frames(model, given.scale_factors, given.marker_offsets, given.markers.dtype)
        inside = (jnp.arange(method.n_frames) < given.lengths[:, None]).reshape(-1)
        markers = jnp.where(inside[:, None, None], given.markers, jnp.nan)
        problem = build_problem(
            model, markers, given.weights, given.task_targets, given.task_weights, frames, given.min_markers
        )
        smooth = given.smoothing is not None
        first = (
            dataclasses.replace(method, tolerance=max(method.tolerance, START_TOLERANCE))
            if smooth
            else method
        )
        found: tuple[Array, Tracked] = _optimum(first, model, problem, given.guess)
        q, tracked = found
        if given.smoothing is not None:
            q, tracked = _smooth(method, model, problem, given.smoothing, q, tracked, given.lengths)
        return _report(model, method.structure, problem, q, tracked)


def _smooth(
    method: _Method,
    model: SpineModel,
    problem: Problem,
    smoothing: Smoothing,
    q: Array,
    tracked: Tracked,
    lengths: Int[Array, " C"],
) -> tuple[Array, Tracked]:
    """Solves whole clips, started from the frames' own solutions."""
    n_clips, n_frames = lengths.shape[0], method.n_frames
    valid = jnp.arange(n_frames) < lengths[:, None]
    usable = problem.usable.reshape(n_clips, n_frames) & valid
    start = _bridge(model, lax.stop_gradient(q).reshape(n_clips, n_frames, -1), usable)
    plan = (method.structure, clip.MAX_STEPS, method.tolerance)
    smooth: tuple[Array, ...] = clip.optimum(plan, model, problem, smoothing, start, valid)
    q, _, done, steps = smooth
    flat = q.reshape(-1, model.n_free)
    spread = jnp.broadcast_to(done[:, None], usable.shape).reshape(-1)
    taken = jnp.broadcast_to(steps[:, None], usable.shape).reshape(-1)
    return flat, dataclasses.replace(tracked, iterations=tracked.iterations + taken, converged=spread)


def _bridge(model: SpineModel, q: Float[Array, "C T Q"], usable: Array) -> Float[Array, "C T Q"]:
    """Whole turns taken out along time, and gaps filled linearly (nearest pose at the ends)."""
    index = jnp.arange(q.shape[1])
    turning = np.array([model.rotational[i] for i in model.coordinate_map.free_indices], bool)

    def one(poses: Array, here: Array) -> Array:
        before = lax.cummax(jnp.where(here, index, -1))
        after = lax.cummin(jnp.where(here, index, q.shape[1]), reverse=True)
        left = jnp.where(before >= 0, before, jnp.minimum(after, q.shape[1] - 1))
        right = jnp.where(after < q.shape[1], after, jnp.maximum(before, 0))
        clean = jnp.where(here[:, None], poses, 0)
        unwrapped = jnp.where(turning & jnp.isinf(model.upper), jnp.unwrap(clean[left], axis=0), clean[left])
        last = jnp.where(here[:, None], unwrapped, 0)[right]
        share = jnp.where(right > left, (index - left) / jnp.maximum(right - left, 1), 0).astype(q.dtype)[
            :, None
        ]
        return jnp.where(here[:, None], unwrapped, (1 - share) * unwrapped[left] + share * last)

    return jax.vmap(one)(q, usable)


def _as_markers(model: SpineModel, markers) -> Array:
    markers = jnp.asarray(markers)
    if not jnp.issubdtype(markers.dtype, jnp.floating):
        markers = markers.astype(model.dtype)
    if model.n_free == 0 or model.n_markers == 0:
        raise ShapeError(
            f"The model {model.name} has no free coordinate or no marker: there is nothing to solve"
        )
    if markers.ndim < 3 or markers.shape[-2:] != (model.n_markers, 3) or 0 in markers.shape:
        raise ShapeError(
            f"markers has shape {markers.shape}; it must be (frames, {model.n_markers}, 3), the model's "
            "markers in their order, with at least one frame"
        )
    return markers


def _marker_weights(model: SpineModel, weights, setup: IKSetup | None, flat: Array, clips: tuple) -> Array:
    """Weights ``[T K]`` or ``[1 K]``."""
    others = 1.0
    if setup is not None:
        if weights is not None:
            raise ShapeError("Give either weights or a setup, which has its own")
        others = 0.0
        known = set(model.marker_names)
        weights = {t.name: t.weight for t in setup.marker_tasks if t.apply and t.name in known}
    if isinstance(weights, Mapping):
        index = model.marker_indices(list(weights))
        values = jnp.asarray(list(weights.values()), flat.dtype)
        weights = jnp.full(model.n_markers, others, flat.dtype).at[index].set(values)
    if weights is None:
        return jnp.ones((1, model.n_markers), flat.dtype)
    given = jnp.asarray(weights, flat.dtype)
    # Checked on the host: each operation on the device would be a program to compile.
    if not isinstance(given, Tracer) and not np.all(np.isfinite(host := np.asarray(given)) & (host >= 0)):
        raise ShapeError(
            "weights must be finite numbers that are not negative; a marker of weight 0 is left out"
        )
    if given.shape == (model.n_markers,):
        return given[None]
    if given.size != flat.shape[0] * model.n_markers or given.shape[-1] != model.n_markers:
        raise ShapeError(
            f"weights has shape {given.shape}; it must be ({model.n_markers},) or the markers' "
            "shape without 3"
        )
    return given.reshape(flat.shape[0], model.n_markers)


def _tasks(
    model: SpineModel, setup: IKSetup | None, targets, prior: Prior, flat: Array
) -> tuple[tuple[int, ...], Float[Array, "#T n"], Float[Array, " n"]]:
    """Coordinate tasks: rows of the full coordinates, their targets and weights."""
    dtype = flat.dtype
    if setup is None:
        if targets is not None:
            raise ShapeError("coordinate_targets needs a setup with coordinate tasks")
        return _prior(model, prior, dtype)
    tasks = [t for t in setup.coordinate_tasks if t.apply and t.weight > 0]
    if not tasks:
        return (), jnp.zeros((1, 0), dtype), jnp.zeros(0, dtype)
    index = {name: i for i, name in enumerate(model.coordinate_names)}
    for t in tasks:
        if t.name not in index:
            raise UnknownNameError(
                "Coordinate task", t.name, f"the model {model.name}", model.coordinate_names
            )
    weights = jnp.asarray([t.weight for t in tasks], dtype).reshape(len(tasks))
    defaults = model.default_coordinates.astype(dtype)
    if targets is None:
        if missing := [
            t.name
            for t in tasks
            if t.value_type == "from_file" or (t.value_type == "manual_value" and t.value is None)
        ]:
            raise ShapeError(f"The task of {missing[0]} takes its value from a file: give coordinate_targets")
        values = [defaults[index[t.name]] if t.value_type == "default_value" else t.value for t in tasks]
        targets = jnp.asarray(values, dtype).reshape(1, len(tasks))
    targets = jnp.asarray(targets, dtype)
    if targets.shape[-1] != len(tasks) or targets.size not in (len(tasks), len(tasks) * flat.shape[0]):
        raise ShapeError(
            f"coordinate_targets has shape {targets.shape}; its last axis must be the {len(tasks)} tasks"
        )
    return tuple(index[t.name] for t in tasks), targets.reshape(-1, len(tasks)), weights


def _prior(model: SpineModel, prior: Prior, dtype: jnp.dtype) -> tuple[tuple[int, ...], Array, Array]:
    """The prior as coordinate tasks."""
    m, topology = model.coordinate_map, model.topology
    on_root = np.zeros(model.n_free, bool)
    for joint, body in enumerate(topology.joint_bodies):
        if topology.parents[body] == 0:
            on_root |= m.dependence[joint]
    inner = np.flatnonzero(~on_root)
    rows = tuple(int(r) for r in m.free_indices[inner])
    std = jnp.asarray(prior.coordinate_std, dtype)
    if std.shape not in ((), (model.n_free,)):
        raise ShapeError(
            f"The prior's coordinate_std has shape {std.shape}; valid is () or ({model.n_free},)"
        )
    std = jnp.broadcast_to(std, (model.n_free,))[inner]
    weight = (jnp.asarray(prior.marker_std_m, dtype) / std) ** 2 / max(model.n_markers, 1)
    return rows, model.default_q.astype(dtype)[inner][None], weight


def build_problem(
    model: SpineModel,
    markers: Array,
    weights: Array,
    task_targets: Array,
    task_weights: Array,
    frames: Frames,
    min_markers: Int[Array, ""] | int | None,
) -> Problem:
    """Masks missing markers, normalises the weights of each frame, and finds frames with too few markers."""
    count = markers.shape[0]
    present = jnp.all(jnp.isfinite(markers), axis=-1)
    used = present & (weights > 0)
    effective = jnp.where(used, weights, 0)
    total = jnp.sum(effective, axis=-1, keepdims=True)
    needed = needed_markers(model, used) if min_markers is None else jnp.asarray(min_markers)
    return Problem(
        targets=jnp.where(present[..., None], markers, 0),
        weights=effective / jnp.where(total > 0, total, 1),
        task_targets=jnp.broadcast_to(task_targets, (count, task_targets.shape[-1])),
        task_weights=task_weights,
        usable=jnp.sum(used, axis=-1) >= needed,
        frames=frames,
    )


def needed_markers(model: SpineModel, used: Bool[Array | np.ndarray, "T K"]) -> Int[Array | np.ndarray, ""]:
    """Least number of markers for a pose: an equation for each coordinate that markers move.

    Where a trial never shows so many, what it shows is enough, but never fewer than half of them (nor three):
    most of a pose would then be invented.

    Args:
        model: the model.
        used: markers that are there and have weight, over the whole trial.
    """
    m, topology = model.coordinate_map, model.topology
    carriers = np.asarray(topology.ancestors[:, np.array(topology.marker_bodies, int)].any(axis=1))
    moving: np.ndarray = np.zeros(model.n_free, bool)
    for joint, body in enumerate(topology.joint_bodies):
        if carriers[body]:
            moving = moving | m.dependence[joint]
    enough = max(3, -(-int(moving.sum()) // 3))
    return used.any(axis=0).sum().clip(max(3, -(-enough // 2)), enough)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _optimum(
    method: _Method, model: SpineModel, problem: Problem, guess: Array | None
) -> tuple[Array, Tracked]:
    """The best free coordinates of every frame."""
    tracked = _solve_frames(method, model, problem, guess)
    return tracked.q, tracked


def _optimum_forward(method: _Method, model: SpineModel, problem: Problem, guess: Array | None):
    # JAX traces these rules outside of the context of the computation that they belong to.
    with jax.default_matmul_precision("highest"):
        tracked = _solve_frames(method, model, problem, guess)
    return (tracked.q, tracked), (model, problem, tracked.q)


def _optimum_backward(method: _Method, saved, cotangent):
    model, problem, q = saved
    with jax.default_matmul_precision("highest"):
        return None, _implicit_gradient(method, model, problem, q, cotangent[0]), None


_optimum.defvjp(_optimum_forward, _optimum_backward)


@partial(jax.jit, static_argnums=0)
def _solve_frames(method: _Method, model: SpineModel, problem: Problem, guess: Array | None) -> Tracked:
    """Starts each lane cold from several poses, tracks its frames, then retries those that may be worse.

    First those with coordinates at a bound, from inside it; then suspicious ones from their neighbours.
    """
    total, lanes = problem.targets.shape[0], method.lanes
    dtype = problem.targets.dtype
    run = -(-total // lanes)
    segment = jnp.arange(lanes, dtype=jnp.int32) * run
    end = jnp.minimum(segment + run, total)
    options = Options(tolerance=method.tolerance)
    bounds = (model.lower.astype(dtype), model.upper.astype(dtype))

    def evaluate(q: Array, index: Array, bend: Array):
        return normal_equations(model, method.structure, take(problem, index), q, bend)

    spots = segment[:, None] + jnp.arange(run, dtype=jnp.int32)
    usable = (spots < end[:, None]) & problem.usable[jnp.minimum(spots, total - 1)]
    head = jnp.minimum(segment + jnp.argmax(usable, axis=1).astype(jnp.int32), total - 1)
    starts = cold_starts(model, take(problem, head))
    cold = starts.shape[0]
    nothing = Tracked.nothing(total, jnp.full((1, model.n_free), jnp.nan, dtype) if guess is None else guess)
    guessed = guess is not None
    heads = jnp.zeros(total, bool).at[head].set(True) & problem.usable

    def body(carry):
        phase, results, _ = carry
        # Coordinates that tracking left at a bound may have a better place inside.
        freeing, repairing = phase == cold + 1, phase > cold + 1
        guessing = jnp.asarray(guessed) & (phase < 0)
        # Repairs alternate: backward first, as tracking went forward.
        step = jnp.where(repairing & ((phase - cold) % 2 == 0), -1, 1).astype(jnp.int32)
        wanted = jnp.where((phase < cold) & ~guessing, heads, problem.usable)
        wanted = wanted & jnp.where(repairing, _suspicious(problem, results, step), True)
        wanted = wanted & jnp.where(freeing, _at_bound(results, bounds), True)
        tracked_from = jnp.where(jnp.isfinite(results.q[head].T), results.q[head].T, starts[0])
        start = jnp.where(phase < cold, starts[jnp.clip(phase, 0, cold - 1)], tracked_from)
        # Tracking starts each lane at its solved head, which improves on nothing there and is soon left.
        own = guessing | freeing
        inside = jnp.where(freeing, model.default_q.astype(dtype), jnp.nan)
        route = Route(segment, end, wanted, problem.usable, step, repairing | own, own, inside)
        allowed = jnp.where(
            (phase < cold) & ~guessing, min(COLD_ITERATIONS, method.max_iterations), method.max_iterations
        )
        after = track(evaluate, start, route, bounds, results, allowed, options)
        return phase + 1, after, jnp.any(after.objective < results.objective * (1 - 1e-4))

    def unfinished(carry):
        phase, _, improved = carry
        # Repairs go on in both directions until one of them finds nothing.
        return (phase <= cold + 3) | (improved & (phase <= cold + 1 + MAX_REPAIRS))

    return lax.while_loop(unfinished, body, (jnp.int32(-1 if guessed else 0), nothing, jnp.asarray(True)))[1]


def _at_bound(results: Tracked, bounds: tuple[Array, Array]) -> Bool[Array, " T"]:
    """Frames of which a coordinate lies at a bound."""
    return jnp.any((results.q <= bounds[0]) | (results.q >= bounds[1]), axis=1)


def _suspicious(problem: Problem, results: Tracked, step: Array) -> Bool[Array, " T"]:
    """Frames that may be in a worse basin than the frame before them in the direction of ``step``."""
    total = results.objective.shape[0]
    index = jnp.arange(total, dtype=jnp.int32)
    # The nearest usable frame before each, across gaps.
    before = jnp.concatenate([jnp.full(1, -1), lax.cummax(jnp.where(problem.usable, index, -1))[:-1]])
    after = lax.cummin(jnp.where(problem.usable, index, total), reverse=True)
    after = jnp.concatenate([after[1:], jnp.full(1, total, jnp.int32)])
    nearest = jnp.where(step > 0, before, after)
    there = (nearest >= 0) & (nearest < total)
    neighbour = jnp.clip(nearest, 0, total - 1)
    own, theirs = results.objective, jnp.maximum(results.objective[neighbour], Options().floor)
    change = jnp.abs(results.q - results.q[neighbour])
    strength = jnp.maximum(results.curvature, results.curvature[neighbour]) * change**2
    jump = jnp.any((change > SUSPICIOUS_JUMP) & (strength > SUSPICIOUS_SHARE * own[:, None]), axis=-1)
    beyond_gap = there & (jnp.abs(neighbour - index) > 1)
    worse = beyond_gap | jump | (own > SUSPICIOUS_RATIO * theirs) | ~results.converged
    return there & worse & ~results.tried[:, jnp.where(step > 0, 0, 1)]


@partial(jax.jit, static_argnums=0)
def _implicit_gradient(
    method: _Method, model: SpineModel, problem: Problem, q: Array, cotangent: Array
) -> Problem:
    """Cotangent of the data: ``-(d2F/dq dtheta)^T H^-1 cotangent`` over coordinates off their bounds."""
    total, lanes = q.shape[0], method.lanes
    run = -(-total // lanes)
    bounds = (model.lower.astype(q.dtype)[:, None], model.upper.astype(q.dtype)[:, None])

    def chunk(first: Array):
        spots = first + jnp.arange(lanes, dtype=jnp.int32)
        index = jnp.minimum(spots, total - 1)
        valid = (spots < total) & problem.usable[index] & jnp.all(jnp.isfinite(q[index]), axis=-1)
        pose = jnp.where(valid, q[index].T, 0)
        pull = jnp.where(valid, cotangent[index].T, 0)
        data = take(problem, index)
        _, g, h = normal_equations(model, method.structure, data, pose, jnp.ones(lanes, q.dtype))
        multiplier = _solve_free(h, g, pull, pose, bounds)
        multiplier = jnp.where(valid, multiplier, 0)

        def slope(part: tuple) -> Array:
            moved = Slice(*part)
            return jax.jvp(
                lambda x: jnp.sum(objective(model, method.structure, moved, x)), (pose,), (multiplier,)
            )[1]

        parts = (data.targets, data.weights, data.task_targets, data.task_weights, data.frames)
        bars = jax.tree.map(jnp.negative, jax.grad(slope)(parts))
        rows = (jnp.moveaxis(bars[0], -1, 0), bars[1].T, bars[2].T)
        return rows, (bars[3], bars[4])

    rows, shared = lax.map(chunk, jnp.arange(run, dtype=jnp.int32) * lanes)
    targets, weights, task_targets = jax.tree.map(
        lambda x: x.reshape(run * lanes, *x.shape[2:])[:total], rows
    )
    task_weights, frames = jax.tree.map(lambda x: jnp.sum(x, axis=0), shared)
    # A mask's tangent space is float0, which only NumPy holds.
    usable: Any = np.zeros(problem.usable.shape, jax.dtypes.float0)
    return Problem(targets, weights, task_targets, task_weights, usable, frames)


def _solve_free(h: Array, g: Array, pull: Array, q: Array, bounds: tuple[Array, Array]) -> Array:
    """``H^-1 pull`` over the free coordinates that are not held at a bound."""
    held = ((q <= bounds[0]) & (g > 0)) | ((q >= bounds[1]) & (g < 0))
    eye = jnp.eye(q.shape[0], dtype=q.dtype)[..., None]
    diagonal = jnp.diagonal(h, axis1=0, axis2=1).T
    moved = ~held & (jnp.abs(diagonal) > 0)
    matrix = jnp.where(moved[:, None] & moved[None], h, 0)
    matrix = jnp.where((eye > 0) & ~moved[:, None], 1.0, matrix)
    right = jnp.where(moved, pull, 0)
    solution = jnp.linalg.solve(jnp.moveaxis(matrix, -1, 0), right.T[..., None])[..., 0].T
    return jnp.where(moved, solution, 0)


def _report(
    model: SpineModel, structure: Structure, problem: Problem, q: Array, tracked: Tracked
) -> IKSolution:
    """Everything that follows from q, in chunks so that long clips stay small in memory."""
    usable = problem.usable
    # Frames without a pose go through as zeros and are masked afterwards: NaN would reach every gradient.
    pose = jnp.where(usable[:, None], q, jnp.nan)
    coordinates, model_markers, value = _outputs(structure, model, problem, jnp.where(usable[:, None], q, 0))
    counted = problem.weights > 0
    squared = jnp.sum((model_markers - problem.targets) ** 2, axis=-1)
    mean = jnp.sum(jnp.where(counted, squared, 0), axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)
    status = jnp.where(tracked.converged, IKStatus.CONVERGED, IKStatus.MAX_ITERATIONS)
    return IKSolution(
        q=pose,
        coordinates=jnp.where(usable[:, None], coordinates, jnp.nan),
        markers=jnp.where(usable[:, None, None], model_markers, jnp.nan),
        marker_rmse=jnp.where(
            usable, jnp.sqrt(jnp.where(usable & (mean > 0), mean, 1)) * (mean > 0), jnp.nan
        ),
        objective=jnp.where(usable, value, jnp.nan),
        status=jnp.where(usable, status, IKStatus.TOO_FEW_MARKERS).astype(jnp.int32),
        iterations=tracked.iterations,
    )


@partial(jax.jit, static_argnums=0)
def _outputs(
    structure: Structure, model: SpineModel, problem: Problem, q: Float[Array, "T Q"]
) -> tuple[Float[Array, "T C"], Float[Array, "T K 3"], Float[Array, " T"]]:
    """All coordinates, the model's markers and the objective at q, a part of the frames at a time."""
    total, width = q.shape[0], min(1024, q.shape[0])
    run = -(-total // width)
    index = jnp.minimum(jnp.arange(run * width, dtype=jnp.int32), total - 1).reshape(run, width)

    def part(rows: Array) -> tuple[Array, Array, Array]:
        pose = q[rows].T
        markers = markers_at(model, problem.frames, pose)
        value = objective_of(model, structure, take(problem, rows), pose, markers)
        return free_to_full(model.coordinate_map, pose).T, jnp.moveaxis(markers, -1, 0), value

    parts = lax.map(part, index)
    return jax.tree.map(lambda x: x.reshape(run * width, *x.shape[2:])[:total], parts)
