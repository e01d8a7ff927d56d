"""Boxes of people, as common detectors and trackers write them.

==========  ==================================================================================
COCO        a JSON list of results (``image_id``, ``bbox``, ``score``), or annotations with images
table       ``.csv`` or ``.txt``: frame, x, y, w, h and, if known, score; with a header in any
            order and also with ``camera``, ``image``, ``x2``, ``y2``
MOT         ``.txt`` of 7 to 10 columns: frame from 1, id, x, y, w, h, score, …
YOLO        a folder with a ``.txt`` a picture: class, centre, width and height as shares of the
            picture, and, if known, score; class 0 are people
==========  ==================================================================================

Of several cameras a folder has a file for each, or a YOLO folder for each, by their names; COCO files whose
pictures lie in a folder for each camera, and tables with a column ``camera``, hold them all.

Boxes that can't be used are left out, counted and told: those of pictures with names that no picture of the
camera has, those of frames that it doesn't have, and COCO's crowds.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import UnknownNameError, one_line
from simspine_jax.io.files import filled_lines, malformed, place, read_text, shown

PERSON, PERSON_NAME = 1, "person"
"""COCO's category."""

YOLO_CELLS = 7
YOLO_PERSON = 0
"""The class that is a person where YOLO's were trained on COCO."""

FILE_SUFFIXES = (".json", ".csv", ".txt")
"""Of files with boxes."""

_COLUMNS = {
    "frame": ("frame", "frame_id", "frame_number", "frameid", "image", "image_id", "file_name", "filename"),
    "x": ("x", "x1", "xmin", "left", "bb_left"),
    "y": ("y", "y1", "ymin", "top", "bb_top"),
    "w": ("w", "width", "bb_width"),
    "h": ("h", "height", "bb_height"),
    "x2": ("x2", "xmax", "right"),
    "y2": ("y2", "ymax", "bottom"),
    "score": ("score", "conf", "confidence"),
    "camera": ("camera", "cam", "view", "camera_name"),
}
_PLAIN = ("frame", "x", "y", "w", "h", "score")
_MOT = ("frame", "id", "x", "y", "w", "h", "score")
_LAST_NUMBER = re.compile(r"([0-9]{1,12})$")
_TABLE = "frame, x, y, w, h and score in columns, MOT's columns, or a header that names them"

Row = tuple[float, float, float, float, float]
"""Left, top, width, height and score."""

Note = Callable[[str], None]


class BoxCamera(Protocol):
    """What is asked of a camera: its name, the numbers of its frames, and those of named pictures."""

    @property
    def name(self) -> str:
        """Of the camera."""
        ...

    @property
    def numbers(self) -> Sequence[int] | None:
        """Of its frames; None where they are not known, and then they count from 0."""
        ...

    @property
    def stems(self) -> Mapping[str, int]:
        """The frames of its pictures by their names without ending."""
        ...


@dataclass(frozen=True, eq=False)
class CameraBoxes:
    """Boxes of one camera.

    Attributes:
        rows: by number of the frame: float64 [P 5] left, top, width, height and score.
        relative: whether they are shares of the picture's width and height and not px.
    """

    rows: Mapping[int, NDArray[np.float64]]
    relative: bool = False

    def of(self, frame: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """Boxes of a frame in px, [P 5]; the picture has this width and height."""
        rows = self.rows.get(frame, np.zeros((0, 5)))
        return rows * [*size, *size, 1] if self.relative else rows


def clip_boxes(
    boxes: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes cut off at the picture's edges, and which of them have a part inside.

    Args:
        boxes: [P 4] or more columns: left, top, width and height, px; the first pixel's corner is -0.5.
        size: width and height of the picture, px.
    """
    low = boxes[:, :2]
    high = low + boxes[:, 2:4]
    edge = np.array(size) - 0.5
    cut_low, cut_high = np.clip(low, -0.5, edge), np.clip(high, -0.5, edge)
    extent = cut_high - cut_low
    clipped = boxes.copy()
    clipped[:, :2], clipped[:, 2:4] = cut_low, extent
    return clipped, np.all((extent > 0) & (boxes[:, 2:4] > 0), axis=1)


class _Found:
    """Rows as they are read, by camera and frame, and what is left out.

    Args:
        path: of the file or folder.
        cameras: whose boxes it holds.
        from_one: whether its frames count from 1.
    """

    def __init__(self, path: Path, cameras: Sequence[BoxCamera], *, from_one: bool = False):
        self.path, self.from_one = path, from_one
        self.cameras = {camera.name: camera for camera in cameras}
        self.rows: dict[str, dict[int, list[Row]]] = {name: {} for name in self.cameras}
        self.unknown: dict[str, list[str]] = {name: [] for name in self.cameras}
        self.crowds = 0

    def camera(self, name: str | None) -> BoxCamera:
        """The one that is named, or the only one.

        Raises:
            UnknownNameError: there is no such camera.
            FileFormatError: none is named and there are several.
        """
        if name is None:
            if len(self.cameras) > 1:
                what = f"it doesn't say which of the {len(self.cameras)} cameras a box is of"
                raise malformed(self.path, None, what, "a folder with a file for each camera, named like it")
            return next(iter(self.cameras.values()))
        if name not in self.cameras:
            raise UnknownNameError("Camera", name, f"what {self.path} has boxes for", self.cameras)
        return self.cameras[name]

    def add(self, camera: BoxCamera, frame: int | None, text: str, row: Row) -> None:
        """Takes a box; without a frame, ``text`` is a name that no picture of the camera has."""
        if frame is None:
            self.unknown[camera.name].append(text)
        else:
            self.rows[camera.name].setdefault(frame, []).append(row)

    def boxes(self, note: Note, relative: bool = False) -> dict[str, CameraBoxes]:
        """What is used; what is not is told."""
        if self.crowds:
            note(
                f"{self.crowds} crowds (iscrowd) of {place(self.path)} are left out; valid are single people"
            )
        names = [name for name in self.cameras if self.unknown[name]]
        if not any(self.rows.values()):
            if names:
                raise malformed(self.path, None, self._unknown(names[0]), self._named(names[0]))
            raise malformed(self.path, None, "it holds no boxes of people", "one box or more")
        for name in names:
            what = self._unknown(name).removeprefix("it has ")
            note(f"{place(self.path)}: {what} are left out; valid is {self._named(name)}")
        if not any(self._has(name) for name in self.cameras):
            frames = sorted({n for rows in self.rows.values() for n in rows})
            first, camera = frames[0], next(iter(self.cameras.values()))
            what = f"all of its boxes are of frames that no camera has (first: {first})"
            raise malformed(self.path, None, what, f"frames such as {sorted(camera.numbers or ())[0]}")
        found: dict[str, CameraBoxes] = {}
        for name, frames in self.rows.items():
            self._tell_other_frames(self.cameras[name], frames, note)
            found[name] = CameraBoxes({n: np.array(rows, float) for n, rows in frames.items()}, relative)
        return found

    def _has(self, name: str) -> bool:
        """Whether a box is of a frame that the camera has, or may have."""
        known = self.cameras[name].numbers
        return any(not known or n in known for n in self.rows[name])

    def _unknown(self, name: str) -> str:
        texts = self.unknown[name]
        return f"it has {len(texts)} boxes of pictures that {name} does not have (first: {shown(texts[0])})"

    def _named(self, name: str) -> str:
        return f"the name of one of its pictures, such as {next(iter(self.cameras[name].stems))}"

    def _tell_other_frames(self, camera: BoxCamera, frames: Mapping[int, list[Row]], note: Note) -> None:
        """Notes boxes of frames that the camera doesn't have; they are never looked for."""
        known = set(camera.numbers or ())
        other = sorted(n for n in frames if n not in known)
        if not known or not other:
            return
        first, last = min(known), max(known)
        text = (
            f"{sum(len(frames[n]) for n in other)} boxes of {place(self.path)} are of frames that "
            f"{camera.name} does not have and are left out (first: {other[0]}; it has {len(known)} frames, "
            f"{first} to {last})"
        )
        if first == 0 and 0 not in frames and other == [last + 1] and not self.from_one:
            text += "; perhaps the file counts frames from 1, and valid is from 0"
        note(text)


def read_boxes(path: Path, cameras: Sequence[BoxCamera], *, note: Note = print) -> dict[str, CameraBoxes]:
    """Boxes of people for each camera; those without any have none.

    Frames go by number, or by name where a file names pictures; a name's last number counts only for cameras
    whose frames have no names. MOT's and YOLO's numbers count from 1, in the order of the camera's frames.

    Args:
        path: a file or folder, see above.
        cameras: whose frames the boxes are of; at least one.
        note: told of boxes that are left out, each kind in a sentence.

    Raises:
        FileFormatError: it is nothing of the kind, or holds no boxes, or none of pictures that there are.
        UnknownNameError: it has boxes of a camera that isn't there.
    """
    if not path.is_dir():
        return _read_file(path, cameras, note)
    found: dict[str, CameraBoxes] = {}
    for camera in cameras:
        inner = path / camera.name
        files = [path / f"{camera.name}{suffix}" for suffix in FILE_SUFFIXES]
        files = [file for file in files if file.is_file()]
        if inner.is_dir():
            found |= _read_yolo(inner, camera, note)
        elif len(files) == 1:
            found |= _read_file(files[0], [camera], note)
        elif len(files) > 1:
            raise malformed(path, None, f"it has {len(files)} files of {camera.name}", "one a camera")
        elif len(cameras) == 1:
            found |= _read_yolo(path, camera, note)
    if not found:
        names = ", ".join(camera.name for camera in cameras)
        valid = "a file or folder for each, named like the camera"
        raise malformed(path, None, f"it holds boxes of none of the cameras {names}", valid)
    return {camera.name: found.get(camera.name, CameraBoxes({})) for camera in cameras}


def _read_file(path: Path, cameras: Sequence[BoxCamera], note: Note) -> dict[str, CameraBoxes]:
    if path.suffix.lower() == ".json":
        return _read_coco(path, cameras, note)
    return _read_table(path, cameras, note)


def _frame_of(path: Path, line: int | None, camera: BoxCamera, text: str) -> int | None:
    """The frame that a text means: a picture's name or a number, or a name that ends in one.

    The latter is for frames without names alone: None is a name that no picture of the camera has.
    """
    name = Path(text.replace("\\", "/")).name
    stem = text if text.isdigit() else Path(name).stem
    for known in (name, stem):  # with and without ending
        if known in camera.stems:
            return camera.stems[known]
    if camera.stems and not text.isdigit():
        return None
    match = _LAST_NUMBER.search(stem)
    if match is None:
        raise malformed(path, line, f"the frame is {shown(text)}", "a number or the name of a picture")
    return int(match.group(1))


def _nth(camera: BoxCamera, nth: int) -> int:
    """The number of a frame that is the n-th of its camera, from 1; beyond the last one they go on."""
    numbers = camera.numbers
    if not numbers:
        return nth - 1
    # Beyond the last one no number is another frame's.
    return numbers[nth - 1] if nth <= len(numbers) else numbers[-1] + nth - len(numbers)


# --- COCO ---


def _read_coco(path: Path, cameras: Sequence[BoxCamera], note: Note) -> dict[str, CameraBoxes]:
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise malformed(
            path, None, f"the JSON is broken ({one_line(str(error))})", "a JSON document"
        ) from None
    found = _Found(path, cameras)
    entries, images = _coco_parts(path, document)
    people = _people_of(path, document, entries, note)
    for number, entry in enumerate(entries):
        if entry.get("category_id", people) != people:
            continue
        if entry.get("iscrowd"):
            found.crowds += 1
            continue
        image = _image_of(entry, images)
        name, text = _camera_and_frame(found, path, number, image)
        camera = found.camera(name)
        found.add(camera, _frame_of(path, None, camera, text), text, _coco_row(path, number, entry))
    return found.boxes(note)


def _coco_parts(path: Path, document: Any) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """People or boxes, and the names of pictures by their ids."""
    images: dict[Any, Any] = {}
    entries = document
    if isinstance(document, dict):
        entries, pictures = document.get("annotations"), document.get("images", [])
        if isinstance(pictures, list):
            known = (p for p in pictures if isinstance(p, dict) and isinstance(p.get("id"), int | str))
            images = {p["id"]: p.get("file_name") for p in known}
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        valid = "COCO's list of results, or annotations with images"
        raise malformed(path, None, "it is no list of boxes", valid)
    return entries, images


def _people_of(path: Path, document: Any, entries: Sequence[Mapping[str, Any]], note: Note) -> Any:
    """The category that the file calls person, else the only one, which is told, else COCO's."""
    listed = document.get("categories") if isinstance(document, dict) else None
    categories = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
    for category in categories:
        if category.get("name") == PERSON_NAME:
            return category.get("id")
    kinds = {entry["category_id"] for entry in entries if isinstance(entry.get("category_id"), int)}
    if len(kinds) != 1:
        return PERSON
    (only,) = kinds
    names = [
        str(category["name"]) for category in categories if category.get("id") == only and "name" in category
    ]
    if names or only not in (YOLO_PERSON, PERSON):
        called = f"{only}, called {shown(names[0])}," if names else f"{only},"
        note(
            f"{place(path)}: its only category, {called} is taken as people; COCO's is {PERSON}, called "
            f"'{PERSON_NAME}'"
        )
    return only


def _image_of(entry: Mapping[str, Any], images: Mapping[Any, Any]) -> Any:
    """A picture's name, or its id where it has none."""
    number = entry.get("image_id")
    if isinstance(number, int | str) and images.get(number) is not None:
        return images[number]
    return entry.get("file_name", number)


def _camera_and_frame(found: _Found, path: Path, number: int, image: Any) -> tuple[str | None, str]:
    if isinstance(image, bool) or not isinstance(image, int | str):
        raise malformed(path, None, f"box {number} has the image {shown(str(image))}", "an id or file name")
    folder = Path(str(image)).parent.name
    known = len(found.cameras) > 1 and folder in found.cameras
    return (folder if known else None), str(image)


def _coco_row(path: Path, number: int, entry: Mapping[str, Any]) -> Row:
    try:
        left, top, width, height = map(float, entry["bbox"])
        row = (left, top, width, height, float(entry.get("score", 1.0)))
    except (KeyError, TypeError, ValueError, OverflowError):
        row = (math.nan, math.nan, math.nan, math.nan, math.nan)
    if not all(map(math.isfinite, row)):
        bbox = shown(str(entry.get("bbox")))
        raise malformed(path, None, f"box {number} has the bbox {bbox}", "left, top, width and height, px")
    return row


# --- tables ---


def _read_table(path: Path, cameras: Sequence[BoxCamera], note: Note) -> dict[str, CameraBoxes]:
    lines = filled_lines(read_text(path))
    first = _cells(lines[0][1])
    header = _header(path, lines[0][0], first) if not _is_number(first[0]) else None
    if header is None and len(first) in (5, 6) and _all_shares(lines):
        return _one_of_yolo(path, cameras, lines, note)
    columns = header or (_MOT if len(first) > len(_PLAIN) else _PLAIN)
    counts_from_one = header is None and len(first) > len(_PLAIN)
    found = _Found(path, cameras, from_one=counts_from_one)
    for line, text in lines[header is not None :]:
        cells = dict(zip(columns, _cells(text), strict=False))
        if not cells.get("frame"):
            raise malformed(path, line, "there is no frame", _TABLE)
        camera = found.camera(cells.get("camera"))
        row = _table_row(path, line, cells)
        if counts_from_one:
            frame = _nth(camera, _whole(path, line, cells["frame"]))
        else:
            frame = _frame_of(path, line, camera, _frame_text(path, line, cells["frame"]))
        found.add(camera, frame, cells["frame"], row)
    return found.boxes(note)


def _cells(text: str) -> list[str]:
    """A line's cells; those in quotes, as R writes names, may hold the sign between them."""
    sign = next((sign for sign in (",", ";", "\t") if sign in text), None)
    if sign is None:
        return [cell.strip('"') for cell in text.split()]
    try:
        (cells,) = csv.reader([text], delimiter=sign, skipinitialspace=True)
    except csv.Error:  # a cell of more than csv's limit
        cells = text.split(sign)
    return [cell.strip() for cell in cells]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _frame_text(path: Path, line: int, text: str) -> str:
    """``12.0``, as spreadsheets write it, is 12."""
    if not _is_number(text):
        return text
    if float(text) < 0 or float(text) != int(float(text)):
        raise malformed(path, line, f"the frame is {shown(text)}", "a whole number from 0")
    return str(int(float(text)))


def _whole(path: Path, line: int, text: str) -> int:
    number = float(text) if _is_number(text) else math.nan
    if not number >= 1 or number != int(number):
        raise malformed(path, line, f"the frame is {shown(text)}", "a whole number from 1, as MOT has them")
    return int(number)


def _header(path: Path, line: int, cells: Sequence[str]) -> tuple[str, ...] | None:
    """What the columns hold; None where there is no header but a picture's name first."""
    known = {alias: name for name, aliases in _COLUMNS.items() for alias in aliases}
    words = [cell.strip("\"' #").lower().replace(" ", "_") for cell in cells]
    if len(cells) > 1 and _is_number(cells[1]):
        return None
    names = tuple(known.get(word, word) for word in words)
    missing = [n for n in ("frame", "x", "y") if n not in names]
    missing += [n for n, other in (("w", "x2"), ("h", "y2")) if n not in names and other not in names]
    if missing:
        raise malformed(path, line, f"the header has no column {' or '.join(missing)}", _TABLE)
    return names


def _table_row(path: Path, line: int, cells: Mapping[str, str]) -> Row:
    def number(name: str) -> float:
        text = cells.get(name, "").strip('"')
        if not _is_number(text):
            what = f"{name} is {shown(text)}" if text else f"there is no {name}"
            raise malformed(path, line, what, _TABLE)
        return float(text)

    left, top = number("x"), number("y")
    width = number("x2") - left if "x2" in cells else number("w")
    height = number("y2") - top if "y2" in cells else number("h")
    score = number("score") if cells.get("score") else 1.0
    # MOT's truth and some trackers write -1 where they have no score.
    return left, top, width, height, (1.0 if score == -1 else score)


def _all_shares(lines: Iterable[tuple[int, str]]) -> bool:
    """Whether all numbers after the first of a line are from 0 to 1, as YOLO's are and px are not."""
    return all(
        all(_is_number(cell) and 0 <= float(cell) <= 1 for cell in _cells(text)[1:5]) for _, text in lines
    )


# --- YOLO ---


def _one_of_yolo(
    path: Path, cameras: Sequence[BoxCamera], lines: list[tuple[int, str]], note: Note
) -> dict[str, CameraBoxes]:
    numbers = cameras[0].numbers
    if len(cameras) > 1 or numbers is None or len(numbers) != 1:
        what = "its numbers are shares of one picture, as YOLO writes them"
        raise malformed(path, None, what, "px, or the folder of YOLO's files")
    found = _Found(path, cameras)
    for row in _yolo_rows(path, lines):
        found.add(cameras[0], numbers[0], path.stem, row)
    return found.boxes(note, relative=True)


def _read_yolo(folder: Path, camera: BoxCamera, note: Note) -> dict[str, CameraBoxes]:
    """A folder with a file a picture; pictures without a person have an empty one or none."""
    files = sorted(path for path in folder.glob("*.txt") if path.name != "classes.txt")
    if not files:
        raise malformed(folder, None, "it holds no .txt files", "YOLO's, one for each picture")
    found = _Found(folder, [camera], from_one=True)
    for path in files:
        frame = _yolo_frame(path, camera)
        if path.stat().st_size:
            for row in _yolo_rows(path, filled_lines(read_text(path))):
                found.add(camera, frame, path.name, row)
    return found.boxes(note, relative=True)


def _yolo_frame(path: Path, camera: BoxCamera) -> int | None:
    """The frame that a file is of; None where it is called like no picture of the camera."""
    if camera.stems:
        return camera.stems.get(path.stem)
    match = _LAST_NUMBER.search(path.stem)
    if match is None or not int(match.group(1)):
        raise malformed(path, None, "its name ends in no number from 1", "the place of its frame, from 1")
    return _nth(camera, int(match.group(1)))


def _yolo_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for line, text in lines:
        cells = text.split()
        # The seventh is a track's number; more are keypoints, whose first would be taken for the score.
        if not 5 <= len(cells) <= YOLO_CELLS or not all(map(_is_number, cells)):
            _refuse_yolo(path, line, text)
        kind, x, y, width, height, *rest = map(float, cells)
        if not all(-0.5 <= value <= 1.5 for value in (x, y, width, height)):
            _refuse_yolo(path, line, text)
        if kind == YOLO_PERSON:
            yield x - width / 2, y - height / 2, width, height, (rest[0] if rest else 1.0)


def _refuse_yolo(path: Path, line: int, text: str) -> NoReturn:
    valid = "class, centre x and y, width and height as shares of the picture, score, and no keypoints"
    raise malformed(path, line, f"the line is {shown(text)}", valid)
