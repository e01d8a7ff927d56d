"""Figures about a set of annotations: the SIMSPINE paper's Figures 3 and 4 redrawn, and errors by name.

They are drawn from running statistics, so that a set of any size will do. Figures have no window and no
global state; each says on which data it was measured, or that nobody was measured. Values of the literature
that are recalled, or that no primary source is known for, are left out unless ``unverified`` asks for them.
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simspine_jax import reference_values as reference
from simspine_jax.errors import MissingDependencyError, SimspineError
from simspine_jax.io.files import atomic_write
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import LUMBAR_LEVELS
from simspine_jax.statistics import GroupStatistics, SetStatistics, Tally
from simspine_jax.validation import comparable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which stay apart for colour-blind people; their yellow is too pale for lines."""

FIGURE_FORMATS: tuple[str, ...] = ("png", "svg", "pdf")
"""Suffixes of pictures."""

_DPI = 150
_REPORT_DPI = 110
_WIDE, _RANGES_WIDE = 11.0, 4.0  # inches
# Violins leave out one frame in a hundred at each end, as the paper leaves out outliers.
_VIOLIN = (1.0, 99.0)
_VIOLIN_POINTS = 100
_SLANTED = 20  # more names than these stand upright, or they would run into each other
_BARS = (5.0, 50.0, 95.0)
_LITERATURE, _PAPER = "#eeeeee", "#d9e8f3"
_NOTICE = "#B03A00"
_BY_KEYPOINTS = "by keypoints, as the paper's: 1 to 99 % of frames, bar at the mean"
_FIXED = "; the levels follow L5-S1 in fixed ratios"
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a dollar sign in a file's name is one
    "agg.path.chunksize": 10_000,  # hours of motion are more points than Agg takes in one path
    "svg.hashsalt": "simspine",  # equal figures, equal files
}


@contextmanager
def new_figure(height: float, width: float = _WIDE) -> Iterator[Figure]:
    """A figure of a size in inches; what is drawn inside the block has the house's style.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "viewer", "A figure") from None
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        yield figure


def write_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Writes a figure; equal figures give equal files.

    Args:
        path: of the picture; the suffix says the format, one of `FIGURE_FORMATS`.

    Raises:
        SimspineError: the suffix is no format, or the file can't be written.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FIGURE_FORMATS:
        raise SimspineError(f"{path} can't be a picture; valid suffixes are .{', .'.join(FIGURE_FORMATS)}")
    with atomic_write(path, binary=True) as file:
        _save(figure, file, suffix, _DPI)


def png_bytes(figure: Figure) -> bytes:
    """A figure as a PNG for a page."""
    file = io.BytesIO()
    _save(figure, file, "png", _REPORT_DPI)
    return file.getvalue()


def _save(figure: Figure, file: Any, suffix: str, dpi: int) -> None:
    from matplotlib import rc_context

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(_STYLE):
        figure.savefig(file, format=suffix, dpi=dpi, metadata=dates.get(suffix))


def thoracolumbar_figure(statistics: SetStatistics, *, unverified: bool = False) -> Figure:
    """The paper's Figure 3: lordosis and kyphosis by action, and range of motion by lumbar level.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    groups = statistics.by_action
    left_width = float(np.clip(0.8 + 0.42 * len(groups), 4.6, 7.0))
    with new_figure(7.8, left_width + _RANGES_WIDE) as figure:
        title_figure(figure, "Thoracolumbar spine", statistics.source, statistics.notices)
        parts: Any = figure.subfigures(1, 2, width_ratios=(left_width, _RANGES_WIDE))
        left, right = parts
        panels: Any = left.subplots(2, 1, sharex=True)
        for axes, name, values in zip(
            panels, ("lordosis", "kyphosis"), (reference.LORDOSIS, reference.KYPHOSIS), strict=True
        ):
            known = reference.shown_values(values, unverified=unverified)[:2]
            _curvature_panel(axes, groups, name, known, left_width)
        name_groups(panels[-1], list(groups))
        draw_lumbar_ranges(list(right.subplots(3, 1, sharex=True)), statistics, unverified=unverified)
    return figure


def neck_figure(statistics: SetStatistics, *, unverified: bool = False) -> Figure:
    """The paper's Figure 4: the neck's three rotations by action.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    signs = ("flexion −, extension +", "left −, right +", "right −, left +")  # noqa: RUF001
    width = float(np.clip(1.0 + 0.66 * len(statistics.by_action), 6.5, _WIDE))
    with new_figure(7.4, width) as figure:
        title = "Cervical spine: one joint for all of it. Violins: 1 to 99 % of frames, bar at the mean"
        title_figure(figure, title, statistics.source, statistics.notices)
        panels = figure.subplots(3, 1, sharex=True)
        for axes, motion, sign, color in zip(panels, MOTIONS, signs, COLORS, strict=False):
            tallies = [group.rotations["neck", motion] for group in statistics.by_action.values()]
            draw_violins(axes, tallies, color)
            axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
            value, beside = reference.NECK_ROM[motion], reference.NONE_SOUND
            if unverified or value.is_sound:
                beside = f"{value.what}: {value.shown()}° [{value.source}; {_short_status(value)}]"
            beside = textwrap.fill(beside, int(15 * width), break_on_hyphens=False)
            axes.set_title(f"{motion.capitalize()} ({sign})\n{beside}", loc="left", fontsize=8)
            axes.set_ylabel("Angle (°)")
        name_groups(panels[-1], list(statistics.by_action))
    return figure


def errors_figure(
    tallies: Mapping[str, Tally], title: str, unit: str, source: str, notices: Sequence[str] = ()
) -> Figure:
    """Bars of the median of an error by name, with the range from the 5th to the 95th percentile.

    Names without any value are told in the title and have no place among the bars.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    names = [name for name, tally in tallies.items() if tally.count]
    missing = [name for name in tallies if name not in names]
    with new_figure(3.6) as figure:
        absent = f" (never seen: {', '.join(missing)})" if names and missing else ""
        title_figure(figure, title + absent, source, notices)
        axes = figure.subplots()
        if names:
            low, middle, high = np.array([[tallies[n].percentile(p) for n in names] for p in _BARS])
            whiskers = {"ecolor": "#444444", "elinewidth": 1, "capsize": 2}
            spread = (middle - low, high - middle)
            axes.bar(range(len(names)), middle, width=0.7, color=COLORS[5], yerr=spread, error_kw=whiskers)
        else:
            say_nothing(axes)
        center, half = (len(names) - 1) / 2, max(len(names), 6) / 2 + 0.2  # few bars don't get broad
        axes.set_xlim(center - half, center + half)
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"Median, 5 to 95 % ({unit})")
        axes.grid(axis="y", alpha=0.3)
    return figure


def lumbar_ranges_figure(statistics: SetStatistics, *, unverified: bool = False) -> Figure:
    """Range of motion by lumbar level, the right part of `thoracolumbar_figure` alone.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with new_figure(3.8) as figure:
        title = "Range of motion by lumbar level"
        title_figure(figure, title, statistics.source, statistics.notices)
        draw_lumbar_ranges(list(figure.subplots(1, 3)), statistics, unverified=unverified)
    return figure


def draw_lumbar_ranges(
    panels: Sequence[Axes], statistics: SetStatistics, *, unverified: bool = False
) -> None:
    """The set's range (solid) and the literature's (dashed, with its limits) by level, one panel a motion."""
    levels, whole = LUMBAR_LEVELS[::-1], statistics.whole
    at = np.arange(len(levels))
    held = _FIXED if whole.n_fixed == whole.n_trials else ""
    for axes, motion, color in zip(panels, MOTIONS, COLORS, strict=False):
        tallies = [whole.rotations[level, motion] for level in levels]
        values = [reference.LUMBAR_ROM[level, motion] for level in levels]
        _literature_by_level(axes, values, unverified=unverified)
        if any(tally.count for tally in tallies):
            found = [comparable(t.robust_range, v) for t, v in zip(tallies, values, strict=True)]
            label = f"{statistics.how_known}, 5 to 95 %{held}"
            axes.plot(at, found, "o-", color=color, markersize=4, label=label)
        axes.set_ylabel("Range (°)")
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.set_xticks(at, [level_label(level) for level in levels])
        axes.set_xlim(-0.3, len(levels) - 0.7)
        axes.grid(alpha=0.3)
        arc = "whole arc" if values[0].sides == 2 else "one side"
        _name_panel(axes, f"{motion.capitalize()}, {arc}", _RANGES_WIDE)


def _literature_by_level(axes: Axes, values: Sequence[reference.ReferenceValue], *, unverified: bool) -> None:
    """A dashed line of those that are shown, and what lies between their limits."""
    known = reference.shown_values(values, unverified=unverified)
    if not known:
        axes.plot([], [], " ", label=reference.NONE_SOUND)
        return
    at = [values.index(value) for value in known]
    limits = [value.limits for value in known if value.limits]
    if len(limits) == len(known):
        low, high = np.transpose(limits)
        axes.fill_between(at, low, high, color=_LITERATURE, label="reported lowest to highest")
    axes.plot(at, [value.degrees[0] for value in known], "s--", color="#777777", markersize=3,
              label=f"White and Panjabi ({_statuses(known)})")  # fmt: skip


def _name_panel(axes: Axes, title: str, width: float) -> None:
    """A panel's title, and between title and axes its legend; ``width`` is the panel's, inches."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, int(18 * width - 16)) for label in labels]
    lines = sum(1 + label.count("\n") for label in labels)
    axes.set_title(title, loc="left", pad=6 + 9 * lines + 3 * len(labels))
    if labels:
        legend = axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=7,
            borderaxespad=0.3, borderpad=0.2,
        )  # fmt: skip
        legend.set_in_layout(False)  # the title above it keeps its place free


def say_nothing(axes: Axes) -> None:
    """An empty panel says that it is, and has no scale."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no usable data", transform=axes.transAxes, ha="center", va="center", color="#777777")


def title_figure(figure: Figure, title: str, source: str, notices: Sequence[str] = ()) -> None:
    """A title and where the data come from, above; what must be known of them, in a box below."""
    width = int(13.5 * figure.get_figwidth())
    lines = textwrap.wrap(title, width, break_on_hyphens=False)
    lines += textwrap.wrap(f"Data: {source}", width, max_lines=3, placeholder=" …")
    figure.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")
    if notices:
        told = [line for notice in notices for line in textwrap.wrap(notice, int(0.9 * width))]
        box = {"facecolor": "#fff1e6", "edgecolor": _NOTICE, "boxstyle": "round,pad=0.4"}
        figure.supxlabel(
            "\n".join(told), fontsize=9, x=0.015, ha="left", color=_NOTICE, fontweight="bold", bbox=box
        )


def _short_status(value: reference.ReferenceValue) -> str:
    """The status without its explanation."""
    return value.status.split(":")[0]


def _statuses(values: Sequence[reference.ReferenceValue]) -> str:
    """All statuses of some values, the most frequent first."""
    found = [_short_status(value) for value in values]
    return "; ".join(sorted(set(found), key=lambda status: -found.count(status)))


def _curvature_panel(
    axes: Axes,
    groups: Mapping[str, GroupStatistics],
    name: str,
    known: Sequence[reference.ReferenceValue],
    width: float,
) -> None:
    """Violins of the curvature by keypoints, means by bodies beside them, and bands of the literature."""
    for value in known[::-1]:
        low, high = value.degrees
        if value.kind == "mean and SD":
            low, high = value.degrees[0] - value.degrees[1], value.degrees[0] + value.degrees[1]
        color = _PAPER if value.source.startswith("SIMSPINE") else _LITERATURE
        label = f"{value.source}: {value.what}, {value.shown()}° ({_short_status(value)})"
        axes.axhspan(low, high, color=color, zorder=0, label=label)
    draw_violins(axes, [group.curvature[name] for group in groups.values()], COLORS[0])
    axes.fill([], [], color=COLORS[0], alpha=0.55, label=_BY_KEYPOINTS)
    bodies = [group.curvature[f"body_{name}"] for group in groups.values()]
    if any(tally.count for tally in bodies):
        constant = " (constant: the thorax is rigid)" if name == "kyphosis" else ""
        axes.errorbar(
            np.arange(len(bodies)), [t.mean for t in bodies], [t.sd for t in bodies], fmt="D", markersize=4,
            color=COLORS[1], elinewidth=1, label=f"by bodies: mean and SD{constant}",
        )  # fmt: skip
    span, angle = ("L1-S1", "LLA") if name == "lordosis" else ("T3-T12", "TKA")
    axes.set_ylabel(f"{angle} (°)")
    _name_panel(axes, f"{name.capitalize()} {span} ({angle})", width)


def name_groups(axes: Axes, names: Sequence[str]) -> None:
    """Names below violins or bars that stand at 0, 1, 2 …; many of them upright."""
    slope = 40 if len(names) <= _SLANTED else 90
    axes.set_xticks(range(len(names)), names, rotation=slope, ha="right", rotation_mode="anchor")
    if slope == 90:
        axes.tick_params(axis="x", labelsize=7)
        for label in axes.get_xticklabels():
            label.set_verticalalignment("center")
    center, half = (len(names) - 1) / 2, max(len(names), 4) / 2 + 0.2  # few violins don't get broad
    axes.set_xlim(center - half, center + half)


def draw_violins(axes: Axes, tallies: Sequence[Tally], color: str) -> None:
    """One violin a tally, from its histogram; a bar at the mean. Nothing where a tally is empty."""
    there = [(i, tally) for i, tally in enumerate(tallies) if tally.count]
    if not there:
        say_nothing(axes)
        return
    parts: dict[str, Any] = axes.violin(
        [_violin(tally) for _, tally in there], [i for i, _ in there], widths=0.8,
        showmeans=True, showextrema=False,
    )  # fmt: skip
    for body in parts["bodies"]:
        body.set(facecolor=color, alpha=0.55, edgecolor=color, linewidth=0.6)
    parts["cmeans"].set(color="black", linewidth=1)
    axes.grid(axis="y", alpha=0.3)


def _violin(tally: Tally) -> dict[str, Any]:
    """Density between `_VIOLIN`'s percentiles, by Gaussian kernels of Scott's width."""
    low, high = (tally.percentile(percent) for percent in _VIOLIN)
    width = max(tally.sd * tally.count**-0.2, 0.05)
    at = np.linspace(low - width / 2, high + width / 2, _VIOLIN_POINTS)
    centers, counts = tally.histogram()
    density = np.exp(-0.5 * ((at[:, None] - centers) / width) ** 2) @ counts
    middle = tally.percentile(50)
    return {"coords": at, "vals": density, "mean": tally.mean, "median": middle, "min": low, "max": high}
