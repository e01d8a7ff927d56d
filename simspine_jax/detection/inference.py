"""A detector in use: crops in, keypoints of the crops out, compiled once for each size of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Int
from simspine_jax.detection.codecs import Codec, Found, flip_mean
from simspine_jax.detection.models import DetectorModule, DetectorOptions, PixelOptions, codec_of
from simspine_jax.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector with all that its weights ask for.

    Attributes:
        structure: of the model.
        state: weights and statistics.
        codec: of its output.
        pixels: what it was trained to see.
        size: height and width of the crops, px.
        flip: whether the output is the mean of the crop's and its mirror image's.
    """

    structure: nnx.GraphDef[Any]
    state: Any
    codec: Codec
    pixels: PixelOptions
    size: tuple[int, int]
    flip: bool

    @classmethod
    def of(
        cls,
        model: DetectorModule,
        options: DetectorOptions,
        pixels: PixelOptions | None = None,
        *,
        flip: bool = True,
    ) -> Detector:
        """A detector of a model.

        Args:
            model: trained.
            options: of the model.
            pixels: of its training; default: RGB, normalised as for ImageNet.
            flip: whether to test crops and their mirror images; exact, but twice the work.
        """
        structure, state = nnx.split(model)
        return cls(structure, state, codec_of(options), pixels or PixelOptions(), options.size, flip)

    def __call__(self, crops: NDArray[np.uint8] | Int[Array, "B h w 3"]) -> Found:
        """Keypoints of crops, NumPy, in px of the crop; `codecs.picture_keypoints` takes them to the picture.

        Args:
            crops: ``[B h w 3]``, RGB, 0 to 255.

        Raises:
            ShapeError: the crops have another size.
        """
        if crops.ndim != 4 or crops.shape[1:] != (*self.size, 3):
            raise ShapeError(
                f"Crops have the shape {crops.shape}; valid is [B {self.size[0]} {self.size[1]} 3]"
            )
        found = _found(self.structure, self.codec, self.pixels, self.flip, self.state, crops)
        return jax.tree.map(np.asarray, found)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _found(structure, codec: Codec, pixels: PixelOptions, flip: bool, state, crops) -> Found:
    model, seen = nnx.merge(structure, state, copy=True), pixels.normalise(crops)
    output = model(seen)
    if flip:
        output = flip_mean(codec, output, model(seen[:, :, ::-1]))
    return codec.decode(output)
