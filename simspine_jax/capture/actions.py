"""The fifteen actions of Human3.6M as motion of all free coordinates of the spine model.

A coordinate moves as ``posture(t) + sum of contributions(t)``. The posture is a convex blend of a few chosen
ones, each coordinate going from one to the next along the integral of a Gaussian (`STEP_SD_S`), whose
spectrum dies away as ``exp(-2 pi^2 sd^2 f^2)``. A contribution (a wave, a stride) has known bounds. So limits
hold at every instant and not only at the sampled ones: where postures and contributions together could leave
a clamped coordinate's range, the contributions are made smaller beforehand.

Postures, amplitudes and the order of events are chosen to look like the action, not measured. Legs on the
ground keep their feet flat: ``tilt + hip - knee + ankle = 0`` holds in each such posture, so also in every
blend of them. The pelvis stays at the origin here: `simspine_jax.capture.ground` sets the body on the floor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

from simspine_jax.capture.motion import (
    CYCLE_SAMPLES,
    LIMIT_MARGIN,
    STRIDE_HZ,
    STRIDES,
    random_waves,
    stride_at,
)
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.kinematics.model import SpineModel

ACTION_NAMES: tuple[str, ...] = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Photo", "Posing", "Purchases",
    "Sitting", "SittingDown", "Smoking", "Waiting", "WalkDog", "Walking", "WalkTogether",
)  # fmt: skip
"""Human3.6M's actions; its ``SittingDown`` is sitting on the floor, its ``Sitting`` on a chair."""

STEP_SD_S = 0.35
"""Width of a change of posture: 95 % of it takes four times as long."""

FASTEST_HZ = 3.0
"""No wave and no harmonic of a stride is faster: below the 5 Hz at which the field's filters cut."""


class ActionCurvature(NamedTuple):
    """Mean and standard deviation of lordosis (L1 to S1) and kyphosis (T3 to T12), degrees."""

    lordosis: float
    lordosis_sd: float
    kyphosis: float
    kyphosis_sd: float


PAPER_CURVATURE_DEG: Mapping[str, ActionCurvature] = MappingProxyType(
    {
        "Directions": ActionCurvature(36.09, 2.10, 33.26, 4.34),
        "Discussion": ActionCurvature(36.40, 2.69, 34.04, 3.52),
        "Eating": ActionCurvature(36.86, 2.53, 32.34, 3.90),
        "Greeting": ActionCurvature(36.42, 2.59, 31.00, 3.89),
        "Phoning": ActionCurvature(35.41, 3.28, 35.46, 4.56),
        "Photo": ActionCurvature(36.97, 2.86, 32.10, 3.61),
        "Posing": ActionCurvature(36.78, 2.87, 32.27, 5.22),
        "Purchases": ActionCurvature(37.60, 2.95, 33.29, 3.93),
        "Sitting": ActionCurvature(34.53, 4.38, 35.56, 3.95),
        "SittingDown": ActionCurvature(35.41, 4.75, 35.34, 6.21),
        "Smoking": ActionCurvature(34.94, 3.24, 35.07, 4.11),
        "Waiting": ActionCurvature(36.48, 2.81, 32.37, 3.73),
        "WalkDog": ActionCurvature(36.68, 3.30, 31.82, 4.49),
        "Walking": ActionCurvature(36.08, 2.43, 32.05, 3.92),
        "WalkTogether": ActionCurvature(35.98, 2.22, 31.03, 3.77),
    }
)
"""The SIMSPINE paper's supplement, table of curvature by action.

The table has two more rows, the other subjects' names for the same actions: TakingPhoto (36.67 ± 1.79,
31.41 ± 2.84) and WalkingDog (36.13 ± 3.34, 30.68 ± 3.75).
"""


class _Legs(NamedTuple):
    """Pelvis and legs, degrees; the ankles that keep the feet flat where none are given.

    ``flex`` is what L5-S1 adds to the action's mean; the couplers multiply it by 6.6 over L1 to S1.
    """

    tilt: float
    hip: float
    knee: float
    adduction: float = -4.0
    rotation: float = -5.0
    flex: float = 0.0
    ankle: float | None = None


_LEGS = {
    "stand": _Legs(0, 4, 7),
    "stand_wide": _Legs(-2, 6, 8, adduction=-8, rotation=-8),
    "lean": _Legs(-9, 14, 8, flex=-0.3),
    "bend": _Legs(-24, 34, 14, flex=-0.9),
    "pick": _Legs(-34, 74, 62, flex=-1.2),
    "rise": _Legs(-28, 88, 78, -7, flex=-0.8),
    "sit": _Legs(6, 80, 86, -8),
    "sit_forward": _Legs(-10, 92, 84, -10, flex=-0.7),
    "sit_back": _Legs(16, 70, 86, -6, flex=-0.5),
    "squat": _Legs(-16, 116, 128, -12, -10, flex=-1.6),
    "floor": _Legs(14, 100, 112, -10, -6, flex=-1.4),
    "floor_crossed": _Legs(8, 96, 124, -36, -42, flex=-1.1, ankle=0),
    "floor_long": _Legs(12, 84, 24, -8, -8, flex=-1.3, ankle=5),
    "walk": _Legs(-5, 13, 24, -1, -4, ankle=1),
}
_ON_CHAIR = ("sit", "sit_forward", "sit_back")
_ON_FLOOR = ("floor", "floor_crossed", "floor_long")


class _Arm(NamedTuple):
    """Shoulder (flexion, adduction, inward rotation), elbow, forearm and wrist, degrees."""

    flex: float
    add: float
    rot: float
    elbow: float
    pro_sup: float = 70.0
    wrist: float = 0.0


_ARMS = {
    "hang": _Arm(4, -10, 0, 18),
    "lap": _Arm(28, -8, 20, 30, 100),
    "point": _Arm(72, -22, 0, 20, 90),
    "point_side": _Arm(40, -62, 10, 22, 90),
    "gesture": _Arm(24, -20, 17, 98),
    "gesture_out": _Arm(35, -38, -10, 62, 50),
    "phone": _Arm(86, -24, 15, 142, 60),
    "mouth": _Arm(56, -7, 33, 140, 60, 10),
    "plate": _Arm(18, -10, 26, 84, 40),
    "camera": _Arm(72, -14, 21, 128, 70),
    "wave": _Arm(14, -74, -59, 112, 90),
    "hand_out": _Arm(52, -14, 10, 48, 80),
    "on_hip": _Arm(-17, -35, 41, 78, 60),
    "crossed": _Arm(32, 0, 60, 98, 90),
    "leash": _Arm(26, -20, 6, 38, 80),
    "reach_down": _Arm(66, -12, 0, 14, 80),
    "reach_up": _Arm(118, -22, 0, 30, 80),
}


class _Head(NamedTuple):
    """Neck, degrees: extension, bending to the right, turn to the left."""

    extension: float = 0.0
    bend: float = 0.0
    turn: float = 0.0


_HEADS = {
    "ahead": _Head(),
    "down": _Head(-18),
    "left": _Head(-3, 0, 28),
    "right": _Head(-3, 0, -28),
    "up": _Head(12),
    "tilt_right": _Head(-6, 18, -8),
    "tilt_left": _Head(-6, -12, 8),
}


class _Scene(NamedTuple):
    """What happens in an action: the postures of each part in any order, but for the first.

    ``dwell_s`` bounds how long a posture lasts; ``turn_deg`` how far the person turns at a time; ``sway`` the
    size of small movements; ``stride`` is 1 for walking. ``together`` moves both arms at once.
    """

    legs: tuple[str, ...]
    right: tuple[str, ...]
    left: tuple[str, ...]
    head: tuple[str, ...] = ("ahead", "down", "left", "right")
    dwell_s: tuple[float, float] = (1.5, 3.5)
    turn_deg: float = 0.0
    sway: float = 1.0
    stride: float = 0.0
    together: bool = False


_SCENES = {
    "Directions": _Scene(
        ("stand", "stand_wide"), ("point", "point_side", "hang", "gesture"), ("hang", "point_side", "point"),
        ("left", "ahead", "right"), turn_deg=70,
    ),
    "Discussion": _Scene(
        ("stand", "stand_wide", "lean"), ("gesture", "gesture_out", "hang", "crossed"),
        ("gesture_out", "gesture", "hang"), ("ahead", "left", "right", "tilt_right"), (1.2, 2.8), 50, 1.2,
    ),
    "Eating": _Scene(
        ("sit", "sit_forward"), ("mouth", "plate", "lap"), ("plate", "plate", "lap"),
        ("down", "ahead", "left"), (1.5, 2.6),
    ),
    "Greeting": _Scene(
        ("stand", "lean", "stand_wide"), ("hand_out", "wave", "hang"), ("hang", "gesture_out", "wave"),
        ("ahead", "up", "left"), (1.2, 2.6), 60, 1.2,
    ),
    "Phoning": _Scene(
        ("sit", "sit_back", "sit_forward"), ("phone",), ("lap", "gesture", "lap"),
        ("tilt_right", "left", "down", "tilt_right"), (2.0, 4.0),
    ),
    "Photo": _Scene(
        ("stand", "lean", "stand_wide"), ("camera", "camera", "hang"), ("camera", "camera", "hang"),
        ("ahead", "up", "down"), (2.0, 3.5), 50, together=True,
    ),
    "Posing": _Scene(
        ("stand", "stand_wide"), ("on_hip", "reach_up", "hang", "wave"),
        ("on_hip", "hang", "reach_up", "point_side"), ("ahead", "left", "right", "up", "tilt_right"),
        (1.5, 3.0), 90,
    ),
    "Purchases": _Scene(
        ("stand", "bend", "lean", "pick"), ("hand_out", "reach_down", "gesture", "reach_up"),
        ("hang", "hand_out", "reach_down"), ("down", "ahead", "left"), (1.4, 2.8), 60,
    ),
    "Sitting": _Scene(
        ("sit", "sit_back", "sit_forward"), ("lap", "gesture", "lap", "crossed"), ("lap", "gesture", "lap"),
        dwell_s=(1.8, 3.6), sway=1.2,
    ),
    "SittingDown": _Scene(
        ("stand", "floor", "floor_crossed", "floor_long"), ("hang", "lap", "gesture", "lap"),
        ("hang", "lap", "lap", "gesture"), ("ahead", "down", "left", "right"), (1.0, 2.4), 0, 1.1,
    ),
    "Smoking": _Scene(
        ("sit", "sit_back", "sit_forward"), ("mouth", "lap", "gesture_out"), ("lap",),
        ("ahead", "up", "left", "down"), (1.6, 3.2),
    ),
    "Waiting": _Scene(
        ("stand", "stand_wide", "lean"), ("hang", "crossed", "on_hip"),
        ("hang", "crossed", "on_hip"), dwell_s=(2.0, 4.0), turn_deg=60, sway=1.3, together=True,
    ),
    "WalkDog": _Scene(
        ("walk",), ("leash",), ("hang", "leash"), ("down", "ahead", "left"), (2.0, 4.0), 0, 1.2, 0.85,
    ),
    "Walking": _Scene(("walk",), ("hang",), ("hang",), ("ahead", "down"), (2.5, 5.0), 0, 0.8, 1.0),
    "WalkTogether": _Scene(
        ("walk",), ("hang", "gesture", "hang"), ("hang",), ("ahead", "left", "left"), (2.0, 4.0), 0, 0.9, 0.95
    ),
}  # fmt: skip


class _Sway(NamedTuple):
    """Small movements of these coordinates, degrees (half the range), and how fast they may be."""

    pattern: str
    amplitude: float
    fastest_hz: float


_SWAYS = (
    _Sway(r"pelvis_list", 1.2, 0.6),
    _Sway(r"pelvis_rotation", 5.0, 0.4),
    _Sway(r"hip_rotation_[rl]", 1.5, 0.8),
    _Sway(r"subtalar_angle_[rl]", 1.5, 0.8),
    _Sway(r"mtp_angle_[rl]", 1.0, 0.8),
    _Sway(r"L5_S1_Lat_Bending", 1.0, 0.7),
    _Sway(r"L5_S1_axial_rotation", 0.9, 0.7),
    _Sway(r"neck_flexion", 5.0, 1.0),
    _Sway(r"neck_bending", 4.0, 1.0),
    _Sway(r"neck_rotation", 8.0, 0.8),
    _Sway(r"arm_(flex|add)_[rl]", 5.0, 1.2),
    _Sway(r"arm_rot_[rl]", 8.0, 1.2),
    _Sway(r"elbow_flex_[rl]", 8.0, 1.5),
    _Sway(r"pro_sup_[rl]", 10.0, 1.5),
    _Sway(r"wrist_flex_[rl]", 8.0, 1.5),
    _Sway(r"wrist_dev_[rl]", 5.0, 1.5),
)
# Movements of the whole body over feet that stay put: what each coordinate does, degrees. Each keeps the sum
# tilt + hip - knee + ankle at zero in both legs.
_MODES = (
    ({"pelvis_tilt": -1.3, "ankle_angle_r": 1.3, "ankle_angle_l": 1.3}, 0.4),
    (
        {
            "hip_adduction_r": 1.8, "hip_adduction_l": -1.8,
            "subtalar_angle_r": 1.0, "subtalar_angle_l": -1.0,
        },
        0.35,
    ),
    (
        {
            "pelvis_tilt": -2.0, "hip_flexion_r": 3.5, "hip_flexion_l": 3.5, "knee_angle_r": 2.5,
            "knee_angle_l": 2.5, "ankle_angle_r": 1.0, "ankle_angle_l": 1.0,
        },
        0.7,
    ),
)  # fmt: skip
# Lordosis varies by the couplers' sum over L1 to S1 times L5-S1, and a sum of waves has a standard deviation
# of about a third of its bounds. Part of the paper's spread by action is between subjects and postures.
_LORDOSIS_PER_L5_S1 = 6.57
_WAVE_SD = 0.33
_LORDOSIS_SHARE = 0.8
_LORDOSIS_FASTEST_HZ = 0.8
# A walker goes round in a circle, as the room is small; degrees a second.
_CIRCLING_DEG = (52.0, 64.0)
# Who turns on the spot takes small steps.
_TURN_STEP = 0.35
_TURN_STEP_SD_S = 0.8
_TURN_SD_S = 0.6
# Over three minutes of them; then the last posture stays.
_EVENTS_PER_DRAW = 200


class _Gait(NamedTuple):
    """A joint's angle over a stride, degrees: knots of a curve that is cut to `_HARMONICS` harmonics.

    The cycle starts at the heel strike of the leg's own side.
    """

    pattern: str
    percent: tuple[float, ...]
    degrees: tuple[float, ...]

    def harmonics(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values over one cycle, and the cosine and sine amplitudes, without the mean."""
        knots = CubicSpline(np.array(self.percent) / 100, self.degrees, bc_type="periodic")
        spectrum = np.fft.rfft(knots(np.arange(200) / 200)) / 100
        kept = spectrum[1 : _HARMONICS + 1]
        return _harmonic_sum(np.linspace(0, 1, CYCLE_SAMPLES), kept.real, -kept.imag), kept.real, -kept.imag


_HARMONICS = 3
# Rounded from textbook curves of level walking (as D. A. Winter's; recalled). Means over the cycle are the
# posture "walk".
_GAITS = (
    _Gait(
        r"hip_flexion_[rl]", (0, 12, 25, 40, 50, 60, 70, 80, 88, 95, 100),
        (30, 24, 10, -5, -11, -3, 15, 28, 33, 32, 30),
    ),
    _Gait(
        r"knee_angle_[rl]", (0, 5, 12, 25, 40, 50, 60, 70, 75, 85, 95, 100),
        (5, 10, 18, 11, 5, 12, 37, 60, 62, 40, 7, 5),
    ),
    _Gait(
        r"ankle_angle_[rl]", (0, 6, 12, 25, 40, 46, 52, 60, 64, 72, 80, 90, 100),
        (0, -6, -1, 5, 10, 11, 4, -16, -18, -6, 2, 2, 0),
    ),
    _Gait(r"mtp_angle_[rl]", (0, 20, 40, 50, 57, 63, 70, 85, 100), (4, 0, 2, 15, 24, 14, 4, 3, 4)),
)  # fmt: skip
# The rest of the body in step with the legs.
_STRIDE_PATTERNS = r"hip_adduction|pelvis_(list|rotation)|arm_flex|elbow_flex|L5_S1_"


@dataclass(frozen=True)
class ActionMotion:
    """Coordinates over time, NumPy float64, radians.

    Attributes:
        times: seconds.
        q: free coordinates ``[T Q]``; the root's translations are 0, its rotations are those of ``root``'s
            columns, and ``L5_S1_Flex_Ext`` is what is to be added to the action's and the subject's mean.
        root: heading to the left, tilt backward and list to the right ``[T 3]``: ``Ry Rz Rx`` in this order,
            so that tilt and list are the person's own whatever way they face.
        lower: lowest value that each coordinate of ``q`` can take at any instant.
        upper: highest.
    """

    times: np.ndarray
    q: np.ndarray
    root: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def action_motion(model: SpineModel, action: str, n_frames: int, rate_hz: float, seed: int) -> ActionMotion:
    """Plausible motion of an action; equal arguments give equal numbers.

    The motion is a function of time alone: another rate samples the same one and more frames continue it.

    Args:
        model: the spine model.
        action: one of `ACTION_NAMES`.
        n_frames: T, at least 1; the first is at time 0.
        rate_hz: frames per second, above twice `FASTEST_HZ`.
        seed: picks the order of events, strides and waves.

    Raises:
        UnknownNameError: the action is unknown, or the model lacks a coordinate of the spine model.
        ShapeError: ``n_frames`` or ``rate_hz`` is not valid.
    """
    if action not in _SCENES:
        raise UnknownNameError("Action", action, "the set", ACTION_NAMES)
    if n_frames < 1:
        raise ShapeError(f"n_frames is {n_frames}; valid is at least 1")
    if not (math.isfinite(rate_hz) and rate_hz > 2 * FASTEST_HZ):
        raise ShapeError(f"rate_hz is {rate_hz}; valid is above {2 * FASTEST_HZ:g} frames per second")
    times = np.arange(n_frames) / rate_hz
    tracks = _Tracks(model, times)
    _act(tracks, action, seed)
    return tracks.result()


class _Tracks:
    """Sums postures and contributions of each coordinate, degrees, and keeps their bounds."""

    def __init__(self, model: SpineModel, times: np.ndarray):
        self.model, self.times = model, times
        shape = (len(times), model.n_free)
        self.posture, self.change = np.zeros(shape), np.zeros(shape)
        self.low, self.high = np.zeros(model.n_free), np.zeros(model.n_free)
        self.change_low, self.change_high = np.zeros(model.n_free), np.zeros(model.n_free)

    def blend(self, weights: np.ndarray, postures: Sequence[Mapping[str, float]]) -> None:
        """Adds a convex blend: weights ``[T P]``, postures as values by coordinate."""
        names = list(postures[0])
        index = self.model.free_indices(names)
        values = np.array([[posture[name] for name in names] for posture in postures])
        self.posture[:, index] += weights @ values
        self.low[index] += values.min(axis=0)
        self.high[index] += values.max(axis=0)

    def add(self, name: str, change: np.ndarray, low: float, high: float) -> None:
        """Adds a contribution ``[T]`` that never leaves low … high; these bracket 0."""
        (index,) = self.model.free_indices([name])
        self.change[:, index] += change
        self.change_low[index] += min(low, 0.0)
        self.change_high[index] += max(high, 0.0)

    def result(self) -> ActionMotion:
        lower, upper = np.rad2deg(np.asarray(self.model.lower, float)), np.rad2deg(self.model.upper)
        with np.errstate(invalid="ignore"):
            margin = np.where(np.isfinite(upper - lower), LIMIT_MARGIN * (upper - lower), 0.0)
        lower, upper = lower + margin, upper - margin
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.stack([self.low - lower, upper - self.high]) / np.abs(
                [self.change_low, self.change_high]
            )
        share = np.clip(np.where(np.isnan(shares), 1.0, shares).min(axis=0), 0.0, 1.0)
        q = np.deg2rad(self.posture + share * self.change)
        low, high = (np.deg2rad(b + share * c) for b, c in
                     ((self.low, self.change_low), (self.high, self.change_high)))  # fmt: skip
        rotations = self.model.free_indices(["pelvis_rotation", "pelvis_tilt", "pelvis_list"])
        root = q[:, rotations].copy()
        q[:, rotations] = _ground_angles(root)
        low[rotations], high[rotations] = -np.inf, np.inf
        return ActionMotion(self.times, q, root, low, high)


def _act(tracks: _Tracks, action: str, seed: int) -> None:
    scene, times = _SCENES[action], tracks.times
    number = ACTION_NAMES.index(action)

    def random(stream: int) -> np.random.Generator:
        return np.random.default_rng([seed, number, stream])

    legs = _Events(random(0), scene.legs, scene.dwell_s, via=_leg_via)
    tracks.blend(legs.weights(times), [_leg_values(_LEGS[name]) for name in legs.names])
    for side, names, stream in (("r", scene.right, 1), ("l", scene.left, 1 if scene.together else 2)):
        arms = _Events(random(stream), names, scene.dwell_s)
        tracks.blend(arms.weights(times), [_arm_values(_ARMS[name], side) for name in arms.names])
    head = _Events(random(3), scene.head, scene.dwell_s)
    tracks.blend(head.weights(times), [_head_values(_HEADS[name]) for name in head.names])
    _add_heading(tracks, scene, random(4))
    _add_sway(tracks, scene, PAPER_CURVATURE_DEG[action].lordosis_sd, random(5))
    if scene.stride:
        _add_stride(tracks, scene, random(6))


class _Events:
    """A sequence of postures and the times at which one gives way to the next."""

    def __init__(
        self, random: np.random.Generator, names: Sequence[str], dwell_s: tuple[float, float], via=None
    ):
        self.names = tuple(dict.fromkeys(names))
        order, self.starts, now = [names[0]], [], 0.0
        for _ in range(_EVENTS_PER_DRAW if len(self.names) > 1 else 0):
            now += random.uniform(*dwell_s)
            others = [name for name in names if name != order[-1]]
            following = others[int(random.integers(len(others)))]
            between = via(order[-1], following) if via else None
            if between is not None:
                order.append(between)
                self.starts.append(now)
                now += 2.2 * STEP_SD_S
            order.append(following)
            self.starts.append(now)
        self.names = tuple(dict.fromkeys((*self.names, *order)))
        self.order = np.array([self.names.index(name) for name in order])

    def weights(self, times: np.ndarray) -> np.ndarray:
        """``[T P]`` of each posture, at least 0, with sum 1; the last one stays for ever."""
        if not self.starts:
            return np.ones((len(times), 1))
        begun = ndtr((times[:, None] - np.array(self.starts)) / STEP_SD_S)
        begun = np.concatenate([np.ones((len(times), 1)), begun, np.zeros((len(times), 1))], axis=1)
        weights = np.zeros((len(times), len(self.names)))
        np.add.at(weights.T, self.order, (begun[:, :-1] - begun[:, 1:]).T)
        return weights


def _leg_via(start: str, end: str) -> str | None:
    """The posture on the way: nobody lets themselves down with straight legs."""
    places = [("floor" if n in _ON_FLOOR else "chair" if n in _ON_CHAIR else "up") for n in (start, end)]
    if places[0] == places[1]:
        return None
    return "squat" if "floor" in places else "rise"


def _leg_values(p: _Legs) -> dict[str, float]:
    ankle = p.knee - p.hip - p.tilt if p.ankle is None else p.ankle
    values = {"pelvis_tilt": p.tilt, "L5_S1_Flex_Ext": p.flex}
    for side in "rl":
        values |= {
            f"hip_flexion_{side}": p.hip,
            f"hip_adduction_{side}": p.adduction,
            f"hip_rotation_{side}": p.rotation,
            f"knee_angle_{side}": p.knee,
            f"ankle_angle_{side}": ankle,
        }
    return values


def _arm_values(p: _Arm, side: str) -> dict[str, float]:
    parts = ("arm_flex", "arm_add", "arm_rot", "elbow_flex", "pro_sup", "wrist_flex")
    return {f"{part}_{side}": value for part, value in zip(parts, p, strict=True)}


def _head_values(p: _Head) -> dict[str, float]:
    return dict(zip(("neck_flexion", "neck_bending", "neck_rotation"), p, strict=True))


def _add_heading(tracks: _Tracks, scene: _Scene, random: np.random.Generator) -> None:
    """Which way the person faces: any way at first, then round a circle, or by turns on the spot."""
    times = tracks.times
    heading = np.full(len(times), random.uniform(-180, 180))
    if scene.stride:
        heading += random.choice([-1.0, 1.0]) * random.uniform(*_CIRCLING_DEG) * times
    elif scene.turn_deg:
        starts = np.cumsum(random.uniform(2.0, 5.0, _EVENTS_PER_DRAW))
        angles = random.uniform(0.4, 1.0, len(starts)) * scene.turn_deg
        angles *= np.where(np.arange(len(starts)) % 2 == 0, 1, -1) * random.choice([-1, 1])
        heading += ndtr((times[:, None] - starts) / _TURN_SD_S) @ angles
        near = np.exp(-0.5 * ((times[:, None] - starts) / _TURN_STEP_SD_S) ** 2)
        _add_steps(tracks, _TURN_STEP * (1 - np.prod(1 - near, axis=1)), random)
    tracks.add("pelvis_rotation", heading, 0.0, 0.0)


def _add_steps(tracks: _Tracks, size: np.ndarray, random: np.random.Generator) -> None:
    """Lifts one foot after the other: knees, and hips and ankles so that the foot stays level."""
    stride_hz, start = random.uniform(*STRIDE_HZ), random.uniform()
    for side, late in (("r", 0.0), ("l", 0.5)):
        lift = size * (0.5 - 0.5 * np.cos(2 * np.pi * (stride_hz * tracks.times + start + late)))
        knee = np.clip(lift, 0, 1) * 60
        tracks.add(f"knee_angle_{side}", knee, 0, 60 * _TURN_STEP)
        tracks.add(f"hip_flexion_{side}", knee / 2, 0, 30 * _TURN_STEP)
        tracks.add(f"ankle_angle_{side}", knee / 2, 0, 30 * _TURN_STEP)


def _add_sway(tracks: _Tracks, scene: _Scene, lordosis_sd: float, random: np.random.Generator) -> None:
    """Waves of single coordinates, of the whole body over its feet, and of lordosis."""
    names = [(n, s) for n in tracks.model.free_names if (s := _first(_SWAYS, n)) is not None]
    flexion = _LORDOSIS_SHARE * lordosis_sd / (_LORDOSIS_PER_L5_S1 * _WAVE_SD)
    fastest = np.array([s.fastest_hz for _, s in names] + [hz for _, hz in _MODES] + [_LORDOSIS_FASTEST_HZ])
    units = random_waves(random, fastest).at(tracks.times).T
    for (name, sway), unit in zip(names, units, strict=False):
        size = scene.sway * sway.amplitude
        tracks.add(name, size * unit, -size, size)
    for (mode, _), unit in zip(_MODES, units[len(names) :], strict=False):
        for name, amplitude in mode.items():
            size = scene.sway * abs(amplitude)
            tracks.add(name, scene.sway * amplitude * unit, -size, size)
    tracks.add("L5_S1_Flex_Ext", flexion * units[-1], -flexion, flexion)


def _add_stride(tracks: _Tracks, scene: _Scene, random: np.random.Generator) -> None:
    """The stride about its own mean, which the walk's posture has already."""
    stride_hz, start = random.uniform(*STRIDE_HZ), random.uniform()
    free_arm = {side for side, names in (("r", scene.right), ("l", scene.left)) if names[0] == "hang"}
    for name in tracks.model.free_names:
        cycle = stride_hz * tracks.times + start + (0.5 if name.endswith("_l") else 0.0)
        gait, stride = _first(_GAITS, name), _first(STRIDES, name)
        if gait is not None:
            whole, cosine, sine = gait.harmonics()
            change = _harmonic_sum(cycle, cosine, sine)
        elif stride is not None and re.match(_STRIDE_PATTERNS, name):
            whole = stride_at(stride, np.linspace(0, 1, CYCLE_SAMPLES)) - stride.centre
            change = stride_at(stride, cycle) - stride.centre
        else:
            continue
        size = scene.stride * (0.3 if re.match("arm|elbow", name) and name[-1] not in free_arm else 1.0)
        tracks.add(name, size * change, size * whole.min(), size * whole.max())


def _harmonic_sum(cycle: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * cycle[:, None] * np.arange(1, len(cosine) + 1)
    return np.cos(angle) @ cosine + np.sin(angle) @ sine


def _first(rows: Iterable, name: str):
    return next((row for row in rows if re.fullmatch(row.pattern, name)), None)


def _ground_angles(root: np.ndarray) -> np.ndarray:
    """Heading, tilt and list as the model's ``pelvis_rotation``, ``pelvis_tilt`` and ``pelvis_list``.

    The model turns by tilt about the ground's z first: ``Rz Rx Ry``. The heading is made continuous.
    """
    (sh, st, sl), (ch, ct, cl) = np.sin(root).T, np.cos(root).T
    # Entries of Ry(heading) Rz(tilt) Rx(list) that the angles are read from.
    r01 = -ch * st * cl + sh * sl
    r11 = ct * cl
    r20, r21, r22 = -sh * ct, sh * st * cl + ch * sl, -sh * st * sl + ch * cl
    tilt, bend = np.arctan2(-r01, r11), np.arctan2(r21, np.hypot(r01, r11))
    heading = root[:, 0] + _wrapped(np.arctan2(-r20, r22) - root[:, 0])
    return np.stack([heading, tilt, bend], axis=1)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi
