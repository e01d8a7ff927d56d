"""Joint moments and forces of a motion: files in, a table over time and one of peaks out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.dynamics import (
    DynamicModel,
    ExternalWrenches,
    InverseDynamics,
    differentiate,
    inverse_dynamics,
    sample_loads,
)
from simspine_jax.errors import SimspineError
from simspine_jax.io import Storage, write_sto
from simspine_jax.io.external_loads import LoadTable
from simspine_jax.motions import Motion, without_gaps
from simspine_jax.skeleton import LUMBAR_LEVELS, LUMBAR_MOTIONS
from simspine_jax.tables import Table

CUTOFF_HZ = 6.0
"""Usual for gait, and what OpenSim's examples use; its tool does not filter unless it is told to."""

CHUNK_FRAMES = 256
"""Frames solved by one call; shorter motions are filled up, so that one compiled program serves all."""

TITLE = (
    "Inverse Dynamics Generalized Forces (_moment in N m, _force in N; then what the joint puts on the body "
    "at the joint's centre, in the body's axes: fx fy fz in N, mx my mz in N m)"
)

Progress = Callable[[int, int], None]

# A motion's time is rounded in its file.
_SLACK_S = 1e-9

_solve = jax.jit(inverse_dynamics)


@dataclass(frozen=True)
class Level:
    """A joint of the lumbar spine.

    Attributes:
        name: of the level, such as ``L5_S1``; of the joint where the model has another lumbar spine.
        joint: OpenSim's name.
        body: that the joint moves: the one above.
        coordinates: about its axes: flexion-extension, lateral bending, axial rotation.
    """

    name: str
    joint: str
    body: str
    coordinates: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DynamicsResult:
    """What a motion takes.

    Attributes:
        times: [T] s.
        coordinate_names: C, in OpenSim's order.
        rotational: which of them are angles.
        forces: [T C] generalised forces, N m or N.
        levels: L of the lumbar spine, from below.
        reaction_forces: [T L 3] N, on the body above in its axes.
        reaction_moments: [T L 3] N m.
        root: names of the coordinates that join the model to ground; their forces are residuals.
        loaded: whether forces from outside were given.
        source: of the motion, in words.
    """

    times: NDArray[np.float64]
    coordinate_names: tuple[str, ...]
    rotational: tuple[bool, ...]
    forces: NDArray[np.float64]
    levels: tuple[Level, ...]
    reaction_forces: NDArray[np.float64]
    reaction_moments: NDArray[np.float64]
    root: tuple[str, ...]
    loaded: bool
    source: str


def lumbar_levels(model: DynamicModel) -> tuple[Level, ...]:
    """The lumbar joints from below: the spine model's six, or those with coordinates named ``lumbar_…``."""
    joints = dict(zip(model.coordinate_names, model.coordinate_joints, strict=True))
    named = {
        level: tuple(c for m in LUMBAR_MOTIONS if (c := f"{level}_{m}") in joints) for level in LUMBAR_LEVELS
    }
    if not any(named.values()):
        lumbar = [c for c in joints if c.startswith("lumbar_")]
        named = {joints[c]: tuple(o for o in lumbar if joints[o] == joints[c]) for c in lumbar}
    return tuple(
        Level(name, joints[coordinates[0]], model.moved_body(coordinates[0]), coordinates)
        for name, coordinates in named.items()
        if coordinates
    )


def run_dynamics(
    model: DynamicModel,
    motion: Motion,
    loads: LoadTable | None = None,
    *,
    cutoff_hz: float | None = CUTOFF_HZ,
    time_range: tuple[float, float] | None = None,
    source: str = "a motion",
    progress: Progress | None = None,
) -> DynamicsResult:
    """Inverse dynamics of a motion as OpenSim's tool does it.

    Args:
        model: in the precision to compute in.
        motion: at a steady rate; the filter and the splines see all of it.
        loads: forces from outside; None for none.
        cutoff_hz: of the filter on the coordinates; None for no filter.
        time_range: s, what to give results for.
        source: of the motion, in words.
        progress: called with the frames done and all of them.

    Raises:
        SimspineError: the motion has gaps or is too short, nothing of it is in ``time_range``, or the loads
            don't cover it or name bodies that the model lacks.
    """
    whole = without_gaps(motion)
    smooth = differentiate(whole.times, whole.q, cutoff_hz)
    first, last = time_range or (-np.inf, np.inf)
    keep = (smooth.times >= first - _SLACK_S) & (smooth.times <= last + _SLACK_S)
    if not keep.any():
        raise SimspineError(
            f"The motion has no frame between {first:g} and {last:g} s; valid are times from "
            f"{smooth.times[0]:g} to {smooth.times[-1]:g} s"
        )
    times = smooth.times[keep]
    wrenches = None if loads is None else sample_loads(loads, times)
    rows = [part[keep] for part in (smooth.values, smooth.speeds, smooth.accelerations)]
    solved = _in_chunks(model, rows, wrenches, progress)
    forces, pushes, turns = (
        np.asarray(part)
        for part in (solved.joints.coordinates, solved.joints.reaction_forces, solved.joints.reaction_moments)
    )
    levels = lumbar_levels(model)
    places = [model.kinematics.body_names.index(level.body) for level in levels]
    return DynamicsResult(
        times,
        model.coordinate_names,
        model.kinematics.rotational,
        forces,
        levels,
        pushes[:, places],
        turns[:, places],
        root_coordinates(model),
        loads is not None,
        source,
    )


def root_coordinates(model: DynamicModel) -> tuple[str, ...]:
    """Coordinates of the joints that join bodies to ground."""
    topology, moves = model.topology, model.coordinate_map.dependence
    at_root = [topology.parents[body] == 0 for body in topology.joint_bodies]
    moved = np.flatnonzero(np.asarray(moves)[np.array(at_root, bool)].any(axis=0))
    return tuple(model.coordinate_names[i] for i in moved)


def _in_chunks(
    model: DynamicModel,
    rows: list[NDArray[np.float64]],
    wrenches: ExternalWrenches | None,
    progress: Progress | None,
) -> InverseDynamics:
    """All frames, some at a time, the last ones filled up; arrays come back to the host."""
    count = len(rows[0])
    parts = []
    for start in range(0, count, CHUNK_FRAMES):
        frames = np.minimum(np.arange(start, start + CHUNK_FRAMES), count - 1)
        some = None
        if wrenches is not None:
            taken = {name: getattr(wrenches, name)[frames] for name in ("force", "point", "torque")}
            some = dataclasses.replace(wrenches, **taken)
        arguments = [jnp.asarray(row[frames], model.dtype) for row in rows]
        kept = min(CHUNK_FRAMES, count - start)
        solved = _solve(model, *arguments, some)
        parts.append(jax.tree.map(lambda x, kept=kept: np.asarray(x, np.float64)[:kept], solved))
        if progress is not None:
            progress(start + kept, count)
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def write_forces(path: str | Path, result: DynamicsResult) -> None:
    """Writes generalised forces and lumbar joint loads as OpenSim names them, with units in the title."""
    labels = [
        f"{name}_{'moment' if angle else 'force'}"
        for name, angle in zip(result.coordinate_names, result.rotational, strict=True)
    ]
    columns = [result.forces]
    for i, level in enumerate(result.levels):
        for letter, values in (("f", result.reaction_forces), ("m", result.reaction_moments)):
            labels += [f"{level.joint}_on_{level.body}_in_{level.body}_{letter}{axis}" for axis in "xyz"]
            columns.append(values[:, i])
    write_sto(path, Storage(TITLE, tuple(labels), result.times, np.concatenate(columns, axis=1), False))


def peak_table(result: DynamicsResult) -> Table:
    """The largest moments and forces of each lumbar level, without sign."""
    columns = (
        "Level", "Flexion-extension N m", "Lateral bending N m", "Axial rotation N m",
        "Whole moment N m", "at s", "Whole force N",
    )  # fmt: skip
    index = {name: i for i, name in enumerate(result.coordinate_names)}
    rows = []
    for i, level in enumerate(result.levels):
        moments = [float(np.abs(result.forces[:, index[c]]).max()) for c in level.coordinates[:3]]
        whole = np.linalg.norm(result.reaction_moments[:, i], axis=1)
        force = np.linalg.norm(result.reaction_forces[:, i], axis=1)
        padded = [*moments, *[None] * (3 - len(moments))]
        at = float(result.times[int(whole.argmax())])
        rows.append((level.name, *padded, float(whole.max()), at, float(force.max())))
    return Table(
        "lumbar_moments",
        "Largest net moments and forces at the lumbar levels",
        columns,
        tuple(rows),
        (0, 1, 1, 1, 1, 2, 0),
        f"{result.source}, {len(result.times)} frames",
        _remarks(result),
    )


def _remarks(result: DynamicsResult) -> tuple[str, ...]:
    remarks = [
        "Net loads: what muscles, ligaments and discs bear together; muscles pull the joint together, so the "
        "disc bears more."
    ]
    index = [result.coordinate_names.index(name) for name in result.root]
    if index:
        forces = np.abs(result.forces[:, index]).max(axis=0)
        angles = np.array(result.rotational)[index]
        kinds = ((~angles, "N"), (angles, "N m"))
        parts = [f"{forces[kind].max():.1f} {unit}" for kind, unit in kinds if kind.any()]
        held = "beside the loads given" if result.loaded else "as no external loads were given"
        remarks.append(f"At the root the motion needs up to {' and '.join(parts)} {held}.")
    return tuple(remarks)
