"""How sure a fit is: Laplace's approximation of the posterior, from the solve's own factorisation.

Near its mode the posterior is taken as normal, with the inverse of its matrix as covariance, in which data
count as much as their errors say (`fitting.information`): frames' blocks of it by `solvers.bordered`, and of
what follows from poses and shared vector to first order.
What the data don't determine keeps the deviation that its priors leave, so it shows as unsure, not as found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.fitting.information import covariances_of, information_of
from simspine_jax.fitting.solving import CHUNK, Whole, chunked, prior_factor
from simspine_jax.fitting.subject import FitStatus, SubjectFit
from simspine_jax.fitting.terms import Setting, marker_jacobian, markers_of
from simspine_jax.solvers.bordered import frame_covariances

LIFE = 0.5
"""rad and m: about how far joints are from their default poses in life."""

UNSEEN = 0.7
"""A coordinate whose `Uncertainty.observability` is above this counts as not seen."""

Output = Callable[[Float[Array, " Q"], Float[Array, "K 3"], Float[Array, "B 3"]], Float[Array, " M"]]
"""Anything that follows from a frame: (free coordinates, markers in ground, scale factors) -> numbers."""


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Covariances of a fit.

    Attributes:
        poses: ``[C T Q Q]`` of each frame's free coordinates.
        shared: ``[P P]`` of the shared vector.
        between: ``[C T Q P]`` of poses with the shared vector.
        pose_std: ``[C T Q]`` rad and m.
        marker_covariance: ``[C T K 3 3]`` of markers in ground, m^2.
        scale_std: ``[B 3]`` of scale factors.
        observability: ``[Q]`` for each free coordinate the median over frames of s / sqrt(s^2 + s0^2), s
            being its deviation by the data and s0 that beforehand, `LIFE`; near 0 it is seen well, near 1 not
            at all. Departures of lumbar levels, which a prior holds in every frame, have the prior's s0.
        fit: that this is of.
    """

    poses: NDArray[np.float64]
    shared: NDArray[np.float64]
    between: NDArray[np.float64]
    pose_std: NDArray[np.float64]
    marker_covariance: NDArray[np.float64]
    scale_std: NDArray[np.float64]
    observability: NDArray[np.float64]
    fit: SubjectFit = field(repr=False)

    @property
    def marker_std(self) -> NDArray[np.float64]:
        """``[C T K]`` root of the mean variance of each marker's three coordinates, m."""
        return np.sqrt(np.trace(self.marker_covariance, axis1=-2, axis2=-1) / 3)

    def unseen(self) -> tuple[str, ...]:
        """Free coordinates that these cameras don't see."""
        names = self.fit.whole.fixed.model.free_names
        return tuple(n for n, share in zip(names, self.observability, strict=True) if not share <= UNSEEN)

    def of(self, output: Output) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values and standard deviations ``[C T M]`` of what follows from each frame.

        Args:
            output: differentiable, for one frame; of the subject's own scale.
        """
        fit = self.fit
        q = jnp.asarray(np.nan_to_num(fit.q), fit.theta.dtype)
        value, std = _propagated(
            fit.setting, output, fit.whole, fit.theta, q,
            *(jnp.asarray(x, q.dtype) for x in (self.poses, self.between, self.shared)),
        )  # fmt: skip
        gone = ~np.isfinite(fit.q).all(-1)
        return tuple(np.where(gone[..., None], np.nan, np.asarray(x, np.float64)) for x in (value, std))  # type: ignore[return-value]


def half_width(share: float) -> float:
    """Deviations on either side that hold this share of a normal distribution.

    Raises:
        ShapeError: the share isn't between 0 and 1.
    """
    _check_share(share, "an interval")
    return float(ndtri(0.5 + share / 2))


def ellipsoid_radius(share: float) -> float:
    """Deviations along each axis of the ellipsoid that holds this share of a normal distribution in space.

    It is the root of the quantile of chi-squared with three degrees of freedom: 2.50 for 90 %.

    Raises:
        ShapeError: the share isn't between 0 and 1.
    """
    _check_share(share, "an ellipsoid")
    return float(np.sqrt(chdtri(3, 1 - share)))


def _check_share(share: float, what: str) -> None:
    if not 0 < share < 1:
        raise ShapeError(f"The share of {what} is {share}; valid is between 0 and 1")


def uncertainty_of(fit: SubjectFit) -> Uncertainty:
    """The covariances of a fit where it ended; they say little where that isn't the least of its objective.

    A coordinate at its bound has those that it would have without. Of what no data tell they are the priors'.

    Raises:
        ShapeError: the fit has no data at all.
        SimspineError: something is held by neither data nor priors.
    """
    if fit.status == FitStatus.TOO_LITTLE_DATA:
        raise ShapeError("The fit has too little data, so nothing can be said of its uncertainty")
    q = jnp.asarray(np.nan_to_num(fit.q), fit.theta.dtype)
    tau = jnp.asarray(fit.correlation_frames, q.dtype)
    poses, between, shared, markers = (
        np.asarray(x, np.float64) for x in _covariances(fit.setting, fit.whole, q, fit.theta, tau)
    )
    variance = np.diagonal(poses, axis1=-2, axis2=-1)
    there = np.isfinite(fit.q).all(-1)
    if not (np.isfinite(shared).all() and np.isfinite(variance[there]).all()):
        raise SimspineError(
            "The fit's matrix has no inverse, so nothing can be said of its uncertainty: something is held "
            "by neither data nor prior; valid are deviations of priors that aren't endless"
        )
    layout = fit.setting.layout
    logs = np.sqrt(np.diagonal(shared)[: layout.n_scales]).reshape(-1, 3)[np.array(layout.body_segment)]
    free = np.asarray(fit.whole.free) > 0
    share = np.sqrt(variance / (variance + LIFE**2))
    if (held := np.asarray(fit.whole.fixed.frame_precision) > 0).any():
        # With 1 / variance = 1 / s^2 + 1 / s0^2 that is:
        before = np.asarray(_variances_before(fit.whole), np.float64)
        share = np.where(held, np.sqrt(np.minimum(variance / before, 1.0)), share)
    return Uncertainty(
        poses,
        np.where(free[:, None] & free, shared, 0.0),
        between,
        np.sqrt(variance),
        markers,
        fit.scale_factors * np.where(free[: layout.n_scales].any(), logs, 0.0),
        np.median(share[there], axis=0),
        fit,
    )


@partial(jax.jit, static_argnums=0)
def _covariances(setting: Setting, whole: Whole, q: Array, theta: Array, correlation: Array):
    """Of poses, with the shared vector, of that, and of markers."""
    told = information_of(setting, whole, q, theta, correlation)
    poses, between, shared = covariances_of(whole, told.equations())
    markers = _marker_covariances(setting, whole, q, theta, poses, between, shared)
    return poses, between, shared, markers


@jax.jit
def _variances_before(whole: Whole) -> Float[Array, "C T Q"]:
    """Of coordinates by their priors, where these hold them in every frame; others' count for nothing."""
    own = frame_covariances(prior_factor(whole))
    return jnp.moveaxis(own.reshape(len(own), len(whole.valid), -1), 1, 0)


def _marker_covariances(
    setting: Setting, whole: Whole, q: Array, theta: Array, poses: Array, between: Array, shared: Array
) -> Float[Array, "C T K 3 3"]:
    n_body = setting.layout.n_body
    count = q.shape[0] * q.shape[1]
    width = min(CHUNK, count)

    def one(part):
        pose, own, cross = part
        _, jacobian = marker_jacobian(setting, whole.fixed.model, theta, pose)
        j = jacobian.reshape(width, -1, 3, jacobian.shape[-1])
        joint = jnp.concatenate(
            [
                jnp.concatenate([own, cross[..., :n_body]], axis=-1),
                jnp.concatenate(
                    [
                        jnp.swapaxes(cross[..., :n_body], 1, 2),
                        jnp.broadcast_to(shared[:n_body, :n_body], (width, n_body, n_body)),
                    ],
                    axis=-1,
                ),
            ],
            axis=1,
        )
        return jnp.einsum("wkia,wab,wkjb->wkij", j, joint, j, optimize="optimal")

    found = jax.lax.map(one, chunked((q, poses, between)))
    found = found.reshape(-1, *found.shape[2:])[:count]
    return found.reshape(*q.shape[:2], *found.shape[1:])


@partial(jax.jit, static_argnums=(0, 1))
def _propagated(
    setting: Setting, output: Output, whole: Whole, theta: Array, q: Array, poses: Array, between: Array,
    shared: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Values and deviations of what follows from each frame, to first order."""
    n = q.shape[-1]

    def value_of(x: Array) -> Array:
        markers = markers_of(setting, whole.fixed.model, x[n:], x[None, :n])[0]
        pose = setting.layout.posed(x[n:], x[:n])
        return jnp.atleast_1d(output(pose, markers, setting.layout.scale_factors(x[n:])))

    def one(part):
        pose, own, cross = part
        x = jnp.concatenate([pose, theta])
        j = jax.jacrev(value_of)(x)
        a, b = j[:, :n], j[:, n:]
        variance = jnp.einsum("mq,qr,mr->m", a, own, a) + 2 * jnp.einsum("mq,qp,mp->m", a, cross, b)
        return value_of(x), jnp.sqrt(jnp.maximum(variance + jnp.einsum("mp,pr,mr->m", b, shared, b), 0))

    flat = (q.reshape(-1, n), poses.reshape(-1, n, n), between.reshape(-1, n, between.shape[-1]))
    found = jax.lax.map(one, flat, batch_size=CHUNK)
    return tuple(x.reshape(*q.shape[:2], -1) for x in found)  # type: ignore[return-value]
