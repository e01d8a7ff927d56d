"""The redrawn figures: what their panels hold, where they say the data come from, and what they refuse."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from spine_trials import CAMERAS, MARKERS, SOURCE, bare_trial, lost_trial, make_set, make_trial, unseen_trial

from simspine_jax import reference_values as reference
from simspine_jax.annotations import GAP_FILLED, REASONS, Quality, QualityEvent, SpineTrial
from simspine_jax.errors import MissingDependencyError, SimspineError
from simspine_jax.reference_values import MOTIONS, level_label
from simspine_jax.skeleton import LUMBAR_LEVELS
from simspine_jax.statistics import (
    BIN,
    SYNTHETIC_NOTICE,
    UNSEEN_NOTICE,
    Tally,
    gather_statistics,
    spine_angles,
)
from simspine_jax.viz.figures import (
    errors_figure,
    lumbar_ranges_figure,
    neck_figure,
    thoracolumbar_figure,
    write_figure,
)
from simspine_jax.viz.trial_figures import (
    curvature_figure,
    lumbar_figure,
    neck_over_time_figure,
    quality_figure,
    runs,
)

HALF_BIN = BIN / 2 + 1e-9


@pytest.fixture(scope="module")
def statistics():
    return gather_statistics(make_set())


def texts(figure):
    """Every text of a drawn figure."""
    figure.canvas.draw()
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def violins(axes):
    """Lowest, highest and mean of each violin; shared scales leave the numbers alone."""
    bodies = [
        c for c in axes.collections if type(c).__name__ in ("PolyCollection", "FillBetweenPolyCollection")
    ]
    means = next(c for c in axes.collections if type(c).__name__ == "LineCollection")
    spans = [(c.get_paths()[0].vertices[:, 1].min(), c.get_paths()[0].vertices[:, 1].max()) for c in bodies]
    return spans, [segment[0, 1] for segment in means.get_segments()]


def test_figure_3_shows_curvature_by_action_and_ranges_by_level(statistics):
    figure = thoracolumbar_figure(statistics, unverified=True)
    lordosis, kyphosis, *ranges = figure.axes
    assert [label.get_text() for label in kyphosis.get_xticklabels()] == ["Directions", "Sitting", "Walking"]
    for axes, name in ((lordosis, "lordosis"), (kyphosis, "kyphosis")):
        tallies = [group.curvature[name] for group in statistics.by_action.values()]
        spans, means = violins(axes)
        np.testing.assert_allclose(means, [tally.mean for tally in tallies])
        for (low, high), tally in zip(spans, tallies, strict=True):
            # From the 1st to the 99th percentile and half a kernel beyond.
            assert tally.percentile(1) - tally.sd < low < tally.percentile(5)
            assert tally.percentile(95) < high < tally.percentile(99) + tally.sd
    assert [axes.get_title(loc="left").split(",")[0].lower() for axes in ranges] == list(MOTIONS)
    for axes, motion in zip(ranges, MOTIONS, strict=True):
        dashed, solid = axes.lines
        levels = LUMBAR_LEVELS[::-1]
        assert dashed.get_linestyle() == "--"
        known = [reference.LUMBAR_ROM[level, motion] for level in levels]
        np.testing.assert_array_equal(dashed.get_ydata(), [value.degrees[0] for value in known])
        half = 1 if motion == MOTIONS[0] else 2
        found = [statistics.whole.rotations[level, motion].robust_range / half for level in levels]
        np.testing.assert_allclose(solid.get_ydata(), found)
    assert [label.get_text() for label in axes.get_xticklabels()] == [level_label(v) for v in levels]


@pytest.mark.parametrize(
    ("unverified", "lordosis_bands", "kyphosis_bands"),
    [(False, {"PMC6680033": (38.6, 61.0)}, {"Zappala": (20, 40)}),
     (True, {"Lin": (21.1, 45.3)}, {"Fon": (20, 40)})],
)  # fmt: skip
def test_bands_of_the_literature_carry_their_status(statistics, unverified, lordosis_bands, kyphosis_bands):
    lordosis, kyphosis, *_ = thoracolumbar_figure(statistics, unverified=unverified).axes
    for axes, spans in ((lordosis, lordosis_bands | {"SIMSPINE": (33, 39)}),
                        (kyphosis, kyphosis_bands | {"SIMSPINE": (29, 37)})):  # fmt: skip
        patches = [patch for patch in axes.patches if not str(patch.get_label()).startswith("by keypoints")]
        bands = {str(band.get_label()).split()[0].strip(","): band for band in patches}
        assert set(bands) == set(spans)
        for name, (low, high) in spans.items():
            assert (bands[name].get_y(), bands[name].get_y() + bands[name].get_height()) == (
                pytest.approx(low), pytest.approx(high),
            )  # fmt: skip
            status = "(verified)" if name == "SIMSPINE" or not unverified else "(recalled, unverified)"
            assert bands[name].get_label().endswith(status)
        # The narrow one lies upon the wide one.
        assert [str(band.get_label()).startswith("SIMSPINE") for band in patches] == [False, True]
        shades = [band.get_facecolor() for band in patches]
        assert shades == [to_rgba("#eeeeee"), to_rgba("#d9e8f3")]


def test_figure_4_shows_the_necks_rotations_by_action(statistics):
    figure = neck_figure(statistics)
    assert len(figure.axes) == 3
    for axes, motion in zip(figure.axes, MOTIONS, strict=True):
        _, means = violins(axes)
        expected = [group.rotations["neck", motion].mean for group in statistics.by_action.values()]
        np.testing.assert_allclose(means, expected)
        assert axes.get_title(loc="left").lower().startswith(motion)


def test_a_violin_is_wide_where_the_values_are(statistics):
    """Two thirds at one value, a third at another: two humps of that ratio."""
    values = np.concatenate([np.full(200, 10.0), np.full(100, 20.0)]) + np.random.default_rng(0).normal(
        0, 0.3, 300
    )
    from simspine_jax.viz.figures import _violin

    shape = _violin(Tally.of(values))
    at, width = np.asarray(shape["coords"]), np.asarray(shape["vals"])
    low, high = width[at < 15].max(), width[at >= 15].max()
    assert low / high == pytest.approx(2, rel=0.1)
    assert at[np.argmax(width)] == pytest.approx(10, abs=0.3)


def test_figures_say_their_data_and_the_status_of_references(statistics):
    for draw in (thoracolumbar_figure, neck_figure, lumbar_ranges_figure):
        for unverified in (False, True):
            words = " ".join(texts(draw(statistics, unverified=unverified))).replace("\n", " ")
            assert SOURCE in words
            assert "440 of 500 frames usable" in words
            assert ("recalled, unverified" in words) == unverified
            assert (reference.NONE_SOUND in words) != unverified
    assert "verified" in " ".join(texts(neck_figure(statistics))).replace("unverified", "")


def test_errors_are_bars_of_medians(statistics):
    figure = errors_figure(statistics.residuals_mm, "Residual by marker", "mm", statistics.source)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    expected = [statistics.residuals_mm[name].percentile(50) for name in MARKERS[:2]]
    np.testing.assert_allclose(heights, expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(MARKERS[:2])
    assert "(never seen: never)" in figure.get_suptitle()
    assert axes.get_ylabel() == "Median, 5 to 95 % (mm)"
    assert CAMERAS[0] in texts(errors_figure(statistics.reprojection_px, "x", "px", "y"))


def test_curves_over_time_are_the_trials_angles():
    trial = make_trial()
    angles = spine_angles(trial)
    lordosis, kyphosis = curvature_figure(trial, angles).axes
    for axes, names in ((lordosis, ("lordosis", "body_lordosis")), (kyphosis, ("kyphosis", "body_kyphosis"))):
        for line, name in zip(axes.lines, names, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), trial.times)
            np.testing.assert_array_equal(line.get_ydata(), getattr(angles, name))
    assert [line.get_label() for line in kyphosis.lines] == [
        "by keypoints\n(as the paper)", "by bodies\n(rigid thorax:\nconstant)",
    ]  # fmt: skip
    for j, axes in enumerate(lumbar_figure(trial, angles).axes):
        assert [line.get_label() for line in axes.lines] == [level_label(level) for level in LUMBAR_LEVELS]
        for i, line in enumerate(axes.lines):
            np.testing.assert_array_equal(line.get_ydata(), angles.rotations[:, i, j])
    (neck,) = neck_over_time_figure(trial, angles).axes
    np.testing.assert_array_equal(neck.lines[2].get_ydata(), angles.rotations[:, 6, 2])


def test_levels_that_follow_one_are_drawn_as_one_and_their_sum():
    trial = make_trial()
    ratios = np.array([1, 1.8571, 1.6429, 1.1429, 0.9286, 0.5714])[:, None]
    angles = spine_angles(trial)
    held = np.concatenate([angles.rotations[:, :1] * ratios, angles.rotations[:, 6:]], axis=1)
    figure = lumbar_figure(trial, dataclasses.replace(angles, rotations=held))
    assert "follow L5-S1 in fixed ratios" in figure.get_suptitle()
    assert "fixed ratios" not in lumbar_figure(trial, angles).get_suptitle()
    for j, axes in enumerate(figure.axes):
        assert [line.get_label() for line in axes.lines] == ["L5-S1", "all six\ntogether"]
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), held[:, 0, j])
        np.testing.assert_allclose(axes.lines[1].get_ydata(), held[:, :6, j].sum(axis=1))


def test_figures_say_when_nobody_was_measured_or_no_spine_seen():
    synthetic = "synthetic capture: S1, Walking, seed 0"
    for trial, notice, known in (
        (make_trial(source=synthetic), SYNTHETIC_NOTICE, "simulated, 5 to 95 %"),
        (unseen_trial(), UNSEEN_NOTICE, "by the model's prior, 5 to 95 %"),
        (make_trial(), None, "measured, 5 to 95 %"),
    ):
        statistics, angles = gather_statistics([trial]), spine_angles(trial)
        ranges = [lumbar_ranges_figure(statistics), thoracolumbar_figure(statistics)]
        others = [
            neck_figure(statistics), curvature_figure(trial, angles), lumbar_figure(trial, angles),
            neck_over_time_figure(trial, angles), quality_figure(trial),
        ]  # fmt: skip
        for figure in ranges + others:
            assert figure.get_supxlabel().replace("\n", " ") == (notice or "")
        for figure in ranges:
            labels = {line.get_label() for axes in figure.axes for line in axes.lines}
            assert known in labels


def test_figures_are_as_wide_as_their_actions_and_legends_lie_outside():
    widths = {}
    for n in (1, 4, 15):
        statistics = gather_statistics(
            [make_trial(action=f"Action{chr(65 + i)}", n_frames=12) for i in range(n)]
        )
        figures = thoracolumbar_figure(statistics), neck_figure(statistics)
        widths[n] = [figure.get_figwidth() for figure in figures]
        figures[0].canvas.draw()
        for axes in figures[0].axes:
            box, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
            assert legend.y0 >= box.y1
            assert legend.x1 <= figures[0].bbox.x1
    for few, some, many in zip(*widths.values(), strict=True):
        assert few <= some < many <= 11


def test_unusable_frames_are_marked_and_do_not_set_the_scale():
    trial = make_trial()
    spoiled = np.array(trial.lordosis)
    spoiled[6] = 50.0
    trial = make_trial(lordosis=spoiled)
    lordosis = curvature_figure(trial, spine_angles(trial)).axes[0]
    assert lordosis.get_ylim()[1] < 90
    ground = next(c for c in lordosis.collections if c.get_label() == "not usable")
    (path,) = ground.get_paths()
    # Frames 5 to 9 at 50 per second, each as long as a frame.
    assert (path.vertices[:, 0].min(), path.vertices[:, 0].max()) == pytest.approx((4.5 / 50, 9.5 / 50))


def spans_of(figure) -> dict[str, list[tuple[float, float]]]:
    """First and last of each bar, in frames at 50 per second, by its row's words; two for a fault."""
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    names = [f"{label}{half}" for label in labels[:-2] for half in (", before", ", after")] + labels[-2:]
    return {
        name: [(p.vertices[:, 0].min() * 50, p.vertices[:, 0].max() * 50) for p in bars.get_paths()]
        for name, bars in zip(names, axes.collections, strict=True)
    }


def test_the_timeline_has_a_bar_for_each_run_before_and_after_repair():
    reason = REASONS[Quality.MARKER_RESIDUAL][0]
    events = (
        QualityEvent("quality", 20, 21, "all markers", reason, "repaired"),
        QualityEvent("signal", 3, 5, "Nose", GAP_FILLED, "noted"),
    )
    spans = spans_of(quality_figure(make_trial(events=events)))
    assert len(spans) == 2 * (len(Quality) - 1) + 2
    residual = "Marker residual: 17.5 % before, 12.5 % after repair"
    assert spans[f"{residual}, before"] == [pytest.approx((4.5, 9.5)), pytest.approx((19.5, 21.5))]
    assert spans[f"{residual}, after"] == [pytest.approx((4.5, 9.5))]
    assert spans["Curvature: 2.5 % before, 2.5 % after repair, after"] == [pytest.approx((8.5, 9.5))]
    assert spans["Repaired frames: 5.0 %"] == [pytest.approx((19.5, 21.5))]
    assert spans["Gap of a marker filled: 7.5 %"] == [pytest.approx((2.5, 5.5))]
    assert spans["No pose: 0.0 % before, 0.0 % after repair, after"] == []


def test_single_frames_of_a_long_trial_are_seen():
    n = 100_000
    quality = np.zeros(n, np.uint16)
    quality[[100, 102, 50_000]] = np.uint16(Quality.ANGULAR_JUMP)
    trial = SpineTrial("S1", "x", np.arange(n) / 50, 50, np.zeros((n, 37, 3)), np.zeros((n, 62)), quality)
    spans = spans_of(quality_figure(trial))["Angular jump: 0.0 % before, 0.0 % after repair, after"]
    pixel = n / 800
    assert len(spans) == 2  # the first two touch
    assert spans[0] == (pytest.approx(100 - pixel / 2, abs=1), pytest.approx(102 + pixel / 2, abs=1))
    assert spans[1] == (pytest.approx(50_000 - pixel / 2, abs=1), pytest.approx(50_000 + pixel / 2, abs=1))


@pytest.mark.parametrize("n", [0, 1, 7, 50])
def test_runs_cover_exactly_what_is_true(n):
    mask = np.random.default_rng(n).random(n) < 0.5
    again = np.zeros(n, bool)
    for first, last in runs(mask):
        assert not again[first : last + 1].any()
        again[first : last + 1] = True
        assert first == 0 or not mask[first - 1]
        assert last == n - 1 or not mask[last + 1]
    np.testing.assert_array_equal(again, mask)


@pytest.mark.parametrize(
    "trial", [bare_trial(), lost_trial(), make_trial(n_frames=1)], ids=["bare", "lost", "one"]
)
def test_what_is_missing_is_said(trial):
    statistics, angles = gather_statistics([trial]), spine_angles(trial)
    figures = [
        thoracolumbar_figure(statistics), neck_figure(statistics), lumbar_ranges_figure(statistics),
        curvature_figure(trial, angles), lumbar_figure(trial, angles), neck_over_time_figure(trial, angles),
        quality_figure(trial), errors_figure(statistics.reprojection_px, "Errors", "px", statistics.source),
    ]  # fmt: skip
    words = [" ".join(texts(figure)) for figure in figures]
    if not trial.usable.any():
        for i in (0, 1, 3, 4, 5, 7):
            assert "no usable data" in words[i]
    assert ("by bodies" in words[0]) == (trial.body_lordosis is not None)


def test_pictures_are_written_whole_and_equal_figures_are_equal_files(statistics, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests' packages load it
    for suffix in ("png", "svg", "pdf"):
        for name in ("a", "b"):
            write_figure(tmp_path / f"{name}.{suffix}", neck_figure(statistics))
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
        assert first == second
        assert len(first) > 5_000
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] == 150 * 6.5
    assert picture[..., :3].std() > 0.05
    assert "matplotlib.pyplot" not in sys.modules


def test_many_names_stand_upright_and_few_slant():
    for n, slope in ((3, 40), (25, 90)):
        trials = [make_trial(action=f"Action{chr(65 + i)}", n_frames=12) for i in range(n)]
        labels = neck_figure(gather_statistics(trials)).axes[-1].get_xticklabels()
        assert len(labels) == n
        assert {label.get_rotation() for label in labels} == {slope}


def test_other_suffixes_are_refused(statistics, tmp_path):
    with pytest.raises(
        SimspineError, match=r"f\.docx can't be a picture; valid suffixes are \.png, \.svg, \.pdf"
    ):
        write_figure(tmp_path / "f.docx", neck_figure(statistics))
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(statistics, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'simspine-jax\[viewer\]'"):
        thoracolumbar_figure(statistics)
