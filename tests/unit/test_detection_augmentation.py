"""Augmentation: keypoints go where pixels go, draws are as stated and repeat, colours are OpenCV's."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from simspine_jax.datasets import picture_batches, pictures_in_memory
from simspine_jax.detection.augmentation import (
    LOWER_BODY,
    UPPER_BODY,
    DrawnCrop,
    Geometry,
    blurred,
    draw_matrix,
    moved_keypoints,
    warped,
)
from simspine_jax.detection.codecs import SimCC, picture_keypoints
from simspine_jax.detection.curriculum import (
    EASY,
    HARD,
    MEDIUM,
    PAPER_STAGES,
    SWITCH_SHARES,
    Curriculum,
)
from simspine_jax.detection.photometric import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColourChanges,
    Colours,
    Hole,
    augment,
    draw_changes,
    draw_holes,
    normalise,
    recolour,
    sample_keys,
)
from simspine_jax.errors import ShapeError, SimspineError
from simspine_jax.pictures import (
    CROP_SIZE,
    OCCLUDED,
    OUTSIDE,
    VISIBLE,
    Crop,
    Picture,
    crop_matrix,
    encode_jpeg,
    map_points,
    padded_box,
    top_down,
)
from simspine_jax.skeleton import KEYPOINT_NAMES, SWAP

K = len(KEYPOINT_NAMES)
WIDTH, HEIGHT = 420, 480
STILL = Geometry(flip=0.0, half_body=0.0, scale=(1.0, 1.0), rotation_deg=0.0, shift=0.0)
# Shares of draws: 5 standard deviations of 1,000 of them are below this.
SHARE = 0.08
# Left keypoints are red, right ones green, and those in the middle blue.
COLOUR = np.array([{"left": 0, "right": 1}.get(name.partition("_")[0], 2) for name in KEYPOINT_NAMES])


def spots() -> np.ndarray:
    """The 37 keypoints, far enough from each other to be told apart, at no whole pixels."""
    grid = np.array([(x, y) for y in range(7) for x in range(6)], float)[:K]
    return np.array([65.0, 60.0]) + 58 * grid + np.random.default_rng(0).uniform(-4, 4, (K, 2))


def lights(points: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """A smooth spot of light at each keypoint, in its side's colour."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for point, colour in zip(points, COLOUR, strict=True):
        pixels[..., colour] += 250 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return pixels.astype(np.uint8)


PIXELS = lights(spots())


def make_picture(**changes: Any) -> Picture:
    values: dict[str, Any] = {
        "jpeg": encode_jpeg(PIXELS, 98), "width": WIDTH, "height": HEIGHT, "subject": "S1",
        "action": "Walking", "camera": "free", "frame": 0, "is_synthetic": True, "appearance_seed": 5,
        "box": [50, 40, 320, 400], "area": 9000.0, "keypoints_2d": spots(),
        "visibility": np.full(K, VISIBLE), "keypoints_3d": np.ones((K, 3)), "camera_matrix": np.eye(3),
        "camera_rotation": np.eye(3), "camera_translation": np.zeros(3), "camera_distortion": np.zeros(8),
    }  # fmt: skip
    return Picture(**(values | changes))


PICTURE = make_picture()


def mirrors(matrix: np.ndarray) -> bool:
    return np.linalg.det(matrix[:, :2]) < 0


def turn_and_scale(matrix: np.ndarray) -> tuple[float, float]:
    """Radians to the left, and crop px of a picture px, of a map that doesn't mirror."""
    return float(np.arctan2(matrix[0, 1], matrix[0, 0])), float(np.hypot(matrix[0, 0], matrix[0, 1]))


# Geometry on the host -------------------------------------------------------------------------------------


def check_spots(crop: Crop) -> int:
    """Looks for the spots of a crop where its keypoints are; how many there were."""
    pixels = crop.pixels.astype(float)
    height, width = pixels.shape[:2]
    scale = np.sqrt(abs(np.linalg.det(crop.matrix[:, :2])))
    reach = round(12 * scale) + 1
    mirrored, seen = mirrors(crop.matrix), 0
    for k, (x, y) in enumerate(crop.keypoints):
        if not crop.visibility[k] or not (reach <= x < width - reach and reach <= y < height - reach):
            continue
        left, top = round(float(x)) - reach, round(float(y)) - reach
        part = pixels[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
        colour = COLOUR[SWAP[k]] if mirrored else COLOUR[k]
        assert part.sum((0, 1)).argmax() == colour
        light = np.where(part[..., colour] > 25, part[..., colour], 0)
        rows, columns = np.mgrid[top : top + light.shape[0], left : left + light.shape[1]]
        place = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        # Levels are rounded, JPEG adds its own, and OpenCV's warp has steps of 1/32 px.
        assert np.abs(place - (x, y)).max() < 0.1
        seen += 1
    return seen


def test_keypoints_move_with_the_picture() -> None:
    sharp = DrawnCrop(HARD.geometry)
    crops = [sharp(PICTURE, np.random.default_rng(seed)) for seed in range(40)]
    assert sum(check_spots(crop) for crop in crops) > 600
    assert 10 < sum(mirrors(crop.matrix) for crop in crops) < 30
    turns = [turn_and_scale(crop.matrix)[0] for crop in crops if not mirrors(crop.matrix)]
    assert max(turns) > 0.5
    assert min(turns) < -0.5


def test_decoded_pictures_are_warped_to_the_same_crop() -> None:
    crop = DrawnCrop(HARD.geometry)(PICTURE, np.random.default_rng(3))
    plain = warped(PIXELS, crop.matrix)
    assert plain.shape == (*CROP_SIZE, 3)
    # JPEG at quality 98 changes a level here and there.
    assert np.abs(plain.astype(int) - crop.pixels).mean() < 1
    with pytest.raises(ShapeError, match=r"valid is uint8 \[H W 3\]"):
        warped(PIXELS[..., 0], crop.matrix)


def test_without_draws_a_crop_is_the_upright_one() -> None:
    crop, upright = DrawnCrop(STILL)(PICTURE, np.random.default_rng(0)), top_down(PICTURE)
    assert np.abs(crop.matrix - upright.matrix).max() < 1e-9
    assert np.array_equal(crop.pixels, upright.pixels)
    assert np.array_equal(crop.visibility, upright.visibility)


def test_a_mirror_image_changes_sides() -> None:
    visibility = np.full(K, VISIBLE)
    left, right = KEYPOINT_NAMES.index("left_wrist"), KEYPOINT_NAMES.index("right_wrist")
    visibility[left], visibility[0] = OCCLUDED, OUTSIDE
    points = spots()
    points[0] = np.nan
    picture = make_picture(visibility=visibility, keypoints_2d=points)
    always = dataclasses.replace(STILL, flip=1.0)
    crop = DrawnCrop(always)(picture, np.random.default_rng(0))
    upright = top_down(picture)
    assert crop.visibility[right] == OCCLUDED
    assert crop.visibility[left] == VISIBLE
    assert crop.visibility[0] == OUTSIDE
    # The box's middle stays in the crop's middle, 96 px from its left.
    shift = crop.keypoints - (upright.keypoints[SWAP] * (-1, 1) + (CROP_SIZE[1], 0))
    known = ~np.isnan(shift[:, 0])
    assert known.sum() == K - 1
    assert np.abs(shift[known]).max() < 1e-3
    back = picture_keypoints(crop.keypoints[None], crop.matrix[None])[0]
    assert np.abs(back - picture.keypoints_2d)[known].max() < 1e-3


def test_the_halves_of_the_body_are_spinetracks() -> None:
    assert (*range(11, 17), *range(19, 26)) == LOWER_BODY
    assert sorted(LOWER_BODY + UPPER_BODY) == list(range(K))


HALVES = (UPPER_BODY, LOWER_BODY)
ONLY_HALVES = dataclasses.replace(STILL, half_body=1.0)


def which_half(visibility: np.ndarray, seed: int) -> int:
    """0 where the upper body is shown, 1 for the lower one, 2 for the whole person."""
    picture = make_picture(visibility=visibility)
    matrix = draw_matrix(picture, np.random.default_rng(seed), ONLY_HALVES)
    apart = {2: np.abs(matrix - top_down(PICTURE).matrix).max()}
    for half, ids in enumerate(HALVES):
        points = picture.keypoints_2d[[i for i in ids if visibility[i]]].astype(float)
        if len(points) > 1:
            extent = 1.5 * (points.max(axis=0) - points.min(axis=0))
            shown = padded_box((*(points.mean(axis=0) - extent / 2), *extent), padding=1)
            apart[half] = np.abs(matrix - crop_matrix(*shown)).max()
    half = min(apart, key=lambda kind: apart[kind])
    assert apart.pop(half) < 1e-9
    assert min(apart.values()) > 1e-3
    return half


def test_a_half_of_the_body_is_shown_with_its_keypoints() -> None:
    shown = [which_half(np.full(K, VISIBLE), seed) for seed in range(200)]
    assert set(shown) == {0, 1}
    assert 0.55 < 1 - np.mean(shown) < 0.85  # MMPose prefers the upper half by 0.7
    for seed in range(10):
        crop = DrawnCrop(ONLY_HALVES)(PICTURE, np.random.default_rng(seed))
        assert (crop.visibility[list(HALVES[shown[seed]])] == VISIBLE).all()


@pytest.mark.parametrize(
    ("uppers", "lowers", "halves"),
    # Where one half has too few keypoints the other is shown; with fewer than 9 of both, none is.
    [
        (10, 2, {0}),
        (24, 0, {0}),
        (1, 8, {1}),
        (2, 7, {0, 1}),
        (6, 3, {0, 1}),
        (5, 3, {2}),
        (1, 2, {2}),
    ],
)
def test_halves_need_keypoints(uppers: int, lowers: int, halves: set[int]) -> None:
    visibility = np.full(K, OUTSIDE)
    visibility[list(UPPER_BODY[:uppers])] = VISIBLE
    visibility[list(LOWER_BODY[:lowers])] = OCCLUDED
    assert {which_half(visibility, seed) for seed in range(20)} == halves


def test_keypoints_in_one_place_still_make_a_half() -> None:
    picture = make_picture(keypoints_2d=np.full((K, 2), 200.0))
    crop = DrawnCrop(ONLY_HALVES)(picture, np.random.default_rng(0))
    assert np.abs(crop.keypoints - (CROP_SIZE[1] / 2, CROP_SIZE[0] / 2)).max() < 1e-3


def test_scales_turns_and_shifts_are_truncated_normal() -> None:
    geometry = dataclasses.replace(HARD.geometry, flip=0.0, half_body=0.0)
    random = np.random.default_rng(1)
    matrices = [draw_matrix(PICTURE, random, geometry) for _ in range(1000)]
    upright = top_down(PICTURE).matrix
    turns, scales = np.array([turn_and_scale(m) for m in matrices]).T
    factors = upright[0, 0] / scales
    assert 0.6 <= factors.min() < 0.63
    assert 1.37 < factors.max() <= 1.4
    # scipy's own law; 0.001 of the seeds would fail.
    truncated = stats.truncnorm(-1, 1)
    assert stats.kstest((factors - 1) / 0.4, truncated.cdf).pvalue > 0.001
    turned = turns[np.abs(turns) > 1e-9]
    assert abs(len(turned) / 1000 - 0.6) < SHARE
    assert np.abs(turned).max() <= np.deg2rad(80)
    assert stats.kstest(turned / np.deg2rad(80), truncated.cdf).pvalue > 0.001
    middle = np.array([CROP_SIZE[1] / 2, CROP_SIZE[0] / 2])
    centers = np.array([map_points(np.linalg.inv(np.vstack([m, [0, 0, 1]]))[:2], middle) for m in matrices])
    shifts = (centers - (50 + 160, 40 + 200)) / (1.25 * np.array([320, 400]))
    moved = np.abs(shifts).max(-1) > 1e-9
    assert abs(moved.mean() - 0.3) < SHARE
    assert np.abs(shifts).max() <= 0.16
    assert stats.kstest(shifts[moved].ravel() / 0.16, truncated.cdf).pvalue > 0.001


def test_the_same_seed_gives_the_same_crop() -> None:
    crop = HARD.crop()
    first, again, other = (crop(PICTURE, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.keypoints, again.keypoints)
    assert not np.array_equal(first.matrix, other.matrix)


def test_draws_do_not_hang_on_each_other() -> None:
    """As many numbers are taken for every crop, so that one without a flip is turned as one with it."""
    after = []
    for geometry in (STILL, HARD.geometry, EASY.geometry):
        random = np.random.default_rng(5)
        draw_matrix(PICTURE, random, geometry)
        blurred(PIXELS, random, geometry.flip)
        after.append(random.random())
    assert after[0] == after[1] == after[2]
    plain, mirrored = (
        draw_matrix(PICTURE, np.random.default_rng(5), dataclasses.replace(HARD.geometry, flip=p, shift=0.0))
        for p in (0.0, 1.0)
    )
    assert not mirrors(plain)
    assert mirrors(mirrored)
    assert np.allclose(plain[:, :2], mirrored[:, :2] * (-1, 1))


@pytest.mark.parametrize("size", [CROP_SIZE, (384, 288)])
def test_crops_have_the_size_that_is_asked_for(size: tuple[int, int]) -> None:
    crop = MEDIUM.crop(size)(PICTURE, np.random.default_rng(2))
    assert crop.pixels.shape == (*size, 3)
    points, visibility = moved_keypoints(PICTURE, crop.matrix)
    assert np.array_equal(points, crop.keypoints)
    assert np.array_equal(visibility, crop.visibility)
    assert np.array_equal(np.sort(visibility), np.sort(PICTURE.visibility))


def test_keypoints_that_a_crop_leaves_out_count_as_far_as_their_labels_reach() -> None:
    """As in MMPose, whose crops keep them and whose codecs drop those more than three deviations outside."""
    visible = np.full(len(PICTURE.visibility), VISIBLE)
    picture = dataclasses.replace(PICTURE, visibility=visible.astype(np.int32))
    crops = [HARD.crop()(picture, np.random.default_rng(seed)) for seed in range(40)]
    points = np.stack([crop.keypoints for crop in crops])
    labelled = np.stack([crop.visibility for crop in crops]) != OUTSIDE
    assert labelled.all()
    counts = np.asarray(SimCC().encode(points, labelled).weight) > 0
    beyond = np.maximum(-points, points - (np.array(CROP_SIZE[::-1]) - 1)).max(-1)
    assert counts[(beyond > 0) & (beyond < 6)].all()
    assert ((beyond > 0) & (beyond < 6)).any()
    assert not counts[beyond > 10].any()
    assert (beyond > 10).any()


def test_empty_boxes_are_refused() -> None:
    with pytest.raises(ShapeError, match="is empty"):
        draw_matrix(make_picture(box=[10, 10, 0, 50]), np.random.default_rng(0), STILL)


def test_blurs_are_opencvs_and_as_often_as_asked() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    random = np.random.default_rng(1)
    assert blurred(crop, random, 0.0) is crop
    widths = (3, 5, 7)
    both = [cv2.medianBlur(cv2.blur(crop, (a, a)), b) for a in widths for b in widths]
    found = [blurred(crop, random, 1.0) for _ in range(60)]
    which = {next(i for i, b in enumerate(both) if np.array_equal(b, f)) for f in found}
    assert which == set(range(9))
    changed = np.mean([blurred(crop, random, 0.1) is not crop for _ in range(1000)])
    assert abs(changed - (1 - 0.9**2)) < SHARE


def test_batches_repeat_and_a_switch_keeps_the_place() -> None:
    """Grain gives each sample of each epoch its own generator; another crop keeps the order."""
    pictures = pictures_in_memory([make_picture(frame=i) for i in range(8)])
    hard = picture_batches(pictures, 4, seed=3, crop=HARD.crop())
    batches = [next(hard) for _ in range(3)]
    again = picture_batches(pictures, 4, seed=3, crop=HARD.crop())
    for batch in batches:
        repeated = next(again)
        assert np.array_equal(batch.pixels, repeated.pixels)
        assert np.array_equal(batch.keypoints, repeated.keypoints)
    assert len({batch.pixels.tobytes() for batch in batches}) == 3
    medium = picture_batches(pictures, 4, seed=3, crop=MEDIUM.crop())
    medium.set_state(hard.get_state())
    switched, kept = next(medium), next(hard)
    assert np.array_equal(switched.index, kept.index)
    assert not np.array_equal(switched.matrix, kept.matrix)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Geometry(flip=1.5), "probability flip is 1.5; valid is 0 to 1"),
        (lambda: Geometry(half_body=-0.1), "half_body is -0.1"),
        (lambda: Geometry(scale=(1.4, 0.6)), "scaled by 1.4 to 0.6"),
        (lambda: Geometry(rotation_deg=-1), "turned by -1 degrees"),
        (lambda: DrawnCrop(STILL, blur=2), "probability of a blur is 2"),
        (lambda: Colours(brightness=-1), "change by -1 levels"),
        (lambda: Colours(hue=91), "valid are 0 or more levels and 0 to 90 hues"),
        (lambda: Colours(contrast=(1.5, 0.5)), "contrast of colours is 1.5 to 0.5"),
        (lambda: Colours(saturation=(-1, 0.5)), "saturation of colours is -1"),
        (lambda: Hole(probability=1.1), "probability 1.1 can't be"),
        (lambda: Hole(size=(0.2, 1.2)), "hole of 0.2 to 1.2"),
    ],
)
def test_wrong_numbers_are_named(make: Any, message: str) -> None:
    with pytest.raises(SimspineError, match=message):
        make()


# Colours and holes on the device --------------------------------------------------------------------------


def noise(count: int, size: tuple[int, int] = (32, 24), seed: int = 0) -> np.ndarray:
    """Crops of all colours; one of them is grey, in which hues have no meaning."""
    crops = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)
    crops[0, :4] = crops[0, :4, :, :1]
    crops[0, 0, 0], crops[0, 0, 1] = 0, 255
    return crops


def changes(count: int, **values: np.ndarray | float) -> ColourChanges:
    default = {"brightness": 0.0, "contrast_first": 1.0, "saturation": 1.0, "hue": 0.0, "contrast_last": 1.0}
    return ColourChanges(**{k: jnp.full(count, v, jnp.float32) for k, v in (default | values).items()})  # type: ignore[arg-type]


def by_opencv(pixels: np.ndarray, draw: ColourChanges, b: int) -> np.ndarray:
    """MMPose's PhotometricDistortion as documented, with OpenCV's HSV of floating-point numbers."""
    levels = np.clip(pixels.astype(np.float32) + float(draw.brightness[b]), 0, 255)
    levels = np.clip(levels * float(draw.contrast_first[b]), 0, 255)
    hue, saturation, value = cv2.split(cv2.cvtColor(levels / 255, cv2.COLOR_RGB2HSV))
    saturation = np.clip(saturation * float(draw.saturation[b]), 0, 1)
    hue = np.mod(hue + 2 * float(draw.hue[b]), 360)  # degrees
    levels = 255 * cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)
    return np.clip(levels * float(draw.contrast_last[b]), 0, 255)


# Levels of 255: OpenCV adds 1e-7 to what it divides by, and each side rounds hues of float32.
HSV_LEVELS = 0.02


def test_colours_change_as_by_opencv() -> None:
    pixels = noise(64)
    draw = draw_changes(sample_keys(1, 0, jnp.arange(64)), Colours())
    ours = np.asarray(recolour(jnp.asarray(pixels), draw))
    assert ours.dtype == np.float32
    for b in range(64):
        assert np.abs(ours[b] - by_opencv(pixels[b], draw, b)).max() < HSV_LEVELS
    assert sum(np.abs(ours[b] - pixels[b]).max() > 20 for b in range(64)) > 40


@pytest.mark.parametrize("hue", [-18.0, -7.3, 0.0, 11.0, 18.0, 60.0])
def test_hues_go_round_and_come_back(hue: float) -> None:
    pixels = noise(2)
    turned = recolour(jnp.asarray(pixels), changes(2, hue=hue))
    back = np.asarray(recolour(turned, changes(2, hue=-hue)))
    assert np.abs(back - pixels).max() < HSV_LEVELS
    eight_bit = cv2.cvtColor(pixels[1], cv2.COLOR_RGB2HSV)
    if hue == 60.0:  # a third of the circle exchanges the colours
        assert np.abs(np.asarray(turned)[1] - pixels[1][..., [2, 0, 1]]).max() < HSV_LEVELS
    bright = (eight_bit[..., 1] > 100) & (eight_bit[..., 2] > 100)
    now = cv2.cvtColor(np.asarray(turned)[1].round().astype(np.uint8), cv2.COLOR_RGB2HSV)
    apart = (now[..., 0].astype(float) - eight_bit[..., 0] - hue + 90) % 180 - 90
    # In OpenCV's own 180 hues, rounded before and after, and from levels that are rounded too.
    assert np.abs(apart[bright]).max() < 2.5


def test_grey_has_no_colour_and_nothing_is_not_changed() -> None:
    pixels = noise(1)[:, :4]
    grey = np.asarray(recolour(jnp.asarray(pixels), changes(1, hue=13.0, saturation=1.5)))
    assert np.abs(grey - pixels).max() < 1e-4
    still = np.asarray(recolour(jnp.asarray(noise(2)), changes(2)))
    assert np.abs(still - noise(2)).max() < 1e-3  # of 255, in float32


def test_draws_of_colours_are_within_their_limits_and_half_of_the_time() -> None:
    draw = draw_changes(sample_keys(0, 0, jnp.arange(1000)), Colours())
    limits = {"brightness": (-32, 32, 0), "saturation": (0.5, 1.5, 1), "hue": (-18, 18, 0)}
    for name, (low, high, none) in limits.items():
        values = np.asarray(getattr(draw, name))
        drawn = values[values != none]
        assert abs(len(drawn) / 1000 - 0.5) < SHARE
        assert stats.kstest((drawn - low) / (high - low), "uniform").pvalue > 0.001
    first, last = np.asarray(draw.contrast_first), np.asarray(draw.contrast_last)
    assert not ((first != 1) & (last != 1)).any()
    assert abs((first != 1).mean() - 0.25) < SHARE
    assert abs((last != 1).mean() - 0.25) < SHARE
    contrast = np.concatenate([first[first != 1], last[last != 1]])
    assert stats.kstest(contrast - 0.5, "uniform").pvalue > 0.001
    fewer = draw_changes(sample_keys(0, 0, jnp.arange(1000)), Colours(brightness=0.0, hue=5.0))
    assert not np.asarray(fewer.brightness).any()
    assert 4.9 < np.abs(np.asarray(fewer.hue)).max() <= 5


def test_holes_have_the_size_that_is_stated() -> None:
    keys = sample_keys(0, 0, jnp.arange(1000))
    holes = np.asarray(draw_holes(keys, Hole(), CROP_SIZE))
    top, bottom, left, right = holes.T
    for low, high, length in ((top, bottom, CROP_SIZE[0]), (left, right, CROP_SIZE[1])):
        extent = high - low
        assert low.min() == 0
        assert high.max() == length
        assert extent.min() == int(0.2 * length)
        assert int(0.4 * length) - 2 <= extent.max() <= int(0.4 * length)
    half = np.asarray(draw_holes(keys, Hole(probability=0.5), CROP_SIZE))
    assert abs((half[:, 1] > 0).mean() - 0.5) < SHARE
    assert np.array_equal(half[half[:, 1] > 0], holes[half[:, 1] > 0])
    assert not np.asarray(draw_holes(keys, Hole(probability=0.0), CROP_SIZE)).any()


def test_holes_are_black_and_nothing_else_is() -> None:
    keys = sample_keys(0, 3, jnp.arange(4))
    white = jnp.full((4, *CROP_SIZE, 3), 255, jnp.uint8)
    found = np.asarray(augment(white, keys, colours=None, hole=Hole()))
    black, plain = (np.asarray(normalise(jnp.full((1, 1, 1, 3), v, jnp.uint8)))[0, 0, 0] for v in (0, 255))
    for crop, (top, bottom, left, right) in zip(
        found, np.asarray(draw_holes(keys, Hole(), CROP_SIZE)), strict=True
    ):
        expected = np.broadcast_to(plain, crop.shape).copy()
        expected[top:bottom, left:right] = black
        assert np.abs(crop - expected).max() < 1e-6


def test_normalising_is_imagenets() -> None:
    pixels = noise(2)
    wanted = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    for found in (
        normalise(jnp.asarray(pixels)),
        EASY.augment(jnp.asarray(pixels), sample_keys(0, 0, jnp.arange(2))),
    ):
        assert found.dtype == jnp.float32
        assert np.abs(np.asarray(found) - wanted).max() < 1e-6


def test_draws_follow_from_seed_epoch_and_sample_alone() -> None:
    pixels = jnp.asarray(np.repeat(noise(1, seed=2), 4, axis=0))
    index = jnp.asarray([5, 9, 2, 7])
    found = np.asarray(HARD.augment(pixels, sample_keys(3, 1, index)))
    assert len({crop.tobytes() for crop in found}) == 4
    turned = np.asarray(HARD.augment(pixels, sample_keys(3, 1, index[::-1])))
    assert np.array_equal(found, turned[::-1])
    for seed, epoch in ((4, 1), (3, 2)):
        other = np.asarray(HARD.augment(pixels, sample_keys(seed, epoch, index)))
        assert not any(np.array_equal(a, b) for a, b in zip(found, other, strict=True))
    each = sample_keys(3, jnp.asarray([1, 1, 2, 1]), index)
    mixed = np.asarray(HARD.augment(pixels, each))
    assert [np.array_equal(a, b) for a, b in zip(found, mixed, strict=True)] == [True, True, False, True]


@pytest.mark.usefixtures("float32")
def test_draws_are_those_of_the_other_precision() -> None:
    keys = sample_keys(3, 1, jnp.arange(4))
    with jax.enable_x64(True):
        wider = sample_keys(3, 1, jnp.arange(4))
        wanted = np.asarray(draw_holes(wider, Hole(), CROP_SIZE))
    assert np.array_equal(np.asarray(draw_holes(keys, Hole(), CROP_SIZE)), wanted)


# The curriculum -------------------------------------------------------------------------------------------


def test_stages_switch_at_their_shares_of_the_training() -> None:
    curriculum = Curriculum(PAPER_STAGES, SWITCH_SHARES)
    names = [curriculum.at(epoch / 10).name for epoch in range(10)]
    assert names == ["hard"] * 5 + ["medium"] * 3 + ["easy"] * 2
    assert [curriculum.number(share) for share in (0, 0.5, 1.0)] == [0, 1, 2]
    assert Curriculum((EASY,), ()).at(0.9) is EASY


def test_stages_are_the_papers_kinds() -> None:
    assert HARD.colours is not None
    assert MEDIUM.colours is EASY.colours is None
    assert [stage.hole and stage.hole.probability for stage in PAPER_STAGES] == [1.0, 0.5, None]
    assert [stage.hole and stage.hole.size for stage in PAPER_STAGES] == [(0.2, 0.4), (0.2, 0.4), None]
    assert [stage.geometry.half_body > 0 for stage in PAPER_STAGES] == [True, True, False]
    assert [stage.geometry.flip for stage in PAPER_STAGES] == [0.5] * 3
    assert [stage.geometry.rotation_deg for stage in PAPER_STAGES] == [80, 60, 30]
    assert [stage.blur for stage in PAPER_STAGES] == [0.1, 0.1, 0]


@pytest.mark.parametrize(
    ("stages", "switches"),
    [
        (PAPER_STAGES, (0.4,)), (PAPER_STAGES, (0.7, 0.4)), (PAPER_STAGES, (0.0, 0.4)),
        (PAPER_STAGES, (0.4, 0.4)), (PAPER_STAGES, (0.4, 1.0)), (PAPER_STAGES, (210, 336)), ((), ()),
    ],
)  # fmt: skip
def test_wrong_switches_are_named(stages: tuple, switches: tuple[float, ...]) -> None:
    with pytest.raises(SimspineError, match=r"can't be the switches of \d stages; valid are \d, rising"):
        Curriculum(stages, switches)
