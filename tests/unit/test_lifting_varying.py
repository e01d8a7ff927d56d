"""Samples as other cameras would have seen them: against the model's kinematics, NumPy and SciPy."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from simspine_jax.kinematics.forward import expand_coordinates, forward_kinematics
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.lifting.body import SpineBody
from simspine_jax.lifting.observations import Observation, Target
from simspine_jax.lifting.varying import Variation, mirrored, other_pose, varied
from simspine_jax.skeleton import (
    AXIS_NAMES,
    AXIS_SIGNS,
    AXIS_SWAP,
    KEYPOINT_NAMES,
    N_KEYPOINTS,
    PAPER_MARKERS,
    SWAP,
    TRC_NAMES,
)

# Published markers of the neck lie 1.5 mm beside the middle; the model's sides differ by less than a micron.
PLACEMENT_M = 0.004
SINGLE_M = 2e-5
NO_CHANGE = Variation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
ROOT = KEYPOINT_NAMES.index("hip")


def samples(count: int = 6, *, noise: float = 0.0, frames: int | None = None) -> tuple[Observation, Target]:
    """People about four metres in front of a level camera."""
    random = np.random.default_rng(0)
    shape = (count,) if frames is None else (count, frames)
    points = random.normal(scale=0.35, size=(*shape, N_KEYPOINTS, 3)) + np.array([0.2, 0.1, 4.0])
    rays = points[..., :2] / points[..., 2:] + random.normal(scale=noise, size=(*shape, N_KEYPOINTS, 2))
    mask = np.ones((*shape, N_KEYPOINTS), bool)
    up = np.broadcast_to([0.0, -1.0, 0.0], (*shape, 3))
    angles = random.normal(scale=0.2, size=(*shape, len(AXIS_NAMES)))
    seen = Observation(
        jnp.asarray(900 * rays + 500), jnp.asarray(mask), jnp.full(mask.shape, 0.9), jnp.asarray(rays),
        jnp.asarray(up), KEYPOINT_NAMES,
    )  # fmt: skip
    known = jnp.ones((*shape, len(AXIS_NAMES)), bool)
    return seen, Target(jnp.asarray(points), jnp.asarray(mask), jnp.asarray(angles), known)


def test_a_mirrored_pose_has_mirrored_keypoints(spine_model: SpineModel) -> None:
    random = np.random.default_rng(1)
    model = spine_model
    lower, upper = (np.clip(np.asarray(x), -0.6, 0.6) for x in (model.lower, model.upper))
    q = random.uniform(lower, upper, size=(20, model.n_free))
    coordinates = np.zeros((20, len(AXIS_NAMES)))
    full = np.asarray(expand_coordinates(model, jnp.asarray(q)))
    for column, name in enumerate(AXIS_NAMES):
        coordinates[:, column] = full[:, model.coordinate_names.index(name)]
    turned = AXIS_SIGNS * coordinates[:, AXIS_SWAP]
    other = np.stack([turned[:, AXIS_NAMES.index(name)] for name in model.free_names], axis=-1)
    # The couplers of the mirrored pose give its dependent axes, too.
    full_other = np.asarray(expand_coordinates(model, jnp.asarray(other)))
    columns = [model.coordinate_names.index(name) for name in AXIS_NAMES]
    np.testing.assert_allclose(full_other[:, columns], turned, atol=1e-9)
    points, flipped = (_markers(model, pose) for pose in (q, other))
    wanted = points[:, _partners(model)] * [1.0, 1.0, -1.0]
    assert np.abs(flipped - wanted).max() < PLACEMENT_M


def _markers(model: SpineModel, q: np.ndarray) -> np.ndarray:
    return np.asarray(forward_kinematics(model, jnp.asarray(q)).markers)


def _partners(model: SpineModel) -> list[int]:
    names = [m.name for m in PAPER_MARKERS]
    partner = {name: TRC_NAMES[SWAP[TRC_NAMES.index(name)]] for name in names}
    return [model.marker_names.index(partner[name]) for name in model.marker_names]


def test_nothing_changes_without_variation() -> None:
    seen, target = samples(noise=0.01)
    found, truth = varied(seen, target, NO_CHANGE, jax.random.key(0))
    np.testing.assert_allclose(found.rays, seen.rays, atol=1e-9)
    np.testing.assert_allclose(truth.keypoints, target.keypoints, atol=1e-9)
    np.testing.assert_array_equal(found.mask, seen.mask)
    assert not truth.kinematics_mask[..., :6].any()
    assert truth.kinematics_mask[..., 6:].all()


@pytest.mark.parametrize("frames", [None, 5])
def test_rays_are_the_pictures_of_what_was_turned(frames: int | None) -> None:
    seen, target = samples(frames=frames)
    found, truth = varied(
        seen, target, Variation(0.5, turn_deg=180.0, tilt_deg=10.0, distance=0.2), jax.random.key(1)
    )
    points = np.asarray(truth.keypoints)
    np.testing.assert_allclose(found.rays, points[..., :2] / points[..., 2:], atol=1e-9)

    def between(values: np.ndarray) -> np.ndarray:
        return np.linalg.norm(values[..., :, None, :] - values[..., None, :, :], axis=-1)

    shapes = between(np.asarray(target.keypoints))
    either = np.minimum(
        np.abs(between(points) - shapes).max(axis=(-1, -2)),
        np.abs(between(points[..., SWAP, :]) - shapes).max(axis=(-1, -2)),
    )
    assert either.max() < SINGLE_M
    assert np.abs(points - np.asarray(target.keypoints)).max() > 0.1


def test_a_turn_is_about_the_vertical_and_the_root() -> None:
    seen, target = samples()
    _, truth = varied(
        seen, target, Variation(0.0, turn_deg=90.0, tilt_deg=0.0, distance=0.0), jax.random.key(2)
    )
    points, before = np.asarray(truth.keypoints), np.asarray(target.keypoints)
    np.testing.assert_allclose(points[:, ROOT], before[:, ROOT], atol=1e-9)
    np.testing.assert_allclose(points[..., 1], before[..., 1], atol=1e-9)
    for now, then in zip(points - points[:, ROOT, None], before - before[:, ROOT, None], strict=True):
        turn, _ = Rotation.align_vectors(now, then)
        assert abs(turn.as_rotvec()[[0, 2]]).max() < 1e-6


def test_errors_of_the_detector_shrink_with_distance() -> None:
    seen, target = samples(noise=0.01)
    found, truth = varied(
        seen, target, Variation(0.0, turn_deg=0.0, tilt_deg=0.0, distance=0.3), jax.random.key(3)
    )
    nearer = np.asarray(truth.keypoints)[:, ROOT, 2] / np.asarray(target.keypoints)[:, ROOT, 2]
    assert nearer.min() < 0.9 < 1.1 < nearer.max()

    def error(s: Observation, t: Target) -> np.ndarray:
        points = np.asarray(t.keypoints)
        return np.asarray(s.rays) - points[..., :2] / points[..., 2:]

    np.testing.assert_allclose(error(found, truth), error(seen, target) / nearer[:, None, None], atol=1e-9)


def test_unknown_places_are_not_seen_and_samples_without_a_root_stay() -> None:
    seen, target = samples(noise=0.01)
    mask = np.asarray(target.mask).copy()
    mask[0, 5] = False
    mask[1, ROOT] = False
    target = Target(target.keypoints, jnp.asarray(mask), target.kinematics, target.kinematics_mask)
    found, truth = varied(
        seen, target, Variation(0.0, turn_deg=25.0, tilt_deg=4.0, distance=0.1), jax.random.key(4)
    )
    assert not found.mask[0, 5]
    assert found.mask[0].sum() == N_KEYPOINTS - 1
    np.testing.assert_array_equal(found.rays[1], seen.rays[1])
    np.testing.assert_array_equal(truth.keypoints[1], target.keypoints[1])


@pytest.fixture(scope="module")
def body(spine_osim: Path, paper_markers: Path) -> SpineBody:
    return SpineBody(load_model(spine_osim, paper_markers, dtype=jnp.float32))


@pytest.mark.parametrize("frames", [None, 4])
def test_another_pose_moves_keypoints_as_kinematics_says(
    body: SpineBody, frames: int | None, float32: None
) -> None:
    random, model = np.random.default_rng(3), body.model
    shape = (5,) if frames is None else (5, frames)
    q = np.zeros((*shape, model.n_free), np.float32)
    low, high = (np.clip(np.asarray(x)[body.internal], -0.5, 0.5) for x in (model.lower, model.upper))
    q[..., body.internal] = random.uniform(low, high, (*shape, len(body.internal)))
    turn = Rotation.random(random_state=0).as_matrix()
    no_sizes = jnp.zeros((*shape, len(body.log_most)))
    still = jnp.zeros((N_KEYPOINTS, 3))
    points = np.asarray(body.keypoints(jnp.asarray(q), no_sizes, still)) @ turn.T + [0.0, 0.0, 4.0]
    axes = [AXIS_NAMES.index(model.free_names[i]) for i in body.internal]
    angles = np.zeros((*shape, len(AXIS_NAMES)), np.float32)
    angles[..., axes] = q[..., body.internal]
    known = jnp.ones((*shape, len(AXIS_NAMES)), bool)
    target = Target(
        jnp.asarray(points, jnp.float32), jnp.ones((*shape, N_KEYPOINTS), bool), jnp.asarray(angles), known
    )
    found = other_pose(body, target, Variation(pose_deg=6.0, body_sizes=0.0), jax.random.key(0))
    q[..., body.internal] = np.asarray(found.kinematics)[..., axes]
    wanted = np.asarray(body.keypoints(jnp.asarray(q), no_sizes, still)) @ turn.T + [0.0, 0.0, 4.0]
    np.testing.assert_allclose(found.keypoints, wanted, atol=SINGLE_M)
    change = np.degrees(np.asarray(found.kinematics) - angles)[..., axes]
    assert 2 < change.std() < 8
    if frames is not None:
        # Coordinates at a bound stop there; the others change alike through the window.
        arms = [i for i, a in enumerate(axes) if AXIS_NAMES[a] == "arm_rot_r"]
        assert np.abs(change[..., arms] - change[:, :1, arms]).max() < 1e-3
    assert np.asarray(found.kinematics_mask).sum() == np.prod(shape) * len(axes)
    low, high = (np.asarray(x) for x in (model.lower, model.upper))
    assert ((q >= low - 1e-6) & (q <= high + 1e-6))[..., body.internal].all()


def test_another_body_is_larger_or_smaller_and_an_unknown_pose_stays(body: SpineBody, float32: None) -> None:
    seen, target = (jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, part)
                    for part in samples())  # fmt: skip
    del seen
    mask = np.asarray(target.kinematics_mask).copy()
    mask[0, AXIS_NAMES.index("neck_flexion")] = False
    target = Target(target.keypoints, target.mask, target.kinematics, jnp.asarray(mask))
    found = other_pose(
        body, target, Variation(pose_deg=0.0, lumbar_deg=0.0, body_sizes=0.05), jax.random.key(1)
    )
    np.testing.assert_array_equal(found.keypoints[0], target.keypoints[0])
    np.testing.assert_array_equal(found.kinematics_mask[0], mask[0])
    moved = np.abs(np.asarray(found.keypoints - target.keypoints)[1:]).max(axis=(1, 2))
    assert moved.min() > 1e-4


def test_mirroring_twice_gives_the_sample_back() -> None:
    seen, target = samples(noise=0.01)
    which = jnp.array([True, False] * 3)
    once = mirrored(seen, target, which)
    np.testing.assert_array_equal(once[0].rays[1], seen.rays[1])
    assert np.abs(once[0].rays[0] - seen.rays[0]).max() > 0.01
    twice = mirrored(*once, which)
    for now, then in zip(jax.tree.leaves(twice), jax.tree.leaves((seen, target)), strict=True):
        np.testing.assert_array_equal(now, then)


def test_derivatives_are_finite() -> None:
    seen, target = samples()

    def total(rays: jax.Array) -> jax.Array:
        changed = Observation(
            seen.pixels, seen.mask.at[0].set(False), seen.confidence, rays, seen.up, KEYPOINT_NAMES
        )
        return varied(changed, target, Variation(), jax.random.key(5))[0].rays.sum()

    assert np.isfinite(np.asarray(jax.grad(total)(seen.rays))).all()
