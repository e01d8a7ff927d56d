"""Marker trajectories in C3D files (www.c3d.org); writing needs the optional package ezc3d."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from simspine_jax.errors import MissingDependencyError, SimspineError, one_line
from simspine_jax.io.c3d_layout import MAX_HEADER_FRAME, C3DContent, parse_c3d
from simspine_jax.io.cells import check_times, first_duplicate, is_name
from simspine_jax.io.files import PathLike, atomic_write, malformed, place, read_bytes, shown
from simspine_jax.io.trc import MarkerTrajectory, check_positions, power_of_metres, zup_to_yup

# Vicon stores the outputs of its models as points and lists those that are no positions here.
_NOT_MARKERS = ("ANGLES", "FORCES", "MOMENTS", "POWERS", "SCALARS")


def read_c3d(path: PathLike, *, y_up: bool | None = None) -> MarkerTrajectory:
    """Read the markers of a C3D file, in metres.

    A point is missing (NaN) where its residual is negative, which is how C3D marks it, or a coordinate is
    NaN. Points that Vicon lists as angles, forces, moments, powers or scalars are no markers and are left
    out. The bytes are taken apart here and not by ezc3d, which crashes the process on some damaged files
    and cuts recordings of over 65535 frames.

    Args:
        path: of the file.
        y_up: whether the axes of the file are Y-up already; if not, they are taken as Z-up and turned by
            `zup_to_yup`. None asks the file: ``POINT:Y_SCREEN`` names the axis that points up on a screen.
            Where the file does not say, its axes are kept.

    Raises:
        FileFormatError: no C3D file, cut off, without markers, with labels that are blank or repeat, in an
            unknown unit, with positions beyond `MAX_POSITION_M`, or with another axis than +Y or +Z up.
    """
    content = parse_c3d(path, read_bytes(path))
    if not (math.isfinite(content.rate) and content.rate > 0):
        raise malformed(path, None, f"the point rate is {content.rate:g} Hz", "a positive number")
    labels = _labels(path, content)
    ignored = {label for name in _NOT_MARKERS for label in content.texts(f"POINT:{name}")}
    keep = [k for k, label in enumerate(labels) if label not in ignored]
    names = tuple(labels[k] for k in keep)
    _check_names(path, names)
    positions = content.points[:, keep, :3] * 10.0 ** _power(path, content)
    positions[(content.points[:, keep, 3] < 0) | np.isnan(positions).any(axis=-1)] = np.nan
    check_positions(path, None, names, positions)
    times = (max(content.first_frame - 1, 0) + np.arange(len(positions))) / content.rate
    check_times(path, None, times)
    trajectory = MarkerTrajectory(names, times, positions, content.rate, source=place(Path(path).name))
    return zup_to_yup(trajectory) if _is_z_up(path, content, y_up) else trajectory


def write_c3d(path: PathLike, trajectory: MarkerTrajectory, units: Literal["m", "mm"] = "mm") -> None:
    """Write a C3D file with Y-up axes. C3D holds float32 (0.1 µm at 1 m) and counts frames from time zero.

    Raises:
        MissingDependencyError: ezc3d is not installed.
        SimspineError: the times are not those of frames at the trajectory's rate from zero on, the last
            frame is beyond `MAX_HEADER_FRAME`, or the file can't be written.
    """
    if units not in ("m", "mm"):
        raise ValueError(f"units is {units!r}; valid is 'm' or 'mm'")
    if importlib.util.find_spec("ezc3d") is None:
        raise MissingDependencyError("ezc3d", "c3d", "Writing C3D files")
    first = _first_frame(trajectory)
    missing = ~trajectory.present
    metres = np.where(missing[..., None], 0.0, trajectory.positions)
    points = np.ones((4, len(trajectory.names), trajectory.n_frames))
    points[:3] = (metres * (1000.0 if units == "mm" else 1.0)).transpose(2, 1, 0)
    arrays = io.BytesIO()
    np.savez(
        arrays, points=points, residuals=np.where(missing.T, -1.0, 0.0)[None],
        labels=np.array(trajectory.names), rate=trajectory.rate, units=units, first_frame=first,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # ezc3d writes only to names ending in ".c3d" (it appends that to any other), so not to the handle.
        whole = Path(folder, "whole.c3d")
        writer = [
            sys.executable,
            "-P",
            os.fspath(Path(__file__).with_name("c3d_writer.py")),
            os.fspath(whole),
        ]
        child = subprocess.run(writer, input=arrays.getvalue(), capture_output=True, check=False)
        if child.returncode != 0:
            last = (child.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise SimspineError(f"{os.fspath(path)} can't be written, says ezc3d: {one_line(last)}")
        with atomic_write(path, binary=True) as handle:
            handle.write(whole.read_bytes())


def _labels(path: PathLike, content: C3DContent) -> list[str]:
    labels, n_points = content.texts("POINT:LABELS"), content.points.shape[1]
    if len(labels) < n_points:
        raise malformed(path, None, f"there are {len(labels)} labels for {n_points} points", "one for each")
    return labels[:n_points]


def _check_names(path: PathLike, names: tuple[str, ...]) -> None:
    if not names:
        raise malformed(path, None, "there are no markers", "at least one")
    for name in names:
        if not is_name(name):
            raise malformed(path, None, f"{shown(name)} is no marker label", "printable text")
    if (twice := first_duplicate(names)) is not None:
        raise malformed(path, None, f"marker {shown(twice)} is labelled twice", "one label for each")


def _power(path: PathLike, content: C3DContent) -> int:
    units = next(iter(content.texts("POINT:UNITS")), "")
    power = power_of_metres(units)
    if power is None:
        raise malformed(path, None, f"POINT:UNITS is {shown(units)}", "one of m, dm, cm, mm")
    return power


def _is_z_up(path: PathLike, content: C3DContent, y_up: bool | None) -> bool:
    if y_up is not None:
        return not y_up
    up = next(iter(content.texts("POINT:Y_SCREEN")), "").upper()
    if up not in ("", "+Y", "Y", "+Z", "Z"):
        valid = "+Y or +Z, or to say with y_up which axis is up"
        raise malformed(path, None, f"POINT:Y_SCREEN is {shown(up)}", valid)
    return up.endswith("Z")


def _first_frame(trajectory: MarkerTrajectory) -> int:
    """The frame number of the first time, counted from 0 at time zero."""
    frames = trajectory.times * trajectory.rate
    first = round(float(frames[0]))
    off = np.abs(frames - (first + np.arange(len(frames))))
    if first < 0 or off.max() >= 0.5:
        raise SimspineError(
            f"{trajectory.source} has times that are no whole frames at {trajectory.rate:g} Hz from zero on; "
            "valid for C3D are evenly spaced times"
        )
    if (last := first + len(frames)) > MAX_HEADER_FRAME:
        raise SimspineError(f"{trajectory.source} reaches frame {last}; valid is up to {MAX_HEADER_FRAME}")
    return first
