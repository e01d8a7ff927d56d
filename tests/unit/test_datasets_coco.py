"""COCO files read back: against pycocotools, with pictures of all kinds, and with all that can be wrong."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from simspine_jax.datasets.coco import UNKNOWN, open_coco
from simspine_jax.datasets.picture_files import told_problems
from simspine_jax.errors import FileFormatError
from simspine_jax.picture_export import export_pictures
from simspine_jax.pictures import OCCLUDED, OUTSIDE, VISIBLE, Picture, crop_jpeg, decode_jpeg, encode_jpeg
from simspine_jax.skeleton import KEYPOINT_NAMES

WIDTH, HEIGHT = 60, 40
K = len(KEYPOINT_NAMES)
# What JSON keeps of a pixel, and float32 of it.
JSON_PX = 0.5e-3 + 1e-5


def file_of(
    pixels: np.ndarray, kind: str = "JPEG", orientation: int | None = None, mode: str = "RGB"
) -> bytes:
    """A picture file that Pillow writes, with the EXIF orientation if there is one."""
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif)
    return file.getvalue()


def halves(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Red on the left and blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0], pixels[:, width // 2 :, 2] = 255, 255
    return pixels


def person(number: int, image: int, count: int = K, **changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(number)
    points = random.uniform((5, 5), (WIDTH - 5, HEIGHT - 5), (count, 2)).round(2)
    seen = random.choice([0, 1, 2], count)
    seen[0] = 2
    table = np.column_stack([np.where(seen[:, None] > 0, points, 0), seen])
    values = {
        "id": number, "image_id": image, "category_id": 1, "keypoints": table.ravel().tolist(),
        "num_keypoints": int((seen > 0).sum()), "bbox": [4, 3, 40, 30], "area": 500.0, "iscrowd": 0,
    }  # fmt: skip
    return values | changes


def document(names: tuple[str, ...] = KEYPOINT_NAMES) -> dict[str, Any]:
    return {
        "images": [
            {"id": 10 + i, "file_name": f"p{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(3)
        ],
        "annotations": [person(i, 10 + i, len(names)) for i in range(3)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(names)}],
    }


def written(tmp_path: Path, content: Any) -> Path:
    (tmp_path / "images").mkdir(exist_ok=True)
    for i in range(3):
        (tmp_path / f"images/p{i}.jpg").write_bytes(file_of(halves()))
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    return path


def test_people_are_those_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    content = document()
    content["annotations"].append(person(7, 11))
    path = written(tmp_path, content)
    people = open_coco(path, tmp_path / "images")
    reference = COCO(str(path))
    capsys.readouterr()
    assert len(people) == 4
    assert people.picture_of.tolist() == [0, 1, 2, 1]
    assert (people.problems, people.notes) == ((), ())
    for record, item in zip(people, reference.loadAnns(reference.getAnnIds()), strict=True):
        table = np.array(item["keypoints"]).reshape(-1, 3)
        np.testing.assert_array_equal(record.visibility, table[:, 2])
        known = table[:, 2] > 0
        np.testing.assert_allclose(record.keypoints_2d[known], table[known, :2], rtol=1e-6)
        assert np.isnan(record.keypoints_2d[~known]).all()
        np.testing.assert_array_equal(record.box, item["bbox"])
        assert record.area == item["area"]
        assert (record.width, record.height) == (WIDTH, HEIGHT)
        assert (record.subject, record.frame, record.is_synthetic) == (UNKNOWN, -1, False)
        assert np.isnan(record.keypoints_3d).all()
        assert np.isnan(record.camera_distortion).all()


def test_keypoints_are_taken_by_their_names(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(K)
    content = document()
    shuffled = copy.deepcopy(content)
    shuffled["categories"][0]["keypoints"] = [KEYPOINT_NAMES[i].replace("_", " ").title() for i in order]
    for item in shuffled["annotations"]:
        item["keypoints"] = np.array(item["keypoints"]).reshape(-1, 3)[order].ravel().tolist()
    straight = open_coco(written(tmp_path, content), tmp_path / "images")[1]
    turned = open_coco(written(tmp_path, shuffled), tmp_path / "images")[1]
    np.testing.assert_array_equal(straight.keypoints_2d, turned.keypoints_2d)
    np.testing.assert_array_equal(straight.visibility, turned.visibility)


def test_cocos_own_are_the_first_seventeen(tmp_path: Path) -> None:
    content = document(KEYPOINT_NAMES[:17])
    record = open_coco(written(tmp_path, content), tmp_path / "images")[0]
    table = np.array(content["annotations"][0]["keypoints"]).reshape(-1, 3)
    np.testing.assert_array_equal(record.visibility[:17], table[:, 2])
    assert (record.visibility[17:] == OUTSIDE).all()
    assert np.isnan(record.keypoints_2d[17:]).all()


def rendered(i: int) -> Picture:
    random = np.random.default_rng(i)
    visibility = random.choice([OUTSIDE, OCCLUDED, VISIBLE], K)
    keypoints = random.uniform((5, 5), (WIDTH - 5, HEIGHT - 5), (K, 2))
    return Picture(
        encode_jpeg(halves()), WIDTH, HEIGHT, "S1", "Sitting Down", "free", 3 * i, True, i,
        np.array([2, 3, 30 + i, 20]), 100.0 + i, keypoints, visibility, np.ones((K, 3)), 50 * np.eye(3),
        np.eye(3), np.arange(3.0), np.zeros(8),
    )  # type: ignore[arg-type] # fmt: skip


def test_what_this_project_writes_comes_back(tmp_path: Path) -> None:
    pictures = [rendered(i) for i in range(3)]
    export_pictures(tmp_path / "a.json", tmp_path / "images", pictures)
    found = open_coco(tmp_path / "a.json", tmp_path / "images")
    for old, new in zip(pictures, found, strict=True):
        told = old.visibility > 0
        assert new.jpeg == old.jpeg
        np.testing.assert_array_equal(new.visibility, old.visibility)
        np.testing.assert_allclose(new.keypoints_2d[told], old.keypoints_2d[told], atol=JSON_PX)
        for name in ("subject", "action", "camera", "frame", "is_synthetic", "width", "height"):
            assert getattr(new, name) == getattr(old, name)
        for name in ("box", "camera_matrix", "camera_rotation", "camera_translation", "camera_distortion"):
            np.testing.assert_allclose(getattr(new, name), getattr(old, name), atol=JSON_PX)


def test_who_can_not_be_used_is_counted(tmp_path: Path) -> None:
    content = document()
    nobody = [0.0] * (3 * K)
    content["annotations"] += [
        person(20, 10, iscrowd=1),
        person(21, 10, keypoints=nobody),
        person(22, 10, bbox=[3, 4, 0, 10]),
        person(23, 10, bbox=[WIDTH + 1, 4, 9, 10]),
        person(24, 10, area=0),
        {"id": 25, "image_id": 10, "category_id": 2},
    ]
    del content["annotations"][0]["area"]
    content["categories"].append({"id": 2, "name": "dog"})
    people = open_coco(written(tmp_path, content), tmp_path / "images")
    assert len(people) == 4
    assert [np.isnan(p.area) for p in people] == [True, False, False, True]
    (note,) = people.notes
    for what in (
        "1 crowds", "1 people without a labelled keypoint", "1 people with an empty box",
        "1 people whose box is outside", "1 annotations of categories without keypoints",
    ):  # fmt: skip
        assert what in note


def test_labelled_keypoints_outside_of_the_picture_are_labelled(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["keypoints"][:3] = [WIDTH + 5.0, 3.0, 1]
    record = open_coco(written(tmp_path, content), tmp_path / "images")[0]
    # As pycocotools counts it; see `test_detected`.
    assert record.visibility[0] == OCCLUDED
    assert record.keypoints_2d[0].tolist() == [WIDTH + 5.0, 3.0]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("JPEG", "L"), ("WEBP", "RGB"), ("PNG", "P")],
)
def test_pictures_of_all_kinds_are_decoded_to_colours(tmp_path: Path, kind: str, mode: str) -> None:
    path = written(tmp_path, document())
    large = halves(8 * HEIGHT, 8 * WIDTH)
    content = json.loads(path.read_text())
    content["images"][1] |= {"width": 8 * WIDTH, "height": 8 * HEIGHT}
    path.write_text(json.dumps(content))
    (tmp_path / "images/p1.jpg").write_bytes(file_of(large, kind, mode=mode))
    jpeg = open_coco(path, tmp_path / "images")[1].jpeg
    valid = np.array(Image.fromarray(large).convert(mode).convert("RGB")).astype(int)
    for scale in (1.0, 0.4, 0.1):  # the decoder reduces the latter two
        matrix = np.array([[scale, 0, 0], [0, scale, 0]])
        size = int(scale * 8 * HEIGHT), int(scale * 8 * WIDTH)
        crop = crop_jpeg(jpeg, matrix, size).astype(int)
        for x in (0.2, 0.8):  # away from the edge between the colours; JPEG and WebP change them a little
            y, column = size[0] // 2, int(x * size[1])
            assert np.abs(crop[y, column] - valid[4 * HEIGHT, int(x * 8 * WIDTH)]).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures(tmp_path: Path, orientation: int, kind: str) -> None:
    content = document()
    turned = orientation >= 5
    content["images"][0] |= {"width": HEIGHT, "height": WIDTH} if turned else {}
    path = written(tmp_path, content)
    file = file_of(halves(), kind, orientation)
    (tmp_path / "images/p0.jpg").write_bytes(file)
    people = open_coco(path, tmp_path / "images")
    assert people.problems == ()
    from PIL import ImageOps

    valid = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")).astype(int)  # type: ignore[union-attr]
    # Decoders differ by rounding, and more where they smooth colours across the edge.
    assert np.median(np.abs(decode_jpeg(people[0].jpeg) - valid)) <= 2
    assert np.abs(decode_jpeg(people[0].jpeg)[2, 2] - valid[2, 2]).max() <= 4


def test_a_picture_that_fits_unturned_alone_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, document())
    (tmp_path / "images/p0.jpg").write_bytes(file_of(halves(), orientation=6))
    people = open_coco(path, tmp_path / "images")
    assert len(people) == 2
    (problem,) = people.problems
    assert "p0.jpg" in str(problem)
    assert "40 by 60 px, turned as its EXIF says" in str(problem)
    assert "60 by 40" in str(problem)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_bytes(b"no picture at all")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN: dict[str, Callable[[Path], None]] = {
    "there is no such file": Path.unlink,
    "the file is empty": emptied,
    "it can't be read": replaced,
    "it is damaged or cut short": cut,
    "Is a directory": a_folder,
}


@pytest.mark.parametrize("what", BROKEN)
def test_files_that_can_not_be_used_are_named_and_the_rest_is_done(tmp_path: Path, what: str) -> None:
    path = written(tmp_path, document())
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    (tmp_path / "images/p1.jpg").write_bytes(file_of(noise))
    BROKEN[what](tmp_path / "images/p1.jpg")
    seen: list[tuple[int, int]] = []
    people = open_coco(path, tmp_path / "images", watch=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(people) == 2
    (problem,) = people.problems
    assert problem.name.endswith("p1.jpg")
    assert what in problem.why
    assert "valid is" in problem.why
    assert "1 people in pictures that can't be used" in people.notes[0]
    assert len(decode_jpeg(people[1].jpeg)) == HEIGHT


def test_damage_inside_is_found_by_decoding(tmp_path: Path) -> None:
    path = written(tmp_path, document())
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    file = bytearray(file_of(noise, "PNG"))
    file[200:260] = bytes(60)
    (tmp_path / "images/p1.jpg").write_bytes(file)
    assert len(open_coco(path, tmp_path / "images")) == 3
    people = open_coco(path, tmp_path / "images", thorough=True)
    assert [p.why.split(";")[0] for p in people.problems] == ["it is damaged or cut short"]
    with pytest.raises(FileFormatError, match="can't be decoded"):
        decode_jpeg(file)


def test_a_picture_that_goes_away_later_is_named(tmp_path: Path) -> None:
    people = open_coco(written(tmp_path, document()), tmp_path / "images")
    (tmp_path / "images/p2.jpg").unlink()
    with pytest.raises(FileFormatError, match=r"p2.jpg: there is no such file"):
        _ = people[2]
    assert people.read(2, ["width"]) == {"width": WIDTH}  # which needs no picture


def without(key: str, part: str | None = None) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del (content if part is None else content[part][1])[key]

    return change


def with_value(key: str, value: Any, part: str = "annotations") -> Callable[[dict[str, Any]], None]:
    return lambda content: content[part][-1].update({key: value})


WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (without("images"), r"it has no 'images'; valid is COCO keypoints"),
    (without("annotations"), r"it has no 'annotations'"),
    (without("categories"), r"it has no 'categories'"),
    (without("image_id", "annotations"), r"annotations\[1\] has no 'image_id', it has id, category_id"),
    (without("keypoints", "annotations"), r"annotations\[1\] has no 'keypoints'"),
    (without("bbox", "annotations"), r"annotations\[1\] has no 'bbox'"),
    (without("file_name", "images"), r"images\[1\] has no 'file_name'"),
    (without("id", "images"), r"images\[1\] has no 'id'"),
    (lambda c: c.update(images={}), r"there is no list in 'images'"),
    (lambda c: c["annotations"].append(3), r"annotations\[3\] is '3'; valid is an object"),
    (with_value("image_id", 99), r"'image_id' of annotations\[2\] is 99; valid is the id of one"),
    (with_value("category_id", 5), r"'category_id' of annotations\[2\] is 5; valid is one of 1"),
    (with_value("id", 10, "images"), r"images\[0\] and images\[2\] have the id 10"),
    (with_value("keypoints", [1.0] * 51), r"annotations\[2\] has 51 numbers; valid is 111"),
    (with_value("keypoints", [1.0] * 110 + ["x"]), r"'keypoints' of annotations\[2\] holds"),
    (with_value("keypoints", [1.0] * 110 + [None]), r"'keypoints' of annotations\[2\] holds"),
    (with_value("keypoints", [1.0] * 110 + [7]), r"a visibility in .* is 7; valid is 0, 1 or 2"),
    (with_value("bbox", [1, 2, 3]), r"'bbox' of annotations\[2\] has 3 numbers"),
    (with_value("area", "large"), r"'area' of annotations\[2\] holds"),
    (with_value("file_name", "/etc/passwd", "images"), r"'file_name' of images\[2\] is '/etc/passwd'"),
    (with_value("file_name", "../a.jpg", "images"), r"valid is a path below the pictures' folder"),
    (with_value("camera_matrix", [1], "images"), r"'camera_matrix' of the image 'p2.jpg' is no array"),
    (lambda c: c["categories"][0].update(keypoints=["nose"] * 26), r"the category 'person' has 26 keypoints"),
    (
        lambda c: c["categories"][0].update(keypoints=[*KEYPOINT_NAMES[:36], "tail"]),
        r"has the keypoints tail and lacks neck_03; valid is the 37 of SpineTrack or the 17 of COCO",
    ),
    (
        lambda c: c["categories"][0].update(keypoints=[*KEYPOINT_NAMES[:36], "nose"]),
        r"has the keypoints nose and lacks neck_03",
    ),
    (lambda c: c["categories"][0].pop("keypoints"), r"no category names keypoints"),
    (lambda c: c.update(annotations=[]), r"nobody in it can be used \(it has no annotations\)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_in_a_file_is_told_in_a_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = document()
    change(content)
    path = written(tmp_path, content)
    with pytest.raises(FileFormatError, match=message) as error:
        open_coco(path, tmp_path / "images")
    assert "set.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("{", "it is no JSON"),
        ("[]", "it holds a list"),
        ('{"images": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("\ufeff{}", "it has no 'images'"),
    ],
)
def test_what_is_no_coco_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, {})
    path.write_bytes(text.encode())
    with pytest.raises(FileFormatError, match=message):
        open_coco(path, tmp_path / "images")


def test_a_missing_folder_and_missing_pictures_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, document())
    with pytest.raises(FileFormatError, match="nowhere: this is not a folder"):
        open_coco(path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match=r"nobody in it can be used .*p0.jpg: there is no such file"):
        open_coco(path, tmp_path / "empty")


def test_only_the_first_problems_are_told_at_length(tmp_path: Path) -> None:
    path = written(tmp_path, document())
    for i in (0, 1):
        (tmp_path / f"images/p{i}.jpg").unlink()
    problems = open_coco(path, tmp_path / "images").problems
    assert told_problems(problems, limit=1) == [str(problems[0]), "1 more files are left out"]
    assert told_problems(problems) == [str(p) for p in problems]


def test_crops_of_a_read_set_are_cv2s(tmp_path: Path) -> None:
    """The bytes handed on are the file's, so OpenCV sees the same pixels."""
    path = written(tmp_path, document())
    jpeg = open_coco(path, tmp_path / "images")[0].jpeg
    own = cv2.imread(str(tmp_path / "images/p0.jpg"))
    np.testing.assert_array_equal(decode_jpeg(jpeg), own[..., ::-1])
