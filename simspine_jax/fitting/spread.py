"""Poses as they may be, not only as they are likeliest, for what all frames share.

Sizes, offsets and cameras that are likeliest together with all poses are biased, however many frames there
are (J. Neyman and E. Scott, 1948): poses follow errors that are new in each frame, which makes limbs longer,
for the distance of two shaky points is, and a longer lever needs slower joints, which the prior on motion
likes. What counts is how well they explain the pictures for all poses that these leave possible. So poses
get a normal distribution and the objective becomes its mean over them, with means and shared vector found on
it and widths in turn, as where a bound of the evidence is raised (M. Opper and C. Archambeau, The variational
Gaussian approximation revisited, 2009; T. Barfoot et al., Exactly sparse Gaussian variational inference,
2020). It is that bound only where errors are normal and new in each frame: for others `fitting.subject` draws
with narrower widths than the posterior's.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.fitting.motion import acceleration_variances
from simspine_jax.fitting.solving import Whole, all_equations, factorised, held_at_bounds
from simspine_jax.fitting.terms import Setting
from simspine_jax.solvers.bordered import frame_covariances

PAIRS = 2
"""Poses on either side of each frame's own over which the mean is taken."""

WIDEST = 0.5
"""rad and m: about the largest deviation of what is drawn, as joints that aren't seen could be anywhere."""


def no_spread(q: Float[Array, "C T Q"], count: int = 1) -> Float[Array, "C T S Q"]:
    """The poses themselves.

    Args:
        q: poses.
        count: S; as many as there will be need no other program.
    """
    return jnp.zeros((*q.shape[:2], count, q.shape[2]), q.dtype)


class Moments(NamedTuple):
    """What is known of poses beside their means.

    Attributes:
        spread: ``[C T S Q]`` poses beside each frame's own, drawn in pairs from what the data leave of it.
        acceleration_variances: ``[C Q]``; see `fitting.motion`.
    """

    spread: Float[Array, "C T S Q"]
    acceleration_variances: Float[Array, "C Q"]


def posterior_moments(
    setting: Setting, whole: Whole, q: Float[Array, "C T Q"], theta: Float[Array, " P"]
) -> Moments:
    """What a fit leaves open of its poses.

    The draws are the same in each call but for their widths, so that a descent on them ends.

    Args:
        setting: static.
        whole: data and priors.
        q: poses, the means.
        theta: the shared vector, as if it were known.
    """
    drawn = np.random.default_rng(0).standard_normal((*q.shape[:2], PAIRS, q.shape[2]))
    return _moments(setting, whole, q, theta, jnp.asarray(drawn, q.dtype))


@partial(jax.jit, static_argnums=0)
def _moments(setting: Setting, whole: Whole, q: Array, theta: Array, drawn: Array) -> Moments:
    e = all_equations(setting, whole, q, theta)
    held = held_at_bounds(whole, e, q)
    factor = factorised(whole, e, held, 0.0)[0].banded
    own = jnp.moveaxis(frame_covariances(factor), 1, 0)
    # As a whole: cut one by one, joints that only together are seen would no longer make up for each other.
    narrow = WIDEST**2 * jnp.linalg.solve(own + WIDEST**2 * jnp.eye(q.shape[-1], dtype=q.dtype), own)
    root = jnp.linalg.cholesky(0.5 * (narrow + jnp.swapaxes(narrow, -1, -2)))
    beside = jnp.where(held[:, :, None], 0.0, jnp.einsum("ctij,ctsj->ctsi", root, drawn))
    return Moments(jnp.concatenate([beside, -beside], axis=2), acceleration_variances(whole, q, held, factor))
