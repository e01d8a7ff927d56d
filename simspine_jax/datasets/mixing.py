"""Two sets of pictures in one training: mixed in each batch, or epoch by epoch in turn.

The paper fine-tunes its detectors on SpineTrack (outdoors, labelled by people) and 2 % of SimSpine (indoors,
simulated), half and half in each batch (PB); its Figure 5 compares that with epochs in turn (PE).

Source: section 4.4 of the SIMSPINE paper. How its 2 % were chosen is not told; here they are spread evenly
over the set, so that neighbouring frames of a video don't come together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from simspine_jax.datasets.picture_batches import (
    CropBatch,
    Cropper,
    NumberedPictures,
    check_seed,
    crop_batches,
    picture_batches,
    upright_crop,
)
from simspine_jax.datasets.picture_files import picture_numbers, scored_boxes
from simspine_jax.datasets.records import RecordSequence
from simspine_jax.errors import MissingDependencyError, ShapeError, SimspineError
from simspine_jax.pictures import Picture

if TYPE_CHECKING:
    import grain

MAX_PICTURES = 2**62
"""Of a training, which Grain counts."""


@dataclass(frozen=True)
class MixOptions:
    """How the second of two sets, SimSpine in the paper, is mixed into the first.

    Attributes:
        mode: ``batch`` for both in each batch (PB), ``epoch`` for epochs of one set in turn (PE).
        share: of the second set in each batch, or of its epochs among all.
        fraction: of the second set that is used at all; 0 for training on the first alone.

    Raises:
        SimspineError: there is no such mode, or a share can't be.
    """

    mode: Literal["batch", "epoch"] = "batch"
    share: float = 0.5
    fraction: float = 0.02

    def __post_init__(self) -> None:
        if self.mode not in ("batch", "epoch"):
            raise SimspineError(f"The mode of a mix is '{self.mode}'; valid are batch and epoch")
        if not 0 < self.share < 1:
            raise SimspineError(
                f"The second set's share of a mix is {self.share}; valid is between 0 and 1, or a fraction "
                "of 0 for the first set alone"
            )
        if not 0 <= self.fraction <= 1:
            raise SimspineError(f"The fraction of the second set is {self.fraction}; valid is 0 to 1")


def spread_numbers(count: int, fraction: float, seed: int = 0) -> NDArray[np.int64]:
    """Numbers below ``count``, ascending: one drawn from each of equal stretches of them.

    Args:
        count: how many there are.
        fraction: of them, 0 to 1; their number is rounded.
        seed: of the draws.

    Raises:
        ShapeError: a fraction above 0 is less than half a picture.
    """
    wanted = round(count * fraction)
    if fraction > 0 and not wanted:
        raise ShapeError(
            f"{100 * fraction:g} % of {count} pictures are none; valid is 0, or more than "
            f"{50 / max(count, 1):.2g} %"
        )
    edges = np.arange(wanted + 1) * count // max(wanted, 1)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


class ChosenPictures(RecordSequence[Picture]):
    """Some pictures of a sequence.

    Args:
        pictures: of which they are.
        numbers: of them there.
    """

    def __init__(self, pictures: RecordSequence[Picture], numbers: Sequence[int] | NDArray[np.int64]) -> None:
        super().__init__(Picture)
        self._pictures, self.numbers = pictures, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def picture_of(self) -> NDArray[np.int64]:
        """As in `PictureFiles`."""
        return picture_numbers(self._pictures)[self.numbers]

    @property
    def scored_boxes(self) -> NDArray[np.float32] | None:
        """As in `PictureFiles`."""
        boxes = scored_boxes(self._pictures)
        return None if boxes is None else boxes[self.numbers]

    def known(self) -> Iterator[bytes]:
        """Of the whole sequence, and which of it these are."""
        yield from self._pictures.known()
        yield self.numbers.tobytes()

    def where(self, index: int) -> str:
        """As the whole sequence calls it."""
        return self._pictures.where(int(self.numbers[index]))

    def read(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """These fields of one record."""
        return self._pictures.read(int(self.numbers[index]), names)


@dataclass(frozen=True, eq=False)
class PictureMix:
    """Two sets of pictures, the second reduced to its fraction.

    Attributes:
        first: all of the first set.
        second: what is used of the second one.
        options: of the mix.
    """

    first: RecordSequence[Picture]
    second: RecordSequence[Picture]
    options: MixOptions

    @classmethod
    def of(
        cls,
        first: RecordSequence[Picture],
        second: RecordSequence[Picture],
        options: MixOptions,
        seed: int = 0,
    ) -> PictureMix:
        """The mix of two whole sets.

        Args:
            first: such as SpineTrack.
            second: such as SimSpine.
            options: of the mix.
            seed: of which pictures of the second set are used.

        Raises:
            ShapeError: the fraction is less than half a picture.
        """
        numbers = spread_numbers(len(second), options.fraction, seed)
        return cls(first, ChosenPictures(second, numbers), options)

    @property
    def count(self) -> int:
        """Crops of an epoch, in which the first set is seen once and the second by its share."""
        return round(len(self.first) / (1 - self.options.share)) if len(self.second) else len(self.first)

    def batches(
        self, batch_size: int, seed: int = 0, crop: Cropper = upright_crop
    ) -> grain.DatasetIterator[CropBatch]:
        """Batches without end, shuffled, as `picture_batches` gives them.

        Each set has an order of its own in each of its epochs. In mode ``batch``, the last rows of each batch
        are the second set's, and a set that is through begins anew at once. In mode ``epoch``, batches are of
        one set, and what doesn't fill a batch at the end of an epoch is left out. A batch's ``index`` counts
        on from the first set to the second. States go on with another ``crop``, as `picture_batches`' do.

        Args:
            batch_size: crops of a batch.
            seed: of the orders and of what ``crop`` draws.
            crop: as in `picture_batches`.

        Raises:
            MissingDependencyError: Grain is not installed.
            ShapeError: a batch can't hold both sets, or a set is too small for a batch.
        """
        if not len(self.second):
            return picture_batches(self.first, batch_size, seed, crop=crop)
        try:
            import grain
        except ImportError:
            raise MissingDependencyError("grain", "tfds", "Loading pictures") from None
        check_seed(seed)
        order = self._order(batch_size)
        seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
        starts = 0, len(self.first)
        sets: list[Any] = [
            grain.MapDataset.source(NumberedPictures(pictures, start)).seed(own).shuffle().repeat()
            for pictures, start, own in zip((self.first, self.second), starts, seeds, strict=True)
        ]
        mixed = grain.MapDataset.select_from_datasets(sets, order).seed(seed)
        return crop_batches(mixed, batch_size, crop, whole=True)

    def _order(self, batch_size: int) -> Any:
        kind = _BatchOrder if self.options.mode == "batch" else _EpochOrder
        return kind((len(self.first), len(self.second)), batch_size, self.options.share)


@dataclass(frozen=True)
class _Order:
    """Where Grain finds the picture at each place of a training: the set, and the place in its own order.

    Attributes:
        counts: pictures of the sets.
        batch_size: of the batches.
        share: of the second set.
    """

    counts: tuple[int, int]
    batch_size: int
    share: float

    def __len__(self) -> int:
        return MAX_PICTURES


@dataclass(frozen=True)
class _BatchOrder(_Order):
    """Both sets in each batch."""

    def __post_init__(self) -> None:
        own, other = self.parts
        if not 0 < other < self.batch_size:
            raise ShapeError(
                f"A batch of {self.batch_size} pictures has {own} of the first set and {other} of the "
                f"second, whose share is {self.share:g}; valid are batches that hold both"
            )

    @cached_property
    def parts(self) -> tuple[int, int]:
        """How many of each set are in a batch."""
        other = round(self.share * self.batch_size)
        return self.batch_size - other, other

    def __getitem__(self, place: int) -> tuple[int, int]:
        batch, row = divmod(place, self.batch_size)
        own, other = self.parts
        return (0, batch * own + row) if row < own else (1, batch * other + row - own)


@dataclass(frozen=True)
class _EpochOrder(_Order):
    """Epochs of one set in turn, of whole batches."""

    def __post_init__(self) -> None:
        for word, count in zip(("first", "second"), self.counts, strict=True):
            if count < self.batch_size:
                raise ShapeError(
                    f"Epochs in turn need a batch of each set, and of the {word} one {count} pictures are "
                    f"used; valid is {self.batch_size} or more"
                )

    @cached_property
    def _share(self) -> Fraction:
        return Fraction(self.share).limit_denominator(1000)

    def _batches_before(self, epoch: int) -> tuple[int, int]:
        """Epochs of the second set before one, and batches of both."""
        others = int(epoch * self._share)
        own, other = (count // self.batch_size for count in self.counts)
        return others, (epoch - others) * own + others * other

    def __getitem__(self, place: int) -> tuple[int, int]:
        batch, row = divmod(place, self.batch_size)
        # Each epoch has a batch or more, so there are no more epochs before it than batches.
        epoch = bisect_right(range(batch + 1), batch, key=lambda e: self._batches_before(e)[1]) - 1
        others, before = self._batches_before(epoch)
        which = self._batches_before(epoch + 1)[0] - others
        done = others if which else epoch - others
        return which, done * self.counts[which] + (batch - before) * self.batch_size + row
