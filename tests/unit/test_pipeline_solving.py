"""Trials cut into clips and solved together: the seams, and what the neighbours in a batch do to a trial."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.capture import add_marker_noise, synthetic_motion
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.inverse import IKStatus
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.pipeline import solving
from simspine_jax.pipeline.options import preset
from simspine_jax.pipeline.solving import Motion, Targets, overlap_frames, solve_trials

RATE_HZ = 25 / 3
"""So slow that clips of 64 frames are long enough for the preset's penalties."""
CLIP_FRAMES = 64
N_FRAMES = 240

OPTIONS = preset("simspine")


@pytest.fixture(scope="module")
def single_model(spine_osim: Path, paper_markers: Path) -> SpineModel:
    """In float32, as the command line has it."""
    with jax.enable_x64(False):
        return load_model(spine_osim, paper_markers)


def moving(model: SpineModel, seed: int, n_frames: int = N_FRAMES) -> Targets:
    """All coordinates in motion, 5 mm of noise."""
    truth = synthetic_motion(model, n_frames, rate_hz=RATE_HZ, seed=seed)
    markers = add_marker_noise(forward_kinematics(model, truth).markers, 0.005, jax.random.key(seed))
    return Targets(np.asarray(markers, np.float64), np.ones(markers.shape[:2]), RATE_HZ)


def markers_of(model: SpineModel, motion: Motion) -> np.ndarray:
    return np.asarray(forward_kinematics(model, jnp.asarray(motion.q, model.dtype)).markers)


def farthest(model: SpineModel, one: Motion, other: Motion) -> float:
    """Metres between a marker of the one and the other."""
    return float(np.linalg.norm(markers_of(model, one) - markers_of(model, other), axis=-1).max())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trial_in_clips_is_as_in_one(
    float32: None, single_model: SpineModel, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    trial = moving(single_model, seed)
    overlap = overlap_frames(OPTIONS, RATE_HZ)
    assert len(solving.seams(N_FRAMES, CLIP_FRAMES, overlap)) == 7
    (whole,) = solve_trials(single_model, [trial], None, OPTIONS)
    (cut,) = solve_trials(single_model, [trial], None, OPTIONS, clip_frames=CLIP_FRAMES)
    # Measured: 0.0021 to 0.0046 mm over six seeds, of which rounding has a part.
    assert 0 < farthest(single_model, cut, whole) < 1e-5
    # It is the overlap that does it: 0.034 to 0.045 mm with half of it, 5 to 8 mm with none.
    monkeypatch.setattr(solving, "overlap_frames", lambda options, rate_hz: 0)
    (parted,) = solve_trials(single_model, [trial], None, OPTIONS, clip_frames=CLIP_FRAMES)
    assert farthest(single_model, parted, whole) > 1e-3


def assert_each_is_as_alone(model: SpineModel, trials: list[Targets]) -> None:
    together = solve_trials(model, trials, None, OPTIONS)
    for trial, among in zip(trials, together, strict=True):
        (alone,) = solve_trials(model, [trial], None, OPTIONS)
        np.testing.assert_array_equal(alone.status, IKStatus.CONVERGED)
        np.testing.assert_array_equal(among.status, alone.status)
        assert farthest(model, among, alone) < 1e-6


def test_more_trials_than_a_call_holds_are_each_as_alone(float32: None, single_model: SpineModel) -> None:
    lengths = (60, 57, 64, 58, 61)
    assert len(lengths) > solving.CPU_CLIPS
    assert_each_is_as_alone(single_model, [moving(single_model, i, n) for i, n in enumerate(lengths)])


def test_a_trial_of_few_markers_is_as_alone_beside_one_of_many(
    float32: None, single_model: SpineModel
) -> None:
    """How many markers a frame needs goes by what its own trial ever shows."""
    few, many = moving(single_model, 0, 60), moving(single_model, 1, 60)
    few.markers[:, np.arange(single_model.n_markers) % 4 > 0] = np.nan
    assert np.isfinite(few.markers[0, :, 0]).sum() == 9
    assert_each_is_as_alone(single_model, [few, many])
