"""The official SIMSPINE release, as HDF5 file and as folder: found, read and written.

What the files hold is known from the official code (github.com/dfki-av/simspine, `serialize_dataset.py` and
`preprocess_simspine.py`), which copies numbers from .trc and .mot files as they are:

- **Axes.** Markers lie in OpenSim's Y-up ground frame; the cameras' world is Z-up, and the official exporter
  turns markers to it as `geometry.frames` does. A file of another origin may be Z-up; ``up="z"``
  says so.
- **Lengths** are metres: the exporter projects markers with the translations of the calibrations, which are
  metres. Yet the official TRC writer declares millimetres where it writes metres (and says the opposite in a
  comment). So a person who would be a thousand times too large or too small is scaled; see `PERSON_SPAN_M`.
- **Angles** are degrees, as OpenSim's inverse kinematics writes them; pelvis and abdomen translations are
  metres, and the patella's angles are radians even so (`layout.DEGREE_AXES`). The HDF5 does not say this,
  so where neither the caller nor the file does, degrees are told by their size; see `LEG_AXES`.
- **Quality** is not in the release: frames without a pose are `Quality.NO_POSE`, all others `GOOD`.

The HDF5 that is written here is the official one in degrees, metres and Y-up axes, and says so in attributes
(``units`` of ``markers`` and ``kinematics``, ``rate_hz`` of an action) that other readers pass over, as they
do the data set ``quality`` of an action: the `Quality` of each frame, which comes back.

Importing this module imports JAX, for `Cameras`; h5py is imported where an HDF5 file is opened.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import Quality, SpineTrial
from simspine_jax.errors import (
    FileFormatError,
    MissingDependencyError,
    ShapeError,
    SimspineError,
    UnknownNameError,
    one_line,
)
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.io.calibration import cameras_from_entries, read_cameras, write_cameras_toml
from simspine_jax.io.cells import check_times, first_duplicate
from simspine_jax.io.files import PathLike, atomic_write, malformed, place, shown
from simspine_jax.io.layout import (
    MARKER_FOLDERS,
    ReleaseLayout,
    action_of,
    axes_to_degrees,
    axes_to_radians,
    natural_key,
)
from simspine_jax.io.sto import Storage, read_sto, write_sto
from simspine_jax.io.trc import MAX_POSITION_M, MarkerTrajectory, read_trc, write_trc
from simspine_jax.skeleton import (
    AXIS_NAMES,
    RELEASE_MARKER_NAMES,
    RELEASE_TO_KEYPOINT,
    TRC_NAMES,
)

RELEASE_RATE_HZ = 50.0
"""Human3.6M's; the rate of a trial that has one frame and does not say."""

PERSON_SPAN_M = (0.1, 10.0)
"""What the diagonal of the box around a person's keypoints can be; thousandfold lengths are outside."""

MIN_MARKERS = 5
"""Frames with fewer don't tell how large the person is."""

LEG_AXES: tuple[str, ...] = tuple(
    f"{axis}_{side}"
    for axis in ("hip_flexion", "hip_adduction", "knee_angle", "ankle_angle")
    for side in "rl"
)
"""Axes that the model bounds within half a turn. A number beyond pi among them is degrees, and a person
whose legs never leave 3.1 degrees in a whole file stands still in the neutral pose."""

MAX_TRIAL_FRAMES = 1_000_000
"""Five hours at 50 Hz; a damaged header that claims more is not believed."""

_MAX_NAMES = 1000
_LEGS = np.array([AXIS_NAMES.index(name) for name in LEG_AXES])
_H5_ERRORS = (
    OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError, AttributeError,
    NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class ReleaseTrial:
    """A trial of a release by its names.

    Attributes:
        subject: such as ``S1``.
        action: such as ``Walking 1``; see `layout.action_of`.
        stem: what its HDF5 group is called, or its files behind the subject.
    """

    subject: str
    action: str
    stem: str


@dataclass(frozen=True)
class Release:
    """What a release holds.

    Attributes:
        path: the HDF5 file, or the folder.
        form: which of the two.
        trials: sorted by subject and action, numbers by size.
    """

    path: Path
    form: Literal["hdf5", "folder"]
    trials: tuple[ReleaseTrial, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Each once, in the order of the trials."""
        return tuple(dict.fromkeys(trial.subject for trial in self.trials))

    def select(
        self, subjects: Sequence[str] | None = None, actions: Sequence[str] | None = None
    ) -> tuple[ReleaseTrial, ...]:
        """Trials of these subjects and actions (None for all); ``Walking`` stands for all its repetitions.

        Raises:
            UnknownNameError: the release has no such subject or action.
        """
        words = {trial: {trial.action, trial.stem, trial.action.rpartition(" ")[0]} for trial in self.trials}
        labels = list(dict.fromkeys(trial.action for trial in self.trials))
        for name in subjects or ():
            if name not in self.subjects:
                raise UnknownNameError("Subject", name, place(self.path), self.subjects)
        for name in actions or ():
            if not any(name in words[trial] for trial in self.trials):
                raise UnknownNameError("Action", name, place(self.path), labels)
        return tuple(
            trial
            for trial in self.trials
            if (subjects is None or trial.subject in subjects)
            and (actions is None or words[trial].intersection(actions))
        )


def find_release(path: PathLike) -> Release:
    """List the trials of a release: an HDF5 file, a folder that holds ``simspine.h5``, or the folder layout.

    Of a folder that has both, the HDF5 is taken, which reads faster. Only names are looked at.

    Raises:
        FileFormatError: it is none of these, or it holds no trials.
        MissingDependencyError: an HDF5 file without h5py.
    """
    root = Path(path)
    layout = ReleaseLayout.at(root)
    if root.is_dir() and not layout.hdf5.is_file():
        form, found = "folder", _folder_trials(layout)
    else:
        root = layout.hdf5 if root.is_dir() else root
        form, found = "hdf5", _h5_trials(root)
    if not found:
        valid = f"trials such as {MARKER_FOLDERS[0]}/S1/S1_Walking_1.trc, or the HDF5 groups /S1/Walking_1"
        raise malformed(root, None, "it holds no trials", valid)
    return Release(
        root, form, tuple(sorted(found, key=lambda t: (natural_key(t.subject), natural_key(t.stem))))
    )


def read_release(
    path: PathLike,
    *,
    subjects: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
    angles: Literal["deg", "rad"] | None = None,
    up: Literal["y", "z"] = "y",
) -> Iterator[SpineTrial]:
    """Trials of a release, one after the other: no more than one is in memory.

    Markers and axes are matched by name; keypoints that a file lacks, as the reduced release of 15 does, are
    NaN. Of a trial in the folder layout, frames that the .mot does not have are without coordinates.

    Args:
        path: as for `find_release`.
        subjects: only these; None for all.
        actions: only these; see `Release.select`.
        angles: the unit of the angles whatever the file says; None to believe the file, and to tell it by
            the size of the angles where the file does not say.
        up: the axis of the markers that points up.

    Raises:
        FileFormatError: the file or one of its parts is damaged, or no release; it names the HDF5 path.
        UnknownNameError: there is no such subject or action.
        MissingDependencyError: an HDF5 file without h5py.
    """
    release = find_release(path)
    chosen = release.select(subjects, actions)
    if release.form == "folder":
        raw = (_read_files(ReleaseLayout.at(release.path), trial) for trial in chosen)
    else:
        raw = (_read_group(release.path, trial) for trial in chosen)
        angles = _angles_by_size(release, chosen) if angles is None else angles
    return (_trial(found, angles, up) for found in raw)


def release_angles(path: PathLike) -> Literal["deg", "rad"] | None:
    """The unit of the angles by the size of all of them; None where the files say it themselves.

    Who reads a release trial by trial finds it once and gives it to `read_release`: a person who stands still
    does not tell.

    Raises:
        FileFormatError: it is no release, or damaged.
        MissingDependencyError: an HDF5 file without h5py.
    """
    release = find_release(path)
    return _angles_by_size(release, release.trials) if release.form == "hdf5" else None


def read_release_cameras(path: PathLike, subject: str) -> Cameras | None:
    """The cameras of a subject, or None where the release has none; translations in metres, Z-up world.

    Raises:
        FileFormatError: what it has is damaged or no calibration.
        UnknownNameError: there is no such subject.
    """
    release = find_release(path)
    if subject not in release.subjects:
        raise UnknownNameError("Subject", subject, place(release.path), release.subjects)
    if release.form == "folder":
        toml = ReleaseLayout(release.path).cameras(subject)
        return read_cameras(toml) if toml.is_file() else None
    where = f"/{subject}/calibration"
    with _opened(release.path) as file:
        with _guarded(release.path, where):
            group = file.get(where)
        return None if group is None else _read_calibration(release.path, where, group)


def write_release_h5(
    path: PathLike,
    trials: Iterable[SpineTrial],
    *,
    cameras: Mapping[str, Cameras] | None = None,
    models: Mapping[str, str] | None = None,
) -> int:
    """Write the official HDF5 file, which appears at ``path`` whole or not at all.

    `read_release` gives keypoints and times back to the last bit and angles within two units in it, for they
    go through degrees. Every block of numbers carries a checksum.

    Args:
        path: of the file.
        trials: taken one after the other; the next is asked for when one is written.
        cameras: of each subject by its name, if known.
        models: of each subject, what the attribute ``model_file`` says, such as ``models/S1.osim``.

    Returns:
        The number of trials.

    Raises:
        ShapeError: two trials of one name, or a name that the format needs for something else.
        SimspineError: the file can't be written, or cameras have a distortion that is not OpenCV's.
    """
    library = _h5py()
    written: set[str] = set()
    with atomic_write(path, binary=True) as handle:
        try:  # of the handle only its name is used: HDF5 has to read what it has written
            # The oldest format with checksums of all structure; every HDF5 since 1.10 (2016) reads it.
            with library.File(handle.name, "w", libver=("v110", "v110")) as file:
                metadata = file.create_group("metadata")
                for key, names in (("markers_names", RELEASE_MARKER_NAMES), ("kinematic_axes", AXIS_NAMES)):
                    metadata.create_dataset(key, data=np.array(names, "S"), fletcher32=True)
                for trial in trials:
                    where = _group_name(trial)
                    if where in written or trial.subject == "metadata" or trial.action == "calibration":
                        raise ShapeError(f"{place(path)}: {where} is taken; valid are trials of other names")
                    if trial.subject not in file:
                        group = file.create_group(trial.subject)
                        if cameras and trial.subject in cameras:
                            _write_calibration(path, group, cameras[trial.subject])
                        if models and trial.subject in models:
                            group.attrs["model_file"] = models[trial.subject]
                    written.add(where)
                    _write_trial(file.create_group(where), trial)
        except OSError as error:
            what = f"it can't be written ({one_line(str(error))})"
            raise SimspineError(f"{place(path)}: {what}; valid is a path that can be") from None
    return len(written)


def write_release_trial(root: PathLike, trial: SpineTrial) -> None:
    """Write a trial's .trc and .mot into the folder layout, which `read_release` reads back.

    The .trc has metres in Y-up axes and all 37 markers in the release's order, the .mot degrees; both have
    as many digits as it takes. Missing frames are NaN, at which OpenSim's older Storage class stops reading.

    Raises:
        ShapeError: a keypoint is missing in part, or times do not increase.
        SimspineError: a file can't be written.
    """
    layout = ReleaseLayout(Path(root))
    markers = MarkerTrajectory(
        RELEASE_MARKER_NAMES, trial.times, trial.keypoints[:, RELEASE_TO_KEYPOINT], trial.rate_hz
    )
    table = Storage("Coordinates", AXIS_NAMES, trial.times, axes_to_degrees(trial.coordinates), True)
    write_trc(layout.markers(trial.subject, trial.action), markers)
    write_sto(layout.kinematics(trial.subject, trial.action), table)


def write_release_cameras(root: PathLike, subject: str, cameras: Cameras) -> None:
    """Write a subject's calibration into the folder layout; raises as `write_cameras_toml` does."""
    write_cameras_toml(ReleaseLayout(Path(root)).cameras(subject), cameras)


# --- what both forms have in common ---


@dataclass(frozen=True, eq=False)
class _Raw:
    """A trial with the units of its file, in our order of names."""

    subject: str
    action: str
    source: str
    times: NDArray[np.float64]
    rate_hz: float
    keypoints: NDArray[np.float64]  # [T 37 3]
    axes: NDArray[np.float64]  # [T 62]
    in_degrees: bool | None
    in_metres: bool
    quality: NDArray[np.uint16] | None = None  # [T]


def _trial(raw: _Raw, angles: Literal["deg", "rad"] | None, up: Literal["y", "z"]) -> SpineTrial:
    degrees = raw.in_degrees if angles is None else angles == "deg"
    degrees = _is_degrees(raw.axes) if degrees is None else degrees
    if not degrees and _is_degrees(raw.axes):
        worst = np.nanmax(np.abs(raw.axes[:, _LEGS]))
        raise malformed(
            raw.source, None, f"an angle of the legs is {worst:.4g} rad", "radians, or angles='deg'"
        )
    for values, what in ((raw.keypoints, "a marker"), (raw.axes, "an axis")):
        if np.isinf(values).any():
            raise malformed(
                raw.source, None, f"{what} is infinite", "finite numbers, or NaN for missing ones"
            )
    keypoints = raw.keypoints if raw.in_metres else raw.keypoints * _metres(raw.keypoints)
    keypoints = np.where(np.isnan(keypoints).any(axis=-1, keepdims=True), np.nan, keypoints)
    if (np.abs(keypoints) > MAX_POSITION_M).any():
        what = f"a marker is {np.nanmax(np.abs(keypoints)):.4g} m away"
        raise malformed(raw.source, None, what, f"up to {MAX_POSITION_M:g} m")
    lost = np.isnan(raw.axes).all(axis=-1) | np.isnan(keypoints).all(axis=(-1, -2))
    try:
        return SpineTrial(
            raw.subject,
            raw.action,
            raw.times,
            raw.rate_hz,
            keypoints @ R_yup_zup.T if up == "z" else keypoints,
            axes_to_radians(raw.axes) if degrees else raw.axes,
            _flags(raw.quality, lost),
            source=raw.source,
        )
    except ShapeError as error:
        raise FileFormatError(f"{raw.source}: {error}") from None


def _flags(stored: NDArray[np.uint16] | None, lost: Any) -> NDArray[np.uint16]:
    """Quality of each frame [T]: what is stored, and that there is no pose where nothing else says so."""
    flags = np.zeros(len(lost), np.uint16) if stored is None else stored
    usable = (flags & ~np.uint16(Quality.INTERPOLATED)) == 0
    return np.where(lost & usable, flags | np.uint16(Quality.NO_POSE), flags).astype(np.uint16)


def _angles_by_size(release: Release, trials: Sequence[ReleaseTrial]) -> Literal["deg", "rad"] | None:
    """What `release_angles` says of these trials of an HDF5 file."""
    if not trials or _read_group(release.path, trials[0]).in_degrees is not None:
        return None
    return "deg" if any(_is_degrees(_read_group(release.path, t).axes) for t in trials) else "rad"


def _is_degrees(axes: NDArray[np.float64]) -> bool:
    return bool((np.abs(axes[:, _LEGS]) > np.pi).any())


def _metres(keypoints: NDArray[np.float64]) -> float:
    """The factor, a power of a thousand, with which the person is of a person's size; 1 if none is."""
    enough = keypoints[(~np.isnan(keypoints).any(axis=-1)).sum(axis=-1) >= MIN_MARKERS]
    if not len(enough):
        return 1.0
    with np.errstate(over="ignore"):  # numbers of any size come from a damaged file
        sides = np.nanmax(enough, axis=1) - np.nanmin(enough, axis=1)
        span = float(np.median(np.linalg.norm(sides, axis=-1)))
    low, high = PERSON_SPAN_M
    return next((factor for factor in (1.0, 1e-3, 1e3) if low <= span * factor < high), 1.0)


def _placed(
    where: str, kind: str, names: Sequence[str], valid: Sequence[str], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values [T N ...] of named columns at the places [T V ...] of their names; the rest is NaN."""
    if (twice := first_duplicate(names)) is not None:
        raise malformed(where, None, f"{kind} {shown(twice)} is there twice", "one of each name")
    for name in names:
        if name not in valid:
            raise malformed(where, None, f"{kind} {shown(name)} is not known", ", ".join(valid))
    full = np.full((len(values), len(valid), *values.shape[2:]), np.nan)
    full[:, [valid.index(name) for name in names]] = values
    return full


# --- the folder ---


def _folder_trials(layout: ReleaseLayout) -> list[ReleaseTrial]:
    """Trials of which there is a .trc or a .mot."""
    found = {}
    markers = (layout.root / layout.marker_folder).glob("*/*.trc")
    for path, subject in (
        *((path, path.parent.name) for path in markers),
        *((path, path.parent.parent.name) for path in (layout.root / "kinematics").glob("*/*/*.mot")),
    ):
        if path.stem.startswith(f"{subject}_"):
            stem = path.stem.removeprefix(f"{subject}_")
            found[subject, stem] = ReleaseTrial(subject, action_of(stem), stem)
    return list(found.values())


def _read_files(layout: ReleaseLayout, trial: ReleaseTrial) -> _Raw:
    trc, mot = layout.markers(trial.subject, trial.stem), layout.kinematics(trial.subject, trial.stem)
    markers, table = read_trc(trc), read_sto(mot)
    axes = _placed(place(mot), "axis", table.columns, AXIS_NAMES, table.data)
    aligned = np.full((markers.n_frames, len(AXIS_NAMES)), np.nan)
    aligned[_frames(mot, markers, table)] = axes
    return _Raw(
        trial.subject,
        trial.action,
        place(trc),
        markers.times,
        markers.rate,
        _placed(place(trc), "marker", markers.names, TRC_NAMES, markers.positions),
        aligned,
        table.in_degrees,
        in_metres=False,  # whatever the header says, for the official one is wrong
    )


def _frames(path: PathLike, markers: MarkerTrajectory, table: Storage) -> NDArray[np.intp]:
    """The marker frame of each row of a table: the nearest, which is no more than a quarter frame away."""
    after = np.searchsorted(markers.times, table.times).clip(1, max(markers.n_frames - 1, 1))
    before = after - 1
    after = after.clip(max=markers.n_frames - 1)
    nearer = table.times - markers.times[before] <= markers.times[after] - table.times
    frames = np.where(nearer, before, after)
    off = np.abs(markers.times[frames] - table.times) > 0.25 / markers.rate
    if off.any():
        what = f"time {table.times[int(np.argmax(off))]} is not in {place(Path(markers.source).name)}"
        raise malformed(path, None, what, "times of the markers")
    return frames


# --- HDF5 ---


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("h5py", "hdf5", "The HDF5 release") from None
    return h5py


@contextmanager
def _guarded(path: PathLike, where: str) -> Iterator[None]:
    """Turns what the HDF5 library says of damage into a sentence with the file and the path in it."""
    try:
        yield
    except _H5_ERRORS as error:
        what = f"it can't be read ({one_line(str(error), 120)})"
        raise malformed(_at(path, where), None, what, "an intact part of an HDF5 file") from None


@contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    library = _h5py()
    if not Path(path).is_file():
        raise malformed(path, None, "there is no such file", "the path of an HDF5 file")
    try:
        file = library.File(path, "r")
    except _H5_ERRORS as error:
        what = f"it is no HDF5 file, or damaged ({one_line(str(error), 120)})"
        raise malformed(path, None, what, "an HDF5 file") from None
    with file:
        yield file


def _at(path: PathLike, where: str) -> str:
    return place(f"{place(path)}:{where}")


def _h5_trials(path: Path) -> list[ReleaseTrial]:
    found = []
    with _opened(path) as file, _guarded(path, "/"):
        _group(path, file, "/metadata", "the names of markers and axes")
        for subject in file:
            if subject != "metadata":
                group = _group(path, file, f"/{subject}", "the group of a subject")
                stems = [stem for stem in group if stem != "calibration"]
                found += [ReleaseTrial(subject, action_of(stem), stem) for stem in stems]
    return found


def _read_group(path: Path, trial: ReleaseTrial) -> _Raw:
    where = f"/{trial.subject}/{trial.stem}"
    with _opened(path) as file, _guarded(path, where):
        names = _names(path, file, "/metadata/markers_names"), _names(path, file, "/metadata/kinematic_axes")
        group = _group(path, file, where, "the group of a trial")
        times = _numbers(path, file, f"{where}/timestamps", (None,))
        wanted = (len(times), len(names[0]), 3), (len(times), len(names[1]))
        markers = _numbers(path, file, f"{where}/markers", wanted[0])
        axes = _numbers(path, file, f"{where}/kinematics", wanted[1])
        angle_unit = _unit(path, group, "kinematics", {"degrees": True, "radians": False})
        in_metres = _unit(path, group, "markers", {"m": True})
        check_times(_at(path, f"{where}/timestamps"), None, times)
        quality = _read_quality(path, file, f"{where}/quality", len(times)) if "quality" in group else None
        rate = group.attrs.get("rate_hz", _rate(times))
        rate = float(np.asarray(rate, np.float64).reshape(()))
    if not 0 < rate < np.inf:
        raise malformed(_at(path, where), None, f"rate_hz is {rate}", "a positive number")
    return _Raw(
        trial.subject,
        trial.action,
        _at(path, where),
        times,
        rate,
        _placed(_at(path, "/metadata/markers_names"), "marker", names[0], TRC_NAMES, markers),
        _placed(_at(path, "/metadata/kinematic_axes"), "axis", names[1], AXIS_NAMES, axes),
        angle_unit,
        in_metres or False,
        quality,
    )


def _read_quality(path: Path, file: Any, where: str, count: int) -> NDArray[np.uint16]:
    """Flags of `Quality`."""
    found = _numbers(path, file, where, (count,))
    known = int(~Quality(0))
    wrong = (found != np.round(found)) | (found < 0) | (found > known)
    if wrong.any():
        what = f"flag {found[wrong][0]:g} is not known"
        raise malformed(_at(path, where), None, what, f"whole numbers from 0 to {known}")
    return found.astype(np.uint16)


def _group(path: Path, file: Any, where: str, meaning: str) -> Any:
    with _guarded(path, where):
        item = file.get(where)
        if not isinstance(item, _h5py().Group):
            raise malformed(_at(path, where), None, "there is no such group", meaning)
        return item


def _names(path: Path, file: Any, where: str) -> tuple[str, ...]:
    """Text of any of HDF5's kinds."""
    with _guarded(path, where):
        item = file.get(where)
        text = isinstance(item, _h5py().Dataset) and item.dtype.kind in "SO"
        if not text or item.ndim != 1 or not 0 < item.size <= _MAX_NAMES:
            raise malformed(
                _at(path, where), None, "there is no such list of names", "one name for each column"
            )
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in item[()])


def _numbers(path: Path, file: Any, where: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """A data set of numbers, which is read only when its shape is right."""
    with _guarded(path, where):
        item = file.get(where)
        if not isinstance(item, _h5py().Dataset) or item.dtype.kind not in "fiu":
            raise malformed(_at(path, where), None, "there is no such data set of numbers", _sizes(shape))
        fits = len(item.shape) == len(shape) and all(
            want in (None, size) for size, want in zip(item.shape, shape, strict=True)
        )
        if not fits or not 0 < item.shape[0] <= MAX_TRIAL_FRAMES:
            raise malformed(_at(path, where), None, f"the shape is {_sizes(item.shape)}", _sizes(shape))
        if not _is_stored(item):
            raise malformed(_at(path, where), None, "a block of its numbers is missing", "an intact data set")
        return np.asarray(item[()], np.float64)


def _is_stored(item: Any) -> bool:
    """Whether the file has all blocks of a data set; HDF5 gives zeros for one that is lost."""
    if item.chunks is None:
        return item.id.get_storage_size() == item.size * item.dtype.itemsize
    found: set[tuple[int, ...]] = set()
    item.id.chunk_iter(lambda block: found.add(block.chunk_offset))
    starts = (range(0, size, step) for size, step in zip(item.shape, item.chunks, strict=True))
    return found.issuperset(itertools.product(*starts))


def _sizes(shape: Sequence[int | None]) -> str:
    return f"[{' '.join('T' if size is None else str(size) for size in shape)}]"


def _unit(path: Path, group: Any, name: str, valid: Mapping[str, bool]) -> bool | None:
    """What the attribute ``units`` of a data set means; None where there is none."""
    unit = group[name].attrs.get("units")
    if unit is None:
        return None
    text = unit.decode() if isinstance(unit, bytes) else str(unit)
    if text not in valid:
        where = _at(path, f"{group.name}/{name}")
        raise malformed(where, None, f"the unit is {shown(text)}", " or ".join(valid))
    return valid[text]


def _rate(times: NDArray[np.float64]) -> float:
    """Frames per second by the times, gaps left out of account, to the nine digits that times bear out."""
    if len(times) < 2:
        return RELEASE_RATE_HZ
    steps = np.diff(times)
    return float(f"{np.round(steps / np.median(steps)).sum() / (times[-1] - times[0]):.9g}")


def _read_calibration(path: Path, where: str, group: Any) -> Cameras:
    keys = ("K", "dist", "R", "t")
    with _guarded(path, where):
        if not isinstance(group, _h5py().Group):
            raise malformed(_at(path, where), None, "this is no group", "the group of a calibration")
        file = group.file
        names = _names(path, file, f"{where}/names")
        n = len(names)
        size = _numbers(path, file, f"{where}/size", (n, 2)) if "size" in group else np.full((n, 2), np.nan)
        shapes = (n, 3, 3), (n, None), (n, 3, 3), (n, 3)
        arrays = [
            _numbers(path, file, f"{where}/{key}", shape) for key, shape in zip(keys, shapes, strict=True)
        ]
    entries = []
    for v, name in enumerate(names):
        entry: dict[str, Any] = {key: array[v] for key, array in zip(keys, arrays, strict=True)}
        entries.append((name, entry | ({"size": size[v]} if np.isfinite(size[v]).all() else {})))
    with np.errstate(over="ignore", invalid="ignore"):  # numbers of any size come from a damaged file
        return cameras_from_entries(_at(path, where), entries)


def _group_name(trial: SpineTrial) -> str:
    return f"/{trial.subject}/{trial.action.replace(' ', '_')}"


def _write_trial(group: Any, trial: SpineTrial) -> None:
    options = {"compression": "gzip", "fletcher32": True}
    markers = group.create_dataset("markers", data=trial.keypoints[:, RELEASE_TO_KEYPOINT], **options)
    axes = group.create_dataset("kinematics", data=axes_to_degrees(trial.coordinates), **options)
    group.create_dataset("timestamps", data=trial.times, fletcher32=True)
    group.create_dataset("quality", data=trial.quality.astype(np.uint16), **options)
    # Text of a fixed length lies under a checksum. That of any length does not, and HDF5 2.0 never returns
    # from some damage to it.
    markers.attrs["units"], axes.attrs["units"] = np.bytes_("m"), np.bytes_("degrees")
    group.attrs["rate_hz"] = trial.rate_hz


def _write_calibration(path: PathLike, subject: Any, cameras: Cameras) -> None:
    """Five distortion coefficients where they are enough, as OpenCV and the release have them, else eight."""
    if cameras.distortion_model != "opencv":
        what = f"the distortion model is '{cameras.distortion_model}'"
        raise SimspineError(f"{place(path)}: {what}; valid is 'opencv' in a release")
    group = subject.create_group("calibration")
    K = np.zeros((len(cameras.names), 3, 3))
    K[:, [0, 1], [0, 1]], K[:, 0, 1] = np.asarray(cameras.focal_lengths), np.asarray(cameras.skews)
    K[:, :2, 2], K[:, 2, 2] = np.asarray(cameras.principal_points), 1
    distortion, size = np.asarray(cameras.distortion, np.float64), np.asarray(cameras.sizes, np.float64)
    whole = np.isfinite(size).all() and (size == np.round(size)).all()
    arrays = {
        "names": np.array([name.encode() for name in cameras.names]),
        "K": K,
        "R": np.asarray(cameras.rotations, np.float64),
        "dist": distortion if distortion[:, 5:].any() else distortion[:, :5],
        "t": np.asarray(cameras.translations, np.float64),
        "size": size.astype(np.int32) if whole else size,
    }
    for name, array in arrays.items():
        group.create_dataset(name, data=array, fletcher32=True)
