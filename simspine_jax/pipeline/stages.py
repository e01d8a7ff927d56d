"""The simulation of one subject in memory: pictures' keypoints to vertebrae, stage by stage.

Triangulation, gaps and filter, scaling, inverse kinematics, forward kinematics, quality: each stage is a
function of the one before (SIMSPINE, section 3.1 and Figure 2), and each can be called alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax import signal
from simspine_jax.annotations import GAP_FILLED, Outcome, QualityEvent, SpineTrial
from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import zup_to_yup
from simspine_jax.geometry.triangulation import Triangulated, triangulate_robust, triangulate_weighted
from simspine_jax.io import MarkerTrajectory
from simspine_jax.kinematics.curvature import (
    ENDPLATES_DEG,
    SPINE_BODIES,
    Curvature,
    body_curvature,
    keypoint_curvature,
    vertebral_rotations,
)
from simspine_jax.kinematics.forward import expand_coordinates, forward_kinematics
from simspine_jax.kinematics.inverse import IKStatus
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.scaling import (
    GENERIC_HEIGHT_M,
    PAPER_MEASUREMENTS,
    ScaleStatus,
    estimate_height,
    scale_factors,
    shrink_to_stature,
)
from simspine_jax.merging import merge_markers
from simspine_jax.pipeline.ik import Progress, padded_size
from simspine_jax.pipeline.official import blend_chain
from simspine_jax.pipeline.options import SimulationOptions
from simspine_jax.pipeline.solving import Motion, Targets, marker_weights, solve_trials, treated_model
from simspine_jax.quality import QualityLimits, assess
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, TRC_NAMES

BLOCK_FRAMES = 4096
"""Frames that are triangulated, or put through forward kinematics, at a time; shorter trials are padded."""

SCALING_FRAMES = 4096
"""Frames of a subject that scaling looks at, in equal stretches of all its trials."""

MASS_INDEX = 21.75
"""kg/m^2, the middle of the range that the World Health Organization calls normal: where no mass is given."""

HEIGHT_RANGE_M = (0.8, 2.5)
"""Heights that markers may give before their units are doubted."""

MOST_OFF = 1.4
"""How far a given height may be from the markers' before either is doubted; detectors err by a tenth."""

OUTPUT_ORDER = 1
"""Of one pass of the filter over results; two passes make the second order of the released code."""

FACE = ("left_eye", "right_eye", "left_ear", "right_ear")
"""Keypoints without a marker on the model; they are carried by its head."""

_FACE_IDS = tuple(KEYPOINT_NAMES.index(name) for name in FACE)


Failed = Callable[["TrialInput", SimspineError], None]
"""Called with a trial that can't be simulated, and why."""


@dataclass(frozen=True, eq=False)
class Views:
    """Detected keypoints of one trial in calibrated cameras, in the vocabulary's order; NaN where missing."""

    cameras: Cameras
    keypoints: NDArray[Any]  # [T V 37 2] px; its type is the triangulation's
    confidence: NDArray[Any]  # [T V 37]


@dataclass(frozen=True, eq=False)
class TrialInput:
    """What is known of a trial: views, body markers (metres, Y up), or both."""

    action: str
    times: NDArray[np.float64]  # [T] s, of the views, or else of the markers
    rate_hz: float
    views: Views | None = None
    markers: MarkerTrajectory | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.views is None and self.markers is None:
            raise SimspineError(
                f"Trial '{self.action}' has neither keypoints nor markers; it needs one of both"
            )


@dataclass(frozen=True, eq=False)
class Points:
    """Marker positions of one trial, in the model's ground frame (Y up), metres; NaN where missing."""

    names: tuple[str, ...]
    times: NDArray[np.float64]  # [T] s
    rate_hz: float
    positions: NDArray[np.float64]  # [T K 3]
    confidence: NDArray[np.float64]  # [T K] 0 to 1; 0 where missing
    triangulated: NDArray[np.float64] | None = None  # [T 37 3]
    triangulated_confidence: NDArray[np.float64] | None = None  # [T 37]
    reprojection_px: NDArray[np.float64] | None = None  # [T V 37]
    detections: NDArray[np.float64] | None = None  # [T V 37 2] px
    detection_confidence: NDArray[np.float64] | None = None  # [T V 37]
    T_ground_cameras: NDArray[np.float64] | None = None  # [4 4], where markers came in a frame of their own
    optical: bool = False
    events: tuple[QualityEvent, ...] = ()


@dataclass(frozen=True, eq=False)
class SubjectSize:
    """How the generic model is made the subject's."""

    scale_factors: NDArray[np.float64]  # [B 3]
    height_m: float | None
    mass_kg: float
    ratios: tuple[tuple[str, float | None], ...] = ()  # measured, by measurement
    marker_offsets: NDArray[np.float64] | None = None  # [M 3] m, of markers placed on the subject
    height_from: str = "given"
    mass_from: str = "given"


# --- points ----------------------------------------------------------------------------------------------


def find_points(trial: TrialInput, options: SimulationOptions) -> Points:
    """A trial's marker positions with short gaps filled."""
    markers = trial.markers
    if trial.views is not None:
        points = _triangulate(trial, trial.views, options)
        if markers is not None:
            points = _merge(points, markers, f"the keypoints of {trial.source or trial.action}")
    else:
        assert markers is not None  # TrialInput sees to it
        present = np.isfinite(markers.positions).all(axis=-1).astype(float)
        points = Points(markers.names, markers.times, markers.rate, markers.positions, present, optical=True)
    return clean(points, options)


def _triangulate(trial: TrialInput, views: Views, options: SimulationOptions) -> Points:
    # Pose2Sim leaves the lens's distortion in by default; on wide lenses that alone is off by centimetres.
    method = (
        triangulate_robust
        if options.triangulation == "robust"
        else partial(triangulate_weighted, undistorted=True)
    )
    parts = [
        _numpy(method(views.cameras, keypoints, confidence), count)
        for (keypoints, confidence), count in _blocks(views.keypoints, views.confidence)
    ]
    points, covers, seen, error = (np.concatenate(values) for values in zip(*parts, strict=True))
    positions = np.asarray(zup_to_yup(jnp.asarray(points)), np.float64)
    used = np.where(covers, np.nan_to_num(views.confidence), 0)
    confidence = np.clip(used.sum(axis=1) / np.maximum(covers.sum(axis=1), 1), 0, 1) * seen
    return Points(
        TRC_NAMES, trial.times, trial.rate_hz, positions, confidence, positions, confidence, error,
        np.asarray(views.keypoints, np.float64), np.asarray(views.confidence, np.float64),
    )  # fmt: skip


def _numpy(found: Triangulated, count: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    points: NDArray[np.float64] = np.asarray(found.points, np.float64)[:count]
    views = np.asarray(found.views)[:count]
    error = np.asarray(found.reprojection_px, np.float64)[:count]
    seen: NDArray[np.bool_] = np.asarray(np.isfinite(points).all(axis=-1))
    return points, views, seen, error


def _blocks(*arrays: NDArray):
    """The arrays' frames in blocks of few sizes, padded with NaN; with each block's own number of frames."""
    total = len(arrays[0])
    for start in range(0, total, BLOCK_FRAMES):
        count = min(BLOCK_FRAMES, total - start)
        size = BLOCK_FRAMES if total > BLOCK_FRAMES else padded_size(count)
        padded = []
        for array in arrays:
            block = np.full((size, *array.shape[1:]), np.nan, array.dtype)
            block[:count] = array[start : start + count]
            padded.append(jnp.asarray(block))
        yield tuple(padded), count


def _merge(points: Points, body: MarkerTrajectory, source: str) -> Points:
    """Body markers and triangulated keypoints as one set, on the clock and in the frame of the markers."""
    spine = MarkerTrajectory(points.names, points.times, points.positions, points.rate_hz, source)
    merged = merge_markers(body, spine, spine_confidence=points.confidence)
    times, rate = merged.markers.times, merged.markers.rate
    views = (
        points.triangulated, points.triangulated_confidence, points.reprojection_px, points.detections,
        points.detection_confidence,
    )  # fmt: skip
    shifted = points.times + merged.time_offset_s
    triangulated, confidence, error, detections, detected = (
        None if x is None else _nearest(x, shifted, times) for x in views
    )
    turn = None
    if triangulated is not None and merged.alignment is not None:
        triangulated = triangulated @ merged.alignment.rotation.T + merged.alignment.translation
        turn = np.eye(4)
        turn[:3, :3], turn[:3, 3] = merged.alignment.rotation, merged.alignment.translation
    # What the detector saw is as far off as ever, so only a set of markers alone is trusted as such.
    optical = not merged.from_spine.any()
    return Points(
        merged.markers.names, times, rate, merged.markers.positions, merged.confidence,
        triangulated, None if confidence is None else np.nan_to_num(confidence), error, detections, detected,
        turn, optical,
    )  # fmt: skip


def _nearest(
    values: NDArray[np.float64], there: NDArray[np.float64], here: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The values at the nearest of the times ``there``, NaN where none is within half a step."""
    step = np.median(np.diff(there)) if len(there) > 1 else np.inf
    nearest, near = signal.nearest_samples(there, here, 0.5 * step * (1 + 1e-6))
    return np.where(near.reshape(-1, *[1] * (values.ndim - 1)), values[nearest], np.nan)


def clean(points: Points, options: SimulationOptions) -> Points:
    """Interpolates short gaps."""
    n_frames, rate_hz = len(points.positions), points.rate_hz
    size = padded_size(n_frames)
    padded = np.full((size, *points.positions.shape[1:]), np.nan)
    padded[:n_frames] = points.positions
    values = jnp.asarray(padded)
    present = jnp.broadcast_to(jnp.isfinite(values).all(axis=-1, keepdims=True), values.shape)
    before = np.asarray(present)[:n_frames, :, 0]
    values, present = signal.fill_gaps(
        values, present, max_gap=jnp.asarray(whole_frames(options.max_gap_s, rate_hz))
    )
    after = np.asarray(present)[:n_frames, :, 0]
    filled = after & ~before
    confidence = _fill_down(points.confidence, filled)
    return replace(
        points,
        positions=np.asarray(values, np.float64)[:n_frames],
        confidence=confidence,
        events=(*points.events, *_gap_events(points.names, filled, ~after, rate_hz)),
    )


def whole_frames(seconds: float, rate_hz: float) -> int:
    """Frames that fit in a time; a part in a million is forgiven, as rates are rounded."""
    return math.floor(seconds * rate_hz * (1 + 1e-6))


def _fill_down(confidence: NDArray[np.float64], filled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What is interpolated is half as sure as the marker is on average."""
    known = np.where(filled, 0, confidence)
    mean = known.sum(axis=0) / np.maximum((known > 0).sum(axis=0), 1)
    return np.where(filled, 0.5 * mean, confidence)


def _gap_events(
    names: Sequence[str], filled: NDArray[np.bool_], missing: NDArray[np.bool_], rate_hz: float
) -> list[QualityEvent]:
    events = []
    findings: tuple[tuple[NDArray[np.bool_], Outcome, str], ...] = (
        (filled, "noted", GAP_FILLED),
        (missing, "dropped", "missing"),
    )
    for mask, outcome, reason in findings:
        for k, name in enumerate(names):
            for first, last in signal.runs(mask[:, k]):
                length = float((last - first + 1) / rate_hz)
                events.append(QualityEvent("signal", first, last, name, reason, outcome, length, None, "s"))
    return events


# --- scaling ---------------------------------------------------------------------------------------------


def find_size(
    model: SpineModel,
    trials: Sequence[Points],
    options: SimulationOptions,
    *,
    height_m: float | None = None,
    mass_kg: float | None = None,
) -> SubjectSize:
    """Scale factors, height and mass of a subject from all its trials, or from its static trial alone.

    Raises:
        SimspineError: no measurement can be taken in these trials and no height is given.
    """
    n_bodies = len(model.body_names)
    if not options.scale:
        mass = mass_kg or float(np.sum(model.mjx_model.body_mass))
        return SubjectSize(
            np.ones((n_bodies, 3)), height_m, mass, mass_from="given" if mass_kg else "the model's"
        )
    names = trials[0].names
    rate = trials[0].rate_hz
    same = [points for points in trials if points.names == names and points.rate_hz == rate]
    found = scale_factors(model, jnp.asarray(_stretches(same), model.dtype), names, symmetric=True)
    spread = options.optical_std_m if trials[0].optical else options.marker_std_m
    stature = None if height_m is None else height_m / GENERIC_HEIGHT_M
    measured = bool((np.asarray(found.status) == ScaleStatus.MEASURED).any())
    if stature is None and not measured:
        raise SimspineError(
            "No pair of markers that scaling measures is ever seen together; valid are trials that show "
            "shoulders and hips, or a given height"
        )
    if measured:
        _check_units(float(estimate_height(model, found.factors)), height_m)
    factors = found.factors
    if spread > 0 or not measured:
        factors = shrink_to_stature(model, found, PAPER_MEASUREMENTS, marker_std_m=spread, stature=stature)
    height = float(estimate_height(model, factors)) if height_m is None else height_m
    mass = mass_kg or options.mass_kg or MASS_INDEX * height**2
    guessed = "the preset's" if options.mass_kg else "estimated from the height alone"
    ratios = zip(found.measurement_names, np.asarray(found.ratios, float), strict=True)
    return SubjectSize(
        np.asarray(factors, np.float64), height, mass,
        tuple((name, float(r) if np.isfinite(r) else None) for name, r in ratios),
        height_from="estimated from proportions" if height_m is None else "given",
        mass_from="given" if mass_kg else guessed,
    )  # fmt: skip


def _check_units(measured_m: float, given_m: float | None) -> None:
    """Refuses a size that only units which are not metres explain."""
    low, high = HEIGHT_RANGE_M
    if not low <= measured_m <= high:
        raise SimspineError(
            f"By its markers the subject is {measured_m:.3g} m tall; valid are {low:g} to {high:g} m; check "
            "the units of calibration and markers (metres)"
        )
    if given_m is not None and not 1 / MOST_OFF < measured_m / given_m < MOST_OFF:
        raise SimspineError(
            f"By its markers the subject is {measured_m:.3g} m tall and {given_m:g} m were given; check the "
            "height, and the units of calibration and markers (metres)"
        )


def _stretches(trials: Sequence[Points]) -> NDArray[np.float64]:
    """Frames of all trials with gaps between them, no more than `SCALING_FRAMES`, padded to few sizes."""
    each = max(SCALING_FRAMES // len(trials) - 1, 2)
    rows = []
    for points in trials:
        start = max(0, (len(points.positions) - each) // 2)
        rows += [points.positions[start : start + each], np.full((1, *points.positions.shape[1:]), np.nan)]
    joined = np.concatenate(rows)[:-1]
    padded = np.full((padded_size(len(joined)), *joined.shape[1:]), np.nan)
    padded[: len(joined)] = joined
    return padded


# --- poses -----------------------------------------------------------------------------------------------


def targets_of(model: SpineModel, points: Points, options: SimulationOptions) -> Targets:
    """A trial's points as the model's markers, with their weights.

    Raises:
        SimspineError: model and points share fewer than three markers.
    """
    shared = [name for name in model.marker_names if name in points.names]
    if len(shared) < 3:
        raise SimspineError(
            f"The trial and the model {model.name} share {len(shared)} markers and at least 3 are needed; "
            f"the trial has: {', '.join(points.names[:60])}"
        )
    markers = np.full((len(points.positions), model.n_markers, 3), np.nan)
    confidence = np.zeros(markers.shape[:2])
    here, there = model.marker_indices(shared), [points.names.index(name) for name in shared]
    markers[:, here], confidence[:, here] = points.positions[:, there], points.confidence[:, there]
    weights = np.broadcast_to(marker_weights(model, options), confidence.shape)
    return Targets(
        markers, weights * confidence if options.use_confidence else weights.copy(), points.rate_hz
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Outputs:
    """What forward kinematics says of each frame."""

    coordinates: Array  # [T C]
    markers: Array  # [T M 3]
    head: Array  # [T 3]
    head_rotation: Array  # [T 3 3]
    rotations: Array  # [T L 3]
    curvature: Curvature


@jax.jit
def _outputs(
    model: SpineModel,
    q: Float[Array, "T Q"],
    factors: Float[Array, "B 3"],
    offsets: Float[Array, "M 3"] | None,
) -> _Outputs:
    poses = forward_kinematics(model, q, scale_factors=factors, marker_offsets=offsets)
    head = model.body_names.index("head")
    return _Outputs(
        expand_coordinates(model, q),
        poses.markers,
        poses.body_positions[:, head],
        poses.body_rotations[:, head],
        vertebral_rotations(model.body_names, poses.body_rotations),
        body_curvature(model.body_names, poses.body_rotations),
    )


def pose_outputs(
    model: SpineModel,
    q: NDArray[np.float64],
    factors: NDArray[np.float64],
    offsets: NDArray[np.float64] | None = None,
) -> _Outputs:
    """`_outputs` of a whole trial as NumPy arrays, frames without a pose NaN."""
    held = jnp.asarray(factors, model.dtype)
    placed = None if offsets is None else jnp.asarray(offsets, model.dtype)
    parts = []
    for (block,), count in _blocks(np.asarray(q, np.dtype(model.dtype))):
        found = _outputs(model, block, held, placed)
        parts.append(jax.tree.map(lambda x, n=count: np.asarray(x, np.float64)[:n], found))
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def annotate(
    model: SpineModel,
    subject: str,
    trial: TrialInput,
    points: Points,
    targets: Targets,
    motion: Motion,
    size: SubjectSize,
    options: SimulationOptions,
    limits: QualityLimits | None = None,
) -> SpineTrial:
    """Vertebrae, keypoints, curvature and quality of a solved trial; ``model`` is `treated_model`'s."""
    first = pose_outputs(model, motion.q, size.scale_factors, size.marker_offsets)
    residuals = np.linalg.norm(first.markers - targets.markers, axis=-1)
    face = place_face(first, points)
    keypoints = keypoints_of(model, first, face)
    curvature = _curvature(keypoints)
    limits = limits or QualityLimits(fill_seconds=options.max_gap_s)
    judged = assess(
        model, points.times, motion.q,
        has_pose=motion.has_pose, residuals=residuals, weights=targets.weights, curvature=curvature,
        limits=limits,
    )  # fmt: skip
    q = _filtered(judged.q, points.rate_hz, options)
    last = pose_outputs(model, q, size.scale_factors, size.marker_offsets)
    keypoints = keypoints_of(model, last, face)
    if options.blend and points.triangulated is not None:
        keypoints = blend_chain(
            keypoints, _filtered(points.triangulated, points.rate_hz, options), options.blend
        )
    curvature = _curvature(keypoints)
    return SpineTrial(
        subject=subject,
        action=trial.action,
        times=points.times,
        rate_hz=points.rate_hz,
        keypoints=keypoints,
        coordinates=_axes(model, np.asarray(last.coordinates)),
        quality=judged.quality,
        triangulated=points.triangulated,
        confidence=points.triangulated_confidence,
        camera_names=() if trial.views is None else tuple(trial.views.cameras.names),
        reprojection_px=points.reprojection_px,
        detections=points.detections,
        detection_confidence=points.detection_confidence,
        T_ground_cameras=points.T_ground_cameras,
        marker_names=model.marker_names,
        residuals=np.linalg.norm(last.markers - targets.markers, axis=-1),
        vertebral_rotations=np.asarray(last.rotations),
        lordosis=np.asarray(curvature.lordosis),
        kyphosis=np.asarray(curvature.kyphosis),
        body_lordosis=np.asarray(last.curvature.lordosis),
        body_kyphosis=np.asarray(last.curvature.kyphosis),
        events=(*points.events, *_unconverged(motion), *judged.events),
        source=trial.source,
    )


def _unconverged(motion: Motion) -> list[QualityEvent]:
    """Frames whose solve ran out of steps; quality judges what came of them."""
    return [
        QualityEvent("ik", first, last, "", "the solve ran out of steps before it converged", "noted")
        for first, last in signal.runs(motion.status == IKStatus.MAX_ITERATIONS)
    ]


def _axes(model: SpineModel, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The model's coordinates in the order of `AXIS_NAMES`; NaN for axes that it lacks."""
    axes = np.full((len(coordinates), len(AXIS_NAMES)), np.nan)
    for column, name in enumerate(AXIS_NAMES):
        if name in model.coordinate_names:
            axes[:, column] = coordinates[:, model.coordinate_names.index(name)]
    return axes


def _filtered(values: NDArray[np.float64], rate_hz: float, options: SimulationOptions) -> NDArray[np.float64]:
    """The zero-phase filter over results, where the options have one."""
    if not options.output_cutoff_hz:
        return values
    padded = np.full((padded_size(len(values)), *values.shape[1:]), np.nan)
    padded[: len(values)] = values
    smooth = signal.lowpass(
        jnp.asarray(padded), jnp.asarray(np.isfinite(padded)),
        rate_hz=rate_hz, cutoff_hz=options.output_cutoff_hz, order=OUTPUT_ORDER,
    )  # fmt: skip
    return np.asarray(smooth, np.float64)[: len(values)]


def place_face(poses: _Outputs, points: Points) -> NDArray[np.float64]:
    """[4 3] eyes and ears in the head's frame: medians over the trial; NaN for those never seen."""
    if points.triangulated is None:
        return np.full((len(FACE), 3), np.nan)
    seen = points.triangulated[:, list(_FACE_IDS)] - poses.head[:, None]
    local = np.einsum("tji,tkj->tki", poses.head_rotation, seen)
    known = np.isfinite(local).any(axis=(0, 2))
    face = np.full((len(FACE), 3), np.nan)
    face[known] = np.nanmedian(local[:, known], axis=0)
    return face


def keypoints_of(model: SpineModel, poses: _Outputs, face: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T 37 3] the model's virtual markers, and eyes and ears on its head; NaN where it has no marker."""
    keypoints = np.full((len(poses.markers), len(TRC_NAMES), 3), np.nan)
    for i, name in enumerate(TRC_NAMES):
        if name in model.marker_names:
            keypoints[:, i] = poses.markers[:, model.marker_names.index(name)]
    keypoints[:, list(_FACE_IDS)] = poses.head[:, None] + np.einsum("tij,kj->tki", poses.head_rotation, face)
    return keypoints


def _curvature(keypoints: NDArray[np.float64]) -> Curvature:
    parts = [
        jax.tree.map(lambda x, n=count: np.asarray(x, np.float64)[:n], _keypoint_curvature(block))
        for (block,), count in _blocks(keypoints)
    ]
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


_keypoint_curvature = jax.jit(keypoint_curvature)


# --- all of it -------------------------------------------------------------------------------------------


def check_model(model: SpineModel) -> None:
    """Refuses a model without the bodies that vertebrae and face hang on.

    Raises:
        UnknownNameError: names the first that is missing.
    """
    for body in dict.fromkeys([*SPINE_BODIES, *(body for body, _ in ENDPLATES_DEG.values())]):
        if body not in model.body_names:
            raise UnknownNameError("Body", body, f"the model {model.name}", model.body_names)


def simulate_trials(
    model: SpineModel,
    subject: str,
    trials: Sequence[TrialInput],
    points: Sequence[Points],
    size: SubjectSize,
    options: SimulationOptions,
    *,
    motions: Sequence[Motion] | None = None,
    limits: QualityLimits | None = None,
    progress: Progress | None = None,
    failed: Failed | None = None,
) -> list[SpineTrial]:
    """Inverse kinematics of these trials together, then vertebrae and quality of each.

    With ``motions``, one for each trial, nothing is solved: these are the poses. A trial whose data don't do
    is told to ``failed`` and left out; without it, it raises.
    """
    check_model(model)
    treated, _ = treated_model(model, options)
    targets: list[Targets | None] = []
    for trial, found in zip(trials, points, strict=True):
        with _told(trial, failed):
            targets.append(targets_of(model, found, options))
            continue
        targets.append(None)
    if motions is None:
        motions = _solved(model, targets, size, options, progress)
    done = []
    for trial, found, target, motion in zip(trials, points, targets, motions, strict=True):
        if target is not None:
            with _told(trial, failed):
                done.append(annotate(treated, subject, trial, found, target, motion, size, options, limits))
    return done


def _solved(
    model: SpineModel,
    targets: Sequence[Targets | None],
    size: SubjectSize,
    options: SimulationOptions,
    progress: Progress | None,
) -> list[Motion]:
    """Poses of the trials that have targets, solved together; none for the others."""
    good = [target for target in targets if target is not None]
    if not good:
        return [_NO_MOTION for _ in targets]
    found = iter(
        solve_trials(
            model, good, size.scale_factors, options, marker_offsets=size.marker_offsets, progress=progress
        )
    )
    return [_NO_MOTION if target is None else next(found) for target in targets]


_NO_MOTION = Motion(np.zeros((0, 0)), np.zeros(0, np.int64))


@contextmanager
def _told(trial: TrialInput, failed: Failed | None) -> Iterator[None]:
    """Tells what is wrong with a trial, where somebody wants to know, and goes on without it."""
    try:
        yield
    except SimspineError as error:
        if failed is None:
            raise
        failed(trial, error)


def simulate_subject(
    model: SpineModel,
    subject: str,
    trials: Sequence[TrialInput],
    options: SimulationOptions,
    *,
    static: TrialInput | None = None,
    height_m: float | None = None,
    mass_kg: float | None = None,
    limits: QualityLimits | None = None,
    progress: Progress | None = None,
) -> tuple[SubjectSize, list[SpineTrial]]:
    """All stages for one subject, without files.

    Args:
        model: the generic model with its markers, or the subject's own with ``options.scale`` off.
        subject: the name to give to the annotations.
        trials: of this subject.
        options: see `pipeline.options.PRESETS`.
        static: a trial to scale by; default: all trials.
        height_m: known height; default: from the markers.
        mass_kg: known mass; default: the options', or from the height.
        limits: of quality.
        progress: told the frames done and all frames, during inverse kinematics.

    Raises:
        SimspineError: there are no trials, or their data don't do.
    """
    if not trials:
        raise ShapeError(f"Subject {subject} has no trials")
    points = [find_points(trial, options) for trial in trials]
    measured = points if static is None else [find_points(static, options)]
    size = find_size(model, measured, options, height_m=height_m, mass_kg=mass_kg)
    done = simulate_trials(model, subject, trials, points, size, options, limits=limits, progress=progress)
    return size, done
