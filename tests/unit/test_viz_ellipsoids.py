"""Ellipsoids of covariances: their axes, what they hold, and what is too large or not known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from simspine_jax.errors import ShapeError
from simspine_jax.fitting.uncertainty import ellipsoid_radius
from simspine_jax.viz.ellipsoids import LONGEST_M, Ellipsoids, ellipsoids_of, unit_sphere

SHARE = 0.9
# Sums of float64 in another order.
ROUNDING = 1e-9
DRAWS = 200_000  # of which 90 % are counted with a deviation of 0.07 %


def covariances(n_frames: int, n_points: int) -> NDArray[np.float64]:
    """Of deviations from a millimetre to a decimetre, in any direction."""
    random = np.random.default_rng(0)
    turns = Rotation.random(n_frames * n_points, random).as_matrix().reshape(n_frames, n_points, 3, 3)
    variance = 10 ** random.uniform(-6, -2, (n_frames, n_points, 3))
    return np.einsum("tkia,tka,tkja->tkij", turns, variance, turns)


def rotations(shells: Ellipsoids) -> NDArray[np.float64]:
    flat = Rotation.from_quat(shells.quaternions.reshape(-1, 4), scalar_first=True).as_matrix()
    return flat.reshape(*shells.half_axes.shape[:2], 3, 3)


def one(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    shells = ellipsoids_of(covariance[None, None], SHARE)
    assert np.isfinite(shells.quaternions).all()
    return shells.half_axes[0, 0], bool(shells.capped[0, 0])


def test_the_radius_is_that_of_chi_squared() -> None:
    assert ellipsoid_radius(0.9) == pytest.approx(2.5003, abs=5e-5)
    for share in (0.5, 0.9, 0.99):
        assert ellipsoid_radius(share) == pytest.approx(np.sqrt(chi2.ppf(share, 3)), rel=ROUNDING)
    for share in (0.0, 1.0, np.nan):
        with pytest.raises(ShapeError, match=r"The share of an ellipsoid is .*; valid is between 0 and 1"):
            ellipsoid_radius(share)


def test_axes_are_those_of_the_covariance() -> None:
    given = covariances(5, 7)
    shells, radius = ellipsoids_of(given, SHARE), np.sqrt(chi2.ppf(SHARE, 3))
    wanted = radius * np.sqrt(np.linalg.eigvalsh(given))
    assert wanted.max() < LONGEST_M, "none of them is cut"
    np.testing.assert_allclose(shells.half_axes, wanted, rtol=1e-6)
    turns = rotations(shells)
    back = np.einsum("tkia,tka,tkja->tkij", turns, (shells.half_axes / radius) ** 2, turns)
    np.testing.assert_allclose(back, given, atol=ROUNDING * given.max())
    assert not shells.capped.any()


def test_an_ellipsoid_holds_its_share() -> None:
    given = covariances(1, 4)
    shells = ellipsoids_of(given, SHARE)
    random = np.random.default_rng(1)
    for covariance, turn, half in zip(given[0], rotations(shells)[0], shells.half_axes[0], strict=True):
        points = random.multivariate_normal(np.zeros(3), covariance, DRAWS)
        inside = np.linalg.norm(points @ turn / half, axis=1) <= 1
        assert inside.mean() == pytest.approx(SHARE, abs=0.01)


def test_what_is_large_is_cut_and_told() -> None:
    half, capped = one(np.diag([1e-4, 1e-2, 9.0]))
    assert capped
    np.testing.assert_allclose(half, [0.025003, 0.25003, LONGEST_M], rtol=1e-4)
    half, capped = one(1e200 * np.eye(3))
    assert capped
    np.testing.assert_array_equal(half, LONGEST_M)


def test_what_is_flat_or_not_known_breaks_nothing() -> None:
    line = np.array([1.0, 2.0, 2.0]) / 3
    half, capped = one(1e-4 * np.outer(line, line))
    assert not capped
    assert half[2] == pytest.approx(0.025003, rel=1e-4)
    assert 0 < half[0] <= half[1] < 1e-3
    half, capped = one(np.zeros((3, 3)))
    assert (half > 0).all()
    assert not capped
    for unknown in (np.nan, np.inf):
        covariance = np.eye(3)
        covariance[0, 1] = covariance[1, 0] = unknown
        half, capped = one(covariance)
        np.testing.assert_array_equal(half, 0)
        assert not capped


def test_shapes_that_are_no_covariances_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"shape \(4, 3, 3\); valid is \[T, K, 3, 3\]"):
        ellipsoids_of(np.zeros((4, 3, 3)), SHARE)


def test_the_sphere_is_closed_and_seen_from_outside() -> None:
    vertices, faces = unit_sphere()
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1, rtol=ROUNDING)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert {tuple(edge) for edge in edges} == {tuple(edge) for edge in edges[:, ::-1]}
    assert len({tuple(edge) for edge in edges}) == len(edges)
    volume = np.linalg.det(vertices[faces]).sum() / 6
    assert 0.95 * 4 / 3 * np.pi < volume < 4 / 3 * np.pi
