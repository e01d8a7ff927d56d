"""A subject fitted to its trials' pictures: the chain's result is the start, `fitting.subject` the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.fitting.subject import (
    Clip,
    FitOptions,
    LiftedMarkers,
    Start,
    SubjectFit,
    Tell,
    fit_subject,
)
from simspine_jax.fitting.terms import Term
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.fit_lifted import FitLifter, lifted_markers, lifted_points
from simspine_jax.pipeline.options import PRESETS, SimulationOptions
from simspine_jax.pipeline.solving import Motion, solve_trials
from simspine_jax.pipeline.stages import SubjectSize, TrialInput, find_points, find_size, targets_of
from simspine_jax.skeleton import TRC_NAMES


@dataclass(frozen=True, eq=False)
class ChainResult:
    """What triangulation, scaling and inverse kinematics make of a subject's trials, one after the other.

    Attributes:
        size: of the subject.
        motions: of each trial.
        lifted: of each trial, where a lifter takes the place of triangulation.
    """

    size: SubjectSize
    motions: list[Motion]
    lifted: list[LiftedMarkers] | None = None


def run_chain(
    model: SpineModel,
    trials: Sequence[TrialInput],
    options: SimulationOptions | None = None,
    *,
    height_m: float | None = None,
    lifter: FitLifter | None = None,
) -> ChainResult:
    """The chain on all trials of one subject, without quality control.

    Args:
        model: the generic spine model.
        trials: of the subject.
        options: of the chain; default: the preset ``simspine``.
        height_m: if known.
        lifter: takes the place of triangulation; the trials then have one camera.

    Raises:
        SimspineError: a stage refuses the trials.
    """
    options = options or PRESETS["simspine"]
    lifted = None
    if lifter is None:
        points = [find_points(trial, options) for trial in trials]
    else:
        places = [lifter.lift(trial) for trial in trials]
        points = [lifted_points(t, p, options) for t, p in zip(trials, places, strict=True)]
        lifted = [lifted_markers(model, t, p, lifter.errors) for t, p in zip(trials, places, strict=True)]
    size = find_size(model, points, options, height_m=height_m)
    if lifter is not None:
        size = of_one_size(size)
    targets = [targets_of(model, p, options) for p in points]
    return ChainResult(size, solve_trials(model, targets, size.scale_factors, options), lifted)


def of_one_size(size: SubjectSize) -> SubjectSize:
    """The size with the generic model's proportions.

    Lifters draw bodies toward what they saw on average, trunks most: a start with proportions of theirs ends
    in poses that make up for it.
    """
    factors = size.scale_factors
    return replace(size, scale_factors=np.full_like(factors, np.exp(np.log(factors).mean())))


def fit_trials(
    model: SpineModel,
    trials: Sequence[TrialInput],
    options: FitOptions | None = None,
    *,
    chain: ChainResult | None = None,
    terms: Sequence[Term] = (),
    tell: Tell | None = None,
) -> SubjectFit:
    """One subject fitted to all of its trials.

    Args:
        model: the generic spine model; its dtype is the computation's.
        trials: with views, all of one rig and rate.
        options: of the fit.
        chain: to start from; default: `run_chain` of the trials. What a lifter found is in it.
        terms: residuals of the user's own.
        tell: told about each round.

    Raises:
        SimspineError: the trials don't go together, or the chain that gives the start refuses them.
    """
    cameras, rate_hz = _shared(trials)
    chain = chain or run_chain(model, trials)
    clips = [clip_of(model, trial) for trial in trials]
    if chain.lifted is not None:
        clips = [replace(clip, lifted=found) for clip, found in zip(clips, chain.lifted, strict=True)]
    start = Start([m.q for m in chain.motions], chain.size.scale_factors)
    return fit_subject(model, clips, cameras, rate_hz, start, options, terms=terms, tell=tell)


def _shared(trials: Sequence[TrialInput]) -> tuple[Cameras, float]:
    """Cameras and rate of all trials."""
    if not trials:
        raise ShapeError("There is no trial to fit; valid is one or more")
    first = trials[0]
    for trial in trials:
        if trial.views is None or first.views is None:
            raise SimspineError(f"Trial '{trial.action}' has no views; a fit needs detected keypoints")
        if trial.rate_hz != first.rate_hz or not _same(trial.views.cameras, first.views.cameras):
            raise SimspineError(
                f"Trial '{trial.action}' has other cameras or another rate than '{first.action}'; "
                "valid are trials of one rig"
            )
    assert first.views is not None
    return first.views.cameras, first.rate_hz


def _same(a: Cameras, b: Cameras) -> bool:
    return a.names == b.names and all(
        np.array_equal(x, y, equal_nan=True)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def clip_of(model: SpineModel, trial: TrialInput) -> Clip:
    """A trial's keypoints in the order of the model's markers; markers that no detector gives are missing."""
    assert trial.views is not None
    keypoints, confidence = (np.asarray(x) for x in (trial.views.keypoints, trial.views.confidence))
    shape = (*keypoints.shape[:2], model.n_markers)
    found, sure = np.full((*shape, 2), np.nan), np.zeros(shape)
    for number, name in enumerate(model.marker_names):
        if name in TRC_NAMES:
            found[:, :, number] = keypoints[:, :, TRC_NAMES.index(name)]
            sure[:, :, number] = np.nan_to_num(confidence[:, :, TRC_NAMES.index(name)])
    return Clip(found, sure)


def without_views(trial: TrialInput, names: Sequence[str]) -> TrialInput:
    """The trial as if some cameras were not there.

    Raises:
        UnknownNameError: there is no such camera.
    """
    assert trial.views is not None
    cameras = trial.views.cameras
    cameras.select(names)
    kept: NDArray[np.int64] = np.array([i for i, n in enumerate(cameras.names) if n not in names], int)
    views = replace(
        trial.views, cameras=cameras.select([cameras.names[i] for i in kept]),
        keypoints=trial.views.keypoints[:, kept], confidence=trial.views.confidence[:, kept],
    )  # fmt: skip
    return replace(trial, views=views)
