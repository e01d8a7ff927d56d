"""Forces from outside the body, such as the ground's on the feet."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.model import DynamicModel
from simspine_jax.dynamics.tree import Posture, cross, times
from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.io.external_loads import LoadTable

STATIC = {"static": True}
# Times are written with few digits.
TIME_SLACK_S = 1e-6
# OpenSim's spline needs so many samples; with fewer it interpolates linearly.
LEAST_SPLINE_SAMPLES = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExternalWrenches:
    """Forces and torques on bodies; NaN where a load is not known, which makes the frame's results NaN.

    Attributes:
        force: N, in the axes of ``force_bodies``.
        point: where it acts, m, in ``point_bodies``.
        torque: N m beside the force, in the axes of ``force_bodies``.
        bodies: that each load acts on.
        force_bodies: names of bodies or ``ground``.
        point_bodies: likewise.
    """

    force: Float[Array, "*batch L 3"]
    point: Float[Array, "*batch L 3"]
    torque: Float[Array, "*batch L 3"]
    bodies: tuple[str, ...] = field(metadata=STATIC)
    force_bodies: tuple[str, ...] = field(metadata=STATIC)
    point_bodies: tuple[str, ...] = field(metadata=STATIC)


def sample_loads(table: LoadTable, times_s: NDArray[np.float64]) -> ExternalWrenches:
    """Loads at the given times, in float64 on the host, interpolated as OpenSim does it.

    That is by natural cubic splines, and linearly where there are less than four samples.

    Args:
        table: of `read_load_table`.
        times_s: [T] s.

    Raises:
        FileFormatError: the loads don't cover these times, or have gaps.
    """
    times_s = np.asarray(times_s, np.float64)
    first, last = table.times[0], table.times[-1]
    if len(times_s) and (times_s[0] < first - TIME_SLACK_S or times_s[-1] > last + TIME_SLACK_S):
        raise FileFormatError(
            f"{table.source} has loads from {first:g} to {last:g} s, the motion is from {times_s[0]:g} to "
            f"{times_s[-1]:g} s; valid are loads for the whole motion (--time takes a part of it)"
        )
    values = np.stack([table.force, table.point, table.torque], axis=1)  # [S 3 L 3]
    if not np.isfinite(values).all():
        frame = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise FileFormatError(
            f"{table.source} has a gap at {table.times[frame]:g} s; valid are loads without gaps"
        )
    here = np.clip(times_s, first, last)
    if len(table.times) >= LEAST_SPLINE_SAMPLES:
        sampled = CubicSpline(table.times, values, bc_type="natural")(here)
    else:
        flat = values.reshape(len(values), -1)
        columns = [np.interp(here, table.times, column) for column in flat.T]
        sampled = np.stack(columns, axis=1).reshape(len(here), *values.shape[1:])
    force, point, torque = (jnp.asarray(sampled[:, k]) for k in range(3))
    return ExternalWrenches(force, point, torque, table.bodies, table.force_bodies, table.point_bodies)


def body_wrenches(
    model: DynamicModel, loads: ExternalWrenches, pose: Posture, batch: tuple[int, ...]
) -> tuple[Float[Array, "B 3 T"], Float[Array, "B 3 T"]]:
    """Force and moment about the posture's reference that the loads put on each body, in ground.

    Raises:
        ShapeError: the loads' arrays don't fit the motion or the names.
        UnknownNameError: the model lacks a body that they name.
    """
    kind = pose.center.dtype
    shape = (*batch, len(loads.bodies), 3)
    parts = []
    for name in ("force", "point", "torque"):
        value = getattr(loads, name)
        if np.shape(value) != shape:
            raise ShapeError(f"{name} of the loads has shape {np.shape(value)}; it must be {shape}")
        parts.append(jnp.moveaxis(jnp.asarray(value, kind).reshape(-1, *shape[-2:]), 0, -1))
    axes = np.array([model.body_id(name, "External load: body") for name in loads.force_bodies], int)
    places = np.array([model.body_id(name, "External load: body") for name in loads.point_bodies], int)
    state = pose.state
    force, torque = times(state.rotation[axes], parts[0]), times(state.rotation[axes], parts[2])
    arm = times(state.rotation[places], parts[1]) + state.position[places] - pose.reference
    targets = np.array([model.body_id(name, "External load: body") for name in loads.bodies], int)
    count, frames = len(model.topology.parents), pose.center.shape[-1]
    none = jnp.zeros((count, 3, frames), kind)
    order = np.array(model.topology.body_order, int)
    total = none.at[targets].add(force)[order]
    return total, none.at[targets].add(torque + cross(arm, force))[order]
