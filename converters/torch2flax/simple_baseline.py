"""SimpleBaseline3D's PyTorch weights in the Flax model.

Two layouts are known by their names: that of the PyTorch port of the original (``w1``, ``batch_norm1``,
``linear_stages.0.w1`` …), and MMPose's, whose linear layers are convolutions of one frame
(``backbone.expand_conv.conv.weight`` …, ``head.conv.weight``) and have no bias before a normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.errors import FileFormatError, one_line
from simspine_jax.lifting.simple_baseline import Layer, SimpleBaseline
from torch2flax.reading import StateDict

_PORT, _MMPOSE = "w1.weight", "backbone.expand_conv.conv.weight"


def load_simple_baseline(model: SimpleBaseline, weights: StateDict, source: str = "the state dict") -> None:
    """Puts a state dict's weights into a model.

    Args:
        model: of the same sizes; its statistics of the data stay, as state dicts don't hold them.
        weights: of `read_state_dict`.
        source: what errors call them.

    Raises:
        FileFormatError: the names are of no known layout, one is missing or left over, or a size differs.
    """
    left = {n for n in weights if not n.endswith("num_batches_tracked")}
    for linear, norm, layer in _layers(model, weights, source):
        _set_linear(layer.linear if isinstance(layer, Layer) else layer, linear, weights, left, source)
        if isinstance(layer, Layer):
            for name, ours in (
                ("weight", "scale"),
                ("bias", "bias"),
                ("running_mean", "mean"),
                ("running_var", "var"),
            ):
                _set(getattr(layer.norm, ours), f"{norm}.{name}", weights, left, source)
    if left:
        raise FileFormatError(
            f"{source} also has {one_line(sorted(left)[0])} and {len(left) - 1} more; valid are the weights "
            f"of SimpleBaseline3D with {len(model.stack.layers) // 2} blocks"
        )


def _layers(
    model: SimpleBaseline, weights: StateDict, source: str
) -> Iterator[tuple[str, str, Layer | nnx.Linear]]:
    """Names of the linear part and of the normalisation, beside the layer of ours."""
    layers = list(model.stack.layers)
    if _PORT in weights:
        yield "w1", "batch_norm1", model.stack.stem
        for i, layer in enumerate(layers):
            stage = f"linear_stages.{i // 2}"
            yield f"{stage}.w{i % 2 + 1}", f"{stage}.batch_norm{i % 2 + 1}", layer
        yield "w2", "", model.head
    elif _MMPOSE in weights:
        yield "backbone.expand_conv.conv", "backbone.expand_conv.bn", model.stack.stem
        for i, layer in enumerate(layers):
            block = f"backbone.tcn_blocks.{i // 2}.conv{i % 2 + 1}"
            yield f"{block}.conv", f"{block}.bn", layer
        yield "head.conv", "", model.head
    else:
        names = ", ".join(sorted(weights)[:3])
        raise FileFormatError(
            f"{source} has {names} …; valid are the names of SimpleBaseline3D, with {_PORT} or {_MMPOSE}"
        )


def _set_linear(layer: nnx.Linear, name: str, weights: StateDict, left: set[str], source: str) -> None:
    weight = _taken(f"{name}.weight", weights, left, source)
    # A convolution over one frame has a last axis of length one.
    weight = weight[..., 0] if weight.ndim == 3 and weight.shape[-1] == 1 else weight
    _put(layer.kernel, weight.T, f"{name}.weight", source)
    assert layer.bias is not None
    if f"{name}.bias" in weights:
        _set(layer.bias, f"{name}.bias", weights, left, source)
    else:
        layer.bias.set_value(jnp.zeros_like(layer.bias.get_value()))


def _set(variable: nnx.Variable, name: str, weights: StateDict, left: set[str], source: str) -> None:
    _put(variable, _taken(name, weights, left, source), name, source)


def _taken(name: str, weights: StateDict, left: set[str], source: str) -> NDArray[np.float32]:
    if name not in weights:
        raise FileFormatError(f"{source} lacks {name}; valid are the weights of a model of this size")
    left.discard(name)
    return np.asarray(weights[name], np.float32)


def _put(variable: nnx.Variable, value: NDArray[np.float32], name: str, source: str) -> None:
    wanted = variable.get_value().shape
    if value.shape != wanted:
        raise FileFormatError(
            f"{name} of {source} has the shape {value.shape[::-1]}; valid is {wanted[::-1]}"
        )
    variable.set_value(jnp.asarray(value))
