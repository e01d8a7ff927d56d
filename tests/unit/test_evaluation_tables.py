"""The paper's Tables 3 to 6: the paper's own numbers, where measured ones are put, and what tables say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.capture.noise import PAPER_TRIANGULATION_M, PAPER_ZERO_SHOT_M
from simspine_jax.evaluation import paper
from simspine_jax.evaluation.lifters import CONFIGS, LifterErrors, package_runs, trainings
from simspine_jax.evaluation.multiview import Comparison, Pair
from simspine_jax.evaluation.tables import (
    CIRCULAR_NOTICE,
    FAVOURED_NOTICE,
    FITTED_NOTICE,
    PAPER,
    PAPER_NOTICE,
    About,
    comparison_table,
    lifting_by_action,
    lifting_by_region,
    multiview_tables,
)
from simspine_jax.metrics.frames import FrameErrors
from simspine_jax.metrics.masked import Masked
from simspine_jax.skeleton import REDUCED_IDS, REGIONS
from simspine_jax.statistics import SYNTHETIC_NOTICE
from simspine_jax.tables import TABLE_FORMATS, Table, format_table
from simspine_jax.training.run import load_run, with_settings

ROUNDED = 0.01
"""The paper's numbers have two decimals, so that a mean of them may be off by one in the last."""

SYNTHETIC = About("simspine/synthetic", "test", ("S9", "S11"), True, "truth", "abc123")
RECORDED = About("simspine/pipeline", "test", ("S9",), False, "annotation", "abc123", ("A remark.",))


# --- the paper ---


def test_the_papers_regions_are_means_of_each_other() -> None:
    """MPJPE of the spine and of all is the mean over keypoints, so that the columns check each other."""
    rows = [*paper.TABLE_3_ACTIONS.values(), *paper.TABLE_3_MEANS.values()]
    assert len(rows) == 18
    count = np.array([len(REGIONS[region]) for region in paper.MULTIVIEW_REGIONS])
    for c, t, l, spine, body, whole in rows:  # noqa: E741
        assert np.dot([c, t, l], count[:3]) / count[3] == pytest.approx(spine, abs=ROUNDED)
        assert np.dot([spine, body], count[3:5]) / count[5] == pytest.approx(whole, abs=ROUNDED)
    for c, t, l, spine in paper.TABLE_6_ROOTED.values():  # noqa: E741
        assert np.dot([c, t, l], count[:3]) / count[3] == pytest.approx(spine, abs=ROUNDED)


def test_the_papers_tables_agree_with_each_other() -> None:
    assert [aligned[3] for aligned in paper.TABLE_6_ALIGNED.values()] == list(paper.TABLE_5_MEANS.values())
    assert all(len(numbers) == 15 for numbers in paper.TABLE_5_ACTIONS.values())
    assert tuple(paper.TABLE_3_ACTIONS) == paper.ACTIONS
    for fitted, source in ((PAPER_TRIANGULATION_M, "detected"), (PAPER_ZERO_SHOT_M, "zero_shot")):
        numbers = dict(zip(paper.MULTIVIEW_REGIONS, paper.TABLE_3_MEANS[source], strict=True))
        assert {r: 1e3 * x for r, x in fitted.items()} == pytest.approx({r: numbers[r] for r in fitted})
    with pytest.raises(TypeError):
        paper.TABLE_3_MEANS["truth"] = ()  # type: ignore[index]


def test_the_numbers_are_those_of_the_papers_text(shared_data: Path) -> None:
    path = shared_data.parent / "paper" / "simspine_paper.txt"
    if not path.exists():
        pytest.skip("the paper's text is not on this machine")
    rows: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        numbers = tuple(float(cell) for cell in cells if re.fullmatch(r"\d+\.\d\d", cell))
        words = tuple(cell for cell in cells if cell and not re.fullmatch(r"\d+\.\d\d", cell))
        if line.startswith("|") and numbers:
            rows.setdefault(words, []).append(numbers)
    for action, numbers in paper.TABLE_3_ACTIONS.items():
        assert rows[(action,)] == [numbers]
    for source, words in (("truth", "GT 2D"), ("detected", "Finetuned"), ("zero_shot", "Zero-Shot")):
        means = [paper.TABLE_3_MEANS[source], paper.TABLE_4_MEANS[source]]
        assert rows[(f"Mean ({words})",)] == means
    words = {"spine only": "Spine Only", "full body": "Full-Body", "detected": "Det.", "truth": "GT"}
    for key in paper.TABLE_5_ACTIONS:
        fifth = (*paper.TABLE_5_ACTIONS[key], paper.TABLE_5_MEANS[key])
        sixth = paper.TABLE_6_ALIGNED[key] + paper.TABLE_6_ROOTED[key]
        assert rows[words[key.keypoints], words[key.source]] == [fifth, sixth]


# --- made-up errors ---


def make_errors(shift: float = 0.0, ids: tuple[int, ...] = tuple(range(37))) -> FrameErrors:
    """Twelve frames of three trials: 'Walking' twice, 'Eating' once, and an action that the paper lacks.

    MPJPE in mm is 100 x the region's number + 10 x the action's + ``shift``; P-MPJPE is a tenth of it. The
    last frame of 'Walking' has no prediction.
    """
    action = np.array(["Walking"] * 6 + ["Eating"] * 3 + ["Juggling"] * 3)
    trial = np.repeat([0, 1, 2, 3], 3)
    step = np.select([action == "Walking", action == "Eating"], [1.0, 2.0], 3.0)
    present = np.arange(12) != 5
    regions = [r for r, members in REGIONS.items() if set(members) <= set(ids)]
    numbers = {r: 1e-3 * (100 * list(REGIONS).index(r) + 10 * step + shift) for r in regions}

    def masked(values: np.ndarray) -> Masked:
        return Masked.of(jnp.asarray(values), jnp.asarray(present))

    known = np.ones((12, len(ids)), bool)
    return FrameErrors(
        {r: masked(x) for r, x in numbers.items()},
        {r: masked(x / 10) for r, x in numbers.items()},
        action, trial, known, known & present[:, None], ids,
    )  # fmt: skip


def rows_of(table: Table) -> list[dict[str, str]]:
    """A table's rows as its CSV has them."""
    lines = [line for line in format_table(table, "csv").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def picked(table: Table, **cells: str) -> dict[str, str]:
    """The one row that has these cells; ``source`` stands for the column 2D."""
    wanted = {"2D" if name == "source" else name.capitalize(): cell for name, cell in cells.items()}
    (row,) = [row for row in rows_of(table) if all(row[name] == cell for name, cell in wanted.items())]
    return row


MULTIVIEW: dict[Pair, FrameErrors] = {
    ("truth", "weighted"): make_errors(), ("detected", "weighted"): make_errors(1),
    ("detected", "model"): make_errors(2),
}  # fmt: skip


def run_of(name: str, *settings: str) -> LifterErrors:
    run = with_settings(load_run(name), settings)
    ids = tuple(map(int, REDUCED_IDS)) if run.data.keypoints == "spine" else tuple(range(37))
    errors = make_errors(5 if run.data.source == "truth" else 6, ids)
    return LifterErrors(f"{name}_{run.data.source}", run, run.data.source, run.steps, errors)


LIFTERS = [run_of("simple_spine"), run_of("kinematic_full", "data.source=truth")]


# --- tables 3 and 4 ---


@pytest.mark.parametrize("aligned", [False, True])
def test_multiview_numbers_stand_where_they_belong(aligned: bool) -> None:
    table, _ = multiview_tables(MULTIVIEW, SYNTHETIC, aligned=aligned)
    assert table.name == ("table4" if aligned else "table3")
    scale = 0.1 if aligned else 1.0
    for (source, method), shift in zip(MULTIVIEW, (0, 1, 2), strict=True):
        for action, step in (("Walking", 1), ("Eating", 2), ("Juggling", 3)):
            row = picked(table, source=source, method=method, action=action)
            for i, region in enumerate(REGIONS):
                expected = scale * (100 * i + 10 * step + shift)
                assert float(row[region.capitalize()]) == pytest.approx(expected, rel=1e-5)
            assert float(row["Given (%)"]) == pytest.approx(500 / 6 if action == "Walking" else 100, rel=1e-5)
        row = picked(table, source=source, method=method, action="Mean")
        expected = scale * (10 * (5 * 1 + 3 * 2 + 3 * 3) / 11 + shift)
        assert float(row["Cervical"]) == pytest.approx(expected, rel=1e-5)
        assert float(row["Given (%)"]) == pytest.approx(1100 / 12, rel=1e-5)
    order = [row["Action"] for row in rows_of(table) if row["Method"] == "model"]
    assert order == ["Eating", "Walking", "Juggling", "Mean"]


def test_the_papers_rows_are_marked_and_can_be_left_out() -> None:
    table, _ = multiview_tables(MULTIVIEW, SYNTHETIC, aligned=False)
    theirs = [row for row in rows_of(table) if row["Method"] == PAPER]
    assert [(row["2D"], row["Action"]) for row in theirs] == [
        ("truth", "Mean"), ("detected", "Eating"), ("detected", "Walking"), ("detected", "Mean"),
    ]  # fmt: skip
    assert picked(table, source="detected", method=PAPER, action="Mean")["All"] == "31.82"
    assert picked(table, source="detected", method=PAPER, action="Eating")["Cervical"] == "38.47"
    assert all(row["Given (%)"] == "" for row in theirs)
    fourth, _ = multiview_tables(MULTIVIEW, SYNTHETIC, aligned=True)
    theirs = [(row["2D"], row["Action"], row["All"]) for row in rows_of(fourth) if row["Method"] == PAPER]
    assert theirs == [("truth", "Mean", "1.79"), ("detected", "Mean", "29.53")]
    for kind in TABLE_FORMATS:
        text = " ".join(format_table(table, kind).replace("&#x27;", "'").replace("# ", "").split())
        assert PAPER_NOTICE in text
        bare, _ = multiview_tables(MULTIVIEW, SYNTHETIC, aligned=False, with_paper=False)
        assert "H36M" not in format_table(bare, kind)
        assert "Human3.6M" not in format_table(bare, kind)


def test_intervals_hold_the_mean_and_need_trials() -> None:
    _, table = multiview_tables(MULTIVIEW, SYNTHETIC, aligned=False)
    rows = [picked(table, source="truth", method="weighted", statistic=s)
            for s in ("mean", "95 % from", "95 % to")]  # fmt: skip
    mean, low, high = (float(row["Spine"]) for row in rows)
    assert low < mean < high
    assert low >= 310
    assert high <= 330  # the least and the largest trial
    assert len(rows_of(table)) == 9
    one = make_errors()
    single = FrameErrors(
        one.mpjpe_m, one.p_mpjpe_m, one.action, np.zeros(12, np.int64), one.expected, one.given, one.ids
    )
    _, table = multiview_tables({("truth", "robust"): single}, SYNTHETIC, aligned=False)
    assert picked(table, statistic="95 % from")["Spine"] == ""
    assert picked(table, statistic="mean")["Spine"] != ""


def test_tables_say_what_they_are_of() -> None:
    for kind in TABLE_FORMATS:
        for table in (
            *multiview_tables(MULTIVIEW, SYNTHETIC, aligned=False),
            *lifting_by_region(LIFTERS, SYNTHETIC),
            lifting_by_action(LIFTERS, SYNTHETIC),
        ):
            text = " ".join(format_table(table, kind).replace("&#x27;", "'").split())
            assert SYNTHETIC_NOTICE in text
            assert "simspine/synthetic (synthetic, split test: S9, S11), 4 trials, 12 frames" in text
            assert "Config synthetic; commit abc123." in text
    whole, intervals = multiview_tables(MULTIVIEW, SYNTHETIC, aligned=False)
    assert FITTED_NOTICE in whole.notes
    assert FITTED_NOTICE in intervals.notes
    assert FAVOURED_NOTICE in whole.notes
    assert CIRCULAR_NOTICE not in whole.notes
    exact: dict[Pair, FrameErrors] = {("truth", "weighted"): make_errors()}
    others = multiview_tables(exact, SYNTHETIC, aligned=False)[0].notes
    assert FITTED_NOTICE not in others
    assert FAVOURED_NOTICE not in others
    assert "favours kinematic_full_truth:" in " ".join(lifting_by_action(LIFTERS, SYNTHETIC).notes)
    assert "favours" not in " ".join(lifting_by_action(LIFTERS[:1], SYNTHETIC).notes)


def test_an_annotation_as_reference_is_told_to_be_the_models_own_making() -> None:
    whole, intervals = multiview_tables(MULTIVIEW, RECORDED, aligned=False)
    for table in (whole, intervals):
        assert CIRCULAR_NOTICE in table.notes
        assert "A remark." in table.notes
        assert SYNTHETIC_NOTICE not in table.notes
        assert FITTED_NOTICE not in table.notes
        assert FAVOURED_NOTICE not in table.notes
        assert "synthetic" not in table.source
    assert "from the dataset's annotation" in " ".join(whole.notes)
    weighted = {pair: of for pair, of in MULTIVIEW.items() if pair[1] == "weighted"}
    assert CIRCULAR_NOTICE not in multiview_tables(weighted, RECORDED, aligned=False)[0].notes


def test_ratios_are_over_what_both_give() -> None:
    found: dict[Pair, dict[str, Comparison]] = {
        ("detected", "model"): {
            region: Comparison(10.0 * i, 20.0, 0.75) for i, region in enumerate(REGIONS, 1)
        }
    }
    table = comparison_table(found, "weighted", SYNTHETIC, MULTIVIEW.values())
    (row,) = rows_of(table)
    assert [float(row[region.capitalize()]) for region in REGIONS] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert row["Shared (%)"] == "75"


# --- tables 5 and 6 ---


def test_lifting_by_action_has_a_row_for_each_lifter() -> None:
    table = lifting_by_action(LIFTERS, SYNTHETIC)
    heads = ["Lifter", "2D", "Given (%)", "Eating", "Walk", "Juggling", "Mean", "95 % from", "95 % to"]
    assert list(table.columns) == heads
    row = picked(table, lifter="simple_spine_detected", source="detected")
    assert [float(row[name]) for name in ("Eating", "Walk", "Juggling")] == pytest.approx([32.6, 31.6, 33.6])
    assert float(row["Mean"]) == pytest.approx(30.6 + (5 + 6 + 9) / 11, rel=1e-5)
    assert float(row["95 % from"]) < float(row["Mean"]) < float(row["95 % to"])
    other = picked(table, lifter="kinematic_full_truth", source="truth")
    assert float(other["Walk"]) == pytest.approx(31.5)
    row = picked(table, lifter=f"{PAPER}, full body", source="truth")
    assert (row["Eating"], row["Walk"], row["Juggling"], row["Mean"]) == ("11.36", "9.98", "", "13.48")
    assert table.breaks == (2,)
    assert len(rows_of(lifting_by_action(LIFTERS, SYNTHETIC, with_paper=False))) == 2


def test_lifting_by_region_has_both_errors() -> None:
    table, intervals = lifting_by_region(LIFTERS, SYNTHETIC)
    row = picked(table, lifter="simple_spine_detected")
    step = 10 * (5 + 6 + 9) / 11
    for i, region in enumerate(("cervical", "thoracic", "lumbar", "spine")):
        assert float(row[f"MPJPE {region}"]) == pytest.approx(100 * i + step + 6, rel=1e-5)
        assert float(row[f"P-MPJPE {region}"]) == pytest.approx(10 * i + (step + 6) / 10, rel=1e-5)
    row = picked(table, lifter=f"{PAPER}, spine only", source="detected")
    assert (row["P-MPJPE lumbar"], row["MPJPE cervical"]) == ("3.32", "96.88")
    assert len(rows_of(intervals)) == 6
    assert PAPER not in format_table(intervals, "txt")


def test_what_is_odd_about_a_training_is_told() -> None:
    spine = run_of("simple_spine")
    half = LifterErrors("half", spine.run, "detected", 100, spine.errors)
    other = LifterErrors("other", spine.run, "truth", spine.steps, spine.errors)
    notes = " ".join(lifting_by_action([half, other], RECORDED).notes)
    assert "half is not finished: 100 of 10,000 steps." in notes
    assert "Trained on other 2D keypoints than they get here: other (detected)." in notes
    assert "Trained on another dataset: half (synthetic), other (synthetic)." in notes
    notes = " ".join(lifting_by_action(LIFTERS, SYNTHETIC).notes)
    assert "not finished" not in notes
    assert "Trained" not in notes


def test_the_packages_runs_come_first_in_the_papers_order(tmp_path: Path) -> None:
    runs = dict(package_runs("pipeline", "annotation"))
    assert len(runs) == 8
    for name, run in runs.items():
        assert name == f"{run.name}_{run.data.source}"
        assert (run.data.config, run.data.target) == ("pipeline", "annotation")
    for name in ("zebra", *reversed(runs), "deeper/simple_spine_own"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "no training").mkdir()
    ordered = [f"{config}_{source}" for source in ("detected", "truth") for config in CONFIGS]
    assert [folder.name for folder in trainings(tmp_path)] == [*ordered, "simple_spine_own", "zebra"]
    assert trainings(tmp_path / "none") == ()


# --- what tables look like ---


def every_table() -> list[Table]:
    return [
        *multiview_tables(MULTIVIEW, SYNTHETIC, aligned=False),
        *multiview_tables(MULTIVIEW, RECORDED, aligned=True),
        lifting_by_action(LIFTERS, SYNTHETIC),
        *lifting_by_region(LIFTERS, SYNTHETIC),
    ]


@pytest.mark.parametrize("table", every_table(), ids=lambda table: table.name)
def test_text_fits_a_terminal_and_latex_is_whole(table: Table) -> None:
    assert max(map(len, format_table(table, "txt").splitlines())) <= 100
    text = format_table(table, "tex")
    body = text[text.index(r"\caption") :].replace(r"\_", "").replace(r"\%", "").replace(r"\#", "")
    assert body.count("{") == body.count("}")
    assert not set("%#_<>$") & set(body)
    cells = [line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    assert cells == [len(table.columns) - 1] * (len(table.rows) + 1)
    assert text.count(r"\hline ") == len(table.breaks)


def test_groups_are_set_apart_and_columns_that_are_too_many_go_below() -> None:
    rows = tuple((name, *range(30)) for name in ("one", "two", "three"))
    table = Table("t", "T", ("Name", *(f"column {i}" for i in range(30))), rows, (0,) * 31, "d", breaks=(1,))
    lines = format_table(table, "txt").splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("Name") for line in lines) == 4  # 9 columns of 8 letters fit beside the name
    assert sum(line.startswith("three") for line in lines) == 4
    numbers = [cell for line in lines if line.startswith("one") for cell in line.split()[1:]]
    assert numbers == [str(i) for i in range(30)]
    for i, line in enumerate(lines):
        if line.startswith("two"):
            assert lines[i - 1] == ""
        if line.startswith("three"):
            assert lines[i - 1].startswith("two")
    assert len(rows_of(table)) == 3
    numbers_only = Table("t", "T", table.columns[1:], tuple(row[1:] for row in rows), (0,) * 30, "d")
    assert sum(line.startswith("column") for line in format_table(numbers_only, "txt").splitlines()) == 1
