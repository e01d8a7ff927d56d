"""Picture records, JPEG, and top-down crops against MMPose's three-point construction."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest

from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.pictures import (
    CROP_SIZE,
    OCCLUDED,
    OUTSIDE,
    PICTURE_FIELDS,
    VISIBLE,
    Picture,
    contact_sheet,
    crop_jpeg,
    crop_matrix,
    decode_jpeg,
    draw_picture,
    encode_jpeg,
    inverse_map,
    map_points,
    padded_box,
    top_down,
    top_downs,
)

# Matrices are float64; MMPose's are float32, so its own error on 1,000 px is about 1e-4.
EXACT, MMPOSE_PX = 1e-9, 2e-3


def blurred_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 6)


def make_picture(width: int = 384, height: int = 300, **changes: Any) -> Picture:
    random = np.random.default_rng(3)
    points = random.uniform((80, 40), (220, 260), (37, 2))
    values: dict[str, Any] = {
        "jpeg": encode_jpeg(blurred_noise(height, width)),
        "width": width,
        "height": height,
        "subject": "S1",
        "action": "Walking",
        "camera": "free",
        "frame": 0,
        "is_synthetic": True,
        "appearance_seed": 5,
        "box": [70, 30, 160, 240],
        "area": 9000.0,
        "keypoints_2d": points,
        "visibility": np.full(37, VISIBLE),
        "keypoints_3d": np.ones((37, 3)),
        "camera_matrix": np.eye(3),
        "camera_rotation": np.eye(3),
        "camera_translation": np.zeros(3),
        "camera_distortion": np.zeros(8),
    }
    return Picture(**(values | changes))


def test_fields_are_described_and_arrays_have_their_kind() -> None:
    picture = make_picture()
    assert [f.name for f in PICTURE_FIELDS] == [f.name for f in dataclasses.fields(Picture)]
    for field in PICTURE_FIELDS:
        assert field.doc
        if field.shape:
            array = getattr(picture, field.name)
            assert array.shape == field.shape
            assert array.dtype == field.kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"box": [1, 2, 3]}, r"box of a picture of S1.*\(3,\)"), ({"width": 0}, "0 by 300 px")],
)
def test_wrong_shapes_are_named(changes: dict[str, Any], message: str) -> None:
    values = {f.name: getattr(make_picture(), f.name) for f in PICTURE_FIELDS} | changes
    with pytest.raises(ShapeError, match=message):
        Picture(**values)


def test_jpeg_keeps_rgb() -> None:
    pixels = blurred_noise(120, 160)
    pixels[:60] = (220, 40, 30)
    decoded = decode_jpeg(encode_jpeg(pixels, 95))
    # At quality 95 smooth pictures change by a few levels; exchanged colours would differ by 190.
    assert np.abs(decoded.astype(int) - pixels).mean() < 3
    assert decoded[30, 80, 0] > 190
    assert decoded[30, 80, 2] < 60


@pytest.mark.parametrize("jpeg", [b"", b"no picture", encode_jpeg(blurred_noise(50, 50))[:30]])
def test_broken_pictures_are_named(jpeg: bytes) -> None:
    with pytest.raises(FileFormatError, match="can't be decoded"):
        decode_jpeg(jpeg)


def test_what_is_no_picture_is_not_encoded() -> None:
    with pytest.raises(ShapeError, match="uint8"):
        encode_jpeg(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def mmpose_matrix(center: np.ndarray, extent: np.ndarray, degrees: float) -> np.ndarray:
    """From three points, as MMPose's documentation of the top-down transform describes it."""
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def corners(middle: np.ndarray, up: np.ndarray) -> np.ndarray:
        second = middle + up
        away = middle - second
        return np.array([middle, second, [second[0] - away[1], second[1] + away[0]]], np.float32)

    height, width = CROP_SIZE
    source = corners(center, rotation @ [0, -extent[0] / 2])
    target = corners(np.array([width / 2, height / 2]), np.array([0, -width / 2]))
    return cv2.getAffineTransform(source, target)


@pytest.mark.parametrize("box", [(10, 20, 300, 100), (200, 30, 90, 700), (-40, 5, 60, 80)])
@pytest.mark.parametrize("degrees", [0.0, 33.0, -80.0])
def test_crop_matrices_are_mmposes(box: tuple[float, ...], degrees: float) -> None:
    center, extent = padded_box(box)
    assert extent[0] / extent[1] == pytest.approx(CROP_SIZE[1] / CROP_SIZE[0])
    assert (extent >= 1.25 * np.array(box[2:]) - EXACT).all()
    assert np.isclose(extent, 1.25 * np.array(box[2:])).any()
    ours, theirs = (
        crop_matrix(center, extent, turn=np.deg2rad(degrees)),
        mmpose_matrix(center, extent, degrees),
    )
    points = np.random.default_rng(0).uniform(0, 1000, (20, 2))
    assert np.abs(map_points(ours, points) - map_points(theirs, points)).max() < MMPOSE_PX


@pytest.mark.parametrize("box", [(10, 20, 300, 100), (200, 30, 90, 700)])
def test_udps_extent_ends_in_the_middles_of_corner_pixels(box: tuple[float, ...]) -> None:
    center, extent = padded_box(box)
    corners = center + np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]) * extent
    places = map_points(crop_matrix(center, extent, udp=True), corners)
    height, width = CROP_SIZE
    wanted = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    assert np.abs(places - wanted).max() < EXACT
    # The published transform turns before it stretches, to the side that its other one doesn't.
    turned = crop_matrix(center, extent, turn=0.5, udp=True)
    cosine, sine = np.cos(-0.5), np.sin(-0.5)
    back = (corners - center) @ np.array([[cosine, -sine], [sine, cosine]]).T
    stretched = (back / extent + 0.5) * (width - 1, height - 1)
    assert np.abs(map_points(turned, corners) - stretched).max() < EXACT
    assert np.abs(map_points(inverse_map(turned), stretched) - corners).max() < EXACT


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, 5, float("nan"))])
def test_empty_boxes_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ShapeError, match="is empty"):
        padded_box(box)


def test_the_inverse_map_brings_keypoints_back() -> None:
    matrix = crop_matrix(*padded_box((33, 44, 120, 300)), turn=0.4)
    points = np.random.default_rng(1).uniform(-100, 900, (37, 2))
    assert np.abs(map_points(inverse_map(matrix), map_points(matrix, points)) - points).max() < EXACT


@pytest.mark.parametrize(("size", "spot"), [(300, 2.0), (1000, 6.0), (4000, 24.0)])
def test_pixels_go_where_keypoints_go(size: int, spot: float) -> None:
    """A smooth spot of light; the larger pictures are decoded at a half and at an eighth."""
    place = np.array([0.43, 0.61]) * size
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    light = 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * spot**2))
    jpeg = encode_jpeg(np.repeat(light[..., None], 3, axis=2).astype(np.uint8), 98)
    matrix = crop_matrix(*padded_box((0.3 * size, 0.2 * size, 0.4 * size, 0.7 * size)))
    crop = crop_jpeg(jpeg, matrix)[..., 1].astype(float)
    crop[crop < 30] = 0
    rows, columns = np.mgrid[: crop.shape[0], : crop.shape[1]]
    middle = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
    # Levels are rounded and JPEG adds its own; a shift by half a pixel of the whole picture would be seen.
    assert np.abs(middle - map_points(matrix, place)).max() < 0.06


def test_top_down_moves_keypoints_and_marks_those_outside() -> None:
    picture = make_picture(visibility=np.r_[OCCLUDED, np.full(36, VISIBLE)])
    points = picture.keypoints_2d.copy()
    points[5], points[6] = (5000, 40), np.nan
    picture = dataclasses.replace(picture, keypoints_2d=points)
    crop = top_down(picture)
    assert crop.pixels.shape == (*CROP_SIZE, 3)
    assert crop.visibility.tolist() == [OCCLUDED, *[VISIBLE] * 4, OUTSIDE, OUTSIDE, *[VISIBLE] * 30]
    assert np.isnan(crop.keypoints[6]).all()
    back = map_points(inverse_map(crop.matrix), crop.keypoints)
    known = ~np.isnan(points[:, 0])
    assert np.abs(back[known] - points[known]).max() < 1e-3  # float32 keypoints, the farthest at 5,000 px


def test_many_crops_come_in_order() -> None:
    pictures = [make_picture(box=[20 + i, 30, 100, 200]) for i in range(20)]
    crops = list(top_downs(iter(pictures), threads=3))
    assert len(crops) == 20
    for picture, crop in zip(pictures, crops, strict=True):
        assert np.array_equal(crop.pixels, top_down(picture).pixels)
    with pytest.raises(FileFormatError, match="can't be decoded"):
        list(top_downs([make_picture(), make_picture(jpeg=b"x")]))


def test_drawings_show_box_and_keypoints() -> None:
    picture = make_picture(visibility=np.r_[np.full(18, VISIBLE), np.full(18, OCCLUDED), OUTSIDE])
    drawn = draw_picture(picture, scale=2)
    assert drawn.shape == (600, 768, 3)
    for color in ((40, 220, 60), (255, 140, 0), (60, 130, 255)):
        assert (drawn == color).all(axis=-1).sum() > 30
    assert contact_sheet([drawn, drawn[:100], drawn], columns=2).shape == (1200, 1536, 3)
    with pytest.raises(ShapeError, match="there are none"):
        contact_sheet([])
