"""OpenSim spine models in MuJoCo MJX: exact conversion, batched and differentiable kinematics in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from simspine_jax.errors import SimspineError

if TYPE_CHECKING:
    from simspine_jax.kinematics.clip import Smoothing
    from simspine_jax.kinematics.forward import (
        Poses,
        expand_coordinates,
        expand_qpos,
        forward_kinematics,
        reduce_coordinates,
    )
    from simspine_jax.kinematics.inverse import IKSolution, IKStatus, Prior, solve_ik
    from simspine_jax.kinematics.model import SpineModel, load_model

__version__ = "0.1.0"

__all__ = [
    "IKSolution",
    "IKStatus",
    "Poses",
    "Prior",
    "SimspineError",
    "Smoothing",
    "SpineModel",
    "expand_coordinates",
    "expand_qpos",
    "forward_kinematics",
    "load_model",
    "reduce_coordinates",
    "solve_ik",
]

# JAX and MuJoCo take a second to import: names are fetched from their modules when they are first used,
# so that `simspine --help` and readers of files don't wait for them.
_MODULES = {
    "IKSolution": "simspine_jax.kinematics.inverse",
    "IKStatus": "simspine_jax.kinematics.inverse",
    "Poses": "simspine_jax.kinematics.forward",
    "Prior": "simspine_jax.kinematics.inverse",
    "SpineModel": "simspine_jax.kinematics.model",
    "expand_coordinates": "simspine_jax.kinematics.forward",
    "expand_qpos": "simspine_jax.kinematics.forward",
    "forward_kinematics": "simspine_jax.kinematics.forward",
    "load_model": "simspine_jax.kinematics.model",
    "reduce_coordinates": "simspine_jax.kinematics.forward",
    "Smoothing": "simspine_jax.kinematics.clip",
    "solve_ik": "simspine_jax.kinematics.inverse",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
