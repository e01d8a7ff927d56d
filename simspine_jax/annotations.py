"""One trial of spine annotations: what a simulation makes, the release holds and a dataset is built from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, N_KEYPOINTS, OKS_SUBSETS, TRC_NAMES

N_LEVELS = 7
"""Joints of the spine of which rotations are told, from L5-S1 up; see `kinematics.curvature`."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
"""What a subject or an action may be called."""

SYNTHETIC: tuple[str, ...] = ("synthetic capture: ", "synthetic truth: ")
"""How the source of a trial begins that no person was recorded for."""

UNSEEN = "no keypoint between hips and neck seen"
"""What a source says where a file has no room for which keypoints were seen."""

SPINE_IDS: tuple[int, ...] = OKS_SUBSETS["spine"][::-1]
"""The nine keypoints along the column, from the hip up."""

_BACK = [i for i, k in enumerate(SPINE_IDS) if KEYPOINT_NAMES[k].startswith("spine_")]


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


REASONS: Mapping[Quality, tuple[str, ...]] = MappingProxyType(
    {
        Quality.NO_POSE: ("there is no pose",),
        Quality.MARKER_RESIDUAL: (
            "the model does not come near its markers",
            "the model does not come near this marker",
        ),
        Quality.CURVATURE: tuple(
            f"{change} {angle} than a healthy adult reaches"
            for angle in ("lordosis", "kyphosis")
            for change in ("less", "more")
        ),
        Quality.JOINT_LIMITS: ("many coordinates stay at their bounds",),
        Quality.ANGULAR_JUMP: ("it changes faster than a person can move",),
    }
)
"""What findings of each fault say; so they tell which fault a frame had before it was repaired."""

GAP_FILLED = "short gap interpolated"
"""What the finding says of a marker's gap, which is filled before any pose is solved."""

_FAULT_OF = {reason: fault for fault, reasons in REASONS.items() for reason in reasons}

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
        outcome: ``rejected`` frames are flagged, ``repaired`` ones have an interpolated pose and are
            `Quality.INTERPOLATED`, of ``dropped`` observations the rest of the frame is kept, ``noted``
            leaves the frame's flags alone.
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
        detections: what the detector found of each keypoint in each view, px.
        detection_confidence: of that, 0 to 1.
        T_ground_cameras: from the cameras' world, turned to Y up, to the frame of the keypoints; None where
            they are one, as they are unless body markers of another frame were merged.
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
    detections: NDArray[np.float64] | None = None  # [T V 37 2]
    detection_confidence: NDArray[np.float64] | None = None  # [T V 37]
    T_ground_cameras: NDArray[np.float64] | None = None  # [4 4]
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
        frame = (len(self.times),)
        views = (*frame, len(self.camera_names), N_KEYPOINTS)
        wanted = {
            "times": frame, "keypoints": (*frame, N_KEYPOINTS, 3), "coordinates": (*frame, len(AXIS_NAMES)),
            "quality": frame, "triangulated": (*frame, N_KEYPOINTS, 3), "confidence": (*frame, N_KEYPOINTS),
            "reprojection_px": views, "detections": (*views, 2), "detection_confidence": views,
            "T_ground_cameras": (4, 4), "residuals": (*frame, len(self.marker_names)),
            "vertebral_rotations": (*frame, N_LEVELS, 3),
            "lordosis": frame, "kyphosis": frame, "body_lordosis": frame, "body_kyphosis": frame,
        }  # fmt: skip
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            kind = np.uint16 if name == "quality" else np.float64
            array = np.array(value, kind)
            if array.shape != shape:
                raise ShapeError(f"{name} of trial {self.name} has the shape {array.shape}; valid is {shape}")
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

    @property
    def repaired(self) -> NDArray[np.bool_]:
        """[T] frames whose pose was interpolated."""
        return (self.quality & np.uint16(Quality.INTERPOLATED)) != 0

    @property
    def faults_before(self) -> NDArray[np.uint16]:
        """[T] the faults of each frame before repairs, as the findings tell."""
        faults = self.quality & ~np.uint16(Quality.INTERPOLATED)
        for event in self.events:
            if event.outcome in ("rejected", "repaired") and event.reason in _FAULT_OF:
                faults[event.first_frame : event.last_frame + 1] |= np.uint16(_FAULT_OF[event.reason])
        return faults

    @property
    def gaps_filled(self) -> tuple[QualityEvent, ...]:
        """Short gaps of single markers that were interpolated; no frame is ``repaired`` by that."""
        return tuple(event for event in self.events if event.reason == GAP_FILLED)

    @property
    def is_synthetic(self) -> bool:
        """Whether nobody was recorded for it."""
        return self.source.startswith(SYNTHETIC)

    @property
    def spine_seen(self) -> NDArray[np.bool_] | None:
        """[T 9] where keypoints of `SPINE_IDS` were seen or bridged over a short gap; None if not known."""
        if self.triangulated is None and self.residuals is None:
            return None
        seen = np.zeros((self.n_frames, len(SPINE_IDS)), bool)
        if self.triangulated is not None:
            seen |= np.isfinite(self.triangulated[:, list(SPINE_IDS)]).all(axis=-1)
        if self.residuals is not None:
            for column, k in enumerate(SPINE_IDS):
                if TRC_NAMES[k] in self.marker_names:
                    seen[:, column] |= np.isfinite(self.residuals[:, self.marker_names.index(TRC_NAMES[k])])
        return seen

    @property
    def back_seen(self) -> NDArray[np.bool_] | None:
        """[T] frames with a keypoint between hips and neck, on which curvature rests; None if not known."""
        if (seen := self.spine_seen) is not None:
            return np.asarray(seen[:, _BACK].any(axis=1))
        return np.zeros(self.n_frames, bool) if UNSEEN in self.source else None
