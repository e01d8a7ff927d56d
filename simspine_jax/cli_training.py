"""The commands ``simspine train``, ``simspine evaluate`` and ``simspine lift``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from simspine_jax.cli_parsing import add_output
from simspine_jax.errors import SimspineError
from simspine_jax.tables import TABLE_FORMATS

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel
    from simspine_jax.training.models import LifterModule
    from simspine_jax.training.run import Run

Note = Callable[[str], None]

RUNS = Path("runs")
"""Where trainings go that are not told where."""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine train`` takes."""
    parser.add_argument("config", metavar="CONFIG", help=(
        "simple_spine, simple_full, temporal_full, kinematic_full, or a file that sets RUN"))  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=(
        "settings of the run, such as data.source=truth"))  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="the same as --set steps=N")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets (TensorFlow Datasets' own)")
    add_output(parser, metavar="DIR", help="gets checkpoints and curves (runs/CONFIG)")
    parser.add_argument("--quiet", action="store_true", help="print failures only")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine evaluate`` takes."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a training")
    parser.add_argument("--split", default="test", metavar="S", help="of the dataset (test)")
    parser.add_argument("--input", choices=("detected", "truth"), help="2D keypoints (those of the training)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets (TensorFlow Datasets' own)")
    parser.add_argument("--format", choices=TABLE_FORMATS, default="txt", help="of what is printed (txt)")
    add_output(parser, metavar="FILE", help="also write the table; its ending says how")


def add_lift_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine lift`` takes."""
    parser.add_argument("keypoints", type=Path, metavar="KEYPOINTS", help=(
        "an .npz, COCO results (.json), or a folder with a folder of JSON files a camera"))  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a training")
    parser.add_argument("--camera", type=Path, metavar="FILE", help=(
        "calibration (.toml, .qca.txt, .yml, .xml, .json); the kinematic lifter needs it"))  # fmt: skip
    parser.add_argument("--view", metavar="NAME", help="which camera, where there are several")
    parser.add_argument("--subject", metavar="NAME", help="in h36m_cameras.json")
    parser.add_argument("--schema", metavar="NAME", help="order of keypoints, such as BODY_25B")
    parser.add_argument("--rate", type=float, metavar="HZ", help="of files that don't say it")
    add_output(parser, required=True, metavar="OUT", help="a name in .npz, .trc or .mot; without ending: all")


def train(arguments: argparse.Namespace, note: Note) -> int:
    """Trains, or goes on with a training."""
    from simspine_jax.datasets import open_clips
    from simspine_jax.training.loop import train as run_training
    from simspine_jax.training.run import load_run, with_settings

    settings = [*arguments.set, *([] if arguments.steps is None else [f"steps={arguments.steps}"])]
    run = with_settings(load_run(arguments.config), settings)
    folder = arguments.out or RUNS / run.name
    clips = open_clips(run.data.config, "train", arguments.data_dir)
    if not arguments.quiet:
        print(f"{run.name}: {run.steps} steps of {run.batch_size} samples; a whole run of this config takes "
              f"about {run.expected.minutes:g} minutes on two CPU cores")  # fmt: skip
    try:
        done = with_bar(
            run, arguments.quiet,
            lambda progress: run_training(
                run, clips, folder, spine=_spine(run), progress=progress, note=note
            ),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the last checkpoint is in {folder}, and the same command continues from it"
        ) from None
    if not arguments.quiet:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in done.losses.items())
        print(f"{folder}: {done.steps} steps, {done.seconds:.0f} s" + (f"; last {losses}" if losses else ""))
    return 0


def with_bar(run: Run, quiet: bool, action):
    """Shows steps, their rate, what is left and the losses on a terminal's stderr."""
    from tqdm import tqdm

    with tqdm(total=run.steps, unit="step", disable=quiet or not sys.stderr.isatty()) as bar:

        def progress(done: int, losses: dict[str, float]) -> None:
            if bar.n == 0 and done > run.log_every:
                # A training that goes on: what was done before is no part of the rate.
                bar.initial = bar.n = done
            bar.update(done - bar.n)
            bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)

        return action(progress)


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
    """Prints a trained lifter's errors."""
    from simspine_jax.datasets import open_clips
    from simspine_jax.io.files import atomic_write
    from simspine_jax.tables import format_table
    from simspine_jax.training.evaluation import evaluate as errors_of
    from simspine_jax.training.evaluation import score_table

    suffix = None if arguments.out is None else arguments.out.suffix.lower().removeprefix(".")
    if suffix is not None and suffix not in TABLE_FORMATS:
        raise SimspineError(f"Can't write '{arguments.out}'; valid are names in .{', .'.join(TABLE_FORMATS)}")
    run, model, steps = _load(arguments.checkpoint, note)
    run = replace(run, data=replace(run.data, source=arguments.input or run.data.source))
    clips = open_clips(run.data.config, arguments.split, arguments.data_dir)
    scores = errors_of(run, model, clips)
    source = f"simspine/{run.data.config}" + (" (synthetic)" if run.data.target == "truth" else "")
    table = score_table(run, scores, split=arguments.split, source=source, steps=steps)
    print(format_table(table, arguments.format), end="")
    if arguments.out is not None and suffix is not None:
        with atomic_write(arguments.out) as file:
            file.write(format_table(table, suffix))
    return 0


def lift(arguments: argparse.Namespace, note: Note) -> int:
    """Lifts a file."""
    from simspine_jax.pipeline.lift import lift_view, read_camera, read_view, write_lifted

    view = read_view(arguments.keypoints, arguments.view, schema=arguments.schema, rate_hz=arguments.rate)
    camera = read_camera(arguments.camera, view.camera_names[0], arguments.subject)
    run, model, _ = _load(arguments.checkpoint, note)
    trial = lift_view(run, model, view, camera)
    written = write_lifted(arguments.out, trial, load_spine)
    print(", ".join(map(str, written)) + f": {len(trial.times)} frames at {trial.rate_hz:g} Hz")
    return 0


def _load(folder: Path, note: Note) -> tuple[Run, LifterModule, int]:
    from simspine_jax.training.loop import load_trained

    return load_trained(folder, load_spine, note=note)
