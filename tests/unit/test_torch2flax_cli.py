"""``python -m torch2flax --detector``: from files of published weights to folders that the commands take."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch2flax.published
from flax import nnx
from torch2flax.__main__ import main

from simspine_jax.detection.models import DETECTORS
from simspine_jax.errors import SimspineError
from simspine_jax.training.detectors import load_trained_detector

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import detection_references as theirs  # noqa: E402

sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("float32")


def spinepose_s(keypoints: int = 37):
    return theirs.RTMPose(0.33, 0.5, keypoints)


@pytest.fixture(scope="module")
def module():
    return theirs.stirred(spinepose_s())


@pytest.fixture(scope="module")
def graph(module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The module as an ONNX file."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    path = tmp_path_factory.mktemp("graph") / "pose.onnx"
    theirs.export_onnx(module, path)
    return path.read_bytes()


def saved(module, path: Path) -> Path:
    """The module's weights in the format that the name asks for."""
    if path.suffix == ".safetensors":
        numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
        numpy.save_file({name: value.numpy() for name, value in module.state_dict().items()}, path)
    else:
        torch.save({"meta": {"epoch": 10}, "state_dict": module.state_dict()}, path)
    return path


def converted(capsys: pytest.CaptureFixture[str], weights: Path, *more: str) -> tuple[int, str]:
    """The exit status, and what was printed."""
    status = main([str(weights), "-o", str(weights.parent / "out"), *more])
    told = capsys.readouterr()
    return status, told.out + told.err


@pytest.mark.parametrize(("suffix", "order"), [("pth", "RGB"), ("safetensors", "BGR"), ("onnx", "RGB")])
def test_a_folder_holds_the_weights_and_the_order_of_colours(
    suffix: str,
    order: str,
    module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    weights = tmp_path / f"pose.{suffix}"
    if suffix == "onnx":
        weights.write_bytes(request.getfixturevalue("graph"))
    else:
        saved(module, weights)
    more = () if order == "RGB" else ("--order", order)
    status, told = converted(capsys, weights, "--detector", "spinepose_s", *more)
    assert status == 0, told
    assert f"colours: {order}" in told
    assert "simspine evaluate" in told
    assert "simspine detect" in told
    assert "backbone.stages.3" in told
    assert "backbone.stage4" in told
    assert ("folded into convolutions" in told) == (suffix == "onnx")
    run, model, steps = load_trained_detector(tmp_path / "out")
    assert (run.name, run.pixels.order, steps) == ("spinepose_s", order, 0)
    assert run.model == DETECTORS["spinepose_s"]
    attention = module.backbone.stage3[1].attention.fc.weight.detach().permute(2, 3, 1, 0)
    np.testing.assert_array_equal(model.backbone.stages[2].cross.attention.fc.kernel[...], attention)
    bins = module.head.cls_x.weight.detach().T
    np.testing.assert_array_equal(model.head.cls_x.kernel[...], bins)


def test_the_report_counts_every_tensor(module, tmp_path: Path) -> None:
    found = torch2flax.published.convert_detector("spinepose_s", saved(module, tmp_path / "pose.pth"))
    lines = found.matched.table().splitlines()
    assert lines[0].split() == ["part", "from", "tensors", "numbers"]
    assert len(lines) == len(found.matched.parts) + 1
    state = module.state_dict()
    assert sum(int(line.split()[-2]) for line in lines[1:]) + len(found.matched.ignored) == len(state)
    numbers = sum(value.numel() for name, value in state.items() if "num_batches" not in name)
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines[1:]) == numbers
    trained = sum(np.size(leaf) for _, leaf in nnx.to_flat_state(nnx.state(found.model, nnx.Param)))
    assert trained == pytest.approx(5.975e6, rel=1e-3)  # the published size


@pytest.mark.parametrize(
    ("make", "detector", "says"),
    [
        (spinepose_s, "spinepose_m", "weights of spinepose_s; valid is the detector spinepose_s"),
        (spinepose_s, "vitpose_b", "weights of spinepose_s; valid is the detector spinepose_s"),
        (lambda: spinepose_s(17), "spinepose_s", "of spinepose_s with 17 keypoints; valid are the 37"),
        (lambda: theirs.RTMPose(0.1, 0.25), "spinepose_s", "lacks backbone.stage2.1.blocks.1"),
        (lambda: torch.nn.Linear(2, 3), "spinepose_s", "has bias, weight; valid are the names of RTMPose"),
        (spinepose_s, "spinepose_xl", "did you mean 'spinepose_"),
    ],
)
def test_other_weights_are_refused_in_one_sentence(
    make, detector: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = saved(make(), tmp_path / "pose.pth")
    status, told = converted(capsys, weights, "--detector", detector)
    assert status == 2
    assert says in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_onnx_of_another_size_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    path = tmp_path / "pose.onnx"
    theirs.export_onnx(spinepose_s(26).eval(), path)
    status, told = converted(capsys, path, "--detector", "spinepose_m")
    assert status == 2
    assert "spinepose_s with 26 keypoints; valid are the 37" in told


def test_outputs_unlike_onnx_runtimes_are_refused(
    graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pose.onnx"
    path.write_bytes(graph)
    monkeypatch.setattr(torch2flax.published, "onnx_agreement", lambda *_: 0.2)
    with pytest.raises(SimspineError, match=r"pose\.onnx: ONNX Runtime's outputs differ .* by 2e-01"):
        torch2flax.published.convert_detector("spinepose_s", path)


def test_a_folder_in_use_is_left_alone(module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(module, tmp_path / "pose.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    status, told = converted(capsys, weights, "--detector", "spinepose_s")
    assert status == 2
    assert "valid is a new folder" in told
    assert (tmp_path / "out" / "run.json").read_text() == "{}"


@pytest.mark.parametrize(
    "words", [("--config", "simple_full", "--order", "BGR"), ("--detector", "x", "--data-dir", ".")]
)
def test_options_of_the_other_kind_are_refused(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["pose.pth", "-o", "out", *words])
    assert "valid is with" in capsys.readouterr().err
