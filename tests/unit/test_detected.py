"""AP and AR of people who share pictures, against pycocotools and MMPose's rules written out anew."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from simspine_jax.datasets.coco import open_coco
from simspine_jax.detection.codecs import Found, SimCC
from simspine_jax.errors import FileFormatError
from simspine_jax.metrics.keypoints2d import OksScores
from simspine_jax.pictures import encode_jpeg, map_points, padded_box, top_down
from simspine_jax.skeleton import KEYPOINT_NAMES, OKS_SUBSETS, SIGMAS
from simspine_jax.training.detected import Detected, oks_by_subset, person_scores
from simspine_jax.training.detector_evaluation import (
    detect,
    detector_scores,
    detector_table,
    draw_detections,
)
from simspine_jax.training.detector_run import load_detector_run

pytestmark = pytest.mark.usefixtures("float32")

K = len(KEYPOINT_NAMES)
# OKS is in float32 here and in float64 there; none lies within its rounding of a threshold.
ROUNDING = 1e-6
PICTURES = np.array([4, 0, 4, 1, 1, 1, 2, 4, 1])


def crowd(seed: int = 0) -> Detected:
    """Several in a picture: 3 and 4 are exchanged, 8 is 5 once more, and some scores are low or nothing."""
    random = np.random.default_rng(seed)
    n = len(PICTURES)
    true = random.uniform(0, 60, (n, K, 2)) + 30 * np.arange(n)[:, None, None]
    found = true + random.normal(0, 3, true.shape)
    found[[3, 4]] = found[[4, 3]]
    found[8] = found[5] + random.normal(0, 0.3, (K, 2))
    found[0, 5] = np.nan
    labelled = random.random((n, K)) < 0.8
    area = np.array([3000.0, 2500, 2000, 4000, 3500, 3000, np.nan, 5000, 2800], np.float32)
    box = np.concatenate([true.min(1), np.ptp(true, axis=1)], axis=1).astype(np.float32)
    score = (random.random((n, K)) * random.uniform(0.3, 1, (n, 1))).astype(np.float32)
    score[2] = 0.1
    side = box[:, 2:].min(-1)
    return Detected(found, score, true.astype(np.float32), labelled, box, area, side, PICTURES)


def ranks_of(detected: Detected) -> list[float]:
    """By the rule of `CocoMetric`, one score after another."""
    found = []
    for scores in detected.score.tolist():
        above = [score for score in scores if score > 0.2]
        found.append(sum(above) / len(above) if above else 0.0)
    return found


def kept_of(detected: Detected, ranks: list[float]) -> list[int]:
    """Those with an area that `oks_nms` keeps, one pair after another."""
    kept: list[int] = []
    areas = [float(np.prod(padded_box(box)[1])) for box in detected.box]
    for i in sorted(np.flatnonzero(np.isfinite(detected.area)).tolist(), key=lambda i: -ranks[i]):
        for j in kept:
            squared = np.nan_to_num(((detected.found[i] - detected.found[j]) ** 2).sum(-1), nan=np.inf)
            variance = (2 * SIGMAS) ** 2
            alike = np.exp(-squared / variance / ((areas[i] + areas[j]) / 2) / 2).mean()
            if detected.picture[i] == detected.picture[j] and alike > 0.9:
                break
        else:
            kept.append(i)
    return kept


def reference(truth: COCO, results: list[dict[str, Any]], subset: str) -> OksScores:
    """pycocotools on some of the keypoints."""
    ids = np.array(OKS_SUBSETS[subset])

    def part(keypoints: list[float]) -> list[float]:
        return np.reshape(keypoints, (-1, 3))[ids].ravel().tolist()

    some = COCO()
    annotations = [a | {"keypoints": part(a["keypoints"])} for a in truth.dataset["annotations"]]
    for a in annotations:
        a["num_keypoints"] = int((np.array(a["keypoints"][2::3]) > 0).sum())
    some.dataset = truth.dataset | {"annotations": annotations}
    some.createIndex()
    scored = COCOeval(
        some, some.loadRes([r | {"keypoints": part(r["keypoints"])} for r in results]), "keypoints"
    )
    scored.params.kpt_oks_sigmas = SIGMAS[ids]
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return OksScores(*scored.stats.tolist())


def assert_same(found: OksScores, wanted: OksScores) -> None:
    for name in ("ap", "ap50", "ap75", "ar", "ar50", "ar75"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=ROUNDING), name


def result(detected: Detected, i: int, score: float, image: int) -> dict[str, Any]:
    # What was not found is nowhere near, yet not so far that the detection's extent is beyond COCO's ranges.
    points = np.column_stack([np.nan_to_num(detected.found[i], nan=1e4), np.ones(K)])
    return {"image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(), "score": score}


@pytest.mark.parametrize("subset", OKS_SUBSETS)
def test_people_in_one_picture_are_compared_as_coco_metric_does(subset: str, capsys) -> None:
    detected = crowd()
    known = np.flatnonzero(np.isfinite(detected.area))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": int(i)} for i in np.unique(PICTURES)],
        "categories": [{"id": 1}],
        "annotations": [],
    }
    for i in known.tolist():
        seen = detected.labelled[i]
        table = np.column_stack([np.where(seen[:, None], detected.true[i], 0), 2 * seen])
        truth.dataset["annotations"].append(
            {"id": i + 1, "image_id": int(PICTURES[i]), "category_id": 1, "iscrowd": 0,
             "area": float(detected.area[i]), "bbox": detected.box[i].tolist(),
             "keypoints": table.ravel().tolist()}
        )  # fmt: skip
    ranks = ranks_of(detected)
    kept = kept_of(detected, ranks)
    wanted = reference(truth, [result(detected, i, ranks[i], int(PICTURES[i])) for i in kept], subset)
    everyone = reference(truth, [result(detected, i, ranks[i], int(PICTURES[i])) for i in known], subset)
    capsys.readouterr()
    # The sample has what the rules are about: an order of their own, one that goes, and some that count less.
    plain = detected.score.mean(-1)
    assert [*np.argsort(plain)] != [*np.argsort(ranks)]
    assert len(kept) == len(known) - 1
    assert wanted.ap != everyone.ap
    found = oks_by_subset(detected)[subset]
    assert_same(found, wanted)
    alone = oks_by_subset(dataclasses.replace(detected, picture=np.arange(len(PICTURES))))[subset]
    assert alone.ap < found.ap - 0.05  # the two that were exchanged find nobody


def test_scores_of_nothing_are_zero() -> None:
    score = np.array([[0.1, 0.2, np.nan], [0.3, 0.5, np.nan]], np.float32)
    np.testing.assert_allclose(person_scores(score), [0, 0.4], rtol=1e-6)


def test_people_without_areas_have_no_oks() -> None:
    nobody = dataclasses.replace(crowd(), area=np.full(len(PICTURES), np.nan, np.float32))
    assert np.isnan(oks_by_subset(nobody)["spine"].ap)


# --- from a file to scores ---

WIDTH, HEIGHT = 160, 120


class Known:
    """Finds given places, in the order in which people come."""

    size = (64, 48)
    codec = SimCC  # of which the map of the crops is told

    def __init__(self, people, places: np.ndarray) -> None:
        self._points = [
            map_points(top_down(p, self.size).matrix, x) for p, x in zip(people, places, strict=True)
        ]

    def __call__(self, pixels: np.ndarray) -> Found:
        filled = [*self._points, *[self._points[-1]] * (len(pixels) - len(self._points))]
        points = np.stack(filled).astype(np.float32)
        return Found(points, np.full(points.shape[:2], 0.9, np.float32))


def set_of_three(folder: Path) -> Path:
    """Two people in a picture and one in another, each with a labelled keypoint outside of the picture."""
    random = np.random.default_rng(1)
    annotations = []
    for i, (image, left) in enumerate(((7, 10), (7, 90), (3, 40))):
        points = random.uniform((left, 10), (left + 60, 110), (K, 2))
        points[0] = WIDTH + 30, 60
        table = np.column_stack([points, random.choice([1, 2], K)])
        annotations.append(
            {"id": i + 1, "image_id": image, "category_id": 1, "iscrowd": 0, "area": 3000.0,
             "bbox": [left, 10, 60, 100], "keypoints": table.ravel().tolist(), "num_keypoints": K}
        )  # fmt: skip
    for image in (3, 7):
        (folder / f"{image}.jpg").write_bytes(encode_jpeg(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (3, 7)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(KEYPOINT_NAMES)}],
        "annotations": annotations,
    }
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


@pytest.mark.parametrize("subset", OKS_SUBSETS)
def test_a_coco_set_scores_as_pycocotools_says(subset: str, tmp_path: Path, capsys) -> None:
    path = set_of_three(tmp_path)
    people, truth = open_coco(path, tmp_path), COCO(str(path))
    places = np.stack([person.keypoints_2d for person in people]).astype(np.float64)
    places += np.random.default_rng(2).normal(0, 2, places.shape)
    places[:, 0] -= 80, 0  # the one that is outside of the picture
    places[[0, 1]] = places[[1, 0]]  # each of two is found in the other's crop
    found = detect(Known(people, places), people)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.found, places, atol=1e-3)
    assert found.labelled.all()
    scores = detector_scores(found)
    assert (scores.people, scores.pictures, scores.with_area) == (3, 2, 3)
    wanted = reference(truth, [result(found, i, 0.9, image) for i, image in enumerate((7, 7, 3))], subset)
    capsys.readouterr()
    assert_same(scores.oks[subset], wanted)
    assert 0.3 < wanted.ap < 1
    table = detector_table(load_detector_run("spinepose_s"), scores, split="test", source="made", steps=0)
    assert "3 people in 2 pictures" in table.source
    assert any("CocoMetric" in note for note in table.notes)


def test_a_picture_that_can_not_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    people = open_coco(set_of_three(tmp_path), tmp_path)
    places = np.stack([person.keypoints_2d for person in people]).astype(np.float64)
    lost = people.paths[int(people.picture_of[0])]
    kept = np.flatnonzero(people.picture_of != people.picture_of[0])
    assert kept.tolist() == [2]
    known = Known(list(people)[2:], places[2:])
    people.scored_boxes = np.array([[0, 0, 9, 9], [0, 0, 8, 8], [0, 0, 7, 6]], np.float32)
    lost.write_bytes(b"no picture")
    told: list[int] = []
    found = detect(known, people, progress=told.append)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.found, places[kept], atol=1e-3)
    assert (found.picture.tolist(), found.side.tolist()) == ([people.picture_of[2]], [6])
    assert [str(lost) in sentence for sentence in found.left_out] == [True, True]
    assert "its 10 bytes can't be decoded as a picture" in found.left_out[0]
    assert sum(told) == 3
    scores = detector_scores(found)
    assert (scores.people, scores.left_out) == (1, 2)
    table = detector_table(load_detector_run("spinepose_s"), scores, split="test", source="made", steps=0)
    assert "2 people, whose pictures can't be read, are left out." in table.notes
    assert draw_detections(people, found, tmp_path / "sheets").is_file()
    for path in people.paths:
        path.unlink(missing_ok=True)
    with pytest.raises(
        FileFormatError, match=r"None of the 3 pictures can be read; the first: .*no such file"
    ):
        detect(known, people)  # type: ignore[arg-type]


def test_distances_are_divided_by_the_scored_box(tmp_path: Path) -> None:
    people = open_coco(set_of_three(tmp_path), tmp_path)
    places = np.stack([person.keypoints_2d for person in people]) + np.array([6.0, 0.0])
    people.scored_boxes = None
    assert detect(Known(people, places), people).side.tolist() == [60, 60, 60]  # type: ignore[arg-type]
    people.scored_boxes = np.array([[0, 0, 50, 80], [0, 0, 80, 50], [0, 0, 50, 50]], np.float32)
    found = detect(Known(people, places), people)  # type: ignore[arg-type]
    assert found.side.tolist() == [50, 50, 50]
    # 6 px of 50 are 0.12: below 17 of the 20 thresholds; of 60 they would be 0.1.
    assert detector_scores(found).auc["all"] == pytest.approx(17 / 20)
