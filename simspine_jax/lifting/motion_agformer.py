"""MotionAGFormer's design: attention and graph convolution side by side over joints and frames.

Source: S. Mehraban, V. Adeli and B. Taati, MotionAGFormer: Enhancing 3D human pose estimation with a
transformer-GCNFormer network, WACV 2024, and its public configurations. The extra small one has 12 layers of
64 features over 27 frames: 2.2 million parameters. A layer has two streams, each over the joints of a frame
and then over the frames of a joint; what they find is mixed by weights that the features choose. Its graph
over joints is the skeleton; the one over frames joins each to the two that are most like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.datasets.standardising import Statistics
from simspine_jax.errors import ShapeError
from simspine_jax.lifting.layers import Norm, Statistic
from simspine_jax.lifting.observations import (
    Lifted,
    Losses,
    Observation,
    Target,
    length,
    masked_mean,
    root_relative,
)
from simspine_jax.skeleton import KEYPOINT_NAMES, PARENTS

NEIGHBOURS = 2
"""Frames that the graph over time joins a frame to, itself among them; the extra small model's."""

FIRST_SCALE = 1e-5
"""What new layers add to their input is multiplied by this at first."""

VELOCITY_WEIGHT = 20.0
"""Of the error of frame to frame differences in the published loss."""

SCALE_FREE_WEIGHT = 0.5
"""Of the error after the best scale in the published loss."""

Axis = Literal["joints", "frames"]


@dataclass(frozen=True)
class MotionAGFormerOptions:
    """Sizes; the defaults are the extra small model's."""

    frames: int = 27
    layers: int = 12
    features: int = 64
    heads: int = 8
    expansion: int = 4
    representation: int = 512


class FlatLinear(nnx.Linear):
    """A linear layer that sees its input as one axis of rows.

    The gradient of its weights is then one product of matrices; over several axes, XLA first writes
    transposed copies on a CPU.
    """

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch D"]:
        """As the flax layer's."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact one, by erf as in PyTorch; JAX's is by erfc, which is slower on a CPU."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention of the second last axis' entries with each other."""

    def __init__(self, features: int, heads: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.qkv = FlatLinear(features, 3 * features, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = FlatLinear(features, features, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "*batch N C"], key: Array | None) -> Float[Array, "*batch N C"]:
        """The same in training and use."""
        parts = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        # Heads before entries: plain products of matrices, one for each head.
        q, k, v = jnp.moveaxis(parts, (-3, -2), (0, -3))
        logits = jnp.einsum("...mc,...nc->...mn", k, q * q.shape[-1] ** -0.5).astype(jnp.float32)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-2, keepdims=True)))
        # The softmax's division comes after the product, which has fewer numbers than the weights.
        mixed = jnp.einsum("...mn,...mc->...nc", weights.astype(x.dtype), v)
        mixed = mixed / weights.sum(axis=-2)[..., None].astype(x.dtype)
        return self.out(jnp.moveaxis(mixed, -3, -2).reshape(x.shape))


class GraphConvolution(nnx.Module):
    """Features of an entry and of its neighbours; the neighbours are given, or those most like it."""

    def __init__(
        self,
        features: int,
        nodes: int,
        links: Bool[np.ndarray, "N N"] | None,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        initial = nnx.initializers.normal(np.sqrt(2.0 / features))
        self.own = FlatLinear(features, features, kernel_init=initial, dtype=dtype, rngs=rngs)
        self.others = FlatLinear(features, features, kernel_init=initial, dtype=dtype, rngs=rngs)
        # As published: statistics of each node over batch and features.
        self.norm = Norm(nodes, rngs=rngs)
        self.links = None if links is None else tuple(map(tuple, links.astype(int).tolist()))

    def __call__(self, x: Float[Array, "*batch N C"], key: Array | None) -> Float[Array, "*batch N C"]:
        """With a key as in training, else as in use."""
        links = most_alike(x) if self.links is None else jnp.asarray(self.links, x.dtype)
        # Every node has a link, so that none divides by zero.
        share = jax.lax.rsqrt(links.sum(axis=-1))
        weights = share[..., :, None] * links * share[..., None, :]
        found = weights @ self.others(x) + self.own(x)
        normal = jnp.swapaxes(self.norm.apply(jnp.swapaxes(found, -1, -2), key), -1, -2)
        return nnx.relu(x + normal)


def most_alike(x: Float[Array, "*batch N C"]) -> Float[Array, "*batch N N"]:
    """1 where the second entry is among the `NEIGHBOURS` whose features have the largest product."""
    alike = jax.lax.stop_gradient(jnp.einsum("...nc,...mc->...nm", x, x))
    least, rest = alike.max(axis=-1, keepdims=True), alike
    for _ in range(NEIGHBOURS - 1):
        rest = jnp.where(rest >= least, -jnp.inf, rest)
        least = rest.max(axis=-1, keepdims=True)
    return (alike >= least).astype(x.dtype)


class Block(nnx.Module):
    """A mixer over joints or frames, then two linear layers; both added to their input by learned weights."""

    def __init__(
        self,
        mixer: Callable[[Array, Array | None], Array],
        over: Axis,
        options: MotionAGFormerOptions,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        features, wide = options.features, options.features * options.expansion
        self.norms = nnx.List([nnx.LayerNorm(features, epsilon=1e-5, rngs=rngs) for _ in range(2)])
        self.scales = nnx.List([nnx.Param(jnp.full(features, FIRST_SCALE, jnp.float32)) for _ in range(2)])
        self.mixer = mixer
        self.wide = FlatLinear(features, wide, dtype=dtype, rngs=rngs)
        self.narrow = FlatLinear(wide, features, dtype=dtype, rngs=rngs)
        self.over = over

    def __call__(self, x: Float[Array, "*batch T J C"], key: Array | None) -> Float[Array, "*batch T J C"]:
        """With a key as in training, else as in use."""
        mixed = self.norms[0](x)
        if self.over == "frames":
            mixed = jnp.swapaxes(self.mixer(jnp.swapaxes(mixed, -2, -3), key), -2, -3)
        else:
            mixed = self.mixer(mixed, key)
        x = x + self.scales[0] * mixed
        hidden = gelu(self.wide(self.norms[1](x)))
        return x + self.scales[1] * self.narrow(hidden)


class Layer(nnx.Module):
    """Two streams and the weights that mix them."""

    def __init__(
        self,
        links: Bool[np.ndarray, "J J"],
        options: MotionAGFormerOptions,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        width, more = options.features, {"dtype": dtype, "rngs": rngs}
        attention = [Attention(width, options.heads, **more) for _ in range(2)]
        graph = [
            GraphConvolution(width, len(links), links, **more),
            GraphConvolution(width, options.frames, None, **more),
        ]
        axes: tuple[Axis, Axis] = ("joints", "frames")
        self.attention = nnx.List(
            [Block(m, a, options, **more) for m, a in zip(attention, axes, strict=True)]
        )
        self.graph = nnx.List([Block(m, a, options, **more) for m, a in zip(graph, axes, strict=True)])
        self.mix = FlatLinear(
            2 * width, 2, kernel_init=nnx.initializers.zeros, bias_init=nnx.initializers.constant(0.5), **more
        )

    def __call__(self, x: Float[Array, "*batch T J C"], key: Array | None) -> Float[Array, "*batch T J C"]:
        """With a key as in training, else as in use."""
        first = self.attention[1](self.attention[0](x, key), key)
        second = self.graph[1](self.graph[0](x, key), key)
        share = jax.nn.softmax(self.mix(jnp.concatenate([first, second], axis=-1)), axis=-1)
        return share[..., :1] * first + share[..., 1:] * second


class MotionAGFormer(nnx.Module):
    """The lifter of windows.

    Its input are standardised pixels and the confidence; its output are standardised positions.

    Args:
        options: sizes.
        statistics: of the training set; its keypoints are those of input and output.
        dtype: of the arithmetic in linear layers; None for that of the weights.
        rngs: of the first weights.
    """

    def __init__(
        self,
        options: MotionAGFormerOptions,
        statistics: Statistics,
        *,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        links = skeleton_links(statistics.keypoint_names)
        width, more = options.features, {"dtype": dtype, "rngs": rngs}
        self.embed = FlatLinear(3, width, **more)
        self.place = nnx.Param(jnp.zeros((len(links), width), jnp.float32))
        self.layers = nnx.List([Layer(links, options, **more) for _ in range(options.layers)])
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.represent = FlatLinear(width, options.representation, **more)
        self.head = FlatLinear(options.representation, 3, **more)
        self.statistics = Statistic(jax.tree.map(jnp.asarray, statistics))
        self.frames = options.frames

    def __call__(self, seen: Observation, *, key: Array | None = None) -> Lifted:
        """Root-relative positions of windows ``[*batch T …]``; see `Lifter`.

        Raises:
            ShapeError: the windows have another length.
        """
        if seen.mask.ndim < 2 or seen.mask.shape[-2] != self.frames:
            raise ShapeError(
                f"The observation has the shape {seen.mask.shape}; valid are windows [..., {self.frames}, K]"
            )
        statistics = self.statistics.get_value()
        pixels = jnp.where(seen.mask[..., None], statistics.standardise_2d(seen.pixels), 0.0)
        x = self.embed(jnp.concatenate([pixels, seen.confidence[..., None]], axis=-1)) + self.place
        for layer in self.layers:
            x = layer(x, key)
        out = self.head(jnp.tanh(self.represent(self.norm(x)))).astype(jnp.float32)
        others = jnp.delete(out, seen.root, axis=-2) - out[..., seen.root, None, :]
        return Lifted(statistics.restore_3d(others))

    def loss(self, seen: Observation, target: Target, *, key: Array) -> tuple[Array, Losses]:
        """The published loss: positions, positions after the best scale, and their change over frames, m."""
        wanted = root_relative(target.keypoints, seen.root)
        mask = target.mask & target.mask[..., seen.root, None]
        found = self(seen, key=key).keypoints
        position = masked_mean(length(found - wanted), mask)
        both = jnp.where(mask[..., None], found * wanted, 0.0).sum((-1, -2))
        own = jnp.where(mask[..., None], found * found, 0.0).sum((-1, -2))
        scale = (both / jnp.maximum(own, 1e-9))[..., None, None]
        scale_free = masked_mean(length(scale * found - wanted), mask)
        change = jnp.diff(found, axis=-3) - jnp.diff(wanted, axis=-3)
        velocity = masked_mean(length(change), mask[..., 1:, :] & mask[..., :-1, :])
        loss = position + SCALE_FREE_WEIGHT * scale_free + VELOCITY_WEIGHT * velocity
        return loss, {"mpjpe_mm": 1e3 * position, "velocity_mm": 1e3 * velocity}


def skeleton_links(names: tuple[str, ...]) -> Bool[np.ndarray, "K K"]:
    """Which keypoints are joined: each with the nearest of its parents that is among these.

    Args:
        names: of `skeleton.KEYPOINT_NAMES`.
    """
    links = np.zeros((len(names), len(names)), bool)
    for child, name in enumerate(names):
        parent = int(PARENTS[KEYPOINT_NAMES.index(name)])
        while parent >= 0 and KEYPOINT_NAMES[parent] not in names:
            parent = int(PARENTS[parent])
        if parent >= 0:
            other = names.index(KEYPOINT_NAMES[parent])
            links[child, other] = links[other, child] = True
    return links
