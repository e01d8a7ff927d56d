"""Every command, given what is no file, a folder, empty, binary or NaN: status 2 and one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.cli import main
from simspine_jax.io import MarkerTrajectory, write_trc

BAD = ("none", "folder", "empty", "binary", "nan")
# The command's words; MODEL and TRC stand for good files and BAD for the bad one, with its suffix.
COMMANDS = {
    "convert": ("convert", "BAD.osim", "-o", "c.xml"),
    "convert --markers": ("convert", "MODEL", "--markers", "BAD.xml", "-o", "c.xml"),
    "ik --model": ("ik", "--model", "BAD.osim", "--markers", "TRC", "--out", "out"),
    "ik --model converted": ("ik", "--model", "BAD.json", "--markers", "TRC", "--out", "out"),
    "ik --markers": ("ik", "--model", "MODEL", "--markers", "BAD.trc", "--out", "out"),
    "ik --markers c3d": ("ik", "--model", "MODEL", "--markers", "BAD.c3d", "--out", "out"),
    "ik --setup": ("ik", "--model", "MODEL", "--markers", "TRC", "--setup", "BAD.xml", "--out", "out"),
    "ik set": ("ik", "--model", "MODEL", "--marker-set", "BAD.xml", "--markers", "TRC", "--out", "out"),
    "ik --weights": ("ik", "--model", "MODEL", "--markers", "TRC", "--weights", "BAD.csv", "--out", "out"),
    "fk": ("fk", "--model", "MODEL", "--motion", "BAD.mot", "-o", "o.trc"),
    "motion": ("motion", "--model", "MODEL", "BAD.mot", "-o", "o.npz"),
    "motion back": ("motion", "--model", "MODEL", "BAD.npz", "-o", "o.mot"),
    "view --motion": ("view", "--model", "MODEL", "--motion", "BAD.mot", "-o", "o.html"),
    "view --markers": ("view", "--model", "MODEL", "--markers", "BAD.trc", "-o", "o.html"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trial(arm_osim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of the arm standing still."""
    model = ssj.load_model(arm_osim)
    markers = np.asarray(ssj.forward_kinematics(model, np.zeros((4, model.n_free))).markers)
    path = tmp_path_factory.mktemp("trial") / "still.trc"
    write_trc(path, MarkerTrajectory(model.marker_names, np.arange(4) / 50, markers, 50.0))
    return path


def make_bad(kind: str, path: Path, trial: Path) -> None:
    """Writes the bad file; NaN means numbers in a file that is otherwise right, where there are any."""
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "binary":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "nan" and path.suffix == ".trc":
        head, rows = trial.read_text().splitlines()[:5], trial.read_text().splitlines()[5:]
        cells = [row.split("\t") for row in rows if row.strip()]
        path.write_text(
            "\n".join([*head, *("\t".join([*c[:2], *["NaN"] * (len(c) - 2)]) for c in cells)]) + "\n"
        )
    elif kind == "nan":
        rows = "".join(f"{t}\tnan\n" for t in (0, 0.1))
        path.write_text(f"x\nnRows=2\nnColumns=2\ninDegrees=yes\nendheader\ntime\telbow\n{rows}")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_ends_in_one_sentence(
    arm_osim: Path, trial: Path, tmp_path: Path, monkeypatch, capsys, command: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = next(word for word in COMMANDS[command] if word.startswith("BAD"))
    make_bad(kind, tmp_path / given, trial)
    good = {"MODEL": str(arm_osim), "TRC": str(trial)}
    assert main([good.get(word, word) for word in COMMANDS[command]]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("simspine: error: ")
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.out + told.err
    made = {path.name for path in tmp_path.iterdir()} - {given}
    assert made <= {"out"}
    assert not list(tmp_path.glob("out/*"))
