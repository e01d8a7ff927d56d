"""The detector: its parts one by one, fits to tables of errors, determinism."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax import forward_kinematics
from simspine_jax.capture.noise import (
    CORRELATION_S,
    PAPER_TRIANGULATION_M,
    PAPER_ZERO_SHOT_M,
    _gap,
    detect,
    fit_noise,
    make_noise,
    occlusion,
    scale_regions,
)
from simspine_jax.capture.rigs import make_rig
from simspine_jax.capture.tissue import rigid_keypoints
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import camera_centers, project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.skeleton import KEYPOINT_NAMES, REGIONS, SWAP

RATE_HZ = 50.0
FRAMES = 400
ID = {name: i for i, name in enumerate(KEYPOINT_NAMES)}


@pytest.fixture(scope="module")
def scene(spine_model):
    """A person who stands still, facing along the world's y: cameras, keypoints and their pictures."""
    q = np.zeros(spine_model.n_free)
    q[spine_model.free_indices(["pelvis_ty", "arm_add_r", "arm_add_l"])] = 0.94, -0.5, -0.5
    poses = forward_kinematics(spine_model, jnp.asarray(q))
    points = rigid_keypoints(spine_model, poses, jnp.ones((len(spine_model.body_names), 3)))
    points = yup_to_zup(jnp.broadcast_to(points, (FRAMES, 37, 3)))
    cameras = make_rig(0)
    keypoints = jnp.moveaxis(project(cameras, points).keypoints, 2, 1)
    return cameras, points, keypoints, jnp.ones(keypoints.shape[:-1], bool)


detected = jax.jit(detect)


def silent(**parts):
    """A detector without errors but for these."""
    noise = make_noise()
    quiet = {"bias": 0 * noise.bias, "jitter": 0 * noise.jitter}
    rates = dict.fromkeys(("dropout_rate", "swap_rate", "outlier_rate"), 0.0)
    return replace(noise, **(quiet | rates | parts))


def errors(scene, noise, seed=0):
    found = detected(noise, jax.random.key(seed), *scene, RATE_HZ)
    return np.asarray(found.keypoints - scene[2]), np.asarray(found.confidence)


def person_px(scene):
    keypoints = np.asarray(scene[2])[0]
    return np.sqrt(np.prod(keypoints.max(axis=1) - keypoints.min(axis=1), axis=-1))


def test_without_errors_the_pictures_are_found_exactly(scene):
    error, confidence = errors(scene, silent())
    np.testing.assert_array_equal(error, 0)
    assert confidence.min() > 0.3
    assert confidence.max() > 0.9


def test_equal_keys_give_equal_detections(scene):
    one, again, other = (detected(make_noise(), jax.random.key(k), *scene, RATE_HZ) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.keypoints, again.keypoints)
    np.testing.assert_array_equal(one.confidence, again.confidence)
    assert not np.array_equal(one.keypoints, other.keypoints)


def test_jitter_has_its_size_and_memory(scene):
    jitter = make_noise().jitter
    error, _ = errors(scene, silent(jitter=jitter))
    relative = error / person_px(scene)[:, None, None] / np.asarray(jitter)[:, None]
    hidden = np.asarray(occlusion(scene[0], scene[1]))[0]
    assert relative[:, hidden < 0.01].std() == pytest.approx(1, abs=0.1)
    assert relative[:, hidden > 0.95].std() > 2
    lag = round(CORRELATION_S * RATE_HZ)
    memory = (relative[lag:] * relative[:-lag]).mean() / (relative**2).mean()
    assert memory == pytest.approx(np.exp(-lag / (CORRELATION_S * RATE_HZ)), abs=0.1)


def test_size_scales_all_errors_of_position(scene):
    small, _ = errors(scene, silent(jitter=make_noise().jitter, bias=make_noise().bias))
    large, _ = errors(scene, silent(jitter=make_noise().jitter, bias=make_noise().bias, size=2.5))
    np.testing.assert_allclose(large, 2.5 * small, atol=1e-9)


def test_bias_is_steady_and_mirrors_with_the_body():
    noise = make_noise(3)
    azimuth = 0.7
    basis = np.array([1, np.cos(azimuth), np.sin(azimuth)])
    mirrored = np.array([1, np.cos(azimuth), -np.sin(azimuth)])
    offset = np.asarray(noise.bias) @ basis
    other = (np.asarray(noise.bias) @ mirrored)[SWAP]
    np.testing.assert_allclose(other, offset * [-1, 1], atol=1e-12)
    assert np.abs(offset).max() > 0


def test_bias_does_not_change_while_the_person_stands(scene):
    error, _ = errors(scene, silent(bias=make_noise().bias))
    np.testing.assert_allclose(error, np.broadcast_to(error[:1], error.shape), atol=1e-9)
    assert np.linalg.norm(error[0], axis=-1).mean() > 1


def test_dropouts_are_missing_and_not_zero(scene):
    error, confidence = errors(scene, silent(dropout_rate=0.05))
    missing = np.isnan(error[..., 0])
    assert 0.03 < missing.mean() < 0.2
    assert (confidence[missing] == 0).all()
    assert (confidence[~missing] > 0).all()
    # In bursts: what is missing now was mostly missing a frame ago.
    assert missing[:-1][missing[1:]].mean() > 0.7


def test_keypoints_outside_the_picture_are_not_found(scene):
    cameras, points, keypoints, visible = scene
    visible = visible.at[:, 1, ID["nose"]].set(False)
    found = detected(silent(), jax.random.key(0), cameras, points, keypoints, visible, RATE_HZ)
    assert np.isnan(np.asarray(found.keypoints)[:, 1, ID["nose"]]).all()
    assert np.isnan(np.asarray(found.keypoints)).sum() == 2 * FRAMES


def test_outliers_are_rare_far_and_doubted(scene):
    error, confidence = errors(scene, silent(outlier_rate=0.02))
    distance = np.linalg.norm(error, axis=-1) / person_px(scene)[:, None]
    astray = distance > 0
    assert 0.01 < astray.mean() < 0.12
    assert np.quantile(distance[astray], 0.9) > 0.2
    assert confidence[distance > 0.2].mean() < 0.3 < confidence[~astray].mean()


def test_swaps_exchange_the_sides_of_a_limb(scene):
    found = detected(silent(swap_rate=0.2), jax.random.key(4), *scene, RATE_HZ)
    exact, keypoints = np.asarray(scene[2]), np.asarray(found.keypoints)
    changed = (keypoints != exact).any(axis=-1)
    assert 0.05 < changed[:, :, ID["left_knee"]].mean() < 0.5
    np.testing.assert_array_equal(changed[:, :, ID["left_knee"]], changed[:, :, ID["right_heel"]])
    assert not np.array_equal(changed[:, :, ID["left_knee"]], changed[:, :, ID["left_wrist"]])
    assert not changed[:, :, ID["nose"]].any()
    swapped = changed[..., None]
    np.testing.assert_array_equal(np.where(swapped, exact[:, :, SWAP], exact), keypoints)


def test_what_is_on_the_back_is_hidden_from_the_front(scene):
    cameras, points, *_ = scene
    hidden = np.asarray(occlusion(cameras, points))[0]
    facing = np.asarray(points[0, ID["nose"]] - points[0, ID["head"]])
    toward = np.asarray(camera_centers(cameras)) @ facing
    for name, sign in (("nose", 1), ("spine_03", -1), ("neck", -1)):
        seen = hidden[:, ID[name]] < 0.5
        np.testing.assert_array_equal(seen, sign * toward > 0)
    assert ((hidden >= 0) & (hidden <= 1)).all()
    # Whoever stands with arms a little out hides nothing of shoulders and ankles but from the side.
    assert hidden[:, [ID["left_wrist"], ID["right_wrist"]]].min() < 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_the_gap_is_the_least_distance(seed):
    rng = np.random.default_rng(seed)
    center, start, end, target = (rng.normal(size=3) * 2 for _ in range(4))
    gap, before = _gap(
        jnp.asarray(center)[None], jnp.asarray(target - center)[None, None, None],
        jnp.asarray(start)[None], jnp.asarray(end)[None],
    )  # fmt: skip
    along, across = np.linspace(0, 1, 400)[:, None, None], np.linspace(0, 1, 400)[None, :, None]
    ray, segment = center + along * (target - center), start + across * (end - start)
    distance = np.linalg.norm(ray - segment, axis=-1)
    assert float(gap[0, 0, 0]) <= distance.min() + 1e-9
    assert float(gap[0, 0, 0]) == pytest.approx(distance.min(), abs=0.05)
    assert 0 <= float(before[0, 0, 0]) <= np.linalg.norm(target - center) + 1e-9


def test_regions_are_scaled_alone():
    noise = make_noise()
    scaled = scale_regions(noise, {"lumbar": 3.0})
    ratio = np.asarray(scaled.jitter / noise.jitter)
    np.testing.assert_allclose(ratio[list(REGIONS["lumbar"])], 3)
    assert (ratio != 1).sum() == len(REGIONS["lumbar"])
    with pytest.raises(UnknownNameError, match="tail"):
        scale_regions(noise, {"tail": 1.0})


def root_of_squares(noise):
    """A stand-in for triangulation that grows less than in proportion."""
    return noise.size * np.sqrt(np.asarray(noise.jitter) ** 2 + 0.001**2) * 2


@pytest.mark.parametrize("table", [PAPER_TRIANGULATION_M, PAPER_ZERO_SHOT_M])
def test_a_fit_reaches_the_table(table):
    fitted = fit_noise(make_noise(), table, root_of_squares, rounds=8)
    error = root_of_squares(fitted)
    for region, wanted in table.items():
        assert error[list(REGIONS[region])].mean() == pytest.approx(wanted, rel=0.01)


def test_a_fit_of_one_number_changes_the_size_alone():
    whole = fit_noise(make_noise(), {"all": 0.032}, root_of_squares)
    assert root_of_squares(whole).mean() == pytest.approx(0.032, rel=1e-6)
    np.testing.assert_array_equal(whole.jitter, make_noise().jitter)


def test_a_fit_refuses_what_has_no_meaning():
    with pytest.raises(ShapeError, match="lumbar"):
        fit_noise(make_noise(), {"lumbar": 0.0}, root_of_squares)
    with pytest.raises(UnknownNameError, match="tail"):
        fit_noise(make_noise(), {"tail": 1.0}, root_of_squares)


def test_the_detector_that_was_not_trained_here_errs_more():
    ratio = np.asarray(make_noise(2, "zero_shot").jitter / make_noise(2).jitter)
    for region, wanted in PAPER_ZERO_SHOT_M.items():
        found = ratio[list(REGIONS[region])].mean()
        assert found == pytest.approx(wanted / PAPER_TRIANGULATION_M[region], rel=0.15)
    with pytest.raises(ShapeError, match="valid are finetuned, zero_shot"):
        make_noise(0, "perfect")  # type: ignore[arg-type]
