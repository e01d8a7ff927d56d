"""Errors of the spine's angles: vertebral rotations by level and axis, curvature, and joint limits.

Angles are radians. Rotations at a level are those of `kinematics.curvature`: flexion/extension, lateral
bending and axial rotation of a vertebra against the next below, at each of `VERTEBRAL_LEVELS`.

**Free and coupled.** The shipped couplers tie the six lumbar levels to one leader about each axis, so the
eighteen lumbar angles have rank three. Methods that free them are compared with methods that can't in the
coupled setting: prediction and truth are first replaced by the nearest angles in the `Rhythm`. The free
setting compares the angles as they are.

Derivatives are right wherever an error is not 0 (or a half turn), and 0 where it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError, UnknownNameError, UnsupportedModelError
from simspine_jax.kinematics.curvature import (
    COLUMN_NAMES,
    VERTEBRAL_LEVELS,
    Curvature,
    column_curvature,
    matrix_zxy,
)
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.metrics.masked import Masked, safe_norm
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, LUMBAR_LEVELS, LUMBAR_MOTIONS

LEADER = LUMBAR_LEVELS[0]
"""The lumbar level that the others follow."""

LIMIT_ROUNDING = 16.0
"""A coordinate is beyond a bound if by more than so many units of the bound's own rounding."""

_NECK_AXES = ("neck_flexion", "neck_bending", "neck_rotation")
_AXES = np.array(
    [[AXIS_NAMES.index(f"{level}_{motion}") for motion in LUMBAR_MOTIONS] for level in LUMBAR_LEVELS]
    + [[AXIS_NAMES.index(axis) for axis in _NECK_AXES]]
)
_COLUMN = np.array([KEYPOINT_NAMES.index(name) for name in COLUMN_NAMES])
_SIDES = np.array(
    [[KEYPOINT_NAMES.index(f"{s}_{n}") for n in ("hip", "shoulder")] for s in ("left", "right")]
)


@dataclass(frozen=True)
class Rhythm:
    """What the couplers make of the lumbar angles: ``ratio * leader + offset`` at each level and axis.

    Attributes:
        ratio: by `LUMBAR_LEVELS`, then `LUMBAR_MOTIONS`; that of the leader is 1.
        offset: likewise, radians.
    """

    ratio: tuple[tuple[float, ...], ...]  # [6 3]
    offset: tuple[tuple[float, ...], ...]  # [6 3]


def lumbar_rhythm(model: SpineModel) -> Rhythm:
    """The rhythm of a model's lumbar couplers.

    Args:
        model: the spine model as shipped, coupled.

    Raises:
        UnknownNameError: the model lacks a lumbar coordinate.
        UnsupportedModelError: a lumbar angle doesn't follow the leader of its axis in proportion.
    """
    mapping = model.coordinate_map
    ratio, offset = np.zeros((2, len(LUMBAR_LEVELS), len(LUMBAR_MOTIONS)))
    for j, motion in enumerate(LUMBAR_MOTIONS):
        (leader,) = model.free_indices([f"{LEADER}_{motion}"])
        for i, level in enumerate(LUMBAR_LEVELS):
            name = f"{level}_{motion}"
            if name not in model.coordinate_names:
                raise UnknownNameError("Coordinate", name, f"the model {model.name}", model.coordinate_names)
            row = model.coordinate_names.index(name)
            if set(np.flatnonzero(mapping.full_matrix[row])) != {leader} or mapping.full_terms[row].any():
                raise UnsupportedModelError(
                    f"{name} of the model {model.name} doesn't follow {LEADER}_{motion} in proportion; "
                    f"the coupled setting needs the spine model as shipped"
                )
            ratio[i, j], offset[i, j] = mapping.full_matrix[row, leader], mapping.full_offset[row]
    return Rhythm(*(tuple(map(tuple, values.tolist())) for values in (ratio, offset)))


@partial(jax.jit, static_argnames=("rhythm",))
def in_rhythm(
    angles: Float[Array, "*batch L 3"], rhythm: Rhythm, present: Bool[Array, "*batch L 3"] | None = None
) -> Float[Array, "*batch L 3"]:
    """The nearest angles (least squares about each axis) that the couplers allow.

    Args:
        angles: lumbar levels first; levels above them stay as they are.
        rhythm: of `lumbar_rhythm`.
        present: which angles count in the least squares; all that are not NaN if not given.

    Raises:
        ShapeError: ``angles`` doesn't begin with the six lumbar levels.
    """
    angles = jnp.asarray(angles)
    n = len(LUMBAR_LEVELS)
    if angles.ndim < 2 or angles.shape[-2] < n or angles.shape[-1] != len(LUMBAR_MOTIONS):
        raise ShapeError(f"angles has shape {angles.shape}; valid is [..., {n} or more, 3]")
    ratio, offset = (jnp.asarray(values, angles.dtype) for values in (rhythm.ratio, rhythm.offset))
    lumbar = angles[..., :n, :]
    counts = jnp.isfinite(lumbar) if present is None else present[..., :n, :] & jnp.isfinite(lumbar)
    weight = jnp.where(counts, ratio, 0.0)
    size = (weight * ratio).sum(-2)
    along = (weight * (jnp.where(counts, lumbar, 0.0) - offset)).sum(-2)
    # Where no level counts the ratio is of nothing, and so is what comes of it.
    leader = jnp.where(size > 0, along / jnp.where(size > 0, size, 1.0), jnp.nan)
    return jnp.concatenate([leader[..., None, :] * ratio + offset, angles[..., n:, :]], axis=-2)


def vertebral_angles(coordinates: Float[Array, "*batch C"]) -> Float[Array, "*batch L 3"]:
    """Rotations at `VERTEBRAL_LEVELS` of the 62 kinematic axes, which hold them as coordinates.

    Raises:
        ShapeError: there are not 62.
    """
    coordinates = jnp.asarray(coordinates)
    if coordinates.shape[-1:] != (len(AXIS_NAMES),):
        raise ShapeError(f"coordinates has shape {coordinates.shape}; valid is [..., {len(AXIS_NAMES)}]")
    return coordinates[..., _AXES]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RotationErrors:
    """Errors of vertebral rotations, radians.

    Attributes:
        axes: by level and axis, predicted less true, from -pi to pi; ``.rms(0)`` and ``.map(abs).mean(0)``
            make a row of a table.
        geodesic: by level, the angle of the rotation between predicted and true one, from 0 to pi.
    """

    axes: Masked  # [*batch L 3]
    geodesic: Masked  # [*batch L]


@partial(jax.jit, static_argnames=("rhythm",))
def rotation_errors(
    predicted: Float[Array, "*batch L 3"],
    truth: Float[Array, "*batch L 3"],
    mask: Bool[Array, "*batch L 3"] | None = None,
    *,
    rhythm: Rhythm | None = None,
) -> RotationErrors:
    """Errors of rotations at each level, as they are (free) or in the rhythm (coupled).

    Args:
        predicted: flexion/extension, lateral bending, axial rotation by level, radians; see
            `kinematics.curvature.vertebral_rotations` and `vertebral_angles`.
        truth: likewise.
        mask: True where an angle counts; all if not given. Angles that are NaN don't.
        rhythm: None for the free setting; otherwise both sides are first brought to the nearest angles in
            rhythm, over the angles that count, and the levels must begin with the six lumbar ones.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth = jnp.asarray(predicted), jnp.asarray(truth)
    if predicted.shape != truth.shape or predicted.ndim < 2 or predicted.shape[-1] != 3:
        raise ShapeError(
            f"predicted has shape {predicted.shape} and truth {truth.shape}; valid is [..., L, 3] for both"
        )
    present = jnp.isfinite(predicted) & jnp.isfinite(truth)
    present = present if mask is None else present & mask
    predicted, truth = (jnp.where(present, angles, 0.0) for angles in (predicted, truth))
    if rhythm is not None:
        predicted, truth = (
            jnp.where(present, in_rhythm(angles, rhythm, present), 0.0) for angles in (predicted, truth)
        )
    whole = present.all(-1)
    geodesic = geodesic_error(matrix_zxy(predicted), matrix_zxy(truth), whole)
    return RotationErrors(Masked.of(wrapped(predicted - truth), present), geodesic)


@jax.jit
def geodesic_error(
    predicted: Float[Array, "*batch 3 3"],
    truth: Float[Array, "*batch 3 3"],
    mask: Bool[Array, "*batch"] | None = None,
) -> Masked:
    """Angle of the rotation between two rotations, from 0 to pi.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth = jnp.asarray(predicted), jnp.asarray(truth)
    if predicted.shape != truth.shape or predicted.shape[-2:] != (3, 3):
        raise ShapeError(
            f"predicted has shape {predicted.shape} and truth {truth.shape}; valid is [..., 3, 3] for both"
        )
    present = jnp.isfinite(predicted).all((-2, -1)) & jnp.isfinite(truth).all((-2, -1))
    present = present if mask is None else present & mask
    still = jnp.eye(3, dtype=predicted.dtype)
    predicted, truth = (jnp.where(present[..., None, None], r, still) for r in (predicted, truth))
    between = jnp.einsum("...ji,...jk->...ik", predicted, truth, precision="highest")
    turn = jnp.stack([between[..., i, j] - between[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=-1)
    # Not the arc cosine of the trace, which knows small angles to the root of the rounding only.
    angle = jnp.arctan2(safe_norm(turn), jnp.trace(between, axis1=-2, axis2=-1) - 1)
    return Masked.of(angle, present)


def wrapped(angle: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The same angle between -pi and pi."""
    return angle - 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CurvatureErrors:
    """Predicted less true lordosis and kyphosis, radians."""

    lordosis: Masked
    kyphosis: Masked


@jax.jit
def curvature_errors(predicted: Curvature, truth: Curvature) -> CurvatureErrors:
    """Errors of Cobb angles, however measured; missing where one is NaN."""

    def error(found: Array, true: Array) -> Masked:
        present = jnp.isfinite(found) & jnp.isfinite(true)
        found, true = (jnp.where(present, angle, 0.0) for angle in (found, true))
        return Masked.of(wrapped(found - true), present)

    return CurvatureErrors(
        error(predicted.lordosis, truth.lordosis), error(predicted.kyphosis, truth.kyphosis)
    )


@jax.jit
def keypoint_curvature_errors(
    predicted: Float[Array, "*batch 37 3"],
    truth: Float[Array, "*batch 37 3"],
    mask: Bool[Array, "*batch 37"] | None = None,
) -> CurvatureErrors:
    """Errors of lordosis and kyphosis as `kinematics.curvature.keypoint_curvature` reads them off keypoints.

    Missing where one of the keypoints it reads is, or where two neighbours along the back coincide or the
    body has no left and right; derivatives are finite there.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth = jnp.asarray(predicted), jnp.asarray(truth)
    if predicted.shape != truth.shape or predicted.shape[-2:] != (len(KEYPOINT_NAMES), 3):
        raise ShapeError(
            f"predicted has shape {predicted.shape} and truth {truth.shape}; valid is "
            f"[..., {len(KEYPOINT_NAMES)}, 3] for both"
        )
    return curvature_errors(*(_curvature(points, mask) for points in (predicted, truth)))


def _curvature(keypoints: Array, mask: Array | None) -> Curvature:
    """`keypoint_curvature`, of points that leave it open NaN without a derivative."""
    known = jnp.isfinite(keypoints).all(-1)
    known = known if mask is None else known & mask
    column, (left, right) = keypoints[..., _COLUMN, :], (keypoints[..., ids, :] for ids in _SIDES)
    used = known[..., _COLUMN].all(-1) & known[..., _SIDES.ravel()].all(-1)

    def usable(values: Array, stand_in: Array) -> Array:
        return jnp.where(used[..., None, None], values, stand_in)

    upright = jnp.zeros((len(_COLUMN), 3), keypoints.dtype).at[:, 1].set(jnp.arange(len(_COLUMN)))
    aside = jnp.array([0.0, 0.0, 1.0], keypoints.dtype)
    column, across = usable(column, upright), usable(right - left, aside)
    steps, rise = jnp.diff(column, axis=-2), column[..., -1, :] - column[..., 0, :]
    lateral = sum(_direction(across[..., i, :]) for i in range(across.shape[-2]))
    open_ = (
        (steps == 0).all(-1).any(-1) | (jnp.cross(rise, lateral) == 0).all(-1) | (across == 0).all(-1).any(-1)
    )
    used = used & ~open_
    column, lateral = usable(column, upright), jnp.where(used[..., None], lateral, aside)
    found = column_curvature(column, lateral)
    return Curvature(*(jnp.where(used, angle, jnp.nan) for angle in (found.lordosis, found.kyphosis)))


def _direction(vector: Array) -> Array:
    length = safe_norm(vector)[..., None]
    return vector / jnp.where(length > 0, length, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LimitViolations:
    """How far poses are beyond the model's bounds.

    Attributes:
        amount: of each free coordinate, radians or metres; 0 within the bounds, missing where the pose is.
        count: of each pose, how many coordinates are beyond a bound.
    """

    amount: Masked  # [*batch Q]
    count: Int[Array, "*batch"]


@jax.jit
def limit_violations(
    model: SpineModel, q: Float[Array, "*batch Q"], mask: Bool[Array, "*batch"] | None = None
) -> LimitViolations:
    """Violations of the bounds of a model, coupled as shipped or with its lumbar joints freed.

    Args:
        model: its bounds are those of its clamped coordinates; what isn't clamped has none.
        q: free coordinates, radians and metres.
        mask: poses that count; all if not given.

    Raises:
        ShapeError: ``q`` doesn't fit the model.
    """
    q = jnp.asarray(q)
    if q.shape[-1:] != (model.n_free,):
        raise ShapeError(
            f"q has shape {q.shape}; its last axis must be the model's {model.n_free} coordinates"
        )
    present = jnp.isfinite(q)
    present = present if mask is None else present & mask[..., None]
    value = jnp.where(present, q, 0.0)
    lower, upper = model.lower.astype(q.dtype), model.upper.astype(q.dtype)
    beyond = jnp.maximum(jnp.maximum(lower - value, value - upper), 0.0)
    nearer = jnp.where(value < lower, lower, upper)
    rounding = LIMIT_ROUNDING * jnp.finfo(q.dtype).eps * jnp.abs(jnp.where(jnp.isfinite(nearer), nearer, 0.0))
    beyond = jnp.where(beyond > rounding, beyond, 0.0)
    return LimitViolations(Masked.of(beyond, present), ((beyond > 0) & present).sum(-1))


__all__ = [
    "LEADER",
    "LIMIT_ROUNDING",
    "VERTEBRAL_LEVELS",
    "CurvatureErrors",
    "LimitViolations",
    "Rhythm",
    "RotationErrors",
    "curvature_errors",
    "geodesic_error",
    "in_rhythm",
    "keypoint_curvature_errors",
    "limit_violations",
    "lumbar_rhythm",
    "rotation_errors",
    "vertebral_angles",
    "wrapped",
]
