"""What the data of a fit tell, by what is left of their errors.

The objective takes errors as Cauchy's and as new in each frame but for a constant factor. They are neither,
so its matrix alone says too little or too much. Where a loss rho is only a way to fit, an estimate varies as
C^-1 V C^-1, with C its second derivatives and V the variance of its gradient (P. Huber, Robust Statistics,
1981, section 6.3), and both are found from what is left of the errors. One number is enough where keypoints
differ by their deviations alone: the power by which C is multiplied, C / V, the same adjustment by which
evidences of such likelihoods are compared (F. Pauli, W. Racugno and L. Ventura, Bayesian composite marginal
likelihoods, 2011).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simspine_jax.arrays import Array, Float
from simspine_jax.fitting.solving import Whole, all_equations, factorised
from simspine_jax.fitting.terms import (
    Equations,
    FrameData,
    Setting,
    all_expected,
    all_lifted,
    markers_of,
    robust_weights,
)
from simspine_jax.solvers.bordered import frame_covariances, shared_covariance

MOST_POWER = 100.0
"""Errors in pictures are not taken for less than a tenth of what they were found to be."""

NORMAL = {2: (0.5550, 0.3358), 3: (0.4946, 0.2689)}
"""Means of Cauchy's `curvature` and of the squares of its gradient, for normal errors of 2 and 3 parts."""

SUPPOSED = 100.0
"""Numbers of normal errors that are taken as seen beside the data's: few residuals say little of errors."""

LEAST_LEFT = 0.1
"""Share of the errors' variance that is taken as left over after a fit, at least."""


class Powers(NamedTuple):
    """By what second derivatives are multiplied.

    Attributes:
        pictures: of these.
        markers: of 3D markers. Deviations that are given, as theirs are, may be found larger, not smaller.
    """

    pictures: Array | float = 1.0
    markers: Array | float = 1.0


_ONES = Powers()


class Information(NamedTuple):
    """Equations of a fit as if each datum were where it is expected, as much as the data tell.

    Attributes:
        powers: that are in the data's part, but for what was left over.
        left: share of the errors' variance that the fit left over.
        pooled: one power for all data, the mean of both by what they tell.
        data: equations of data and priors.
        priors: of priors alone, which are also the user's terms and what a lifter says.
        gradient: of the objective as it is, by poses.
    """

    powers: Powers
    left: Float[Array, ""]
    pooled: Float[Array, ""]
    data: Equations
    priors: Equations
    gradient: Float[Array, "C T Q"]

    def equations(self, times: Array | float = 1.0) -> Equations:
        """Those of the priors, with the data's times a number."""
        return jax.tree.map(lambda a, b: b + times * self.left * (a - b), self.data, self.priors)


def information_of(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
    correlation: Array | float,
) -> Information:
    """What data and priors tell of poses and the shared vector.

    Args:
        setting: static.
        whole: data and priors.
        q: poses of a fit.
        theta: its shared vector.
        correlation: frames over which errors in pictures are alike.
    """
    powers, pooled, count = _powers(setting, whole, q, theta, correlation)
    still = as_expected(setting, whole, q, theta, powers)
    none = replace(
        still,
        precision=jnp.zeros_like(still.precision),
        marker_precision=jnp.zeros_like(still.marker_precision),
    )
    # One program for all: compiling it takes most of the time.
    all_data = jax.tree.map(lambda *x: jnp.stack(x), still, none, whole.data)
    found = jax.lax.map(lambda data: all_equations(setting, replace(whole, data=data), q, theta), all_data)
    data, priors, actual = (jax.tree.map(lambda x, i=i: x[i], found) for i in range(3))
    told = Information(powers, jnp.ones((), q.dtype), pooled, data, priors, actual.gradient)
    # What is fitted follows errors a little, so those that are left are too small.
    poses, between, shared = covariances_of(whole, told.equations())
    e = jax.tree.map(jnp.subtract, data, priors)
    determined = jnp.sum(e.matrix * poses) + 2 * jnp.sum(e.border * between)
    determined = determined + jnp.sum(e.shared_matrix * shared)
    # Where nothing determines the poses their covariance is none, and nothing was left over of no data.
    determined = jnp.where(jnp.isfinite(determined), determined, 0.0)
    left = jnp.clip(1 - determined / jnp.maximum(count, 1.0), LEAST_LEFT, 1.0)
    return told._replace(left=left, pooled=pooled * left)


def covariances_of(
    whole: Whole, e: Equations
) -> tuple[Float[Array, "C T Q Q"], Float[Array, "C T Q P"], Float[Array, "P P"]]:
    """Of poses, of poses with the shared vector, and of that."""
    held = jnp.broadcast_to(~whole.valid[..., None], e.gradient.shape)
    factor, _ = factorised(whole, e, held, 0.0)
    shared = shared_covariance(factor) * whole.free[:, None] * whole.free
    spread = jnp.moveaxis(factor.spread, 1, 0)
    own = jnp.moveaxis(frame_covariances(factor.banded), 1, 0)
    between = -jnp.matmul(spread, shared, precision="highest")
    return own - jnp.einsum("ctqp,ctrp->ctqr", between, spread, precision="highest"), between, shared


def _powers(
    setting: Setting, whole: Whole, q: Array, theta: Array, correlation: Array | float
) -> tuple[Powers, Array, Array]:
    """Powers by what is left of errors, both in one, and how many numbers they are of."""
    data, usable = whole.data, whole.data.usable
    weighted = robust_weights(setting, whole.fixed, theta, data, q)
    markers = markers_of(setting, whole.fixed.model, theta, q.reshape(-1, q.shape[-1]))
    off = markers.reshape(data.markers.shape) - data.markers
    by_marker = _scatter(off, data.marker_precision, weighted.marker_precision, usable[..., None])
    curved, varied, count = by_marker
    of_markers = jnp.minimum(_power(3, curved, varied), NORMAL[3][0] / NORMAL[3][1])
    if not setting.layout.n_cameras:
        return Powers(1.0, of_markers), of_markers, count
    off = all_expected(setting, whole.fixed, theta, data, q) - data.keypoints
    more, varied, number = _scatter(off, data.precision, weighted.precision, usable[..., None, None])
    # Precisions count errors as lasting already.
    of_pictures = _power(2, more, jnp.maximum(correlation, 1.0) * varied)
    if setting.noise_known:
        of_pictures = jnp.minimum(of_pictures, NORMAL[2][0] / NORMAL[2][1])
    told = jnp.maximum(curved + more, 1e-12)
    pooled = (curved * of_markers + more * of_pictures) / told
    return Powers(of_pictures, of_markers), jnp.where(curved + more > 0, pooled, 1.0), count + number


def _scatter(off: Array, before: Array, now: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Sums of curvatures and of squares of gradients, both without precisions, and of numbers."""
    parts, there = off.shape[-1], (before > 0) & counts
    weight = now / jnp.where(before > 0, before, 1.0)
    squares = weight * now * jnp.sum(off**2, axis=-1)
    curved = jnp.where(there, parts * curvature(weight, parts), 0.0)
    return jnp.sum(curved), jnp.sum(jnp.where(there, squares, 0.0)), jnp.sum(parts * there).astype(off.dtype)


def _power(parts: int, curved: Array, varied: Array) -> Array:
    c, v = NORMAL[parts]
    return jnp.minimum((curved + SUPPOSED * c) / (varied + SUPPOSED * v), MOST_POWER)


def curvature(weight: Array, parts: int) -> Array:
    """Cauchy's second derivative over that of squares, the mean over an error's directions."""
    return weight * (1 - 2 / parts * (1 - weight))


def as_expected(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
    powers: Powers = _ONES,
) -> FrameData:
    """Data that are where they are expected, so that only priors pull, as precise as the loss is curved.

    Lifted points keep the weights of their loss: their deviations are given, and may be of easier pictures.
    """
    data = whole.data
    weighted = robust_weights(setting, whole.fixed, theta, data, q)

    def curved(now: Array, before: Array, parts: int, power: Array | float) -> Array:
        return power * before * curvature(now / jnp.where(before > 0, before, 1.0), parts)

    markers = markers_of(setting, whole.fixed.model, theta, q.reshape(-1, q.shape[-1]))
    found = replace(
        data,
        markers=markers.reshape(data.markers.shape),
        marker_precision=curved(weighted.marker_precision, data.marker_precision, 3, powers.markers),
    )
    if setting.layout.n_cameras:
        pixels = all_expected(setting, whole.fixed, theta, data, q)
        found = replace(
            found, keypoints=pixels, precision=curved(weighted.precision, data.precision, 2, powers.pictures)
        )
    if weighted.lifted is not None:
        points = all_lifted(setting, whole.fixed, theta, weighted.lifted, q)
        found = replace(found, lifted=replace(weighted.lifted, points=points))
    return found
