"""What is learned through a solve: marker weights by their effect on vertebrae."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.metrics import Measurement
from benchmarks.workplace import Workplace
from simspine_jax.capture import capture_trial, make_subject
from simspine_jax.fitting.weights import Seen, learn_weights, weighted_error
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.options import PRESETS
from simspine_jax.pipeline.stages import TrialInput, Views, find_points, targets_of
from simspine_jax.skeleton import REGIONS, TRC_NAMES

LEARNED_FROM = (("S1", "Walking"), ("S5", "Greeting"), ("S6", "Sitting"))
TESTED_ON = (("S9", "Directions"), ("S11", "Posing"))
FRAMES, RATE_HZ, SEED, STEPS = 48, 10.0, 3, 25
SPINE = tuple(TRC_NAMES[i] for i in REGIONS["spine"])
DATA = f"synthetic: captures of seed {SEED} with a synthetic detector's errors; the subjects' sizes are known"


def learned_weights(place: Workplace) -> Iterator[Measurement]:
    """Weights learned on three subjects, tested on two others in other motions."""
    model, frames, steps = place.spine, place.size(FRAMES, 8), place.size(STEPS, 1)
    scored = [name for name in model.marker_names if name in SPINE]
    found = learn_weights(model, [seen(model, *who, frames) for who in LEARNED_FROM], scored, steps=steps)
    even = np.ones(model.n_markers)
    errors = [
        [1e3 * weighted_error(model, trial, weights, scored) for weights in (even, found.weights)]
        for trial in (seen(model, *who, frames) for who in TESTED_ON)
    ]
    equal, learned = np.mean(errors, axis=0)
    largest = dict(sorted(zip(model.marker_names, found.weights.round(2).tolist(), strict=True),
                          key=lambda pair: -pair[1]))  # fmt: skip
    yield Measurement(
        "fitting/learned_weights_spine_ratio", learned / equal, DATA,
        f"{equal:.1f} mm with equal weights and {learned:.1f} mm with learned ones, absolute; {steps} steps "
        f"of Adam on {len(LEARNED_FROM)} subjects of {frames} frames.",
        {"weights": largest, "learned_from_mm": [1e3 * error for error in found.errors_m]},
    )  # fmt: skip


def seen(model: SpineModel, subject: str, action: str, frames: int) -> Seen:
    """Triangulated detections of a synthetic trial with its truth."""
    person = make_subject(model, subject, SEED)
    trial = capture_trial(model, person, action, frames / RATE_HZ, RATE_HZ, SEED)
    views = Views(
        trial.cameras, np.asarray(trial.detections.keypoints), np.asarray(trial.detections.confidence)
    )
    options = PRESETS["simspine"]
    points = find_points(TrialInput(action, np.asarray(trial.times), RATE_HZ, views), options)
    order = [TRC_NAMES.index(name) for name in model.marker_names]
    return Seen(
        targets_of(model, points, options).markers[:frames],
        np.asarray(trial.keypoints)[:frames, order],
        np.asarray(person.scale_factors),
    )
