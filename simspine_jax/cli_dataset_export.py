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
    from simspine_jax.datasets import ClipSequence, PictureSequence
    from simspine_jax.viz.card import CardFacts

SUFFIXES = {"hdf5": (".h5", ".hdf5"), "npz": (".npz",), "coco": (".json",)}
"""Of the files that each format goes into."""

_SPLITS = ("train", "test")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine dataset export`` takes."""
    parser.add_argument("--to", required=True, choices=tuple(SUFFIXES), help=(
        "the official HDF5 release, its samples for MMPose, or COCO keypoints"))  # fmt: skip
    add_output(parser, required=True, metavar="FILE", help="a .h5, .npz or .json file")
    _add_dataset(parser)
    parser.add_argument("--split", metavar="S", help="train or test (all)")
    parser.add_argument("--subjects", nargs="+", metavar="S", help="only these")
    parser.add_argument("--actions", nargs="+", metavar="A", help="only these")
    parser.add_argument("--images", type=Path, metavar="DIR", help=(
        "folder of the pictures, where the dataset has some (the file without its ending)"))  # fmt: skip
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
    if _holds_pictures(arguments):
        done = _export_pictures(arguments)
    elif arguments.images is not None:
        raise SimspineError(f"--images has no effect with --config {arguments.config}, which has no pictures")
    else:
        done = _export_to(arguments, _selected(arguments))
    if not arguments.quiet:
        print(f"{done} in {arguments.out}")
    return 0


def _check_export(arguments: argparse.Namespace) -> None:
    if arguments.split not in (None, *_SPLITS):  # a part of a split cuts trials into pieces
        raise SimspineError(
            f"--split is '{arguments.split}'; valid is {' or '.join(_SPLITS)}, or none for all"
        )
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


def _export_pictures(arguments: argparse.Namespace) -> str:
    """Writes pictures and the file about them; what is in it, in words."""
    from simspine_jax.picture_export import export_pictures
    from simspine_jax.statistics import counted

    if arguments.to != "coco":
        raise SimspineError(
            f"--to {arguments.to} holds trials, and {arguments.config} has pictures; valid is --to coco"
        )
    if arguments.detections is not None:
        raise SimspineError(f"--detections has no effect: {arguments.config} has no detections")
    images = arguments.images or arguments.out.with_suffix("")
    pictures = _open_pictures(arguments, arguments.split)
    with _bar(arguments, len(pictures), "picture", "writing") as bar:
        counts = export_pictures(
            arguments.out, images, pictures, arguments.subjects, arguments.actions, bar.update
        )
    return f"{counted(counts.images, 'picture')} in {images}, {counts.annotations} people annotated"


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
            return counted(export_npz(arguments.out, clips, note, names, bar.update), "row")
        counts = export_coco(arguments.out, clips, arguments.detections, bar.update)
        results = "" if arguments.detections is None else f" and {counts.detections} detected"
        return f"{counted(counts.images, 'picture')}, {counts.annotations} people annotated{results}"


def card(arguments: argparse.Namespace) -> int:
    """Writes the card of a built dataset.

    Raises:
        SimspineError: there is no such dataset, a file can't be written, or matplotlib is not installed.
    """
    from simspine_jax.viz.figures import new_figure

    with new_figure(1.0):  # says what is not installed before all is read
        pass
    written = _picture_card(arguments) if _holds_pictures(arguments) else _clip_card(arguments)
    if not arguments.quiet:
        print(f"{written[0]}, and {len(written) - 1} figures and tables beside it")
    return 0


def _clip_card(arguments: argparse.Namespace) -> list[Path]:
    from simspine_jax.dataset_statistics import gather_dataset
    from simspine_jax.io.files import make_folder
    from simspine_jax.viz.dataset_card import write_card

    clips = _open(arguments, None)
    make_folder(arguments.out)
    with _bar(arguments, len(clips), "clip", "reading clips") as bar:
        statistics = gather_dataset(clips, bar.update)
    return write_card(arguments.out, statistics, _facts(arguments))


def _picture_card(arguments: argparse.Namespace) -> list[Path]:
    from simspine_jax.io.files import make_folder
    from simspine_jax.picture_statistics import gather_pictures
    from simspine_jax.viz.picture_card import write_picture_card

    pictures = _open_pictures(arguments, None)
    make_folder(arguments.out)
    with _bar(arguments, len(pictures), "picture", "reading pictures") as bar:
        statistics = gather_pictures(pictures, bar.update)
    return write_picture_card(arguments.out, statistics, pictures, _facts(arguments))


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

    return open_clips(arguments.config, _split(arguments, split), arguments.data_dir)


def _open_pictures(arguments: argparse.Namespace, split: str | None) -> PictureSequence:
    """Pictures of a split, or of all that there are."""
    from simspine_jax.datasets import open_pictures

    return open_pictures(arguments.config, _split(arguments, split), arguments.data_dir)


def _split(arguments: argparse.Namespace, split: str | None) -> str:
    """The split in TensorFlow Datasets' words; None for all."""
    if split is not None:
        return split
    named = _description(_folder(arguments)).get("splits", [])
    return "+".join(str(entry["name"]) for entry in named)


def _holds_pictures(arguments: argparse.Namespace) -> bool:
    """Whether the dataset's records are pictures; what is damaged is told when it is opened."""
    try:
        text = (_folder(arguments) / "features.json").read_text(encoding="utf-8")
        return "jpeg" in json.loads(text)["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _facts(arguments: argparse.Namespace) -> CardFacts:
    """What the dataset's description says."""
    from simspine_jax.viz.card import NOT_STATED, CardFacts

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
