"""The dataset in other formats: read back by hand, by OpenCV, NumPy, pycocotools, and by our own readers."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from spine_trials import make_trial

from simspine_jax import cli_dataset_export as commands
from simspine_jax.annotations import SYNTHETIC, Quality, SpineTrial
from simspine_jax.clip_trials import ClipSet, joined_clip, trial_of, truth_of, world_cameras
from simspine_jax.clips import CLIP_FIELDS, NO_CAMERA, Clip, clips_of, folded_back
from simspine_jax.dataset_export import (
    AREA_OF_BOX,
    coco_category,
    export_coco,
    export_hdf5,
    export_npz,
    person_boxes,
    samples_of_clip,
)
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io.layout import DEGREE_AXES
from simspine_jax.io.release import read_release, read_release_cameras
from simspine_jax.io.samples import RELEASE_KEYPOINTS, read_samples_npz, samples_of
from simspine_jax.skeleton import (
    AXIS_NAMES,
    KEYPOINT_NAMES,
    LINKS,
    REDUCED_NAMES,
    RELEASE_MARKER_NAMES,
    SIGMAS,
    TRC_NAMES,
)

N_FRAMES, CLIP = 25, 10
VIEWS = ("54138969", "60457274")
# Half of the last decimal that is written, and the rounding of float32 at a thousand pixels.
COCO_PX = 0.5e-3 + 1e-4


def rig(**changes: Any) -> Cameras:
    """Two cameras; of the second's picture the person is partly outside."""
    facing = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    turn = cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0]
    fields = {
        "rotations": np.stack([facing, turn @ facing]),
        "translations": np.array([[-0.1, 0.2, 5.2], [0.2, 0.1, 4.9]]),
        "focal_lengths": np.array([[1145.0, 1143.8], [1149.7, 1147.6]]),
        "principal_points": np.array([[512.5, 515.4], [508.8, 508.1]]),
        "skews": np.zeros(2),
        "distortion": np.tile([-0.2, 0.25, -0.001, 0.002, -0.01, 0, 0, 0], (2, 1)),
        "sizes": np.array([[1000.0, 1002.0], [600.0, 500.0]]),
        "names": VIEWS,
    }
    return Cameras(**(fields | changes))


def trial(subject: str = "S1", action: str = "Walking 1", **changes: Any) -> SpineTrial:
    """A synthetic trial with detections; frame 3 has no pose, a keypoint and a detection are missing."""
    random = np.random.default_rng(5)
    full = make_trial(subject, action, N_FRAMES, source=f"{SYNTHETIC[0]}{subject}, {action}, seed 0")
    keypoints = np.array(full.keypoints)
    keypoints[3], keypoints[7, 4] = np.nan, np.nan
    coordinates, quality = np.array(full.coordinates), np.array(full.quality)
    coordinates[3], quality[3] = np.nan, Quality.NO_POSE
    detections = random.uniform(0, 900, (N_FRAMES, 2, len(KEYPOINT_NAMES), 2))
    confidence = random.uniform(0.1, 1, detections.shape[:-1])
    detections[4, 0, 9], confidence[4, 0, 9] = np.nan, np.nan
    detections[5, 1], confidence[5, 1] = np.nan, np.nan
    fields = {
        "keypoints": keypoints, "coordinates": coordinates, "quality": quality, "camera_names": VIEWS,
        "detections": detections, "detection_confidence": confidence, "reprojection_px": None,
    }  # fmt: skip
    return dataclasses.replace(full, **(fields | changes))


def clips(one: SpineTrial | None = None, cameras: Cameras | None = None, **changes: Any) -> list[Clip]:
    one = trial() if one is None else one
    truth = make_trial(one.subject, one.action, N_FRAMES, events=())
    known = {"scale_factors": np.full((30, 3), 1.1), "height_m": 1.7, "mass_kg": 60.0} | changes
    return list(clips_of(one, rig() if cameras is None else cameras, truth, max_frames=CLIP, **known))


def several() -> list[Clip]:
    """Clips of three trials, in no order."""
    names = (("S11", "Walking 1"), ("S9", "Sitting"), ("S9", "Walking 2"))
    found = [clip for names_of in names for clip in clips(trial(*names_of))]
    order = np.random.default_rng(1).permutation(len(found))
    assert order.tolist() != sorted(order)
    return [found[i] for i in order]


def differing(one: Clip, other: Clip) -> list[str]:
    """Fields that are not equal to the last bit; missing numbers are equal."""
    found = []
    for f in CLIP_FIELDS:
        a, b = (np.asarray(getattr(clip, f.name)) for clip in (one, other))
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            found.append(f.name)
    return found


def no_note(text: str) -> None:
    raise AssertionError(text)


# --- trials out of clips ---


def test_clips_in_any_order_give_the_trials() -> None:
    found = ClipSet.of(several())
    assert [(t.subject, t.action, t.n_frames) for t in found.trials] == [
        ("S9", "Sitting", N_FRAMES), ("S9", "Walking 2", N_FRAMES), ("S11", "Walking 1", N_FRAMES),
    ]  # fmt: skip
    for one in found.trials:
        original = trial(one.subject, one.action)
        np.testing.assert_array_equal(found.whole(one).times, original.times)
        known = trial_of(found.whole(one))
        np.testing.assert_array_equal(known.keypoints, original.keypoints.astype(np.float32))
        np.testing.assert_array_equal(known.quality, original.quality)
        assert known.is_synthetic


def test_a_trial_out_of_clips_gives_the_clips_again() -> None:
    parts = clips()
    whole = joined_clip(parts)
    again = list(
        clips_of(
            trial_of(whole), world_cameras(whole), truth_of(whole), max_frames=CLIP,
            scale_factors=whole.scale_factors, height_m=whole.height_m, mass_kg=whole.mass_kg,
            numbers=whole.frames,
        )
    )  # fmt: skip
    assert [clip.n_frames for clip in again] == [10, 10, 5]
    for one, other in zip(parts, again, strict=True):
        assert differing(one, other) == []


def test_cameras_come_back_to_the_last_bit() -> None:
    back = world_cameras(clips()[0])
    np.testing.assert_array_equal(back.rotations, rig().rotations)
    np.testing.assert_array_equal(back.translations, rig().translations)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (clips()[:1] + clips()[2:], "begins at frame 20; valid is 10"),
        (clips()[:2] + clips()[:1], "begins at frame 0; valid is 10"),
        (clips()[1:], "begins at frame 10; valid is 0"),
    ],
)
def test_clips_with_gaps_and_doubles_are_refused(parts: list[Clip], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        ClipSet.of(parts)


def test_clips_of_one_trial_agree_on_what_holds_for_all_of_it() -> None:
    parts = clips()
    parts[1] = dataclasses.replace(parts[1], mass_kg=61.0)
    found = ClipSet.of(parts)
    with pytest.raises(ShapeError, match="differ in mass_kg"):
        found.whole(found.trials[0])


def test_what_is_missing_in_all_clips_is_no_difference() -> None:
    parts = clips(height_m=None, mass_kg=None, scale_factors=None)
    assert np.isnan(joined_clip(parts).height_m)


def test_trials_are_selected_by_name() -> None:
    found = ClipSet.of(several())
    assert [t.name for t in found.select(["S9"]).trials] == ["S9_Sitting", "S9_Walking_2"]
    assert [t.name for t in found.select(None, ["Walking"]).trials] == ["S9_Walking_2", "S11_Walking_1"]
    with pytest.raises(UnknownNameError, match=r"Subject 'S5' is not in the dataset; .*S9, S11"):
        found.select(["S5"])
    with pytest.raises(SimspineError, match="no trials of these subjects"):
        found.select(["S11"], ["Sitting"])


# --- HDF5 ---


def test_hdf5_holds_the_published_schema(tmp_path: Path) -> None:
    """Read by hand: names, order, units; OpenCV projects its markers onto the clip's pixels."""
    assert export_hdf5(tmp_path / "a.h5", ClipSet.of(clips()), no_note) == 1
    whole = joined_clip(clips())
    with h5py.File(tmp_path / "a.h5") as file:
        names = [name.decode() for name in file["metadata/markers_names"][()]]
        axes = [name.decode() for name in file["metadata/kinematic_axes"][()]]
        group, calibration = file["S1/Walking_1"], file["S1/calibration"]
        markers, kinematics = group["markers"][()], group["kinematics"][()]
        assert bytes(group.attrs["source"]).decode().startswith(SYNTHETIC[0])
        assert [name.decode() for name in calibration["names"][()]] == list(VIEWS)
        K, dist, R, t = (calibration[key][()] for key in ("K", "dist", "R", "t"))
    assert names == list(RELEASE_MARKER_NAMES)
    assert axes == list(AXIS_NAMES)
    order = [TRC_NAMES.index(name) for name in names]
    np.testing.assert_array_equal(markers, whole.keypoints_3d[:, order])
    degrees = np.where(DEGREE_AXES, np.rad2deg(whole.kinematics.astype(float)), whole.kinematics)
    np.testing.assert_allclose(kinematics, degrees, rtol=1e-15)
    world = markers[..., [2, 0, 1]].reshape(-1, 3)  # (x, y, z) of the file is (Y, Z, X) of the world
    seen = np.isfinite(world).all(axis=1)
    for view in range(2):
        turn = cv2.Rodrigues(R[view])[0]
        pixels = cv2.projectPoints(world[seen], turn, t[view], K[view], dist[view])[0][:, 0]
        held = whole.keypoints_2d[:, view, order].reshape(-1, 2)[seen]
        # The clip's pixels are float32: six digits of what can lie well outside of the picture.
        np.testing.assert_allclose(held, pixels, rtol=2e-6, atol=2e-3)


def test_clips_come_back_from_hdf5(tmp_path: Path) -> None:
    export_hdf5(tmp_path / "a.h5", ClipSet.of(several()), no_note)
    originals = {(c.subject, c.action, c.first_frame): c for c in several()}
    count, flags = 0, set[int]()
    for one in read_release(tmp_path / "a.h5"):
        for clip in clips_of(one, read_release_cameras(tmp_path / "a.h5", one.subject), max_frames=CLIP):
            other = originals[clip.subject, clip.action, clip.first_frame]
            held = {
                "first_frame", "rate_hz", "times", "frames", "quality", "keypoints_3d", "keypoints_3d_mask",
                "kinematics", "kinematics_mask", "keypoints_2d", "keypoints_2d_mask",
                *(name for name in dir(clip) if name.startswith("camera")),
            }  # fmt: skip
            assert len(held) == 21  # those above, ten of cameras, and `Clip.cameras`
            assert not held.intersection(differing(clip, other))
            flags |= set(clip.quality.tolist())
            count += 1
    assert count == len(originals)
    assert {0, Quality.NO_POSE, Quality.MARKER_RESIDUAL, Quality.INTERPOLATED} <= flags


def test_flags_of_a_file_are_checked_and_frames_without_pose_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    export_hdf5(path, ClipSet.of(clips()), no_note)
    with h5py.File(path, "r+") as file:
        file["S1/Walking_1/quality"][...] = Quality.GOOD
    (read,) = read_release(path)
    assert read.quality.tolist() == [int(Quality.NO_POSE) * (frame == 3) for frame in range(N_FRAMES)]
    with h5py.File(path, "r+") as file:
        file["S1/Walking_1/quality"][5] = 64
    with pytest.raises(FileFormatError, match=r"Walking_1/quality: flag 64 is not known; valid is .* to 63"):
        list(read_release(path))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (rig(translations=np.ones((2, 3))), "the cameras of S1 are not written: they differ between trials"),
        (rig(), None),
    ],
)
def test_cameras_that_differ_between_trials_are_left_out(
    tmp_path: Path, second: Cameras, words: str | None
) -> None:
    notes: list[str] = []
    both = clips() + clips(trial(action="Sitting"), second)
    export_hdf5(tmp_path / "a.h5", ClipSet.of(both), notes.append)
    assert notes == ([] if words is None else [words])
    with h5py.File(tmp_path / "a.h5") as file:
        assert ("calibration" in file["S1"]) == (words is None)


def test_cameras_that_the_release_cannot_hold_are_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    export_hdf5(tmp_path / "a.h5", ClipSet.of(clips(cameras=rig(distortion_model="h36m"))), notes.append)
    assert notes == ["the cameras of S1 are not written: their distortion is not OpenCV's"]


def unseen(n_views: int) -> list[Clip]:
    """Clips with views of which nothing is known, as records have them where there were no cameras."""
    shapes = (3, 3), (3,), (2,), (2,), (), (8,), (2,)
    arrays = (np.full((n_views, *shape), np.nan) for shape in shapes)
    bare = trial(camera_names=(), detections=None, detection_confidence=None)
    return clips(bare, Cameras(*arrays, (NO_CAMERA,) if n_views == 1 else VIEWS))


def test_a_view_that_fills_a_place_is_no_camera(tmp_path: Path) -> None:
    found = ClipSet.of(unseen(1))
    assert found.whole(found.trials[0]).camera_names == ()
    export_hdf5(tmp_path / "a.h5", found, no_note)
    assert read_release_cameras(tmp_path / "a.h5", "S1") is None
    with pytest.raises(ShapeError, match="No trial has cameras"):
        export_npz(tmp_path / "b", found, no_note)
    with pytest.raises(ShapeError, match="No trial has cameras"):
        export_coco(tmp_path / "b", found)
    notes: list[str] = []
    export_hdf5(tmp_path / "a.h5", ClipSet.of(unseen(2)), notes.append)
    assert notes == ["the cameras of S1 are not written: where they stand is not known"]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    parts = clips()
    found = ClipSet.of(parts)
    parts[1] = dataclasses.replace(parts[1], mass_kg=61.0)
    for name in ("a.h5", "a.npz", "a.json"):
        (tmp_path / name).write_text("old")
    for name, write in (
        ("a.h5", lambda path: export_hdf5(path, found, no_note)),
        ("a.npz", lambda path: export_npz(path, found, no_note)),
        ("a.json", lambda path: export_coco(path, found, tmp_path / "results.json")),
    ):
        with pytest.raises(ShapeError, match="differ in mass_kg"):
            write(tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.json", "a.npz"]


# --- samples ---


@pytest.mark.parametrize("names", [REDUCED_NAMES, RELEASE_KEYPOINTS])
def test_samples_are_those_of_the_trial(names: tuple[str, ...]) -> None:
    whole = joined_clip(clips())
    found, valid = samples_of_clip(whole, names), samples_of(trial_of(whole), rig(), names)
    np.testing.assert_array_equal(found.image_names, valid.image_names)
    other = found.visible != valid.visible  # the exporter's rule is half a pixel off at all edges
    sizes = np.repeat(rig().sizes, N_FRAMES, axis=0)[:, None]
    to_edge = np.minimum(abs(found.pixels), abs(found.pixels - sizes)).min(axis=-1)
    assert (to_edge[other] <= 0.5).all()
    assert other.mean() < 0.01
    assert 0 < found.visible.mean() < 1
    for name, atol in (
        ("pixels", 2e-3), ("centers", 2e-3), ("scales", 2e-5),  # the clip's pixels are float32
        ("in_camera", 1e-12), ("in_world", 0), ("coordinates", 0),
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(found, name), getattr(valid, name), rtol=2e-6, atol=atol)


def test_samples_have_a_row_for_each_usable_frame_and_view(tmp_path: Path) -> None:
    """Frames with faults would be taken for good ones, for samples can't say that they are not."""
    notes: list[str] = []
    usable = trial().usable
    assert 3 < usable.sum() < N_FRAMES - 1  # the one without pose is not the only one
    count = 3 * 2 * int(usable.sum())
    assert export_npz(tmp_path / "a.npz", ClipSet.of(several()), notes.append) == count
    (said,) = notes
    assert said.startswith(f"{3 * int((~usable).sum())} of {3 * N_FRAMES} frames are not usable")
    found = read_samples_npz(tmp_path / "a.npz")
    assert found.keypoint_names == REDUCED_NAMES
    assert len(set(found.image_names.tolist())) == len(found.image_names)
    first = "S9/S9_Sitting.54138969/S9_Sitting.54138969_000000.jpg"
    assert found.image_names[0] == first
    original = joined_clip(
        [c for c in sorted(several(), key=lambda c: c.first_frame) if c.action == "Sitting"]
    )
    ids = [KEYPOINT_NAMES.index(name) for name in REDUCED_NAMES]
    rows = found.pixels[: count // 3].reshape(2, -1, len(ids), 2)
    np.testing.assert_array_equal(rows, np.moveaxis(original.keypoints_2d[usable][:, :, ids], 1, 0))
    frames = [int(name[-10:-4]) for name in found.image_names[: len(rows[0])].tolist()]
    assert frames == np.flatnonzero(usable).tolist()


def test_trials_without_a_usable_frame_have_no_samples(tmp_path: Path) -> None:
    lost = trial(quality=np.full(N_FRAMES, Quality.MARKER_RESIDUAL))
    with pytest.raises(SimspineError, match=f"None of {N_FRAMES} frames is usable"):
        export_npz(tmp_path / "a.npz", ClipSet.of(clips(lost)), no_note)
    assert not list(tmp_path.iterdir())


def test_pictures_are_named_by_the_sources_frames(tmp_path: Path) -> None:
    """Of a recording of which every fifth frame is annotated, from the seventh on."""
    numbers = 7 + 5 * np.arange(N_FRAMES)
    found = ClipSet.of(clips(numbers=numbers))
    stem = "S1/S1_Walking_1.54138969/S1_Walking_1.54138969_"
    names = [f"{stem}{number:06d}.jpg" for number in numbers]
    assert samples_of_clip(found.whole(found.trials[0])).image_names[:N_FRAMES].tolist() == names
    export_coco(tmp_path / "a.json", found)
    images = json.loads((tmp_path / "a.json").read_text())["images"]
    assert [image["file_name"] for image in images[:N_FRAMES]] == names
    assert [image["frame"] for image in images] == numbers.tolist() * 2


def test_what_a_lens_folds_back_is_in_no_box(tmp_path: Path) -> None:
    """A wrist far to the side, whose pixel OpenCV puts into the picture; the box is that without it."""
    wrist = KEYPOINT_NAMES.index("left_wrist")
    keypoints = np.array(trial().keypoints)
    strong = rig(distortion=np.tile([-0.3, 0, 0, 0, 0, 0, 0, 0.0], (2, 1)))
    far, without = keypoints.copy(), keypoints.copy()
    far[:, wrist] = far[:, 0] + [0, 0, 9.0]  # across the view of the first camera
    without[:, wrist] = np.nan
    one, other = (joined_clip(clips(trial(keypoints=k), strong)) for k in (far, without))
    folded = folded_back(one.cameras, one.keypoints_3d)
    rows = np.flatnonzero(folded[:, 0, wrist])
    assert len(rows) > 10
    assert not folded[:, 0, :9].any()
    assert not one.keypoints_2d_mask[rows, 0, wrist].any()
    found, valid = samples_of_clip(one, RELEASE_KEYPOINTS), samples_of_clip(other, RELEASE_KEYPOINTS)
    np.testing.assert_array_equal(found.centers[rows], valid.centers[rows])
    np.testing.assert_array_equal(found.scales[rows], valid.scales[rows])
    for name, clip in (("a.json", one), ("b.json", other)):
        export_coco(tmp_path / name, ClipSet.of([clip]))
    boxes = [
        {a["image_id"]: a["bbox"] for a in json.loads((tmp_path / name).read_text())["annotations"]}
        for name in ("a.json", "b.json")
    ]
    pairs = [(boxes[0][row + 1], boxes[1][row + 1]) for row in rows if row + 1 in boxes[1]]
    assert len(pairs) > 10
    assert all(a == b for a, b in pairs)


# --- COCO ---


@pytest.fixture(scope="module")
def coco_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("coco")
    paths = folder / "people.json", folder / "results.json"
    counts = export_coco(paths[0], ClipSet.of(several()), paths[1])
    assert (counts.images, counts.detections) == (6 * N_FRAMES, 3 * (2 * N_FRAMES - 1))
    return paths


def loaded(path: Path) -> Any:
    from pycocotools.coco import COCO

    return COCO(str(path))


def test_coco_loads_what_the_clips_hold(coco_files: tuple[Path, Path]) -> None:
    found = loaded(coco_files[0])
    assert found.loadCats(found.getCatIds()) == [coco_category()]
    by_name = {image["file_name"]: image for image in found.imgs.values()}
    assert len(by_name) == len(found.imgs) == 6 * N_FRAMES
    seen = 0
    for clip in several():
        usable = (clip.quality & ~Quality.INTERPOLATED) == 0
        for frame, view in np.ndindex(clip.n_frames, 2):
            stem = f"{clip.subject}_{clip.action.replace(' ', '_')}.{VIEWS[view]}"
            number = clip.first_frame + frame
            image = by_name[f"{clip.subject}/{stem}/{stem}_{number:06d}.jpg"]
            assert (image["width"], image["height"]) == tuple(clip.camera_sizes[view])
            assert (image["frame"], image["quality"]) == (number, clip.quality[frame])
            people = found.loadAnns(found.getAnnIds(imgIds=[image["id"]]))
            inside = clip.keypoints_2d_mask[frame, view]
            assert len(people) == (usable[frame] and inside.any())
            for person in people:
                table = np.reshape(person["keypoints"], (-1, 3))
                np.testing.assert_array_equal(table[:, 2], np.where(inside, 2, 0))
                np.testing.assert_allclose(
                    table[inside, :2], clip.keypoints_2d[frame, view, inside], atol=COCO_PX
                )
                assert not table[~inside].any()
                assert person["num_keypoints"] == inside.sum()
                x, y, width, height = person["bbox"]
                assert min(x, y) >= 0
                assert x + width <= image["width"] + 1e-3
                low, high = table[inside, :2].min(axis=0), table[inside, :2].max(axis=0)
                assert (low >= np.array([x, y]) - 1e-3).all()
                assert (high <= np.array([x + width, y + height]) + 1e-3).all()
                assert person["area"] == pytest.approx(AREA_OF_BOX * width * height, abs=1.0)
                seen += 1
    assert seen == len(found.anns) > N_FRAMES


def test_the_skeleton_counts_from_one() -> None:
    category = coco_category()
    assert category["skeleton"][0] == [16, 14]
    assert [(a - 1, b - 1) for a, b in category["skeleton"]] == list(LINKS)
    assert category["keypoints"][15:17] == ["left_ankle", "right_ankle"]


def test_annotations_score_one_against_themselves(coco_files: tuple[Path, Path]) -> None:
    """By pycocotools' evaluation with the sigmas that the file holds."""
    from pycocotools.cocoeval import COCOeval

    truth = loaded(coco_files[0])
    same = [
        {**{k: a[k] for k in ("image_id", "category_id", "keypoints")}, "score": 1.0}
        for a in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(same), "keypoints")
    sigmas = np.array(truth.loadCats(1)[0]["sigmas"])
    np.testing.assert_array_equal(sigmas, SIGMAS)
    evaluation.params.kpt_oks_sigmas = sigmas
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0, abs=1e-12)


def test_detections_are_results_of_the_same_pictures(coco_files: tuple[Path, Path]) -> None:
    found = loaded(coco_files[0])
    results = found.loadRes(str(coco_files[1]))
    clip = joined_clip([c for c in sorted(several(), key=lambda c: c.first_frame) if c.subject == "S11"])
    images = {(i["camera"], i["frame"]): i["id"] for i in found.imgs.values() if i["subject"] == "S11"}
    people = {person["image_id"]: person for person in results.anns.values()}
    assert images[VIEWS[1], 5] not in people
    for frame, view in ((0, 0), (4, 0), (24, 1)):
        person = people[images[VIEWS[view], frame]]
        table = np.reshape(person["keypoints"], (-1, 3))
        known = clip.detections_2d_mask[frame, view]
        assert known.all() == (frame != 4)
        np.testing.assert_allclose(table[known, :2], clip.detections_2d[frame, view, known], atol=COCO_PX)
        np.testing.assert_allclose(table[known, 2], clip.detections_confidence[frame, view, known], atol=1e-3)
        assert not table[~known].any()
        assert person["score"] == pytest.approx(
            clip.detections_confidence[frame, view, known].mean(), abs=1e-6
        )


def test_the_same_clips_give_the_same_bytes(tmp_path: Path, coco_files: tuple[Path, Path]) -> None:
    export_coco(tmp_path / "a.json", ClipSet.of(several()[::-1]), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == coco_files[0].read_bytes()
    assert (tmp_path / "b.json").read_bytes() == coco_files[1].read_bytes()


def test_pictures_of_unknown_size_say_none(tmp_path: Path) -> None:
    sizes = np.array([[1000.0, 1000.0], [np.nan, np.nan]])
    export_coco(tmp_path / "a.json", ClipSet.of(clips(cameras=rig(sizes=sizes))))
    images = json.loads((tmp_path / "a.json").read_text())["images"]
    assert [i["camera"] for i in images if "width" not in i] == [VIEWS[1]] * N_FRAMES


def test_boxes_are_cut_at_known_edges() -> None:
    pixels = np.array([[[10.0, 20.0], [110.0, 70.0]], [[10.0, 20.0], [110.0, 70.0]], [[np.nan] * 2] * 2])
    sizes = np.array([[100.0, 100.0], [np.nan, np.nan], [100.0, 100.0]])
    valid = [[0, 15, 100, 60], [0, 15, 120, 60], [np.nan] * 4]
    np.testing.assert_allclose(person_boxes(pixels, sizes), valid, rtol=1e-12, atol=1e-12)
    plain = [[10, 20, 90, 50], [10, 20, 100, 50], [np.nan] * 4]
    np.testing.assert_allclose(person_boxes(pixels, sizes, 1.0), plain, rtol=1e-12, atol=1e-12)


def test_detections_that_are_not_there_are_refused(tmp_path: Path) -> None:
    without = trial(detections=None, detection_confidence=None)
    with pytest.raises(SimspineError, match="the dataset has no detections"):
        export_coco(tmp_path / "a.json", ClipSet.of(clips(without)), tmp_path / "b.json")
    with pytest.raises(ShapeError, match="have no confidence"):
        export_coco(
            tmp_path / "a.json", ClipSet.of(clips(trial(detection_confidence=None))), tmp_path / "b.json"
        )
    assert not list(tmp_path.iterdir())


# --- the command ---


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.add_export_arguments(parser)
    return parser.parse_args([*words, "--quiet"])


@pytest.fixture
def a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_open", lambda arguments, split: several())
    monkeypatch.setattr(commands, "_holds_pictures", lambda arguments: False)


@pytest.mark.usefixtures("a_dataset")
def test_the_command_writes_each_format(tmp_path: Path) -> None:
    chosen = ["--subjects", "S9", "--actions", "Sitting"]
    for kind, name, more in (
        ("hdf5", "a.h5", []), ("npz", "a.npz", ["--keypoints", "37"]),
        ("coco", "a.json", ["--detections", str(tmp_path / "b.json")]),
    ):  # fmt: skip
        arguments = parsed("--to", kind, "-o", str(tmp_path / name), *chosen, *more)
        assert commands.export(arguments) == 0
    assert [t.name for t in read_release(tmp_path / "a.h5")] == ["S9_Sitting"]
    assert read_samples_npz(tmp_path / "a.npz").pixels.shape == (2 * int(trial().usable.sum()), 37, 2)
    assert len(loaded(tmp_path / "a.json").imgs) == 2 * N_FRAMES
    assert (tmp_path / "b.json").is_file()


@pytest.mark.usefixtures("a_dataset")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "hdf5", "-o", "a.json"], r"ends in \.h5 or \.hdf5"),
        (["--to", "coco", "-o", "a.json", "--keypoints", "15"], "--keypoints has no effect with --to coco"),
        (["--to", "npz", "-o", "a.npz", "--detections", "b.json"], "--detections has no effect"),
        (["--to", "coco", "-o", "a.json", "--detections", "./a.json"], "are one file"),
        (["--to", "npz", "-o", "a.npz", "--actions", "Wlaking"], "did you mean"),
        (["--to", "npz", "-o", "a.npz", "--split", "train[:10%]"], "valid is train or test"),
        (["--to", "coco", "-o", "a.json", "--images", "b"], "--images has no effect"),
    ],
)
def test_the_command_refuses_what_has_no_effect(words: list[str], message: str) -> None:
    with pytest.raises(SimspineError, match=message):
        commands.export(parsed(*words))


def test_a_dataset_that_is_not_built_is_told(tmp_path: Path) -> None:
    with pytest.raises(SimspineError, match="simspine dataset build"):
        commands.export(
            parsed("--to", "npz", "-o", str(tmp_path / "a.npz"), "--data-dir", str(tmp_path / "none"))
        )
