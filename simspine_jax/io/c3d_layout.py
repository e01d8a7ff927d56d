"""The bytes of C3D files: header, parameters and points (C3D user guide, www.c3d.org).

A header of one 512-byte block, blocks of parameters, then per frame four values a point and the analogue
values. Numbers are as one of three processors wrote them, points are 16-bit integers with a scale, or
floats. Every length is checked against the file before anything is made of it, so damaged files cost an
error and never memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simspine_jax.io.files import PathLike, malformed

BLOCK = 512
KEY = 0x50
INTEL, DEC, MIPS = 84, 85, 86
MAX_HEADER_FRAME = 65535
"""The header counts frames in 16 bits; longer recordings give their last frame in parameters."""

Values = tuple[str, ...] | tuple[float, ...]

_TYPE_SIZES = {-1: 1, 1: 1, 2: 2, 4: 4}


@dataclass(frozen=True, eq=False)
class C3DContent:
    """What a C3D file holds, in its own units and axes.

    Attributes:
        parameters: texts or numbers by ``GROUP:NAME`` in upper case.
        points: float64 [T, K, 4]: x, y, z and a fourth value that is negative where the point is missing.
        first_frame: number of the first frame, counted from 1.
        rate: frames per second, Hz, as written.
    """

    parameters: dict[str, Values]
    points: NDArray[np.float64]
    first_frame: int
    rate: float

    def texts(self, name: str) -> list[str]:
        """The texts of a parameter; beyond 255 they go on in NAME2, NAME3 and so on."""
        values: list[str] = []
        number, key = 1, name
        while key in self.parameters:
            values += [value for value in self.parameters[key] if isinstance(value, str)]
            number += 1
            key = f"{name}{number}"
        return values


def parse_c3d(path: PathLike, raw: bytes) -> C3DContent:
    """Take a C3D file apart.

    Raises:
        FileFormatError: no C3D file, of an unknown processor, or shorter than it says.
    """
    if len(raw) < 2 * BLOCK or raw[1] != KEY:
        raise malformed(path, None, "there is no C3D header", "a C3D file")
    start = (raw[0] - 1) * BLOCK
    if not BLOCK <= start <= len(raw) - 4:
        raise malformed(path, None, "there are no C3D parameters", "a C3D file")
    processor = raw[start + 3]
    if processor not in (INTEL, DEC, MIPS):
        raise malformed(path, None, f"the processor type is {processor}", "84, 85 or 86")
    words = [int(word) for word in _integers(raw[:20], processor)]
    scale, rate = float(_floats(raw[12:16], processor)[0]), float(_floats(raw[20:24], processor)[0])
    parameters = dict(_read_parameters(path, raw, start + 4, processor))
    _, n_points, n_analogue, first, last, _, _, _, data_block, _ = words
    first, last = _frame_range(path, parameters, first, last)
    points = _read_points(
        path,
        raw[max(data_block - 1, 1) * BLOCK :],
        processor,
        scale,
        (last - first + 1, n_points, n_analogue),
    )
    rates = (_number(parameters, "POINT:RATE"), rate)
    return C3DContent(parameters, points, first, next((hz for hz in rates if hz and hz > 0), rate))


def _read_points(
    path: PathLike, raw: bytes, processor: int, scale: float, counts: tuple[int, int, int]
) -> NDArray[np.float64]:
    """float64 [T, K, 4] from the data section, for T frames of K points and some analogue values."""
    n_frames, n_points, n_analogue = counts
    size, width = (4 if scale < 0 else 2), 4 * n_points + n_analogue
    needed = n_frames * width * size
    if n_frames < 1 or n_points < 1 or needed > len(raw):
        what = f"{n_frames} frames of {n_points} points take {needed} bytes and there are {len(raw)}"
        raise malformed(path, None, what, "a whole C3D file with at least one of both")
    if scale == 0 or not math.isfinite(scale):
        raise malformed(path, None, f"the scale is {scale}", "a finite number other than zero")
    if scale < 0:
        values = _floats(raw[:needed], processor)
    else:
        values = _integers(raw[:needed], processor, signed=True).astype(np.float64)
    points = values.reshape(n_frames, width)[:, : 4 * n_points].reshape(n_frames, n_points, 4).copy()
    if scale >= 0:
        points[..., :3] *= scale
    return points


def _frame_range(path: PathLike, parameters: dict[str, Values], first: int, last: int) -> tuple[int, int]:
    """Numbers of the first and last frame, from the parameters where the header's 16 bits are exhausted."""
    if last < MAX_HEADER_FRAME:
        return first, last
    ends = [_long_number(parameters, f"TRIAL:ACTUAL_{end}_FIELD") for end in ("START", "END")]
    if ends[0] is not None and ends[1] is not None:
        return ends[0], ends[1]
    for name in ("POINT:LONG_FRAMES", "POINT:FRAMES"):
        frames = _number(parameters, name)
        if frames is not None:
            # As a 16-bit parameter this count is unsigned, unlike others.
            count = int(frames) % 2**16 if frames < 0 else int(frames)
            return first, first + count - 1
    what = f"the recording exceeds {MAX_HEADER_FRAME} frames by an unknown number"
    raise malformed(path, None, what, "TRIAL:ACTUAL_END_FIELD")


def _number(parameters: dict[str, Values], name: str) -> float | None:
    """The first number of a parameter, if it is there and finite."""
    values = parameters.get(name, ())
    value = values[0] if values else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _long_number(parameters: dict[str, Values], name: str) -> int | None:
    """A 32-bit number that is stored as its low and its high word."""
    words = parameters.get(name, ())
    low, high = words if len(words) == 2 else (math.nan, math.nan)
    if not (isinstance(low, float) and isinstance(high, float) and math.isfinite(low + high)):
        return None
    return int(low) % 2**16 + 2**16 * (int(high) % 2**16)


def _read_parameters(path: PathLike, raw: bytes, at: int, processor: int) -> Iterator[tuple[str, Values]]:
    """Name and values of each parameter in the records from ``at`` on.

    Groups may be named after their parameters, so names are only joined when all records are read.
    """
    groups: dict[int, str] = {}
    found: list[tuple[int, str, Values]] = []
    while True:
        length, group = _byte(path, raw, at, signed=True), _byte(path, raw, at + 1, signed=True)
        if length == 0:
            break
        name_end = at + 2 + abs(length)
        name = _text(_take(path, raw, at + 2, abs(length))).upper()
        step = int(_integers(_take(path, raw, name_end, 2), processor)[0])
        # The record ends where the next one starts; the last one has no next.
        record = raw[name_end + 2 : name_end + step if step else len(raw)]
        if group < 0:
            groups[-group] = name
        else:
            found.append((group, name, _read_values(path, record, processor)))
        if step == 0:
            break
        at = name_end + step
    for group, name, values in found:
        yield f"{groups.get(group, '')}:{name}", values


def _read_values(path: PathLike, record: bytes, processor: int) -> Values:
    """The values in a record: its type, its dimensions, then the values, the first dimension fastest."""
    kind, n_dimensions = _byte(path, record, 0, signed=True), _byte(path, record, 1)
    if kind not in _TYPE_SIZES:
        raise malformed(path, None, f"a parameter has the type {kind}", "-1, 1, 2 or 4")
    shape = list(_take(path, record, 2, n_dimensions))
    values = _take(path, record, 2 + n_dimensions, math.prod(shape) * _TYPE_SIZES[kind])
    if kind == -1:
        length = shape[0] if shape else 1
        return tuple(_text(values[i : i + length]) for i in range(0, len(values), max(length, 1)))
    if kind == 4:
        return tuple(_floats(values, processor).tolist())
    numbers = _integers(values, processor, signed=True) if kind == 2 else np.frombuffer(values, np.int8)
    return tuple(float(number) for number in numbers)


def _byte(path: PathLike, raw: bytes, at: int, *, signed: bool = False) -> int:
    return int.from_bytes(_take(path, raw, at, 1), signed=signed, byteorder="little")


def _take(path: PathLike, raw: bytes, at: int, count: int) -> bytes:
    if at + count > len(raw):
        raise malformed(path, None, "its parameters are cut off", "a whole C3D file")
    return raw[at : at + count]


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.strip(" \0")


def _integers(raw: bytes, processor: int, *, signed: bool = False) -> NDArray[np.integer]:
    order = ">" if processor == MIPS else "<"
    return np.frombuffer(raw, f"{order}{'i' if signed else 'u'}2")


def _floats(raw: bytes, processor: int) -> NDArray[np.float64]:
    if processor == DEC:
        # A VAX float has its 16-bit halves the other way round and an exponent that counts 2 more.
        halves = np.frombuffer(raw, "<u2").reshape(-1, 2)[:, ::-1]
        values, factor = np.ascontiguousarray(halves).view("<f4")[:, 0], 0.25
    else:
        values, factor = np.frombuffer(raw, ">f4" if processor == MIPS else "<f4"), 1.0
    with np.errstate(invalid="ignore"):  # bytes of a damaged file may spell a signalling NaN
        return values.astype(np.float64) * factor
