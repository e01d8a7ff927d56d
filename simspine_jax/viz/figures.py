"""Figures about a set of annotations: the SIMSPINE paper's Figures 3 and 4 redrawn, and errors by name.

They are drawn from running statistics, so that a set of any size will do. Figures have no window and no
global state; each says on which data it was measured.
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
_WIDE = 11.0  # inches
# Violins leave out one frame in a hundred at each end, as the paper leaves out outliers.
_VIOLIN = (1.0, 99.0)
_VIOLIN_POINTS = 100
_SLANTED = 20  # more names than these stand upright, or they would run into each other
_BARS = (5.0, 50.0, 95.0)
_LITERATURE, _PAPER = "#eeeeee", "#d9e8f3"
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


def thoracolumbar_figure(statistics: SetStatistics) -> Figure:
    """The paper's Figure 3: lordosis and kyphosis by action, and range of motion by lumbar level.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with new_figure(6.8) as figure:
        title_figure(figure, "Thoracolumbar spine", statistics.source)
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.75, 1))
        left, right = parts
        panels: Any = left.subplots(2, 1, sharex=True)
        groups = statistics.by_action
        for axes, name, known in zip(
            panels, ("lordosis", "kyphosis"), (reference.LORDOSIS, reference.KYPHOSIS), strict=True
        ):
            _curvature_panel(axes, groups, name, known[:2])
        _name_groups(panels[-1], list(groups))
        draw_lumbar_ranges(list(right.subplots(3, 1, sharex=True)), statistics.whole)
    return figure


def neck_figure(statistics: SetStatistics) -> Figure:
    """The paper's Figure 4: the neck's three rotations by action.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    signs = ("flexion −, extension +", "left −, right +", "right −, left +")  # noqa: RUF001
    with new_figure(7.2) as figure:
        title_figure(
            figure,
            "Cervical spine: one joint for the whole neck. Violins: 1 to 99 % of frames, bar at the mean",
            statistics.source,
        )
        panels = figure.subplots(3, 1, sharex=True)
        for axes, motion, sign, color in zip(panels, MOTIONS, signs, COLORS, strict=False):
            tallies = [group.rotations["neck", motion] for group in statistics.by_action.values()]
            _violins(axes, tallies, color)
            axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
            value = reference.NECK_ROM[motion]
            axes.set_title(
                f"{motion.capitalize()} ({sign})\n{value.what}: {value.shown()}° "
                f"[{value.source}; {_short_status(value)}]",
                loc="left", fontsize=8,
            )  # fmt: skip
            axes.set_ylabel("Angle (°)")
        _name_groups(panels[-1], list(statistics.by_action))
    return figure


def errors_figure(tallies: Mapping[str, Tally], title: str, unit: str, source: str) -> Figure:
    """Bars of the median of an error by name, with the range from the 5th to the 95th percentile.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    names = list(tallies)
    with new_figure(3.6) as figure:
        title_figure(figure, title, source)
        axes = figure.subplots()
        at = np.array([i for i, name in enumerate(names) if tallies[name].count], int)
        if len(at):
            low, middle, high = (
                np.array([tallies[names[i]].percentile(percent) for i in at]) for percent in _BARS
            )
            whiskers = {"ecolor": "#444444", "elinewidth": 1, "capsize": 2}
            spread = (middle - low, high - middle)
            axes.bar(at, middle, width=0.7, color=COLORS[5], yerr=spread, error_kw=whiskers)
        else:
            say_nothing(axes)
        center, half = (len(names) - 1) / 2, max(len(names), 6) / 2 + 0.2  # few bars don't get broad
        axes.set_xlim(center - half, center + half)
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"Median, 5 to 95 % ({unit})")
        axes.grid(axis="y", alpha=0.3)
    return figure


def lumbar_ranges_figure(statistics: SetStatistics) -> Figure:
    """Range of motion by lumbar level, the right part of `thoracolumbar_figure` alone.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with new_figure(3.8) as figure:
        title_figure(figure, "Range of motion by lumbar level", statistics.source)
        draw_lumbar_ranges(list(figure.subplots(1, 3)), statistics.whole)
    return figure


def draw_lumbar_ranges(panels: Sequence[Axes], group: GroupStatistics) -> None:
    """Measured range (solid) and the literature's (dashed, with its limits) by level, one panel a motion."""
    levels = LUMBAR_LEVELS[::-1]
    at = np.arange(len(levels))
    for axes, motion, color in zip(panels, MOTIONS, COLORS, strict=False):
        known = [reference.LUMBAR_ROM[level, motion] for level in levels]
        tallies = [group.rotations[level, motion] for level in levels]
        whole = known[0].sides == 2
        if limits := [value.limits for value in known if value.limits]:
            axes.fill_between(at, *np.transpose(limits), color=_LITERATURE, label="its limits")
        axes.plot(at, [value.degrees[0] for value in known], "s--", color="#777777", markersize=3,
                  label=f"White and Panjabi ({_statuses(known)})")  # fmt: skip
        if any(tally.count for tally in tallies):
            found = [comparable(t.robust_range, v) for t, v in zip(tallies, known, strict=True)]
            axes.plot(at, found, "o-", color=color, markersize=4, label="measured, 5 to 95 %")
        axes.set_title(f"{motion.capitalize()}, {'whole arc' if whole else 'one side'}", loc="left")
        axes.set_ylabel("Range (°)")
        axes.set_ylim(bottom=0)
        axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the legend
        axes.set_xticks(at, [level_label(level) for level in levels])
        axes.set_xlim(-0.3, len(levels) - 0.7)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", frameon=False, fontsize=7, borderaxespad=0.1)


def say_nothing(axes: Axes) -> None:
    """An empty panel says that it is, and has no scale."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no usable data", transform=axes.transAxes, ha="center", va="center", color="#777777")


def title_figure(figure: Figure, title: str, source: str) -> None:
    """A title, and below it where the data come from."""
    width = int(13.5 * figure.get_figwidth())
    lines = textwrap.wrap(f"Data: {source}", width, max_lines=3, placeholder=" …")
    figure.suptitle("\n".join([title, *lines]), fontsize=9, x=0.01, ha="left")


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
) -> None:
    """Violins of the curvature by keypoints, means by bodies beside them, and two bands of the literature."""
    paper, literature = known
    for value, color in ((literature, _LITERATURE), (paper, _PAPER)):
        low, high = value.degrees
        if value.kind == "mean and SD":
            low, high = value.degrees[0] - value.degrees[1], value.degrees[0] + value.degrees[1]
        label = f"{value.source}: {value.shown()}° ({_short_status(value)})"
        axes.axhspan(low, high, color=color, zorder=0, label=label)
    _violins(axes, [group.curvature[name] for group in groups.values()], COLORS[0])
    bodies = [group.curvature[f"body_{name}"] for group in groups.values()]
    if any(tally.count for tally in bodies):
        axes.errorbar(
            np.arange(len(bodies)), [t.mean for t in bodies], [t.sd for t in bodies], fmt="D", markersize=4,
            color=COLORS[1], elinewidth=1, label="by bodies: mean and SD",
        )  # fmt: skip
    span = "L1-S1" if name == "lordosis" else "T3-T12"
    angle = "LLA" if name == "lordosis" else "TKA"
    axes.set_title(
        f"{name.capitalize()} {span} ({angle}); violins: by keypoints, 1 to 99 % of frames, bar at the mean",
        loc="left",
    )
    axes.set_ylabel(f"{angle} (°)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.32 * (high - low))  # room for the legend
    columns = 2 if any(tally.count for tally in bodies) else 1
    legend = axes.legend(loc="upper left", frameon=False, fontsize=7, ncols=columns, borderaxespad=0.1)
    legend.set_in_layout(False)


def _name_groups(axes: Axes, names: Sequence[str]) -> None:
    slope = 40 if len(names) <= _SLANTED else 90
    axes.set_xticks(range(len(names)), names, rotation=slope, ha="right", rotation_mode="anchor")
    if slope == 90:
        axes.tick_params(axis="x", labelsize=7)
        for label in axes.get_xticklabels():
            label.set_verticalalignment("center")
    axes.set_xlim(-0.7, max(len(names), 4) - 0.3)


def _violins(axes: Axes, tallies: Sequence[Tally], color: str) -> None:
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
