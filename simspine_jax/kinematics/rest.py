"""Poses from which a search can start: none of them singular; and the root that carries the whole model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simspine_jax.kinematics.coordinates import CoordinateMap
from simspine_jax.kinematics.topology import Topology

# Three hinge axes with a smaller triple product than this count as singular: sin(24 degrees).
LEAST_TRIPLE_PRODUCT = 0.4


Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Root:
    """The body that carries the whole model through space: three slides, then three orthogonal hinges."""

    slides: tuple[int, ...]  # free coordinates
    hinges: tuple[int, ...]
    slide_axes: Matrix  # rows, in ground
    hinge_axes: Matrix  # rows, in the body
    rest: Matrix  # the body's rotation at zero
    body: int


def free_of_joint(m: CoordinateMap) -> list[int | None]:
    """For each entry of qpos the free coordinate that it equals, if any."""
    result: list[int | None] = []
    for row, offset, terms in zip(m.qpos_matrix, m.qpos_offset, m.qpos_terms, strict=True):
        nonzero = np.flatnonzero(row)
        alone = len(nonzero) == 1 and row[nonzero[0]] == 1.0 and offset == 0.0 and not terms.any()
        result.append(int(nonzero[0]) if alone else None)
    return result


def find_root(
    m: CoordinateMap, topology: Topology, joint_axes: np.ndarray, body_quaternions: np.ndarray
) -> Root | None:
    """The model's root if there is one that can be set in closed form, else None."""
    roots = [
        b for b in range(1, len(topology.parents)) if topology.parents[b] == 0 and b in topology.joint_bodies
    ]
    if not roots:
        return None
    sizes = topology.ancestors.sum(axis=1)
    body = max(roots, key=lambda b: sizes[b])
    joints = [j for j, b in enumerate(topology.joint_bodies) if b == body]
    kinds = [topology.joint_is_hinge[j] for j in joints]
    free = [free_of_joint(m)[j] for j in joints]
    if kinds != [False] * 3 + [True] * 3 or any(q is None for q in free):
        return None
    axes = joint_axes[joints]
    rest = _quaternion_matrix(body_quaternions[body])
    if not all(np.allclose(a @ a.T, np.eye(3), atol=1e-6) for a in (axes[:3], axes[3:])):
        return None
    indices = tuple(int(q) for q in free if q is not None)
    others = np.delete(np.arange(len(topology.joint_bodies)), joints)
    if m.dependence[others][:, list(indices)].any():
        return None
    return Root(indices[:3], indices[3:], _rows(axes[:3] @ rest.T), _rows(axes[3:]), _rows(rest), body)


def _rows(matrix: np.ndarray) -> Matrix:
    return tuple(tuple(map(float, row)) for row in matrix)


def _quaternion_matrix(q: np.ndarray) -> np.ndarray:
    w, x, y, z = q / np.linalg.norm(q)
    v = np.array([x, y, z])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) * (w * w - v @ v) + 2 * np.outer(v, v) + 2 * w * cross


def start_poses(
    m: CoordinateMap,
    topology: Topology,
    joint_axes: np.ndarray,
    default: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Poses to try, ``[S Q]``: the default pose, all zero, and mid-range, each moved off singular poses."""
    lower, upper = bounds
    bounded = np.isfinite(lower) & np.isfinite(upper)
    middle = np.where(bounded, 0.5 * (np.where(bounded, lower, 0) + np.where(bounded, upper, 0)), default)
    poses = [default, np.zeros_like(default), 0.5 * (middle + default)]
    moved = [_leave_singularities(m, topology, joint_axes, np.clip(p, lower, upper), bounds) for p in poses]
    return np.unique(np.stack(moved), axis=0)


def _leave_singularities(
    m: CoordinateMap,
    topology: Topology,
    axes: np.ndarray,
    q: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Turns the middle one of three hinges where the outer two have become parallel."""
    q = q.copy()
    lower, upper = bounds
    free = free_of_joint(m)
    for body in sorted(set(topology.joint_bodies)):
        hinges = [j for j, b in enumerate(topology.joint_bodies) if b == body and topology.joint_is_hinge[j]]
        if len(hinges) != 3 or free[hinges[1]] is None:
            continue
        middle = free[hinges[1]]
        shifts = np.concatenate([[0.0], np.linspace(-np.pi / 2, np.pi / 2, 41)])
        candidates = np.clip(q[middle] + shifts, lower[middle], upper[middle])
        volume = np.abs([_triple_product(axes[hinges], angle) for angle in candidates])
        if volume[0] < LEAST_TRIPLE_PRODUCT:
            # The nearest angle that is regular enough; toward zero where two are as near.
            good = volume >= min(2 * LEAST_TRIPLE_PRODUCT, volume.max())
            cost = np.abs(candidates - q[middle]) + 1e-3 * np.abs(candidates)
            q[middle] = candidates[np.argmin(np.where(good, cost, np.inf))]
    return q


def _triple_product(axes: np.ndarray, angle: float) -> float:
    a, b, c = axes
    turned = c * np.cos(angle) + np.cross(b, c) * np.sin(angle) + b * (b @ c) * (1 - np.cos(angle))
    return float(np.dot(a, np.cross(b, turned)))
