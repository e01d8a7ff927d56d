"""Filtering, gap filling and unwrapping of masked signals, against SciPy and by what they must keep."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import signal

from simspine_jax.errors import ShapeError
from simspine_jax.io import read_trc
from simspine_jax.signal import fill_gaps, lowpass, nearest_samples, runs, unwrap

# Relative; the same recursion in another order of operations, in float64.
RECURSION = 1e-11

MASKS = st.lists(st.booleans(), min_size=1, max_size=60)


def filtered(values: np.ndarray, present: np.ndarray, **options: float) -> np.ndarray:
    settings = {"rate_hz": 60.0, "cutoff_hz": 6.0} | options
    return np.asarray(lowpass(jnp.asarray(values), jnp.asarray(present), **settings))  # pyright: ignore[reportArgumentType]


def walk(n_frames: int, *channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_frames, *channels)).cumsum(axis=0)


def segments(mask: np.ndarray) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [slice(a, b) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize(("rate", "cutoff", "order"), [(60.0, 6.0, 2), (50.0, 5.0, 1), (100.0, 3.0, 4)])
def test_whole_signals_are_filtered_as_scipy_does(rate: float, cutoff: float, order: int) -> None:
    values = walk(200, 3, 2)
    got = filtered(values, np.ones_like(values, bool), rate_hz=rate, cutoff_hz=cutoff, order=order)
    design = signal.butter(order, cutoff / (rate / 2))
    np.testing.assert_allclose(got, signal.filtfilt(*design, values, axis=0), rtol=0, atol=1e-10)


def test_the_filtered_trial_is_pose2sims(shared_data: Path) -> None:
    raw, smooth = (
        read_trc(shared_data / "pose2sim_demo" / name) for name in ("markers_raw.trc", "markers.trc")
    )
    got = filtered(raw.positions, np.broadcast_to(raw.present[..., None], raw.positions.shape))
    assert raw.present.all()
    np.testing.assert_allclose(got, smooth.positions, rtol=0, atol=1e-9)  # 1e-6 mm


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([1, 2]))
def test_each_segment_is_filtered_alone(mask: list[bool], order: int) -> None:
    """Also in one program with a channel of other segments, and whatever lies under the mask."""
    present = np.zeros((60, 2), bool)
    present[: len(mask), 0] = mask
    present[5:50, 1] = True
    values = np.where(present, walk(60, 2), np.nan)
    got = filtered(values, present, order=order)
    design = signal.butter(order, 0.2)
    expected = np.full_like(values, np.nan)
    for channel in range(2):
        for run in segments(present[:, channel]):
            piece = values[run, channel]
            padding = min(3 * (order + 1), len(piece) - 1)
            expected[run, channel] = signal.filtfilt(*design, piece, padlen=padding)
    np.testing.assert_allclose(got, expected, rtol=RECURSION, atol=1e-10)


def test_short_segments_follow_the_stated_rule() -> None:
    present = np.zeros((30, 1), bool)
    present[[2, 5, 6, 9, 10, 11]] = True
    values = np.where(present, walk(30, 1), np.nan)
    got = filtered(values, present)
    np.testing.assert_allclose(got[2], values[2], rtol=1e-14)
    np.testing.assert_allclose(got[5:7, 0], signal.filtfilt(*signal.butter(2, 0.2), values[5:7, 0], padlen=1))
    np.testing.assert_array_equal(np.isnan(got), ~present)


def test_constants_and_ramps_stay() -> None:
    ramp = np.stack([np.full(80, 3.25), 0.1 * np.arange(80) - 2], axis=-1)
    present = np.ones_like(ramp, bool)
    present[30:33] = False
    got = filtered(ramp, present)
    np.testing.assert_allclose(got[:, 0][present[:, 0]], 3.25, atol=1e-12)
    # Odd padding goes on with a ramp, but the filter's first state is that of a constant.
    np.testing.assert_allclose(got[10:20, 1], ramp[10:20, 1], atol=0.02)


def test_no_phase_is_shifted_and_half_the_gain_is_left_at_the_cutoff() -> None:
    time = np.arange(1200) / 60
    got = filtered(np.sin(2 * np.pi * 6 * time)[:, None], np.ones((1200, 1), bool))[300:900, 0]
    waves = np.stack([np.sin(2 * np.pi * 6 * time), np.cos(2 * np.pi * 6 * time)], axis=-1)[300:900]
    gain, shift = np.linalg.lstsq(waves, got, rcond=None)[0]
    assert gain == pytest.approx(0.5, abs=1e-6)
    assert shift == pytest.approx(0.0, abs=1e-6)


def test_a_signal_filtered_backwards_is_the_filtered_signal_backwards() -> None:
    values, present = walk(300, 1), np.ones((300, 1), bool)
    inner = slice(100, 200)  # the two ends begin in another order
    forwards, backwards = filtered(values, present), filtered(values[::-1], present)[::-1]
    np.testing.assert_allclose(forwards[inner], backwards[inner], atol=1e-9)


def test_derivatives_do_not_see_missing_samples() -> None:
    present = jnp.ones((20, 1), bool).at[7:9].set(False)
    values = jnp.asarray(walk(20, 1)).at[7].set(jnp.nan)

    def energy(values: jax.Array) -> jax.Array:
        smooth = lowpass(jnp.asarray(values), present, rate_hz=60.0, cutoff_hz=6.0)
        return jnp.sum(jnp.where(present, smooth, 0.0) ** 2)

    slope = jax.grad(energy)(values)
    assert np.isfinite(slope).all()
    assert not np.asarray(slope)[7:9].any()
    assert np.asarray(slope)[np.asarray(present)].all()
    check_grads(energy, (jnp.where(present, values, 0.0),), order=1, modes=("rev",), rtol=1e-5)


@pytest.mark.usefixtures("float32")
def test_single_precision_filters_to_a_hundredth_of_a_millimetre() -> None:
    values = np.sin(np.arange(400) / 15)[:, None]
    got = lowpass(jnp.asarray(values), jnp.ones((400, 1), bool), rate_hz=60.0, cutoff_hz=6.0)
    assert got.dtype == jnp.float32
    expected = signal.filtfilt(*signal.butter(2, 0.2), values, axis=0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("cutoff", "order"), [(30.0, 2), (0.0, 2), (-1.0, 2), (np.nan, 2), (6.0, 0)])
def test_filters_that_do_not_exist_are_refused(cutoff: float, order: int) -> None:
    with pytest.raises(ShapeError, match="; valid is"):
        filtered(walk(30, 1), np.ones((30, 1), bool), cutoff_hz=cutoff, order=order)


def test_empty_clips_pass() -> None:
    for shape in ((0, 3), (4, 0)):
        assert filtered(np.zeros(shape), np.zeros(shape, bool)).shape == shape
        assert fill_gaps(jnp.zeros(shape), jnp.zeros(shape, bool), max_gap=3)[0].shape == shape
        assert unwrap(jnp.zeros(shape), jnp.zeros(shape, bool)).shape == shape


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 6), st.sampled_from(["linear", "cubic"]))
def test_gaps_up_to_the_limit_are_filled_and_no_others(mask: list[bool], max_gap: int, method: str) -> None:
    present = np.zeros((60, 1), bool)
    present[: len(mask), 0] = mask
    values = np.where(present, walk(60, 1), np.nan)
    filled, known = fill_gaps(jnp.asarray(values), jnp.asarray(present), max_gap=max_gap, method=method)  # pyright: ignore[reportArgumentType]
    expected = present.copy()
    for run in segments(~present[:, 0]):
        if run.start > 0 and run.stop < 60 and run.stop - run.start <= max_gap:
            expected[run] = True
    np.testing.assert_array_equal(known, expected)
    np.testing.assert_array_equal(np.isnan(filled), ~expected)
    np.testing.assert_array_equal(np.asarray(filled)[present], values[present])


@pytest.mark.parametrize(("method", "degree"), [("linear", 1), ("cubic", 3)])
def test_polynomials_are_filled_exactly_up_to_their_degree(method, degree: int) -> None:
    time = np.linspace(-1, 1, 40)
    present = np.ones((40, 2), bool)
    present[[3, 10, 11, 12, 20, 21, 22, 23, 24]] = False
    present[30:32, 1] = False
    for power, exact in ((degree, True), (degree + 1, False)):
        values = np.stack([time**power, 2 - time**power], axis=-1)
        hidden = jnp.asarray(np.where(present, values, np.nan))
        filled, known = fill_gaps(hidden, jnp.asarray(present), max_gap=5, method=method)
        assert np.asarray(known).all()
        assert bool(np.abs(np.asarray(filled) - values).max() < 1e-12) is exact


def test_cubic_is_linear_where_a_side_has_one_sample() -> None:
    values = jnp.array([[1.0], [jnp.nan], [jnp.nan], [7.0], [4.0], [5.0]])
    filled, _ = fill_gaps(values, ~jnp.isnan(values), max_gap=2)
    np.testing.assert_allclose(filled[:4, 0], [1, 3, 5, 7], atol=1e-12)


def test_unwrapping_is_numpys_where_all_is_present() -> None:
    angles = np.cumsum(np.random.default_rng(0).normal(0, 0.8, (200, 3)), axis=0)
    wrapped = (angles + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(np.diff(wrapped, axis=0)).max() > 6
    got = unwrap(jnp.asarray(wrapped), jnp.ones((200, 3), bool))
    np.testing.assert_allclose(got, np.unwrap(wrapped, axis=0), atol=1e-12)


def test_unwrapping_goes_on_over_gaps() -> None:
    angles = np.linspace(0.5, 20, 60)[:, None]
    present = np.ones((60, 1), bool)
    present[[0, 1, 20, 21, 22, 40]] = False
    wrapped = np.where(present, (angles + np.pi) % (2 * np.pi) - np.pi, np.nan)
    got = np.asarray(unwrap(jnp.asarray(wrapped), jnp.asarray(present)))
    np.testing.assert_allclose(got[present], angles[present], atol=1e-12)
    np.testing.assert_array_equal(np.isnan(got), ~present)


def test_runs_are_the_stretches_of_a_mask() -> None:
    assert runs(np.array([True, True, False, True, False, False, True])) == [(0, 1), (3, 3), (6, 6)]
    assert runs(np.zeros(3, bool)) == []
    assert runs(np.ones(3, bool)) == [(0, 2)]


def test_nearest_samples_are_those_within_reach() -> None:
    there = np.array([0.0, 0.1, 0.2, 0.5])
    here = np.array([-0.3, 0.04, 0.06, 0.2, 0.34, 0.36, 0.9])
    index, near = nearest_samples(there, here, 0.15)
    np.testing.assert_array_equal(index, [0, 0, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(near, [False, True, True, True, True, True, False])
    index, near = nearest_samples(np.array([1.0]), here, np.inf)
    np.testing.assert_array_equal(index, 0)
    assert near.all()
