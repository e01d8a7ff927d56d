"""Detectors' PyTorch weights in the Flax models.

A mapping says for each variable of a model which published tensors make it, and how. The names known are

=========  ====================================================================================
RTMPose    MMPose's, also SpinePose's (``backbone.stem.0.conv.weight``)
HRNet      MMPose's (``backbone.conv1.weight``, ``head.final_layer.weight``), also of its
           versions before 1 (``keypoint_head.final_layer.weight``), and its own (``conv1.weight``)
ViTPose    the original repository's (``backbone.blocks.0.norm1.weight``), MMPose's
           (``backbone.layers.0.ln1.weight``), and transformers'
           (``backbone.encoder.layer.0.layernorm_before.weight``)
=========  ====================================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.detection.hrnet import HRNet, HRNetOptions
from simspine_jax.detection.models import DetectorModule, DetectorOptions, PixelOptions
from simspine_jax.detection.rtmpose import RTMPose, RTMPoseOptions
from simspine_jax.detection.vitpose import ViTPose, ViTPoseOptions
from simspine_jax.errors import FileFormatError, listed, one_line
from torch2flax.reading import StateDict

SHOWN = 4
"""Names that an error lists."""

IGNORED = ("num_batches_tracked", "data_preprocessor.mean", "data_preprocessor.std")
"""Ends of names of tensors that no detector computes with."""

RTMPOSE_NAMES = ("backbone.stem.0.conv.weight",)
HRNET_NAMES = ("backbone.conv1.weight", "conv1.weight")
VITPOSE_NAMES = (
    "backbone.blocks.0.norm1.weight",
    "backbone.layers.0.ln1.weight",
    "backbone.encoder.layer.0.layernorm_before.weight",
)
"""Of each known layout a name that only it has."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a published tensor is turned into ours.

    Attributes:
        published: its shape, of ours.
        ours: our values, of its.
    """

    published: Callable[[Shape], Shape]
    ours: Callable[[NDArray[np.float32]], NDArray[np.float32]]


AS_IS = Layout(lambda shape: shape, lambda value: value)
"""Scales, biases and statistics."""

LINEAR = Layout(lambda shape: shape[::-1], np.transpose)
"""``[out in]`` is ``[in out]`` here."""

CONVOLUTION = Layout(lambda s: (s[3], s[2], s[0], s[1]), lambda value: np.transpose(value, (2, 3, 1, 0)))
"""``[out in height width]`` is ``[height width in out]`` here."""

WIDE_CONVOLUTION = Layout(lambda s: (s[3], s[0], s[1], s[2]), lambda value: np.transpose(value, (1, 2, 3, 0)))
"""``[out in height width]`` is ``[in height width out]`` here."""

TRANSPOSED = Layout(
    lambda s: (s[2], s[3], s[0], s[1]), lambda value: np.transpose(value, (2, 3, 0, 1))[::-1, ::-1]
)
"""``[in out height width]`` is ``[height width in out]``, mirrored, here."""

PLACES = Layout(lambda s: (1, *s), lambda value: value[0])
"""``[1 places features]``."""

PLACES_AND_ALL = Layout(lambda s: (1, s[0] + 1, s[1]), lambda value: value[0, 1:] + value[0, :1])
"""``[1 1+places features]``, the first of them added to each of the others."""

PLACES_AND_CLASS = Layout(lambda s: (1, s[0] + 1, s[1]), lambda value: value[0, 1:])
"""``[1 1+places features]``, the first of them a class token's, which is left out."""


@dataclass(frozen=True)
class Source:
    """Where one of our variables comes from.

    Attributes:
        path: of the variable, names and numbers with dots between.
        names: of the published tensors; several are put one after the other along their first axis.
        layout: of them together.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True)
class Part:
    """A part of a model in a report.

    Attributes:
        ours: what the names of our variables begin with.
        published: what those of the tensors begin with; empty where they begin differently.
        tensors: how many there are.
        numbers: how many they hold.
    """

    ours: str
    published: str
    tensors: int
    numbers: int


@dataclass(frozen=True)
class Matched:
    """What was loaded.

    Attributes:
        layout: whose names the weights have.
        parts: of the model, in its order.
        ignored: tensors that no detector computes with.
    """

    layout: str
    parts: tuple[Part, ...]
    ignored: tuple[str, ...]

    @property
    def tensors(self) -> int:
        """How many were used."""
        return sum(part.tensors for part in self.parts)

    @property
    def numbers(self) -> int:
        """How many they hold, with statistics of normalisations."""
        return sum(part.numbers for part in self.parts)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.tensors} tensors of {self.numbers / 1e6:.3f} million numbers by {self.layout}'s names, "
            f"{len(self.ignored)} not needed"
        )

    def table(self) -> str:
        """A line for each part: where it comes from, how many tensors and numbers it has."""
        rows = [("part", "from", "tensors", "numbers")]
        rows += [(p.ours, p.published or "several", str(p.tensors), f"{p.numbers:,}") for p in self.parts]
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}" for a, b, c, d in rows
        )


def load_detector(model: DetectorModule, weights: StateDict, source: str = "the state dict") -> Matched:
    """Puts a state dict's weights into a detector: all of them, or none and an error.

    Args:
        model: of the same sizes.
        weights: of `read_state_dict`.
        source: what errors call them.

    Raises:
        FileFormatError: the names are of no known layout, some are missing or left over, or sizes differ.
    """
    variables = dict(_variables(model))
    layout, sources = mapping(model, weights, source)
    assert {s.path for s in sources} == set(variables), "a mapping covers its model"
    _refuse_pixels(weights, source)
    missing, extra, ignored = _odd_names(sources, weights)
    _refuse_names(missing, extra, source, model)
    if wrong := _wrong_shapes(sources, variables, weights):
        raise FileFormatError(f"In {source} {listed(wrong, SHOWN)}: it is of a model of another size")
    for s in sources:
        value = np.concatenate([np.asarray(weights[n], np.float32) for n in s.names])
        variables[s.path].set_value(jnp.asarray(s.layout.ours(value)))
    return Matched(layout, tuple(_parts(sources, weights)), ignored)


def fitting_keypoints(model: DetectorModule, weights: StateDict) -> int | None:
    """How many keypoints a state dict's detector has if all else is this model's; None where it isn't."""
    if not any(name in weights for _, name, _ in _layouts(model, weights)):
        return None
    sources = mapping(model, weights)[1]
    missing, extra, _ = _odd_names(sources, weights)
    body = [s for s in sources if "final_layer" not in s.path.split(".")]
    if missing or extra or _wrong_shapes(body, dict(_variables(model)), weights):
        return None
    return np.size(weights[next(s.names[0] for s in sources if s.path.endswith("final_layer.bias"))])


def has_names_of(options: DetectorOptions, weights: StateDict) -> bool:
    """Whether a state dict has a name that only detectors of these options' kind have."""
    kinds = ((RTMPoseOptions, RTMPOSE_NAMES), (HRNetOptions, HRNET_NAMES), (ViTPoseOptions, VITPOSE_NAMES))
    return any(name in weights for kind, names in kinds if isinstance(options, kind) for name in names)


def _parts(sources: list[Source], weights: StateDict) -> Iterator[Part]:
    grouped: dict[str, list[str]] = {}
    for s in sources:
        grouped.setdefault(_part_of(s.path), []).extend(s.names)
    for ours, names in grouped.items():
        numbers = sum(int(np.size(weights[name])) for name in names)
        yield Part(ours, _common(names), len(names), numbers)


def _common(names: list[str]) -> str:
    """The words with which all names begin, of a single name all."""
    words = [name.split(".") for name in names]
    same = itertools.takewhile(lambda ws: len(set(ws)) == 1, zip(*words, strict=False))
    return ".".join(ws[0] for ws in same)


def _part_of(path: str) -> str:
    """Up to the first number, else the first two names, of those above the variable's own."""
    words = path.split(".")[:-1] or [path]
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[0] + 1 if numbers else 2])


def mapping(
    model: DetectorModule, weights: StateDict, source: str = "the state dict"
) -> tuple[str, list[Source]]:
    """Whose names a state dict has, and where each variable of the model comes from.

    Args:
        model: whose variables are asked for.
        weights: only their names and the number of places embedded are looked at.
        source: what errors call them.

    Raises:
        FileFormatError: the names are of no known layout of this model.
    """
    for layout, name, sources in _layouts(model, weights):
        if name in weights:
            return layout, list(sources)
    known = [name for _, name, _ in _layouts(model, weights)]
    raise FileFormatError(
        f"{source} has {listed([one_line(n, 80) for n in sorted(weights)], SHOWN) or 'no tensors'}; "
        f"valid are the names of {type(model).__name__}, with {' or '.join(known)}"
    )


def _variables(model: DetectorModule) -> Iterator[tuple[str, nnx.Variable]]:
    """Trained numbers and running statistics by path."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    for path, _ in nnx.to_flat_state(state):
        found: Any = model
        for name in path:
            found = found[name] if isinstance(name, int) else getattr(found, str(name))
        yield ".".join(map(str, path)), found


def _odd_names(sources: list[Source], weights: StateDict) -> tuple[set[str], set[str], tuple[str, ...]]:
    """Names that are missing, left over, and not needed."""
    needed = {name for s in sources for name in s.names}
    ignored = tuple(sorted(name for name in weights if name.endswith(IGNORED)))
    return needed - set(weights), set(weights) - {*needed, *ignored}, ignored


def _refuse_pixels(weights: StateDict, source: str) -> None:
    """Refuses weights that say they want colours normalised in another way than `PixelOptions` has it."""
    usual = {"data_preprocessor.mean": PixelOptions.mean, "data_preprocessor.std": PixelOptions.std}
    for name, value in weights.items():
        for end, wanted in usual.items():
            if name.endswith(end) and not any(
                np.allclose(np.ravel(value), w, rtol=1e-3) for w in (wanted, wanted[::-1])
            ):
                raise FileFormatError(
                    f"{source} says in {name} that colours are normalised by {np.ravel(value).tolist()}; "
                    f"valid is {list(wanted)}, in this or the opposite order"
                )


def _refuse_names(missing: set[str], extra: set[str], source: str, model: DetectorModule) -> None:
    parts = [
        f"{verb} {listed([one_line(n, 80) for n in sorted(names)], SHOWN)}"
        for verb, names in (("lacks", missing), ("also has", extra))
        if names
    ]
    if parts:
        raise FileFormatError(
            f"{source} {' and '.join(parts)}; valid are weights of {type(model).__name__} in this size"
        )


def _wrong_shapes(sources: list[Source], variables: dict[str, nnx.Variable], weights: StateDict) -> list[str]:
    """What is to be said of tensors of another shape than the model's."""
    wrong = []
    for s in sources:
        whole = s.layout.published(variables[s.path].get_value().shape)
        valid = (whole[0] // len(s.names), *whole[1:])
        wrong += [
            f"{n} has the shape {np.shape(weights[n])} (valid is {valid})"
            for n in s.names
            if np.shape(weights[n]) != valid
        ]
    return wrong


def _layouts(model: DetectorModule, weights: StateDict) -> Iterator[tuple[str, str, Iterator[Source]]]:
    """Each known layout, a name that only it has, and its mapping."""
    head = "keypoint_head" if "keypoint_head.final_layer.weight" in weights else "head"
    if isinstance(model, RTMPose):
        yield "MMPose", RTMPOSE_NAMES[0], _rtmpose(model)
    elif isinstance(model, HRNet):
        yield "MMPose", HRNET_NAMES[0], _hrnet(model, "backbone.", f"{head}.final_layer")
        yield "HRNet", HRNET_NAMES[1], _hrnet(model, "", "final_layer")
    else:
        place = weights.get("backbone.pos_embed")
        with_class = place is not None and np.shape(place)[1:2] == (len(model.place) + 1,)
        names = _vit_names_mmpose(head, PLACES_AND_CLASS if with_class else PLACES)
        yield "ViTPose", VITPOSE_NAMES[0], _vitpose(model, _vit_names(head))
        yield "MMPose", VITPOSE_NAMES[1], _vitpose(model, names)
        yield "transformers", VITPOSE_NAMES[2], _vitpose(model, _TRANSFORMERS)


def _norm(ours: str, theirs: str) -> Iterator[Source]:
    yield from _layer_norm(ours, theirs)
    yield Source(f"{ours}.mean", (f"{theirs}.running_mean",), AS_IS)
    yield Source(f"{ours}.var", (f"{theirs}.running_var",), AS_IS)


def _layer_norm(ours: str, theirs: str) -> Iterator[Source]:
    yield Source(f"{ours}.scale", (f"{theirs}.weight",), AS_IS)
    yield Source(f"{ours}.bias", (f"{theirs}.bias",), AS_IS)


def _biased(ours: str, theirs: str, layout: Layout) -> Iterator[Source]:
    yield Source(f"{ours}.kernel", (f"{theirs}.weight",), layout)
    yield Source(f"{ours}.bias", (f"{theirs}.bias",), AS_IS)


def _pair(ours: str, conv: str, norm: str) -> Iterator[Source]:
    """A convolution and its normalisation."""
    yield Source(f"{ours}.conv.kernel", (f"{conv}.weight",), CONVOLUTION)
    yield from _norm(f"{ours}.bn", norm)


def _module(ours: str, theirs: str) -> Iterator[Source]:
    """The same, as MMCV's ConvModule names them."""
    yield from _pair(ours, f"{theirs}.conv", f"{theirs}.bn")


def _rtmpose(model: RTMPose) -> Iterator[Source]:
    for i in range(len(model.backbone.stem)):
        yield from _module(f"backbone.stem.{i}", f"backbone.stem.{i}")
    for i, stage in enumerate(model.backbone.stages):
        ours, theirs = f"backbone.stages.{i}", f"backbone.stage{i + 1}"
        yield from _module(f"{ours}.down", f"{theirs}.0")
        cross = 1
        if stage.pooling is not None:
            cross = 2
            for part in ("conv1", "conv2"):
                yield from _module(f"{ours}.pooling.{part}", f"{theirs}.1.{part}")
        yield from _cross_stage(f"{ours}.cross", f"{theirs}.{cross}", len(stage.cross.blocks))
    yield from _rtmcc("head")


def _cross_stage(ours: str, theirs: str, blocks: int) -> Iterator[Source]:
    for part in ("main", "short", "final"):
        yield from _module(f"{ours}.{part}", f"{theirs}.{part}_conv")
    yield from _biased(f"{ours}.attention.fc", f"{theirs}.attention.fc", CONVOLUTION)
    for i in range(blocks):
        mine, other = f"{ours}.blocks.{i}", f"{theirs}.blocks.{i}"
        yield from _module(f"{mine}.conv1", f"{other}.conv1")
        deep = f"{other}.conv2.depthwise_conv"
        yield Source(f"{mine}.conv2.depthwise.kernel", (f"{deep}.conv.weight",), CONVOLUTION)
        yield from _norm(f"{mine}.conv2.bn", f"{deep}.bn")
        yield from _module(f"{mine}.conv2.pointwise", f"{other}.conv2.pointwise_conv")


def _rtmcc(head: str) -> Iterator[Source]:
    yield from _biased(f"{head}.final_layer", f"{head}.final_layer", WIDE_CONVOLUTION)
    yield Source(f"{head}.norm.g", (f"{head}.mlp.0.g",), AS_IS)
    for ours, theirs in (("mlp", "mlp.1"), ("cls_x", "cls_x"), ("cls_y", "cls_y")):
        yield Source(f"{head}.{ours}.kernel", (f"{head}.{theirs}.weight",), LINEAR)
    for part in ("uv", "o"):
        yield Source(f"{head}.gau.{part}.kernel", (f"{head}.gau.{part}.weight",), LINEAR)
    for part in ("gamma", "beta", "ln.g"):
        yield Source(f"{head}.gau.{part}", (f"{head}.gau.{part}",), AS_IS)
    yield Source(f"{head}.gau.res_scale", (f"{head}.gau.res_scale.scale",), AS_IS)


def _hrnet(model: HRNet, prefix: str, final: str) -> Iterator[Source]:
    for i in range(len(model.stem)):
        yield from _pair(f"stem.{i}", f"{prefix}conv{i + 1}", f"{prefix}bn{i + 1}")
    for i, block in enumerate(model.first):
        yield from _residual(f"first.{i}", f"{prefix}layer1.{i}", len(block.convs))
        if block.matched is not None:
            past = f"{prefix}layer1.{i}.downsample"
            yield from _pair(f"first.{i}.matched", f"{past}.0", f"{past}.1")
    yield from _pair("same", f"{prefix}transition1.0.0", f"{prefix}transition1.0.1")
    for i in range(len(model.lower)):
        step = f"{prefix}transition{i + 1}.{i + 1}.0"
        yield from _pair(f"lower.{i}", f"{step}.0", f"{step}.1")
    for i, modules in enumerate(model.stages):
        for j, module in enumerate(modules):
            ours, theirs = f"stages.{i}.{j}", f"{prefix}stage{i + 2}.{j}"
            for k, blocks in enumerate(module.branches):
                for m, block in enumerate(blocks):
                    last = f"branches.{k}.{m}"
                    yield from _residual(f"{ours}.{last}", f"{theirs}.{last}", len(block.convs))
            for k, chains in enumerate(module.fusions):
                for m, chain in enumerate(chains):
                    mine, other = f"{ours}.fusions.{k}.{m}.layers", f"{theirs}.fuse_layers.{k}.{m}"
                    for n in range(len(chain.layers)):
                        step = other if m > k else f"{other}.{n}"
                        yield from _pair(f"{mine}.{n}", f"{step}.0", f"{step}.1")
    yield from _biased("final_layer", final, CONVOLUTION)


def _residual(ours: str, theirs: str, convs: int) -> Iterator[Source]:
    for i in range(convs):
        yield from _pair(f"{ours}.convs.{i}", f"{theirs}.conv{i + 1}", f"{theirs}.bn{i + 1}")


@dataclass(frozen=True)
class _ViTNames:
    """Names of a ViTPose's parts; those of a block come after its number."""

    patches: str
    place: str
    places: Layout
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    linear: tuple[str, str, str]
    norm: str
    doublings: tuple[str, str]
    doubling_norms: tuple[str, str]
    final: str


def _vit_names(head: str) -> _ViTNames:
    return _ViTNames(
        "backbone.patch_embed.proj",
        "backbone.pos_embed",
        PLACES_AND_ALL,
        "backbone.blocks",
        ("norm1", "norm2"),
        ("attn.qkv",),
        ("attn.proj", "mlp.fc1", "mlp.fc2"),
        "backbone.last_norm",
        (f"{head}.deconv_layers.0", f"{head}.deconv_layers.3"),
        (f"{head}.deconv_layers.1", f"{head}.deconv_layers.4"),
        f"{head}.final_layer",
    )


def _vit_names_mmpose(head: str, places: Layout) -> _ViTNames:
    return replace(
        _vit_names(head),
        patches="backbone.patch_embed.projection",
        places=places,
        block="backbone.layers",
        norms=("ln1", "ln2"),
        linear=("attn.proj", "ffn.layers.0.0", "ffn.layers.1"),
        norm="backbone.ln1",
    )


_TRANSFORMERS = _ViTNames(
    "backbone.embeddings.patch_embeddings.projection",
    "backbone.embeddings.position_embeddings",
    PLACES_AND_ALL,
    "backbone.encoder.layer",
    ("layernorm_before", "layernorm_after"),
    tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    ("attention.output.dense", "mlp.fc1", "mlp.fc2"),
    "backbone.layernorm",
    ("head.deconv1", "head.deconv2"),
    ("head.batchnorm1", "head.batchnorm2"),
    "head.conv",
)


def _vitpose(model: ViTPose, names: _ViTNames) -> Iterator[Source]:
    yield from _biased("patches", names.patches, CONVOLUTION)
    yield Source("place", (names.place,), names.places)
    for i in range(len(model.layers)):
        ours, theirs = f"layers.{i}", f"{names.block}.{i}"
        for part, name in zip(("norm1", "norm2"), names.norms, strict=True):
            yield from _layer_norm(f"{ours}.{part}", f"{theirs}.{name}")
        for part, layout in (("kernel", LINEAR), ("bias", AS_IS)):
            torch = part.replace("kernel", "weight")
            found = tuple(f"{theirs}.{name}.{torch}" for name in names.qkv)
            yield Source(f"{ours}.attention.qkv.{part}", found, layout)
        for part, name in zip(("attention.proj", "fc1", "fc2"), names.linear, strict=True):
            yield from _biased(f"{ours}.{part}", f"{theirs}.{name}", LINEAR)
    yield from _layer_norm("norm", names.norm)
    for i, (name, norm) in enumerate(zip(names.doublings, names.doubling_norms, strict=True)):
        yield Source(f"doublings.{i}.kernel", (f"{name}.weight",), TRANSPOSED)
        yield from _norm(f"norms.{i}", norm)
    yield from _biased("final_layer", names.final, CONVOLUTION)
