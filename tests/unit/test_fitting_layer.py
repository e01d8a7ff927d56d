"""Derivatives of a fit by what it was made of, beside fits of other keypoints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import capture_arm, fit_arm, on_an_arc

from simspine_jax.errors import ShapeError
from simspine_jax.fitting.layer import layer_of
from simspine_jax.fitting.parameters import FitPriors
from simspine_jax.fitting.solving import descend
from simspine_jax.fitting.subject import FitOptions, FitStatus, SubjectFit

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

# A descent ends where what it gains is rounded away: about 1e-5 of a deviation from the least.
STEP, AGREE = 1e-2, 1e-3


@pytest.fixture(scope="module", name="fit", params=[False, True], ids=["likeliest", "spread"])
def fitted(arm_model: SpineModel, request) -> SubjectFit:
    options = FitOptions(
        FitPriors(bias=0.0), noise_px=2.0, correlated=False, marginal=request.param, rounds=2, tolerance=1e-12
    )
    return fit_arm(arm_model, capture_arm(arm_model, on_an_arc(3), 0), options)


@pytest.mark.parametrize("what", ["keypoints", "weights"])
def test_derivatives_are_those_of_fits_again(fit: SubjectFit, what: str) -> None:
    random = np.random.default_rng(1)
    q, data = jnp.asarray(fit.q), fit.whole.data
    seen = {"keypoints": data.keypoints, "weights": jnp.ones_like(data.precision)}
    away = jnp.asarray(random.normal(size=seen[what].shape))
    pull_q, pull_theta = (jnp.asarray(random.normal(size=x.shape)) for x in (q, fit.theta))

    def scored(x: jax.Array) -> jax.Array:
        poses, theta = layer_of(fit)(*(seen | {what: x}).values())
        return jnp.sum(pull_q * poses) + jnp.sum(pull_theta * theta)

    value, slope = jax.value_and_grad(scored)(seen[what])
    assert value == pytest.approx(float(jnp.sum(pull_q * q) + jnp.sum(pull_theta * fit.theta)))
    ends = []
    for side in (1, -1):
        moved = seen | {what: seen[what] + side * STEP * away}
        other = replace(data, keypoints=moved["keypoints"], precision=data.precision * moved["weights"])
        whole = replace(fit.whole, data=other, spread=fit.spread)
        again = descend(fit.setting, whole, q, fit.theta, 100, 1e-14)
        ends.append(float(jnp.sum(pull_q * again.q) + jnp.sum(pull_theta * again.theta)))
    assert float(jnp.sum(slope * away)) == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=AGREE)


def test_a_fit_that_did_not_end_has_no_derivative(fit: SubjectFit) -> None:
    with pytest.raises(ShapeError, match="MAX_STEPS with 3 cameras"):
        layer_of(replace(fit, status=FitStatus.MAX_STEPS))
