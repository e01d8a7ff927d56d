"""Weights out of ONNX files: the converted detector beside ONNX Runtime on the same file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from flax import nnx  # noqa: E402
from torch2flax.detectors import load_detector  # noqa: E402
from torch2flax.onnx_graph import onnx_agreement, read_onnx, rtmpose_weights  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import detection_references as theirs  # noqa: E402

sys.path.pop(0)

from simspine_jax.detection.codecs import SimCC  # noqa: E402
from simspine_jax.detection.cspnext import CSPNeXtOptions  # noqa: E402
from simspine_jax.detection.rtmpose import SPINEPOSE_S, RTMPose, RTMPoseOptions  # noqa: E402
from simspine_jax.errors import FileFormatError  # noqa: E402

pytestmark = pytest.mark.usefixtures("float32")

# float32 through some sixty layers, as a share of the largest output.
AGREEMENT = 1e-4
# A normalisation folded by the exporter is rounded once more than one that is not.
FOLDED = 1e-5
SIZE = (64, 96)
SMALL = RTMPoseOptions(CSPNeXtOptions(0.1, 0.25), keypoints=5, size=SIZE)


def empty(options: RTMPoseOptions) -> RTMPose:
    return nnx.eval_shape(lambda: RTMPose(options, rngs=nnx.Rngs(0)))


def small_module():
    return theirs.stirred(theirs.RTMPose(0.1, 0.25, 5, SIZE))


def plain(module) -> dict[str, np.ndarray]:
    named = module.state_dict().items()
    return {name: value.numpy() for name, value in named if "num_batches_tracked" not in name}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "named.onnx"
    theirs.export_onnx(small_module(), path, SIZE, folded=False)
    return path


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "not folded"])
def test_spinepose_gives_onnx_runtimes_outputs_and_keypoints(folded: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "pose.onnx"
    theirs.export_onnx(theirs.stirred(theirs.RTMPose(0.33, 0.5)), path, folded=folded)
    model, graph = empty(SPINEPOSE_S), read_onnx(path)
    weights, was_folded = rtmpose_weights(graph, model)
    assert was_folded == folded
    assert graph.size == (256, 192)
    assert load_detector(model, weights).tensors == len(weights)

    pictures = np.random.default_rng(1).normal(size=(2, 256, 192, 3)).astype(np.float32)
    ours = nnx.jit(lambda m, x: m(x))(model, pictures)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"input": pictures.transpose(0, 3, 1, 2)})
    for found, other in zip(ours, wanted, strict=True):
        assert other.std() > 0.05 * np.abs(other).max()
        np.testing.assert_allclose(found, other, rtol=0, atol=AGREEMENT * np.abs(other).max())
    codec = SimCC()
    np.testing.assert_array_equal(
        codec.decode(ours).keypoints, codec.decode((wanted[0], wanted[1])).keypoints
    )
    assert 0 < onnx_agreement(path, model) < AGREEMENT


def renumbered(model: Any) -> None:
    """All names are numbers, as after some optimisers."""
    names = {"": "", "input": "input", "simcc_x": "simcc_x", "simcc_y": "simcc_y"}
    for node in model.graph.node:
        node.name = ""
        for kind in (node.input, node.output):
            kind[:] = [names.setdefault(name, str(len(names))) for name in kind]
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]


def resorted(model: Any) -> None:
    """Nodes as late as data allow: branches come in another order, so do the inputs of sums and products."""
    nodes, made, order = list(model.graph.node), set(), []
    waiting = {name for node in nodes for name in node.output}
    while nodes:
        ready = [node for node in nodes if not (set(node.input) & waiting) - made]
        order.append(ready[-1])
        made |= set(ready[-1].output)
        nodes.remove(ready[-1])
    for node in order:
        if node.op_type in ("Add", "Mul"):
            node.input[:] = list(node.input)[::-1]
    assert [n.name for n in order] != [n.name for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(order)


def as_constants(model: Any) -> None:
    """Weights as nodes, as some exporters leave what they folded."""
    made = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize("change", [renumbered, resorted, as_constants])
def test_names_and_order_of_the_graph_do_not_matter(
    change: Callable[[Any], None], small_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(small_file)
    change(model)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "pose.onnx")
    weights, folded = rtmpose_weights(read_onnx(tmp_path / "pose.onnx"), empty(SMALL))
    wanted = plain(small_module())
    assert not folded
    assert set(weights) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_folded_normalisations_only_add(tmp_path: Path) -> None:
    module = small_module()
    theirs.export_onnx(module, tmp_path / "pose.onnx", SIZE, folded=True)
    weights, folded = rtmpose_weights(read_onnx(tmp_path / "pose.onnx"), empty(SMALL))
    wanted = plain(module)
    assert folded
    assert set(weights) == set(wanted)
    for name in [n.removesuffix(".running_var") for n in wanted if n.endswith(".bn.running_var")]:
        scale = wanted[f"{name}.weight"] / np.sqrt(wanted[f"{name}.running_var"] + 1e-5)
        conv = f"{name.removesuffix('.bn')}.conv.weight"
        bias = wanted[f"{name}.bias"] - scale * wanted[f"{name}.running_mean"]
        for found, other in (
            (weights[conv], wanted[conv] * scale[:, None, None, None]),
            (weights[f"{name}.bias"], bias),
        ):
            np.testing.assert_allclose(found, other, rtol=FOLDED, atol=FOLDED * np.abs(other).max())
        assert not weights[f"{name}.running_mean"].any()
        np.testing.assert_array_equal(weights[f"{name}.weight"], 1)


def test_what_a_normalisation_adds_to_variances_is_read(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    module = small_module()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 0.05  # in place of 1e-5, of variances of about 1
    path = tmp_path / "pose.onnx"
    theirs.export_onnx(module, path, SIZE, folded=False)
    model = empty(SMALL)
    load_detector(model, rtmpose_weights(read_onnx(path), model)[0])
    apart = onnx_agreement(path, model)
    assert apart is not None
    assert apart < AGREEMENT


def test_weights_may_lie_in_a_file_beside(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pose.onnx"
    onnx.save(
        onnx.load(small_file), path, save_as_external_data=True, location="pose.data", size_threshold=64
    )
    assert (tmp_path / "pose.data").stat().st_size > 1e6
    weights, _ = rtmpose_weights(read_onnx(path), empty(SMALL))
    wanted = plain(small_module())
    assert all(np.array_equal(weights[name], wanted[name]) for name in wanted)
    (tmp_path / "pose.data").unlink()
    with pytest.raises(FileFormatError, match=r"pose\.onnx: it can't be read .*pose\.data"):
        read_onnx(path)


def deeper() -> torch.nn.Module:
    return theirs.RTMPose(0.6, 0.25, 5, SIZE)


def without_attention() -> torch.nn.Module:
    module = theirs.RTMPose(0.1, 0.25, 5, SIZE)
    module.head.gau = torch.nn.Identity()
    return module


def with_bias() -> torch.nn.Module:
    module = theirs.RTMPose(0.1, 0.25, 5, SIZE)
    module.backbone.stem[0].bn = torch.nn.Identity()
    return module


@pytest.mark.parametrize(
    ("make", "size", "says"),
    [
        (lambda: theirs.RTMPose(0.1, 0.25, 5, (64, 64)), (64, 64), r"64 x 64 px .* valid are 64 x 96"),
        (deeper, SIZE, r"has \d+ convolutions; valid are the 38"),
        (without_attention, SIZE, r"has 3 matrices; valid are the 5 of RTMPose's head \(mlp.1.weight, "),
        (with_bias, SIZE, r"convolution of backbone\.stem\.0 has neither or both"),
        (lambda: theirs.HRNet(8, (1, 1, 1), 5), SIZE, r"has \d+ convolutions"),
    ],
)
def test_other_graphs_are_refused(make: Callable, size: tuple[int, int], says: str, tmp_path: Path) -> None:
    path = tmp_path / "pose.onnx"
    theirs.export_onnx(theirs.stirred(make()), path, size, folded=False)
    with pytest.raises(FileFormatError, match=says):
        rtmpose_weights(read_onnx(path), empty(SMALL))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"junk" + b])
def test_damaged_files_are_named(damage: Callable, small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pose.onnx"
    path.write_bytes(damage(small_file.read_bytes()))
    with pytest.raises(FileFormatError, match=r"pose\.onnx.*; valid is an? (whole )?ONNX model"):
        read_onnx(path)


def test_a_graph_that_computes_something_else_is_noticed(small_file: Path, tmp_path: Path) -> None:
    """Its weights are an RTMPose's; what it does with them is not."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = onnx.load(small_file)
    for node in model.graph.node:
        if node.op_type == "HardSigmoid":
            node.op_type = "Sigmoid"
            del node.attribute[:]
    path = tmp_path / "pose.onnx"
    onnx.save(model, path)
    ours = empty(SMALL)
    load_detector(ours, rtmpose_weights(read_onnx(path), ours)[0])
    apart = onnx_agreement(path, ours)
    assert apart is not None
    assert apart > 1e-2
