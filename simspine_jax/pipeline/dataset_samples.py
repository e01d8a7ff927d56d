"""Clips from the release's samples for MMPose, a row a picture: put together by trial, frame and view.

One file is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SYNTHETIC, Quality, SpineTrial
from simspine_jax.clips import Clip, clips_of
from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.files import malformed, place, shown
from simspine_jax.io.layout import HDF5_NAME, ReleaseLayout, action_of, natural_key
from simspine_jax.io.release import RELEASE_RATE_HZ, read_release_cameras
from simspine_jax.io.samples import ROWS, ImageName, Samples, camera_space_of, read_samples_npz
from simspine_jax.pipeline.dataset import (
    UNWATCHED,
    ClipSource,
    Watcher,
    WorkItem,
    found_files,
    size_of,
    with_angles,
)
from simspine_jax.pipeline.dataset_cameras import recovered_cameras
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, N_KEYPOINTS


@dataclass(frozen=True)
class SamplesSource(ClipSource):
    """The release's NPZ samples, and the calibrations beside them where there are any.

    Attributes:
        folder: with ``*.npz``; calibrations are ``cameras/Calib_<subject>.toml`` or those of ``simspine.h5``.
            Without them, cameras are what the rows tell; see `pipeline.dataset_cameras`.
    """

    folder: Path

    def files(self) -> tuple[Path, ...]:
        """Of the folder, those that are read; see `RecordSource`."""
        return found_files(self.folder, "*.npz", HDF5_NAME, "cameras/*.toml", "models/*.json")

    def items(self) -> tuple[WorkItem, ...]:
        """A trial each; see `ClipSource`."""
        found: dict[tuple[str, str], Path] = {}
        for path in sorted(self.folder.glob("*.npz")):
            for subject, stem in _trials_in(path):
                if (subject, stem) in found:
                    what = f"it holds {subject}, {stem}, which {found[subject, stem].name} holds too"
                    raise malformed(path, None, what, "each trial in one file, with all of its views")
                found[subject, stem] = path
        if not found:
            raise malformed(self.folder, None, "it holds no .npz", "a folder with the release's samples")
        trials = sorted(found, key=lambda names: tuple(map(natural_key, names)))
        return tuple(WorkItem(subject, action_of(stem), found[subject, stem]) for subject, stem in trials)

    def clips(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[Clip]:
        """Clips with the file's own pixels and visibility as ``keypoints_2d``; see `ClipSource`."""
        assert item.path is not None
        samples = _samples_of(item.path, item)
        cameras = self._cameras(item.subject)
        if cameras is None:
            cameras, told = _recovered(item.path, item.subject)
            source = f"{item.path.name} (without calibration; {told})"
        else:
            source = _checked_source(item.path, samples, item.subject, cameras)
        if samples.source.startswith(SYNTHETIC):
            source = f"{samples.source}; {source}"
        grid = _Grid.of(item.path, samples)
        views = cameras.select(grid.cameras)
        trial = with_angles(grid.trial(item, samples, source))
        watcher.trial(trial.name)
        pixels, seen = grid.pictures(samples)
        size = size_of(ReleaseLayout(self.folder), item.subject).as_arguments()
        for clip in clips_of(trial, views, numbers=grid.frames.astype(np.int32), **size):
            part = slice(clip.first_frame, clip.first_frame + clip.n_frames)
            yield dataclasses.replace(clip, keypoints_2d=pixels[part], keypoints_2d_mask=seen[part])

    def _cameras(self, subject: str) -> Cameras | None:
        layout = ReleaseLayout(self.folder)
        if layout.cameras(subject).is_file():
            return read_cameras(layout.cameras(subject))
        return read_release_cameras(layout.hdf5, subject) if layout.hdf5.is_file() else None


@lru_cache(maxsize=1)
def _read(path: Path) -> Samples:
    """The file that was read last stays in memory: its trials follow on one another."""
    return read_samples_npz(path)


def _names_in(path: Path) -> list[ImageName]:
    try:
        return [ImageName.of(name) for name in _read(path).image_names.tolist()]
    except SimspineError as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{place(path)}: {error}") from None


def _trials_in(path: Path) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((name.subject, name.stem) for name in _names_in(path)))


def _samples_of(path: Path, item: WorkItem) -> Samples:
    """The rows of one trial."""
    wanted = item.subject, item.action
    return _rows_of(path, np.array([(n.subject, action_of(n.stem)) == wanted for n in _names_in(path)]))


@lru_cache(maxsize=4)
def _recovered(path: Path, subject: str) -> tuple[Cameras, str]:
    """The cameras of a subject by all of its rows, and how they were found."""
    names = _names_in(path)
    samples = _rows_of(path, np.array([name.subject == subject for name in names]))
    return recovered_cameras(samples, sorted({n.camera for n in names if n.subject == subject}))


def _rows_of(path: Path, rows: NDArray[np.bool_]) -> Samples:
    every = _read(path)
    return dataclasses.replace(every, **{name: getattr(every, name)[rows] for name in ROWS})


def _checked_source(path: Path, samples: Samples, subject: str, cameras: Cameras) -> str:
    """The file's name, and what was wrong with its camera space, by cameras that must fit it.

    Raises:
        FileFormatError: they don't.
    """
    try:
        space = camera_space_of(samples, {subject: cameras})
    except SimspineError as error:
        raise FileFormatError(f"{place(path)}, {subject}: {error}") from None
    told = {"official": " (its camera space is R (X - t), corrected here to R X + t)", "projecting": ""}
    return path.name + told[space]


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where the N rows of a trial lie among its T frames and V views.

    Attributes:
        frames: [T] numbers of the frames, at even steps; not all of them have rows.
        cameras: V names.
        row_frames: [N] the place among the frames.
        row_views: [N] the place among the views.
    """

    frames: NDArray[np.int64]
    cameras: tuple[str, ...]
    row_frames: NDArray[np.int64]
    row_views: NDArray[np.int64]

    @classmethod
    def of(cls, path: Path, samples: Samples) -> _Grid:
        """The grid of one trial's rows.

        Raises:
            FileFormatError: a picture is there twice.
        """
        names = [ImageName.of(name) for name in samples.image_names.tolist()]
        numbers, cameras = np.array([n.frame for n in names]), sorted({n.camera for n in names})
        step = max(int(np.gcd.reduce(numbers - numbers.min())), 1)
        grid = cls(
            np.arange(numbers.min(), numbers.max() + 1, step),
            tuple(cameras),
            (numbers - numbers.min()) // step,
            np.array([cameras.index(n.camera) for n in names]),
        )
        pictures, counts = np.unique(samples.image_names, return_counts=True)
        if (counts > 1).any():
            twice = shown(str(pictures[np.argmax(counts)]), 200)
            raise malformed(path, None, f"the picture {twice} is there twice", "each picture once")
        return grid

    def trial(self, item: WorkItem, samples: Samples, source: str) -> SpineTrial:
        """Its annotations; frames without rows are NaN, and `Quality.NO_POSE`."""
        ids = [KEYPOINT_NAMES.index(name) for name in samples.keypoint_names]
        keypoints = np.full((len(self.frames), N_KEYPOINTS, 3), np.nan)
        keypoints[self.row_frames[:, None], ids] = samples.in_world @ R_yup_zup.T
        coordinates = np.full((len(self.frames), len(AXIS_NAMES)), np.nan)
        coordinates[self.row_frames] = samples.coordinates
        known = np.asarray(np.isfinite(keypoints).all(axis=-1))
        lost = ~known.any(axis=1) | np.isnan(coordinates).all(axis=1)
        return SpineTrial(
            item.subject,
            item.action,
            self.frames / RELEASE_RATE_HZ,
            RELEASE_RATE_HZ / (self.frames[1] - self.frames[0] if len(self.frames) > 1 else 1),
            np.where(known[..., None], keypoints, np.nan),
            coordinates,
            np.where(lost, Quality.NO_POSE, Quality.GOOD).astype(np.uint16),
            source=source,
        )

    def pictures(self, samples: Samples) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """[T V 37 2] px and [T V 37] visibility, as the file has them."""
        ids = [KEYPOINT_NAMES.index(name) for name in samples.keypoint_names]
        shape = len(self.frames), len(self.cameras), N_KEYPOINTS
        pixels, seen = np.full((*shape, 2), np.nan, np.float32), np.zeros(shape, bool)
        rows = self.row_frames[:, None], self.row_views[:, None], ids
        pixels[rows], seen[rows] = samples.pixels, samples.visible
        known = np.asarray(np.isfinite(pixels).all(axis=-1))
        return np.where(known[..., None], pixels, np.nan), seen & known
