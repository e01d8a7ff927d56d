"""SimpleBaseline3D: a residual network of linear layers from one frame's keypoints to positions.

Source: J. Martinez, R. Hossain, J. Romero and J. J. Little, A simple yet effective baseline for 3d human pose
estimation, ICCV 2017. Pixels and positions are standardised joint by joint; the root keypoint is left out of
the output and put back as zero. With 15 keypoints it has 4.28 million parameters, with 37 it has 4.40.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simspine_jax.arrays import Array, Float
from simspine_jax.datasets.standardising import Statistics
from simspine_jax.layers import layer_keys
from simspine_jax.lifting.layers import Linear, Norm, Statistic, dropout
from simspine_jax.lifting.observations import (
    Lifted,
    Losses,
    Observation,
    Target,
    length,
    masked_mean,
    root_relative,
)


@dataclass(frozen=True)
class SimpleBaselineOptions:
    """Sizes of the network; the defaults are the published ones."""

    width: int = 1024
    blocks: int = 2
    dropout: float = 0.5


class Layer(nnx.Module):
    """Linear, batch normalisation, ReLU, dropout."""

    def __init__(self, n_in: int, n_out: int, rate: float, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.linear = Linear(n_in, n_out, dtype=dtype, rngs=rngs)
        self.norm = Norm(n_out, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Float[Array, "*batch C"], key: Array | None) -> Float[Array, "*batch D"]:
        """With a key as in training, else as in use."""
        return dropout(nnx.relu(self.norm.apply(self.linear(x), key)), self.rate, key)


class ResidualStack(nnx.Module):
    """A stem and blocks of two layers, each block added to what it came from."""

    def __init__(self, n_in: int, options: SimpleBaselineOptions, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        width, rate = options.width, options.dropout
        self.stem = Layer(n_in, width, rate, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [Layer(width, width, rate, dtype=dtype, rngs=rngs) for _ in range(2 * options.blocks)]
        )

    def __call__(self, x: Float[Array, "*batch C"], key: Array | None) -> Float[Array, "*batch D"]:
        """With a key as in training, else as in use."""
        keys = layer_keys(key, 1 + len(self.layers))
        x = self.stem(x, keys[0])
        for i in range(0, len(self.layers), 2):
            x = x + self.layers[i + 1](self.layers[i](x, keys[i + 1]), keys[i + 2])
        return x


class SimpleBaseline(nnx.Module):
    """The lifter of single frames.

    Args:
        options: sizes.
        statistics: of the training set; its keypoints are those of input and output.
        dtype: of the arithmetic in linear layers; None for that of the weights.
        rngs: of the first weights.
    """

    def __init__(
        self,
        options: SimpleBaselineOptions,
        statistics: Statistics,
        *,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        n_keypoints = len(statistics.keypoint_names)
        self.stack = ResidualStack(2 * n_keypoints, options, dtype=dtype, rngs=rngs)
        self.head = Linear(options.width, 3 * (n_keypoints - 1), dtype=dtype, rngs=rngs)
        self.statistics = Statistic(jax.tree.map(jnp.asarray, statistics))

    def standardised(self, seen: Observation, key: Array | None) -> Float[Array, "*batch K-1 3"]:
        """The network's own output: standardised positions without the root."""
        pixels = self.statistics.get_value().standardise_2d(seen.pixels)
        # A missing keypoint is put where it is in the mean.
        pixels = jnp.where(seen.mask[..., None], pixels, 0.0)
        out = self.head(self.stack(pixels.reshape(*pixels.shape[:-2], -1), key)).astype(jnp.float32)
        return out.reshape(*out.shape[:-1], -1, 3)

    def __call__(self, seen: Observation, *, key: Array | None = None) -> Lifted:
        """Root-relative positions; see `Lifter`."""
        return Lifted(self.statistics.get_value().restore_3d(self.standardised(seen, key)))

    def loss(self, seen: Observation, target: Target, *, key: Array) -> tuple[Array, Losses]:
        """Mean squared error of standardised coordinates; and the mean distance in millimetres beside it."""
        statistics, root = self.statistics.get_value(), seen.root
        relative = root_relative(target.keypoints, root)
        mask = target.mask & target.mask[..., root, None]
        found, wanted = self.standardised(seen, key), statistics.standardise_3d(relative)
        loss = masked_mean((found - wanted) ** 2, jnp.delete(mask, root, axis=-1)[..., None])
        error = masked_mean(length(statistics.restore_3d(found) - relative), mask)
        return loss, {"mpjpe_mm": 1e3 * error}


def count_parameters(model: nnx.Module) -> int:
    """Number of trained numbers; statistics of batches and of the data are not among them."""
    state = nnx.state(model, nnx.Param)
    return sum(int(np.prod(value.shape)) for _, value in nnx.to_flat_state(state))
