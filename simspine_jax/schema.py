"""How the dataset's records are described: a dataclass whose fields tell their kind, shape and meaning.

One description serves the writer of records, the reader and the documentation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Dimension = int | Literal["T", "V"]
"""A size, or frames T or views V, which vary."""

Kind = Literal["text", "bool", "int32", "int64", "float32", "float64", "jpeg"]


@dataclass(frozen=True)
class RecordField:
    """One field of a record: its kind, its dimensions and what it holds."""

    name: str
    kind: Kind
    shape: tuple[Dimension, ...]
    doc: str

    @property
    def per_frame(self) -> bool:
        """Whether its first dimension is frames."""
        return self.shape[:1] == ("T",)


def record_field(kind: Kind, *shape: Dimension, doc: str) -> Any:
    """A field of a record's dataclass; a description, not a default."""
    return dataclasses.field(metadata={"kind": kind, "shape": shape, "doc": doc})


def fields_of(record: type) -> tuple[RecordField, ...]:
    """The fields of a record's dataclass, in its order."""
    return tuple(
        RecordField(f.name, f.metadata["kind"], f.metadata["shape"], f.metadata["doc"])
        for f in dataclasses.fields(record)
    )
