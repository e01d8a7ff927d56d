"""The TFDS builder: TFDS's own test case for each configuration, and what a user meets around it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import official_files as official
import pytest
from spine_trials import make_trial

from simspine_jax.clips import CLIP_FIELDS
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.trials import write_trial
from simspine_jax.pictures import PICTURE_FIELDS
from simspine_jax.pipeline.dataset import SyntheticSource
from simspine_jax.skeleton import AXIS_NAMES, REDUCED_NAMES

pytest.importorskip("array_record", reason="the extra tfds is not installed")
tfds = pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")

import simspine_tfds  # noqa: E402
from simspine_tfds import folders  # noqa: E402
from simspine_tfds.folders import alone  # noqa: E402
from simspine_tfds.preparing import Request, facts, prepare  # noqa: E402
from simspine_tfds.records import example_of, features_of, with_field_tables  # noqa: E402
from simspine_tfds.simspine_dataset_builder import examples_of  # noqa: E402

# TFDS asks protobuf 6, with which Beam goes, for what protobuf 7 no longer has.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")

FOLDER = Path(tempfile.mkdtemp(prefix="simspine-tfds-"))
"""Manual files, made once for all tests of this module."""

TRIAL = {"subjects": ("S1", "S9"), "actions": ("Walking", "Greeting"), "seconds": 1.2}


def _make_manual_files() -> None:
    for name in ("release", "release_npz", "pipeline"):
        (FOLDER / name).mkdir()
    official.write_h5(FOLDER / "release" / "simspine.h5", AXIS_NAMES)
    official.write_npz(FOLDER / "release_npz" / "simspine.npz", AXIS_NAMES)
    for subject in ("S1", "S9"):
        official.write_toml(FOLDER / "release_npz" / "cameras" / f"Calib_{subject}.toml")
    layout = ReleaseLayout(FOLDER / "pipeline")
    for subject, action, n_frames in (("S1", "Walking 1", 510), ("S9", "Sitting", 20)):
        write_trial(layout.trial(subject, action), make_trial(subject, action, n_frames))


@pytest.fixture(scope="module", autouse=True)
def manual_files():
    import shutil

    yield
    shutil.rmtree(FOLDER)


_make_manual_files()


def hashes_of(folder: str | Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).iterdir()
        if path.is_file()
    }


# --- TFDS's own test case ---

try:
    import tensorflow as tf
    from tensorflow_datasets import testing
except ImportError:
    tf, testing = None, None

if testing is not None:

    class _Case(testing.DatasetBuilderTestCase):
        DATASET_CLASS = simspine_tfds.Builder

    class ReleaseTest(_Case):
        BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["release"]
        EXAMPLE_DIR = str(FOLDER / "release")
        SPLITS: ClassVar = {"train": 2, "test": 1}

    class SamplesTest(_Case):
        BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["release_npz"]
        EXAMPLE_DIR = str(FOLDER / "release_npz")
        SPLITS: ClassVar = {"train": 2, "test": 1}

    class PipelineTest(_Case):
        BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["pipeline"]
        EXAMPLE_DIR = str(FOLDER / "pipeline")
        SPLITS: ClassVar = {"train": 2, "test": 1}  # 510 frames are two clips

    class TFRecordTest(ReleaseTest):
        def _make_builder(self, config=None):
            return simspine_tfds.Builder(data_dir=self.tmp_dir, config=config, file_format="tfrecord")

    class SyntheticTest(_Case):
        BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["synthetic"]
        EXAMPLE_DIR = str(FOLDER)
        SPLITS: ClassVar = {"train": 2, "test": 2}

        def _make_builder(self, config=None):
            return simspine_tfds.Builder(data_dir=self.tmp_dir, config=config, **TRIAL)

    class PicturesTest(_Case):
        BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["synthetic_images"]
        EXAMPLE_DIR = str(FOLDER)
        SPLITS: ClassVar = {"train": 2, "test": 2}

        def _make_builder(self, config=None):
            words = {"subjects": TRIAL["subjects"], "actions": ("Walking",), "pictures": 4}
            return simspine_tfds.Builder(data_dir=self.tmp_dir, config=config, **words)

    del _Case  # pytest would run it


# --- records ---


@pytest.fixture(scope="module")
def release_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    prepare(Request("release", folder, FOLDER / "release"))
    return folder


def test_features_are_what_the_schema_says() -> None:
    for fields in (CLIP_FIELDS, PICTURE_FIELDS):
        features = features_of(fields)
        assert set(features) == {field.name for field in fields}
        for field in fields:
            feature = features[field.name]
            assert feature.doc.desc == field.doc
            if field.kind != "jpeg":
                assert feature.shape == tuple(None if isinstance(d, str) else d for d in field.shape)
            if field.kind not in ("text", "jpeg"):
                assert feature.np_dtype == np.dtype(field.kind)


def test_a_record_comes_back_to_the_last_bit(release_dir: Path) -> None:
    from simspine_jax.pipeline.dataset import ReleaseSource

    source = ReleaseSource.at(FOLDER / "release")
    wanted = {key: example_of(clip) for item in source.items() for key, clip in source.records(item)}
    data = tfds.data_source("simspine/release", data_dir=release_dir)
    found = {
        f"{r['subject'].decode()}/{r['action'].decode()}/{r['first_frame']:08d}": r
        for split in data.values()
        for r in split
    }
    assert found.keys() == wanted.keys()
    for key, example in wanted.items():
        for name, value in example.items():
            stored = found[key][name]
            if isinstance(value, str):
                assert stored.decode() == value
            elif np.asarray(value).dtype == object:
                assert [text.decode() for text in stored] == value.tolist()
            else:
                np.testing.assert_array_equal(stored, value)


def test_splits_are_the_papers_and_empty_ones_are_left_out(release_dir: Path, tmp_path: Path) -> None:
    data = tfds.data_source("simspine/release", data_dir=release_dir)
    assert {s: {r["subject"] for r in split} for s, split in data.items()} == {
        "train": {b"S1"}, "test": {b"S9"},
    }  # fmt: skip
    builder = prepare(Request("release", tmp_path, FOLDER / "release", subjects=("S9",)))
    assert list(builder.info.splits) == ["test"]


@pytest.mark.skipif(tf is None, reason="TensorFlow is not installed")
def test_tensorflow_reads_what_was_built_without_it(release_dir: Path) -> None:
    data, info = tfds.load("simspine/release", split="train", data_dir=release_dir, with_info=True)
    numbers = tfds.data_source("simspine/release", split="train", data_dir=release_dir)
    assert info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    for one, other in zip(tfds.as_numpy(data), numbers, strict=True):
        np.testing.assert_array_equal(one["keypoints_2d"], other["keypoints_2d"])
        assert one["action"] == other["action"]
    pairs = tfds.load("simspine/release", split="test", data_dir=release_dir, as_supervised=True)
    ((pixels, points),) = tfds.as_numpy(pairs)
    assert (pixels.shape, points.shape) == ((12, 2, 37, 2), (12, 37, 3))
    part = tfds.load("simspine/release:1.0.0", split="train[:1]", data_dir=release_dir, shuffle_files=True)
    assert len(list(part)) == 1


def test_the_default_configuration_is_synthetic(tmp_path: Path) -> None:
    assert tfds.builder("simspine", data_dir=tmp_path).info.full_name == "simspine/synthetic/1.0.0"
    assert simspine_tfds.Builder.name == "simspine"
    assert "Nobody was recorded" in simspine_tfds.Builder.get_metadata().description
    assert "khan2026simspine" in simspine_tfds.Builder.get_metadata().citation


# --- builds ---


def test_equal_builds_give_equal_bytes_in_any_process(release_dir: Path, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nimport sys\nfrom simspine_tfds.preparing import Request, prepare\n"
        "prepare(Request('release', Path(sys.argv[1]), Path(sys.argv[2])))\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path), str(FOLDER / "release")]
    subprocess.run(words, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    where = Path("simspine/release/1.0.0")
    assert hashes_of(tmp_path / where) == hashes_of(release_dir / where)


def test_leftovers_of_a_killed_build_are_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "simspine" / "release"
    for name in ("incomplete.ABC123_1.0.0", "incomplete.ABC123_9.9.9"):
        (folder / name).mkdir(parents=True)
    prepare(Request("release", tmp_path, FOLDER / "release"))
    assert {path.name for path in folder.iterdir()} == {".lock", "1.0.0", "incomplete.ABC123_9.9.9"}


def test_a_failed_build_leaves_nothing_and_does_not_replace(tmp_path: Path) -> None:
    folder = tmp_path / "simspine" / "release"
    with pytest.raises(FileFormatError, match="it holds no trials"):
        prepare(Request("release", tmp_path, FOLDER / "release_npz"))
    assert not (folder / "1.0.0").exists()
    prepare(Request("release", tmp_path, FOLDER / "release"))
    before = hashes_of(folder / "1.0.0")
    with pytest.raises(FileFormatError, match="it holds no trials"):
        prepare(Request("release", tmp_path, FOLDER / "release_npz", force=True))
    assert hashes_of(folder / "1.0.0") == before
    assert {path.name for path in folder.iterdir()} == {".lock", "1.0.0"}


def test_what_was_to_be_replaced_by_a_killed_build_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "simspine" / "release"
    prepare(Request("release", tmp_path, FOLDER / "release"))
    before = hashes_of(folder / "1.0.0")
    (folder / "1.0.0").rename(folder / "replaced.1.0.0")
    prepare(Request("release", tmp_path, FOLDER / "release"))
    assert hashes_of(folder / "1.0.0") == before
    (folder / "replaced.1.0.0").mkdir()
    prepare(Request("release", tmp_path, FOLDER / "release"))
    assert {path.name for path in folder.iterdir()} == {".lock", "1.0.0"}


def test_other_options_need_force(tmp_path: Path) -> None:
    prepare(Request("release", tmp_path, FOLDER / "release"))
    other = Request("release", tmp_path, FOLDER / "release", actions=("Walking",))
    with pytest.raises(
        SimspineError, match=r"other options \(file format array_record, subjects all, actions all\)"
    ):
        prepare(other)
    import dataclasses

    builder = prepare(dataclasses.replace(other, force=True))
    assert builder.info.splits["train"].num_examples == 2
    assert "test" not in builder.info.splits


def test_other_files_need_force(tmp_path: Path) -> None:
    import shutil

    prepare(Request("release", tmp_path, FOLDER / "release"))
    shutil.copytree(FOLDER / "release", tmp_path / "copy")
    prepare(Request("release", tmp_path, tmp_path / "copy"))  # the same, elsewhere
    (tmp_path / "copy" / "README.md").write_text("nobody reads it")
    prepare(Request("release", tmp_path, tmp_path / "copy"))
    import h5py

    size = (tmp_path / "copy" / "simspine.h5").stat().st_size
    with h5py.File(tmp_path / "copy" / "simspine.h5", "r+") as file:
        file["S1/Walking/markers"][...] += 1.0  # pyright: ignore[reportIndexIssue]
    assert (tmp_path / "copy" / "simspine.h5").stat().st_size == size
    with pytest.raises(SimspineError, match=rf"from other files than {tmp_path}/copy; valid are"):
        prepare(Request("release", tmp_path, tmp_path / "copy"))


@pytest.mark.parametrize("config", ["release", "release_npz", "pipeline"])
def test_manual_files_and_data_set_can_share_a_folder(tmp_path: Path, config: str) -> None:
    import shutil

    shutil.copytree(FOLDER / config, tmp_path / "both")
    both = tmp_path / "both"
    prepare(Request(config, both, both))
    made = {path: path.stat().st_mtime_ns for path in both.rglob("*.array_record-*")}
    assert made
    prepare(Request(config, both, both))  # its own output is not taken for files of the user's
    assert {path: path.stat().st_mtime_ns for path in both.rglob("*.array_record-*")} == made


def test_a_trial_that_is_written_anew_in_the_same_size_is_noticed(tmp_path: Path) -> None:
    layout = ReleaseLayout(tmp_path / "manual")
    trial = make_trial("S1", "Walking 1", 20)
    write_trial(layout.trial("S1", "Walking 1"), trial)
    prepare(Request("pipeline", tmp_path / "data", layout.root))
    size = layout.trial("S1", "Walking 1").stat().st_size
    moved = make_trial("S1", "Walking 1", 20, keypoints=np.asarray(trial.keypoints) + 1.0)
    write_trial(layout.trial("S1", "Walking 1"), moved)
    assert layout.trial("S1", "Walking 1").stat().st_size == size
    with pytest.raises(SimspineError, match="from other files than"):
        prepare(Request("pipeline", tmp_path / "data", layout.root))


def test_large_manual_files_are_known_by_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LARGE_FILE", 4)
    path = tmp_path / "file"
    path.write_text("12345")
    os.utime(path, ns=(0, 10**18))
    first = folders.digest_of_files(tmp_path, [path])
    path.write_text("54321")
    os.utime(path, ns=(0, 10**18))
    assert folders.digest_of_files(tmp_path, [path]) == first  # not read
    os.utime(path, ns=(0, 10**18 + 1))
    assert folders.digest_of_files(tmp_path, [path]) != first


def test_names_that_are_given_twice_count_once(tmp_path: Path) -> None:
    twice = Request("release", tmp_path, FOLDER / "release", ("S1", "S1"), ("Walking", "Walking"))
    assert prepare(twice).info.splits["train"].num_examples == 2
    prepare(Request("release", tmp_path, FOLDER / "release", ("S1",), ("Walking",)))


def test_a_data_set_with_other_options_is_neither_read_nor_taken_for_prepared(tmp_path: Path) -> None:
    prepare(Request("release", tmp_path, FOLDER / "release", subjects=("S1",)))
    where: dict[str, Any] = {"data_dir": tmp_path, "builder_kwargs": {"subjects": ["S9"]}}
    told = r"other options \(subjects S1, actions all\) than those asked for \(subjects S9\); valid are"
    with pytest.raises(SimspineError, match=told):
        tfds.data_source("simspine/release", **where)
    with pytest.raises(SimspineError, match=told):
        tfds.load("simspine/release", download=False, **where)
    builder = simspine_tfds.Builder(config="release", data_dir=tmp_path, subjects=["S9"])
    with pytest.raises(SimspineError, match=told):
        builder.download_and_prepare()
    with pytest.raises(SimspineError, match=told):
        builder.as_data_source()
    where["builder_kwargs"] = {"subjects": ["S1"]}
    assert len(tfds.data_source("simspine/release", split="train", **where)) == 2
    assert len(tfds.data_source("simspine/release", split="train", data_dir=tmp_path)) == 2


@pytest.mark.parametrize("address", ["gs://bucket/data", "gs:/bucket/data", "s3://bucket"])
def test_addresses_are_no_folders(address: str) -> None:
    with pytest.raises(SimspineError, match=r"is no folder of a file system; valid is a folder"):
        prepare(Request("release", Path(address), FOLDER / "release"))
    with pytest.raises(SimspineError, match=r"is no folder of a file system; valid is a folder"):
        simspine_tfds.Builder(config="release", data_dir=address)


def test_force_uses_nothing_that_an_unfinished_build_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []

    def items(source: SyntheticSource) -> tuple:
        left.append((source.work / "S9" / "file").exists())
        (source.work / "S9").mkdir(parents=True, exist_ok=True)
        (source.work / "S9" / "file").touch()
        raise FileFormatError("x: it is damaged; valid is another")

    monkeypatch.setattr(SyntheticSource, "items", items)
    for force in (False, False, True, False):
        # The user brings no files, so there is no word of any.
        with pytest.raises(FileFormatError, match=r"valid is another$"):
            prepare(Request("synthetic", tmp_path, subjects=("S9",), force=force))
    assert left == [False, True, False, True]


def test_workers_of_beam_tell_what_to_bring(tmp_path: Path) -> None:
    """What each of them runs, as Beam may not be installed."""
    import shutil

    from simspine_jax.pipeline.dataset import ReleaseSource

    shutil.copytree(FOLDER / "release", tmp_path / "manual")
    source = ReleaseSource.at(tmp_path / "manual")
    item = source.items()[0]
    (tmp_path / "manual" / "simspine.h5").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"; this configuration reads what you bring$"):
        list(examples_of(source, item, needs="what you bring"))


def test_the_readme_explains_each_field() -> None:
    path = Path(simspine_tfds.__file__).with_name("README.md")
    text = path.read_text(encoding="utf-8")
    new = with_field_tables(text, {"clips": CLIP_FIELDS, "pictures": PICTURE_FIELDS})
    assert text == new, "bring it up to date with simspine_tfds.records.with_field_tables"
    assert text.count("| `") == len(CLIP_FIELDS) + len(PICTURE_FIELDS)
    assert "synthetic_images" in text.partition("## Fields")[0]


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "simspine" / "release" / "1.0.0"),
        pytest.raises(SimspineError, match="another process"),
    ):
        prepare(Request("release", tmp_path, FOLDER / "release"))


@pytest.mark.parametrize(
    ("config", "file", "what"),
    [
        ("release", "simspine.h5", "simspine.h5"),
        ("release_npz", "simspine.npz", "simspine.npz"),
        ("pipeline", "trials/S1/S1_Walking_1.npz", "S1_Walking_1.npz"),
    ],
)
def test_a_damaged_manual_file_is_named_with_how_to_get_it(
    tmp_path: Path, config: str, file: str, what: str
) -> None:
    import shutil

    shutil.copytree(FOLDER / config, tmp_path / "manual")
    path = tmp_path / "manual" / file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match=rf"{what}: it .*; valid is .*; this configuration reads"):
        prepare(Request(config, tmp_path / "data", tmp_path / "manual"))
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_missing_manual_files_are_named(tmp_path: Path) -> None:
    for config in ("release", "release_npz", "pipeline"):
        with pytest.raises(
            FileFormatError, match=rf"{tmp_path}/nowhere does not exist.*this configuration reads"
        ):
            prepare(Request(config, tmp_path, tmp_path / "nowhere"))
    with pytest.raises(FileFormatError, match="downloads/manual does not exist or is empty"):
        tfds.load("simspine/release", data_dir=tmp_path)


def test_unknown_names_are_refused_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'synthetic'"):
        prepare(Request("synthetik", tmp_path))
    with pytest.raises(UnknownNameError, match="it has: array_record, tfrecord"):
        prepare(Request("release", tmp_path, file_format="riegeli"))
    with pytest.raises(UnknownNameError, match="Subject 'S2' is not in the synthetic set"):
        prepare(Request("synthetic", tmp_path, subjects=("S2",)))
    with pytest.raises(UnknownNameError, match="Action 'Run' is not in the data"):
        prepare(Request("release", tmp_path, FOLDER / "release", actions=("Run",)))


def test_facts_tell_what_is_there(release_dir: Path, tmp_path: Path) -> None:
    found = facts("release", release_dir)
    assert [(s.name, s.records, s.frames, s.view_frames, s.synthetic) for s in found.splits] == [
        ("train", 2, 24, 48, 0), ("test", 1, 12, 24, 0),
    ]  # fmt: skip
    assert found.data == "recordings of people"
    assert {f.name: f.doc for f in found.features} == {f.name: f.doc for f in CLIP_FIELDS}
    assert all((Path(found.folder) / file).is_file() for file in found.files)
    json.dumps(found.as_dict())
    with pytest.raises(
        SimspineError, match=r"holds no data set; make it with 'simspine dataset build --config pipe"
    ):
        facts("pipeline", tmp_path)


def test_the_jax_path_never_imports_tensorflow(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def without_tensorflow(name, *rest):  # as where it is not installed
    return None if name.partition(".")[0] == "tensorflow" else real(name, *rest)
PathFinder.find_spec = without_tensorflow
import tensorflow_datasets as tfds
import simspine_tfds
from simspine_jax.cli import main
from simspine_jax.datasets import open_clips
data, manual = sys.argv[1:]
where = ["--config", "release", "--data-dir", data]
assert main(["dataset", "build", *where, "--manual-dir", manual, "--quiet"]) == 0
assert main(["dataset", "info", *where]) == 0
assert len(tfds.data_source("simspine/release", split="train", data_dir=data)[0]["times"]) == 12
assert len(open_clips("release", "train", Path(data))) == 2
assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
"""
    words = [sys.executable, "-c", program, str(tmp_path), str(FOLDER / "release")]
    child = subprocess.run(words, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_beam_builds_the_same_bytes(release_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam", reason="apache-beam, the extra beam, is not installed")
    builder = simspine_tfds.Builder(config="release", data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=FOLDER / "release", beam_runner="DirectRunner")
    builder.download_and_prepare(download_config=config)
    where = Path("simspine/release/1.0.0")
    files = {name: digest for name, digest in hashes_of(tmp_path / where).items() if "array_record" in name}
    assert files.items() <= hashes_of(release_dir / where).items()
    assert len(files) == 2
    assert [split.frames for split in facts("release", tmp_path).splits] == [None, None]


def test_options_of_the_reduced_release_are_masked(tmp_path: Path) -> None:
    prepare(Request("release_npz", tmp_path, FOLDER / "release_npz"))
    record: dict[str, Any] = tfds.data_source("simspine/release_npz", split="test", data_dir=tmp_path)[0]
    assert record["keypoints_3d_mask"].sum(axis=1).tolist() == [len(REDUCED_NAMES)] * 12
    assert b"corrected here to R X + t" in record["source"]
