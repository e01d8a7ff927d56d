"""Setups of the scale tool: what is read, what is written, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.io import (
    CoordinateTask,
    ManualScale,
    MarkerTask,
    Measurement,
    PlacingStage,
    ScaleSetup,
    ScalingStage,
    read_scale_setup,
    write_scale_setup,
)

SETUP = """<?xml version="1.0" encoding="UTF-8" ?>
<OpenSimDocument Version="40000">
<ScaleTool name="walker">
<mass>69.5</mass>
<height>-1</height>
<GenericModelMaker><model_file>generic.osim</model_file><marker_set_file>Unassigned</marker_set_file></GenericModelMaker>
<ModelScaler>
<scaling_order> manualScale measurements</scaling_order>
<MeasurementSet><objects>
<Measurement name="torso">
<MarkerPairSet><objects>
<MarkerPair><markers> C7 Hip</markers></MarkerPair>
<MarkerPair><markers> Neck Hip</markers></MarkerPair>
</objects></MarkerPairSet>
<BodyScaleSet><objects>
<BodyScale name="torso"><axes> y X</axes></BodyScale>
<BodyScale name="head"><axes>Z</axes></BodyScale>
</objects></BodyScaleSet>
</Measurement>
</objects></MeasurementSet>
<ScaleSet><objects>
<Scale><scales>1 0.9 1.1</scales><segment>pelvis</segment><apply>false</apply></Scale>
</objects></ScaleSet>
<marker_file>static.trc</marker_file>
<time_range>0.5 2.5</time_range>
<preserve_mass_distribution>true</preserve_mass_distribution>
</ModelScaler>
<MarkerPlacer>
<apply>false</apply>
<IKTaskSet><objects>
<IKMarkerTask name="C7"><weight>2</weight></IKMarkerTask>
<IKCoordinateTask name="knee"><weight>1</weight></IKCoordinateTask>
</objects></IKTaskSet>
<max_marker_movement>-1</max_marker_movement>
</MarkerPlacer>
</ScaleTool>
</OpenSimDocument>
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "setup.xml"
    path.write_text(text)
    return path


def test_a_setup_is_read(tmp_path: Path) -> None:
    setup = read_scale_setup(written(tmp_path, SETUP))
    assert setup == ScaleSetup(
        name="walker",
        mass_kg=69.5,
        model_file="generic.osim",
        scaling=ScalingStage(
            order=("manualScale", "measurements"),
            measurements=(
                Measurement("torso", (("C7", "Hip"), ("Neck", "Hip")), ("torso", "head"), ("XY", "Z")),
            ),
            manual=(ManualScale("pelvis", (1.0, 0.9, 1.1), False),),
            marker_file="static.trc",
            time_range=(0.5, 2.5),
            preserve_mass_distribution=True,
        ),
        placing=PlacingStage(
            apply=False,
            marker_tasks=(MarkerTask("C7", 2.0),),
            coordinate_tasks=(CoordinateTask("knee", 1.0),),
        ),
    )


def test_what_is_missing_has_defaults(tmp_path: Path) -> None:
    setup = read_scale_setup(written(tmp_path, "<ScaleTool/>"))
    assert setup == ScaleSetup()
    # OpenSim scales nothing without an order, and takes the markers' time range for granted.
    assert setup.scaling.order == ()
    assert setup.scaling.time_range == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("> C7 Hip<", "> C7 <", 12, "a MarkerPair has the markers 'C7'; valid is two marker names"),
        ("> C7 Hip<", "> C7 Hip Neck<", 12, "a MarkerPair has the markers 'C7 Hip Neck'"),
        ("<markers> C7 Hip</markers>", "", 12, "a MarkerPair has the markers ''"),
        ("> y X<", "> y W<", 16, "BodyScale 'torso' has the axes 'y W'; valid is some of X Y Z, each once"),
        ("> y X<", "> X X<", 16, "BodyScale 'torso' has the axes 'X X'"),
        ("<axes> y X</axes>", "", 16, "BodyScale 'torso' has no axes"),
        ('"head"', '"torso"', 17, "BodyScale 'torso' occurs twice"),
        ("manualScale measurements", "manual", 8, "'manual'; valid is measurements or manualScale"),
        ("1 0.9 1.1", "1 0 1.1", 22, "the Scale of 'pelvis' is 1 0 1.1; valid is three positive numbers"),
        ("1 0.9 1.1", "1 0.9", 22, "scales is '1 0.9'; valid is 3 finite numbers"),
        ("<segment>pelvis</segment>", "", 22, "a Scale has the segment ''; valid is the name of a body"),
        ("<scales>1 0.9 1.1</scales>", "", 22, "the Scale of 'pelvis' has no scales"),
        ("<Scale>", "<Factor>", 22, "ScaleSet holds 'Factor'; valid is Scale"),
        ("0.5 2.5", "2.5 0.5", 25, "time_range is 2.5 to 0.5 s"),
        ("69.5", "much", 4, "mass is 'much'; valid is one finite number"),
        (">true<", ">maybe<", 26, "preserve_mass_distribution is 'maybe'; valid is true or false"),
        ("<MeasurementSet>", '<MeasurementSet file="m.xml">', 9, "refers to 'm.xml'; valid is a set"),
        ('"C7"><weight>2', '"C7"><weight>-2', 31, "IKMarkerTask 'C7' has the weight -2"),
    ],
)  # fmt: skip
def test_errors_name_the_line(tmp_path: Path, old: str, new: str, line: int, reason: str) -> None:
    assert old in SETUP
    text = SETUP.replace(old, new, 1)
    if new == "<Factor>":
        text = text.replace("</Scale>", "</Factor>")
    with pytest.raises(FileFormatError, match=re.escape(reason)) as caught:
        read_scale_setup(written(tmp_path, text))
    assert f"setup.xml:{line}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds 'Model'; valid is ScaleTool"):
        read_scale_setup(written(tmp_path, "<OpenSimDocument><Model/></OpenSimDocument>"))


def test_a_measurement_checks_its_axes() -> None:
    assert Measurement("m", (("a", "b"),), ("x", "y")).axes == ("XYZ", "XYZ")
    with pytest.raises(ShapeError, match="has 1 entries of axes for 2 bodies"):
        Measurement("m", (("a", "b"),), ("x", "y"), ("X",))
    with pytest.raises(ShapeError, match="has the axes 'XX'"):
        Measurement("m", (("a", "b"),), ("x",), ("XX",))


NAMES = st.from_regex(r"[A-Za-z0-9_.&<>\"'-]{1,8}", fullmatch=True)
NUMBERS = st.floats(1e-6, 1e6)
RANGES = st.tuples(NUMBERS, NUMBERS).map(sorted).map(tuple) | st.just((-math.inf, math.inf))
FILES = st.none() | NAMES.map(lambda name: f"{name}.trc")
AXES = st.sampled_from(["X", "Y", "Z", "XY", "XZ", "YZ", "XYZ"])
SCALES = st.lists(st.tuples(NAMES, AXES), max_size=3, unique_by=lambda pair: pair[0])


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    scales = draw(SCALES)
    pairs = draw(st.lists(st.tuples(NAMES, NAMES), max_size=3))
    bodies, axes = (tuple(part) for part in zip(*scales, strict=True)) if scales else ((), ())
    return Measurement(draw(NAMES), tuple(pairs), bodies, axes, draw(st.booleans()))


SETUPS = st.builds(
    ScaleSetup,
    name=NAMES,
    mass_kg=st.none() | NUMBERS,
    height_mm=st.none() | NUMBERS,
    model_file=FILES,
    scaling=st.builds(
        ScalingStage,
        apply=st.booleans(),
        order=st.sampled_from([(), ("measurements",), ("manualScale", "measurements")]),
        measurements=st.lists(measurements(), max_size=3, unique_by=lambda m: m.name).map(tuple),
        manual=st.lists(
            st.builds(ManualScale, NAMES, st.tuples(NUMBERS, NUMBERS, NUMBERS), st.booleans()), max_size=2
        ).map(tuple),
        marker_file=FILES,
        time_range=RANGES,
        preserve_mass_distribution=st.booleans(),
    ),
    placing=st.builds(
        PlacingStage,
        marker_tasks=st.lists(
            st.builds(MarkerTask, NAMES, NUMBERS, st.booleans()), max_size=2, unique_by=lambda t: t.name
        ).map(tuple),
        coordinate_tasks=st.lists(
            st.builds(CoordinateTask, NAMES, NUMBERS, st.booleans(), st.just("manual_value"), NUMBERS),
            max_size=1,
        ).map(tuple),
        time_range=RANGES,
        max_marker_movement=st.none() | NUMBERS,
    ),
)


@settings(max_examples=60, deadline=None)
@given(SETUPS)
def test_a_written_setup_reads_back(tmp_path_factory: pytest.TempPathFactory, setup: ScaleSetup) -> None:
    path = tmp_path_factory.mktemp("setup") / "setup.xml"
    write_scale_setup(path, setup)
    assert read_scale_setup(path) == setup
