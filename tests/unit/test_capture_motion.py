"""Synthetic motion: limits, band, determinism, and plausible ranges; marker noise and gaps."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from simspine_jax import forward_kinematics, load_model
from simspine_jax.capture import add_marker_noise, synthetic_motion
from simspine_jax.capture.motion import LIMIT_MARGIN, MAX_FREQUENCY_HZ
from simspine_jax.errors import ShapeError

KINDS = ["mixed", "walk"]
SEEDS = range(8)
# Between limits in float64: only the rounding of centre + amplitude * unit.
ROUNDING = 1e-12
# A Hann window's side lobes lie below this outside a few bins; real content above the band would be far over.
LEAKAGE = 1e-8


def degrees(model, q, name):
    return np.rad2deg(np.asarray(q)[:, model.free_names.index(name)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_clamped_coordinates_stay_inside_their_limits(spine_model, kind, seed):
    q = np.asarray(synthetic_motion(spine_model, 2000, 50.0, seed, kind))
    lower, upper = np.asarray(spine_model.lower), np.asarray(spine_model.upper)
    clamped = np.isfinite(lower)
    assert clamped.sum() > 20
    margin = LIMIT_MARGIN * (upper - lower)[clamped]
    assert (q[:, clamped] >= (lower[clamped] + margin) - ROUNDING).all()
    assert (q[:, clamped] <= (upper[clamped] - margin) + ROUNDING).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_faster_than_the_band(spine_model, kind):
    rate_hz, n_frames = 20.0, 8000
    q = np.asarray(synthetic_motion(spine_model, n_frames, rate_hz, 3, kind))
    spectrum = np.abs(np.fft.rfft((q - q.mean(axis=0)) * np.hanning(n_frames)[:, None], axis=0)) ** 2
    beyond = np.fft.rfftfreq(n_frames, 1 / rate_hz) > MAX_FREQUENCY_HZ * 1.02
    assert (spectrum[beyond].sum(axis=0) <= LEAKAGE * spectrum.sum(axis=0)).all()
    # The band is used, so that the check above is about something.
    used = np.fft.rfftfreq(n_frames, 1 / rate_hz) > 0.5 * MAX_FREQUENCY_HZ
    assert (spectrum[used].sum(axis=0) > LEAKAGE * spectrum.sum(axis=0)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_motion_is_a_function_of_seed_and_time(spine_model, kind):
    q = synthetic_motion(spine_model, 120, 100.0, 7, kind)
    np.testing.assert_array_equal(q, synthetic_motion(spine_model, 120, 100.0, 7, kind))
    np.testing.assert_array_equal(q[:50], synthetic_motion(spine_model, 50, 100.0, 7, kind))
    np.testing.assert_allclose(q[::2], synthetic_motion(spine_model, 60, 50.0, 7, kind), atol=ROUNDING)
    assert not np.allclose(q, synthetic_motion(spine_model, 120, 100.0, 8, kind), atol=1e-3)
    assert q.shape == (120, spine_model.n_free)
    assert q.dtype == spine_model.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_every_free_coordinate_moves(spine_model, kind):
    q = np.asarray(synthetic_motion(spine_model, 1000, 50.0, 0, kind))
    assert (np.ptp(q, axis=0) > np.deg2rad(0.5)).all()


def test_mixed_motion_has_human_amplitudes(spine_model):
    clips = [synthetic_motion(spine_model, 3000, 50.0, seed) for seed in SEEDS]

    def spread(name):
        return np.mean([np.ptp(degrees(spine_model, q, name)) / 2 for q in clips])

    assert 3 <= spread("L5_S1_Flex_Ext") <= 5
    assert 1.3 <= spread("L5_S1_Lat_Bending") <= 2.6
    assert 1 <= spread("L5_S1_axial_rotation") <= 2
    assert 14 <= spread("neck_flexion") <= 25
    assert 30 <= spread("pelvis_rotation") <= 70
    for q in clips:
        heights = np.asarray(q)[:, spine_model.free_names.index("pelvis_ty")]
        assert np.abs(heights - 0.94).max() < 0.06
        for side in "rl":  # adduction of -90 degrees is the shoulder's gimbal singularity
            assert np.abs(degrees(spine_model, q, f"arm_add_{side}") + 90).min() > 20


def test_a_walker_strides_with_left_and_right_half_a_cycle_apart(spine_model):
    rate_hz = 200.0
    q = synthetic_motion(spine_model, 2000, rate_hz, 1, "walk")
    right, left = (degrees(spine_model, q, f"hip_flexion_{side}") for side in "rl")
    spectrum = np.abs(np.fft.rfft(right - right.mean()))
    stride_hz = np.fft.rfftfreq(len(right), 1 / rate_hz)[spectrum.argmax()]
    assert 0.8 <= stride_hz <= 1.0
    assert np.corrcoef(right, left)[0, 1] < -0.8
    # An arm swings with the leg of the other side.
    assert np.corrcoef(degrees(spine_model, q, "arm_flex_l"), right)[0, 1] > 0.8
    knee = degrees(spine_model, q, "knee_angle_r")
    assert knee.min() > 0
    assert 50 < knee.max() < 70


def test_a_walkers_head_stays_above_the_feet(spine_model):
    poses = forward_kinematics(spine_model, synthetic_motion(spine_model, 200, 50.0, 5, "walk"))
    height = np.asarray(poses.markers)[..., 1]
    head, heels = (spine_model.marker_indices(names) for names in (["Head"], ["LHeel", "RHeel"]))
    assert (height[:, head] > height[:, heels] + 1.3).all()
    assert np.abs(height[:, heels].min()) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_other_models_move_too(shared_data, kind):
    pytest.importorskip("opensim", reason="OpenSim is not installed")
    model = load_model(next((shared_data / "gait2392").glob("*.osim")))
    q = np.asarray(synthetic_motion(model, 500, 50.0, 0, kind))
    assert "lumbar_extension" in model.free_names
    assert np.isfinite(q).all()
    assert (q >= np.asarray(model.lower) - ROUNDING).all()
    assert (q <= np.asarray(model.upper) + ROUNDING).all()


@pytest.mark.usefixtures("float32")
def test_float32_model_gets_float32_motion(spine_osim, paper_markers):
    model = load_model(spine_osim, paper_markers)
    q = synthetic_motion(model, 10, 50.0, 0)
    assert q.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 50.0, 0, "mixed"), "n_frames is 0; valid is at least 1"),
        ((5, 4.0, 0, "mixed"), "rate_hz is 4.0; valid is above 4 frames per second"),
        ((5, np.nan, 0, "mixed"), "rate_hz is nan"),
        ((5, 50.0, 0, "swim"), "kind is 'swim'; valid are mixed, walk"),
    ],
)
def test_invalid_motions_are_refused(spine_model, arguments, message):
    with pytest.raises(ShapeError, match=message):
        synthetic_motion(spine_model, *arguments)


def test_noise_has_its_size_and_gaps_their_share():
    markers = np.broadcast_to(np.array([1.0, 2.0, 3.0]), (4000, 10, 3))
    noisy = np.asarray(add_marker_noise(markers, 0.005, jax.random.key(0), missing_fraction=0.1))
    missing = np.isnan(noisy)
    np.testing.assert_array_equal(missing.any(axis=-1), missing.all(axis=-1))
    assert abs(missing.mean() - 0.1) < 0.01  # 40,000 draws: three standard errors are 0.0045
    error = (noisy - markers)[~missing[..., 0]]
    np.testing.assert_allclose(error.std(axis=0), 0.005, rtol=0.03)
    np.testing.assert_allclose(error.mean(axis=0), 0.0, atol=2e-4)


def test_noise_repeats_by_key_keeps_gaps_and_can_be_none():
    markers = np.ones((5, 3, 3))
    markers[2, 1] = np.nan
    first, second = (add_marker_noise(markers, 0.01, jax.random.key(4)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.isnan(first), np.isnan(markers))
    assert not np.allclose(first, add_marker_noise(markers, 0.01, jax.random.key(5)), equal_nan=True)
    np.testing.assert_array_equal(add_marker_noise(markers, 0.0, jax.random.key(0)), markers)
    assert np.isnan(add_marker_noise(markers, 0.0, jax.random.key(0), missing_fraction=1.0)).all()


@pytest.mark.parametrize(
    ("shape", "sigma_m", "fraction", "message"),
    [
        ((4, 2), 0.1, 0.0, r"markers has shape \(4, 2\)"),
        ((4, 3), -0.1, 0.0, "sigma_m is -0.1"),
        ((4, 3), 0.1, 1.5, "missing_fraction is 1.5; valid is 0 to 1"),
    ],
)
def test_invalid_noise_is_refused(shape, sigma_m, fraction, message):
    with pytest.raises(ShapeError, match=message):
        add_marker_noise(np.zeros(shape), sigma_m, jax.random.key(0), fraction)
