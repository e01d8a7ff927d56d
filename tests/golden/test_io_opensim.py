"""Real files against OpenSim's own readers, and written files in OpenSim."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simspine_jax.errors import FileFormatError
from simspine_jax.io import (
    MarkerDefinition,
    MarkerTrajectory,
    Storage,
    read_ik_setup,
    read_marker_set,
    read_sto,
    read_trc,
    to_radians,
    write_marker_set,
    write_sto,
    write_trc,
)

TRC_FILES = (
    "gait2392/markers.trc",
    "pose2sim_demo/markers.trc",
    "pose2sim_demo/markers_raw.trc",
    "pose2sim_demo/markers_lstm.trc",
    "pose2sim_demo/markers_static.trc",
    "pose2sim_demo/markers_static_lstm.trc",
)
MOT_FILES = (
    "gait2392/ik_opensim46_acc1e-9.mot",
    "gait2392/reference_ik.mot",
    "pose2sim_demo/ik_body25b_opensim46.mot",
    "pose2sim_demo/ik_lstm.mot",
    "pose2sim_demo/ik_lstm_opensim46.mot",
)
SETUPS = (
    "gait2392/IK_Setup.xml",
    "pose2sim_demo/IK_Setup_Body25b.xml",
    "pose2sim_demo/IK_Setup_LSTM.xml",
)

# The readers agree on millimetres to the bit; scaling OpenSim's to metres here rounds by half a unit in the
# last place at 4 m.
ROUNDING_M = 4.5e-16


@pytest.fixture(scope="module")
def opensim() -> Any:
    module = pytest.importorskip("opensim")
    module.Logger.setLevelString("Off")
    module.Logger.removeFileSink()
    return module


def marker_table(opensim: Any, path: Path) -> tuple[list[str], np.ndarray, np.ndarray, str]:
    """Names, times, positions [T, K, 3] and unit by OpenSim's newer reader."""
    table = opensim.TimeSeriesTableVec3(str(path))
    rows = [table.getRowAtIndex(i) for i in range(table.getNumRows())]
    positions = np.array([[row[k].to_numpy() for k in range(row.size())] for row in rows])
    unit = table.getTableMetaDataString("Units")
    return list(table.getColumnLabels()), np.array(table.getIndependentColumn()), positions, unit


def storage_table(opensim: Any, path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, times and data [T, C] by OpenSim's newer reader."""
    table = opensim.TimeSeriesTable(str(path))
    data = table.getMatrix().to_numpy()
    return list(table.getColumnLabels()), np.array(table.getIndependentColumn()), data


@pytest.mark.parametrize("name", TRC_FILES)
def test_real_trc_files_agree_with_opensim(shared_data: Path, opensim: Any, name: str) -> None:
    path = shared_data / name
    clip = read_trc(path)
    names, times, positions, unit = marker_table(opensim, path)
    assert clip.names == tuple(names)
    np.testing.assert_array_equal(clip.times, times)
    scale = {"m": 1.0, "mm": 1e-3}[unit]
    np.testing.assert_allclose(clip.positions, positions * scale, rtol=0, atol=ROUNDING_M)
    assert clip.rate == 60.0
    assert clip.present.all()


def test_what_the_real_trc_files_hold(shared_data: Path) -> None:
    sizes = {name: read_trc(shared_data / name).positions.shape for name in TRC_FILES}
    assert sizes == {
        "gait2392/markers.trc": (151, 41, 3),
        "pose2sim_demo/markers.trc": (100, 21, 3),
        "pose2sim_demo/markers_raw.trc": (100, 21, 3),
        "pose2sim_demo/markers_lstm.trc": (100, 64, 3),
        "pose2sim_demo/markers_static.trc": (12, 21, 3),
        "pose2sim_demo/markers_static_lstm.trc": (12, 64, 3),
    }
    gait = read_trc(shared_data / "gait2392/markers.trc")
    assert gait.names[:3] == ("R.ASIS", "L.ASIS", "V.Sacral")
    assert gait.positions[0, 0].tolist() == [0.61724762, 1.05527502, 0.17078198]


@pytest.mark.parametrize("units", ["m", "mm"])
def test_written_trc_files_open_in_both_readers_of_opensim(
    tmp_path: Path, shared_data: Path, opensim: Any, units: Any
) -> None:
    clip = read_trc(shared_data / "gait2392/markers.trc")
    positions = clip.positions.copy()
    positions[3:9, -1] = positions[5, 0] = positions[:, 7] = np.nan  # at the end of rows, in them, throughout
    clip = MarkerTrajectory(clip.names, clip.times, positions, clip.rate)
    path = tmp_path / "written.trc"
    write_trc(path, clip, units=units)
    scale = {"m": 1.0, "mm": 1e-3}[units]
    names, times, positions, unit = marker_table(opensim, path)
    assert (tuple(names), unit) == (clip.names, units)
    np.testing.assert_array_equal(times, clip.times)
    np.testing.assert_allclose(positions * scale, clip.positions, rtol=0, atol=ROUNDING_M)
    older = opensim.MarkerData(str(path))
    assert older.getNumMarkers() == len(clip.names)
    frames = [older.getFrame(i) for i in range(older.getNumFrames())]
    positions = np.array([[f.getMarker(k).to_numpy() for k in range(len(clip.names))] for f in frames])
    np.testing.assert_allclose(positions * scale, clip.positions, rtol=0, atol=ROUNDING_M)


@pytest.mark.parametrize("name", MOT_FILES)
def test_real_motions_agree_with_opensim(shared_data: Path, opensim: Any, name: str) -> None:
    path = shared_data / name
    table = read_sto(path)
    labels, times, data = storage_table(opensim, path)
    assert table.columns == tuple(labels)
    np.testing.assert_array_equal(table.times, times)
    np.testing.assert_array_equal(table.data, data)
    older = opensim.Storage(str(path))
    assert table.name == older.getName()
    assert older.isInDegrees() == (table.in_degrees is not False)


def test_the_published_gait_motion_has_forces_that_share_labels(shared_data: Path) -> None:
    table = read_sto(shared_data / "gait2392/reference_ik.mot")
    assert table.data.shape == (211, 164)
    assert table.in_degrees is None
    twice = {name for name in table.columns if table.columns.count(name) == 2}
    assert len(twice) == 9
    assert all(name.startswith("ground_") for name in twice)
    with pytest.raises(FileFormatError, match="2 columns are called 'ground_force_vx'"):
        table.column("ground_force_vx")
    converged = read_sto(shared_data / "gait2392/ik_opensim46_acc1e-9.mot")
    coordinates = table.select(converged.columns)
    # Silence means degrees in SIMM's files: so read, the two solutions of the same trial are near.
    rotational = {name: not re.fullmatch("pelvis_t[xyz]", name) for name in converged.columns}
    radians = [
        to_radians(t, rotational, default_in_degrees=True).data[:121] for t in (coordinates, converged)
    ]
    assert np.abs(radians[0] - radians[1]).max() < np.deg2rad(2.0)


@pytest.mark.parametrize("in_degrees", [True, False, None])
def test_written_storages_open_in_both_readers_of_opensim(
    tmp_path: Path, opensim: Any, in_degrees: bool | None
) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(5, 3)) * [1.0, 1e-12, 1e12]
    columns = ("knee", "/jointset/hip/flex/value", "L5_S1_Flex_Ext")
    table = Storage("walk", columns, np.arange(5) / 60, data, in_degrees)
    path = tmp_path / "walk.sto"
    write_sto(path, table)
    labels, times, back = storage_table(opensim, path)
    assert tuple(labels) == table.columns
    np.testing.assert_array_equal(times, table.times)
    np.testing.assert_array_equal(back, table.data)
    older = opensim.Storage(str(path))
    assert older.getName() == "walk"
    assert older.isInDegrees() == (in_degrees is True)
    states = [older.getStateVector(i) for i in range(older.getSize())]
    back = np.array([[state.getData().get(k) for k in range(3)] for state in states])
    np.testing.assert_array_equal(back, table.data)


def test_missing_numbers_reach_opensims_tables(tmp_path: Path, opensim: Any) -> None:
    data = np.array([[1.0, np.nan], [np.nan, 2.0], [3.0, 4.0]])
    path = tmp_path / "walk.sto"
    write_sto(path, Storage("walk", ("knee", "left foot"), np.arange(3.0), data, False))
    labels, _, back = storage_table(opensim, path)
    assert labels == ["knee", "left foot"]
    np.testing.assert_array_equal(back, data)


@pytest.mark.parametrize("name", SETUPS)
def test_real_setups_agree_with_opensim(shared_data: Path, opensim: Any, name: str) -> None:
    path = shared_data / name
    setup = read_ik_setup(path)
    tool = opensim.InverseKinematicsTool(str(path), False)
    tasks = tool.getIKTaskSet()
    theirs: dict[str, list[tuple]] = {"IKMarkerTask": [], "IKCoordinateTask": []}
    for i in range(tasks.getSize()):
        task = tasks.get(i)
        row = (task.getName(), task.getWeight(), task.getApply())
        coordinate = opensim.IKCoordinateTask.safeDownCast(task)
        if coordinate is not None:
            value_type = coordinate.getPropertyByName("value_type").toString()
            row += (value_type, coordinate.getValue())
        theirs[task.getConcreteClassName()].append(row)
    assert [tuple(vars(task).values()) for task in setup.marker_tasks] == theirs["IKMarkerTask"]
    assert [tuple(vars(task).values()) for task in setup.coordinate_tasks] == theirs["IKCoordinateTask"]
    assert setup.time_range == (tool.getStartTime(), tool.getEndTime())
    assert setup.marker_file == tool.getMarkerDataFileName()
    assert setup.output_motion_file == tool.getOutputMotionFileName()
    constraint_weight = tool.getPropertyByName("constraint_weight").toString()
    assert setup.constraint_weight == float(constraint_weight)
    assert setup.accuracy == float(tool.getPropertyByName("accuracy").toString())


def test_what_the_real_setups_hold(shared_data: Path) -> None:
    counts = {}
    for name in SETUPS:
        setup = read_ik_setup(shared_data / name)
        counts[name] = len(setup.marker_tasks), len(setup.coordinate_tasks), setup.constraint_weight
    assert counts == {
        "gait2392/IK_Setup.xml": (31, 4, 20.0),
        "pose2sim_demo/IK_Setup_Body25b.xml": (21, 1, np.inf),
        "pose2sim_demo/IK_Setup_LSTM.xml": (43, 9, np.inf),
    }


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("gait2392/model.osim", 39),
        ("pose2sim_demo/model.osim", 21),
        ("pose2sim_demo/model_lstm_scaled.osim", 43),
    ],
)
def test_the_markers_of_real_models_agree_with_opensim(
    tmp_path: Path, shared_data: Path, opensim: Any, model: str, count: int
) -> None:
    text = (shared_data / model).read_text(encoding="utf-8")
    start, end = text.index("<MarkerSet"), text.index("</MarkerSet>") + len("</MarkerSet>")
    path = tmp_path / "markers.xml"
    path.write_text(f'<OpenSimDocument Version="40000">{text[start:end]}</OpenSimDocument>', encoding="utf-8")
    markers = read_marker_set(path)
    assert markers == marker_set(opensim, path)
    assert len(markers) == count
    write_marker_set(path, markers)
    assert read_marker_set(path) == markers
    assert marker_set(opensim, path) == markers


def marker_set(opensim: Any, path: Path) -> tuple[MarkerDefinition, ...]:
    theirs = opensim.MarkerSet(str(path))
    markers = [theirs.get(i) for i in range(theirs.getSize())]
    return tuple(
        MarkerDefinition(
            marker.getName(),
            marker.getParentFrameName().removeprefix("/bodyset/"),
            tuple(marker.get_location().to_numpy().tolist()),
        )
        for marker in markers
    )
