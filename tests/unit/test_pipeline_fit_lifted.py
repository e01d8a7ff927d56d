"""One camera's lifted keypoints on their way into a fit: placed, measured, or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lifting_clips import make_clip, make_statistics
from numpy.typing import NDArray

from simspine_jax.capture.rigs import make_rig
from simspine_jax.clips import cameras_in_ground
from simspine_jax.datasets import clips_in_memory
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.io.calibration import write_cameras_toml
from simspine_jax.io.keypoints import Keypoints2D, write_keypoints_npz
from simspine_jax.lifting.errors import (
    FILE,
    LEAST_STD_M,
    LifterErrors,
    default_errors,
    measured_errors,
    read_errors,
    write_errors,
)
from simspine_jax.lifting.simple_baseline import SimpleBaseline, SimpleBaselineOptions
from simspine_jax.pipeline import fit_lifter
from simspine_jax.pipeline.fit import of_one_size
from simspine_jax.pipeline.fit_files import only_view
from simspine_jax.pipeline.fit_lifted import (
    ROOT,
    lifted_markers,
    lifted_points,
    root_places,
    seeing_camera,
    unplaced,
)
from simspine_jax.pipeline.fit_lifter import TrainedLifter, load_lifter
from simspine_jax.pipeline.options import PRESETS
from simspine_jax.pipeline.sources import FileTrial, SubjectSource, of_one_camera
from simspine_jax.pipeline.stages import SubjectSize, TrialInput, Views
from simspine_jax.skeleton import KEYPOINT_NAMES, TRC_NAMES
from simspine_jax.training.evaluation import lifter_errors
from simspine_jax.training.run import DataOptions, Expected, Run, write_run

N_FRAMES, RATE_HZ = 6, 50.0
HIP = TRC_NAMES.index(ROOT)
# Of float64 through a camera and back.
ROUNDING_M = 1e-7
RUN = Run("simple", SimpleBaselineOptions(width=32, blocks=1), Expected(1))


@dataclass(frozen=True, eq=False)
class Scene:
    """A body of points, exact pictures of it, and the same points from its root along the camera's axes."""

    trial: TrialInput
    points: NDArray[np.float64]
    lifted: NDArray[np.float64]


@pytest.fixture(scope="module", name="scene")
def four_views() -> Scene:
    random, rig = np.random.default_rng(0), make_rig(1)
    points = random.normal(0, 0.25, (1, 37, 3)) + [0, 1, 0] + 0.02 * random.normal(size=(N_FRAMES, 37, 3))
    pixels = np.moveaxis(np.asarray(project(rig, yup_to_zup(jnp.asarray(points))).keypoints), 2, 1)
    views = Views(rig, pixels, np.ones(pixels.shape[:-1]))
    turn = np.asarray(cameras_in_ground(rig).rotations)[2]
    return Scene(
        TrialInput("Walking", np.arange(N_FRAMES) / RATE_HZ, RATE_HZ, views), points,
        (points - points[:, [HIP]]) @ turn.T,
    )  # fmt: skip


def third(scene: Scene) -> TrialInput:
    return only_view(scene.trial, make_rig(1).names[2])


def test_exact_points_are_put_where_they_are(scene: Scene) -> None:
    trial, lifted = third(scene), scene.lifted.copy()
    lifted[2, 5], lifted[4] = np.nan, np.nan
    found = lifted_points(trial, lifted, replace(PRESETS["simspine"], max_gap_s=0.0))
    wanted = scene.points.copy()
    wanted[2, 5], wanted[4] = np.nan, np.nan
    np.testing.assert_allclose(found.positions, wanted, atol=ROUNDING_M)
    assert found.triangulated is None
    assert (found.confidence[4] == 0).all()


def test_what_tells_no_distance_has_no_place(scene: Scene) -> None:
    random = np.random.default_rng(1)
    lifted, rays = random.normal(size=(4, 5, 3)), random.normal(size=(4, 5, 2))
    weights = np.ones((4, 5))
    weights[0, :2] = 0.0  # three are too few
    rays[1] = rays[1, 0]  # all on one ray
    points = lifted[2] + [0.0, 0.0, -9.0]  # behind the camera
    rays[2] = points[:, :2] / points[:, 2:]
    place = root_places(lifted, rays, weights)
    assert np.isnan(place[:3]).all()
    with pytest.raises(SimspineError, match="no frame with 4 keypoints that are seen and lifted"):
        lifted_points(third(scene), np.full_like(scene.lifted, np.nan), PRESETS["simspine"])


def test_one_camera_is_chosen(scene: Scene) -> None:
    names, views = make_rig(1).names, scene.trial.views
    assert views is not None
    assert seeing_camera(scene.trial, names[1]) == names[1]
    with pytest.raises(SimspineError, match=f"4 cameras and a lifter takes one; valid is --view.*{names[3]}"):
        seeing_camera(scene.trial, None)
    with pytest.raises(UnknownNameError, match="Camera 'back'"):
        seeing_camera(scene.trial, "back")
    keypoints = views.keypoints.copy()
    keypoints[:, [0, 1, 3]] = np.nan
    alone = replace(scene.trial, views=replace(views, keypoints=keypoints))
    assert seeing_camera(alone, None) == names[2]


def test_markers_of_the_model_are_taken(scene: Scene, spine_model, arm_model) -> None:
    std = np.random.default_rng(2).uniform(0.01, 0.2, (37, 3))
    found = lifted_markers(spine_model, scene.trial, scene.lifted, LifterErrors(std, 0.5, 3.0, 0.08))
    assert spine_model.marker_names[found.root] == ROOT
    assert (found.alike_frames, found.alike_markers, found.size_std) == (0.5 * RATE_HZ, 3.0, 0.08)
    for k, name in enumerate(spine_model.marker_names):
        if name in TRC_NAMES:
            np.testing.assert_array_equal(found.points[:, k], scene.lifted[:, TRC_NAMES.index(name)])
            np.testing.assert_array_equal(found.std[k], std[TRC_NAMES.index(name)])
        else:
            assert np.isnan(found.points[:, k]).all()
    with pytest.raises(SimspineError, match="has 0 markers of the lifter's keypoints, and needs Hip"):
        lifted_markers(arm_model, scene.trial, scene.lifted, default_errors())


def test_pictures_stay_where_nothing_is_triangulated(scene: Scene) -> None:
    trial = third(scene)
    points = unplaced(trial)
    assert trial.views is not None
    np.testing.assert_array_equal(points.detections, trial.views.keypoints)
    assert points.triangulated is None
    assert np.isnan(points.positions).all()
    assert points.events == ()


def test_errors_are_measured_and_come_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    std, alike, frames = random.uniform(0.02, 0.1, (37, 3)), 8, 400
    steps = random.normal(size=(40, frames // alike, 37, 3)).repeat(alike, axis=1)
    error = (steps * std).reshape(-1, 37, 3)
    error[:, HIP], error[5, 3] = 0.0, np.nan
    view = np.repeat(np.arange(40), frames)
    truth = random.normal(size=error.shape)
    found = measured_errors(truth + error, truth, view, RATE_HZ, "noise")
    others = np.arange(37) != HIP
    np.testing.assert_allclose(found.std[others], std[others], rtol=0.1)  # 2,000 draws
    np.testing.assert_array_equal(found.std[HIP], LEAST_STD_M)
    assert found.alike_s == pytest.approx(alike / RATE_HZ, rel=0.1)
    assert found.alike_keypoints == pytest.approx(1.0, abs=0.05)
    same = np.repeat(error[:, :1], 37, axis=1)
    both = measured_errors(truth + same, truth, view, RATE_HZ, "")
    assert both.alike_keypoints > 30, "errors that all keypoints have in common"
    larger = measured_errors(1.1 * truth, truth, view, RATE_HZ, "")
    assert larger.size_std == pytest.approx(np.log(1.1), rel=1e-6)
    path = tmp_path / FILE
    write_errors(path, found)
    back = read_errors(path)
    np.testing.assert_array_equal(back.std, found.std)
    assert (back.alike_s, back.source) == (found.alike_s, "noise")
    for text in ("{", "{}", path.read_text().replace(str(found.alike_s), "-1")):
        path.write_text(text)
        with pytest.raises(FileFormatError, match="no errors of a lifter; valid is what 'simspine evaluate"):
            read_errors(path)
    error[:, 7] = np.nan
    with pytest.raises(ShapeError, match=f"truth of {KEYPOINT_NAMES[7]} is known in no frame"):
        measured_errors(truth + error, truth, view, RATE_HZ, "")
    with pytest.raises(ShapeError, match=r"valid is \(37, 3\)"):
        LifterErrors(np.ones(3), 1.0, 1.0, 1.0)
    with pytest.raises(ShapeError, match="alike_s is 0"):
        replace(back, alike_s=0.0)


def simple() -> SimpleBaseline:
    with jax.enable_x64(False):
        return SimpleBaseline(RUN.model, make_statistics(), rngs=nnx.Rngs(0))  # type: ignore[arg-type]


def test_a_trained_lifter_gives_points_along_the_cameras_axes(scene: Scene) -> None:
    told: list[str] = []
    lifter = TrainedLifter(RUN, simple(), default_errors(), "", told.append)
    trial = third(scene)
    assert trial.views is not None
    holed = trial.views.keypoints.copy()
    holed[3, 0, 5] = np.nan  # with a confidence all the same
    trial = replace(trial, views=replace(trial.views, keypoints=holed))
    found = lifter.lift(trial)
    assert found.shape == (N_FRAMES, 37, 3)
    np.testing.assert_allclose(found[:, HIP], 0.0, atol=1e-12)
    # The lifter doesn't know where its camera stands.
    assert trial.views is not None
    turned = replace(trial, views=replace(trial.views, cameras=make_rig(1).select([make_rig(1).names[0]])))
    np.testing.assert_allclose(lifter.lift(turned), found, atol=1e-6)


def test_errors_of_a_lifter_are_those_of_its_predictions(monkeypatch) -> None:
    with jax.enable_x64(False):
        clips = clips_in_memory([make_clip("S9"), make_clip("S11")])
        found = lifter_errors(RUN, simple(), clips, source="test")
        assert (found.std[np.arange(37) != HIP] > 0.01).all()
        few = replace(RUN, data=replace(RUN.data, keypoints="spine"))
        with pytest.raises(ShapeError, match="valid is a lifter of all"):
            lifter_errors(few, simple(), clips, source="test")
        mixed = clips_in_memory([make_clip("S9"), replace(make_clip("S11"), rate_hz=np.float32(25))])
        with pytest.raises(ShapeError, match="2 frame rates"):
            lifter_errors(RUN, simple(), mixed, source="test")


def test_a_folder_is_loaded_with_its_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(folder, spine, *, note):
        return run, model, 8

    run, model, told = RUN, simple(), []
    monkeypatch.setattr(fit_lifter, "load_trained", trained)
    write_run(tmp_path / "run.json", RUN)
    first = load_lifter(tmp_path, lambda: pytest.fail("no body is needed"), note=told.append)
    np.testing.assert_array_equal(first.errors.std, default_errors().std)
    assert "were not measured" in told[0]
    write_errors(tmp_path / FILE, replace(default_errors(), alike_s=1.0))
    second = load_lifter(tmp_path, lambda: pytest.fail("no body is needed"), note=told.append)
    assert len(told) == 1
    assert second.errors.alike_s == 1.0
    assert second.digest != first.digest
    run = replace(RUN, data=DataOptions(keypoints="spine"))
    with pytest.raises(SimspineError, match="lifts 15 keypoints and a fit needs all 37; valid is a lifter"):
        load_lifter(tmp_path, lambda: pytest.fail("no body is needed"), note=told.append)


def test_one_camera_suffices_where_it_is_lifted(scene: Scene, tmp_path: Path) -> None:
    trial = third(scene)
    assert trial.views is not None
    name = trial.views.cameras.names[0]
    pose = Keypoints2D((name,), TRC_NAMES, trial.views.keypoints, trial.views.confidence, RATE_HZ)
    write_keypoints_npz(tmp_path / "pose.npz", pose)
    write_cameras_toml(tmp_path / "rig.toml", trial.views.cameras)
    source = FileTrial("Walking", tmp_path / "pose.npz", tmp_path / "rig.toml")
    with pytest.raises(SimspineError, match="valid are two or more"):
        source.load()
    (lone,) = of_one_camera(SubjectSource("S1", (source,))).trials
    assert lone.digest == source.digest
    found = lone.load()
    assert found.views is not None
    assert found.views.cameras.names == (name,)
    write_cameras_toml(tmp_path / "rig.toml", make_rig(1).select([make_rig(1).names[0]]))
    with pytest.raises(SimspineError, match="valid are one or more"):
        lone.load()


def test_a_lifted_body_starts_with_the_models_proportions() -> None:
    factors = np.random.default_rng(0).uniform(0.8, 1.2, (5, 3))
    size = of_one_size(SubjectSize(factors, 1.7, 63.0))
    np.testing.assert_allclose(size.scale_factors, np.exp(np.log(factors).mean()))
    assert size.height_m == 1.7
