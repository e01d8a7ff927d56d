"""Running statistics of a set of pictures and tables of them; pictures are read once and not kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simspine_jax.clips import SPLITS, split_of
from simspine_jax.errors import ShapeError
from simspine_jax.io.layout import natural_key
from simspine_jax.pictures import OCCLUDED, OUTSIDE, VISIBLE, Picture
from simspine_jax.skeleton import KEYPOINT_NAMES
from simspine_jax.statistics import Tally
from simspine_jax.tables import Cell, Table

RENDERED = "Synthetic: motion and pictures were computed, and nobody was filmed."

VISIBILITY_NOTE = (
    "Visible, occluded and outside are as COCO's 2, 1 and 0, and add up to the pictures in which the "
    "keypoint is known. In rendered pictures they come from the depth of what is seen, not from a guess."
)

BOX_NOTE = (
    "The box holds what is seen of the person; the area is that of its silhouette. The size of a person is "
    "the root of the area, as COCO has it: small below 32 px, large above 96 px."
)

BOX_MEASURES: Mapping[str, str] = {
    "width": "Width of the box (px)", "height": "Height of the box (px)", "size": "Root of the area (px)",
    "share": "Box over picture (%)", "filled": "Area over box (%)",
}  # fmt: skip
"""What is told of people's boxes."""


@dataclass(frozen=True, eq=False)
class PictureStatistics:
    """Of a set of pictures.

    Attributes:
        counts: pictures by subject and action.
        cameras: pictures by camera.
        sizes: pictures by width and height, px.
        visibility: [37 3] pictures in which each keypoint is outside, occluded, visible.
        known: [37] of these, the ones in which it is known where the keypoint is.
        boxes: by `BOX_MEASURES`.
        visible_keypoints: how many of the 37 are visible, of each picture.
        n_synthetic: pictures that are rendered.
    """

    counts: Mapping[tuple[str, str], int]
    cameras: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    visibility: NDArray[np.int64]
    known: NDArray[np.int64]
    boxes: Mapping[str, Tally]
    visible_keypoints: Tally
    n_synthetic: int

    @property
    def n_pictures(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    @property
    def source(self) -> str:
        """What the pictures come from, in words."""
        return f"{self.n_synthetic} of {self.n_pictures} pictures rendered"

    @property
    def notices(self) -> tuple[str, ...]:
        """What must be known of numbers about them."""
        return (RENDERED,) if self.n_synthetic else ()

    def counts_by(self, kind: str) -> dict[str, int]:
        """Pictures by ``subject``, ``action``, ``camera`` (in natural order) or ``split``."""
        found: Counter[str] = Counter()
        for (subject, action), count in self.counts.items():
            key = {"subject": subject, "action": action, "split": split_of(subject), "camera": ""}[kind]
            found[key] += count
        if kind == "split":
            return {split: found[split] for split in SPLITS if found[split]}
        named = self.cameras if kind == "camera" else found
        return {name: named[name] for name in sorted(named, key=natural_key)}


def gather_pictures(pictures: Iterable[Picture], step: Callable[[], None] | None = None) -> PictureStatistics:
    """Reads each picture's annotation once, in any order.

    Args:
        pictures: in any number; they are not decoded.
        step: called after each.

    Raises:
        ShapeError: there are none.
    """
    counts: Counter[tuple[str, str]] = Counter()
    cameras: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    visibility, known = np.zeros((len(KEYPOINT_NAMES), 3), np.int64), np.zeros(len(KEYPOINT_NAMES), np.int64)
    measured: list[tuple[float, ...]] = []
    seen: list[int] = []
    n_synthetic = 0
    for picture in pictures:
        counts[picture.subject, picture.action] += 1
        cameras[picture.camera] += 1
        sizes[int(picture.width), int(picture.height)] += 1
        is_known = np.isfinite(picture.keypoints_2d).all(axis=-1)
        known += is_known
        for value in (OUTSIDE, OCCLUDED, VISIBLE):
            visibility[:, value] += is_known & (picture.visibility == value)
        measured.append(_measures(picture))
        seen.append(int((picture.visibility == VISIBLE).sum()))
        n_synthetic += bool(picture.is_synthetic)
        if step is not None:
            step()
    if not counts:
        raise ShapeError("There are no pictures; valid is at least one")
    columns = np.array(measured).T
    boxes = {name: Tally.of(column) for name, column in zip(BOX_MEASURES, columns, strict=True)}
    return PictureStatistics(
        counts, cameras, sizes, visibility, known, boxes, Tally.of(np.array(seen, float)), n_synthetic
    )


def _measures(picture: Picture) -> tuple[float, ...]:
    """Those of `BOX_MEASURES`."""
    _, _, width, height = picture.box.tolist()
    whole = 100.0 * width * height / (picture.width * picture.height)
    filled = 100.0 * picture.area / (width * height) if width * height else math.nan
    return width, height, math.sqrt(picture.area), whole, filled


def picture_counts_table(statistics: PictureStatistics, by: str) -> Table:
    """How many pictures there are by ``split``, ``subject``, ``action`` or ``camera``."""
    more = {name: split_of(name) for name in statistics.counts_by(by)} if by == "subject" else {}
    whole = statistics.n_pictures
    rows: list[tuple[Cell, ...]] = []
    for name, count in (*statistics.counts_by(by).items(), ("All", whole)):
        split = (more.get(name),) if more else ()
        rows.append((name, *split, count, 100.0 * count / whole))
    columns = (by.capitalize(), *(("Split",) if more else ()), "Pictures", "Share (%)")
    return Table(
        f"pictures_by_{by}", f"Pictures by {by}", columns, tuple(rows), (0,) * (len(columns) - 1) + (1,),
        statistics.source, statistics.notices,
    )  # fmt: skip


def true_visibility_table(statistics: PictureStatistics) -> Table:
    """In how many pictures each keypoint is visible, occluded, outside."""
    rows: list[tuple[Cell, ...]] = []
    shares = visibility_shares(statistics)
    for k, name in enumerate(KEYPOINT_NAMES):
        rows.append((name, int(statistics.known[k]), *(float(shares[k, v]) for v in _ORDER)))
    total = statistics.visibility.sum(axis=0)
    whole = max(int(statistics.known.sum()), 1)
    rows.append(("All", int(statistics.known.sum()), *(100.0 * float(total[v]) / whole for v in _ORDER)))
    return Table(
        "true_visibility_by_keypoint", "True visibility of each keypoint",
        ("Keypoint", "Known in pictures", "Visible (%)", "Occluded (%)", "Outside (%)"), tuple(rows),
        (0, 0, 1, 1, 1), statistics.source, (*statistics.notices, VISIBILITY_NOTE),
    )  # fmt: skip


_ORDER = (VISIBLE, OCCLUDED, OUTSIDE)


def visibility_shares(statistics: PictureStatistics) -> NDArray[np.float64]:
    """[37 3] percent of the pictures with the keypoint known, in COCO's order 0, 1, 2; NaN of none."""
    known = statistics.known[:, None]
    return 100.0 * np.where(known > 0, statistics.visibility / np.maximum(known, 1), np.nan)


def box_table(statistics: PictureStatistics) -> Table:
    """How large people are in the pictures, and how many of their keypoints are visible."""
    measures = {BOX_MEASURES[name]: tally for name, tally in statistics.boxes.items()}
    rows = tuple(
        (name, t.mean, t.sd, t.low, t.percentile(5), t.percentile(50), t.percentile(95), t.high)
        for name, t in {**measures, "Visible keypoints (of 37)": statistics.visible_keypoints}.items()
    )
    columns = ("Measure", "Mean", "SD", "Lowest", "5 %", "Median", "95 %", "Highest")
    notes = (*statistics.notices, BOX_NOTE)
    return Table("boxes", "People in the pictures", columns, rows, (0, *[1] * 7), statistics.source, notes)


def size_table(statistics: PictureStatistics) -> Table:
    """How many pictures have each width and height."""
    sizes = sorted(statistics.sizes.items())
    rows = tuple((f"{w} x {h}", count, 100.0 * count / statistics.n_pictures) for (w, h), count in sizes)
    return Table(
        "picture_sizes", "Sizes of the pictures", ("Width x height (px)", "Pictures", "Share (%)"), rows,
        (0, 0, 1),
        statistics.source, statistics.notices,
    )  # fmt: skip
