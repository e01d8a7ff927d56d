"""Human3.6M's frames with the keypoints of the official SIMSPINE release.

Neither is brought by this project: Human3.6M's owners give it to those who register, and the release holds
no pictures. Frames lie below one folder, in any of these layouts, as JPEG or PNG:

==================================================================  ====================================
path                                                                written by
==================================================================  ====================================
``S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000001.jpg``  MMPose's `preprocess_h36m.py`
``S1_Directions_1.54138969_000001.jpg``, in any folder              the same, flat
``S1/Directions_1.54138969/000001.jpg``                             extraction of a video into a folder
==================================================================  ====================================

The release's samples count frames from 0; MMPose counts them from 1, even where it keeps each fifth alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import Quality, SpineTrial
from simspine_jax.clips import Clip, clips_of, folded_back
from simspine_jax.datasets.picture_files import PictureFiles, Problem, Watcher, picture_sizes
from simspine_jax.errors import FileFormatError, SimspineError, listed
from simspine_jax.geometry.cameras import intrinsic_matrices
from simspine_jax.io.files import PathLike, malformed, place
from simspine_jax.io.release import Release, find_release, read_release, read_release_cameras
from simspine_jax.io.samples import ImageName, person_boxes
from simspine_jax.pictures import OUTSIDE, VISIBLE

_FLAT = re.compile(r"(?P<subject>S\d+)_(?P<stem>.+)\.(?P<camera>[^./_]+)_(?P<frame>\d{1,9})")
_FOLDER = re.compile(r"(?P<stem>.+)\.(?P<camera>[^./]+)")
_NUMBER = re.compile(r"(?:.*[^\d])?(\d{1,9})")
_SUBJECT = re.compile(r"S\d+")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_SCORED_BOX = "scored_box"  # a column that is no field of a record
_LAYOUTS = (
    "S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000001.jpg, S1_Directions_1.54138969_000001.jpg or "
    "S1/Directions_1.54138969/000001.jpg"
)


def frame_of(path: Path) -> ImageName | None:
    """What the path of a frame says, from the pictures' folder; None where it is none of the layouts."""
    flat = _FLAT.fullmatch(path.stem)
    if flat is not None:
        return ImageName(flat["subject"], _plain(flat["stem"]), flat["camera"], int(flat["frame"]))
    folders = path.parts[:-1]
    if len(folders) < 2 or not _SUBJECT.fullmatch(folders[-2]):
        return None
    subject, video = folders[-2], _FOLDER.fullmatch(folders[-1])
    number = _NUMBER.fullmatch(path.stem)
    if video is None or number is None:
        return None
    stem = _plain(video["stem"]).removeprefix(f"{subject}_")
    return ImageName(subject, stem, video["camera"], int(number[1]))


def _plain(stem: str) -> str:
    return stem.replace(" ", "_")


_Videos = dict[tuple[str, str], dict[str, dict[int, Path]]]
"""Paths by subject and stem, by camera, and by the number in the name."""


def open_h36m(
    frames: PathLike,
    release: PathLike,
    *,
    subjects: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
    every: int = 1,
    first: Literal[0, 1] | None = None,
    thorough: bool = False,
    watch: Watcher | None = None,
) -> PictureFiles:
    """Frames with projected keypoints, box and camera; pictures are read when they are asked for.

    Keypoints inside of the picture have the visibility 2, for whether they are occluded is not known. The
    box is that of the keypoints, `io.samples.BOX_SCALE` times as large and cut at the picture's edges, for
    crops; ``scored_boxes`` are as large as the keypoints, for the paper's normaliser is the shorter side of
    the person's box. The area is not known. Frames that the release marks as not usable are left out and told
    in ``notes``; files that can't be used, in ``problems``. A record takes 1 kB of memory.

    Args:
        frames: folder of the pictures.
        release: as for `io.release.find_release`.
        subjects: only these; None for all that both have.
        actions: only these; see `Release.select`.
        every: takes each so manyth frame of a video, the first one among them.
        first: the number of a video's first frame in names. None for 0 where a file of these subjects has
            it, else 1; ``notes`` tell which.
        thorough: whether to decode each picture once; else headers and ends of files are looked at.
        watch: told the progress over pictures.

    Raises:
        FileFormatError: it is no such folder or release, no frame belongs to it, or a subject has no cameras.
        UnknownNameError: there is no such subject or action.
        SimspineError: ``every`` is less than 1.
        MissingDependencyError: a package is not installed.
    """
    if every < 1:
        raise SimspineError(f"Each {every}th frame can't be taken; valid is 1 or more")
    found = find_release(release)
    trials = found.select(subjects, actions)
    videos, problems = _videos(Path(frames), {t.subject for t in trials})
    numbers = (number for cameras in videos.values() for files in cameras.values() for number in files)
    start = first if first is not None else int(0 not in numbers)
    work = _Work(found, start, every, problems)
    for subject, stem in sorted(set(videos) - {(t.subject, t.stem) for t in found.trials}):
        work.tell_unknown(subject, stem, videos[subject, stem])
    if any((t.subject, t.stem) in videos for t in trials):
        annotations = read_release(found.path, subjects=subjects, actions=actions)
        for trial, annotation in zip(trials, annotations, strict=True):
            if (trial.subject, trial.stem) in videos:
                work.add(trial.stem, annotation, videos[trial.subject, trial.stem])
    return work.finished(Path(frames), thorough, watch)


def _videos(root: Path, subjects: set[str]) -> tuple[_Videos, list[Problem]]:
    """The frames of these subjects below a folder, and files that are none."""
    if not root.is_dir():
        raise malformed(root, None, "this is not a folder", "the folder of Human3.6M's frames")
    found: _Videos = {}
    odd: list[Path] = []
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() not in _SUFFIXES:
                continue
            said = frame_of(path.relative_to(root))
            if said is None:
                odd.append(path)
            elif said.subject in subjects:
                cameras = found.setdefault((said.subject, said.stem), {})
                cameras.setdefault(said.camera, {})[said.frame] = path
    if not found:
        valid = f"a folder with {_LAYOUTS}"
        raise malformed(root, None, f"it holds no frame of {listed(sorted(subjects))}", valid)
    why = f"its name tells no subject, action, camera and frame; valid is {_LAYOUTS}"
    return found, [Problem(place(path), why) for path in odd]


@dataclass(eq=False)
class _Work:
    """Records on their way.

    Attributes:
        release: of the annotations.
        start: number of a video's first frame.
        every: as in `open_h36m`.
        problems: what can't be used.
        left_out: what is not, by reason.
        paths: of the frames so far.
        sizes: by the calibration, width and height of each.
        columns: fields and `_SCORED_BOX` by name, each a list of arrays to be joined.
    """

    release: Release
    start: int
    every: int
    problems: list[Problem]
    left_out: Counter[str] = field(default_factory=Counter)
    paths: list[Path] = field(default_factory=list)
    sizes: list[tuple[float, float]] = field(default_factory=list)
    columns: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))

    def tell_unknown(self, subject: str, stem: str, cameras: Mapping[str, Mapping[int, Path]]) -> None:
        """Notes a video that the release has no trial of."""
        own = [t.stem for t in self.release.trials if t.subject == subject]
        count = sum(map(len, cameras.values()))
        why = f"the release has no such trial for {count} frames; it has {listed(own)}"
        self.problems.append(Problem(f"{subject} {stem}", why))

    def add(self, stem: str, trial: SpineTrial, videos: Mapping[str, Mapping[int, Path]]) -> None:
        """Takes the frames of a trial's videos."""
        cameras = read_release_cameras(self.release.path, trial.subject)
        if cameras is None:
            raise FileFormatError(
                f"{place(self.release.path)}: it has no cameras of {trial.subject}; valid is a release with "
                "them"
            )
        for name, files in sorted(videos.items()):
            title = f"{trial.subject} {stem}.{name}"
            late = sum(not 0 <= number - self.start < trial.n_frames for number in files)
            if name not in cameras.names:
                why = f"the release has no such camera; it has {listed(cameras.names)}"
                self.problems.append(Problem(title, why))
            elif late:
                why = f"{late} frames are not among the release's {trial.n_frames}"
                self.problems.append(Problem(title, why))
        known = sorted(set(videos) & set(cameras.names))
        for clip in clips_of(trial, cameras.select(known)) if known else ():
            # Beyond the lens' field of view a pixel is none.
            beyond = folded_back(clip.cameras, clip.keypoints_3d)
            for view, name in enumerate(clip.camera_names):
                self._add_view(clip, view, beyond[:, view], videos[name])

    def _add_view(self, clip: Clip, view: int, beyond: NDArray[np.bool_], files: Mapping[int, Path]) -> None:
        """Takes the frames of one camera in a clip."""
        rows = np.arange(clip.n_frames)
        numbers = clip.first_frame + rows
        there = np.array([n + self.start in files for n in numbers.tolist()]) & (numbers % self.every == 0)
        usable = (clip.quality & ~np.int32(Quality.INTERPOLATED)) == 0
        seen = clip.keypoints_2d_mask[:, view].any(axis=-1)
        self.left_out["frames that the release marks as not usable"] += int((there & ~usable).sum())
        self.left_out["frames without a keypoint in the picture"] += int((there & usable & ~seen).sum())
        rows = rows[there & usable & seen]
        pixels = np.where(beyond[rows, :, None], np.nan, clip.keypoints_2d[rows, view])
        size = clip.camera_sizes[view]
        R, t = clip.camera_rotations[view], clip.camera_translations[view]
        constant = {
            "subject": clip.subject, "action": clip.action, "camera": clip.camera_names[view],
            "is_synthetic": clip.is_synthetic, "appearance_seed": np.int32(-1), "area": np.float32(np.nan),
            "camera_matrix": np.asarray(intrinsic_matrices(clip.cameras))[view], "camera_rotation": R,
            "camera_translation": t, "camera_distortion": clip.camera_distortion[view],
        }  # fmt: skip
        values = {
            "frame": (clip.first_frame + rows).astype(np.int32),
            "box": person_boxes(pixels.astype(np.float64), size).astype(np.float32),
            _SCORED_BOX: person_boxes(pixels.astype(np.float64), size, 1.0).astype(np.float32),
            "keypoints_2d": pixels.astype(np.float32),
            "visibility": np.where(clip.keypoints_2d_mask[rows, view], VISIBLE, OUTSIDE).astype(np.int32),
            "keypoints_3d": (clip.keypoints_3d[rows] @ R.T + t).astype(np.float32),
            **{name: np.repeat(np.asarray(v)[None], len(rows), axis=0) for name, v in constant.items()},
        }
        for name, array in values.items():
            self.columns[name].append(array)
        self.paths += [files[int(n) + self.start] for n in values["frame"]]
        self.sizes += [(float(size[0]), float(size[1]))] * len(rows)

    def finished(self, root: Path, thorough: bool, watch: Watcher | None) -> PictureFiles:
        """The records whose pictures can be used."""
        kept: list[int] = []
        measured: list[tuple[int, int]] = []
        looked = picture_sizes(self.paths, thorough=thorough, watch=watch)
        for i, (found, said) in enumerate(zip(looked, self.sizes, strict=True)):
            if isinstance(found, Problem):
                self.problems.append(found)
            elif np.isfinite(said).all() and said != found:
                valid = f"the calibration's {said[0]:g} by {said[1]:g}"
                why = f"it is {found[0]} by {found[1]} px; valid is {valid}"
                self.problems.append(Problem(place(self.paths[i]), why))
            else:
                kept.append(i)
                measured.append(found)
        if not kept:
            reasons = "; ".join([*map(str, self.problems[:2]), *self._notes()])
            raise FileFormatError(
                f"{place(root)}: no frame can be used with {place(self.release.path)} ({reasons}); valid are "
                "frames of its trials"
            )
        columns = {name: np.concatenate(parts)[kept] for name, parts in self.columns.items()}
        boxes = columns.pop(_SCORED_BOX)
        sizes = np.array(measured, np.int32)
        of_pictures = {**columns, "width": sizes[:, 0], "height": sizes[:, 1]}
        paths = [self.paths[i] for i in kept]
        number = np.arange(len(kept))
        return PictureFiles(paths, of_pictures, {}, number, self.problems, self._notes(), boxes)

    def _notes(self) -> list[str]:
        counts = [f"{count} {what}" for what, count in self.left_out.items() if count]
        told = [f"{place(self.release.path)}: left out are {', '.join(counts)}"] if counts else []
        return [*told, f"the first frame of a video is taken to have the number {self.start} in file names"]
