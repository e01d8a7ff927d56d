"""Tables about a set of annotations: curvature, range of motion and quality, beside the literature's values.

Usable frames alone are counted, which every table says, as it says on which data it was measured and how
well a value of the literature is known. Values of the literature that are recalled, or that no primary
source is known for, are left out unless ``unverified`` asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
FIXED_RATIOS = "The other lumbar levels follow L5-S1 in fixed ratios, by the model's couplers."
"""What is said where six levels are one measurement."""

FAULTS: tuple[Quality, ...] = tuple(flag for flag in Quality if flag != Quality.INTERPOLATED)
"""What makes a frame unusable."""

FAULT_LABELS: Mapping[Quality, str] = {
    Quality.NO_POSE: "No pose",
    Quality.MARKER_RESIDUAL: "Marker residual",
    Quality.CURVATURE: "Curvature",
    Quality.JOINT_LIMITS: "Joint limits",
    Quality.ANGULAR_JUMP: "Angular jump",
    Quality.INTERPOLATED: "Repaired",
}

TWO_MEASURES = (
    "Curvature by keypoints and by bodies are two measures, not one number. By keypoints, between tangents "
    "of a curve along the back, compares with the paper's; by bodies is Cobb's angle between the model's "
    "endplates. The model's thorax is one rigid body, so that kyphosis by bodies is constant."
)
"""What lordosis and kyphosis mean here, and which of both compares with the paper's."""

_USABLE_ONLY = "Only usable frames are counted; repaired ones are usable."
_BACK_SEEN = (
    "Back seen: share of the frames with a keypoint between hips and neck; without one, curvature is the "
    "model's and its prior's."
)
_ARCS = {1: "one side", 2: "whole arc"}


def validation_tables(statistics: SetStatistics, *, unverified: bool = False) -> tuple[Table, ...]:
    """Every table about a set, in the order in which they are read."""
    return (
        curvature_table(statistics, "action", unverified=unverified),
        curvature_table(statistics, "subject", unverified=unverified),
        lumbar_motion_table(statistics, unverified=unverified),
        flexion_gradient_table(statistics, unverified=unverified),
        neck_table(statistics, unverified=unverified),
        neck_coverage_table(statistics, unverified=unverified),
        quality_table(statistics, "action"),
        quality_table(statistics, "subject"),
        reference_table(unverified=unverified),
    )


def _groups(statistics: SetStatistics, by: str) -> Mapping[str, GroupStatistics]:
    return statistics.by_action if by == "action" else statistics.by_subject


def curvature_table(statistics: SetStatistics, by: str, *, unverified: bool = False) -> Table:
    """Mean and SD of lordosis and kyphosis; the last row is the mean of the rows, as in the paper's Table B.

    Args:
        by: ``action`` or ``subject``.
        unverified: whether to cite what is recalled too.
    """
    groups, whole = _groups(statistics, by), statistics.whole

    def cells(group: GroupStatistics) -> list[Cell]:
        tallies = [group.curvature[name] for name in CURVATURE_MEASURES]
        seen = 100 * group.n_seen / group.n_told if group.n_told else math.nan
        return [*(number for tally in tallies for number in (tally.mean, tally.sd)), seen]

    rows: list[tuple[Cell, ...]] = [(name, g.n_usable, *cells(g)) for name, g in groups.items()]
    numbers = np.array([cells(group) for group in groups.values()], float)
    held = [numbers[np.isfinite(numbers[:, i]), i] for i in range(numbers.shape[1])]
    if len(groups) > 1:
        rows.append(("All frames", whole.n_usable, *cells(whole)))
        rows.append(("Mean of the rows", None, *(float(h.mean()) if len(h) else None for h in held)))
    columns = [f"{CURVATURE_LABELS[n]}: {what} (°)" for n in CURVATURE_MEASURES for what in ("mean", "SD")]
    columns.append("Back seen (%)")
    notes = [*statistics.notices, _USABLE_ONLY, TWO_MEASURES, _BACK_SEEN]
    for name in CURVATURE_MEASURES:
        lacking = whole.n_usable - whole.curvature[name].count
        if lacking:
            notes.append(f"{CURVATURE_LABELS[name]}: not known in {counted(lacking, 'usable frame')}.")
    for values in (reference.LORDOSIS, reference.KYPHOSIS):
        notes += [_cited(value) for value in reference.shown_values(values, unverified=unverified)[:2]]
    return Table(
        f"curvature_by_{by}", f"Curvature by {by}: lordosis L1-S1 and kyphosis T3-T12 (Cobb)",
        (by.capitalize(), "Usable frames", *columns), tuple(rows), (0, 0, *[2] * (len(columns) - 1), 1),
        statistics.source, tuple(notes),
    )  # fmt: skip


def comparable(tally_range: float, value: reference.ReferenceValue) -> float:
    """A range as the reference counts it: the whole arc, or half of it where that is one side."""
    return tally_range / (3 - value.sides)


def lumbar_motion_table(statistics: SetStatistics, *, unverified: bool = False) -> Table:
    """Range of motion of each lumbar level about each axis, from below, beside the reference values."""
    whole = statistics.whole
    rows: list[tuple[Cell, ...]] = []
    for motion in MOTIONS:
        for level in LUMBAR_LEVELS:
            tally, value = whole.rotations[level, motion], reference.LUMBAR_ROM[level, motion]
            shown = unverified or value.is_sound
            rows.append(
                (
                    level_label(level), motion, tally.robust_range, tally.full_range,
                    _mean_of_subjects(statistics, level, motion), comparable(tally.robust_range, value),
                    _ARCS[value.sides], value.degrees[0] if shown else None,
                    _range(value.limits) if shown else None, value.status if shown else reference.NONE_SOUND,
                )
            )  # fmt: skip
    columns = (
        "Level", "Motion", "5 to 95 % (°)", "Min to max (°)", "5 to 95 %, mean of subjects (°)",
        "Compared (°)", "Arc compared", "Reference (°)", "Reference, lowest to highest (°)",
        "Status of reference",
    )  # fmt: skip
    notes = (
        *statistics.notices,
        _USABLE_ONLY,
        *([FIXED_RATIOS] if whole.n_fixed == whole.n_trials else []),
        "Compared: 5 to 95 % counted as the reference does, half of it where that is one side.",
        "These are ranges that the actions happened to use; the reference is the most that a person can do.",
        f"Reference: {reference.LUMBAR_ROM['L5_S1', MOTIONS[0]].source}.",
        *([reference.LUMBAR_CONFLICT] if unverified else []),
    )
    return Table(
        "lumbar_range_of_motion", "Range of motion by lumbar level", columns, tuple(rows),
        (0, 0, 2, 2, 2, 2, 0, 0, 0, 0), statistics.source, notes,
    )  # fmt: skip


def _mean_of_subjects(statistics: SetStatistics, level: str, motion: str) -> float:
    ranges = [group.rotations[level, motion].robust_range for group in statistics.by_subject.values()]
    known = [r for r in ranges if math.isfinite(r)]
    return sum(known) / len(known) if known else math.nan


def flexion_gradient_table(statistics: SetStatistics, *, unverified: bool = False) -> Table:
    """The share of each lumbar level in the sum of their ranges of flexion and extension, percent."""
    motion, whole = MOTIONS[0], statistics.whole
    measured = {level: whole.rotations[level, motion].robust_range for level in LUMBAR_LEVELS}
    known = [reference.LUMBAR_ROM[level, motion] for level in LUMBAR_LEVELS]
    all_shown = unverified or all(value.is_sound for value in known)
    literature = {
        level: value.degrees[0] if all_shown else math.nan
        for level, value in zip(LUMBAR_LEVELS, known, strict=True)
    }
    shares = [_shares(part) for part in (measured, literature, dict(reference.MODEL_FLEXION_RATIOS))]
    rows = tuple(
        (
            level_label(level), measured[level], *(share[level] for share in shares),
            reference.LUMBAR_ROM[level, motion].status if all_shown else reference.NONE_SOUND,
        )
        for level in LUMBAR_LEVELS
    )  # fmt: skip
    columns = (
        "Level", "5 to 95 % (°)", "Share (%)", "Reference share (%)", "Share by the model's couplers (%)",
        "Status of reference",
    )  # fmt: skip
    cited = (
        "The paper has a peak near L4-L5; its reference, as recalled, rises to L5-S1.",
        f"Reference: {reference.LUMBAR_ROM['L5_S1', motion].source}.",
    )
    notes = (
        *statistics.notices,
        _USABLE_ONLY,
        "Where the model's lumbar joints are coupled, the shares are its couplers' whatever the data say.",
        *(cited if all_shown else ()),
    )
    return Table(
        "lumbar_flexion_gradient", "Share of each lumbar level in flexion and extension", columns, rows,
        (0, 2, 1, 1, 1, 0), statistics.source, notes,
    )  # fmt: skip


def _shares(ranges: Mapping[str, float]) -> dict[str, float]:
    total = sum(ranges.values())
    return {level: 100 * r / total if total > 0 else math.nan for level, r in ranges.items()}


def neck_table(statistics: SetStatistics, *, unverified: bool = False) -> Table:
    """Robust range, lowest and highest angle of the neck's three rotations by action."""
    rows: list[tuple[Cell, ...]] = []
    for name, group in (*statistics.by_action.items(), ("All frames", statistics.whole)):
        tallies = [group.rotations["neck", motion] for motion in MOTIONS]
        cells = [number for t in tallies for number in (t.robust_range, t.low, t.high)]
        rows.append((name, group.n_usable, *cells))
    words = ("Flexion", "Bending", "Rotation")
    columns = [f"{word}: {what} (°)" for word in words for what in ("5 to 95 %", "lowest", "highest")]
    known = reference.shown_values(reference.NECK_ROM.values(), unverified=unverified)
    notes = (
        *statistics.notices,
        _USABLE_ONLY,
        "One joint stands for the whole neck. Flexion, bending to the left and turning to the right "
        "are negative, extension, right and left positive.",
        *map(_cited, known),
    )
    return Table(
        "neck_range_by_action", "Range of the neck by action", ("Action", "Usable frames", *columns),
        tuple(rows), (0, 0, *[1] * len(columns)), statistics.source, notes,
    )  # fmt: skip


def neck_coverage_table(statistics: SetStatistics, *, unverified: bool = False) -> Table:
    """How much of the neck's range of motion in the literature the set covers."""
    rows = []
    for motion in MOTIONS:
        tally, value = statistics.whole.rotations["neck", motion], reference.NECK_ROM[motion]
        found = [comparable(r, value) for r in (tally.robust_range, tally.full_range)]
        cells: tuple[Cell, ...] = (None, None, None, reference.NONE_SOUND, None)
        if unverified or value.is_sound:
            shares = [100 * r / value.degrees[0] for r in found]
            cells = (value.degrees[0], *shares, value.status, value.source)
        rows.append((motion, _ARCS[value.sides], *found, *cells))
    columns = (
        "Motion", "Arc compared", "5 to 95 % (°)", "Min to max (°)", "Reference (°)",
        "5 to 95 % of reference (%)", "Min to max of reference (%)", "Status of reference",
        "Source of reference",
    )  # fmt: skip
    notes = (*statistics.notices, _USABLE_ONLY, "Where one side is compared, it is half of the whole arc.")
    return Table(
        "neck_coverage", "Range of the neck beside the literature's", columns, tuple(rows),
        (0, 0, 1, 1, 0, 0, 0, 0, 0), statistics.source, notes,
    )  # fmt: skip


def quality_table(statistics: SetStatistics, by: str) -> Table:
    """Share of usable frames, and how many have each fault before and after repair, by action or subject."""
    rows = []
    for name, group in (*_groups(statistics, by).items(), ("All", statistics.whole)):
        share = 100 * group.n_usable / group.n_frames if group.n_frames else math.nan
        faults = [number for f in FAULTS for number in (group.flagged_before[f], group.flagged[f])]
        repaired = group.flagged[Quality.INTERPOLATED]
        rows.append((name, group.n_trials, group.n_frames, group.n_usable, share, repaired, *faults))
    columns = (
        by.capitalize(), "Trials", "Frames", "Usable", "Usable (%)", "Repaired",
        *(f"{FAULT_LABELS[flag]}: {when}" for flag in FAULTS for when in ("before", "after")),
    )  # fmt: skip
    notes = (
        *statistics.notices,
        "Frames with each fault before and after repair; a frame can have several. Repaired frames have an "
        "interpolated pose and are usable; short gaps of single markers that were filled are not repairs.",
    )
    return Table(
        f"quality_by_{by}", f"Usable frames and faults by {by}", columns, tuple(rows),
        (0, 0, 0, 0, 1, *[0] * (len(columns) - 5)), statistics.source, notes,
    )  # fmt: skip


def truth_table(rows: Mapping[str, Mapping[str, float]], source: str, notes: Sequence[str] = ()) -> Table:
    """Mean error against a synthetic truth, mm, by the paper's regions.

    Args:
        rows: what was compared: errors by region.
        source: the data, in words.
        notes: remarks.
    """
    regions = list(dict.fromkeys(region for errors in rows.values() for region in errors))
    cells = tuple((name, *(errors.get(region) for region in regions)) for name, errors in rows.items())
    return Table(
        "error_against_truth", "Mean distance from the synthetic truth (MPJPE)",
        ("Keypoints", *(f"{region.capitalize()} (mm)" for region in regions)), cells,
        (0, *[2] * len(regions)), source, tuple(notes),
    )  # fmt: skip


def reference_table(*, unverified: bool = False) -> Table:
    """The reference values with their kind, status and source."""
    rows = tuple(
        (
            v.what,
            v.shown(),
            _range(v.limits),
            v.kind,
            v.status,
            v.source,
        )
        for v in reference.shown_values(reference.ALL, unverified=unverified)
    )
    columns = ("Measure", "Value (°)", "Limits (°)", "Kind", "Status", "Source")
    source = "the literature named in each row; nothing was measured here."
    notes = ("Values that are recalled, or without a known primary source, are left out.",)
    if unverified:
        notes = ("Recalled values could not be read in their sources.", reference.LUMBAR_CONFLICT)
    return Table("reference_values", "Reference values", columns, rows, (0,) * 6, source, notes)


def _range(limits: tuple[float, float] | None) -> str | None:
    return " to ".join(f"{number:g}" for number in limits) if limits else None


def _cited(value: reference.ReferenceValue) -> str:
    return f"Reference: {value.what}: {value.shown()}° ({value.source}; {value.status})."
