"""Errors of 3D keypoints by what they must keep, where shapes are degenerate, and their derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from simspine_jax.errors import ShapeError
from simspine_jax.metrics import pose3d
from simspine_jax.metrics.intervals import bootstrap
from simspine_jax.metrics.masked import Masked
from simspine_jax.metrics.pose3d import (
    HIP,
    PARENT_BONES,
    RIGID_BONES,
    acceleration_error,
    bone_length_change,
    bone_length_error,
    bone_lengths,
    by_region,
    distances,
    mpjpe,
    mpjve,
    n_mpjpe,
    p_mpjpe,
    regions_among,
)
from simspine_jax.skeleton import KEYPOINT_NAMES, REDUCED_IDS, REGIONS

SEEDS = st.integers(0, 2**31)
# Float64 of bodies of about a metre at up to ten metres.
ROUNDING = 1e-12
SINGLE = (mpjpe, p_mpjpe, n_mpjpe, bone_length_error)
CLIPS = (mpjve, acceleration_error)


def poses(seed: int, *batch: int, k: int = 37) -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng(seed)
    truth = random.normal(size=(*batch, k, 3))
    return jnp.asarray(truth + 0.2 * random.normal(size=truth.shape)), jnp.asarray(truth)


def moved(points, seed: int, scale: float = 1.0):
    random = np.random.default_rng(seed)
    rotation = jnp.asarray(Rotation.from_quat(random.normal(size=4)).as_matrix())
    return scale * points @ rotation.T + jnp.asarray(random.uniform(-5, 5, 3))


def test_each_error_is_what_its_definition_says() -> None:
    predicted, truth = poses(0, 3, 6)
    p, t = np.asarray(predicted), np.asarray(truth)
    far = np.linalg.norm(p - t, axis=-1)
    rooted = np.linalg.norm((p - p[..., [HIP], :]) - (t - t[..., [HIP], :]), axis=-1)
    np.testing.assert_allclose(distances(predicted, truth).values, far, atol=ROUNDING)
    np.testing.assert_allclose(mpjpe(predicted, truth).values, far.mean(-1), atol=ROUNDING)
    np.testing.assert_allclose(mpjpe(predicted, truth, root=HIP).values, rooted.mean(-1), atol=ROUNDING)
    scale = (p * t).sum((-2, -1)) / (p * p).sum((-2, -1))
    scaled = np.linalg.norm(scale[..., None, None] * p - t, axis=-1).mean(-1)
    np.testing.assert_allclose(n_mpjpe(predicted, truth).values, scaled, atol=ROUNDING)
    steps = np.linalg.norm(np.diff(p, axis=-3) - np.diff(t, axis=-3), axis=-1).mean(-1)
    np.testing.assert_allclose(mpjve(predicted, truth).values, steps, atol=ROUNDING)
    turns = np.linalg.norm(np.diff(p, 2, axis=-3) - np.diff(t, 2, axis=-3), axis=-1).mean(-1)
    np.testing.assert_allclose(acceleration_error(predicted, truth).values, turns, atol=ROUNDING)
    a, b = np.array(PARENT_BONES).T
    lengths = [np.linalg.norm(x[..., a, :] - x[..., b, :], axis=-1) for x in (p, t)]
    np.testing.assert_allclose(bone_lengths(predicted).values, lengths[0], atol=ROUNDING)
    off = np.abs(lengths[0] - lengths[1]).mean(-1)
    np.testing.assert_allclose(bone_length_error(predicted, truth).values, off, atol=ROUNDING)
    change = bone_length_change(predicted, bones=PARENT_BONES)
    np.testing.assert_allclose(change.values, lengths[0].std(axis=-2), atol=ROUNDING)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.2, 5))
def test_alignment_takes_out_a_similarity_and_nothing_else(seed: int, scale: float) -> None:
    predicted, truth = poses(seed, 2, k=15)
    before, after = p_mpjpe(predicted, truth).values, p_mpjpe(moved(predicted, seed, scale), truth).values
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(p_mpjpe(moved(truth, seed, scale), truth).values, 0, atol=1e-9)
    mirrored = truth * jnp.array([-1.0, 1.0, 1.0])
    assert (p_mpjpe(mirrored, truth).values > 0.05).all()
    rooted = [mpjpe(x, truth, root=3).values for x in (predicted, predicted + 7.0)]
    np.testing.assert_allclose(*rooted, atol=1e-9)
    scales = [n_mpjpe(x, truth, root=3).values for x in (predicted, scale * predicted + 7.0)]
    np.testing.assert_allclose(*scales, atol=1e-9)


@pytest.mark.parametrize("metric", [*SINGLE[:3], *CLIPS])
def test_the_order_of_keypoints_is_nothing(metric) -> None:
    predicted, truth = poses(1, 2, 5, k=8)
    order = np.random.default_rng(1).permutation(8)
    kwargs = {"subset": (0, 2, 5, 7)}
    there = {"subset": tuple(int(np.flatnonzero(order == i)[0]) for i in kwargs["subset"])}
    shuffled = metric(predicted[..., order, :], truth[..., order, :], **there).values
    np.testing.assert_allclose(shuffled, metric(predicted, truth, **kwargs).values, atol=ROUNDING)


@pytest.mark.parametrize("how", ["mask", "nan in the prediction", "nan in the truth"])
@pytest.mark.parametrize("metric", [*SINGLE[:3], *CLIPS])
def test_what_is_masked_is_as_if_it_were_not_there(metric, how: str) -> None:
    predicted, truth = poses(2, 4, 5, k=8)
    keep = np.array([0, 1, 3, 4, 7])
    gone = np.setdiff1d(np.arange(8), keep)
    mask = None
    if how == "mask":
        mask = jnp.ones((4, 5, 8), bool).at[..., gone].set(False)
        predicted = predicted.at[..., gone, :].set(1e6)
    elif how == "nan in the truth":
        truth = truth.at[..., gone, 1].set(jnp.nan)
    else:
        predicted = predicted.at[..., gone, 2].set(jnp.nan)
    found = metric(predicted, truth, mask)
    alone = metric(predicted[..., keep, :], truth[..., keep, :])
    assert found.present.all()
    np.testing.assert_allclose(found.values, alone.values, atol=ROUNDING)


def test_steps_need_both_frames_and_stay_in_their_clip() -> None:
    predicted, truth = poses(3, 2, 6, k=4)
    mask = jnp.ones((2, 6, 4), bool).at[0, 2].set(False)
    assert mpjve(predicted, truth, mask).present.tolist() == [[True, False, False, True, True], [True] * 5]
    assert acceleration_error(predicted, truth, mask).present[0].tolist() == [False, False, False, True]
    alone = mpjve(predicted[1], truth[1]).values
    np.testing.assert_allclose(mpjve(predicted, truth, mask).values[1], alone, atol=ROUNDING)
    assert mpjve(predicted[:, :1], truth[:, :1]).values.shape == (2, 0)


def test_what_is_missing_is_nan_with_a_mask_and_poisons_no_mean() -> None:
    predicted, truth = poses(4, 3, 5, k=6)
    mask = jnp.ones((3, 5, 6), bool).at[1].set(False).at[0, 0].set(False)
    for metric in SINGLE[:3]:
        found = metric(predicted, truth, mask)
        assert np.isnan(found.values[1]).all()
        assert not found.present[1].any()
        whole = found.mean()
        assert bool(whole.present)
        np.testing.assert_allclose(whole.values, np.nanmean(found.values), atol=ROUNDING)
        np.testing.assert_array_equal(found.mean(-1).present, [True, False, True])
    assert np.isnan(mpjpe(predicted, truth, mask, root=2).values[0, 0])
    rootless = mask.at[2, 3, 2].set(False)
    assert np.isnan(mpjpe(predicted, truth, rootless, root=2).values[2, 3])
    assert float(mpjpe(predicted, truth, mask).coverage()) == pytest.approx(9 / 15)
    assert np.isnan(mpjpe(predicted, truth, jnp.zeros_like(mask)).mean().values)


def degenerate(shape: str, k: int = 6) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prediction, truth and mask of an example whose alignment is not all determined."""
    predicted, truth = poses(5, k=k)
    mask = jnp.ones(k, bool)
    line = jnp.array([1.0, -2.0, 0.5])
    if shape == "predicted line":
        predicted = predicted[:, :1] * line
    elif shape == "true line":
        truth = truth[:, :1] * line
    elif shape == "plane":
        predicted, truth = predicted.at[:, 2].set(0), truth.at[:, 2].set(0)
    elif shape == "predicted place":
        predicted = jnp.broadcast_to(predicted[:1], predicted.shape)
    elif shape == "true place":
        truth = jnp.broadcast_to(truth[:1], truth.shape)
    elif shape == "equal":
        predicted = truth
    elif shape == "origin":
        predicted = jnp.zeros_like(predicted)
    else:
        mask = jnp.arange(k) < {"three": 3, "two": 2, "one": 1, "none": 0}[shape]
    return predicted, truth, mask


SHAPES = ("predicted line", "true line", "plane", "predicted place", "true place", "equal", "origin",
          "three", "two", "one", "none")  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_and_derivatives_are_finite_at_degenerate_shapes(shape: str, dtype) -> None:
    predicted, truth, mask = degenerate(shape)
    predicted, truth = predicted.astype(dtype), truth.astype(dtype)
    for metric in (mpjpe, p_mpjpe, n_mpjpe):
        found = metric(predicted, truth, mask)
        few = shape in ("one", "two") and metric is p_mpjpe
        assert bool(found.present) == (shape != "none" and not few)
        assert np.isfinite(found.values) == bool(found.present)
        assert found.values.dtype == dtype
        slopes = jax.grad(lambda p, t, m=metric: m(p, t, mask).mean().filled, argnums=(0, 1))(
            predicted, truth
        )
        assert all(np.isfinite(slope).all() for slope in slopes)
        assert not any(np.asarray(slope)[~np.asarray(mask)].any() for slope in slopes)
    if shape == "equal":
        assert float(p_mpjpe(predicted, truth).values) < 100 * jnp.finfo(dtype).eps


def test_the_error_at_shapes_that_leave_a_rotation_open_is_known() -> None:
    line = jnp.arange(5.0)[:, None] * jnp.array([0.0, 3.0, 4.0])
    other = jnp.arange(5.0)[:, None] * jnp.array([2.0, 0.0, 0.0]) + 1
    assert float(p_mpjpe(line, other).values) < 1e-7
    place = jnp.ones((5, 3))
    np.testing.assert_allclose(p_mpjpe(place, other).values, 2 * np.array([2, 1, 0, 1, 2]).mean(), atol=1e-7)
    # All of it is scaled onto the place.
    assert float(p_mpjpe(other, place).values) < 1e-7


@pytest.mark.parametrize("metric", [mpjpe, p_mpjpe, n_mpjpe])
def test_derivatives_are_right(metric) -> None:
    predicted, truth = poses(6, 3, k=7)
    check_grads(lambda p, t: metric(p, t).mean().values, (predicted, truth), order=1, rtol=1e-4)


@pytest.mark.parametrize("metric", CLIPS)
def test_derivatives_over_time_are_right_and_finite_at_no_error(metric) -> None:
    predicted, truth = poses(7, 2, 5, k=3)
    check_grads(lambda p, t: metric(p, t).mean().values, (predicted, truth), order=1, rtol=1e-4)
    assert not np.asarray(jax.grad(lambda p: metric(p, truth).mean().values)(truth)).any()


def test_bones_of_one_body_keep_their_length_and_their_change_is_seen() -> None:
    names = {tuple(KEYPOINT_NAMES[i] for i in pair) for pair in RIGID_BONES}
    assert {("spine_05", "spine_04"), ("neck", "spine_05"), ("left_hip", "hip")} <= names
    assert not names & {("spine_02", "spine_01"), ("left_knee", "left_hip"), ("left_eye", "nose")}
    _, truth = poses(8)
    clip = jnp.stack([moved(truth, seed) for seed in range(5)])
    assert float(bone_length_change(clip).values.max()) < ROUNDING
    a, b = RIGID_BONES[0]
    stretched = clip.at[2, a].add(0.1 * (clip[2, a] - clip[2, b]))
    change = bone_length_change(stretched).values
    length = float(jnp.linalg.norm(truth[a] - truth[b]))
    np.testing.assert_allclose(change[0], 0.1 * length * 0.4, rtol=1e-9)  # SD of one in five off by 1
    mask = jnp.ones((5, 37), bool).at[1:, a].set(False)
    assert not bone_length_change(stretched, mask).present[0]
    assert np.isfinite(jax.grad(lambda x: bone_length_change(x).mean().values)(clip)).all()
    with pytest.raises(ShapeError, match="valid is"):
        bone_length_change(truth)


def test_regions_are_the_papers_wherever_they_lie() -> None:
    predicted, truth = poses(9, 4)
    found = by_region(n_mpjpe, predicted, truth)
    assert list(found) == ["cervical", "thoracic", "lumbar", "spine", "body", "all"]
    for region, ids in REGIONS.items():
        alone = n_mpjpe(predicted[:, np.array(ids)], truth[:, np.array(ids)])
        np.testing.assert_allclose(found[region].values, alone.values, atol=ROUNDING)
    reduced = by_region(n_mpjpe, predicted[:, REDUCED_IDS], truth[:, REDUCED_IDS], ids=REDUCED_IDS)
    assert list(reduced) == ["cervical", "thoracic", "lumbar", "spine"]
    for region, scores in reduced.items():
        np.testing.assert_allclose(scores.values, found[region].values, atol=ROUNDING)
    assert {region: len(members) for region, members in regions_among().items()} == {
        "cervical": 5, "thoracic": 6, "lumbar": 4, "spine": 15, "body": 22, "all": 37
    }  # fmt: skip


def test_leading_axes_are_batch_and_the_functions_can_be_mapped() -> None:
    predicted, truth = poses(10, 2, 3, k=5)
    for metric in (mpjpe, p_mpjpe, n_mpjpe):
        each = jax.vmap(jax.vmap(metric))(predicted, truth)
        np.testing.assert_allclose(metric(predicted, truth).values, each.values, atol=ROUNDING)


@pytest.mark.usefixtures("float32")
def test_single_precision_knows_a_hundredth_of_a_millimetre() -> None:
    random = np.random.default_rng(11)
    truth = random.normal(size=(50, 15, 3)) + np.array([3.0, 1.0, 4.0])
    predicted = truth + 0.03 * random.normal(size=truth.shape)
    single = p_mpjpe(jnp.asarray(predicted, jnp.float32), jnp.asarray(truth, jnp.float32))
    assert single.values.dtype == jnp.float32
    with jax.enable_x64(True):
        double = p_mpjpe(jnp.asarray(predicted), jnp.asarray(truth))
    np.testing.assert_allclose(single.values, double.values, atol=1e-5)


def test_wrong_shapes_are_refused() -> None:
    predicted, truth = poses(12, 2, k=5)
    for wrong in ((predicted, truth[:, :4]), (predicted[..., :2], truth[..., :2])):
        with pytest.raises(ShapeError, match="valid is"):
            mpjpe(*wrong)
    for mask in (jnp.ones((2, 4), bool), jnp.ones((2, 5))):
        with pytest.raises(ShapeError, match="valid is bool"):
            p_mpjpe(predicted, truth, mask)
    with pytest.raises(ShapeError, match=r"\.\.\., T, K, 3"):
        mpjve(predicted[0], truth[0])


def scores(seed: int, clips: int, frames: int, columns: int = 1) -> tuple[Masked, np.ndarray]:
    """Skewed scores that differ by clip, and the label of each clip."""
    random = np.random.default_rng(seed)
    values = random.gamma(2.0, 1.0, (clips, 1, columns)) + 0.1 * random.normal(size=(clips, frames, columns))
    labels = np.repeat([f"S{c}" for c in range(clips)], frames)
    found = jnp.asarray(values.reshape(-1, columns))
    return Masked.of(found, jnp.ones(found.shape, bool)), labels


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_intervals_are_scipys_where_clips_are_of_one_length(method: str) -> None:
    from scipy.stats import bootstrap as reference

    found, labels = scores(0, 15, 4)
    ours = bootstrap(found, labels, method=method, resamples=40_000)
    means = np.asarray(found.values).reshape(15, 4).mean(-1)
    theirs = reference((means,), np.mean, n_resamples=40_000, method=method, rng=np.random.default_rng(0))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    ends = [float(ours.low[0]), float(ours.high[0])]
    # Both draw at random: at 40,000 resamples an end has a standard error of about half a percent of this.
    np.testing.assert_allclose(ends, theirs.confidence_interval, atol=0.03 * width)
    np.testing.assert_allclose(ours.estimate, means.mean(), rtol=1e-12)
    assert ours.clips.tolist() == [15]


def test_the_corrected_interval_differs_where_scores_are_skewed() -> None:
    found, labels = scores(1, 12, 3)
    ends = {m: bootstrap(found, labels, method=m, resamples=4000) for m in ("bca", "percentile")}
    assert float(ends["bca"].high[0]) > float(ends["percentile"].high[0]) + 0.01


def test_the_clip_is_the_unit_and_the_estimate_is_the_tables_mean() -> None:
    found, labels = scores(2, 10, 30)
    narrow = bootstrap(found, np.arange(300))  # as if frames were independent
    wide = bootstrap(found, labels)
    assert float((wide.high - wide.low)[0]) > 3 * float((narrow.high - narrow.low)[0])
    # Clips of other lengths count by their frames, and what is missing in none.
    present = jnp.asarray(np.random.default_rng(3).random((300, 1)) < 0.7)
    some = bootstrap(Masked.of(found.values, present), labels)
    np.testing.assert_allclose(
        some.estimate[0], np.asarray(found.values)[np.asarray(present)].mean(), rtol=1e-12
    )
    assert float(some.low[0]) < float(some.estimate[0]) < float(some.high[0])


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    n, holds = 120, 0
    for seed in range(n):
        values = np.random.default_rng(seed).normal(size=(40, 1))
        interval = bootstrap(Masked.of(jnp.asarray(values), jnp.ones((40, 1), bool)), np.arange(40),
                             confidence=0.8, resamples=500, seed=seed)  # fmt: skip
        holds += int(interval.low[0] <= 0 <= interval.high[0])
    # Five standard deviations of a binomial count of 120 draws at 0.8 are 0.18; bootstrap's error is less.
    assert abs(holds / n - 0.8) < 0.18


def test_draws_are_seeded_and_shared_by_columns() -> None:
    found, labels = scores(4, 8, 3, columns=2)
    twice = Masked(jnp.concatenate([found.values] * 2, axis=1), jnp.concatenate([found.present] * 2, axis=1))
    one, again, other = (bootstrap(twice, labels, resamples=300, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.low, again.low)
    np.testing.assert_array_equal(one.low[:2], one.low[2:])
    assert (one.low != other.low).all()


def test_root_mean_squares_have_intervals_too() -> None:
    found, labels = scores(5, 9, 4)
    interval = bootstrap(found, labels, statistic="rms")
    np.testing.assert_allclose(interval.estimate, found.rms(0).values, rtol=1e-12)
    assert float(interval.low[0]) < float(interval.estimate[0]) < float(interval.high[0])
    flat = Masked.of(found.values[:, 0], found.present[:, 0])
    assert bootstrap(flat, labels, statistic="rms").estimate.shape == ()


def test_nothing_is_known_of_the_spread_of_one_clip_or_none() -> None:
    found, labels = scores(6, 3, 4, columns=3)
    present = np.zeros((12, 3), bool)
    present[:4, 0] = present[:8, 1] = True
    interval = bootstrap(Masked.of(found.values, jnp.asarray(present)), labels, resamples=400)
    assert interval.clips.tolist() == [1, 2, 0]
    assert np.isfinite(interval.estimate).tolist() == [True, True, False]
    assert np.isfinite(interval.low).tolist() == np.isfinite(interval.high).tolist() == [False, True, False]
    same = Masked.of(jnp.ones((12, 1)), jnp.ones((12, 1), bool))
    level = bootstrap(same, labels)
    assert float(level.low[0]) == float(level.estimate[0]) == float(level.high[0]) == 1.0
    nobody = bootstrap(Masked.of(jnp.zeros((0, 1)), jnp.zeros((0, 1), bool)), np.zeros(0, int))
    assert np.isnan(nobody.estimate).all()


@pytest.mark.parametrize(
    "wrong",
    [{"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}, {"statistic": "median"}, {"method": "t"},
     {"clips": np.arange(3)}],
)  # fmt: skip
def test_wrong_choices_are_refused(wrong) -> None:
    found, labels = scores(7, 3, 4)
    with pytest.raises(ShapeError, match=r"valid (is|are)"):
        bootstrap(found, **({"clips": labels} | wrong))


def test_the_module_names_its_bones_once() -> None:
    assert len(pose3d.PARENT_BONES) == 36
    assert set(RIGID_BONES) < set(PARENT_BONES)
