"""What the benchmarks measure, how a number is made, and when one fails.

**How a number is made.** Everything is called once before it is timed, so that compiling, paging and filling
caches are not in it; what starting costs has rows of its own. Then it is timed at least five times and the
least time counts: on a shared machine, noise only ever adds time, so the minimum is the statistic that
repeats, where the mean measures the neighbours. Peers (MuJoCo's C library, OpenSim, our own solve beside its
gradient) take turns with what they are held against, round by round in one run: a machine that slows down
half-way slows both. Peers that have no batches are given their cheapest loop, without reading results that
they would compute only on request. Accuracies are computed in float64, whatever solved, by one function for
both sides.

**What gates.** Accuracies and ratios, against the rows of ``baseline.json``, each with the tolerance that its
`Metric` gives as a share of the baseline's value. Frames per second, seconds and megabytes are shown with
their bars and never gate: they belong to one machine, and a slower runner is no regression. A ratio of times
is steadier, but cores and vector units move it too, so it is compared only with a baseline of the same
processor, number of cores and accelerator; accuracies are compared everywhere. An accuracy better than its
bar by a factor of ten is not held to its tolerance: whether rounding errors add up to 2e-14 or 6e-14 m says
nothing when 1e-9 is wanted.

**Rows.** Each is ``{key, value, unit, machine, versions, commit}`` with ``data`` (real or synthetic, and
which), ``note`` and, where useful, ``detail``. What can't be measured here has the value null and says why
in ``skipped``; what went wrong says so in ``failed``, and fails the run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "jax", "jaxlib", "mujoco", "mujoco-mjx", "opensim", "simspine-jax",
    "tensorflow-datasets", "array-record", "grain", "h5py", "tensorflow-cpu",
)  # fmt: skip
# So much better than its bar, a value is free to move.
COMFORT = 10.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A number that the benchmarks give.

    Attributes:
        key: ``suite/name``, or ``part/name`` of a part of a suite; a last part ``*`` stands for several rows
            (a trial, a batch size).
        unit: of the value.
        direction: which way is better.
        tolerance: how much worse than the baseline is still accepted, as a share of the baseline's value;
            None for what belongs to one machine and doesn't gate.
        bar: what the project promises; None where it promises nothing.
        note: what is measured, in a sentence.
        is_timing: whether the value depends on the machine.
    """

    key: str
    unit: str
    direction: Literal["higher", "lower"]
    tolerance: float | None
    bar: float | None
    note: str
    is_timing: bool = False

    def meets_bar(self, value: float) -> bool | None:
        """Whether ``value`` keeps the promise; None where there is none."""
        if self.bar is None:
            return None
        return value >= self.bar if self.direction == "higher" else value <= self.bar

    def is_worse(self, value: float, baseline: float) -> bool:
        """Whether ``value`` is worse than the baseline by more than the tolerance."""
        if self.tolerance is None or self._is_comfortable(value):
            return False
        margin = self.tolerance * abs(baseline)
        if self.direction == "higher":
            return not value >= baseline - margin
        return not value <= baseline + margin

    def _is_comfortable(self, value: float) -> bool:
        if self.bar is None or self.is_timing:
            return False
        return value >= COMFORT * self.bar if self.direction == "higher" else 0 <= value <= self.bar / COMFORT


@dataclass(frozen=True)
class Measurement:
    """What a workload yields: a value, what it was measured on, and what else the row should say."""

    key: str
    value: float
    data: str
    note: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


class SkippedError(Exception):
    """A workload can't run here; its message is the reason."""


@dataclass(frozen=True)
class Workload:
    """Computes some keys: ``run`` takes the suite's context and yields each `Measurement` when it has it."""

    keys: tuple[str, ...]
    run: Callable[[Any], Iterator[Measurement]]


@dataclass(frozen=True)
class Suite:
    """Metrics, the workloads that give them, and what the workloads share."""

    name: str
    metrics: tuple[Metric, ...]
    workloads: tuple[Workload, ...]
    make_context: Callable[..., Any]

    @property
    def prefixes(self) -> frozenset[str]:
        """First parts of its keys: its name, and those of its parts."""
        return frozenset(metric.key.partition("/")[0] for metric in self.metrics)

    def metric(self, key: str) -> Metric:
        """The metric of a row: the one of its key, or else of the pattern that stands for it."""
        for metric in sorted(self.metrics, key=lambda m: m.key.endswith("*")):
            if metric.key == key or fnmatchcase(key, metric.key):
                return metric
        raise KeyError(f"{key} is no metric of the suite {self.name}")


def late(module: str, name: str, **options: Any) -> Callable[..., Any]:
    """A function or class of ``benchmarks``, whose module, and with it JAX, is imported when it is called."""

    def call(*arguments: Any, **more: Any) -> Any:
        return getattr(importlib.import_module(f"benchmarks.{module}"), name)(*arguments, **options, **more)

    return call


def suite_of(suites: Iterable[Suite], key: str) -> Suite:
    """The suite that a row is of.

    Raises:
        KeyError: none of them has such keys.
    """
    for suite in suites:
        if key.partition("/")[0] in suite.prefixes:
            return suite
    raise KeyError(f"{key} is of none of the suites")


def selects(only: Sequence[str], key: str) -> bool:
    """Whether a key is among those asked for; nothing asked for means all.

    Either may be a pattern: of the metrics, some of whose rows may be asked for, or of the user.
    """
    return not only or any(
        key.startswith(f"{wanted}/") or fnmatchcase(wanted, key) or fnmatchcase(key, wanted)
        for wanted in only
    )


@dataclass(frozen=True)
class Provenance:
    """Where and with what rows were measured."""

    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: str

    def row(self, metric: Metric, key: str, value: float | None, **more: Any) -> Row:
        """A row with this provenance; empty fields are left out."""
        row: Row = {"key": key, "value": value, "unit": metric.unit}
        row |= {"machine": self.machine, "versions": self.versions, "commit": self.commit}
        return row | {name: content for name, content in more.items() if content}


def provenance() -> Provenance:
    """Of this process; starts JAX."""
    import jax

    device = jax.devices()[0]
    machine = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device.device_kind,
        "platform": device.platform,
    }
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return Provenance(machine, versions, commit())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def commit() -> str:
    """The commit of the checkout, with ``-dirty`` where tracked files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows whole or not at all: a reader never sees half a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by key.

    Raises:
        ValueError: the file is no list of rows.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "key" in row for row in rows):
        raise ValueError("it is no list of rows with keys")
    return {row["key"]: row for row in rows}


def regression(metric: Metric, row: Row, baseline: Row | None) -> str:
    """Why the row fails against the baseline, in a sentence; empty where it doesn't."""
    if row["value"] is None or baseline is None or baseline.get("value") is None:
        return ""
    if metric.is_timing and row["machine"] != baseline.get("machine"):
        return ""
    value, before = row["value"], baseline["value"]
    if not metric.is_worse(value, before):
        return ""
    accepted = f"the accepted change is {100 * (metric.tolerance or 0):g} %"
    return f"{row['key']} is {value:.4g} where the baseline has {before:.4g}; {accepted}"


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each function, warmed up, over rounds in which they take turns."""
    import time

    for function in functions.values():
        function()
    best = dict.fromkeys(functions, math.inf)
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def format_table(suites: Iterable[Suite], rows: Sequence[Row]) -> str:
    """The rows for reading: value, unit, bar and whether it is met, and what was measured on."""
    suites = list(suites)
    lines = [("key", "value", "unit", "bar", "", "data")]
    for row in rows:
        metric = suite_of(suites, row["key"]).metric(row["key"])
        sign = ">=" if metric.direction == "higher" else "<="
        bar = f"{sign} {metric.bar:g}" if metric.bar is not None else ""
        lines.append((row["key"], _value(row["value"]), row["unit"], bar, _verdict(metric, row), _basis(row)))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    right = {1, 3}
    text = []
    for line in lines:
        cells = [
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=False))
        ]
        text.append("  ".join([*cells, line[5]]).rstrip())
    return "\n".join(text)


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _verdict(metric: Metric, row: Row) -> str:
    if row.get("failed"):
        return "FAILED"
    if row["value"] is None:
        return "skipped"
    if row.get("quick"):
        return "quick"
    met = metric.meets_bar(row["value"])
    return "" if met is None else ("met" if met else "MISSED")


def _basis(row: Row) -> str:
    return row.get("failed") or row.get("skipped") or row.get("data", "")
