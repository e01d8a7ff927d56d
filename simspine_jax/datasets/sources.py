"""Sets of pictures by a line of text, as the command line names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simspine_jax.clips import SPLITS
from simspine_jax.datasets.coco import open_coco
from simspine_jax.datasets.h36m import open_h36m
from simspine_jax.datasets.picture_files import PictureFiles, told_problems
from simspine_jax.datasets.sequences import PictureSequence, open_pictures
from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.io.files import PathLike
from simspine_jax.io.release import find_release

Split = Literal["train", "test"]

TFDS, H36M, COCO = "tfds", "h36m", "coco"
VALID = (
    "FILE.json:FOLDER (COCO keypoints), tfds:CONFIG[:SPLIT] (a built dataset) or h36m:FRAMES:RELEASE[:EVERY] "
    "(Human3.6M's frames with the official release)"
)
"""What a line may be."""


@dataclass(frozen=True)
class SourceText:
    """A set of pictures as it is named.

    Attributes:
        text: the whole line.
        kind: of `TFDS`, `H36M` and `COCO`.
        parts: what the line says: a config and perhaps its split; folder of frames, release and perhaps which
            frames; JSON file and folder.

    Raises:
        SimspineError: the line has another form.
    """

    text: str
    kind: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> SourceText:
        """Reads a line."""
        kind, _, rest = text.partition(":")
        parts = tuple(rest.split(":"))
        if kind == TFDS and rest and not rest.endswith(":"):
            return cls(text, TFDS, tuple(rest.split(":", 1)))  # a split has colons of its own
        if kind == H36M and len(parts) in (2, 3) and all(parts) and all(p.isdecimal() for p in parts[2:]):
            return cls(text, H36M, parts)
        stem, found, folder = text.rpartition(".json:")
        if found and stem and folder:
            return cls(text, COCO, (f"{stem}.json", folder))
        raise SimspineError(f"The set of pictures '{text}' has no known form; valid are {VALID}")

    @property
    def has_splits(self) -> bool:
        """Whether ``train`` and ``test`` are two parts of it; else it is the same in both."""
        return self.kind == H36M or (self.kind == TFDS and len(self.parts) == 1)

    @property
    def own_split(self) -> str | None:
        """The split that the line itself names."""
        return self.parts[1] if self.kind == TFDS and len(self.parts) > 1 else None


def open_source(
    source: SourceText,
    split: Split,
    *,
    data_dir: PathLike | None = None,
    thorough: bool = False,
    note: Callable[[str], None] = print,
) -> PictureSequence:
    """The pictures of a set; of a set that has splits, those of one.

    Args:
        source: which.
        split: the paper's: Human3.6M's S9 and S11 are for testing.
        data_dir: of built datasets; None for `records.default_data_dir`.
        thorough: whether to decode pictures that lie as files.
        note: told what is left out of them.

    Raises:
        SimspineError: it can't be opened; see `open_pictures`, `open_coco` and `open_h36m`.
    """
    if source.kind == TFDS:
        config, *own = source.parts
        return open_pictures(config, own[0] if own else split, data_dir)
    if source.kind == H36M:
        frames, release, *every = source.parts
        if split not in SPLITS:
            raise UnknownNameError("Split", split, "the splits of Human3.6M", SPLITS)
        subjects = [s for s in find_release(release).subjects if s in SPLITS[split]]
        if not subjects:
            raise SimspineError(
                f"{release} has none of the subjects for {split}; valid are {', '.join(SPLITS[split])}"
            )
        step = int(every[0]) if every else 1
        found = open_h36m(frames, release, subjects=subjects, every=step, thorough=thorough)
    else:
        found = open_coco(Path(source.parts[0]), source.parts[1], thorough=thorough)
    _tell(found, note)
    return found


def _tell(found: PictureFiles, note: Callable[[str], None]) -> None:
    for sentence in (*told_problems(found.problems), *found.notes):
        note(sentence)
