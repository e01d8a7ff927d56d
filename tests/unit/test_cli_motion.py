"""`simspine convert`, `fk` and `motion`: what they write, and what bad input becomes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simspine_jax.cli import build_parser, main
from simspine_jax.io import Storage, read_sto, read_trc, write_sto

TIMES = (0.0, 0.02, 0.04)


def run(*words: object) -> int:
    return main([str(word) for word in words])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("simspine: error: ")
    return lines[0]


@pytest.fixture(scope="module")
def arm(arm_osim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    assert run("convert", arm_osim, "-o", folder) == 0
    return folder / "arm.xml"


@pytest.fixture
def write_mot(tmp_path: Path):
    def write(in_degrees: bool | None = True, **columns: tuple[float, ...]) -> Path:
        path = tmp_path / "in.mot"
        table = np.array(list(columns.values())).T
        write_sto(path, Storage("Coordinates", tuple(columns), TIMES, table, in_degrees))
        return path

    return write


SWING = {"shoulder": (10.0, 20.0, 30.0), "elbow": (0.0, 45.0, 90.0)}


@pytest.fixture
def swing(write_mot) -> Path:
    """Trunk standing still; shoulder and elbow bend."""
    trunk = {f"trunk_joint_coord_{i}": (0.1 * i,) * 3 for i in range(6)}
    return write_mot(**trunk, **SWING)


def test_convert_writes_both_files_and_verifies_them(arm_osim: Path, tmp_path: Path, capsys) -> None:
    assert run("convert", arm_osim, "--verify", "--poses", 20, "-o", tmp_path / "new" / "arm.xml") == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["arm.json", "arm.xml"]
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"<OpenSimDocument Version='40000'><Model>"])
def test_convert_refuses_what_is_no_model(content: bytes, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.osim").write_bytes(content)
    assert run("convert", tmp_path / "bad.osim", "-o", tmp_path / "out") == 2
    assert "bad.osim" in one_line(capsys)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("walk.trc", "PathFileType\t4\t<x>\n", "it is a marker file"),
        ("walk.mot", "inDegrees=yes\nendheader\n", "it is a motion"),
        ("README.md", "# Model\n", "it is no XML"),
        ("ik.osim", "<InverseKinematicsTool/>", "it is an inverse kinematics setup"),
        ("scale.xml", "<OpenSimDocument><ScaleTool/></OpenSimDocument>", "it is a scale setup"),
        ("page.osim", "<html><body/></html>", "it is XML (html)"),
    ],
)
def test_convert_says_what_a_file_is(name: str, content: str, says: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_text(content)
    assert run("convert", tmp_path / name, "-o", tmp_path / "out") == 2
    told = one_line(capsys)
    assert f"{name} is not an OpenSim model: {says}" in told
    assert "valid is a model's .osim file" in told


def test_output_names_of_other_formats_are_refused(arm: Path, arm_osim: Path, swing: Path, capsys) -> None:
    for words, says in (
        (("convert", arm_osim, "-o", "arm.mjcf"), "valid is arm.xml"),
        (("fk", "--model", arm, "--motion", swing, "-o", "x.csv"), "ends in .trc"),
        (("view", "--model", arm, "-o", "x.png"), "ends in .html"),
        (("convert", arm_osim, "-o", "out", "--poses", "3"), "no effect without --verify"),
    ):
        assert run(*words) == 2
        assert says in one_line(capsys)


def test_convert_takes_a_marker_set_by_either_name(arm_osim: Path, tmp_path: Path) -> None:
    from simspine_jax.io import MarkerDefinition, write_marker_set
    from simspine_jax.io.sidecar import read_sidecar

    write_marker_set(tmp_path / "set.xml", [MarkerDefinition("tip", "hand", (0.0, -0.1, 0.0))])
    for option, out in (("--markers", "-o"), ("--marker-set", "--out")):
        assert run("convert", arm_osim, option, tmp_path / "set.xml", out, tmp_path / option[2:]) == 0
        description = read_sidecar(tmp_path / option[2:] / "arm.json")
        assert [marker.name for marker in description.markers] == ["tip"]


def test_convert_names_a_missing_file(tmp_path: Path, capsys) -> None:
    assert run("convert", tmp_path / "none.osim", "-o", tmp_path) == 2
    assert "There is no file" in one_line(capsys)


@pytest.mark.parametrize(("units", "scale"), [("m", 1.0), ("mm", 1e3)])
def test_fk_writes_markers_in_either_unit(
    arm: Path, swing: Path, tmp_path: Path, units, scale, capsys
) -> None:
    out = tmp_path / "out.trc"
    assert run("fk", "--model", arm, "--motion", swing, "-o", out, "--units", units) == 0
    assert capsys.readouterr().err == ""
    trajectory = read_trc(out)
    assert trajectory.names[0] == "trunk.0"
    assert trajectory.rate == pytest.approx(50)
    first = float(out.read_text().splitlines()[6].split("\t")[2])
    assert first == pytest.approx(scale * trajectory.positions[0, 0, 0])
    # Between neighbours on one body nothing moves; between bodies the elbow does.
    apart = np.linalg.norm(trajectory.positions[:, 3] - trajectory.positions[:, 6], axis=-1)
    assert np.ptp(apart) > 0.01
    together = np.linalg.norm(trajectory.positions[:, 3] - trajectory.positions[:, 4], axis=-1)
    assert np.ptp(together) < 1e-12


def test_fk_says_what_it_ignores_and_assumes(arm: Path, write_mot, tmp_path: Path, capsys) -> None:
    path = write_mot(elbow=(0.0, 10.0, 20.0), wrist=(0.1, 0.0, 0.0), force=(1.0, 2.0, 3.0))
    assert run("fk", "--model", arm, "--motion", path, "-o", tmp_path / "out.trc", "--partial") == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 3
    assert "1 columns are no coordinates" in notes[0]
    assert "force" in notes[0]
    assert "7 free coordinates took their defaults" in notes[1]
    # The coupler says 0.5 elbow + 0.1 rad: 10 degrees + 5.73 degrees at the last frame.
    assert "up to 15.7 degrees (wrist at 0.04 s)" in notes[2]


def test_fk_reads_opensim_4_paths(arm: Path, write_mot, tmp_path: Path) -> None:
    short = write_mot(elbow=(0.0, 10.0, 20.0))
    run("fk", "--model", arm, "--motion", short, "-o", tmp_path / "short.trc", "--partial")
    path = write_mot(**{"/jointset/radius_joint/elbow/value": (0.0, 10.0, 20.0)})
    run("fk", "--model", arm, "--motion", path, "-o", tmp_path / "path.trc", "--partial")
    a, b = read_trc(tmp_path / "short.trc"), read_trc(tmp_path / "path.trc")
    assert np.array_equal(a.positions, b.positions)


def test_fk_asks_for_the_angles_unit_where_the_header_lacks_it(
    arm: Path, write_mot, tmp_path, capsys
) -> None:
    path, out = write_mot(in_degrees=None, elbow=(0.0, 0.5, 1.0)), tmp_path / "out.trc"
    words = ("fk", "--model", arm, "--motion", path, "-o", out, "--partial")
    assert run(*words) == 2
    assert "--in-degrees yes or no" in one_line(capsys)
    apart = {}
    for said in ("yes", "no"):
        assert run(*words, "--in-degrees", said) == 0
        positions = read_trc(out).positions
        apart[said] = np.ptp(np.linalg.norm(positions[:, 3] - positions[:, 6], axis=-1))
    assert apart["no"] > 10 * apart["yes"]


def test_fk_gives_frames_with_nan_no_markers(arm: Path, write_mot, tmp_path: Path) -> None:
    path = write_mot(elbow=(0.0, float("nan"), 20.0))
    assert run("fk", "--model", arm, "--motion", path, "-o", tmp_path / "out.trc", "--partial") == 0
    present = read_trc(tmp_path / "out.trc").present
    assert present.all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "empty"),
        ("endheader\ntime\tknee\n0\t1\n", "'knee'"),
        ("inDegrees=yes\nendheader\ntime\telbow\n0\tten\n", "'ten'"),
        ("inDegrees=yes\nendheader\ntime\telbow\n0\t1\n", "lacks 7 of the 8 free coordinates"),
    ],
)
def test_fk_refuses_bad_motions(arm: Path, content: str | None, says: str, tmp_path: Path, capsys) -> None:
    if content is not None:
        (tmp_path / "bad.mot").write_text(content)
    assert run("fk", "--model", arm, "--motion", tmp_path / "bad.mot", "-o", tmp_path / "o.trc") == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "o.trc").exists()


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_motion_goes_to_qpos_and_back_exactly(arm: Path, swing: Path, tmp_path: Path, suffix: str) -> None:
    import mujoco

    arrays, back = tmp_path / f"out.{suffix}", tmp_path / "back.mot"
    assert run("motion", "--model", arm, swing, "-o", arrays) == 0
    assert run("motion", "--model", arm, arrays, "-o", back) == 0
    given, got = read_sto(swing), read_sto(back)
    # Degrees to radians and back rounds twice.
    np.testing.assert_allclose(got.select(given.columns).data, given.data, rtol=1e-15, atol=1e-15)
    assert got.column("wrist") == pytest.approx(0.5 * got.column("elbow") + np.rad2deg(0.1))
    if suffix == "npz":
        with np.load(arrays) as file:
            model = mujoco.MjModel.from_xml_path(str(arm))
            assert file["joint_names"].tolist() == [model.joint(i).name for i in range(model.njnt)]
            assert file["qpos"].shape == (3, model.nq)
            assert file["time"].tolist() == list(TIMES)


def test_motion_reports_joints_that_contradict_the_couplers(arm: Path, swing: Path, tmp_path, capsys) -> None:
    arrays = tmp_path / "out.npz"
    run("motion", "--model", arm, swing, "-o", arrays)
    with np.load(arrays) as file:
        content = dict(file)
    content["qpos"][1, content["joint_names"].tolist().index("wrist")] += 0.25
    content["joint_names"] = np.append(content["joint_names"], "ball")
    content["qpos"] = np.hstack([content["qpos"], np.zeros((3, 1))])
    np.savez(arrays, **content)
    capsys.readouterr()
    assert run("motion", "--model", arm, arrays, "-o", tmp_path / "back.mot") == 0
    notes = capsys.readouterr().err
    assert "ball" in notes
    assert "by up to 0.25 rad or m (wrist at 0.02 s)" in notes


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bad.npz", b"", "not an NPZ file of plain arrays"),
        ("bad.npz", b"PK\3\4 cut off", "not an NPZ file of plain arrays"),
        ("bad.csv", b"", "empty"),
        ("bad.csv", b"time,elbow\n0,1\n", "is not in"),
        ("bad.csv", b"time,elbow\n0,1,2\n", "row 2"),
        ("bad.csv", b"time,elbow\n0,x\n", "row 2"),
        ("bad.csv", b"time,elbow\n0,1\n0,1\n", "increasing"),
        ("bad.txt", b"?", "valid are .mot"),
    ],
)
def test_motion_refuses_bad_arrays(
    arm: Path, tmp_path: Path, name, content: bytes, says: str, capsys
) -> None:
    (tmp_path / name).write_bytes(content)
    assert run("motion", "--model", arm, tmp_path / name, "-o", tmp_path / "o.mot") == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "o.mot").exists()


def test_a_motion_without_any_pose_is_refused(arm: Path, write_mot, tmp_path: Path, capsys) -> None:
    path = write_mot(elbow=(float("nan"),) * 3)
    for words in (
        ("motion", path, "-o", tmp_path / "o.npz"),
        ("fk", "--motion", path, "-o", tmp_path / "o.trc"),
    ):
        assert run(words[0], "--model", arm, *words[1:], "--partial") == 2
        assert "no frame" in one_line(capsys)


def test_patella_angles_stay_in_radians_as_in_opensims_files(
    shared_data: Path, tmp_path: Path, capsys
) -> None:
    """OpenSim calls them coupled and does not turn them to degrees."""
    model, reference = (shared_data / "pose2sim_demo" / n for n in ("model.osim", "ik_body25b_opensim46.mot"))
    assert run("motion", "--model", model, reference, "-o", tmp_path / "a.npz") == 0
    assert run("motion", "--model", model, tmp_path / "a.npz", "-o", tmp_path / "a.mot") == 0
    assert capsys.readouterr().err == ""
    given, got = read_sto(reference), read_sto(tmp_path / "a.mot")
    # OpenSim writes eight decimals and meets its couplers to about 1e-9 rad.
    np.testing.assert_allclose(got.data, given.select(got.columns).data, atol=2e-7)


@pytest.mark.parametrize(
    "words",
    [
        ["--nonsense"],
        ["ik"],
        ["fk", "--model", "m"],
        ["view", "--model", "m"],
        ["convert", "m", "-o", "o", "--poses", "0"],
    ],
)
def test_wrong_arguments_exit_with_2(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-o", "--out", "--output"])
@pytest.mark.parametrize(
    "words",
    [
        ("convert", "m"),
        ("ik", "--model", "m", "--markers", "t"),
        ("fk", "--model", "m", "--motion", "t"),
        ("motion", "--model", "m", "t"),
        ("view", "--model", "m"),
        ("simulate",),
        ("validate", "m"),
        ("demo",),
    ],
    ids=lambda words: words[0],
)
def test_every_command_takes_the_output_by_the_same_names(words: tuple[str, ...], option: str) -> None:
    assert build_parser().parse_args([*words, option, "there"]).out == Path("there")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("convert", "m", "-o", "o", "--verfy"), "unrecognized argument --verfy; did you mean --verify?"),
        (("ik", "--modle", "m"), "unrecognized argument --modle; did you mean --model?"),
        (("ik", "--modle=m"), "unrecognized argument --modle; did you mean --model?"),
        (("demo", "--xyz"), "unrecognized argument --xyz\n"),
        (("demo", "more"), "unrecognized argument more\n"),
    ],
)
def test_a_wrong_option_is_named_with_the_commands_usage(words: tuple[str, ...], says: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(words)
    told = capsys.readouterr().err
    assert told.startswith(f"usage: simspine {words[0]} [-h]")
    assert f"simspine {words[0]}: error: {says}" in told


def test_an_interrupted_process_ends_although_a_thread_works_on() -> None:
    """As XLA's threads do, for which Python would wait."""
    script = """
import argparse, threading, time
from simspine_jax import cli

def run(arguments):
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise KeyboardInterrupt("1 of 2 trials are complete")

cli.build_parser = lambda: argparse.ArgumentParser()
argparse.ArgumentParser.parse_args = lambda self, words: argparse.Namespace(run=run)
cli.main()
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert child.returncode == 130
    assert child.stderr == "simspine: interrupted: 1 of 2 trials are complete\n"


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    def interrupted(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr("simspine_jax.kinematics.model.read_sidecar", interrupted)
    (tmp_path / "m.json").write_text("{}")
    assert run("fk", "--model", tmp_path / "m.json", "--motion", "x.mot", "-o", "o.trc") == 130
    assert capsys.readouterr().err == "simspine: interrupted\n"
