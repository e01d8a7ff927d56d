"""Velocities, accelerations and forces of a tree of bodies, all bodies at once and frames last.

All joints' twists are taken at one point in ground, so that what a recursion over the tree would pass on
is a sum: a body's twist is that of all joints between it and ground, and a joint bears the forces of all
bodies beyond it. These sums are products with constant matrices of zeros and ones, which XLA runs over all
frames and which need no recursion when they are differentiated (Featherstone, Rigid Body Dynamics
Algorithms, ch. 5 and 6, at one common point).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.model import DynamicModel
from simspine_jax.dynamics.rates import product
from simspine_jax.kinematics.forward import Frames, TreeState, scaled_frames, tree_forward
from simspine_jax.kinematics.normal_equations import joint_twists
from simspine_jax.kinematics.topology import Topology


@dataclass(frozen=True, eq=False)
class Paths:
    """Which joints lie between what and ground.

    Attributes:
        carriers: [N N] 1 where the second joint carries the first, which moves with it.
        movers: [B N] 1 where the joint moves the body; bodies in OpenSim's order.
    """

    carriers: np.ndarray
    movers: np.ndarray


@dataclass(frozen=True)
class Posture:
    """A pose of the tree, frames last; positions and twists are taken at ``reference``, a point in ground.

    Attributes:
        state: poses in ground, in MuJoCo's numbering.
        reference: [3 *frames] m.
        angular: [N 3 *frames] of each joint's motion, its axis or zero.
        linear: [N 3 *frames] velocity at the reference by each joint's motion.
        rotation: [B 3 3 *frames] ``R_ground_body``, in OpenSim's order.
        center: [B 3 *frames] mass centres from the reference, m.
    """

    state: TreeState
    reference: Float[Array, "3 *frames"]
    angular: Float[Array, "N 3 *frames"]
    linear: Float[Array, "N 3 *frames"]
    rotation: Float[Array, "B 3 3 *frames"]
    center: Float[Array, "B 3 *frames"]


@dataclass(frozen=True)
class BodyMotion:
    """How bodies move, frames last, in ground: rad/s, rad/s² and m/s² of the mass centres."""

    angular_velocity: Float[Array, "B 3 *frames"]
    angular_acceleration: Float[Array, "B 3 *frames"]
    center_acceleration: Float[Array, "B 3 *frames"]


@lru_cache(maxsize=64)
def paths(topology: Topology) -> Paths:
    """The matrices of a tree; computed once."""
    bodies = np.array(topology.joint_bodies, int)
    joints = np.arange(len(bodies))
    above = topology.ancestors[np.ix_(bodies, bodies)].T  # [N N]: the second's body carries the first's
    same = bodies[:, None] == bodies[None, :]
    carriers = (above & ~same) | (same & (joints[None, :] < joints[:, None]))
    movers = topology.ancestors[np.ix_(bodies, np.array(topology.body_order, int))].T
    return Paths(carriers.astype(float), movers.astype(float))


def tree_frames(model: DynamicModel, dtype: jnp.dtype) -> Frames:
    """The tree's constant transforms, scaled; sites are the bodies' mass centres."""
    kinematics, topology = model.kinematics, model.topology
    factors = None if model.scale_factors is None else model.scale_factors.astype(dtype)
    frames = scaled_frames(kinematics, factors, None, dtype)
    slide = jnp.ones(len(topology.joint_bodies), dtype)
    if factors is not None:
        order = np.array(topology.body_order, int)
        scale = jnp.ones((len(topology.parents), 3), dtype).at[order].set(factors)
        parents = np.array([topology.parents[b] for b in topology.joint_bodies], int)
        axis = model.scale_axis.astype(dtype)
        fixed = jnp.isnan(axis[:, 0])
        weight = jnp.abs(jnp.where(fixed[:, None], 0, axis))  # as in `scaled_frames`
        slide = jnp.where(fixed, 1, jnp.sum(weight * scale[parents], axis=-1))
    return dataclasses.replace(
        frames,
        joint_axis=model.joint_axis.astype(dtype),
        slide_factor=slide,
        site_position=model.bodies.center.astype(dtype),
    )


def posture(model: DynamicModel, frames: Frames, positions: Float[Array, "N *frames"]) -> Posture:
    """The tree at the given joint positions."""
    topology = model.topology
    state = tree_forward(topology, frames, positions)
    # Results don't depend on where the point is; near the body, float32 loses less.
    reference = lax.stop_gradient(state.position[1])
    angular, linear = joint_twists(topology, frames, state, reference)
    order = np.array(topology.body_order, int)
    rotation = state.rotation[order]
    extra = (1,) * (positions.ndim - 1)
    center = times(rotation, frames.site_position.reshape(-1, 3, *extra)) + state.position[order] - reference
    # Used many times below: without the barrier XLA would compute them anew each time, and compile for long.
    parts = lax.optimization_barrier((angular, linear, rotation, center))
    return Posture(state, reference, *parts)


def body_motion(
    topology: Topology, pose: Posture, rates: Float[Array, "N *frames"], changes: Float[Array, "N *frames"]
) -> BodyMotion:
    """Velocities and accelerations of all bodies.

    Args:
        topology: the tree.
        pose: where it is.
        rates: first time derivatives of the joint positions.
        changes: second ones.
    """
    matrices = paths(topology)
    spin, slip = lax.optimization_barrier((pose.angular * rates[:, None], pose.linear * rates[:, None]))
    carrier_spin, carrier_slip = product(matrices.carriers, spin), product(matrices.carriers, slip)
    # A twist is fixed in what carries it, and changes as that moves.
    turning = pose.angular * changes[:, None] + cross(carrier_spin, spin)
    sliding = pose.linear * changes[:, None] + cross(carrier_spin, slip) + cross(carrier_slip, spin)
    spin, slip = product(matrices.movers, spin), product(matrices.movers, slip)
    turning, sliding = product(matrices.movers, turning), product(matrices.movers, sliding)
    velocity = slip + cross(spin, pose.center)
    acceleration = sliding + cross(turning, pose.center) + cross(spin, velocity)
    return BodyMotion(spin, turning, acceleration)


def needed_wrenches(
    model: DynamicModel, pose: Posture, motion: BodyMotion
) -> tuple[Float[Array, "B 3 *frames"], Float[Array, "B 3 *frames"]]:
    """Force (N) and moment about the reference (N m) that each body needs besides gravity to move so."""
    extra = (1,) * (pose.center.ndim - 2)
    kind = pose.center.dtype
    mass = model.bodies.mass.astype(kind).reshape(-1, 1, *extra)
    gravity = model.gravity.astype(kind).reshape(3, *extra)
    inertia = model.bodies.inertia.astype(kind).reshape(-1, 3, 3, *extra)
    force = mass * (motion.center_acceleration - gravity)
    # Euler's equation in the body's own axes, where the inertia is constant.
    spin = times(pose.rotation, motion.angular_velocity, transposed=True)
    turning = times(pose.rotation, motion.angular_acceleration, transposed=True)
    moment = times(pose.rotation, times(inertia, turning) + cross(spin, times(inertia, spin)))
    return force, moment + cross(pose.center, force)


def times(
    matrices: Float[Array, "n 3 3 *frames"], vectors: Float[Array, "n 3 *frames"], *, transposed: bool = False
) -> Float[Array, "n 3 *frames"]:
    """Matrices, or their transposes, times vectors, written out so that XLA runs along the frames."""
    if transposed:
        return sum(matrices[:, k] * vectors[:, k, None] for k in range(3))  # type: ignore[return-value]
    return sum(matrices[:, :, k] * vectors[:, k, None] for k in range(3))  # type: ignore[return-value]


def cross(a: Float[Array, "n 3 *frames"], b: Float[Array, "n 3 *frames"]) -> Float[Array, "n 3 *frames"]:
    """Cross products over the second axis."""
    (ax, ay, az), (bx, by, bz) = jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0)
    return jnp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)
