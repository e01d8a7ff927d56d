"""What the row beside nimblephysics computes without it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks.fitting_nimblephysics import (
    LENGTHS,
    PYTHON_VARIABLE,
    Found,
    Problem,
    errors_of,
    mesh_text,
    peer_python,
    segments_by_side,
)
from benchmarks.metrics import SkippedError

BODIES = sorted({name for ends in LENGTHS.values() for name in ends})


def test_errors_are_those_of_markers_and_of_lengths() -> None:
    random = np.random.default_rng(0)
    origins, markers = random.normal(size=(len(BODIES), 3)), random.normal(size=(4, 5, 3))
    none = np.zeros((4, 5, 3))
    problem = Problem(np.zeros((4, 2)), np.ones((len(BODIES), 3)), none[0], markers, markers, origins)
    exact = errors_of(BODIES, [problem], [Found(markers, origins + 1.0, 1.0)])
    assert (exact["marker_mm"], exact["length_pct"]) == (0.0, pytest.approx(0.0, abs=1e-12))
    off = errors_of(BODIES, [problem], [Found(markers + np.array([0.0, 0.003, 0.004]), 1.02 * origins, 1.0)])
    assert off["marker_mm"] == pytest.approx(5.0)
    assert off["lengths_pct"] == pytest.approx(dict.fromkeys(LENGTHS, 2.0))


def test_both_sides_are_scaled_alike() -> None:
    found = segments_by_side(["pelvis", "femur_r", "femur_l", "torso"])
    assert [segment.bodies for segment in found] == [("pelvis",), ("femur_r", "femur_l"), ("torso",)]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_meshes_have_all_points_and_triangles(count: int) -> None:
    points = list(np.random.default_rng(1).normal(size=(count, 3)))
    lines = [line.split() for line in mesh_text(points).splitlines()]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], float)
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int)
    np.testing.assert_allclose(vertices[:count], points, rtol=1e-8)
    assert len(vertices) == max(count, 3)
    assert set(faces.ravel()) == set(range(1, len(vertices) + 1))


def test_a_python_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable + "-that-is-not-there")
    with pytest.raises(SkippedError, match=f"nimblephysics can't be tried .* in {PYTHON_VARIABLE}"):
        peer_python()
