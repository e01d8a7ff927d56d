"""Motions of a model between files: OpenSim's coordinates, free coordinates and MuJoCo's ``qpos``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError, listed
from simspine_jax.io import (
    MarkerTrajectory,
    Storage,
    atomic_write,
    read_sto,
    read_text,
    to_radians,
    write_sto,
)
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.kinematics.forward import expand_coordinates, expand_qpos, forward_kinematics
from simspine_jax.kinematics.model import SpineModel

# Motion files carry six to eight decimals of a degree, and OpenSim's solvers meet couplers to about 1e-5.
COUPLER_TOLERANCE = 1e-4
# The rank of a handful of unit-sized rows: anything between 1e-12 and 0.1 tells the same.
RANK_TOLERANCE = 1e-6

# Compiled as a whole: operation by operation they take seconds before the first frame.
_coordinates, _qpos = jax.jit(expand_coordinates), jax.jit(expand_qpos)
_markers = jax.jit(lambda model, q: forward_kinematics(model, q).markers)


@dataclass(frozen=True, eq=False)
class Motion:
    """Free coordinates over time; frames that the file leaves open are NaN.

    Attributes:
        times: [T] s.
        q: [T Q] free coordinates, rad and m.
        notes: what was ignored, assumed or contradictory in the file, a sentence each.
    """

    times: NDArray[np.float64]
    q: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def rate_hz(self) -> float:
        """Frames per second over the steps that are no gaps; 1 for a single frame, which has no steps."""
        steps = np.diff(self.times)
        # Not their median alone: times rounded to milliseconds make it 58.8 Hz where 60 Hz were recorded.
        return 1.0 / float(np.mean(steps[steps < 1.5 * np.median(steps)])) if len(steps) else 1.0


def read_motion(
    model: SpineModel, path: str | Path, in_degrees: bool | None = None, *, partial: bool = False
) -> Motion:
    """Reads an OpenSim motion (``.mot`` or ``.sto``) as the model's free coordinates.

    Columns that are no coordinates are ignored, free coordinates without a column take their defaults, and
    columns of coordinates that couplers or locks set are compared with what these say; each is noted. Labels
    may be coordinates or OpenSim 4's paths of their values (``/jointset/knee_r/knee_angle_r/value``).

    Args:
        in_degrees: what the angles are where the header does not say it.
        partial: whether the file may lack more than half of the free coordinates.

    Raises:
        FileFormatError: no motion file, or nothing says what its angles are.
        SimspineError: none of the coordinates is in it, or less than half of the free ones.
    """
    storage = _with_plain_labels(read_sto(path))
    known = [name for name in storage.columns if name in model.coordinate_names]
    if not known:
        first = storage.columns[0] if storage.columns else ""
        raise UnknownNameError("Column", first, f"the model {model.name}", model.coordinate_names)
    table = _in_radians(model, storage, known, in_degrees)
    q = np.tile(np.asarray(model.default_q, np.float64), (table.n_frames, 1))
    absent = []
    for i, name in enumerate(model.free_names):
        if name in known:
            q[:, i] = table.column(name)
        else:
            absent.append(name)
    if 2 * len(absent) > model.n_free and not partial:
        raise SimspineError(
            f"{path} lacks {len(absent)} of the {model.n_free} free coordinates of the model {model.name}: "
            f"{listed(absent)}; valid is a motion of this model, or --partial to give these their defaults"
        )
    notes = []
    if ignored := [name for name in storage.columns if name not in known]:
        notes.append(f"{path}: {len(ignored)} columns are no coordinates and were ignored: {listed(ignored)}")
    if absent:
        notes.append(f"{path}: {len(absent)} free coordinates took their defaults: {listed(absent)}")
    if deviation := _largest_deviation(model, q, table):
        notes.append(f"{path}: {deviation}")
    return Motion(table.times, q, tuple(notes))


def read_values(
    model: SpineModel, path: str | Path, names: Sequence[str], in_degrees: bool | None = None
) -> Storage:
    """The columns of these coordinates of an OpenSim motion, rad and m; arguments as of `read_motion`.

    Raises:
        FileFormatError: no motion file, or nothing says what its angles are.
        UnknownNameError: one of them has no column.
    """
    return _in_radians(model, _with_plain_labels(read_sto(path)), names, in_degrees)


def _in_radians(
    model: SpineModel, storage: Storage, names: Sequence[str], in_degrees: bool | None
) -> Storage:
    table = storage.select(names)
    if table.in_degrees is None and in_degrees is None:
        raise FileFormatError(
            f"{table.source}: its header does not say whether angles are in degrees; say it "
            "(--in-degrees yes or no)"
        )
    rotational = dict(zip(model.coordinate_names, model.rotational, strict=True))
    return to_radians(table, rotational, default_in_degrees=bool(in_degrees))


def default_motion(model: SpineModel, times: NDArray[np.float64] | None = None) -> Motion:
    """The model's default pose at ``times``, s, or once."""
    times = np.zeros(1) if times is None else times
    return Motion(times, np.tile(np.asarray(model.default_q, np.float64), (len(times), 1)))


def without_gaps(motion: Motion) -> Motion:
    """The frames that have a pose.

    Raises:
        SimspineError: there are none.
    """
    keep = np.isfinite(motion.q).all(axis=1)
    if not keep.any():
        raise SimspineError("There is no frame with a pose in the motion; valid is at least one")
    return Motion(motion.times[keep], motion.q[keep], motion.notes)


def write_motion(path: str | Path, model: SpineModel, motion: Motion) -> None:
    """Writes all coordinates in degrees and metres as OpenSim's motion file.

    Frames with NaN have no row: OpenSim's Storage reads NaN as zero.
    """
    motion = without_gaps(motion)
    values = np.asarray(_coordinates(model, jnp.asarray(motion.q)), np.float64)
    values = values * np.where(model.rotational, 180 / np.pi, 1.0)
    write_sto(path, Storage("Coordinates", model.coordinate_names, motion.times, values, True))


def marker_trajectory(model: SpineModel, motion: Motion) -> MarkerTrajectory:
    """The model's markers through the motion, by forward kinematics."""
    markers = _markers(model, jnp.asarray(motion.q))
    return MarkerTrajectory(model.marker_names, motion.times, np.asarray(markers, np.float64), motion.rate_hz)


def write_qpos(path: str | Path, model: SpineModel, motion: Motion) -> None:
    """Writes MuJoCo's ``qpos`` for the converted MJCF: ``.npz`` (time, qpos, joint_names) or ``.csv``."""
    qpos = np.asarray(_qpos(model, jnp.asarray(motion.q)), np.float64)
    if Path(path).suffix.lower() == ".npz":
        write_npz(path, {"time": motion.times, "qpos": qpos, "joint_names": np.array(model.qpos_names)})
        return
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("time", *model.qpos_names))
        writer.writerows((t, *row) for t, row in zip(motion.times.tolist(), qpos.tolist(), strict=True))


def read_qpos(model: SpineModel, path: str | Path) -> Motion:
    """Free coordinates from MuJoCo's ``qpos`` in an ``.npz`` or ``.csv`` file, found by joint names.

    A coordinate that a joint repeats or mirrors comes back bit for bit. Joints that couplers and splines set
    are compared with what these say, and free coordinates that move no joint take their defaults; both are
    noted.

    Raises:
        FileFormatError: the file is not as `write_qpos` writes it.
        UnknownNameError: a joint of the model is missing.
    """
    is_npz = Path(path).suffix.lower() == ".npz"
    times, names, values = _read_npz(path) if is_npz else _read_csv(path)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FileFormatError(f"{path}: joint '{twice[0]}' stands twice; valid is one column for each")
    for name in model.qpos_names:
        if name not in names:
            raise UnknownNameError("Joint", name, str(path), names)
    qpos = values[:, [names.index(name) for name in model.qpos_names]]
    q, undetermined = _free_from_qpos(model, qpos)
    notes = []
    if ignored := [name for name in names if name not in model.qpos_names]:
        notes.append(f"{path}: {len(ignored)} joints are not the model's and were ignored: {listed(ignored)}")
    if undetermined:
        notes.append(f"{path}: no joint follows these, so they took their defaults: {listed(undetermined)}")
    deviation = np.abs(np.asarray(_qpos(model, jnp.asarray(q)), np.float64) - qpos)
    if np.nanmax(deviation, initial=0.0) > COUPLER_TOLERANCE:
        frame, joint = np.unravel_index(np.nanargmax(deviation), deviation.shape)
        notes.append(
            f"{path}: joints contradict the couplers, by up to {deviation[frame, joint]:.3g} rad or m "
            f"({model.qpos_names[joint]} at {times[frame]:g} s); the couplers were kept"
        )
    return Motion(times, q, tuple(notes))


def _free_from_qpos(model: SpineModel, qpos: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """[T Q] from [T N], and the names of the free coordinates that no joint tells."""
    m = model.coordinate_map
    linear = ~np.any(m.qpos_terms != 0, axis=1)
    matrix, target = m.qpos_matrix[linear], qpos[:, linear] - m.qpos_offset[linear]
    inverse = np.linalg.pinv(matrix)
    told = np.abs(np.diag(inverse @ matrix) - 1) < RANK_TOLERANCE
    q = np.where(told, target @ inverse.T, np.asarray(model.default_q, np.float64))
    # A joint that is the coordinate itself, or its mirror, gives it back without rounding.
    same = (np.count_nonzero(m.qpos_matrix, axis=1) == 1) & (m.qpos_offset == 0) & linear
    for joint in np.flatnonzero(same):
        coordinate = int(np.argmax(m.qpos_matrix[joint] != 0))
        if abs(factor := m.qpos_matrix[joint, coordinate]) == 1:
            q[:, coordinate] = factor * qpos[:, joint]
    return q, [name for name, known in zip(model.free_names, told, strict=True) if not known]


def _largest_deviation(model: SpineModel, q: NDArray[np.float64], table: Storage) -> str | None:
    """Where the table contradicts couplers and locks the most, as a sentence; None where it doesn't."""
    dependent = [name for name in table.columns if name not in model.free_names]
    if not dependent:
        return None
    index = [model.coordinate_names.index(name) for name in dependent]
    implied = np.asarray(_coordinates(model, jnp.asarray(q)), np.float64)[:, index]
    deviation = np.abs(implied - table.select(dependent).data)
    if not np.nanmax(deviation, initial=0.0) > COUPLER_TOLERANCE:
        return None
    frame, column = np.unravel_index(np.nanargmax(deviation), deviation.shape)
    worst, name = float(deviation[frame, column]), dependent[int(column)]
    shown = f"{math.degrees(worst):.3g} degrees" if model.rotational[index[int(column)]] else f"{worst:.3g} m"
    return (
        f"coupled or locked coordinates contradict the model, by up to {shown} ({name} at "
        f"{table.times[frame]:g} s); the model's couplers were kept"
    )


def _with_plain_labels(storage: Storage) -> Storage:
    """Paths of coordinate values become the coordinates' names."""
    labels = []
    for label in storage.columns:
        parts = label.split("/")
        is_value = label.startswith("/jointset/") and parts[-1] == "value" and len(parts) > 3
        labels.append(parts[-2] if is_value else label)
    return Storage(
        storage.name, tuple(labels), storage.times, storage.data, storage.in_degrees, storage.source
    )


def _read_npz(path: str | Path) -> tuple[NDArray[np.float64], list[str], NDArray[np.float64]]:
    valid = "valid are time [T], qpos [T N] and joint_names [N]"
    arrays = read_npz(path)
    if missing := [key for key in ("time", "qpos", "joint_names") if key not in arrays]:
        raise FileFormatError(f"{path} lacks the array '{missing[0]}'; {valid}")
    times, qpos, names = arrays["time"], arrays["qpos"], arrays["joint_names"]
    try:
        times, qpos = np.asarray(times, np.float64), np.asarray(qpos, np.float64)
    except ValueError:
        raise FileFormatError(f"{path} holds something else than numbers; {valid}") from None
    if (
        times.ndim != 1
        or names.ndim != 1
        or names.dtype.kind != "U"
        or qpos.shape != (len(times), len(names))
    ):
        shapes = f"time {times.shape}, qpos {qpos.shape}, joint_names {names.shape}"
        raise FileFormatError(f"{path} has the shapes {shapes}; {valid}")
    _check_times(path, times)
    return times, [str(name) for name in names], qpos


def _read_csv(path: str | Path) -> tuple[NDArray[np.float64], list[str], NDArray[np.float64]]:
    rows = [row for row in csv.reader(io.StringIO(read_text(path))) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    if not header or header[0] != "time" or len(rows) < 2:
        raise FileFormatError(
            f"{path}: valid is a header 'time,<joint>,…' and at least one row of numbers below"
        )
    values = np.empty((len(rows) - 1, len(header)))
    for i, row in enumerate(rows[1:], start=2):
        try:
            values[i - 2] = [float(cell) for cell in row]
        except ValueError:
            raise FileFormatError(f"{path}: row {i} does not hold {len(header)} numbers") from None
    _check_times(path, values[:, 0])
    return values[:, 0], header[1:], values[:, 1:]


def _check_times(path: str | Path, times: NDArray[np.float64]) -> None:
    if not len(times) or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise FileFormatError(
            f"{path}: its times are none, not finite or not increasing; valid are rising seconds"
        )
