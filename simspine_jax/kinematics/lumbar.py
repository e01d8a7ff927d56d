"""Three treatments of the lumbar joints: coupled as shipped, free, and between them by one stiffness.

The spine model's couplers tie the six lumbar levels to one leader, L5-S1, about each axis: 3 angles instead
of 18 (the rhythm: level i follows as ``ratio_i`` times the leader). `free_lumbar` releases them, and
`rhythm_residual` pulls the freed angles toward the rhythm. With the angles ``theta_i`` about an axis it adds

    stiffness / 2 * min_a sum_i (theta_i - ratio_i a - offset_i)^2        (offsets are 0 in the spine model)

to the frame's objective (``residuals``), which is a mean squared marker error over 2. This is how far the
angles are from the nearest pose in rhythm: no level is more the leader than another, and motion along the
rhythm costs nothing. The stiffness compares variances: markers of standard deviation s (m, each axis), K of
them with weight 1, and levels that depart from the rhythm by a standard deviation d (rad) make
``stiffness = (s / d)^2 / K`` (m² per rad²) the most likely choice. 0 leaves the angles to the markers alone.

Where a rhythm is learned, `departing_lumbar` keeps the leaders and adds how far levels depart from them.

All functions here take the model as shipped, coupled. What follows the leader without being a lumbar angle
(the abdomen's three ``Abs_*`` rotations, which carry no marker) goes on following it, by its own coupler.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, UnknownNameError, UnsupportedModelError
from simspine_jax.kinematics.coordinates import CoordinateMap
from simspine_jax.kinematics.inverse import PRIOR_MARKER_STD_M
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.rest import Root
from simspine_jax.skeleton import LUMBAR_LEVELS, LUMBAR_MOTIONS

DEVIATION = math.radians(2.0)
"""Standard deviation (rad) of one level from the rhythm that the default stiffness stands for; assumed."""


@dataclass(frozen=True, eq=False)
class _Release:
    """How the freed model's free coordinates follow the coupled one's: ``ratio * q[source] + offset``."""

    coordinates: np.ndarray  # [F] where each stands among all coordinates
    source: np.ndarray  # [F]
    ratio: np.ndarray  # [F]
    offset: np.ndarray  # [F]
    freed: np.ndarray  # of the entries: those that the coupled model doesn't have
    joints: np.ndarray  # the entry of qpos that equals each freed coordinate

    @cached_property
    def expansion(self) -> np.ndarray:
        """``[F Q]``: coupled to free, without the offsets."""
        matrix = np.zeros((len(self.source), self.source.max() + 1))
        matrix[np.arange(len(self.source)), self.source] = self.ratio
        return matrix

    @cached_property
    def projection(self) -> np.ndarray:
        """``[Q F]``: the coupled coordinates whose expansion is nearest."""
        return self.expansion.T / np.sum(self.expansion**2, axis=0)[:, None]

    @cached_property
    def departure(self) -> np.ndarray:
        """``[M F]``: how far each angle of a released axis is from the nearest pose in rhythm."""
        moving = np.isin(self.source, self.source[self.freed])
        return (np.eye(len(self.source)) - self.expansion @ self.projection)[moving]


@dataclass(frozen=True)
class RhythmResidual:
    """``sqrt(stiffness)`` times each lumbar angle's departure from the rhythm: linear in q.

    Equal ones compare and hash equal, so that a solver compiles for them once.
    """

    rows: tuple[tuple[float, ...], ...]  # [M Q] of a stiffness of 1
    offset: tuple[float, ...]  # [Q] rad, a pose in rhythm
    stiffness: float  # m² per rad²

    @property
    def matrix(self) -> np.ndarray:
        """``[M Q]``: the residual's derivative."""
        return math.sqrt(self.stiffness) * np.array(self.rows)

    def __call__(self, q: Float[Array, " Q"], markers: Float[Array, "K 3"]) -> Float[Array, " M"]:
        """The residual of one frame, metres."""
        return jnp.asarray(self.matrix, q.dtype) @ (q - jnp.asarray(self.offset, q.dtype))


@dataclass(frozen=True)
class RhythmAxis:
    """The rhythm of the lumbar levels about an axis: level i turns by ``ratio_i`` times the leader.

    Attributes:
        leader: among the coupled model's free coordinates.
        coordinates: of the levels from below, among all coordinates.
        ratios: of the levels.
    """

    leader: int
    coordinates: tuple[int, ...]
    ratios: tuple[float, ...]

    @cached_property
    def basis(self) -> np.ndarray:
        """``[L L-1]``: orthonormal columns that sum to 0 (Helmert's), changes that leave the levels' sum."""
        n = len(self.ratios)
        columns = np.triu(np.ones((n, n - 1)))
        columns[np.arange(1, n), np.arange(n - 1)] = -np.arange(1, n)
        return columns / np.linalg.norm(columns, axis=0)


@dataclass(frozen=True)
class Rhythm:
    """The rhythm of all axes, and how levels depart from it.

    With the leader's coordinate a, ``theta_i = ratio_i a + offset_i + (basis e)_i``. The departures e leave
    the sum of the angles about an axis alone, so that a is still said by the whole lumbar spine's motion.

    Attributes:
        axes: those that are coupled.
        coordinate_map: of `departing_lumbar`, whose free coordinates are the coupled model's, then all e.
    """

    axes: tuple[RhythmAxis, ...]
    coordinate_map: CoordinateMap

    @cached_property
    def leads(self) -> np.ndarray:
        """``[D]`` the leader of each departure, among the coupled model's free coordinates."""
        return np.repeat([a.leader for a in self.axes], [len(a.ratios) - 1 for a in self.axes]).astype(int)


def rhythm_of(model: SpineModel) -> Rhythm:
    """The rhythm of a coupled model.

    Raises:
        UnsupportedModelError: no lumbar angle follows another one in proportion.
    """
    m, axes = model.coordinate_map, []
    for axis in LUMBAR_MOTIONS:
        followers = _followers(model, axis)
        if not followers:
            continue
        (leader,) = set(followers.values())
        names = [f"{level}_{axis}" for level in LUMBAR_LEVELS]
        levels = [model.coordinate_names.index(name) for name in names if name in model.coordinate_names]
        levels = [c for c in levels if c in followers or c == m.free_indices[leader]]
        axes.append(RhythmAxis(leader, tuple(levels), tuple(m.full_matrix[levels, leader].tolist())))
    if not axes:
        raise UnsupportedModelError(
            f"No lumbar angle of the model {model.name} follows another one, so there is no rhythm to learn: "
            f"it needs the spine model's levels ({', '.join(LUMBAR_LEVELS)}), coupled"
        )
    return Rhythm(tuple(axes), _departing_map(model, axes))


def departing_lumbar(model: SpineModel) -> SpineModel:
    """The coupled model with departures of its lumbar levels from the rhythm; see `Rhythm`.

    The departures come last among the free coordinates, unbounded, under the names of the levels that follow.

    Args:
        model: the coupled model.

    Raises:
        UnsupportedModelError: as `rhythm_of`.
    """
    m, n = rhythm_of(model).coordinate_map, model.n_free
    more = len(m.free_indices) - n
    wide = np.full(more, np.inf)
    arrays = {
        "lower": np.concatenate([np.asarray(model.lower, float), -wide]),
        "upper": np.concatenate([np.asarray(model.upper, float), wide]),
        "default_q": np.pad(np.asarray(model.default_q, float), (0, more)),
        "start_q": np.pad(np.asarray(model.start_q, float), ((0, 0), (0, more))),
    }
    return dataclasses.replace(
        model,
        **{name: jnp.asarray(values, model.dtype) for name, values in arrays.items()},
        coordinate_map=m,
        free_names=tuple(model.coordinate_names[i] for i in m.free_indices),
    )


def departing_to_free(m: CoordinateMap, q: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
    """The same pose for `free_lumbar` (of the axes that are coupled): each level's own angle.

    Args:
        m: of `departing_lumbar`; the result's order is that of its ``free_indices``, sorted.
        q: free coordinates of the model with departures, radians and metres.

    Raises:
        ShapeError: ``q`` doesn't fit the map.
    """
    q, rows = _checked(q, len(m.free_indices), f"the map's {len(m.free_indices)}"), np.sort(m.free_indices)
    own = jnp.einsum("fd,...d->...f", jnp.asarray(m.full_matrix[rows], q.dtype), q, precision="highest")
    return own + jnp.asarray(m.full_offset[rows], q.dtype)


def _departing_map(model: SpineModel, axes: Sequence[RhythmAxis]) -> CoordinateMap:
    m, n = model.coordinate_map, model.n_free
    more = sum(len(axis.ratios) - 1 for axis in axes)
    full, qpos, arguments = (
        np.pad(x, ((0, 0), (0, more))) for x in (m.full_matrix, m.qpos_matrix, m.argument_matrix)
    )
    free, first = list(m.free_indices), n
    for axis in axes:
        here = slice(first, first + len(axis.ratios) - 1)
        joints = [_joint_of(model, c) for c in axis.coordinates]
        full[list(axis.coordinates), here] = axis.basis
        qpos[joints, here] = axis.basis
        free += [c for c in axis.coordinates if c != m.free_indices[axis.leader]]
        first = here.stop
    return dataclasses.replace(
        m, full_matrix=full, qpos_matrix=qpos, argument_matrix=arguments, free_indices=np.array(free, int)
    )


def free_lumbar(model: SpineModel, axes: Sequence[str] = LUMBAR_MOTIONS) -> SpineModel:
    """The same model with its lumbar couplers released; 18 free lumbar angles instead of 3.

    Poses of the coupled model are poses of this one, see ``coupled_to_free``: the default pose and the start
    poses are the same. A `SpineModel` does not hold the ranges of coordinates that follow others, so a freed
    angle's bounds are those that the leader's give it through the coupler; there are none where the leader
    has none. What follows a released axis's leader and is no lumbar angle keeps following it.

    Args:
        model: a model with the spine model's lumbar coordinates, coupled.
        axes: of `LUMBAR_MOTIONS` those to release.

    Raises:
        UnknownNameError: an axis is not one of them.
        UnsupportedModelError: no lumbar angle about an axis follows another one in proportion.
    """
    r = _release(model, axes)
    low, high = (np.asarray(x, float)[r.source] * r.ratio + r.offset for x in (model.lower, model.upper))
    arrays = {
        "lower": np.minimum(low, high),
        "upper": np.maximum(low, high),
        "default_q": np.asarray(model.default_q, float)[r.source] * r.ratio + r.offset,
        "start_q": np.asarray(model.start_q, float)[:, r.source] * r.ratio + r.offset,
    }
    return dataclasses.replace(
        model,
        **{name: jnp.asarray(values, model.dtype) for name, values in arrays.items()},
        coordinate_map=_freed_map(model.coordinate_map, r),
        free_names=tuple(model.coordinate_names[i] for i in r.coordinates),
        root=_moved_root(model.root, np.setdiff1d(np.arange(len(r.source)), r.freed)),
    )


def rhythm_stiffness(
    model: SpineModel, deviation: float = DEVIATION, marker_std: float = PRIOR_MARKER_STD_M
) -> float:
    """Stiffness (m² per rad²) for lumbar levels that depart from the rhythm by ``deviation``.

    Args:
        model: for its number of markers.
        deviation: standard deviation of a level from the rhythm, rad.
        marker_std: standard deviation of a marker of weight 1 on each axis, m.

    Raises:
        ShapeError: one of them is not a positive number.
    """
    for name, value in (("deviation", deviation), ("marker_std", marker_std)):
        if not (math.isfinite(value) and value > 0):
            raise ShapeError(f"{name} is {value}; it must be a positive number")
    return (marker_std / deviation) ** 2 / max(model.n_markers, 1)


def rhythm_residual(
    model: SpineModel, stiffness: float | None = None, axes: Sequence[str] = LUMBAR_MOTIONS
) -> RhythmResidual:
    """The pull toward the shipped rhythm, one of ``solve_ik``'s ``residuals`` for the freed model.

    Args:
        model: the coupled model; the residual is for ``free_lumbar(model, axes)``.
        stiffness: m² per rad², 0 for none; default: ``rhythm_stiffness(model)``.
        axes: as given to ``free_lumbar``.

    Raises:
        ShapeError: ``stiffness`` is not a finite number from 0.
        UnknownNameError, UnsupportedModelError: as ``free_lumbar``.
    """
    stiffness = rhythm_stiffness(model) if stiffness is None else float(stiffness)
    if not (math.isfinite(stiffness) and stiffness >= 0):
        raise ShapeError(f"The rhythm's stiffness is {stiffness}; it must be a finite number from 0")
    r = _release(model, axes)
    rows = tuple(tuple(map(float, row)) for row in r.departure)
    return RhythmResidual(rows, tuple(map(float, r.offset)), stiffness)


def coupled_to_free(
    model: SpineModel, q: Float[Array, "*batch Q"], axes: Sequence[str] = LUMBAR_MOTIONS
) -> Float[Array, "*batch F"]:
    """The same pose for ``free_lumbar(model, axes)``.

    Args:
        model: the coupled model.
        q: its free coordinates, radians and metres.
        axes: as given to ``free_lumbar``.

    Raises:
        ShapeError: ``q`` doesn't fit the model.
        UnknownNameError, UnsupportedModelError: as ``free_lumbar``.
    """
    r = _release(model, axes)
    q = _checked(q, model.n_free, f"the coupled model's {model.n_free}")
    return q[..., r.source] * jnp.asarray(r.ratio, q.dtype) + jnp.asarray(r.offset, q.dtype)


def free_to_coupled(
    model: SpineModel, q: Float[Array, "*batch F"], axes: Sequence[str] = LUMBAR_MOTIONS
) -> Float[Array, "*batch Q"]:
    """The coupled pose whose lumbar angles are nearest (least squares), within the coupled model's bounds.

    Args:
        model: the coupled model.
        q: free coordinates of ``free_lumbar(model, axes)``, radians and metres.
        axes: as given to ``free_lumbar``.

    Raises:
        ShapeError: ``q`` doesn't fit the freed model.
        UnknownNameError, UnsupportedModelError: as ``free_lumbar``.
    """
    r = _release(model, axes)
    q = _checked(q, len(r.source), f"the freed model's {len(r.source)}")
    nearest = jnp.einsum(
        "qf,...f->...q", jnp.asarray(r.projection, q.dtype), q - jnp.asarray(r.offset, q.dtype),
        precision="highest",
    )  # fmt: skip
    return jnp.clip(nearest, model.lower.astype(q.dtype), model.upper.astype(q.dtype))


def _checked(q: Array, size: int, whose: str) -> Array:
    q = jnp.asarray(q)
    if q.shape[-1:] != (size,):
        raise ShapeError(f"q has shape {q.shape}; its last axis must be {whose} free coordinates")
    return q


def _release(model: SpineModel, axes: Sequence[str]) -> _Release:
    """What is to be released, and how it followed."""
    for axis in axes:
        if axis not in LUMBAR_MOTIONS:
            raise UnknownNameError("Lumbar axis", axis, "the model's vocabulary", LUMBAR_MOTIONS)
    m = model.coordinate_map
    follows = {}
    for axis in axes:
        found = _followers(model, axis)
        if not found:
            raise UnsupportedModelError(
                f"No lumbar {axis} angle of the model {model.name} follows another one of them, so there is "
                f"nothing to free: it needs the spine model's levels ({', '.join(LUMBAR_LEVELS)}), coupled"
            )
        follows |= found
    coordinates = np.array(sorted({*map(int, m.free_indices), *follows}), int)
    place = {int(c): i for i, c in enumerate(m.free_indices)}
    source = np.array([follows.get(c, place.get(c)) for c in map(int, coordinates)], int)
    freed = np.flatnonzero(np.isin(coordinates, list(follows)))
    ratio = m.full_matrix[coordinates, source]
    joints = [_joint_of(model, int(c)) for c in coordinates[freed]]
    return _Release(coordinates, source, ratio, m.full_offset[coordinates], freed, np.array(joints, int))


def _followers(model: SpineModel, axis: str) -> dict[int, int]:
    """Lumbar coordinates about ``axis`` that follow one of them in proportion, each with its leader."""
    m = model.coordinate_map
    levels = [f"{level}_{axis}" for level in LUMBAR_LEVELS]
    found = {}
    for name in levels:
        if name not in model.coordinate_names or name in model.free_names:
            continue
        row = model.coordinate_names.index(name)
        leaders = np.flatnonzero(m.full_matrix[row])
        alone = len(leaders) == 1 and not m.full_terms[row].any()
        if alone and model.free_names[leaders[0]] in levels:
            found[row] = int(leaders[0])
    return found


def _joint_of(model: SpineModel, coordinate: int) -> int:
    """The one entry of qpos that is the coordinate itself."""
    m, name = model.coordinate_map, model.coordinate_names[coordinate]
    joint = model.qpos_names.index(name) if name in model.qpos_names else None
    if (
        joint is None
        or m.qpos_terms[joint].any()
        or m.qpos_offset[joint] != m.full_offset[coordinate]
        or not np.array_equal(m.qpos_matrix[joint], m.full_matrix[coordinate])
    ):
        raise UnsupportedModelError(
            f"The lumbar angle {name} of the model {model.name} can't be freed: no joint turns by it alone"
        )
    return joint


def _freed_map(m: CoordinateMap, r: _Release) -> CoordinateMap:
    """The map with freed coordinates of their own; what else followed the leaders still does."""
    kept = np.setdiff1d(np.arange(len(r.source)), r.freed)

    def widened(matrix: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(matrix), len(r.source)))
        wide[:, kept] = matrix
        return wide

    full, qpos = widened(m.full_matrix), widened(m.qpos_matrix)
    full_offset, qpos_offset = m.full_offset.copy(), m.qpos_offset.copy()
    for matrix, offset, rows in (
        (full, full_offset, r.coordinates[r.freed]),
        (qpos, qpos_offset, r.joints),
    ):
        matrix[rows] = 0.0
        matrix[rows, r.freed] = 1.0
        offset[rows] = 0.0
    return dataclasses.replace(
        m,
        full_matrix=full,
        full_offset=full_offset,
        qpos_matrix=qpos,
        qpos_offset=qpos_offset,
        argument_matrix=widened(m.argument_matrix),
        free_indices=r.coordinates,
    )


def _moved_root(root: Root | None, kept: np.ndarray) -> Root | None:
    """The root with its coordinates where they now stand."""
    if root is None:
        return None
    slides, hinges = (tuple(int(kept[i]) for i in old) for old in (root.slides, root.hinges))
    return dataclasses.replace(root, slides=slides, hinges=hinges)
