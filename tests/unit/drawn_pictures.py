"""Pictures of dotted people for the tests of detectors: each keypoint has a colour of its own."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from simspine_jax.pictures import VISIBLE, Picture, encode_jpeg
from simspine_jax.skeleton import KEYPOINT_NAMES

WIDTH, HEIGHT = 96, 128
K = len(KEYPOINT_NAMES)
COLOURS = [
    tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / K, 1.0 - 0.5 * (i % 2), 1.0)) for i in range(K)
]


def drawn_picture(seed: int) -> Picture:
    """A person of dots at random places of a grid, on a grey ground."""
    random = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), random.integers(20, 80), np.uint8)
    rows, columns = np.divmod(np.arange(K), 6)
    points = np.stack([12 + 14 * columns, 12 + 17 * rows], axis=-1) + random.uniform(-5, 5, (K, 2))
    for (x, y), colour in zip(points, COLOURS, strict=True):
        cv2.circle(pixels, (round(x * 16), round(y * 16)), 4 * 16, colour, -1, cv2.LINE_AA, 4)
    nan = np.full
    return Picture(
        jpeg=encode_jpeg(pixels, 95),
        width=WIDTH, height=HEIGHT,
        subject=f"S{seed}", action="Standing", camera="free", frame=seed,
        is_synthetic=True, appearance_seed=seed,
        box=np.array([4, 4, WIDTH - 8, HEIGHT - 8], np.float32), area=float((WIDTH - 8) * (HEIGHT - 8)) / 2,
        keypoints_2d=points.astype(np.float32), visibility=np.full(K, VISIBLE, np.int32),
        keypoints_3d=nan((K, 3), np.nan), camera_matrix=nan((3, 3), np.nan),
        camera_rotation=nan((3, 3), np.nan), camera_translation=nan(3, np.nan), camera_distortion=np.zeros(8),
    )  # fmt: skip
