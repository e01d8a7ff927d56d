"""Systems of many frames and a border of shared unknowns: ``[[A, B], [B', C]]`` with A of a clip's form.

A is factorised by `solvers.banded`, the border by its Schur complement ``S = C - B' A^-1 B``. The blocks of
the whole inverse that frames' covariances need follow from the same factors (H. Rue and L. Held, Gaussian
Markov Random Fields, section 2.4, for A's own; the border adds ``X S^-1 X'`` with ``X = A^-1 B``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.solvers.banded import Factor, log_determinant, solve


class Bordered(NamedTuple):
    """A factorised system.

    Attributes:
        banded: factor of A.
        spread: ``A^-1 B``.
        schur: lower Cholesky factor of S.
    """

    banded: Factor
    spread: Float[Array, "T C Q P"]
    schur: Float[Array, "P P"]


def border(banded: Factor, sides: Float[Array, "T C Q P"], corner: Float[Array, "P P"]) -> Bordered:
    """Factorises the border.

    Args:
        banded: factor of A.
        sides: B.
        corner: C.

    Returns:
        the factor; ``schur`` is NaN where S isn't positive definite.
    """
    spread = jax.vmap(solve, in_axes=(None, -1), out_axes=-1)(banded, sides)
    schur = corner - jnp.einsum("tcqp,tcqr->pr", sides, spread, precision="highest")
    return Bordered(banded, spread, lax.linalg.cholesky(0.5 * (schur + schur.T), symmetrize_input=False))


def solve_bordered(
    factor: Bordered,
    sides: Float[Array, "T C Q P"],
    frames: Float[Array, "T C Q"],
    shared: Float[Array, " P"],
) -> tuple[Float[Array, "T C Q"], Float[Array, " P"]]:
    """The unknowns of frames and border for a right-hand side.

    Args:
        factor: of `border`.
        sides: B.
        frames: right-hand side of the frames.
        shared: right-hand side of the border.
    """
    own = solve(factor.banded, frames)
    right = shared - jnp.einsum("tcqp,tcq->p", sides, own, precision="highest")
    found = jax.scipy.linalg.cho_solve((factor.schur, True), right)
    return own - jnp.einsum("tcqp,p->tcq", factor.spread, found, precision="highest"), found


def shared_covariance(factor: Bordered) -> Float[Array, "P P"]:
    """The border's block of the inverse: ``S^-1``."""
    eye = jnp.eye(len(factor.schur), dtype=factor.schur.dtype)
    return jax.scipy.linalg.cho_solve((factor.schur, True), eye)


def log_determinant_bordered(factor: Bordered) -> Float[Array, ""]:
    """Logarithm of the whole matrix' determinant: A's and its Schur complement's."""
    return log_determinant(factor.banded) + 2 * jnp.sum(jnp.log(jnp.diagonal(factor.schur)))


def frame_covariances(factor: Factor) -> Float[Array, "T C Q Q"]:
    """The frames' own blocks of ``A^-1``; see `_swept`."""
    return _swept(factor, lambda own, near, far: own)


def neighbour_covariances(
    factor: Factor,
) -> tuple[Float[Array, "T C Q"], Float[Array, "T C Q"], Float[Array, "T C Q"]]:
    """Each coordinate's entries of ``A^-1``: of a frame, with the frame after it, and with the second after.

    What would be beyond the end is 0.
    """
    return _swept(factor, lambda *blocks: tuple(jnp.diagonal(b, axis1=-2, axis2=-1) for b in blocks))


def _swept(factor: Factor, kept: Callable[[Array, Array, Array], Any]) -> Any:
    """What is kept of the blocks (t, t), (t + 1, t) and (t + 2, t) of ``A^-1``, for each frame t.

    With the factor's blocks L, U, V of each frame (see `solvers.banded`), going back in time::

        W_t,t   = (L_t^-T - W_t,t+1 U_t+1 - W_t,t+2 V_t+2) L_t^-1
        W_s,t   = -(W_s,t+1 U_t+1 + W_s,t+2 V_t+2) L_t^-1       for s = t + 1, t + 2
    """
    n_frames = len(factor.inverse)
    zero = jnp.zeros(factor.inverse.shape[1:], factor.inverse.dtype)
    # V_t = diag(second_t) L_{t-2}^-T, so V_{t+2} needs this frame's own inverse.
    ahead = jnp.concatenate([factor.below, jnp.zeros_like(factor.below[:1])])[1:]
    none = jnp.zeros((2, *factor.second.shape[1:]), factor.second.dtype)
    second = jnp.concatenate([factor.second, none])[2 : n_frames + 2]

    def step(carry, blocks):
        near, both, far = carry  # W of t+1,t+1; of t+2,t+1; of t+2,t+2
        inverse, u, d2 = blocks
        v = d2[..., :, None] * jnp.swapaxes(inverse, -1, -2)
        far_here = -(both @ u + far @ v) @ inverse
        near_here = -(near @ u + jnp.swapaxes(both, -1, -2) @ v) @ inverse
        pull = jnp.swapaxes(near_here, -1, -2) @ u + jnp.swapaxes(far_here, -1, -2) @ v
        own = (jnp.swapaxes(inverse, -1, -2) - pull) @ inverse
        own = 0.5 * (own + jnp.swapaxes(own, -1, -2))
        return (own, near_here, near), kept(own, near_here, far_here)

    with jax.default_matmul_precision("highest"):
        _, blocks = lax.scan(step, (zero, zero, zero), (factor.inverse, ahead, second), reverse=True)
    return blocks
