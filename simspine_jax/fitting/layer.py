"""A fit as a layer: how its poses and sizes change with the keypoints that it was made of, and their weights.

By the implicit function theorem: where the objective's gradient by poses and shared vector x vanishes,
dx / dy = -(d2F/dx2)^-1 d2F/dxdy for whatever y the objective depends on. In reverse mode that is one solve
with the objective's own second derivatives, by conjugate gradients that the fit's matrix preconditions. What
the fit found between its rounds (noise, motion's prior, what poses leave open) is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError
from simspine_jax.fitting.solving import Whole, all_equations, factorised, held_at_bounds, objective
from simspine_jax.fitting.subject import FitStatus, SubjectFit
from simspine_jax.fitting.terms import Setting
from simspine_jax.solvers.bordered import solve_bordered

STEPS, TOLERANCE, LEFT = 100, 1e-10, 1e-4
"""Of the conjugate gradients: at most, the share of the right side at which they end, and that beyond which
the derivatives are NaN."""

Pair = tuple[Array, Array]

Layer = Callable[
    [Float[Array, "C T V K 2"], Float[Array, "C T V K"]], tuple[Float[Array, "C T Q"], Float[Array, " P"]]
]
"""(keypoints in px, factors of their weights) -> free coordinates and the shared vector."""


def layer_of(fit: SubjectFit) -> Layer:
    """The fit as a function of its keypoints and of factors of their weights, at these and at ones.

    Its values are the fit's own, whatever it is called with; its derivatives in reverse mode are those there.
    ``terms.markers_of`` places the markers of what comes back.

    Args:
        fit: that converged.

    Raises:
        ShapeError: the fit has no cameras, or didn't converge, so that there is no least to follow.
    """
    if not fit.setting.layout.n_cameras or fit.status != FitStatus.CONVERGED:
        raise ShapeError(
            f"The fit ended as {FitStatus(fit.status).name} with {fit.setting.layout.n_cameras} cameras; "
            "valid is one of pictures that converged"
        )
    q = jnp.asarray(np.nan_to_num(fit.q), fit.theta.dtype)
    whole = fit.whole if fit.spread is None else replace(fit.whole, spread=fit.spread)
    found = q, fit.theta

    @jax.custom_vjp
    def layer(keypoints: Array, weights: Array) -> tuple[Array, Array]:
        return found

    def forward(keypoints: Array, weights: Array):
        return found, (keypoints, weights)

    def backward(seen: tuple[Array, Array], pulls: tuple[Array, Array]):
        return _pulled(fit.setting, whole, found, seen, pulls)

    layer.defvjp(forward, backward)
    return layer


@partial(jax.jit, static_argnums=0)
def _pulled(setting: Setting, whole: Whole, point: Pair, seen: Pair, pulls: Pair) -> Pair:
    """From pulls at poses and shared vector to those at keypoints and weights."""
    e = all_equations(setting, whole, *point)
    held = held_at_bounds(whole, e, point[0])
    factor, sides = factorised(whole, e, held, 0.0)

    def masked(x: Pair) -> Pair:
        return jnp.where(held, 0.0, x[0]), x[1] * whole.free

    def near(right: Pair) -> Pair:
        step, move = solve_bordered(factor, sides, jnp.moveaxis(right[0], 1, 0), right[1])
        return masked((jnp.moveaxis(step, 1, 0), move))

    def slope(x: Pair, seen: Pair) -> Pair:
        data = replace(whole.data, keypoints=seen[0], precision=whole.data.precision * seen[1])
        return masked(jax.grad(lambda x: objective(setting, replace(whole, data=data), *x))(x))

    def curved(along: Pair) -> Pair:
        return jax.jvp(lambda x: slope(x, seen), (point,), (along,))[1]

    right = masked(pulls)
    moved, _ = jax.scipy.sparse.linalg.cg(curved, right, near(right), tol=TOLERANCE, maxiter=STEPS, M=near)
    (found,) = jax.vjp(lambda seen: slope(point, seen), seen)[1](jax.tree.map(jnp.negative, moved))
    left = optax.tree.norm(jax.tree.map(jnp.subtract, curved(moved), right))
    solved = left <= LEFT * optax.tree.norm(right)
    return jax.tree.map(lambda x: jnp.where(solved, x, jnp.nan), found)
