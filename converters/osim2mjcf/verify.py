"""How far a converted model is from OpenSim: the parity report.

OpenSim's own values are the reference for everything: its functions for the coupled coordinates, its
kinematics for bodies and markers. Three programs are held against it: our forward kinematics in float64 and
in float32, and MuJoCo's C library with the converted MJCF.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import opensim as osim

from osim2mjcf.reader import load_osim
from simspine_jax.errors import UnknownNameError
from simspine_jax.kinematics.forward import Poses, expand_coordinates, expand_qpos, forward_kinematics
from simspine_jax.kinematics.model import SpineModel, find_converted, load_model

# Rounding through a tree of 20 bodies and 2 m; measured worst case 2e-14 (float64) and 2.4e-6 (float32).
FLOAT64_TOLERANCE_M = 1e-9
FLOAT32_TOLERANCE_M = 5e-6
# Free coordinates that OpenSim doesn't bound are drawn from here: more than a full turn, and a stride.
FREE_ANGLE_RAD = 1.5 * np.pi
FREE_TRANSLATION_M = 1.0


# Compiled as a whole: run operation by operation, each of a thousand would be compiled alone.
levels = jax.jit(forward_kinematics)


@dataclass(frozen=True)
class Deviation:
    """Largest differences from OpenSim over all poses of one computation.

    Positions are in metres; rotations are the largest entry of the difference of rotation matrices, which for
    small ones is the angle in radians.
    """

    computation: str
    body_position_m: tuple[float, ...]
    body_rotation: tuple[float, ...]
    marker_position_m: tuple[float, ...]
    worst_pose: int

    @property
    def worst_m(self) -> float:
        """Largest position error of any body or marker, m."""
        return max((*self.body_position_m, *self.marker_position_m), default=0.0)

    @property
    def worst_rotation(self) -> float:
        """Largest rotation error of any body."""
        return max(self.body_rotation, default=0.0)

    def within(self, tolerance_m: float) -> bool:
        """Whether no point is off by more than ``tolerance_m``, nor any within 0.5 m of a body's origin."""
        return self.worst_m <= tolerance_m and self.worst_rotation * 0.5 <= tolerance_m


@dataclass(frozen=True)
class ParityReport:
    """Errors of a converted model against OpenSim, per body and marker, and for the coordinate map.

    ``coordinates`` is the largest error of a coordinate's value (coupled ones follow OpenSim's functions),
    relative to 1 or to the value if that is larger. ``extent_m`` is how far from the origin the poses reach.
    """

    model: str
    body_names: tuple[str, ...]
    marker_names: tuple[str, ...]
    poses: int
    seed: int
    extent_m: float
    coordinates: float
    worst_coordinate: str
    float64: Deviation
    float32: Deviation
    mujoco: Deviation

    def passed(
        self, tolerance_m: float = FLOAT64_TOLERANCE_M, tolerance_float32_m: float = FLOAT32_TOLERANCE_M
    ) -> bool:
        """Whether all is within the tolerances, which hold for models of a person's size and grow with it."""
        size = max(1.0, self.extent_m)
        double = self.float64.within(tolerance_m * size) and self.mujoco.within(tolerance_m * size)
        single = self.float32.within(tolerance_float32_m * size)
        return double and single and self.coordinates <= tolerance_m


def verify(
    model_osim: str | Path,
    converted: str | Path,
    poses: int = 200,
    seed: int = 0,
    *,
    markers: str | Path | None = None,
) -> ParityReport:
    """Compares a converted model with OpenSim over random admissible poses.

    Args:
        model_osim: the OpenSim model.
        converted: what ``convert`` wrote for it.
        poses: how many poses.
        seed: of the draws.
        markers: the marker set that the conversion was given, if any.

    Raises:
        FileFormatError: a file can't be read.
        UnknownNameError: the two models have different bodies, coordinates or markers.
    """
    source = load_osim(Path(model_osim), Path(markers) if markers is not None else None)
    with jax.enable_x64(True):
        double = load_model(converted, dtype=jnp.float64)
        single = load_model(converted, dtype=jnp.float32)
        q = sample_poses(double, poses, seed)
        wanted = coupled_coordinates(source, double, q)
        free = jnp.asarray(q)
        error = np.abs(np.asarray(expand_coordinates(double, free)) - wanted) / np.maximum(
            1.0, np.abs(wanted)
        )
        reference = opensim_poses(source, double, wanted)
        qpos = np.asarray(expand_qpos(double, free))
        mjcf = find_converted(Path(converted)).with_suffix(".xml")
        by_c = mujoco_poses(mujoco.MjModel.from_xml_path(str(mjcf)), double, qpos)
        by_levels = levels(double, free)
        by_levels32 = levels(single, jnp.asarray(q, jnp.float32))
    everywhere = (reference.body_positions, reference.markers)
    return ParityReport(
        model=double.name,
        body_names=double.body_names,
        marker_names=double.marker_names,
        poses=poses,
        seed=seed,
        extent_m=float(max(np.linalg.norm(x, axis=-1).max(initial=0.0) for x in everywhere)),
        coordinates=float(error.max(initial=0.0)),
        worst_coordinate=double.coordinate_names[int(error.max(axis=0).argmax())] if error.size else "none",
        float64=deviation("levels float64", by_levels, reference),
        float32=deviation("levels float32", by_levels32, reference),
        mujoco=deviation("MuJoCo C float64", by_c, reference),
    )


def compare(
    model_osim: str | Path,
    model: SpineModel,
    forward: Callable[[SpineModel, jax.Array], Poses] = levels,
    *,
    poses: int = 200,
    seed: int = 0,
    markers: str | Path | None = None,
) -> Deviation:
    """The errors of one forward kinematics in the model's own precision; float64 needs x64 to be enabled.

    Raises:
        FileFormatError: OpenSim can't read the model or the marker set.
        UnknownNameError: the two models have different bodies, coordinates or markers.
    """
    source = load_osim(Path(model_osim), Path(markers) if markers is not None else None)
    q = sample_poses(model, poses, seed)
    reference = opensim_poses(source, model, coupled_coordinates(source, model, q))
    return deviation(f"{model.dtype}", forward(model, jnp.asarray(q, model.dtype)), reference)


def sample_poses(model: SpineModel, poses: int, seed: int) -> np.ndarray:
    """Random free coordinates ``[poses Q]``: within the bounds, else about the default beyond a full turn.

    They are numbers that float32 holds exactly, so that all computations get the same.
    """
    rng = np.random.default_rng(seed)
    lower, upper = np.asarray(model.lower, float), np.asarray(model.upper, float)
    middle = np.asarray(model.default_q, float)
    turning = np.array(model.rotational, bool)[model.coordinate_map.free_indices]
    span = np.where(turning, FREE_ANGLE_RAD, FREE_TRANSLATION_M)
    lower = np.where(np.isfinite(lower), lower, np.minimum(middle, upper) - span)
    upper = np.where(np.isfinite(upper), upper, np.maximum(middle, lower) + span)
    return rng.uniform(lower, upper, (poses, model.n_free)).astype(np.float32).astype(float)


def coupled_coordinates(source: osim.Model, model: SpineModel, q: np.ndarray) -> np.ndarray:
    """All coordinates ``[poses C]``, the coupled ones by OpenSim's own functions, in the model's order.

    Raises:
        UnknownNameError: OpenSim's model lacks a coordinate of ``model``.
    """
    coordinates = _coordinates(source, model)
    free = {name: q[:, i] for i, name in enumerate(model.free_names)}
    couplers = _enforced_couplers(source)
    values: dict[str, np.ndarray] = {}

    def value(name: str) -> np.ndarray:
        if name not in values:
            if name in free:
                values[name] = free[name]
            elif name in couplers:
                function, factor, independents = couplers[name]
                rows = np.column_stack([value(other) for other in independents])
                values[name] = np.array(
                    [factor * function.calcValue(osim.Vector.createFromMat(row)) for row in rows]
                )
            else:
                values[name] = np.full(len(q), _constant_value(coordinates[name]))
        return values[name]

    columns = [value(name) for name in model.coordinate_names]
    return np.column_stack(columns) if columns else np.zeros((len(q), 0))


def _enforced_couplers(source: osim.Model) -> dict[str, tuple[osim.Function, float, list[str]]]:
    found = {}
    for component in source.getComponentsList():
        coupler = osim.CoordinateCouplerConstraint.safeDownCast(component)
        if coupler is not None and coupler.get_isEnforced():
            names = coupler.getIndependentCoordinateNames()
            factor = osim.PropertyHelper.getValueDouble(coupler.getPropertyByName("scale_factor"))
            independents = [names.get(i) for i in range(names.getSize())]
            found[coupler.getDependentCoordinateName()] = (coupler.getFunction(), factor, independents)
    return found


def _constant_value(coordinate: osim.Coordinate) -> float:
    if coordinate.get_prescribed():
        return coordinate.getPrescribedFunction().calcValue(osim.Vector(1, 0.0))
    return coordinate.get_default_value()


def _coordinates(source: osim.Model, model: SpineModel) -> dict[str, osim.Coordinate]:
    found = source.getCoordinateSet()
    by_name = {found.get(i).getName(): found.get(i) for i in range(found.getSize())}
    for name in model.coordinate_names:
        if name not in by_name:
            raise UnknownNameError("Coordinate", name, f"the OpenSim model {source.getName()}", by_name)
    return by_name


def opensim_poses(source: osim.Model, model: SpineModel, coordinates: np.ndarray) -> Poses:
    """OpenSim's poses for all coordinates ``[poses C]``, names and order as in ``model``; NumPy arrays.

    Raises:
        UnknownNameError: OpenSim's model lacks a coordinate, body or marker of ``model``.
    """
    by_name = _coordinates(source, model)
    moved = [by_name[name] for name in model.coordinate_names]
    bodies = _named("Body", {b.getName(): b for b in source.getBodyList()}, model.body_names, source)
    found = source.getMarkerSet()
    by_marker = {found.get(i).getName(): found.get(i) for i in range(found.getSize())}
    markers = _named("Marker", by_marker, model.marker_names, source)
    state = source.initSystem()
    for coordinate in moved:
        # Else OpenSim would change what it is given.
        coordinate.setClamped(state, False)
        coordinate.setLocked(state, False)
    n = len(coordinates)
    positions, rotations = np.zeros((n, len(bodies), 3)), np.zeros((n, len(bodies), 3, 3))
    sites = np.zeros((n, len(markers), 3))
    for pose, row in enumerate(coordinates):
        for coordinate, value in zip(moved, row, strict=True):
            coordinate.setValue(state, float(value), False)
        source.realizePosition(state)
        for i, body in enumerate(bodies):
            transform = body.getTransformInGround(state)
            positions[pose, i] = transform.p().to_numpy()
            rotation = transform.R()
            rotations[pose, i] = [[rotation.get(r, c) for c in range(3)] for r in range(3)]
        for i, marker in enumerate(markers):
            sites[pose, i] = marker.getLocationInGround(state).to_numpy()
    return Poses(sites, positions, rotations)  # type: ignore[arg-type]


def _named(kind: str, found: dict, names: tuple[str, ...], source: osim.Model) -> list:
    for name in names:
        if name not in found:
            raise UnknownNameError(kind, name, f"the OpenSim model {source.getName()}", found)
    return [found[name] for name in names]


def mujoco_poses(mj_model: mujoco.MjModel, model: SpineModel, qpos: np.ndarray) -> Poses:
    """MuJoCo's own kinematics of the converted MJCF for ``qpos [poses N]``; NumPy arrays."""
    data = mujoco.MjData(mj_model)
    order = np.array(model.topology.body_order, int)
    sites = np.array(model.topology.marker_sites, int)
    found = []
    for row in qpos:
        data.qpos[:] = row
        mujoco.mj_kinematics(mj_model, data)
        found.append((data.site_xpos[sites], data.xpos[order], data.xmat[order].reshape(-1, 3, 3)))
    return Poses(*(np.stack(parts) for parts in zip(*found, strict=True)))  # type: ignore[arg-type]


def deviation(computation: str, poses: Poses, reference: Poses) -> Deviation:
    """Largest differences between two sets of poses, leading axis poses."""
    position = np.linalg.norm(np.asarray(poses.body_positions, float) - reference.body_positions, axis=-1)
    turn = np.abs(np.asarray(poses.body_rotations, float) - reference.body_rotations).max(
        axis=(-1, -2), initial=0.0
    )
    marker = np.linalg.norm(np.asarray(poses.markers, float) - reference.markers, axis=-1)
    worst = np.concatenate([position, marker], axis=1).max(axis=1, initial=0.0)
    return Deviation(
        computation,
        tuple(map(float, position.max(axis=0, initial=0.0))),
        tuple(map(float, turn.max(axis=0, initial=0.0))),
        tuple(map(float, marker.max(axis=0, initial=0.0))),
        int(worst.argmax()) if len(worst) else 0,
    )


def format_report(report: ParityReport, worst: int = 5) -> str:
    """The report as text: one line a computation, then its worst bodies and markers."""
    lines = [
        f"{report.model}: {len(report.body_names)} bodies and {len(report.marker_names)} markers "
        f"in {report.poses} random poses (seed {report.seed}) against OpenSim {osim.GetVersion()}",
        f"coordinate map: {report.coordinates:.1e} ({report.worst_coordinate})",
    ]
    for d in (report.float64, report.mujoco, report.float32):
        errors = f"{d.worst_m:.1e} m, rotation {d.worst_rotation:.1e}"
        lines.append(f"{d.computation}: {errors}, worst in pose {d.worst_pose}")
        named = [*zip(report.body_names, d.body_position_m, strict=True)]
        named += zip(report.marker_names, d.marker_position_m, strict=True)
        largest = sorted(named, key=lambda pair: -pair[1])[:worst]
        lines.append("  " + ", ".join(f"{name} {error:.1e}" for name, error in largest))
    lines.append("passed" if report.passed() else "FAILED")
    return "\n".join(lines)
