"""`simspine fit` on the spine model, from synthetic detections to annotations and intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simspine_jax.cli import main
from simspine_jax.fitting.uncertainty import half_width
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.npz import read_npz
from simspine_jax.io.trials import read_trial
from simspine_jax.skeleton import LUMBAR_LEVELS, REGIONS, TRC_NAMES

SYNTHETIC = ("--synthetic", "--subjects", "S1", "--actions", "Walking", "--seconds", "1.2")


@pytest.mark.slow
def test_a_rhythm_of_the_subjects_own_is_told_and_shown(tmp_path: Path, capsys) -> None:
    short = [*SYNTHETIC[:-1], "0.6"]
    assert main(["fit", *short, "--lumbar", "rhythm", "--report", "--html", "--out", str(tmp_path)]) == 0
    assert "lumbar levels rhythm" in capsys.readouterr().out
    about = json.loads((tmp_path / "fit" / "S1.json").read_text())["lumbar"]
    assert about["treatment"] == "rhythm"
    assert len(about["levels"]) == 18
    assert about["verdict"].startswith(("evidence", "no evidence"))
    motion = read_npz(tmp_path / "fit" / "S1_Walking.npz")
    assert motion["lumbar_flexion"].shape[1] == len(LUMBAR_LEVELS)
    assert len(motion["free_names"]) == 55
    viewed = tmp_path / "viewed.html"
    assert main(["view", "--fit", str(tmp_path / "fit" / "S1_Walking.npz"), "-o", str(viewed)]) == 0
    assert "holds a marker with 90%" in viewed.read_text("utf-8")


@pytest.mark.slow
def test_a_synthetic_subject_is_fitted_and_resumed(tmp_path: Path, capsys) -> None:
    words = ["fit", *SYNTHETIC, "--report", "--html", "--out", str(tmp_path)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "S1: converged" in told or "S1: ran out of steps" in told
    layout = ReleaseLayout(tmp_path)
    trial = read_trial(layout.trial("S1", "Walking"))
    truth = read_trial(tmp_path / "truth" / "S1" / "S1_Walking.npz")
    motion = read_npz(tmp_path / "fit" / "S1_Walking.npz")
    about = json.loads((tmp_path / "fit" / "S1.json").read_text())
    assert about["markers_px"] < about["chain_px"]
    assert {s["name"] for s in about["segments"]} >= {"torso", "thigh"}
    own = [k for k, name in enumerate(motion["marker_names"]) if name in TRC_NAMES]
    ids = [TRC_NAMES.index(str(motion["marker_names"][k])) for k in own]
    # Quality control repairs frames with points that were triangulated astray.
    kept = ~trial.repaired
    assert kept.sum() > 40
    np.testing.assert_allclose(trial.keypoints[kept][:, ids], motion["markers"][kept][:, own], atol=1e-6)
    spine = list(REGIONS["spine"])
    after, before = (
        np.nanmean(np.linalg.norm(x[:, spine] - truth.keypoints[:, spine], axis=-1))
        for x in (trial.keypoints, trial.triangulated)
    )
    assert after < 0.85 * before
    # Of one subject errors go together, so their share scatters widely about 0.9.
    std = np.sqrt(np.diagonal(motion["marker_covariance"][:, own], axis1=-2, axis2=-1))
    off = np.abs(trial.keypoints[:, ids] - truth.keypoints[:, ids])
    assert np.mean(off < half_width(0.9) * std) > 0.6
    assert motion["lumbar_flexion"].shape == (60, len(LUMBAR_LEVELS))
    assert (motion["lordosis_std"] > 0).all()
    assert read_cameras(layout.cameras("S1")).names == trial.camera_names
    assert (tmp_path / "fit" / "S1_Walking.png").is_file()
    page, report = ((tmp_path / "fit" / f"{n}.html").read_text("utf-8") for n in ("S1_Walking", "S1_report"))
    assert "holds a marker with 90%" in page
    assert len(page) < 3e6
    assert 'href="S1_Walking.html"' in report
    assert all(f"<li>{name}</li>" in report for name in about["unseen"])
    viewed = tmp_path / "viewed.html"
    assert main(["view", "--fit", str(tmp_path / "fit" / "S1_Walking.npz"), "-o", str(viewed)]) == 0
    assert "holds a marker with 90%" in viewed.read_text("utf-8")
    scaled = ["--model", str(tmp_path / "models" / "S1.osim")]
    fitted = ["--fit", str(tmp_path / "fit" / "S1_Walking.npz")]
    assert main(["view", *scaled, *fitted, "-o", str(viewed)]) == 2
    assert "scaled already" in capsys.readouterr().err
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert main(words) == 0
    assert "complete already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
