"""MotionAGFormer's design: its size, its parts beside plain computations, its windows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lifting_clips import make_batch, make_statistics
from scipy.sparse.csgraph import connected_components

from simspine_jax.errors import ShapeError
from simspine_jax.lifting.motion_agformer import (
    NEIGHBOURS,
    Attention,
    GraphConvolution,
    MotionAGFormer,
    MotionAGFormerOptions,
    gelu,
    most_alike,
    skeleton_links,
)
from simspine_jax.lifting.simple_baseline import count_parameters
from simspine_jax.skeleton import KEYPOINT_NAMES, PARENTS, REDUCED_NAMES

pytestmark = pytest.mark.usefixtures("float32")

# float32 sums of a few dozen terms.
ROUNDING = 1e-5
SMALL = MotionAGFormerOptions(frames=5, layers=1, features=16, heads=4, representation=32)


def test_it_has_the_published_number_of_parameters() -> None:
    model = nnx.eval_shape(
        lambda: MotionAGFormer(MotionAGFormerOptions(), make_statistics(), rngs=nnx.Rngs(0))
    )
    assert round(count_parameters(model) / 1e6, 1) == 2.2


# The second is far beyond what float32's exp can hold.
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_attention_and_its_gradient_are_those_of_pytorch(size: float) -> None:
    torch = pytest.importorskip("torch")
    layer = Attention(16, 4, dtype=None, rngs=nnx.Rngs(0))
    x = size * np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    parts = (leaf @ torch.tensor(np.asarray(layer.qkv.kernel[...]))).reshape(3, 6, 3, 4, 4)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 6, 16)
    assert layer.out.bias is not None
    wanted = mixed @ torch.tensor(np.asarray(layer.out.kernel[...]))
    wanted = wanted + torch.tensor(np.asarray(layer.out.bias[...]))
    wanted.square().sum().backward()
    found = layer(jnp.asarray(x), None)
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=ROUNDING * size)
    gradient = jax.grad(lambda x: jnp.square(layer(x, None)).sum())(jnp.asarray(x))
    # Logits grow with the square of the input, and so does what their rounding does to the gradient.
    largest = float(leaf.grad.abs().max())
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=ROUNDING * size**2 * largest)


def test_gelu_and_its_gradient_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    wanted = torch.nn.functional.gelu(leaf)
    wanted.sum().backward()
    np.testing.assert_allclose(gelu(jnp.asarray(x)), wanted.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.asarray(x)), leaf.grad.numpy(), atol=1e-6)


def test_graph_convolution_is_the_published_formula() -> None:
    links = skeleton_links(REDUCED_NAMES)
    layer = GraphConvolution(8, len(links), links, dtype=None, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(4, len(links), 8)).astype(np.float32)
    degree = np.diag(links.sum(1) ** -0.5)
    assert layer.own.bias is not None
    assert layer.others.bias is not None
    own = x @ np.asarray(layer.own.kernel[...]) + np.asarray(layer.own.bias[...])
    others = x @ np.asarray(layer.others.kernel[...]) + np.asarray(layer.others.bias[...])
    found = degree @ links @ degree @ others + own
    wanted = np.maximum(x + found / np.sqrt(1 + 1e-5), 0)  # new statistics: mean 0, variance 1
    np.testing.assert_allclose(layer(jnp.asarray(x), None), wanted, atol=ROUNDING)


def test_frames_are_joined_to_the_most_alike() -> None:
    x = np.random.default_rng(0).normal(size=(10, 7, 4)).astype(np.float32)
    found = np.asarray(most_alike(jnp.asarray(x)))
    alike = np.einsum("nic,njc->nij", x, x)
    best = np.argsort(-alike, axis=-1)[..., :NEIGHBOURS]
    wanted = np.zeros_like(found)
    np.put_along_axis(wanted, best, 1, axis=-1)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("names", [KEYPOINT_NAMES, REDUCED_NAMES])
def test_the_skeleton_is_one_tree(names: tuple[str, ...]) -> None:
    links = skeleton_links(names)
    assert (links == links.T).all()
    assert links.sum() == 2 * (len(names) - 1)
    assert connected_components(links)[0] == 1
    if names == KEYPOINT_NAMES:
        for child, parent in enumerate(PARENTS):
            assert parent < 0 or links[child, parent]


def test_windows_of_another_length_are_refused_and_missing_frames_have_no_influence() -> None:
    model = MotionAGFormer(SMALL, make_statistics(), rngs=nnx.Rngs(0))
    seen, target = make_batch(2, 5)
    with pytest.raises(ShapeError, match=r"valid are windows \[\.\.\., 5, K\]"):
        model(make_batch(2, 4)[0])
    found = model(seen).keypoints
    assert found.shape == (2, 5, 37, 3)
    np.testing.assert_array_equal(found[..., KEYPOINT_NAMES.index("hip"), :], 0)
    moved = jnp.where(seen.mask[..., None], seen.pixels, 1e5)
    np.testing.assert_array_equal(model(dataclasses.replace(seen, pixels=moved)).keypoints, found)
    loss, parts = model.loss(seen, target, key=jax.random.key(0))
    assert np.isfinite(float(loss))
    assert float(loss) > float(parts["mpjpe_mm"]) / 1e3


def test_the_loss_of_a_shifted_scaled_truth() -> None:
    model = MotionAGFormer(SMALL, make_statistics(), rngs=nnx.Rngs(0))
    seen, target = make_batch(2, 5)
    before, _ = model.loss(seen, target, key=jax.random.key(0))
    further = dataclasses.replace(target, keypoints=target.keypoints + jnp.array([0.0, 0.0, 3.0]))
    after, _ = model.loss(seen, further, key=jax.random.key(0))
    # Root-relative: where the person stands has no influence.
    assert float(after) == pytest.approx(float(before), rel=1e-4)
