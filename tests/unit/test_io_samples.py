"""Samples for lifting: against a plain loop, the official camera space, and no pickle."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from simspine_jax.annotations import SpineTrial
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io.layout import DEGREE_AXES
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.io.samples import (
    RELEASE_KEYPOINTS,
    ImageName,
    Samples,
    camera_space_of,
    joined,
    read_samples_npz,
    samples_of,
    with_projecting_camera_space,
    write_samples_npz,
)
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, REDUCED_NAMES, REDUCED_PARENTS

NAMES = ("54138969", "60457274")


def trial(n_frames: int = 5, subject: str = "S1") -> SpineTrial:
    rng = np.random.default_rng(0)
    return SpineTrial(
        subject, "Walking 1", np.arange(n_frames) / 50, 50.0, rng.uniform(0, 1.5, (n_frames, 37, 3)),
        rng.uniform(-1, 1, (n_frames, 62)), np.zeros(n_frames, np.uint16),
    )  # fmt: skip


def rig() -> Cameras:
    """One camera five metres before the person, one of whose picture the person is partly outside."""
    facing = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    turn = cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0]
    return Cameras(
        rotations=np.stack([facing, turn @ facing]),
        translations=np.array([[-0.7, 0.8, 5.2], [1.2, 0.9, 4.9]]),
        focal_lengths=np.array([[1145.0, 1143.8], [1149.7, 1147.6]]),
        principal_points=np.array([[512.5, 515.4], [508.8, 508.1]]),
        skews=np.zeros(2),
        distortion=np.tile([-0.2, 0.25, -0.001, 0.002, -0.01, 0, 0, 0], (2, 1)),
        sizes=np.array([[1000.0, 1002.0], [700.0, 600.0]]),
        names=NAMES,
    )


def by_loop(one: SpineTrial, cameras: Cameras, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What the official exporter's description says, one picture after the other, with OpenCV."""
    rows: dict[str, list[Any]] = {
        key: [] for key in ("imgname", "center", "scale", "part", "S", "S_world", "angles")
    }
    for v, camera in enumerate(cameras.names):
        R, t = np.asarray(cameras.rotations[v]), np.asarray(cameras.translations[v])
        K = np.diag([*np.asarray(cameras.focal_lengths[v]), 1.0])
        K[:2, 2] = cameras.principal_points[v]
        for frame in range(one.n_frames):
            x, y, z = one.keypoints[frame, [KEYPOINT_NAMES.index(name) for name in names]].T
            world = np.stack([z, x, y], axis=-1)
            pixels = cv2.projectPoints(
                world, cv2.Rodrigues(R)[0], t, K, np.asarray(cameras.distortion[v, :5])
            )[0][:, 0]
            seen = ((pixels >= 0) & (pixels < cameras.sizes[v])).all(axis=-1)[:, None].astype(float)
            low, high = pixels.min(axis=0), pixels.max(axis=0)
            prefix = f"{one.subject}_Walking_1.{camera}"
            rows["imgname"].append(f"{one.subject}/{prefix}/{prefix}_{frame:06d}.jpg")
            rows["center"].append((low + high) / 2)
            rows["scale"].append(1.2 * max(high - low) / 200)
            rows["part"].append(np.hstack([pixels, seen]))
            rows["S"].append(np.hstack([(world - t) @ R.T, seen]))  # the official error
            rows["S_world"].append(np.hstack([world, seen]))
            rows["angles"].append(
                np.where(DEGREE_AXES, np.rad2deg(one.coordinates[frame]), one.coordinates[frame])
            )
    return {key: np.array(values) for key, values in rows.items()}


def official(path: Path, one: SpineTrial, cameras: Cameras, names: tuple[str, ...] = REDUCED_NAMES) -> Path:
    metadata = {"joint_names": np.array(names), "root_index": 0}
    np.savez(path, metadata=metadata, **by_loop(one, cameras, names))  # pyright: ignore[reportArgumentType]
    return path


def near(a: Samples, b: Samples) -> None:
    assert a.keypoint_names == b.keypoint_names
    for name in ("image_names", "visible"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    # OpenCV and we sum in another order: float64's precision at a thousand pixels.
    for name in ("centers", "scales", "pixels", "in_camera", "in_world", "coordinates"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("names", [REDUCED_NAMES, RELEASE_KEYPOINTS])
def test_an_official_file_is_read_and_mended(tmp_path: Path, names: tuple[str, ...]) -> None:
    one, cameras = trial(), {"S1": rig()}
    read = read_samples_npz(official(tmp_path / "a.npz", one, rig(), names))
    assert camera_space_of(read, cameras) == "official"
    assert 0.2 < read.visible.mean() < 1
    ours = samples_of(one, rig(), names)
    assert camera_space_of(ours, cameras) == "projecting"
    assert np.abs(read.in_camera - ours.in_camera).max() > 1  # metres
    mended = with_projecting_camera_space(read, cameras)
    near(mended, ours)
    assert with_projecting_camera_space(ours, cameras) is ours
    # What the official space is good for.
    np.testing.assert_allclose(
        read.in_camera - read.in_camera[:, :1], ours.in_camera - ours.in_camera[:, :1], atol=1e-12
    )


def test_camera_space_projects_onto_the_pixels() -> None:
    ours, view = samples_of(trial(), rig()), rig().select(NAMES[:1])
    flat = replace(view, distortion=np.zeros((1, 8)))
    undistorted = samples_of(trial(), flat)
    x = undistorted.in_camera[..., :2] / undistorted.in_camera[..., 2:]
    pixels = x * np.asarray(view.focal_lengths) + np.asarray(view.principal_points)
    np.testing.assert_allclose(undistorted.pixels, pixels, rtol=1e-12)
    assert (ours.in_camera[..., 2] > 3).all()


def test_a_camera_space_that_is_neither_is_refused() -> None:
    ours, cameras = samples_of(trial(), rig()), {"S1": rig()}
    with pytest.raises(ShapeError, match=r"neither R X \+ t nor R \(X - t\)"):
        camera_space_of(replace(ours, in_camera=ours.in_camera + 0.1), cameras)
    with pytest.raises(UnknownNameError, match="Subject 'S1' is not in the calibrations; it has: S9"):
        camera_space_of(ours, {"S9": rig()})
    with pytest.raises(UnknownNameError, match="Camera '60457274' is not in"):
        camera_space_of(ours, {"S1": rig().select(NAMES[:1])})
    with pytest.raises(ShapeError, match="the image name is 'x'; valid is such as S1/S1_Walking_1"):
        camera_space_of(replace(ours, image_names=np.array(["x"] * 10)), cameras)


def test_several_subjects_have_their_own_cameras() -> None:
    moved = replace(rig(), translations=rig().translations + 0.5)
    both = joined([samples_of(trial(), rig()), samples_of(trial(subject="S9"), moved)])
    assert len(both.image_names) == 20
    assert camera_space_of(both, {"S1": rig(), "S9": moved}) == "projecting"
    with pytest.raises(ShapeError, match="neither"):
        camera_space_of(both, {"S1": rig(), "S9": rig()})
    with pytest.raises(ShapeError, match="samples of the same keypoints"):
        joined([samples_of(trial(), rig()), samples_of(trial(), rig(), RELEASE_KEYPOINTS)])
    with pytest.raises(ShapeError, match="at least one"):
        joined([])


def test_missing_keypoints_are_not_visible() -> None:
    one = trial()
    keypoints = one.keypoints.copy()
    keypoints[1, KEYPOINT_NAMES.index("nose")] = np.nan
    keypoints[2] = np.nan
    samples = samples_of(replace(one, keypoints=keypoints), rig().select(NAMES[:1]))
    whole = samples_of(one, rig().select(NAMES[:1]))
    nose = REDUCED_NAMES.index("nose")
    assert whole.visible.all()
    assert not samples.visible[1, nose]
    assert samples.visible[1].sum() == 14
    assert np.isfinite(samples.centers[[0, 1, 3, 4]]).all()
    assert np.isnan(samples.centers[2]).all()
    assert np.isnan(samples.scales[2])
    assert camera_space_of(samples, {"S1": rig()}) == "projecting"
    unknown = replace(rig(), sizes=np.full((2, 2), np.nan))
    assert samples_of(one, unknown).visible.all()
    with pytest.raises(UnknownNameError, match="Keypoint 'Nose'"):
        samples_of(one, rig(), ["Nose"])


@pytest.mark.parametrize("names", [REDUCED_NAMES, RELEASE_KEYPOINTS])
def test_what_is_written_reads_back(tmp_path: Path, names: tuple[str, ...]) -> None:
    ours = samples_of(trial(), rig(), names)
    write_samples_npz(tmp_path / "a.npz", ours)
    read = read_samples_npz(tmp_path / "a.npz")
    near(read, ours)
    np.testing.assert_array_equal(read.in_world, ours.in_world)
    write_samples_npz(tmp_path / "b.npz", ours)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=True) as stored:  # as a program in MMPose's manner does
        metadata = stored["metadata"].item()
        assert stored["part"].shape == (10, len(names), 3)
        assert stored["S"].dtype == np.float64
    assert metadata["param_names"] == list(AXIS_NAMES)
    assert metadata["joint_names"][metadata["root_index"]] == metadata["root_name"] == "Hip"
    if names == REDUCED_NAMES:
        assert metadata["parent_ids"] == REDUCED_PARENTS.tolist()
        assert metadata["joint_names"][:2] == ["Hip", "Spine_01"]
    with pytest.raises(ShapeError, match="valid are those of the release"):
        write_samples_npz(tmp_path / "c.npz", samples_of(trial(), rig(), REDUCED_NAMES[:3]))


class Bomb:
    def __reduce__(self):
        return SystemExit, (7,)


def test_metadata_is_never_unpickled(tmp_path: Path) -> None:
    path = official(tmp_path / "a.npz", trial(), rig())
    arrays = read_npz(path, without=("metadata",))
    write_npz(path, {"metadata": np.array({"x": Bomb()}, object)} | arrays)
    assert len(read_samples_npz(path).image_names) == 10
    write_npz(path, arrays | {"imgname": np.array([Bomb()] * 10, object)})
    with pytest.raises(FileFormatError, match="'imgname' holds Python objects"):
        read_samples_npz(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"S": None}, "the array S is missing; valid is floating point numbers in 3 dimensions"),
        ({"imgname": np.zeros(10)}, "the array imgname is float64 of the shape .10,.; valid is text in 1"),
        ({"part": np.zeros((10, 17, 3))}, "part has the shape .10, 17, 3."),
        ({"part": np.zeros((10, 15, 2))}, "part has the shape .10, 15, 2."),
        ({"S_world": np.zeros((10, 15, 3))}, "S, S_world or angles are too narrow or wide"),
        ({"angles": np.zeros((10, 61))}, "S, S_world or angles are too narrow or wide"),
        ({"angles": np.zeros((9, 62))}, "coordinates has the shape .9, 62."),
        ({"center": np.zeros((10, 3))}, "centers has the shape .10, 3."),
    ],
)
def test_what_is_no_such_file_is_told(tmp_path: Path, changes: Any, sentence: str) -> None:
    path = official(tmp_path / "a.npz", trial(), rig())
    arrays = read_npz(path, without=("metadata",)) | changes
    write_npz(path, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(FileFormatError, match=rf"a\.npz: {sentence}") as caught:
        read_samples_npz(path)
    assert str(caught.value).isprintable()


def test_mutants_load_right_or_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = official(tmp_path / "a.npz", trial(2), rig())
    valid, rng, wanted = path.read_bytes(), random.Random(0), read_samples_npz(path)
    refused = 0
    for _ in range(200):
        data = bytearray(valid)
        at = rng.choice(rng.choice((range(len(data)), range(len(data) - 800, len(data)))))
        data[at : at + rng.choice((0, 1, 30))] = rng.randbytes(rng.choice((1, 30)))
        path.write_bytes(data)
        try:
            read, message = read_samples_npz(path), "a.npz"
        except SimspineError as error:
            read, message = wanted, str(error)
            refused += 1
        near(read, wanted)
        assert "a.npz" in message
        assert message.isprintable()
    assert 50 < refused < 200


def test_names_of_pictures_say_what_they_show() -> None:
    name = ImageName("S11", "Walking_1", "54138969", 42)
    assert name.path == "S11/S11_Walking_1.54138969/S11_Walking_1.54138969_000042.jpg"
    assert ImageName.of(name.path) == name
