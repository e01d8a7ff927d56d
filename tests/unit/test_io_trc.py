from collections.abc import Callable
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax.errors import FileFormatError, ShapeError, UnknownNameError
from simspine_jax.io import MarkerTrajectory, read_markers, read_trc, write_trc, zup_to_yup
from simspine_jax.io.trc import MAX_POSITION_M

NAN = float("nan")

HEADER = (
    "PathFileType\t4\t(X/Y/Z)\twalk.trc\n"
    "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames\n"
    "60\t60\t3\t2\tmm\t60\t1\t3\n"
    "Frame#\tTime\tC7\t\t\tLeft heel\t\t\n"
    "\t\tX1\tY1\tZ1\tX2\tY2\tZ2\n"
    "\n"
)
ROWS = (
    "1\t0.000\t100\t200\t300\t400\t500\t600\n"
    "2\t0.017\t101\t201\t301\t401\t501\t601\n"
    "3\t0.033\t102\t202\t302\t402\t502\t602\n"
)
POSITIONS = np.arange(0.1, 0.7, 0.1).reshape(2, 3)

Reader = Callable[[str], MarkerTrajectory]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    def read_content(content: str) -> MarkerTrajectory:
        path = tmp_path / "walk.trc"
        path.write_bytes(content.encode())
        return read_trc(path)

    return read_content


def trajectory(**changes: object) -> MarkerTrajectory:
    values = {"names": ("A",), "times": [0.0, 0.5], "positions": np.zeros((2, 1, 3)), "rate": 2.0}
    return MarkerTrajectory(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_reads_names_times_and_metres(read: Reader) -> None:
    clip = read(HEADER + ROWS)
    assert clip.names == ("C7", "Left heel")
    assert clip.rate == 60.0
    assert clip.n_frames == 3
    assert clip.duration == 0.033
    assert clip.source == "walk.trc"
    np.testing.assert_array_equal(clip.times, [0.0, 0.017, 0.033])
    # Exact: each millimetre value becomes the double nearest to its thousandth.
    assert clip.positions[1].tolist() == [[0.101, 0.201, 0.301], [0.401, 0.501, 0.601]]
    assert clip.present.all()


@pytest.mark.parametrize(
    ("unit", "metres"),
    [("m", 1.0), ("Meters", 1.0), ("dm", 0.1), ("cm", 0.01), ("MM", 0.001), ("millimetres", 0.001)],
)
def test_units_become_metres(read: Reader, unit: str, metres: float) -> None:
    clip = read(HEADER.replace("mm", unit) + ROWS)
    np.testing.assert_allclose(clip.positions[0, 0], np.array([100, 200, 300]) * metres, rtol=1e-15)


@pytest.mark.parametrize(
    "content",
    [
        (HEADER + ROWS).replace("\n", "\r\n"),
        (HEADER + ROWS).replace("\n", "\n\n"),
        HEADER.replace("\n\n", "\n") + ROWS,
        (HEADER + ROWS).replace("\n", "\t\t\n"),
        (HEADER + ROWS).replace("\t", "\t\t"),
        (HEADER + ROWS).replace("\t100\t", "\t 100 \t"),
        HEADER + ROWS.rstrip("\n"),
        HEADER + ROWS + "\n\t\t\t\n\n",
        HEADER.replace("60\t60\t3\t2", "60\t60\t1\t1000000000") + ROWS,
        HEADER.replace("mm\t60", "mm   60") + ROWS,
        HEADER.replace("Frame#\tTime\tC7\t\t\tLeft heel\t\t", "Frame #\tTimes\tC7\tLeft heel") + ROWS,
        HEADER.replace("PathFileType\t4\t(X/Y/Z)\t", "PathFileType  4\t(X/Y/Z) ") + ROWS,
        "\ufeff" + HEADER + ROWS,
    ],
    ids=[
        "CRLF",
        "blank lines between",
        "no blank line after the header",
        "trailing tabs",
        "doubled tabs",
        "padded cells",
        "no last line end",
        "blank lines at the end",
        "wrong counts",
        "blanks between settings",
        "other headings",
        "blanks in the first line",
        "byte order mark",
    ],
)
def test_variants_read_alike(read: Reader, content: str) -> None:
    expected, clip = read(HEADER + ROWS), read(content)
    assert clip.names == expected.names
    assert clip.rate == expected.rate
    np.testing.assert_array_equal(clip.times, expected.times)
    np.testing.assert_array_equal(clip.positions, expected.positions)


def test_a_file_that_was_cut_off_is_refused(read: Reader) -> None:
    whole = "".join(f"{i}\t{i / 60}\t1\t2\t3\t4\t5\t6\n" for i in range(151))
    head = HEADER.replace("60\t60\t3\t2", "60\t60\t151\t2")
    assert read(head + whole).n_frames == 151
    cut = "".join(whole.splitlines(keepends=True)[:34])
    with pytest.raises(FileFormatError, match=r"walk\.trc:3: NumFrames is 151 and 34 rows .*; valid is"):
        read(head + cut)


@pytest.mark.parametrize(
    "cells",
    [
        "\t\t\t",
        "\t\t201\t301",
        "\t101\t\t301",
        "\tNaN\tnan\tNAN",
        "\t101\t201\tnan",
        "\t \t \t ",
        "\t1.#QNAN\t\t",
    ],
)
def test_blank_cells_are_missing_markers_and_never_zeros(read: Reader, cells: str) -> None:
    clip = read(HEADER + ROWS.replace("\t101\t201\t301", cells))
    np.testing.assert_array_equal(clip.present, [[True, True], [False, True], [True, True]])
    assert np.isnan(clip.positions[1, 0]).all()
    assert not (clip.positions == 0).any()


@pytest.mark.parametrize("row", ["2\t0.017\t101\t201\t301\n", "2\t0.017\t101\t201\t301\t\t\t\n"])
def test_rows_that_end_after_a_marker_lack_the_rest(read: Reader, row: str) -> None:
    clip = read(HEADER + ROWS.replace("2\t0.017\t101\t201\t301\t401\t501\t601\n", row))
    np.testing.assert_array_equal(clip.present, [[True, True], [True, False], [True, True]])


def test_zeros_stay_positions(read: Reader) -> None:
    clip = read(HEADER + ROWS.replace("\t101\t201\t301", "\t0\t0\t0"))
    assert clip.present.all()


def test_doubled_tabs_with_missing_markers(read: Reader) -> None:
    content = (HEADER + ROWS.replace("\t101\t201\t301", "\t\t\t")).replace("\t", "\t\t")
    np.testing.assert_array_equal(read(content).present, [[True, True], [False, True], [True, True]])


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("PathFileType", "Path", 1, "PathFileType"),
        ("DataRate\tCamera", "Rate\tCamera", 3, "no DataRate"),
        ("\tUnits", "\tUnit", 3, "no Units"),
        ("60\t60\t3\t2\tmm", "60\t60\t3", 3, "Units"),
        ("\tmm\t", "\tfurlong\t", 3, "furlong"),
        ("60\t60\t3\t2", "0\t60\t3\t2", 3, "DataRate"),
        ("60\t60\t3\t2", "nan\t60\t3\t2", 3, "DataRate"),
        ("60\t60\t3\t2", "x\t60\t3\t2", 3, "DataRate"),
        ("Frame#\tTime", "Frame#", 4, "Frame#"),
        ("\tC7\t\t\tLeft heel\t\t", "", 4, "Frame#"),
        ("Left heel", "C7", 4, "named twice"),
        ("Left heel", "Left\u2028heel", 4, "printable"),
        ("X1\tY1\tZ1", "X1\tZ1\tY1", 5, "axes"),
        ("\tX2\tY2\tZ2", "", 5, "3 axes for 2"),
        ("\tLeft heel", "\t", 5, "6 axes for 1"),
        ("\t301", "\tabc", 8, "cell 5 is 'abc'"),
        ("\t301", "\t3,01", 8, "cell 5 is '3,01'"),
        ("\t301", "\tinf", 8, "cell 5 is 'inf'"),
        ("\t301", "\t1e999", 8, "cell 5"),
        ("\t301", "\t301\t1\t2\t3", 8, "11 cells"),
        ("\t301", "", 8, "7 cells"),
        ("\t301", "\t1000001", 8, "at z = 1000"),
        ("\t302\t402\t502\t602\n", "\t302", 9, "5 cells"),
        ("\t402\t502\t602\n", "", 9, "5 cells"),
        ("0.017", "", 8, "lacks its frame number or time"),
        ("2\t0.017", "\t0.017", 8, "lacks its frame number or time"),
        ("0.017", "nan", 8, "lacks its frame number or time"),
        ("0.033", "0.017", 9, "time 0.017 follows 0.017"),
        ("0.033", "0.001", 9, "time 0.001 follows 0.017"),
        ("0.033", "1e300", 9, "seconds"),
    ],
)  # fmt: skip
def test_errors_name_the_line(read: Reader, old: str, new: str, line: int, reason: str) -> None:
    content = HEADER + ROWS
    assert old in content
    with pytest.raises(FileFormatError) as caught:
        read(content.replace(old, new, 1))
    message = str(caught.value)
    assert f"walk.trc:{line}: " in message
    assert reason in message
    assert "; valid is " in message
    assert "\n" not in message


def test_short_rows_can_not_ask_for_memory(read: Reader) -> None:
    names = "".join(f"\t{k}" for k in range(20_000))
    axes = "\tX\tY\tZ" * 20_000
    header = HEADER.replace("\tC7\t\t\tLeft heel\t\t", names).replace("\t\tX1\tY1\tZ1\tX2\tY2\tZ2", axes)
    rows = "".join(f"{i}\t{i}\n" for i in range(20_000))
    with pytest.raises(FileFormatError, match="20000 rows leave off most cells of 20000 markers"):
        read(header + rows)


@pytest.mark.parametrize("n_lines", range(1, 7))
def test_files_that_end_in_the_header_are_refused(read: Reader, n_lines: int) -> None:
    with pytest.raises(FileFormatError, match="header"):
        read("".join((HEADER + ROWS).splitlines(keepends=True)[:n_lines]))


@pytest.mark.parametrize(
    ("declared", "times", "rate"),
    [
        (60.0, (0.0, 0.017, 0.033), 60.0),  # rounded times confirm the header
        (60.0, (0.0, 1 / 60, 2 / 60, 5.0), 60.0),  # a gap does not speak against it
        (60.0, (0.0, 0.01, 0.02), 100.0),  # but other times do
        (60.0, (0.0,), 60.0),
    ],
)
def test_rate_is_the_one_of_the_times(read: Reader, declared: float, times: tuple, rate: float) -> None:
    rows = "".join(f"{i}\t{time}\t1\t2\t3\t4\t5\t6\n" for i, time in enumerate(times))
    head = HEADER.replace("60\t60\t3", f"{declared}\t60\t{len(times)}")
    assert read(head + rows).rate == pytest.approx(rate)


def test_select_keeps_the_order_asked_for(read: Reader) -> None:
    clip = read(HEADER + ROWS)
    picked = clip.select(["Left heel"])
    np.testing.assert_array_equal(picked.positions, clip.positions[:, 1:])
    assert clip.select(clip.names[::-1]).names == ("Left heel", "C7")
    with pytest.raises(UnknownNameError, match=r"Marker 'T12' is not in walk.trc; it has: C7, Left heel"):
        clip.select(["T12"])
    wider = clip.select(["T12", "C7"], missing="nan")
    assert np.isnan(wider.positions[:, 0]).all()
    np.testing.assert_array_equal(wider.positions[:, 1], clip.positions[:, 0])
    with pytest.raises(UnknownNameError):
        clip.select(["T12", "T11"], missing="nan")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": (), "positions": np.zeros((2, 0, 3))}, "without markers"),
        ({"names": ("A\n",)}, "no marker name"),
        ({"names": ("",)}, "no marker name"),
        ({"names": ("A", "A"), "positions": np.zeros((2, 2, 3))}, "named twice"),
        ({"times": [], "positions": np.zeros((0, 1, 3))}, "at least one frame"),
        ({"times": [0.0, 0.0]}, "frame 2"),
        ({"times": [0.0, np.inf]}, "frame 2"),
        ({"positions": np.zeros((3, 1, 3))}, r"\[T, K, 3\]"),
        ({"positions": np.full((2, 1, 3), [0.0, NAN, 0.0])}, "missing in part"),
        ({"positions": np.full((2, 1, 3), np.inf)}, "beyond"),
        ({"positions": np.full((2, 1, 3), 2 * MAX_POSITION_M)}, "beyond"),
        ({"rate": 0.0}, "rate"),
        ({"rate": NAN}, "rate"),
    ],
)
def test_trajectories_hold_their_rules(changes: dict, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        trajectory(**changes)


def test_trajectories_can_not_be_changed_through_their_arrays() -> None:
    positions = np.zeros((2, 1, 3))
    clip = trajectory(positions=positions)
    positions[:] = 1.0
    assert (clip.positions == 0).all()
    with pytest.raises(ValueError, match="read-only"):
        clip.positions[0] = 1.0


def test_zup_to_yup_is_a_rotation() -> None:
    axes = np.eye(3)[:, None]
    turned = zup_to_yup(trajectory(times=[0.0, 0.5, 1.0], positions=axes)).positions[:, 0]
    assert np.linalg.det(turned) == pytest.approx(1.0)
    np.testing.assert_array_equal(turned[2], [0, 1, 0])  # up is y now


def test_read_markers_goes_by_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "walk.TRC"
    write_trc(path, trajectory())
    assert read_markers(path).names == ("A",)
    with pytest.raises(FileFormatError, match=r"suffix is '.csv'; valid is .trc or .c3d"):
        read_markers(tmp_path / "walk.csv")


NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)


@st.composite
def trajectories(draw: st.DrawFn) -> MarkerTrajectory:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    n_frames = draw(st.integers(1, 5))
    rate = draw(st.floats(0.5, 1e4))
    start = draw(st.floats(-1e3, 1e3))
    times = start + np.arange(n_frames) / rate
    metres = st.floats(-MAX_POSITION_M, MAX_POSITION_M)
    positions = draw(hnp.arrays(np.float64, (n_frames, len(names), 3), elements=metres))
    missing = draw(hnp.arrays(np.bool_, (n_frames, len(names))))
    positions[missing] = np.nan
    return MarkerTrajectory(tuple(names), times, positions, rate)


@settings(max_examples=60, deadline=None)
@given(clip=trajectories(), units=st.sampled_from(("m", "mm")))
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, clip: MarkerTrajectory, units) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.trc"
    write_trc(path, clip, units=units)
    back = read_trc(path)
    assert back.names == clip.names
    assert back.rate == clip.rate
    assert back.times.tobytes() == clip.times.tobytes()
    np.testing.assert_array_equal(back.positions, clip.positions)  # equal to the bit, and NaN where NaN


def test_round_trip_reaches_what_it_is_about() -> None:
    seen = set()

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(clip=trajectories())
    def look(clip: MarkerTrajectory) -> None:
        seen.add("missing" if not clip.present.all() else "whole")
        seen.add("several" if len(clip.names) > 1 else "single")
        # Values that a plain multiplication by 1000 and back would not return.
        odd = clip.positions[clip.present]
        if (odd * 1000 / 1000 != odd).any():
            seen.add("inexact in millimetres")

    look()
    assert seen == {"missing", "whole", "several", "single", "inexact in millimetres"}


def test_write_refuses_other_units(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'m' or 'mm'"):
        write_trc(tmp_path / "x.trc", trajectory(), units="in")  # pyright: ignore[reportArgumentType]
