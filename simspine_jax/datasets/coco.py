"""COCO's keypoint JSON beside a folder of pictures, as records: SpineTrack, COCO, or any set of one's own.

Keypoints are taken by the names that the category gives them: the 37 of `skeleton.KEYPOINT_NAMES` in any
order, or COCO's 17, which are the first 17 of them, with the others not known. Coordinates are taken as they
are, so the middle of a picture's first pixel is (0, 0), and belong to the picture as EXIF turns it. So is
visibility: a keypoint that is labelled outside of the picture is labelled, and counts in OKS as in COCO's own
evaluation.

Source: the COCO data format, cocodataset.org; what `picture_export` writes beyond it is read as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from simspine_jax.datasets.picture_files import PictureFiles, Problem, Watcher, picture_sizes
from simspine_jax.errors import FileFormatError, listed, one_line
from simspine_jax.io.files import PathLike, malformed, place, read_bytes, shown
from simspine_jax.skeleton import COCO_17, KEYPOINT_NAMES

UNKNOWN = "unknown"
"""Subject, action and camera of pictures that don't tell them."""

_K, _COCO_K = len(KEYPOINT_NAMES), len(COCO_17.markers)
_VALID_KEYPOINTS = f"the {_K} of SpineTrack or the {_COCO_K} of COCO, by name"


def open_coco(
    path: PathLike, images: PathLike, *, thorough: bool = False, watch: Watcher | None = None
) -> PictureFiles:
    """The people of a COCO file; pictures are read when they are asked for.

    Left out, and told in ``notes``, are crowds, people without a labelled keypoint, and boxes that show
    nothing of the picture. Pictures that are missing, empty, damaged or of another size than the file says
    are left out with their people, and told in ``problems``. A file of 100 MB takes seconds and ten times
    its size in memory while it is read.

    Args:
        path: of the JSON file.
        images: folder from which ``file_name`` counts.
        thorough: whether to decode each picture once; else headers and ends of files are looked at.
        watch: told the progress over pictures.

    Raises:
        FileFormatError: the file is no such JSON, its keypoints are others, or nobody is left.
        MissingDependencyError: Pillow or OpenCV is not installed.
    """
    root = Path(images)
    if not root.is_dir():
        raise malformed(images, None, "this is not a folder", "the folder of the pictures")
    source = _Source(Path(path), _document(path))
    pictures = _pictures(source)
    people = _people(source, pictures, _columns(source))
    wanted = sorted({pictures.number_of[key] for key in people.image_ids})
    kept, problems = _usable(source, pictures, wanted, root, thorough, watch)
    return _assembled(source, pictures, people, kept, problems, root)


@dataclass(frozen=True)
class _Source:
    """A JSON file, and how to complain about it."""

    path: Path
    document: dict[str, Any]

    def refuse(self, what: str, valid: str) -> NoReturn:
        raise malformed(self.path, None, what, valid)

    def items(self, key: str) -> list[dict[str, Any]]:
        """A list of objects at the top."""
        found = self.document.get(key)
        if not isinstance(found, list):
            there = "it has no" if key not in self.document else "there is no list in"
            self.refuse(f"{there} '{key}'", "COCO keypoints: images, annotations and categories")
        for i, item in enumerate(found):
            if not isinstance(item, dict):
                self.refuse(f"{key}[{i}] is {shown(str(item))}", "an object")
        return found

    def value(self, where: str, item: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
        """An entry that has to be there."""
        if key not in item:
            there = ", ".join(list(item)[:12]) or "nothing"
            self.refuse(f"{where} has no '{key}', it has {there}", f"an object with '{key}'")
        value = item[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            self.refuse(f"'{key}' of {where} is {shown(str(value))}", f"of the kind {names}")
        return value


def _document(path: PathLike) -> dict[str, Any]:
    def constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number of JSON")

    raw = read_bytes(path)
    if not raw.strip():
        raise malformed(path, None, "the file is empty", "COCO keypoints in JSON")
    try:
        found = json.loads(raw, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        what = f"it is no JSON ({one_line(str(error))})"
        raise malformed(path, None, what, "COCO keypoints in JSON") from None
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise malformed(path, None, f"it holds a {kind}", "an object with images, annotations and categories")
    return found


# --- keypoints ---


def _columns(source: _Source) -> dict[Any, NDArray[np.int64] | None]:
    """Of each category, which keypoint each of its columns is; None where it has no keypoints."""
    found: dict[Any, NDArray[np.int64] | None] = {}
    for i, category in enumerate(source.items("categories")):
        number = source.value(f"categories[{i}]", category, "id", (int, str))
        found[number] = _category_columns(source, category) if "keypoints" in category else None
    if not any(columns is not None for columns in found.values()):
        source.refuse("no category names keypoints", f"a category with {_VALID_KEYPOINTS}")
    return found


def _category_columns(source: _Source, category: Mapping[str, Any]) -> NDArray[np.int64]:
    title = f"the category {shown(str(category.get('name', category['id'])))}"
    names = source.value(title, category, "keypoints", list)
    plain = [str(name).strip().lower().replace(" ", "_") for name in names]
    if len(plain) not in (_K, _COCO_K):
        source.refuse(f"{title} has {len(plain)} keypoints", _VALID_KEYPOINTS)
    valid = KEYPOINT_NAMES[: len(plain)]
    if set(plain) != set(valid):
        odd = [name for name in plain if name not in valid] or [n for n, c in Counter(plain).items() if c > 1]
        lacking = [name for name in valid if name not in plain]
        told = listed([one_line(name, 60) for name in odd])
        what = f"{title} has the keypoints {told} and lacks {listed(lacking)}"
        source.refuse(what, _VALID_KEYPOINTS)
    return np.array([KEYPOINT_NAMES.index(name) for name in plain])


# --- pictures ---


@dataclass(frozen=True)
class _Pictures:
    """The list of pictures, with the place of each by its id."""

    items: list[dict[str, Any]]
    number_of: dict[Any, int]


def _pictures(source: _Source) -> _Pictures:
    items = source.items("images")
    number_of: dict[Any, int] = {}
    for i, item in enumerate(items):
        key = source.value(f"images[{i}]", item, "id", (int, str))
        if key in number_of:
            source.refuse(f"images[{number_of[key]}] and images[{i}] have the id {key}", "ids that differ")
        number_of[key] = i
        name = source.value(f"images[{i}]", item, "file_name", str)
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            source.refuse(f"'file_name' of images[{i}] is {shown(name)}", "a path below the pictures' folder")
    return _Pictures(items, number_of)


def _usable(
    source: _Source,
    pictures: _Pictures,
    wanted: Sequence[int],
    root: Path,
    thorough: bool,
    watch: Watcher | None,
) -> tuple[dict[int, tuple[int, int]], list[Problem]]:
    """Sizes of the pictures that can be used, by their number, and what is wrong with the others."""
    paths = [root / pictures.items[i]["file_name"] for i in wanted]
    sizes = picture_sizes(paths, thorough=thorough, watch=watch)
    kept: dict[int, tuple[int, int]] = {}
    problems: list[Problem] = []
    for i, path, found in zip(wanted, paths, sizes, strict=True):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        item = pictures.items[i]
        said = item.get("width", found[0]), item.get("height", found[1])
        if said == found:
            kept[i] = found
        else:
            why = (
                f"it is {found[0]} by {found[1]} px, turned as its EXIF says, where {place(source.path)} has "
                f"{said[0]} by {said[1]}; valid is the picture that its keypoints were made on"
            )
            problems.append(Problem(place(path), why))
    return kept, problems


# --- people ---


@dataclass(frozen=True, eq=False)
class _People:
    """The annotations that can be used, and how many can't.

    Attributes:
        image_ids: of each person.
        boxes: [N 4].
        areas: [N], NaN where it is not told.
        keypoints: [N 37 3], px and visibility.
        left_out: how many are not among them, by reason.
    """

    image_ids: list[Any]
    boxes: NDArray[np.float32]
    areas: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    left_out: Counter[str]


def _people(source: _Source, pictures: _Pictures, columns: Mapping[Any, NDArray[np.int64] | None]) -> _People:
    items = source.items("annotations")
    by_category, left_out = _by_category(source, pictures, columns, items)
    rows = sorted(i for numbers in by_category.values() for i in numbers)
    table = np.zeros((len(items), _K, 3), np.float32)
    for category, numbers in by_category.items():
        order = columns[category]
        assert order is not None
        found = _numbers(source, items, numbers, "keypoints", 3 * len(order)).reshape(-1, len(order), 3)
        _check_visibility(source, numbers, found[..., 2])
        table[np.array(numbers)[:, None], order] = found
    boxes = _numbers(source, items, rows, "bbox", 4)
    areas = _numbers(source, items, rows, "area", None)[:, 0]
    labelled, wide = (table[rows, :, 2] > 0).any(axis=1), (boxes[:, 2:] > 0).all(axis=1)
    left_out["people without a labelled keypoint"] += int((~labelled).sum())
    left_out["people with an empty box"] += int((labelled & ~wide).sum())
    kept = np.flatnonzero(labelled & wide)
    return _People(
        [items[rows[k]]["image_id"] for k in kept],
        boxes[kept].astype(np.float32),
        np.where(areas[kept] > 0, areas[kept], np.nan).astype(np.float32),
        table[np.array(rows, np.int64)[kept]],
        left_out,
    )


def _by_category(
    source: _Source,
    pictures: _Pictures,
    columns: Mapping[Any, NDArray[np.int64] | None],
    items: Sequence[Mapping[str, Any]],
) -> tuple[dict[Any, list[int]], Counter[str]]:
    """Numbers of the annotations of single people with keypoints, and how many are others."""
    by_category: dict[Any, list[int]] = {}
    left_out = Counter[str]()
    for i, item in enumerate(items):
        where = f"annotations[{i}]"
        image = source.value(where, item, "image_id", (int, str))
        category = source.value(where, item, "category_id", (int, str))
        if image not in pictures.number_of:
            source.refuse(f"'image_id' of {where} is {image}", "the id of one of its images")
        if category not in columns:
            source.refuse(f"'category_id' of {where} is {category}", f"one of {listed([*map(str, columns)])}")
        if columns[category] is None:
            left_out["annotations of categories without keypoints"] += 1
        elif item.get("iscrowd"):
            left_out["crowds"] += 1
        else:
            by_category.setdefault(category, []).append(i)
    return by_category, left_out


def _numbers(
    source: _Source, items: Sequence[Mapping[str, Any]], rows: Sequence[int], key: str, count: int | None
) -> NDArray[np.float64]:
    """[n count] of these annotations; [n 1] of one that may be missing (0) where there is no count."""
    values: list[Any] = []
    for i in rows:
        if count is None:
            values.append([items[i].get(key, 0)])
            continue
        value = source.value(f"annotations[{i}]", items[i], key, list)
        if len(value) != count:
            valid = f"{count}, {'three for each keypoint' if count > 4 else 'left, top, width and height'}"
            source.refuse(f"'{key}' of annotations[{i}] has {len(value)} numbers", valid)
        values.append(value)
    found = _as_numbers(values)
    if found is None:  # and now which
        bad = next(k for k, value in enumerate(values) if _as_numbers([value]) is None)
        source.refuse(f"'{key}' of annotations[{rows[bad]}] holds {shown(str(values[bad]))}", "numbers")
    return found.reshape(len(rows), count or 1)


def _as_numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """A table of finite numbers, or None where it is none."""
    try:
        found = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if not len(values) or (found.ndim == 2 and np.isfinite(found).all()) else None


def _check_visibility(source: _Source, rows: Sequence[int], values: NDArray[np.float64]) -> None:
    odd = ~np.isin(values, (0, 1, 2))
    if odd.any():
        row = int(np.flatnonzero(odd.any(axis=1))[0])
        what = f"a visibility in 'keypoints' of annotations[{rows[row]}] is {values[row][odd[row]][0]:g}"
        source.refuse(what, "0, 1 or 2")


# --- together ---


def _assembled(
    source: _Source,
    pictures: _Pictures,
    people: _People,
    kept: Mapping[int, tuple[int, int]],
    problems: Sequence[Problem],
    root: Path,
) -> PictureFiles:
    """The records of the people whose pictures can be used."""
    place_of = {number: i for i, number in enumerate(kept)}
    image = np.array([place_of.get(pictures.number_of[key], -1) for key in people.image_ids], np.int64)
    sizes = np.array([*kept.values()], np.float64).reshape(-1, 2)
    boxes, left_out = people.boxes, Counter(people.left_out)
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes[image] if len(sizes) else 0.0)
    shown_box, whole = (high > low).all(axis=1), image >= 0
    left_out["people whose box is outside of the picture"] += int((whole & ~shown_box).sum())
    left_out["people in pictures that can't be used"] += int((~whole).sum())
    rows = np.flatnonzero(whole & shown_box)
    notes = _notes(source, left_out)
    if not len(rows):
        reasons = "; ".join([*map(str, problems[:2]), *notes]) or "it has no annotations"
        raise FileFormatError(
            f"{place(source.path)}: nobody in it can be used ({reasons}); valid is a file with people that "
            f"have keypoints and pictures in {place(root)}"
        )
    table = people.keypoints[rows]
    pixels, visibility = table[..., :2], table[..., 2].astype(np.int32)
    of_people = {
        "box": boxes[rows],
        "area": people.areas[rows],
        "keypoints_2d": np.where(visibility[..., None] > 0, pixels, np.float32(np.nan)),
        "visibility": visibility,
        "keypoints_3d": np.broadcast_to(np.float32(np.nan), (len(rows), _K, 3)),
    }
    paths = [root / pictures.items[i]["file_name"] for i in kept]
    about = _about(source, [pictures.items[i] for i in kept], sizes)
    return PictureFiles(paths, about, of_people, image[rows], problems, notes)


def _notes(source: _Source, left_out: Mapping[str, int]) -> list[str]:
    counts = [f"{count} {what}" for what, count in left_out.items() if count]
    return [f"{place(source.path)}: left out are {', '.join(counts)}"] if counts else []


def _about(
    source: _Source, items: Sequence[Mapping[str, Any]], sizes: NDArray[np.float64]
) -> dict[str, Sequence[Any] | NDArray[Any]]:
    """What is told of each picture; `picture_export` writes more of it than COCO has."""
    licenses = source.document.get("licenses")
    synthetic = [
        entry.get("id")
        for entry in (licenses if isinstance(licenses, list) else ())
        if isinstance(entry, dict) and str(entry.get("name", "")).startswith("Synthetic:")
    ]
    rendered = np.array([item.get("license") in synthetic for item in items], bool)
    distortion = np.full((len(items), 8), np.nan)
    distortion[rendered] = 0.0
    frames = [item.get("frame") for item in items]
    return {
        **{key: [str(item.get(key, UNKNOWN)) for item in items] for key in ("subject", "action", "camera")},
        "width": sizes[:, 0].astype(np.int32),
        "height": sizes[:, 1].astype(np.int32),
        "frame": np.array([f if type(f) is int and 0 <= f < 2**31 else -1 for f in frames], np.int32),
        "is_synthetic": rendered,
        "appearance_seed": np.full(len(items), -1, np.int32),
        "camera_matrix": _matrices(source, items, "camera_matrix", (3, 3)),
        "camera_rotation": _matrices(source, items, "camera_rotation", (3, 3)),
        "camera_translation": _matrices(source, items, "camera_translation", (3,)),
        "camera_distortion": distortion,
    }


def _matrices(
    source: _Source, items: Sequence[Mapping[str, Any]], key: str, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    found = np.full((len(items), *shape), np.nan)
    for i, item in enumerate(items):
        if key not in item:
            continue
        try:
            value = np.array(item[key], np.float64)
        except (TypeError, ValueError):
            value = np.zeros(0)
        if value.shape != shape:
            name = shown(str(item["file_name"]))
            source.refuse(f"'{key}' of the image {name} is no array of the shape {shape}", "such an array")
        found[i] = value
    return found
