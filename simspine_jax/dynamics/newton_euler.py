"""Forces and inertias of the tree over all coordinates, frames last."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.loads import ExternalWrenches, body_wrenches
from simspine_jax.dynamics.model import DynamicModel
from simspine_jax.dynamics.rates import Rates, product, pull_forces, qpos_output
from simspine_jax.dynamics.tree import Posture, body_motion, cross, needed_wrenches, paths, times
from simspine_jax.kinematics.normal_equations import build_plan, column_twists, gather_columns


def joint_wrenches(
    model: DynamicModel,
    pose: Posture,
    positions: Rates,
    external: ExternalWrenches | None,
    batch: tuple[int, ...],
) -> tuple[Float[Array, "B 3 T"], Float[Array, "B 3 T"]]:
    """Force and moment about the reference that joints have to put on each body (Newton and Euler)."""
    motion = body_motion(model.topology, pose, positions.speeds, positions.accelerations)
    force, moment = needed_wrenches(model, pose, motion)
    if external is not None:
        outer_force, outer_moment = body_wrenches(model, external, pose, batch)
        force, moment = force - outer_force, moment - outer_moment
    return force, moment


def coordinate_forces(
    model: DynamicModel,
    pose: Posture,
    coordinates: Float[Array, "C T"],
    force: Float[Array, "B 3 T"],
    moment: Float[Array, "B 3 T"],
) -> Float[Array, "C T"]:
    """Generalised forces that put these wrenches on the bodies: each joint bears all that it carries."""
    movers = paths(model.topology).movers
    joint_force, joint_moment = product(movers.T, force), product(movers.T, moment)
    along = jnp.sum(pose.angular * joint_moment + pose.linear * joint_force, axis=1)
    return pull_forces(model.coordinate_map, qpos_output(model.coordinate_map), coordinates, along)


def reactions(
    model: DynamicModel, anchor: Float[Array, "bodies 3"], pose: Posture, force: Array, moment: Array
) -> tuple[Float[Array, "B 3 T"], Float[Array, "B 3 T"]]:
    """What each body's joint transmits to it, in its axes; the moment is at its joint centre (anchor)."""
    order = np.array(model.topology.body_order, int)
    beyond = model.topology.ancestors[np.ix_(order, order)].astype(float)
    total, turning = product(beyond, force), product(beyond, moment)
    center = times(pose.rotation, anchor[order][:, :, None]) + pose.state.position[order] - pose.reference
    turning = turning - cross(center, total)
    return times(pose.rotation, total, transposed=True), times(pose.rotation, turning, transposed=True)


def tree_mass_matrix(
    model: DynamicModel, pose: Posture, coordinates: Float[Array, "C T"]
) -> Float[Array, "C C T"]:
    """Twists of all coordinates, weighed by the composite inertias of what they move."""
    plan = build_plan(model.coordinate_map, model.topology)
    if not plan.members:
        return jnp.zeros((coordinates.shape[0], *coordinates.shape), coordinates.dtype)
    twists = column_twists(plan, model.coordinate_map, coordinates, (pose.angular, pose.linear))
    angular, linear = twists
    mass, first, second = _composites(model, pose, plan.subtree.astype(float))
    push = mass * linear + cross(angular, first)
    turn = cross(first, linear) + times(second, angular)
    left, right = lax.optimization_barrier(
        (jnp.concatenate([angular, linear], axis=1), jnp.concatenate([turn, push], axis=1))
    )
    half = sum(left[:, None, k] * right[None, :, k] for k in range(6))
    half = half * jnp.asarray(plan.pairs, coordinates.dtype)[:, :, None]
    count = coordinates.shape[0]
    half = gather_columns(plan, gather_columns(plan, half, count, axis=1), count, axis=0)
    return half + jnp.swapaxes(half, 0, 1)


def _composites(
    model: DynamicModel, pose: Posture, subtree: np.ndarray
) -> tuple[Float[Array, "M 1 T"], Float[Array, "M 3 T"], Float[Array, "M 3 3 T"]]:
    """Mass, first moment and inertia about the reference of all that each column moves."""
    kind = pose.center.dtype
    mass = jnp.broadcast_to(model.bodies.mass.astype(kind)[:, None, None], pose.center[:, :1].shape)
    inertia = jnp.einsum(
        "bikt,bkl,bjlt->bijt", pose.rotation, model.bodies.inertia.astype(kind), pose.rotation,
        precision="highest",
    )  # fmt: skip
    square = jnp.sum(pose.center**2, axis=1)[:, None, None] * jnp.eye(3, dtype=kind)[:, :, None]
    outer = pose.center[:, :, None] * pose.center[:, None, :]
    about = inertia + mass[:, None] * (square - outer)
    parts = jnp.concatenate([mass, mass * pose.center, about.reshape(len(about), 9, -1)], axis=1)
    total = product(subtree, parts)
    return total[:, :1], total[:, 1:4], total[:, 4:].reshape(-1, 3, 3, total.shape[-1])
