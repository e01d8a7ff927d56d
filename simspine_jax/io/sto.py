"""OpenSim storage files: ``.sto`` and ``.mot``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import FileFormatError, ShapeError, UnknownNameError
from simspine_jax.io.cells import (
    CellError,
    check_times,
    frozen_array,
    is_name,
    parse_row,
    validate_times,
)
from simspine_jax.io.files import PathLike, atomic_write, filled_lines, malformed, place, read_text, shown

_END = re.compile(r"end\s*header\s*:?", re.IGNORECASE)
_SETTING = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*)")


@dataclass(frozen=True, eq=False)
class Storage:
    """A table over time, as OpenSim's storage files hold it.

    Attributes:
        name: one line without ``=``; may be empty.
        columns: C labels, time left out. OpenSim lets labels repeat (SIMM files hold the forces of both
            feet as ``ground_force_vx``); a repeated one is kept, and refused where it is asked for.
        times: float64 [T] s, strictly increasing.
        data: float64 [T, C] finite or NaN for missing, in the units of the file.
        in_degrees: whether rotations are in degrees; None where the file does not say.
        source: what error messages call this table, such as the name of its file.

    Raises:
        ShapeError: shapes, labels, times or values break one of these rules.
    """

    name: str
    columns: tuple[str, ...]
    times: NDArray[np.float64]
    data: NDArray[np.float64]
    in_degrees: bool | None
    source: str = "the storage"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "times", frozen_array(self.times))
        object.__setattr__(self, "data", frozen_array(self.data))
        if self.name and not _is_title(self.name):
            raise ShapeError(f"the name {shown(self.name)} would not read back; valid is a line without '='")
        for column in self.columns:
            if not (isinstance(column, str) and is_name(column)):
                raise ShapeError(f"{shown(str(column))} is no label; valid is printable text, trimmed")
        validate_times(self.times)
        shape = (len(self.times), len(self.columns))
        if self.data.shape != shape:
            raise ShapeError(f"data have the shape {self.data.shape}; valid is [T, C] = {shape}")
        if np.isinf(self.data).any():
            raise ShapeError("some data are infinite; valid are finite numbers, or NaN for missing ones")

    @property
    def n_frames(self) -> int:
        """Number of rows T."""
        return len(self.times)

    @property
    def duration(self) -> float:
        """Time from the first row to the last, s."""
        return float(self.times[-1] - self.times[0])

    def column(self, name: str) -> NDArray[np.float64]:
        """float64 [T] of one column; raises as `select` does."""
        return self.data[:, self._index(name)]

    def select(self, columns: Sequence[str]) -> Storage:
        """The same rows with only these columns, in this order.

        Raises:
            UnknownNameError: a label is not among the columns.
            FileFormatError: a label occurs more than once, so that it is open which column is meant.
        """
        index = [self._index(name) for name in columns]
        return replace(self, columns=tuple(columns), data=self.data[:, index])

    def _index(self, name: str) -> int:
        count = self.columns.count(name)
        if count == 0:
            raise UnknownNameError("Column", name, self.source, self.columns)
        if count > 1:
            what = f"{count} columns are called {shown(name)}"
            raise FileFormatError(f"{self.source}: {what}; valid is a label that occurs once")
        return self.columns.index(name)


def read_sto(path: PathLike) -> Storage:
    """Read a ``.sto`` or ``.mot`` file of OpenSim 1 to 4 or SIMM.

    The header ends with ``endheader``; row and column counts in it are not trusted, the data count. Labels
    and cells are separated by tabs or blanks.

    Raises:
        FileFormatError: no ``endheader``, no ``time`` column, a table that is not of plain numbers
            (``DataType=Vec3``), rows of a wrong length, cells that are not finite numbers or NaN, times
            that do not increase.
    """
    lines = filled_lines(read_text(path))
    end = next((i for i, (_, line) in enumerate(lines) if _END.fullmatch(line.strip())), None)
    if end is None:
        raise malformed(path, None, "there is no line 'endheader'", "an OpenSim .sto or .mot file")
    settings = _settings(path, lines[:end])
    _check_data_type(path, settings)
    rows = lines[end + 2 :]
    if not rows:
        raise malformed(path, lines[-1][0], "the table has no rows", "at least one")
    columns = _read_columns(path, *lines[end + 1])
    values = np.stack([_read_row(path, number, line, 1 + len(columns)) for number, line in rows])
    check_times(path, [number for number, _ in rows], values[:, 0])
    return Storage(
        name=_title([line.strip() for _, line in lines[:end]]),
        columns=columns,
        times=values[:, 0],
        data=values[:, 1:],
        in_degrees=_in_degrees(path, settings),
        source=place(Path(path).name),
    )


def write_sto(path: PathLike, storage: Storage) -> None:
    """Write a ``.sto`` or ``.mot`` file that OpenSim opens and `read_sto` reads back to the last bit.

    Two things only OpenSim's newer TimeSeriesTable takes: labels with blanks, and NaN, at which its older
    Storage class stops reading without a word. Without ``in_degrees`` the header does not say it either,
    which OpenSim takes as radians.

    Raises:
        SimspineError: the file can't be written.
    """
    with atomic_write(path) as file:
        file.write(f"{storage.name}\nversion=1\n")
        file.write(f"nRows={storage.n_frames}\nnColumns={1 + len(storage.columns)}\n")
        if storage.in_degrees is not None:
            file.write(f"inDegrees={'yes' if storage.in_degrees else 'no'}\n")
        file.write("endheader\n" + "\t".join(("time", *storage.columns)) + "\n")
        for time, row in zip(storage.times.tolist(), storage.data.tolist(), strict=True):
            file.write("\t".join(map(repr, (time, *row))) + "\n")


def to_radians(storage: Storage, rotational: Mapping[str, bool], *, default_in_degrees: bool) -> Storage:
    """The table with its rotational columns in radians.

    Args:
        storage: a table in degrees or radians.
        rotational: for each coordinate of the model, whether it is an angle. Only the model knows this;
            columns that are not named here, such as forces, are left as they are.
        default_in_degrees: what to believe where the file does not say. OpenSim 4.6 takes silence as
            degrees in a ``.mot`` file without ``version=1``, as SIMM wrote them, and as radians in others.

    Returns:
        A table with ``in_degrees`` False.
    """
    in_degrees = default_in_degrees if storage.in_degrees is None else storage.in_degrees
    return _scaled(storage, rotational, np.deg2rad if in_degrees else None, in_degrees=False)


def to_degrees(storage: Storage, rotational: Mapping[str, bool], *, default_in_degrees: bool) -> Storage:
    """The table with its rotational columns in degrees and ``in_degrees`` True; see `to_radians`."""
    in_degrees = default_in_degrees if storage.in_degrees is None else storage.in_degrees
    return _scaled(storage, rotational, None if in_degrees else np.rad2deg, in_degrees=True)


def _scaled(
    storage: Storage, rotational: Mapping[str, bool], convert: np.ufunc | None, *, in_degrees: bool
) -> Storage:
    turns = np.array([rotational.get(column, False) for column in storage.columns], dtype=bool)
    data = storage.data.copy()
    if convert is not None:
        data[:, turns] = convert(data[:, turns])
    return replace(storage, data=data, in_degrees=in_degrees)


def _settings(path: PathLike, header: list[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Line number and value of each ``key=value`` line, by lower-case key."""
    settings: dict[str, tuple[int, str]] = {}
    for number, line in header:
        if match := _SETTING.fullmatch(line.strip()):
            key, value = match[1].lower(), match[2].strip()
            if key in settings and settings[key][1] != value:
                raise malformed(path, number, f"{match[1]} is set twice", "one value")
            settings[key] = number, value
    return settings


def _in_degrees(path: PathLike, settings: Mapping[str, tuple[int, str]]) -> bool | None:
    if "indegrees" not in settings:
        return None
    number, value = settings["indegrees"]
    if value.lower() not in ("yes", "no"):
        raise malformed(path, number, f"inDegrees is {shown(value)}", "yes or no")
    return value.lower() == "yes"


def _check_data_type(path: PathLike, settings: Mapping[str, tuple[int, str]]) -> None:
    number, value = settings.get("datatype", (0, "double"))
    if value.lower() != "double":
        raise malformed(path, number, f"DataType is {shown(value)}", "double")


def _title(header: list[str]) -> str:
    """The name of a table: the first line of its header, or in SIMM's files what follows ``name``."""
    title = header[0] if header else ""
    if any(line.lower().startswith("datacolumns") for line in header[1:]):
        names = [line[len("name ") :].strip() for line in header if line.lower().startswith("name ")]
        title = (names or [title])[0]
    return title if _is_title(title) else ""


def _is_title(text: str) -> bool:
    return is_name(text) and "=" not in text and not _END.fullmatch(text)


def _read_columns(path: PathLike, number: int, line: str) -> tuple[str, ...]:
    labels = line.split("\t") if "\t" in line else line.split()
    words = [label.strip() for label in labels if label.strip()]
    if words[0].lower() != "time":
        raise malformed(path, number, f"the first column is {shown(words[0])}", "time")
    for word in words:
        if not is_name(word):
            raise malformed(path, number, f"{shown(word)} is no label", "printable text")
    return tuple(words[1:])


def _read_row(path: PathLike, number: int, line: str, width: int) -> NDArray[np.float64]:
    cells = line.split()
    if len(cells) != width:
        raise malformed(path, number, f"the row has {len(cells)} cells", f"{width}, one for each label")
    try:
        return np.array(parse_row(cells))
    except CellError as error:
        what = f"cell {error.index + 1} is {shown(cells[error.index])}"
        raise malformed(path, number, what, "a finite decimal number, or nan if missing") from None
