"""Curve, configuration and pictures of the short training of SpinePose-s, for those who look at the project.

``python -m benchmarks.detection_figures RUN [--figures FOLDER]`` reads a training that is done, draws its
loss and learning rate, copies its configuration, and draws what it finds in held-out pictures.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np

from simspine_jax.datasets import open_pictures, pictures_in_memory
from simspine_jax.detection.inference import Detector
from simspine_jax.errors import SimspineError
from simspine_jax.pictures import decode_jpeg, encode_jpeg
from simspine_jax.training.detector_evaluation import detect, draw_detections
from simspine_jax.training.detector_run import DetectorRun
from simspine_jax.training.detector_step import detector_rate
from simspine_jax.training.detectors import load_trained_detector
from simspine_jax.training.loop import RUN_FILE

TITLE = "SpinePose-s on rendered pictures (simspine/synthetic_images)"
SHOWN = 400
"""Held-out pictures, evenly spread, that the sheet is of."""
WIDTH = 1100
"""Of the sheet, which is square, px."""

SMOOTH = 10
"""Logged losses over which the drawn mean goes."""


def losses(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a training's event files, the last ones where it was stopped and went on."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, float] = {}
    for file in sorted((folder / "logs").iterdir()):
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars("train/loss")}
    steps = np.array(sorted(found))
    return steps, np.array([found[step] for step in steps])


def draw_curve(folder: Path, run: DetectorRun, path: Path) -> None:
    """Loss and learning rate by step."""
    from matplotlib.figure import Figure

    steps, loss = losses(folder)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color="0.8", lw=0.8, label="loss")
    mean = np.convolve(loss, np.ones(SMOOTH) / SMOOTH, "valid")
    axes.plot(steps[SMOOTH - 1 :], mean, color="C0", label=f"mean of {SMOOTH}")
    axes.set(xlabel="step", ylabel="loss (Kullback-Leibler)", title=TITLE)
    rates = axes.twinx()
    rate = detector_rate(run.optimiser, run.steps)
    rates.plot(steps, [np.asarray(rate(int(step))) for step in steps], color="C1", lw=0.8)
    rates.set_ylabel("learning rate", color="C1")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Writes the figures; 2 where the training can't be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "figures", metavar="FOLDER")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    try:
        run, model, _ = load_trained_detector(given.run)
        pictures = open_pictures("synthetic_images", "test", given.data_dir)
    except SimspineError as error:
        parser.error(str(error))
    given.figures.mkdir(parents=True, exist_ok=True)
    draw_curve(given.run, run, given.figures / f"{run.name}_curve.png")
    shutil.copy(given.run / RUN_FILE, given.figures / f"{run.name}.json")
    rows = np.linspace(0, len(pictures) - 1, SHOWN).astype(int).tolist()
    some = pictures_in_memory([pictures[row] for row in rows])
    found = detect(Detector.of(model, run.model, run.pixels), some)
    made = draw_detections(some, found, given.figures)
    sheet = cv2.resize(decode_jpeg(made.read_bytes()), (WIDTH, WIDTH), interpolation=cv2.INTER_AREA)
    made.write_bytes(encode_jpeg(sheet.astype(np.uint8)))
    made.replace(given.figures / f"{run.name}_held_out.jpg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
