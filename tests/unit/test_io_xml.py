import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.io import (
    CoordinateTask,
    IKSetup,
    MarkerDefinition,
    MarkerTask,
    read_ik_setup,
    read_marker_set,
    write_marker_set,
)
from simspine_jax.io.xml_reader import MAX_DEPTH, parse_xml

DECLARATION = '<?xml version="1.0" encoding="UTF-8" ?>\n'

MARKERS_4 = f"""{DECLARATION}<OpenSimDocument Version="40000">
  <MarkerSet name="markerset">
    <objects>
      <Marker name="Nose">
        <socket_parent_frame>/bodyset/head</socket_parent_frame>
        <location>0.116266 0.0126 <!-- up --> 1e-3</location>
        <fixed>true</fixed>
      </Marker>
      <Marker name="Left heel">
        <socket_parent_frame>/ground</socket_parent_frame>
        <location> 0 -0.5 .25 </location>
      </Marker>
    </objects>
    <groups />
  </MarkerSet>
</OpenSimDocument>
"""
MARKERS_3 = (
    MARKERS_4.replace("40000", "30000").replace("socket_parent_frame", "body").replace("/bodyset/", "")
)

SETUP = f"""{DECLARATION}<OpenSimDocument Version="30000">
  <InverseKinematicsTool name="walk">
    <model_file>model.osim</model_file>
    <constraint_weight>20</constraint_weight>
    <accuracy>1e-005</accuracy>
    <IKTaskSet name="tasks">
      <objects>
        <IKMarkerTask name="C7"><apply>true</apply><weight>0.5</weight></IKMarkerTask>
        <IKMarkerTask name="T12"><apply>False</apply><weight>2</weight></IKMarkerTask>
        <IKCoordinateTask name="knee">
          <apply>true</apply>
          <weight>10</weight>
          <value_type>manual_value</value_type>
          <value>-0.25</value>
        </IKCoordinateTask>
      </objects>
    </IKTaskSet>
    <marker_file>walk.trc</marker_file>
    <coordinate_file>Unassigned</coordinate_file>
    <time_range> 0.5 2.5</time_range>
    <report_errors>true</report_errors>
    <output_motion_file>walk.mot</output_motion_file>
  </InverseKinematicsTool>
</OpenSimDocument>
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_content(content: str) -> Path:
        path = tmp_path / "file.xml"
        path.write_text(content, encoding="utf-8")
        return path

    return write_content


def assert_refused(read: Callable[[Path], Any], path: Path, line: int, reason: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        read(path)
    message = str(caught.value)
    assert f"file.xml:{line}: " in message
    assert reason in message
    assert "; valid is " in message
    assert "\n" not in message


def test_tags_with_double_colons_are_read(write: Write) -> None:
    root = parse_xml(write("<a>\n <H::Params name='p'><x:y>1</x:y></H::Params>\n</a>"))
    child = root[0]
    assert child.tag == "H::Params"
    assert child.get("name") == "p"
    assert child[0].text == "1"


def test_a_declared_encoding_does_not_matter(write: Write) -> None:
    for encoding in ("UTF-8", "ISO-8859-1", "UTF-16", "nonsense"):
        path = write(f'<?xml version="1.0" encoding="{encoding}"?><a>30 °</a>')
        assert parse_xml(path).text == "30 °"
    path.write_bytes('<?xml version="1.0" encoding="UTF-8"?><a>30 °</a>'.encode("latin-1"))
    assert parse_xml(path).text == "30 °"


LAUGHS = "<!DOCTYPE a [\n" + "".join(
    f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9)
)  # a thousand million times l0


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("<a>\n<b>\n</a>", 3, "the XML is broken (mismatched tag)"),
        ("<a>\n<b>\n", 3, "broken"),
        ("time\t1\n", 1, "broken"),
        ("<a/>\n<b/>", 2, "broken"),
        ("<a>\n&lol;</a>", 2, "undefined entity"),
        (f'{DECLARATION}<!DOCTYPE a [<!ENTITY l0 "lol">]>\n<a>&l0;</a>', 2, "DOCTYPE"),
        (f"{LAUGHS}]>\n<a>&l9;</a>", 1, "DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "/etc/passwd">\n<a/>', 1, "DOCTYPE"),
        ("<a>\n" * (MAX_DEPTH + 1), MAX_DEPTH + 1, "deep"),
        ("<a>" * 100_000, 1, "deep"),
    ],
)
def test_bad_xml_is_refused_by_line(write: Write, content: str, line: int, reason: str) -> None:
    assert_refused(parse_xml, write(content), line, reason)


@pytest.mark.parametrize(
    "content",
    [
        MARKERS_4,
        MARKERS_3,
        MARKERS_4.replace("socket_parent_frame", "socket_parent_frame_connectee_name"),
        MARKERS_4.replace("/bodyset/", "../../bodyset/").replace("/ground", "../../ground"),
        MARKERS_4.replace('<OpenSimDocument Version="40000">', "").replace("</OpenSimDocument>", ""),
        MARKERS_4.replace('"Left heel"', '" Left heel "'),
    ],
)
def test_reads_marker_sets_of_all_versions(write: Write, content: str) -> None:
    assert read_marker_set(write(content)) == (
        MarkerDefinition("Nose", "head", (0.116266, 0.0126, 0.001)),
        MarkerDefinition("Left heel", "ground", (0.0, -0.5, 0.25)),
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        (
            'MarkerSet name="markerset"',
            'BodySet name="b"',
            2,
            "the document holds 'BodySet'; valid is MarkerSet",
        ),
        ('"Left heel"', '"Nose"', 10, "Marker 'Nose' occurs twice"),
        ('"Left heel"', '"a&#10;b"', 10, "printable text"),
        (' name="Left heel"', "", 10, "printable text"),
        ("0.0126 ", "", 7, "location is '0.116266  1e-3'; valid is 3 finite numbers"),
        ("0.0126", "1 2", 7, "valid is 3 finite numbers"),
        ("0.0126", "nan", 7, "valid is 3 finite numbers"),
        ("0.0126", "inf", 7, "valid is 3 finite numbers"),
        ("0.0126", "126", 7, "Marker 'Nose' is at 0.116266 126 0.001; valid is up to 10 m"),
        ("<location> 0 -0.5 .25 </location>", "", 10, "Marker 'Left heel' has no location"),
        (".25 </location>", ".25 </location><location/>", 12, "2 elements location"),
        ("<socket_parent_frame>/ground</socket_parent_frame>", "", 10, "names 0 bodies"),
        ("<fixed>", "<body>head</body><fixed>", 5, "names 2 bodies"),
        ("/ground", "", 11, "on the frame ''"),
        ("/ground", "/bodyset/head/head_offset", 11, "on the frame '/bodyset/head/head_offset'"),
        ("/ground", "/jointset/neck/head_offset", 11, "a body, such as /bodyset/torso"),
    ],
)
def test_marker_set_errors_name_the_line(write: Write, old: str, new: str, line: int, reason: str) -> None:
    assert old in MARKERS_4
    content = MARKERS_4.replace(old, new, 1)
    if "BodySet" in new:
        content = content.replace("/MarkerSet", "/BodySet")
    assert_refused(read_marker_set, write(content), line, reason)


def test_other_members_and_empty_sets_are_refused(write: Write) -> None:
    content = MARKERS_4.replace("<Marker ", "<Body ").replace("</Marker>", "</Body>")
    assert_refused(read_marker_set, write(content), 5, "MarkerSet holds 'Body'; valid is Marker")
    for empty in ("<MarkerSet/>", "<MarkerSet><objects/></MarkerSet>"):
        assert_refused(read_marker_set, write(empty), 1, "no markers")
    assert_refused(read_marker_set, write("<OpenSimDocument/>"), 1, "the document holds 'nothing'")


NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
BODIES = NAMES.map(lambda text: text.replace("/", "_")).filter(lambda text: text != "..")


@settings(max_examples=60, deadline=None)
@given(
    markers=st.lists(
        st.builds(
            MarkerDefinition,
            name=NAMES,
            body=BODIES,
            location=st.tuples(*[st.floats(-10, 10)] * 3),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda marker: marker.name,
    )
)
def test_marker_sets_round_trip(
    tmp_path_factory: pytest.TempPathFactory, markers: list[MarkerDefinition]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.xml"
    write_marker_set(path, markers)
    assert read_marker_set(path) == tuple(markers)


def test_marker_definitions_hold_their_rules(tmp_path: Path) -> None:
    marker = MarkerDefinition("C7", "torso", (0.0, 0.0, 0.0))
    for change in ({"name": ""}, {"body": "/bodyset/torso"}, {"body": ".."}, {"location": (0.0, 11.0, 0.0)}):
        with pytest.raises(ShapeError, match="valid is"):
            replace(marker, **change)  # pyright: ignore[reportArgumentType]
    for location in ((0.0, math.nan, 0.0), (0.0, 0.0)):
        with pytest.raises(ShapeError, match="valid is three numbers"):
            MarkerDefinition("C7", "torso", location)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="'C7' is defined twice"):
        write_marker_set(tmp_path / "x.xml", [marker, marker])


TASKS = (
    (MarkerTask("C7", 0.5, True), MarkerTask("T12", 2.0, False)),
    (CoordinateTask("knee", 10.0, True, "manual_value", -0.25),),
)


def test_reads_ik_setups(write: Write) -> None:
    assert read_ik_setup(write(SETUP)) == IKSetup(
        *TASKS,
        constraint_weight=20.0,
        accuracy=1e-5,
        time_range=(0.5, 2.5),
        model_file="model.osim",
        marker_file="walk.trc",
        coordinate_file=None,
        output_motion_file="walk.mot",
    )


def test_missing_tags_have_opensims_defaults(write: Write) -> None:
    setup = read_ik_setup(write("<OpenSimDocument><InverseKinematicsTool/></OpenSimDocument>"))
    assert setup == IKSetup()
    assert (setup.constraint_weight, setup.accuracy) == (math.inf, 1e-5)
    assert setup.time_range == (-math.inf, math.inf)
    tasks = "<objects><IKMarkerTask name='a'/><IKCoordinateTask name='a'/></objects>"
    setup = read_ik_setup(write(f"<IKTaskSet>{tasks}</IKTaskSet>"))
    assert setup.marker_tasks == (MarkerTask("a", 0.0, True),)
    assert setup.coordinate_tasks == (CoordinateTask("a", 0.0, True, "default_value", None),)


@pytest.mark.parametrize("word", ["Inf", "Infinity", "inf", "", "Unassigned"])
def test_constraints_can_be_enforced(write: Write, word: str) -> None:
    assert read_ik_setup(write(SETUP.replace(">20<", f">{word}<"))).constraint_weight == math.inf


def test_time_ranges_can_be_open(write: Write) -> None:
    assert read_ik_setup(write(SETUP.replace("0.5 2.5", "-Inf Inf"))).time_range == (-math.inf, math.inf)
    assert read_ik_setup(write(SETUP.replace(" 0.5 2.5", ""))).time_range == (-math.inf, math.inf)


def test_the_documents_own_defaults_count(write: Write) -> None:
    defaults = """<defaults>
      <IKMarkerTask name="default"><apply>false</apply><weight>5</weight></IKMarkerTask>
    </defaults>"""
    content = SETUP.replace("<model_file>", f"{defaults}<model_file>").replace("<weight>0.5</weight>", "")
    setup = read_ik_setup(write(content.replace("<apply>true</apply>", "")))
    assert setup.marker_tasks == (MarkerTask("C7", 5.0, False), MarkerTask("T12", 2.0, False))
    assert setup.coordinate_tasks[0].apply is True


def test_tasks_in_a_file_of_their_own(write: Write, tmp_path: Path) -> None:
    start, end = SETUP.index("<IKTaskSet"), SETUP.index("</IKTaskSet>") + len("</IKTaskSet>")
    tasks = tmp_path / "tasks.xml"
    tasks.write_text(f"<OpenSimDocument>{SETUP[start:end]}</OpenSimDocument>")
    path = write(SETUP[:start] + '<IKTaskSet file="tasks.xml"/>' + SETUP[end:])
    setup = read_ik_setup(path)
    assert (setup.marker_tasks, setup.coordinate_tasks) == TASKS
    assert setup.time_range == (0.5, 2.5)
    alone = read_ik_setup(tasks)
    assert alone == IKSetup(*TASKS)
    tasks.write_text('<IKTaskSet file="tasks.xml"/>')
    with pytest.raises(FileFormatError, match=r"tasks.xml:1: the IKTaskSet refers on to 'tasks.xml'"):
        read_ik_setup(path)
    tasks.unlink()
    with pytest.raises(FileFormatError, match=r"tasks.xml: there is no such file"):
        read_ik_setup(path)


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("<weight>0.5", "<weight>-0.5", 9, "IKMarkerTask 'C7' has the weight -0.5; valid is zero or more"),
        ("<weight>0.5", "<weight>inf", 9, "weight is 'inf'; valid is one finite number"),
        ("<weight>0.5", "<weight>", 9, "weight is ''"),
        ("<weight>0.5", "<weight>1 2", 9, "weight is '1 2'"),
        ("<apply>true", "<apply>yes", 9, "apply is 'yes'; valid is true or false"),
        ("manual_value", "manual", 11, "'manual'; valid is default_value or manual_value or from_file"),
        ("<value>-0.25</value>", "", 11, "and no value; valid is a number"),
        ("-0.25", "x", 15, "value is 'x'"),
        ('"T12"', '"C7"', 10, "IKMarkerTask 'C7' occurs twice"),
        ('"T12"', '""', 10, "IKMarkerTask has the name ''"),
        (">20<", ">-1<", 5, "constraint_weight is -1; valid is zero or more, or Inf"),
        (">20<", ">nan<", 5, "constraint_weight is 'nan'"),
        ("1e-005", "0", 6, "accuracy is 0; valid is a positive number"),
        ("1e-005", "Inf", 6, "accuracy is 'Inf'"),
        ("0.5 2.5", "2.5 0.5", 21, "time_range is 2.5 to 0.5 s"),
        ("0.5 2.5", "0.5", 21, "valid is 2 numbers"),
        ("walk.trc", "walk&#10;.trc", 19, "a file name on one line"),
        ("<marker_file>", "<marker_file/>\n<marker_file>", 20, "2 elements marker_file"),
        ("InverseKinematicsTool name", "ScaleTool name", 2, "valid is InverseKinematicsTool or IKTaskSet"),
    ],
)  # fmt: skip
def test_setup_errors_name_the_line(write: Write, old: str, new: str, line: int, reason: str) -> None:
    assert old in SETUP
    content = SETUP.replace(old, new, 1)
    if "ScaleTool" in new:
        content = content.replace("/InverseKinematicsTool", "/ScaleTool")
    assert_refused(read_ik_setup, write(content), line, reason)


def test_other_tasks_are_refused(write: Write) -> None:
    content = SETUP.replace('<IKMarkerTask name="T12">', '<IKOther name="T12">').replace(
        "<weight>2</weight></IKMarkerTask>", "<weight>2</weight></IKOther>"
    )
    reason = "IKTaskSet holds 'IKOther'; valid is IKMarkerTask or IKCoordinateTask"
    assert_refused(read_ik_setup, write(content), 10, reason)
