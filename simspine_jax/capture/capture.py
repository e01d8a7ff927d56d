"""Synthetic trials from end to end: a subject acts, cameras see them, a detector finds keypoints.

A trial holds the truth of both worlds: the pose of the rigid model, which inverse kinematics can reach, and
the keypoints of a body that bends a little where the model can't (`simspine_jax.capture.tissue`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.capture.actions import ACTION_NAMES, PAPER_CURVATURE_DEG, action_motion
from simspine_jax.capture.ground import set_on_floor
from simspine_jax.capture.motion import random_waves
from simspine_jax.capture.noise import Detections, DetectorNoise, detect, make_noise
from simspine_jax.capture.rigs import make_rig
from simspine_jax.capture.subjects import SUBJECT_NAMES, Subject, make_subjects
from simspine_jax.capture.tissue import (
    TISSUE_BOUNDS_M,
    TissueMotion,
    rigid_keypoints,
    true_keypoints,
)
from simspine_jax.errors import ShapeError
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.kinematics.curvature import (
    Curvature,
    body_curvature,
    keypoint_curvature,
    vertebral_rotations,
)
from simspine_jax.kinematics.forward import expand_coordinates, forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.skeleton import N_KEYPOINTS

RATE_HZ = 50.0
"""Human3.6M's."""

# Bending of the neck that the model doesn't know, bounds in radians, and how fast what the model can't follow
# changes.
_NECK_WAVE = math.radians(6.0)
_TISSUE_FASTEST_HZ, _BOW_FASTEST_HZ = 1.5, 0.6
# As for lordosis: part of the paper's spread by action is between subjects; a sum of waves has a standard
# deviation of a third of its bounds.
_KYPHOSIS_SHARE, _WAVE_SD = 0.95, 0.33
# Steps from which the curvature's slopes are taken, L5-S1 in radians and bow in metres.
_FLEX_STEP, _BOW_STEP = math.radians(-1.0), 0.002


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Capture:
    """One trial. Metres and radians in the model's ground (Y up) if nothing else is said.

    Attributes:
        times: seconds.
        q: free coordinates of the model's true pose.
        coordinates: all of its coordinates, in OpenSim's order.
        markers: the model's markers in that pose.
        body_rotations: ``R_ground_body`` in that pose.
        vertebral_rotations: of `VERTEBRAL_LEVELS`: flexion/extension, lateral bending, axial rotation.
        rigid_keypoints: the 37 keypoints on the rigid model.
        keypoints: the 37 true keypoints, with what the model can't follow.
        curvature: of the true keypoints.
        body_curvature: of the rigid bodies' endplates.
        cameras: in their world (Z up); see `yup_to_zup`.
        keypoints_2d: exact pictures of the true keypoints, px; NaN behind a camera.
        visible: whether they are within the picture.
        detections: what a detector made of them.
        subject: scale factors, marker offsets and masses.
        action: of `ACTION_NAMES`.
        rate_hz: frames per second.
    """

    times: Float[Array, " T"]
    q: Float[Array, "T Q"]
    coordinates: Float[Array, "T C"]
    markers: Float[Array, "T M 3"]
    body_rotations: Float[Array, "T B 3 3"]
    vertebral_rotations: Float[Array, "T L 3"]
    rigid_keypoints: Float[Array, "T K 3"]
    keypoints: Float[Array, "T K 3"]
    curvature: Curvature
    body_curvature: Curvature
    cameras: Cameras
    keypoints_2d: Float[Array, "T V K 2"]
    visible: Bool[Array, "T V K"]
    detections: Detections
    subject: Subject
    action: str = field(metadata={"static": True})
    rate_hz: float = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Script:
    """What a trial is made from, drawn beforehand; waves are in -1 … 1."""

    times: Float[Array, " T"]
    q: Float[Array, "T Q"]  # no root translations; lordosis about its mean
    bow: Float[Array, " T"]
    neck: Float[Array, "T 2"]
    shift: Float[Array, "T K 3"]
    lordosis: Float[Array, ""]  # means to reach, and kyphosis' standard deviation
    kyphosis: Float[Array, ""]
    kyphosis_sd: Float[Array, ""]
    rate_hz: Float[Array, ""]


def capture_trial(
    model: SpineModel,
    subject: Subject,
    action: str,
    seconds: float,
    rate_hz: float = RATE_HZ,
    seed: int = 0,
    *,
    cameras: Cameras | None = None,
    noise: DetectorNoise | None = None,
) -> Capture:
    """A trial; equal arguments give equal numbers. Trials of one length share one compiled program.

    Lordosis and kyphosis of the true keypoints have the paper's mean for the action, moved by what the paper
    has for the subject; so L5-S1's mean and the thorax' mean bow are solved for.

    Args:
        model: the spine model with the paper's markers.
        subject: from `make_subject`.
        action: one of `ACTION_NAMES`.
        seconds: length; frames are at 0, 1/rate, … before it.
        rate_hz: frames per second.
        seed: picks motion, cameras and detector errors; each differs by subject and action too.
        cameras: in their world (Z up); default: the subject's own from `make_rig`.
        noise: the detector; default: `make_noise`.

    Raises:
        UnknownNameError: the action is unknown, or the model is not the spine model with the paper's markers.
        ShapeError: ``seconds`` holds no two frames, or ``rate_hz`` or ``seed`` is not valid.
    """
    n_frames = count_frames(seconds, rate_hz)
    check_seed(seed)
    words = (seed, SUBJECT_NAMES.index(subject.name))
    script = _write_script(model, subject, action, n_frames, rate_hz, words)
    cameras = make_rig(words) if cameras is None else cameras
    noise = make_noise() if noise is None else noise
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), words[1]), ACTION_NAMES.index(action))
    arrays = _simulate(model, script, subject.scale_factors, subject.marker_offsets, cameras, noise, key)
    return Capture(
        **arrays, times=script.times, cameras=cameras, subject=subject, action=action, rate_hz=float(rate_hz)
    )


def check_seed(seed: int) -> None:
    """Refuses what is no seed of a capture.

    Raises:
        ShapeError: it isn't from 0 to 2^32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise ShapeError(f"The seed is {seed}; valid is a whole number from 0 to {2**32 - 1}")


def count_frames(seconds: float, rate_hz: float) -> int:
    """Frames of a trial of this length.

    Raises:
        ShapeError: these are no two frames, or one of the numbers is not valid.
    """
    for name, value in (("seconds", seconds), ("rate_hz", rate_hz)):
        if not (math.isfinite(value) and value > 0):
            raise ShapeError(f"{name} is {value}; valid is a finite number above 0")
    n_frames = round(seconds * rate_hz)
    if n_frames < 2:
        raise ShapeError(f"{seconds} s at {rate_hz} frames per second are {n_frames} frames; valid is from 2")
    return n_frames


def capture_set(
    model: SpineModel,
    seconds: float,
    rate_hz: float = RATE_HZ,
    seed: int = 0,
    *,
    subjects: Sequence[str] = SUBJECT_NAMES,
    actions: Sequence[str] = ACTION_NAMES,
    noise: DetectorNoise | None = None,
) -> Iterator[Capture]:
    """Trials of every subject and action, subject by subject; see `capture_trial`.

    Raises:
        UnknownNameError: a subject or an action is unknown.
    """
    for subject in make_subjects(model, subjects, seed):
        for action in actions:
            yield capture_trial(model, subject, action, seconds, rate_hz, seed, noise=noise)


def _write_script(
    model: SpineModel, subject: Subject, action: str, n_frames: int, rate_hz: float, words: tuple[int, int]
) -> _Script:
    motion = action_motion(model, action, n_frames, rate_hz, _mixed(*words))
    random = np.random.default_rng([*words, ACTION_NAMES.index(action)])
    slow, fast = [_BOW_FASTEST_HZ] * 3, [_TISSUE_FASTEST_HZ] * (3 * N_KEYPOINTS)
    waves = random_waves(random, np.array(slow + fast)).at(motion.times)
    paper = PAPER_CURVATURE_DEG[action]
    values = {
        "times": motion.times,
        "q": motion.q,
        "bow": waves[:, 0],
        "neck": waves[:, 1:3],
        "shift": waves[:, 3:].reshape(-1, N_KEYPOINTS, 3),
        "lordosis": math.radians(paper.lordosis) + subject.lordosis_shift,
        "kyphosis": math.radians(paper.kyphosis) + subject.kyphosis_shift,
        "kyphosis_sd": math.radians(paper.kyphosis_sd),
        "rate_hz": rate_hz,
    }
    return _Script(**{name: np.asarray(value, model.dtype) for name, value in values.items()})  # type: ignore[arg-type]


def _mixed(*words: int) -> int:
    """One seed from several."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@jax.jit
def _simulate(
    model: SpineModel,
    script: _Script,
    scale_factors: Array,
    marker_offsets: Array,
    cameras: Cameras,
    noise: DetectorNoise,
    key: Array,
) -> dict:
    """The arrays of a `Capture` that depend on the motion."""
    pose = partial(forward_kinematics, model, scale_factors=scale_factors, marker_offsets=marker_offsets)
    flex, bow, bow_per_kyphosis = _mean_curvature(model, script, pose, scale_factors)
    lumbar = model.free_indices(["L5_S1_Flex_Ext"])
    q = script.q.at[:, lumbar].add(flex - jnp.mean(script.q[:, lumbar]))
    q, poses = set_on_floor(model, q, pose(q), scale_factors, script.rate_hz)
    swing = _KYPHOSIS_SHARE / _WAVE_SD * script.kyphosis_sd * bow_per_kyphosis
    tissue = TissueMotion(
        bow + swing * script.bow,
        _NECK_WAVE * script.neck,
        script.shift * jnp.asarray(TISSUE_BOUNDS_M, q.dtype)[:, None],
    )
    keypoints = true_keypoints(model, q, poses, scale_factors, tissue)
    world = yup_to_zup(keypoints)
    pictures = jnp.moveaxis(project(cameras, world).keypoints, 2, 1)
    sizes = jnp.asarray(cameras.sizes, q.dtype)[:, None]
    visible = ((pictures >= 0) & (pictures <= sizes - 1)).all(axis=-1)
    return {
        "q": q,
        "coordinates": expand_coordinates(model, q),
        "markers": poses.markers,
        "body_rotations": poses.body_rotations,
        "vertebral_rotations": vertebral_rotations(model.body_names, poses.body_rotations),
        "rigid_keypoints": rigid_keypoints(model, poses, scale_factors),
        "keypoints": keypoints,
        "curvature": keypoint_curvature(keypoints),
        "body_curvature": body_curvature(model.body_names, poses.body_rotations),
        "keypoints_2d": pictures,
        "visible": visible,
        "detections": detect(noise, key, cameras, world, pictures, visible, script.rate_hz),
    }


def _mean_curvature(
    model: SpineModel, script: _Script, pose, scale_factors: Array
) -> tuple[Array, Array, Array]:
    """L5-S1 and bow that give a standing subject the wanted curvature, and bow for a radian of kyphosis.

    Both angles are nearly linear in both, so three poses tell their slopes.
    """
    kind = script.q.dtype
    lumbar = model.free_indices(["L5_S1_Flex_Ext"])
    q = jnp.zeros((3, model.n_free), kind).at[1, lumbar].set(_FLEX_STEP)
    zero = jnp.zeros((3, N_KEYPOINTS, 3), kind)
    tissue = TissueMotion(jnp.array([0.0, 0.0, _BOW_STEP], kind), zero[:, :2, 0], zero)
    found = keypoint_curvature(true_keypoints(model, q, pose(q), scale_factors, tissue))
    angles = jnp.stack([found.lordosis, found.kyphosis])
    slopes = (angles[:, 1:] - angles[:, :1]) / jnp.array([_FLEX_STEP, _BOW_STEP], kind)
    wanted = jnp.stack([script.lordosis, script.kyphosis]) - angles[:, 0]
    inverse = jnp.linalg.inv(slopes)
    flex, bow = inverse @ wanted
    return flex, bow, inverse[1, 1]
