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
from simspine_jax.fitting.solving import Whole, all_equations, factorised, objective
from simspine_jax.fitting.terms import (
    FrameData,
    Setting,
    all_expected,
    markers_of,
    pose_precision,
    robust_weights,
)
from simspine_jax.kinematics.clip import Smoothing, coupling
from simspine_jax.solvers.banded import factorise, log_determinant, solve
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
    still = _left_nothing(setting, whole, q, theta, power)
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
        curved += jnp.sum(jnp.where(there, parts * _curvature(weight, parts), 0.0))
        varied += jnp.sum(jnp.where(there, squares, 0.0))
        count += jnp.sum(parts * there)
    full = curved / (jnp.maximum(correlation, 1.0) * jnp.maximum(varied, 1e-12 * count))
    return full * _left_over(setting, whole, q, theta, count)


def _curvature(weight: Array, parts: int) -> Array:
    """Cauchy's second derivative over that of squares, the mean over an error's directions."""
    return weight * (1 - 2 / parts * (1 - weight))


def _left_over(setting: Setting, whole: Whole, q: Array, theta: Array, count: Array) -> Array:
    """Share of the errors' variance that fitting has left: 1 less the unknowns that the data determine."""
    held = jnp.broadcast_to(~whole.valid[..., None], q.shape)
    still = _left_nothing(setting, whole, q, theta, 1.0)
    e = all_equations(setting, replace(whole, data=still), q, theta)
    pull = pose_precision(whole.fixed, whole.data)[..., None] * jnp.eye(q.shape[-1], dtype=q.dtype)
    known = e._replace(
        matrix=pull, border=jnp.zeros_like(e.border), shared_matrix=jnp.asarray(whole.prior_precision)
    )

    def determinant(power: Array) -> Array:
        mixed = jax.tree.map(lambda a, b: b + power * (a - b), e, known)
        return log_determinant_bordered(factorised(whole, mixed, held, 0.0)[0])

    one = jnp.ones((), q.dtype)
    determined = jax.jvp(determinant, (one,), (one,))[1]
    return jnp.clip(1 - determined / jnp.maximum(count, 1.0), 0.1, 1.0)


def _left_nothing(setting: Setting, whole: Whole, q: Array, theta: Array, power: Array | float) -> FrameData:
    """Data that are where they are expected, so that only priors pull, as precise as the loss is curved."""
    data = whole.data
    weighted = robust_weights(setting, whole.fixed, theta, data, q)

    def curved(now: Array, before: Array, parts: int) -> Array:
        return power * before * _curvature(now / jnp.where(before > 0, before, 1.0), parts)

    markers = markers_of(setting, whole.fixed.model, theta, q.reshape(-1, q.shape[-1]))
    found = replace(
        data,
        markers=markers.reshape(data.markers.shape),
        marker_precision=curved(weighted.marker_precision, data.marker_precision, 3),
    )
    if not setting.layout.n_cameras:
        return found
    pixels = all_expected(setting, whole.fixed, theta, data, q)
    return replace(found, keypoints=pixels, precision=curved(weighted.precision, data.precision, 2))


def _prior_determinant(whole: Whole) -> Array:
    """log |K|, of the shared vector and of coordinates that are pulled to a pose."""
    free = whole.free
    corner = whole.prior_precision * free[:, None] * free + jnp.diag(1 - free)
    pull = pose_precision(whole.fixed, whole.data)
    diagonal, first, second = coupling(Smoothing(0.0, 1.0, whole.rate_hz), whole.valid, pull.dtype)
    stiff = whole.acceleration_precision[:, None]
    proper = jnp.any(pull > 0, axis=1, keepdims=True)
    own = pull + diagonal[..., None] * stiff
    own = jnp.where(proper & (own > 0), own, 1.0)
    blocks = [own, *(jnp.where(proper, x[..., None] * stiff, 0.0) for x in (first, second))]
    # Each coordinate of each clip by itself.
    a, d1, d2 = (jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, 1) for x in blocks)
    return log_determinant(factorise(a[..., None], d1, d2)) + jnp.linalg.slogdet(corner)[1]
