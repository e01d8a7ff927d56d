"""The data card: its numbers against NumPy and OpenCV, and what its page, pictures and tables say."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.image import imread
from spine_trials import make_trial

from simspine_jax import cli_dataset_export as commands
from simspine_jax.annotations import SYNTHETIC, Quality, SpineTrial
from simspine_jax.clips import MAX_CLIP_FRAMES, Clip, clips_of
from simspine_jax.dataset_statistics import (
    AXES,
    SPEED_PARTS,
    DatasetStatistics,
    axis_error_tallies,
    by_region,
    gather_dataset,
)
from simspine_jax.dataset_tables import (
    axes_table,
    counts_table,
    curvature_error_table,
    curvature_table,
    flags_table,
    inside_table,
    speed_table,
)
from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, REGIONS
from simspine_jax.statistics import BIN, SYNTHETIC_NOTICE, Tally
from simspine_jax.viz.card import NOT_THE_PAPERS, PAGE, CardFacts
from simspine_jax.viz.dataset_card import write_card

VIEWS = ("left", "right")
N_FRAMES = 40
HALF_BIN = BIN / 2 + 1e-9
TRIALS = (("S1", "Walking 1"), ("S1", "Sitting"), ("S9", "Walking 1"), ("S11", "Walking 2"))
FACTS = CardFacts("simspine/a test's", "1.2.3", "free <as> air", "Random numbers.")


def rig() -> Cameras:
    facing = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    return Cameras(
        rotations=np.stack([facing, cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0] @ facing]),
        translations=np.array([[-0.1, 0.2, 5.2], [0.2, 0.1, 4.9]]),
        focal_lengths=np.array([[1145.0, 1143.8], [1149.7, 1147.6]]),
        principal_points=np.array([[512.5, 515.4], [508.8, 508.1]]),
        skews=np.zeros(2),
        distortion=np.tile([-0.2, 0.25, -0.001, 0.002, -0.01, 0, 0, 0], (2, 1)),
        sizes=np.array([[1000.0, 1000.0], [600.0, 500.0]]),
        names=VIEWS,
    )


def trial(subject: str, action: str, *, synthetic: bool = True) -> SpineTrial:
    """As `make_trial`'s, with detections, of which one keypoint is lost in one view."""
    random = np.random.default_rng([ord(c) for c in action + subject])
    detections = random.uniform(0, 1000, (N_FRAMES, 2, 37, 2))
    detections[:10, 1, 4] = np.nan
    source = f"{SYNTHETIC[0]}{subject}, {action}, seed 7" if synthetic else "a <laboratory>"
    return make_trial(
        subject, action, N_FRAMES, source=source, camera_names=VIEWS, detections=detections,
        detection_confidence=np.where(np.isnan(detections[..., 0]), np.nan, 0.5), reprojection_px=None,
    )  # fmt: skip


def truth(subject: str, action: str) -> SpineTrial:
    return make_trial(action.replace(" ", ""), subject, N_FRAMES)  # other random numbers


def clips(max_frames: int = 15, *, cameras: bool = True, known: bool = True) -> list[Clip]:
    """Of all trials; with cameras and a known truth or without."""
    found: list[Clip] = []
    for names in TRIALS:
        one = trial(*names, synthetic=known)
        if not cameras:
            one = dataclasses.replace(one, camera_names=(), detections=None, detection_confidence=None)
        about = {"height_m": 1.5 + 0.1 * len(names[0]), "max_frames": max_frames}
        found += clips_of(one, rig() if cameras else None, truth(*names) if known else None, **about)
    return found


@pytest.fixture(scope="module")
def statistics() -> DatasetStatistics:
    return gather_dataset(clips())


def pooled(name: str) -> np.ndarray:
    """A field of all trials as NumPy has it, usable frames only."""
    parts = []
    for names in TRIALS:
        one = trial(*names)
        usable = (one.quality & ~np.uint16(Quality.INTERPOLATED)) == 0
        assert 0 < usable.sum() < N_FRAMES
        values = {
            "axes": one.coordinates,
            "error": one.keypoints - truth(*names).keypoints,
            "lordosis": one.lordosis,
            "kyphosis": one.kyphosis,
            "true_lordosis": truth(*names).lordosis,
            "true_kyphosis": truth(*names).kyphosis,
        }
        parts.append(np.asarray(values[name])[usable])
    return np.concatenate(parts)


def close(tally: Tally, values: np.ndarray, rtol: float = 1e-5) -> None:
    """Moments to the precision of float32 records; percentiles to the histogram's bin."""
    assert tally.count == values.size
    assert tally.mean == pytest.approx(values.mean(), rel=rtol, abs=1e-6)
    assert tally.sd == pytest.approx(values.std(), rel=rtol, abs=1e-6)
    assert tally.percentile(95) == pytest.approx(
        np.percentile(values, 95), abs=HALF_BIN + rtol * abs(values).max()
    )


# --- numbers ---


def test_how_clips_are_cut_and_ordered_does_not_matter(statistics: DatasetStatistics) -> None:
    other = gather_dataset(clips(N_FRAMES)[::-1])
    assert statistics.whole.clips == 3 * other.whole.clips == 12
    assert len(statistics.spine.trials) == len(other.spine.trials) == 4
    for kind in ("subject", "action", "view", "split"):
        one, two = (
            {
                n: dataclasses.replace(c, clips=0, seconds=round(c.seconds, 9))
                for n, c in s.counts_by(kind).items()
            }
            for s in (statistics, other)
        )
        assert list(one.items()) == list(two.items())
    for name in ("axes", "error_mm", "rooted_mm", "detector_px", "detector_view_px", "axis_error"):
        for key, tally in getattr(statistics, name).items():
            again = getattr(other, name)[key]
            assert tally.count == again.count > 0
            np.testing.assert_array_equal(tally.bins, again.bins)
            assert tally.mean == pytest.approx(again.mean, rel=1e-9, abs=1e-9)


def test_counts(statistics: DatasetStatistics) -> None:
    assert list(statistics.counts_by("split")) == ["train", "test"]
    assert {n: c.frames for n, c in statistics.counts_by("split").items()} == {"train": 80, "test": 80}
    assert {n: c.frames for n, c in statistics.counts_by("action").items()} == {"Sitting": 40, "Walking": 120}
    assert list(statistics.counts_by("subject")) == ["S1", "S9", "S11"]
    assert statistics.counts["S1", "Sitting"].clips == 3
    whole = statistics.whole
    assert (whole.frames, whole.view_frames, whole.usable, whole.repaired) == (160, 320, 140, 8)
    assert whole.seconds == pytest.approx(160 / 50)
    assert {n: c.view_frames for n, c in statistics.by_view.items()} == {"left": 160, "right": 160}
    table = counts_table(statistics, "subject")
    assert table.rows[0][:4] == ("S1", "train", pytest.approx(1.7), pytest.approx(np.nan, nan_ok=True))
    assert table.rows[-1][:4] == ("All", None, None, None)


def test_axes_are_those_of_numpy(statistics: DatasetStatistics) -> None:
    values = pooled("axes")
    for name, columns, factor in (
        ("pelvis_tilt", ["pelvis_tilt"], 180 / np.pi),
        ("knee_angle", ["knee_angle_r", "knee_angle_l"], 180 / np.pi),
        ("knee_angle_beta", ["knee_angle_r_beta", "knee_angle_l_beta"], 180 / np.pi),
        ("pelvis_tx", ["pelvis_tx"], 100),
        ("Abs_r2", ["Abs_r2"], 180 / np.pi),
    ):
        close(statistics.axes[name], factor * values[:, [AXIS_NAMES.index(c) for c in columns]])
    assert sorted(c for axis in AXES for c in axis.columns) == list(range(62))
    assert {axis.name for axis in AXES if axis.unit == "cm"} == {
        "pelvis_tx", "pelvis_ty", "pelvis_tz", "Abs_t1", "Abs_t2",
    }  # fmt: skip
    shown = axes_table(statistics)
    assert len(shown.rows) == len(AXES) - 18
    assert {row[0] for row in shown.rows} == {
        "pelvis", "hip", "knee", "ankle and foot", "abdomen", "neck", "shoulder", "elbow and forearm",
        "wrist",
    }  # fmt: skip


def test_errors_are_those_of_numpy(statistics: DatasetStatistics) -> None:
    error = pooled("error")
    for region, ids in REGIONS.items():
        close(by_region(statistics.error_mm)[region], 1e3 * np.linalg.norm(error[:, list(ids)], axis=-1))
        rooted = error - error[:, [KEYPOINT_NAMES.index("hip")]]
        close(by_region(statistics.rooted_mm)[region], 1e3 * np.linalg.norm(rooted[:, list(ids)], axis=-1))


def test_curvature_beside_the_truth_is_numpys(statistics: DatasetStatistics) -> None:
    rows = {row[0]: row[1:] for row in curvature_error_table(statistics).rows}
    assert list(rows) == ["Lordosis", "Kyphosis"]
    for name in ("lordosis", "kyphosis"):
        found, true = np.rad2deg(pooled(name)), np.rad2deg(pooled(f"true_{name}"))
        error = found - true
        assert true.std() > 0.1
        close(statistics.curvature_truth[name].error, error)
        valid = (
            error.size, error.mean(), abs(error).mean(), np.median(abs(error)),
            np.percentile(abs(error), 95), true.std(), found.std(),
        )  # fmt: skip
        assert rows[name.capitalize()] == pytest.approx(valid, rel=1e-5, abs=HALF_BIN)


def test_angles_are_compared_modulo_a_turn() -> None:
    found, true = np.zeros((3, 62), np.float32), np.zeros((3, 62), np.float32)
    arm, tx = AXIS_NAMES.index("arm_flex_r"), AXIS_NAMES.index("pelvis_tx")
    found[:, arm], true[:, arm] = np.pi - 0.1, -np.pi + 0.1
    found[:, tx] = 7.0
    tallies = axis_error_tallies(found, true)
    assert tallies["arm_flex"].high == pytest.approx(np.rad2deg(0.2), rel=1e-5)
    assert tallies["pelvis_tx"].mean == pytest.approx(700)


def test_the_detectors_error_is_opencvs(statistics: DatasetStatistics) -> None:
    """OpenCV's pictures of the truth beside the detections of all frames, usable or not."""
    R_world = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]).T
    off = np.full((len(TRIALS), 2, N_FRAMES, 37), np.nan)
    for i, names in enumerate(TRIALS):
        world = truth(*names).keypoints.reshape(-1, 3) @ R_world.T
        detections = trial(*names).detections
        assert detections is not None
        for v in range(2):
            K = np.eye(3)
            K[[0, 1], [0, 1]], K[:2, 2] = rig().focal_lengths[v], rig().principal_points[v]
            turn = cv2.Rodrigues(rig().rotations[v])[0]
            pixels = cv2.projectPoints(world, turn, rig().translations[v], K, rig().distortion[v])[0]
            off[i, v] = np.linalg.norm(pixels.reshape(N_FRAMES, 37, 2) - detections[:, v], axis=-1)
    for v, name in enumerate(VIEWS):
        close(statistics.detector_view_px[name], off[:, v][np.isfinite(off[:, v])])
    close(statistics.detector_px["right_ear"], off[..., 4][np.isfinite(off[..., 4])])


def test_shares_of_what_is_seen(statistics: DatasetStatistics) -> None:
    inside = np.concatenate([clip.keypoints_2d_mask for clip in clips()])
    assert 0.1 < inside[:, 1].mean() < 0.9
    for v, name in enumerate(VIEWS):
        np.testing.assert_array_equal(statistics.views[name].inside, inside[:, v].sum(axis=0))
        lost = np.zeros(37, int)
        lost[4] = 40 * v
        np.testing.assert_array_equal(statistics.views[name].detected, 160 - lost)
    assert inside_table(statistics).columns[2] == "Inside the picture (% of known)"
    row = inside_table(statistics).rows[4]
    assert row[:4] == ("right_ear", 100.0, pytest.approx(100 * inside[:, :, 4].mean()), 87.5)


def test_speed_of_neighbouring_usable_frames() -> None:
    """A centimetre a frame at 50 a second; what moves around frames with faults is not counted."""
    way = np.zeros((N_FRAMES, 37, 3))
    way[:, :, 0] = 0.01 * np.arange(N_FRAMES)[:, None]
    way[7] += 5.0
    one = make_trial(keypoints=way)
    assert not one.usable[5:10].any()
    found = gather_dataset(clips_of(one))
    for tally in (*found.speed.values(), found.speed_by_action["Walking", "wrists"]):
        assert tally.low == pytest.approx(50, rel=1e-5)
        assert tally.high == pytest.approx(50, rel=1e-5)
    assert found.speed["hip"].count == N_FRAMES - 1 - 6
    assert speed_table(found).rows[0][1:] == pytest.approx([50.0] * 2 * len(SPEED_PARTS), abs=HALF_BIN)


def test_flags_and_curvature_by_group(statistics: DatasetStatistics) -> None:
    row = flags_table(statistics, "subject").rows[-1]
    named = dict(zip(flags_table(statistics, "subject").columns, row, strict=True))
    assert named["Frames"] == 160
    assert named["Usable (%)"] == 87.5
    assert named["Marker residual (%)"] == 12.5
    assert named["Curvature (%)"] == 2.5
    assert named["Repaired (%)"] == 5.0
    close(statistics.spine.whole.curvature["lordosis"], np.rad2deg(pooled("lordosis")))
    assert [r[0] for r in curvature_table(statistics, "action").rows] == ["Sitting", "Walking", "All"]


def test_nothing_and_too_much_are_refused() -> None:
    with pytest.raises(ShapeError, match="There are no clips"):
        gather_dataset([])
    long = make_trial(n_frames=MAX_CLIP_FRAMES + 1, events=())
    with pytest.raises(ShapeError, match="has 501 frames; valid is up to 500"):
        gather_dataset(clips_of(long, max_frames=1000))


# --- the card ---


@pytest.fixture(scope="module")
def card_files(statistics: DatasetStatistics, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_card(tmp_path_factory.mktemp("card"), statistics, FACTS)


def test_the_card_has_a_page_pictures_and_tables(card_files: list[Path]) -> None:
    page, *others = card_files
    assert page.name == PAGE
    assert all(path.is_file() for path in card_files)
    assert set(page.parent.rglob("*.*")) == set(card_files)
    pictures = {path.stem for path in others if path.suffix == ".png"}
    assert pictures == {
        "counts", "curvature_by_action", "curvature_by_subject", "axes", "lumbar_levels", "inside",
        "detector_error", "annotation_error", "speed",
    }  # fmt: skip
    assert {path.stem for path in others if path.suffix == ".svg"} == pictures
    for path in others:
        if path.suffix == ".png":
            picture = imread(path)
            assert min(picture.shape[:2]) > 300
            assert picture.std() > 0.02
    tables = {path.stem for path in others if path.suffix == ".csv"}
    assert {"counts_by_split", "flags_by_action", "error_against_truth", "inside_by_view"} <= tables
    assert {"inside_by_keypoint", "curvature_against_truth"} <= tables


def test_the_page_stands_alone_and_says_what_it_is(card_files: list[Path]) -> None:
    text = card_files[0].read_text()
    assert "<script" not in text
    assert set(re.findall(r'src="([^"]{11})', text)) == {"data:image/"}
    assert not re.findall(r'href="(?!#)', text)
    for words in (
        NOT_THE_PAPERS.replace("'", "&#x27;"), SYNTHETIC_NOTICE, "free &lt;as&gt; air",
        "simspine/a test&#x27;s",
        "<dt>Version</dt><dd>1.2.3</dd>", "<dt>Seed</dt><dd>7</dd>", "4 of 4 trials synthetic",
        "12 clips of 4 trials, 160 frames, 320 frames in views", "Clips don&#x27;t know occlusion",
        "(synthetic_images) know which keypoints are visible", "SD of the truth",
    ):  # fmt: skip
        assert words in text, words


def test_a_table_on_disk_holds_the_numbers(statistics: DatasetStatistics, card_files: list[Path]) -> None:
    path = card_files[0].parent / "tables" / "error_against_truth.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.reader(lines))
    assert rows[0][1] == "Cervical (mm)"
    assert float(rows[1][1]) == pytest.approx(by_region(statistics.error_mm)["cervical"].mean, rel=1e-5)
    assert SYNTHETIC_NOTICE in path.read_text()


def test_a_recorded_set_without_cameras_says_so(tmp_path: Path) -> None:
    found = gather_dataset(clips(cameras=False, known=False))
    assert not found.has_truth
    assert not found.has_detections
    page, *others = write_card(tmp_path, found, FACTS)
    text = page.read_text()
    assert "The data have no cameras." in text
    assert "The data hold no truth" in text
    assert "SD of the truth" not in text
    assert "0 of 4 trials synthetic" in text
    assert "a &lt;laboratory&gt;" in text
    assert "ynthetic capture" not in text
    assert NOT_THE_PAPERS[:15] not in text
    assert not [path for path in others if path.stem in ("inside", "annotation_error", "detector_error")]


# --- the command ---


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.add_card_arguments(parser)
    return parser.parse_args([*words, "--quiet"])


def described(folder: Path, **changes: Any) -> Path:
    """A description as TensorFlow Datasets writes it."""
    about = {
        "name": "simspine", "version": "1.0.0", "configDescription": "Made up.",
        "location": {"urls": ["https://example.org"]}, "redistributionInfo": {"license": "None\n  at all"},
        "splits": [{"name": "train"}, {"name": "test"}],
    }  # fmt: skip
    path = folder / "simspine" / "synthetic" / "1.0.0" / "dataset_info.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(about | changes))
    return path


def test_the_command_writes_the_card_of_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described(tmp_path / "data")
    asked: list[str] = []

    def open_clips(config: str, split: str, data_dir: Path) -> list[Clip]:
        asked.append(split)
        return clips(cameras=False, known=False)[:1]

    monkeypatch.setattr("simspine_jax.datasets.open_clips", open_clips)
    written: list[CardFacts] = []
    monkeypatch.setattr(
        "simspine_jax.viz.dataset_card.write_card", lambda out, found, facts: written.append(facts) or [out]
    )
    assert commands.card(parsed("-o", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"))) == 0
    assert asked == ["train+test"]
    assert written == [
        CardFacts("simspine/synthetic", "1.0.0", "None at all", "Made up.", "https://example.org")
    ]


@pytest.mark.parametrize("broken", [{"splits": []}, {"splits": "none"}])
def test_a_damaged_description_is_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    described(tmp_path, **broken)
    with pytest.raises(FileFormatError, match=r"dataset_info\.json: it lists no splits"):
        commands.card(parsed("-o", str(tmp_path / "out"), "--data-dir", str(tmp_path)))
