"""Synthetic motion of every free coordinate of a converted model, and markers with noise and gaps.

A coordinate moves as ``centre + amplitude * unit(t)`` with ``|unit| <= 1``, where ``unit`` is a weighted
sum of sinusoids. So limits hold at every instant, not only at the sampled ones, and nothing is faster
than `MAX_FREQUENCY_HZ`. The amplitudes are plausible for a person who stands or walks about; they are
chosen, not measured.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.model import SpineModel

MotionKind = Literal["mixed", "walk"]

MAX_FREQUENCY_HZ = 2.0
"""Nothing moves faster: below the 5 Hz at which the field's filters cut."""

LIMIT_MARGIN = 0.02
"""Share of a clamped coordinate's range that stays unused at each end."""

_WAVES = 6
_SLOWEST_HZ = 0.05
STRIDE_HZ = (0.85, 0.95)
# What a walking person's coordinates do beside the stride itself.
_WALK_WANDER = 0.3
# Enough to find a stride's extremes within a part in ten thousand of its range; the margin is wider.
CYCLE_SAMPLES = 721
_IN_METRES = ("pelvis_tx", "pelvis_ty", "pelvis_tz")


class _Habit(NamedTuple):
    """Bounds of what coordinates of these names do, degrees or metres, and how fast they may change.

    A sum of waves spends its time within about two thirds of its bounds.
    """

    pattern: str
    low: float
    high: float
    fastest_hz: float = MAX_FREQUENCY_HZ


# The first pattern that matches a coordinate's whole name counts.
_ROTATIONS = (
    _Habit(r"pelvis_rotation", -80, 80, 0.25),
    _Habit(r"pelvis_(tilt|list)", -18, 18, 1.0),
    _Habit(r"hip_flexion_[rl]", -15, 40),
    _Habit(r"hip_adduction_[rl]", -9, 6),
    _Habit(r"hip_rotation_[rl]", -10, 10),
    _Habit(r"knee_angle_[rl]", 4, 65),
    _Habit(r"ankle_angle_[rl]", -15, 14),
    _Habit(r"subtalar_angle_[rl]", -7, 7),
    _Habit(r"mtp_angle_[rl]", -8, 18),
    # The couplers add up to seven times this angle over the lumbar spine.
    _Habit(r"L\d_.*Flex_Ext", -9, 3.5, 1.0),
    _Habit(r"L\d_.*Lat_Bending", -3, 3, 1.0),
    _Habit(r"L\d_.*axial_rotation", -2.3, 2.3, 1.0),
    _Habit(r"lumbar_.*", -12, 12, 1.0),
    _Habit(r"neck_.*", -28, 28, 1.0),
    # Adduction of -90 degrees, the spine model's default, is a gimbal singularity of its shoulders.
    _Habit(r"arm_add_[rl]", -68, -36),
    _Habit(r"arm_flex_[rl]", -25, 45),
    _Habit(r"arm_rot_[rl]", -30, 30),
    _Habit(r"elbow_flex.*", 12, 100),
    _Habit(r"pro_sup.*", 40, 100),
    _Habit(r"wrist_flex.*", -14, 14),
    _Habit(r"wrist_dev.*", -6, 6),
)
_TRANSLATIONS = (
    _Habit(r"pelvis_t[xz]", -0.4, 0.4, 0.25),
    _Habit(r"pelvis_ty", 0.90, 0.97, 1.0),
)
# Any other coordinate stays this close to its default.
_OTHER_ROTATION_DEG = 10.0
_OTHER_TRANSLATION_M = 0.02


class Stride(NamedTuple):
    """First and second harmonic of the stride: amplitudes, and the share of the cycle where they peak.

    The cycle starts at the right heel strike; what is on the left runs half a cycle later.
    """

    pattern: str
    centre: float
    first: float
    first_peak: float
    second: float
    second_peak: float


STRIDES = (
    Stride(r"hip_flexion_[rl]", 11, 21, 0.97, 3, 0.35),
    Stride(r"hip_adduction_[rl]", -1, 5, 0.28, 1, 0.1),
    Stride(r"knee_angle_[rl]", 24, 21, 0.72, 13, 0.72),
    Stride(r"ankle_angle_[rl]", 0, 6, 0.38, 7, 0.42),
    Stride(r"arm_flex_[rl]", 5, 18, 0.47, 1, 0.0),
    Stride(r"elbow_flex_[rl]", 32, 9, 0.5, 1, 0.0),
    Stride(r"pelvis_list", 0, 3, 0.15, 1, 0.1),
    Stride(r"pelvis_rotation", 0, 5, 0.0, 0, 0.0),
    Stride(r"pelvis_ty", 0.94, 0, 0.0, 0.02, 0.3),
    Stride(r"pelvis_tz", 0, 0.02, 0.3, 0, 0.0),
    Stride(r"L\d_.*axial_rotation", 0, 1.2, 0.5, 0, 0.0),
    Stride(r"L\d_.*Lat_Bending", 0, 1.0, 0.4, 0, 0.0),
)


@dataclass(frozen=True)
class Waves:
    """Of each coordinate, sinusoids over time: all arrays are ``[Q W]``, weights sum to at most 1."""

    frequencies_hz: np.ndarray
    phases: np.ndarray
    weights: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """``[T Q]`` in -1 … 1; summed wave by wave, so that no ``[T Q W]`` array is made."""
        unit = np.zeros((len(times), len(self.phases)))
        for f, phase, weight in zip(self.frequencies_hz.T, self.phases.T, self.weights.T, strict=True):
            unit += weight * np.sin(2 * np.pi * times[:, None] * f + phase)
        return unit


def synthetic_motion(
    model: SpineModel, n_frames: int, rate_hz: float, seed: int, kind: MotionKind = "mixed"
) -> Float[Array, "T Q"]:
    """Plausible motion of all free coordinates, radians and metres; equal arguments give equal numbers.

    The motion is a function of time alone: another rate samples the same one and more frames continue it.

    Args:
        model: any converted model; coordinates are known by their names in OpenSim's full-body models, and
            others stay near their defaults.
        n_frames: T, at least 1; the first is at time 0.
        rate_hz: frames per second, above twice `MAX_FREQUENCY_HZ`.
        seed: picks the motion.
        kind: ``"mixed"`` moves every coordinate on its own; ``"walk"`` is a stride on the spot, left and
            right half a cycle apart, in which the rest of the body wanders a little.

    Raises:
        ShapeError: ``n_frames``, ``rate_hz`` or ``kind`` is not valid.
    """
    if n_frames < 1:
        raise ShapeError(f"n_frames is {n_frames}; valid is at least 1")
    if not (math.isfinite(rate_hz) and rate_hz > 2 * MAX_FREQUENCY_HZ):
        raise ShapeError(f"rate_hz is {rate_hz}; valid is above {2 * MAX_FREQUENCY_HZ:g} frames per second")
    if kind not in get_args(MotionKind):
        raise ShapeError(f"kind is {kind!r}; valid are {', '.join(get_args(MotionKind))}")
    random = np.random.default_rng(seed)
    times = np.arange(n_frames) / rate_hz
    ranges, fastest_hz = _habits(model)
    waves = random_waves(random, fastest_hz)
    if kind == "mixed":
        q = _within(model, *ranges, waves.at(times))
    else:
        q = _walk(model, random, ranges, waves, times)
    return jnp.asarray(q, model.dtype)


def add_marker_noise(
    markers: Float[Array, "*batch K 3"], sigma_m: float, key: Array, missing_fraction: float = 0.0
) -> Float[Array, "*batch K 3"]:
    """Markers with Gaussian noise on each coordinate, and with NaN where a marker is missing.

    Args:
        markers: positions, metres; NaN stays NaN.
        sigma_m: standard deviation on each axis.
        key: JAX random key.
        missing_fraction: chance of each marker in each frame to be missing, 0 … 1.

    Raises:
        ShapeError: ``markers`` doesn't end in 3, or ``sigma_m`` or ``missing_fraction`` is out of range.
    """
    markers = jnp.asarray(markers)
    if markers.ndim < 2 or markers.shape[-1] != 3:
        raise ShapeError(f"markers has shape {markers.shape}; valid is [..., K, 3]")
    if not 0 <= sigma_m < math.inf:
        raise ShapeError(f"sigma_m is {sigma_m}; valid is a finite number of metres from 0")
    if not 0 <= missing_fraction <= 1:
        raise ShapeError(f"missing_fraction is {missing_fraction}; valid is 0 to 1")
    noise_key, missing_key = jax.random.split(key)
    noisy = markers + sigma_m * jax.random.normal(noise_key, markers.shape, markers.dtype)
    missing = jax.random.bernoulli(missing_key, missing_fraction, markers.shape[:-1])
    return jnp.where(missing[..., None], jnp.nan, noisy)


def _habits(model: SpineModel) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Lowest and highest value of each free coordinate, and its highest frequency."""
    rotational = np.array(model.rotational, bool)[model.coordinate_map.free_indices]
    defaults = np.asarray(model.default_q, float)
    rows = [
        _habit(name, turns, default)
        for name, turns, default in zip(model.free_names, rotational, defaults, strict=True)
    ]
    low, high, fastest_hz = np.array(rows, float).reshape(-1, 3).T
    return (low, high), fastest_hz


def _habit(name: str, turns: bool, default: float) -> tuple[float, float, float]:
    unit = math.radians(1) if turns else 1.0
    for habit in _ROTATIONS if turns else _TRANSLATIONS:
        if re.fullmatch(habit.pattern, name):
            return unit * habit.low, unit * habit.high, habit.fastest_hz
    reach = math.radians(_OTHER_ROTATION_DEG) if turns else _OTHER_TRANSLATION_M
    return default - reach, default + reach, MAX_FREQUENCY_HZ


def _within(model: SpineModel, low: np.ndarray, high: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Values between low and high, both moved inside the limits of clamped coordinates."""
    lower, upper = np.asarray(model.lower, float), np.asarray(model.upper, float)
    with np.errstate(invalid="ignore"):
        margin = np.where(np.isfinite(upper - lower), LIMIT_MARGIN * (upper - lower), 0.0)
    low, high = (np.clip(ends, lower + margin, upper - margin) for ends in (low, high))
    return (low + high) / 2 + (high - low) / 2 * unit


def random_waves(random: np.random.Generator, fastest_hz: np.ndarray) -> Waves:
    """Waves with frequencies spread evenly by ratio, slow ones stronger, as in human movement."""
    shape = (len(fastest_hz), _WAVES)
    share = (np.arange(_WAVES) + random.uniform(size=shape)) / _WAVES
    frequencies = _SLOWEST_HZ * (fastest_hz[:, None] / _SLOWEST_HZ) ** share
    weights = random.uniform(0.5, 1.0, shape) / (frequencies + 0.3)
    phases = random.uniform(0, 2 * np.pi, shape)
    return Waves(frequencies, phases, weights / weights.sum(axis=1, keepdims=True))


def _walk(
    model: SpineModel,
    random: np.random.Generator,
    ranges: tuple[np.ndarray, np.ndarray],
    waves: Waves,
    times: np.ndarray,
) -> np.ndarray:
    low, high = ranges
    middle, reach = (low + high) / 2, _WALK_WANDER * (high - low) / 2
    low, high, unit = middle - reach, middle + reach, waves.at(times)
    stride_hz, start = random.uniform(*STRIDE_HZ), random.uniform()
    for i, name in enumerate(model.free_names):
        stride = next((s for s in STRIDES if re.fullmatch(s.pattern, name)), None)
        if stride is not None:
            cycle = stride_hz * times + start + (0.5 if name.endswith("_l") else 0.0)
            whole = stride_at(stride, np.linspace(0, 1, CYCLE_SAMPLES))
            ends = np.array([whole.min(), whole.max()])
            unit[:, i] = 2 * (stride_at(stride, cycle) - ends.mean()) / np.ptp(ends)
            low[i], high[i] = ends if name in _IN_METRES else np.deg2rad(ends)
    return _within(model, low, high, unit)


def stride_at(stride: Stride, cycle: np.ndarray) -> np.ndarray:
    """A stride's values, degrees or metres, at shares of its cycle."""
    first = stride.first * np.cos(2 * np.pi * (cycle - stride.first_peak))
    second = stride.second * np.cos(4 * np.pi * (cycle - stride.second_peak))
    return stride.centre + first + second
