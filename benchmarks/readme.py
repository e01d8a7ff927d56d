"""``python -m benchmarks.readme RESULTS.json…``: puts the rows of full runs into the README and RESULTS.md.

The README shows, for each suite, the rows that promise something, of several cases the worst;
``benchmarks/RESULTS.md`` shows all. Of a suite that was measured in parts, give a file for each: each has its
own table, with the machine and the commit that it is of. Suites that no file is of stay as they are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from benchmarks.__main__ import SUITES
from benchmarks.metrics import ROOT, Row, Suite, read_rows, suite_of

BEGIN, END = "<!-- benchmark:{}:begin -->", "<!-- benchmark:{}:end -->"
ALL = Path(__file__).with_name("RESULTS.md")
TITLE = "# All rows\n\nWritten by `python -m benchmarks.readme`; see `metrics.py`."


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the tables; returns 2 with a sentence where rows or README are not what they should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS.json",
        help="of one suite each",
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="MD")
    parser.add_argument("--all", type=Path, default=ALL, metavar="MD", help="gets all rows")
    given = parser.parse_args(arguments)
    try:
        text = given.readme.read_text(encoding="utf-8")
        parts = _parts(given.results)
        sections = _sections(given.all)
        for name, tables in parts.items():
            suite = SUITES[name]
            promised = [kept for rows in tables if (kept := _promises(suite, rows))]
            text = filled(text, name, "\n\n".join(table(rows) for rows in promised))
            sections[name] = "\n\n".join(table(rows) for rows in tables)
    except (OSError, ValueError) as error:
        print(f"benchmarks: the rows can't go into {given.readme}: {error}", file=sys.stderr)
        return 2
    everything = "\n\n".join([TITLE, *(f"## {name}\n\n{section}" for name, section in sections.items())])
    for target, content in ((given.readme, text), (given.all, everything + "\n")):
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, target)
    return 0


def _sections(path: Path) -> dict[str, str]:
    """What the file of all rows says of each suite; nothing where there is no such file."""
    if not path.exists():
        return {}
    _, *parts = path.read_text(encoding="utf-8").split("\n## ")
    return {name.strip(): body.strip() for name, _, body in (part.partition("\n") for part in parts)}


def _parts(paths: Sequence[Path]) -> dict[str, list[dict[str, Row]]]:
    """The rows of each file by suite; what has no value in one and has one in another is left out there.

    Raises:
        OSError: a file can't be read.
        ValueError: it has no rows, rows of several suites, or a row that another file has too.
    """
    found: dict[str, list[dict[str, Row]]] = {}
    for path in paths:
        try:
            rows = read_rows(path)
            found.setdefault(_suite_of(rows).name, []).append(dict(rows))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for tables in found.values():
        counts = Counter(key for rows in tables for key, row in rows.items() if row.get("value") is not None)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise ValueError(f"{twice[0]} is in two files; valid is one")
        for rows in tables:
            for key in [k for k, row in rows.items() if row.get("value") is None and k in counts]:
                del rows[key]
    return {name: [rows for rows in tables if rows] for name, tables in found.items()}


def _suite_of(rows: Mapping[str, Row]) -> Suite:
    names = {key.partition("/")[0] for key in rows}
    for suite in SUITES.values():
        if names and names <= suite.prefixes:
            return suite
    raise ValueError(f"its rows are of {sorted(names)}; valid are those of one suite")


def _promises(suite: Suite, rows: Mapping[str, Row]) -> dict[str, Row]:
    """Rows with a bar; a row of one case is left out where there is one of the worst of its cases."""
    return {
        key: row
        for key, row in rows.items()
        if suite.metric(key).bar is not None and not (key.count("/") > 1 and key.rpartition("/")[0] in rows)
    }


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
    letters = _letters([_data(row) for row in measured.values()])
    lines += [
        f"| `{key}` | {_shown(row['value'])} | {row['unit']} | {_bar(key, row['value'])} | "
        f"{letters.get(_data(row), _data(row))} |"
        for key, row in measured.items()
    ]
    machine, versions, commit = origins[0]
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if letters:
        lines += ["", *(f"- **{letter}:** {data}" for data, letter in letters.items())]
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


def _letters(data: Sequence[str]) -> dict[str, str]:
    """A letter for each text that stands in several rows, so that it is read once, below the table."""
    repeated = [text for text, count in Counter(data).items() if count > 1 and text]
    return {text: ascii_uppercase[i] for i, text in enumerate(repeated[: len(ascii_uppercase)])}


def _shown(value: float) -> str:
    """Three digits, whole numbers whole; more where rounding would make a ratio 1."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}" if 0 < abs(value - 1) < 0.01 else f"{value:.3g}"


def _bar(key: str, value: float) -> str:
    """What the project promises for a row, where it promises something, and whether that is missed."""
    try:
        suite = suite_of(SUITES.values(), key)
    except KeyError:
        return ""
    metric = suite.metric(key)
    if metric.bar is None:
        return ""
    missed = "" if metric.meets_bar(value) else ", **missed**"
    return f"{'≥' if metric.direction == 'higher' else '≤'} {metric.bar:g}{missed}"


def _data(row: Row) -> str:
    return " ".join(str(row.get("data", "")).split()).replace("|", "\\|")


def filled(text: str, suite: str, content: str) -> str:
    """``text`` with ``content`` between the suite's two marks.

    Raises:
        ValueError: the marks are not there once each, in order.
    """
    begin, end = BEGIN.format(suite), END.format(suite)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"it needs '{begin}' and below it '{end}', once each")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    sys.exit(main())
