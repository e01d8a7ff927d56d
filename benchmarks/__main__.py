"""``python -m benchmarks SUITE… [--json FILE]``: measures, writes rows, and fails where one became worse."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import dataset, detection, fitting, kinematics, lifting, pipeline
from benchmarks.metrics import (
    Measurement,
    Provenance,
    Row,
    SkippedError,
    Suite,
    Workload,
    format_table,
    provenance,
    read_rows,
    regression,
    selects,
    write_rows,
)

_PARTS = (kinematics, pipeline, dataset, lifting, detection, fitting)
SUITES = {part.SUITE.name: part.SUITE for part in _PARTS}
BASELINE = Path(__file__).with_name("baseline.json")
REGRESSED, BAD_USAGE = 1, 2


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong."""

    def error(self, message: str):  # type: ignore[override]
        print(f"benchmarks: {message}", file=sys.stderr)
        raise SystemExit(BAD_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs suites; returns the exit status: 1 where a row failed or became worse, 2 for wrong arguments."""
    given = _parse(arguments)
    if given.list:
        for suite in given.suites:
            for metric in suite.metrics:
                gate = "" if metric.tolerance is None else f" (gated, {100 * metric.tolerance:g} %)"
                print(f"{metric.key:50} {metric.unit:10} {metric.note}{gate}")
        return 0
    baseline = read_rows(given.compare) if given.compare is not None else {}
    _settle_jax()
    origin = provenance()
    rows: list[Row] = []
    problems: list[str] = []
    for suite in given.suites:
        context = suite.make_context(quick=given.quick, model=given.model)
        for row in _rows(suite, context, given.only, origin):
            rows.append(row | ({"quick": True} if given.quick else {}))
            if given.json is not None:
                write_rows(given.json, rows)
            worse = regression(suite.metric(row["key"]), row, baseline.get(row["key"]))
            problems += [
                text
                for text in (row.get("failed") and f"{row['key']} failed: {row['failed']}", worse)
                if text
            ]
            _tell(row)
    if given.write_baseline and not problems:
        write_rows(BASELINE, [row for row in rows if row["value"] is not None])
    print(format_table(given.suites, rows))
    machine, versions = origin.machine, origin.versions
    print(f"on {machine['cpu']}, {machine['cores']} cores, {machine['device']}; commit {origin.commit}")
    print(", ".join(f"{name} {version}" for name, version in versions.items() if version))
    for problem in problems:
        print(f"benchmarks: {problem}", file=sys.stderr)
    return REGRESSED if problems else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="+", metavar="SUITE", help=f"one of: {', '.join(SUITES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, after each one")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="KEY", help="only these rows; suite and parts may be *"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the code, measures nothing")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="fail where a gated row is worse than in this file"
    )
    parser.add_argument(
        "--write-baseline", action="store_true", help=f"write {BASELINE.name} from a full run"
    )
    parser.add_argument(
        "--model", type=Path, metavar="XML", help="the converted spine model, where OpenSim is not installed"
    )
    parser.add_argument("--list", action="store_true", help="list the metrics and measure nothing")
    given = parser.parse_args(arguments)
    for name in given.suites:
        if name not in SUITES:
            parser.error(f"there is no suite '{name}'; valid are {', '.join(SUITES)}")
    given.suites = [SUITES[name] for name in dict.fromkeys(given.suites)]
    given.only = [_full_key(parser, given.suites, key) for key in given.only]
    if given.quick and (given.compare is not None or given.write_baseline):
        parser.error("--quick measures nothing that could be compared or kept; leave it out")
    if given.write_baseline and given.only:
        parser.error("--write-baseline keeps all rows; leave --only out")
    if given.compare is not None:
        try:
            read_rows(given.compare)
        except (OSError, ValueError) as error:
            parser.error(
                f"{given.compare} can't be read ({error}); give rows that --json or --write-baseline wrote"
            )
    if given.model is not None and not given.model.is_file():
        parser.error(f"there is no file {given.model}; give the .xml of a converted spine model")
    return given


def _full_key(parser: _Parser, suites: Sequence[Suite], key: str) -> str:
    """The key, or pattern, with its suite; a row's own key is also taken where the metric is a pattern."""
    for suite in suites:
        for full in (key, f"{suite.name}/{key}"):
            if any(selects([full], metric.key) for metric in suite.metrics):
                return full
    valid = ", ".join(metric.key for suite in suites for metric in suite.metrics)
    parser.error(f"there is no row '{key}'; valid are {valid}")


def _settle_jax() -> None:
    """Default precision, and the compile cache of the command line: rows time what comes after compiling."""
    from simspine_jax.assets import cache_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    import jax

    jax.config.update("jax_enable_x64", False)


def _forget_programs() -> None:
    """Lets go of compiled programs: each takes mappings of memory, of which a process has so many."""
    import jax

    jax.clear_caches()


def _rows(suite: Suite, context, only: Sequence[str], origin: Provenance) -> Iterator[Row]:
    """The rows of all workloads that give something asked for; null where one can't run or breaks."""
    for workload in suite.workloads:
        wanted = [key for key in workload.keys if selects(only, key)]
        if wanted:
            print(f"measuring {', '.join(wanted)}", file=sys.stderr, flush=True)
            yield from _measured(suite, workload, wanted, context, only, origin)
            _forget_programs()


def _measured(
    suite: Suite, workload: Workload, wanted: Sequence[str], context, only: Sequence[str], origin: Provenance
) -> Iterator[Row]:
    given: set[str] = set()
    reason: dict[str, str] = {}
    began = time.perf_counter()
    try:
        for m in workload.run(context):
            given.add(m.key)
            if selects(only, m.key):
                yield _row(suite, m, origin)
    except SkippedError as why:
        reason = {"skipped": str(why)}
    except Exception as error:  # the rows of the other workloads are not to be lost
        traceback.print_exc()
        reason = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    if reason:
        for key in wanted:
            # A pattern has no end that could be known, so what broke is told even after some of its rows.
            if key not in given:
                yield origin.row(suite.metric(key), key, None, **reason)
    print(f"  took {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def _row(suite: Suite, m: Measurement, origin: Provenance) -> Row:
    metric = suite.metric(m.key)
    value, failed = (
        (float(m.value), m.failed)
        if math.isfinite(m.value)
        else (None, m.failed or f"the value is {m.value}")
    )
    return origin.row(
        metric,
        m.key,
        value,
        data=m.data,
        note=" ".join(t for t in (metric.note, m.note) if t),
        detail=m.detail,
        failed=failed,
    )


def _tell(row: Row) -> None:
    value = "-" if row["value"] is None else f"{row['value']:.6g} {row['unit']}"
    print(
        f"  {row['key']} {value} {row.get('failed') or row.get('skipped') or ''}".rstrip(),
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
