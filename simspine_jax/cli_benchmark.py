"""The command ``simspine benchmark``: the paper's Tables 3 to 6, and the spine's angles, for a dataset."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax.cli_parsing import add_output
from simspine_jax.cli_training import RUNS, left_behind, load_spine, with_bar
from simspine_jax.errors import MissingDependencyError, SimspineError, listed
from simspine_jax.tables import TABLE_FORMATS

if TYPE_CHECKING:
    from simspine_jax.clip_trials import ClipSet
    from simspine_jax.datasets import ClipSequence
    from simspine_jax.evaluation.lifters import LifterErrors
    from simspine_jax.evaluation.multiview import Comparison, Method, MultiViewErrors, Pair, Source2D
    from simspine_jax.evaluation.tables import About
    from simspine_jax.tables import Table
    from simspine_jax.training.run import Run

Note = Callable[[str], None]

ANGLES = "angles"
TABLES = (3, 4, 5, 6, ANGLES)
_MULTIVIEW: set[int | str] = {3, 4, ANGLES}
_LIFTING: set[int | str] = {5, 6, ANGLES}
_SOURCES: tuple[Source2D, ...] = ("truth", "detected", "zero_shot")
_METHODS: tuple[Method, ...] = ("weighted", "linear", "robust", "model")
_DEFAULT_METHODS: tuple[Method, ...] = ("weighted", "robust", "model")

_NEEDS = {
    "sources": ("--2d", _MULTIVIEW),
    "methods": ("--methods", _MULTIVIEW),
    "zero_shot_data_dir": ("--zero-shot-data-dir", _MULTIVIEW),
    "runs": ("--runs", _LIFTING),
    "input": ("--input", _LIFTING),
    "train": ("--train", _LIFTING),
}
"""Options, and the tables without which they have no effect."""


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine benchmark`` takes."""
    parser.add_argument("--config", default="synthetic", metavar="C", help="of the dataset (synthetic)")
    parser.add_argument("--split", default="test", metavar="S", help="of the dataset (test)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets (TensorFlow Datasets' own)")
    parser.add_argument("--subjects", nargs="+", default=[], metavar="S", help="only these (all)")
    parser.add_argument("--actions", nargs="+", default=[], metavar="A", help="only these (all)")
    parser.add_argument(
        "--tables", nargs="+", type=_table, choices=TABLES, default=TABLES, metavar="T",
        help="3 and 4: multi-view MPJPE and P-MPJPE; 5 and 6: monocular lifting; angles: of vertebrae, "
        "curvature and joint limits, of methods with a body (all)",
    )  # fmt: skip

    views = parser.add_argument_group("tables 3 and 4")
    views.add_argument("--2d", dest="sources", nargs="+", choices=_SOURCES, metavar="2D", help=(
        f"2D keypoints: {', '.join(_SOURCES)} (all)"))  # fmt: skip
    views.add_argument("--methods", nargs="+", choices=_METHODS, metavar="M", help=(
        f"{', '.join(_METHODS)} ({' '.join(_DEFAULT_METHODS)})"))  # fmt: skip
    views.add_argument("--zero-shot-data-dir", type=Path, metavar="DIR", help=(
        "of the same dataset with the keypoints of a detector that was not trained for it (synthetic trials "
        "have a simulated one)"))  # fmt: skip

    lifters = parser.add_argument_group("tables 5 and 6")
    lifters.add_argument("--runs", type=Path, metavar="DIR", help=(
        f"trainings are the folders below with a run.json ({RUNS})"))  # fmt: skip
    lifters.add_argument(
        "--input", choices=("detected", "truth"), help="2D keypoints (those of each training)"
    )
    lifters.add_argument("--train", action="store_true", help=(
        "first train into --runs what is missing of the package's four lifters on both 2D: hours, resuming"
    ))  # fmt: skip

    output = parser.add_argument_group("output")
    output.add_argument("--format", nargs="+", choices=TABLE_FORMATS, metavar="F", help=(
        f"{', '.join(TABLE_FORMATS)}: the first is printed (txt), all are written (all)"))  # fmt: skip
    add_output(output, metavar="DIR", help="also write each table there as soon as it is measured")
    output.add_argument("--no-paper", action="store_true", help="leave out the paper's own rows")
    output.add_argument("--quiet", action="store_true", help="print tables and failures only")


def _table(word: str) -> int | str:
    return int(word) if word.isdecimal() else word


def benchmark(arguments: argparse.Namespace, note: Note) -> int:
    """Prints the tables.

    Raises:
        SimspineError: an option has no effect, there is no such dataset, split, subject or action, a file
            can't be written, or nothing is there to make a table of.
    """
    wanted = set(arguments.tables)
    _check_effect(arguments, wanted)
    _need_training()
    work = _Work.open(arguments, note)
    try:
        if wanted & _MULTIVIEW:
            _multiview(work, wanted)
        if wanted & _LIFTING:
            _lifting(work, wanted)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(*interrupt.args, work.kept()) from None
    if not work.written:
        raise SimspineError("; ".join(work.missing))
    for reason in work.missing:
        note(reason)
    if arguments.out is not None:
        work.note(f"{', '.join(sorted(work.written))} in {arguments.out}")
    return 0


def _need_training() -> None:
    """Lifters need packages that multi-view reconstruction doesn't."""
    import importlib.util

    for package in ("flax", "optax", "orbax"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "training", "simspine benchmark")


def _check_effect(arguments: argparse.Namespace, wanted: set[int | str]) -> None:
    for name, (option, tables) in _NEEDS.items():
        if getattr(arguments, name) and not wanted & tables:
            valid = " or ".join(map(str, _ordered(tables)))
            raise SimspineError(
                f"{option} has no effect without table {valid}; valid is --tables with one of them"
            )
    if wanted == {ANGLES} and arguments.methods and "model" not in arguments.methods:
        raise SimspineError("--tables angles needs a method with a body; valid is model among --methods")
    sources = arguments.sources or _SOURCES
    if arguments.zero_shot_data_dir is not None and "zero_shot" not in sources:
        raise SimspineError("--zero-shot-data-dir has no effect without --2d zero_shot")
    if arguments.runs is not None and not arguments.runs.is_dir() and not arguments.train:
        raise SimspineError(
            f"--runs is '{arguments.runs}', and there is no such folder; valid is one of trainings"
        )


@dataclass(eq=False)
class _Work:
    """A benchmark on its way: the data, and what becomes of its tables."""

    arguments: argparse.Namespace
    trials: ClipSet
    clips: ClipSequence
    about: About
    zero_shot: ClipSet | None
    tell: Note
    written: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, arguments: argparse.Namespace, note: Note) -> _Work:
        """Looks through the clips, and sees that files can be written."""
        from simspine_jax.evaluation.lifters import ChosenClips
        from simspine_jax.evaluation.views import check_second
        from simspine_jax.io.files import make_folder

        if arguments.out is not None:
            make_folder(arguments.out)
        everything, trials = _selected(arguments, arguments.data_dir)
        places = sorted(place for trial in trials.trials for place in trial.places)
        clips = everything if len(places) == len(everything) else ChosenClips(everything, places)
        zero_shot = None
        if arguments.zero_shot_data_dir is not None:
            zero_shot = _selected(arguments, arguments.zero_shot_data_dir)[1]
            check_second(trials, zero_shot)  # before all else is measured
        return cls(arguments, trials, clips, _about(arguments, trials, clips), zero_shot, note)

    def note(self, text: str) -> None:
        """Tells something, unless nothing but tables is wanted."""
        if not self.arguments.quiet:
            self.tell(text)

    def write(self, tables: Sequence[Table]) -> None:
        """Writes tables where files are wanted, in place of older ones."""
        from simspine_jax.io.files import atomic_write
        from simspine_jax.tables import format_table

        if self.arguments.out is not None:
            for table in tables:
                for kind in self.arguments.format or TABLE_FORMATS:
                    with atomic_write(self.arguments.out / f"{table.name}.{kind}") as file:
                        file.write(format_table(table, kind))
        self.written += [table.name for table in tables if table.name not in self.written]

    def show(self, tables: Sequence[Table]) -> None:
        """Prints tables."""
        from simspine_jax.tables import format_table

        kind = (self.arguments.format or ("txt",))[0]
        for table in tables:
            print(format_table(table, kind), flush=True)

    def kept(self) -> str:
        """What an interrupt leaves."""
        if self.arguments.out is None:
            return "what was measured is printed above; with -o each table is kept when it is measured"
        if not self.written:
            return f"no table was finished in {self.arguments.out}"
        return f"{', '.join(sorted(self.written))} in {self.arguments.out} have what was finished"


def _selected(arguments: argparse.Namespace, data_dir: Path | None) -> tuple[ClipSequence, ClipSet]:
    """All clips of the split, and the trials that are asked for."""
    from simspine_jax.clip_trials import ClipSet
    from simspine_jax.datasets import open_clips

    clips = open_clips(arguments.config, arguments.split, data_dir)
    with _bar(arguments, len(clips), "clip", "looking through clips") as bar:
        found = ClipSet.of(clips, bar.update)
    return clips, found.select(arguments.subjects or None, arguments.actions or None)


def _about(arguments: argparse.Namespace, trials: ClipSet, clips: ClipSequence) -> About:
    from simspine_jax.datasets.records import DATASET
    from simspine_jax.evaluation.lifters import target_of_clips
    from simspine_jax.evaluation.tables import About
    from simspine_jax.training.evaluation import commit

    subjects = tuple(dict.fromkeys(trial.subject for trial in trials.trials))
    synthetic, count = sum(trial.is_synthetic for trial in trials.trials), len(trials.trials)
    some = f"{synthetic} of {count} trials are synthetic captures: computed, not measured on people."
    return About(
        f"{DATASET}/{arguments.config}", arguments.split, subjects, synthetic == count,
        target_of_clips(clips), commit(), (some,) if 0 < synthetic < count else (),
    )  # fmt: skip


def _bar(arguments: argparse.Namespace, total: int, unit: str, what: str) -> Any:
    from tqdm import tqdm

    hidden = arguments.quiet or not sys.stderr.isatty()
    return tqdm(total=total, unit=unit, desc=what, disable=hidden, leave=False)


# --- tables 3 and 4 ---


def _multiview(work: _Work, wanted: set[int | str]) -> None:
    """Measures one kind of 2D after the other, and writes the tables anew after each."""
    from simspine_jax.evaluation.multiview import evaluate_multiview

    sources = tuple(dict.fromkeys(work.arguments.sources or _SOURCES))
    methods = tuple(dict.fromkeys(work.arguments.methods or _DEFAULT_METHODS))
    each = len(work.trials.trials) * len(methods)
    found: list[MultiViewErrors] = []
    tables: list[Table] = []
    bar = _bar(work.arguments, each * len(sources), "trial", "multi-view")
    try:
        for number, source in enumerate(sources):
            bar.set_postfix_str(f"2D {source}")

            def progress(done: int, _: int, first: int = number * each) -> None:
                bar.update(first + done - bar.n)

            found.append(
                evaluate_multiview(
                    work.trials,
                    sources=(source,),
                    methods=methods,
                    zero_shot=work.zero_shot,
                    progress=progress,
                )
            )
            bar.update((number + 1) * each - bar.n)  # what is left out takes no steps
            tables = _multiview_tables(work, wanted, found, sources[number + 1 :])
            work.write(tables)
    finally:
        bar.close()
        work.show(tables)
    if not tables:
        named = _named(wanted & {3, 4} or {ANGLES})
        work.missing.append(f"{named} left out: {' '.join(_left_out(found))}")


def _named(tables: set[int | str]) -> str:
    """``tables 5, 6 and angles are``."""
    *first, last = map(str, _ordered(tables))
    return f"tables {', '.join(first)} and {last} are" if first else f"table {last} is"


def _ordered(tables: set[int | str]) -> list[int | str]:
    return [table for table in TABLES if table in tables]


def _multiview_tables(
    work: _Work, wanted: set[int | str], found: Sequence[MultiViewErrors], to_come: Sequence[str]
) -> list[Table]:
    from simspine_jax.evaluation.multiview import BASELINE
    from simspine_jax.evaluation.tables import angle_tables, comparison_table, multiview_tables

    errors = {pair: of for one in found for pair, of in one.errors.items()}
    if not errors:
        return []
    remarks = _left_out(found)
    if to_come:
        remarks.append(f"Not finished: 2D {' and '.join(to_come)} had not been measured yet.")
    about = replace(work.about, remarks=(*work.about.remarks, *remarks))
    with_paper = not work.arguments.no_paper
    tables = [
        table
        for number in _ordered(wanted & {3, 4})
        for table in multiview_tables(errors, about, aligned=number == 4, with_paper=with_paper)
    ]
    compared: dict[Pair, dict[str, Comparison]] = {
        (source, method): one.compare(source, method)
        for one in found
        for source, method in one.errors
        # What exact pictures leave of an error is rounding, which relates to nothing.
        if source != "truth" and method != BASELINE and (source, BASELINE) in one.errors
    }
    if 3 in wanted and compared:
        tables.insert(2, comparison_table(compared, BASELINE, about, errors.values()))
    angles = [(method, source, of) for one in found for (source, method), of in one.angles.items()]
    return tables + (angle_tables("multi-view", angles, about, errors.values()) if ANGLES in wanted else [])


def _left_out(found: Sequence[MultiViewErrors]) -> list[str]:
    """What could not be evaluated, trials with the same reason together, in sentences."""
    together: dict[tuple[str | None, str | None, str], list[str]] = {}
    for entry in (entry for one in found for entry in one.left_out):
        trials = together.setdefault((entry.source, entry.method, entry.reason), [])
        trials.append(entry.trial or "all trials")
    return [_sentence(source, method, reason, names) for (source, method, reason), names in together.items()]


def _sentence(source: str | None, method: str | None, reason: str, trials: Sequence[str]) -> str:
    what = [f"2D {source}"] if source else []
    what += [f"method {method}"] if method else []
    return f"Left out: {', '.join([*what, listed(list(dict.fromkeys(trials)), 4)])}: {reason}."


# --- tables 5 and 6 ---


def _lifting(work: _Work, wanted: set[int | str]) -> None:
    """Trains what is missing if that is asked for, and evaluates all trainings."""
    from simspine_jax.evaluation.lifters import training_errors, trainings

    arguments, runs = work.arguments, work.arguments.runs or RUNS
    if arguments.train:
        _train(work, runs)
    folders = trainings(runs)
    spine = functools.cache(load_spine)
    found: list[LifterErrors] = []
    tables: list[Table] = []
    bar = _bar(arguments, len(folders), "lifter", "lifting")
    try:
        for folder in folders:
            bar.set_postfix_str(folder.name)
            try:
                found.append(
                    training_errors(
                        folder, work.clips, spine, target=work.about.reference, source=arguments.input,
                        note=work.note,
                    )
                )  # fmt: skip
            except SimspineError as error:
                told = str(error)
                work.tell(f"left out: {told}" if str(folder) in told else f"{folder} is left out: {told}")
            else:
                tables = _lifting_tables(work, wanted, found)
                work.write(tables)
            bar.update()
    finally:
        bar.close()
        work.show(tables)
    if not tables:
        holds = "no training that can be evaluated" if folders else "no training"
        work.missing.append(
            f"{_named(wanted & {5, 6} or {ANGLES})} left out, as {runs} holds {holds}; make them with: "
            f"{_command(arguments)}"
        )


def _command(arguments: argparse.Namespace) -> str:
    """Which trains what is missing."""
    words = ["simspine benchmark --train"]
    words += [f"--config {arguments.config}"] if arguments.config != "synthetic" else []
    words += [f"--{name} {value}" for name in ("data-dir", "runs")
              if (value := getattr(arguments, name.replace("-", "_"))) is not None]  # fmt: skip
    return " ".join(words)


def _lifting_tables(work: _Work, wanted: set[int | str], found: Sequence[LifterErrors]) -> list[Table]:
    from simspine_jax.evaluation.tables import angle_tables, lifting_by_action, lifting_by_region

    with_paper = not work.arguments.no_paper
    tables = [lifting_by_action(found, work.about, with_paper=with_paper)] if 5 in wanted else []
    if 6 in wanted:
        tables += lifting_by_region(found, work.about, with_paper=with_paper)
    with_body = [one for one in found if one.angles is not None]
    angles = [(one.name, one.source, one.angles) for one in with_body if one.angles is not None]
    if ANGLES in wanted:
        tables += angle_tables("lifting", angles, work.about, [one.errors for one in with_body])
    return tables


def _train(work: _Work, runs: Path) -> None:
    """Trains the package's runs that have not done all of their steps."""
    from simspine_jax.datasets import open_clips
    from simspine_jax.evaluation.lifters import is_finished, package_runs

    arguments = work.arguments
    target = work.about.reference
    missing = [
        (runs / name, run)
        for name, run in package_runs(arguments.config, target)
        if not is_finished(runs / name, run)
    ]
    if not missing:
        return
    minutes = sum(run.expected.minutes for _, run in missing)
    work.note(f"{len(missing)} trainings are missing in {runs}, which take about {minutes:g} minutes in all "
              "on two CPU cores; an interrupted one goes on with the same command")  # fmt: skip
    clips = open_clips(arguments.config, "train", arguments.data_dir)
    for number, (folder, run) in enumerate(missing, start=1):
        work.note(f"training {number} of {len(missing)}, {folder.name}: {run.steps} steps, about "
                  f"{run.expected.minutes:g} minutes")  # fmt: skip
        with _resumable(folder):
            _train_one(work, run, clips, folder)


def _train_one(work: _Work, run: Run, clips: ClipSequence, folder: Path) -> None:
    from simspine_jax.training.loop import train
    from simspine_jax.training.models import needs_body

    spine = load_spine() if needs_body(run) else None
    with_bar(
        run, work.arguments.quiet,
        lambda progress: train(run, clips, folder, spine=spine, progress=progress, note=work.note),
    )  # fmt: skip


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """An interrupt inside tells where the training goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(left_behind(folder)) from None
