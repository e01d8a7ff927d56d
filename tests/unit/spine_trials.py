"""Trials for tests of tables and figures: random numbers of a plausible size, each field filled."""

from __future__ import annotations

import numpy as np

from simspine_jax.annotations import Quality, QualityEvent, SpineTrial
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, N_KEYPOINTS

CAMERAS = ("left", "right")
MARKERS = ("C7", "Hip", "never")
SOURCE = "a test's random numbers"


def make_trial(subject: str = "S1", action: str = "Walking 1", n_frames: int = 40, **changes) -> SpineTrial:
    """Frames 5 to 9 have faults, 9 two of them; frames 20 and 21 are repaired."""
    random = np.random.default_rng([ord(c) for c in subject + action])
    quality = np.zeros(n_frames, np.uint16)
    quality[5:10] |= np.uint16(Quality.MARKER_RESIDUAL)
    quality[9:10] |= np.uint16(Quality.CURVATURE)
    quality[20:22] |= np.uint16(Quality.INTERPOLATED)
    residuals = np.abs(random.normal(0.0, 0.01, (n_frames, len(MARKERS))))
    residuals[:, 2] = np.nan
    fields = {
        "times": np.arange(n_frames) / 50.0,
        "rate_hz": 50.0,
        "keypoints": random.normal(0.0, 0.3, (n_frames, N_KEYPOINTS, 3)),
        "coordinates": random.normal(0.0, 0.1, (n_frames, len(AXIS_NAMES))),
        "quality": quality,
        "triangulated": random.normal(0.0, 0.3, (n_frames, N_KEYPOINTS, 3)),
        "camera_names": CAMERAS,
        "reprojection_px": np.abs(random.normal(0.0, 5.0, (n_frames, len(CAMERAS), N_KEYPOINTS))),
        "marker_names": MARKERS,
        "residuals": residuals,
        "vertebral_rotations": random.normal(0.0, 0.05, (n_frames, len(VERTEBRAL_LEVELS), 3)),
        "lordosis": random.normal(0.6, 0.05, n_frames),
        "kyphosis": random.normal(0.55, 0.05, n_frames),
        "body_lordosis": random.normal(1.0, 0.05, n_frames),
        "body_kyphosis": np.full(n_frames, 0.8),
        "events": (
            QualityEvent("ik", 5, 9, "C7", "far from its target", "rejected", 71.0, 60.0, "mm"),
            QualityEvent("quality", 20, 21, "", "a short gap was filled", "repaired"),
        ),
        "source": SOURCE,
    }
    return SpineTrial(subject, action, **(fields | changes))


def bare_trial(n_frames: int = 40) -> SpineTrial:
    """Only what the release holds."""
    full = make_trial(n_frames=n_frames)
    return SpineTrial(
        "S1", "Walking 1", full.times, 50.0, full.keypoints, full.coordinates, np.zeros(n_frames, np.uint16)
    )


def lost_trial() -> SpineTrial:
    """Not one usable frame, and nothing known."""
    full = make_trial()
    return SpineTrial(
        "S9", "Posing", full.times, 50.0, np.full_like(full.keypoints, np.nan),
        np.full_like(full.coordinates, np.nan), np.full(full.n_frames, Quality.NO_POSE, np.uint16),
    )  # fmt: skip


def unseen_trial(**changes) -> SpineTrial:
    """No keypoint between hips and neck in any frame."""
    seen = np.array(make_trial().triangulated)
    seen[:, [i for i, name in enumerate(KEYPOINT_NAMES) if name.startswith("spine_")]] = np.nan
    return make_trial(**({"triangulated": seen} | changes))


def make_set() -> list[SpineTrial]:
    """Three actions, of which one has two repetitions, by three subjects; of unequal lengths."""
    return [
        make_trial(subject, action, n_frames)
        for subject, n_frames in (("S11", 30), ("S9", 40), ("S1", 55))
        for action in ("Walking 1", "Walking 2", "Sitting", "Directions")
    ]
