"""Simulations in files: subjects in, annotations out, resuming where a run stopped.

A subject's trials are solved in groups, and each group's results are written when it is done. A trial is
complete when its record (``trials/<subject>/<trial>.json``) is there, was made by this version from the same
model, options and files of the subject, and the files that it lists exist. Records are written last. A group
is always solved as a whole, so that a resumed run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from simspine_jax.annotations import Quality, SpineTrial, file_name
from simspine_jax.errors import MissingDependencyError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io import Storage, atomic_write, write_sto
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.release import write_release_cameras, write_release_h5, write_release_trial
from simspine_jax.io.trials import write_quality_csv, write_quality_parquet, write_trial
from simspine_jax.kinematics.isolated import SCALING_PREFIX, scale_isolated
from simspine_jax.pipeline.ik import FailedTrial, LoadedModel, Progress
from simspine_jax.pipeline.options import SimulationOptions
from simspine_jax.pipeline.records import (
    add_remarks,
    digest_of,
    holds_json,
    is_temporary,
    remark_on,
    stored_trial,
    write_json,
)
from simspine_jax.pipeline.sources import SubjectSource, check_sources
from simspine_jax.pipeline.stages import (
    Points,
    SubjectSize,
    TrialInput,
    check_model,
    find_points,
    find_size,
    simulate_trials,
)
from simspine_jax.skeleton import REGIONS
from simspine_jax.statistics import back_share, seen_names
from simspine_jax.validation import FAULT_LABELS, FAULTS

FORMAT = "simspine_jax simulation"
GROUP_TRIALS = 8
"""Trials that are solved together."""

QUALITY_FORMATS = ("csv", "parquet")
"""Forms of the table of findings; the first is always written."""


@dataclass(frozen=True)
class SimulatedTrial:
    """What a trial's record says; lengths as the names say.

    Attributes:
        subject: name.
        action: name.
        n_frames: of the trial.
        source: files or program that it comes from.
        usable: frames without a fault, with those that were repaired.
        repaired: frames whose pose was interpolated.
        gaps_filled: short gaps of single markers that were interpolated before any pose.
        faults: (what, frames before repair, frames after it).
        spine_seen: keypoints along the column that some frame has; None if not known.
        back_seen: share of the frames with a keypoint between hips and neck. Where it is 0, curvature and
            lumbar angles are the model's and its prior's.
        lordosis_deg: mean by keypoints over usable frames; None where there are none.
        kyphosis_deg: likewise.
        body_lordosis_deg: mean by body frames, likewise.
        body_kyphosis_deg: likewise.
        height_m: of the subject; None if not known.
        height_from: how it is known.
        mass_kg: of the subject.
        mass_from: how it is known.
        marker_rms_mm: of all markers over all frames.
        reprojection_px: (camera, median error).
        truth_mpjpe_mm: (region, mean error against the truth), of a synthetic trial.
        triangulated_mpjpe_mm: likewise of the triangulated points.
        resumed: whether it was complete already.
    """

    subject: str
    action: str
    source: str
    n_frames: int
    usable: int
    repaired: int
    gaps_filled: int
    faults: tuple[tuple[str, int, int], ...]
    spine_seen: tuple[str, ...] | None
    back_seen: float | None
    lordosis_deg: float | None
    kyphosis_deg: float | None
    body_lordosis_deg: float | None
    body_kyphosis_deg: float | None
    height_m: float | None
    height_from: str
    mass_kg: float
    mass_from: str
    marker_rms_mm: float | None
    reprojection_px: tuple[tuple[str, float], ...] = ()
    truth_mpjpe_mm: tuple[tuple[str, float], ...] = ()
    triangulated_mpjpe_mm: tuple[tuple[str, float], ...] = ()
    resumed: bool = False

    @property
    def name(self) -> str:
        """Of its files."""
        return file_name(self.subject, self.action)


@dataclass(frozen=True)
class OsimSource:
    """The OpenSim model behind a converted one, for scaled copies of it."""

    path: Path
    markers: Path | None = None


def run_simulation(
    loaded: LoadedModel,
    subjects: Sequence[SubjectSource],
    out: str | Path,
    options: SimulationOptions,
    *,
    osim: OsimSource | None = None,
    force: bool = False,
    quality_format: str = QUALITY_FORMATS[0],
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Iterator[SimulatedTrial | FailedTrial]:
    """Simulates all subjects into a folder of the official layout; yields a result for each trial.

    For each subject ``cameras/Calib_<subject>.toml``, ``models/<subject>.json`` (factors, height, mass) and,
    with ``osim`` and OpenSim, ``models/<subject>.osim``; for each trial ``markers/…trc``, ``kinematics/…mot``
    with the marker errors beside it, ``quality/…csv``, ``trials/…npz`` (all of it without loss) and the
    record ``trials/…json``; in the end ``simspine.h5`` with this run's trials. Pages in ``reports/`` about a
    trial that is redone or fails, and about the set, are taken away.

    Args:
        loaded: the model.
        subjects: with their trials.
        out: the folder.
        options: see `PRESETS`.
        osim: for scaled OpenSim models.
        force: redo what is complete.
        quality_format: of `QUALITY_FORMATS`; ``parquet`` writes that beside the CSV.
        progress: told frames done and all frames of a group.
        note: told what is worth knowing.

    Raises:
        SimspineError: two subjects have one name, or the folder can't be written.
        MissingDependencyError: Parquet is wanted and PyArrow is not installed.
    """
    if quality_format not in QUALITY_FORMATS:
        raise UnknownNameError("Format", quality_format, "the quality table", QUALITY_FORMATS)
    if quality_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError("pyarrow", "parquet", "The quality table as Parquet")
    check_sources(subjects)
    check_model(loaded.model)
    layout = ReleaseLayout(Path(out))
    files = ReleaseFiles(loaded, layout, osim, quality_format, note or (lambda text: None))
    run = _Run(files, options, force, progress)
    if not all(run.is_complete(subject) for subject in subjects):
        # What they hold is about to change; without it, a killed run is not taken for a complete one.
        layout.hdf5.unlink(missing_ok=True)
        set_page(layout).unlink(missing_ok=True)
    for subject in subjects:
        yield from run.subject(subject)
    if not layout.hdf5.exists():
        files.write_set(subjects)


@dataclass(frozen=True)
class _Run:
    files: ReleaseFiles
    options: SimulationOptions
    force: bool
    progress: Progress | None

    def is_complete(self, source: SubjectSource) -> bool:
        """Whether nothing is to be done for this subject."""
        key = run_key(self.files.loaded, source, self.options)
        return not self.force and all(self.files.complete(source.name, t.action, key) for t in source.trials)

    def subject(self, source: SubjectSource) -> Iterator[SimulatedTrial | FailedTrial]:
        """All trials of a subject, those that fail told."""
        key = run_key(self.files.loaded, source, self.options)
        done = {t.action: self.files.complete(source.name, t.action, key) for t in source.trials}
        if not self.force and all(done.values()):
            yield from (result for result in done.values() if result is not None)
            return
        inputs: list[TrialInput] = []
        points: list[Points] = []
        for trial in source.trials:
            try:
                loaded = trial.load()
                points.append(find_points(loaded, self.options))
                inputs.append(loaded)
            except (SimspineError, OSError) as error:
                yield self.files.failed(source.name, trial.action, error)
        if inputs:
            # A trial that can't be read has no part in the subject's size: another run may read it.
            whole = len(inputs) == len(source.trials)
            key |= {"trials": "all" if whole else ", ".join(trial.action for trial in inputs)}
            known = (
                {}
                if self.force
                else {t.action: self.files.complete(source.name, t.action, key) for t in inputs}
            )
            yield from self._solve(source, inputs, points, key, known)

    def _solve(
        self,
        source: SubjectSource,
        inputs: Sequence[TrialInput],
        points: Sequence[Points],
        key: dict[str, str],
        done: dict[str, SimulatedTrial | None],
    ) -> Iterator[SimulatedTrial | FailedTrial]:
        model = self.files.loaded.model
        try:
            static = None if source.static is None else find_points(source.static.load(), self.options)
            size = find_size(
                model, points if static is None else [static], self.options,
                height_m=source.height_m, mass_kg=source.mass_kg,
            )  # fmt: skip
        except (SimspineError, OSError) as error:
            yield from [self.files.failed(source.name, trial.action, error) for trial in inputs]
            return
        self.files.write_subject(source, inputs, size, key)
        truths = {trial.action: trial.truth for trial in source.trials}
        for start in range(0, len(inputs), GROUP_TRIALS):
            group = slice(start, start + GROUP_TRIALS)
            known = [done.get(trial.action) for trial in inputs[group]]
            if all(known):
                yield from (result for result in known if result is not None)
                continue
            failed: list[FailedTrial] = []

            def tell(trial: TrialInput, error: SimspineError, failed: list[FailedTrial] = failed) -> None:
                failed.append(self.files.failed(source.name, trial.action, error))

            trials = simulate_trials(
                model, source.name, inputs[group], points[group], size, self.options,
                progress=self.progress, failed=tell,
            )  # fmt: skip
            yield from failed
            for trial in trials:
                yield self.files.write_trial(trial, truths[trial.action](), size, key)


def run_key(loaded: LoadedModel, source: SubjectSource, options: object) -> dict[str, str]:
    """What decides a subject's results: version, model, options (by their ``repr``) and inputs."""
    return {
        "version": ssj.__version__,
        "model_sha256": loaded.digest,
        "options_sha256": digest_of(repr((options, str(loaded.model.dtype))).encode()),
        "subject_sha256": source.digest,
        "trials": "all",
    }


@dataclass(frozen=True)
class ReleaseFiles:
    """Writes trials with their records into a folder of the official layout, and knows which are complete.

    Attributes:
        loaded: the model.
        layout: of the folder.
        osim: for scaled OpenSim models.
        quality_format: of `QUALITY_FORMATS`.
        note: told what is worth knowing.
    """

    loaded: LoadedModel
    layout: ReleaseLayout
    osim: OsimSource | None
    quality_format: str
    note: Callable[[str], None]

    def failed(self, subject: str, action: str, error: Exception) -> FailedTrial:
        """What it was before doesn't hold any more."""
        self.forget(subject, action)
        return FailedTrial(f"{subject} {action}", str(error))

    def forget(self, subject: str, action: str) -> None:
        """Takes away a trial's record, and the pages that would be taken for new ones."""
        record = self.layout.trial(subject, action).with_suffix(".json")
        for path in (record, *trial_pages(self.layout, subject, action)):
            path.unlink(missing_ok=True)

    def write_subject(
        self, source: SubjectSource, inputs: Sequence[TrialInput], size: SubjectSize, key: dict[str, str]
    ) -> None:
        """Cameras, sizes and, where it can be made, the scaled OpenSim model."""
        bodies = self.loaded.model.body_names
        factors = dict(zip(bodies, np.asarray(size.scale_factors).tolist(), strict=True))
        path = self.layout.model(source.name)
        about = {
            "format": FORMAT, "inputs": key, "height_m": size.height_m, "height_from": size.height_from,
            "mass_kg": size.mass_kg, "mass_from": size.mass_from,
            "scale_factors": factors, "measured_ratios": dict(size.ratios),
        }  # fmt: skip
        offsets = None
        if size.marker_offsets is not None:
            names = self.loaded.model.marker_names
            offsets = dict(zip(names, np.asarray(size.marker_offsets).tolist(), strict=True))
            about["marker_offsets_m"] = offsets
        for cameras in _cameras(inputs):
            try:
                write_release_cameras(self.layout.root, source.name, cameras)
            except SimspineError as error:
                self.note(f"the cameras of {source.name} are not written: {error}")
        record = path.with_suffix(".json")
        if self.osim is not None and not (path.is_file() and holds_json(record, about)):
            record.unlink(missing_ok=True)
            try:
                scale_isolated(
                    self.osim.path, path, factors, mass_kg=size.mass_kg, markers=self.osim.markers,
                    marker_offsets=offsets, name=source.name,
                )  # fmt: skip
            except SimspineError as error:
                self.note(f"no scaled .osim for {source.name}: {error}")
        write_json(record, about)

    def write_trial(
        self, trial: SpineTrial, truth: SpineTrial | None, size: SubjectSize, key: dict[str, str]
    ) -> SimulatedTrial:
        """All files of a trial, its record last."""
        layout, subject, action = self.layout, trial.subject, trial.action
        self.forget(subject, action)
        write_release_trial(layout.root, trial)
        errors = layout.kinematics(subject, action).with_name(f"{trial.name}_marker_errors.sto")
        files = [layout.markers(subject, action), layout.kinematics(subject, action)]
        if trial.residuals is not None:
            seen = np.isfinite(trial.residuals).any(axis=1)
            table = Storage(
                "Distance of each model marker from its target, m",
                trial.marker_names, trial.times[seen], trial.residuals[seen], False,
            )  # fmt: skip
            if seen.any():
                write_sto(errors, table)
                files.append(errors)
        write_quality_csv(layout.quality(subject, action), trial.events, trial.times)
        write_trial(layout.trial(subject, action), trial)
        files += [layout.quality(subject, action), layout.trial(subject, action)]
        if self.quality_format == "parquet":
            files.append(_parquet(layout, subject, action))
            write_quality_parquet(files[-1], trial.events, trial.times)
        if truth is not None:
            path = truth_path(layout, subject, action)
            write_trial(path, truth)
            files.append(path)
        result = summarise(trial, size, truth)
        document = {"format": FORMAT, "inputs": key, **dataclasses.asdict(result)}
        document["files"] = [str(path.relative_to(layout.root)) for path in files]
        write_json(layout.trial(subject, action).with_suffix(".json"), document)
        return result

    def complete(self, subject: str, action: str, key: dict[str, str]) -> SimulatedTrial | None:
        """What the record of a trial says, if it was made with this key and all its files are there."""
        record = self.layout.trial(subject, action).with_suffix(".json")
        table = str(_parquet(self.layout, subject, action).relative_to(self.layout.root))
        try:
            document: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            same = document.pop("format") == FORMAT and document.pop("inputs") == key
            files = document.pop("files")
            if not same or not all((self.layout.root / file).is_file() for file in files):
                return None
            if self.quality_format == "parquet" and table not in files:
                return None
            if document["spine_seen"] is not None:
                document["spine_seen"] = tuple(document["spine_seen"])
            pairs = ("faults", "reprojection_px", "truth_mpjpe_mm", "triangulated_mpjpe_mm")
            document |= {name: tuple(tuple(pair) for pair in document[name]) for name in pairs}
            return SimulatedTrial(**{**document, "resumed": True})
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent, or not a record of ours: the trial is done anew

    def write_set(self, subjects: Sequence[SubjectSource]) -> None:
        """This run's complete trials in one HDF5 file, and what a killed run left half-written taken away."""
        for path in list(self.layout.root.rglob("*")):
            if is_temporary(path):
                path.unlink()
        for path in (self.layout.root / "models").glob(f"{SCALING_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
        stored = [
            path
            for subject in subjects
            for trial in subject.trials
            if (path := self.layout.trial(subject.name, trial.action)).is_file()
            and path.with_suffix(".json").is_file()  # those that failed have none
        ]
        if not stored:
            return
        names = {path.parent.name for path in stored}
        models = {n: f"models/{n}.osim" for n in names if self.layout.model(n).is_file()}
        remarks: dict[tuple[str, str], str] = {}

        def trials() -> Iterator[SpineTrial]:
            for path in stored:
                trial = stored_trial(path)
                remarks[trial.subject, trial.action] = remark_on(trial)
                yield trial

        try:
            with atomic_write(self.layout.hdf5, binary=True) as file:  # with its remarks or not at all
                write_release_h5(file.name, trials(), cameras=self._all_cameras(names), models=models)
                add_remarks(Path(file.name), remarks)
        except MissingDependencyError as error:
            self.note(f"{self.layout.hdf5.name} is not written: {error}")

    def _all_cameras(self, names: set[str]) -> dict[str, Cameras]:
        from simspine_jax.io.calibration import read_cameras

        return {n: read_cameras(path) for n in sorted(names) if (path := self.layout.cameras(n)).is_file()}


def truth_path(layout: ReleaseLayout, subject: str, action: str) -> Path:
    """Where the truth of a synthetic trial lies."""
    trial = layout.trial(subject, action)
    return layout.root / "truth" / trial.parent.name / trial.name


def trial_pages(layout: ReleaseLayout, subject: str, action: str) -> tuple[Path, Path]:
    """Where the report of a trial lies, and the page that plays it."""
    folder = layout.root / "reports" / layout.trial(subject, action).parent.name
    name = file_name(subject, action)
    return folder / f"{name}.html", folder / f"{name}_viewer.html"


def set_page(layout: ReleaseLayout) -> Path:
    """Where the report of all trials lies."""
    return layout.root / "reports" / "report.html"


def _parquet(layout: ReleaseLayout, subject: str, action: str) -> Path:
    return layout.quality(subject, action).with_suffix(".parquet")


def _cameras(inputs: Sequence[TrialInput]) -> Iterator[Cameras]:
    """The subject's cameras: those of its first trial that has any."""
    for trial in inputs:
        if trial.views is not None:
            yield trial.views.cameras
            return


def summarise(trial: SpineTrial, size: SubjectSize, truth: SpineTrial | None = None) -> SimulatedTrial:
    """The record of a trial, against the truth where it is known."""
    usable = trial.usable
    before, after = _counts(trial.faults_before), _counts(trial.quality)
    return SimulatedTrial(
        subject=trial.subject,
        action=trial.action,
        source=trial.source,
        n_frames=trial.n_frames,
        usable=int(usable.sum()),
        repaired=int(trial.repaired.sum()),
        gaps_filled=len(trial.gaps_filled),
        faults=tuple((FAULT_LABELS[f].lower(), before[f], after[f]) for f in FAULTS if before[f]),
        spine_seen=seen_names(trial),
        back_seen=back_share(trial),
        lordosis_deg=_mean_deg(trial.lordosis, usable),
        kyphosis_deg=_mean_deg(trial.kyphosis, usable),
        body_lordosis_deg=_mean_deg(trial.body_lordosis, usable),
        body_kyphosis_deg=_mean_deg(trial.body_kyphosis, usable),
        height_m=size.height_m,
        height_from=size.height_from,
        mass_kg=float(size.mass_kg),
        mass_from=size.mass_from,
        marker_rms_mm=None if trial.residuals is None else _rms_mm(trial.residuals),
        reprojection_px=_reprojection(trial),
        truth_mpjpe_mm=_errors(trial.keypoints, truth),
        triangulated_mpjpe_mm=_errors(trial.triangulated, truth),
    )


def _counts(flags: NDArray[np.uint16]) -> dict[Quality, int]:
    """Frames with each fault."""
    return {fault: int(((flags & np.uint16(fault)) != 0).sum()) for fault in FAULTS}


def _errors(found: NDArray[np.float64] | None, truth: SpineTrial | None) -> tuple[tuple[str, float], ...]:
    """`mpjpe_mm`, or nothing where one of both is missing."""
    return () if found is None or truth is None else mpjpe_mm(found, truth.keypoints)


def mpjpe_mm(found: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[tuple[str, float], ...]:
    """Mean error of each of the paper's regions, mm, over the keypoints that both have."""
    error = 1e3 * np.linalg.norm(found - true, axis=-1)
    rows = ((region, error[:, list(ids)]) for region, ids in REGIONS.items())
    return tuple((region, float(np.nanmean(e))) for region, e in rows if np.isfinite(e).any())


def _mean_deg(values: NDArray[np.float64] | None, usable: NDArray[np.bool_]) -> float | None:
    if values is None or not np.isfinite(chosen := values[usable]).any():
        return None
    return float(np.degrees(np.nanmean(chosen)))


def _rms_mm(values: NDArray[np.float64]) -> float | None:
    return float(1e3 * np.sqrt(np.nanmean(values**2))) if np.isfinite(values).any() else None


def _reprojection(trial: SpineTrial) -> tuple[tuple[str, float], ...]:
    if trial.reprojection_px is None:
        return ()
    views = zip(trial.camera_names, np.moveaxis(trial.reprojection_px, 1, 0), strict=True)
    return tuple((name, float(np.nanmedian(e))) for name, e in views if np.isfinite(e).any())
