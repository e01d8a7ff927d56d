"""The command ``simspine dataset`` with ``build`` and ``info``; ``export`` and ``card`` are beside it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax import interrupts
from simspine_jax.cli_dataset_export import add_card_arguments, add_export_arguments, card, export
from simspine_jax.cli_parsing import Command, add_commands
from simspine_jax.errors import MissingDependencyError, SimspineError

if TYPE_CHECKING:
    from simspine_jax.pipeline.dataset import Watcher

Note = Callable[[str], None]

_VALID_FOR = {
    "seconds": ("synthetic",),
    "pictures": ("synthetic_images",),
    "seed": ("synthetic", "synthetic_images"),
    "manual_dir": ("release", "release_npz", "pipeline"),
}
"""Configurations in which an option has an effect; a default would hide whether it was given."""


def add_dataset_arguments(parser: argparse.ArgumentParser, note: Note) -> None:
    """What ``simspine dataset`` takes: commands of its own.

    Args:
        parser: of ``simspine dataset``.
        note: told what is worth knowing.
    """
    add_commands(parser, _COMMANDS, note=note)


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--manual-dir", type=Path, metavar="DIR", help=(
        "files that you bring: the official release (release), its .npz (release_npz), or a folder of "
        "'simspine simulate' (pipeline)"))  # fmt: skip
    parser.add_argument("--subjects", nargs="+", default=[], metavar="S", help="only these (all)")
    parser.add_argument("--actions", nargs="+", default=[], metavar="A", help="only these (all)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each trial of synthetic clips (4.8)")
    parser.add_argument("--pictures", type=int, metavar="N", help="how many are rendered (10500)")
    parser.add_argument("--seed", type=int, metavar="N", help="of synthetic data (0)")
    parser.add_argument("--file-format", default="array_record", metavar="F", help=(
        "array_record, or tfrecord, which needs TensorFlow (array_record)"))  # fmt: skip
    parser.add_argument("--force", action="store_true", help=(
        "replace what is there, and begin anew where a run stopped"))  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print failures only")


def _add_info_arguments(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="synthetic", metavar="C", help=(
        "synthetic, synthetic_images, release, release_npz or pipeline (synthetic)"))  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help=(
        "where datasets are ($TFDS_DATA_DIR, or ~/tensorflow_datasets)"))  # fmt: skip


def build(arguments: argparse.Namespace) -> int:
    """Builds a dataset, going on where a run stopped.

    Raises:
        SimspineError: an option has no effect or is out of range, a package or file is missing, a file is
            damaged, or the folder holds the dataset with other options.
    """
    _need_tfds(arguments.file_format)
    import tensorflow_datasets as tfds
    from simspine_tfds.preparing import Request, prepare

    _check_build(arguments)
    tfds.disable_progress_bar()  # there is one here
    given = {name: value for name in _VALID_FOR if (value := getattr(arguments, name)) is not None}
    request = Request(
        arguments.config,
        arguments.data_dir,
        subjects=tuple(arguments.subjects),
        actions=tuple(arguments.actions),
        file_format=arguments.file_format,
        force=arguments.force,
        **given,
    )
    with _watched(arguments) as watcher:
        prepare(request, watcher)
    if not arguments.quiet:
        print(_format_short(arguments))
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Prints what a built dataset holds.

    Raises:
        SimspineError: there is no such dataset, or TensorFlow Datasets is not installed.
    """
    _need_tfds("array_record")
    from simspine_tfds.preparing import facts

    found = facts(arguments.config, arguments.data_dir)
    print(json.dumps(found.as_dict(), indent=1) if arguments.json else _format_facts(found))
    return 0


def _need_tfds(file_format: str) -> None:
    packages = {"tensorflow_datasets": "tfds", "array_record": "tfds"}
    packages |= {"tensorflow": "tf"} if file_format == "tfrecord" else {}
    for package, extra in packages.items():
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package.replace("_", "-"), extra, "The dataset")


def _check_build(arguments: argparse.Namespace) -> None:
    for name, valid in _VALID_FOR.items():
        if getattr(arguments, name) is not None and arguments.config not in valid:
            raise SimspineError(
                f"--{name.replace('_', '-')} has no effect with --config {arguments.config}; it goes with "
                f"--config {' or '.join(valid)}"
            )


@contextmanager
def _watched(arguments: argparse.Namespace) -> Iterator[Watcher]:
    """Progress over trials and frames on a terminal's stderr; an interrupt tells what is kept."""
    from tqdm import tqdm

    from simspine_jax.pipeline.dataset import Watcher

    hidden = arguments.quiet or not sys.stderr.isatty()
    try:
        with (
            tqdm(unit="trial", disable=hidden, position=0) as trials,
            tqdm(unit="frame", disable=hidden, position=1, leave=False) as frames,
        ):
            seen, expected = 0, 0  # a hidden bar doesn't count

            def expect(total: int) -> None:
                nonlocal expected
                expected = total
                trials.reset(total)

            def progress(done: int, total: int) -> None:
                interrupts.check()
                frames.total = total
                frames.update(done - frames.n)

            def trial(name: str) -> None:
                nonlocal seen
                interrupts.check()
                seen += 1
                trials.set_postfix_str(name, refresh=False)
                trials.update()
                if hidden and not arguments.quiet:  # a log has lines, not bars
                    print(f"trial {seen} of {expected}: {name}", file=sys.stderr, flush=True)

            yield Watcher(progress, trial, expect, arguments.note)
    except KeyboardInterrupt:
        kept = "what is done is kept, " if arguments.config.startswith("synthetic") else ""
        goes_on = f"{kept}and the same command {'goes on' if kept else 'builds it'}"
        then = "and with --force the same command begins anew" if arguments.force else goes_on
        raise KeyboardInterrupt(f"no half dataset is left, {then}") from None


def _format_short(arguments: argparse.Namespace) -> str:
    from simspine_tfds.preparing import facts

    found = facts(arguments.config, arguments.data_dir)
    splits = ", ".join(f"{split.name} {split.records}" for split in found.splits)
    return f"{found.name} in {found.folder}: {splits} records, {_megabytes(found.size_bytes)}; {found.data}"


def _format_facts(found: Any) -> str:
    from simspine_tfds.preparing import options_text

    rows = [
        ("dataset", found.name),
        ("what", found.description),
        ("data", found.data),
        ("folder", found.folder),
        ("files", f"{', '.join(found.files)} ({found.file_format}, {_megabytes(found.size_bytes)})"),
        ("options", options_text(found.options)),
        ("homepage", found.homepage),
        ("licence", found.license),
    ]
    lines = [f"{name:<9} {value}" for name, value in rows]
    lines += ["", f"{'split':<9} {'records':>9} {'frames':>9} {'view-frames':>12}"]
    for split in found.splits:
        frames, views = (_count(number) for number in (split.frames, split.view_frames))
        lines.append(f"{split.name:<9} {split.records:>9,} {frames:>9} {views:>12}")
    lines += ["", "features (- varies: frames, or views)"]
    width = max(len(feature.name) for feature in found.features)
    for f in found.features:
        lines.append(f"  {f.name:<{width}}  {f.dtype + ' ' + _sizes(f.shape):<22} {f.doc}".rstrip())
    for what, names in found.columns.items():
        lines += [
            "",
            *textwrap.wrap(f"{what}, in this order: {', '.join(names)}", 110, subsequent_indent="  "),
        ]
    return "\n".join(lines)


def _sizes(shape: tuple[int | None, ...]) -> str:
    return f"[{' '.join('-' if size is None else str(size) for size in shape)}]" if shape else ""


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


_COMMANDS = (
    Command(
        "build", _add_build_arguments, build,
        "make the dataset for TensorFlow Datasets, going on where a run stopped",
        "simspine dataset build --config synthetic",
    ),
    Command(
        "info", _add_info_arguments, info,
        "tell what a built dataset holds, and where it lies",
        "simspine dataset info --config synthetic",
    ),
    Command(
        "export", add_export_arguments, export,
        "write a built dataset as HDF5, as samples for MMPose, or as COCO keypoints",
        "simspine dataset export --to coco -o keypoints.json",
    ),
    Command(
        "card", add_card_arguments, card,
        "describe a built dataset in figures and tables",
        "simspine dataset card -o card",
    ),
)  # fmt: skip
