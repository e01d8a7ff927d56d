"""What the data of a fit tell, where errors are and aren't as the objective takes them."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import NOISE_PX, capture_arm, fit_arm, on_an_arc

from simspine_jax.fitting.information import (
    MOST_POWER,
    NORMAL,
    SUPPOSED,
    Information,
    as_expected,
    curvature,
    information_of,
)
from simspine_jax.fitting.solving import all_equations
from simspine_jax.fitting.spread import posterior_moments
from simspine_jax.fitting.subject import MOST_FOLLOWED, SubjectFit, _Noise, _Seen
from simspine_jax.fitting.terms import ROBUST, Equations, all_expected, markers_of
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


def huber(errors: np.ndarray, correlation: float, supposed: float = 0.0) -> float:
    """E[d psi]^2 / E[psi^2] of Cauchy's loss, found by other means: by central differences.

    So many numbers of normal errors, whose means are known, count beside the errors for the scatter.
    """
    size, step = ROBUST * np.sqrt(correlation), 1e-5

    def psi(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.sum(x**2, axis=-1, keepdims=True) / size**2)

    slopes = [
        (psi(errors + step * way) - psi(errors - step * way))[..., axis] / (2 * step)
        for axis, way in enumerate(np.eye(2))
    ]
    curved, varied = np.mean(slopes), np.mean(psi(errors) ** 2)
    sums = [errors.size * x + supposed * y for x, y in zip((curved, varied), NORMAL[2], strict=True)]
    return curved * sums[0] / sums[1]


@pytest.mark.parametrize("correlation", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["normal", "astray", "half as large"])
def test_data_tell_as_much_as_hubers_formula_says(fit: SubjectFit, kind: str, correlation: float) -> None:
    random = np.random.default_rng(3)
    errors = random.normal(size=fit.whole.data.keypoints.shape)
    if kind == "astray":
        errors *= np.where(random.random(errors.shape[:-1]) < 0.2, 8.0, 1.0)[..., None]
    errors *= 0.5 if kind == "half as large" else 1.0
    told = told_of(fit, errors, correlation)
    found = told_over_squares(fit, told, correlation) / float(told.left)
    # Keypoints differ in what they tell of poses, and the means here are over all of them.
    assert found == pytest.approx(huber(errors, correlation, SUPPOSED), rel=0.05)


def test_normal_errors_tell_nearly_as_much_as_squares(fit: SubjectFit) -> None:
    errors = np.random.default_rng(4).normal(size=fit.whole.data.keypoints.shape)
    # P. Huber: the estimate varies 1.093 times as much as the mean, for c = 2 in two dimensions.
    assert huber(np.random.default_rng(5).normal(size=(200_000, 2)), 1.0) == pytest.approx(
        1 / 1.093, rel=0.01
    )
    told = told_of(fit, errors, 1.0)
    assert told_over_squares(fit, told, 1.0) / float(told.left) == pytest.approx(1 / 1.093, rel=0.1)


@pytest.mark.parametrize("parts", [2, 3])
def test_constants_are_those_of_normal_errors(parts: int) -> None:
    squares = np.sum(np.random.default_rng(6).normal(size=(1_000_000, parts)) ** 2, axis=1)
    weight = 1 / (1 + squares / ROBUST**2)
    found = np.mean(curvature(weight, parts)), np.mean(weight**2 * squares) / parts  # type: ignore[arg-type]
    np.testing.assert_allclose(NORMAL[parts], found, rtol=2e-3)


def test_what_is_left_over_is_1_less_the_share_of_what_is_determined(fit: SubjectFit) -> None:
    told = told_of(fit, np.random.default_rng(7).normal(size=fit.whole.data.keypoints.shape), 1.0)
    both = [dense(fit, e) for e in (told.data, told.priors)]
    determined = np.sum((both[0] - both[1]) * np.linalg.inv(both[0]))
    count = 2 * int(np.sum(np.asarray(fit.whole.data.precision) > 0))
    assert float(told.left) == pytest.approx(1 - determined / count, rel=1e-6)
    assert 0.5 < float(told.left) < 0.98


def dense(fit: SubjectFit, e: Equations) -> np.ndarray:
    """The whole matrix of the only clip's frames and the shared vector."""
    frames, n = np.asarray(e.gradient).shape[1:]
    bend = np.diff(np.eye(frames), 2, axis=0) * float(fit.whole.rate_hz) ** 2
    poses = np.einsum("st,ij->sitj", bend.T @ bend, np.diag(np.asarray(fit.whole.acceleration_precision)[0]))
    step = np.diff(np.eye(frames), axis=0) * float(fit.whole.rate_hz)
    poses += float(fit.whole.velocity_precision) * np.einsum("st,ij->sitj", step.T @ step, np.eye(n))
    poses[np.arange(frames), :, np.arange(frames)] += np.asarray(e.matrix)[0]
    free = np.asarray(fit.whole.free)
    side = np.asarray(e.border)[0].reshape(frames * n, -1) * free
    corner = np.asarray(e.shared_matrix) * free[:, None] * free + np.diag(1 - free)
    return np.block([[poses.reshape(frames * n, -1), side], [side.T, corner]])


def test_markers_have_a_power_of_their_own_and_last_for_no_longer(fit: SubjectFit) -> None:
    q, whole, random = jnp.asarray(fit.q), fit.whole, np.random.default_rng(8)
    markers = markers_of(fit.setting, whole.fixed.model, fit.theta, q[0])[None]
    pixels = all_expected(fit.setting, whole.fixed, fit.theta, whole.data, q)
    powers = []
    for size, correlation in ((1.0, 1.0), (1.0, 9.0), (3.0, 1.0), (0.1, 1.0)):
        data = replace(
            whole.data,
            keypoints=pixels + NOISE_PX * random.normal(size=pixels.shape),
            precision=jnp.full(whole.data.precision.shape, 1 / NOISE_PX**2 / correlation),
            markers=markers + size * 0.01 * random.normal(size=markers.shape),
            marker_precision=jnp.full(markers.shape[:-1], 1e4),
        )
        powers.append(_told(fit.setting, replace(whole, data=data), q, fit.theta, correlation).powers)
    normal, lasting, large, small = (float(p.markers) for p in powers)
    usual = NORMAL[3][0] / NORMAL[3][1]
    assert normal == pytest.approx(usual, rel=0.1)
    assert lasting == pytest.approx(normal, rel=0.1)
    assert large < 0.5 * normal
    assert small == pytest.approx(usual)  # their deviations are given
    # Errors of pictures that last weigh less from the start.
    assert float(powers[1].pictures) == pytest.approx(1.0, rel=0.15)


def test_without_data_priors_alone_tell(fit: SubjectFit) -> None:
    data = replace(fit.whole.data, precision=jnp.zeros_like(fit.whole.data.precision))
    told = _told(fit.setting, replace(fit.whole, data=data), jnp.asarray(fit.q), fit.theta, 1.0)
    assert (float(told.pooled), float(told.left)) == (1.0, 1.0)
    np.testing.assert_array_equal(told.equations().matrix, told.priors.matrix)


def test_leverages_are_how_far_poses_follow_errors(fit: SubjectFit) -> None:
    q = jnp.asarray(fit.q)
    moments = posterior_moments(fit.setting, fit.whole, q, fit.theta, fit.correlation_frames)
    told = _told(fit.setting, fit.whole, q, fit.theta, fit.correlation_frames)
    frames, n = q.shape[1:]
    matrix = dense(fit, told.equations())[: frames * n, : frames * n]
    inverse = np.linalg.inv(matrix).reshape(frames, n, frames, n)
    own = inverse[np.arange(frames), :, np.arange(frames)]
    # The hat matrix' diagonal, with pictures' derivatives by automatic differentiation.
    jacobian = _pictures_by_pose(fit, q)
    still = as_expected(fit.setting, fit.whole, q, fit.theta, told.powers)
    precision = float(told.left) * np.asarray(still.precision)[0]
    hat = 0.5 * precision * np.einsum("tvkiq,tqr,tvkir->tvk", jacobian, own, jacobian)
    np.testing.assert_allclose(moments.leverages, np.median(hat, axis=0), rtol=1e-6)


def _pictures_by_pose(fit: SubjectFit, q: jax.Array) -> np.ndarray:
    """Derivatives of the only clip's pixels by each frame's pose ``[T V K 2 Q]``."""
    one = jax.tree.map(lambda x: x[:, :1], fit.whole.data)

    def pixels(pose: jax.Array) -> jax.Array:
        return all_expected(fit.setting, fit.whole.fixed, fit.theta, one, pose[None, None])[0, 0]

    return np.asarray(jax.jit(jax.vmap(jax.jacfwd(pixels)))(q[0]))


def test_errors_are_not_taken_for_nothing(fit: SubjectFit) -> None:
    told = told_of(fit, np.zeros(fit.whole.data.keypoints.shape), 1.0)
    assert 10 < float(told.powers.pictures) <= MOST_POWER


def test_noise_is_larger_by_what_poses_follow(fit: SubjectFit) -> None:
    known = np.ones((1, 60, 2, 3), bool)
    sizes, ones = np.full(known.shape[:3], 100.0), np.ones(known.shape)
    flat = np.zeros((1, 60, 3))
    seen = _Seen(
        np.zeros((*known.shape, 2)), known, ones, sizes, flat[..., None] * np.ones(3), flat > 0,
        np.ones((1, 60), bool), np.ones((1, 60), bool), (60,),
    )  # fmt: skip
    off = np.random.default_rng(10).rayleigh(2.0, known.shape)
    follows = np.array([[0.0, 0.19, 0.9], [0.0, 0.0, 0.0]])
    plain, found = (_Noise.found(seen, off, f).share for f in (0.0, follows))
    np.testing.assert_allclose(found[1], plain[1], rtol=0.02)
    assert found[0, 1] / plain[0, 1] == pytest.approx(1 / 0.9, rel=0.05)
    assert found[0, 2] / plain[0, 2] == pytest.approx(1 / np.sqrt(1 - MOST_FOLLOWED), rel=0.15)
