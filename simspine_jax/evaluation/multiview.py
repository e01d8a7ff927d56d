"""Multi-view reconstruction: keypoints in space from several calibrated views, method beside method.

Positions are compared in the model's ground frame, so that MPJPE is absolute. The reference is the truth of
synthetic trials, which has soft tissue that no rigid model can follow, and of all others the dataset's
annotation. An annotation is what the method ``model`` once made of the dataset's detections: there ``model``
is compared with its own making, which is circular, and its errors say nothing of how right it is.

Source: SIMSPINE, section 4.2, for the task, its 2D keypoints and its baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.clip_trials import ClipSet
from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.evaluation.angles import AngleErrors, angle_errors
from simspine_jax.evaluation.views import (
    SOURCES_2D,
    LackingError,
    Reference,
    ReferenceTrial,
    Source2D,
    check_second,
    trial_input,
)
from simspine_jax.geometry.frames import zup_to_yup
from simspine_jax.geometry.triangulation import triangulate_weighted
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.metrics.angles import vertebral_angles
from simspine_jax.metrics.frames import FrameErrors, frame_errors
from simspine_jax.metrics.pose3d import regions_among
from simspine_jax.pipeline import padded_size
from simspine_jax.pipeline.options import preset
from simspine_jax.pipeline.stages import Points, TrialInput, find_points, find_size, simulate_trials
from simspine_jax.skeleton import AXIS_NAMES, N_KEYPOINTS

Method = Literal["weighted", "linear", "robust", "model"]
METHODS: tuple[Method, ...] = get_args(Method)
"""The paper's baseline: linear triangulation weighted by confidence, which drops views that don't agree, by
Pose2Sim's rules; the same without dropping any; `triangulate_robust`; and the pipeline with its preset
``simspine``, whose model follows the robust points of all of a subject's trials."""

DEFAULT_METHODS: tuple[Method, ...] = ("weighted", "robust", "model")
"""Without ``linear``, which only shows what dropping views is worth."""

BASELINE: Method = "weighted"
"""What others are compared with."""

Pair = tuple[Source2D, Method]
Progress = Callable[[int, int], None]
"""Told how much is done, and how much there is."""


@dataclass(frozen=True)
class LeftOut:
    """What could not be evaluated.

    Attributes:
        trial: its name; empty for all trials.
        source: 2D keypoints concerned; None for all of them.
        method: likewise.
        reason: a sentence without a full stop.
    """

    trial: str
    source: Source2D | None
    method: Method | None
    reason: str

    def __str__(self) -> str:
        words = [self.trial or "all trials"]
        words += [f"2D {self.source}"] if self.source else []
        words += [f"method {self.method}"] if self.method else []
        return f"{', '.join(words)}: {self.reason}"


@dataclass(frozen=True)
class Comparison:
    """Two methods on the points of a region that both give.

    Attributes:
        mpjpe_mm: of the one: mean over frames; NaN where there is no such point.
        against_mm: of the other.
        share: of the known points, those that both give.
    """

    mpjpe_mm: float
    against_mm: float
    share: float

    @property
    def ratio(self) -> float:
        """Of the one's error to the other's; NaN where that is 0."""
        return self.mpjpe_mm / self.against_mm if self.against_mm else float("nan")


@dataclass(frozen=True, eq=False)
class MultiViewErrors:
    """Errors of every method on every kind of 2D keypoints that the data have.

    Attributes:
        errors: by 2D keypoints and method. Means are over what the method gives: see its coverage, and
            `compare`.
        distances_m: ``[N 37]`` of each keypoint from the reference, of the same frames; NaN where missing.
        angles: of the spine, likewise, against the same reference: curvature alone of methods without a body,
            and nothing at all without the spine model.
        references: what each trial is compared with, by the numbers in `FrameErrors.trial`.
        left_out: what could not be evaluated, and why.
    """

    errors: Mapping[Pair, FrameErrors]
    distances_m: Mapping[Pair, NDArray[np.float32]]
    angles: Mapping[Pair, AngleErrors]
    references: tuple[Reference, ...]
    left_out: tuple[LeftOut, ...]

    def compare(self, source: Source2D, method: Method, against: Method = BASELINE) -> dict[str, Comparison]:
        """Two methods by region on the points that both give, where neither gains by leaving points out.

        Raises:
            UnknownNameError: one of the two was not evaluated with these 2D keypoints.
        """
        there = [m for s, m in self.errors if s == source]
        for name in (method, against):
            if name not in there:
                raise UnknownNameError("Method", name, f"the evaluation of 2D {source}", there)
        errors = self.errors[source, method]
        one, other = self.distances_m[source, method], self.distances_m[source, against]
        both = np.isfinite(one) & np.isfinite(other)
        found = {}
        for region, members in regions_among(errors.ids).items():
            columns = list(members)
            shared, known = both[:, columns], int(errors.expected[:, columns].sum())
            ours, theirs = (_mean_mm(values[:, columns], shared) for values in (one, other))
            found[region] = Comparison(ours, theirs, float(shared.sum()) / max(known, 1))
        return found


def _mean_mm(distances_m: NDArray[np.float32], counts: NDArray[np.bool_]) -> float:
    """Mean over frames of the mean over a frame's points, as `FrameErrors.mean_mm` has it."""
    number = counts.sum(axis=1)
    some = number > 0
    total = np.where(counts, distances_m, 0).astype(np.float64).sum(axis=1)
    return 1e3 * float((total[some] / number[some]).mean()) if some.any() else float("nan")


def evaluate_multiview(
    clips: ClipSet,
    *,
    sources: Sequence[Source2D] = SOURCES_2D,
    methods: Sequence[Method] = DEFAULT_METHODS,
    zero_shot: ClipSet | None = None,
    model: SpineModel | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MultiViewErrors:
    """Errors of reconstruction methods on trials, subject by subject.

    2D keypoints that a trial lacks, and trials without cameras, are left out; the result says so. Frames that
    the pipeline rejects have no position. Nothing is told to the model but the 2D keypoints and the cameras:
    not even a height that the data have.

    Args:
        clips: the trials.
        sources: kinds of 2D keypoints; ``zero_shot`` of synthetic trials, without a second dataset, is what a
            synthetic detector sees whose errors are fitted to the paper's (`capture.noise`).
        methods: to compare.
        zero_shot: a second dataset of the same trials, with detections of a detector that was not trained for
            them.
        model: the generic spine model with the paper's markers; None for the pipeline's own.
        seed: of the synthetic detector.
        progress: told how many trials are done and how many there are; each counts once for each kind of 2D
            keypoints and method.

    Raises:
        UnknownNameError: there is no such source or method, or the second dataset lacks a trial or a camera.
        ShapeError: a trial has other frames there.
        FileFormatError: a record is damaged.
    """
    for kind, names, valid in (("2D", sources, SOURCES_2D), ("Method", methods, METHODS)):
        for name in names:
            if name not in valid:
                raise UnknownNameError(kind, name, "the choices", valid)
    if zero_shot is not None and "zero_shot" in sources:
        check_second(clips, zero_shot)
    if model is None and "model" in methods:
        from simspine_jax.pipeline.dataset import spine

        model = spine().model
    sources, methods = tuple(dict.fromkeys(sources)), tuple(dict.fromkeys(methods))
    steps = _Steps(len(clips.trials) * len(sources) * len(methods), progress)
    found: dict[Pair, list[_Positions]] = {(s, m): [] for s in sources for m in methods}
    references: list[Reference] = []
    left_out: list[LeftOut] = []
    for trials in _by_subject(clips):
        references.extend(trial.reference for trial in trials)
        accepted = _accepted(trials, left_out)
        for source in sources:
            seen = _seen(accepted, source, zero_shot, seed, left_out)
            work = _Reconstruction(source, seen, model, steps, left_out)
            for method in methods:
                found[source, method] += work.positions(method)
                steps.add(len(trials))
    errors, distances, angles = {}, {}, {}
    for pair, positions in found.items():
        if positions:
            errors[pair], distances[pair] = _errors_of(positions)
            if model is not None:
                angles[pair] = _angles_of(model, positions)
            positions.clear()  # as large as all the rest
    return MultiViewErrors(errors, distances, angles, tuple(references), _summed(left_out, len(references)))


@dataclass(eq=False)
class _Steps:
    """Tells how far the work is."""

    total: int
    progress: Progress | None
    done: int = 0

    def at(self, more: int) -> None:
        """So many steps more are done of what comes next."""
        if self.progress is not None:
            self.progress(self.done + more, self.total)

    def add(self, steps: int) -> None:
        """They are done."""
        self.done += steps
        self.at(0)


def _by_subject(clips: ClipSet) -> Iterator[list[ReferenceTrial]]:
    """The trials of each subject; those of one are in memory."""
    for subject in dict.fromkeys(trial.subject for trial in clips.trials):
        numbers = [i for i, trial in enumerate(clips.trials) if trial.subject == subject]
        yield [ReferenceTrial.of(clips, number) for number in numbers]


def _accepted(trials: Sequence[ReferenceTrial], left_out: list[LeftOut]) -> list[ReferenceTrial]:
    """Those that can be evaluated; the others are noted."""
    good = []
    for trial in trials:
        try:
            trial.check()
            good.append(trial)
        except LackingError as why:
            left_out.append(LeftOut(trial.name, None, None, str(why)))
    return good


_Seen = tuple[ReferenceTrial, TrialInput]


def _seen(
    trials: Sequence[ReferenceTrial],
    source: Source2D,
    zero_shot: ClipSet | None,
    seed: int,
    left_out: list[LeftOut],
) -> list[_Seen]:
    """Those that have these 2D keypoints; the others are noted."""
    good = []
    for trial in trials:
        try:
            good.append((trial, trial_input(trial, source, zero_shot, seed)))
        except LackingError as why:
            left_out.append(LeftOut(trial.name, source, None, str(why)))
    return good


def _summed(left_out: Sequence[LeftOut], n_trials: int) -> tuple[LeftOut, ...]:
    """What all of several trials lack for one reason, once."""
    times = Counter(replace(entry, trial="") for entry in left_out)

    def shared(entry: LeftOut) -> LeftOut:
        of_all = replace(entry, trial="")
        return of_all if times[of_all] == n_trials > 1 else entry

    return tuple(dict.fromkeys(map(shared, left_out)))


# --- methods ---


@dataclass(frozen=True, eq=False)
class _Positions:
    """What a method makes of a trial."""

    trial: ReferenceTrial
    points: NDArray[np.float32]  # [T 37 3] m, the ground frame; NaN where there is none
    axes: NDArray[np.float64] | None = None  # [T 62] of methods with a body, likewise


@dataclass(eq=False)
class _Reconstruction:
    """One subject's trials with one kind of 2D keypoints, for all methods."""

    source: Source2D
    seen: Sequence[_Seen]
    model: SpineModel | None
    steps: _Steps
    left_out: list[LeftOut]
    _robust: list[Points] = field(default_factory=list)

    def positions(self, method: Method) -> list[_Positions]:
        """Of all the trials, in their order."""
        if method == "model":
            return self._modelled() if self.seen else []
        if method == "robust":
            return self._stated(points.triangulated for points in self._robust_points())
        triangulate = _linear if method == "linear" else _weighted
        return self._stated(triangulate(trial) for _, trial in self.seen)

    def _stated(self, found: Iterable[NDArray | None]) -> list[_Positions]:
        done = []
        for (trial, _), points in zip(self.seen, found, strict=True):
            done.append(_Positions(trial, np.asarray(points, np.float32)))
            self.steps.at(len(done))
        return done

    def _robust_points(self) -> Iterator[Points]:
        """Two methods need them."""
        for number, (_, trial) in enumerate(self.seen):
            if number == len(self._robust):
                self._robust.append(find_points(trial, preset("simspine")))
            yield self._robust[number]

    def _modelled(self) -> list[_Positions]:
        """The model's keypoints; of a trial that can't be solved there are none."""
        assert self.model is not None  # `evaluate_multiview` has got one
        points, options = list(self._robust_points()), preset("simspine")
        inputs = [trial for _, trial in self.seen]
        found = {t.action: np.full((len(t.times), N_KEYPOINTS, 3), np.nan, np.float32) for t in inputs}
        axes = {t.action: np.full((len(t.times), len(AXIS_NAMES)), np.nan) for t in inputs}

        def failed(trial: TrialInput, error: SimspineError) -> None:
            name = next(t.name for t, given in self.seen if given is trial)
            self.left_out.append(LeftOut(name, self.source, "model", str(error)))

        def progress(done: int, total: int) -> None:
            self.steps.at(done * len(inputs) // total)

        try:
            size = find_size(self.model, points, options)
        except SimspineError as error:
            for trial in inputs:
                failed(trial, error)
        else:
            subject = self.seen[0][0].clip.subject
            for solved in simulate_trials(
                self.model, subject, inputs, points, size, options, progress=progress, failed=failed
            ):
                found[solved.action][solved.usable] = solved.keypoints[solved.usable]
                axes[solved.action][solved.usable] = solved.coordinates[solved.usable]
        return [_Positions(trial, found[given.action], axes[given.action]) for trial, given in self.seen]


def _weighted(trial: TrialInput) -> NDArray | None:
    """The paper's baseline, before any gap is filled."""
    return find_points(trial, preset("simspine", triangulation="weighted")).triangulated


def _linear(trial: TrialInput) -> NDArray:
    """The same of all confident views, however far they are from agreeing."""
    assert trial.views is not None  # `trial_input` gives all trials some
    keypoints, confidence = trial.views.keypoints, trial.views.confidence
    count = len(keypoints)
    padding = [(0, padded_size(count) - count), (0, 0), (0, 0)]
    found = triangulate_weighted(
        trial.views.cameras,
        jnp.asarray(np.pad(keypoints, [*padding, (0, 0)], constant_values=np.nan)),
        jnp.asarray(np.pad(confidence, padding, constant_values=np.nan)),
        max_reprojection_px=float("inf"),
        undistorted=True,
    )
    return np.asarray(zup_to_yup(found.points))[:count]


def _errors_of(found: Sequence[_Positions]) -> tuple[FrameErrors, NDArray[np.float32]]:
    """Of all trials, and each keypoint's distance."""
    trials = [positions.trial for positions in found]
    lengths = [len(trial.points) for trial in trials]
    predicted = np.concatenate([positions.points for positions in found])
    points, known = (np.concatenate([getattr(t, name) for t in trials]) for name in ("points", "known"))
    errors = frame_errors(
        predicted, points, known,
        action=np.repeat([trial.clip.action for trial in trials], lengths),
        trial=np.repeat([trial.number for trial in trials], lengths),
    )  # fmt: skip
    distances = np.linalg.norm(predicted - points, axis=-1)
    return errors, np.where(known, distances, np.float32(np.nan))


def _angles_of(model: SpineModel, found: Sequence[_Positions]) -> AngleErrors:
    """Of all trials of a method, with or without a body."""
    each = [positions.axes for positions in found if positions.axes is not None]
    axes = np.concatenate(each) if each else None
    trials = [positions.trial for positions in found]
    points = np.concatenate([np.where(t.known[..., None], t.points, np.float32(np.nan)) for t in trials])
    return angle_errors(
        model,
        None if axes is None else np.asarray(vertebral_angles(jnp.asarray(axes))),
        np.concatenate([trial.vertebral_rotations for trial in trials]),
        np.concatenate([positions.points for positions in found]),
        points,
        None if axes is None else axes[:, [AXIS_NAMES.index(name) for name in model.free_names]],
    )
