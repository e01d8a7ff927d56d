"""What the data of a fit tell, by what is left of their errors.

The objective takes errors as Cauchy's and as new in each frame but for a constant factor. They are neither,
so its matrix alone says too little or too much. Where a loss rho is only a way to fit, an estimate varies as
C^-1 V C^-1, with C its second derivatives and V the variance of its gradient (P. Huber, Robust Statistics,
1981, section 6.3), and both are found from what is left of the errors. One number is enough where keypoints
differ by their deviations alone: the `power` by which C is multiplied, C / V, the same adjustment by which
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
    CAUCHY_GAIN,
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
"""Errors are not taken for less than a tenth of what they were said to be."""


LEAST_LEFT = 0.1
"""Share of the errors' variance that is taken as left over after a fit, at least."""


class Information(NamedTuple):
    """Equations of a fit as if each datum were where it is expected.

    Attributes:
        power: of the data's second derivatives.
        data: equations of data and priors.
        priors: of priors alone, which are also the user's terms and what a lifter says.
        gradient: of the objective as it is, by poses.
    """

    power: Float[Array, ""]
    data: Equations
    priors: Equations
    gradient: Float[Array, "C T Q"]

    def equations(self, times: Array | float = 1.0) -> Equations:
        """Those of the priors, with the data's times their power and another number."""
        return jax.tree.map(lambda a, b: b + times * self.power * (a - b), self.data, self.priors)


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
        correlation: frames over which errors are alike.
    """
    power, count = _power(setting, whole, q, theta, correlation)
    still = as_expected(setting, whole, q, theta)
    none = replace(
        still,
        precision=jnp.zeros_like(still.precision),
        marker_precision=jnp.zeros_like(still.marker_precision),
    )
    # One program for all: compiling it takes most of the time.
    all_data = jax.tree.map(lambda *x: jnp.stack(x), still, none, whole.data)
    found = jax.lax.map(lambda data: all_equations(setting, replace(whole, data=data), q, theta), all_data)
    data, priors, actual = (jax.tree.map(lambda x, i=i: x[i], found) for i in range(3))
    told = Information(power, data, priors, actual.gradient)
    # What is fitted follows errors a little, so those that are left are too small.
    poses, between, shared = covariances_of(whole, told.equations())
    e = jax.tree.map(jnp.subtract, told.data, told.priors)
    determined = (
        jnp.sum(e.matrix * poses) + 2 * jnp.sum(e.border * between) + jnp.sum(e.shared_matrix * shared)
    )
    left = jnp.clip(1 - power * determined / jnp.maximum(count, 1.0), LEAST_LEFT, 1.0)
    return told._replace(power=power * left)


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


def _power(
    setting: Setting, whole: Whole, q: Array, theta: Array, correlation: Array | float
) -> tuple[Array, Array]:
    """The power by what is left of the errors of pictures and markers, 1 without either, and their count."""
    data, usable = whole.data, whole.data.usable
    weighted = robust_weights(setting, whole.fixed, theta, data, q)
    markers = markers_of(setting, whole.fixed.model, theta, q.reshape(-1, q.shape[-1]))
    off = [(markers.reshape(data.markers.shape) - data.markers, weighted.marker_precision)]
    known = [(data.marker_precision, usable[..., None])]
    if setting.layout.n_cameras:
        off.append((all_expected(setting, whole.fixed, theta, data, q) - data.keypoints, weighted.precision))
        known.append((data.precision, usable[..., None, None]))
    curved = varied = count = jnp.zeros((), q.dtype)
    for (residual, now), (before, counts) in zip(off, known, strict=True):
        parts, there = residual.shape[-1], (before > 0) & counts
        weight = now / jnp.where(before > 0, before, 1.0)
        squares = weight * now * jnp.sum(residual**2, axis=-1)
        curved += jnp.sum(jnp.where(there, parts * curvature(weight, parts), 0.0))
        varied += jnp.sum(jnp.where(there, squares, 0.0))
        count += jnp.sum(parts * there)
    power = curved / (jnp.maximum(correlation, 1.0) * jnp.maximum(varied, 1e-12))
    return jnp.where(count > 0, jnp.minimum(power, MOST_POWER), 1.0), count


def curvature(weight: Array, parts: int) -> Array:
    """Cauchy's second derivative over that of squares, the mean over an error's directions."""
    return weight * (1 - 2 / parts * (1 - weight))


def as_expected(
    setting: Setting,
    whole: Whole,
    q: Float[Array, "C T Q"],
    theta: Float[Array, " P"],
    power: Array | float = 1.0,
) -> FrameData:
    """Data that are where they are expected, so that only priors pull, as precise as the loss is curved.

    Lifted points have deviations that are given, and no power.
    """
    data = whole.data
    weighted = robust_weights(setting, whole.fixed, theta, data, q)

    def curved(now: Array, before: Array, parts: int) -> Array:
        return power * before * curvature(now / jnp.where(before > 0, before, 1.0), parts)

    markers = markers_of(setting, whole.fixed.model, theta, q.reshape(-1, q.shape[-1]))
    found = replace(
        data,
        markers=markers.reshape(data.markers.shape),
        marker_precision=curved(weighted.marker_precision, data.marker_precision, 3),
    )
    if setting.layout.n_cameras:
        pixels = all_expected(setting, whole.fixed, theta, data, q)
        found = replace(found, keypoints=pixels, precision=curved(weighted.precision, data.precision, 2))
    if weighted.lifted is not None:
        points = all_lifted(setting, whole.fixed, theta, weighted.lifted, q)
        precision = CAUCHY_GAIN * weighted.lifted.precision
        found = replace(found, lifted=replace(weighted.lifted, points=points, precision=precision))
    return found
