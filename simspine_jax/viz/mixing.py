"""The paper's Figure 5 redrawn: scores of two domains over the fraction of the second that is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from simspine_jax.viz.figures import COLORS, new_figure, title_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {"batch": ("per batch (PB)", "o-"), "epoch": ("per epoch (PE)", "s--"), "none": ("not mixed", "o")}
_WIDE, _HIGH = 8.5, 3.9  # inches


class Scored(Protocol):
    """What is drawn of a training, such as `evaluation.mixing_study.CellScores`."""

    @property
    def mode(self) -> str:
        """``batch``, ``epoch``, or ``none`` where there was nothing to mix."""
        ...

    @property
    def fraction(self) -> float:
        """Of the second set, 0 to 1."""
        ...

    @property
    def auc(self) -> float:
        """On the second domain."""
        ...

    @property
    def ap_body(self) -> float:
        """On the first domain."""
        ...

    @property
    def ap_spine(self) -> float:
        """Likewise."""
        ...


def mixing_figure(scores: Sequence[Scored], first: str, second: str, source: str) -> Figure:
    """AUC of the second domain and AP of the first over the fraction used; the paper's are in- and outdoors.

    Fractions stand at equal distances, for most of them are near 0.

    Args:
        scores: of the study's cells; lines are of its modes, and begin at the cell without the second set.
        first: name of the first domain.
        second: likewise.
        source: the data, in words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    fractions = sorted({s.fraction for s in scores})
    with new_figure(_HIGH, _WIDE) as figure:
        title_figure(figure, f"Detectors trained on {first} and a part of {second}", source)
        left, right = figure.subplots(1, 2, sharex=True)
        _draw(left, scores, fractions, {"": "auc"}, f"AUC on {second}")
        parts = {", body": "ap_body", ", spine": "ap_spine"}
        _draw(right, scores, fractions, parts, f"AP on {first}")
        for axes in (left, right):
            axes.set_xticks(range(len(fractions)), [f"{100 * f:g}" for f in fractions])
            axes.set_xlabel(f"Part of {second} used in training (%)")
            axes.legend()
            axes.grid(alpha=0.3)
        return figure


def _draw(
    axes: Axes, scores: Sequence[Scored], fractions: Sequence[float], parts: dict[str, str], label: str
) -> None:
    """A line for each mode and each of the numbers."""
    modes = [mode for mode in ("batch", "epoch") if any(s.mode == mode for s in scores)] or ["none"]
    color = iter(COLORS)
    for part, name in parts.items():
        for mode in modes:
            title, style = _LINES[mode]
            chosen = sorted((s for s in scores if s.mode in (mode, "none")), key=lambda s: s.fraction)
            places = [fractions.index(s.fraction) for s in chosen]
            values = np.array([getattr(s, name) for s in chosen], float)
            axes.plot(places, values, style, color=next(color), label=f"{title}{part}")
    axes.set_ylabel(label)
