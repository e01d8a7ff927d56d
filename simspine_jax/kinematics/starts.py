"""Where inverse kinematics starts when it knows nothing: off singular poses, aligned with the markers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.kinematics.coordinates import free_to_qpos
from simspine_jax.kinematics.forward import marker_positions, tree_forward
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.residuals import Slice
from simspine_jax.kinematics.rest import Root


def cold_starts(model: SpineModel, data: Slice) -> Float[Array, "S Q W"]:
    """The model's start poses, each moved as a whole onto the markers of each frame."""
    lanes = data.targets.shape[-1]
    poses = model.start_q.astype(data.targets.dtype)

    def aligned(pose: Float[Array, " Q"]) -> Float[Array, "Q W"]:
        return align_root(model, data, jnp.broadcast_to(pose[:, None], (pose.shape[0], lanes)))

    # One after the other, so that they are one program to compile.
    return lax.map(aligned, poses)


def align_root(model: SpineModel, data: Slice, q: Float[Array, "Q W"]) -> Float[Array, "Q W"]:
    """Moves the whole model onto the markers: rigid alignment (Kabsch 1976) set as root coordinates."""
    root = model.root
    if root is None:
        return q
    hinges, slides = np.array(root.hinges, int), np.array(root.slides, int)
    body_rotation = _root_rotation(root, q[hinges])
    topology = model.topology
    state = tree_forward(topology, data.frames, free_to_qpos(model.coordinate_map, q))
    markers = marker_positions(topology, data.frames, state)
    turn = _rigid(markers, data)
    q = q.at[hinges].set(_root_angles(root, jnp.einsum("wij,wjk->wik", turn, body_rotation)))
    # Its hinges turn all that it carries about one point.
    center = state.center[root.body]
    carried = topology.ancestors[root.body, np.array(topology.marker_bodies, int)]
    turned = center + jnp.einsum("wij,kjw->kiw", turn, markers - center)
    markers = jnp.where(carried[:, None, None], turned, markers)
    shift = jnp.sum(data.weights[:, None] * (data.targets - markers), axis=0)
    return q.at[slides].add(jnp.asarray(root.slide_axes, q.dtype) @ shift)


def _rigid(markers: Float[Array, "K 3 W"], data: Slice) -> Float[Array, "W 3 3"]:
    """Rotation that brings ``markers`` onto the targets, up to a shift; a frame's weights sum to 1 or 0."""
    w = data.weights[:, None]
    mean_x, mean_y = jnp.sum(w * markers, axis=0), jnp.sum(w * data.targets, axis=0)
    x, y = markers - mean_x, data.targets - mean_y
    covariance = jnp.einsum("kw,kiw,kjw->wij", data.weights, y, x)
    covariance = jnp.where(jnp.isfinite(covariance), covariance, 0)
    u, _, vt = jnp.linalg.svd(covariance)
    sign = jnp.sign(jnp.linalg.det(u @ vt))
    u = u.at[..., 2].multiply(jnp.where(sign < 0, -1.0, 1.0)[:, None])
    return u @ vt


def _root_rotation(root: Root, angles: Float[Array, "3 W"]) -> Float[Array, "W 3 3"]:
    axes = jnp.asarray(root.hinge_axes, angles.dtype)

    def one(three: Array) -> Array:
        rotation = jnp.asarray(root.rest, angles.dtype)
        for axis, angle in zip(axes, three, strict=True):
            cross = jnp.cross(jnp.eye(3, dtype=angles.dtype), axis[None])
            outer = jnp.outer(axis, axis)
            rotation = rotation @ (
                outer + jnp.cos(angle) * (jnp.eye(3, dtype=angles.dtype) - outer) - jnp.sin(angle) * cross
            )
        return rotation

    return jax.vmap(one, in_axes=1)(angles)


def _root_angles(root: Root, rotation: Float[Array, "W 3 3"]) -> Float[Array, "3 W"]:
    """Angles about the three orthogonal hinge axes (Tait-Bryan) that give ``rotation``."""
    basis = jnp.asarray(root.hinge_axes, rotation.dtype).T
    hand = float(np.sign(np.linalg.det(root.hinge_axes)))
    relative = basis.T @ (jnp.asarray(root.rest, rotation.dtype).T @ rotation) @ basis
    middle = jnp.arcsin(jnp.clip(relative[:, 0, 2], -1, 1))
    first = jnp.arctan2(-relative[:, 1, 2], relative[:, 2, 2])
    last = jnp.arctan2(-relative[:, 0, 1], relative[:, 0, 0])
    return hand * jnp.stack([first, middle, last])
