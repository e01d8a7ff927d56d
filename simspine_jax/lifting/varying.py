"""Other poses, bodies and views of the same people, which a lifter with a body is trained on besides.

The coordinates and sizes of a sample are changed a little, and the true keypoints move by what forward
kinematics says of the change, so that what no rigid body explains stays with them. They are then turned
about the root keypoint, as if the camera stood elsewhere, set nearer or farther, and mirrored. All is seen
with the errors that the detector made of the sample itself: in the plane one metre in front of the camera,
smaller with distance, as the person is. So small changes are near to what the detector would do; without
detector errors every change is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.geometry.procrustes import align
from simspine_jax.lifting.body import SpineBody
from simspine_jax.lifting.observations import Observation, Target
from simspine_jax.skeleton import (
    AXIS_NAMES,
    AXIS_SIGNS,
    AXIS_SWAP,
    KEYPOINT_NAMES,
    LUMBAR_LEVELS,
    N_KEYPOINTS,
    SWAP,
)

NEAREST_M = 0.3
"""What would come nearer to the camera than this is not seen."""

BESIDE = np.array([-1.0, 1.0, 1.0], np.float32)
"""What a mirror beside the camera does to its axes."""

_SPATIAL = np.arange(6)  # axes that place the pelvis in space, which another camera's truth doesn't have


@dataclass(frozen=True)
class Variation:
    """How far samples are changed.

    Attributes:
        mirrored: share that is mirrored.
        pose_deg: standard deviation of what is added to each coordinate, within its bounds.
        lumbar_deg: likewise of the lumbar leaders, each of which moves six levels.
        body_sizes: standard deviation of what is added to the logarithms of sizes.
        turn_deg: largest turn about the vertical, either way.
        tilt_deg: standard deviation of a turn about any axis besides.
        distance: largest share of the distance that is added or taken off.
    """

    mirrored: float = 0.5
    pose_deg: float = 2.0
    lumbar_deg: float = 0.25
    body_sizes: float = 0.03
    turn_deg: float = 10.0
    tilt_deg: float = 0.0
    distance: float = 0.0


def varied(
    seen: Observation, target: Target, variation: Variation, key: Array, body: SpineBody | None = None
) -> tuple[Observation, Target]:
    """Samples as other people would have moved and other cameras seen them; a window's frames change alike.

    Keypoints without a known place are no longer seen, and samples without any known root stay as they are.
    What is only known in pixels, or in space, is lost: ``pixels`` are 0, and the axes that place the pelvis
    are masked.

    Args:
        seen: ``[N …]``, all 37 keypoints.
        target: of the same samples.
        variation: how far they are changed.
        key: of this step.
        body: whose kinematics changes poses and sizes; None leaves those as they are.
    """
    root, keys = seen.root, jax.random.split(key, 5)
    original, true = target, target.keypoints
    if body is not None:
        target = other_pose(body, target, variation, keys[4])
    rotation, nearer = _placements(variation, keys[:3], seen)
    place = target.keypoints[..., root, :]
    moved = jnp.einsum("...ij,...kj->...ki", rotation, target.keypoints - place[..., None, :])
    moved = moved + (nearer * place)[..., None, :]
    known = target.mask & target.mask[..., root, None]
    sees = seen.mask & known & (moved[..., 2] > NEAREST_M) & (true[..., 2] > NEAREST_M)
    off = seen.rays - _rays(true, sees)
    rays = jnp.where(sees[..., None], _rays(moved, sees) + off / nearer[..., None], 0.0)
    turned = jnp.einsum("...ij,...j->...i", rotation, seen.up)
    usable = sees.any(axis=-1)

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(usable.reshape(*usable.shape, *(1,) * (new.ndim - usable.ndim)), new, old)

    kinematics_mask = target.kinematics_mask.at[..., _SPATIAL].set(False)
    seen = replace(
        seen,
        pixels=jnp.zeros_like(seen.pixels),
        mask=chosen(sees, seen.mask),
        confidence=chosen(seen.confidence * sees, seen.confidence),
        rays=chosen(rays, seen.rays),
        up=chosen(turned, seen.up),
    )
    target = replace(
        target,
        keypoints=chosen(jnp.where(known[..., None], moved, 0.0), true),
        kinematics=chosen(target.kinematics, original.kinematics),
        kinematics_mask=chosen(kinematics_mask, original.kinematics_mask),
    )
    which = jax.random.uniform(keys[3], (len(seen.mask),)) < variation.mirrored
    return mirrored(seen, target, which)


def _placements(variation: Variation, keys: Array, seen: Observation) -> tuple[Array, Array]:
    """Rotations ``[*batch 3 3]`` about the root, and factors ``[*batch 1]`` of its distance."""
    frames = seen.mask.shape[:-1]
    count, each = frames[0], (frames[0], *(1,) * (len(frames) - 1))
    turn = math.radians(variation.turn_deg) * jax.random.uniform(keys[0], (count, 1), minval=-1, maxval=1)
    tilt = math.radians(variation.tilt_deg) * jax.random.normal(keys[1], (count, 3))
    nearer = 1 + variation.distance * jax.random.uniform(keys[2], (count,), minval=-1, maxval=1)
    # The vertical of a window is that of its first frame: cameras stand still.
    up = seen.up.reshape(count, -1, 3)[:, 0]
    rotation = _rotation(turn * up + tilt).reshape(*each, 3, 3)
    return jnp.broadcast_to(rotation, (*frames, 3, 3)), jnp.broadcast_to(
        nearer.reshape(*each, 1), (*frames, 1)
    )


def other_pose(body: SpineBody, target: Target, variation: Variation, key: Array) -> Target:
    """Samples with other coordinates and sizes; those whose pose is not wholly known stay as they are.

    Args:
        body: whose kinematics tells where keypoints go.
        target: ``[N …]``, all 37 keypoints.
        variation: how far coordinates and sizes are changed.
        key: of this step.
    """
    model, places = body.model, body.internal
    axes = np.array([AXIS_NAMES.index(model.free_names[i]) for i in places])
    low, high = (np.asarray(x)[places] for x in (model.lower, model.upper))
    change, sizes = _changes(body, target, variation, key)
    now = target.kinematics[..., axes]
    # A pose beyond a bound, as annotations may have, is not brought back by its change.
    then = jnp.clip(now + change, jnp.minimum(low, now), jnp.maximum(high, now))

    def keypoints(pose: Array, log_scales: Array) -> Array:
        q = jnp.zeros((*pose.shape[:-1], model.n_free), pose.dtype).at[..., places].set(pose)
        return body.keypoints(q, log_scales, jnp.zeros((N_KEYPOINTS, 3), pose.dtype))

    before, after = keypoints(now, jnp.zeros_like(sizes)), keypoints(then, sizes)
    placed = align(before, target.keypoints, target.mask.astype(now.dtype), scaled=True)
    turned = jnp.einsum("...ij,...kj->...ki", placed.rotation, after - before)
    moved = target.keypoints + placed.scale[..., None, None] * turned

    whole = target.kinematics_mask[..., axes].all(axis=-1, keepdims=True) & placed.determined[..., None]
    only = np.isin(np.arange(len(AXIS_NAMES)), axes)  # what couplers make of them is not told
    return replace(
        target,
        keypoints=jnp.where(whole[..., None], moved, target.keypoints),
        kinematics=jnp.where(whole, target.kinematics.at[..., axes].set(then), target.kinematics),
        kinematics_mask=jnp.where(whole, target.kinematics_mask & only, target.kinematics_mask),
    )


def _changes(body: SpineBody, target: Target, variation: Variation, key: Array) -> tuple[Array, Array]:
    """What is added to coordinates, rad, and to logarithms of sizes; the same for the frames of a window."""
    keys, frames = jax.random.split(key), target.mask.shape[:-1]
    shape = (frames[0], *(1,) * (len(frames) - 1))
    lumbar = np.array([body.model.free_names[i].startswith(LUMBAR_LEVELS) for i in body.internal])
    spread = np.radians(np.where(lumbar, variation.lumbar_deg, variation.pose_deg))
    change = jax.random.normal(keys[0], (*shape, len(lumbar))) * jnp.asarray(spread)
    sizes = variation.body_sizes * jax.random.normal(keys[1], (*shape, len(body.log_most)))
    sizes = jnp.clip(sizes, -body.log_most, body.log_most)
    return change, jnp.broadcast_to(sizes, (*frames, sizes.shape[-1]))


def mirrored(seen: Observation, target: Target, which: Bool[Array, " N"]) -> tuple[Observation, Target]:
    """Some samples as they would look in a mirror beside the camera: left is right, x is -x.

    Args:
        seen: ``[N …]``, all 37 keypoints; see `mirror_image`.
        target: of the same samples; axes that place the pelvis in space don't change rightly.
        which: samples to mirror.
    """
    other = Target(
        target.keypoints[..., SWAP, :] * BESIDE,
        target.mask[..., SWAP],
        target.kinematics[..., AXIS_SWAP] * AXIS_SIGNS,
        target.kinematics_mask[..., AXIS_SWAP],
    )

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(which.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(chosen, (mirror_image(seen), other), (seen, target))


def mirror_image(seen: Observation) -> Observation:
    """All 37 keypoints as they would look in a mirror beside the camera.

    Their ``pixels`` stay what they are, as no lens is known for others.
    """
    assert seen.keypoint_names == KEYPOINT_NAMES
    return replace(
        seen,
        mask=seen.mask[..., SWAP],
        confidence=seen.confidence[..., SWAP],
        rays=seen.rays[..., SWAP, :] * BESIDE[:2],
        up=seen.up * BESIDE,
    )


def _rays(points: Float[Array, "*batch K 3"], mask: Bool[Array, "*batch K"]) -> Float[Array, "*batch K 2"]:
    depth = jnp.where(mask, points[..., 2], 1.0)
    return points[..., :2] / depth[..., None]


def _rotation(vector: Float[Array, "N 3"]) -> Float[Array, "N 3 3"]:
    """Rodrigues' formula, finite at no rotation."""
    squared = jnp.sum(vector * vector, axis=-1)[:, None, None]
    small = squared < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    first = jnp.where(small, 1.0 - squared / 6, jnp.sin(angle) / angle)
    second = jnp.where(small, 0.5 - squared / 24, (1 - jnp.cos(angle)) / angle**2)
    x, y, z = vector.T
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    return jnp.eye(3) + first * cross + second * (cross @ cross)
