"""ViTPose: a plain vision transformer and two transposed convolutions.

Source: Y. Xu, J. Zhang, Q. Zhang and D. Tao, ViTPose: Simple vision transformer baselines for human pose
estimation, NeurIPS 2022. The base one has 90.0 million parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from simspine_jax.arrays import Array, Float
from simspine_jax.detection.layers import (
    SMALL,
    Conv,
    Doubling,
    Norm,
    drop_path,
    operands,
    require_multiple,
    require_pictures,
)
from simspine_jax.layers import layer_keys
from simspine_jax.pictures import CROP_SIZE
from simspine_jax.skeleton import KEYPOINT_NAMES

PATCH = 16
"""Pixels of a patch in each direction."""

PADDING = 2
"""Pixels by which the patches lie further up and left than the picture."""

EPSILON = 1e-6
"""Of the layers' normalisations."""

DOUBLED = 256
"""Channels of the transposed convolutions."""

_LINEAR = nnx.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class ViTPoseOptions:
    """Sizes of the network; the defaults are ViTPose-b's.

    Attributes:
        width: features of a patch.
        layers: of the transformer.
        heads: of its attention.
        expansion: how many times wider the layers are inside.
        drop_path: share of the samples for which the last layer's paths are left out in training; of the
            first layer's none are.
        keypoints: their number.
        size: height and width of pictures, px; multiples of 16.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    expansion: int = 4
    drop_path: float = 0.3
    keypoints: int = len(KEYPOINT_NAMES)
    size: tuple[int, int] = CROP_SIZE


VITPOSE_B = ViTPoseOptions()


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32."""

    def __init__(self, n: int, *, rngs: nnx.Rngs):
        super().__init__(n, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)


class Patches(nnx.Module):
    """One linear layer over each patch of a padded picture."""

    def __init__(self, n: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        shape = (PATCH, PATCH, 3, n)
        self.kernel = nnx.Param(_LINEAR(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(n, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H/16*W/16 C"]:
        """The same in training and use."""
        x, kernel = operands(x, self.kernel, self.dtype)
        b, h, w, c = x.shape
        # Of the padding on the other two sides no patch is whole, so the last pixels are seen by none.
        x = jnp.pad(x, ((0, 0), (PADDING, 0), (PADDING, 0), (0, 0)))[:, :h, :w]
        x = x.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c).swapaxes(2, 3)
        x = x.reshape(b, -1, PATCH * PATCH * c)
        return x @ kernel.reshape(x.shape[-1], -1) + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention of patches."""

    def __init__(self, n: int, heads: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(n, 3 * n, kernel_init=_LINEAR, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(n, n, kernel_init=_LINEAR, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B P C"]:
        """The same in training and use."""
        parts = self.qkv(x)
        parts = parts.reshape(*parts.shape[:2], 3, self.heads, -1)
        mixed = jax.nn.dot_product_attention(*(parts[:, :, i] for i in range(3)))
        return self.proj(mixed.reshape(*mixed.shape[:2], -1))


class Layer(nnx.Module):
    """Attention and two linear layers, both added to their input."""

    def __init__(self, options: ViTPoseOptions, rate: float, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        n, wide = options.width, options.width * options.expansion
        self.norm1, self.norm2 = LayerNorm(n, rngs=rngs), LayerNorm(n, rngs=rngs)
        self.attention = Attention(n, options.heads, dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(n, wide, kernel_init=_LINEAR, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, n, kernel_init=_LINEAR, dtype=dtype, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Float[Array, "B P C"], key: Array | None) -> Float[Array, "B P C"]:
        """With a key as in training, else as in use."""
        first, second = layer_keys(key, 2)
        x = x + drop_path(self.attention(self.norm1(x)), self.rate, first)
        hidden = nnx.gelu(self.fc1(self.norm2(x)), approximate=False)
        return x + drop_path(self.fc2(hidden), self.rate, second)


class ViTPose(nnx.Module):
    """The detector. What layers are added to stays float32.

    Args:
        options: sizes.
        dtype: of the arithmetic; None for that of the weights.
        rngs: of the first weights.

    Raises:
        ShapeError: the pictures' size is no multiple of 16.
    """

    def __init__(self, options: ViTPoseOptions, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        require_multiple(options.size, PATCH)
        more, n = {"dtype": dtype, "rngs": rngs}, options.width
        height, width = (length // PATCH for length in options.size)
        self.patches = Patches(n, **more)
        self.place = nnx.Param(_LINEAR(rngs.params(), (height * width, n), jnp.float32))
        steps = max(options.layers - 1, 1)
        self.layers = nnx.List(
            [Layer(options, options.drop_path * i / steps, **more) for i in range(options.layers)]
        )
        self.norm = LayerNorm(n, rngs=rngs)
        self.doublings = nnx.List([Doubling(i, DOUBLED, **more) for i in (n, DOUBLED)])
        self.norms = nnx.List([Norm(DOUBLED) for _ in range(2)])
        self.final_layer = Conv(DOUBLED, options.keypoints, 1, bias=True, initial=SMALL, **more)
        self.size = options.size

    def __call__(
        self, pictures: Float[Array, "B H W 3"], *, key: Array | None = None
    ) -> Float[Array, "B H/4 W/4 K"]:
        """Heat maps.

        Args:
            pictures: normalised as in the weights' training.
            key: of this step in training, of which dropped paths are drawn; none in use.

        Raises:
            ShapeError: the pictures have another size.
        """
        require_pictures(pictures, self.size)
        x = self.patches(pictures).astype(jnp.float32) + self.place[...]
        for layer, own in zip(self.layers, layer_keys(key, len(self.layers)), strict=True):
            x = layer(x, own)
        x = self.norm(x).reshape(len(x), self.size[0] // PATCH, self.size[1] // PATCH, -1)
        for doubling, norm in zip(self.doublings, self.norms, strict=True):
            x = nnx.relu(norm(doubling(x), key))
        return self.final_layer(x).astype(jnp.float32)
