"""Pictures that lie as files in a folder: looked at once, and read when they are asked for.

A file's bytes are handed on as they are, so ``Picture.jpeg`` of such a picture is a JPEG file, a PNG file or
another that OpenCV reads. `pictures.decode_jpeg` and `pictures.crop_jpeg` decode all of them to RGB of eight
bits: grey becomes three equal colours, an alpha channel is left out, and the picture is turned as its EXIF
says. Where a JPEG file proper is needed, decode it and encode it again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simspine_jax.datasets.records import RecordSequence, bytes_of
from simspine_jax.errors import FileFormatError, MissingDependencyError, one_line
from simspine_jax.io.files import malformed, place, read_bytes
from simspine_jax.pictures import Picture, decode_jpeg

TAIL = 4096
"""Bytes at a file's end in which the mark of its end is looked for; cameras may write a little after it."""

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_ORIENTATION = 274  # of EXIF
_TURNED = (5, 6, 7, 8)  # orientations in which width and height change places

Watcher = Callable[[int, int], None]
"""Called with how many files were looked at, and how many there are."""


@dataclass(frozen=True)
class Problem:
    """A file, or a set of files, that is left out, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def picture_size(path: Path, *, thorough: bool = False) -> tuple[int, int]:
    """Width and height of a picture when it is turned as its EXIF says, px; its pixels are not decoded.

    Args:
        path: of the file.
        thorough: whether to decode it after all, which finds damage in its middle.

    Raises:
        FileFormatError: it is missing, empty, cut short or no picture; the sentence is about the path.
        MissingDependencyError: Pillow or OpenCV is not installed.
    """
    try:
        if not path.stat().st_size:
            raise malformed(path, None, "the file is empty", "a picture")
        kind, size = _header(path)
        ends = _end_of(path)
    except FileNotFoundError:
        raise malformed(path, None, "there is no such file", "the path of a picture") from None
    # What Pillow raises for damaged headers, by kind of file.
    except (OSError, ValueError, SyntaxError, EOFError, KeyError) as error:
        what = getattr(error, "strerror", None) or one_line(str(error), 120) or type(error).__name__
        raise malformed(path, None, f"it can't be read ({what})", "a picture such as JPEG or PNG") from None
    if thorough or kind not in _ENDS or _ENDS[kind] not in ends:
        _check_decodes(path)
    return size


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("pillow", "images", "Reading pictures") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # very large pictures, and EXIF blocks that are damaged in part
        with Image.open(path) as image:
            width, height = image.size
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))  # the image's own getexif() would decode a PNG
            turned = exif.get(_ORIENTATION) in _TURNED
            return image.format or "", (height, width) if turned else (width, height)


def _end_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - TAIL, 0))
        return file.read()


def _check_decodes(path: Path) -> None:
    try:
        decode_jpeg(read_bytes(path), reduction=8)
    except FileFormatError as error:
        if str(path) in str(error):
            raise
        raise malformed(path, None, "it is damaged or cut short", "a whole picture") from None


def picture_sizes(
    paths: Sequence[Path], *, thorough: bool = False, watch: Watcher | None = None
) -> Iterator[tuple[int, int] | Problem]:
    """`picture_size` of many files in their order, by threads; a problem takes the place of a size.

    Args:
        paths: of the files.
        thorough: as there.
        watch: told the progress.
    """

    def look(path: Path) -> tuple[int, int] | Problem:
        try:
            return picture_size(path, thorough=thorough)
        except FileFormatError as error:
            return Problem(place(path), str(error).removeprefix(f"{place(path)}: "))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, found in enumerate(pool.map(look, paths), start=1):
            if watch is not None:
                watch(done, len(paths))
            yield found


class PictureFiles(RecordSequence[Picture]):
    """People in pictures that lie in files; of several people in a picture, each is a record.

    Args:
        paths: P files.
        of_pictures: fields of `Picture` by name, each with P values.
        of_people: fields by name, each with N values; all but ``jpeg`` are in one of the two.
        picture_of: ``[N]``, the number of each person's picture among the P.
        problems: what was left out because it can't be used.
        notes: what else was left out, in sentences.
        scored_boxes: ``[N 4]`` left, top, width and height of the people, px, by whose sides scores divide
            distances; None where these are ``box``, which crops are made of.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        of_pictures: Mapping[str, Sequence[Any] | NDArray[Any]],
        of_people: Mapping[str, Sequence[Any] | NDArray[Any]],
        picture_of: NDArray[np.int64],
        problems: Sequence[Problem] = (),
        notes: Sequence[str] = (),
        scored_boxes: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(Picture)
        self.paths = tuple(paths)
        self.picture_of, self.scored_boxes = picture_of, scored_boxes
        self.problems, self.notes = tuple(problems), tuple(notes)
        self._of_pictures, self._of_people = of_pictures, of_people

    def __len__(self) -> int:
        return len(self.picture_of)

    def known(self) -> Iterator[bytes]:
        """All that is known of people and pictures, and the pictures' names."""
        yield "\n".join(path.name for path in self.paths).encode(errors="surrogateescape")
        yield bytes_of(self.picture_of)
        yield bytes_of(self.scored_boxes)
        for columns in (self._of_pictures, self._of_people):
            for name, column in sorted(columns.items()):
                yield name.encode()
                yield bytes_of(column)

    def where(self, index: int) -> str:
        """The path of the picture."""
        return place(self.paths[int(self.picture_of[index])])

    def read(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """These fields of one record; the file is read where ``jpeg`` is among them."""
        picture = int(self.picture_of[index])
        found: dict[str, Any] = {}
        for name in names:
            if name == "jpeg":
                found[name] = read_bytes(self.paths[picture])
            else:
                value = (
                    self._of_people[name][index]
                    if name in self._of_people
                    else self._of_pictures[name][picture]
                )
                found[name] = value.item() if isinstance(value, np.generic) else value
        return found


@runtime_checkable
class PeopleInPictures(Protocol):
    """What a sequence may know of its people beside their records, as `PictureFiles` has it."""

    @property
    def picture_of(self) -> NDArray[np.int64]:
        """Numbers of the people's pictures."""
        ...

    @property
    def scored_boxes(self) -> NDArray[np.float32] | None:
        """Boxes by which distances are divided."""
        ...


def picture_numbers(people: RecordSequence[Picture]) -> NDArray[np.int64]:
    """``[N]`` the number of each person's picture, of his or her own unless the set says more."""
    return people.picture_of if isinstance(people, PeopleInPictures) else np.arange(len(people))


def scored_boxes(people: RecordSequence[Picture]) -> NDArray[np.float32] | None:
    """``[N 4]`` the boxes by which scores divide distances, px; None where these are the records' own."""
    return people.scored_boxes if isinstance(people, PeopleInPictures) else None


def told_problems(problems: Sequence[Problem | str], limit: int = 5) -> list[str]:
    """Sentences about problems: the first of them, and how many more there are."""
    more = len(problems) - limit
    return [*map(str, problems[:limit]), *([f"{more} more files are left out"] if more > 0 else [])]
