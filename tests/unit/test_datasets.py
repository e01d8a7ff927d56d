"""Reading built datasets without TensorFlow, training samples, their statistics and their batches."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spine_trials import make_trial

from simspine_jax.annotations import Quality
from simspine_jax.clips import CLIP_FIELDS, Clip, clips_of
from simspine_jax.datasets import (
    Batches,
    BatchState,
    Statistics,
    clips_in_memory,
    default_data_dir,
    frame_samples,
    open_clips,
    open_pictures,
    picture_batches,
    pictures_in_memory,
    rays_of,
    shuffled,
    statistics_of,
    window_samples,
)
from simspine_jax.errors import FileFormatError, MissingDependencyError, ShapeError, SimspineError
from simspine_jax.errors import UnknownNameError as Unknown
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.skeleton import KEYPOINT_NAMES, REDUCED_NAMES, REGIONS

# m: float32 positions of up to ten metres from a camera.
FLOAT32_M = 2e-6
# Standardised numbers are of order one: float32's rounding, a few times over.
ROUNDING = 5e-6
RATE_HZ = 50.0


def rig(subject_shift: float = 0.0) -> Cameras:
    """Three cameras around the origin of a Z-up world; one of them sees little of a person there."""
    level = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    angles = np.array([0.0, 2.0, 4.0])
    turns = [np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]]) for a in angles]
    return Cameras(
        np.stack([level @ turn for turn in turns]),
        np.array([[0, 1.0, 5 + subject_shift], [0.1, 1.0, 5], [2.2, 1.0, 5]]),
        np.full((3, 2), 1145.0),
        np.full((3, 2), 500.0),
        np.zeros(3),
        np.tile([-0.2071, 0.2478, -0.00142, -0.00098, -0.0031, 0, 0, 0], (3, 1)),
        np.full((3, 2), 1000.0),
        ("left", "middle", "right"),
    )


def trial_of(subject: str, action: str, n_frames: int, **changes: Any):
    random = np.random.default_rng([ord(c) for c in subject + action])
    names = ("left", "middle", "right")
    detections = random.uniform(0, 1000, (n_frames, 3, 37, 2))
    detections[random.random((n_frames, 3, 37)) < 0.1] = np.nan
    keypoints = random.normal(0, 0.3, (n_frames, 37, 3))
    keypoints[random.random((n_frames, 37)) < 0.05] = np.nan
    return make_trial(
        subject, action, n_frames,
        **{
            "camera_names": names, "reprojection_px": None, "keypoints": keypoints,
            "detections": detections, "detection_confidence": random.uniform(0, 1, (n_frames, 3, 37)),
        } | changes,
    )  # fmt: skip


def make_clips() -> list[Clip]:
    """Two subjects with cameras of their own, three trials; the first and the last are two clips each."""
    found = []
    for subject, action, n_frames, shift, most in (
        ("S1", "Walking", 90, 0.0, 60), ("S1", "Sitting", 40, 0.0, 60), ("S9", "Walking", 30, 0.5, 20),
    ):  # fmt: skip
        trial = trial_of(subject, action, n_frames)
        truth = replace(trial, keypoints=trial.keypoints + 0.01, coordinates=trial.coordinates + 0.02)
        found += clips_of(trial, rig(shift), truth, max_frames=most)
    return found


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    found = make_clips()
    assert [c.n_frames for c in found] == [60, 30, 40, 20, 10]
    return found


@pytest.fixture(scope="module")
def memory(clips: list[Clip]):
    return clips_in_memory(clips)


TRIALS = (slice(0, 2), slice(2, 3), slice(3, 5))
"""Which of the clips are a trial."""


def in_rows(clips: list[Clip], name: str) -> np.ndarray:
    """A field with views as samples have it: trial by trial, and in a trial view by view."""
    trials = [np.concatenate([getattr(c, name) for c in clips[t]]).swapaxes(0, 1) for t in TRIALS]
    return np.concatenate([trial.reshape(-1, *trial.shape[2:]) for trial in trials])


# --- built datasets ---


@pytest.fixture(scope="module", params=["bytes", "none"])
def built(
    request: pytest.FixtureRequest, clips: list[Clip], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dataset of the clips by TFDS itself, in each of its encodings; the training split has two files."""
    folder = tmp_path_factory.mktemp(f"tfds_{request.param}")
    build(folder, clips, request.param)
    return folder


def build(folder: Path, clips: list[Clip], encoding: str) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    def feature(field):
        kind = {"bool": np.bool_, "text": np.str_}.get(
            field.kind, np.dtype(field.kind if field.kind != "text" else "O").type
        )
        if not field.shape:
            return tfds.features.Text() if field.kind == "text" else tfds.features.Scalar(kind)
        # TFDS has no other way than bytes for several dimensions that vary.
        open_ends = sum(isinstance(d, str) for d in field.shape)
        stored = {} if field.kind == "text" else {"encoding": encoding if open_ends < 2 else "bytes"}
        return tfds.features.Tensor(
            shape=[None if isinstance(d, str) else d for d in field.shape], dtype=kind, **stored
        )

    def value(clip: Clip, field):
        held = getattr(clip, field.name)
        return np.array(held, object) if field.kind == "text" and field.shape else held

    features = {f.name: feature(f) for f in CLIP_FIELDS}
    with tfds.core.registered.skip_registration():

        class Simspine(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="synthetic")]  # noqa: RUF012

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )  # fmt: skip

            def _split_generators(self, dl_manager):
                return {
                    "train": self._generate_examples(clips[:3]),
                    "test": self._generate_examples(clips[3:]),
                }

            def _generate_examples(self, some):
                for number, clip in enumerate(some):
                    yield number, {f.name: value(clip, f) for f in CLIP_FIELDS}

        builder = Simspine(data_dir=folder, config="synthetic", file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))


def assert_same(found: Clip, wanted: Clip, encoding_loses: bool = False) -> None:
    for field in CLIP_FIELDS:
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if field.kind == "text":
            assert one == other
        elif encoding_loses and field.kind == "float64":
            np.testing.assert_allclose(one, other, rtol=1e-7)  # TFDS keeps plain float64 as float32
        else:
            np.testing.assert_array_equal(one, other, err_msg=field.name)
            assert np.asarray(one).dtype == (np.asarray(other).dtype if not field.shape else field.kind)


def test_what_was_built_is_read_clip_by_clip(built: Path, clips: list[Clip]) -> None:
    loses = "none" in built.name
    train, test = (open_clips("synthetic", split, built) for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    for found, wanted in zip([*train, *test], clips, strict=True):
        assert_same(found, wanted, loses)
    assert_same(train[-1], clips[2], loses)
    assert [c.first_frame for c in train[:2]] == [0, 60]
    with pytest.raises(IndexError):
        train[3]
    assert len(open_clips(split="train[:2]", data_dir=built)) == 2
    assert len(open_clips(split="train+test", data_dir=built)) == 5


def test_only_the_fields_asked_for_are_given(built: Path, clips: list[Clip]) -> None:
    train = open_clips(data_dir=built)
    found = list(train.stream(["keypoints_3d", "camera_names", "action"]))
    assert [set(f) for f in found] == [{"keypoints_3d", "camera_names", "action"}] * 3
    np.testing.assert_array_equal(found[1]["keypoints_3d"], clips[1].keypoints_3d)
    assert found[2]["action"] == "Sitting"
    assert set(next(train.stream())) == {f.name for f in CLIP_FIELDS}
    with pytest.raises(Unknown, match="Field 'keypoint_3d' is not in a clip; did you mean 'keypoints_3d'"):
        train.stream(["keypoint_3d"])


def test_clips_in_memory_are_as_clips_of_a_dataset(memory, clips: list[Clip]) -> None:
    assert len(memory) == 5
    assert_same(memory[1], clips[1])
    assert [c.n_frames for c in memory] == [60, 30, 40, 20, 10]
    assert [f["subject"] for f in memory.stream(["subject"])] == ["S1"] * 3 + ["S9"] * 2


def test_a_sequence_can_be_pickled_and_left_early(built: Path, clips: list[Clip]) -> None:
    """As loaders of several processes do, and as `break` does."""
    train = open_clips(data_dir=built)
    stream = train.stream(["times"])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again[2].quality, clips[2].quality)


def test_a_missing_dataset_names_the_command_that_builds_it(built: Path, monkeypatch, tmp_path: Path) -> None:
    where = f"simspine dataset build --config release --data-dir {built}"
    with pytest.raises(SimspineError, match=r"simspine/release is not in .*, which has synthetic;") as caught:
        open_clips("release", data_dir=built)
    assert str(caught.value).endswith(f"build it with: {where}")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    with pytest.raises(SimspineError, match=r"build it with: simspine dataset build --config synthetic$"):
        open_clips()
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == Path.home() / "tensorflow_datasets"
    # The home is meant by ~, as the command line has it.
    monkeypatch.setenv("HOME", str(built.parent))
    assert len(open_clips(data_dir=f"~/{built.name}")) == 3
    monkeypatch.setenv("TFDS_DATA_DIR", f"~/{built.name}")
    assert default_data_dir() == built
    assert len(open_clips()) == 3
    with pytest.raises(Unknown, match=r"Split 'trian' is not in simspine/synthetic 1.0.0 in .* mean 'train'"):
        open_clips(split="trian", data_dir=built)


def test_an_unfinished_build_is_none(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "d")
    config = tmp_path / "d" / "simspine" / "synthetic"
    shutil.copytree(config / "1.0.0", config / "incomplete.ABC_1.2.0")
    (config / "1.1.0").mkdir()
    shutil.copytree(config / "1.0.0", config / "1.0.10")
    assert len(open_clips(data_dir=tmp_path / "d")) == 3
    shutil.rmtree(config / "1.0.0")
    shutil.rmtree(config / "1.0.10")
    with pytest.raises(SimspineError, match="is not in"):
        open_clips(data_dir=tmp_path / "d")


def _damaged(path: Path, how: str) -> None:
    whole = bytearray(path.read_bytes())
    if how == "cut":
        whole = whole[: len(whole) // 3]
    elif how == "gone":
        path.unlink()
        return
    elif how == "empty":
        whole = bytearray()
    else:
        middle = len(whole) // 2
        whole[middle : middle + 5000] = os.urandom(5000)
    path.write_bytes(whole)


@pytest.mark.parametrize("how", ["cut", "empty", "gone", "overwritten"])
def test_a_damaged_record_is_named(how: str, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "d")
    files = sorted((tmp_path / "d").rglob("*train*-of-00002"))
    assert len(files) == 2
    _damaged(files[1], how)
    train = open_clips(data_dir=tmp_path / "d")
    with pytest.raises(FileFormatError) as caught:
        list(train)
    text = str(caught.value)
    assert f"Record 0 of {files[1]}" in text or f"Record 1 of {files[1]}" in text
    assert "of split train of simspine/synthetic 1.0.0) is damaged (" in text
    assert text.endswith(f"simspine dataset build --config synthetic --data-dir {tmp_path / 'd'} --force")
    assert "\n" not in text
    assert train[0].n_frames == 60  # the other file is whole


def test_damaged_descriptions_and_other_formats_are_named(
    built: Path, clips: list[Clip], tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "d")
    (described,) = (tmp_path / "d").rglob("dataset_info.json")
    described.write_text("{")
    with pytest.raises(FileFormatError, match="the dataset's description is damaged; build it again with"):
        open_clips(data_dir=tmp_path / "d")
    shutil.copytree(built, tmp_path / "e")
    (features,) = (tmp_path / "e").rglob("features.json")
    features.write_text(features.read_text().replace('"quality"', '"qualities"'))
    with pytest.raises(FileFormatError, match="have no quality; valid is a dataset whose records"):
        open_clips(data_dir=tmp_path / "e")


def test_a_set_for_tensorflow_alone_says_so(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "d")
    (described,) = (tmp_path / "d").rglob("dataset_info.json")
    described.write_text(described.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(SimspineError, match=r"that only TensorFlow reads; .* --file-format array_record"):
        open_clips(data_dir=tmp_path / "d")


def test_without_the_packages_the_extra_is_named(built: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.core.read_only_builder", None)
    with pytest.raises(MissingDependencyError, match=r"Reading datasets needs .* 'simspine-jax\[tfds\]'"):
        open_clips(data_dir=built)


def test_tensorflow_is_never_imported(built: Path) -> None:
    program = (
        "import sys\n"
        "from simspine_jax.datasets import *\n"
        "clips = open_clips(data_dir=sys.argv[1])\n"
        "print(sum(clip.n_frames for clip in clips))\n"
        "batch = next(iter(Batches(frame_samples(clips, rate_hz=10), 8)))\n"
        "print(batch.keypoints_3d.shape, 'tensorflow' in sys.modules, 'torch' in sys.modules)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(built)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split("\n")[:2] == ["130", "(8, 37, 3) False False"]


# --- samples ---


def test_a_frame_and_a_view_make_a_sample(memory, clips: list[Clip]) -> None:
    samples = frame_samples(memory, rate_hz=None, accept=~Quality(0))
    frames = samples.take(np.arange(len(samples)))
    assert len(samples) == 3 * 160
    assert samples.subjects == ("S1", "S9")
    assert samples.actions == ("Walking", "Sitting")
    names = ("S1/left", "S1/middle", "S1/right", "S9/left", "S9/middle", "S9/right")
    assert samples.cameras.names == names
    for i in (0, 59, 60, 75, 200, 290, 400, 470):
        clip, view = clips[frames.clip[i]], frames.camera[i] % 3
        t = frames.frame[i] - clip.first_frame
        assert samples.subjects[frames.subject[i]] == clip.subject
        assert samples.actions[frames.action[i]] == clip.action
        assert names[frames.camera[i]] == f"{clip.subject}/{clip.camera_names[view]}"
        local = clip.keypoints_3d[t] @ clip.camera_rotations[view].T + clip.camera_translations[view]
        np.testing.assert_allclose(frames.keypoints_3d[i], local, atol=FLOAT32_M)
        np.testing.assert_array_equal(frames.keypoints_3d_mask[i], clip.keypoints_3d_mask[t])
        np.testing.assert_array_equal(frames.keypoints_2d[i], clip.keypoints_2d[t, view])
        np.testing.assert_array_equal(frames.keypoints_2d_mask[i], clip.keypoints_2d_mask[t, view])
        np.testing.assert_array_equal(frames.kinematics[i], clip.kinematics[t])
        np.testing.assert_array_equal(frames.kinematics_mask[i], clip.kinematics_mask[t])


def test_the_root_is_taken_off_and_its_gaps_are_masked(memory) -> None:
    samples = frame_samples(memory, rate_hz=None)
    frames = samples.take(np.arange(len(samples)))
    hip = KEYPOINT_NAMES.index("hip")
    assert frames.root == hip
    relative, mask = frames.root_relative, frames.root_relative_mask
    lost = ~frames.keypoints_3d_mask[:, hip]
    assert 0 < lost.mean() < 0.2
    assert not mask[lost].any()
    assert np.isnan(relative[lost]).all()
    assert (relative[~lost][:, hip] == 0).all()
    np.testing.assert_array_equal(mask, np.isfinite(relative).all(axis=-1))
    nose = frames.keypoints_3d[:, 0] - frames.keypoints_3d[:, hip]
    np.testing.assert_array_equal(relative[:, 0], nose)


def test_pictures_lie_on_the_rays_of_their_points(memory) -> None:
    """The camera of each sample is the one that its pictures were made with, lens and all."""
    samples = frame_samples(memory, rate_hz=None)
    frames = samples.take(np.arange(len(samples)))
    rays = np.asarray(rays_of(frames, samples.cameras))
    wanted = frames.keypoints_3d[..., :2] / frames.keypoints_3d[..., 2:]
    seen = frames.keypoints_2d_mask
    assert seen.sum() > 1000
    np.testing.assert_allclose(rays[seen], wanted[seen], atol=1e-5)  # of pixels in float32
    windows = window_samples(memory, 8, stride=8)
    some = windows.take(np.arange(5))
    assert rays_of(some, windows.cameras).shape == (5, 8, 37, 2)


def test_frames_are_taken_at_a_rate_of_their_trial(memory) -> None:
    for rate_hz, step in ((1.0, 50), (5.0, 10), (50.0, 1)):
        samples = frame_samples(memory, rate_hz=rate_hz, accept=~Quality(0))
        frames = samples.take(np.arange(len(samples)))
        assert set(frames.frame % step) == {0}
        # A trial in two clips of 60 and 30 frames is sampled as one of 90.
        walking = (frames.subject == 0) & (frames.action == 0) & (frames.camera == 0)
        assert frames.frame[walking].tolist() == list(range(0, 90, step))
    uneven = frame_samples(memory, rate_hz=30.0, accept=~Quality(0))
    frames = uneven.take(np.arange(len(uneven)))
    walking = frames.frame[(frames.subject == 0) & (frames.action == 0) & (frames.camera == 0)]
    assert len(walking) == 54
    assert set(np.diff(walking)) == {1, 2}
    for wrong in (0.0, -1.0, 51.0, np.nan):
        with pytest.raises(ShapeError, match=r"can't be taken of S1, Walking; valid is .* at most its 50"):
            frame_samples(memory, rate_hz=wrong)


def test_a_rate_that_float32_rounds_is_itself() -> None:
    trial = trial_of("S1", "Walking", 40, rate_hz=29.97, times=np.arange(40) / 29.97)
    for rate_hz, step in ((29.97, 1), (9.99, 3), (14.985, 2)):
        samples = frame_samples(clips_in_memory(clips_of(trial, rig())), rate_hz=rate_hz, accept=~Quality(0))
        assert samples.frames.frame[: len(samples) // 3].tolist() == list(range(0, 40, step))


def test_faulty_frames_are_left_out_unless_accepted(memory, clips: list[Clip]) -> None:
    quality = np.concatenate([c.quality for c in clips])
    fault, repaired = int(Quality.MARKER_RESIDUAL | Quality.CURVATURE), int(Quality.INTERPOLATED)
    assert ((quality & fault) != 0).sum() == 15
    counts = {
        Quality.INTERPOLATED: ((quality & ~repaired) == 0).sum(),
        Quality.GOOD: (quality == 0).sum(),
        Quality.INTERPOLATED | Quality.MARKER_RESIDUAL: ((quality & int(Quality.CURVATURE)) == 0).sum(),
    }
    assert len(set(counts.values())) == 3
    for accept, count in counts.items():
        assert len(frame_samples(memory, rate_hz=None, accept=accept)) == 3 * count


def test_detections_or_pictures_are_the_input(memory, clips: list[Clip]) -> None:
    samples = frame_samples(memory, rate_hz=None, source="detected", accept=~Quality(0))
    frames = samples.take(np.arange(len(samples)))
    wanted = in_rows(clips, "detections_2d")
    np.testing.assert_array_equal(frames.keypoints_2d, wanted)
    np.testing.assert_array_equal(frames.confidence, in_rows(clips, "detections_confidence"))
    np.testing.assert_array_equal(frames.keypoints_2d_mask, np.isfinite(wanted).all(axis=-1))
    shown = frame_samples(memory, rate_hz=None, accept=~Quality(0))
    frames = shown.take(np.arange(len(shown)))
    known = np.isfinite(frames.keypoints_2d).all(axis=-1)
    np.testing.assert_array_equal(frames.confidence, np.where(known, 1, np.nan))


def test_the_truth_is_the_target_with_its_own_pictures(memory, clips: list[Clip]) -> None:
    samples = frame_samples(memory, rate_hz=None, target="truth", accept=~Quality(0))
    frames = samples.take(np.arange(len(samples)))
    clip = clips[0]
    view = 1
    rows = (frames.clip == 0) & (frames.camera == view)
    local = clip.true_keypoints_3d @ clip.camera_rotations[view].T + clip.camera_translations[view]
    np.testing.assert_allclose(frames.keypoints_3d[rows], local, atol=FLOAT32_M)
    np.testing.assert_array_equal(frames.kinematics[rows], clip.true_kinematics)
    # The truth of these trials is their annotation, 1 cm aside in x, y and z.
    off = frames.keypoints_2d[rows] - clip.keypoints_2d[:, view]
    assert 0.5 < np.nanmedian(np.linalg.norm(off, axis=-1)) < 5
    rays = np.asarray(rays_of(frames, samples.cameras))
    wanted = frames.keypoints_3d[..., :2] / frames.keypoints_3d[..., 2:]
    np.testing.assert_allclose(rays[frames.keypoints_2d_mask], wanted[frames.keypoints_2d_mask], atol=1e-5)


def test_a_subset_of_keypoints_has_their_values(memory) -> None:
    whole = frame_samples(memory, rate_hz=None)
    part = frame_samples(memory, rate_hz=None, keypoints=REDUCED_NAMES)
    one, other = (s.take(np.arange(100)) for s in (whole, part))
    ids = [KEYPOINT_NAMES.index(name) for name in REDUCED_NAMES]
    for name in ("keypoints_2d", "keypoints_2d_mask", "keypoints_3d", "confidence"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name)[:, ids])
    np.testing.assert_array_equal(other.root_relative, one.root_relative[:, ids])
    assert other.root == 0
    assert set(ids) == set(REGIONS["spine"])
    with pytest.raises(Unknown, match="Keypoint 'spine_1' is not in the vocabulary; did you mean 'spine_01'"):
        frame_samples(memory, keypoints=("hip", "spine_1"))
    for wrong in (("nose",), ("hip", "hip")):
        with pytest.raises(ShapeError, match="can't be used; valid is each once, with hip"):
            frame_samples(memory, keypoints=wrong)


def test_windows_stay_in_their_trial_and_cross_its_clips(memory, clips: list[Clip]) -> None:
    length, stride = 27, 10
    samples = window_samples(memory, length, stride=stride, accept=~Quality(0))
    assert len(samples) == 3 * sum(-(-n_frames // stride) for n_frames in (90, 40, 30))
    frames = samples.take(np.arange(len(samples)))
    assert frames.keypoints_2d.shape == (len(samples), length, 37, 2)
    assert frames.root_relative.shape == (len(samples), length, 37, 3)
    assert (np.ptp(frames.clip, axis=1) == 1).sum() == 3 * (2 + 2)
    for name in ("camera", "subject", "action"):
        values = getattr(frames, name)
        np.testing.assert_array_equal(values, np.broadcast_to(values[:, :1], values.shape))
    inside = frames.valid
    assert 0.5 < inside.mean() < 1
    assert not frames.keypoints_2d_mask[~inside].any()
    assert not frames.keypoints_3d_mask[~inside].any()
    assert not frames.kinematics_mask[~inside].any()
    for i in range(len(samples)):
        count = inside[i].sum()
        assert inside[i, :count].all()
        last = {0: 89, 1: 89, 2: 39, 3: 29, 4: 29}[int(frames.clip[i, 0])]
        wanted = np.minimum(frames.frame[i, 0] + np.arange(length), last)  # padding repeats the edge
        np.testing.assert_array_equal(frames.frame[i], wanted)
        for k in range(count):
            clip = clips[frames.clip[i, k]]
            picture = clip.keypoints_2d[frames.frame[i, k] - clip.first_frame, frames.camera[i, k] % 3]
            np.testing.assert_array_equal(frames.keypoints_2d[i, k], picture)


def test_centred_windows_have_each_frame_in_their_middle(memory, clips: list[Clip]) -> None:
    samples = window_samples(memory, 9, stride=1, centred=True, accept=~Quality(0))
    assert len(samples) == 3 * 160
    frames = samples.take(np.arange(len(samples)))
    assert frames.valid[:, 4].all()
    assert frames.frame[:90, 4].tolist() == list(range(90))
    assert frames.valid[0].tolist() == [False] * 4 + [True] * 5
    assert frames.valid[59].all()
    assert frames.valid[89].tolist() == [True] * 5 + [False] * 4
    assert (frames.frame[0, :4] == 0).all()


def test_a_window_is_padded_at_the_ends_of_its_trial_alone() -> None:
    """2000 frames stored in four records: 121 windows of 243 reach over each end, and no more."""
    clips = list(clips_of(trial_of("S1", "Walking", 2000), rig(), max_frames=500))
    assert len(clips) == 4
    one = [replace(c, camera_names=("left",), **_only_view(c)) for c in clips]
    for given in (one, [one[i] for i in (2, 0, 3, 1)]):
        samples = window_samples(clips_in_memory(given), 243, stride=1, centred=True, accept=~Quality(0))
        assert len(samples) == 2000
        padded = (samples.start < samples.first) | (samples.start + 242 > samples.last)
        assert padded.sum() == 2 * 121


def _only_view(clip: Clip) -> dict[str, Any]:
    found = {}
    for field in CLIP_FIELDS:
        if "V" in field.shape and field.kind != "text":
            axis = field.shape.index("V")
            found[field.name] = np.take(getattr(clip, field.name), [0], axis)
    return found


def _content(samples) -> dict[Any, list[Any]]:
    """Each sample by what it is of, with its numbers."""
    frames = samples.take(np.arange(len(samples)))
    found = {}
    for i in range(len(samples)):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], frames)
        middle = row.frame.reshape(-1)[row.frame.size // 2], row.frame.reshape(-1)[0]
        about = samples.subjects[row.subject.reshape(-1)[0]], samples.actions[row.action.reshape(-1)[0]]
        camera = samples.cameras.names[row.camera.reshape(-1)[0]]
        found[(*about, camera, *map(int, middle), int(row.valid.sum()))] = [
            row.keypoints_2d, row.keypoints_3d, row.root_relative_mask, row.frame, row.valid,
        ]  # fmt: skip
    assert len(found) == len(samples)
    return found


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (1, 3, 0, 2, 4), (3, 1, 4, 0, 2)])
def test_the_order_of_the_records_does_not_matter(order, clips: list[Clip], memory) -> None:
    mixed = clips_in_memory([clips[i] for i in order])
    for make in (
        lambda some: window_samples(some, 27, stride=7, accept=~Quality(0)),
        lambda some: frame_samples(some, rate_hz=3.0, accept=~Quality(0)),
    ):
        wanted, found = _content(make(memory)), _content(make(mixed))
        assert wanted.keys() == found.keys()
        for name, arrays in wanted.items():
            for one, other in zip(arrays, found[name], strict=True):
                np.testing.assert_array_equal(one, other)


def test_only_what_follows_on_one_another_is_joined(clips: list[Clip]) -> None:
    def runs(*some: Clip) -> list[int]:
        samples = window_samples(clips_in_memory(some), 9, stride=9, accept=~Quality(0))
        ends = np.unique(np.stack([samples.first, samples.last], axis=-1), axis=0)
        return (ends[:, 1] - ends[:, 0] + 1).tolist()[::3]

    first, second, other, *_ = clips
    assert runs(first, second) == [90]
    assert runs(second, other, first) == [90, 40]
    # A clip that lies between is not there.
    assert runs(first, replace(second, frames=second.frames + 1)) == [60, 30]
    # Another source, camera or trial.
    for changes in (
        {"source": "another"}, {"subject": "S5"}, {"action": "Walking 2"}, {"rate_hz": 25.0},
        {"camera_translations": second.camera_translations + 1},
    ):  # fmt: skip
        assert runs(first, replace(second, **changes)) == [60, 30]
    # The same records twice are two trials, each whole.
    assert runs(first, first, second, second) == [90, 90]


def test_gaps_between_frames_are_no_neighbours(clips: list[Clip]) -> None:
    clip = clips[0]
    numbers = (np.arange(60) + np.where(np.arange(60) >= 25, 10, 0)).astype(np.int32)
    gap = replace(clip, frames=numbers, times=numbers / RATE_HZ)
    samples = window_samples(clips_in_memory([gap]), 9, stride=1, centred=True, accept=~Quality(0))
    frames = samples.take(np.arange(len(samples)))
    assert len(samples) == 3 * 60
    assert (np.diff(frames.frame, axis=1) <= 1).all()
    assert frames.valid[24].tolist() == [True] * 5 + [False] * 4
    assert frames.frame[:60, 4].tolist() == numbers.tolist()
    # Every fifth frame from the seventh on, at a rate that says so: these follow on one another.
    numbers = 7 + 5 * np.arange(60, dtype=np.int32)
    sparse = replace(clip, frames=numbers, times=numbers / RATE_HZ, rate_hz=RATE_HZ / 5)
    samples = window_samples(clips_in_memory([sparse]), 9, stride=9, accept=~Quality(0))
    assert samples.take(np.arange(1)).frame[0].tolist() == numbers[:9].tolist()


def test_a_rate_is_that_of_the_frames_there_are(clips: list[Clip]) -> None:
    """Frames are counted by the clip's own numbers and times, not by their rows."""

    def picked(*some: Clip, rate_hz: float) -> list[int]:
        samples = frame_samples(clips_in_memory(some), rate_hz=rate_hz, accept=~Quality(0))
        frames = samples.take(np.arange(len(samples)))
        return frames.frame[frames.camera == 0].tolist()

    clip = clips[0]
    numbers = (np.arange(60) + np.where(np.arange(60) >= 20, 45, 0)).astype(np.int32)  # 0 to 19, 65 to 104
    gap = replace(clip, frames=numbers, times=numbers / RATE_HZ)
    assert picked(gap, rate_hz=1.0) == [0, 65, 100]
    assert picked(gap, rate_hz=5.0) == [0, 10, 65, 70, 80, 90, 100]
    numbers = 7 + 5 * np.arange(60, dtype=np.int32)
    sparse = replace(clip, frames=numbers, times=numbers / RATE_HZ, rate_hz=RATE_HZ / 5)
    assert picked(sparse, rate_hz=1.0) == [7, 52, 102, 152, 202, 252, 302]
    assert picked(sparse, rate_hz=10.0) == numbers.tolist()
    # The second's period began in the first: it has no frame of its own before the next.
    assert picked(clips[1], clips[0], rate_hz=1.0) == [0, 50]
    assert picked(clips[1], rate_hz=1.0) == [60]


def _without(clip: Clip, *names: str) -> Clip:
    return replace(clip, **{name: np.full_like(getattr(clip, name), np.nan) for name in names})


def test_a_camera_at_an_unknown_place_has_root_relative_targets(memory, clips: list[Clip]) -> None:
    """As samples without calibration have it: how the camera is turned is known, where it stands is not."""
    unknown = ("camera_translations", "camera_focal_lengths", "camera_principal_points")
    lost = [_without(c, *unknown) for c in clips]
    for make in (
        lambda some: frame_samples(some, rate_hz=10.0, source="truth", target="annotation"),
        lambda some: window_samples(some, 9, stride=9),
    ):
        found, wanted = make(clips_in_memory(lost)), make(memory)
        # Where the root is not known, there is nothing to be relative to.
        there = wanted.take(np.arange(len(wanted))).root_relative_mask.reshape(len(wanted), -1).any(axis=-1)
        assert len(found) == there.sum() > 0.8 * len(wanted)
        one, other = found.take(np.arange(len(found))), wanted.take(np.flatnonzero(there))
        assert not one.keypoints_3d_mask.any()
        assert other.root_relative_mask.mean() > 0.5
        for name in ("root_relative_mask", "keypoints_2d", "keypoints_2d_mask", "valid"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        known = other.root_relative_mask
        np.testing.assert_allclose(
            one.root_relative[known], other.root_relative[known], atol=2 * FLOAT32_M, rtol=0
        )
        statistics = statistics_of(found)
        inputs, seen = statistics.inputs_of(one, found.cameras)
        targets, mask = statistics.targets_of(one)
        assert np.isfinite(inputs).all()
        assert np.isfinite(targets).all()
        assert seen.any()
        assert mask.any()
    samples = frame_samples(clips_in_memory(lost), rate_hz=None)
    with pytest.raises(ShapeError, match="No sample knows the 2D keypoint nose"):
        statistics_of(samples, "rays")
    inputs, seen = replace(statistics, inputs="rays").inputs_of(samples.frames, samples.cameras)
    assert not seen.any()
    assert (inputs == 0).all()


def test_trainings_refuse_cameras_at_unknown_places(clips: list[Clip]) -> None:
    """Their targets are in front of cameras: they would learn nothing, and not say so."""
    from simspine_jax.lifting.observations import observe
    from simspine_jax.training.data import prepare

    unknown = ("camera_translations", "camera_focal_lengths", "camera_principal_points")
    samples = frame_samples(clips_in_memory([_without(c, *unknown) for c in clips]), rate_hz=10.0)
    seen = observe(samples.frames, samples.cameras)
    assert np.isfinite(seen.rays).all()
    with pytest.raises(ShapeError, match="No camera of the samples has a known place"):
        prepare(samples)


def test_a_camera_that_is_turned_in_an_unknown_way_has_no_targets(clips: list[Clip]) -> None:
    lost = [_without(c, "camera_rotations", "camera_translations") for c in clips]
    with pytest.raises(ShapeError, match="No sample is left"):
        frame_samples(clips_in_memory(lost))


def test_windows_copy_nothing_and_mask_faulty_frames(memory) -> None:
    samples = window_samples(memory, 243, stride=1)
    assert len(samples.frames.valid) == 3 * 160
    frames = samples.take(np.arange(1))
    assert frames.valid[0, :5].all()
    assert not frames.valid[0, 5:10].any()  # flagged
    assert frames.valid[0, 20:22].all()  # repaired
    assert not frames.keypoints_3d_mask[0, 5:10].any()
    with pytest.raises(ShapeError, match="Windows of 0 frames every 1 can't be made"):
        window_samples(memory, 0, stride=1)
    with pytest.raises(ShapeError, match="Windows of 5 frames every 0 can't be made"):
        window_samples(memory, 5, stride=0)


def test_samples_that_know_nothing_are_left_out(clips: list[Clip]) -> None:
    lost = np.array(clips[0].keypoints_3d_mask)
    lost[10:30] = False
    known = replace(clips[0], keypoints_3d_mask=lost)
    frames = frame_samples(clips_in_memory([known]), rate_hz=None, accept=~Quality(0))
    assert len(frames) == 3 * 40
    windows = window_samples(clips_in_memory([known]), 10, stride=10, accept=~Quality(0))
    assert len(windows) == 3 * 4
    nothing = replace(clips[0], keypoints_3d_mask=np.zeros_like(lost))
    for make in (frame_samples, lambda c: window_samples(c, 9, stride=9)):
        with pytest.raises(ShapeError, match=r"No sample is left whose keypoints are known in 2D \(truth\)"):
            make(clips_in_memory([nothing]))
    with pytest.raises(ShapeError, match="No clip has a frame in a camera's view"):
        frame_samples(
            clips_in_memory(
                clips_of(
                    trial_of("S1", "Walking", 40, detections=None, camera_names=(), detection_confidence=None)
                )
            )
        )


def test_wrong_choices_and_mixed_lenses_are_named(clips: list[Clip], memory) -> None:
    with pytest.raises(Unknown, match="Source 'guessed' is not in the choices; it has: truth, detected"):
        frame_samples(memory, source="guessed")  # type: ignore[arg-type]
    with pytest.raises(Unknown, match="Target 'guess' is not in the choices; it has: annotation, truth"):
        frame_samples(memory, target="guess")  # type: ignore[arg-type]
    mixed = clips_in_memory([clips[0], replace(clips[1], camera_distortion_model="h36m")])
    with pytest.raises(ShapeError, match="lens models 'opencv' and 'h36m' can't be samples of one set"):
        frame_samples(mixed, rate_hz=None)


# --- statistics ---


def masked_moments(values, mask):
    """By NumPy's masked arrays, which this project did not write."""
    held = np.ma.masked_array(np.asarray(values, np.float64), ~np.broadcast_to(mask[..., None], values.shape))
    return held.mean(axis=0).filled(np.nan), held.std(axis=0).filled(np.nan)


@pytest.mark.parametrize("inputs", ["pixels", "centred", "rays"])
def test_statistics_are_numpys_over_what_is_known(inputs: Any, memory, monkeypatch) -> None:
    monkeypatch.setattr(
        "simspine_jax.datasets.standardising.CHUNK", 50
    )  # several parts, the last one smaller
    samples = frame_samples(memory, rate_hz=None, source="detected")
    found = statistics_of(samples, inputs)
    frames = samples.take(np.arange(len(samples)))
    root = frames.root
    values, mask = frames.keypoints_2d, frames.keypoints_2d_mask
    if inputs == "centred":
        values, mask = values - values[:, root : root + 1], mask & mask[:, root : root + 1]
    elif inputs == "rays":
        values = np.asarray(rays_of(frames, samples.cameras))
    mean, std = masked_moments(values, mask)
    if inputs == "centred":
        std[root] = 1
    np.testing.assert_allclose(found.mean_2d, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.std_2d, std, rtol=1e-6)
    mean, std = masked_moments(frames.root_relative, frames.root_relative_mask)
    assert (mean[root] == 0).all()
    std[root] = 1
    np.testing.assert_allclose(found.mean_3d, mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.std_3d, std, rtol=1e-6)
    # Standardised, the training set has mean 0 and deviation 1 where it is known, and 0 elsewhere.
    standard, seen = map(np.asarray, found.inputs_of(frames, samples.cameras))
    np.testing.assert_array_equal(seen, mask)
    targets, known = map(np.asarray, found.targets_of(frames))
    assert targets.shape == (len(samples), 36, 3)
    np.testing.assert_array_equal(known, np.delete(frames.root_relative_mask, root, axis=1))
    pairs = (np.delete(standard, root, axis=1), np.delete(seen, root, axis=1)), (targets, known)
    for some, there in pairs:
        assert np.isfinite(some).all()
        assert (some[~there] == 0).all()
        assert 0.01 < (~there).mean() < 0.5
        mean, std = masked_moments(some, there)
        np.testing.assert_allclose(mean, 0, atol=1e-5)
        np.testing.assert_allclose(std, 1, atol=1e-5)


@pytest.mark.parametrize("keypoints", [KEYPOINT_NAMES, REDUCED_NAMES, ("nose", "hip")])
def test_standardising_is_undone_exactly(keypoints, memory) -> None:
    samples = frame_samples(memory, rate_hz=None, keypoints=keypoints)
    statistics = statistics_of(samples)
    frames = samples.take(np.arange(50))
    back = statistics.restore_2d(statistics.standardise_2d(frames.keypoints_2d))
    np.testing.assert_allclose(back, frames.keypoints_2d, rtol=ROUNDING)
    targets = statistics.standardise_3d(frames.root_relative)
    assert targets.shape == (50, len(keypoints) - 1, 3)
    known = frames.root_relative_mask
    np.testing.assert_allclose(
        np.asarray(statistics.restore_3d(targets))[known], frames.root_relative[known], atol=ROUNDING
    )
    root = frames.keypoints_3d[:, frames.root]
    np.testing.assert_allclose(
        np.asarray(statistics.restore_3d(targets, jnp.asarray(root)))[known],
        frames.keypoints_3d[known],
        atol=ROUNDING,
    )
    relative = np.asarray(statistics.restore_3d(targets))
    assert (relative[:, frames.root] == 0).all()


def test_statistics_are_a_pytree_and_guard_their_keypoints(memory) -> None:
    samples = frame_samples(memory, rate_hz=None, keypoints=REDUCED_NAMES)
    statistics = statistics_of(samples)
    assert len(jax.tree.leaves(statistics)) == 4
    again = jax.tree.map(lambda x: x, statistics)
    assert again.keypoint_names == REDUCED_NAMES
    assert isinstance(again, Statistics)
    # Under jit, as in a training step.
    frames = samples.take(np.arange(8))
    jitted = jax.jit(lambda s, f, c: (s.inputs_of(f, c), s.targets_of(f)))(
        statistics, frames, samples.cameras
    )
    np.testing.assert_allclose(jitted[1][0], statistics.targets_of(frames)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jitted[1][1], statistics.targets_of(frames)[1])
    other = frame_samples(memory, rate_hz=None)
    with pytest.raises(ShapeError, match=r"The frames have the keypoints nose, .* valid are the statistics'"):
        statistics.inputs_of(other.take(np.arange(3)), other.cameras)
    with pytest.raises(Unknown, match="Inputs 'px' is not in the choices; it has: pixels, centred, rays"):
        statistics_of(samples, "px")  # type: ignore[arg-type]


def test_a_keypoint_that_nobody_knows_is_named(clips: list[Clip]) -> None:
    mask = np.array(clips[0].keypoints_3d_mask)
    mask[:, KEYPOINT_NAMES.index("nose")] = False
    samples = frame_samples(clips_in_memory([replace(clips[0], keypoints_3d_mask=mask)]), rate_hz=None)
    with pytest.raises(ShapeError, match="No sample knows the 3D keypoint nose"):
        statistics_of(samples)


# --- batches ---


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 37, 64, 1000, 4097])
def test_the_shuffle_is_a_permutation(count: int) -> None:
    orders = {
        tuple(np.asarray(shuffled(jnp.arange(count), count, seed, epoch)).tolist())
        for seed in (0, 1, 2**32 - 1)
        for epoch in (0, 1, 7)
    }
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count > 8:
        assert len(orders) == 9


def test_the_shuffle_leaves_no_trace_of_the_order() -> None:
    """Each number comes at each place alike, and neighbours part: over 400 orders."""
    count, orders = 20, 400
    take = jax.jit(jax.vmap(lambda epoch: shuffled(jnp.arange(count), count, 5, epoch)))
    found = np.asarray(take(jnp.arange(orders, dtype=jnp.uint32)))
    table = np.stack([np.bincount(found[:, place], minlength=count) for place in range(count)])
    chi = ((table - orders / count) ** 2 / (orders / count)).sum()
    freedom = (count - 1) ** 2
    assert abs(chi - freedom) < 4 * np.sqrt(2 * freedom)
    assert abs(np.mean([np.corrcoef(order, np.arange(count))[0, 1] for order in found])) < 4 / np.sqrt(
        orders * count
    )
    beside = (np.abs(np.diff(found, axis=1)) == 1).mean()
    assert abs(beside - 2 / count) < 0.02


def in_plain_integers(index: int, count: int, seed: int, epoch: int) -> int:
    """The published parts put together with Python's integers."""
    word = 2**32 - 1

    def murmur(h: int) -> int:
        h = (h ^ h >> 16) * 0x85EBCA6B & word
        h = (h ^ h >> 13) * 0xC2B2AE35 & word
        return h ^ h >> 16

    bits = max(2, (count - 1).bit_length())
    low = bits // 2
    while True:
        left, right = divmod(index, 2**low)
        for turn in range(8):
            key = murmur(murmur(seed + 0x9E3779B9 * (turn + 1) & word) ^ epoch)
            if turn % 2:
                right = (right ^ murmur(left ^ key)) % 2**low
            else:
                left = (left ^ murmur(right ^ key)) % 2 ** (bits - low)
        index = left * 2**low + right
        if index < count:
            return index


def test_the_order_is_the_same_on_every_machine() -> None:
    """Trainings that were begun with one release or device go on with another."""
    for count, seed, epoch in ((10, 3, 1), (1000, 2**32 - 1, 12), (77, 0, 0)):
        found = np.asarray(shuffled(jnp.arange(count), count, seed, epoch)).tolist()
        assert found == [in_plain_integers(i, count, seed, epoch) for i in range(count)]
    assert np.asarray(shuffled(jnp.arange(6), 10, 3, 1)).tolist() == [1, 2, 0, 9, 7, 6]


@pytest.fixture(scope="module")
def samples(memory):
    return frame_samples(memory, rate_hz=None, accept=~Quality(0))


def key(frames) -> list[tuple[int, ...]]:
    """What tells samples apart."""
    parts = (np.asarray(getattr(frames, name)) for name in ("clip", "camera", "frame"))
    return list(zip(*(part.reshape(len(part), -1)[:, 0].tolist() for part in parts), strict=True))


def test_an_epoch_has_every_sample_once_and_each_epoch_its_order(samples) -> None:
    batches = Batches(samples, 32, seed=1)
    assert len(batches) == 15
    epochs = [[k for batch in batches for k in key(batch)] for _ in range(2)]
    assert [len(e) for e in epochs] == [480, 480]
    assert set(epochs[0]) == set(epochs[1]) == set(key(samples.take(np.arange(480))))
    assert epochs[0] != epochs[1]
    assert [k for batch in Batches(samples, 32, seed=1) for k in key(batch)] == epochs[0]
    assert [k for batch in Batches(samples, 32, seed=2) for k in key(batch)] != epochs[0]
    plain = [k for batch in Batches(samples, 32, shuffle=False) for k in key(batch)]
    assert plain == key(samples.take(np.arange(480)))


def test_batches_are_the_samples_themselves(samples) -> None:
    batch = next(iter(Batches(samples, 64, seed=4)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
    rows = [key(samples.take(np.arange(480))).index(k) for k in key(batch)]
    wanted = samples.take(np.array(rows))
    for found, kept in zip(jax.tree.leaves(batch), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(found, kept)
        assert found.dtype == kept.dtype


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_last_batch_is_left_out_or_filled_up(drop_last: bool, samples) -> None:
    batches = Batches(samples, 100, drop_last=drop_last)
    found = list(batches)
    assert len(found) == len(batches) == (4 if drop_last else 5)
    assert all(len(b.valid) == 100 for b in found)
    if not drop_last:
        last = found[-1]
        assert np.asarray(last.valid).sum() == 80
        assert not np.asarray(last.keypoints_3d_mask)[~np.asarray(last.valid)].any()
        kept = [k for b in found for k, valid in zip(key(b), np.asarray(b.valid), strict=True) if valid]
        assert len(kept) == len(set(kept)) == 480


@pytest.mark.parametrize("on_device", [True, False])
def test_a_training_resumes_at_the_same_batch(on_device: bool, samples) -> None:
    batches = Batches(samples, 48, seed=9, on_device=on_device)
    seen: list[Any] = []
    states: list[str] = []
    for _ in range(3):
        for batch in batches:
            seen.append(batch)
            states.append(json.dumps(asdict(batches.state)))
    for at in (0, 4, 9, 17, 28):
        again = Batches(samples, 48, seed=0, on_device=on_device)
        again.restore(BatchState(**json.loads(states[at])))
        following = [*again, *again][: len(seen) - at - 1][:3]
        assert following
        for found, wanted in zip(following, seen[at + 1 :], strict=False):
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_array_equal(one, other)
    assert states[9] == json.dumps({"seed": 9, "epoch": 1, "position": 0, "count": 480, "batch_size": 48})


def test_a_state_of_other_batches_is_refused(samples) -> None:
    batches = Batches(samples, 48)
    good = batches.state
    for wrong in (
        replace(good, batch_size=32), replace(good, count=479), replace(good, position=10),
        replace(good, position=-1), replace(good, epoch=-1),
    ):  # fmt: skip
        with pytest.raises(
            ShapeError, match="is not of these batches; valid is one of 480 samples in 10 batches"
        ):
            batches.restore(wrong)
    for size in (0, 481, -1):
        with pytest.raises(ShapeError, match=f"Batches of {size} of 480 samples can't be made"):
            Batches(samples, size)
    for seed in (-1, 2**32):
        with pytest.raises(ShapeError, match=f"The seed of the batches is {seed}"):
            Batches(samples, 8, seed)


def test_the_hosts_batches_are_the_devices(samples, memory) -> None:
    for some in (samples, window_samples(memory, 27, stride=5)):
        for one, other in zip(
            Batches(some, 40, 3, drop_last=False), Batches(some, 40, 3, drop_last=False, on_device=False),
            strict=True,
        ):  # fmt: skip
            for found, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_array_equal(found, wanted)
                assert found.dtype == wanted.dtype


def test_batches_of_windows_have_their_padding(memory) -> None:
    windows = window_samples(memory, 27, stride=5, accept=~Quality(0))
    batch = next(iter(Batches(windows, 16, seed=2)))
    assert batch.keypoints_3d.shape == (16, 27, 37, 3)
    valid = np.asarray(batch.valid)
    assert (~valid).sum() > 0
    assert not np.asarray(batch.keypoints_2d_mask)[~valid].any()


SHARDED = """
import jax, numpy as np, pickle, sys
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from simspine_jax.datasets import Batches
from simspine_jax.errors import ShapeError
samples = pickle.load(open(sys.argv[1], "rb"))
mesh = Mesh(np.array(jax.devices()), ("data",))
assert len(jax.devices()) == 4
sharding = NamedSharding(mesh, PartitionSpec("data"))
for on_device in (True, False):
    for some in samples:
        batches = Batches(some, 16, seed=5, sharding=sharding, on_device=on_device)
        for found, wanted in zip(batches, Batches(some, 16, seed=5)):
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
                np.testing.assert_array_equal(one, other)
                assert one.sharding.is_equivalent_to(sharding, one.ndim)
                assert {s.data.shape[0] for s in one.addressable_shards} == {4}
        if on_device:
            place = np.uint32(0), np.uint32(0), np.int32(0)
            text = batches._gather.lower(batches.samples, *place).compile().as_text()
            assert "gather" in text
            for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
                assert word not in text, word
try:
    Batches(samples[0], 18, sharding=sharding)
except ShapeError as error:
    print(error)
"""


def test_batches_are_shared_out_over_devices_without_talking(samples, memory, tmp_path: Path) -> None:
    """Each device gathers its own part of the batch: the compiled program has no collective."""
    kept = tmp_path / "samples.pickle"
    kept.write_bytes(pickle.dumps([samples, window_samples(memory, 9, stride=9)]))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    child = subprocess.run(
        [sys.executable, "-c", SHARDED, str(kept)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "A batch of 18 can't be shared out over 4 devices; valid are multiples of 4" in child.stdout


def test_a_step_can_gather_by_itself(samples) -> None:
    """What a scan over steps on the device needs: the order and the samples within one compiled program."""
    batches = Batches(samples, 32, seed=7)

    @jax.jit
    def means(samples, epoch):
        def step(_, position):
            place = position * 32 + jnp.arange(32)
            batch = samples.take(shuffled(place, 480, 7, epoch))
            return None, batch.frame

        return jax.lax.scan(step, None, jnp.arange(15))[1]

    found = np.asarray(means(batches.samples, 0))
    np.testing.assert_array_equal(found, [b.frame for b in batches])


# --- pictures ---


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("cv2")
    from simspine_jax.pictures import Picture, encode_jpeg

    random = np.random.default_rng(0)
    made = []
    for number in range(10):
        pixels = np.full((120, 90, 3), 20 * number, np.uint8)
        pixels[40:80, 30:60] = 255 - 20 * number
        made.append(
            Picture(
                encode_jpeg(pixels), 90, 120, "S1", "Walking", "free", number, True, number,
                np.array([20, 10, 50, 100]), np.nan, random.uniform(-20, 120, (37, 2)).astype(np.float32),
                random.integers(0, 3, 37, np.int32),
                np.full((37, 3), np.nan), np.eye(3), np.eye(3), np.zeros(3), np.zeros(8),
            )
        )  # fmt: skip
    return pictures_in_memory(made)


def test_crops_are_those_of_their_pictures(pictures) -> None:
    from simspine_jax.pictures import top_down

    pytest.importorskip("grain")
    batches = list(picture_batches(pictures, 4, shuffle=False, epochs=1))
    assert [len(b.index) for b in batches] == [4, 4, 2]
    assert np.concatenate([b.index for b in batches]).tolist() == list(range(10))
    assert batches[0].pixels.shape == (4, 256, 192, 3)
    assert batches[0].pixels.dtype == np.uint8
    for row, number in enumerate(batches[1].index):
        wanted = top_down(pictures[int(number)])
        np.testing.assert_array_equal(batches[1].pixels[row], wanted.pixels)
        np.testing.assert_array_equal(batches[1].keypoints[row], wanted.keypoints)
        np.testing.assert_array_equal(batches[1].labelled[row], wanted.visibility > 0)
        np.testing.assert_array_equal(batches[1].matrix[row], wanted.matrix)
        np.testing.assert_array_equal(batches[1].box[row], pictures[int(number)].box)
    assert np.isnan(batches[0].area).all()


def test_pictures_are_shuffled_anew_each_epoch(pictures) -> None:
    pytest.importorskip("grain")
    numbers = [b.index.tolist() for b in picture_batches(pictures, 5, seed=1, epochs=3)]
    epochs = [[*numbers[i], *numbers[i + 1]] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [b.index.tolist() for b in picture_batches(pictures, 5, seed=1, epochs=3)] == numbers
    assert [b.index.tolist() for b in picture_batches(pictures, 5, seed=2, epochs=3)] != numbers


def _noisy(picture, random):
    from simspine_jax.pictures import top_down

    crop = top_down(picture)
    return replace(crop, keypoints=crop.keypoints + np.float32(random.normal()))


def test_pictures_resume_at_the_same_batch_with_the_same_draws(pictures) -> None:
    pytest.importorskip("grain")
    stream = picture_batches(pictures, 3, seed=5, crop=_noisy)
    first = [next(stream) for _ in range(4)]
    state = stream.get_state()
    wanted = [next(stream) for _ in range(5)]  # over the end of the first epoch
    again = picture_batches(pictures, 3, seed=5, crop=_noisy)
    again.set_state(state)
    for found, other in zip([next(again) for _ in range(5)], wanted, strict=True):
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(one, two)
    drawn = {round(float(b.keypoints[i, 0, 0] - pictures_keypoint(pictures, int(b.index[i]))), 4)
             for b in (*first, *wanted) for i in range(3)}  # fmt: skip
    assert len(drawn) == 27  # each picture of each epoch has a draw of its own


def pictures_keypoint(pictures, number: int) -> float:
    from simspine_jax.pictures import top_down

    return float(top_down(pictures[number]).keypoints[0, 0])


def test_wrong_sizes_of_picture_batches_are_named(pictures) -> None:
    pytest.importorskip("grain")
    for size, epochs in ((0, None), (11, None), (4, 0)):
        with pytest.raises(ShapeError, match=f"Batches of {size} of 10 pictures, {epochs} times, can't"):
            picture_batches(pictures, size, epochs=epochs)
    with pytest.raises(ShapeError, match="The seed of the batches is -1"):
        picture_batches(pictures, 2, -1)


def test_a_damaged_picture_is_named(pictures) -> None:
    pytest.importorskip("grain")
    broken = pictures_in_memory([pictures[1], replace(pictures[0], jpeg=b"no picture")])
    with pytest.raises(FileFormatError, match=r"^Picture 1: its 10 bytes can't be decoded as a picture"):
        next(picture_batches(broken, 2, shuffle=False))


def test_digests_tell_sets_apart(built: Path, pictures) -> None:
    train, test, part = (open_clips(split=s, data_dir=built) for s in ("train", "test", "train[:1]"))
    assert train.digest() == open_clips(split="train", data_dir=built).digest()
    assert len({train.digest(), test.digest(), part.digest()}) == 3
    moved = [replace(p, area=1.0) if number == 7 else p for number, p in enumerate(pictures)]
    assert pictures.digest() == pictures_in_memory(list(pictures)).digest()
    assert pictures.digest() != pictures_in_memory(moved).digest()


def test_pictures_of_a_set_of_clips_are_refused(built: Path) -> None:
    with pytest.raises(FileFormatError, match=r"have no jpeg, width, .* whose records are of the kind"):
        open_pictures("synthetic", data_dir=built)


# --- the benchmark's rows ---


def test_the_rates_are_measured_on_the_same_clips(built: Path, monkeypatch) -> None:
    """On a tiny dataset, and without TensorFlow, whose row then says so; speed is not looked at."""
    pytest.importorskip("h5py")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2])
    from benchmarks import dataset, dataset_rates
    from benchmarks.metrics import SkippedError

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorflow" else found(name, *more)
    )
    place = dataset_rates.DatasetPlace(quick=True)
    monkeypatch.setitem(place.__dict__, "data_dir", built)
    rows = {row.key: row for row in dataset_rates.memory(place)}

    def measure() -> None:
        for row in dataset_rates.streams(place):
            rows[row.key] = row

    with pytest.raises(SkippedError, match="tensorflow is not installed"):
        measure()
    place._folder.cleanup()
    wanted = {"stream", "h5py", "numpy", "memory"}
    keys = {f"dataset/{name}_frames_per_s" for name in wanted}
    assert keys < set(rows)
    assert all(row.value > 0 and "3 clips, 130 frames, 3 views" in row.data for row in rows.values())
    assert all(dataset.SUITE.metric(key) for key in rows)


IMAGES = """
import pickle, sys
from benchmarks import dataset_rates
assert "tensorflow" not in sys.modules  # nor has the process that renders it
pictures = pickle.load(open(sys.argv[1], "rb"))
dataset_rates._pictures = lambda place: (pictures, "in memory")
for row in dataset_rates.images(dataset_rates.DatasetPlace(quick=True)):
    print(row.key, row.value, row.detail)
"""


def test_images_are_measured_beside_tensorflows(pictures, tmp_path: Path) -> None:
    """TensorFlow's crops are compared with ours there; it stays out of this process, where others render."""
    pytest.importorskip("grain")
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    kept = tmp_path / "pictures.pickle"
    kept.write_bytes(pickle.dumps(pictures))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", IMAGES, str(kept)]
    child = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    rate, ratio = (line.split(maxsplit=2) for line in child.stdout.splitlines())
    assert [rate[0], ratio[0]] == ["dataset/images_per_s", "dataset/images_vs_tfdata"]
    rates = ast.literal_eval(ratio[2])
    quotient = rates["grain_images_per_s"] / rates["tfdata_images_per_s"]
    assert float(ratio[1]) == pytest.approx(quotient, rel=0.05)
    assert float(rate[1]) == pytest.approx(rates["grain_images_per_s"], rel=0.05)


def test_images_without_tensorflow_say_so(pictures, monkeypatch) -> None:
    pytest.importorskip("grain")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2])
    from benchmarks import dataset_rates
    from benchmarks.metrics import SkippedError

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorflow" else found(name, *more)
    )
    monkeypatch.setattr(dataset_rates, "_pictures", lambda place: (pictures, "in memory"))
    place = dataset_rates.DatasetPlace(quick=True)
    rows = dataset_rates.images(place)
    assert next(rows).key == "dataset/images_per_s"
    with pytest.raises(SkippedError, match="tensorflow is not installed"):
        next(rows)
    place._folder.cleanup()
