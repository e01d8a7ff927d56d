"""The study of mixing on two small domains that differ on purpose: drawn pictures, and their negatives."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from drawn_pictures import drawn_picture

from simspine_jax import cli
from simspine_jax.datasets import PictureSequence, pictures_in_memory
from simspine_jax.datasets.coco import open_coco
from simspine_jax.datasets.mixing import ChosenPictures
from simspine_jax.datasets.sources import SourceText, open_source
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError
from simspine_jax.evaluation import mixing_study
from simspine_jax.evaluation.mixing_study import (
    Cell,
    CellScores,
    Domain,
    MixingStudy,
    read_scores,
    run_cell,
    study_table,
    write_study,
)
from simspine_jax.picture_export import export_pictures
from simspine_jax.pictures import Picture, decode_jpeg, encode_jpeg
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.detectors import keep_detector
from simspine_jax.training.run import Expected
from simspine_jax.viz.mixing import mixing_figure

pytestmark = pytest.mark.usefixtures("float32")

# A transformer, which is traced in a fraction of the time that a convolutional network of many layers takes.
TINY = ViTPoseOptions(width=32, layers=1, heads=2, drop_path=0.0, size=(64, 64))
RUN = DetectorRun(
    name="small",
    model=TINY,
    expected=Expected(minutes=1),
    optimiser=DetectorOptimiser(learning_rate=2e-3, warmup=2, clip=35.0),
    curriculum=CurriculumOptions(stages=("easy",), switches=()),
    steps=2,
    batch_size=8,
    average=None,
    log_every=1,
    save_every=1,
)


def negative(picture: Picture) -> Picture:
    """The same person, with all colours turned over."""
    return dataclasses.replace(picture, jpeg=encode_jpeg(255 - decode_jpeg(picture.jpeg)))


def drawn(count: int, first: int = 0, *, turned: bool = False) -> list[Picture]:
    found = [drawn_picture(first + i) for i in range(count)]
    return [negative(p) for p in found] if turned else found


def domains() -> tuple[Domain, Domain]:
    return (
        Domain("Drawn", pictures_in_memory(drawn(12)), pictures_in_memory(drawn(6, 100))),
        Domain(
            "Negative",
            pictures_in_memory(drawn(16, 20, turned=True)),
            pictures_in_memory(drawn(5, 200, turned=True)),
        ),
    )


def study(**changes: Any) -> MixingStudy:
    return MixingStudy(RUN, *domains(), **{"fractions": (0.5, 0.0), **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CellScores]]:
    folder = tmp_path_factory.mktemp("study")
    with jax.enable_x64(False):
        return folder, [run_cell(study(), cell, folder, note=pytest.fail) for cell in study().cells]


def test_cells_are_the_first_set_alone_and_both_modes_of_each_fraction() -> None:
    assert study().cells == (Cell("none", 0.0), Cell("batch", 0.5), Cell("epoch", 0.5))
    assert [c.name for c in study().cells] == ["first_only", "batch_50", "epoch_50"]
    assert Cell("epoch", 0.025).name == "epoch_2.5"
    only = study(fractions=(1, 0.5, 1), modes=("epoch", "epoch"))
    assert only.cells == (Cell("epoch", 0.5), Cell("epoch", 1))


def test_each_cell_is_trained_and_measured(finished: tuple[Path, list[CellScores]]) -> None:
    folder, scores = finished
    assert [(s.mode, s.fraction, s.pictures) for s in scores] == [
        ("none", 0.0, 0), ("batch", 0.5, 8), ("epoch", 0.5, 8),
    ]  # fmt: skip
    for cell, found in zip(study().cells, scores, strict=True):
        assert found.steps == RUN.steps
        for name in ("ap_body", "ar_body", "ap_spine", "ar_spine", "auc", "auc_spine"):
            assert 0 <= getattr(found, name) <= 1
        assert read_scores(folder / cell.name / "scores.json") == found
    # What they are trained on differs, so they do.
    assert len({s.auc for s in scores}) == 3


def test_finished_cells_are_kept(
    finished: tuple[Path, list[CellScores]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scores = finished
    monkeypatch.setattr(mixing_study, "train_detector", lambda *_, **__: pytest.fail("trains"))
    assert [run_cell(study(), cell, folder) for cell in study().cells] == scores


def test_a_stopped_cell_goes_on(finished: tuple[Path, list[CellScores]], tmp_path: Path) -> None:
    _, scores = finished
    cell = study().cells[1]

    class StoppedError(Exception):
        pass

    def stop(done: int, losses: dict[str, float]) -> None:
        if done == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_cell(study(), cell, tmp_path, progress=stop)
    assert not (tmp_path / cell.name / "scores.json").exists()
    assert run_cell(study(), cell, tmp_path, note=pytest.fail) == scores[1]


def test_a_cell_of_another_study_is_refused(finished: tuple[Path, list[CellScores]]) -> None:
    folder, _ = finished
    for changed, odd in (
        (study(share=0.25), "share"),
        (dataclasses.replace(study(), run=dataclasses.replace(RUN, steps=3)), "run"),
        (dataclasses.replace(study(), first=dataclasses.replace(study().first, name="Other")), "first"),
    ):
        with pytest.raises(
            SimspineError, match=f"tells of a cell with another {odd}; valid is the same study"
        ):
            run_cell(changed, changed.cells[1], folder)
    # What changes no number may differ.
    longer = dataclasses.replace(study(), run=dataclasses.replace(RUN, keep=1))
    assert run_cell(longer, longer.cells[1], folder).mode == "batch"


def test_a_cell_of_other_pictures_or_weights_of_the_same_name_is_refused(
    finished: tuple[Path, list[CellScores]], tmp_path: Path
) -> None:
    from simspine_jax.detection.models import build_detector

    folder, _ = finished
    first, second = study().first, study().second
    moved = [dataclasses.replace(p, keypoints_2d=p.keypoints_2d + 1) for p in second.test]
    other = [dataclasses.replace(p, jpeg=encode_jpeg(decode_jpeg(p.jpeg)[:, ::-1])) for p in first.train]
    for changed, odd in (
        ({"first": dataclasses.replace(first, train=pictures_in_memory(other))}, "first"),
        ({"second": dataclasses.replace(second, test=pictures_in_memory(moved))}, "second"),
    ):
        own = dataclasses.replace(study(), **changed)
        with pytest.raises(SimspineError, match=f"tells of a cell with another {odd};"):
            run_cell(own, own.cells[1], folder)
    told = []
    for seed in (5, 6):
        shutil.rmtree(tmp_path / "weights", ignore_errors=True)
        keep_detector(RUN, build_detector(RUN.model, seed=seed), tmp_path / "weights")
        told.append(study(weights=tmp_path / "weights").about(Cell("none", 0.0))["weights"]["sha256"])
    assert told[0] != told[1]
    with pytest.raises(FileFormatError, match="no folder of a training"):
        study(weights=tmp_path / "gone").about(Cell("none", 0.0))


def test_sets_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    export_pictures(tmp_path / "set.json", tmp_path / "set", drawn(20))

    def opened(text: str = "") -> PictureSequence:
        if text:
            (tmp_path / "set.json").write_text(text)
        return open_coco(tmp_path / "set.json", tmp_path / "set")

    digest, text = opened().digest(), (tmp_path / "set.json").read_text()
    assert opened().digest() == digest
    document = json.loads(text)
    document["annotations"][7]["keypoints"][0] += 1
    digests = [digest, opened(json.dumps(document)).digest(), ChosenPictures(opened(text), [0, 1]).digest()]
    digests.append(ChosenPictures(opened(), [0, 2]).digest())
    path = sorted((tmp_path / "set").iterdir())[0]
    path.write_bytes(encode_jpeg(255 - decode_jpeg(path.read_bytes())))
    digests.append(opened().digest())
    assert len(set(digests)) == len(digests)


def test_all_cells_may_begin_with_trained_weights(
    finished: tuple[Path, list[CellScores]], tmp_path: Path
) -> None:
    from simspine_jax.detection.models import build_detector

    _, scores = finished
    weights, cell = tmp_path / "weights", Cell("none", 0.0)
    keep_detector(RUN, build_detector(RUN.model, seed=5), weights)
    # The same data and steps as the finished cell's, from other weights.
    assert run_cell(study(weights=weights), cell, tmp_path / "study") != scores[0]
    larger = dataclasses.replace(RUN, model=dataclasses.replace(TINY, width=64))
    changed = dataclasses.replace(study(weights=weights), run=larger)
    with pytest.raises(SimspineError, match="holds another detector than the run"):
        run_cell(changed, cell, tmp_path / "larger")


def test_studies_that_can_not_be_are_refused() -> None:
    with pytest.raises(SimspineError, match="no fractions or no modes"):
        study(fractions=())
    with pytest.raises(ShapeError, match="1 % of 16 pictures are none"):
        study(fractions=(0.01,))
    with pytest.raises(ShapeError, match="Epochs in turn need a batch of each set"):
        study(fractions=(0.25,))
    assert study(fractions=(0.25,), modes=("batch",)).cells == (Cell("batch", 0.25),)


def test_table_and_files(finished: tuple[Path, list[CellScores]], tmp_path: Path) -> None:
    _, scores = finished
    table = study_table(study(), scores)
    assert [row[:3] for row in table.rows] == [
        ("-", 0.0, 0), ("per batch (PB)", 50.0, 8), ("per epoch (PE)", 50.0, 8),
    ]  # fmt: skip
    missing = dataclasses.replace(scores[0], ap_body=float("nan"))
    write_study(study(), [missing, *scores[1:]], tmp_path)
    lines = [x for x in (tmp_path / "mixing.csv").read_text().splitlines() if not x.startswith("#")]
    assert len(lines) == 4
    assert lines[0].startswith("Mixed,Part used (%)")
    assert lines[1].split(",")[3] == ""
    found = json.loads((tmp_path / "mixing.json").read_text())
    assert [c["scores"]["auc"] for c in found["cells"]] == [s.auc for s in scores]
    assert found["cells"][0]["scores"]["ap_body"] is None
    assert found["cells"][1]["run"]["model"]["kind"] == "vitpose"


@pytest.mark.parametrize("text", ["", "[]", '{"mode": "batch"}'])
def test_damaged_scores_are_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"scores.json"):
        read_scores(path)


def made_scores() -> list[CellScores]:
    rows = [("none", 0.0), ("batch", 0.02), ("epoch", 0.02), ("batch", 1.0), ("epoch", 1.0)]
    return [
        CellScores(mode, fraction, 3, 5, *(0.1 * i + 0.01 * j for j in range(6)))  # type: ignore[arg-type]
        for i, (mode, fraction) in enumerate(rows)
    ]


def test_the_plot_has_the_axes_of_figure_five(tmp_path: Path) -> None:
    from simspine_jax.viz.figures import write_figure

    figure = mixing_figure(made_scores(), "SpineTrack", "SimSpine", "made up")
    left, right = figure.axes
    for axes in (left, right):
        assert axes.get_xlabel() == "Part of SimSpine used in training (%)"
        assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "2", "100"]
    assert left.get_ylabel() == "AUC on SimSpine"
    assert right.get_ylabel() == "AP on SpineTrack"
    # Both modes' lines begin at the cell that has nothing to mix.
    by_name = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_allclose(by_name["per batch (PB)"].get_ydata(), [0.04, 0.14, 0.34])
    np.testing.assert_allclose(by_name["per epoch (PE)"].get_ydata(), [0.04, 0.24, 0.44])
    assert list(by_name["per batch (PB)"].get_xdata()) == [0, 1, 2]
    assert len(right.get_lines()) == 4
    write_figure(tmp_path / "mixing.png", figure)
    one_mode = mixing_figure([s for s in made_scores() if s.mode != "epoch"], "A", "B", "made up")
    assert [line.get_label() for line in one_mode.axes[0].get_lines()] == ["per batch (PB)"]
    begun = mixing_figure(made_scores()[:1], "A", "B", "made up")
    assert [line.get_label() for line in begun.axes[0].get_lines()] == ["not mixed"]


# --- the command ---


@pytest.mark.parametrize(
    ("text", "kind", "parts", "has_splits"),
    [
        ("tfds:synthetic_images", "tfds", ("synthetic_images",), True),
        ("tfds:synthetic_images:train[:10%]", "tfds", None, None),
        ("tfds:synthetic_images:test", "tfds", ("synthetic_images", "test"), False),
        ("h36m:frames:simspine.h5", "h36m", ("frames", "simspine.h5"), True),
        ("h36m:frames:simspine.h5:5", "h36m", ("frames", "simspine.h5", "5"), True),
        ("a/b.json:images", "coco", ("a/b.json", "images"), False),
    ],
)
def test_sets_are_named_in_a_line(text: str, kind: str, parts: Any, has_splits: bool | None) -> None:
    if parts is None:
        parts, has_splits = ("synthetic_images", "train[:10%]"), False
    source = SourceText.of(text)
    assert (source.kind, source.parts, source.has_splits) == (kind, parts, has_splits)


@pytest.mark.parametrize(
    "text",
    ["", "synthetic_images", "tfds:", "a.json", "a.json:", ".json:b", "h36m:a", "h36m:a:b:c", "h36m:a:b:5:6"],
)
def test_other_lines_are_refused(text: str) -> None:
    with pytest.raises(SimspineError, match=r"has no known form; valid are FILE.json:FOLDER"):
        SourceText.of(text)


def test_h36m_is_split_by_its_subjects(tmp_path: Path) -> None:
    from official_files import CAMERAS, write_h5

    from simspine_jax.skeleton import AXIS_NAMES

    write_h5(tmp_path / "simspine.h5", AXIS_NAMES)
    picture = encode_jpeg(np.zeros((1002, 1000, 3), np.uint8))
    for video in ("S1_Walking_1", "S9_Sitting_2"):
        for number in (1, 2, 3):
            (tmp_path / f"{video}.{CAMERAS[0]}_{number:06d}.jpg").write_bytes(picture)
    notes: list[str] = []
    for split, subject in (("train", "S1"), ("test", "S9")):
        source = SourceText.of(f"h36m:{tmp_path}:{tmp_path / 'simspine.h5'}:2")
        found = open_source(source, split, note=notes.append)  # type: ignore[arg-type]
        assert [(p.subject, p.frame) for p in found] == [(subject, 0), (subject, 2)]
    assert "number 1 in file names" in notes[0]
    write_h5(tmp_path / "train.h5", AXIS_NAMES, (("S1", "Walking_1"),))
    with pytest.raises(SimspineError, match="has none of the subjects for test; valid are S9, S11"):
        open_source(SourceText.of(f"h36m:{tmp_path}:{tmp_path / 'train.h5'}"), "test")


CONFIG = """
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.run import Expected

RUN = DetectorRun(
    name="small", model=ViTPoseOptions(width=32, layers=1, heads=2, drop_path=0.0, size=(64, 64)),
    expected=Expected(minutes=1), optimiser=DetectorOptimiser(learning_rate=2e-3, warmup=2, clip=35.0),
    curriculum=CurriculumOptions(stages=("easy",), switches=()), steps=9, batch_size=8, average=None,
    log_every=1, save_every=1,
)
"""


def test_the_command_makes_table_and_plot_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, people in (
        ("first", drawn(12)), ("first_test", drawn(6, 100)), ("second", drawn(16, 20, turned=True)),
        ("second_test", drawn(5, 200, turned=True)),
    ):  # fmt: skip
        export_pictures(tmp_path / f"{name}.json", tmp_path / name, people)
    next(iter((tmp_path / "first").iterdir())).write_bytes(b"")
    config = tmp_path / "small.py"
    config.write_text(CONFIG)
    words = ["study", "mixing", "--config", str(config), "--set", "steps=2", "--fractions", "50"]
    words += ["--names", "Drawn", "Negative", "--modes", "batch", "-o", str(tmp_path / "out")]
    for name in ("first", "first_test", "second", "second_test"):
        words += [f"--{name.replace('_', '-')}", f"{tmp_path / name}.json:{tmp_path / name}"]
    assert cli.main(words) == 0
    shown, told = capsys.readouterr()
    assert "the file is empty; valid is a picture" in told
    assert "11 people to train on" in shown
    assert "1 of 1: per batch (PB), 50 %" in shown
    assert "Detectors trained on Drawn and a part of Negative" in shown
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "batch_50", "mixing.csv", "mixing.json", "mixing.png",
    ]  # fmt: skip
    monkeypatch.setattr(mixing_study, "train_detector", lambda *_, **__: pytest.fail("trains"))
    assert cli.main([*words, "--quiet"]) == 0
    assert "of 1:" not in capsys.readouterr().out
    for changes, message in (
        (["--set", "steps=3"], "tells of a cell with another run"),
        (["--fractions", "150"], "150 % of a set can't be used; valid is 0 to 100"),
    ):
        assert cli.main([*words, *changes]) == 2
        assert message in capsys.readouterr().err
    del words[words.index("--first-test") : words.index("--first-test") + 2]
    assert cli.main(words) == 2
    assert "has no test split; valid is --first-test with another set" in capsys.readouterr().err
