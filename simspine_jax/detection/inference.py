"""A detector in use: crops in, keypoints of the crops out, compiled once for each size of a batch.

On a CPU a batch goes through the network some crops at a time, so that what they become stays in the caches,
and matrices are multiplied by YNNPACK where this XLA has it. Together that is 1.5 to 1.8 times as fast (two
cores with AVX-512); in training, where batches are normalised as a whole, the library's products are slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Float, Int
from simspine_jax.detection.codecs import Codec, Found, flip_mean
from simspine_jax.detection.models import DetectorModule, DetectorOptions, PixelOptions, codec_of
from simspine_jax.errors import ShapeError

GROUP = 8
"""Crops that go through a network at a time on a CPU."""

YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""What asks XLA for its products of matrices."""


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
        found = _compiled(_found, 4)(self.structure, self.codec, self.pixels, self.flip, self.state, crops)
        return jax.tree.map(np.asarray, found)


def network_outputs(structure: nnx.GraphDef[Any], state: Any, pictures: Float[Array, "B h w 3"]) -> Any:
    """What a network makes of normalised pictures, as fast as `Detector` computes it, before any decoding."""
    return _compiled(_outputs, 1)(structure, state, pictures)


@cache
def _compiled(function: Callable[..., Any], static: int) -> Callable[..., Any]:
    """Jitted with the options of the default device; so many first arguments are static."""
    return jax.jit(function, static_argnums=tuple(range(static)), compiler_options=_options())


@cache
def _options() -> dict[str, str]:
    """None without a CPU, or where this XLA does not know them: they are not part of its interface."""
    if jax.default_backend() != "cpu":
        return {}
    one = jnp.ones((1, 1))
    try:
        jax.jit(jnp.matmul, compiler_options=YNNPACK)(one, one)
    except (RuntimeError, ValueError):
        return {}
    return YNNPACK


def _in_groups(function: Callable[[Array], Any], crops: Array) -> Any:
    """The function of crops, of some at a time on a CPU."""
    count = len(crops)
    if jax.default_backend() != "cpu" or count <= GROUP:
        return function(crops)
    spare = -count % GROUP
    wide = jnp.pad(crops, ((0, spare), (0, 0), (0, 0), (0, 0)))
    found = jax.lax.map(function, wide.reshape(-1, GROUP, *crops.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)


def _outputs(structure, state, pictures) -> Any:
    return _in_groups(lambda some: nnx.merge(structure, state, copy=True)(some), pictures)


def _found(structure, codec: Codec, pixels: PixelOptions, flip: bool, state, crops) -> Found:
    def found(some: Array) -> Found:
        model, seen = nnx.merge(structure, state, copy=True), pixels.normalise(some)
        output = model(seen)
        if flip:
            output = flip_mean(codec, output, model(seen[:, :, ::-1]))
        return codec.decode(output)

    return _in_groups(found, crops)
