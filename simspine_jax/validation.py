"""Tables about a set of annotations: curvature, range of motion and quality, beside the literature's values.

Usable frames alone are counted, which every table says, as it says on which data it was measured and how
well a value of the literature is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from simspine_jax import reference_values as reference
from simspine_jax.annotations import Quality
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import LUMBAR_LEVELS
from simspine_jax.statistics import CURVATURE_MEASURES, GroupStatistics, SetStatistics, counted
from simspine_jax.tables import Cell, Table

CURVATURE_LABELS: Mapping[str, str] = {
    "lordosis": "Lordosis by keypoints",
    "body_lordosis": "Lordosis by bodies",
    "kyphosis": "Kyphosis by keypoints",
    "body_kyphosis": "Kyphosis by bodies",
}
FAULTS: tuple[Quality, ...] = tuple(flag for flag in Quality if flag != Quality.INTERPOLATED)
"""What makes a frame unusable."""

FAULT_LABELS: Mapping[Quality, str] = {
    Quality.NO_POSE: "No pose",
    Quality.MARKER_RESIDUAL: "Marker residual",
    Quality.CURVATURE: "Curvature",
    Quality.JOINT_LIMITS: "Joint limits",
    Quality.ANGULAR_JUMP: "Angular jump",
    Quality.INTERPOLATED: "Interpolated",
}

_TWO_MEASURES = (
    "Curvature by keypoints and by bodies are two measures, not one number; the model's thorax is one body, "
    "so that its kyphosis by bodies is constant."
)
_USABLE_ONLY = "Only usable frames are counted; repaired ones are usable."


def validation_tables(statistics: SetStatistics) -> tuple[Table, ...]:
    """Every table about a set, in the order in which they are read."""
    return (
        curvature_table(statistics, "action"),
        curvature_table(statistics, "subject"),
        lumbar_motion_table(statistics),
        flexion_gradient_table(statistics),
        neck_table(statistics),
        neck_coverage_table(statistics),
        quality_table(statistics, "action"),
        quality_table(statistics, "subject"),
        reference_table(),
    )


def _groups(statistics: SetStatistics, by: str) -> Mapping[str, GroupStatistics]:
    return statistics.by_action if by == "action" else statistics.by_subject


def curvature_table(statistics: SetStatistics, by: str) -> Table:
    """Mean and SD of lordosis and kyphosis; the last row is the mean of the rows, as in the paper's Table B.

    Args:
        by: ``action`` or ``subject``.
    """
    groups, whole = _groups(statistics, by), statistics.whole

    def cells(group: GroupStatistics) -> list[Cell]:
        tallies = [group.curvature[name] for name in CURVATURE_MEASURES]
        return [number for tally in tallies for number in (tally.mean, tally.sd)]

    rows: list[tuple[Cell, ...]] = [(name, g.n_usable, *cells(g)) for name, g in groups.items()]
    numbers = np.array([cells(group) for group in groups.values()], float)
    held = [numbers[np.isfinite(numbers[:, i]), i] for i in range(numbers.shape[1])]
    if len(groups) > 1:
        rows.append(("All frames", whole.n_usable, *cells(whole)))
        rows.append(("Mean of the rows", None, *(float(h.mean()) if len(h) else None for h in held)))
    columns = [f"{CURVATURE_LABELS[n]}: {what} (°)" for n in CURVATURE_MEASURES for what in ("mean", "SD")]
    notes = [_USABLE_ONLY, _TWO_MEASURES]
    for name in CURVATURE_MEASURES:
        lacking = whole.n_usable - whole.curvature[name].count
        if lacking:
            notes.append(f"{CURVATURE_LABELS[name]}: not known in {counted(lacking, 'usable frame')}.")
    notes += [_cited(value) for value in (*reference.LORDOSIS[:2], *reference.KYPHOSIS[:2])]
    return Table(
        f"curvature_by_{by}", f"Curvature by {by}: lordosis L1-S1 and kyphosis T3-T12 (Cobb)",
        (by.capitalize(), "Usable frames", *columns), tuple(rows), (0, 0, *[2] * len(columns)),
        statistics.source, tuple(notes),
    )  # fmt: skip


def comparable(tally_range: float, value: reference.ReferenceValue) -> float:
    """A range as the reference counts it: the whole arc, or half of it where that is one side."""
    return tally_range / (3 - value.sides)


def lumbar_motion_table(statistics: SetStatistics) -> Table:
    """Range of motion of each lumbar level about each axis, from below, beside the reference values."""
    whole = statistics.whole
    rows: list[tuple[Cell, ...]] = []
    for motion in MOTIONS:
        for level in LUMBAR_LEVELS:
            tally, value = whole.rotations[level, motion], reference.LUMBAR_ROM[level, motion]
            limits = _range(value.limits)
            rows.append(
                (
                    level_label(level), motion, tally.robust_range, tally.full_range,
                    _mean_of_subjects(statistics, level, motion), comparable(tally.robust_range, value),
                    value.degrees[0], limits, "whole arc" if value.sides == 2 else "one side", value.status,
                )
            )  # fmt: skip
    columns = (
        "Level", "Motion", "5 to 95 % (°)", "Min to max (°)", "5 to 95 %, mean of subjects (°)",
        "Compared (°)", "Reference (°)", "Its limits (°)", "It counts", "Status of reference",
    )  # fmt: skip
    notes = (
        _USABLE_ONLY,
        "Compared: 5 to 95 % counted as the reference does, half of it where that is one side.",
        "These are ranges that the actions happened to use; the reference is the most that a person can do.",
        f"Reference: {reference.LUMBAR_ROM['L5_S1', MOTIONS[0]].source}. {reference.LUMBAR_CONFLICT}",
    )
    return Table(
        "lumbar_range_of_motion", "Range of motion by lumbar level", columns, tuple(rows),
        (0, 0, 2, 2, 2, 2, 0, 0, 0, 0), statistics.source, notes,
    )  # fmt: skip


def _mean_of_subjects(statistics: SetStatistics, level: str, motion: str) -> float:
    ranges = [group.rotations[level, motion].robust_range for group in statistics.by_subject.values()]
    known = [r for r in ranges if math.isfinite(r)]
    return sum(known) / len(known) if known else math.nan


def flexion_gradient_table(statistics: SetStatistics) -> Table:
    """The share of each lumbar level in the sum of their ranges of flexion and extension, percent."""
    motion, whole = MOTIONS[0], statistics.whole
    measured = {level: whole.rotations[level, motion].robust_range for level in LUMBAR_LEVELS}
    literature = {level: reference.LUMBAR_ROM[level, motion].degrees[0] for level in LUMBAR_LEVELS}
    shares = [_shares(part) for part in (measured, literature, dict(reference.MODEL_FLEXION_RATIOS))]
    rows = tuple(
        (
            level_label(level), measured[level], *(share[level] for share in shares),
            reference.LUMBAR_ROM[level, motion].status,
        )
        for level in LUMBAR_LEVELS
    )  # fmt: skip
    columns = (
        "Level", "5 to 95 % (°)", "Share (%)", "Reference share (%)", "Share by the model's couplers (%)",
        "Status of reference",
    )  # fmt: skip
    notes = (
        _USABLE_ONLY,
        "Where the model's lumbar joints are coupled, the shares are its couplers' whatever the data say.",
        "The paper has a peak near L4-L5; its reference, as recalled, rises to L5-S1.",
        f"Reference: {reference.LUMBAR_ROM['L5_S1', motion].source}.",
    )
    return Table(
        "lumbar_flexion_gradient", "Share of each lumbar level in flexion and extension", columns, rows,
        (0, 2, 1, 1, 1, 0), statistics.source, notes,
    )  # fmt: skip


def _shares(ranges: Mapping[str, float]) -> dict[str, float]:
    total = sum(ranges.values())
    return {level: 100 * r / total if total > 0 else math.nan for level, r in ranges.items()}


def neck_table(statistics: SetStatistics) -> Table:
    """Robust range, lowest and highest angle of the neck's three rotations by action."""
    rows: list[tuple[Cell, ...]] = []
    for name, group in (*statistics.by_action.items(), ("All frames", statistics.whole)):
        tallies = [group.rotations["neck", motion] for motion in MOTIONS]
        cells = [number for t in tallies for number in (t.robust_range, t.low, t.high)]
        rows.append((name, group.n_usable, *cells))
    words = ("Flexion", "Bending", "Rotation")
    columns = [f"{word}: {what} (°)" for word in words for what in ("5 to 95 %", "lowest", "highest")]
    notes = (
        _USABLE_ONLY,
        "One joint stands for the whole neck. Flexion, bending to the left and turning to the right "
        "are negative, extension, right and left positive.",
        *map(_cited, reference.NECK_ROM.values()),
    )
    return Table(
        "neck_range_by_action", "Range of the neck by action", ("Action", "Usable frames", *columns),
        tuple(rows), (0, 0, *[1] * len(columns)), statistics.source, notes,
    )  # fmt: skip


def neck_coverage_table(statistics: SetStatistics) -> Table:
    """How much of the neck's range of motion in the literature the set covers."""
    rows = []
    for motion in MOTIONS:
        tally, value = statistics.whole.rotations["neck", motion], reference.NECK_ROM[motion]
        found = [comparable(r, value) for r in (tally.robust_range, tally.full_range)]
        counts = "whole arc" if value.sides == 2 else "one side"
        shares = [100 * r / value.degrees[0] for r in found]
        rows.append((motion, *found, value.degrees[0], *shares, counts, value.status, value.source))
    columns = (
        "Motion", "5 to 95 % (°)", "Min to max (°)", "Reference (°)", "5 to 95 % of it (%)",
        "Min to max of it (%)",
        "Counted", "Status of reference", "Source of reference",
    )  # fmt: skip
    notes = (_USABLE_ONLY, "Where the reference is one side, half of the measured range stands beside it.")
    return Table(
        "neck_coverage", "Range of the neck beside the literature's", columns, tuple(rows),
        (0, 1, 1, 0, 0, 0, 0, 0, 0), statistics.source, notes,
    )  # fmt: skip


def quality_table(statistics: SetStatistics, by: str) -> Table:
    """Share of usable frames, and how many frames have each fault, by ``action`` or ``subject``."""
    rows = []
    for name, group in (*_groups(statistics, by).items(), ("All", statistics.whole)):
        share = 100 * group.n_usable / group.n_frames if group.n_frames else math.nan
        faults = [group.flagged[flag] for flag in FAULTS]
        repaired = group.flagged[Quality.INTERPOLATED]
        rows.append((name, group.n_trials, group.n_frames, group.n_usable, share, repaired, *faults))
    columns = (
        by.capitalize(), "Trials", "Frames", "Usable", "Usable (%)", "Repaired",
        *(FAULT_LABELS[flag] for flag in FAULTS),
    )  # fmt: skip
    notes = ("A frame can have several faults. Frames repaired by interpolation are usable.",)
    return Table(
        f"quality_by_{by}", f"Usable frames and faults by {by}", columns, tuple(rows),
        (0, 0, 0, 0, 1, *[0] * (len(columns) - 5)), statistics.source, notes,
    )  # fmt: skip


def reference_table() -> Table:
    """Every reference value with its kind, status and source."""
    rows = tuple(
        (
            v.what,
            v.shown(),
            _range(v.limits),
            v.kind,
            v.status,
            v.source,
        )
        for v in reference.ALL
    )
    columns = ("Measure", "Value (°)", "Limits (°)", "Kind", "Status", "Source")
    source = "the literature named in each row; nothing was measured here."
    notes = ("Recalled values could not be read in their sources.", reference.LUMBAR_CONFLICT)
    return Table("reference_values", "Reference values", columns, rows, (0,) * 6, source, notes)


def _range(limits: tuple[float, float] | None) -> str | None:
    return " to ".join(f"{number:g}" for number in limits) if limits else None


def _cited(value: reference.ReferenceValue) -> str:
    return f"Reference: {value.what}: {value.shown()}° ({value.source}; {value.status})."
