"""Masses of scaled bodies, as OpenSim's scale tool gives them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.model import DynamicModel, MassProperties
from simspine_jax.errors import ShapeError, UnsupportedModelError

# Factors that differ by no more are one, as in SimTK's isNumericallyEqual.
EQUAL = 2e-14


def scale_dynamic_model(
    model: DynamicModel,
    scale_factors: Float[Array, "B #3"],
    mass_kg: float | Array | None = None,
    *,
    preserve_mass_distribution: bool = True,
) -> DynamicModel:
    """The model with lengths, masses and inertias scaled as OpenSim's ``Model::scale`` does it.

    Args:
        model: as it is in its file.
        scale_factors: of each body, the same or one along each axis.
        mass_kg: of the whole body; None keeps the sum that the bodies come to.
        preserve_mass_distribution: see `scale_mass_properties`.

    Raises:
        ShapeError: factors of another shape, or a model that is scaled already.
        UnsupportedModelError: the model can't be scaled exactly.
    """
    if model.scale_factors is not None:
        raise ShapeError("The model is scaled already; valid is one that is as in its file")
    if not model.kinematics.scalable:
        raise UnsupportedModelError(
            f"The model {model.kinematics.name} has joints whose scaling would not equal OpenSim's"
        )
    factors = _factors(model.bodies, scale_factors)
    bodies = scale_mass_properties(
        model.bodies, factors, mass_kg, preserve_mass_distribution=preserve_mass_distribution
    )
    return dataclasses.replace(model, bodies=bodies, scale_factors=factors)


def scale_mass_properties(
    bodies: MassProperties,
    scale_factors: Float[Array, "B #3"],
    mass_kg: float | Array | None = None,
    *,
    preserve_mass_distribution: bool = True,
) -> MassProperties:
    """Masses of bodies whose lengths are scaled; differentiable in the factors and the mass.

    A body whose three factors are equal keeps its shape: its inertia grows with the square of its length.
    One with unlike factors is taken as a cylinder along the axis of its least moment of inertia, which is
    what OpenSim does (``Body::scaleInertialProperties``), and loses what differs from it.

    Args:
        bodies: masses before.
        scale_factors: of each body, the same or one along each axis.
        mass_kg: that all masses and inertias are brought to in the end; None leaves them.
        preserve_mass_distribution: whether bodies keep their masses until then; else they grow with volume.

    Raises:
        ShapeError: factors of another shape.
    """
    factors = _factors(bodies, scale_factors)
    volume = jnp.abs(jnp.prod(factors, axis=1))
    grown = jnp.ones_like(volume) if preserve_mass_distribution else volume
    mass = bodies.mass * grown
    ratio = jnp.abs(factors / factors[:, :1] - 1)
    alike = jnp.all(ratio <= EQUAL, axis=1)[:, None, None]
    similar = bodies.inertia * (grown * factors[:, 0] ** 2)[:, None, None]
    inertia = jnp.where(alike, similar, _cylinders(bodies, factors, mass, grown))
    inertia = jnp.where((mass > 0)[:, None, None], inertia, 0)
    if mass_kg is not None:
        total = mass_kg / jnp.sum(mass)
        mass, inertia = mass * total, inertia * total
    return MassProperties(mass, bodies.center * factors, inertia)


def _cylinders(
    bodies: MassProperties, factors: Float[Array, "B 3"], mass: Float[Array, " B"], grown: Float[Array, " B"]
) -> Float[Array, "B 3 3"]:
    moments = jnp.diagonal(bodies.inertia, axis1=1, axis2=2)
    has_mass = bodies.mass > 0
    unscaled = jnp.where(has_mass, bodies.mass, 1)
    along = jnp.argmin(moments, axis=1)
    across = jnp.where(along == 0, 1, 0)
    rows = np.arange(len(moments))
    radius_squared = jnp.maximum(2 * moments[rows, along] / unscaled, 0)
    length_squared = jnp.maximum(12 * (moments[rows, across] / unscaled - radius_squared / 4), 0)
    length_squared = length_squared * factors[rows, along] ** 2
    volume = jnp.prod(factors, axis=1)
    radius_squared = radius_squared * volume / factors[rows, along]
    axial, lateral = mass * radius_squared / 2, mass * (length_squared / 12 + radius_squared / 4)
    is_axis = jnp.arange(3) == along[:, None]
    diagonal = jnp.where(is_axis, axial[:, None], lateral[:, None])
    pairs = factors[:, :, None] * factors[:, None, :] * grown[:, None, None]
    return jnp.where(jnp.eye(3, dtype=bool), diagonal[:, :, None], bodies.inertia * pairs)


def _factors(bodies: MassProperties, scale_factors: Array) -> Float[Array, "B 3"]:
    factors = jnp.asarray(scale_factors, bodies.mass.dtype)
    count = len(bodies.mass)
    if factors.ndim == 1:
        factors = factors[:, None]
    if factors.ndim != 2 or factors.shape[0] != count or factors.shape[1] not in (1, 3):
        raise ShapeError(
            f"scale_factors has shape {factors.shape}; it must be ({count},) or ({count}, 3), one per body"
        )
    return jnp.broadcast_to(factors, (count, 3))
