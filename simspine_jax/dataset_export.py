"""The dataset's clips in files of other kinds: the official HDF5, MMPose-style samples, COCO keypoints.

Each file appears whole or not at all. What a format has no room for is left out: HDF5 and samples hold
neither detections nor truth, COCO has pictures' keypoints alone. HDF5 holds all frames with their quality;
the others have no room for it and leave out what is not usable. `picture_export` does the like for pictures.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from simspine_jax import __version__
from simspine_jax.annotations import SYNTHETIC, Quality, SpineTrial
from simspine_jax.clip_trials import ClipSet, ClipTrial, iterate_trials, trial_of, world_cameras
from simspine_jax.clips import Clip, folded_back
from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.io.files import PathLike, atomic_write, place
from simspine_jax.io.release import write_release_h5
from simspine_jax.io.samples import (
    BOX_SCALE,
    BOX_UNIT_PX,
    ROWS,
    ImageName,
    Samples,
    joined,
    keypoint_boxes,
    person_boxes,
    write_samples_npz,
)
from simspine_jax.pipeline.records import add_remarks, remark_on
from simspine_jax.skeleton import KEYPOINT_NAMES, LINKS, REDUCED_NAMES, SIGMAS

Step = Callable[[], None]
"""Called after each trial."""

PIXEL_DECIMALS = 3
"""Of a coordinate in COCO's JSON: a thousandth of a pixel, a hundredth of what detectors resolve."""

AREA_OF_BOX = 0.53
"""Area of a person by that of the box, where there is no segmentation: xtcocotools' (`cocoeval.py`)."""

SIGMAS_SOURCE = "SpineTrack (github.com/dfki-av/spinepose, metainfo.py)"
"""Where the constants of OKS come from."""

OCCLUSION = (
    "Keypoints inside the picture have v = 2 and others v = 0; whether they are occluded is not known."
)

PERSON = 1
"""The number of the one category."""

_INSIDE = 2
_SYNTHETIC_LICENSE = "Synthetic: computed, nobody was recorded; free to use"
_AREA = f"{AREA_OF_BOX} of the box"
_SOURCE_LICENSE = "That of the recordings that the annotations were made from"


# --- HDF5 ---


def export_hdf5(path: PathLike, clips: ClipSet, note: Callable[[str], None], step: Step | None = None) -> int:
    """Write the official HDF5 release, `io.release`, which `read_release` reads.

    Keypoints, times, quality and cameras come back to the last bit, angles within two units in the last place
    of float64. A subject's cameras are left out, and ``note`` told, where the format can't hold them: it has
    one calibration a subject and OpenCV's distortion. Trials say in an attribute if they are synthetic.

    Returns:
        the number of trials.

    Raises:
        ShapeError: trials of one name, or clips of a trial that don't fit together.
        MissingDependencyError: h5py is not installed.
        SimspineError: the file can't be written.
    """
    remarks: dict[tuple[str, str], str] = {}

    def trials() -> Iterator[SpineTrial]:
        for clip in iterate_trials(clips, step):
            trial = trial_of(clip)
            remarks[trial.subject, trial.action] = remark_on(trial)
            yield trial

    cameras = _release_cameras(clips.trials, note)
    with atomic_write(path, binary=True) as file:  # with its remarks or not at all
        count = write_release_h5(file.name, trials(), cameras=cameras)
        add_remarks(Path(file.name), remarks)
    return count


def _release_cameras(trials: Sequence[ClipTrial], note: Callable[[str], None]) -> dict[str, Cameras]:
    """The calibration of each subject that the release can hold."""
    found: dict[str, Cameras] = {}
    for subject in dict.fromkeys(trial.subject for trial in trials):
        rigs = [trial.cameras for trial in trials if trial.subject == subject and trial.cameras.names]
        if not rigs:
            continue
        if any(not _equal_cameras(rig, rigs[0]) for rig in rigs):
            note(f"the cameras of {subject} are not written: they differ between trials")
        elif rigs[0].distortion_model != "opencv":
            note(f"the cameras of {subject} are not written: their distortion is not OpenCV's")
        elif not np.isfinite(rigs[0].rotations).all():
            note(f"the cameras of {subject} are not written: where they stand is not known")
        else:
            found[subject] = rigs[0]
    return found


def _equal_cameras(one: Cameras, other: Cameras) -> bool:
    arrays = (
        "rotations",
        "translations",
        "focal_lengths",
        "principal_points",
        "skews",
        "distortion",
        "sizes",
    )
    return (one.names, one.distortion_model) == (other.names, other.distortion_model) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays
    )


# --- samples ---


def export_npz(
    path: PathLike,
    clips: ClipSet,
    note: Callable[[str], None],
    keypoint_names: Sequence[str] = REDUCED_NAMES,
    step: Step | None = None,
) -> int:
    """Write the samples of usable frames in all views, `io.samples`; all is in memory, 2 to 4 kB a row.

    Args:
        path: of the NPZ.
        clips: rows come trial after trial, in each camera after camera, in each frame after frame.
        note: told how many frames are left out, if any.
        keypoint_names: the 15 or 37 of the release in its order.
        step: called after each trial.

    Returns:
        the number of rows.

    Raises:
        ShapeError: the keypoints are others, or no trial has a camera.
        SimspineError: no frame is usable, or the file can't be written.
    """
    rows: list[Samples] = []
    frames = left_out = 0
    for clip in iterate_trials(_with_views(clips), step):
        usable = usable_frames(clip)
        frames, left_out = frames + clip.n_frames, left_out + int((~usable).sum())
        rows.append(_kept(samples_of_clip(clip, keypoint_names), np.tile(usable, len(clip.camera_names))))
    if left_out == frames:
        raise SimspineError(f"None of {frames} frames is usable; valid for samples are trials with some")
    samples = joined(rows)
    write_samples_npz(path, samples)
    if left_out:
        note(f"{left_out} of {frames} frames are not usable and left out: samples have no room for quality")
    return len(samples.image_names)


def usable_frames(clip: Clip) -> NDArray[np.bool_]:
    """[T]: frames of which nothing but a repair is noted."""
    return (clip.quality & ~np.int32(Quality.INTERPOLATED)) == 0


def _kept(samples: Samples, rows: NDArray[np.bool_]) -> Samples:
    arrays: dict[str, Any] = {name: getattr(samples, name)[rows] for name in ROWS}
    return dataclasses.replace(samples, **arrays)


def samples_of_clip(clip: Clip, keypoint_names: Sequence[str] = REDUCED_NAMES) -> Samples:
    """Samples of all frames of a clip with the clip's own pixels; camera space projects.

    As `io.samples.samples_of`, but boxes leave out what `clips.folded_back` tells, and visibility is the
    clip's.

    Raises:
        UnknownNameError: there is no such keypoint.
    """
    for name in keypoint_names:
        if name not in KEYPOINT_NAMES:
            raise UnknownNameError("Keypoint", name, "the vocabulary", KEYPOINT_NAMES)
    ids = [KEYPOINT_NAMES.index(name) for name in keypoint_names]
    cameras, trial = world_cameras(clip), trial_of(clip)
    world = trial.keypoints[:, ids] @ R_yup_zup
    count = len(cameras.names)
    rows = (count * clip.n_frames, len(ids))
    pixels = np.moveaxis(clip.keypoints_2d[:, :, ids], 1, 0).astype(np.float64).reshape(*rows, 2)
    folded = np.moveaxis(folded_back(clip.cameras, clip.keypoints_3d)[:, :, ids], 1, 0).reshape(rows)
    low, high = keypoint_boxes(np.where(folded[..., None], np.nan, pixels))
    rotations = np.asarray(cameras.rotations)[:, None, None]
    local = (rotations @ world[..., None])[..., 0] + np.asarray(cameras.translations)[:, None, None]
    return Samples(
        np.array(image_names(clip), str),
        tuple(keypoint_names),
        (low + high) / 2,
        BOX_SCALE * (high - low).max(axis=-1) / BOX_UNIT_PX,
        pixels,
        np.moveaxis(clip.keypoints_2d_mask[:, :, ids], 1, 0).reshape(rows),
        local.reshape(*rows, 3),
        np.tile(world, (count, 1, 1)),
        np.tile(trial.coordinates, (count, 1)),
        f"{SYNTHETIC[0]}samples of a dataset" if clip.is_synthetic else "",
    )


def image_names(clip: Clip) -> list[str]:
    """Names that the release gives to pictures, camera after camera, with the source's frame numbers."""
    stem = clip.action.replace(" ", "_")
    frames = clip.frames.tolist()
    return [ImageName(clip.subject, stem, name, f).path for name in clip.camera_names for f in frames]


def _with_views(clips: ClipSet) -> ClipSet:
    """Trials with cameras, for files about pictures."""
    trials = tuple(trial for trial in clips.trials if trial.cameras.names)
    if not trials:
        raise ShapeError("No trial has cameras; valid for files about pictures is a dataset with views")
    return ClipSet(clips.clips, trials)


# --- COCO ---


@dataclass(frozen=True)
class CocoCounts:
    """What a COCO file holds: pictures, annotated people, and people found by the detector."""

    images: int = 0
    annotations: int = 0
    detections: int = 0


def export_coco(
    path: PathLike, clips: ClipSet, detections: PathLike | None = None, step: Step | None = None
) -> CocoCounts:
    """Write COCO keypoints of every frame and view, and the detector's as COCO results.

    A picture has the release's name; beside COCO's fields it tells subject, action, camera, frame, time and
    `Quality`. Pictures of frames that are not usable, or with no keypoint inside, have no annotation. The
    box is that of the keypoints, `BOX_SCALE` times as large and cut at the picture's edges; `AREA_OF_BOX`
    gives the area. Pixels are rounded to `PIXEL_DECIMALS`. A keypoint that the detector missed is three
    zeros, as COCO has it; a result's score is the mean confidence of the others.

    Args:
        path: of the JSON file.
        clips: pictures come trial after trial, in each camera after camera; they are numbered from 1.
        detections: of the results; None for none.
        step: called after each trial.

    Raises:
        ShapeError: no trial has a camera, or detections are asked for and have no confidence.
        SimspineError: a file can't be written, or there are no detections.
    """
    clips = _with_views(clips)
    counts = CocoCounts()
    with ExitStack() as stack:
        out = stack.enter_context(atomic_write(path))
        found = None if detections is None else stack.enter_context(atomic_write(detections))
        later = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        kinds = {trial.is_synthetic for trial in clips.trials}
        out.write(
            coco_head("Keypoints of body and spine in the manner of SIMSPINE. " + OCCLUSION, kinds, _AREA)
        )
        if found is not None:
            found.write("[")
        for clip in iterate_trials(clips, step):
            counts = _write_coco_clip(clip, counts, out, later, found)
        out.write('\n],\n"annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, out)
        out.write("\n]}\n")
        if found is not None:
            found.write("\n]\n")
        if detections is not None and not counts.detections:
            raise SimspineError(f"{place(detections)}: the dataset has no detections; valid is one with some")
    return counts


def coco_category() -> dict[str, Any]:
    """The category of people with the 37 keypoints; COCO counts the ends of links from 1."""
    return {
        "id": PERSON,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(KEYPOINT_NAMES),
        "skeleton": [[a + 1, b + 1] for a, b in LINKS],
        "sigmas": SIGMAS.tolist(),
        "sigmas_source": SIGMAS_SOURCE,
    }


def coco_head(description: str, are_synthetic: Set[bool], area: str) -> str:
    """The text of a COCO file before its list of pictures.

    Args:
        description: of the file, in words.
        are_synthetic: what its pictures are.
        area: how the area of people is found, in words.
    """
    kinds = sorted(are_synthetic, reverse=True)
    text = {True: _SYNTHETIC_LICENSE, False: _SOURCE_LICENSE}
    about = {
        "description": description,
        "version": __version__,
        "synthetic": "all" if kinds == [True] else "some" if True in kinds else "none",
        "sigmas_source": SIGMAS_SOURCE,
        "area": area,
    }
    licenses = [{"id": license_id(kind), "name": text[kind], "url": ""} for kind in kinds]
    parts = {"info": about, "licenses": licenses, "categories": [coco_category()]}
    inside = "".join(f"{json.dumps(name)}: {json.dumps(part)},\n" for name, part in parts.items())
    return "{" + inside + '"images": ['


def license_id(is_synthetic: bool) -> int:
    """The number of a picture's licence in `coco_head`."""
    return 1 if is_synthetic else 2


def _write_coco_clip(
    clip: Clip, counts: CocoCounts, images: IO[str], annotations: IO[str], results: IO[str] | None
) -> CocoCounts:
    """A trial's pictures and people, numbered on."""
    rows = clip.n_frames * len(clip.camera_names)
    pixels = np.moveaxis(clip.keypoints_2d, 1, 0).astype(np.float64).reshape(rows, -1, 2)
    inside = np.moveaxis(clip.keypoints_2d_mask, 1, 0).reshape(rows, -1)
    sizes = np.repeat(clip.camera_sizes, clip.n_frames, axis=0)
    folded = np.moveaxis(folded_back(clip.cameras, clip.keypoints_3d), 1, 0).reshape(rows, -1)
    boxes = person_boxes(np.where(folded[..., None], np.nan, pixels), sizes)
    annotated = np.tile(usable_frames(clip), len(clip.camera_names)) & inside.any(axis=1)
    for row, document in enumerate(_coco_images(clip, counts.images + 1)):
        write_item(images, document, first=counts.images + row == 0)
    number = counts.annotations
    for row in np.flatnonzero(annotated):
        person = _coco_person(pixels[row], inside[row], boxes[row])
        keys = {"id": number + 1, "image_id": counts.images + int(row) + 1, "category_id": PERSON}
        write_item(annotations, keys | person, first=number == 0)
        number += 1
    n_found = counts.detections
    if results is not None:
        for result in _coco_results(clip, counts.images + 1):
            write_item(results, result, first=n_found == 0)
            n_found += 1
    return CocoCounts(counts.images + rows, number, n_found)


def _coco_images(clip: Clip, first: int) -> Iterator[dict[str, Any]]:
    for row, name in enumerate(image_names(clip)):
        view, frame = divmod(row, clip.n_frames)
        size = clip.camera_sizes[view]
        known = (
            {"width": plain_number(size[0]), "height": plain_number(size[1])}
            if np.isfinite(size).all()
            else {}
        )
        yield {
            "id": first + row,
            "file_name": name,
            **known,
            "license": license_id(bool(clip.is_synthetic)),
            "subject": clip.subject,
            "action": clip.action,
            "camera": clip.camera_names[view],
            "frame": int(clip.frames[frame]),
            "time_s": round(float(clip.times[frame]), 6),
            "quality": int(clip.quality[frame]),
        }


def _coco_person(
    pixels: NDArray[np.float64], inside: NDArray[np.bool_], box: NDArray[np.float64]
) -> dict[str, Any]:
    table = np.column_stack([np.where(inside[:, None], pixels, 0.0), np.where(inside, _INSIDE, 0)])
    return {
        "keypoints": [plain_number(value) for value in table.ravel().round(PIXEL_DECIMALS).tolist()],
        "num_keypoints": int(inside.sum()),
        "bbox": box.round(PIXEL_DECIMALS).tolist(),
        "area": round(float(AREA_OF_BOX * box[2] * box[3]), PIXEL_DECIMALS),
        "iscrowd": 0,
    }


def _coco_results(clip: Clip, first: int) -> Iterator[dict[str, Any]]:
    """The detector's people, picture by picture; ``first`` is the id of the clip's first picture."""
    known = np.moveaxis(clip.detections_2d_mask, 1, 0).reshape(-1, len(KEYPOINT_NAMES))
    pixels = np.moveaxis(clip.detections_2d, 1, 0).reshape(*known.shape, 2)
    confidence = np.moveaxis(clip.detections_confidence, 1, 0).reshape(known.shape)
    if np.isnan(confidence[known]).any():
        raise ShapeError(
            f"Detections of {clip.subject}, {clip.action} have no confidence; COCO results need one of each"
        )
    table = np.concatenate([pixels, confidence[..., None]], axis=-1).astype(np.float64)
    table = np.where(known[..., None], table, 0.0).round(PIXEL_DECIMALS)
    for row in np.flatnonzero(known.any(axis=1)):
        score = float(confidence[row][known[row]].mean(dtype=np.float64))
        yield {
            "image_id": first + int(row),
            "category_id": PERSON,
            "keypoints": [plain_number(value) for value in table[row].ravel().tolist()],
            "score": round(score, 6),
        }


def plain_number(value: float) -> int | float:
    """Whole numbers without a point, which a hundred thousand pictures notice."""
    return int(value) if float(value).is_integer() else float(value)


def write_item(file: IO[str], document: dict[str, Any], *, first: bool) -> None:
    """Write one more item of a list in JSON."""
    file.write(("\n" if first else ",\n") + json.dumps(document, separators=(",", ":"), allow_nan=False))
