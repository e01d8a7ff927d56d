"""Whole-file reading and writing, and how errors name places in files."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from simspine_jax.errors import FileFormatError, SimspineError

PathLike = str | os.PathLike[str]


def place(path: PathLike, line: int | None = None) -> str:
    """``walk.trc:12``: a file and, if given, a line, fit for a one-line message."""
    name = os.fspath(path)
    name = name if name.isprintable() else repr(name)
    return name if line is None else f"{name}:{line}"


def shown(text: str, limit: int = 60) -> str:
    """A piece of a file in quotes, cut to ``limit`` characters and with control characters escaped."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def malformed(path: PathLike, line: int | None, what: str, valid: str) -> FileFormatError:
    """The error for something wrong in a file: where, what, and what would be valid, in one sentence."""
    return FileFormatError(f"{place(path, line)}: {what}; valid is {valid}")


def read_bytes(path: PathLike) -> bytes:
    """All bytes of a regular file; raises `FileFormatError` where there is none to read."""
    try:
        # A pipe or a device may block or never end, so only regular files are opened.
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise malformed(path, None, "this is a folder", "the path of a file")
        if not stat.S_ISREG(mode):
            raise malformed(path, None, "this is not a regular file", "the path of a file")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise malformed(path, None, "there is no such file", "the path of an existing file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise malformed(path, None, f"it can't be read ({reason})", "a readable file") from None
    except ValueError:  # a NUL character inside the path
        raise malformed(path, None, "this is not a path", "the path of a file") from None


def read_text(path: PathLike) -> str:
    """The text of a file with ``\\n`` line ends and without a byte order mark.

    UTF-8 is tried first. Bytes that are not UTF-8 are read as Latin-1, which is what the Windows programs
    that write these formats use in practice.

    Raises:
        FileFormatError: the file is missing, a folder, unreadable, empty, or holds NUL bytes.
    """
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if "\0" in text:
        raise malformed(path, None, "it holds NUL bytes, so it is not text", "UTF-8 or Latin-1 text")
    if not text.strip():
        raise malformed(path, None, "the file is empty", "a file with content")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def filled_lines(text: str) -> list[tuple[int, str]]:
    """Lines that hold more than white space, each with its number counted from 1."""
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


@contextmanager
def atomic_write(path: PathLike, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing that appears at ``path`` whole or not at all.

    The content goes to a temporary name in the same folder, is synced to the disk and then renamed. On any
    error inside the block the temporary is removed and what was at ``path`` stays. Missing parent folders
    are made. Text is UTF-8 with ``\\n`` line ends.

    Raises:
        SimspineError: the folder can't be made or written, or ``path`` is a folder.
    """
    # A link is followed, so that the file it points to is replaced and not the link itself.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    if target.is_dir():
        raise SimspineError(f"{place(path)}: this is a folder; valid is the path of a file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = open(temporary, "xb") if binary else open(temporary, "x", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise _unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: PathLike) -> None:
    """Makes a folder for results, with its parents, and sees that files can be written there.

    Raises:
        SimspineError: it can't be made or written, or is a file.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise SimspineError(f"{place(path)} is a file; valid is a folder, also a new one") from None
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: PathLike, error: OSError) -> SimspineError:
    reason = error.strerror or type(error).__name__
    return SimspineError(f"{place(path)}: it can't be written ({reason}); valid is a path that can be")
