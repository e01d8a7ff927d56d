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

DEFAULT_STD_M, DEFAULT_ALIKE_S = (0.06, 0.05, 0.12), 2.5
"""Of a training whose errors were not measured: those of ``temporal_full`` on detected keypoints of the
synthetic set's test subjects, the root mean square over keypoints."""

LEAST_STD_M = 0.005
"""Of keypoints next to the root, so that none is believed to be exact."""


@dataclass(frozen=True, eq=False)
class LifterErrors:
    """Errors of a lifter's keypoints.

    Attributes:
        std: ``[37 3]`` m, root mean square along the camera's axes (x right, y down, z forward), of the
            keypoints of the vocabulary in its order, from the root keypoint.
        alike_s: seconds over which errors are alike.
        source: what they were measured on, in words; empty for the default.
    """

    std: NDArray[np.float64]
    alike_s: float
    source: str = ""

    def __post_init__(self) -> None:
        wanted = (len(KEYPOINT_NAMES), 3)
        if self.std.shape != wanted or not (np.isfinite(self.std) & (self.std > 0)).all():
            raise ShapeError(
                f"Errors of a lifter have shape {self.std.shape}; valid is {wanted}, numbers above 0"
            )
        if not (np.isfinite(self.alike_s) and self.alike_s > 0):
            raise ShapeError(f"alike_s is {self.alike_s}; valid is a finite number of seconds above 0")


def default_errors() -> LifterErrors:
    """Those of a lifter of which nothing was measured."""
    return LifterErrors(np.tile(DEFAULT_STD_M, (len(KEYPOINT_NAMES), 1)), DEFAULT_ALIKE_S)


def measured_errors(
    error: NDArray[np.floating], view: NDArray[np.int64], rate_hz: float, source: str
) -> LifterErrors:
    """What errors of known frames come to.

    Errors that are alike over n frames leave a mean over a view's N frames whose variance is n / N of theirs;
    that tells n. What a view errs by throughout is in it, so that n grows with N where that is much.

    Args:
        error: ``[M 37 3]`` m; NaN where it is not known.
        view: ``[M]`` number of the trial and view; their frames follow on one another.
        rate_hz: frames a second.
        source: what they were measured on, in words.

    Raises:
        ShapeError: a keypoint is known nowhere.
    """
    known: NDArray[np.bool_] = np.asarray(np.isfinite(error).all(axis=-1))
    if not known.any(axis=0).all():
        lost = KEYPOINT_NAMES[int(np.argmin(known.any(axis=0)))]
        raise ShapeError(f"The truth of {lost} is known in no frame; valid are clips that know all keypoints")
    off = np.where(known[..., None], np.asarray(error, np.float64), 0.0)
    std = np.sqrt((off**2).sum(axis=0) / known.sum(axis=0)[:, None])
    alike = sum((off[view == number].sum(axis=0) ** 2).sum() for number in np.unique(view))
    frames = max(float(alike / max((off**2).sum(), np.finfo(float).tiny)), 1.0)
    return LifterErrors(np.maximum(std, LEAST_STD_M), frames / rate_hz, source)


def write_errors(path: Path, errors: LifterErrors) -> None:
    """Writes them as JSON."""
    rows = {name: row.tolist() for name, row in zip(KEYPOINT_NAMES, errors.std, strict=True)}
    document = {"source": errors.source, "alike_s": errors.alike_s, "std_m": rows}
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
        return LifterErrors(rows, float(document["alike_s"]), str(document["source"]))
    except (ValueError, KeyError, TypeError, ShapeError):
        valid = "what 'simspine evaluate --errors' writes"
        raise malformed(path, None, "it holds no errors of a lifter", valid) from None
