"""Rigid and similarity alignment against SciPy, by what it must keep, and where shapes leave it open."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from simspine_jax.errors import ShapeError
from simspine_jax.geometry.procrustes import CPU_BLOCK, align

# Float64 over points of size 1 and offsets of 10; the shapes drawn are well conditioned.
ROUNDING = 1e-11

SEEDS = st.integers(0, 2**31)


def shapes(seed: int, *batch: int, n: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*batch, n, 3))


def moved(points: np.ndarray, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rotation = Rotation.from_quat(random.normal(size=4)).as_matrix()
    translation = random.uniform(-10, 10, 3)
    return scale * points @ rotation.T + translation, rotation, translation


def residual(found, source, target, weights: np.ndarray | float = 1.0) -> np.ndarray:
    return (weights * ((np.asarray(found.apply(jnp.asarray(source))) - target) ** 2).sum(-1)).sum(-1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.1, 10))
def test_a_known_transform_is_found(seed: int, scale: float) -> None:
    source = shapes(seed)
    target, rotation, translation = moved(source, seed, scale)
    found = align(jnp.asarray(source), jnp.asarray(target), scaled=True)
    assert bool(found.determined)
    np.testing.assert_allclose(found.rotation, rotation, atol=ROUNDING)
    np.testing.assert_allclose(found.scale, scale, rtol=ROUNDING)
    np.testing.assert_allclose(found.translation, translation, atol=10 * ROUNDING)
    rigid = align(jnp.asarray(source), jnp.asarray(target))
    assert float(rigid.scale) == 1.0
    np.testing.assert_allclose(rigid.rotation, rotation, atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_the_rotation_of_weighted_noisy_points_is_scipys(seed: int) -> None:
    source, target = shapes(seed), shapes(seed + 1)
    weights = np.random.default_rng(seed).uniform(0.1, 2, 6)
    found = align(jnp.asarray(source), jnp.asarray(target), jnp.asarray(weights))
    centred = [points - np.average(points, axis=0, weights=weights) for points in (target, source)]
    expected, distance, *_ = Rotation.align_vectors(*centred, weights=weights)
    np.testing.assert_allclose(residual(found, source, target, weights), distance**2, rtol=ROUNDING)
    # Of unrelated points two rotations may be nearly as good, and then rounding decides.
    np.testing.assert_allclose(found.rotation, expected.as_matrix(), atol=1e-7)


def test_the_disparity_is_scipys_wherever_no_reflection_is_better() -> None:
    source = shapes(0, 40)
    target = source + 0.8 * shapes(1, 40)
    found = align(jnp.asarray(source), jnp.asarray(target), scaled=True)
    centred = target - target.mean(axis=1, keepdims=True)
    disparity = residual(found, source, target) / (centred**2).sum((-2, -1))
    expected = np.array([procrustes(b, a)[2] for a, b in zip(source, target, strict=True)])
    spread = np.einsum("nki,nkj->nij", centred, source - source.mean(axis=1, keepdims=True))
    proper = np.linalg.det(spread) > 0
    assert 10 < proper.sum() < 40  # both kinds were drawn
    np.testing.assert_allclose(disparity[proper], expected[proper], rtol=1e-10)
    assert (disparity[~proper] > expected[~proper]).all()


def test_mirrored_points_are_turned_and_not_mirrored() -> None:
    source = shapes(3, 50)
    target = source * np.array([1, 1, -1])
    found = align(jnp.asarray(source), jnp.asarray(target))
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1, atol=ROUNDING)
    for a, b, error in zip(source, target, residual(found, source, target), strict=True):
        best = Rotation.align_vectors(b - b.mean(0), a - a.mean(0))[1] ** 2
        assert error == pytest.approx(best, rel=1e-9)


def test_points_on_a_plane_determine_the_rotation() -> None:
    source = shapes(4, 30)
    source[..., 2] = 0.0
    target, rotation, _ = moved(source, 4)
    found = align(jnp.asarray(source), jnp.asarray(target))
    assert np.asarray(found.determined).all()
    np.testing.assert_allclose(found.rotation, np.broadcast_to(rotation, (30, 3, 3)), atol=ROUNDING)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.05, 3.0))
def test_a_line_is_turned_by_the_smallest_angle(seed: int, angle: float) -> None:
    random = np.random.default_rng(seed)
    line, other = random.normal(size=(2, 3))
    axis = np.cross(line, other) / np.linalg.norm(np.cross(line, other))
    smallest = Rotation.from_rotvec(angle * axis)
    source = random.uniform(-1, 1, 5)[:, None] * line + random.uniform(-3, 3, 3)
    target = smallest.apply(source) + random.uniform(-3, 3, 3)
    found = align(jnp.asarray(source), jnp.asarray(target), scaled=True)
    assert not bool(found.determined)
    np.testing.assert_allclose(found.rotation, smallest.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(found.apply(jnp.asarray(source)), target, atol=1e-9)
    assert float(found.scale) == pytest.approx(1, abs=1e-9)


def test_a_line_that_points_back_is_turned_somehow() -> None:
    source = np.array([1.0, 2.0, 4.0])[:, None] * np.array([0.0, 0.6, 0.8])
    found = align(jnp.asarray(source), jnp.asarray(-source))
    np.testing.assert_allclose(found.apply(jnp.asarray(source)), -source, atol=ROUNDING)
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1, atol=ROUNDING)
    assert not bool(found.determined)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("place", [0.0, 0.1, 1e3])
def test_points_in_one_place_are_moved_and_not_turned(scaled: bool, place: float) -> None:
    source, target = np.full((6, 3), place), shapes(5)
    found = align(jnp.asarray(source), jnp.asarray(target), scaled=scaled)
    np.testing.assert_array_equal(found.rotation, np.eye(3))
    assert float(found.scale) == 1.0
    assert not bool(found.determined)
    np.testing.assert_allclose(found.apply(jnp.asarray(source)).mean(0), target.mean(0), atol=1e-9)
    # The other way round the scale that fits best is none at all.
    back = align(jnp.asarray(target), jnp.asarray(source), scaled=scaled)
    np.testing.assert_array_equal(back.rotation, np.eye(3))
    assert float(back.scale) == (0.0 if scaled else 1.0)


def test_few_points_give_the_stated_result() -> None:
    points = jnp.asarray(shapes(6))
    for n in range(4):
        weights = jnp.arange(6) < n
        found = align(points, points + 2.0, weights.astype(float), scaled=True)
        assert bool(found.determined) is (n == 3)
        np.testing.assert_allclose(found.rotation, np.eye(3), atol=ROUNDING)
        np.testing.assert_allclose(found.scale, 1.0, atol=ROUNDING)
        np.testing.assert_allclose(found.translation, 2.0 if n else 0.0, atol=ROUNDING)
    nobody = align(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0, 3)), scaled=True)
    np.testing.assert_array_equal(nobody.apply(jnp.ones((2, 1, 3))), np.ones((2, 1, 3)))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.lists(st.sampled_from("wst "), min_size=6, max_size=6))
def test_what_is_missing_is_not_read(seed: int, holes: list[str]) -> None:
    """By a weight of zero, or NaN in the source or the target."""
    source, target, weights = shapes(seed), shapes(seed + 1), np.ones(6)
    for k, hole in enumerate(holes):
        if hole == "s":
            source[k, k % 3] = np.nan
        if hole == "t":
            target[k] = np.nan
        weights[k] = 0.0 if hole == "w" else 1.0
    keep = [k for k, hole in enumerate(holes) if hole == " "]
    found = align(jnp.asarray(source), jnp.asarray(target), jnp.asarray(weights), scaled=True)
    alone = align(jnp.asarray(source[keep]), jnp.asarray(target[keep]), scaled=True)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert bool(found.determined) == bool(alone.determined) == (len(keep) > 2)
    if len(keep) > 2:
        np.testing.assert_allclose(found.rotation, alone.rotation, atol=1e-7)


def cost(source, target, weights):
    found = align(source, target, weights, scaled=True)
    # Not the sum of squares that the alignment minimises: there its own derivatives drop out.
    lengths = jnp.sum((found.apply(jnp.nan_to_num(source)) - jnp.nan_to_num(target)) ** 4, axis=-1)
    used = (weights > 0) & jnp.isfinite(source + target).all(-1)
    return jnp.sum(jnp.where(used, lengths, 0.0)) + jnp.sum(found.rotation[..., 0, 1])


def test_derivatives_are_right() -> None:
    """Also those of the derivatives, forwards and backwards."""
    source = shapes(8, 3)
    target, _, _ = moved(source, 8, 1.2)
    target += 0.3 * shapes(9, 3)
    weights = np.random.default_rng(8).uniform(0.5, 1, (3, 6))
    arguments = tuple(map(jnp.asarray, (source, target - target.mean((0, 1)), weights)))
    check_grads(cost, arguments, order=2, modes=("fwd", "rev"), rtol=2e-4)


@pytest.mark.parametrize("shape", ["line", "place", "two", "one", "none", "missing"])
def test_derivatives_are_finite_where_the_shape_leaves_the_rotation_open(shape: str) -> None:
    source, target, weights = shapes(10), shapes(11), np.ones(6)
    if shape == "line":
        source = source[:, :1] * np.array([1.0, 2.0, 3.0])
    elif shape == "place":
        source[:] = 0.1
    elif shape == "missing":
        source[2], target[3] = np.nan, np.nan
    else:
        weights[{"two": 2, "one": 1, "none": 0}[shape] :] = 0.0
    slopes = jax.grad(cost, argnums=(0, 1, 2))(*map(jnp.asarray, (source, target, weights)))
    assert all(np.isfinite(slope).all() for slope in slopes)
    if shape == "missing":
        assert not np.asarray(slopes[0])[[2, 3]].any()
        assert np.asarray(slopes[1])[[0, 1, 4, 5]].all()


def test_many_frames_are_aligned_as_each_alone() -> None:
    n = CPU_BLOCK + 3
    source, target = shapes(12, n, n=4), shapes(13, n, n=4)
    together = align(jnp.asarray(source), jnp.asarray(target), scaled=True)
    for i in (0, CPU_BLOCK - 1, CPU_BLOCK, n - 1):
        alone = align(jnp.asarray(source[i]), jnp.asarray(target[i]), scaled=True)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-9)


def test_all_leading_axes_are_batch() -> None:
    source, target = jnp.asarray(shapes(14, 2, 3)), jnp.asarray(shapes(15, 2, 3))
    found = align(source, target)
    each = jax.vmap(jax.vmap(align))(source, target)
    assert found.rotation.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(found.rotation, each.rotation, atol=1e-9)


@pytest.mark.usefixtures("float32")
def test_single_precision_aligns_metres_to_a_hundredth_of_a_millimetre() -> None:
    source = shapes(16, 200)
    target, _, _ = moved(source, 16)
    found = align(jnp.asarray(source, jnp.float32), jnp.asarray(target, jnp.float32))
    assert found.rotation.dtype == jnp.float32
    assert np.asarray(found.determined).all()
    np.testing.assert_allclose(found.apply(jnp.asarray(source, jnp.float32)), target, atol=1e-5)


def test_sets_of_other_shapes_are_refused() -> None:
    for source, target in (((5, 3), (4, 3)), ((5, 2), (5, 2)), ((3,), (3,))):
        with pytest.raises((ShapeError, TypeError)):
            align(jnp.zeros(source), jnp.zeros(target))
