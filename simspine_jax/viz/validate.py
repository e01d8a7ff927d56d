"""Validation of a set of annotations: figures, tables and a report in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simspine_jax.annotations import SpineTrial
from simspine_jax.errors import UnknownNameError
from simspine_jax.io.files import atomic_write
from simspine_jax.statistics import gather_statistics
from simspine_jax.tables import TABLE_FORMATS, Table, format_table
from simspine_jax.validation import validation_tables
from simspine_jax.viz.figures import (
    FIGURE_FORMATS,
    neck_figure,
    new_figure,
    thoracolumbar_figure,
    write_figure,
)
from simspine_jax.viz.report import write_set_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALIDATION_FORMATS: tuple[str, ...] = ("html", "png", "svg", "pdf", "txt", "md", "csv", "tex")
"""The report, pictures, and tables."""

DEFAULT_FORMATS: tuple[str, ...] = ("html", "png", "svg", "txt", "md", "csv", "tex")

_FIGURES = {"figure_3_thoracolumbar": thoracolumbar_figure, "figure_4_cervical": neck_figure}


def run_validation(
    trials: Iterable[SpineTrial],
    out: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    progress: Callable[[SpineTrial], None] | None = None,
    *,
    unverified: bool = False,
) -> list[Path]:
    """Reads the trials once and writes what is asked into a folder; each file is whole or not there.

    The report is ``report.html``, pictures lie beside it, tables in the folder ``tables``.

    Args:
        trials: read one at a time; memory doesn't grow with their length.
        out: the folder; made where it is missing.
        formats: of `VALIDATION_FORMATS`.
        progress: called with each trial when it was read.
        unverified: whether to show values of the literature that are recalled or without a primary source.

    Returns:
        the files in the order in which they were written.

    Raises:
        UnknownNameError: a format is unknown.
        ShapeError: there is no trial.
        MissingDependencyError: matplotlib is not installed, and a picture or the report is asked for.
        SimspineError: a file can't be written.
    """
    for name in formats:
        if name not in VALIDATION_FORMATS:
            raise UnknownNameError("Format", name, "the validation", VALIDATION_FORMATS)
    pictures = [name for name in dict.fromkeys(formats) if name in FIGURE_FORMATS]
    if pictures or "html" in formats:
        with new_figure(1.0):  # says what is not installed before hours of reading
            pass
    statistics = gather_statistics(_watched(trials, progress))
    written = []
    if "html" in formats:
        written.append(out / "report.html")
        write_set_report(written[-1], statistics, unverified=unverified)
    drawn = {name: draw(statistics, unverified=unverified) for name, draw in _FIGURES.items() if pictures}
    written += _write_pictures(drawn, out, pictures)
    tables = validation_tables(statistics, unverified=unverified)
    kinds = [name for name in dict.fromkeys(formats) if name != "html"]
    written += _write_tables(tables, out / "tables", kinds)
    return written


def _watched(
    trials: Iterable[SpineTrial], progress: Callable[[SpineTrial], None] | None
) -> Iterator[SpineTrial]:
    for trial in trials:
        yield trial
        if progress is not None:
            progress(trial)


def _write_pictures(drawn: Mapping[str, Figure], out: Path, suffixes: Sequence[str]) -> list[Path]:
    written = []
    for name, figure in drawn.items():
        for suffix in suffixes:
            written.append(out / f"{name}.{suffix}")
            write_figure(written[-1], figure)
    return written


def _write_tables(tables: Sequence[Table], folder: Path, suffixes: Sequence[str]) -> list[Path]:
    written = []
    for table in tables:
        for suffix in suffixes:
            if suffix in TABLE_FORMATS:
                written.append(folder / f"{table.name}.{suffix}")
                with atomic_write(written[-1]) as file:
                    file.write(format_table(table, suffix))
    return written
