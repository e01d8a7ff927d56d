"""How good a trained detector is: keypoints of every picture of a set, and a table of scores.

Crops are those of the pictures' true boxes, as in the paper, and the output is the mean of the crop's and
its mirror image's. Every keypoint that is labelled counts, seen or occluded, in the crop and in the picture
or not.

AP and AR are COCO's over OKS, of people whose area is known; see `training.detected`. PCK divides distances
by the shorter side of the person's box, as the paper does; AUC is MMPose's, whose mean is over people first
and over keypoints then and cannot exceed `AUC_CEILING`.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.datasets import PictureSequence
from simspine_jax.datasets.picture_batches import named_crop
from simspine_jax.datasets.picture_files import picture_numbers, scored_boxes
from simspine_jax.detection.codecs import picture_keypoints
from simspine_jax.detection.inference import Detector
from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.io.files import atomic_write, make_folder
from simspine_jax.metrics.keypoints2d import (
    AUC_CEILING,
    OksScores,
    keypoint_mean,
    pck,
    pck_auc,
    shorter_side,
)
from simspine_jax.metrics.masked import Masked
from simspine_jax.pictures import (
    OUTSIDE,
    VISIBLE,
    Crop,
    Picture,
    contact_sheet,
    draw_picture,
    encode_jpeg,
    padded_box,
    top_down,
)
from simspine_jax.skeleton import OKS_SUBSETS
from simspine_jax.tables import Table
from simspine_jax.training.detected import LEAST_SCORE, MOST_ALIKE, Detected, oks_by_subset
from simspine_jax.training.detector_run import DetectorRun
from simspine_jax.training.evaluation import commit

BATCH = 32
"""Crops that are looked at at once."""

AHEAD = 2 * BATCH
"""Crops that are ready or under way meanwhile."""

PCK_SHARE = 0.1
"""Of the shorter side, the one threshold at which PCK is told."""

SHEET_FILE = "detections.jpg"
SHEET_PICTURES = 24
"""Pictures of the contact sheet, evenly spread over the set."""


@dataclass(frozen=True)
class DetectorScores:
    """Scores by subset of the keypoints: ``body``, ``spine`` and ``all``.

    Attributes:
        oks: COCO's numbers; NaN where no area is known.
        auc: 0 to `AUC_CEILING`.
        pck: share of keypoints nearer than `PCK_SHARE` of the shorter side, mean as of AUC.
        fixed_auc: what AUC would be if the mean pose of these crops were found in all of them: AUC by the
            shorter side is high even for it.
        people: that were compared.
        pictures: that they are in.
        with_area: people that AP and AR are of.
        left_out: people whose pictures can't be read.
    """

    oks: dict[str, OksScores]
    auc: dict[str, float]
    pck: dict[str, float]
    fixed_auc: dict[str, float]
    people: int
    pictures: int
    with_area: int
    left_out: int = 0


def detect(
    detector: Detector, pictures: PictureSequence, *, progress: Callable[[int], object] | None = None
) -> Detected:
    """Finds the keypoints of every person in pictures, by the person's box.

    People whose pictures can't be read or decoded are left out, and told in ``left_out``.

    Args:
        detector: trained.
        pictures: of a split, a record for each person.
        progress: told how many records were just done.

    Raises:
        ShapeError: there are no pictures.
        FileFormatError: none of the pictures can be read.
    """
    if not len(pictures):
        raise ShapeError("There are no pictures to find keypoints in; valid is one or more")
    parts: list[dict[str, NDArray]] = []
    left_out: list[str] = []

    def usable() -> Iterator[_Person]:
        for found in _crops(pictures, detector.size, detector.codec.udp):
            if not isinstance(found, str):
                yield found
                continue
            left_out.append(found)
            if progress is not None:
                progress(1)

    people = usable()
    while batch := list(itertools.islice(people, BATCH)):
        parts.append(_detected(detector, batch))
        if progress is not None:
            progress(len(batch))
    if not parts:
        raise FileFormatError(f"None of the {len(pictures)} pictures can be read; the first: {left_out[0]}")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    record = columns["record"]
    boxes = scored_boxes(pictures)
    side = shorter_side(jnp.asarray(columns["box"] if boxes is None else boxes[record]))
    numbers = picture_numbers(pictures)[record]
    return Detected(**columns, side=np.asarray(side), picture=numbers, left_out=tuple(left_out))


_Person = tuple[int, Picture, Crop]
"""The number of a record, itself and its crop."""


def _crops(pictures: PictureSequence, size: tuple[int, int], udp: bool) -> Iterator[_Person | str]:
    """People in order with their crops, made ahead by threads, or why a picture can't be read."""

    def made(index: int) -> _Person | str:
        try:
            picture = pictures[index]
            where = partial(pictures.where, index)
            return index, picture, named_crop(picture, where, partial(top_down, size=size, udp=udp))
        except FileFormatError as error:
            return str(error)

    rest = iter(range(len(pictures)))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        waiting: deque[Future[_Person | str]] = deque(
            pool.submit(made, i) for i in itertools.islice(rest, AHEAD)
        )
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(made, i) for i in itertools.islice(rest, 1))
            yield done


def _detected(detector: Detector, batch: list[_Person]) -> dict[str, NDArray]:
    """Of one batch, by `Detected`'s names; it is filled up so that all share a compiled program."""
    records, pictures, crops = zip(*batch, strict=True)
    filled = [*crops, *itertools.repeat(crops[-1], BATCH - len(crops))]
    found = detector(np.stack([crop.pixels for crop in filled]))
    count = len(batch)
    matrix = np.stack([crop.matrix for crop in crops])
    true = np.stack([picture.keypoints_2d for picture in pictures])
    seen = np.stack([picture.visibility for picture in pictures]) != OUTSIDE
    return {
        "found": picture_keypoints(np.asarray(found.keypoints)[:count], matrix),
        "score": np.asarray(found.score)[:count],
        "true": true,
        "labelled": seen & np.isfinite(true).all(-1),
        "box": np.stack([picture.box for picture in pictures]),
        "area": np.array([picture.area for picture in pictures], np.float32),
        "record": np.array(records, np.int64),
    }


def detector_scores(detected: Detected) -> DetectorScores:
    """Scores of what was found.

    Args:
        detected: of `detect`.
    """
    normaliser = jnp.asarray(detected.side)
    args = (jnp.asarray(detected.found), jnp.asarray(detected.true), jnp.asarray(detected.labelled))
    auc, near = pck_auc(*args, normaliser), pck(*args, normaliser, PCK_SHARE)
    fixed = pck_auc(jnp.asarray(fixed_pose(detected)), *args[1:], normaliser)
    names = ("body", "spine", "all")

    def mean(scores: Masked, name: str) -> float:
        return float(keypoint_mean(scores[:, np.array(OKS_SUBSETS[name])]).values)

    return DetectorScores(
        oks_by_subset(detected),
        {name: mean(auc, name) for name in names},
        {name: mean(near, name) for name in names},
        {name: mean(fixed, name) for name in names},
        len(detected.box),
        len(np.unique(detected.picture)),
        int(np.isfinite(detected.area).sum()),
        len(detected.left_out),
    )


def fixed_pose(detected: Detected) -> NDArray[np.float64]:
    """The mean pose of all crops in each of them ``[N K 2]``, px of the pictures.

    Args:
        detected: whose boxes and true keypoints count.
    """
    centers, extents = (np.stack(part) for part in zip(*map(padded_box, detected.box), strict=True))
    center, extent = centers[:, None], extents[:, None, :1]
    counts = detected.labelled.sum(0)[:, None]
    inside = np.where(detected.labelled[..., None], (detected.true - center) / extent, 0.0)
    mean = np.where(counts > 0, inside.sum(0) / np.maximum(counts, 1), np.nan)
    return mean * extent + center


def detector_table(
    run: DetectorRun, scores: DetectorScores, *, split: str | None, source: str, steps: int
) -> Table:
    """The scores as a table.

    Args:
        run: that was trained.
        scores: of it.
        split: of the dataset; None where it has none.
        source: what the pictures are, in words.
        steps: that it was trained.
    """
    rows = tuple(
        (f"{name.capitalize()}({len(OKS_SUBSETS[name])})", scores.auc[name], scores.fixed_auc[name],
         scores.pck[name], o.ap, o.ap50, o.ap75, o.ar)
        for name, o in scores.oks.items()
    )  # fmt: skip
    notes = (
        "AUC is the mean PCK over the thresholds 0, 0.05, ... 0.95 of the shorter side of the person's box, "
        f"first over people and then over keypoints; a perfect detector has {AUC_CEILING:g}.",
        "The mean pose of these crops, found in each of them, would have the AUC of the second column.",
        f"AP and AR are COCO's over OKS, of {scores.with_area} people with known areas; as in MMPose's "
        f"CocoMetric they are ranked by the mean score of their keypoints above {LEAST_SCORE:g}, and of "
        f"detections in a picture with an OKS above {MOST_ALIKE:g} one counts.",
        "Crops are of true boxes, with flip test.",
        *(
            [f"{scores.left_out} people, whose pictures can't be read, are left out."]
            if scores.left_out
            else []
        ),
        f"Config {run.name}, {steps} steps, seed {run.seed}; commit {commit()}.",
    )
    return Table(
        run.name if split is None else f"{run.name}_{split}",
        f"Detection of keypoints by {run.name}",
        ("", "AUC", "Mean pose", f"PCK@{PCK_SHARE:g}", "AP", "AP50", "AP75", "AR"),
        rows,
        (0, *(3,) * 7),
        f"{source}, {'' if split is None else f'split {split}, '}{scores.people} people in "
        f"{scores.pictures} pictures",
        notes,
    )


def draw_detections(pictures: PictureSequence, detected: Detected, folder: Path) -> Path:
    """Writes crops of some pictures with what was found in them, each beside its truth; its path.

    Args:
        pictures: of `detect`.
        detected: in them.
        folder: made if missing.

    Raises:
        SimspineError: the folder can't be written.
    """
    people = len(detected.found)
    records = np.arange(people) if detected.record is None else detected.record
    tiles: list[NDArray[np.uint8]] = []
    for row in np.linspace(0, people - 1, min(SHEET_PICTURES, people)).round().astype(int).tolist():
        picture = pictures[int(records[row])]
        crop, found = top_down(picture), detected.found[row]
        seen = np.where(np.isfinite(found).all(-1), VISIBLE, OUTSIDE).astype(np.int32)
        for keypoints, visibility in ((picture.keypoints_2d, picture.visibility), (found, seen)):
            tiles.append(_tile(picture, crop, keypoints, visibility))
    make_folder(folder)
    path = folder / SHEET_FILE
    with atomic_write(path, binary=True) as file:
        file.write(encode_jpeg(contact_sheet(tiles, columns=8)))
    return path


def _tile(picture: Picture, crop: Crop, keypoints: NDArray, visibility: NDArray) -> NDArray[np.uint8]:
    """A crop with keypoints of its picture drawn on it."""
    height, width = crop.pixels.shape[:2]
    linear, shift = crop.matrix[:, :2], crop.matrix[:, 2]
    corner, extent = linear @ picture.box[:2] + shift, linear @ picture.box[2:]
    shown = replace(
        picture,
        jpeg=encode_jpeg(crop.pixels),
        width=width,
        height=height,
        keypoints_2d=(keypoints @ linear.T + shift).astype(np.float32),
        visibility=visibility,
        box=np.array([*corner, *extent], np.float32),
    )
    return draw_picture(shown)
