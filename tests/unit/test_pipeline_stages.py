"""Stages of the simulation that need no solve: options, clips, merging, sizes, the official blending."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from simspine_jax.annotations import GAP_FILLED
from simspine_jax.capture import make_rig
from simspine_jax.clips import cameras_in_ground
from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import project
from simspine_jax.io import MarkerTrajectory
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.pipeline.official import CHAIN, blend_chain
from simspine_jax.pipeline.options import PRESETS, SimulationOptions, preset
from simspine_jax.pipeline.solving import REACH_FRAMES, Motion, _cut, _keep, overlap_frames
from simspine_jax.pipeline.sources import exact_pictures
from simspine_jax.pipeline.stages import (
    Points,
    TrialInput,
    Views,
    clean,
    find_points,
    find_size,
    whole_frames,
)
from simspine_jax.skeleton import KEYPOINT_NAMES, OFFICIAL_MARKER_WEIGHTS, TRC_NAMES

CHAIN_IDS = [KEYPOINT_NAMES.index(name) for name in CHAIN]


def test_presets_are_what_they_say() -> None:
    official = PRESETS["official"]
    assert dict(official.weights) == dict(OFFICIAL_MARKER_WEIGHTS)
    assert official.mass_kg == 70
    assert not official.smooths
    assert PRESETS["simspine"].smooths
    with pytest.raises(UnknownNameError, match="it has: simspine, official"):
        preset("best")
    for wrong in ({"max_gap_s": -1}, {"max_gap_s": -0.5}, {"velocity": float("nan")}, {"blend": 2.0}):
        with pytest.raises(SimspineError, match="valid is"):
            preset("simspine", **wrong)
    with pytest.raises(SimspineError, match="goes with free lumbar joints"):
        preset("simspine", stiffness=1e-3)
    with pytest.raises(SimspineError, match="doesn't smooth"):
        preset("official", acceleration=1e-7)


@pytest.mark.parametrize("overlap", [0, 48])
@pytest.mark.parametrize("n_frames", [1, 511, 512, 513, 928, 5000])
def test_clips_keep_every_frame_once(n_frames: int, overlap: int) -> None:
    clips = _cut(0, n_frames, 512, overlap)
    kept = np.concatenate([np.arange(c.keep, c.stop) for c in clips])
    np.testing.assert_array_equal(kept, np.arange(n_frames))
    for clip in clips:
        assert 0 <= clip.first <= clip.keep
        assert clip.stop <= clip.end <= n_frames
        assert clip.end - clip.first <= 512
        assert clip.keep - clip.first == (overlap if clip.keep else 0)
        assert clip.end in (n_frames, clip.stop + overlap)


def test_solutions_of_neighbouring_clips_are_faded_at_their_seam(tangle_model) -> None:
    """One clip is off by a little and by a whole turn where turns don't matter; another is another pose."""
    n_frames, clips = 900, _cut(0, 900, 512, 64)
    free = tangle_model.coordinate_map.free_indices
    turning = np.array([tangle_model.rotational[i] for i in free]) & np.isinf(np.asarray(tangle_model.upper))
    assert turning.any()
    assert not turning.all()
    truth = np.sin(np.arange(n_frames) / 40)[:, None] * np.ones(len(free))
    off, seams = 0.01, [clip.keep for clip in clips[1:]]
    assert len(seams) == 2
    motion = Motion(np.full_like(truth, np.nan), np.full(n_frames, -1))
    for shift, clip in zip((0.0, off + 2 * np.pi * turning, 1.0), clips, strict=True):
        q = truth[clip.first : clip.end] + shift
        _keep(tangle_model, motion, clip, q, np.zeros(clip.end - clip.first))
    added = motion.q - truth
    np.testing.assert_array_equal(motion.status, 0)
    first, second = seams
    fade = clips[0].fade
    np.testing.assert_allclose(added[: first - fade], 0, atol=1e-12)
    np.testing.assert_allclose(added[first + fade : second], off, atol=1e-12)
    np.testing.assert_allclose(np.diff(added[: second - fade], axis=0).max(), off / (2 * fade), rtol=0.02)
    np.testing.assert_allclose(added[second:], 1.0, atol=1e-12)


def test_clips_overlap_by_time_and_by_the_penalty() -> None:
    options = PRESETS["simspine"]
    assert overlap_frames(options, 50.0) == REACH_FRAMES
    assert overlap_frames(options, 200.0) == 4 * REACH_FRAMES
    heavier = preset("simspine", acceleration=16 * options.acceleration)
    assert overlap_frames(heavier, 50.0) == 2 * REACH_FRAMES
    assert overlap_frames(PRESETS["official"], 50.0) == 0


@pytest.mark.parametrize(
    ("seconds", "rate", "frames"), [(0.29, 100, 29), (0.57, 100, 57), (0.2, 60, 12), (0.19, 10, 1)]
)
def test_gaps_are_whole_frames(seconds: float, rate: float, frames: int) -> None:
    assert whole_frames(seconds, rate) == frames


# --- merging ---


def moving_points(n_frames: int = 40) -> np.ndarray:
    """[T 37 3] keypoints about a standing person's size, which move slowly."""
    rng = np.random.default_rng(0)
    places = rng.uniform([-0.3, 0.1, -0.3], [0.3, 1.7, 0.3], (37, 3))
    phase = rng.uniform(0, 6, (37, 3))
    return places + 0.05 * np.sin(0.15 * np.arange(n_frames)[:, None, None] + phase)


def test_what_is_merged_is_in_the_frame_and_on_the_clock_of_the_markers() -> None:
    points = moving_points()
    cameras, times = make_rig(0), np.arange(len(points)) / 50
    pictures = exact_pictures(cameras, points)
    seen = np.ones(pictures.shape[:-1])
    turn, shift = Rotation.from_euler("y", 70, degrees=True).as_matrix(), np.array([1.0, 0.0, -2.0])
    body = [name for name in TRC_NAMES if not name.startswith(("Spine", "Neck", "Nose", "LEye", "LEar"))]
    ids = [TRC_NAMES.index(name) for name in body]
    turned = points @ turn.T + shift
    markers = MarkerTrajectory(tuple(body), times, turned[:, ids], 50.0, "walk.trc")
    trial = TrialInput("A", times, 50.0, Views(cameras, pictures, seen), markers, "walk")
    found = find_points(trial, PRESETS["simspine"])
    assert found.triangulated is not None
    np.testing.assert_allclose(found.triangulated[20], turned[20], atol=1e-6)
    assert set(found.names) == set(TRC_NAMES)
    order = [found.names.index(name) for name in TRC_NAMES]
    np.testing.assert_allclose(found.positions[20][order], turned[20], atol=1e-6)
    assert not found.optical  # the spine is the detector's
    # The cameras as a clip has them draw the merged points where the detector saw them.
    assert found.T_ground_cameras is not None
    placed = cameras_in_ground(cameras, found.T_ground_cameras)
    drawn = np.moveaxis(np.asarray(project(placed, jnp.asarray(turned)).keypoints), 2, 1)
    np.testing.assert_allclose(drawn, pictures, atol=1e-3)  # px; the points are off by micrometres
    assert found.detections is not None
    np.testing.assert_array_equal(found.detections, pictures)


def test_short_gaps_of_a_marker_are_told_and_are_no_repairs() -> None:
    points = moving_points()
    cameras, times = make_rig(0), np.arange(len(points)) / 50
    seen = np.ones((len(points), 4, 37))
    seen[5:8, 1:, 0] = np.nan
    views = Views(cameras, exact_pictures(cameras, points), seen)
    found = find_points(TrialInput("A", times, 50.0, views), PRESETS["simspine"])
    (event,) = found.events
    assert (event.what, event.reason, event.outcome) == ("Nose", GAP_FILLED, "noted")
    assert np.isfinite(found.positions).all()


def test_a_size_says_how_it_is_known(spine_model) -> None:
    pose = np.asarray(forward_kinematics(spine_model, spine_model.default_q[None]).markers)
    markers = np.repeat(pose, 4, axis=0)
    points = Points(spine_model.marker_names, np.arange(4) / 50, 50.0, markers, np.ones(markers.shape[:2]))

    def known(options: SimulationOptions, **given: float) -> tuple[str, str]:
        size = find_size(spine_model, [points], options, **given)
        return size.height_from, size.mass_from

    plain, official = PRESETS["simspine"], PRESETS["official"]
    assert known(plain) == ("estimated from proportions", "estimated from the height alone")
    assert known(plain, height_m=1.8, mass_kg=80.0) == ("given", "given")
    assert known(official) == ("estimated from proportions", "the preset's")
    assert known(dataclasses.replace(plain, scale=False), height_m=1.8) == ("given", "the model's")


def test_long_gaps_stay_and_are_told() -> None:
    points = moving_points()
    cameras, times = make_rig(0), np.arange(len(points)) / 50
    seen = np.ones((len(points), 4, 37))
    seen[5:30, 1:, 0] = np.nan
    found = find_points(
        TrialInput("A", times, 50.0, Views(cameras, exact_pictures(cameras, points), seen)),
        PRESETS["simspine"],
    )
    assert np.isnan(found.positions[5:30, 0]).all()
    assert (found.confidence[5:30, 0] == 0).all()
    (event,) = found.events
    assert (event.what, event.outcome, event.first_frame, event.last_frame) == ("Nose", "dropped", 5, 29)
    assert event.value == pytest.approx(0.5)
    again = clean(found, PRESETS["simspine"])
    np.testing.assert_array_equal(again.positions, found.positions)


# --- the official blending ---


def test_the_chain_is_stretched_onto_the_prediction() -> None:
    rng = np.random.default_rng(1)
    simulated, predicted = rng.normal(size=(2, 6, 37, 3))
    stretched = blend_chain(simulated, predicted, 0.0)
    for name in ("hip", "neck"):
        i = KEYPOINT_NAMES.index(name)
        np.testing.assert_allclose(stretched[:, i], predicted[:, i], atol=1e-12)

    # A similarity keeps the ratios of all distances.
    def distances(x):
        chain = x[:, CHAIN_IDS]
        return np.linalg.norm(chain[:, :, None] - chain[:, None], axis=-1)

    ratio = distances(stretched)[:, 0, 1:] / distances(simulated)[:, 0, 1:]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-10)
    others = [i for i in range(37) if i not in CHAIN_IDS]
    np.testing.assert_array_equal(stretched[:, others], simulated[:, others])


def test_a_straight_chain_that_agrees_stays_and_gaps_stay_simulated() -> None:
    simulated = np.zeros((3, 37, 3))
    simulated[:, CHAIN_IDS, 1] = np.arange(len(CHAIN_IDS))
    np.testing.assert_allclose(blend_chain(simulated, simulated, 0.2), simulated, atol=1e-12)
    predicted = simulated.copy()
    predicted[1, KEYPOINT_NAMES.index("hip")] = np.nan
    predicted[:, :, 0] += 0.5
    blended = blend_chain(simulated, predicted, 0.2)
    np.testing.assert_array_equal(blended[1], simulated[1])
    np.testing.assert_allclose(blended[0, CHAIN_IDS, 0], 0.5, atol=1e-12)
