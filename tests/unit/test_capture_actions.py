"""The fifteen actions: limits at every instant, band, determinism, and plausible postures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from simspine_jax.capture.actions import ACTION_NAMES, FASTEST_HZ, STEP_SD_S, action_motion
from simspine_jax.capture.motion import LIMIT_MARGIN
from simspine_jax.errors import ShapeError, UnknownNameError

ROUNDING = 1e-9
WALKS = ("WalkDog", "Walking", "WalkTogether")


def column(model, motion, name):
    return np.rad2deg(motion.q[:, model.free_names.index(name)])


@pytest.mark.parametrize("action", ACTION_NAMES)
def test_limits_hold_at_every_instant(spine_model, action):
    lower, upper = np.asarray(spine_model.lower), np.asarray(spine_model.upper)
    clamped = np.isfinite(lower)
    margin = LIMIT_MARGIN * (upper - lower)[clamped]
    for seed in range(4):
        motion = action_motion(spine_model, action, 3000, 50.0, seed)
        # The bounds are of the motion as a function, so they speak of instants between frames too.
        assert (motion.lower[clamped] >= lower[clamped] + margin - ROUNDING).all()
        assert (motion.upper[clamped] <= upper[clamped] - margin + ROUNDING).all()
        assert (motion.q >= motion.lower - ROUNDING).all()
        assert (motion.q <= motion.upper + ROUNDING).all()
    assert clamped.sum() > 20


def test_bounds_are_nearly_reached(spine_model):
    motion = action_motion(spine_model, "SittingDown", 20000, 10.0, 0)
    for name in ("knee_angle_r", "hip_flexion_l", "arm_flex_r", "neck_rotation"):
        i = spine_model.free_names.index(name)
        assert 0.6 < np.ptp(motion.q[:, i]) / (motion.upper[i] - motion.lower[i]) <= 1


@pytest.mark.parametrize("action", ["Walking", "Purchases", "SittingDown", "Discussion"])
def test_hardly_anything_is_faster_than_the_band(spine_model, action):
    rate_hz, n_frames = 20.0, 4000
    motion = action_motion(spine_model, action, n_frames, rate_hz, 1)
    # In the person's own frame: in ground, tilt and list change places as the person goes round.
    turned = spine_model.free_indices(["pelvis_tilt", "pelvis_list", "pelvis_rotation"])
    q = np.concatenate([np.delete(motion.q, turned, axis=1), motion.root[:, 1:]], axis=1)
    q = q[:, np.ptp(q, axis=0) > 0]
    frequency = np.fft.rfftfreq(n_frames, 1 / rate_hz)
    power = np.abs(np.fft.rfft((q - q.mean(axis=0)) * np.hanning(n_frames)[:, None], axis=0)) ** 2
    # Changes of posture die away as a Gaussian, to less than a ten thousandth at the band's end.
    assert np.exp(-2 * (np.pi * STEP_SD_S * FASTEST_HZ) ** 2) < 1e-4
    share = power[frequency > 1.25 * FASTEST_HZ].sum(axis=0) / power.sum(axis=0)
    assert share.max() < 1e-5
    assert (power[frequency > 0.4 * FASTEST_HZ].sum(axis=0) / power.sum(axis=0)).max() > 1e-3


@pytest.mark.parametrize("action", ACTION_NAMES)
def test_motion_is_a_function_of_seed_and_time(spine_model, action):
    motion = action_motion(spine_model, action, 120, 100.0, 7)
    np.testing.assert_array_equal(motion.q, action_motion(spine_model, action, 120, 100.0, 7).q)
    slower = action_motion(spine_model, action, 50, 50.0, 7)
    np.testing.assert_allclose(motion.q[:100:2], slower.q, atol=ROUNDING)
    assert not np.allclose(motion.q, action_motion(spine_model, action, 120, 100.0, 8).q, atol=1e-2)


@pytest.mark.parametrize("action", ACTION_NAMES)
def test_every_free_coordinate_moves(spine_model, action):
    motion = action_motion(spine_model, action, 3000, 50.0, 0)
    slides = spine_model.free_indices(["pelvis_tx", "pelvis_ty", "pelvis_tz"])
    still = np.ptp(motion.q, axis=0) < np.deg2rad(0.5)
    assert set(np.flatnonzero(still)) == set(slides)


@pytest.mark.parametrize("action", ["Sitting", "Waiting", "Purchases"])
def test_feet_on_the_ground_stay_flat(spine_model, action):
    motion = action_motion(spine_model, action, 1500, 50.0, 2)
    tilt = np.rad2deg(motion.root[:, 1])
    for side in "rl":
        hip, knee, ankle = (
            column(spine_model, motion, f"{part}_{side}")
            for part in ("hip_flexion", "knee_angle", "ankle_angle")
        )
        assert np.median(np.abs(tilt + hip - knee + ankle)) < 0.01
        assert np.abs(tilt + hip - knee + ankle).max() < 25  # while a foot is lifted to turn


def test_sitters_sit_and_walkers_walk(spine_model):
    def knee(action, seed=0):
        return column(spine_model, action_motion(spine_model, action, 2000, 50.0, seed), "knee_angle_r")

    for action in ("Sitting", "Eating", "Phoning", "Smoking"):
        assert knee(action).min() > 70
    for action in ("Directions", "Photo", "Waiting"):
        assert np.median(knee(action)) < 20
    floor = knee("SittingDown")
    assert floor[0] < 20
    assert floor.max() > 95
    for action in WALKS:
        motion = action_motion(spine_model, action, 2000, 50.0, 3)
        right, left = (column(spine_model, motion, f"hip_flexion_{side}") for side in "rl")
        assert np.corrcoef(right, left)[0, 1] < -0.7
        assert abs(np.rad2deg(motion.root[-1, 0] - motion.root[0, 0])) > 1500  # rounds


@pytest.mark.parametrize("action", ACTION_NAMES)
def test_shoulders_keep_off_their_singularity(spine_model, action):
    for seed in range(3):
        motion = action_motion(spine_model, action, 1000, 20.0, seed)
        for side in "rl":
            assert np.abs(column(spine_model, motion, f"arm_add_{side}") + 90).min() > 8


def test_tilt_and_list_are_the_persons_own(spine_model):
    motion = action_motion(spine_model, "Purchases", 500, 50.0, 5)
    names = ["pelvis_tilt", "pelvis_list", "pelvis_rotation"]
    angles = motion.q[:, spine_model.free_indices(names)]
    np.testing.assert_allclose(
        Rotation.from_euler("ZXY", angles).as_matrix(),
        Rotation.from_euler("YZX", motion.root).as_matrix(),
        atol=1e-12,
    )
    assert np.ptp(motion.root[:, 0]) > 0.5
    assert np.abs(np.diff(angles, axis=0)).max() < 0.1


def test_wrong_arguments_are_refused(spine_model):
    with pytest.raises(UnknownNameError, match=r"Dancing.*it has: Directions"):
        action_motion(spine_model, "Dancing", 10, 50.0, 0)
    with pytest.raises(ShapeError, match="n_frames is 0"):
        action_motion(spine_model, "Walking", 0, 50.0, 0)
    with pytest.raises(ShapeError, match="rate_hz is 4"):
        action_motion(spine_model, "Walking", 10, 4.0, 0)
