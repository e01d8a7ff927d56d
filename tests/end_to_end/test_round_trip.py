"""Once around: simulation, release, dataset, export, and back, by the commands; the numbers stay the same.

What a trip keeps, and how exactly:

* HDF5 and the pipeline's own files hold float64, so that the dataset's float32 numbers come back to the last
  bit; angles go through degrees, two units in the last place of float64, which float32 may round the other
  way (`ONE_UNIT`).
* TRC and .mot hold as many digits as a float64 takes, so the same is true of them.
* Samples have frames and not times, which come back as frame over rate; a simulation's own times are float32
  (`TIME_S`).
* HDF5 holds the quality of each frame, the other forms only whether there is a pose. Samples leave out frames
  that are not usable.
* The release has no detections, truth, sizes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from simspine_jax.cli import main
from simspine_jax.clips import CLIP_FIELDS, Clip
from simspine_jax.dataset_export import usable_frames
from simspine_jax.pipeline.dataset import ClipSource, ReleaseSource, SimulationSource
from simspine_jax.pipeline.dataset_samples import SamplesSource

pytest.importorskip("tensorflow_datasets", reason="datasets are built with TensorFlow Datasets")
pytest.importorskip("array_record", reason="datasets are stored as ArrayRecord")

SYNTHETIC = ("--synthetic", "--subjects", "S1", "--actions", "Walking", "Greeting", "--seconds", "1.2")
ONE_UNIT = float(np.finfo(np.float32).eps)
TIME_S = 1e-6
FITTED = 1e-9  # of a rotation that is fitted to a person's keypoints in float64

CAMERAS = tuple(f.name for f in CLIP_FIELDS if f.name.startswith("camera_"))
TRIAL = ("subject", "action", "is_synthetic", "first_frame", "frames", "rate_hz")
PLACES = ("keypoints_3d", "keypoints_3d_mask", "keypoints_2d", "keypoints_2d_mask")


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def clips_from(source: ClipSource) -> dict[str, Clip]:
    """Clips by action; each trial here is one."""
    found = [clip for item in source.items() for clip in source.clips(item)]
    assert len({clip.action for clip in found}) == len(found)
    return {clip.action: clip for clip in found}


def clips_in(data_dir: Path, config: str) -> dict[str, Clip]:
    """Clips of a built dataset by action."""
    from simspine_jax.datasets import open_clips

    return {clip.action: clip for clip in open_clips(config, "train", data_dir)}


def assert_equal(one: Clip, other: Clip, names: tuple[str, ...]) -> None:
    """Fields, as the records hold them, equal to the last bit."""
    for field in CLIP_FIELDS:
        if field.name in names:
            kind = None if field.kind == "text" else field.kind
            first, second = (np.asarray(getattr(clip, field.name), kind) for clip in (one, other))
            np.testing.assert_array_equal(first, second, err_msg=field.name)


def assert_same_release(one: Clip, other: Clip) -> None:
    """What the release holds of both: places to the last bit, angles to one unit in float32's last place."""
    assert_equal(one, other, (*TRIAL, *CAMERAS, *PLACES, "times"))
    np.testing.assert_allclose(one.kinematics, other.kinematics, rtol=ONE_UNIT, atol=0)
    np.testing.assert_array_equal(one.kinematics_mask, other.kinematics_mask)
    np.testing.assert_array_equal(one.quality, other.quality)


class Trip(NamedTuple):
    """Folders and the clips that all must agree with."""

    simulation: Path
    data_dir: Path
    clips: dict[str, Clip]


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    """Two synthetic trials, simulated and built into a dataset."""
    folder = tmp_path_factory.mktemp("trip")
    simulation, data_dir = folder / "simulation", folder / "data"
    run("simulate", *SYNTHETIC, "--out", simulation, "--quiet")
    run(
        "dataset", "build", "--config", "pipeline", "--manual-dir", simulation, "--data-dir", data_dir,
        "--quiet",
    )  # fmt: skip
    clips = clips_in(data_dir, "pipeline")
    assert sorted(clips) == ["Greeting", "Walking"]
    return Trip(simulation, data_dir, clips)


def test_the_dataset_holds_what_the_pipeline_wrote(trip: Trip) -> None:
    for action, clip in clips_from(SimulationSource(trip.simulation)).items():
        assert_equal(clip, trip.clips[action], tuple(f.name for f in CLIP_FIELDS))
        assert clip.true_keypoints_3d_mask.all()
        assert clip.detections_2d_mask.mean() > 0.9


@pytest.mark.parametrize("form", ["hdf5", "folder"])
def test_the_pipelines_release_layout_holds_the_same_numbers(trip: Trip, form: str, tmp_path: Path) -> None:
    root = trip.simulation
    if form == "folder":  # as the official one lies: TRC, .mot and calibrations alone
        root = tmp_path / "release"
        for name in ("cameras", "markers", "kinematics"):
            shutil.copytree(trip.simulation / name, root / name)
    found = clips_from(ReleaseSource.at(root))
    assert found.keys() == trip.clips.keys()
    for action, clip in found.items():
        if form == "folder":  # whose files can't say that they are synthetic
            assert not clip.is_synthetic
            names = tuple(name for name in TRIAL if name != "is_synthetic")
            assert_equal(clip, trip.clips[action], (*names, *CAMERAS, *PLACES, "times"))
            np.testing.assert_allclose(clip.kinematics, trip.clips[action].kinematics, rtol=ONE_UNIT, atol=0)
        else:
            assert_same_release(clip, trip.clips[action])


def test_an_exported_release_builds_the_same_dataset(trip: Trip, tmp_path: Path) -> None:
    exported = tmp_path / "simspine.h5"
    run(
        "dataset", "export", "--to", "hdf5", "--config", "pipeline", "--data-dir", trip.data_dir, "-o",
        exported,
    )  # fmt: skip
    run(
        "dataset", "build", "--config", "release", "--manual-dir", tmp_path, "--data-dir", tmp_path,
        "--quiet",
    )  # fmt: skip
    found = clips_in(tmp_path, "release")
    assert found.keys() == trip.clips.keys()
    for action, clip in found.items():
        assert_same_release(clip, trip.clips[action])
        assert not clip.detections_2d_mask.any()
        assert not clip.true_keypoints_3d_mask.any()
        assert np.isnan(clip.height_m)
    again = tmp_path / "again.h5"
    run(
        "dataset", "export", "--to", "hdf5", "--config", "release", "--data-dir", tmp_path, "-o", again,
        "--quiet",
    )  # fmt: skip
    once_more = clips_from(ReleaseSource.at(again))
    for action, clip in found.items():
        assert_same_release(once_more[action], clip)


@pytest.mark.parametrize("calibrated", [True, False])
def test_exported_samples_build_the_same_dataset(trip: Trip, calibrated: bool, tmp_path: Path) -> None:
    run(
        "dataset", "export", "--to", "npz", "--keypoints", 37, "--config", "pipeline", "--quiet",
        "--data-dir", trip.data_dir, "-o", tmp_path / "samples.npz",
    )  # fmt: skip
    if calibrated:
        shutil.copytree(trip.simulation / "cameras", tmp_path / "cameras")
    found = clips_from(SamplesSource(tmp_path))
    assert found.keys() == trip.clips.keys()
    for action, clip in found.items():
        original = trip.clips[action]
        assert clip.is_synthetic
        views = [original.camera_names.index(name) for name in clip.camera_names]
        assert sorted(views) == [0, 1, 2, 3]
        assert_equal(clip, original, ("subject", "action", "first_frame", "rate_hz"))
        usable, here = usable_frames(original), usable_frames(clip)
        np.testing.assert_array_equal(clip.frames[here], original.frames[usable])
        np.testing.assert_array_equal(clip.keypoints_3d[here], original.keypoints_3d[usable])
        for name in ("keypoints_2d", "keypoints_2d_mask"):  # the clip's own pixels
            np.testing.assert_array_equal(
                getattr(clip, name)[here], getattr(original, name)[usable][:, views]
            )
        np.testing.assert_allclose(clip.kinematics[here], original.kinematics[usable], rtol=ONE_UNIT, atol=0)
        np.testing.assert_allclose(
            clip.times[here] - clip.times[here][0],
            original.times[usable] - original.times[usable][0],
            rtol=0, atol=TIME_S,
        )  # fmt: skip
        rotations = original.camera_rotations[views]  # without calibration, told by the rows themselves
        np.testing.assert_allclose(clip.camera_rotations, rotations, rtol=0, atol=0 if calibrated else FITTED)
        if calibrated:
            assert "corrected" not in clip.source  # the export's camera space projects


def test_exported_coco_shows_the_same_pictures(trip: Trip, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    run(
        "dataset", "export", "--to", "coco", "--config", "pipeline", "--quiet", "--data-dir", trip.data_dir,
        "--actions", "Walking", "-o", tmp_path / "a.json", "--detections", tmp_path / "b.json",
    )  # fmt: skip
    found = coco.COCO(str(tmp_path / "a.json"))
    clip = trip.clips["Walking"]
    assert len(found.imgs) == clip.n_frames * 4
    for person in found.anns.values():
        image = found.imgs[person["image_id"]]
        frame, view = image["frame"], clip.camera_names.index(image["camera"])
        pixels = np.reshape(person["keypoints"], (37, 3))[:, :2]
        np.testing.assert_allclose(
            pixels, clip.keypoints_2d[frame, view], rtol=0, atol=0.6e-3
        )  # half a digit
    detected = found.loadRes(str(tmp_path / "b.json"))
    assert len(detected.anns) == clip.detections_2d_mask.any(axis=2).sum()
