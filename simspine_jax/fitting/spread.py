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

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.fitting.information import Information, as_expected, information_of
from simspine_jax.fitting.motion import acceleration_variances
from simspine_jax.fitting.parameters import moved_rig
from simspine_jax.fitting.solving import Whole, chunked, factorised, held_at_bounds
from simspine_jax.fitting.terms import Setting, look, marker_jacobian
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
        leverages: ``[V K]`` share of each keypoint's errors that poses follow, the median over frames. Poses
            follow the wrists, which are the ends of chains, more than the trunk, so that what is left of
            their errors is too small by more. These are the diagonal of the matrix by which fitted pictures
            follow from those that were seen (D. Hoaglin and R. Welsch, The hat matrix, 1978).
    """

    spread: Float[Array, "C T S Q"]
    acceleration_variances: Float[Array, "C Q"]
    leverages: Float[Array, "V K"]


def posterior_moments(
    setting: Setting, whole: Whole, q: Float[Array, "C T Q"], theta: Float[Array, " P"], tau: float
) -> Moments:
    """What a fit leaves open of its poses.

    The draws are the same in each call but for their widths, so that a descent on them ends. Spread is what
    follows each frame's own errors, be they alike in its neighbours or not: those that last are hardly
    followed by smooth poses, and what isn't followed doesn't bias sizes that way. So its widths are those of
    errors that are new in each frame, also of 3D markers beside pictures. Leverages are shares of such errors
    too: of those that last, poses follow more.

    Args:
        setting: static.
        whole: data and priors.
        q: poses, the means.
        theta: the shared vector, as if it were known.
        tau: frames over which errors are alike.
    """
    drawn = np.random.default_rng(0).standard_normal((*q.shape[:2], PAIRS, q.shape[2]))
    whole = replace(whole, spread=no_spread(q))
    return _moments(setting, whole, q, theta, jnp.asarray(drawn, q.dtype), jnp.asarray(tau, q.dtype))


@partial(jax.jit, static_argnums=0)
def _moments(setting: Setting, whole: Whole, q: Array, theta: Array, drawn: Array, tau: Array) -> Moments:
    told = information_of(setting, whole, q, theta, tau)
    held = held_at_bounds(whole, told.data._replace(gradient=told.gradient), q)
    factor = factorised(whole, told.equations(), held, 0.0)[0].banded
    close = factorised(whole, told.equations(tau), held, 0.0)[0].banded
    own = jnp.moveaxis(frame_covariances(close), 1, 0)
    # As a whole: cut one by one, joints that only together are seen would no longer make up for each other.
    narrow = WIDEST**2 * jnp.linalg.solve(own + WIDEST**2 * jnp.eye(q.shape[-1], dtype=q.dtype), own)
    root = jnp.linalg.cholesky(0.5 * (narrow + jnp.swapaxes(narrow, -1, -2)))
    beside = jnp.where(held[:, :, None], 0.0, jnp.einsum("ctij,ctsj->ctsi", root, drawn))
    return Moments(
        jnp.concatenate([beside, -beside], axis=2),
        acceleration_variances(whole, q, held, factor),
        _leverages(setting, whole, q, theta, told, jnp.moveaxis(frame_covariances(factor), 1, 0)),
    )


def _leverages(
    setting: Setting, whole: Whole, q: Array, theta: Array, told: Information, own: Array
) -> Float[Array, "V K"]:
    layout, n, fixed = setting.layout, q.shape[-1], whole.fixed
    if not layout.n_cameras:
        return jnp.zeros((0, whole.data.markers.shape[-2]), q.dtype)
    rig = moved_rig(fixed.rig, layout.camera_part(theta))
    precision = told.left * as_expected(setting, whole, q, theta, told.powers).precision

    def one(part: tuple[Array, Array, Array]) -> Array:
        pose, weight, covariance = part
        markers, jacobian = marker_jacobian(setting, fixed.model, theta, pose)
        by_pose = jacobian[..., :n].reshape(*markers.shape, n)
        seen = jnp.einsum("wvkij,wkjq->wvkiq", look(rig, markers).by_point, by_pose, precision="highest")
        variance = jnp.einsum("wvkiq,wqr,wvkir->wvk", seen, covariance, seen, optimize="optimal")
        return 0.5 * weight * variance

    shares = jax.lax.map(one, chunked((q, precision, own)))
    known = (whole.data.precision > 0) & whole.data.usable[..., None, None]
    shares = shares.reshape(-1, *known.shape[2:])[: q[..., 0].size].reshape(known.shape)
    middle = jnp.nanmedian(jnp.where(known, shares, jnp.nan), axis=(0, 1))
    return jnp.where(known.any(axis=(0, 1)), middle, 0.0)
