"""Block pentadiagonal systems whose off-diagonal blocks are diagonal: a clip's frames under smoothness terms.

Frame t is coupled to t + 1 and t + 2 by ``first[t]`` and ``second[t]``, one number for each coordinate. The
matrix is factorised exactly by a block Cholesky recursion along time::

    L_t = chol(A_t - U_t U_t^T - V_t V_t^T),   V_t = diag(second) L_{t-2}^-T,
    U_t = (diag(first) - V_t U_{t-1}^T) L_{t-1}^-T

(Golub and Van Loan, Matrix Computations, sec. 4.5). Clips are the second axis; time is scanned.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Float


class Factor(NamedTuple):
    """Block Cholesky factor: inverse diagonal blocks, and the blocks below them."""

    inverse: Float[Array, "T C Q Q"]  # L_t^-1
    below: Float[Array, "T C Q Q"]  # U_t
    second: Float[Array, "T C Q"]  # couples t - 2 to t


def factorise(
    diagonal: Float[Array, "T C Q Q"], first: Float[Array, "T C Q"], second: Float[Array, "T C Q"]
) -> Factor:
    """Factor of the symmetric matrix with these blocks; NaN where it is not positive definite.

    Args:
        diagonal: blocks of each frame.
        first: coupling of t - 1 to t, at t; ignored at the first frame.
        second: coupling of t - 2 to t, at t; ignored at the first two frames.
    """
    zero = jnp.zeros_like(diagonal[0])

    def step(carry, blocks):
        upper1, upper2, above1 = carry  # L_{t-1}^-T, L_{t-2}^-T, U_{t-1}^T
        a, d1, d2 = blocks
        v = d2[..., :, None] * upper2
        u = (_diagonal(d1) - v @ above1) @ upper1
        above = _transposed(u)
        schur = a - u @ above - v @ _transposed(v)
        inverse = _inverse(lax.linalg.cholesky(schur, symmetrize_input=False))
        return (_transposed(inverse), upper1, above), (inverse, u)

    keep = (
        (jnp.arange(diagonal.shape[0]) >= 1)[:, None, None],
        (jnp.arange(diagonal.shape[0]) >= 2)[:, None, None],
    )
    first, second = jnp.where(keep[0], first, 0), jnp.where(keep[1], second, 0)
    with jax.default_matmul_precision("highest"):
        _, (inverse, below) = lax.scan(step, (zero, zero, zero), (diagonal, first, second))
    return Factor(inverse, below, second)


def _transposed(matrix: Float[Array, "*c Q P"]) -> Float[Array, "*c P Q"]:
    """The transpose, laid out anew: XLA's small products of a transposed operand are several times slower."""
    return lax.optimization_barrier(jnp.swapaxes(matrix, -1, -2))


def _inverse(lower: Float[Array, "*c Q Q"]) -> Float[Array, "*c Q Q"]:
    """Inverse of a triangular matrix, from those of its halves: one call takes longer."""
    n = lower.shape[-1]
    if n % 2:
        eye = jnp.broadcast_to(jnp.eye(n, dtype=lower.dtype), lower.shape)
        return lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    half = n // 2
    corners = jnp.stack([lower[..., :half, :half], lower[..., half:, half:]])
    eye = jnp.broadcast_to(jnp.eye(half, dtype=lower.dtype), corners.shape)
    first, last = lax.linalg.triangular_solve(corners, eye, left_side=True, lower=True)
    below = -(last @ lower[..., half:, :half]) @ first
    top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([below, last], axis=-1)], axis=-2)


def _diagonal(values: Float[Array, "*c Q"]) -> Float[Array, "*c Q Q"]:
    return values[..., None] * jnp.eye(values.shape[-1], dtype=values.dtype)


def solve(factor: Factor, rhs: Float[Array, "T C Q"]) -> Float[Array, "T C Q"]:
    """Solves with a factor: one pass along time and one back."""
    shifted = jnp.concatenate([jnp.zeros_like(factor.inverse[:2]), factor.inverse])[: len(rhs)]

    def down(carry, blocks):
        y1, y2 = carry
        inverse, inverse2, below, d2, b = blocks
        y = _apply(inverse, b - _apply(below, y1) - d2 * _apply_transposed(inverse2, y2))
        return (y, y1), y

    zero = jnp.zeros_like(rhs[0])
    with jax.default_matmul_precision("highest"):
        _, y = lax.scan(down, (zero, zero), (factor.inverse, shifted, factor.below, factor.second, rhs))

        def up(carry, blocks):
            pull1, pull2, ahead = carry
            inverse, below, d2, right = blocks
            # pull1 = U_{t+1}^T x_{t+1}; ahead, pull2: second coupling times x_{t+1}, x_{t+2}.
            x = _apply_transposed(inverse, right - pull1 - _apply(inverse, pull2))
            return (_apply_transposed(below, x), ahead, d2 * x), x

        _, x = lax.scan(
            up, (zero, zero, zero), (factor.inverse, factor.below, factor.second, y), reverse=True
        )
    return x


def log_determinant(factor: Factor) -> Float[Array, ""]:
    """Logarithm of the factorised matrix' determinant."""
    return -2 * jnp.sum(jnp.log(jnp.diagonal(factor.inverse, axis1=-2, axis2=-1)))


def _apply(matrix: Float[Array, "C Q Q"], vector: Float[Array, "C Q"]) -> Float[Array, "C Q"]:
    return jnp.einsum("cij,cj->ci", matrix, vector)


def _apply_transposed(matrix: Float[Array, "C Q Q"], vector: Float[Array, "C Q"]) -> Float[Array, "C Q"]:
    return jnp.einsum("cji,cj->ci", matrix, vector)
