"""What a simulation leaves in its folder and says, with a solve that takes no time."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from spine_trials import bare_trial, make_trial, unseen_trial

from simspine_jax.annotations import UNSEEN, SpineTrial
from simspine_jax.cli import build_parser
from simspine_jax.cli_simulation import format_simulated, format_truth, truth_rows, validate
from simspine_jax.errors import FileFormatError, MissingDependencyError, UnknownNameError
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.release import read_release, write_release_h5
from simspine_jax.pipeline import FailedTrial, simulate
from simspine_jax.pipeline.options import PRESETS
from simspine_jax.pipeline.records import add_remarks, remark_on, stored_trial, with_remarks
from simspine_jax.pipeline.simulate import SimulatedTrial, run_simulation, set_page, trial_pages
from simspine_jax.pipeline.sources import SubjectSource
from simspine_jax.pipeline.stages import SubjectSize
from simspine_jax.statistics import SYNTHETIC_NOTICE, UNSEEN_NOTICE, gather_statistics

SYNTHETIC = "synthetic capture: S1, Walking, seed 0"


@dataclass(frozen=True)
class Source:
    """A trial that is there already."""

    trial: SpineTrial
    digest: str = "1"
    broken: bool = False
    true: SpineTrial | None = None

    @property
    def action(self) -> str:
        return self.trial.action

    def load(self) -> Any:
        if self.broken:
            raise FileFormatError("it is broken")
        return SimpleNamespace(action=self.action, views=None, trial=self.trial)

    def truth(self) -> SpineTrial | None:
        return self.true


@pytest.fixture
def run(spine_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the simulation of S1 with these trials."""
    size = SubjectSize(
        np.ones((len(spine_model.body_names), 3)), 1.7, 63.0, height_from="estimated", mass_from="given"
    )
    monkeypatch.setattr(simulate, "find_points", lambda trial, options: trial)
    monkeypatch.setattr(simulate, "find_size", lambda *args, **kwargs: size)
    monkeypatch.setattr(
        simulate, "simulate_trials", lambda model, subject, trials, *args, **kwargs: [t.trial for t in trials]
    )
    loaded: Any = SimpleNamespace(model=spine_model, digest="model")

    def go(*sources: Source, out: str = "out", **options: Any) -> list[SimulatedTrial | FailedTrial]:
        subjects = [SubjectSource("S1", sources)]
        return list(run_simulation(loaded, subjects, tmp_path / out, PRESETS["simspine"], **options))

    return go


def test_pages_of_what_is_redone_or_fails_are_taken_away(run, tmp_path: Path) -> None:
    layout = ReleaseLayout(tmp_path / "out")
    walk, sit = Source(make_trial()), Source(make_trial(action="Sitting"))
    run(walk, sit)
    pages = [set_page(layout), *trial_pages(layout, "S1", "Walking 1"), *trial_pages(layout, "S1", "Sitting")]
    assert [str(page.relative_to(layout.root)) for page in pages] == [
        "reports/report.html", "reports/S1/S1_Walking_1.html", "reports/S1/S1_Walking_1_viewer.html",
        "reports/S1/S1_Sitting.html", "reports/S1/S1_Sitting_viewer.html",
    ]  # fmt: skip

    def draw() -> None:
        for page in pages:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text("about the trial as it is")

    draw()
    assert all(result.resumed for result in run(walk, sit))
    assert all(page.exists() for page in pages)
    run(replace(walk, digest="2"), sit)  # the subject's size rests on both
    assert not any(page.exists() for page in pages)
    draw()
    failed = [
        r for r in run(replace(walk, broken=True), replace(sit, broken=True)) if isinstance(r, FailedTrial)
    ]
    assert len(failed) == 2
    assert not any(page.exists() for page in pages)


def test_parquet_is_written_beside_the_csv_and_needed_to_resume(run, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    layout, source = ReleaseLayout(tmp_path / "out"), Source(make_trial())
    table = layout.quality("S1", "Walking 1").with_suffix(".parquet")
    run(source)
    assert not table.exists()
    assert [r.resumed for r in run(source, quality_format="parquet")] == [False]
    assert table.is_file()
    assert layout.quality("S1", "Walking 1").is_file()
    record = json.loads(layout.trial("S1", "Walking 1").with_suffix(".json").read_text())
    assert str(table.relative_to(layout.root)) in record["files"]
    for form in ("parquet", "csv"):
        assert [r.resumed for r in run(source, quality_format=form)] == [True]
    table.unlink()
    assert [r.resumed for r in run(source, quality_format="parquet")] == [False]
    assert table.is_file()


def test_parquet_without_its_package_is_refused_before_anything(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'pyarrow'.*simspine-jax\[parquet\]"):
        run(Source(make_trial()), quality_format="parquet")
    with pytest.raises(UnknownNameError, match="Format 'xlsx' is not in the quality table; it has: csv, par"):
        run(Source(make_trial()), quality_format="xlsx")
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_the_trial_comes_from(run) -> None:
    trial = unseen_trial(source=SYNTHETIC)
    source = Source(trial, true=make_trial())
    (result,) = run(source)
    (again,) = run(source)
    assert replace(again, resumed=False) == result
    assert (result.source, result.back_seen) == (SYNTHETIC, 0.0)
    assert result.spine_seen == ("Hip", "Neck", "Neck_02", "Neck_03")
    assert (result.repaired, result.gaps_filled) == (2, 0)
    assert result.faults == (("marker residual", 5, 5), ("curvature", 1, 1))
    assert (result.height_m, result.height_from, result.mass_kg, result.mass_from) == (
        1.7, "estimated", 63.0, "given",
    )  # fmt: skip
    assert result.body_kyphosis_deg == pytest.approx(np.degrees(0.8))
    text = format_simulated(result)
    for words in (
        "35 usable, 2 repaired, 0 short gaps of markers filled", f"{SYNTHETIC}: not measured on people",
        "before and after repair: marker residual 5, 5, curvature 1, 1",
        "height 1.70 m (estimated), mass 63.0 kg (given)",
        "spine keypoints seen: 4 of 9, none between hips and neck; curvature and lumbar angles come from",
        "deg by keypoints (compares with the paper's)", "kyphosis 45.8 deg by bodies (rigid thorax",
    ):  # fmt: skip
        assert words in text, words
    assert set(truth_rows([result])) == {"triangulated", "simulated"}
    assert truth_rows([result])["simulated"]["spine"] == dict(result.truth_mpjpe_mm)["spine"]
    assert "not measured" not in format_simulated(replace(result, truth_mpjpe_mm=()))
    assert format_truth([result]).count("\n") == 2


def test_sources_survive_in_the_record_and_in_hdf5(run, tmp_path: Path) -> None:
    layout = ReleaseLayout(tmp_path / "out")
    trials = {
        "Walking 1": (make_trial(source=SYNTHETIC), (SYNTHETIC_NOTICE,)),
        "Sitting": (unseen_trial(action="Sitting"), (UNSEEN_NOTICE,)),
        "Posing": (make_trial(action="Posing"), ()),
    }
    for out in ("out", "again"):
        run(*(Source(trial) for trial, _ in trials.values()), out=out)
    assert layout.hdf5.read_bytes() == ReleaseLayout(tmp_path / "again").hdf5.read_bytes()
    for action, (trial, notices) in trials.items():
        stored = stored_trial(layout.trial("S1", action))
        assert stored.source == trial.source
        assert gather_statistics([stored]).notices == notices
    for trial in with_remarks(layout.hdf5, read_release(layout.hdf5)):
        given, notices = trials[trial.action]
        assert gather_statistics([trial]).notices == notices
        assert str(layout.hdf5) in trial.source
        np.testing.assert_array_equal(trial.keypoints, given.keypoints)
    layout.trial("S1", "Posing").with_suffix(".json").write_text("[]")
    assert stored_trial(layout.trial("S1", "Posing")).source == str(layout.trial("S1", "Posing"))


def test_remarks_are_only_where_there_is_something_to_tell(tmp_path: Path) -> None:
    assert remark_on(make_trial()) == remark_on(bare_trial()) == ""
    assert remark_on(unseen_trial(source=SYNTHETIC)) == f"{SYNTHETIC}; {UNSEEN}"
    path = tmp_path / "a.h5"
    write_release_h5(path, [bare_trial()])
    before = path.read_bytes()
    add_remarks(path, {("S1", "Walking 1"): ""})
    with h5py.File(path, "r") as file:
        assert list(file["S1/Walking_1"].attrs) == ["rate_hz"]
    (trial,) = with_remarks(path, read_release(path))
    assert trial.source == f"{path}:/S1/Walking_1"
    assert len(before) == path.stat().st_size


@pytest.mark.parametrize("formats", [("png",), ("csv", "pdf"), ("html",), ("png", "png", "txt")])
def test_validation_prints_the_number_of_files_there(run, tmp_path: Path, capsys, formats) -> None:
    run(Source(make_trial()))
    out = tmp_path / "validation"
    words = ("validate", str(tmp_path / "out"), "-o", str(out), "--formats", *formats)
    assert validate(build_parser().parse_args(words)) == 0
    count = sum(path.is_file() for path in out.rglob("*"))
    assert capsys.readouterr().out.startswith(f"{count} files in " if count > 1 else "1 file in ")


def test_validation_of_synthetic_trials_says_so_and_shows_recalled_values_on_demand(
    run, tmp_path: Path
) -> None:
    run(Source(make_trial(source=SYNTHETIC)))
    for given in (tmp_path / "out", tmp_path / "out" / "simspine.h5"):
        for more, shown in (((), False), (("--unverified",), True)):
            words = ("validate", str(given), "-o", str(tmp_path / "v"), "--formats", "html", "--quiet", *more)
            assert validate(build_parser().parse_args(words)) == 0
            page = (tmp_path / "v" / "report.html").read_text()
            assert SYNTHETIC_NOTICE in page
            assert ("recalled, unverified" in page) == shown
