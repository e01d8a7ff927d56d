"""Models from their options."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from simspine_jax.datasets import Statistics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.lifting.body import SpineBody
from simspine_jax.lifting.kinematic import KinematicLifter, KinematicOptions
from simspine_jax.lifting.motion_agformer import MotionAGFormer, MotionAGFormerOptions
from simspine_jax.lifting.simple_baseline import SimpleBaseline
from simspine_jax.training.data import KEYPOINTS
from simspine_jax.training.run import Run

LifterModule = SimpleBaseline | MotionAGFormer | KinematicLifter


def build_lifter(run: Run, statistics: Statistics, spine: SpineModel | None) -> LifterModule:
    """The run's model with its first weights.

    Args:
        run: says which.
        statistics: of the training set.
        spine: the spine model; read by the kinematic lifter alone.

    Raises:
        ShapeError: the model can't have the run's keypoints.
    """
    more: dict[str, Any] = {
        "dtype": jnp.dtype(run.compute) if run.compute != "float32" else None,
        "rngs": nnx.Rngs(run.seed),
    }
    if isinstance(run.model, KinematicOptions):
        assert spine is not None
        return KinematicLifter(run.model, statistics, SpineBody(spine), **more)
    if isinstance(run.model, MotionAGFormerOptions):
        return MotionAGFormer(run.model, statistics, **more)
    return SimpleBaseline(run.model, statistics, **more)


def needs_body(run: Run) -> bool:
    """Whether the run's model moves a spine model."""
    return isinstance(run.model, KinematicOptions)


def empty_statistics(run: Run) -> Statistics:
    """Statistics of the right shapes, for a model whose own are in a checkpoint."""
    names = KEYPOINTS[run.data.keypoints]
    flat, solid = np.ones((len(names), 2), np.float32), np.ones((len(names), 3), np.float32)
    return Statistics(flat, flat, solid, solid, names)
