"""The training loop: from a run and a folder to checkpoints and curves; it resumes where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from simspine_jax.arrays import Array
from simspine_jax.datasets import ClipSequence, Statistics, statistics_of
from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.io.files import make_folder, place
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.training.checkpoints import FOLDER, Checkpoints, Note
from simspine_jax.training.data import Rows, prepare, training_samples
from simspine_jax.training.logs import Logs
from simspine_jax.training.models import LifterModule, build_lifter, empty_statistics, needs_body
from simspine_jax.training.run import Run, read_run, write_run
from simspine_jax.training.state import (
    TrainState,
    assembled,
    data_mesh,
    data_state,
    initial_state,
    make_step,
)

RUN_FILE = "run.json"
LOGS = "logs"

Progress = Callable[[int, dict[str, float]], None]
"""Called with the steps done and the latest means of losses by name."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Attributes:
        folder: of checkpoints, curves and the run.
        model: with its last weights, or their average.
        steps: done in all.
        seconds: of this call's own steps.
        losses: means over the last steps.
    """

    folder: Path
    model: LifterModule
    steps: int
    seconds: float
    losses: dict[str, float]


def train(
    run: Run,
    clips: ClipSequence,
    folder: Path,
    *,
    spine: SpineModel | None = None,
    progress: Progress | None = None,
    note: Note = print,
) -> Trained:
    """Trains, or goes on with a training that was stopped.

    Killed at any time and called again, it ends with the same numbers as if it had not been stopped.

    Args:
        run: what to train, and how.
        clips: to learn from.
        folder: gets ``run.json``, checkpoints and curves.
        spine: the spine model, for the kinematic lifter.
        progress: told about steps and losses.
        note: told of damaged checkpoints.

    Raises:
        SimspineError: the folder holds another run or can't be written, the loss is no number any more, or
            the data don't do.
    """
    make_folder(folder)
    _keep_run(folder, run)
    samples = training_samples(run, clips)
    rows, statistics = prepare(samples), statistics_of(samples)
    checkpoints = Checkpoints(folder / FOLDER, keep=run.keep, note=note)
    try:
        trained = _train(run, rows, statistics, spine, folder, checkpoints, progress)
        checkpoints.close()
    except BaseException:
        checkpoints.abandon()
        raise
    return trained


def _keep_run(folder: Path, run: Run) -> None:
    """Writes the run; an older one there must be the same but for what doesn't change its numbers."""
    path = folder / RUN_FILE
    if path.exists():
        check_same_run(folder, run)
    write_run(path, run)


def check_same_run(folder: Path, run: Run) -> None:
    """Refuses a folder whose training is another than this run, but for what doesn't change its numbers.

    Raises:
        SimspineError: it is another, or damaged.
    """
    older = read_run(folder / RUN_FILE)
    free = {"keep": run.keep, "save_every": run.save_every, "log_every": run.log_every}
    if replace(older, **free, expected=run.expected) != run:
        raise SimspineError(
            f"{place(folder)} holds the training of another run, {older.name} with other settings; "
            "valid is the same run, which goes on, or another folder"
        )


def _train(
    run: Run,
    rows: Rows,
    statistics: Statistics,
    spine: SpineModel | None,
    folder: Path,
    checkpoints: Checkpoints,
    progress: Progress | None,
) -> Trained:
    structure, state = initial_state(build_lifter(run, statistics, spine), run)
    mesh = data_mesh()
    step = make_step(structure, run, rows, mesh)
    restored = checkpoints.restore(state, data_state(0, run, len(rows)))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state, rows = jax.device_put((state if restored is None else restored, rows), whole)
    done = int(state.step)
    logs, began, means = Logs(folder / LOGS, done), time.perf_counter(), {}
    try:
        while done < run.steps:
            until = min(run.steps, done + run.log_every - done % run.log_every)
            state, means = _steps(step, state, rows, until - done, checkpoints, done)
            done = until
            logs.write(done, means)
            if progress is not None:
                progress(done, means)
            if done % run.save_every == 0 or done == run.steps:
                checkpoints.save(state, data_state(done, run, len(rows)))
    finally:
        logs.close()
    return Trained(folder, assembled(structure, state), done, time.perf_counter() - began, means)


def _steps(
    step, state: TrainState, rows: Rows, count: int, checkpoints: Checkpoints, done: int
) -> tuple[TrainState, dict[str, float]]:
    """So many steps, and the means of what they tell; stops where a number isn't one any more."""
    told: list[dict[str, Array]] = []
    for _ in range(count):
        state, metrics = step(state, rows)
        told.append(metrics)
    values = {name: np.array([float(m[name]) for m in told]) for name in told[0]}
    bad = [
        done + 1 + int(np.flatnonzero(~np.isfinite(values[name]))[0])
        for name in ("loss", "gradient_norm")
        if not np.isfinite(values[name]).all()
    ]
    if bad:
        checkpoints.wait()
        good = checkpoints.steps
        kept = (
            f"the checkpoint of step {good[-1]} is the last good one"
            if good
            else "there is no checkpoint yet"
        )
        raise SimspineError(
            f"The loss or its gradient is not finite at step {min(bad)}; {kept} in "
            f"{place(checkpoints.folder)}; valid is a run with a smaller "
            "optimiser.learning_rate or with optimiser.clip"
        )
    return state, {name: float(of.mean()) for name, of in values.items()}


def keep_model(run: Run, model: LifterModule, folder: Path, count: int, *, note: Note = print) -> None:
    """Writes a model that was not trained here as the first checkpoint of a training.

    Args:
        run: that it belongs to.
        model: with its weights.
        folder: of the training; it must not hold another.
        count: samples of the training set.
        note: told of damaged checkpoints.

    Raises:
        SimspineError: the folder holds a training or can't be written.
    """
    make_folder(folder)
    if (folder / RUN_FILE).exists():
        raise SimspineError(f"{place(folder)} holds a training; valid is a new folder")
    write_run(folder / RUN_FILE, run)
    checkpoints = Checkpoints(folder / FOLDER, keep=run.keep, note=note)
    checkpoints.save(initial_state(model, run)[1], data_state(0, run, count))
    checkpoints.close()


def load_trained(
    checkpoint: Path, spine: Callable[[], SpineModel], *, note: Note = print
) -> tuple[Run, LifterModule, int]:
    """A trained model by the folder of its training, with its run and how many steps it was trained.

    Args:
        checkpoint: the training's folder.
        spine: gives the spine model; called for the kinematic lifter alone.
        note: told of damaged checkpoints.

    Raises:
        FileFormatError: there is no run or no good checkpoint.
    """
    run = read_run(checkpoint / RUN_FILE)
    model = build_lifter(run, empty_statistics(run), spine() if needs_body(run) else None)
    structure, state = initial_state(model, run)
    checkpoints = Checkpoints(checkpoint / FOLDER, keep=run.keep, read_only=True, note=note)
    restored = checkpoints.restore(state)
    if restored is None:
        raise FileFormatError(
            f"{place(checkpoint)}: it has no checkpoint yet; valid is a training that saved one"
        )
    checkpoints.close()
    return run, assembled(structure, restored), int(restored.step)
