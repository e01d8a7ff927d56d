"""Curvature of the spine by Cobb's method, and rotations of each vertebra against the next below.

Angles are in the sagittal plane, radians. Inclinations and rotations have the signs of the model's own
coordinates (x forward, y up, z to the right): flexion/extension turns about z and is positive in extension,
lateral bending turns about x and is positive to the right, axial rotation turns about y and is positive to
the left.

Two measures of curvature are here, and they are not the same number. `body_curvature` is Cobb's own angle
between endplates, which needs to know where the endplates lie in the bodies. `keypoint_curvature` needs only
keypoints: it is the angle between the tangents of a smooth curve through the points on the back. In the
spine model's neutral pose the first gives 64 and 46 degrees, the second about 43 and 31. Since the model's
thorax is one body, its kyphosis by endplates is a constant.

Source: J. R. Cobb, Outline for the study of scoliosis, Instructional Course Lectures 5 (1948).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.skeleton import KEYPOINT_NAMES, LUMBAR_LEVELS

ENDPLATES_DEG = {
    "S1 upper": ("sacrum", -44.0),
    "L1 upper": ("lumbar1", 21.5),
    "T12 lower": ("torso", 27.5),
    "T3 upper": ("torso", -18.0),
}
"""The body of each endplate, and its rise from back to front in the body's sagittal plane.

Measured on the cuts of the spine model's bone meshes 0, 3 and 6 mm beside the middle, between the corners of
the vertebral body: the cuts agree within 1 degree but for the sacrum, whose coarse mesh gives 42 to 53. Scale
factors that differ between forward and up would turn the endplates a little; that is left out.
"""

COLUMN_NAMES: tuple[str, ...] = ("hip", "spine_01", "spine_02", "spine_03", "spine_04", "spine_05", "neck")
"""The keypoints that the curve along the back goes through, from below."""

# Where the levels lie on that curve: the knot below and the share of the way to the next. The hip keypoint is
# mid-sacrum and spine_01 is L5, so S1's endplate is taken half way between (assumed); spine_03 is T12/L1 and
# spine_05 is T3 by the keypoints' definition.
_S1, _L1, _T12, _T3 = (0, 0.5), (3, 0.0), (3, 0.0), (5, 0.0)

VERTEBRAL_LEVELS: tuple[str, ...] = (*LUMBAR_LEVELS, "neck")
"""Joints between the bodies of the spine from below; at ``neck`` the head turns on the thorax."""

_LEVEL_BODIES = (
    ("sacrum", "lumbar5"),
    ("lumbar5", "lumbar4"),
    ("lumbar4", "lumbar3"),
    ("lumbar3", "lumbar2"),
    ("lumbar2", "lumbar1"),
    ("lumbar1", "torso"),
    ("torso", "head"),
)

SPINE_BODIES: tuple[str, ...] = tuple(dict.fromkeys(body for pair in _LEVEL_BODIES for body in pair))
"""The bodies between which the levels lie, from below; endplates are on some of them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Curvature:
    """Lumbar lordosis (L1 to S1) and thoracic kyphosis (T3 to T12), radians, positive in the usual sense."""

    lordosis: Float[Array, "*batch"]
    kyphosis: Float[Array, "*batch"]


def body_curvature(body_names: Sequence[str], rotations: Float[Array, "*batch B 3 3"]) -> Curvature:
    """Cobb angles between the endplates of the spine model's bodies.

    Args:
        body_names: the model's bodies, in the order of ``rotations``.
        rotations: ``R_ground_body`` of each.

    Raises:
        UnknownNameError: the model lacks a body that carries an endplate.
    """
    rotations = _checked(body_names, rotations)
    plates = {}
    for level, (body, rise_deg) in ENDPLATES_DEG.items():
        index = _body_index(body_names, body)
        rise = math.radians(rise_deg)
        direction = jnp.array([math.cos(rise), math.sin(rise), 0.0], rotations.dtype)
        turned = jnp.einsum("...ij,j->...i", rotations[..., index, :, :], direction, precision="highest")
        plates[level] = turned, rotations[..., index, :, 2]
    return Curvature(
        _angle_between(plates["S1 upper"], plates["L1 upper"]),
        _angle_between(plates["T3 upper"], plates["T12 lower"]),
    )


def keypoint_curvature(keypoints: Float[Array, "*batch K 3"]) -> Curvature:
    """Cobb angles from the 37 keypoints alone; NaN where one of those it reads is NaN.

    The sagittal plane of the trunk holds the line from hip to neck and is square to the mean direction of
    the lines from left to right hip and shoulder.

    Args:
        keypoints: positions in any right-handed frame and unit, in the order of `skeleton.KEYPOINT_NAMES`.

    Raises:
        ShapeError: ``keypoints`` doesn't end in ``[37, 3]``.
    """
    keypoints = jnp.asarray(keypoints)
    if keypoints.shape[-2:] != (len(KEYPOINT_NAMES), 3):
        raise ShapeError(f"keypoints has shape {keypoints.shape}; valid is [..., {len(KEYPOINT_NAMES)}, 3]")
    pairs = [_unit(_keypoint(keypoints, f"right_{n}") - _keypoint(keypoints, f"left_{n}")) for n in _PAIRED]
    column = keypoints[..., np.array([KEYPOINT_NAMES.index(name) for name in COLUMN_NAMES]), :]
    return column_curvature(column, sum(pairs[1:], pairs[0]))


_PAIRED = ("hip", "shoulder")


def column_curvature(column: Float[Array, "*batch P 3"], lateral: Float[Array, "*batch 3"]) -> Curvature:
    """Cobb angles from the seven points of `COLUMN_NAMES` and a direction to the right.

    The curve is a cubic spline over chord length whose curvature stays level in the first and last piece;
    on an arc of a circle with even spacing its tangents are right to the fourth order of the spacing.

    Args:
        column: positions, hip first.
        lateral: of any length; its part along the line from first to last point is left out.

    Raises:
        ShapeError: there are not seven points.
    """
    column, lateral = jnp.asarray(column), jnp.asarray(lateral)
    if column.shape[-2:] != (len(COLUMN_NAMES), 3):
        raise ShapeError(f"column has shape {column.shape}; valid is [..., {len(COLUMN_NAMES)}, 3]")
    rise = _unit(column[..., -1, :] - column[..., 0, :])
    forward = _unit(jnp.cross(rise, lateral))
    plane = jnp.stack(
        [jnp.sum(column * forward[..., None, :], -1), jnp.sum(column * rise[..., None, :], -1)], axis=-1
    )
    pieces = _spline_pieces(plane)
    s1, l1, t12, t3 = (_tangent(pieces, *level) for level in (_S1, _L1, _T12, _T3))
    return Curvature(_lean_between(l1, s1), _lean_between(t12, t3))


def vertebral_rotations(
    body_names: Sequence[str], rotations: Float[Array, "*batch B 3 3"]
) -> Float[Array, "*batch L 3"]:
    """Flexion/extension, lateral bending and axial rotation at each of `VERTEBRAL_LEVELS`, radians.

    Each is the rotation of a body against the next below, as `euler_zxy` takes it apart, so that these are
    the spine model's coordinates of its intervertebral joints.

    Args:
        body_names: the model's bodies, in the order of ``rotations``.
        rotations: ``R_ground_body`` of each.

    Raises:
        UnknownNameError: the model lacks a body of the spine.
    """
    rotations = _checked(body_names, rotations)
    below, above = (
        np.array([_body_index(body_names, pair[i]) for pair in _LEVEL_BODIES], int) for i in (0, 1)
    )
    relative = jnp.einsum(
        "...lji,...ljk->...lik",
        rotations[..., below, :, :],
        rotations[..., above, :, :],
        precision="highest",
    )
    return euler_zxy(relative)


def euler_zxy(rotation: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 3"]:
    """The angles of ``R = Rz(a) Rx(b) Ry(c)``, radians: a and c in -pi to pi, b in -pi/2 to pi/2.

    Where b is a right angle, only the sum or difference of a and c is defined: c is 0 there, and the
    derivatives are finite. `matrix_zxy` is the inverse.
    """
    r = jnp.asarray(rotation)
    cosine_squared = r[..., 0, 1] ** 2 + r[..., 1, 1] ** 2
    regular = cosine_squared > jnp.finfo(r.dtype).eps

    # Both arguments of an arctangent vanish at the singularity, and its derivative with them: the branch
    # that is thrown away gets harmless ones.
    def angle(y, x, y_singular, x_singular):
        return jnp.arctan2(jnp.where(regular, y, y_singular), jnp.where(regular, x, x_singular))

    cosine = jnp.sqrt(jnp.where(regular, cosine_squared, 1.0))
    a = angle(-r[..., 0, 1], r[..., 1, 1], r[..., 1, 0], r[..., 0, 0])
    b = angle(r[..., 2, 1], cosine, jnp.sign(r[..., 2, 1]), 0.0)
    c = angle(-r[..., 2, 0], r[..., 2, 2], 0.0, 1.0)
    return jnp.stack([a, b, c], axis=-1)


def matrix_zxy(angles: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """``Rz(a) Rx(b) Ry(c)`` of angles in radians."""
    sa, sb, sc = jnp.moveaxis(jnp.sin(angles), -1, 0)
    ca, cb, cc = jnp.moveaxis(jnp.cos(angles), -1, 0)
    rows = (
        (ca * cc - sa * sb * sc, -sa * cb, ca * sc + sa * sb * cc),
        (sa * cc + ca * sb * sc, ca * cb, sa * sc - ca * sb * cc),
        (-cb * sc, sb, cb * cc),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _checked(body_names: Sequence[str], rotations: Array) -> Array:
    rotations = jnp.asarray(rotations)
    if rotations.shape[-3:] != (len(body_names), 3, 3):
        raise ShapeError(f"rotations has shape {rotations.shape}; valid is [..., {len(body_names)}, 3, 3]")
    return rotations


def _body_index(body_names: Sequence[str], name: str) -> int:
    if name not in body_names:
        raise UnknownNameError("Body", name, "the model", body_names)
    return list(body_names).index(name)


def _keypoint(keypoints: Array, name: str) -> Array:
    return keypoints[..., KEYPOINT_NAMES.index(name), :]


def _unit(vector: Array) -> Array:
    return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)


def _angle_between(low: tuple[Array, Array], high: tuple[Array, Array]) -> Array:
    """From one endplate to another about their bodies' common direction to the right."""
    (start, right_low), (end, right_high) = low, high
    right = _unit(right_low + right_high)
    start, end = (v - right * jnp.sum(v * right, -1, keepdims=True) for v in (start, end))
    return jnp.arctan2(jnp.sum(right * jnp.cross(start, end), -1), jnp.sum(start * end, -1))


def _lean_between(upright: Array, leaning: Array) -> Array:
    """How much further forward one tangent ``[..., (forward, up)]`` leans than another."""
    cross = upright[..., 1] * leaning[..., 0] - upright[..., 0] * leaning[..., 1]
    return jnp.arctan2(cross, jnp.sum(upright * leaning, -1))


def _spline_pieces(points: Array) -> tuple[Array, Array, Array]:
    """Chord lengths, slopes and bends (second derivatives at the points) of a cubic spline over chord length.

    The bend at the first point equals that at the second, likewise at the end; with these the equations for
    the bends are tridiagonal and diagonally dominant, so elimination needs no pivots.
    """
    steps = points[..., 1:, :] - points[..., :-1, :]
    chord = jnp.linalg.norm(steps, axis=-1)
    slope = steps / chord[..., None]
    n = chord.shape[-1] - 1
    h = [chord[..., i] for i in range(n + 1)]
    diagonal = [2 * (h[i] + h[i + 1]) for i in range(n)]
    diagonal[0], diagonal[-1] = diagonal[0] + h[0], diagonal[-1] + h[n]
    right = [6 * (slope[..., i + 1, :] - slope[..., i, :]) for i in range(n)]
    for i in range(1, n):
        factor = h[i] / diagonal[i - 1]
        diagonal[i] = diagonal[i] - factor * h[i]
        right[i] = right[i] - factor[..., None] * right[i - 1]
    bends = [right[-1] / diagonal[-1][..., None]]
    for i in range(n - 2, -1, -1):
        bends.insert(0, (right[i] - h[i + 1][..., None] * bends[0]) / diagonal[i][..., None])
    return chord, slope, jnp.stack([bends[0], *bends, bends[-1]], axis=-2)


def _tangent(pieces: tuple[Array, Array, Array], piece: int, share: float) -> Array:
    chord, slope, bend = pieces
    low, high = 1 - 3 * (1 - share) ** 2, 3 * share**2 - 1
    curved = low * bend[..., piece, :] + high * bend[..., piece + 1, :]
    return slope[..., piece, :] + chord[..., piece, None] / 6 * curved
