"""Conversion in a child process: what it gives, and what a child's death becomes."""

import json
import subprocess
import sys
import threading

import pytest

from simspine_jax import errors
from simspine_jax.kinematics import isolated
from simspine_jax.kinematics.isolated import convert_isolated

opensim = pytest.importorskip("opensim")


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "pendulum.osim"
    opensim.Logger.setLevelString("Off")
    model = opensim.Model()
    model.setName("pendulum")
    body = opensim.Body("rod", 1.0, opensim.Vec3(0), opensim.Inertia(1, 1, 1, 0, 0, 0))
    model.addBody(body)
    model.addJoint(opensim.PinJoint("pin", model.getGround(), body))
    model.finalizeConnections()
    model.printToXML(str(path))
    return path


def test_converts_without_loading_opensim_here(pendulum, tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from simspine_jax.kinematics.isolated import convert_isolated\n"
        "convert_isolated(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert 'opensim' not in sys.modules\n"
    )
    target = tmp_path / "out" / "pendulum.xml"
    subprocess.run([sys.executable, "-c", program, str(pendulum), str(target)], check=True, cwd=tmp_path)
    assert sorted(p.name for p in target.parent.iterdir()) == ["pendulum.json", "pendulum.xml"]
    assert json.loads(target.with_suffix(".json").read_text())["name"] == "pendulum"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<OpenSimDocument", errors.FileFormatError),
        (b"", errors.FileFormatError),
        (b"hello", errors.FileFormatError),
    ],
)
def test_broken_file_is_one_sentence_and_leaves_nothing(content, kind, tmp_path):
    path = tmp_path / "broken.osim"
    path.write_bytes(content)
    with pytest.raises(kind, match=r"broken\.osim") as caught:
        convert_isolated(path, tmp_path / "out" / "broken.xml")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_error_class_and_message_come_through(pendulum, tmp_path):
    with pytest.raises(errors.UnknownNameError, match="Constraint 'nothing' is not in the model pendulum"):
        convert_isolated(pendulum, tmp_path / "a.xml", ignore_constraints=["nothing"])


def test_a_name_with_a_dash_is_no_option(pendulum, tmp_path):
    with pytest.raises(errors.UnknownNameError, match="Constraint '--help' is not in"):
        convert_isolated(pendulum, tmp_path / "a.xml", ignore_constraints=["--help"])


def test_concurrent_conversions_share_a_target(pendulum, tmp_path):
    target, failures = tmp_path / "out" / "p.xml", []

    def convert():
        try:
            convert_isolated(pendulum, target)
        except errors.SimspineError as error:
            failures.append(error)

    threads = [threading.Thread(target=convert) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(p.name for p in target.parent.iterdir()) == ["p.json", "p.xml"]


def child_runs(monkeypatch, program):
    """Lets the isolated process run ``program`` in place of the converter."""
    run = subprocess.run

    def replaced(command, **options):
        return run([sys.executable, "-c", program], **options)

    monkeypatch.setattr(isolated.subprocess, "run", replaced)


def test_a_crash_names_its_signal(pendulum, tmp_path, monkeypatch):
    child_runs(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(errors.FileFormatError, match=r"crashed on .*pendulum\.osim \(SIGSEGV\)"):
        convert_isolated(pendulum, tmp_path / "out" / "p.xml")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_hang_ends(pendulum, tmp_path, monkeypatch):
    child_runs(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(errors.FileFormatError, match=r"within 0\.5 s"):
        convert_isolated(pendulum, tmp_path / "out" / "p.xml", timeout_s=0.5)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_child_without_a_report_is_an_error(pendulum, tmp_path, monkeypatch):
    child_runs(monkeypatch, "raise RuntimeError('no room')")
    with pytest.raises(errors.FileFormatError, match="no room"):
        convert_isolated(pendulum, tmp_path / "p.xml")


def test_missing_opensim_says_how_to_install_it(pendulum, tmp_path, monkeypatch):
    monkeypatch.setattr(isolated.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingDependencyError, match=r"simspine-jax\[opensim\]"):
        convert_isolated(pendulum, tmp_path / "p.xml")


def test_an_unwritable_target_is_an_error(pendulum, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.SimspineError, match="can't be written"):
        convert_isolated(pendulum, tmp_path / "file" / "p.xml")
