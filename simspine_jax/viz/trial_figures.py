"""Figures of one trial over time: curvature, lumbar and neck angles, and the quality of each frame.

Frames that are not usable are drawn on a red ground; what they measure doesn't set the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SpineTrial
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import LUMBAR_LEVELS
from simspine_jax.statistics import SpineAngles, TrialRow, in_fixed_ratios, notices
from simspine_jax.validation import FAULT_LABELS, FAULTS, FIXED_RATIOS
from simspine_jax.viz.figures import COLORS, new_figure, say_nothing, title_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNUSABLE, _BEFORE = "#D55E00", "#F2C6A8"
_LINE = 0.9
_PIXELS = 800  # of a figure's width in a report, about
_MARGIN = 0.08  # of the range of usable values, above and below


_SIGNS = ("extension positive", "right positive", "left positive")


def curvature_figure(trial: SpineTrial, angles: SpineAngles) -> Figure:
    """Lordosis and kyphosis over time, by keypoints and by bodies.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    panels = {
        f"{name.capitalize()} {span}": {
            "by keypoints\n(as the paper)": getattr(angles, name),
            f"by bodies{constant}": getattr(angles, f"body_{name}"),
        }
        for name, span, constant in (
            ("lordosis", "L1-S1", ""), ("kyphosis", "T3-T12", "\n(rigid thorax:\nconstant)"),
        )
    }  # fmt: skip
    return _over_time(4.6, f"Curvature of {trial.name}", trial, panels)


def lumbar_figure(trial: SpineTrial, angles: SpineAngles) -> Figure:
    """The three rotations of each lumbar level over time; where all follow one, that one and their sum.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    title, fixed = f"Lumbar angles of {trial.name}", in_fixed_ratios(angles)
    panels = {}
    for j, sign in enumerate(_SIGNS):
        levels = {level_label(name): angles.rotations[:, i, j] for i, name in enumerate(LUMBAR_LEVELS)}
        if fixed:
            first = level_label(LUMBAR_LEVELS[0])
            levels = {first: levels[first], "all six\ntogether": sum(levels.values())}
        panels[f"{MOTIONS[j].capitalize()} ({sign})"] = levels
    return _over_time(6.4, f"{title}. {FIXED_RATIOS}" if fixed else title, trial, panels)


def neck_over_time_figure(trial: SpineTrial, angles: SpineAngles) -> Figure:
    """The three rotations of the neck over time.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    curves = {f"{MOTIONS[j]} ({sign})": angles.rotations[:, -1, j] for j, sign in enumerate(_SIGNS)}
    return _over_time(2.9, f"Neck angles of {trial.name}", trial, {"": curves})


def _over_time(
    height: float, title: str, trial: SpineTrial, panels: Mapping[str, Mapping[str, NDArray[np.float64]]]
) -> Figure:
    """Curves by label in a panel for each title, one above the other."""
    with new_figure(height) as figure:
        _title(figure, title, trial)
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, curves) in zip(rows, panels.items(), strict=True):
            _draw_curves(axes, trial, curves)
            axes.set_title(name, loc="left")
        rows[-1].set_xlabel("Time (s)")
    return figure


def quality_figure(trial: SpineTrial) -> Figure:
    """Two bars for each fault, before and after repair; one for repaired frames, one for gaps of markers.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    before, after = trial.faults_before, trial.quality
    with new_figure(3.0) as figure:
        usable = f"{int(trial.usable.sum())} of {trial.n_frames} frames are usable"
        _title(figure, f"Quality of {trial.name}: {usable}", trial)
        axes = figure.subplots()
        labels = []
        for row, flag in enumerate(FAULTS):
            found, left = ((flags & np.uint16(flag)) != 0 for flags in (before, after))
            _draw_bars(axes, trial, found, (row - 0.4, 0.38), _BEFORE)
            _draw_bars(axes, trial, left, (row + 0.02, 0.38), _UNUSABLE)
            labels.append(f"{FAULT_LABELS[flag]}: {_percent(found)} before, {_percent(left)} after repair")
        mended = {
            "Repaired frames": (trial.repaired, COLORS[2]),
            "Gap of a marker filled": (_gaps(trial), COLORS[5]),
        }
        for name, (frames, color) in mended.items():
            _draw_bars(axes, trial, frames, (len(labels) - 0.4, 0.8), color)
            labels.append(f"{name}: {_percent(frames)}")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        _limit_times(axes, trial)
        axes.set_xlabel("Time (s)")
        axes.grid(axis="x", alpha=0.3)
    return figure


def _gaps(trial: SpineTrial) -> NDArray[np.bool_]:
    """[T] frames in which a marker was interpolated."""
    frames = np.zeros(trial.n_frames, bool)
    for gap in trial.gaps_filled:
        frames[gap.first_frame : gap.last_frame + 1] = True
    return frames


def _percent(frames: NDArray[np.bool_]) -> str:
    """The share of frames, which bars that are at least a pixel wide don't tell."""
    return f"{100 * frames.sum() / max(len(frames), 1):.1f} %"


def _draw_bars(
    axes: Axes, trial: SpineTrial, frames: NDArray[np.bool_], place: tuple[float, float], color: str
) -> None:
    axes.broken_barh(_bars(trial, frames), place, facecolor=color, linewidth=0)


def _title(figure: Figure, title: str, trial: SpineTrial) -> None:
    title_figure(figure, title, trial.source or "source not stated", notices([TrialRow.of(trial)]))


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index, included, of each stretch of true values of ``[T]``."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return list(
        zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True)
    )


def _bars(trial: SpineTrial, mask: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Start and length of each run, s; a frame lasts until the next.

    In an hour a frame is less than a pixel and would not be drawn, so that no bar is shorter than one.
    """
    step = 1 / trial.rate_hz
    found = np.array([(trial.times[i] - step / 2, trial.times[j] + step / 2) for i, j in runs(mask)])
    if not len(found):
        return []
    pixel = (trial.times[-1] - trial.times[0]) / _PIXELS
    short = np.maximum(pixel - (found[:, 1] - found[:, 0]), 0) / 2
    start, end = found[:, 0] - short, found[:, 1] + short
    # Runs come one after the other; those that now touch are one bar.
    first = np.concatenate([[True], start[1:] > end[:-1]])
    last = np.concatenate([first[1:], [True]])
    return list(zip(start[first].tolist(), (end[last] - start[first]).tolist(), strict=True))


def _draw_curves(axes: Axes, trial: SpineTrial, curves: Mapping[str, NDArray[np.float64]]) -> None:
    """The curves that hold anything, with a scale that usable frames fill."""
    held = {label: values for label, values in curves.items() if np.isfinite(values).any()}
    for (label, values), color in zip(held.items(), COLORS, strict=False):
        axes.plot(trial.times, values, color=color, linewidth=_LINE, label=label)
    seen = [values[trial.usable] for values in held.values()]
    seen = np.concatenate(seen)[np.isfinite(np.concatenate(seen))] if seen else np.zeros(0)
    if len(seen):
        margin = max(_MARGIN * float(np.ptp(seen)), 0.5)
        axes.set_ylim(seen.min() - margin, seen.max() + margin)
    else:
        say_nothing(axes)
    unusable = _bars(trial, ~trial.usable)
    if unusable:
        ground = axes.get_xaxis_transform()
        axes.broken_barh(
            unusable, (0, 1), transform=ground, facecolor=_UNUSABLE, alpha=0.18, linewidth=0, zorder=0,
            label="not usable",
        )  # fmt: skip
    _limit_times(axes, trial)
    axes.set_ylabel("Angle (°)")
    axes.grid(alpha=0.3)
    if held or unusable:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        for line in legend.get_lines():
            line.set_linewidth(2.5)


def _limit_times(axes: Axes, trial: SpineTrial) -> None:
    step = 0.5 / trial.rate_hz
    if trial.n_frames:
        axes.set_xlim(trial.times[0] - step, trial.times[-1] + step)
