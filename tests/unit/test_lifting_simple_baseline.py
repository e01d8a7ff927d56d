"""SimpleBaseline3D: its size, its loss, what a missing keypoint and dropout do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lifting_clips import make_batch, make_statistics

from simspine_jax.lifting.layers import BITS, dropout
from simspine_jax.lifting.simple_baseline import SimpleBaseline, SimpleBaselineOptions, count_parameters
from simspine_jax.skeleton import KEYPOINT_NAMES, REDUCED_NAMES

pytestmark = pytest.mark.usefixtures("float32")

# float32 sums of a thousand terms.
ROUNDING = 2e-5
SMALL = SimpleBaselineOptions(width=32, blocks=2, dropout=0.5)


def small(names: tuple[str, ...] = KEYPOINT_NAMES, seed: int = 0) -> SimpleBaseline:
    return SimpleBaseline(SMALL, make_statistics(names), rngs=nnx.Rngs(seed))


@pytest.mark.parametrize(("names", "millions"), [(REDUCED_NAMES, 4.28), (KEYPOINT_NAMES, 4.40)])
def test_it_has_the_published_number_of_parameters(names: tuple[str, ...], millions: float) -> None:
    model = nnx.eval_shape(
        lambda: SimpleBaseline(SimpleBaselineOptions(), make_statistics(names), rngs=nnx.Rngs(0))
    )
    assert round(count_parameters(model) / 1e6, 2) == millions


def test_the_root_is_put_back_and_others_are_in_their_places() -> None:
    model, statistics = small(REDUCED_NAMES), make_statistics(REDUCED_NAMES)
    seen, _ = make_batch(5, names=REDUCED_NAMES)
    moved, points = model.standardised(seen, None), model(seen).keypoints
    root = REDUCED_NAMES.index("hip")
    assert moved.shape == (5, 14, 3)
    np.testing.assert_array_equal(points[:, root], 0)
    others = np.delete(np.asarray(points), root, axis=1)
    expected = moved * np.delete(statistics.std_3d, root, 0) + np.delete(statistics.mean_3d, root, 0)
    np.testing.assert_allclose(others, expected, rtol=0, atol=1e-6)


def test_the_loss_is_the_mean_square_over_what_is_known() -> None:
    model, statistics = small(), make_statistics()
    seen, target = make_batch(16)
    loss, parts = model.loss(seen, target, key=jax.random.key(0))
    found = np.asarray(small().standardised(seen, jax.random.key(0)))
    root = KEYPOINT_NAMES.index("hip")
    relative = np.asarray(target.keypoints) - np.asarray(target.keypoints)[:, [root]]
    wanted = np.delete((relative - statistics.mean_3d) / statistics.std_3d, root, axis=1)
    known = np.delete(np.asarray(target.mask), root, axis=1)
    assert not known.all()
    assert float(loss) == pytest.approx(((found - wanted)[known] ** 2).mean(), rel=ROUNDING)
    error = np.linalg.norm((found - wanted) * np.delete(statistics.std_3d, root, 0), axis=-1)
    # The root is among the keypoints of the mean distance, with an error of 0.
    count = known.sum() + len(known)
    assert float(parts["mpjpe_mm"]) == pytest.approx(1e3 * error[known].sum() / count, rel=1e-3)


def test_a_missing_keypoint_has_no_influence_but_that_of_the_mean() -> None:
    model = small()
    seen, _ = make_batch(4)
    hidden = dataclasses.replace(seen, mask=seen.mask.at[:, 3].set(False))
    moved = dataclasses.replace(hidden, pixels=hidden.pixels.at[:, 3].set(1e6))
    at_mean = dataclasses.replace(
        seen, pixels=seen.pixels.at[:, 3].set(make_statistics().mean_2d[3]), mask=seen.mask.at[:, 3].set(True)
    )
    np.testing.assert_array_equal(model(hidden).keypoints, model(moved).keypoints)
    np.testing.assert_allclose(model(hidden).keypoints, model(at_mean).keypoints, rtol=0, atol=1e-6)
    assert float(jnp.abs(model(hidden).keypoints - model(seen).keypoints).max()) > 1e-4


def test_training_updates_the_running_statistics_and_use_does_not() -> None:
    model = small()
    seen, target = make_batch(64)
    before = np.array(model.stack.stem.norm.mean[...])
    model(seen)
    np.testing.assert_array_equal(model.stack.stem.norm.mean[...], before)
    model.loss(seen, target, key=jax.random.key(0))
    assert np.abs(np.asarray(model.stack.stem.norm.mean[...]) - before).max() > 1e-3


def test_half_of_the_arithmetic_in_bfloat16_stays_near() -> None:
    seen, _ = make_batch(16)
    whole = small()
    half = SimpleBaseline(SMALL, make_statistics(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for (_, a), (_, b) in zip(
        *(nnx.to_flat_state(nnx.state(m, nnx.Param)) for m in (whole, half)), strict=True
    ):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_array_equal(a[...], b[...])
    difference = np.abs(np.asarray(half(seen).keypoints - whole(seen).keypoints))
    # bfloat16 has eight bits: about 0.4 % of numbers of the size of a metre, a few layers deep.
    assert 1e-6 < difference.max() < 0.1


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    x = jnp.ones((400, 257))
    for rate in (0.25, 0.5):
        found = np.asarray(dropout(x, rate, jax.random.key(1)))
        # Five standard deviations of a share of so many draws.
        assert abs((found == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / found.size)
        assert set(np.unique(found)) == {0.0, np.float32(BITS / (BITS - round(rate * BITS)))}
    np.testing.assert_array_equal(dropout(x, 0.5, jax.random.key(1)), dropout(x, 0.5, jax.random.key(1)))
    assert (dropout(x, 0.5, jax.random.key(1)) != dropout(x, 0.5, jax.random.key(2))).any()
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(1)), x)
