"""Angles of joints of three crossed axes, brought together along a clip."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simspine_jax as ssj
from simspine_jax.capture.actions import action_motion
from simspine_jax.kinematics.crossed import settled

ARMS = [f"arm_{axis}_{side}" for side in "rl" for axis in ("flex", "add", "rot")]


@pytest.fixture(scope="module")
def motion(spine_model):
    """Twelve seconds of arms that are raised above the shoulders and lowered, [T Q]."""
    return np.asarray(action_motion(spine_model, "Greeting", 300, 25.0, 0).q, np.float64)[::5]


def columns(model) -> list[list[int]]:
    found = [int(i) for i in model.free_indices(ARMS)]
    return [found[:3], found[3:]]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_whole_turns_and_other_sets_of_angles_are_undone(spine_model, motion, seed: int, share: float):
    random, q = np.random.default_rng(seed), motion.copy()
    for joint in columns(spine_model):
        a, b, c = q[:, joint].T
        flip = random.uniform(size=len(q)) < share
        other = np.stack([a + np.pi, np.pi - b, c - np.pi], axis=1)
        q[:, joint] = np.where(flip[:, None], other, q[:, joint])
        q[:, joint] += 2 * np.pi * random.integers(-3, 4, (len(q), 3))
    np.testing.assert_allclose(settled(spine_model, q), motion, atol=1e-12)


def test_where_no_angle_is_astray_the_pose_is_the_same_one(spine_model):
    """Whatever the angles: of random poses only those about the limb may have been changed."""
    q = np.tile(np.asarray(spine_model.default_q, np.float64), (64, 1))
    joints = columns(spine_model)
    q[:, joints[0]] = np.random.default_rng(0).uniform(-9, 9, (64, 3))
    found = settled(spine_model, q)
    elbow = spine_model.marker_indices(["RElbow"])[0]
    before, after = (
        np.asarray(ssj.forward_kinematics(spine_model, jnp.asarray(x)).markers) for x in (q, found)
    )
    turned = (found[:, joints[0][2]] - q[:, joints[0][2]]) / np.pi
    same = np.abs(turned - np.round(turned)) < 1e-9
    assert 10 < same.sum() < 64
    np.testing.assert_allclose(after[same], before[same], atol=1e-9)
    # The elbow lies within 3 cm of the axis about which the limb turns.
    assert np.linalg.norm(after - before, axis=-1)[:, elbow].max() < 0.06


def test_a_limb_turned_the_wrong_way_round_gets_its_neighbours_angle(spine_model, motion):
    q, joint = motion.copy(), columns(spine_model)[1]
    q[20:24, joint[2]] += np.pi
    found = settled(spine_model, q)
    line = np.interp(range(20, 24), [19, 24], motion[[19, 24], joint[2]])
    np.testing.assert_allclose(found[20:24, joint[2]], line, atol=1e-12)
    np.testing.assert_allclose(
        np.delete(found, range(20, 24), axis=0), np.delete(motion, range(20, 24), axis=0)
    )


def test_joints_left_alone_bounded_ones_and_frames_without_a_pose_stay(spine_model, motion):
    q = motion.copy()
    root = [int(i) for i in spine_model.root.hinges]
    hip = [int(i) for i in spine_model.free_indices(["hip_flexion_r", "hip_adduction_r", "hip_rotation_r"])]
    q[:, root + hip] += 2 * np.pi * np.random.default_rng(1).integers(-2, 3, (len(q), 6))
    q[[3, 40]] = np.nan
    np.testing.assert_array_equal(settled(spine_model, q, except_for=root)[:, root + hip], q[:, root + hip])
    assert not np.isfinite(settled(spine_model, q)[[3, 40]]).any()
    np.testing.assert_array_equal(settled(spine_model, np.full_like(q, np.nan)), np.full_like(q, np.nan))
