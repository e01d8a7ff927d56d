"""Fits in files: subjects in; annotations in the official layout, sizes, cameras and intervals out.

A subject is complete when its record (``fit/<subject>.json``) is there, was made by this version from the
same model, options and files, and so were the records of its trials. It is written last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import file_name
from simspine_jax.arrays import Array, Float
from simspine_jax.errors import SimspineError
from simspine_jax.fitting.doubts import camera_doubts
from simspine_jax.fitting.subject import LEAST_KEYPOINTS, FitOptions, FitStatus, SubjectFit, Tell
from simspine_jax.fitting.uncertainty import Uncertainty, uncertainty_of
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.inverse import IKStatus
from simspine_jax.kinematics.lumbar import departing_lumbar, departing_to_free
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.scaling import estimate_height
from simspine_jax.pipeline.fit import ChainResult, clip_of, fit_trials, run_chain, without_views
from simspine_jax.pipeline.fit_lifted import FitLifter, seeing_camera, unplaced
from simspine_jax.pipeline.fit_results import (
    STATUS_WORDS,
    Angles,
    FittedMotion,
    FittedSubject,
    HeldOutView,
    angles_of,
    cameras_found,
    keypoint_distances,
    lengths_found,
    lumbar_found,
    median_px,
    motions_found,
    offsets_found,
    read_subject_json,
    segments_found,
    write_motion_npz,
    write_subject_json,
)
from simspine_jax.pipeline.ik import FailedTrial, LoadedModel
from simspine_jax.pipeline.options import PRESETS
from simspine_jax.pipeline.simulate import (
    QUALITY_FORMATS,
    OsimSource,
    ReleaseFiles,
    SimulatedTrial,
    run_key,
    set_page,
)
from simspine_jax.pipeline.solving import Motion
from simspine_jax.pipeline.sources import SubjectSource, TrialSource, check_sources, of_one_camera
from simspine_jax.pipeline.stages import (
    MASS_INDEX,
    SubjectSize,
    TrialInput,
    check_model,
    find_points,
    simulate_trials,
)

CHAIN = PRESETS["simspine"]
"""The chain that a fit starts from, and how its own poses are made annotations."""

LEAST_CAMERAS = 2
"""That the chain needs, which gives the start."""


LIFTED_DOUBT = "a lifter errs alike for seconds and over the whole body, which intervals allow too little for"
"""Said of each fit that has a lifter as prior."""


def fit_record(layout: ReleaseLayout, subject: str) -> Path:
    """Where a fitted subject's sizes and cameras lie."""
    return layout.root / "fit" / f"{subject.replace(' ', '_')}.json"


def fit_motion(layout: ReleaseLayout, subject: str, action: str) -> Path:
    """Where a fitted trial's motion lies, with covariances and intervals."""
    return layout.root / "fit" / f"{file_name(subject, action)}.npz"


def fit_picture(layout: ReleaseLayout, subject: str, action: str) -> Path:
    """Where the picture of a fitted trial lies."""
    return fit_motion(layout, subject, action).with_suffix(".png")


def fit_page(layout: ReleaseLayout, subject: str, action: str) -> Path:
    """Where the page lies that plays a fitted trial."""
    return fit_motion(layout, subject, action).with_suffix(".html")


def fit_report(layout: ReleaseLayout, subject: str) -> Path:
    """Where the report of a fitted subject lies."""
    return fit_record(layout, subject).with_name(f"{fit_record(layout, subject).stem}_report.html")


def run_fit(
    loaded: LoadedModel,
    subjects: Sequence[SubjectSource],
    out: str | Path,
    options: FitOptions | None = None,
    *,
    hold_out: Sequence[str] = (),
    lifter: FitLifter | None = None,
    view: str | None = None,
    osim: OsimSource | None = None,
    force: bool = False,
    tell: Tell | None = None,
    note: Callable[[str], None] | None = None,
) -> Iterator[FittedSubject | FailedTrial]:
    """Fits all subjects into a folder of the official layout; yields each, and each trial that fails.

    The folder has what `pipeline.simulate.run_simulation` writes, from the fit's poses, sizes, offsets and
    cameras; triangulated points are of these cameras too. Besides, ``fit/<subject>.json`` and for each trial
    ``fit/<subject>_<trial>.npz``; see `pipeline.fit_results`. A subject that can't be fitted is told as a
    failed trial of its name.

    Args:
        loaded: the model, in the precision to compute in.
        subjects: with their trials, which need keypoints of two cameras or more, or of one and a lifter.
        out: the folder.
        options: of the fit.
        hold_out: cameras that have no part; how well they are predicted is told.
        lifter: for pictures of one camera; the others have no part then.
        view: that camera, where there are several.
        osim: for scaled OpenSim models.
        force: redo what is complete.
        tell: told about each round.
        note: told what is worth knowing.

    Raises:
        SimspineError: two subjects have one name, or the folder can't be written.
    """
    check_sources(subjects)
    check_model(loaded.model)
    layout = ReleaseLayout(Path(out))
    files = ReleaseFiles(loaded, layout, osim, QUALITY_FORMATS[0], note or (lambda text: None))
    options = options or FitOptions()
    if lifter is not None:
        subjects = [of_one_camera(subject) for subject in subjects]
    model = loaded.model if options.lumbar == "coupled" else departing_lumbar(loaded.model)
    run = _Run(files, options, tuple(hold_out), force, tell, angles_of(model), lifter, view)
    if not all(run.known(subject, subject.trials, run.key(subject)) for subject in subjects):
        layout.hdf5.unlink(missing_ok=True)
        set_page(layout).unlink(missing_ok=True)
    for subject in subjects:
        yield from run.subject(subject)
    if not layout.hdf5.exists():
        files.write_set(subjects)


@dataclass(frozen=True)
class _Run:
    files: ReleaseFiles
    options: FitOptions
    hold_out: tuple[str, ...]
    force: bool
    tell: Tell | None
    angles: Angles
    lifter: FitLifter | None
    view: str | None

    def key(self, source: SubjectSource) -> dict[str, str]:
        """What decides the subject's results."""
        lifted = () if self.lifter is None else (self.lifter.digest, self.view)
        return run_key(self.files.loaded, source, (CHAIN, self.options, self.hold_out, *lifted))

    def known(
        self, source: SubjectSource, trials: Sequence[TrialSource | TrialInput], key: dict[str, str]
    ) -> FittedSubject | None:
        """The subject, if it is complete."""
        done = [self.files.complete(source.name, trial.action, key) for trial in trials]
        if self.force or not all(done):
            return None
        layout = self.files.layout
        records = cast(list[SimulatedTrial], done)
        return read_subject_json(fit_record(layout, source.name), key, layout.root, records)

    def subject(self, source: SubjectSource) -> Iterator[FittedSubject | FailedTrial]:
        """The subject, after the trials that can't be read."""
        key = self.key(source)
        if (known := self.known(source, source.trials, key)) is not None:
            yield known
            return
        inputs: list[TrialInput] = []
        for trial in source.trials:
            try:
                inputs.append(_that_shows(self.files.loaded.model, _with_views(trial.load())))
            except (SimspineError, OSError) as error:
                self._forget(source.name, trial)
                yield FailedTrial(f"{source.name} {trial.action}", str(error))
        if not inputs:
            return
        if len(inputs) < len(source.trials):
            key |= {"trials": ", ".join(trial.action for trial in inputs)}
            if (known := self.known(source, inputs, key)) is not None:
                yield known
                return
        for path in (fit_record, fit_report):
            path(self.files.layout, source.name).unlink(missing_ok=True)
        for trial in source.trials:
            self._forget(source.name, trial)
        try:
            yield self._fit(source, inputs, key)
        except SimspineError as error:
            yield FailedTrial(source.name, str(error))

    def _forget(self, subject: str, trial: TrialSource) -> None:
        """What it was before doesn't hold any more."""
        self.files.forget(subject, trial.action)
        for path in (fit_motion, fit_picture, fit_page):
            path(self.files.layout, subject, trial.action).unlink(missing_ok=True)

    def _fit(self, source: SubjectSource, inputs: list[TrialInput], key: dict[str, str]) -> FittedSubject:
        model = self.files.loaded.model
        if source.static is not None:
            self.files.note(f"the static trial of {source.name} has no part: sizes are of all its trials")
        seen = [self._seen(trial) for trial in inputs]
        chain = run_chain(model, seen, CHAIN, height_m=source.height_m, lifter=self.lifter)
        options = replace(self.options, height_m=source.height_m or self.options.height_m)
        fit = fit_trials(model, seen, options, chain=chain, tell=self.tell)
        check_status(fit)
        sure = uncertainty_of(fit)
        motions = motions_found(sure, self.angles, [trial.times for trial in seen])
        result = describe(source.name, sure, chain, inputs, seen, self.hold_out)
        return self._write(source, fitted_inputs(seen, fit), sure, motions, result, key)

    def _seen(self, trial: TrialInput) -> TrialInput:
        """The trial without what is held out."""
        assert trial.views is not None
        seen = without_views(trial, self.hold_out) if self.hold_out else trial
        if self.lifter is not None:
            return only_view(seen, seeing_camera(seen, self.view))
        assert seen.views is not None
        if len(seen.views.cameras.names) < LEAST_CAMERAS:
            raise SimspineError(
                f"Trial '{trial.action}' has {len(trial.views.cameras.names)} cameras, of which "
                f"{len(self.hold_out)} are held out; valid are {LEAST_CAMERAS} or more that are left"
            )
        return seen

    def _write(
        self,
        source: SubjectSource,
        inputs: list[TrialInput],
        sure: Uncertainty,
        motions: list[FittedMotion],
        result: FittedSubject,
        key: dict[str, str],
    ) -> FittedSubject:
        """Annotations, intervals and, last, the record."""
        files, layout, model = self.files, self.files.layout, self.files.loaded.model
        size = fitted_size(model, source, sure.fit)
        points = [find_points(t, CHAIN) if self.lifter is None else unplaced(t) for t in inputs]
        poses = [poses_of(sure.fit, row) for row in range(len(inputs))]
        chain = CHAIN if sure.fit.lumbar is None else replace(CHAIN, lumbar="free")
        trials = simulate_trials(model, source.name, inputs, points, size, chain, motions=poses)
        if self.lifter is not None:  # no marker had a place to be near to
            trials = [replace(trial, residuals=None) for trial in trials]
        files.write_subject(source, inputs, size, key)
        truths = {trial.action: trial.truth for trial in source.trials}
        records = [files.write_trial(trial, truths[trial.action](), size, key) for trial in trials]
        paths = []
        for trial, motion in zip(inputs, motions, strict=True):
            paths.append(fit_motion(layout, source.name, trial.action))
            write_motion_npz(paths[-1], motion)
        result = replace(result, trials=tuple(records))
        written = [path.relative_to(layout.root).as_posix() for path in paths]
        write_subject_json(fit_record(layout, source.name), result, key, written)
        return result


def only_view(trial: TrialInput, name: str) -> TrialInput:
    """The trial as if this camera alone were there."""
    assert trial.views is not None
    return without_views(trial, [other for other in trial.views.cameras.names if other != name])


def _with_views(trial: TrialInput) -> TrialInput:
    if trial.views is None or trial.markers is not None:
        raise SimspineError(
            f"Trial '{trial.action}' has body markers; a fit takes keypoints of calibrated cameras alone"
        )
    return trial


def _that_shows(model: SpineModel, trial: TrialInput) -> TrialInput:
    """The trial, which a fit of others would be lost with if it showed nothing."""
    if not clip_of(model, trial).usable.any():
        raise SimspineError(
            f"No frame of trial '{trial.action}' shows {LEAST_KEYPOINTS} of the model's keypoints, so there "
            "is nothing to fit"
        )
    return trial


def check_status(fit: SubjectFit) -> None:
    """Refuses a fit of which nothing can be said.

    Raises:
        SimspineError: there are too few keypoints, or it got stuck.
    """
    if fit.status == FitStatus.TOO_LITTLE_DATA:
        raise SimspineError(
            f"No frame shows {LEAST_KEYPOINTS} of the model's keypoints, so there is nothing to fit"
        )
    if fit.status == FitStatus.FAILED:
        raise SimspineError(
            f"The fit {STATUS_WORDS[fit.status]} after {fit.steps} steps, so its result is not given; check "
            "calibration and keypoints, or hold out the camera with the largest errors"
        )


def describe(
    subject: str,
    sure: Uncertainty,
    chain: ChainResult,
    inputs: Sequence[TrialInput],
    seen: Sequence[TrialInput],
    hold_out: Sequence[str] = (),
) -> FittedSubject:
    """What a fit found of a subject, beside the chain that it began with.

    Args:
        subject: name.
        sure: covariances of the fit.
        chain: that it began with.
        inputs: trials with all cameras.
        seen: those without the cameras that were held out.
        hold_out: names of these.
    """
    fit = sure.fit
    model = fit.whole.fixed.model
    before = [_chain_markers(model, m.q, chain.size.scale_factors) for m in chain.motions]
    after = [fit.markers[row, :n] for row, n in enumerate(fit.lengths)]
    given, fitted = _cameras(seen[0]), fit.cameras
    assert fitted is not None  # trials have views
    clips = [clip_of(model, trial).keypoints for trial in seen]
    names = model.free_names
    return FittedSubject(
        subject,
        STATUS_WORDS[fit.status],
        fit.steps,
        fit.objective,
        median_px([keypoint_distances(given, m, k) for m, k in zip(before, clips, strict=True)]),
        median_px([keypoint_distances(fitted, m, k) for m, k in zip(after, clips, strict=True)]),
        median_px([fit.reprojection_px]),
        fit.correlation_frames,
        segments_found(sure),
        lengths_found(sure),
        offsets_found(sure),
        cameras_found(sure),
        held_out_views(model, inputs, before, after, hold_out),
        tuple((name, float(share)) for name, share in zip(names, sure.observability, strict=True)),
        sure.unseen(),
        (*camera_doubts(fit), *(() if chain.lifted is None else (LIFTED_DOUBT,))),
        lumbar_found(sure),
    )


def _cameras(trial: TrialInput) -> Cameras:
    assert trial.views is not None
    return trial.views.cameras


def held_out_views(
    model: SpineModel,
    inputs: Sequence[TrialInput],
    before: Sequence[NDArray[np.float64]],
    after: Sequence[NDArray[np.float64]],
    names: Sequence[str],
) -> tuple[HeldOutView, ...]:
    """How well cameras are predicted, in their calibration as given, on keypoints that both can predict.

    Args:
        model: of the fit.
        inputs: trials with all cameras.
        before: [T K 3] m of each, the chain's markers.
        after: likewise the fit's.
        names: of the cameras.
    """
    found = []
    for name in names:
        errors: tuple[list[NDArray], list[NDArray]] = ([], [])
        for trial, *markers in zip(inputs, before, after, strict=True):
            cameras = _cameras(trial)
            keypoints = clip_of(model, trial).keypoints[:, [cameras.names.index(name)]]
            pair = [keypoint_distances(cameras.select([name]), m, keypoints) for m in markers]
            both = np.isfinite(pair[0]) & np.isfinite(pair[1])
            for kept, one in zip(errors, pair, strict=True):
                kept.append(one[both])
        found.append(HeldOutView(name, median_px(errors[0]), median_px(errors[1])))
    return tuple(found)


@jax.jit
def _markers(model: SpineModel, q: Float[Array, "T Q"], factors: Float[Array, "B 3"]) -> Array:
    return forward_kinematics(model, q, scale_factors=factors).markers


def _chain_markers(
    model: SpineModel, q: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[T K 3] m; NaN without a pose. The chain knows no departures from the lumbar rhythm, so they are 0."""
    q = np.pad(q, ((0, 0), (0, model.n_free - q.shape[1])))
    found = _markers(model, jnp.asarray(q, model.dtype), jnp.asarray(factors, model.dtype))
    there: NDArray[np.bool_] = np.asarray(np.isfinite(q).all(axis=1))
    return np.where(there[:, None, None], np.asarray(found, np.float64), np.nan)


def fitted_inputs(seen: Sequence[TrialInput], fit: SubjectFit) -> list[TrialInput]:
    """The trials in the fit's cameras, so that what is triangulated, and stored, belongs to its poses."""
    assert fit.cameras is not None
    moved = []
    for trial in seen:
        assert trial.views is not None
        moved.append(replace(trial, views=replace(trial.views, cameras=fit.cameras)))
    return moved


def fitted_size(model: SpineModel, source: SubjectSource, fit: SubjectFit) -> SubjectSize:
    """The subject's size as the pipeline's other stages take it."""
    height = float(estimate_height(model, jnp.asarray(fit.scale_factors, model.dtype)))
    return SubjectSize(
        fit.scale_factors, height, source.mass_kg or MASS_INDEX * height**2,
        marker_offsets=fit.marker_offsets,
        height_from="estimated from the fitted sizes" + (" and the given height" if source.height_m else ""),
        mass_from="given" if source.mass_kg else "estimated from the height alone",
    )  # fmt: skip


def poses_of(fit: SubjectFit, row: int) -> Motion:
    """Poses of one trial; frames without data of their own have none, which quality control repairs.

    Where lumbar levels aren't coupled they are poses of `kinematics.lumbar.free_lumbar`.
    """
    length, q = fit.lengths[row], fit.q[row]
    if fit.lumbar is not None:
        layout = fit.setting.layout
        m = layout.map_of(fit.whole.fixed.model)
        q = np.asarray(departing_to_free(m, layout.posed(fit.theta, jnp.asarray(q))), np.float64)
    used: NDArray[np.bool_] = np.asarray(fit.whole.data.usable)[row, :length]
    solved = IKStatus.CONVERGED if fit.status == FitStatus.CONVERGED else IKStatus.MAX_ITERATIONS
    return Motion(
        np.where(used[:, None], q[:length], np.nan),
        np.where(used, int(solved), int(IKStatus.TOO_FEW_MARKERS)),
    )
