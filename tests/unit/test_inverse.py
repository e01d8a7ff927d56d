"""Inverse kinematics of single frames: what it recovers, keeps out of, reports and refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax import skeleton
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.io.ik_setup import CoordinateTask, IKSetup, MarkerTask
from simspine_jax.kinematics.inverse import IKStatus, Prior

FRAMES = 24
NOISE_M = 0.005


def smooth_motion(model, frames: int, size: float, seed: int = 0) -> np.ndarray:
    """[T Q] slow sines about the default pose, within the bounds."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, model.n_free)
    q = np.asarray(model.default_q) + size * np.sin(0.1 * np.arange(frames)[:, None] + phase)
    return np.clip(q, np.asarray(model.lower), np.asarray(model.upper))


@dataclasses.dataclass(frozen=True)
class Clip:
    """A motion of the arm, its exact markers, and the markers with noise."""

    model: ssj.SpineModel
    q: np.ndarray
    exact: np.ndarray
    noisy: np.ndarray


@pytest.fixture(scope="module")
def clip(arm_model) -> Clip:
    q = smooth_motion(arm_model, FRAMES, 0.6)
    exact = np.asarray(ssj.forward_kinematics(arm_model, q).markers)
    return Clip(arm_model, q, exact, exact + np.random.default_rng(1).normal(0, NOISE_M, exact.shape))


@pytest.fixture(scope="module")
def solved(clip: Clip) -> ssj.IKSolution:
    return ssj.solve_ik(clip.model, clip.noisy)


def markers_only(model, names=None, tasks=()) -> IKSetup:
    """OpenSim's objective without the default prior."""
    return IKSetup(tuple(MarkerTask(name, 1.0) for name in names or model.marker_names), tuple(tasks))


def test_exact_markers_are_found_again(clip: Clip) -> None:
    found = ssj.solve_ik(clip.model, clip.exact, setup=markers_only(clip.model), tolerance=1e-10)
    assert (found.status == IKStatus.CONVERGED).all()
    assert np.abs(found.markers - clip.exact).max() < 1e-6
    # All of this model's coordinates show in its markers; lever arms are at least 3 cm.
    assert np.abs(found.q - clip.q).max() < 5e-5
    assert (found.marker_rmse < 1e-6).all()
    np.testing.assert_allclose(found.coordinates, ssj.expand_coordinates(clip.model, found.q), atol=1e-12)


def test_the_report_follows_from_the_pose(clip: Clip, solved) -> None:
    np.testing.assert_allclose(
        solved.markers, ssj.forward_kinematics(clip.model, solved.q).markers, atol=1e-12
    )
    squared = np.sum((np.asarray(solved.markers) - clip.noisy) ** 2, axis=-1)
    np.testing.assert_allclose(solved.marker_rmse, np.sqrt(squared.mean(axis=-1)), rtol=1e-12)
    assert (solved.iterations > 0).all()
    # Three numbers a marker, of which 8 coordinates take their share away.
    assert np.sqrt(np.mean(squared)) == pytest.approx(np.sqrt(3 * (1 - 8 / 36)) * NOISE_M, rel=0.1)


def test_missing_markers_leave_other_frames_alone(clip: Clip, solved) -> None:
    markers = clip.noisy.copy()
    markers[2, 5] = np.nan
    markers[3, 7, 1] = np.nan  # one number is as good as three
    markers[6] = np.nan
    markers[0, 2:] = np.nan
    found = ssj.solve_ik(clip.model, markers)
    lost = [0, 6]
    assert np.flatnonzero(found.status == IKStatus.TOO_FEW_MARKERS).tolist() == lost
    for values in (found.q, found.coordinates, found.markers, found.marker_rmse, found.objective):
        finite = np.isfinite(values).reshape(FRAMES, -1)
        assert not finite[lost].any()
        assert np.delete(finite, lost, axis=0).all()
    others = np.setdiff1d(np.arange(FRAMES), [0, 2, 3, 6])
    np.testing.assert_allclose(found.objective[others], solved.objective[others], rtol=1e-3)
    assert np.abs(np.asarray(found.markers - solved.markers)[others]).max() < 1e-3
    # The rest of the markers hold the pose: it moves by what one marker's noise moves it.
    assert np.abs(np.asarray(found.markers - solved.markers)[[2, 3]]).max() < 0.02
    squared = np.sum((np.asarray(found.markers) - markers) ** 2, axis=-1)
    np.testing.assert_allclose(found.marker_rmse[2], np.sqrt(np.nanmean(squared[2])), rtol=1e-12)


def test_nothing_but_gaps_is_an_answer_too(clip: Clip) -> None:
    found = ssj.solve_ik(clip.model, np.full_like(clip.noisy, np.nan))
    assert (found.status == IKStatus.TOO_FEW_MARKERS).all()
    assert np.isnan(found.q).all()


def test_the_least_number_of_markers_is_the_callers(clip: Clip) -> None:
    markers = clip.noisy.copy()
    markers[4, 4:] = np.nan
    assert ssj.solve_ik(clip.model, markers, min_markers=4).status[4] == IKStatus.CONVERGED
    assert ssj.solve_ik(clip.model, markers, min_markers=5).status[4] == IKStatus.TOO_FEW_MARKERS


def test_one_frame_is_solved_as_among_others(clip: Clip, solved) -> None:
    found = ssj.solve_ik(clip.model, clip.noisy[5:6])
    assert found.q.shape == (1, clip.model.n_free)
    np.testing.assert_allclose(found.objective, solved.objective[5:6], rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_frames_does_not_matter(clip: Clip, solved, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(FRAMES)
    found = ssj.solve_ik(clip.model, clip.noisy[order])
    np.testing.assert_allclose(found.objective, solved.objective[order], rtol=1e-3)


@pytest.mark.parametrize("yaw", [0.5 * np.pi, np.pi, -2.0])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_where_the_person_stands_does_not_matter(clip: Clip, solved, yaw: float, shift: float) -> None:
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    found = ssj.solve_ik(clip.model, clip.noisy @ turn.T + shift * np.array([1, 0.1, -1]))
    np.testing.assert_allclose(found.objective, solved.objective, rtol=1e-3)


def test_a_start_on_a_singular_pose_is_survived(clip: Clip, solved) -> None:
    """The trunk's middle angle at 90 degrees, where its outer two turn about one axis."""
    start = np.asarray(clip.q).copy()
    start[:, 1] = np.pi / 2
    found = ssj.solve_ik(clip.model, clip.noisy, initial_q=start)
    np.testing.assert_allclose(found.objective, solved.objective, rtol=1e-3)


def test_bounds_are_kept_and_used(clip: Clip, solved) -> None:
    elbow = clip.model.free_indices(["elbow"])[0]
    low, high = -0.4, 0.2
    free = np.asarray(solved.q)[:, elbow]
    outside = (free < low - 0.02) | (free > high + 0.02)
    assert (free[outside] < low).sum() > 1
    assert (free[outside] > high).sum() > 1
    bounded = dataclasses.replace(
        clip.model, lower=clip.model.lower.at[elbow].set(low), upper=clip.model.upper.at[elbow].set(high)
    )
    found = ssj.solve_ik(bounded, clip.noisy)
    angle = np.asarray(found.q)[:, elbow]
    np.testing.assert_array_equal(angle[outside], np.where(free < 0, low, high)[outside])
    assert (angle >= low).all()
    assert (angle <= high).all()
    inside = (free > low + 0.02) & (free < high - 0.02)
    assert inside.sum() > 1
    np.testing.assert_allclose(found.objective[inside], solved.objective[inside], rtol=1e-3)
    assert (found.objective[outside] > solved.objective[outside] * (1 + 1e-3)).all()


def test_weights_in_every_form(clip: Clip) -> None:
    rng = np.random.default_rng(0)
    each = rng.uniform(0.1, 2, clip.model.n_markers)
    each[3] = 0
    named = {name: float(w) for name, w in zip(clip.model.marker_names, each, strict=True)}
    frames = np.broadcast_to(each, clip.noisy.shape[:2])
    found = [ssj.solve_ik(clip.model, clip.noisy, weights=w).q for w in (each, 5 * each, named, frames)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)
    # With weight 0 a marker is as good as missing.
    without = clip.noisy.copy()
    without[:, 3] = np.nan
    np.testing.assert_allclose(ssj.solve_ik(clip.model, without, weights=each).q, found[0], atol=1e-12)


def test_a_heavier_marker_is_met_better(clip: Clip) -> None:
    errors = {}
    for weight in (0.0, 1.0, 100.0):
        weights = np.ones(clip.noisy.shape[:2])
        weights[::2, 5] = weight
        found = ssj.solve_ik(clip.model, clip.noisy, weights=weights)
        errors[weight] = np.linalg.norm(np.asarray(found.markers) - clip.noisy, axis=-1)[:, 5]
    assert errors[100.0][::2].mean() < 0.3 * errors[1.0][::2].mean() < 0.3 * errors[0.0][::2].mean()
    np.testing.assert_allclose(errors[100.0][1::2], errors[0.0][1::2], atol=1e-4)


def pull_elbow(q, markers):
    """The elbow to 0.2 rad, with weight 0.01."""
    return 0.1 * (q[-1:] - 0.2)


def test_a_residual_is_a_coordinate_task_written_otherwise(clip: Clip, solved) -> None:
    elbow = np.asarray(solved.q)[:, -1]
    by_residual = ssj.solve_ik(
        clip.model, clip.noisy, setup=markers_only(clip.model), residuals=(pull_elbow,), tolerance=1e-10
    )
    pulled = np.asarray(by_residual.q)[:, -1]
    assert (np.abs(pulled - 0.2) < 0.6 * np.abs(elbow - 0.2))[np.abs(elbow - 0.2) > 0.05].all()
    task = CoordinateTask("elbow", 0.01, value_type="manual_value", value=0.2)
    by_task = ssj.solve_ik(
        clip.model, clip.noisy, setup=markers_only(clip.model, tasks=[task]), tolerance=1e-10
    )
    np.testing.assert_allclose(by_task.q, by_residual.q, atol=1e-5)
    np.testing.assert_allclose(by_task.objective, by_residual.objective, rtol=1e-6)
    # Per frame, in place of the setup's value.
    wave = 0.3 * np.sin(np.arange(FRAMES))[:, None]
    strong = markers_only(clip.model, tasks=[dataclasses.replace(task, weight=100.0)])
    held = ssj.solve_ik(clip.model, clip.noisy, setup=strong, coordinate_targets=wave, tolerance=1e-10)
    np.testing.assert_allclose(np.asarray(held.q)[:, -1:], wave, atol=1e-3)


def test_scaled_markers_are_found_with_the_same_factors(clip: Clip, solved) -> None:
    factors = np.random.default_rng(0).uniform(0.85, 1.2, (len(clip.model.body_names), 3))
    offsets = np.random.default_rng(1).normal(0, 0.02, (clip.model.n_markers, 3))
    given = {"scale_factors": factors, "marker_offsets": offsets}
    markers = ssj.forward_kinematics(clip.model, clip.q, **given).markers
    found = ssj.solve_ik(clip.model, markers, **given)
    # The prior pulls by its 5 mm per radian.
    assert found.marker_rmse.max() < 1e-4
    assert np.abs(found.q - clip.q).max() < 5e-3
    assert ssj.solve_ik(clip.model, markers).marker_rmse.max() > 0.01


def test_clips_stack(clip: Clip, solved) -> None:
    stacked = ssj.solve_ik(clip.model, clip.noisy.reshape(2, 3, 4, clip.model.n_markers, 3))
    assert stacked.q.shape == (2, 3, 4, clip.model.n_free)
    assert stacked.status.shape == (2, 3, 4)
    np.testing.assert_allclose(np.asarray(stacked.q).reshape(FRAMES, -1), solved.q, atol=1e-12)


def test_float32_is_kept(clip: Clip, solved) -> None:
    found = ssj.solve_ik(clip.model, jnp.asarray(clip.noisy, jnp.float32))
    assert {x.dtype for x in (found.q, found.markers, found.objective)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.objective, solved.objective, rtol=2e-3)


def test_it_runs_inside_jit_and_with_few_lanes(clip: Clip, solved) -> None:
    found = jax.jit(lambda x: ssj.solve_ik(clip.model, x, lanes=2))(clip.noisy)
    np.testing.assert_allclose(found.objective, solved.objective, rtol=1e-3)


def test_iterations_that_run_out_are_told(clip: Clip) -> None:
    found = ssj.solve_ik(clip.model, clip.noisy, max_iterations=1)
    assert (found.status == IKStatus.MAX_ITERATIONS).any()
    assert np.isfinite(found.q).all()


TASK = CoordinateTask("elbow", 1.0)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"markers": np.zeros((5, 3))}, ShapeError, r"shape \(5, 3\); it must be \(frames, 12, 3\)"),
        ({"markers": np.zeros((2, 7, 3))}, ShapeError, "markers has shape"),
        ({"markers": np.zeros((0, 12, 3))}, ShapeError, "at least one frame"),
        ({"weights": np.ones(5)}, ShapeError, r"weights has shape \(5,\); it must be \(12,\) or"),
        ({"weights": {"C7": 1.0}}, UnknownNameError, "Marker 'C7' is not in the model arm; it has: trunk.0"),
        ({"setup": IKSetup(), "weights": np.ones(12)}, ShapeError, "either weights or a setup"),
        ({"coordinate_targets": np.zeros((2, 1))}, ShapeError, "needs a setup with coordinate tasks"),
        ({"setup": IKSetup((), (TASK,)), "coordinate_targets": np.zeros((2, 3))}, ShapeError,
         "must be the 1 tasks"),
        ({"setup": IKSetup((), (CoordinateTask("knee", 1.0),))}, UnknownNameError,
         "Coordinate task 'knee' is not in the model arm; it has: trunk"),
        ({"setup": IKSetup((), (CoordinateTask("elbow", 1.0, value_type="from_file"),))}, ShapeError,
         "The task of elbow takes its value from a file: give coordinate_targets"),
        ({"initial_q": np.zeros((3, 8))}, ShapeError, r"initial_q has shape \(3, 8\); it must be \(2, 8\)"),
        ({"lengths": np.array([2])}, ShapeError, "lengths goes with smoothing"),
        ({"marker_offsets": np.zeros((5, 3))}, ShapeError, r"it must be \(12, 3\)"),
        ({"scale_factors": np.ones(9)}, ShapeError, r"scale_factors has shape .*; it must be \(4,\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(clip: Clip, change: dict, error: type, says: str) -> None:
    given = {"markers": np.zeros((2, 12, 3))} | change
    with pytest.raises(error, match=says):
        ssj.solve_ik(clip.model, **given)


@pytest.fixture(scope="module")
def spine_clip(spine_model):
    """A minute of slow bending of the whole spine, arms hanging, with 5 mm of noise on every number."""
    names = list(spine_model.free_names)
    q = np.tile(np.asarray(spine_model.default_q), (60, 1))
    t = np.linspace(0, 2 * np.pi, 60)
    sizes = {"L5_S1_Flex_Ext": 0.07, "L5_S1_Lat_Bending": 0.04, "L5_S1_axial_rotation": 0.02,
             "hip_flexion_r": 0.4, "hip_flexion_l": -0.4, "knee_angle_r": 0.3, "knee_angle_l": 0.3,
             "pelvis_tilt": 0.2, "pelvis_rotation": 0.5, "arm_add_r": 0.3, "arm_add_l": 0.3,
             "neck_flexion": 0.1, "elbow_flex_r": 0.4, "elbow_flex_l": 0.4}  # fmt: skip
    for k, (name, size) in enumerate(sizes.items()):
        q[:, names.index(name)] += size * np.sin(t + k)
    for side in "rl":
        q[:, names.index(f"arm_add_{side}")] += 0.9  # off the singular default
    q = np.clip(q, spine_model.lower, spine_model.upper)
    exact = np.asarray(ssj.forward_kinematics(spine_model, q).markers)
    return q, exact + np.random.default_rng(0).normal(0, NOISE_M, exact.shape)


def lumbar_flexion_rms(model, found, q) -> np.ndarray:
    """Degrees, for each lumbar level."""
    columns = [model.coordinate_names.index(f"{level}_Flex_Ext") for level in skeleton.LUMBAR_LEVELS]
    off = np.asarray(found.coordinates) - np.asarray(ssj.expand_coordinates(model, q))
    return np.degrees(np.sqrt(np.mean(off[:, columns] ** 2, axis=0)))


def test_the_default_prior_does_not_freeze_the_lumbar_spine(spine_model, spine_clip) -> None:
    q, markers = spine_clip
    ours = ssj.solve_ik(spine_model, markers)
    tasks = [
        CoordinateTask(t.coordinate, t.weight, value_type="manual_value", value=t.target)
        for t in skeleton.OFFICIAL_COORDINATE_TASKS
    ]
    weights = tuple(MarkerTask(name, w) for name, w in skeleton.OFFICIAL_MARKER_WEIGHTS.items())
    official = ssj.solve_ik(spine_model, markers, setup=IKSetup(weights, tuple(tasks)))
    moved = np.degrees(np.std(np.asarray(ssj.expand_coordinates(spine_model, q)), axis=0))
    assert moved[spine_model.coordinate_names.index("L5_S1_Flex_Ext")] > 2
    assert (lumbar_flexion_rms(spine_model, ours, q) < 0.5).all()
    frozen = lumbar_flexion_rms(spine_model, official, q)
    assert (frozen > 3 * lumbar_flexion_rms(spine_model, ours, q)).all()
    level = spine_model.free_names.index("L5_S1_Flex_Ext")
    assert np.degrees(np.std(np.asarray(official.q)[:, level])) < 0.3
    # 99 numbers a frame less 40 coordinates; three numbers make a marker's error.
    assert ours.marker_rmse.mean() == pytest.approx(np.sqrt(3 * (1 - 40 / 99)) * NOISE_M, rel=0.1)


def test_shuffled_frames_of_the_spine_end_in_the_same_basins(spine_model, spine_clip) -> None:
    _, markers = spine_clip
    inorder = ssj.solve_ik(spine_model, markers)
    order = np.random.default_rng(0).permutation(len(markers))
    shuffled = ssj.solve_ik(spine_model, markers[order])
    ratio = np.asarray(shuffled.objective) / np.asarray(inorder.objective)[order]
    assert ratio.max() < 1.001
    assert ratio.min() > 1 / 1.001


def test_the_prior_weighs_postures_against_markers(clip: Clip) -> None:
    """Its mode is that of Gaussian errors: checked against the objective written out."""
    spread = np.full(clip.model.n_free, 0.3)
    prior = Prior(marker_std_m=0.02, coordinate_std=spread)
    held = ssj.solve_ik(clip.model, clip.noisy, prior=prior, tolerance=1e-12)
    inner = np.array(clip.model.free_indices(["shoulder", "elbow"]))  # all but the trunk's, which is the root
    assert len(inner) == clip.model.n_free - 6

    def cost(q):
        markers = ssj.forward_kinematics(clip.model, q).markers
        error = jnp.sum((markers - clip.noisy[0]) ** 2) / clip.model.n_markers
        off = (q - clip.model.default_q)[inner] / spread[inner]
        return 0.5 * (error + 0.02**2 / clip.model.n_markers * jnp.sum(off**2))

    np.testing.assert_allclose(held.objective[0], cost(held.q[0]), rtol=1e-9)
    assert np.abs(jax.grad(cost)(held.q[0])).max() < 1e-7
    free = ssj.solve_ik(clip.model, clip.noisy)
    away = [np.abs(np.asarray(x.q - clip.model.default_q))[:, inner].mean() for x in (free, held)]
    assert away[1] < 0.98 * away[0]
    with pytest.raises(ShapeError, match="either a prior or a setup"):
        ssj.solve_ik(clip.model, clip.noisy, prior=prior, setup=markers_only(clip.model))
    with pytest.raises(ShapeError, match="coordinate_std has shape"):
        ssj.solve_ik(clip.model, clip.noisy, prior=Prior(coordinate_std=np.ones(3)))
