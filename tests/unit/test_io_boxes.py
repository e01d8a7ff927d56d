"""Boxes of people in the formats of common detectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.io.boxes import clip_boxes, read_boxes

SIZE = (200, 100)
# Of each frame left, top, width, height and score; frame 1 shows nobody, frame 2 two people.
TRUE: Mapping[int, list[tuple[float, ...]]] = {
    0: [(20.0, 10.0, 40.0, 60.0, 0.9)],
    2: [(30.0, 12.0, 40.0, 60.0, 0.8), (120.0, 5.0, 50.0, 90.0, 0.5)],
}


@dataclass(frozen=True)
class Camera:
    name: str = "cam"
    numbers: Sequence[int] | None = (0, 1, 2)
    stems: Mapping[str, int] = field(default_factory=lambda: {f"img_{n}": n for n in range(3)})


def rows() -> list[tuple[float, ...]]:
    return [(frame, *box) for frame, boxes in TRUE.items() for box in boxes]


def write_results(path: Path, image: Callable[[int], object] = lambda n: n) -> Path:
    entries = [
        {"image_id": image(n), "category_id": 1, "bbox": box, "score": s} for n, *box, s in rows()
    ]  # fmt: skip
    entries.append({"image_id": image(1), "category_id": 3, "bbox": [0, 0, 50, 50], "score": 1.0})  # a car
    path.write_text(json.dumps(entries))
    return path


def write_annotations(path: Path) -> Path:
    document = {
        "images": [{"id": 70 + n, "file_name": f"some/img_{n}.jpg"} for n in range(3)],
        "annotations": [{"image_id": 70 + n, "category_id": 1, "bbox": box} for n, *box, _ in rows()],
    }
    path.write_text(json.dumps(document))
    return path


def write_table(path: Path, lines: Sequence[Sequence[object]], sign: str = ",", header: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "".join(sign.join(map(str, line)) + "\n" for line in lines))
    return path


def write_yolo(folder: Path, name: Callable[[int], str] = lambda n: f"img_{n}", score: bool = True) -> Path:
    folder.mkdir()
    lines: dict[int, str] = {0: "", 1: "", 2: ""}
    for n, x, y, w, h, s in rows():
        shares = ((x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1], w / SIZE[0], h / SIZE[1])
        lines[int(n)] += " ".join(map(str, (0, *shares, *((s,) if score else ())))) + "\n"
    lines[1] += "2 0.5 0.5 0.2 0.2 0.9\n"  # a car
    for n, text in lines.items():
        (folder / f"{name(n)}.txt").write_text(text)
    return folder


def check(path: Path, scores: bool = True, camera: Camera | None = None) -> None:
    boxes = read_boxes(path, [camera or Camera()], note=pytest.fail)["cam"]
    for frame in range(3):
        expected = np.array(TRUE.get(frame, np.zeros((0, 5))), float)
        if not scores:
            expected[:, 4] = 1.0
        np.testing.assert_allclose(boxes.of(frame, SIZE), expected, atol=1e-9)


def test_coco(tmp_path: Path) -> None:
    check(write_results(tmp_path / "a.json"))
    check(write_results(tmp_path / "b.json", lambda n: f"img_{n}.jpg"))
    check(write_results(tmp_path / "c.json", lambda n: f"00000{n}"))
    check(write_annotations(tmp_path / "d.json"), scores=False)
    # The only category of a detector that counts from 0.
    path = write_results(tmp_path / "e.json")
    entries = [e | {"category_id": 0} for e in json.loads(path.read_text()) if e["category_id"] == 1]
    path.write_text(json.dumps(entries))
    check(path)


def test_tables(tmp_path: Path) -> None:
    for sign in (",", ";", "\t", " ", ", "):
        check(write_table(tmp_path / "a.txt", rows(), sign))
    check(write_table(tmp_path / "b.csv", [row[:5] for row in rows()]), scores=False)
    check(write_table(tmp_path / "c.csv", rows(), header="Frame,x,y,width,height,confidence\n"))
    turned = [(s, x + w, y + h, x, y, f"img_{n}.png") for n, x, y, w, h, s in rows()]
    check(write_table(tmp_path / "d.csv", turned, header="score,x2,y2,x1,y1,image\n"))
    check(write_table(tmp_path / "e.csv", [(f"img_{r[0]}.png", *r[1:]) for r in rows()]))
    check(write_table(tmp_path / "f.csv", [(f"{r[0]}.0", *r[1:]) for r in rows()]))


def test_mot_counts_from_one(tmp_path: Path) -> None:
    lines = [(n + 1, 5, *box, s, -1, -1, -1) for n, *box, s in rows()]
    check(write_table(tmp_path / "det.txt", lines))
    check(write_table(tmp_path / "seven.txt", [line[:7] for line in lines], " "))
    check(write_table(tmp_path / "gt.txt", [(*line[:6], -1, 1, 1.0) for line in lines]), scores=False)
    # The first frame of pictures that begin with another number.
    later = Camera(numbers=(4, 5, 6), stems={})
    found = read_boxes(tmp_path / "det.txt", [later])["cam"]
    assert set(found.rows) == {4, 6}


def test_yolo(tmp_path: Path) -> None:
    check(write_yolo(tmp_path / "a"))
    check(write_yolo(tmp_path / "b", score=False), scores=False)
    # Of a video the files are numbered from 1.
    video = Camera(numbers=None, stems={})
    check(write_yolo(tmp_path / "c", lambda n: f"walk_{n + 1}"), camera=video)
    one = Camera(numbers=(0,), stems={"img_0": 0})
    found = read_boxes(tmp_path / "a" / "img_0.txt", [one])["cam"]
    np.testing.assert_allclose(found.of(0, SIZE), TRUE[0], atol=1e-9)


def test_several_cameras(tmp_path: Path) -> None:
    cameras = [Camera("cam"), Camera("other")]
    folder = tmp_path / "boxes"
    write_table(folder / "cam.csv", rows())
    write_yolo(folder / "other")
    found = read_boxes(folder, cameras)
    for name in ("cam", "other"):
        np.testing.assert_allclose(found[name].of(2, SIZE), TRUE[2], atol=1e-9)
    (folder / "cam.csv").unlink()
    assert not len(read_boxes(folder, cameras)["cam"].of(2, SIZE))
    table = [("other", *row) for row in rows()]
    path = write_table(tmp_path / "all.csv", table, header="camera,frame,x,y,w,h,score\n")
    assert set(read_boxes(path, cameras)["other"].rows) == {0, 2}
    path = write_results(tmp_path / "all.json", lambda n: f"train/other/img_{n}.jpg")
    assert set(read_boxes(path, cameras)["other"].rows) == {0, 2}
    path = write_results(tmp_path / "which.json")
    with pytest.raises(FileFormatError, match="which of the 2 cameras"):
        read_boxes(path, cameras)
    path = write_table(tmp_path / "wrong.csv", [("third", *rows()[0])], header="camera,frame,x,y,w,h,score\n")
    with pytest.raises(UnknownNameError, match="'third'"):
        read_boxes(path, cameras)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "JSON is broken"),
        ("a.json", '{"a": 1}', "no list of boxes"),
        ("a.json", "[3]", "no list of boxes"),
        ("a.json", "[]", "no boxes of people"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3]}]', "box 0 has the bbox"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, NaN]}]', "box 0 has the bbox"),
        ("a.json", '[{"image_id": 1, "category_id": 1}]', "box 0 has the bbox"),
        ("a.json", '[{"bbox": [1, 2, 3, 4]}]', "box 0 has the image"),
        ("a.csv", "", "empty"),
        ("a.csv", "frame,x,y\n1,2,3\n", "no column w or h"),
        ("a.csv", "1,2,3\n", "a.csv:1: there is no w"),
        ("a.csv", "1,2,3,4,5\n2,2,3,x,5\n", "a.csv:2: w is 'x'"),
        ("a.csv", "1,2,3,4,inf\n", "h is 'inf'"),
        ("a.csv", "1.5,2,3,4,5\n", "frame is '1.5'"),
        ("a.csv", "-1,2,3,4,5\n", "frame is '-1'"),
        ("a.txt", "0,1,2,3,4,5,1,-1,-1,-1\n", "frame is '0'"),
        ("a.txt", "0 0.5 0.5 0.2 0.3\n", "shares of one picture"),
        ("a/img_0.txt", "0 0.5 0.5 0.2\n", "the line is"),
        ("a/img_0.txt", "0 50 50 20 30\n", "the line is"),
        ("a/whatever.txt", "0 0.5 0.5 0.2 0.3\n", "1 boxes of pictures that cam does not have"),
        ("a.json", '[{"image_id": "x_1.jpg", "bbox": [1, 2, 3, 4]}]', "cam does not have .first: 'x_1.jpg'."),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1}]', "no boxes of people"),
        ("a/img_0.jpg", "", "no .txt"),
    ],
)
def test_what_is_no_file_of_boxes_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(SimspineError, match=words) as caught:
        read_boxes(path if path.parent == tmp_path else path.parent, [Camera()])
    assert "valid" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["coco", "table", "yolo"])
def test_boxes_of_absent_pictures_are_told_and_go_to_no_frame(tmp_path: Path, kind: str) -> None:
    # Two names end in numbers of frames that the camera has.
    absent = ["other_1", "img_00002", "img_7"]
    if kind == "coco":
        path = write_results(tmp_path / "a.json", lambda n: f"img_{n}.jpg")
        entries = [{"image_id": f"{stem}.jpg", "category_id": 1, "bbox": [1, 2, 3, 4]} for stem in absent]
        path.write_text(json.dumps(entries + json.loads(path.read_text())))
    elif kind == "table":
        lines = [(f"{stem}.png", 1, 2, 3, 4) for stem in absent]
        path = write_table(tmp_path / "a.csv", [*lines, *((f"img_{r[0]}.png", *r[1:]) for r in rows())])
    else:
        path = write_yolo(tmp_path / "a")
        for stem in absent:
            (path / f"{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    notes: list[str] = []
    found = read_boxes(path, [Camera()], note=notes.append)["cam"]
    assert {n: len(r) for n, r in found.rows.items()} == {0: 1, 2: 2}
    (note,) = notes
    assert f"{path}: 3 boxes of pictures that cam does not have" in note
    first = "img_00002" if kind == "yolo" else "other_1"  # by name, and as they come
    assert f"(first: '{first}." in note
    assert "such as img_0" in note
    # Frames without names go by the number.
    video = Camera(numbers=range(9), stems={})
    if kind != "yolo":
        found = read_boxes(path, [video], note=pytest.fail)["cam"]
        assert {n: len(r) for n, r in found.rows.items()} == {0: 1, 1: 1, 2: 3, 7: 1}


def test_names_may_hold_dots(tmp_path: Path) -> None:
    camera = Camera(numbers=(0, 1), stems={"S1.cam.000": 0, "S1.cam.001": 1})
    for name in ("S1.cam.001", "S1.cam.001.jpg", "folder/S1.cam.001.png"):
        path = write_table(tmp_path / "a.csv", [(name, 1, 2, 3, 4)])
        assert set(read_boxes(path, [camera], note=pytest.fail)["cam"].rows) == {1}


def test_boxes_of_frames_that_there_are_not_are_counted_in_one_note(tmp_path: Path) -> None:
    def told(lines: Sequence[tuple[float, ...]], camera: Camera, name: str = "a.csv") -> str:
        notes: list[str] = []
        read_boxes(write_table(tmp_path / name, lines), [camera], note=notes.append)
        return notes[0] if len(notes) == 1 else str(notes)

    box, video = (1, 2, 3, 4), Camera(numbers=range(300), stems={})
    note = told([(5, *box), (300, *box), (300, *box), (412, *box)], video)
    assert note == (
        f"3 boxes of {tmp_path / 'a.csv'} are of frames that cam does not have and are left out (first: 300; "
        "it has 300 frames, 0 to 299)"
    )
    hint = "; perhaps the file counts frames from 1, and valid is from 0"
    assert told([(n, *box) for n in range(1, 301)], video).endswith(f"0 to 299){hint}")
    assert hint not in told([(n, *box) for n in range(301)], video)
    assert hint not in told([(n, *box) for n in range(1, 302)], video)
    assert told([(n, *box) for n in range(300)], video) == "[]"
    assert told([(900, *box)], Camera(numbers=None, stems={})) == "[]"  # nobody knows how many it has
    # MOT counts from 1 anyway; what is beyond the last is no other frame's, wherever their numbers begin.
    mot = [(n, 1, *box, 1) for n in range(2, 302)]
    assert "1 boxes of" in told(mot, video, "det.txt")
    assert hint not in told(mot, video, "det.txt")
    later = Camera(numbers=(4, 5, 6), stems={})
    assert "(first: 8; it has 3 frames, 4 to 6)" in told([(1, 1, *box, 1), (5, 1, *box, 1)], later, "det.txt")


def test_crowds_are_no_people(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "a.json")
    document = json.loads(path.read_text())
    for entry in document["annotations"]:
        entry["iscrowd"] = 0
    crowd = {"image_id": 71, "category_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1}
    document["annotations"] += [crowd, crowd]
    path.write_text(json.dumps(document))
    notes: list[str] = []
    found = read_boxes(path, [Camera()], note=notes.append)["cam"]
    assert {n: len(r) for n, r in found.rows.items()} == {0: 1, 2: 2}
    assert notes == [f"2 crowds (iscrowd) of {path} are left out; valid are single people"]


def test_boxes_are_cut_off_at_the_edges() -> None:
    boxes = np.array([
        [10, 10, 20, 30, 0.7], [-20, -5, 40, 40, 1], [190, 90, 50, 50, 1],
        [250, 10, 20, 20, 1], [-60, 10, 20, 20, 1], [10, 10, 0, 20, 1], [30, 30, -20, -20, 1],
    ], float)  # fmt: skip
    clipped, inside = clip_boxes(boxes, SIZE)
    assert inside.tolist() == [True, True, True, False, False, False, False]
    np.testing.assert_array_equal(
        clipped[:3], [[10, 10, 20, 30, 0.7], [-0.5, -0.5, 20.5, 35.5, 1], [190, 90, 9.5, 9.5, 1]]
    )


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"image_id": [1], "category_id": 1, "bbox": [1, 2, 3, 4]}]', "box 0 has the image"),
        ("a.json", '{"images": [{"id": [1]}], "annotations": []}', "it holds no boxes of people"),
        ("a.json", f'[{{"image_id": 1, "bbox": [1{"0" * 400}, 2, 3, 4]}}]', "box 0 has the bbox"),
        ("a.csv", "x,y,w,h,frame\n1,2,3,4\n", "a.csv:2: there is no frame"),
        ("a.json", '[{"image_id": 397133, "category_id": 1, "bbox": [1, 2, 3, 4]}]', "no camera has.*397133"),
    ],
)
def test_odd_boxes_are_refused_in_a_sentence(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FileFormatError, match=says):
        read_boxes(tmp_path / name, [Camera(numbers=(0, 1), stems={})], note=pytest.fail)


def test_keypoints_of_yolo_are_not_taken_for_scores(tmp_path: Path) -> None:
    (tmp_path / "img_1.txt").write_text("0 0.5 0.5 0.2 0.4 " + "0.1 0.2 2 " * 17)
    with pytest.raises(FileFormatError, match="no keypoints"):
        read_boxes(tmp_path, [Camera(numbers=(0, 1), stems={})], note=pytest.fail)


def test_a_table_may_quote_its_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"frame","x","y","w","h"\n"img_00.png",1,2,3,4\n')
    camera = Camera(numbers=(0,), stems={"img_00": 0, "img_00.png": 0})
    assert set(read_boxes(tmp_path / "a.csv", [camera], note=pytest.fail)["cam"].rows) == {0}
    # As R's write.csv writes it, with numbers of its rows; names may hold the sign.
    (tmp_path / "r.csv").write_text(
        '"","frame","x","y","w","h"\n"1","a,1.png",1,2,3,4\n"2","b.png",1,2,3,4\n'
    )
    camera = Camera(numbers=(0, 1), stems={"a,1": 0, "b": 1})
    assert set(read_boxes(tmp_path / "r.csv", [camera], note=pytest.fail)["cam"].rows) == {0, 1}


def test_the_only_category_is_taken_as_people_and_told_unless_the_file_names_them(tmp_path: Path) -> None:
    path, notes = tmp_path / "a.json", []
    box = {"image_id": 0, "bbox": [1, 2, 3, 4]}
    path.write_text(json.dumps([{**box, "category_id": 18}]))
    assert set(read_boxes(path, [Camera(numbers=(0,), stems={})], note=notes.append)["cam"].rows) == {0}
    assert "its only category, 18, is taken as people; COCO's is 1, called 'person'" in notes.pop()
    fish = {"categories": [{"id": 1, "name": "fish"}], "annotations": [{**box, "category_id": 1}]}
    path.write_text(json.dumps(fish))
    assert set(read_boxes(path, [Camera(numbers=(0,), stems={})], note=notes.append)["cam"].rows) == {0}
    assert "its only category, 1, called 'fish', is taken as people" in notes.pop()
    named = {"categories": [{"id": 7, "name": "person"}], "annotations": [{**box, "category_id": 18}]}
    path.write_text(json.dumps(named))
    with pytest.raises(FileFormatError, match="no boxes of people"):
        read_boxes(path, [Camera(numbers=(0,), stems={})], note=pytest.fail)
