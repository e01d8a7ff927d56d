"""Rows ``multiview/*``: reconstruction from four views, method beside method, on the synthetic set.

The detections are synthetic, so that none of these errors says how good a method is on pictures of people.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.metrics import Measurement, SkippedError
from benchmarks.workplace import Workplace
from simspine_jax.clip_trials import ClipSet
from simspine_jax.datasets import open_clips
from simspine_jax.errors import MissingDependencyError, SimspineError
from simspine_jax.evaluation.multiview import (
    BASELINE,
    DEFAULT_METHODS,
    MultiViewErrors,
    evaluate_multiview,
)
from simspine_jax.evaluation.views import Source2D

CONFIG, SPLIT = "synthetic", "test"
QUICK_ACTIONS = ("Sitting", "Walking")

_FITTED = "detections are synthetic, with noise fitted to the paper's table for its"
_DETECTIONS = {
    "truth": "2D are exact pictures",
    "detected": f"{_FITTED} fine-tuned detector",
    "zero_shot": f"{_FITTED} zero-shot detector",
}
_FAVOURED = (
    "Captures favour the model: the truth is the same body in motion but for soft tissue, and constants of "
    "the preset were chosen on captures of the set's seed, 0."
)
_OTHER_TASK = "the paper's numbers are of another task, pictures of people"


def errors(place: Workplace, source: Source2D) -> Iterator[Measurement]:
    """Mean errors of every method by region, and the model's over the baseline's on the points of both."""
    clips = _clips(place)
    found = evaluate_multiview(clips, sources=[source], methods=DEFAULT_METHODS, model=place.spine)
    data = _data(clips, source)
    left_out = {"left_out": [str(what) for what in found.left_out]} if found.left_out else {}
    for method in DEFAULT_METHODS:
        note = _FAVOURED if method == "model" else ""
        if (source, method) not in found.errors:
            raise SkippedError("; ".join(map(str, found.left_out)))
        errors = found.errors[source, method]
        for region in errors.regions:
            detail = {
                "coverage": errors.coverage(),
                "p_mpjpe_mm": errors.mean_mm(aligned=True, region=region),
                "interval_95_mm": errors.interval_mm(aligned=False, region=region),
                "frames": len(errors.trial),
            }
            yield Measurement(
                f"multiview/{source}/{method}/{region}_mpjpe_mm",
                errors.mean_mm(aligned=False, region=region), data, note, detail | left_out,
            )  # fmt: skip
    if source != "truth":
        yield from _ratios(found, source, data)


def _ratios(found: MultiViewErrors, source: Source2D, data: str) -> Iterator[Measurement]:
    for region, both in found.compare(source, "model", BASELINE).items():
        detail = {"share_of_points": both.share, "model_mm": both.mpjpe_mm, f"{BASELINE}_mm": both.against_mm}
        key = f"multiview/{source}/model_vs_weighted/{region}"
        yield Measurement(key, both.ratio, data, _FAVOURED, detail)


def _clips(place: Workplace) -> ClipSet:
    try:
        clips = ClipSet.of(open_clips(CONFIG, SPLIT))
        return clips.select(["S9"], QUICK_ACTIONS) if place.quick else clips
    except (MissingDependencyError, SimspineError) as error:
        raise SkippedError(str(error)) from None


def _data(clips: ClipSet, source: Source2D) -> str:
    subjects = " ".join(dict.fromkeys(trial.subject for trial in clips.trials))
    return (
        f"synthetic: simspine/{CONFIG}, split {SPLIT} ({subjects}), {len(clips.trials)} trials; "
        f"{_DETECTIONS[source]}; {_OTHER_TASK}"
    )
