"""Our own files of a trial: nothing is lost, equal trials give equal bytes, damage is told."""

from __future__ import annotations

import csv
import pickle
import random
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspine_jax.annotations import QualityEvent, SpineTrial, file_name
from simspine_jax.errors import FileFormatError, MissingDependencyError, ShapeError, SimspineError
from simspine_jax.io.layout import ReleaseLayout, action_of, natural_key
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.io.trials import (
    find_trials_in,
    read_quality_csv,
    read_trial,
    write_quality_csv,
    write_quality_parquet,
    write_trial,
)

EVENTS = (
    QualityEvent("ik", 0, 2, "", "the model is far off", "rejected", 52.25, 40.0, "mm"),
    QualityEvent("detections", 1, 1, 'cam "1", left', "nobody\nis seen", "dropped"),
    QualityEvent("quality", 3, 4, "lordosis", "é is too flat", "noted", -1e-300, 0.1, "deg"),
)


def whole(n_frames: int = 5, seed: int = 0, **changes: Any) -> SpineTrial:
    """A trial that has everything; some of it is missing."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        values = rng.normal(size=(n_frames, *shape))
        values[rng.uniform(size=n_frames) < 0.2] = np.nan
        return values

    values: dict[str, Any] = {
        "subject": "S11", "action": "Walking 1", "times": np.arange(n_frames) / 59.94,
        "rate_hz": 60000 / 1001,
        "keypoints": draw(37, 3), "coordinates": draw(62),
        "quality": rng.integers(0, 64, n_frames).astype(np.uint16),
        "triangulated": draw(37, 3), "confidence": draw(37),
        "camera_names": ("54138969", "vörn"), "reprojection_px": draw(2, 37),
        "detections": draw(2, 37, 2), "detection_confidence": draw(2, 37),
        "T_ground_cameras": rng.normal(size=(4, 4)),
        "marker_names": ("C7", "Hip"), "residuals": draw(2), "vertebral_rotations": draw(7, 3),
        "lordosis": draw(), "kyphosis": draw(), "body_lordosis": draw(), "body_kyphosis": draw(),
        "events": EVENTS, "source": "here",
    }  # fmt: skip
    return SpineTrial(**(values | changes))


def same(a: SpineTrial, b: SpineTrial) -> bool:
    """Bit for bit, but for the source."""
    for name in (f.name for f in fields(SpineTrial) if f.name != "source"):
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            if not isinstance(y, np.ndarray) or x.dtype != y.dtype or x.tobytes() != y.tobytes():
                return False
        elif isinstance(y, np.ndarray) or x != y:
            return False
    return True


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 8), st.integers(0, 99), st.sets(st.sampled_from(["events", "lordosis", "residuals"])))
def test_a_trial_reads_back_to_the_last_bit(tmp_path_factory, n_frames, seed, without) -> None:
    empty = {"events": (), "lordosis": None, "residuals": None}
    trial = whole(n_frames, seed, events=(), **{k: empty[k] for k in without if k != "events"})
    trial = trial if "events" in without else replace(trial, events=EVENTS)
    path = tmp_path_factory.mktemp("trial") / "a.npz"
    write_trial(path, trial)
    read = read_trial(path)
    assert same(read, trial)
    assert read.source == str(path)
    assert not same(read, replace(trial, rate_hz=np.nextafter(trial.rate_hz, 0)))


def test_numpy_reads_the_file_without_pickle(tmp_path: Path) -> None:
    trial = whole()
    write_trial(tmp_path / "a.npz", trial)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["coordinates"], trial.coordinates)
        np.testing.assert_array_equal(stored["quality"], trial.quality)
        assert '"subject": "S11"' in str(stored["about"])


def test_equal_trials_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trial(tmp_path / "a.npz", whole())
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_trial(tmp_path / "b.npz", whole(source="there"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    write_trial(tmp_path / "b.npz", whole(seed=1))
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numbers_of_numpy_in_events_are_written(tmp_path: Path) -> None:
    event = QualityEvent("ik", np.int64(1), np.int64(2), "", "x", "noted", np.float32(0.5), np.float64(2))  # pyright: ignore[reportArgumentType]
    write_trial(tmp_path / "a.npz", whole(events=(event,)))
    assert read_trial(tmp_path / "a.npz").events == (event,)
    write_quality_csv(tmp_path / "a.csv", (event,), whole().times)
    assert read_quality_csv(tmp_path / "a.csv") == (event,)


def rewritten(path: Path, **changes: Any) -> None:
    arrays = {name: array for name, array in (read_npz(path) | changes).items() if array is not None}
    write_npz(path, arrays)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"about": None}, "does not say that it is a trial"),
        ({"about": np.array("[]")}, "does not say that it is a trial"),
        ({"about": np.array('{"format": "simspine_jax trial", "version": 2}')}, "its version is '2'"),
        ({"about": np.array('{"format": "simspine_jax trial", "version": 1}')}, "it has an array 'T_ground"),
        ({"keypoints": None}, "it has no array 'keypoints'"),
        ({"keypoint": np.zeros(3)}, "it has an array 'keypoint'"),
        ({"keypoints": np.zeros((4, 37, 3))}, "keypoints of trial S11_Walking_1 has the shape"),
        ({"quality": np.zeros(5)}, "quality holds float64; valid is <u2"),
        ({"times": np.array(["0"] * 5)}, "times holds <U1"),
        ({"lordosis": np.array([None] * 5)}, "'lordosis' holds Python objects"),
    ],
)
def test_what_is_no_trial_is_refused_in_a_sentence(tmp_path: Path, changes: Any, sentence: str) -> None:
    path = tmp_path / "a.npz"
    write_trial(path, whole())
    rewritten(path)
    assert same(read_trial(path), whole())
    rewritten(path, **changes)
    with pytest.raises(FileFormatError, match=rf"a\.npz: .*{sentence}") as caught:
        read_trial(path)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return sys.exit, (7,)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    array = np.array(Bomb(), object)
    np.savez(tmp_path / "a.npz", keypoints=array)
    with pytest.raises(SystemExit):
        pickle.loads(pickle.dumps(array))  # the bomb does go off where one opens it
    with pytest.raises(FileFormatError, match="holds Python objects"):
        read_trial(tmp_path / "a.npz")


def test_mutants_load_right_or_are_refused_in_one_sentence(tmp_path: Path) -> None:
    trial, path = whole(), tmp_path / "a.npz"
    write_trial(path, trial)
    valid, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(valid)
        # Half of the damage goes where the structure is: headers, names, the directory at the end.
        places = range(len(data)), range(len(data) - 1500, len(data)), range(400)
        at = rng.choice(rng.choice(places))
        kind = rng.randrange(3)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.choice((1, 50, len(data)))]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 40)))
        path.write_bytes(data)
        try:
            read, message = read_trial(path), "a.npz"
        except SimspineError as error:
            read, message = trial, str(error)
            refused += 1
        assert same(read, trial)
        assert "a.npz" in message
        assert message.isprintable()
    assert 150 < refused < 300


def test_a_header_that_claims_too_much_takes_no_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(1000))
    content = (tmp_path / "x.npy").read_bytes().replace(b"(1000,)", b"(9**9,)").replace(b"(1000,)", b"")
    huge = (tmp_path / "x.npy").read_bytes().replace(b"'shape': (1000,), }   ", b"'shape': (1 << 40,)}", 1)
    for member in (content, huge, content[:50], b""):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", member)
        with pytest.raises(FileFormatError, match="not an NPZ file of plain arrays"):
            read_npz(tmp_path / "a.npz")


def test_npz_arrays_of_all_orders_and_shapes(tmp_path: Path) -> None:
    arrays = {
        "c": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "zero": np.zeros((0, 3)), "scalar": np.array(2.5), "text": np.array(["a", "bcd"]),
        "empty": np.array(""), "big": np.arange(3, dtype=">f8"),
    }  # fmt: skip
    for write in (write_npz, lambda path, a: np.savez_compressed(path, **a)):
        write(tmp_path / "a.npz", arrays)
        read = read_npz(tmp_path / "a.npz", without=("c",))
        assert read.keys() == arrays.keys() - {"c"}
        for name, array in read.items():
            np.testing.assert_array_equal(array, arrays[name])
            assert array.dtype == arrays[name].dtype


def test_findings_are_a_table(tmp_path: Path) -> None:
    times = np.arange(5) / 50
    write_quality_csv(tmp_path / "q" / "a.csv", EVENTS, times)
    with open(tmp_path / "q" / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == ["rejected", "dropped", "noted"]
    assert (rows[0]["start_s"], rows[0]["end_s"], rows[0]["value"]) == ("0.0", "0.04", "52.25")
    assert (rows[1]["what"], rows[1]["limit"]) == ('cam "1", left', "")
    assert read_quality_csv(tmp_path / "q" / "a.csv") == EVENTS
    write_quality_csv(tmp_path / "none.csv", (), times)
    assert read_quality_csv(tmp_path / "none.csv") == ()
    with pytest.raises(ShapeError, match="spans the frames 3 to 4; valid is within 0 to 3"):
        write_quality_csv(tmp_path / "a.csv", EVENTS, times[:4])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("stage,", "phase,", r"a\.csv:1: the columns are 'phase,"),
        (",rejected,", ",lost,", r"a\.csv:2: .*the outcome is 'lost', not one of rejected"),
        ("52.25", "much", r"a\.csv:2: .*could not convert"),
        (",mm", "", r"a\.csv:2: the row is wrong"),
        ('"cam', '"c"am', "the CSV is broken"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "a.csv"
    write_quality_csv(path, EVENTS, np.arange(5.0))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(FileFormatError, match=sentence):
        read_quality_csv(path)


def test_parquet_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'pyarrow'.*simspine-jax\[parquet\]"):
        write_quality_parquet(tmp_path / "a.parquet", EVENTS, np.arange(5.0))


def test_parquet_has_the_same_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_quality_parquet(tmp_path / "a.parquet", EVENTS, np.arange(5.0))
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [QualityEvent(**{k: v for k, v in r.items() if not k.endswith("_s")}) for r in rows] == list(
        EVENTS
    )


def test_trials_of_a_folder_are_found_by_name(tmp_path: Path) -> None:
    layout = ReleaseLayout(tmp_path)
    for subject, action in (("S11", "Walking 1"), ("S9", "Walking 10"), ("S9", "Walking 2"), ("S9", "Photo")):
        write_trial(layout.trial(subject, action), whole(subject=subject, action=action))
    write_quality_csv(layout.quality("S9", "Photo"), EVENTS, np.arange(5.0))
    (tmp_path / "trials" / "S9" / "notes.npz").touch()
    found = find_trials_in(tmp_path)
    assert [(t.subject, t.action) for t in found] == [
        ("S9", "Photo"), ("S9", "Walking 2"), ("S9", "Walking 10"), ("S11", "Walking 1"),
    ]  # fmt: skip
    assert [t.quality_path is not None for t in found] == [True, False, False, False]
    for stored in found:
        trial = read_trial(stored.path)
        assert (trial.subject, trial.action) == (stored.subject, stored.action)
        assert stored.path.stem == trial.name
    with pytest.raises(FileFormatError, match="it holds no trials/<subject>"):
        find_trials_in(tmp_path / "trials")


def test_paths_are_those_of_the_release() -> None:
    layout = ReleaseLayout(Path("out"))
    paths = [layout.cameras("S1"), layout.model("S1"), layout.hdf5]
    paths += [
        getattr(layout, kind)("S1", "Walking 1") for kind in ("markers", "kinematics", "trial", "quality")
    ]
    assert [path.as_posix() for path in paths] == [
        "out/cameras/Calib_S1.toml",
        "out/models/S1.osim",
        "out/simspine.h5",
        "out/markers/S1/S1_Walking_1.trc",
        "out/kinematics/S1/S1_Walking_1/S1_Walking_1.mot",
        "out/trials/S1/S1_Walking_1.npz",
        "out/quality/S1/S1_Walking_1.csv",
    ]
    assert ReleaseLayout(Path("out"), "positions").markers("S1", "x").parts[1] == "positions"


@pytest.mark.parametrize(
    ("stem", "action"),
    [("Walking_1", "Walking 1"), ("Walking", "Walking"), ("a_b", "a_b"), ("a_b_12", "a_b 12"), ("_1", "_1")],
)
def test_the_action_of_a_file_has_the_files_name(stem: str, action: str) -> None:
    assert action_of(stem) == action
    assert file_name("S1", action) == f"S1_{stem}"


def test_numbers_in_names_sort_by_size() -> None:
    assert sorted(["S11", "S1", "S9", "S5"], key=natural_key) == ["S1", "S5", "S9", "S11"]
