"""`simspine fit --lifter` on the spine model: one camera, and a lifter that knows the truth but for noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simspine_jax.cli import main
from simspine_jax.clips import cameras_in_ground
from simspine_jax.io.calibration import write_cameras_toml
from simspine_jax.io.keypoints import Keypoints2D, write_keypoints_npz
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.npz import read_npz
from simspine_jax.io.trials import read_trial
from simspine_jax.lifting.errors import LifterErrors
from simspine_jax.pipeline import fit_lifter
from simspine_jax.pipeline.fit_lifted import ROOT
from simspine_jax.pipeline.sources import SyntheticTrial, synthetic_subjects
from simspine_jax.pipeline.stages import TrialInput
from simspine_jax.skeleton import REGIONS, TRC_NAMES

SECONDS, RATE_HZ, SEED = 1.2, 50.0, 0
SYNTHETIC = ("--synthetic", "--subjects", "S1", "--actions", "Walking", "--seconds", str(SECONDS))
HIP, STD_M = TRC_NAMES.index(ROOT), 0.04


ERRORS = LifterErrors(np.full((37, 3), STD_M), 10.0, 1.0, 0.1)


@dataclass(frozen=True, eq=False)
class Oracle:
    """Lifts to the truth's shape of a body a tenth too small, each keypoint off by one amount throughout."""

    truth: NDArray[np.float64]  # [T 37 3]
    digest: str = "oracle"
    errors: LifterErrors = ERRORS

    def lift(self, trial: TrialInput) -> NDArray[np.float64]:
        assert trial.views is not None
        (turn,) = np.asarray(cameras_in_ground(trial.views.cameras).rotations)
        off = STD_M * np.random.default_rng(0).normal(size=(37, 3))
        off[HIP] = 0.0
        return 0.9 * (self.truth - self.truth[:, [HIP]]) @ turn.T + off


@pytest.fixture(name="trial")
def walking(spine_model, monkeypatch: pytest.MonkeyPatch) -> TrialInput:
    """The trial that the command makes, whose truth the lifter knows."""
    (subject,) = synthetic_subjects(spine_model, SECONDS, RATE_HZ, SEED, subjects=["S1"], actions=["Walking"])
    (trial,) = subject.trials
    assert isinstance(trial, SyntheticTrial)
    oracle = Oracle(np.asarray(trial.capture.keypoints, np.float64))
    monkeypatch.setattr(fit_lifter, "load_lifter", lambda folder, spine, note: oracle)
    return trial.load()


@pytest.mark.slow
def test_a_subject_is_fitted_from_one_camera(trial: TrialInput, tmp_path: Path, capsys) -> None:
    views = trial.views
    assert views is not None
    name = views.cameras.names[0]
    out = tmp_path / "out"
    words = ["fit", *SYNTHETIC, "--lifter", "runs", "--out", str(out)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is seen by 4 cameras and a lifter takes one; valid is --view with one of" in line
    words = [*words, "--view", name]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "S1: converged" in told or "S1: ran out of steps" in told
    about = json.loads((out / "fit" / "S1.json").read_text())
    assert [camera["name"] for camera in about["cameras"]] == [name]
    motion = read_npz(out / "fit" / "S1_Walking.npz")
    found = read_trial(ReleaseLayout(out).trial("S1", "Walking"))
    truth = read_trial(out / "truth" / "S1" / "S1_Walking.npz")
    assert found.triangulated is None
    assert found.camera_names == (name,)
    spine = list(REGIONS["spine"])
    ours, wanted = (t.keypoints[:, spine] - t.keypoints[:, [HIP]] for t in (found, truth))
    assert np.nanmean(np.linalg.norm(ours - wanted, axis=-1)) < STD_M * np.sqrt(3)
    assert (motion["lordosis_std"] > 0).all()
    assert main(words) == 0
    assert "complete already" in capsys.readouterr().out
    # Keypoints of one camera in a file are the same trial.
    pixels = np.asarray(views.keypoints[:, :1], np.float64)
    sure = np.where(np.isfinite(pixels[..., 0]), views.confidence[:, :1], np.nan)
    pose = Keypoints2D((name,), TRC_NAMES, pixels, sure, RATE_HZ)
    write_keypoints_npz(tmp_path / "Walking.npz", pose)
    given = ["--keypoints", str(tmp_path / "Walking.npz"), "--calibration", str(tmp_path / "rig.toml")]
    write_cameras_toml(tmp_path / "rig.toml", views.cameras)
    again = tmp_path / "again"
    assert main(["fit", *given, "--lifter", "runs", "--out", str(again)]) == 0
    # Calibrations are rounded in files.
    same = read_npz(again / "fit" / "S1_Walking.npz")
    np.testing.assert_allclose(same["lordosis"], motion["lordosis"], atol=0.02)
