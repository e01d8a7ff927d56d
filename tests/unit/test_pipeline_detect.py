"""Detection in files with detectors that know the truth, or read it from the pictures' colours."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.detection.codecs import Found
from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.inference import Detector
from simspine_jax.detection.models import build_detector
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError
from simspine_jax.io.boxes import CameraBoxes
from simspine_jax.io.keypoints import read_coco_results, read_openpose_folder
from simspine_jax.io.video import Camera, find_cameras, read_picture
from simspine_jax.pictures import crop_matrix, inverse_map, map_points, padded_box
from simspine_jax.pipeline.detect import (
    RECORD,
    BoxPlan,
    crop_pixels,
    frame_path,
    note_made,
    people_in,
    run_detection,
    write_coco,
)
from simspine_jax.pipeline.detectors import Crops, open_detector
from simspine_jax.pipeline.tracking import (
    TRACKED,
    WINDOWS_EVERY,
    box_around,
    mean_confidence,
    start_boxes,
    track,
    whole_box,
)
from simspine_jax.skeleton import TRC_NAMES
from simspine_jax.training.detector_run import DetectorOptimiser
from simspine_jax.training.detectors import DetectorRun, keep_detector
from simspine_jax.training.run import Expected

SIZE = (96, 72)
N_FRAMES, HIGH, WIDE = 6, 120, 160
K = len(TRC_NAMES)
# What is written is rounded to a thousandth of a pixel; a detector works in float32.
WRITTEN_PX = 2e-3


def person_at(frame: int, view: int = 0) -> np.ndarray:
    """[37 2] keypoints of somebody who walks to the right."""
    random = np.random.default_rng(view)
    return np.array([50 + 5 * frame + 6 * view, 60]) + random.uniform([-14, -30], [14, 30], (K, 2))


@dataclass
class Oracle:
    """Knows where people are; what is outside of the crop, or small in it, it isn't sure of."""

    size: tuple[int, int] = SIZE
    digest: str = "oracle"
    udp: bool = False
    least_share: float = 0.0
    seen: list[Crops] = field(default_factory=list)
    stop_at: int | None = None

    def find(self, crops: Crops) -> Found:
        self.seen.append(crops)
        if self.stop_at is not None and len(self.seen) >= self.stop_at:
            raise KeyboardInterrupt
        points, scores = [], []
        for matrix, view, frame in zip(crops.matrices, crops.views, crops.frames, strict=True):
            person = map_points(matrix, person_at(frame, int(view[-1])))
            inside = ((person > 0) & (person < np.array(self.size[::-1]))).all(axis=-1)
            large = np.ptp(person[:, 1]) > self.least_share * self.size[0]
            scores.append(np.where(inside, 0.8 if large else 0.1, 0.0))
            points.append(np.where(inside[:, None], person, np.nan))
        return Found(jnp.asarray(np.stack(points)), jnp.asarray(np.stack(scores)))


def make_cameras(folder: Path, names: Sequence[str] = ("cam0", "cam1"), n: int = N_FRAMES) -> list[Camera]:
    for name in names:
        (folder / name).mkdir(parents=True)
        for frame in range(n):
            cv2.imwrite(str(folder / name / f"{frame:04d}.png"), np.full((HIGH, WIDE, 3), 90, np.uint8))
    return list(find_cameras([folder]).cameras)


@pytest.fixture
def cameras(tmp_path: Path) -> list[Camera]:
    return make_cameras(tmp_path / "in")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_truth(out: Path, frames: Sequence[int] = range(N_FRAMES), views: Sequence[int] = (0, 1)) -> None:
    for view in views:
        for frame in frames:
            (person,) = people_in(out, f"cam{view}", frame)
            np.testing.assert_allclose(person[:, :2], person_at(frame, view), atol=WRITTEN_PX)
            assert (person[:, 2] == 0.8).all()


def test_keypoints_come_back_in_pixels_of_the_pictures(cameras: list[Camera], tmp_path: Path) -> None:
    oracle = Oracle()
    done = run_detection(cameras, oracle, tmp_path / "out", rate_hz=50.0)
    check_truth(tmp_path / "out")
    assert {len(crops.pixels) for crops in oracle.seen} == {2}  # one compiled size: one crop of each camera
    assert (done.n_new, done.resumed) == (2 * N_FRAMES, 0)
    assert [(c.name, c.n_frames, c.empty, c.confidence) for c in done.cameras] == [
        ("cam0", N_FRAMES, 0, pytest.approx(0.8)), ("cam1", N_FRAMES, 0, pytest.approx(0.8)),
    ]  # fmt: skip
    assert done.cameras[0].sizes == ((WIDE, HIGH),)
    found = read_openpose_folder(done.folder)
    assert found.keypoint_names == TRC_NAMES
    assert found.camera_names == ("cam0_json", "cam1_json")
    np.testing.assert_allclose(found.positions[3, 1, 0], person_at(3, 1), atol=WRITTEN_PX)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["rate_hz"] == 50.0
    assert "no probability" in record["confidence"]


def test_following_looks_at_the_whole_picture_first_and_then_round_the_person(
    cameras: list[Camera], tmp_path: Path
) -> None:
    oracle = Oracle()
    run_detection(cameras[:1], oracle, tmp_path / "out")
    first = crop_matrix(*padded_box(whole_box((WIDE, HIGH)), SIZE), SIZE)
    np.testing.assert_array_equal(oracle.seen[0].matrices[0], first)
    by_frame = {frame: [c for c in oracle.seen if c.frames[0] == frame] for frame in range(N_FRAMES)}
    assert len(by_frame[0]) > 3  # the picture, windows, and twice what was found
    for frame in range(1, N_FRAMES):
        (crops,) = by_frame[frame]
        extent = np.ptp(map_points(crops.matrices[0], person_at(frame)), axis=0) / np.array(SIZE[::-1])
        assert 0.5 < extent.max() < 0.95


def test_a_small_person_is_found_in_windows(tmp_path: Path) -> None:
    cameras = make_cameras(tmp_path / "in", ["cam0"], 3)
    oracle = Oracle(least_share=0.5)  # 60 px of a picture whose crop shows 160 px and more
    whole = crop_matrix(*padded_box(whole_box((WIDE, HIGH)), SIZE), SIZE)
    assert np.ptp(map_points(whole, person_at(0))[:, 1]) < 0.5 * SIZE[0]
    run_detection(cameras, oracle, tmp_path / "out")
    check_truth(tmp_path / "out", range(3), [0])
    oracle = Oracle(least_share=0.5)
    run_detection(cameras, oracle, tmp_path / "whole", BoxPlan("whole"))
    people = [people_in(tmp_path / "whole", "cam0", frame)[0] for frame in range(3)]
    assert max(map(mean_confidence, people)) < TRACKED


def test_a_lost_person_is_looked_for_again() -> None:
    """The third frame shows nobody where the person was; the numbers of jobs tell where was looked."""
    sizes, frames, jobs_seen = {0: (WIDE, HIGH)}, [0, 1, 2, 3], []
    last: dict[int, np.ndarray] = {}
    for frame in frames:
        place = person_at(0) + (60 if frame >= 2 else 0) * np.array([1, 0])

        def find(jobs, place=place):
            jobs_seen.append(len(jobs))
            people = []
            for _, (left, top, width, height) in jobs:
                low = np.array([left, top])
                inside = ((place > low) & (place < np.array([left + width, top + height]))).mean()
                people.append(np.column_stack([place, np.full(K, 0.8 if inside > 0.9 else 0.05)]))
            return people

        jobs_seen.clear()
        last = track(find, sizes, last, frame)
        assert mean_confidence(last[0]) == pytest.approx(0.8)
        counts = [n for n in jobs_seen if n]
        if frame in (1, 3):
            assert counts == [1]
        elif frame == 2:
            assert counts[:2] == [1, 1]  # where it was, then the whole picture


def test_boxes_round_people_leave_out_unsure_keypoints() -> None:
    person = np.column_stack([person_at(0), np.full(K, 0.7)])
    low, high = person[:, :2].min(axis=0), person[:, :2].max(axis=0)
    box = box_around(person, (WIDE, HIGH))
    assert box is not None
    assert (box[:2] < low).all()
    assert (box[:2] + box[2:] > high).all()
    astray = person.copy()
    astray[4] = (150, 110, 0.2)
    moved = box_around(astray, (WIDE, HIGH))
    assert moved is not None
    assert moved[0] + moved[2] < 100
    missing = np.full((K, 3), np.nan)
    assert box_around(missing, (WIDE, HIGH)) is None
    missing[:2] = (5, 5, 0.5)
    assert box_around(missing, (WIDE, HIGH)) is None
    outside = person + np.array([500, 0, 0])
    assert box_around(outside, (WIDE, HIGH)) is None


def test_windows_cover_the_picture() -> None:
    for size in ((160, 120), (1080, 1920), (640, 640)):
        whole, *windows = start_boxes(size, WINDOWS_EVERY)
        np.testing.assert_array_equal(whole, whole_box(size))
        assert len(start_boxes(size, 1)) == 1
        covered = np.zeros(size[::-1], bool)
        for left, top, width, height in np.array(windows) + np.array([0.5, 0.5, 0, 0]):
            assert left >= 0
            assert top >= 0
            assert left + width <= size[0] + 1e-6
            assert top + height <= size[1] + 1e-6
            covered[int(top) : int(np.ceil(top + height)), int(left) : int(np.ceil(left + width))] = True
        assert covered.all()


def test_given_boxes_go_in_batches_and_hold_any_number_of_people(
    cameras: list[Camera], tmp_path: Path
) -> None:
    def box(frame: int, view: int) -> list[float]:
        low, high = person_at(frame, view).min(axis=0), person_at(frame, view).max(axis=0)
        return [*(low - 4), *(high - low + 8), 0.9]

    def boxes(view: int) -> CameraBoxes:
        rows = {0: [box(0, view), box(0, view)], 1: [box(1, view)], 3: [box(3, view), [-90, 5, 20, 20, 0.9]]}
        rows[4] = [[*box(4, view)[:4], 0.2]]
        return CameraBoxes({n: np.array(r, float) for n, r in rows.items()})

    for batch, least in ((4, 0.3), (3, 0.1)):
        oracle, notes = Oracle(), []
        out = tmp_path / f"out{batch}"
        plan = BoxPlan({f"cam{view}": boxes(view) for view in (0, 1)}, least, batch)
        done = run_detection(cameras, oracle, out, plan, note=notes.append)
        assert {len(crops.pixels) for crops in oracle.seen} == {batch}
        for view in (0, 1):
            people = [len(people_in(out, f"cam{view}", frame)) for frame in range(N_FRAMES)]
            assert people == [2, 1, 0, 1, int(least < 0.2), 0]
            for person, frame in ((people_in(out, f"cam{view}", n)[-1], n) for n in (0, 1, 3)):
                np.testing.assert_allclose(person[:, :2], person_at(frame, view), atol=WRITTEN_PX)
        assert sum("-90 5 20 20" in note and "frame 3 of cam" in note for note in notes) == 2
        assert done.cameras[0].n_frames == N_FRAMES
    with pytest.raises(ShapeError, match="0 crops"):
        BoxPlan("whole", batch=0)


def test_unreadable_pictures_are_named_and_empty_and_the_rest_is_done(tmp_path: Path) -> None:
    make_cameras(tmp_path / "in")
    (tmp_path / "in" / "cam0" / "0002.png").write_bytes(b"")
    (tmp_path / "in" / "cam1" / "0003.png").write_bytes(b"no picture")
    cameras, notes = find_cameras([tmp_path / "in"]).cameras, []
    done = run_detection(cameras, Oracle(), tmp_path / "out", note=notes.append)
    assert sorted(note.split(":")[0] for note in notes) == [
        "frame 2 of cam0 is left empty", "frame 3 of cam1 is left empty",
    ]  # fmt: skip
    assert "0002.png" in notes[0]
    assert [(c.n_frames, c.empty) for c in done.cameras] == [(N_FRAMES, 1), (N_FRAMES, 1)]
    assert json.loads(frame_path(tmp_path / "out", "cam0", 2).read_text())["people"] == []
    check_truth(tmp_path / "out", [0, 1, 4, 5])


@pytest.mark.parametrize("source", ["track", "whole"])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, source: str) -> None:
    cameras = make_cameras(tmp_path / "in", n=12)
    (tmp_path / "in" / "cam0" / "0005.png").write_bytes(b"no picture")
    cameras = find_cameras([tmp_path / "in"]).cameras
    plan = BoxPlan(source, batch=2)  # type: ignore[arg-type]
    whole, first, notes = tmp_path / "whole", Oracle(), []
    run_detection(cameras, first, whole, plan, note=notes.append)
    calls = len(first.seen)
    for stop_at in (1, calls // 2, calls - 2):
        parts, stopped, second = tmp_path / f"parts{stop_at}", Oracle(stop_at=stop_at), Oracle()
        with pytest.raises(KeyboardInterrupt):
            run_detection(cameras, stopped, parts, plan, note=notes.append)
        n_before = len(contents(parts)) - 1
        done = run_detection(cameras, second, parts, plan, note=notes.append)
        assert contents(parts) == contents(whole)
        assert (n_before > 0) == (stop_at > calls // 2 or (stop_at > 1 and source == "whole"))
        assert done.resumed == n_before
        assert (len(second.seen) < calls) == (n_before > 0)
    # And a complete one does nothing.
    third = Oracle()
    done = run_detection(cameras, third, parts, plan, note=notes.append)
    assert not third.seen
    assert (done.n_new, done.resumed) == (0, 24)
    assert contents(parts) == contents(whole)


def test_what_changed_is_done_anew_and_nothing_of_before_is_left(
    cameras: list[Camera], tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", []
    run_detection(cameras, Oracle(), out)
    stranger = out / "keypoints" / "cam0_json" / "notes.txt"
    stranger.write_text("mine")
    for change in (
        {"cameras": cameras[:1]}, {"finder": Oracle(digest="other")}, {"plan": BoxPlan("whole")},
        {"force": True},
    ):  # fmt: skip
        before = contents(out)
        oracle = change.get("finder", Oracle())
        arguments = {"cameras": cameras, "finder": oracle, "note": notes.append} | change
        done = run_detection(out=out, **arguments)  # type: ignore[arg-type]
        assert oracle.seen
        assert not done.resumed
        assert stranger.read_text() == "mine"
        assert (out / "keypoints" / "cam1_json").exists() == (len(arguments["cameras"]) == 2)
        assert contents(out) != before or "force" in change or "plan" in change
    assert len(notes) == 4
    assert "--force" in notes[-1]


def test_what_was_made_of_frames_goes_with_them_and_what_is_foreign_stays(
    cameras: list[Camera], tmp_path: Path
) -> None:
    out, quiet = tmp_path / "out", lambda text: None
    run_detection(cameras, Oracle(), out)
    note_made(out, [Path("coco/cam0.json"), Path("overlay/cam0.mp4"), Path("overlay/cam0")])
    made = [out / "coco/cam0.json", out / "overlay/cam0.mp4", out / "overlay/cam0/cam0_000003.jpg"]
    foreign = [
        out / "coco/mine.json", out / "overlay/cam0/mine.jpg",
        out / "keypoints/other_json/other_000000000000_keypoints.json",
    ]  # fmt: skip
    for path in (*made, *foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    run_detection(cameras, Oracle(), out, note=quiet)
    assert all(path.exists() for path in (*made, *foreign))
    run_detection(cameras, Oracle(digest="other"), out, note=quiet)
    assert [path.exists() for path in made] == [False] * 3
    assert [path.exists() for path in foreign] == [True] * 3
    assert json.loads((out / RECORD).read_text())["made"] == []
    foreign[0].unlink()
    note_made(out, [Path("coco/cam0.json")])
    write_coco(out, ["cam0"])
    run_detection(cameras, Oracle(), out, note=quiet)
    assert not (out / "coco").exists()


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (None, "holds 12 files of keypoints, and detections.json beside it, .* is not there; valid is"),
        ("{", "holds 12 files of keypoints, .* is damaged or of another program; valid is another folder"),
        ("[1]", "is damaged or of another program"),
        ('{"format": "simspine_jax detections", "inputs": 3}', "is damaged or of another program"),
    ],
)
def test_frames_without_a_record_are_not_taken_away_unless_forced(
    cameras: list[Camera], tmp_path: Path, record: str | None, says: str
) -> None:
    run_detection(cameras, Oracle(), tmp_path)
    before = contents(tmp_path)
    (tmp_path / RECORD).unlink()
    if record is not None:
        (tmp_path / RECORD).write_text(record)
    with pytest.raises(SimspineError, match=says):
        run_detection(cameras, Oracle(), tmp_path)
    kept = {name: content for name, content in before.items() if name != RECORD}
    assert {name: content for name, content in contents(tmp_path).items() if name != RECORD} == kept
    assert run_detection(cameras, Oracle(), tmp_path, force=True).n_new == 2 * N_FRAMES
    assert contents(tmp_path) == before


def test_a_record_of_another_program_is_not_written_over_unless_forced(
    cameras: list[Camera], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RECORD).write_text("[]")
    with pytest.raises(SimspineError, match=r"detections\.json is damaged or of another program; valid is"):
        run_detection(cameras, Oracle(), out)
    assert (out / RECORD).read_text() == "[]"
    assert run_detection(cameras, Oracle(), out, force=True).n_new == 2 * N_FRAMES


def test_a_picture_or_video_of_the_same_size_but_another_time_is_another(
    cameras: list[Camera], tmp_path: Path
) -> None:
    video = tmp_path / "cam0.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (WIDE, HIGH))
    for _ in range(N_FRAMES):
        writer.write(np.full((HIGH, WIDE, 3), 90, np.uint8))
    writer.release()
    for name, path, found in (
        ("pictures", tmp_path / "in" / "cam1" / "0002.png", cameras),
        ("video", video, find_cameras([video]).cameras),
    ):
        out, notes = tmp_path / f"out_{name}", []
        run_detection(found, Oracle(), out)
        assert run_detection(found, Oracle(), out).n_new == 0
        about = path.stat()
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1000))
        done = run_detection(found, Oracle(), out, note=notes.append)
        assert done.resumed == 0
        assert "pictures or version changed" in notes[0]


def test_a_frame_that_was_lost_is_done_again(cameras: list[Camera], tmp_path: Path) -> None:
    run_detection(cameras, Oracle(), tmp_path)
    before = contents(tmp_path)
    frame_path(tmp_path, "cam1", 2).unlink()
    done = run_detection(cameras, Oracle(), tmp_path)
    assert done.n_new == 1
    assert contents(tmp_path) == before


def test_cameras_of_unlike_length_and_numbers_go_by_number(tmp_path: Path) -> None:
    make_cameras(tmp_path / "in")
    for frame in (0, 3, 5):
        (tmp_path / "in" / "cam1" / f"{frame:04d}.png").unlink()
    cameras = find_cameras([tmp_path / "in"]).cameras
    run_detection(cameras, Oracle(), tmp_path / "out")
    check_truth(tmp_path / "out", [1, 2, 4])
    check_truth(tmp_path / "out", [0, 3, 5], [0])
    assert not frame_path(tmp_path / "out", "cam1", 3).exists()


def test_videos_that_are_cut_short_say_so(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "cam0.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (WIDE, HIGH))
    for _ in range(20):
        writer.write(random.integers(0, 255, (HIGH, WIDE, 3), np.uint8))
    writer.release()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    notes, told = [], []
    done = run_detection(
        find_cameras([path]).cameras, Oracle(), tmp_path / "out", note=notes.append,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    n = done.cameras[0].n_frames
    assert 5 < n < 20
    (note,) = notes
    assert f"cam0: the video ends after {n} of the 20 frames" in note
    assert done.faults == (note,)
    assert told == [(i + 1, 20) for i in range(n)]
    again = run_detection(find_cameras([path]).cameras, Oracle(), tmp_path / "out", note=notes.append)
    assert (again.resumed, again.faults, notes) == (n, (note,), [note, note])


def test_coco_results_are_read_back(cameras: list[Camera], tmp_path: Path) -> None:
    run_detection(cameras, Oracle(), tmp_path)
    paths = write_coco(tmp_path, ["cam0", "cam1"])
    found = read_coco_results({path.stem: path for path in paths})
    assert found.camera_names == ("cam0", "cam1")
    np.testing.assert_allclose(found.positions[4, 1, 0], person_at(4, 1), atol=WRITTEN_PX)
    entry = json.loads(paths[0].read_text())[0]
    assert (entry["category_id"], entry["image_id"], entry["score"]) == (1, 0, 0.8)


# --- pixels ---


def coordinates(size: tuple[int, int]) -> np.ndarray:
    """A picture whose red is x / 4 and whose green is y / 4."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    return np.stack([columns / 4, rows / 4, np.full(rows.shape, 128.0)], -1).round().astype(np.uint8)


@pytest.mark.parametrize(
    "box", [(100, 80, 60, 90), (300, 200, 250, 300), (0, 0, 900, 700), (700, 500, 300, 400)]
)
def test_crops_show_what_their_map_says(box: tuple[float, ...]) -> None:
    pixels = coordinates((1000, 800))
    matrix = crop_matrix(*padded_box(box, (256, 192)), (256, 192))
    crop = crop_pixels(pixels, matrix, (256, 192)).astype(float)
    assert crop.shape == (256, 192, 3)
    rows, columns = np.mgrid[:256, :192]
    wanted = np.einsum(
        "ij,...j->...i", np.linalg.inv(matrix[:, :2]), np.stack([columns, rows], -1) - matrix[:, 2]
    )
    margin = 4 / np.linalg.norm(matrix[0, :2])  # crop's pixels, of the picture
    inside = ((wanted > margin) & (wanted < np.array([1000, 800]) - margin)).all(axis=-1)
    assert inside.sum() > 4000
    off = 4 * crop[inside][:, :2] - wanted[inside]
    # Colours are rounded to 1 of 255, which is 4 px; over thousands of pixels that is no bias.
    assert np.abs(off).max() < 4
    assert np.abs(off.mean(axis=0)).max() < 0.15
    far = ((wanted < -margin) | (wanted > np.array([1000, 800]) + margin)).any(axis=-1)
    assert (crop[far] == 0).all()


def test_fine_patterns_are_averaged_where_the_crop_is_much_smaller() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 768, 3), np.uint8)
    matrix = crop_matrix((384, 512), (776, 1035), (128, 96))  # less than an eighth
    crop = crop_pixels(pixels, matrix, (128, 96)).astype(float)
    # Noise of deviation 74, averaged over 64 pixels: 9; over the 4 that a warp looks at: 37 or more.
    assert crop[4:-4, 4:-4].std() < 15


# --- detectors ---


TINY = RTMPoseOptions(CSPNeXtOptions(0.33, 0.125), size=(64, 64))


def test_a_real_detector_runs_and_each_crop_is_its_own(tmp_path: Path) -> None:
    """A training's folder, with random weights: in the files is what it says of the crops one by one."""
    make_cameras(tmp_path / "in")
    random = np.random.default_rng(0)
    for path in (tmp_path / "in").glob("*/*.png"):
        cv2.imwrite(str(path), random.integers(0, 255, (HIGH, WIDE, 3), np.uint8))
    cameras = find_cameras([tmp_path / "in"]).cameras
    model = build_detector(TINY)
    noise = random.integers(0, 255, (3, *TINY.size, 3), np.uint8)
    greatest = np.asarray(Detector.of(model, TINY)(noise).score).max()
    for layer in (model.head.cls_x, model.head.cls_y):  # type: ignore[union-attr]
        layer.kernel.set_value(layer.kernel.get_value() * (0.7 / greatest))  # or scores are nearly zero
    detector, folder = Detector.of(model, TINY), tmp_path / "run"
    optimiser = DetectorOptimiser(learning_rate=1e-3)
    keep_detector(DetectorRun("tiny", TINY, Expected(minutes=1), optimiser), model, folder)
    finder = open_detector(folder)
    assert (finder.name, finder.size, finder.udp) == ("tiny after 0 steps", TINY.size, False)
    assert finder.digest != open_detector(folder, flip=False).digest
    matrix = crop_matrix(*padded_box(whole_box((WIDE, HIGH)), TINY.size), TINY.size)
    run_detection(cameras, finder, tmp_path / "out", BoxPlan("whole", batch=3))
    for name in ("cam0", "cam1"):
        for frame in (0, N_FRAMES - 1):
            pixels = read_picture(tmp_path / "in" / name / f"{frame:04d}.png")
            crops = crop_pixels(pixels, matrix, TINY.size)[None].repeat(3, 0)
            found = detector(crops)
            points = map_points(inverse_map(matrix), np.asarray(found.keypoints)[0])
            score = np.clip(np.asarray(found.score)[0], 0, 1)
            (person,) = people_in(tmp_path / "out", name, frame)
            known = np.isfinite(person[:, 2])
            assert known.sum() > 3
            np.testing.assert_allclose(person[known, :2], points[known], atol=WRITTEN_PX)
            np.testing.assert_allclose(person[known, 2], score[known], atol=1e-4)
            assert (score[~known] < 1e-4).all()


def test_weights_that_say_too_little_or_too_much_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"nothing")
    for path, name, order, words in (
        (weights, None, None, "give --detector"),
        (weights, "spinepose_x", None, "'spinepose_x' is not in the package"),
        (weights, "spinepose_s", None, "w.safetensors"),
        (tmp_path / "gone.pth", "spinepose_s", None, "no such file"),
        (tmp_path / "gone", None, None, "no such folder"),
        (tmp_path / "a.txt", None, None, "no such folder"),
        (tmp_path, "spinepose_s", None, "--detector has no effect"),
        (tmp_path, None, "BGR", "--order has no effect"),
    ):
        with pytest.raises(SimspineError, match=words):
            open_detector(path, name, order)  # type: ignore[arg-type]
    with pytest.raises(FileFormatError):
        open_detector(tmp_path)
