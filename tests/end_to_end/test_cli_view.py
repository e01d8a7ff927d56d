"""`simspine view`, the pages and plots of `simspine ik`, and `simspine demo`."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.cli import main
from simspine_jax.io import MarkerTrajectory, read_trc, write_trc
from simspine_jax.motions import Motion, write_motion

pytest.importorskip("viser")
TIMES = np.arange(5) / 50


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def files(arm_osim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion and its markers, which begin one frame later."""
    folder = tmp_path_factory.mktemp("arm_files")
    model = ssj.load_model(arm_osim)
    q = np.linspace(0, 0.3, 5)[:, None] * np.ones(model.n_free)
    write_motion(folder / "swing.mot", model, Motion(TIMES, q))
    positions = np.asarray(ssj.forward_kinematics(model, q).markers)
    write_trc(folder / "swing.trc", MarkerTrajectory(model.marker_names, TIMES[1:], positions[1:], 50.0))
    return folder


@pytest.mark.parametrize("shown", [[], ["motion"], ["markers"], ["motion", "markers"]])
def test_view_writes_a_page(arm_osim: Path, files: Path, tmp_path: Path, shown: list[str]) -> None:
    suffixes = {"motion": "mot", "markers": "trc"}
    words = [word for kind in shown for word in (f"--{kind}", files / f"swing.{suffixes[kind]}")]
    page = tmp_path / "page.html"
    assert run("view", "--model", arm_osim, *words, "-o", page) == 0
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.parametrize(("option", "content"), [("--motion", ""), ("--motion", None), ("--markers", "x")])
def test_view_refuses_bad_files(
    arm_osim: Path, tmp_path: Path, option: str, content: str | None, capsys
) -> None:
    path = tmp_path / ("bad.mot" if option == "--motion" else "bad.trc")
    if content is not None:
        path.write_text(content)
    assert run("view", "--model", arm_osim, option, path, "-o", tmp_path / "page.html") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "Give --model, or --fit with a trial"),
        (("--fit", "walk.npz", "--markers", "walk.trc"), "--markers has no effect with --fit"),
        (("--fit", "walk.npz", "--partial"), "--partial has no effect with --fit"),
        (("--fit", "walk.npz", "--ignore-constraints", "knee"), "--ignore-constraints has no effect"),
        (("--fit", "walk.npz"), "No record of a subject beside walk.npz names it"),
    ],
)
def test_view_refuses_what_has_no_meaning(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("view", *words, "-o", tmp_path / "page.html") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "page.html").exists()


def test_a_port_in_use_is_told(arm_osim: Path, capsys) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert run("view", "--model", arm_osim, "--serve", "--port", other.getsockname()[1]) == 2
    assert "port" in capsys.readouterr().err


def test_ik_adds_page_and_plot_to_a_trial_that_is_complete(
    arm_osim: Path, files: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("matplotlib")
    words = ("ik", "--model", arm_osim, "--markers", files / "swing.trc", "--out", tmp_path)
    assert run(*words) == 0
    folder = tmp_path / "swing"
    assert not (folder / "swing.html").exists()
    assert run(*words, "--html", "--plot") == 0
    assert "complete already" in capsys.readouterr().out
    assert (folder / "swing.html").stat().st_size > 1e5
    assert (folder / "swing.png").read_bytes().startswith(b"\x89PNG")
    assert run(*words, "--force") == 0
    # They would show the trial as it was before.
    assert not (folder / "swing.html").exists()
    assert not (folder / "swing.png").exists()


def test_demo(spine_osim: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert spine_osim.exists()
    assert run("demo", "--out", tmp_path, "--frames", 30, "--seed", 3) == 0
    told = capsys.readouterr().out
    row = re.search(r"simspine on \w+ +30 +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", told)
    assert row is not None
    marker_mm, lumbar_deg = float(row[1]), float(row[2])
    # 5 mm on each of three axes are 8.7 mm; fitting 40 coordinates to 33 markers takes a part of it away.
    assert 5.0 < marker_mm < 8.7
    assert lumbar_deg < 1.0
    assert "5 mm noise" in told
    trial = tmp_path / "synthetic"
    for path in (
        tmp_path / "demo.html",
        tmp_path / "demo.png",
        tmp_path / "truth.mot",
        trial / "synthetic.mot",
    ):
        assert path.stat().st_size > 0
        assert str(path) in told or path.name == "truth.mot"
    assert read_trc(tmp_path / "synthetic.trc").n_frames == 30
