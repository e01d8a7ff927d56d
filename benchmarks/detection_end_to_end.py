"""From rendered pictures of four cameras to vertebrae: `simspine detect`, `simspine simulate`, and errors.

``python -m benchmarks.detection_end_to_end CLIP`` renders a clip; `run` does so in a process of its own,
because OpenGL does not stand beside TensorFlow, then detects, simulates and compares with the truth.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.capture import Capture, capture_trial, make_subject
from simspine_jax.capture.rigs import make_rig
from simspine_jax.clips import cameras_in_ground
from simspine_jax.detection.codecs import Found
from simspine_jax.geometry.cameras import Cameras, camera_centers
from simspine_jax.geometry.pixels import in_picture
from simspine_jax.io.calibration import write_cameras_toml
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.io.trials import read_trial
from simspine_jax.io.video import find_cameras
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pictures import CROP_SIZE, encode_jpeg, import_cv2, map_points
from simspine_jax.pipeline.detect import KEYPOINTS, run_detection
from simspine_jax.pipeline.detectors import Crops
from simspine_jax.pipeline.simulate import mpjpe_mm
from simspine_jax.skeleton import REGIONS
from simspine_jax.tables import Table

SUBJECT, ACTION, SEED = "S9", "Greeting", 5
"""Of the test split, so that a detector trained on the training split has not seen it."""

SECONDS, RATE_HZ = 1.2, 25.0
PICTURE_PX, FOCAL_PX = 512, 700.0
"""A person is half as high as the picture and can walk about in it."""

BRIGHTNESS, BLUR_PX = 0.45, 0.6
"""Mean of the pictures, of 1, and deviation of the lens' blur: the middle of what `capture.rendering` has."""

REGIONS_SHOWN = ("cervical", "thoracic", "lumbar", "spine", "body", "all")
STAND_IN = "the truth with a detector's errors (no detector)"


@dataclass(frozen=True)
class Errors:
    """Against the truth of the clip.

    Attributes:
        detector: where detections are from.
        detected_px: (region, median distance of detections from the true keypoints in the pictures).
        triangulated_mm: (region, mean error) of the triangulated keypoints.
        simulated_mm: likewise of those of the solved model.
        rotations_deg: (level of the spine, RMS error of its rotation about the three axes).
        n_frames: with a pose.
    """

    detector: str
    detected_px: tuple[tuple[str, float], ...]
    triangulated_mm: tuple[tuple[str, float], ...]
    simulated_mm: tuple[tuple[str, float], ...]
    rotations_deg: tuple[tuple[str, float], ...]
    n_frames: int

    @property
    def spine_mpjpe_mm(self) -> float:
        """Of the solved model."""
        return dict(self.simulated_mm)["spine"]

    def table(self) -> Table:
        """All of it."""
        rows = tuple(
            (name, *(dict(values).get(region) for region in REGIONS_SHOWN))
            for name, values in (
                ("detected, median px", self.detected_px),
                ("triangulated, MPJPE mm", self.triangulated_mm),
                ("simulated, MPJPE mm", self.simulated_mm),
            )
        )
        levels = ", ".join(f"{level} {error:.1f}" for level, error in self.rotations_deg)
        return Table(
            "detection_end_to_end",
            "Errors of vertebrae from rendered pictures of four cameras, detected and simulated",
            ("", *(f"{r.capitalize()}({len(REGIONS[r])})" for r in REGIONS_SHOWN)),
            rows,
            (0, *(1 for _ in REGIONS_SHOWN)),
            f"synthetic: {SUBJECT}, {ACTION}, {self.n_frames} frames of {PICTURE_PX} px at {RATE_HZ:g} Hz, "
            f"seed {SEED}; rendered",
            (f"Detections: {self.detector}.", f"RMS error of rotations, degrees: {levels}."),
        )


def run(detector: Path | None, work: Path, *, clip: Path | None = None, boxes: Path | None = None) -> Errors:
    """Errors of a rendered clip that went through both commands.

    Args:
        detector: the folder of a training; None for the truth with errors of `capture.noise`.
        work: gets what is written.
        clip: that is rendered already; None to render it.
        boxes: of the person, as ``simspine detect --boxes`` takes them; None to have the person looked for.

    Raises:
        SimspineError: nothing can be rendered, or the detector can't be read.
        RuntimeError: a command failed.
    """
    from simspine_jax.cli import main

    if clip is None:
        clip = work / "clip"
        render_in_process(clip)
    detected, results = work / "detected", work / "results"
    if detector is None:
        cameras = find_cameras([clip / "pictures"]).cameras
        run_detection(cameras, StandIn(read_npz(clip / "truth.npz")), detected, rate_hz=RATE_HZ)
    else:
        words = ["detect", clip / "pictures", "--weights", detector, "--rate", RATE_HZ, "-o", detected]
        words += ["--boxes", boxes] if boxes else []
        _check(main([*map(str, words), "--video", "--quiet"]), "detect")
    words = [
        "simulate", "--keypoints", detected / KEYPOINTS, "--calibration", clip / "Calib.toml",
        "--rate", RATE_HZ, "--subject", SUBJECT, "--action", ACTION, "-o", results, "--quiet",
    ]  # fmt: skip
    _check(main([*map(str, words)]), "simulate")
    return compare(clip, results, STAND_IN if detector is None else str(detector))


def _check(status: int, command: str) -> None:
    if status:
        raise RuntimeError(f"simspine {command} ended with status {status}")


def compare(clip: Path, results: Path, detector: str) -> Errors:
    """Errors of a simulation of the clip."""
    truth = read_npz(clip / "truth.npz")
    trial = read_trial(ReleaseLayout(results).trial(SUBJECT, ACTION))
    assert trial.triangulated is not None
    assert trial.detections is not None
    assert trial.vertebral_rotations is not None
    order = [list(truth["camera_names"]).index(name) for name in trial.camera_names]
    off = np.linalg.norm(trial.detections - truth["keypoints_2d"][:, order], axis=-1)
    turned = np.degrees(trial.vertebral_rotations - truth["vertebral_rotations"])
    levels = np.sqrt(np.nanmean(turned**2, axis=(0, 2))).tolist()
    return Errors(
        detector,
        tuple((r, float(np.nanmedian(off[..., list(REGIONS[r])]))) for r in REGIONS_SHOWN),
        mpjpe_mm(trial.triangulated, truth["keypoints"]),
        mpjpe_mm(trial.keypoints, truth["keypoints"]),
        tuple(zip(VERTEBRAL_LEVELS, levels, strict=True)),
        int(np.isfinite(trial.keypoints).all(axis=(1, 2)).sum()),
    )


class StandIn:
    """What `capture.noise` makes of the truth, where there is no trained detector: a `Finder`."""

    def __init__(self, truth: dict[str, NDArray[np.float64]]):
        self.size, self.udp, self.digest = CROP_SIZE, False, STAND_IN
        self._views = {str(name): view for view, name in enumerate(truth["camera_names"])}
        self._keypoints, self._confidence = truth["detections"], truth["detection_confidence"]

    def find(self, crops: Crops) -> Found:
        """The detections that lie in each crop."""
        points, scores = [], []
        for matrix, view, frame in zip(crops.matrices, crops.views, crops.frames, strict=True):
            found = map_points(matrix, self._keypoints[frame, self._views[view]])
            there = in_picture(found, self.size[::-1])
            points.append(np.where(there[:, None], found, np.nan))
            scores.append(np.where(there, self._confidence[frame, self._views[view]], 0.0))
        return Found(np.stack(points), np.stack(scores))  # type: ignore[arg-type]


# --- the clip ---


def render_in_process(folder: Path) -> None:
    """Renders the clip in a process of its own.

    Raises:
        RuntimeError: it failed; what it said is in the message.
    """
    command = [sys.executable, "-m", "benchmarks.detection_end_to_end", str(folder)]
    root, single = (
        Path(__file__).parents[1],
        {**os.environ, "JAX_ENABLE_X64": "0"},
    )  # one clip for all callers
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=single)
    if done.returncode:
        raise RuntimeError(f"rendering failed: {done.stderr.strip().splitlines()[-1:]}")


def clip_cameras() -> Cameras:
    """Four cameras that the renderer can be: square pixels, no distortion."""
    rig = make_rig(SEED)
    n = len(rig.names)
    return replace(
        rig,
        focal_lengths=np.full((n, 2), FOCAL_PX),
        principal_points=np.full((n, 2), (PICTURE_PX - 1) / 2),
        distortion=np.zeros((n, 8)),
        sizes=np.full((n, 2), float(PICTURE_PX)),
    )


def render_clip(model: SpineModel, folder: Path) -> None:
    """Writes the pictures of all cameras, their calibration and the truth.

    Raises:
        SimspineError: nothing can be rendered on this machine.
    """
    subject = make_subject(model, SUBJECT, SEED)
    capture = capture_trial(model, subject, ACTION, SECONDS, RATE_HZ, SEED, cameras=clip_cameras())
    write_cameras_toml(folder / "Calib.toml", capture.cameras)
    for name, frame, pixels in _shots(model, capture):
        path = folder / "pictures" / name / f"{frame:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(pixels, 95))
    arrays = {
        "camera_names": capture.cameras.names, "keypoints": capture.keypoints,
        "keypoints_2d": capture.keypoints_2d, "vertebral_rotations": capture.vertebral_rotations,
        "detections": capture.detections.keypoints, "detection_confidence": capture.detections.confidence,
    }  # fmt: skip
    write_npz(folder / "truth.npz", {name: np.asarray(values) for name, values in arrays.items()})


def _shots(model: SpineModel, capture: Capture):
    """Cameras' names, frames and pictures."""
    from simspine_jax.capture.appearance import draw_outfit, draw_patterns, draw_room
    from simspine_jax.capture.figure import make_figure
    from simspine_jax.capture.stage import Stage
    from simspine_jax.kinematics.forward import forward_kinematics

    cameras, random = cameras_in_ground(capture.cameras), np.random.default_rng(SEED)
    rotations, translations = np.asarray(cameras.rotations), np.asarray(cameras.translations)
    centers = np.asarray(camera_centers(cameras))
    poses = forward_kinematics(model, capture.q, scale_factors=capture.subject.scale_factors)
    points = np.asarray(capture.keypoints, float)
    room = draw_room(random, np.concatenate([points.reshape(-1, 3), centers]), centers[0], None, False)
    matrix = np.array([[FOCAL_PX, 0, (PICTURE_PX - 1) / 2], [0, FOCAL_PX, (PICTURE_PX - 1) / 2], [0, 0, 1]])
    with Stage(make_figure(model, capture.subject, SEED), draw_patterns(random)) as stage:
        stage.dress(draw_outfit(random))
        stage.furnish(replace(room, furniture=()))
        bodies = np.asarray(poses.body_positions, float), np.asarray(poses.body_rotations, float)
        for frame, (place, turn) in enumerate(zip(*bodies, strict=True)):
            stage.pose(place, turn)
            for name, rotation, translation in zip(cameras.names, rotations, translations, strict=True):
                shot = stage.shoot(matrix, rotation, translation, (PICTURE_PX, PICTURE_PX))
                yield name, frame, _developed(shot.pixels)


def _developed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture as a camera's exposure and lens would have it; see `capture.rendering`."""
    cv2 = import_cv2()
    gain = np.clip(255 * BRIGHTNESS / pixels.mean(), 0.6, 2.4)
    lit = np.clip(gain * pixels, 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(lit, (0, 0), BLUR_PX)


def main(words: Sequence[str] | None = None) -> int:
    """Renders the clip into the folder that is named."""
    from simspine_jax.kinematics.model import load_model
    from simspine_jax.pipeline.spine import converted_spine

    (folder,) = sys.argv[1:] if words is None else words
    render_clip(load_model(converted_spine()), Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
