"""The angular benchmark of the spine: vertebral rotations by level and axis, curvature, and joint limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Float
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.metrics.angles import (
    Rhythm,
    keypoint_curvature_errors,
    limit_violations,
    lumbar_rhythm,
    rotation_errors,
)
from simspine_jax.metrics.frames import in_blocks
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.tables import Cell, Table

SETTINGS = ("free", "coupled")
"""Angles as they are, and brought to the nearest ones in the rhythm of the model's couplers, both sides."""


@dataclass(frozen=True, eq=False)
class AngleErrors:
    """Errors of the spine's angles over N frames, or frames and views.

    Attributes:
        rms_deg: root mean square by level of `VERTEBRAL_LEVELS` and axis of `MOTIONS`, ``[L 3]`` by setting;
            NaN where nothing is known.
        geodesic_deg: mean angle between predicted and true rotation by level, ``[L]`` by setting.
        lordosis_deg: root mean square error of lordosis L1-S1 by keypoints.
        kyphosis_deg: likewise of kyphosis T3-T12.
        limit_violations: coordinates beyond their bounds over all frames; None for what has no coordinates.
        frames: in which rotations or curvature are compared.
    """

    rms_deg: Mapping[str, NDArray[np.float64]]
    geodesic_deg: Mapping[str, NDArray[np.float64]]
    lordosis_deg: float
    kyphosis_deg: float
    limit_violations: int | None
    frames: int


def angle_errors(
    model: SpineModel,
    rotations: Float[NDArray, "N L 3"] | None,
    true_rotations: Float[NDArray, "N L 3"],
    keypoints: Float[NDArray, "N 37 3"],
    true_keypoints: Float[NDArray, "N 37 3"],
    q: Float[NDArray, "N Q"] | None = None,
) -> AngleErrors:
    """Compares predicted angles with true ones; NaN is missing on either side.

    Args:
        model: the spine model as shipped, whose couplers make the coupled setting; bounds are its own.
        rotations: flexion/extension, lateral bending, axial rotation at `VERTEBRAL_LEVELS`, rad; None of a
            method that gives keypoints alone.
        true_rotations: likewise.
        keypoints: in any frame and at any place, m.
        true_keypoints: in the same frame.
        q: free coordinates of the prediction.

    Raises:
        ShapeError: there are no frames, or the shapes don't fit each other.
        UnsupportedModelError: the model's lumbar joints are not coupled.
    """
    if not len(keypoints):
        raise ShapeError("There are no frames to compare; valid is at least one")
    if rotations is None:
        rotations = np.full_like(true_rotations, np.nan)
    rms, geodesic = {}, {}
    for setting, rhythm in zip(SETTINGS, (None, lumbar_rhythm(model)), strict=True):
        axes, whole = in_blocks(
            lambda found, true, rhythm=rhythm: _rotations(found, true, rhythm), rotations, true_rotations
        )
        rms[setting] = np.degrees(_root_mean_square(axes))
        geodesic[setting] = np.degrees(_mean(whole))
    lordosis, kyphosis = in_blocks(_curvatures, keypoints, true_keypoints)
    beyond = None
    if q is not None:
        (counts,) = in_blocks(lambda poses: (limit_violations(model, poses).count,), q)
        beyond = int(counts.sum())
    known = (np.isfinite(rotations) & np.isfinite(true_rotations)).all(axis=-1).any(axis=-1)
    known |= np.isfinite(lordosis) | np.isfinite(kyphosis)
    return AngleErrors(
        rms, geodesic,
        math.degrees(float(_root_mean_square(lordosis))), math.degrees(float(_root_mean_square(kyphosis))),
        beyond, int(known.sum()),
    )  # fmt: skip


def _rotations(found: jax.Array, true: jax.Array, rhythm: Rhythm | None) -> tuple[jax.Array, jax.Array]:
    errors = rotation_errors(found, true, rhythm=rhythm)
    return errors.axes.values, errors.geodesic.values


def _curvatures(found: jax.Array, true: jax.Array) -> tuple[jax.Array, jax.Array]:
    errors = keypoint_curvature_errors(found, true)
    return errors.lordosis.values, errors.kyphosis.values


def _mean(values: NDArray) -> NDArray[np.float64]:
    """Over frames, of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64)
    count = known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _root_mean_square(values: NDArray) -> NDArray[np.float64]:
    return np.sqrt(_mean(np.square(values, dtype=np.float64)))


Row = tuple[str, str, AngleErrors]
"""A method, its 2D keypoints, and its errors."""


def rotation_table(task: str, rows: Sequence[Row], source: str, notes: tuple[str, ...] = ()) -> Table:
    """Errors by level (columns) and axis, degrees: root mean square, and the mean geodesic error.

    Args:
        task: that the methods solve, a word.
        rows: methods; those without rotations are left out.
        source: the data, in words.
        notes: remarks, each a sentence.
    """
    cells: list[tuple[Cell, ...]] = []
    for method, seen, errors in rows:
        if not np.isfinite(errors.geodesic_deg["free"]).any():
            continue
        for setting in SETTINGS:
            for axis, motion in enumerate(MOTIONS):
                cells.append((method, seen, setting, motion, *map(float, errors.rms_deg[setting][:, axis])))
            cells.append((method, seen, setting, "geodesic", *map(float, errors.geodesic_deg[setting])))
    levels = tuple(level_label(level) for level in VERTEBRAL_LEVELS)
    more = (
        "Root mean square error by axis and mean geodesic error, degrees; free: the angles as they are, "
        "coupled: both sides brought to the rhythm of the model's couplers, which tie six levels together.",
    )
    return Table(
        name=f"angles_{task}",
        title=f"{task.capitalize()}: errors of vertebral rotations by level, degrees",
        columns=("Method", "2D", "Angles", "Error", *levels),
        rows=tuple(cells),
        decimals=(0, 0, 0, 0, *(2 for _ in levels)),
        source=source,
        notes=(*more, *notes),
        breaks=tuple(range(len(SETTINGS) * 4, len(cells), len(SETTINGS) * 4)),
    )


def curvature_table(task: str, rows: Sequence[Row], source: str, notes: tuple[str, ...] = ()) -> Table:
    """Errors of lordosis and kyphosis, and joint limit violations; arguments as in `rotation_table`."""
    cells = tuple(
        (method, seen, errors.lordosis_deg, errors.kyphosis_deg, errors.limit_violations, errors.frames)
        for method, seen, errors in rows
    )
    columns = ("Method", "2D", "Lordosis (°)", "Kyphosis (°)", "Limit violations", "Frames")
    more = (
        "Root mean square errors of the angles that the keypoints of the back show, over the frames that a "
        "method gives. Methods with a body keep its limits by construction: any violation is a defect.",
    )
    return Table(
        name=f"curvature_{task}",
        title=f"{task.capitalize()}: errors of spinal curvature, and joint limits",
        columns=columns,
        rows=cells,
        decimals=(0, 0, 2, 2, 0, 0),
        source=source,
        notes=(*more, *notes),
    )
