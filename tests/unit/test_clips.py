"""Records of the dataset: shapes, masks, cameras and pictures."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spine_trials import bare_trial, make_trial

from simspine_jax.clips import (
    BODY_NAMES,
    CLIP_FIELDS,
    CURVATURE_NAMES,
    MAX_CLIP_FRAMES,
    N_BODIES,
    SPLITS,
    Clip,
    cameras_in_ground,
    clips_of,
    pictures_of,
    split_of,
)
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS

# px: keypoints are projected in float32, whose rounding is 1e-7 of coordinates of some 5,000 px.
PIXEL = 5e-3
# m: the rounding of positions kept in float32, within 10 m of the origin.
FLOAT32_M = 1e-6
LENS = np.array([-0.2071, 0.2478, -0.00142, -0.00098, -0.0031, 0, 0, 0])


def turn(axis) -> np.ndarray:
    """Rodrigues' formula, apart from the library's."""
    angle = np.linalg.norm(axis)
    x, y, z = np.asarray(axis) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rig(names: tuple[str, ...] = ("right", "left"), **changes: Any) -> Cameras:
    """Cameras of a Z-up world, level, 5 m from the origin and 1 m above it, on two sides."""
    count = len(names)
    level = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # x right, y down, z forward from x, z up, y
    rotations = np.stack([level @ turn((0, 0, 1e-9 + 0.9 * v)) for v in range(count)])
    values: dict[str, Any] = {
        "rotations": rotations,
        "translations": np.tile([0.0, 1.0, 5.0], (count, 1)),
        "focal_lengths": np.tile([1145.0, 1144.0], (count, 1)),
        "principal_points": np.tile([512.0, 515.0], (count, 1)),
        "skews": np.zeros(count),
        "distortion": np.tile(LENS, (count, 1)),
        "sizes": np.tile([1000.0, 1002.0], (count, 1)),
        "names": names,
    }
    return Cameras(**(values | changes))


def seen_trial(**changes: Any):
    """With detections of both cameras, some of them missing, and a keypoint that is not known once."""
    trial = make_trial()
    random = np.random.default_rng(3)
    detections = random.uniform(0, 1000, (trial.n_frames, 2, 37, 2))
    detections[4, 1, 7] = np.nan
    keypoints = np.array(trial.keypoints)
    keypoints[2, 5] = np.nan
    coordinates = np.array(trial.coordinates)
    coordinates[3, 8] = np.nan
    return make_trial(
        **{
            "keypoints": keypoints,
            "coordinates": coordinates,
            "detections": detections,
            "detection_confidence": random.uniform(0, 1, (trial.n_frames, 2, 37)),
        }
        | changes
    )


def only(trial, *arguments, **options) -> Clip:
    (clip,) = clips_of(trial, *arguments, **options)
    return clip


def test_the_fields_are_described_once_and_in_order() -> None:
    assert [f.name for f in CLIP_FIELDS] == [f.name for f in fields(Clip)]
    assert all(f.doc.endswith(".") for f in CLIP_FIELDS)
    masks = {f.name for f in CLIP_FIELDS if f.name.endswith("_mask")}
    by_name = {f.name: f for f in CLIP_FIELDS}
    for mask in masks:
        assert by_name[mask].kind == "bool"
        of = by_name[mask.removesuffix("_mask")]
        assert of.kind == "float32"
        assert of.shape[: len(by_name[mask].shape)] == by_name[mask].shape
    # What varies from frame to frame and can miss something has a mask.
    unmasked = {f.name for f in CLIP_FIELDS if f.per_frame and not f.name.endswith("_mask")}
    assert unmasked - {m.removesuffix("_mask") for m in masks} == {
        "times",
        "frames",
        "quality",
        "detections_confidence",
    }


def test_a_clip_has_the_shapes_and_kinds_that_are_told() -> None:
    clip = only(seen_trial(), rig(), make_trial(), scale_factors=np.ones((N_BODIES, 3)), height_m=1.8)
    sizes = {"T": 40, "V": 2}
    for field in CLIP_FIELDS:
        value = getattr(clip, field.name)
        if field.kind == "text":
            assert len(value) == 2 if field.shape else isinstance(value, str)
        elif field.shape:
            assert value.dtype == field.kind
            assert value.shape == tuple(sizes.get(d, d) for d in field.shape)  # type: ignore[call-overload]
    assert clip.n_frames == 40
    assert clip.height_m == pytest.approx(1.8)
    assert np.isnan(clip.mass_kg)
    assert clip.subject == "S1"
    assert clip.action == "Walking 1"


@pytest.mark.parametrize("name", [f.name for f in CLIP_FIELDS if f.kind != "text" and f.shape])
def test_a_wrong_shape_is_refused_by_name(name: str) -> None:
    clip = only(seen_trial(), rig())
    value = getattr(clip, name)
    with pytest.raises(ShapeError, match=r"of a clip of S1, Walking 1 has the shape .*; valid is \("):
        replace(clip, **{name: np.concatenate([value, value])})
    with pytest.raises(ShapeError, match="of a clip of S1, Walking 1 has the shape"):
        replace(clip, **{name: value[..., None]})


def test_masks_tell_what_is_known_and_the_rest_is_nan() -> None:
    clip = only(seen_trial(), rig(), make_trial())
    for field in CLIP_FIELDS:
        if not field.name.endswith("_mask") or field.name == "keypoints_2d_mask":
            continue
        value, mask = getattr(clip, field.name.removesuffix("_mask")), getattr(clip, field.name)
        finite = np.isfinite(value)
        known = mask if value.ndim == mask.ndim else np.broadcast_to(mask[..., None], value.shape)
        np.testing.assert_array_equal(finite, known, err_msg=field.name)
    # Frames that the trial lacks, and nothing else.
    assert (~clip.keypoints_3d_mask).sum() == 1
    assert not clip.keypoints_3d_mask[2, 5]
    assert (~clip.kinematics_mask).sum() == 1
    assert not clip.kinematics_mask[3, 8]
    assert (~clip.detections_2d_mask).sum() == 1
    view = clip.camera_names.index("right")
    assert not clip.detections_2d_mask[4, view, 7]
    assert np.isnan(clip.detections_confidence[4, view, 7])
    assert np.isfinite(clip.detections_confidence).sum() == clip.detections_2d_mask.sum()
    # A keypoint that is not known has no picture.
    assert np.isnan(clip.keypoints_2d[2, :, 5]).all()
    assert not clip.keypoints_2d_mask[2, :, 5].any()


def test_what_a_source_lacks_is_masked_and_never_zero() -> None:
    clip = only(bare_trial())
    assert clip.camera_names == ()
    assert clip.keypoints_2d.shape == (40, 0, 37, 2)
    for name in (
        "vertebral_rotations", "curvature", "true_keypoints_3d", "true_kinematics", "true_curvature",
    ):  # fmt: skip
        assert np.isnan(getattr(clip, name)).all()
        assert not getattr(clip, f"{name}_mask").any()
    assert np.isnan(clip.scale_factors).all()
    assert np.isnan(clip.height_m)
    in_view = only(bare_trial(), rig())
    assert not in_view.detections_2d_mask.any()
    assert np.isnan(in_view.detections_2d).all()
    assert np.isnan(in_view.detections_confidence).all()


def test_values_are_the_trials() -> None:
    trial, truth = seen_trial(), make_trial("S1", "Walking 2")
    clip = only(trial, rig(), truth)
    assert clip.source == trial.source
    np.testing.assert_array_equal(clip.quality, trial.quality)
    np.testing.assert_array_equal(clip.times, trial.times)
    np.testing.assert_allclose(clip.keypoints_3d, trial.keypoints, atol=FLOAT32_M)
    np.testing.assert_allclose(clip.true_keypoints_3d, truth.keypoints, atol=FLOAT32_M)
    np.testing.assert_allclose(clip.true_kinematics, truth.coordinates, atol=FLOAT32_M)
    for column, name in enumerate(CURVATURE_NAMES):
        np.testing.assert_allclose(clip.curvature[:, column], getattr(trial, name), atol=FLOAT32_M)
    assert clip.vertebral_rotations.shape[1] == len(VERTEBRAL_LEVELS)
    # The trial has its cameras in another order.
    assert trial.camera_names == ("left", "right")
    assert trial.detections is not None
    np.testing.assert_allclose(clip.detections_2d, trial.detections[:, ::-1], rtol=1e-6)
    assert not clip.is_synthetic
    assert only(make_trial(source="synthetic capture: S1")).is_synthetic


@pytest.mark.parametrize("max_frames", [7, 20, 40, 100])
def test_clips_joined_are_the_trial(max_frames: int) -> None:
    trial = seen_trial()
    whole = only(trial, rig(), make_trial())
    clips = list(clips_of(trial, rig(), make_trial(), max_frames=max_frames))
    assert [c.first_frame for c in clips] == list(range(0, 40, max_frames))
    assert max(c.n_frames for c in clips) <= max_frames
    for field in CLIP_FIELDS:
        if field.per_frame:
            joined = np.concatenate([getattr(c, field.name) for c in clips])
            np.testing.assert_array_equal(joined, getattr(whole, field.name), err_msg=field.name)
        elif field.name != "first_frame":
            for clip in clips:
                np.testing.assert_array_equal(getattr(clip, field.name), getattr(whole, field.name))


def test_frames_are_numbered_as_the_source_counts_them() -> None:
    clips = list(clips_of(make_trial(), rig(), max_frames=20))
    assert np.concatenate([c.frames for c in clips]).tolist() == list(range(40))
    numbers = 7 + 5 * np.arange(40, dtype=np.int32)
    clips = list(clips_of(make_trial(), rig(), max_frames=30, numbers=numbers))
    assert [c.first_frame for c in clips] == [0, 30]
    assert clips[1].frames.tolist() == numbers[30:].tolist()
    assert clips[1].frames.dtype == np.int32


def test_true_curvature_is_the_truths() -> None:
    truth = make_trial("S1", "Walking 2", kyphosis=None)
    clip = only(make_trial(), rig(), truth)
    np.testing.assert_allclose(clip.true_curvature[:, 0], truth.lordosis, atol=FLOAT32_M)
    assert clip.true_curvature_mask.all(axis=0).tolist() == [True, False]
    assert np.isnan(clip.true_curvature[:, 1]).all()
    assert not only(make_trial(), rig()).true_curvature_mask.any()


def test_clips_of_any_length_have_pictures() -> None:
    points = np.zeros((720, 37, 3), np.float32)
    points[:, :, 1] = np.linspace(0.5, 1.5, 37)
    cameras = cameras_in_ground(rig())
    pixels, inside = pictures_of(cameras, points)
    assert pixels.shape == (720, 2, 37, 2)
    assert inside.any()
    first, rest = pictures_of(cameras, points[:500])[0], pictures_of(cameras, points[500:])[0]
    np.testing.assert_array_equal(pixels, np.concatenate([first, rest]))


def test_bodies_are_the_models(spine_model) -> None:
    assert spine_model.body_names == BODY_NAMES


def test_a_clip_is_at_most_ten_seconds() -> None:
    assert [c.n_frames for c in clips_of(make_trial(n_frames=1001))] == [MAX_CLIP_FRAMES, MAX_CLIP_FRAMES, 1]


def test_pictures_are_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    clip = only(seen_trial(), rig())
    assert 0.2 < clip.keypoints_2d_mask.mean() < 1
    cameras = clip.cameras
    assert cameras.names == clip.camera_names
    for v in range(2):
        matrix = np.eye(3)
        matrix[[0, 1], [0, 1]] = clip.camera_focal_lengths[v]
        matrix[:2, 2] = clip.camera_principal_points[v]
        points = clip.keypoints_3d[clip.keypoints_3d_mask].astype(np.float64)
        R, t = clip.camera_rotations[v], clip.camera_translations[v]
        expected = cv2.projectPoints(points, cv2.Rodrigues(R)[0], t, matrix, LENS)[0][:, 0]
        found = clip.keypoints_2d[:, v][clip.keypoints_3d_mask]
        np.testing.assert_allclose(found, expected, atol=PIXEL)
        inside = ((expected > -0.5) & (expected < (999.5, 1001.5))).all(axis=-1)
        np.testing.assert_array_equal(clip.keypoints_2d_mask[:, v][clip.keypoints_3d_mask], inside)


def test_human36m_lenses_keep_their_name_and_an_unknown_one_is_refused() -> None:
    clip = only(make_trial(), rig(distortion_model="h36m"))
    assert clip.cameras.distortion_model == "h36m"
    differing = np.abs(clip.keypoints_2d - only(make_trial(), rig()).keypoints_2d)
    assert np.nanmax(differing) > 0.1
    with pytest.raises(UnknownNameError, match=r"Distortion model 'fish' is not in .*: opencv, h36m"):
        _ = replace(clip, camera_distortion_model="fish").cameras


def test_points_without_a_picture_are_masked() -> None:
    points = np.full((3, 37, 3), np.nan, np.float32)
    points[0] = (0, 1, 0)  # before the camera, which looks along -z at y = 1 from z = 5 here
    points[1] = (0, 1, 9)  # behind it
    ground = cameras_in_ground(rig(("one",)))
    center = -np.asarray(ground.rotations[0]).T @ np.asarray(ground.translations[0])
    ahead = np.asarray(ground.rotations[0])[2]
    points[0], points[1] = center + 5 * ahead, center - 4 * ahead
    pixels, inside = pictures_of(ground, points)
    assert inside[:, 0].all(axis=-1).tolist() == [True, False, False]
    np.testing.assert_allclose(pixels[0, 0], np.broadcast_to((512, 515), (37, 2)), atol=PIXEL)
    assert np.isnan(pixels[1:]).all()
    # Pictures of unknown size have no rim.
    unsized = replace(ground, sizes=np.full((1, 2), np.nan))
    points[1] = center + 5 * ahead + 3 * np.asarray(ground.rotations[0])[0]
    assert not pictures_of(ground, points)[1][1].any()
    assert pictures_of(unsized, points)[1][1].all()


def test_a_lens_that_folds_back_gives_no_picture() -> None:
    """The polynomial of a lens holds within its field of view; far outside it may come back."""
    ground = cameras_in_ground(rig(("one",), distortion=np.array([[-0.3, 0, 0, 0, 0, 0, 0, 0]])))
    R, t = np.asarray(ground.rotations[0]), np.asarray(ground.translations[0])
    local = np.array([1.8, 0.0, 1.0])  # 61 degrees aside: 1.8 (1 - 0.3 * 1.8^2) = 0.05 lies mid-picture
    points = np.tile(R.T @ (local - t), (1, 37, 1)).astype(np.float32)
    assert not pictures_of(ground, points)[1].any()
    points[:] = R.T @ ([0.3, 0.0, 1.0] - t)
    assert pictures_of(ground, points)[1].all()


def test_cameras_in_the_ground_frame_see_the_same() -> None:
    world = np.random.default_rng(0).normal(0, 1, (20, 3))
    cameras = rig()
    ground = cameras_in_ground(cameras)
    for v in range(2):
        before = world @ np.asarray(cameras.rotations[v]).T + np.asarray(cameras.translations[v])
        after = (world @ R_yup_zup.T) @ np.asarray(ground.rotations[v]).T + np.asarray(ground.translations[v])
        np.testing.assert_allclose(after, before, atol=1e-14)
    # Where keypoints are in a frame of their own, so are the cameras.
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn((0.3, -0.2, 0.5)), (0.4, -1, 2)
    there = cameras_in_ground(cameras, moved)
    turned = world @ R_yup_zup.T @ moved[:3, :3].T + moved[:3, 3]
    for v in range(2):
        before = world @ np.asarray(cameras.rotations[v]).T + np.asarray(cameras.translations[v])
        after = turned @ np.asarray(there.rotations[v]).T + np.asarray(there.translations[v])
        np.testing.assert_allclose(after, before, atol=1e-14)
    trial = make_trial(T_ground_cameras=moved)
    np.testing.assert_allclose(only(trial, cameras).camera_rotations, there.rotations, atol=1e-15)


def test_a_view_without_calibration_and_a_truth_of_other_length_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Camera 'left' is not in the calibration of S1; .* right"):
        list(clips_of(seen_trial(), rig(("right", "behind"))))
    with pytest.raises(
        ShapeError, match=r"The truth of S1_Walking_1 has 30 frames; valid are the trial's 40"
    ):
        list(clips_of(make_trial(), rig(), make_trial(n_frames=30)))


def test_a_camera_without_detections_has_none() -> None:
    clip = only(seen_trial(), rig(("right", "behind", "left")))
    assert not clip.detections_2d_mask[:, 1].any()
    assert clip.detections_2d_mask[:, [0, 2]].mean() > 0.99
    assert clip.keypoints_2d_mask[:, 1].any()


def test_splits_are_the_papers() -> None:
    assert [split_of(s) for s in ("S1", "S5", "S6", "S7", "S8")] == ["train"] * 5
    assert [split_of(s) for s in ("S9", "S11", "S2")] == ["test", "test", "train"]
    assert set(SPLITS) == {"train", "test"}


def test_no_keypoint_is_lost_by_human36m_lenses(shared_data: Path) -> None:
    """In the whole field of view of the published cameras, nothing counts as folded back."""
    lenses = json.loads((shared_data / "h36m_cameras.json").read_text())["intrinsics"]
    across = np.stack(np.meshgrid(np.linspace(-0.6, 0.6, 61), np.linspace(-0.6, 0.6, 61)), -1).reshape(-1, 2)
    rays = np.concatenate([across, np.ones((len(across), 1))], axis=-1)
    across = np.resize(4 * rays, (-(-len(rays) // 37), 37, 3)).astype(np.float32)
    for lens in lenses.values():
        matrix, size = np.array(lens["K"]), (lens["width"], lens["height"])
        coefficients = np.concatenate([lens["dist_opencv"], np.zeros(3)])
        camera = Cameras(
            np.eye(3)[None], np.zeros((1, 3)), matrix[[0, 1], [0, 1]][None], matrix[:2, 2][None], np.zeros(1),
            coefficients[None], np.array([size], float), ("one",), "h36m",
        )  # fmt: skip
        pixels, inside = pictures_of(camera, across)
        within = (pixels > -0.5) & (pixels < np.array(size) - 0.5)  # pixels' middles are whole numbers
        np.testing.assert_array_equal(inside, within.all(axis=-1))
        assert 0.3 < inside.mean() < 0.9
