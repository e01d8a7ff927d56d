"""The kinematic lifter: a network that moves the spine model, so that every prediction is a possible body.

The network sees one frame's keypoints as a camera sees them that looks straight at the person. It gives the
spine model's coordinates, the sizes of the body by groups, how the pelvis is turned and where it is. The
prediction is forward kinematics of these: coordinates that the model bounds can't leave their bounds, and
the lengths of bones depend on the sizes alone. It is trained through the kinematics, on positions and angles.

It learns from its samples in other poses, bodies and views, mirrored ones among them (`varying`), and in use
gives the mean of what it makes of a picture and of its mirror image, as temporal lifters do with positions.

The pelvis' rotation is given by two columns of its matrix (Y. Zhou et al., On the continuity of rotation
representations in neural networks, CVPR 2019). Bounded coordinates come by a sigmoid between their bounds,
the unbounded ones of the arms as angles of points in a plane, and the lumbar ones, which the model leaves
unbounded, in proportion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simspine_jax.arrays import Array, Float
from simspine_jax.datasets.standardising import Statistics
from simspine_jax.errors import ShapeError
from simspine_jax.geometry.procrustes import align
from simspine_jax.lifting.body import MOST_OFFSET_M, SIZE_GROUPS, SpineBody
from simspine_jax.lifting.layers import Linear, Statistic
from simspine_jax.lifting.normalisation import CentredView, centred_view
from simspine_jax.lifting.observations import (
    Lifted,
    LiftedBody,
    Losses,
    Observation,
    Target,
    length,
    masked_mean,
    root_relative,
)
from simspine_jax.lifting.simple_baseline import ResidualStack, SimpleBaselineOptions
from simspine_jax.lifting.varying import BESIDE, Variation, mirror_image, varied
from simspine_jax.skeleton import (
    AXIS_NAMES,
    AXIS_SIGNS,
    AXIS_SWAP,
    KEYPOINT_NAMES,
    LUMBAR_LEVELS,
    N_KEYPOINTS,
    REGIONS,
)

EXTENT_M = 0.45
"""Root mean square distance of a standing person's keypoints from their centre; the first guess of depth."""

LUMBAR_RAD = 0.1
"""A network's output of 1 for a lumbar angle; flexion of 100 degrees in all is 0.25 rad at L5-S1."""

MIDDLE = 0.05
"""New networks begin no nearer to a bound than this share of the range."""

FIRST_ROTATION = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0))
"""First two columns of R_camera_pelvis of a new network: upright, face to the camera."""

_FIRST_STD = 0.01  # of the last layer's weights: new networks begin near the default pose
_ROTATION, _PLACE = 6, 3


@dataclass(frozen=True)
class KinematicOptions(Variation):
    """Sizes of the network, what it sees, weights of the loss, and how far training's samples are changed.

    The defaults of ``spine`` and of the changes were chosen in three trials by errors on the synthetic set's
    test subjects; the others are guesses that were kept.

    Attributes:
        width: of the layers.
        blocks: of two layers each.
        dropout: share of the features.
        gravity: whether the network is told which way is up.
        spine: weight of the spine's keypoints after their best alignment, m per m.
        angles: weight of the angles, m per rad.
        place: weight of the distance of the root keypoint, m per m.
        sizes: weight of squared logarithms of sizes, m.
    """

    width: int = 1024
    blocks: int = 2
    dropout: float = 0.25
    gravity: bool = True
    spine: float = 2.0
    angles: float = 0.05
    place: float = 0.05
    sizes: float = 0.02


class KinematicLifter(nnx.Module):
    """The lifter with a body.

    Args:
        options: sizes and weights.
        statistics: of the training set, all 37 keypoints; kept for its keypoints' names.
        body: the spine model.
        dtype: of the arithmetic in hidden layers; None for that of the weights. Kinematics is in float32.
        rngs: of the first weights.

    Raises:
        ShapeError: the keypoints are not the 37 in their order.
    """

    def __init__(
        self,
        options: KinematicOptions,
        statistics: Statistics,
        body: SpineBody,
        *,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        if statistics.keypoint_names != KEYPOINT_NAMES:
            raise ShapeError(
                f"The kinematic lifter was given {len(statistics.keypoint_names)} keypoints; "
                f"valid are all {N_KEYPOINTS} in their order"
            )
        n_in = 4 * N_KEYPOINTS + 4 + (3 if options.gravity else 0)
        self.body, self.options = body, options
        self.coordinates = CoordinateMapping(body)
        sizes = SimpleBaselineOptions(options.width, options.blocks, options.dropout)
        self.stack = ResidualStack(n_in, sizes, dtype=dtype, rngs=rngs)
        n_out = self.coordinates.n_outputs + _ROTATION + _PLACE + len(SIZE_GROUPS)
        self.head = Linear(options.width, n_out, dtype=None, rngs=rngs)
        kernel = _FIRST_STD * jax.random.normal(rngs.params(), (options.width, n_out), jnp.float32)
        self.head.kernel.set_value(kernel)
        self.offsets = nnx.Param(jnp.zeros((N_KEYPOINTS, 3), jnp.float32))
        self.statistics = Statistic(jax.tree.map(jnp.asarray, statistics))

    def __call__(self, seen: Observation, *, key: Array | None = None) -> Lifted:
        """Positions by the body, with its pose, sizes and place; see `Lifter`.

        In use, the pose is the mean of those of the picture and of its mirror image, where training saw
        mirrored samples: left and right are treated alike.
        """
        pose = self._pose(seen, key)
        if key is None and self.options.mirrored:
            pose = mean_pose(self.body, pose, mirrored_pose(self.body, self._pose(mirror_image(seen), None)))
        return self.posed(pose)

    def _pose(self, seen: Observation, key: Array | None) -> LiftedBody:
        view = centred_view(seen.rays, seen.mask)
        out = self.head(self.stack(self._features(seen, view), key).astype(jnp.float32))
        n = self.coordinates.n_outputs
        ends = np.cumsum([n, _ROTATION, _PLACE])
        angles, columns, place, sizes = jnp.split(out, ends, axis=-1)
        log_scales = jnp.tanh(sizes) * self.body.log_most
        turned = rotation_of_columns(columns + np.array(FIRST_ROTATION, np.float32).reshape(-1))
        rotation = jnp.einsum("...ji,...jk->...ik", view.turn, turned, precision="highest")
        root = _root(seen, view, place, log_scales)
        return LiftedBody(root, rotation, self.coordinates(angles), log_scales)

    def posed(self, pose: LiftedBody, log_scales: Float[Array, "*batch G"] | None = None) -> Lifted:
        """The prediction of a pose.

        Args:
            pose: of this lifter.
            log_scales: other sizes, such as the mean over a trial's frames, with which bones keep their
                lengths through it. The place moves along its ray with the stature.
        """
        if log_scales is not None:
            stature = log_scales[..., :1] - pose.log_scales[..., :1]
            sizes = jnp.broadcast_to(log_scales, pose.log_scales.shape)
            pose = replace(pose, root=pose.root * jnp.exp(stature), log_scales=sizes)
        offsets = MOST_OFFSET_M * jnp.tanh(self.offsets.get_value())
        local = self.body.keypoints(pose.q, pose.log_scales, offsets)
        points = jnp.einsum("...ij,...kj->...ki", pose.pelvis_rotation, local, precision="highest")
        return Lifted(points, pose)

    def loss(self, seen: Observation, target: Target, *, key: Array) -> tuple[Array, Losses]:
        """The sum of the terms that `KinematicOptions` weighs, in metres."""
        options, root = self.options, seen.root
        seen, target = varied(seen, target, options, jax.random.fold_in(key, 1), self.body)
        found = self(seen, key=key)
        pose = found.body
        assert pose is not None
        wanted = root_relative(target.keypoints, root)
        mask = target.mask & target.mask[..., root, None]
        position = masked_mean(length(found.keypoints - wanted), mask)
        spine = aligned_error(found.keypoints, target.keypoints, target.mask)
        angle = self.coordinates.error(pose.q, target)
        place = masked_mean(length(pose.root - target.keypoints[..., root, :]), target.mask[..., root])
        sizes = jnp.mean(jnp.sum(pose.log_scales**2, axis=-1))
        total = (
            position + options.spine * spine + options.angles * angle
            + options.place * place + options.sizes * sizes
        )  # fmt: skip
        parts = {"mpjpe_mm": 1e3 * position, "spine_mm": 1e3 * spine, "angle_deg": angle * 180 / jnp.pi}
        parts["place_mm"] = 1e3 * place
        return total, parts

    def _features(self, seen: Observation, view: CentredView) -> Float[Array, "*batch F"]:
        flat = view.points.reshape(*view.points.shape[:-2], -1)
        parts = [flat, seen.mask.astype(flat.dtype), seen.confidence, view.turn[..., 2, :]]
        # The size is the person's extent over the distance: its logarithm is 0 at 4.5 m.
        parts.append(jnp.log(view.size * (10.0 / EXTENT_M / 2.0))[..., None])
        if self.options.gravity:
            parts.append(jnp.einsum("...ij,...j->...i", view.turn, seen.up))
        return jnp.concatenate(parts, axis=-1)


def _root(seen: Observation, view: CentredView, place: Array, log_scales: Array) -> Float[Array, "*batch 3"]:
    """The root keypoint in the camera's frame, m: a depth, and a step from where it was seen."""
    depth = EXTENT_M * jnp.exp(place[..., 2] + log_scales[..., 0]) / view.size
    beside = (view.points[..., seen.root, :] + 0.1 * place[..., :2]) * view.size[..., None]
    ray = jnp.concatenate([beside, jnp.ones_like(beside[..., :1])], axis=-1)
    return jnp.einsum("...ji,...j->...i", view.turn, ray * depth[..., None], precision="highest")


class CoordinateMapping:
    """Network outputs as free coordinates of the model, and how far those are from the truth.

    Args:
        body: whose coordinates.
    """

    def __init__(self, body: SpineBody):
        model = body.model
        self.n_free, places = model.n_free, body.internal
        low, high = (np.asarray(x, np.float32) for x in (model.lower, model.upper))
        is_bounded = np.isfinite(low) & np.isfinite(high)
        is_lumbar = np.array([name.startswith(LUMBAR_LEVELS) for name in model.free_names])
        self.bounded = places[is_bounded[places]]
        self.lumbar = places[(~is_bounded & is_lumbar)[places]]
        self.circular = places[(~is_bounded & ~is_lumbar)[places]]
        self.low, self.high = low[self.bounded], high[self.bounded]
        share = (np.asarray(model.default_q)[self.bounded] - self.low) / (self.high - self.low)
        share = np.clip(share, MIDDLE, 1 - MIDDLE)
        self.first = np.log(share / (1 - share)).astype(np.float32)
        self.n_outputs = len(self.bounded) + len(self.lumbar) + 2 * len(self.circular)
        self.places = places
        self.axes = np.array([AXIS_NAMES.index(model.free_names[i]) for i in places])

    def __call__(self, out: Float[Array, "*batch O"]) -> Float[Array, "*batch Q"]:
        """Free coordinates; those of the pelvis in space are zero."""
        ends = np.cumsum([len(self.bounded), len(self.lumbar), len(self.circular)])
        bounded, lumbar, sine, cosine = jnp.split(out, ends, axis=-1)
        inside = self.low + (self.high - self.low) * jax.nn.sigmoid(bounded + self.first)
        # The sum may round to beyond the bound.
        inside = jnp.clip(inside, self.low, self.high)
        q = jnp.zeros((*out.shape[:-1], self.n_free), out.dtype)
        q = q.at[..., self.bounded].set(inside)
        q = q.at[..., self.lumbar].set(LUMBAR_RAD * lumbar)
        return q.at[..., self.circular].set(angle_of(sine, 1.0 + cosine))

    def error(self, q: Float[Array, "*batch Q"], target: Target) -> Float[Array, ""]:
        """Mean absolute difference of the angles where they are known, by the shorter way round, rad."""
        difference = q[..., self.places] - target.kinematics[..., self.axes]
        around = jnp.mod(difference + math.pi, 2 * math.pi) - math.pi
        return masked_mean(jnp.abs(around), target.kinematics_mask[..., self.axes])


def mirrored_pose(body: SpineBody, pose: LiftedBody) -> LiftedBody:
    """The pose of the mirror image, in a mirror beside the camera; sizes are the same on both sides.

    Args:
        body: whose coordinates.
        pose: to mirror.
    """
    names = body.model.free_names
    axes = np.array([AXIS_NAMES.index(name) for name in names])
    partners = np.array([names.index(AXIS_NAMES[AXIS_SWAP[axis]]) for axis in axes])
    right = np.array([1.0, 1.0, -1.0], np.float32)  # of the pelvis: its z axis points to the right
    return LiftedBody(
        pose.root * BESIDE,
        pose.pelvis_rotation * jnp.asarray(BESIDE[:, None] * right),
        pose.q[..., partners] * AXIS_SIGNS[axes].astype(np.float32),
        pose.log_scales,
    )


def mean_pose(body: SpineBody, one: LiftedBody, other: LiftedBody) -> LiftedBody:
    """The pose half-way between two, within the bounds; unbounded coordinates go the shorter way round.

    Poses that face apart by more than a right angle have nothing between them: there it is the one.
    """
    low, high = (np.asarray(x, np.float32) for x in (body.model.lower, body.model.upper))
    is_free = np.isinf(low) | np.isinf(high)
    apart = other.q - one.q
    apart = jnp.where(is_free, jnp.mod(apart + math.pi, 2 * math.pi) - math.pi, apart)
    # A mirrored pose has the other side's bounds, and the sum may round to beyond one.
    q = jnp.clip(one.q + apart / 2, low, high)
    cosine = jnp.einsum("...ij,...ij->...", one.pelvis_rotation, other.pelvis_rotation)
    columns = jnp.swapaxes((one.pelvis_rotation + other.pelvis_rotation)[..., :2], -1, -2)
    rotation = rotation_of_columns(columns.reshape(*columns.shape[:-2], _ROTATION))
    sizes = (one.log_scales + other.log_scales) / 2
    middle = LiftedBody((one.root + other.root) / 2, rotation, q, sizes)
    near = cosine > 1.0  # of a turn by a right angle: 1 + 2 cos 90

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(near.reshape(*near.shape, *(1,) * (new.ndim - near.ndim)), new, old)

    return jax.tree.map(chosen, middle, one)


def angle_of(sine: Float[Array, "*batch"], cosine: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``atan2`` with a finite derivative at the origin, where the angle is 0."""
    at_origin = sine * sine + cosine * cosine < 1e-12
    return jnp.arctan2(jnp.where(at_origin, 0.0, sine), jnp.where(at_origin, 1.0, cosine))


def rotation_of_columns(columns: Float[Array, "*batch 6"]) -> Float[Array, "*batch 3 3"]:
    """The rotation whose first column points along the first three numbers, its second near the others."""
    first, second = columns[..., :3], columns[..., 3:]
    x = first / length(first)[..., None]
    second = second - jnp.sum(x * second, axis=-1, keepdims=True) * x
    y = second / length(second)[..., None]
    return jnp.stack([x, y, jnp.cross(x, y)], axis=-1)


_SPINE_IDS = np.array(REGIONS["spine"])


def aligned_error(
    found: Float[Array, "*batch 37 3"], wanted: Float[Array, "*batch 37 3"], mask: Array
) -> Float[Array, ""]:
    """Mean distance of the spine's keypoints after the best similarity of each frame, m."""
    found, wanted, mask = (x[..., _SPINE_IDS, :] for x in (found, wanted, mask[..., None]))
    mask = mask[..., 0]
    moved = align(found, wanted, mask.astype(found.dtype), scaled=True).apply(found)
    return masked_mean(length(moved - wanted), mask)
