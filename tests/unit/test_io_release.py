"""The official release: files made by hand to its schema, what is written read back, and damage."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from simspine_jax.annotations import Quality, SpineTrial
from simspine_jax.errors import (
    FileFormatError,
    MissingDependencyError,
    ShapeError,
    SimspineError,
    UnknownNameError,
)
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io.layout import DEGREE_AXES, ReleaseLayout
from simspine_jax.io.release import (
    LEG_AXES,
    find_release,
    read_release,
    read_release_cameras,
    write_release_cameras,
    write_release_h5,
    write_release_trial,
)
from simspine_jax.skeleton import (
    AXIS_NAMES,
    KEYPOINT_NAMES,
    REDUCED_NAMES,
    RELEASE_MARKER_NAMES,
    TRC_NAMES,
    trc_name,
)

# Degrees are written and turned back by a multiplication each, both rounded.
ANGLE_ULPS = 4 * np.finfo(float).eps


def trial(subject: str = "S1", action: str = "Walking 1", n_frames: int = 6, **changes: Any) -> SpineTrial:
    """A standing person of noise: every keypoint within a box of 0.6 x 1.7 x 0.4 m, bent knees."""
    rng = np.random.default_rng([*map(ord, subject + action)])
    values: dict[str, Any] = {
        "subject": subject,
        "action": action,
        "times": np.arange(n_frames) / 50,
        "rate_hz": 50.0,
        "keypoints": rng.uniform(0, [0.6, 1.7, 0.4], (n_frames, 37, 3)),
        "coordinates": rng.uniform(-1.5, 1.5, (n_frames, 62)),
        "quality": np.zeros(n_frames, np.uint16),
    }
    return SpineTrial(**(values | changes))


def rig(names: tuple[str, ...] = ("54138969", "60457274")) -> Cameras:
    """Cameras around the origin, five metres off, level with the hips; z is up."""
    turns = Rotation.from_euler(
        "yz", np.stack([np.arange(len(names)) * 80.0, np.full(len(names), 3.0)], -1), True
    )
    base = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # looks along y
    n = len(names)
    return Cameras(
        rotations=turns.as_matrix() @ base,
        translations=np.tile([0.1, 0.9, 5.2], (n, 1)),
        focal_lengths=np.tile([1145.0, 1143.8], (n, 1)),
        principal_points=np.tile([512.5, 515.4], (n, 1)),
        skews=np.zeros(n),
        distortion=np.tile([-0.2, 0.25, -0.001, 0.002, -0.01, 0, 0, 0], (n, 1)),
        sizes=np.tile([1000.0, 1002.0], (n, 1)),
        names=names,
    )


def by_hand(
    path: Path,
    trials: dict[tuple[str, str], SpineTrial],
    *,
    markers: tuple[str, ...] = RELEASE_MARKER_NAMES,
    axes: tuple[str, ...] = AXIS_NAMES,
    text: str = "S",
    degrees: bool = True,
    scale: float = 1.0,
    cameras: dict[str, Cameras] | None = None,
) -> Path:
    """What the official serializer writes, by its description alone: plain h5py."""
    with h5py.File(path, "w") as file:
        kind: Any = h5py.string_dtype() if text == "vlen" else None
        for name, values in (("markers_names", markers), ("kinematic_axes", axes)):
            names = np.array(values, "S" if kind is None else object)
            file.create_dataset(f"metadata/{name}", data=names, dtype=kind)
        for (subject, action), one in trials.items():
            group = file.require_group(subject)
            group.attrs["model_file"] = f"data/models/{subject}.osim"
            columns = [TRC_NAMES.index(name) for name in markers]
            table = one.coordinates.copy()
            if degrees:
                table[:, DEGREE_AXES] *= 180 / np.pi
            table = table[:, [AXIS_NAMES.index(name) for name in axes]]
            places = scale * one.keypoints[:, columns]
            group.create_dataset(f"{action}/markers", data=places, compression="gzip")
            group.create_dataset(f"{action}/kinematics", data=table, compression="gzip")
            group.create_dataset(f"{action}/timestamps", data=one.times)
        for subject, rigged in (cameras or {}).items():
            group = file.require_group(f"{subject}/calibration")
            K = np.zeros((len(rigged.names), 3, 3), np.float32)
            K[:, 0, 0], K[:, 1, 1] = np.asarray(rigged.focal_lengths).T
            K[:, 0, 2], K[:, 1, 2] = np.asarray(rigged.principal_points).T
            K[:, 2, 2] = 1
            group["names"] = np.array(rigged.names, "S")
            group["K"], group["R"] = K, np.asarray(rigged.rotations, np.float32)
            group["dist"] = np.asarray(rigged.distortion, np.float32)[:, :5]
            group["t"] = np.asarray(rigged.translations, np.float32)
            group["size"] = np.asarray(rigged.sizes).astype(np.int32)
    return path


TWO = {("S9", "Walking_1"): trial("S9", "Walking 1"), ("S11", "Photo"): trial("S11", "Photo", 9)}


def close(read: SpineTrial, wanted: SpineTrial) -> None:
    assert (read.subject, read.action, read.rate_hz) == (wanted.subject, wanted.action, wanted.rate_hz)
    np.testing.assert_array_equal(read.times, wanted.times)
    np.testing.assert_array_equal(read.keypoints, wanted.keypoints)
    np.testing.assert_allclose(read.coordinates, wanted.coordinates, rtol=ANGLE_ULPS, atol=0)


@pytest.mark.parametrize("text", ["S", "vlen"])
@pytest.mark.parametrize("degrees", [True, False])
def test_a_file_of_the_official_schema(tmp_path: Path, text: str, degrees: bool) -> None:
    path = by_hand(tmp_path / "simspine.h5", TWO, text=text, degrees=degrees)
    for place in (path, tmp_path):
        read = list(read_release(place))
        assert [t.name for t in read] == ["S9_Walking_1", "S11_Photo"]
        for one, wanted in zip(read, TWO.values(), strict=True):
            close(one, wanted)
            assert not one.quality.any()
            assert one.triangulated is None
            assert one.source == f"{path}:/{one.subject}/{one.action.replace(' ', '_')}"


def test_markers_and_axes_come_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = by_hand(
        tmp_path / "a.h5",
        TWO,
        markers=tuple(rng.permutation(TRC_NAMES).tolist()),
        axes=tuple(rng.permutation(AXIS_NAMES).tolist()),
    )
    for one, wanted in zip(read_release(path), TWO.values(), strict=True):
        close(one, wanted)


def test_the_reduced_release_has_the_rest_missing(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.h5", TWO, markers=tuple(map(trc_name, REDUCED_NAMES)))
    known = np.isin(KEYPOINT_NAMES, REDUCED_NAMES)
    assert known.sum() == 15
    for one, wanted in zip(read_release(path), TWO.values(), strict=True):
        np.testing.assert_array_equal(one.keypoints[:, known], wanted.keypoints[:, known])
        assert np.isnan(one.keypoints[:, ~known]).all()
        assert one.usable.all()


def test_patella_and_translations_are_never_degrees(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.h5", TWO)
    with h5py.File(path, "r") as file:
        stored = file["S9/Walking_1/kinematics"][()]
    read = next(read_release(path)).coordinates
    kept = [
        "pelvis_tx",
        "pelvis_ty",
        "pelvis_tz",
        "Abs_t1",
        "Abs_t2",
        "knee_angle_r_beta",
        "knee_angle_l_beta",
    ]
    same = (stored == read).all(axis=0)
    assert [name for name, equal in zip(AXIS_NAMES, same, strict=True) if equal] == [
        n for n in AXIS_NAMES if n in kept
    ]


def test_opensim_calls_the_same_axes_rotational(spine_osim: Path) -> None:
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    model = osim.Model(str(spine_osim))
    model.initSystem()
    coordinates = model.getCoordinateSet()
    rotational = [coordinates.get(name).getMotionType() == 1 for name in AXIS_NAMES]
    np.testing.assert_array_equal(rotational, DEGREE_AXES)
    # By these axes degrees are told from radians: radians of theirs never reach half a turn.
    for name in LEG_AXES:
        coordinate = coordinates.get(name)
        assert coordinate.getDefaultClamped()
        assert max(-coordinate.getRangeMin(), coordinate.getRangeMax()) < 0.9 * np.pi


def test_real_motion_is_degrees_by_its_size(shared_data: Path, tmp_path: Path) -> None:
    from simspine_jax.io import read_sto

    table = read_sto(shared_data / "pose2sim_demo" / "ik_lstm_opensim46.mot").select(LEG_AXES)
    assert table.in_degrees
    assert np.abs(table.data).max() > 10 * np.pi
    assert np.abs(np.deg2rad(table.data)).max() < np.pi


def test_angles_can_be_given(tmp_path: Path) -> None:
    still = trial(coordinates=np.full((6, 62), 0.01))
    path = by_hand(tmp_path / "a.h5", {("S1", "Walking_1"): still})  # 0.57 degrees
    np.testing.assert_allclose(next(read_release(path, angles="deg")).coordinates, 0.01)
    assert next(read_release(path, angles="rad")).coordinates[0, 0] == pytest.approx(np.rad2deg(0.01))
    path = by_hand(tmp_path / "b.h5", TWO)
    with pytest.raises(
        FileFormatError, match=r"b\.h5:/S9/Walking_1: an angle of the legs is .* rad; valid is"
    ):
        list(read_release(path, angles="rad"))


def test_one_trial_tells_the_unit_of_all(tmp_path: Path) -> None:
    still = trial("S1", coordinates=np.full((6, 62), 0.01))
    path = by_hand(tmp_path / "a.h5", {("S1", "Walking_1"): still} | TWO)
    np.testing.assert_allclose(next(read_release(path)).coordinates, 0.01)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-3])
def test_lengths_are_told_by_the_person(tmp_path: Path, scale: float) -> None:
    path = by_hand(tmp_path / "a.h5", TWO, scale=scale)
    for one, wanted in zip(read_release(path), TWO.values(), strict=True):
        np.testing.assert_allclose(one.keypoints, wanted.keypoints, rtol=1e-15)


def test_markers_may_be_z_up(tmp_path: Path) -> None:
    wanted = trial()
    path = by_hand(
        tmp_path / "a.h5", {("S1", "Walking_1"): replace(wanted, keypoints=wanted.keypoints[..., [2, 0, 1]])}
    )
    close(next(read_release(path, up="z")), wanted)
    assert not np.array_equal(next(read_release(path)).keypoints, wanted.keypoints)


def test_subjects_and_actions_are_chosen(tmp_path: Path) -> None:
    trials = {
        (s, a): trial(s, a.replace("_", " "))
        for s in ("S1", "S5")
        for a in ("Walking", "Walking_1", "Sitting_1")
    }
    path = by_hand(tmp_path / "a.h5", trials)

    def names(**chosen: Any) -> list[str]:
        return [t.name for t in read_release(path, **chosen)]

    assert find_release(path).subjects == ("S1", "S5")
    assert names(subjects=["S5"]) == ["S5_Sitting_1", "S5_Walking", "S5_Walking_1"]
    assert names(actions=["Sitting"]) == names(actions=["Sitting 1"]) == ["S1_Sitting_1", "S5_Sitting_1"]
    assert names(subjects=["S1"], actions=["Walking"]) == ["S1_Walking", "S1_Walking_1"]
    with pytest.raises(UnknownNameError, match=r"Subject 'S2' is not in .*a\.h5; it has: S1, S5"):
        read_release(path, subjects=["S2"])
    with pytest.raises(UnknownNameError, match=r"Action 'Walk' is not in .*Sitting 1, Walking, Walking 1"):
        read_release(path, actions=["Walk"])


@pytest.mark.parametrize("form", ["hdf5", "folder"])
def test_what_is_written_reads_back(tmp_path: Path, form: str) -> None:
    trials = [
        trial("S1", "Walking 1"),
        trial("S1", "Sitting"),
        trial("S11", "Photo", 1),
        trial("S9", "x.y-z 2", 40),
    ]
    gaps = trials[3].keypoints.copy()
    gaps[:4], gaps[7, 5] = np.nan, np.nan
    axes = trials[3].coordinates.copy()
    axes[10] = np.nan
    trials[3] = replace(
        trials[3], keypoints=gaps, coordinates=axes, times=trials[3].times * 50 / 59.94, rate_hz=59.94
    )
    cameras = {"S1": rig(), "S9": rig(("a", "b", "c"))}
    if form == "hdf5":
        assert (
            write_release_h5(tmp_path / "simspine.h5", iter(trials), cameras=cameras, models={"S1": "m.osim"})
            == 4
        )
        with h5py.File(tmp_path / "simspine.h5", "r", swmr=True) as file:  # as the official code opens it
            assert file["S1"].attrs["model_file"] == "m.osim"
            assert [n.decode() for n in file["metadata/markers_names"][:]] == list(RELEASE_MARKER_NAMES)
            assert [n.decode() for n in file["metadata/kinematic_axes"][:]] == list(AXIS_NAMES)
            np.testing.assert_array_equal(
                file["S1/Walking_1/markers"][:, 0], trials[0].keypoints[:, TRC_NAMES.index("Hip")]
            )
            np.testing.assert_allclose(
                file["S1/Walking_1/kinematics"][:, 0], np.rad2deg(trials[0].coordinates[:, 0])
            )
    else:
        for one in trials:
            write_release_trial(tmp_path, one)
        for subject, views in cameras.items():
            write_release_cameras(tmp_path, subject, views)
        assert (tmp_path / "markers" / "S1" / "S1_Walking_1.trc").is_file()
    assert find_release(tmp_path).form == form
    read = {one.name: one for one in read_release(tmp_path)}
    assert len(read) == 4
    for wanted in trials:
        close(read[wanted.name], wanted)
    flags = read["S9_x.y-z_2"].quality
    assert (flags == np.where(np.isin(np.arange(40), [0, 1, 2, 3, 10]), Quality.NO_POSE, Quality.GOOD)).all()
    for subject, views in cameras.items():
        got = read_release_cameras(tmp_path, subject)
        assert got is not None
        assert got.names == views.names
        for name in ("translations", "focal_lengths", "principal_points", "distortion", "sizes"):
            np.testing.assert_array_equal(getattr(got, name), getattr(views, name))
        # A rotation goes through a rotation vector in TOML.
        np.testing.assert_allclose(
            got.rotations, views.rotations, rtol=0, atol=0 if form == "hdf5" else 1e-15
        )
    assert read_release_cameras(tmp_path, "S11") is None
    with pytest.raises(UnknownNameError, match="Subject 'S2'"):
        read_release_cameras(tmp_path, "S2")


def test_small_angles_read_back_in_degrees(tmp_path: Path) -> None:
    still = trial(coordinates=np.full((6, 62), 1e-3), keypoints=np.zeros((6, 37, 3)))
    write_release_h5(tmp_path / "a.h5", [still])
    close(next(read_release(tmp_path / "a.h5")), still)
    write_release_trial(tmp_path / "b", still)
    close(next(read_release(tmp_path / "b")), still)


def test_equal_trials_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_release_h5(tmp_path / name, TWO.values(), cameras={"S9": rig()})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_trials_are_taken_one_by_one_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("before")

    def trials():
        for k in range(3):
            yield trial(action=f"Walking {k}")
            assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"]
        raise ShapeError("the fourth is broken")

    with pytest.raises(ShapeError, match="the fourth"):
        write_release_h5(path, trials())
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("subject", "action"), [("S1", "Walking_1"), ("metadata", "x"), ("S1", "calibration")]
)
def test_names_that_are_taken_are_refused(tmp_path: Path, subject: str, action: str) -> None:
    with pytest.raises(ShapeError, match=r"a\.h5: /.* is taken; valid are trials of other names"):
        write_release_h5(tmp_path / "a.h5", [trial(), trial(subject, action)])


def test_a_lens_of_human36m_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimspineError, match="the distortion model is 'h36m'; valid is 'opencv'"):
        write_release_h5(
            tmp_path / "a.h5", [trial()], cameras={"S1": replace(rig(), distortion_model="h36m")}
        )


def test_calibrations_in_single_precision_without_sizes(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.h5", TWO, cameras={"S9": rig()})
    read = read_release_cameras(path, "S9")
    assert read is not None
    np.testing.assert_allclose(read.rotations, rig().rotations, atol=1e-7)
    np.testing.assert_array_equal(read.sizes, rig().sizes)
    with h5py.File(path, "a") as file:
        del file["S9/calibration/size"]
    read = read_release_cameras(path, "S9")
    assert read is not None
    assert np.isnan(read.sizes).all()
    assert len(list(read_release(path))) == 2
    with h5py.File(path, "a") as file:
        file["S9/calibration/t"][...] *= 1000
    with pytest.raises(
        FileFormatError, match=r"a\.h5:/S9/calibration: camera '54138969' has the translation"
    ):
        read_release_cameras(path, "S9")


# --- the folder ---


def official_trc(path: Path, one: SpineTrial, units: str) -> None:
    """As the official pipeline writes it: metres, whatever the header says, six decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = one.n_frames
    head = f"PathFileType\t4\t(X/Y/Z)\t{path.name}\nDataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits"
    head += f"\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames\n50.0\t50.0\t{n}\t37\t{units}\t50.0\t1\t{n}"
    head += "\nFrame#\tTime\t"
    head += "\t".join(f"{name}\t\t" for name in TRC_NAMES)
    head += "\n\t\t" + "\t".join(f"X{k}\tY{k}\tZ{k}" for k in range(1, 38)) + "\n"
    rows = np.column_stack([np.arange(1, n + 1), one.times, one.keypoints.reshape(n, -1)])
    with open(path, "w") as file:
        file.write(head)
        np.savetxt(file, rows, delimiter="\t", fmt=["%d"] + ["%.6f"] * (rows.shape[1] - 1))


def official_mot(path: Path, one: SpineTrial, frames: slice = slice(None)) -> None:
    """As OpenSim's inverse kinematics tool writes it: degrees, eight decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.where(DEGREE_AXES, np.rad2deg(one.coordinates), one.coordinates)[frames]
    with open(path, "w") as file:
        file.write(f"Coordinates\nversion=1\nnRows={len(table)}\nnColumns=63\ninDegrees=yes\n\nendheader\n")
        file.write("\t".join(("time", *AXIS_NAMES)) + "\n")
        np.savetxt(file, np.column_stack([one.times[frames], table]), delimiter="\t", fmt="%16.8f")


@pytest.mark.parametrize("folder", ["markers", "positions"])
@pytest.mark.parametrize("units", ["m", "mm"])
def test_a_folder_of_the_official_layout(tmp_path: Path, folder: str, units: str) -> None:
    wanted = trial(n_frames=30)
    official_trc(tmp_path / folder / "S1" / "S1_Walking_1.trc", wanted, units)
    official_mot(tmp_path / "kinematics" / "S1" / "S1_Walking_1" / "S1_Walking_1.mot", wanted)
    (tmp_path / "kinematics" / "S1" / "S1_Walking_1" / "_ik_marker_errors.sto").touch()
    (read,) = read_release(tmp_path, subjects=["S1"])
    assert (read.name, read.action, read.rate_hz) == ("S1_Walking_1", "Walking 1", 50.0)
    # Half of the last digit that is printed.
    np.testing.assert_allclose(read.keypoints, wanted.keypoints, rtol=0, atol=0.51e-6)
    np.testing.assert_allclose(read.coordinates, wanted.coordinates, rtol=0, atol=0.51e-8)
    assert read_release_cameras(tmp_path, "S1") is None


def test_frames_that_the_motion_lacks_have_no_coordinates(tmp_path: Path) -> None:
    wanted, layout = trial(n_frames=12), ReleaseLayout(tmp_path)
    official_trc(layout.markers("S1", "Walking 1"), wanted, "m")
    official_mot(layout.kinematics("S1", "Walking 1"), wanted, slice(3, 10))
    (read,) = read_release(tmp_path)
    inside = np.isin(np.arange(12), np.arange(3, 10))
    np.testing.assert_allclose(read.coordinates[inside], wanted.coordinates[3:10], atol=0.51e-8)
    assert np.isnan(read.coordinates[~inside]).all()
    np.testing.assert_array_equal(read.usable, inside)
    official_mot(layout.kinematics("S1", "Walking 1"), replace(wanted, times=wanted.times + 0.008))
    with pytest.raises(
        FileFormatError, match=r"Walking_1\.mot: time 0\.008 is not in .*valid is times of the"
    ):
        list(read_release(tmp_path))


@pytest.mark.parametrize("gone", ["markers", "kinematics"])
def test_half_a_trial_is_told(tmp_path: Path, gone: str) -> None:
    write_release_trial(tmp_path, trial())
    layout = ReleaseLayout(tmp_path)
    path = getattr(layout, gone)("S1", "Walking 1")
    path.unlink()
    with pytest.raises(FileFormatError, match=f"{path.name}: there is no such file"):
        list(read_release(tmp_path))


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    write_release_trial(tmp_path, trial())
    path = ReleaseLayout(tmp_path).kinematics("S1", "Walking 1")
    whole = path.read_text()
    path.write_text(whole.replace("\tneck_flexion\t", "\tneck\t"))
    with pytest.raises(FileFormatError, match=r"\.mot: axis 'neck' is not known; valid is pelvis_tilt"):
        list(read_release(tmp_path))
    path.write_text(whole.replace("\tneck_flexion\t", "\tneck_bending\t"))
    with pytest.raises(FileFormatError, match=r"\.mot: axis 'neck_bending' is there twice"):
        list(read_release(tmp_path))


def test_what_is_no_release_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="it holds no trials; valid is trials such as markers/S1/"):
        find_release(tmp_path)
    with pytest.raises(FileFormatError, match="there is no such file"):
        find_release(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(FileFormatError, match=r"text\.h5: it is no HDF5 file, or damaged"):
        find_release(tmp_path / "text.h5")


def test_hdf5_needs_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'h5py'.*simspine-jax\[hdf5\]"):
        write_release_h5(tmp_path / "a.h5", [])
    write_release_trial(tmp_path, trial())
    assert len(list(read_release(tmp_path))) == 1


# --- damage ---


def change(name: str, value: Any) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return apply


def units(name: str, unit: str) -> Callable[[h5py.File], None]:
    return lambda file: file[name].attrs.update(units=unit)


W = "/S9/Walking_1"
MARKERS = "/metadata/markers_names"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (change("metadata", None), ":/metadata: there is no such group"),
        (change(MARKERS, None), f":{MARKERS}: there is no such list"),
        (change(MARKERS, np.arange(37)), f":{MARKERS}: there is no such list"),
        (change(MARKERS, np.array(["x"] * 37, "S")), "marker 'x' is there twice"),
        (change("/metadata/kinematic_axes", np.array(["a", *AXIS_NAMES[1:]], "S")), "axis 'a' is not known"),
        (change(MARKERS, np.array([b"\xff"] * 37)), f":{MARKERS}: it can't"),
        (change(W, None), None),
        (change(W, np.zeros(3)), f":{W}: there is no such group|{W}/timestamps"),
        (change(f"{W}/markers", None), f":{W}/markers: there is no such data set .*; valid is .6 37 3."),
        (change(f"{W}/markers", np.zeros((6, 15, 3))), f":{W}/markers: .*shape is .6 15 3.; valid is .6 37"),
        (change(f"{W}/markers", np.zeros((5, 37, 3))), f":{W}/markers: .*shape is .5 37 3.; valid is .6 37"),
        (change(f"{W}/kinematics", np.zeros((6, 61))), f":{W}/kinematics: .*shape is .6 61.; valid is .6 62"),
        (change(f"{W}/kinematics", np.array(["x"], "S")), f":{W}/kinematics: there is no such data set"),
        (change(f"{W}/kinematics", np.full((6, 62), np.inf)), f":{W}: an axis is infinite"),
        (change(f"{W}/markers", np.full((6, 37, 3), np.inf)), f":{W}: a marker is infinite"),
        (change(f"{W}/markers", np.full((6, 37, 3), 2e3)), f":{W}: a marker is 2000 m away; valid is up to"),
        (change(f"{W}/timestamps", np.zeros((6, 1))), f":{W}/timestamps: the shape is .6 1.; valid is .T."),
        (change(f"{W}/timestamps", np.zeros(6)), f":{W}/timestamps: time 0.0 follows 0.0"),
        (change(f"{W}/timestamps", np.full(6, np.nan)), f":{W}/timestamps: the time is nan"),
        (change(f"{W}/timestamps", np.zeros(0)), f":{W}/timestamps: the shape is .0."),
        (units(f"{W}/kinematics", "gon"), f":{W}/kinematics: the unit is 'gon'; valid is degrees or radians"),
        (lambda file: file[W].attrs.update(rate_hz=-1.0), f":{W}: rate_hz is -1.0; valid is a positive"),
        (lambda file: file[W].attrs.update(rate_hz="x"), f":{W}: it can't be read"),
        (lambda file: file.move("S9", "S 9/"), None),
        (lambda file: file.move(W, "/S9/Größe"), "The trial's action is 'Größe'"),
    ],
)  # fmt: skip
def test_each_damage_is_one_sentence_with_its_place(
    tmp_path: Path, damage: Any, sentence: str | None
) -> None:
    path = by_hand(tmp_path / "a.h5", TWO)
    with h5py.File(path, "a") as file:
        damage(file)
    if sentence is None:  # no damage: other names, fewer trials
        assert all(read.usable.all() for read in read_release(path))
        return
    with pytest.raises(FileFormatError, match=rf"a\.h5.*({sentence})") as caught:
        list(read_release(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("chunks", [None, (2, 37, 3)])
def test_blocks_that_were_never_stored_are_no_zeros(tmp_path: Path, chunks: Any) -> None:
    path = by_hand(tmp_path / "a.h5", TWO)
    with h5py.File(path, "a") as file:
        del file[f"{W}/markers"]
        blocks = file.create_dataset(f"{W}/markers", (6, 37, 3), float, chunks=chunks)
        if chunks:
            blocks[:4] = 1.0
        np.testing.assert_array_equal(blocks[5], 0)  # what the library makes up
    with pytest.raises(FileFormatError, match=rf":{W}/markers: a block of its numbers is missing"):
        list(read_release(path))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("names", None, "/names: there is no such list"),
        ("K", np.zeros((2, 3, 3)), "camera '54138969' has the focal lengths"),
        ("R", np.ones((2, 3, 3)), "camera '54138969' has the rotation"),
        ("dist", np.zeros((2, 7)), "dist of camera '54138969'"),
        ("t", np.zeros((3, 3)), r"/t: the shape is .3 3.; valid is .2 3."),
        ("size", np.zeros((2, 2)), "camera '54138969' has the size"),
    ],
)
def test_damaged_calibrations_are_refused(tmp_path: Path, key: str, value: Any, sentence: str) -> None:
    path = by_hand(tmp_path / "a.h5", TWO, cameras={"S9": rig()})
    with h5py.File(path, "a") as file:
        change(f"S9/calibration/{key}", value)(file)
    with pytest.raises(FileFormatError, match=rf"a\.h5:/S9/calibration.*{sentence}"):
        read_release_cameras(path, "S9")


def damaged(valid: bytes, rng: random.Random) -> bytes:
    data = bytearray(valid)
    at = rng.choice((rng.randrange(len(data)), rng.randrange(3000)))
    kind = rng.randrange(4)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at : at + 8] = rng.randbytes(8)
    elif kind == 2:
        del data[at : at + rng.choice((1, 50, len(data)))]
    else:
        data[at:at] = rng.randbytes(rng.choice((1, 40)))
    return bytes(data)


@pytest.mark.parametrize("ours", [True, False])
def test_mutants_load_right_or_are_refused_in_one_sentence(tmp_path: Path, ours: bool) -> None:
    path = tmp_path / "a.h5"
    if ours:
        write_release_h5(path, TWO.values())
    else:
        by_hand(path, TWO)
    valid, rng = path.read_bytes(), random.Random(ours)
    loaded = refused = 0
    for _ in range(1500 if ours else 300):
        path.write_bytes(damaged(valid, rng))
        try:
            read, message = list(read_release(path)), "a.h5"
        except SimspineError as error:
            read, message = [], str(error)
            refused += 1
        assert "a.h5" in message
        assert message.isprintable()
        loaded += bool(read)
        # Only our files have checksums: damage to numbers of others can't be seen.
        for one in read if ours else ():
            close(one, TWO[one.subject, one.action.replace(" ", "_")])
    # The damage reached both ends; the checksums of ours leave little that is harmless.
    assert loaded > (2 if ours else 30)
    assert refused > 100
