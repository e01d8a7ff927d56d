"""The summary plot: what its panels hold, and what it refuses."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from simspine_jax import expand_coordinates, forward_kinematics, load_model
from simspine_jax.capture import synthetic_motion
from simspine_jax.errors import MissingDependencyError, ShapeError, SimspineError
from simspine_jax.kinematics.lumbar import free_lumbar
from simspine_jax.skeleton import LUMBAR_LEVELS
from simspine_jax.viz.plots import A4_INCHES, plot_ik_summary

N_FRAMES = 12
TIMES = np.arange(N_FRAMES) / 50.0
# Errors are differences of positions of about a metre in float64, in millimetres.
ROUNDING_MM = 1e-9


@pytest.fixture(scope="module")
def q(spine_model):
    return synthetic_motion(spine_model, N_FRAMES, 50.0, 0)


@pytest.fixture(scope="module")
def targets(spine_model, q):
    """Each marker 3, 0, 4 mm off; the fifth frame has none and the sixth marker is never there."""
    targets = np.asarray(jax.jit(forward_kinematics)(spine_model, q).markers) + np.array([3e-3, 0, 4e-3])
    targets[4] = np.nan
    targets[:, 5] = np.nan
    return targets


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved, save = [], Figure.savefig

    def keep(self, *args, **kwargs):
        saved.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_a_picture_of_a4_is_written_without_pyplot(spine_model, q, targets, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests' packages load it
    plot_ik_summary(tmp_path / "plot.png", spine_model, TIMES, q, targets, origin="a test")
    picture = imread(tmp_path / "plot.png")
    height, width = picture.shape[:2]
    assert height / width == pytest.approx(A4_INCHES[1] / A4_INCHES[0], rel=0.01)
    assert picture[..., :3].std() > 0.05
    assert "matplotlib.pyplot" not in sys.modules


def test_marker_errors_are_in_millimetres_with_gaps(spine_model, q, targets, figures, tmp_path):
    plot_ik_summary(tmp_path / "plot.png", spine_model, TIMES, q, targets, origin="a test")
    over_time, _, by_marker = figures[0].axes
    times, rmse = over_time.lines[0].get_data()
    np.testing.assert_array_equal(times, TIMES)
    assert np.isnan(rmse[4])
    np.testing.assert_allclose(np.delete(rmse, 4), 5.0, atol=ROUNDING_MM)
    assert over_time.get_title() == "Marker error (dashed: all frames together, 5.0 mm)"
    assert over_time.get_legend() is None  # it would lie over the curve
    heights = [bar.get_height() for bar in by_marker.patches]
    np.testing.assert_allclose(heights, 5.0, atol=ROUNDING_MM)
    assert len(heights) == spine_model.n_markers - 1
    seen = [name for k, name in enumerate(spine_model.marker_names) if k != 5]
    assert [label.get_text() for label in by_marker.get_xticklabels()] == seen
    assert f"never seen: {spine_model.marker_names[5]}" in by_marker.get_title()


def test_every_axis_has_its_unit_and_the_title_the_origin(spine_model, q, targets, figures, tmp_path):
    plot_ik_summary(tmp_path / "plot.png", spine_model, TIMES, q, targets, origin="a test of mine")
    assert "a test of mine" in figures[0].get_suptitle()
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figures[0].axes]
    expected = [("Time (s)", "RMSE over markers (mm)"), ("Time (s)", "Angle (°)"), ("", "Distance (mm)")]
    assert labels == expected


@pytest.mark.parametrize("with_truth", [True, False])
def test_lumbar_angles_are_shown_by_level_beside_the_truth(
    spine_model, q, targets, figures, tmp_path, with_truth
):
    found = np.array(q)
    found[:, spine_model.free_names.index("L5_S1_Flex_Ext")] += np.deg2rad(1.0)
    truth = q if with_truth else None
    plot_ik_summary(tmp_path / "plot.png", spine_model, TIMES, found, targets, origin="a test", true_q=truth)
    axes = figures[0].axes[1]
    names = [f"{level}_Flex_Ext" for level in LUMBAR_LEVELS]
    columns = [spine_model.coordinate_names.index(name) for name in names]
    expected = np.rad2deg(expand_coordinates(spine_model, found))[:, columns].T
    lines = np.array([line.get_ydata() for line in axes.lines])
    np.testing.assert_allclose(lines[1::2] if with_truth else lines, expected)
    first = axes.get_legend().get_texts()[0].get_text()
    assert first == ("L5-S1 (RMS error 1.00°)" if with_truth else "L5-S1")
    assert len({line.get_color() for line in axes.lines}) == 6
    # The model's couplers make six curves of one angle.
    assert "the other levels follow L5-S1 in fixed ratios" in axes.get_title()
    figures[0].canvas.draw()
    assert axes.get_legend().get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0


def test_flexion_is_negative(spine_model):
    """What the panel's title says, by the model itself: bent forward, the neck is farther in front."""
    bent = spine_model.default_q.at[spine_model.free_names.index("L5_S1_Flex_Ext")].set(-0.1)
    neck = spine_model.marker_indices(["Neck"])
    forward = [
        forward_kinematics(spine_model, pose).markers[neck, 0] for pose in (bent, spine_model.default_q)
    ]
    assert forward[0] > forward[1] + 0.1


def test_free_lumbar_levels_are_not_said_to_follow(spine_model, q, targets, figures, tmp_path):
    free = free_lumbar(spine_model)
    q = synthetic_motion(spine_model, N_FRAMES, 50.0, 0)
    spread = jnp.zeros((N_FRAMES, free.n_free)).at[:, free.free_indices(spine_model.free_names)].set(q)
    plot_ik_summary(tmp_path / "plot.png", free, TIMES, spread, targets, origin="a test")
    assert "fixed ratios" not in figures[0].axes[1].get_title()


def test_a_model_without_lumbar_levels_shows_its_trunk_and_legs(shared_data, figures, tmp_path):
    pytest.importorskip("opensim", reason="OpenSim is not installed")
    model = load_model(next((shared_data / "gait2392").glob("*.osim")))
    q = synthetic_motion(model, N_FRAMES, 50.0, 0)
    markers = jax.jit(forward_kinematics)(model, q).markers
    plot_ik_summary(tmp_path / "plot.svg", model, TIMES, q, markers, origin="a test")
    _, trunk, legs, _ = figures[0].axes
    assert [axes.get_title() for axes in (trunk, legs)] == [
        "Rotations of the trunk", "Hips, knees and ankles",
    ]  # fmt: skip
    assert len(trunk.lines) == 3
    columns = {line.get_label(): line.get_ydata() for line in legs.lines}
    assert list(columns) == [
        "hip_flexion_r", "hip_flexion_l", "knee_angle_r", "knee_angle_l", "ankle_angle_r", "ankle_angle_l",
    ]  # fmt: skip
    knee = expand_coordinates(model, q)[:, model.coordinate_names.index("knee_angle_l")]
    np.testing.assert_allclose(columns["knee_angle_l"], np.rad2deg(knee))


def test_a_model_of_an_arm_shows_its_angles(arm_model, figures, tmp_path):
    q = jnp.tile(arm_model.default_q, (N_FRAMES, 1))
    markers = jax.jit(forward_kinematics)(arm_model, q).markers
    plot_ik_summary(tmp_path / "plot.png", arm_model, TIMES, q, markers, origin="a test")
    labels = [line.get_label() for line in figures[0].axes[1].lines]
    assert labels
    assert set(labels) <= set(arm_model.free_names)


def test_frames_that_failed_and_clips_without_targets_are_drawn(spine_model, q, targets, tmp_path):
    failed = np.array(q)
    failed[3] = np.nan
    plot_ik_summary(tmp_path / "a.png", spine_model, TIMES, failed, targets, origin="a test", true_q=q)
    nothing = np.full_like(targets, np.nan)
    plot_ik_summary(tmp_path / "b.png", spine_model, TIMES, q, nothing, origin="a test")
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "b.png").exists()


def test_what_does_not_fit_is_refused(spine_model, q, targets, tmp_path):
    path = tmp_path / "plot.png"
    with pytest.raises(ShapeError, match=r"q has shape \(11, 40\); valid is \(12, 40\)"):
        plot_ik_summary(path, spine_model, TIMES, q[:-1], targets, origin="a test")
    with pytest.raises(ShapeError, match=r"targets has shape \(12, 32, 3\); valid is \(12, 33, 3\)"):
        plot_ik_summary(path, spine_model, TIMES, q, targets[:, 1:], origin="a test")
    with pytest.raises(ShapeError, match=r"true_q has shape"):
        plot_ik_summary(path, spine_model, TIMES, q, targets, origin="a test", true_q=q[1:])
    with pytest.raises(SimspineError, match=r"plot.docx can't be a picture; valid suffixes are .*\.png"):
        plot_ik_summary(tmp_path / "plot.docx", spine_model, TIMES, q, targets, origin="a test")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(spine_model, q, targets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'simspine-jax\[viewer\]'"):
        plot_ik_summary(tmp_path / "plot.png", spine_model, TIMES, q, targets, origin="a test")
