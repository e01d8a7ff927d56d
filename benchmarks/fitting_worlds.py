"""Subjects, cameras and detections of known truth, drawn within the bounds that the fitting rows name.

A body of the model's own kind: its segments are up to 15 % larger or smaller than the generic ones, its
markers up to 15 mm beside theirs, alike on both sides. It moves as the synthetic captures do, rigidly, and is
seen by four cameras whose given calibration is wrong: each is turned by 1 degree and moved by 10 mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simspine_jax.arrays import Array
from simspine_jax.capture.actions import ACTION_NAMES, action_motion
from simspine_jax.capture.ground import set_on_floor
from simspine_jax.capture.noise import (
    PAPER_TRIANGULATION_M,
    DetectorNoise,
    detect,
    fit_noise,
    make_noise,
)
from simspine_jax.capture.rigs import make_rig
from simspine_jax.capture.tissue import rigid_keypoints
from simspine_jax.fitting.parameters import FitPriors, Layout, make_layout
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.geometry.triangulation import triangulate_weighted
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.stages import TrialInput, Views

CLIPS, FRAMES, RATE_HZ = 5, 100, 5.0
"""Of a subject: 500 frames, 20 s of each of five actions; a detector's errors are hardly alike there."""

_EVERY, _MOTION_HZ = 5, 25.0
"""Motions and errors are made at this rate, of which each so many-th frame is taken."""

STATURE, PROPORTION, BREADTH = 0.09, 0.04, 0.02
"""Most by which sizes differ: of the whole body, of a segment, of an axis; together 15 %."""

OFFSET_M, TURN_DEG, SHIFT_M = 0.015, 1.0, 0.010
"""Most that a marker is off, and what every camera is turned and moved by, in random directions."""

PRIORS = FitPriors(
    stature=STATURE / np.sqrt(3), proportion=PROPORTION / np.sqrt(3), breadth=BREADTH / np.sqrt(3),
    offset_m=OFFSET_M / np.sqrt(5), rotation_deg=TURN_DEG / np.sqrt(3), centre_m=SHIFT_M / np.sqrt(3),
)  # fmt: skip
"""The deviations of what is drawn: what a user who knows the bounds would give."""

DATA = (
    "synthetic: rigid bodies of the model's kind, sizes off by up to 15 %, markers by up to 15 mm, cameras "
    f"by {TURN_DEG:g} degree and {1e3 * SHIFT_M:g} mm, {CLIPS} clips of {FRAMES} frames at {RATE_HZ:g} Hz; "
    "the fit's priors are as wide as what was drawn; "
)


@dataclass(frozen=True, eq=False)
class World:
    """One subject in front of four cameras.

    Attributes:
        trials: what is given: detections, and cameras that are off.
        cameras: as they are, Z up.
        q: of each trial ``[T Q]`` free coordinates.
        markers: of each trial ``[T K 3]`` m, ground, in the model's order.
        scale_factors: ``[B 3]``.
        marker_offsets: ``[K 3]`` m.
    """

    trials: list[TrialInput]
    cameras: Cameras
    q: list[NDArray[np.float64]]
    markers: list[NDArray[np.float64]]
    scale_factors: NDArray[np.float64]
    marker_offsets: NDArray[np.float64]


def make_world(
    model: SpineModel,
    seed: int,
    noise: DetectorNoise,
    *,
    clips: int = CLIPS,
    frames: int = FRAMES,
    bends: Mapping[str, float] | None = None,
) -> World:
    """The world of a seed; its actions are some of the fifteen in turn.

    Args:
        model: of the subject.
        seed: of everything.
        noise: of the detector.
        clips: number of them.
        frames: of each.
        bends: amplitudes of slow waves that are added to free coordinates, rad.
    """
    random = np.random.default_rng([seed, 7])
    factors, offsets = _subject(random, make_layout(model, 0))
    cameras = make_rig((seed, 8))
    given = moved_cameras(random, cameras)
    trials, found = [], []
    for number in range(clips):
        action = ACTION_NAMES[(seed * clips + number) % len(ACTION_NAMES)]
        motion = action_motion(model, action, frames * _EVERY, _MOTION_HZ, 1000 * seed + number)
        q = motion.q + _waves(model, np.random.default_rng([seed, number, 10]), len(motion.q), bends or {})
        seen = _captured(
            model, *(jnp.asarray(x, model.dtype) for x in (q, factors, offsets)),
            cameras.astype(model.dtype), noise, jax.random.key(1000 * seed + number),
        )  # fmt: skip
        found.append({name: np.asarray(x[::_EVERY], np.float64) for name, x in seen.items()})
        views = Views(given, found[-1]["keypoints"], found[-1]["confidence"])
        trials.append(TrialInput(action, np.arange(frames) / RATE_HZ, RATE_HZ, views))
    q, markers = ([trial[name] for trial in found] for name in ("q", "markers"))
    return World(trials, cameras, q, markers, factors, offsets)


def _waves(
    model: SpineModel, random: np.random.Generator, frames: int, bends: Mapping[str, float]
) -> NDArray[np.float64]:
    """[T Q] waves of 5 to 10 s, of random phases."""
    waves = np.zeros((frames, model.n_free))
    clock = 2 * np.pi * np.arange(frames)[:, None] / _MOTION_HZ
    rates, phases = random.uniform(0.1, 0.2, len(bends)), random.uniform(0, 2 * np.pi, len(bends))
    waves[:, model.free_indices(tuple(bends))] = np.sin(rates * clock + phases) * list(bends.values())
    return waves


def _subject(random: np.random.Generator, layout: Layout) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale factors of bodies and offsets of markers."""
    segments = len(layout.segments)
    change = random.uniform(-STATURE, STATURE) + random.uniform(-PROPORTION, PROPORTION, (segments, 1))
    change = change + random.uniform(-BREADTH, BREADTH, (segments, 3))
    offsets = layout.offset_matrix() @ _in_ball(random, len(layout.markers), OFFSET_M).ravel()
    return np.exp(change)[np.array(layout.body_segment)], offsets.reshape(-1, 3)


def _in_ball(random: np.random.Generator, count: int, radius: float) -> NDArray[np.float64]:
    return radius * _directions(random, count) * random.uniform(0, 1, (count, 1)) ** (1 / 3)


def _directions(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    drawn = random.standard_normal((count, 3))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def moved_cameras(random: np.random.Generator, cameras: Cameras) -> Cameras:
    """The cameras as a calibration has them that is off."""
    count = len(cameras.names)
    rotations, translations = np.asarray(cameras.rotations), np.asarray(cameras.translations)
    centres = -np.einsum("vji,vj->vi", rotations, translations) + SHIFT_M * _directions(random, count)
    turns = Rotation.from_rotvec(np.deg2rad(TURN_DEG) * _directions(random, count)).as_matrix()
    turned = turns @ rotations
    return replace(cameras, rotations=turned, translations=-np.einsum("vij,vj->vi", turned, centres))


@jax.jit
def _captured(
    model: SpineModel, q: Array, factors: Array, offsets: Array, cameras: Cameras, noise: DetectorNoise,
    key: Array,
) -> dict[str, Array]:  # fmt: skip
    poses = forward_kinematics(model, q, scale_factors=factors, marker_offsets=offsets)
    q, poses = set_on_floor(model, q, poses, factors, _MOTION_HZ)
    points = yup_to_zup(rigid_keypoints(model, poses, factors))
    pictures = jnp.moveaxis(project(cameras, points).keypoints, 2, 1)
    visible = ((pictures >= 0) & (pictures <= jnp.asarray(cameras.sizes)[:, None] - 1)).all(axis=-1)
    found = detect(noise, key, cameras, points, pictures, visible, _MOTION_HZ)
    return {
        "q": q, "markers": poses.markers, "points": points,
        "keypoints": found.keypoints, "confidence": found.confidence,
    }  # fmt: skip


def without_bias(model: SpineModel, size: float = 1.0) -> DetectorNoise:
    """A detector without constant errors whose triangulated keypoints are off as the paper's, on average.

    Args:
        model: the spine model.
        size: of all errors, over the paper's.
    """
    noise = make_noise()
    noise = replace(noise, bias=jnp.zeros_like(noise.bias))
    frames = 200
    motion = action_motion(model, "Directions", frames, _MOTION_HZ, 0)
    rig = make_rig(0).astype(model.dtype)
    ones, none = (
        jnp.ones((len(model.body_names), 3), model.dtype),
        jnp.zeros((model.n_markers, 3), model.dtype),
    )

    @jax.jit
    def measure(noise: DetectorNoise) -> Array:
        seen = _captured(model, jnp.asarray(motion.q, model.dtype), ones, none, rig, noise, jax.random.key(0))
        found = triangulate_weighted(rig, seen["keypoints"], seen["confidence"], undistorted=True)
        return jnp.nanmean(jnp.linalg.norm(found.points - seen["points"], axis=-1), axis=0)

    found = fit_noise(noise, PAPER_TRIANGULATION_M, measure)
    return replace(found, size=size * found.size)
