"""How fast each joint's motion changes, found from the motion itself.

The prior on a coordinate's accelerations has a variance, which is chosen as the one that makes the data most
likely (D. MacKay, Bayesian interpolation, 1992): the squares of the accelerations that are found, over the
number of them that the data, and not the prior, determine. Still joints are smoothed over long times by it,
quick ones over short times. Frames in which a coordinate is held at a bound say nothing of it.
"""

from __future__ import annotations

import jax.numpy as jnp

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.fitting.solving import Whole
from simspine_jax.kinematics.clip import stencils
from simspine_jax.solvers.banded import Factor
from simspine_jax.solvers.bordered import neighbour_covariances

KNOWN = 4.0
"""Accelerations that the last round's variance counts as, which stays where the data determine nothing."""


def acceleration_variances(
    whole: Whole, q: Float[Array, "C T Q"], held: Bool[Array, "C T Q"], factor: Factor
) -> Float[Array, "C Q"]:
    """Variances of each clip's accelerations, (rad/s^2)^2 or (m/s^2)^2.

    Args:
        whole: data and priors, with the variances of the last round.
        q: poses of the last round.
        held: coordinates at a bound.
        factor: of the poses' matrix; what isn't known of the shared vector has no part.
    """
    own, near, far = (jnp.moveaxis(x, 1, 0) for x in neighbour_covariances(factor))
    middle = own[:, 2:] + 4 * own[:, 1:-1] + own[:, :-2]
    spread = middle - 4 * near[:, 1:-1] - 4 * near[:, :-2] + 2 * far[:, :-2]
    bend = q[:, 2:] - 2 * q[:, 1:-1] + q[:, :-2]
    there = stencils(whole.valid)[1][:, 2:, None] & ~(held[:, 2:] | held[:, 1:-1] | held[:, :-2])
    quartic = whole.rate_hz**4
    squares = jnp.sum(jnp.where(there, bend**2, 0.0), axis=1) * quartic
    left_open = jnp.sum(jnp.where(there, jnp.maximum(spread, 0.0), 0.0), axis=1) * quartic
    determined = jnp.sum(there, axis=1) - left_open * whole.acceleration_precision
    return (squares + KNOWN / whole.acceleration_precision) / (jnp.maximum(determined, 0.0) + KNOWN)
