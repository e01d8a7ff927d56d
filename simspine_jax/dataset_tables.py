"""Tables about a dataset: how much there is, what is seen, how it moves, how far it is from the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from simspine_jax.annotations import Quality
from simspine_jax.clips import split_of
from simspine_jax.dataset_statistics import AXES, SPEED_PARTS, DatasetStatistics
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import KEYPOINT_NAMES, LUMBAR_LEVELS
from simspine_jax.statistics import CURVATURE_MEASURES, GroupStatistics, Tally
from simspine_jax.tables import Cell, Table
from simspine_jax.validation import CURVATURE_LABELS, FAULT_LABELS, FIXED_RATIOS

USABLE_NOTE = "Usable frames; repaired ones are usable."
AXES_NOTE = (
    "Left and right are counted as one axis. The pelvis and the arms may go on past a whole turn. The levels "
    "of the lumbar spine are told apart."
)
MEASURES_NOTE = (
    "By keypoints, between tangents of a curve along the back, and by bodies, Cobb's angle between the "
    "model's endplates, are two measures and not one number. The thorax is one rigid body, so that kyphosis "
    "by bodies is constant."
)
SIGNS_NOTE = "Flexion, bending to the left and turning to the right are negative."
INSIDE_NOTE = (
    "Inside the picture: the keypoint's pixel lies within the frame. Clips don't know occlusion, so that a "
    "keypoint behind the body counts as inside; the rendered pictures (synthetic_images) know which "
    "keypoints are visible and which are occluded."
)
CURVATURE_ERROR_NOTE = (
    "Curvature by keypoints, over usable frames in which both are known. Where the annotation's SD is far "
    "from the truth's, it does not follow the truth's changes one for one."
)


def counts_table(statistics: DatasetStatistics, by: str) -> Table:
    """How much there is by ``split``, ``subject``, ``action`` or ``view``."""
    groups = statistics.counts_by(by)
    total = {} if by == "view" else {"All": statistics.whole}
    more = _subject_columns(statistics) if by == "subject" else {}
    rows = tuple(
        (
            name, *(cells.get(name) for cells in more.values()), c.clips, c.frames, c.view_frames,
            c.seconds / 3600, _percent(c.usable, c.frames), _percent(c.repaired, c.frames),
        )
        for name, c in (*groups.items(), *total.items())
    )  # fmt: skip
    columns = (
        by.capitalize(), *more, "Clips", "Frames", "Frames in views", "Hours", "Usable (%)", "Repaired (%)",
    )  # fmt: skip
    spine = statistics.spine
    return Table(
        f"counts_by_{by}", f"What there is by {by}", columns, rows,
        (0, *[2, 2, 1][: len(more)], 0, 0, 0, 3, 1, 1), spine.source, spine.notices,
    )  # fmt: skip


def _subject_columns(statistics: DatasetStatistics) -> dict[str, dict[str, Cell]]:
    return {
        "Split": {name: split_of(name) for name in statistics.sizes},
        "Height (m)": {name: height for name, (height, _) in statistics.sizes.items()},
        "Mass (kg)": {name: mass for name, (_, mass) in statistics.sizes.items()},
    }


def _percent(part: float, whole: float) -> float:
    return 100.0 * part / whole if whole else math.nan


def axes_table(statistics: DatasetStatistics) -> Table:
    """Range of each kinematic axis but those of the lumbar levels, by group."""
    rows = []
    for axis in AXES:
        tally = statistics.axes[axis.name]
        if axis.group != "lumbar spine":
            numbers = (tally.mean, tally.sd, tally.percentile(5), tally.percentile(95), tally.low, tally.high)
            rows.append((axis.group, axis.name, axis.unit, *numbers, tally.robust_range))
    columns = ("Group", "Axis", "Unit", "Mean", "SD", "5 %", "95 %", "Lowest", "Highest", "5 to 95 %")
    spine = statistics.spine
    return Table(
        "range_of_motion_by_axis", "Range of motion by kinematic axis", columns, tuple(rows),
        (0, 0, 0, *[1] * 7), spine.source, (*spine.notices, USABLE_NOTE, AXES_NOTE),
    )  # fmt: skip


def curvature_table(statistics: DatasetStatistics, by: str) -> Table:
    """Mean and SD of lordosis and kyphosis, by ``subject`` or ``action``."""
    spine = statistics.spine
    groups: Mapping[str, GroupStatistics] = spine.by_subject if by == "subject" else spine.by_action
    rows: list[tuple[Cell, ...]] = []
    for name, group in (*groups.items(), ("All", spine.whole)):
        tallies = [group.curvature[measure] for measure in CURVATURE_MEASURES]
        rows.append((name, group.n_usable, *(number for t in tallies for number in (t.mean, t.sd))))
    columns = [f"{CURVATURE_LABELS[m]}: {what} (°)" for m in CURVATURE_MEASURES for what in ("mean", "SD")]
    return Table(
        f"curvature_by_{by}", f"Curvature by {by}: lordosis L1-S1 and kyphosis T3-T12 (Cobb)",
        (by.capitalize(), "Usable frames", *columns), tuple(rows), (0, 0, *[1] * len(columns)),
        spine.source, (*spine.notices, USABLE_NOTE, MEASURES_NOTE),
    )  # fmt: skip


def lumbar_table(statistics: DatasetStatistics) -> Table:
    """Range of each lumbar level about each axis, from below."""
    spine = statistics.spine
    rows = []
    for motion in MOTIONS:
        for level in LUMBAR_LEVELS:
            tally = spine.whole.rotations[level, motion]
            numbers = (tally.mean, tally.sd, tally.percentile(5), tally.percentile(95), tally.low, tally.high)
            rows.append((motion, level_label(level), *numbers, tally.robust_range))
    columns = ("Motion", "Level", "Mean", "SD", "5 %", "95 %", "Lowest", "Highest", "5 to 95 %")
    held = (FIXED_RATIOS,) if spine.whole.n_fixed == spine.whole.n_trials else ()
    return Table(
        "range_of_motion_by_lumbar_level", "Range of motion by lumbar level, degrees", columns, tuple(rows),
        (0, 0, *[2] * 7), spine.source, (*spine.notices, USABLE_NOTE, SIGNS_NOTE, *held),
    )  # fmt: skip


def curvature_error_table(statistics: DatasetStatistics) -> Table:
    """Lordosis and kyphosis against the synthetic truth, and how much both of them vary."""
    rows: list[tuple[Cell, ...]] = []
    for name, of in statistics.curvature_truth.items():
        size = of.absolute
        errors = (of.error.mean, size.mean, size.percentile(50), size.percentile(95))
        rows.append((name.capitalize(), of.error.count, *errors, of.true.sd, of.found.sd))
    columns = (
        "Curvature", "Frames", "Mean error, annotation less truth (°)", "Mean absolute error (°)",
        "Median absolute error (°)", "95 % (°)", "SD of the truth (°)", "SD of the annotation (°)",
    )  # fmt: skip
    spine = statistics.spine
    return Table(
        "curvature_against_truth", "Curvature: error against the truth, SD of truth and annotation", columns,
        tuple(rows), (0, 0, *[2] * 6), spine.source, (*spine.notices, CURVATURE_ERROR_NOTE),
    )  # fmt: skip


def axis_error_table(statistics: DatasetStatistics) -> Table:
    """Absolute error of each kinematic axis against the synthetic truth."""
    rows = []
    for axis in AXES:
        tally = statistics.axis_error[axis.name]
        cells = (tally.mean, tally.percentile(50), tally.percentile(95))
        rows.append((axis.group, axis.name, axis.unit, *cells))
    columns = ("Group", "Axis", "Unit", "Mean", "Median", "95 %")
    spine = statistics.spine
    notes = (
        *spine.notices,
        USABLE_NOTE,
        "Angles are compared modulo a turn; wrists and forearms hardly show.",
    )
    return Table(
        "axis_error_against_truth", "Absolute error of the kinematic axes against the synthetic truth",
        columns, tuple(rows), (0, 0, 0, 2, 2, 2), spine.source, notes,
    )  # fmt: skip


def view_table(statistics: DatasetStatistics) -> Table:
    """What each camera has of all keypoints together."""
    rows = []
    for name, view in statistics.views.items():
        off = statistics.detector_view_px.get(name, Tally())
        found = _percent(int(view.detected.sum()), view.frames * len(view.detected))
        rows.append(
            (
                name, view.frames, _percent(int(view.inside.sum()), int(view.known.sum())),
                found if statistics.has_detections else None, off.percentile(50), off.percentile(95),
            )
        )  # fmt: skip
    columns = (
        "Camera", "Frames", "Inside the picture (% of known)", "Detected (% of frames)",
        "Detector error, median (px)",
        "95 % (px)",
    )  # fmt: skip
    return _inside_table(
        "inside_by_view", "What each camera has inside its picture", columns, rows, statistics
    )


def inside_table(statistics: DatasetStatistics) -> Table:
    """What all cameras together have of each keypoint."""
    views = statistics.views.values()
    frames = sum(view.frames for view in views)
    known, inside, detected = (
        np.sum([getattr(view, name) for view in views], axis=0) for name in ("known", "inside", "detected")
    )
    rows = []
    for k, name in enumerate(KEYPOINT_NAMES):
        off = statistics.detector_px[name]
        found = _percent(int(detected[k]), frames) if statistics.has_detections else None
        cells = (_percent(int(known[k]), frames), _percent(int(inside[k]), int(known[k])), found)
        rows.append((name, *cells, off.percentile(50), off.percentile(95)))
    columns = (
        "Keypoint", "Annotated (% of frames)", "Inside the picture (% of known)", "Detected (% of frames)",
        "Detector error, median (px)", "95 % (px)",
    )  # fmt: skip
    return _inside_table(
        "inside_by_keypoint", "What of each keypoint is inside the picture", columns, rows, statistics
    )


def _inside_table(
    name: str,
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Cell, ...]],
    statistics: DatasetStatistics,
) -> Table:
    spine = statistics.spine
    decimals = (0, 1, 1, 1, 2, 2)
    notes = (
        *spine.notices,
        INSIDE_NOTE,
        "Detector error: distance from the picture of the synthetic truth.",
    )
    return Table(name, title, columns, tuple(rows), decimals, spine.source, notes)


def speed_table(statistics: DatasetStatistics) -> Table:
    """Median and 95th percentile of the speed of some keypoints by action."""
    rows = []
    for action in statistics.counts_by("action"):
        tallies = [statistics.speed_by_action[action, part] for part in SPEED_PARTS]
        rows.append((action, *(t.percentile(p) for t in tallies for p in (50, 95))))
    columns = [f"{part.capitalize()}: {what}" for part in SPEED_PARTS for what in ("median", "95 %")]
    spine = statistics.spine
    return Table(
        "speed_by_action", "Speed of keypoints by action, cm/s", ("Action", *columns), tuple(rows),
        (0, *[1] * len(columns)), spine.source, (*spine.notices, "Between neighbouring usable frames."),
    )  # fmt: skip


def flags_table(statistics: DatasetStatistics, by: str) -> Table:
    """Share of the frames with each quality flag, by ``subject`` or ``action``."""
    spine = statistics.spine
    groups: Mapping[str, GroupStatistics] = spine.by_subject if by == "subject" else spine.by_action
    flags = [flag for flag in Quality if flag != Quality.GOOD]
    rows = tuple(
        (
            name, group.n_frames, _percent(group.n_usable, group.n_frames),
            *(_percent(group.flagged[flag], group.n_frames) for flag in flags),
        )
        for name, group in (*groups.items(), ("All", spine.whole))
    )  # fmt: skip
    columns = (by.capitalize(), "Frames", "Usable (%)", *(f"{FAULT_LABELS[flag]} (%)" for flag in flags))
    notes = (*spine.notices, "A frame can have several flags; repaired frames are usable.")
    return Table(
        f"flags_by_{by}", f"Quality flags by {by}", columns, rows, (0, 0, *[2] * (len(flags) + 1)),
        spine.source, notes,
    )  # fmt: skip
