"""Sizes for all poses that the data leave possible, where the likeliest ones are biased."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import capture_arm, fit_arm, on_an_arc

from simspine_jax.fitting.solving import all_equations, objective
from simspine_jax.fitting.spread import PAIRS, no_spread, posterior_moments
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
        still = replace(fit.whole, acceleration_precision=0 * whole.acceleration_precision)
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
    found = posterior_moments(fit.setting, fit.whole, q, fit.theta).spread
    assert found.shape == (*q.shape[:2], 2 * PAIRS, q.shape[2])
    np.testing.assert_array_equal(found[:, :, :PAIRS], -found[:, :, PAIRS:])
    # With the shared vector known, a coordinate's deviation can't be above the one with it unknown.
    wide = np.sqrt(np.mean(np.asarray(found) ** 2, axis=(0, 1, 2)))
    e = all_equations(fit.setting, fit.whole, q, fit.theta)
    alone = 1 / np.sqrt(np.diagonal(np.asarray(e.matrix), axis1=-2, axis2=-1).mean(axis=(0, 1)))
    assert (wide > 0).all()
    assert (wide < 30 * alone).all()
    assert no_spread(jnp.zeros((1, 2, 3))).shape == (1, 2, 1, 3)
