"""Clips and statistics for tests of lifters and trainings: random bodies before synthetic cameras."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from spine_trials import make_trial

from simspine_jax.capture.rigs import make_rig
from simspine_jax.clips import Clip, clips_of
from simspine_jax.datasets import Statistics
from simspine_jax.lifting.observations import Observation, Target
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES

LOST = 0.1
"""Share of detections that are missing."""


def make_clip(
    subject: str = "S1", action: str = "Walking 1", n_frames: int = 30, noise_px: float = 3.0
) -> Clip:
    """A body of points around (0, 1, 0) that shifts over time; its truth is the annotation."""
    random = np.random.default_rng([ord(c) for c in subject + action])
    shape = random.normal(0, 0.25, (37, 3)) + np.array([0, 1, 0])
    sway = 0.1 * np.sin(np.linspace(0, 3, n_frames))[:, None, None] * random.normal(size=(1, 37, 3))
    trial = make_trial(
        subject, action, n_frames, quality=np.zeros(n_frames, np.uint16), keypoints=shape + sway,
        camera_names=(), reprojection_px=None,
    )  # fmt: skip
    (clip,) = clips_of(trial, make_rig(3), trial)
    pixels = clip.keypoints_2d + random.normal(0, noise_px, clip.keypoints_2d.shape)
    seen = random.random(pixels.shape[:-1]) > LOST
    return dataclasses.replace(
        clip,
        detections_2d=np.where(seen[..., None], pixels, np.nan),
        detections_2d_mask=seen,
        detections_confidence=np.where(seen, random.uniform(0.3, 1, seen.shape), np.nan),
    )


def make_statistics(names: tuple[str, ...] = KEYPOINT_NAMES) -> Statistics:
    """Means and deviations that differ from joint to joint."""
    random, n = np.random.default_rng(7), len(names)
    mean_3d, std_3d = random.normal(0, 0.2, (n, 3)), random.uniform(0.1, 0.4, (n, 3))
    mean_3d[names.index("hip")], std_3d[names.index("hip")] = 0, 1
    parts = random.normal(500, 50, (n, 2)), random.uniform(50, 90, (n, 2)), mean_3d, std_3d
    return Statistics(*(np.asarray(part, np.float32) for part in parts), names)


def make_batch(
    *batch: int, names: tuple[str, ...] = KEYPOINT_NAMES, seed: int = 0
) -> tuple[Observation, Target]:
    """Random numbers of a plausible size, with some keypoints missing on both sides."""
    random, n = np.random.default_rng(seed), len(names)
    mask = random.random((*batch, n)) > LOST
    known = random.random((*batch, n)) > LOST
    known[..., names.index("hip")] = True
    up = np.broadcast_to([0.0, -1.0, 0.0], (*batch, 3))
    points = random.normal(0, 0.3, (*batch, n, 3)) + np.array([0, 0, 5])
    axes = random.normal(0, 0.2, (*batch, len(AXIS_NAMES)))
    seen = Observation(
        _float(random.normal(500, 60, (*batch, n, 2))), jnp.asarray(mask), _float(mask * 0.8),
        _float(random.normal(0, 0.07, (*batch, n, 2))), _float(up), names,
    )  # fmt: skip
    return seen, Target(_float(points), jnp.asarray(known), _float(axes), jnp.ones(axes.shape, bool))


def _float(values):
    return jnp.asarray(np.asarray(values, np.float32))
