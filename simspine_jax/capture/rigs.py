"""Four cameras around a room.

The rig is synthetic, of the kind of Human3.6M's: four pictures of 1000 by 1000 pixels, a focal length of
about 1145 px, cameras 1.5 m high in the corners of a room, 5 to 6 m from the middle, lenses with mild barrel
distortion. Numbers are rounded and moved about by seed; none is a calibration of that dataset.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from simspine_jax.geometry.cameras import Cameras

PICTURE_PX = 1000
CAMERA_NAMES: tuple[str, ...] = ("front_left", "front_right", "back_left", "back_right")
"""Corners of the room, seen along the world's x axis."""

_CORNERS_M = ((2.5, 4.6), (2.5, -4.6), (-2.5, 4.6), (-2.5, -4.6))
_HEIGHT_M, _AIM_M = 1.55, 0.95
_FOCAL_PX, _CENTER_PX = 1146.0, (513.0, 507.0)
_DISTORTION = (-0.20, 0.24, 0.0008, -0.0012, -0.003)  # k1 k2 p1 p2 k3
# Standard deviations of one rig from another, and of a camera from the others.
_PLACE_SD_M, _AIM_SD_M, _ROLL_SD_RAD = 0.12, 0.05, 0.01
_FOCAL_SD_PX, _CENTER_SD_PX = 1.5, 3.0
_DISTORTION_SD = (0.01, 0.02, 0.0003, 0.0003, 0.002)


def make_rig(seed: int | tuple[int, ...] = 0) -> Cameras:
    """Four cameras in a world with Z up and its origin in the middle of the floor; arrays are float64."""
    random = np.random.default_rng(seed)
    shape = (len(_CORNERS_M), 3)
    places = np.column_stack([_CORNERS_M, np.full(shape[0], _HEIGHT_M)])
    places += _PLACE_SD_M * random.standard_normal(shape)
    aims = np.array([0.0, 0.0, _AIM_M]) + _AIM_SD_M * random.standard_normal(shape)
    rolls = _ROLL_SD_RAD * random.standard_normal(shape[0])
    rotations = np.stack([_looking(*view) for view in zip(places, aims, rolls, strict=True)])
    distortion = np.zeros((shape[0], 8))
    distortion[:, :5] = _DISTORTION + random.standard_normal((shape[0], 5)) * _DISTORTION_SD
    focal = _FOCAL_PX + _FOCAL_SD_PX * random.standard_normal((shape[0], 1))
    return Cameras(
        rotations=rotations,
        translations=-np.einsum("vij,vj->vi", rotations, places),
        focal_lengths=focal + 0.3 * random.standard_normal((shape[0], 2)),
        principal_points=np.array(_CENTER_PX) + _CENTER_SD_PX * random.standard_normal((shape[0], 2)),
        skews=np.zeros(shape[0]),
        distortion=distortion,
        sizes=np.full((shape[0], 2), float(PICTURE_PX)),
        names=CAMERA_NAMES,
    )


def _looking(place: np.ndarray, aim: np.ndarray, roll: float) -> np.ndarray:
    """World to camera: z toward the aim, y down."""
    forward = (aim - place) / np.linalg.norm(aim - place)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward])
    return Rotation.from_rotvec([0.0, 0.0, roll]).as_matrix() @ upright
