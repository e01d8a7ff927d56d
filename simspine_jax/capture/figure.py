"""The skin, clothes, hair and shoes of a synthetic subject: surfaces that bend with the spine model's bodies.

Each part is made of rings around the neutral pose of the generic model (x forward, y up, z right, pelvis at
the origin; forearms turned so that the palms face the thighs) and hangs on one or two bodies at each height.
A subject's part is the generic one with every body's share scaled as the body is, so that bones and keypoints
keep their depth under the skin. Shapes are chosen to look like an adult; none is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from simspine_jax.capture.subjects import SUBJECT_NAMES, Subject
from simspine_jax.kinematics.forward import Poses, forward_kinematics
from simspine_jax.kinematics.model import SpineModel

Group = Literal["trunk", "head", "right_arm", "left_arm", "right_leg", "left_leg"]
"""What a surface belongs to: a keypoint is looked for under the surface of its own groups."""

Cover = Literal["skin", "features", "hair", "shirt", "trousers", "shoes"]
"""What a surface is made of."""

_AROUND = 28
_PRONATION_RAD = math.radians(70.0)
# A generic figure has the model's mass and height; girth follows the body mass index.
_MODEL_INDEX = 24.5

Vertices = NDArray[np.float64]


class _Mesh(NamedTuple):
    """Vertices ``[N 3]``, faces ``[F 3]`` and texture coordinates ``[N 2]``."""

    vertices: Vertices
    faces: NDArray[np.int32]
    texcoord: Vertices


class _Row(NamedTuple):
    """A ring: where along the tube, from and to of the first axis, of the second, and its squareness."""

    at: float
    low: float
    high: float
    left: float
    right: float
    square: float = 2.0


@dataclass(frozen=True, eq=False)
class Surface:
    """One part in the subject's neutral pose.

    Attributes:
        name: of the part, such as ``right_arm`` or ``right_arm/short`` for its short sleeve.
        group: what keypoints it can hide without being in their way.
        cover: what it is made of.
        vertices: ``[N 3]`` in ground, m.
        faces: int ``[F 3]``, counter-clockwise from outside.
        texcoord: ``[N 2]``.
        bodies: that carry it.
        weights: ``[N bodies]``; each row adds up to 1.
    """

    name: str
    group: Group
    cover: Cover
    vertices: Vertices
    faces: NDArray[np.int32]
    texcoord: Vertices
    bodies: tuple[str, ...]
    weights: Vertices


@dataclass(frozen=True, eq=False)
class Figure:
    """A subject's surfaces and the bodies' places in its neutral pose.

    Attributes:
        surfaces: all parts, also those of which a picture shows one of several (sleeves, hair).
        body_names: of the model.
        positions: ``[B 3]``, m.
        rotations: ``[B 3 3]``.
    """

    surfaces: tuple[Surface, ...]
    body_names: tuple[str, ...]
    positions: Vertices
    rotations: Vertices


def make_figure(model: SpineModel, subject: Subject, seed: int = 0) -> Figure:
    """The surfaces of a subject; the seed picks the cut of hair and clothes.

    Raises:
        UnknownNameError: the model is not the spine model.
    """
    q = np.zeros(model.n_free)
    q[model.free_indices(["pro_sup_r", "pro_sup_l"])] = _PRONATION_RAD
    q = jnp.asarray(q, model.dtype)
    generic = _numpy(forward_kinematics(model, q))
    factors = subject.scale_factors
    own = _numpy(forward_kinematics(model, q, scale_factors=factors))
    body = np.random.default_rng([SUBJECT_NAMES.index(subject.name), 7])
    index = subject.mass_kg / subject.height_m**2
    shape = _draw_shape(body, np.random.default_rng([seed, 7]), index)
    parts = (*_trunk(shape), *_head(shape), *_limbs(shape))
    names, scale = model.body_names, np.asarray(factors, float)
    return Figure(
        tuple(_fitted(part, names, generic, own, scale) for part in parts),
        names,
        np.asarray(own.body_positions),
        np.asarray(own.body_rotations),
    )


def _numpy(poses: Poses) -> Poses:
    arrays = (poses.markers, poses.body_positions, poses.body_rotations)
    return Poses(*(np.asarray(array, float) for array in arrays))  # type: ignore[arg-type]


def _fitted(part: Surface, names: tuple[str, ...], generic: Poses, own: Poses, factors: Vertices) -> Surface:
    """The generic part on the subject's bodies."""
    placed = np.zeros_like(part.vertices)
    for column, body in enumerate(part.bodies):
        b = names.index(body)
        turn = np.asarray(generic.body_rotations[b])
        local = (part.vertices - generic.body_positions[b]) @ turn * factors[b]
        placed += part.weights[:, column, None] * (own.body_positions[b] + local @ turn.T)
    return replace(part, vertices=placed)


class _Shape(NamedTuple):
    """What differs from one figure to another."""

    girth: float  # of trunk and limbs
    chest: float  # m that the breasts stand out
    belly: float  # m that the belly stands out
    seat: float  # m that the buttocks stand out
    ease: float  # m between skin and clothes
    hem: float  # height of a loose shirt's hem
    sleeve: float  # height at which a short sleeve ends
    shorts: float  # height at which short trousers end
    fringe: float  # how far down hair reaches at the front
    length: float  # height that long hair reaches


def _draw_shape(body: np.random.Generator, clothes: np.random.Generator, index: float) -> _Shape:
    uniform = clothes.uniform
    return _Shape(
        girth=math.sqrt(index / _MODEL_INDEX) * (1 + 0.02 * body.standard_normal()),
        chest=float(body.choice([0.0, 0.004, 0.02, 0.03])),
        belly=max(0.0, 0.006 * (index - 21) + body.uniform(-0.01, 0.02)),
        seat=body.uniform(0.0, 0.02),
        ease=uniform(0.004, 0.012),
        hem=uniform(-0.11, -0.03),
        sleeve=uniform(0.24, 0.33),
        shorts=uniform(-0.42, -0.22),
        fringe=uniform(0.690, 0.725),
        length=uniform(0.44, 0.56),
    )


# Ring heights with the bodies that carry them; between two of them a ring hangs on both.
_SPINE = {"pelvis": (0.02,), "lumbar5": (0.07,), "lumbar3": (0.125,), "lumbar1": (0.19,), "torso": (0.25,)}
_NECK = {"torso": (0.495,), "head": (0.60,)}


def _blend(height: Vertices, knots: dict[str, tuple[float, ...]]) -> tuple[tuple[str, ...], Vertices]:
    """Bodies and the weights ``[N bodies]`` at these heights, linear between the knots."""
    bodies = tuple(knots)
    at = np.array([heights[0] for heights in knots.values()])
    order = np.argsort(at)
    weights = [np.interp(height, at[order], np.eye(len(bodies))[i][order]) for i in range(len(bodies))]
    return bodies, np.stack(weights, axis=-1)


def _tube(rows: Sequence[_Row], count: int, caps: tuple[float, float] = (0.0, 0.0)) -> _Mesh:
    """Rings through smooth curves of the rows: ``[N 3]`` (first axis, along, second axis), faces, texcoord.

    Args:
        rows: in ascending order.
        count: of rings.
        caps: how far a dome stands out below the first ring and above the last; 0 leaves an end open.
    """
    table = np.array(rows)
    at = np.linspace(table[0, 0], table[-1, 0], count)
    sizes = PchipInterpolator(table[:, 0], table[:, 1:])(at)
    rings = np.column_stack([at, sizes])
    dome = np.linspace(0, 1, 7)[1:] * (np.pi / 2 - 0.08)
    for end, height, sign in ((0, caps[0], -1), (-1, caps[1], 1)):
        if height:
            extra = np.repeat(rings[end][None], len(dome), axis=0)
            extra[:, 0] += sign * height * np.sin(dome)
            for a, b in ((1, 2), (3, 4)):
                middle, half = (extra[:, a] + extra[:, b]) / 2, (extra[:, b] - extra[:, a]) / 2
                extra[:, a], extra[:, b] = middle - half * np.cos(dome), middle + half * np.cos(dome)
            rings = np.concatenate([extra[::-1], rings] if end == 0 else [rings, extra])
    return _Mesh(_ring_vertices(rings), _ring_faces(len(rings)), _ring_texcoord(rings))


def _ring_vertices(rings: Vertices) -> Vertices:
    angle = np.arange(_AROUND) * 2 * np.pi / _AROUND
    cosine, sine = np.cos(angle), np.sin(angle)
    power = 2 / rings[:, 5:]
    x = (rings[:, 1:2] + rings[:, 2:3]) / 2 + (rings[:, 2:3] - rings[:, 1:2]) / 2 * np.sign(cosine) * np.abs(
        cosine
    ) ** power
    z = (rings[:, 3:4] + rings[:, 4:5]) / 2 + (rings[:, 4:5] - rings[:, 3:4]) / 2 * np.sign(sine) * np.abs(
        sine
    ) ** power
    return np.stack([x, np.broadcast_to(rings[:, :1], x.shape), z], axis=-1).reshape(-1, 3)


def _ring_faces(n_rings: int) -> NDArray[np.int32]:
    """Between neighbouring rings, and over both ends where their last ring has almost shrunk to a point."""
    low = np.arange(n_rings - 1)[:, None] * _AROUND + np.arange(_AROUND)
    low_next = np.arange(n_rings - 1)[:, None] * _AROUND + (np.arange(_AROUND) + 1) % _AROUND
    high, high_next = low + _AROUND, low_next + _AROUND
    sides = np.stack([np.stack([low, high, low_next], -1), np.stack([low_next, high, high_next], -1)], -2)
    return sides.reshape(-1, 3).astype(np.int32)


def _ring_texcoord(rings: Vertices) -> Vertices:
    """Along the tube, and from its front to its back on both sides alike, so that no seam is seen; metres."""
    angle = np.arange(_AROUND) * 2 * np.pi / _AROUND
    around = np.minimum(angle, 2 * np.pi - angle) / np.pi
    girth = (rings[:, 2] - rings[:, 1] + rings[:, 4] - rings[:, 3])[:, None] * np.pi / 4
    along = np.broadcast_to(rings[:, :1], (len(rings), _AROUND))
    return np.stack([np.broadcast_to(around * girth.mean(), along.shape), along], axis=-1).reshape(-1, 2)


def _ball(center: Sequence[float], radii: Sequence[float]) -> _Mesh:
    """An ellipsoid; as `_tube`."""
    polar = np.linspace(0.1, np.pi - 0.1, 9)
    x, y, z = center
    rows = np.array(
        [
            (
                y - radii[1] * np.cos(p), x - radii[0] * np.sin(p), x + radii[0] * np.sin(p),
                z - radii[2] * np.sin(p), z + radii[2] * np.sin(p), 2,
            )
            for p in polar
        ]
    )  # fmt: skip
    return _Mesh(_ring_vertices(rows), _ring_faces(len(rows)), _ring_texcoord(rows))


def _joined(*meshes: _Mesh) -> _Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return _Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
        np.concatenate([mesh.texcoord for mesh in meshes]),
    )


def _wider(row: _Row, by: float) -> _Row:
    return _Row(row.at, row.low - by, row.high + by, row.left - by, row.right + by, row.square)


def _scaled(row: _Row, girth: float, pivot: tuple[float, float] | None = None) -> _Row:
    """A ring grown about its middle, or about a pivot."""
    x, z = pivot or ((row.low + row.high) / 2, (row.left + row.right) / 2)
    low, high = (x + (value - x) * girth for value in (row.low, row.high))
    left, right = (z + (value - z) * girth for value in (row.left, row.right))
    return _Row(row.at, low, high, left, right, row.square)


def _part(
    name: str,
    group: Group,
    cover: Cover,
    mesh: _Mesh,
    knots: dict[str, tuple[float, ...]],
    along: Callable[[Vertices], Vertices] = lambda vertices: vertices[:, 1],
) -> Surface:
    bodies, weights = _blend(along(mesh.vertices), knots)
    return Surface(name, group, cover, *mesh, bodies, weights)


# --- trunk -------------------------------------------------------------------------------------------------

# Height, back, front, half-width, squareness. The back lies 12 mm behind the markers of the spine.
_TRUNK = (
    (-0.140, -0.160, -0.020, 0.150, 2.2),
    (-0.110, -0.186, 0.004, 0.170, 2.3),
    (-0.070, -0.192, 0.014, 0.173, 2.4),
    (-0.030, -0.184, 0.020, 0.166, 2.4),
    (0.004, -0.170, 0.024, 0.157, 2.4),
    (0.040, -0.150, 0.026, 0.147, 2.4),
    (0.070, -0.139, 0.027, 0.140, 2.4),
    (0.115, -0.139, 0.028, 0.136, 2.4),
    (0.174, -0.154, 0.032, 0.140, 2.5),
    (0.240, -0.174, 0.038, 0.151, 2.6),
    (0.311, -0.188, 0.041, 0.163, 2.7),
    (0.372, -0.191, 0.032, 0.172, 2.7),
    (0.420, -0.186, 0.014, 0.170, 2.6),
    (0.450, -0.176, -0.006, 0.168, 2.4),
    (0.475, -0.164, -0.020, 0.160, 2.2),
    (0.490, -0.156, -0.027, 0.134, 2.1),
    (0.502, -0.150, -0.027, 0.100, 2.0),
    (0.514, -0.146, -0.025, 0.078, 2.0),
    (0.530, -0.140, -0.022, 0.064, 2.0),
)


def _trunk_rows(shape: _Shape, low: float, high: float, ease: float) -> list[_Row]:
    """Rings between two heights. Girth moves sides and front; the back stays by the spine."""
    table = np.array(_TRUNK)
    at = np.unique(np.concatenate([[low, high], table[(table[:, 0] > low) & (table[:, 0] < high), 0]]))
    rows = []
    for y, (back, front, half, square) in zip(
        at, PchipInterpolator(table[:, 0], table[:, 1:])(at), strict=True
    ):
        grown = 1 + (shape.girth - 1) * np.interp(y, [0.40, 0.48], [1.0, 0.2])
        row = _Row(y, back, back + (front - back) * grown, -half * grown, half * grown, square)
        rows.append(_wider(row, ease))
    return rows


def _bump(vertices: Vertices, center: Sequence[float], spread: Sequence[float]) -> Vertices:
    away = (vertices - np.array(center)) / np.array(spread)
    return np.exp(-(away**2).sum(axis=-1))


def _rounded(mesh: _Mesh, shape: _Shape) -> _Mesh:
    """A trunk with breasts, belly, buttocks and the furrow of the spine."""
    points = mesh.vertices.copy()
    front, back = points[:, 0] > -0.07, points[:, 0] < -0.08
    for side in (-1, 1):
        breast = _bump(points, (0.03, 0.325, 0.075 * side), (0.12, 0.055, 0.055))
        seat = _bump(points, (-0.19, -0.085, 0.075 * side), (0.12, 0.06, 0.06))
        points[:, 0] += front * shape.chest * breast - back * (0.006 + shape.seat) * seat
    points[:, 0] += front * shape.belly * _bump(points, (0.03, 0.06, 0), (0.2, 0.10, 0.14))
    points[:, 0] += back * 0.004 * _bump(points, (-0.16, 0.2, 0), (1.0, 0.22, 0.025))
    return mesh._replace(vertices=points)


def _trunk(shape: _Shape) -> tuple[Surface, ...]:
    hips = _tube(_trunk_rows(shape, -0.14, 0.10, shape.ease), 20, (0.025, 0.0))
    shirts = {"tucked": (0.035, shape.ease + 0.003), "loose": (shape.hem, shape.ease + 0.009)}
    neck = [
        _Row(0.440, -0.150, -0.045, -0.075, 0.075),
        _Row(0.500, -0.146, -0.030, -0.062, 0.062),
        _Row(0.530, -0.134, -0.018, -0.058, 0.058),
        _Row(0.560, -0.124, -0.010, -0.056, 0.056),
        _Row(0.610, -0.124, -0.014, -0.056, 0.056),
    ]
    wide = 0.5 + 0.5 * shape.girth
    return (
        _part("hips", "trunk", "trousers", _rounded(hips, shape), _SPINE),
        *(
            _part(
                f"shirt/{cut}",
                "trunk",
                "shirt",
                _rounded(_tube(_trunk_rows(shape, low, 0.524, ease), 44), shape),
                _SPINE,
            )
            for cut, (low, ease) in shirts.items()
        ),
        _part("neck", "head", "skin", _tube([_scaled(row, wide, (-0.13, 0)) for row in neck], 12), _NECK),
    )


# --- head --------------------------------------------------------------------------------------------------

_SKULL = (
    (0.545, -0.110, 0.004, 0.038),
    (0.552, -0.122, 0.010, 0.048),
    (0.575, -0.150, 0.012, 0.060),
    (0.600, -0.172, 0.011, 0.067),
    (0.625, -0.184, 0.010, 0.072),
    (0.652, -0.190, 0.007, 0.076),
    (0.680, -0.193, 0.010, 0.078),
    (0.710, -0.191, 0.008, 0.077),
    (0.735, -0.180, -0.006, 0.070),
    (0.755, -0.158, -0.032, 0.055),
)


def _head(shape: _Shape) -> tuple[Surface, ...]:
    skull = _tube([_Row(y, b, f, -w, w, 2.15) for y, b, f, w in _SKULL], 24, (0.010, 0.020))
    nose = _ball((0.010, 0.620, 0.0), (0.019, 0.017, 0.014))
    bridge = _ball((0.005, 0.636, 0.0), (0.013, 0.022, 0.009))
    ears = [_ball((-0.086, 0.637, side * 0.077), (0.018, 0.030, 0.008)) for side in (-1, 1)]
    eyes = [_ball((0.0005, 0.652, side * 0.032), (0.009, 0.006, 0.013)) for side in (-1, 1)]
    brows = [_ball((0.004, 0.672, side * 0.033), (0.009, 0.0035, 0.018)) for side in (-1, 1)]
    mouth = _ball((0.009, 0.583, 0.0), (0.008, 0.006, 0.021))
    rigid = {"head": (0.0,)}

    def part(name: str, cover: Cover, *meshes: _Mesh) -> Surface:
        return _part(name, "head", cover, _joined(*meshes), rigid)

    return (
        part("head", "skin", skull, nose, bridge, *ears),
        part("eyes", "features", *eyes),
        part("brows", "hair", *brows),
        part("mouth", "features", mouth),
        part("hair/short", "hair", _hair(0.600, shape.fringe, 0.007)),
        part("hair/full", "hair", _hair(0.560, shape.fringe, 0.020)),
        part("hair/long", "hair", _hair(shape.length, shape.fringe, 0.014)),
        part("hair/cap", "shoes", _hair(0.672, 0.698, 0.010), _visor()),
    )


def _hair(low: float, fringe: float, thick: float) -> _Mesh:
    """A shell over the skull, down to ``low`` at the back and to ``fringe`` over the forehead."""
    table = np.array(_SKULL)
    heights = np.unique([low, *np.linspace(max(low, 0.60), fringe, 8), *np.linspace(fringe, 0.755, 6)])
    rows = []
    for y in heights:
        back, front, half = PchipInterpolator(table[:, 0], table[:, 1:])(max(y, 0.60))
        # Below the fringe hair ends behind the cheeks, in front of the ears near the temples.
        open_front = np.interp(
            y, [0.60, 0.64, fringe - 0.012, fringe], [-0.105, -0.085, -0.045, front + thick]
        )
        rows.append(_Row(float(y), back - thick, open_front, -half - thick, half + thick, 2.15))
    return _tube(rows, 28, (0.006 if low < 0.6 else 0.0, 0.020 + thick))


def _visor() -> _Mesh:
    return _ball((0.025, 0.703, 0.0), (0.062, 0.006, 0.060))


# --- limbs -------------------------------------------------------------------------------------------------

# Height, back, front, inner and outer side of the right arm, hanging.
_ARM = (
    (-0.066, -0.103, -0.063, 0.165, 0.198),
    (-0.030, -0.107, -0.061, 0.163, 0.201),
    (0.040, -0.116, -0.053, 0.157, 0.211),
    (0.110, -0.122, -0.044, 0.146, 0.218),
    (0.150, -0.120, -0.040, 0.135, 0.215),
    (0.180, -0.117, -0.042, 0.131, 0.209),
    (0.230, -0.120, -0.042, 0.131, 0.211),
    (0.300, -0.131, -0.041, 0.132, 0.219),
    (0.370, -0.139, -0.041, 0.128, 0.228),
    (0.425, -0.145, -0.044, 0.116, 0.234),
    (0.448, -0.146, -0.046, 0.112, 0.231),
)
_LEG = (
    (-0.905, -0.112, -0.034, 0.058, 0.126),
    (-0.870, -0.111, -0.035, 0.056, 0.124),
    (-0.820, -0.112, -0.037, 0.053, 0.123),
    (-0.720, -0.130, -0.036, 0.040, 0.134),
    (-0.620, -0.145, -0.031, 0.029, 0.143),
    (-0.540, -0.139, -0.024, 0.028, 0.143),
    (-0.464, -0.128, -0.014, 0.028, 0.142),
    (-0.410, -0.130, -0.010, 0.024, 0.148),
    (-0.320, -0.143, 0.000, 0.015, 0.162),
    (-0.220, -0.156, 0.008, 0.006, 0.174),
    (-0.140, -0.164, 0.011, 0.001, 0.180),
    (-0.085, -0.163, 0.012, 0.003, 0.178),
)
_ARM_KNOTS = {
    "humerus": (0.210,), "ulna": (0.145,), "radius": (-0.045,), "hand": (-0.078,),
}  # fmt: skip
_LEG_KNOTS = {"femur": (-0.415,), "tibia": (-0.515,), "calcn": (-0.92,)}
_SHOE_KNOTS = {"calcn": (0.045,), "toes": (0.095,)}


def _limb_rows(table: Sequence[tuple[float, ...]], girth: float, low: float, ease: float) -> list[_Row]:
    """Rings from a height upwards, grown about the middle and by the room in the clothes."""
    values = np.array(table)
    at = np.concatenate([[low], values[values[:, 0] > low + 1e-6, 0]])
    sizes = PchipInterpolator(values[:, 0], values[:, 1:])(np.maximum(at, values[0, 0]))
    return [_wider(_scaled(_Row(y, *size), girth), ease) for y, size in zip(at, sizes, strict=True)]


def _mirrored(mesh: _Mesh) -> _Mesh:
    return _Mesh(mesh.vertices * np.array([1.0, 1.0, -1.0]), mesh.faces[:, ::-1], mesh.texcoord)


def _hand() -> _Mesh:
    """A relaxed right hand with the palm to the thigh: palm and fingers in one, and a thumb."""
    palm = [
        _Row(-0.216, -0.104, -0.060, 0.126, 0.148),
        _Row(-0.190, -0.120, -0.052, 0.136, 0.164),
        _Row(-0.150, -0.126, -0.042, 0.152, 0.186, 2.4),
        _Row(-0.110, -0.122, -0.046, 0.163, 0.197, 2.4),
        _Row(-0.080, -0.112, -0.058, 0.165, 0.200),
        _Row(-0.050, -0.106, -0.062, 0.164, 0.200),
    ]
    thumb = [
        _Row(-0.160, -0.040, -0.020, 0.146, 0.164),
        _Row(-0.130, -0.048, -0.022, 0.154, 0.176),
        _Row(-0.095, -0.074, -0.042, 0.166, 0.194),
    ]
    return _joined(_tube(palm, 16, (0.016, 0.0)), _tube(thumb, 8, (0.010, 0.008)))


def _shoe(ease: float) -> _Mesh:
    """A right shoe: rings along the foot, then a sole; the first axis of a ring is its height."""
    upper = [
        _Row(-0.130, -0.938, -0.870, 0.062, 0.116, 2.6),
        _Row(-0.105, -0.938, -0.855, 0.054, 0.124, 2.6),
        _Row(-0.060, -0.938, -0.858, 0.050, 0.130, 2.4),
        _Row(-0.020, -0.938, -0.868, 0.048, 0.134, 2.3),
        _Row(0.030, -0.938, -0.885, 0.044, 0.140, 2.3),
        _Row(0.075, -0.938, -0.898, 0.040, 0.143, 2.4),
        _Row(0.110, -0.938, -0.904, 0.044, 0.134, 2.4),
        _Row(0.135, -0.938, -0.908, 0.052, 0.118, 2.4),
    ]
    points, faces, texcoord = _tube([_wider(row, ease * 0.3) for row in upper], 24, (0.012, 0.014))
    return _Mesh(points[:, [1, 0, 2]], faces[:, ::-1], texcoord)


def _limbs(shape: _Shape) -> tuple[Surface, ...]:
    girth, ease = shape.girth, shape.ease
    arm = _joined(_tube(_limb_rows(_ARM, girth, -0.066, 0.0), 40, (0.0, 0.040)), _hand())
    sleeves = {"short": (shape.sleeve, ease + 0.004), "long": (-0.050, ease)}
    leg = _tube(_limb_rows(_LEG, girth, -0.905, 0.0), 40, (0.0, 0.075))
    legs = {"shorts": (shape.shorts, ease + 0.004), "long": (-0.885, ease)}
    sided = [
        ("arm", "arm", "skin", arm, _ARM_KNOTS),
        *(
            (
                f"arm/{cut}",
                "arm",
                "shirt",
                _tube(_limb_rows(_ARM, girth, low, by), 40, (0.0, 0.040)),
                _ARM_KNOTS,
            )
            for cut, (low, by) in sleeves.items()
        ),
        ("leg", "leg", "skin", leg, _LEG_KNOTS),
        *(
            (
                f"leg/{cut}",
                "leg",
                "trousers",
                _tube(_limb_rows(_LEG, girth, low, by), 40, (0.0, 0.075)),
                _LEG_KNOTS,
            )
            for cut, (low, by) in legs.items()
        ),
    ]
    surfaces = []
    for side in ("right", "left"):
        for name, limb, cover, mesh, knots in sided:
            own = {f"{body}_{side[0]}": height for body, height in knots.items()}
            placed = mesh if side == "right" else _mirrored(mesh)
            surfaces.append(_part(f"{side}_{name}", f"{side}_{limb}", cover, placed, own))  # type: ignore[arg-type]
        shoe = _shoe(ease) if side == "right" else _mirrored(_shoe(ease))
        own = {f"{body}_{side[0]}": place for body, place in _SHOE_KNOTS.items()}
        surfaces.append(
            _part(f"{side}_shoe", f"{side}_leg", "shoes", shoe, own, lambda vertices: vertices[:, 0])  # type: ignore[arg-type]
        )
    return tuple(surfaces)
