"""PCK, AUC and OKS by their definitions, what they must keep, and what is missing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from simspine_jax.errors import ShapeError
from simspine_jax.metrics.keypoints2d import (
    AUC_CEILING,
    MMPOSE_THRESHOLDS,
    Detections,
    People,
    average_precision,
    keypoint_mean,
    oks,
    oks_matrix,
    pck,
    pck_auc,
    shorter_side,
)
from simspine_jax.skeleton import OKS_SUBSETS, SIGMAS

K = 37


def pictures(seed: int, n: int = 6, noise: float = 10.0):
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 300, (n, K, 2))
    predicted = truth + noise * random.normal(size=truth.shape)
    labelled = random.random((n, K)) < 0.8
    return jnp.asarray(predicted), jnp.asarray(truth), jnp.asarray(labelled)


def people_of(truth, labelled, area: float = 1e4) -> People:
    n = len(truth)
    low = np.asarray(truth).min(1)
    boxes = np.concatenate([low, np.asarray(truth).max(1) - low], axis=-1)
    return People(truth[:, None], labelled[:, None], np.full((n, 1), area), boxes[:, None])


def test_the_papers_normaliser_is_the_shorter_side() -> None:
    boxes = jnp.array([[5.0, 5.0, 30.0, 80.0], [0.0, 0.0, 90.0, 20.0]])
    assert shorter_side(boxes).tolist() == [30.0, 20.0]


def test_pck_counts_what_is_strictly_nearer_than_the_threshold() -> None:
    truth = jnp.zeros((1, 4, 2))
    predicted = jnp.array([[[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [jnp.nan, 0.0]]])
    labelled = jnp.array([[True, True, True, True]])
    hits = pck(predicted, truth, labelled, jnp.array([50.0]), 0.1)
    assert hits.values.tolist() == [[1.0, 0.0, 0.0, 0.0]]  # 5 of 50 pixels is on the threshold
    assert pck(predicted, truth, labelled, jnp.array([50.0]), 0.1001).values.tolist() == [[1, 1, 0, 0]]
    unlabelled = pck(predicted, truth, labelled.at[0, 1].set(False), jnp.array([50.0]), 1.0)
    assert np.isnan(unlabelled.values[0, 1])
    assert float(unlabelled.mean().values) == pytest.approx(2 / 3)
    assert not pck(predicted, truth, labelled, jnp.array([0.0]), 1.0).present.any()
    assert not pck(predicted, truth, labelled, jnp.array([jnp.nan]), 1.0).present.any()


def test_auc_is_the_mean_of_pck_over_its_thresholds() -> None:
    predicted, truth, labelled = pictures(0)
    side = jnp.linspace(20, 80, 6)
    for thresholds in (MMPOSE_THRESHOLDS, (0.1, 0.2, 0.5)):
        each = [pck(predicted, truth, labelled, side, t).filled for t in thresholds]
        found = pck_auc(predicted, truth, labelled, side, thresholds=thresholds)
        np.testing.assert_allclose(found.filled, np.mean(each, axis=0), atol=1e-12)
        assert 0.1 < float(found.mean().values) < 0.9


def test_a_perfect_prediction_scores_the_ceiling() -> None:
    _, truth, labelled = pictures(1)
    found = keypoint_mean(pck_auc(truth, truth, labelled, jnp.full(6, 40.0)))
    assert float(found.values) == pytest.approx(AUC_CEILING, abs=1e-12)
    assert 1 - 1 / len(MMPOSE_THRESHOLDS) == AUC_CEILING


def test_mmposes_average_is_over_people_first() -> None:
    predicted, truth, _ = pictures(2)
    labelled = jnp.ones((6, K), bool).at[1:, 0].set(False)
    far = predicted.at[0, 0].add(1e4)
    hits = pck(far, truth, labelled, jnp.full(6, 1e3), 0.5)
    assert float(keypoint_mean(hits).values) == pytest.approx(36 / 37)
    assert float(hits.mean().values) == pytest.approx(1 - 1 / (6 * 36 + 1))


@pytest.mark.parametrize("subset", OKS_SUBSETS)
def test_oks_is_its_formula(subset: str) -> None:
    predicted, truth, labelled = pictures(3)
    ids = list(OKS_SUBSETS[subset])
    area = np.linspace(1e3, 5e4, 6)
    found = oks(predicted, truth, labelled, jnp.asarray(area), ids=OKS_SUBSETS[subset])
    for i in range(6):
        counts = np.asarray(labelled)[i, ids]
        squared = ((np.asarray(predicted)[i, ids] - np.asarray(truth)[i, ids]) ** 2).sum(-1)[counts]
        terms = np.exp(-squared / (2 * area[i] * (2 * SIGMAS[ids][counts]) ** 2))
        np.testing.assert_allclose(found.values[i], terms.mean(), rtol=1e-12)
    pairs = oks_matrix(predicted[None], truth[None], labelled[None], jnp.asarray(area)[None],
                       jnp.ones((1, 6, 4)), ids=OKS_SUBSETS[subset])[0]  # fmt: skip
    np.testing.assert_allclose(np.diagonal(pairs), found.values, rtol=1e-12)


def test_oks_knows_neither_where_the_picture_is_nor_how_large() -> None:
    predicted, truth, labelled = pictures(4)
    area = jnp.full(6, 2e4)
    before = oks(predicted, truth, labelled, area).values
    np.testing.assert_allclose(oks(predicted + 50, truth + 50, labelled, area).values, before, rtol=1e-9)
    np.testing.assert_allclose(oks(3 * predicted, 3 * truth, labelled, 9 * area).values, before, rtol=1e-9)
    assert (np.asarray(oks(truth, truth, labelled, area).values) == 1.0).all()


def test_what_is_not_labelled_is_not_read_and_what_is_not_found_is_a_miss() -> None:
    predicted, truth, labelled = pictures(5)
    area = jnp.full(6, 2e4)
    before = oks(predicted, truth, labelled, area)
    hidden = jnp.where(labelled[..., None], truth, jnp.nan)
    away = jnp.where(labelled[..., None], predicted, 1e9)
    np.testing.assert_allclose(oks(away, hidden, jnp.ones_like(labelled), area).values, before.values)
    unseen = oks(predicted.at[:, :, 0].set(jnp.nan), truth, labelled, area)
    assert (np.asarray(unseen.values) == 0).all()
    assert np.isnan(oks(predicted, truth, jnp.zeros_like(labelled), area).values).all()
    side = jnp.full(6, 40.0)
    np.testing.assert_allclose(
        pck_auc(away, hidden, jnp.ones_like(labelled), side).values,
        pck_auc(predicted, truth, labelled, side).values,
    )


def test_oks_has_right_derivatives_and_finite_ones_where_little_is_there() -> None:
    predicted, truth, labelled = pictures(6, noise=3.0)
    area = jnp.full(6, 2e4)
    check_grads(lambda p: oks(p, truth, labelled, area).mean().values, (predicted,), order=2, rtol=1e-4)
    holes = predicted.at[0, 3].set(jnp.nan)
    labelled = labelled.at[1].set(False)
    slope = jax.grad(lambda p: oks(p, truth, labelled, area.at[2].set(0.0)).mean().values)(holes)
    assert np.isfinite(slope).all()
    assert not np.asarray(slope)[0, 3].any()
    assert not np.asarray(slope)[1].any()


def test_a_perfect_detector_scores_one_and_a_blind_one_nothing() -> None:
    _, truth, labelled = pictures(7)
    people = people_of(truth, labelled)
    perfect = average_precision(Detections(truth[:, None], np.ones((6, 1))), people)
    assert perfect.ap == perfect.ar == perfect.ap75 == perfect.ar_large == pytest.approx(1)
    assert np.isnan(perfect.ap_medium)  # 1e4 square pixels are large
    away = average_precision(Detections(truth[:, None] + 1e5, np.ones((6, 1))), people)
    assert away.ap == away.ar50 == 0
    none = average_precision(Detections(np.zeros((6, 0, K, 2)), np.zeros((6, 0))), people)
    assert none.ap == none.ar == 0


def test_the_order_of_pictures_and_of_detections_of_unlike_score_is_nothing() -> None:
    random = np.random.default_rng(8)
    _, truth, labelled = pictures(8, 10)
    people = people_of(truth, labelled)
    guess = np.asarray(truth)[:, None] + random.choice([3, 30, 90], (10, 5, 1, 1)) * random.normal(
        size=(10, 5, K, 2)
    )
    scores = random.random((10, 5))
    before = average_precision(Detections(guess, scores), people)
    order, within = random.permutation(10), random.permutation(5)
    shuffled = average_precision(
        Detections(guess[order][:, within], scores[order][:, within]),
        jax.tree.map(lambda x: np.asarray(x)[order], people),
    )
    for name, value in vars(before).items():
        assert getattr(shuffled, name) == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert 0.05 < before.ap < 0.95


def test_padding_is_not_there() -> None:
    predicted, truth, labelled = pictures(9)
    people = people_of(truth, labelled)
    before = average_precision(Detections(predicted[:, None], np.linspace(0, 1, 6)[:, None]), people)

    def padded(x, fill):
        x = np.asarray(x)
        return np.concatenate([x, np.full_like(x, fill)], axis=1)

    present = np.repeat([[True, False]], 6, axis=0)
    wide = People(*(padded(x, f) for x, f in ((people.keypoints, np.nan), (people.labelled, True),
                                              (people.area, np.nan), (people.boxes, np.nan))),
                  None, present)  # fmt: skip
    found = Detections(
        padded(predicted[:, None], np.nan), padded(np.linspace(0, 1, 6)[:, None], np.nan), None, present
    )
    assert vars(average_precision(found, wide)) == pytest.approx(vars(before), abs=1e-12, nan_ok=True)


@pytest.mark.usefixtures("float32")
def test_single_precision_gives_the_same_numbers_away_from_thresholds() -> None:
    predicted, truth, labelled = (np.asarray(x) for x in pictures(10, 40))
    people, scores = people_of(truth, labelled), np.random.default_rng(0).random((40, 1))
    single = average_precision(Detections(predicted[:, None], scores), people)
    with jax.enable_x64(True):
        double = average_precision(Detections(predicted[:, None], scores), people)
    assert vars(single) == pytest.approx(vars(double), abs=1e-9, nan_ok=True)
    auc = pck_auc(*map(jnp.asarray, (predicted, truth, labelled, np.full(40, 50.0))))
    assert auc.values.dtype == jnp.float32


def test_wrong_shapes_are_refused() -> None:
    predicted, truth, labelled = pictures(11)
    side = jnp.ones(6)
    for wrong in (
        (predicted[:, :5], truth, labelled, side),
        (predicted, truth, labelled[:, :5], side),
        (predicted, truth, labelled.astype(float), side),
        (predicted, truth, labelled, side[:5]),
    ):
        with pytest.raises(ShapeError, match="valid is"):
            pck_auc(*wrong)
    people, good = people_of(truth, labelled), Detections(predicted[:, None], np.ones((6, 1)))
    with pytest.raises(ShapeError, match=r"valid is \[images, D or G, K, 2\]"):
        average_precision(Detections(predicted, np.ones(6)), people)
    with pytest.raises(ShapeError, match="scores has shape"):
        average_precision(Detections(predicted[:, None], np.ones((6, 2))), people)
    few = People(people.keypoints[:, :, :9], people.labelled[:, :, :9], people.area, people.boxes)
    with pytest.raises(ShapeError, match="needs more than 36"):
        average_precision(Detections(good.keypoints[:, :, :9], good.scores), few)
