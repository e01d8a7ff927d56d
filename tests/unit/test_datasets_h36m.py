"""Human3.6M's frames with a release: made-up files of the published layouts, against OpenCV's projection."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from official_files import (
    CAMERAS,
    DISTORTION,
    N_FRAMES,
    ROTATIONS,
    TRANSLATIONS,
    TRIALS,
    K,
    markers_of,
    write_h5,
)

from simspine_jax.datasets.h36m import frame_of, open_h36m
from simspine_jax.datasets.picture_files import PictureFiles
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.io.samples import ImageName
from simspine_jax.pictures import VISIBLE, encode_jpeg
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, RELEASE_TO_KEYPOINT

SIZES = {CAMERAS[0]: (1000, 1002), CAMERAS[1]: (1000, 1000)}
# float32 of a thousand pixels; projections of clips are computed in it.
PROJECTED_PX = 5e-3


def write_frames(root: Path, layout: str, first: int, step: int = 1, suffix: str = "jpg") -> None:
    """All videos of the made-up release in one of the layouts; a frame's grey tells its number."""
    for subject, stem in TRIALS:
        for camera, (width, height) in SIZES.items():
            video = f"{subject}_{stem}.{camera}"
            for frame in range(0, N_FRAMES, step):
                number = f"{frame + first:06d}.{suffix}"
                path = {
                    "mmpose": f"{subject}/{video}/{video}_{number}",
                    "flat": f"{video}_{number}",
                    "folders": f"{subject}/{stem.replace('_', ' ')}.{camera}/frame_{number}",
                }[layout]
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((height, width, 3), 10 * frame, np.uint8)
                (root / path).write_bytes(encode_jpeg(pixels, 50))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "simspine.h5"
    write_h5(path, AXIS_NAMES)
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    write_frames(root, "mmpose", first=1, step=5)
    return root


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("S1/S1_Walking.54138969/S1_Walking.54138969_000001.jpg", ("S1", "Walking", "54138969", 1)),
        ("S11_Walking.55011271_000204.jpg", ("S11", "Walking", "55011271", 204)),
        ("any/where/S9_Sitting_Down_2.60457274_12.png", ("S9", "Sitting_Down_2", "60457274", 12)),
        ("S5/Directions 1.54138969/000007.jpg", ("S5", "Directions_1", "54138969", 7)),
        ("images/S5/Directions_1.54138969/img_0007.jpg", ("S5", "Directions_1", "54138969", 7)),
        ("S5/S5_Directions_1.54138969/7.jpg", ("S5", "Directions_1", "54138969", 7)),
        ("S5/Directions_1/000007.jpg", None),
        ("Directions_1.54138969/000007.jpg", None),
        ("S5/Directions_1.54138969/cover.jpg", None),
        ("cover.jpg", None),
    ],
)  # fmt: skip
def test_names_of_frames(path: str, found: tuple[str, str, str, int] | None) -> None:
    assert frame_of(Path(path)) == (None if found is None else ImageName(*found))


def check(people: PictureFiles, step: int) -> None:
    """Each frame has OpenCV's projection of its own markers, and its own pixels."""
    assert people.problems == ()
    count = len(range(0, N_FRAMES, step))
    assert len(people) == len(TRIALS) * len(CAMERAS) * count
    stems = {stem.replace("_", " "): stem for _, stem in TRIALS}
    assert people.scored_boxes is not None
    for record, scored in zip(people, people.scored_boxes, strict=True):
        view = CAMERAS.index(record.camera)
        marker = markers_of(record.subject, stems[record.action])[record.frame]
        # The cameras' world is Z-up: (x, y, z) of the release's markers are its (Y, Z, X).
        world = marker[:, [2, 0, 1]]
        R, t, k = ROTATIONS[view], TRANSLATIONS[view], K[view]
        pixels = cv2.projectPoints(world, cv2.Rodrigues(R)[0], t, k, DISTORTION[view])[0][:, 0]
        place = np.argsort(RELEASE_TO_KEYPOINT)
        np.testing.assert_allclose(record.keypoints_2d, pixels[place], atol=PROJECTED_PX)
        np.testing.assert_allclose(record.keypoints_3d, (world @ R.T + t)[place], atol=1e-5)
        np.testing.assert_allclose(record.camera_matrix, k)
        assert (record.visibility == VISIBLE).all()
        assert (record.width, record.height) == SIZES[record.camera]
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        margin = 0.1 * (high - low)
        np.testing.assert_allclose(record.box[:2], low - margin, atol=2 * PROJECTED_PX)
        np.testing.assert_allclose(record.box[2:], 1.2 * (high - low), atol=2 * PROJECTED_PX)
        np.testing.assert_allclose(scored, [*low, *(high - low)], atol=2 * PROJECTED_PX)
        assert np.isnan(record.area)
        assert not record.is_synthetic
        shade = cv2.imdecode(np.frombuffer(record.jpeg, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        assert abs(int(shade[0, 0]) - 10 * record.frame) <= 2


def test_mmposes_frames_count_from_one(frames: Path, release: Path) -> None:
    people = open_h36m(frames, release)
    check(people, 5)
    assert people.notes == ("the first frame of a video is taken to have the number 1 in file names",)


@pytest.mark.parametrize("layout", ["flat", "folders"])
def test_other_layouts_and_frames_from_zero(tmp_path: Path, release: Path, layout: str) -> None:
    write_frames(tmp_path, layout, first=0, step=4, suffix="jpeg" if layout == "flat" else "jpg")
    people = open_h36m(tmp_path, release)
    check(people, 4)
    assert "the number 0 in file names" in people.notes[0]


def test_a_part_is_read(frames: Path, release: Path) -> None:
    assert {p.subject for p in open_h36m(frames, release, subjects=["S9"])} == {"S9"}
    walking = open_h36m(frames, release, subjects=["S1"], actions=["Walking_1"])
    assert {(p.action, p.frame) for p in walking} == {("Walking 1", f) for f in (0, 5, 10)}
    assert {p.frame for p in open_h36m(frames, release, every=10)} == {0, 10}
    # Told that they count from 0, the files numbered 1, 6 and 11 are those frames.
    assert {p.frame for p in open_h36m(frames, release, first=0)} == {1, 6, 11}


def test_what_can_not_be_used_is_named_and_the_rest_is_done(tmp_path: Path, release: Path) -> None:
    write_frames(tmp_path, "mmpose", first=1, step=5)
    folder = tmp_path / f"S1/S1_Walking.{CAMERAS[0]}"
    (folder / f"S1_Walking.{CAMERAS[0]}_000001.jpg").write_bytes(b"")
    small = encode_jpeg(np.zeros((500, 501, 3), np.uint8))
    (folder / f"S1_Walking.{CAMERAS[0]}_000006.jpg").write_bytes(small)
    for name in (
        f"S1_Walking.{CAMERAS[0]}_000999.jpg", "S1_Walking.99_000001.jpg",
        f"S1_Waiting.{CAMERAS[0]}_000001.jpg", "cover.jpg", "notes.txt",
    ):  # fmt: skip
        (folder / name).write_bytes(small)
    people = open_h36m(tmp_path, release)
    assert len(people) == len(TRIALS) * len(CAMERAS) * 3 - 2
    assert people.scored_boxes is not None
    for record, scored in zip(people, people.scored_boxes, strict=True):
        np.testing.assert_allclose(record.box[2:], 1.2 * scored[2:], rtol=1e-4)
    told = "\n".join(map(str, people.problems))
    assert len(people.problems) == 6
    for what in (
        "_000001.jpg: the file is empty", "501 by 500 px; valid is the calibration's 1000 by 1002",
        f"S1 Walking.{CAMERAS[0]}: 1 frames are not among the release's 12",
        f"S1 Walking.99: the release has no such camera; it has {', '.join(CAMERAS)}",
        "S1 Waiting: the release has no such trial for 1 frames; it has Walking, Walking_1",
        "cover.jpg: its name tells no subject, action, camera and frame",
    ):  # fmt: skip
        assert what in told


def test_frames_that_are_not_usable_are_left_out(tmp_path: Path, frames: Path) -> None:
    import h5py

    path = tmp_path / "simspine.h5"
    write_h5(path, AXIS_NAMES)
    with h5py.File(path, "r+") as file:
        markers = file["S1/Walking/markers"]
        markers[5] = np.nan
        file["S1/Walking/kinematics"][5] = np.nan
        markers[0, :, 2] += 100.0  # far to the side of one camera, behind the other
    people = open_h36m(frames, path)
    assert "2 frames that the release marks as not usable" in people.notes[0]
    assert "2 frames without a keypoint in the picture" in people.notes[0]
    assert {p.frame for p in people if (p.subject, p.action) == ("S1", "Walking")} == {10}


def test_errors_are_told(tmp_path: Path, frames: Path, release: Path) -> None:
    with pytest.raises(FileFormatError, match="nowhere: this is not a folder"):
        open_h36m(tmp_path / "nowhere", release)
    with pytest.raises(FileFormatError, match="it holds no frame of S1, S9; valid is a folder with S1/S1_"):
        open_h36m(tmp_path, release)
    with pytest.raises(UnknownNameError, match="S2"):
        open_h36m(frames, release, subjects=["S2"])
    with pytest.raises(SimspineError, match="0th frame"):
        open_h36m(frames, release, every=0)
    (tmp_path / f"S1_Jumping.{CAMERAS[0]}_000001.jpg").write_bytes(b"")
    with pytest.raises(
        FileFormatError, match=r"no frame can be used with .*S1 Jumping: the release has no such"
    ):
        open_h36m(tmp_path, release)


def test_a_release_without_cameras_is_refused(tmp_path: Path, frames: Path) -> None:
    import h5py

    path = tmp_path / "simspine.h5"
    write_h5(path, AXIS_NAMES)
    with h5py.File(path, "r+") as file:
        del file["S1/calibration"]
    with pytest.raises(FileFormatError, match="it has no cameras of S1"):
        open_h36m(frames, path)


def test_records_are_whole(frames: Path, release: Path) -> None:
    record = open_h36m(frames, release)[0]
    for field in dataclasses.fields(record):
        assert getattr(record, field.name) is not None
    assert record.keypoints_2d.shape == (len(KEYPOINT_NAMES), 2)
    assert isinstance(record.frame, int)
    assert isinstance(record.subject, str)
