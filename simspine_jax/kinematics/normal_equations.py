"""Gradient and Hessian of the weighted marker error, from the tree's structure.

A marker k below joint i moves by ``v_i + w_i x p_k`` with the joint's twist (w_i, v_i). The Gauss-Newton
matrix of all markers is therefore the mass matrix of the same tree with a point mass (the marker's weight)
at each marker: one 6x6 composite inertia per body, one force per joint, one product per pair of joints on
a common path to ground (Featherstone, Rigid Body Dynamics Algorithms, ch. 6). This takes less
arithmetic than multiplying the dense marker Jacobian by itself. The exact Hessian adds, for joint i at or
above joint j, ``w_i . sum_k (dp_k/dq_j x f_k)`` with the marker forces f_k = weight x residual.

All arrays have frames last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.kinematics.coordinates import CoordinateMap, evaluate_functions, evaluate_terms
from simspine_jax.kinematics.forward import Frames, TreeState
from simspine_jax.kinematics.topology import Topology


@dataclass(frozen=True)
class Contribution:
    """``d qpos[joint] / d q``: a constant row times the derivatives of the terms on the way (often none)."""

    joint: int
    path: tuple[int, ...]
    row: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """Static bookkeeping: which joints move markers and how they depend on the free coordinates.

    A column is one twist that follows one free coordinate: all joints of a body together for the
    Gauss-Newton matrix; each joint alone for the exact Hessian, where the order of joints matters.
    """

    contributions: tuple[Contribution, ...]
    column_coordinates: np.ndarray  # [M]
    members: tuple[tuple[int, int, float], ...]  # (column, contribution, constant factor)
    pairs: (
        np.ndarray
    )  # [M M]: 1 where the first column moves before the second on one path, 1/2 where together
    subtree: np.ndarray  # [M K]: marker hangs below the column's body


@lru_cache(maxsize=64)
def build_plan(m: CoordinateMap, topology: Topology, exact: bool = False) -> Plan:
    """The plan of a model; computed once."""
    ancestors = topology.ancestors
    marker_bodies = np.array(topology.marker_bodies, int)
    moves = [bool(ancestors[b][marker_bodies].any()) for b in range(len(topology.parents))]
    contributions: list[Contribution] = []
    for joint, body in enumerate(topology.joint_bodies):
        if moves[body]:
            contributions += _contributions(m, joint)
    columns: dict[tuple[int, int], int] = {}
    members = []
    for index, c in enumerate(contributions):
        for q in np.flatnonzero(c.row):
            # Exact: by joint, or by contribution where the joint follows several terms.
            key = (index if exact else topology.joint_bodies[c.joint], int(q))
            members.append((columns.setdefault(key, len(columns)), index, float(c.row[q])))
    of_column = {column: contributions[index].joint for column, index, _ in members}
    joints = np.array([of_column[i] for i in range(len(columns))], int)
    bodies = np.array([topology.joint_bodies[j] for j in joints], int)
    moment = joints if exact else bodies
    together = moment[:, None] == moment[None, :]
    before = ancestors[np.ix_(bodies, bodies)] & (joints[:, None] < joints[None, :]) & ~together
    return Plan(
        tuple(contributions),
        np.array([q for _, q in columns], int),
        tuple(members),
        before + 0.5 * together,
        ancestors[np.ix_(bodies, marker_bodies)],
    )


def _contributions(m: CoordinateMap, joint: int) -> list[Contribution]:
    found = []
    if np.any(m.qpos_matrix[joint]):
        found.append(Contribution(joint, (), m.qpos_matrix[joint]))

    def follow(term: int, path: tuple[int, ...], factor: float) -> None:
        path = (*path, term)
        if np.any(m.argument_matrix[term]):
            found.append(Contribution(joint, path, factor * m.argument_matrix[term]))
        for below in np.flatnonzero(m.argument_terms[term]):
            follow(int(below), path, factor * m.argument_terms[term, below])

    for term in np.flatnonzero(m.qpos_terms[joint]):
        follow(int(term), (), float(m.qpos_terms[joint, term]))
    return found


def joint_twists(
    topology: Topology, frames: Frames, state: TreeState, reference: Float[Array, "3 *frames"]
) -> tuple[Float[Array, "N 3 *frames"], Float[Array, "N 3 *frames"]]:
    """Angular and linear velocity of each joint's motion, the linear one at ``reference``."""
    bodies = np.array(topology.joint_bodies, int)
    extra = (1,) * (reference.ndim - 1)
    hinge = np.array(topology.joint_is_hinge, bool).reshape(-1, 1, *extra)
    arm = state.center[bodies] - reference
    factor = frames.slide_factor.reshape(-1, 1, *extra)
    angular = jnp.where(hinge, state.axis, 0)
    linear = jnp.where(hinge, _cross(arm, state.axis), state.axis * factor)
    return angular, linear


def _cross(a: Float[Array, "n 3 *frames"], b: Float[Array, "n 3 *frames"]) -> Float[Array, "n 3 *frames"]:
    return jnp.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )


def column_twists(
    plan: Plan, m: CoordinateMap, q: Float[Array, "Q *frames"], twists: tuple[Array, Array]
) -> tuple[Float[Array, "M 3 *frames"], Float[Array, "M 3 *frames"]]:
    """Twists per (body, free coordinate): the joints' twists weighted by ``d qpos / d q``."""
    angular, linear = twists
    joints = np.array([c.joint for c in plan.contributions], int)
    angular, linear = angular[joints], linear[joints]
    if any(c.path for c in plan.contributions):
        slopes = evaluate_functions(m, evaluate_terms(m, q)[0], derivative=1)
        one = jnp.ones_like(slopes[:1])
        table = jnp.concatenate([slopes, one])
        longest = max(len(c.path) for c in plan.contributions)
        factor = one
        for step in range(longest):
            rows = [c.path[step] if len(c.path) > step else m.n_terms for c in plan.contributions]
            factor = factor * table[np.array(rows, int)]
        angular, linear = angular * factor[:, None], linear * factor[:, None]
    rounds: list[list[tuple[int, int, float]]] = []
    count: dict[int, int] = {}
    for member in plan.members:
        k = count[member[0]] = count.get(member[0], -1) + 1
        if k == len(rounds):
            rounds.append([])
        rounds[k].append(member)
    sums = []
    for twist in (angular, linear):
        extra = (1,) * (twist.ndim - 1)
        total = None
        for members in rounds:
            columns = np.array([c for c, _, _ in members], int)
            part = twist[np.array([i for _, i, _ in members], int)]
            weights = np.array([w for _, _, w in members])
            if not np.all(weights == 1.0):
                part = part * jnp.asarray(weights, twist.dtype).reshape(-1, *extra)
            total = part[np.argsort(columns)] if total is None else total.at[columns].add(part)
        sums.append(total)
    return sums[0], sums[1]


def marker_normal_equations(
    plan: Plan,
    m: CoordinateMap,
    topology: Topology,
    frames: Frames,
    state: TreeState,
    q: Float[Array, "Q *frames"],
    markers: Float[Array, "K 3 *frames"],
    residuals: Float[Array, "K 3 *frames"],
    weights: Float[Array, "K *frames"],
    bend: Float[Array, "*frames"] | None = None,
) -> tuple[Float[Array, "Q *frames"], Float[Array, "Q Q *frames"]]:
    """Gradient of ``sum_k weights_k |residuals_k|^2 / 2`` and its Gauss-Newton matrix.

    With ``bend`` (and a plan built with ``exact=True``) ``bend`` times the rest of the Hessian is added.
    """
    if not plan.members:
        return jnp.zeros_like(q), jnp.zeros((q.shape[0], *q.shape), q.dtype)
    reference = state.position[1]
    twists = joint_twists(topology, frames, state, reference)
    angular, linear = column_twists(plan, m, q, twists)
    sums = _composites(plan, markers - reference, residuals, weights, bend is not None)
    gradient = jnp.sum(angular * sums.moment + linear * sums.force, axis=1)
    push = sums.mass[:, None] * linear + _cross(angular, sums.first)
    turn = _cross(sums.first, linear) + _inertia_times(sums.second, angular)
    if sums.dyad is not None and bend is not None:
        # sum_k (dp_k x f_k), with dp = v + w x p: v x F + B w - tr(B) w, B = sum p f^T.
        trace = sums.dyad[:, 0, 0] + sums.dyad[:, 1, 1] + sums.dyad[:, 2, 2]
        swept = sum(sums.dyad[:, :, k] * angular[:, k, None] for k in range(3))
        turn = turn + bend * (_cross(linear, sums.force) + swept - trace[:, None] * angular)
    left = (*jnp.moveaxis(angular, 1, 0), *jnp.moveaxis(linear, 1, 0))
    right = (*jnp.moveaxis(turn, 1, 0), *jnp.moveaxis(push, 1, 0))
    product = sum(a[:, None] * b[None, :] for a, b in zip(left, right, strict=True))
    pairs = plan.pairs.reshape(*plan.pairs.shape, *([1] * (q.ndim - 1)))
    product = product * jnp.asarray(pairs, q.dtype)
    half = gather_columns(plan, gather_columns(plan, product, q.shape[0], axis=1), q.shape[0], axis=0)
    hessian = half + jnp.swapaxes(half, 0, 1)
    if bend is not None and m.n_terms:
        hessian = hessian + bend * _term_curvature(plan, m, topology, twists, sums, q)
    return gather_columns(plan, gradient, q.shape[0], axis=0), hessian


def _term_curvature(
    plan: Plan, m: CoordinateMap, topology: Topology, twists: tuple[Array, Array], sums: Composites, q: Array
) -> Float[Array, "Q Q *frames"]:
    """The part of the Hessian that the bending of the terms themselves makes: ``sum force_n d2 qpos_n``."""
    first: dict[int, int] = {}
    for column, index, _ in plan.members:
        first.setdefault(plan.contributions[index].joint, column)
    joints = [j for j in first if np.any(m.qpos_terms[j])]
    if not joints:
        return jnp.zeros((q.shape[0], *q.shape), q.dtype)
    rows, columns = np.array(joints, int), np.array([first[j] for j in joints], int)
    angular, linear = twists[0][rows], twists[1][rows]
    force = jnp.sum(angular * sums.moment[columns] + linear * sums.force[columns], axis=1)

    weights = jnp.tensordot(jnp.asarray(m.qpos_terms[rows].T, q.dtype), force, axes=1)
    involved = np.flatnonzero(np.any(m.argument_matrix, axis=0))
    if np.any(m.argument_terms):
        curve = _chained_curvature(m, q, weights, involved)
    else:
        second = weights * evaluate_functions(m, evaluate_terms(m, q)[0], derivative=2)
        slopes = m.argument_matrix[:, involved]
        outer = jnp.asarray(slopes[:, :, None] * slopes[:, None, :], q.dtype)
        curve = jnp.tensordot(outer, second, axes=((0,), (0,)))
    return jnp.zeros((q.shape[0], *q.shape), q.dtype).at[np.ix_(involved, involved)].set(curve)


def _chained_curvature(m: CoordinateMap, q: Array, weights: Array, involved: np.ndarray) -> Array:
    """Hessian of the weighted terms in the coordinates that they involve, where terms feed terms."""

    def pull(part: Array, one_q: Array, one_weight: Array) -> Array:
        return jnp.dot(one_weight, evaluate_terms(m, one_q.at[involved].set(part))[1])

    flat_q, flat_weights = q.reshape(q.shape[0], -1), weights.reshape(weights.shape[0], -1)
    curve = jax.vmap(jax.hessian(pull), in_axes=(1, 1, 1), out_axes=2)(flat_q[involved], flat_q, flat_weights)
    return curve.reshape(len(involved), len(involved), *q.shape[1:])


@dataclass(frozen=True)
class Composites:
    """Point masses, their moments, forces and torques of the markers below each column's body."""

    mass: Array  # [M *frames]
    first: Array  # [M 3 *frames]
    second: Array  # [M 6 *frames]: xx, yy, zz, xy, xz, yz
    force: Array  # [M 3 *frames]
    moment: Array  # [M 3 *frames]
    dyad: Array | None  # [M 3 3 *frames]: sum of position times force, for the exact Hessian


def _composites(plan: Plan, arms: Array, residuals: Array, weights: Array, exact: bool) -> Composites:
    x, y, z = jnp.moveaxis(arms, 1, 0)
    weighted = weights[:, None] * arms
    wx, wy, wz = jnp.moveaxis(weighted, 1, 0)
    push = weights[:, None] * residuals
    moments = jnp.stack([wx * x, wy * y, wz * z, wx * y, wx * z, wy * z], axis=1)
    parts = [weights[:, None], weighted, moments, push, _cross(arms, push)]
    if exact:
        dyad = arms[:, :, None] * push[:, None, :]
        parts.append(dyad.reshape(dyad.shape[0], 9, *dyad.shape[3:]))
    own = jnp.concatenate(parts, axis=1)
    subtree = jnp.asarray(plan.subtree, own.dtype)
    total = jnp.tensordot(subtree, own.reshape(own.shape[0], -1), axes=1, precision=jax.lax.Precision.HIGHEST)
    total = total.reshape(len(plan.subtree), *own.shape[1:])
    dyads = total[:, 16:].reshape(-1, 3, 3, *own.shape[2:]) if exact else None
    return Composites(total[:, 0], total[:, 1:4], total[:, 4:10], total[:, 10:13], total[:, 13:16], dyads)


def _inertia_times(
    second: Float[Array, "n 6 *frames"], w: Float[Array, "n 3 *frames"]
) -> Float[Array, "n 3 *frames"]:
    """``sum weight x (w x x)`` from the second moments (xx, yy, zz, xy, xz, yz)."""
    xx, yy, zz, xy, xz, yz = jnp.moveaxis(second, 1, 0)
    a, b, c = jnp.moveaxis(w, 1, 0)
    return jnp.stack(
        [(yy + zz) * a - xy * b - xz * c, (xx + zz) * b - xy * a - yz * c, (xx + yy) * c - xz * a - yz * b],
        axis=1,
    )


def gather_columns(plan: Plan, values: Array, n_free: int, axis: int) -> Array:
    """Adds up columns that belong to one free coordinate; coordinates that move no marker get zero."""
    of_coordinate: list[list[int]] = [[] for _ in range(n_free)]
    for column, q in enumerate(plan.column_coordinates):
        of_coordinate[int(q)].append(column)
    longest = max(map(len, of_coordinate))
    shape = list(values.shape)
    shape[axis] = 1
    padded = jnp.concatenate([values, jnp.zeros(shape, values.dtype)], axis=axis)
    first = np.array([c[0] if c else len(plan.column_coordinates) for c in of_coordinate], int)
    total = jnp.take(padded, first, axis=axis)
    for k in range(1, longest):
        rows = np.array([i for i, c in enumerate(of_coordinate) if len(c) > k], int)
        more = jnp.take(values, np.array([of_coordinate[i][k] for i in rows], int), axis=axis)
        index = (slice(None),) * axis + (rows,)
        total = total.at[index].add(more)
    return total
