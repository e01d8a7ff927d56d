"""Layers that several detectors share.

Pictures and features are ``[B H W C]``. Weights are float32; the arithmetic is in ``dtype``, that of
normalisations in float32. A key means training (statistics of the batch, dropped paths), none means use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError

Form = Literal["unrolled", "convolution"]
"""How depthwise and 7x7 convolutions are computed: as shifted multiply-adds and one product of matrices, or
as XLA's convolution. On CPUs XLA's own take 10 to 40 times as long, and their gradients too."""

Initial = Callable[..., Array]

UNIFORM: Initial = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""First kernels, as PyTorch's: uniform up to one over the root of the number of inputs."""

SMALL: Initial = nnx.initializers.normal(0.001)
"""First kernels of published heads' convolutions."""

MOMENTUM = 0.1
"""Share of the batch in running statistics, as PyTorch's."""

EPSILON = 1e-5
"""Added to variances, as PyTorch's."""

EXP2 = tuple(
    np.float32(v)
    for v in (0.000154614447, 0.00134004282, 0.00961805668, 0.0555032723, 0.240226509, 0.693147207, 1)
)
"""Coefficients of ``2**x`` for -0.5 to 0.5, highest power first; interpolated at Chebyshev's places."""

FEW = 8
"""Channels below which a convolution of stride 2 is faster over blocks of 2x2 places."""

SAME = ("NHWC", "HWIO", "NHWC")


def form_here(form: Form | None) -> Form:
    """The form asked for, else the one that is fast on the default device."""
    return form or ("unrolled" if jax.default_backend() == "cpu" else "convolution")


def require_pictures(x: Array, size: tuple[int, int]) -> None:
    """Refuses what is no batch of pictures of this height and width.

    Raises:
        ShapeError: the shape is another.
    """
    if x.shape[1:] != (*size, 3):
        raise ShapeError(f"The pictures have the shape {x.shape}; valid is [B, {size[0]}, {size[1]}, 3]")


def require_multiple(size: tuple[int, int], step: int) -> None:
    """Refuses a height or width that a detector can't divide.

    Raises:
        ShapeError: one is no multiple of the step.
    """
    if any(length < step or length % step for length in size):
        raise ShapeError(f"A detector for pictures of {size} px was asked for; valid are multiples of {step}")


def drop_path(x: Float[Array, "B *rest"], rate: float, key: Array | None) -> Float[Array, "B *rest"]:
    """Sets a share of the samples to zero and enlarges the others; without a key it does nothing.

    Source: G. Huang et al., Deep networks with stochastic depth, ECCV 2016.

    Args:
        x: what a residual path gives.
        rate: the share, below 1.
        key: of this path in this step.
    """
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, (len(x),) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


@jax.custom_jvp
def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x / (1 + exp(-x))``.

    The exponential is a polynomial between powers of two, exact to a few of float32's roundings: on a CPU
    XLA's own takes 2.5 times as long, which is a twentieth of a whole network.
    """
    return x * _sigmoid(x)


@silu.defjvp
def _silu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ((x,), (dx,)) = primals, tangents
    share = _sigmoid(x)
    return x * share, dx * (share * (1 + x * (1 - share)))


def _sigmoid(x: Array) -> Array:
    y = jnp.clip(x.astype(jnp.float32) * np.float32(-np.log2(np.e)), -126, 126)
    whole = jnp.round(y)
    part, power = y - whole, jnp.zeros_like(y)
    for coefficient in EXP2:
        power = power * part + coefficient
    scale = lax.bitcast_convert_type((whole.astype(jnp.int32) + 127) << 23, jnp.float32)
    return (1 / (1 + power * scale)).astype(x.dtype)


def max_pool(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B H W C"]:
    """The maximum of an odd window around each place, as of the part inside the picture.

    Rows first, then columns, as shifted maxima: fused on every device, its gradient too.
    """
    for axis in (1, 2):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (size // 2, size // 2)
        wide, length = jnp.pad(x, widths, constant_values=-np.inf), x.shape[axis]
        for shift in range(size):
            part = lax.slice_in_dim(wide, shift, shift + length, axis=axis)
            x = part if shift == 0 else jnp.maximum(x, part)
    return x


def enlarged(x: Float[Array, "B H W C"], times: int) -> Float[Array, "B H*times W*times C"]:
    """Each place repeated, so many times in each direction."""
    b, h, w, c = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (b, h, times, w, times, c))
    return wide.reshape(b, h * times, w * times, c)


class Norm(nnx.Module):
    """Batch normalisation with PyTorch's conventions; the running variance is the unbiased one.

    Args:
        n: channels, the last axis.
    """

    def __init__(self, n: int):
        self.scale = nnx.Param(jnp.ones(n, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(n, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(n, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(n, jnp.float32))

    def __call__(self, x: Float[Array, "*batch C"], key: Array | None) -> Float[Array, "*batch C"]:
        """Normalises by the batch where there is a key, else by the running statistics."""
        wide = x.astype(jnp.float32)
        mean, var = (self.mean[...], self.var[...]) if key is None else self.observed(wide)
        factor = self.scale[...] * lax.rsqrt(var + EPSILON)
        return (wide * factor + (self.bias[...] - mean * factor)).astype(x.dtype)

    def observed(self, x: Float[Array, "*batch C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """Mean and variance of a batch; the running ones move towards them."""
        axes = tuple(range(x.ndim - 1))
        count = int(np.prod(x.shape[:-1]))
        mean = x.mean(axes)
        # Both sums in one pass over x; rounding may leave less than nothing.
        var = jnp.maximum(lax.square(x).mean(axes) - lax.square(mean), 0.0)
        for running, now in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
            old = running.get_value()
            running.set_value(old + MOMENTUM * (lax.stop_gradient(now) - old))
        return mean, var


class Conv(nnx.Module):
    """A convolution over all channels, padded by half its size.

    Args:
        n_in: channels.
        n_out: channels.
        size: of the kernel, odd, in each direction.
        stride: in each direction.
        bias: whether it adds one.
        initial: of the kernel.
        dtype: of the arithmetic; None for that of the weights.
        rngs: of the first weights.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int,
        stride: int = 1,
        *,
        bias: bool = False,
        initial: Initial = UNIFORM,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(initial(rngs.params(), (size, size, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(n_out, jnp.float32)) if bias else None
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J D"]:
        """The same in training and use."""
        x, kernel = operands(x, self.kernel, self.dtype)
        pad = kernel.shape[0] // 2
        if pad == 0 and self.stride == 1:
            found = x @ kernel[0, 0]  # up to four times as fast on a CPU
        elif pad == 1 and self.stride == 2 and x.shape[-1] < FEW:
            found = _halved(x, kernel)
        else:
            found = _convolved(x, kernel, self.stride, ((pad, pad), (pad, pad)))
        return found if self.bias is None else found + self.bias[...].astype(found.dtype)


def _convolved(x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], ...], groups: int = 1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=SAME, feature_group_count=groups
    )


def _halved(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "B H/2 W/2 D"]:
    """A 3x3 convolution of stride 2 as a 2x2 one over blocks of 2x2 places; faster where channels are few."""
    (b, h, w, c), d = x.shape, kernel.shape[-1]
    blocks = x.reshape(b, h // 2, 2, w // 2, 2 * c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c)
    # A place sees its own block and the later halves of those before it; of the earlier halves nothing.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(2, 2, 2, 2, c, d).swapaxes(1, 2).reshape(2, 2, 4 * c, d)
    return _convolved(blocks, kernel, 1, ((1, 0), (1, 0)))


class WideConv(nnx.Module):
    """A convolution of a large kernel over many channels to few, with a bias, padded by half its size.

    Unrolled, one product of matrices gives what each place adds to each of its neighbours, and these are
    moved there and summed: as many operations as the convolution. The kernel is ``[in height width out]``.
    """

    def __init__(
        self, n_in: int, n_out: int, size: int, form: Form, *, dtype: jnp.dtype | None, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(SMALL(rngs.params(), (n_in, size, size, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(n_out, jnp.float32))
        self.form, self.dtype = form, dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """The same in training and use."""
        x, kernel = operands(x, self.kernel, self.dtype)
        pad = (kernel.shape[1] // 2, kernel.shape[1] // 2)
        if self.form == "convolution":
            found = _convolved(x, jnp.moveaxis(kernel, 0, 2), 1, (pad, pad))
        else:
            found = self._unrolled(x, kernel, pad)
        return found + self.bias[...].astype(found.dtype)

    def _unrolled(self, x: Array, kernel: Array, pad: tuple[int, int]) -> Array:
        size, (b, h, w, c) = kernel.shape[1], x.shape
        found = (x.reshape(-1, c) @ kernel.reshape(c, -1)).reshape(b, h, w, size, size, -1)
        found = jnp.pad(found, ((0, 0), (0, 0), pad, (0, 0), (0, 0), (0, 0)))
        found = sum_of([found[:, :, j : j + w, :, j] for j in range(size)])
        found = jnp.pad(found, ((0, 0), pad, (0, 0), (0, 0), (0, 0)))
        return sum_of([found[:, i : i + h, :, i] for i in range(size)])


class Depthwise(nnx.Module):
    """A convolution of each channel with a kernel of its own, of stride 1, padded by half its size."""

    def __init__(self, n: int, size: int, form: Form, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.kernel = nnx.Param(UNIFORM(rngs.params(), (size, size, 1, n), jnp.float32))
        self.form, self.dtype = form, dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The same in training and use."""
        x, kernel = operands(x, self.kernel, self.dtype)
        size, (_, h, w, c) = kernel.shape[0], x.shape
        pad = (size // 2, size // 2)
        if self.form == "convolution":
            return _convolved(x, kernel, 1, (pad, pad), c)
        wide = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
        shifts = [(i, j) for i in range(size) for j in range(size)]
        return sum_of([wide[:, i : i + h, j : j + w] * kernel[i, j, 0] for i, j in shifts])


class Doubling(nnx.Module):
    """A transposed 4x4 convolution of stride 2 and padding 1: twice as high and wide.

    Each of the four outputs of a place sees 2x2 inputs, so that one 2x2 convolution to four times the
    channels gives all of them; it is a product of matrices, as with XLA's convolution the gradient of all of
    ViTPose-b took ten times as long on a CPU. The kernel is kept as PyTorch's, mirrored in both directions.
    """

    def __init__(self, n_in: int, n_out: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.kernel = nnx.Param(SMALL(rngs.params(), (4, 4, n_in, n_out), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H*2 W*2 D"]:
        """The same in training and use."""
        x, kernel = operands(x, self.kernel, self.dtype)
        (b, h, w, c), d = x.shape, kernel.shape[-1]
        # Row 2t + a of the kernel is tap t of the outputs at odd (a = 1) or even rows; likewise columns.
        kernel = kernel.reshape(2, 2, 2, 2, c, d).transpose(0, 2, 4, 1, 3, 5).reshape(4 * c, 4 * d)
        wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [wide[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)]
        found = (jnp.concatenate(taps, axis=-1) @ kernel).reshape(b, h + 1, w + 1, 2, 2, d)
        rows = [jnp.stack([found[:, a : a + h, e : e + w, a, e] for e in (0, 1)], axis=3) for a in (0, 1)]
        return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, d)


class ConvNorm(nnx.Module):
    """Convolution, batch normalisation, and an activation if there is one."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int,
        stride: int = 1,
        *,
        activation: Callable[[Array], Array] | None,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(n_in, n_out, size, stride, dtype=dtype, rngs=rngs)
        self.bn = Norm(n_out)
        self.activation = activation

    def __call__(self, x: Float[Array, "B H W C"], key: Array | None) -> Float[Array, "B I J D"]:
        """With a key as in training, else as in use."""
        x = self.bn(self.conv(x), key)
        return x if self.activation is None else self.activation(x)


def operands(x: Array, kernel: nnx.Param, dtype: jnp.dtype | None) -> tuple[Array, Array]:
    """Both in the type of the arithmetic."""
    weights = kernel[...]
    dtype = dtype or weights.dtype
    return x.astype(dtype), weights.astype(dtype)


def sum_of(parts: list[Array]) -> Array:
    """From the first to the last."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
