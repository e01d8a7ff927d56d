"""Dynamics of converted models: mass properties, mass matrix, inverse dynamics, forward simulation."""

from __future__ import annotations

from simspine_jax.dynamics.contact import Contacts, Floor, contact_forces, floor_under_feet
from simspine_jax.dynamics.equations import (
    InverseDynamics,
    JointForces,
    centre_of_mass,
    inverse_dynamics,
    mass_matrix,
    uncoupled_inverse_dynamics,
    uncoupled_mass_matrix,
)
from simspine_jax.dynamics.loads import ExternalWrenches, sample_loads
from simspine_jax.dynamics.model import DynamicModel, MassProperties, build_dynamic_model, load_dynamic_model
from simspine_jax.dynamics.motion import CoordinateMotion, differentiate, lowpass_iir
from simspine_jax.dynamics.scaling import scale_dynamic_model, scale_mass_properties
from simspine_jax.dynamics.simulation import (
    Reference,
    SimulationState,
    Springs,
    accelerations,
    simulate,
)

__all__ = [
    "Contacts",
    "CoordinateMotion",
    "DynamicModel",
    "ExternalWrenches",
    "Floor",
    "InverseDynamics",
    "JointForces",
    "MassProperties",
    "Reference",
    "SimulationState",
    "Springs",
    "accelerations",
    "build_dynamic_model",
    "centre_of_mass",
    "contact_forces",
    "differentiate",
    "floor_under_feet",
    "inverse_dynamics",
    "load_dynamic_model",
    "lowpass_iir",
    "mass_matrix",
    "sample_loads",
    "scale_dynamic_model",
    "scale_mass_properties",
    "simulate",
    "uncoupled_inverse_dynamics",
    "uncoupled_mass_matrix",
]
