"""How a run's results are recorded, so that a killed run resumes: hashes of inputs and whole JSON files."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from simspine_jax.io import atomic_write

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
