"""Running statistics of annotations: read once, one trial at a time, and little kept of each.

Curvature by keypoints and by bodies are two measures and not the same number, see `kinematics.curvature`.
Where a trial holds none by keypoints, it is computed from its keypoints; where it holds no rotations of the
vertebrae, they are its coordinates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SPINE_IDS, Quality, SpineTrial
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS, keypoint_curvature
from simspine_jax.reference_values import MOTIONS
from simspine_jax.skeleton import AXIS_NAMES, LUMBAR_LEVELS, LUMBAR_MOTIONS, TRC_NAMES

CURVATURE_MEASURES: tuple[str, ...] = ("lordosis", "body_lordosis", "kyphosis", "body_kyphosis")
"""Lordosis L1-S1 and kyphosis T3-T12, by keypoints and by body frames."""

PERCENTILES = (5.0, 95.0)
"""Between these lies the robust range: one usable frame in twenty is left out at each end."""

BIN = 0.01
"""Width of the histogram's bins, in the unit of what is counted; a percentile is right to half of it."""

FIXED_DEG = 0.01
"""Root mean square by which lumbar levels may be off fixed ratios that single precision still tells."""

SYNTHETIC_NOTICE = "Synthetic capture: motion and detections were computed, not measured on people."
_FROM_MODEL = "curvature and lumbar angles come from the model and its prior, not from the pictures"
UNSEEN_NOTICE = f"No keypoint between hips and neck was seen: {_FROM_MODEL}."

_REACH = 5000.0  # what is farther out falls into the outermost bins, so that memory is bounded
_BLOCK = 2048  # frames per call, so that one program is compiled whatever the trials' lengths
_NECK_AXES = ("neck_flexion", "neck_bending", "neck_rotation")
_ROTATION_COLUMNS = np.array(
    [
        [AXIS_NAMES.index(f"{level}_{motion}") for motion in LUMBAR_MOTIONS]
        for level in VERTEBRAL_LEVELS
        if level in LUMBAR_LEVELS
    ]
    + [[AXIS_NAMES.index(axis) for axis in _NECK_AXES]]
)
_keypoint_curvature = jax.jit(keypoint_curvature)


@dataclass(frozen=True, eq=False)
class Tally:
    """Running statistics of numbers seen so far; the sum of two is the tally of both.

    Attributes:
        count: of the finite ones; others are left out.
        mean: NaN where there are none.
        squares: sum of squared deviations from the mean.
        low: smallest.
        high: largest.
        first: number of the first of ``bins``; bin ``i`` begins at ``i * BIN``.
        bins: how many lie in each.
    """

    count: int = 0
    mean: float = math.nan
    squares: float = 0.0
    low: float = math.nan
    high: float = math.nan
    first: int = 0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Tally:
        """The tally of an array of any shape."""
        values = np.asarray(values, float)
        values = values[np.isfinite(values)]
        if not len(values):
            return cls()
        numbers = np.floor(np.clip(values, -_REACH, _REACH) / BIN).astype(np.int64)
        first, mean = int(numbers.min()), float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        bins = np.bincount(numbers - first).astype(np.int64)
        return cls(len(values), mean, squares, float(values.min()), float(values.max()), first, bins)

    def __add__(self, other: Tally) -> Tally:
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        first = min(self.first, other.first)
        bins = np.zeros(max(self.first + len(self.bins), other.first + len(other.bins)) - first, np.int64)
        for part in (self, other):
            bins[part.first - first : part.first - first + len(part.bins)] += part.bins
        return Tally(
            count,
            self.mean + shift * other.count / count,
            # Chan, Golub and LeVeque, The American Statistician 37 (1983): no difference of large sums.
            self.squares + other.squares + shift**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
            first,
            bins,
        )

    @property
    def sd(self) -> float:
        """Standard deviation over all of them (divided by the count)."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """As `numpy.percentile` has it, within half a `BIN`; NaN of nothing."""
        if not self.count:
            return math.nan
        place = percent / 100 * (self.count - 1)
        ranks = np.array([math.floor(place), math.ceil(place)])
        numbers = self.first + np.searchsorted(np.cumsum(self.bins), ranks, side="right")
        below, above = np.clip((numbers + 0.5) * BIN, self.low, self.high)
        return float(below + (place - ranks[0]) * (above - below))

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Middles and counts of the bins that hold something."""
        filled = np.flatnonzero(self.bins)
        return np.asarray((self.first + filled + 0.5) * BIN, np.float64), self.bins[filled]

    @property
    def robust_range(self) -> float:
        """From the lower to the upper of `PERCENTILES`."""
        return self.percentile(PERCENTILES[1]) - self.percentile(PERCENTILES[0])

    @property
    def full_range(self) -> float:
        """From the smallest to the largest."""
        return self.high - self.low


@dataclass(frozen=True, eq=False)
class SpineAngles:
    """The angles of a trial in degrees; NaN where missing, also all through if the trial holds none.

    Attributes:
        lordosis: Cobb angle L1-S1 by keypoints.
        kyphosis: Cobb angle T3-T12 by keypoints.
        body_lordosis: Cobb angle L1-S1 by body frames.
        body_kyphosis: Cobb angle T3-T12 by body frames.
        rotations: of `VERTEBRAL_LEVELS` about the axes of `MOTIONS`; flexion is negative.
    """

    lordosis: NDArray[np.float64]  # [T]
    kyphosis: NDArray[np.float64]  # [T]
    body_lordosis: NDArray[np.float64]  # [T]
    body_kyphosis: NDArray[np.float64]  # [T]
    rotations: NDArray[np.float64]  # [T 7 3]


def spine_angles(trial: SpineTrial) -> SpineAngles:
    """Curvature and rotations of a trial, degrees; what it doesn't hold is computed where that can be."""
    lordosis, kyphosis = trial.lordosis, trial.kyphosis
    if lordosis is None or kyphosis is None:
        computed = _curvature_in_blocks(trial.keypoints)
        lordosis = computed[:, 0] if lordosis is None else lordosis
        kyphosis = computed[:, 1] if kyphosis is None else kyphosis
    rotations = trial.vertebral_rotations
    if rotations is None:
        rotations = trial.coordinates[:, _ROTATION_COLUMNS]
    nothing = np.full(trial.n_frames, np.nan)
    bodies = (nothing if a is None else a for a in (trial.body_lordosis, trial.body_kyphosis))
    return SpineAngles(*(np.rad2deg(a) for a in (lordosis, kyphosis, *bodies, rotations)))


def _curvature_in_blocks(keypoints: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T 2] lordosis and kyphosis by keypoints, radians."""
    found = [np.zeros((0, 2))]
    for start in range(0, len(keypoints), _BLOCK):
        block = keypoints[start : start + _BLOCK]
        padded = np.pad(block, ((0, _BLOCK - len(block)), (0, 0), (0, 0)), constant_values=np.nan)
        curvature = _keypoint_curvature(jnp.asarray(padded))
        found.append(np.stack([curvature.lordosis, curvature.kyphosis], axis=1)[: len(block)])
    return np.concatenate(found)


def in_fixed_ratios(angles: SpineAngles) -> bool:
    """Whether the six lumbar levels turn together about each axis, as the model's couplers hold them."""
    lumbar = angles.rotations[:, : len(LUMBAR_LEVELS)]
    lumbar = lumbar[np.isfinite(lumbar).all(axis=(1, 2))]
    if len(lumbar) < 3:  # two frames lie on a line whatever holds them
        return False
    sizes = np.linalg.svd(np.moveaxis(lumbar - lumbar.mean(axis=0), 2, 0), compute_uv=False)
    others = np.sqrt((sizes[:, 1:] ** 2).sum(axis=1) / len(lumbar))
    return bool((others < FIXED_DEG).all() and sizes[:, 0].max() > FIXED_DEG)


def spine_words(seen: Sequence[str], share: float) -> str:
    """What a trial's curvature rests on.

    Args:
        seen: keypoints along the column that some frame has.
        share: of the frames that have one between hips and neck.
    """
    words = f"{len(seen)} of {len(SPINE_IDS)}" + (f" ({', '.join(seen)})" if 0 < len(seen) < 4 else "")
    if share == 0:
        return f"{words}, none between hips and neck; {_FROM_MODEL}"
    if share < 1:
        unseen = f"in {100 * (1 - share):.1f} % of frames none between hips and neck"
        return f"{words}; {unseen}: there {_FROM_MODEL}"
    return f"{words}, in every frame some between hips and neck"


def seen_names(trial: SpineTrial) -> tuple[str, ...] | None:
    """Keypoints along the column that some frame of a trial has, from below; None if not known."""
    if (seen := trial.spine_seen) is None:
        return None
    return tuple(TRC_NAMES[k] for column, k in enumerate(SPINE_IDS) if seen[:, column].any())


def back_share(trial: SpineTrial) -> float | None:
    """Share of a trial's frames with a keypoint between hips and neck; None if not known."""
    seen = trial.back_seen
    return None if seen is None or not len(seen) else float(seen.mean())


@dataclass(frozen=True, eq=False)
class GroupStatistics:
    """Of some trials: how many frames there are, and tallies of the usable ones' angles in degrees.

    Attributes:
        n_trials: in the group.
        n_frames: of all of them.
        n_usable: of these.
        n_told: usable frames of which is known whether they had a keypoint between hips and neck.
        n_seen: of these, those that had one.
        n_fixed: trials whose lumbar levels turn in fixed ratios.
        flagged: frames with each flag; a frame can have several.
        flagged_before: likewise before repairs.
        curvature: by `CURVATURE_MEASURES`.
        rotations: by level (of `VERTEBRAL_LEVELS`) and motion (of `MOTIONS`).
    """

    n_trials: int = 0
    n_frames: int = 0
    n_usable: int = 0
    n_told: int = 0
    n_seen: int = 0
    n_fixed: int = 0
    flagged: Mapping[Quality, int] = field(default_factory=lambda: dict.fromkeys(Quality, 0))
    flagged_before: Mapping[Quality, int] = field(default_factory=lambda: dict.fromkeys(Quality, 0))
    curvature: Mapping[str, Tally] = field(default_factory=lambda: dict.fromkeys(CURVATURE_MEASURES, Tally()))
    rotations: Mapping[tuple[str, str], Tally] = field(
        default_factory=lambda: {(level, m): Tally() for level in VERTEBRAL_LEVELS for m in MOTIONS}
    )

    @classmethod
    def of(cls, trial: SpineTrial) -> GroupStatistics:
        """Of one trial."""
        angles, usable, seen = spine_angles(trial), trial.usable, trial.back_seen
        return cls(
            1,
            trial.n_frames,
            int(usable.sum()),
            0 if seen is None else int(usable.sum()),
            0 if seen is None else int(seen[usable].sum()),
            int(in_fixed_ratios(angles)),
            _counts(trial.quality),
            _counts(trial.faults_before),
            {name: Tally.of(getattr(angles, name)[usable]) for name in CURVATURE_MEASURES},
            {
                (level, motion): Tally.of(angles.rotations[usable, i, j])
                for i, level in enumerate(VERTEBRAL_LEVELS)
                for j, motion in enumerate(MOTIONS)
            },
        )

    def __add__(self, other: GroupStatistics) -> GroupStatistics:
        return GroupStatistics(
            self.n_trials + other.n_trials,
            self.n_frames + other.n_frames,
            self.n_usable + other.n_usable,
            self.n_told + other.n_told,
            self.n_seen + other.n_seen,
            self.n_fixed + other.n_fixed,
            {flag: self.flagged[flag] + other.flagged[flag] for flag in Quality},
            {flag: self.flagged_before[flag] + other.flagged_before[flag] for flag in Quality},
            {name: self.curvature[name] + other.curvature[name] for name in CURVATURE_MEASURES},
            {key: tally + other.rotations[key] for key, tally in self.rotations.items()},
        )


def _counts(flags: NDArray[np.uint16]) -> dict[Quality, int]:
    return {flag: int(((flags & np.uint16(flag)) != 0).sum()) for flag in Quality}


@dataclass(frozen=True, eq=False)
class TrialRow:
    """What is remembered of each trial: its name, frames, and what it comes from."""

    name: str
    n_frames: int
    n_usable: int
    n_repaired: int
    n_gaps: int
    n_events: int
    source: str
    is_synthetic: bool
    back_seen: float | None

    @classmethod
    def of(cls, trial: SpineTrial) -> TrialRow:
        """Of a trial."""
        return cls(
            trial.name, trial.n_frames, int(trial.usable.sum()), int(trial.repaired.sum()),
            len(trial.gaps_filled), len(trial.events), trial.source.strip(), trial.is_synthetic,
            back_share(trial),
        )  # fmt: skip


def notices(rows: Sequence[TrialRow]) -> tuple[str, ...]:
    """What must stand wherever something is shown about these trials, each a sentence."""
    count = len(rows)
    synthetic = sum(row.is_synthetic for row in rows)
    unseen = sum(row.back_seen == 0 for row in rows)
    told = []
    if synthetic:
        some = f"{synthetic} of {count} trials are synthetic captures: computed, not measured on people."
        told.append(SYNTHETIC_NOTICE if synthetic == count else some)
    if unseen:
        some = f"{unseen} of {count} trials show no keypoint between hips and neck: there {_FROM_MODEL}."
        told.append(UNSEEN_NOTICE if unseen == count else some)
    return tuple(told)


@dataclass(frozen=True, eq=False)
class SetStatistics:
    """Of a set of trials, by what its tables and figures are made.

    Attributes:
        by_action: action without the number of its repetition; in alphabetical order.
        by_subject: in order of their numbers.
        reprojection_px: by camera, over usable frames and all keypoints.
        residuals_mm: by marker, over usable frames.
        trials: in the order given.
    """

    by_action: Mapping[str, GroupStatistics]
    by_subject: Mapping[str, GroupStatistics]
    reprojection_px: Mapping[str, Tally]
    residuals_mm: Mapping[str, Tally]
    trials: tuple[TrialRow, ...]

    @cached_property
    def whole(self) -> GroupStatistics:
        """All trials."""
        return sum(self.by_subject.values(), GroupStatistics())

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """What must stand wherever something is shown about the set."""
        return notices(self.trials)

    @property
    def how_known(self) -> str:
        """What to call its values: ``measured``, or why they are not."""
        synthetic = sum(row.is_synthetic for row in self.trials)
        if synthetic:
            return "simulated" if synthetic == len(self.trials) else "measured and simulated"
        return "by the model's prior" if all(row.back_seen == 0 for row in self.trials) else "measured"

    @property
    def source(self) -> str:
        """The data in words: how many, how much of them counts, and where they come from."""
        sources = list(dict.fromkeys(row.source or "a source that is not stated" for row in self.trials))
        named = "; ".join(sources[:3]) + (f"; and {len(sources) - 3} more" if len(sources) > 3 else "")
        trials, frames = counted(len(self.trials), "trial"), counted(self.whole.n_frames, "frame")
        subjects = counted(len(self.by_subject), "subject")
        return f"{trials} of {subjects}, {self.whole.n_usable} of {frames} usable, from {named}"


def counted(number: int, what: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def gather_statistics(trials: Iterable[SpineTrial]) -> SetStatistics:
    """Reads each trial once; memory doesn't grow with their length.

    Raises:
        ShapeError: there is no trial.
    """
    by_action: dict[str, GroupStatistics] = {}
    by_subject: dict[str, GroupStatistics] = {}
    pixels: dict[str, Tally] = {}
    residuals: dict[str, Tally] = {}
    rows = []
    for trial in trials:
        group = GroupStatistics.of(trial)
        for groups, key in ((by_action, action_name(trial.action)), (by_subject, trial.subject)):
            groups[key] = groups.get(key, GroupStatistics()) + group
        for known, found in ((pixels, camera_tallies(trial)), (residuals, marker_tallies(trial))):
            for name, tally in found.items():
                known[name] = known.get(name, Tally()) + tally
        rows.append(TrialRow.of(trial))
    if not rows:
        raise ShapeError("There are no trials; valid is at least one")
    return SetStatistics(_ordered(by_action), _ordered(by_subject), pixels, residuals, tuple(rows))


def action_name(action: str) -> str:
    """``Walking`` of ``Walking 1``."""
    return re.sub(r"[ _]\d+$", "", action)


def _ordered(groups: dict[str, GroupStatistics]) -> dict[str, GroupStatistics]:
    """S9 before S11."""

    def key(name: str) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return {name: groups[name] for name in sorted(groups, key=key)}


def camera_tallies(trial: SpineTrial) -> dict[str, Tally]:
    """Reprojection error of usable frames by camera, px, all keypoints together; empty if there is none."""
    if trial.reprojection_px is None:
        return {}
    usable = trial.reprojection_px[trial.usable]
    return {name: Tally.of(usable[:, i]) for i, name in enumerate(trial.camera_names)}


def marker_tallies(trial: SpineTrial) -> dict[str, Tally]:
    """Distance of each marker from its target in usable frames, mm; empty if the trial holds none."""
    if trial.residuals is None:
        return {}
    usable = 1000 * trial.residuals[trial.usable]
    return {name: Tally.of(usable[:, i]) for i, name in enumerate(trial.marker_names)}
