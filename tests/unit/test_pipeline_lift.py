"""Lifting files: what is written is what the lifter says, in the frame that it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lifting_clips import make_clip, make_statistics

from simspine_jax.capture.rigs import make_rig
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.geometry.frames import yup_to_zup, zup_to_yup
from simspine_jax.io import read_trc
from simspine_jax.io.calibration import write_cameras_toml
from simspine_jax.io.keypoints import Keypoints2D, write_keypoints_npz
from simspine_jax.io.npz import read_npz
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.lifting.body import SpineBody
from simspine_jax.lifting.kinematic import KinematicLifter, KinematicOptions
from simspine_jax.lifting.simple_baseline import SimpleBaseline, SimpleBaselineOptions
from simspine_jax.motions import read_motion
from simspine_jax.pipeline.lift import lift_view, read_camera, read_view, view_remarks, write_lifted
from simspine_jax.skeleton import KEYPOINT_NAMES, TRC_NAMES
from simspine_jax.training.run import Expected, Run

pytestmark = pytest.mark.usefixtures("float32")

RATE_HZ = 50.0
# Positions some metres away in float32, through a chain of ten bodies.
CHAIN_M = 2e-5
SIMPLE = Run("simple", SimpleBaselineOptions(width=32, blocks=1), Expected(1))
KINEMATIC = Run("kinematic", KinematicOptions(width=32, blocks=1), Expected(1))


@pytest.fixture(scope="module")
def spine(spine_osim, paper_markers) -> SpineModel:
    return load_model(spine_osim, paper_markers, dtype=jnp.float32)


def two_views() -> Keypoints2D:
    """Detections of the first two cameras of the rig, one frame without any."""
    clip = make_clip(n_frames=12)
    positions = np.array(clip.detections_2d[:, :2], float)
    positions[4] = np.nan
    confidence = np.where(np.isnan(positions[..., 0]), np.nan, clip.detections_confidence[:, :2])
    return Keypoints2D(clip.camera_names[:2], TRC_NAMES, positions, confidence, RATE_HZ, 3)


def simple() -> SimpleBaseline:
    return SimpleBaseline(SIMPLE.model, make_statistics(), rngs=nnx.Rngs(0))  # type: ignore[arg-type]


def kinematic(spine: SpineModel) -> KinematicLifter:
    model = KinematicLifter(KINEMATIC.model, make_statistics(), SpineBody(spine), rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    kernel = model.head.kernel
    kernel.set_value(0.2 * jax.random.normal(jax.random.key(1), kernel.get_value().shape, jnp.float32))
    return model


def test_views_are_read_from_npz_and_json_and_named(tmp_path: Path) -> None:
    whole = two_views()
    write_keypoints_npz(tmp_path / "pose.npz", whole)
    first, second = whole.camera_names
    found = read_view(tmp_path / "pose.npz", second, schema=None, rate_hz=None)
    np.testing.assert_array_equal(found.positions[:, 0], whole.positions[:, 1])
    with pytest.raises(SimspineError, match=f"2 cameras; valid is --view with one of {first}, {second}"):
        read_view(tmp_path / "pose.npz", None, schema=None, rate_hz=None)
    with pytest.raises(UnknownNameError, match="Camera 'third'"):
        read_view(tmp_path / "pose.npz", "third", schema=None, rate_hz=None)
    points = np.column_stack([np.arange(74).reshape(37, 2), np.ones(37)])
    people = [{"image_id": t, "keypoints": (points + t * 0.1).ravel().tolist()} for t in range(3)]
    (tmp_path / "cam.json").write_text(json.dumps(people))
    found = read_view(tmp_path / "cam.json", None, schema="SPINETRACK_37", rate_hz=25)
    assert (found.camera_names, found.rate_hz, len(found.positions)) == (("cam",), 25, 3)
    with pytest.raises(SimspineError, match="valid is --rate"):
        read_view(tmp_path / "cam.json", None, schema="SPINETRACK_37", rate_hz=None)
    with pytest.raises(FileFormatError, match="holds no keypoints"):
        read_view(tmp_path / "pose.txt", None, schema=None, rate_hz=25)


def test_cameras_go_by_the_names_of_either_file(tmp_path: Path) -> None:
    pose = two_views()
    first, second = pose.camera_names
    write_cameras_toml(tmp_path / "rig.toml", make_rig(0))
    folders = dataclasses.replace(pose, camera_names=(f"{first}_json", f"{second}_json"))
    write_keypoints_npz(tmp_path / "pose.npz", folders)
    for view in (second, f"{second}_json"):
        found = read_view(tmp_path / "pose.npz", view, schema=None, rate_hz=None)
        np.testing.assert_array_equal(found.positions[:, 0], pose.positions[:, 1])
        camera = read_camera(tmp_path / "rig.toml", found.camera_names[0], None)
        assert camera is not None
        assert camera.names == (second,)


def test_a_folder_of_one_camera_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "front_json"
    folder.mkdir()
    numbers = np.tile([500.0, 400.0, 0.9], (37, 1))
    for frame in range(3):
        person = {"people": [{"pose_keypoints_2d": (numbers + frame).ravel().tolist()}]}
        (folder / f"front_{frame:06d}.json").write_text(json.dumps(person))
    found = read_view(folder, None, schema=None, rate_hz=25)
    assert found.camera_names == ("front_json",)
    np.testing.assert_allclose(found.positions[:, 0, 0], [[500, 400], [501, 401], [502, 402]])


def test_what_makes_a_lifted_trial_doubtful_is_told() -> None:
    model = simple()
    view = one_view()
    assert view_remarks(SIMPLE, model, view) == []
    statistics = model.statistics.get_value()
    far = dataclasses.replace(view, positions=view.positions + 5 * float(np.max(statistics.std_2d)))
    (told,) = view_remarks(SIMPLE, model, far)
    assert "pictures of another size" in told
    few = dataclasses.replace(
        view, keypoint_names=TRC_NAMES[:17], positions=view.positions[:, :, :17],
        confidence=view.confidence[:, :, :17],
    )  # fmt: skip
    (told,) = view_remarks(SIMPLE, model, few)
    assert told.startswith("20 of the lifter's 37 keypoints are not in the file")


def one_view(name: str | None = None) -> Keypoints2D:
    whole = two_views()
    i = whole.camera_names.index(name) if name else 0
    return Keypoints2D(
        whole.camera_names[i : i + 1], TRC_NAMES, whole.positions[:, i : i + 1],
        whole.confidence[:, i : i + 1], RATE_HZ, 3,
    )  # fmt: skip


def test_a_simple_lifter_writes_positions_and_no_angles(tmp_path: Path) -> None:
    trial = lift_view(SIMPLE, simple(), one_view(), None)
    written = write_lifted(tmp_path / "walk", trial, lambda: pytest.fail("there is no body"))
    assert [p.name for p in written] == ["walk.npz", "walk.trc"]
    trc, arrays = read_trc(written[1]), read_npz(written[0])
    assert str(arrays["frame"]) == "in m from the root keypoint, the camera's axes turned to Y up"
    np.testing.assert_allclose(trc.positions, arrays["positions"], atol=1e-6)
    assert np.isnan(trc.positions[4]).all()
    assert np.isfinite(np.delete(trc.positions, 4, axis=0)).all()
    assert trc.times[0] == pytest.approx(3 / RATE_HZ)
    # From the root, with up pointing up: the camera's y axis points down.
    np.testing.assert_array_equal(trial.positions[0, TRC_NAMES.index("Hip")], 0)
    with pytest.raises(SimspineError, match="this lifter has no joint angles"):
        write_lifted(tmp_path / "walk.mot", trial, lambda: pytest.fail("there is no body"))
    with pytest.raises(SimspineError, match=r"ends in \.npz, \.trc or \.mot"):
        write_lifted(tmp_path / "walk.csv", trial, lambda: pytest.fail("there is no body"))


def test_the_body_stands_where_its_positions_are(spine: SpineModel, tmp_path: Path) -> None:
    write_cameras_toml(tmp_path / "rig.toml", make_rig(3))
    name = two_views().camera_names[1]
    camera, model = read_camera(tmp_path / "rig.toml", name, None), kinematic(spine)
    trial = lift_view(KINEMATIC, model, one_view(name), camera)
    assert trial.q is not None
    assert trial.log_scales is not None
    known = np.isfinite(trial.q).all(axis=1)
    assert known.sum() == 11
    factors = model.body.scale_factors(jnp.asarray(trial.log_scales))
    markers = forward_kinematics(
        spine, jnp.asarray(trial.q[known], jnp.float32), scale_factors=factors
    ).markers
    columns = [TRC_NAMES.index(marker) for marker in spine.marker_names]
    np.testing.assert_allclose(markers, trial.positions[known][:, columns], atol=CHAIN_M)
    assert np.ptp(trial.q[known][:, spine.free_indices(["pelvis_tilt"])]) > 1e-3
    written = write_lifted(tmp_path / "out" / "walk", trial, lambda: spine)
    motion = read_motion(spine, written[2])
    # Degrees in text and back.
    np.testing.assert_allclose(motion.q, trial.q[known], atol=1e-6)


def test_lifting_in_the_cameras_frame_is_turned_into_the_ground(spine: SpineModel) -> None:
    rig, name = make_rig(3), two_views().camera_names[0]
    model, view = kinematic(spine), one_view(name)
    trial = lift_view(KINEMATIC, model, view, rig.select([name]))
    # The same room seen from a world that is turned about its vertical and shifted.
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    shift = np.array([1.0, 2.0, 0.0])
    camera = rig.select([name])
    moved = dataclasses.replace(
        camera,
        rotations=np.asarray(camera.rotations) @ turn.T,
        translations=np.asarray(camera.translations) - np.asarray(camera.rotations)[0] @ turn.T @ shift,
    )
    other = lift_view(KINEMATIC, model, view, moved)
    there = np.asarray(yup_to_zup(jnp.asarray(trial.positions))) @ turn.T + shift
    np.testing.assert_allclose(other.positions, np.asarray(zup_to_yup(jnp.asarray(there))), atol=CHAIN_M)


def test_keypoints_may_have_the_names_of_the_vocabulary() -> None:
    view = one_view()
    other = dataclasses.replace(view, keypoint_names=KEYPOINT_NAMES)
    found, wanted = (lift_view(SIMPLE, simple(), v, None).positions for v in (other, view))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("unknown", [True, False])
def test_a_view_without_any_keypoint_of_the_lifter_is_refused(unknown: bool) -> None:
    view = one_view()
    nothing = np.full_like(view.positions, np.nan)
    view = dataclasses.replace(
        view,
        keypoint_names=tuple(f"point {i}" for i in range(37)) if unknown else TRC_NAMES,
        positions=view.positions if unknown else nothing,
        confidence=view.confidence if unknown else nothing[..., 0],
    )
    with pytest.raises(SimspineError, match=r"No frame has a keypoint of the lifter's among .* and 33 more"):
        lift_view(SIMPLE, simple(), view, None)


def test_what_is_missing_is_told(spine: SpineModel, tmp_path: Path) -> None:
    with pytest.raises(SimspineError, match="valid is --camera"):
        lift_view(KINEMATIC, kinematic(spine), one_view(), None)
    write_cameras_toml(tmp_path / "rig.toml", make_rig(3))
    with pytest.raises(UnknownNameError, match="Camera 'cam'"):
        read_camera(tmp_path / "rig.toml", "cam", None)
    assert read_camera(None, "cam", None) is None
