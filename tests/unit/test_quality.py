"""Planted faults are found on their frames, other writings of a rotation are none, and gaps are filled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from simspine_jax.annotations import REASONS, Quality, SpineTrial
from simspine_jax.capture import synthetic_motion
from simspine_jax.errors import ShapeError
from simspine_jax.io import read_trc
from simspine_jax.kinematics.curvature import Curvature
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.motions import read_motion
from simspine_jax.quality import QualityLimits, _channels_of, _steps, assess

RATE = 50.0
T = 200  # one padded size, so that each program is compiled once
TIMES = np.arange(T) / RATE
# Angles that were turned by whole turns and back, in float64.
ROUNDING = 1e-12

many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def motion(spine_model: SpineModel) -> np.ndarray:
    q = np.array(synthetic_motion(spine_model, T, RATE, seed=1))
    q.setflags(write=False)
    return q


def residuals_of(model: SpineModel, size_m: float = 0.02) -> np.ndarray:
    return np.full((T, model.n_markers), size_m)


def curvature(lordosis_deg: float = 40.0, kyphosis_deg: float = 33.0) -> Curvature:
    angles = (np.full(T, np.deg2rad(a)) for a in (lordosis_deg, kyphosis_deg))
    return Curvature(*angles)  # pyright: ignore[reportArgumentType]


def column(model: SpineModel, name: str) -> int:
    return model.free_names.index(name)


def frames_with(assessment, flag: Quality) -> list[int]:
    return np.flatnonzero(assessment.quality & np.uint16(flag)).tolist()


NO_FILLING = QualityLimits(fill_seconds=0.0)


@pytest.mark.parametrize("kind", ["mixed", "walk"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_motion_raises_nothing_and_keeps_its_numbers(spine_model, kind, seed: int) -> None:
    q = np.asarray(synthetic_motion(spine_model, T, RATE, seed, kind))
    found = assess(spine_model, TIMES, q, residuals=residuals_of(spine_model), curvature=curvature())
    assert not found.quality.any()
    assert found.events == ()
    np.testing.assert_array_equal(found.q, q)


def test_a_real_trial_raises_nothing_but_jitter(shared_data) -> None:
    """The thresholds on markers and bounds come from such trials; OpenSim solved it frame by frame."""
    folder = shared_data / "pose2sim_demo"
    model = load_model(folder / "model.osim")
    trial = read_trc(folder / "markers.trc").select(model.marker_names)
    solved = read_motion(model, folder / "ik_body25b_opensim46.mot")
    np.testing.assert_allclose(solved.times, trial.times, atol=1e-3)
    markers = jax.jit(lambda q: forward_kinematics(model, q).markers)(jnp.asarray(solved.q))
    away = np.linalg.norm(np.asarray(markers) - trial.positions, axis=-1)
    assert away.max() > 0.06
    found = assess(model, trial.times, solved.q, residuals=away)
    flags = {Quality(int(flag)) for flag in np.unique(found.quality)}
    assert flags <= {Quality.GOOD, Quality.INTERPOLATED}
    assert (found.quality == 0).mean() >= 0.9  # nothing holds a foot's angles from frame to frame there


@many
@given(st.integers(1, T - 12), st.integers(1, 8), st.sampled_from(["nan", "has_pose"]))
def test_frames_without_pose_are_found(spine_model, motion, first: int, length: int, by: str) -> None:
    q, has_pose = motion.copy(), np.ones(T, bool)
    rows = slice(first, first + length)
    if by == "nan":
        q[rows, 5] = np.nan
    else:
        has_pose[rows] = False
    found = assess(spine_model, TIMES, q, has_pose=has_pose, limits=NO_FILLING)
    assert frames_with(found, Quality.NO_POSE) == list(range(first, first + length))
    assert np.isnan(found.q[rows]).all()
    (event,) = found.events
    assert (event.first_frame, event.last_frame, event.outcome) == (first, first + length - 1, "rejected")
    assert event.value == pytest.approx(length / RATE)
    assert (event.limit, event.unit, event.what) == (0.0, "s", "")
    np.testing.assert_array_equal(
        np.delete(found.q, range(first, first + length), 0)[:, 5:],
        np.delete(motion, range(first, first + length), 0)[:, 5:],
    )


@pytest.mark.parametrize(
    ("what", "angle", "limit"),
    [
        ("lordosis", -60.0, -45.0), ("lordosis", 120.0, 100.0),
        ("kyphosis", -30.0, -10.0), ("kyphosis", 95.0, 90.0),
    ],
)  # fmt: skip
def test_implausible_curvature_is_found(spine_model, motion, what: str, angle: float, limit: float) -> None:
    angles = curvature()
    values = np.array(getattr(angles, what))
    values[30:33], values[31] = np.deg2rad(limit + 0.5 * (angle - limit)), np.deg2rad(angle)
    values[40] = np.nan  # unknown, which is no fault
    values[41] = np.deg2rad(limit - np.sign(angle - limit))
    bent = dataclasses.replace(angles, **{what: values})
    found = assess(spine_model, TIMES, motion, curvature=bent, limits=NO_FILLING)
    assert frames_with(found, Quality.CURVATURE) == np.flatnonzero(found.quality).tolist() == [30, 31, 32]
    (event,) = found.events
    assert (event.what, event.limit, event.unit, event.outcome) == (what, limit, "deg", "rejected")
    assert event.value == pytest.approx(angle)
    wide = QualityLimits(lordosis_deg=(-70, 130), kyphosis_deg=(-40, 100))
    assert assess(spine_model, TIMES, motion, curvature=bent, limits=wide).events == ()


def test_markers_far_from_the_model_are_found(spine_model, motion) -> None:
    away = residuals_of(spine_model)
    away[10:13] = 0.061
    away[20, 4] = 0.16
    away[30, :30] = np.nan
    away[40] = np.nan
    weights = np.ones(spine_model.n_markers)
    weights[6] = 0.0
    away[50, 6] = 1.0  # not looked at
    found = assess(spine_model, TIMES, motion, residuals=away, weights=weights, limits=NO_FILLING)
    assert np.flatnonzero(found.quality).tolist() == [10, 11, 12, 20]
    assert frames_with(found, Quality.MARKER_RESIDUAL) == [10, 11, 12, 20]
    whole, single = found.events
    assert (whole.what, whole.unit, whole.limit) == ("all markers", "mm", 60.0)
    assert whole.value == pytest.approx(61)
    assert (single.what, single.first_frame) == (spine_model.marker_names[4], 20)
    assert (single.value, single.limit) == pytest.approx((160, 150))


def test_weights_count_in_the_frames_residual(spine_model, motion) -> None:
    away = residuals_of(spine_model, 0.0)
    away[10, 3] = 0.14
    for weight, seen in ((1.0, False), (20.0, True)):
        weights = np.ones((T, spine_model.n_markers))
        weights[10, 3] = weight
        rms_mm = 1e3 * np.sqrt(np.average(away[10] ** 2, weights=weights[10]))
        assert bool(rms_mm > 60) is seen
        found = assess(spine_model, TIMES, motion, residuals=away, weights=weights, limits=NO_FILLING)
        assert bool(found.quality[10]) is seen
        if seen:
            assert found.events[0].value == pytest.approx(rms_mm)


def test_coordinates_that_stay_at_their_bounds_are_found(spine_model, motion) -> None:
    lower, upper = np.asarray(spine_model.lower), np.asarray(spine_model.upper)
    counted = np.isfinite(lower)
    counted &= np.array([not name.startswith(("pro_sup", "wrist_")) for name in spine_model.free_names])
    index = np.flatnonzero(counted)
    q = np.tile(motion[:1], (T, 1))
    many_, few = index[: int(0.4 * len(index)) + 1], index[: int(0.4 * len(index))]
    q[20:60, few] = lower[few]  # 0.8 s
    q[80:100, many_] = lower[many_]  # 0.4 s
    q[120:150, many_] = upper[many_]  # 0.6 s
    q[120:150, many_[0]] = lower[many_[0]]
    hands = np.isfinite(lower) & ~counted
    q[160:200, hands] = lower[hands]
    calm = QualityLimits(limb_deg_per_s=1e6, trunk_deg_per_s=1e6, fill_seconds=0.0)
    found = assess(spine_model, TIMES, q, limits=calm)
    assert frames_with(found, Quality.JOINT_LIMITS) == list(range(120, 150))
    (event,) = found.events
    assert event.value == pytest.approx(len(many_) / len(index))
    assert (event.limit, event.unit) == (0.4, "1")
    brief = dataclasses.replace(calm, bound_seconds=0.3)
    assert frames_with(assess(spine_model, TIMES, q, limits=brief), Quality.JOINT_LIMITS) == [
        *range(80, 100), *range(120, 150),
    ]  # fmt: skip
    lenient = dataclasses.replace(calm, bound_share=0.9)
    assert not assess(spine_model, TIMES, q, limits=lenient).quality.any()


JUMPS = {
    "elbow_flex_r": ("elbow_flex_r", 1.2, "deg"),
    "arm_flex_l": ("arm_flex_l, arm_add_l, arm_rot_l", 1.5, "deg"),
    "hip_flexion_r": ("hip_flexion_r, hip_adduction_r, hip_rotation_r", 1.2, "deg"),
    "neck_flexion": ("neck_flexion, neck_bending, neck_rotation", 0.6, "deg"),
    # The couplers turn the whole lumbar spine by seven times this.
    "L5_S1_Flex_Ext": ("L5_S1_Flex_Ext", 0.09, "deg"),
    "pelvis_tx": ("pelvis_tx", 0.4, "mm"),
}


@pytest.mark.parametrize("name", JUMPS)
@pytest.mark.parametrize("length", [1, 4])
def test_a_coordinate_that_leaves_and_comes_back_is_found(spine_model, motion, name: str, length: int):
    what, size, unit = JUMPS[name]
    q = motion.copy()
    q[70 : 70 + length, column(spine_model, name)] += size
    found = assess(spine_model, TIMES, q)
    frames = list(range(70, 70 + length))
    assert np.flatnonzero(found.quality).tolist() == frames
    assert set(found.quality[frames].tolist()) == {int(Quality.INTERPOLATED)}
    (event,) = found.events
    assert (event.what, event.unit, event.outcome) == (what, unit, "repaired")
    assert (event.first_frame, event.last_frame) == (70, 69 + length)
    assert event.value is not None
    assert event.limit is not None
    assert event.value > event.limit
    brief = assess(spine_model, TIMES, q, limits=dataclasses.replace(QualityLimits(), fill_seconds=0.04))
    assert brief.repaired.sum() == (1 if length == 1 else 0)
    assert frames_with(brief, Quality.ANGULAR_JUMP) == ([] if length == 1 else frames)
    believing = dataclasses.replace(NO_FILLING, displaced_seconds=0.04)
    ends = frames if length == 1 else [69, 70, 73, 74]
    assert frames_with(assess(spine_model, TIMES, q, limits=believing), Quality.ANGULAR_JUMP) == ends


def test_speed_limits_are_of_limbs_trunk_and_slides(spine_model, motion) -> None:
    fast = {
        "limb_deg_per_s": "elbow_flex_r",
        "trunk_deg_per_s": "L5_S1_Flex_Ext",
        "slide_m_per_s": "pelvis_tx",
    }
    for limit, name in fast.items():
        q = motion.copy()
        q[70, column(spine_model, name)] += JUMPS[name][1]
        for other in fast:
            seen = assess(spine_model, TIMES, q, limits=dataclasses.replace(QualityLimits(), **{other: 1e6}))
            assert seen.quality.any() == (other != limit)


def test_a_step_that_stays_is_told_on_both_sides_and_not_smoothed_away(spine_model, motion) -> None:
    q = motion.copy()
    q[100:, column(spine_model, "elbow_flex_r")] += 2.2
    found = assess(spine_model, TIMES, q)
    assert np.flatnonzero(found.quality).tolist() == frames_with(found, Quality.ANGULAR_JUMP) == [99, 100]
    assert found.events[0].outcome == "rejected"
    assert found.events[0].value == pytest.approx(np.rad2deg(2.2), abs=5)
    assert found.events[0].limit == pytest.approx(1500 / RATE)
    np.testing.assert_array_equal(found.q, q)


def test_jumps_of_what_keypoints_hardly_see_are_only_noted(spine_model, motion) -> None:
    q = motion.copy()
    q[70, column(spine_model, "wrist_flex_r")] += 1.5
    found = assess(spine_model, TIMES, q)
    assert not found.quality.any()
    (event,) = found.events
    assert (event.what, event.outcome, event.first_frame, event.last_frame) == (
        "wrist_flex_r",
        "noted",
        70,
        70,
    )
    np.testing.assert_array_equal(found.q, q)
    strict = dataclasses.replace(QualityLimits(), unobservable=())
    assert assess(spine_model, TIMES, q, limits=strict).repaired[70]


def arms(model: SpineModel) -> list[int]:
    return [column(model, f"arm_{axis}_{side}") for side in "rl" for axis in ("flex", "add", "rot")]


def swinging(model: SpineModel, motion: np.ndarray) -> np.ndarray:
    """Arms that go round and round, at 4 rad/s."""
    q = motion.copy()
    for i, speed in zip(arms(model), (4.0, 0.0, -2.0, -4.0, 0.0, 2.0), strict=True):
        q[:, i] += speed * TIMES
    return q


def test_whole_turns_of_the_arms_raise_nothing_and_come_out_continuous(spine_model, motion) -> None:
    truth = swinging(spine_model, motion)
    index = arms(spine_model)
    q = truth.copy()
    q[:, index] = (q[:, index] + np.pi) % (2 * np.pi) - np.pi
    assert (np.abs(np.diff(q, axis=0)).max(axis=0)[index] > 6).sum() >= 4
    found = assess(spine_model, TIMES, q)
    assert not found.quality.any()
    assert found.events == ()
    turns = (found.q - truth) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.broadcast_to(np.round(turns[:1]), turns.shape), atol=ROUNDING)
    np.testing.assert_array_equal(found.q[0], q[0])


def other_angles(q: np.ndarray, index: list[int]) -> np.ndarray:
    flipped = q.copy()
    flipped[..., index] = np.stack(
        [q[..., index[0]] + np.pi, np.pi - q[..., index[1]], q[..., index[2]] - np.pi], axis=-1
    )
    return flipped


@many
@given(st.lists(st.integers(0, T), min_size=1, max_size=8), st.sampled_from(["arm_{}_l", "arm_{}_r"]))
def test_the_other_set_of_angles_is_made_continuous(spine_model, motion, cuts: list[int], pattern: str):
    """Whichever stretches are written so; of the two ways for all, most frames keep theirs."""
    index = [column(spine_model, pattern.format(axis)) for axis in ("flex", "add", "rot")]
    truth = swinging(spine_model, motion)
    flip = np.zeros(T, bool)
    for cut in cuts:
        flip[cut:] ^= True
    q = np.where(flip[:, None], other_angles(truth, index), truth)
    found = assess(spine_model, TIMES, q)
    assert not found.quality.any()
    if 2 * flip.sum() == T:
        return
    most = other_angles(truth, index) if 2 * flip.sum() > T else truth
    turns = (found.q - most) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.broadcast_to(np.round(turns[:1]), turns.shape), atol=ROUNDING)
    changed = flip if 2 * flip.sum() < T else ~flip
    told = np.zeros(T, bool)
    for event in found.events:
        assert event.outcome == "noted"  # the pose is the same one
        assert event.what == ", ".join(spine_model.free_names[i] for i in index)
        told[event.first_frame : event.last_frame + 1] = True
    np.testing.assert_array_equal(told, changed)


def test_the_other_set_of_angles_is_the_same_pose(spine_model) -> None:
    """The model's own kinematics say so, for each joint that this module flips."""
    crossed = _channels_of(spine_model).crossed
    flipping = [list(joint) for joint, flips in zip(crossed.joints, crossed.flips, strict=True) if flips]
    names = [", ".join(spine_model.free_names[i] for i in joint) for joint in flipping]
    assert names == [
        "pelvis_tilt, pelvis_list, pelvis_rotation",
        "arm_flex_r, arm_add_r, arm_rot_r",
        "arm_flex_l, arm_add_l, arm_rot_l",
    ]
    q = np.tile(np.asarray(spine_model.default_q), (4, 1))
    q[:, [i for joint in flipping for i in joint]] = np.random.default_rng(0).uniform(-3, 3, (4, 9))
    flipped = q
    for joint in flipping:
        flipped = other_angles(flipped, joint)
    engine = jax.jit(lambda q: forward_kinematics(spine_model, q).markers)
    np.testing.assert_allclose(engine(jnp.asarray(flipped)), engine(jnp.asarray(q)), atol=1e-12)


def test_a_joints_speed_is_that_of_its_rotation(spine_model) -> None:
    index = [column(spine_model, f"arm_{axis}_r") for axis in ("flex", "add", "rot")]
    channels = _channels_of(spine_model)
    q = np.random.default_rng(1).uniform(-3, 3, (256, spine_model.n_free))
    mask = np.random.default_rng(2).uniform(size=256) < 0.7
    steps, before = _steps(channels, jnp.asarray(q), jnp.asarray(mask))
    turned = Rotation.from_euler("ZXY", q[np.flatnonzero(mask)][:, index])
    expected = (turned[:-1].inv() * turned[1:]).magnitude()
    got = np.asarray(steps)[mask, channels.crossed.joints.index(tuple(index))]
    np.testing.assert_allclose(got[1:], expected, atol=1e-9)
    assert got[0] == 0.0
    np.testing.assert_array_equal(np.asarray(before)[mask][1:], np.flatnonzero(mask)[:-1])
    assert not np.asarray(steps)[~mask].any()


def test_an_arm_through_gimbal_lock_raises_nothing(spine_model, motion) -> None:
    """The arm goes half a degree past straight sideways, where flexion and rotation swing in a few frames."""
    index = [column(spine_model, f"arm_{axis}_r") for axis in ("flex", "add", "rot")]
    lift = Rotation.from_euler("ZXY", np.stack([0 * TIMES, -np.linspace(1.0, 2.2, T), 0 * TIMES], -1))
    path = Rotation.from_rotvec(np.deg2rad(0.4) * np.array([0, 1.0, 0])) * lift
    q = motion.copy()
    q[:, index] = path.as_euler("ZXY")
    assert np.rad2deg(np.abs(np.diff(q[:, index], axis=0)).max()) * RATE > 1500
    found = assess(spine_model, TIMES, q)
    assert not found.quality.any()


@many
@given(st.integers(5, T - 20), st.integers(1, 4))
def test_a_spike_amid_turns_does_not_move_what_follows(spine_model, motion, at: int, length: int) -> None:
    truth = swinging(spine_model, motion)
    index = arms(spine_model)
    q = truth.copy()
    q[at : at + length, index[0]] += np.linspace(2.0, 4.2, length)
    q[at : at + length, index[1]] += 0.4
    q[:, index] = (q[:, index] + np.pi) % (2 * np.pi) - np.pi
    found = assess(spine_model, TIMES, q)
    assert set(np.flatnonzero(found.quality).tolist()) <= set(range(at, at + length))
    good = found.quality == 0
    turns = ((found.q - truth) / (2 * np.pi))[good]
    np.testing.assert_allclose(turns, np.broadcast_to(np.round(turns[:1]), turns.shape), atol=ROUNDING)


# Ten frames at 50 Hz of a stride, whose knees move fastest: 2.1 degrees was the worst of some 400 gaps.
FILLED_DEG = 3.0


@many
@given(st.lists(st.integers(2, T - 13), min_size=1, max_size=4), st.integers(1, 10), st.integers(0, 5))
def test_filled_frames_are_near_the_truth(spine_model, starts: list[int], length: int, seed: int) -> None:
    # Gaps that are one, or some good frames apart: a single one between two gaps says little of its velocity.
    assume(all(apart <= length or apart >= length + 5 for apart in np.diff(np.sort(starts))))
    truth = np.asarray(synthetic_motion(spine_model, T, RATE, seed, "walk"))
    gone = np.zeros(T, bool)
    for start in starts:
        gone[start : start + length] = True
    q = np.where(gone[:, None], np.nan, truth)
    found = assess(spine_model, TIMES, q)
    short = np.zeros(T, bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], gone, [0]])))
    for first, end in edges.reshape(-1, 2):
        short[first:end] = end - first <= 10
    np.testing.assert_array_equal(found.repaired, short)
    np.testing.assert_array_equal(frames_with(found, Quality.NO_POSE), np.flatnonzero(gone & ~short))
    rotational = np.array(spine_model.rotational)[spine_model.coordinate_map.free_indices]
    error = np.abs(found.q - truth)[short]
    assert np.rad2deg(error[:, rotational]).max(initial=0) < FILLED_DEG
    assert error[:, ~rotational].max(initial=0) < 0.005
    np.testing.assert_array_equal(found.q[~gone], truth[~gone])
    assert np.isnan(found.q[gone & ~short]).all()
    lower, upper = np.asarray(spine_model.lower), np.asarray(spine_model.upper)
    assert ((found.q[short] >= lower) & (found.q[short] <= upper)).all()


def test_a_repair_and_what_stays_rejected_are_told_apart(spine_model, motion) -> None:
    """One finding runs over frames of which a part is repaired: at the trial's end nothing can be."""
    bent = curvature()
    lordosis = np.array(bent.lordosis)
    lordosis[[50, 51, 198, 199]] = -2.0
    found = assess(spine_model, TIMES, motion, curvature=dataclasses.replace(bent, lordosis=lordosis))
    assert [(e.first_frame, e.last_frame, e.outcome) for e in found.events] == [
        (50, 51, "repaired"), (198, 199, "rejected"),
    ]  # fmt: skip
    assert found.quality[[50, 198]].tolist() == [Quality.INTERPOLATED, Quality.CURVATURE]
    assert found.usable.sum() == T - 2


def test_findings_tell_the_faults_of_before_the_repair(spine_model, motion) -> None:
    """One of each kind, in frames that are repaired and in frames that stay."""
    q = motion.copy()
    q[[20, 21]] = np.nan
    q[70, column(spine_model, "elbow_flex_r")] += 1.2
    away = residuals_of(spine_model)
    away[90:93] = 0.2
    bent = curvature()
    lordosis, kyphosis = np.array(bent.lordosis), np.array(bent.kyphosis)
    lordosis[120:150], kyphosis[160] = 2.0, -1.0
    planted = dataclasses.replace(bent, lordosis=lordosis, kyphosis=kyphosis)
    found = assess(spine_model, TIMES, q, residuals=away, curvature=planted)
    trial = SpineTrial(
        "S1", "x", TIMES, RATE, np.zeros((T, 37, 3)), np.zeros((T, 62)), found.quality, events=found.events
    )
    before = assess(
        spine_model, TIMES, q, residuals=away, curvature=planted,
        limits=dataclasses.replace(QualityLimits(), fill_seconds=0.0),
    )  # fmt: skip
    assert before.quality[[20, 70, 90, 120, 160]].all()
    np.testing.assert_array_equal(trial.faults_before, before.quality)
    np.testing.assert_array_equal(trial.repaired, found.repaired)
    assert trial.repaired[[20, 21, 70, 90, 160]].all()
    assert not trial.repaired[120:150].any()
    assert {event.reason for event in found.events} <= {r for reasons in REASONS.values() for r in reasons}


def test_a_trial_without_any_pose(spine_model) -> None:
    nothing = np.full((T, spine_model.n_free), np.nan)
    dark = Curvature(np.full(T, np.nan), np.full(T, np.nan))  # pyright: ignore[reportArgumentType]
    found = assess(
        spine_model, TIMES, nothing, residuals=np.full((T, spine_model.n_markers), np.nan), curvature=dark
    )
    assert set(found.quality.tolist()) == {int(Quality.NO_POSE)}
    assert np.isnan(found.q).all()
    (event,) = found.events
    assert (event.first_frame, event.last_frame, event.value) == (0, T - 1, pytest.approx(4.0))
    assert not found.usable.any()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_very_short_trials_pass(spine_model, motion, n: int) -> None:
    found = assess(spine_model, TIMES[:n], motion[:n])
    np.testing.assert_array_equal(found.q, motion[:n])
    assert found.quality.shape == (n,)


@pytest.mark.usefixtures("float32")
def test_single_precision_keeps_the_numbers_of_good_frames(spine_model, motion) -> None:
    truth = swinging(spine_model, motion)
    q = truth.copy()
    q[60:63] = np.nan
    found = assess(spine_model, TIMES, q)
    assert np.flatnonzero(found.quality).tolist() == [60, 61, 62]
    np.testing.assert_array_equal(np.delete(found.q, [60, 61, 62], 0), np.delete(q, [60, 61, 62], 0))
    np.testing.assert_allclose(found.q[60:63], truth[60:63], atol=np.deg2rad(FILLED_DEG))


def test_what_does_not_fit_together_is_refused(spine_model, motion) -> None:
    with pytest.raises(ShapeError, match="q has the shape"):
        assess(spine_model, TIMES, motion[:, 1:])
    with pytest.raises(ShapeError, match="residuals has the shape"):
        assess(spine_model, TIMES, motion, residuals=np.zeros((T, 3)))
    with pytest.raises(ShapeError, match="weights has the shape"):
        assess(spine_model, TIMES, motion, residuals=residuals_of(spine_model), weights=np.ones(3))
    uneven = TIMES.copy()
    uneven[50:] += 0.1
    for times in (uneven, TIMES[::-1]):
        with pytest.raises(ShapeError, match="resample"):
            assess(spine_model, times, motion)
    with pytest.raises(ShapeError, match="lordosis_deg"):
        QualityLimits(lordosis_deg=(50, 20))
    with pytest.raises(ShapeError, match="fill_seconds"):
        QualityLimits(fill_seconds=-1)
