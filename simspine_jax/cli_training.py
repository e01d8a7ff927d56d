"""The commands ``simspine train``, ``simspine evaluate`` and ``simspine lift``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax import interrupts
from simspine_jax.cli_parsing import add_output
from simspine_jax.errors import SimspineError
from simspine_jax.tables import TABLE_FORMATS

if TYPE_CHECKING:
    from simspine_jax.datasets import PictureSequence
    from simspine_jax.kinematics.model import SpineModel
    from simspine_jax.tables import Table
    from simspine_jax.training.detector_run import DetectorRun
    from simspine_jax.training.loop import Progress, Trained
    from simspine_jax.training.models import LifterModule
    from simspine_jax.training.run import Run

Note = Callable[[str], None]

SPLIT = "test"
"""Of the sets that have splits, where none is given."""

RUNS = Path("runs")
"""Where trainings go that are not told where."""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine train`` takes."""
    parser.add_argument("config", metavar="CONFIG", help=(
        "a lifter: simple_spine, simple_full, temporal_full, kinematic_full; a detector: spinepose_s, "
        "spinepose_m, spinepose_l, rtmpose_m, hrnet_w32, vitpose_b, spinepose_s_short; or a file that sets "
        "RUN"))  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=(
        "settings of the run, such as steps=500, optimiser.learning_rate=5e-4, and data.source=truth for "
        "exact 2D keypoints; a name that isn't one lists them all"))  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="the same as --set steps=N")
    parser.add_argument("--weights", type=Path, metavar="DIR", help=(
        "folder of a training that a detector begins with, or of weights that 'python -m torch2flax FILE "
        "--detector NAME -o DIR' imported"))  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets (TensorFlow Datasets' own)")
    add_output(parser, metavar="DIR", help="gets checkpoints and curves (runs/CONFIG)")
    parser.add_argument("--quiet", action="store_true", help="print failures only")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine evaluate`` takes."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a training")
    parser.add_argument("--split", metavar="S", help="of a set that has splits (test)")
    parser.add_argument("--input", choices=("detected", "truth"), help=(
        "2D keypoints of a lifter (those of the training)"))  # fmt: skip
    parser.add_argument("--on", metavar="SET", help=(
        "pictures for a detector: tfds:CONFIG, FILE.json:FOLDER (COCO) or h36m:FRAMES:RELEASE (those of the "
        "training)"))  # fmt: skip
    parser.add_argument("--pictures", type=Path, metavar="DIR", help=(
        "gets a sheet of pictures with what a detector found in them"))  # fmt: skip
    parser.add_argument("--errors", action="store_true", help=(
        "also leave a lifter's errors by keypoint and axis in its folder, for 'simspine fit --lifter'"
    ))  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets (TensorFlow Datasets' own)")
    parser.add_argument("--format", choices=TABLE_FORMATS, default="txt", help="of what is printed (txt)")
    add_output(parser, metavar="FILE", help="also write the table; its ending says how")


def add_lift_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine lift`` takes."""
    parser.add_argument("keypoints", type=Path, metavar="KEYPOINTS", help=(
        "OpenPose's JSON files of a camera in a folder, a folder of such folders, COCO results of one camera "
        "(.json), or an .npz with camera_names [V], keypoint_names [K], positions [T V K 2] px, confidence "
        "[T V K], rate_hz, first_frame; in pictures of the size of the training's"))  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a training")
    parser.add_argument("--camera", type=Path, metavar="FILE", help=(
        "calibration (.toml, .qca.txt, .yml, .xml, .json): results are in the ground's axes, Y up, and not "
        "in the camera's turned to Y up; the kinematic lifter needs it, and tells the place too"
    ))  # fmt: skip
    parser.add_argument(
        "--view",
        metavar="NAME",
        help="which camera, where there are several, as the keypoints or the calibration call it",
    )
    parser.add_argument("--subject", metavar="NAME", help="in h36m_cameras.json")
    parser.add_argument("--schema", metavar="NAME", help="order of keypoints, such as BODY_25B")
    parser.add_argument("--rate", type=float, metavar="HZ", help="of files that don't say it")
    add_output(parser, required=True, metavar="OUT", help="a name in .npz, .trc or .mot; without ending: all")


def train(arguments: argparse.Namespace, note: Note) -> int:
    """Trains, or goes on with a training."""
    from simspine_jax.training.run import Run, load_config, with_settings

    settings = [*arguments.set, *([] if arguments.steps is None else [f"steps={arguments.steps}"])]
    if arguments.steps is not None and any(s.partition("=")[0].strip() == "steps" for s in arguments.set):
        raise SimspineError("--steps and --set steps= were both given; valid is one of them")
    run = with_settings(load_config(arguments.config), settings)
    folder = arguments.out or RUNS / run.name
    if isinstance(run, Run):
        if arguments.weights is not None:
            raise SimspineError("--weights was given for a lifter; valid is a detector")
        action = _lifter_training(run, folder, arguments.data_dir, note)
    else:
        action = _detector_training(run, folder, arguments.data_dir, arguments.weights, note)
    if not arguments.quiet:
        print(f"{run.name}: {run.steps} steps of {run.batch_size} samples; a whole run of this config takes "
              f"about {run.expected.minutes:g} minutes on {run.expected.machine}")  # fmt: skip
    try:
        done = with_bar(run, arguments.quiet, action)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(left_behind(folder)) from None
    if not arguments.quiet:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in done.losses.items())
        print(f"{folder}: {done.steps} steps, {done.seconds:.0f} s" + (f"; last {losses}" if losses else ""))
    return 0


def left_behind(folder: Path) -> str:
    """What an interrupted training leaves."""
    from simspine_jax.training.checkpoints import saved_steps
    from simspine_jax.training.loop import FOLDER

    steps = saved_steps(folder / FOLDER)
    if not steps:
        return f"no checkpoint was saved in {folder} yet, and the same command begins anew"
    return f"the checkpoint of step {steps[-1]} is in {folder}, and the same command continues from it"


def _lifter_training(
    run: Run, folder: Path, data_dir: Path | None, note: Note
) -> Callable[[Progress], Trained[Any]]:
    from simspine_jax.datasets import open_clips
    from simspine_jax.training.loop import train as run_training

    clips = open_clips(run.data.config, "train", data_dir)
    return lambda progress: run_training(run, clips, folder, spine=_spine(run), progress=progress, note=note)


def _detector_training(
    run: DetectorRun, folder: Path, data_dir: Path | None, start: Path | None, note: Note
) -> Callable[[Progress], Trained[Any]]:
    from simspine_jax.training.detectors import open_crops, train_detector

    crops = open_crops(run, data_dir, note=note)
    return lambda progress: train_detector(run, crops, folder, start=start, progress=progress, note=note)


def with_bar(run: Run | DetectorRun, quiet: bool, action: Callable[[Progress], Any]) -> Any:
    """Shows steps, their rate, what is left and the losses on stderr: a bar, or lines where it is a file."""
    from tqdm import tqdm

    if not quiet and not sys.stderr.isatty():
        return action(_Lines(run))
    with tqdm(total=run.steps, unit="step", disable=quiet) as bar:

        def progress(done: int, losses: dict[str, float]) -> None:
            interrupts.check()
            if bar.n == 0 and done > run.log_every:
                # A training that goes on: what was done before is no part of the rate.
                bar.initial = bar.n = done
            bar.update(done - bar.n)
            bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)

        return action(progress)


LINE_S = 15.0
"""Between lines of progress in a file, at least, but for those of checkpoints."""


class _Lines:
    """A `Progress` that writes a line now and then and at each checkpoint."""

    def __init__(self, run: Run | DetectorRun) -> None:
        self._run, self._first, self._last = run, (-1, 0.0), time.perf_counter()

    def __call__(self, done: int, losses: dict[str, float]) -> None:
        interrupts.check()
        first, began = self._first
        if first < 0:
            # The first steps had to be compiled, and are no part of the rate.
            self._first = done, time.perf_counter()
        elif done > first and (done % self._run.save_every == 0 or time.perf_counter() - self._last > LINE_S):
            self._last = time.perf_counter()
            rate = (done - first) / (time.perf_counter() - began)
            left = (self._run.steps - done) / rate / 60
            told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            print(f"step {done} of {self._run.steps}, {rate * self._run.batch_size:.1f} samples/s, "
                  f"{left:.0f} minutes left; {told}", file=sys.stderr, flush=True)  # fmt: skip


def _spine(run: Run) -> SpineModel | None:
    from simspine_jax.training.models import needs_body

    return load_spine() if needs_body(run) else None


def load_spine() -> SpineModel:
    """The paper's model in float32, converted once a machine."""
    import jax.numpy as jnp

    from simspine_jax.kinematics.model import load_model
    from simspine_jax.pipeline.spine import converted_spine

    return load_model(converted_spine(), dtype=jnp.float32)


def evaluate(arguments: argparse.Namespace, note: Note) -> int:
    """Prints how good a trained lifter or detector is."""
    from simspine_jax.io.files import atomic_write
    from simspine_jax.tables import format_table
    from simspine_jax.training.detector_run import MODELS
    from simspine_jax.training.loop import RUN_FILE
    from simspine_jax.training.run import model_kind

    suffix = None if arguments.out is None else arguments.out.suffix.lower().removeprefix(".")
    if suffix is not None and suffix not in TABLE_FORMATS:
        raise SimspineError(f"Can't write '{arguments.out}'; valid are names in .{', .'.join(TABLE_FORMATS)}")
    is_detector = model_kind(arguments.checkpoint / RUN_FILE) in MODELS
    table = (_detector_table if is_detector else _lifter_table)(arguments, note)
    print(format_table(table, arguments.format), end="")
    if arguments.out is not None and suffix is not None:
        with atomic_write(arguments.out) as file:
            file.write(format_table(table, suffix))
    return 0


def _lifter_table(arguments: argparse.Namespace, note: Note) -> Table:
    from simspine_jax.datasets import open_clips
    from simspine_jax.lifting.errors import FILE, write_errors
    from simspine_jax.training.evaluation import evaluate as errors_of
    from simspine_jax.training.evaluation import lifter_errors, score_table

    for name in ("pictures", "on"):
        if getattr(arguments, name) is not None:
            raise SimspineError(
                f"--{name} was given for a lifter, which sees no pictures; valid is a detector"
            )
    run, model, steps = _load(arguments.checkpoint, note)
    run = replace(run, data=replace(run.data, source=arguments.input or run.data.source))
    split = arguments.split or SPLIT
    clips = open_clips(run.data.config, split, arguments.data_dir)
    scores = errors_of(run, model, clips)
    source = f"simspine/{run.data.config}" + (" (synthetic)" if run.data.target == "truth" else "")
    if arguments.errors:
        what = f"{source}, split {split}, {run.data.source} 2D keypoints"
        write_errors(arguments.checkpoint / FILE, lifter_errors(run, model, clips, source=what))
    return score_table(run, scores, split=split, source=source, steps=steps)


def _detector_table(arguments: argparse.Namespace, note: Note) -> Table:
    from tqdm import tqdm

    from simspine_jax.datasets.picture_files import told_problems
    from simspine_jax.detection.inference import Detector
    from simspine_jax.training.detector_evaluation import (
        detect,
        detector_scores,
        detector_table,
        draw_detections,
    )
    from simspine_jax.training.detectors import load_trained_detector

    if arguments.errors:
        raise SimspineError("--errors was given for a detector, of which no fit asks; valid is a lifter")
    if arguments.input is not None:
        raise SimspineError("--input was given for a detector, which finds 2D keypoints; valid is a lifter")
    run, model, steps = load_trained_detector(arguments.checkpoint, note=note)
    source, split, pictures = _pictures(run, arguments, note)
    with tqdm(total=len(pictures), unit="picture", disable=not sys.stderr.isatty()) as bar:
        found = detect(Detector.of(model, run.model, run.pixels), pictures, progress=bar.update)
    for sentence in told_problems(found.left_out):
        note(sentence)
    if arguments.pictures is not None:
        print(f"{draw_detections(pictures, found, arguments.pictures)}: truth at the left of each pair")
    return detector_table(run, detector_scores(found), split=split, source=source, steps=steps)


def _pictures(
    run: DetectorRun, arguments: argparse.Namespace, note: Note
) -> tuple[str, str | None, PictureSequence]:
    """What a detector is evaluated on, in words, its split if it has any, and itself."""
    from simspine_jax.datasets import open_pictures
    from simspine_jax.datasets.sources import SourceText, open_source

    text, split = arguments.on or run.data.source, arguments.split or SPLIT
    if text is None:
        name = f"simspine/{run.data.config}"
        return name, split, open_pictures(run.data.config, split, arguments.data_dir)
    source = SourceText.of(text)
    if arguments.on is None and not source.has_splits:
        raise SimspineError(
            f"{text}, which it was trained on, has no test split; valid is another set, by --on"
        )
    if arguments.split is not None and not source.has_splits:
        own = "names its split itself" if source.own_split else "has no splits"
        raise SimspineError(f"--split has no effect on {text}, which {own}; valid is to leave it out")
    pictures = open_source(source, split, data_dir=arguments.data_dir, note=note)
    return text, split if source.has_splits else source.own_split, pictures


def lift(arguments: argparse.Namespace, note: Note) -> int:
    """Lifts a file."""
    from simspine_jax.pipeline.lift import lift_view, read_camera, read_view, view_remarks, write_lifted

    view = read_view(arguments.keypoints, arguments.view, schema=arguments.schema, rate_hz=arguments.rate)
    camera = read_camera(arguments.camera, view.camera_names[0], arguments.subject, arguments.view)
    run, model, _ = _load(arguments.checkpoint, note)
    for remark in view_remarks(run, model, view):
        note(remark)
    trial = lift_view(run, model, view, camera)
    written = write_lifted(arguments.out, trial, load_spine)
    told = f"{len(trial.times)} frames at {trial.rate_hz:g} Hz, {trial.frame}"
    print(", ".join(map(str, written)) + f": {told}")
    return 0


def _load(folder: Path, note: Note) -> tuple[Run, LifterModule, int]:
    from simspine_jax.training.loop import load_trained

    return load_trained(folder, load_spine, note=note)
