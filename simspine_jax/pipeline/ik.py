"""Marker files in, motions out: reads, matches, solves and writes one trial, or many that resume.

A trial's folder is complete when its ``summary.json`` is there, was made by this version from the same model,
markers and options, and the files that it lists exist. The summary is written last, so a run that was killed
leaves no folder that passes for complete, and nothing in these files depends on when or how fast they were
made: a resumed run gives the same bytes. Only ``timing.json`` differs from run to run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError, listed
from simspine_jax.io import (
    CoordinateTask,
    IKSetup,
    MarkerTrajectory,
    Storage,
    read_markers,
    write_sto,
    write_trc,
)
from simspine_jax.io.files import read_bytes
from simspine_jax.kinematics.forward import expand_qpos
from simspine_jax.kinematics.inverse import needed_markers
from simspine_jax.kinematics.model import SpineModel, converted_path, find_converted, read_converted
from simspine_jax.motions import read_values
from simspine_jax.pipeline.records import digest_of, is_temporary, write_json
from simspine_jax.signal import nearest_samples

FORMAT = "simspine_jax trial"
# Three points fix a rigid body in space; with fewer no pose is determined.
LEAST_MARKERS = 3
# No pose or body makes markers lie so much wider or closer than in the default pose; wrong units do.
MOST_UNLIKE = 6.0
# Frames solved between two reports of progress.
CHUNK_FRAMES = 4096
# Programs are compiled for a number of frames, which takes longer than solving a clip. Clips are padded with
# frames without markers, which cost next to nothing, to one of four sizes an octave from this one on.
LEAST_PADDED_FRAMES = 32
# Compiling takes longer than solving a short trial. Without these emitters XLA compiles the solve a fifth
# faster, and the program runs as fast.
QUICK_TO_COMPILE = {"xla_cpu_use_fusion_emitters": False}
MARKER_SUFFIXES = (".trc", ".c3d")
_SUFFIXES = " or ".join(MARKER_SUFFIXES)

_qpos = jax.jit(expand_qpos)

Progress = Callable[[int, int], None]
"""Called with the number of frames done and the number of all frames of the trial."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, the sidecar that it was read from, and the hash of all files that it came from.

    Attributes:
        path: as it was given; None where it wasn't read by `open_model`.
        marker_set: likewise.
    """

    model: SpineModel
    sidecar: Path
    digest: str
    path: Path | None = None
    marker_set: Path | None = None


@dataclass(frozen=True)
class IKOptions:
    """What decides a trial's result besides model and markers.

    Attributes:
        setup: OpenSim's inverse kinematics setup; excludes ``weights``.
        weights: (marker, weight) for markers whose weight is not 1.
        smooth_velocity: weight of velocities in a whole-clip solve, as in `simspine_jax.Smoothing`.
        smooth_acceleration: likewise of accelerations.
        start: first time to solve, s; None for the setup's, or else the file's.
        end: last time to solve, s; likewise.
        precision: 32 or 64 bits, as JAX is set.
        coordinates: motion file with the values of the setup's tasks of type ``from_file``.
        in_degrees: what that file's angles are where its header does not say it.
        setup_file: that the setup was read from; its name is told and decides nothing.
    """

    setup: IKSetup | None = None
    weights: tuple[tuple[str, float], ...] = ()
    smooth_velocity: float = 0.0
    smooth_acceleration: float = 0.0
    start: float | None = None
    end: float | None = None
    precision: int = 32
    coordinates: Path | None = None
    in_degrees: bool | None = None
    setup_file: Path | None = None

    def __post_init__(self) -> None:
        if self.setup is not None and self.weights:
            raise SimspineError("Weights were given beside an IK setup; valid is one of both")
        from_file = [task.name for task in self.tasks if task.value_type == "from_file"]
        if from_file and self.coordinates is None:
            raise SimspineError(
                f"The setup pulls {from_file[0]} to the values of a file and names none; valid is a "
                "coordinate_file in it, or --coordinates FILE"
            )
        if not from_file and self.coordinates is not None:
            raise SimspineError(
                f"Nothing takes values from {self.coordinates}; valid is a setup with a coordinate task of "
                "value_type from_file"
            )
        if self.start is not None and self.end is not None and not self.start <= self.end:
            raise SimspineError(
                f"The times to solve are {self.start:g} to {self.end:g} s; valid is a start before its end"
            )
        for name, weight in self.weights:
            if not (math.isfinite(weight) and weight >= 0):
                raise SimspineError(f"The weight of marker '{name}' is {weight}; valid is zero or more")
        for weight in (self.smooth_velocity, self.smooth_acceleration):
            if not (math.isfinite(weight) and weight >= 0):
                raise SimspineError(f"A smoothing weight is {weight}; valid is zero or more")

    @property
    def smooths(self) -> bool:
        """Whether the clip is solved as a whole."""
        return self.smooth_velocity > 0 or self.smooth_acceleration > 0

    @property
    def tasks(self) -> tuple[CoordinateTask, ...]:
        """The coordinate tasks that pull, in the order in which `simspine_jax.solve_ik` takes values."""
        tasks = self.setup.coordinate_tasks if self.setup is not None else ()
        return tuple(task for task in tasks if task.apply and task.weight > 0)

    @property
    def digest(self) -> str:
        """Hash of all of them; files count by their content, those that the setup names included."""
        values = b"" if self.coordinates is None else read_bytes(self.coordinates)
        others = [
            (f.name, getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("coordinates", "setup_file")
        ]
        return digest_of(repr(others).encode(), values)


@dataclass(frozen=True, eq=False)
class MatchedMarkers:
    """A trajectory in the model's marker order; markers that the file lacks are NaN."""

    positions: NDArray[np.float64]  # [T K 3] m
    used: tuple[str, ...]
    only_in_file: tuple[str, ...]
    only_in_model: tuple[str, ...]


@dataclass(frozen=True)
class MarkerError:
    """How far a marker is from its target over the frames that have both; None where there are none."""

    name: str
    weight: float
    rms_mm: float | None
    max_mm: float | None
    frames: int


@dataclass(frozen=True)
class TrialResult:
    """What a trial's ``summary.json`` says.

    Attributes:
        name: of the trial: its marker file's name without the suffix.
        folder: where its files are.
        n_frames: frames solved.
        status: (status, frames) for each status that occurs.
        iterations: of the solver, all frames and starts together.
        frames_without_pose: indices of the frames that have no pose and so no row in the motion file.
        markers: of the markers that file and model share.
        only_in_file: markers of the file that the model lacks; they were ignored.
        only_in_model: markers of the model that the file lacks.
        frames_left_out: of the file, because they are outside the times to solve.
        seconds: that solving took; None when the trial was complete already.
        compiled: whether these seconds include compiling, or loading what was compiled.
        changed: whether the folder held a complete trial of other inputs or options.
    """

    name: str
    folder: Path
    n_frames: int
    status: tuple[tuple[str, int], ...]
    iterations: int
    frames_without_pose: tuple[int, ...]
    markers: tuple[MarkerError, ...]
    only_in_file: tuple[str, ...]
    only_in_model: tuple[str, ...]
    frames_left_out: int = 0
    seconds: float | None = None
    compiled: bool = False
    changed: bool = False

    @property
    def motion(self) -> Path:
        """The ``.mot`` file."""
        return self.folder / f"{self.name}.mot"


@dataclass(frozen=True)
class FailedTrial:
    """A trial that could not be done, and why in one sentence."""

    name: str
    reason: str


def open_model(
    path: str | Path,
    marker_set: str | Path | None = None,
    *,
    ignore_constraints: Sequence[str] = (),
    dtype: jnp.dtype | None = None,
) -> LoadedModel:
    """Loads a model as `simspine_jax.load_model` does, with the hash of what it was made from.

    Raises:
        SimspineError: as `simspine_jax.load_model`.
    """
    path = Path(path)
    is_osim = path.suffix.lower() == ".osim"
    files = path if not is_osim else converted_path(path, marker_set, ignore_constraints)
    given = None if is_osim else marker_set
    model = read_converted(files, given, dtype)
    sidecar = find_converted(files)
    sources = [sidecar, sidecar.with_suffix(".xml"), *([Path(given)] if given is not None else [])]
    digest = digest_of(*(source.read_bytes() for source in sources))
    return LoadedModel(model, sidecar, digest, path, None if marker_set is None else Path(marker_set))


def find_trials(paths: Iterable[str | Path]) -> list[Path]:
    """The marker files that files, folders and patterns name, in order.

    Raises:
        SimspineError: a folder or pattern without marker files, or two files of one name, whose results would
            fall on each other.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if given.is_dir():
            files = sorted(p for p in given.iterdir() if p.suffix.lower() in MARKER_SUFFIXES and p.is_file())
        elif any(c in str(given) for c in "*?[") and not given.exists():
            root = Path(given.anchor) if given.anchor else Path()
            files = sorted(p for p in root.glob(str(given.relative_to(given.anchor))) if p.is_file())
        else:
            files = [given]
        if not files:
            raise SimspineError(f"{given} holds no marker files; valid are files ending in {_SUFFIXES}")
        found += files
    by_name: dict[str, Path] = {}
    for path in found:
        if (other := by_name.setdefault(path.stem, path)) != path:
            raise SimspineError(f"{other} and {path} are two trials of one name; valid are names that differ")
    return list(by_name.values())


def match_markers(model: SpineModel, trajectory: MarkerTrajectory) -> MatchedMarkers:
    """The trajectory's markers by name in the model's order.

    Raises:
        SimspineError: the two share fewer than three markers.
    """
    used = tuple(name for name in model.marker_names if name in trajectory.names)
    if len(used) < LEAST_MARKERS:
        raise SimspineError(
            f"{trajectory.source} and the model {model.name} share {len(used)} markers and at least "
            f"{LEAST_MARKERS} are needed; the file has: {listed(trajectory.names, 60)}; "
            f"the model has: {listed(model.marker_names, 60)}"
        )
    positions = np.full((trajectory.n_frames, model.n_markers, 3), np.nan)
    positions[:, model.marker_indices(used)] = trajectory.select(used).positions
    return MatchedMarkers(
        positions,
        used,
        tuple(name for name in trajectory.names if name not in model.marker_names),
        tuple(name for name in model.marker_names if name not in used),
    )


def targets_at(
    model: SpineModel, trajectory: MarkerTrajectory, times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[T K 3] the trajectory's markers in the frames nearest to ``times``; NaN where none is near.

    Raises:
        SimspineError: as `match_markers`.
    """
    positions = match_markers(model, trajectory).positions
    nearest, near = nearest_samples(trajectory.times, times, 0.5 / trajectory.rate)
    return np.where(near[:, None, None], positions[nearest], np.nan)


def check_units(loaded: LoadedModel, trajectory: MarkerTrajectory) -> None:
    """Refuses markers whose size can't be the model's, as where a file says mm and has metres.

    What is compared is the distance from the centre, root mean square over the markers that a frame shares
    with the model: the trial's to that of the same markers in the model's default pose, median over frames.

    Raises:
        SimspineError: one is more than `MOST_UNLIKE` times the other, or as `match_markers`.
    """
    matched = match_markers(loaded.model, trajectory)
    used = loaded.model.marker_indices(matched.used)
    found = matched.positions[:, used]
    expected = np.where(np.isfinite(found), _default_markers(loaded)[used], np.nan)
    ours, theirs = _sizes(found), _sizes(expected)
    known = (ours > 0) & (theirs > 0)
    if not known.any():
        return
    size, wanted = float(np.median(ours[known])), float(np.median(theirs[known]))
    if (factor := max(size / wanted, wanted / size)) > MOST_UNLIKE:
        raise SimspineError(
            f"{trajectory.source}: its markers lie {size:.3g} m from their centre and the model "
            f"{loaded.model.name}'s {wanted:.3g} m, a factor of {factor:.0f}; valid are positions in the "
            "unit that the file's header names, so correct its Units (m or mm)"
        )


def _sizes(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T] root mean square distance from the centre over the markers that a frame has; 0 without any."""
    count = np.maximum(np.isfinite(positions).all(axis=-1).sum(axis=1), 1)
    centre = np.nansum(positions, axis=1, keepdims=True) / count[:, None, None]
    return np.sqrt(np.nansum((positions - centre) ** 2, axis=(1, 2)) / count)


def _default_markers(loaded: LoadedModel) -> NDArray[np.float64]:
    """[K 3] the model's markers in its default pose, by MuJoCo in C, which has nothing to compile."""
    model = loaded.model
    mj_model = mujoco.MjModel.from_xml_path(str(loaded.sidecar.with_suffix(".xml")))
    data = mujoco.MjData(mj_model)
    data.qpos[:] = _qpos(model, model.default_q)
    mujoco.mj_kinematics(mj_model, data)
    bodies = np.array(model.topology.marker_bodies, int)
    turned = data.xmat[bodies].reshape(-1, 3, 3) @ np.asarray(model.marker_locations, np.float64)[..., None]
    return data.xpos[bodies] + turned[..., 0]


def select_times(trajectory: MarkerTrajectory, start: float, end: float) -> MarkerTrajectory:
    """The frames from ``start`` to ``end``, s, both included.

    Raises:
        SimspineError: there are none.
    """
    margin = 0.01 / trajectory.rate  # a time written with few digits still names its frame
    inside = (trajectory.times >= start - margin) & (trajectory.times <= end + margin)
    if not inside.any():
        first, last = trajectory.times[0], trajectory.times[-1]
        raise SimspineError(
            f"{trajectory.source} has no frame from {start:g} to {end:g} s; it has {first:g} to {last:g} s"
        )
    return dataclasses.replace(
        trajectory, times=trajectory.times[inside], positions=trajectory.positions[inside]
    )


def marker_weights(model: SpineModel, options: IKOptions) -> NDArray[np.float64]:
    """[K] how much each of the model's markers counts.

    Raises:
        UnknownNameError: a weight is for a marker that the model lacks.
    """
    if options.setup is not None:
        tasks = {task.name: task.weight for task in options.setup.marker_tasks if task.apply}
        return np.array([tasks.get(name, 0.0) for name in model.marker_names])
    weights = np.ones(model.n_markers)
    weights[model.marker_indices([name for name, _ in options.weights])] = [w for _, w in options.weights]
    return weights


def run_ik(
    loaded: LoadedModel,
    markers: str | Path,
    out: str | Path,
    options: IKOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> TrialResult:
    """Solves one marker file into ``out/<trial>/``; does nothing where that is complete.

    Writes ``<trial>.mot`` (all coordinates, degrees), ``<trial>_ik_marker_errors.sto`` and
    ``<trial>_ik_model_marker_locations.sto`` with OpenSim's columns, ``<trial>_model_markers.trc``,
    ``timing.json`` and ``summary.json``. Frames that have no pose have no row in the first three: OpenSim's
    Storage reads NaN as zero. They are listed in the summary and NaN in the TRC.

    Raises:
        SimspineError: the file can't be read, doesn't fit the model, or no frame of it has a pose.
    """
    markers, options = Path(markers), options or IKOptions()
    folder = Path(out) / markers.stem
    if not markers.is_file():
        raise FileFormatError(f"There is no marker file {markers}; give a file ending in {_SUFFIXES}")
    key = {
        "version": ssj.__version__,
        "model_sha256": loaded.digest,
        "markers_sha256": digest_of(markers.read_bytes()),
        "options_sha256": options.digest,
    }
    if not force and (done := _read_complete(folder, markers.stem, key)) is not None:
        return done
    whole = read_markers(markers)
    trajectory = _within_times(whole, options)
    check_units(loaded, trajectory)
    matched = match_markers(loaded.model, trajectory)
    before, began = len(_compilations), time.perf_counter()
    solved = _solve(loaded.model, trajectory, matched, options, progress)
    seconds = time.perf_counter() - began
    if not solved.has_pose.any():
        raise SimspineError(f"No frame of {markers} has enough markers for a pose")
    result = dataclasses.replace(
        _summarise(loaded.model, markers.stem, folder, matched, solved, options),
        frames_left_out=whole.n_frames - trajectory.n_frames,
        seconds=seconds,
        compiled=len(_compilations) > before,
        changed=not force and _made_otherwise(folder, key),
    )
    about = {"inputs": key, "provenance": _provenance(loaded, markers, trajectory, options)}
    _write(loaded.model, result, trajectory, matched, solved, options, about)
    return result


def run_trials(
    loaded: LoadedModel,
    trials: Iterable[Path],
    out: str | Path,
    options: IKOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Iterator[TrialResult | FailedTrial]:
    """Each trial by `run_ik`, in order; one that fails is told and the next one follows."""
    for path in trials:
        try:
            yield run_ik(loaded, path, out, options, force=force, progress=progress)
        except (SimspineError, OSError) as error:
            yield FailedTrial(path.stem, str(error))


@dataclass(frozen=True, eq=False)
class _Solved:
    coordinates: NDArray[np.float64]  # [T C]
    markers: NDArray[np.float64]  # [T K 3]
    status: NDArray[np.int64]  # [T]
    iterations: int  # of all frames

    @property
    def has_pose(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.coordinates).all(axis=1))


def _within_times(trajectory: MarkerTrajectory, options: IKOptions) -> MarkerTrajectory:
    first, last = options.setup.time_range if options.setup is not None else (-math.inf, math.inf)
    start = first if options.start is None else options.start
    end = last if options.end is None else options.end
    return select_times(trajectory, start, end)


def _solve(
    model: SpineModel,
    trajectory: MarkerTrajectory,
    matched: MatchedMarkers,
    options: IKOptions,
    progress: Progress | None,
) -> _Solved:
    """The whole clip at once where it is smoothed, else in chunks, so that progress can be told."""
    arguments: dict[str, Any] = {"setup": options.setup}
    arguments["min_markers"] = _needed(model, matched, options)
    pulled_to = None if options.coordinates is None else task_targets(model, options, trajectory)
    if options.setup is None:
        arguments["weights"] = jnp.asarray(marker_weights(model, options), model.dtype)
    step = CHUNK_FRAMES
    if options.smooths:
        step = trajectory.n_frames
        if np.ptp(np.diff(trajectory.times)) > 0.1 / trajectory.rate:
            raise SimspineError(
                f"{trajectory.source} has uneven times, which smoothing can't take; resample it to one rate"
            )
        arguments["smoothing"] = ssj.Smoothing(
            velocity=options.smooth_velocity,
            acceleration=options.smooth_acceleration,
            rate_hz=trajectory.rate,
        )
        arguments["lengths"] = jnp.asarray(trajectory.n_frames)
    parts = []
    for start in range(0, trajectory.n_frames, step):
        chunk = matched.positions[start : start + step]
        padding = np.full((padded_size(len(chunk)) - len(chunk), *chunk.shape[1:]), np.nan)
        padded = np.concatenate([chunk, padding])
        if pulled_to is not None:
            rows = np.minimum(np.arange(start, start + len(padded)), trajectory.n_frames - 1)
            arguments["coordinate_targets"] = jnp.asarray(pulled_to[rows], model.dtype)
        solution = _compiled_solve()(model, jnp.asarray(padded, model.dtype), **arguments)
        found = (solution.coordinates, solution.markers, solution.status, solution.iterations)
        parts.append([np.asarray(values)[: len(chunk)] for values in found])
        if progress is not None:
            progress(start + len(chunk), trajectory.n_frames)
    coordinates, markers, status, iterations = (np.concatenate(values) for values in zip(*parts, strict=True))
    return _Solved(coordinates.astype(np.float64), markers.astype(np.float64), status, int(iterations.sum()))


@cache
def _compiled_solve() -> Callable[..., ssj.IKSolution]:
    def solve(*arguments: Any, **options: Any) -> ssj.IKSolution:
        _compilations.append(None)  # while JAX traces, so once for each program
        return ssj.solve_ik(*arguments, **options)

    return quick_to_compile(solve, static_argnames=("setup",))


_compilations: list[None] = []
"""One for each program of the solve that was compiled, or loaded from JAX's cache."""


def quick_to_compile(
    function: Callable[..., Any], static_argnames: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """``jax.jit`` with `QUICK_TO_COMPILE` where this XLA knows it; for outermost functions only."""
    compiled = partial(jax.jit, function, static_argnames=static_argnames)
    try:
        jax.jit(lambda: 0, compiler_options=QUICK_TO_COMPILE)()
    except jax.errors.JaxRuntimeError:
        return compiled()
    return compiled(compiler_options=QUICK_TO_COMPILE)


def _needed(model: SpineModel, matched: MatchedMarkers, options: IKOptions) -> int:
    """Markers that a frame needs, by the whole trial, so that all of its chunks go by one rule."""
    present = np.isfinite(matched.positions).all(axis=-1) & (marker_weights(model, options) > 0)
    return int(needed_markers(model, present))


def task_targets(model: SpineModel, options: IKOptions, trajectory: MarkerTrajectory) -> NDArray[np.float64]:
    """[T n] values of the setup's coordinate tasks at the trial's times, rad and m.

    Values from the file are interpolated linearly between its rows, where OpenSim lays a quintic spline
    through them: at the times of its rows both are the same.

    Raises:
        UnknownNameError: the model or the file lacks a coordinate.
        SimspineError: the file does not reach over the trial's times, or has gaps there.
    """
    index = {name: i for i, name in enumerate(model.coordinate_names)}
    for task in options.tasks:
        if task.name not in index:
            raise UnknownNameError(
                "Coordinate task", task.name, f"the model {model.name}", model.coordinate_names
            )
    defaults = np.asarray(model.default_coordinates, np.float64)
    names = [task.name for task in options.tasks if task.value_type == "from_file"]
    assert options.coordinates is not None  # IKOptions sees to it
    values = read_values(model, options.coordinates, names, options.in_degrees)
    read = dict(zip(names, _at_times(values, trajectory).T, strict=True))
    columns = []
    for task in options.tasks:
        fixed = task.value if task.value_type == "manual_value" else defaults[index[task.name]]
        columns.append(read.get(task.name, np.full(trajectory.n_frames, fixed)))
    return np.stack(columns, axis=1)


def _at_times(table: Storage, trajectory: MarkerTrajectory) -> NDArray[np.float64]:
    """[T C] the table at the trajectory's times, between its rows linearly."""
    times, margin = trajectory.times, 0.01 / trajectory.rate  # times are written with few digits
    if times[0] < table.times[0] - margin or times[-1] > table.times[-1] + margin:
        raise SimspineError(
            f"{table.source} has {table.times[0]:g} to {table.times[-1]:g} s, which does not cover "
            f"{trajectory.source} with {times[0]:g} to {times[-1]:g} s"
        )
    values = np.stack([np.interp(times, table.times, column) for column in table.data.T], axis=1)
    if np.isnan(values).any():
        frame, column = np.argwhere(np.isnan(values))[0]
        raise SimspineError(
            f"{table.source} has no value of {table.columns[column]} at {times[frame]:g} s, where the setup "
            "takes one from it"
        )
    return values


def padded_size(n_frames: int) -> int:
    """The least size from `LEAST_PADDED_FRAMES` on, in steps of a quarter octave, that holds the frames."""
    quarter = LEAST_PADDED_FRAMES // 4
    while 8 * quarter < n_frames:
        quarter *= 2
    return max(LEAST_PADDED_FRAMES, -(-n_frames // quarter) * quarter)


def _errors(matched: MatchedMarkers, solved: _Solved) -> NDArray[np.float64]:
    """[T K] distance of each marker from its target, m; NaN where one of them is missing."""
    return np.linalg.norm(solved.markers - matched.positions, axis=-1)


def _summarise(
    model: SpineModel,
    name: str,
    folder: Path,
    matched: MatchedMarkers,
    solved: _Solved,
    options: IKOptions,
) -> TrialResult:
    errors, weights = _errors(matched, solved), marker_weights(model, options)
    rows = []
    for marker, k in zip(matched.used, model.marker_indices(matched.used), strict=True):
        seen = 1e3 * errors[~np.isnan(errors[:, k]), k]
        rms, largest = (float(np.sqrt(np.mean(seen**2))), float(seen.max())) if len(seen) else (None, None)
        rows.append(MarkerError(marker, float(weights[k]), rms, largest, len(seen)))
    values, counts = np.unique(solved.status, return_counts=True)
    return TrialResult(
        name=name,
        folder=folder,
        n_frames=len(solved.status),
        status=tuple((ssj.IKStatus(v).name, int(n)) for v, n in zip(values, counts, strict=True)),
        iterations=solved.iterations,
        frames_without_pose=tuple(int(i) for i in np.flatnonzero(~solved.has_pose)),
        markers=tuple(rows),
        only_in_file=matched.only_in_file,
        only_in_model=matched.only_in_model,
    )


def _provenance(
    loaded: LoadedModel, markers: Path, trajectory: MarkerTrajectory, options: IKOptions
) -> dict[str, Any]:
    """For people: what was asked, and of which files; their folders would tie a result to a machine."""
    files = {
        "model": loaded.path,
        "marker_set": loaded.marker_set,
        "markers": markers,
        "setup": options.setup_file,
        "coordinates": options.coordinates,
    }
    return {
        **{what: None if path is None else path.name for what, path in files.items()},
        "weights": dict(options.weights),
        "first_time_s": float(trajectory.times[0]),
        "last_time_s": float(trajectory.times[-1]),
        "smooth_velocity": options.smooth_velocity,
        "smooth_acceleration": options.smooth_acceleration,
        "precision": options.precision,
    }


def _write(
    model: SpineModel,
    result: TrialResult,
    trajectory: MarkerTrajectory,
    matched: MatchedMarkers,
    solved: _Solved,
    options: IKOptions,
    about: dict[str, Any],
) -> None:
    folder, name = result.folder, result.name
    _clear(folder)
    keep = solved.has_pose
    times = trajectory.times[keep]
    turn = np.where(model.rotational, 180 / np.pi, 1.0)
    used = model.marker_indices(matched.used)
    locations = solved.markers[keep][:, used].reshape(len(times), -1)
    axes = tuple(f"{marker}_t{axis}" for marker in matched.used for axis in "xyz")
    errors = _error_table(_errors(matched, solved)[keep], marker_weights(model, options))
    error_columns = ("total_squared_error", "marker_error_RMS", "marker_error_max")
    coordinates = solved.coordinates[keep] * turn
    tables = {
        f"{name}.mot": Storage("Coordinates", model.coordinate_names, times, coordinates, True),
        f"{name}_ik_marker_errors.sto": Storage(
            "Model Marker Errors from IK", error_columns, times, errors, False
        ),
        f"{name}_ik_model_marker_locations.sto": Storage(
            "Model Marker Locations from IK", axes, times, locations, False
        ),
    }
    for file, table in tables.items():
        write_sto(folder / file, table)
    trc = f"{name}_model_markers.trc"
    write_trc(
        folder / trc, MarkerTrajectory(model.marker_names, trajectory.times, solved.markers, trajectory.rate)
    )
    seconds = result.seconds or 0.0
    write_json(
        folder / "timing.json",
        {
            "seconds": seconds,
            "frames_per_second": result.n_frames / seconds if seconds else None,
            "with_compiling": result.compiled,
        },
    )
    document = {"format": FORMAT, **about, "files": [*tables, trc], **_as_json(result)}
    write_json(folder / "summary.json", document)


def _error_table(errors: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T 3] unweighted sum of squares, root mean square and largest error over the markers that count, m."""
    counted = errors[:, weights > 0]
    squared = np.nansum(counted**2, axis=1)
    present = np.maximum((~np.isnan(counted)).sum(axis=1), 1)
    largest = np.max(np.nan_to_num(counted), axis=1, initial=0.0)
    return np.stack([squared, np.sqrt(squared / present), largest], axis=1)


def _clear(folder: Path) -> None:
    """Takes the summary away before anything else changes, and what a killed run left half-written."""
    if not folder.is_dir():
        return
    (folder / "summary.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        derived = path.name in (f"{folder.name}.html", f"{folder.name}.png")
        if derived or is_temporary(path):
            path.unlink()


def _as_json(result: TrialResult) -> dict[str, Any]:
    """The result's own fields; what depends on place and time is left out."""
    document = dataclasses.asdict(result)
    for name in ("folder", "seconds", "compiled", "changed"):
        del document[name]
    return document


def _read_complete(folder: Path, name: str, key: dict[str, str]) -> TrialResult | None:
    """The result that the folder holds, if it is whole and was made from the same inputs."""
    try:
        document = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        same = document["format"] == FORMAT and document["inputs"] == key
        if not same or not all((folder / file).is_file() for file in document["files"]):
            return None
        return TrialResult(
            name=name,
            folder=folder,
            n_frames=document["n_frames"],
            status=tuple((s, n) for s, n in document["status"]),
            iterations=document["iterations"],
            frames_without_pose=tuple(document["frames_without_pose"]),
            markers=tuple(MarkerError(**row) for row in document["markers"]),
            only_in_file=tuple(document["only_in_file"]),
            only_in_model=tuple(document["only_in_model"]),
            frames_left_out=document["frames_left_out"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not a summary of ours: the trial is done anew


def _made_otherwise(folder: Path, key: dict[str, str]) -> bool:
    """Whether the folder holds a trial of other inputs."""
    try:
        document = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return document["format"] == FORMAT and document["inputs"] != key
    except (OSError, ValueError, KeyError, TypeError):
        return False
