"""Scaling in a child process: what it writes, and what its failures become."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax import errors
from simspine_jax.kinematics.isolated import scale_isolated

pytest.importorskip("opensim")


def test_scales_without_loading_opensim_here(arm_osim: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from simspine_jax.kinematics.isolated import scale_isolated\n"
        "scale_isolated(Path(sys.argv[1]), Path(sys.argv[2]), {'humerus': [1.0, 1.5, 1.0]}, mass_kg=8)\n"
        "assert 'opensim' not in sys.modules\n"
    )
    target = tmp_path / "out" / "arm.osim"
    subprocess.run([sys.executable, "-c", program, str(arm_osim), str(target)], check=True, cwd=tmp_path)
    assert [p.name for p in target.parent.iterdir()] == ["arm.osim"]


def test_what_is_written_is_the_model_with_factors_as_inputs(
    arm_model, arm_osim: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.7, 1.4, (len(arm_model.body_names), 3))
    offsets = rng.normal(0, 0.02, (arm_model.n_markers, 3))
    target = tmp_path / "scaled.osim"
    scale_isolated(
        arm_osim, target, dict(zip(arm_model.body_names, factors, strict=True)), mass_kg=70.0, name="scaled",
        marker_offsets=dict(zip(arm_model.marker_names, offsets, strict=True)),
    )  # fmt: skip
    scaled = ssj.load_model(target)
    q = np.asarray(arm_model.default_q) + rng.normal(0, 0.5, (5, arm_model.n_free))
    expected = ssj.forward_kinematics(arm_model, q, scale_factors=factors, marker_offsets=offsets)
    found = ssj.forward_kinematics(scaled, q)
    assert scaled.name == "scaled"
    np.testing.assert_allclose(found.markers, expected.markers, atol=1e-12)
    np.testing.assert_allclose(found.body_positions, expected.body_positions, atol=1e-12)


def test_errors_come_through_and_leave_nothing(arm_osim: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "arm.osim"
    with pytest.raises(errors.UnknownNameError, match="Body 'tail' is not in"):
        scale_isolated(arm_osim, target, {"tail": [1, 1, 1]}, mass_kg=70.0)
    with pytest.raises(errors.ShapeError, match=r"The mass is -1\.0 kg"):
        scale_isolated(arm_osim, target, {}, mass_kg=-1)
    with pytest.raises(errors.FileFormatError, match="There is no file"):
        scale_isolated(tmp_path / "none.osim", target, {}, mass_kg=70.0)
    assert list(target.parent.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.SimspineError, match="can't be written"):
        scale_isolated(arm_osim, tmp_path / "file" / "arm.osim", {}, mass_kg=70.0)
