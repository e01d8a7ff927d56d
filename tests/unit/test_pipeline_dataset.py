"""Clips from simulations, releases and samples, which are written by hand after their schemas."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import official_files as official
import pytest
from spine_trials import make_trial

from simspine_jax.clips import NO_CAMERA, Clip
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.trials import write_trial
from simspine_jax.pipeline.dataset import (
    ClipSource,
    ReleaseSource,
    SimulationSource,
    Watcher,
    WorkItem,
    select_items,
    unknown_cameras,
)
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
    factors = {f"body{i}": [1.0 + i, 2.0, 3.0] for i in range(30)}
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


def test_samples_without_calibrations_have_unknown_cameras(samples: Path) -> None:
    for toml in (samples / "cameras").iterdir():
        toml.unlink()
    clip = all_clips(SamplesSource(samples))[0]
    assert clip.camera_names == official.CAMERAS
    assert np.isnan(clip.camera_translations).all()
    assert clip.keypoints_2d_mask.any()  # the file's own pixels


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


# --- what they have in common ---


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
