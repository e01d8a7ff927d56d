"""Keypoints of a person in pictures and videos of several cameras, as OpenPose's files.

The frames of all cameras at one time go through the detector together. Where the person's boxes are given, as
many crops as a batch holds do. ``detections.json`` beside the files says what they are of; what is complete
is not done again, and a run that was stopped goes on where it was, with the same numbers.

The confidence that is written is the detector's score cut to 0 … 1: the output's value at the keypoint, which
is no probability.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from simspine_jax.detection.codecs import picture_keypoints
from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.io.boxes import CameraBoxes, clip_boxes
from simspine_jax.io.files import atomic_write, make_folder, place
from simspine_jax.io.keypoints import openpose_name, read_openpose_frame, write_openpose_frame
from simspine_jax.io.video import Camera, Frame, PictureCamera
from simspine_jax.pictures import crop_matrix, import_cv2, padded_box
from simspine_jax.pipeline.detectors import Crops, Finder
from simspine_jax.pipeline.records import digest_of, write_json
from simspine_jax.pipeline.tracking import Job, Person, mean_confidence, track, whole_box

FORMAT = "simspine_jax detections"
CONFIDENCE = "the detector's score at the keypoint, cut to 0 ... 1; no probability"
"""What the record says of it."""

RECORD, KEYPOINTS, COCO = "detections.json", "keypoints", "coco"
"""Names in the output: the record, the folder of OpenPose's files, and that of COCO's."""

BATCH = 16
"""Crops that go through the detector together, where it can be chosen."""

LEAST_SCORE = 0.3
"""Boxes of a lower score are passed over."""

TOLD = 8
"""Pictures that can't be read and boxes that can't be used are named up to so many."""

_PX_DIGITS, _CONFIDENCE_DIGITS = 3, 4
_WRITERS, _BACKLOG = 4, 64
_SUPERSAMPLED = (8, 4, 2)

Progress = Callable[[int, int | None], None]
"""Told how many frames are done, and how many there are."""

Note = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class BoxPlan:
    """Where people are.

    Attributes:
        source: ``track``: each camera's one person is followed; ``whole``: one person fills the picture; or
            boxes by camera, in which any number of people are.
        least_score: boxes of a lower score are passed over.
        batch: crops that go through the detector together; for ``track`` it is one of each camera.

    Raises:
        ShapeError: the batch is empty.
    """

    source: Literal["track", "whole"] | Mapping[str, CameraBoxes] = "track"
    least_score: float = LEAST_SCORE
    batch: int = BATCH

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ShapeError(f"A batch has {self.batch} crops; valid is from 1")

    @property
    def digest(self) -> str:
        """Tells it from all others that give other boxes."""
        if isinstance(self.source, str):
            return self.source
        parts = [repr(self.least_score).encode()]
        for name, boxes in sorted(self.source.items()):
            parts.append(f"{name} {boxes.relative}".encode())
            parts += [f"{n}".encode() + rows.tobytes() for n, rows in sorted(boxes.rows.items())]
        return digest_of(*parts)

    def boxes(self, camera: str, frame: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """[P 5] the boxes of a frame, whose picture has this width and height, px."""
        if isinstance(self.source, str):
            return np.append(whole_box(size), 1.0)[None]
        rows = self.source[camera].of(frame, size) if camera in self.source else np.zeros((0, 5))
        return rows[rows[:, 4] >= self.least_score]


@dataclass(frozen=True)
class DetectedCamera:
    """What there is of a camera.

    Attributes:
        name: of the camera.
        n_frames: frames with a file.
        empty: frames without people.
        confidence: mean of all keypoints of the frames with people; None where there are none.
        sizes: of the pictures that were looked at, width and height, px.
    """

    name: str
    n_frames: int
    empty: int
    confidence: float | None
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Detected:
    """The result of a run.

    Attributes:
        folder: of OpenPose's files, with a folder for each camera.
        cameras: in their order.
        rate_hz: frames per second, if known.
        n_new: frames of all cameras that this run has done.
        resumed: frames that were there before.
        faults: what of the pictures and videos can't be read, in sentences; also of earlier calls.
    """

    folder: Path
    cameras: tuple[DetectedCamera, ...]
    rate_hz: float | None
    n_new: int
    resumed: int
    faults: tuple[str, ...] = ()


def camera_folder(out: Path, camera: str) -> Path:
    """Where a camera's OpenPose files lie."""
    return out / KEYPOINTS / f"{camera}_json"


def frame_path(out: Path, camera: str, frame: int) -> Path:
    """Where a frame's OpenPose file lies."""
    return camera_folder(out, camera) / openpose_name(camera, frame)


def people_in(out: Path, camera: str, frame: int) -> list[Person]:
    """The people of a frame that was done; none where it was not."""
    path = frame_path(out, camera, frame)
    return read_openpose_frame(path) if path.is_file() else []


def run_detection(
    cameras: Sequence[Camera],
    finder: Finder,
    out: Path,
    plan: BoxPlan | None = None,
    *,
    rate_hz: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
    note: Note = print,
) -> Detected:
    """Detects in all frames of all cameras that are not done yet, and writes a file for each.

    Args:
        cameras: with names that differ.
        finder: the detector.
        out: gets ``keypoints`` with a folder for each camera, and the record.
        plan: where people are; default: they are followed.
        rate_hz: frames per second, for the record.
        force: redo what is done.
        progress: told about frames.
        note: told of pictures and boxes that can't be used, and of videos that end early.

    Raises:
        SimspineError: the folder can't be written or holds files of another origin, or a video can't be
            opened any more.
    """
    plan = BoxPlan() if plan is None else plan
    make_folder(out)
    key = {
        "version": ssj.__version__,
        "detector_sha256": finder.digest,
        "boxes_sha256": plan.digest,
        "pictures_sha256": _digest(cameras),
    }
    names, n_new = [camera.name for camera in cameras], 0
    record = _begun(out, key, names, force, note)
    done = {name: _numbers_done(out, name) for name in names}
    for sentence in record["faults"]:
        note(sentence)

    def tell_fault(sentence: str) -> None:
        if sentence not in record["faults"]:  # of frames that a killed run had read and not written
            note(sentence)
            record["faults"].append(sentence)
            write_json(out / RECORD, record)

    if not record["complete"] or record["frames"] != {name: len(done[name]) for name in names}:
        run = _Run(cameras, finder, out, plan, done, progress, note, tell_fault)
        run.detect()
        n_new = run.n_new
        for name, found in run.sizes.items():
            known = map(tuple, record["sizes"].get(name, []))
            record["sizes"][name] = [list(size) for size in sorted({*known, *found})]
    record |= {"frames": {name: len(_numbers_done(out, name)) for name in names}, "complete": True}
    write_json(out / RECORD, record | {"rate_hz": rate_hz})
    found = tuple(_summary(out, name, record["sizes"][name]) for name in names)
    return Detected(
        out / KEYPOINTS,
        found,
        rate_hz,
        n_new,
        sum(c.n_frames for c in found) - n_new,
        tuple(record["faults"]),
    )


def _begun(out: Path, key: dict[str, str], names: Sequence[str], force: bool, note: Note) -> dict[str, Any]:
    """The record of the same run, or a new one, before which the frames of another are taken away."""
    record = _record(out)
    if record.get("inputs") == key and not force:
        return record
    if not record and not force:
        _check_foreign(out)
    if record:
        why = "--force" if force else "detector, boxes, pictures or version changed since the last run"
        note(f"all frames are done anew: {why}")
    _forget(out, record)
    record = {"format": FORMAT, "inputs": key, "confidence": CONFIDENCE, "cameras": list(names), "sizes": {},
              "faults": [], "made": [], "complete": False}  # fmt: skip
    write_json(out / RECORD, record)
    return record


def _check_foreign(out: Path) -> None:
    """Refuses to take away what no record of ours tells of."""
    others, there = sum(1 for _ in _files_like_ours(out)), (out / RECORD).exists()
    state = "is damaged or of another program" if there else "is not there"
    if others:
        raise SimspineError(
            f"{place(out / KEYPOINTS)} holds {others} files of keypoints, and {RECORD} beside it, which "
            f"would say whose they are, {state}; valid is another folder, or to force that they are taken "
            "away (--force)"
        )
    if there:
        raise SimspineError(
            f"{place(out / RECORD)} {state}; valid is another folder, or to force that it is replaced "
            "(--force)"
        )


def _record(out: Path) -> dict[str, Any]:
    """The record of the last run; empty where there is none of ours, or a damaged one."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return {}
    # Those of before had no lists, and no frames until they were complete.
    found = {"faults": [], "made": [], "frames": {}} | record
    kinds = {"inputs": dict, "sizes": dict, "frames": dict, "complete": bool, "faults": list, "made": list}
    whole = all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return record | found if whole else {}


def _digest(cameras: Sequence[Camera]) -> str:
    """Of names, sizes and times of change of all files."""
    parts = []
    for camera in cameras:
        for path in camera.paths if isinstance(camera, PictureCamera) else (camera.path,):
            about = path.stat()
            parts.append(f"{camera.name}/{path.name} {about.st_size} {about.st_mtime_ns}".encode())
    return digest_of(*parts)


_OURS = re.compile(r"(.+)_([0-9]{12})_keypoints\.json")
_DRAWN = re.compile(r".+_[0-9]{6,}\.jpg")


def _numbers_done(out: Path, camera: str) -> set[int]:
    folder = camera_folder(out, camera)
    names = os.listdir(folder) if folder.is_dir() else []
    matches = [_OURS.fullmatch(name) for name in names]
    return {int(match.group(2)) for match in matches if match is not None and match.group(1) == camera}


def _forget(out: Path, record: Mapping[str, Any]) -> None:
    """Takes away the record, and then what another run wrote, so that none is taken for this one's.

    Where the record doesn't say which cameras it is of, these are the frames of all there are.
    """
    (out / RECORD).unlink(missing_ok=True)
    names = record.get("cameras")
    files = [
        path
        for path in _files_like_ours(out)
        if not isinstance(names, list) or path.parent.name.removesuffix("_json") in names
    ]
    for name in record.get("made", ()):
        made = out / str(name)
        if made.is_dir():
            files += [path for path in made.iterdir() if _DRAWN.fullmatch(path.name)]
        elif made.is_file():
            files.append(made)
    for path in files:
        path.unlink()
    inner = {path.parent for path in files} - {out}
    for folder in (*inner, *({folder.parent for folder in inner} - {out})):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _files_like_ours(out: Path) -> Iterator[Path]:
    for folder in (out / KEYPOINTS).glob("*_json"):
        yield from (path for path in folder.iterdir() if _OURS.fullmatch(path.name))


def note_made(out: Path, names: Sequence[Path]) -> None:
    """Keeps in the record what else is written of the frames, so that it goes when they go.

    Args:
        out: of `run_detection`.
        names: files, or folders of pictures of frames, from there on.
    """
    record = _record(out)
    made = sorted({*record.get("made", ()), *map(str, names)})
    if record and made != record["made"]:
        write_json(out / RECORD, record | {"made": made})


def _summary(out: Path, camera: str, sizes: Sequence[Sequence[int]]) -> DetectedCamera:
    numbers = sorted(_numbers_done(out, camera))
    people = [people_in(out, camera, number) for number in numbers]
    means = [mean_confidence(person) for group in people for person in group]
    return DetectedCamera(
        camera,
        len(numbers),
        sum(not group for group in people),
        float(np.mean(means)) if means else None,
        tuple((width, height) for width, height in sizes),
    )


def write_coco(out: Path, cameras: Sequence[str]) -> list[Path]:
    """Writes COCO results of frames that are done, ``coco/CAMERA.json``; an image's id is its frame's number.

    Raises:
        SimspineError: a file can't be written.
    """
    paths = []
    for camera in cameras:
        entries = []
        for number in sorted(_numbers_done(out, camera)):
            for person in people_in(out, camera, number):
                known = np.isfinite(person).all(axis=-1, keepdims=True)
                values = np.where(known, person, 0.0).ravel().tolist()
                score = round(mean_confidence(person), _CONFIDENCE_DIGITS)
                entries.append(
                    {"image_id": number, "category_id": 1, "keypoints": values, "score": score}
                )  # fmt: skip
        paths.append(out / COCO / f"{camera}.json")
        with atomic_write(paths[-1]) as file:
            json.dump(entries, file)
    return paths


# --- one run ---


@dataclass(eq=False)
class _Pending:
    """A frame of which some crops are still to go through the detector."""

    camera: str
    number: int
    wanted: int
    people: list[Person]


@dataclass(frozen=True, eq=False)
class _Cut:
    """A crop, and what it shows."""

    pixels: NDArray[np.uint8]
    matrix: NDArray[np.float64]
    camera: str
    frame: int


@dataclass(eq=False)
class _Run:
    cameras: Sequence[Camera]
    finder: Finder
    out: Path
    plan: BoxPlan
    done: Mapping[str, set[int]]
    progress: Progress | None
    note: Note
    tell_fault: Note
    n_new: int = 0
    sizes: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    _faults: int = 0
    _useless: int = 0

    def detect(self) -> None:
        """All frames that are to be done."""
        self.sizes = {camera.name: set() for camera in self.cameras}
        start = _first_missing(self.cameras, self.done)
        last = {camera.name: start - 1 for camera in self.cameras}
        total = _count(self.cameras, start)
        threads = max(1, len(os.sched_getaffinity(0)) // len(self.cameras))
        with _writer() as write, closing(_steps(self.cameras, start, threads)) as steps:
            seen = self._told(steps, last, total)
            if self.plan.source == "track":
                self._track(seen, write, start)
            else:
                self._look(seen, write)
        for camera in self.cameras:
            self._tell_end(camera, last[camera.name])
        if self._faults > TOLD:
            self.tell_fault(f"{self._faults - TOLD} more pictures can't be read")
        if self._useless > TOLD:
            self.note(f"{self._useless - TOLD} more boxes can't be used")

    def _told(
        self, steps: Iterator[dict[str, Frame]], last: dict[str, int], total: int | None
    ) -> Iterator[dict[str, Frame]]:
        """The same steps, while progress and what can't be read are told."""
        count = 0
        for step in steps:
            for name, frame in step.items():
                last[name] = frame.number
                if frame.pixels is None:
                    self._faults += 1
                    if self._faults <= TOLD:
                        self.tell_fault(f"frame {frame.number} of {name} is left empty: {frame.fault}")
                else:
                    self.sizes[name].add((frame.pixels.shape[1], frame.pixels.shape[0]))
            yield step
            count += len(step)
            if self.progress is not None:
                self.progress(count, total)

    def _tell_end(self, camera: Camera, last: int) -> None:
        numbers = camera.numbers
        if numbers and last < numbers[-1]:
            self.tell_fault(
                f"{camera.name}: the video ends after {last + 1} of the {len(numbers)} frames that its "
                "header tells of; perhaps it is cut short"
            )

    def _track(self, steps: Iterator[dict[str, Frame]], write: _Write, start: int) -> None:
        """Follows one person in each camera."""
        names = [camera.name for camera in self.cameras]
        last = {
            view: people[0]
            for view, camera in enumerate(self.cameras)
            if (before := _before(camera, start)) is not None
            and (people := people_in(self.out, camera.name, before))
        }
        for step in steps:
            frames = {view: step[name] for view, name in enumerate(names) if name in step}
            pixels = {view: f.pixels for view, f in frames.items() if f.pixels is not None}

            def find(jobs: Sequence[Job], frames=frames, pixels=pixels) -> list[Person]:
                cuts = (self._cut(pixels[v], box, names[v], frames[v].number) for v, box in jobs)
                return list(self._found(cuts, len(names)))

            sizes = {view: (p.shape[1], p.shape[0]) for view, p in pixels.items()}
            number = min(frame.number for frame in frames.values())
            found = track(find, sizes, last, number)
            last = {**{v: person for v, person in last.items() if v not in frames}, **found}
            for view, frame in frames.items():
                self._write(write, names[view], frame.number, [found[view]] if view in found else [])

    def _look(self, steps: Iterator[dict[str, Frame]], write: _Write) -> None:
        """Looks in boxes that are known before."""
        waiting: deque[_Pending] = deque()

        def write_ready() -> None:
            while waiting and len(waiting[0].people) == waiting[0].wanted:
                ready = waiting.popleft()
                self._write(write, ready.camera, ready.number, ready.people)

        def cuts() -> Iterator[_Cut]:
            for step in steps:
                for name, frame in step.items():
                    boxes = np.zeros((0, 5)) if frame.pixels is None else self._usable(name, frame)
                    waiting.append(_Pending(name, frame.number, len(boxes), []))
                    write_ready()
                    for box in boxes:
                        assert frame.pixels is not None
                        yield self._cut(frame.pixels, box[:4], name, frame.number)

        for person in self._found(cuts(), self.plan.batch):
            waiting[0].people.append(person)
            write_ready()

    def _usable(self, camera: str, frame: Frame) -> NDArray[np.float64]:
        """The frame's boxes cut off at the picture's edges; those outside of it are told and left out."""
        assert frame.pixels is not None
        size = frame.pixels.shape[1], frame.pixels.shape[0]
        boxes = self.plan.boxes(camera, frame.number, size)
        clipped, inside = clip_boxes(boxes, size)
        for box in boxes[~inside]:
            self._useless += 1
            if self._useless <= TOLD:
                shown = " ".join(f"{value:.6g}" for value in box[:4])
                self.note(
                    f"the box {shown} of frame {frame.number} of {camera} is left out: it has no part in the "
                    f"picture of {size[0]} by {size[1]} px"
                )
        return clipped[inside]

    def _cut(self, pixels: NDArray[np.uint8], box: NDArray[np.float64], camera: str, frame: int) -> _Cut:
        size = self.finder.size
        matrix = crop_matrix(*padded_box(box, size), size, udp=self.finder.udp)
        return _Cut(crop_pixels(pixels, matrix, size), matrix, camera, frame)

    def _found(self, cuts: Iterator[_Cut], batch: int) -> Iterator[Person]:
        """The person in each crop, in their order; batches all have one size, for which all is compiled."""
        chunk: list[_Cut] = []
        for cut in cuts:
            chunk.append(cut)
            if len(chunk) == batch:
                yield from self._people(chunk, batch)
                chunk = []
        if chunk:
            yield from self._people(chunk, batch)

    def _people(self, cuts: list[_Cut], batch: int) -> Iterator[Person]:
        filled = cuts + [cuts[-1]] * (batch - len(cuts))
        crops = Crops(
            np.stack([cut.pixels for cut in filled]),
            np.stack([cut.matrix for cut in filled]),
            [cut.camera for cut in filled],
            [cut.frame for cut in filled],
        )
        found = self.finder.find(crops)
        points = picture_keypoints(np.asarray(found.keypoints), crops.matrices)
        confidence = np.clip(np.asarray(found.score, np.float64), 0, 1).round(_CONFIDENCE_DIGITS)
        people = np.concatenate([points.round(_PX_DIGITS), confidence[..., None]], axis=-1)
        people[(confidence == 0) | ~np.isfinite(people).all(axis=-1)] = np.nan
        yield from people[: len(cuts)]

    def _write(self, write: _Write, camera: str, number: int, people: list[Person]) -> None:
        if number not in self.done[camera]:
            self.n_new += 1
        write(frame_path(self.out, camera, number), people)


def crop_pixels(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The crop [h w 3] of a picture; black where it leaves it.

    A crop that halves the picture or more is taken larger and averaged, as `pictures.crop_jpeg` takes it from
    a picture that was decoded smaller: pixels between those that are looked at would be lost.

    Args:
        pixels: uint8 [H W 3].
        matrix: px of the picture to px of the crop.
        size: height and width of the crop, px.
    """
    cv2 = import_cv2()
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    times = next((n for n in _SUPERSAMPLED if scale * n <= 1), 1)
    onto = times * matrix
    onto[:, 2] += (times - 1) / 2
    crop = cv2.warpAffine(pixels, onto, (size[1] * times, size[0] * times), flags=cv2.INTER_LINEAR)
    return crop if times == 1 else cv2.resize(crop, (size[1], size[0]), interpolation=cv2.INTER_AREA)


_Write = Callable[[Path, list[Person]], None]


@contextmanager
def _writer() -> Iterator[_Write]:
    """Writes files by threads, for each waits for the disk; all are there when it is left."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_WRITERS) as pool:

        def write(path: Path, people: list[Person]) -> None:
            waiting.append(pool.submit(write_openpose_frame, path, people))
            while len(waiting) > _BACKLOG or (waiting and waiting[0].done()):
                waiting.popleft().result()

        yield write
        for future in waiting:
            future.result()


def _steps(cameras: Sequence[Camera], start: int, threads: int) -> Generator[dict[str, Frame]]:
    """Frames of one number together, from the first number on; a camera without that frame is left out."""
    readers = {camera.name: camera.frames(start, threads) for camera in cameras}
    try:
        heads = {name: next(reader, None) for name, reader in readers.items()}
        while numbers := [frame.number for frame in heads.values() if frame is not None]:
            now = min(numbers)
            step = {name: f for name, f in heads.items() if f is not None and f.number == now}
            yield step
            heads |= {name: next(readers[name], None) for name in step}
    finally:
        for reader in readers.values():
            reader.close()


def _first_missing(cameras: Sequence[Camera], done: Mapping[str, set[int]]) -> int:
    """The first frame of any camera that is not done, or else the one after the last."""
    missing, after = [], 0
    for camera in cameras:
        there = done[camera.name]
        after = max(after, max(there, default=-1) + 1)
        known = camera.numbers
        if known is None:
            missing.append(next(n for n in itertools.count() if n not in there))
        else:
            missing += [next(n for n in known if n not in there)] if set(known) - there else []
    return min(missing, default=after)


def _before(camera: Camera, start: int) -> int | None:
    """The number of its last frame before another."""
    if camera.numbers is None:
        return start - 1 if start > 0 else None
    return max((n for n in camera.numbers if n < start), default=None)


def _count(cameras: Sequence[Camera], start: int) -> int | None:
    """Frames of all cameras from one on; None where a video doesn't say how many it has."""
    if any(camera.numbers is None for camera in cameras):
        return None
    return sum(sum(n >= start for n in camera.numbers or ()) for camera in cameras)
