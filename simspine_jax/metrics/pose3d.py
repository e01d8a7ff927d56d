"""Errors of 3D keypoints: position, after alignment, velocity, acceleration and lengths of bones.

All take predicted and true positions in one frame and unit, ``[*batch K 3]``, and give their errors in that
unit (metres inside this project). A keypoint counts where the mask is True and neither position is NaN; what
is left out has no influence and no derivative. Each function gives one value per example, a `Masked`, from
which means, tables and confidence intervals are made; ``subset`` chooses keypoints by position along K.

Derivatives are right wherever an error is not 0, and 0 where it is.

Sources: mean per-joint position error, with and without alignment, as Ionescu et al., Human3.6M, IEEE TPAMI
36 (2014) have it; the error after scaling alone is Rhodin et al.'s, CVPR 2018; that of velocity is Pavllo et
al.'s, CVPR 2019; that of acceleration is Kanazawa et al.'s, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.errors import ShapeError
from simspine_jax.geometry.procrustes import align
from simspine_jax.metrics.masked import Masked, safe_norm
from simspine_jax.skeleton import KEYPOINT_NAMES, N_KEYPOINTS, PAPER_MARKERS, PARENTS, REGIONS, TRC_NAMES

Subset = tuple[int, ...] | None

HIP = KEYPOINT_NAMES.index("hip")
"""Id of the root among the 37."""

LEAST_ALIGNED = 3
"""Fewer points than these can be brought onto any others, so that what is left says nothing."""

PARENT_BONES: tuple[tuple[int, int], ...] = tuple((i, int(p)) for i, p in enumerate(PARENTS) if p >= 0)
"""Each of the 37 keypoints with its parent, by id."""

_BODY = {TRC_NAMES.index(m.name): m.body for m in PAPER_MARKERS}

RIGID_BONES: tuple[tuple[int, int], ...] = tuple(
    (a, b) for a, b in PARENT_BONES if a in _BODY and _BODY.get(b) == _BODY[a]
)
"""Those of `PARENT_BONES` whose ends lie on one body of the spine model, which therefore can't change."""


@partial(jax.jit, static_argnames=("root",))
def distances(
    predicted: Float[Array, "*batch K 3"],
    truth: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    root: int | None = None,
) -> Masked:
    """Distance of each keypoint from the truth, ``[*batch K]``.

    Args:
        predicted: any unit.
        truth: likewise.
        mask: True where a keypoint counts; all if not given.
        root: position along K of the keypoint at which both are put; None leaves them where they are. Where
            the root is missing, so are all distances.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth, present = _rooted(*_checked(predicted, truth, mask), root)
    return Masked.of(safe_norm(predicted - truth), present)


@partial(jax.jit, static_argnames=("subset", "root"))
def mpjpe(
    predicted: Float[Array, "*batch K 3"],
    truth: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    subset: Subset = None,
    root: int | None = None,
) -> Masked:
    """Mean distance of the keypoints of each example, absolute or from a root; see `distances`."""
    found = distances(predicted, truth, mask, root=root)
    return _chosen(found, subset).mean(-1)


@partial(jax.jit, static_argnames=("subset",))
def p_mpjpe(
    predicted: Float[Array, "*batch K 3"],
    truth: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    subset: Subset = None,
) -> Masked:
    """Mean distance after the similarity that brings the predicted subset nearest to the true one.

    Scale, rotation and translation, by least squares over the subset's own points; reflections are excluded.
    Missing where fewer than `LEAST_ALIGNED` points are left. Points on a line or in one place are aligned as
    `geometry.procrustes.align` says: the error doesn't depend on which of the best rotations is taken.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth, present = _checked(predicted, truth, mask)
    if subset is not None:
        ids = np.array(subset, int)
        predicted, truth, present = predicted[..., ids, :], truth[..., ids, :], present[..., ids]
    enough = present.sum(-1) >= LEAST_ALIGNED
    present = present & enough[..., None]
    moved = align(predicted, truth, present.astype(predicted.dtype), scaled=True).apply(predicted)
    return Masked.of(safe_norm(jnp.where(present[..., None], moved - truth, 0.0)), present).mean(-1)


@partial(jax.jit, static_argnames=("subset", "root"))
def n_mpjpe(
    predicted: Float[Array, "*batch K 3"],
    truth: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    subset: Subset = None,
    root: int | None = None,
) -> Masked:
    """Mean distance after scaling the prediction by ``<predicted, truth> / <predicted, predicted>``.

    The scale is that of the subset, about the root or, without one, the origin. A prediction that lies
    altogether there is left as it is.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth, present = _rooted(*_checked(predicted, truth, mask), root)
    if subset is not None:
        ids = np.array(subset, int)
        predicted, truth, present = predicted[..., ids, :], truth[..., ids, :], present[..., ids]
    predicted, truth = (jnp.where(present[..., None], x, 0.0) for x in (predicted, truth))
    size = (predicted**2).sum((-2, -1))
    scale = jnp.where(size > 0, (predicted * truth).sum((-2, -1)) / jnp.where(size > 0, size, 1.0), 1.0)
    return Masked.of(safe_norm(scale[..., None, None] * predicted - truth), present).mean(-1)


@partial(jax.jit, static_argnames=("subset", "root"))
def mpjve(
    predicted: Float[Array, "*clips T K 3"],
    truth: Float[Array, "*clips T K 3"],
    mask: Bool[Array, "*clips T K"] | None = None,
    *,
    subset: Subset = None,
    root: int | None = None,
) -> Masked:
    """Velocity error of each step of each clip, ``[*clips T-1]``: unit per frame.

    The mean length of the difference of frame differences over keypoints that count in both frames; nothing
    crosses from one clip to the next. ``.mean(-1)`` gives the clip's.

    Raises:
        ShapeError: the shapes don't fit each other, or there is no axis of frames.
    """
    return _change_error(predicted, truth, mask, subset, root, order=1)


@partial(jax.jit, static_argnames=("subset", "root"))
def acceleration_error(
    predicted: Float[Array, "*clips T K 3"],
    truth: Float[Array, "*clips T K 3"],
    mask: Bool[Array, "*clips T K"] | None = None,
    *,
    subset: Subset = None,
    root: int | None = None,
) -> Masked:
    """Likewise of second differences, over keypoints that count in three frames: ``[*clips T-2]``.

    The unit is per frame squared; times the squared frame rate it is per second squared.

    Raises:
        ShapeError: the shapes don't fit each other, or there is no axis of frames.
    """
    return _change_error(predicted, truth, mask, subset, root, order=2)


@partial(jax.jit, static_argnames=("bones",))
def bone_lengths(
    points: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    bones: tuple[tuple[int, int], ...] = PARENT_BONES,
) -> Masked:
    """Length of each bone, ``[*batch bones]``, where both of its ends count.

    Args:
        points: any unit.
        mask: True where a keypoint counts; all if not given.
        bones: pairs of positions along K.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    points, _, present = _checked(points, points, mask)
    a, b = np.array(bones, int).reshape(-1, 2).T
    return Masked.of(safe_norm(points[..., a, :] - points[..., b, :]), present[..., a] & present[..., b])


@partial(jax.jit, static_argnames=("bones",))
def bone_length_error(
    predicted: Float[Array, "*batch K 3"],
    truth: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    bones: tuple[tuple[int, int], ...] = PARENT_BONES,
) -> Masked:
    """Mean absolute difference of the bones' lengths of each example from the truth; see `bone_lengths`."""
    predicted, truth, present = _checked(predicted, truth, mask)
    found, true = (bone_lengths(points, present, bones=bones) for points in (predicted, truth))
    return Masked.of(jnp.abs(found.filled - true.filled), found.present).mean(-1)


@partial(jax.jit, static_argnames=("bones",))
def bone_length_change(
    points: Float[Array, "*clips T K 3"],
    mask: Bool[Array, "*clips T K"] | None = None,
    *,
    bones: tuple[tuple[int, int], ...] = RIGID_BONES,
) -> Masked:
    """Standard deviation of each bone's length over the frames of each clip, ``[*clips bones]``.

    Missing where fewer than two frames have the bone.

    Raises:
        ShapeError: the shapes don't fit each other, or there is no axis of frames.
    """
    _need_frames(points)
    lengths = bone_lengths(points, mask, bones=bones)
    middle = lengths.mean(-2).filled[..., None, :]
    spread = Masked.of(lengths.filled - middle, lengths.present).rms(-2)
    return Masked.of(spread.filled, lengths.present.sum(-2) > 1)


def regions_among(ids: Iterable[int] = range(N_KEYPOINTS)) -> dict[str, tuple[int, ...]]:
    """Positions of the paper's regions in a list of keypoint ids; regions that lack a keypoint are left out.

    Args:
        ids: of the keypoints along K, as `skeleton.REDUCED_IDS` for the fifteen of the public release.
    """
    place = {int(k): i for i, k in enumerate(ids)}
    return {
        region: tuple(place[k] for k in members)
        for region, members in REGIONS.items()
        if place.keys() >= set(members)
    }


def by_region(
    metric: Callable[..., Masked],
    predicted: Float[Array, "*batch K 3"],
    truth: Float[Array, "*batch K 3"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    ids: Iterable[int] = range(N_KEYPOINTS),
) -> dict[str, Masked]:
    """A metric of this module for each of the paper's regions, from those of `regions_among` the ids."""
    return {
        region: metric(predicted, truth, mask, subset=members)
        for region, members in regions_among(ids).items()
    }


def _checked(predicted: Array, truth: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Both sets with zeros where a keypoint doesn't count, and where it does."""
    predicted, truth = jnp.asarray(predicted), jnp.asarray(truth)
    if predicted.shape != truth.shape or predicted.ndim < 2 or predicted.shape[-1] != 3:
        raise ShapeError(
            f"predicted has shape {predicted.shape} and truth {truth.shape}; valid is [..., K, 3] for both"
        )
    present = jnp.isfinite(predicted).all(-1) & jnp.isfinite(truth).all(-1)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.shape != present.shape or mask.dtype != bool:
            raise ShapeError(f"mask is {mask.dtype} {mask.shape}; valid is bool {present.shape}")
        present = present & mask
    predicted, truth = (jnp.where(present[..., None], points, 0.0) for points in (predicted, truth))
    return predicted, truth, present


def _rooted(predicted: Array, truth: Array, present: Array, root: int | None) -> tuple[Array, Array, Array]:
    if root is None:
        return predicted, truth, present
    at = slice(root, root + 1)
    predicted, truth = (points - points[..., at, :] for points in (predicted, truth))
    return predicted, truth, present & present[..., at]


def _chosen(values: Masked, subset: Subset) -> Masked:
    return values if subset is None else values[..., np.array(subset, int)]


def _need_frames(points: Array) -> None:
    if jnp.ndim(points) < 3:
        raise ShapeError(f"points of a clip have shape {jnp.shape(points)}; valid is [..., T, K, 3]")


def _change_error(
    predicted: Array, truth: Array, mask: Array | None, subset: Subset, root: int | None, order: int
) -> Masked:
    _need_frames(predicted)
    predicted, truth, present = _rooted(*_checked(predicted, truth, mask), root)
    error = predicted - truth
    for _ in range(order):
        error = error[..., 1:, :, :] - error[..., :-1, :, :]
        present = present[..., 1:, :] & present[..., :-1, :]
    return _chosen(Masked.of(safe_norm(jnp.where(present[..., None], error, 0.0)), present), subset).mean(-1)
