"""The kinematic lifter: its body is the spine model, and no network leaves what a body can do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lifting_clips import make_batch, make_statistics
from scipy.spatial.transform import Rotation

from simspine_jax.capture.tissue import rigid_keypoints
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.lifting.body import SIZE_GROUPS, SpineBody
from simspine_jax.lifting.kinematic import (
    KinematicLifter,
    KinematicOptions,
    aligned_error,
    angle_of,
    mirrored_pose,
    rotation_of_columns,
)
from simspine_jax.lifting.normalisation import centred_view, rotation_to_axis
from simspine_jax.lifting.observations import LiftedBody, Target
from simspine_jax.lifting.varying import mirror_image
from simspine_jax.metrics.pose3d import RIGID_BONES, bone_lengths, p_mpjpe
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, REDUCED_NAMES, REGIONS, SWAP

pytestmark = pytest.mark.usefixtures("float32")

# float32 sums over a chain of ten bodies of a metre and a half in all.
CHAIN_M = 2e-6
SMALL = KinematicOptions(width=32, blocks=1, dropout=0.0)


@pytest.fixture(scope="module")
def spine(spine_osim, paper_markers) -> SpineModel:
    return load_model(spine_osim, paper_markers, dtype=jnp.float32)


@pytest.fixture(scope="module")
def body(spine: SpineModel) -> SpineBody:
    return SpineBody(spine)


def lifter(body: SpineBody, options: KinematicOptions = SMALL) -> KinematicLifter:
    return KinematicLifter(options, make_statistics(), body, rngs=nnx.Rngs(0))


def random_pose(spine: SpineModel, body: SpineBody, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    low, high = (np.asarray(x, float) for x in (spine.lower, spine.upper))
    low, high = np.where(np.isfinite(low), low, -1.5), np.where(np.isfinite(high), high, 1.5)
    q = random.uniform(low, high, (count, spine.n_free)).astype(np.float32)
    q[:, np.setdiff1d(np.arange(spine.n_free), body.internal)] = 0
    sizes = random.uniform(-1, 1, (count, len(SIZE_GROUPS))) * body.log_most
    return q, sizes.astype(np.float32)


def test_keypoints_are_those_of_forward_kinematics(spine: SpineModel, body: SpineBody) -> None:
    q, sizes = random_pose(spine, body, 20)
    offsets = 0.02 * np.random.default_rng(0).normal(size=(37, 3)).astype(np.float32)
    found = np.asarray(body.keypoints(jnp.asarray(q), jnp.asarray(sizes), jnp.asarray(offsets)))
    factors = np.asarray(body.scale_factors(jnp.asarray(sizes)))
    # Moved knees are what slides are about, and unequal factors what stretching is.
    assert q[:, spine.free_names.index("knee_angle_r")].max() > 2
    assert np.ptp(factors, axis=(1, 2)).min() > 0.1
    bodies = body._bodies
    for i in range(len(q)):
        poses = forward_kinematics(spine, q[i], scale_factors=factors[i])
        wanted = np.asarray(rigid_keypoints(spine, poses, jnp.asarray(factors[i])))
        wanted = wanted + np.einsum("kij,kj->ki", np.asarray(poses.body_rotations)[bodies], offsets)
        wanted = wanted - wanted[KEYPOINT_NAMES.index("hip")]
        np.testing.assert_allclose(found[i], wanted, rtol=0, atol=CHAIN_M)


def test_groups_reach_every_body_and_both_sides_alike(spine: SpineModel, body: SpineBody) -> None:
    for g, group in enumerate(SIZE_GROUPS):
        sizes = np.zeros(len(SIZE_GROUPS), np.float32)
        sizes[g] = body.log_most[g]
        factors = np.asarray(body.scale_factors(jnp.asarray(sizes)))
        assert factors.max() == pytest.approx(group.most, rel=1e-6)
        for name, own in zip(spine.body_names, factors, strict=True):
            if name.endswith("_r"):
                other = spine.body_names.index(name[:-2] + "_l")
                np.testing.assert_array_equal(own, factors[other])
    every = np.asarray(body.scale_factors(jnp.asarray(body.log_most)))
    assert (every > 1).all()


@pytest.mark.parametrize("strength", [0.0, 1.0, 1e3])
def test_no_network_can_leave_the_bounds(spine: SpineModel, body: SpineBody, strength: float) -> None:
    model = lifter(body)
    kernel = model.head.kernel
    kernel.set_value(strength * jax.random.normal(jax.random.key(1), kernel.get_value().shape, jnp.float32))
    seen, _ = make_batch(200)
    found = model(seen)
    assert found.body is not None
    q = np.asarray(found.body.q)
    assert (q >= np.asarray(spine.lower)).all()
    assert (q <= np.asarray(spine.upper)).all()
    assert (np.abs(np.asarray(found.body.log_scales)) <= body.log_most).all()
    assert np.isfinite(np.asarray(found.keypoints)).all()
    if strength == 1e3:
        # The test is about bounds: many are met exactly.
        assert (q[:, model.coordinates.bounded] == model.coordinates.high).mean() > 0.1
    turns = np.asarray(found.body.pelvis_rotation)
    np.testing.assert_allclose(
        np.einsum("nji,njk->nik", turns, turns),
        np.broadcast_to(np.eye(3), (200, 3, 3)),
        atol=1e-5,
    )


def test_left_and_right_are_treated_alike(spine: SpineModel, body: SpineBody) -> None:
    model, (seen, _) = lifter(body), make_batch(50)
    kernel = model.head.kernel
    kernel.set_value(0.02 * jax.random.normal(jax.random.key(1), kernel.get_value().shape, jnp.float32))
    own, other = model(seen).body, model(mirror_image(seen)).body
    assert own is not None
    assert other is not None
    back = mirrored_pose(body, other)
    for name in ("root", "pelvis_rotation", "log_scales"):
        np.testing.assert_allclose(getattr(back, name), getattr(own, name), atol=2e-5)
    apart = np.asarray(back.q - own.q)
    np.testing.assert_allclose(apart - 2 * np.pi * np.round(apart / (2 * np.pi)), 0, atol=2e-5)
    assert (np.asarray(own.q) >= np.asarray(spine.lower)).all()
    assert (np.asarray(own.q) <= np.asarray(spine.upper)).all()
    # Not alike without the mean.
    plain = model._pose(seen, None), mirrored_pose(body, model._pose(mirror_image(seen), None))
    assert np.abs(np.asarray(plain[0].q - plain[1].q)).max() > 0.01


def test_the_mirrored_pose_has_mirrored_keypoints(spine: SpineModel, body: SpineBody) -> None:
    q, sizes = random_pose(spine, body, 20)
    turns = Rotation.random(20, np.random.default_rng(0)).as_matrix().astype(np.float32)
    pose = LiftedBody(jnp.ones((20, 3)), jnp.asarray(turns), jnp.asarray(q), jnp.asarray(sizes))
    model = lifter(body)
    points, other = (np.asarray(model.posed(p).keypoints) for p in (pose, mirrored_pose(body, pose)))
    # The published markers of the neck lie beside the middle, and one clavicle's not where the other's is.
    assert np.abs(other - points[:, SWAP] * [-1.0, 1.0, 1.0]).max() < 0.006
    np.testing.assert_allclose(
        np.linalg.det(np.asarray(mirrored_pose(body, pose).pelvis_rotation)), 1, atol=1e-5
    )


def test_bones_keep_their_lengths_under_one_size(body: SpineBody) -> None:
    model, (seen, _) = lifter(body), make_batch(64)
    kernel = model.head.kernel
    kernel.set_value(0.3 * jax.random.normal(jax.random.key(1), kernel.get_value().shape, jnp.float32))
    own = model(seen)
    assert own.body is not None
    one = model.posed(own.body, own.body.log_scales.mean(axis=0))
    lengths = [np.asarray(bone_lengths(x.keypoints, bones=RIGID_BONES).values) for x in (own, one)]
    assert lengths[0].std(axis=0).max() > 1e-3
    assert lengths[1].std(axis=0).max() < CHAIN_M


def test_rotations_from_columns_are_proper_and_exact_for_rotations() -> None:
    wanted = Rotation.random(100, np.random.default_rng(0)).as_matrix().astype(np.float32)
    columns = np.concatenate([wanted[:, :, 0] * 3, wanted[:, :, 1] * 0.2 + wanted[:, :, 0]], axis=-1)
    found = np.asarray(rotation_of_columns(jnp.asarray(columns)))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.isfinite(np.asarray(jax.grad(lambda x: rotation_of_columns(x).sum())(jnp.zeros(6)))).all()


def test_angles_are_numpys_and_finite_at_the_origin() -> None:
    sine, cosine = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    np.testing.assert_allclose(
        angle_of(jnp.asarray(sine), jnp.asarray(cosine)), np.arctan2(sine, cosine), atol=1e-6
    )
    slopes = jax.grad(lambda x: angle_of(x[0], x[1]))(jnp.zeros(2))
    assert np.isfinite(np.asarray(slopes)).all()


def test_turning_the_camera_leaves_the_centred_view_as_it_is() -> None:
    random = np.random.default_rng(0)
    points = random.normal(0, 0.3, (30, 37, 3)) + np.array([0, 0, 5])
    turn = Rotation.from_rotvec(random.normal(0, 0.1, (30, 3)) * [1, 1, 0]).as_matrix()
    turned = np.einsum("nij,nkj->nki", turn, points)
    rays = [jnp.asarray((p[..., :2] / p[..., 2:]).astype(np.float32)) for p in (points, turned)]
    mask = jnp.asarray(random.random((30, 37)) > 0.1)
    before, after = (centred_view(r, mask) for r in rays)
    np.testing.assert_allclose(before.size, after.size, rtol=5e-3)
    # What is left is a roll about the axis of a fraction of a degree, and the second order of the centre.
    assert np.abs(np.asarray(before.points - after.points)).max() < 0.05
    assert np.abs(np.asarray(rays[0] - rays[1])).max() > 0.1
    np.testing.assert_array_equal(np.asarray(before.points)[~np.asarray(mask)], 0)


def test_the_smallest_rotation_to_the_axis() -> None:
    directions = np.random.default_rng(1).normal(size=(40, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    found = np.asarray(rotation_to_axis(jnp.asarray(directions, jnp.float32)))
    np.testing.assert_allclose(
        np.einsum("nij,nj->ni", found, unit), np.broadcast_to([0, 0, 1.0], (40, 3)), atol=1e-5
    )
    angles = Rotation.from_matrix(found).magnitude()
    np.testing.assert_allclose(angles, np.arccos(unit[:, 2]), atol=2e-3)


def test_gravity_is_seen_only_where_it_is_asked_for(body: SpineBody) -> None:
    seen, _ = make_batch(4)
    leaning = dataclasses.replace(seen, up=jnp.asarray(np.broadcast_to([1.0, 0, 0], (4, 3)), jnp.float32))
    for gravity in (True, False):
        model = lifter(body, dataclasses.replace(SMALL, gravity=gravity))
        moved = float(jnp.abs(model(seen).keypoints - model(leaning).keypoints).max())
        assert (moved > 1e-5) == gravity


def test_angle_errors_go_the_shorter_way_round(body: SpineBody) -> None:
    model, (_, target) = lifter(body), make_batch(1)
    axis = AXIS_NAMES.index("arm_flex_r")
    at = body.model.free_names.index("arm_flex_r")
    q = jnp.zeros((1, body.model.n_free)).at[0, at].set(3.0)
    known = jnp.zeros(target.kinematics_mask.shape, bool).at[0, axis].set(True)
    there = Target(target.keypoints, target.mask, target.kinematics.at[0, axis].set(-3.0), known)
    assert float(model.coordinates.error(q, there)) == pytest.approx(2 * np.pi - 6, abs=1e-5)


def test_the_aligned_term_is_the_metric(body: SpineBody) -> None:
    random = np.random.default_rng(0)
    found, wanted = jnp.asarray(random.normal(size=(2, 20, 37, 3)), jnp.float32)
    mask = jnp.ones((20, 37), bool)
    metric = float(p_mpjpe(found, wanted, mask, subset=REGIONS["spine"]).mean().values)
    assert float(aligned_error(found, wanted, mask)) == pytest.approx(metric, rel=1e-4)


@pytest.mark.parametrize("frames", [None, 3])
def test_the_loss_has_finite_derivatives_also_where_nothing_is_known(
    body: SpineBody, frames: int | None
) -> None:
    seen, target = make_batch(6) if frames is None else make_batch(6, frames)
    blank = jax.tree.map(lambda x: jnp.zeros_like(x) if x.dtype == bool else x, (seen, target))
    structure, params, rest = nnx.split(lifter(body), nnx.Param, ...)

    @jax.jit
    def slopes(params, batch):
        def loss_of(params):
            loss, parts = nnx.merge(structure, params, rest, copy=True).loss(*batch, key=jax.random.key(0))
            return loss, parts

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    for batch in ((seen, target), blank):
        (loss, _), gradients = slopes(params, batch)
        assert np.isfinite(float(loss))
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(gradients))


def test_other_keypoints_are_refused(body: SpineBody) -> None:
    with pytest.raises(ShapeError, match="valid are all 37"):
        KinematicLifter(SMALL, make_statistics(REDUCED_NAMES), body, rngs=nnx.Rngs(0))
