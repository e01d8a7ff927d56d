"""`simspine ik` from files to files: results, resuming, broken trials, killed runs."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.cli import format_trial, main, read_weights
from simspine_jax.errors import SimspineError
from simspine_jax.io import MarkerTrajectory, Storage, read_sto, read_trc, write_sto, write_trc
from simspine_jax.pipeline import LEAST_PADDED_FRAMES, find_trials, padded_size

RATE_HZ = 50.0
N_FRAMES = 24


def run(*words: object) -> int:
    return main([str(word) for word in words])


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("simspine: error: ")
    return lines[0]


@pytest.fixture(scope="session")
def arm_model(arm_osim: Path) -> ssj.SpineModel:
    return ssj.load_model(arm_osim)


def arm_motion(model: ssj.SpineModel, seed: int, n_frames: int = N_FRAMES) -> np.ndarray:
    """[T Q] slow sines of half a radian or decimetre."""
    random_ = np.random.default_rng(seed)
    phase = random_.uniform(0, 2 * np.pi, model.n_free)
    return 0.4 * np.sin(2 * np.pi * np.arange(n_frames)[:, None] / RATE_HZ + phase)


@pytest.fixture
def write_trial(arm_model: ssj.SpineModel, tmp_path: Path):
    """Writes the markers of a motion; returns the file and the true coordinates."""

    def write(
        name: str, seed: int = 0, names=None, gaps=(), n_frames: int = N_FRAMES
    ) -> tuple[Path, np.ndarray]:
        q = arm_motion(arm_model, seed, n_frames)
        positions = np.array(ssj.forward_kinematics(arm_model, q).markers)
        for frame, marker in gaps:
            positions[frame, marker] = np.nan
        trajectory = MarkerTrajectory(
            arm_model.marker_names, np.arange(n_frames) / RATE_HZ, positions, RATE_HZ
        )
        path = tmp_path / "trials" / f"{name}.trc"
        write_trc(path, trajectory if names is None else trajectory.select(names))
        return path, q

    return write


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the timing, by their path inside the folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "timing.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("bits", [32, 64])
def test_ik_finds_the_motion_and_writes_everything(
    arm_osim, arm_model, write_trial, tmp_path, bits, capsys
) -> None:
    path, q = write_trial("walk")
    words = ("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path, "--precision", bits)
    assert run(*words) == 0
    told = capsys.readouterr()
    assert "walk: 24 frames (24 converged)" in told.out
    assert "iterations a frame ->" in told.out
    assert told.err == ""
    folder = tmp_path / "walk"
    assert sorted(p.name for p in folder.iterdir()) == [
        "summary.json",
        "timing.json",
        "walk.mot",
        "walk_ik_marker_errors.sto",
        "walk_ik_model_marker_locations.sto",
        "walk_model_markers.trc",
    ]
    motion = read_sto(folder / "walk.mot")
    assert motion.columns == arm_model.coordinate_names
    turn = np.where(arm_model.rotational, 180 / np.pi, 1.0)
    true = np.asarray(ssj.expand_coordinates(arm_model, q)) * turn
    # The solver stops when a step promises 1e-5 of the objective, and the default prior pulls a little.
    np.testing.assert_allclose(motion.data, true, atol=0.2)
    errors = read_sto(folder / "walk_ik_marker_errors.sto")
    assert errors.columns == ("total_squared_error", "marker_error_RMS", "marker_error_max")
    assert (errors.column("marker_error_RMS") < 1e-3).all()
    assert (errors.column("marker_error_max") >= errors.column("marker_error_RMS")).all()
    locations = read_sto(folder / "walk_ik_model_marker_locations.sto")
    assert locations.columns[:3] == ("trunk.0_tx", "trunk.0_ty", "trunk.0_tz")
    np.testing.assert_array_equal(
        locations.data.reshape(N_FRAMES, -1, 3), read_trc(folder / "walk_model_markers.trc").positions
    )


def test_opensim_opens_the_motion(arm_osim, write_trial, tmp_path: Path) -> None:
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    path, _ = write_trial("walk", gaps=[(3, slice(None))])
    assert run("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path, "--quiet") == 0
    ours = read_sto(tmp_path / "walk" / "walk.mot")
    table = osim.TimeSeriesTable(str(tmp_path / "walk" / "walk.mot"))
    assert tuple(table.getColumnLabels()) == ours.columns
    np.testing.assert_array_equal(table.getMatrix().to_numpy(), ours.data)
    assert osim.Storage(str(tmp_path / "walk" / "walk.mot")).getSize() == N_FRAMES - 1


def test_frames_without_markers_have_no_row_and_are_listed(arm_osim, write_trial, tmp_path, capsys) -> None:
    path, _ = write_trial("walk", gaps=[(0, slice(None)), (5, slice(1, None)), (7, 2)])
    assert run("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path) == 0
    assert "2 too few markers" in capsys.readouterr().out
    summary = json.loads((tmp_path / "walk" / "summary.json").read_text())
    assert summary["frames_without_pose"] == [0, 5]
    motion = read_sto(tmp_path / "walk" / "walk.mot")
    assert motion.n_frames == N_FRAMES - 2
    assert np.isfinite(motion.data).all()
    present = read_trc(tmp_path / "walk" / "walk_model_markers.trc").present
    assert np.flatnonzero(~present.all(axis=1)).tolist() == [0, 5]
    rows = {row["name"]: row["frames"] for row in summary["markers"]}
    assert rows["trunk.0"] == N_FRAMES - 2
    assert rows["trunk.2"] == N_FRAMES - 3


def test_names_that_only_one_side_has_are_told(arm_osim, arm_model, write_trial, tmp_path, capsys) -> None:
    path, _ = write_trial("walk", names=arm_model.marker_names[:-1])
    text = path.read_text().replace("humerus.2", "sternum")
    path.write_text(text)
    assert run("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path) == 0
    told = capsys.readouterr().out
    assert "in the file but not in the model, ignored: sternum" in told
    assert "in the model but not in the file: humerus.2, hand.2" in told
    assert "did you mean" not in told


def test_a_misspelt_marker_is_told_with_the_one_meant(arm_osim, write_trial, tmp_path, capsys) -> None:
    path, _ = write_trial("walk")
    path.write_text(path.read_text().replace("trunk.0", "trnk0"))
    assert run("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path) == 0
    assert "  trnk0: did you mean trunk.0?\n" in capsys.readouterr().out


def test_times_are_cut(arm_osim, write_trial, tmp_path: Path, capsys) -> None:
    path, _ = write_trial("walk")
    words = ("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path, "--time")
    assert run(*words, 0.1, 0.2) == 0
    assert read_sto(tmp_path / "walk" / "walk.mot").times.tolist() == pytest.approx(
        [0.1, 0.12, 0.14, 0.16, 0.18, 0.2]
    )
    capsys.readouterr()
    assert run(*words, 5, 6) == 2
    assert "it has 0 to 0.46 s" in capsys.readouterr().err
    assert run(*words, 1, 0) == 2
    assert "The times to solve are 1 to 0 s" in capsys.readouterr().err


def test_a_setup_tells_what_it_leaves_out_and_names_otherwise(
    arm_osim, arm_model, write_trial, tmp_path: Path, capsys
) -> None:
    path, _ = write_trial("walk")
    tasks = "".join(
        f'<IKMarkerTask name="{m}"><weight>1</weight></IKMarkerTask>' for m in arm_model.marker_names
    )
    setup = tmp_path / "ik.xml"

    def solve(model: str, markers: str, *more: object) -> tuple[str, str]:
        setup.write_text(
            f"<InverseKinematicsTool><IKTaskSet><objects>{tasks}</objects></IKTaskSet><time_range>0 0.2"
            f"</time_range><model_file>{model}</model_file><marker_file>{markers}</marker_file>"
            "</InverseKinematicsTool>"
        )
        words = ("ik", "--model", arm_osim, "--markers", path, "--setup", setup, "--out", tmp_path / "out")
        assert run(*words, *more) == 0
        told = capsys.readouterr()
        return told.out, told.err

    out, err = solve("../other.osim", "C:\\data\\run.trc")
    assert "--time, or the setup's time_range, leaves out 13 of the file's 24 frames\n" in out
    assert f"ik.xml names the model ../other.osim; used is {arm_osim}\n" in err
    assert f"ik.xml names the marker file C:\\data\\run.trc; used is {path}\n" in err
    out, err = solve("models/arm.osim", "walk.trc", "--time", 0, 1)
    assert "leaves out" not in out
    assert err == ""


@pytest.mark.parametrize(("factor", "names"), [(1e3, None), (1e-3, None), (0.01, 3), (10, None)])
def test_markers_in_other_units_than_the_header_says_are_refused(
    arm_osim, arm_model, write_trial, tmp_path: Path, capsys, factor: float, names: int | None
) -> None:
    path, _ = write_trial("walk", names=arm_model.marker_names[:names])
    words = ("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path)
    assert run(*words, "--quiet") == 0
    right = read_trc(path)
    centre = right.positions.mean(axis=(0, 1))
    positions = factor * (right.positions - centre) + centre
    write_trc(path, MarkerTrajectory(right.names, right.times, positions, RATE_HZ))
    assert run(*words) == 2
    told = last_error(capsys)
    assert "trial walk: walk.trc: its markers lie" in told
    shown = float(told.partition("a factor of ")[2].partition(";")[0])
    # The trial's pose is not the default one, and its size differs a little.
    assert shown == pytest.approx(max(factor, 1 / factor), rel=0.4)
    assert "correct its Units" in told


def test_weights_change_the_result(arm_osim, write_trial, tmp_path: Path, capsys) -> None:
    path, _ = write_trial("walk")
    # One marker is 5 cm off: with weight 0 the others fit exactly.
    trajectory = read_trc(path)
    positions = trajectory.positions.copy()
    positions[:, 0, 0] += 0.05
    write_trc(path, MarkerTrajectory(trajectory.names, trajectory.times, positions, RATE_HZ))
    rms = {}
    for weight in ("1", "0"):
        out = tmp_path / weight
        words = ("ik", "--model", arm_osim, "--markers", path, "--out", out, "--weights", f"trunk.0={weight}")
        assert run(*words, "--quiet") == 0
        rms[weight] = read_sto(out / "walk" / "walk_ik_marker_errors.sto").column("marker_error_RMS").max()
    assert rms["0"] < 1e-3 < rms["1"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("option", "weight"), [("--smooth-velocity", 1e-4), ("--smooth-acceleration", 1e-7)])
def test_smoothing_takes_noise_away(
    arm_osim, write_trial, tmp_path: Path, option: str, weight: float
) -> None:
    path, _ = write_trial("walk")
    trajectory = read_trc(path)
    noise = np.random.default_rng(0).normal(0, 0.005, trajectory.positions.shape)
    write_trc(
        path, MarkerTrajectory(trajectory.names, trajectory.times, trajectory.positions + noise, RATE_HZ)
    )
    roughness = {}
    for value in (0, weight, 100 * weight):
        words = ("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path / str(value), "--quiet")
        assert run(*words, option, value) == 0
        motion = read_sto(tmp_path / str(value) / "walk" / "walk.mot")
        roughness[value] = np.square(np.diff(motion.column("elbow"), 2)).mean()
    assert roughness[0] > 1.5 * roughness[weight] > 1.5 * 1.5 * roughness[100 * weight]


def test_weights_come_from_words_and_files(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"a": 2, "b=c": 0.5}')
    (tmp_path / "w.csv").write_text("a,3\nd,4\n")
    words = [str(tmp_path / "w.json"), str(tmp_path / "w.csv"), "d=5"]
    assert read_weights(words) == (("a", 3.0), ("b=c", 0.5), ("d", 5.0))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.json", "["),
        ("w.json", "[1]"),
        ("w.json", '{"a": "x"}'),
        ("w.csv", "a"),
        ("w.csv", "a,x"),
        ("w.txt", "a=1"),
    ],
)
def test_bad_weights_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SimspineError, match="valid"):
        read_weights([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--weights", "knee=1"], "Marker 'knee' is not in the model arm; it has: trunk.0"),
        (["--weights", "trunk.0=-1"], "zero or more"),
        (["--weights", "trunk.0=nan"], "zero or more"),
        (["--smooth-velocity", "-1"], "zero or more"),
        (["--setup", "none.xml"], "none.xml"),
        (["--marker-set", "none.xml"], "none.xml"),
        (["--model", "none.osim"], "none.osim"),
        (["--model", "none.xml"], "none.xml"),
        (["--markers", "none*.trc"], "holds no marker files"),
        (["--weights", "trunk0=1"], "did you mean 'trunk.0'? It has: trunk.0"),
    ],
)
def test_bad_options_are_refused(arm_osim, write_trial, tmp_path: Path, words, says: str, capsys) -> None:
    path, _ = write_trial("walk")
    assert run("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path / "out", *words) == 2
    assert says in last_error(capsys)


def test_an_output_that_is_no_folder_is_refused_before_anything_is_solved(
    arm_osim, write_trial, tmp_path: Path, capsys, monkeypatch
) -> None:
    path, _ = write_trial("walk")
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("simspine_jax.pipeline.run_trials", None)
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert run("ik", "--model", arm_osim, "--markers", path, "--out", out) == 2
        assert str(out) in last_error(capsys)


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupt_tells_how_far_the_run_is(
    arm_osim, write_trial, tmp_path: Path, capsys, monkeypatch, force: bool
) -> None:
    from simspine_jax.pipeline import run_trials

    def interrupted(loaded, trials, *rest, **more):
        yield from run_trials(loaded, trials[:2], *rest, **more)
        raise KeyboardInterrupt

    good, _ = write_trial("a")
    (good.parent / "b.trc").write_text("")  # fails
    write_trial("c")
    monkeypatch.setattr("simspine_jax.pipeline.run_trials", interrupted)
    words = ["ik", "--model", arm_osim, "--markers", good.parent, "--out", tmp_path / "out"]
    assert run(*words, *["--force"] * force) == 130
    again = "the same command without --force" if force else "the same command"
    told = f"simspine: interrupted: 1 of 3 trials are complete, and {again} continues\n"
    assert capsys.readouterr().err == told


def test_columns_stay_apart_and_the_seconds_say_what_is_in_them() -> None:
    from simspine_jax.pipeline import MarkerError, TrialResult

    rows = (
        MarkerError("a long name", 123456.5, 1234567.8, 12345678.9, 100_000),
        MarkerError("b", 0, 1, 2, 3),
    )
    result = TrialResult("walk", Path("out"), 100_000, (), 7, (), rows, (), (), seconds=2.0, compiled=True)
    first, *table = format_trial(result).splitlines()
    assert "2.00 s, compiling included" in first
    assert "50000 frames/s" in format_trial(dataclasses.replace(result, compiled=False))
    cells = [re.split(r"  +", line.strip()) for line in table]
    assert cells == [
        ["marker", "weight", "RMS mm", "max mm", "frames"],
        ["a long name", "1.235e+05", "1234567.80", "12345678.90", "100000"],
        ["b", "0", "1.00", "2.00", "3"],
        ["all of weight > 0", "1234567.80", "12345678.90"],
    ]


def test_the_first_trial_of_a_size_says_that_it_was_compiled(arm_osim, write_trial, tmp_path, capsys) -> None:
    jax.clear_caches()
    for i in range(2):
        path, _ = write_trial(f"trial{i}", seed=i)
    words = ("ik", "--model", arm_osim, "--markers", path.parent, "--out", tmp_path)
    assert run(*words) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("trial"))
    assert "compiling included" in first
    assert "frames/s" in second


def test_the_summary_tells_people_what_was_done(arm_osim, write_trial, tmp_path: Path) -> None:
    path, _ = write_trial("walk")
    words = ("ik", "--model", arm_osim, "--markers", path, "--out", tmp_path, "--quiet")
    assert run(*words, "--weights", "trunk.0=2", "--time", 0.1, 9, "--smooth-velocity", 1e-4) == 0
    summary = json.loads((tmp_path / "walk" / "summary.json").read_text())
    assert summary["frames_left_out"] == 5
    assert summary["provenance"] == {
        "model": "arm.osim", "marker_set": None, "markers": "walk.trc", "setup": None, "coordinates": None,
        "weights": {"trunk.0": 2.0}, "first_time_s": 0.1, "last_time_s": 0.46, "smooth_velocity": 1e-4,
        "smooth_acceleration": 0.0, "precision": 32,
    }  # fmt: skip


def setup_from_file(folder: Path, arm_model: ssj.SpineModel, coordinate_file: str = "") -> Path:
    """A setup that pulls the elbow to a file, hard, and the shoulder to its default, a little."""
    tasks = "".join(
        f'<IKMarkerTask name="{m}"><weight>1</weight></IKMarkerTask>' for m in arm_model.marker_names
    )
    for name, weight, kind in (("shoulder", 1e-6, "default_value"), ("elbow", 1e4, "from_file")):
        inside = f"<weight>{weight}</weight><value_type>{kind}</value_type>"
        tasks += f'<IKCoordinateTask name="{name}">{inside}</IKCoordinateTask>'
    text = f"<InverseKinematicsTool><IKTaskSet><objects>{tasks}</objects></IKTaskSet>{coordinate_file}"
    (folder / "ik.xml").write_text(f"{text}</InverseKinematicsTool>")
    return folder / "ik.xml"


def write_elbow(path: Path, times: np.ndarray, degrees: np.ndarray, in_degrees: bool | None = True) -> Path:
    write_sto(path, Storage("Coordinates", ("elbow",), times, degrees[:, None], in_degrees))
    return path


@pytest.mark.parametrize("named_by", ["setup", "option"])
def test_tasks_take_their_values_from_a_file(
    arm_osim, arm_model, write_trial, tmp_path: Path, named_by
) -> None:
    path, _ = write_trial("walk")
    # Rows at other times than the trial's, on a line, which linear interpolation keeps.
    write_elbow(tmp_path / "elbow.mot", np.array([-0.1, 0.21, 0.6]), np.array([-10.0, 21.0, 60.0]))
    name = "<coordinate_file>elbow.mot</coordinate_file>" if named_by == "setup" else ""
    words = ["ik", "--model", arm_osim, "--markers", path, "--out", tmp_path / "out", "--quiet"]
    words += ["--setup", setup_from_file(tmp_path, arm_model, name)]
    words += ["--coordinates", tmp_path / "elbow.mot"] if named_by == "option" else []
    assert run(*words) == 0
    motion = read_sto(tmp_path / "out" / "walk" / "walk.mot")
    # The task outweighs the markers 10,000 to 1.
    np.testing.assert_allclose(motion.column("elbow"), 100 * motion.times, atol=0.05)
    # The file counts by its content: another one is another input.
    write_elbow(tmp_path / "elbow.mot", np.array([-0.1, 0.6]), np.array([5.0, 5.0]))
    assert run(*words) == 0
    np.testing.assert_allclose(read_sto(tmp_path / "out" / "walk" / "walk.mot").column("elbow"), 5, atol=0.05)


@pytest.mark.parametrize(
    ("times", "values", "in_degrees", "says"),
    [
        (None, None, None, "names none; valid is a coordinate_file in it, or --coordinates FILE"),
        ([0.0, 0.3], [0.0, 0.0], True, "has 0 to 0.3 s, which does not cover"),
        ([0.0, 0.2, 0.5], [0.0, np.nan, 0.0], True, "has no value of elbow at 0.02 s"),
        ([0.0, 0.5], [0.0, 0.0], None, "--in-degrees yes or no"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    arm_osim, arm_model, write_trial, tmp_path: Path, capsys, times, values, in_degrees, says
) -> None:
    path, _ = write_trial("walk")
    words = ["ik", "--model", arm_osim, "--markers", path, "--out", tmp_path / "out"]
    words += ["--setup", setup_from_file(tmp_path, arm_model)]
    if times is not None:
        file = write_elbow(tmp_path / "elbow.mot", np.array(times), np.array(values), in_degrees)
        words += ["--coordinates", file]
    assert run(*words) == 2
    assert says in last_error(capsys)


def test_values_that_nothing_takes_are_refused(arm_osim, write_trial, tmp_path: Path, capsys) -> None:
    path, _ = write_trial("walk")
    words = ["ik", "--model", arm_osim, "--markers", path, "--out", tmp_path / "out"]
    assert run(*words, "--coordinates", tmp_path / "elbow.mot") == 2
    assert "Nothing takes values from" in last_error(capsys)


def test_a_broken_trial_is_told_at_the_end_and_the_rest_is_done(
    arm_osim, write_trial, tmp_path, capsys
) -> None:
    good, _ = write_trial("b_good")
    folder = good.parent
    (folder / "a_empty.trc").write_text("")
    (folder / "c_cut.trc").write_text(good.read_text()[:400])
    write_trial("d_gone", gaps=[(slice(None), slice(None))])
    (folder / "e_other.trc").write_text(good.read_text().replace("trunk", "x").replace("hand", "y")
                                        .replace("humerus", "z").replace("radius", "w"))  # fmt: skip
    (folder / "notes.txt").write_text("not a trial")
    assert run("ik", "--model", arm_osim, "--markers", folder, "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line.split(":")[2].strip() for line in lines] == [
        "trial a_empty", "trial c_cut", "trial d_gone", "trial e_other",
    ]  # fmt: skip
    assert "share 0 markers" in lines[3]
    assert "the model has: trunk.0" in lines[3]
    assert "b_good: 24 frames" in told.out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b_good"]


def test_a_second_run_does_nothing_until_an_input_changes(
    arm_osim, write_trial, tmp_path: Path, capsys
) -> None:
    path, _ = write_trial("walk")
    words = ["ik", "--model", arm_osim, "--markers", path, "--out", tmp_path / "out"]
    motion = tmp_path / "out" / "walk" / "walk.mot"

    def again(*more: object, changed: bool = False) -> bool:
        before = motion.stat().st_mtime_ns if motion.exists() else 0
        assert run(*words, *more) == 0
        told = capsys.readouterr().out
        assert changed == ("options or inputs changed since the last run: solved anew" in told)
        redone = not motion.exists() or motion.stat().st_mtime_ns != before
        assert redone != ("complete already" in told)
        return redone

    assert again()
    first = contents(tmp_path / "out")
    assert not again()
    assert again("--force")
    assert contents(tmp_path / "out") == first
    assert again("--weights", "trunk.0=2", changed=True)
    assert again("--precision", 64, changed=True)
    assert again("--time", 0, 0.2, changed=True)
    assert again(changed=True)
    assert contents(tmp_path / "out") == first
    (tmp_path / "out" / "walk" / "walk_ik_marker_errors.sto").unlink()
    assert again()
    (tmp_path / "out" / "walk" / "summary.json").write_text("{}")
    assert again()
    write_trial("walk", seed=1)
    assert again(changed=True)


def test_the_setup_counts_by_its_content(shared_data: Path, tmp_path: Path, capsys) -> None:
    data = shared_data / "gait2392"
    setup = tmp_path / "setup.xml"
    shutil.copy(data / "IK_Setup.xml", setup)
    words = [
        "ik",
        "--model",
        data / "model.osim",
        "--markers",
        data / "markers.trc",
        "--out",
        tmp_path,
        "--setup",
        setup,
    ]
    assert run(*words) == 0
    setup.write_text(setup.read_text() + "<!-- the same tasks -->\n")
    assert run(*words) == 0
    assert "complete already" in capsys.readouterr().out
    motion = read_sto(tmp_path / "markers" / "markers.mot")
    reference = read_sto(data / "ik_opensim46_acc1e-9.mot")
    np.testing.assert_array_equal(motion.times, reference.times)
    # float32 and a tolerance of 1e-5 of the objective, against OpenSim at 1e-9; worst in the flat ankle.
    np.testing.assert_allclose(motion.select(reference.columns).data, reference.data, atol=0.2)


def test_a_run_that_was_killed_resumes_to_the_same_bytes(arm_osim, write_trial, tmp_path: Path) -> None:
    """Kill -9 at random moments while trials are being written, then let a run end."""
    n_trials = 8
    for i in range(n_trials):
        path, _ = write_trial(f"trial{i}", seed=i)
    words = [sys.executable, "-m", "simspine_jax.cli", "ik", "--model", arm_osim, "--markers", path.parent]
    words += ["--precision", "32", "--quiet", "--out"]
    assert run(*words[3:], tmp_path / "whole") == 0
    out, random_ = tmp_path / "out", random.Random(0)
    left = []
    for done in (0, 2, 4):
        child = subprocess.Popen([*map(str, words), str(out)])
        while child.poll() is None and len(list(out.glob("*/summary.json"))) < done + 1:
            time.sleep(0.001)
        time.sleep(random_.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        child.wait()
        left.append(len(list(out.glob("*/summary.json"))))
    assert any(0 < complete < n_trials for complete in left), left
    # What a kill between two writes leaves: files without a summary, and a temporary one.
    (out / "trial0" / "summary.json").unlink()
    (out / "trial0" / f".{'0' * 32}.tmp").write_text("half")
    (out / "trial0" / "trial0.mot").write_text("half")
    subprocess.run([*words, out], check=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_c3d_trials_are_solved(arm_osim, write_trial, tmp_path: Path) -> None:
    pytest.importorskip("ezc3d")
    from simspine_jax.io import write_c3d

    path, _ = write_trial("walk")
    write_c3d(tmp_path / "walk.c3d", read_trc(path))
    for markers, out in ((path, "a"), (tmp_path / "walk.c3d", "b")):
        assert run("ik", "--model", arm_osim, "--markers", markers, "--out", tmp_path / out, "--quiet") == 0
    a, b = (read_sto(tmp_path / out / "walk" / "walk.mot").data for out in "ab")
    # C3D holds float32: 0.1 micrometres, seen through lever arms of centimetres.
    np.testing.assert_allclose(a, b, atol=1e-2)


def test_trials_are_found_in_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("s1/b.trc", "s1/a.TRC", "s1/c.c3d", "s1/n.txt", "s2/d.trc", "s2/b.trc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [p.name for p in find_trials([tmp_path / "s1"])] == ["a.TRC", "b.trc", "c.c3d"]
    names = [p.name for p in find_trials([tmp_path / "s2/d.trc", tmp_path / "s1"])]
    assert names == ["d.trc", "a.TRC", "b.trc", "c.c3d"]
    assert [p.name for p in find_trials([f"{tmp_path}/s?/[cd].*"])] == ["c.c3d", "d.trc"]
    assert len(find_trials([tmp_path / "s1/b.trc", tmp_path / "s1/b.trc"])) == 1
    with pytest.raises(SimspineError, match="two trials of one name"):
        find_trials([tmp_path / "s1", tmp_path / "s2"])
    with pytest.raises(SimspineError, match="holds no marker files"):
        find_trials([tmp_path])


def test_padding_wastes_at_most_a_quarter_and_has_few_sizes() -> None:
    sizes = {n: padded_size(n) for n in range(1, 5000)}
    assert all(n <= size for n, size in sizes.items())
    assert all(size <= max(LEAST_PADDED_FRAMES, 1.25 * n) for n, size in sizes.items())
    assert len(set(sizes.values())) < 35
