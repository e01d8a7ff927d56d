"""The training loop: from a run and a folder to checkpoints and curves; it resumes where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from simspine_jax.arrays import Array
from simspine_jax.datasets import BatchState, ClipSequence, statistics_of
from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.io.files import make_folder, place
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.training.checkpoints import FOLDER, Checkpoints, Note
from simspine_jax.training.data import Rows, prepare, training_samples
from simspine_jax.training.logs import Logs
from simspine_jax.training.models import LifterModule, build_lifter, empty_statistics, needs_body
from simspine_jax.training.run import Run, read_run, write_run
from simspine_jax.training.state import (
    Model,
    TrainState,
    assembled,
    data_mesh,
    data_state,
    initial_state,
    make_step,
    replicated,
)

RUN_FILE = "run.json"
LOGS = "logs"

Progress = Callable[[int, dict[str, float]], None]
"""Called with the steps done and the latest means of losses by name."""


class AnyRun(Protocol):
    """What the loop reads of a run of any kind; see `run.Run`."""

    @property
    def steps(self) -> int:
        """Of the optimiser."""
        ...

    @property
    def log_every(self) -> int:
        """Steps."""
        ...

    @property
    def save_every(self) -> int:
        """Steps."""
        ...

    @property
    def keep(self) -> int:
        """Checkpoints."""
        ...


@dataclass(frozen=True, eq=False)
class Trained(Generic[Model]):
    """A finished training.

    Attributes:
        folder: of checkpoints, curves and the run.
        model: with its last weights, or their average.
        steps: done in all.
        seconds: of this call's own steps.
        losses: means over the last steps.
    """

    folder: Path
    model: Model
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
) -> Trained[LifterModule]:
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
    if (folder / RUN_FILE).exists():
        check_same_run(folder, run)
    write_run(folder / RUN_FILE, run)
    samples = training_samples(run, clips)
    rows, statistics = prepare(samples), statistics_of(samples)

    def begun() -> tuple[Learner, TrainState]:
        structure, state = initial_state(build_lifter(run, statistics, spine), run)
        return LifterLearner(run, rows, structure), state

    return train_learner(run, begun, folder, progress=progress, note=note)


def check_same_run(folder: Path, run: Run) -> None:
    """Refuses a folder whose training is another than this run, but for what doesn't change its numbers.

    Raises:
        SimspineError: it is another, or damaged.
    """
    check_same(folder, read_run(folder / RUN_FILE), run)


def check_same(folder: Path, older: Any, run: Any) -> None:
    """The same of a run of any kind, and the one that the folder holds."""
    free = {"keep": run.keep, "save_every": run.save_every, "log_every": run.log_every}
    if (before := replace(older, **free, expected=run.expected)) != run:
        told = "; ".join(_differences(before, run))
        raise SimspineError(
            f"{place(folder)} holds the training of another run, {older.name} with other settings ({told}); "
            "valid is the same run, which goes on, or another folder"
        )


def _differences(older: Any, run: Any, within: str = "") -> list[str]:
    """Settings that two runs have unlike."""
    if type(older) is not type(run):
        return [f"{within.rstrip('.') or 'the run'} is of another kind"]
    found = []
    for name in (f.name for f in fields(older)):
        a, b = getattr(older, name), getattr(run, name)
        if is_dataclass(a) and is_dataclass(b):
            found += _differences(a, b, f"{within}{name}.")
        elif a != b:
            found.append(f"{within}{name} {a} there, {b} here")
    return found


class Learner(Protocol):
    """What the loop asks of a kind of model: its steps, and where its data are."""

    structure: nnx.GraphDef[Any]
    mesh: Mesh

    def begin(self, done: int, place: Any) -> None:
        """Goes to the data of the step after so many; ``place`` is what `place` told then, if anything."""
        ...

    def step(self, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """The next step: the state after it, and its losses by name."""
        ...

    def data(self, done: int) -> BatchState:
        """Where the data are after so many steps."""
        ...

    def place(self) -> Any:
        """JSON that brings the data there again; None where the number of steps is enough."""
        ...


class LifterLearner:
    """A lifter on samples that are on the device; see `Learner`."""

    def __init__(self, run: Run, rows: Rows, structure: nnx.GraphDef[LifterModule]) -> None:
        self.structure, self.mesh = structure, data_mesh()
        self._run, self._rows = run, jax.device_put(rows, replicated(self.mesh))
        self._step = make_step(structure, run, rows, self.mesh)

    def begin(self, done: int, place: Any) -> None:
        """See `Learner`: the state's own number tells the batch."""

    def step(self, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """See `Learner`."""
        return self._step(state, self._rows)

    def data(self, done: int) -> BatchState:
        """See `Learner`."""
        return data_state(done, self._run, len(self._rows))

    def place(self) -> Any:
        """See `Learner`."""
        return None


def train_learner(
    run: AnyRun,
    begun: Callable[[], tuple[Learner, TrainState]],
    folder: Path,
    *,
    progress: Progress | None = None,
    note: Note = print,
) -> Trained[Any]:
    """Trains what a run of any kind is about, or goes on with it; see `train`.

    Args:
        run: what to train; its JSON is in the folder already.
        begun: opens the data and gives the state before the first step.
        folder: gets checkpoints and curves.
        progress: told about steps and losses.
        note: told of damaged checkpoints.
    """
    checkpoints = Checkpoints(folder / FOLDER, keep=run.keep, note=note)
    try:
        trained = _train(run, *begun(), folder, checkpoints, progress)
        checkpoints.close()
    except BaseException:
        checkpoints.abandon()
        raise
    return trained


def _train(
    run: AnyRun,
    learner: Learner,
    state: TrainState,
    folder: Path,
    checkpoints: Checkpoints,
    progress: Progress | None,
) -> Trained[Any]:
    restored = checkpoints.restore_all(state, learner.data(0))
    state, place = (state, None) if restored is None else restored
    state = jax.device_put(state, replicated(learner.mesh))
    done = int(state.step)
    learner.begin(done, place)
    if 0 < done < run.steps:
        checkpoints.note(f"the training goes on after step {done} of {run.steps}")
    elif done >= run.steps:
        checkpoints.note("the training was complete")
    logs, began, means = Logs(folder / LOGS, done), time.perf_counter(), {}
    try:
        while done < run.steps:
            until = min(run.steps, done + run.log_every - done % run.log_every)
            state, means = _steps(learner, state, until - done, checkpoints, done)
            done = until
            logs.write(done, means)
            if progress is not None:
                progress(done, means)
            if done % run.save_every == 0 or done == run.steps:
                checkpoints.save(state, learner.data(done), learner.place())
    finally:
        logs.close()
    return Trained(folder, assembled(learner.structure, state), done, time.perf_counter() - began, means)


def _steps(
    learner: Learner, state: TrainState, count: int, checkpoints: Checkpoints, done: int
) -> tuple[TrainState, dict[str, float]]:
    """So many steps, and the means of what they tell; stops where a number isn't one any more."""
    told: list[dict[str, Array]] = []
    for _ in range(count):
        state, metrics = learner.step(state)
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
