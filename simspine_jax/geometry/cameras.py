"""Calibrated cameras: projection, lens distortion and its inverse.

A point X of the world (metres) is at ``x = R X + t`` in the camera's frame, x to the right, y down, z
forward. Its normalised coordinates ``(x/z, y/z)`` are distorted and then turned into pixels by the focal
lengths, the skew and the principal point. Source: R. Hartley and A. Zisserman, Multiple View Geometry,
2nd edition, section 6.1; OpenCV's documentation of ``calib3d`` for the distortion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import UnknownNameError

DistortionModel = Literal["opencv", "h36m"]

TANGENTIAL_FACTOR = {"opencv": 2.0, "h36m": 1.0}
"""What multiplies the products of coordinates in the tangential terms.

Human3.6M's own code has ``x * (radial + p1 y + p2 x) + p2 r2`` where OpenCV has
``x * radial + 2 p1 x y + p2 (r2 + 2 x^2)``; the two differ by up to 1.4 px in its pictures' corners.
"""

MIN_DEPTH_M = 1e-3
"""Points nearer to the camera's plane than this, or behind it, have no picture."""

UNDISTORT_ITERATIONS = 8
"""Newton steps; five bring realistic lenses to 1e-12 of the normalised image plane."""

Numbers = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cameras:
    """V calibrated cameras; arrays may be NumPy's, and take the dtype of what they are applied to.

    Attributes:
        rotations: R of each camera, world to camera.
        translations: t of each camera, metres: ``x_camera = R X + t``.
        focal_lengths: horizontal and vertical, px.
        principal_points: horizontal and vertical, px.
        skews: the entry of K between the two focal lengths, px.
        distortion: k1 k2 p1 p2 k3 k4 k5 k6, OpenCV's order.
        sizes: width and height of the pictures, px; NaN where they are not known.
        names: of the cameras, each once.
        distortion_model: OpenCV's tangential distortion or Human3.6M's; see `TANGENTIAL_FACTOR`.
    """

    rotations: Float[Numbers, "V 3 3"]
    translations: Float[Numbers, "V 3"]
    focal_lengths: Float[Numbers, "V 2"]
    principal_points: Float[Numbers, "V 2"]
    skews: Float[Numbers, " V"]
    distortion: Float[Numbers, "V 8"]
    sizes: Float[Numbers, "V 2"]
    names: tuple[str, ...] = field(metadata={"static": True})
    distortion_model: DistortionModel = field(default="opencv", metadata={"static": True})

    def select(self, names: Sequence[str]) -> Cameras:
        """Only these cameras, in this order.

        Raises:
            UnknownNameError: a name is not among the cameras.
        """
        for name in names:
            if name not in self.names:
                raise UnknownNameError("Camera", name, "the calibration", self.names)
        index = np.array([self.names.index(name) for name in names], int)
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if not f.metadata}
        return replace(self, **arrays, names=tuple(names))

    def astype(self, dtype: Any) -> Cameras:
        """The same cameras with arrays of this dtype, on the device."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Projection:
    """Pictures of points in V cameras.

    Attributes:
        keypoints: px; NaN where the point is behind the camera or within `MIN_DEPTH_M` of its plane.
        depth: distance along the optical axis, metres; negative behind the camera.
    """

    keypoints: Float[Array, "*batch V 2"]
    depth: Float[Array, "*batch V"]


def project(cameras: Cameras, points: Float[Array, "*batch 3"]) -> Projection:
    """Pictures of world points (metres) in every camera, with distortion.

    Differentiable in the points and the cameras. A point without a picture has NaN keypoints and zero
    derivatives, so a loss has to mask it, but the derivatives of other points stay finite. Far outside the
    picture a distortion polynomial can fold back: compare with `Cameras.sizes` and the field of view
    before trusting a keypoint there.
    """
    points = jnp.asarray(points)
    cameras = cameras.astype(points.dtype)
    local = jnp.einsum("vij,...j->...vi", cameras.rotations, points, precision="highest")
    local += cameras.translations
    depth = local[..., 2]
    seen = (depth > MIN_DEPTH_M)[..., None]
    # The division is kept away from zero where its result is thrown away: its derivative would be NaN.
    plane = local[..., :2] / jnp.where(seen, depth[..., None], 1.0)
    pixels = pixels_from_normalised(cameras, distort(cameras, jnp.where(seen, plane, 0.0)))
    return Projection(jnp.where(seen, pixels, jnp.nan), depth)


def distort(cameras: Cameras, normalised: Float[Array, "*batch V 2"]) -> Float[Array, "*batch V 2"]:
    """Lens distortion of normalised coordinates."""
    coefficients = jnp.asarray(cameras.distortion, normalised.dtype).T
    factor = TANGENTIAL_FACTOR[cameras.distortion_model]
    return jnp.stack(distort_xy(coefficients, factor, normalised[..., 0], normalised[..., 1])[:2], axis=-1)


def undistort(cameras: Cameras, distorted: Float[Array, "*batch V 2"]) -> Float[Array, "*batch V 2"]:
    """Inverse of `distort` by Newton's method; once differentiable, by the implicit function theorem.

    NaN stays NaN, with zero derivatives. Where a lens polynomial has folded back there is no inverse, and
    the result is not to be used.
    """
    coefficients = jnp.asarray(cameras.distortion, distorted.dtype).T
    factor = TANGENTIAL_FACTOR[cameras.distortion_model]
    known = ~jnp.isnan(distorted).any(axis=-1)
    x, y = undistort_xy(
        coefficients,
        factor,
        jnp.where(known, distorted[..., 0], 0.0),
        jnp.where(known, distorted[..., 1], 0.0),
    )
    return jnp.where(known[..., None], jnp.stack([x, y], axis=-1), jnp.nan)


def pixels_from_normalised(
    cameras: Cameras, normalised: Float[Array, "*batch V 2"]
) -> Float[Array, "*batch V 2"]:
    """Normalised coordinates (already distorted) as pixels, by each camera's K."""
    cameras = cameras.astype(normalised.dtype)
    sheared = jnp.stack([cameras.skews * normalised[..., 1], jnp.zeros_like(normalised[..., 0])], axis=-1)
    return normalised * cameras.focal_lengths + sheared + cameras.principal_points


def normalised_from_pixels(
    cameras: Cameras, keypoints: Float[Array, "*batch V 2"]
) -> Float[Array, "*batch V 2"]:
    """Pixels as normalised coordinates (still distorted): inverse of `pixels_from_normalised`."""
    cameras = cameras.astype(keypoints.dtype)
    scaled = (keypoints - cameras.principal_points) / cameras.focal_lengths
    slide = cameras.skews / cameras.focal_lengths[:, 0] * scaled[..., 1]
    return scaled - jnp.stack([slide, jnp.zeros_like(slide)], axis=-1)


def camera_centers(cameras: Cameras) -> Float[Array, "V 3"]:
    """Where the cameras stand in the world, metres: ``-R' t``."""
    rotations, translations = jnp.asarray(cameras.rotations), jnp.asarray(cameras.translations)
    return -jnp.einsum("vji,vj->vi", rotations, translations, precision="highest")


def intrinsic_matrices(cameras: Cameras) -> Float[Array, "V 3 3"]:
    """K of each camera, px."""
    focal, center = jnp.asarray(cameras.focal_lengths), jnp.asarray(cameras.principal_points)
    zero, one = jnp.zeros_like(focal[:, 0]), jnp.ones_like(focal[:, 0])
    rows = (
        (focal[:, 0], jnp.asarray(cameras.skews), center[:, 0]),
        (zero, focal[:, 1], center[:, 1]),
        (zero, zero, one),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def projection_matrices(cameras: Cameras) -> Float[Array, "V 3 4"]:
    """P = K [R | t] of each camera: homogeneous world points (metres) to pixels, without distortion."""
    pose = jnp.concatenate(
        [jnp.asarray(cameras.rotations), jnp.asarray(cameras.translations)[..., None]], axis=-1
    )
    return jnp.matmul(intrinsic_matrices(cameras), pose, precision="highest")


def distort_xy(
    coefficients: Float[Array, "8 ..."], factor: float, x: Float[Array, "..."], y: Float[Array, "..."]
) -> tuple[Array, Array, tuple[Array, Array, Array, Array]]:
    """Distorted x and y, and the derivatives dx'/dx, dx'/dy, dy'/dx, dy'/dy.

    Args:
        coefficients: k1 k2 p1 p2 k3 k4 k5 k6, each of a shape that broadcasts with x and y.
        factor: of `TANGENTIAL_FACTOR`.
        x: undistorted normalised coordinate.
        y: likewise.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = coefficients
    square = x * x + y * y
    above = 1 + square * (k1 + square * (k2 + square * k3))
    below = 1 + square * (k4 + square * (k5 + square * k6))
    radial = above / below
    slope = k1 + square * (2 * k2 + square * 3 * k3) - radial * (k4 + square * (2 * k5 + square * 3 * k6))
    slope = 2 * slope / below  # of the radial factor, so that its derivative in x is slope * x
    new_x = x * radial + factor * p1 * x * y + p2 * (square + factor * x * x)
    new_y = y * radial + factor * p2 * x * y + p1 * (square + factor * y * y)
    tilt = factor * (p1 * y + p2 * x)
    jacobian = (
        radial + slope * x * x + tilt + (2 + factor) * p2 * x,
        slope * x * y + factor * p1 * x + 2 * p2 * y,
        slope * x * y + factor * p2 * y + 2 * p1 * x,
        radial + slope * y * y + tilt + (2 + factor) * p1 * y,
    )
    return new_x, new_y, jacobian


def undistort_xy(
    coefficients: Float[Array, "8 ..."], factor: float, x: Float[Array, "..."], y: Float[Array, "..."]
) -> tuple[Array, Array]:
    """Undistorted x and y of finite distorted ones; arguments as in `distort_xy`."""

    def step(guess: tuple[Array, Array], x: Array, y: Array, coefficients: Array) -> tuple[Array, Array]:
        at_x, at_y, jacobian = distort_xy(coefficients, factor, *guess)
        a, b, c, d = map(lax.stop_gradient, jacobian)
        off_x, off_y = x - at_x, y - at_y
        determinant = a * d - b * c
        along_x = (d * off_x - b * off_y) / determinant
        along_y = (a * off_y - c * off_x) / determinant
        return guess[0] + along_x, guess[1] + along_y

    fixed = lax.stop_gradient((x, y, coefficients))
    guess = jnp.broadcast_arrays(fixed[0], fixed[1], coefficients[0])[:2]
    guess = (guess[0], guess[1])
    for _ in range(UNDISTORT_ITERATIONS - 1):
        guess = step(guess, *fixed)
    # From a solved point one more step changes no number, but its derivative is the implicit one.
    return step(lax.stop_gradient(guess), x, y, coefficients)
