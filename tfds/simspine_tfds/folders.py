"""The folder of a prepared data set: one build at a time, and nothing half done left in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorflow_datasets.core import constants

from simspine_jax.errors import SimspineError
from simspine_jax.io.files import make_folder
from simspine_jax.pipeline.records import digest_of

LARGE_FILE = 1 << 30
"""Bytes; larger files are known by size and time, for reading them takes longer than a second or two."""

_ASIDE = "replaced."
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `Path` makes one stroke of two; a drive is one letter


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other builds of this data set out, and takes away what a killed one has left.

    The lock is the system's, so it ends with the process, however that ends.

    Raises:
        SimspineError: another process builds it, or the folder can't be written.
    """
    make_folder(folder.parent)
    with open(folder.parent / ".lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SimspineError(
                f"{folder} is being built by another process; valid is to wait for it, or another --data-dir"
            ) from None
        _tidy(folder)
        yield


def _tidy(folder: Path) -> None:
    aside = folder.with_name(f"{_ASIDE}{folder.name}")
    if aside.exists():  # a run that was to replace the data set was killed
        if folder.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, folder)
    for left in folder.parent.glob(f"{constants.INCOMPLETE_PREFIX}*_{folder.name}"):
        shutil.rmtree(left, ignore_errors=True)


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """Tells sets of files apart by names and contents; by sizes and times where reading them takes long."""
    return digest_of(*(f"{path.relative_to(folder)} {_content(path)}".encode() for path in files))


def _content(path: Path) -> str:
    about = path.stat()
    if about.st_size > LARGE_FILE:
        return f"{about.st_size} {about.st_mtime_ns}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_local(data_dir: object) -> None:
    """Refuses what is no folder of this machine's file system.

    Raises:
        SimspineError: it is an address, such as ``gs://bucket``.
    """
    if data_dir is not None and _ADDRESS.match(os.fspath(data_dir)):  # type: ignore[arg-type]
        raise SimspineError(
            f"{os.fspath(data_dir)} is no folder of a file system; valid is a folder that is mounted here, "  # type: ignore[arg-type]
            "and by all workers where Beam builds"
        )


@contextmanager
def set_aside(folder: Path) -> Iterator[None]:
    """Moves a data set away while another takes its place, and back where none does."""
    aside = folder.with_name(f"{_ASIDE}{folder.name}")
    os.rename(folder, aside)
    try:
        yield
    finally:
        if folder.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, folder)
