"""Clips from simulations, releases and samples, which are written by hand after their schemas."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import official_files as official
import pytest
from spine_trials import make_trial

from simspine_jax.clips import BODY_NAMES, CLIP_FIELDS, NO_CAMERA, Clip
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.trials import read_trial, write_trial
from simspine_jax.kinematics.curvature import keypoint_curvature
from simspine_jax.pipeline import dataset_pictures
from simspine_jax.pipeline.dataset import (
    ClipSource,
    ReleaseSource,
    SimulationSource,
    SyntheticSource,
    Watcher,
    WorkItem,
    select_items,
    unknown_cameras,
    with_angles,
)
from simspine_jax.pipeline.dataset_cameras import _placed
from simspine_jax.pipeline.dataset_pictures import PictureSource
from simspine_jax.pipeline.dataset_samples import SamplesSource
from simspine_jax.pipeline.simulate import truth_path
from simspine_jax.skeleton import AXIS_NAMES, TRC_NAMES

# Clips hold float32: 24 bits, of metres and radians below 8, and of pixels below 4096.
FLOAT32_M, FLOAT32_PX = 1e-6, 1e-3
# The camera of a projection in float32 stands metres away, and its focal length is a thousand pixels.
PROJECTED_PX = 5e-3


def all_clips(source: ClipSource) -> list[Clip]:
    return [clip for item in source.items() for clip in source.clips(item)]


def keypoints_of(subject: str, stem: str) -> np.ndarray:
    """What an official file holds, in our order of keypoints."""
    markers = official.markers_of(subject, stem)
    return markers[:, [official.MARKERS.index(name) for name in TRC_NAMES]]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    official.write_h5(tmp_path / "simspine.h5", AXIS_NAMES)
    return tmp_path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    official.write_npz(tmp_path / "simspine_train.npz", AXIS_NAMES)
    for subject in ("S1", "S9"):
        official.write_toml(tmp_path / "cameras" / f"Calib_{subject}.toml")
    return tmp_path


@pytest.fixture
def simulation(tmp_path: Path) -> Path:
    layout = ReleaseLayout(tmp_path)
    for trial in (
        make_trial("S1", n_frames=30),
        make_trial("S11", "Sitting", camera_names=(), reprojection_px=None),
    ):
        write_trial(layout.trial(trial.subject, trial.action), trial)
    write_trial(
        truth_path(layout, "S1", "Walking 1"),
        make_trial("S1", n_frames=30, camera_names=(), reprojection_px=None),
    )
    factors = {name: [1.0 + i, 2.0, 3.0] for i, name in enumerate(BODY_NAMES)}
    record = layout.model("S1").with_suffix(".json")
    record.parent.mkdir()
    record.write_text(json.dumps({"scale_factors": factors, "height_m": 1.8, "mass_kg": None}))
    return tmp_path


# --- the official release ---


def test_a_release_gives_its_numbers(release: Path) -> None:
    source = ReleaseSource.at(release)
    clips = all_clips(source)
    assert [(c.subject, c.action) for c in clips] == [
        ("S1", "Walking"), ("S1", "Walking 1"), ("S9", "Sitting 2"),
    ]  # fmt: skip
    for clip, (subject, stem) in zip(clips, official.TRIALS, strict=True):
        np.testing.assert_allclose(clip.keypoints_3d, keypoints_of(subject, stem), atol=FLOAT32_M)
        degrees = official.axes_of(subject, stem, AXIS_NAMES)
        knee, tx = AXIS_NAMES.index("knee_angle_r"), AXIS_NAMES.index("pelvis_tx")
        np.testing.assert_allclose(clip.kinematics[:, knee], np.deg2rad(degrees[:, knee]), atol=FLOAT32_M)
        np.testing.assert_allclose(clip.kinematics[:, tx], degrees[:, tx], atol=FLOAT32_M)
        assert clip.source == f"simspine.h5:/{subject}/{stem}"
        assert not clip.is_synthetic
        assert not clip.true_keypoints_3d_mask.any()
        assert not clip.detections_2d_mask.any()
        assert np.isnan(clip.height_m)


def test_a_release_has_the_angles_that_its_axes_and_keypoints_tell(release: Path) -> None:
    levels = ("L5_S1", "L4_L5", "L3_L4", "L2_L3", "L1_L2", "L1_T12")
    motions = ("Flex_Ext", "Lat_Bending", "axial_rotation")
    neck = ["neck_flexion", "neck_bending", "neck_rotation"]
    names = [[f"{level}_{motion}" for motion in motions] for level in levels] + [neck]
    columns = [[AXIS_NAMES.index(name) for name in row] for row in names]
    clips = all_clips(ReleaseSource.at(release))
    for clip, (subject, stem) in zip(clips, official.TRIALS, strict=True):
        degrees = official.axes_of(subject, stem, AXIS_NAMES)[:, columns]
        np.testing.assert_allclose(clip.vertebral_rotations, np.deg2rad(degrees), atol=FLOAT32_M)
        found = keypoint_curvature(keypoints_of(subject, stem))
        wanted = np.stack([found.lordosis, found.kyphosis], axis=1)
        # Both are computed in float32, of points some metres away and centimetres apart.
        np.testing.assert_allclose(clip.curvature[:, :2], wanted, atol=1e-4)
        assert clip.vertebral_rotations_mask.all()
        assert clip.curvature_mask.all(axis=0).tolist() == [True, True, False, False]


def test_the_cameras_of_a_release_show_the_keypoints(release: Path) -> None:
    clip = all_clips(ReleaseSource.at(release))[0]
    world = keypoints_of("S1", "Walking")[..., [2, 0, 1]]
    local = np.einsum("vij,tkj->tvki", official.ROTATIONS, world) + official.TRANSLATIONS[:, None]
    x, y = local[..., 0] / local[..., 2], local[..., 1] / local[..., 2]
    k1, k2, p1, p2, k3 = official.DISTORTION.T[:, :, None]
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    across = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    down = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    pixels = np.stack([across, down], axis=-1) * official.K[:, None, [0, 1], [0, 1]]
    pixels += official.K[:, None, :2, 2]
    np.testing.assert_allclose(clip.keypoints_2d, pixels, atol=PROJECTED_PX)
    points = np.einsum("vij,tkj->tvki", clip.camera_rotations, clip.keypoints_3d)
    np.testing.assert_allclose(points + clip.camera_translations[:, None], local, atol=1e-5)  # of float32, m
    assert clip.camera_names == official.CAMERAS
    assert clip.keypoints_2d_mask.any()


def test_a_trial_whose_name_begins_like_its_repetition_is_read_once(release: Path) -> None:
    source = ReleaseSource.at(release)
    assert [clip.action for clip in source.clips(WorkItem("S1", "Walking"))] == ["Walking"]


def test_one_who_stands_still_has_the_unit_of_the_others(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "simspine.h5"
    official.write_h5(path, AXIS_NAMES)
    with h5py.File(path, "r+") as file:
        still = np.full((official.N_FRAMES, 62), 0.5)  # less than pi: by itself it could be radians
        file["S9/Sitting_2/kinematics"][...] = still
    clips = {clip.subject: clip for clip in all_clips(ReleaseSource.at(path))}
    hip = AXIS_NAMES.index("hip_flexion_r")
    assert clips["S9"].kinematics[0, hip] == pytest.approx(np.deg2rad(0.5), rel=1e-6)


def test_a_release_without_cameras_has_a_view_of_which_nothing_is_known(release: Path) -> None:
    import h5py

    with h5py.File(release / "simspine.h5", "r+") as file:
        del file["S1/calibration"]
    clip = all_clips(ReleaseSource.at(release))[0]
    assert clip.camera_names == (NO_CAMERA,)
    assert np.isnan(clip.camera_rotations).all()
    assert not clip.keypoints_2d_mask.any()
    assert np.isnan(clip.keypoints_2d).all()


# --- samples ---


def test_samples_are_put_together_as_clips_of_all_views(samples: Path) -> None:
    clips = all_clips(SamplesSource(samples))
    assert [(c.subject, c.action) for c in clips] == [
        ("S1", "Walking"), ("S1", "Walking 1"), ("S9", "Sitting 2"),
    ]  # fmt: skip
    reduced = [TRC_NAMES.index(name) for name in official.REDUCED]
    with np.load(samples / "simspine_train.npz") as file:
        part = file["part"].reshape(3, len(official.CAMERAS), official.N_FRAMES, 15, 3)
    for trial, (clip, (subject, stem)) in enumerate(zip(clips, official.TRIALS, strict=True)):
        wanted = keypoints_of(subject, stem)[:, reduced]
        np.testing.assert_allclose(clip.keypoints_3d[:, reduced], wanted, atol=FLOAT32_M)
        assert clip.keypoints_3d_mask.sum(axis=1).tolist() == [15] * official.N_FRAMES
        pixels = np.moveaxis(part[trial], 0, 1)
        np.testing.assert_allclose(clip.keypoints_2d[:, :, reduced], pixels[..., :2], atol=FLOAT32_PX)
        np.testing.assert_array_equal(clip.keypoints_2d_mask[:, :, reduced], pixels[..., 2] > 0)
        assert clip.camera_names == official.CAMERAS
        np.testing.assert_allclose(clip.times, np.arange(official.N_FRAMES) / 50)
        assert clip.vertebral_rotations_mask.all()
        assert not clip.curvature_mask.any()  # hips and shoulders are not among the fifteen


@pytest.mark.parametrize("wrong", [True, False])
def test_the_exporters_camera_space_is_corrected_and_told(samples: Path, wrong: bool) -> None:
    path = samples / "simspine_train.npz"
    official.write_npz(path, AXIS_NAMES, official_camera_space=wrong)
    clip = all_clips(SamplesSource(samples))[0]
    assert ("corrected here to R X + t" in clip.source) == wrong
    ids = [TRC_NAMES.index(name) for name in official.REDUCED]
    local = np.einsum("vij,tkj->tvki", clip.camera_rotations, clip.keypoints_3d[:, ids].astype(float))
    local += clip.camera_translations[:, None]
    assert (local[..., 2] > 3).all()  # all of the person stands in front of the cameras
    pixels = np.einsum("vij,tvkj->tvki", official.K, local)
    pixels = pixels[..., :2] / pixels[..., 2:]
    np.testing.assert_allclose(pixels, clip.keypoints_2d[:, :, ids], atol=PROJECTED_PX)


def test_samples_with_the_cameras_of_another_are_refused(samples: Path) -> None:
    toml = samples / "cameras" / "Calib_S9.toml"
    toml.write_text(toml.read_text().replace("4.0]", "4.5]"))
    with pytest.raises(FileFormatError, match=r"simspine_train.npz, S9: in_camera is neither"):
        all_clips(SamplesSource(samples))


def uncalibrated(folder: Path, change=None, **options: Any) -> Clip:
    """The first clip of samples alone; ``change`` is done to the file's arrays."""
    path = folder / "alone" / "simspine.npz"
    path.parent.mkdir()
    official.write_npz(path, AXIS_NAMES, **options)
    if change is not None:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != "metadata"}
        change(arrays)
        np.savez(path, **arrays)
    return all_clips(SamplesSource(path.parent))[0]


def rotations_in_world(clip: Clip) -> np.ndarray:
    return clip.camera_rotations @ np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("official_space", [True, False])
def test_samples_without_calibrations_tell_their_cameras(tmp_path: Path, official_space: bool) -> None:
    clip = uncalibrated(tmp_path, official_camera_space=official_space)
    assert clip.camera_names == official.CAMERAS
    # The files' numbers are float64, and have no errors.
    np.testing.assert_allclose(rotations_in_world(clip), official.ROTATIONS, atol=1e-14)
    np.testing.assert_allclose(clip.camera_translations, official.TRANSLATIONS, atol=1e-13)
    np.testing.assert_allclose(clip.camera_focal_lengths, official.K[:, [0, 1], [0, 1]], rtol=1e-9)
    np.testing.assert_allclose(clip.camera_principal_points, official.K[:, :2, 2], rtol=1e-9)
    assert (clip.camera_distortion == 0).all()
    assert ("its camera space is R (X - t), corrected here" in clip.source) == official_space
    assert clip.source.startswith("simspine.npz (without calibration; ")
    assert clip.source.endswith("R and t fitted to S, the lens to the pictures)")
    assert clip.keypoints_2d_mask.any()  # the file's own pixels


def test_the_lens_of_samples_without_calibrations_is_fitted(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")

    def distort(arrays: dict[str, np.ndarray]) -> None:
        for row, name in enumerate(arrays["imgname"]):
            v = next(i for i, camera in enumerate(official.CAMERAS) if camera in name)
            k, lens, t = official.K[v], official.DISTORTION[v], official.TRANSLATIONS[v]
            world = np.ascontiguousarray(arrays["S_world"][row, :, :3])
            seen, _ = cv2.projectPoints(world, cv2.Rodrigues(official.ROTATIONS[v])[0], t, k, lens)
            arrays["part"][row, :, :2] = seen[:, 0]

    clip = uncalibrated(tmp_path, distort)
    np.testing.assert_allclose(clip.camera_translations, official.TRANSLATIONS, atol=1e-13)
    # The points lie around the middle of the pictures: k3 is hardly felt there, and all else a little less.
    np.testing.assert_allclose(clip.camera_focal_lengths, official.K[:, [0, 1], [0, 1]], rtol=1e-4)
    np.testing.assert_allclose(clip.camera_distortion[:, 0], official.DISTORTION[:, 0], atol=5e-3)


def root_relative(arrays: dict[str, np.ndarray]) -> None:
    arrays["S"][..., :3] -= arrays["S"][:, :1, :3].copy()


def test_root_relative_samples_have_cameras_by_their_pictures(tmp_path: Path) -> None:
    clip = uncalibrated(tmp_path, root_relative)
    np.testing.assert_allclose(rotations_in_world(clip), official.ROTATIONS, atol=1e-14)
    np.testing.assert_allclose(clip.camera_translations, official.TRANSLATIONS, atol=1e-6)
    np.testing.assert_allclose(clip.camera_focal_lengths, official.K[:, [0, 1], [0, 1]], rtol=1e-6)
    assert "R fitted to S, t and the lens to the pictures" in clip.source


def test_what_samples_do_not_tell_of_a_camera_is_nan(tmp_path: Path) -> None:
    def without_pictures(arrays: dict[str, np.ndarray]) -> None:
        root_relative(arrays)
        arrays["part"][..., 2] = 0

    clip = uncalibrated(tmp_path, without_pictures)
    np.testing.assert_allclose(rotations_in_world(clip), official.ROTATIONS, atol=1e-14)
    assert np.isnan(clip.camera_translations).all()
    assert np.isnan(clip.camera_focal_lengths).all()
    assert "t and the lens are not known" in clip.source


def test_points_that_lie_in_a_plane_square_to_the_view_leave_its_distance_open() -> None:
    """Focal length over distance is all that such a picture shows."""
    flat = np.random.default_rng(0).uniform(-0.5, 0.5, (400, 3)) * (1, 1, 1e-4)
    t = np.array([0.1, 0.2, 4.0])
    local = flat + t
    pixels = 1145 * local[:, :2] / local[:, 2:] + 500
    assert _placed(flat, pixels) is None
    deep = flat * (1, 1, 1e4)
    local = deep + t
    found = _placed(deep, 1145 * local[:, :2] / local[:, 2:] + 500)
    assert found is not None
    np.testing.assert_allclose(found[0], t, atol=1e-6)


def test_samples_whose_camera_space_is_no_rigid_image_have_unknown_cameras(tmp_path: Path) -> None:
    def mirrored(arrays: dict[str, np.ndarray]) -> None:
        arrays["S"][..., 0] *= -1

    clip = uncalibrated(tmp_path, mirrored)
    assert np.isnan(clip.camera_rotations).all()
    assert np.isnan(clip.camera_translations).all()
    assert "nothing is known of the camera" in clip.source


def test_sparse_samples_keep_the_numbers_of_their_frames(tmp_path: Path) -> None:
    official.write_npz(tmp_path / "a.npz", AXIS_NAMES, official.TRIALS[:1], frames=(1, 6, 11))
    clip = all_clips(SamplesSource(tmp_path))[0]
    assert clip.frames.tolist() == [1, 6, 11]
    np.testing.assert_allclose(clip.times, clip.frames / 50)
    assert clip.first_frame == 0


def test_frames_without_samples_are_gaps(tmp_path: Path) -> None:
    official.write_npz(tmp_path / "a.npz", AXIS_NAMES, official.TRIALS[:1], frames=(2, 4, 10))
    clip = all_clips(SamplesSource(tmp_path))[0]
    np.testing.assert_allclose(clip.times, np.array([2, 4, 6, 8, 10]) / 50)
    assert clip.rate_hz == 25
    assert clip.keypoints_3d_mask.any(axis=1).tolist() == [True, True, False, False, True]
    assert clip.quality.tolist() == [0, 0, 1, 1, 0]


def test_samples_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    official.write_npz(tmp_path / "a.npz", AXIS_NAMES, official.TRIALS[:1], frames=(2, 2, 3))
    with pytest.raises(FileFormatError, match=r"a.npz: the picture 'S1/.*_000002.jpg' is there twice"):
        all_clips(SamplesSource(tmp_path))
    official.write_npz(tmp_path / "b.npz", AXIS_NAMES, official.TRIALS)
    with pytest.raises(FileFormatError, match=r"b.npz: it holds S1, Walking, which a.npz holds too"):
        SamplesSource(tmp_path).items()


# --- folders of the pipeline ---


def test_a_simulation_keeps_all_that_it_knows(simulation: Path) -> None:
    first, second = all_clips(SimulationSource(simulation))
    trial = make_trial("S1", n_frames=30)
    np.testing.assert_allclose(first.keypoints_3d, trial.keypoints, atol=FLOAT32_M)
    np.testing.assert_allclose(first.kinematics, trial.coordinates, atol=FLOAT32_M)
    np.testing.assert_array_equal(first.quality, trial.quality)
    assert first.true_keypoints_3d_mask.all()
    assert (
        first.source == "trials/S1/S1_Walking_1.npz"
    )  # the record is missing; where the folder lies is nobody's
    assert first.height_m == pytest.approx(1.8, rel=1e-6)
    assert np.isnan(first.mass_kg)
    assert first.scale_factors[29].tolist() == [30, 2, 3]
    assert (second.subject, second.camera_names) == ("S11", (NO_CAMERA,))
    assert not second.true_keypoints_3d_mask.any()
    assert np.isnan(second.scale_factors).all()


@pytest.mark.parametrize("text", ["{", "[]", '{"scale_factors": 3}', '{"scale_factors": {"a": "x"}}'])
def test_a_damaged_record_of_a_subject_is_named(simulation: Path, text: str) -> None:
    (simulation / "models" / "S1.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"models/S1.json: the subject's size can't be read; valid is"):
        all_clips(SimulationSource(simulation))


def test_the_size_of_a_subject_goes_by_the_names_of_its_bodies(simulation: Path) -> None:
    record = simulation / "models" / "S1.json"
    about = json.loads(record.read_text())
    factors = dict(reversed(about["scale_factors"].items()))
    record.write_text(json.dumps(about | {"scale_factors": factors}))
    assert all_clips(SimulationSource(simulation))[0].scale_factors[29].tolist() == [30, 2, 3]
    factors["tail"] = factors.pop("hand_l")
    for wrong in (factors, about["scale_factors"] | {"tail": [1, 1, 1]}):
        record.write_text(json.dumps(about | {"scale_factors": wrong}))
        with pytest.raises(FileFormatError, match=r"three factors for each body of its model"):
            all_clips(SimulationSource(simulation))


# --- synthetic captures ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSource:
    """One short trial, solved."""
    work = tmp_path_factory.mktemp("work")
    source = SyntheticSource(work, 1.2, ("S9",), ("Greeting",))
    all_clips(source)
    return source


@pytest.mark.parametrize("file", ["trials/S9/S9_Greeting.npz", "models/S9.json", "truth/S9/S9_Greeting.npz"])
def test_a_damaged_file_of_the_work_folder_is_made_anew(
    small: SyntheticSource, tmp_path: Path, file: str
) -> None:
    shutil.copytree(small.work, tmp_path / "work")
    source = dataclasses.replace(small, work=tmp_path / "work")
    path = source.work / "S9" / file
    path.write_bytes(path.read_bytes()[:100])
    told: list[str] = []
    (item,) = source.items()
    (found,), (wanted,) = (list(s.clips(item, Watcher(note=told.append))) for s in (source, small))
    for field in CLIP_FIELDS:
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))


def test_the_truth_of_a_capture_has_the_curvature_and_rotations_that_its_numbers_tell(
    small: SyntheticSource,
) -> None:
    (clip,) = all_clips(small)
    found = keypoint_curvature(clip.true_keypoints_3d)
    assert clip.true_curvature_mask.all()
    # Float32 in both, of points some metres away and centimetres apart.
    np.testing.assert_allclose(clip.true_curvature[:, 0], found.lordosis, atol=1e-4)
    np.testing.assert_allclose(clip.true_curvature[:, 1], found.kyphosis, atol=1e-4)
    (item,) = SimulationSource(small.work / "S9").items()
    assert item.path is not None
    bare = dataclasses.replace(read_trial(item.path), vertebral_rotations=None, lordosis=None, kyphosis=None)
    filled = with_angles(bare)
    np.testing.assert_allclose(filled.vertebral_rotations, clip.vertebral_rotations, atol=1e-4)
    np.testing.assert_allclose(filled.lordosis, clip.curvature[:, 0], atol=1e-4)
    np.testing.assert_allclose(filled.kyphosis, clip.curvature[:, 1], atol=1e-4)


def test_a_damaged_picture_of_the_work_folder_is_rendered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = PictureSource(tmp_path, ("S9",), ("Greeting",), count=1)
    (item,) = source.items()
    try:
        wanted = list(source.records(item))
    except SimspineError as error:
        pytest.skip(f"nothing can be rendered here: {error}")
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:200])

    def render(work: Path, items: list, watcher: Watcher) -> None:
        if items:
            assert not path.exists()
            path.write_bytes(whole)

    monkeypatch.setattr(dataset_pictures, "_render", render)
    told: list[str] = []
    assert [key for key, _ in source.records(item, Watcher(note=told.append))] == [key for key, _ in wanted]
    assert len(told) == 1
    assert "it is rendered anew" in told[0]


# --- what they have in common ---


def test_a_source_names_the_files_that_it_reads(release: Path, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "simspine" / "release").mkdir(parents=True)
    for name in ("README.md", "simspine/release/x.array_record", "simspine/release/deep.npz"):
        (tmp_path / name).touch()
    assert [p.name for p in ReleaseSource.at(release).files()] == ["simspine.h5"]
    assert [p.name for p in SamplesSource(samples).files()] == [
        "Calib_S1.toml", "Calib_S9.toml", "simspine.h5", "simspine_train.npz",
    ]  # fmt: skip


def test_the_files_of_a_simulation_are_named(simulation: Path) -> None:
    (simulation / "simspine").mkdir()
    (simulation / "simspine" / "record").touch()
    found = [str(p.relative_to(simulation)) for p in SimulationSource(simulation).files()]
    assert "models/S1.json" in found
    assert "truth/S1/S1_Walking_1.npz" in found
    assert not [name for name in found if name.startswith("simspine/")]


@pytest.mark.parametrize("kind", [ReleaseSource.at, SamplesSource, SimulationSource])
def test_a_folder_that_holds_none_is_refused(tmp_path: Path, kind) -> None:
    with pytest.raises(FileFormatError, match=r"it holds no .*; valid is"):
        kind(tmp_path).items()


@pytest.mark.parametrize(
    ("name", "kind"), [("simspine.h5", ReleaseSource.at), ("simspine_train.npz", SamplesSource)]
)
def test_damage_is_named(tmp_path: Path, name: str, kind) -> None:
    path = tmp_path / name
    (official.write_h5 if name.endswith("h5") else official.write_npz)(path, AXIS_NAMES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=rf"{name}: it is no.*; valid is"):
        all_clips(kind(tmp_path))


def test_a_watcher_is_told_each_trial_and_sources_can_be_sent(release: Path) -> None:
    told: list[str] = []
    source = ReleaseSource.at(release)
    for item in source.items():
        sent, work = pickle.loads(pickle.dumps((source, item)))
        list(sent.clips(work, Watcher(trial=told.append)))
    assert told == ["S1_Walking", "S1_Walking_1", "S9_Sitting_2"]


def test_items_are_selected_by_subject_and_action() -> None:
    items = [WorkItem("S1", "Walking"), WorkItem("S1", "Walking 1"), WorkItem("S9", "Sitting 2")]
    assert select_items(items, [], []) == tuple(items)
    assert select_items(items, ["S1"], ["Walking"]) == tuple(items[:2])
    assert select_items(items, [], ["Walking 1"]) == (items[1],)
    with pytest.raises(UnknownNameError, match="Subject 'S2' is not in the data; it has: S1, S9"):
        select_items(items, ["S2"], [])
    with pytest.raises(UnknownNameError, match="Action 'Walk' is not in the data"):
        select_items(items, [], ["Walk"])
    with pytest.raises(SimspineError, match="have no trials of these subjects with these actions"):
        select_items(items, ["S9"], ["Walking"])


def test_unknown_cameras_have_their_names() -> None:
    assert unknown_cameras(("a", "b")).names == ("a", "b")
    assert unknown_cameras(()).names == (NO_CAMERA,)
