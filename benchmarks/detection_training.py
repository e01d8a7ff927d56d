"""What feeds the training of a detector, how fast that goes, and how good detectors are afterwards.

Scores are of trainings in the folder that ``SIMSPINE_RUNS`` names. The run ``spinepose_s_short`` is trained
there where it isn't yet; those that overfit take up to an hour each, so that they are only read.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.detection_end_to_end import Errors, render_in_process, run
from benchmarks.detection_models import QUICK
from benchmarks.detection_overfit import overfit_auc, overfit_folder
from benchmarks.lifting_models import RUNS_VARIABLE
from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import SEED, Workplace
from simspine_jax.datasets import PictureSequence, open_pictures, picture_batches, pictures_in_memory
from simspine_jax.detection.curriculum import HARD
from simspine_jax.detection.inference import Detector
from simspine_jax.detection.models import build_detector
from simspine_jax.detection.photometric import sample_keys
from simspine_jax.errors import MissingDependencyError, SimspineError
from simspine_jax.pictures import CROP_SIZE, VISIBLE, Picture, encode_jpeg
from simspine_jax.skeleton import N_KEYPOINTS
from simspine_jax.training.detector_evaluation import DetectorScores, detect, detector_scores
from simspine_jax.training.detector_run import DetectorRun, load_detector_run
from simspine_jax.training.detector_step import initial_detector_state
from simspine_jax.training.detectors import (
    DetectorLearner,
    OneSet,
    load_trained_detector,
    train_detector,
)
from simspine_jax.training.loop import RUN_FILE
from simspine_jax.training.state import replicated

SHORT = "spinepose_s_short"
STEPS = 8  # of a round
PICTURES, CROPS = 1024, 64  # of a round, and of a batch
HELD_OUT = "synthetic: simspine/synthetic_images, rendered; trained on S1 S5 S6 S7 S8, tested on S9 S11"
SCORED = (
    "Thresholds 0, 0.05, ... 0.95 of the shorter side of the person's box, mean over people and then over "
    "keypoints, 0.95 at most; true boxes, flip test"
)


def _pictures(place: Workplace, split: str) -> tuple[PictureSequence, str]:
    """Rendered pictures of the built dataset, and what they are; a few of random numbers in a quick run."""
    if place.quick:
        made = [_random_picture(seed) for seed in range(8)]
        return pictures_in_memory(made), f"synthetic: {len(made)} pictures of random numbers"
    try:
        found = open_pictures("synthetic_images", split)
    except (MissingDependencyError, SimspineError) as error:
        raise SkippedError(str(error)) from None
    shape = f"{found[0].width}x{found[0].height}"
    return found, f"synthetic: {len(found)} rendered pictures of about {shape} px, simspine/synthetic_images"


def _random_picture(seed: int) -> Picture:
    random, side = np.random.default_rng(seed), 128
    unknown = np.full((3, 3), np.nan)
    return Picture(
        jpeg=encode_jpeg(random.integers(0, 256, (side, side, 3)).astype(np.uint8)),
        width=side, height=side, subject="S1", action="Standing", camera="free", frame=seed,
        is_synthetic=True, appearance_seed=seed,
        box=np.array([8, 8, side - 16, side - 16], np.float32), area=float(side**2) / 2,
        keypoints_2d=random.uniform(16, side - 16, (N_KEYPOINTS, 2)).astype(np.float32),
        visibility=np.full(N_KEYPOINTS, VISIBLE, np.int32),
        keypoints_3d=np.full((N_KEYPOINTS, 3), np.nan, np.float32),
        camera_matrix=unknown, camera_rotation=unknown, camera_translation=unknown[0],
        camera_distortion=np.zeros(8),
    )  # fmt: skip


# --- rates ---


def augmentation(place: Workplace) -> Iterator[Measurement]:
    """Crops as trainings get them; the host's part alone takes turns with the whole."""
    pictures, data = _pictures(place, f"train[:{PICTURES}]")
    size, crop = place.size(CROPS, 4), HARD.crop(CROP_SIZE)

    def host() -> None:
        for _ in picture_batches(pictures, size, SEED, epochs=1, crop=crop):
            pass

    def whole() -> None:
        last = None
        for number, batch in enumerate(picture_batches(pictures, size, SEED, epochs=1, crop=crop)):
            pixels, index = jax.device_put((batch.pixels, batch.index))
            crops = HARD.augment(pixels, sample_keys(SEED, number, index))
            jax.block_until_ready(last)  # as in a training, the device has one batch at most before it
            last = crops
        jax.block_until_ready(last)

    best, count = interleaved({"whole": whole, "host": host}, place.repeats), len(pictures) // size * size
    yield Measurement(
        "detection/augment_crops_per_s", count / best["whole"], data,
        f"Batches of {size}, from opening the set to the last crop.",
        {"host_alone_crops_per_s": round(count / best["host"], 1)},
    )  # fmt: skip


def training(place: Workplace) -> Iterator[Measurement]:
    """Steps of the short run of SpinePose-s, which wait for their crops."""
    pictures, data = _pictures(place, "train")
    short, count = _short(place), place.size(STEPS, 1)
    structure, state = initial_detector_state(build_detector(short.model, seed=short.seed), short)
    learner = DetectorLearner(short, OneSet(pictures), structure)
    learner.begin(0, None)
    state, _ = learner.step(jax.device_put(state, replicated(learner.mesh)))
    jax.block_until_ready(state)
    best = math.inf
    for _ in range(place.repeats):
        began = time.perf_counter()
        for _ in range(count):
            state, _ = learner.step(state)
        jax.block_until_ready(state)
        best = min(best, (time.perf_counter() - began) / count)
    note = f"{_described(short)}; {count} steps a round."
    yield Measurement("detection/train_images_per_s/spinepose_s", short.batch_size / best, data, note)


# --- scores ---


def _short(place: Workplace) -> DetectorRun:
    short = load_detector_run(SHORT)
    if not place.quick:
        return short
    return replace(short, model=QUICK["spinepose_s"], steps=4, save_every=4, log_every=2, batch_size=4)


def _described(short: DetectorRun) -> str:
    height, width = short.model.size
    return f"Config {short.name}, crops of {height}x{width}, batches of {short.batch_size}"


def _runs(place: Workplace) -> Path:
    """The folder of trainings."""
    return place.folder if place.quick else Path(os.environ.get(RUNS_VARIABLE) or place.folder)


def trained(place: Workplace) -> Iterator[Measurement]:
    """The short run of SpinePose-s on the test split, trained where it isn't yet."""
    folder, short = _runs(place) / SHORT, _short(place)
    (learned, data), (held_out, _) = (_pictures(place, split) for split in ("train", "test"))
    began, is_new = time.perf_counter(), not (folder / RUN_FILE).exists()
    train_detector(short, learned, folder)
    minutes = (time.perf_counter() - began) / 60
    kept, model, steps = load_trained_detector(folder)
    scores = detector_scores(detect(Detector.of(model, kept.model, kept.pixels), held_out))
    cost = f"{steps} steps" + (f" in {minutes:.0f} minutes" if is_new else "")
    yield Measurement(
        "detection/spinepose_s/synthetic_auc", scores.auc["all"], data if place.quick else HELD_OUT,
        f"{SCORED}. {_described(kept)}, {cost}; {scores.pictures} pictures. The mean pose of these crops, "
        f"found in each of them, would have {scores.fixed_auc['all']:.3f}.",
        _score_detail(scores),
    )  # fmt: skip


def _score_detail(scores: DetectorScores) -> dict[str, dict[str, float | None]]:
    oks = {name: {subset: getattr(o, name) for subset, o in scores.oks.items()} for name in ("ap", "ar")}
    named = {"auc": scores.auc, "mean_pose_auc": scores.fixed_auc, "pck_0.1": scores.pck, **oks}
    return {name: _rounded(values) for name, values in named.items()}


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """For a row, which has no NaN."""
    return {name: round(float(x), 4) if math.isfinite(x) else None for name, x in values.items()}


def overfit(place: Workplace, model: str) -> Iterator[Measurement]:
    """What `benchmarks.detection_overfit` trained."""
    folder = overfit_folder(_runs(place), model)
    runs = os.environ.get(RUNS_VARIABLE) or "FOLDER"
    command = f"`{RUNS_VARIABLE}={runs} python -m benchmarks.detection_overfit {model}`"
    if not (folder / RUN_FILE).exists():
        raise SkippedError(f"there is no training to read; {command} makes it, in minutes to an hour")
    try:
        auc, run = overfit_auc(folder)
        height, width = run.model.size
    except SimspineError as error:
        raise SkippedError(f"{error}; {command} goes on with it") from None
    yield Measurement(
        f"detection/{model}/overfit_auc", auc,
        "synthetic: 32 rendered pictures of simspine/synthetic_images, trained and tested on",
        f"{SCORED}. {run.steps} steps of {run.batch_size} crops of {width}x{height}.",
    )  # fmt: skip


# --- from pictures to vertebrae ---


def end_to_end_stand_in(place: Workplace) -> Iterator[Measurement]:
    """Without a detector, so that there is a figure where none is trained."""
    yield from _end_to_end(place, None, "end_to_end_stand_in_spine_mpjpe_mm")


def end_to_end(place: Workplace) -> Iterator[Measurement]:
    """With the short run of SpinePose-s, where it is trained."""
    folder = _runs(place) / SHORT
    try:
        short, _, steps = load_trained_detector(folder)
    except SimspineError:
        raise SkippedError(f"{SHORT} is not trained; the row spinepose_s/synthetic_auc does it") from None
    if steps < short.steps:
        raise SkippedError(f"{SHORT} is at step {steps} of {short.steps}; spinepose_s/synthetic_auc goes on")
    yield from _end_to_end(place, folder, "end_to_end_spine_mpjpe_mm")


def _end_to_end(place: Workplace, detector: Path | None, name: str) -> Iterator[Measurement]:
    clip, work = place.folder / "clip", place.folder / name
    if not (clip / "truth.npz").exists():
        try:
            render_in_process(clip)
        except RuntimeError as error:
            # The library's own refusal is that of a machine without OpenGL; anything else is a defect.
            if "simspine_jax.errors." not in str(error):
                raise
            raise SkippedError(str(error)) from None
    work.mkdir()
    errors = run(detector, work, clip=clip)
    table = errors.table()
    note = "Detections are the truth with errors." if detector is None else f"The detector is {SHORT}."
    yield Measurement(f"detection/{name}", errors.spine_mpjpe_mm, table.source, note, _error_detail(errors))


def _error_detail(errors: Errors) -> dict[str, dict[str, float | None]]:
    tables = {
        "detected_median_px": errors.detected_px,
        "triangulated_mpjpe_mm": errors.triangulated_mm,
        "simulated_mpjpe_mm": errors.simulated_mm,
        "rotations_rms_deg": errors.rotations_deg,
    }
    return {name: _rounded(dict(values)) for name, values in tables.items()}
