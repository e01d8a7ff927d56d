"""The paper's Tables 3 to 6 for the data at hand, the paper's own rows beside them.

The paper's rows are of another dataset, Human3.6M's pictures; every table that has them says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from simspine_jax.evaluation import paper
from simspine_jax.evaluation.angles import Row, curvature_table, rotation_table
from simspine_jax.evaluation.lifters import LifterErrors
from simspine_jax.evaluation.multiview import Comparison, Pair
from simspine_jax.evaluation.views import Reference
from simspine_jax.lifting.kinematic import KinematicOptions
from simspine_jax.lifting.motion_agformer import MotionAGFormerOptions
from simspine_jax.lifting.simple_baseline import SimpleBaselineOptions
from simspine_jax.metrics.frames import FrameErrors
from simspine_jax.skeleton import REGIONS
from simspine_jax.statistics import SYNTHETIC_NOTICE
from simspine_jax.tables import Cell, Table
from simspine_jax.training.models import needs_body

PAPER = "paper (H36M)"
"""What the paper's rows are called where a method or a lifter stands."""

PAPER_NOTICE = (
    f"Rows '{PAPER}' are the paper's own numbers, measured on another dataset, {paper.DATASET}'s pictures of "
    "people (H36M): they show what the paper reports and are no comparison."
)
CIRCULAR_NOTICE = (
    "The annotation that all is compared with was itself made by such a pipeline: the method 'model' is "
    "compared with its own making there, and its errors say nothing of how right it is."
)
_REFERENCES = {
    "truth": "the truth of synthetic trials, soft tissue included",
    "annotation": "the dataset's annotation",
}
FITTED_NOTICE = (
    "The errors of the synthetic detections were fitted to the paper's Table 3: that 'weighted' comes near "
    "its numbers is how they were made, and no finding."
)
FAVOURED_NOTICE = (
    "Synthetic data favours 'model': the truth is the same body model in motion, but for soft tissue, and "
    "constants of its preset were chosen on captures of seed 0, which the default set is made of; one built "
    "with --seed 1 had no part in that."
)
FAVOURED_LIFTERS = (
    "Synthetic data favours {}: the truth is the same body model in motion, but for soft tissue."
)
_COUNTS = ", ".join(f"{region} {len(ids)}" for region, ids in REGIONS.items())
_COUNTS_NOTICE = f"Keypoints: {_COUNTS}."
_GIVEN = "Given (%)"
_STATISTICS = ("mean", "95 % from", "95 % to")

_KINDS = {
    SimpleBaselineOptions: "SimpleBaseline3D one frame's pixels, and positions in training",
    MotionAGFormerOptions: "MotionAGFormer a window's pixels and confidences, and positions in training",
    KinematicOptions: "the kinematic lifter one frame's rays through the calibrated lens, confidences and "
    "which way is up, positions, angles and changed samples in training, and when it is evaluated the mean "
    "of a picture and its mirror image and one body size for a trial, the mean over all its frames",
}
"""What each kind of lifter is given besides."""


@dataclass(frozen=True)
class About:
    """What tables say of the data that they were measured on.

    Attributes:
        dataset: such as ``simspine/synthetic``.
        split: of it.
        subjects: whose trials were compared.
        is_synthetic: whether nobody was recorded for any of it.
        reference: what predictions are compared with.
        commit: of this program.
        remarks: what else is to be known, each a sentence.
    """

    dataset: str
    split: str
    subjects: tuple[str, ...]
    is_synthetic: bool
    reference: Reference
    commit: str
    remarks: tuple[str, ...] = ()

    def source(self, errors: Iterable[FrameErrors], frames: str) -> str:
        """The data in words, with how much of them was compared; ``frames`` is what a row of errors is of."""
        each = list(errors)
        trials = max(len(set(one.trial[one.expected.any(axis=-1)].tolist())) for one in each)
        counts = sorted({int(one.expected.any(axis=-1).sum()) for one in each})
        many = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        kind = "synthetic, " if self.is_synthetic else ""
        return (
            f"{self.dataset} ({kind}split {self.split}: {', '.join(self.subjects)}), {trials} trials, "
            f"{many} {frames}"
        )

    def notes(self, *others: str, with_paper: bool) -> tuple[str, ...]:
        """Remarks of a table: what is synthetic first, then its own, then how it was made."""
        return (
            *([SYNTHETIC_NOTICE] if self.is_synthetic else []),
            *others,
            *([PAPER_NOTICE] if with_paper else []),
            *self.remarks,
            f"Config {self.dataset.rpartition('/')[2]}; commit {self.commit}.",
        )


def multiview_tables(
    errors: Mapping[Pair, FrameErrors], about: About, *, aligned: bool, with_paper: bool = True
) -> tuple[Table, Table]:
    """Table 3, or 4 where errors are ``aligned``, and the 95 % intervals of its means.

    Args:
        errors: by 2D keypoints and method.
        about: the data.
        aligned: P-MPJPE instead of MPJPE.
        with_paper: add the paper's rows.
    """
    number, what = (4, "P-MPJPE") if aligned else (3, "MPJPE")
    rows: list[tuple[Cell, ...]] = []
    for source in dict.fromkeys(source for source, _ in errors):
        of_source = {method: one for (its, method), one in errors.items() if its == source}
        for method, one in of_source.items():
            rows += _by_action(one, aligned, source, method)
        if with_paper:
            rows += _paper_rows(source, aligned, _actions(list(of_source.values())))
    source = about.source(errors.values(), "frames")
    how = "after each region's own best similarity, " if aligned else "in space, "
    note = (
        f"{what} is the distance {how}from {_REFERENCES[about.reference]}, over the known keypoints that a "
        f"method gives: {_GIVEN}. {_COUNTS_NOTICE}"
    )
    if aligned:
        note += " Fewer points are aligned more closely: compare methods that give about as many."
    notes = about.notes(note, *_cautions(errors, about), with_paper=with_paper)
    whole = Table(
        f"table{number}", f"Table {number}. Multi-view reconstruction: {what} by action, mm",
        ("2D", "Method", "Action", *map(str.capitalize, paper.MULTIVIEW_REGIONS), _GIVEN), tuple(rows),
        (0, 0, 0, *[2] * len(paper.MULTIVIEW_REGIONS), 1), source, notes, _breaks(rows, 2),
    )  # fmt: skip
    return whole, _multiview_intervals(errors, about, aligned, f"table{number}_intervals", what, source)


def _by_action(errors: FrameErrors, aligned: bool, *names: str) -> list[tuple[Cell, ...]]:
    """A row for each action, and the mean over all frames."""
    return [
        (
            *names, "Mean" if action is None else action,
            *(_mean(errors, aligned, region, action) for region in paper.MULTIVIEW_REGIONS),
            100 * errors.coverage(action),
        )
        for action in (*_actions([errors]), None)
    ]  # fmt: skip


def _paper_rows(source: str, aligned: bool, actions: Sequence[str]) -> list[tuple[Cell, ...]]:
    """The paper's rows of these actions, where it has them, and its mean over its fifteen."""
    by_action = {} if aligned or source != "detected" else paper.TABLE_3_ACTIONS
    rows = [(source, PAPER, name, *by_action[name], None) for name in actions if name in by_action]
    means = (paper.TABLE_4_MEANS if aligned else paper.TABLE_3_MEANS).get(source)
    return rows + ([(source, PAPER, "Mean", *means, None)] if means else [])


def _cautions(errors: Iterable[Pair], about: About) -> list[str]:
    """What numbers must not be taken for."""
    cautions, pairs = [], list(errors)
    if about.is_synthetic and any(source != "truth" for source, _ in pairs):
        cautions.append(FITTED_NOTICE)
    if any(method == "model" for _, method in pairs):
        cautions += [FAVOURED_NOTICE] if about.is_synthetic else []
        cautions += [CIRCULAR_NOTICE] if about.reference == "annotation" else []
    return cautions


def _multiview_intervals(
    errors: Mapping[Pair, FrameErrors], about: About, aligned: bool, name: str, what: str, source: str
) -> Table:
    regions = paper.MULTIVIEW_REGIONS
    rows = []
    for names, one in errors.items():
        ends = {region: _interval(one, aligned, region) for region in regions}
        rows += _statistics(names, [ends[region] for region in regions])
    return Table(
        name, f"Multi-view reconstruction: mean {what} and its 95 % interval, mm",
        ("2D", "Method", "Statistic", *map(str.capitalize, regions)), tuple(rows),
        (0, 0, 0, *[2] * len(regions)), source,
        about.notes(_INTERVALS, *_cautions(errors, about), with_paper=False), _breaks(rows, 1),
    )  # fmt: skip


_INTERVALS = (
    "Intervals by bootstrap over trials (BCa), none where only one trial has values; they are about trials "
    "of these subjects and say nothing of other people."
)


def _interval(errors: FrameErrors, aligned: bool, region: str) -> tuple[Cell, Cell, Cell]:
    """Mean and ends; nothing of a region that isn't there."""
    if region not in errors.regions:
        return None, None, None
    return errors.mean_mm(aligned, region), *errors.interval_mm(aligned, region)


def _statistics(names: Sequence[Cell], columns: Sequence[tuple[Cell, ...]]) -> list[tuple[Cell, ...]]:
    """A row for the mean and each end."""
    return [(*names, name, *row) for name, row in zip(_STATISTICS, zip(*columns, strict=True), strict=True)]


def comparison_table(
    found: Mapping[Pair, Mapping[str, Comparison]], against: str, about: About, errors: Iterable[FrameErrors]
) -> Table:
    """How methods' MPJPE relates to one method's, on the points that both give.

    Args:
        found: by 2D keypoints and method, then by region.
        against: the method that others are compared with.
        about: the data.
        errors: of what was compared.
    """
    regions = paper.MULTIVIEW_REGIONS
    rows = []
    for names, by_region in found.items():
        parts = [by_region.get(region) for region in regions]
        share = by_region["all"].share if "all" in by_region else None
        rows.append(
            (*names, *(None if p is None else p.ratio for p in parts), None if share is None else 100 * share)
        )
    note = (
        f"MPJPE over that of '{against}', both over the points that both give, a share of all known ones in "
        "the last column: a method gains nothing by leaving out. Below 1 is better."
    )
    return Table(
        "table3_ratios", f"Multi-view reconstruction: MPJPE over that of '{against}'",
        ("2D", "Method", *map(str.capitalize, regions), "Shared (%)"), tuple(rows),
        (0, 0, *[3] * len(regions), 1), about.source(errors, "frames"),
        about.notes(note, *_cautions(found, about), with_paper=False), _breaks(rows, 1),
    )  # fmt: skip


def lifting_by_action(found: Sequence[LifterErrors], about: About, *, with_paper: bool = True) -> Table:
    """Table 5: P-MPJPE of the spine by action, a row for each lifter and its 2D, with the mean's interval."""
    actions = _actions([one.errors for one in found])
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        values = [_mean(one.errors, True, "spine", action) for action in actions]
        ends = _interval(one.errors, True, "spine")
        rows.append((one.name, one.source, 100 * one.errors.coverage(), *values, *ends))
    if with_paper:
        for key, of in paper.TABLE_5_ACTIONS.items():
            numbers = dict(zip(paper.ACTIONS, of, strict=True))
            cells = (*(numbers.get(action) for action in actions), paper.TABLE_5_MEANS[key])
            rows.append((f"{PAPER}, {key.keypoints}", key.source, None, *cells, None, None))
    heads = [paper.SHORT_ACTIONS.get(action, action) for action in actions]
    return Table(
        "table5", "Table 5. Monocular lifting: P-MPJPE of the spine's 15 keypoints by action, mm",
        ("Lifter", "2D", _GIVEN, *heads, "Mean", *_STATISTICS[1:]), tuple(rows),
        (0, 0, 1, *[2] * (len(heads) + 3)),
        about.source((one.errors for one in found), "frames and views"),
        about.notes(
            f"The spine is aligned for itself to {_REFERENCES[about.reference]}.", _INTERVALS,
            *_lifter_notes(found, about), with_paper=with_paper,
        ), (len(found),),
    )  # fmt: skip


def lifting_by_region(
    found: Sequence[LifterErrors], about: About, *, with_paper: bool = True
) -> tuple[Table, Table]:
    """Table 6: P-MPJPE and root-relative MPJPE of the spine's regions; and the 95 % intervals."""
    kinds = [(aligned, region) for aligned in (True, False) for region in paper.LIFTING_REGIONS]
    columns = [f"{'P-MPJPE' if aligned else 'MPJPE'} {region}" for aligned, region in kinds]
    rows: list[tuple[Cell, ...]] = []
    ends: list[tuple[Cell, ...]] = []
    for one in found:
        values = [_interval(one.errors, aligned, region) for aligned, region in kinds]
        rows.append((one.name, one.source, 100 * one.errors.coverage(), *(mean for mean, *_ in values)))
        ends += _statistics((one.name, one.source), values)
    if with_paper:
        for key, of in paper.TABLE_6_ALIGNED.items():
            cells = (*of, *paper.TABLE_6_ROOTED[key])
            rows.append((f"{PAPER}, {key.keypoints}", key.source, None, *cells))
    source = about.source((one.errors for one in found), "frames and views")
    note = (
        "P-MPJPE aligns each region for itself; MPJPE is of positions relative to the root keypoint; both "
        f"compare with {_REFERENCES[about.reference]}."
    )
    note += " The root is one of the lumbar and spine keypoints, where its error of 0 counts."
    more = _lifter_notes(found, about)
    return (
        Table(
            "table6", "Table 6. Monocular lifting: P-MPJPE and MPJPE of the spine's regions, mm",
            ("Lifter", "2D", _GIVEN, *columns), tuple(rows), (0, 0, 1, *[2] * len(columns)), source,
            about.notes(note, *more, with_paper=with_paper), (len(found),),
        ),
        Table(
            "table6_intervals", "Monocular lifting: means and their 95 % intervals, mm",
            ("Lifter", "2D", "Statistic", *columns), tuple(ends), (0, 0, 0, *[2] * len(columns)), source,
            about.notes(note, _INTERVALS, *more, with_paper=False), _breaks(ends, 2),
        ),
    )  # fmt: skip


def _lifter_notes(found: Sequence[LifterErrors], about: About) -> list[str]:
    """What is to be known of single trainings."""
    notes = [
        f"{one.name} is not finished: {one.steps:,} of {one.run.steps:,} steps."
        for one in found
        if one.steps < one.run.steps
    ]
    kinds = [_KINDS[kind] for kind in dict.fromkeys(type(one.run.model) for one in found)]
    notes += [f"What the lifters know: {'; '.join(kinds)}."] if found else []
    other = [f"{one.name} ({one.run.data.source})" for one in found if one.run.data.source != one.source]
    if other:
        notes.append(f"Trained on other 2D keypoints than they get here: {', '.join(other)}.")
    config = about.dataset.rpartition("/")[2]
    bodies = [one.name for one in found if needs_body(one.run)]
    if about.is_synthetic and bodies:
        notes.append(FAVOURED_LIFTERS.format(", ".join(bodies)))
    foreign = [f"{one.name} ({one.run.data.config})" for one in found if one.run.data.config != config]
    if foreign:
        notes.append(f"Trained on another dataset: {', '.join(foreign)}.")
    aimed = [f"{one.name} ({one.run.data.target})" for one in found if one.run.data.target != about.reference]
    if aimed:
        notes.append(f"Trained towards something else than they are compared with: {', '.join(aimed)}.")
    if about.split.startswith("train"):
        notes.append("These are subjects that lifters are trained on.")
    return notes


def _breaks(rows: Sequence[tuple[Cell, ...]], columns: int) -> tuple[int, ...]:
    """Rows whose first columns are others than those of the row before."""
    groups = [row[:columns] for row in rows]
    return tuple(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])


def _mean(errors: FrameErrors, aligned: bool, region: str, action: str | None = None) -> Cell:
    return errors.mean_mm(aligned, region, action) if region in errors.regions else None


def _actions(errors: Sequence[FrameErrors]) -> tuple[str, ...]:
    """Those that occur, in the paper's order, others after them by name."""
    names = {str(name) for one in errors for name in set(one.action.tolist())}
    known = tuple(name for name in paper.ACTIONS if name in names)
    return known + tuple(sorted(names - set(known)))


def angle_tables(task: str, rows: Sequence[Row], about: About, errors: Iterable[FrameErrors]) -> list[Table]:
    """Vertebral rotations by level, and curvature with joint limits; none without rows.

    Args:
        task: that the methods solve, a word.
        rows: methods with a body, their 2D keypoints and errors.
        about: the data.
        errors: of the same methods, which tell how much was compared.
    """
    if not rows:
        return []
    frames = "frames" if task == "multi-view" else "frames and views"
    source = about.source(errors, frames)
    cautions = [FAVOURED_LIFTERS.format("methods with a body")] if about.is_synthetic else []
    cautions += [CIRCULAR_NOTICE] if about.reference == "annotation" and task == "multi-view" else []
    notes = about.notes(f"Compared with {_REFERENCES[about.reference]}.", *cautions, with_paper=False)
    return [rotation_table(task, rows, source, notes), curvature_table(task, rows, source, notes)]
