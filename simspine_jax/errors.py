"""Errors that a caller or the command line shows as one sentence.

Each message says what is wrong, where (file, line, XML path) and what would be valid.
"""

from __future__ import annotations

from collections.abc import Iterable


def one_line(text: str, limit: int = 300) -> str:
    """Another program's message as one printable line of at most ``limit`` characters."""
    words = " ".join(text.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return shown if len(shown) <= limit else shown[:limit] + "…"


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
        shown = ", ".join(names[:60]) + (", …" if len(names) > 60 else "")
        super().__init__(f"{kind} '{name}' is not in {where}; it has: {shown or 'none'}")


class ShapeError(SimspineError):
    """An array has the wrong shape, type or values."""


class MissingDependencyError(SimspineError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'simspine-jax[{extra}]'"
        )
