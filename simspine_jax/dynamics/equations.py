"""Equations of motion: mass matrix, centre of mass and inverse dynamics, in batches and differentiable.

Let c be all of OpenSim's coordinates, q the free ones and c = f(q) the coordinate map with its couplers,
locks and splines. With J = df/dq the free coordinates move the model by

    c' = J q',   c'' = J q'' + (d/dt J) q',   tau_q = J^T tau_c,   M_q = J^T M_c J

so that couplers do no work and need no forces of constraint. Functions of free coordinates are for use on
motions of the model; those named ``uncoupled_`` take and give all coordinates, each on its own, and are what
OpenSim's InverseDynamicsSolver and Simbody's ``calcM`` give, which know no constraints.

Generalised forces are what muscles and actuators have to supply, in N m for an angle and N for a length.
They are conjugate to the coordinates' rates; for OpenSim's FreeJoint and BallJoint Simbody's differ, which
are conjugate to the angular velocity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.loads import ExternalWrenches
from simspine_jax.dynamics.model import DynamicModel
from simspine_jax.dynamics.newton_euler import (
    coordinate_forces,
    joint_wrenches,
    reactions,
    tree_mass_matrix,
)
from simspine_jax.dynamics.rates import (
    full_output,
    jacobian,
    product,
    pull_forces,
    push_rates,
    qpos_output,
)
from simspine_jax.dynamics.tree import Posture, posture, tree_frames
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.coordinates import CoordinateMap, free_to_full, free_to_qpos


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JointForces:
    """What joints bear; bodies and coordinates in OpenSim's order.

    Attributes:
        coordinates: generalised force over each coordinate, N m or N.
        reaction_forces: on each body by its joint, in the body's axes, N.
        reaction_moments: likewise at the joint's centre in the body (its child frame), N m. Both are all that
            the joint transmits: what muscles and ligaments about it would bear is in them.
    """

    coordinates: Float[Array, "*batch C"]
    reaction_forces: Float[Array, "*batch B 3"]
    reaction_moments: Float[Array, "*batch B 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InverseDynamics:
    """The forces behind a motion.

    Attributes:
        free: generalised forces over the free coordinates, N m or N; what couplers tie together is summed.
        joints: what each joint bears.
    """

    free: Float[Array, "*batch Q"]
    joints: JointForces


def inverse_dynamics(
    model: DynamicModel,
    q: Float[Array, "*batch Q"],
    speeds: Float[Array, "*batch Q"],
    accelerations: Float[Array, "*batch Q"],
    external: ExternalWrenches | None = None,
) -> InverseDynamics:
    """The forces that a motion of the free coordinates needs; differentiable in every array argument.

    Args:
        model: a model with masses; its ``gravity`` acts.
        q: free coordinates, rad and m; its type is the computation's.
        speeds: their first time derivatives.
        accelerations: their second ones.
        external: forces from outside, such as the ground's on the feet.

    Raises:
        ShapeError: shapes don't agree.
        UnknownNameError: a load acts on a body that the model lacks.
    """
    rows = _rows(q, speeds, accelerations, size=model.kinematics.n_free, what="free coordinates")
    return _inverse_dynamics(model, *rows, external)


def uncoupled_inverse_dynamics(
    model: DynamicModel,
    coordinates: Float[Array, "*batch C"],
    speeds: Float[Array, "*batch C"],
    accelerations: Float[Array, "*batch C"],
    external: ExternalWrenches | None = None,
) -> JointForces:
    """`inverse_dynamics` of all coordinates, each on its own: OpenSim's InverseDynamicsSolver.

    Raises:
        ShapeError: shapes don't agree.
        UnknownNameError: a load acts on a body that the model lacks.
    """
    count = len(model.coordinate_names)
    rows = _rows(coordinates, speeds, accelerations, size=count, what="coordinates")
    return _uncoupled_inverse_dynamics(model, *rows, external)


def mass_matrix(model: DynamicModel, q: Float[Array, "*batch Q"]) -> Float[Array, "*batch Q Q"]:
    """Mass matrix over the free coordinates, kg m² for two angles, kg for two lengths, kg m between."""
    (q,) = _rows(q, size=model.kinematics.n_free, what="free coordinates")
    return _mass_matrix(model, q)


def uncoupled_mass_matrix(
    model: DynamicModel, coordinates: Float[Array, "*batch C"]
) -> Float[Array, "*batch C C"]:
    """Mass matrix over all coordinates, each on its own: Simbody's ``calcM``."""
    (coordinates,) = _rows(coordinates, size=len(model.coordinate_names), what="coordinates")
    return _uncoupled_mass_matrix(model, coordinates)


def centre_of_mass(model: DynamicModel, q: Float[Array, "*batch Q"]) -> Float[Array, "*batch 3"]:
    """The whole body's centre of mass in ground, m."""
    (q,) = _rows(q, size=model.kinematics.n_free, what="free coordinates")
    return _centre_of_mass(model, q)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EquationsOfMotion:
    """``mass_matrix @ accelerations + bias = forces`` over the free coordinates, frames last.

    Attributes:
        mass_matrix: [Q Q T].
        bias: [Q T] forces that no acceleration needs: against gravity and loads, and for what velocities do.
    """

    mass_matrix: Float[Array, "Q Q T"]
    bias: Float[Array, "Q T"]


def equations_of_motion(
    model: DynamicModel,
    q: Float[Array, "Q T"],
    speeds: Float[Array, "Q T"],
    external: ExternalWrenches | None = None,
) -> EquationsOfMotion:
    """Both sides at once, which share the pose; arrays have frames last, those of loads ``[T L 3]``."""
    m, n = model.kinematics.coordinate_map, model.coordinate_map
    full = push_rates(m, full_output(m), q, speeds, jnp.zeros_like(q))
    positions = push_rates(n, qpos_output(n), full.values, full.speeds, full.accelerations)
    pose = posture(model, tree_frames(model, q.dtype), positions.values)
    wrenches = joint_wrenches(model, pose, positions, external, (q.shape[1],))
    forces = coordinate_forces(model, pose, full.values, *wrenches)
    matrix = _projected(m, q, tree_mass_matrix(model, pose, full.values))
    return EquationsOfMotion(matrix, pull_forces(m, full_output(m), q, forces))


# As in `kinematics.forward`: checked arguments go to cores that are compiled whole.
@partial(jax.jit, inline=True)
def _inverse_dynamics(model, q, speeds, accelerations, external) -> InverseDynamics:
    batch = q.shape[:-1]
    flat = _frames_last(q), _frames_last(speeds), _frames_last(accelerations)
    m = model.kinematics.coordinate_map
    full = push_rates(m, full_output(m), *flat)
    forces = _tree_forces(model, full.values, full.speeds, full.accelerations, external, batch)
    free = pull_forces(m, full_output(m), flat[0], _frames_last(forces.coordinates))
    return InverseDynamics(_frames_first(free, batch), forces)


@partial(jax.jit, inline=True)
def _uncoupled_inverse_dynamics(model, coordinates, speeds, accelerations, external) -> JointForces:
    flat = _frames_last(coordinates), _frames_last(speeds), _frames_last(accelerations)
    return _tree_forces(model, *flat, external, coordinates.shape[:-1])


@partial(jax.jit, inline=True)
def _mass_matrix(model, q) -> Array:
    flat = _frames_last(q)
    m = model.kinematics.coordinate_map
    coordinates = free_to_full(m, flat)
    matrix = tree_mass_matrix(model, _posture(model, coordinates), coordinates)
    return _frames_first(_projected(m, flat, matrix), q.shape[:-1])


@partial(jax.jit, inline=True)
def _uncoupled_mass_matrix(model, coordinates) -> Array:
    flat = _frames_last(coordinates)
    matrix = tree_mass_matrix(model, _posture(model, flat), flat)
    return _frames_first(matrix, coordinates.shape[:-1])


@partial(jax.jit, inline=True)
def _centre_of_mass(model, q) -> Array:
    pose = _posture(model, free_to_full(model.kinematics.coordinate_map, _frames_last(q)))
    share = (model.bodies.mass / model.total_mass).astype(q.dtype).reshape(-1, 1, 1)
    return _frames_first(pose.reference + jnp.sum(share * pose.center, axis=0), q.shape[:-1])


def _posture(model: DynamicModel, coordinates: Float[Array, "C T"]) -> Posture:
    frames = tree_frames(model, coordinates.dtype)
    return posture(model, frames, free_to_qpos(model.coordinate_map, coordinates))


def _tree_forces(
    model: DynamicModel,
    coordinates: Float[Array, "C T"],
    speeds: Float[Array, "C T"],
    accelerations: Float[Array, "C T"],
    external: ExternalWrenches | None,
    batch: tuple[int, ...],
) -> JointForces:
    frames = tree_frames(model, coordinates.dtype)
    m = model.coordinate_map
    positions = push_rates(m, qpos_output(m), coordinates, speeds, accelerations)
    pose = posture(model, frames, positions.values)
    wrenches = joint_wrenches(model, pose, positions, external, batch)
    parts = (
        coordinate_forces(model, pose, coordinates, *wrenches),
        *reactions(model, frames.anchor, pose, *wrenches),
    )
    return JointForces(*(_frames_first(part, batch) for part in parts))


def _projected(
    m: CoordinateMap, q: Float[Array, "Q T"], matrix: Float[Array, "C C T"]
) -> Float[Array, "Q Q T"]:
    """``J^T matrix J`` with the slope J of all coordinates by the free ones."""
    if not m.full_terms.any():  # J is constant, so that two products serve all frames
        half = product(m.full_matrix.T, matrix)
        return jnp.swapaxes(product(m.full_matrix.T, jnp.swapaxes(half, 0, 1)), 0, 1)
    slope = jacobian(m, full_output(m), q)
    half = jnp.einsum("cdt,drt->crt", matrix, slope, precision="highest")
    return jnp.einsum("cqt,crt->qrt", slope, half, precision="highest")


def _rows(first, *others, size: int, what: str) -> list[Array]:
    """The arguments as arrays of one floating type, checked."""
    first = jnp.asarray(first)
    if first.shape[-1:] != (size,):
        raise ShapeError(f"the coordinates have shape {first.shape}; the last axis must be the {size} {what}")
    kind = first.dtype if jnp.issubdtype(first.dtype, jnp.floating) else jnp.zeros(0).dtype
    rows = [first.astype(kind)]
    for name, other in zip(("speeds", "accelerations"), others, strict=False):
        if np.shape(other) != first.shape:
            raise ShapeError(
                f"{name} has shape {np.shape(other)}; it must be that of the coordinates, {first.shape}"
            )
        rows.append(jnp.asarray(other, kind))
    return rows


def _frames_last(values: Float[Array, "*batch n"]) -> Float[Array, "n T"]:
    return values.reshape(-1, values.shape[-1]).T


def _frames_first(values: Float[Array, "*n T"], batch: tuple[int, ...]) -> Array:
    return jnp.moveaxis(values, -1, 0).reshape(*batch, *values.shape[:-1])
