"""Marker weights that are learned by what they do to vertebrae, through inverse kinematics.

How much a solve should believe each keypoint is usually set by hand. Here the solve is a layer: the gradient
of vertebral errors passes through its solution (`kinematics.inverse.solve_ik`, by the implicit function
theorem) to the weights, which an optimiser then changes. Needs trials whose true markers are known, such as
synthetic ones, or captures with markers beside the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.errors import ShapeError
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.inverse import solve_ik
from simspine_jax.kinematics.model import SpineModel

Progress = Callable[[int, float], None]
"""Called with steps done and the error in m."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Frames of one subject to learn from.

    Attributes:
        markers: ``[T K 3]`` m, ground, as they were found; NaN where missing.
        truth: ``[T K 3]`` m, where they really are; NaN where it is not known.
        scale_factors: ``[B 3]`` of the subject.
    """

    markers: NDArray[np.floating]
    truth: NDArray[np.floating]
    scale_factors: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class LearnedWeights:
    """What was learned.

    Attributes:
        weights: ``[K]`` of the model's markers, their mean 1.
        errors_m: mean error before each step, and after the last.
    """

    weights: NDArray[np.float64]
    errors_m: tuple[float, ...]


def learn_weights(
    model: SpineModel,
    seen: Sequence[Seen],
    scored: Sequence[str],
    *,
    steps: int = 40,
    learning_rate: float = 0.15,
    progress: Progress | None = None,
) -> LearnedWeights:
    """Weights of markers with which inverse kinematics has the least error in some of them.

    The logarithms of the weights go down the gradient by Adam. Frames are solved one by one.

    Args:
        model: generic; its dtype is the computation's.
        seen: subjects with as many frames each.
        scored: markers whose distance from the truth counts, such as those of the spine.
        steps: of the optimiser.
        learning_rate: its own, of logarithms.
        progress: told about each step.

    Returns:
        the weights of the step with the least error.

    Raises:
        UnknownNameError: a scored marker isn't the model's.
        ShapeError: subjects have different numbers of frames, or there is nothing to learn from.
    """
    counts = {len(s.markers) for s in seen}
    if len(counts) != 1 or 0 in counts or steps < 1:
        raise ShapeError(
            f"There are {len(seen)} subjects with {sorted(counts)} frames and {steps} steps; "
            "valid are one or more subjects with as many frames each, and steps from 1"
        )
    problem = _problem(model, seen, scored)
    optimiser = optax.adam(learning_rate)
    logs = jnp.zeros(model.n_markers, model.dtype)
    state, errors, best = optimiser.init(logs), [], (np.inf, logs)
    for step in range(steps + 1):
        error, slope = _error_and_slope(logs, problem)
        if not bool(jnp.isfinite(error)):
            raise ShapeError(
                "No frame has a pose and the true place of a scored marker; valid is one or more such frames"
            )
        errors.append(float(error))
        best = min(best, (errors[-1], logs), key=lambda pair: pair[0])
        if progress is not None:
            progress(step, errors[-1])
        updates, state = optimiser.update(slope, state, logs)
        logs = logs + updates  # type: ignore[operator]
    return LearnedWeights(np.asarray(_weights(best[1]), np.float64), tuple(errors))


def weighted_error(
    model: SpineModel, seen: Seen, weights: NDArray[np.floating], scored: Sequence[str]
) -> float:
    """Mean distance of solved markers from the truth, m.

    Args:
        model: generic.
        seen: of one subject.
        weights: ``[K]`` of the model's markers.
        scored: markers that count.

    Raises:
        UnknownNameError: a scored marker isn't the model's.
    """
    logs = jnp.log(jnp.asarray(weights, model.dtype))
    return float(_error_and_slope(logs, _problem(model, [seen], scored))[0])


class _Problem(NamedTuple):
    model: SpineModel
    markers: Float[Array, "S T K 3"]
    truth: Float[Array, "S T K 3"]
    factors: Float[Array, "S B 3"]
    chosen: Bool[Array, " K"]


def _problem(model: SpineModel, seen: Sequence[Seen], scored: Sequence[str]) -> _Problem:
    chosen = np.zeros(model.n_markers, bool)
    chosen[model.marker_indices(scored)] = True
    markers, truth, factors = (
        jnp.asarray(np.stack([getattr(s, name) for s in seen]), model.dtype)
        for name in ("markers", "truth", "scale_factors")
    )
    return _Problem(model, markers, truth, factors, jnp.asarray(chosen))


def _weights(logs: Float[Array, " K"]) -> Float[Array, " K"]:
    return len(logs) * jax.nn.softmax(logs)


@jax.jit
def _error_and_slope(logs: Float[Array, " K"], problem: _Problem) -> tuple[Array, Float[Array, " K"]]:
    """The mean distance, m, and its gradient without frames that have none, whose solve is at a fold."""
    each = jnp.broadcast_to(_weights(logs), problem.markers.shape[:3])
    error, slopes = jax.value_and_grad(_error)(each, problem)
    finite = jnp.isfinite(slopes).all(axis=-1, keepdims=True)
    (slope,) = jax.vjp(_weights, logs)[1](jnp.sum(jnp.where(finite, slopes, 0.0), axis=(0, 1)))
    return error, slope


def _error(weights: Float[Array, "S T K"], problem: _Problem) -> Array:
    """Mean distance of the chosen markers from the truth over all subjects, m."""
    model, *arrays, chosen = problem

    def one(weight: Array, found: Array, true: Array, factor: Array) -> tuple[Array, Array]:
        solution = solve_ik(model, found, weights=weight, scale_factors=factor)
        known = jnp.isfinite(solution.q).all(axis=-1)
        q = jnp.where(known[:, None], solution.q, 0.0)
        placed = forward_kinematics(model, q, scale_factors=factor).markers
        counts = known[:, None] & jnp.isfinite(true).all(axis=-1) & chosen
        off = jnp.where(counts[..., None], placed - jnp.nan_to_num(true), 1.0)
        return jnp.sum(jnp.where(counts, jnp.linalg.norm(off, axis=-1), 0.0)), jnp.sum(counts)

    # One subject after the other: the same program for each.
    total, count = jax.lax.map(lambda parts: one(*parts), (weights, *arrays))
    return jnp.sum(total) / jnp.sum(count)
