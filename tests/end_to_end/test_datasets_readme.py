"""The examples of the dataset's README and the two lines of the project's own, on a tiny build."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"^```(?:python|py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def data_dir(spine_osim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits of a dataset of four short trials, made by the command."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("data")
    command = [
        str(Path(sys.executable).with_name("simspine")), "dataset", "build", "--data-dir", str(folder),
        "--subjects", "S1", "S9", "--actions", "Walking", "Greeting", "--seconds", "1.2", "--quiet",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return folder


def examples(readme: Path) -> str:
    return "\n".join(EXAMPLE.findall(readme.read_text(encoding="utf-8")))


def run(program: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh process, as a reader's: what it prints."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_the_examples_run_without_tensorflow(data_dir: Path, monkeypatch) -> None:
    program = examples(ROOT / "simspine_jax" / "datasets" / "README.md")
    assert program.count("import") >= 4
    # Some batch lacks a keypoint, and yet every one that a lifter is given is finite.
    program, count = re.subn(
        r"^( +)targets, known = .*$",
        r"\g<0>\n\1assert np.isfinite(inputs).all() and np.isfinite(targets).all()"
        r"\n\1assert np.isnan(batch.keypoints_2d).any() and not seen.all()",
        program,
        flags=re.MULTILINE,
    )
    assert count == 1
    program += "\nimport sys\nprint('tensorflow' in sys.modules)\n"
    told = run(program, data_dir, monkeypatch).splitlines()
    assert told[0].startswith("2 clips; the first: S1 ")
    assert "60 frames ('front_left'," in told[0]
    assert told[1] == "(60, 37, 3) (60, 4, 37, 2) (60, 62)"
    assert told[2] == "16 samples of 37 keypoints"  # two seconds begin in each clip, in four views
    assert told[3] == "(2, 27, 37, 2) (2, 27, 37, 3)"
    assert told[4] == "next is batch 0 of epoch 1"
    assert told[5] == "False"


def test_the_two_lines_run(data_dir: Path, monkeypatch) -> None:
    pytest.importorskip("tensorflow")
    blocks = re.findall(r"^```py\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line and not line.startswith("#")]) == 2
    program = blocks[0] + "\nfor clip in clips.take(1):\n    print(clip['keypoints_3d'].shape)\n"
    assert run(program, data_dir, monkeypatch).splitlines()[-1] == "(60, 37, 3)"
