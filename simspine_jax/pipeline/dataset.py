"""Clips from everything that a dataset is built of: synthetic captures, simulations in files, releases.

A source lists its work as items, and makes the clips of one item at a time. Sources and items are plain data
that can be pickled, so that a loop and a distributed run share them. No more than one trial is in memory.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SpineTrial
from simspine_jax.clips import BODY_NAMES, NO_CAMERA, Clip, clips_of
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.files import malformed, place
from simspine_jax.io.layout import MARKER_FOLDERS, ReleaseLayout
from simspine_jax.io.release import (
    Release,
    find_release,
    read_release,
    read_release_cameras,
    release_angles,
)
from simspine_jax.io.trials import find_trials_in, read_trial
from simspine_jax.pipeline.ik import FailedTrial, LoadedModel, Progress, open_model
from simspine_jax.pipeline.options import SimulationOptions
from simspine_jax.pipeline.records import stored_trial, with_remarks
from simspine_jax.pipeline.simulate import run_simulation, truth_path
from simspine_jax.pipeline.sources import synthetic_subjects
from simspine_jax.pipeline.spine import converted_spine
from simspine_jax.statistics import spine_angles

SYNTHETIC_SECONDS = 4.8
"""Of each trial: 105 trials of 240 frames and four views are 100,800 view-frames."""

SYNTHETIC_RATE_HZ = 50.0
"""Human3.6M's."""


@dataclass(frozen=True)
class WorkItem:
    """What is done in one go.

    Attributes:
        subject: name.
        action: name; empty for all actions of the subject, which depend on each other through its size.
        path: file that it is read from; None where the source knows.
        n_trials: how many trials that is.
    """

    subject: str
    action: str = ""
    path: Path | None = None
    n_trials: int = 1


@dataclass(frozen=True)
class Watcher:
    """Who is told how far the work is.

    Attributes:
        progress: told frames done and all frames of a group of trials.
        trial: told the name of a trial that is solved or read.
        expect: told the number of trials, once it is known.
        note: told what is worth knowing.
    """

    progress: Progress = lambda done, total: None
    trial: Callable[[str], None] = lambda name: None
    expect: Callable[[int], None] = lambda total: None
    note: Callable[[str], None] = lambda text: None


UNWATCHED = Watcher()
"""Nobody is told anything."""


class RecordSource(ABC):
    """Something that records are made of: a `Clip` each, or a `Picture`."""

    @abstractmethod
    def items(self) -> tuple[WorkItem, ...]:
        """All work, sorted by subject and action.

        Raises:
            SimspineError: a file is missing or damaged, or a name is unknown.
        """

    def files(self) -> tuple[Path, ...]:
        """Files that the user brought and that the records are made of, sorted; none where it makes all."""
        return ()

    @abstractmethod
    def records(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[tuple[str, Any]]:
        """The records of an item, each with a key that no other one has.

        Raises:
            SimspineError: a file is missing or damaged, or a trial can't be made.
        """


class ClipSource(RecordSource):
    """Something that clips are made of."""

    def records(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[tuple[str, Clip]]:
        """The clips of an item; keys are in the order of the frames. See `RecordSource`."""
        for clip in self.clips(item, watcher):
            yield f"{clip.subject}/{clip.action}/{clip.first_frame:08d}", clip

    @abstractmethod
    def clips(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[Clip]:
        """The clips of an item, trial after trial; each has at least one view (`clips.NO_CAMERA`).

        Raises:
            SimspineError: a file is missing or damaged, or a trial can't be solved.
        """


def select_items(
    items: Sequence[WorkItem], subjects: Sequence[str], actions: Sequence[str]
) -> tuple[WorkItem, ...]:
    """Items of these subjects and actions, all of those for none; ``Walking`` stands for its repetitions.

    Raises:
        UnknownNameError: no item has such a subject or action.
        SimspineError: none has both.
    """
    known_subjects = list(dict.fromkeys(item.subject for item in items))
    known_actions = list(dict.fromkeys(item.action for item in items))
    for name in subjects:
        if name not in known_subjects:
            raise UnknownNameError("Subject", name, "the data", known_subjects)
    for name in actions:
        if not any(_is_called(action, name) for action in known_actions):
            raise UnknownNameError("Action", name, "the data", known_actions)
    found = tuple(
        item
        for item in items
        if (not subjects or item.subject in subjects)
        and (not actions or any(_is_called(item.action, name) for name in actions))
    )
    if not found:
        raise SimspineError("The data have no trials of these subjects with these actions together")
    return found


def _is_called(action: str, name: str) -> bool:
    return action == name or action.rpartition(" ")[0] == name


# --- synthetic captures ---


@dataclass(frozen=True)
class SyntheticSource(ClipSource):
    """Synthetic captures that the pipeline annotates; what is solved already is taken from the work folder.

    Attributes:
        work: a folder for simulations, one for each subject.
        seconds: of each trial.
        subjects: of the synthetic set; empty for all.
        actions: likewise.
        seed: of everything.
    """

    work: Path
    seconds: float = SYNTHETIC_SECONDS
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    seed: int = 0

    def items(self) -> tuple[WorkItem, ...]:
        """A subject each; see `ClipSource`."""
        with jax.enable_x64(False):
            return tuple(
                WorkItem(source.name, n_trials=len(source.trials)) for source in self._sources(self.subjects)
            )

    def clips(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[Clip]:
        """Simulates what is missing of the subject, and all where files can't be read; see `ClipSource`."""
        folder = self.work / item.subject
        anew = not folder.exists()
        done = 0  # trials that are given; anew, they come out the same
        while True:
            try:
                self._simulate(item.subject, folder, watcher)
                stored = SimulationSource(folder)
                for trial in stored.items()[done:]:
                    yield from self._stored_clips(stored, trial)
                    done += 1
                return
            except FileFormatError as error:
                if anew:
                    raise
                watcher.note(f"{error}; {item.subject} is simulated anew")
                shutil.rmtree(folder)
                anew = True

    @staticmethod
    def _stored_clips(stored: SimulationSource, trial: WorkItem) -> list[Clip]:
        with jax.enable_x64(False):
            return list(stored.clips(trial))

    def _sources(self, subjects: Sequence[str]) -> tuple[Any, ...]:
        return synthetic_subjects(
            spine().model, self.seconds, SYNTHETIC_RATE_HZ, self.seed,
            subjects=subjects, actions=self.actions,
        )  # fmt: skip

    def _simulate(self, subject: str, folder: Path, watcher: Watcher) -> None:
        """In single precision whatever JAX's default is: on one machine and platform of JAX (processor or
        accelerator), the same seed gives the same bytes."""
        with jax.enable_x64(False):
            results = run_simulation(
                spine(), self._sources([subject]), folder, SimulationOptions(),
                progress=watcher.progress, note=watcher.note,
            )  # fmt: skip
            for result in results:
                if isinstance(result, FailedTrial):
                    raise SimspineError(f"trial {result.name}: {result.reason}")
                watcher.trial(result.name)


@cache
def spine() -> LoadedModel:
    """The paper's model, read once a process."""
    return open_model(converted_spine())


# --- folders of the pipeline ---


@dataclass(frozen=True)
class SimulationSource(ClipSource):
    """A folder that ``simspine simulate`` has written.

    Attributes:
        folder: with ``trials/``, and ``cameras/``, ``models/`` and ``truth/`` where there are such.
    """

    folder: Path

    def files(self) -> tuple[Path, ...]:
        """Of the folder, those that are read; see `RecordSource`."""
        patterns = ("trials/**/*", "truth/**/*", "cameras/*.toml", "models/*.json")
        return found_files(self.folder, *patterns)

    def items(self) -> tuple[WorkItem, ...]:
        """A trial each; see `ClipSource`."""
        return tuple(WorkItem(t.subject, t.action, t.path) for t in find_trials_in(self.folder))

    def clips(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[Clip]:
        """Clips with detections, truth and the subject's size; see `ClipSource`."""
        assert item.path is not None
        layout = ReleaseLayout(self.folder)
        trial = _with_plain_source(stored_trial(item.path), self.folder)
        calibration = layout.cameras(item.subject)
        cameras = read_cameras(calibration) if calibration.is_file() else None
        truth = truth_path(layout, item.subject, item.action)
        watcher.trial(trial.name)
        yield from clips_of(
            trial,
            cameras if cameras is not None else unknown_cameras(trial.camera_names),
            read_trial(truth) if truth.is_file() else None,
            **size_of(layout, item.subject).as_arguments(),
        )


def found_files(folder: Path, *patterns: str) -> tuple[Path, ...]:
    """Files of a folder by patterns, sorted, each once."""
    return tuple(sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}))


def with_angles(trial: SpineTrial) -> SpineTrial:
    """The trial with vertebral rotations of its axes and curvature of its keypoints, where it has none."""
    angles = spine_angles(trial)
    degrees = {
        "lordosis": angles.lordosis,
        "kyphosis": angles.kyphosis,
        "vertebral_rotations": angles.rotations,
    }
    missing = {name: np.deg2rad(a) for name, a in degrees.items() if getattr(trial, name) is None}
    return dataclasses.replace(trial, **missing)


def unknown_cameras(names: Sequence[str]) -> Cameras:
    """Cameras of which nothing but the name is known; without names, one that is called `NO_CAMERA`."""
    names = tuple(names) or (NO_CAMERA,)

    def unknown(*shape: int) -> NDArray[np.float64]:
        return np.full((len(names), *shape), np.nan)

    return Cameras(
        unknown(3, 3), unknown(3), unknown(2), unknown(2), unknown(), unknown(8), unknown(2), names
    )  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What is known of a subject; see `Clip`."""

    scale_factors: NDArray[np.float64] | None = None
    height_m: float | None = None
    mass_kg: float | None = None

    def as_arguments(self) -> dict[str, Any]:
        """For `clips_of`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def size_of(layout: ReleaseLayout, subject: str) -> Size:
    """Of the record that a simulation writes beside the subject's model; nothing where there is none.

    Raises:
        FileFormatError: it is damaged.
    """
    path = layout.model(subject).with_suffix(".json")
    if not path.is_file():
        return Size()
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        named = dict(about["scale_factors"])
        factors = np.array([named.pop(name) for name in BODY_NAMES], np.float64)
        if named or factors.shape != (len(BODY_NAMES), 3):
            raise ValueError("other bodies")
        height, mass = (None if about[k] is None else float(about[k]) for k in ("height_m", "mass_kg"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        valid = "the record that 'simspine simulate' writes, with three factors for each body of its model"
        raise malformed(path, None, "the subject's size can't be read", valid) from None
    return Size(factors, height, mass)


def _with_plain_source(trial: SpineTrial, root: Path) -> SpineTrial:
    """The trial with a source that does not tell where the folder lies, so that bytes don't depend on it."""
    return dataclasses.replace(trial, source=trial.source.replace(f"{place(root)}/", ""))


# --- the official release ---


@dataclass(frozen=True)
class ReleaseSource(ClipSource):
    """A release as HDF5 file or folder; see `simspine_jax.io.release`.

    Attributes:
        path: of the file or the folder.
        angles: their unit, where the file does not say; see `release_angles`.
    """

    path: Path
    angles: Literal["deg", "rad"] | None = None

    @classmethod
    def at(cls, path: Path) -> ReleaseSource:
        """A release, of which the unit of the angles is found out.

        Raises:
            FileFormatError: it is none.
        """
        return cls(path, release_angles(path))

    def items(self) -> tuple[WorkItem, ...]:
        """A trial each; see `ClipSource`."""
        return tuple(WorkItem(t.subject, t.action) for t in find_release(self.path).trials)

    def clips(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[Clip]:
        """Clips without detections and curvature by bodies, which a release doesn't hold; see `ClipSource`.

        Vertebral rotations are the axes', curvature is the keypoints'.
        """
        release = find_release(self.path)
        cameras = read_release_cameras(self.path, item.subject)
        size = size_of(ReleaseLayout(self._root(release)), item.subject)
        for trial in self._trials(release, item):
            watcher.trial(trial.name)
            yield from clips_of(
                _with_plain_source(with_angles(trial), self._root(release)),
                unknown_cameras(()) if cameras is None else cameras,
                **size.as_arguments(),
            )

    def files(self) -> tuple[Path, ...]:
        """The HDF5 file or those of the folders, with the subjects' sizes; see `RecordSource`."""
        release = find_release(self.path)
        root, sizes = self._root(release), "models/*.json"
        if release.form == "hdf5":
            return tuple(sorted({release.path, *found_files(root, sizes)}))
        return found_files(
            root, *(f"{name}/**/*" for name in MARKER_FOLDERS), "kinematics/**/*", "cameras/*.toml", sizes
        )

    def _trials(self, release: Release, item: WorkItem) -> Iterator[SpineTrial]:
        """The one of the item: a name that stands for its repetitions too finds more."""
        trials = read_release(self.path, subjects=[item.subject], actions=[item.action], angles=self.angles)
        trials = with_remarks(release.path, trials) if release.form == "hdf5" else trials
        return (trial for trial in trials if trial.action == item.action)

    @staticmethod
    def _root(release: Release) -> Path:
        return release.path.parent if release.form == "hdf5" else release.path
