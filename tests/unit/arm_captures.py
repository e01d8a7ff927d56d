"""Captures of the small arm model with known truth, for tests of fits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.fitting.parameters import FitPriors, Segment, make_layout, make_prior, moved_rig, rig_of
from simspine_jax.fitting.subject import Clip, FitOptions, Start, SubjectFit, fit_subject
from simspine_jax.fitting.terms import Setting, look, markers_of
from simspine_jax.geometry.cameras import Cameras

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

SEGMENTS = (Segment("trunk", ("trunk",)), Segment("arm", ("humerus", "radius", "hand")))
RATE_HZ, FRAMES, NOISE_PX = 50.0, 40, 2.0


@dataclass(frozen=True, eq=False)
class ArmCapture:
    """What cameras see of a subject, and what is true of it."""

    cameras: Cameras
    keypoints: NDArray[np.float64]  # [T V K 2] px
    q: NDArray[np.float64]  # [T Q]
    markers: NDArray[np.float64]  # [T K 3] m
    scale_factors: NDArray[np.float64]  # [B 3]

    @property
    def clip(self) -> Clip:
        """All keypoints are as sure."""
        return Clip(self.keypoints, np.ones(self.keypoints.shape[:3]))


def cameras_at(centres: NDArray[np.float64]) -> Cameras:
    """Cameras at these places (m, Z up) that look at the origin's axis, 1 m above the ground."""
    rotations = []
    for centre in centres:
        forward = np.array([0.0, 0.0, 1.0]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotations.append(np.stack([right, np.cross(forward, right), forward]))
    count, turns = len(centres), np.stack(rotations)
    return Cameras(
        turns, -np.einsum("vij,vj->vi", turns, centres), np.full((count, 2), 1000.0),
        np.full((count, 2), 500.0), np.zeros(count), np.zeros((count, 8)), np.full((count, 2), 1000.0),
        tuple("abcdef"[:count]),
    )  # fmt: skip


def on_an_arc(count: int, step_deg: float = 50.0) -> Cameras:
    """Cameras on an arc, 3 m away and 1.2 m high."""
    angles = np.deg2rad(step_deg * np.arange(count))
    return cameras_at(np.stack([3 * np.cos(angles), 3 * np.sin(angles), np.full(count, 1.2)], axis=1))


def capture_arm(model: SpineModel, cameras: Cameras, seed: int, *, swing: float = 2.0) -> ArmCapture:
    """A subject and cameras drawn from the priors of a fit, moving smoothly, with `NOISE_PX` of noise.

    Args:
        model: the arm.
        cameras: as they are given to the fit.
        seed: of everything.
        swing: phase of the motion's waves at the end, rad; 0 for none, from 4 on some move as jumpers do.
    """
    layout = make_layout(model, len(cameras.names), segments=SEGMENTS, biased=False)
    prior = make_prior(model, layout, FitPriors(bias=0.0))
    random = np.random.default_rng(seed)
    drawn = np.linalg.cholesky(np.linalg.inv(prior.precision)) @ random.normal(size=layout.size)
    theta = jnp.asarray(drawn * prior.free)
    phase = np.linspace(0, swing, FRAMES)[:, None]
    waves = random.normal(size=(2, model.n_free)) * 0.3
    q = waves[0] * np.sin(phase) + waves[1] * np.cos(1.3 * phase)
    q[:, [i for i, name in enumerate(model.free_names) if name.endswith("_4")]] += 1.0
    markers, pixels = _pictures(Setting(layout), model, rig_of(cameras, jnp.dtype("float64")), theta, q)
    noise = NOISE_PX * random.normal(size=pixels.shape)
    factors = np.asarray(layout.scale_factors(theta))
    return ArmCapture(cameras, np.asarray(pixels) + noise, q, np.asarray(markers), factors)


@partial(jax.jit, static_argnums=0)
def _pictures(setting: Setting, model: SpineModel, rig, theta: jax.Array, q: jax.Array):
    markers = markers_of(setting, model, theta, q)
    return markers, look(moved_rig(rig, setting.layout.camera_part(theta)), markers).pixels


def fit_arm(model: SpineModel, seen: ArmCapture, options: FitOptions | None = None) -> SubjectFit:
    """The fit, from poses that are off by 0.1 rad and m."""
    start = Start([seen.q + 0.1 * np.random.default_rng(9).normal(size=seen.q.shape)])
    return fit_subject(
        model, [seen.clip], seen.cameras, RATE_HZ, start, options or FitOptions(), segments=SEGMENTS
    )
