"""Reasons to reject or repair frames of a solved trial.

What is looked at, frame by frame: whether there is a pose, curvature that no healthy adult has, markers that
the model does not come near, many coordinates at their bounds for a while, and coordinates that change
faster than a person moves. How a rotation is written is no fault: whole turns, and the second set of angles
that a joint of three crossed axes has for every rotation (a + pi, pi - b, c + pi), are made continuous. The
speed of such a joint is that of the rotation itself, so that neither these nor a gimbal lock make a jump.

Short runs of frames that are missing or rejected, between good ones, are filled by interpolating the free
coordinates. Longer ones stay as they are, with their reasons.

The paper names these steps (section 3.1, 5) without thresholds; `QualityLimits` says where each comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import REASONS, Outcome, Quality, QualityEvent
from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.crossed import CrossedJoints, crossed_joints
from simspine_jax.kinematics.curvature import Curvature
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.signal import fill_gaps, runs

AT_BOUND = 1e-3
"""A coordinate this near its bound, rad or m, lies at it: solvers stop there to the last bit."""

UNEVEN = 0.1
"""Steps of time may differ by this share of their median: files round times to milliseconds."""

LEAST_PADDED_FRAMES = 64
"""Trials are padded to powers of two from here on, so that few programs are compiled."""

TRUNK = ("pelvis", "L5_S1", "lumbar", "neck", "Abs")
"""How names of the trunk's coordinates begin."""


@dataclass(frozen=True)
class QualityLimits:
    """Where a frame stops being believed.

    Attributes:
        lordosis_deg: least and largest Cobb angle L1-S1. Standing adults have 49.8 with a standard deviation
            of 11.2 (PMC6680033, 627 people, T12-S1; verified); from two deviations below, the whole arc of
            five levels of 14 each (Pearcy 1984; verified) is taken off for flexion; to two above, five levels
            of 5 are added for extension (Miller 1986; secondary); rounded outwards.
        kyphosis_deg: least and largest Cobb angle T3-T12. The Scoliosis Research Society's range is 20 to 60
            (Zappala 2021; verified); 30 either way is left for posture and for what keypoints add (chosen).
        rms_residual_mm: weighted root mean square over a frame's markers. On the real trials that the tests
            use, sound frames reach 38 (markerless) and 22 (optical), so this is half as much again.
        marker_residual_mm: of one marker that counts; sound frames there reach 75.
        bound_share: share of the bounded coordinates that lie at a bound; sound frames there reach 0.25.
        bound_seconds: for how long; limbs are stretched for moments in any movement (chosen).
        limb_deg_per_s: knees reach about 1500 in a kick, walking 430 (recalled; measured on a real trial).
        trunk_deg_per_s: pelvis, lumbar spine as a whole, and neck: half of that (chosen).
        slide_m_per_s: of coordinates that are lengths; above the fastest sprinters (recalled).
        displaced_seconds: frames between two jumps are to blame for them up to this length (chosen); longer
            stretches are believed, and the frames at the jumps are to blame.
        fill_seconds: the longest run of frames that is filled. In synthetic walking so long a gap is met
            within 2.1 degrees (root mean square 0.2), half of it within 0.3; longer ones get worse fast.
        unobservable: how names of coordinates begin that body keypoints hardly determine. Their jumps are
            noted and reject nothing, and their bounds don't count.
    """

    lordosis_deg: tuple[float, float] = (-45.0, 100.0)
    kyphosis_deg: tuple[float, float] = (-10.0, 90.0)
    rms_residual_mm: float = 60.0
    marker_residual_mm: float = 150.0
    bound_share: float = 0.4
    bound_seconds: float = 0.5
    limb_deg_per_s: float = 1500.0
    trunk_deg_per_s: float = 750.0
    slide_m_per_s: float = 12.5
    displaced_seconds: float = 0.2
    fill_seconds: float = 0.2
    unobservable: tuple[str, ...] = ("pro_sup", "wrist_")

    def __post_init__(self) -> None:
        for name in ("lordosis_deg", "kyphosis_deg"):
            low, high = getattr(self, name)
            if not low < high:
                raise ShapeError(f"{name} is {low} to {high}; valid is a lower angle and a higher one")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ShapeError(f"{name} is {getattr(self, name)}; valid is a number from 0")


_NOT_NEGATIVE = (
    "rms_residual_mm", "marker_residual_mm", "bound_share", "bound_seconds", "limb_deg_per_s",
    "trunk_deg_per_s", "slide_m_per_s", "displaced_seconds", "fill_seconds",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Assessment:
    """What is wrong with each frame of a trial, and its motion made continuous and repaired.

    Attributes:
        quality: `Quality` of each frame; a repaired one is ``INTERPOLATED`` and nothing else.
        q: free coordinates, rad and m: continuous over good frames, interpolated where repaired, as they
            were (but for turns) where rejected, NaN where there is no pose.
        events: each finding and each repair, by first frame.
    """

    quality: NDArray[np.uint16]  # [T]
    q: NDArray[np.float64]  # [T Q]
    events: tuple[QualityEvent, ...]

    @property
    def repaired(self) -> NDArray[np.bool_]:
        """[T] frames with interpolated coordinates, whose markers and rotations are to be computed anew."""
        return (self.quality & np.uint16(Quality.INTERPOLATED)) != 0

    @property
    def usable(self) -> NDArray[np.bool_]:
        """[T] good frames and repaired ones."""
        return (self.quality & ~np.uint16(Quality.INTERPOLATED)) == 0


def assess(
    model: SpineModel,
    times: NDArray[np.float64],
    q: NDArray[np.float64],
    *,
    has_pose: NDArray[np.bool_] | None = None,
    residuals: NDArray[np.float64] | None = None,
    weights: NDArray[np.float64] | None = None,
    curvature: Curvature | None = None,
    limits: QualityLimits | None = None,
) -> Assessment:
    """Judges every frame of a trial, makes its angles continuous and fills short gaps.

    Args:
        model: names, bounds and axes of the coordinates.
        times: [T] s, evenly spaced.
        q: [T Q] free coordinates, rad and m.
        has_pose: [T] frames whose ``q`` counts; default: those where all of it is finite.
        residuals: [T K] distance of each of the model's markers from its target, m; NaN where missing.
        weights: [K] or [T K] how much each marker counts; those of 0 are not looked at. Default: all 1.
        curvature: of each frame, rad; NaN where unknown, which is no fault.
        limits: thresholds.

    Raises:
        ShapeError: shapes don't fit together, or times are uneven.
    """
    limits = limits or QualityLimits()
    trial = _checked_trial(model, times, q, has_pose, residuals, weights, curvature)
    channels = _channels_of(model, limits.unobservable)
    faults = [
        *_missing(trial, limits),
        *_curvature_faults(trial, limits),
        *_residual_faults(model, trial, limits),
        *_bound_faults(model, trial, limits),
        *_jump_faults(trial, channels, limits),
    ]
    flags = np.zeros(len(trial.times), np.uint16)
    for fault in faults:
        flags |= np.where(fault.frames & (fault.flag is not None), np.uint16(fault.flag or 0), np.uint16(0))
    good = flags == 0
    motion, flipped = _continuous(channels, trial, good)
    filled = _repair(model, trial, channels, limits, motion, good)
    repaired = np.isfinite(filled).all(axis=1) & ~good
    quality = np.where(repaired, np.uint16(Quality.INTERPOLATED), flags)
    events = [event for fault in faults for event in _events(fault, repaired)]
    events += _flip_events(channels, flipped)
    events.sort(key=lambda event: (event.first_frame, event.last_frame, event.what))
    return Assessment(quality, np.where(repaired[:, None], filled, motion), tuple(events))


@dataclass(frozen=True, eq=False)
class _Trial:
    """The checked input; ``q`` is NaN where there is no pose."""

    times: NDArray[np.float64]
    q: NDArray[np.float64]
    pose: NDArray[np.bool_]
    residuals: NDArray[np.float64] | None
    weights: NDArray[np.float64] | None
    curvature_deg: dict[str, NDArray[np.float64]]

    @property
    def step(self) -> float:
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1.0

    def frames(self, seconds: float) -> int:
        """Whole frames that fit in a time; a part in a million is forgiven, as rates are rounded."""
        return math.floor(seconds / self.step + 1e-6)


def _checked_trial(
    model: SpineModel,
    times: NDArray[np.float64],
    q: NDArray[np.float64],
    has_pose: NDArray[np.bool_] | None,
    residuals: NDArray[np.float64] | None,
    weights: NDArray[np.float64] | None,
    curvature: Curvature | None,
) -> _Trial:
    times, q = np.asarray(times, np.float64), np.array(q, np.float64)
    n, k = len(times), model.n_markers
    finite = np.isfinite(q).all(axis=-1)
    pose = finite if has_pose is None else np.asarray(has_pose, bool)
    angles = {} if curvature is None else {"lordosis": curvature.lordosis, "kyphosis": curvature.kyphosis}
    angles = {name: np.rad2deg(np.asarray(values, np.float64)) for name, values in angles.items()}
    shapes = [("q", q, (n, model.n_free)), ("has_pose", pose, (n,))]
    if residuals is not None:
        residuals = np.asarray(residuals, np.float64)
        weights = np.ones(k) if weights is None else np.asarray(weights, np.float64)
        weights = np.broadcast_to(weights, (n, k)) if weights.shape == (k,) else weights
        shapes += [("residuals", residuals, (n, k)), ("weights", weights, (n, k))]
    shapes += [(name, values, (n,)) for name, values in angles.items()]
    for name, array, shape in shapes:
        if array.shape != shape:
            raise ShapeError(f"{name} has the shape {array.shape}; valid is {shape}")
    steps = np.diff(times)
    if len(steps) and not (steps.min() > 0 and np.ptp(steps) <= UNEVEN * np.median(steps)):
        raise ShapeError(
            f"The times step by {steps.min():g} to {steps.max():g} s; valid is one rate: resample the trial"
        )
    pose = np.asarray(pose & finite)
    q[~pose] = np.nan
    return _Trial(times, q, pose, residuals, weights, angles)


# --- what the coordinates turn ---


@dataclass(frozen=True)
class _Channels:
    """Coordinates in groups of which the speed is judged: joints of three crossed axes, and single ones.

    Attributes:
        crossed: the joints.
        singles: all other free coordinates.
        turns: whether a single one is an angle without bounds, so that whole turns don't matter.
        factors: the most that one unit of a single one turns or slides any body.
        angular: whether a channel is an angle; joints come first, then single coordinates, as below.
        names: of the coordinates.
        trunk: whether it belongs to the trunk.
        observable: whether its jumps count.
    """

    crossed: CrossedJoints
    singles: tuple[int, ...]
    turns: tuple[bool, ...]
    factors: tuple[float, ...]
    angular: tuple[bool, ...]
    names: tuple[str, ...]
    trunk: tuple[bool, ...]
    observable: tuple[bool, ...]


def _channels_of(model: SpineModel, unobservable: tuple[str, ...] = ()) -> _Channels:
    """How the model's free coordinates move its bodies."""
    mapping, mj = model.coordinate_map, model.mjx_model
    hinge = np.asarray(mj.jnt_type) == mujoco.mjtJoint.mjJNT_HINGE
    matrix = np.asarray(mapping.qpos_matrix)
    open_ended = ~np.isfinite(np.asarray(model.lower)) & ~np.isfinite(np.asarray(model.upper))
    crossed = crossed_joints(model)
    taken = {i for joint in crossed.joints for i in joint}
    singles = tuple(i for i in range(model.n_free) if i not in taken)
    rotational = np.array(model.rotational, bool)[mapping.free_indices]
    # A spline's slides of a knee are small beside its turn, so the matrix alone tells the factor.
    moved = [np.abs(matrix[hinge == rotational[i], i]).max(initial=0.0) for i in singles]
    groups = [*crossed.joints, *((i,) for i in singles)]
    first = [model.free_names[group[0]] for group in groups]
    return _Channels(
        crossed=crossed,
        singles=singles,
        turns=tuple(bool(rotational[i] and open_ended[i] and matrix[:, i].any()) for i in singles),
        factors=tuple(float(max(m, 1.0)) for m in moved),
        angular=tuple(bool(rotational[group[0]]) for group in groups),
        names=tuple(", ".join(model.free_names[i] for i in group) for group in groups),
        trunk=tuple(name.startswith(TRUNK) for name in first),
        observable=tuple(not name.startswith(unobservable) for name in first),
    )


def _wrapped(angle: Array) -> Array:
    return angle - 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi))


def _previous(mask: Bool[Array, " T"]) -> Array:
    """The nearest True frame strictly before each, or -1."""
    nearest = jax.lax.cummax(jnp.where(mask, jnp.arange(len(mask)), -1))
    return jnp.concatenate([jnp.full(1, -1), nearest[:-1]])


def _quaternions(channels: _Channels, q: Float[Array, "T Q"]) -> Float[Array, "T J 4"]:
    """Rotation of each joint of three axes."""
    crossed = channels.crossed
    angle = jnp.array(crossed.signs) * q[:, np.array(crossed.joints)] + jnp.array(crossed.offsets)
    axes = jnp.array(crossed.axes)
    first, second, third = (
        jnp.concatenate([jnp.cos(angle[..., i, None] / 2), jnp.sin(angle[..., i, None] / 2) * axes[:, i]], -1)
        for i in range(3)
    )
    return _product(_product(first, second), third)


def _product(p: Array, q: Array) -> Array:
    w = p[..., 0] * q[..., 0] - jnp.sum(p[..., 1:] * q[..., 1:], -1)
    v = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + jnp.cross(p[..., 1:], q[..., 1:])
    return jnp.concatenate([w[..., None], v], axis=-1)


@partial(jax.jit, static_argnames="channels")
def _steps(
    channels: _Channels, q: Float[Array, "T Q"], mask: Bool[Array, " T"]
) -> tuple[Float[Array, "T C"], Array]:
    """How far each channel moves from the last frame of the mask before, rad or m, and which that is.

    Zero for frames outside the mask and for its first. However the rotations are written, steps are the same.
    """
    before = _previous(mask)
    known = mask & (before >= 0)
    q = jnp.where(mask[:, None], q, 0.0)
    parts = []
    if channels.crossed.joints:
        now = _quaternions(channels, q)
        last = now[jnp.maximum(before, 0)] * jnp.array([1.0, -1.0, -1.0, -1.0])
        turn = _product(last, now)
        parts.append(2 * jnp.arctan2(jnp.linalg.norm(turn[..., 1:], axis=-1), jnp.abs(turn[..., 0])))
    if channels.singles:
        single = q[:, np.array(channels.singles)]
        step = single - single[jnp.maximum(before, 0)]
        step = jnp.where(jnp.array(channels.turns), _wrapped(step), step)
        parts.append(jnp.abs(step) * jnp.array(channels.factors))
    return jnp.where(known[:, None], jnp.concatenate(parts, axis=1), 0.0), before


@partial(jax.jit, static_argnames="channels")
def _unwind(
    channels: _Channels, q: Float[Array, "T Q"], pose: Bool[Array, " T"], good: Bool[Array, " T"]
) -> tuple[Bool[Array, "T J"], Int[Array, "T Q"]]:
    """Which joints to flip, and by how many turns to move coordinates then, so that angles go on.

    Each good frame follows the good one before it; so does one that is not good, but none follows that. Of
    the two ways to write a whole trial, most of its frames stay as they were.
    """
    q = jnp.where(pose[:, None], q, 0.0)
    before = _previous(good)
    known, last = pose & (before >= 0), jnp.maximum(before, 0)

    def along(changes: Array) -> Array:
        """Sums changes from good frame to good frame; others add their own to the good one before."""
        changes = jnp.where(known[:, None], changes, 0)
        return jnp.cumsum(jnp.where(good[:, None], changes, 0), axis=0) + jnp.where(good[:, None], 0, changes)

    joints = channels.crossed
    flipped = jnp.zeros((len(q), len(joints.joints)), bool)
    if any(joints.flips):
        other, owners = joints.other_angles(q.shape[1])
        same = _wrapped(q - q[last]) ** 2 @ owners.T
        crossed = _wrapped(q * other[0] + other[1] - q[last]) ** 2 @ owners.T
        flips = (crossed < same) & np.array(joints.flips)
        flipped = along(flips.astype(int)) % 2 == 1
        most = 2 * jnp.sum(flipped & good[:, None], 0) > jnp.sum(good)
        flipped = (flipped ^ most) & pose[:, None]
        q = jnp.where(flipped @ owners > 0, q * other[0] + other[1], q)
    free = [i for joint, flip in zip(joints.joints, joints.flips, strict=True) if flip for i in joint]
    free += [i for i, turn in zip(channels.singles, channels.turns, strict=True) if turn]
    turns = along(-jnp.round((q - q[last]) / (2 * jnp.pi)).astype(int))
    return flipped, jnp.where(np.isin(np.arange(q.shape[1]), free), turns, 0)


def _padded(values: NDArray) -> NDArray:
    """Frames up to a power of two; the added ones are zeros, or False."""
    size = max(LEAST_PADDED_FRAMES, 1 << max(len(values) - 1, 0).bit_length())
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _steps_of(
    channels: _Channels, trial: _Trial, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[T C] steps from the last frame of the mask, and [T] the time since it."""
    steps, before = _steps(channels, jnp.asarray(_padded(trial.q)), jnp.asarray(_padded(mask)))
    n = len(trial.times)
    last = np.maximum(np.asarray(before)[:n], 0)
    return np.asarray(steps, np.float64)[:n], trial.times - trial.times[last]


def _speed_limits(channels: _Channels, limits: QualityLimits) -> NDArray[np.float64]:
    """[C] rad/s or m/s."""
    angular = np.deg2rad(np.where(channels.trunk, limits.trunk_deg_per_s, limits.limb_deg_per_s))
    return np.where(channels.angular, angular, limits.slide_m_per_s)


# --- faults ---


@dataclass(frozen=True, eq=False)
class _Fault:
    """Frames with one finding; ``flag`` is None for what is only noted."""

    flag: Quality | None
    what: str
    reason: str
    frames: NDArray[np.bool_]  # [T]
    value: NDArray[np.float64]  # [T]
    limit: NDArray[np.float64]  # [T]
    unit: str
    worst: Literal["lowest", "highest"] = "highest"


def _missing(trial: _Trial, limits: QualityLimits) -> Iterator[_Fault]:
    if not trial.pose.all():
        seconds = np.zeros(len(trial.times))
        for first, last in runs(~trial.pose):
            seconds[first : last + 1] = (last + 1 - first) * trial.step
        limit = np.full(len(seconds), limits.fill_seconds)
        (reason,) = REASONS[Quality.NO_POSE]
        yield _Fault(Quality.NO_POSE, "", reason, ~trial.pose, seconds, limit, "s")


def _curvature_faults(trial: _Trial, limits: QualityLimits) -> Iterator[_Fault]:
    for what, values in trial.curvature_deg.items():
        low, high = limits.lordosis_deg if what == "lordosis" else limits.kyphosis_deg
        below, above = trial.pose & (values < low), trial.pose & (values > high)
        less, more = (reason for reason in REASONS[Quality.CURVATURE] if what in reason)
        limit = np.full(len(values), low)
        yield _Fault(Quality.CURVATURE, what, less, below, values, limit, "deg", "lowest")
        yield _Fault(Quality.CURVATURE, what, more, above, values, np.full(len(values), high), "deg")


def _near(channels: _Channels, trial: _Trial, speed: float, channel: int, first: int, second: int) -> bool:
    """Whether a channel can go from one frame to another in the time between."""
    pair = trial.q[[first, second]]
    steps, _ = _steps(channels, jnp.asarray(_padded(pair)), jnp.asarray(_padded(np.ones(2, bool))))
    return bool(steps[1, channel] <= speed * abs(trial.times[second] - trial.times[first]))


@jax.jit
def _weighted_rms(residuals: Float[Array, "T K"], weights: Float[Array, "T K"]) -> Float[Array, " T"]:
    """Zero for frames without a marker that counts."""
    counted = jnp.where(jnp.isfinite(residuals) & (weights > 0), weights, 0.0)
    total = counted.sum(1)
    squares = jnp.where(counted > 0, counted * residuals**2, 0.0).sum(1)
    return jnp.sqrt(squares / jnp.where(total > 0, total, 1.0))


def _residual_faults(model: SpineModel, trial: _Trial, limits: QualityLimits) -> Iterator[_Fault]:
    if trial.residuals is None or trial.weights is None:
        return
    n = len(trial.times)
    of_all, of_one = REASONS[Quality.MARKER_RESIDUAL]
    rms = _weighted_rms(jnp.asarray(_padded(trial.residuals)), jnp.asarray(_padded(trial.weights)))
    rms_mm = 1e3 * np.asarray(rms, np.float64)[:n]
    frames = trial.pose & (rms_mm > limits.rms_residual_mm)
    if frames.any():
        limit = np.full(n, limits.rms_residual_mm)
        yield _Fault(Quality.MARKER_RESIDUAL, "all markers", of_all, frames, rms_mm, limit, "mm")
    single_mm = 1e3 * np.where(trial.weights > 0, trial.residuals, np.nan)
    far = trial.pose[:, None] & (single_mm > limits.marker_residual_mm)
    for k in np.flatnonzero(far.any(axis=0)):
        limit = np.full(n, limits.marker_residual_mm)
        yield _Fault(
            Quality.MARKER_RESIDUAL, model.marker_names[k], of_one, far[:, k], single_mm[:, k], limit, "mm"
        )


def _bound_faults(model: SpineModel, trial: _Trial, limits: QualityLimits) -> Iterator[_Fault]:
    lower, upper = np.asarray(model.lower, np.float64), np.asarray(model.upper, np.float64)
    counted = np.isfinite(lower) | np.isfinite(upper)
    counted &= np.array([not name.startswith(limits.unobservable) for name in model.free_names], bool)
    if not counted.any():
        return
    q = np.where(trial.pose[:, None], trial.q, 0.0)
    share = ((q <= lower + AT_BOUND) | (q >= upper - AT_BOUND))[:, counted].mean(axis=1)
    many = trial.pose & (share > limits.bound_share)
    frames = np.zeros_like(many)
    for first, last in runs(many):
        frames[first : last + 1] = (last + 1 - first) * trial.step >= limits.bound_seconds
    if frames.any():
        limit = np.full(len(share), limits.bound_share)
        (reason,) = REASONS[Quality.JOINT_LIMITS]
        yield _Fault(Quality.JOINT_LIMITS, "share of coordinates", reason, frames, share, limit, "1")


def _jump_faults(trial: _Trial, channels: _Channels, limits: QualityLimits) -> Iterator[_Fault]:
    steps, elapsed = _steps_of(channels, trial, trial.pose)
    speeds = _speed_limits(channels, limits)
    allowed = elapsed[:, None] * speeds
    over = steps > allowed
    horizon = trial.frames(limits.displaced_seconds)
    posed = np.flatnonzero(trial.pose)
    for c in np.flatnonzero(over.any(axis=0)).tolist():
        frames = _displaced(over[:, c], posed, horizon, partial(_near, channels, trial, speeds[c], c))
        unit, scale = ("deg", 180 / np.pi) if channels.angular[c] else ("mm", 1e3)
        # A run is left by a step as well as entered by one; the larger stands for both of its ends.
        leaving, room = steps[:, c].copy(), allowed[:, c].copy()
        larger = steps[posed[1:], c] > steps[posed[:-1], c]
        leaving[posed[:-1]] = np.where(larger, steps[posed[1:], c], steps[posed[:-1], c])
        room[posed[:-1]] = np.where(larger, allowed[posed[1:], c], allowed[posed[:-1], c])
        flag = Quality.ANGULAR_JUMP if channels.observable[c] else None
        (reason,) = REASONS[Quality.ANGULAR_JUMP]
        if flag is None:
            reason += "; keypoints hardly determine it"
        yield _Fault(flag, channels.names[c], reason, frames, scale * leaving, scale * room, unit)


def _displaced(
    over: NDArray[np.bool_],
    posed: NDArray[np.int64],
    horizon: int,
    near: Callable[[int, int], bool],
) -> NDArray[np.bool_]:
    """Frames to blame for steps that are too large.

    The steps cut the trial in pieces. From the longest piece on, forwards and backwards, a piece is believed
    that can be reached from the last believed one, if it is longer than what lies between, and so is any of
    more than ``horizon`` frames. What is not believed is to blame: spikes, and runs that leave and come back.
    Where two believed ones meet that can't be reached from each other, both frames at the step are to blame,
    as nothing tells which side is right.

    Args:
        over: [T] whether the step from the posed frame before is too large.
        posed: the frames that have a pose.
        horizon: frames.
        near: whether one frame can be reached from another in the time between.
    """
    pieces = np.split(posed, np.flatnonzero(over[posed]))
    longest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
    blamed = np.zeros(len(over), bool)
    for direction in (1, -1):
        inner, outer = (0, -1) if direction == 1 else (-1, 0)
        believed, skipped = int(pieces[longest][outer]), 0
        for piece in pieces[longest + 1 :] if direction == 1 else pieces[:longest][::-1]:
            start = int(piece[inner])
            reached = near(believed, start)
            if len(piece) > horizon or (reached and len(piece) > skipped):
                if not (reached or skipped):
                    blamed[[believed, start]] = True
                believed, skipped = int(piece[outer]), 0
            else:
                blamed[piece] = True
                skipped += len(piece)
    return blamed


# --- repair ---


def _continuous(
    channels: _Channels, trial: _Trial, good: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The same poses in angles that go on, [T Q], and which joints were flipped, [T J].

    The turns are found on the device and added here, so that all other numbers keep their last bit.
    """
    arrays = (jnp.asarray(_padded(values)) for values in (trial.q, trial.pose, good))
    flipped, turns = (np.asarray(found)[: len(good)] for found in _unwind(channels, *arrays))
    (factors, shifts), owners = channels.crossed.other_angles(trial.q.shape[1])
    motion = np.where(flipped @ owners > 0, trial.q * factors + shifts, trial.q)
    return np.asarray(motion + 2 * np.pi * turns), flipped


def _repair(
    model: SpineModel,
    trial: _Trial,
    channels: _Channels,
    limits: QualityLimits,
    motion: NDArray[np.float64],
    good: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """[T Q] the motion where it is good or a short gap is filled; NaN elsewhere."""
    steps, elapsed = _steps_of(channels, trial, good)
    over = (steps > elapsed[:, None] * _speed_limits(channels, limits)) & np.array(channels.observable)
    torn = np.any(over, axis=1).tolist()
    present = np.broadcast_to(good[:, None], motion.shape)
    filled, _ = fill_gaps(
        jnp.asarray(_padded(np.where(present, motion, 0.0))),
        jnp.asarray(_padded(present)),
        max_gap=jnp.asarray(trial.frames(limits.fill_seconds)),
    )
    filled = np.array(filled, np.float64)[: len(motion)]
    # What can't be crossed at a human speed is a step of the solution, and no interpolation mends that.
    for first, last in runs(~good):
        if last + 1 < len(good) and torn[last + 1]:
            filled[first : last + 1] = np.nan
    lower, upper = np.asarray(model.lower, np.float64), np.asarray(model.upper, np.float64)
    return np.asarray(np.where(present, filled, np.clip(filled, lower, upper)))


# --- events ---


def _events(fault: _Fault, repaired: NDArray[np.bool_]) -> Iterator[QualityEvent]:
    """An event for each run, cut where repaired frames begin or end."""
    for mended in (False, True):
        outcome: Outcome = "noted" if fault.flag is None else "repaired" if mended else "rejected"
        for first, last in runs(fault.frames & (repaired == mended)):
            part = fault.value[first : last + 1]
            at = first + int(np.argmin(part) if fault.worst == "lowest" else np.argmax(part))
            worst = float(fault.value[at]), float(fault.limit[at])
            yield QualityEvent("quality", first, last, fault.what, fault.reason, outcome, *worst, fault.unit)


def _flip_events(channels: _Channels, flipped: NDArray[np.bool_]) -> list[QualityEvent]:
    reason = "the same rotation is written by its other set of angles, which goes on without a jump"
    return [
        QualityEvent("quality", first, last, channels.names[j], reason, "noted")
        for j in range(flipped.shape[1])
        for first, last in runs(flipped[:, j])
    ]
