"""Keypoint files, the choice of a person, and what breaks the rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax import skeleton
from simspine_jax.errors import FileFormatError, ShapeError, UnknownNameError
from simspine_jax.io.keypoints import (
    Detections2D,
    Keypoints2D,
    main_person,
    read_coco_results,
    read_detections_npz,
    read_keypoints_npz,
    read_openpose_folder,
    write_keypoints_npz,
    write_openpose_folder,
)
from simspine_jax.io.npz import read_npz, write_npz


def person(n: int = 37, x: float = 100.0, confidence: float = 0.9) -> list[float]:
    values = np.stack([x + np.arange(n), 200 + 3.0 * np.arange(n), np.full(n, confidence)], axis=-1)
    return values.ravel().tolist()


def put(path: Path, *people: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": 1.3, "people": [{"pose_keypoints_2d": p} for p in people]}
    path.write_text(json.dumps(content))


def clip(n_frames: int = 4, **changes: object) -> Keypoints2D:
    rng = np.random.default_rng(0)
    values = {
        "camera_names": ("left", "right"),
        "keypoint_names": skeleton.COCO_17.markers,
        "positions": rng.uniform(0, 1000, (n_frames, 2, 17, 2)),
        "confidence": rng.uniform(0.1, 1, (n_frames, 2, 17)),
    }
    return Keypoints2D(**(values | changes))  # pyright: ignore[reportArgumentType]


def same(a: Keypoints2D, b: Keypoints2D) -> None:
    assert (a.camera_names, a.keypoint_names) == (b.camera_names, b.keypoint_names)
    assert (a.rate_hz, a.first_frame) == (b.rate_hz, b.first_frame)
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.confidence, b.confidence)


def test_schemas_are_the_published_orders(shared_data: Path) -> None:
    sizes = {name: len(schema.markers) for name, schema in skeleton.KEYPOINT_SCHEMAS.items()}
    assert sizes == {"SPINETRACK_37": 37, "HALPE_26": 26, "BODY_25B": 25, "BODY_25": 25, "COCO_17": 17}
    with np.load(shared_data / "pose2sim_demo" / "keypoints_2d.npz") as stored:
        assert skeleton.BODY_25B.markers == tuple(stored["keypoint_names"])
    assert skeleton.HALPE_26.markers[17:20] == ("Head", "Neck", "Hip")
    assert skeleton.COCO_17.markers[-1] == "RAnkle"
    assert set(skeleton.BODY_25.markers) == (set(skeleton.BODY_25B.markers) - {"Head"}) | {"Hip"}
    for schema in skeleton.KEYPOINT_SCHEMAS.values():
        assert len(set(schema.markers)) == len(schema.markers)
        assert set(schema.markers) <= set(skeleton.TRC_NAMES)


def test_openpose_folders(tmp_path: Path) -> None:
    put(tmp_path / "b" / "walk_000000000012_keypoints.json", person(), person(x=500))
    put(tmp_path / "b" / "walk_000000000014_keypoints.json", person(x=700))
    put(tmp_path / "a" / "walk_000000000013_keypoints.json", person(x=300))
    put(tmp_path / "a" / "walk_000000000014_keypoints.json")
    clip = read_openpose_folder(tmp_path, rate_hz=50.0)
    assert clip.camera_names == ("a", "b")
    assert clip.keypoint_names == skeleton.TRC_NAMES
    assert clip.confidence.shape == (3, 2, 2, 37)
    assert (clip.first_frame, clip.rate_hz) == (12, 50.0)
    present = ~np.isnan(clip.confidence).all(axis=-1)
    np.testing.assert_array_equal(present[:, 0], [[False, False], [True, False], [False, False]])
    np.testing.assert_array_equal(present[:, 1], [[True, True], [False, False], [True, False]])
    np.testing.assert_array_equal(clip.positions[0, 1, 1, :2], [[500, 200], [501, 203]])


def test_spinepose_writes_openpose_files_of_other_names(tmp_path: Path) -> None:
    for frame in range(3):
        put(tmp_path / "cam" / f"frame_{frame:05d}.json", person(x=frame))
    clip = read_openpose_folder(tmp_path)
    np.testing.assert_array_equal(clip.positions[:, 0, 0, 0, 0], [0, 1, 2])


def test_openpose_zeros_are_missing(tmp_path: Path) -> None:
    values = person(17)
    values[3:6] = [0, 0, 0]
    put(tmp_path / "cam" / "a_1_keypoints.json", values)
    clip = read_openpose_folder(tmp_path)
    np.testing.assert_array_equal(np.isnan(clip.confidence[0, 0, 0]), np.arange(17) == 1)
    assert not (clip.positions == 0).any()


def test_twenty_five_keypoints_need_a_name(tmp_path: Path) -> None:
    put(tmp_path / "cam" / "a_1_keypoints.json", person(25))
    with pytest.raises(FileFormatError, match="people have 25 keypoints and the schema is not given"):
        read_openpose_folder(tmp_path)
    for name in ("BODY_25B", "BODY_25"):
        expected = skeleton.KEYPOINT_SCHEMAS[name].markers
        assert read_openpose_folder(tmp_path, schema=name).keypoint_names == expected
    with pytest.raises(FileFormatError, match="25 keypoints where HALPE_26 has another number"):
        read_openpose_folder(tmp_path, schema="HALPE_26")
    with pytest.raises(
        UnknownNameError, match=r"Schema 'BODY' is not in the vocabulary; .* has: SPINETRACK_37"
    ):
        read_openpose_folder(tmp_path, schema="BODY")


def test_coco_results(tmp_path: Path) -> None:
    people = [
        {"image_id": "trial/img_0007.jpg", "keypoints": person(17), "score": 0.8},
        {"image_id": 8, "keypoints": person(17, x=300), "score": 0.8},
        {"image_id": 8, "keypoints": person(17, x=600), "score": 0.8},
        {"file_name": "img_10.png", "keypoints": np.reshape(person(17), (17, 3)).tolist()},
    ]
    (tmp_path / "a.json").write_text(json.dumps(people))
    (tmp_path / "b.json").write_text(json.dumps(people[:1]))
    clip = read_coco_results({"first": tmp_path / "a.json", "second": tmp_path / "b.json"})
    assert clip.camera_names == ("first", "second")
    assert clip.keypoint_names == skeleton.COCO_17.markers
    assert clip.first_frame == 7
    counts = (~np.isnan(clip.confidence).all(axis=-1)).sum(axis=-1)
    np.testing.assert_array_equal(counts, [[1, 1], [2, 0], [0, 0], [1, 0]])
    assert clip.positions[1, 0, 1, 0, 0] == 600


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(bool, (3, 2, 17)),
    st.sampled_from([None, 50.0, 59.94]),
    st.integers(0, 10**6),
)
def test_what_is_written_reads_back(tmp_path_factory, missing, rate, first) -> None:
    folder = tmp_path_factory.mktemp("keypoints")
    whole = clip(3)
    keypoints = replace(
        whole,
        positions=np.where(missing[..., None], np.nan, whole.positions),
        confidence=np.where(missing, np.nan, whole.confidence),
        rate_hz=rate,
        first_frame=first,
    )
    write_keypoints_npz(folder / "keypoints.npz", keypoints)
    same(read_keypoints_npz(folder / "keypoints.npz"), keypoints)
    write_openpose_folder(folder / "json", keypoints)
    read = read_openpose_folder(folder / "json", schema="COCO_17", rate_hz=rate)
    same(main_person(read), keypoints)


def test_the_demos_arrays(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "pose2sim_demo" / "keypoints_2d.npz"
    chosen, everyone = read_keypoints_npz(path), read_detections_npz(path)
    assert chosen.confidence.shape == (100, 4, 25)
    assert everyone.confidence.shape == (100, 4, 3, 25)
    assert chosen.rate_hz == 60.0
    assert not (chosen.confidence == 0).any()
    # Pose2Sim has chosen by what the cameras agree on, which in two pictures is somebody else.
    got = main_person(everyone)
    arrays = read_npz(path)
    del arrays["keypoints_associated"]
    write_npz(tmp_path / "raw.npz", arrays)
    same(read_keypoints_npz(tmp_path / "raw.npz"), got)
    agree = (np.nan_to_num(got.positions) == np.nan_to_num(chosen.positions)).all(axis=(-1, -2))
    assert agree.mean() > 0.99
    assert (~np.isnan(everyone.confidence).all(axis=-1)).sum(axis=-1).max() == 3


def crowd(n_frames: int, *people: tuple[np.ndarray, float, float]) -> Detections2D:
    """People of one camera by their place (x, px, of each frame, NaN if away), size and confidence."""
    shape = np.random.default_rng(0).uniform(-0.5, 0.5, (17, 2))
    positions = np.stack(
        [np.stack([x, np.full(n_frames, 500.0)], -1)[:, None] + size * shape for x, size, _ in people], 1
    )
    confidence = np.stack([np.full((n_frames, 17), c) for _, _, c in people], 1)
    away = np.isnan(positions).any(axis=-1)
    positions[away], confidence = np.nan, np.where(away, np.nan, confidence)
    return Detections2D(("cam",), skeleton.COCO_17.markers, positions[:, None], confidence[:, None])


def test_the_large_and_sure_person_is_chosen_whatever_the_order() -> None:
    still = np.full(10, 400.0)
    detections = crowd(10, (still + 300, 100, 0.9), (still, 300, 0.8), (still - 200, 400, 0.1))
    order = np.argsort(np.random.default_rng(1).random((10, 3)), axis=-1)
    shuffled = replace(
        detections,
        positions=np.take_along_axis(detections.positions, order[:, None, :, None, None], axis=2),
        confidence=np.take_along_axis(detections.confidence, order[:, None, :, None], axis=2),
    )
    assert len({tuple(row) for row in order.tolist()}) > 3
    for given_ in (detections, shuffled):
        np.testing.assert_array_equal(main_person(given_).positions[:, 0], detections.positions[:, 0, 1])


def test_a_passer_by_who_is_larger_for_a_moment_is_not_taken() -> None:
    still, passing = np.full(30, 300.0), np.full(30, np.nan)
    passing[10:13] = [700, 800, 900]
    detections = crowd(30, (still, 300, 0.9), (passing, 380, 0.9))
    alone = replace(
        detections, positions=detections.positions[10:13], confidence=detections.confidence[10:13]
    )
    np.testing.assert_array_equal(main_person(alone).positions[:, 0], alone.positions[:, 0, 1])
    np.testing.assert_array_equal(main_person(detections).positions[:, 0], detections.positions[:, 0, 0])


def test_pictures_without_people_stay_missing() -> None:
    gone = np.full(8, 300.0)
    gone[3:5] = np.nan
    got = main_person(crowd(8, (gone, 300, 0.9)))
    np.testing.assert_array_equal(np.isnan(got.confidence).all(axis=(1, 2)), np.isnan(gone))
    assert np.isnan(main_person(crowd(8, (np.full(8, np.nan), 300, 0.9))).positions).all()


def test_selection_reorders_and_names_what_is_valid() -> None:
    whole = clip()
    few = whole.select(["LHip", "Nose"])
    np.testing.assert_array_equal(few.positions, whole.positions[:, :, [11, 0]])
    with pytest.raises(UnknownNameError, match=r"Keypoint 'Hip' is not in the keypoints; .* has: Nose"):
        whole.select(["Hip"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera_names": ("a", "a")}, "camera_names has 'a' twice"),
        ({"camera_names": ()}, "camera_names is empty"),
        ({"camera_names": ("a", "b\n")}, "camera_names has"),
        ({"camera_names": ("a", "b", "c")}, r"valid is \[T V K 2\] and \[T V K\] with V, K = \(3, 17\)"),
        ({"positions": np.zeros((4, 2, 17, 3))}, "positions have the shape"),
        ({"confidence": np.full((4, 2, 17), np.nan)}, "missing in part"),
        ({"confidence": np.zeros((4, 2, 17))}, "not positive"),
        ({"positions": np.full((4, 2, 17, 2), np.inf)}, "infinite"),
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
    ],
)
def test_what_breaks_the_rules_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        clip(**changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '{"people": []}', "its name ends in no number"),
        ("a_1.json", "{", "the JSON is broken"),
        ("a_1.json", "[]", "it has no list of people"),
        ("a_1.json", '{"people": [{}]}', "person 0 has the keypoints 'None'"),
        ("a_1.json", '{"people": [{"pose_keypoints_2d": [1, 2]}]}', "valid is x, y and a confidence"),
        ("a_1.json", '{"people": [{"pose_keypoints_2d": [1, 2, -1]}]}', "valid is x, y and a confidence"),
        ("a_1.json", '{"people": [{"pose_keypoints_2d": ["x", 2, 1]}]}', "valid is x, y and a confidence"),
        ("a_1.json", '{"people": [{"pose_keypoints_2d": [1, 2, 1]}]}', "people have 1 keypoints"),
        ("a_1.json", '{"people": []}', "nobody is in it and the schema is not given"),
    ],
)
def test_bad_openpose_files_are_named(tmp_path: Path, name: str, content: str, reason: str) -> None:
    path = tmp_path / "cam" / name
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(FileFormatError, match=reason) as caught:
        read_openpose_folder(tmp_path)
    assert "; valid is " in str(caught.value)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="this is not a folder"):
        read_openpose_folder(tmp_path / "none")
    with pytest.raises(FileFormatError, match="no folder in it holds JSON files"):
        read_openpose_folder(tmp_path)
    put(tmp_path / "cam" / "a_1_keypoints.json", person(17), person(26))
    with pytest.raises(FileFormatError, match=r"people have \[17, 26\] keypoints; valid is the same for all"):
        read_openpose_folder(tmp_path)
    put(tmp_path / "cam" / "a_1_keypoints.json", person(17))
    put(tmp_path / "cam" / "b_01_keypoints.json", person(17))
    with pytest.raises(FileFormatError, match="frame 1 is there twice"):
        read_openpose_folder(tmp_path)
    (tmp_path / "cam" / "b_01_keypoints.json").unlink()
    put(tmp_path / "cam" / "a_20261121_keypoints.json", person(17))
    with pytest.raises(
        FileFormatError, match="frame numbers go from 1 to 20261121; valid is at most 1000000"
    ):
        read_openpose_folder(tmp_path)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        (".git", ["config"]), ("__MACOSX", []), ("a_img", ["a_000.png", "a_001.PNG", ".DS_Store"]),
        ("a_video", ["a.mp4"]),
    ],
)  # fmt: skip
def test_folders_that_are_no_cameras_are_passed_over(tmp_path: Path, folder: str, names: list[str]) -> None:
    put(tmp_path / "a" / "a_1_keypoints.json", person(17))
    touch(tmp_path / folder, *names)
    assert read_openpose_folder(tmp_path).camera_names == ("a",)


@pytest.mark.parametrize("names", [[], [".DS_Store"], ["log.txt"], ["b_1.png", "b_1.xml"]])
def test_a_camera_without_its_files_is_named(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path / "a" / "a_1_keypoints.json", person(17))
    touch(tmp_path / "b", *names)
    with pytest.raises(FileFormatError, match=r"/b: this folder holds no JSON files; valid is "):
        read_openpose_folder(tmp_path)
    put(tmp_path / "b" / "deeper" / "b_1_keypoints.json", person(17))
    with pytest.raises(FileFormatError, match=r"/b: this folder holds no JSON files; .* which .*/b seems to"):
        read_openpose_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "it holds a dict"),
        ("[1]", "person 0 has the image"),
        ('[{"image_id": "a"}]', "has the image 'a'"),
    ],
)
def test_bad_coco_results_are_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=reason):
        read_coco_results({"a": path})
    with pytest.raises(ShapeError, match="no COCO results"):
        read_coco_results({})


def test_bad_npz_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(FileFormatError, match="not an NPZ file"):
        read_keypoints_npz(path)
    np.savez(path, camera_names=np.array([{}], object))
    with pytest.raises(FileFormatError, match="not an NPZ file of plain arrays"):
        read_keypoints_npz(path)
    np.savez(path, camera_names=np.array(["a"]))
    with pytest.raises(FileFormatError, match="it has no array 'rate_hz'"):
        read_keypoints_npz(path)
    with pytest.raises(FileFormatError, match="it has no array 'keypoints_raw'"):
        read_detections_npz(path)
    names = {"camera_names": np.array(["a"]), "keypoint_names": np.array(["b"]), "frame_rate": 50.0}
    np.savez(path, keypoints_associated=np.zeros((1, 4, 1, 2)), **names)
    with pytest.raises(FileFormatError, match="keypoints_associated has 2 numbers a keypoint"):
        read_keypoints_npz(path)
