"""How fast each joint's motion changes, found from the motion itself.

The prior on a coordinate's accelerations has a variance, which is chosen as the one that makes the data most
likely (D. MacKay, Bayesian interpolation, 1992): the squares of the accelerations that are found, over the
number of them that the data, and not the prior, determine. Still joints are smoothed over long times by it,
quick ones over short times. Frames in which a coordinate is held at a bound say nothing of it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from simspine_jax.arrays import Array, Float
from simspine_jax.fitting.solving import Whole, all_equations, factorised, held_at_bounds
from simspine_jax.fitting.terms import Setting
from simspine_jax.kinematics.clip import stencils
from simspine_jax.solvers.bordered import neighbour_covariances

KNOWN = 4.0
"""Accelerations that the last round's variance counts as, which stays where the data determine nothing."""


@partial(jax.jit, static_argnums=0)
def acceleration_variances(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
) -> Float[Array, "C Q"]:
    """Variances of each clip's accelerations, (rad/s^2)^2 or (m/s^2)^2.

    Args:
        setting: static.
        whole: data and priors, with the variances of the last round.
        q: poses of the last round.
        theta: the shared vector likewise; what isn't known of it has no part.
    """
    e = all_equations(setting, whole, q, theta)
    held = held_at_bounds(whole, e, q)
    factor, _ = factorised(whole, e, held, 0.0)
    own, near, far = (jnp.moveaxis(x, 1, 0) for x in neighbour_covariances(factor.banded))
    middle = own[:, 2:] + 4 * own[:, 1:-1] + own[:, :-2]
    spread = middle - 4 * near[:, 1:-1] - 4 * near[:, :-2] + 2 * far[:, :-2]
    bend = q[:, 2:] - 2 * q[:, 1:-1] + q[:, :-2]
    there = stencils(whole.valid)[1][:, 2:, None] & ~(held[:, 2:] | held[:, 1:-1] | held[:, :-2])
    quartic = whole.rate_hz**4
    squares = jnp.sum(jnp.where(there, bend**2, 0.0), axis=1) * quartic
    left_open = jnp.sum(jnp.where(there, jnp.maximum(spread, 0.0), 0.0), axis=1) * quartic
    determined = jnp.sum(there, axis=1) - left_open * whole.acceleration_precision
    return (squares + KNOWN / whole.acceleration_precision) / (jnp.maximum(determined, 0.0) + KNOWN)
