"""Keypoints of a calibrated camera as one sees them that looks straight at the person.

Turning the camera takes the place in the picture out without the error that subtracting the root's pixel
makes (I. Sarandi et al., Metric-scale truncation-robust heatmaps for absolute 3D human pose estimation, 2020,
turn pictures in this way). Standardising joint by joint is `simspine_jax.datasets.Statistics`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from simspine_jax.arrays import Array, Bool, Float

LEAST_SIZE = 1e-4
"""A person is never taken as smaller than this, ``x/z``: 0.1 mm at a metre's distance."""

LEAST_DEPTH = 0.1
"""Of a ray in the turned camera; only what lies far outside of any picture has less."""

LEAST_SEEN = 2
"""Fewer keypoints than this in a picture have no size; the person's is then taken as 1."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class CentredView:
    """Rays seen by a camera that was turned toward the person.

    Attributes:
        points: of the turned camera, divided by ``size``; 0 where missing.
        size: root mean square distance of the rays from their centre, ``x/z``; about the person's extent over
            its distance.
        turn: R_turned_camera.
    """

    points: Float[Array, "*batch K 2"]
    size: Float[Array, "*batch"]
    turn: Float[Array, "*batch 3 3"]


def centred_view(rays: Float[Array, "*batch K 2"], mask: Bool[Array, "*batch K"]) -> CentredView:
    """Turns the camera by the smallest rotation that brings the keypoints' centre to its axis.

    Args:
        rays: ``(x/z, y/z)`` without distortion.
        mask: which of them count; with none of them the camera stays.
    """
    weight = mask.astype(rays.dtype)
    share = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1.0)
    centre = jnp.einsum("...k,...kd->...d", share, rays)
    turn = rotation_to_axis(jnp.concatenate([centre, jnp.ones_like(centre[..., :1])], axis=-1))
    whole = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], axis=-1)
    turned = jnp.einsum("...ij,...kj->...ki", turn, whole, precision="highest")
    points = turned[..., :2] / jnp.maximum(turned[..., 2:], LEAST_DEPTH)
    middle = jnp.einsum("...k,...kd->...d", share, points)
    spread = jnp.einsum("...k,...kd->...", share, (points - middle[..., None, :]) ** 2)
    enough = mask.sum(-1) >= LEAST_SEEN
    size = jnp.where(enough, jnp.sqrt(jnp.where(enough, spread, 1.0) + LEAST_SIZE**2), 1.0)
    scaled = jnp.where(mask[..., None], points / size[..., None, None], 0.0)
    return CentredView(scaled, size, turn)


def rotation_to_axis(direction: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """The smallest rotation that takes a direction with positive z to the z axis."""
    unit = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    x, y, z = unit[..., 0], unit[..., 1], unit[..., 2]
    # Rodrigues' formula for the axis (y, -x, 0) and the angle whose cosine is z.
    share = 1.0 / (1.0 + z)
    rows = (
        (1.0 - x * x * share, -x * y * share, -x),
        (-x * y * share, 1.0 - y * y * share, -y),
        (x, y, z),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
