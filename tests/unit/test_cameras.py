"""Cameras against OpenCV and against an independent NumPy formula, and their derivatives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from simspine_jax.errors import UnknownNameError
from simspine_jax.geometry.cameras import (
    Cameras,
    camera_centers,
    distort,
    intrinsic_matrices,
    normalised_from_pixels,
    pixels_from_normalised,
    project,
    projection_matrices,
    undistort,
)

# px: two float64 formulas of a projection that are written in another order.
PIXEL = 1e-9
# normalised image plane, float64, after UNDISTORT_ITERATIONS Newton steps.
NORMALISED = 1e-12

# A plain lens, Human3.6M's (the first camera's numbers), a rational wide-angle one, and one with skew.
LENSES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [-0.2071, 0.2478, -0.00142, -0.00098, -0.0031, 0, 0, 0],
        [0.12, -0.05, 0.001, -0.002, 0.01, 0.35, 0.02, 0.015],
        [-0.046183, 0.139983, 0.000608, 0.00069, 0, 0, 0, 0],
    ]
)


def rotation(axis: np.ndarray) -> np.ndarray:
    """Rodrigues' formula, written apart from the library's."""
    angle = np.linalg.norm(axis)
    x, y, z = axis / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rig(seed: int = 0, **changes: object) -> Cameras:
    """Four cameras that look at a metre or two around the origin from 4 m."""
    rng = np.random.default_rng(seed)
    values = {
        "rotations": np.stack([rotation(axis) for axis in rng.normal(0, 1, (4, 3))]),
        "translations": np.array([0, 0, 4.0]) + rng.normal(0, 0.2, (4, 3)),
        "focal_lengths": rng.uniform(1100, 1200, (4, 2)),
        "principal_points": rng.uniform(480, 520, (4, 2)),
        "skews": np.array([0.0, 0.0, 0.0, 3.0]),
        "distortion": LENSES,
        "sizes": np.full((4, 2), 1000.0),
        "names": ("a", "b", "c", "d"),
    }
    return Cameras(**(values | changes))  # pyright: ignore[reportArgumentType]


def in_numpy(cameras: Cameras, points: np.ndarray, factor: float) -> np.ndarray:
    """[N V 2] px by the published formulas, camera by camera."""
    pictures = []
    for v in range(len(cameras.names)):
        local = points @ np.asarray(cameras.rotations[v]).T + np.asarray(cameras.translations[v])
        x, y = local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]
        k1, k2, p1, p2, k3, k4, k5, k6 = np.asarray(cameras.distortion[v])
        r2 = x**2 + y**2
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        xd = x * radial + factor * p1 * x * y + p2 * (r2 + factor * x**2)
        yd = y * radial + factor * p2 * x * y + p1 * (r2 + factor * y**2)
        matrix = np.eye(3)
        matrix[[0, 1], [0, 1]] = cameras.focal_lengths[v]
        matrix[0, 1] = cameras.skews[v]
        matrix[:2, 2] = cameras.principal_points[v]
        pictures.append((np.stack([xd, yd, np.ones_like(xd)], -1) @ matrix.T)[:, :2])
    return np.stack(pictures, 1)


POINTS = np.random.default_rng(5).uniform(-1.2, 1.2, (50, 3))


@pytest.mark.parametrize(("model", "factor"), [("opencv", 2.0), ("h36m", 1.0)])
def test_projection_is_the_published_formula(model: str, factor: float) -> None:
    cameras = rig(distortion_model=model)
    got = project(cameras, jnp.asarray(POINTS))
    np.testing.assert_allclose(got.keypoints, in_numpy(cameras, POINTS, factor), atol=PIXEL)
    local = np.einsum("vij,nj->nvi", cameras.rotations, POINTS) + cameras.translations
    np.testing.assert_allclose(got.depth, local[..., 2], atol=1e-14)


def test_projection_and_undistortion_are_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    cameras = rig(skews=np.zeros(4))  # OpenCV's projectPoints ignores skew
    got = project(cameras, jnp.asarray(POINTS)).keypoints
    undistorted = undistort(cameras, normalised_from_pixels(cameras, got))
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-15)
    for v in range(4):
        turn = cv2.Rodrigues(np.asarray(cameras.rotations[v]))[0]
        intrinsics = np.asarray(intrinsic_matrices(cameras)[v])
        args = intrinsics, LENSES[v]
        expected = cv2.projectPoints(POINTS, turn, np.asarray(cameras.translations[v]), *args)[0][:, 0]
        np.testing.assert_allclose(got[:, v], expected, atol=1e-8)
        rays = cv2.undistortPoints(np.asarray(got[:, v])[:, None], *args, criteria=stop)[:, 0]
        np.testing.assert_allclose(undistorted[:, v], rays, atol=1e-10)


def test_human36m_and_opencv_differ_by_about_a_pixel_at_the_rims(shared_data: Path) -> None:
    notes = json.loads((shared_data / "h36m_cameras.json").read_text())
    worst = 0.0
    for lens in notes["intrinsics"].values():
        matrix = np.array(lens["K"])
        across = np.stack(np.meshgrid(np.linspace(0, 1000, 41), np.linspace(0, lens["height"], 41)), -1)
        grid = (across.reshape(-1, 1, 2) - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]
        coefficients = np.pad(lens["dist_opencv"], (0, 3))[None]
        one = rig().select(["a"])
        models = [replace(one, distortion=coefficients, distortion_model=m) for m in ("opencv", "h36m")]
        opencv, own = (np.asarray(distort(m, jnp.asarray(grid))) for m in models)
        worst = max(worst, np.linalg.norm((opencv - own) * matrix[[0, 1], [0, 1]], axis=-1).max())
        centre = np.abs(grid).max(axis=(1, 2)) < 0.1
        assert np.linalg.norm((opencv - own)[centre] * 1150, axis=-1).max() < 0.1
    assert 1.0 < worst < 1.5


@pytest.mark.parametrize("model", ["opencv", "h36m"])
def test_undistortion_inverts_distortion_over_the_picture(model: str) -> None:
    cameras = rig(distortion_model=model)
    plane = jnp.asarray(np.random.default_rng(1).uniform(-0.5, 0.5, (3, 70, 4, 2)))
    bent = distort(cameras, plane)
    assert float(jnp.abs(bent - plane).max()) > 0.01  # 10 px
    np.testing.assert_allclose(undistort(cameras, bent), plane, atol=NORMALISED)
    pixels = pixels_from_normalised(cameras, bent)
    np.testing.assert_allclose(normalised_from_pixels(cameras, pixels), bent, atol=1e-15)


def test_without_distortion_projection_is_linear() -> None:
    cameras = rig(distortion=np.zeros((4, 8)))
    homogeneous = np.concatenate([POINTS, np.ones((len(POINTS), 1))], axis=-1)
    pictures = np.einsum("vij,nj->nvi", projection_matrices(cameras), homogeneous)
    expected = pictures[..., :2] / pictures[..., 2:]
    np.testing.assert_allclose(project(cameras, jnp.asarray(POINTS)).keypoints, expected, atol=PIXEL)


def test_camera_centers_are_at_the_cameras_origins() -> None:
    cameras = rig()
    local = np.einsum("vij,vj->vi", cameras.rotations, camera_centers(cameras)) + cameras.translations
    np.testing.assert_allclose(local, 0, atol=1e-14)


def test_products_are_in_full_precision() -> None:
    """A GPU rounds single precision to ten bits unless each product says otherwise."""
    cameras, points = rig().astype(np.float32), jnp.asarray(POINTS, jnp.float32)
    for program in (
        jax.make_jaxpr(project)(cameras, points),
        jax.make_jaxpr(camera_centers)(cameras),
        jax.make_jaxpr(projection_matrices)(cameras),
    ):
        products = [e for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
        assert products
        for product in products:
            assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


def test_derivatives_agree_with_finite_differences_in_both_modes() -> None:
    leaves, structure = jax.tree.flatten(rig().astype(float))
    bent = distort(rig(), jnp.asarray(np.random.default_rng(2).uniform(-0.5, 0.5, (3, 4, 2))))

    def pictures(leaves: list[jax.Array], points: jax.Array) -> jax.Array:
        return project(jax.tree.unflatten(structure, leaves), jnp.asarray(points)).keypoints / 1000

    def rays(leaves: list[jax.Array], bent: jax.Array) -> jax.Array:
        return undistort(jax.tree.unflatten(structure, leaves), jnp.asarray(bent))

    for function, argument in ((pictures, jnp.asarray(POINTS[:3])), (rays, bent)):
        check_grads(function, (leaves, argument), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_points_without_a_picture_are_nan_and_harm_no_derivative() -> None:
    cameras = rig().select(["a", "b"]).astype(float)
    behind = camera_centers(cameras)[0] - cameras.rotations[0][2] * 0.5
    points = jnp.stack([behind, camera_centers(cameras)[0], jnp.asarray(POINTS[0])])
    result = project(cameras, points)
    assert np.isnan(result.keypoints[:2, 0]).all()
    assert not np.isnan(result.keypoints[2]).any()
    assert result.depth[0, 0] == pytest.approx(-0.5)

    def loss(cameras: Cameras, points: jax.Array) -> jax.Array:
        keypoints = project(cameras, points).keypoints
        return jnp.sum(jnp.where(jnp.isnan(keypoints), 0.0, keypoints) ** 2)

    slopes = jax.grad(loss, argnums=(0, 1))(cameras, points)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    only = jax.grad(loss)(cameras.select(["a"]), points[2:])
    np.testing.assert_allclose(slopes[0].rotations[0], only.rotations[0], rtol=1e-12)


def test_missing_keypoints_stay_missing() -> None:
    cameras = rig().astype(float)
    plane = jnp.full((2, 4, 2), 0.1).at[0, 1].set(jnp.nan)
    np.testing.assert_array_equal(np.isnan(undistort(cameras, plane)), np.isnan(plane))
    slope = jax.grad(lambda p: jnp.nansum(undistort(cameras, p)))(plane)
    assert np.isfinite(slope).all()


@pytest.mark.usefixtures("float32")
def test_single_precision_is_good_to_a_hundredth_of_a_pixel() -> None:
    cameras = rig()
    got = project(cameras, jnp.asarray(POINTS))
    assert got.keypoints.dtype == jnp.float32
    np.testing.assert_allclose(got.keypoints, in_numpy(cameras, POINTS, 2.0), atol=1e-2)
    plane = jnp.asarray(np.random.default_rng(1).uniform(-0.5, 0.5, (9, 4, 2)))
    np.testing.assert_allclose(undistort(cameras, distort(cameras, plane)), plane, atol=1e-6)


def test_selection_reorders_and_names_what_is_valid() -> None:
    chosen = rig().select(["d", "b"])
    assert chosen.names == ("d", "b")
    np.testing.assert_array_equal(chosen.distortion, LENSES[[3, 1]])
    with pytest.raises(UnknownNameError, match="'z' is not in the calibration; it has: a, b, c, d"):
        rig().select(["z"])


def test_cameras_are_a_pytree_with_static_names() -> None:
    leaves, structure = jax.tree.flatten(rig())
    assert len(leaves) == 7
    assert jax.tree.unflatten(structure, leaves).names == ("a", "b", "c", "d")
