"""What the library is held against: MuJoCo's C library and OpenSim, each in its cheapest loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.workplace import Source, Trial, official_setup
from simspine_jax.errors import one_line
from simspine_jax.io import IKSetup
from simspine_jax.kinematics.model import SpineModel

TOOL_TIMEOUT_S = 900


class MujocoLoop:
    """``mj_kinematics`` pose after pose on one thread, in float64."""

    def __init__(self, mjcf: Path, qpos: NDArray[np.float64]) -> None:
        import mujoco

        self._run = mujoco.mj_kinematics
        self.model = mujoco.MjModel.from_xml_path(str(mjcf))
        self.data = mujoco.MjData(self.model)
        self.qpos = qpos

    def __call__(self) -> None:
        """All poses."""
        model, data, run, target = self.model, self.data, self._run, self.data.qpos
        for row in self.qpos:
            target[:] = row
            run(model, data)


class OpenSimLoop:
    """``State.setQ`` and ``realizePosition`` pose after pose; bodies and markers are not even read."""

    def __init__(self, source: Source, model: SpineModel, q: NDArray[np.float64]) -> None:
        import opensim as osim
        from osim2mjcf.reader import load_osim
        from osim2mjcf.verify import coupled_coordinates

        self.source = load_osim(source.osim, source.markers)
        values = coupled_coordinates(self.source, model, q)
        self.state = self.source.initSystem()
        order = self._places(model)
        self.rows = []
        for row in values:
            vector = self.state.getQ()
            copy = osim.Vector(vector.size(), 0.0)
            for place, value in zip(order, row, strict=True):
                copy.set(place, float(value))
            self.rows.append(copy)

    def _places(self, model: SpineModel) -> list[int]:
        """Where each coordinate is in OpenSim's Q, found by moving one at a time."""
        found = self.source.getCoordinateSet()
        by_name = {found.get(i).getName(): found.get(i) for i in range(found.getSize())}
        for coordinate in by_name.values():
            coordinate.setClamped(self.state, False)
            coordinate.setLocked(self.state, False)
        places = []
        for name in model.coordinate_names:
            before = self.state.getQ().to_numpy().copy()
            by_name[name].setValue(self.state, by_name[name].getValue(self.state) + 0.125, False)
            (place,) = np.flatnonzero(np.abs(self.state.getQ().to_numpy() - before) > 0.1)
            places.append(int(place))
        return places

    def __call__(self) -> None:
        """All poses."""
        source, state = self.source, self.state
        for row in self.rows:
            state.setQ(row)
            source.realizePosition(state)

    def last_markers(self, names: tuple[str, ...]) -> NDArray[np.float64]:
        """Markers of the last pose, m: shows that the loop computes what it should."""
        found = self.source.getMarkerSet()
        return np.array([found.get(name).getLocationInGround(self.state).to_numpy() for name in names])


def opensim_tool(source: Source, trajectory: Path, output: Path, frames: int) -> float:
    """Seconds of OpenSim's tool on the first frames with the official marker weights alone."""
    weights = output.with_suffix(".weights.json")
    weights.write_text(
        json.dumps({t.name: t.weight for t in official_setup(False).marker_tasks}), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-P",
        "-m",
        "osim2mjcf.opensim_ik",
        str(source.osim),
        str(trajectory),
        str(output),
    ]
    command += ["--weights", str(weights), "--frames", str(frames)]
    command += ["--markers", str(source.markers)] if source.markers is not None else []
    return _seconds(command, output.parent)


def opensim_tool_with_setup(trial: Trial, output: Path, start: float, end: float) -> float:
    """Seconds of OpenSim's tool on a real trial with its setup."""
    script = Path(__file__).with_name("opensim_setup_ik.py")
    paths = [trial.osim, trial.setup, trial.markers, output]
    command = [sys.executable, "-P", str(script), *map(str, paths), repr(start), repr(end)]
    return _seconds(command, output.parent)


def _seconds(command: list[str], folder: Path) -> float:
    child = run_child(command, folder)
    return float(json.loads(child.stdout.splitlines()[-1])["seconds"])


def run_child(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a process in a folder of its own.

    Raises:
        RuntimeError: it failed; the message ends with its last line.
    """
    child = subprocess.run(
        command, cwd=folder, env=environment or dict(os.environ), capture_output=True, text=True,
        errors="replace", timeout=TOOL_TIMEOUT_S, check=False,
    )  # fmt: skip
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{Path(command[0]).name} … ended with {child.returncode}: {one_line(last)[:300]}")
    return child


def objective_and_rmse(
    model: SpineModel, setup: IKSetup, targets: NDArray[np.float64], q: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """OpenSim's objective (m²) and the root mean square marker error (m) of each frame.

    In float64, written out here from the objective's definition and independent of the solver, so that
    solutions of all solvers are judged alike; needs ``jax.enable_x64`` and a float64 model.
    """
    import jax
    import jax.numpy as jnp

    from simspine_jax.kinematics.forward import expand_coordinates, forward_kinematics

    tasks = {t.name: t.weight for t in setup.marker_tasks if t.apply}
    weights = np.array([tasks.get(name, 0.0) for name in model.marker_names])
    markers = np.asarray(jax.jit(lambda m, x: forward_kinematics(m, x).markers)(model, jnp.asarray(q)))
    squared = np.sum((markers - targets) ** 2, axis=-1)
    used = np.isfinite(squared) & (weights > 0)
    w = np.where(used, weights, 0.0)
    squared = np.where(used, squared, 0.0)
    value = np.sum(w * squared, axis=1) / (2 * np.sum(w, axis=1))
    coordinates = np.asarray(jax.jit(expand_coordinates)(model, jnp.asarray(q)))
    defaults = np.asarray(model.default_coordinates)
    for task in setup.coordinate_tasks:
        if task.apply and task.weight > 0:
            column = model.coordinate_names.index(task.name)
            target = defaults[column] if task.value_type == "default_value" else task.value
            value += 0.5 * task.weight * (coordinates[:, column] - target) ** 2
    return value, np.sqrt(np.sum(squared, axis=1) / np.sum(used, axis=1))
