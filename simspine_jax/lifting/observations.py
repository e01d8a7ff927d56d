"""What goes into every lifter, what comes out of it, and what it is trained towards.

Frames: x to the right, y down, z forward, metres, of the camera. Batch axes are ``[N]`` for single frames and
``[N T]`` for windows of T frames. Missing numbers are finite and masked, so that no NaN reaches a derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.datasets.samples import ROOT, Frames, rays_of
from simspine_jax.geometry.cameras import Cameras


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Observation:
    """Keypoints in one camera's picture.

    Attributes:
        pixels: px; any finite number where the mask is False.
        mask: where a keypoint was found.
        confidence: of the detector, 0 to 1; 0 where nothing was found.
        rays: the same points without lens and focal length, ``(x/z, y/z)``; finite everywhere.
        up: the world's up in the camera's frame, of length 1.
        keypoint_names: the K keypoints.
    """

    pixels: Float[Array, "*batch K 2"]
    mask: Bool[Array, "*batch K"]
    confidence: Float[Array, "*batch K"]
    rays: Float[Array, "*batch K 2"]
    up: Float[Array, "*batch 3"]
    keypoint_names: tuple[str, ...] = field(metadata={"static": True})

    @property
    def root(self) -> int:
        """Which of the keypoints is the root."""
        return self.keypoint_names.index(ROOT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Target:
    """The truth of an observation.

    Attributes:
        keypoints: in the camera's frame, m; finite everywhere.
        mask: where they are known.
        kinematics: in the order of `skeleton.AXIS_NAMES`, rad and m; finite everywhere.
        kinematics_mask: where they are known.
    """

    keypoints: Float[Array, "*batch K 3"]
    mask: Bool[Array, "*batch K"]
    kinematics: Float[Array, "*batch C"]
    kinematics_mask: Bool[Array, "*batch C"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LiftedBody:
    """The body model of a prediction, of which the keypoints follow.

    Attributes:
        root: the root keypoint in the camera's frame, m.
        pelvis_rotation: R_camera_pelvis.
        q: free coordinates of the spine model, rad; those of the pelvis in space are zero.
        log_scales: logarithms of the body's sizes, by group.
    """

    root: Float[Array, "*batch 3"]
    pelvis_rotation: Float[Array, "*batch 3 3"]
    q: Float[Array, "*batch Q"]
    log_scales: Float[Array, "*batch G"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Lifted:
    """What a lifter gives.

    Attributes:
        keypoints: relative to the root keypoint, along the camera's axes, m.
        body: of lifters that have one.
    """

    keypoints: Float[Array, "*batch K 3"]
    body: LiftedBody | None = None


Losses = dict[str, Array]
"""Parts of a loss by name, each a number; the names are fixed for a model."""


class Lifter(Protocol):
    """What training and evaluation ask of a model, which is an ``nnx.Module`` besides."""

    def __call__(self, seen: Observation, *, key: Array | None = None) -> Lifted:
        """Lifts: with a key as in training (dropout, statistics of the batch), else as in use."""
        ...

    def loss(self, seen: Observation, target: Target, *, key: Array) -> tuple[Array, Losses]:
        """The loss of a batch, and its parts."""
        ...


def observe(frames: Frames, cameras: Cameras) -> Observation:
    """What a lifter may know of samples.

    Args:
        frames: of `Samples.take` or `Samples.frames`.
        cameras: of the same samples.
    """
    mask = jnp.asarray(frames.keypoints_2d_mask)
    rays = rays_of(frames, cameras)
    # The ground frame is Y up, so its up in a camera is the second column of R.
    up = jnp.asarray(cameras.rotations, jnp.float32)[frames.camera][..., :, 1]
    return Observation(
        _cleaned(frames.keypoints_2d, mask[..., None]),
        mask,
        _cleaned(frames.confidence, mask),
        _cleaned(rays, mask[..., None] & jnp.isfinite(rays)),  # not all cameras' lenses are known
        up,
        frames.keypoint_names,
    )


def target_of(frames: Frames) -> Target:
    """What a lifter is trained towards."""
    mask, known = jnp.asarray(frames.keypoints_3d_mask), jnp.asarray(frames.kinematics_mask)
    return Target(
        _cleaned(frames.keypoints_3d, mask[..., None]), mask, _cleaned(frames.kinematics, known), known
    )


def _cleaned(values, mask: Array) -> Array:
    return jnp.where(mask, jnp.asarray(values), jnp.zeros((), np.asarray(values[:0]).dtype))


def root_relative(points: Float[Array, "*batch K 3"], root: int) -> Float[Array, "*batch K 3"]:
    """Points less the root keypoint."""
    return points - points[..., root, None, :]


def masked_mean(values: Float[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """Mean of the values where the mask, which may broadcast, holds; 0 where it holds nowhere."""
    mask = jnp.broadcast_to(mask, values.shape)
    count = jnp.maximum(mask.sum(), 1).astype(values.dtype)
    return jnp.where(mask, values, 0.0).sum() / count


def length(vectors: Float[Array, "*batch D"], floor: float = 1e-6) -> Float[Array, "*batch"]:
    """Euclidean length, with a finite derivative at zero.

    Args:
        vectors: any unit.
        floor: what is added to the square, squared; far under what matters in metres.
    """
    return jnp.sqrt(jnp.sum(vectors * vectors, axis=-1) + floor * floor)
