"""Detectors without PyTorch: their sizes, their parts beside plain computations, training and precision."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from scipy.special import expit

from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.hrnet import HRNET_W32, HRNet, HRNetOptions
from simspine_jax.detection.layers import (
    SAME,
    Conv,
    Depthwise,
    Doubling,
    Form,
    Norm,
    WideConv,
    drop_path,
    enlarged,
    max_pool,
    silu,
)
from simspine_jax.detection.rtmpose import (
    RTMPOSE_M,
    SPINEPOSE_L,
    SPINEPOSE_M,
    SPINEPOSE_S,
    RTMPose,
    RTMPoseOptions,
)
from simspine_jax.detection.vitpose import VITPOSE_B, ViTPose, ViTPoseOptions
from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.lifting.simple_baseline import count_parameters

pytestmark = pytest.mark.usefixtures("float32")

# float32 sums of some hundred terms of about 1.
ROUNDING = 2e-5
# bfloat16 keeps 8 bits; its roundings add up over some thirty layers.
HALF_ROUNDING = 0.1

SMALL = {
    RTMPose: RTMPoseOptions(CSPNeXtOptions(0.1, 0.25), keypoints=5, size=(64, 96)),
    HRNet: HRNetOptions(width=8, modules=(1, 1, 1), keypoints=5, size=(64, 96)),
    ViTPose: ViTPoseOptions(width=32, layers=2, heads=2, drop_path=0.0, keypoints=5, size=(64, 96)),
}
MODELS = list(SMALL)


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def parts_of(output) -> list[jax.Array]:
    return list(output) if isinstance(output, tuple) else [output]


def small(kind, dtype=None, **changes):
    """A small model whose weights are drawn by NumPy, which compiles nothing."""
    options = dataclasses.replace(SMALL[kind], **changes)
    model = nnx.eval_shape(lambda: kind(options, dtype=dtype, rngs=nnx.Rngs(0)))
    rng, drawn = np.random.default_rng(0), {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape = variable.get_value().shape
        if path[-1] in ("scale", "var", "g", "res_scale"):
            value = np.ones(shape)
        elif path[-1] in ("bias", "mean"):
            value = np.zeros(shape)
        else:
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        drawn[path] = variable.replace(jnp.asarray(value, jnp.float32))
    nnx.update(model, nnx.from_flat_state(drawn))
    return model


@pytest.mark.parametrize(
    ("kind", "options", "millions"),
    [
        (RTMPose, SPINEPOSE_S, 5.975),
        (RTMPose, SPINEPOSE_M, 14.340),
        (RTMPose, SPINEPOSE_L, 28.664),
        (RTMPose, RTMPOSE_M, 14.340),
        (HRNet, HRNET_W32, 28.537),
        (ViTPose, VITPOSE_B, 89.999),
    ],
)
def test_detectors_have_the_published_numbers_of_parameters_and_output_shapes(
    kind, options, millions
) -> None:
    model = nnx.eval_shape(lambda: kind(options, rngs=nnx.Rngs(0)))
    assert round(count_parameters(model) / 1e6, 3) == millions
    found = nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 256, 192, 3), jnp.float32))
    shapes = [part.shape for part in parts_of(found)]
    assert shapes == ([(2, 37, 384), (2, 37, 512)] if kind is RTMPose else [(2, 64, 48, 37)])


@pytest.mark.parametrize("kind", [RTMPose, ViTPose])
def test_first_weights_give_outputs_that_differ_from_place_to_place(kind) -> None:
    model = kind(SMALL[kind], rngs=nnx.Rngs(0))
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(nnx.state(model)))
    for output in parts_of(nnx.jit(lambda m, x: m(x))(model, random(1, 64, 96, 3))):
        assert np.isfinite(output).all()
        assert output.std() > 0


@pytest.mark.parametrize("kind", MODELS)
def test_half_precision_gives_nearly_the_same(kind) -> None:
    pictures = random(2, 64, 96, 3)
    whole = parts_of(nnx.jit(lambda m, x: m(x))(small(kind), pictures))
    model = small(kind, jnp.dtype(jnp.bfloat16))
    half = parts_of(nnx.jit(lambda m, x: m(x))(model, pictures))
    assert all(value.dtype == jnp.float32 for value in jax.tree.leaves(nnx.state(model)))
    for found, wanted in zip(half, whole, strict=True):
        assert found.dtype == wanted.dtype == jnp.float32
        assert wanted.std() > 0
        error = float(jnp.abs(found - wanted).max())
        assert 0 < error < HALF_ROUNDING * float(jnp.abs(wanted).max())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(RTMPose, jnp.dtype(jnp.bfloat16)), (HRNet, None), (ViTPose, None), (ViTPose, jnp.dtype(jnp.bfloat16))],
)
def test_gradients_are_finite_and_reach_all_weights(kind, dtype) -> None:
    structure, params, rest = nnx.split(small(kind, dtype), nnx.Param, ...)

    @jax.jit
    def gradients_of(params, rest, key):
        def loss(params):
            model = nnx.merge(structure, params, rest, copy=True)
            outputs = parts_of(model(random(4, 64, 96, 3), key=key))
            after = nnx.state(model, nnx.BatchStat)
            return sum(((out - random(*out.shape)) ** 2).mean() for out in outputs), after

        return jax.grad(loss, has_aux=True)(params)

    gradients, after = gradients_of(params, rest, jax.random.key(0))
    for path, value in nnx.to_flat_state(gradients):
        value = np.asarray(value[...], np.float32)
        assert np.isfinite(value).all(), path
        # A bias that no softmax looks at: all keys of the attention move together.
        whole = value if path[-2:] != ("qkv", "bias") else value[: len(value) // 3]
        assert np.abs(whole).max() > 0, path
    moved = [
        np.any(np.asarray(new[...]) != np.asarray(old[...]))
        for (_, new), (_, old) in zip(
            nnx.to_flat_state(after), nnx.to_flat_state(nnx.filter_state(rest, nnx.BatchStat)), strict=True
        )
    ]
    assert moved
    assert all(moved)


@pytest.mark.parametrize("kind", MODELS)
def test_use_keeps_the_statistics_and_samples_apart(kind) -> None:
    model = small(kind)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    pictures = random(3, 64, 96, 3)
    run = nnx.jit(lambda m, x: m(x))
    together, alone = parts_of(run(model, pictures)), parts_of(run(model, pictures[1:2]))
    for one, several in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], several[1], rtol=0, atol=ROUNDING * np.abs(several).max())
    jax.tree.map(
        np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    )


def test_dropped_paths_depend_on_the_key_alone_and_not_in_use() -> None:
    pictures = random(4, 64, 96, 3)
    model, same = small(ViTPose, drop_path=0.5), small(ViTPose)
    run = nnx.jit(lambda m, x, key: m(x, key=key))
    np.testing.assert_array_equal(run(model, pictures, None), run(same, pictures, None))
    first, again, other = (run(small(ViTPose, drop_path=0.5), pictures, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first - other)).max() > 0


def test_dropping_keeps_the_mean_and_whole_samples() -> None:
    x = jnp.ones((4000, 2, 3))
    found = np.asarray(drop_path(x, 0.3, jax.random.key(0)))
    share = (found == 0).all((1, 2)).mean()
    assert (found == found[:, :1, :1]).all()
    # Five standard deviations of a share of 4000.
    assert share == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 4000))
    assert found.max() == pytest.approx(1 / 0.7)
    np.testing.assert_array_equal(drop_path(x, 0.3, None), x)


def kernel_gradient(layer, x):
    structure, state = nnx.split(layer)
    return jax.jit(jax.grad(lambda s, x: (nnx.merge(structure, s)(x) ** 2).sum(), (0, 1)))(state, x)


@pytest.mark.parametrize("shape", [(2, 9, 7, 6), (1, 3, 4, 6)])
@pytest.mark.parametrize(
    "make",
    [
        lambda form: Depthwise(6, 5, form, dtype=None, rngs=nnx.Rngs(1)),
        lambda form: WideConv(6, 4, 7, form, dtype=None, rngs=nnx.Rngs(1)),
    ],
)
def test_unrolled_convolutions_are_xlas(make, shape) -> None:
    forms: tuple[Form, Form] = ("unrolled", "convolution")
    unrolled, plain = (make(form) for form in forms)
    x = random(*shape)
    run = nnx.jit(lambda layer, x: layer(x))
    np.testing.assert_allclose(run(unrolled, x), run(plain, x), atol=ROUNDING)
    for found, wanted in zip(
        jax.tree.leaves(kernel_gradient(unrolled, x)), jax.tree.leaves(kernel_gradient(plain, x)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=ROUNDING)


@pytest.mark.parametrize(("n_in", "size", "stride"), [(3, 3, 2), (12, 3, 2), (3, 3, 1), (5, 1, 1)])
def test_convolutions_are_xlas(n_in: int, size: int, stride: int) -> None:
    layer, x = Conv(n_in, 4, size, stride, bias=True, dtype=None, rngs=nnx.Rngs(0)), random(2, 8, 12, n_in)
    assert layer.bias is not None
    layer.bias.set_value(random(4))
    pad = (size // 2, size // 2)
    wanted = lax.conv_general_dilated(
        x, layer.kernel[...], (stride, stride), (pad, pad), dimension_numbers=SAME
    )
    np.testing.assert_allclose(layer(x), wanted + layer.bias[...], atol=ROUNDING)


def test_doubling_is_a_convolution_of_what_is_spread_out() -> None:
    layer, x = Doubling(3, 5, dtype=None, rngs=nnx.Rngs(0)), random(2, 4, 6, 3)
    wanted = lax.conv_general_dilated(
        x, layer.kernel[...], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=SAME
    )
    assert wanted.shape == (2, 8, 12, 5)
    np.testing.assert_allclose(layer(x), wanted, atol=ROUNDING)


@pytest.mark.parametrize("size", [5, 13])
def test_pooling_is_xlas(size: int) -> None:
    x, pad = random(2, 8, 6, 3) - 5, (size // 2, size // 2)
    wanted = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, size, size, 1), (1, 1, 1, 1), ((0, 0), pad, pad, (0, 0))
    )
    np.testing.assert_array_equal(max_pool(x, size), wanted)
    twice = max_pool(max_pool(x, 5), size - 4)
    np.testing.assert_array_equal(twice, wanted)


def test_enlarging_repeats() -> None:
    x = random(2, 3, 4, 5)
    np.testing.assert_array_equal(enlarged(x, 4), np.repeat(np.repeat(x, 4, 1), 4, 2))


def test_silu_is_exact_to_the_last_digits_and_its_derivative_too() -> None:
    x = np.concatenate(
        [np.linspace(-100, 100, 20001), np.linspace(-3, 3, 20001), [-1e30, 1e30, 0, -87.5, 88.5]]
    )
    x = x.astype(np.float32)
    share = expit(x.astype(np.float64))
    # A few roundings of float32; where the result is as good as zero, that of its exponent shows.
    np.testing.assert_allclose(silu(x), x * share, rtol=1e-6, atol=5e-8)
    slope = share * (1 + x.astype(np.float64) * (1 - share))
    np.testing.assert_allclose(jax.vmap(jax.grad(silu))(x), slope, rtol=2e-6, atol=2e-6)


def test_normalisation_has_pytorchs_statistics() -> None:
    norm, x = Norm(4), 3 * random(2, 3, 5, 4) + 1
    found = norm(x, jax.random.key(0))
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=ROUNDING)
    np.testing.assert_allclose(found.var((0, 1, 2)), 1, atol=1e-4)
    flat = np.asarray(x).reshape(-1, 4)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    wanted = (x - norm.mean[...]) / np.sqrt(norm.var[...] + 1e-5)
    np.testing.assert_allclose(norm(x, None), wanted, atol=ROUNDING)


@pytest.mark.parametrize("kind", MODELS)
def test_other_sizes_are_refused(kind) -> None:
    model = nnx.eval_shape(lambda: kind(SMALL[kind], rngs=nnx.Rngs(0)))
    for shape in ((2, 96, 64, 3), (64, 96, 3), (2, 64, 96, 1)):
        with pytest.raises(ShapeError, match=r"valid is \[B, 64, 96, 3\]"):
            model(jnp.zeros(shape))
    for size in ((64, 100), (0, 64)):
        with pytest.raises(ShapeError, match="valid are multiples of"):
            kind(dataclasses.replace(SMALL[kind], size=size), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("sigma", [(1.0,), (0.0, 1.0), (1.0, 2.0, 3.0)])
def test_labels_have_two_widths(sigma: tuple[float, ...]) -> None:
    with pytest.raises(SimspineError, match="valid are two numbers above 0, along x and y"):
        RTMPoseOptions(sigma=sigma)  # type: ignore[arg-type]
