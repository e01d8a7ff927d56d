"""Errors that a caller or the command line shows as one sentence.

Each message says what is wrong, where (file, line, XML path) and what would be valid.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

NEAR = 0.7
"""Share of letters that a name and the one meant have in common, as difflib counts them."""

MISSPELT = 0.8
"""Likewise where nobody asked, so that names which are merely alike go unmentioned."""


def one_line(text: str, limit: int = 300) -> str:
    """Another program's message as one printable line of at most ``limit`` characters."""
    return printable(" ".join(text.split()), limit)


def printable(text: str, limit: int = 300) -> str:
    """The text cut to ``limit`` characters, with those that can't be seen escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The first ``limit`` names for a sentence, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def nearest(name: str, valid: Iterable[str], cutoff: float = NEAR) -> str | None:
    """The valid name that is written most like this one, case and punctuation apart; None if none is near."""
    by_letters = {_letters(other): other for other in valid}
    found = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=cutoff)
    return by_letters[found[0]] if found else None


def misspelt(name: str, valid: Iterable[str]) -> str | None:
    """The name that this one is likely a slip of; never one of another side or number, as RKnee of LKnee."""
    other = nearest(name, valid, MISSPELT)
    if other is None:
        return None
    here, there = Counter(_letters(name)), Counter(_letters(other))
    differing = set(here - there) | set(there - here)
    return None if differing & set("lr0123456789") else other


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name


class SimspineError(Exception):
    """Base of every error that bad input can cause; the command line prints it and exits with 2."""


class FileFormatError(SimspineError):
    """A file can't be read as the format that it should have."""


class UnsupportedModelError(SimspineError):
    """A model holds elements that can't be converted exactly."""


class UnknownNameError(SimspineError):
    """A marker, coordinate, body or joint is not in the model or file."""

    def __init__(self, kind: str, name: str, where: str, valid: Iterable[str]):
        names = list(valid)
        shown = ", ".join(map(printable, names[:60])) + (", …" if len(names) > 60 else "")
        near = nearest(name, names)
        has = "it has" if near is None else f"did you mean '{printable(near)}'? It has"
        super().__init__(f"{kind} '{printable(name)}' is not in {where}; {has}: {shown or 'none'}")


class ShapeError(SimspineError):
    """An array has the wrong shape, type or values."""


class MissingDependencyError(SimspineError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'simspine-jax[{extra}]'"
        )
