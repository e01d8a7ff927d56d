"""Detected keypoints drawn into the pictures that they were found in."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import SimspineError
from simspine_jax.io.files import atomic_write, make_folder, place
from simspine_jax.io.video import Camera, Frame
from simspine_jax.pictures import import_cv2
from simspine_jax.skeleton import KEYPOINT_NAMES, LINKS, OKS_SUBSETS

LEAST = 0.3
"""Keypoints of less confidence are not drawn; triangulation doesn't use them either."""

RATE_HZ = 25.0
"""Of videos of pictures whose rate nobody said."""

LEAST_RATE_HZ, MOST_RATE_HZ = 0.01, 65535.0
"""Of videos: MPEG-4 has fractions of numbers up to the latter, and OpenCV's have up to three decimals."""

QUALITY = 90
"""Of JPEG files."""

_LEFT, _RIGHT, _MIDDLE = (255, 140, 0), (60, 130, 255), (40, 220, 60)
_LINE_PX = 400
"""Lines are a pixel thick for so many of the picture's shorter side."""

People = Callable[[int], Sequence[NDArray[np.float64]]]
"""The people of a frame, each [K 3] x and y, px, and confidence; NaN where missing."""


def _color(name: str) -> tuple[int, int, int]:
    return {"left": _LEFT, "right": _RIGHT}.get(name.split("_")[0], _MIDDLE)


_COLORS = tuple(map(_color, KEYPOINT_NAMES))
_LINES = (*LINKS, *itertools.pairwise(OKS_SUBSETS["spine"]))


def draw_people(
    pixels: NDArray[np.uint8], people: Sequence[NDArray[np.float64]], least: float = LEAST
) -> NDArray[np.uint8]:
    """A copy of the picture with the 37 keypoints: left ones orange, right ones blue, the spine green.

    Args:
        pixels: uint8 [H W 3], RGB.
        people: each [37 3] x and y, px, and confidence; NaN where missing.
        least: keypoints of less confidence are left out.
    """
    cv2 = import_cv2()
    drawn = np.ascontiguousarray(pixels).copy()
    thick = max(1, round(min(pixels.shape[:2]) / _LINE_PX))
    for person in people:
        seen = np.nan_to_num(person[:, 2]) >= least
        places = np.nan_to_num(person[:, :2]).clip(-1e4, 1e4).round().astype(int).tolist()
        for a, b in _LINES:
            if seen[a] and seen[b]:
                color = _COLORS[a] if _COLORS[a] == _COLORS[b] else _MIDDLE
                cv2.line(drawn, places[a], places[b], color, thick, cv2.LINE_AA)
        for point, there, color in zip(places, seen.tolist(), _COLORS, strict=True):
            if there:
                cv2.circle(drawn, point, 1 + 2 * thick, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(drawn, point, 2 * thick, color, -1, cv2.LINE_AA)
    return drawn


def write_overlay_pictures(folder: Path, camera: Camera, people: People, threads: int = 1) -> int:
    """Writes each frame that can be read as a JPEG file, named by its number; returns how many.

    Args:
        folder: to write to.
        camera: whose frames are read once more.
        people: of each frame.
        threads: that read.

    Raises:
        SimspineError: the folder can't be written.
    """
    cv2 = import_cv2()
    make_folder(folder)
    count = 0
    with closing(camera.frames(threads=threads)) as frames:
        for frame in frames:
            if frame.pixels is None:
                continue
            drawn = draw_people(frame.pixels, people(frame.number))
            jpeg = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
            with atomic_write(folder / f"{camera.name}_{frame.number:06d}.jpg", binary=True) as file:
                file.write(jpeg.tobytes())
            count += 1
    return count


def video_rate(rate_hz: float | None) -> float:
    """The rate of a video in MPEG-4: the nearest that it can have; `RATE_HZ` where nobody said one.

    Raises:
        SimspineError: there is none that is near.
    """
    if rate_hz is None:
        return RATE_HZ
    if not LEAST_RATE_HZ <= rate_hz <= MOST_RATE_HZ:
        raise SimspineError(
            f"A video can't have {rate_hz:.9g} frames per second; valid is {LEAST_RATE_HZ:g} to "
            f"{MOST_RATE_HZ:g}"
        )
    decimals = next(n for n in (3, 2, 1, 0) if round(rate_hz, n) * 10**n <= MOST_RATE_HZ)
    return round(rate_hz, decimals)


def write_overlay_video(
    path: Path, camera: Camera, people: People, rate_hz: float | None, threads: int = 1
) -> int:
    """Writes all frames as a video (MPEG-4); returns how many, and without one that can be read, writes none.

    Frames that can't be read are black, and those of another size than the first are made as large.

    Args:
        path: of the file, in ``.mp4``.
        camera: whose frames are read once more.
        people: of each frame.
        rate_hz: frames per second, of which it gets the `video_rate`.
        threads: that read.

    Raises:
        SimspineError: the file can't be written, or no video has such a rate.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.mp4")
    video = _Video(temporary, video_rate(rate_hz))
    try:
        with closing(camera.frames(threads=threads)) as frames:
            for frame in frames:
                video.add(frame, people)
        video.close()
        if video.count:
            os.replace(temporary, path)
    finally:
        video.close()
        temporary.unlink(missing_ok=True)
    return video.count


class _Video:
    """A video that begins with the first frame that can be read."""

    def __init__(self, path: Path, rate_hz: float):
        self._path, self._rate_hz, self._writer, self.count = path, rate_hz, None, 0
        self._size: tuple[int, int] = (0, 0)
        self._black = 0

    def add(self, frame: Frame, people: People) -> None:
        """Adds a frame."""
        cv2 = import_cv2()
        if frame.pixels is None and self._writer is None:
            self._black += 1
            return
        writer = self._writer or self._open(cv2, frame)
        drawn = np.zeros((*self._size[::-1], 3), np.uint8)
        if frame.pixels is not None:
            drawn = draw_people(frame.pixels, people(frame.number))
            if drawn.shape[1::-1] != self._size:
                drawn = cv2.resize(drawn, self._size)
        writer.write(drawn[..., ::-1])
        self.count += 1

    def _open(self, cv2: Any, frame: Frame) -> Any:
        assert frame.pixels is not None
        self._size = frame.pixels.shape[1], frame.pixels.shape[0]
        fourcc = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._path), fourcc, self._rate_hz, self._size)
        if not self._writer.isOpened():
            raise SimspineError(f"{place(self._path.parent)}: OpenCV can't write a video there")
        for _ in range(self._black):
            self._writer.write(np.zeros((*self._size[::-1], 3), np.uint8))
        self.count = self._black
        return self._writer

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.release()
