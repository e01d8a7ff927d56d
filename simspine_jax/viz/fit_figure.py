"""Lordosis and lumbar flexion of a fitted trial over time, with the bands that likely hold the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simspine_jax.fitting.uncertainty import half_width
from simspine_jax.pipeline.fit_results import SHARE, FittedMotion
from simspine_jax.reference_values import level_label
from simspine_jax.viz.figures import COLORS, new_figure, title_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _HIGH, _MARGIN = 8.5, 2.2, 0.9  # inches
_SUFFIX = "_Flex_Ext"
_BAND, _NOT_USED = 0.25, "#F2C6A8"


def fit_figure(motion: FittedMotion, name: str, source: str) -> Figure:
    """Each angle in a panel; frames without data of their own are on a red ground.

    Args:
        motion: of the trial.
        name: of the trial.
        source: the data, in words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    names = [n for n in motion.angle_names if n != "kyphosis"]
    rows = max((len(names) + 1) // 2, 1)
    with new_figure(_MARGIN + _HIGH * rows, _WIDE) as figure:
        title_figure(figure, f"Fitted angles of {name}, with {SHARE:.0%} bands", source)
        panels = np.ravel(figure.subplots(rows, 2, sharex=True))
        for axes, angle, color in zip(panels, names, (*COLORS, *COLORS), strict=False):
            _draw(axes, motion, angle, color)
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        return figure


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
    level = name.removesuffix(_SUFFIX)
    title = f"{level_label(level)}, extension positive" if name.endswith(_SUFFIX) else f"{name.capitalize()}"
    axes.set(title=title, xlabel="Time (s)", ylabel="Angle (°)")
    axes.margins(x=0)
    axes.grid(alpha=0.3)


def _as_list(mask: NDArray[np.bool_]) -> list[bool]:
    return [bool(x) for x in mask]
