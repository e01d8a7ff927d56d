"""A fitted trial in the viewer: its poses on the subject's bones, with ellipsoids that hold its markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, UnsupportedModelError
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.lumbar import free_lumbar
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.fit_results import SHARE, FittedMarker, FittedMotion, FittedSegment
from simspine_jax.pipeline.ik import LoadedModel
from simspine_jax.skeleton import TRC_NAMES
from simspine_jax.viz.ellipsoids import Ellipsoids, ellipsoids_of
from simspine_jax.viz.viewer import serve, write_html

_SAME_M = 1e-3  # far above float32's rounding, far below a wrong size


@dataclass(frozen=True, eq=False)
class FittedView:
    """What is shown of a fitted trial.

    Attributes:
        model: that was fitted, not scaled.
        q: [T Q] rad and m.
        targets: triangulated points [T K 3] m, ground (Y up), NaN where there are none; None to show none.
        rate_hz: frames per second.
        scale_factors: [B 3] of the model's bodies.
        marker_offsets: [K 3] m, in their bodies.
        ellipsoids: that hold the markers with `SHARE`.
    """

    model: SpineModel
    q: Float[Array, "T Q"]
    targets: Float[Array, "T K 3"] | None
    rate_hz: float
    scale_factors: Float[Array, "B 3"]
    marker_offsets: Float[Array, "K 3"]
    ellipsoids: Ellipsoids


def fitted_view(
    model: SpineModel,
    motion: FittedMotion,
    segments: Sequence[FittedSegment],
    markers: Sequence[FittedMarker],
    points: NDArray[np.floating] | None = None,
) -> FittedView:
    """What the viewer shows of a fitted trial.

    Args:
        model: that was fitted; also where its lumbar levels were free or in a rhythm of the subject's own.
        motion: of the trial.
        segments: of the subject.
        markers: likewise.
        points: triangulated [T 37 3] m, in the order of `skeleton.TRC_NAMES`.

    Raises:
        ShapeError: the fit is of another model, or of this one before it was scaled.
    """
    if motion.free_names != model.free_names and (loose := _with_free_lumbar(model)) is not None:
        model = loose if motion.free_names == loose.free_names else model
    factors = {body: segment.factors for segment in segments for body in segment.bodies}
    offsets = {marker.name: marker.offset_mm for marker in markers}
    for what, given, own in (
        ("coordinates", motion.free_names, model.free_names),
        ("markers", motion.marker_names, model.marker_names),
        ("offsets", tuple(offsets), model.marker_names),
        ("scaled bodies", tuple(factors), model.body_names),
    ):
        if set(given) != set(own) or (what in ("coordinates", "markers") and given != own):
            raise ShapeError(
                f"The fit's {what} are not those of the model {model.name}; valid is the model of the fit"
            )
    targets = None
    if points is not None:
        missing = np.full((len(motion.times), 3), np.nan)
        ids = (TRC_NAMES.index(name) if name in TRC_NAMES else None for name in model.marker_names)
        targets = jnp.asarray(np.stack([missing if i is None else points[:, i] for i in ids], axis=1))
    scale_factors = jnp.asarray([factors[body] for body in model.body_names], model.dtype)
    marker_offsets = jnp.asarray([offsets[name] for name in model.marker_names], model.dtype) / 1e3
    q = jnp.asarray(motion.q, model.dtype)
    own = _markers(model, q[:1], scale_factors, marker_offsets)
    if not np.allclose(own, motion.markers[:1], atol=_SAME_M):
        raise ShapeError(
            f"The fit's markers are not where the model {model.name} has them in its poses; valid is the "
            "model of the fit, not one that is scaled already"
        )
    clock = motion.times
    rate_hz = (len(clock) - 1) / float(clock[-1] - clock[0]) if len(clock) > 1 else 1.0
    shells = ellipsoids_of(motion.marker_covariance, SHARE)
    return FittedView(model, q, targets, rate_hz, scale_factors, marker_offsets, shells)


def _with_free_lumbar(model: SpineModel) -> SpineModel | None:
    try:
        return free_lumbar(model)
    except UnsupportedModelError:
        return None


@jax.jit
def _markers(model: SpineModel, q: Array, scale_factors: Array, marker_offsets: Array) -> Array:
    return forward_kinematics(model, q, scale_factors=scale_factors, marker_offsets=marker_offsets).markers


def write_fit_html(loaded: LoadedModel, view: FittedView, path: Path) -> None:
    """Writes a page that plays a fitted trial.

    Raises:
        MissingDependencyError, SimspineError: as `viewer.write_html`.
    """
    write_html(view.model, view.q, path, view.targets, **_shown(loaded, view))


def serve_fit(loaded: LoadedModel, view: FittedView, port: int) -> None:
    """Shows a fitted trial until it is interrupted.

    Raises:
        MissingDependencyError, SimspineError: as `viewer.serve`.
    """
    serve(view.model, view.q, view.targets, port=port, **_shown(loaded, view))


def _shown(loaded: LoadedModel, view: FittedView) -> dict[str, Any]:
    return {
        "rate_hz": view.rate_hz, "meshes": loaded.sidecar, "scale_factors": view.scale_factors,
        "marker_offsets": view.marker_offsets, "ellipsoids": view.ellipsoids,
    }  # fmt: skip
