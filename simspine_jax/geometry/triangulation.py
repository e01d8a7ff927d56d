"""Points in space from keypoints in several calibrated views, with status and covariance.

`triangulate_weighted` follows Pose2Sim's rules, so that its results can be compared with the field's.
`triangulate_robust` is what the pipeline uses: it finds the views whose undistorted rays agree and minimises
their reprojection error through the whole distortion. Both say how certain each point is.

Inside, points are the last axis (``[..., N]`` with N = T K), so that the processor's vector units run over
them, and matrices of three rows are solved in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.geometry.cameras import (
    MIN_DEPTH_M,
    TANGENTIAL_FACTOR,
    Cameras,
    distort_xy,
    normalised_from_pixels,
    pixels_from_normalised,
    projection_matrices,
    undistort,
)

MIN_CONFIDENCE = 0.3
"""Pose2Sim's ``likelihood_threshold``: keypoints below it are not looked at."""

MAX_REPROJECTION_PX = 15.0
"""Pose2Sim's ``reproj_error_threshold``, for the mean of a point's views."""

MIN_VIEWS = 2
"""Fewer rays do not make a point."""

MAX_ENUMERATED_VIEWS = 8
"""Up to so many cameras all subsets are tried; with more, cameras are dropped one at a time."""

HUBER_PX = 25.0
"""Reprojection errors count squared up to here and linearly beyond.

Of the order of what calibration and detection leave together on full pictures: 10 px on the real trial that
the tests use, where smaller values would follow whichever two views happen to agree. Synthetic captures don't
tell values between 15 and 40 px apart.
"""

TIE_SHARE = 0.001
"""A mean reprojection error this close to the limit, as a share of it, neither keeps views nor drops them.

On the real trial of the tests a dropped view moves a point by 35 mm, and no calibration tells 15.00 from
15.01 px: taking off the trial's nearly straight lenses moves its keypoints by as much. Within this share a
view's weight falls linearly, so that the point moves with the error instead of jumping.
"""

NOISE_PX = 3.0
"""Standard deviation of a keypoint coordinate of confidence 1, on which the covariance rests.

Of RTMPose's order of error on pictures of a thousand pixels; scale the covariance by the square of the
true value over this one.
"""

EIGEN_ITERATIONS = 4
"""Rayleigh-quotient steps to the smallest eigenvector; three give all digits at 15 px of error."""

REFINE_ITERATIONS = 8
"""Levenberg-Marquardt steps from the linear solution, which is near."""

MAX_DEVIATION_M = 1.0
"""A point that is less certain than this along any axis comes from rays that are nearly parallel."""

MIN_SHAPE = 1e-8
"""Least determinant of an information matrix over its mean eigenvalue cubed; rays 0.01 degrees apart."""

CPU_BLOCK = 1024
"""Points worked on at a time on a CPU, so that they stay in its cache; elsewhere all at once."""

_FIRST_DAMPING = 1e-3

Scalar = float | Float[Array, ""]


class TriangulationStatus(IntEnum):
    """Why a point is there or not."""

    OK = 0
    TOO_FEW_VIEWS = 1  # fewer confident keypoints than MIN_VIEWS
    INCONSISTENT = 2  # no MIN_VIEWS views agree within the allowed reprojection error
    DEGENERATE = 3  # the rays are nearly parallel, or the point is behind a camera


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Triangulated:
    """Triangulated points of a clip, in the cameras' world.

    Attributes:
        points: metres; NaN where ``status`` is not OK.
        covariance: of each point, m^2, for independent Gaussian errors of standard deviation
            ``NOISE_PX / confidence`` in each coordinate of each keypoint; NaN where there is no point.
        views: whether the point rests on this view.
        reprojection_px: distance from the point's picture to the keypoint, for every view that has a
            confident one, used or not; NaN elsewhere.
        status: a `TriangulationStatus`.
    """

    points: Float[Array, "T K 3"]
    covariance: Float[Array, "T K 3 3"]
    views: Bool[Array, "T V K"]
    reprojection_px: Float[Array, "T V K"]
    status: Int[Array, "T K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Observations:
    """Keypoints with points last; numbers are finite everywhere and mean something where ``valid``."""

    x: Float[Array, "*blocks V N"]  # px
    y: Float[Array, "*blocks V N"]
    weight: Float[Array, "*blocks V N"]  # confidence; zero where not valid
    valid: Bool[Array, "*blocks V N"]

    def weighted(self, factor: Float[Array, "V N"]) -> _Observations:
        """The same with weights multiplied."""
        return replace(self, weight=self.weight * factor)


@partial(jax.jit, static_argnames=("undistorted",))
def triangulate_weighted(
    cameras: Cameras,
    keypoints: Float[Array, "T V K 2"],
    confidence: Float[Array, "T V K"],
    *,
    min_confidence: Scalar = MIN_CONFIDENCE,
    max_reprojection_px: Scalar = MAX_REPROJECTION_PX,
    undistorted: bool = False,
) -> Triangulated:
    """Pose2Sim's triangulation: confidence-weighted linear solution of the largest set of views that agree.

    All views with a confident keypoint are tried first. While the mean reprojection error is above
    ``max_reprojection_px`` one view more is left out, the set of that size with the smallest error being
    kept, down to two views. With more than `MAX_ENUMERATED_VIEWS` cameras the views left out stay out.

    Args:
        cameras: V calibrated cameras.
        keypoints: px; NaN where missing. Their dtype is the computation's.
        confidence: 0 to 1; NaN where missing.
        min_confidence: keypoints below it are ignored.
        max_reprojection_px: mean over the views of a point, with pictures drawn without distortion.
        undistorted: whether lens distortion is taken off the keypoints first. Pose2Sim does not do so
            by default.

    Source: Pose2Sim's ``triangulation_from_best_cameras``; the linear method is Hartley and Zisserman,
    section 12.2, with rows weighted by confidence.
    """
    cameras = cameras.astype(keypoints.dtype)
    matrices = projection_matrices(cameras)

    def solve(seen: _Observations) -> _Solution:
        seen = _straightened(cameras, seen) if undistorted else seen

        def distance(points: Float[Array, "3 N"]) -> Float[Array, "V N"]:
            x, y = _linear_pictures(matrices, points)
            return _length(x - seen.x, y - seen.y)

        found = _best_views(matrices, seen, distance, max_reprojection_px, tie_share=0.0)
        return _solution(cameras, seen, found, found.points, distance(found.points))

    return _in_blocks(solve, keypoints, _observations(keypoints, confidence, min_confidence))


@jax.jit
def triangulate_robust(
    cameras: Cameras,
    keypoints: Float[Array, "T V K 2"],
    confidence: Float[Array, "T V K"],
    *,
    min_confidence: Scalar = MIN_CONFIDENCE,
    max_reprojection_px: Scalar = MAX_REPROJECTION_PX,
    huber_px: Scalar = HUBER_PX,
) -> Triangulated:
    """The point that the agreeing views see, by least reprojection error through the whole camera model.

    The views are chosen as `triangulate_weighted` chooses them, from linear solutions of undistorted
    keypoints and reprojection errors through the whole camera model; next to the limit, views that would be
    dropped count in part (`TIE_SHARE`). From the linear solution the point goes to the minimum of the sum,
    over those views, of squared confidence times Huber's function of the reprojection error, by
    Levenberg-Marquardt.

    Differentiable once in the keypoints, the confidence and the cameras, by the implicit function theorem
    with the exact second derivatives of that sum; the choice of views is held fixed. Missing points have
    zero derivatives.

    Args:
        cameras: V calibrated cameras.
        keypoints: px, distorted as the lens does; NaN where missing. Their dtype is the computation's.
        confidence: 0 to 1; NaN where missing.
        min_confidence: keypoints below it are ignored.
        max_reprojection_px: mean over the views of a point, at its linear solution.
        huber_px: reprojection errors beyond it count linearly.
    """
    cameras = cameras.astype(keypoints.dtype)

    def solve(seen: _Observations) -> _Solution:
        fixed_cameras, fixed = lax.stop_gradient((cameras, seen))

        def distance(points: Float[Array, "3 N"]) -> Float[Array, "V N"]:
            x, y = _bent_pictures(fixed_cameras, points)
            return _length(x - fixed.x, y - fixed.y)

        straight = _straightened(fixed_cameras, fixed)
        matrices = projection_matrices(fixed_cameras)
        found = _best_views(matrices, straight, distance, max_reprojection_px, tie_share=TIE_SHARE)
        part, views = jnp.sqrt(found.weight), found.weight > 0
        start = _refine(fixed_cameras, found.points, fixed.weighted(part), views, huber_px)
        seen = seen.weighted(part)
        points = _solved(cameras, seen.x, seen.y, seen.weight, start, views, huber_px)
        picture = _picture(cameras, points)
        return _solution(cameras, seen, found, points, _length(picture.x - seen.x, picture.y - seen.y))

    return _in_blocks(solve, keypoints, _observations(keypoints, confidence, min_confidence))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Solution:
    """What `Triangulated` is made of, with points last."""

    points: Float[Array, "*blocks 3 N"]
    information: Float[Array, "*blocks 6 N"]  # inverse covariance at a deviation of 1 px, 1/m^2
    views: Bool[Array, "*blocks V N"]
    agreed: Bool[Array, "*blocks N"]  # within the limit
    reprojection_px: Float[Array, "*blocks V N"]
    ahead: Bool[Array, "*blocks N"]  # in front of all those views


def _solution(
    cameras: Cameras,
    seen: _Observations,
    found: _Chosen,
    points: Float[Array, "3 N"],
    reprojection_px: Float[Array, "V N"],
) -> _Solution:
    picture, views = _picture(cameras, points), found.weight > 0
    information = _squares(picture, jnp.where(views, seen.weight**2, 0.0))
    ahead = (picture.ahead | ~views).all(axis=0)
    shown = jnp.where(picture.ahead, reprojection_px, jnp.nan)
    return _Solution(points, information, views, found.agreed, shown, ahead)


def _observations(
    keypoints: Float[Array, "T V K 2"],
    confidence: Float[Array, "T V K"],
    min_confidence: Scalar,
) -> _Observations:
    finite = jnp.isfinite(keypoints).all(axis=-1)
    valid = finite & (confidence >= min_confidence)  # a confidence of NaN is not
    clean = jnp.where(valid[..., None], keypoints, 0.0)
    weight = jnp.where(valid, confidence, 0.0).astype(keypoints.dtype)
    return _Observations(*map(_points_last, (clean[..., 0], clean[..., 1], weight, valid)))


def _points_last(values: Array) -> Array:
    """[T V K] as [V T*K]."""
    return jnp.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def _in_blocks(
    solve: Callable[[_Observations], _Solution],
    keypoints: Float[Array, "T V K 2"],
    seen: _Observations,
) -> Triangulated:
    """Solves block by block, and puts frames first again with NaN where there is no point."""
    n_frames, n_views, n_points = keypoints.shape[:3]
    count = n_frames * n_points
    blocks = -(-count // CPU_BLOCK) if jax.default_backend() == "cpu" else 1
    size = -(-count // max(blocks, 1))  # as equal as they can be: what is padded is worked on too
    padded = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, blocks * size - count))), seen)
    stacked = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(n_views, blocks, size), 1, 0), padded)
    solved = lax.map(solve, stacked)
    whole = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1)[..., :count], solved)
    covariance, certain = _covariance(whole.information)
    enough = seen.valid.sum(axis=0) >= MIN_VIEWS
    status = _status(enough, whole.agreed, whole.ahead & certain)
    present = status == TriangulationStatus.OK

    def views_second(values: Array) -> Array:
        return jnp.moveaxis(values.reshape(n_views, n_frames, n_points), 0, 1)

    return Triangulated(
        points=jnp.where(present, whole.points, jnp.nan).T.reshape(n_frames, n_points, 3),
        covariance=jnp.where(present, covariance, jnp.nan).T.reshape(n_frames, n_points, 3, 3),
        views=views_second(whole.views & present),
        reprojection_px=views_second(jnp.where(seen.valid & enough, whole.reprojection_px, jnp.nan)),
        status=status.reshape(n_frames, n_points),
    )


def _covariance(information: Float[Array, "6 N"]) -> tuple[Float[Array, "9 N"], Bool[Array, " N"]]:
    """Covariance (m^2) and where it is within `MAX_DEVIATION_M`; the identity where it is not."""
    plain = _identity(information)
    mean = (information[0] + information[3] + information[5]) / 3
    least = max(MIN_SHAPE, 100 * float(jnp.finfo(information.dtype).eps))
    certain = jnp.isfinite(information).all(axis=0) & (_determinant(information) > least * mean**3)
    a, b, c, d, e, f = _inverse(jnp.where(certain, information, plain))
    trace = NOISE_PX**2 * (a + d + f)
    certain &= trace < MAX_DEVIATION_M**2
    return NOISE_PX**2 * jnp.stack([a, b, c, b, d, e, c, e, f]), certain


def _status(enough: Bool[Array, " N"], good: Bool[Array, " N"], sound: Bool[Array, " N"]) -> Int[Array, " N"]:
    sound_or_not = jnp.where(sound, TriangulationStatus.OK, TriangulationStatus.DEGENERATE)
    agreed = jnp.where(good, sound_or_not, TriangulationStatus.INCONSISTENT)
    return jnp.where(enough, agreed, TriangulationStatus.TOO_FEW_VIEWS)


def _length(x: Array, y: Array) -> Array:
    """Length of (x, y); its derivative at zero is zero, where hypot's is not a number."""
    square = x * x + y * y
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


# --- the linear method ---


def _ray_products(matrices: Float[Array, "V 3 4"], seen: _Observations) -> Float[Array, "10 V N"]:
    """Each view's share of A'A, upper triangle by rows, where A h = 0 for the homogeneous point h."""
    low = matrices[:, 2, :, None]
    across = (matrices[:, 0, :, None] - low * seen.x[:, None]) * seen.weight[:, None]
    down = (matrices[:, 1, :, None] - low * seen.y[:, None]) * seen.weight[:, None]
    return jnp.stack(
        [across[:, i] * across[:, j] + down[:, i] * down[:, j] for i in range(4) for j in range(i, 4)]
    )


def _smallest_eigenvector(products: Float[Array, "10 N"]) -> Float[Array, "3 N"]:
    """The point X for which the homogeneous (X, 1) is the eigenvector of the least eigenvalue of A'A.

    The first three rows of ``A'A h = e h`` are ``(B - e) X = -b``; they are solved by turns with the
    Rayleigh quotient e, from e = 0, which is the inhomogeneous solution.
    """
    a, b, c, x, d, e, y, f, z, corner = products
    side = x, y, z
    points = _solved_rows((a, b, c, d, e, f), (-x, -y, -z))
    for _ in range(EIGEN_ITERATIONS):
        square = _dot(points, points)
        turned = _times((a, b, c, d, e, f), points)
        value = (_dot(points, turned) + 2 * _dot(points, side) + corner) / (square + 1)
        points = _solved_rows((a - value, b, c, d - value, e, f - value), (-x, -y, -z))
    return jnp.stack(points)


def _linear_pictures(matrices: Float[Array, "V 3 4"], points: Float[Array, "3 N"]) -> tuple[Array, Array]:
    """x and y (px) in each view, without distortion; a mirrored picture behind a camera."""
    x, y, depth = _moved(matrices[..., :3], matrices[..., 3], points)
    depth = jnp.where(depth == 0, 1.0, depth)
    return x / depth, y / depth


def _moved(
    turns: Float[Array, "V 3 3"], shifts: Float[Array, "V 3"], points: Float[Array, "3 N"]
) -> list[Float[Array, "V N"]]:
    """The three coordinates of points in each view's frame."""
    turns, shifts = turns[..., None], shifts[..., None]
    return [sum((turns[:, i, j] * points[j] for j in range(3)), shifts[:, i]) for i in range(3)]


class _Found(NamedTuple):
    """The best linear solution known of each point."""

    points: Array  # [3 N] m
    views: Array  # bool [V N]
    error: Array  # [N] mean reprojection error, px; infinite where there is no solution


class _Chosen(NamedTuple):
    """What a point rests on."""

    points: Array  # [3 N] m, linear solution of the views with the largest share
    weight: Array  # [V N] 0 to 1, of each view
    left: Array  # [N] share that is not given to any set of views
    share: Array  # [N] the largest share that a set of views has

    @property
    def agreed(self) -> Array:
        """Whether views agree within the limit."""
        return self.left <= 0.5


def _best_views(
    matrices: Float[Array, "V 3 4"],
    seen: _Observations,
    distance: Callable[[Array], Array],
    max_reprojection_px: Scalar,
    *,
    tie_share: float,
) -> _Chosen:
    """The views that each point rests on, and the linear solution of them.

    Args:
        matrices: of the cameras without distortion.
        seen: what such cameras see.
        distance: from points to keypoints in each view, px.
        max_reprojection_px: limit of the mean distance over a point's views.
        tie_share: see `TIE_SHARE`.
    """
    products = _ray_products(matrices, seen)
    attempt = partial(_attempt, products, distance)
    settle = partial(_settle, limit=max_reprojection_px, tie_share=tie_share)
    none, one = jnp.zeros_like(seen.x[0]), jnp.ones_like(seen.x[0])
    nothing = _Chosen(jnp.zeros((3, *none.shape), none.dtype), jnp.zeros_like(seen.x), one, none)
    search = _try_sizes if len(matrices) <= MAX_ENUMERATED_VIEWS else _drop_greedily
    chosen, last = search(attempt, settle, nothing, seen.valid)
    whole = jnp.where(chosen.share > 0, chosen.weight / (1 - jnp.minimum(chosen.left, 0.5)), last.views)
    return chosen._replace(weight=whole.astype(none.dtype))


def _attempt(
    products: Float[Array, "10 V N"], distance: Callable[[Array], Array], views: Bool[Array, "V N"]
) -> _Found:
    """The linear solution of these views."""
    count = _total(views.astype(products.dtype), 0)
    plain = jnp.asarray([1, 0, 0, 0, 1, 0, 0, 1, 0, 1], products.dtype)[:, None]
    # Too few rays make a singular matrix, and its derivatives would spoil those of other points.
    enough = count >= MIN_VIEWS
    points = _smallest_eigenvector(jnp.where(enough, _total(jnp.where(views, products, 0.0), 1), plain))
    error = _total(jnp.where(views, distance(lax.stop_gradient(points)), 0.0), 0) / jnp.maximum(count, 1)
    return _Found(points, views, jnp.where(enough & jnp.isfinite(error), error, jnp.inf))


def _settle(chosen: _Chosen, found: _Found, *, limit: Scalar, tie_share: float) -> _Chosen:
    """Gives the views that were found their share of what is left."""
    if tie_share:
        fit = jnp.clip(0.5 + (1 - found.error / limit) / (2 * tie_share), 0, 1)
    else:
        fit = found.error <= limit
    # A limit of infinity allows any error, but infinity is how the absence of a solution is written.
    exists = jnp.isfinite(found.error)
    share = lax.stop_gradient(jnp.where(exists, fit * chosen.left, 0.0))
    better = exists & (share >= chosen.share)  # of none that agree, the last is kept
    return _Chosen(
        jnp.where(better, found.points, chosen.points),
        chosen.weight + share * found.views,
        chosen.left - share,
        jnp.maximum(share, chosen.share),
    )


def _choose(take: Bool[Array, " N"], new: _Found, old: _Found) -> _Found:
    return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)


def _try_sizes(
    attempt: Callable[[Array], _Found],
    settle: Callable[[_Chosen, _Found], _Chosen],
    nothing: _Chosen,
    valid: Bool[Array, "V N"],
) -> tuple[_Chosen, _Found]:
    """Tries all sets of views by falling size; a point whose views agree is finished."""
    n_views = len(valid)
    sets = [kept for size in range(n_views, MIN_VIEWS - 1, -1) for kept in combinations(range(n_views), size)]
    subsets = jnp.asarray([[v in kept for v in range(n_views)] for kept in sets], bool).reshape(-1, n_views)
    smaller = jnp.asarray([i > 0 and len(sets[i - 1]) > len(kept) for i, kept in enumerate(sets)], bool)

    def step(state: tuple[_Chosen, _Found], subset: tuple[Array, Array]) -> tuple[Any, None]:
        kept, is_smaller = subset
        chosen, found = lax.cond(
            is_smaller, lambda c, f: (settle(c, f), _none_of(f)), lambda c, f: (c, f), *state
        )

        def take(found: _Found) -> _Found:
            new = attempt(kept[:, None] & valid)
            allowed = (chosen.left > 0) & (valid | ~kept[:, None]).all(axis=0)
            return _choose(allowed & (new.error < found.error), new, found)

        # Most blocks are finished after the first size.
        return (chosen, lax.cond((chosen.left > 0).any(), take, lambda found: found, found)), None

    start = _Found(nothing.points, jnp.zeros_like(valid), jnp.full_like(nothing.left, jnp.inf))
    chosen, found = lax.scan(step, (nothing, start), (subsets, smaller))[0]
    return settle(chosen, found), found


def _none_of(found: _Found) -> _Found:
    return found._replace(error=jnp.full_like(found.error, jnp.inf))


def _drop_greedily(
    attempt: Callable[[Array], _Found],
    settle: Callable[[_Chosen, _Found], _Chosen],
    nothing: _Chosen,
    valid: Bool[Array, "V N"],
) -> tuple[_Chosen, _Found]:
    """Leaves out, again and again, the view whose absence makes the error least."""
    order = jnp.arange(len(valid))

    def drop(state: tuple[_Chosen, _Found], _: None) -> tuple[tuple[_Chosen, _Found], None]:
        chosen, best = settle(*state), state[1]
        open_ = (chosen.left > 0) & (best.views.sum(axis=0) > MIN_VIEWS)

        def step(found: _Found, view: Int[Array, ""]) -> tuple[_Found, None]:
            new = attempt(best.views & (order != view)[:, None])
            return _choose(open_ & best.views[view] & (new.error < found.error), new, found), None

        return (chosen, lax.scan(step, _none_of(best), order)[0]), None

    chosen, best = lax.scan(drop, (nothing, attempt(valid)), length=len(valid) - MIN_VIEWS)[0]
    return settle(chosen, best), best


# --- the robust method ---


def _straightened(cameras: Cameras, seen: _Observations) -> _Observations:
    """The same keypoints, px, as a camera without distortion would see them."""
    pixels = jnp.stack([seen.x, seen.y], axis=-1).swapaxes(0, 1)
    straight = pixels_from_normalised(cameras, undistort(cameras, normalised_from_pixels(cameras, pixels)))
    x, y = jnp.moveaxis(straight.swapaxes(0, 1), -1, 0)
    return replace(seen, x=x, y=y)


def _bent_pictures(cameras: Cameras, points: Float[Array, "3 N"]) -> tuple[Array, Array]:
    """x and y (px) in each view, with distortion; a mirrored picture behind a camera."""
    x, y, depth = _moved(jnp.asarray(cameras.rotations), jnp.asarray(cameras.translations), points)
    depth = jnp.where(depth == 0, 1.0, depth)
    factor = TANGENTIAL_FACTOR[cameras.distortion_model]
    coefficients = jnp.asarray(cameras.distortion).T[..., None]
    return _pixels(cameras, *distort_xy(coefficients, factor, x / depth, y / depth)[:2])


def _pixels(cameras: Cameras, x: Float[Array, "V N"], y: Float[Array, "V N"]) -> tuple[Array, Array]:
    """Normalised coordinates as pixels."""
    focal_x, focal_y = jnp.asarray(cameras.focal_lengths).T[..., None]
    center_x, center_y = jnp.asarray(cameras.principal_points).T[..., None]
    skew = jnp.asarray(cameras.skews)[:, None]
    return focal_x * x + skew * y + center_x, focal_y * y + center_y


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Picture:
    """Keypoints of points, and optionally their derivatives by the point's three coordinates."""

    x: Float[Array, "V N"]  # px
    y: Float[Array, "V N"]
    slope_x: Float[Array, "3 V N"]  # px/m
    slope_y: Float[Array, "3 V N"]
    ahead: Bool[Array, "V N"]


def _picture(cameras: Cameras, points: Float[Array, "3 N"]) -> _Picture:
    """Keypoints and slopes through the whole camera model; finite also behind a camera."""
    local = jnp.einsum("vij,jn->ivn", cameras.rotations, points, precision="highest")
    local += jnp.asarray(cameras.translations).T[..., None]
    ahead = local[2] > MIN_DEPTH_M
    depth = jnp.where(ahead, local[2], 1.0)
    x, y = jnp.where(ahead, local[0] / depth, 0.0), jnp.where(ahead, local[1] / depth, 0.0)
    factor = TANGENTIAL_FACTOR[cameras.distortion_model]
    bent_x, bent_y, (xx, xy, yx, yy) = distort_xy(jnp.asarray(cameras.distortion).T[..., None], factor, x, y)
    focal_x, focal_y = cameras.focal_lengths.T[..., None]
    skew = cameras.skews[:, None]
    turn = jnp.moveaxis(cameras.rotations, 0, -1)[..., None]  # [3 3 V 1]
    plane_x, plane_y = (turn[0] - x * turn[2]) / depth, (turn[1] - y * turn[2]) / depth
    down = yx * plane_x + yy * plane_y
    return _Picture(
        *_pixels(cameras, bent_x, bent_y),
        focal_x * (xx * plane_x + xy * plane_y) + skew * down,
        focal_y * down,
        ahead,
    )


def _huber_cost(
    picture: _Picture, seen: _Observations, views: Bool[Array, "V N"], huber_px: Scalar
) -> Float[Array, " N"]:
    """Sum over views of squared confidence times Huber's function, px^2; infinite behind a camera."""
    square = (picture.x - seen.x) ** 2 + (picture.y - seen.y) ** 2
    far = square > huber_px**2
    distance = jnp.sqrt(jnp.where(far, square, 1.0))
    loss = jnp.where(far, huber_px * (distance - huber_px / 2), square / 2)
    return jnp.where(views, jnp.where(picture.ahead, seen.weight**2 * loss, jnp.inf), 0.0).sum(axis=0)


def _refine(
    cameras: Cameras,
    points: Float[Array, "3 N"],
    seen: _Observations,
    views: Bool[Array, "V N"],
    huber_px: Scalar,
) -> Float[Array, "3 N"]:
    """Levenberg-Marquardt on `_huber_cost`; a step that does not lower the cost is not taken."""
    stretch = _identity(points)

    def linearise(points: Float[Array, "3 N"]) -> tuple[Array, Array, Array, Array]:
        picture = _picture(cameras, points)
        off_x, off_y = picture.x - seen.x, picture.y - seen.y
        weight = seen.weight**2 * huber_px / jnp.maximum(_length(off_x, off_y), huber_px)
        weight = jnp.where(views, weight, 0.0)
        slope = (weight * (picture.slope_x * off_x + picture.slope_y * off_y)).sum(axis=1)
        return points, _huber_cost(picture, seen, views, huber_px), slope, _squares(picture, weight)

    def step(state: tuple[tuple[Array, ...], Array], _: None) -> tuple[tuple[tuple[Array, ...], Array], None]:
        (points, cost, slope, matrix), damping = state
        tried = linearise(points - _solve(matrix * (1 + damping * stretch), slope))
        lower = tried[1] <= cost
        now = tuple(jnp.where(lower, new, old) for new, old in zip(tried, state[0], strict=True))
        return (now, jnp.where(lower, damping * 0.1, damping * 10)), None

    start = linearise(points), jnp.full_like(points[0], _FIRST_DAMPING)
    return lax.scan(step, start, length=REFINE_ITERATIONS)[0][0][0]


def _squares(picture: _Picture, weight: Float[Array, "V N"]) -> Float[Array, "6 N"]:
    """Sum over views of weight times J'J, upper triangle by rows."""
    x, y = picture.slope_x, picture.slope_y
    return jnp.stack(
        [(weight * (x[i] * x[j] + y[i] * y[j])).sum(axis=0) for i in range(3) for j in range(i, 3)]
    )


@jax.custom_jvp
def _solved(
    cameras: Cameras,
    x: Float[Array, "V N"],
    y: Float[Array, "V N"],
    weight: Float[Array, "V N"],
    points: Float[Array, "3 N"],
    views: Bool[Array, "V N"],
    huber_px: Scalar,
) -> Float[Array, "3 N"]:
    """The points themselves, with the derivatives that the implicit function theorem gives them.

    At a minimum the gradient g(X, p) stays zero, so dX/dp = -H^-1 dg/dp. A Gauss-Newton H would be wrong
    wherever residuals are not small.
    """
    return points


@_solved.defjvp
def _solved_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    *arguments, points, views, huber_px = primals

    def gradient(points: Array, cameras: Cameras, x: Array, y: Array, weight: Array) -> Array:
        seen = _Observations(x, y, weight, views)
        return jax.grad(lambda p: _huber_cost(_picture(cameras, p), seen, views, huber_px).sum())(points)

    drift = jax.jvp(lambda *arguments: gradient(points, *arguments), tuple(arguments), tuple(tangents[:4]))[1]

    def column(direction: Float[Array, "3"]) -> Float[Array, "3 N"]:
        tangent = jnp.broadcast_to(direction[:, None], points.shape)
        return jax.jvp(lambda points: gradient(points, *arguments), (points,), (tangent,))[1]

    hessian = jax.vmap(column)(jnp.eye(3, dtype=points.dtype))
    upper = jnp.stack([hessian[i, j] for i in range(3) for j in range(i, 3)])
    settled = jnp.isfinite(upper).all(axis=0) & views.any(axis=0) & (_determinant(upper) > 0)
    step = -_solve(jnp.where(settled, upper, _identity(upper)), jnp.where(settled, drift, 0.0))
    return points, step


# --- symmetric matrices of three rows, upper triangle by rows on the first axis ---


def _identity(like: Float[Array, "... N"]) -> Float[Array, "6 1"]:
    return jnp.asarray([1, 0, 0, 1, 0, 1], like.dtype)[:, None]


def _determinant(m: Float[Array, "6 N"] | tuple[Array, ...]) -> Float[Array, " N"]:
    a, b, c, d, e, f = m
    return a * (d * f - e * e) + b * (c * e - b * f) + c * (b * e - c * d)


def _inverse(m: Float[Array, "6 N"] | tuple[Array, ...]) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Upper triangle of the inverse, by cofactors."""
    a, b, c, d, e, f = m
    one_over = 1 / _determinant(m)
    return (
        (d * f - e * e) * one_over, (c * e - b * f) * one_over, (b * e - c * d) * one_over,
        (a * f - c * c) * one_over, (b * c - a * e) * one_over,
        (a * d - b * b) * one_over,
    )  # fmt: skip


def _solve(m: Float[Array, "6 N"], rhs: Float[Array, "3 N"]) -> Float[Array, "3 N"]:
    return jnp.stack(_solved_rows(tuple(m), tuple(rhs)))


def _solved_rows(m: tuple[Array, ...], rhs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    return _times(_inverse(m), rhs)


def _times(m: tuple[Array, ...], rows: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    (a, b, c, d, e, f), (x, y, z) = m, rows
    return a * x + b * y + c * z, b * x + d * y + e * z, c * x + e * y + f * z


def _dot(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _total(values: Array, axis: int) -> Array:
    """Sum along a short axis, written out: XLA's own takes four times as long on a CPU in single precision.

    Where many sums share long terms its own is the faster one, because it keeps the terms in memory.
    """
    first, *others = (lax.index_in_dim(values, i, axis, keepdims=False) for i in range(values.shape[axis]))
    return sum(others, first)
