"""What a fit's figures and its report show: numbers of bands and intervals, names of what is not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simspine_jax.pipeline.fit_results import (
    FittedLength,
    FittedLevel,
    FittedLumbar,
    FittedMotion,
    FittedSubject,
)
from simspine_jax.pipeline.simulate import summarise
from simspine_jax.pipeline.stages import SubjectSize
from simspine_jax.skeleton import LUMBAR_LEVELS
from simspine_jax.statistics import SYNTHETIC_NOTICE
from simspine_jax.viz.fit_figure import fit_figure, lengths_figure
from simspine_jax.viz.fit_report import write_fit_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

pytest.importorskip("matplotlib")

NAMES = ("lordosis", "kyphosis", "lumbar", *(f"{level}_Flex_Ext" for level in LUMBAR_LEVELS))
HALF_WIDTH = 1.6448536269514722  # deviations of a normal distribution that hold 90 %
LENGTHS = (FittedLength("thigh", 410.0, 6.0), FittedLength("<shank>", 350.0, 4.0))


def motion(n: int = 12) -> FittedMotion:
    """Random numbers under a spine's names."""
    random = np.random.default_rng(0)
    used = np.ones(n, bool)
    used[4] = False
    return FittedMotion(
        np.arange(n) / 50, used, ("x",), np.zeros((n, 1)), np.ones((n, 1)), ("m",), np.zeros((n, 1, 3)),
        np.tile(np.eye(3), (n, 1, 1, 1)), NAMES, random.normal(size=(n, len(NAMES))),
        random.uniform(0.05, 0.2, (n, len(NAMES))),
    )  # fmt: skip


def subject(**changes: Any) -> FittedSubject:
    from spine_trials import make_trial

    record = summarise(make_trial(), SubjectSize(np.ones((2, 3)), 1.7, 63.0))
    made = FittedSubject(
        "S1",
        "converged",
        9,
        1.0,
        6.0,
        4.0,
        3.0,
        2.5,
        (),
        LENGTHS,
        (),
        (),
        (),
        (),
        ("wrist_<r>",),
        (),
        trials=(record,),
    )
    return replace(made, **changes)


def band_of(axes: Axes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high ends of the band that is drawn, by time."""
    corners = axes.collections[0].get_paths()[0].vertices
    times = np.unique(corners[:, 0])
    ends = [corners[corners[:, 0] == time, 1] for time in times]
    return np.array([e.min() for e in ends]), np.array([e.max() for e in ends])


def test_bands_reach_as_far_as_deviations_say() -> None:
    given = motion()
    figure = fit_figure(given, "S1_Walking", "a test's random numbers")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels[:4]] == [
        "Lordosis", "Kyphosis", "Lumbar total, extension positive",
        "L5-S1, extension positive",
    ]  # fmt: skip
    assert len(panels) == len(NAMES)
    for column, axes in enumerate(panels):
        value, std = np.degrees(given.angles[:, column]), np.degrees(given.angles_std[:, column])
        low, high = band_of(axes)
        np.testing.assert_allclose(low, value - HALF_WIDTH * std, rtol=1e-6)
        np.testing.assert_allclose(high, value + HALF_WIDTH * std, rtol=1e-6)
        (line,) = axes.get_lines()
        np.testing.assert_allclose(line.get_ydata(), value)
        np.testing.assert_allclose(line.get_xdata(), given.times)
        assert len(axes.collections) == 2, "the frame without data has a ground of its own"


@pytest.mark.parametrize("std", [0.0, np.nan])
def test_an_angle_without_a_deviation_is_named_instead(std: float) -> None:
    given = motion()
    spread = given.angles_std.copy()
    spread[:, 3] = std
    figure = fit_figure(replace(given, angles_std=spread), "S1_Walking", "a test's random numbers")
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert "L5-S1, extension positive" not in titles
    assert len(titles) == len(NAMES) - 1
    assert "no deviation is known of: L5-S1" in " ".join(figure.get_suptitle().split())


def test_lengths_are_drawn_with_their_intervals() -> None:
    figure = lengths_figure(subject(), "a test's numbers")
    whole, apart = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in whole.patches], [410, 350])
    for axes, middle in ((whole, [410, 350]), (apart, [0, 0])):
        (whiskers,) = axes.collections
        ends = np.array([path.vertices[:, 0] for path in whiskers.get_paths()])
        np.testing.assert_allclose(ends[:, 0], np.array(middle) - HALF_WIDTH * np.array([6, 4]), rtol=1e-6)
        np.testing.assert_allclose(ends[:, 1], np.array(middle) + HALF_WIDTH * np.array([6, 4]), rtol=1e-6)
    assert [label.get_text() for label in whole.get_yticklabels()] == ["thigh  410 ± 10", "<shank>  350 ± 7"]
    assert len(lengths_figure(subject(lengths=()), "a test's numbers").axes) == 2


def test_the_report_says_what_was_found(tmp_path: Path) -> None:
    result, path = subject(doubts=("camera <b> is upside down",)), tmp_path / "report.html"
    name = result.trials[0].name
    write_fit_report(path, result, {name: motion()}, {"in motion": "S1 Walking.html"})
    text = path.read_text(encoding="utf-8")
    assert text.count("<img ") == 2
    assert "wrist_&lt;r&gt;" in text
    assert "camera &lt;b&gt; is upside down" in text
    assert "<shank>" not in text
    assert "<b>" not in text
    assert 'href="S1%20Walking.html"' in text
    assert "6.00 px before the fit, 4.00 px after it" in text
    for number in ("410.0", "400.1", "419.9"):
        assert f">{number}</td>" in text
    assert SYNTHETIC_NOTICE not in text
    synthetic = replace(result.trials[0], truth_mpjpe_mm=(("all", 1.0),))
    write_fit_report(path, replace(result, trials=(synthetic,), unseen=(), lengths=()), {name: motion()})
    text = path.read_text(encoding="utf-8")
    assert SYNTHETIC_NOTICE in text
    assert "tell something of each free coordinate" in text
    assert "none of the keypoints that lengths are measured between" in text


def test_a_model_without_a_spine_has_a_report_too(tmp_path: Path) -> None:
    result = subject()
    bare = replace(motion(), angle_names=(), angles=np.zeros((12, 0)), angles_std=np.zeros((12, 0)))
    write_fit_report(tmp_path / "report.html", result, {result.trials[0].name: bare})
    assert "no spine to measure angles of" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_has_the_lumbar_levels_where_they_were_let_go(tmp_path: Path) -> None:
    level = FittedLevel("L4_L5_FE", 0.21, 0.03, 0.25, 0.075)
    found = FittedLumbar("rhythm", -10.0, -4.5, 5.5, "evidence <against> it", ("lumbar2",), (level,))
    path = tmp_path / "report.html"
    for lumbar in (found, replace(found, treatment="free", log_bayes_factor=None, levels=())):
        write_fit_report(path, subject(lumbar=lumbar), {subject().trials[0].name: motion()})
        text = path.read_text(encoding="utf-8")
        assert "evidence &lt;against&gt; it" in text
        assert ("Bayes factor against the model&#x27;s rhythm is 5.5" in text) == (lumbar is found)
        assert all((f">{cell}</td>" in text) == (lumbar is found) for cell in ("0.210", "0.030", "0.075"))
        assert "are told apart by little: lumbar2" in text
