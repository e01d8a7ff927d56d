"""Moves a scaled model's markers to where they were measured in a static pose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.errors import ShapeError
from simspine_jax.io.ik_setup import IKSetup
from simspine_jax.kinematics.forward import forward_kinematics, scaled_frames
from simspine_jax.kinematics.inverse import IKSolution, IKStatus, solve_ik
from simspine_jax.kinematics.model import SpineModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MarkerPlacement:
    """What `place_markers` finds.

    Attributes:
        offsets: to add to the scaled markers' locations in their bodies, metres: `forward_kinematics`'
            ``marker_offsets``; 0 for markers that stay.
        moved: whether a marker was moved.
        static_markers: means of the measured positions, metres, NaN for markers that are never seen.
        movement: how far each marker moves along one axis during the frames, metres.
        solution: of the static pose's inverse kinematics, one frame; its errors are before the move.
    """

    offsets: Float[Array, "K 3"]
    moved: Bool[Array, " K"]
    static_markers: Float[Array, "K 3"]
    movement: Float[Array, " K"]
    solution: IKSolution


def place_markers(
    model: SpineModel,
    markers: Float[Array, "T K 3"],
    *,
    setup: IKSetup | None = None,
    weights: Float[Array, " K"] | Mapping[str, float] | None = None,
    coordinate_targets: Float[Array, " n"] | None = None,
    scale_factors: Float[Array, "B #3"] | None = None,
    fixed: Sequence[str] = (),
) -> MarkerPlacement:
    """Finds the pose that fits a static trial and moves the markers to where they were measured in it.

    As OpenSim's ``MarkerPlacer``: positions are averaged over the frames in which a marker is seen, one pose
    is solved for them, and then every marker that is seen and not fixed is moved. Differentiable in
    ``markers``, ``weights``, ``coordinate_targets`` and ``scale_factors``.

    Args:
        model: the generic model, or a scaled one without ``scale_factors``.
        markers: positions over the static trial in ``model.marker_names`` order, metres, Y up; NaN where a
            marker is missing.
        setup: tasks of the pose, such as a `PlacingStage`'s ``ik_setup``; default: see `solve_ik`.
        weights: see `solve_ik`; not with ``setup``.
        coordinate_targets: values of the setup's coordinate tasks, in the order of the applied tasks.
        scale_factors: see `forward_kinematics`.
        fixed: markers that stay where they are, such as those that the model's file calls ``fixed``.

    Raises:
        ShapeError: an argument's shape or value doesn't fit.
        UnknownNameError: ``fixed``, a weight or a task names something that the model lacks.
    """
    markers = jnp.asarray(markers)
    if markers.ndim != 3 or markers.shape[1:] != (model.n_markers, 3) or len(markers) == 0:
        raise ShapeError(
            f"markers has shape {markers.shape}; it must be (frames, {model.n_markers}, 3), the model's "
            "markers in their order, with at least one frame"
        )
    stays = np.zeros(model.n_markers, bool)
    stays[model.marker_indices(fixed)] = True
    static, movement = _static_pose(markers)
    solution = solve_ik(
        model,
        static[None],
        weights=weights,
        setup=setup,
        coordinate_targets=None if coordinate_targets is None else jnp.asarray(coordinate_targets)[None],
        scale_factors=scale_factors,
    )
    solved = solution.status[0] != IKStatus.TOO_FEW_MARKERS
    seen = jnp.all(jnp.isfinite(static), axis=-1)
    moved = seen & solved & ~stays
    target = jnp.where(seen[:, None], static, 0)
    pose = jnp.where(solved, solution.q[0], model.default_q.astype(static.dtype))
    found = _locations(model, pose, target, scale_factors)
    before = scaled_frames(
        model, None if scale_factors is None else jnp.asarray(scale_factors), None, static.dtype
    ).site_position
    return MarkerPlacement(jnp.where(moved[:, None], found - before, 0), moved, static, movement, solution)


def _static_pose(markers: Float[Array, "T K 3"]) -> tuple[Float[Array, "K 3"], Float[Array, " K"]]:
    """Means over the frames that show a marker, and its greatest extent along an axis."""
    seen = jnp.all(jnp.isfinite(markers), axis=-1)[..., None]
    clean = jnp.where(seen, markers, 0)
    count = jnp.sum(seen, axis=0)
    mean = jnp.where(count > 0, jnp.sum(clean, axis=0) / jnp.maximum(count, 1), jnp.nan)
    low, high = jnp.where(seen, clean, jnp.inf).min(axis=0), jnp.where(seen, clean, -jnp.inf).max(axis=0)
    return mean, jnp.where(count[:, 0] > 0, jnp.max(high - low, axis=-1), jnp.nan)


def _locations(
    model: SpineModel, q: Float[Array, " Q"], points: Float[Array, "K 3"], scale_factors: Array | None
) -> Float[Array, "K 3"]:
    """Points in ground as locations in the bodies of the markers."""
    poses = forward_kinematics(model, q, scale_factors=scale_factors)
    # Markers name bodies in MuJoCo's numbering, in which ground is the first.
    order = np.array(model.topology.body_order, int)
    n = len(model.topology.parents)
    positions = jnp.zeros((n, 3), q.dtype).at[order].set(poses.body_positions)
    rotations = jnp.zeros((n, 3, 3), q.dtype).at[:].set(jnp.eye(3, dtype=q.dtype))
    rotations = rotations.at[order].set(poses.body_rotations)
    bodies = np.array(model.topology.marker_bodies, int)
    return jnp.einsum("kji,kj->ki", rotations[bodies], points - positions[bodies], precision="highest")
