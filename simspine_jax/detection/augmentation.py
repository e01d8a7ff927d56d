"""Drawn crops of people, on the host: one affine map by OpenCV takes pixels and keypoints together.

`DrawnCrop` makes crops for `datasets.picture_batches`, which gives it a generator that is the sample's and
the epoch's own: the same seed gives the same crops. What happens to colours is `photometric`'s, on the
device.

Source: MMPose's RandomFlip, RandomHalfBody, RandomBBoxTransform and TopdownAffine in this order, with their
defaults where no other number is given; Blur and MedianBlur of albumentations, which come before the colours
here and after them there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.pictures import (
    CROP_SIZE,
    OUTSIDE,
    PADDING,
    Crop,
    Picture,
    crop_jpeg,
    crop_matrix,
    import_cv2,
    map_points,
    padded_box,
)
from simspine_jax.skeleton import KEYPOINT_NAMES, SWAP

LOWER_BODY = tuple(
    i
    for i, name in enumerate(KEYPOINT_NAMES)
    if name.rpartition("_")[2] in ("hip", "knee", "ankle", "toe", "heel")
)
"""Ids of hips, legs and feet; the others are the upper body, the lumbar spine too (SpineTrack's dataset)."""

UPPER_BODY = tuple(i for i in range(len(KEYPOINT_NAMES)) if i not in LOWER_BODY)
"""Ids of the others."""

LEAST_KEYPOINTS, LEAST_UPPER, LEAST_LOWER = 9, 2, 3
"""Labelled keypoints that a person, its upper and its lower body need for a crop of a half (MMPose)."""

UPPER_SHARE = 0.7
"""Of the crops of a half that show the upper one, where both could be shown (MMPose)."""

HALF_PADDING = 1.5
"""How much larger than the box of a half's keypoints its crop is (MMPose)."""

ROTATED, SHIFTED = 0.6, 0.3
"""Shares of the crops that are turned, and that are moved (MMPose)."""

BLUR_WIDTHS = (3, 5, 7)
"""Of blurs, px, each as likely (albumentations)."""


@dataclass(frozen=True)
class Geometry:
    """Draws of the map from a picture to its crop.

    What is drawn within limits is normal with the limits at one standard deviation, and cut off there.

    Attributes:
        flip: probability of the mirror image.
        half_body: probability that only the upper or lower body is shown, where enough of it is labelled.
        scale: smallest and largest factor of the padded box.
        rotation_deg: most by which a crop is turned to either side.
        shift: most by which a crop is moved, of the padded box's width and height.
    """

    flip: float = 0.5
    half_body: float = 0.3
    scale: tuple[float, float] = (0.6, 1.4)
    rotation_deg: float = 80.0
    shift: float = 0.16

    def __post_init__(self) -> None:
        for name in ("flip", "half_body"):
            if not 0 <= getattr(self, name) <= 1:
                raise SimspineError(f"The probability {name} is {getattr(self, name)}; valid is 0 to 1")
        low, high = self.scale
        if not (0 < low <= high and self.rotation_deg >= 0 and self.shift >= 0):
            raise SimspineError(
                f"Crops scaled by {low} to {high}, turned by {self.rotation_deg} degrees and moved by "
                f"{self.shift} can't be; valid are a scale above 0, the lower first, and others from 0"
            )


@dataclass(frozen=True)
class DrawnCrop:
    """Makes a crop of a picture by draws: a `datasets.picture_batches.Cropper`.

    Attributes:
        geometry: of the map.
        blur: probability of a box blur, and of a median blur.
        size: height and width of the crops, px.
        udp: see `pictures.crop_matrix`.
    """

    geometry: Geometry
    blur: float = 0.0
    size: tuple[int, int] = CROP_SIZE
    udp: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.blur <= 1:
            raise SimspineError(f"The probability of a blur is {self.blur}; valid is 0 to 1")

    def __call__(self, picture: Picture, random: np.random.Generator) -> Crop:
        """The crop with its keypoints; those of a mirror image change sides with it.

        Raises:
            FileFormatError: the picture can't be decoded.
            ShapeError: its box is empty.
        """
        matrix = draw_matrix(picture, random, self.geometry, self.size, udp=self.udp)
        pixels = blurred(crop_jpeg(picture.jpeg, matrix, self.size), random, self.blur)
        keypoints, visibility = moved_keypoints(picture, matrix)
        return Crop(pixels, keypoints, visibility, matrix)


def draw_matrix(
    picture: Picture,
    random: np.random.Generator,
    geometry: Geometry,
    size: tuple[int, int] = CROP_SIZE,
    *,
    udp: bool = False,
) -> NDArray[np.float64]:
    """A map ``[2 3]`` from px of a picture to px of its crop; it mirrors where its determinant is negative.

    Args:
        picture: whose box and keypoints count.
        random: of which the same number of draws is taken, whatever comes of them.
        geometry: what is drawn.
        size: height and width of the crop, px.
        udp: see `pictures.crop_matrix`.

    Raises:
        ShapeError: the picture's box is empty.
    """
    flip, half, upper, moved, turned, *places = random.random(9)
    across, down, larger, angle = _truncated_normal(np.array(places))
    center, extent = _shown(picture, half < geometry.half_body, upper < UPPER_SHARE)
    mirror = np.eye(3)
    if flip < geometry.flip:
        mirror[0] = -1, 0, 2 * center[0]  # about the person's middle; the crop is the same for any line
    if moved < SHIFTED:
        center = center + geometry.shift * extent * (across, down)
    low, high = geometry.scale
    extent = extent * ((low + high) / 2 + larger * (high - low) / 2)
    turn = np.deg2rad(geometry.rotation_deg) * angle if turned < ROTATED else 0.0
    shown = padded_box((*(center - extent / 2), *extent), size, padding=1)
    return crop_matrix(*shown, size, turn, udp=udp) @ mirror


def moved_keypoints(
    picture: Picture, matrix: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Keypoints in px of a crop, and their visibility.

    Those that the crop leaves out keep theirs, as in MMPose: the codec says which of them still reach into
    it, and labels those alone.

    Args:
        picture: that is shown.
        matrix: px of the picture to px of the crop; a mirroring one exchanges left and right keypoints.
    """
    order = SWAP if np.linalg.det(matrix[:, :2]) < 0 else slice(None)
    keypoints = map_points(matrix, picture.keypoints_2d[order])
    return keypoints.astype(np.float32), picture.visibility[order].astype(np.int32)


def warped(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, int] = CROP_SIZE
) -> NDArray[np.uint8]:
    """The crop ``[h w 3]`` of a picture ``[H W 3]`` that is decoded already; black where it leaves it.

    Raises:
        ShapeError: it is no picture of bytes.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ShapeError(f"A picture has the shape {pixels.shape} and {pixels.dtype}; valid is uint8 [H W 3]")
    cv2 = import_cv2()
    return cv2.warpAffine(pixels, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)


def blurred(pixels: NDArray[np.uint8], random: np.random.Generator, probability: float) -> NDArray[np.uint8]:
    """A crop after a box blur and a median blur, each drawn.

    Args:
        pixels: ``[h w 3]``.
        random: of which the same number of draws is taken, whatever comes of them.
        probability: of each of them.
    """
    box, median, box_width, median_width = random.random(4)
    cv2 = import_cv2()
    if box < probability:
        width = BLUR_WIDTHS[int(box_width * len(BLUR_WIDTHS))]
        pixels = cv2.blur(pixels, (width, width))
    if median < probability:
        pixels = cv2.medianBlur(pixels, BLUR_WIDTHS[int(median_width * len(BLUR_WIDTHS))])
    return pixels


def _shown(picture: Picture, half: bool, upper: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and padded extent (x, y), px, of the person or of one half of it."""
    labelled = (picture.visibility != OUTSIDE) & np.isfinite(picture.keypoints_2d).all(axis=-1)
    ids = _half_ids(labelled, upper) if half else None
    if ids is None:
        left, top, width, height = picture.box.astype(np.float64)
        return np.array([left + width / 2, top + height / 2]), PADDING * np.array([width, height])
    points = picture.keypoints_2d[ids].astype(np.float64)
    # At least a pixel: keypoints may lie above each other.
    return points.mean(axis=0), HALF_PADDING * np.maximum(np.ptp(points, axis=0), 1.0)


def _half_ids(labelled: NDArray[np.bool_], upper: bool) -> NDArray[np.int64] | None:
    """The labelled keypoints of the half to show; None where there are too few for any."""
    uppers, lowers = (np.array([i for i in ids if labelled[i]], np.int64) for ids in (UPPER_BODY, LOWER_BODY))
    if labelled.sum() < LEAST_KEYPOINTS:
        return None
    if len(lowers) < LEAST_LOWER:
        return uppers if len(uppers) >= LEAST_UPPER else None
    if len(uppers) < LEAST_UPPER:
        return lowers
    return uppers if upper else lowers


_LOW, _HIGH = ndtr(-1.0), ndtr(1.0)


def _truncated_normal(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal draws within one standard deviation, of uniform ones."""
    return ndtri(_LOW + uniform * (_HIGH - _LOW))
