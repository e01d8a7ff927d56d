"""Training: it learns, resumes bit for bit after a kill, runs on several devices, and stops where it must."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_program import RUN, small_clips

from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.training.checkpoints import FOLDER, Checkpoints, named_leaves
from simspine_jax.training.data import prepare, training_samples
from simspine_jax.training.loop import LOGS, load_trained, train
from simspine_jax.training.models import build_lifter, empty_statistics
from simspine_jax.training.run import with_settings
from simspine_jax.training.state import initial_state

pytestmark = pytest.mark.usefixtures("float32")

PROGRAM = Path(__file__).with_name("training_program.py")


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"JAX_ENABLE_X64": "0"} | more


def run_program(folder: Path, *settings: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *settings],
        capture_output=True, text=True, env=environment(**more), timeout=600,
    )  # fmt: skip


def arrays_of(folder: Path, run=RUN) -> dict[str, np.ndarray]:
    """The newest checkpoint's."""
    _, like = initial_state(build_lifter(run, empty_statistics(run), None), run)
    checkpoints = Checkpoints(folder / FOLDER, read_only=True, note=pytest.fail)
    state = checkpoints.restore(like)
    checkpoints.close()
    assert state is not None
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody disturbed, by the program."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = run_program(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_learns_and_keeps_what_it_says(unbroken: Path) -> None:
    arrays = arrays_of(unbroken)
    assert int(arrays["step"]) == RUN.steps
    run, model, steps = load_trained(unbroken, lambda: pytest.fail("no body is needed"))
    assert (run, steps) == (RUN, RUN.steps)
    rows = prepare(training_samples(RUN, small_clips()))
    seen, target = rows.take(np.arange(len(rows)))
    root = seen.root
    wanted = np.asarray(target.keypoints - target.keypoints[:, [root]])
    known = np.asarray(target.mask)
    error = np.linalg.norm(np.asarray(model(seen).keypoints) - wanted, axis=-1)[known].mean()
    spread = np.linalg.norm(wanted - wanted[known.all(1)].mean(0), axis=-1)[known].mean()
    assert error < 0.7 * spread


def test_the_curves_are_tensorboards(unbroken: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(unbroken / LOGS))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [e.step for e in losses] == list(range(2, RUN.steps + 1, 2))
    assert losses[-1].value < losses[0].value


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_numbers(unbroken: Path, tmp_path: Path) -> None:
    stop = random.randrange(10, RUN.steps - 4, 2)
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(STEP_BY_STEP="1"), **pipes) as child:
        for line in child.stdout:
            if int(line.split()[0]) >= stop:
                # A checkpoint is written beside the training: this one may not have been finished yet.
                while not (tmp_path / FOLDER / "8").is_dir():
                    time.sleep(0.02)
                break
            child.stdin.write("\n")
            child.stdin.flush()
        child.stdin.write("\n")
        child.stdin.flush()
        time.sleep(random.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    again = run_program(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "the training goes on after step" in again.stderr
    first = int(again.stdout.split()[0])
    assert 2 < first <= RUN.steps, "it began anew instead of resuming"
    left, right = arrays_of(unbroken), arrays_of(tmp_path)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


@pytest.mark.slow
def test_four_devices_give_the_same_within_rounding(unbroken: Path, tmp_path: Path) -> None:
    flags = "--xla_force_host_platform_device_count=4"
    settings = ("steps=8", "save_every=8", "log_every=1", "optimiser.learning_rate=1e-3")
    four = run_program(tmp_path / "four", *settings, XLA_FLAGS=flags)
    one = run_program(tmp_path / "one", *settings)
    assert four.returncode == one.returncode == 0, four.stderr + one.stderr
    losses = [np.array([float(line.split()[1]) for line in x.stdout.splitlines()]) for x in (four, one)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < 0.9 * losses[0][0]
    several, single = (arrays_of(tmp_path / x, with_settings(RUN, settings)) for x in ("four", "one"))
    for name, array in single.items():
        if name.startswith("params") and "linear.bias" not in name:
            # Adam divides gradients by their size, so that small ones carry rounding into the weights: of
            # eight steps of 1e-3 a tenth of one may differ. A bias before a normalisation has no gradient at
            # all but rounding, and its steps go anywhere.
            np.testing.assert_allclose(several[name], array, rtol=0, atol=1e-4, err_msg=name)
    refused = run_program(tmp_path / "three", "batch_size=30", XLA_FLAGS=flags)
    assert refused.returncode == 2
    assert "multiples of 4" in refused.stdout


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=8, save_every=8)
    train(run, small_clips(), tmp_path)
    wild = with_settings(run, ["steps=40", "optimiser.learning_rate=1e38"])
    (tmp_path / "run.json").unlink()
    with pytest.raises(
        SimspineError, match=r"not finite at step \d+; the checkpoint of step 8 is the last good"
    ):
        train(wild, small_clips(), tmp_path)
    assert int(arrays_of(tmp_path, wild)["step"]) == 8


def test_another_run_in_the_same_folder_is_refused(unbroken: Path) -> None:
    for setting in ("seed=4", "model.width=32", "data.source=truth"):
        with pytest.raises(SimspineError, match="another folder"):
            train(with_settings(RUN, [setting]), small_clips(), unbroken)


def test_a_finished_training_does_nothing_more(unbroken: Path) -> None:
    before = arrays_of(unbroken)
    done = train(RUN, small_clips(), unbroken)
    assert done.steps == RUN.steps
    for name, array in arrays_of(unbroken).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    assert run_program(tmp_path, "steps=8").returncode == 0
    (tmp_path / "run.json").unlink()

    # No file may grow beyond 60 kB: what a disk without room does to those who write.
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 60; exec "$@"', "bash", sys.executable, str(PROGRAM), str(tmp_path)],
        capture_output=True, text=True, timeout=600,
        env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
    )  # fmt: skip
    assert full.returncode == 2, full.stdout + full.stderr
    assert "the checkpoint of step 16 can't be written" in full.stdout
    assert "the last good one is of step 8" in full.stdout
    run = with_settings(RUN, ["steps=40"])
    assert int(arrays_of(tmp_path, run)["step"]) == 8
    again = run_program(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[0] == "10"


def test_no_training_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"run\.json"):
        load_trained(tmp_path, lambda: pytest.fail("no body is needed"))
