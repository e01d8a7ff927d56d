"""Errors of the spine's angles against SciPy and the model's own couplers, and violations of its bounds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from simspine_jax import expand_coordinates, forward_kinematics
from simspine_jax.capture import synthetic_motion
from simspine_jax.errors import ShapeError, UnsupportedModelError
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS, keypoint_curvature, vertebral_rotations
from simspine_jax.kinematics.lumbar import coupled_to_free, free_lumbar, free_to_coupled
from simspine_jax.metrics.angles import (
    Rhythm,
    curvature_errors,
    geodesic_error,
    in_rhythm,
    keypoint_curvature_errors,
    limit_violations,
    lumbar_rhythm,
    rotation_errors,
    vertebral_angles,
    wrapped,
)
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, LUMBAR_LEVELS, LUMBAR_MOTIONS

SEEDS = st.integers(0, 2**31)
ROUNDING = 1e-12
# The ratios that the spine model's file gives to four digits.
SHIPPED = (1.0, 1.8571, 1.6429, 1.1429, 0.9286, 0.5714)
RHYTHM = Rhythm(tuple((r, 0.5 * r + 0.5, 1.0) for r in SHIPPED), tuple((0.0, 0.1, -0.2) for _ in SHIPPED))


def angles(seed: int, *batch: int, size: float = 0.3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(scale=size, size=(*batch, 7, 3)))


def bodies(seed: int, n: int = 4) -> tuple[jax.Array, jax.Array]:
    """Predicted and true keypoints of a standing body whose back is a little bent."""
    random = np.random.default_rng(seed)
    truth = 0.01 * random.normal(size=(n, 37, 3))
    column = ("hip", "spine_01", "spine_02", "spine_03", "spine_04", "spine_05", "neck")
    heights = {name: 0.1 * i for i, name in enumerate(column)}
    for name, height in heights.items():
        truth[:, KEYPOINT_NAMES.index(name), 1] += height
    for side, z in (("left", -0.2), ("right", 0.2)):
        for name, height in (("hip", 0.0), ("shoulder", 0.55)):
            truth[:, KEYPOINT_NAMES.index(f"{side}_{name}")] += (0.0, height, z)
    return jnp.asarray(truth + 0.003 * random.normal(size=truth.shape)), jnp.asarray(truth)


def test_errors_by_level_and_axis_are_wrapped_differences() -> None:
    truth = angles(0, 5)
    error = jnp.asarray(np.random.default_rng(1).uniform(-3, 3, truth.shape))
    found = rotation_errors(truth + error + 2 * jnp.pi * (error > 0), truth)
    np.testing.assert_allclose(found.axes.values, error, atol=ROUNDING)
    np.testing.assert_allclose(
        found.axes.rms(0).values, np.sqrt((np.asarray(error) ** 2).mean(0)), atol=ROUNDING
    )
    mean = found.axes.map(jnp.abs).mean(0).values
    np.testing.assert_allclose(mean, np.abs(error).mean(0), atol=ROUNDING)
    assert mean.shape == (len(VERTEBRAL_LEVELS), len(LUMBAR_MOTIONS))


@settings(max_examples=40, deadline=None)
@given(st.floats(-20, 20))
def test_wrapping_keeps_the_angle(angle: float) -> None:
    found = float(wrapped(jnp.asarray(angle)))
    assert -np.pi - 1e-9 <= found <= np.pi + 1e-9
    assert np.exp(1j * found) == pytest.approx(np.exp(1j * angle), abs=1e-12)
    assert float(jax.grad(wrapped)(angle)) == 1


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([1e-12, 1e-6, 0.3, 3.0, np.pi]))
def test_the_geodesic_error_is_scipys(seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    truth = Rotation.from_quat(random.normal(size=(3, 4)))
    axis = random.normal(size=(3, 3))
    turn = Rotation.from_rotvec(size * axis / np.linalg.norm(axis, axis=-1, keepdims=True))
    found = geodesic_error(jnp.asarray((truth * turn).as_matrix()), jnp.asarray(truth.as_matrix()))
    # Products of matrices round to about 1e-16, which is all there is of the smallest.
    np.testing.assert_allclose(found.values, size, atol=1e-14 if size < 3 else 1e-7)


def test_geodesic_errors_of_levels_are_those_of_scipys_sequence() -> None:
    predicted, truth = angles(2, 6, size=1.0), angles(3, 6, size=1.0)
    found = rotation_errors(predicted, truth).geodesic.values
    matrices = [Rotation.from_euler("ZXY", np.asarray(x).reshape(-1, 3)) for x in (predicted, truth)]
    expected = (matrices[0].inv() * matrices[1]).magnitude().reshape(6, 7)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_what_is_missing_poisons_nothing() -> None:
    predicted, truth = angles(4, 5), angles(5, 5)
    mask = jnp.ones((5, 7, 3), bool).at[0, 1, 2].set(False)
    holes = predicted.at[2, 3, 0].set(jnp.nan)
    found = rotation_errors(holes, truth, mask)
    whole = rotation_errors(predicted, truth)
    missing = np.argwhere(~np.asarray(found.axes.present)).tolist()
    assert missing == [[0, 1, 2], [2, 3, 0]]
    assert np.argwhere(~np.asarray(found.geodesic.present)).tolist() == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(np.isnan(found.axes.values), ~np.asarray(found.axes.present))
    kept = np.asarray(found.axes.present)
    np.testing.assert_array_equal(np.asarray(found.axes.values)[kept], np.asarray(whole.axes.values)[kept])
    assert np.isfinite(found.axes.rms(0).values).all()
    for rhythm in (None, RHYTHM):
        total = jax.grad(lambda p, r=rhythm: _total(p, truth, mask, r))(holes)
        assert np.isfinite(total).all()
        assert total[2, 3, 0] == 0
    nobody = rotation_errors(holes, truth, jnp.zeros_like(mask), rhythm=RHYTHM)
    assert not nobody.axes.present.any()
    assert np.isfinite(jax.grad(lambda p: _total(p, truth, jnp.zeros_like(mask), RHYTHM))(holes)).all()


def _total(predicted, truth, mask, rhythm):
    found = rotation_errors(predicted, truth, mask, rhythm=rhythm)
    return found.axes.rms().filled + found.geodesic.mean().filled


@pytest.mark.parametrize("rhythm", [None, RHYTHM])
def test_derivatives_are_right_and_finite_at_no_error(rhythm) -> None:
    predicted, truth, mask = angles(6, 3), angles(7, 3), jnp.ones((3, 7, 3), bool)
    check_grads(lambda p, t: _total(p, t, mask, rhythm), (predicted, truth), order=1, rtol=1e-4)
    assert np.isfinite(jax.grad(_total)(truth, truth, mask, rhythm)).all()


def test_the_nearest_angles_in_rhythm_are_numpys_least_squares() -> None:
    given_ = angles(8, 4)
    found = np.asarray(in_rhythm(given_, RHYTHM))
    ratio, offset = np.array(RHYTHM.ratio), np.array(RHYTHM.offset)
    for axis in range(3):
        wanted = np.asarray(given_)[:, :6, axis] - offset[:, axis]
        leader = np.linalg.lstsq(ratio[:, [axis]], wanted.T, rcond=None)[0]
        np.testing.assert_allclose(
            found[:, :6, axis], (ratio[:, [axis]] @ leader).T + offset[:, axis], atol=ROUNDING
        )
    np.testing.assert_array_equal(found[:, 6], np.asarray(given_)[:, 6])
    np.testing.assert_allclose(in_rhythm(jnp.asarray(found), RHYTHM), found, atol=ROUNDING)
    hole = given_.at[:, 2, 1].set(jnp.nan)
    some = np.asarray(in_rhythm(hole, RHYTHM))
    rest = np.delete(np.arange(6), 2)
    leader = np.linalg.lstsq(
        ratio[rest, 1:2], (np.asarray(given_)[:, rest, 1] - offset[rest, 1]).T, rcond=None
    )[0]
    np.testing.assert_allclose(some[:, :6, 1], (ratio[:, 1:2] @ leader).T + offset[:, 1], atol=ROUNDING)
    assert np.isnan(in_rhythm(given_.at[0, :6, 0].set(jnp.nan), RHYTHM)[0, :6, 0]).all()


def test_the_coupled_setting_sees_no_departure_from_the_rhythm() -> None:
    truth = in_rhythm(angles(9, 5), RHYTHM)
    ratio = jnp.asarray(RHYTHM.ratio)
    free = angles(10, 5)[:, :6]
    departure = free - (free * ratio).sum(-2, keepdims=True) * ratio / (ratio**2).sum(-2)
    predicted = truth.at[:, :6].add(departure + 0.05 * ratio)
    coupled = rotation_errors(predicted, truth, rhythm=RHYTHM).axes.values
    np.testing.assert_allclose(coupled[:, :6], jnp.broadcast_to(0.05 * ratio, (5, 6, 3)), atol=ROUNDING)
    assert float(rotation_errors(predicted, truth).axes.rms().values) > 0.1


def test_the_models_couplers_are_the_rhythm(spine_model) -> None:
    rhythm = lumbar_rhythm(spine_model)
    np.testing.assert_allclose(np.array(rhythm.ratio)[:, 0], SHIPPED, atol=1e-4)
    q = synthetic_motion(spine_model, 6, 50.0, 0)
    full = expand_coordinates(spine_model, jnp.asarray(q, jnp.float64))
    shown = vertebral_angles(full)
    np.testing.assert_allclose(in_rhythm(shown, rhythm), shown, atol=1e-12)
    for i, level in enumerate(LUMBAR_LEVELS):
        np.testing.assert_array_equal(shown[:, i, 0], full[:, AXIS_NAMES.index(f"{level}_Flex_Ext")])
    poses = forward_kinematics(spine_model, jnp.asarray(q, jnp.float64))
    by_bodies = vertebral_rotations(spine_model.body_names, poses.body_rotations)
    np.testing.assert_allclose(by_bodies[:, :6], shown[:, :6], atol=1e-9)
    with pytest.raises(UnsupportedModelError, match="doesn't follow"):
        lumbar_rhythm(free_lumbar(spine_model))


def test_the_rhythm_is_that_of_the_freed_models_projection(spine_model) -> None:
    """`free_to_coupled` is the project's other projection, of whole poses and within bounds."""
    freed = free_lumbar(spine_model)
    q = coupled_to_free(spine_model, spine_model.default_q[None])
    names = [f"{level}_{motion}" for level in LUMBAR_LEVELS for motion in LUMBAR_MOTIONS]
    columns = freed.free_indices(names)
    q = q.at[:, columns].add(0.02 * jnp.asarray(np.random.default_rng(0).normal(size=18)))
    expected = expand_coordinates(spine_model, free_to_coupled(spine_model, q))
    found = in_rhythm(q[:, columns].reshape(1, 6, 3), lumbar_rhythm(spine_model))
    np.testing.assert_allclose(found, vertebral_angles(expected)[:, :6], atol=1e-12)


def test_violations_are_counted_and_measured(spine_model) -> None:
    for model in (spine_model, free_lumbar(spine_model)):
        lower, upper = np.asarray(model.lower), np.asarray(model.upper)
        q = jnp.asarray(np.clip(np.asarray(model.default_q), lower, upper))
        bounded = np.flatnonzero(np.isfinite(lower) & np.isfinite(upper))
        a, b = bounded[0], bounded[-1]
        far = q.at[a].set(lower[a] - 0.25).at[b].set(upper[b] + 0.5)
        open_ended = np.flatnonzero(~np.isfinite(lower))
        far = far.at[open_ended].set(-100.0)
        found = limit_violations(model, jnp.stack([q, far]))
        assert found.count.tolist() == [0, 2]
        np.testing.assert_allclose(found.amount.values[1, [a, b]], [0.25, 0.5], atol=ROUNDING)
        assert float(found.amount.values[0].max()) == 0
        at_bounds = jnp.where(np.isfinite(upper), upper, 0.0) * (1 + jnp.finfo(jnp.float64).eps)
        assert int(limit_violations(model, at_bounds).count) == 0
        hidden = limit_violations(model, jnp.stack([q, far]), jnp.array([True, False]))
        assert hidden.count.tolist() == [0, 0]
        assert not hidden.amount.present[1].any()
        missing = limit_violations(model, far.at[a].set(jnp.nan))
        assert int(missing.count) == 1
        assert np.isnan(missing.amount.values[a])
        slope = jax.grad(lambda x, m=model: limit_violations(m, x).amount.mean().values)(far)
        assert np.isfinite(slope).all()
        assert np.flatnonzero(slope).tolist() == sorted([a, b])
    with pytest.raises(ShapeError, match="coordinates"):
        limit_violations(spine_model, jnp.zeros(3))


def test_violations_of_single_precision_are_not_rounding(spine_model) -> None:
    """What a network squeezes between the bounds in float32 is between them."""
    lower, upper = (np.asarray(x, np.float32) for x in (spine_model.lower, spine_model.upper))
    low, high = (np.where(np.isfinite(lower) & np.isfinite(upper), x, 0) for x in (lower, upper))
    q = jnp.asarray(low + (high - low) * np.float32(1.0), jnp.float32)
    assert int(limit_violations(spine_model, q).count) == 0


def test_curvature_errors_are_differences_of_cobb_angles() -> None:
    predicted, truth = bodies(0)
    found, true = keypoint_curvature(predicted), keypoint_curvature(truth)
    errors = keypoint_curvature_errors(predicted, truth)
    np.testing.assert_allclose(errors.lordosis.values, found.lordosis - true.lordosis, atol=1e-9)
    np.testing.assert_allclose(errors.kyphosis.values, found.kyphosis - true.kyphosis, atol=1e-9)
    assert float(errors.lordosis.rms().values) > 0.01
    hole = dataclasses.replace(found, lordosis=found.lordosis.at[1].set(jnp.nan))
    some = curvature_errors(hole, true)
    assert some.lordosis.present.tolist() == [True, False, True, True]
    assert some.kyphosis.present.all()


def test_curvature_of_bodies_that_have_none_is_missing_with_finite_derivatives() -> None:
    predicted, truth = bodies(1, 6)
    at = KEYPOINT_NAMES.index
    predicted = predicted.at[0, at("spine_02")].set(jnp.nan)
    predicted = predicted.at[1, at("spine_03")].set(predicted[1, at("spine_02")])
    predicted = predicted.at[2, at("left_hip")].set(predicted[2, at("right_hip")])
    predicted = predicted.at[3, at("nose")].set(jnp.nan)  # which it doesn't read
    mask = jnp.ones((6, 37), bool).at[4, at("left_shoulder")].set(False)
    errors = keypoint_curvature_errors(predicted, truth, mask)
    assert errors.lordosis.present.tolist() == [False, False, False, True, False, True]
    np.testing.assert_array_equal(errors.kyphosis.present, errors.lordosis.present)

    def loss(points):
        found = keypoint_curvature_errors(points, truth, mask)
        return found.lordosis.rms().filled + found.kyphosis.rms().filled

    slope = np.asarray(jax.grad(loss)(predicted))
    assert np.isfinite(slope).all()
    assert not slope[[0, 1, 2, 4]].any()
    assert slope[5].any()
    check_grads(lambda p: keypoint_curvature_errors(p, truth).lordosis.rms().values, (bodies(2, 6)[0],),
                order=1, rtol=1e-3)  # fmt: skip


@pytest.mark.usefixtures("float32")
def test_single_precision_knows_a_thousandth_of_a_degree() -> None:
    predicted, truth = (np.random.default_rng(s).normal(scale=0.3, size=(20, 7, 3)) for s in (0, 1))
    single = rotation_errors(jnp.asarray(predicted), jnp.asarray(truth), rhythm=RHYTHM)
    assert single.axes.values.dtype == jnp.float32
    with jax.enable_x64(True):
        double = rotation_errors(jnp.asarray(predicted), jnp.asarray(truth), rhythm=RHYTHM)
    for a, b in ((single.axes, double.axes), (single.geodesic, double.geodesic)):
        np.testing.assert_allclose(a.values, b.values, atol=np.deg2rad(1e-3))


def test_wrong_shapes_are_refused() -> None:
    good = angles(11, 2)
    for wrong in ((good, good[:1]), (good[..., :2], good[..., :2])):
        with pytest.raises(ShapeError, match="valid is"):
            rotation_errors(*wrong)
    with pytest.raises(ShapeError, match="6 or more"):
        in_rhythm(good[:, :5], RHYTHM)
    with pytest.raises(ShapeError, match="62"):
        vertebral_angles(jnp.zeros((2, 40)))
    with pytest.raises(ShapeError, match=r"\[\.\.\., 37, 3\]"):
        keypoint_curvature_errors(jnp.zeros((2, 15, 3)), jnp.zeros((2, 15, 3)))
    with pytest.raises(ShapeError, match=r"\[\.\.\., 3, 3\]"):
        geodesic_error(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
