"""The six detectors by name, and what goes with each: its codec, and how its weights want pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from simspine_jax.arrays import Array, Float, Int
from simspine_jax.detection.codecs import Codec, MsraMap, SimCC, UdpMap
from simspine_jax.detection.hrnet import CELL, HRNET_W32, HRNet, HRNetOptions
from simspine_jax.detection.photometric import IMAGENET_MEAN, IMAGENET_STD
from simspine_jax.detection.rtmpose import (
    RTMPOSE_M,
    SPINEPOSE_L,
    SPINEPOSE_M,
    SPINEPOSE_S,
    RTMPose,
    RTMPoseOptions,
)
from simspine_jax.detection.vitpose import VITPOSE_B, ViTPose, ViTPoseOptions
from simspine_jax.errors import SimspineError

DetectorOptions = RTMPoseOptions | HRNetOptions | ViTPoseOptions
DetectorModule = RTMPose | HRNet | ViTPose

DETECTORS: Mapping[str, DetectorOptions] = {
    "spinepose_s": SPINEPOSE_S,
    "spinepose_m": SPINEPOSE_M,
    "spinepose_l": SPINEPOSE_L,
    "rtmpose_m": RTMPOSE_M,
    "hrnet_w32": HRNET_W32,
    "vitpose_b": VITPOSE_B,
}
"""Sizes of the published models, with 37 keypoints."""


@dataclass(frozen=True)
class PixelOptions:
    """What a detector's weights were trained to see.

    Attributes:
        order: of the colours.
        mean: of 255, taken away from the first, second and third of them.
        std: what is left is divided by these.

    Raises:
        SimspineError: there is no such order, or a deviation isn't above 0.
    """

    order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise SimspineError(f"The order of colours is {self.order}; valid are RGB, BGR")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise SimspineError(
                f"Colours are normalised by {self.mean} and {self.std}; valid are three numbers each, "
                "the latter above 0"
            )

    def normalise(self, pixels: Int[Array, "B h w 3"] | Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Crops as the detector takes them, float32.

        Args:
            pixels: RGB, 0 to 255.
        """
        pixels = jnp.asarray(pixels, jnp.float32)
        ordered = pixels if self.order == "RGB" else pixels[..., ::-1]
        return (ordered - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)


def build_detector(
    options: DetectorOptions, *, dtype: jnp.dtype | None = None, seed: int = 0
) -> DetectorModule:
    """A detector with its first weights.

    Args:
        options: sizes.
        dtype: of the arithmetic; None for that of the weights.
        seed: of the weights.

    Raises:
        ShapeError: the pictures' size doesn't suit the model.
    """
    rngs = nnx.Rngs(seed)
    if isinstance(options, RTMPoseOptions):
        return RTMPose(options, dtype=dtype, rngs=rngs)
    if isinstance(options, HRNetOptions):
        return HRNet(options, dtype=dtype, rngs=rngs)
    return ViTPose(options, dtype=dtype, rngs=rngs)


def codec_of(options: DetectorOptions) -> Codec:
    """How a detector's output and keypoints become each other, as published."""
    if isinstance(options, RTMPoseOptions):
        return SimCC(options.size, sigma=options.sigma or _published_sigma(options.size))
    height, width = options.size
    cells = height // CELL, width // CELL
    return (MsraMap if isinstance(options, HRNetOptions) else UdpMap)(options.size, cells)


def _published_sigma(size: tuple[int, int]) -> tuple[float, float]:
    """Along x and y; see `RTMPoseOptions`."""
    height, width = size
    return round(math.sqrt(width / 8), 2), round(math.sqrt(height / 8), 2)
