"""RTMCC: RTMPose's head, a classification of each coordinate.

Source: T. Jiang et al., RTMPose: Real-time multi-person pose estimation based on MMPose, arXiv 2303.07399;
coordinates as classes: Y. Li et al., SimCC, ECCV 2022; the gated attention unit: W. Hua et al., Transformer
quality in linear time, ICML 2022. A map of each keypoint is one token; the tokens look at each other once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.detection.codecs import SPLIT
from simspine_jax.detection.layers import Form, WideConv, silu

HIDDEN = 256
"""Features of a token."""

EXPANDED = 2 * HIDDEN
"""Features of a token between the two linear layers of the unit."""

SHARED = 128
"""Features of which queries and keys are made."""

KERNEL = 7
"""Size of the convolution that makes the maps."""

EPSILON = 1e-5
"""The least root mean square that is divided by."""

_LINEAR = nnx.initializers.normal(0.01)


class ScaleNorm(nnx.Module):
    """Features divided by their root mean square, times a learned number.

    Source: T. Nguyen and J. Salazar, Transformers without tears, IWSLT 2019.
    """

    def __init__(self):
        self.g = nnx.Param(jnp.ones(1, jnp.float32))

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        """The same in training and use."""
        wide = x.astype(jnp.float32)
        square = lax.square(wide).mean(-1, keepdims=True)
        return (wide * (lax.rsqrt(jnp.maximum(square, EPSILON**2)) * self.g[...])).astype(x.dtype)


class GatedAttention(nnx.Module):
    """The gated attention unit: squared rectified products weigh the values, the first half gates them."""

    def __init__(self, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.ln = ScaleNorm()
        self.uv, self.o = (
            nnx.Linear(i, o, use_bias=False, kernel_init=_LINEAR, dtype=dtype, rngs=rngs)
            for i, o in ((HIDDEN, 2 * EXPANDED + SHARED), (EXPANDED, HIDDEN))
        )
        self.gamma, self.beta = (
            nnx.Param(jax.random.uniform(rngs.params(), (2, SHARED), jnp.float32)) for _ in range(2)
        )
        self.res_scale = nnx.Param(jnp.ones(HIDDEN, jnp.float32))

    def __call__(self, x: Float[Array, "*batch K C"]) -> Float[Array, "*batch K C"]:
        """The same in training and use."""
        gate, values, shared = jnp.split(silu(self.uv(self.ln(x))), (EXPANDED, 2 * EXPANDED), axis=-1)
        gamma, beta = self.gamma[...].astype(x.dtype), self.beta[...].astype(x.dtype)
        queries, keys = (shared * gamma[i] + beta[i] for i in range(2))
        products = jnp.einsum("...kc,...mc->...km", queries, keys) / np.sqrt(SHARED).astype(np.float32)
        weights = lax.square(nnx.relu(products)).astype(x.dtype)
        found = self.o(gate * jnp.einsum("...km,...mc->...kc", weights, values))
        return x * self.res_scale[...].astype(x.dtype) + found


class RTMCC(nnx.Module):
    """The head. Its outputs score the places of keypoints, not normalised; class c is at ``c / SPLIT`` px.

    Args:
        n_in: channels of the features.
        keypoints: their number.
        size: height and width of the picture, px.
        places: of the features.
        form: of the large convolution.
        dtype: of the arithmetic; None for that of the weights.
        rngs: of the first weights.
    """

    def __init__(
        self,
        n_in: int,
        keypoints: int,
        size: tuple[int, int],
        places: int,
        form: Form,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.final_layer = WideConv(n_in, keypoints, KERNEL, form, dtype=dtype, rngs=rngs)
        self.norm = ScaleNorm()
        self.mlp, self.cls_x, self.cls_y = (
            nnx.Linear(i, o, use_bias=False, kernel_init=_LINEAR, dtype=dtype, rngs=rngs)
            for i, o in ((places, HIDDEN), (HIDDEN, SPLIT * size[1]), (HIDDEN, SPLIT * size[0]))
        )
        self.gau = GatedAttention(dtype=dtype, rngs=rngs)

    def __call__(
        self, features: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B K X"], Float[Array, "B K Y"]]:
        """Scores of columns and of rows; the same in training and use."""
        maps = self.final_layer(features)
        tokens = maps.reshape(len(maps), -1, maps.shape[-1]).swapaxes(-1, -2)
        tokens = self.gau(self.mlp(self.norm(tokens)))
        return self.cls_x(tokens).astype(jnp.float32), self.cls_y(tokens).astype(jnp.float32)
