"""Colours, holes and normalisation of crops, on the device: crops travel there as bytes.

The draws of a crop follow from its key alone, and `sample_keys` makes keys of a seed, an epoch and the
numbers of the samples, so a training that resumes sees the same crops whatever its batches are.

Sources: MMPose's PhotometricDistortion; CoarseDropout of albumentations. Of the former, the exchange of
colour channels is left out, for the paper lists brightness, contrast, saturation and hue only; its contrast
before *or* after the colours is as its documentation has it (its code does both or none); hues go round the
circle of colours (there, negative ones wrap at 256 instead of 180); and levels are not rounded in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from simspine_jax.arrays import Array, Float, Int
from simspine_jax.errors import SimspineError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Red, green and blue, of 255: what published detectors take away from pixels."""

IMAGENET_STD = (58.395, 57.12, 57.375)
"""And divide them by afterwards."""

WHITE = 255.0
"""The highest level."""

HUES = 180.0
"""Of OpenCV's circle of colours, in which hues are counted."""


@dataclass(frozen=True)
class Colours:
    """Draws of colours; each of the four is done to half of the crops.

    Attributes:
        brightness: most that is added to all levels, of 255.
        contrast: least and largest factor of all levels.
        saturation: likewise, of the distance from grey.
        hue: most by which colours turn, of `HUES`.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0

    def __post_init__(self) -> None:
        if not 0 <= self.hue <= HUES / 2 or self.brightness < 0:
            raise SimspineError(
                f"Colours change by {self.brightness} levels and {self.hue} hues; "
                f"valid are 0 or more levels and 0 to {HUES / 2:g} hues"
            )
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise SimspineError(
                    f"The {name} of colours is {low} to {high}; valid is from 0, the lower first"
                )


@dataclass(frozen=True)
class Hole:
    """A black rectangle (CoarseDropout), anywhere in the crop; what it hides stays labelled.

    Attributes:
        probability: that a crop gets one.
        size: smallest and largest share of the crop's height, and of its width.
    """

    probability: float = 1.0
    size: tuple[float, float] = (0.2, 0.4)

    def __post_init__(self) -> None:
        low, high = self.size
        if not (0 <= self.probability <= 1 and 0 <= low <= high <= 1):
            raise SimspineError(
                f"A hole of {low} to {high} of a crop with the probability {self.probability} can't be; "
                "valid are shares from 0 to 1, the lower first"
            )


def sample_keys(seed: Int[Array, ""] | int, epoch: Int[Array, "*B"] | int, index: Int[Array, " B"]) -> Array:
    """Keys ``[B]`` of samples, for `augment`.

    Args:
        seed: of the training, 0 to 2^32 - 1.
        epoch: of all samples or of each, or any other number that changes whenever a sample comes again.
        index: number of each sample in its sequence, as in `datasets.CropBatch`.
    """
    index = jnp.asarray(index, jnp.uint32)
    return _keys(
        jnp.asarray(seed, jnp.uint32), jnp.broadcast_to(jnp.asarray(epoch, jnp.uint32), index.shape), index
    )


@jax.jit
def _keys(seed: Array, epoch: Array, index: Array) -> Array:
    whole = jax.random.key(seed)
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(whole, e), i))(epoch, index)


@jax.jit
def normalise(pixels: Int[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
    """Crops as detectors take them in use: float32, less `IMAGENET_MEAN`, over `IMAGENET_STD`.

    Args:
        pixels: 0 to 255, RGB.
    """
    mean, deviation = (jnp.asarray(x, jnp.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (jnp.asarray(pixels, jnp.float32) - mean) / deviation


def augment(
    pixels: Int[Array, "B h w 3"], keys: Array, *, colours: Colours | None, hole: Hole | None
) -> Float[Array, "B h w 3"]:
    """Crops as detectors take them in training: coloured, with a hole, normalised; float32.

    The draws and what is done with them are compiled apart, so this is not for use within another compiled
    function: joined to one, XLA makes the draws anew for each pixel on a CPU, and is ten times as slow.

    Args:
        pixels: uint8, RGB.
        keys: of `sample_keys`, ``[B]``.
        colours: None to leave them.
        hole: None for none.
    """
    if colours is None and hole is None:
        return normalise(pixels)
    changes = None if colours is None else draw_changes(keys, colours)
    _, height, width, _ = pixels.shape
    holes = None if hole is None else draw_holes(keys, hole, (height, width))
    return _augmented(pixels, changes, holes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ColourChanges:
    """What is done to the colours of B crops, in this order.

    Attributes:
        brightness: levels that are added.
        contrast_first: factor of all levels before saturation and hue.
        saturation: factor of the distance from grey.
        hue: by which colours turn, of `HUES`.
        contrast_last: factor of all levels after saturation and hue.
    """

    brightness: Float[Array, " B"]
    contrast_first: Float[Array, " B"]
    saturation: Float[Array, " B"]
    hue: Float[Array, " B"]
    contrast_last: Float[Array, " B"]


def draw_changes(keys: Array, colours: Colours) -> ColourChanges:
    """Changes of colours: half of the crops get each of the four, and half of the contrasts come last.

    Args:
        keys: of `sample_keys`, ``[B]``.
        colours: how far they go.
    """
    return _changes(_uniform(keys)[:_COLOUR_DRAWS], colours)


@partial(jax.jit, static_argnames="colours")
def _changes(draws: Float[Array, "9 B"], colours: Colours) -> ColourChanges:
    chosen = draws[4:] < 0.5  # MMPose draws one of neither, saturation, hue and both: as two coins

    def change(which: int, low: float, high: float, none: float) -> Array:
        return jnp.where(chosen[which], low + draws[which] * (high - low), none)

    contrast = change(1, *colours.contrast, 1.0)
    return ColourChanges(
        brightness=change(0, -colours.brightness, colours.brightness, 0.0),
        contrast_first=jnp.where(chosen[4], contrast, 1.0),
        saturation=change(2, *colours.saturation, 1.0),
        hue=change(3, -colours.hue, colours.hue, 0.0),
        contrast_last=jnp.where(chosen[4], 1.0, contrast),
    )


def draw_holes(keys: Array, hole: Hole, size: tuple[int, int]) -> Int[Array, "B 4"]:
    """Top, bottom, left and right of each crop's hole, px, the lower and right ends not in it; 0 for none.

    Args:
        keys: of `sample_keys`, ``[B]``.
        hole: how large they are, and how often.
        size: height and width of the crops, px.
    """
    return _holes(_uniform(keys)[_COLOUR_DRAWS:], hole, size)


@partial(jax.jit, static_argnames=("hole", "size"))
def _holes(draws: Float[Array, "5 B"], hole: Hole, size: tuple[int, int]) -> Int[Array, "B 4"]:
    present, shares, places = draws[0], draws[1:3], draws[3:5]
    low, high = hole.size
    ends = []
    for length, share, place in zip(size, shares, places, strict=True):
        extent = jnp.floor(length * (low + share * (high - low)))
        start = jnp.floor(place * (length - extent + 1))
        ends += [start, start + extent]
    return jnp.where((present < hole.probability)[:, None], jnp.stack(ends, axis=-1), 0).astype(jnp.int32)


_COLOUR_DRAWS, _HOLE_DRAWS = 9, 5


@jax.jit
def _uniform(keys: Array) -> Float[Array, "14 B"]:
    """All draws of crops from 0 to 1, so that holes are the same with colours and without."""
    count = _COLOUR_DRAWS + _HOLE_DRAWS
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32), out_axes=1)(keys)


@jax.jit
def recolour(pixels: Float[Array, "B h w 3"], changes: ColourChanges) -> Float[Array, "B h w 3"]:
    """Crops with changed colours, 0 to 255 in float32; levels are cut off after each change.

    Saturation and hue are those of OpenCV's HSV: the largest level is kept.
    """
    return _pixels(_recoloured(_planes(pixels), changes))


@jax.jit
def _augmented(
    pixels: Int[Array, "B h w 3"], changes: ColourChanges | None, holes: Int[Array, "B 4"] | None
) -> Float[Array, "B h w 3"]:
    levels = _planes(pixels)
    if changes is not None:
        levels = _recoloured(levels, changes)
    if holes is not None:
        top, bottom, left, right = _beside(*holes.T)
        y, x = jnp.arange(pixels.shape[1])[:, None], jnp.arange(pixels.shape[2])
        levels = jnp.where((y >= top) & (y < bottom) & (x >= left) & (x < right), 0.0, levels)
    mean, deviation = (
        jnp.asarray(x, jnp.float32)[:, None, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return _pixels((levels - mean) / deviation)


def _recoloured(planes: Float[Array, "3 B h w"], changes: ColourChanges) -> Float[Array, "3 B h w"]:
    brightness, first, saturation, hue, last = _beside(
        changes.brightness, changes.contrast_first, changes.saturation, changes.hue, changes.contrast_last
    )
    lit = jnp.clip(jnp.clip(planes + brightness, 0.0, WHITE) * first, 0.0, WHITE)
    return jnp.clip(_turned(lit, saturation, hue * (6 / HUES)) * last, 0.0, WHITE)


def _turned(planes: Float[Array, "3 B h w"], saturation: Array, turn: Array) -> Float[Array, "3 B h w"]:
    """By HSV without its divisions by the value: only the chroma and its angle (in sixths) are needed."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    over = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    from_green, from_blue = 2.0 + (blue - red) * over, 4.0 + (red - green) * over
    angle = jnp.where(value == green, from_green, from_blue)
    angle = jnp.where(value == red, (green - blue) * over, angle) + turn
    angle = angle - 6.0 * jnp.floor(angle / 6.0)
    chroma = jnp.minimum(chroma * saturation, value)
    # How near each colour's own sixths the angle is: 1 there, 0 on the opposite side.
    shares = (jnp.abs(angle - 3.0) - 1.0, 2.0 - jnp.abs(angle - 2.0), 2.0 - jnp.abs(angle - 4.0))
    return jnp.stack([value - chroma + chroma * jnp.clip(share, 0.0, 1.0) for share in shares])


# Colours apart from each other, as here, XLA computes several times as fast on a CPU as with the three of a
# pixel side by side; that they are side by side before and after costs nothing.
def _planes(pixels: Array) -> Float[Array, "3 B h w"]:
    return jnp.moveaxis(jnp.asarray(pixels, jnp.float32), -1, 0)


def _pixels(planes: Float[Array, "3 B h w"]) -> Float[Array, "B h w 3"]:
    return jnp.moveaxis(planes, 0, -1)


def _beside(*values: Array) -> list[Float[Array, "B 1 1"]]:
    """Numbers of the crops beside their planes."""
    return [value[:, None, None] for value in values]
