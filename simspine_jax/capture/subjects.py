"""Seven synthetic adults who stand in for the dataset's subjects: sizes, proportions, marker placement.

They are not the people of Human3.6M, whose measures are not public; only the names are theirs, so that splits
read the same. Heights and body mass indices are chosen: statures within two standard deviations of European
adults, indices inside the 17 to 29 that Human3.6M states for its subjects (recalled). Proportions vary by a
few per cent, as segment lengths do between adults of one stature; left and right differ by half a per cent,
about the leg length difference of five millimetres that is found in most people (recalled). Standard
deviations are named constants below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import UnknownNameError
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel

SUBJECT_NAMES: tuple[str, ...] = ("S1", "S5", "S6", "S7", "S8", "S9", "S11")
"""The dataset's subjects; S9 and S11 are its test split."""

SOLE_BELOW_TOE_M = 0.012
"""How far the sole is below the toe markers (chosen); the ``Head`` marker is taken as the crown."""

# Standard deviations of proportions at a given stature.
_TRUNK_SD = 0.02
_LIMB_SD = 0.02
_WIDTH_SD = 0.03
_SIDE_SD = 0.005
# Of the heads of adults, sizes vary half as much as statures.
_HEAD_SHARE = 0.5
# Legs make up for a long trunk: the trunk with neck is 0.53 m of the model's height, the legs 0.87 m.
_LEG_PER_TRUNK = -0.6
# Breadth and depth of a skeleton follow the body mass index weakly (chosen).
_BREADTH_PER_INDEX = 0.15
_MODEL_INDEX = 26.0

# Standard deviations of where markers lie in their bodies: points on the back can be found to 2 mm, others to
# 4 mm, alike on both sides but for 1 mm (chosen; intra-examiner palpation studies give 3 to 6 mm).
_BACK_OFFSET_M, _OFFSET_M, _OFFSET_SIDE_M = 0.002, 0.004, 0.001
_BACK = ("Hip", "Spine_01", "Spine_02", "Spine_03", "Spine_04", "Spine_05", "Neck", "Neck_02", "Neck_03")


class _Adult(NamedTuple):
    """Stature and body mass index, chosen; and the paper's mean lordosis and kyphosis, degrees."""

    height_m: float
    mass_index: float
    lordosis_deg: float
    kyphosis_deg: float


_ADULTS = {
    "S1": _Adult(1.67, 21.5, 35.21, 32.38),
    "S5": _Adult(1.64, 20.8, 38.14, 31.89),
    "S6": _Adult(1.78, 24.2, 37.50, 37.17),
    "S7": _Adult(1.61, 22.6, 36.77, 32.85),
    "S8": _Adult(1.82, 23.1, 34.51, 33.65),
    "S9": _Adult(1.86, 26.4, 33.94, 32.84),
    "S11": _Adult(1.79, 21.9, 35.08, 34.28),
}
# The mean of the paper's rows by subject, so that a subject's part is the difference.
_MEAN_LORDOSIS_DEG, _MEAN_KYPHOSIS_DEG = 35.88, 33.58


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Subject:
    """One adult.

    Attributes:
        scale_factors: of each body along its axes, as ``forward_kinematics`` takes them.
        marker_offsets: of each marker in its body, metres.
        body_masses: of each body, kg; they add up to ``mass_kg``.
        height_m: crown to sole in the model's neutral pose.
        mass_kg: of the whole body.
        lordosis_shift: how much more lordotic than the mean subject, radians.
        kyphosis_shift: likewise for kyphosis.
        name: of `SUBJECT_NAMES`.
    """

    scale_factors: Float[Array, "B 3"]
    marker_offsets: Float[Array, "K 3"]
    body_masses: Float[Array, " B"]
    height_m: float
    mass_kg: float
    lordosis_shift: float
    kyphosis_shift: float
    name: str = field(metadata={"static": True})


def make_subject(model: SpineModel, name: str, seed: int = 0) -> Subject:
    """The adult of this name; the seed picks proportions and marker placement, not stature and mass.

    Raises:
        UnknownNameError: the name is not one of `SUBJECT_NAMES`, or the model lacks a marker that heights
            are measured with.
    """
    if name not in _ADULTS:
        raise UnknownNameError("Subject", name, "the set", SUBJECT_NAMES)
    adult = _ADULTS[name]
    random = np.random.default_rng([seed, SUBJECT_NAMES.index(name)])
    factors = _proportions(model, random, adult)
    factors *= adult.height_m / standing_height(model, factors)
    mass = adult.mass_index * adult.height_m**2
    masses = np.asarray(model.mjx_model.body_mass, float)[np.array(model.topology.body_order, int)]
    return Subject(
        np.asarray(factors, model.dtype),  # type: ignore[arg-type]
        np.asarray(_offsets(model, random), model.dtype),  # type: ignore[arg-type]
        np.asarray(masses * mass / masses.sum(), model.dtype),  # type: ignore[arg-type]
        adult.height_m,
        mass,
        math.radians(adult.lordosis_deg - _MEAN_LORDOSIS_DEG),
        math.radians(adult.kyphosis_deg - _MEAN_KYPHOSIS_DEG),
        name,
    )


def make_subjects(
    model: SpineModel, names: Sequence[str] = SUBJECT_NAMES, seed: int = 0
) -> tuple[Subject, ...]:
    """The adults of these names; see `make_subject`."""
    return tuple(make_subject(model, name, seed) for name in names)


def standing_height(model: SpineModel, scale_factors: np.ndarray | Array) -> float:
    """Crown to sole of the scaled model with all coordinates at zero, metres."""
    crown, *toes = model.marker_indices(["Head", "RBigToe", "LBigToe"])
    q = jnp.zeros(model.n_free, model.dtype)
    poses = forward_kinematics(model, q, scale_factors=jnp.asarray(scale_factors, model.dtype))
    height = np.asarray(poses.markers, float)[:, 1]
    return float(height[crown] - (height[toes].min() - SOLE_BELOW_TOE_M))


def _proportions(model: SpineModel, random: np.random.Generator, adult: _Adult) -> np.ndarray:
    """Scale factors ``[B 3]`` (depth, length, breadth) before they are brought to the stature."""
    stature = adult.height_m / standing_height(model, np.ones((len(model.body_names), 3)))
    broad = stature * (adult.mass_index / _MODEL_INDEX) ** _BREADTH_PER_INDEX
    trunk, pelvis, shoulders, thigh, shank, foot, upper, fore, head = random.standard_normal(9)
    trunk *= _TRUNK_SD
    leg = stature * (1 + _LEG_PER_TRUNK * trunk)
    head = (1 + _HEAD_SHARE * (stature - 1)) * (1 + _LIMB_SD * head)
    arm = stature * (1 + _LIMB_SD * upper)
    shoulders, pelvis = broad * (1 + _WIDTH_SD * shoulders), broad * (1 + _WIDTH_SD * pelvis)
    spine = (broad, stature * (1 + trunk), shoulders)
    parts = {
        "pelvis sacrum": (broad, stature, pelvis),
        "lumbar5 lumbar4 lumbar3 lumbar2 lumbar1 torso Abdomen": spine,
        "head": (head, head, head),
        "femur patella": (broad, leg * (1 + _LIMB_SD * thigh), broad),
        "tibia": (broad, leg * (1 + _LIMB_SD * shank), broad),
        "talus calcn toes": (leg * (1 + _LIMB_SD * foot), stature, broad),
        "humerus": (broad, arm, broad),
        "ulna radius hand": (broad, arm * (1 + _LIMB_SD * fore), broad),
    }
    factors = np.full((len(model.body_names), 3), stature)
    for bodies, factor in parts.items():
        # One draw for the bodies of a segment: they lengthen together.
        sides = 1 + _SIDE_SD * np.array([0.5, -0.5]) * random.standard_normal()
        for body in bodies.split():
            for suffix, side in (("", 1.0), ("_r", sides[0]), ("_l", sides[1])):
                if body + suffix in model.body_names:
                    factors[model.body_names.index(body + suffix)] = np.array(factor) * side
    return factors


def _offsets(model: SpineModel, random: np.random.Generator) -> np.ndarray:
    """Marker offsets ``[K 3]``: alike on both sides, in the middle plane for markers in the middle."""
    offsets = np.zeros((model.n_markers, 3))
    for i, name in enumerate(model.marker_names):
        common = random.standard_normal(3) * (_BACK_OFFSET_M if name in _BACK else _OFFSET_M)
        own = random.standard_normal((2, 3)) * _OFFSET_SIDE_M
        left = "L" + name[1:]
        if name.startswith("R") and left in model.marker_names:
            offsets[i] = common + own[0]
            offsets[model.marker_names.index(left)] = common * [1, 1, -1] + own[1]
        elif not (name.startswith("L") and "R" + name[1:] in model.marker_names):
            offsets[i] = common * [1, 1, 0] + own[0] * [0, 0, 1]
    return offsets
