"""The record of a trial: its shapes, its names and what its quality flags say."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from simspine_jax.annotations import N_LEVELS, SPINE_IDS, UNSEEN, Quality, QualityEvent, SpineTrial
from simspine_jax.errors import ShapeError
from simspine_jax.skeleton import KEYPOINT_NAMES


def trial(n_frames: int = 4, **changes: Any) -> SpineTrial:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "subject": "S1",
        "action": "Walking 1",
        "times": np.arange(n_frames) / 50,
        "rate_hz": 50.0,
        "keypoints": rng.normal(size=(n_frames, 37, 3)),
        "coordinates": rng.normal(size=(n_frames, 62)),
        "quality": np.zeros(n_frames, np.uint16),
    }
    return SpineTrial(**(values | changes))


OPTIONAL = {
    "triangulated": (37, 3), "confidence": (37,), "reprojection_px": (2, 37), "residuals": (3,),
    "detections": (2, 37, 2), "detection_confidence": (2, 37),
    "vertebral_rotations": (N_LEVELS, 3),
    "lordosis": (), "kyphosis": (), "body_lordosis": (), "body_kyphosis": (),
}  # fmt: skip
REQUIRED = {"times": (), "keypoints": (37, 3), "coordinates": (62,), "quality": ()}
NAMES = {"camera_names": ("a", "b"), "marker_names": ("x", "y", "z")}


def test_every_array_of_the_record_is_checked_here() -> None:
    other = {"subject", "action", "rate_hz", "camera_names", "marker_names", "events", "source"}
    other |= {"T_ground_cameras"}
    assert {f.name for f in fields(SpineTrial)} == OPTIONAL.keys() | REQUIRED.keys() | other
    assert all(getattr(trial(), name) is None for name in OPTIONAL)


@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
def test_a_wrong_shape_is_refused_by_name(name: str) -> None:
    shape = (REQUIRED | OPTIONAL)[name]
    right = trial(**NAMES, **{name: np.zeros((4, *shape))})
    assert getattr(right, name).shape == (4, *shape)
    for wrong in ((4, *shape, 2), (*shape, 4) if shape else (4, 1)):
        with pytest.raises(ShapeError, match=rf"{name} of trial S1_Walking_1 has the shape .*; valid is \("):
            trial(**NAMES, **{name: np.zeros(wrong)})
    if name != "times":
        with pytest.raises(ShapeError, match=f"{name} of trial"):
            trial(**NAMES, **{name: np.zeros((3, *shape))})


def test_the_cameras_place_is_one_matrix_for_all_frames() -> None:
    assert trial().T_ground_cameras is None
    np.testing.assert_array_equal(trial(3, T_ground_cameras=np.eye(4)).T_ground_cameras, np.eye(4))
    with pytest.raises(ShapeError, match=r"T_ground_cameras of trial .* valid is \(4, 4\)"):
        trial(T_ground_cameras=np.zeros((4, 3, 4)))


def test_arrays_are_copied_and_can_not_be_written() -> None:
    keypoints = np.zeros((4, 37, 3), np.float32)
    record = trial(keypoints=keypoints)
    keypoints[:] = 1
    assert record.keypoints.dtype == np.float64
    assert not record.keypoints.any()
    with pytest.raises(ValueError, match="read-only"):
        record.keypoints[0] = 1
    assert record.quality.dtype == np.uint16


@pytest.mark.parametrize("text", ["", " S1", "../S1", "S1/x", "S\n", "é", "."])
@pytest.mark.parametrize("name", ["subject", "action"])
def test_names_that_are_no_file_names_are_refused(name: str, text: str) -> None:
    with pytest.raises(ShapeError, match=f"The trial's {name} is "):
        trial(**{name: text})


def test_the_name_is_that_of_the_release() -> None:
    assert trial().name == "S1_Walking_1"
    assert trial(subject="a b", action="x.y-z").name == "a_b_x.y-z"
    assert trial(7).n_frames == 7


def test_frames_are_usable_when_nothing_but_a_repair_is_noted() -> None:
    flags = [Quality.GOOD, Quality.INTERPOLATED, Quality.CURVATURE, Quality.CURVATURE | Quality.INTERPOLATED]
    record = trial(quality=np.array(flags, np.uint16))
    np.testing.assert_array_equal(record.usable, [True, True, False, False])
    # Every combination there is: the array's answer is the flag's.
    every = np.arange(2 * max(Quality), dtype=np.uint16)
    record = trial(len(every), quality=every)
    assert record.usable.tolist() == [Quality(int(q)).usable for q in every]
    assert record.usable.sum() == 2


def test_flags_keep_the_numbers_that_files_hold() -> None:
    assert {flag.name: int(flag) for flag in Quality} == {
        "NO_POSE": 1, "MARKER_RESIDUAL": 2, "CURVATURE": 4, "JOINT_LIMITS": 8, "ANGULAR_JUMP": 16,
        "INTERPOLATED": 32,
    }  # fmt: skip


def test_a_trial_can_be_changed_in_one_place() -> None:
    event = QualityEvent("ik", 0, 3, "", "the model is far off", "rejected", 52.0, 40.0, "mm")
    record = replace(trial(), events=(event,), lordosis=np.ones(4))
    assert record.events[0].value == 52.0
    assert record.lordosis is not None
    np.testing.assert_array_equal(record.keypoints, trial().keypoints)


def test_what_was_seen_of_the_spine_is_in_points_or_targets() -> None:
    assert [KEYPOINT_NAMES[i] for i in SPINE_IDS] == [
        "hip", "spine_01", "spine_02", "spine_03", "spine_04", "spine_05", "neck", "neck_02", "neck_03",
    ]  # fmt: skip
    assert trial().spine_seen is None
    assert trial().back_seen is None
    points = np.full((4, 37, 3), np.nan)
    points[1:, KEYPOINT_NAMES.index("neck")] = 0
    points[3, KEYPOINT_NAMES.index("spine_04")] = 0
    seen = trial(triangulated=points)
    assert seen.spine_seen is not None
    assert np.argwhere(seen.spine_seen).tolist() == [[1, 6], [2, 6], [3, 4], [3, 6]]
    np.testing.assert_array_equal(seen.back_seen, [False, False, False, True])
    residuals = np.full((4, 2), np.nan)
    residuals[2, 1] = 0.01
    markers = trial(marker_names=("Head", "Spine_01"), residuals=residuals, triangulated=points)
    np.testing.assert_array_equal(markers.back_seen, [False, False, True, True])


def test_a_source_that_says_so_stands_for_a_spine_that_was_not_seen() -> None:
    np.testing.assert_array_equal(trial(source=f"a.h5 ({UNSEEN})").back_seen, [False] * 4)
    assert trial(source="a.h5").back_seen is None
