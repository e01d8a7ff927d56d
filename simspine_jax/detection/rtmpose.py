"""RTMPose, of which SpinePose is one with 37 keypoints: CSPNeXt and the head RTMCC, nothing between.

Source: T. Jiang et al., RTMPose, arXiv 2303.07399; SpinePose's sizes are its own. With 37 keypoints the
small, medium and large ones have 5.975, 14.340 and 28.664 million parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from simspine_jax.arrays import Array, Float
from simspine_jax.detection.cspnext import STRIDE, CSPNeXt, CSPNeXtOptions
from simspine_jax.detection.layers import Form, form_here, require_multiple, require_pictures
from simspine_jax.detection.rtmcc import RTMCC
from simspine_jax.errors import SimspineError
from simspine_jax.pictures import CROP_SIZE
from simspine_jax.skeleton import KEYPOINT_NAMES

MEDIUM = CSPNeXtOptions(0.67, 0.75)
"""Backbone of the medium model."""


@dataclass(frozen=True)
class RTMPoseOptions:
    """Sizes of the network; the defaults are the medium one's.

    Attributes:
        backbone: shares of the large CSPNeXt.
        keypoints: their number.
        size: height and width of pictures, px; multiples of 32.
        form: of depthwise and 7x7 convolutions; None for what is fast on the device.
        sigma: of the labels' Gaussians along x and y, bins; None for the root of an eighth of the side in px,
            which is what is published for each size: 4.9 and 5.66 for 256 by 192, 6 and 6.93 for 384 by 288.
    """

    backbone: CSPNeXtOptions = MEDIUM
    keypoints: int = len(KEYPOINT_NAMES)
    size: tuple[int, int] = CROP_SIZE
    form: Form | None = None
    sigma: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.sigma is not None and not (len(self.sigma) == 2 and min(self.sigma) > 0):
            raise SimspineError(f"sigma is {self.sigma}; valid are two numbers above 0, along x and y")


SPINEPOSE_S = RTMPoseOptions(CSPNeXtOptions(0.33, 0.5))
SPINEPOSE_M = RTMPoseOptions(MEDIUM)
SPINEPOSE_L = RTMPoseOptions(CSPNeXtOptions(1.0, 1.0))
RTMPOSE_M = SPINEPOSE_M
"""MMPose's medium model, with as many keypoints."""


class RTMPose(nnx.Module):
    """The detector.

    Args:
        options: sizes.
        dtype: of the arithmetic; None for that of the weights.
        rngs: of the first weights.

    Raises:
        ShapeError: the pictures' size is no multiple of 32.
    """

    def __init__(self, options: RTMPoseOptions, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        require_multiple(options.size, STRIDE)
        form = form_here(options.form)
        height, width = (length // STRIDE for length in options.size)
        self.backbone = CSPNeXt(options.backbone, form, dtype=dtype, rngs=rngs)
        self.head = RTMCC(
            self.backbone.n_out,
            options.keypoints,
            options.size,
            height * width,
            form,
            dtype=dtype,
            rngs=rngs,
        )
        self.size = options.size

    def __call__(
        self, pictures: Float[Array, "B H W 3"], *, key: Array | None = None
    ) -> tuple[Float[Array, "B K X"], Float[Array, "B K Y"]]:
        """Scores of the places of keypoints, not normalised: two for each column and each row of a picture.

        Args:
            pictures: normalised as in the weights' training.
            key: of this step in training; none in use.

        Raises:
            ShapeError: the pictures have another size.
        """
        require_pictures(pictures, self.size)
        return self.head(self.backbone(pictures, key))
