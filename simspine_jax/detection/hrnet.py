"""HRNet: features at four resolutions side by side, the highest all the way.

Source: K. Sun, B. Xiao, D. Liu and J. Wang, Deep high-resolution representation learning for human pose
estimation, CVPR 2019. The one of width 32 has 28.54 million parameters with 37 keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from simspine_jax.arrays import Array, Float
from simspine_jax.detection.layers import (
    SMALL,
    Conv,
    ConvNorm,
    enlarged,
    require_multiple,
    require_pictures,
    sum_of,
)
from simspine_jax.pictures import CROP_SIZE
from simspine_jax.skeleton import KEYPOINT_NAMES

STEM = 64
"""Channels of the stem and, inside its blocks, of the first stage."""

EXPANSION = 4
"""How many times more channels a block of the first stage gives than it has inside."""

BLOCKS = 4
"""Blocks of a branch in each module, and of the first stage."""

CELL = 4
"""Pixels of a picture to a cell of a heat map."""

LOWEST = 32
"""Pixels to a cell of the lowest resolution."""


@dataclass(frozen=True)
class HRNetOptions:
    """Sizes of the network; the defaults are HRNet-w32's.

    Attributes:
        width: channels of the highest resolution; each lower one has twice as many.
        modules: of the stages with two, three and four resolutions.
        keypoints: their number.
        size: height and width of pictures, px; multiples of 32.
    """

    width: int = 32
    modules: tuple[int, int, int] = (1, 4, 3)
    keypoints: int = len(KEYPOINT_NAMES)
    size: tuple[int, int] = CROP_SIZE


HRNET_W32 = HRNetOptions()


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1, added to the input."""

    def __init__(self, n_in: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        n_out, more = STEM * EXPANSION, {"dtype": dtype, "rngs": rngs}
        self.convs = nnx.List(
            [
                ConvNorm(n_in, STEM, 1, activation=nnx.relu, **more),
                ConvNorm(STEM, STEM, 3, activation=nnx.relu, **more),
                ConvNorm(STEM, n_out, 1, activation=None, **more),
            ]
        )
        self.matched = ConvNorm(n_in, n_out, 1, activation=None, **more) if n_in != n_out else None

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B H W D"]:
        """With a key as in training, else as in use."""
        past = x if self.matched is None else self.matched(x, key)
        for conv in self.convs:
            x = conv(x, key)
        return nnx.relu(x + past)


class BasicBlock(nnx.Module):
    """Two 3x3, added to the input."""

    def __init__(self, n: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [ConvNorm(n, n, 3, activation=a, dtype=dtype, rngs=rngs) for a in (nnx.relu, None)]
        )

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B H W C"]:
        """With a key as in training, else as in use."""
        return nnx.relu(x + self.convs[1](self.convs[0](x, key), key))


class Chain(nnx.Module):
    """Layers one after the other, and at the end the picture enlarged; without layers it changes nothing."""

    def __init__(self, layers: list[ConvNorm], times: int = 1):
        self.layers, self.times = nnx.List(layers), times

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B I J D"]:
        """With a key as in training, else as in use."""
        for layer in self.layers:
            x = layer(x, key)
        return enlarged(x, self.times) if self.times > 1 else x


def exchange(source: int, target: int, width: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs) -> Chain:
    """From one resolution's features to another's; 0 is the highest."""
    more = {"dtype": dtype, "rngs": rngs}
    n_in, n_out = width << source, width << target
    if source >= target:
        up = [ConvNorm(n_in, n_out, 1, activation=None, **more)] if source > target else []
        return Chain(up, 1 << (source - target))
    down = [ConvNorm(n_in, n_in, 3, 2, activation=nnx.relu, **more) for _ in range(target - source - 1)]
    return Chain([*down, ConvNorm(n_in, n_out, 3, 2, activation=None, **more)])


class HRModule(nnx.Module):
    """Blocks at each resolution, then each resolution's features added to those of the others.

    Args:
        resolutions: that come in.
        given: that go out, from the highest.
        width: channels of the highest.
        dtype: of the arithmetic in convolutions; None for that of the weights.
        rngs: of the first weights.
    """

    def __init__(self, resolutions: int, given: int, width: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        more, every = {"dtype": dtype, "rngs": rngs}, range(resolutions)
        self.branches = nnx.List(
            [nnx.List([BasicBlock(width << i, **more) for _ in range(BLOCKS)]) for i in every]
        )
        self.fusions = nnx.List(
            [nnx.List([exchange(j, i, width, **more) for j in every]) for i in range(given)]
        )

    def __call__(self, features: list[Array], key: Array | None) -> list[Array]:
        """With a key as in training, else as in use."""
        passed = []
        for x, blocks in zip(features, self.branches, strict=True):
            for block in blocks:
                x = block(x, key)
            passed.append(x)
        return [
            nnx.relu(sum_of([chain(x, key) for chain, x in zip(chains, passed, strict=True)]))
            for chains in self.fusions
        ]


class HRNet(nnx.Module):
    """The detector.

    Args:
        options: sizes.
        dtype: of the arithmetic; None for that of the weights.
        rngs: of the first weights.

    Raises:
        ShapeError: the pictures' size is no multiple of 32.
    """

    def __init__(self, options: HRNetOptions, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        require_multiple(options.size, LOWEST)
        more, width = {"dtype": dtype, "rngs": rngs}, options.width
        first = STEM * EXPANSION
        self.stem = nnx.List([ConvNorm(n, STEM, 3, 2, activation=nnx.relu, **more) for n in (3, STEM)])
        self.first = nnx.List([Bottleneck(STEM if i == 0 else first, **more) for i in range(BLOCKS)])
        # What makes the second resolution sees the first stage; later ones see the lowest so far.
        self.same = ConvNorm(first, width, 3, activation=nnx.relu, **more)
        sources = (first, width << 1, width << 2)
        self.lower = nnx.List(
            [ConvNorm(n, width << (i + 1), 3, 2, activation=nnx.relu, **more) for i, n in enumerate(sources)]
        )
        self.stages = nnx.List()
        for resolutions, count in enumerate(options.modules, start=2):
            given = [resolutions] * count
            if resolutions == 1 + len(options.modules):
                given[-1] = 1  # only the highest is looked at
            self.stages.append(nnx.List([HRModule(resolutions, n, width, **more) for n in given]))
        self.final_layer = Conv(width, options.keypoints, 1, bias=True, initial=SMALL, **more)
        self.size = options.size

    def __call__(
        self, pictures: Float[Array, "B H W 3"], *, key: Array | None = None
    ) -> Float[Array, "B H/4 W/4 K"]:
        """Heat maps.

        Args:
            pictures: normalised as in the weights' training.
            key: of this step in training; none in use.

        Raises:
            ShapeError: the pictures have another size.
        """
        require_pictures(pictures, self.size)
        x = pictures
        for layer in (*self.stem, *self.first):
            x = layer(x, key)
        features = [self.same(x, key), self.lower[0](x, key)]
        for i, modules in enumerate(self.stages):
            if i > 0:
                features.append(self.lower[i](features[-1], key))
            for module in modules:
                features = module(features, key)
        return self.final_layer(features[0]).astype(jnp.float32)
