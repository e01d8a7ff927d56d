"""Where a simulation's trials come from: files of a laboratory, a manifest of many, or synthetic captures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import NAME, SYNTHETIC, SpineTrial, file_name
from simspine_jax.capture import (
    ACTION_NAMES,
    SUBJECT_NAMES,
    Capture,
    capture_trial,
    check_seed,
    count_frames,
    make_subject,
)
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io import read_markers, read_text
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.files import place, shown
from simspine_jax.io.keypoints import (
    Keypoints2D,
    main_person,
    read_coco_results,
    read_keypoints_npz,
    read_openpose_folder,
)
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.records import digest_of
from simspine_jax.pipeline.stages import TrialInput, Views
from simspine_jax.skeleton import TRC_NAMES

LEAST_PICTURE_PX = 4.0
"""Keypoints that all lie within so many pixels of the corner are shares of the picture, not pixels."""

RATE_TOLERANCE = 1e-3
"""Relative difference up to which two rates are one that was rounded; 59.94 and 60 Hz are two."""

UNREADABLE = bytes(hashlib.sha256().digest_size)
"""Stands for the hash of a file that is missing or can't be read."""


class TrialSource(Protocol):
    """A trial that can be loaded."""

    @property
    def action(self) -> str:
        """With its repetition, if there is one."""
        ...

    @property
    def digest(self) -> str:
        """Hash of all that it is loaded from."""
        ...

    def load(self) -> TrialInput:
        """Reads it.

        Raises:
            SimspineError: a file is missing, can't be read, or doesn't fit the others.
        """
        ...

    def truth(self) -> SpineTrial | None:
        """What is known to be true of a synthetic trial."""
        ...


@dataclass(frozen=True)
class SubjectSource:
    """A subject's trials, and what is known of the subject.

    Attributes:
        name: such as ``S1``.
        trials: at least one.
        static: a trial to scale by; None for all trials.
        height_m: if known.
        mass_kg: if known.
    """

    name: str
    trials: tuple[TrialSource, ...]
    static: TrialSource | None = None
    height_m: float | None = None
    mass_kg: float | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of everything; its trials depend on each other through the subject's size."""
        parts = [trial.digest for trial in (*self.trials, *((self.static,) if self.static else ()))]
        about = (self.name, self.height_m, self.mass_kg, self.static is not None)
        return digest_of(repr(about).encode(), *map(str.encode, parts))


def check_sources(subjects: Sequence[SubjectSource]) -> None:
    """Refuses names that `SpineTrial` doesn't take, and those that would share files of the output.

    Raises:
        SimspineError: a name has other characters, or two subjects or trials would have the same files.
    """
    folders: dict[Path, str] = {}
    files: dict[str, str] = {}
    for subject in subjects:
        _check_name("A subject", subject.name)
        here = ReleaseLayout(Path()).model(subject.name)
        if here in folders:
            raise SimspineError(
                f"The subjects '{folders[here]}' and '{subject.name}' would have the same files; valid are "
                "names that differ in more than blanks and underscores"
            )
        folders[here] = subject.name
        for trial in subject.trials:
            _check_name(f"A trial of subject {subject.name}", trial.action)
            stem, name = file_name(subject.name, trial.action), f"{subject.name} / {trial.action}"
            if stem in files:
                raise SimspineError(
                    f"The trials '{files[stem]}' and '{name}' would have the same files, {stem}; valid are "
                    "names that differ in more than blanks and underscores"
                )
            files[stem] = name


def _check_name(whose: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise SimspineError(
            f"{whose} is called {shown(name)}; valid are letters, digits, blank and ._-, of which the first "
            "is a letter or digit"
        )


def action_from(path: Path) -> str:
    """A trial's name from that of its file: what names can't have becomes an underscore."""
    name = re.sub(r"[^A-Za-z0-9 ._-]", "_", path.absolute().stem).lstrip(" ._-")
    return name or "trial"


@dataclass(frozen=True)
class FileTrial:
    """A trial in files.

    Attributes:
        action: its name.
        keypoints: a folder with a folder of OpenPose or SpinePose JSON for each camera, a folder with a COCO
            results file for each camera, or an NPZ.
        calibration: of the cameras; see `simspine_jax.io.calibration.read_cameras`.
        markers: body markers, ``.trc`` or ``.c3d``, Y up.
        rate_hz: frames per second of the keypoints; those of a file that says it must be the same.
        schema: of `KEYPOINT_SCHEMAS`, where the number of keypoints does not tell.
        calibration_subject: for a calibration that holds several subjects.
        cameras_in_order: whether cameras of both go by their order and not by name.
        least_cameras: that must be there.
    """

    action: str
    keypoints: Path | None = None
    calibration: Path | None = None
    markers: Path | None = None
    rate_hz: float | None = None
    schema: str | None = None
    calibration_subject: str | None = None
    cameras_in_order: bool = False
    least_cameras: int = 2

    @property
    def source(self) -> str:
        """What it was read from, for people."""
        return " and ".join(str(path) for path in (self.keypoints, self.markers) if path is not None)

    @property
    def digest(self) -> str:
        """Hash of its files and settings; that a file can't be read is a part of it, and `load` tells it."""
        settings = (self.rate_hz, self.schema, self.calibration_subject, self.cameras_in_order)
        files = [b"" if path is None else _contents(path) for path in self._paths]
        return digest_of(repr((self.action, *settings)).encode(), *files)

    @property
    def _paths(self) -> tuple[Path | None, ...]:
        return self.keypoints, self.calibration, self.markers

    def truth(self) -> None:
        """Nothing is."""
        return

    def load(self) -> TrialInput:
        """Reads it; see `TrialSource`."""
        for path in self._paths:
            if path is not None and not path.exists():
                raise FileFormatError(f"There is no file or folder {place(path)}; valid is one that exists")
        markers = None if self.markers is None else read_markers(self.markers)
        if self.keypoints is None:
            if markers is None:
                raise SimspineError(f"Trial '{self.action}' has neither keypoints nor markers")
            return TrialInput(self.action, markers.times, markers.rate, markers=markers, source=self.source)
        if self.calibration is None:
            raise SimspineError(f"{self.keypoints} needs the calibration of its cameras; give --calibration")
        cameras = read_cameras(self.calibration, subject=self.calibration_subject)
        found = self._read_keypoints(self.keypoints)
        rate = self._rate_of(found)
        views = matched_views(
            cameras, found, self.keypoints, self.calibration,
            in_order=self.cameras_in_order, least=self.least_cameras,
        )  # fmt: skip
        times = (found.first_frame + np.arange(len(found.positions))) / rate
        return TrialInput(self.action, times, rate, views, markers, self.source)

    def _rate_of(self, found: Keypoints2D) -> float:
        """The file's own, or else the given one."""
        rate = self.rate_hz if found.rate_hz is None else found.rate_hz
        if rate is None:
            raise SimspineError(f"{self.keypoints} does not say its frames per second; give --rate")
        if self.rate_hz is not None and abs(rate - self.rate_hz) > RATE_TOLERANCE * rate:
            raise SimspineError(
                f"{self.keypoints} has {rate:.9g} frames per second and the given rate is "
                f"{self.rate_hz:.9g}; valid is the file's, within {RATE_TOLERANCE:.1%}, or none"
            )
        return rate

    def _read_keypoints(self, path: Path) -> Keypoints2D:
        if path.is_dir():
            folders = [inner for inner in path.iterdir() if inner.is_dir()]
            if folders:
                return main_person(read_openpose_folder(path, schema=self.schema, rate_hz=self.rate_hz))
            files = {file.stem: file for file in sorted(path.glob("*.json"))}
            if not files:
                raise FileFormatError(
                    f"{path} holds no keypoints; valid are folders of JSON files or one JSON file a camera"
                )
            return main_person(read_coco_results(files, schema=self.schema, rate_hz=self.rate_hz))
        if path.suffix.lower() == ".npz":
            return read_keypoints_npz(path)
        raise FileFormatError(
            f"{path} holds no keypoints; valid are a folder with a folder of JSON files for each camera, a "
            "folder with a COCO results file for each camera, and an .npz file"
        )


def _contents(path: Path) -> bytes:
    """What tells a file or folder as it is now from all others, in a few bytes."""
    if not os.path.isdir(path):  # unlike pathlib's, it doesn't raise where access is refused
        return b"file" + _file_digest(path)
    whole = hashlib.sha256()
    # Each name's hash has a fixed length, so that names and contents can't be taken for each other.
    # The readers look no deeper, and follow links to folders, as these patterns do.
    found = (*path.glob("*"), *path.glob("*/*"))
    for file in sorted(p for p in found if os.path.isfile(p)):
        whole.update(hashlib.sha256(os.fsencode(file.relative_to(path))).digest() + _file_digest(file))
    return b"folder" + whole.digest()


def _file_digest(path: Path) -> bytes:
    """Of the contents, read a piece at a time; of no contents at all where there is no file to read."""
    try:
        if not os.path.isfile(path):  # a pipe or a device may block or never end
            return UNREADABLE
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return UNREADABLE


def matched_views(
    cameras: Cameras,
    found: Keypoints2D,
    keypoints: Path,
    calibration: Path,
    *,
    in_order: bool = False,
    least: int = 2,
) -> Views:
    """Keypoints in the calibration's order of cameras and the vocabulary's order of keypoints.

    Cameras go by name, of which letters and digits count. A name of the detections may have more in it than
    the calibration's (``cam01_json`` for ``cam_01``), as long as it is one camera's alone and no number goes
    on (``cam10`` is not ``cam1``). With ``in_order`` names don't count: the first of the detections is the
    first of the calibration, and both have as many. There must be ``least`` of them.

    The arrays have JAX's precision, because theirs is the triangulation's.

    Raises:
        SimspineError: cameras can't be told by name, or the keypoints can't be pixels.
    """
    order = _order_of_cameras(cameras, found, keypoints, calibration, in_order=in_order, least=least)
    n_frames, precision = len(found.positions), jnp.zeros(0).dtype
    positions = np.full((n_frames, len(cameras.names), len(TRC_NAMES), 2), np.nan, precision)
    confidence = np.full(positions.shape[:-1], np.nan, precision)
    known = [k for k, name in enumerate(found.keypoint_names) if name in TRC_NAMES]
    there = [TRC_NAMES.index(found.keypoint_names[k]) for k in known]
    for view, camera in enumerate(order):
        positions[:, camera, there] = found.positions[:, view][:, known]
        confidence[:, camera, there] = found.confidence[:, view][:, known]
    seen = positions[np.isfinite(positions)]
    if not seen.size:
        raise SimspineError(f"{keypoints} shows nobody in any frame; at least one frame must have keypoints")
    if np.abs(seen).max() < LEAST_PICTURE_PX:
        raise SimspineError(
            f"{keypoints} has positions up to {np.abs(seen).max():g}; valid are pixels, not shares of it"
        )
    return Views(cameras, positions, np.clip(confidence, 0, 1))


def _order_of_cameras(
    cameras: Cameras, found: Keypoints2D, keypoints: Path, calibration: Path, *, in_order: bool, least: int
) -> list[int]:
    """Which camera of the calibration each of the detections is."""
    has = (
        f"{keypoints} has the cameras {', '.join(found.camera_names)} and {calibration} has "
        f"{', '.join(cameras.names)}"
    )
    if in_order and len(found.camera_names) != len(cameras.names):
        raise SimspineError(f"{has}; valid are as many in both, with --cameras-in-order")
    names = (
        range(len(cameras.names)) if in_order else [camera_of(n, cameras.names) for n in found.camera_names]
    )
    order = [camera for camera in names if camera is not None]
    if len(order) < max(len(found.camera_names), least) or len(set(order)) < len(order):
        raise SimspineError(
            f"{has}; valid are {'two' if least > 1 else 'one'} or more, each named like one of the "
            "calibration, or as many, with --cameras-in-order"
        )
    return order


def of_one_camera(source: SubjectSource) -> SubjectSource:
    """The subject with trials that one camera suffices for."""
    trials = (replace(t, least_cameras=1) if isinstance(t, FileTrial) else t for t in source.trials)
    return replace(source, trials=tuple(trials))


def camera_of(name: str, cameras: Sequence[str]) -> int | None:
    """Which of some cameras a name means, see `matched_views`; None where that isn't clear."""
    for whole in (name, name.removesuffix("_json")):
        if whole in cameras:
            return cameras.index(whole)
    bare = [_bare(camera) for camera in cameras]
    within = [i for i, camera in enumerate(bare) if camera and _holds(_bare(name), camera)]
    longest = [i for i in within if not any(i != j and _holds(bare[j], bare[i]) for j in within)]
    return longest[0] if len(longest) == 1 else None


def _holds(name: str, part: str) -> bool:
    """Whether the part is in the name and no number of it goes on there: ``cam1`` is not in ``cam10``."""
    before = r"(?<!\d)" if part[0].isdigit() else ""
    after = r"(?!\d)" if part[-1].isdigit() else ""
    return re.search(before + re.escape(part) + after, name) is not None


def _bare(name: str) -> str:
    """Letters and digits alone, numbers apart: ``cam_01`` and ``Cam01`` are one name, ``cam0_1`` is not."""
    return re.sub(r"(?<=\d)[\W_]+(?=\d)|([\W_]+)", lambda gap: "" if gap[1] else "-", name.lower())


# --- manifests ---


_TRIAL_KEYS = {
    "keypoints", "calibration", "markers", "rate_hz", "schema", "calibration_subject", "cameras_in_order",
}  # fmt: skip
_SUBJECT_KEYS = {"trials", "static", "height_m", "mass_kg", *_TRIAL_KEYS}


def read_manifest(path: Path) -> tuple[SubjectSource, ...]:
    """Many subjects and trials from a TOML file; paths in it are relative to it.

    A table for each subject has ``trials`` (a table for each action with the fields of `FileTrial`), and may
    have ``static`` (such a table too), ``height_m``, ``mass_kg``, and values for all of its trials::

        [S1]
        calibration = "Calib_S1.toml"
        height_m = 1.80
        [S1.trials."Walking 1"]
        keypoints = "S1/walking_1"
        rate_hz = 50

    Raises:
        FileFormatError: it is no TOML, or has keys or values that mean nothing here.
    """
    try:
        document = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{path} is not TOML: {error}; valid is a table for each subject") from None
    if not document:
        raise FileFormatError(f"{path} names no subjects; valid is a table for each, such as [S1]")
    return tuple(_subject(path, name, table) for name, table in document.items())


def _subject(path: Path, name: str, table: Any) -> SubjectSource:
    table = _table(path, f"[{name}]", table, _SUBJECT_KEYS)
    shared = {key: table[key] for key in _TRIAL_KEYS & table.keys()}
    trials = table.get("trials")
    if not isinstance(trials, dict) or not trials:
        raise FileFormatError(f'{path}: [{name}] has no trials; valid is a table [{name}.trials."Walking 1"]')
    read = [_trial(path, f"{name}.trials.{action}", action, shared, t) for action, t in trials.items()]
    static = table.get("static")
    sizes = {key: _positive(path, f"{name}.{key}", table.get(key)) for key in ("height_m", "mass_kg")}
    return SubjectSource(
        name,
        tuple(read),
        None if static is None else _trial(path, f"{name}.static", "static", shared, static),
        **sizes,
    )


def _trial(path: Path, where: str, action: str, shared: Mapping[str, Any], table: Any) -> FileTrial:
    values: dict[str, Any] = {**shared, **_table(path, f"[{where}]", table, _TRIAL_KEYS)}
    for key in ("keypoints", "calibration", "markers"):
        if key in values:
            values[key] = path.parent / _text(path, f"{where}.{key}", values[key])
    for key in ("schema", "calibration_subject"):
        if key in values:
            _text(path, f"{where}.{key}", values[key])
    if not isinstance(values.get("cameras_in_order", False), bool):
        raise FileFormatError(f"{path}: {where}.cameras_in_order is not true or false")
    if "rate_hz" in values:
        values["rate_hz"] = _positive(path, f"{where}.rate_hz", values["rate_hz"])
    return FileTrial(action, **values)


def _table(path: Path, where: str, table: Any, valid: set[str]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise FileFormatError(f"{path}: {where} is {table!r}; valid is a table")
    if unknown := sorted(table.keys() - valid):
        raise FileFormatError(f"{path}: {where} has '{unknown[0]}'; valid are {', '.join(sorted(valid))}")
    return table


def _text(path: Path, where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise FileFormatError(f"{path}: {where} is {value!r}; valid is text")
    return value


def _positive(path: Path, where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise FileFormatError(f"{path}: {where} is {value!r}; valid is a positive number")
    return float(value)


# --- synthetic captures ---


@dataclass(frozen=True)
class SyntheticTrial:
    """A synthetic capture of `simspine_jax.capture`, made when it is loaded."""

    model: SpineModel = field(repr=False, compare=False)
    subject: str
    action: str
    seconds: float
    rate_hz: float
    seed: int
    exact: bool = False
    """Whether detections are the exact pictures of the rigid model's keypoints, without errors."""

    @property
    def digest(self) -> str:
        """Hash of its settings; the model is part of every trial's record already."""
        settings = (self.subject, self.action, self.seconds, self.rate_hz, self.seed, self.exact)
        return digest_of(json.dumps(settings).encode())

    @cached_property
    def capture(self) -> Capture:
        """All of it."""
        subject = make_subject(self.model, self.subject, self.seed)
        return capture_trial(self.model, subject, self.action, self.seconds, self.rate_hz, self.seed)

    def load(self) -> TrialInput:
        """Simulates it; see `TrialSource`."""
        c = self.capture
        if self.exact:
            keypoints = exact_pictures(c.cameras, np.asarray(c.rigid_keypoints))
            confidence = np.isfinite(keypoints).all(axis=-1).astype(keypoints.dtype)
        else:
            keypoints, confidence = np.asarray(c.detections.keypoints), np.asarray(c.detections.confidence)
        views = Views(c.cameras, keypoints, confidence)
        source = f"{SYNTHETIC[0]}{self.subject}, {self.action}, seed {self.seed}"
        return TrialInput(self.action, np.asarray(c.times, float), c.rate_hz, views, source=source)

    def truth(self) -> SpineTrial:
        """The true pose and keypoints, which the rigid model can't follow in everything."""
        c = self.capture
        return SpineTrial(
            subject=self.subject,
            action=self.action,
            times=np.asarray(c.times, float),
            rate_hz=c.rate_hz,
            keypoints=np.asarray(c.rigid_keypoints if self.exact else c.keypoints, float),
            coordinates=np.asarray(c.coordinates, float),
            quality=np.zeros(len(c.times), np.uint16),
            vertebral_rotations=np.asarray(c.vertebral_rotations, float),
            lordosis=np.asarray(c.curvature.lordosis, float),
            kyphosis=np.asarray(c.curvature.kyphosis, float),
            body_lordosis=np.asarray(c.body_curvature.lordosis, float),
            body_kyphosis=np.asarray(c.body_curvature.kyphosis, float),
            source=f"{SYNTHETIC[1]}seed {self.seed}",
        )


def exact_pictures(cameras: Cameras, keypoints: NDArray) -> NDArray:
    """[T V K 2] where keypoints (m, Y up) are in the pictures, px."""
    import jax.numpy as jnp

    from simspine_jax.geometry.cameras import project
    from simspine_jax.geometry.frames import yup_to_zup

    pictures = project(cameras, yup_to_zup(jnp.asarray(keypoints))).keypoints
    return np.moveaxis(np.asarray(pictures), 2, 1)


def synthetic_subjects(
    model: SpineModel,
    seconds: float,
    rate_hz: float,
    seed: int = 0,
    *,
    subjects: Sequence[str] = (),
    actions: Sequence[str] = (),
    exact: bool = False,
) -> tuple[SubjectSource, ...]:
    """Synthetic subjects as sources; all seven and all fifteen actions by default.

    Raises:
        UnknownNameError: a subject or an action is unknown.
        ShapeError: ``seconds``, ``rate_hz`` or ``seed`` is not valid.
    """
    for kind, names, valid in (("Subject", subjects, SUBJECT_NAMES), ("Action", actions, ACTION_NAMES)):
        for name in names:
            if name not in valid:
                raise UnknownNameError(kind, name, "the synthetic set", valid)
    count_frames(seconds, rate_hz)
    check_seed(seed)
    return tuple(
        SubjectSource(
            subject,
            tuple(
                SyntheticTrial(model, subject, action, seconds, rate_hz, seed, exact)
                for action in actions or ACTION_NAMES
            ),
        )
        for subject in subjects or SUBJECT_NAMES
    )
