"""Marker trajectories and the TRC format (Motion Analysis, OpenSim)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.io.cells import (
    CellError,
    check_times,
    first_duplicate,
    frozen_array,
    is_name,
    parse_number,
    parse_row,
    validate_times,
)
from simspine_jax.io.files import PathLike, atomic_write, filled_lines, malformed, place, read_text, shown

MAX_POSITION_M = 1000.0
"""No capture volume is a kilometre wide; millimetres that are declared as metres are beyond it."""

RATE_TOLERANCE = 0.1
"""Times rounded to 10 ms, as some programs write them, put the rate of a short clip this far off."""

MAX_BLANK_CELLS = 1_000_000
"""Cells that rows may leave off in all; without a bound a small file could ask for any amount of memory."""

_POWER_OF_METRES = {
    "m": 0, "meter": 0, "meters": 0, "metre": 0, "metres": 0,
    "dm": -1, "decimeter": -1, "decimeters": -1, "decimetre": -1, "decimetres": -1,
    "cm": -2, "centimeter": -2, "centimeters": -2, "centimetre": -2, "centimetres": -2,
    "mm": -3, "millimeter": -3, "millimeters": -3, "millimetre": -3, "millimetres": -3,
}  # fmt: skip
_AXIS_LABEL = re.compile(r"[XYZxyz][0-9]*")


@dataclass(frozen=True, eq=False)
class MarkerTrajectory:
    """Positions of named markers over time; a marker that is missing in a frame is NaN there.

    Attributes:
        names: K marker names, each once.
        times: float64 [T] s, strictly increasing.
        positions: float64 [T, K, 3] m, in the axes of the file; a marker has three finite coordinates in a
            frame, or three NaN.
        rate: frames per second, Hz.
        source: what error messages call this trajectory, such as the name of its file.

    Raises:
        ShapeError: shapes, names, times, positions or rate break one of these rules.
    """

    names: tuple[str, ...]
    times: NDArray[np.float64]
    positions: NDArray[np.float64]
    rate: float
    source: str = "the trajectory"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "times", frozen_array(self.times))
        object.__setattr__(self, "positions", frozen_array(self.positions))
        object.__setattr__(self, "rate", float(self.rate))
        _check_names(self.names)
        validate_times(self.times)
        _check_positions(self.positions, (len(self.times), len(self.names), 3))
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ShapeError(f"the rate is {self.rate} Hz; valid is a positive number")

    @property
    def n_frames(self) -> int:
        """Number of frames T."""
        return len(self.times)

    @property
    def duration(self) -> float:
        """Time from the first frame to the last, s."""
        return float(self.times[-1] - self.times[0])

    @property
    def present(self) -> NDArray[np.bool_]:
        """bool [T, K]: where a marker has a position."""
        return ~np.isnan(self.positions[..., 0])

    def select(self, names: Sequence[str], missing: Literal["refuse", "nan"] = "refuse") -> MarkerTrajectory:
        """The same frames with only these markers, in this order.

        Args:
            names: such as a model's ``marker_names``.
            missing: ``"nan"`` takes markers that aren't there as missing in every frame.

        Raises:
            UnknownNameError: a name, or with ``"nan"`` every name, is not among the markers.
        """
        index = {name: k for k, name in enumerate(self.names)}
        unknown = [name for name in names if name not in index]
        if unknown and (missing != "nan" or len(unknown) == len(names)):
            raise UnknownNameError("Marker", unknown[0], self.source, self.names)
        picked = np.full((self.n_frames, len(names), 3), np.nan)
        for k, name in enumerate(names):
            if name in index:
                picked[:, k] = self.positions[:, index[name]]
        return replace(self, names=tuple(names), positions=picked)


def zup_to_yup(trajectory: MarkerTrajectory) -> MarkerTrajectory:
    """Turn Z-up axes to OpenSim's Y-up ones: (x, y, z) becomes (y, z, x), a rotation without mirroring."""
    return replace(trajectory, positions=trajectory.positions[..., [1, 2, 0]])


def power_of_metres(units: str) -> int | None:
    """The power of ten that turns a unit of length, as the formats write it, into metres; None if unknown."""
    return _POWER_OF_METRES.get(units.lower())


def read_trc(path: PathLike) -> MarkerTrajectory:
    """Read a TRC file, in metres whatever its unit.

    Taken as they come: blank lines, doubled or trailing tabs, names with spaces, a frame count in the header
    that is too small and any marker count (the data count), and rows that end early after a whole marker
    (the markers left out are missing). A blank or NaN cell means that the marker is missing in this frame,
    all three of its coordinates; it never becomes a zero. An infinite coordinate is an error and not a
    missing one, because no program writes it on purpose. Zeros stay zeros. Where ``DataRate`` is more than
    `RATE_TOLERANCE` away from what the times say, the rate is taken from the times.

    Raises:
        FileFormatError: the file is no TRC file, or a header line or row in it can't be trusted: repeated
            names, fewer rows than ``NumFrames``, times that do not increase, rows of a wrong length, cells
            that are not numbers, positions beyond `MAX_POSITION_M`.
    """
    text = read_text(path)
    lines = filled_lines(text)
    header = _read_header(path, lines[:5])
    rows = lines[5:]
    if not rows:
        raise malformed(path, lines[-1][0], "the file ends after its header", "at least one frame")
    if len(rows) < header.n_frames:
        what = f"NumFrames is {header.n_frames} and {len(rows)} rows of frames follow"
        raise malformed(path, lines[2][0], what, "a whole file, or the number of its rows")
    # A cell that is written takes a character at least.
    if len(rows) * 3 * len(header.names) > len(text) + MAX_BLANK_CELLS:
        what = f"{len(rows)} rows leave off most cells of {len(header.names)} markers"
        raise malformed(path, None, what, "a tab for each missing cell")
    values = np.empty((len(rows), 1 + 3 * len(header.names)))
    for frame, (number, line) in enumerate(rows):
        cut = frame == len(rows) - 1 and not text.endswith("\n")
        values[frame] = _read_row(path, number, line, header, may_be_short=not cut)
    times = values[:, 0]
    positions = values[:, 1:].reshape(len(rows), -1, 3)
    positions[np.isnan(positions).any(axis=-1)] = np.nan
    numbers = [number for number, _ in rows]
    check_times(path, numbers, times)
    check_positions(path, numbers, header.names, positions)
    return MarkerTrajectory(
        header.names, times, positions, _rate(header.rate, times), source=place(Path(path).name)
    )


def write_trc(path: PathLike, trajectory: MarkerTrajectory, units: Literal["m", "mm"] = "m") -> None:
    """Write a TRC file that OpenSim opens and that `read_trc` reads back to the last bit.

    Missing markers are written as NaN: OpenSim's newer reader refuses rows that end in blank cells.

    Raises:
        SimspineError: the file can't be written.
    """
    if units not in ("m", "mm"):
        raise ValueError(f"units is {units!r}; valid is 'm' or 'mm'")
    rate, n_frames, n_markers = repr(trajectory.rate), trajectory.n_frames, len(trajectory.names)
    write = repr if units == "m" else _in_millimetres
    with atomic_write(path) as file:
        file.write(f"PathFileType\t4\t(X/Y/Z)\t{place(Path(path).name)}\n")
        file.write("DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits")
        file.write("\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames\n")
        file.write(f"{rate}\t{rate}\t{n_frames}\t{n_markers}\t{units}\t{rate}\t1\t{n_frames}\n")
        file.write("Frame#\tTime\t" + "\t\t\t".join(trajectory.names) + "\t\t\n\t")
        file.write("".join(f"\tX{k}\tY{k}\tZ{k}" for k in range(1, n_markers + 1)) + "\n\n")
        flat = trajectory.positions.reshape(n_frames, -1)
        for frame, (time, row) in enumerate(zip(trajectory.times.tolist(), flat.tolist(), strict=True), 1):
            cells = ("NaN" if math.isnan(value) else write(value) for value in row)
            file.write(f"{frame}\t{time!r}\t" + "\t".join(cells) + "\n")


class _Header(NamedTuple):
    names: tuple[str, ...]
    rate: float
    power: int  # positions are in 10**power metres
    n_frames: int  # that the file says it has; 0 where it does not


def _read_header(path: PathLike, lines: list[tuple[int, str]]) -> _Header:
    if not lines[0][1].lstrip().lower().startswith("pathfiletype"):
        raise malformed(path, lines[0][0], f"the file starts with {shown(lines[0][1])}", "'PathFileType'")
    if len(lines) < 5:
        last = lines[-1][0]
        raise malformed(path, last, "the file ends inside its header", "five lines, the last X1 Y1 Z1 …")
    rate, power, n_frames = _read_settings(path, lines[1], lines[2])
    names = _read_names(path, *lines[3])
    _check_axes(path, *lines[4], n_markers=len(names))
    return _Header(names, rate, power, n_frames)


def _read_settings(path: PathLike, keys: tuple[int, str], values: tuple[int, str]) -> tuple[float, int, int]:
    """DataRate in Hz, the power of ten that turns Units into metres, and NumFrames, or 0."""
    settings = dict(zip(keys[1].lower().split(), values[1].split(), strict=False))
    line = values[0]
    for key in ("DataRate", "Units"):
        if key.lower() not in settings:
            raise malformed(path, line, f"the header has no {key}", f"a value below {key}")
    units = settings["units"]
    power = power_of_metres(units)
    if power is None:
        raise malformed(path, line, f"Units is {shown(units)}", "one of m, dm, cm, mm")
    try:
        rate = parse_number(settings["datarate"])
    except ValueError:
        rate = math.nan
    if not rate > 0:
        what = f"DataRate is {shown(settings['datarate'])}"
        raise malformed(path, line, what, "a positive number of frames per second")
    count = settings.get("numframes", "")
    return rate, power, int(count) if count.isdecimal() and len(count) < 10 else 0


def _read_names(path: PathLike, number: int, line: str) -> tuple[str, ...]:
    cells = [cell.strip() for cell in line.split("\t")]
    words = [cell for cell in cells if cell]
    if len(words) < 3 or not words[0].lower().startswith("frame") or not words[1].lower().startswith("time"):
        what = f"the line is {shown(line)}"
        raise malformed(path, number, what, "'Frame#', 'Time' and marker names separated by tabs")
    names = tuple(words[2:])
    for name in names:
        if not is_name(name):
            raise malformed(path, number, f"{shown(name)} is no marker name", "printable text")
    if (twice := first_duplicate(names)) is not None:
        raise malformed(path, number, f"marker {shown(twice)} is named twice", "one name for each marker")
    return names


def _check_axes(path: PathLike, number: int, line: str, n_markers: int) -> None:
    labels = line.split()
    good = all(
        _AXIS_LABEL.fullmatch(label) and label[0].upper() == "XYZ"[i % 3] for i, label in enumerate(labels)
    )
    if not good:
        raise malformed(path, number, f"the axes are {shown(line.strip())}", "X1 Y1 Z1 X2 …")
    if len(labels) != 3 * n_markers:
        what = f"there are {len(labels)} axes for {n_markers} named markers"
        raise malformed(path, number, what, "three for each")


def _read_row(path: PathLike, number: int, line: str, header: _Header, *, may_be_short: bool) -> list[float]:
    """Time and 3K coordinates of one frame."""
    width = 2 + 3 * len(header.names)
    cells = _cells(line, width)
    missing = width - len(cells)
    if missing < 0 or missing % 3 or (missing and not may_be_short) or len(cells) < 2:
        what = f"the row has {len(cells)} cells"
        raise malformed(path, number, what, f"{width}, for frame, time and {len(header.names)} markers")
    values: list[float] = []
    for start, part, power in ((0, cells[:2], 0), (2, cells[2:], header.power)):
        try:
            values += parse_row(part, power)
        except CellError as error:
            what = f"cell {start + error.index + 1} is {shown(part[error.index])}"
            valid = "a finite decimal number, or nothing for a missing marker"
            raise malformed(path, number, what, valid) from None
    if math.isnan(values[0]) or math.isnan(values[1]):
        raise malformed(path, number, "the row lacks its frame number or time", "a number for both")
    return values[1:] + [math.nan] * missing


def _cells(line: str, width: int) -> list[str]:
    cells = [cell.strip() for cell in line.split("\t")]
    # The time is never blank, so a blank second cell means that every tab was doubled.
    if len(cells) > 2 and not any(cells[1::2]):
        cells = cells[::2]
    while len(cells) > width and not cells[-1]:
        cells.pop()
    return cells


def check_positions(
    path: PathLike, lines: Sequence[int] | None, names: Sequence[str], positions: NDArray[np.float64]
) -> None:
    """Refuse positions that can't be metres, by the line that each frame stands on."""
    bad = np.isinf(positions) | (np.abs(positions) > MAX_POSITION_M)
    if bad.any():
        frame, marker, axis = (int(i) for i in np.argwhere(bad)[0])
        value = f"{'xyz'[axis]} = {positions[frame, marker, axis]:g} m"
        what = f"marker {shown(names[marker])} is at {value} in frame {frame + 1}"
        valid = f"up to {MAX_POSITION_M:g} m, so check the unit in the header"
        raise malformed(path, None if lines is None else lines[frame], what, valid)


def _rate(declared: float, times: NDArray[np.float64]) -> float:
    """The declared rate, or the one of the times where the two can't both be right."""
    if len(times) < 2:
        return declared
    # The mean forgives rounded times and the median forgives gaps, so either may confirm the header.
    mean, median = (len(times) - 1) / (times[-1] - times[0]), 1.0 / np.median(np.diff(times))
    near = any(abs(rate - declared) <= RATE_TOLERANCE * declared for rate in (mean, median))
    return declared if near else float(median)


def _in_millimetres(metres: float) -> str:
    return format(Decimal(repr(metres)).scaleb(3), "f")


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise ShapeError("a trajectory without markers; valid is at least one marker name")
    for name in names:
        if not (isinstance(name, str) and is_name(name)):
            raise ShapeError(f"{shown(str(name))} is no marker name; valid is printable text, trimmed")
    if (twice := first_duplicate(names)) is not None:
        raise ShapeError(f"marker {shown(twice)} is named twice; valid are names that differ")


def _check_positions(positions: NDArray[np.float64], shape: tuple[int, int, int]) -> None:
    if positions.shape != shape:
        raise ShapeError(f"positions have the shape {positions.shape}; valid is [T, K, 3] = {shape}")
    missing = np.isnan(positions)
    if (missing.any(axis=-1) != missing.all(axis=-1)).any():
        raise ShapeError("some markers are missing in part; valid are three numbers or three NaN")
    if (np.abs(positions) > MAX_POSITION_M).any():  # infinite ones too
        raise ShapeError(f"some positions are beyond {MAX_POSITION_M:g} m; valid are metres")
