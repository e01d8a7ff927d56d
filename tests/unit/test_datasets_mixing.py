"""Mixed batches: what is in them, that they go on where they were, and what can't be mixed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from simspine_jax.datasets import CropBatch, pictures_in_memory
from simspine_jax.datasets.mixing import ChosenPictures, MixOptions, PictureMix, spread_numbers
from simspine_jax.datasets.picture_batches import picture_batches
from simspine_jax.datasets.picture_files import PictureFiles, picture_numbers, scored_boxes
from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.pictures import Crop, Picture, encode_jpeg
from simspine_jax.skeleton import KEYPOINT_NAMES

K = len(KEYPOINT_NAMES)
SIZE = (8, 6)
JPEG = encode_jpeg(np.full((16, 12, 3), 90, np.uint8))


def picture(i: int) -> Picture:
    return Picture(
        JPEG, 12, 16, "S1", "Walking", "free", i, True, i, np.array([1, 1, 9, 12]), 50.0, np.ones((K, 2)),
        np.full(K, 2), np.ones((K, 3)), np.eye(3), np.eye(3), np.zeros(3), np.zeros(8),
    )  # type: ignore[arg-type] # fmt: skip


def pictures(count: int, start: int = 0):
    return pictures_in_memory(picture(start + i) for i in range(count))


def plain(picture: Picture, random: np.random.Generator) -> Crop:
    """A crop that tells its picture and the draws of its own."""
    pixels = np.full((*SIZE, 3), random.integers(256), np.uint8)
    return Crop(pixels, np.full((K, 2), picture.frame, np.float32), np.full(K, 2, np.int32), np.eye(3)[:2])


def other(picture: Picture, random: np.random.Generator) -> Crop:
    crop = plain(picture, random)
    return Crop(crop.pixels // 2, crop.keypoints, crop.visibility, crop.matrix)


FIRST, SECOND = 20, 9


def mix(seed: int = 0, first: int = FIRST, second: int = SECOND, **options: Any) -> PictureMix:
    return PictureMix.of(
        pictures(first), pictures(second, 1000), MixOptions(**{"fraction": 1.0, **options}), seed
    )


def taken(source: PictureMix, batch_size: int, count: int, seed: int = 0) -> list[CropBatch]:
    batches = source.batches(batch_size, seed, plain)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize(("share", "own", "others"), [(0.5, 4, 4), (0.25, 6, 2), (0.9, 1, 7)])
def test_each_batch_holds_its_share_of_both(share: float, own: int, others: int) -> None:
    source = mix(share=share)
    for batch in taken(source, 8, 10):
        assert (batch.index < FIRST).tolist() == [True] * own + [False] * others
        # The number tells the picture: the first set's frames count from 0, the second's from 1000.
        frames = np.where(batch.index < FIRST, batch.index, batch.index - FIRST + 1000)
        np.testing.assert_array_equal(batch.keypoints[:, 0, 0], frames)


def test_each_set_is_shuffled_and_seen_whole_before_it_comes_again() -> None:
    index = np.concatenate([batch.index for batch in taken(mix(), 8, 45)])
    for low, high, own in ((0, FIRST, index[index < FIRST]), (FIRST, FIRST + SECOND, index[index >= FIRST])):
        count = high - low
        epochs = [own[i : i + count] for i in range(0, len(own) - count + 1, count)]
        assert len(epochs) >= 9
        assert all(sorted(epoch.tolist()) == list(range(low, high)) for epoch in epochs)
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)  # each in another order


def test_epochs_alternate() -> None:
    batches = taken(mix(mode="epoch"), 4, 3 * (5 + 2))  # 20 and 9 pictures: 5 and 2 whole batches
    kinds = [set((batch.index >= FIRST).tolist()) for batch in batches]
    assert kinds == 3 * (5 * [{False}] + 2 * [{True}])
    for start in range(0, 21, 7):
        own = np.concatenate([batch.index for batch in batches[start : start + 5]])
        assert sorted(own.tolist()) == list(range(FIRST))
        others = np.concatenate([batch.index for batch in batches[start + 5 : start + 7]])
        assert len(set(others.tolist())) == 8


@pytest.mark.parametrize(("share", "ratio"), [(0.25, 1 / 4), (0.5, 1 / 2), (0.75, 3 / 4)])
def test_the_share_of_epochs_is_that_of_the_second_set(share: float, ratio: float) -> None:
    batches = taken(mix(mode="epoch", first=8, second=8, share=share), 8, 40)  # a batch an epoch
    kinds = np.array([batch.index[0] >= 8 for batch in batches])
    assert kinds.mean() == ratio
    assert kinds[:4].mean() == ratio  # from the beginning


@pytest.mark.parametrize("mode", ["batch", "epoch"])
def test_training_goes_on_at_the_next_batch(mode: str) -> None:
    source = mix(mode=mode)
    whole = taken(source, 4, 20, seed=3)
    batches = source.batches(4, 3, plain)
    for _ in range(9):
        next(batches)
    state = batches.get_state()
    again, changed = source.batches(4, 3, plain), source.batches(4, 3, other)
    for there in (again, changed):
        there.set_state(state)
    for expected in whole[9:]:
        batch, stage = next(again), next(changed)
        np.testing.assert_array_equal(batch.pixels, expected.pixels)
        np.testing.assert_array_equal(batch.index, expected.index)
        # The next stage of a curriculum has the same pictures in the same order, with the same draws.
        np.testing.assert_array_equal(stage.index, expected.index)
        np.testing.assert_array_equal(stage.pixels, expected.pixels // 2)


def test_seeds_give_other_orders_and_other_draws() -> None:
    one, same, third = (taken(mix(), 8, 3, seed) for seed in (0, 0, 1))
    for a, b, c in zip(one, same, third, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert (a.index != c.index).any()
        assert (a.pixels != c.pixels).any()
    # Two equal sets have orders of their own.
    batch = taken(mix(first=16, second=16), 16, 1)[0]
    assert (batch.index[:8] != batch.index[8:] - 16).any()


@pytest.mark.parametrize("mode", ["batch", "epoch"])
def test_without_a_second_set_it_is_the_first_alone(mode: str) -> None:
    source = mix(mode=mode, fraction=0)
    assert (len(source.second), source.count) == (0, FIRST)
    alone = picture_batches(source.first, 4, 5, crop=plain)
    for batch in taken(source, 4, 12, seed=5):
        expected = next(alone)
        np.testing.assert_array_equal(batch.pixels, expected.pixels)
        np.testing.assert_array_equal(batch.index, expected.index)


def test_chosen_people_keep_their_pictures_and_boxes() -> None:
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    several = PictureFiles([], {}, {}, np.array([0, 2, 2, 5]), scored_boxes=boxes)
    some = ChosenPictures(several, [3, 1, 2])
    assert picture_numbers(some).tolist() == [5, 2, 2]
    np.testing.assert_array_equal(scored_boxes(some), boxes[[3, 1, 2]])
    alone = ChosenPictures(pictures_in_memory([]), [])
    assert (picture_numbers(alone).tolist(), scored_boxes(alone)) == ([], None)


def test_an_epoch_sees_the_first_set_once() -> None:
    assert mix().count == 2 * FIRST
    assert mix(share=0.2).count == FIRST / 0.8


@pytest.mark.parametrize(("count", "fraction"), [(1000, 0.02), (997, 0.1), (10, 1.0), (7, 0.5), (10, 0.0)])
def test_a_fraction_is_spread_evenly(count: int, fraction: float) -> None:
    found = spread_numbers(count, fraction, seed=3)
    assert len(found) == round(count * fraction)
    if not len(found):
        return
    # One of each stretch: none comes twice, and gaps are less than two stretches.
    assert (np.diff(found) > 0).all()
    stretch = np.ceil(count / len(found))
    assert np.diff(found, prepend=-1, append=count).max() <= 2 * stretch
    assert found.max() < count
    assert found.min() >= 0


def test_which_pictures_are_used_is_the_seeds() -> None:
    one, same, third = (spread_numbers(1000, 0.05, seed) for seed in (0, 0, 1))
    assert one.tolist() == same.tolist()
    assert one.tolist() != third.tolist()
    # Over seeds, each picture is as likely: of 2,000 draws, 100 each with a deviation of 9.7.
    counts = Counter(np.concatenate([spread_numbers(20, 0.5, seed) for seed in range(200)]).tolist())
    assert len(counts) == 20
    assert all(60 < count < 140 for count in counts.values())


def test_chosen_pictures_are_those_of_their_numbers() -> None:
    chosen = ChosenPictures(pictures(10), [2, 7])
    assert [p.frame for p in chosen] == [2, 7]
    assert chosen[-1].frame == 7
    assert [values["frame"] for values in chosen.stream(["frame"])] == [2, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "picture"}, "mode of a mix is 'picture'; valid are batch and epoch"),
        ({"share": 0}, "share of a mix is 0; valid is between 0 and 1"),
        ({"share": 1.0}, "share of a mix is 1.0"),
        ({"share": float("nan")}, "share of a mix is nan"),
        ({"fraction": 2}, "fraction of the second set is 2; valid is 0 to 1"),
        ({"fraction": -0.1}, "valid is 0 to 1"),
    ],
)
def test_options_that_can_not_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimspineError, match=message):
        MixOptions(**options)


def test_mixes_that_can_not_be_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 % of 9 pictures are none"):
        mix(fraction=0.02)
    with pytest.raises(ShapeError, match="4 pictures has 4 of the first set and 0 of the second"):
        mix(share=0.05).batches(4)
    with pytest.raises(ShapeError, match="1 pictures has 1 of the first set and 0"):
        mix().batches(1)
    with pytest.raises(ShapeError, match="of the second one 9 pictures are used; valid is 10 or more"):
        mix(mode="epoch").batches(10)
    with pytest.raises(ShapeError, match="of the first one 20 pictures"):
        mix(mode="epoch", second=40).batches(24)
    with pytest.raises(ShapeError, match="seed of the batches is -1"):
        mix().batches(8, -1)
