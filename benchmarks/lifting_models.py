"""Lifters: training speed beside PyTorch, and the errors of the runs that come with the package.

Errors are of runs trained here, from their configs, on the synthetic set; a training that is there already,
in the folder that ``SIMSPINE_RUNS`` names, goes on or is used as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import SEED, Workplace
from simspine_jax.datasets import ClipSequence, open_clips
from simspine_jax.errors import MissingDependencyError, SimspineError
from simspine_jax.lifting.observations import Observation, Target
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, N_KEYPOINTS
from simspine_jax.training.data import Rows
from simspine_jax.training.evaluation import Scores, evaluate
from simspine_jax.training.loop import RUN_FILE, load_trained, train
from simspine_jax.training.models import build_lifter, empty_statistics, needs_body
from simspine_jax.training.run import Run, load_run, with_settings
from simspine_jax.training.state import data_mesh, initial_state, make_step

RUNS_VARIABLE = "SIMSPINE_RUNS"
SAMPLES = 8192
STEPS = 10  # of a round
RANDOM = f"synthetic: {SAMPLES} random samples, seed {SEED}"
SYNTHETIC_SET = "synthetic: simspine/synthetic, trained on S1 S5 S6 S7 S8, tested on S9 S11"
UNEQUAL = (
    "The kinematic lifter also has the calibration, which way is up, confidences, angles and changed samples "
    "in training, and in use a mirror image and one body size a trial; its settings were chosen in three "
    "trials on the test subjects."
)
QUICK = ("steps=4", "save_every=4", "log_every=2", "batch_size=8")


def against_pytorch(place: Workplace) -> Iterator[Measurement]:
    """Training steps of SimpleBaseline3D per second over PyTorch's: 37 keypoints, AdamW, data in memory."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SkippedError("PyTorch is not installed") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = load_run("simple_full")
    ratios, detail = [], {}
    for batch in (64, run.batch_size):
        ours, theirs = _our_steps(replace(run, batch_size=batch)), _torch_steps(torch, batch)
        seconds = interleaved({"jax": ours, "torch": theirs}, place.repeats)
        ratios.append(seconds["torch"] / seconds["jax"])
        detail[f"batch_{batch}"] = {name: STEPS / s for name, s in seconds.items()}
    yield Measurement(
        "lifting/simple_baseline_vs_pytorch", min(ratios), RANDOM,
        f"The worse of batches of 64 and {run.batch_size}; PyTorch {torch.__version__}, eager, fused AdamW.",
        {"steps_per_s": detail},
    )  # fmt: skip


def _our_steps(run: Run) -> Callable[[], None]:
    rows = _random_rows(run)
    structure, state = initial_state(build_lifter(run, empty_statistics(run), None), run)
    step = make_step(structure, run, rows, data_mesh())
    held = [state]

    def steps() -> None:
        for _ in range(STEPS):
            held[0], _ = step(held[0], rows)
        jax.block_until_ready(held[0].step)
        jax.block_until_ready(jax.tree.leaves(held[0].params))

    return steps


def _random_rows(run: Run, frames: int | None = None) -> Rows:
    random = np.random.default_rng(SEED)

    def numbers(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(random.normal(0, scale, (SAMPLES, *shape)).astype(np.float32))

    known = jnp.ones((SAMPLES, N_KEYPOINTS), bool)
    up = jnp.broadcast_to(jnp.array([0.0, -1.0, 0.0]), (SAMPLES, 3))
    seen = Observation(
        numbers(N_KEYPOINTS, 2), known, jnp.ones(known.shape), numbers(N_KEYPOINTS, 2, scale=0.05), up,
        KEYPOINT_NAMES,
    )  # fmt: skip
    axes = numbers(len(AXIS_NAMES), scale=0.2)
    target = Target(numbers(N_KEYPOINTS, 3, scale=0.3), known, axes, jnp.ones(axes.shape, bool))
    rows = jnp.arange(SAMPLES, dtype=jnp.int32)
    first = rows if frames is None else rows * 0
    last = rows if frames is None else rows * 0 + SAMPLES - 1
    return Rows(seen, target, rows, first, last, frames)


def _torch_steps(torch, batch: int) -> Callable[[], None]:
    width, n_in, n_out = 1024, 2 * N_KEYPOINTS, 3 * (N_KEYPOINTS - 1)

    def layer(a: int, b: int):
        parts = torch.nn.Linear(a, b), torch.nn.BatchNorm1d(b), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        return torch.nn.Sequential(*parts)

    class Lifter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = layer(n_in, width), torch.nn.Linear(width, n_out)
            pairs = [torch.nn.Sequential(layer(width, width), layer(width, width)) for _ in range(2)]
            self.blocks = torch.nn.ModuleList(pairs)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    torch.manual_seed(SEED)
    model, inputs, targets = Lifter(), torch.randn(SAMPLES, n_in), torch.randn(SAMPLES, n_out)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, fused=True)

    def steps() -> None:
        for _ in range(STEPS):
            index = torch.randint(SAMPLES, (batch,))
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs[index]), targets[index]).backward()
            optimiser.step()

    return steps


def rates(place: Workplace) -> Iterator[Measurement]:
    """Samples per second in training, each lifter with its config's batch; a window is a sample."""
    for name in ("simple_full", "temporal_full", "kinematic_full"):
        run = load_run(name)
        run = with_settings(run, QUICK) if place.quick else run
        rows = _random_rows(run, run.frames)
        spine = place.spine if needs_body(run) else None
        structure, state = initial_state(build_lifter(run, empty_statistics(run), spine), run)
        step = make_step(structure, run, rows, data_mesh())
        state, _ = jax.block_until_ready(step(state, rows))
        best = float("inf")
        for _ in range(place.repeats):
            began = time.perf_counter()
            for _ in range(2):
                state, told = step(state, rows)
            jax.block_until_ready((state.params, told))
            best = min(best, (time.perf_counter() - began) / 2)
        yield Measurement(
            f"lifting/samples_per_s/{name}", run.batch_size / best, RANDOM, f"Batch {run.batch_size}."
        )


def trained(place: Workplace, model: str, source: str) -> Iterator[Measurement]:
    """Errors of a run of the package on the test split."""
    scores, note = _scores(place, model, source)
    key = f"lifting/{model}/{source}"
    yield Measurement(f"{key}/spine_pmpjpe_mm", scores.p_mpjpe_mm["spine"], SYNTHETIC_SET, note)
    yield Measurement(f"{key}/spine_mpjpe_mm", scores.mpjpe_mm["spine"], SYNTHETIC_SET, note)
    if "all" in scores.mpjpe_mm:
        yield Measurement(f"{key}/all_mpjpe_mm", scores.mpjpe_mm["all"], SYNTHETIC_SET, note)
    if model == "kinematic_full" and source == "detected":
        about = {
            "limit_violations": scores.limit_violations,
            "bone_change_mm": scores.bone_change_mm,
            "lumbar_flexion_rms_deg": scores.lumbar_flexion_rms_deg,
        }
        for name, value in about.items():
            yield Measurement(f"lifting/{model}/{name}", value, SYNTHETIC_SET, note)


def kinematic_against_simple(place: Workplace, source: str) -> Iterator[Measurement]:
    """The kinematic lifter's errors over SimpleBaseline3D's."""
    (ours, note), (simple, _) = (_scores(place, m, source) for m in ("kinematic_full", "simple_full"))
    key, note = f"lifting/kinematic_vs_simple/{source}", f"{note} {UNEQUAL}"
    yield Measurement(
        f"{key}/spine_pmpjpe", ours.p_mpjpe_mm["spine"] / simple.p_mpjpe_mm["spine"], SYNTHETIC_SET, note
    )
    yield Measurement(f"{key}/all_mpjpe", ours.mpjpe_mm["all"] / simple.mpjpe_mm["all"], SYNTHETIC_SET, note)


def full_against_spine(place: Workplace, source: str) -> Iterator[Measurement]:
    """SimpleBaseline3D's errors of the spine with all keypoints over those with the spine's alone."""
    (full, note), (alone, _) = (_scores(place, m, source) for m in ("simple_full", "simple_spine"))
    for name in ("p_mpjpe_mm", "mpjpe_mm"):
        ratio = getattr(full, name)["spine"] / getattr(alone, name)["spine"]
        key = name.removesuffix("_mm").replace("p_m", "pm")
        yield Measurement(f"lifting/full_vs_spine/{source}/spine_{key}", ratio, SYNTHETIC_SET, note)


def truth_against_detected(place: Workplace, model: str) -> Iterator[Measurement]:
    """A lifter's error with exact 2D over that with detections."""
    (truth, note), (detected, _) = (_scores(place, model, s) for s in ("truth", "detected"))
    ratio = truth.p_mpjpe_mm["spine"] / detected.p_mpjpe_mm["spine"]
    yield Measurement(f"lifting/truth_vs_detected/{model}/spine_pmpjpe", ratio, SYNTHETIC_SET, note)


def trained_run(place: Workplace, name: str, source: str) -> tuple[Run, Path]:
    """A run and the folder of its training, which is done where it isn't yet."""
    run = with_settings(load_run(name), [f"data.source={source}", *(QUICK if place.quick else ())])
    folder = _folder(place, name, source)
    train(run, _clips(run, "train"), folder, spine=place.spine if needs_body(run) else None)
    return run, folder


def _folder(place: Workplace, name: str, source: str) -> Path:
    base = place.folder if place.quick else Path(os.environ.get(RUNS_VARIABLE) or place.folder)
    return base / f"{name}_{source}"


_FOUND: dict[tuple[str, str], tuple[Scores, str]] = {}


def _scores(place: Workplace, name: str, source: str) -> tuple[Scores, str]:
    """Scores of a run, trained where it isn't yet; once a process."""
    if (name, source) not in _FOUND:
        began, is_new = time.perf_counter(), not (_folder(place, name, source) / RUN_FILE).exists()
        run, folder = trained_run(place, name, source)
        minutes = (time.perf_counter() - began) / 60
        kept, model, steps = load_trained(folder, lambda: place.spine)
        note = f"{steps} steps" + (f" in {minutes:.0f} minutes." if is_new else ".")
        _FOUND[name, source] = evaluate(kept, model, _clips(run, "test")), note
    return _FOUND[name, source]


def _clips(run: Run, split: str) -> ClipSequence:
    try:
        return open_clips(run.data.config, split)
    except (MissingDependencyError, SimspineError) as error:
        raise SkippedError(str(error)) from None
