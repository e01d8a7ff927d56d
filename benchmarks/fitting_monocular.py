"""One camera's pictures fitted with a lifter's keypoints as a prior, beside the lifter alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.lifting_models import trained_run
from benchmarks.metrics import Measurement, SkippedError
from benchmarks.workplace import Workplace
from simspine_jax.clip_trials import ClipSet
from simspine_jax.datasets import ClipSequence, clips_in_memory, open_clips
from simspine_jax.errors import MissingDependencyError, SimspineError
from simspine_jax.evaluation.views import ReferenceTrial, trial_input
from simspine_jax.fitting.subject import SubjectFit
from simspine_jax.fitting.uncertainty import half_width, uncertainty_of
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.metrics.frames import FrameErrors, frame_errors
from simspine_jax.pipeline.fit import fit_trials, run_chain
from simspine_jax.pipeline.fit_files import only_view
from simspine_jax.pipeline.fit_lifted import ROOT
from simspine_jax.pipeline.fit_lifter import TrainedLifter, load_lifter
from simspine_jax.pipeline.stages import TrialInput
from simspine_jax.skeleton import REGIONS, TRC_NAMES
from simspine_jax.training.evaluation import lifter_errors

LIFTER, SOURCE, CONFIG, SPLIT = "temporal_full", "detected", "synthetic", "test"
SUBJECTS, ACTIONS, VIEWS = ("S9", "S11"), ("Directions", "Sitting", "Walking"), (0, 2)
SHARE = 0.9
_ROOT = TRC_NAMES.index(ROOT)
DATA = (
    f"synthetic: simspine/{CONFIG}, split {SPLIT} ({' '.join(SUBJECTS)}), {', '.join(ACTIONS)}, one camera "
    f"at a time ({len(VIEWS)} of four); synthetic detections; calibration exact; {LIFTER} trained on S1 S5 "
    "S6 S7 S8, its errors measured on the other test subject; start and weights were settled looking at S9"
)


@dataclass(frozen=True, eq=False)
class _Case:
    """A subject's trials in one view, and what each way makes of them: ``[M 37 3]`` m, ground's axes."""

    truth: NDArray[np.float64]
    known: NDArray[np.bool_]
    trial: NDArray[np.int64]
    found: dict[str, NDArray[np.float64]]
    covered: NDArray[np.bool_]  # [M K 3] of the model's markers that are keypoints
    ids: tuple[int, ...]
    status: dict[str, str]


def monocular(place: Workplace) -> Iterator[Measurement]:
    """Errors of the lifter alone, of a fit with it as prior, and of one from its poses without the prior."""
    cases = _cases(place)
    errors = {way: _errors(cases, way) for way in cases[0].found}
    told = {
        way: {
            name: {"mpjpe_mm": e.mean_mm(False, name), "p_mpjpe_mm": e.mean_mm(True, name)}
            for name in ("spine", "all")
        }
        for way, e in errors.items()
    }
    lifter, fit, alone = (told[way]["spine"] for way in ("lifter", "fit", "fit_without_prior"))
    status = [case.status for case in cases]
    for key, name in (("mpjpe", "root-relative"), ("pmpjpe", "aligned")):
        mm = f"{key.replace('pm', 'p_m')}_mm"
        yield Measurement(
            f"fitting/monocular_spine_{key}_ratio", fit[mm] / lifter[mm], DATA,
            f"{fit[mm]:.1f} mm with the lifter as prior over {lifter[mm]:.1f} mm of the lifter alone, "
            f"{name}; by a fit that starts from the lifter's poses without their prior {alone[mm]:.1f} mm.",
            {"errors": told, "status": status},
        )  # fmt: skip
    ids = np.array(cases[0].ids)
    spine = np.isin(ids, list(REGIONS["spine"])) & (ids != _ROOT)
    for name, chosen in (("keypoints", ids != _ROOT), ("spine", spine)):
        inside = np.concatenate([case.covered[case.known[:, ids].all(axis=1)][:, chosen] for case in cases])
        yield Measurement(
            f"fitting/coverage90/monocular_{name}", float(inside.mean()), DATA,
            f"Of coordinates of root-relative keypoints in the ground's axes, in {len(cases)} fits; those "
            "errors go together in each.",
            {"by_axis": inside.mean(axis=(0, 1)).tolist()},
        )  # fmt: skip


def _errors(cases: Sequence[_Case], way: str) -> FrameErrors:
    found, truth, known, trial = (
        np.concatenate(parts)
        for parts in zip(
            *((c.found[way], c.truth, c.known, c.trial + 10 * i) for i, c in enumerate(cases)), strict=True
        )
    )
    # Eyes and ears, which the model has no markers of, count for no way.
    has = np.isfinite(cases[0].found["fit"]).any(axis=(0, 2))
    return frame_errors(
        found.astype(np.float32), truth.astype(np.float32), known & has, trial=trial, root=_ROOT
    )


def _cases(place: Workplace) -> list[_Case]:
    clips = _clips()
    run, folder = trained_run(place, LIFTER, SOURCE)
    lifter = load_lifter(folder, lambda: place.spine, note=lambda text: None)
    chosen = ClipSet.of(clips).select(SUBJECTS, ACTIONS[:1] if place.quick else ACTIONS)
    cases = []
    for subject in SUBJECTS[: place.size(2, 1)]:
        others = clips_in_memory([clip for clip in clips if clip.subject != subject])
        with jax.enable_x64(False):
            errors = lifter_errors(run, lifter.model, others, source="the other test subject")
        trials = [ReferenceTrial.of(chosen, i) for i, t in enumerate(chosen.trials) if t.subject == subject]
        with jax.enable_x64(True):
            model = place.spine_float64()
            for view in VIEWS[: place.size(2, 1)]:
                seen = [only_view(trial_input(t, SOURCE, None, 0), f"view {view}") for t in trials]
                cases.append(_case(model, trials, seen, replace(lifter, errors=errors)))
    return cases


def _case(
    model: SpineModel, trials: Sequence[ReferenceTrial], seen: Sequence[TrialInput], lifter: TrainedLifter
) -> _Case:
    chain = run_chain(model, seen, lifter=lifter)
    fit = fit_trials(model, seen, chain=chain)
    alone = fit_trials(model, seen, chain=replace(chain, lifted=None))
    ids = tuple(TRC_NAMES.index(name) for name in model.marker_names if name in TRC_NAMES)
    own = np.array([k for k, name in enumerate(model.marker_names) if name in TRC_NAMES])
    truth = np.concatenate([np.asarray(t.points, np.float64) for t in trials])
    known = np.concatenate([t.known & t.known[:, [_ROOT]] for t in trials])
    root, times = model.marker_names.index(ROOT), half_width(SHARE)
    value, std = uncertainty_of(fit).of(lambda q, markers, scale: (markers[own] - markers[root]).ravel())
    value, std = (_joined(x, fit).reshape(-1, len(own), 3) for x in (value, std))
    wanted = truth[:, list(ids)] - truth[:, [_ROOT]]
    lifted = np.concatenate([lifter.lift(trial) for trial in seen])
    assert seen[0].views is not None
    turn = np.asarray(ground_rotation(seen[0]))
    return _Case(
        truth, known, np.concatenate([np.full(len(t.points), t.number) for t in trials]),
        {
            "lifter": lifted @ turn, "fit": _keypoints(fit, own, ids),
            "fit_without_prior": _keypoints(alone, own, ids),
        },
        np.abs(value - wanted) <= times * std, ids,
        {"fit": fit.status.name, "fit_without_prior": alone.status.name},
    )  # fmt: skip


def ground_rotation(trial: TrialInput) -> NDArray[np.float64]:
    """Of the trial's only camera, from the ground's axes."""
    from simspine_jax.clips import cameras_in_ground

    assert trial.views is not None
    return np.asarray(cameras_in_ground(trial.views.cameras).rotations)[0]


def _joined(values: NDArray[np.float64], fit: SubjectFit) -> NDArray[np.float64]:
    return np.concatenate([values[row, :n] for row, n in enumerate(fit.lengths)])


def _keypoints(fit: SubjectFit, own: NDArray[np.int64], ids: Sequence[int]) -> NDArray[np.float64]:
    markers = _joined(fit.markers, fit)
    found = np.full((len(markers), len(TRC_NAMES), 3), np.nan)
    found[:, list(ids)] = markers[:, own]
    return found


def _clips() -> ClipSequence:
    try:
        return open_clips(CONFIG, SPLIT)
    except (MissingDependencyError, SimspineError) as error:
        raise SkippedError(str(error)) from None
