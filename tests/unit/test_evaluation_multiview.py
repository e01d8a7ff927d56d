"""The multi-view benchmark on a small capture: beside plain NumPy, and where data lack something."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.annotations import Quality, SpineTrial
from simspine_jax.clip_trials import ClipSet, world_cameras
from simspine_jax.clips import CLIP_FIELDS, Clip, clips_of
from simspine_jax.datasets import clips_in_memory
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.evaluation.multiview import (
    METHODS,
    LeftOut,
    MultiViewErrors,
    evaluate_multiview,
)
from simspine_jax.geometry.frames import zup_to_yup
from simspine_jax.geometry.triangulation import triangulate_robust, triangulate_weighted
from simspine_jax.pipeline.options import preset
from simspine_jax.pipeline.sources import SyntheticTrial
from simspine_jax.pipeline.stages import TrialInput, Views, simulate_subject
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, LUMBAR_LEVELS, REGIONS

SECONDS, RATE_HZ = 1.6, 25.0
N_FRAMES = 40
OFFSET_M = 0.02
"""Of the annotation from the truth, so that one can't be taken for the other."""

EXACT_MM = 0.05
"""What the project promises of exact pictures; clips hold float32."""

FLOAT32_DEG = 1e-3
FLOAT32_MM = 2e-3
"""Errors are computed in float32: metres have seven digits, and P-MPJPE sums squares of them."""

TRIANGULATED = ("weighted", "linear", "robust")


@pytest.fixture(scope="module")
def captured(spine_model) -> dict[str, Clip]:
    """Two actions of a subject, a clip each, by action."""
    return {action: _capture(spine_model, action) for action in ("Walking", "Sitting")}


def _capture(model, action: str) -> Clip:
    made = SyntheticTrial(model, "S9", action, SECONDS, RATE_HZ, 0)
    views, truth = made.load().views, made.truth()
    assert views is not None
    trial = SpineTrial(
        "S9", action, truth.times, RATE_HZ, truth.keypoints + OFFSET_M, truth.coordinates,
        np.zeros(N_FRAMES, np.uint16), camera_names=views.cameras.names,
        detections=np.asarray(views.keypoints, float),
        detection_confidence=np.asarray(views.confidence, float),
        source=f"synthetic capture: S9, {action}, seed 0",
    )  # fmt: skip
    (clip,) = clips_of(trial, views.cameras, truth)
    return clip


def clip_set(*clips: Clip) -> ClipSet:
    return ClipSet.of(clips_in_memory(clips))


def with_detections(clip: Clip, pixels: np.ndarray, found: np.ndarray) -> Clip:
    """The clip with these detections, sure of all of them."""
    return dataclasses.replace(
        clip,
        detections_2d=np.where(found[..., None], pixels, np.nan),
        detections_2d_mask=found,
        detections_confidence=np.where(found, 1.0, np.nan),
    )


def of_person(clip: Clip) -> Clip:
    """The same as if a person had been recorded: its annotation is all that is known."""
    return dataclasses.replace(
        clip, is_synthetic=False, source="a test",
        true_keypoints_3d=np.full_like(clip.true_keypoints_3d, np.nan),
        true_keypoints_3d_mask=np.zeros_like(clip.true_keypoints_3d_mask),
    )  # fmt: skip


def exactly_seen(clip: Clip) -> Clip:
    """Detections that are the pictures of the annotation."""
    return with_detections(clip, clip.keypoints_2d, clip.keypoints_2d_mask)


# --- errors ---


def _aligned(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Umeyama's similarity, in NumPy's words, of one frame."""
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    left, sizes, right = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(left @ right))])
    return a @ (left * signs @ right).T * (sizes * signs).sum() / (a**2).sum() - b


@pytest.mark.parametrize("method", TRIANGULATED)
def test_errors_are_those_of_plain_numpy(captured, method) -> None:
    clips = list(captured.values())
    found = evaluate_multiview(clip_set(*clips), sources=["detected"], methods=[method])
    errors, points, truth = found.errors["detected", method], [], []
    for trial in clip_set(*clips).trials:
        clip = next(clip for clip in clips if clip.action == trial.action)
        seen = [jnp.asarray(x, jnp.float64) for x in (clip.detections_2d, clip.detections_confidence)]
        cameras = world_cameras(clip)
        if method == "robust":
            solved = triangulate_robust(cameras, *seen)
        else:
            most = {"linear": np.inf, "weighted": 15.0}[method]
            solved = triangulate_weighted(cameras, *seen, max_reprojection_px=most, undistorted=True)
        points.append(np.asarray(zup_to_yup(solved.points)))
        truth.append(clip.true_keypoints_3d.astype(float))
    points, truth = np.concatenate(points), np.concatenate(truth)
    assert errors.regions == tuple(REGIONS)
    assert 0.9 < np.isfinite(points).mean() < 1
    assert errors.coverage() == np.isfinite(points[..., 0]).mean()
    for region, ids in REGIONS.items():
        whole, aligned = [], []
        for here, there in zip(points[:, ids], truth[:, ids], strict=True):
            seen = np.isfinite(here[:, 0])
            whole.append(np.linalg.norm(here - there, axis=-1)[seen].mean())
            aligned.append(np.linalg.norm(_aligned(here[seen], there[seen]), axis=-1).mean())
        assert errors.mean_mm(False, region) == pytest.approx(1e3 * np.mean(whole), abs=FLOAT32_MM)
        assert errors.mean_mm(True, region) == pytest.approx(1e3 * np.mean(aligned), abs=FLOAT32_MM)
    assert 10 < errors.mean_mm(False, "all") < 100
    assert set(errors.action) == {"Walking", "Sitting"}
    assert np.bincount(errors.trial).tolist() == [N_FRAMES, N_FRAMES]


@pytest.mark.parametrize("method", TRIANGULATED)
def test_exact_pictures_give_the_reference_in_single_precision(captured, method, float32) -> None:
    clips = clip_set(captured["Walking"], of_person(captured["Sitting"]))
    found = evaluate_multiview(clips, sources=["truth"], methods=[method])
    errors = found.errors["truth", method]
    assert found.references == ("annotation", "truth")  # Sitting comes first
    assert not found.left_out
    for region in REGIONS:
        assert 0 < errors.mean_mm(False, region) < EXACT_MM
        assert 0 < errors.mean_mm(True, region) < EXACT_MM
    assert 0.99 < errors.coverage() <= 1
    assert np.nanmax(found.distances_m["truth", method]) < 1e-3 * EXACT_MM


def test_only_what_is_in_the_picture_is_seen(captured) -> None:
    clip = captured["Walking"]
    small = dataclasses.replace(clip, camera_sizes=np.array([[1000.0, 1000], [1000, 1000], [1, 1], [1, 1]]))
    one = dataclasses.replace(clip, camera_sizes=np.array([[1000.0, 1000], [1, 1], [1, 1], [1, 1]]))
    whole, half = (
        evaluate_multiview(clip_set(c), sources=["truth"], methods=["robust"]) for c in (clip, small)
    )
    assert half.errors["truth", "robust"].coverage() > 0.9
    ratio = [np.nanmean(f.distances_m["truth", "robust"]) for f in (half, whole)]
    assert ratio[0] > ratio[1]  # rounding counts for more in fewer views
    none = evaluate_multiview(clip_set(one), sources=["truth"], methods=["robust"])
    assert none.errors["truth", "robust"].coverage() == 0


def test_frames_of_an_annotation_with_faults_are_not_compared(captured) -> None:
    clip = of_person(captured["Walking"])
    quality = np.zeros(N_FRAMES, np.int32)
    quality[3:8], quality[20:22] = int(Quality.CURVATURE), int(Quality.INTERPOLATED)
    flagged = dataclasses.replace(clip, quality=quality)
    found = evaluate_multiview(clip_set(flagged), sources=["truth"], methods=["weighted"])
    expected = found.errors["truth", "weighted"].expected
    np.testing.assert_array_equal(~expected.any(axis=1), quality == int(Quality.CURVATURE))
    np.testing.assert_array_equal(
        np.isfinite(found.distances_m["truth", "weighted"]).any(axis=1), expected.any(axis=1)
    )


def test_missing_detections_show_in_the_coverage_and_in_no_mean(captured) -> None:
    clip = of_person(captured["Walking"])
    lost = clip.keypoints_2d_mask.copy()
    gone, keypoint = slice(5, 15), KEYPOINT_NAMES.index("spine_03")
    lost[gone, 1:, keypoint] = False  # one view doesn't make a point
    whole, found = (
        evaluate_multiview(
            clip_set(with_detections(clip, clip.keypoints_2d, seen)),
            sources=["detected"], methods=["weighted", "robust"],
        )
        for seen in (clip.keypoints_2d_mask, lost)
    )  # fmt: skip
    pair = ("detected", "weighted")
    fewer = whole.errors[pair].given.sum() - found.errors[pair].given.sum()
    assert fewer == 10
    assert found.errors[pair].coverage() == pytest.approx(whole.errors[pair].coverage() - 10 / (40 * 37))
    assert np.isnan(found.distances_m[pair][gone, keypoint]).all()
    assert found.errors[pair].mean_mm(False, "lumbar") < EXACT_MM
    shared = found.compare("detected", "robust")
    assert shared["lumbar"].share < shared["thoracic"].share


def test_methods_are_compared_on_the_points_that_both_give(captured) -> None:
    errors = evaluate_multiview(
        clip_set(captured["Walking"]), sources=["detected"], methods=["weighted", "robust"]
    )
    first = errors.distances_m["detected", "weighted"].copy()
    second = 2 * first
    second[:20] = np.nan  # where the first is far worse
    first[:20] *= 50
    made = MultiViewErrors(
        errors.errors, {("detected", "weighted"): first, ("detected", "robust"): second}, {}, ("truth",), ()
    )
    for region, ids in REGIONS.items():
        found = made.compare("detected", "robust")[region]
        assert found.ratio == pytest.approx(2)
        there = np.isfinite(first[20:, ids])
        assert found.share == pytest.approx(there.sum() / (N_FRAMES * len(ids)))
        values = [row[seen].mean() for row, seen in zip(first[20:, ids], there, strict=True)]
        assert found.against_mm == pytest.approx(1e3 * np.mean(values))
    with pytest.raises(UnknownNameError, match="Method 'model' is not in the evaluation of 2D detected"):
        made.compare("detected", "model")


def test_only_linear_follows_a_view_that_is_astray(captured) -> None:
    clip = exactly_seen(of_person(captured["Walking"]))
    pixels = clip.detections_2d.copy()
    pixels[10:30, 2] += 150
    found = evaluate_multiview(
        clip_set(with_detections(clip, pixels, clip.detections_2d_mask)),
        sources=["detected"], methods=TRIANGULATED,
    )  # fmt: skip
    means = {m: found.errors["detected", m].mean_mm(False, "all") for m in TRIANGULATED}
    assert means["linear"] > 20
    assert max(means["weighted"], means["robust"]) < EXACT_MM


# --- the model ---


@pytest.fixture(scope="module")
def modelled(captured, spine_model) -> MultiViewErrors:
    """Every method on detections, of which one trial lacks a stretch too long to be bridged."""
    clip = captured["Walking"]
    seen = clip.detections_2d_mask.copy()
    seen[24:] = False
    gone = dataclasses.replace(
        clip,
        detections_2d=np.where(seen[..., None], clip.detections_2d, np.nan),
        detections_2d_mask=seen,
        detections_confidence=np.where(seen, clip.detections_confidence, np.nan),
    )
    steps: list[tuple[int, int]] = []
    found = evaluate_multiview(
        clip_set(gone, captured["Sitting"]), sources=["detected"], methods=METHODS, model=spine_model,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert {total for _, total in steps} == {8}
    assert steps[-1][0] == 8
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    return found


def test_the_model_is_the_pipeline_from_the_same_keypoints(modelled, captured, spine_model) -> None:
    inputs = []
    for action, last in (("Sitting", N_FRAMES), ("Walking", 24)):
        clip = captured[action]
        pixels, confidence = clip.detections_2d.astype(float), clip.detections_confidence.astype(float)
        pixels[last:], confidence[last:] = np.nan, np.nan
        # Names that all rigs share, so that nothing is compiled anew.
        cameras = dataclasses.replace(world_cameras(clip), names=tuple(f"view {i}" for i in range(4)))
        views = Views(cameras, pixels, confidence)
        inputs.append(TrialInput(action, clip.times, RATE_HZ, views))
    _, solved = simulate_subject(spine_model, "S9", inputs, preset("simspine"))
    wanted = np.concatenate([np.where(t.usable[:, None, None], t.keypoints, np.nan) for t in solved])
    truth = np.concatenate([captured[t.action].true_keypoints_3d for t in solved])
    distances = np.linalg.norm(wanted - truth, axis=-1)
    np.testing.assert_allclose(modelled.distances_m["detected", "model"], distances, atol=1e-6)
    assert modelled.errors["detected", "model"].coverage() == np.isfinite(distances).mean()
    angles = modelled.angles["detected", "model"]
    found = np.concatenate([np.where(t.usable[:, None, None], t.vertebral_rotations, np.nan) for t in solved])
    axes = np.concatenate([captured[t.action].true_kinematics for t in solved])
    flexion = [AXIS_NAMES.index(f"{level}_Flex_Ext") for level in LUMBAR_LEVELS]
    off = np.degrees(found[:, :6, 0] - axes[:, flexion])
    np.testing.assert_allclose(
        angles.rms_deg["free"][:6, 0], np.sqrt(np.nanmean(off**2, axis=0)), atol=FLOAT32_DEG
    )
    assert angles.limit_violations == 0
    assert angles.frames == np.isfinite(off[:, 0]).sum()


def test_frames_that_the_pipeline_rejects_have_no_position(modelled) -> None:
    errors = modelled.errors["detected", "model"]
    lost = ~errors.given.any(axis=1)
    np.testing.assert_array_equal(errors.given.all(axis=1), ~lost)
    assert lost[-16:].all()
    assert lost[:-16].sum() <= 2  # a marker may be astray in a frame at an end
    assert errors.coverage("Sitting") == 1


def test_the_model_beats_the_baseline_on_noisy_detections(modelled) -> None:
    for region, found in modelled.compare("detected", "model").items():
        assert 0.1 < found.ratio < 0.9, region
        assert 0.5 < found.share < 0.85


def test_a_subject_that_can_not_be_scaled_is_told_and_covers_nothing(captured, spine_model) -> None:
    clip = captured["Walking"]
    seen = clip.keypoints_2d_mask.copy()
    seen[..., [i for i, name in enumerate(KEYPOINT_NAMES) if name != "nose"]] = False
    blind = with_detections(of_person(clip), clip.keypoints_2d, seen)
    found = evaluate_multiview(
        clip_set(blind), sources=["detected"], methods=["weighted", "model"], model=spine_model
    )
    (told,) = found.left_out
    assert (told.trial, told.source, told.method) == ("S9_Walking", "detected", "model")
    assert str(told).startswith("S9_Walking, 2D detected, method model: No pair of markers")
    assert found.errors["detected", "model"].coverage() == 0
    assert 0.02 < found.errors["detected", "weighted"].coverage() < 0.03


# --- another detector ---


def test_the_synthetic_zero_shot_detector_is_worse_and_always_the_same(captured) -> None:
    def run(clips: ClipSet, seed: int = 0) -> MultiViewErrors:
        return evaluate_multiview(clips, sources=["detected", "zero_shot"], methods=["weighted"], seed=seed)

    pair = ("zero_shot", "weighted")
    both = clip_set(*captured.values())
    found, again, other = run(both), run(both), run(both, seed=1)
    np.testing.assert_array_equal(found.distances_m[pair], again.distances_m[pair])
    assert abs(found.distances_m[pair] - other.distances_m[pair])[np.isfinite(other.distances_m[pair])].any()
    # What else is in the set has no influence.
    alone = run(clip_set(captured["Walking"]))
    np.testing.assert_array_equal(alone.distances_m[pair], found.distances_m[pair][N_FRAMES:])
    means = {s: found.errors[s, "weighted"].mean_mm(False, "all") for s in ("detected", "zero_shot")}
    assert 1.2 < means["zero_shot"] / means["detected"] < 2.0
    assert found.errors[pair].coverage() > 0.95


def test_actions_are_not_seen_with_one_noise(captured) -> None:
    clip = captured["Walking"]
    twice = clip_set(clip, dataclasses.replace(clip, action="Walking 2"))
    found = evaluate_multiview(twice, sources=["zero_shot"], methods=["robust"])
    one, other = np.split(found.distances_m["zero_shot", "robust"], 2)
    assert np.nanmedian(abs(one - other)) > 1e-3


def in_order(clip: Clip, order: list[int]) -> Clip:
    """The same with some of its cameras, in another order."""
    per_view = [field for field in CLIP_FIELDS if "V" in field.shape and field.kind != "text"]
    arrays = {f.name: np.take(getattr(clip, f.name), order, axis=f.shape.index("V")) for f in per_view}
    return dataclasses.replace(clip, camera_names=tuple(clip.camera_names[i] for i in order), **arrays)


def test_a_second_dataset_gives_its_detections_by_the_names_of_cameras(captured) -> None:
    clips = [of_person(clip) for clip in captured.values()]
    second = clip_set(*(in_order(exactly_seen(clip), [2, 0, 3, 1]) for clip in clips[::-1]))
    found = evaluate_multiview(
        clip_set(*clips), sources=["detected", "zero_shot"], methods=["robust"], zero_shot=second
    )
    assert found.errors["zero_shot", "robust"].mean_mm(False, "all") < EXACT_MM
    assert found.errors["detected", "robust"].mean_mm(False, "all") > 5
    assert not found.left_out


def test_a_second_dataset_that_lacks_something_is_refused(captured) -> None:
    walking, sitting = map(of_person, captured.values())
    both = clip_set(walking, sitting)

    def refused(kind, *clips: Clip) -> str:
        with pytest.raises(kind) as error:
            evaluate_multiview(both, sources=["zero_shot"], methods=["weighted"], zero_shot=clip_set(*clips))
        return str(error.value)

    assert refused(UnknownNameError, walking) == (
        "Trial 'S9_Sitting' is not in the second dataset, which has another detector's keypoints; "
        "it has: S9_Walking"
    )
    short = dataclasses.replace(sitting, **{
        f.name: getattr(sitting, f.name)[:-1] for f in CLIP_FIELDS if "T" in f.shape
    })  # fmt: skip
    assert "S9_Sitting has 39 frames" in refused(ShapeError, walking, short)
    other = dataclasses.replace(sitting, frames=sitting.frames + 2)
    assert "S9_Sitting has other frames" in refused(ShapeError, walking, other)
    moved = dataclasses.replace(sitting, camera_focal_lengths=1.1 * sitting.camera_focal_lengths)
    assert "S9_Sitting is another in the second dataset" in refused(ShapeError, walking, moved)
    few = in_order(sitting, [0, 1, 2])
    assert "Camera 'back_right' is not in S9_Sitting of the second" in refused(UnknownNameError, walking, few)


# --- what data lack ---


def test_a_trial_without_cameras_or_detections_is_told_and_the_rest_evaluated(captured) -> None:
    walking, sitting = captured.values()
    nothing = np.zeros_like(sitting.detections_2d_mask)
    (bare,) = clips_of(
        SpineTrial(
            "S9", "Posing", walking.times, RATE_HZ, walking.keypoints_3d.astype(float),
            walking.kinematics.astype(float), np.zeros(N_FRAMES, np.uint16), source="a test",
        )
    )  # fmt: skip
    unknown = dataclasses.replace(
        of_person(walking), action="Photo", keypoints_3d_mask=np.zeros_like(walking.keypoints_3d_mask)
    )
    placed = walking.camera_translations.copy()
    placed[1:] = np.nan
    turned = dataclasses.replace(walking, action="Smoking", camera_translations=placed)
    found = evaluate_multiview(
        clip_set(walking, with_detections(sitting, sitting.detections_2d, nothing), bare, unknown, turned),
        sources=["truth", "detected"], methods=["weighted"],
    )  # fmt: skip
    few = "calibrated cameras, and a point in space needs 2"
    assert found.left_out == (
        LeftOut("S9_Photo", None, None, "there is nothing known that it could be compared with"),
        LeftOut("S9_Posing", None, None, f"it has 0 {few}"),
        LeftOut("S9_Smoking", None, None, f"it has 1 {few}"),
        LeftOut("S9_Sitting", "detected", None, "it has no such keypoints"),
    )
    assert set(found.errors["truth", "weighted"].action) == {"Walking", "Sitting"}
    assert set(found.errors["detected", "weighted"].action) == {"Walking"}


def test_a_camera_of_which_nothing_is_known_is_not_looked_through(captured) -> None:
    walking = captured["Walking"]
    lens = walking.camera_focal_lengths.copy()
    lens[1] = np.nan
    three = evaluate_multiview(
        clip_set(dataclasses.replace(walking, camera_focal_lengths=lens)),
        sources=["detected"], methods=["weighted"],
    )  # fmt: skip
    same = evaluate_multiview(
        clip_set(in_order(walking, [0, 2, 3])), sources=["detected"], methods=["weighted"]
    )
    pair = ("detected", "weighted")
    np.testing.assert_array_equal(three.distances_m[pair], same.distances_m[pair])


def test_what_all_trials_lack_is_told_once_and_nothing_is_evaluated(captured) -> None:
    clips = clip_set(*map(of_person, captured.values()))
    found = evaluate_multiview(clips, sources=["zero_shot"], methods=["weighted", "robust"])
    assert not found.errors
    (told,) = found.left_out
    assert str(told).startswith("all trials, 2D zero_shot: it has no truth that a synthetic detector")
    assert found.references == ("annotation", "annotation")


@pytest.mark.parametrize(
    ("words", "says"),
    [({"sources": ["seen"]}, "2D 'seen' is not in the choices; it has: truth, detected, zero_shot"),
     ({"methods": ["best"]}, "Method 'best' is not in the choices; it has: weighted, linear, robust, model")],
)  # fmt: skip
def test_unknown_choices_are_refused(captured, words, says) -> None:
    with pytest.raises(UnknownNameError, match=says):
        evaluate_multiview(clip_set(captured["Walking"]), **words)
