"""One camera's pictures lifted: what a fit starts from there, and is held to, in place of triangulation."""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.clips import cameras_in_ground
from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.fitting.subject import LEAST_KEYPOINTS, LiftedMarkers
from simspine_jax.geometry.cameras import normalised_from_pixels, undistort
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.lifting.errors import LifterErrors
from simspine_jax.pipeline.options import SimulationOptions
from simspine_jax.pipeline.stages import Points, TrialInput, clean
from simspine_jax.skeleton import KEYPOINTS, TRC_NAMES, trc_name

ROOT = trc_name(next(keypoint.name for keypoint in KEYPOINTS if not keypoint.parent))
"""The keypoint that lifters measure from."""


class FitLifter(Protocol):
    """What a fit asks of a lifter."""

    @property
    def digest(self) -> str:
        """Tells it from all others."""
        ...

    @property
    def errors(self) -> LifterErrors:
        """Of its keypoints."""
        ...

    def lift(self, trial: TrialInput) -> NDArray[np.float64]:
        """``[T 37 3]`` m from the root keypoint along the axes of the trial's only camera; NaN where unknown.

        Raises:
            SimspineError: the trial has no keypoint of the lifter's.
        """
        ...


def seeing_camera(trial: TrialInput, view: str | None) -> str:
    """The camera whose pictures are lifted: the one that is named, or the only one that sees anything.

    Raises:
        SimspineError: several do and none is named.
        UnknownNameError: there is no such camera.
    """
    assert trial.views is not None
    names = trial.views.cameras.names
    if view is not None:
        if view not in names:
            raise UnknownNameError("Camera", view, f"trial '{trial.action}'", names)
        return view
    seen: NDArray[np.bool_] = np.asarray(np.isfinite(trial.views.keypoints).all(axis=-1))
    sees = [name for view, name in enumerate(names) if seen[:, view].any()]
    if len(sees) != 1:
        raise SimspineError(
            f"Trial '{trial.action}' is seen by {len(sees)} cameras and a lifter takes one; valid is --view "
            f"with one of {', '.join(sees or names)}"
        )
    return sees[0]


def lifted_points(trial: TrialInput, lifted: NDArray[np.float64], options: SimulationOptions) -> Points:
    """Lifted keypoints in the ground, at the distance at which they look most like the pictures.

    Args:
        trial: of one camera.
        lifted: ``[T 37 3]`` of it; see `FitLifter.lift`.
        options: of the chain.

    Raises:
        SimspineError: no frame shows enough keypoints to tell the distance.
    """
    assert trial.views is not None
    views, camera = trial.views, cameras_in_ground(trial.views.cameras)
    keypoints = jnp.moveaxis(jnp.asarray(views.keypoints, float), 1, 2)
    rays = np.asarray(undistort(camera, normalised_from_pixels(camera, keypoints)), np.float64)[:, :, 0]
    sure = np.nan_to_num(np.asarray(views.confidence, np.float64)[:, 0])
    place = root_places(lifted, rays, sure)
    if not np.isfinite(place).any():
        raise SimspineError(
            f"Trial '{trial.action}' has no frame with {LEAST_KEYPOINTS} keypoints that are seen and lifted, "
            "in front of the camera; check that keypoints, calibration and lifter belong together"
        )
    local = lifted + place[:, None]
    turn, shift = np.asarray(camera.rotations)[0], np.asarray(camera.translations)[0]
    positions = (local - shift) @ turn
    known = np.isfinite(positions).all(axis=-1)
    points = Points(TRC_NAMES, trial.times, trial.rate_hz, positions, np.where(known, sure, 0.0))
    return clean(points, options)


def root_places(
    lifted: NDArray[np.float64], rays: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where the root is ``[T 3]``, m, by linear least squares; NaN where that can't be told.

    A point l from the root is on the ray (u, v) if (l + c)_xy = (u, v) (l + c)_z, which is linear in c.

    Args:
        lifted: ``[T K 3]`` m from the root along the camera's axes; NaN where unknown.
        rays: ``[T K 2]`` (x/z, y/z); NaN where unknown.
        weights: ``[T K]`` of each.
    """
    known = np.isfinite(lifted).all(axis=-1) & np.isfinite(rays).all(axis=-1) & (weights > 0)
    enough = known.sum(axis=1) >= LEAST_KEYPOINTS
    points, plane = (np.where(known[..., None], x, 0.0) for x in (lifted, rays))
    weights = np.where(known, weights, 0.0)
    rows = np.concatenate([np.broadcast_to(np.eye(2), (*plane.shape, 2)), -plane[..., None]], axis=-1)
    off = plane * points[..., 2:] - points[..., :2]
    matrix = np.einsum("tk,tkia,tkib->tab", weights, rows, rows)
    side = np.einsum("tk,tkia,tki->ta", weights, rows, off)
    matrix[~enough] = np.eye(3)
    # Keypoints that all lie on one ray tell no distance.
    flat = np.linalg.cond(matrix) > 1 / np.sqrt(np.finfo(float).eps)
    matrix[flat] = np.eye(3)
    place = np.linalg.solve(matrix, side[..., None])[..., 0]
    return np.where((enough & ~flat & (place[:, 2] > 0))[:, None], place, np.nan)


def lifted_markers(
    model: SpineModel, trial: TrialInput, lifted: NDArray[np.float64], errors: LifterErrors
) -> LiftedMarkers:
    """Lifted keypoints as a fit takes them: of the model's markers, with their errors.

    Raises:
        SimspineError: the model has no marker at the root keypoint, or lifter and model share no other.
    """
    names = model.marker_names
    shared = [name for name in names if name in TRC_NAMES]
    if ROOT not in shared or len(shared) < 2:
        raise SimspineError(
            f"The model {model.name} has {len(shared)} markers of the lifter's keypoints, and needs {ROOT} "
            f"and others of {', '.join(TRC_NAMES[:8])} …; valid is a model with the keypoints as markers"
        )
    points, std = np.full((len(lifted), len(names), 3), np.nan), np.ones((len(names), 3))
    here, there = list(model.marker_indices(shared)), [TRC_NAMES.index(name) for name in shared]
    points[:, here], std[here] = lifted[:, there], errors.std[there]
    alike = errors.alike_s * trial.rate_hz
    return LiftedMarkers(points, std, alike, names.index(ROOT), errors.alike_keypoints, errors.size_std)


def unplaced(trial: TrialInput) -> Points:
    """What is known of a trial's points where one camera alone sees them: their pictures."""
    assert trial.views is not None
    shape = (len(trial.times), len(TRC_NAMES))
    return Points(
        TRC_NAMES, trial.times, trial.rate_hz, np.full((*shape, 3), np.nan), np.zeros(shape),
        detections=np.asarray(trial.views.keypoints, np.float64),
        detection_confidence=np.asarray(trial.views.confidence, np.float64),
    )  # fmt: skip
