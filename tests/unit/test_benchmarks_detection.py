"""The rows of the suite ``detection`` on small networks; what they measure is the suite's own business."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import detection, detection_models
from benchmarks.metrics import Measurement, SkippedError
from benchmarks.workplace import Workplace

sys.path.pop(0)

from simspine_jax.detection.models import DETECTORS

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    monkeypatch.delenv("SIMSPINE_RUNS", raising=False)
    made = Workplace(quick=True)
    yield made
    made._folder.cleanup()


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in packages else found(name, *more)
    )


def until_skipped(rows: Iterator[Measurement]) -> tuple[list[str], str]:
    """Keys of the rows that come first, and why no more do."""
    keys = []
    with pytest.raises(SkippedError) as stopped:
        keys.extend(row.key for row in rows)
    return keys, str(stopped.value)


def test_all_detectors_have_rows() -> None:
    assert detection.MODELS == tuple(DETECTORS) == tuple(detection_models.QUICK)


def test_published_sizes_must_come_out(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = detection_models.parameters(place, "spinepose_s")
    assert (row.key, round(row.value, 3), row.failed) == ("detection/spinepose_s/params_m", 5.975, "")
    monkeypatch.setitem(detection_models.PUBLISHED_M, "spinepose_s", "5.976")
    (row,) = detection_models.parameters(place, "spinepose_s")
    assert "published is 5.976" in row.failed


def test_outputs_are_compared_with_the_same_weights(place: Workplace) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    (row,) = detection_models.parity(place, "vitpose_b")
    assert 0 < row.value < 1e-4
    assert row.detail == {"maxima_elsewhere": 0}
    assert "random numbers" in row.data


def test_outputs_that_differ_stop_a_comparison_of_speeds() -> None:
    ours = [np.array([[1.0, -2.0]], np.float32)]
    detection_models._require_same([ours[0] + 1e-4], ours, "Theirs")
    for other in (ours[0] + 1e-3, ours[0] * np.nan):
        with pytest.raises(AssertionError, match="Theirs outputs are not ours"):
            detection_models._require_same([other], ours, "Theirs")


def test_speeds_beside_peers(place: Workplace) -> None:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    rows = {row.key.rpartition("/")[2]: row for row in detection_models.speeds(place, "spinepose_s")}
    assert list(rows) == ["images_per_s", "vs_pytorch", "vs_onnxruntime"]
    rates = rows["images_per_s"].detail["images_per_s"]
    assert list(rates) == ["jax", "pytorch", "pytorch_channels_last", "onnxruntime"]
    fastest = max(rates["pytorch"], rates["pytorch_channels_last"])
    assert rows["vs_pytorch"].value == pytest.approx(rates["jax"] / fastest, rel=0.01)
    assert rows["vs_onnxruntime"].value == pytest.approx(rates["jax"] / rates["onnxruntime"], rel=0.01)


def test_speeds_without_peers_say_so(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    keys, why = until_skipped(detection_models.speeds(place, "spinepose_s"))
    assert keys == ["detection/spinepose_s/images_per_s"]
    assert why == "PyTorch is not installed"
    assert until_skipped(detection_models.parity(place, "spinepose_s")) == ([], why)


def test_a_peer_may_be_missing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    without(monkeypatch, "onnxruntime", "onnx")
    assert detection_models.missing_peers() == {"onnxruntime": "onnxruntime and onnx can't be imported"}
