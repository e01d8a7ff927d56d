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

HUBER_PX = 20.0
"""Reprojection errors count squared up to here and linearly beyond.

Of the order of what calibration and detection leave together on full pictures: 10 px on the real trial that
the tests use, where smaller values would follow whichever two views happen to agree.
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

    def solve(seen: _Observations) -> _Solution:
        seen = _straightened(cameras, seen) if undistorted else seen
        points, views, error = _best_views(cameras, seen, max_reprojection_px)
        x, y, _ = _linear_pictures(projection_matrices(cameras), points)
        return _solution(cameras, points, seen, views, error, _length(x - seen.x, y - seen.y))

    return _in_blocks(
        solve,
        keypoints,
        _observations(keypoints, confidence, min_confidence),
        error_limit=max_reprojection_px,
    )


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

    The views are chosen as `triangulate_weighted` chooses them, on undistorted keypoints. From its linear
    solution the point goes to the minimum of the sum, over those views, of squared confidence times Huber's
    function of the reprojection error, by Levenberg-Marquardt.

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
        straight = _straightened(fixed_cameras, fixed)
        start, views, error = _best_views(fixed_cameras, straight, max_reprojection_px)
        points = _refine(fixed_cameras, start, fixed, views, huber_px)
        points = _solved(cameras, seen.x, seen.y, seen.weight, points, views, huber_px)
        picture = _picture(cameras, points)
        return _solution(cameras, points, seen, views, error, _length(picture.x - seen.x, picture.y - seen.y))

    return _in_blocks(
        solve,
        keypoints,
        _observations(keypoints, confidence, min_confidence),
        error_limit=max_reprojection_px,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Solution:
    """What `Triangulated` is made of, with points last."""

    points: Float[Array, "*blocks 3 N"]
    information: Float[Array, "*blocks 6 N"]  # inverse covariance at a deviation of 1 px, 1/m^2
    views: Bool[Array, "*blocks V N"]
    error: Float[Array, "*blocks N"]  # by which the views were chosen, px
    reprojection_px: Float[Array, "*blocks V N"]
    ahead: Bool[Array, "*blocks N"]  # in front of all those views


def _solution(
    cameras: Cameras,
    points: Float[Array, "3 N"],
    seen: _Observations,
    views: Bool[Array, "V N"],
    error: Float[Array, " N"],
    reprojection_px: Float[Array, "V N"],
) -> _Solution:
    picture = _picture(cameras, points)
    information = _squares(picture, jnp.where(views, seen.weight**2, 0.0))
    ahead = (picture.ahead | ~views).all(axis=0)
    return _Solution(
        points, information, views, error, jnp.where(picture.ahead, reprojection_px, jnp.nan), ahead
    )


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
    error_limit: Scalar,
) -> Triangulated:
    """Solves block by block, and puts frames first again with NaN where there is no point."""
    n_frames, n_views, n_points = keypoints.shape[:3]
    count = n_frames * n_points
    size = min(CPU_BLOCK, count) if jax.default_backend() == "cpu" else count
    blocks = -(-count // max(size, 1))
    padded = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, blocks * size - count))), seen)
    stacked = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(n_views, blocks, size), 1, 0), padded)
    solved = lax.map(solve, stacked)
    whole = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1)[..., :count], solved)
    covariance, certain = _covariance(whole.information)
    enough = seen.valid.sum(axis=0) >= MIN_VIEWS
    status = _status(enough, _agree(whole.error, error_limit), whole.ahead & certain)
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
    block, side, corner = products[jnp.array([0, 1, 2, 4, 5, 7])], products[jnp.array([3, 6, 8])], products[9]
    points = _solve(block, -side)
    diagonal = _identity(products)
    for _ in range(EIGEN_ITERATIONS):
        square = (points * points).sum(axis=0)
        value = (points * (_times(block, points) + 2 * side)).sum(axis=0) + corner
        points = _solve(block - value / (square + 1) * diagonal, -side)
    return points


def _linear_pictures(
    matrices: Float[Array, "V 3 4"], points: Float[Array, "3 N"]
) -> tuple[Array, Array, Array]:
    """x and y (px) and depth (m) in each view, without distortion."""
    local = jnp.einsum("vij,jn->ivn", matrices[..., :3], points) + matrices[..., 3].T[..., None]
    depth = jnp.where(local[2] == 0, 1.0, local[2])
    return local[0] / depth, local[1] / depth, local[2]


class _Best(NamedTuple):
    """The best solution known of each point."""

    points: Array  # [3 N] m
    views: Array  # bool [V N]
    error: Array  # [N] mean reprojection error, px; infinite where there is no solution


def _best_views(
    cameras: Cameras, seen: _Observations, max_reprojection_px: Scalar
) -> tuple[Float[Array, "3 N"], Bool[Array, "V N"], Float[Array, " N"]]:
    """Points, the views that they rest on, and the mean error (px) of those; infinite where there is none."""
    n_views, n_points = seen.x.shape
    matrices = projection_matrices(cameras)
    products = _ray_products(matrices, seen)
    attempt = partial(_attempt, matrices, products, seen)
    nothing = _Best(
        jnp.zeros((3, n_points), seen.x.dtype),
        jnp.zeros_like(seen.valid),
        jnp.full(n_points, jnp.inf, seen.x.dtype),
    )
    if n_views > MAX_ENUMERATED_VIEWS:
        return _drop_greedily(attempt, nothing, seen.valid, max_reprojection_px)
    return _try_sizes(attempt, nothing, seen.valid, max_reprojection_px)


def _attempt(
    matrices: Float[Array, "V 3 4"],
    products: Float[Array, "10 V N"],
    seen: _Observations,
    views: Bool[Array, "V N"],
) -> _Best:
    """The linear solution of these views."""
    count = views.sum(axis=0)
    plain = jnp.asarray([1, 0, 0, 0, 1, 0, 0, 1, 0, 1], products.dtype)[:, None]
    # Too few rays make a singular matrix, and its derivatives would spoil those of other points.
    points = _smallest_eigenvector(jnp.where(count >= MIN_VIEWS, (products * views).sum(axis=1), plain))
    x, y, _ = _linear_pictures(matrices, points)
    error = jnp.where(views, jnp.hypot(x - seen.x, y - seen.y), 0.0).sum(axis=0) / jnp.maximum(count, 1)
    usable = (count >= MIN_VIEWS) & jnp.isfinite(error)
    return _Best(points, views, lax.stop_gradient(jnp.where(usable, error, jnp.inf)))


def _agree(error: Float[Array, " N"], limit: Scalar) -> Bool[Array, " N"]:
    # A limit of infinity allows any error, but infinity is how the absence of a solution is written.
    return (error <= limit) & jnp.isfinite(error)


def _choose(take: Bool[Array, " N"], new: _Best, old: _Best) -> _Best:
    return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)


def _try_sizes(
    attempt: Callable[[Array], _Best],
    best: _Best,
    valid: Bool[Array, "V N"],
    max_reprojection_px: Scalar,
) -> _Best:
    """Tries all sets of views by falling size; a point whose views agree is finished."""
    n_views = len(valid)
    chosen = [
        kept for size in range(n_views, MIN_VIEWS - 1, -1) for kept in combinations(range(n_views), size)
    ]
    subsets = jnp.asarray([[v in kept for v in range(n_views)] for kept in chosen], bool).reshape(-1, n_views)
    smaller = jnp.asarray([i == 0 or len(chosen[i - 1]) > len(kept) for i, kept in enumerate(chosen)], bool)

    def step(state: tuple[_Best, _Best, Array], subset: tuple[Array, Array]) -> tuple[Any, None]:
        best, found, open_ = state  # `found` is the best of this size where the point is open
        kept, is_smaller = subset
        best = _choose(is_smaller & jnp.isfinite(found.error), found, best)
        open_ = jnp.where(is_smaller, ~_agree(best.error, max_reprojection_px), open_)
        found = found._replace(error=jnp.where(is_smaller, jnp.inf, found.error))

        def take(found: _Best) -> _Best:
            new = attempt(kept[:, None] & valid)
            allowed = open_ & (valid | ~kept[:, None]).all(axis=0)
            return _choose(allowed & (new.error < found.error), new, found)

        # Most blocks are finished after the first size.
        return (best, lax.cond(open_.any(), take, lambda found: found, found), open_), None

    start = best, best, jnp.ones_like(valid[0])
    best, found, _ = lax.scan(step, start, (subsets, smaller))[0]
    return _choose(jnp.isfinite(found.error), found, best)


def _drop_greedily(
    attempt: Callable[[Array], _Best],
    nothing: _Best,
    valid: Bool[Array, "V N"],
    max_reprojection_px: Scalar,
) -> _Best:
    """Leaves out, again and again, the view whose absence makes the error least."""
    order = jnp.arange(len(valid))

    def drop(best: _Best, _: None) -> tuple[_Best, None]:
        open_ = ~_agree(best.error, max_reprojection_px) & (best.views.sum(axis=0) > MIN_VIEWS)

        def step(found: _Best, view: Int[Array, ""]) -> tuple[_Best, None]:
            new = attempt(best.views & (order != view)[:, None])
            return _choose(open_ & best.views[view] & (new.error < found.error), new, found), None

        unknown = best._replace(error=jnp.where(open_, jnp.inf, best.error))
        found = lax.scan(step, unknown, order)[0]
        return _choose(jnp.isinf(found.error), best, found), None

    first = attempt(valid)
    best = _choose(jnp.isinf(first.error), nothing._replace(views=valid), first)
    return lax.scan(drop, best, length=len(valid) - MIN_VIEWS)[0]


# --- the robust method ---


def _straightened(cameras: Cameras, seen: _Observations) -> _Observations:
    """The same keypoints, px, as a camera without distortion would see them."""
    pixels = jnp.stack([seen.x, seen.y], axis=-1).swapaxes(0, 1)
    straight = pixels_from_normalised(cameras, undistort(cameras, normalised_from_pixels(cameras, pixels)))
    x, y = jnp.moveaxis(straight.swapaxes(0, 1), -1, 0)
    return replace(seen, x=x, y=y)


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
    local = jnp.einsum("vij,jn->ivn", cameras.rotations, points) + cameras.translations.T[..., None]
    ahead = local[2] > MIN_DEPTH_M
    depth = jnp.where(ahead, local[2], 1.0)
    x, y = jnp.where(ahead, local[0] / depth, 0.0), jnp.where(ahead, local[1] / depth, 0.0)
    factor = TANGENTIAL_FACTOR[cameras.distortion_model]
    bent_x, bent_y, (xx, xy, yx, yy) = distort_xy(jnp.asarray(cameras.distortion).T[..., None], factor, x, y)
    focal_x, focal_y = cameras.focal_lengths.T[..., None]
    center_x, center_y = cameras.principal_points.T[..., None]
    skew = cameras.skews[:, None]
    turn = jnp.moveaxis(cameras.rotations, 0, -1)[..., None]  # [3 3 V 1]
    plane_x, plane_y = (turn[0] - x * turn[2]) / depth, (turn[1] - y * turn[2]) / depth
    down = yx * plane_x + yy * plane_y
    return _Picture(
        focal_x * bent_x + skew * bent_y + center_x,
        focal_y * bent_y + center_y,
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
        weight = seen.weight**2 * huber_px / jnp.maximum(jnp.hypot(off_x, off_y), huber_px)
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


def _determinant(m: Float[Array, "6 N"]) -> Float[Array, " N"]:
    a, b, c, d, e, f = m
    return a * (d * f - e * e) + b * (c * e - b * f) + c * (b * e - c * d)


def _inverse(m: Float[Array, "6 N"]) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Upper triangle of the inverse, by cofactors."""
    a, b, c, d, e, f = m
    one_over = 1 / _determinant(m)
    return (
        (d * f - e * e) * one_over, (c * e - b * f) * one_over, (b * e - c * d) * one_over,
        (a * f - c * c) * one_over, (b * c - a * e) * one_over,
        (a * d - b * b) * one_over,
    )  # fmt: skip


def _solve(m: Float[Array, "6 N"], rhs: Float[Array, "3 N"]) -> Float[Array, "3 N"]:
    return _times(jnp.stack(_inverse(m)), rhs)


def _times(m: Float[Array, "6 N"], x: Float[Array, "3 N"]) -> Float[Array, "3 N"]:
    a, b, c, d, e, f = m
    return jnp.stack(
        [a * x[0] + b * x[1] + c * x[2], b * x[0] + d * x[1] + e * x[2], c * x[0] + e * x[1] + f * x[2]]
    )
