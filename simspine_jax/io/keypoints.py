"""Keypoints of several synchronised cameras: OpenPose and SpinePose folders, COCO results, NPZ.

Readers give all people that were detected; `main_person` chooses one in each camera.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError, UnknownNameError, one_line
from simspine_jax.io.cells import first_duplicate, frozen_array, is_name
from simspine_jax.io.files import PathLike, atomic_write, malformed, place, read_text, shown
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.skeleton import KEYPOINT_SCHEMAS, KeypointSchema

MAX_FRAMES = 1_000_000
"""Five hours at 60 Hz; numbers in file names that span more are no frame numbers."""

_FRAME_NUMBER = re.compile(r"(\d{1,18})(?:_keypoints)?(?:\.[A-Za-z]+)?$")

_PICTURES = {".avi", ".bmp", ".gif", ".jpeg", ".jpg", ".mkv", ".mov", ".mp4", ".png", ".webm", ".webp"}
"""Suffixes of pictures and videos."""

_People = list[NDArray[np.float64]]  # each [K 3]: x and y in px, confidence


@dataclass(frozen=True, eq=False)
class _Keypoints:
    """What the two kinds below share."""

    camera_names: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    positions: NDArray[np.float64]
    confidence: NDArray[np.float64]
    rate_hz: float | None = None
    first_frame: int = 0

    _AXES = ""  # of the confidence

    def __post_init__(self) -> None:
        for field in ("camera_names", "keypoint_names"):
            names = tuple(getattr(self, field))
            object.__setattr__(self, field, names)
            _check_names(field, names)
        for field in ("positions", "confidence"):
            object.__setattr__(self, field, frozen_array(getattr(self, field)))
        shape, wanted = self.confidence.shape, (len(self.camera_names), len(self.keypoint_names))
        fits = len(shape) == len(self._AXES.split()) and (shape[1], shape[-1]) == wanted
        if not fits or self.positions.shape != (*shape, 2):
            raise ShapeError(
                f"positions have the shape {self.positions.shape} and confidence {shape}; "
                f"valid is [{self._AXES} 2] and [{self._AXES}] with V, K = {wanted}"
            )
        _check_numbers(self.positions, self.confidence)
        if self.rate_hz is not None and not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ShapeError(f"rate_hz is {self.rate_hz}; valid is a positive number or None")


class Keypoints2D(_Keypoints):
    """Keypoints of one person in several synchronised cameras; missing ones are NaN.

    Attributes:
        camera_names: V names, each once.
        keypoint_names: K names of markers on the model, each once.
        positions: float64 [T, V, K, 2] px.
        confidence: float64 [T, V, K], positive; NaN exactly where the position is.
        rate_hz: frames per second, or None where the files do not tell.
        first_frame: the number of the first frame in the files.

    Raises:
        ShapeError: shapes, names, values or the rate break one of these rules.
    """

    _AXES = "T V K"

    def select(self, names: Sequence[str]) -> Keypoints2D:
        """The same frames with only these keypoints, in this order.

        Raises:
            UnknownNameError: a name is not among the keypoints.
        """
        for name in names:
            if name not in self.keypoint_names:
                raise UnknownNameError("Keypoint", name, "the keypoints", self.keypoint_names)
        index = [self.keypoint_names.index(name) for name in names]
        arrays = self.positions[:, :, index], self.confidence[:, :, index]
        return Keypoints2D(self.camera_names, tuple(names), *arrays, self.rate_hz, self.first_frame)


class Detections2D(_Keypoints):
    """Keypoints of up to P people a picture, in no order; otherwise as `Keypoints2D`.

    Its ``positions`` are [T, V, P, K, 2] px, its ``confidence`` [T, V, P, K].
    """

    _AXES = "T V P K"


def _check_names(field: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not (isinstance(name, str) and is_name(name)):
            raise ShapeError(f"{field} has {shown(str(name))}; valid is printable text, trimmed")
    twice = first_duplicate(names)
    if not names or twice is not None:
        what = "is empty" if twice is None else f"has {shown(twice)} twice"
        raise ShapeError(f"{field} {what}; valid are names that differ")


def _check_numbers(positions: NDArray[np.float64], confidence: NDArray[np.float64]) -> None:
    missing = np.isnan(confidence)
    if (np.isnan(positions) != missing[..., None]).any():
        raise ShapeError("some keypoints are missing in part; valid are three numbers or three NaN")
    sure = (confidence > 0) & (confidence < np.inf)
    if np.isinf(positions).any() or not (missing | sure).all():
        raise ShapeError(
            "some numbers are infinite or some confidences not positive; valid is NaN for missing"
        )


def main_person(detections: Detections2D) -> Keypoints2D:
    """The person who is largest, surest and steadiest in each camera.

    A person's strength is the sum of the confidences times the diagonal (px) of the box around the
    keypoints, over the greatest strength in the same picture: 0 to 1. Going on to a person costs the way
    between the confidence-weighted centres over the earlier diagonal and the frames between, 1 at most.
    Of all sequences the one with the greatest sum of strengths less costs is taken (Viterbi's algorithm),
    for each camera on its own: whether the cameras mean the same person is for the triangulation to see.
    """
    n_frames, n_views = detections.confidence.shape[:2]
    weight = np.nan_to_num(detections.confidence)
    points = np.nan_to_num(detections.positions)
    total = weight.sum(axis=-1)
    seen = total > 0
    centers = (points * weight[..., None]).sum(axis=-2) / np.where(seen, total, 1)[..., None]
    known = (weight > 0)[..., None]
    low = np.where(known, points, np.inf).min(axis=-2, initial=np.inf)
    high = np.where(known, points, -np.inf).max(axis=-2, initial=-np.inf)
    span = np.where(seen[..., None], high - low, 0.0)
    sizes = np.maximum(np.linalg.norm(span, axis=-1), 1.0)
    strength = total * sizes
    best = strength.max(axis=-1, keepdims=True, initial=0.0)
    strength = np.where(seen, strength / np.where(best > 0, best, 1), -np.inf)
    positions = np.full((n_frames, n_views, *detections.positions.shape[3:]), np.nan)
    confidence = np.full(positions.shape[:-1], np.nan)
    for view in range(n_views):
        frames = np.flatnonzero(seen[:, view].any(axis=-1))
        chosen = _best_sequence(frames, *(a[frames, view] for a in (strength, centers, sizes)))
        positions[frames, view] = detections.positions[frames, view, chosen]
        confidence[frames, view] = detections.confidence[frames, view, chosen]
    return Keypoints2D(
        detections.camera_names,
        detections.keypoint_names,
        positions,
        confidence,
        detections.rate_hz,
        detections.first_frame,
    )


def _best_sequence(
    frames: NDArray[np.intp],
    strength: NDArray[np.float64],
    centers: NDArray[np.float64],
    sizes: NDArray[np.float64],
) -> NDArray[np.intp]:
    """The person of each frame; arrays are [F P], [F P 2], [F P], strength -inf where there is nobody."""
    if not len(frames):
        return np.zeros(0, np.intp)
    way = np.linalg.norm(centers[1:, None] - centers[:-1, :, None], axis=-1)  # [F-1 before after]
    cost = np.minimum(way / sizes[:-1, :, None] / np.diff(frames)[:, None, None], 1.0)
    score, origins = strength[0], []
    for step, now in zip(cost, strength[1:], strict=True):
        through = score[:, None] - step
        origins.append(through.argmax(axis=0))
        score = through.max(axis=0) + now
    path = [int(score.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return np.array(path[::-1], np.intp)


# --- reading ---


def read_openpose_folder(
    folder: PathLike, *, schema: str | None = None, rate_hz: float | None = None
) -> Detections2D:
    """Read a folder that has one folder of JSON files for each camera, as OpenPose and SpinePose write them.

    Cameras are named by their folders and come in alphabetical order. A file's last number is its frame
    (``a_000000000012_keypoints.json``, ``frame_00012.json``); frames without a file are missing, and the
    clip runs from the first frame of any camera to the last. A keypoint of confidence zero is missing.

    Passed over are hidden folders (``.git``, ``__MACOSX``) and those that hold nothing but pictures or
    videos, such as the rendered ones that Pose2Sim puts beside them. Any other folder without JSON files is
    taken for a camera whose keypoints are lost, and refused.

    Args:
        folder: of the clip.
        schema: of `KEYPOINT_SCHEMAS`; needed for 25 keypoints, which two of them have.
        rate_hz: frames per second, which these files don't hold.

    Raises:
        FileFormatError: no such files, a camera's folder without any, a file that can't be read, or people
            with unlike keypoints.
        UnknownNameError: there is no such schema.
    """
    root = Path(folder)
    if not root.is_dir():
        raise malformed(folder, None, "this is not a folder", "a folder with one for each camera")
    cameras = {}
    for inner in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(inner.glob("*.json"))
        if files:
            cameras[inner.name] = _read_frames(files)
        elif not _is_no_camera(inner):
            valid = "those of a camera's frames"
            if any(inner.glob("*/*.json")):
                valid = f"the folder with a folder for each camera, which {place(inner)} seems to be"
            raise malformed(inner, None, "this folder holds no JSON files", valid)
    if not cameras:
        own = sorted(root.glob("*.json"))
        if not own:
            raise malformed(folder, None, "no folder in it holds JSON files", "one folder for each camera")
        cameras = {root.resolve().name: _read_frames(own)}
    return _assembled(folder, cameras, schema, rate_hz)


def _is_no_camera(folder: Path) -> bool:
    """Whether a folder without JSON files is clearly not a camera's; an empty one may be."""
    if folder.name.startswith((".", "__")):
        return True
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return bool(inside) and all(path.suffix.lower() in _PICTURES for path in inside)


def read_openpose_frame(path: PathLike) -> list[NDArray[np.float64]]:
    """Read one frame's people: each [K 3] x and y, px, and confidence; NaN where missing.

    Raises:
        FileFormatError: it is no such file.
    """
    return [np.concatenate([xy, c[..., None]], axis=-1) for xy, c in map(_masked, _people(path))]


def read_coco_results(
    paths: Mapping[str, PathLike], *, schema: str | None = None, rate_hz: float | None = None
) -> Detections2D:
    """Read COCO results, one file for each camera: a list of people with ``image_id`` and ``keypoints``.

    The frame is the image id, or the last number in it where it is a file's name. The third number of a
    keypoint is its confidence; zero means missing.

    Args:
        paths: file of each camera by the camera's name.
        schema: as for `read_openpose_folder`.
        rate_hz: frames per second, which these files don't hold.

    Raises:
        FileFormatError: a file is no such list, or people have unlike keypoints.
        UnknownNameError: there is no such schema.
    """
    if not paths:
        raise ShapeError("there are no COCO results to read; valid is one file for each camera")
    cameras: dict[str, dict[int, _People]] = {}
    for name, path in paths.items():
        entries = _json(path)
        if not isinstance(entries, list):
            raise malformed(path, None, f"it holds a {type(entries).__name__}", "a list of people")
        frames = cameras.setdefault(name, {})
        for number, entry in enumerate(entries):
            where = f"person {number}"
            image = entry.get("image_id", entry.get("file_name")) if isinstance(entry, dict) else None
            match = _FRAME_NUMBER.search(str(image)) if isinstance(image, int | str) else None
            if match is None:
                raise malformed(
                    path, None, f"{where} has the image {shown(str(image))}", "an id or file name"
                )
            frames.setdefault(int(match.group(1)), []).append(_person(path, where, entry.get("keypoints")))
    return _assembled(next(iter(paths.values())), cameras, schema, rate_hz)


def read_keypoints_npz(path: PathLike) -> Keypoints2D:
    """Read what `write_keypoints_npz` writes, or an NPZ with Pose2Sim's ``keypoints_associated``.

    The latter has ``camera_names``, ``keypoint_names``, ``frame_rate`` and [V T K 3] of x, y (px) and
    confidence. Where it has nobody but ``keypoints_raw``, it is `main_person` of `read_detections_npz`.

    Raises:
        FileFormatError: it is no such file.
    """
    arrays = read_npz(path)
    if "keypoints_associated" in arrays:
        return _from_pose2sim(path, arrays, "keypoints_associated", Keypoints2D)
    if "keypoints_raw" in arrays:
        return main_person(_from_pose2sim(path, arrays, "keypoints_raw", Detections2D))
    try:
        rate = float(arrays["rate_hz"])
        return Keypoints2D(
            tuple(map(str, arrays["camera_names"])),
            tuple(map(str, arrays["keypoint_names"])),
            arrays["positions"],
            arrays["confidence"],
            None if math.isnan(rate) else rate,
            int(arrays["first_frame"]),
        )
    except KeyError as error:
        raise malformed(
            path, None, f"it has no array {error}",
            "an NPZ with camera_names [V], keypoint_names [K], positions [T V K 2] in px, confidence "
            "[T V K], rate_hz and first_frame",
        ) from None  # fmt: skip
    except (TypeError, ValueError, ShapeError) as error:
        raise malformed(path, None, one_line(str(error)).split(";")[0], "keypoints of one person") from None


def read_detections_npz(path: PathLike) -> Detections2D:
    """Read ``keypoints_raw`` [V T P K 3] of an NPZ as `read_keypoints_npz` describes it.

    Raises:
        FileFormatError: it is no such file.
    """
    return _from_pose2sim(path, read_npz(path), "keypoints_raw", Detections2D)


_Kind = TypeVar("_Kind", bound=_Keypoints)


def _from_pose2sim(path: PathLike, arrays: dict[str, NDArray[Any]], key: str, kind: type[_Kind]) -> _Kind:
    try:
        values = np.asarray(arrays[key], np.float64).swapaxes(0, 1)
        names = tuple(map(str, arrays["camera_names"])), tuple(map(str, arrays["keypoint_names"]))
        rate = float(arrays["frame_rate"])
        if values.shape[-1] != 3:
            raise ValueError(f"{key} has {values.shape[-1]} numbers a keypoint")
        return kind(*names, *_masked(values), rate)
    except KeyError as error:
        raise malformed(path, None, f"it has no array {error}", f"{key} with names and frame_rate") from None
    except (TypeError, ValueError, ShapeError) as error:
        raise malformed(path, None, one_line(str(error)).split(";")[0], f"{key} [V T … K 3]") from None


def _masked(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and confidence, both NaN where either is missing or the confidence is zero."""
    missing = np.isnan(values).any(axis=-1) | (values[..., 2] == 0)
    values = np.where(missing[..., None], np.nan, values)
    return values[..., :2], values[..., 2]


def _read_frames(files: list[Path]) -> dict[int, _People]:
    frames: dict[int, _People] = {}
    for path in files:
        match = _FRAME_NUMBER.search(path.name)
        if match is None:
            raise malformed(path, None, "its name ends in no number", "a frame number before .json")
        frame = int(match.group(1))
        if frame in frames:
            raise malformed(path, None, f"frame {frame} is there twice", "one file for each frame")
        frames[frame] = _people(path)
    return frames


def _people(path: PathLike) -> _People:
    document = _json(path)
    people = document.get("people") if isinstance(document, dict) else None
    if not isinstance(people, list):
        raise malformed(path, None, "it has no list of people", "OpenPose's JSON")
    return [
        _person(path, f"person {i}", p.get("pose_keypoints_2d") if isinstance(p, dict) else None)
        for i, p in enumerate(people)
    ]


def _json(path: PathLike) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise malformed(
            path, None, f"the JSON is broken ({one_line(str(error))})", "a JSON document"
        ) from None


def _person(path: PathLike, where: str, numbers: Any) -> NDArray[np.float64]:
    """[K 3] from a flat list or a list of triples."""
    try:
        values = np.asarray(numbers, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if not len(values) or len(values) % 3 or np.isinf(values).any() or (values[2::3] < 0).any():
        what = f"{where} has the keypoints {shown(str(numbers))}"
        raise malformed(path, None, what, "x, y and a confidence from 0 for each keypoint")
    return values.reshape(-1, 3)


def _assembled(
    path: PathLike, cameras: Mapping[str, dict[int, _People]], schema: str | None, rate_hz: float | None
) -> Detections2D:
    """Frames and people of all cameras in one array."""
    people = [person for frames in cameras.values() for group in frames.values() for person in group]
    counts = sorted({len(person) for person in people})
    if len(counts) > 1:
        raise malformed(path, None, f"people have {counts} keypoints", "the same for all")
    names = _schema(path, schema, counts[0] if counts else None).markers
    numbers = [frame for frames in cameras.values() for frame in frames]
    first, last = min(numbers, default=0), max(numbers, default=-1)
    if last - first >= MAX_FRAMES:
        what = f"frame numbers go from {first} to {last}"
        raise malformed(path, None, what, f"at most {MAX_FRAMES} frames")
    most = max((len(group) for frames in cameras.values() for group in frames.values()), default=0)
    values = np.full((last - first + 1, len(cameras), max(most, 1), len(names), 3), np.nan)
    for view, frames in enumerate(cameras.values()):
        for frame, group in frames.items():
            for p, person in enumerate(group):
                values[frame - first, view, p] = person
    return Detections2D(tuple(cameras), names, *_masked(values), rate_hz, first)


def _schema(path: PathLike, name: str | None, count: int | None) -> KeypointSchema:
    if name is not None and name not in KEYPOINT_SCHEMAS:
        raise UnknownNameError("Schema", name, "the vocabulary", KEYPOINT_SCHEMAS)
    fitting = [
        s for s in KEYPOINT_SCHEMAS.values() if count in (None, len(s.markers)) and name in (None, s.name)
    ]
    if len(fitting) == 1:
        return fitting[0]
    valid = ", ".join(f"{s.name} ({len(s.markers)})" for s in KEYPOINT_SCHEMAS.values())
    what = "nobody is in it" if count is None else f"people have {count} keypoints"
    what += " and the schema is not given" if name is None else f" where {name} has another number"
    raise malformed(path, None, what, f"a schema that fits, of {valid}")


# --- writing ---


def write_openpose_folder(folder: PathLike, keypoints: Keypoints2D) -> None:
    """Write a folder for each camera with OpenPose's JSON for each frame, which `read_openpose_folder` reads.

    Missing keypoints become three zeros, as OpenPose writes them; frames without any have no people.

    Raises:
        SimspineError: a file can't be written.
    """
    values = np.concatenate([keypoints.positions, keypoints.confidence[..., None]], axis=-1)
    for view, camera in enumerate(keypoints.camera_names):
        for frame, person in enumerate(values[:, view]):
            name = openpose_name(camera, keypoints.first_frame + frame)
            write_openpose_frame(Path(folder) / camera / name, [person])


def openpose_name(camera: str, frame: int) -> str:
    """What OpenPose calls the file of a frame."""
    return f"{camera}_{frame:012d}_keypoints.json"


def write_openpose_frame(path: PathLike, people: Sequence[NDArray[np.float64]]) -> None:
    """Write OpenPose's JSON of one frame; people without any keypoint are left out.

    Args:
        path: of the file.
        people: each [K 3] x and y, px, and confidence; NaN where missing, which becomes three zeros.

    Raises:
        SimspineError: the file can't be written.
    """
    known = [np.isfinite(person).all(axis=-1, keepdims=True) for person in people]
    entries = [
        {"person_id": [-1], "pose_keypoints_2d": np.where(k, person, 0.0).ravel().tolist()}
        for person, k in zip(people, known, strict=True)
        if k.any()
    ]
    with atomic_write(path) as file:
        json.dump({"version": 1.3, "people": entries}, file)


def write_keypoints_npz(path: PathLike, keypoints: Keypoints2D) -> None:
    """Write an NPZ that `read_keypoints_npz` reads back to the last bit.

    Raises:
        SimspineError: the file can't be written.
    """
    write_npz(
        path,
        {
            "camera_names": np.array(keypoints.camera_names, str),
            "keypoint_names": np.array(keypoints.keypoint_names, str),
            "positions": keypoints.positions,
            "confidence": keypoints.confidence,
            "rate_hz": np.array(math.nan if keypoints.rate_hz is None else keypoints.rate_hz),
            "first_frame": np.array(keypoints.first_frame),
        },
    )
