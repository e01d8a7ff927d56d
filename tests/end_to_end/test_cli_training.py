"""``simspine train``, ``evaluate`` and ``lift`` from the command line, on a few frames."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from lifting_clips import make_clip

import simspine_jax.datasets
from simspine_jax.cli import main
from simspine_jax.datasets import clips_in_memory
from simspine_jax.io import read_trc
from simspine_jax.io.keypoints import Keypoints2D, write_keypoints_npz
from simspine_jax.lifting.errors import read_errors
from simspine_jax.skeleton import TRC_NAMES

SMALL = ("model.width=32", "model.blocks=1", "batch_size=32", "save_every=4", "log_every=2")


@pytest.fixture(autouse=True)
def small_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of each split instead of a built dataset."""
    subjects = {"train": ("S1", "S5"), "test": ("S9", "S11")}

    def open_clips(config: str, split: str, data_dir: Path | None):
        assert config == "synthetic"
        return clips_in_memory([make_clip(subject) for subject in subjects[split]])

    monkeypatch.setattr(simspine_jax.datasets, "open_clips", open_clips)


@pytest.mark.slow
def test_two_commands_train_and_evaluate_and_a_third_lifts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["train", "simple_full", "--set", *SMALL, "--steps", "6", "--out", str(folder)]
    assert main(words) == 0
    assert f"{folder}: 6 steps" in capsys.readouterr().out
    assert main(words) == 0
    assert f"{folder}: 6 steps, 0 s" in capsys.readouterr().out
    for source in ("detected", "truth"):
        table = tmp_path / f"{source}.csv"
        assert main(["evaluate", str(folder), "--input", source, "--format", "md", "-o", str(table)]) == 0
        shown = capsys.readouterr().out
        assert f"{source} 2D keypoints" in shown
        assert "Spine(15)" in shown
        assert "commit " in shown
        assert "the truth of synthetic trials" in shown
        rows = [row for row in csv.reader(table.read_text().splitlines()) if not row[0].startswith("#")]
        assert [row[0] for row in rows[1:]] == ["MPJPE, mm", "P-MPJPE, mm", "95 % of P-MPJPE, mm"]
        errors = np.array([list(map(float, row[1:])) for row in rows[1:3]])
        assert (errors > 0).all()
        assert (errors[1] < errors[0]).all()
    assert not (folder / "errors.json").exists()
    assert main(["evaluate", str(folder), "--errors"]) == 0
    measured = read_errors(folder / "errors.json")
    assert measured.source == "simspine/synthetic (synthetic), split test, detected 2D keypoints"
    # The root is exact; of the others each axis errs.
    assert (np.sort(measured.std, axis=0)[1:] > 0.01).all()
    capsys.readouterr()
    clip = make_clip("S9")
    pose = Keypoints2D(
        clip.camera_names[:1], TRC_NAMES, np.array(clip.detections_2d[:, :1], float),
        np.where(clip.detections_2d_mask, clip.detections_confidence, np.nan)[:, :1], 50.0,
    )  # fmt: skip
    write_keypoints_npz(tmp_path / "pose.npz", pose)
    words = ["lift", str(tmp_path / "pose.npz"), "--checkpoint", str(folder), "-o"]
    assert main([*words, str(tmp_path / "walk.trc")]) == 0
    assert read_trc(tmp_path / "walk.trc").positions.shape == (30, 37, 3)
    capsys.readouterr()
    assert main([*words, str(tmp_path / "walk.mot")]) == 2
    assert "no joint angles" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "simple"], "Config 'simple' is not in the package"),
        (["train", "simple_full", "--set", "steps"], "valid is NAME=VALUE"),
        (["train", "simple_full", "--steps", "0"], "valid is 1 or more"),
        (["train", "simple_full", "--set", "batch_size=100000"], "Batches of 100000"),
        (["evaluate", "none"], "none is no folder of a training"),
        (["train", "simple_full", "--steps", "3", "--set", "steps=4"], "were both given"),
        (["train", "simple_full", "--set", "learning_rate=1"], "did you mean 'optimiser.learning_rate'"),
        (["evaluate", "none", "-o", "t.pdf"], "valid are names in .txt"),
        (["lift", "none.npz", "--checkpoint", "none", "-o", "x"], "none.npz: there is no such file"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_2(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]
