"""The folder of a prepared data set: one build at a time, and nothing half done left in it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorflow_datasets.core import constants

from simspine_jax.errors import SimspineError
from simspine_jax.io.files import make_folder
from simspine_jax.pipeline.records import digest_of

_ASIDE = "replaced."


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


def digest_of_names(folder: Path) -> str:
    """Tells folders of files apart by names and sizes; reading a release whole would take minutes."""
    files = ((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    return digest_of(repr(sorted(files)).encode())


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
