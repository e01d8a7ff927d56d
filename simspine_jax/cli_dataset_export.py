"""The commands ``simspine dataset export`` and ``simspine dataset card``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax.cli_parsing import add_output, check_suffix
from simspine_jax.errors import FileFormatError, SimspineError

if TYPE_CHECKING:
    from simspine_jax.clip_trials import ClipSet
    from simspine_jax.datasets import ClipSequence
    from simspine_jax.viz.dataset_card import CardFacts

SUFFIXES = {"hdf5": (".h5", ".hdf5"), "npz": (".npz",), "coco": (".json",)}
"""Of the files that each format goes into."""

DEFAULT_KEYPOINTS = 15


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine dataset export`` takes."""
    parser.add_argument("--to", required=True, choices=tuple(SUFFIXES), help=(
        "the official HDF5 release, its samples for MMPose, or COCO keypoints"))  # fmt: skip
    add_output(parser, required=True, metavar="FILE", help="a .h5, .npz or .json file")
    _add_dataset(parser)
    parser.add_argument("--split", metavar="S", help="train or test (all)")
    parser.add_argument("--subjects", nargs="+", metavar="S", help="only these")
    parser.add_argument("--actions", nargs="+", metavar="A", help="only these")
    parser.add_argument("--keypoints", type=int, choices=(15, 37), help="of the samples, with --to npz (15)")
    parser.add_argument("--detections", type=Path, metavar="FILE", help=(
        "also write the detector's keypoints as COCO results, with --to coco"))  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing but notes")


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine dataset card`` takes."""
    add_output(parser, required=True, metavar="DIR", help="gets card.html, figures/ and tables/")
    _add_dataset(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="synthetic", metavar="C", help="of the dataset (synthetic)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where datasets are (as TFDS has it)")


def export(arguments: argparse.Namespace) -> int:
    """Writes a built dataset in another format.

    Raises:
        SimspineError: an option has no effect, the file's name has another ending, there is no such dataset,
            split, subject or action, or the format can't hold it.
    """
    _check_export(arguments)
    clips = _selected(arguments)
    done = _export_to(arguments, clips)
    if not arguments.quiet:
        print(f"{done} in {arguments.out}")
    return 0


def _check_export(arguments: argparse.Namespace) -> None:
    check_suffix(arguments.out, *SUFFIXES[arguments.to])
    for name, goes_with in (("keypoints", "npz"), ("detections", "coco")):
        if getattr(arguments, name) is not None and arguments.to != goes_with:
            raise SimspineError(
                f"--{name} has no effect with --to {arguments.to}; it goes with --to {goes_with}"
            )
    if arguments.detections is not None:
        check_suffix(arguments.detections, *SUFFIXES["coco"])
        if arguments.detections.resolve() == arguments.out.resolve():
            raise SimspineError("--detections and --out are one file; valid are two")


def _selected(arguments: argparse.Namespace) -> ClipSet:
    """The trials that are asked for."""
    from simspine_jax.clip_trials import ClipSet

    clips = _open(arguments, arguments.split)
    with _bar(arguments, len(clips), "clip", "looking through clips") as bar:
        found = ClipSet.of(clips, bar.update)
    return found.select(arguments.subjects, arguments.actions)


def _export_to(arguments: argparse.Namespace, clips: ClipSet) -> str:
    """Writes the file; what is in it, in words."""
    from simspine_jax.dataset_export import export_coco, export_hdf5, export_npz
    from simspine_jax.io.samples import RELEASE_KEYPOINTS
    from simspine_jax.skeleton import REDUCED_NAMES
    from simspine_jax.statistics import counted

    def note(text: str) -> None:
        print(f"simspine: note: {text}", file=sys.stderr)

    with _bar(arguments, len(clips.trials), "trial", "writing") as bar:
        if arguments.to == "hdf5":
            return counted(export_hdf5(arguments.out, clips, note, bar.update), "trial")
        if arguments.to == "npz":
            names = RELEASE_KEYPOINTS if arguments.keypoints == 37 else REDUCED_NAMES
            return counted(export_npz(arguments.out, clips, names, bar.update), "row")
        counts = export_coco(arguments.out, clips, arguments.detections, bar.update)
        results = "" if arguments.detections is None else f" and {counts.detections} detected"
        return f"{counted(counts.images, 'picture')}, {counts.annotations} people annotated{results}"


def card(arguments: argparse.Namespace) -> int:
    """Writes the card of a built dataset.

    Raises:
        SimspineError: there is no such dataset, a file can't be written, or matplotlib is not installed.
    """
    from simspine_jax.dataset_statistics import gather_dataset
    from simspine_jax.io.files import make_folder
    from simspine_jax.viz.dataset_card import write_card
    from simspine_jax.viz.figures import new_figure

    with new_figure(1.0):  # says what is not installed before all is read
        pass
    clips = _open(arguments, None)
    make_folder(arguments.out)
    with _bar(arguments, len(clips), "clip", "reading clips") as bar:
        statistics = gather_dataset(clips, bar.update)
    written = write_card(arguments.out, statistics, _facts(arguments))
    if not arguments.quiet:
        print(f"{written[0]}, and {len(written) - 1} figures and tables beside it")
    return 0


def _bar(arguments: argparse.Namespace, total: int, unit: str, what: str) -> Any:
    from tqdm import tqdm

    hidden = arguments.quiet or not sys.stderr.isatty()
    return tqdm(total=total, unit=unit, desc=what, disable=hidden)


# --- built datasets ---


def _folder(arguments: argparse.Namespace) -> Path:
    from simspine_jax.datasets.records import dataset_folder, default_data_dir

    return dataset_folder(arguments.config, arguments.data_dir or default_data_dir())


def _open(arguments: argparse.Namespace, split: str | None) -> ClipSequence:
    """Clips of a split, or of all that there are."""
    from simspine_jax.datasets import open_clips

    if split is None:
        named = _description(_folder(arguments)).get("splits", [])
        split = "+".join(str(entry["name"]) for entry in named)
    return open_clips(arguments.config, split, arguments.data_dir)


def _facts(arguments: argparse.Namespace) -> CardFacts:
    """What the dataset's description says."""
    from simspine_jax.viz.dataset_card import NOT_STATED, CardFacts

    about = _description(_folder(arguments))
    license_text = about.get("redistributionInfo", {}).get("license", NOT_STATED)
    return CardFacts(
        f"{about.get('name', 'simspine')}/{arguments.config}",
        str(about.get("version", NOT_STATED)),
        " ".join(str(license_text).split()),
        " ".join(str(about.get("configDescription", "")).split()),
        next(iter(about.get("location", {}).get("urls", [])), ""),
    )


def _description(folder: Path) -> dict[str, Any]:
    """TensorFlow Datasets' own description of a built dataset.

    Raises:
        FileFormatError: it is damaged.
    """
    path = folder / "dataset_info.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        names = [str(entry["name"]) for entry in about["splits"]]
    except (OSError, ValueError, KeyError, TypeError):
        names = []
        about = {}
    if not names:
        raise FileFormatError(f"{path}: it lists no splits; valid is what TensorFlow Datasets writes there")
    return about
