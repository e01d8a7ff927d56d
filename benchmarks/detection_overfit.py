"""Whether the detectors in their true sizes can learn: each overfits 32 rendered pictures.

``python -m benchmarks.detection_overfit [NAME …] [--steps N] [--size H W] [--runs FOLDER]`` trains them one
after the other and prints the area under the PCK curve on the same pictures, by the shorter side of the box
and MMPose's thresholds. Two CPU cores need minutes for the small SpinePose and an hour or more for HRNet and
ViTPose; with crops of 96 by 64 px (``--size 96 64``), which leave all layers and widths as they are, minutes
for each. A training in FOLDER, or else in the folder that ``SIMSPINE_RUNS`` names, is kept and goes on where
it stopped, and the suite ``detection`` reads it; without either it is lost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from benchmarks.lifting_models import RUNS_VARIABLE
from simspine_jax.datasets import open_pictures
from simspine_jax.detection.inference import Detector
from simspine_jax.detection.models import DETECTORS
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.errors import SimspineError
from simspine_jax.pictures import CROP_SIZE
from simspine_jax.training.detector_evaluation import detect, detector_scores
from simspine_jax.training.detector_run import (
    CurriculumOptions,
    DetectorOptimiser,
    DetectorRun,
    PictureOptions,
)
from simspine_jax.training.detectors import load_trained_detector, train_detector
from simspine_jax.training.run import Expected

PICTURES = 32
NARROW = 0.5
WANTED = 0.9


def overfit_run(name: str, steps: int, size: tuple[int, int] = CROP_SIZE) -> DetectorRun:
    """A run of so many steps for one of `DETECTORS` on crops of a height and width, px.

    Steps are smaller in a transformer, none of whose paths are dropped, which is against overfitting, and in
    the wider ones of RTMPose's kind, which otherwise stop at the mean pose.
    """
    model, rate = replace(DETECTORS[name], size=size), 1e-3
    if isinstance(model, ViTPoseOptions):
        model, rate = replace(model, drop_path=0.0), 3e-4
    if isinstance(model, RTMPoseOptions) and model.backbone.widen > NARROW:
        rate = 2e-4 if model.backbone.widen < 1 else 1e-4
    return DetectorRun(
        name=f"{name}_overfit",
        model=model,
        expected=Expected(minutes=10),
        optimiser=DetectorOptimiser(learning_rate=rate, warmup=20, begin=0.6, clip=35.0),
        data=PictureOptions(split=f"train[:{PICTURES}]"),
        curriculum=CurriculumOptions(stages=("plain",), switches=()),
        steps=steps,
        batch_size=16,
        average=0.95,
        log_every=10,
        save_every=steps - steps % 10 or 10,
        keep=1,
    )


def overfit_folder(runs: Path, name: str) -> Path:
    """Of the training of one of `DETECTORS`."""
    return runs / f"overfit_{name}"


def overfit(run: DetectorRun, folder: Path, data_dir: Path | None = None) -> float:
    """Trains what is still to do of the run; minutes that it took.

    Raises:
        SimspineError: the pictures can't be read, or the folder holds another run.
    """
    pictures, began = open_pictures(run.data.config, run.data.split, data_dir), time.perf_counter()
    train_detector(
        run, pictures, folder,
        progress=lambda done, told: print(f"{run.name} {done}: loss {told['loss']:.4g}", flush=True),
    )  # fmt: skip
    return (time.perf_counter() - began) / 60


def overfit_auc(folder: Path, data_dir: Path | None = None) -> tuple[float, DetectorRun]:
    """AUC on the pictures that a finished training was of, and what it was.

    Raises:
        SimspineError: the pictures or the training can't be read, or it is not at its end.
    """
    run, model, steps = load_trained_detector(folder)
    if steps < run.steps:
        raise SimspineError(f"{folder} is at step {steps} of {run.steps}; valid is a finished training")
    pictures = open_pictures(run.data.config, run.data.split, data_dir)
    found = detect(Detector.of(model, run.model, run.pixels), pictures)
    return detector_scores(found).auc["all"], run


def main() -> int:
    """Trains what is asked for; 1 if one of them doesn't learn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, nargs=2, default=CROP_SIZE, metavar=("H", "W"))
    parser.add_argument("--runs", type=Path, default=os.environ.get(RUNS_VARIABLE) or None, metavar="FOLDER")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() if given.runs is None else nullcontext(given.runs) as runs:
        for name in given.names:
            folder = overfit_folder(Path(runs), name)
            try:
                minutes = overfit(overfit_run(name, given.steps, tuple(given.size)), folder, given.data_dir)
                auc, run = overfit_auc(folder, given.data_dir)
            except SimspineError as error:
                parser.error(str(error))
            failed |= auc <= WANTED
            print(f"{name}: AUC {auc:.3f} after {run.steps} steps, {minutes:.0f} minutes", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
