"""What training needs of clips: frames of single views and windows of them, with masks.

`Samples` hold the frames of all clips and views once, those of a clip's view one after another. A sample is a
row of them or, for temporal models, a range of rows, so that overlapping windows copy nothing.
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

Source = Literal["truth", "detected"]
Target = Literal["annotation", "truth"]
Numbers = Array | np.ndarray

_CAMERA_FIELDS = tuple(f.name for f in fields(Cameras) if not f.metadata and f.name != "distortion_model")
_ABOUT = (
    "subject", "action", "first_frame", "rate_hz", "times", "quality", "camera_names",
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
        keypoints_3d: in the camera's frame (x right, y down, z forward), m.
        keypoints_3d_mask: of them.
        kinematics: in the order of `skeleton.AXIS_NAMES`, rad and m, in the ground frame.
        kinematics_mask: of them.
        camera: row of `Samples.cameras`.
        subject: row of `Samples.subjects`.
        action: row of `Samples.actions`.
        clip: number of the clip in its sequence.
        frame: number of the frame in its trial.
        valid: whether the frame is there and of accepted quality; where not, all masks are False.
        keypoint_names: the K keypoints.
    """

    keypoints_2d: Float[Numbers, "*batch K 2"]
    keypoints_2d_mask: Bool[Numbers, "*batch K"]
    confidence: Float[Numbers, "*batch K"]
    keypoints_3d: Float[Numbers, "*batch K 3"]
    keypoints_3d_mask: Bool[Numbers, "*batch K"]
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

    @property
    def root_relative_mask(self) -> Bool[Numbers, "*batch K"]:
        """Where ``root_relative`` is known."""
        return self.keypoints_3d_mask & self.keypoints_3d_mask[..., self.root : self.root + 1]

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
        frames: of all clips and views; a clip's view lies in a row.
        start: row of each sample, or of a window's first frame, which may lie before the clip.
        first: row of the first frame of its clip and view.
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

        In a window's padding the clip's edge is repeated and all masks are False. Works under ``jax.jit``;
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
        rate_hz: frames per second of each trial, counted from its first frame; None for all. The paper's
            lifter is trained at 1 Hz.
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
    parts = _Parts(keypoints, source, target, accept)
    for number, clip in enumerate(clips.stream(parts.fields)):
        picked = _at_rate(clip, rate_hz)
        parts.add(number, {name: v[picked] if name in _PER_FRAME else v for name, v in clip.items()}, picked)
    frames = parts.frames()
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

    No window leaves its clip: what would lie outside is padding, and so are frames with other faults than
    ``accept``. Windows without any frame that is known in 2D and in 3D are left out.

    Args:
        clips: to take them from.
        length: frames of a window, such as 27 or 243.
        stride: frames from one window to the next; ``length`` for windows that don't overlap.
        centred: whether windows have frames 0, ``stride``, … of the clip in their middle, and padding at both
            ends; else they begin there.
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
    parts = _Parts(keypoints, source, target, accept)
    for number, clip in enumerate(clips.stream(parts.fields)):
        parts.add(number, clip, np.arange(len(clip["times"])))
    frames = parts.frames()
    count = np.concatenate([[0], np.cumsum(_known(frames))])
    edges = parts.edges()
    starts = [np.arange(low, high + 1, stride) - (length // 2 if centred else 0) for low, high in edges]
    first, last = np.repeat(edges, [len(s) for s in starts], axis=0).T.astype(np.int32)
    start = np.concatenate(starts).astype(np.int32)
    known = count[np.minimum(start + length - 1, last) + 1] > count[np.maximum(start, first)]
    return parts.samples(frames, start[known], first[known], last[known], length)


def _known(frames: Frames) -> NDArray[np.bool_]:
    """Frames with something known in 2D and in 3D."""
    return np.asarray(frames.keypoints_2d_mask.any(axis=-1) & frames.keypoints_3d_mask.any(axis=-1))


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


def _at_rate(clip: Mapping[str, Any], rate_hz: float | None) -> NDArray[np.int64]:
    """Frames of a clip nearest to multiples of ``1 / rate_hz`` of its trial."""
    count, first, own = len(clip["times"]), clip["first_frame"], clip["rate_hz"]
    if rate_hz is None:
        return np.arange(count)
    if not 0 < rate_hz <= own * (1 + ROUNDED):
        raise ShapeError(
            f"{rate_hz:g} frames per second can't be taken of {clip['subject']}, {clip['action']}; "
            f"valid is more than 0 and at most its {own:g}"
        )
    step = max(own / rate_hz, 1.0)
    wanted = np.rint(np.arange(int(first / step), int((first + count) / step) + 2) * step).astype(np.int64)
    return wanted[(wanted >= first) & (wanted < first + count)] - first


_TARGETS: Mapping[str, tuple[str, str]] = {
    "annotation": ("keypoints_3d", "kinematics"),
    "truth": ("true_keypoints_3d", "true_kinematics"),
}
_PICTURES = ("keypoints_2d", "keypoints_2d_mask")
_DETECTIONS = ("detections_2d", "detections_2d_mask", "detections_confidence")
_PER_FRAME = frozenset(
    (
        "times", "quality", *_PICTURES, *_DETECTIONS,
        *(name + end for names in _TARGETS.values() for name in names for end in ("", "_mask")),
    )
)  # fmt: skip


class _Parts:
    """Frames of clip after clip, on their way to `Samples`."""

    def __init__(self, keypoints: Sequence[str], source: Source, target: Target, accept: Quality) -> None:
        self.names = tuple(keypoints)
        self._ids = _ids_of(self.names)
        self._source, self._target, self._accept = source, target, accept
        for what, value, valid in (("Source", source, ("truth", "detected")), ("Target", target, _TARGETS)):
            if value not in valid:
                raise UnknownNameError(what, value, "the choices", valid)
        self._arrays: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._lengths: list[int] = []
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

    def add(self, number: int, clip: Mapping[str, Any], frame: NDArray[np.int64]) -> None:
        """Frames of a clip; ``frame`` are their numbers in it."""
        count, n_views = len(frame), len(clip["camera_names"])
        if not count * n_views:
            return
        self._lengths += [count] * n_views
        points, kinematics = _TARGETS[self._target]
        local = np.einsum("vij,tkj->vtki", clip["camera_rotations"], clip[points][:, self._ids])
        local += clip["camera_translations"][:, None, None]
        found = self._pictures(clip)
        found |= {
            "keypoints_3d": local.astype(np.float32),
            "keypoints_3d_mask": clip[f"{points}_mask"][:, self._ids] & np.isfinite(local).all(axis=-1),
            "kinematics": _each(clip[kinematics], n_views),
            "kinematics_mask": _each(clip[f"{kinematics}_mask"], n_views),
            "valid": _each((clip["quality"] & ~np.int32(self._accept)) == 0, n_views),
            "frame": _each((clip["first_frame"] + frame).astype(np.int32), n_views),
            "camera": np.repeat(self._camera_rows(clip), count).reshape(n_views, count),
        }
        numbers = {
            "clip": number,
            "subject": self._subjects.setdefault(clip["subject"], len(self._subjects)),
            "action": self._actions.setdefault(clip["action"], len(self._actions)),
        }
        found |= {name: np.full((n_views, count), value, np.int32) for name, value in numbers.items()}
        for name, array in found.items():
            self._arrays[name].append(array.reshape(n_views * count, *array.shape[2:]))

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

    def frames(self) -> Frames:
        """All that was added; the parts are given up one by one, so that memory holds them once."""
        if not self._lengths:
            raise ShapeError("No clip has a frame in a camera's view; valid are clips with cameras")
        joined = {name: np.concatenate(self._arrays.pop(name)) for name in tuple(self._arrays)}
        return Frames(**joined, keypoint_names=self.names).within(joined["valid"])

    def edges(self) -> NDArray[np.int64]:
        """[n 2] first and last row of each clip and view."""
        ends = np.cumsum(self._lengths)
        return np.stack([ends - np.array(self._lengths), ends - 1], axis=-1)

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


def _each(values: NDArray[Any], n_views: int) -> NDArray[Any]:
    """[T …] once a view."""
    return np.broadcast_to(values, (n_views, *values.shape))


def _cameras_of(clip: Mapping[str, Any]) -> Cameras:
    arrays = {name: clip[f"camera_{name}"] for name in _CAMERA_FIELDS}
    return Cameras(**arrays, names=clip["camera_names"], distortion_model=clip["camera_distortion_model"])
