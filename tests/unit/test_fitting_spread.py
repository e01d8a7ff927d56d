"""Sizes for all poses that the data leave possible, where the likeliest ones are biased."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import capture_arm, fit_arm, on_an_arc

from simspine_jax.fitting.information import information_of
from simspine_jax.fitting.solving import all_equations, objective
from simspine_jax.fitting.spread import PAIRS, WIDEST, no_spread, posterior_moments
from simspine_jax.fitting.subject import SubjectFit
from simspine_jax.kinematics.model import SpineModel


@pytest.fixture(scope="module", name="fit")
def fitted(arm_model: SpineModel) -> SubjectFit:
    return fit_arm(arm_model, capture_arm(arm_model, on_an_arc(3), 0))


def test_the_objective_is_the_mean_over_the_spread_and_has_its_gradient(fit: SubjectFit) -> None:
    q = jnp.asarray(fit.q)
    drawn = 0.02 * np.random.default_rng(0).normal(size=(*q.shape[:2], 4, q.shape[2]))
    whole = replace(fit.whole, spread=jnp.asarray(drawn))

    @jax.jit
    def value(q: jax.Array, theta: jax.Array) -> jax.Array:
        return objective(fit.setting, whole, q, theta)

    @jax.jit
    def bare(q: jax.Array) -> jax.Array:
        none = {name: 0 * getattr(whole, name) for name in ("acceleration_precision", "velocity_precision")}
        still = replace(fit.whole, **none)
        return objective(fit.setting, still, q, fit.theta)

    here = objective(fit.setting, fit.whole, q, fit.theta) - bare(q)  # what motion costs, which isn't spread
    mean = np.mean([bare(q + drawn[:, :, number]) for number in range(4)])
    np.testing.assert_allclose(value(q, fit.theta), mean + here, rtol=1e-10)
    e = all_equations(fit.setting, whole, q, fit.theta)
    by_pose, shared = jax.jit(jax.grad(value, argnums=(0, 1)))(q, fit.theta)
    np.testing.assert_allclose(e.gradient, by_pose, atol=1e-8 * float(jnp.abs(by_pose).max()))
    np.testing.assert_allclose(e.shared_gradient, shared, atol=1e-8 * float(jnp.abs(shared).max()))


def test_the_spread_is_as_wide_as_the_data_leave_the_poses(fit: SubjectFit) -> None:
    q = jnp.asarray(fit.q)
    found = posterior_moments(fit.setting, fit.whole, q, fit.theta, 1.0).spread
    assert found.shape == (*q.shape[:2], 2 * PAIRS, q.shape[2])
    np.testing.assert_array_equal(found[:, :, :PAIRS], -found[:, :, PAIRS:])
    # The dense matrix of all poses, with the shared vector known.
    e = jax.jit(information_of, static_argnums=0)(fit.setting, fit.whole, q, fit.theta, 1.0).equations()
    frames, n = q.shape[1:]
    matrix = np.zeros((frames, n, frames, n))
    matrix[np.arange(frames), :, np.arange(frames)] = np.asarray(e.matrix)[0]
    bend = np.diff(np.eye(frames), 2, axis=0) * float(fit.whole.rate_hz) ** 2
    stiff = np.asarray(fit.whole.acceleration_precision)[0]
    matrix += np.einsum("st,ij->sitj", bend.T @ bend, np.diag(stiff))
    step = np.diff(np.eye(frames), axis=0) * float(fit.whole.rate_hz)
    matrix += float(fit.whole.velocity_precision) * np.einsum("st,ij->sitj", step.T @ step, np.eye(n))
    variance = np.diagonal(np.linalg.inv(matrix.reshape(frames * n, -1))).reshape(frames, n)
    narrowed = variance / (1 + variance / WIDEST**2)
    wide = np.mean(np.asarray(found) ** 2, axis=(0, 1, 2))
    # Of 80 pairs: their mean squares scatter by 0.16, and neighbours' widths are nearly equal.
    np.testing.assert_allclose(wide, narrowed.mean(axis=0), rtol=0.5)
    assert no_spread(jnp.zeros((1, 2, 3))).shape == (1, 2, 1, 3)
