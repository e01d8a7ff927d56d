"""The command ``simspine study`` with ``mixing``: the paper's Figure 5 on any two sets of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simspine_jax.cli_parsing import Command, add_commands, add_output
from simspine_jax.cli_training import with_bar
from simspine_jax.errors import SimspineError

if TYPE_CHECKING:
    from simspine_jax.evaluation.mixing_study import Cell, CellScores, Domain, MixingStudy
    from simspine_jax.training.loop import Progress

Note = Callable[[str], None]

FIRST, SECOND = "SpineTrack", "SimSpine"
"""What the two sets are in the paper."""

FRACTIONS = (0.0, 2.0, 10.0, 50.0, 100.0)
"""Of the second set, percent. The paper's text names the first three; where its curves end isn't told."""


def add_study_arguments(parser: argparse.ArgumentParser, note: Note) -> None:
    """What ``simspine study`` takes: commands of its own.

    Args:
        parser: of ``simspine study``.
        note: told what is worth knowing.
    """
    add_commands(parser, _COMMANDS, note=note)


def _add_mixing_arguments(parser: argparse.ArgumentParser) -> None:
    sets = parser.add_argument_group(
        "sets of pictures",
        "FILE.json:FOLDER (COCO keypoints), tfds:CONFIG[:SPLIT], or h36m:FRAMES:RELEASE[:EVERY]; the latter "
        "two have splits of their own, so that their tests need not be named",
    )
    sets.add_argument("--first", required=True, metavar="SET", help=f"such as {FIRST}; AP is measured on it")
    sets.add_argument(
        "--second", required=True, metavar="SET", help=f"such as {SECOND}; AUC is measured on it"
    )
    sets.add_argument("--first-test", metavar="SET", help="to measure on (the first's own test split)")
    sets.add_argument("--second-test", metavar="SET", help="to measure on (the second's own test split)")
    sets.add_argument("--names", nargs=2, metavar=("FIRST", "SECOND"), help=(
        "of the sets, for tables and the plot (as they are given)"))  # fmt: skip
    sets.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets (TensorFlow Datasets' own)")
    sets.add_argument(
        "--thorough", action="store_true", help="decode every picture file once before all else"
    )

    mix = parser.add_argument_group("what is compared")
    mix.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS, metavar="PERCENT", help=(
        "of the second set that are used (0 2 10 50 100)"))  # fmt: skip
    mix.add_argument("--modes", nargs="+", choices=("batch", "epoch"), default=["batch", "epoch"], help=(
        "both sets in each batch, or epochs in turn (both)"))  # fmt: skip
    mix.add_argument("--share", type=float, default=0.5, metavar="S", help=(
        "of the second set in batches, or of its epochs (0.5)"))  # fmt: skip

    training = parser.add_argument_group("training")
    training.add_argument("--config", default="spinepose_s_short", metavar="C", help=(
        "of a detector, or a file that sets RUN (spinepose_s_short)"))  # fmt: skip
    training.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=(
        "settings of the run, such as steps=500"))  # fmt: skip
    training.add_argument("--weights", type=Path, metavar="DIR", help=(
        "folder of a training whose detector all begin with (random weights)"))  # fmt: skip
    add_output(parser, required=True, metavar="DIR", help=(
        "gets a folder for each training, mixing.csv, .json and .png; what is finished is kept"))  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print the table and failures only")


def mixing(arguments: argparse.Namespace) -> int:
    """Trains and measures what isn't there yet, and writes table and plot after each training.

    Raises:
        SimspineError: an option can't be, a set can't be opened, or the folder holds another study.
    """
    import jax

    from simspine_jax.evaluation.mixing_study import run_cell
    from simspine_jax.io.files import make_folder
    from simspine_jax.tables import format_table

    make_folder(arguments.out)
    with jax.enable_x64(False):
        study = _study(arguments)
        done: list[CellScores] = []
        for number, cell in enumerate(study.cells, start=1):
            if not arguments.quiet:
                print(f"{number} of {len(study.cells)}: {cell.title}", flush=True)
            try:
                done.append(with_bar(study.run, arguments.quiet, _action(study, cell, arguments, run_cell)))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{len(done)} of {len(study.cells)} trainings are in {arguments.out}, and the same "
                    "command goes on"
                ) from None
            table = _write(study, done, arguments.out)
        print(format_table(table, "txt"), end="")
    return 0


def _action(
    study: MixingStudy, cell: Cell, arguments: argparse.Namespace, run_cell: Callable[..., CellScores]
) -> Callable[[Progress], CellScores]:
    return lambda progress: run_cell(study, cell, arguments.out, progress=progress, note=arguments.note)


def _study(arguments: argparse.Namespace) -> MixingStudy:
    from simspine_jax.evaluation.mixing_study import MixingStudy
    from simspine_jax.training.detectors import load_detector_run
    from simspine_jax.training.run import with_settings

    for percent in arguments.fractions:
        if not 0 <= percent <= 100:
            raise SimspineError(f"{percent:g} % of a set can't be used; valid is 0 to 100")
    run = with_settings(load_detector_run(arguments.config), arguments.set)
    names = arguments.names or (arguments.first, arguments.second)
    return MixingStudy(
        run,
        _domain(arguments, "first", names[0]),
        _domain(arguments, "second", names[1]),
        tuple(percent / 100 for percent in arguments.fractions),
        tuple(arguments.modes),
        arguments.share,
        arguments.weights,
    )


def _domain(arguments: argparse.Namespace, which: str, name: str) -> Domain:
    from simspine_jax.datasets.sources import SourceText, open_source
    from simspine_jax.evaluation.mixing_study import Domain

    train = SourceText.of(getattr(arguments, which))
    own = getattr(arguments, f"{which}_test")
    if own is None and not train.has_splits:
        raise SimspineError(
            f"--{which} '{train.text}' has no test split; valid is --{which}-test with another set, to "
            "measure on"
        )
    test = train if own is None else SourceText.of(own)

    def opened(source: SourceText, split):
        return open_source(
            source, split, data_dir=arguments.data_dir, thorough=arguments.thorough, note=arguments.note
        )

    return Domain(name, opened(train, "train"), opened(test, "test"))


def _write(study: MixingStudy, done: list[CellScores], out: Path):
    """Writes table and plot, and gives the table."""
    from simspine_jax.evaluation.mixing_study import study_table, write_study
    from simspine_jax.viz.figures import write_figure
    from simspine_jax.viz.mixing import mixing_figure

    write_study(study, done, out)
    table = study_table(study, done)
    figure = mixing_figure(done, study.first.name, study.second.name, table.source)
    write_figure(out / "mixing.png", figure)
    return table


_COMMANDS = (
    Command(
        "mixing", _add_mixing_arguments, mixing,
        "train detectors on two sets of pictures in several mixtures, as the paper's Figure 5, resuming",
        "simspine study mixing --first spinetrack.json:images --first-test val.json:images "
        "--second h36m:frames:simspine.h5 -o study",
    ),
)  # fmt: skip
