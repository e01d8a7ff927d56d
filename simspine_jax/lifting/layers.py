"""Layers that several lifters share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from simspine_jax.arrays import Array, Float

BITS = 256
"""Dropout draws whole bytes: rates are multiples of one part in so many."""


class Statistic(nnx.Variable):
    """Numbers that belong to a model and are not trained: means and deviations of its data."""


def dropout(x: Float[Array, "*shape"], rate: float, key: Array | None) -> Float[Array, "*shape"]:
    """Sets a share of the numbers to zero and enlarges the others; without a key it does nothing.

    One random byte decides for each number, so that random numbers don't cost more than the layers.

    Args:
        x: of any shape.
        rate: the share, rounded to a multiple of 1/256.
        key: of this layer in this step.
    """
    threshold = round(rate * BITS)
    if key is None or threshold == 0:
        return x
    size = int(np.prod(x.shape))
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    drawn = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(x.shape)
    return jnp.where(drawn >= threshold, x * (BITS / (BITS - threshold)), jnp.zeros_like(x))


class Linear(nnx.Linear):
    """A linear layer with He's initialisation, computing in ``dtype`` with float32 weights."""

    def __init__(self, n_in: int, n_out: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        super().__init__(n_in, n_out, dtype=dtype, kernel_init=nnx.initializers.he_normal(), rngs=rngs)


class Norm(nnx.BatchNorm):
    """Batch normalisation as PyTorch's default: momentum 0.1 there is 0.9 here; statistics in float32."""

    def __init__(self, n: int, *, rngs: nnx.Rngs):
        super().__init__(n, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)

    def apply(self, x: Float[Array, "*batch C"], key: Array | None) -> Float[Array, "*batch C"]:
        """Normalises by the batch where there is a key, else by the running statistics."""
        return self(x, use_running_average=key is None).astype(x.dtype)
