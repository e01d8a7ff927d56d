"""One trial of spine annotations: what a simulation makes, the release holds and a dataset is built from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError
from simspine_jax.skeleton import AXIS_NAMES, N_KEYPOINTS

N_LEVELS = 7
"""Joints of the spine of which rotations are told, from L5-S1 up; see `kinematics.curvature`."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
"""What a subject or an action may be called."""


def file_name(subject: str, action: str) -> str:
    """Name of a trial's files without suffix, as the release has it: ``S1_Walking_1``."""
    return f"{subject}_{action}".replace(" ", "_")


class Quality(IntFlag):
    """What is wrong with a frame; 0 for a good one. Written as these numbers, so they never change."""

    GOOD = 0
    NO_POSE = 1
    """Too few markers, or the solve failed."""
    MARKER_RESIDUAL = 2
    """The model does not come near its markers."""
    CURVATURE = 4
    """Lordosis or kyphosis that no healthy adult has."""
    JOINT_LIMITS = 8
    """Many coordinates lie at their bounds."""
    ANGULAR_JUMP = 16
    """A coordinate changes faster than a person can move."""
    INTERPOLATED = 32
    """Repaired: the frame was missing or rejected and lies in a short gap between good ones. Not a fault."""

    @property
    def usable(self) -> bool:
        """Whether nothing but a repair is noted."""
        return not self & ~Quality.INTERPOLATED


Outcome = Literal["rejected", "repaired", "dropped", "noted"]


@dataclass(frozen=True)
class QualityEvent:
    """One finding over a run of frames; a row of the quality table.

    Attributes:
        stage: where it was found: ``detections``, ``triangulation``, ``signal``, ``scaling``, ``ik``,
            ``quality``.
        first_frame: of the run.
        last_frame: of the run, included.
        what: keypoint, marker, coordinate, camera or measure concerned; empty for the whole frame.
        reason: in plain words.
        outcome: ``rejected`` frames are flagged, ``repaired`` ones have new values, of ``dropped``
            observations the rest of the frame is kept, ``noted`` changes nothing.
        value: the worst measured, in ``unit``; None where there is nothing to measure.
        limit: that it broke.
        unit: ``mm``, ``deg``, ``px``, ``s``, ``1`` or empty.
    """

    stage: str
    first_frame: int
    last_frame: int
    what: str
    reason: str
    outcome: Outcome
    value: float | None = None
    limit: float | None = None
    unit: str = ""


@dataclass(frozen=True, eq=False)
class SpineTrial:
    """Annotations of one trial. Metres, radians, seconds, in the model's ground frame (Y up); NaN = missing.

    What a source does not hold is None. Arrays are made float64 and read-only.

    Attributes:
        subject: such as ``S1``.
        action: with its repetition if there is one, such as ``Walking 1``.
        times: increasing, s.
        rate_hz: frames per second.
        keypoints: in the order of `skeleton.KEYPOINT_NAMES`.
        coordinates: in the order of `skeleton.AXIS_NAMES`.
        quality: `Quality` of each frame.
        triangulated: keypoints as the cameras give them, before model and filter.
        confidence: of the triangulated keypoints, 0 to 1.
        camera_names: of the views.
        reprojection_px: of each keypoint in each view.
        marker_names: of ``residuals``.
        residuals: distance of each model marker from its target, m.
        vertebral_rotations: of each level: flexion/extension, lateral bending, axial rotation.
        lordosis: Cobb angle L1-S1 by keypoints.
        kyphosis: Cobb angle T3-T12 by keypoints.
        body_lordosis: Cobb angle L1-S1 by body frames.
        body_kyphosis: Cobb angle T3-T12 by body frames.
        events: findings and repairs.
        source: file or program that it comes from.
    """

    subject: str
    action: str
    times: NDArray[np.float64]  # [T]
    rate_hz: float
    keypoints: NDArray[np.float64]  # [T 37 3]
    coordinates: NDArray[np.float64]  # [T 62]
    quality: NDArray[np.uint16]  # [T]
    triangulated: NDArray[np.float64] | None = None  # [T 37 3]
    confidence: NDArray[np.float64] | None = None  # [T 37]
    camera_names: tuple[str, ...] = ()
    reprojection_px: NDArray[np.float64] | None = None  # [T V 37]
    marker_names: tuple[str, ...] = ()
    residuals: NDArray[np.float64] | None = None  # [T M]
    vertebral_rotations: NDArray[np.float64] | None = None  # [T 7 3]
    lordosis: NDArray[np.float64] | None = None  # [T]
    kyphosis: NDArray[np.float64] | None = None  # [T]
    body_lordosis: NDArray[np.float64] | None = None  # [T]
    body_kyphosis: NDArray[np.float64] | None = None  # [T]
    events: tuple[QualityEvent, ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("subject", "action"):
            if not NAME.fullmatch(getattr(self, name)):
                raise ShapeError(
                    f"The trial's {name} is {getattr(self, name)!r}; valid are letters, digits, blank, ._-"
                )
        n_frames = len(self.times)
        wanted = {
            "times": (), "keypoints": (N_KEYPOINTS, 3), "coordinates": (len(AXIS_NAMES),), "quality": (),
            "triangulated": (N_KEYPOINTS, 3), "confidence": (N_KEYPOINTS,),
            "reprojection_px": (len(self.camera_names), N_KEYPOINTS), "residuals": (len(self.marker_names),),
            "vertebral_rotations": (N_LEVELS, 3),
            "lordosis": (), "kyphosis": (), "body_lordosis": (), "body_kyphosis": (),
        }  # fmt: skip
        for name, rest in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            kind = np.uint16 if name == "quality" else np.float64
            array = np.array(value, kind)
            if array.shape != (n_frames, *rest):
                raise ShapeError(
                    f"{name} of trial {self.name} has the shape {array.shape}; valid is {(n_frames, *rest)}"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def name(self) -> str:
        """Of its files; see `file_name`."""
        return file_name(self.subject, self.action)

    @property
    def n_frames(self) -> int:
        """Number of frames T."""
        return len(self.times)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """[T] frames without a fault; repaired ones are usable."""
        return (self.quality & ~np.uint16(Quality.INTERPOLATED)) == 0
