"""`simspine detect` from pictures and videos to keypoints, and on to vertebrae with `simspine simulate`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.detection_end_to_end import (
    PICTURE_PX,
    RATE_HZ,
    SECONDS,
    Errors,
    render_in_process,
    run,
)
from simspine_jax.capture.rigs import make_rig
from simspine_jax.cli import main
from simspine_jax.datasets import pictures_in_memory
from simspine_jax.detection.codecs import Found
from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.io.calibration import write_cameras_toml
from simspine_jax.io.keypoints import read_coco_results, read_openpose_folder
from simspine_jax.io.npz import read_npz
from simspine_jax.pictures import VISIBLE, Picture, decode_jpeg, map_points
from simspine_jax.pipeline import detectors
from simspine_jax.pipeline.detectors import Crops
from simspine_jax.pipeline.sources import FileTrial
from simspine_jax.skeleton import TRC_NAMES
from simspine_jax.tables import format_table
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.detectors import train_detector
from simspine_jax.training.run import Expected
from simspine_jax.viz.overlay import draw_people

NAMES = ("back_left", "back_right", "front_left", "front_right")
HIGH, WIDE, N_FRAMES = 100, 80, 4
PERSON = np.random.default_rng(3).uniform([20, 10], [60, 90], (37, 2))
# Of the MPEG-4 codec, on pictures of few colours.
LOSS = 12.0

Paths = Sequence[object]


class Oracle:
    """Knows where the one person of all pictures is."""

    size, udp, digest = (64, 48), False, "oracle"

    def find(self, crops: Crops) -> Found:
        points = np.stack([map_points(matrix, PERSON) for matrix in crops.matrices])
        return Found(points, np.full(points.shape[:2], 0.9))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are called ``truth`` are the oracle's."""
    real = detectors.open_detector

    def open_detector(weights, *arguments, **options):
        return Oracle() if weights.name == "truth" else real(weights, *arguments, **options)

    monkeypatch.setattr(detectors, "open_detector", open_detector)


def detect(*words: object) -> int:
    return main(["detect", *map(str, words)])


def make_pictures(folder: Path, names: Sequence[str] = NAMES, n: int = N_FRAMES) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for frame in range(n):
            cv2.imwrite(str(folder / name / f"{frame:03d}.png"), np.full((HIGH, WIDE, 3), 40, np.uint8))
    return folder


def make_video(path: Path, rate_hz: float = 20.0, n: int = N_FRAMES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate_hz, (WIDE, HIGH))
    for _ in range(n):
        writer.write(np.full((HIGH, WIDE, 3), 40, np.uint8))
    writer.release()
    return path


def test_simulate_takes_what_was_detected_by_the_command_that_is_told(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in"), tmp_path / "out"
    assert detect(pictures, "--weights", "truth", "--rate", 50, "-o", out) == 0
    told = capsys.readouterr().out
    assert f"{out / 'keypoints'}: 16 frames" in told
    assert "back_left: 4 frames of 80x100 px, 0 without people, mean confidence 0.90" in told
    assert f"simspine simulate --keypoints {out / 'keypoints'} --calibration FILE --rate 50 -o DIR" in told
    write_cameras_toml(tmp_path / "Calib.toml", make_rig())
    trial = FileTrial("t", out / "keypoints", tmp_path / "Calib.toml", rate_hz=50.0).load()
    assert trial.views is not None
    assert np.asarray(trial.views.keypoints).shape == (N_FRAMES, 4, 37, 2)
    np.testing.assert_allclose(np.asarray(trial.views.keypoints)[2, 1], PERSON, atol=2e-3)
    np.testing.assert_allclose(trial.times, np.arange(N_FRAMES) / 50)


def test_cameras_with_names_of_one_letter_are_told_apart(tmp_path: Path) -> None:
    """Each of these letters is also in the ending of the folders, ``_json``."""
    names = ("j", "s", "o", "n")
    pictures, out = make_pictures(tmp_path / "in", names, 1), tmp_path / "out"
    assert detect(pictures, "--weights", "truth", "-o", out, "--quiet") == 0
    write_cameras_toml(tmp_path / "Calib.toml", replace(make_rig(), names=names))
    trial = FileTrial("t", out / "keypoints", tmp_path / "Calib.toml", rate_hz=50.0).load()
    assert trial.views is not None
    assert np.isfinite(np.asarray(trial.views.keypoints)).all()


def test_one_picture_and_several(tmp_path: Path, capsys) -> None:
    folder = make_pictures(tmp_path / "in", ["walk"]) / "walk"
    for words, camera in (
        ([folder / "000.png"], "000"),
        (sorted(folder.iterdir()), "walk"),
        ([folder], "walk"),
    ):
        out = tmp_path / f"out{len(words)}{camera}"
        assert detect(*words, "--weights", "truth", "--boxes", "whole", "-o", out, "--quiet") == 0
        captured = capsys.readouterr()
        assert not captured.out
        assert not captured.err
        found = read_openpose_folder(out / "keypoints")
        assert found.camera_names == (f"{camera}_json",)
        assert found.keypoint_names == TRC_NAMES


def test_overlays_and_coco_results(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4")
    make_video(tmp_path / "in" / "b" / "GX01.mp4")
    out = tmp_path / "out"
    words = (tmp_path / "in", "--weights", "truth", "-o", out, "--video", "--pictures", "--coco", "--quiet")
    assert detect(*words) == 0
    plain = np.full((HIGH, WIDE, 3), 40, np.uint8)
    expected = draw_people(plain, [np.column_stack([PERSON, np.full(37, 0.9)])])
    for name in ("a", "b"):
        video = cv2.VideoCapture(str(out / "overlay" / f"{name}.mp4"))
        assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
        frames = []
        while (read := video.read())[0]:
            frames.append(read[1][..., ::-1])
        assert len(frames) == N_FRAMES
        assert (
            np.abs(frames[1].astype(int) - expected).mean()
            < LOSS
            < np.abs(expected.astype(int) - plain).mean()
        )
        pictures = sorted((out / "overlay" / name).iterdir())
        assert [path.name for path in pictures] == [f"{name}_{n:06d}.jpg" for n in range(N_FRAMES)]
        drawn = decode_jpeg(pictures[2].read_bytes())
        assert np.abs(drawn.astype(int) - expected).mean() < LOSS
    files = {path.stem: path for path in (out / "coco").iterdir()}
    found = read_coco_results(files)
    np.testing.assert_allclose(found.positions[3, 1, 0], PERSON, atol=2e-3)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]  # nothing half-written


def test_a_camera_without_a_frame_to_draw_is_told_and_the_rest_is_drawn(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["a", "b"]), tmp_path / "out"
    for path in (pictures / "a").iterdir():
        path.write_bytes(b"no picture")
    words = (pictures, "--weights", "truth", "-o", out, "--video", "--pictures")
    assert detect(*words) == 2
    captured = capsys.readouterr()
    assert f"{out / 'overlay' / 'a.mp4'} is not written: no frame of a can be read" in captured.err
    assert f"{out / 'overlay' / 'a'} is left empty: no frame of a can be read" in captured.err
    assert f"{out / 'overlay' / 'b.mp4'}" in captured.out
    assert f"{out / 'overlay' / 'a.mp4'}" not in captured.out
    assert sorted(path.name for path in (out / "overlay").iterdir()) == ["a", "b", "b.mp4"]
    assert len(list((out / "overlay" / "b").iterdir())) == N_FRAMES


@pytest.mark.parametrize("rate", [0.05, 29.97002997, 66.667, 100.1234, 1000.04, 65535.0])
def test_videos_have_any_rate_to_a_ten_thousandth(tmp_path: Path, rate: float) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["a"]), tmp_path / "out"
    assert detect(pictures, "--weights", "truth", "-o", out, "--video", "--rate", rate, "--quiet") == 0
    video = cv2.VideoCapture(str(out / "overlay" / "a.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-4)
    assert json.loads((out / "detections.json").read_text())["rate_hz"] == rate


def test_a_rate_that_no_video_has_is_refused_first_and_an_unknown_one_is_told(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["a"]), tmp_path / "out"
    words = (pictures, "--weights", "truth", "-o", out, "--video")
    assert detect(*words, "--rate", 70000) == 2
    assert "can't have 70000 frames per second; valid is 0.01 to 65535" in capsys.readouterr().err
    assert not out.exists()
    assert detect(*words) == 0
    assert "play at 25 frames per second, as no file says the rate" in capsys.readouterr().err


def test_drawings_of_another_detector_do_not_stay(tmp_path: Path) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["a"], 1), tmp_path / "out"
    words = (pictures, "--weights", "truth", "-o", out, "--quiet", "--rate", 10)
    assert detect(*words, "--video", "--pictures", "--coco") == 0
    assert (out / "coco" / "a.json").exists()
    assert detect(*words, "--boxes", "whole") == 0
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "keypoints"]


def test_people_are_drawn_where_they_are() -> None:
    person = np.full((37, 3), np.nan)
    person[TRC_NAMES.index("LWrist")] = (20, 30, 0.9)
    person[TRC_NAMES.index("RWrist")] = (60, 70, 0.2)
    black = np.zeros((HIGH, WIDE, 3), np.uint8)
    drawn = draw_people(black, [person])
    rows, columns = np.nonzero(drawn.any(axis=-1))
    assert (rows.mean(), columns.mean()) == (pytest.approx(30, abs=0.3), pytest.approx(20, abs=0.3))
    assert drawn[30, 20, 0] > 2 * drawn[30, 20, 2]  # a left one is orange
    rows, _ = np.nonzero(draw_people(black, [person], least=0.1).any(axis=-1))
    assert rows.max() > 65
    assert not black.any()


def test_boxes_of_a_detector(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["cam"]), tmp_path / "out"
    boxes = [
        {"image_id": n, "category_id": 1, "bbox": [15, 5, 50, 90], "score": s}
        for n, s in ((0, 0.9), (0, 0.4), (1, 0.1), (3, 0.8))
    ]
    boxes.append({"image_id": 3, "category_id": 1, "bbox": [500, 5, 50, 90], "score": 0.9})
    boxes.append({"image_id": 4, "category_id": 1, "bbox": [15, 5, 50, 90], "score": 0.9})
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    words = [pictures, "--weights", "truth", "--boxes", tmp_path / "boxes.json", "-o", out, "--batch", 2]
    for options, counts in (([], [2, 0, 0, 1]), (["--box-score", 0.5], [1, 0, 0, 1])):
        assert detect(*words, *options) == 0
        files = sorted((out / "keypoints" / "cam_json").iterdir())
        assert [len(json.loads(path.read_text())["people"]) for path in files] == counts
        captured = capsys.readouterr()
        assert "the box 500 5 50 90 of frame 3 of cam is left out" in captured.err
        assert "1 boxes of" in captured.err
        assert "(first: 4; it has 4 frames, 0 to 3)" in captured.err
        assert "2 without people" in captured.out


def test_what_is_complete_is_kept_and_what_cannot_be_read_is_told(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in"), tmp_path / "out"
    (pictures / "back_left" / "001.png").write_bytes(b"")
    (pictures / "broken.mp4").write_bytes(b"no video")
    words = (pictures, "--weights", "truth", "-o", out)
    assert detect(*words) == 2  # a camera is missing
    captured = capsys.readouterr()
    assert "broken.mp4: it can't be opened as a video" in captured.err
    assert "frame 1 of back_left is left empty" in captured.err
    assert "001.png: the file is empty" in captured.err
    assert "back_left: 4 frames of 80x100 px, 1 without people" in captured.out
    assert "--rate HZ" in captured.out
    assert detect(*words) == 2
    assert "16 frames, 16 of them complete already" in capsys.readouterr().out
    assert detect(*words, "--overwrite") == 2
    captured = capsys.readouterr()
    assert "complete already" not in captured.out
    assert "all frames are done anew: --force" in captured.err


def test_a_fault_is_told_and_counts_each_time(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["a", "b"]), tmp_path / "out"
    (pictures / "a" / "002.png").write_bytes(b"no picture")
    words = (pictures, "--weights", "truth", "-o", out)
    for _ in range(2):
        assert detect(*words) == 2
        assert "frame 2 of a is left empty" in capsys.readouterr().err


def test_files_of_another_origin_stay(tmp_path: Path, capsys) -> None:
    pictures, out = make_pictures(tmp_path / "in", ["a"]), tmp_path / "out"
    foreign = out / "keypoints" / "other_json" / "other_000000000000_keypoints.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    words = (pictures, "--weights", "truth", "-o", out)
    assert detect(*words) == 2
    assert "holds 1 files of keypoints, and detections.json beside it" in capsys.readouterr().err
    assert foreign.exists()
    assert detect(*words, "--force") == 0
    assert not foreign.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone",), "there is no such file or folder"),
        (("in", "--rate", 0), "--rate is 0"),
        (("in", "--batch", 4), "--batch has no effect"),
        (("in", "--boxes", "whole", "--batch", 0), "--batch is 0"),
        (("in", "--box-score", 0.2), "--box-score has no effect with --boxes track"),
        (("in", "--boxes", "low.csv"), "all of its 2 boxes have scores below 0.3, the highest 0.2"),
        (("in", "--boxes", "gone.json"), "There are no boxes gone.json"),
        (("in", "--boxes", "in"), "it holds no .txt files"),
        (("in", "--weights", "gone"), "there is no such folder"),
        (("in", "--weights", "gone.pth"), "gone.pth: there is no such file"),
        (("in", "--weights", "w.pth"), "give --detector"),
        (("in", "--weights", "w.pth", "--detector", "spinepose_q"), "did you mean 'spinepose_"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: Paths, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(Path("in"))
    Path("w.pth").write_bytes(b"nothing")
    Path("low.csv").write_text(
        f"camera,frame,x,y,w,h,score\n{NAMES[0]},0,1,2,30,40,0.2\n{NAMES[1]},1,1,2,30,40,0.1\n"
    )
    weights = () if "--weights" in words else ("--weights", "truth")
    assert detect(*words, *weights, "-o", "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("simspine: error: ")
    assert message in line


# --- to vertebrae ---


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, spine_osim: Path) -> Path:
    """Rendered in a process of its own, so that this one may have loaded TensorFlow."""
    folder = tmp_path_factory.mktemp("clip")
    try:
        render_in_process(folder)
    except RuntimeError as error:
        if "endering needs" not in str(error) and "endering by" not in str(error):
            raise
        pytest.skip(str(error))
    return folder


def check_errors(errors: Errors, most_mm: float) -> None:
    print(format_table(errors.table(), "txt"))
    assert set(dict(errors.simulated_mm)) >= {"cervical", "thoracic", "lumbar", "spine", "body", "all"}
    assert errors.n_frames >= 20
    assert errors.spine_mpjpe_mm < most_mm
    assert len(errors.rotations_deg) == 7
    assert max(error for _, error in errors.rotations_deg) < 15


@pytest.mark.slow
def test_from_pictures_of_four_cameras_to_errors_of_vertebrae(clip: Path, tmp_path: Path) -> None:
    """Rendered, detected by a stand-in with the errors of the paper's detector, simulated.

    It gave 15.5 mm, as much as the suite ``pipeline`` has for such detections; another seed may give more.
    """
    errors = run(None, tmp_path, clip=clip)
    check_errors(errors, 25)
    assert errors.spine_mpjpe_mm < dict(errors.triangulated_mm)["spine"]
    assert len(list((tmp_path / "detected" / "keypoints").glob("*_json/*.json"))) == 4 * round(
        SECONDS * RATE_HZ
    )


SMALL = DetectorRun(
    name="small",
    model=RTMPoseOptions(CSPNeXtOptions(0.33, 0.25), size=(96, 64)),
    expected=Expected(minutes=2),
    optimiser=DetectorOptimiser(learning_rate=4e-3, warmup=20, begin=0.5, clip=35.0),
    curriculum=CurriculumOptions(stages=("plain",), switches=()),
    steps=300,
    batch_size=24,
    average=0.98,
    log_every=100,
    save_every=300,
)


def write_boxes(clip: Path, folder: Path) -> Path:
    """A table for each camera, as of a person detector: what is in the picture of the person."""
    truth = read_npz(clip / "truth.npz")
    folder.mkdir()
    for view, name in enumerate(truth["camera_names"]):
        points = truth["keypoints_2d"][:, view]
        low, high = points.min(axis=1), points.max(axis=1)
        rows = [
            f"{frame},{','.join(f'{x:.1f}' for x in (*low[frame], *(high - low)[frame]))}"
            for frame in range(len(points))
        ]
        (folder / f"{name}.csv").write_text("\n".join(["frame,x,y,w,h", *rows]) + "\n")
    return folder


def labelled_pictures(clip: Path) -> list[Picture]:
    """The rendered clip's own, with the truth as labels."""
    truth = read_npz(clip / "truth.npz")
    found = []
    for view, name in enumerate(truth["camera_names"]):
        for frame, path in enumerate(sorted((clip / "pictures" / str(name)).glob("*.jpg"))):
            points = truth["keypoints_2d"][frame, view].astype(np.float32)
            low, high = points.min(0), points.max(0)
            labelled = Picture(
                jpeg=path.read_bytes(), width=PICTURE_PX, height=PICTURE_PX, subject="S9", action="Greeting",
                camera=str(name), frame=frame, is_synthetic=True, appearance_seed=0,
                box=np.concatenate([low, high - low]), area=float(np.prod(high - low)) / 2,
                keypoints_2d=points, visibility=np.full(len(points), VISIBLE, np.int32),
                keypoints_3d=np.full((len(points), 3), np.nan, np.float32),
                camera_matrix=np.full((3, 3), np.nan), camera_rotation=np.full((3, 3), np.nan),
                camera_translation=np.full(3, np.nan), camera_distortion=np.zeros(8),
            )  # fmt: skip
            found.append(labelled)
    return found


@pytest.mark.slow
def test_a_detector_that_was_trained_and_both_commands(clip: Path, tmp_path: Path) -> None:
    """The detector learned the clip's own pictures by heart: what is tried is the chain.

    It has only seen crops that fit the person, so that it is given boxes.
    """
    train_detector(SMALL, pictures_in_memory(labelled_pictures(clip)), tmp_path / "training")
    boxes = write_boxes(clip, tmp_path / "boxes")
    errors = run(tmp_path / "training", tmp_path, clip=clip, boxes=boxes)
    check_errors(errors, 25)  # it gave 11.2 mm
    assert dict(errors.detected_px)["all"] < 5


@pytest.mark.slow
@pytest.mark.skipif("SIMSPINE_DETECTOR" not in os.environ, reason="SIMSPINE_DETECTOR names no training")
def test_a_trained_detector_does_it_too(clip: Path, tmp_path: Path) -> None:
    check_errors(run(Path(os.environ["SIMSPINE_DETECTOR"]), tmp_path, clip=clip), 60)
