"""CSPNeXt: the backbone of RTMDet and RTMPose.

Source: C. Lyu et al., RTMDet: An empirical study of designing real-time object detectors, arXiv 2212.07784,
and its public configuration P5. A stem and four stages, each of which halves the picture; a stage splits its
channels in two, sends one half through blocks of a 3x3 and a depthwise 5x5 convolution, weighs the channels
of both and mixes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from simspine_jax.arrays import Array, Float
from simspine_jax.detection.layers import Conv, ConvNorm, Depthwise, Form, Norm, max_pool, silu

STAGES = ((128, 3, True, False), (256, 6, True, False), (512, 6, True, False), (1024, 3, False, True))
"""Channels and blocks of the large model's stages; whether they are added to their input; whether pooled."""

POOLED = (5, 9, 13)
"""Windows of the pyramid pooling; each is the one before it, pooled again by 5."""

STRIDE = 32
"""Pixels between two places of the features."""


@dataclass(frozen=True)
class CSPNeXtOptions:
    """Shares of the large model.

    Attributes:
        deepen: of the number of blocks.
        widen: of the number of channels.
    """

    deepen: float = 1.0
    widen: float = 1.0

    def channels(self, large: int) -> int:
        """Of so many of the large model."""
        return int(large * self.widen)

    def blocks(self, large: int) -> int:
        """Of so many of the large model; at least one."""
        return max(round(large * self.deepen), 1)


class Separable(nnx.Module):
    """A depthwise 5x5 convolution and one over channels, each normalised and activated."""

    def __init__(self, n: int, form: Form, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.depthwise, self.bn = Depthwise(n, 5, form, dtype=dtype, rngs=rngs), Norm(n)
        self.pointwise = ConvNorm(n, n, 1, activation=silu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B H W C"]:
        """With a key as in training, else as in use."""
        return self.pointwise(silu(self.bn(self.depthwise(x), key)), key)


class Block(nnx.Module):
    """A 3x3 and a separable 5x5 convolution, added to their input or not."""

    def __init__(self, n: int, added: bool, form: Form, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(n, n, 3, activation=silu, dtype=dtype, rngs=rngs)
        self.conv2 = Separable(n, form, dtype=dtype, rngs=rngs)
        self.added = added

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B H W C"]:
        """With a key as in training, else as in use."""
        found = self.conv2(self.conv1(x, key), key)
        return x + found if self.added else found


class ChannelAttention(nnx.Module):
    """Channels weighed by what their means say."""

    def __init__(self, n: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.fc = Conv(n, n, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The same in training and use."""
        mean = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        return x * jax.nn.hard_sigmoid(self.fc(mean))


class CrossStage(nnx.Module):
    """Half of the channels through blocks, half past them; both mixed."""

    def __init__(
        self, n: int, blocks: int, added: bool, form: Form, *, dtype: jnp.dtype | None, rngs: nnx.Rngs
    ):
        half = n // 2
        self.main, self.short = (
            ConvNorm(n, half, 1, activation=silu, dtype=dtype, rngs=rngs) for _ in range(2)
        )
        self.blocks = nnx.List([Block(half, added, form, dtype=dtype, rngs=rngs) for _ in range(blocks)])
        self.attention = ChannelAttention(2 * half, dtype=dtype, rngs=rngs)
        self.final = ConvNorm(2 * half, n, 1, activation=silu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B H W C"]:
        """With a key as in training, else as in use."""
        short, x = self.short(x, key), self.main(x, key)
        for block in self.blocks:
            x = block(x, key)
        return self.final(self.attention(jnp.concatenate([x, short], axis=-1)), key)


class PyramidPooling(nnx.Module):
    """The largest features of windows of several sizes, mixed."""

    def __init__(self, n: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(n, n // 2, 1, activation=silu, dtype=dtype, rngs=rngs)
        wide = n // 2 * (1 + len(POOLED))
        self.conv2 = ConvNorm(wide, n, 1, activation=silu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B H W C"]:
        """With a key as in training, else as in use."""
        pooled = [self.conv1(x, key)]
        for size, smaller in zip(POOLED, (1, *POOLED), strict=False):
            pooled.append(max_pool(pooled[-1], size - smaller + 1))
        return self.conv2(jnp.concatenate(pooled, axis=-1), key)


class Stage(nnx.Module):
    """Halves the picture, pools it if it is the last, and sends it through blocks."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        blocks: int,
        added: bool,
        pooled: bool,
        form: Form,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.down = ConvNorm(n_in, n_out, 3, 2, activation=silu, dtype=dtype, rngs=rngs)
        self.pooling = PyramidPooling(n_out, dtype=dtype, rngs=rngs) if pooled else None
        self.cross = CrossStage(n_out, blocks, added, form, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B I J D"]:
        """With a key as in training, else as in use."""
        x = self.down(x, key)
        return self.cross(x if self.pooling is None else self.pooling(x, key), key)


class CSPNeXt(nnx.Module):
    """The backbone.

    Args:
        options: sizes.
        form: of depthwise convolutions.
        dtype: of the arithmetic in convolutions; None for that of the weights.
        rngs: of the first weights.
    """

    def __init__(self, options: CSPNeXtOptions, form: Form, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        n = options.channels(64)
        sizes = ((3, n // 2, 2), (n // 2, n // 2, 1), (n // 2, n, 1))
        self.stem = nnx.List(
            [ConvNorm(i, o, 3, s, activation=silu, dtype=dtype, rngs=rngs) for i, o, s in sizes]
        )
        self.stages = nnx.List()
        for large, blocks, added, pooled in STAGES:
            n_out, count = options.channels(large), options.blocks(blocks)
            self.stages.append(Stage(n, n_out, count, added, pooled, form, dtype=dtype, rngs=rngs))
            n = n_out
        self.n_out = n

    def __call__(self, x: Float[Array, "B H W 3"], key: Array | None) -> Float[Array, "B H/32 W/32 C"]:
        """The last stage's features; with a key as in training, else as in use."""
        for layer in (*self.stem, *self.stages):
            x = layer(x, key)
        return x
