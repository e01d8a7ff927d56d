"""What the rigid model can't follow: bending inside thorax and neck, shoulder blades, and skin on bones.

True keypoints are the model's markers plus these displacements, all smooth in time. Without them a model
that is fitted to synthetic keypoints could explain them fully, and its errors would look too small.
Amounts are chosen: a bow of a few millimetres in the thorax gives the standard deviation of kyphosis of 3 to
6 degrees that the paper reports by action.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.kinematics.forward import Poses
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.skeleton import KEYPOINT_NAMES, N_KEYPOINTS, PAPER_MARKERS, TRC_NAMES

FACE_M = {
    "left_eye": (0.092, 0.045, -0.032),
    "right_eye": (0.092, 0.045, 0.032),
    "left_ear": (0.010, 0.030, -0.074),
    "right_ear": (0.010, 0.030, 0.074),
}
"""Eyes and ears in the head's frame, metres: chosen, as the model has no marker for them.

The nose marker is at x 0.116, y 0.013; a face has its eyes 3 cm above and behind the tip of the nose, 6.4 cm
apart, and its ear openings 15 cm apart.
"""

TISSUE_M = {
    "nose": 0.001, "head": 0.003, "neck": 0.002, "neck_02": 0.002, "neck_03": 0.002,
    "left_eye": 0.001, "right_eye": 0.001, "left_ear": 0.002, "right_ear": 0.002,
    "spine_01": 0.0015, "spine_02": 0.0015, "spine_03": 0.0015, "spine_04": 0.002, "spine_05": 0.002,
    "hip": 0.003, "left_hip": 0.014, "right_hip": 0.014, "left_shoulder": 0.012, "right_shoulder": 0.012,
    "left_latissimus": 0.012, "right_latissimus": 0.012, "left_clavicle": 0.004, "right_clavicle": 0.004,
    "left_knee": 0.010, "right_knee": 0.010, "left_elbow": 0.008, "right_elbow": 0.008,
}  # fmt: skip
"""Bound of the soft-tissue shift along each axis of the bone, and of others `_TISSUE_OTHER_M` (chosen).

The standard deviation is a third of it: a few millimetres on limbs, as skin markers move on bones in slow
movements, and under a millimetre where the skin lies on the spine.
"""
_TISSUE_OTHER_M = 0.006

TISSUE_BOUNDS_M = np.array([TISSUE_M.get(name, _TISSUE_OTHER_M) for name in KEYPOINT_NAMES])

# The neck follows the head with this share of the head's angle, and bends a little of its own.
_NECK_SHARE = 0.35
# Rise of acromion, medial clavicle and of the shoulder blade's lower end with a raised arm (upwards,
# outwards), metres at full elevation; chosen.
_SHOULDER_RISE = {"shoulder": (0.022, -0.004), "clavicle": (0.004, 0.0), "latissimus": (0.012, 0.022)}

_BODIES = {m.name: m.body for m in PAPER_MARKERS}
_KEYPOINT_BODIES = tuple(_BODIES.get(trc, "head") for trc in TRC_NAMES)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TissueMotion:
    """Amounts over time.

    Attributes:
        bow: how far the middle of the thoracic spine moves back from its rigid place, metres.
        neck: bending of the neck of its own, to the back and to the right, radians.
        shift: soft-tissue shift of each keypoint in the frame of its bone, metres.
    """

    bow: Float[Array, " T"]
    neck: Float[Array, "T 2"]
    shift: Float[Array, "T K 3"]


def rigid_keypoints(
    model: SpineModel, poses: Poses, scale_factors: Float[Array, "B 3"]
) -> Float[Array, "*batch K 3"]:
    """The 37 keypoints on the rigid bodies: the model's markers, and eyes and ears on its head.

    Raises:
        UnknownNameError: the model lacks one of the paper's markers.
    """
    head = model.body_names.index("head")
    names = [name for name in TRC_NAMES if name in _BODIES]
    columns = dict(zip(names, model.marker_indices(names), strict=True))
    face = jnp.array(list(FACE_M.values()), poses.markers.dtype) * scale_factors[head]
    face = poses.body_positions[..., None, head, :] + jnp.einsum(
        "...ij,pj->...pi", poses.body_rotations[..., head, :, :], face, precision="highest"
    )
    points = jnp.concatenate([poses.markers, face], axis=-2)
    places = list(FACE_M)
    order = [
        columns[trc] if trc in columns else model.n_markers + places.index(name)
        for trc, name in zip(TRC_NAMES, KEYPOINT_NAMES, strict=True)
    ]
    return points[..., np.array(order, int), :]


def true_keypoints(
    model: SpineModel,
    q: Float[Array, "T Q"],
    poses: Poses,
    scale_factors: Float[Array, "B 3"],
    tissue: TissueMotion,
) -> Float[Array, "T K 3"]:
    """Keypoints of a body that bends where the model is rigid, metres in ground.

    Args:
        model: the spine model with the paper's markers.
        q: free coordinates; the neck's are read.
        poses: forward kinematics of ``q``.
        scale_factors: that ``poses`` were computed with.
        tissue: what the body does beyond the model.
    """
    keypoints = rigid_keypoints(model, poses, scale_factors)
    torso = model.body_names.index("torso")
    bones = poses.body_rotations[:, np.array([model.body_names.index(b) for b in _KEYPOINT_BODIES], int)]
    thorax = poses.body_rotations[:, torso]
    neck = tissue.neck + _NECK_SHARE * q[:, model.free_indices(["neck_flexion", "neck_bending"])]
    in_thorax = _bow(tissue.bow) + _neck_bend(neck, scale_factors[torso, 1]) + _raised_arms(model, poses)
    moved = jnp.einsum("tij,tkj->tki", thorax, in_thorax, precision="highest")
    return keypoints + moved + jnp.einsum("tkij,tkj->tki", bones, tissue.shift, precision="highest")


def _heights(low: float, high: float) -> np.ndarray:
    """Of each keypoint on the thorax, 0 … 1 between two heights in its frame; 0 for others."""
    height = {m.name: m.location[1] for m in PAPER_MARKERS if m.body == "torso"}
    return np.clip([(height.get(trc, low) - low) / (high - low) for trc in TRC_NAMES], 0.0, 1.0)


# Heights in the torso's frame, metres: T12/L1 in the neutral pose, C7, and the joint of the head.
_T12, _C7, _C1 = 0.079, 0.413, 0.512
_BOW = 4 * _heights(_T12, _C7) * (1 - _heights(_T12, _C7))
_BOW[[TRC_NAMES.index("LShoulder"), TRC_NAMES.index("RShoulder")]] = 0  # they hang from the shoulder blades
_NECK_HEIGHT = np.where([body == "head" for body in _KEYPOINT_BODIES], 1.0, _heights(_C7, _C1))


def _bow(bow: Array) -> Array:
    """``[T K 3]`` in the torso: a parabola backwards that leaves T12 and C7 where they are."""
    return bow[:, None, None] * jnp.asarray(_BOW[:, None] * np.array([-1.0, 0.0, 0.0]), bow.dtype)


def _neck_bend(angle: Array, scale: Array) -> Array:
    """Even bending from C7 upwards moves a point by the square of its height; the head rides on top."""
    reach = scale * jnp.asarray((_C1 - _C7) * _NECK_HEIGHT**2 / 2, angle.dtype)
    back, right = reach * angle[:, :1], reach * angle[:, 1:]
    return jnp.stack([-back, jnp.zeros_like(back), right], axis=-1)


def _raised_arms(model: SpineModel, poses: Poses) -> Array:
    """Shoulder girdle ``[T K 3]`` in the torso, from how high each upper arm is raised."""
    thorax = poses.body_rotations[:, model.body_names.index("torso")]
    total = jnp.zeros((*thorax.shape[:1], N_KEYPOINTS, 3), thorax.dtype)
    for side, sign in (("right", 1.0), ("left", -1.0)):
        humerus = poses.body_rotations[:, model.body_names.index(f"humerus_{side[0]}")]
        cosine = jnp.sum(thorax[:, :, 1] * humerus[:, :, 1], axis=-1)
        raised = 0.5 * (1 - cosine)
        for part, (up, out) in _SHOULDER_RISE.items():
            direction = jnp.array([0.0, up, sign * out], thorax.dtype)
            total = total.at[:, KEYPOINT_NAMES.index(f"{side}_{part}")].add(raised[:, None] * direction)
    return total
