"""Metrics against pycocotools, SciPy and a plain loop of MMPose's definition, also on degenerate inputs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.metrics.keypoints2d import (
    MMPOSE_THRESHOLDS,
    Detections,
    People,
    average_precision,
    keypoint_mean,
    pck_auc,
)
from simspine_jax.metrics.pose3d import p_mpjpe
from simspine_jax.skeleton import OKS_SUBSETS, REGIONS

pytest.importorskip("pycocotools")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import lifting_references as references

sys.path.pop(0)

# The task's; both sides compute in float64.
COCO_TOLERANCE = 1e-9
# Float64 of lengths about 1 m, through a singular value decomposition there and Jacobi rotations here.
ALIGNED_M = 1e-12
# The order of a sum of a few thousand shares.
AUC_TOLERANCE = 1e-12


def assert_same(detections: Detections, people: People, ids: tuple[int, ...]) -> np.ndarray:
    expected = references.coco_numbers(references.coco_evaluator(detections, people, ids))
    found = average_precision(detections, people, ids=ids)
    numbers = np.array([getattr(found, name) for name in vars(found)])
    np.testing.assert_allclose(np.where(np.isnan(numbers), -1, numbers), expected, atol=COCO_TOLERANCE)
    return numbers


@pytest.mark.parametrize("subset", OKS_SUBSETS)
def test_oks_ap_and_ar_are_cocos(subset: str) -> None:
    reached: set[str] = set()
    drawn = []
    for seed in range(25):
        case = references.coco_case(seed)
        drawn.append(assert_same(case.detections, case.people, OKS_SUBSETS[subset]))
        reached |= case.kinds
    assert reached == set(references.KINDS)
    between = (np.array(drawn) > 0.05) & (np.array(drawn) < 0.95)
    assert between.mean() > 0.3  # neither all wrong nor all right, so that order matters


def test_the_area_of_a_detection_is_that_around_its_keypoints_unless_given() -> None:
    for seed in range(5):
        case = references.coco_case(100 + seed)
        d = case.detections
        assert_same(Detections(d.keypoints, d.scores, None, d.present), case.people, OKS_SUBSETS["spine"])


def test_what_is_not_given_is_all_present_and_no_crowd() -> None:
    c = references.coco_case(7)
    people = People(c.people.keypoints, c.people.labelled, c.people.area, c.people.boxes)
    assert_same(Detections(c.detections.keypoints, c.detections.scores), people, OKS_SUBSETS["all"])


@pytest.mark.parametrize("nothing", ["detections", "people", "labels", "both"])
def test_sets_of_nothing(nothing: str) -> None:
    c = references.coco_case(3)
    d, p = c.detections, c.people
    gone = np.zeros_like
    detections = Detections(
        d.keypoints, d.scores, d.area, gone(d.present) if nothing in ("detections", "both") else d.present
    )
    labelled = gone(p.labelled) if nothing == "labels" else p.labelled
    there = gone(p.present) if nothing in ("people", "both") else p.present
    people = People(p.keypoints, labelled, p.area, p.boxes, p.crowd, there)
    numbers = assert_same(detections, people, OKS_SUBSETS["all"])
    assert (numbers == 0).all() if nothing == "detections" else np.isnan(numbers).all()


def shapes(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(size=(n, k, 3))
    spread = random.choice([0.01, 0.3, 3.0], (n, 1, 1))
    return truth + spread * random.normal(size=truth.shape) + random.uniform(-5, 5, (n, 1, 3)), truth


@pytest.mark.parametrize("region", REGIONS)
def test_p_mpjpe_is_scipys(region: str) -> None:
    predicted, truth = shapes(1, 120, 37)
    ids = REGIONS[region]
    found = np.asarray(p_mpjpe(jnp.asarray(predicted), jnp.asarray(truth), subset=ids).values)
    pairs = list(zip(predicted[:, ids], truth[:, ids], strict=True))
    np.testing.assert_allclose(found, [references.scipy_p_mpjpe(*pair) for pair in pairs], atol=ALIGNED_M)
    np.testing.assert_allclose(
        found, references.numpy_p_mpjpe(predicted[:, ids], truth[:, ids]), atol=ALIGNED_M
    )
    proper = references.needs_no_reflection(predicted[:, ids], truth[:, ids])
    with_reflections = np.array([references.scipy_procrustes_error(*pair) for pair in pairs])
    np.testing.assert_allclose(found[proper], with_reflections[proper], atol=ALIGNED_M)
    assert 20 < proper.sum() < 120  # where a reflection would be better was drawn too
    assert (np.abs(found[~proper] - with_reflections[~proper]) > 1e-6).all()


@pytest.mark.parametrize("shape", ["line", "plane", "mirrored plane"])
def test_p_mpjpe_of_flat_shapes_is_scipys(shape: str) -> None:
    predicted, truth = shapes(2, 40, 9)
    flat = np.array([1.0, 0.5, 0.2]) if shape == "line" else np.array([1.0, 1.0, 0.0])
    predicted = predicted[..., :1] * flat if shape == "line" else predicted * flat
    if shape == "mirrored plane":
        truth = predicted * np.array([-1.0, 1.0, 1.0])
    found = np.asarray(p_mpjpe(jnp.asarray(predicted), jnp.asarray(truth)).values)
    # SciPy warns that the rotation is not unique; the error is.
    with pytest.warns(UserWarning, match="not uniquely") if shape == "line" else _quiet():
        expected = [references.scipy_p_mpjpe(*pair) for pair in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose(found, expected, atol=ALIGNED_M if shape != "line" else 1e-7)


def _quiet():
    return contextlib.nullcontext()


def test_auc_is_mmposes() -> None:
    reached: set[str] = set()
    for seed in range(30):
        predicted, truth, labelled, side = references.auc_case(seed)
        expected = references.mmpose_auc(predicted, truth, labelled, side)
        found = float(keypoint_mean(pck_auc(*map(jnp.asarray, (predicted, truth, labelled, side)))).values)
        counted = labelled & (side > 0)[:, None]
        assert (0.0 if np.isnan(found) else found) == pytest.approx(expected, abs=AUC_TOLERANCE)
        assert np.isnan(found) == (not counted.any())
        along = np.abs(predicted - truth)[..., 0] * 20
        reached |= {"none"} if not counted.any() else set()
        reached |= {"threshold"} if (counted & (along % np.maximum(side, 1)[:, None] == 0)).any() else set()
        reached |= {"no size"} if (labelled & (side == 0)[:, None]).any() else set()
        reached |= {"keypoint nobody has"} if counted.any() and not counted.any(0).all() else set()
    assert reached == {"none", "threshold", "no size", "keypoint nobody has"}
    assert len(MMPOSE_THRESHOLDS) == 20
