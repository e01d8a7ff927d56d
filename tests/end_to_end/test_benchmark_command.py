"""``simspine benchmark`` from the command line, on a few frames."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from lifting_clips import make_clip

import simspine_jax.datasets
from simspine_jax.cli import main
from simspine_jax.clips import Clip
from simspine_jax.datasets import clips_in_memory
from simspine_jax.evaluation import lifters, multiview
from simspine_jax.evaluation.tables import PAPER
from simspine_jax.statistics import SYNTHETIC_NOTICE
from simspine_jax.tables import TABLE_FORMATS
from simspine_jax.training.run import load_run, with_settings

SMALL = ("model.width=32", "model.blocks=1", "batch_size=32", "save_every=4", "log_every=2", "steps=4")
FAST = ("--tables", "3", "4", "--methods", "weighted", "linear")

ALIGNED = 0.05
"""Exact pictures in float32: what is promised of ground-truth 2D, mm."""


def synthetic_clip(subject: str, action: str = "Walking 1") -> Clip:
    clip = make_clip(subject, action)
    return dataclasses.replace(clip, is_synthetic=True)


def recorded_clip(subject: str, action: str = "Walking 1") -> Clip:
    clip = make_clip(subject, action)
    nothing = np.zeros_like(clip.true_keypoints_3d_mask)
    return dataclasses.replace(
        clip, true_keypoints_3d_mask=nothing, true_keypoints_3d=np.full_like(clip.true_keypoints_3d, np.nan)
    )


def use(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Clip]) -> None:
    """Three clips of test, two of train, in place of a built dataset."""
    clips = {
        "train": [make("S1"), make("S5")],
        "test": [make("S9"), make("S9", "Eating 1"), make("S11")],
    }

    def open_clips(config: str, split: str, data_dir: Path | None):
        assert config == "synthetic"
        if data_dir is not None and data_dir.name == "other":
            return clips_in_memory(clips[split][:1])
        return clips_in_memory(clips[split])

    monkeypatch.setattr(simspine_jax.datasets, "open_clips", open_clips)


@pytest.fixture(autouse=True)
def small_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, synthetic_clip)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small trainings instead of the package's eight."""

    def package_runs(config: str, target: str):
        for name, source in (("simple_spine", "detected"), ("simple_full", "truth")):
            settings = (*SMALL, f"data.source={source}", f"data.target={target}", f"data.config={config}")
            yield f"{name}_{source}", with_settings(load_run(name), settings)

    monkeypatch.setattr(lifters, "package_runs", package_runs)


def rows_of(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def test_multiview_tables_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *FAST, "-o", "out"]) == 0
    shown = capsys.readouterr()
    names = ["table3", "table3_intervals", "table3_ratios", "table4", "table4_intervals"]
    assert f"{', '.join(names)} in out" in shown.err
    assert {p.name for p in Path("out").iterdir()} == {f"{n}.{k}" for n in names for k in TABLE_FORMATS}
    for name in names:
        assert (tmp_path / "out" / f"{name}.txt").read_text() in shown.out
        assert SYNTHETIC_NOTICE in (tmp_path / "out" / f"{name}.md").read_text()
    assert "Not finished" not in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    rows = rows_of(Path("out/table3.csv"))
    pairs = dict.fromkeys((row["2D"], row["Method"]) for row in rows if row["Method"] != PAPER)
    assert list(pairs) == [(s, m) for s in ("truth", "detected", "zero_shot") for m in ("weighted", "linear")]
    means = {(r["2D"], r["Method"]): float(r["All"]) for r in rows if r["Action"] == "Mean"}
    assert means["truth", "weighted"] < ALIGNED
    assert means["detected", "weighted"] > ALIGNED
    assert means["detected", PAPER] == 31.82
    assert [row["2D"] for row in rows_of(Path("out/table3_ratios.csv"))] == ["detected", "zero_shot"]


def test_subjects_actions_formats_and_no_paper(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--subjects",
        "S9",
        "--actions",
        "Eating",
        "--2d",
        "truth",
        "--format",
        "csv",
        "tex",
        "--no-paper",
    ]
    assert main(["benchmark", *FAST, *words, "--quiet", "-o", "out"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("# Table 3.")
    assert "split test: S9), 1 trials, 30 frames" in shown.out
    assert "H36M" not in shown.out
    assert {path.suffix for path in Path("out").iterdir()} == {".csv", ".tex"}
    assert {row["Action"] for row in rows_of(Path("out/table3.csv"))} == {"Eating", "Mean"}


def test_recordings_have_no_zero_shot_detector_without_a_second_dataset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, recorded_clip)
    assert main(["benchmark", *FAST]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the dataset's annotation" in shown
    assert SYNTHETIC_NOTICE not in shown
    assert "Left out: 2D zero_shot, all trials: " in shown
    assert main(["benchmark", *FAST, "--2d", "zero_shot"]) == 2
    assert "tables 3 and 4 are left out: Left out: 2D zero_shot" in capsys.readouterr().err
    assert main(["benchmark", *FAST, "--2d", "zero_shot", "--zero-shot-data-dir", "second"]) == 0
    assert "zero_shot  weighted" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = multiview.evaluate_multiview

    def interrupted(*args, sources, **more):
        if "detected" in sources:
            raise KeyboardInterrupt
        return whole(*args, sources=sources, **more)

    monkeypatch.setattr(multiview, "evaluate_multiview", interrupted)
    assert main(["benchmark", *FAST, "-o", "out"]) == 130
    assert "table3, table3_intervals, table4, table4_intervals in out have what" in capsys.readouterr().err
    assert {row["2D"] for row in rows_of(Path("out/table3.csv"))} == {"truth"}
    text = Path("out/table3.txt").read_text()
    assert "Not finished: 2D detected and zero_shot had not been measured yet." in text
    assert main(["benchmark", *FAST]) == 130
    shown = capsys.readouterr()
    assert "with -o each table is kept" in shown.err
    assert "truth" in shown.out


@pytest.mark.slow
@pytest.mark.usefixtures("small_runs")
def test_lifters_are_trained_evaluated_and_not_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", "--tables", "5", "6", "--runs", "mine", "--format", "csv", "-o", "out"]
    assert main([*words, "--train"]) == 0
    shown = capsys.readouterr()
    assert "2 trainings are missing in mine, which take about 20 minutes in all" in shown.err
    assert "training 2 of 2, simple_full_truth: 4 steps, about 10 minutes" in shown.err
    assert (Path("mine/simple_full_truth") / "checkpoints" / "4").is_dir()
    fifth, sixth = (rows_of(Path(f"out/table{n}.csv")) for n in (5, 6))
    mine = [("simple_spine_detected", "detected"), ("simple_full_truth", "truth")]
    assert [(row["Lifter"], row["2D"]) for row in sixth[:2]] == mine
    assert all(row["Lifter"].startswith(PAPER) for row in sixth[2:])
    # The same numbers as `simspine evaluate` has.
    for row, other in zip(sixth, fifth, strict=True):
        if row["Lifter"].startswith(PAPER):
            continue
        assert main(["evaluate", f"mine/{row['Lifter']}", "-o", "scores.csv"]) == 0
        scores = {score[""]: score for score in rows_of(Path("scores.csv"))}
        for region, head in (("lumbar", "Lumbar(4)"), ("spine", "Spine(15)")):
            assert float(row[f"MPJPE {region}"]) == pytest.approx(float(scores["MPJPE, mm"][head]), rel=1e-5)
            wanted = float(scores["P-MPJPE, mm"][head])
            assert float(row[f"P-MPJPE {region}"]) == pytest.approx(wanted, rel=1e-5)
        assert other["Mean"] == row["P-MPJPE spine"]
        assert float(row["Given (%)"]) == 100
    capsys.readouterr()
    # Nothing is left to train; other 2D, and only one subject.
    more = ["--train", "--input", "truth", "--subjects", "S11", "--no-paper"]
    assert main([*words, *more]) == 0
    shown = capsys.readouterr()
    assert "training" not in shown.err
    assert "Trained on other 2D keypoints than they get here: simple_spine_detected (detected)." in shown.out
    assert "split test: S11), 1 trials" in shown.out
    assert {row["2D"] for row in rows_of(Path("out/table5.csv"))} == {"truth"}
    assert "Eating" not in rows_of(Path("out/table5.csv"))[0]


@pytest.mark.usefixtures("small_runs")
def test_an_interrupted_training_tells_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("simspine_jax.training.loop.train", train)
    assert main(["benchmark", "--tables", "5", "--train"]) == 130
    told = capsys.readouterr().err
    assert "no checkpoint was saved in runs/simple_spine_detected yet" in told


def test_without_trainings_tables_5_and_6_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--2d", "truth", "--methods", "weighted"]
    assert main(["benchmark", *one]) == 0
    shown = capsys.readouterr()
    told = (
        "tables 5 and 6 are left out, as runs holds no training; make them with: simspine benchmark --train"
    )
    assert [line for line in shown.err.splitlines() if "left out" in line] == [f"simspine: note: {told}"]
    assert "Table 4." in shown.out
    assert "Table 5." not in shown.out
    Path("begun/x").mkdir(parents=True)
    Path("begun/x/run.json").write_text("{}")
    assert main(["benchmark", "--tables", "6", "--runs", "begun", "--data-dir", "sets"]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert "left out: begun/x/run.json: it is not a run of this version" in note
    assert (
        "holds no training that can be evaluated; make them with: simspine benchmark --train --data-dir"
        in error
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tables", "3", "--runs", "x"], "--runs has no effect without table 5 or 6 or angles"),
        (["--tables", "4", "--train"], "--train has no effect without table 5 or 6 or angles"),
        (["--tables", "3", "--input", "truth"], "--input has no effect without table 5 or 6 or angles"),
        (["--tables", "5", "--2d", "truth"], "--2d has no effect without table 3 or 4 or angles"),
        (
            ["--tables", "angles", "--methods", "weighted", "--2d", "truth"],
            "--tables angles needs a method with a body; valid is model among --methods",
        ),
        (["--tables", "6", "--methods", "model"], "--methods has no effect without table 3 or 4 or angles"),
        (["--2d", "truth", "--zero-shot-data-dir", "x"], "--zero-shot-data-dir has no effect without --2d"),
        (["--runs", "x"], "--runs is 'x', and there is no such folder"),
        (["--subjects", "S2"], "Subject 'S2' is not in the dataset"),
        (["--actions", "Dancing"], "Action 'Dancing' is not in the dataset"),
        (["--tables", "3", "--zero-shot-data-dir", "other"], "is not in the second dataset"),
        (["-o", "file"], "file is a file; valid is a folder"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    assert main(["benchmark", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize(
    "words", [["--tables", "7"], ["--2d", "guessed"], ["--methods", "x"], ["--format", "pdf"]]
)
def test_a_word_that_is_no_choice_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["benchmark", *words])
    assert end.value.code == 2
    assert f"argument {words[0]}: invalid choice" in capsys.readouterr().err


def test_the_choices_that_help_tells_are_those_of_the_evaluation() -> None:
    from simspine_jax import cli_benchmark
    from simspine_jax.evaluation import views

    assert views.SOURCES_2D == cli_benchmark._SOURCES
    assert multiview.METHODS == cli_benchmark._METHODS
    assert multiview.DEFAULT_METHODS == cli_benchmark._DEFAULT_METHODS
