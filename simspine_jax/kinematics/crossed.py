"""Joints that turn about three crossed axes, whose every rotation has two sets of angles, and whole turns.

Where such a joint's limb is nearly in line with the next one, as an arm with a straight elbow, its last angle
is seen badly, and poses that were found frame by frame may go on in the other set, in other turns, or turned
the wrong way round, from which no descent comes back: between them lie poses that fit worse. `settled` brings
them together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax import lax
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Float, Int
from simspine_jax.kinematics.model import SpineModel

CROSSED = 1e-6
"""Axes count as square to each other within this cosine; models write them with ten digits."""

ASTRAY = np.pi / 2
"""rad: a third angle that is farther from its clip's median is doubted."""

NEAR_MEDIAN, LIMB_TURNS = 0.05, 0.1
"""How much squared distances from the median count beside squared steps, and third angles beside others."""

ROUNDS = 3
"""How often the median is found anew by the sets of angles that are nearest to it."""


@dataclass(frozen=True)
class CrossedJoints:
    """A model's joints of three crossed axes.

    Attributes:
        joints: the three free coordinates of each, in the order of its axes.
        axes: of each, in its body.
        signs: by which a coordinate enters its hinge's angle.
        offsets: that are added to it, rad.
        flips: whether no bound keeps a joint from its other set of angles.
    """

    joints: tuple[tuple[int, int, int], ...]
    axes: tuple[tuple[tuple[float, float, float], ...], ...]
    signs: tuple[tuple[float, float, float], ...]
    offsets: tuple[tuple[float, float, float], ...]
    flips: tuple[bool, ...]

    def other_angles(
        self, n_free: int
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]:
        """Factors and shifts [Q] that give the other angles of the same rotations, and [J Q] whose they are.

        By the hinges they are a + pi, pi - b and c + pi.
        """
        factors, shifts = np.ones(n_free), np.zeros(n_free)
        owners = np.zeros((len(self.joints), n_free))
        for j, joint in enumerate(self.joints):
            owners[j, list(joint)] = 1.0
            shifts[list(joint)] = np.pi
            factors[joint[1]] = -1.0
            shifts[joint[1]] = self.signs[j][1] * (np.pi - 2 * self.offsets[j][1])
        return (factors, shifts), owners


def crossed_joints(model: SpineModel) -> CrossedJoints:
    """Those of the model that its free coordinates turn one by one."""
    mapping, mj = model.coordinate_map, model.mjx_model
    hinge = np.asarray(mj.jnt_type) == mujoco.mjtJoint.mjJNT_HINGE
    body, axis = np.asarray(mj.jnt_bodyid), np.asarray(mj.jnt_axis, np.float64)
    matrix = np.asarray(mapping.qpos_matrix)
    open_ended = ~np.isfinite(np.asarray(model.lower)) & ~np.isfinite(np.asarray(model.upper))
    joints = []
    for b in np.unique(body[hinge]):
        rows = np.flatnonzero(hinge & (body == b))
        owners = tuple(int(np.argmax(np.abs(matrix[row]))) for row in rows)
        alone = mapping.dependence[:, list(owners)].sum(axis=0) == 1
        plain = (np.abs(np.abs(matrix[rows, list(owners)]) - 1) < CROSSED).all()
        crossed = np.abs(axis[rows] @ axis[rows].T - np.eye(len(rows))).max() < CROSSED
        if len(rows) == 3 and len(set(owners)) == 3 and alone.all() and plain and crossed:
            joints.append((owners, rows))
    return CrossedJoints(
        joints=tuple(owners for owners, _ in joints),
        axes=tuple(tuple(map(tuple, axis[rows].tolist())) for _, rows in joints),
        signs=tuple(tuple(matrix[rows, list(owners)].tolist()) for owners, rows in joints),
        offsets=tuple(tuple(mapping.qpos_offset[rows].tolist()) for _, rows in joints),
        flips=tuple(bool(open_ended[list(owners)].all()) for owners, _ in joints),
    )


def settled(
    model: SpineModel, q: NDArray[np.floating], except_for: Collection[int] = ()
) -> NDArray[np.float64]:
    """Poses of a clip with the angles of each open-ended crossed joint near one another.

    Of each frame's two sets of angles those are taken with which the limb goes on from frame to frame (A.
    Viterbi, 1967) near the clip's median, found with those nearest to 0 first. The third angle, about the
    limb, is taken from the frames before and after where it is `ASTRAY`.

    Args:
        model: whose free coordinates these are.
        q: ``[T Q]`` rad and m; NaN where there is no pose, which stays.
        except_for: free coordinates of joints that are left alone, as the one that carries the whole model:
            people turn round.
    """
    crossed, found = crossed_joints(model), np.array(q, np.float64)
    there = np.flatnonzero(np.isfinite(found).all(axis=1))
    (factors, shifts), _ = crossed.other_angles(found.shape[1])
    for joint, flips in zip(crossed.joints, crossed.flips, strict=True):
        columns = np.array(joint)
        if not flips or not len(there) or not set(joint).isdisjoint(except_for):
            continue
        angles, middle = found[np.ix_(there, columns)], np.zeros(3)
        both = np.stack([angles, angles * factors[columns] + shifts[columns]], axis=1)
        for _ in range(ROUNDS):
            both = both - 2 * np.pi * np.round((both - middle) / (2 * np.pi))
            nearer = np.argmin(np.sum((both - middle) ** 2, axis=-1), axis=1)
            middle = np.median(both[np.arange(len(there)), nearer], axis=0)
        both = both - 2 * np.pi * np.round((both - middle) / (2 * np.pi))
        angles = both[np.arange(len(there)), _going_on(both - middle)]
        sound = np.abs(angles[:, 2] - middle[2]) <= ASTRAY
        if sound.any():
            angles[:, 2] = np.interp(there, there[sound], angles[sound, 2])
        found[np.ix_(there, columns)] = angles
    return found


def _going_on(both: NDArray[np.float64]) -> NDArray[np.int64]:
    """[T] which of two sets of angles [T 2 3] about their median to take, so that they change least."""
    weights = np.array([1.0, 1.0, LIMB_TURNS])
    size = 1 << max(len(both) - 1, 0).bit_length()
    own = NEAR_MEDIAN * np.sum(weights * both**2, axis=-1)
    step = np.sum(weights * (both[1:, :, None] - both[:-1, None, :]) ** 2, axis=-1)  # [T-1 now before]
    step = np.pad(step, [(1, size - len(both)), (0, 0), (0, 0)])
    return np.asarray(
        _cheapest(jnp.asarray(np.pad(own, [(0, size - len(both)), (0, 0)])), jnp.asarray(step))
    )[: len(both)]


@jax.jit
def _cheapest(own: Float[Array, "T S"], step: Float[Array, "T S S"]) -> Int[Array, " T"]:
    """The states of least cost, their own and those of steps from the state before."""

    def forward(total: Array, costs: tuple[Array, Array]) -> tuple[Array, Array]:
        here, moved = costs
        reached = total + moved
        return here + jnp.min(reached, axis=1), jnp.argmin(reached, axis=1)

    total, before = lax.scan(forward, jnp.zeros_like(own[0]), (own, step))

    def back(state: Array, came: Array) -> tuple[Array, Array]:
        return came[state], state

    return lax.scan(back, jnp.argmin(total), before, reverse=True)[1]
