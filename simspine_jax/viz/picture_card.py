"""The card of a set of pictures: how many there are, what is seen in them, how large people are, examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simspine_jax.picture_statistics import (
    BOX_MEASURES,
    BOX_NOTE,
    VISIBILITY_NOTE,
    PictureStatistics,
    box_table,
    picture_counts_table,
    size_table,
    true_visibility_table,
    visibility_shares,
)
from simspine_jax.pictures import (
    OCCLUDED,
    OUTSIDE,
    VISIBLE,
    Picture,
    contact_sheet,
    draw_picture,
    encode_jpeg,
)
from simspine_jax.skeleton import KEYPOINT_NAMES
from simspine_jax.statistics import counted
from simspine_jax.viz.card import (
    NOT_THE_PAPERS,
    CardFacts,
    CardFigure,
    CardPhoto,
    CardSection,
    write_sections,
)
from simspine_jax.viz.figures import COLORS, name_groups, new_figure, title_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_PICTURES, SHEET_COLUMNS = 12, 4
"""How many pictures the contact sheet shows; more make the page slow to open."""

_KINDS = {VISIBLE: ("Visible", COLORS[2]), OCCLUDED: ("Occluded", COLORS[4]), OUTSIDE: ("Outside", "#bbbbbb")}


def write_picture_card(
    out: Path, statistics: PictureStatistics, pictures: Sequence[Picture], facts: CardFacts
) -> list[Path]:
    """Writes the card of a set of pictures into a folder; see `card.write_sections`.

    Args:
        out: the folder; made where it is missing.
        statistics: of all pictures.
        pictures: of which examples are shown.
        facts: of the dataset.

    Returns:
        the files in the order in which they were written, the page first.

    Raises:
        MissingDependencyError: matplotlib or OpenCV is not installed.
        FileFormatError: a picture can't be decoded.
        SimspineError: a file can't be written.
    """
    told = statistics.notices
    notices = (*told, NOT_THE_PAPERS) if told else told
    sections = tuple(_sections(statistics, pictures))
    return write_sections(out, facts, notices, _about(statistics), sections, statistics.source)


def _about(statistics: PictureStatistics) -> dict[str, str]:
    splits = statistics.counts_by("split").items()
    return {
        "Origin": statistics.source,
        "Size": counted(statistics.n_pictures, "picture"),
        "Splits": "; ".join(f"{name}: {counted(count, 'picture')}" for name, count in splits),
        "Cameras": ", ".join(statistics.counts_by("camera")),
    }


def _sections(statistics: PictureStatistics, pictures: Sequence[Picture]) -> Iterator[CardSection]:
    yield CardSection(
        "Examples",
        photos={
            "contact_sheet": CardPhoto(
                sheet_jpeg(pictures),
                "Pictures at even steps through the set, with box and keypoints: green where visible, orange "
                "where occluded.",
            )
        },
    )
    yield CardSection(
        "Counts",
        {},
        tuple(picture_counts_table(statistics, by) for by in ("split", "subject", "action", "camera")),
    )
    yield CardSection(
        "True visibility",
        {"true_visibility": CardFigure(visibility_figure(statistics), f"By keypoint. {VISIBILITY_NOTE}")},
        (true_visibility_table(statistics),),
    )
    yield CardSection(
        "People and pictures",
        {"boxes": CardFigure(boxes_figure(statistics), f"How large people are in the pictures. {BOX_NOTE}")},
        (box_table(statistics), size_table(statistics)),
    )


def sheet_jpeg(pictures: Sequence[Picture]) -> bytes:
    """`SHEET_PICTURES` of the pictures, at even steps, as one JPEG file."""
    places = np.unique(np.linspace(0, len(pictures) - 1, SHEET_PICTURES).round().astype(int))
    drawn = (draw_picture(pictures[i]) for i in places.tolist())
    return encode_jpeg(contact_sheet(drawn, SHEET_COLUMNS))


def visibility_figure(statistics: PictureStatistics) -> Figure:
    """Bars of visible, occluded and outside pictures of each keypoint.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    shares = np.nan_to_num(visibility_shares(statistics))
    with new_figure(4.2) as figure:
        title_figure(figure, "True visibility by keypoint", statistics.source, statistics.notices)
        axes: Any = figure.subplots()
        below = np.zeros(len(KEYPOINT_NAMES))
        for value, (label, color) in _KINDS.items():
            axes.bar(np.arange(len(below)), shares[:, value], 0.8, below, color=color, label=label)
            below += shares[:, value]
        name_groups(axes, KEYPOINT_NAMES)
        axes.set_ylabel("Pictures (%)")
        axes.set_ylim(0, 100)
        axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def boxes_figure(statistics: PictureStatistics) -> Figure:
    """Histograms of the size of people: root of the area, box over picture, visible keypoints.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    shown = {
        BOX_MEASURES["height"]: statistics.boxes["height"], BOX_MEASURES["size"]: statistics.boxes["size"],
        BOX_MEASURES["share"]: statistics.boxes["share"],
        "Visible keypoints (of 37)": statistics.visible_keypoints,
    }  # fmt: skip
    with new_figure(3.2) as figure:
        title_figure(figure, "People in the pictures", statistics.source, statistics.notices)
        panels: Any = figure.subplots(1, len(shown), sharey=True)
        for axes, (label, tally), color in zip(panels, shown.items(), COLORS, strict=False):
            middles, counts = tally.histogram()
            whole = label.startswith("Visible")
            edges: Any = np.arange(-0.5, len(KEYPOINT_NAMES) + 1) if whole else 24
            axes.hist(middles, edges, weights=100.0 * counts / max(tally.count, 1), color=color)
            axes.set_xlabel(label)
        panels[0].set_ylabel("Pictures (%)")
    return figure
