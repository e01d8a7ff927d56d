"""Calibration files: what real ones say, that all formats agree, and that bad ones are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.geometry.cameras import Cameras, camera_centers, intrinsic_matrices, project
from simspine_jax.io.calibration import read_cameras, write_cameras_toml

TOML = """
[one]
name = "one"
size = [1000.0, 1002.0]
matrix = [[1145.0, 0.0, 512.5], [0.0, 1143.8, 515.5], [0.0, 0.0, 1.0]]
distortions = [-0.2, 0.25, -0.001, 0.002]
rotation = [0.1, 1.2, -0.3]
translation = [0.5, -0.2, 4.0]
fisheye = false

[metadata]
error = 0.0
"""

Reader = Callable[..., Cameras]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    def read_content(content: str, name: str = "calibration.toml", **options: str) -> Cameras:
        path = tmp_path / name
        path.write_text(content)
        return read_cameras(path, **options)

    return read_content


def same(a: Cameras, b: Cameras, atol: float = 1e-12) -> None:
    assert a.names == b.names
    assert a.distortion_model == b.distortion_model
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def test_toml_is_read_as_written(read: Reader) -> None:
    cameras = read(TOML)
    assert cameras.names == ("one",)
    np.testing.assert_array_equal(cameras.focal_lengths, [[1145.0, 1143.8]])
    np.testing.assert_array_equal(cameras.principal_points, [[512.5, 515.5]])
    np.testing.assert_array_equal(cameras.distortion, [[-0.2, 0.25, -0.001, 0.002, 0, 0, 0, 0]])
    np.testing.assert_array_equal(cameras.sizes, [[1000.0, 1002.0]])
    np.testing.assert_array_equal(cameras.translations, [[0.5, -0.2, 4.0]])
    turn = Rotation.from_matrix(cameras.rotations[0]).as_rotvec()
    np.testing.assert_allclose(turn, [0.1, 1.2, -0.3], atol=1e-15)


def test_qualisys_agrees_with_pose2sims_conversion(shared_data: Path) -> None:
    folder = shared_data / "pose2sim_demo"
    toml, qualisys = (read_cameras(folder / name) for name in ("calibration.toml", "calibration.qca.txt"))
    assert toml.names == ("cam_01", "cam_02", "cam_03", "cam_04")
    assert (np.asarray(camera_centers(toml))[:, 2] > 1).all()  # Z up: the cameras stand above the floor
    # Pose2Sim divides the coefficients, which have no unit, by the 64 of the subpixels.
    same(replace(qualisys, distortion=np.asarray(qualisys.distortion) / 64), toml, atol=1e-11)
    assert np.abs(qualisys.distortion).max() > 0.1


def test_human36m_is_read_in_metres(shared_data: Path) -> None:
    path = shared_data / "h36m_cameras.json"
    cameras = read_cameras(path, subject="S9")
    notes = json.loads(path.read_text())
    assert cameras.names == tuple(notes["cameras"]["S9"])
    assert cameras.distortion_model == "h36m"
    centers = [camera["center_mm"] for camera in notes["cameras"]["S9"].values()]
    np.testing.assert_allclose(camera_centers(cameras), np.array(centers) / 1000, atol=1e-6)
    np.testing.assert_array_equal(cameras.sizes[:, 0], 1000)
    with pytest.raises(FileFormatError, match="no subject 'S2'; valid is one of S1, S5"):
        read_cameras(path, subject="S2")
    with pytest.raises(FileFormatError, match="no subject is given"):
        read_cameras(path)


@pytest.mark.parametrize("coefficients", [[0.0] * 4, [-0.2, 0.1, 0.0, 0.0, 0.03], [0.1] * 8])
def test_what_is_written_reads_back(tmp_path: Path, shared_data: Path, coefficients: list[float]) -> None:
    cameras = read_cameras(shared_data / "pose2sim_demo" / "calibration.toml")
    distortion = np.zeros((4, 8))
    distortion[1, : len(coefficients)] = coefficients
    sizes = np.array(cameras.sizes)
    sizes[2] = np.nan
    names = ("cam 1", 'with "quotes"', "Ω", "d.4")
    cameras = replace(cameras, distortion=distortion, sizes=sizes, names=names, skews=np.arange(4.0))
    path = tmp_path / "made" / "cameras.toml"
    write_cameras_toml(path, cameras)
    same(read_cameras(path), cameras, atol=1e-14)


def test_human36ms_distortion_is_not_written_as_opencvs(tmp_path: Path, shared_data: Path) -> None:
    cameras = read_cameras(shared_data / "h36m_cameras.json", subject="S1")
    with pytest.raises(SimspineError, match="the distortion model is 'h36m'; valid is 'opencv'"):
        write_cameras_toml(tmp_path / "cameras.toml", cameras)


@pytest.mark.parametrize("suffix", ["yml", "yaml", "xml"])
@pytest.mark.parametrize("rotation", ["rvec", "R"])
def test_files_of_opencv_itself(tmp_path: Path, read: Reader, suffix: str, rotation: str) -> None:
    cv2 = pytest.importorskip("cv2")
    expected = read(TOML)
    path = tmp_path / f"one.{suffix}"
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", 1000)
    storage.write("image_height", 1002)
    storage.write("camera_matrix", np.asarray(intrinsic_matrices(expected)[0]))
    storage.write("distortion_coefficients", expected.distortion[0][:5][:, None])
    turn = expected.rotations[0] if rotation == "R" else np.array([[0.1], [1.2], [-0.3]])
    storage.write(rotation, turn)
    storage.write("tvec", expected.translations[0][:, None])
    storage.release()
    same(read_cameras(path), expected)


def test_other_habits_of_naming(read: Reader) -> None:
    expected = read(TOML)
    matrix = "!!opencv-matrix {rows: 3, cols: 3, dt: d, data: [1145., 0, 512.5, 0, 1143.8, 515.5, 0, 0, 1]}"
    rest = "dist: [-0.2, 0.25, -0.001, 0.002]", "T: [0.5, -0.2, 4]", "size: [1000, 1002]"
    nested = f"%YAML:1.0\n---\none:\n  K: {matrix}\n  R: [0.1, 1.2, -0.3]\n" + "".join(
        f"  {line}\n" for line in rest
    )
    same(read(nested, "rig.yml"), expected)
    split = f"names: [one]\nK_one: {matrix}\nR_one: [0.1, 1.2, -0.3]\nH_one: 1002\nW_one: 1000\n"
    split += "dist_one: [-0.2, 0.25, -0.001, 0.002]\nT_one: [0.5, -0.2, 4]\n"
    same(read(split, "rig.yml"), expected)
    both = split + f"Rot_one: {np.asarray(expected.rotations[0]).ravel().tolist()}\n"
    same(read(both, "rig.yml"), expected)
    bare = nested.replace("one:\n", "").replace("  ", "").replace("size: [1000, 1002]\n", "")
    unsized = read(bare, "one.calib.yml")
    assert unsized.names == ("one",)
    assert np.isnan(unsized.sizes).all()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("translation = [0.5, -0.2, 4.0]", "translation = [500, -200, 4000]", "valid is metres, up to 1000"),
        ("translation = [0.5, -0.2, 4.0]", "translation = [0.5, nan, 4.0]", "translation of camera 'one' is"),
        ("translation = [0.5, -0.2, 4.0]", "", "camera 'one' has no translation; valid is one of t, tvec"),
        ("matrix = [[1145.0", "matrix = [[-1145.0", r"the focal lengths \[-1145.0, 1143.8\]"),
        ("[0.0, 0.0, 1.0]]", "[0.0, 0.0, 2.0]]", "has the matrix"),
        ("[0.0, 1143.8, 515.5]", "[0.0, 1143.8]", "valid is 9 finite numbers"),
        ("distortions = [-0.2, 0.25, -0.001, 0.002]", "distortions = [0.1, 0.2]", "valid is 0 or 4 or 5"),
        ("rotation = [0.1, 1.2, -0.3]", "rotation = [[1, 0, 0], [0, 1, 0], [0, 0, -1]]", "has the rotation"),
        ("rotation = [0.1, 1.2, -0.3]", "rotation = [[1, 0, 0], [0, 1, 0], [0, 0.1, 1]]", "has the rotation"),
        ("rotation = [0.1, 1.2, -0.3]", 'rotation = "north"', "rotation of camera 'one' is 'north'"),
        ("size = [1000.0, 1002.0]", "size = [1000.0, 0.0]", "the size"),
        ("fisheye = false", "fisheye = true", "a fisheye lens"),
        ("fisheye = false", "K = 1", "has matrix and K"),
        ("[metadata]", "[one]", "the TOML is broken .*line"),
        ('name = "one"', 'name = "o\\tne"', "is no camera name"),
        ("[one]", "[metadata.x]", "it holds no cameras"),
    ],
)  # fmt: skip
def test_bad_cameras_are_named(read: Reader, old: str, new: str, reason: str) -> None:
    assert old in TOML
    content = TOML.replace(old, new, 1) if "metadata.x" not in new else "[metadata]\nerror = 0.0\n"
    with pytest.raises(FileFormatError, match=reason) as caught:
        read(content)
    assert "calibration.toml: " in str(caught.value)
    assert "; valid is " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_camera_that_is_there_twice_is_named(read: Reader) -> None:
    twice = TOML.replace("[metadata]", TOML.split("[metadata]")[0].replace("[one]", "[two]") + "[metadata]")
    with pytest.raises(FileFormatError, match="camera 'one' is there twice"):
        read(twice)
    with pytest.raises(FileFormatError, match=r"rig.yml:2: 'K' is there twice"):
        read("a: 1\nb: {K: 1, K: 2}\n", "rig.yml")
    with pytest.raises(FileFormatError, match=r"rig.xml:1: 'K' is there twice"):
        read("<opencv_storage><K>1</K><K>2</K></opencv_storage>", "rig.xml")
    with pytest.raises(FileFormatError, match="'cameras' is there twice"):
        read('{"cameras": {}, "cameras": {}}', "rig.json", subject="S1")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rig.csv", "a", "the suffix is '.csv'; valid is .toml"),
        ("rig.xml", "<model/>", "the document is 'model'"),
        ("rig.qca.txt", "<calibration/>", "the document is 'calibration'"),
        ("rig.qca.txt", "<calibration><cameras/></calibration>", "it holds no cameras"),
        ("rig.yml", "- a", "the YAML holds a list"),
        ("rig.yml", "a: [", "the YAML is broken"),
        ("rig.yml", "a: !!python/object:os.system {}", "the YAML is broken"),
        ("rig.yml", "a: b", "it holds no cameras"),
        ("rig.json", "[", "the JSON is broken"),
        ("rig.json", "[]", "it lacks cameras or intrinsics"),
        (
            "rig.json",
            '{"cameras": {"S1": {"1": {}}}, "intrinsics": {}}',
            "camera '1' lacks pose or intrinsics",
        ),
    ],
)
def test_other_files_are_refused(read: Reader, name: str, content: str, reason: str) -> None:
    options = {"subject": "S1"} if name.endswith("json") else {}
    with pytest.raises(FileFormatError, match=reason):
        read(content, name, **options)


def test_a_subject_is_for_human36m_alone(read: Reader) -> None:
    with pytest.raises(FileFormatError, match="it holds no subjects, such as 'S1'"):
        read(TOML, subject="S1")


@pytest.mark.parametrize(
    "missing", ['x="1460.2323709212087" ', 'focalLengthU="107599.671875" ', "<fov_video "]
)
def test_incomplete_qualisys_files_are_refused(read: Reader, shared_data: Path, missing: str) -> None:
    content = (shared_data / "pose2sim_demo" / "calibration.qca.txt").read_text()
    assert missing in content
    broken = content.replace(missing, "<other " if missing.startswith("<") else "", 1)
    with pytest.raises(FileFormatError, match="of camera 'cam_01' is 'None'; valid is 1 finite number"):
        read(broken, "rig.qca.txt")


def test_cameras_that_are_read_project(read: Reader) -> None:
    picture = project(read(TOML), jnp.zeros((1, 3)))
    np.testing.assert_allclose(picture.depth, [[4.0]])
    assert np.isfinite(picture.keypoints).all()
