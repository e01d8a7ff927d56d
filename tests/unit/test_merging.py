"""Names that mean one place, resampling against SciPy, frames and clocks that are known, and precedence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BarycentricInterpolator
from scipy.spatial.transform import Rotation

from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.io import MarkerTrajectory, read_trc
from simspine_jax.merging import (
    HUMAN36M_OVERLAP,
    NEAR_PLACE,
    SAME_PLACE,
    MergeOptions,
    correspondence,
    merge_markers,
    resample,
)
from simspine_jax.skeleton import KEYPOINT_SCHEMAS, TRC_NAMES

LIMBS = tuple(side + part for side in "RL" for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"))
SPINE = ("Hip", "Spine_01", "Spine_02", "Spine_03", "Spine_04", "Spine_05", "Neck")
# Float64 in another order of operations.
ROUNDING = 1e-10
SAME = MergeOptions(same_frame=True)


def places(names, times: np.ndarray) -> np.ndarray:
    """[T K 3] a smooth motion of each name, the same whenever it is sampled; about 1 m/s."""
    result = []
    for name in names:
        random = np.random.default_rng(sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**32)
        waves = random.uniform(0.2, 0.9, (3, 3)), random.uniform(0, 6, (3, 3))
        moved = np.sin(2 * np.pi * times[:, None, None] * waves[0] + waves[1]).sum(axis=1)
        result.append(random.uniform(-0.5, 0.5, 3) + 0.15 * moved)
    return np.stack(result, axis=1)


def recording(names, rate: float = 100.0, start: float = 0.0, seconds: float = 5.0, **change):
    times = start + np.arange(int(seconds * rate) + 1) / rate
    positions = places(names, times + change.pop("late", 0.0))
    source = change.pop("source", "walk.trc")
    return MarkerTrajectory(tuple(names), times, positions, rate, source)


def with_positions(markers: MarkerTrajectory, positions: np.ndarray) -> MarkerTrajectory:
    return MarkerTrajectory(markers.names, markers.times, positions, markers.rate, markers.source)


# --- names ---


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("C7", "Neck"), ("CV7", "Neck"), ("T8", "Spine_04"), ("L3", "Spine_02"), ("SACR", "Hip"),
        ("RShoulder", "RShoulder"), ("R.Shoulder", "RShoulder"), ("RightShoulder", "RShoulder"),
        ("right_shoulder", "RShoulder"), ("Shoulder_R", "RShoulder"), ("left big toe", "LBigToe"),
        ("RHEE", "RHeel"), ("Anna:C7", "Neck"), ("spine_03", "Spine_03"), ("LeftUpLeg", "LHip"),
        # Other places than a keypoint's:
        ("RSHO", "RSHO"), ("RKNE", "RKNE"), ("LASI", "LASI"), ("CLAV", "CLAV"), ("T10", "T10"),
        ("R.Acromium", "R.Acromium"), ("STRN", "STRN"), ("T12", "T12"), ("RTOE", "RTOE"),
    ],
)  # fmt: skip
def test_names_of_one_place_are_one_and_others_are_kept(name: str, place: str) -> None:
    assert correspondence([name]) == {name: place}


def test_the_vocabulary_names_itself() -> None:
    for schema in KEYPOINT_SCHEMAS.values():
        assert correspondence(schema.markers) == {name: name for name in schema.markers}
    assert set(SAME_PLACE) == set(TRC_NAMES)


def test_no_spelling_means_two_places() -> None:
    spellings = [s for table in (SAME_PLACE, NEAR_PLACE) for row in table.values() for s in row]
    assert len(spellings) > 150
    assert len(spellings) == len(set(spellings))
    for name, row in SAME_PLACE.items():
        for spelling in row:
            assert correspondence([spelling.upper()]) == {spelling.upper(): name}


def test_of_two_names_for_one_place_the_better_has_it() -> None:
    # In the skeleton of BVH files RightShoulder is the clavicle.
    found = correspondence(["RightShoulder", "RightArm", "RightForeArm"])
    assert found == {"RightShoulder": "RightShoulder", "RightArm": "RShoulder", "RightForeArm": "RElbow"}
    assert correspondence(["C7", "Neck"]) == {"C7": "C7", "Neck": "Neck"}
    assert correspondence(["CV7", "C7"]) == {"CV7": "CV7", "C7": "Neck"}


def test_a_users_names_override() -> None:
    assert correspondence(["C7", "RSHO"], {"RSHO": "RShoulder", "C7": None}) == {
        "C7": None,
        "RSHO": "RShoulder",
    }
    assert correspondence(["C7", "T1"], {"T1": "Neck"}) == {"C7": "C7", "T1": "Neck"}
    with pytest.raises(UnknownNameError, match=r"'C8' is not in walk\.trc; it has: C7"):
        correspondence(["C7"], {"C8": "Neck"}, "walk.trc")
    for names, mapping in ((["C7", "T1"], {"C7": "Neck", "T1": "Neck"}), (["Neck", "T1"], {"T1": "Neck"})):
        with pytest.raises(SimspineError, match="would both be 'Neck'; valid are"):
            correspondence(names, mapping)


def test_human36ms_joints_of_other_places_can_be_left_out() -> None:
    body = recording((*LIMBS, "Hip", "Neck", "Head", "Nose"))
    spine = recording(TRC_NAMES)
    mapping = {name: None for name in HUMAN36M_OVERLAP if name in body.names}
    merged = merge_markers(body, spine, SAME, body_mapping=mapping)
    assert set(merged.markers.names) == set(TRC_NAMES)
    assert merged.markers.names[: len(LIMBS)] == LIMBS
    limb = np.array([name in LIMBS for name in merged.markers.names])
    np.testing.assert_array_equal(merged.from_spine, np.broadcast_to(~limb, merged.from_spine.shape))
    np.testing.assert_array_equal(merged.confidence[0], np.where(limb, 1.0, 0.5))


# --- times ---


def lagrange(known: np.ndarray, values: np.ndarray, at: float) -> np.ndarray:
    return BarycentricInterpolator(known, values)(at)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["linear", "cubic"]), st.sampled_from([0.0, 0.025, 0.06, 1.0]))
def test_samples_between_are_scipys_and_long_gaps_stay(seed: int, method, horizon: float) -> None:
    random = np.random.default_rng(seed)
    whole = recording(("A", "B"), seconds=0.4)
    positions = whole.positions.copy()
    positions[random.uniform(size=positions.shape[:2]) < 0.35] = np.nan
    positions[0, 1], positions[-1, 1] = np.nan, np.nan
    markers = with_positions(whole, positions)
    times = np.concatenate([random.uniform(-0.05, 0.45, 40), whole.times[::3]])
    got = resample(markers, times, method=method, max_gap_s=horizon)
    filled = 0
    for k in range(2):
        seen = markers.present[:, k]
        known, values = markers.times[seen], positions[seen, k]
        for t, row in zip(times, got[:, k], strict=True):
            nearest = np.abs(known - t).argmin()
            right = int(np.searchsorted(known, t))
            inside = 0 < right < len(known) and known[right] - known[right - 1] <= horizon + 0.0111
            if not inside and abs(known[nearest] - t) < 1e-5:
                np.testing.assert_array_equal(row, values[nearest])
            elif not inside:
                assert np.isnan(row).all()
            else:
                four = slice(right - 2, right + 2)
                near = right >= 2 and right + 1 < len(known)
                near = near and (np.diff(known[four]) <= horizon + 0.0111).all()
                use = four if near and method == "cubic" else slice(right - 1, right + 1)
                np.testing.assert_allclose(row, lagrange(known[use], values[use], t), atol=ROUNDING)
                filled += 1
    assert filled


def test_common_times_are_the_bodys_or_of_a_given_rate() -> None:
    body = recording(LIMBS, rate=100.0, start=0.0, seconds=5)
    spine = recording(SPINE, rate=60.0, start=1.005, seconds=9)
    merged = merge_markers(body, spine, SAME)
    np.testing.assert_array_equal(merged.markers.times, body.times[101:])
    assert merged.markers.rate == 100.0
    assert merged.markers.present.all()
    truth = places(merged.markers.names, merged.markers.times)
    # The cubic at 60 Hz of motion below 1 Hz; between the first two samples and the last two it is linear.
    np.testing.assert_allclose(merged.markers.positions[2:-2], truth[2:-2], atol=2e-5)
    slower = merge_markers(body, spine, MergeOptions(same_frame=True, rate_hz=50.0, method="linear"))
    assert slower.markers.rate == 50.0
    np.testing.assert_allclose(slower.markers.times, 1.005 + np.arange(200) / 50)
    truth = places(slower.markers.names, slower.markers.times)
    np.testing.assert_allclose(slower.markers.positions, truth, atol=1e-3)
    assert np.abs(slower.markers.positions - truth).max() > 2e-5


def test_gaps_beyond_the_horizon_stay_and_have_no_confidence() -> None:
    spine = recording(SPINE)
    positions = spine.positions.copy()
    positions[100:105, 2] = np.nan  # 0.05 s
    positions[200:230, 2] = np.nan  # 0.3 s
    spine = with_positions(spine, positions)
    body = recording(LIMBS)
    for horizon, gone in ((0.1, slice(200, 230)), (0.02, np.r_[100:105, 200:230]), (0.5, slice(0, 0))):
        merged = merge_markers(body, spine, MergeOptions(same_frame=True, max_gap_s=horizon))
        k = merged.markers.names.index("Spine_02")
        expected = np.zeros(501, bool)
        expected[gone] = True
        np.testing.assert_array_equal(~merged.markers.present[:, k], expected)
        np.testing.assert_array_equal(merged.confidence[:, k] == 0, expected)
        assert merged.markers.present.sum() == merged.markers.present.size - expected.sum()


def test_recordings_apart_in_time_are_refused() -> None:
    with pytest.raises(SimspineError, match=r"walk.trc has 0 to 5 s and spine.trc 7 to 12 s; valid are"):
        merge_markers(recording(LIMBS), recording(SPINE, start=7.0, source="spine.trc"), SAME)


@settings(max_examples=12, deadline=None)
@given(st.floats(-1.9, 1.9), st.sampled_from([50.0, 100.0]), st.integers(0, 100))
def test_the_offset_of_the_clocks_is_found(late: float, rate: float, seed: int) -> None:
    """Whatever frame the spine is in, with noise and gaps; within a tenth of a frame of the slower."""
    names = (*LIMBS[:4], *SPINE)
    body = recording(LIMBS, seconds=8)
    spine = recording(names, rate=rate, seconds=8, late=late)
    random = np.random.default_rng(seed)
    positions = spine.positions @ Rotation.from_rotvec([0.3, -2, 1]).as_matrix().T + [1, 2, 3]
    positions += random.normal(0, 0.002, positions.shape)
    positions[random.uniform(size=positions.shape[:2]) < 0.05] = np.nan
    merged = merge_markers(body, with_positions(spine, positions), MergeOptions(time_offset_s=None))
    assert merged.time_offset_s == pytest.approx(late, abs=0.1 / rate)
    truth = places(merged.markers.names, merged.markers.times)
    error = np.linalg.norm(merged.markers.positions - truth, axis=-1)
    assert np.sqrt(np.nanmean(error**2)) < 0.006


def test_clocks_that_do_not_match_are_refused() -> None:
    body, other = recording(LIMBS), recording(LIMBS)
    options = MergeOptions(time_offset_s=None)
    shuffled = with_positions(other, places([name + "?" for name in LIMBS], other.times))
    with pytest.raises(SimspineError, match=r"can't be matched: .* valid is 0.6 or time_offset_s"):
        merge_markers(body, shuffled, options)
    with pytest.raises(SimspineError, match="can't be compared without a common marker"):
        merge_markers(body, recording(SPINE), options)
    far = recording(LIMBS, late=1.5)
    found = merge_markers(body, far, options).time_offset_s
    assert found == pytest.approx(1.5, abs=1e-3)
    with pytest.raises(SimspineError, match=r"within 0.5 s"):
        merge_markers(body, far, MergeOptions(time_offset_s=None, max_offset_s=0.5))
    given_one = merge_markers(body, far, MergeOptions(time_offset_s=1.5))
    assert given_one.time_offset_s == 1.5
    assert given_one.alignment is not None
    assert given_one.alignment.residual_m < 1e-6


# --- frames ---


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.4))
def test_a_known_frame_is_found_among_outliers(seed: int, bad: float) -> None:
    random = np.random.default_rng(seed)
    names = (*LIMBS[:6], *SPINE)
    body, spine = recording(LIMBS), recording(names)
    rotation = Rotation.from_quat(random.normal(size=4)).as_matrix()
    translation = random.uniform(-3, 3, 3)
    positions = (spine.positions - translation) @ rotation  # so that rotation @ x + translation is the body's
    outliers = random.uniform(size=positions.shape[:2]) < bad
    positions[outliers] += random.uniform(0.3, 2, (outliers.sum(), 3))
    merged = merge_markers(body, with_positions(spine, positions))
    assert merged.alignment is not None
    np.testing.assert_allclose(merged.alignment.rotation, rotation, atol=1e-4)
    np.testing.assert_allclose(merged.alignment.translation, translation, atol=1e-3)
    assert merged.alignment.residual_m < 1e-3
    assert merged.alignment.agreeing == pytest.approx(1 - bad, abs=0.1)
    assert merged.alignment.markers == LIMBS[:6]
    k = merged.markers.names.index("Spine_02")
    error = np.linalg.norm(merged.markers.positions[:, k] - places(["Spine_02"], spine.times)[:, 0], axis=-1)
    assert error[~outliers[:, names.index("Spine_02")]].max() < 1e-3


def test_the_residual_is_the_noises() -> None:
    names = (*LIMBS, *SPINE)
    body, spine = recording(LIMBS), recording(names)
    noise = np.random.default_rng(0).normal(0, 0.01, spine.positions.shape)
    merged = merge_markers(body, with_positions(spine, spine.positions + noise))
    assert merged.alignment is not None
    assert merged.alignment.residual_m == pytest.approx(0.01 * np.sqrt(3), rel=0.03)
    assert merged.alignment.agreeing > 0.99
    np.testing.assert_allclose(merged.alignment.rotation, np.eye(3), atol=2e-3)


def test_frames_that_are_the_same_are_left_alone() -> None:
    merged = merge_markers(recording(LIMBS), recording(SPINE), SAME)
    assert merged.alignment is None
    np.testing.assert_allclose(
        merged.markers.positions, places((*LIMBS, *SPINE), merged.markers.times), atol=ROUNDING
    )


def test_frames_that_cannot_be_aligned_are_refused() -> None:
    body, spine = recording(LIMBS), recording((*LIMBS, *SPINE), source="spine.trc")
    with pytest.raises(SimspineError, match=r"have 2 markers in common \(RHip, Neck\); valid are 3"):
        merge_markers(recording(("RHip", "C7")), spine)
    with pytest.raises(SimspineError, match=r"0 markers in common \(none\)"):
        merge_markers(body, recording(SPINE))
    mirrored = with_positions(spine, spine.positions * np.array([1, 1, -1]))
    with pytest.raises(SimspineError, match=r"they stay \d+ mm apart, \d+% within 50 mm; valid is 50%"):
        merge_markers(body, mirrored)
    shifted = spine.positions.copy()
    for k in range(3):  # a third each to another side, so that no majority agrees
        shifted[:, k::3] += 0.03 * np.eye(3)[k]
    loose = with_positions(spine, shifted)
    assert merge_markers(body, loose).alignment is not None
    with pytest.raises(SimspineError, match="within 10 mm"):
        merge_markers(body, loose, MergeOptions(max_residual_m=0.01))
    line = np.arange(12)[None, :, None] * np.array([0.1, 0.2, 0.3]) * np.ones((501, 1, 1))
    with pytest.raises(SimspineError, match="not on a line"):
        merge_markers(with_positions(body, line), with_positions(recording(LIMBS), line))


def test_skin_markers_near_joints_align_frames_and_keep_their_names() -> None:
    """A plug-in gait set: joints' skin markers 4 cm outwards, left and right alike."""
    skin = ("RSHO", "LSHO", "RKNE", "LKNE", "RANK", "LANK", "RELB", "LELB", "T10")
    joints = ("RShoulder", "LShoulder", "RKnee", "LKnee", "RAnkle", "LAnkle", "RElbow", "LElbow")
    spine = recording((*joints, *SPINE))
    outwards = np.where([name[0] == "R" for name in joints], 0.04, -0.04)[:, None] * np.array([0, 0, 1.0])
    body = recording(skin)
    positions = np.concatenate([spine.positions[:, :8] + outwards, body.positions[:, 8:]], axis=1)
    rotation = Rotation.from_rotvec([0.2, 1.0, -0.4])
    turned = with_positions(spine, spine.positions @ rotation.as_matrix())
    merged = merge_markers(with_positions(body, positions), turned, MergeOptions(max_residual_m=0.08))
    assert merged.alignment is not None
    assert merged.alignment.markers == joints
    off = Rotation.from_matrix(merged.alignment.rotation) * rotation.inv()
    assert np.rad2deg(off.magnitude()) < 5
    assert merged.markers.names == (*skin, *joints, *SPINE)
    np.testing.assert_allclose(merged.markers.positions[:, :9], positions, atol=ROUNDING)


# --- precedence ---


def test_the_more_confident_recording_has_precedence_and_the_other_fills() -> None:
    body, spine = recording(("C7", "RHip")), recording(("Neck", "Hip"))
    moved = with_positions(spine, spine.positions + 0.02)
    hole = body.positions.copy()
    hole[200:300, 0] = np.nan
    merged = merge_markers(with_positions(body, hole), moved, SAME)
    assert merged.markers.names == ("Neck", "RHip", "Hip")
    assert merged.renamed == (("C7", "Neck"),)
    inside = np.zeros(501, bool)
    inside[200:300] = True
    np.testing.assert_array_equal(merged.from_spine[:, 0], inside)
    np.testing.assert_array_equal(merged.confidence[:, 0], np.where(inside, 0.5, 1.0))
    expected = np.where(inside[:, None], moved.positions[:, 0], body.positions[:, 0])
    np.testing.assert_allclose(merged.markers.positions[:, 0], expected, atol=ROUNDING)
    # Confidences turn it round, per marker and as a whole, however they go up and down.
    unsure = np.tile(np.where(np.arange(501) % 2, 0.2, 0.7)[:, None], (1, 2))
    swapped = merge_markers(with_positions(body, hole), moved, SAME, body_confidence=unsure)
    assert swapped.from_spine[:, 0].all()
    assert not swapped.from_spine[:, 1].any()
    np.testing.assert_allclose(swapped.confidence[:, 1], unsure[:, 1], atol=ROUNDING)


def test_observations_without_confidence_count_as_missing() -> None:
    body, spine = recording(("RHip",)), recording(SPINE)
    confidence = np.full((501, len(SPINE)), 0.4)
    confidence[100:150, 3] = 0.0
    merged = merge_markers(body, spine, SAME, spine_confidence=confidence)
    gone = np.flatnonzero(~merged.markers.present[:, 4])
    np.testing.assert_array_equal(gone, np.arange(100, 150))
    assert ((merged.confidence >= 0) & (merged.confidence <= 1)).all()
    np.testing.assert_array_equal(merged.confidence > 0, merged.markers.present)


def test_what_does_not_fit_is_refused() -> None:
    body, spine = recording(LIMBS), recording(SPINE)
    with pytest.raises(ShapeError, match=r"confidence of walk.trc has shape"):
        merge_markers(body, spine, SAME, body_confidence=np.ones((3, 3)))
    for wrong in (1.1, -0.1, np.nan):
        with pytest.raises(ShapeError, match="not from 0 to 1"):
            merge_markers(body, spine, SAME, spine_confidence=np.full((501, len(SPINE)), wrong))
    with pytest.raises(SimspineError, match=r"All markers of walk\.trc are left out"):
        merge_markers(body, spine, SAME, body_mapping=dict.fromkeys(LIMBS))
    for change in ({"method": "spline"}, {"max_gap_s": -1}, {"rate_hz": 0}, {"max_residual_m": 0}):
        with pytest.raises(ShapeError, match="; valid"):
            MergeOptions(**change)  # pyright: ignore[reportArgumentType]


def test_a_real_trial_merges_with_its_own_raw_points_in_another_frame(shared_data: Path) -> None:
    """The filtered markers as the body, the raw ones turned, slower and late as the other recording."""
    folder = shared_data / "pose2sim_demo"
    body, raw = read_trc(folder / "markers.trc"), read_trc(folder / "markers_raw.trc")
    turn = Rotation.from_rotvec([0.1, 2.0, 0.3])
    positions = raw.positions @ turn.as_matrix().T + np.array([0.5, 0.1, -2])
    other = MarkerTrajectory(raw.names, raw.times[::2] + 0.25, positions[::2], raw.rate / 2, raw.source)
    merged = merge_markers(body, other, MergeOptions(time_offset_s=None, max_offset_s=0.5))
    assert merged.time_offset_s == pytest.approx(-0.25, abs=0.002)  # at 60 Hz and 30 Hz
    assert merged.alignment is not None
    assert merged.alignment.residual_m < 0.015  # what the filter took away
    off = Rotation.from_matrix(merged.alignment.rotation) * turn
    assert np.rad2deg(off.magnitude()) < 0.5
    assert merged.markers.names == body.names


def test_a_real_optical_set_keeps_its_skin_markers(shared_data: Path) -> None:
    names = read_trc(shared_data / "gait2392" / "markers.trc").names
    renamed = {old: new for old, new in correspondence(names).items() if old != new}
    assert renamed == {
        "V.Sacral": "Hip", "R.Heel": "RHeel", "L.Heel": "LHeel", "R.Elbow": "RElbow", "L.Elbow": "LElbow",
    }  # fmt: skip
