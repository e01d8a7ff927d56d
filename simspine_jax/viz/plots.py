"""Plots of results, drawn without a display and legible on a sheet of A4."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import MissingDependencyError, ShapeError, SimspineError
from simspine_jax.io.files import atomic_write
from simspine_jax.kinematics.forward import expand_coordinates, forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.reference_values import level_label
from simspine_jax.skeleton import LUMBAR_LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

A4_INCHES = (8.27, 11.69)
_LINE_LETTERS = 90  # that fit across the page in a title
_LEGEND_BELOW = 0.42  # inches, so that the time axis and its name have room
_DPI = 150
_FONT_SIZE = 9
# Okabe and Ito's colours, which stay apart for colour-blind people; their yellow is too pale for lines.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BAR_COLOR, _WHISKER_COLOR = _COLORS[5], "#444444"
# Of the errors of a marker, the middle and the range that leaves out one frame in twenty at each end.
_PERCENTILES = (5, 50, 95)
_PELVIS = ("pelvis_tilt", "pelvis_list", "pelvis_rotation")
_LEGS = tuple(f"{joint}_{side}" for joint in ("hip_flexion", "knee_angle", "ankle_angle") for side in "rl")

_markers = jax.jit(lambda model, q, factors, offsets: forward_kinematics(
    model, q, scale_factors=factors, marker_offsets=offsets
).markers)  # fmt: skip
_coordinates = jax.jit(expand_coordinates)


class _Angles(NamedTuple):
    """The coordinates of a panel: a title, and labels with names."""

    title: str
    labels: tuple[str, ...]
    names: tuple[str, ...]


def plot_ik_summary(
    path: str | os.PathLike[str],
    model: SpineModel,
    times: Float[Array, " T"],
    q: Float[Array, "T Q"],
    targets: Float[Array, "T K 3"],
    *,
    origin: str,
    true_q: Float[Array, "T Q"] | None = None,
    scale_factors: Float[Array, "B _"] | None = None,
    marker_offsets: Float[Array, "K 3"] | None = None,
) -> None:
    """Plots marker errors over time and by marker, and lumbar flexion over time, on one A4 page.

    A model without lumbar levels shows trunk or pelvis, and hips, knees and ankles instead; one without these
    its first angles.

    Args:
        path: of the picture; the suffix says the format (``.png``, ``.pdf``, ``.svg``).
        times: of the frames, s.
        q: free coordinates that inverse kinematics found, radians and metres; a frame may be NaN.
        targets: positions that the markers should match, metres, NaN where missing.
        origin: where the data come from, for the title.
        true_q: the free coordinates that the targets were made from, where they are known.
        scale_factors: as `forward_kinematics` takes them.
        marker_offsets: as `forward_kinematics` takes them.

    Raises:
        ShapeError: an array doesn't fit the model.
        MissingDependencyError: matplotlib is not installed.
        SimspineError: the suffix is no format, or the file can't be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "viewer", "A plot") from None
    shown_times = np.asarray(times, float)
    _check_shapes(model, shown_times, q, targets, true_q)
    found = np.asarray(_markers(model, jnp.asarray(q), scale_factors, marker_offsets), float)
    errors_mm = 1000 * np.linalg.norm(found - np.asarray(targets, float), axis=-1)
    with rc_context({"font.size": _FONT_SIZE}):
        # A figure of its own, without pyplot: no window system and no global state is asked.
        figure = Figure(figsize=A4_INCHES)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
        shown = _shown_angles(model)
        heights = (1, *[1.3] * len(shown), 1.2)
        over_time, *middle, by_marker = figure.subplots(len(heights), 1, height_ratios=heights)
        figure.suptitle(f"Inverse kinematics of {model.name}\nData: {origin}", fontsize=_FONT_SIZE + 3)
        _plot_rmse(over_time, shown_times, errors_mm)
        for axes, angles in zip(middle, shown, strict=True):
            _plot_angles(axes, model, angles, shown_times, q, true_q)
        _plot_markers(by_marker, model.marker_names, errors_mm)
        suffix = Path(path).suffix.lower().removeprefix(".")
        formats = figure.canvas.get_supported_filetypes()
        if suffix not in formats:
            raise SimspineError(
                f"{path} can't be a picture; valid suffixes are .{', .'.join(sorted(formats))}"
            )
        with atomic_write(path, binary=True) as file:
            figure.savefig(file, format=suffix, dpi=_DPI)


def _check_shapes(model: SpineModel, times: np.ndarray, q, targets, true_q) -> None:
    wanted = {"times": (len(times),), "q": (len(times), model.n_free)}
    wanted |= {"targets": (len(times), model.n_markers, 3)}
    given = {"times": times, "q": q, "targets": targets}
    if true_q is not None:
        wanted["true_q"], given["true_q"] = wanted["q"], true_q
    for name, shape in wanted.items():
        if np.shape(given[name]) != shape or 0 in shape:
            raise ShapeError(f"{name} has shape {np.shape(given[name])}; valid is {shape}, none of them 0")


def _plot_rmse(axes: Axes, times: np.ndarray, errors_mm: np.ndarray) -> None:
    """RMSE over the markers that a frame has; a gap where it has none."""
    there = np.isfinite(errors_mm)
    count = there.sum(axis=1)
    squares = np.where(there, errors_mm, 0.0) ** 2
    rmse = np.sqrt(np.where(count > 0, squares.sum(axis=1) / np.maximum(count, 1), np.nan))
    axes.plot(times, rmse, color=_COLORS[0], linewidth=1)
    title = "Marker error"
    if count.any():
        overall = float(np.sqrt(squares.sum() / count.sum()))
        axes.axhline(overall, color=_COLORS[1], linestyle="--", linewidth=1)
        title += f" (dashed: all frames together, {overall:.1f} mm)"
    axes.set(title=title, xlabel="Time (s)", ylabel="RMSE over markers (mm)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.grid(alpha=0.3)


def _plot_angles(axes: Axes, model: SpineModel, angles: _Angles, times: np.ndarray, q, true_q) -> None:
    from matplotlib.transforms import ScaledTranslation

    columns = [model.coordinate_names.index(name) for name in angles.names]

    def degrees(free) -> np.ndarray:
        return np.rad2deg(np.asarray(_coordinates(model, jnp.asarray(free))))[:, columns].T

    truth = degrees(true_q) if true_q is not None else [None] * len(columns)
    for label, angle, true, color in zip(angles.labels, degrees(q), truth, _COLORS, strict=False):
        if true is not None:
            axes.plot(times, true, color=color, linewidth=4, alpha=0.35, solid_capstyle="butt")
            label += f" (RMS error {np.sqrt(np.nanmean((angle - true) ** 2)):.2f}°)"
        axes.plot(times, angle, color=color, linewidth=1, label=label)
    how = " (thin: found, broad: truth)" if true_q is not None else ""
    axes.set(title=angles.title + how, xlabel="Time (s)", ylabel="Angle (°)")
    axes.margins(x=0)
    axes.grid(alpha=0.3)
    inches = ScaledTranslation(0, -_LEGEND_BELOW, axes.figure.dpi_scale_trans)
    below = {"bbox_to_anchor": (0.5, 0), "bbox_transform": axes.transAxes + inches}
    axes.legend(loc="upper center", ncols=3, frameon=False, **below)


def _shown_angles(model: SpineModel) -> list[_Angles]:
    names = model.coordinate_names
    if lumbar := [level for level in LUMBAR_LEVELS if f"{level}_Flex_Ext" in names]:
        flexion = tuple(f"{level}_Flex_Ext" for level in lumbar)
        title = "Lumbar flexion (negative) and extension by level"
        if set(flexion) & set(model.free_names) == {flexion[0]} and len(flexion) > 1:
            title += f"\nthe other levels follow {level_label(lumbar[0])} in fixed ratios"
        return [_Angles(title, tuple(map(level_label, lumbar)), flexion)]
    trunk = tuple(name for name in names if name.startswith("lumbar_"))[: len(_COLORS)]
    pelvis, legs = (tuple(name for name in known if name in names) for known in (_PELVIS, _LEGS))
    panels = [("Rotations of the trunk", trunk) if trunk else ("Rotations of the pelvis", pelvis)]
    panels.append(("Hips, knees and ankles", legs))
    turning = [name for name, turns in zip(names, model.rotational, strict=True) if turns]
    first = tuple(name for name in turning if name in model.free_names)[: len(_COLORS)]
    panels = [panel for panel in panels if panel[1]] or [("The first of its angles", first)]
    return [_Angles(title, found, found) for title, found in panels if found]


def _plot_markers(axes: Axes, names: tuple[str, ...], errors_mm: np.ndarray) -> None:
    """Median and spread of each marker's error; a marker that no frame has is told in words."""
    at = np.array([k for k in range(len(names)) if np.isfinite(errors_mm[:, k]).any()], int)
    missing = ", ".join(name for k, name in enumerate(names) if k not in at)
    if len(at):
        low, middle, high = np.nanpercentile(errors_mm[:, at], _PERCENTILES, axis=0)
        whiskers = {"ecolor": _WHISKER_COLOR, "elinewidth": 1, "capsize": 2}
        axes.bar(
            range(len(at)), middle, color=_BAR_COLOR, yerr=(middle - low, high - middle), error_kw=whiskers
        )
    axes.set_xticks(range(len(at)), [names[k] for k in at], rotation=90)
    axes.set_xlim(-0.7, max(len(at), 1) - 0.3)
    axes.set_ylim(bottom=0)
    title = "Error by marker: median, and 5th to 95th percentile of frames"
    if missing:
        title += "\n" + textwrap.fill(f"never seen: {missing}", _LINE_LETTERS)
    axes.set(title=title, ylabel="Distance (mm)")
    axes.grid(axis="y", alpha=0.3)
