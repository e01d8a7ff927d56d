"""Pictures and videos of one or several cameras, read frame by frame.

A camera is a folder of pictures or a video, and is called as that. Videos start at frame 0; pictures have the
number that their name ends in where these number frames, else their place in the order of names.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import FileFormatError, SimspineError, listed, one_line
from simspine_jax.io.cells import first_duplicate, is_name
from simspine_jax.io.files import malformed, place, read_bytes, shown
from simspine_jax.pictures import decode_jpeg, import_cv2

PICTURE_SUFFIXES = (".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of pictures that OpenCV reads."""

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv",
)  # fmt: skip
"""Of videos, for which OpenCV has FFmpeg."""

RATE_TOLERANCE = 1e-3
"""Relative difference up to which two videos have one rate that was rounded."""

SPARSE = 2
"""Numbers in the names of pictures that span more than so many times their count are no frame numbers."""

MOST_RATE_HZ, MOST_FRAMES = 1e4, 10_000_000
"""What a video's header says beyond these is no rate and no number of frames."""

AHEAD = 2
"""Frames that are decoded ahead for each thread."""

_NUMBER = re.compile(r"([0-9]{1,6})$")
_VALID = f"pictures ({' '.join(PICTURE_SUFFIXES)}) or videos ({' '.join(VIDEO_SUFFIXES)})"


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a camera.

    Attributes:
        number: of the frame.
        name: for people: the picture's file, or the frame of a video.
        pixels: uint8 [H W 3], RGB; None where it can't be read.
        fault: why it can't.
    """

    number: int
    name: str
    pixels: NDArray[np.uint8] | None
    fault: str = ""


@dataclass(frozen=True)
class PictureCamera:
    """Pictures of one camera.

    Attributes:
        name: of the camera.
        paths: in the order of the frames.
        numbers: of the frames, increasing.
    """

    name: str
    paths: tuple[Path, ...]
    numbers: tuple[int, ...]
    rate_hz: None = None

    @property
    def stems(self) -> Mapping[str, int]:
        """The frame of each picture by its name without ending."""
        return {path.stem: number for path, number in zip(self.paths, self.numbers, strict=True)}

    def frames(self, start: int = 0, threads: int = 1) -> Generator[Frame]:
        """Reads from a frame number on, decoding ahead; a picture that can't be read has no pixels.

        Args:
            start: the first frame to be read.
            threads: that decode.
        """
        wanted = zip(self.paths, self.numbers, strict=True)
        return _ahead((partial(_read, path, n) for path, n in wanted if n >= start), threads)


@dataclass(frozen=True)
class VideoCamera:
    """A video of one camera, which is never held as a whole.

    Attributes:
        name: of the camera.
        path: of the file.
        numbers: of the frames that its header promises; None where it doesn't say.
        rate_hz: frames per second; None where its header doesn't say.
        stems: none: frames of a video have no names.
    """

    name: str
    path: Path
    numbers: range | None
    rate_hz: float | None
    stems: Mapping[str, int] = field(default_factory=dict)

    def frames(self, start: int = 0, threads: int = 1) -> Generator[Frame]:
        """Reads from a frame number on, decoding ahead in one thread, until the file ends.

        Those before it are decoded too: where a frame begins in the file is not always known.

        Raises:
            FileFormatError: it can't be opened any more.
        """
        with closing(_Capture(self.path)) as capture:
            capture.skip(start)
            reads = (partial(capture.read, f"{self.path.name}, frame {n}", n) for n in itertools.count(start))
            with closing(_ahead(reads, 1)) as found:
                for frame in found:
                    if frame.pixels is None:
                        return
                    yield frame


Camera = PictureCamera | VideoCamera


@dataclass(frozen=True)
class Cameras:
    """What was found.

    Attributes:
        cameras: with names that differ.
        failed: of the others: why they can't be read.
        notes: what is worth knowing.
    """

    cameras: tuple[Camera, ...]
    failed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Capture:
    """OpenCV's reader of a video."""

    def __init__(self, path: Path):
        cv2 = import_cv2()
        self._cv2, self._capture = cv2, cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            self._capture.release()
            empty = path.is_file() and not path.stat().st_size
            what = "the file is empty" if empty else "it can't be opened as a video; perhaps it is cut short"
            raise malformed(path, None, what, "a whole video that FFmpeg reads")

    @property
    def rate_hz(self) -> float | None:
        rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        return rate if math.isfinite(rate) and 0 < rate <= MOST_RATE_HZ else None

    @property
    def count(self) -> int | None:
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        return int(count) if math.isfinite(count) and 0 < count <= MOST_FRAMES else None

    def skip(self, count: int) -> None:
        for _ in range(count):
            if not self._capture.grab():
                return

    def read(self, name: str, number: int) -> Frame:
        there, pixels = self._capture.read()
        if not there:
            return Frame(number, name, None, "the video ends")
        return Frame(number, name, self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB, dst=pixels))

    def close(self) -> None:
        self._capture.release()


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture as uint8 [H W 3], RGB, turned as its EXIF says; grey ones too, of 16 bits the upper 8.

    Transparency is left out.

    Raises:
        FileFormatError: it is missing, empty, or can't be decoded.
    """
    contents = read_bytes(path)
    if not contents:
        raise malformed(path, None, "the file is empty", "a picture")
    try:
        return decode_jpeg(contents)
    except FileFormatError:
        what = f"its {len(contents)} bytes can't be decoded as a picture"
        raise malformed(path, None, what, "a whole picture that OpenCV reads") from None


def _read(path: Path, number: int) -> Frame:
    try:
        return Frame(number, path.name, read_picture(path))
    except FileFormatError as error:
        return Frame(number, path.name, None, str(error))


def _ahead(tasks: Iterable[Callable[[], Frame]], threads: int) -> Generator[Frame]:
    """Results of tasks in their order, a few computed ahead; one thread does them one after another."""
    source = iter(tasks)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(task) for task in itertools.islice(source, AHEAD * threads))
        while waiting:
            done = waiting.popleft()
            waiting.extend(pool.submit(task) for task in itertools.islice(source, 1))
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


# --- finding ---


def find_cameras(paths: Sequence[Path]) -> Cameras:
    """The cameras in files and folders.

    One path may be a picture, a video, a folder of pictures, or a folder of cameras: of videos, or of folders
    with either pictures or one video each. Several may be pictures of one camera, or a camera each. Hidden
    files and folders are passed over, and so are folders without pictures or videos in a folder of cameras.

    Args:
        paths: at least one.

    Raises:
        FileFormatError: a path is none of these, or no camera can be read.
        SimspineError: names can't be told apart or are no names, or rates differ.
    """
    for path in paths:
        if not path.exists():
            raise malformed(path, None, "there is no such file or folder", _VALID)
    if len(paths) == 1:
        groups = _groups(paths[0])
    elif all(_is_picture(path) for path in paths):
        groups = [(paths[0].absolute().parent.name, list(paths))]
    else:
        groups = [group for path in paths for group in _groups(path)]
    _check_groups(groups)
    numbers, notes = _numbered({name: files for name, files in groups if _is_picture(files[0])})
    cameras: list[Camera] = []
    failed: list[str] = []
    for name, files in groups:
        try:
            cameras.append(numbers[name] if name in numbers else open_video(files[0], name))
        except FileFormatError as error:
            failed.append(str(error))
    if not cameras:
        raise FileFormatError(failed[0])
    return Cameras(tuple(cameras), tuple(failed), tuple(notes))


def common_rate(cameras: Iterable[Camera], given: float | None = None) -> float | None:
    """Frames per second of all cameras: as given, or else as their files say; None where they don't.

    Raises:
        SimspineError: nothing is given and they have different ones.
    """
    rates = {camera.name: camera.rate_hz for camera in cameras if camera.rate_hz is not None}
    if given is not None or not rates:
        return given
    low, high = min(rates, key=lambda n: rates[n]), max(rates, key=lambda n: rates[n])
    if rates[high] - rates[low] > RATE_TOLERANCE * rates[high]:
        raise SimspineError(
            f"The videos {low} and {high} have {rates[low]:.9g} and {rates[high]:.9g} frames per second; "
            "valid is one rate for all, or the true one by --rate"
        )
    return rates[low]


def open_video(path: Path, name: str | None = None) -> VideoCamera:
    """A video, of which the header is read.

    Args:
        path: of the file.
        name: of the camera; default: the file's.

    Raises:
        FileFormatError: it can't be opened, or has no frames.
    """
    with closing(_Capture(path)) as capture:
        count, rate = capture.count, capture.rate_hz
        if capture.read("", 0).pixels is None:
            raise malformed(path, None, "no frame of it can be read", "a video with frames")
    return VideoCamera(name or path.stem, path, None if count is None else range(count), rate)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _groups(path: Path) -> list[tuple[str, list[Path]]]:
    """Cameras' names and files: pictures, or one video."""
    if not path.is_dir():
        if not (_is_picture(path) or _is_video(path)):
            raise malformed(path, None, f"the ending is {shown(path.suffix)}", _VALID)
        return [(path.stem, [path])]
    pictures, videos = _inside(path)
    folders = {inner: _inside(inner) for inner in _visible(path) if inner.is_dir()}
    folders = {inner: found for inner, found in folders.items() if any(found)}
    if not (pictures or videos or folders):
        raise malformed(path, None, "it holds no pictures and no videos, nor do folders in it", _VALID)
    if pictures and (videos or folders):
        what = "it holds pictures beside " + ("videos" if videos else "folders of them")
        raise malformed(path, None, what, "either pictures of one camera, or videos and folders of cameras")
    if pictures:
        return [(path.absolute().name, pictures)]
    groups = [(video.stem, [video]) for video in videos]
    for inner, (of_it, clips) in folders.items():
        if bool(of_it) + len(clips) > 1:
            what = f"it holds {len(of_it)} pictures and {len(clips)} videos"
            raise malformed(inner, None, what, "the pictures of one camera, or one video")
        groups.append((inner.name, of_it or clips))
    return sorted(groups)


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    files = [path for path in _visible(folder) if path.is_file()]
    return [p for p in files if _is_picture(p)], [p for p in files if _is_video(p)]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__")))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise malformed(folder, None, f"it can't be read ({reason})", "a readable folder") from None


def _check_groups(groups: Sequence[tuple[str, list[Path]]]) -> None:
    names = [name for name, _ in groups]
    for name, files in groups:
        if not is_name(name) or "/" in name:
            raise malformed(files[0], None, f"its camera is called {shown(name)}", "printable text, trimmed")
    if (twice := first_duplicate(names)) is not None:
        where = [place(files[0]) for name, files in groups if name == twice]
        raise SimspineError(
            f"{where[0]} and {where[1]} are of cameras of one name, {shown(twice)}; "
            "valid are names that differ"
        )


def _numbered(groups: Mapping[str, list[Path]]) -> tuple[dict[str, PictureCamera], list[str]]:
    """Pictures of all cameras in order with the numbers of their frames, by one rule for all of them."""
    by_name = {name: _numbers(files) for name, files in groups.items()}
    cameras: dict[str, PictureCamera] = {}
    if groups and _are_frames(list(by_name.values())):
        for name, files in groups.items():
            ordered = sorted(zip(by_name[name] or (), files, strict=True))
            cameras[name] = PictureCamera(name, tuple(p for _, p in ordered), tuple(n for n, _ in ordered))
        return cameras, []
    for name, files in groups.items():
        ordered = sorted(files, key=_natural)
        cameras[name] = PictureCamera(name, tuple(ordered), tuple(range(len(files))))
    counts = {len(files) for files in groups.values()}
    if len(counts) < 2:
        return cameras, []
    told = listed([f"{name} {len(files)}" for name, files in groups.items()])
    return cameras, [
        f"cameras have unlike numbers of pictures ({one_line(told)}) and their names number no frames, so "
        "that those in the same place are taken to be of one time"
    ]


def _numbers(files: Sequence[Path]) -> list[int] | None:
    """What the names end in; None where they number no frames."""
    matches = [_NUMBER.search(path.stem) for path in files]
    numbers = [int(match.group(1)) for match in matches if match is not None]
    if len(set(numbers)) < len(files) or max(numbers) - min(numbers) >= SPARSE * len(files):
        return None
    return numbers


def _are_frames(all_numbers: Sequence[list[int] | None]) -> bool:
    """Whether numbers of all cameras count the same frames: half of the least camera's span is common."""
    known = [numbers for numbers in all_numbers if numbers is not None]
    if len(known) < len(all_numbers):
        return False
    first, last = max(map(min, known)), min(map(max, known))
    least = min(max(numbers) - min(numbers) + 1 for numbers in known)
    return 2 * (last - first + 1) >= least


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which ``a10`` comes after ``a9``."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]
