"""What the data of a fit tell, where errors are and aren't as the objective takes them."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import NOISE_PX, capture_arm, fit_arm, on_an_arc

from simspine_jax.fitting.information import Information, as_expected, information_of
from simspine_jax.fitting.solving import all_equations
from simspine_jax.fitting.spread import posterior_moments
from simspine_jax.fitting.subject import SubjectFit
from simspine_jax.fitting.terms import ROBUST, all_expected
from simspine_jax.kinematics.model import SpineModel


@pytest.fixture(scope="module", name="fit")
def fitted(arm_model: SpineModel) -> SubjectFit:
    return fit_arm(arm_model, capture_arm(arm_model, on_an_arc(3), 0))


_told = jax.jit(information_of, static_argnums=0)


def told_of(fit: SubjectFit, errors: np.ndarray, correlation: float) -> Information:
    """Of pictures that are so many of their deviations away from where they are expected."""
    q, whole = jnp.asarray(fit.q), fit.whole
    pixels = all_expected(fit.setting, whole.fixed, fit.theta, whole.data, q)
    precision = jnp.where(whole.data.precision > 0, 1 / NOISE_PX**2, 0.0) / correlation
    data = replace(whole.data, keypoints=pixels + NOISE_PX * errors, precision=precision)
    return _told(fit.setting, replace(whole, data=data), q, fit.theta, correlation)


def told_over_squares(fit: SubjectFit, told: Information, correlation: float) -> float:
    """What data tell of poses, over what squares of errors of deviation 1 would."""
    q, whole = jnp.asarray(fit.q), fit.whole
    pixels = all_expected(fit.setting, whole.fixed, fit.theta, whole.data, q)
    precision = jnp.where(whole.data.precision > 0, 1 / NOISE_PX**2, 0.0) / correlation
    data = replace(whole.data, keypoints=pixels, precision=precision)
    squares = all_equations(fit.setting, replace(whole, data=data), q, fit.theta).matrix - told.priors.matrix
    ours = told.equations().matrix - told.priors.matrix
    return float(jnp.trace(ours.sum((0, 1))) / jnp.trace(squares.sum((0, 1))))


def huber(errors: np.ndarray, correlation: float) -> float:
    """E[d psi]^2 / E[psi^2] of Cauchy's loss, found by other means: by central differences."""
    size, step = ROBUST * np.sqrt(correlation), 1e-5

    def psi(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.sum(x**2, axis=-1, keepdims=True) / size**2)

    slopes = [
        (psi(errors + step * way) - psi(errors - step * way))[..., axis] / (2 * step)
        for axis, way in enumerate(np.eye(2))
    ]
    return np.mean(slopes) ** 2 / np.mean(psi(errors) ** 2)


@pytest.mark.parametrize("correlation", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["normal", "astray", "half as large"])
def test_data_tell_as_much_as_the_scatter_of_an_estimate_says(
    fit: SubjectFit, kind: str, correlation: float
) -> None:
    random = np.random.default_rng(3)
    errors = random.normal(size=fit.whole.data.keypoints.shape)
    if kind == "astray":
        errors *= np.where(random.random(errors.shape[:-1]) < 0.2, 8.0, 1.0)[..., None]
    errors *= 0.5 if kind == "half as large" else 1.0
    told = told_of(fit, errors, correlation)
    left = float(told.power) / _bare_power(errors, correlation)
    assert 0.8 < left < 1  # of the errors' variance, after as many unknowns as this small model has
    assert told_over_squares(fit, told, correlation) / left == pytest.approx(
        huber(errors, correlation), rel=0.05
    )


def _bare_power(errors: np.ndarray, correlation: float) -> float:
    weight = 1 / (1 + np.sum(errors**2, axis=-1) / (ROBUST**2 * correlation))
    return np.mean(weight**2) / np.mean(weight**2 * np.sum(errors**2, axis=-1) / 2)


def test_normal_errors_tell_nearly_as_much_as_squares(fit: SubjectFit) -> None:
    errors = np.random.default_rng(4).normal(size=fit.whole.data.keypoints.shape)
    # P. Huber: the estimate varies 1.093 times as much as the mean, for c = 2 in two dimensions.
    assert huber(np.random.default_rng(5).normal(size=(200_000, 2)), 1.0) == pytest.approx(
        1 / 1.093, rel=0.01
    )
    assert told_over_squares(fit, told_of(fit, errors, 1.0), 1.0) == pytest.approx(1 / 1.093, rel=0.15)


def test_leverages_are_how_far_poses_follow_errors(fit: SubjectFit) -> None:
    q = jnp.asarray(fit.q)
    moments = posterior_moments(fit.setting, fit.whole, q, fit.theta, fit.correlation_frames)
    told = _told(fit.setting, fit.whole, q, fit.theta, fit.correlation_frames)
    frames, n = q.shape[1:]
    bend = np.diff(np.eye(frames), 2, axis=0) * float(fit.whole.rate_hz) ** 2
    matrix = np.einsum("st,ij->sitj", bend.T @ bend, np.diag(np.asarray(fit.whole.acceleration_precision)[0]))
    matrix[np.arange(frames), :, np.arange(frames)] += np.asarray(told.equations().matrix)[0]
    inverse = np.linalg.inv(matrix.reshape(frames * n, -1)).reshape(frames, n, frames, n)
    own = inverse[np.arange(frames), :, np.arange(frames)]
    # The hat matrix' diagonal, with pictures' derivatives by automatic differentiation.
    _, jacobian = _pictures_by_pose(fit, q)
    still = as_expected(fit.setting, fit.whole, q, fit.theta)
    precision = float(told.power) * np.asarray(still.precision)[0]
    hat = 0.5 * precision * np.einsum("tvkiq,tqr,tvkir->tvk", jacobian, own, jacobian)
    np.testing.assert_allclose(moments.leverages, np.median(hat, axis=0), rtol=1e-6)


def _pictures_by_pose(fit: SubjectFit, q: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the only clip's frames ``[T V K 2]`` and their derivatives by each frame's pose."""
    one = jax.tree.map(lambda x: x[:, :1], fit.whole.data)

    def pixels(pose: jax.Array) -> jax.Array:
        return all_expected(fit.setting, fit.whole.fixed, fit.theta, one, pose[None, None])[0, 0]

    return np.asarray(jax.vmap(pixels)(q[0])), np.asarray(jax.jit(jax.vmap(jax.jacfwd(pixels)))(q[0]))


def test_errors_are_not_taken_for_nothing(fit: SubjectFit) -> None:
    told = told_of(fit, np.zeros(fit.whole.data.keypoints.shape), 1.0)
    assert float(told.power) <= 100.0
