"""RTMPose's and SpinePose's weights out of an ONNX graph, by their published names.

Exporters give some weights numbers in place of names, and fold normalisations into the convolutions before
them. So weights are found by what the graph computes: its operators with weights are taken in the order in
which data reach them, from the outputs back, with a concatenation's parts in their order. That order is the
model's own, whatever the nodes are called and however they are sorted.

Nothing in the file is run. `onnx_agreement` compares with ONNX Runtime, which runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.detection.layers import EPSILON
from simspine_jax.detection.rtmpose import RTMPose
from simspine_jax.errors import FileFormatError, MissingDependencyError, listed, one_line
from simspine_jax.io.files import place, read_bytes
from torch2flax.reading import StateDict

Values = NDArray[np.float32]

RESHAPING = ("Identity", "Cast", "Squeeze", "Unsqueeze")
"""Operators that leave the values of a weight and their order."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """An operator with weights of its own.

    Attributes:
        kind: of the operator: ``conv``, ``linear``, ``times`` or ``plus``.
        weight: as in the graph.
        bias: of a convolution, if it has one.
        norm: scale, bias, mean and variance of the batch normalisation that follows, if there is one; the
            variance is as if `layers.EPSILON` were added to it.
        scaled: of ``times``, whether it multiplies a quotient, as the last step of a normalisation.
    """

    kind: Literal["conv", "linear", "times", "plus"]
    weight: Values
    bias: Values | None = None
    norm: tuple[Values, Values, Values, Values] | None = None
    scaled: bool = False


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """What is read of an ONNX file.

    Attributes:
        source: what errors call it.
        inputs: shapes by name; 0 where a length is open.
        outputs: names.
        weighted: operators with weights, in the order in which data reach them.
    """

    source: str
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    weighted: tuple[Weighted, ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the pictures; None where they are open."""
        shapes = [shape for shape in self.inputs.values() if len(shape) == 4]
        return (shapes[0][2], shapes[0][3]) if shapes and all(shapes[0][2:]) else None

    def of_kind(self, kind: str) -> list[Weighted]:
        """Those operators."""
        return [w for w in self.weighted if w.kind == kind]


def read_onnx(path: Path) -> OnnxGraph:
    """The operators with weights of an ONNX file.

    Raises:
        FileFormatError: the file is missing, damaged, or no ONNX model.
        MissingDependencyError: onnx is not installed.
    """
    content = read_bytes(path)
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingDependencyError("onnx", "weights", f"Reading {path.name}") from None
    try:
        model = onnx.load_from_string(content)
        if model.graph.node:
            onnx.load_external_data_for_model(model, str(path.resolve().parent))
        return _graph(model.graph, place(path))
    except FileFormatError:
        raise
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{place(path)}: it can't be read ({type(error).__name__}: {one_line(str(error))}); valid "
            "is a whole ONNX model, with the files beside it that it names"
        ) from None


def rtmpose_weights(graph: OnnxGraph, model: RTMPose) -> tuple[StateDict, bool]:
    """A graph's weights by MMPose's names, and whether normalisations were folded into convolutions.

    What was folded comes back as a normalisation that only adds: the outputs are the same, but the
    statistics of the data are gone, which a training of the weights has to find anew.

    Args:
        graph: of `read_onnx`.
        model: of the same number of layers; sizes are for `load_detector` to check.

    Raises:
        FileFormatError: the graph takes pictures of another size, or has other operators.
    """
    if graph.size is not None and graph.size != tuple(model.size):
        raise FileFormatError(
            f"{graph.source} takes pictures of {graph.size[0]} x {graph.size[1]} px (height x width); valid "
            f"are {model.size[0]} x {model.size[1]}"
        )
    convs, normed = graph.of_kind("conv"), list(_normed(model))
    attentions = [name for name in normed if name.endswith(".fc")]
    if len(convs) != len(normed) + 1:
        raise FileFormatError(
            f"{graph.source} has {len(convs)} convolutions; valid are the {len(normed) + 1} of this RTMPose"
        )
    found: dict[str, NDArray[Any]] = {}
    for name, conv in zip(normed, convs, strict=False):
        found |= _biased(name, conv, graph) if name in attentions else _with_norm(name, conv, graph)
    found |= _biased("head.final_layer", convs[-1], graph)
    folded = any(c.norm is None for n, c in zip(normed, convs, strict=False) if n not in attentions)
    return found | _head(graph), folded


def onnx_agreement(path: Path, model: RTMPose) -> float | None:
    """How far a model's outputs are from those that ONNX Runtime computes, as a share of the largest.

    Args:
        path: of the ONNX file.
        model: with its weights.

    Returns:
        Of one random picture; None where ONNX Runtime is not installed.

    Raises:
        FileFormatError: ONNX Runtime can't run the file, or its outputs have other shapes.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    pictures = np.random.default_rng(0).normal(size=(1, *model.size, 3)).astype(np.float32)
    ours = nnx.jit(lambda m, x: m(x))(model, pictures)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        named = {session.get_inputs()[0].name: pictures.transpose(0, 3, 1, 2)}
        theirs = [np.asarray(x) for x in session.run(None, named)]
    except Exception as error:  # its errors have no common base but this
        raise FileFormatError(
            f"{place(path)}: ONNX Runtime can't run it ({one_line(str(error), 120)}); valid is a "
            "model of one float32 picture"
        ) from None
    shapes = [x.shape for x in theirs]
    if shapes != [x.shape for x in ours]:
        raise FileFormatError(
            f"{place(path)}: its outputs have the shapes {shapes}; valid are {[x.shape for x in ours]}"
        )
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def _normed(model: RTMPose) -> Iterator[str]:
    """MMPose's names of the backbone's convolutions in the order in which data reach them."""
    for i in range(len(model.backbone.stem)):
        yield f"backbone.stem.{i}"
    for i, stage in enumerate(model.backbone.stages):
        name, cross = f"backbone.stage{i + 1}", 1
        yield f"{name}.0"
        if stage.pooling is not None:
            yield from (f"{name}.1.{part}" for part in ("conv1", "conv2"))
            cross = 2
        name = f"{name}.{cross}"
        yield f"{name}.main_conv"
        for j in range(len(stage.cross.blocks)):
            block = f"{name}.blocks.{j}"
            yield from (
                f"{block}.{part}" for part in ("conv1", "conv2.depthwise_conv", "conv2.pointwise_conv")
            )
        yield from (f"{name}.{part}" for part in ("short_conv", "attention.fc", "final_conv"))


def _biased(name: str, conv: Weighted, graph: OnnxGraph) -> dict[str, Values]:
    if conv.bias is None or conv.norm is not None:
        raise FileFormatError(
            f"{graph.source}: the convolution of {name} has no bias or is normalised; valid is an RTMPose"
        )
    return {f"{name}.weight": conv.weight, f"{name}.bias": conv.bias}


def _with_norm(name: str, conv: Weighted, graph: OnnxGraph) -> dict[str, Values]:
    if (conv.bias is None) == (conv.norm is None):
        raise FileFormatError(
            f"{graph.source}: the convolution of {name} has neither or both of a bias and a normalisation; "
            "valid is one"
        )
    norm = conv.norm
    if norm is None:
        assert conv.bias is not None
        one = np.ones_like(conv.bias)
        norm = (one, conv.bias, 0 * one, (1 - EPSILON) * one)
    parts = ("weight", "bias", "running_mean", "running_var")
    named = {f"{name}.bn.{part}": value for part, value in zip(parts, norm, strict=True)}
    return {f"{name}.conv.weight": conv.weight, **named}


def _head(graph: OnnxGraph) -> dict[str, Values]:
    """The head's weights: matrices and scales of normalisations by order, the others by their shape."""
    matrices = [w.weight for w in graph.of_kind("linear")]
    times, plus = graph.of_kind("times"), [w.weight for w in graph.of_kind("plus")]
    scales = [w.weight.reshape(1) for w in times if w.scaled and w.weight.size == 1]
    vectors = [w.weight.ravel() for w in times if w.weight.size > 1 and w.weight.size == w.weight.shape[-1]]
    pairs = [_pair(w.weight) for w in times if w.weight.ndim >= 2 and w.weight.shape[-2] == 2]
    shifts = [_pair(value) for value in plus if value.ndim >= 2 and value.shape[-2] == 2]
    wanted = (
        (
            "matrices",
            matrices,
            ("mlp.1.weight", "gau.uv.weight", "gau.o.weight", "cls_x.weight", "cls_y.weight"),
        ),
        ("scales of normalisations", scales, ("mlp.0.g", "gau.ln.g")),
        ("vectors of factors", vectors, ("gau.res_scale.scale",)),
        ("pairs of factors", pairs, ("gau.gamma",)),
        ("pairs of summands", shifts, ("gau.beta",)),
    )
    found = {}
    for what, values, names in wanted:
        if len(values) != len(names):
            raise FileFormatError(
                f"{graph.source} has {len(values)} {what}; valid are the {len(names)} of RTMPose's head "
                f"({listed(names)})"
            )
        values = [v.T for v in values] if what == "matrices" else values
        found |= {f"head.{name}": value for name, value in zip(names, values, strict=True)}
    return found


def _pair(value: Values) -> Values:
    return value.reshape(value.shape[-2:]) if value.size == 2 * value.shape[-1] else value


def _graph(graph: Any, source: str) -> OnnxGraph:
    if not graph.node or not graph.output:
        raise FileFormatError(f"{source} holds no graph; valid is an ONNX model")
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in graph.input
        if value.name not in constants
    }
    outputs = tuple(value.name for value in graph.output)
    return OnnxGraph(source, inputs, outputs, tuple(_weighted(graph, outputs)))


def _weighted(graph: Any, outputs: Iterable[str]) -> Iterator[Weighted]:
    from onnx import helper  # pyright: ignore[reportMissingImports]

    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
    for node in _reached(makers, outputs):
        known = [_constant(name, tensors, makers) for name in node.input]
        if node.op_type == "Conv" and known[1] is not None:
            norm = norms.get(node.output[0])
            parts = None
            if norm is not None:
                values = [_constant(name, tensors, makers) for name in norm.input[1:5]]
                told = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
                parts = _norm_parts(values, told.get("epsilon", EPSILON))
            yield Weighted("conv", known[1], known[2] if len(known) > 2 else None, parts)
        elif node.op_type == "MatMul" and known[1] is not None:
            yield Weighted("linear", known[1])
        elif node.op_type in ("Mul", "Add"):
            kind = "times" if node.op_type == "Mul" else "plus"
            for weight, other in zip(known, reversed(node.input), strict=True):
                if weight is not None and weight.ndim:
                    yield Weighted(kind, weight, scaled=_made_by(other, makers) == "Div")


def _norm_parts(values: list[Values | None], epsilon: float) -> tuple[Values, Values, Values, Values] | None:
    if any(value is None for value in values) or len(values) != 4:
        return None
    scale, bias, mean, var = (value for value in values if value is not None)
    return scale, bias, mean, (var + (epsilon - EPSILON)).astype(np.float32)


def _reached(makers: Mapping[str, Any], outputs: Iterable[str]) -> Iterator[Any]:
    """Each node after those that its inputs come from, the first input's first."""
    seen: set[int] = set()
    for output in outputs:
        waiting = [(makers.get(output), False)]
        while waiting:
            node, ready = waiting.pop()
            if node is None:
                continue
            if ready:
                yield node
            elif id(node) not in seen:
                seen.add(id(node))
                waiting.append((node, True))
                waiting += [(makers.get(name), False) for name in reversed(node.input)]


def _constant(name: str, tensors: Mapping[str, Any], makers: Mapping[str, Any]) -> Values | None:
    """A floating-point constant, also through operators that keep its values; None of anything else."""
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    if name in tensors:
        value = numpy_helper.to_array(tensors[name])
        return value.astype(np.float32) if value.dtype.kind == "f" else None
    node = makers.get(name)
    if node is None or not node.input:
        return None
    if node.op_type in RESHAPING:
        return _constant(node.input[0], tensors, makers)
    if node.op_type == "Transpose":
        value = _constant(node.input[0], tensors, makers)
        turns = [list(a.ints) for a in node.attribute if a.name == "perm"]
        return None if value is None else np.transpose(value, turns[0] if turns else None)
    return None


def _made_by(name: str, makers: Mapping[str, Any]) -> str | None:
    """The operator that makes a tensor, past those that keep its values."""
    node = makers.get(name)
    while node is not None and node.op_type in RESHAPING and node.input:
        node = makers.get(node.input[0])
    return None if node is None else node.op_type
