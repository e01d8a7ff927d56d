"""A converted model with its masses, as dynamics need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import FileFormatError, UnknownNameError
from simspine_jax.io.sidecar import ModelDescription, read_sidecar, uncouple
from simspine_jax.kinematics.coordinates import CoordinateMap, build_coordinate_map
from simspine_jax.kinematics.model import SpineModel, converted_path, find_converted, read_converted
from simspine_jax.kinematics.topology import Topology

STATIC = {"static": True}
GROUND = "ground"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MassProperties:
    """Mass and its distribution in each body, as OpenSim has them; bodies in OpenSim's order.

    Attributes:
        mass: kg; zero for a massless body.
        center: the mass centre in the body, m.
        inertia: about the mass centre, in the body's axes, kg m².
    """

    mass: Float[Array, " B"]
    center: Float[Array, "B 3"]
    inertia: Float[Array, "B 3 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DynamicModel:
    """A model for dynamics: `SpineModel` for its free coordinates, and the tree over all coordinates.

    The tree is that of the converted model, but a function of each of OpenSim's coordinates on its own
    (``uncoupled`` in the sidecar), so that forces over coupled and locked coordinates exist. The free
    coordinates' equations of motion are its projection by ``kinematics.coordinate_map``.

    Attributes:
        kinematics: the model with its couplers and locks, or with lumbar coordinates freed.
        bodies: masses, in the order of ``kinematics.body_names``.
        gravity: m/s², in ground.
        joint_axis: of each scalar joint of the tree, in its body.
        scale_axis: as in `SpineModel`, for the tree's joints.
        scale_factors: of each body along its axes; None for the model as it is.
        coordinate_map: from all coordinates to the tree's joint positions; its ``full`` part is the identity.
        topology: the tree; its "markers" are the bodies' mass centres.
        coordinate_joints: name of the OpenSim joint of each coordinate.
    """

    kinematics: SpineModel
    bodies: MassProperties
    gravity: Float[Array, " 3"]
    joint_axis: Float[Array, "N 3"]
    scale_axis: Float[Array, "N 3"]
    scale_factors: Float[Array, "B 3"] | None
    coordinate_map: CoordinateMap = field(metadata=STATIC)
    topology: Topology = field(metadata=STATIC)
    coordinate_joints: tuple[str, ...] = field(metadata=STATIC)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """All coordinates C, in OpenSim's order."""
        return self.kinematics.coordinate_names

    @property
    def dtype(self) -> jnp.dtype:
        """Floating-point type of the model's arrays."""
        return self.kinematics.dtype

    @property
    def total_mass(self) -> Float[Array, ""]:
        """Mass of all bodies, kg."""
        return jnp.sum(self.bodies.mass)

    def body_id(self, name: str, what: str = "Body") -> int:
        """The tree's number of a body, 0 for ``ground``.

        Raises:
            UnknownNameError: the model has no such body.
        """
        names = self.kinematics.body_names
        if name == GROUND:
            return 0
        if name not in names:
            raise UnknownNameError(what, name, f"the model {self.kinematics.name}", (GROUND, *names))
        return self.topology.body_order[names.index(name)]

    def moved_body(self, coordinate: str) -> str:
        """The body that a coordinate moves against its parent.

        Raises:
            UnknownNameError: the model has no such coordinate, or nothing moves by it.
        """
        moves = self.coordinate_map.dependence
        named = np.flatnonzero(np.asarray(moves).any(axis=0))
        moving = [self.coordinate_names[i] for i in named]
        if coordinate not in moving:
            raise UnknownNameError("Coordinate", coordinate, f"the model {self.kinematics.name}", moving)
        joint = int(np.flatnonzero(moves[:, self.coordinate_names.index(coordinate)])[0])
        body = self.topology.joint_bodies[joint]
        return self.kinematics.body_names[self.topology.body_order.index(body)]


def load_dynamic_model(
    path: str | Path,
    markers: str | Path | None = None,
    *,
    ignore_constraints: Sequence[str] = (),
    dtype: jnp.dtype | None = None,
) -> DynamicModel:
    """Loads a converted model with its masses, or converts an OpenSim model on the fly.

    Arguments are those of `load_model`.

    Raises:
        FileFormatError: a file is missing or malformed, or was converted without what dynamics need.
        UnsupportedModelError: an ``.osim`` with elements that can't be exact.
        MissingDependencyError: an ``.osim`` was given and OpenSim is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".osim":
        path, markers = converted_path(path, markers, ignore_constraints), None
    sidecar = find_converted(path)
    return build_dynamic_model(read_converted(path, markers, dtype), read_sidecar(sidecar), str(sidecar))


def build_dynamic_model(kinematics: SpineModel, description: ModelDescription, where: str) -> DynamicModel:
    """The dynamic model of a loaded model and the sidecar that it was read from.

    Args:
        kinematics: read from this sidecar; lumbar coordinates may have been freed.
        description: the sidecar.
        where: its path, for messages.

    Raises:
        FileFormatError: the sidecar lacks the uncoupled tree, or holds masses that no model can have.
    """
    if description.uncoupled is None:
        raise FileFormatError(
            f"{where} was converted without what dynamics need; valid is a model that this version of "
            "`simspine convert` writes, or the .osim itself"
        )
    _check_masses(description, where)
    tree = uncouple(description, description.uncoupled)
    ids = dict(zip(kinematics.body_names, kinematics.topology.body_order, strict=True))
    topology = Topology(
        parents=kinematics.topology.parents,
        joint_bodies=tuple(ids[j.body] for j in tree.joint_positions),
        joint_is_hinge=tuple(j.kind == "hinge" for j in tree.joint_positions),
        body_order=kinematics.topology.body_order,
        marker_bodies=kinematics.topology.body_order,
        marker_sites=(),
    )
    scale_axis = [j.scale_axis or (np.nan,) * 3 for j in tree.joint_positions]

    def array(values: object, *shape: int) -> Array:
        return jnp.asarray(np.array(values, float).reshape(shape), kinematics.dtype)

    return DynamicModel(
        kinematics=kinematics,
        bodies=MassProperties(
            array([b.mass for b in tree.bodies], -1),
            array([b.mass_center for b in tree.bodies], -1, 3),
            array([_tensor(b.inertia) for b in tree.bodies], -1, 3, 3),
        ),
        gravity=array(tree.gravity, 3),
        joint_axis=array(description.uncoupled.axes, -1, 3),
        scale_axis=array(scale_axis, -1, 3),
        scale_factors=None,
        coordinate_map=build_coordinate_map(tree),
        topology=topology,
        coordinate_joints=tuple(c.joint for c in tree.coordinates),
    )


def _tensor(inertia: tuple[float, ...]) -> list[list[float]]:
    xx, yy, zz, xy, xz, yz = inertia
    return [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]


def _check_masses(description: ModelDescription, where: str) -> None:
    for body in description.bodies:
        numbers = np.array([body.mass, *body.mass_center, *body.inertia])
        if not np.isfinite(numbers).all() or body.mass < 0:
            raise FileFormatError(
                f"{where}: body '{body.name}' has a mass, mass centre or inertia that no body has; valid are "
                "finite numbers and a mass from 0 on"
            )
