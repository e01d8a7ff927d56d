"""Cameras that make a fit doubtful: far from their calibration, or much noisier than the others.

Deviations are of a fit whose priors hold. A camera that was knocked, or whose keypoints are of something
else, pulls at everything with it; then they are too small, and all that is left is to say so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simspine_jax.fitting.parameters import CENTRE, PER_CAMERA, ROTATION
from simspine_jax.fitting.subject import SubjectFit

FAR = 4.0
"""Deviations from its calibration, along an axis, that a camera is believed in."""

NOISY = 5.0
"""Times that a camera may err as much as the best one."""


def camera_doubts(fit: SubjectFit) -> tuple[str, ...]:
    """A sentence for each reason to doubt a camera; none for a fit that can be believed."""
    if fit.cameras is None:
        return ()
    names = fit.cameras.names
    told = []
    for what, unit, part, factor in (("turned", "deg", ROTATION, 180 / np.pi), ("moved", "mm", CENTRE, 1e3)):
        moved, times = _moves(fit, part)
        told += [
            f"camera {name} is {what} by {factor * x:.3g} {unit}, up to {t:.1f} times what it may be off: "
            "its calibration or its keypoints are wrong"
            for name, x, t in zip(names, moved, times, strict=True)
            if t > FAR
        ]
    noise = camera_noise(fit)
    least = np.nanmin(noise)
    told += [
        f"keypoints in camera {name} are off by {x:.3g} px, {x / least:.1f} times as much as in the best one"
        for name, x in zip(names, noise, strict=True)
        if x > NOISY * least
    ]
    return tuple(told)


def camera_noise(fit: SubjectFit) -> NDArray[np.float64]:
    """[V] px, median deviation of a camera's keypoints; NaN for one that sees nothing."""
    sees = np.isfinite(fit.reprojection_px).any(axis=(0, 1, 3))
    return np.where(sees, np.median(fit.noise_px, axis=1), np.nan)


def _moves(fit: SubjectFit, part: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[V] how far each camera is moved, and the most along an axis in deviations of its prior."""
    layout = fit.setting.layout
    here = slice(layout.n_body, layout.n_body + PER_CAMERA * layout.n_cameras)
    precision = np.diagonal(np.asarray(fit.whole.prior_precision))[here].reshape(-1, PER_CAMERA)[:, part]
    values = np.asarray(fit.theta, np.float64)[here].reshape(-1, PER_CAMERA)[:, part]
    return np.linalg.norm(values, axis=1), np.abs(values * np.sqrt(precision)).max(axis=1)
