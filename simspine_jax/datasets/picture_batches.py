"""Batches of people cropped from pictures, which Grain's threads decode while a training uses others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from simspine_jax.arrays import Bool, Float, Int
from simspine_jax.datasets.batches import MAX_SEED
from simspine_jax.datasets.records import RecordSequence
from simspine_jax.datasets.samples import Numbers
from simspine_jax.errors import FileFormatError, MissingDependencyError, ShapeError
from simspine_jax.io.files import malformed
from simspine_jax.pictures import OUTSIDE, Crop, Picture, top_down

if TYPE_CHECKING:
    import grain

DECODED_AHEAD = 64
"""Crops that are ready or under way while a batch is waited for."""

Cropper = Callable[[Picture, np.random.Generator], Crop]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class CropBatch:
    """Crops of B pictures, and what scores need of the pictures.

    Attributes:
        pixels: uint8, RGB.
        keypoints: px of the crop; NaN where they are not known.
        visibility: COCO's: 0 outside of the crop or not known, 1 occluded, 2 visible.
        labelled: where ``visibility`` is not 0.
        matrix: px of the picture to px of the crop; `pictures.inverse_map` of one goes back.
        box: left, top, width and height of the person in the picture, px.
        area: of what is seen of the person, px^2; NaN where it is not known.
        index: number of the picture in its sequence.
    """

    pixels: Int[Numbers, "B height width 3"]
    keypoints: Float[Numbers, "B K 2"]
    visibility: Int[Numbers, "B K"]
    labelled: Bool[Numbers, "B K"]
    matrix: Float[Numbers, "B 2 3"]
    box: Float[Numbers, "B 4"]
    area: Float[Numbers, " B"]
    index: Int[Numbers, " B"]


def upright_crop(picture: Picture, random: np.random.Generator) -> Crop:
    """The person's crop without any augmentation, as detectors are evaluated on."""
    del random
    return top_down(picture)


def picture_batches(
    pictures: RecordSequence[Picture],
    batch_size: int,
    seed: int = 0,
    *,
    shuffle: bool = True,
    epochs: int | None = None,
    crop: Cropper = upright_crop,
) -> grain.DatasetIterator[CropBatch]:
    """Batches of crops in NumPy's arrays, each epoch in an order of its own.

    The iterator's ``get_state()`` and ``set_state(state)`` tell and set the next batch, so that a training
    resumes at it, draws of ``crop`` included; the state is JSON in bytes or a dictionary that Orbax saves.

    Args:
        pictures: of `open_pictures` or `pictures_in_memory`.
        batch_size: crops of a batch; an incomplete last one is given only without ``shuffle``.
        seed: of the order and of what ``crop`` draws, 0 to `batches.MAX_SEED`.
        shuffle: False for the pictures' own order, as for evaluation.
        epochs: how often each picture comes; None without end.
        crop: makes the crop of a picture, with a generator that is the picture's and the epoch's own.

    Raises:
        MissingDependencyError: Grain is not installed.
        ShapeError: the sizes can't be, or the seed is out of range.
        FileFormatError: a picture can't be decoded, and which; raised when it is reached.
    """
    try:
        import grain
    except ImportError:
        raise MissingDependencyError("grain", "tfds", "Loading pictures") from None
    count = len(pictures)
    if not 1 <= batch_size <= count or (epochs is not None and epochs < 1):
        raise ShapeError(
            f"Batches of {batch_size} of {count} pictures, {epochs} times, can't be made; "
            f"valid is 1 to {count} of them, once or more"
        )
    check_seed(seed)
    numbered: Any = grain.MapDataset.source(NumberedPictures(pictures)).seed(seed)
    ordered = numbered.shuffle() if shuffle else numbered
    return crop_batches(ordered.repeat(epochs), batch_size, crop, whole=shuffle)


def check_seed(seed: int) -> None:
    """Refuses a seed that is out of range.

    Raises:
        ShapeError: it is.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ShapeError(f"The seed of the batches is {seed}; valid is 0 to {MAX_SEED}")


def crop_batches(
    ordered: grain.MapDataset[Any], batch_size: int, crop: Cropper, *, whole: bool
) -> grain.DatasetIterator[CropBatch]:
    """Batches of the crops of pictures in a given order.

    Args:
        ordered: of `NumberedPictures`, with a seed.
        batch_size: crops of a batch.
        crop: as in `picture_batches`.
        whole: whether an incomplete last batch is left out.
    """
    import grain

    crops = ordered.random_map(lambda item, random: _cropped(item, crop, random))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ready = crops.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=DECODED_AHEAD))
    return ready.batch(batch_size, drop_remainder=whole).__iter__()


NumberedPicture = tuple[int, Picture, Callable[[], str]]
"""A picture with its number, and what a sentence calls it."""


class NumberedPictures:
    """Pictures with their numbers, as Grain's sources are.

    Args:
        pictures: in their order.
        first: the number of the first one.
    """

    def __init__(self, pictures: RecordSequence[Picture], first: int = 0) -> None:
        self._pictures, self._first = pictures, first

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> NumberedPicture:
        where = partial(self._pictures.where, int(index))
        return self._first + int(index), self._pictures[int(index)], where


def named_crop(picture: Picture, where: Callable[[], str], crop: Callable[[Picture], Crop]) -> Crop:
    """The crop of a picture, or a sentence that names what can't be decoded.

    Args:
        picture: that is cropped.
        where: what a sentence calls it.
        crop: makes the crop.

    Raises:
        FileFormatError: it can't be decoded.
    """
    try:
        return crop(picture)
    except FileFormatError:
        what = f"its {len(picture.jpeg)} bytes can't be decoded as a picture"
        raise malformed(where(), None, what, "a whole picture that OpenCV reads") from None


def _cropped(numbered: NumberedPicture, crop: Cropper, random: np.random.Generator) -> CropBatch:
    """One picture as a batch has it, without the first dimension."""
    index, picture, where = numbered
    found = named_crop(picture, where, lambda picture: crop(picture, random))
    return CropBatch(
        found.pixels,
        found.keypoints,
        found.visibility,
        found.visibility != OUTSIDE,
        found.matrix,
        picture.box,
        np.float32(picture.area),  # type: ignore[arg-type]
        np.int32(index),  # type: ignore[arg-type]
    )
