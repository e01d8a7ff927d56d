"""The study of mixing on a small scale: rendered pictures, and their negatives as the other domain.

``python -m benchmarks.detection_mixing [--runs FOLDER] [--figures FOLDER]`` writes the negatives of some
rendered pictures as a COCO set, runs ``simspine study mixing`` with this file as its config, and copies table
and plot. Its seven trainings, in the paper's three stages, of a half-width SpinePose-s on crops of 96 by 64
px, take about half an hour on two CPU cores; what is finished is kept. The suite ``detection`` reads the
study in the folder that ``SIMSPINE_RUNS`` names.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.lifting_models import RUNS_VARIABLE
from benchmarks.metrics import Measurement, SkippedError
from benchmarks.workplace import Workplace
from simspine_jax.datasets import open_pictures
from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.errors import SimspineError
from simspine_jax.evaluation.mixing_study import SCORES_FILE, CellScores, read_scores
from simspine_jax.picture_export import export_pictures
from simspine_jax.pictures import Picture, decode_jpeg, encode_jpeg
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.run import Expected

RUN = DetectorRun(
    name="mixing_small",
    model=RTMPoseOptions(CSPNeXtOptions(0.33, 0.25), size=(96, 64)),
    expected=Expected(minutes=3),
    optimiser=DetectorOptimiser(learning_rate=3e-3, warmup=50, begin=0.5, final=0.02, clip=35.0),
    curriculum=CurriculumOptions(("hard", "medium", "easy"), switches=(0.2, 0.5)),
    steps=900,
    batch_size=32,
    average=0.99,
    log_every=20,
    save_every=300,
)
"""Of all cells; nearly as the recipe, in a hundredth of its steps."""

STUDY, FIRST, SECOND = "mixing_small", "negatives", "rendered pictures"
PARTS = {"train": ("train", 7), "test": ("test", 10)}
"""Of the first domain: a split of the rendered pictures, of which each so many-th is turned over."""

FRACTIONS = (0.0, 2.0, 10.0, 100.0)
DATA = (
    "synthetic: simspine/synthetic_images, rendered, and the negatives of every seventh as the first domain; "
    "trained on S1 S5 S6 S7 S8, tested on S9 S11"
)


def negative(picture: Picture) -> Picture:
    """The same person, with all colours turned over."""
    return replace(picture, jpeg=encode_jpeg(255 - decode_jpeg(picture.jpeg)))


def write_negatives(folder: Path, data_dir: Path | None = None) -> None:
    """The first domain as COCO files ``train.json`` and ``test.json`` with ``images``.

    Raises:
        SimspineError: the rendered pictures can't be read, or the folder can't be written.
    """
    for part, (split, every) in PARTS.items():
        if not (folder / f"{part}.json").exists():
            pictures = open_pictures("synthetic_images", split, data_dir)
            chosen = [negative(pictures[index]) for index in range(0, len(pictures), every)]
            export_pictures(folder / f"{part}.json", folder / "images" / part, chosen)


def run_study(runs: Path, data_dir: Path | None = None) -> int:
    """The command's status.

    Raises:
        SimspineError: see `write_negatives`.
    """
    from simspine_jax.cli import main

    pictures = runs / "negatives"
    write_negatives(pictures, data_dir)
    words = [
        "study", "mixing", "--first", f"{pictures / 'train.json'}:{pictures / 'images' / 'train'}",
        "--first-test", f"{pictures / 'test.json'}:{pictures / 'images' / 'test'}",
        "--second", "tfds:synthetic_images", "--names", FIRST, SECOND, "--config", str(Path(__file__)),
        "--fractions", *(f"{fraction:g}" for fraction in FRACTIONS), "-o", str(runs / STUDY),
    ]  # fmt: skip
    return main([*words, *(["--data-dir", str(data_dir)] if data_dir else [])])


def mixing(place: Workplace) -> Iterator[Measurement]:
    """What a study that was run found."""
    del place
    runs = os.environ.get(RUNS_VARIABLE)
    folder = Path(runs or "") / STUDY
    if not runs or not folder.is_dir():
        raise SkippedError("there is no study to read; `python -m benchmarks.detection_mixing` makes it")
    try:
        cells = [read_scores(path) for path in sorted(folder.glob(f"*/{SCORES_FILE}"))]
    except SimspineError as error:
        raise SkippedError(str(error)) from None
    by_cell = {(cell.mode, cell.fraction): cell for cell in cells}
    alone, whole = by_cell.get(("none", 0.0)), by_cell.get(("batch", 1.0))
    if alone is None or whole is None:
        raise SkippedError(f"the study in {folder} is not finished")
    yield Measurement(
        "detection/mixing_auc_gain", whole.auc - alone.auc, DATA,
        f"AUC on rendered pictures, {whole.auc:.3f}, of a detector whose batches are half of them, over that "
        f"trained on negatives alone, {alone.auc:.3f}; {RUN.steps} steps, stages hard, medium and easy.",
        {"auc": {f"{cell.mode} {100 * cell.fraction:g} %": round(cell.auc, 4) for cell in _ordered(cells)}},
    )  # fmt: skip


def _ordered(cells: list[CellScores]) -> list[CellScores]:
    return sorted(cells, key=lambda cell: (cell.fraction, cell.mode))


def main() -> int:
    """Runs the study and copies what is to be kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--runs", type=Path, default=Path(os.environ.get(RUNS_VARIABLE) or "runs"), metavar="FOLDER"
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="gets mixing.csv and mixing.png")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    status = run_study(arguments.runs, arguments.data_dir)
    if not status and arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        for name in ("mixing.csv", "mixing.png"):
            shutil.copy(arguments.runs / STUDY / name, arguments.figures / name)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
