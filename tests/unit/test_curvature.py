"""Cobb angles of shapes that are known, vertebral rotations against the model's coordinates and SciPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from simspine_jax import expand_coordinates, forward_kinematics
from simspine_jax.capture import synthetic_motion
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.kinematics.curvature import (
    COLUMN_NAMES,
    ENDPLATES_DEG,
    VERTEBRAL_LEVELS,
    body_curvature,
    column_curvature,
    euler_zxy,
    keypoint_curvature,
    matrix_zxy,
    vertebral_rotations,
)
from simspine_jax.skeleton import KEYPOINT_NAMES, LUMBAR_MOTIONS, TRC_NAMES

RIGHT = np.array([0.0, 0.0, 1.0])
ROUNDING = 1e-12
# The spline's tangents on an arc of at most 20 degrees a piece.
SPLINE_DEG = 0.05

angles = st.floats(-np.pi, np.pi)
quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)


def arc(angle, n=7, length=0.5):
    """Points on a circle, or a straight line, whose tangent leans further forward by ``angle`` in all."""
    along = np.linspace(0, 1, n)
    half = angle * along / 2
    chord = length * along * np.sinc(half / np.pi)
    return np.stack([chord * np.sin(half), chord * np.cos(half), np.zeros(n)], axis=-1)


def turned(points, quaternion):
    return Rotation.from_quat(quaternion).apply(points)


@settings(max_examples=40, deadline=None)
@given(st.floats(-1.8, 1.8), quaternions)
def test_an_arc_has_the_angle_between_its_radii(angle, quaternion):
    column, right = turned(arc(angle), quaternion), turned(RIGHT, quaternion)
    found = column_curvature(column, right)
    # On a curve that bends forward only, the trunk leans less and less forward from S1 up: no lordosis.
    piece = angle / 6
    assert np.rad2deg(found.lordosis) == pytest.approx(np.rad2deg(-2.5 * piece), abs=SPLINE_DEG)
    assert np.rad2deg(found.kyphosis) == pytest.approx(np.rad2deg(2 * piece), abs=SPLINE_DEG)


def test_a_lordotic_arc_below_a_kyphotic_one():
    below, above = arc(-0.7, 4), arc(0.6, 4)
    lean = Rotation.from_euler("z", 0.7)
    column = np.concatenate([below, below[-1] + lean.apply(above)[1:]])
    found = column_curvature(column, RIGHT)
    # The tangents are wanted half way along the first piece, and two pieces above the turning point, where
    # the curvature jumps and a cubic spline rounds it off.
    assert np.rad2deg(found.lordosis) == pytest.approx(np.rad2deg(0.7 * 2.5 / 3), abs=5)
    assert np.rad2deg(found.kyphosis) == pytest.approx(np.rad2deg(0.6 * 2 / 3), abs=5)


def test_lateral_bending_is_no_lordosis():
    sideways = arc(0.8)[:, [2, 1, 0]]
    found = column_curvature(sideways, RIGHT)
    assert abs(float(found.lordosis)) < ROUNDING
    assert abs(float(found.kyphosis)) < ROUNDING


def keypoints_of(model, markers):
    keypoints = np.full((*markers.shape[:-2], 37, 3), np.nan)
    for i, name in enumerate(TRC_NAMES):
        if name in model.marker_names:
            keypoints[..., i, :] = markers[..., model.marker_names.index(name), :]
    return keypoints


def test_the_models_neutral_spine(spine_model):
    poses = forward_kinematics(spine_model, jnp.zeros(spine_model.n_free))
    bodies = body_curvature(spine_model.body_names, poses.body_rotations)
    rises = {level: rise for level, (_, rise) in ENDPLATES_DEG.items()}
    assert np.rad2deg(bodies.lordosis) == pytest.approx(rises["L1 upper"] - rises["S1 upper"])
    assert np.rad2deg(bodies.kyphosis) == pytest.approx(rises["T12 lower"] - rises["T3 upper"])
    keypoints = keypoint_curvature(keypoints_of(spine_model, np.asarray(poses.markers)))
    assert 38 < np.rad2deg(keypoints.lordosis) < 46
    assert 28 < np.rad2deg(keypoints.kyphosis) < 36


def test_curvature_turns_with_nothing_but_the_spine(spine_model):
    names = spine_model.free_names
    q = np.zeros((5, spine_model.n_free))
    q[1:, :3] = np.random.default_rng(0).normal(size=(4, 3))
    q[2:, names.index("hip_flexion_r")] = 1.0
    q[3, names.index("L5_S1_Flex_Ext")] = -0.05
    q[4, names.index("L5_S1_Lat_Bending")] = 0.04
    poses = forward_kinematics(spine_model, q)
    bodies = body_curvature(spine_model.body_names, poses.body_rotations)
    points = keypoint_curvature(keypoints_of(spine_model, np.asarray(poses.markers)))
    for found in (bodies.lordosis, points.lordosis):
        np.testing.assert_allclose(found[:3], found[0], atol=1e-9)
        assert found[3] < found[0] - 0.15  # flexion takes lordosis away, several times its angle at L5-S1
        assert abs(found[4] - found[0]) < 0.05
    # L1 against the sacrum turns by the couplers' sum over L1 to S1.
    ratio = 1 + 1.8571 + 1.6429 + 1.1429 + 0.9286
    assert float(bodies.lordosis[3] - bodies.lordosis[0]) == pytest.approx(-0.05 * ratio, abs=1e-4)


def test_levels_are_the_models_joint_coordinates(spine_model):
    q = synthetic_motion(spine_model, 40, 50.0, 2)
    poses = forward_kinematics(spine_model, q)
    found = vertebral_rotations(spine_model.body_names, poses.body_rotations)
    coordinates = expand_coordinates(spine_model, q)
    neck = ("neck_flexion", "neck_bending", "neck_rotation")
    for level, name in enumerate(VERTEBRAL_LEVELS):
        axes = neck if name == "neck" else [f"{name}_{motion}" for motion in LUMBAR_MOTIONS]
        columns = np.array([spine_model.coordinate_names.index(axis) for axis in axes])
        np.testing.assert_allclose(found[:, level], coordinates[:, columns], atol=1e-10)


@settings(max_examples=80, deadline=None)
@given(angles, st.floats(-1.57, 1.57), angles)
def test_angles_and_matrix_are_inverse_and_scipys(a, b, c):
    matrix = matrix_zxy(jnp.array([a, b, c]))
    np.testing.assert_allclose(matrix, Rotation.from_euler("ZXY", [a, b, c]).as_matrix(), atol=1e-14)
    np.testing.assert_allclose(matrix_zxy(euler_zxy(matrix)), matrix, atol=1e-7)


@pytest.mark.parametrize("b", [np.pi / 2, -np.pi / 2, np.pi / 2 - 1e-9, -np.pi / 2 + 1e-9])
def test_the_gimbal_keeps_the_rotation_and_finite_derivatives(b):
    matrix = matrix_zxy(jnp.array([0.4, b, 0.9]))
    found = euler_zxy(matrix)
    assert float(found[2]) == 0
    np.testing.assert_allclose(matrix_zxy(found), matrix, atol=1e-7)
    assert np.isfinite(jax.jacrev(euler_zxy)(matrix)).all()
    assert np.isfinite(jax.jacfwd(euler_zxy)(matrix)).all()


def test_derivatives_agree_with_differences():
    column = jnp.asarray(arc(-0.6) + 0.01 * np.random.default_rng(1).normal(size=(7, 3)))

    def lordosis(x):
        return column_curvature(x, jnp.asarray(RIGHT)).lordosis

    step = 1e-6 * np.random.default_rng(2).normal(size=(7, 3))
    slope = float((jax.grad(lordosis)(column) * step).sum())
    difference = float(lordosis(column + step) - lordosis(column - step)) / 2
    assert slope == pytest.approx(difference, rel=1e-6)


@pytest.mark.usefixtures("float32")
def test_float32_and_batches():
    rng = np.random.default_rng(3)
    keypoints = jnp.asarray(rng.normal(size=(2, 5, 37, 3)), jnp.float32)
    found = keypoint_curvature(keypoints)
    assert found.lordosis.shape == found.kyphosis.shape == (2, 5)
    assert found.lordosis.dtype == jnp.float32
    assert euler_zxy(matrix_zxy(jnp.ones((2, 3), jnp.float32))).dtype == jnp.float32
    single = keypoint_curvature(keypoints[1, 2])
    np.testing.assert_allclose(single.kyphosis, found.kyphosis[1, 2], rtol=1e-4)


def test_a_missing_keypoint_gives_nan_and_only_there():
    rng = np.random.default_rng(3)
    keypoints = rng.normal(size=(2, 37, 3))
    keypoints[0, KEYPOINT_NAMES.index("spine_02")] = np.nan
    keypoints[1, KEYPOINT_NAMES.index("left_ankle")] = np.nan
    found = keypoint_curvature(keypoints)
    np.testing.assert_array_equal(np.isnan(found.lordosis), [True, False])


def test_wrong_shapes_and_names_are_refused():
    with pytest.raises(ShapeError, match=r"valid is \[..., 37, 3\]"):
        keypoint_curvature(jnp.zeros((4, 36, 3)))
    with pytest.raises(ShapeError, match=r"valid is \[..., 7, 3\]"):
        column_curvature(jnp.zeros((6, 3)), jnp.zeros(3))
    with pytest.raises(UnknownNameError, match="sacrum"):
        body_curvature(("pelvis",), jnp.zeros((1, 3, 3)))
    with pytest.raises(ShapeError, match=r"valid is \[..., 1, 3, 3\]"):
        vertebral_rotations(("pelvis",), jnp.zeros((2, 3, 3)))
    assert set(COLUMN_NAMES) <= set(KEYPOINT_NAMES)
