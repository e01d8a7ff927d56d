from collections.abc import Callable
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax.errors import FileFormatError, ShapeError, UnknownNameError
from simspine_jax.io import Storage, read_sto, to_degrees, to_radians, write_sto

NAN = float("nan")

HEADER = "Coordinates\nversion=1\nnRows=2\nnColumns=3\ninDegrees=yes\n\nUnits are S.I. units\n\nendheader\n"
TABLE = "time\tknee\ttx\n0.5\t180\t1\n1.0\t-90\t2\n"
SIMM = "name gait\ndatacolumns 3\ndatarows 2\notherdata 1\nrange 0.5 1.0\nendheader\n"

Reader = Callable[[str], Storage]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    def read_content(content: str) -> Storage:
        path = tmp_path / "walk.mot"
        path.write_bytes(content.encode())
        return read_sto(path)

    return read_content


def storage(**changes: object) -> Storage:
    values = {
        "name": "Coordinates",
        "columns": ("knee", "tx", "force"),
        "times": [0.0, 0.5],
        "data": [[180.0, 1.0, 90.0], [-90.0, 2.0, NAN]],
        "in_degrees": True,
    }
    return Storage(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_reads_name_columns_times_and_data(read: Reader) -> None:
    table = read(HEADER + TABLE)
    assert table.name == "Coordinates"
    assert table.columns == ("knee", "tx")
    assert table.in_degrees is True
    assert table.n_frames == 2
    assert table.duration == 0.5
    assert table.times.tolist() == [0.5, 1.0]
    assert table.data.tolist() == [[180.0, 1.0], [-90.0, 2.0]]
    assert table.column("tx").tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("header", "name", "in_degrees"),
    [
        (HEADER, "Coordinates", True),
        (HEADER.replace("=yes", " = NO"), "Coordinates", False),
        (HEADER.replace("inDegrees=yes\n", ""), "Coordinates", None),
        (HEADER.replace("nRows=2", "nRows=1000000000"), "Coordinates", True),
        (HEADER.replace("nColumns=3", "DataType=double\nOpenSimVersion=4.6"), "Coordinates", True),
        (HEADER.replace("endheader", " EndHeader "), "Coordinates", True),
        (HEADER.replace("endheader", "end header:"), "Coordinates", True),
        (HEADER.replace("Coordinates\n", ""), "", True),
        (HEADER.replace("Coordinates\n", "\n\n"), "", True),
        (SIMM, "gait", None),
        (SIMM.replace("name gait", "/* SIMM */\nname gait"), "gait", None),
        ("first trial\nnRows=2\nnColumns=3\n\n# SIMM Motion File Header:\n" + SIMM, "gait", None),
        ("endheader\n", "", None),
    ],
)
def test_headers_of_all_versions(read: Reader, header: str, name: str, in_degrees: bool | None) -> None:
    table = read(header + TABLE)
    assert (table.name, table.in_degrees, table.columns) == (name, in_degrees, ("knee", "tx"))


@pytest.mark.parametrize(
    "table",
    [
        TABLE.replace("\t", "   "),
        TABLE.replace("\t", "\t\t"),
        TABLE.replace("\n", "\t \n"),
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\n\n"),
        TABLE.replace("0.5\t", "   0.50000000\t     "),
        TABLE.replace("time", "Time"),
        TABLE.rstrip(),
    ],
)
def test_separators_and_blank_lines(read: Reader, table: str) -> None:
    expected, back = read(HEADER + TABLE), read(HEADER + table)
    assert back.columns == expected.columns
    np.testing.assert_array_equal(back.times, expected.times)
    np.testing.assert_array_equal(back.data, expected.data)


def test_missing_numbers_are_nan(read: Reader) -> None:
    table = read(HEADER + TABLE.replace("180", "nan").replace("-90", "-1.#IND"))
    assert np.isnan(table.data[:, 0]).all()


def test_labels_with_blanks_need_tabs(read: Reader) -> None:
    assert read(HEADER + TABLE.replace("tx", "left foot")).columns == ("knee", "left foot")
    with pytest.raises(FileFormatError, match="3 cells; valid is 4"):
        read(HEADER + TABLE.replace("tx", "left foot").replace("\t", " "))


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("inDegrees=yes", "inDegrees=maybe", 5, "'maybe'"),
        ("\n\nUnits", "\ninDegrees=no\nUnits", 6, "inDegrees is set twice"),
        ("\n\nUnits", "\nDataType=Vec3\nUnits", 6, "'Vec3'"),
        ("time", "t", 10, "the first column is 't'"),
        ("knee", "kn\x85ee", 10, "no label"),
        ("180\t1\n1.0\t-90\t2\n", "", 11, "1 cells; valid is 3"),
        ("0.5\t180\t1\n1.0\t-90\t2\n", "", 10, "no rows"),
        ("180", "18o", 11, "cell 2 is '18o'"),
        ("180", "inf", 11, "cell 2 is 'inf'"),
        ("180", "1e999", 11, "cell 2"),
        ("180\t", "180", 11, "2 cells"),
        ("180\t", "\t", 11, "2 cells"),
        ("180\t", "180\t1\t", 11, "4 cells"),
        ("1.0\t", "0.5\t", 12, "time 0.5 follows 0.5"),
        ("1.0\t", "0.1\t", 12, "time 0.1 follows 0.5"),
        ("0.5\t", "nan\t", 11, "time is nan"),
    ],
)
def test_errors_name_the_line(read: Reader, old: str, new: str, line: int, reason: str) -> None:
    content = HEADER + TABLE
    assert old in content
    with pytest.raises(FileFormatError) as caught:
        read(content.replace(old, new, 1))
    message = str(caught.value)
    assert f"walk.mot:{line}: " in message
    assert reason in message
    assert "; valid is " in message
    assert "\n" not in message


def test_files_without_header_are_refused(read: Reader) -> None:
    with pytest.raises(FileFormatError, match=r"no line 'endheader'; valid is an OpenSim .sto or .mot file"):
        read(TABLE)
    with pytest.raises(FileFormatError, match="no rows"):
        read("Coordinates\nendheader\n")


def test_select_refuses_unknown_and_ambiguous_labels(read: Reader) -> None:
    table = read(HEADER + "time\tknee\tforce\tforce\n0\t1\t2\t3\n")
    assert table.columns == ("knee", "force", "force")
    assert table.select(["knee"]).data.tolist() == [[1.0]]
    with pytest.raises(UnknownNameError, match=r"Column 'hip' is not in walk.mot; it has: knee, force"):
        table.select(["hip"])
    for ask in (lambda: table.select(["knee", "force"]), lambda: table.column("force")):
        with pytest.raises(FileFormatError, match=r"walk.mot: 2 columns are called 'force'"):
            ask()


ROTATIONAL = {"knee": True, "tx": False, "hip": True}


@pytest.mark.parametrize(("said", "default"), [(True, False), (True, True), (None, True)])
def test_degrees_become_radians_in_rotational_columns_only(said: bool | None, default: bool) -> None:
    table = to_radians(storage(in_degrees=said), ROTATIONAL, default_in_degrees=default)
    assert table.in_degrees is False
    np.testing.assert_allclose(table.column("knee"), [np.pi, -np.pi / 2], rtol=1e-15)
    assert table.column("tx").tolist() == [1.0, 2.0]
    assert table.column("force")[0] == 90.0
    back = to_degrees(table, ROTATIONAL, default_in_degrees=not default)
    assert back.in_degrees is True
    np.testing.assert_allclose(back.data, storage().data, rtol=1e-15)


@pytest.mark.parametrize(("said", "default"), [(False, True), (False, False), (None, False)])
def test_radians_stay(said: bool | None, default: bool) -> None:
    table = storage(in_degrees=said)
    same = to_radians(table, ROTATIONAL, default_in_degrees=default)
    assert same.in_degrees is False
    np.testing.assert_array_equal(same.data, table.data)
    turned = to_degrees(table, ROTATIONAL, default_in_degrees=default)
    np.testing.assert_allclose(turned.column("knee"), np.rad2deg(table.column("knee")), rtol=1e-15)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "a=b"}, "would not read back"),
        ({"name": "two\nlines"}, "would not read back"),
        ({"name": "EndHeader"}, "would not read back"),
        ({"columns": ("", "tx", "force")}, "no label"),
        ({"columns": ("a\tb", "tx", "force")}, "no label"),
        ({"times": [0.5, 0.0]}, "frame 2"),
        ({"times": [[0.0, 0.5]]}, "shape"),
        ({"data": [[1.0, 2.0, 3.0]]}, r"\[T, C\]"),
        ({"data": np.full((2, 3), np.inf)}, "infinite"),
    ],
)
def test_storages_hold_their_rules(changes: dict, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        storage(**changes)


LABELS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    columns = draw(st.lists(LABELS, max_size=4))
    n_frames = draw(st.integers(1, 5))
    times = np.arange(n_frames, dtype=np.float64) * draw(st.floats(1e-6, 1.0)) + draw(st.floats(-10, 10))
    numbers = st.floats(allow_infinity=False, allow_nan=True)
    data = draw(hnp.arrays(np.float64, (n_frames, len(columns)), elements=numbers))
    name = draw(st.one_of(st.just(""), LABELS.filter(lambda text: "=" not in text)))
    return Storage(name, tuple(columns), times, data, draw(st.sampled_from((True, False, None))))


@settings(max_examples=60, deadline=None)
@given(table=storages())
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, table: Storage) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.sto"
    write_sto(path, table)
    back = read_sto(path)
    assert (back.name, back.columns, back.in_degrees) == (table.name, table.columns, table.in_degrees)
    assert back.times.tobytes() == table.times.tobytes()
    np.testing.assert_array_equal(back.data, table.data)  # equal to the bit, and NaN where NaN
