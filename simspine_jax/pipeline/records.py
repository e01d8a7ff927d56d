"""How a run's results are recorded: hashes of inputs and whole JSON files, and what trials come from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simspine_jax.annotations import SYNTHETIC, UNSEEN, SpineTrial
from simspine_jax.errors import one_line
from simspine_jax.io import atomic_write
from simspine_jax.io.files import malformed
from simspine_jax.io.trials import read_trial

REMARK = "source"
"""Attribute of a trial's group in an HDF5 file that tells what a reader of the numbers must know."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def digest_of(*contents: bytes) -> str:
    """One hash of several contents; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document whole or not at all; equal documents give equal bytes."""
    with atomic_write(path) as stream:
        stream.write(_json_text(document))


def holds_json(path: Path, document: dict[str, Any]) -> bool:
    """Whether `write_json` has written this very document there."""
    return path.is_file() and path.read_text(encoding="utf-8") == _json_text(document)


def _json_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def is_temporary(path: Path) -> bool:
    """Whether the file is what `atomic_write` leaves behind when it is killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def stored_trial(path: Path) -> SpineTrial:
    """A trial that a simulation wrote, with the source that the record beside it tells.

    Raises:
        FileFormatError: as `read_trial`.
    """
    trial = read_trial(path)
    try:
        source = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return trial  # no record, or not one of ours
    return replace(trial, source=source) if isinstance(source, str) and source else trial


def remark_on(trial: SpineTrial) -> str:
    """What is to be known of numbers that stand alone: that nobody was measured, or no spine seen."""
    seen = trial.back_seen
    parts = [trial.source] if trial.is_synthetic else []
    return "; ".join(parts + ([UNSEEN] if seen is not None and not seen.any() else []))


def add_remarks(path: Path, remarks: Mapping[tuple[str, str], str]) -> None:
    """Writes remarks into an HDF5 file of these trials, by subject and action."""
    import h5py

    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        for (subject, action), text in remarks.items():
            if text:  # of a fixed length, as all text there, so that a checksum covers it
                file[f"{subject}/{action.replace(' ', '_')}"].attrs[REMARK] = np.bytes_(text.encode())


def with_remarks(path: Path, trials: Iterable[SpineTrial]) -> Iterator[SpineTrial]:
    """The trials of an HDF5 file, each with its remark as its source, if it has one.

    Raises:
        FileFormatError: a remark is damaged.
    """
    import h5py

    for trial in trials:
        where = f"{trial.subject}/{trial.action.replace(' ', '_')}"
        try:
            with h5py.File(path, "r") as file:
                remark = file[where].attrs.get(REMARK, b"") if where in file else b""
        except OSError as error:
            what = f"the remark can't be read ({one_line(str(error))})"
            raise malformed(f"{path}:/{where}", None, what, "an intact part of an HDF5 file") from None
        text = remark.decode(errors="replace") if isinstance(remark, bytes) else ""
        parts = (text, trial.source) if text.startswith(SYNTHETIC) else (trial.source, text)
        yield replace(trial, source="{} ({})".format(*parts)) if text else trial
