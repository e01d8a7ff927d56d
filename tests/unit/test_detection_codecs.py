"""Codecs of detectors against MMPose's definitions, written out here in NumPy, keypoint by keypoint."""

from __future__ import annotations

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.detection.codecs import (
    Codec,
    MsraMap,
    Output,
    SimCC,
    Target,
    UdpMap,
    flip_mean,
    picture_keypoints,
)
from simspine_jax.errors import ShapeError
from simspine_jax.pictures import crop_matrix, map_points, padded_box
from simspine_jax.skeleton import SWAP

B, K = 3, 37
HEIGHT, WIDTH = 256, 192
SIMCC, MSRA, UDP = SimCC(), MsraMap(), UdpMap()
# The sizes of RTMPose's larger models, so that nothing depends on one crop.
LARGE_SIMCC = SimCC((384, 288), sigma=(6.0, 6.93))
LARGE_MSRA, LARGE_UDP = MsraMap((384, 288), (96, 72), 3.0), UdpMap((384, 288), (96, 72), 3.0)
# Everything is float32 of numbers up to 1.
ROUNDING = 1e-6


def keypoints_of(codec: Any, margin: float = 0.0, seed: int = 0) -> np.ndarray:
    """Keypoints anywhere in the crop, or so many pixels beyond its edges."""
    height, width = codec.size
    low, high = (-margin, -margin), (width - 1 + margin, height - 1 + margin)
    return np.random.default_rng(seed).uniform(low, high, (B, K, 2)).astype(np.float32)


def labelled_of(seed: int = 1) -> np.ndarray:
    mask = np.random.default_rng(seed).random((B, K)) < 0.8
    assert 0 < mask.sum() < mask.size
    return mask


def pair(output: Output) -> tuple[np.ndarray, np.ndarray]:
    x, y = output
    return np.asarray(x), np.asarray(y)


# MMPose's definitions -------------------------------------------------------------------------------------


def reference_simcc(codec: SimCC, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    sizes = np.around(np.array(codec.size[::-1]) * codec.split).astype(int)
    sigma = np.array(codec.sigma)
    mu = np.around(point * codec.split).astype(np.int64)
    first, last = mu - 3 * sigma, mu + 3 * sigma + 1
    if (first >= sizes).any() or (last < 0).any():
        return np.zeros(sizes[0]), np.zeros(sizes[1]), 0.0
    x, y = (np.exp(-((np.arange(sizes[i]) - mu[i]) ** 2) / (2 * sigma[i] ** 2)) for i in (0, 1))
    return x, y, 1.0


def reference_map(codec: MsraMap | UdpMap, point: np.ndarray) -> tuple[np.ndarray, float]:
    (rows, columns), sigma = codec.cells, codec.sigma
    width, height = codec.size[1], codec.size[0]
    if isinstance(codec, UdpMap):
        place = point / ((np.array([width, height]) - 1) / (np.array([columns, rows]) - 1))
    else:
        place = point / (np.array([width, height]) / np.array([columns, rows]))
    mu = (place + 0.5).astype(np.int64)
    radius = int(3 * sigma)
    left, top = mu - radius
    right, bottom = mu + radius + 1
    heat = np.zeros((rows, columns))
    if left >= columns or top >= rows or right < 0 or bottom < 0:
        return heat, 0.0
    middle = place if isinstance(codec, UdpMap) else mu
    for y in range(max(0, top), min(rows, bottom)):
        for x in range(max(0, left), min(columns, right)):
            apart = (x - middle[0]) ** 2 + (y - middle[1]) ** 2
            heat[y, x] = np.exp(-apart / (2 * sigma**2))
    return heat, 1.0


def reference_quarter(heat: np.ndarray) -> np.ndarray:
    rows, columns = heat.shape
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    dx = heat[y, x + 1] - heat[y, x - 1] if 1 < x < columns - 1 and 0 < y < rows else 0.0
    dy = heat[y + 1, x] - heat[y - 1, x] if 1 < y < rows - 1 and 0 < x < columns else 0.0
    return np.array([x, y]) + 0.25 * np.sign([dx, dy])


def reference_dark(heat: np.ndarray) -> np.ndarray:
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    padded = cv2.GaussianBlur(np.pad(heat, 5).astype(np.float32), (11, 11), 0)[5:-5, 5:-5]
    log = np.pad(np.log(np.clip(padded * (heat.max() / padded.max()), 1e-3, 50)), 1, mode="edge")
    i, j = y + 1, x + 1
    gradient = 0.5 * np.array([log[i, j + 1] - log[i, j - 1], log[i + 1, j] - log[i - 1, j]])
    dxx = log[i, j + 1] - 2 * log[i, j] + log[i, j - 1]
    dyy = log[i + 1, j] - 2 * log[i, j] + log[i - 1, j]
    dxy = 0.5 * (log[i + 1, j + 1] - log[i, j + 1] - log[i + 1, j] + 2 * log[i, j])
    dxy -= 0.5 * (log[i, j - 1] + log[i - 1, j] - log[i - 1, j - 1])
    curvature = np.array([[dxx, dxy], [dxy, dyy]]) + np.finfo(np.float32).eps * np.eye(2)
    return np.array([x, y]) - np.linalg.solve(curvature, gradient)


# Labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [SIMCC, LARGE_SIMCC])
def test_simcc_labels_are_mmposes(codec: SimCC) -> None:
    points, labelled = keypoints_of(codec, margin=40), labelled_of()
    target = codec.encode(jnp.asarray(points), jnp.asarray(labelled))
    x, y = pair(target.labels)
    weight = np.asarray(target.weight)
    assert x.dtype == y.dtype == weight.dtype == np.float32
    for b, k in np.ndindex(B, K):
        wanted = reference_simcc(codec, points[b, k]) if labelled[b, k] else (0, 0, 0)
        assert np.abs(x[b, k] - wanted[0]).max() < ROUNDING
        assert np.abs(y[b, k] - wanted[1]).max() < ROUNDING
        assert weight[b, k] == wanted[2]
    assert 0 < weight.sum() < labelled.sum()  # some reach into the crop from outside, some don't


@pytest.mark.parametrize("codec", [MSRA, UDP, LARGE_MSRA, LARGE_UDP])
def test_heat_maps_are_mmposes(codec: MsraMap | UdpMap) -> None:
    points, labelled = keypoints_of(codec, margin=60), labelled_of()
    target = codec.encode(jnp.asarray(points), jnp.asarray(labelled))
    heat, weight = np.asarray(target.labels), np.asarray(target.weight)
    assert heat.shape == (B, *codec.cells, K)
    for b, k in np.ndindex(B, K):
        wanted = reference_map(codec, points[b, k]) if labelled[b, k] else (0, 0)
        assert np.abs(heat[b, :, :, k] - wanted[0]).max() < 10 * ROUNDING  # of px / stride, squared
        assert weight[b, k] == wanted[1]
    assert 0 < weight.sum() < labelled.sum()


@pytest.mark.parametrize("codec", [SIMCC, MSRA, UDP])
def test_what_is_not_known_weighs_nothing_and_is_finite(codec: Codec) -> None:
    points, labelled = keypoints_of(codec), np.ones((B, K), bool)
    points[0, 3], points[1, 4, 0] = np.nan, np.nan
    labelled[1, 4] = False
    target = codec.encode(jnp.asarray(points), jnp.asarray(labelled))
    assert np.argwhere(np.asarray(target.weight) == 0).tolist() == [[0, 3], [1, 4]]
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(target))


# There and back -------------------------------------------------------------------------------------------


def error_px(codec: Any, points: np.ndarray, **how: Any) -> np.ndarray:
    target = codec.encode(jnp.asarray(points), jnp.ones(points.shape[:2], bool))
    found = codec.decode(target.labels, **how)
    assert (np.asarray(found.score) > 0).all()
    return np.abs(np.asarray(found.keypoints) - points)


@pytest.mark.parametrize("codec", [SIMCC, LARGE_SIMCC])
@pytest.mark.parametrize("sub_pixel", [False, True])
def test_simcc_is_exact_to_half_a_bin(codec: SimCC, sub_pixel: bool) -> None:
    error = error_px(codec, keypoints_of(codec), sub_pixel=sub_pixel)
    assert 0.24 < error.max() <= 0.25 + 1e-4
    on_bins = np.round(keypoints_of(codec) * 2) / 2
    assert error_px(codec, on_bins, sub_pixel=sub_pixel).max() < 1e-4


def test_msra_is_exact_to_half_a_cell() -> None:
    points = keypoints_of(MSRA)
    inside = (points < (WIDTH - 2, HEIGHT - 2)).all(-1)
    error = error_px(MSRA, points).max(-1)
    assert error[inside].max() <= 2 + 1e-4
    # At the right and lower edge the Gaussian's middle is the cell beyond the map.
    edge = np.array([[[191.0, 100.0], [100.0, 255.0], [188.0, 252.0]]], np.float32)
    assert error_px(MSRA, edge).max(-1)[0].tolist() == [3.0, 3.0, 0.0]


@pytest.mark.parametrize(("codec", "edge_px"), [(UDP, 4.2), (LARGE_UDP, 5.5)])
def test_udp_finds_places_between_cells(codec: UdpMap, edge_px: float) -> None:
    """Exactly, but for the edges: there the published blur sees the nothing beyond the map."""
    points = keypoints_of(codec, seed=5)
    last = np.array(codec.size[::-1]) - 1
    inside = np.minimum(points, last - points).min(-1) > 25  # the window's 3 sigma are 24 px
    error = error_px(codec, points).max(-1)
    assert error[inside].max() < 1e-3
    assert 1 < error.max() < edge_px


# Decoding of what is no label -----------------------------------------------------------------------------


def rough(codec: Any, seed: int = 2) -> tuple[Any, np.ndarray]:
    """Labels with noise, and some keypoints of which there is nothing."""
    random = np.random.default_rng(seed)
    target = codec.encode(jnp.asarray(keypoints_of(codec, seed=seed)), jnp.ones((B, K), bool))
    nothing = random.random((B, K)) < 0.1
    assert nothing.any()

    def spoiled(label: Any) -> np.ndarray:
        noisy = np.asarray(label) + random.normal(0, 0.05, label.shape)
        gone = nothing[:, None, None] if noisy.ndim == 4 else nothing[..., None]
        return np.where(gone, -np.abs(noisy), noisy).astype(np.float32)

    return jax.tree.map(spoiled, target.labels), nothing


def test_simcc_is_decoded_as_by_mmpose() -> None:
    (x, y), nothing = rough(SIMCC)
    found = SIMCC.decode((jnp.asarray(x), jnp.asarray(y)))
    score = np.minimum(x.max(-1), y.max(-1))
    places = np.stack([x.argmax(-1), y.argmax(-1)], -1) / 2
    assert np.array_equal(np.asarray(found.score), score)
    assert np.array_equal(np.asarray(found.keypoints)[~nothing], places[~nothing])
    # MMPose writes -1 there; here what is missing is NaN.
    assert np.isnan(np.asarray(found.keypoints)[nothing]).all()


def test_a_parabola_finds_places_between_bins() -> None:
    """Logits that are Gaussians between bins, as RTMPose's come to be."""
    points = keypoints_of(SIMCC)
    x, y = (
        np.exp(-((np.arange(bins) - 2 * points[..., axis, None]) ** 2) / (2 * SIMCC.sigma[axis] ** 2))
        for axis, bins in enumerate(SIMCC.bins)
    )
    logits = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    inside = ((points > 1) & (points < (WIDTH - 2, HEIGHT - 2))).all(-1)
    whole = np.abs(np.asarray(SIMCC.decode(logits).keypoints) - points)[inside]
    between = np.abs(np.asarray(SIMCC.decode(logits, sub_pixel=True).keypoints) - points)[inside]
    assert whole.max() > 0.24
    assert between.max() < 2e-3  # a Gaussian is no parabola; float32 makes as much


@pytest.mark.parametrize("codec", [MSRA, UDP])
def test_heat_maps_are_decoded_as_by_mmpose(codec: MsraMap | UdpMap) -> None:
    heat, nothing = rough(codec)
    found = codec.decode(jnp.asarray(heat))
    keypoints = np.asarray(found.keypoints)
    assert np.array_equal(np.asarray(found.score), heat.max((1, 2)))
    assert np.isnan(keypoints[nothing]).all()
    udp = isinstance(codec, UdpMap)
    refine = reference_dark if udp else reference_quarter
    sizes = np.array([WIDTH, HEIGHT])
    # MMPose stretches UDP's to the crop's width, which is a pixel more than its last pixel.
    stride = (sizes - 1) / (np.array([48, 64]) - 1) if udp else 4.0
    for b, k in np.argwhere(~nothing):
        wanted = refine(heat[b, :, :, k]) * stride
        # Newton's step divides by curvatures of 1e-2, so float32 leaves 1e-4 of a cell.
        assert np.abs(keypoints[b, k] - wanted).max() < (5e-3 if udp else 1e-4)


def test_quarters_of_a_cell_at_the_edges_are_mmposes() -> None:
    heat = np.random.default_rng(4).random((1, 64, 48, K)).astype(np.float32)
    cells = [(0, 0), (0, 20), (1, 1), (1, 30), (2, 2), (30, 0), (30, 1), (62, 46), (63, 20), (63, 47)]
    for k, (y, x) in enumerate(cells):
        heat[0, y, x, k] = 2.0
    found = np.asarray(MSRA.decode(jnp.asarray(heat)).keypoints)[0, : len(cells)]
    wanted = np.array([4 * reference_quarter(heat[0, :, :, k]) for k in range(len(cells))])
    assert np.array_equal(found, wanted)
    assert 0 < (wanted % 4 == 0).sum() < wanted.size


# Mirror images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "off_px"),
    # Mirrored middles of cells are no middles: MSRA is a quarter of a cell (1 px) off after its shift, and
    # rounds to half a cell, the mean of two maps to a whole one; SimCC is a bin off and rounds to half a bin.
    [(SIMCC, 0.5 + 0.25), (MSRA, 1 + 2 + 1), (UDP, 1e-3)],
)
def test_mirrored_outputs_are_those_of_the_crop(codec: Any, off_px: float) -> None:
    points = keypoints_of(codec, seed=7)
    points = np.clip(points, 30, np.array([WIDTH, HEIGHT]) - 31)
    mirrored = points[:, SWAP] * (-1, 1) + (WIDTH - 1, 0)
    everyone = jnp.ones((B, K), bool)
    labels = codec.encode(jnp.asarray(mirrored, jnp.float32), everyone).labels
    found = codec.decode(codec.mirrored(labels))
    assert np.abs(np.asarray(found.keypoints) - points).max() <= off_px + 1e-3
    straight = codec.encode(jnp.asarray(points), everyone).labels
    mean = codec.decode(flip_mean(codec, straight, labels))
    assert np.abs(np.asarray(mean.keypoints) - points).max() <= off_px + 1e-3


def test_mirroring_is_mmposes() -> None:
    random = np.random.default_rng(8)
    heat = random.random((B, 64, 48, K)).astype(np.float32)
    channels_first = np.moveaxis(heat, -1, 1)  # as MMPose has them
    wanted = channels_first[..., ::-1][:, SWAP].copy()
    assert np.array_equal(np.moveaxis(np.asarray(UDP.mirrored(jnp.asarray(heat))), -1, 1), wanted)
    wanted[..., 1:] = wanted[..., :-1].copy()
    assert np.array_equal(np.moveaxis(np.asarray(MSRA.mirrored(jnp.asarray(heat))), -1, 1), wanted)
    x, y = random.random((B, K, 384)).astype(np.float32), random.random((B, K, 512)).astype(np.float32)
    turned = pair(SIMCC.mirrored((jnp.asarray(x), jnp.asarray(y))))
    assert np.array_equal(turned[0], x[:, SWAP][..., ::-1])
    assert np.array_equal(turned[1], y[:, SWAP])
    halves = pair(flip_mean(SIMCC, (jnp.asarray(x), jnp.asarray(y)), (jnp.asarray(x), jnp.asarray(y))))
    assert np.allclose(halves[0], (x + x[:, SWAP][..., ::-1]) / 2, atol=ROUNDING)


# Losses ---------------------------------------------------------------------------------------------------


def reference_kl(
    outputs: tuple[np.ndarray, np.ndarray], labels: tuple[np.ndarray, np.ndarray], weight: np.ndarray
) -> float:
    """KLDiscretLoss, beta 10 with soft labels, in float64."""

    def softmax(values: np.ndarray) -> np.ndarray:
        raised = np.exp(values - values.max())
        return raised / raised.sum()

    total = 0.0
    for b, k in np.ndindex(*weight.shape):
        for output, label in zip(outputs, labels, strict=True):
            given, wanted = (softmax(10.0 * part[b, k].astype(np.float64)) for part in (output, label))
            total += weight[b, k] * np.mean(wanted * (np.log(wanted) - np.log(given)))
    return total / weight.shape[1]


def test_losses_are_mmposes() -> None:
    points, labelled = keypoints_of(SIMCC), labelled_of()
    random = np.random.default_rng(3)
    target = SIMCC.encode(jnp.asarray(points), jnp.asarray(labelled))
    logits = tuple(random.normal(0, 0.5, (B, K, n)).astype(np.float32) for n in SIMCC.bins)
    loss = float(SIMCC.loss((jnp.asarray(logits[0]), jnp.asarray(logits[1])), target))
    wanted = reference_kl((logits[0], logits[1]), pair(target.labels), np.asarray(target.weight))
    assert loss == pytest.approx(wanted, rel=1e-5)
    # Divided by the keypoints only: the same people twice make twice the loss.
    twice = jax.tree.map(lambda part: jnp.concatenate([part, part]), target)
    doubled = SIMCC.loss(tuple(jnp.concatenate([part, part]) for part in logits), twice)  # type: ignore[arg-type]
    assert float(doubled) == pytest.approx(2 * loss, rel=1e-5)
    maps = MSRA.encode(jnp.asarray(points), jnp.asarray(labelled))
    heat = random.normal(0, 0.5, maps.labels.shape).astype(np.float32)  # type: ignore[union-attr]
    squares = (heat - np.asarray(maps.labels)) ** 2 * np.asarray(maps.weight)[:, None, None]
    assert float(MSRA.loss(jnp.asarray(heat), maps)) == pytest.approx(squares.mean(), rel=1e-5)


@pytest.mark.parametrize("codec", [SIMCC, MSRA, UDP])
def test_the_loss_is_least_at_the_label_and_blind_to_what_is_not_labelled(codec: Codec) -> None:
    points, labelled = keypoints_of(codec), labelled_of()
    target = codec.encode(jnp.asarray(points), jnp.asarray(labelled))
    assert abs(float(codec.loss(target.labels, target))) < ROUNDING

    def shifted(label: Any) -> Any:
        if label.ndim == 4:
            return label + jnp.asarray(~labelled[:, None, None])
        return label + jnp.asarray(~labelled[..., None]) * jnp.linspace(0, 1, label.shape[-1])

    changed = jax.tree.map(shifted, target.labels)
    assert not np.array_equal(jax.tree.leaves(changed)[0], jax.tree.leaves(target.labels)[0])
    assert abs(float(codec.loss(changed, target))) < ROUNDING
    half = jax.tree.map(lambda label: 0.5 * label, target.labels)
    gradient = jax.grad(lambda scale: codec.loss(jax.tree.map(lambda p: scale * p, half), target))(1.0)
    assert float(codec.loss(half, target)) > 0
    assert float(gradient) < 0


# Pictures -------------------------------------------------------------------------------------------------


def test_keypoints_go_back_to_the_picture() -> None:
    random = np.random.default_rng(9)
    points = random.uniform(-50, 800, (B, K, 2))
    mirror = np.array([[-1.0, 0, 719], [0, 1, 0], [0, 0, 1]])
    straight = [crop_matrix(*padded_box((100 + 20 * b, 50, 200, 400)), turn=0.5 * b) for b in range(B)]
    matrices = np.stack([straight[0], straight[1] @ mirror, straight[2]])
    crops = np.stack([map_points(m, p) for m, p in zip(matrices, points, strict=True)])
    crops[1] = crops[1][SWAP]  # the mirror image shows left as right
    assert np.abs(picture_keypoints(crops, matrices) - points).max() < 1e-9
    # Without mirrored ones any number of keypoints goes back.
    assert np.abs(picture_keypoints(crops[:1, :17], matrices[:1]) - points[:1, :17]).max() < 1e-9


def test_udp_keypoints_come_back_from_published_crops_exactly() -> None:
    """Also by MMPose's way back, which knows nothing of the crop's map."""
    boxes = [(100 + 20 * b, 50, 200, 400 - 120 * b) for b in range(B)]
    shown = [padded_box(box) for box in boxes]
    matrices = np.stack([crop_matrix(*s, udp=True) for s in shown])
    inside = np.random.default_rng(4).uniform(0.2, 0.8, (B, K, 2))
    points = np.stack([c + (p - 0.5) * e for p, (c, e) in zip(inside, shown, strict=True)])
    crops = np.stack([map_points(m, p) for m, p in zip(matrices, points, strict=True)])
    target = UDP.encode(jnp.asarray(crops), jnp.ones((B, K), bool))
    found = np.asarray(UDP.decode(target.labels).keypoints, np.float64)
    # A thousandth of a pixel of the crop, which is up to 2.8 of the picture.
    assert np.abs(picture_keypoints(found, matrices) - points).max() < 3e-3
    for b, (center, extent) in enumerate(shown):
        cells = np.array([reference_dark(np.asarray(target.labels)[b, :, :, k]) for k in range(K)])
        theirs = cells / (47, 63) * extent + center - extent / 2
        assert np.abs(theirs - points[b]).max() < 3e-3
    assert UDP.udp
    assert not SIMCC.udp
    assert not MSRA.udp


# Bad input ------------------------------------------------------------------------------------------------


def test_wrong_shapes_are_named() -> None:
    points = jnp.zeros((B, K, 2))
    with pytest.raises(ShapeError, match=r"Keypoints have the shape \(3, 37, 2\) and their mask \(3, 36\)"):
        SIMCC.encode(points, jnp.ones((B, K - 1), bool))
    with pytest.raises(ShapeError, match=r"valid is \[B K \(384, 512\)\]"):
        SIMCC.decode((jnp.zeros((B, K, 512)), jnp.zeros((B, K, 384))))
    with pytest.raises(ShapeError, match=r"\(3, 37, 64, 48\); valid is \[B 64 48 K\]"):
        MSRA.decode(jnp.zeros((B, K, 64, 48)))
    with pytest.raises(ShapeError, match=r"17 keypoints to mirror; valid are the 37"):
        UDP.mirrored(jnp.zeros((B, 64, 48, 17)))
    with pytest.raises(ShapeError, match=r"17 keypoints to mirror"):
        SIMCC.mirrored((jnp.zeros((B, 17, 384)), jnp.zeros((B, 17, 512))))
    with pytest.raises(ShapeError, match=r"valid is \[B 64 48 K\]"):
        MSRA.loss(jnp.zeros((B, 64, 48, K)), Target(jnp.zeros((B, 48, 64, K)), jnp.zeros((B, K))))


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("codec", [SIMCC, MSRA, UDP])
def test_float32_and_bfloat16_outputs_are_taken(codec: Codec) -> None:
    points = keypoints_of(codec)
    target = codec.encode(jnp.asarray(points), jnp.ones((B, K), bool))
    half = jax.tree.map(lambda label: label.astype(jnp.bfloat16), target.labels)
    found = codec.decode(half)
    assert found.keypoints.dtype == jnp.float32
    assert codec.loss(half, target).dtype == jnp.float32
