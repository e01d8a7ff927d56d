"""Sets a moving body on the floor: what touches the floor stays where it is, and the pelvis follows.

Soles and seat bones are a few points. The lowest is put on the floor at each instant (a smooth minimum), and
the body moves so that the points on the floor, weighted by how near they are to it, stand still. Walking then
carries the body forward at the speed that its legs give, and sitting down lowers the pelvis behind the feet.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.capture.subjects import SOLE_BELOW_TOE_M
from simspine_jax.kinematics.forward import Poses
from simspine_jax.kinematics.model import SpineModel

# Markers and how far the sole is below them in the neutral pose, metres (chosen with the model's feet).
_SOLES = (
    ("RHeel", 0.026), ("LHeel", 0.026),
    ("RBigToe", SOLE_BELOW_TOE_M), ("LBigToe", SOLE_BELOW_TOE_M),
    ("RSmallToe", SOLE_BELOW_TOE_M), ("LSmallToe", SOLE_BELOW_TOE_M),
)  # fmt: skip

SEAT_M = ((-0.105, -0.165, 0.055), (-0.105, -0.165, -0.055))
"""Under the seat bones with 25 mm of soft tissue, in the pelvis (chosen: 0.10 m below the hip joints)."""

# Over what heights contact comes and goes: short for the height, so that nothing floats or sinks by more than
# the width times the logarithm of the number of points; longer for who bears the weight.
_TOUCH_M, _BEAR_M = 0.004, 0.008
# Rounds off the corners where a foot takes over from the other.
_SMOOTH_SD_S = 0.06


def set_on_floor(
    model: SpineModel,
    q: Float[Array, "T Q"],
    poses: Poses,
    scale_factors: Float[Array, "B 3"],
    rate_hz: float | Array,
) -> tuple[Float[Array, "T Q"], Poses]:
    """The same motion and its poses with the pelvis moved so that the body stands on the floor (y = 0).

    Args:
        model: the spine model with the paper's markers.
        q: free coordinates whose root translations are 0.
        poses: forward kinematics of ``q``.
        scale_factors: that ``poses`` were computed with.
        rate_hz: frames per second.

    Raises:
        UnknownNameError: the model lacks a marker of the feet or a coordinate of the pelvis.
    """
    points = _touching_points(model, poses, scale_factors)
    height = points[..., 1]
    lowest = -_TOUCH_M * jax.nn.logsumexp(-height / _TOUCH_M, axis=-1)
    weight = jax.nn.softmax(-height / _BEAR_M, axis=-1)
    weight = 0.5 * (weight[1:] + weight[:-1])
    step = -jnp.sum(weight[..., None] * (points[1:] - points[:-1])[..., ::2], axis=-2)
    path = jnp.concatenate([jnp.zeros((1, 2), q.dtype), jnp.cumsum(step, axis=0)])
    path = path - jnp.mean(path, axis=0)
    moved = _smooth(jnp.stack([path[:, 0], -lowest, path[:, 1]], axis=-1), rate_hz)
    # The root's slides come first and along ground's axes, so nothing else changes.
    q = q.at[:, model.free_indices(["pelvis_tx", "pelvis_ty", "pelvis_tz"])].set(moved)
    moved = moved[:, None]
    return q, Poses(poses.markers + moved, poses.body_positions + moved, poses.body_rotations)


def _touching_points(model: SpineModel, poses: Poses, scale_factors: Array) -> Array:
    """``[T P 3]`` in ground."""
    soles = model.marker_indices([name for name, _ in _SOLES])
    below = jnp.array([depth for _, depth in _SOLES], poses.markers.dtype)
    down = below[:, None] * jnp.array([0.0, -1.0, 0.0], poses.markers.dtype)
    pelvis = model.body_names.index("pelvis")
    seat = jnp.array(SEAT_M, poses.markers.dtype) * scale_factors[pelvis]
    seat = poses.body_positions[:, pelvis, None] + jnp.einsum(
        "tij,pj->tpi", poses.body_rotations[:, pelvis], seat, precision="highest"
    )
    return jnp.concatenate([poses.markers[:, soles] + down, seat], axis=1)


def _smooth(track: Array, rate_hz: float | Array) -> Array:
    """Gaussian low-pass over time; beyond its ends a track goes on as its mirror image through the end."""
    half = min(_HALF_WIDTH, len(track) - 1)
    before, after = 2 * track[0] - track[half:0:-1], 2 * track[-1] - track[-2 : -half - 2 : -1]
    padded = jnp.concatenate([before, track, after])
    lags = jnp.arange(-half, half + 1, dtype=track.dtype) / rate_hz
    kernel = jnp.exp(-0.5 * (lags / _SMOOTH_SD_S) ** 2)
    columns = [jnp.convolve(padded[:, i], kernel / kernel.sum(), mode="valid") for i in range(track.shape[1])]
    return jnp.stack(columns, axis=-1)


_HALF_WIDTH = int(np.ceil(4 * _SMOOTH_SD_S * 100))
