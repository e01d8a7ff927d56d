"""Forward simulation of many bodies at once: joints with springs and dampers, and tracking of a motion.

Free coordinates are integrated, so that couplers and splines hold exactly at every step, where MuJoCo's
and MJX's own step would hold them by soft constraints. A step is semi-implicit: velocities first, with
springs and dampers taken at the end of the step, then positions by the new velocities. For the step h, the
mass matrix M, the bias b, stiffness K and damping D (both diagonal) and the reference r, r' it is

    (M + h D + h² K) v⁺ = M v + h (K (r⁺ − q) + D r'⁺ − b),   q⁺ = q + h v⁺

which is stable for springs of any stiffness (Tan, Liu and Turk, Stable proportional-derivative controllers,
2011). A floor adds its own terms; see `contact`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from simspine_jax.arrays import Array, Float
from simspine_jax.dynamics.contact import Floor, pushes_of
from simspine_jax.dynamics.equations import equations_of_motion
from simspine_jax.dynamics.model import DynamicModel
from simspine_jax.errors import ShapeError
from simspine_jax.solvers.cholesky import solve_spd


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Springs:
    """A spring and a damper at each free coordinate; passive joints pull to a pose, controllers to a motion.

    Attributes:
        stiffness: N m/rad or N/m.
        damping: N m s/rad or N s/m.
    """

    stiffness: Float[Array, " Q"]
    damping: Float[Array, " Q"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SimulationState:
    """Where bodies are and how they move, rad, m and s.

    Attributes:
        q: free coordinates.
        speeds: their time derivatives.
    """

    q: Float[Array, "*batch Q"]
    speeds: Float[Array, "*batch Q"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reference:
    """The motion that controllers follow, one row for the end of each step.

    Attributes:
        q: free coordinates; in one shape for all bodies or with the bodies' own.
        speeds: their time derivatives.
    """

    q: Float[Array, "S *batch Q"]
    speeds: Float[Array, "S *batch Q"]


def accelerations(
    model: DynamicModel,
    q: Float[Array, "*batch Q"],
    speeds: Float[Array, "*batch Q"],
    forces: Float[Array, "*batch Q"],
) -> Float[Array, "*batch Q"]:
    """Forward dynamics: what these generalised forces accelerate; the inverse of `inverse_dynamics`.

    A coordinate that moves no mass gives NaN.

    Raises:
        ShapeError: shapes don't agree.
    """
    rows = [_checked(model, x, q) for x in (q, speeds, forces)]
    flat = [x.reshape(-1, x.shape[-1]).T for x in rows]
    equations = equations_of_motion(model, flat[0], flat[1])
    return solve_spd(equations.mass_matrix, flat[2] - equations.bias).T.reshape(rows[0].shape)


@partial(jax.jit, static_argnames="keep")
def simulate(
    model: DynamicModel,
    start: SimulationState,
    passive: Springs,
    tracking: Springs,
    reference: Reference,
    step_s: float,
    *,
    floor: Floor | None = None,
    keep: bool = True,
) -> SimulationState:
    """Bodies that follow a reference by their controllers, with passive joints.

    Args:
        model: a model with masses; its gravity acts. Bounds of its coordinates don't: what should stop at
            them needs springs.
        start: of each body.
        passive: pulls to the model's default pose, and brakes.
        tracking: pulls to the reference and its speeds. At the root it is a hand that holds the body: without
            it the body falls, on the floor if there is one.
        reference: one row for each step.
        step_s: s.
        floor: that points of the body touch, such as `contact.floor_under_feet`; None for none.
        keep: whether all steps come back; else only the last.

    Returns:
        The states after each step, ``[S *batch Q]``, or the last. Whether they are finite is not looked at.

    Raises:
        ShapeError: shapes don't agree.
    """
    q, speeds = (_checked(model, x, start.q) for x in (start.q, start.speeds))
    batch, count = q.shape[:-1], q.shape[-1]
    if reference.q.shape != reference.speeds.shape or reference.q.shape[-1] != count:
        raise ShapeError(
            f"the reference has the shapes {reference.q.shape} and {reference.speeds.shape}; both must be "
            f"the same and end in the model's {count} free coordinates"
        )
    for name, springs in (("passive", passive), ("tracking", tracking)):
        for part in (springs.stiffness, springs.damping):
            if jnp.shape(part) != (count,):
                raise ShapeError(
                    f"{name} springs have a part of shape {jnp.shape(part)}; valid is ({count},), one "
                    "for each of the model's free coordinates"
                )
    rest = model.kinematics.default_q.astype(q.dtype)

    def advance(state, target):
        aim, aim_rate = (jnp.broadcast_to(x, (*batch, count)).reshape(-1, count).T for x in target)
        aims = aim.astype(q.dtype), aim_rate.astype(q.dtype)
        new = _step(model, state, passive, tracking, aims, rest, step_s, floor)
        return new, new if keep else None

    flat = q.reshape(-1, count).T, speeds.reshape(-1, count).T
    last, all_ = lax.scan(advance, flat, (reference.q, reference.speeds))
    if all_ is not None:
        return SimulationState(*(jnp.swapaxes(x, 1, 2).reshape(len(x), *batch, count) for x in all_))
    return SimulationState(*(x.T.reshape(*batch, count) for x in last))


def _step(
    model: DynamicModel,
    state: tuple[Array, Array],
    passive: Springs,
    tracking: Springs,
    target: tuple[Array, Array],
    rest: Float[Array, " Q"],
    step_s: float | Array,
    floor: Floor | None,
) -> tuple[Float[Array, "Q T"], Float[Array, "Q T"]]:
    q, speeds = state
    column = partial(_column, like=q)
    pull = column(passive.stiffness) * (rest[:, None] - q) + column(tracking.stiffness) * (target[0] - q)
    pull = pull + column(tracking.damping) * target[1]
    equations = equations_of_motion(model, q, speeds)
    stiffness = column(passive.stiffness) + column(tracking.stiffness)
    damping = column(passive.damping) + column(tracking.damping)
    matrix = equations.mass_matrix
    momentum = jnp.einsum("ijt,jt->it", matrix, speeds, precision="highest")
    implicit = step_s * damping + step_s**2 * stiffness
    matrix = matrix + implicit[:, :, None] * jnp.eye(len(q), dtype=q.dtype)[:, :, None]
    right = momentum + step_s * (pull - equations.bias)
    if floor is None:
        new = solve_spd(matrix, right)
    else:
        pushes = pushes_of(model, floor, q, speeds, step_s)
        added, pushed = pushes.terms(step_s)
        new = solve_spd(matrix + added, right + pushed)
        added, pushed = pushes.without_pulls(new).terms(step_s)
        new = solve_spd(matrix + added, right + pushed)
    return q + step_s * new, new


def _column(values: Array, like: Array) -> Array:
    return jnp.asarray(values, like.dtype)[:, None]


def _checked(model: DynamicModel, values: Array, like: Array) -> Array:
    values = jnp.asarray(values)
    if values.shape != jnp.shape(like) or values.shape[-1:] != (model.kinematics.n_free,):
        raise ShapeError(
            f"an array has shape {values.shape} where the coordinates have {jnp.shape(like)}; both must be "
            f"the same and end in the model's {model.kinematics.n_free} free coordinates"
        )
    return values
