"""Independent implementations of metrics, and random and degenerate cases to hold ours against.

pycocotools for OKS AP and AR, SciPy for the alignment of P-MPJPE, and MMPose's AUC as a loop of NumPy.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simspine_jax.metrics.keypoints2d import AREAS, Detections, People
from simspine_jax.skeleton import N_KEYPOINTS, SIGMAS

PICTURE_PX = 1000
# What is drawn of each kind must happen in the cases, or they would show nothing.
KINDS = (
    "nothing found", "nobody there", "neither", "several people", "equal scores", "no labels", "no area",
    "crowd", "more than twenty found", "same detection twice", "exact", "far off",
)  # fmt: skip


@dataclass(frozen=True)
class CocoCase:
    """Detections and people with an area for each detection, and which of `KINDS` occur in them."""

    detections: Detections
    people: People
    kinds: frozenset[str]


def coco_case(seed: int, n_pictures: int = 12) -> CocoCase:
    """Pictures of up to four people with up to 25 detections; about half of them degenerate in some way."""
    random = np.random.default_rng(seed)
    g, d, k = 4, 25, N_KEYPOINTS
    there = np.arange(g) < random.choice([0, 1, 1, 2, 3, 4], (n_pictures, 1))
    found = np.arange(d) < random.choice([0, 1, 2, 4, 6, d], (n_pictures, 1))
    size = np.exp(random.uniform(np.log(10), np.log(400), (n_pictures, g, 1, 1)))
    truth = random.uniform(100, PICTURE_PX, (n_pictures, g, 1, 2)) + size * random.normal(
        size=(n_pictures, g, k, 2)
    )
    labelled = random.random((n_pictures, g, k)) < random.choice([0, 0.3, 0.9, 1], (n_pictures, g, 1))
    labelled &= random.random((n_pictures, 1, 1)) < 0.95
    area = (2 * size[..., 0, 0]) ** 2 * random.choice([0, 1, 1, 1, 1], (n_pictures, g))
    low = truth.min(-2)
    boxes = np.concatenate([low, truth.max(-2) - low], axis=-1)
    crowd = random.random((n_pictures, g)) < 0.1
    whose = random.integers(0, g, (n_pictures, d))
    noise = random.choice([0, 0.02, 0.1, 0.3, 30], (n_pictures, d, 1, 1), p=[0.1, 0.3, 0.3, 0.2, 0.1])
    rows = np.arange(n_pictures)[:, None]
    guess = truth[rows, whose] + noise * size[rows, whose] * random.normal(size=(n_pictures, d, k, 2))
    twice = random.random((n_pictures, d)) < 0.1
    twice[:, 0] = False
    guess[twice] = guess[rows, np.zeros_like(whose)][twice]
    scores = np.where(random.random((n_pictures, 1)) < 0.5, random.random((n_pictures, d)), 0.5)
    scores = np.where(random.random((n_pictures, d)) < 0.3, np.round(scores, 1), scores)
    people = People(truth, labelled, area, boxes, crowd, there)
    detections = Detections(guess, scores, random.uniform(0, 2e4, (n_pictures, d)), found)
    kinds = _kinds(people, there, found, scores, twice, noise[..., 0, 0])
    return CocoCase(detections, people, kinds)


def _kinds(
    people: People, there: NDArray, found: NDArray, scores: NDArray, twice: NDArray, noise: NDArray
) -> frozenset[str]:
    n_people, n_found = there.sum(1), found.sum(1)
    met = found & there.any(1, keepdims=True)
    equal = [len(set(s[f])) < f.sum() for s, f in zip(scores, found, strict=True)]
    marks = (
        ((n_people > 0) & (n_found == 0)).any(), ((n_people == 0) & (n_found > 0)).any(),
        ((n_people == 0) & (n_found == 0)).any(), (n_people > 1).any(), any(equal),
        (there & ~np.asarray(people.labelled).any(-1)).any(), (there & (np.asarray(people.area) == 0)).any(),
        (there & np.asarray(people.crowd)).any(), (n_found > 20).any(), (met & twice).any(),
        (met & (noise == 0)).any(), (met & (noise > 1)).any(),
    )  # fmt: skip
    return frozenset(kind for kind, mark in zip(KINDS, marks, strict=True) if mark)


def coco_evaluator(detections: Detections, people: People, ids: Sequence[int]) -> Any:
    """pycocotools' evaluation of the same detections and people, ready for `coco_numbers`.

    Subsets are sliced as the official evaluation does it: the person keeps the area, and ``num_keypoints``
    counts the subset's labels.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    columns = list(ids)
    images = [{"id": i + 1} for i in range(len(people.area))]
    labels = np.asarray(people.labelled)
    truth = _annotations(people.keypoints, people.present, columns, labels)
    for entry, (i, j) in truth:
        x, y, w, h = map(float, people.boxes[i, j])
        entry |= {
            "bbox": [x, y, w, h],
            "area": float(people.area[i, j]),
            "iscrowd": _flag(people.crowd, i, j),
        }
        entry["num_keypoints"] = int(labels[i, j, columns].sum())
    found = _annotations(detections.keypoints, detections.present, columns)
    for entry, (i, j) in found:
        points = np.reshape(entry["keypoints"], (-1, 3))[:, :2]
        extent = float(np.prod(points.max(0) - points.min(0)))
        area = extent if detections.area is None else float(detections.area[i, j])
        entry |= {"score": float(detections.scores[i, j]), "area": area}
    sides = []
    for entries in (truth, found):
        side: Any = COCO()
        side.dataset = {
            "images": images, "categories": [{"id": 1}], "annotations": [entry for entry, _ in entries]
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            side.createIndex()
        sides.append(side)
    evaluator = COCOeval(*sides, iouType="keypoints")
    evaluator.params.kpt_oks_sigmas = SIGMAS[columns]
    evaluator.params.areaRng = [list(ends) for ends in AREAS.values()]
    return evaluator


def _annotations(keypoints: Any, present: Any, columns: list[int], labels: NDArray | None = None) -> list:
    """A dictionary for each person or detection, with its picture and place; ids from 1."""
    points = np.asarray(keypoints)[:, :, columns]
    marks = np.ones(points.shape[:-1]) if labels is None else labels[:, :, columns]
    rows = np.concatenate([points, marks[..., None]], axis=-1).reshape(*points.shape[:2], -1)
    there = np.ones(points.shape[:2], bool) if present is None else np.asarray(present)
    return [
        ({"id": n + 1, "image_id": int(i) + 1, "category_id": 1, "keypoints": rows[i, j]}, (i, j))
        for n, (i, j) in enumerate(np.argwhere(there))
    ]


def _flag(values: Any, i: int, j: int) -> int:
    return 0 if values is None else int(values[i, j])


def coco_numbers(evaluator: Any) -> NDArray[np.float64]:
    """Its ten numbers; -1 where nobody counts."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


def scipy_p_mpjpe(predicted: NDArray, truth: NDArray) -> float:
    """One example by SciPy's best rotation, which is proper."""
    from scipy.spatial.transform import Rotation

    source, target = (points - points.mean(axis=0) for points in (predicted, truth))
    rotation = Rotation.align_vectors(target, source)[0]
    turned = rotation.apply(source)
    scale = (turned * target).sum() / (source**2).sum()
    return float(np.linalg.norm(scale * turned - target, axis=-1).mean())


def scipy_procrustes_error(predicted: NDArray, truth: NDArray) -> float:
    """One example by `scipy.spatial.procrustes`, which also takes reflections."""
    from scipy.spatial import procrustes

    target, moved, _ = procrustes(truth, predicted)
    size = np.linalg.norm(truth - truth.mean(axis=0))
    return float(size * np.linalg.norm(moved - target, axis=-1).mean())


def needs_no_reflection(predicted: NDArray, truth: NDArray) -> NDArray[np.bool_]:
    """Where the best orthogonal matrix is a rotation anyway."""
    source, target = (points - points.mean(axis=-2, keepdims=True) for points in (predicted, truth))
    return np.linalg.det(np.einsum("...ki,...kj->...ij", target, source)) > 0


def numpy_p_mpjpe(predicted: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """All examples at once by NumPy's batched singular value decomposition, reflections excluded."""
    source, target = (points - points.mean(axis=-2, keepdims=True) for points in (predicted, truth))
    left, sizes, right = np.linalg.svd(np.einsum("nki,nkj->nij", target, source))
    sign = np.sign(np.linalg.det(left @ right))
    left[..., -1] *= sign[:, None]
    sizes[:, -1] *= sign
    scale = sizes.sum(-1) / (source**2).sum((-2, -1))
    moved = scale[:, None, None] * (source @ np.swapaxes(left @ right, -1, -2))
    return np.linalg.norm(moved - target, axis=-1).mean(-1)


def auc_case(seed: int, n: int = 40) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Predicted, truth, labelled, normaliser: people of no size, no labels, exact thresholds."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 500, (n, N_KEYPOINTS, 2))
    side = random.choice([0.0, 20.0, 100.0, 300.0], n)
    predicted = truth + random.choice([0, 10, 80], (n, 1, 1)) * random.normal(size=truth.shape)
    steps = random.integers(0, 21, (n, N_KEYPOINTS)) / 20
    edge = np.stack([steps * side[:, None], np.zeros_like(steps)], axis=-1)
    on_threshold = random.random((n, N_KEYPOINTS, 1)) < 0.3
    truth = np.where(on_threshold, np.round(truth), truth)
    predicted = np.where(on_threshold, truth + edge, predicted)
    labelled = random.random((n, N_KEYPOINTS)) < random.choice([0.0, 0.5, 1.0])
    return predicted, truth, labelled & (random.random(N_KEYPOINTS) < 0.9), side


def mmpose_auc(
    predicted: NDArray, truth: NDArray, labelled: NDArray, normaliser: NDArray, thresholds: int = 20
) -> float:
    """MMPose's AUC by its definition: a loop over thresholds, and for each over keypoints.

    MMPose keeps distances in float32 and takes one normaliser for all; here they are as they come, and a
    normaliser a person, as its PCK has it.
    """
    total = 0.0
    for i in range(thresholds):
        counts = labelled & (normaliser > 0)[:, None]
        divisor = np.where(normaliser > 0, normaliser, 1.0)[:, None, None]
        distance = np.linalg.norm((predicted - truth) / divisor, axis=-1)
        accuracies = []
        for k in range(predicted.shape[1]):
            of_keypoint = distance[counts[:, k], k]
            if len(of_keypoint):
                accuracies.append((of_keypoint < i / thresholds).sum() / len(of_keypoint))
        total += float(np.mean(accuracies)) / thresholds if accuracies else 0.0
    return total
