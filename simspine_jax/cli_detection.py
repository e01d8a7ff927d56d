"""The command ``simspine detect``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simspine_jax import interrupts
from simspine_jax.cli_parsing import add_output
from simspine_jax.errors import SimspineError

if TYPE_CHECKING:
    from simspine_jax.io.video import Camera
    from simspine_jax.pipeline.detect import BoxPlan, Detected, Progress

Note = Callable[[str], None]

DETECTED_BOXES = ("track", "whole")
OVERLAY = "overlay"


def add_detect_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine detect`` takes."""
    parser.add_argument("input", type=Path, nargs="+", metavar="IN", help=(
        "a picture or several, a folder of pictures, a video, or a folder of cameras: of videos, or of "
        "folders with pictures or one video each"))  # fmt: skip
    parser.add_argument("--weights", type=Path, required=True, metavar="W", help=(
        "the folder of a training, or published weights (.pth, .safetensors, .onnx) and "
        "--detector"))  # fmt: skip
    parser.add_argument("--detector", metavar="NAME", help="of published weights, such as spinepose_m")
    parser.add_argument("--order", choices=("RGB", "BGR"), help="colours of published weights (RGB)")
    parser.add_argument("--no-flip", action="store_true", help=(
        "don't also test mirror images: half the work, less exact"))  # fmt: skip
    where = parser.add_argument_group("where people are")
    where.add_argument("--boxes", default="track", metavar="B", help=(
        "'track' follows one person in each camera, 'whole' takes all of each picture, or boxes: COCO's "
        "JSON, a table (frame,x,y,w,h[,score]), MOT's, or a folder of YOLO's or of a file a camera "
        "(track)"))  # fmt: skip
    where.add_argument("--box-score", type=float, metavar="S", help="boxes below it are passed over (0.3)")
    where.add_argument("--batch", type=int, metavar="N", help=(
        "crops at once, unless people are followed: then it is one of each camera (16)"))  # fmt: skip
    output = parser.add_argument_group("output")
    add_output(output, required=True, metavar="DIR", help="gets keypoints/CAMERA_json/, OpenPose's files")
    output.add_argument("--rate", type=float, metavar="HZ", help="frames per second, if files don't say it")
    output.add_argument("--video", action="store_true", help="also overlay/CAMERA.mp4")
    output.add_argument("--pictures", action="store_true", help="also overlay/CAMERA/, a picture a frame")
    output.add_argument("--coco", action="store_true", help="also coco/CAMERA.json, COCO's results")
    output.add_argument("--force", "--overwrite", action="store_true", help="redo frames that are done")
    output.add_argument("--quiet", action="store_true", help="print failures only")


def detect(arguments: argparse.Namespace, note: Note) -> int:
    """Detects; returns the number of cameras that can't be read, each told on stderr."""
    _check(arguments)
    # What FFmpeg finds wrong is told by the reader in one sentence.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from simspine_jax.io.video import common_rate, find_cameras
    from simspine_jax.pipeline.detect import camera_folder, note_made, run_detection, write_coco
    from simspine_jax.pipeline.detectors import open_detector

    found = find_cameras(arguments.input)
    for text in found.notes:
        note(text)
    for reason in found.failed:
        print(f"simspine: error: {reason}", file=sys.stderr)
    rate = common_rate(found.cameras, arguments.rate)
    if arguments.video:
        _check_video(rate, note)
    plan = _plan(arguments, found.cameras, note)
    finder = open_detector(
        arguments.weights, arguments.detector, arguments.order, flip=not arguments.no_flip, note=note
    )
    with _bar(arguments.quiet) as (progress, say):
        done = run_detection(
            found.cameras, finder, arguments.out, plan,
            rate_hz=rate, force=arguments.force, progress=progress, note=say,
        )  # fmt: skip
    note_made(arguments.out, _to_make(arguments, [camera.name for camera in found.cameras]))
    written = [camera_folder(arguments.out, camera.name).parent for camera in found.cameras[:1]]
    if arguments.coco:
        written += write_coco(arguments.out, [camera.name for camera in found.cameras])
    written += _overlays(arguments, found.cameras, rate, note)
    if not arguments.quiet:
        print(format_detected(done, arguments.input, written))
    return len(found.failed) + len(done.faults)


def _check(arguments: argparse.Namespace) -> None:
    """Refuses what would have no effect, before any work."""
    for name, value in (("rate", arguments.rate), ("batch", arguments.batch)):
        if value is not None and not 0 < value < float("inf"):
            raise SimspineError(f"--{name} is {value}; valid is a positive number")
    if arguments.box_score is not None and arguments.boxes in DETECTED_BOXES:
        raise SimspineError(f"--box-score has no effect with --boxes {arguments.boxes}; it goes with a file")
    if arguments.batch is not None and arguments.boxes == "track":
        raise SimspineError("--batch has no effect where people are followed; it goes with other --boxes")
    if arguments.boxes not in DETECTED_BOXES and not Path(arguments.boxes).exists():
        raise SimspineError(
            f"There are no boxes {arguments.boxes}; valid are 'track', 'whole', and a file or folder of boxes"
        )


def _plan(arguments: argparse.Namespace, cameras: Sequence[Camera], note: Note) -> BoxPlan:
    from simspine_jax.io.boxes import read_boxes
    from simspine_jax.pipeline.detect import BATCH, LEAST_SCORE, BoxPlan

    batch = BATCH if arguments.batch is None else arguments.batch
    if arguments.boxes in DETECTED_BOXES:
        return BoxPlan(arguments.boxes, batch=batch)
    score = LEAST_SCORE if arguments.box_score is None else arguments.box_score
    boxes = read_boxes(Path(arguments.boxes), cameras, note=note)
    scores = [row[4] for camera in boxes.values() for rows in camera.rows.values() for row in rows]
    if scores and max(scores) < score:
        raise SimspineError(
            f"{arguments.boxes}: all of its {len(scores)} boxes have scores below {score:g}, the highest "
            f"{max(scores):g}; valid is a --box-score up to that"
        )
    return BoxPlan(boxes, score, batch)


def _check_video(rate: float | None, note: Note) -> None:
    """Refuses a rate that no video has, and tells which one it gets where nobody said any."""
    from simspine_jax.viz.overlay import video_rate

    plays = video_rate(rate)
    if rate is None:
        note(f"videos in {OVERLAY} play at {plays:g} frames per second, as no file says the rate, nor --rate")


def _to_make(arguments: argparse.Namespace, names: Sequence[str]) -> list[Path]:
    """What is written beside OpenPose's files, from the output on."""
    from simspine_jax.pipeline.detect import COCO

    kinds = (
        (arguments.coco, COCO, ".json"), (arguments.video, OVERLAY, ".mp4"), (arguments.pictures, OVERLAY, "")
    )  # fmt: skip
    return [Path(folder, f"{name}{end}") for wanted, folder, end in kinds if wanted for name in names]


@contextmanager
def _bar(quiet: bool) -> Iterator[tuple[Progress, Note]]:
    """Progress in frames on a terminal's stderr, and notes beside it; an interrupt tells how far it came."""
    from tqdm import tqdm

    with tqdm(unit="frame", disable=quiet or not sys.stderr.isatty()) as bar:
        count = 0

        def progress(done: int, total: int | None) -> None:
            nonlocal count
            interrupts.check()
            count, bar.total = done, total
            bar.update(done - bar.n)

        def say(text: str) -> None:
            tqdm.write(f"simspine: note: {text}", file=sys.stderr)

        try:
            yield progress, say
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{count} more frames are done, and the same command without --force continues"
            ) from None


def _overlays(
    arguments: argparse.Namespace, cameras: Sequence[Camera], rate: float | None, note: Note
) -> list[Path]:
    """Draws what was found, where it is asked for; cameras that can't be drawn are told."""
    from simspine_jax.pipeline.detect import people_in
    from simspine_jax.viz.overlay import write_overlay_pictures, write_overlay_video

    threads, folder = len(os.sched_getaffinity(0)), arguments.out / OVERLAY
    written = []
    for camera in cameras:
        people = partial(people_in, arguments.out, camera.name)
        if arguments.video:
            path = folder / f"{camera.name}.mp4"
            if write_overlay_video(path, camera, people, rate, threads):
                written.append(path)
            else:
                note(f"{path} is not written: no frame of {camera.name} can be read")
        if arguments.pictures:
            path = folder / camera.name
            if write_overlay_pictures(path, camera, people, threads):
                written.append(path)
            else:
                note(f"{path} is left empty: no frame of {camera.name} can be read")
    return written


def format_detected(done: Detected, source: Sequence[Path], written: Sequence[Path]) -> str:
    """What was found, as a few lines of text, and the command that goes on with it."""
    state = f", {done.resumed} of them complete already" if done.resumed else ""
    total = sum(camera.n_frames for camera in done.cameras)
    lines = [f"{', '.join(map(str, written))}: {_frames(total)}{state}"]
    for camera in done.cameras:
        sizes = ", ".join(f"{width}x{height}" for width, height in camera.sizes) or "unknown"
        sure = "-" if camera.confidence is None else f"{camera.confidence:.2f}"
        lines.append(
            f"  {camera.name}: {_frames(camera.n_frames)} of {sizes} px, {camera.empty} without people, mean "
            f"confidence {sure}"
        )
        if len(camera.sizes) > 1:
            lines.append(f"  {camera.name} has pictures of several sizes; a calibration holds for one")
    if len(done.cameras) > 1:
        rate = "HZ" if done.rate_hz is None else f"{done.rate_hz:.9g}"
        lines.append(
            f"go on with: simspine simulate --keypoints {done.folder} --calibration FILE --rate {rate} -o DIR"
        )
    return "\n".join(lines)


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"
