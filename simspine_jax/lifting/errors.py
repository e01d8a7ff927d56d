"""How far a lifter's keypoints are off, as a fit needs to know it; kept beside the training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError
from simspine_jax.io.files import atomic_write, malformed, read_text
from simspine_jax.skeleton import KEYPOINT_NAMES

FILE = "errors.json"
"""In the folder of a training."""

DEFAULT_STD_M, DEFAULT_SIZE_STD = (0.06, 0.05, 0.12), 0.07
DEFAULT_ALIKE_S, DEFAULT_ALIKE_KEYPOINTS = 2.5, 10.5
"""Of a training whose errors were not measured: those of ``temporal_full`` on detected keypoints of the
synthetic set's test subjects; deviations are root mean squares over keypoints."""

LEAST_STD_M, LEAST_SIZE_STD = 0.005, 0.01
"""So that neither keypoints next to the root nor sizes are believed to be exact."""


_LIMBS = tuple(
    (side, pair)
    for side in ("left", "right")
    for pair in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist"))
)
"""Bones whose lengths don't change, and that lifters don't take for narrower than they are, as shoulders."""

_NUMBERS = ("alike_s", "alike_keypoints", "size_std")


@dataclass(frozen=True, eq=False)
class LifterErrors:
    """Errors of a lifter's keypoints.

    Attributes:
        std: ``[37 3]`` m, root mean square along the camera's axes (x right, y down, z forward), of the
            keypoints of the vocabulary in its order, from the root keypoint.
        alike_s: seconds over which errors are alike.
        alike_keypoints: how many keypoints err alike.
        size_std: of the size of the lifted body in a view, as a share.
        source: what they were measured on, in words; empty for the default.
    """

    std: NDArray[np.float64]
    alike_s: float
    alike_keypoints: float
    size_std: float
    source: str = ""

    def __post_init__(self) -> None:
        wanted = (len(KEYPOINT_NAMES), 3)
        if self.std.shape != wanted or not (np.isfinite(self.std) & (self.std > 0)).all():
            raise ShapeError(
                f"Errors of a lifter have shape {self.std.shape}; valid is {wanted}, numbers above 0"
            )
        for name in ("alike_s", "alike_keypoints", "size_std"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ShapeError(f"{name} is {getattr(self, name)}; valid is a finite number above 0")


def default_errors() -> LifterErrors:
    """Those of a lifter of which nothing was measured."""
    std = np.tile(DEFAULT_STD_M, (len(KEYPOINT_NAMES), 1))
    return LifterErrors(std, DEFAULT_ALIKE_S, DEFAULT_ALIKE_KEYPOINTS, DEFAULT_SIZE_STD)


def measured_errors(
    lifted: NDArray[np.floating],
    truth: NDArray[np.floating],
    view: NDArray[np.int64],
    rate_hz: float,
    source: str,
) -> LifterErrors:
    """What a lifter's errors come to on frames of which the truth is known.

    Errors that are alike over n frames leave a mean over a view's N frames whose variance is n / N of theirs;
    that tells n, and likewise how many keypoints err alike. What a view errs by throughout is in it, so that
    n grows with N where that is much.

    Args:
        lifted: ``[M 37 3]`` m, from the root keypoint along the camera's axes.
        truth: likewise; NaN where it is not known.
        view: ``[M]`` number of the trial and view.
        rate_hz: frames a second.
        source: what they were measured on, in words.

    Raises:
        ShapeError: a keypoint is known nowhere.
    """
    error = np.asarray(lifted, np.float64) - truth
    known: NDArray[np.bool_] = np.asarray(np.isfinite(error).all(axis=-1))
    if not known.any(axis=0).all():
        lost = KEYPOINT_NAMES[int(np.argmin(known.any(axis=0)))]
        raise ShapeError(f"The truth of {lost} is known in no frame; valid are clips that know all keypoints")
    off = np.where(known[..., None], error, 0.0)
    std = np.sqrt((off**2).sum(axis=0) / known.sum(axis=0)[:, None])
    std = np.maximum(std, LEAST_STD_M)
    off = off / std
    whole = max(float((off**2).sum()), np.finfo(float).tiny)
    views = [view == number for number in np.unique(view)]
    frames = sum(float((off[here].sum(axis=0) ** 2).sum()) for here in views) / whole
    keypoints = float((off.sum(axis=1) ** 2).sum()) / whole
    sizes = [_size_error(lifted[here], truth[here]) for here in views]
    size = float(np.sqrt(np.nanmean(np.square(sizes)))) if np.isfinite(sizes).any() else DEFAULT_SIZE_STD
    return LifterErrors(
        std, max(frames, 1.0) / rate_hz, max(keypoints, 1.0), max(size, LEAST_SIZE_STD), source
    )


def _size_error(lifted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Logarithm of what limbs measure in a view, over what they do in truth; NaN where none is known."""
    ends = np.array([[KEYPOINT_NAMES.index(f"{side}_{end}") for end in pair] for side, pair in _LIMBS])
    ours, theirs = (np.linalg.norm(x[:, ends[:, 0]] - x[:, ends[:, 1]], axis=-1) for x in (lifted, truth))
    both = np.isfinite(ours) & np.isfinite(theirs)
    return float(np.log(ours[both].sum() / theirs[both].sum())) if both.any() else np.nan


def write_errors(path: Path, errors: LifterErrors) -> None:
    """Writes them as JSON."""
    rows = {name: row.tolist() for name, row in zip(KEYPOINT_NAMES, errors.std, strict=True)}
    about = {name: getattr(errors, name) for name in _NUMBERS}
    document = {"source": errors.source, **about, "std_m": rows}
    with atomic_write(path) as stream:
        stream.write(json.dumps(document, indent=1) + "\n")


def read_errors(path: Path) -> LifterErrors:
    """What `write_errors` has written.

    Raises:
        FileFormatError: it is missing or damaged.
    """
    text = read_text(path)
    try:
        document = json.loads(text)
        rows = np.array([document["std_m"][name] for name in KEYPOINT_NAMES], np.float64)
        numbers = {name: float(document[name]) for name in _NUMBERS}
        return LifterErrors(rows, **numbers, source=str(document["source"]))
    except (ValueError, KeyError, TypeError, ShapeError):
        valid = "what 'simspine evaluate --errors' writes"
        raise malformed(path, None, "it holds no errors of a lifter", valid) from None
