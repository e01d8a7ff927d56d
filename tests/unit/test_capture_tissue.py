"""The floor under a moving body, and what a body does beyond the rigid model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax import forward_kinematics
from simspine_jax.capture.actions import action_motion
from simspine_jax.capture.ground import set_on_floor
from simspine_jax.capture.subjects import make_subject
from simspine_jax.capture.tissue import TissueMotion, rigid_keypoints, true_keypoints
from simspine_jax.kinematics.curvature import keypoint_curvature
from simspine_jax.skeleton import KEYPOINT_NAMES, TRC_NAMES

RATE_HZ = 50.0
FRAMES = 150


@pytest.fixture(scope="module")
def subject(spine_model):
    return make_subject(spine_model, "S7")


@pytest.fixture(scope="module")
def on_floor(spine_model, subject):
    @jax.jit
    def place(q):
        poses = forward_kinematics(spine_model, q, scale_factors=subject.scale_factors)
        return set_on_floor(spine_model, q, poses, subject.scale_factors, RATE_HZ)

    def act(action, seed=0):
        return place(jnp.asarray(action_motion(spine_model, action, FRAMES, RATE_HZ, seed).q))

    return act


def marker(model, poses, name):
    return np.asarray(poses.markers)[:, model.marker_names.index(name)]


FEET = ("RHeel", "LHeel", "RBigToe", "LBigToe", "RSmallToe", "LSmallToe")


@pytest.mark.parametrize("action", ["Walking", "Sitting", "SittingDown", "Purchases"])
def test_feet_are_on_the_floor_and_not_in_it(spine_model, on_floor, action):
    _, poses = on_floor(action)
    height = np.stack([marker(spine_model, poses, name)[:, 1] for name in FEET], axis=1)
    assert height.min() > -0.02
    lowest = np.asarray(poses.markers)[..., 1].min(axis=1)
    assert lowest.max() < 0.06


def test_poses_are_those_of_the_coordinates(spine_model, subject, on_floor):
    q, poses = on_floor("WalkDog")
    again = forward_kinematics(spine_model, q, scale_factors=subject.scale_factors)
    np.testing.assert_allclose(poses.markers, again.markers, atol=1e-12)
    np.testing.assert_allclose(poses.body_positions, again.body_positions, atol=1e-12)


def test_a_walker_gets_on_by_not_sliding(spine_model, on_floor):
    _, poses = on_floor("Walking", 2)
    pelvis = np.asarray(poses.body_positions)[:, 0, ::2]
    speed = np.linalg.norm(np.diff(pelvis, axis=0), axis=1) * RATE_HZ
    assert 0.6 < speed.mean() < 1.6
    slide, lift = [], []
    for side in "RL":
        heel, toe = (marker(spine_model, poses, side + part) for part in ("Heel", "BigToe"))
        slide.append(np.linalg.norm(np.diff(0.5 * (heel + toe)[:, ::2], axis=0), axis=1) * RATE_HZ)
        lift.append(toe[:, 1].max())
    # The foot that stands turns with the walker, who goes round, so it isn't quite still.
    assert np.minimum(*slide).mean() < 0.45 * speed.mean()
    assert np.maximum(*slide).mean() > 1.5 * speed.mean()
    assert min(lift) > 0.04


def test_sitting_lowers_the_pelvis(spine_model, on_floor):
    _, standing = on_floor("Waiting")
    _, chair = on_floor("Sitting")
    _, floor = on_floor("SittingDown")
    height = [np.asarray(poses.body_positions)[:, 0, 1] for poses in (standing, chair, floor)]
    assert height[0].min() > 0.8
    assert 0.4 < height[1].mean() < 0.65
    assert height[2][0] > 0.8
    assert height[2].min() < 0.45
    assert np.abs(np.diff(height[2])).max() * RATE_HZ < 1.5


def still(n=1):
    return TissueMotion(jnp.zeros(n), jnp.zeros((n, 2)), jnp.zeros((n, 37, 3)))


def neutral(model, subject, **angles):
    q = np.zeros((1, model.n_free))
    for name, angle in angles.items():
        q[0, model.free_names.index(name)] = angle
    q = jnp.asarray(q)
    return q, forward_kinematics(model, q, scale_factors=subject.scale_factors)


def test_a_body_at_rest_has_the_models_keypoints(spine_model, subject):
    q, poses = neutral(spine_model, subject)
    rigid = np.asarray(rigid_keypoints(spine_model, poses, subject.scale_factors))
    for name in spine_model.marker_names:
        np.testing.assert_array_equal(rigid[:, TRC_NAMES.index(name)], marker(spine_model, poses, name))
    true = true_keypoints(spine_model, q, poses, subject.scale_factors, still())
    # Arms that hang hardly raise the shoulders; nothing else is displaced.
    np.testing.assert_allclose(true, rigid, atol=3e-4)


def test_the_face_is_a_face(spine_model, subject):
    _, poses = neutral(spine_model, subject)
    points = dict(
        zip(
            KEYPOINT_NAMES,
            np.asarray(rigid_keypoints(spine_model, poses, subject.scale_factors))[0],
            strict=True,
        )
    )
    for part, apart in (("eye", (0.05, 0.08)), ("ear", (0.12, 0.18))):
        left, right = points[f"left_{part}"], points[f"right_{part}"]
        assert apart[0] < right[2] - left[2] < apart[1]
        np.testing.assert_allclose(left[:2], right[:2])
        assert left[0] < points["nose"][0]
        assert points["nose"][1] < left[1] < points["head"][1]


def test_the_bow_bends_the_thorax_and_nothing_else(spine_model, subject):
    q, poses = neutral(spine_model, subject)
    rest = true_keypoints(spine_model, q, poses, subject.scale_factors, still())
    bowed = TissueMotion(jnp.array([0.004]), jnp.zeros((1, 2)), jnp.zeros((1, 37, 3)))
    moved = true_keypoints(spine_model, q, poses, subject.scale_factors, bowed)
    shift = np.linalg.norm(np.asarray(moved - rest)[0], axis=-1)
    bent = {KEYPOINT_NAMES[i] for i in np.flatnonzero(shift > 1e-9)}
    assert bent == {
        "spine_04",
        "spine_05",
        "left_latissimus",
        "right_latissimus",
        "left_clavicle",
        "right_clavicle",
    }
    before, after = keypoint_curvature(rest), keypoint_curvature(moved)
    assert 2 < np.rad2deg(after.kyphosis - before.kyphosis)[0] < 8
    assert abs(np.rad2deg(after.lordosis - before.lordosis)[0]) < 3


def test_the_neck_takes_part_in_a_nod(spine_model, subject):
    q, poses = neutral(spine_model, subject, neck_flexion=-0.4)
    rigid = rigid_keypoints(spine_model, poses, subject.scale_factors)
    true = true_keypoints(spine_model, q, poses, subject.scale_factors, still())
    forward = dict(zip(KEYPOINT_NAMES, np.asarray(true - rigid)[0, :, 0], strict=True))
    assert abs(forward["neck"]) < 1e-6
    assert 0 < forward["neck_02"] < forward["neck_03"] <= forward["nose"] < 0.03
    assert forward["nose"] == pytest.approx(forward["left_ear"])


def test_a_raised_arm_raises_its_shoulder(spine_model, subject):
    q, poses = neutral(spine_model, subject, arm_flex_r=2.5)
    rigid = rigid_keypoints(spine_model, poses, subject.scale_factors)
    up = np.asarray(true_keypoints(spine_model, q, poses, subject.scale_factors, still()) - rigid)[0, :, 1]
    assert up[KEYPOINT_NAMES.index("right_shoulder")] > 0.015
    assert abs(up[KEYPOINT_NAMES.index("left_shoulder")]) < 3e-4
    assert (up >= -1e-12).all()
