"""Solves many small symmetric positive definite systems at once."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Float


def solve_spd(matrix: Float[Array, "n n batch"], rhs: Float[Array, "n batch"]) -> Float[Array, "n batch"]:
    """``matrix^-1 rhs``, problems on the last axis; a matrix that is not positive definite gives NaN."""
    # The right side goes along as one more row: factoring it is the forward substitution.
    rows = jnp.concatenate([matrix, rhs[None]])
    corner = jnp.asarray(jnp.finfo(matrix.dtype).max ** 0.75, matrix.dtype)
    bordered = jnp.pad(jnp.moveaxis(rows, -1, 0), ((0, 0), (0, 0), (0, 1)), constant_values=corner)
    factor = lax.linalg.cholesky(bordered, symmetrize_input=False)
    half = factor[:, -1, :-1, None]
    whole = lax.linalg.triangular_solve(
        factor[:, :-1, :-1], half, left_side=True, lower=True, transpose_a=True
    )
    return whole[..., 0].T
