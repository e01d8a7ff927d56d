"""Forward kinematics: derivatives, batch shapes, precisions, and the two engines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.errors import ShapeError

# Central differences with a step of 1e-5 of a function of order one: truncation 1e-10, rounding 1e-11.
DIFFERENCES = 1e-6
STEP = 1e-5


@pytest.fixture(scope="module")
def arguments(tangle_model):
    """q, scale_factors and marker_offsets."""
    rng = np.random.default_rng(0)
    m = tangle_model
    return (
        jnp.asarray(rng.normal(0, 0.8, (2, 3, m.n_free))),
        jnp.asarray(rng.uniform(0.8, 1.2, (len(m.body_names), 3))),
        jnp.asarray(rng.normal(0, 0.02, (m.n_markers, 3))),
    )


def poses(model, q, factors, offsets, engine="levels"):
    return ssj.forward_kinematics(model, q, scale_factors=factors, marker_offsets=offsets, engine=engine)


@pytest.fixture(scope="module")
def combined(tangle_model, arguments):
    """A random linear function of everything that forward kinematics gives, and its gradient."""
    rng = np.random.default_rng(1)
    some = jax.eval_shape(lambda *a: poses(tangle_model, *a), *arguments)
    mix = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), some)

    def value(*args):
        found = poses(tangle_model, *args)
        return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(mix), strict=True))

    return jax.jit(value), jax.jit(jax.grad(value, argnums=(0, 1, 2)))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "scale_factors", "marker_offsets"])
def test_gradients_are_central_differences(arguments, combined, which: int) -> None:
    value, gradient = combined
    bar = gradient(*arguments)[which]
    rng = np.random.default_rng(2)
    for _ in range(10):
        direction = jnp.asarray(rng.normal(size=bar.shape))

        def moved(step, direction=direction):
            shifted = list(arguments)
            shifted[which] = shifted[which] + step * direction
            return value(*shifted)

        numeric = (moved(STEP) - moved(-STEP)) / (2 * STEP)
        size = float(jnp.linalg.norm(bar) * jnp.linalg.norm(direction))
        assert abs(float(jnp.sum(bar * direction) - numeric)) < DIFFERENCES * size


def test_forward_and_reverse_mode_agree(tangle_model, arguments) -> None:
    q, factors, offsets = arguments

    def markers(one):
        return poses(tangle_model, one, factors, offsets).markers

    forward, reverse = jax.jit(lambda x: (jax.jacfwd(markers)(x), jax.jacrev(markers)(x)))(q[0, 0])
    np.testing.assert_allclose(forward, reverse, atol=1e-12)
    assert np.abs(forward).max() > 0.1


def test_any_batch_shape_gives_the_same_numbers(tangle_model, arguments) -> None:
    q, factors, offsets = arguments
    fk = jax.jit(lambda x: poses(tangle_model, x, factors, offsets))
    whole = fk(q)
    assert whole.markers.shape == (2, 3, tangle_model.n_markers, 3)
    assert whole.body_rotations.shape == (2, 3, len(tangle_model.body_names), 3, 3)
    for part, expected in ((fk(q[1]), jax.tree.map(lambda x: x[1], whole)),
                           (fk(q[1, 2]), jax.tree.map(lambda x: x[1, 2], whole)),
                           (jax.vmap(fk)(q), whole)):  # fmt: skip
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(expected), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=1e-14)


def test_both_engines_agree(tangle_model, arguments) -> None:
    q, factors, offsets = arguments
    ours = jax.jit(lambda *a: poses(tangle_model, *a))(*arguments)
    mjx = poses(tangle_model, q, factors, offsets, engine="mjx")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(mjx), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    plain = ssj.forward_kinematics(tangle_model, q)
    assert np.abs(plain.markers - ours.markers).max() > 0.05


def test_rotations_are_rotations(tangle_model, arguments) -> None:
    r = np.asarray(poses(tangle_model, *arguments).body_rotations)
    np.testing.assert_allclose(r @ np.swapaxes(r, -1, -2), np.broadcast_to(np.eye(3), r.shape), atol=1e-13)
    np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-13)


def test_float32_is_near_float64(tangle_model, arguments) -> None:
    single = tuple(x.astype(jnp.float32) for x in arguments)
    found = jax.jit(lambda *a: poses(tangle_model, *a))(*single)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    expected = poses(tangle_model, *(x.astype(jnp.float64) for x in single))
    # Coordinates of 1 m and rounding of 6e-8 through four bodies.
    np.testing.assert_allclose(found.markers, expected.markers, atol=5e-6)


def test_offsets_move_markers_in_their_bodies(tangle_model, arguments) -> None:
    q, factors, offsets = arguments
    without = poses(tangle_model, q, factors, None)
    moved = poses(tangle_model, q, factors, offsets).markers - without.markers
    expected = np.broadcast_to(np.linalg.norm(offsets, axis=-1), moved.shape[:-1])
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": np.zeros(3)}, "q has shape \\(3,\\); its last axis must be the model's 8 free"),
        ({"factors": np.ones(3)}, "scale_factors has shape .* it must be \\(4,\\) or \\(4, 3\\)"),
        ({"factors": np.ones((4, 2))}, "scale_factors has shape"),
        ({"offsets": np.ones((4, 3))}, "marker_offsets has shape \\(4, 3\\); it must be \\(12, 3\\)"),
        ({"engine": "warp"}, "engine 'warp' is unknown; valid are 'levels' and 'mjx'"),
    ],
)
def test_wrong_arguments_are_named(tangle_model, change: dict, says: str) -> None:
    given = {"q": np.zeros(8), "factors": None, "offsets": None} | change
    with pytest.raises(ShapeError, match=says):
        poses(tangle_model, **given)


def test_one_factor_per_body_is_the_same_on_all_axes(tangle_model, arguments) -> None:
    q, _, _ = arguments
    ones = np.array([1.1, 0.9, 1.2, 1.0])
    flat = poses(tangle_model, q, ones, None).markers
    full = poses(tangle_model, q, np.repeat(ones[:, None], 3, axis=1), None).markers
    np.testing.assert_array_equal(flat, full)


def test_expand_and_reduce_are_inverse(tangle_model, arguments) -> None:
    q = arguments[0]
    full = ssj.expand_coordinates(tangle_model, q)
    assert full.shape == (2, 3, len(tangle_model.coordinate_names))
    np.testing.assert_array_equal(ssj.reduce_coordinates(tangle_model, full), q)
    with pytest.raises(ShapeError, match="last axis must be the model's 10 coordinates"):
        ssj.reduce_coordinates(tangle_model, q)
