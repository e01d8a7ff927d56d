"""What a fit says of a subject and its trials, in units that people read, with how sure it is.

A subject's results are one JSON file: sizes, marker offsets, cameras and what the cameras don't see. What
changes over time is an NPZ for each trial: coordinates, markers, curvature and lumbar flexion.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import FileFormatError
from simspine_jax.fitting.doubts import camera_noise
from simspine_jax.fitting.parameters import CENTRE, DELAY, FOCAL, PER_CAMERA, ROTATION
from simspine_jax.fitting.subject import FitStatus
from simspine_jax.fitting.terms import marker_jacobian
from simspine_jax.fitting.uncertainty import Output, Uncertainty, half_width
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.kinematics.curvature import COLUMN_NAMES, keypoint_curvature
from simspine_jax.kinematics.forward import expand_coordinates
from simspine_jax.kinematics.lumbar import Rhythm, departing_to_free
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.scaling import PAPER_MEASUREMENTS, Measurement
from simspine_jax.pipeline.records import write_json
from simspine_jax.pipeline.simulate import SimulatedTrial
from simspine_jax.skeleton import KEYPOINT_NAMES, LUMBAR_LEVELS, TRC_NAMES

FORMAT = "simspine_jax fit"

SHARE = 0.9
"""Of the posterior that the intervals in files and figures hold."""

STATUS_WORDS: Mapping[FitStatus, str] = {
    FitStatus.CONVERGED: "converged",
    FitStatus.MAX_STEPS: "ran out of steps before it converged",
    FitStatus.TOO_LITTLE_DATA: "too little data",
    FitStatus.FAILED: "got stuck where the objective is not least",
}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class FittedSegment:
    """Bodies that are scaled alike.

    Attributes:
        name: of the segment.
        bodies: of the model.
        factors: of the generic model, along the bodies' x, y and z.
        factors_std: None where sizes were kept.
    """

    name: str
    bodies: tuple[str, ...]
    factors: Triple
    factors_std: Triple | None


@dataclass(frozen=True)
class FittedLength:
    """The distance between two keypoints in the model's default pose, the mean of both sides.

    Attributes:
        name: of the measurement.
        length_mm: of the subject.
        std_mm: likewise.
    """

    name: str
    length_mm: float
    std_mm: float


@dataclass(frozen=True)
class FittedMarker:
    """A marker's offset from its place on the scaled model, in its body's frame.

    Attributes:
        name: of the marker.
        offset_mm: along x, y and z.
        std_mm: None where it was kept.
    """

    name: str
    offset_mm: Triple
    std_mm: Triple | None


@dataclass(frozen=True)
class FittedCamera:
    """How a camera differs from its calibration; deviations are None for what was kept.

    Attributes:
        name: of the camera.
        rotation_deg: rotation vector in the camera's own axes, after the given rotation.
        rotation_std_deg: likewise.
        shift_mm: of its centre, in the model's ground (Y up).
        shift_std_mm: likewise.
        focal_factor: of its focal lengths.
        focal_std: likewise.
        delay_ms: how much later than the frames' times it took its pictures.
        delay_std_ms: likewise.
        noise_px: deviation of the detector's errors there, the median of all keypoints; None where it sees
            nothing.
    """

    name: str
    rotation_deg: Triple
    rotation_std_deg: Triple | None
    shift_mm: Triple
    shift_std_mm: Triple | None
    focal_factor: float
    focal_std: float | None
    delay_ms: float
    delay_std_ms: float | None
    noise_px: float | None


@dataclass(frozen=True)
class HeldOutView:
    """A camera that had no part in the fit: median distances between its keypoints and the predicted ones.

    Attributes:
        name: of the camera.
        chain_px: predicted by triangulation, scaling and inverse kinematics on the same cameras.
        fit_px: predicted by the fit; None like the other where the camera sees nothing.
    """

    name: str
    chain_px: float | None
    fit_px: float | None


@dataclass(frozen=True)
class FittedLevel:
    """A lumbar level's share in the motion about an axis, where the subject's rhythm was learned.

    Attributes:
        name: of the level's angle.
        share: of the sum of the levels' angles.
        std: likewise.
        model_share: the model's.
        prior_std: how far it may be from the model's; where ``std`` is about this, nothing was learned.
    """

    name: str
    share: float
    std: float
    model_share: float
    prior_std: float


@dataclass(frozen=True)
class FittedLumbar:
    """What is known of the lumbar levels' motion beside one another.

    Attributes:
        treatment: ``rhythm`` or ``free``.
        log_evidence_coupled: logarithm of the evidence for the model's rhythm, up to a constant; None where a
            fit did not converge.
        log_evidence_free: likewise for the treatment, up to the same.
        log_bayes_factor: their difference; below 0 the pictures speak for the model's rhythm.
        verdict: the same in words.
        unmarked: lumbar vertebrae without a marker: the levels above and below them are told apart by little.
        levels: the subject's rhythm; none for free levels.
    """

    treatment: str
    log_evidence_coupled: float | None
    log_evidence_free: float | None
    log_bayes_factor: float | None
    verdict: str
    unmarked: tuple[str, ...]
    levels: tuple[FittedLevel, ...]


@dataclass(frozen=True)
class FittedSubject:
    """What a fit found of a subject.

    Attributes:
        subject: name.
        status: how the fit ended, in words.
        steps: of its last round.
        objective: half a negative log posterior.
        chain_px: median distance of keypoints to the markers that the fit began with.
        markers_px: likewise to the fit's markers in the fit's cameras.
        fit_px: likewise to where the detector is expected to see these, with its constant errors and delays.
        correlation_frames: over how many frames errors are alike.
        segments: sizes.
        lengths: between keypoints.
        markers: offsets.
        cameras: of the rig.
        held_out: cameras that had no part in it.
        observability: (free coordinate, how little is known of it; see `fitting.uncertainty`).
        unseen: free coordinates of which the data tell next to nothing.
        doubts: sentences about cameras and lifter with which deviations should not be believed.
        lumbar: how the lumbar levels move; None where they are coupled as the model has them.
        trials: as in their own records.
        resumed: whether it was complete already.
    """

    subject: str
    status: str
    steps: int
    objective: float
    chain_px: float | None
    markers_px: float | None
    fit_px: float | None
    correlation_frames: float
    segments: tuple[FittedSegment, ...]
    lengths: tuple[FittedLength, ...]
    markers: tuple[FittedMarker, ...]
    cameras: tuple[FittedCamera, ...]
    held_out: tuple[HeldOutView, ...]
    observability: tuple[tuple[str, float], ...]
    unseen: tuple[str, ...]
    doubts: tuple[str, ...]
    lumbar: FittedLumbar | None = None
    trials: tuple[SimulatedTrial, ...] = ()
    resumed: bool = False


# --- sizes, offsets and cameras ---------------------------------------------------------------------------


def segments_found(sure: Uncertainty) -> tuple[FittedSegment, ...]:
    """Factors of each segment."""
    layout, theta, std = sure.fit.setting.layout, np.asarray(sure.fit.theta, float), _deviations(sure)
    factors = np.exp(theta[: layout.n_scales]).reshape(-1, 3)
    spread = factors * std[: layout.n_scales].reshape(-1, 3)
    return tuple(
        FittedSegment(segment.name, segment.bodies, _triple(f), _known(s))
        for segment, f, s in zip(layout.segments, factors, spread, strict=True)
    )


def lengths_found(
    sure: Uncertainty, measurements: Sequence[Measurement] = PAPER_MEASUREMENTS
) -> tuple[FittedLength, ...]:
    """Lengths of the measurements that the model has the markers of."""
    fit = sure.fit
    model, n_body = fit.whole.fixed.model, fit.setting.layout.n_body
    pose = model.default_q.astype(fit.theta.dtype)[None]
    markers, jacobian = (
        np.asarray(x, float)[0] for x in _default_markers(fit.setting, model, fit.theta, pose)
    )
    by_body = jacobian.reshape(len(markers), 3, -1)[..., model.n_free :]
    found = []
    for measurement in measurements:
        pairs = [p for p in measurement.pairs if set(p) <= set(model.marker_names)]
        if not pairs:
            continue
        ends = np.array([model.marker_indices(p) for p in pairs])
        apart = markers[ends[:, 0]] - markers[ends[:, 1]]
        length = np.linalg.norm(apart, axis=1)
        along = np.einsum("pi,pij->pj", apart / length[:, None], by_body[ends[:, 0]] - by_body[ends[:, 1]])
        slope = along.mean(axis=0)
        std = np.sqrt(slope @ sure.shared[:n_body, :n_body] @ slope)
        found.append(FittedLength(measurement.name, float(1e3 * length.mean()), float(1e3 * std)))
    return tuple(found)


_default_markers = jax.jit(marker_jacobian, static_argnums=0)


def offsets_found(sure: Uncertainty) -> tuple[FittedMarker, ...]:
    """Offsets of each marker."""
    layout, names = sure.fit.setting.layout, sure.fit.whole.fixed.model.marker_names
    std = _deviations(sure)[layout.n_scales : layout.n_scales + layout.n_offsets].reshape(-1, 3)
    spread = np.full((layout.n_markers, 3), np.nan)
    for group, row in zip(layout.markers, std, strict=True):
        spread[[marker for marker in group if marker >= 0]] = row
    spread = spread * float(layout.offset_unit(sure.fit.theta))
    return tuple(
        FittedMarker(name, _triple(1e3 * offset), _known(1e3 * s))
        for name, offset, s in zip(names, sure.fit.marker_offsets, spread, strict=True)
    )


def cameras_found(sure: Uncertainty) -> tuple[FittedCamera, ...]:
    """How each camera differs from what was given."""
    fit, layout = sure.fit, sure.fit.setting.layout
    here = slice(layout.n_body, layout.n_body + PER_CAMERA * layout.n_cameras)
    values = np.asarray(fit.theta, float)[here].reshape(-1, PER_CAMERA)
    spread = _deviations(sure)[here].reshape(-1, PER_CAMERA)
    names = () if fit.cameras is None else fit.cameras.names
    noises, found = camera_noise(fit), []
    for name, x, s, noise in zip(names, values, spread, noises, strict=True):
        focal = float(np.exp(x[FOCAL][0]))
        focal_std, delay_std = (None if np.isnan(v) else float(v) for v in (s[FOCAL][0], s[DELAY][0]))
        found.append(
            FittedCamera(
                name,
                _triple(np.degrees(x[ROTATION])),
                _known(np.degrees(s[ROTATION])),
                _triple(1e3 * x[CENTRE]),
                _known(1e3 * s[CENTRE]),
                focal,
                None if focal_std is None else focal * focal_std,
                float(1e3 * x[DELAY][0]),
                None if delay_std is None else 1e3 * delay_std,
                None if np.isnan(noise) else float(noise),
            )
        )
    return tuple(found)


def lumbar_found(sure: Uncertainty) -> FittedLumbar | None:
    """The evidence about the lumbar levels, and the subject's rhythm."""
    evidence, fit = sure.fit.lumbar, sure.fit
    if evidence is None:
        return None
    model, layout = fit.whole.fixed.model, fit.setting.layout
    marked = set(model.topology.marker_bodies)
    bodies = zip(model.body_names, model.topology.body_order, strict=True)
    logs = (evidence.log_coupled, evidence.log_free, evidence.log_bayes_factor)
    coupled, free, factor = (x if math.isfinite(x) else None for x in logs)
    return FittedLumbar(
        evidence.treatment, coupled, free, factor, evidence.verdict(),
        tuple(name for name, body in bodies if name.startswith("lumbar") and body not in marked),
        () if layout.rhythm is None else _levels(sure, layout.rhythm),
    )  # fmt: skip


def _levels(sure: Uncertainty, rhythm: Rhythm) -> tuple[FittedLevel, ...]:
    fit, layout = sure.fit, sure.fit.setting.layout
    here = slice(layout.n_body - layout.n_shares, layout.n_body)
    prior = np.linalg.inv(np.asarray(fit.whole.prior_precision)[here, here])
    change, covariance = np.asarray(layout.shares(fit.theta), np.float64), sure.shared[here, here]
    found, first = [], 0
    for axis in rhythm.axes:
        own = slice(first, first := first + len(axis.ratios) - 1)
        to_share = axis.basis / sum(axis.ratios)
        stds = (np.sqrt(np.diag(to_share @ c[own, own] @ to_share.T)) for c in (covariance, prior))
        shares = np.array(axis.ratios) / sum(axis.ratios)
        names = [fit.whole.fixed.model.coordinate_names[c] for c in axis.coordinates]
        columns = (shares + to_share @ change[own], next(stds), shares, next(stds))
        found += [FittedLevel(name, *map(float, row)) for name, *row in zip(names, *columns, strict=True)]
    return tuple(found)


def _deviations(sure: Uncertainty) -> NDArray[np.float64]:
    """[P] of the shared vector; NaN for what was kept."""
    free = np.asarray(sure.fit.whole.free) > 0
    return np.where(free, np.sqrt(np.maximum(np.diagonal(sure.shared), 0)), np.nan)


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _known(values: NDArray[np.float64]) -> Triple | None:
    return None if np.isnan(values).any() else _triple(values)


# --- pictures ---------------------------------------------------------------------------------------------


def keypoint_distances(
    cameras: Cameras, markers: NDArray[np.float64], keypoints: NDArray[np.floating]
) -> NDArray[np.float64]:
    """``[T V K]`` px between keypoints ``[T V K 2]`` and markers ``[T K 3]`` (m, Y up); NaN where unknown."""
    pixels = np.asarray(_pictures(cameras, jnp.asarray(markers)), np.float64)
    return np.linalg.norm(np.moveaxis(pixels, 2, 1) - keypoints, axis=-1)


@jax.jit
def _pictures(cameras: Cameras, markers: Float[Array, "T K 3"]) -> Float[Array, "T K V 2"]:
    return project(cameras, yup_to_zup(markers)).keypoints


def median_px(distances: Sequence[NDArray[np.float64]]) -> float | None:
    """Of all that is known; None for nothing."""
    whole = np.concatenate([np.ravel(d) for d in distances])
    return float(np.nanmedian(whole)) if np.isfinite(whole).any() else None


# --- over time --------------------------------------------------------------------------------------------


CURVES = ("lordosis", "kyphosis", "lumbar")
"""Angles of the whole spine; the others are of one lumbar level each."""


@dataclass(frozen=True, eq=False)
class Angles:
    """Angles that follow from a frame's pose.

    Attributes:
        names: ``lordosis`` and ``kyphosis`` by keypoints, ``lumbar``, the flexion of all lumbar levels
            together, and the levels' coordinates; those that the model has.
        output: gives them, radians.
    """

    names: tuple[str, ...]
    output: Output


def angles_of(model: SpineModel) -> Angles:
    """The angles of a model: curvature where it has the keypoints for it, lumbar flexion and its levels'."""
    wanted = (
        *COLUMN_NAMES,
        *(f"{side}_{part}" for side in ("left", "right") for part in ("hip", "shoulder")),
    )
    curved = all(TRC_NAMES[KEYPOINT_NAMES.index(name)] in model.marker_names for name in wanted)
    flexion = tuple(n for level in LUMBAR_LEVELS if (n := f"{level}_Flex_Ext") in model.coordinate_names)
    columns = np.array([model.coordinate_names.index(name) for name in flexion], int)
    own = np.array([k for k, name in enumerate(model.marker_names) if name in TRC_NAMES], int)
    ids = np.array([TRC_NAMES.index(model.marker_names[k]) for k in own], int)

    def output(q: Array, markers: Array, scale_factors: Array) -> Array:
        levels = expand_coordinates(model, q)[columns]
        parts = [levels.sum(keepdims=True), levels] if flexion else []
        if curved:
            keypoints = jnp.full((len(KEYPOINT_NAMES), 3), jnp.nan, markers.dtype).at[ids].set(markers[own])
            found = keypoint_curvature(keypoints)
            parts.insert(0, jnp.stack([found.lordosis, found.kyphosis]))
        return jnp.concatenate(parts)

    whole = (("lordosis", "kyphosis") if curved else ()) + (("lumbar",) if flexion else ())
    return Angles((*whole, *flexion), output)


@dataclass(frozen=True, eq=False)
class FittedMotion:
    """One trial of a fit over time; SI units. Frames without data have what their neighbours say of them.

    Attributes:
        times: [T] s.
        used: [T] frames with data of their own.
        free_names: Q of the model; with all lumbar levels where these are not coupled.
        q: [T Q] rad and m.
        q_std: likewise.
        marker_names: K of the model.
        markers: [T K 3] m, ground (Y up).
        marker_covariance: [T K 3 3] m^2.
        angle_names: A; see `Angles`.
        angles: [T A] rad.
        angles_std: likewise.
    """

    times: NDArray[np.float64]
    used: NDArray[np.bool_]
    free_names: tuple[str, ...]
    q: NDArray[np.float64]
    q_std: NDArray[np.float64]
    marker_names: tuple[str, ...]
    markers: NDArray[np.float64]
    marker_covariance: NDArray[np.float64]
    angle_names: tuple[str, ...]
    angles: NDArray[np.float64]
    angles_std: NDArray[np.float64]

    def angle(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values and standard deviations of an angle."""
        column = self.angle_names.index(name)
        return self.angles[:, column], self.angles_std[:, column]


def motions_found(
    sure: Uncertainty, angles: Angles, times: Sequence[NDArray[np.float64]]
) -> list[FittedMotion]:
    """Each trial of a fit over its times."""
    fit, model = sure.fit, sure.fit.whole.fixed.model
    values, std = sure.of(angles.output) if angles.names else (np.zeros((*fit.q.shape[:2], 0)),) * 2
    used = np.asarray(fit.whole.data.usable)
    names, q, q_std = model.free_names, fit.q, sure.pose_std
    if fit.lumbar is not None:
        m = fit.setting.layout.map_of(model)
        names = tuple(model.coordinate_names[i] for i in np.sort(m.free_indices))
        q, q_std = sure.of(lambda q, markers, scale_factors: departing_to_free(m, q))
    return [
        FittedMotion(
            clock, used[row, :n], names, q[row, :n], q_std[row, :n],
            model.marker_names, fit.markers[row, :n], sure.marker_covariance[row, :n],
            angles.names, values[row, :n], std[row, :n],
        )
        for row, (n, clock) in enumerate(zip(fit.lengths, times, strict=True))
    ]  # fmt: skip


def write_motion_npz(path: Path, motion: FittedMotion) -> None:
    """Writes a trial as NPZ: the arrays of `FittedMotion`, and the ends of 90 % intervals.

    Curvature and lumbar flexion have arrays of their own: ``lordosis`` [T], ``lordosis_std``,
    ``lordosis_low``, ``lordosis_high``, likewise ``kyphosis`` and ``lumbar`` (all levels together), and
    ``lumbar_flexion`` [T L] with ``lumbar_names``. ``share`` is that of the intervals.
    """
    arrays = {f.name: np.asarray(getattr(motion, f.name)) for f in dataclasses.fields(motion)}
    for name in ("angle_names", "angles", "angles_std"):
        del arrays[name]
    arrays["share"] = np.asarray(SHARE)
    arrays |= _with_interval("q", motion.q, motion.q_std)
    flexion = [i for i, name in enumerate(motion.angle_names) if name not in CURVES]
    for name in CURVES:
        if name in motion.angle_names:
            arrays |= _with_interval(name, *motion.angle(name))
    arrays["lumbar_names"] = np.array([motion.angle_names[i] for i in flexion], np.str_)
    arrays |= _with_interval("lumbar_flexion", motion.angles[:, flexion], motion.angles_std[:, flexion])
    write_npz(path, {name: array.astype(array.dtype.newbyteorder("<")) for name, array in arrays.items()})


def _with_interval(
    name: str, value: NDArray[np.float64], std: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    width = half_width(SHARE) * std
    return {name: value, f"{name}_std": std, f"{name}_low": value - width, f"{name}_high": value + width}


def read_motion_npz(path: Path) -> FittedMotion:
    """What `write_motion_npz` has written.

    Raises:
        FileFormatError: it is no NPZ file.
    """
    arrays = read_npz(path)
    curves = [name for name in CURVES if name in arrays]

    def joined(suffix: str) -> NDArray[np.float64]:
        columns = [arrays[f"{name}{suffix}"][:, None] for name in curves]
        return np.concatenate([*columns, arrays[f"lumbar_flexion{suffix}"]], axis=1)

    def names(key: str) -> tuple[str, ...]:
        return tuple(map(str, arrays[key]))

    return FittedMotion(
        arrays["times"], arrays["used"], names("free_names"), arrays["q"], arrays["q_std"],
        names("marker_names"), arrays["markers"], arrays["marker_covariance"],
        (*curves, *names("lumbar_names")), joined(""), joined("_std"),
    )  # fmt: skip


# --- the subject's file -----------------------------------------------------------------------------------


def write_subject_json(
    path: Path, result: FittedSubject, key: Mapping[str, str], files: Sequence[str]
) -> None:
    """Writes what was found of a subject, with what it was made from and the files that belong to it."""
    document: dict[str, Any] = {"format": FORMAT, "inputs": dict(key), **dataclasses.asdict(result)}
    document["trials"] = [trial.action for trial in result.trials]
    del document["resumed"]
    write_json(path, {**document, "files": list(files)})


def read_subject_json(
    path: Path, key: Mapping[str, str], root: Path, trials: Sequence[SimulatedTrial]
) -> FittedSubject | None:
    """What is known of a subject, if it was made with this key and all its files are there."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = document.pop("format") == FORMAT and document.pop("inputs") == key
        there = all((root / file).is_file() for file in document.pop("files"))
        if not (same and there and document.pop("trials") == [trial.action for trial in trials]):
            return None
        kinds = {
            "segments": FittedSegment, "lengths": FittedLength, "markers": FittedMarker,
            "cameras": FittedCamera, "held_out": HeldOutView,
        }  # fmt: skip
        for name, kind in kinds.items():
            document[name] = tuple(kind(**_frozen(row)) for row in document[name])
        lumbar = _frozen(document.pop("lumbar") or {})
        levels = tuple(FittedLevel(**row) for row in lumbar.pop("levels", ()))
        document["lumbar"] = FittedLumbar(**lumbar, levels=levels) if lumbar else None
        return FittedSubject(**_frozen(document), trials=tuple(trials), resumed=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not one of ours: the subject is done anew


def read_sizes(motion: Path) -> tuple[tuple[FittedSegment, ...], tuple[FittedMarker, ...]]:
    """Sizes and offsets of the subject of a trial, from the record beside the trial's NPZ that names it.

    Raises:
        FileFormatError: there is no such record.
    """
    for path in sorted(motion.parent.glob("*.json")):
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            named = motion.name in [Path(file).name for file in document["files"]]
            if document["format"] == FORMAT and named:
                segments = tuple(FittedSegment(**_frozen(row)) for row in document["segments"])
                return segments, tuple(FittedMarker(**_frozen(row)) for row in document["markers"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one of ours
    raise FileFormatError(
        f"No record of a subject beside {motion} names it; valid is a trial's .npz in the folder fit that "
        "'simspine fit' wrote"
    )


def _frozen(row: dict[str, Any]) -> dict[str, Any]:
    """Lists of JSON as the tuples that they were."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return {name: tuples(value) for name, value in row.items()}
