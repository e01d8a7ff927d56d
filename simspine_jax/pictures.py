"""Pictures: what one record of a set of pictures holds, and the crops of them that a detector is shown.

A picture shows one person. Pixels are counted as OpenCV does: the middle of the first one is (0, 0), and a
point ``x`` of a camera's frame (x right, y down, z forward, m) lies at ``K x / z``, px. A point X of the
ground (Y up) is at ``x = R X + t`` in the camera's frame. Colours are RGB everywhere.

A top-down crop is made as MMPose makes it: the box grows by `PADDING` about its centre and to the crop's
aspect, and one affine map takes it to the crop. Keypoints go with the picture, and back, by the same map.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simspine_jax.errors import FileFormatError, MissingDependencyError, ShapeError
from simspine_jax.geometry.pixels import in_picture
from simspine_jax.schema import RecordField, fields_of, record_field
from simspine_jax.skeleton import KEYPOINT_NAMES, LINKS

CROP_SIZE = (256, 192)
"""Height and width of the crops that the paper's detectors take, px."""

PADDING = 1.25
"""How much larger than the person's box a crop is."""

OUTSIDE, OCCLUDED, VISIBLE = 0, 1, 2
"""COCO's visibility: not in the picture (or not known), behind something, seen."""

_K = len(KEYPOINT_NAMES)


@dataclass(frozen=True, eq=False)
class Picture:
    """One person in one picture; `PICTURE_FIELDS` says what each field holds.

    Labels of other sets (`datasets.coco`) may have a visibility of 1 or 2 outside of the picture too.

    Raises:
        ShapeError: an array has another shape, or the picture has no pixels.
    """

    jpeg: bytes = record_field("jpeg", doc="The picture as a JPEG file, RGB.")
    width: int = record_field("int32", doc="Of the picture, px.")
    height: int = record_field("int32", doc="Of the picture, px.")
    subject: str = record_field("text", doc="Subject, such as S1.")
    action: str = record_field("text", doc="Action, such as Walking.")
    camera: str = record_field("text", doc="Camera: one of the subject's rig, or 'free' for one of its own.")
    frame: int = record_field("int32", doc="Frame of the trial, from 0.")
    is_synthetic: bool = record_field("bool", doc="Whether it is rendered.")
    appearance_seed: int = record_field(
        "int32",
        doc="Of the draws of this picture's frame, camera, outfit, room, light and noise; body, motion and "
        "cloth are its trial's, so it alone brings no picture back. -1 where it is not rendered.",
    )
    box: NDArray[np.float32] = record_field(
        "float32", 4, doc="Left, top, width and height of what is seen of the person, px."
    )
    area: float = record_field(
        "float32", doc="Of what is seen of the person, px^2; NaN where it is not known."
    )
    keypoints_2d: NDArray[np.float32] = record_field(
        "float32",
        _K,
        2,
        doc="The 37 keypoints, px, also outside of the picture; NaN where they are not known.",
    )
    visibility: NDArray[np.int32] = record_field(
        "int32",
        _K,
        doc="As COCO has it: 0 outside of the picture (as keypoints_2d_mask of clips has it) or not known, "
        "1 occluded, 2 visible.",
    )
    keypoints_3d: NDArray[np.float32] = record_field(
        "float32", _K, 3, doc="The 37 keypoints in the camera's frame, m; NaN where they are not known."
    )
    camera_matrix: NDArray[np.float64] = record_field(
        "float64", 3, 3, doc="K, px; NaN where it is not known."
    )
    camera_rotation: NDArray[np.float64] = record_field(
        "float64", 3, 3, doc="R: ground (Y up) to camera; NaN where it is not known."
    )
    camera_translation: NDArray[np.float64] = record_field(
        "float64", 3, doc="t, m: x = R X + t; NaN where it is not known."
    )
    camera_distortion: NDArray[np.float64] = record_field(
        "float64", 8, doc="k1 k2 p1 p2 k3 k4 k5 k6 as OpenCV has them; 0 in rendered pictures."
    )

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ShapeError(
                f"A picture of {self.subject} is {self.width} by {self.height} px; valid is from 1"
            )
        for field in PICTURE_FIELDS:
            if not field.shape:
                continue
            array = np.asarray(getattr(self, field.name), field.kind)
            if array.shape != field.shape:
                raise ShapeError(
                    f"{field.name} of a picture of {self.subject}, {self.action} has the shape "
                    f"{array.shape}; valid is {field.shape}"
                )
            object.__setattr__(self, field.name, array)


PICTURE_FIELDS: tuple[RecordField, ...] = fields_of(Picture)


def import_cv2() -> Any:
    """OpenCV, which reads, writes and warps pictures.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingDependencyError("opencv-python-headless", "images", "Reading pictures") from None
    return cv2


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """A picture ``[H W 3]``, RGB, as a JPEG file.

    Raises:
        ShapeError: it is no picture of bytes.
    """
    cv2 = import_cv2()
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ShapeError(f"A picture has the shape {pixels.shape} and {pixels.dtype}; valid is uint8 [H W 3]")
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode_jpeg(jpeg: bytes, reduction: Literal[1, 2, 4, 8] = 1) -> NDArray[np.uint8]:
    """A JPEG file (or another that OpenCV reads) as ``[H W 3]``, RGB, turned as its EXIF says.

    Args:
        jpeg: the file.
        reduction: of width and height, which the decoder does at a fraction of the work. The pixel ``x`` of
            the whole picture is at ``(x + 0.5) / reduction - 0.5`` of the reduced one.

    Raises:
        FileFormatError: it can't be decoded.
    """
    cv2 = import_cv2()
    return cv2.cvtColor(_decode_bgr(cv2, jpeg, reduction), cv2.COLOR_BGR2RGB)


def _decode_bgr(cv2: Any, jpeg: bytes, reduction: int) -> NDArray[np.uint8]:
    flags = cv2.IMREAD_COLOR if reduction == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduction}")
    try:
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if jpeg else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise FileFormatError(f"A picture of {len(jpeg)} bytes can't be decoded; valid is a JPEG file")
    return pixels


def padded_box(
    box: ArrayLike, size: tuple[int, int] = CROP_SIZE, padding: float = PADDING
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and extent (x, y), px, of what a crop shows: the padded box, grown to the crop's aspect.

    Source: MMPose, ``bbox_xywh2cs`` and the aspect that its ``TopdownAffine`` fixes.

    Args:
        box: left, top, width and height, px.
        size: height and width of the crop, px.
        padding: of the box.

    Raises:
        ShapeError: the box is empty or not finite.
    """
    left, top, width, height = np.asarray(box, np.float64)
    if not (np.isfinite([left, top, width, height]).all() and width > 0 and height > 0):
        raise ShapeError(
            f"The box {left} {top} {width} {height} is empty; valid is a width and a height above 0"
        )
    aspect = size[1] / size[0]
    wide = max(width, height * aspect) * padding
    return np.array([left + width / 2, top + height / 2]), np.array([wide, wide / aspect])


def crop_matrix(
    center: ArrayLike,
    extent: ArrayLike,
    size: tuple[int, int] = CROP_SIZE,
    turn: float = 0.0,
    *,
    udp: bool = False,
) -> NDArray[np.float64]:
    """``[2 3]``: px of a picture to px of its crop.

    Source: MMPose, ``get_warp_matrix``: the scale is that of the width. With ``udp`` its
    ``get_udp_warp_matrix``, which turns to the other side, of J. Huang et al., The devil is in the details,
    2020: width and height have scales of their own, which differ by less than a hundredth.

    Args:
        center: of the part that is shown (x, y), px.
        extent: of it (x, y), px; its width is the crop's.
        size: height and width of the crop, px.
        turn: radians by which the picture turns to the left in the crop, as MMPose's ``rot``.
        udp: whether the extent is that between the middles of the crop's first and last pixels, as detectors
            of `codecs.UdpMap` want it, and not the number of pixels.
    """
    spans, extent = np.array(size[::-1], np.float64), np.asarray(extent, np.float64)
    if udp:
        spans -= 1
    scale = spans / extent if udp else np.full(2, spans[0] / extent[0])
    linear = scale[:, None] * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.column_stack([linear, spans / 2 - linear @ np.asarray(center, np.float64)])


def inverse_map(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map ``[2 3]`` that undoes another."""
    linear = np.asarray(np.linalg.inv(matrix[:, :2]), np.float64)
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def map_points(matrix: NDArray[np.float64], points: ArrayLike) -> NDArray[np.float64]:
    """Points ``[... 2]``, px, through an affine map ``[2 3]``."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def crop_jpeg(
    jpeg: bytes, matrix: NDArray[np.float64], size: tuple[int, int] = CROP_SIZE
) -> NDArray[np.uint8]:
    """The crop ``[h w 3]``, RGB, of a JPEG file; black where it leaves the picture.

    Pictures that the crop halves (or more) are decoded at a half of their size (or less).

    Args:
        jpeg: the file.
        matrix: px of the picture to px of the crop.
        size: height and width of the crop, px.

    Raises:
        FileFormatError: it can't be decoded.
    """
    cv2 = import_cv2()
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    reduction = next((r for r in (8, 4, 2) if scale * r <= 1), 1)
    pixels = _decode_bgr(cv2, jpeg, reduction)
    shift = (reduction - 1) / 2
    onto = np.column_stack([matrix[:, :2] * reduction, map_points(matrix, [shift, shift])])
    crop = cv2.warpAffine(pixels, onto, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return cv2.cvtColor(crop, cv2.COLOR_BGR2RGB, dst=crop)


@dataclass(frozen=True, eq=False)
class Crop:
    """What a detector is shown of a picture.

    Attributes:
        pixels: uint8 ``[h w 3]``, RGB.
        keypoints: ``[37 2]``, px of the crop; NaN where they are not known.
        visibility: int32 ``[37]``, as in `Picture`, but 0 also outside of the crop.
        matrix: ``[2 3]``, px of the picture to px of the crop; `inverse_map` of it goes back.
    """

    pixels: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    visibility: NDArray[np.int32]
    matrix: NDArray[np.float64]


def top_down(
    picture: Picture, size: tuple[int, int] = CROP_SIZE, padding: float = PADDING, *, udp: bool = False
) -> Crop:
    """The person's crop with its keypoints.

    Args:
        picture: that shows the person in its box.
        size: height and width of the crop, px.
        padding: of the box.
        udp: see `crop_matrix`.

    Raises:
        FileFormatError: the picture can't be decoded.
        ShapeError: its box is empty.
    """
    matrix = crop_matrix(*padded_box(picture.box, size, padding), size, udp=udp)
    keypoints = map_points(matrix, picture.keypoints_2d)
    inside = in_picture(keypoints, np.array(size[::-1]))
    return Crop(
        crop_jpeg(picture.jpeg, matrix, size),
        keypoints.astype(np.float32),
        np.where(inside, picture.visibility, OUTSIDE).astype(np.int32),
        matrix,
    )


def top_downs(pictures: Iterable[Picture], *, threads: int | None = None) -> Iterator[Crop]:
    """`top_down` of many pictures in their order, on all processors; few are held at a time.

    Args:
        pictures: in any number.
        threads: default: one a processor.

    Raises:
        FileFormatError: a picture can't be decoded.
        ShapeError: a box is empty.
    """
    threads = threads or len(os.sched_getaffinity(0))
    source = iter(pictures)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(top_down, picture) for picture in itertools.islice(source, 4 * threads))
        while waiting:
            done = waiting.popleft()
            waiting.extend(pool.submit(top_down, picture) for picture in itertools.islice(source, 1))
            yield done.result()


_COLORS = {VISIBLE: (40, 220, 60), OCCLUDED: (255, 140, 0)}
_LINK_COLOR, _BOX_COLOR = (235, 235, 235), (60, 130, 255)


def draw_picture(picture: Picture, scale: int = 1) -> NDArray[np.uint8]:
    """The picture, RGB, with its box and keypoints: green where visible, orange where occluded."""
    cv2 = import_cv2()
    pixels = decode_jpeg(picture.jpeg)
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    points = np.nan_to_num((picture.keypoints_2d + 0.5) * scale, nan=-1e3).clip(-1e4, 1e4)
    corners = np.array([picture.box[:2], picture.box[:2] + picture.box[2:]]) * scale
    (left, top), (right, bottom) = corners.round().astype(int).tolist()
    cv2.rectangle(pixels, (left, top), (right, bottom), _BOX_COLOR, 1)
    places = [tuple(point) for point in points.round().astype(int).tolist()]
    for a, b in LINKS:
        if picture.visibility[a] and picture.visibility[b]:
            cv2.line(pixels, places[a], places[b], _LINK_COLOR, 1, cv2.LINE_AA)
    for place, seen in zip(places, picture.visibility.tolist(), strict=True):
        if seen:
            cv2.circle(pixels, place, 1 + scale, _COLORS[seen], -1, cv2.LINE_AA)
    return pixels


def contact_sheet(pixels: Iterable[NDArray[np.uint8]], columns: int = 6) -> NDArray[np.uint8]:
    """Pictures ``[H W 3]`` side by side, row by row; smaller ones have black margins.

    Raises:
        ShapeError: there are none.
    """
    tiles = list(pixels)
    if not tiles:
        raise ShapeError("A contact sheet needs pictures; there are none")
    high, wide = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    sheet = np.zeros((-(-len(tiles) // columns) * high, columns * wide, 3), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * high, i % columns * wide
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
