"""Whether the detectors in their true sizes can learn: each overfits 32 rendered pictures.

``python -m benchmarks.detection_overfit [NAME …] [--steps N]`` trains them one after the other and prints
the area under the PCK curve on the same pictures, by the shorter side of the box and MMPose's thresholds.
Two CPU cores need minutes for the small SpinePose and an hour or more for HRNet and ViTPose.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from simspine_jax.datasets import open_pictures
from simspine_jax.detection.inference import Detector
from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_evaluation import detect, detector_scores
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.detectors import train_detector
from simspine_jax.training.run import Expected

PICTURES = 32
WANTED = 0.9


def overfit_run(name: str, steps: int) -> DetectorRun:
    """A run of so many steps for one of `DETECTORS`."""
    return DetectorRun(
        name=f"{name}_overfit",
        model=DETECTORS[name],
        expected=Expected(minutes=10),
        optimiser=DetectorOptimiser(learning_rate=1e-3, warmup=20, begin=0.6, clip=35.0),
        curriculum=CurriculumOptions(stages=("plain",), switches=()),
        steps=steps,
        batch_size=16,
        average=0.95,
        log_every=10,
        save_every=steps - steps % 10 or 10,
        keep=1,
    )


def overfit(name: str, steps: int, data_dir: Path | None) -> tuple[float, float]:
    """AUC on the pictures that it was trained on, and minutes."""
    run, pictures = overfit_run(name, steps), open_pictures(split=f"train[:{PICTURES}]", data_dir=data_dir)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trained = train_detector(
            run, pictures, Path(folder),
            progress=lambda done, told: print(f"{name} {done}: loss {told['loss']:.4g}", flush=True),
        )  # fmt: skip
    found = detect(Detector.of(trained.model, run.model, run.pixels), pictures)
    return detector_scores(found).auc["all"], (time.perf_counter() - began) / 60


def main() -> int:
    """Trains what is asked for; 1 if one of them doesn't learn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.names:
        auc, minutes = overfit(name, arguments.steps, arguments.data_dir)
        failed |= auc <= WANTED
        print(f"{name}: AUC {auc:.3f} after {arguments.steps} steps, {minutes:.0f} minutes", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
