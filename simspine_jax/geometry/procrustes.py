"""Rigid and similarity alignment of point sets by weighted least squares, without reflections.

The rotation is Horn's: the unit quaternion that is the eigenvector of a symmetric 4x4 matrix's largest
eigenvalue. Jacobi rotations find it for all frames at once, frames last, so that the processor's vector units
run over frames; they are as accurate as a singular value decomposition, also where eigenvalues meet.

Where several rotations are equally good, because the points lie on a line or in one place or are fewer than
three, the one with the smallest angle is taken; `Similarity.determined` tells. So one point is moved and not
turned, and none at all stay where they are. Derivatives are right where the rotation is determined, and take
it as constant elsewhere; they are finite everywhere.

Sources: B. K. P. Horn, Closed-form solution of absolute orientation using unit quaternions, JOSA A 4 (1987);
S. Umeyama, Least-squares estimation of transformation parameters between two point patterns, IEEE TPAMI 13
(1991), for the scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.errors import ShapeError

SWEEPS = 6
"""Passes over the six pairs of axes. Convergence is quadratic; five give all digits of float64."""

CPU_BLOCK = 4096
"""Frames worked on at a time on a CPU, so that they stay in its cache; elsewhere all at once."""

ROUNDING = 16.0
"""Two best rotations count as equally good within so many units of the points' rounding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Similarity:
    """``scale * rotation @ point + translation``, which takes the source frame to the target frame.

    Attributes:
        rotation: proper, ``R_target_source``.
        scale: positive or zero; 1 in a rigid alignment, and where all source points are in one place.
        translation: in the points' unit.
        determined: whether the points tell one rotation from all others.
    """

    rotation: Float[Array, "*batch 3 3"]
    scale: Float[Array, "*batch"]
    translation: Float[Array, "*batch 3"]
    determined: Bool[Array, "*batch"]

    def apply(self, points: Float[Array, "*batch K 3"]) -> Float[Array, "*batch K 3"]:
        """The points in the target frame; NaN stays NaN."""
        turned = jnp.einsum("...ij,...kj->...ki", self.rotation, points, precision="highest")
        return self.scale[..., None, None] * turned + self.translation[..., None, :]


@partial(jax.jit, static_argnames=("scaled",))
def align(
    source: Float[Array, "*batch K 3"],
    target: Float[Array, "*batch K 3"],
    weights: Float[Array, "*batch K"] | None = None,
    *,
    scaled: bool = False,
) -> Similarity:
    """The rotation, translation and, if asked for, scale that bring source nearest to target.

    Minimises ``sum_k w_k |s R a_k + t - b_k|^2`` over proper rotations R. A point that is NaN in either set,
    or whose weight is zero or NaN, is left out, and derivatives to it are zero.

    Args:
        source: any unit, here and in ``target``.
        target: where the same points should lie.
        weights: from 0; all 1 if not given.
        scaled: whether the scale is free.

    Raises:
        ShapeError: the two sets differ in shape, or don't end in ``[K, 3]``.
    """
    source, target = jnp.asarray(source), jnp.asarray(target)
    if source.shape != target.shape or source.ndim < 2 or source.shape[-1] != 3:
        raise ShapeError(f"source has shape {source.shape} and target {target.shape}; valid is [..., K, 3]")
    used = jnp.isfinite(source).all(-1) & jnp.isfinite(target).all(-1)
    weights = jnp.ones(source.shape[:-1], source.dtype) if weights is None else weights
    weights = jnp.where(used & (weights > 0), weights, 0.0)
    source, target = (jnp.where((weights > 0)[..., None], points, 0.0) for points in (source, target))
    batch, n_points = source.shape[:-2], source.shape[-2]
    n = math.prod(batch)
    if n <= CPU_BLOCK or jax.default_backend() != "cpu":
        return _align(source, target, weights, scaled)
    blocks = -(-n // CPU_BLOCK)

    def in_blocks(values: Array, *rest: int) -> Array:
        flat = values.reshape(n, *rest)
        padding = [(0, blocks * CPU_BLOCK - n)] + [(0, 0)] * len(rest)
        return jnp.pad(flat, padding).reshape(blocks, CPU_BLOCK, *rest)

    parts = in_blocks(source, n_points, 3), in_blocks(target, n_points, 3), in_blocks(weights, n_points)
    found = lax.map(lambda part: _align(part[0], part[1], part[2], scaled), parts)
    return jax.tree.map(
        lambda x: x.reshape(blocks * CPU_BLOCK, *x.shape[2:])[:n].reshape(*batch, *x.shape[2:]), found
    )


def _align(source: Array, target: Array, weights: Array, scaled: bool) -> Similarity:
    """`align` of finite points; those without weight are zero."""
    total = weights.sum(-1)
    share = weights / jnp.where(total > 0, total, 1.0)[..., None]
    source_centre, source, source_rounding = _centred(source, share)
    target_centre, target, target_rounding = _centred(target, share)
    # XLA's fusion on CPU would compute the points anew for each of the sums that read them.
    source, target = lax.optimization_barrier((source, target))
    weighted = lax.optimization_barrier(share[..., None] * source)
    spread = jnp.einsum("...ki,...kj->...ij", target, weighted, precision="highest")
    rotation, determined = _best_rotation(spread, lax.stop_gradient(source_rounding + target_rounding))
    scale = jnp.ones_like(total)
    if scaled:
        size = (weighted * source).sum((-2, -1))
        known = source_rounding < 1
        along = (rotation * spread).sum((-2, -1))
        scale = jnp.where(known, jnp.maximum(along, 0.0) / jnp.where(known, size, 1.0), 1.0)
    turned = jnp.einsum("...ij,...j->...i", rotation, source_centre, precision="highest")
    return Similarity(rotation, scale, target_centre - scale[..., None] * turned, determined)


def _centred(points: Array, share: Array) -> tuple[Array, Array, Array]:
    """Centre, points from there, and how large their rounding is against their spread; at 1 it is all."""
    centre = jnp.einsum("...k,...ki->...i", share, points, precision="highest")
    centred = jnp.where((share > 0)[..., None], points - centre[..., None, :], 0.0)
    reach = jnp.abs(points).max((-2, -1), initial=0.0)
    spread = jnp.abs(centred).max((-2, -1), initial=0.0)
    rounding = ROUNDING * jnp.finfo(points.dtype).eps * reach
    apart = spread > rounding
    centred = jnp.where(apart[..., None, None], centred, 0.0)
    return centre, centred, jnp.where(apart, rounding / jnp.where(apart, spread, 1.0), 1.0)


@jax.custom_jvp
def _best_rotation(
    spread: Float[Array, "*batch 3 3"], rounding: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch 3 3"], Bool[Array, "*batch"]]:
    """The proper rotation R that maximises ``sum(R * spread)``, and whether it is the only one."""
    batch = spread.shape[:-2]
    size = jnp.abs(spread).max((-2, -1))
    unit = spread / jnp.where(size > 0, size, 1.0)[..., None, None]
    values, vectors = _eigen4(_horn(jnp.moveaxis(unit.reshape(-1, 3, 3), 0, -1)))
    largest = values.max(0)
    # Of rounding 1 and more nothing is left of the shape, and all rotations are as good.
    tolerance = jnp.where(rounding.reshape(-1) < 1, rounding.reshape(-1) * largest, jnp.inf)
    best = values >= largest - tolerance
    # The part of (1, 0, 0, 0), no rotation at all, among the best ones: of these it turns least.
    still = jnp.where(best, vectors[0], 0.0)
    quaternion = (vectors * still).sum(1)
    length = jnp.sqrt((quaternion**2).sum(0))
    some = jnp.take_along_axis(vectors, jnp.argmax(values, axis=0)[None, None], axis=1)[:, 0]
    tied = best.sum(0) > 1
    far = length < jnp.sqrt(jnp.finfo(spread.dtype).eps)
    quaternion = jnp.where(tied & ~far, quaternion / jnp.where(far, 1.0, length), some)
    rotation = jnp.moveaxis(_matrix(quaternion), -1, 0).reshape(*batch, 3, 3)
    return rotation, ~tied.reshape(batch)


@_best_rotation.defjvp
def _(primals, tangents):
    """From the condition that ``R^T spread`` stays symmetric: ``(tr S - S) w = vee(R^T dM - dM^T R)``."""
    spread, rounding = primals
    rotation, determined = _best_rotation(spread, rounding)
    change = jnp.einsum("...ji,...jk->...ik", rotation, tangents[0], precision="highest")
    size = jnp.where(determined, jnp.abs(spread).max((-2, -1)), 1.0)
    stretch = jnp.einsum("...ji,...jk->...ik", rotation, spread, precision="highest") / size[..., None, None]
    trace = jnp.trace(stretch, axis1=-2, axis2=-1)[..., None, None]
    stiffness = trace * jnp.eye(3, dtype=spread.dtype) - (stretch + jnp.swapaxes(stretch, -1, -2)) / 2
    # Where the rotation is not determined the matrix has no inverse; a harmless one stands in.
    stiffness = jnp.where(determined[..., None, None], stiffness, jnp.eye(3, dtype=spread.dtype))
    turn = _solve3(stiffness, _vee(change - jnp.swapaxes(change, -1, -2)) / size[..., None])
    turn = jnp.where(determined[..., None], turn, 0.0)
    turned = jnp.cross(turn[..., None, :], rotation, axis=-1)
    return (rotation, determined), (-turned, jnp.zeros(determined.shape, jax.dtypes.float0))


def _vee(skew: Array) -> Array:
    return jnp.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1)


def _solve3(matrix: Float[Array, "*batch 3 3"], right: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Cramer's rule for symmetric matrices."""
    a, b, c = (matrix[..., i, :] for i in range(3))
    adjugate = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-2)
    determinant = (a * adjugate[..., 0, :]).sum(-1)
    return jnp.einsum("...ij,...j->...i", adjugate, right, precision="highest") / determinant[..., None]


def _horn(m: Float[Array, "3 3 N"]) -> list[list[Array]]:
    """Horn's symmetric 4x4 matrix of ``sum b a^T``, as rows of numbers [N]; quaternions are (w, x, y, z)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = m
    upper = [
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [xx - yy - zz, xy + yx, xz + zx],
        [yy - xx - zz, yz + zy],
        [zz - xx - yy],
    ]
    return [[upper[min(i, j)][abs(i - j)] for j in range(4)] for i in range(4)]


_PAIRS = tuple((p, q) for p in range(4) for q in range(p + 1, 4))


def _eigen4(matrix: list[list[Array]]) -> tuple[Float[Array, "4 N"], Float[Array, "4 4 N"]]:
    """Eigenvalues and unit eigenvectors (second axis) of symmetric matrices, by cyclic Jacobi rotations."""
    one, zero = jnp.ones_like(matrix[0][0]), jnp.zeros_like(matrix[0][0])
    identity = [[one if i == j else zero for j in range(4)] for i in range(4)]

    def sweep(_, state):
        a, v = ([list(row) for row in rows] for rows in state)
        for p, q in _PAIRS:
            _jacobi(a, v, p, q)
            a, v = lax.optimization_barrier((a, v))
        return a, v

    a, v = lax.fori_loop(0, SWEEPS, sweep, (matrix, identity))
    return jnp.stack([a[i][i] for i in range(4)]), jnp.stack([jnp.stack(row) for row in v])


def _jacobi(a: list[list[Array]], v: list[list[Array]], p: int, q: int) -> None:
    """Turns axes p and q so that a[p][q] vanishes; Golub and Van Loan, Matrix Computations, 8.5.2."""
    off = a[p][q]
    vanished = off == 0
    ratio = (a[q][q] - a[p][p]) / (2 * jnp.where(vanished, 1.0, off))
    sign = jnp.where(ratio >= 0, 1.0, -1.0)
    # The square of a huge ratio overflows to infinity, which gives the right tangent, 0.
    tangent = jnp.where(vanished, 0.0, sign / (jnp.abs(ratio) + jnp.sqrt(1 + ratio**2)))
    cosine = 1 / jnp.sqrt(1 + tangent**2)
    sine = tangent * cosine
    a[p][p], a[q][q] = a[p][p] - tangent * off, a[q][q] + tangent * off
    a[p][q] = a[q][p] = jnp.zeros_like(off)
    for k in range(4):
        if k not in (p, q):
            first, second = a[k][p], a[k][q]
            a[k][p] = a[p][k] = cosine * first - sine * second
            a[k][q] = a[q][k] = sine * first + cosine * second
        first, second = v[k][p], v[k][q]
        v[k][p], v[k][q] = cosine * first - sine * second, sine * first + cosine * second


def _matrix(quaternion: Float[Array, "4 N"]) -> Float[Array, "3 3 N"]:
    w, x, y, z = quaternion
    return jnp.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
