"""``python -m benchmarks.readme RESULTS.json``: puts the rows of a full run into the README's table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.__main__ import SUITES
from benchmarks.metrics import ROOT, Row, read_rows

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the table; returns 2 with a sentence where rows or README are not what they should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="MD")
    given = parser.parse_args(arguments)
    try:
        text = filled(given.readme.read_text(encoding="utf-8"), table(read_rows(given.results)))
    except (OSError, ValueError) as error:
        print(f"benchmarks: {given.results} can't go into {given.readme}: {error}", file=sys.stderr)
        return 2
    temporary = given.readme.with_name(f".{given.readme.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, given.readme)
    return 0


def table(rows: Mapping[str, Row]) -> str:
    """A Markdown table of the rows, and below it where and with what they were measured.

    Raises:
        ValueError: no row has a value, a row is of a quick run, or rows of several origins are mixed.
    """
    measured = {key: row for key, row in rows.items() if row.get("value") is not None}
    if not measured:
        raise ValueError("no row has a value")
    if any(row.get("quick") for row in rows.values()):
        raise ValueError("they are of a quick run, which measures nothing")
    origins = [(row["machine"], row["versions"], row["commit"]) for row in measured.values()]
    if any(origin != origins[0] for origin in origins):
        raise ValueError("rows of several machines, versions or commits are mixed")
    lines = ["| row | value | unit | bar | measured on |", "|---|---:|---|---|---|"]
    lines += [
        f"| `{key}` | {_shown(row['value'])} | {row['unit']} | {_bar(key, row['value'])} | {_data(row)} |"
        for key, row in measured.items()
    ]
    machine, versions, commit = origins[0]
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}; {used}; commit {commit}.",
    ]
    if missing := [
        f"`{key}` ({row.get('skipped') or row.get('failed')})"
        for key, row in rows.items()
        if key not in measured
    ]:
        lines += ["", f"Without a value: {', '.join(missing)}."]
    return "\n".join(lines)


def _shown(value: float) -> str:
    """Three digits, whole numbers whole; more where rounding would make a ratio 1."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}" if 0 < abs(value - 1) < 0.01 else f"{value:.3g}"


def _bar(key: str, value: float) -> str:
    """What the project promises for a row, where it promises something, and whether that is missed."""
    suite = SUITES.get(key.partition("/")[0])
    if suite is None:
        return ""
    metric = suite.metric(key)
    if metric.bar is None:
        return ""
    missed = "" if metric.meets_bar(value) else ", **missed**"
    return f"{'≥' if metric.direction == 'higher' else '≤'} {metric.bar:g}{missed}"


def _data(row: Row) -> str:
    return " ".join(str(row.get("data", "")).split()).replace("|", "\\|")


def filled(text: str, content: str) -> str:
    """``text`` with ``content`` between its two marks.

    Raises:
        ValueError: the marks are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"it needs '{BEGIN}' and below it '{END}', once each")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    sys.exit(main())
