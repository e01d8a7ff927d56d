"""Scale factors: what is measured, what can't be, and how robust it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import simspine_jax as ssj
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.io import ManualScale, Measurement, ScaleSetup, ScalingStage
from simspine_jax.kinematics import scaling
from simspine_jax.kinematics.scaling import ScaleStatus, scale_factors, shrink_to_stature

RULER = Measurement("trunk", (("trunk.0", "trunk.1"), ("trunk.0", "trunk.2")), ("trunk",))
UPPER = Measurement("upper", (("humerus.0", "humerus.1"),), ("humerus", "radius"), ("XZ", "Y"))


def trial(model: ssj.SpineModel, factors: np.ndarray, n_frames: int = 20, seed: int = 0) -> np.ndarray:
    """Markers of the scaled model in slow motion."""
    rng = np.random.default_rng(seed)
    ends = model.default_q + rng.normal(0, 0.2, (2, model.n_free))
    share = np.linspace(0, 1, n_frames)[:, None]
    q = (1 - share) * ends[0] + share * ends[1]
    return np.array(ssj.forward_kinematics(model, q, scale_factors=factors).markers)


def random_factors(model: ssj.SpineModel, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.7, 1.4, (len(model.body_names), 1))


@pytest.mark.parametrize("method", ["opensim", "robust"])
def test_factors_are_found_again(arm_model, method) -> None:
    """Each body is measured by its own markers, so that the factors that made the trial come back."""
    factors = random_factors(arm_model, 1)
    each = [Measurement(b, ((f"{b}.0", f"{b}.1"), (f"{b}.2", f"{b}.1")), (b,)) for b in arm_model.body_names]
    found = scale_factors(arm_model, trial(arm_model, factors), arm_model.marker_names, each, method=method)
    assert np.ptp(factors) > 0.2
    np.testing.assert_allclose(found.factors, np.broadcast_to(factors, (4, 3)), rtol=1e-12)
    assert found.measured.all()
    assert (found.status == ScaleStatus.MEASURED).all()
    # A trial scaled by what was found measures as one.
    again = scale_factors(arm_model, trial(arm_model, np.ones((4, 1))), arm_model.marker_names, each)
    np.testing.assert_allclose(again.factors, 1, rtol=1e-12)


def test_ratios_are_means_of_the_pairs(arm_model) -> None:
    markers = trial(arm_model, np.ones((4, 1)))[:3]
    markers[:, 1] = markers[:, 0] + [[0.1, 0, 0], [0.2, 0, 0], [0.6, 0, 0]]
    found = scale_factors(arm_model, markers, arm_model.marker_names, [RULER], method="opensim")
    places = np.asarray(arm_model.marker_locations)
    lengths = np.linalg.norm(places[0] - places[1:3], axis=-1)
    np.testing.assert_allclose(found.model_lengths, lengths)
    np.testing.assert_allclose(found.trial_lengths, [0.3, lengths[1]])
    np.testing.assert_allclose(found.ratios, [(0.3 / lengths[0] + 1) / 2])
    assert found.pairs == (("trunk", "trunk.0", "trunk.1"), ("trunk", "trunk.0", "trunk.2"))
    assert found.frames_used.tolist() == [3, 3]


def test_axes_bodies_and_order(arm_model) -> None:
    factors = np.array([1.2, 0.8, 1.0, 1.0])[:, None]
    markers = trial(arm_model, factors)
    names = arm_model.marker_names
    given = ManualScale("radius", (2.0, 3.0, 4.0))
    off = ManualScale("trunk", (9.0, 9.0, 9.0), apply=False)
    lost = Measurement("lost", RULER.pairs, ("tail", "trunk"), ("XYZ", "Y"))
    found = scale_factors(arm_model, markers, names, [UPPER, lost], manual=[given, off])
    np.testing.assert_allclose(found.factors, [[1, 1.2, 1], [0.8, 1, 0.8], [2, 3, 4], [1, 1, 1]], rtol=1e-12)
    assert found.measured.tolist() == [[False, True, False], [True, False, True], [False] * 3, [False] * 3]
    assert found.ignored_bodies == ("tail",)
    turned = scale_factors(
        arm_model, markers, names, [UPPER], manual=[given], order=("manualScale", "measurements")
    )
    np.testing.assert_allclose(turned.factors[2], [2, 0.8, 4], rtol=1e-12)
    later = Measurement("later", RULER.pairs, ("humerus",), ("Z",))
    np.testing.assert_allclose(
        scale_factors(arm_model, markers, names, [UPPER, later]).factors[1], [0.8, 1, 1.2], rtol=1e-12
    )
    none = scale_factors(arm_model, markers, names, [UPPER], order=())
    np.testing.assert_array_equal(none.factors, 1)


@pytest.mark.parametrize("method", ["opensim", "robust"])
def test_what_cannot_be_measured_is_told(arm_model, method) -> None:
    names = [*arm_model.marker_names[:-1], "elsewhere"]
    markers = trial(arm_model, np.full((4, 1), 1.1))
    markers[3, 1] = np.nan  # trunk.1 in one frame
    markers[:, 4] = np.nan  # humerus.1 always
    same = Measurement("same", (("trunk.0", "trunk.0"),), ("trunk",))
    cases = {
        RULER: ScaleStatus.MEASURED if method == "robust" else ScaleStatus.MISSING_IN_FRAMES,
        UPPER: ScaleStatus.MISSING_IN_FRAMES,
        Measurement("unnamed", (), ("trunk",)): ScaleStatus.NO_PAIRS,
        Measurement("off", RULER.pairs, ("trunk",), apply=False): ScaleStatus.SWITCHED_OFF,
        Measurement("odd", (("trunk.0", "elsewhere"),), ("trunk",)): ScaleStatus.NOT_ON_MODEL,
        Measurement("gone", (("trunk.0", "hand.2"),), ("hand",)): ScaleStatus.NOT_IN_TRIAL,
        same: ScaleStatus.NOT_ON_MODEL,
    }  # fmt: skip
    found = scale_factors(arm_model, markers, names, list(cases), method=method)
    assert [ScaleStatus(int(s)) for s in found.status] == list(cases.values())
    np.testing.assert_array_equal(np.isnan(found.ratios), [s != 0 for s in cases.values()])
    np.testing.assert_allclose(found.factors[0], 1.1 if method == "robust" else 1.0, rtol=1e-12)
    np.testing.assert_array_equal(found.factors[1:], 1)
    # One side that is never seen costs the measurement in OpenSim, and only that pair in the robust method.
    half = Measurement("half", (("trunk.0", "trunk.2"), ("humerus.0", "humerus.1")), ("trunk",))
    ratio = scale_factors(arm_model, markers, names, [half], method=method).ratios
    np.testing.assert_allclose(ratio, 1.1 if method == "robust" else np.nan, rtol=1e-12)


def test_sides_are_averaged() -> None:
    bodies = ("pelvis", "femur_r", "femur_l", "tibia_r", "tibia_l", "hand_r", "toes_l", "toes_r")
    factors = jnp.array([1.3, 1.1, 0.9, 1.2, 1.0, 1.4, 0.8, 1.6])[:, None] * jnp.ones(3)
    measured, given, default = scaling._MEASURED, scaling._GIVEN, scaling._DEFAULT
    origin = jnp.array([measured, measured, measured, measured, default, measured, given, measured])
    origin = origin[:, None] * jnp.ones(3, int)
    found, whence = scaling._average_sides(bodies, factors, origin)
    np.testing.assert_allclose(found[:, 1], [1.3, 1.0, 1.0, 1.2, 1.2, 1.4, 0.8, 1.6])
    assert whence[:, 1].tolist() == [measured] * 6 + [given, measured]
    assert [scaling.other_side(b) for b in ("femur_r", "toes_l", "pelvis")] == ["femur_l", "toes_r", "pelvis"]


def test_symmetric_factors_of_the_spine_model(spine_model) -> None:
    names, n = spine_model.marker_names, len(spine_model.body_names)
    markers = np.array(ssj.forward_kinematics(spine_model, spine_model.default_q).markers)[None]
    markers[:, names.index("RKnee"), 1] += 0.05
    single = [
        Measurement("r", (("RHip", "RKnee"),), ("femur_r",)),
        Measurement("l", (("LHip", "LKnee"),), ("femur_l",)),
    ]
    rows = [spine_model.body_names.index(b) for b in ("femur_r", "femur_l")]
    apart = np.asarray(scale_factors(spine_model, markers, names, single).factors)[rows, 0]
    alike = np.asarray(scale_factors(spine_model, markers, names, single, symmetric=True).factors)[rows, 0]
    assert apart[1] - apart[0] > 0.1
    np.testing.assert_allclose(alike, apart.mean(), rtol=1e-12)
    paper = scale_factors(spine_model, markers, names)
    assert (paper.status == ScaleStatus.MEASURED).all()
    assert not paper.ignored_bodies
    left_out = [b for b, m in zip(spine_model.body_names, paper.measured, strict=True) if not m.all()]
    assert left_out == ["Abdomen"]
    assert n == 30


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.sampled_from([0.0, 0.1, 0.25, 0.4]), st.data()
)
def test_trimmed_mean_is_scipys(values, fraction, data) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    found = scaling.trimmed_mean(jnp.array(values), jnp.asarray(mask), fraction)
    if not mask.any():
        assert np.isnan(found)
        return
    expected = stats.trim_mean(np.array(values)[mask], fraction)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def bent_trial(
    model: ssj.SpineModel, n_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Markers [T K 3] of a scaled person who stands and bends deeply by turns; and the factors."""
    factors = np.ones((len(model.body_names), 1)) * 1.08
    q = np.tile(np.asarray(model.default_q), (n_frames, 1))
    bend = np.clip(np.sin(np.linspace(0, 4 * np.pi, n_frames)), 0, None)
    q[:, model.free_names.index("L5_S1_Flex_Ext")] -= 0.25 * bend
    q[:, model.free_names.index("hip_flexion_r")] += 1.2 * bend
    q[:, model.free_names.index("hip_flexion_l")] += 1.2 * bend
    markers = np.array(ssj.forward_kinematics(model, q, scale_factors=factors).markers)
    # Triangulation is worse where markers are fast, and some points are far off.
    speed = np.linalg.norm(np.gradient(markers, axis=0), axis=-1, keepdims=True)
    markers += rng.normal(0, 1, markers.shape) * (0.005 + 0.5 * speed)
    wild = rng.random(markers.shape[:2]) < 0.04
    markers[wild] += rng.normal(0, 0.3, (wild.sum(), 3))
    markers[rng.random(markers.shape[:2]) < 0.1] = np.nan
    return markers, factors


def test_the_robust_method_withstands_motion_gaps_and_outliers(spine_model) -> None:
    markers, factors = bent_trial(spine_model, 400, np.random.default_rng(5))
    names = spine_model.marker_names
    found = scale_factors(spine_model, markers, names)
    assert (found.status == ScaleStatus.MEASURED).all()
    assert np.isnan(markers).any(axis=(0, 2)).all()
    errors = np.abs(np.asarray(found.ratios) / factors[0] - 1)
    plain = np.nanmean(
        np.asarray(scaling.measurement_distances(markers, names, [p[1:] for p in found.pairs])), 0
    )
    by_mean = np.abs(plain / np.asarray(found.model_lengths) / factors[0] - 1)
    by_pair = np.abs(np.asarray(found.trial_lengths) / np.asarray(found.model_lengths) / factors[0] - 1)
    assert errors.max() < 0.01
    # A mean over all frames is off by several per cent.
    assert by_mean.min() > 2 * by_pair.max()
    assert (np.asarray(found.frames_used) > 50).all()
    refused = scale_factors(spine_model, markers, names, method="opensim")
    assert (refused.status == ScaleStatus.MISSING_IN_FRAMES).all()


def test_bent_frames_are_left_out(spine_model) -> None:
    """Without noise the trunk is taken from upright frames alone."""
    names = spine_model.marker_names
    q = np.tile(np.asarray(spine_model.default_q), (100, 1))
    q[40:, spine_model.free_names.index("hip_flexion_r")] = 1.5
    q[40:, spine_model.free_names.index("L5_S1_Flex_Ext")] = -0.6
    markers = np.asarray(ssj.forward_kinematics(spine_model, q).markers)
    torso = scaling.PAPER_MEASUREMENTS[:1]
    bent = scale_factors(spine_model, markers, names, torso, method="opensim")
    robust = scale_factors(spine_model, markers, names, torso)
    assert bent.ratios[0] < 0.97
    np.testing.assert_allclose(robust.ratios, 1, rtol=1e-12)
    assert (robust.frames_used <= 40).all()


@pytest.mark.parametrize("method", ["opensim", "robust"])
def test_derivatives_are_those_of_differences(arm_model, method) -> None:
    rng = np.random.default_rng(3)
    markers = trial(arm_model, random_factors(arm_model, 3), n_frames=9) + rng.normal(0, 1e-3, (9, 12, 3))
    if method == "robust":
        markers[2, 0] = np.nan
    weights = rng.normal(0, 1, (4, 3))

    def total(x):
        found = scale_factors(arm_model, x, arm_model.marker_names, [RULER, UPPER], method=method)
        return jnp.sum(weights * found.factors)

    slope = np.asarray(jax.grad(total)(jnp.asarray(markers)))
    assert np.isfinite(slope).all()
    assert (slope != 0).sum() > 10
    direction = rng.normal(0, 1, markers.shape)
    step = 1e-6
    difference = (total(markers + step * direction) - total(markers - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(slope * direction), difference, rtol=1e-6)


def test_float32_and_jit(arm_model, float32) -> None:
    model = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, arm_model)
    markers = jnp.asarray(trial(model, np.full((4, 1), 1.1)), jnp.float32)
    found = jax.jit(lambda m, x: scale_factors(m, x, m.marker_names, [RULER]))(model, markers)
    assert found.factors.dtype == jnp.float32
    np.testing.assert_allclose(found.factors[0], 1.1, rtol=1e-5)


def test_frames_of_a_time_range() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    cases = {
        (-np.inf, np.inf): (0, 5), (0.1, 0.3): (1, 4), (0.15, 0.25): (1, 4), (-1, 0.0): (0, 1),
        (0.35, 9): (3, 5), (9, 10): (4, 5), (-2, -1): (0, 1), (0.2, 0.2): (2, 3),
    }  # fmt: skip
    for span, (start, stop) in cases.items():
        assert scaling.frames_between(times, span) == slice(start, stop), span


def test_a_setup_drives_the_scaling(arm_model) -> None:
    markers = trial(arm_model, np.full((4, 1), 1.2))
    markers[12:] *= 3
    times = np.arange(20) / 10
    stage = ScalingStage(order=("measurements",), measurements=(RULER,), time_range=(0.2, 1.0))
    found = scaling.scale_by_setup(
        arm_model, markers, arm_model.marker_names, times, ScaleSetup(scaling=stage)
    )
    np.testing.assert_allclose(found.factors[0], 1.2, rtol=1e-12)
    off = ScaleSetup(scaling=ScalingStage(apply=False, order=stage.order, measurements=stage.measurements))
    unscaled = scaling.scale_by_setup(arm_model, markers, arm_model.marker_names, times, off)
    np.testing.assert_array_equal(unscaled.factors, 1)
    with pytest.raises(ShapeError, match=r"times has shape \(3,\) for 20 frames"):
        scaling.scale_by_setup(arm_model, markers, arm_model.marker_names, times[:3], off)


def test_height_grows_with_the_body(spine_model) -> None:
    n = len(spine_model.body_names)
    height = float(scaling.estimate_height(spine_model, np.ones((n, 1))))
    assert height == scaling.GENERIC_HEIGHT_M
    np.testing.assert_allclose(scaling.estimate_height(spine_model, np.full((n, 1), 1.1)), 1.1 * height)
    legs = np.ones((n, 1))
    legs[[i for i, b in enumerate(spine_model.body_names) if b.startswith(("femur", "tibia"))]] = 1.1
    assert 1.03 * height < scaling.estimate_height(spine_model, legs) < 1.07 * height
    # The constant is the height of the paper's Head marker.
    head = spine_model.marker_names.index("Head")
    markers = ssj.forward_kinematics(spine_model, spine_model.default_q).markers
    assert abs(float(markers[head, 1]) - scaling.GENERIC_HEIGHT_M) < 0.005


def test_wrong_arguments_are_named(arm_model) -> None:
    names = arm_model.marker_names
    markers = trial(arm_model, np.ones((4, 1)))
    with pytest.raises(ShapeError, match=r"markers has shape \(20, 12, 3\); it must be \(frames, 3, 3\)"):
        scale_factors(arm_model, markers, names[:3], [RULER])
    with pytest.raises(ShapeError, match="at least one frame"):
        scale_factors(arm_model, markers[:0], names, [RULER])
    with pytest.raises(ShapeError, match="a name twice"):
        scale_factors(arm_model, markers, (*names[:-1], names[0]), [RULER])
    with pytest.raises(ShapeError, match="method 'best' is unknown; valid are opensim and robust"):
        scale_factors(arm_model, markers, names, [RULER], method="best")
    with pytest.raises(ShapeError, match="step 'manual' is unknown"):
        scale_factors(arm_model, markers, names, [RULER], order=("manual",))
    with pytest.raises(UnknownNameError, match=r"Marker 'tail' is not in the trial; it has: trunk\.0"):
        scaling.measurement_distances(markers, names, [("tail", "trunk.0")])


def each_body(model) -> list[Measurement]:
    return [Measurement(b, ((f"{b}.0", f"{b}.1"), (f"{b}.2", f"{b}.1")), (b,)) for b in model.body_names]


def test_exact_markers_keep_their_proportions_and_bad_ones_only_tell_the_stature(arm_model) -> None:
    factors, measures = random_factors(arm_model, 3), each_body(arm_model)
    found = scale_factors(arm_model, trial(arm_model, factors), arm_model.marker_names, measures)
    exact = shrink_to_stature(arm_model, found, measures, marker_std_m=0.0, proportion_std=1.0)
    np.testing.assert_allclose(exact, np.broadcast_to(factors, (4, 3)), rtol=1e-9)
    useless = np.asarray(shrink_to_stature(arm_model, found, measures, marker_std_m=100.0))
    assert np.ptp(useless) < 1e-6
    assert factors.min() < useless[0, 0] < factors.max()
    known = shrink_to_stature(arm_model, found, measures, marker_std_m=100.0, stature=1.1)
    np.testing.assert_allclose(known, 1.1, rtol=1e-6)


def test_shrinking_is_the_posterior_mean(arm_model) -> None:
    """Against a dense Gaussian posterior: the ratios of all measurements given those that were seen."""
    measures = each_body(arm_model)
    found = scale_factors(
        arm_model, trial(arm_model, random_factors(arm_model, 4)), arm_model.marker_names, measures
    )
    lengths = np.asarray(found.model_lengths).reshape(-1, 2).mean(axis=1)
    noise, spread, broad = 2 * (0.02 / lengths) ** 2, 0.03**2, 1e6
    prior = broad + spread * np.eye(len(lengths))
    gain = prior @ np.linalg.inv(prior + np.diag(noise))
    expected = 1 + gain @ (np.asarray(found.ratios) - 1)
    got = shrink_to_stature(arm_model, found, measures, marker_std_m=0.02)
    np.testing.assert_allclose(np.asarray(got)[:, 0], expected, rtol=1e-5)


def test_without_any_measure_the_size_is_unknown(arm_model) -> None:
    nowhere = np.full((5, arm_model.n_markers, 3), np.nan)
    found = scale_factors(arm_model, nowhere, arm_model.marker_names, each_body(arm_model))
    with pytest.raises(ShapeError, match="size is not known"):
        shrink_to_stature(arm_model, found, each_body(arm_model), marker_std_m=0.02)
