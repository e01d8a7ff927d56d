"""A flat floor under points of the body, for forward simulation.

At a point that is d below the floor the normal force is ``k d (1 + c v)`` while it sinks by v, after Hunt and
Crossley (Coefficient of restitution interpreted as damping in vibroimpact, 1975), and ``k d`` while it rises;
friction is ``mu k d v_t / sqrt(v_t^2 + v_s^2)`` against its slip v_t, which is Coulomb's beyond the
speed v_s and viscous below it. A step takes the forces at its end, linearised, as it does with joint springs,
so that stiff floors need no short steps to be stable:

    f = f0 - (D + h K) J v,   added to (M + …) v = … as h J' (D + h K) J v = … + h J' f0

with J the points' Jacobian, K the floor's stiffness (normal) and D its damping and friction at the present.
A point that the floor would have to pull by then is let go, and the step is taken again without it. How far
feet balance a body is the controllers' affair: without any at the root it tips over, as a person would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.model import DynamicModel
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.kinematics.coordinates import free_to_qpos
from simspine_jax.kinematics.forward import scaled_frames, tree_forward

STATIC = {"static": True}

SOLE_M = {
    "calcn": ((-0.01, -0.02, 0.0), (0.15, -0.02, -0.03), (0.13, -0.02, 0.05)),
    "toes": ((0.06, -0.02, 0.0),),
}
"""Points of a sole in the generic foot's bodies (chosen): heel, both balls, toe; left ones are mirrored."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Floor:
    """A floor at one height, and what touches it.

    Attributes:
        points: m, each in its body's frame.
        height: of the floor, m.
        stiffness: N/m of every point; like the others one number for all.
        dissipation: s/m.
        friction: coefficient.
        slip_speed: m/s, below which friction is viscous.
        bodies: the points' bodies.
    """

    points: Float[Array, "P 3"]
    height: float | Array = 0.0
    stiffness: float | Array = 5e4
    dissipation: float | Array = 2.0
    friction: float | Array = 0.8
    slip_speed: float | Array = 0.05
    bodies: tuple[str, ...] = field(default=(), metadata=STATIC)

    def __post_init__(self) -> None:
        if isinstance(self.height, int | float) and not math.isfinite(self.height):
            raise ShapeError(f"height of the floor is {self.height}; valid is a finite number")
        for name, least in (
            ("stiffness", 0.0),
            ("dissipation", 0.0),
            ("friction", 0.0),
            ("slip_speed", 1e-9),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and not least <= value < math.inf:
                raise ShapeError(
                    f"{name} of the floor is {value}; valid is a finite number from {least:g} on"
                )
        shape = getattr(self.points, "shape", (len(self.bodies), 3))
        if shape != (len(self.bodies), 3):
            raise ShapeError(f"points of the floor have the shape {shape}; valid is {(len(self.bodies), 3)}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Contacts:
    """What the floor does to each point.

    Attributes:
        positions: of the points, m, ground.
        forces: on them, N, ground.
    """

    positions: Float[Array, "*batch P 3"]
    forces: Float[Array, "*batch P 3"]


def floor_under_feet(model: DynamicModel, height: float = 0.0) -> Floor:
    """A floor that both soles of an OpenSim full-body model touch: bodies ``calcn_r``, ``toes_r`` and left.

    Raises:
        UnknownNameError: the model lacks one of them.
    """
    points, bodies = [], []
    factors = _factors(model)
    for side, mirror in (("r", 1.0), ("l", -1.0)):
        for part, places in SOLE_M.items():
            name = f"{part}_{side}"
            model.body_id(name, "Body of the sole")
            scale = factors[model.kinematics.body_names.index(name)]
            points += [scale * np.array([x, y, mirror * z]) for x, y, z in places]
            bodies += [name] * len(places)
    return Floor(jnp.asarray(np.array(points), model.dtype), height, bodies=tuple(bodies))


def _factors(model: DynamicModel) -> np.ndarray:
    if model.scale_factors is None:
        return np.ones((len(model.kinematics.body_names), 3))
    return np.asarray(model.scale_factors, float)


def contact_forces(
    model: DynamicModel, floor: Floor, q: Float[Array, "*batch Q"], speeds: Float[Array, "*batch Q"]
) -> Contacts:
    """The floor's forces in a state of motion, by the law itself.

    `simulate` takes them linearised at the end of each step, which is the same where they change slowly.

    Raises:
        UnknownNameError: the floor names a body that the model lacks.
    """
    batch = q.shape[:-1]
    flat, rates = (x.reshape(-1, x.shape[-1]).T for x in (q, speeds))
    positions, jacobian = points_of(model, floor, flat)
    moving = jnp.einsum("piqt,qt->pit", jacobian, rates, precision="highest")
    normal, stiff, drag = _law(floor, positions, moving)
    up = jnp.zeros_like(positions).at[:, 1].set(normal)
    forces = up - drag * moving
    forces = forces.at[:, 1].set(jnp.where(stiff > 0, jnp.maximum(forces[:, 1], 0.0), 0.0))
    return Contacts(*(jnp.moveaxis(x, -1, 0).reshape(*batch, *x.shape[:2]) for x in (positions, forces)))


@dataclass(frozen=True)
class Pushes:
    """A floor's forces at the end of a step, linear in the speeds there: ``normal - metric * (J v)``.

    Attributes:
        jacobian: of the points.
        normal: N, upward.
        metric: N s/m along each axis.
    """

    jacobian: Float[Array, "P 3 Q T"]
    normal: Float[Array, "P T"]
    metric: Float[Array, "P 3 T"]

    def terms(self, step_s: float | Array) -> tuple[Float[Array, "Q Q T"], Float[Array, "Q T"]]:
        """What they add to a step's matrix and its right-hand side."""
        j = self.jacobian
        matrix = jnp.einsum("piqt,pit,pirt->qrt", j, self.metric, j, precision="highest")
        force = jnp.einsum("pqt,pt->qt", j[:, 1], self.normal, precision="highest")
        return step_s * matrix, step_s * force

    def without_pulls(self, speeds: Float[Array, "Q T"]) -> Pushes:
        """Without the points that these speeds would have the floor pull."""
        upward = jnp.einsum("pqt,qt->pt", self.jacobian[:, 1], speeds, precision="highest")
        pushes = self.normal - self.metric[:, 1] * upward >= 0
        return replace(
            self,
            normal=jnp.where(pushes, self.normal, 0.0),
            metric=jnp.where(pushes[:, None], self.metric, 0.0),
        )


def pushes_of(
    model: DynamicModel,
    floor: Floor,
    q: Float[Array, "Q T"],
    speeds: Float[Array, "Q T"],
    step_s: float | Array,
) -> Pushes:
    """The floor's forces in a step from this state; see the module."""
    positions, jacobian = points_of(model, floor, q)
    moving = jnp.einsum("piqt,qt->pit", jacobian, speeds, precision="highest")
    normal, stiff, drag = _law(floor, positions, moving)
    return Pushes(jacobian, normal, drag.at[:, 1].add(step_s * stiff))


def points_of(
    model: DynamicModel, floor: Floor, q: Float[Array, "Q T"]
) -> tuple[Float[Array, "P 3 T"], Float[Array, "P 3 Q T"]]:
    """The floor's points in ground and their derivatives by the free coordinates."""
    kinematics, kind = model.kinematics, q.dtype
    topology = kinematics.topology
    for name in floor.bodies:
        if name not in kinematics.body_names:
            raise UnknownNameError(
                "Body on the floor", name, f"the model {kinematics.name}", kinematics.body_names
            )
    bodies = np.array([topology.body_order[kinematics.body_names.index(name)] for name in floor.bodies], int)
    factors = None if model.scale_factors is None else model.scale_factors.astype(kind)
    frames = scaled_frames(kinematics, factors, None, kind)
    places = jnp.asarray(floor.points, kind)

    def positions(q: Array) -> Array:
        state = tree_forward(topology, frames, free_to_qpos(kinematics.coordinate_map, q))
        turned = jnp.einsum("pijt,pj->pit", state.rotation[bodies], places, precision="highest")
        return state.position[bodies] + turned

    found, pull = jax.vjp(positions, q)
    # A frame's points follow its own coordinates alone, so one pull gives a row of all frames' Jacobians.
    rows = jnp.eye(3 * len(bodies), dtype=kind).reshape(-1, len(bodies), 3)[..., None]
    rows = jnp.broadcast_to(rows, (*rows.shape[:3], q.shape[1]))
    jacobian = jax.vmap(lambda row: pull(row)[0])(rows)
    return found, jacobian.reshape(len(bodies), 3, *q.shape)


def _law(
    floor: Floor, positions: Float[Array, "P 3 T"], moving: Float[Array, "P 3 T"]
) -> tuple[Float[Array, "P T"], Float[Array, "P T"], Float[Array, "P 3 T"]]:
    """Normal force at rest, stiffness, and the drag along each axis, N s/m."""
    height, stiffness, dissipation, friction, slip_speed = (
        jnp.asarray(x, positions.dtype)
        for x in (floor.height, floor.stiffness, floor.dissipation, floor.friction, floor.slip_speed)
    )
    depth = height - positions[:, 1]
    stiff = jnp.where(depth > 0, stiffness, 0.0)
    normal = stiff * depth
    sinking = jnp.where(moving[:, 1] < 0, dissipation * normal, 0.0)
    slip = moving[:, 0] ** 2 + moving[:, 2] ** 2 + slip_speed**2
    along = friction * normal / jnp.sqrt(slip)
    return normal, stiff, jnp.stack([along, sinking, along], axis=1)
