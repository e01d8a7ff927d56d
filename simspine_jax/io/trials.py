"""Our own files of one trial: everything in `SpineTrial` without loss, and its findings as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simspine_jax.annotations import QualityEvent, SpineTrial
from simspine_jax.errors import MissingDependencyError, ShapeError, one_line
from simspine_jax.io.files import PathLike, atomic_write, malformed, place, read_text, shown
from simspine_jax.io.layout import ReleaseLayout, action_of, natural_key
from simspine_jax.io.npz import read_npz, write_npz

FORMAT = "simspine_jax trial"
VERSION = 1
"""Raised when a file of before could no longer be read."""

_OUTCOMES = ("rejected", "repaired", "dropped", "noted")
_TEXT = ("subject", "action", "rate_hz", "camera_names", "marker_names", "events")
_ARRAYS = tuple(f.name for f in fields(SpineTrial) if f.name not in (*_TEXT, "source"))
_COLUMNS = (
    "stage", "first_frame", "last_frame", "start_s", "end_s", "what", "reason", "outcome", "value", "limit",
    "unit",
)  # fmt: skip


@dataclass(frozen=True)
class StoredTrial:
    """A trial in a folder that `simspine simulate` has written.

    Attributes:
        subject: as its folder is called.
        action: as its file is called, with the repetition behind a blank.
        path: for `read_trial`.
        quality_path: for `read_quality_csv`; None where there is no such file.
    """

    subject: str
    action: str
    path: Path
    quality_path: Path | None


def write_trial(path: PathLike, trial: SpineTrial) -> None:
    """Write a trial as NPZ, which `read_trial` reads back to the last bit; ``source`` is left out.

    The file holds the arrays by their names in `SpineTrial` and the text ``about``, JSON with the rest.
    Equal trials give equal bytes, on any machine.

    Raises:
        SimspineError: the file can't be written.
    """
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    about |= {name: getattr(trial, name) for name in _TEXT}
    about |= {"rate_hz": float(trial.rate_hz), "events": [_cells(event) for event in trial.events]}
    arrays = {name: value for name in _ARRAYS if (value := getattr(trial, name)) is not None}
    arrays = {"about": np.array(json.dumps(about | {"arrays": list(arrays)}))} | arrays
    write_npz(path, {name: array.astype(array.dtype.newbyteorder("<")) for name, array in arrays.items()})


def read_trial(path: PathLike) -> SpineTrial:
    """Read what `write_trial` has written; ``source`` is the file.

    Raises:
        FileFormatError: it is no such file, it is damaged, or its version is newer.
    """
    arrays = read_npz(path)
    about = _about(path, arrays.pop("about", None))
    # A damaged directory can hide an array; the list of them tells.
    listed = {str(name) for name in about["arrays"]} if isinstance(about.get("arrays"), list) else set()
    for names, what in ((arrays.keys() - listed, "an array {}"), (listed - arrays.keys(), "no array {}")):
        if names:
            raise malformed(path, None, f"it has {what.format(shown(min(names)))}", "as the file lists them")
    for name, array in arrays.items():
        if array.dtype != (kind := "<u2" if name == "quality" else "<f8"):
            raise malformed(path, None, f"{name} holds {array.dtype}", kind)
    try:
        values: dict[str, Any] = dict(arrays) | {name: about[name] for name in _TEXT}
        values |= {name: tuple(map(str, values[name])) for name in ("camera_names", "marker_names")}
        values["events"] = tuple(_event(event) for event in about["events"])
        values["rate_hz"] = float(values["rate_hz"])
        return SpineTrial(**values, source=place(path))
    except (KeyError, TypeError, ValueError, ShapeError) as error:
        what = f"what it says of the trial is wrong ({one_line(str(error)).split(';')[0]})"
        raise malformed(path, None, what, "a file that this library wrote") from None


def find_trials_in(folder: PathLike) -> tuple[StoredTrial, ...]:
    """The trials that `simspine simulate` has written into a folder, subject by subject; see `ReleaseLayout`.

    Only names are looked at: a file that is damaged is found too, and `read_trial` tells.

    Raises:
        FileFormatError: there are none.
    """
    layout = ReleaseLayout(Path(folder))
    found = []
    for path in (layout.root / "trials").glob("*/*.npz"):
        subject, name = path.parent.name, path.stem
        if name.startswith(f"{subject}_"):
            action = action_of(name.removeprefix(f"{subject}_"))
            quality = layout.quality(subject, action)
            found.append(StoredTrial(subject, action, path, quality if quality.is_file() else None))
    if not found:
        what = "it holds no trials/<subject>/<subject>_<action>.npz"
        raise malformed(folder, None, what, "a folder that 'simspine simulate' has written")
    return tuple(sorted(found, key=lambda t: (natural_key(t.subject), natural_key(t.action))))


def write_quality_csv(path: PathLike, events: Sequence[QualityEvent], times: ArrayLike) -> None:
    """Write findings as a table: one row each, with the times (s) of the first and the last frame.

    Args:
        path: of the CSV file.
        events: findings and repairs of a trial.
        times: [T] s of the trial's frames.

    Raises:
        ShapeError: an event lies outside of the frames.
        SimspineError: the file can't be written.
    """
    with atomic_write(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows(
            ["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in row]
            for row in _rows(events, times)
        )


def read_quality_csv(path: PathLike) -> tuple[QualityEvent, ...]:
    """Read what `write_quality_csv` has written; the times are left out, they are the frames'.

    Raises:
        FileFormatError: it is no such table.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path)), strict=True))
    except csv.Error as error:
        raise malformed(path, None, f"the CSV is broken ({one_line(str(error))})", "a table") from None
    if tuple(rows[0]) != _COLUMNS:
        raise malformed(path, 1, f"the columns are {shown(','.join(rows[0]))}", ",".join(_COLUMNS))
    events = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            cells: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
            del cells["start_s"], cells["end_s"]
            cells |= {key: float(cells[key]) if cells[key] else None for key in ("value", "limit")}
            events.append(_event(cells | {key: int(cells[key]) for key in ("first_frame", "last_frame")}))
        except (TypeError, ValueError) as error:
            raise malformed(path, number, f"the row is wrong ({one_line(str(error))})", "a finding") from None
    return tuple(events)


def write_quality_parquet(path: PathLike, events: Sequence[QualityEvent], times: ArrayLike) -> None:
    """Write the table of `write_quality_csv` as Parquet.

    Raises:
        MissingDependencyError: PyArrow is not installed.
        ShapeError: an event lies outside of the frames.
        SimspineError: the file can't be written.
    """
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError("pyarrow", "parquet", "Writing Parquet") from None
    kinds = dict.fromkeys(_COLUMNS, pyarrow.string())
    kinds |= dict.fromkeys(("first_frame", "last_frame"), pyarrow.int64())
    kinds |= dict.fromkeys(("start_s", "end_s", "value", "limit"), pyarrow.float64())
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in _rows(events, times)]
    with atomic_write(path, binary=True) as file:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(kinds.items())), file)


def _rows(events: Sequence[QualityEvent], times: ArrayLike) -> list[tuple[Any, ...]]:
    seconds: list[float] = np.asarray(times, np.float64).tolist()
    rows = []
    for event in events:
        if not 0 <= event.first_frame <= event.last_frame < len(seconds):
            raise ShapeError(
                f"a finding spans the frames {event.first_frame} to {event.last_frame}; "
                f"valid is within 0 to {len(seconds) - 1}"
            )
        cells = _cells(event) | {"start_s": seconds[event.first_frame], "end_s": seconds[event.last_frame]}
        rows.append(tuple(cells[column] for column in _COLUMNS))
    return rows


def _cells(event: QualityEvent) -> dict[str, Any]:
    """A finding as plain values, without NumPy's numbers."""
    cells = asdict(event) | {key: int(getattr(event, key)) for key in ("first_frame", "last_frame")}
    numbers = {key: getattr(event, key) for key in ("value", "limit")}
    return cells | {key: None if number is None else float(number) for key, number in numbers.items()}


def _about(path: PathLike, stored: NDArray[Any] | None) -> dict[str, Any]:
    """The text of a trial's file, after a look at what it calls itself."""
    try:
        about = json.loads(str(stored[()])) if stored is not None and stored.dtype.kind == "U" else None
    except (ValueError, TypeError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise malformed(path, None, "it does not say that it is a trial", f"a file of the format '{FORMAT}'")
    if about.get("version") != VERSION:
        what = f"its version is {shown(str(about.get('version')))}"
        raise malformed(path, None, what, f"{VERSION}; a newer library may read it")
    return about


def _event(cells: dict[str, Any]) -> QualityEvent:
    """A finding from plain values.

    Raises:
        TypeError, ValueError: a value is missing, unknown or of another kind.
    """
    event = QualityEvent(**cells)
    for name in ("stage", "what", "reason", "unit"):
        if not isinstance(getattr(event, name), str):
            raise TypeError(f"{name} is no text")
    for name in ("first_frame", "last_frame"):
        if type(getattr(event, name)) is not int:
            raise TypeError(f"{name} is no frame")
    for name in ("value", "limit"):
        if not isinstance(getattr(event, name), float | int | None):
            raise TypeError(f"{name} is no number")
    if event.outcome not in _OUTCOMES:
        raise ValueError(f"the outcome is {shown(str(event.outcome))}, not one of {', '.join(_OUTCOMES)}")
    return event
