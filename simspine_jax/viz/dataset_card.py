"""The card of a dataset: one page, pictures and tables of what is in it, its origin and how good it is.

Everything is drawn from `dataset_statistics`, for which the clips were read once, so that a set of any size
will do. A card describes: values of the literature are for the validation, `viz.validate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simspine_jax.clips import split_of
from simspine_jax.dataset_statistics import (
    AXES,
    Axis,
    ClipCounts,
    DatasetStatistics,
    ViewStatistics,
    by_region,
)
from simspine_jax.dataset_tables import (
    AXES_NOTE,
    INSIDE_NOTE,
    MEASURES_NOTE,
    SIGNS_NOTE,
    USABLE_NOTE,
    axes_table,
    axis_error_table,
    counts_table,
    curvature_error_table,
    curvature_table,
    flags_table,
    inside_table,
    lumbar_table,
    speed_table,
    view_table,
)
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import KEYPOINT_NAMES, LUMBAR_LEVELS
from simspine_jax.statistics import SYNTHETIC_NOTICE, Tally, counted
from simspine_jax.validation import FIXED_RATIOS, truth_table
from simspine_jax.viz.card import (
    NOT_STATED,
    NOT_THE_PAPERS,
    CardFacts,
    CardFigure,
    CardSection,
    write_sections,
)
from simspine_jax.viz.figures import (
    COLORS,
    draw_violins,
    errors_figure,
    name_groups,
    new_figure,
    say_nothing,
    title_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEADING = "pelvis_rotation"
_INSIDE = "Keypoints inside the picture"
_SEED = re.compile(r"\bseed (\d+)")


def write_card(out: Path, statistics: DatasetStatistics, facts: CardFacts) -> list[Path]:
    """Writes a dataset's card into a folder; each file is whole or not there.

    The page is `PAGE` and holds all; ``figures`` has its pictures as PNG and SVG, ``tables`` its tables as
    CSV and Markdown.

    Args:
        out: the folder; made where it is missing.
        statistics: of all clips.
        facts: of the dataset.

    Returns:
        the files in the order in which they were written, the page first.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SimspineError: a file can't be written.
    """
    source = statistics.spine.source
    parts = tuple(_sections(statistics))
    return write_sections(out, facts, _notices(statistics), _about(statistics), parts, source)


def _notices(statistics: DatasetStatistics) -> tuple[str, ...]:
    told = statistics.spine.notices
    return (*told, NOT_THE_PAPERS) if SYNTHETIC_NOTICE in told else told


def _about(statistics: DatasetStatistics) -> dict[str, str]:
    whole, spine = statistics.whole, statistics.spine
    synthetic = sum(row.is_synthetic for row in spine.trials)
    seeds = sorted({seed for row in spine.trials for seed in _SEED.findall(row.source)}, key=int)
    rates = ", ".join(f"{rate:g}" for rate in statistics.rates_hz)
    splits = statistics.counts_by("split").items()
    cameras = ", ".join(statistics.views) or "none"
    return {
        "Origin": f"{synthetic} of {counted(len(spine.trials), 'trial')} synthetic",
        "Seed": ", ".join(seeds) or NOT_STATED,
        "Size": f"{counted(whole.clips, 'clip')} of {counted(len(spine.trials), 'trial')}, "
        f"{whole.frames} frames, {whole.view_frames} frames in views, {whole.seconds / 3600:.2f} hours",
        "Splits": "; ".join(f"{name}: {counted(count.frames, 'frame')}" for name, count in splits),
        "Frames per second": rates,
        "Cameras": cameras,
        "Usable": f"{whole.usable} of {whole.frames} frames, {whole.repaired} of them repaired",
        "Data": spine.source,
    }


def _sections(statistics: DatasetStatistics) -> Iterator[CardSection]:
    spine = statistics.spine
    yield CardSection(
        "Counts",
        {"counts": CardFigure(counts_figure(statistics), "Frames by subject and action.")},
        (*(counts_table(statistics, by) for by in ("split", "subject", "action", "view")),),
    )
    yield CardSection(
        "Curvature",
        {
            f"curvature_by_{by}": CardFigure(
                curvature_figure(statistics, by),
                f"Lordosis L1-S1 and kyphosis T3-T12 by {by}. {MEASURES_NOTE}",
            )
            for by in ("action", "subject")
        },
        (curvature_table(statistics, "action"), curvature_table(statistics, "subject")),
    )
    yield CardSection(
        "Range of motion",
        {
            "axes": CardFigure(axes_figure(statistics), f"Ranges of the kinematic axes. {AXES_NOTE}"),
            "lumbar_levels": CardFigure(
                lumbar_figure(statistics), f"Ranges of the lumbar levels. {SIGNS_NOTE}"
            ),
        },
        (axes_table(statistics), lumbar_table(statistics)),
    )
    yield _inside_section(statistics)
    yield _truth_section(statistics)
    yield CardSection(
        "Speed",
        {
            "speed": CardFigure(
                errors_figure(statistics.speed, "Speed by keypoint", "cm/s", spine.source, spine.notices),
                "Speed of keypoints between neighbouring usable frames: median, 5th to 95th percentile.",
            )
        },
        (speed_table(statistics),),
    )
    yield CardSection(
        "Quality flags", {}, (flags_table(statistics, "subject"), flags_table(statistics, "action"))
    )


def _inside_section(statistics: DatasetStatistics) -> CardSection:
    if not statistics.views:
        return CardSection(_INSIDE, {}, (), "The data have no cameras.")
    spine = statistics.spine
    pictures = {"inside": CardFigure(inside_figure(statistics), f"By keypoint and camera. {INSIDE_NOTE}")}
    if any(tally.count for tally in statistics.detector_px.values()):
        title = "Distance of detections from the pictures of the truth, by keypoint"
        drawn = errors_figure(statistics.detector_px, title, "px", spine.source, spine.notices)
        pictures["detector_error"] = CardFigure(drawn, f"{title}: median, 5th to 95th percentile.")
    return CardSection(_INSIDE, pictures, (view_table(statistics), inside_table(statistics)))


def _truth_section(statistics: DatasetStatistics) -> CardSection:
    heading = "Annotation against truth"
    if not statistics.has_truth:
        return CardSection(
            heading, {}, (), "The data hold no truth: nobody knows how far the annotation is off."
        )
    spine = statistics.spine
    title = "Distance of the annotation from the synthetic truth, by keypoint"
    drawn = errors_figure(statistics.error_mm, title, "mm", spine.source, spine.notices)
    rows = {
        name: {region: tally.mean for region, tally in by_region(tallies).items()}
        for name, tallies in (
            ("as they are", statistics.error_mm),
            ("hips put together", statistics.rooted_mm),
        )
    }
    return CardSection(
        heading,
        {"annotation_error": CardFigure(drawn, f"{title}: median, 5th to 95th percentile of usable frames.")},
        (
            truth_table(rows, spine.source, (*spine.notices, USABLE_NOTE)),
            *((curvature_error_table(statistics),) if statistics.has_true_curvature else ()),
            axis_error_table(statistics),
        ),
    )


# --- figures ---


def counts_figure(statistics: DatasetStatistics) -> Figure:
    """Frames by subject (with its split) and action.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    subjects, actions = (list(statistics.counts_by(kind)) for kind in ("subject", "action"))
    table = np.array(
        [[statistics.counts.get((s, a), ClipCounts()).frames for a in actions] for s in subjects], float
    )
    spine = statistics.spine
    with new_figure(2.6 + 0.3 * len(subjects)) as figure:
        title_figure(figure, "Frames by subject and action", spine.source, spine.notices)
        axes = figure.subplots()
        _heat_map(axes, table, [f"{s} ({split_of(s)})" for s in subjects])
        name_groups(axes, actions)
        axes.set_xlim(-0.5, len(actions) - 0.5)
    return figure


def _heat_map(axes: Axes, table: np.ndarray, rows: Sequence[str], top: float | None = None) -> None:
    """Cells from white to blue with their numbers, the first row above; empty ones (NaN) are grey."""
    high = np.nanmax(table, initial=0.0) if top is None else top
    edges = [np.arange(size + 1) - 0.5 for size in table.shape[::-1]]
    axes.pcolormesh(
        *edges, np.ma.masked_invalid(table), cmap="Blues", vmin=0, vmax=2 * high or 1, edgecolors="white"
    )
    axes.invert_yaxis()
    axes.set_facecolor("#dddddd")
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def curvature_figure(statistics: DatasetStatistics, by: str) -> Figure:
    """Violins of lordosis and kyphosis by keypoints, means by bodies; by ``action`` or ``subject``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    spine = statistics.spine
    groups = spine.by_action if by == "action" else spine.by_subject
    with new_figure(5.6) as figure:
        title = (
            f"Curvature by {by}. Violins: by keypoints, 1 to 99 % of usable frames, bar at the mean. "
            "Diamonds: by bodies, mean and SD."
        )
        title_figure(figure, title, spine.source, spine.notices)
        panels: Any = figure.subplots(2, 1, sharex=True)
        for axes, name in zip(panels, ("lordosis", "kyphosis"), strict=True):
            draw_violins(axes, [group.curvature[name] for group in groups.values()], COLORS[0])
            bodies = [group.curvature[f"body_{name}"] for group in groups.values()]
            if any(tally.count for tally in bodies):
                means, spreads = [tally.mean for tally in bodies], [tally.sd for tally in bodies]
                at = np.arange(len(bodies))
                axes.errorbar(at, means, spreads, fmt="D", markersize=4, color=COLORS[1], elinewidth=1)
            axes.set_title(name.capitalize(), loc="left")
            axes.set_ylabel("Angle (°)")
        name_groups(panels[-1], list(groups))
    return figure


def lumbar_figure(statistics: DatasetStatistics) -> Figure:
    """Ranges of the six lumbar levels about each axis: 5 to 95 % as bars, lowest to highest as lines.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    spine = statistics.spine
    with new_figure(3.6) as figure:
        held = FIXED_RATIOS if spine.whole.n_fixed == spine.whole.n_trials else ""
        title = f"Lumbar levels: 5 to 95 % of usable frames (bars), all of them (lines), mean (white). {held}"
        title_figure(figure, title, spine.source, spine.notices)
        panels: Any = figure.subplots(1, 3)
        for axes, motion, color in zip(panels, MOTIONS, COLORS, strict=False):
            tallies = {level_label(lv): spine.whole.rotations[lv, motion] for lv in LUMBAR_LEVELS[::-1]}
            _draw_ranges(axes, tallies, dict.fromkeys(tallies, color))
            axes.set_title(motion.capitalize(), loc="left")
            axes.set_ylabel("Angle (°)")
    return figure


def axes_figure(statistics: DatasetStatistics) -> Figure:
    """Ranges of the kinematic axes: 5 to 95 % as bars, lowest to highest as lines.

    Left out are the lumbar levels, which `lumbar_figure` has, and the pelvis' turn, which has no bounds.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    spine, shown = (
        statistics.spine,
        [axis for axis in AXES if axis.group != "lumbar spine" and axis.name != _HEADING],
    )
    turns, slides = ([axis for axis in shown if axis.unit == unit] for unit in ("°", "cm"))
    with new_figure(5.4) as figure:
        title = "Kinematic axes: 5 to 95 % of usable frames (bars), all of them (lines), mean (white)"
        title_figure(figure, title, spine.source, spine.notices)
        panels: Any = figure.subplots(1, 2, width_ratios=(len(turns), len(slides) + 1))
        for axes, axis_set in zip(panels, (turns, slides), strict=True):
            _draw_axes(axes, axis_set, statistics.axes)
        _name_axis_groups(panels[0], turns)
        panels[0].set_ylabel("Angle (°)")
        panels[1].set_ylabel("Translation (cm)")
    return figure


def _draw_axes(axes: Axes, shown: Sequence[Axis], tallies: Mapping[str, Tally]) -> None:
    groups = list(dict.fromkeys(axis.group for axis in AXES))
    colors = {axis.name: COLORS[groups.index(axis.group) % len(COLORS)] for axis in shown}
    _draw_ranges(axes, {axis.name: tallies[axis.name] for axis in shown}, colors)
    axes.tick_params(axis="x", rotation=90)


def _draw_ranges(axes: Axes, tallies: Mapping[str, Tally], colors: Mapping[str, str]) -> None:
    """For each name a bar from 5 to 95 %, a line from the lowest to the highest, and a point at the mean."""
    for i, (name, tally) in enumerate(tallies.items()):
        if tally.count:
            low, high = tally.percentile(5), tally.percentile(95)
            axes.plot([i, i], [tally.low, tally.high], color=colors[name], linewidth=1)
            axes.bar(i, high - low, 0.7, low, color=colors[name], alpha=0.75)
            axes.plot(i, tally.mean, "o", color="white", markersize=3, mec="black", mew=0.5)
    if not any(tally.count for tally in tallies.values()):
        say_nothing(axes)
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(tallies)), list(tallies))
    axes.set_xlim(-0.6, len(tallies) - 0.4)
    axes.grid(axis="y", alpha=0.3)


def _name_axis_groups(axes: Axes, shown: Sequence[Axis]) -> None:
    """Thin lines between groups of axes."""
    for i in range(1, len(shown)):
        if shown[i].group != shown[i - 1].group:
            axes.axvline(i - 0.5, color="#cccccc", linewidth=0.6, zorder=0)


def inside_figure(statistics: DatasetStatistics) -> Figure:
    """By camera and keypoint: how many of the known are inside the picture, and how many frames are detected.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    spine, views = statistics.spine, statistics.views
    shares = {"Inside the picture (% of known)": _inside}
    if statistics.has_detections:
        shares["Found by the detector (% of frames)"] = _detected
    with new_figure(2.2 + len(shares) * (0.5 + 0.26 * len(views))) as figure:
        title_figure(
            figure, "Inside the picture and detected, by camera and keypoint", spine.source, spine.notices
        )
        panels: Any = figure.subplots(len(shares), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, share) in zip(panels, shares.items(), strict=True):
            table = np.array([share(view) for view in views.values()])
            _heat_map(axes, table, list(views), 100.0)
            axes.set_title(title, loc="left")
        panels[-1].set_xticks(range(len(KEYPOINT_NAMES)), KEYPOINT_NAMES, rotation=90, fontsize=7)
    return figure


def _inside(view: ViewStatistics) -> np.ndarray:
    """[37] percent; NaN where the annotation never has the keypoint."""
    return 100.0 * np.where(view.known > 0, view.inside / np.maximum(view.known, 1), np.nan)


def _detected(view: ViewStatistics) -> np.ndarray:
    """[37] percent of the frames."""
    return 100.0 * view.detected / max(view.frames, 1)
