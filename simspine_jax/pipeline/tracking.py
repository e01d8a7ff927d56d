"""Where a person is in a picture: from the frame before, or looked for.

Everything here is a function of one frame and of what was found in the one before, so that a run that is gone
on with finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from simspine_jax.io.boxes import clip_boxes

TRACKED = 0.2
"""A person whose keypoints have this mean confidence is followed; one with less is looked for again."""

SURE = 0.5
"""The box is drawn round keypoints with this share of the median confidence."""

LEAST_SURE = 3
"""Keypoints without which there is no box."""

FLESH = 0.07
"""What there is of a person beyond the keypoints, as a share of the longer side of the box round them."""

WINDOW, WINDOW_STEP, WINDOW_ASPECT = 0.6, 0.5, 0.75
"""Windows in which a person is looked for: height over the picture's shorter side, the step from one to the
next over their size, and width over height."""

WINDOWS_EVERY = 10
"""Windows are looked at in the first of so many frames; in the others the whole picture is."""

REFINEMENTS = 2
"""How often a person who was looked for is looked at again, each time in the box that was found."""

Person = NDArray[np.float64]
"""[K 3] x and y, px, and confidence; NaN where missing."""

Job = tuple[int, NDArray[np.float64]]
"""A view, and a box in its picture: left, top, width and height, px."""

Find = Callable[[Sequence[Job]], list[Person]]
"""Finds the person in each box."""


def mean_confidence(person: Person) -> float:
    """Of all keypoints; that of missing ones is 0."""
    return float(np.nan_to_num(person[:, 2]).mean())


def whole_box(size: tuple[int, int]) -> NDArray[np.float64]:
    """The picture of this width and height, px."""
    return np.array([-0.5, -0.5, *size])


def box_around(person: Person, size: tuple[int, int]) -> NDArray[np.float64] | None:
    """The box, px, in which a person is looked for in the next frame; None where too little is known.

    Args:
        person: in this frame.
        size: width and height of the picture, px.
    """
    confidence = np.nan_to_num(person[:, 2])
    if not (confidence > 0).any():
        return None
    sure = confidence >= SURE * np.median(confidence[confidence > 0])
    if sure.sum() < LEAST_SURE:
        return None
    low, high = person[sure, :2].min(axis=0), person[sure, :2].max(axis=0)
    margin = FLESH * (high - low).max()
    boxes = np.concatenate([low - margin, high - low + 2 * margin])[None]
    clipped, inside = clip_boxes(boxes, size)
    return clipped[0] if inside[0] else None


def start_boxes(size: tuple[int, int], frame: int) -> list[NDArray[np.float64]]:
    """Where a person is looked for of whom nothing is known: the whole picture, in some frames windows too.

    Args:
        size: width and height of the picture, px.
        frame: number of the frame.
    """
    boxes = [whole_box(size)]
    if frame % WINDOWS_EVERY:
        return boxes
    height = WINDOW * min(size)
    extent = np.array([WINDOW_ASPECT * height, height])
    places = []
    for axis in (0, 1):
        room = size[axis] - extent[axis]
        count = 1 + int(np.ceil(room / (WINDOW_STEP * extent[axis])))
        places.append(np.linspace(0, room, count) - 0.5)
    return boxes + [np.array([x, y, *extent]) for y in places[1] for x in places[0]]


def track(
    find: Find, sizes: Mapping[int, tuple[int, int]], last: Mapping[int, Person], frame: int
) -> dict[int, Person]:
    """The person in each view's picture.

    Each is looked for in the box round the keypoints of the frame before. Those that are not found there, and
    those that were not found before, are looked for by `start_boxes`, and then in the box that was found.

    Args:
        find: finds people in boxes.
        sizes: width and height of each view's picture, px.
        last: what was found in the frame before.
        frame: number of the frame.
    """
    boxes = {v: box_around(last[v], sizes[v]) for v in sizes if v in last and _is_tracked(last[v])}
    known = [(view, box) for view, box in boxes.items() if box is not None]
    found = {view: person for (view, _), person in zip(known, find(known), strict=True)}
    lost = [view for view in sizes if view not in found or not _is_tracked(found[view])]
    starts = [(view, box) for view in lost for box in start_boxes(sizes[view], frame)]
    _keep_best(found, starts, find)
    for _ in range(REFINEMENTS):
        around = [(view, box_around(found[view], sizes[view])) for view in lost]
        _keep_best(found, [(view, box) for view, box in around if box is not None], find)
    return found


def _is_tracked(person: Person) -> bool:
    return mean_confidence(person) >= TRACKED


def _keep_best(found: dict[int, Person], jobs: Sequence[Job], find: Find) -> None:
    """Puts the surest of each view's people in the place of what was found before."""
    for (view, _), person in zip(jobs, find(jobs), strict=True):
        if view not in found or mean_confidence(person) > mean_confidence(found[view]):
            found[view] = person
