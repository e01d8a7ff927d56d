"""Marker placement: the static pose puts the markers where they were measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.io import CoordinateTask, MarkerTask, PlacingStage
from simspine_jax.kinematics.placement import place_markers


def static_trial(model, factors, offsets, n_frames=5, seed=2):
    rng = np.random.default_rng(seed)
    q = np.asarray(model.default_q) + rng.normal(0, 0.2, model.n_free)
    poses = ssj.forward_kinematics(model, q, scale_factors=factors, marker_offsets=offsets)
    markers = np.array(poses.markers)[None] + rng.normal(0, 1e-3, (n_frames, model.n_markers, 3))
    return q, markers


@pytest.fixture
def factors(arm_model):
    return np.random.default_rng(0).uniform(0.8, 1.3, (len(arm_model.body_names), 3))


def test_moved_markers_lie_on_the_measured_ones(arm_model, factors) -> None:
    offsets = np.random.default_rng(1).normal(0, 0.01, (arm_model.n_markers, 3))
    _, markers = static_trial(arm_model, factors, offsets)
    markers[:3, 4] = np.nan
    markers[:, 7] = np.nan
    fixed = (arm_model.marker_names[2],)
    found = place_markers(arm_model, markers, scale_factors=factors, fixed=fixed)
    stays = np.isin(np.arange(arm_model.n_markers), [2, 7])
    np.testing.assert_array_equal(found.moved, ~stays)
    np.testing.assert_array_equal(np.asarray(found.offsets)[stays], 0)
    mean = np.stack(
        [m[np.isfinite(m[:, 0])].mean(axis=0) for m in np.delete(markers, 7, axis=1).swapaxes(0, 1)]
    )
    np.testing.assert_allclose(np.delete(found.static_markers, 7, axis=0), mean, rtol=1e-12)
    assert np.isnan(found.static_markers[7]).all()
    q = found.solution.q[0]
    places = ssj.forward_kinematics(arm_model, q, scale_factors=factors, marker_offsets=found.offsets).markers
    np.testing.assert_allclose(places[~stays], found.static_markers[~stays], atol=1e-12)
    before = ssj.forward_kinematics(arm_model, q, scale_factors=factors).markers
    assert np.linalg.norm(before[~stays] - found.static_markers[~stays], axis=-1).min() > 1e-4
    np.testing.assert_allclose(places[stays], before[stays], atol=1e-12)


def test_where_the_pose_is_known_the_offsets_are_found(arm_model, factors) -> None:
    """A task for each coordinate that outweighs the markers holds the true pose."""
    offsets = np.random.default_rng(1).normal(0, 0.01, (arm_model.n_markers, 3))
    q, _ = static_trial(arm_model, factors, offsets)
    markers = np.asarray(
        ssj.forward_kinematics(arm_model, q, scale_factors=factors, marker_offsets=offsets).markers
    )
    stage = PlacingStage(
        marker_tasks=tuple(MarkerTask(n, 1.0) for n in arm_model.marker_names),
        coordinate_tasks=tuple(
            CoordinateTask(n, 1e6, value_type="manual_value", value=float(v))
            for n, v in zip(arm_model.free_names, q, strict=True)
        ),
    )
    found = place_markers(arm_model, markers[None], setup=stage.ik_setup, scale_factors=factors)
    np.testing.assert_allclose(found.offsets, offsets, atol=1e-6)
    moved_target = place_markers(
        arm_model, markers[None], setup=stage.ik_setup, scale_factors=factors, coordinate_targets=q + 0.1
    )
    assert np.abs(moved_target.offsets - offsets).max() > 0.01


def test_movement_is_told_and_too_few_markers_move_nothing(arm_model) -> None:
    _, markers = static_trial(arm_model, None, None)
    markers[2, 0, 1] += 0.5
    found = place_markers(arm_model, markers)
    assert 0.49 < found.movement[0] < 0.51
    assert (found.movement[1:] < 0.01).all()
    markers[:, 2:] = np.nan
    few = place_markers(arm_model, markers)
    assert few.solution.status[0] == ssj.IKStatus.TOO_FEW_MARKERS
    np.testing.assert_array_equal(few.offsets, 0)
    assert not few.moved.any()


def test_derivatives_are_those_of_differences(arm_model, factors) -> None:
    _, markers = static_trial(arm_model, factors, np.zeros((arm_model.n_markers, 3)))
    markers[1, 3] = np.nan
    rng = np.random.default_rng(4)
    weights = rng.normal(0, 1, (arm_model.n_markers, 3))

    def total(x, s):
        return jnp.sum(weights * place_markers(arm_model, x, scale_factors=s).offsets)

    along = [rng.normal(0, 1, x.shape) for x in (markers, factors)]
    slopes = jax.grad(total, (0, 1))(jnp.asarray(markers), jnp.asarray(factors))
    for which, (slope, direction) in enumerate(zip(slopes, along, strict=True)):
        assert np.isfinite(slope).all()
        ends = []
        for sign in (1, -1):
            given = [markers, factors]
            given[which] = given[which] + sign * 1e-4 * direction
            ends.append(float(total(*given)))
        # The solver stops at a thousandth of its objective's noise, which the difference sees.
        np.testing.assert_allclose(np.sum(slope * direction), (ends[0] - ends[1]) / 2e-4, rtol=2e-3)


def test_wrong_arguments_are_named(arm_model) -> None:
    _, markers = static_trial(arm_model, None, None)
    with pytest.raises(ShapeError, match=r"markers has shape \(5, 11, 3\); it must be \(frames, 12, 3\)"):
        place_markers(arm_model, markers[:, 1:])
    with pytest.raises(UnknownNameError, match="Marker 'C7' is not in the model arm"):
        place_markers(arm_model, markers, fixed=["C7"])
