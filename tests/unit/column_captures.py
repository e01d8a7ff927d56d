"""A small column of lumbar levels in a rhythm, and markers that it leaves, for tests of what is learned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from simspine_jax.fitting.parameters import FitPriors, Layout, Segment, make_layout
from simspine_jax.fitting.subject import Clip, FitOptions, Start, SubjectFit, fit_subject
from simspine_jax.fitting.terms import Setting, markers_of
from simspine_jax.kinematics.lumbar import departing_lumbar
from simspine_jax.skeleton import LUMBAR_LEVELS

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

RATIOS = (1.0, 1.8571, 1.6429, 1.1429, 0.9286, 0.5714)
"""Of the spine model's flexion."""

BODIES = ("pelvis", "lumbar5", "lumbar4", "lumbar3", "lumbar2", "lumbar1", "torso")
SEGMENTS = (Segment("trunk", BODIES),)
RATE_HZ, FRAMES, SWING = 25.0, 40, 0.12
PRIORS = FitPriors(stature=0.02, proportion=0.01, breadth=0.01, offset_m=0.005)


def write_column(path: Path) -> None:
    """An OpenSim model of a free pelvis and six levels that flex in the spine model's ratios."""
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    model = osim.Model()
    model.setName("column")
    zero, parent, place = osim.Vec3(0), model.getGround(), osim.Vec3(0)
    kinds = (osim.FreeJoint, *(osim.PinJoint for _ in LUMBAR_LEVELS))
    for name, kind, level in zip(BODIES, kinds, ("pelvis", *LUMBAR_LEVELS), strict=True):
        body = osim.Body(name, 1.0, zero, osim.Inertia(1, 1, 1, 0, 0, 0))
        joint = kind(f"{level}_joint", parent, place, zero, body, zero, zero)
        model.addBody(body)
        model.addJoint(joint)
        if name != "pelvis":
            joint.upd_coordinates(0).setName(f"{level}_Flex_Ext")
        wide = name in ("pelvis", "torso")
        for i, at in enumerate(((-0.08, 0, 0), (0.05, 0.05, 0.1), (0.05, 0.05, -0.1))[: 3 if wide else 1]):
            model.addMarker(osim.Marker(f"{name}.{i}", body, osim.Vec3(*at)))
        parent, place = body, osim.Vec3(0, 0.035, 0)
    for level, ratio in zip(LUMBAR_LEVELS[1:], RATIOS[1:], strict=True):
        coupler = osim.CoordinateCouplerConstraint()
        coupler.setName(f"{level}_follows")
        names = osim.ArrayStr()
        names.append(f"{LUMBAR_LEVELS[0]}_Flex_Ext")
        coupler.setIndependentCoordinateNames(names)
        coupler.setDependentCoordinateName(f"{level}_Flex_Ext")
        coupler.setFunction(osim.LinearFunction(ratio, 0.0))
        model.addConstraint(coupler)
    model.finalizeConnections()
    model.printToXML(str(path))


def column_poses(model: SpineModel) -> NDArray[np.float64]:
    """[T Q] a column that bends to and fro, 1 m above the ground."""
    phase = np.linspace(0, 9, FRAMES)
    q = np.zeros((FRAMES, model.n_free))
    q[:, 4] = 1.0
    q[:, 2] = 0.1 * np.sin(0.7 * phase)
    q[:, -1] = SWING * np.sin(phase)
    return q


def column_markers(
    model: SpineModel, ratios: NDArray[np.float64], wander: float = 0.0, noise_m: float = 0.003, seed: int = 0
) -> NDArray[np.float64]:
    """[T K 3] m, of levels that turn by these multiples of the leader.

    Args:
        model: the column, coupled.
        ratios: with the sum of `RATIOS`.
        wander: deviation of each level from that, rad, over some frames.
        noise_m: of the markers along each axis.
        seed: of wander and noise.
    """
    random = np.random.default_rng(seed)
    wide = departing_lumbar(model)
    m = wide.coordinate_map
    q = column_poses(model)
    basis = m.full_matrix[-len(LUMBAR_LEVELS) :, model.n_free :]
    phases = np.linspace(0, 9, FRAMES)[:, None] * random.uniform(0.5, 2, 5) + random.uniform(0, 6, 5)
    away = q[:, -1:] * ((ratios - RATIOS) @ basis) + np.sqrt(2) * wander * np.sin(phases)
    found = _markers(Setting(column_layout(wide)), wide, jnp.asarray(np.concatenate([q, away], axis=1)))
    return np.asarray(found) + noise_m * random.normal(size=found.shape)


def column_layout(model: SpineModel) -> Layout:
    """Sizes and offsets alone."""
    return make_layout(model, 0, biased=False, segments=SEGMENTS)


@partial(jax.jit, static_argnums=0)
def _markers(setting: Setting, model: SpineModel, q: jax.Array) -> jax.Array:
    return markers_of(setting, model, jnp.zeros(setting.layout.size), q)


def fit_column(model: SpineModel, markers: NDArray[np.float64], options: FitOptions) -> SubjectFit:
    """The fit to markers alone."""
    frames = len(markers)
    clip = Clip(np.zeros((frames, 0, model.n_markers, 2)), np.zeros((frames, 0, model.n_markers)), markers)
    return fit_subject(
        model, [clip], None, RATE_HZ, Start([column_poses(model)[:frames]]), options, segments=SEGMENTS
    )
