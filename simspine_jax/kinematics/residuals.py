"""The objective of inverse kinematics: markers, coordinate tasks and the user's own residuals.

For one frame, in OpenSim's form and normalisation (Simbody's ``Markers`` and ``QValue`` assembly goals)::

    F(q) = sum_k w_k |x_k(q) - y_k|^2 / (2 sum_k w_k)  +  sum_c v_c (coordinate_c(q) - target_c)^2 / 2

where sums run over the markers that the frame has. Each residual of the user's adds ``|r(q)|^2 / 2``.
Arrays have frames last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.kinematics.coordinates import free_to_full, free_to_qpos
from simspine_jax.kinematics.forward import Frames, marker_positions, tree_forward
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.normal_equations import build_plan, marker_normal_equations

# A residual for one frame: (free coordinates [Q], marker positions [K 3]) -> [M], any length.
Residual = Callable[[Float[Array, " Q"], Float[Array, "K 3"]], Float[Array, " M"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Problem:
    """All frames' data of the objective; differentiable in every float array."""

    targets: Float[Array, "T K 3"]  # metres; anything where the weight is 0
    weights: Float[Array, "T K"]  # of each frame they sum to 1; 0 where a marker is missing
    task_targets: Float[Array, "T n"]
    task_weights: Float[Array, " n"]
    usable: Bool[Array, " T"]  # frames with enough markers
    frames: Frames


@dataclass(frozen=True)
class Structure:
    """The static side of the objective: which coordinates have tasks, and the user's residuals."""

    task_rows: tuple[int, ...] = ()
    residuals: tuple[Residual, ...] = ()


@dataclass(frozen=True)
class Slice:
    """The data of some frames, frames last."""

    targets: Float[Array, "K 3 W"]
    weights: Float[Array, "K W"]
    task_targets: Float[Array, "n W"]
    task_weights: Float[Array, " n"]
    frames: Frames


def take(problem: Problem, index: Array) -> Slice:
    """The frames ``index``."""
    return Slice(
        jnp.moveaxis(problem.targets[index], 0, -1),
        problem.weights[index].T,
        problem.task_targets[index].T,
        problem.task_weights,
        problem.frames,
    )


def objective(
    model: SpineModel, structure: Structure, data: Slice, q: Float[Array, "Q W"]
) -> Float[Array, " W"]:
    """F for each frame; plain JAX, differentiable to any order."""
    return objective_of(model, structure, data, q, markers_at(model, data.frames, q))


def markers_at(model: SpineModel, frames: Frames, q: Float[Array, "Q W"]) -> Float[Array, "K 3 W"]:
    """The model's markers in ground."""
    state = tree_forward(model.topology, frames, free_to_qpos(model.coordinate_map, q))
    return marker_positions(model.topology, frames, state)


def objective_of(
    model: SpineModel,
    structure: Structure,
    data: Slice,
    q: Float[Array, "Q W"],
    markers: Float[Array, "K 3 W"],
) -> Float[Array, " W"]:
    """F where the model's markers are known already."""
    squared = jnp.sum((markers - data.targets) ** 2, axis=1)
    value = 0.5 * jnp.sum(data.weights * squared, axis=0)
    if structure.task_rows:
        off = free_to_full(model.coordinate_map, q)[np.array(structure.task_rows, int)] - data.task_targets
        value = value + 0.5 * jnp.sum(data.task_weights[:, None] * off**2, axis=0)
    for residual in structure.residuals:
        r = jax.vmap(residual, in_axes=(1, 2), out_axes=1)(q, markers)
        value = value + 0.5 * jnp.sum(r * r, axis=0)
    return value


def normal_equations(
    model: SpineModel,
    structure: Structure,
    data: Slice,
    q: Float[Array, "Q W"],
    bend: Float[Array, " W"] | None = None,
) -> tuple[Float[Array, " W"], Float[Array, "Q W"], Float[Array, "Q Q W"]]:
    """F, its gradient, and its Gauss-Newton matrix plus ``bend`` times the rest of its Hessian."""
    m, topology = model.coordinate_map, model.topology
    state = tree_forward(topology, data.frames, free_to_qpos(m, q))
    markers = marker_positions(topology, data.frames, state)
    residuals = markers - data.targets
    f = 0.5 * jnp.sum(data.weights * jnp.sum(residuals**2, axis=1), axis=0)
    plan = build_plan(m, topology, bend is not None)
    g, h = marker_normal_equations(
        plan, m, topology, data.frames, state, q, markers, residuals, data.weights, bend
    )
    if structure.task_rows:
        more = _task_equations(model, structure, data, q, bend)
        f, g, h = f + more[0], g + more[1], h + more[2]
    for residual in structure.residuals:
        more = _residual_equations(model, residual, data.frames, q, bend)
        f, g, h = f + more[0], g + more[1], h + more[2]
    return f, g, h


def _task_equations(
    model: SpineModel, structure: Structure, data: Slice, q: Float[Array, "Q W"], bend: Array | None
) -> tuple[Array, Array, Array]:
    m, rows = model.coordinate_map, np.array(structure.task_rows, int)
    off = free_to_full(m, q)[rows] - data.task_targets
    weighted = data.task_weights[:, None] * off
    f = 0.5 * jnp.sum(weighted * off, axis=0)
    if not np.any(m.full_terms[rows]):
        matrix = jnp.asarray(m.full_matrix[rows], q.dtype)
        return f, matrix.T @ weighted, (matrix.T @ (data.task_weights[:, None] * matrix))[..., None]

    def values(one: Array) -> Array:
        return free_to_full(m, one)[rows]

    jacobian = jax.vmap(jax.jacfwd(values), in_axes=1, out_axes=2)(q)
    g = jnp.einsum("nqw,nw->qw", jacobian, weighted)
    h = jnp.einsum("nqw,n,npw->qpw", jacobian, data.task_weights, jacobian)
    if bend is not None:
        curve = jax.vmap(
            jax.hessian(lambda one, force: jnp.dot(values(one), force)), in_axes=(1, 1), out_axes=2
        )
        h = h + bend * curve(q, weighted)
    return f, g, h


def _residual_equations(
    model: SpineModel, residual: Residual, frames: Frames, q: Float[Array, "Q W"], bend: Array | None
) -> tuple[Array, Array, Array]:
    def one(q1: Array) -> Array:
        return residual(q1, markers_at(model, frames, q1))

    r = jax.vmap(one, in_axes=1, out_axes=1)(q)
    jacobian = jax.vmap(jax.jacfwd(one), in_axes=1, out_axes=2)(q)
    g = jnp.einsum("mqw,mw->qw", jacobian, r)
    h = jnp.einsum("mqw,mpw->qpw", jacobian, jacobian)
    if bend is not None:
        curve = jax.vmap(jax.hessian(lambda q1, force: jnp.dot(one(q1), force)), in_axes=(1, 1), out_axes=2)
        h = h + bend * curve(q, r)
    return 0.5 * jnp.sum(r * r, axis=0), g, h
