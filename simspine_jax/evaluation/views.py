"""Trials to evaluate: what their positions are compared with, and the 2D keypoints to start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import Quality
from simspine_jax.capture.noise import DetectorNoise, detect, make_noise
from simspine_jax.clip_trials import ClipSet, ClipTrial, world_cameras
from simspine_jax.clips import Clip, pictures_of
from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.geometry.triangulation import MIN_VIEWS
from simspine_jax.metrics.angles import vertebral_angles
from simspine_jax.pipeline import padded_size
from simspine_jax.pipeline.stages import TrialInput, Views

Source2D = Literal["truth", "detected", "zero_shot"]
SOURCES_2D: tuple[Source2D, ...] = get_args(Source2D)
"""Exact pictures of the reference; the dataset's detections; those of a detector not trained for its data."""

Reference = Literal["truth", "annotation"]
"""What a trial's positions are compared with."""

_SECOND = "the second dataset, which has another detector's keypoints"


class LackingError(SimspineError):
    """A trial can't be evaluated, or has no such 2D keypoints; the message says why, without a full stop."""


@dataclass(frozen=True, eq=False)
class ReferenceTrial:
    """A trial and what it is compared with: the truth where a synthetic trial has it, else the annotation.

    Attributes:
        number: of the trial in its set.
        name: of its files.
        clip: all of it.
        reference: which of the two.
        points: ``[T 37 3]`` m, in the ground frame (Y up).
        known: ``[T 37]``; of an annotation, in frames without a fault.
    """

    number: int
    name: str
    clip: Clip
    reference: Reference
    points: NDArray[np.float32]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, clips: ClipSet, number: int) -> ReferenceTrial:
        """Reads a trial.

        Raises:
            FileFormatError: a record is damaged.
        """
        trial = clips.trials[number]
        clip = clips.whole(trial)
        if clip.true_keypoints_3d_mask.any():
            known = clip.true_keypoints_3d_mask
            return cls(number, trial.name, clip, "truth", clip.true_keypoints_3d, known)
        usable = (clip.quality & ~np.int32(Quality.INTERPOLATED)) == 0
        known = clip.keypoints_3d_mask & usable[:, None]
        return cls(number, trial.name, clip, "annotation", clip.keypoints_3d, known)

    @property
    def vertebral_rotations(self) -> NDArray[np.float64]:
        """``[T L 3]`` rad, of the reference, at `VERTEBRAL_LEVELS`; NaN where they are not known."""
        clip = self.clip
        if self.reference == "truth":
            axes = np.where(clip.true_kinematics_mask, clip.true_kinematics, np.nan)
            return np.asarray(vertebral_angles(jnp.asarray(axes)), np.float64)
        there = clip.vertebral_rotations_mask & self.known.any(axis=1, keepdims=True)
        return np.where(there[..., None], clip.vertebral_rotations, np.nan).astype(np.float64)

    @property
    def views(self) -> NDArray[np.int64]:
        """Numbers of the views whose camera is known altogether; its picture's size need not be."""
        about = replace(self.clip.cameras, sizes=np.zeros((len(self.clip.camera_names), 2)))
        finite = [np.isfinite(a).all(axis=tuple(range(1, a.ndim))) for a in jax.tree.leaves(about)]
        return np.flatnonzero(np.logical_and.reduce(finite))

    def check(self) -> None:
        """Refuses a trial that can't be reconstructed, or compared.

        Raises:
            LackingError: it has too few cameras, or no reference.
        """
        if len(self.views) < MIN_VIEWS:
            raise LackingError(
                f"it has {len(self.views)} calibrated cameras, and a point in space needs {MIN_VIEWS}"
            )
        if not self.known.any():
            raise LackingError("there is nothing known that it could be compared with")


def trial_input(trial: ReferenceTrial, source: Source2D, zero_shot: ClipSet | None, seed: int) -> TrialInput:
    """A trial as the pipeline's stages take it, with 2D keypoints of this kind.

    Args:
        trial: one that `ReferenceTrial.check` accepts.
        source: of `SOURCES_2D`. ``zero_shot`` without a second dataset is the truth of a synthetic trial as a
            synthetic detector sees it; equal seeds, subjects, actions and lengths give equal numbers.
        zero_shot: the second dataset.
        seed: of the synthetic detector's errors.

    Raises:
        LackingError: the trial has no such keypoints.
        ShapeError: it has other frames in the second dataset.
    """
    if source == "truth":
        pixels, confidence = _pictures(trial)
    elif source == "detected":
        pixels, confidence = _detections(trial.clip)
    elif zero_shot is not None:
        pixels, confidence = _other_detections(trial, zero_shot)
    else:
        pixels, confidence = _synthetic_detections(trial, seed)
    clip, chosen, precision = trial.clip, trial.views, jnp.zeros(0).dtype
    pixels, confidence = (x[:, chosen].astype(precision) for x in (pixels, confidence))
    if not np.isfinite(pixels).all(axis=-1).any():
        raise LackingError("it has no such keypoints")
    views = Views(_nameless(world_cameras(clip), chosen), pixels, confidence)
    return TrialInput(clip.action, clip.times, float(clip.rate_hz), views, source=clip.source)


def _nameless(cameras: Cameras, chosen: NDArray[np.int64]) -> Cameras:
    """Some of the cameras, by numbers: programs are compiled for names, and serve all rigs this way."""
    unnamed = replace(cameras, names=())
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], unnamed)
    return replace(arrays, names=tuple(f"view {i}" for i in range(len(chosen))))


def _pictures(trial: ReferenceTrial) -> tuple[NDArray, NDArray]:
    """Exact pictures of what is known of the reference, where they are inside, of confidence 1."""
    known = np.where(trial.known[..., None], trial.points, np.float32(np.nan))
    pixels, inside = pictures_of(trial.clip.cameras, known, padded_size(len(known)))
    return np.where(inside[..., None], pixels, np.nan), np.where(inside, 1.0, np.nan)


def _detections(clip: Clip) -> tuple[NDArray, NDArray]:
    found = clip.detections_2d_mask
    pixels = np.where(found[..., None], clip.detections_2d, np.nan)
    return pixels, np.where(found, clip.detections_confidence, np.nan)


def check_second(clips: ClipSet, second: ClipSet) -> None:
    """Refuses a second dataset that lacks a trial of the first, or one of its frames or cameras.

    Raises:
        UnknownNameError: a trial or a camera is not there.
        ShapeError: a trial has another number of frames there.
    """
    for trial in clips.trials:
        other = _partner(trial.subject, trial.action, second)
        if other is None:
            raise UnknownNameError("Trial", trial.name, _SECOND, [t.name for t in second.trials])
        if other.n_frames != trial.n_frames:
            raise ShapeError(
                f"{trial.name} has {other.n_frames} frames in {_SECOND}; valid are {trial.n_frames}, as here"
            )
        for name in trial.cameras.names:
            if name not in other.cameras.names:
                where = f"{trial.name} of {_SECOND}"
                raise UnknownNameError("Camera", name, where, other.cameras.names)
            if not _same_camera(trial.cameras, other.cameras, name):
                raise ShapeError(
                    f"The camera {name} of {trial.name} is another in {_SECOND}; valid is the same "
                    "calibration in both"
                )


def _same_camera(cameras: Cameras, others: Cameras, name: str) -> bool:
    """Whether a camera is the same in both, to the rounding of files."""

    def numbers(of: Cameras) -> list[NDArray]:
        place = of.names.index(name)
        return [np.asarray(leaf)[place] for leaf in jax.tree.leaves(of)]

    each = numbers(cameras), numbers(others)
    return all(np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True) for a, b in zip(*each, strict=True))


def _partner(subject: str, action: str, second: ClipSet) -> ClipTrial | None:
    return next((t for t in second.trials if (t.subject, t.action) == (subject, action)), None)


def _other_detections(trial: ReferenceTrial, second: ClipSet) -> tuple[NDArray, NDArray]:
    """The detections of the same trial there, in the order of the cameras here."""
    clip = trial.clip
    partner = _partner(clip.subject, clip.action, second)
    assert partner is not None  # `check_second` has looked
    other = second.whole(partner)
    if not np.array_equal(clip.frames, other.frames):
        raise ShapeError(f"{trial.name} has other frames in {_SECOND}; valid are the same in both")
    order = [other.camera_names.index(name) for name in clip.camera_names]
    pixels, confidence = _detections(other)
    return pixels[:, order], confidence[:, order]


def _synthetic_detections(trial: ReferenceTrial, seed: int) -> tuple[NDArray, NDArray]:
    """The truth as the detector sees it that was not trained on the data."""
    clip, count = trial.clip, len(trial.points)
    if trial.reference != "truth":
        raise LackingError(
            "it has no truth that a synthetic detector could see, and no second dataset with another "
            "detector's keypoints was given"
        )
    key = jax.random.fold_in(jax.random.key(seed), crc32(f"{clip.subject}/{clip.action}".encode()))
    size = padded_size(count)
    pixels, inside = pictures_of(clip.cameras, trial.points, size)
    # What is padded is in no picture, so that nothing is detected there.
    parts = [np.pad(x, [(0, size - count), *[(0, 0)] * (x.ndim - 1)]) for x in (trial.points, pixels, inside)]
    cameras = _nameless(world_cameras(clip), np.arange(len(clip.camera_names)))
    found = _detect(make_noise(kind="zero_shot"), key, cameras, *map(jnp.asarray, parts), clip.rate_hz)
    return np.asarray(found.keypoints)[:count], np.asarray(found.confidence)[:count]


@jax.jit
def _detect(noise: DetectorNoise, key, cameras: Cameras, points, pixels, inside, rate_hz):
    return detect(noise, key, cameras, yup_to_zup(points), pixels, inside, rate_hz)
