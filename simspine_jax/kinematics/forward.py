"""Forward kinematics: free coordinates to marker positions and body poses.

Two engines over the same ``mjx.Model`` fields: ``"levels"``, ours, composes all bodies of one depth of the
tree at once with frames as the last axis; ``"mjx"`` calls ``mjx.kinematics``. They give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, UnsupportedModelError
from simspine_jax.kinematics.coordinates import free_to_full, free_to_qpos
from simspine_jax.kinematics.model import SpineModel, import_mjx
from simspine_jax.kinematics.topology import Topology

Engine = Literal["levels", "mjx"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Poses:
    """Where markers and bodies are, in ground, metres.

    ``body_rotations[..., b, :, :]`` is ``R_ground_body``; bodies are in ``model.body_names`` order.
    """

    markers: Float[Array, "*batch K 3"]
    body_positions: Float[Array, "*batch B 3"]
    body_rotations: Float[Array, "*batch B 3 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frames:
    """The tree's constant transforms after scaling, in MuJoCo's numbering; all that FK reads."""

    body_position: Float[Array, "bodies 3"]
    body_rotation: Float[Array, "bodies 3 3"]
    joint_axis: Float[Array, "N 3"]
    anchor: Float[Array, "bodies 3"]
    slide_factor: Float[Array, " N"]
    site_position: Float[Array, "K 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeState:
    """Body poses and joint axes in ground, frames last: what FK gives and what derivatives start from."""

    position: Float[Array, "bodies 3 *frames"]
    rotation: Float[Array, "bodies 3 3 *frames"]
    axis: Float[Array, "N 3 *frames"]  # of each joint
    center: Float[Array, "bodies 3 *frames"]  # the point about which a body's hinges turn


def expand_coordinates(model: SpineModel, q: Float[Array, "*batch Q"]) -> Float[Array, "*batch C"]:
    """All of the model's coordinates, in OpenSim's order, from the free ones (radians, metres)."""
    return _expand_coordinates(model, _as_free(model, q))


# The public functions check their arguments around cores that are compiled whole: run operation by
# operation, each of a thousand would be compiled alone. Inside another program the cores are inlined.
@partial(jax.jit, inline=True)
def _expand_coordinates(model: SpineModel, q: Float[Array, "*batch Q"]) -> Float[Array, "*batch C"]:
    return jnp.moveaxis(free_to_full(model.coordinate_map, jnp.moveaxis(q, -1, 0)), 0, -1)


def reduce_coordinates(model: SpineModel, coordinates: Float[Array, "*batch C"]) -> Float[Array, "*batch Q"]:
    """The free coordinates among all of them: inverse of ``expand_coordinates`` on admissible poses."""
    coordinates = jnp.asarray(coordinates)
    if coordinates.shape[-1:] != (len(model.coordinate_names),):
        raise ShapeError(
            f"coordinates has shape {coordinates.shape}; its last axis must be the model's "
            f"{len(model.coordinate_names)} coordinates"
        )
    return coordinates[..., model.coordinate_map.free_indices]


def expand_qpos(model: SpineModel, q: Float[Array, "*batch Q"]) -> Float[Array, "*batch N"]:
    """MuJoCo's ``qpos`` of the converted MJCF from the free coordinates."""
    return _expand_qpos(model, _as_free(model, q))


@partial(jax.jit, inline=True)
def _expand_qpos(model: SpineModel, q: Float[Array, "*batch Q"]) -> Float[Array, "*batch N"]:
    return jnp.moveaxis(free_to_qpos(model.coordinate_map, jnp.moveaxis(q, -1, 0)), 0, -1)


def forward_kinematics(
    model: SpineModel,
    q: Float[Array, "*batch Q"],
    *,
    scale_factors: Float[Array, "B #3"] | None = None,
    marker_offsets: Float[Array, "K 3"] | None = None,
    engine: Engine = "levels",
) -> Poses:
    """Marker positions and body poses; differentiable in every array argument.

    Args:
        q: free coordinates, radians and metres, any batch shape; its dtype is the computation's.
        scale_factors: per body (and axis), as OpenSim's scale tool applies them: frame origins and markers
            by the factors of the body that they sit on, translation functions by the parent's.
        marker_offsets: added to the markers' (scaled) positions in their bodies, metres.
        engine: ``"levels"`` (ours) or ``"mjx"``; both give the same numbers.

    Raises:
        ShapeError: an argument's shape doesn't fit the model.
        UnsupportedModelError: ``scale_factors`` for a model whose frames OpenSim would scale otherwise.
    """
    q = _as_free(model, q)
    if engine not in ("levels", "mjx"):
        raise ShapeError(f"engine {engine!r} is unknown; valid are 'levels' and 'mjx'")
    scale_factors, marker_offsets = (
        None if x is None else jnp.asarray(x, q.dtype) for x in (scale_factors, marker_offsets)
    )
    if engine == "mjx" and jax.default_backend() == "cpu":
        # Compiler options hold for the outermost program only: inside another one they are that one's matter.
        inside = any(
            isinstance(x, Tracer) for x in jax.tree.leaves((model, q, scale_factors, marker_offsets))
        )
        return (_poses if inside else _unfused)(model, q, scale_factors, marker_offsets, engine)
    return _forward(model, q, scale_factors, marker_offsets, engine)


def _poses(
    model: SpineModel,
    q: Float[Array, "*batch Q"],
    scale_factors: Float[Array, "B #3"] | None,
    marker_offsets: Float[Array, "K 3"] | None,
    engine: Engine,
) -> Poses:
    """``forward_kinematics`` of checked arguments."""
    batch = q.shape[:-1]
    frames = scaled_frames(model, scale_factors, marker_offsets, q.dtype)
    if engine == "mjx":
        return _forward_mjx(model, frames, q)
    rows = q.reshape(-1, q.shape[-1])
    flat = jnp.pad(rows, ((0, _spare_frames(len(rows))), (0, 0))).T
    state = tree_forward(model.topology, frames, free_to_qpos(model.coordinate_map, flat))
    markers = marker_positions(model.topology, frames, state)
    order = np.array(model.topology.body_order, int)

    def framed(x: Array) -> Array:
        return x.reshape(-1, flat.shape[1]).T[: len(rows)].reshape(*batch, *x.shape[:-1])

    return Poses(framed(markers), framed(state.position[order]), framed(state.rotation[order]))


def _spare_frames(count: int) -> int:
    """Frames to add so that rows of frames don't all fall on the same lines of a processor's first cache."""
    return 16 if count and count % 1024 == 0 else 0


_forward = partial(jax.jit, static_argnames="engine", inline=True)(_poses)
# XLA's fusion on the CPU lets every body compute its whole chain again.
_unfused = partial(jax.jit, static_argnames="engine", compiler_options={"xla_disable_hlo_passes": "fusion"})(
    _poses
)


def _as_free(model: SpineModel, q) -> Array:
    q = jnp.asarray(q)
    if q.shape[-1:] != (model.n_free,):
        raise ShapeError(
            f"q has shape {q.shape}; its last axis must be the model's {model.n_free} free coordinates"
        )
    return q if jnp.issubdtype(q.dtype, jnp.floating) else q.astype(model.dtype)


def scaled_frames(
    model: SpineModel,
    scale_factors: Float[Array, "B #3"] | None,
    marker_offsets: Float[Array, "K 3"] | None,
    dtype: jnp.dtype,
) -> Frames:
    """The constant transforms with scale factors and marker offsets applied."""
    topology, m = model.topology, model.mjx_model
    n_bodies = len(topology.parents)
    rotation = jax.vmap(_rotation_of_quaternion)(jnp.asarray(m.body_quat, dtype))
    parent_offset, child_offset = model.parent_offset.astype(dtype), model.child_offset.astype(dtype)
    sites = model.marker_locations.astype(dtype)
    slide_factor = jnp.ones(len(topology.joint_bodies), dtype)
    if scale_factors is not None:
        scale = _tree_scale(model, jnp.asarray(scale_factors, dtype))
        parents = np.array(topology.parents, int)
        parent_offset = parent_offset * scale[parents]
        child_offset = child_offset * scale
        sites = sites * scale[np.array(topology.marker_bodies, int)]
        joint_parents = parents[np.array(topology.joint_bodies, int)]
        axis = model.scale_axis.astype(dtype)
        fixed = jnp.isnan(axis[:, 0])
        # OpenSim weighs the factors by the axis' components without their signs.
        weight = jnp.abs(jnp.where(fixed[:, None], 0, axis))
        product = jnp.sum(weight * scale[joint_parents], axis=-1)
        slide_factor = jnp.where(fixed, 1, product)
        body_position = parent_offset - jnp.einsum("bij,bj->bi", rotation, child_offset, precision="highest")
    else:
        body_position = jnp.asarray(m.body_pos, dtype)
    if marker_offsets is not None:
        offsets = jnp.asarray(marker_offsets, dtype)
        if offsets.shape != sites.shape:
            raise ShapeError(f"marker_offsets has shape {offsets.shape}; it must be {sites.shape}")
        sites = sites + offsets
    return Frames(
        body_position.reshape(n_bodies, 3),
        rotation,
        jnp.asarray(m.jnt_axis, dtype),
        child_offset,
        slide_factor,
        sites,
    )


def _tree_scale(model: SpineModel, scale_factors: Array) -> Array:
    """Scale factors ``[bodies 3]`` in MuJoCo's order, ground unscaled."""
    if not model.scalable:
        raise UnsupportedModelError(
            f"The model {model.name} has reversed joints, turned chains of offset frames or coupled "
            "translations, whose scaling by scale_factors would not equal OpenSim's"
        )
    n = len(model.body_names)
    if scale_factors.ndim == 1:
        scale_factors = scale_factors[:, None]
    if scale_factors.ndim != 2 or scale_factors.shape[0] != n or scale_factors.shape[1] not in (1, 3):
        raise ShapeError(
            f"scale_factors has shape {scale_factors.shape}; it must be ({n},) or ({n}, 3), one per body"
        )
    scale_factors = jnp.broadcast_to(scale_factors, (n, 3))
    order = np.array(model.topology.body_order, int)
    return jnp.ones((n + 1, 3), scale_factors.dtype).at[order].set(scale_factors)


def _rotation_of_quaternion(quaternion: Float[Array, " 4"]) -> Float[Array, "3 3"]:
    w, x, y, z = quaternion
    return jnp.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )


def _matmul(
    a: Float[Array, "n 3 3 *frames"], b: Float[Array, "n 3 3 *frames"]
) -> Float[Array, "n 3 3 *frames"]:
    """Products of 3x3 matrices written out, so that XLA runs along the frames."""
    return sum(a[:, :, k, None] * b[:, None, k] for k in range(3))  # type: ignore[return-value]


def _matvec(a: Float[Array, "n 3 3 *frames"], v: Float[Array, "n 3 *frames"]) -> Float[Array, "n 3 *frames"]:
    return sum(a[:, :, k] * v[:, k, None] for k in range(3))  # type: ignore[return-value]


def _rotate_about(
    axis: Float[Array, "n 3"], sine: Float[Array, "n *frames"], cosine: Float[Array, "n *frames"]
) -> Float[Array, "n 3 3 *frames"]:
    """Rotation matrices about constant unit axes (Rodrigues)."""
    shape = (len(axis), 3, 3, *([1] * (sine.ndim - 1)))
    outer = axis[:, :, None] * axis[:, None, :]
    zero = jnp.zeros_like(axis[:, 0])
    x, y, z = axis.T
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    s, c = sine[:, None, None], cosine[:, None, None]
    identity = jnp.eye(3, dtype=axis.dtype)
    return outer.reshape(shape) + c * (identity - outer).reshape(shape) + s * cross.reshape(shape)


def tree_forward(topology: Topology, frames: Frames, qpos: Float[Array, "N *frames"]) -> TreeState:
    """Body poses and joint axes in ground, level by level of the tree.

    The barriers keep XLA from merging the levels into one loop, in which each body would compute its whole
    chain of ancestors again.
    """
    rotation, position, axis, center = _local_transforms(topology, frames, qpos)
    rotation, position = lax.optimization_barrier((rotation, position))
    # Apart, so that nothing is left of them where nobody asks for derivatives.
    axis, center = lax.optimization_barrier((axis, center))
    previous = {0: 0}
    level_rotation, level_position = rotation[:1], position[:1]
    rotations, positions, order = [level_rotation], [level_position], [0]
    for level in topology.levels:
        bodies = np.array(level, int)
        above = np.array([previous[topology.parents[b]] for b in level], int)
        parent_rotation, parent_position = level_rotation[above], level_position[above]
        level_rotation = _matmul(parent_rotation, rotation[bodies])
        level_position = parent_position + _matvec(parent_rotation, position[bodies])
        level_rotation, level_position = lax.optimization_barrier((level_rotation, level_position))
        previous = {b: i for i, b in enumerate(level)}
        rotations.append(level_rotation)
        positions.append(level_position)
        order += level
    back = np.argsort(order)
    world_rotation, world_position = jnp.concatenate(rotations)[back], jnp.concatenate(positions)[back]
    if topology.joint_bodies:
        joint_parents = np.array([topology.parents[b] for b in topology.joint_bodies], int)
        axis = _matvec(world_rotation[joint_parents], axis)
    parents = np.array(topology.parents, int)
    center = world_position[parents] + _matvec(world_rotation[parents], center)
    return TreeState(world_position, world_rotation, axis, center)


def _local_transforms(
    topology: Topology, frames: Frames, qpos: Float[Array, "N *frames"]
) -> tuple[Array, ...]:
    """Each body's rotation, position and hinge centre in its parent, and each joint's axis as it moves.

    All hinges of a body turn about one anchor, so that
    ``position = body_position + R0 anchor + slides - R anchor``. Slides that come after hinges (a reversed
    joint) go along the turned axes.
    """
    n_bodies, batch = len(topology.parents), qpos.shape[1:]
    extra = (1,) * len(batch)
    rotation = jnp.broadcast_to(
        frames.body_rotation.reshape(n_bodies, 3, 3, *extra), (n_bodies, 3, 3, *batch)
    )
    fixed = frames.body_position + jnp.einsum(
        "bij,bj->bi", frames.body_rotation, frames.anchor, precision="highest"
    )
    shift = jnp.broadcast_to(fixed.reshape(n_bodies, 3, *extra), (n_bodies, 3, *batch))
    axes = jnp.zeros((len(topology.joint_bodies), 3, *batch), qpos.dtype)
    # Once for each joint, not for each entry of its matrix.
    sine, cosine = lax.optimization_barrier((jnp.sin(qpos), jnp.cos(qpos)))
    joints: list[list[int]] = [[] for _ in topology.parents]
    for joint, body in enumerate(topology.joint_bodies):
        joints[body].append(joint)
    for slot in range(max(map(len, joints), default=0)):
        for hinge in (False, True):
            bodies = [
                b
                for b, js in enumerate(joints)
                if len(js) > slot and topology.joint_is_hinge[js[slot]] == hinge
            ]
            if not bodies:
                continue
            rows = np.array([joints[b][slot] for b in bodies], int)
            which = np.array(bodies, int)
            local_axis = frames.joint_axis[rows]
            turned = rotation[which]
            column = jnp.broadcast_to(local_axis.reshape(-1, 3, *extra), (len(rows), 3, *batch))
            direction = _matvec(turned, column)
            axes = axes.at[rows].set(direction)
            if hinge:
                about = _rotate_about(local_axis, sine[rows], cosine[rows])
                rotation = rotation.at[which].set(_matmul(turned, about))
            else:
                factor = frames.slide_factor[rows].reshape(-1, *extra)
                shift = shift.at[which].add(direction * (qpos[rows] * factor)[:, None])
    # Where hinges come first, slides move the body after it has turned: the same sum, another centre.
    hinge_first = np.array([bool(js) and topology.joint_is_hinge[js[0]] for js in joints])
    center = jnp.where(hinge_first.reshape(-1, 1, *extra), fixed.reshape(n_bodies, 3, *extra), shift)
    anchor = jnp.broadcast_to(frames.anchor.reshape(n_bodies, 3, *extra), (n_bodies, 3, *batch))
    return rotation, shift - _matvec(rotation, anchor), axes, center


def marker_positions(topology: Topology, frames: Frames, state: TreeState) -> Float[Array, "K 3 *frames"]:
    """Marker positions in ground, frames last."""
    bodies = np.array(topology.marker_bodies, int)
    extra = (1,) * (state.position.ndim - 2)
    location = frames.site_position.reshape(-1, 3, *extra)
    return state.position[bodies] + _matvec(state.rotation[bodies], location)


def _forward_mjx(model: SpineModel, frames: Frames, q: Float[Array, "*batch Q"]) -> Poses:
    qpos = expand_qpos(model, q) * frames.slide_factor
    positions, rotations, sites = _mjx_kinematics(model, frames, qpos.reshape(-1, qpos.shape[-1]))
    batch = q.shape[:-1]
    return Poses(
        sites.reshape(*batch, -1, 3), positions.reshape(*batch, -1, 3), rotations.reshape(*batch, -1, 3, 3)
    )


def _mjx_kinematics(
    model: SpineModel, frames: Frames, qpos: Float[Array, "T N"]
) -> tuple[Array, Array, Array]:
    mjx = import_mjx()
    topology = model.topology
    kind = qpos.dtype
    sites = np.array(topology.marker_sites, int)
    joint_bodies = np.array(topology.joint_bodies, int)
    m = jax.tree.map(
        lambda x: x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x, model.mjx_model
    )
    site_pos = m.site_pos.at[sites].set(frames.site_position) if len(sites) else m.site_pos
    jnt_pos = frames.anchor[joint_bodies] if len(joint_bodies) else m.jnt_pos
    m = m.tree_replace({"body_pos": frames.body_position, "jnt_pos": jnt_pos, "site_pos": site_pos})
    data = jax.tree.map(
        lambda x: x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x, mjx.make_data(m)
    )
    order = np.array(topology.body_order, int)

    def one(row):
        d = mjx.kinematics(m, data.replace(qpos=row))
        return d.xpos[order], d.xmat[order], d.site_xpos[sites]

    return jax.vmap(one)(qpos)
