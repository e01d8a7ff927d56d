"""People that share a picture, as COCO's AP and AR compare them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simspine_jax.metrics.keypoints2d import Detections, OksScores, People, average_precision
from simspine_jax.skeleton import OKS_SUBSETS
from simspine_jax.training.detector_evaluation import Detected


def oks_by_picture(detected: Detected, picture_of: NDArray[np.int64]) -> dict[str, OksScores]:
    """COCO's numbers of ``body``, ``spine`` and ``all``, where several people may be in a picture.

    A detection that is nearer to somebody else in its picture is matched with them, as COCO does it; people
    whose area is not known are left out. Detections are ranked by the mean score of their keypoints.

    Args:
        detected: N people.
        picture_of: ``[N]``, the number of each one's picture.
    """
    known = np.flatnonzero(np.isfinite(detected.area))
    if not len(known):
        nothing = OksScores(*(float("nan") for _ in OksScores.__annotations__))
        return dict.fromkeys(OKS_SUBSETS, nothing)
    _, picture, counts = np.unique(picture_of[known], return_inverse=True, return_counts=True)
    order = np.argsort(picture, kind="stable")
    place = np.arange(len(known)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, columns = picture[order], place

    def padded(values: NDArray) -> NDArray:
        whole = np.zeros((len(counts), int(counts.max()), *values.shape[1:]), values.dtype)
        whole[rows, columns] = values[known[order]]
        return whole

    present = padded(np.ones(len(detected.area), bool))
    people = People(
        padded(detected.true), padded(detected.labelled), padded(detected.area), padded(detected.box),
        present=present,
    )  # fmt: skip
    ranks = np.nan_to_num(detected.score).mean(-1)
    found = Detections(padded(detected.found), padded(ranks), present=present)
    return {name: average_precision(found, people, ids=ids) for name, ids in OKS_SUBSETS.items()}
