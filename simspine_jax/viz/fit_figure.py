"""What a fit found with the intervals that likely hold the truth: angles over time, and segment lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simspine_jax.fitting.uncertainty import half_width
from simspine_jax.pipeline.fit_results import CURVES, SHARE, FittedLength, FittedMotion, FittedSubject
from simspine_jax.reference_values import level_label
from simspine_jax.viz.figures import COLORS, new_figure, say_nothing, title_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _HIGH, _MARGIN = 11.0, 2.2, 0.9  # inches
_COLUMNS = 3
_ROW, _LENGTHS_MARGIN = 0.3, 1.3
_SUFFIX = "_Flex_Ext"
_BAND, _NOT_USED = 0.25, "#F2C6A8"
_TITLES = {"lumbar": "Lumbar total, extension positive"}


def fit_figure(motion: FittedMotion, name: str, source: str) -> Figure:
    """Each angle in a panel; frames without data of their own are on a red ground.

    Angles of which no deviation is known have no panel, and are named.

    Args:
        motion: of the trial.
        name: of the trial.
        source: the data, in words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    names = [n for n in motion.angle_names if _is_known(motion.angle(n)[1])]
    left_out = [angle_title(n) for n in motion.angle_names if n not in names]
    rows = max(-(-len(names) // _COLUMNS), 1)
    with new_figure(_MARGIN + _HIGH * rows, _WIDE) as figure:
        beside = f"; no deviation is known of: {', '.join(left_out)}" if left_out else ""
        title_figure(figure, f"Fitted angles of {name}, with {SHARE:.0%} bands{beside}", source)
        panels = np.ravel(figure.subplots(rows, _COLUMNS, sharex=True))
        for number, (axes, angle) in enumerate(zip(panels, names, strict=False)):
            _draw(axes, motion, angle, COLORS[number % len(COLORS)])
            if number + _COLUMNS >= len(names):
                axes.set_xlabel("Time (s)")
                axes.tick_params(labelbottom=True)
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        return figure


def angle_title(name: str) -> str:
    """An angle of `FittedMotion` as people call it."""
    if name in CURVES:
        return _TITLES.get(name, name.capitalize())
    return f"{level_label(name.removesuffix(_SUFFIX))}, extension positive"


def _is_known(std: NDArray[np.float64]) -> bool:
    """A deviation of 0 is that of an angle that was kept."""
    return bool((np.isfinite(std) & (std > 0)).any())


def _draw(axes: Axes, motion: FittedMotion, name: str, color: str) -> None:
    value, std = (np.degrees(x) for x in motion.angle(name))
    width = half_width(SHARE) * std
    axes.fill_between(motion.times, value - width, value + width, color=color, alpha=_BAND, linewidth=0)
    axes.plot(motion.times, value, color=color, linewidth=1)
    if not motion.used.all():
        axes.fill_between(
            motion.times, 0, 1, where=_as_list(~motion.used), transform=axes.get_xaxis_transform(),
            color=_NOT_USED, alpha=0.5, linewidth=0, zorder=0,
        )  # fmt: skip
    axes.set(title=angle_title(name), ylabel="Angle (°)")
    axes.margins(x=0)
    axes.grid(alpha=0.3)


def _as_list(mask: NDArray[np.bool_]) -> list[bool]:
    return [bool(x) for x in mask]


def lengths_figure(result: FittedSubject, source: str) -> Figure:
    """Lengths of segments, and beside them how far the truth may be from each, which is far less.

    Args:
        result: of the subject.
        source: the data, in words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    lengths = result.lengths
    with new_figure(_LENGTHS_MARGIN + _ROW * max(len(lengths), 3), _WIDE) as figure:
        title_figure(figure, f"Segment lengths of {result.subject}, with {SHARE:.0%} intervals", source)
        whole, apart = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        if not lengths:
            for axes in (whole, apart):
                say_nothing(axes)
            return figure
        rows, found = np.arange(len(lengths)), np.array([length.length_mm for length in lengths])
        width = np.array([interval_mm(length) for length in lengths])
        whisker = {"ecolor": "#444444", "elinewidth": 1.2, "capsize": 3}
        whole.barh(rows, found, height=0.6, color=COLORS[5], xerr=width, error_kw=whisker)
        whole.set_yticks(rows, [_with_interval(length) for length in lengths])
        whole.invert_yaxis()
        whole.set_xlabel("Length (mm)")
        apart.errorbar(
            np.zeros(len(lengths)), rows, xerr=width, fmt="o", color=COLORS[0], markersize=4, capsize=3
        )
        apart.set_xlabel("From the length found (mm)")
        for axes in (whole, apart):
            axes.grid(axis="x", alpha=0.3)
    return figure


def interval_mm(length: FittedLength) -> float:
    """Half of what holds the truth with `SHARE`."""
    return half_width(SHARE) * length.std_mm


def _with_interval(length: FittedLength) -> str:
    return f"{length.name}  {length.length_mm:.0f} ± {interval_mm(length):.0f}"
