"""Running statistics of a dataset: its clips are read once, and little is kept of each.

What is told of annotations alone is that of `statistics`; here are counts, what cameras and detector see,
how fast people move, and how far synthetic annotations are from their truth.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SpineTrial
from simspine_jax.clip_trials import known_views, trial_of
from simspine_jax.clips import CURVATURE_NAMES, MAX_CLIP_FRAMES, SPLITS, Clip, split_of
from simspine_jax.errors import ShapeError
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.io.layout import natural_key
from simspine_jax.skeleton import (
    AXIS_JOINTS,
    AXIS_NAMES,
    KEYPOINT_NAMES,
    N_KEYPOINTS,
    REGIONS,
)
from simspine_jax.statistics import (
    GroupStatistics,
    SetStatistics,
    Tally,
    TrialRow,
    action_name,
    spine_angles,
)

_GROUPS: Mapping[str, str] = {
    "ground_pelvis": "pelvis", "hip": "hip", "walker_knee": "knee", "patellofemoral": "knee",
    "ankle": "ankle and foot", "subtalar": "ankle and foot", "mtp": "ankle and foot", "Abdjnt": "abdomen",
    "head_torso": "neck", "acromial": "shoulder", "elbow": "elbow and forearm",
    "radioulnar": "elbow and forearm", "radius_hand": "wrist",
}  # fmt: skip
_LENGTHS = tuple(name for name in AXIS_NAMES if name[:-1].endswith("_t"))

SPEED_PARTS: Mapping[str, tuple[str, ...]] = {
    "hip": ("hip",),
    "head": ("head",),
    "wrists": ("left_wrist", "right_wrist"),
    "ankles": ("left_ankle", "right_ankle"),
}
"""Whose speed is told by action."""


@dataclass(frozen=True)
class Axis:
    """A kinematic axis, or the two of both sides: its name without side, group, unit and columns."""

    name: str
    group: str
    unit: str
    columns: tuple[int, ...]

    @property
    def factor(self) -> float:
        """From rad or m to the unit."""
        return 100.0 if self.unit == "cm" else 180.0 / np.pi


def _axes() -> tuple[Axis, ...]:
    columns: dict[str, list[int]] = {}
    for i, name in enumerate(AXIS_NAMES):
        sided = name.replace("_r_beta", "_beta").replace("_l_beta", "_beta")
        sided = sided.removesuffix("_r").removesuffix("_l") if not name.startswith("Abs") else sided
        columns.setdefault(sided, []).append(i)
    return tuple(
        Axis(name, _group(AXIS_JOINTS[found[0]]), "cm" if name in _LENGTHS else "°", tuple(found))
        for name, found in columns.items()
    )


def _group(joint: str) -> str:
    return _GROUPS.get(joint.removesuffix("_r").removesuffix("_l"), "lumbar spine")


AXES: tuple[Axis, ...] = _axes()
"""The 62 axes in the model's order, left and right as one."""


@dataclass(frozen=True)
class ClipCounts:
    """How much there is: clips, frames of them, frames times views, usable and repaired frames, seconds."""

    clips: int = 0
    frames: int = 0
    view_frames: int = 0
    usable: int = 0
    repaired: int = 0
    seconds: float = 0.0

    def __add__(self, other: ClipCounts) -> ClipCounts:
        names = (f.name for f in dataclasses.fields(self))
        return ClipCounts(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True, eq=False)
class ViewStatistics:
    """What one camera sees of each of the 37 keypoints.

    Attributes:
        frames: that it has.
        known: [37] frames in which the annotation has the keypoint.
        inside: [37] of these, the ones with the keypoint inside the picture.
        detected: [37] frames in which the detector found it.
    """

    frames: int
    known: NDArray[np.int64]
    inside: NDArray[np.int64]
    detected: NDArray[np.int64]

    def __add__(self, other: ViewStatistics) -> ViewStatistics:
        return ViewStatistics(
            self.frames + other.frames,
            self.known + other.known,
            self.inside + other.inside,
            self.detected + other.detected,
        )


@dataclass(frozen=True, eq=False)
class TruthTally:
    """An angle of the annotation beside that of the truth, degrees, where both are known in usable frames.

    Attributes:
        error: annotation less truth.
        absolute: size of the error.
        true: the truth.
        found: the annotation.
    """

    error: Tally = field(default_factory=Tally)
    absolute: Tally = field(default_factory=Tally)
    true: Tally = field(default_factory=Tally)
    found: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, found: NDArray[np.floating], true: NDArray[np.floating]) -> TruthTally:
        """Of angles [T], degrees; NaN where they are not known."""
        found, true = np.asarray(found, float), np.asarray(true, float)
        known = np.isfinite(found) & np.isfinite(true)
        error = (found - true)[known]
        return cls(Tally.of(error), Tally.of(np.abs(error)), Tally.of(true[known]), Tally.of(found[known]))

    def __add__(self, other: TruthTally) -> TruthTally:
        names = (f.name for f in dataclasses.fields(self))
        return TruthTally(*(getattr(self, name) + getattr(other, name) for name in names))


T = TypeVar("T")
Tallies = Mapping[str, Tally]


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """Of a dataset, by what its card is made.

    Attributes:
        spine: curvature, rotations of the spine and quality flags, each clip counted as a trial.
        counts: by subject and action (without the number of its repetition).
        by_view: by camera, likewise.
        views: by camera.
        axes: of `AXES` by name, in their units, over usable frames.
        detector_px: distance of detections from pictures of the truth, by keypoint, px.
        detector_view_px: likewise by camera.
        error_mm: distance of the annotation from the truth over usable frames, by keypoint, mm.
        rooted_mm: likewise with both hips at one place.
        axis_error: absolute difference of the annotation's axes from the truth, angles modulo a turn, by
            name of `AXES` in its unit.
        curvature_truth: ``lordosis`` and ``kyphosis`` by keypoints beside those of the truth.
        speed: of keypoints over usable frames, cm/s.
        speed_by_action: of `SPEED_PARTS`, by action and part, cm/s.
        sizes: height (m) and mass (kg) of each subject; NaN where they are not known.
        rates_hz: frames per second that occur.
    """

    spine: SetStatistics
    counts: Mapping[tuple[str, str], ClipCounts]
    by_view: Mapping[str, ClipCounts]
    views: Mapping[str, ViewStatistics]
    axes: Tallies
    detector_px: Tallies
    detector_view_px: Tallies
    error_mm: Tallies
    rooted_mm: Tallies
    axis_error: Tallies
    curvature_truth: Mapping[str, TruthTally]
    speed: Tallies
    speed_by_action: Mapping[tuple[str, str], Tally]
    sizes: Mapping[str, tuple[float, float]]
    rates_hz: tuple[float, ...]

    @cached_property
    def whole(self) -> ClipCounts:
        """All of it."""
        return sum(self.counts.values(), ClipCounts())

    def counts_by(self, kind: str) -> dict[str, ClipCounts]:
        """Counts by ``subject``, ``action``, ``view`` (in natural order) or ``split``."""
        if kind == "view":
            return dict(self.by_view)
        found: dict[str, ClipCounts] = {}
        for (subject, action), count in self.counts.items():
            key = {"subject": subject, "action": action, "split": split_of(subject)}[kind]
            found[key] = found.get(key, ClipCounts()) + count
        return {s: found[s] for s in SPLITS if s in found} if kind == "split" else _ordered(found)

    @property
    def has_truth(self) -> bool:
        """Whether some frame has a known truth."""
        return any(tally.count for tally in self.error_mm.values())

    @property
    def has_true_curvature(self) -> bool:
        """Whether some frame has a known true curvature."""
        return any(tally.error.count for tally in self.curvature_truth.values())

    @property
    def has_detections(self) -> bool:
        """Whether some detection is known."""
        return any(view.detected.any() for view in self.views.values())


def by_region(tallies: Tallies) -> dict[str, Tally]:
    """Tallies by keypoint put together by the paper's regions."""
    return {
        region: sum((tallies[KEYPOINT_NAMES[k]] for k in ids), Tally()) for region, ids in REGIONS.items()
    }


def gather_dataset(clips: Iterable[Clip], step: Callable[[], None] | None = None) -> DatasetStatistics:
    """Reads each clip once, in any order; memory grows with the subjects and actions, hardly with the clips.

    Args:
        clips: of any length up to `clips.MAX_CLIP_FRAMES`.
        step: called after each clip.

    Raises:
        ShapeError: there are no clips, or one is longer.
    """
    gatherer = _Gatherer()
    for clip in clips:
        gatherer.add(known_views(clip))
        if step is not None:
            step()
    return gatherer.result()


@dataclass
class _Gatherer:
    """What has been gathered so far."""

    by_action: dict[str, GroupStatistics] = field(default_factory=dict)
    by_subject: dict[str, GroupStatistics] = field(default_factory=dict)
    rows: dict[tuple[str, str], TrialRow] = field(default_factory=dict)
    counts: dict[tuple[str, str], ClipCounts] = field(default_factory=lambda: defaultdict(ClipCounts))
    by_view: dict[str, ClipCounts] = field(default_factory=lambda: defaultdict(ClipCounts))
    views: dict[str, ViewStatistics] = field(default_factory=dict)
    tallies: dict[str, dict[str, Tally]] = field(default_factory=lambda: defaultdict(dict))
    curvature: dict[str, TruthTally] = field(
        default_factory=lambda: dict.fromkeys(CURVATURE_NAMES[:2], TruthTally())
    )
    speed_by_action: dict[tuple[str, str], Tally] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    rates_hz: set[float] = field(default_factory=set)

    def add(self, clip: Clip) -> None:
        if clip.n_frames > MAX_CLIP_FRAMES:
            raise ShapeError(
                f"A clip of {clip.subject}, {clip.action} has {clip.n_frames} frames; valid is up to "
                f"{MAX_CLIP_FRAMES}"
            )
        trial, action = trial_of(clip), action_name(clip.action)
        group = GroupStatistics.of(trial)
        for groups, key in ((self.by_action, action), (self.by_subject, clip.subject)):
            groups[key] = groups.get(key, GroupStatistics()) + group
        name, row = (clip.subject, clip.action), TrialRow.of(trial)
        self.rows[name] = _longer(self.rows[name], row) if name in self.rows else row
        self._count(clip, action, trial.usable, trial.repaired)
        self._tally("axes", axis_tallies(clip.kinematics[trial.usable]))
        self._add_truth(clip, trial.usable)
        if clip.true_curvature_mask.any():
            self._add_curvature(clip, trial)
        self._add_speed(clip, action, trial.usable)
        self.sizes[clip.subject] = (float(clip.height_m), float(clip.mass_kg))
        self.rates_hz.add(float(clip.rate_hz))

    def _count(self, clip: Clip, action: str, usable: NDArray[np.bool_], repaired: NDArray[np.bool_]) -> None:
        frames, n_views = clip.n_frames, len(clip.camera_names)
        told = (int(usable.sum()), int(repaired.sum()), frames / float(clip.rate_hz))
        self.counts[clip.subject, action] += ClipCounts(1, frames, frames * n_views, *told)
        known = clip.keypoints_3d_mask.sum(axis=0)
        for i, name in enumerate(clip.camera_names):
            self.by_view[name] += ClipCounts(1, frames, frames, *told)
            inside, found = (a[:, i].sum(axis=0) for a in (clip.keypoints_2d_mask, clip.detections_2d_mask))
            view = ViewStatistics(frames, known, inside, found)
            self.views[name] = self.views[name] + view if name in self.views else view

    def _tally(self, kind: str, found: Mapping[str, Tally]) -> None:
        known = self.tallies[kind]
        for name, tally in found.items():
            known[name] = known.get(name, Tally()) + tally

    def _add_truth(self, clip: Clip, usable: NDArray[np.bool_]) -> None:
        """Errors of annotation and detector, where the truth is known."""
        if clip.true_keypoints_3d_mask.any():
            found, true = (_masked(clip, f"{kind}keypoints_3d") for kind in ("", "true_"))
            root = KEYPOINT_NAMES.index("hip")
            error, rooted = (
                1e3 * np.linalg.norm((a - b)[usable], axis=-1)
                for a, b in ((found, true), (found - found[:, [root]], true - true[:, [root]]))
            )
            self._tally("error_mm", _by_keypoint(error))
            self._tally("rooted_mm", _by_keypoint(rooted))
        if clip.true_keypoints_3d_mask.any() and clip.camera_names:
            pixels = _pictures(clip.cameras, _masked(clip, "true_keypoints_3d"))
            off = np.linalg.norm(_masked(clip, "detections_2d") - pixels, axis=-1)  # [T V 37]
            self._tally("detector_px", _by_keypoint(off.reshape(-1, N_KEYPOINTS)))
            names = clip.camera_names
            self._tally("detector_view_px", {name: Tally.of(off[:, i]) for i, name in enumerate(names)})
        if clip.true_kinematics_mask.any():
            self._tally(
                "axis_error", axis_error_tallies(clip.kinematics[usable], clip.true_kinematics[usable])
            )

    def _add_curvature(self, clip: Clip, trial: SpineTrial) -> None:
        """The annotation's beside the truth's."""
        angles = spine_angles(trial)
        true = np.rad2deg(np.where(clip.true_curvature_mask, clip.true_curvature, np.nan))
        for i, name in enumerate(CURVATURE_NAMES[:2]):
            found = getattr(angles, name)[trial.usable]
            self.curvature[name] += TruthTally.of(found, true[trial.usable, i])

    def _add_speed(self, clip: Clip, action: str, usable: NDArray[np.bool_]) -> None:
        """Of neighbouring usable frames."""
        points = np.where(usable[:, None, None], _masked(clip, "keypoints_3d"), np.nan)
        speed = 100.0 * float(clip.rate_hz) * np.linalg.norm(np.diff(points, axis=0), axis=-1)
        self._tally("speed", _by_keypoint(speed))
        for part, names in SPEED_PARTS.items():
            tally = Tally.of(speed[:, [KEYPOINT_NAMES.index(name) for name in names]])
            self.speed_by_action[action, part] = self.speed_by_action.get((action, part), Tally()) + tally

    def result(self) -> DatasetStatistics:
        if not self.rows:
            raise ShapeError("There are no clips; valid is at least one")
        rows = tuple(self.rows[name] for name in sorted(self.rows, key=lambda n: tuple(map(natural_key, n))))
        spine = SetStatistics(_ordered(self.by_action), _ordered(self.by_subject), {}, {}, rows)
        for kind, names in (
            ("error_mm", KEYPOINT_NAMES), ("rooted_mm", KEYPOINT_NAMES), ("detector_px", KEYPOINT_NAMES),
            ("axis_error", tuple(axis.name for axis in AXES)), ("detector_view_px", self.views),
        ):  # fmt: skip
            self._tally(kind, dict.fromkeys(names, Tally()))
        return DatasetStatistics(
            spine,
            dict(self.counts),
            _ordered(self.by_view),
            _ordered(self.views),
            **self.tallies,
            curvature_truth=dict(self.curvature),
            speed_by_action=self.speed_by_action,
            sizes=_ordered(self.sizes),
            rates_hz=tuple(sorted(self.rates_hz)),
        )


def _ordered(named: Mapping[str, T]) -> dict[str, T]:
    """S9 before S11."""
    return {name: named[name] for name in sorted(named, key=natural_key)}


def _longer(one: TrialRow, other: TrialRow) -> TrialRow:
    """A trial's row from those of two of its clips."""
    sums = ("n_frames", "n_usable", "n_repaired", "n_gaps", "n_events")
    return dataclasses.replace(one, **{name: getattr(one, name) + getattr(other, name) for name in sums})


def _masked(clip: Clip, name: str) -> NDArray[np.float32]:
    return np.where(getattr(clip, f"{name}_mask")[..., None], getattr(clip, name), np.nan)


def _by_keypoint(values: NDArray[np.floating]) -> dict[str, Tally]:
    """A tally of each column of [N 37]."""
    return {name: Tally.of(values[:, k]) for k, name in enumerate(KEYPOINT_NAMES)}


def axis_tallies(kinematics: NDArray[np.float32]) -> dict[str, Tally]:
    """Of each of `AXES` in its unit, from [T 62] rad and m."""
    return {a.name: Tally.of(a.factor * kinematics[:, list(a.columns)].astype(float)) for a in AXES}


def axis_error_tallies(found: NDArray[np.float32], true: NDArray[np.float32]) -> dict[str, Tally]:
    """Absolute differences of [T 62] rad and m, of each of `AXES` in its unit; angles modulo a turn."""
    difference = found.astype(float) - true
    turned = (difference + np.pi) % (2 * np.pi) - np.pi
    return {
        a.name: Tally.of(a.factor * np.abs((difference if a.unit == "cm" else turned)[:, list(a.columns)]))
        for a in AXES
    }


def _pictures(cameras: Cameras, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T V 37 2] px of points [T 37 3] m; frames are padded, so that all clips share a compiled program."""
    padded = np.full((MAX_CLIP_FRAMES, N_KEYPOINTS, 3), np.nan, np.float32)
    padded[: len(points)] = points
    unnamed = dataclasses.replace(cameras, names=("",) * len(cameras.names))
    return np.asarray(_project(unnamed, jnp.asarray(padded)))[: len(points)]


@jax.jit
def _project(cameras: Cameras, points: jax.Array) -> jax.Array:
    return jnp.moveaxis(project(cameras, points).keypoints, 2, 1)
