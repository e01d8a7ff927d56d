"""Synthetic adults: stature, mass, symmetry, determinism."""

from __future__ import annotations

import numpy as np
import pytest

from simspine_jax.capture.subjects import (
    SUBJECT_NAMES,
    make_subject,
    make_subjects,
    standing_height,
)
from simspine_jax.errors import UnknownNameError

# Statures are reached by one multiplication, and only heights on the model's feet don't scale with it.
HEIGHT_M = 0.001


def test_statures_and_masses_are_adults(spine_model):
    subjects = make_subjects(spine_model)
    assert tuple(s.name for s in subjects) == SUBJECT_NAMES
    for s in subjects:
        assert 1.5 < s.height_m < 2.0
        assert standing_height(spine_model, s.scale_factors) == pytest.approx(s.height_m, abs=HEIGHT_M)
        assert 17 < s.mass_kg / s.height_m**2 < 29
        assert float(np.sum(s.body_masses)) == pytest.approx(s.mass_kg)
        factors = np.asarray(s.scale_factors)
        assert factors.min() > 0.8
        assert factors.max() < 1.25
    proportions = [np.asarray(s.scale_factors)[:, 1] / s.height_m for s in subjects]
    assert np.std(proportions, axis=0).max() > 0.01  # they differ by more than their size


def test_sides_differ_a_little(spine_model):
    names = spine_model.body_names
    right = np.array([i for i, name in enumerate(names) if name.endswith("_r")])
    left = np.array([names.index(names[i][:-1] + "l") for i in right])
    for s in make_subjects(spine_model):
        ratio = np.asarray(s.scale_factors)[right] / np.asarray(s.scale_factors)[left]
        assert 0.0005 < np.abs(ratio - 1).max() < 0.03
        offsets = dict(zip(spine_model.marker_names, np.asarray(s.marker_offsets), strict=True))
        mirrored = np.array([offsets[f"R{n}"] - offsets[f"L{n}"] * [1, 1, -1] for n in ("Knee", "Shoulder")])
        assert 0 < np.abs(mirrored).max() < 0.008
        assert 0 < np.linalg.norm(offsets["Spine_02"]) < 0.009


def test_the_seed_picks_proportions_and_nothing_else(spine_model):
    first, again = (make_subject(spine_model, "S9", 3) for _ in range(2))
    other = make_subject(spine_model, "S9", 4)
    np.testing.assert_array_equal(first.scale_factors, again.scale_factors)
    np.testing.assert_array_equal(first.marker_offsets, again.marker_offsets)
    assert not np.allclose(first.scale_factors, other.scale_factors)
    assert first.height_m == other.height_m


def test_the_papers_curvature_by_subject_averages_to_its_mean(spine_model):
    subjects = make_subjects(spine_model)
    # The table's own means are rounded and weighted by frames.
    assert abs(np.rad2deg(np.mean([s.lordosis_shift for s in subjects]))) < 0.05
    assert abs(np.rad2deg(np.mean([s.kyphosis_shift for s in subjects]))) < 0.05


def test_unknown_subjects_are_refused(spine_model):
    with pytest.raises(UnknownNameError, match=r"S2.*it has: S1, S5"):
        make_subject(spine_model, "S2")
