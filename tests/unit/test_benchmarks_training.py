"""The rows of the suite ``detection`` that are about trainings, on small ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import detection_overfit, detection_training
from benchmarks.detection_end_to_end import Errors
from benchmarks.metrics import SkippedError
from benchmarks.workplace import Workplace

sys.path.pop(0)

from simspine_jax.detection.models import DETECTORS, build_detector
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.errors import SimspineError
from simspine_jax.training.detectors import keep_detector

pytest.importorskip("grain")
pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    monkeypatch.delenv("SIMSPINE_RUNS", raising=False)
    made = Workplace(quick=True)
    yield made
    made._folder.cleanup()


def why_skipped(rows: Iterator) -> str:
    with pytest.raises(SkippedError) as stopped:
        next(rows)
    return str(stopped.value)


def test_crops_are_counted_on_the_way_to_a_training(place: Workplace) -> None:
    (row,) = detection_training.augmentation(place)
    assert row.key == "detection/augment_crops_per_s"
    assert row.value > 0 < row.detail["host_alone_crops_per_s"]
    assert "random numbers" in row.data


def test_trainings_that_take_long_are_only_read(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    why = why_skipped(detection_training.overfit(place, "hrnet_w32"))
    assert "SIMSPINE_RUNS=FOLDER python -m benchmarks.detection_overfit hrnet_w32" in why
    monkeypatch.setenv("SIMSPINE_RUNS", "/runs")
    why = why_skipped(detection_training.overfit(place, "hrnet_w32"))
    assert "SIMSPINE_RUNS=/runs python" in why
    assert why_skipped(detection_training.end_to_end(place)).startswith("spinepose_s_short is not trained")


@pytest.mark.parametrize("name", DETECTORS)
def test_a_run_that_overfits_says_which_pictures(name: str) -> None:
    made = detection_overfit.overfit_run(name, 300)
    wanted = DETECTORS[name]
    wanted = replace(wanted, drop_path=0.0) if isinstance(wanted, ViTPoseOptions) else wanted
    assert (made.model, made.data.split, made.steps) == (wanted, "train[:32]", 300)


ERRORS = Errors("weights", (("spine", 2.0), ("body", math.nan)), (("spine", 9.0),), (("spine", 8.0),), (), 30)


def test_errors_of_vertebrae_come_with_those_on_the_way(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendering and solving are tested where they are."""
    rendered = []
    monkeypatch.setattr(detection_training, "render_in_process", rendered.append)
    monkeypatch.setattr(detection_training, "run", lambda detector, work, clip: ERRORS)
    (row,) = detection_training.end_to_end_stand_in(place)
    assert rendered == [place.folder / "clip"]
    assert (row.key, row.value) == ("detection/end_to_end_stand_in_spine_mpjpe_mm", 8.0)
    assert row.detail["detected_median_px"] == {"spine": 2.0, "body": None}
    assert row.data.startswith("synthetic")


@pytest.mark.parametrize(
    ("says", "stops"),
    [("simspine_jax.errors.SimspineError: no OpenGL", SkippedError), ("ZeroDivisionError", RuntimeError)],
)
def test_only_a_machine_that_cannot_render_is_excused(
    says: str, stops: type[Exception], place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(clip: Path) -> None:
        raise RuntimeError(f"rendering failed: {says}")

    monkeypatch.setattr(detection_training, "render_in_process", fails)
    with pytest.raises(stops, match=says):
        next(detection_training.end_to_end_stand_in(place))


@pytest.mark.slow
def test_scores_are_of_the_training_in_the_folder(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = detection_training.trained(place)
    assert row.key == "detection/spinepose_s/synthetic_auc"
    assert 0 < row.value <= 0.95
    assert set(row.detail) == {"auc", "mean_pose_auc", "pck_0.1", "ap", "ar"}
    assert "shorter side of the person's box" in row.note
    assert "minutes" in row.note
    (again,) = detection_training.trained(place)
    assert again.value == row.value
    assert "minutes" not in again.note
    pictures, _ = detection_training._pictures(place, "train")
    monkeypatch.setattr(detection_overfit, "open_pictures", lambda *which: pictures)
    auc, run = detection_overfit.overfit_auc(place.folder / detection_training.SHORT)
    assert (auc, run.steps) == (row.value, 4)


@pytest.mark.slow
def test_a_training_under_way_is_not_read(place: Workplace) -> None:
    short, folder = detection_training._short(place), place.folder / "half"
    keep_detector(short, build_detector(short.model), folder)
    with pytest.raises(SimspineError, match="is at step 0 of 4; valid is a finished training"):
        detection_overfit.overfit_auc(folder)
