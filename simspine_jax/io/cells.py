"""Numbers, names and times as the text formats write them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.io.files import PathLike, place

MAX_TIME_S = 1e10
"""About 300 years: seconds since 1970 fit, numbers that can't be times do not."""

MIN_STEP_S = 1e-9
"""No camera takes a frame each nanosecond, and a smaller step has no rate in float64."""

_DECIMAL = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,9}))?")
_PLAIN_ROW = re.compile(r"[0-9.+\- \t]*")

# How C and C++ run times print "not a number"; the last four come from Microsoft's.
_NOT_A_NUMBER = frozenset(
    {"nan", "+nan", "-nan", "nan(ind)", "-nan(ind)", "1.#qnan", "-1.#ind", "1.#ind", "-1.#qnan"}
)
_INFINITE = frozenset({"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})


def parse_number(text: str, power: int = 0) -> float:
    """A finite decimal number times ``10**power``, rounded once; NaN where the text says so.

    Shifting the exponent in the text, instead of multiplying, gives the double nearest to the written
    value, so that millimetres become the very metres that a file in metres would hold.

    Raises:
        ValueError: the text is no decimal number, or it is infinite or beyond float64.
    """
    if text.lower() in _NOT_A_NUMBER:
        return math.nan
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError("is infinite" if text.lower() in _INFINITE else "is not a number")
    mantissa, exponent = match.groups()
    value = float(f"{mantissa}e{int(exponent or 0) + power}")
    if math.isinf(value):
        raise ValueError("is too large for a float64")
    return value


def parse_row(cells: Sequence[str], power: int = 0) -> list[float]:
    """Each cell by `parse_number`, blank cells as NaN; raises `CellError` with the index of a bad one."""
    # Rows of digits alone are nearly all of a file, and float() reads those five times faster.
    if _PLAIN_ROW.fullmatch("\t".join(cells)):
        suffix = f"e{power}" if power else ""
        try:
            values = [float(cell + suffix) if cell else math.nan for cell in cells]
        except ValueError:
            pass  # the loop below finds which cell it was
        else:
            if not any(map(math.isinf, values)):
                return values
    values = []
    for index, cell in enumerate(cells):
        try:
            values.append(parse_number(cell, power) if cell else math.nan)
        except ValueError as error:
            raise CellError(index, str(error)) from None
    return values


class CellError(ValueError):
    """A cell of a row is no number."""

    def __init__(self, index: int, reason: str):
        super().__init__(reason)
        self.index = index


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def is_name(text: str) -> bool:
    """Whether a text can be a name in a tab-separated file and in a one-line message."""
    return bool(text) and text.isprintable() and text == text.strip()


def frozen_array(values: ArrayLike) -> NDArray[np.float64]:
    """A read-only float64 copy."""
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def validate_times(times: NDArray[np.float64]) -> None:
    """Refuse what is no float64 [T] of finite seconds that increase by `MIN_STEP_S`, with a `ShapeError`."""
    if times.ndim != 1 or not len(times):
        raise ShapeError(f"times have the shape {times.shape}; valid is [T] with at least one frame")
    _raise_at(times, lambda frame: f"frame {frame + 1}", ShapeError)


def check_times(path: PathLike, lines: Sequence[int] | None, times: NDArray[np.float64]) -> None:
    """Refuse the same times with a `FileFormatError` that names the bad one's line, if there are lines."""
    _raise_at(times, lambda frame: place(path, None if lines is None else lines[frame]), FileFormatError)


def _raise_at(
    times: NDArray[np.float64], where: Callable[[int], str], error: type[ShapeError] | type[FileFormatError]
) -> None:
    bad = ~(np.abs(times) <= MAX_TIME_S)
    if bad.any():
        frame = int(np.argmax(bad))
        raise error(f"{where(frame)}: the time is {times[frame]}; valid is seconds up to {MAX_TIME_S:g}")
    stays = np.diff(times) < MIN_STEP_S
    if stays.any():
        frame = int(np.argmax(stays)) + 1
        raise error(
            f"{where(frame)}: time {times[frame]} follows {times[frame - 1]}; valid is a time that increases"
        )
