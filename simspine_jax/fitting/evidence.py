"""How likely the pictures are under a model, with all of its unknowns integrated out: its evidence.

By Laplace's method, from the solve's own factorisation (D. MacKay, Bayesian interpolation, 1992)::

    log Z = -F + g' A^-1 g / 2 - log |H| / 2 + log |K| / 2

F is the objective, H its matrix, A that of the poses alone, g the gradient by these, and K the priors'
matrix; the powers of 2 pi cancel. The shared vector is likeliest with poses integrated out
(`fitting.spread`), and g leads from the poses that were found with it to the likeliest for it. Evidences
compare models of the same data with the same noise: what these have in common is left out, namely the data's
own normaliser and that of the body's place, which has no prior.

Errors aren't quite Cauchy's, nor is each frame's error new. So the data's part is multiplied by the `power`
at which its gradient varies as its matrix says (magnitude adjustment: F. Pauli, W. Racugno and L. Ventura,
Bayesian composite marginal likelihoods, 2011); otherwise thousands of poorly seen unknowns, each judged a
little too lightly, would outweigh everything.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.fitting.information import Powers, as_expected, information_of
from simspine_jax.fitting.solving import Whole, all_equations, factorised, objective, prior_factor
from simspine_jax.fitting.terms import Setting
from simspine_jax.solvers.banded import log_determinant, solve
from simspine_jax.solvers.bordered import log_determinant_bordered


@partial(jax.jit, static_argnums=0)
def log_evidence(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
    held: Bool[Array, "C T Q"],
    power: Array | float,
) -> Float[Array, ""]:
    """The logarithm of a model's evidence.

    Args:
        setting: static.
        whole: data and priors.
        q: poses that a descent has found.
        theta: the shared vector likewise.
        held: coordinates at their bounds, taken as known; the same for all models that are compared.
        power: of the data's likelihood; see `power_of`.
    """
    still = as_expected(setting, whole, q, theta, Powers(power, power))
    # What a lifter says is given, and no part of the data whose power is found.
    still = replace(still, lifted=whole.data.lifted)
    # One program for both: compiling it takes most of the time.
    both = jax.tree.map(lambda *x: jnp.stack(x), whole.data, still)
    pair = lax.map(lambda data: all_equations(setting, replace(whole, data=data), q, theta), both)
    e, own = (jax.tree.map(lambda x, i=i: x[i], pair) for i in range(2))
    gradient = power * (e.gradient - own.gradient) + own.gradient
    gone = held | ~whole.valid[..., None]
    factor, _ = factorised(whole, own, gone, 0.0)
    right = jnp.moveaxis(jnp.where(gone, 0.0, gradient), 1, 0)
    left = jnp.sum(solve(factor.banded, right) * right)
    cost = power * jnp.sum(e.cost - own.cost) + objective(setting, replace(whole, data=still), q, theta)
    return -cost + 0.5 * (left - log_determinant_bordered(factor) + _prior_determinant(whole))


@partial(jax.jit, static_argnums=0)
def power_of(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
    correlation: Array | float,
) -> Float[Array, ""]:
    """The power of the data's likelihood at which its gradient varies as its matrix says.

    Args:
        setting: static.
        whole: data and priors.
        q: poses of a fit.
        theta: its shared vector.
        correlation: frames over which errors are alike.
    """
    return information_of(setting, whole, q, theta, correlation).pooled


def _prior_determinant(whole: Whole) -> Array:
    """log |K|, of the shared vector and of coordinates that are pulled to a pose."""
    free = whole.free
    corner = whole.prior_precision * free[:, None] * free + jnp.diag(1 - free)
    return log_determinant(prior_factor(whole)) + jnp.linalg.slogdet(corner)[1]
