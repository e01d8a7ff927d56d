"""What a fit leaves in its folder and says: a real fit of the small arm model, as if it were a spine's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import FRAMES, RATE_HZ, ArmCapture, capture_arm, fit_arm, on_an_arc
from numpy.typing import NDArray
from spine_trials import make_trial

from simspine_jax.annotations import SpineTrial
from simspine_jax.cli_fit import format_fitted, format_fitted_trial
from simspine_jax.errors import FileFormatError, ShapeError
from simspine_jax.fitting.subject import Clip, FitOptions, FitStatus, SubjectFit
from simspine_jax.fitting.terms import markers_of
from simspine_jax.fitting.uncertainty import Uncertainty, half_width, uncertainty_of
from simspine_jax.geometry.cameras import project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.npz import read_npz
from simspine_jax.kinematics.curvature import COLUMN_NAMES, column_curvature
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.inverse import IKStatus
from simspine_jax.kinematics.scaling import Measurement
from simspine_jax.pipeline import FailedTrial, fit_files
from simspine_jax.pipeline.fit import ChainResult
from simspine_jax.pipeline.fit_files import fit_page, fit_report, held_out_views, poses_of, run_fit
from simspine_jax.pipeline.fit_results import (
    FittedMotion,
    FittedSubject,
    HeldOutView,
    angles_of,
    lengths_found,
    read_motion_npz,
    read_sizes,
)
from simspine_jax.pipeline.solving import Motion
from simspine_jax.pipeline.sources import SubjectSource
from simspine_jax.pipeline.stages import SubjectSize, TrialInput, Views
from simspine_jax.skeleton import LUMBAR_LEVELS, TRC_NAMES
from simspine_jax.viz.fit_viewer import fitted_view
from simspine_jax.viz.viewer import prepare_clip

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

# Sums of float64 in another order.
ROUNDING = 1e-9


@pytest.fixture(scope="module", name="seen")
def arm_seen(arm_model: SpineModel) -> ArmCapture:
    seen = capture_arm(arm_model, on_an_arc(3), 0)
    keypoints = seen.keypoints.copy()
    keypoints[5] = np.nan
    return replace(seen, keypoints=keypoints)


@pytest.fixture(scope="module", name="sure")
def arm_sure(arm_model: SpineModel, seen: ArmCapture) -> Uncertainty:
    return uncertainty_of(fit_arm(arm_model, seen))


@dataclass(frozen=True)
class Source:
    """A trial in memory."""

    seen: ArmCapture
    action: str = "Walking 1"
    digest: str = "1"
    optical: bool = False

    def load(self) -> TrialInput:
        shape = (FRAMES, len(self.seen.cameras.names), len(TRC_NAMES))
        views = Views(self.seen.cameras, np.zeros((*shape, 2)), np.ones(shape))
        markers: Any = SimpleNamespace() if self.optical else None
        return TrialInput(self.action, np.arange(FRAMES) / RATE_HZ, RATE_HZ, views, markers)

    def truth(self) -> SpineTrial | None:
        return None


NOTHING = "Nothing"
"""A trial of this name shows nothing."""

Go = Callable[..., list[FittedSubject | FailedTrial]]


@pytest.fixture
def go(arm_model: SpineModel, seen: ArmCapture, sure: Uncertainty, tmp_path: Path, monkeypatch) -> Go:
    """Runs S1's trials with the arm's fit in place of theirs; `go.fits` counts how often it was made."""
    size = SubjectSize(np.ones((len(arm_model.body_names), 3)), 1.7, 63.0)
    chain = ChainResult(size, [Motion(seen.q, np.zeros(FRAMES, np.int64))])
    monkeypatch.setattr(fit_files, "check_model", lambda model: None)
    monkeypatch.setattr(fit_files, "run_chain", lambda *args, **kwargs: chain)
    monkeypatch.setattr(fit_files, "find_points", lambda trial, options: trial)
    monkeypatch.setattr(fit_files, "clip_of", lambda model, trial: chosen(seen, trial))
    given: list[dict[str, Any]] = []

    def simulated(model, subject, trials, points, size, options, *, motions):
        given.append({"size": size, "motions": motions, "trials": trials})
        return [make_trial(subject, trial.action, n_frames=FRAMES) for trial in trials]

    monkeypatch.setattr(fit_files, "simulate_trials", simulated)
    loaded: Any = SimpleNamespace(model=arm_model, digest="model")
    fits: list[int] = []

    def run(
        *sources: Source, fit: SubjectFit = sure.fit, **options: Any
    ) -> list[FittedSubject | FailedTrial]:
        def fitted(model, trials, *args, **kwargs) -> SubjectFit:
            fits.append(len(trials))
            return fit

        monkeypatch.setattr(fit_files, "fit_trials", fitted)
        return list(run_fit(loaded, [SubjectSource("S1", sources)], tmp_path, **options))

    run.fits, run.given = fits, given  # type: ignore[attr-defined]
    return run


def chosen(seen: ArmCapture, trial: TrialInput) -> Clip:
    """The arm's keypoints in the trial's cameras."""
    assert trial.views is not None
    views = [seen.cameras.names.index(name) for name in trial.views.cameras.names]
    if trial.action == NOTHING:
        views = np.full_like(seen.keypoints[:, views], np.nan)
        return Clip(views, np.ones(views.shape[:3]))
    return Clip(seen.keypoints[:, views], np.ones((FRAMES, len(views), seen.keypoints.shape[2])))


def only(results: list[FittedSubject | FailedTrial]) -> FittedSubject:
    (result,) = results
    assert isinstance(result, FittedSubject)
    return result


def test_files_hold_what_was_found(go: Go, arm_model, seen: ArmCapture, sure: Uncertainty, tmp_path) -> None:
    result = only(go(Source(seen)))
    fit = sure.fit
    document = json.loads((tmp_path / "fit" / "S1.json").read_text())
    assert document["status"] == "converged"
    assert [s["name"] for s in document["segments"]] == ["trunk", "arm"]
    trunk = arm_model.body_names.index("trunk")
    np.testing.assert_allclose(document["segments"][0]["factors"], fit.scale_factors[trunk], rtol=ROUNDING)
    told = sure.scale_std[trunk]
    np.testing.assert_allclose(document["segments"][0]["factors_std"], told, rtol=ROUNDING)
    offsets = [marker["offset_mm"] for marker in document["markers"]]
    np.testing.assert_allclose(offsets, 1e3 * fit.marker_offsets, atol=ROUNDING)
    for camera, noise in zip(document["cameras"], fit.noise_px, strict=True):
        assert 0 < max(camera["rotation_std_deg"]) < 1, "pictures tell more of a camera than its prior"
        assert camera["focal_std"] is None
        assert camera["focal_factor"] == 1
        assert camera["noise_px"] == pytest.approx(np.median(noise))
    model = json.loads((tmp_path / "models" / "S1.json").read_text())
    assert list(model["marker_offsets_m"]) == list(arm_model.marker_names)
    assert model["height_from"] == "estimated from the fitted sizes"
    assert (tmp_path / "cameras" / "Calib_S1.toml").is_file()
    # The chain begins with the truth's poses but no size, so that a fit is nearer to what is seen.
    assert result.chain_px is not None
    assert result.markers_px is not None
    assert 0 < result.markers_px < result.chain_px
    assert [trial.action for trial in result.trials] == ["Walking 1"]


def test_a_motion_comes_back_with_its_intervals(
    go: Go, seen: ArmCapture, sure: Uncertainty, tmp_path
) -> None:
    go(Source(seen))
    path = tmp_path / "fit" / "S1_Walking_1.npz"
    arrays, motion = read_npz(path), read_motion_npz(path)
    np.testing.assert_array_equal(motion.q, sure.fit.q[0])
    np.testing.assert_allclose(motion.marker_covariance, sure.marker_covariance[0])
    np.testing.assert_array_equal(np.flatnonzero(~motion.used), [5])
    width = 2 * half_width(0.9) * sure.pose_std[0]
    np.testing.assert_allclose(arrays["q_high"] - arrays["q_low"], width, rtol=1e-6)
    assert motion.angle_names == ()  # an arm has no spine
    spread = np.linalg.det(motion.marker_covariance)
    assert (spread[5] > spread[4]).all(), "a frame without data is less sure than its neighbour"


def test_a_fitted_trial_is_viewed_as_it_was_fitted(
    go: Go, arm_model: SpineModel, seen: ArmCapture, sure: Uncertainty, tmp_path: Path
) -> None:
    go(Source(seen))
    path = tmp_path / "fit" / "S1_Walking_1.npz"
    motion, (segments, offsets) = read_motion_npz(path), read_sizes(path)
    points = np.zeros((FRAMES, len(TRC_NAMES), 3))
    view = fitted_view(arm_model, motion, segments, offsets, points)
    assert view.rate_hz == pytest.approx(RATE_HZ)
    assert view.targets is not None
    assert np.isnan(view.targets).all(), "an arm has none of the points that are triangulated"
    clip = prepare_clip(
        arm_model, view.q, None, view.rate_hz, None, view.scale_factors, view.marker_offsets, view.ellipsoids
    )
    np.testing.assert_allclose(clip.markers, sure.fit.markers[0], atol=1e-6)
    longest = half_width_of(sure.marker_covariance[0])
    np.testing.assert_allclose(view.ellipsoids.half_axes[..., 2], longest, rtol=1e-6)
    larger = [replace(segment, factors=(1.1, 1.1, 1.1)) for segment in segments]
    with pytest.raises(ShapeError, match="not one that is scaled already"):
        fitted_view(arm_model, motion, larger, offsets)
    with pytest.raises(ShapeError, match="The fit's scaled bodies are not those of the model"):
        fitted_view(arm_model, motion, segments[:1], offsets)
    with pytest.raises(ShapeError, match="The fit's coordinates are not those of the model"):
        fitted_view(arm_model, replace(motion, free_names=motion.free_names[::-1]), segments, offsets)


def half_width_of(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of ellipsoids that hold 90 %, along their longest axes."""
    return np.sqrt(6.251389 * np.linalg.eigvalsh(covariance)[..., -1])  # chi-squared's, of 3


def test_a_motion_without_its_subject_is_told(go: Go, seen: ArmCapture, tmp_path: Path) -> None:
    go(Source(seen))
    path = tmp_path / "fit" / "S1_Walking_1.npz"
    (path.parent / "other.json").write_text("[]")
    assert len(read_sizes(path)[0]) == 2
    with pytest.raises(FileFormatError, match=r"No record of a subject beside .*S1_Sitting\.npz names it"):
        read_sizes(path.with_name("S1_Sitting.npz"))


def test_a_complete_subject_is_not_done_again(go: Any, seen: ArmCapture, tmp_path: Path) -> None:
    first = only(go(Source(seen)))
    again = only(go(Source(seen)))
    assert again.resumed
    assert go.fits == [1]
    assert replace(again, resumed=False, trials=first.trials) == first
    assert len(list(tmp_path.glob("simspine.h5"))) == 1
    for change in ({"force": True}, {"options": FitOptions(max_steps=9)}):
        assert not only(go(Source(seen), **change)).resumed
        only(go(Source(seen)))
    assert len(go.fits) == 4
    (tmp_path / "fit" / "S1_Walking_1.npz").unlink()
    assert not only(go(Source(seen))).resumed
    (tmp_path / "fit" / "S1.json").write_text("{")
    assert not only(go(Source(seen))).resumed


def test_poses_sizes_and_cameras_belong_together(go: Any, seen: ArmCapture, sure: Uncertainty) -> None:
    go(Source(seen))
    (given,) = go.given
    (motion,), (trial,) = given["motions"], given["trials"]
    assert trial.views.cameras is sure.fit.cameras
    np.testing.assert_array_equal(given["size"].marker_offsets, sure.fit.marker_offsets)
    assert np.isnan(motion.q[5]).all()
    assert motion.status[5] == IKStatus.TOO_FEW_MARKERS
    np.testing.assert_array_equal(motion.q[6:], sure.fit.q[0, 6:])
    assert (motion.status[6:] == IKStatus.CONVERGED).all()
    stopped = poses_of(replace(sure.fit, status=FitStatus.MAX_STEPS), 0)
    assert (stopped.status[6:] == IKStatus.MAX_ITERATIONS).all()


def test_what_can_not_be_fitted_is_told_in_a_sentence(go: Go, seen: ArmCapture, sure, tmp_path) -> None:
    go(Source(seen))
    layout = ReleaseLayout(tmp_path)
    pages = (fit_page(layout, "S1", "Walking 1"), fit_report(layout, "S1"))
    for page in pages:
        page.write_text("what it was")
    for status, words in ((FitStatus.TOO_LITTLE_DATA, "nothing to fit"), (FitStatus.FAILED, "got stuck")):
        (failed,) = go(Source(seen), fit=replace(sure.fit, status=status), force=True)
        assert isinstance(failed, FailedTrial)
        assert failed.name == "S1"
        assert words in failed.reason
        assert not (tmp_path / "fit" / "S1.json").exists(), "what it was before doesn't hold any more"
        assert not (tmp_path / "fit" / "S1_Walking_1.npz").exists()
        assert not any(page.exists() for page in pages)
    blind, good = go(Source(seen, NOTHING), Source(seen))
    assert isinstance(blind, FailedTrial)
    assert blind.reason == (
        "No frame of trial 'Nothing' shows 4 of the model's keypoints, so there is nothing to fit"
    )
    assert isinstance(good, FittedSubject)
    optical, good = go(Source(seen, "Sitting", optical=True), Source(seen))
    assert isinstance(optical, FailedTrial)
    assert "body markers" in optical.reason
    assert isinstance(good, FittedSubject)
    assert only(go(Source(seen, "Sitting", optical=True), Source(seen))[1:]).resumed


@pytest.mark.parametrize(
    ("names", "words"),
    [(("b", "c"), "3 cameras, of which 2 are held out; valid are 2 or more"), (("x",), "'x'")],
)
def test_cameras_that_can_not_be_held_out(go: Go, seen: ArmCapture, names, words: str) -> None:
    (failed,) = go(Source(seen), hold_out=names)
    assert isinstance(failed, FailedTrial)
    assert words in failed.reason


def test_held_out_cameras_are_measured_where_both_predict(
    arm_model: SpineModel, seen: ArmCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.asarray(project(seen.cameras, yup_to_zup(jnp.asarray(seen.markers))).keypoints)
    shifted = replace(seen, keypoints=np.moveaxis(pixels, 2, 1) + np.array([3.0, 4.0]))
    monkeypatch.setattr(fit_files, "clip_of", lambda model, trial: chosen(shifted, trial))
    chain = seen.markers + np.array([0.0, 0.1, 0.0])
    chain[:10] = np.nan
    fitted = seen.markers.copy()
    fitted[:10] += 1.0
    (view,) = held_out_views(arm_model, [Source(seen).load()], [chain], [fitted], ["b"])
    assert view.fit_px == pytest.approx(5.0, abs=1e-9)
    assert view.chain_px is not None
    assert view.chain_px > 20  # 0.1 m at 3 m and 1000 px


def test_lengths_follow_the_derivative(arm_model: SpineModel, sure: Uncertainty) -> None:
    fit, pair = sure.fit, ("humerus.0", "hand.0")
    (found,) = lengths_found(sure, [Measurement("arm", (pair,), ("humerus",))])
    a, b = arm_model.marker_indices(pair)

    def length(theta: jax.Array) -> jax.Array:
        markers = markers_of(fit.setting, arm_model, theta, arm_model.default_q[None])[0]
        return jnp.linalg.norm(markers[a] - markers[b])

    slope = np.asarray(jax.jit(jax.grad(length))(fit.theta))
    assert found.length_mm == pytest.approx(1e3 * float(length(fit.theta)), rel=ROUNDING)
    assert found.std_mm == pytest.approx(1e3 * np.sqrt(slope @ sure.shared @ slope), rel=1e-6)
    assert lengths_found(sure) == (), "an arm has none of the paper's markers"


def test_angles_are_those_of_the_spine(spine_model: SpineModel) -> None:
    angles = angles_of(spine_model)
    levels = tuple(f"{level}_Flex_Ext" for level in LUMBAR_LEVELS)
    assert angles.names == ("lordosis", "kyphosis", "lumbar", *levels)
    lead = spine_model.free_names.index("L5_S1_Flex_Ext")
    q = spine_model.default_q.at[lead].add(-0.05)
    markers = jax.jit(forward_kinematics)(spine_model, q).markers
    ones = jnp.ones((len(spine_model.body_names), 3))
    value = jax.jit(angles.output)(q, markers, ones)
    column = [f"{name.capitalize()}" for name in COLUMN_NAMES]
    right = [markers[spine_model.marker_names.index(n)] for n in ("RHip", "RShoulder")]
    left = [markers[spine_model.marker_names.index(n)] for n in ("LHip", "LShoulder")]
    lateral = jnp.asarray(sum((a - b) / jnp.linalg.norm(a - b) for a, b in zip(right, left, strict=True)))
    points = markers[np.array([spine_model.marker_names.index(n) for n in column])]
    wanted = column_curvature(points, lateral)
    np.testing.assert_allclose(value[:2], [wanted.lordosis, wanted.kyphosis], rtol=ROUNDING)
    np.testing.assert_allclose(value[3], q[lead], rtol=ROUNDING)
    np.testing.assert_allclose(value[2], value[3:].sum(), rtol=ROUNDING)
    slopes = jax.jit(jax.jacrev(angles.output, argnums=1))(q, markers, ones)
    assert np.isfinite(slopes).all(), "keypoints that the model lacks don't spoil derivatives"


def test_a_subject_is_told_in_a_few_lines(go: Go, seen: ArmCapture) -> None:
    result = replace(only(go(Source(seen))), held_out=(HeldOutView("c", 15.0, 12.0),))
    text = format_fitted(replace(result, unseen=("elbow",), chain_px=9.0, markers_px=7.0, fit_px=5.0))
    assert "median reprojection error 9.00 px before, 7.00 px after, 5.00 px beside" in text
    assert "not seen by these cameras: elbow" in text
    assert "held-out camera c: 12.00 px by the fit, 15.00 px by the chain, 0.80 of it" in text
    doubtful = format_fitted(replace(result, doubts=("camera b is upside down",)))
    assert "  doubtful: camera b is upside down" in doubtful
    assert "--hold-out" in doubtful
    assert "kept" in next(line for line in text.splitlines() if line.startswith("  b")), "focal lengths"
    nothing = replace(result.held_out[0], fit_px=None)
    assert "sees nothing" in format_fitted(replace(result, held_out=(nothing,)))
    assert format_fitted(replace(result, resumed=True)).startswith("S1: complete already, converged")


def spine_motion() -> FittedMotion:
    """Random numbers under a spine's names."""
    random, n = np.random.default_rng(0), 12
    names = ("lordosis", "kyphosis", "lumbar", *(f"{level}_Flex_Ext" for level in LUMBAR_LEVELS))
    used = np.ones(n, bool)
    used[4] = False
    return FittedMotion(
        np.arange(n) / 50, used, ("x",), random.normal(size=(n, 1)), np.ones((n, 1)), ("m",),
        random.normal(size=(n, 1, 3)), np.tile(np.eye(3), (n, 1, 1, 1)), names,
        random.normal(size=(n, 9)), np.full((n, 9), 0.1),
    )  # fmt: skip


def test_angles_come_back(go: Go, seen: ArmCapture, tmp_path: Path) -> None:
    from simspine_jax.pipeline.fit_results import write_motion_npz

    motion, path = spine_motion(), tmp_path / "motion.npz"
    write_motion_npz(path, motion)
    back, arrays = read_motion_npz(path), read_npz(path)
    assert back.angle_names == motion.angle_names
    np.testing.assert_array_equal(back.angles, motion.angles)
    np.testing.assert_array_equal(back.angles_std, motion.angles_std)
    np.testing.assert_allclose(arrays["lordosis_low"], motion.angles[:, 0] - 0.1 * half_width(0.9))
    np.testing.assert_allclose(arrays["lumbar_high"], motion.angles[:, 2] + 0.1 * half_width(0.9))
    assert arrays["lumbar_flexion"].shape == (12, 6)
    trial = only(go(Source(seen))).trials[0]
    lordosis = np.degrees(motion.angles[motion.used, 0].mean())
    assert f"lordosis {lordosis:.1f} ± 5.7 deg" in format_fitted_trial(trial, motion)
