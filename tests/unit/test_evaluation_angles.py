"""Errors of angles and of keypoints over many frames against plain NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from simspine_jax.errors import ShapeError
from simspine_jax.evaluation.angles import angle_errors, curvature_table, rotation_table
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.metrics.frames import BLOCK, action_name, frame_errors, in_blocks
from simspine_jax.skeleton import REGIONS

SINGLE = 1e-4  # degrees, of angles in float32
ROUNDING_MM = 1e-3  # mm, of positions of metres in float32
FRAMES = 60


@pytest.fixture(scope="module")
def rotations() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.normal(scale=0.2, size=(FRAMES, 7, 3))
    return truth + random.normal(scale=0.05, size=truth.shape), truth


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    truth = random.normal(scale=0.4, size=(FRAMES, 37, 3)) + np.array([1.0, 0.5, 3.0])
    return truth + random.normal(scale=0.02, size=truth.shape), truth


def test_rotation_errors_are_those_of_plain_numbers(
    spine_model: SpineModel, rotations: tuple[np.ndarray, np.ndarray], points: tuple[np.ndarray, np.ndarray]
) -> None:
    found, truth = rotations
    errors = angle_errors(spine_model, found, truth, *points)
    wanted = np.degrees(np.sqrt(((found - truth) ** 2).mean(axis=0)))
    np.testing.assert_allclose(errors.rms_deg["free"], wanted, atol=SINGLE)
    a, b = (Rotation.from_euler("ZXY", angles.reshape(-1, 3)) for angles in (found, truth))
    between = np.degrees((a.inv() * b).magnitude()).reshape(FRAMES, 7).mean(axis=0)
    np.testing.assert_allclose(errors.geodesic_deg["free"], between, atol=SINGLE)
    assert errors.frames == FRAMES
    assert errors.limit_violations is None


def test_the_coupled_setting_asks_for_the_leaders_alone(
    spine_model: SpineModel, points: tuple[np.ndarray, np.ndarray]
) -> None:
    # Off the rhythm in a direction at right angles to it: nothing of that is left when both are coupled.
    ratio = np.array([1.0, 1.8571, 1.6429, 1.1429, 0.9286, 0.5714])
    truth = np.zeros((FRAMES, 7, 3))
    truth[:, :6, 0] = np.linspace(-0.2, 0.2, FRAMES)[:, None] * ratio
    across = np.array([1.8571, -1.0, 0.0, 0.0, 0.0, 0.0])
    found = truth.copy()
    found[:, :6, 0] += 0.05 * across
    errors = angle_errors(spine_model, found, truth, *points)
    assert errors.rms_deg["free"][0, 0] == pytest.approx(np.degrees(0.05 * 1.8571), abs=SINGLE)
    # The file gives the ratios to four digits.
    assert errors.rms_deg["coupled"][:, 0].max() < 1e-3


def test_missing_angles_are_left_out_and_told(
    spine_model: SpineModel, rotations: tuple[np.ndarray, np.ndarray], points: tuple[np.ndarray, np.ndarray]
) -> None:
    found, truth = (angles.copy() for angles in rotations)
    found[:10] = np.nan
    truth[:, 6] = np.nan
    # A frame counts where rotations or curvature are compared.
    keypoints = points[0].copy()
    keypoints[:5] = np.nan
    errors = angle_errors(spine_model, found, truth, keypoints, points[1])
    wanted = np.degrees(np.sqrt(((found - truth)[10:, :6] ** 2).mean(axis=0)))
    np.testing.assert_allclose(errors.rms_deg["free"][:6], wanted, atol=SINGLE)
    assert np.isnan(errors.rms_deg["free"][6]).all()
    assert errors.frames == FRAMES - 5
    assert np.isfinite(errors.lordosis_deg)
    alone = angle_errors(spine_model, None, truth, keypoints, points[1])
    assert alone.frames == FRAMES - 5
    assert np.isnan(alone.geodesic_deg["free"]).all()
    assert not rotation_table("lifting", (("simple", "truth", alone),), "random numbers").rows


def test_limits_are_counted(
    spine_model: SpineModel, rotations: tuple[np.ndarray, np.ndarray], points: tuple[np.ndarray, np.ndarray]
) -> None:
    q = np.tile(np.asarray(spine_model.default_q), (FRAMES, 1))
    (knee,) = spine_model.free_indices(["knee_angle_r"])
    q[:7, knee] = np.asarray(spine_model.upper)[knee] + 0.1
    assert angle_errors(spine_model, *rotations, *points, q=q).limit_violations == 7


def test_no_frames_are_refused(spine_model: SpineModel) -> None:
    nothing = np.zeros((0, 7, 3)), np.zeros((0, 37, 3))
    with pytest.raises(ShapeError, match="no frames"):
        angle_errors(spine_model, nothing[0], nothing[0], nothing[1], nothing[1])
    with pytest.raises(ShapeError, match="no frames"):
        frame_errors(nothing[1], nothing[1], np.zeros((0, 37), bool), action=[], trial=np.zeros(0, np.int64))


def test_tables_hold_every_setting_and_axis(
    spine_model: SpineModel, rotations: tuple[np.ndarray, np.ndarray], points: tuple[np.ndarray, np.ndarray]
) -> None:
    errors = angle_errors(spine_model, *rotations, *points)
    table = rotation_table("lifting", (("model", "detected", errors),), "random numbers")
    assert [row[2:4] for row in table.rows[:4]] == [
        ("free", "flexion/extension"), ("free", "lateral bending"), ("free", "axial rotation"),
        ("free", "geodesic"),
    ]  # fmt: skip
    assert table.rows[1][4:] == tuple(errors.rms_deg["free"][:, 1])
    assert len(table.rows) == 8
    assert len(table.columns) == 11
    other = curvature_table("lifting", (("model", "detected", errors),), "random numbers")
    assert other.rows[0] == (
        "model", "detected", errors.lordosis_deg, errors.kyphosis_deg, None, FRAMES,
    )  # fmt: skip


def test_keypoint_errors_are_those_of_plain_numbers(points: tuple[np.ndarray, np.ndarray]) -> None:
    found, truth = (x.copy() for x in points)
    known = np.ones(found.shape[:2], bool)
    found[:5, 3] = np.nan
    known[7] = False
    actions = ["Walking 1"] * 30 + ["Sitting_2"] * 30
    errors = frame_errors(found, truth, known, action=actions, trial=np.repeat([0, 1], 30))
    distance = 1e3 * np.linalg.norm(found - truth, axis=-1)
    spine = list(REGIONS["spine"])
    rows = known[:, 0]
    per_frame = np.nanmean(distance[:, spine], axis=1)
    assert errors.mean_mm(False, "spine") == pytest.approx(per_frame[rows].mean(), abs=ROUNDING_MM)
    assert errors.mean_mm(False, "spine", "Sitting") == pytest.approx(per_frame[30:].mean(), abs=ROUNDING_MM)
    assert np.isnan(errors.mean_mm(False, "spine", "Greeting"))
    assert errors.mean_mm(True, "spine") < errors.mean_mm(False, "spine")
    assert errors.coverage() == pytest.approx(1 - 5 / (59 * 37))
    assert errors.coverage("Sitting") == 1
    low, high = errors.interval_mm(False, "all")
    assert low < errors.mean_mm(False, "all") < high


def test_a_root_takes_the_place_out(points: tuple[np.ndarray, np.ndarray]) -> None:
    found, truth = points
    known = np.ones(found.shape[:2], bool)
    about = {"action": ["a"] * FRAMES, "trial": np.zeros(FRAMES, np.int64)}
    moved = frame_errors(found + np.array([0.0, 0.0, 5.0]), truth, known, root=19, **about)
    still = frame_errors(found, truth, known, root=19, **about)
    assert moved.mean_mm(False, "all") == pytest.approx(still.mean_mm(False, "all"), abs=ROUNDING_MM)


def test_blocks_are_padded_and_joined() -> None:
    values = np.arange(BLOCK + 3, dtype=np.float64)[:, None]
    flags = values[:, 0] % 2 == 0
    shapes = set()

    def doubled(x, flag):
        shapes.add((x.shape, x.dtype.name, flag.dtype.name))
        return 2 * x, flag

    twice, same = in_blocks(doubled, values, flags)
    np.testing.assert_array_equal(twice, 2 * values)
    np.testing.assert_array_equal(same, flags)
    assert shapes == {((BLOCK, 1), "float32", "bool")}


@pytest.mark.parametrize(
    ("action", "name"),
    [("Walking 1", "Walking"), ("SittingDown_2", "SittingDown"), ("Photo", "Photo"), ("Trial10", "Trial10")],
)
def test_repetitions_are_one_action(action: str, name: str) -> None:
    assert action_name(action) == name
