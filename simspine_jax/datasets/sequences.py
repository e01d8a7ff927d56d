"""Clips and pictures by their number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from simspine_jax.clips import Clip
from simspine_jax.datasets.records import RecordSequence, RecordsInMemory, StoredRecords
from simspine_jax.io.files import PathLike
from simspine_jax.pictures import Picture

ClipSequence: TypeAlias = RecordSequence[Clip]
PictureSequence: TypeAlias = RecordSequence[Picture]


def open_clips(
    config: str = "synthetic", split: str = "train", data_dir: PathLike | None = None
) -> ClipSequence:
    """Clips of a dataset that ``simspine dataset build`` made, its newest version.

    Args:
        config: of the dataset.
        split: ``train`` or ``test``, or a part in TensorFlow Datasets' words, such as ``train[:10%]``.
        data_dir: folder of datasets; None for `records.default_data_dir`.

    Raises:
        MissingDependencyError: TensorFlow Datasets or ArrayRecord is not installed.
        SimspineError: the dataset was not built there, or in a format that TensorFlow alone reads.
        UnknownNameError: it has no such split.
        FileFormatError: its description is damaged, or it is one of pictures.
    """
    return StoredRecords(Clip, config, split, data_dir)


def clips_in_memory(clips: Iterable[Clip]) -> ClipSequence:
    """Clips that are there already, such as `clips.clips_of` makes them, as `open_clips` gives them."""
    return RecordsInMemory(Clip, clips)


def open_pictures(
    config: str = "synthetic_images", split: str = "train", data_dir: PathLike | None = None
) -> PictureSequence:
    """Pictures of a dataset that ``simspine dataset build`` made; arguments and errors as in `open_clips`."""
    return StoredRecords(Picture, config, split, data_dir)


def pictures_in_memory(pictures: Iterable[Picture]) -> PictureSequence:
    """Pictures that are there already, as `open_pictures` gives them."""
    return RecordsInMemory(Picture, pictures)
