"""Turns between the cameras' world (Z up) and the model's ground frame (Y up)."""

from __future__ import annotations

import numpy as np

from simspine_jax.arrays import Array, Float

R_yup_zup = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Takes Z-up coordinates to OpenSim's Y-up ones: (x, y, z) becomes (y, z, x)."""

R_yup_zup.setflags(write=False)

_ORDER = tuple(int(axis) for axis in R_yup_zup.argmax(axis=1))
_BACK = tuple(int(axis) for axis in R_yup_zup.argmax(axis=0))


def zup_to_yup(points: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Points of a Z-up world (Human3.6M, Qualisys) in the model's Y-up ground frame."""
    return points[..., _ORDER]


def yup_to_zup(points: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Inverse of `zup_to_yup`."""
    return points[..., _BACK]


def covariance_zup_to_yup(covariance: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """Covariances of points that `zup_to_yup` turns."""
    return covariance[..., _ORDER, :][..., _ORDER]
