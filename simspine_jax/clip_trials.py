"""Trials out of clips: the inverse of `clips.clips_of`, for clips in any order.

A record holds what training needs of a trial. What it leaves out (residuals, triangulated points, findings)
does not come back: such fields of the trial are None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SYNTHETIC, SpineTrial, file_name
from simspine_jax.clips import CLIP_FIELDS, CURVATURE_NAMES, NO_CAMERA, Clip
from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.io.layout import natural_key
from simspine_jax.io.release import Release, ReleaseTrial

_SHARED = tuple(f.name for f in CLIP_FIELDS if not f.per_frame and f.name != "first_frame")
_PER_FRAME = tuple(f.name for f in CLIP_FIELDS if f.per_frame)


@dataclass(frozen=True, eq=False)
class ClipTrial:
    """Where the clips of a trial lie in a sequence, and what must be known before they are read again.

    Attributes:
        subject: such as ``S1``.
        action: such as ``Walking 1``.
        places: of its clips in the sequence, in the order of their frames.
        n_frames: of all of them.
        cameras: in their Z-up world.
        is_synthetic: whether nobody was recorded for it.
    """

    subject: str
    action: str
    places: tuple[int, ...]
    n_frames: int
    cameras: Cameras
    is_synthetic: bool

    @property
    def name(self) -> str:
        """Of its files; see `annotations.file_name`."""
        return file_name(self.subject, self.action)


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips and the trials that they are of; one trial at a time is in memory.

    Attributes:
        clips: in any order; they are read where they are needed and not kept.
        trials: sorted by subject and action, numbers by size.
    """

    clips: Sequence[Clip]
    trials: tuple[ClipTrial, ...]

    @classmethod
    def of(cls, clips: Sequence[Clip], step: Callable[[], None] | None = None) -> ClipSet:
        """Reads all clips once to see which trials they are of.

        Args:
            clips: in any order.
            step: called after each clip.

        Raises:
            ShapeError: clips of a trial overlap, leave frames out, or differ in what holds for all of it.
        """
        groups: dict[tuple[str, str], list[_Head]] = {}
        for i in range(len(clips)):
            head = _Head.of(i, clips[i])
            groups.setdefault((head.subject, head.action), []).append(head)
            if step is not None:
                step()
        names = sorted(groups, key=lambda name: tuple(map(natural_key, name)))
        return cls(clips, tuple(_trial_of_heads(groups[name]) for name in names))

    def select(self, subjects: Sequence[str] | None = None, actions: Sequence[str] | None = None) -> ClipSet:
        """The trials of these subjects and actions (None for all); ``Walking`` stands for its repetitions.

        Raises:
            UnknownNameError: there is no such subject or action.
            SimspineError: these subjects have none of these actions.
        """
        named = {ReleaseTrial(t.subject, t.action, t.action.replace(" ", "_")): t for t in self.trials}
        chosen = Release(Path("the dataset"), "folder", tuple(named)).select(subjects, actions)
        if not chosen:
            raise SimspineError("The dataset has no trials of these subjects with these actions together")
        return dataclasses.replace(self, trials=tuple(named[trial] for trial in chosen))

    def whole(self, trial: ClipTrial) -> Clip:
        """All of a trial as one clip, as `known_views` has it."""
        return known_views(joined_clip([self.clips[i] for i in trial.places]))


@dataclass(frozen=True, eq=False)
class _Head:
    """What of a clip is kept while others are read."""

    place: int
    subject: str
    action: str
    first: int
    n_frames: int
    cameras: Cameras
    is_synthetic: bool

    @classmethod
    def of(cls, place: int, clip: Clip) -> _Head:
        clip = known_views(clip)
        return cls(
            place, clip.subject, clip.action, int(clip.first_frame), clip.n_frames, world_cameras(clip),
            bool(clip.is_synthetic),
        )  # fmt: skip


def _trial_of_heads(heads: Iterable[_Head]) -> ClipTrial:
    heads = sorted(heads, key=lambda head: head.first)
    end = 0
    for head in heads:
        _check_follows(head.subject, head.action, head.first, end)
        end = head.first + head.n_frames
    first = heads[0]
    places = tuple(head.place for head in heads)
    return ClipTrial(first.subject, first.action, places, end, first.cameras, first.is_synthetic)


def _check_follows(subject: str, action: str, first: int, end: int) -> None:
    if first != end:
        raise ShapeError(
            f"A clip of {subject}, {action} begins at frame {first}; valid is {end}, for clips of a trial "
            "follow on one another from its first frame"
        )


def joined_clip(parts: Sequence[Clip]) -> Clip:
    """Clips of one trial, in the order of their frames, as one of whatever length.

    Raises:
        ShapeError: there are none, they don't follow on one another, or they differ in what holds for all.
    """
    if not parts:
        raise ShapeError("There are no clips to join; valid is at least one")
    first, end = parts[0], parts[0].first_frame
    for part in parts:
        for name in _SHARED:
            if not _same(getattr(part, name), getattr(first, name)):
                raise ShapeError(
                    f"Clips of {first.subject}, {first.action} differ in {name}; valid is one for all of them"
                )
        _check_follows(part.subject, part.action, int(part.first_frame), int(end))
        end = part.first_frame + part.n_frames
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_FRAME}
    return dataclasses.replace(first, **arrays)


def _same(one: object, other: object) -> bool:
    """Equal, missing numbers too."""
    first, second = np.asarray(one), np.asarray(other)
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


_PER_VIEW = tuple(f for f in CLIP_FIELDS if "V" in f.shape and f.kind != "text")


def known_views(clip: Clip) -> Clip:
    """The clip without its view if that is `clips.NO_CAMERA`, which only fills a place in files."""
    if clip.camera_names != (NO_CAMERA,):
        return clip
    empty = {f.name: np.take(getattr(clip, f.name), [], axis=f.shape.index("V")) for f in _PER_VIEW}
    return dataclasses.replace(clip, camera_names=(), **empty)


def world_cameras(clip: Clip) -> Cameras:
    """The cameras of a clip in the Z-up world in which the clip's keypoints are, turned back.

    The turn exchanges axes, so that `clips.cameras_in_ground` of the result gives the same numbers to the
    last bit.
    """
    cameras = clip.cameras
    return dataclasses.replace(cameras, rotations=np.asarray(cameras.rotations) @ R_yup_zup)


def trial_of(clip: Clip) -> SpineTrial:
    """The annotation of a clip, float64; a field of which nothing is known is None.

    Its source begins as that of a synthetic trial if the clip is one.
    """
    source = clip.source
    if clip.is_synthetic and not source.startswith(SYNTHETIC):
        source = f"{SYNTHETIC[0]}{source}"
    curvature = _known(clip.curvature, clip.curvature_mask)
    columns = {} if curvature is None else dict(zip(CURVATURE_NAMES, curvature.T, strict=True))
    return SpineTrial(
        clip.subject,
        clip.action,
        clip.times,
        float(clip.rate_hz),
        _masked(clip.keypoints_3d, clip.keypoints_3d_mask),
        _masked(clip.kinematics, clip.kinematics_mask),
        clip.quality.astype(np.uint16),
        camera_names=clip.camera_names,
        detections=_known(clip.detections_2d, clip.detections_2d_mask),
        detection_confidence=_known(clip.detections_confidence, clip.detections_2d_mask),
        vertebral_rotations=_known(clip.vertebral_rotations, clip.vertebral_rotations_mask),
        **{name: column for name, column in columns.items() if np.isfinite(column).any()},
        source=source,
    )


def truth_of(clip: Clip) -> SpineTrial | None:
    """The truth of a synthetic clip as a trial; None where nothing of it is known."""
    keypoints = _known(clip.true_keypoints_3d, clip.true_keypoints_3d_mask)
    coordinates = _known(clip.true_kinematics, clip.true_kinematics_mask)
    if keypoints is None and coordinates is None:
        return None
    curvature = _known(clip.true_curvature, clip.true_curvature_mask)
    missing: Mapping[str, NDArray[np.float64]] = {
        "keypoints": np.full(clip.keypoints_3d.shape, np.nan),
        "coordinates": np.full(clip.kinematics.shape, np.nan),
    }
    return SpineTrial(
        clip.subject,
        clip.action,
        clip.times,
        float(clip.rate_hz),
        missing["keypoints"] if keypoints is None else keypoints,
        missing["coordinates"] if coordinates is None else coordinates,
        np.zeros(clip.n_frames, np.uint16),
        lordosis=None if curvature is None else curvature[:, 0],
        kyphosis=None if curvature is None else curvature[:, 1],
        source=f"{SYNTHETIC[1]}{clip.subject}, {clip.action}",
    )


def _masked(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    known = mask[..., None] if mask.ndim < values.ndim else mask
    return np.where(known, values, np.nan).astype(np.float64)


def _known(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    return _masked(values, mask) if mask.any() else None


def iterate_trials(clips: ClipSet, step: Callable[[], None] | None = None) -> Iterator[Clip]:
    """Each trial as one clip, one after the other; ``step`` is called when one is done with."""
    for trial in clips.trials:
        yield clips.whole(trial)
        if step is not None:
            step()
