"""Triangulation against Pose2Sim's own result, on rigs whose answer is known, and its derivatives."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from simspine_jax.geometry import frames
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.geometry.triangulation import (
    CPU_BLOCK,
    MAX_ENUMERATED_VIEWS,
    NOISE_PX,
    Triangulated,
    TriangulationStatus,
    triangulate_robust,
    triangulate_weighted,
)
from simspine_jax.io import MarkerTrajectory, read_trc, zup_to_yup

# m; the reference's points are stored in single precision.
PARITY = 1e-5
# m; what the project promises of the robust method on the real trial.
NEAR = 0.025
# m; without noise, what the solvers' steps leave in float64.
EXACT = 1e-9

LENS = np.array([-0.2071, 0.2478, -0.00142, -0.00098, -0.0031, 0, 0, 0])

METHODS = pytest.mark.parametrize(
    "triangulate",
    [partial(triangulate_weighted, undistorted=True), triangulate_robust],
    ids=["weighted", "robust"],
)


class Demo(NamedTuple):
    cameras: Cameras
    keypoints: jax.Array
    confidence: jax.Array
    reference: np.ndarray  # [T K 3] m, Z up; NaN where Pose2Sim found no point


@pytest.fixture(scope="module")
def demo(shared_data: Path) -> Demo:
    """Pose2Sim's own trial; read here apart from the library's readers."""
    folder = shared_data / "pose2sim_demo"
    blocks = tomllib.loads((folder / "calibration.toml").read_text())
    entries = [block for name, block in blocks.items() if name != "metadata"]
    matrix = np.array([entry["matrix"] for entry in entries])
    cameras = Cameras(
        rotations=Rotation.from_rotvec([entry["rotation"] for entry in entries]).as_matrix(),
        translations=np.array([entry["translation"] for entry in entries]),
        focal_lengths=matrix[:, [0, 1], [0, 1]],
        principal_points=matrix[:, :2, 2],
        skews=matrix[:, 0, 1],
        distortion=np.pad([entry["distortions"] for entry in entries], ((0, 0), (0, 4))),
        sizes=np.array([entry["size"] for entry in entries]),
        names=tuple(entry["name"] for entry in entries),
    )
    trc = read_trc(folder / "markers_raw.trc")
    with np.load(folder / "keypoints_2d.npz") as stored:
        names = list(stored["keypoint_names"])
        values = stored["keypoints_associated"].astype(float).swapaxes(0, 1)
    values = values[:, :, [names.index(name) for name in trc.names]]
    reference = np.asarray(frames.yup_to_zup(jnp.asarray(trc.positions)))
    return Demo(cameras, jnp.asarray(values[..., :2]), jnp.asarray(values[..., 2]), reference)


def distance(result: Triangulated, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.asarray(result.points, float) - points, axis=-1)


def test_weighted_gives_pose2sims_points(demo: Demo) -> None:
    result = triangulate_weighted(demo.cameras, demo.keypoints, demo.confidence)
    off = distance(result, demo.reference)
    # Pose2Sim has filled the six others by interpolation afterwards.
    present = np.asarray(result.status) == TriangulationStatus.OK
    assert present.sum() == 2094
    assert off[present].max() < PARITY
    assert np.isnan(off[~present]).all()
    counts = np.bincount(np.asarray(result.views).sum(axis=1)[present])
    assert (counts[2:] > 100).all()  # views were dropped, one and two of them


@pytest.mark.usefixtures("float32")
def test_weighted_gives_them_in_single_precision(demo: Demo) -> None:
    keypoints, confidence = (jnp.asarray(x, jnp.float32) for x in demo[1:3])
    result = triangulate_weighted(demo.cameras, keypoints, confidence)
    assert result.points.dtype == jnp.float32
    off = distance(result, demo.reference)
    assert np.isfinite(off).sum() == 2094
    assert np.nanmax(off) < PARITY


def test_robust_stays_near_where_all_views_together_go_astray(demo: Demo) -> None:
    together = triangulate_weighted(demo.cameras, demo.keypoints, demo.confidence, max_reprojection_px=np.inf)
    assert np.nanmax(distance(together, demo.reference)) > 2.0
    off = distance(triangulate_robust(demo.cameras, demo.keypoints, demo.confidence), demo.reference)
    assert np.isfinite(off).sum() == 2094
    assert np.nanmax(off) < NEAR
    # Pose2Sim takes this rig's lenses, bent by a hundredth of a pixel, for straight ones.
    straight = replace(demo.cameras, distortion=np.zeros((4, 8)))
    off = distance(triangulate_robust(straight, demo.keypoints, demo.confidence), demo.reference)
    assert np.isfinite(off).sum() == 2094
    assert np.nanmax(off) < NEAR


@pytest.mark.usefixtures("float32")
def test_robust_stays_near_in_single_precision(demo: Demo) -> None:
    keypoints, confidence = (jnp.asarray(x, jnp.float32) for x in demo[1:3])
    off = distance(triangulate_robust(demo.cameras, keypoints, confidence), demo.reference)
    assert np.isfinite(off).sum() == 2094
    assert np.nanmax(off) < NEAR


def ring(n_views: int = 4, *, lens: np.ndarray = LENS) -> Cameras:
    """Cameras around the origin at 4 m, looking at it from above."""
    angles = np.linspace(0, 2 * np.pi, n_views, endpoint=False) + 0.3
    centers = np.stack([4 * np.cos(angles), 4 * np.sin(angles), 1 + 0.3 * np.sin(3 * angles)], axis=-1)
    forward = -centers / np.linalg.norm(centers, axis=-1, keepdims=True)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    rotations = np.stack([right, np.cross(forward, right), forward], axis=1)
    return Cameras(
        rotations=rotations,
        translations=-np.einsum("vij,vj->vi", rotations, centers),
        focal_lengths=np.full((n_views, 2), [1145.0, 1143.0]),
        principal_points=np.full((n_views, 2), [512.0, 515.0]),
        skews=np.full(n_views, 0.5),
        distortion=np.tile(lens, (n_views, 1)),
        sizes=np.full((n_views, 2), 1000.0),
        names=tuple(f"camera {v}" for v in range(n_views)),
    )


def seen_by(cameras: Cameras, points: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Keypoints [T V K 2] of points [T K 3], and confidences that differ."""
    keypoints = jnp.swapaxes(project(cameras, jnp.asarray(points)).keypoints, 1, 2)
    confidence = np.random.default_rng(3).uniform(0.5, 1, keypoints.shape[:3])
    return keypoints, jnp.asarray(confidence)


def body(n_frames: int = 6, n_points: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.8, 0.8, (n_frames, n_points, 3))


@METHODS
def test_exact_pictures_give_exact_points(triangulate) -> None:
    points = body()
    result = triangulate(ring(), *seen_by(ring(), points))
    np.testing.assert_allclose(result.points, points, atol=EXACT)
    assert np.asarray(result.views).all()
    assert np.nanmax(result.reprojection_px) < 1e-5
    assert (np.asarray(result.status) == TriangulationStatus.OK).all()


def test_bent_pictures_taken_for_straight_ones_give_other_points() -> None:
    points = body()
    result = triangulate_weighted(ring(), *seen_by(ring(), points))
    assert 1e-3 < np.median(distance(result, points)) < 0.1


@METHODS
@pytest.mark.parametrize("n_views", [4, MAX_ENUMERATED_VIEWS + 2])
def test_views_that_see_something_else_are_left_out(triangulate, n_views: int) -> None:
    cameras, points = ring(n_views), body(20)
    keypoints, confidence = seen_by(cameras, points)
    wrong = np.random.default_rng(1).integers(0, n_views, (20, 5))
    bad = np.arange(n_views)[None, :, None] == wrong[:, None]
    if n_views > 4:
        bad |= np.arange(n_views)[None, :, None] == (wrong[:, None] + 2) % n_views
    result = triangulate(cameras, keypoints + 200.0 * jnp.asarray(bad)[..., None], confidence)
    np.testing.assert_array_equal(result.views, ~bad)
    np.testing.assert_allclose(result.points, points, atol=EXACT)
    assert (np.asarray(result.reprojection_px)[bad] > 150).all()


@METHODS
def test_the_limit_on_reprojection_decides(triangulate) -> None:
    points = body()
    keypoints, confidence = seen_by(ring(), points)
    keypoints = keypoints.at[:, 0].add(10.0)
    loose = triangulate(ring(), keypoints, confidence)
    tight = triangulate(ring(), keypoints, confidence, max_reprojection_px=1.0)
    assert np.asarray(loose.views).all()
    np.testing.assert_array_equal(np.asarray(tight.views).all(axis=(0, 2)), [False, True, True, True])
    np.testing.assert_allclose(tight.points, points, atol=EXACT)


@METHODS
def test_keypoints_that_are_missing_or_doubted_do_not_count(triangulate) -> None:
    points = body()
    keypoints, confidence = seen_by(ring(), points)
    keypoints = keypoints.at[0, 1, 0].set(jnp.nan).at[1, 2].add(300.0)
    confidence = confidence.at[2, 3, 1].set(jnp.nan).at[1, 2].set(0.2)
    result = triangulate(ring(), keypoints, confidence)
    missing = np.zeros((6, 4, 5), bool)
    missing[0, 1, 0] = missing[2, 3, 1] = missing[1, 2] = True
    np.testing.assert_array_equal(result.views, ~missing)
    np.testing.assert_array_equal(np.isnan(result.reprojection_px), missing)
    np.testing.assert_allclose(result.points, points, atol=EXACT)
    believed = triangulate(ring(), keypoints, confidence, min_confidence=0.1)
    assert np.isfinite(np.asarray(believed.reprojection_px)[1, 2]).all()


@METHODS
def test_status_says_why_a_point_is_missing(triangulate) -> None:
    points = body(4, 1)
    keypoints, confidence = seen_by(ring(), points)
    confidence = confidence.at[1, 1:].set(jnp.nan)
    keypoints = keypoints.at[2].add(jnp.array([[0, 0], [0, 200], [0, 400.0], [0, -200]])[:, None])
    result = triangulate(ring(), keypoints, confidence)
    expected = [TriangulationStatus.OK, TriangulationStatus.TOO_FEW_VIEWS, TriangulationStatus.INCONSISTENT]
    np.testing.assert_array_equal(np.asarray(result.status)[:3, 0], expected)
    absent = np.isnan(result.points).any(axis=(1, 2))
    np.testing.assert_array_equal(absent, [False, True, True, False])
    assert np.isnan(np.asarray(result.covariance)[1:3]).all()
    assert not np.asarray(result.views)[1:3].any()


@METHODS
def test_one_place_of_view_gives_no_point(triangulate) -> None:
    cameras = ring().select(["camera 0", "camera 0"])
    result = triangulate(cameras, *seen_by(cameras, body()))
    status = np.asarray(result.status)
    # Where rounding puts the point decides whether its pictures fit.
    assert np.isin(status, [TriangulationStatus.DEGENERATE, TriangulationStatus.INCONSISTENT]).all()
    assert (status == TriangulationStatus.DEGENERATE).any()
    assert np.isnan(result.points).all()


@METHODS
def test_points_behind_a_camera_are_none(triangulate) -> None:
    """Two cameras that look away from each other agree on a point behind them."""
    cameras = ring(lens=np.zeros(8)).select(["camera 0", "camera 1"])
    turned = replace(cameras, rotations=cameras.rotations * [[[1.0], [-1], [-1]]])
    turned = replace(turned, translations=cameras.translations * [1.0, -1, -1])
    behind = turned.translations + np.einsum("vij,kj->kvi", turned.rotations, body(1, 5)[0])
    assert (behind[..., 2] < -1).all()
    plane = behind[..., :2] / behind[..., 2:]
    keypoints = plane * turned.focal_lengths + turned.principal_points
    keypoints[..., 0] += turned.skews * plane[..., 1]
    keypoints = jnp.asarray(keypoints.swapaxes(0, 1)[None])
    result = triangulate(turned, keypoints, jnp.ones((1, 2, 5)))
    assert (np.asarray(result.status) == TriangulationStatus.DEGENERATE).all()


@METHODS
def test_each_point_is_solved_alone(triangulate) -> None:
    cameras, points = ring(), body(CPU_BLOCK // 5 + 30)
    keypoints, confidence = seen_by(cameras, points)
    keypoints = keypoints + jnp.asarray(np.random.default_rng(0).normal(0, 8, keypoints.shape))
    whole = triangulate(cameras, keypoints, confidence)
    last = triangulate(cameras, keypoints[-2:], confidence[-2:])
    np.testing.assert_allclose(whole.points[-2:], last.points, atol=1e-10)
    np.testing.assert_array_equal(whole.views[-2:], last.views)
    used = np.asarray(whole.views).sum(axis=1)
    assert {2, 3, 4} <= set(used.ravel().tolist()) | {2}
    assert (used < 4).any()


@METHODS
def test_covariance_is_what_noise_does(triangulate) -> None:
    points = np.broadcast_to(body(1, 1), (4000, 1, 3))
    keypoints, _ = seen_by(ring(), points)
    confidence = jnp.broadcast_to(jnp.array([1.0, 0.5, 0.8, 0.9])[:, None], (4000, 4, 1))
    noise = np.random.default_rng(0).normal(0, NOISE_PX, keypoints.shape)
    noisy = keypoints + jnp.asarray(noise / confidence[..., None])
    result = triangulate(ring(), noisy, confidence, max_reprojection_px=np.inf)
    measured = np.cov(np.asarray(result.points)[:, 0].T)
    stated = np.asarray(result.covariance)[:, 0].mean(axis=0)
    # Four thousand draws settle a variance to 2 %; Huber's function and the linear rows cost a little.
    np.testing.assert_allclose(measured, stated, atol=0.08 * np.trace(stated))
    assert np.linalg.eigvalsh(stated).min() > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_robust_points_move_with_the_world(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn, shift = Rotation.random(rng=rng).as_matrix(), rng.uniform(-5, 5, 3)
    cameras, points = ring(), body(2, 3, seed)
    keypoints, confidence = seen_by(cameras, points)
    keypoints = keypoints + jnp.asarray(rng.normal(0, 3, keypoints.shape))
    moved = replace(
        cameras,
        rotations=cameras.rotations @ turn.T,
        translations=cameras.translations - np.einsum("vij,j->vi", cameras.rotations @ turn.T, shift),
    )
    here, there = (triangulate_robust(c, keypoints, confidence) for c in (cameras, moved))
    np.testing.assert_allclose(there.points, np.asarray(here.points) @ turn.T + shift, atol=1e-6)
    np.testing.assert_allclose(there.covariance, turn @ np.asarray(here.covariance) @ turn.T, atol=1e-9)


def test_a_smaller_huber_limit_trusts_a_stray_view_less() -> None:
    points = body()
    keypoints, confidence = seen_by(ring(), points)
    keypoints = keypoints.at[:, 0].add(15.0)
    assert np.asarray(triangulate_robust(ring(), keypoints, confidence).views).all()
    wide, narrow = (
        np.median(distance(triangulate_robust(ring(), keypoints, confidence, huber_px=px), points))
        for px in (20.0, 3.0)
    )
    assert narrow < 0.5 * wide


def test_a_view_fades_where_the_error_passes_the_limit() -> None:
    """Four cameras of which one is moved away step by step; the limit is passed on the way."""
    points = np.broadcast_to(body(1, 1), (2001, 1, 3))
    keypoints, _ = seen_by(ring(), points)
    confidence = jnp.ones(keypoints.shape[:3])

    def solve(shift_px: np.ndarray) -> Triangulated:
        moved = keypoints.at[:, 0, :, 0].add(jnp.asarray(shift_px)[:, None])
        return triangulate_robust(ring(), moved, confidence)

    shift = np.linspace(20, 60, 2001)
    all_views = np.asarray(solve(shift).views).all(axis=(1, 2))
    assert 50 < all_views.sum() < 1950
    # The limit lies within the last step; its share of a thousandth is about a step and a half wide.
    edge = shift[all_views][-1]
    fine = np.linspace(edge - 0.15, edge + 0.15, 2001)
    result = solve(fine)
    off = distance(result, points)[:, 0]
    assert off[0] > 0.01
    assert off[-1] < EXACT
    assert np.abs(np.diff(off)).max() < 0.02 * off[0]
    views = np.asarray(result.views)[:, 0, 0]
    fading = views & (off < 0.9 * off[0])
    assert fading.sum() > 100
    # Half-way through, half of the view's weight is left; its certainty goes with it.
    spread = np.trace(np.asarray(result.covariance)[:, 0], axis1=1, axis2=2)
    assert (np.diff(spread) > -1e-9 * spread[0]).all()
    assert spread[0] < spread[fading].mean() < spread[-1]


def test_derivatives_agree_with_finite_differences() -> None:
    points = body(2, 2)
    keypoints, confidence = seen_by(ring(), points)
    keypoints = keypoints + jnp.asarray(np.random.default_rng(0).normal(0, 6, keypoints.shape))
    leaves, structure = jax.tree.flatten(ring().astype(float))

    # Eight px: some residuals are beyond it and some within, so that both branches are differentiated.
    def solve(leaves: list[jax.Array], keypoints: jax.Array, confidence: jax.Array) -> jax.Array:
        cameras = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
        keypoints, confidence = jnp.asarray(keypoints), jnp.asarray(confidence)
        return triangulate_robust(cameras, keypoints, confidence, huber_px=8.0).points

    result = triangulate_robust(ring(), keypoints, confidence, huber_px=8.0)
    errors = np.asarray(result.reprojection_px)
    assert (errors > 8).any()
    assert (errors < 8).any()
    assert np.asarray(result.views).all()
    arguments = (leaves, keypoints, confidence)
    # Steps towards a minimum of Huber's function leave it a little unsettled.
    check_grads(solve, arguments, order=1, modes=("fwd", "rev"), atol=1e-4, rtol=1e-3, eps=1e-6)


@METHODS
def test_missing_points_harm_no_derivative(triangulate) -> None:
    keypoints, confidence = seen_by(ring(), body(2, 3))
    confidence = confidence.at[0, 1:, 0].set(jnp.nan)
    keypoints = keypoints.at[1, 0, 1].set(jnp.nan)

    def total(keypoints: jax.Array) -> jax.Array:
        result = triangulate(ring(), keypoints, confidence)
        return (
            jnp.nansum(result.points**2) + jnp.nansum(result.covariance) + jnp.nansum(result.reprojection_px)
        )

    slope = jax.grad(total)(keypoints)
    assert np.isfinite(slope).all()
    assert not np.asarray(slope)[0, :, 0].any()
    assert np.asarray(slope)[1, 1:, 1].all()


def test_turns_between_worlds_are_those_of_the_trc_reader() -> None:
    points = body()
    turned = np.asarray(frames.zup_to_yup(jnp.asarray(points)))
    clip = MarkerTrajectory(tuple("abcde"), np.arange(6.0), points, 1.0)
    np.testing.assert_array_equal(turned, zup_to_yup(clip).positions)
    np.testing.assert_array_equal(turned, points @ frames.R_yup_zup.T)
    np.testing.assert_array_equal(frames.yup_to_zup(jnp.asarray(turned)), points)
    spread = np.einsum("tki,tkj->tkij", points, points)
    expected = np.einsum("tki,tkj->tkij", turned, turned)
    np.testing.assert_array_equal(frames.covariance_zup_to_yup(jnp.asarray(spread)), expected)
    assert np.linalg.det(frames.R_yup_zup) == pytest.approx(1.0)
