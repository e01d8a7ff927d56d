"""What training needs of clips: frames of single views and windows of them, with masks.

`Samples` hold the frames of all clips and views once, those of a trial's view one after another, in whatever
records and order they came. A sample is a row of them or, for temporal models, a range of rows, so that
overlapping windows copy nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import Quality
from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.clips import pictures_of
from simspine_jax.datasets.sequences import ClipSequence
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras, DistortionModel, normalised_from_pixels, undistort
from simspine_jax.skeleton import KEYPOINT_NAMES, KEYPOINTS

ROOT = next(keypoint.name for keypoint in KEYPOINTS if not keypoint.parent)
"""The keypoint that the others' positions are relative to."""

ROUNDED = 1e-6
"""Clips have their rate in float32, so that 29.97 frames per second are a little less."""

ON_TIME = 1e-3
"""So many periods before one begins, a frame counts as its own: times may have been stored in float32."""

Source = Literal["truth", "detected"]
Target = Literal["annotation", "truth"]
Numbers = Array | np.ndarray

_CAMERA_FIELDS = tuple(f.name for f in fields(Cameras) if not f.metadata and f.name != "distortion_model")
_ABOUT = (
    "subject", "action", "source", "rate_hz", "times", "frames", "quality", "camera_names",
    "camera_distortion_model", *(f"camera_{name}" for name in _CAMERA_FIELDS),
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Frames:
    """Frames, each seen by one camera. Masks are True where something is known; what is masked is not to be
    used: NaN, outside of the picture, or a frame's that isn't valid.

    Attributes:
        keypoints_2d: px.
        keypoints_2d_mask: known and, for pictures of the target, inside the picture.
        confidence: the detector's, 0 to 1; 1 for pictures of the target; NaN where there is no keypoint.
        keypoints_3d: in the camera's frame (x right, y down, z forward), m. Of cameras that are turned in a
            known way but stand at an unknown place: along the camera's axes from the ground's origin, masked.
        keypoints_3d_mask: of them.
        root_relative_mask: where ``root_relative`` is known, which needs no camera's place.
        kinematics: in the order of `skeleton.AXIS_NAMES`, rad and m, in the ground frame.
        kinematics_mask: of them.
        camera: row of `Samples.cameras`.
        subject: row of `Samples.subjects`.
        action: row of `Samples.actions`.
        clip: number of the clip in its sequence; a window may lie in several clips of a trial.
        frame: number of the frame in its trial, as the clip's ``frames`` count.
        valid: whether the frame is there and of accepted quality; where not, all masks are False.
        keypoint_names: the K keypoints.
    """

    keypoints_2d: Float[Numbers, "*batch K 2"]
    keypoints_2d_mask: Bool[Numbers, "*batch K"]
    confidence: Float[Numbers, "*batch K"]
    keypoints_3d: Float[Numbers, "*batch K 3"]
    keypoints_3d_mask: Bool[Numbers, "*batch K"]
    root_relative_mask: Bool[Numbers, "*batch K"]
    kinematics: Float[Numbers, "*batch C"]
    kinematics_mask: Bool[Numbers, "*batch C"]
    camera: Int[Numbers, "*batch"]
    subject: Int[Numbers, "*batch"]
    action: Int[Numbers, "*batch"]
    clip: Int[Numbers, "*batch"]
    frame: Int[Numbers, "*batch"]
    valid: Bool[Numbers, "*batch"]
    keypoint_names: tuple[str, ...] = field(metadata={"static": True})

    @property
    def root(self) -> int:
        """Which of the keypoints is the root."""
        return self.keypoint_names.index(ROOT)

    @property
    def root_relative(self) -> Float[Numbers, "*batch K 3"]:
        """``keypoints_3d`` less the root's, along the camera's axes, m; NaN where the root is not known."""
        return self.keypoints_3d - self.keypoints_3d[..., self.root : self.root + 1, :]

    def within(self, valid: Bool[Numbers, "*batch"]) -> Frames:
        """The same, with frames that aren't ``valid`` masked; their values stay."""
        valid = self.valid & valid
        masks = (f.name for f in fields(self) if f.name.endswith("_mask"))
        return replace(self, valid=valid, **{name: getattr(self, name) & valid[..., None] for name in masks})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Samples:
    """N samples: single frames, or windows of ``length`` frames. `take` gives them by number.

    Attributes:
        frames: of all clips and views; a trial's view lies in a row.
        start: row of each sample, or of a window's first frame, which may lie before the trial.
        first: row of the first frame of its view and trial, or of a part of a trial without gaps.
        last: likewise of the last one.
        cameras: each once, in the ground frame (Y up); named ``S1/54138969``, by subject and camera.
        subjects: that `Frames.subject` counts.
        actions: that `Frames.action` counts.
        length: of the windows; None for single frames.
    """

    frames: Frames
    start: Int[Numbers, " N"]
    first: Int[Numbers, " N"]
    last: Int[Numbers, " N"]
    cameras: Cameras
    subjects: tuple[str, ...] = field(metadata={"static": True})
    actions: tuple[str, ...] = field(metadata={"static": True})
    length: int | None = field(default=None, metadata={"static": True})

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: Int[Numbers, "*batch"]) -> Frames:
        """Samples by number: frames of shape [*batch], or [*batch length] for windows.

        In a window's padding the trial's edge is repeated and all masks are False. Works under ``jax.jit``;
        samples in NumPy's arrays taken by NumPy's numbers stay in NumPy.
        """
        start = self.start[index]
        if self.length is None:
            return jax.tree.map(lambda leaf: leaf[start], self.frames)
        steps = start[..., None] + np.arange(self.length, dtype=np.int32)
        xp = np if isinstance(steps, np.ndarray) else jnp
        rows = xp.clip(steps, self.first[index][..., None], self.last[index][..., None])
        return jax.tree.map(lambda leaf: leaf[rows], self.frames).within(rows == steps)


def frame_samples(
    clips: ClipSequence,
    *,
    rate_hz: float | None = 1.0,
    keypoints: Sequence[str] = KEYPOINT_NAMES,
    source: Source = "truth",
    target: Target = "annotation",
    accept: Quality = Quality.INTERPOLATED,
) -> Samples:
    """One sample for each frame and view, as single-frame lifters take them.

    Frames with other faults than ``accept`` are left out, and so are views without any known keypoint in 2D
    or in 3D.

    Args:
        clips: to take them from.
        rate_hz: frames per second of each trial: the first one there of each period since the trial began,
            whatever lacks between them; None for all. The paper's lifter is trained at 1 Hz.
        keypoints: which, in which order; `skeleton.REDUCED_NAMES` are the paper's fifteen of the spine.
        source: of the 2D keypoints: ``detected`` by the dataset's detector, or ``truth``, the target's
            pictures.
        target: the dataset's ``annotation``, or the ``truth`` that only synthetic trials have.
        accept: faults that a frame may have.

    Raises:
        UnknownNameError: there is no such keypoint.
        ShapeError: the root is not among the keypoints, one comes twice, a clip has fewer frames per
            second, the clips have lenses of two models, or nothing is left.
    """
    parts = _Parts(keypoints, source, target, accept, rate_hz)
    for number, clip in enumerate(clips.stream(parts.fields)):
        parts.add(number, clip)
    frames, _ = parts.laid_out()
    rows = np.flatnonzero(_known(frames)).astype(np.int32)
    return parts.samples(frames, rows, rows, rows, None)


def window_samples(
    clips: ClipSequence,
    length: int,
    *,
    stride: int,
    centred: bool = False,
    keypoints: Sequence[str] = KEYPOINT_NAMES,
    source: Source = "truth",
    target: Target = "annotation",
    accept: Quality = Quality.INTERPOLATED,
) -> Samples:
    """Windows of ``length`` frames of one view at the clips' own rate, as temporal models take them.

    The clips of a trial (of one subject, action, source and set of cameras) that follow on one another are
    joined, so that records and their order don't matter. No window leaves its trial or crosses a gap in it:
    what would lie outside is padding, and so are frames with other faults than ``accept``. Windows without
    any frame that is known in 2D and in 3D are left out. The default dataset's trials have 240 frames, so
    that windows of 243 always hold padding there.

    Args:
        clips: to take them from.
        length: frames of a window, such as 27 or 243.
        stride: frames from one window to the next; ``length`` for windows that don't overlap.
        centred: whether windows have frames 0, ``stride``, … of the trial in their middle, and padding at
            both ends; else they begin there.
        keypoints: as in `frame_samples`.
        source: likewise.
        target: likewise.
        accept: likewise.

    Raises:
        UnknownNameError: as in `frame_samples`.
        ShapeError: likewise, or the length or the stride is below one.
    """
    if min(length, stride) < 1:
        raise ShapeError(
            f"Windows of {length} frames every {stride} can't be made; valid is 1 or more of both"
        )
    parts = _Parts(keypoints, source, target, accept, None)
    for number, clip in enumerate(clips.stream(parts.fields)):
        parts.add(number, clip)
    frames, edges = parts.laid_out()
    count = np.concatenate([[0], np.cumsum(_known(frames))])
    starts = [np.arange(low, high + 1, stride) - (length // 2 if centred else 0) for low, high in edges]
    first, last = np.repeat(edges, [len(s) for s in starts], axis=0).T.astype(np.int32)
    start = np.concatenate(starts).astype(np.int32)
    known = count[np.minimum(start + length - 1, last) + 1] > count[np.maximum(start, first)]
    return parts.samples(frames, start[known], first[known], last[known], length)


def _known(frames: Frames) -> NDArray[np.bool_]:
    """Frames with something known in 2D and in 3D."""
    solid = (frames.keypoints_3d_mask | frames.root_relative_mask).any(axis=-1)
    return np.asarray(frames.keypoints_2d_mask.any(axis=-1) & solid)


@jax.jit
def rays_of(frames: Frames, cameras: Cameras) -> Float[Array, "*batch K 2"]:
    """Where ``keypoints_2d`` lie on the plane one metre in front of their camera, lens distortion taken off.

    Args:
        frames: of `Samples.take`.
        cameras: of the same samples.
    """
    # One camera a frame: what the camera's functions call views are frames here.
    rows = frames.camera.reshape(-1)
    flat = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], cameras)
    shape = frames.keypoints_2d.shape
    pixels = jnp.moveaxis(jnp.asarray(frames.keypoints_2d).reshape(-1, *shape[-2:]), 1, 0)
    return jnp.moveaxis(undistort(flat, normalised_from_pixels(flat, pixels)), 0, 1).reshape(shape)


def _periods(clip: Mapping[str, Any], rate_hz: float | None) -> NDArray[np.int64] | None:
    """Which period of ``1 / rate_hz`` of its trial each frame of a clip is in; None: each in its own.

    A period begins half a frame early, so that its first frame is the one nearest to its beginning.
    """
    own = clip["rate_hz"]
    if rate_hz is None:
        return None
    if not 0 < rate_hz <= own * (1 + ROUNDED):
        raise ShapeError(
            f"{rate_hz:g} frames per second can't be taken of {clip['subject']}, {clip['action']}; "
            f"valid is more than 0 and at most its {own:g}"
        )
    if rate_hz >= own * (1 - ROUNDED):
        return None
    return np.floor((clip["times"] + 0.5 / own) * rate_hz + ON_TIME).astype(np.int64)


_TARGETS: Mapping[str, tuple[str, str]] = {
    "annotation": ("keypoints_3d", "kinematics"),
    "truth": ("true_keypoints_3d", "true_kinematics"),
}
_PICTURES = ("keypoints_2d", "keypoints_2d_mask")
_DETECTIONS = ("detections_2d", "detections_2d_mask", "detections_confidence")
_PER_FRAME = frozenset(
    (
        "times", "frames", "quality", *_PICTURES, *_DETECTIONS,
        *(name + end for names in _TARGETS.values() for name in names for end in ("", "_mask")),
    )
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """What places a clip's frames among those of others.

    Attributes:
        trial: what clips have in common that may be joined.
        frames: their numbers in the trial, rising.
        periods: of `_periods`.
        n_views: of the clip.
    """

    trial: tuple[Any, ...]
    frames: NDArray[np.int32]
    periods: NDArray[np.int64] | None
    n_views: int


class _Parts:
    """Frames of clip after clip, on their way to `Samples`."""

    def __init__(
        self,
        keypoints: Sequence[str],
        source: Source,
        target: Target,
        accept: Quality,
        rate_hz: float | None,
    ) -> None:
        self.names = tuple(keypoints)
        self._ids = _ids_of(self.names)
        self._source, self._target, self._accept, self._rate_hz = source, target, accept, rate_hz
        for what, value, valid in (("Source", source, ("truth", "detected")), ("Target", target, _TARGETS)):
            if value not in valid:
                raise UnknownNameError(what, value, "the choices", valid)
        self._arrays: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._parts: list[_Part] = []
        self._subjects: dict[str, int] = {}
        self._actions: dict[str, int] = {}
        self._cameras: dict[Any, int] = {}
        self._camera_arrays: list[list[NDArray[np.float64]]] = []
        self._model: DistortionModel | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a clip, that `add` needs."""
        about = [name + end for name in _TARGETS[self._target] for end in ("", "_mask")]
        pictures = _PICTURES if self._target == "annotation" else ()
        return (*_ABOUT, *about, *(_DETECTIONS if self._source == "detected" else pictures))

    def add(self, number: int, clip: Mapping[str, Any]) -> None:
        """Frames of a clip."""
        periods = _periods(clip, self._rate_hz)
        if periods is not None:
            # The trial's other clips may have earlier frames of these periods: `_kept` looks again.
            periods, picked = np.unique(periods, return_index=True)
            clip = {name: v[picked] if name in _PER_FRAME else v for name, v in clip.items()}
        count, n_views = len(clip["frames"]), len(clip["camera_names"])
        if not count * n_views:
            return
        cameras, kinematics = self._camera_rows(clip), _TARGETS[self._target][1]
        trial = (clip["subject"], clip["action"], clip["source"], clip["rate_hz"], *cameras.tolist())
        self._parts.append(_Part(trial, np.asarray(clip["frames"]), periods, n_views))
        found = self._pictures(clip) | self._points(clip)
        found |= {
            "kinematics": _each(clip[kinematics], n_views),
            "kinematics_mask": _each(clip[f"{kinematics}_mask"], n_views),
            "valid": _each((clip["quality"] & ~np.int32(self._accept)) == 0, n_views),
            "frame": _each(np.asarray(clip["frames"], np.int32), n_views),
            "camera": np.repeat(cameras, count).reshape(n_views, count),
        }
        numbers = {
            "clip": number,
            "subject": self._subjects.setdefault(clip["subject"], len(self._subjects)),
            "action": self._actions.setdefault(clip["action"], len(self._actions)),
        }
        found |= {name: np.full((n_views, count), value, np.int32) for name, value in numbers.items()}
        for name, array in found.items():
            self._arrays[name].append(array)

    def _points(self, clip: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The 3D keypoints along the axes of each camera, [V T K …]."""
        name, root = _TARGETS[self._target][0], self.names.index(ROOT)
        turned = np.einsum("vij,tkj->vtki", clip["camera_rotations"], clip[name][:, self._ids])
        known = clip[f"{name}_mask"][:, self._ids] & np.isfinite(turned).all(axis=-1)
        offset = np.asarray(clip["camera_translations"])
        stands = np.asarray(np.isfinite(offset).all(axis=-1))[:, None, None]
        local = turned + np.where(stands[..., None], offset[:, None, None], 0)
        return {
            "keypoints_3d": local.astype(np.float32),
            "keypoints_3d_mask": known & stands,
            "root_relative_mask": known & known[..., root : root + 1],
        }

    def _pictures(self, clip: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The 2D keypoints, [V T K …]."""
        if self._source == "detected":
            pixels, mask, confidence = (
                np.swapaxes(clip[name], 0, 1)[:, :, self._ids] for name in _DETECTIONS
            )
        else:
            both = (clip[name] for name in _PICTURES)
            if self._target == "truth":
                both = pictures_of(_cameras_of(clip), clip["true_keypoints_3d"])
            pixels, mask = (np.swapaxes(values, 0, 1)[:, :, self._ids] for values in both)
            confidence = np.where(np.isfinite(pixels).all(axis=-1), np.float32(1), np.float32(np.nan))
        return {"keypoints_2d": pixels, "keypoints_2d_mask": mask, "confidence": confidence}

    def _camera_rows(self, clip: Mapping[str, Any]) -> NDArray[np.int32]:
        """Of each view in the table of cameras, which grows by those not seen before."""
        model = clip["camera_distortion_model"]
        self._model = self._model or model
        if model != self._model:
            raise ShapeError(
                f"Clips of the lens models '{self._model}' and '{model}' can't be samples of one set; "
                "valid are clips of one"
            )
        rows = []
        for view, name in enumerate(clip["camera_names"]):
            arrays = [np.asarray(clip[f"camera_{of}"][view], np.float64) for of in _CAMERA_FIELDS]
            key = (f"{clip['subject']}/{name}", *(array.tobytes() for array in arrays))
            if key not in self._cameras:
                self._cameras[key] = len(self._cameras)
                self._camera_arrays.append(arrays)
            rows.append(self._cameras[key])
        return np.array(rows, np.int32)

    def laid_out(self) -> tuple[Frames, NDArray[np.int64]]:
        """All frames, trial by trial and view by view; and [n 2], the first and last row of each run of them.

        A run is what one camera sees of a trial, or of a part of it without gaps. The parts are given up one
        by one, so that memory holds them once.
        """
        if not self._parts:
            raise ShapeError("No clip has a frame in a camera's view; valid are clips with cameras")
        pieces: list[tuple[int, int, slice | NDArray[np.bool_]]] = []
        lengths: list[int] = []
        for lane in self._lanes():
            kept, numbers = self._kept(lane)
            runs = _run_lengths(numbers)
            for view in range(self._parts[lane[0]].n_views):
                pieces += [(part, view, kept[part]) for part in lane]
                lengths += runs
        joined = {}
        for name in tuple(self._arrays):
            arrays = self._arrays.pop(name)
            joined[name] = np.concatenate([arrays[part][view][rows] for part, view, rows in pieces])
        ends = np.cumsum(lengths)
        frames = Frames(**joined, keypoint_names=self.names).within(joined["valid"])
        return frames, np.stack([ends - np.array(lengths), ends - 1], axis=-1)

    def _lanes(self) -> list[list[int]]:
        """Parts of each trial in the order of its frames; one that is there twice has a lane for each."""
        trials: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number, part in enumerate(self._parts):
            trials[part.trial].append(number)
        found: list[list[int]] = []
        for numbers in trials.values():
            lanes: list[list[int]] = []
            for number in sorted(numbers, key=lambda n: self._parts[n].frames[0]):
                first = self._parts[number].frames[0]
                before = [lane for lane in lanes if self._parts[lane[-1]].frames[-1] < first]
                if before:
                    max(before, key=lambda lane: self._parts[lane[-1]].frames[-1]).append(number)
                else:
                    lanes.append([number])
            found += lanes
        return found

    def _kept(self, lane: list[int]) -> tuple[dict[int, slice | NDArray[np.bool_]], NDArray[np.int32]]:
        """Which frames of each part stay, the first of each period; and the numbers of all that do."""
        kept: dict[int, slice | NDArray[np.bool_]] = {number: slice(None) for number in lane}
        latest: int | None = None
        for number in lane:
            periods = self._parts[number].periods
            if periods is not None:
                kept[number] = periods > latest if latest is not None else np.ones(len(periods), bool)
                latest = max(periods[-1], periods[-1] if latest is None else latest)
        return kept, np.concatenate([self._parts[number].frames[kept[number]] for number in lane])

    def samples(
        self,
        frames: Frames,
        start: NDArray[np.int32],
        first: NDArray[np.int32],
        last: NDArray[np.int32],
        length: int | None,
    ) -> Samples:
        """Samples of these frames."""
        if not len(start):
            raise ShapeError(
                f"No sample is left whose keypoints are known in 2D ({self._source}) and 3D ({self._target}) "
                "in a frame of accepted quality; valid are clips that have some"
            )
        arrays = {
            name: np.stack(of)
            for name, of in zip(_CAMERA_FIELDS, zip(*self._camera_arrays, strict=True), strict=True)
        }
        names = tuple(key[0] for key in self._cameras)
        cameras = Cameras(**arrays, names=names, distortion_model=self._model or "opencv")
        return Samples(
            frames, start, first, last, cameras, tuple(self._subjects), tuple(self._actions), length
        )


def _ids_of(names: tuple[str, ...]) -> NDArray[np.int64]:
    for name in names:
        if name not in KEYPOINT_NAMES:
            raise UnknownNameError("Keypoint", name, "the vocabulary", KEYPOINT_NAMES)
    if ROOT not in names or len(set(names)) < len(names):
        raise ShapeError(f"The keypoints {', '.join(names)} can't be used; valid is each once, with {ROOT}")
    return np.array([KEYPOINT_NAMES.index(name) for name in names])


def _run_lengths(numbers: NDArray[np.int32]) -> list[int]:
    """Lengths of the runs of frames without gaps; the least step between two frames of a trial is none."""
    steps = np.diff(numbers)
    ends = np.flatnonzero(steps > steps.min(initial=np.iinfo(np.int32).max)) + 1
    return np.diff(np.concatenate([[0], ends, [len(numbers)]])).tolist()


def _each(values: NDArray[Any], n_views: int) -> NDArray[Any]:
    """[T …] once a view."""
    return np.broadcast_to(values, (n_views, *values.shape))


def _cameras_of(clip: Mapping[str, Any]) -> Cameras:
    arrays = {name: clip[f"camera_{name}"] for name in _CAMERA_FIELDS}
    return Cameras(**arrays, names=clip["camera_names"], distortion_model=clip["camera_distortion_model"])
