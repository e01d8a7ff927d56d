"""Small tables of results, and how they are written: text, Markdown, CSV, LaTeX, HTML.

A table knows on which data it was measured, and every format says so.
"""

from __future__ import annotations

import csv
import html
import io
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, get_args

from simspine_jax.errors import ShapeError, UnknownNameError

Cell = str | int | float | None
TableFormat = Literal["txt", "md", "csv", "tex", "html"]
TABLE_FORMATS: tuple[str, ...] = get_args(TableFormat)
"""File suffixes of the formats."""

MISSING = "-"
"""What stands for a number that isn't there; CSV leaves the cell empty."""

# Widths of text output: remarks, cells of text, and what a heading may take above narrow numbers.
_WIDTH, _CELL, _HEADING = 100, 44, 12
_SHORT = 24
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "°": r"\textdegree{}", "±": r"$\pm$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows under named columns, with a title, what they were measured on, and remarks.

    Attributes:
        name: of the file without suffix.
        title: in a sentence.
        columns: names, with units.
        rows: text or numbers; None and NaN are missing.
        decimals: of the numbers of each column; integers are shown as they are.
        source: the data, in words.
        notes: remarks, each a sentence.
        breaks: numbers of rows that begin a group, which text and LaTeX set apart from the rows before.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    decimals: tuple[int, ...]
    source: str
    notes: tuple[str, ...] = ()
    breaks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate((self.decimals, *self.rows)):
            if len(row) != len(self.columns):
                what = "decimals" if i == 0 else f"row {i}"
                raise ShapeError(
                    f"{what} of table {self.name} has {len(row)} cells; valid is {len(self.columns)}"
                )


def format_table(table: Table, kind: str) -> str:
    """A table in one of `TABLE_FORMATS`, ending in a line end.

    CSV holds six digits of each number and begins with the title and the data source in lines that start with
    ``#``; the other formats round as the table says. LaTeX needs no package.

    Raises:
        UnknownNameError: ``kind`` is none of `TABLE_FORMATS`.
    """
    if kind not in _WRITERS:
        raise UnknownNameError("Table format", kind, "this program", TABLE_FORMATS)
    return _WRITERS[kind](table)


def _shown(table: Table) -> list[list[str]]:
    return [
        [_cell(cell, digits) for cell, digits in zip(row, table.decimals, strict=True)] for row in table.rows
    ]


def _cell(cell: Cell, decimals: int) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or math.isnan(cell):
        return MISSING
    return str(cell) if isinstance(cell, int) else f"{cell:.{decimals}f}"


def _numeric(table: Table) -> list[bool]:
    """Columns to align at the right: those with a number, or with nothing at all."""
    return [not any(isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]


def _remarks(table: Table) -> list[str]:
    return [f"Data: {table.source}", *table.notes]


def _text(table: Table) -> str:
    """So that a table fits a terminal, long texts and headings go over several lines, and many columns over
    several blocks, each with the texts that the table begins with.
    """
    numeric, shown = _numeric(table), _shown(table)
    longest = [max([_HEADING, *(len(row[i]) for row in shown)]) for i in range(len(numeric))]
    limits = [wide if n else min(wide, _CELL) for wide, n in zip(longest, numeric, strict=True)]
    rows = [[_wrapped(c, w) for c, w in zip(row, limits, strict=True)] for row in (table.columns, *shown)]
    widths = [max(len(line) for row in rows for line in row[i]) for i in range(len(numeric))]

    def lines(row: list[list[str]], block: list[int]) -> list[str]:
        return [
            "  ".join(f"{cells[i]:>{widths[i]}}" if numeric[i] else f"{cells[i]:<{widths[i]}}" for i in block)
            .rstrip()
            for cells in zip_longest(*row, fillvalue="")
        ]  # fmt: skip

    blocks = []
    for block in _blocks(widths, numeric.index(True) if True in numeric else 0):
        rule = "-" * _width(widths, block)
        body = [
            line
            for i, row in enumerate(rows[1:])
            for line in ([""] if i in table.breaks else []) + lines(row, block)
        ]
        blocks += ["", *lines(rows[0], block), rule, *body, rule]
    remarks = [line for text in _remarks(table) for line in textwrap.wrap(text, _WIDTH)]
    return "\n".join([table.title, *blocks, *remarks, ""])


def _width(widths: list[int], block: list[int]) -> int:
    return sum(widths[i] for i in block) + 2 * (len(block) - 1)


def _blocks(widths: list[int], lead: int) -> list[list[int]]:
    """Columns of each block, as many in each as in the others; the ``lead`` first are in all of them.

    Without such, which tell what a row is about, all columns stay in one block, however wide.
    """
    rest = list(range(lead, len(widths)))
    for count in range(1, len(rest) + 1 if lead else 1):
        size = -(-len(rest) // count)
        blocks = [[*range(lead), *rest[i : i + size]] for i in range(0, len(rest), size)]
        if all(_width(widths, block) <= _WIDTH for block in blocks):
            return blocks
    return [list(range(len(widths)))]


def _wrapped(cell: str, width: int) -> list[str]:
    """Lines of a cell; a unit stays with the word before it."""
    lines = textwrap.wrap(_bound(cell, "\0"), width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _bound(cell: str, space: str) -> str:
    """The blanks before units as another character, at which no line breaks."""
    return cell.replace(" (°)", f"{space}(°)").replace(" (%)", f"{space}(%)").replace(" %", f"{space}%")


def _markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"

    rule = "|" + "|".join("---:" if n else "---" for n in _numeric(table)) + "|"
    rows = [line(table.columns), rule, *map(line, _shown(table))]
    remarks = [part for text in _remarks(table) for part in ("", text)]
    return "\n".join([f"### {table.title}", "", *rows, *remarks, ""])


def _csv(table: Table) -> str:
    file = io.StringIO()
    for text in (table.title, *_remarks(table)):
        file.write("# " + " ".join(text.split()) + "\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow(map(_csv_cell, row))
    return file.getvalue()


def _csv_cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _latex(table: Table) -> str:
    def escaped(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))

    def line(cells: Iterable[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    layout = "".join("r" if n else "l" for n in _numeric(table))
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{layout}}}", r"\hline", line(table.columns), r"\hline",
            *((r"\hline " if i in table.breaks else "") + line(row) for i, row in enumerate(_shown(table))),
            r"\hline", r"\end{tabular}",
            *(rf"\par\footnotesize {escaped(text)}" for text in _remarks(table)), r"\end{table}", "",
        ]
    )  # fmt: skip


def _html(table: Table) -> str:
    shown = _shown(table)
    longest = [max((len(row[i]) for row in shown), default=0) for i in range(len(table.columns))]
    # Classes for the page's style: numbers, and text so short that it should stay on a line.
    kinds = [
        ' class="n"' if n else ' class="s"' if w <= _SHORT else ""
        for n, w in zip(_numeric(table), longest, strict=True)
    ]

    def line(tag: str, cells: Iterable[str]) -> str:
        filled = (
            f"<{tag}{k}>{_bound(html.escape(c), '&nbsp;')}</{tag}>" for k, c in zip(kinds, cells, strict=True)
        )
        return "<tr>" + "".join(filled) + "</tr>"

    body = "\n".join(line("td", row) for row in shown)
    remarks = "".join(f"<p>{html.escape(text)}</p>" for text in _remarks(table))
    return (
        f'<figure class="table"><figcaption>{html.escape(table.title)}</figcaption>\n<table>\n'
        f"<thead>{line('th', table.columns)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        f'<div class="remarks">{remarks}</div></figure>\n'
    )


_WRITERS = {"txt": _text, "md": _markdown, "csv": _csv, "tex": _latex, "html": _html}
