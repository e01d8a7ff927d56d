"""Time derivatives through the coordinate map, and forces back through it; frames last.

The map is ``y = A x + b + T g(u)`` with ``u = B x + d + E g(u)`` (see `CoordinateMap`). Its terms' own first
and second derivatives are polynomials and sines again, so that all of this is written out; for the compiler
that is a fraction of what nested differentiation would leave it with.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.kinematics.coordinates import CoordinateMap, evaluate_functions, evaluate_terms


@dataclass(frozen=True)
class Output:
    """What a map gives: its matrix, offset and weights of the terms."""

    matrix: np.ndarray  # [m n]
    offset: np.ndarray  # [m]
    terms: np.ndarray  # [m G]


@dataclass(frozen=True)
class Rates:
    """Values of a map's output and its first and second time derivatives."""

    values: Float[Array, "m T"]
    speeds: Float[Array, "m T"]
    accelerations: Float[Array, "m T"]


def full_output(m: CoordinateMap) -> Output:
    """All coordinates."""
    return Output(m.full_matrix, m.full_offset, m.full_terms)


def qpos_output(m: CoordinateMap) -> Output:
    """Positions of the joints."""
    return Output(m.qpos_matrix, m.qpos_offset, m.qpos_terms)


def push_rates(
    m: CoordinateMap,
    output: Output,
    x: Float[Array, "n T"],
    speeds: Float[Array, "n T"],
    accelerations: Float[Array, "n T"],
) -> Rates:
    """The output's values and time derivatives where the input moves so."""
    value, speed, change = (product(output.matrix, part) for part in (x, speeds, accelerations))
    value = value + jnp.asarray(output.offset, x.dtype)[:, None]
    if not output.terms.any():
        return Rates(value, speed, change)
    arguments, terms = evaluate_terms(m, x)
    slope, bend = (evaluate_functions(m, arguments, derivative=k) for k in (1, 2))
    own_rate, own_change = product(m.argument_matrix, speeds), product(m.argument_matrix, accelerations)
    rate, turn = own_rate, own_change
    for _ in range(chain_length(m)):
        rate = own_rate + product(m.argument_terms, slope * rate)
    for _ in range(chain_length(m)):
        turn = own_change + product(m.argument_terms, bend * rate**2 + slope * turn)
    return Rates(
        value + product(output.terms, terms),
        speed + product(output.terms, slope * rate),
        change + product(output.terms, bend * rate**2 + slope * turn),
    )


def pull_forces(
    m: CoordinateMap, output: Output, x: Float[Array, "n T"], forces: Float[Array, "m T"]
) -> Float[Array, "n T"]:
    """Forces over the input that do the same work as these over the output."""
    total = product(output.matrix.T, forces)
    if not output.terms.any():
        return total
    slope = evaluate_functions(m, evaluate_terms(m, x)[0], derivative=1)
    own = product(output.terms.T, forces)
    over_terms = own
    for _ in range(chain_length(m)):
        over_terms = own + product(m.argument_terms.T, slope * over_terms)
    return total + product(m.argument_matrix.T, slope * over_terms)


def jacobian(m: CoordinateMap, output: Output, x: Float[Array, "n T"]) -> Float[Array, "m n T"]:
    """Derivative of the output by the input."""
    constant = jnp.asarray(output.matrix, x.dtype)[:, :, None]
    if not output.terms.any():
        return jnp.broadcast_to(constant, (*output.matrix.shape, x.shape[1]))
    slope = evaluate_functions(m, evaluate_terms(m, x)[0], derivative=1)[:, None]
    own = jnp.asarray(m.argument_matrix, x.dtype)[:, :, None]
    through = own
    for _ in range(chain_length(m)):
        through = own + product(m.argument_terms, slope * through)
    return constant + product(output.terms, slope * through)


def product(matrix: np.ndarray, values: Float[Array, "n *rest"]) -> Float[Array, "m *rest"]:
    """``matrix @ values`` over the first axis, in full precision."""
    flat = values.reshape(values.shape[0], -1)
    total = jnp.tensordot(jnp.asarray(matrix, values.dtype), flat, axes=1, precision=lax.Precision.HIGHEST)
    return total.reshape(matrix.shape[0], *values.shape[1:])


def chain_length(m: CoordinateMap) -> int:
    """How many times terms feed terms before the last one is settled."""
    length, step = 0, m.argument_terms != 0
    while step.any():
        length += 1
        step = (step.astype(int) @ (m.argument_terms != 0).astype(int)) > 0
    return length
