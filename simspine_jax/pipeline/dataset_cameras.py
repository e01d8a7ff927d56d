"""Cameras out of samples that come without calibrations, from what their rows say of the same points.

A row holds its keypoints in the world (X), in camera space (S) and in the picture. S is X turned by the
camera's R and moved, so R is the rotation of the best rigid motion (Kabsch) between the two, each picture's
points taken from their centre. How S is moved tells t: it is R X + t, or R (X - t) as the official exporter
has it; the pictures decide between the two, and give the lens. Where S is moved otherwise, as in
root-relative files, t and lens are fitted to the pictures by linear least squares, which steps of Levenberg
and Marquardt polish for the distortion.

Source: W. Kabsch, A solution for the best rotation to relate two sets of vectors, Acta Crystallographica A 32
(1976); R. Hartley and A. Zisserman, Multiple View Geometry, 2nd edition, section 7.1, for the linear fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io.samples import CAMERA_SPACE_TOLERANCE_M, ImageName, Samples

FIT_PX = 0.5
"""Root mean square distance from the pictures up to which a camera is believed."""

EXACT_PX = 1e-2
"""Pictures that a lens without distortion meets so well have none."""

DOUBT_M = 0.05
"""A translation is told whose standard deviation is less, by how far off the pictures are that it is fitted
to, and at least `EXACT_PX`."""

MAX_POINTS = 3000
"""Points of a camera that its lens is fitted to; in even steps over all pictures."""

NOT_KNOWN = "S is no rigid image of S_world, so nothing is known of the camera"
BY_SPACE = "R and t fitted to S, the lens to the pictures"
BY_OFFICIAL_SPACE = f"its camera space is R (X - t), corrected here to R X + t: {BY_SPACE}"
BY_PICTURES = "R fitted to S, t and the lens to the pictures"
BY_ROTATION = "R fitted to S; t and the lens are not known, for the pictures don't tell them"

_LENS = 9  # focal lengths, principal point, k1 k2 p1 p2 k3


@dataclass(frozen=True, eq=False)
class _Found:
    """What is known of a camera; NaN where it is not. ``lens`` has f, c, k1 k2 p1 p2 k3."""

    told: str
    R: NDArray[np.float64]
    t: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.full(3, np.nan))
    lens: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.full(_LENS, np.nan))


def recovered_cameras(samples: Samples, names: Sequence[str]) -> tuple[Cameras, str]:
    """The cameras of one subject's samples, in their Z-up world, and in words how they were found.

    Args:
        samples: of one subject, in float64.
        names: of its cameras; nothing but the name is known of one without pictures.
    """
    of_rows = np.array([ImageName.of(name).camera for name in samples.image_names.tolist()])
    found = [_recovered(samples, of_rows == name) for name in names]
    lenses = np.stack([camera.lens for camera in found])
    distortion = np.concatenate([lenses[:, 4:], 0 * lenses[:, :3]], axis=1)
    cameras = Cameras(
        np.stack([camera.R for camera in found]),
        np.stack([camera.t for camera in found]),
        lenses[:, :2], lenses[:, 2:4], 0 * lenses[:, 0], distortion, np.full((len(names), 2), np.nan),
        tuple(names),
    )  # fmt: skip
    told = [camera.told for camera in found]
    if len(set(told)) == 1:
        return cameras, told[0]
    return cameras, "; ".join(f"{name}: {text}" for name, text in zip(names, told, strict=True))


def _recovered(samples: Samples, rows: NDArray[np.bool_]) -> _Found:
    world, space = samples.in_world[rows], samples.in_camera[rows]
    R = _rotation(world, space)
    if R is None:
        return _Found(NOT_KNOWN, np.full((3, 3), np.nan))
    known = np.isfinite(world).all(-1) & np.isfinite(space).all(-1)
    moved = (space - world @ R.T)[known]
    pixels = samples.pixels[rows]
    seen = samples.visible[rows] & np.isfinite(np.concatenate([world, pixels], axis=-1)).all(-1)
    some = np.flatnonzero(seen)
    some = some[:: max(len(some) // MAX_POINTS, 1)]
    turned, pixels = (world @ R.T).reshape(-1, 3)[some], pixels.reshape(-1, 2)[some]
    if np.ptp(moved, axis=0).max() < 2 * CAMERA_SPACE_TOLERANCE_M:
        shift = moved.mean(axis=0)
        fits = []
        for told, t in ((BY_SPACE, shift), (BY_OFFICIAL_SPACE, -R.T @ shift)):
            lens, off = _lens(turned, pixels, t)
            fits.append((off, told, t, lens))
        off, told, t, lens = min(fits, key=lambda fit: fit[0])
        if off < FIT_PX:
            return _Found(told, R, t, lens)
    placed = _placed(turned, pixels)
    return _Found(BY_ROTATION, R) if placed is None else _Found(BY_PICTURES, R, *placed)


def _rotation(world: NDArray[np.float64], space: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """R of [N K 3] points about their centres; None where they are no rigid image, or lie on a line."""
    both = np.concatenate([world, space], axis=-1)
    known: NDArray[np.bool_] = np.all(np.isfinite(both), axis=-1, keepdims=True)
    share = known / np.maximum(known.sum(axis=1, keepdims=True), 1)

    def from_centre(points: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = np.where(known, points, 0.0)
        return np.where(known, filled - (share * filled).sum(axis=1, keepdims=True), 0.0)

    source, target = from_centre(world), from_centre(space)
    left, sizes, right = np.linalg.svd(np.einsum("nki,nkj->ij", target, source))
    if not sizes[1] > 1e-6 * sizes[0]:
        return None
    R = left @ np.diag([1.0, 1.0, np.linalg.det(left) * np.linalg.det(right)]) @ right
    off = np.abs(target - source @ R.T).max(initial=0.0)
    return R if off < CAMERA_SPACE_TOLERANCE_M else None


def _lens(
    turned: NDArray[np.float64], pixels: NDArray[np.float64], t: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """The lens with which points R X [N 3] have their pictures from t, and how far off it is, px."""
    nothing = np.full(_LENS, np.nan), np.inf
    local = turned + t
    if len(local) < _LENS or not (local[:, 2] > 0).all():
        return nothing
    rays = local[:, :2] / local[:, 2:]
    lens = np.zeros(_LENS)
    for axis in range(2):
        columns = np.stack([rays[:, axis], np.ones(len(rays))], axis=1)
        (lens[axis], lens[2 + axis]), *_ = np.linalg.lstsq(columns, pixels[:, axis], rcond=None)
    if not (lens[:2] > 0).all():
        return nothing
    if (off := _distance(lens, local, pixels)) >= EXACT_PX:
        lens = _polished(lambda lens: _project(lens, local) - pixels, lens)
        off = _distance(lens, local, pixels)
    return lens, off


def _placed(
    turned: NDArray[np.float64], pixels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """t and lens of points R X [N 3] by their pictures; None where these leave t open.

    ``u (Y3 + t3) = fx (Y1 + t1) + cx (Y3 + t3)`` and the same of v are linear in f, c, t3 and products.
    """
    if len(turned) < _LENS + 3:
        return None
    one, none = np.ones(len(turned)), np.zeros(len(turned))
    (y1, y2, y3), (u, v) = turned.T, pixels.T
    rows = [np.stack([y1, none, y3, none, one, none, -u]), np.stack([none, y2, none, y3, none, one, -v])]
    unknown, *_ = np.linalg.lstsq(
        np.concatenate(rows, axis=1).T, np.concatenate([u * y3, v * y3]), rcond=None
    )
    f, c, ends, t3 = unknown[:2], unknown[2:4], unknown[4:6], unknown[6]
    if not (f > 0).all():
        return None
    start = np.concatenate([f, c, np.zeros(_LENS - 4), (ends - c * t3) / f, [t3]])

    def off(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return _project(values[:_LENS], turned + values[_LENS:]) - pixels

    if not (turned[:, 2] + t3 > 0).all():
        return None
    found = start if _rms(off(start)) < EXACT_PX else _polished(off, start)
    free = [*range(4), *range(_LENS, _LENS + 3)] if found is start else list(range(_LENS + 3))
    far = _rms(off(found))
    doubt = _doubts(_slopes(off, found)[:, free], max(far, EXACT_PX))[-3:]
    if not (turned[:, 2] + found[-1] > 0).all() or not far < FIT_PX or not (doubt < DOUBT_M).all():
        return None
    return found[_LENS:], found[:_LENS]


def _project(lens: NDArray[np.float64], local: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N 2] px of points before a camera [N 3], OpenCV's model."""
    x, y = local[:, :2].T / local[:, 2]
    k1, k2, p1, p2, k3 = lens[4:]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    across = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    down = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return lens[:2] * np.stack([across, down], axis=1) + lens[2:4]


def _polished(off, start: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import least_squares

    return least_squares(lambda values: off(values).ravel(), start, x_scale="jac", max_nfev=50).x


def _slopes(off, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N P] of residuals by parameters, by central differences."""
    steps = 1e-6 * np.maximum(np.abs(values), 1.0)
    shifts = np.diag(steps)
    return np.stack(
        [(off(values + s) - off(values - s)).ravel() / (2 * d) for s, d in zip(shifts, steps, strict=True)],
        axis=1,
    )


def _doubts(slopes: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Standard deviations of fitted values [P] by residuals' slopes [N P] and noise; infinite where open."""
    sizes = np.linalg.norm(slopes, axis=0)
    if not (sizes > 0).all():
        return np.full(len(sizes), np.inf)
    _, spread, axes = np.linalg.svd(slopes / sizes, full_matrices=False)
    if spread[-1] < 1e-12 * spread[0]:
        return np.full(len(sizes), np.inf)
    return noise * np.linalg.norm(axes.T / spread, axis=1) / sizes


def _distance(lens: NDArray[np.float64], local: NDArray[np.float64], pixels: NDArray[np.float64]) -> float:
    return _rms(_project(lens, local) - pixels)


def _rms(off: NDArray[np.float64]) -> float:
    return float(np.sqrt((off**2).sum(axis=1).mean()))
