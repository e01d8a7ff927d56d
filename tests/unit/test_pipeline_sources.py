"""Trials from files: which camera is which, at what times, what is refused, and what the digest sees."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from spine_trials import make_trial

from simspine_jax.cli import build_parser
from simspine_jax.cli_simulation import (
    check_arguments,
    coupled_poses,
    read_options,
    read_sources,
    simulate,
    validate,
)
from simspine_jax.errors import MissingDependencyError, SimspineError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.io import MarkerTrajectory, write_trc
from simspine_jax.io.calibration import write_cameras_toml
from simspine_jax.io.keypoints import Keypoints2D, write_keypoints_npz, write_openpose_folder
from simspine_jax.io.layout import ReleaseLayout
from simspine_jax.io.trials import write_trial
from simspine_jax.pipeline.sources import (
    FileTrial,
    SubjectSource,
    action_from,
    check_sources,
    matched_views,
)
from simspine_jax.skeleton import AXIS_NAMES, LUMBAR_LEVELS, LUMBAR_MOTIONS, TRC_NAMES

N_FRAMES = 4
HERE = Path("detections.npz"), Path("calibration.toml")


def cameras(*names: str) -> Cameras:
    n = len(names)
    return Cameras(
        np.tile(np.eye(3), (n, 1, 1)), np.arange(3.0 * n).reshape(n, 3), np.full((n, 2), 1000.0),
        np.full((n, 2), 500.0), np.zeros(n), np.zeros((n, 8)), np.full((n, 2), 1000.0), names,
    )  # fmt: skip


def keypoints(*names: str, **changes) -> Keypoints2D:
    """The first number of each position is 100 times its camera's place, from 1."""
    positions = np.full((N_FRAMES, len(names), len(TRC_NAMES), 2), 1 / 3)
    positions[..., 0] += 100 * np.arange(1, len(names) + 1)[:, None]
    found = Keypoints2D(names, TRC_NAMES, positions, np.full(positions.shape[:-1], 0.7), 50.0)
    return replace(found, **changes)


def order(found: Keypoints2D, known: Cameras, *, in_order: bool = False) -> list[int]:
    """The place among the detections of each camera of the calibration; 0 where there are none."""
    views = matched_views(known, found, *HERE, in_order=in_order)
    return [int(x // 100) if np.isfinite(x) else 0 for x in views.keypoints[0, :, 0, 0]]


# --- which camera is which ---


@pytest.mark.parametrize(
    ("detections", "calibration", "expected"),
    [
        (("cam02_json", "cam01_json"), ("cam_01", "cam_02"), [2, 1]),
        (("Cam 10", "cam_1"), ("cam1", "cam2", "cam10"), [2, 0, 1]),
        (("cam01_2024", "cam02_2024"), ("cam_01", "cam_02"), [1, 2]),
        (("2024_cam01", "2024_cam02"), ("cam_01", "cam_02"), [1, 2]),
        (("a54138969", "a60457274"), ("60457274", "54138969"), [2, 1]),
        (("front_left", "front"), ("front", "frontleft"), [2, 1]),
    ],
)
def test_cameras_go_by_name(detections, calibration, expected) -> None:
    assert order(keypoints(*detections), cameras(*calibration)) == expected


@pytest.mark.parametrize(
    ("detections", "calibration"),
    [
        (("cam10", "cam2"), ("cam1", "cam2")),  # the number goes on behind
        (("11_a", "2_a"), ("1", "2")),
        (("cam110", "cam2"), ("10", "cam2")),  # and before
        (("cam1_2", "cam3"), ("cam12", "cam3")),  # two numbers are not one
        (("cam01", "cam1"), ("cam1", "cam2")),
        (("left_a", "left_b"), ("left", "right")),  # two that are one
        (("left_right", "left"), ("left", "right")),  # one that is two
        (("cam1_cam12", "cam3"), ("cam1", "cam12", "cam3")),
    ],
)
def test_names_that_are_no_cameras_are_refused(detections, calibration) -> None:
    with pytest.raises(SimspineError, match="each named like one of the calibration"):
        matched_views(cameras(*calibration), keypoints(*detections), *HERE)


def test_order_takes_the_place_of_names_only_where_both_have_as_many() -> None:
    known = cameras("b", "a")
    assert order(keypoints("a", "b"), known) == [2, 1]
    assert order(keypoints("a", "b"), known, in_order=True) == [1, 2]
    with pytest.raises(SimspineError, match="as many in both, with --cameras-in-order"):
        matched_views(cameras("a", "b", "c"), keypoints("a", "b"), *HERE, in_order=True)
    with pytest.raises(SimspineError, match="two or more"):
        matched_views(cameras("a"), keypoints("a"), *HERE, in_order=True)


def test_keypoints_have_the_precision_of_jax() -> None:
    found, known = keypoints("a", "b"), cameras("a", "b")
    views = matched_views(known, found, *HERE)
    assert views.keypoints.dtype == views.confidence.dtype == np.float64
    np.testing.assert_array_equal(views.keypoints, found.positions)
    np.testing.assert_array_equal(views.confidence, found.confidence)


def test_keypoints_are_float32_where_jax_is(float32: None) -> None:
    views = matched_views(cameras("a", "b"), keypoints("a", "b"), *HERE)
    assert views.keypoints.dtype == views.confidence.dtype == np.float32


# --- loading ---


@pytest.fixture
def trial(tmp_path: Path) -> FileTrial:
    """Two cameras, 50 Hz, from frame 7 on."""
    write_cameras_toml(tmp_path / "calibration.toml", cameras("a", "b"))
    write_keypoints_npz(tmp_path / "keypoints.npz", keypoints("a", "b", first_frame=7))
    return FileTrial("Walking", tmp_path / "keypoints.npz", tmp_path / "calibration.toml")


@pytest.fixture
def markers(tmp_path: Path) -> Path:
    moved = np.linspace(0, 1, 3 * N_FRAMES).reshape(N_FRAMES, 1, 3)
    trajectory = MarkerTrajectory(("C7",), np.arange(N_FRAMES) / 100, moved, 100.0, "a test")
    write_trc(tmp_path / "body.trc", trajectory)
    return tmp_path / "body.trc"


def test_times_count_from_the_number_of_the_first_frame(trial: FileTrial) -> None:
    loaded = trial.load()
    np.testing.assert_allclose(loaded.times, [0.14, 0.16, 0.18, 0.20], rtol=1e-14)
    assert loaded.rate_hz == 50


def test_frame_numbers_of_folders_count_too(trial: FileTrial, tmp_path: Path) -> None:
    write_openpose_folder(tmp_path / "pose", keypoints("a", "b", first_frame=30))
    loaded = replace(trial, keypoints=tmp_path / "pose", rate_hz=60.0).load()
    np.testing.assert_allclose(loaded.times, np.arange(30, 34) / 60, rtol=1e-14)
    with pytest.raises(SimspineError, match="does not say its frames per second; give --rate"):
        replace(trial, keypoints=tmp_path / "pose").load()


@pytest.mark.parametrize("rate", [50.049, 49.951, None])
def test_a_rate_that_agrees_with_the_file_is_taken_from_it(trial: FileTrial, rate: float | None) -> None:
    assert replace(trial, rate_hz=rate).load().rate_hz == 50


@pytest.mark.parametrize("rate", [50.051, 49.949, 60.0])
def test_a_rate_that_differs_from_the_file_is_refused(trial: FileTrial, rate: float) -> None:
    with pytest.raises(SimspineError) as caught:
        replace(trial, rate_hz=rate).load()
    assert "has 50 frames per second" in str(caught.value)
    assert f"the given rate is {rate:g}" in str(caught.value)


def test_markers_have_their_own_rate(trial: FileTrial, markers: Path) -> None:
    """A subject's rate in a manifest is that of its keypoints."""
    loaded = FileTrial("static", markers=markers, rate_hz=50.0).load()
    assert loaded.rate_hz == 100


# --- digests ---


def test_a_missing_file_fails_its_own_trial_and_not_the_digest(trial: FileTrial, tmp_path: Path) -> None:
    for missing in ({"keypoints": tmp_path / "none.npz"}, {"calibration": tmp_path / "none.toml"},
                    {"markers": tmp_path / "none.trc"}, {"keypoints": tmp_path / "none"}):  # fmt: skip
        other = replace(trial, action="Sitting", **missing)
        source = SubjectSource("S1", (trial, other), static=other)
        before = source.digest
        with pytest.raises(SimspineError, match=r"There is no file or folder .*none"):
            other.load()
        (path,) = missing.values()
        path.write_bytes(b"")
        assert SubjectSource("S1", (trial, other), static=other).digest != before
        path.unlink()
        assert SubjectSource("S1", (trial, other), static=other).digest == before


def test_the_digest_sees_every_file_name_and_setting(trial: FileTrial, tmp_path: Path) -> None:
    folder = tmp_path / "pose"
    write_openpose_folder(folder, keypoints("a", "b"))
    (tmp_path / "elsewhere").mkdir()
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    start = replace(trial, keypoints=folder, rate_hz=50.0)
    digests = [start.digest]
    for name, value in (
        ("rate_hz", 60.0), ("schema", "x"), ("calibration_subject", "S1"), ("cameras_in_order", True),
        ("action", "Sitting"), ("markers", trial.calibration), ("calibration", None),
    ):  # fmt: skip
        digests.append(replace(start, **{name: value}).digest)
    first = next(folder.glob("a/*.json"))
    first.write_text(first.read_text() + " ")
    digests.append(start.digest)
    first.rename(first.with_name("b_0.json"))
    digests.append(start.digest)
    (tmp_path / "elsewhere" / "c_0.json").write_text("{}")
    digests.append(start.digest)
    assert len(set(digests)) == len(digests) == 11


def test_a_static_trial_is_not_another_trial(trial: FileTrial) -> None:
    other = replace(trial, action="static")
    assert SubjectSource("S1", (trial, other)).digest != SubjectSource("S1", (trial,), other).digest


# --- names ---


def subjects(*names: tuple[str, ...]) -> list[SubjectSource]:
    return [SubjectSource(s, tuple(FileTrial(action) for action in actions)) for s, *actions in names]


def test_names_that_differ_pass() -> None:
    check_sources(subjects(("S1", "Walking 1", "Walking 2"), ("S 2", "Walking 1"), ("s.3-a_b", "7")))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([("S/1", "A")], "A subject is called 'S/1'; valid are letters"),
        ([("", "A")], "A subject is called ''"),
        ([("..", "A")], "A subject is called '..'"),
        ([("S1", "walk (1)")], r"A trial of subject S1 is called 'walk (1)'"),
        ([("S1", "A\n")], "A trial of subject S1 is called"),
        (
            [("S1", "Walking 1", "Walking_1")],
            "'S1 / Walking 1' and 'S1 / Walking_1' would have the same files",
        ),
        ([("S 1", "A"), ("S_1", "B")], "The subjects 'S 1' and 'S_1' would have the same files"),
        ([("S1", "A"), ("S1", "B")], "The subjects 'S1' and 'S1'"),
        ([("S", "1 A"), ("S 1", "A")], "'S / 1 A' and 'S 1 / A' would have the same files, S_1_A"),
    ],
)
def test_names_of_the_same_files_and_bad_ones_are_refused(names, sentence: str) -> None:
    with pytest.raises(SimspineError) as caught:
        check_sources(subjects(*names))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "action"),
    [
        ("a/walk (1).trc", "walk _1_"),
        ("gait.trc", "gait"),
        ("_x.npz", "x"),
        ("()", "trial"),
        ("é b.c3d", "b"),
    ],
)
def test_an_action_is_made_of_any_file_name(path: str, action: str) -> None:
    assert action_from(Path(path)) == action
    check_sources(subjects(("S1", action_from(Path(path)))))


# --- the command line ---


def parsed(*words: object) -> argparse.Namespace:
    return build_parser().parse_args(["simulate", "--out", "out", *map(str, words)])


FILES = ("--keypoints", "k.npz", "--calibration", "c.toml")


@pytest.mark.parametrize(
    "words",
    [
        (*FILES, "--rate", 50, "--height", 1.8, "--mass", 80, "--action", "A", "--subject", "S1"),
        (*FILES, "--schema", "BODY_25B", "--cameras-in-order", "--static", "s.trc", "--marker-std", 0),
        ("--markers", "m.trc", "--static", "pose", "--calibration", "c.toml", "--rate", 50),
        ("--manifest", "m.toml", "--marker-std", 0),
        ("--synthetic", "--subjects", "S1", "--actions", "Walking", "--seconds", 2, "--seed", 0, "--scaled"),
    ],
)
def test_options_that_have_an_effect_pass(words) -> None:
    check_arguments(parsed(*words))


ONE_TRIAL = (
    ("--calibration", "c.toml"), ("--rate", 50), ("--schema", "BODY_25B"), ("--cameras-in-order",),
    ("--static", "s.trc"), ("--subject", "S1"), ("--action", "A"), ("--height", 1.8), ("--mass", 80),
)  # fmt: skip
SYNTHETIC = (("--subjects", "S1"), ("--actions", "A"), ("--seconds", 10), ("--seed", 0))


@pytest.mark.parametrize(
    ("mode", "option"),
    [
        *((("--manifest", "m.toml"), option) for option in (*ONE_TRIAL, *SYNTHETIC)),
        *((("--synthetic",), option) for option in ONE_TRIAL),
        *((FILES, option) for option in SYNTHETIC),
        *((("--markers", "m.trc"), option) for option in ONE_TRIAL[:4]),
        *(((*FILES, "--scaled"), option) for option in (("--static", "s.trc"), ("--marker-std", 0))),
    ],
)
def test_options_without_effect_are_refused(mode, option) -> None:
    check_arguments(parsed(*mode))
    with pytest.raises(SimspineError, match=f"^{option[0]} has no effect"):
        check_arguments(parsed(*mode, *option))


def test_a_schema_that_does_not_exist_is_refused_with_any_keypoints() -> None:
    with pytest.raises(UnknownNameError, match=r"Schema 'BODY_25b' .*; did you mean 'BODY_25B'"):
        check_arguments(parsed(*FILES, "--schema", "BODY_25b"))


def test_a_model_without_the_spine_is_refused_with_what_it_must_have(arm_osim: Path, tmp_path: Path) -> None:
    words = ("simulate", "--markers", "m.trc", "--model", str(arm_osim), "--out", str(tmp_path))
    with pytest.raises(SimspineError, match=r"lacks the bodies sacrum, .*; valid is a model with .*head"):
        simulate(build_parser().parse_args(words), bars=None, note=None)


@pytest.mark.parametrize(("option", "package"), [("--report", "matplotlib"), ("--html", "viser")])
def test_pages_need_their_packages_before_any_work(option: str, package: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    check_arguments(parsed("--synthetic"))
    with pytest.raises(MissingDependencyError, match=package):
        check_arguments(parsed("--synthetic", option))


def test_marker_std_is_of_keypoints_and_body_markers() -> None:
    options = read_options(parsed(*FILES, "--marker-std", 12))
    assert (options.marker_std_m, options.optical_std_m) == (0.012, 0.012)
    plain = read_options(parsed(*FILES))
    assert plain.marker_std_m != plain.optical_std_m


def test_one_trial_of_the_command_line() -> None:
    words = ("--markers", "walk (1).trc", "--static", "pose", "--calibration", "h36m_cameras.json")
    (source,) = read_sources(parsed(*words, "--rate", 50), loaded=None)
    check_sources([source])
    assert source.name == "S1"
    assert source.trials == (FileTrial("walk _1_", markers=Path("walk (1).trc")),)
    assert source.static == FileTrial(
        "static", Path("pose"), Path("h36m_cameras.json"), rate_hz=50.0, calibration_subject="S1"
    )


def test_the_viewer_shows_the_coupled_pose_nearest_to_a_free_one(spine_model) -> None:
    rng = np.random.default_rng(5)
    axes = np.zeros((3, len(AXIS_NAMES)))
    here = [AXIS_NAMES.index(name) for name in spine_model.free_names]
    axes[:, here] = np.asarray(spine_model.default_q)
    np.testing.assert_array_equal(coupled_poses(spine_model, axes, free=False), axes[:, here])
    chains = [[f"{level}_{motion}" for level in LUMBAR_LEVELS] for motion in LUMBAR_MOTIONS]
    for chain in chains:
        axes[:, [AXIS_NAMES.index(name) for name in chain]] = np.radians(rng.uniform(-1, 1, (3, len(chain))))
    q = np.asarray(coupled_poses(spine_model, axes, free=True))
    matrix, offset = spine_model.coordinate_map.full_matrix, spine_model.coordinate_map.full_offset
    for chain in chains:
        rows = [spine_model.coordinate_names.index(name) for name in chain]
        (leader,) = [i for i, name in enumerate(spine_model.free_names) if name in chain]
        wanted = axes[:, [AXIS_NAMES.index(name) for name in chain]] - offset[rows]
        best = np.linalg.lstsq(matrix[rows, leader][:, None], wanted.T, rcond=None)[0][0]
        # Two ways to the same least squares in float64.
        np.testing.assert_allclose(q[:, leader], best, atol=1e-12)
        assert np.abs(best - axes[:, here][:, leader]).max() > 1e-3  # the leader's own angle is another
    others = [i for i, name in enumerate(spine_model.free_names) if not any(name in c for c in chains)]
    bounded = jnp.clip(axes[:, here], spine_model.lower, spine_model.upper)
    np.testing.assert_array_equal(q[:, others], bounded[:, others])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    for subject, action in (("S1", "Walking 1"), ("S1", "Walking 2"), ("S5", "Sitting")):
        write_trial(ReleaseLayout(tmp_path).trial(subject, action), make_trial(subject, action, n_frames=30))
    return tmp_path


def validated(stored: Path, *words: str) -> set[str]:
    words = ("validate", str(stored), "-o", str(stored / "v"), "--formats", "csv", "--quiet", *words)
    assert validate(build_parser().parse_args(words)) == 0
    text = "".join(path.read_text() for path in (stored / "v" / "tables").glob("*action*.csv"))
    return {action for action in ("Walking", "Sitting") if action in text}


def test_validation_takes_the_trials_that_are_named(stored: Path) -> None:
    assert validated(stored) == {"Walking", "Sitting"}
    assert validated(stored, "--subjects", "S5") == {"Sitting"}
    assert validated(stored, "--actions", "Walking") == {"Walking"}  # all repetitions
    assert validated(stored, "--actions", "Walking 2", "Sitting") == {"Walking", "Sitting"}


def test_validation_refuses_unknown_names(stored: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Subject 'S2' is not in .*; it has: S1, S5"):
        validated(stored, "--subjects", "S1", "S2")
    with pytest.raises(
        UnknownNameError, match=r"Action 'Run' is not in .*; it has: Walking 1, Walking 2, Sit"
    ):
        validated(stored, "--actions", "Run")
    with pytest.raises(SimspineError, match="with these actions together"):
        validated(stored, "--subjects", "S5", "--actions", "Walking")
