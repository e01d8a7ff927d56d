"""Covariances of points as ellipsoids that hold a share of where each may be, for drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from simspine_jax.errors import ShapeError
from simspine_jax.fitting.uncertainty import ellipsoid_radius

LONGEST_M = 0.5
"""Half an axis that is drawn; a longer one would hide the body, and says no more."""

_SHORTEST_M = 1e-4  # a flat ellipsoid has no normals to be lit by
_SPHERE_POINTS = 160


@dataclass(frozen=True, eq=False)
class Ellipsoids:
    """Ellipsoids about points that move.

    Attributes:
        half_axes: [T K 3] m, the shortest first; 0 where the covariance is not known.
        quaternions: ``R_ground_ellipsoid`` as w, x, y, z [T K 4].
        capped: [T K] those that reach further than they are drawn.
        share: of where a point may be that each holds, those that are capped apart.
    """

    half_axes: NDArray[np.float64]
    quaternions: NDArray[np.float64]
    capped: NDArray[np.bool_]
    share: float

    def every(self, stride: int) -> Ellipsoids:
        """Those of every ``stride``-th frame."""
        half_axes, quaternions = self.half_axes[::stride], self.quaternions[::stride]
        return Ellipsoids(half_axes, quaternions, self.capped[::stride], self.share)


def ellipsoids_of(covariance: NDArray[np.floating], share: float) -> Ellipsoids:
    """The ellipsoids of normal distributions.

    Args:
        covariance: [T K 3 3] m^2 in ground; what is not finite has no ellipsoid.
        share: that they hold.

    Raises:
        ShapeError: an array's shape or the share is wrong.
    """
    given = np.asarray(covariance, float)
    if given.ndim != 4 or given.shape[2:] != (3, 3):
        raise ShapeError(f"The covariance has shape {given.shape}; valid is [T, K, 3, 3]")
    known: NDArray[np.bool_] = np.asarray(np.isfinite(given).all(axis=(2, 3)))
    variance, axes = np.linalg.eigh(np.where(known[..., None, None], given, 0.0))
    # A left-handed frame of axes is no rotation; all three turned round, it is.
    axes = axes * np.where(np.linalg.det(axes) < 0, -1.0, 1.0)[..., None, None]
    half = ellipsoid_radius(share) * np.sqrt(np.maximum(variance, 0.0))
    drawn = np.where(known[..., None], np.clip(half, _SHORTEST_M, LONGEST_M), 0.0)
    turns = Rotation.from_matrix(axes.reshape(-1, 3, 3)).as_quat(scalar_first=True)
    return Ellipsoids(drawn, turns.reshape(*known.shape, 4), half[..., 2] > LONGEST_M, share)


def unit_sphere() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices [V 3], evenly spread along a spiral, and faces [F 3], seen counter-clockwise from outside."""
    index = np.arange(_SPHERE_POINTS) + 0.5
    polar, around = np.arccos(1 - 2 * index / _SPHERE_POINTS), np.pi * (1 + np.sqrt(5)) * index
    vertices = np.stack(
        [np.sin(polar) * np.cos(around), np.cos(polar), np.sin(polar) * np.sin(around)], axis=1
    )
    faces = ConvexHull(vertices).simplices.astype(np.int64)
    inward = np.linalg.det(vertices[faces]) < 0
    faces[inward] = faces[inward, ::-1]
    return vertices, faces
