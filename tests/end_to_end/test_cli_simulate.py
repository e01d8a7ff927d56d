"""`simspine simulate` and `validate` from detections to annotations."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simspine_jax.annotations import Quality
from simspine_jax.cli import main
from simspine_jax.io import read_sto, read_trc, write_trc
from simspine_jax.io.keypoints import (
    Keypoints2D,
    read_keypoints_npz,
    write_keypoints_npz,
    write_openpose_folder,
)
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.release import read_release
from simspine_jax.io.trials import read_quality_csv, read_trial
from simspine_jax.skeleton import AXIS_NAMES, REGIONS, TRC_NAMES

DEMO = Path(__file__).resolve().parents[3] / "shared" / "data" / "pose2sim_demo"
SYNTHETIC = ("--synthetic", "--subjects", "S1", "--actions", "Walking", "Greeting", "--seconds", "1.2")

needs_demo = pytest.mark.skipif(not DEMO.is_dir(), reason="the real trials (../shared/data) are not here")


def simulate(*words: object) -> int:
    return main(["simulate", *(str(word) for word in words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def spine_error(found, true) -> float:
    """Mean error of the spine keypoints, mm."""
    ids = list(REGIONS["spine"])
    return float(1e3 * np.nanmean(np.linalg.norm(found[:, ids] - true[:, ids], axis=-1)))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic trials, simulated by the default preset."""
    out = tmp_path_factory.mktemp("synthetic")
    assert simulate(*SYNTHETIC, "--out", out, "--quiet") == 0
    return out


def test_the_model_brings_keypoints_nearer_to_the_truth(synthetic: Path) -> None:
    layout = ReleaseLayout(synthetic)
    for action in ("Walking", "Greeting"):
        trial = read_trial(layout.trial("S1", action))
        truth = read_trial(synthetic / "truth" / "S1" / f"S1_{action}.npz")
        before, after = (spine_error(x, truth.keypoints) for x in (trial.triangulated, trial.keypoints))
        assert before > 15  # the synthetic detector is as bad as the paper's
        assert after < 0.6 * before
        flexion = [i for i, name in enumerate(AXIS_NAMES) if name.endswith("Flex_Ext")]
        assert len(flexion) == 6
        error = np.degrees(trial.coordinates[:, flexion] - truth.coordinates[:, flexion])
        assert np.sqrt(np.mean(error**2, axis=0)).max() < 3
        assert trial.usable.all()
        assert 0 < np.degrees(np.abs(trial.vertebral_rotations)).max() < 90


def test_everything_is_written_and_agrees(synthetic: Path) -> None:
    layout = ReleaseLayout(synthetic)
    stored = read_trial(layout.trial("S1", "Walking"))
    (walking,) = read_release(layout.hdf5, subjects=["S1"], actions=["Walking"])
    np.testing.assert_array_equal(walking.keypoints, stored.keypoints)
    np.testing.assert_allclose(walking.coordinates, stored.coordinates, rtol=1e-12, atol=1e-15)
    trc = read_trc(layout.markers("S1", "Walking"))
    assert set(trc.names) == set(TRC_NAMES)
    np.testing.assert_allclose(trc.select(TRC_NAMES).positions, stored.keypoints, atol=1e-5)
    assert set(read_sto(layout.kinematics("S1", "Walking")).columns) == set(AXIS_NAMES)
    read_quality_csv(layout.quality("S1", "Walking"))
    about = json.loads(layout.model("S1").with_suffix(".json").read_text())
    assert 1.4 < about["height_m"] < 2.0
    record = json.loads(layout.trial("S1", "Walking").with_suffix(".json").read_text())
    assert all((synthetic / file).is_file() for file in record["files"])


def test_the_scaled_model_moves_as_the_annotations_say(synthetic: Path) -> None:
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    layout = ReleaseLayout(synthetic)
    trial = read_trial(layout.trial("S1", "Greeting"))
    model = osim.Model(str(layout.model("S1")))
    state = model.initSystem()
    for name, value in zip(AXIS_NAMES, trial.coordinates[7], strict=True):
        coordinate = model.getCoordinateSet().get(name)
        locked = coordinate.getLocked(state)
        coordinate.setLocked(state, False)
        coordinate.setValue(state, float(value), False)
        coordinate.setLocked(state, locked)
    model.realizePosition(state)
    markers = model.getMarkerSet()
    seen = 0
    for i in range(markers.getSize()):
        marker = markers.get(i)
        place = marker.getLocationInGround(state)
        expected = trial.keypoints[7, TRC_NAMES.index(marker.getName())]
        # float32 in the solve's forward kinematics, where positions are metres.
        np.testing.assert_allclose([place.get(k) for k in range(3)], expected, atol=5e-6)
        seen += 1
    assert seen == 33


def test_a_complete_run_does_nothing_and_force_redoes_the_same(synthetic: Path, capsys) -> None:
    before = contents(synthetic)
    times = {p: p.stat().st_mtime_ns for p in synthetic.rglob("*") if p.is_file()}
    assert simulate(*SYNTHETIC, "--out", synthetic) == 0
    assert capsys.readouterr().out.count("complete already") == 2
    assert {p: p.stat().st_mtime_ns for p in synthetic.rglob("*") if p.is_file()} == times
    assert simulate(*SYNTHETIC, "--out", synthetic, "--force", "--quiet") == 0
    assert contents(synthetic) == before


@pytest.mark.parametrize("moment", [0.55, 0.8, 0.95])
def test_a_killed_run_resumes_to_the_same_bytes(synthetic: Path, tmp_path: Path, moment: float) -> None:
    command = [str(Path(sys.executable).with_name("simspine")), "simulate", *SYNTHETIC, "--quiet", "--out"]
    began = time.perf_counter()
    first = subprocess.Popen([*command, str(tmp_path / "timed")])
    assert first.wait(300) == 0
    seconds = time.perf_counter() - began
    child = subprocess.Popen([*command, str(tmp_path / "out")])
    try:
        child.wait(moment * seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    assert subprocess.run([*command, str(tmp_path / "out")], check=False).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "timed")


def test_reports_pages_and_validation(synthetic: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("viser")
    assert simulate(*SYNTHETIC, "--out", synthetic, "--report", "--html", "--quiet") == 0
    folder = synthetic / "reports"
    pages = {str(p.relative_to(folder)) for p in folder.rglob("*.html")}
    assert pages == {
        "report.html", "S1/S1_Walking.html", "S1/S1_Walking_viewer.html", "S1/S1_Greeting.html",
        "S1/S1_Greeting_viewer.html",
    }  # fmt: skip
    assert "S1_Walking_viewer.html" in (folder / "S1" / "S1_Walking.html").read_text()
    for source in (synthetic, synthetic / "simspine.h5"):
        out = tmp_path / source.name
        assert main(["validate", str(source), "-o", str(out), "--formats", "csv", "png", "--quiet"]) == 0
        assert (out / "figure_3_thoracolumbar.png").stat().st_size > 10_000
        table = next((out / "tables").glob("*curvature*action*.csv")).read_text()
        assert "Walking" in table
        assert "Greeting" in table
    shutil.rmtree(folder)


# --- the real trial ---


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not DEMO.is_dir():
        pytest.skip("the real trials (../shared/data) are not here")
    out = tmp_path_factory.mktemp("real")
    words = ("--keypoints", DEMO / "keypoints_2d.npz", "--calibration", DEMO / "calibration.toml")
    assert simulate(*words, "--action", "Balancing", "--out", out, "--quiet") == 0
    return out


@needs_demo
def test_the_real_trial_of_four_cameras(real: Path) -> None:
    trial = read_trial(ReleaseLayout(real).trial("S1", "Balancing"))
    assert trial.n_frames == 100
    assert trial.rate_hz == 60
    assert trial.usable.mean() > 0.95
    assert len(trial.camera_names) == 4
    shared = [i for i, name in enumerate(TRC_NAMES) if np.isfinite(trial.triangulated[:, i]).any()]
    assert len(shared) == 25
    apart = np.linalg.norm(trial.keypoints - trial.triangulated, axis=-1)[:, shared]
    # The detector's 25 keypoints are not the model's markers: hips and shoulders are centimetres off.
    assert np.nanmean(apart) < 0.06
    step = np.linalg.norm(np.diff(trial.keypoints, axis=0), axis=-1)
    assert step.max() < 0.15  # nothing jumps: 9 m/s


@needs_demo
def test_openpose_folders_give_the_same(real: Path, tmp_path: Path) -> None:
    found = read_keypoints_npz(DEMO / "keypoints_2d.npz")
    write_openpose_folder(tmp_path / "pose", found)
    words = ("--keypoints", tmp_path / "pose", "--calibration", DEMO / "calibration.toml", "--rate", 60)
    names = (
        "--cameras-in-order",
        "--schema",
        "BODY_25B",
        "--action",
        "Balancing",
        "--out",
        tmp_path / "out",
        "--quiet",
    )
    assert simulate(*words, *names) == 0
    one, other = (read_trial(ReleaseLayout(x).trial("S1", "Balancing")) for x in (real, tmp_path / "out"))
    np.testing.assert_allclose(one.keypoints, other.keypoints, atol=1e-9)


# --- what is wrong ---


@pytest.fixture
def demo_keypoints() -> Keypoints2D:
    if not DEMO.is_dir():
        pytest.skip("the real trials (../shared/data) are not here")
    return read_keypoints_npz(DEMO / "keypoints_2d.npz")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert simulate(*words, "--quiet") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("simspine: error: ")
    return lines[0]


def changed(keypoints: Keypoints2D, path: Path, **changes) -> Path:
    fields = {name: getattr(keypoints, name) for name in keypoints.__dataclass_fields__}
    write_keypoints_npz(path, Keypoints2D(**{**fields, **changes}))
    return path


def test_bad_keypoints_end_in_one_sentence(demo_keypoints, tmp_path: Path, capsys) -> None:
    good, out = ("--calibration", DEMO / "calibration.toml"), ("--out", tmp_path / "out")
    path = tmp_path / "keypoints.npz"
    nothing = np.full_like(demo_keypoints.confidence, np.nan)
    cases = {
        "shows nobody": {"positions": np.full_like(demo_keypoints.positions, np.nan), "confidence": nothing},
        "not shares of it": {"positions": demo_keypoints.positions / 2000},
        "named like one of the calibration": {"camera_names": ("a", "b", "c", "d")},
    }
    for sentence, change in cases.items():
        line = refused(capsys, "--keypoints", changed(demo_keypoints, path, **change), *good, *out)
        assert sentence in line
        assert str(path) in line
    one = {
        "camera_names": demo_keypoints.camera_names[:1],
        "positions": demo_keypoints.positions[:, :1],
        "confidence": demo_keypoints.confidence[:, :1],
    }
    assert "two or more" in refused(capsys, "--keypoints", changed(demo_keypoints, path, **one), *good, *out)
    path.write_bytes(path.read_bytes()[:300])
    assert str(path) in refused(capsys, "--keypoints", path, *good, *out)
    path.write_bytes(b"")
    assert str(path) in refused(capsys, "--keypoints", path, *good, *out)
    assert "There is no file" in refused(capsys, "--keypoints", tmp_path / "none.npz", *good, *out)
    assert "--calibration" in refused(capsys, "--keypoints", DEMO / "keypoints_2d.npz", *out)


def test_a_calibration_in_other_units_is_noticed(demo_keypoints, tmp_path: Path, capsys) -> None:
    text = (DEMO / "calibration.toml").read_text().splitlines()
    scaled = []
    for line in text:
        key, _, value = line.partition("=")
        if key.strip() == "translation":
            numbers = [20 * float(x) for x in value.strip(" []").split(",")]
            line = f"translation = {numbers}"
        scaled.append(line)
    path = tmp_path / "calibration.toml"
    path.write_text("\n".join(scaled))
    words = ("--keypoints", DEMO / "keypoints_2d.npz", "--calibration", path, "--out", tmp_path / "out")
    assert "units" in refused(capsys, *words)


@pytest.mark.parametrize("fault", ["damaged", "missing", "few", "uneven"])
def test_a_broken_trial_does_not_stop_the_rest(synthetic: Path, tmp_path: Path, capsys, fault: str) -> None:
    """Two trials of body markers, of which one is broken in the file or only in what it holds."""
    good, bad = tmp_path / "good.trc", tmp_path / "bad.trc"
    shutil.copy(ReleaseLayout(synthetic).markers("S1", "Walking"), good)
    trajectory = read_trc(good)
    if fault == "damaged":
        bad.write_text("PathFileType\t4\n")
    elif fault == "few":
        write_trc(bad, trajectory.select(["Hip", "Neck"]))
    elif fault == "uneven":
        times = trajectory.times + np.where(np.arange(trajectory.n_frames) > 30, 0.5, 0)
        write_trc(bad, dataclasses.replace(trajectory, times=times))
    manifest = tmp_path / "study.toml"
    manifest.write_text(
        '[P1]\nheight_m = 1.7\n[P1.trials.Good]\nmarkers = "good.trc"\n[P1.trials.Bad]\nmarkers = "bad.trc"\n'
    )
    assert simulate("--manifest", manifest, "--out", tmp_path / "out", "--quiet") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert "P1 Bad" in lines[0]
    trial = read_trial(ReleaseLayout(tmp_path / "out").trial("P1", "Good"))
    before = read_trial(ReleaseLayout(synthetic).trial("S1", "Walking"))
    spine = list(REGIONS["spine"])
    assert np.abs(trial.keypoints - before.keypoints)[:, spine].max() < 0.03
    assert not (trial.quality & Quality.NO_POSE).any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# nothing", "names no subjects"),
        ("[S1", "is not TOML"),
        ("[S1]\n", "has no trials"),
        ('[S1]\nheight = 1.8\n[S1.trials.A]\nmarkers = "a.trc"\n', "has 'height'; valid are"),
        ('[S1]\nmass_kg = -1\n[S1.trials.A]\nmarkers = "a.trc"\n', "valid is a positive number"),
        ('[S1.trials.A]\nmarkers = "a.trc"\n', "There is no"),
    ],
)
def test_bad_manifests_end_in_one_sentence(tmp_path: Path, capsys, text: str, sentence: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    assert sentence in refused(capsys, "--manifest", path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Give either"),
        (("--synthetic", "--subjects", "S2"), "Subject 'S2' is not in the synthetic set"),
        (("--synthetic", "--preset", "best"), "Preset 'best' is not in the presets"),
        (("--synthetic", "--lumbar", "stiff"), "valid are 'coupled', 'free' and a stiffness"),
        (("--synthetic", "--smooth-acceleration", "-1"), "valid is a finite number from 0 on"),
        (("--synthetic", "--seconds", "0"), "valid is from 2"),
    ],
)
def test_bad_words_end_in_one_sentence(tmp_path: Path, capsys, words, sentence: str) -> None:
    one_action = ("--actions", "Walking") if "--seconds" in words else ()
    few = ("--subjects", "S1") if one_action else ()
    assert sentence in refused(capsys, *words, *one_action, *few, "--out", tmp_path / "out")
