"""What a detector found of people in pictures, and COCO's AP and AR of it.

Detections are ranked and thinned out as MMPose's CocoMetric does it, on which SpinePose's own metric stands:
a detection's score is the mean of its keypoints' scores above `LEAST_SCORE`, times that of the box, which is
1 for true boxes; of two detections in a picture whose OKS with each other is above `MOST_ALIKE`, the one of
higher score stays. Both are over all keypoints, whatever subset is measured then.

Source: MMPose, ``CocoMetric`` (``bbox_keypoint``, ``oks_nms``) and ``oks_nms``, with their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simspine_jax.metrics.keypoints2d import Detections, OksScores, People, average_precision
from simspine_jax.pictures import padded_box
from simspine_jax.skeleton import OKS_SUBSETS, SIGMAS

LEAST_SCORE = 0.2
"""Keypoints of no higher score don't count in the score of a detection."""

MOST_ALIKE = 0.9
"""OKS of two detections in one picture, beyond which they are taken to be of one person."""


@dataclass(frozen=True, eq=False)
class Detected:
    """Keypoints of N people as they are and as they were found, px of the pictures.

    Attributes:
        found: ``[N K 2]``; NaN where nothing was found.
        score: ``[N K]``, of the detector; no probability.
        true: ``[N K 2]``.
        labelled: ``[N K]`` keypoints that are known: COCO's visibility 1 or 2.
        box: ``[N 4]`` left, top, width and height of the person, of which the crop is made.
        area: ``[N]`` of what is seen of the person, px^2; NaN where it is not known.
        side: ``[N]`` shorter side of the person's box, px, by which PCK and AUC divide.
        picture: ``[N]`` the number of each one's picture; several people may share one.
        record: ``[N]`` the number of each one in the set; None where all of the set are here.
        left_out: sentences about the others, whose pictures can't be read.
    """

    found: NDArray[np.float64]
    score: NDArray[np.float32]
    true: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    box: NDArray[np.float32]
    area: NDArray[np.float32]
    side: NDArray[np.float32]
    picture: NDArray[np.int64]
    record: NDArray[np.int64] | None = None
    left_out: tuple[str, ...] = ()


def oks_by_subset(detected: Detected) -> dict[str, OksScores]:
    """COCO's numbers of ``body``, ``spine`` and ``all``; NaN where no area is known.

    People are compared within their pictures: a detection that is nearer to somebody else in its picture is
    matched with them, as COCO does it. Those whose area is not known are left out with their detections.

    Args:
        detected: of all pictures.
    """
    known = np.flatnonzero(np.isfinite(detected.area))
    if not len(known):
        nothing = OksScores(*(float("nan") for _ in OksScores.__annotations__))
        return dict.fromkeys(OKS_SUBSETS, nothing)
    _, picture, counts = np.unique(detected.picture[known], return_inverse=True, return_counts=True)
    order = np.argsort(picture, kind="stable")
    rows, columns = picture[order], np.arange(len(known)) - np.repeat(np.cumsum(counts) - counts, counts)

    def padded(values: NDArray) -> NDArray:
        whole = np.zeros((len(counts), int(counts.max()), *values.shape[1:]), values.dtype)
        whole[rows, columns] = values[known[order]]
        return whole

    people = People(
        padded(detected.true), padded(detected.labelled), padded(detected.area), padded(detected.box),
        present=padded(np.ones(len(detected.area), bool)),
    )  # fmt: skip
    ranks = person_scores(detected.score)
    kept = np.zeros(len(detected.area), bool)
    kept[known] = _distinct(detected, known, ranks)
    found = Detections(padded(detected.found), padded(ranks), present=padded(kept))
    return {name: average_precision(found, people, ids=ids) for name, ids in OKS_SUBSETS.items()}


def person_scores(score: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[N]`` by which detections are ranked: the mean of scores ``[N K]`` above `LEAST_SCORE`, or 0."""
    counts = score > LEAST_SCORE  # NaN doesn't
    return np.where(counts, score, 0).sum(-1, dtype=np.float64) / np.maximum(counts.sum(-1), 1)


def _distinct(detected: Detected, known: NDArray[np.int64], ranks: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the known detections stay when those like a better one of their picture are taken out."""
    kept = np.ones(len(known), bool)
    picture = detected.picture[known]
    order = np.lexsort((-ranks[known], picture))
    for same in np.split(order, np.flatnonzero(np.diff(picture[order])) + 1):
        if len(same) < 2:
            continue
        alike = _likeness(detected.found[known[same]], detected.box[known[same]])
        for better in range(len(same)):
            if kept[same[better]]:
                kept[same[better + 1 :][alike[better, better + 1 :] > MOST_ALIKE]] = False
    return kept


def _likeness(found: NDArray[np.float64], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[D D]`` OKS of detections ``[D K 2]`` with each other, over the mean area of both crops."""
    areas = np.array([padded_box(box)[1].prod() for box in boxes])
    squared = ((found[:, None] - found) ** 2).sum(-1)
    spread = (areas[:, None] + areas) / 2
    terms = np.exp(-squared / (2 * SIGMAS[: found.shape[1]]) ** 2 / spread[..., None] / 2)
    return np.nan_to_num(terms).mean(-1)
