"""`simspine simulate` and `validate` from detections to annotations."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from simspine_jax.annotations import Quality
from simspine_jax.capture import capture_trial, make_subject
from simspine_jax.cli import main
from simspine_jax.errors import SimspineError
from simspine_jax.io import MarkerTrajectory, read_sto, read_trc, write_trc
from simspine_jax.io.keypoints import (
    Keypoints2D,
    read_keypoints_npz,
    write_keypoints_npz,
    write_openpose_folder,
)
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.release import read_release
from simspine_jax.io.trials import read_quality_csv, read_trial
from simspine_jax.kinematics.isolated import SCALING_PREFIX
from simspine_jax.pipeline.spine import converted_spine
from simspine_jax.skeleton import AXIS_NAMES, LUMBAR_LEVELS, LUMBAR_MOTIONS, REGIONS, TRC_NAMES

DEMO = Path(__file__).resolve().parents[3] / "shared" / "data" / "pose2sim_demo"
SYNTHETIC = ("--synthetic", "--subjects", "S1", "--actions", "Walking", "Greeting", "--seconds", "1.2")
SIX = ("--synthetic", "--subjects", "S1", "S5", "--actions", "Walking", "Greeting", "Sitting")

MOST_SECONDS = 300  # of a run that has to compile everything, on two cores that others use as well

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


def test_what_is_missing_is_done_anew_and_what_is_half_written_is_swept(synthetic: Path) -> None:
    before, layout = contents(synthetic), ReleaseLayout(synthetic)
    layout.hdf5.unlink()
    layout.model("S1").unlink()
    layout.trial("S1", "Greeting").with_suffix(".json").unlink()
    layout.trial("S1", "Walking").with_name(f".{'0' * 32}.tmp").write_bytes(b"half")
    scaling = synthetic / "models" / f"{SCALING_PREFIX}half"
    scaling.mkdir()
    (scaling / "scaled.osim").write_text("<half")
    assert simulate(*SYNTHETIC, "--out", synthetic, "--quiet") == 0
    assert contents(synthetic) == before
    assert not scaling.exists()


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


# --- killed, and on several devices: in processes of their own ---


def six_trials(out: Path) -> list[str]:
    """A command's words for six trials of two subjects; without .osim files, which take long."""
    words = ("simulate", *SIX, "--seconds", 1.2, "--model", converted_spine(), "--quiet", "--out", out)
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six trials, done in this process."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert main(six_trials(out)) == 0
    return out


def kill_when_there(out: Path, path: str) -> None:
    """Starts a run of the installed command and kills it as soon as it has written a file."""
    script = Path(sys.executable).with_name("simspine")
    child = subprocess.Popen([script, *six_trials(out)])
    deadline = time.monotonic() + MOST_SECONDS
    try:
        while child.poll() is None and not (out / path).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert (out / path).exists()


@pytest.mark.parametrize(
    ("path", "records"),
    [
        pytest.param("markers/S1/S1_Walking.trc", 0, id="first file", marks=pytest.mark.slow),
        pytest.param("trials/S1/S1_Walking.json", 1, id="first record"),
        pytest.param("cameras/Calib_S5.toml", 3, id="first subject", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    undisturbed: Path, tmp_path: Path, path: str, records: int
) -> None:
    kill_when_there(tmp_path, path)
    assert records <= sum(is_record(name) for name in contents(tmp_path)) < 6
    assert not ReleaseLayout(tmp_path).hdf5.exists()
    complete = [file for file in tmp_path.rglob("S1_*") if file.is_file()] if records == 3 else []
    times = [file.stat().st_mtime_ns for file in complete]
    assert main(six_trials(tmp_path)) == 0
    assert contents(tmp_path) == contents(undisturbed)
    assert [file.stat().st_mtime_ns for file in complete] == times


def is_record(name: str) -> bool:
    return name.startswith("trials/") and name.endswith(".json")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [None, 8])
def test_two_devices_give_the_same_as_one(undisturbed: Path, tmp_path: Path, threads: int | None) -> None:
    """Three trials a subject, so that one place stays empty; with as many threads as cores, and to spare."""
    code = (
        "import sys; from simspine_jax.cli import main; status = main(sys.argv[1:]); "
        "import jax; print(jax.device_count()); sys.exit(status)"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    if threads is not None:
        environment["NPROC"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-c", code, *six_trials(tmp_path)],
        env=environment, check=True, timeout=MOST_SECONDS, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "2"
    names = {name for name in contents(undisturbed) if is_record(name)}
    assert {name for name in contents(tmp_path) if is_record(name)} == names
    for name in names:
        one, two = (read_trial((out / name).with_suffix(".npz")) for out in (undisturbed, tmp_path))
        np.testing.assert_allclose(two.keypoints, one.keypoints, rtol=0, atol=1e-4)


# --- other treatments ---


def test_the_official_preset_writes_the_same_files_and_holds_the_lumbar_spine(
    synthetic: Path, tmp_path: Path
) -> None:
    """Its coordinate task on L5-S1 flexion outweighs the markers (ours follows them)."""
    assert simulate(*SYNTHETIC, "--preset", "official", "--out", tmp_path, "--quiet") == 0
    assert contents(tmp_path).keys() == contents(synthetic).keys()
    assert json.loads(ReleaseLayout(tmp_path).model("S1").with_suffix(".json").read_text())["mass_kg"] == 70
    flexion = AXIS_NAMES.index("L5_S1_Flex_Ext")
    for action in ("Walking", "Greeting"):
        ours, theirs = (read_trial(ReleaseLayout(x).trial("S1", action)) for x in (synthetic, tmp_path))
        assert np.nanmedian(np.linalg.norm(theirs.keypoints - ours.keypoints, axis=-1)) > 0.005
        assert np.std(theirs.coordinates[:, flexion]) < 0.2 * np.std(ours.coordinates[:, flexion])
        truth = read_trial(tmp_path / "truth" / "S1" / f"S1_{action}.npz").keypoints
        assert spine_error(theirs.keypoints, truth) < spine_error(theirs.triangulated, truth)


def off_rhythm(model, out: Path, action: str) -> np.ndarray:
    """[3] the farthest that written lumbar angles are from the couplers' line about each axis, degrees."""
    trial, farthest = read_trial(ReleaseLayout(out).trial("S1", action)), []
    for motion in LUMBAR_MOTIONS:
        names = [f"{level}_{motion}" for level in LUMBAR_LEVELS]
        rows = model.coordinate_map.full_matrix[[model.coordinate_names.index(name) for name in names]]
        line = rows[:, [model.free_names.index(names[0])]]
        angles = trial.coordinates[:, [AXIS_NAMES.index(name) for name in names]]
        on_line = angles @ line @ line.T / (line.T @ line)
        farthest.append(np.degrees(np.abs(angles - on_line)).max())
    return np.array(farthest)


@pytest.mark.slow
def test_the_lumbar_stiffness_brings_free_levels_back_to_the_couplers(
    synthetic: Path, tmp_path: Path, spine_model
) -> None:
    """1e3 is a hundred thousand times the default; float32 in radians keeps 1e-5 degrees of an angle."""
    for how in ("free", "1e3"):
        assert simulate(*SYNTHETIC, "--lumbar", how, "--out", tmp_path / how, "--quiet") == 0
    for action in ("Walking", "Greeting"):
        coupled, free, stiff = (
            off_rhythm(spine_model, out, action) for out in (synthetic, tmp_path / "free", tmp_path / "1e3")
        )
        assert coupled.max() < 1e-6
        assert free.min() > 0.05
        assert free[LUMBAR_MOTIONS.index("Flex_Ext")] > 0.3
        assert 1e-6 < stiff.max() < 1e-4
        truth = read_trial(tmp_path / "free" / "truth" / "S1" / f"S1_{action}.npz").keypoints
        errors = [
            spine_error(read_trial(ReleaseLayout(out).trial("S1", action)).keypoints, truth)
            for out in (synthetic, tmp_path / "free", tmp_path / "1e3")
        ]
        assert np.ptp(errors) < 0.5


# --- many trials ---


RATES = (50, 100, 50, 50, 100, 50, 100, 50, 100)
"""Of nine trials: a subject's first eight are solved together, in calls of up to four of one rate."""
ALONE = (4, 7, 8, 9)
"""Trials with neighbours in their call, without any beside an empty place, and in the second group."""


@pytest.fixture(scope="module")
def many(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine trials at two rates, and some of them each as a subject of its own.

    They have 60 frames, but for the second, which is the first one with a frame more between each two.
    """
    folder = tmp_path_factory.mktemp("many")
    tables = {}
    for number, rate in enumerate(RATES, start=1):
        seed = 1 if number == 2 else number
        body = read_trc(ReleaseLayout(synthetic).markers("S1", "Walking" if seed % 2 else "Greeting"))
        noisy = body.positions + np.random.default_rng(seed).normal(0, 0.005, body.positions.shape)
        times = np.arange(119 if number == 2 else 60) / rate
        positions = CubicSpline(body.times, noisy)(times)
        write_trc(folder / f"{number}.trc", MarkerTrajectory(body.names, times, positions, float(rate)))
        tables[number] = f'"Trial {number}"]\nmarkers = "{number}.trc"\n'
    manifest = "".join(f"[All.trials.{table}" for table in tables.values())
    manifest += "".join(f"[Alone{number}.trials.{tables[number]}" for number in ALONE)
    (folder / "study.toml").write_text(manifest)
    assert simulate_many(folder) == 0
    return folder


def simulate_many(folder: Path) -> int:
    """The model is not scaled, because all of a subject's trials scale it."""
    words = ("--manifest", folder / "study.toml", "--model", converted_spine(), "--scaled", "--quiet")
    return simulate(*words, "--out", folder / "out")


def test_trials_at_two_rates_keep_theirs_and_agree(many: Path) -> None:
    layout = ReleaseLayout(many / "out")
    trials = [read_trial(layout.trial("All", f"Trial {number}")) for number in range(1, 10)]
    assert [trial.rate_hz for trial in trials] == list(RATES)
    for trial in trials:
        np.testing.assert_allclose(np.diff(trial.times), 1 / trial.rate_hz, rtol=1e-6)
    apart = np.linalg.norm(trials[1].keypoints[::2] - trials[0].keypoints, axis=-1)
    # Measured: 0.15 and, five frames from the ends, 0.88 mm. With one rate for both it is 1.8 and 14 mm.
    assert 0 < np.nanmedian(apart) < 0.4e-3
    assert np.nanmax(apart[5:-5]) < 2.5e-3


@pytest.mark.parametrize("number", ALONE)
def test_a_trial_among_many_is_as_alone(many: Path, number: int) -> None:
    layout, action = ReleaseLayout(many / "out"), f"Trial {number}"
    among, alone = (read_trial(layout.trial(subject, action)) for subject in ("All", f"Alone{number}"))
    # Measured: 4e-7 m, float32's rounding in programs of other shapes.
    np.testing.assert_allclose(among.keypoints, alone.keypoints, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(among.quality, alone.quality)


@pytest.mark.parametrize(("lost", "redone"), [("Trial 9", [9]), ("Trial 2", range(1, 9))])
def test_a_group_is_done_anew_as_a_whole_and_the_other_stays(many: Path, lost: str, redone) -> None:
    out = many / "out"
    before, records = contents(out), [ReleaseLayout(out).trial("All", f"Trial {n}") for n in range(1, 10)]
    times = [path.stat().st_mtime_ns for path in records]
    ReleaseLayout(out).trial("All", lost).with_suffix(".json").unlink()
    assert simulate_many(many) == 0
    changed = [
        n for n, (path, t) in enumerate(zip(records, times, strict=True), 1) if path.stat().st_mtime_ns != t
    ]
    assert changed == list(redone)
    assert contents(out) == before


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
        (("--synthetic", "--seconds", "0.02"), "are 1 frames; valid is from 2"),
        *((("--synthetic", "--seconds", x), "seconds") for x in ("0", "-1", "nan", "inf")),
        *((("--synthetic", "--seed", x), "seed") for x in ("-1", str(2**32))),
    ],
)
def test_bad_words_end_in_one_sentence(tmp_path: Path, capsys, words, sentence: str) -> None:
    """One for all subjects and actions, before anything is written."""
    assert sentence in refused(capsys, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0, np.nan, np.inf])
def test_a_capture_of_no_length_is_refused(spine_model, seconds: float) -> None:
    subject = make_subject(spine_model, "S1")
    with pytest.raises(SimspineError, match=r"seconds is .*; valid is"):
        capture_trial(spine_model, subject, "Walking", seconds)


def test_a_capture_that_fails_is_told_in_one_sentence(tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise SimspineError("the floor is missing")

    monkeypatch.setattr("simspine_jax.pipeline.sources.capture_trial", fail)
    line = refused(capsys, *SYNTHETIC[:-4], "Walking", "--seconds", 1, "--out", tmp_path / "out")
    assert line == "simspine: error: trial S1 Walking: the floor is missing"
