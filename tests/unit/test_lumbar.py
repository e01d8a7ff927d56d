"""Freed lumbar joints against OpenSim's model without the couplers, and the pull between free and coupled."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.errors import ShapeError, UnknownNameError, UnsupportedModelError
from simspine_jax.io.ik_setup import IKSetup, MarkerTask
from simspine_jax.kinematics.inverse import IKStatus
from simspine_jax.kinematics.lumbar import (
    coupled_to_free,
    departing_lumbar,
    departing_to_free,
    free_lumbar,
    free_to_coupled,
    rhythm_of,
    rhythm_residual,
    rhythm_stiffness,
)
from simspine_jax.skeleton import LUMBAR_LEVELS, LUMBAR_MOTIONS

LUMBAR = [f"{level}_{motion}" for level in LUMBAR_LEVELS for motion in LUMBAR_MOTIONS]
# The model's flexion couplers, and what the abdomen follows by.
RATIOS, ABDOMEN = (1.0, 1.8571, 1.6429, 1.1429, 0.9286, 0.5714), 7.1429
# Metres and rotation matrices; two float64 programs over the same numbers.
PARITY = 1e-12
NOISE_M = 0.005
FRAMES = 10
FLEXION = ("Flex_Ext",)
RANGE = 0.4


def poses(model: ssj.SpineModel, count: int, seed: int) -> jax.Array:
    """Poses inside the bounds, any that is unbounded within 0.6 rad or m of zero."""
    low, high = (np.clip(np.asarray(x), -0.6, 0.6) for x in (model.lower, model.upper))
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, (count, model.n_free)))


def angles(model: ssj.SpineModel, q) -> np.ndarray:
    """Flexion of the six levels, [... 6] rad."""
    columns = [model.coordinate_names.index(f"{level}_Flex_Ext") for level in LUMBAR_LEVELS]
    return np.asarray(ssj.expand_coordinates(model, q))[..., columns]


@pytest.fixture(scope="module")
def freed(spine_model) -> ssj.SpineModel:
    return free_lumbar(spine_model)


def test_coupled_poses_are_poses_of_the_freed_model_to_the_last_bit(spine_model, freed) -> None:
    assert freed.n_free == spine_model.n_free + 15
    assert set(LUMBAR) <= set(freed.free_names)
    q = poses(spine_model, 100, 0)
    same = coupled_to_free(spine_model, q)
    np.testing.assert_array_equal(ssj.expand_coordinates(spine_model, q), ssj.expand_coordinates(freed, same))
    before, after = (ssj.forward_kinematics(m, x) for m, x in ((spine_model, q), (freed, same)))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.ptp(np.asarray(before.markers), axis=0).max() > 1.0


def test_the_freed_model_is_opensims_without_the_couplers(
    spine_osim, paper_markers, spine_model, freed
) -> None:
    followers = [name for name in LUMBAR if name not in spine_model.free_names]
    assert len(followers) == 15
    # The file names one of them without the ending.
    couplers = [name if name == "L1_T12_axial_rotation" else f"{name}_con" for name in followers]
    reference = ssj.load_model(spine_osim, paper_markers, ignore_constraints=couplers)
    assert freed.free_names == reference.free_names
    np.testing.assert_array_equal(freed.default_q, reference.default_q)
    assert freed.root == reference.root
    assert np.all(freed.lower >= reference.lower)
    assert np.all(freed.upper <= reference.upper)
    q = poses(reference, 100, 1)
    np.testing.assert_allclose(
        ssj.expand_coordinates(freed, q), ssj.expand_coordinates(reference, q), atol=PARITY
    )
    for ours, theirs in zip(
        jax.tree.leaves(ssj.forward_kinematics(freed, q)),
        jax.tree.leaves(ssj.forward_kinematics(reference, q)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=PARITY)


def test_bounds_are_the_leaders_through_the_coupler(spine_model, freed) -> None:
    def bounds(model, name):
        i = model.free_names.index(name)
        return np.array([model.lower[i], model.upper[i]])

    leader = bounds(spine_model, "L5_S1_axial_rotation")
    assert np.isfinite(leader).all()
    np.testing.assert_allclose(bounds(freed, "L3_L4_axial_rotation"), 1.0625 * leader, rtol=1e-15)
    np.testing.assert_array_equal(bounds(freed, "L3_L4_Flex_Ext"), [-np.inf, np.inf])
    kept = [name for name in spine_model.free_names if name != "L5_S1_axial_rotation"]
    for name in kept:
        np.testing.assert_array_equal(bounds(freed, name), bounds(spine_model, name))


def test_the_abdomen_follows_the_first_level_alone(freed) -> None:
    q = poses(freed, 5, 2)
    all_of_them = np.asarray(ssj.expand_coordinates(freed, q))
    leader = np.asarray(q)[:, freed.free_names.index("L5_S1_Flex_Ext")]
    np.testing.assert_allclose(
        all_of_them[:, freed.coordinate_names.index("Abs_r3")], ABDOMEN * leader, rtol=1e-14
    )


def test_one_axis_alone_can_be_freed(spine_model) -> None:
    flexion = free_lumbar(spine_model, FLEXION)
    added = set(flexion.free_names) - set(spine_model.free_names)
    assert added == {f"{level}_Flex_Ext" for level in LUMBAR_LEVELS[1:]}
    q = poses(spine_model, 20, 3)
    np.testing.assert_array_equal(
        ssj.expand_coordinates(spine_model, q),
        ssj.expand_coordinates(flexion, coupled_to_free(spine_model, q, FLEXION)),
    )
    assert rhythm_residual(spine_model, axes=FLEXION).matrix.shape == (6, flexion.n_free)


def test_going_back_is_the_nearest_pose_in_rhythm(spine_model, freed) -> None:
    q = poses(spine_model, 20, 4)
    there_and_back = free_to_coupled(spine_model, coupled_to_free(spine_model, q))
    np.testing.assert_allclose(there_and_back, q, atol=1e-15)
    other = np.asarray(poses(freed, 20, 5))
    back = np.asarray(free_to_coupled(spine_model, jnp.asarray(other)))
    columns = [freed.free_names.index(f"{level}_Flex_Ext") for level in LUMBAR_LEVELS]
    nearest = np.linalg.lstsq(np.array(RATIOS)[:, None], other[:, columns].T, rcond=None)[0][0]
    leader = spine_model.free_names.index("L5_S1_Flex_Ext")
    np.testing.assert_allclose(back[:, leader], nearest, atol=1e-14)
    untouched = [i for i, name in enumerate(spine_model.free_names) if name not in LUMBAR]
    same = [freed.free_names.index(spine_model.free_names[i]) for i in untouched]
    np.testing.assert_array_equal(back[:, untouched], other[:, same])
    # Bounds of the coupled model hold.
    twisted = np.asarray(freed.default_q).copy()
    twisted[[freed.free_names.index(f"{level}_axial_rotation") for level in LUMBAR_LEVELS]] = 1.0
    axial = spine_model.free_names.index("L5_S1_axial_rotation")
    assert free_to_coupled(spine_model, jnp.asarray(twisted))[axial] == spine_model.upper[axial]


def test_the_pull_is_the_distance_from_the_rhythm(spine_model, freed) -> None:
    stiffness = 3e-3
    residual = rhythm_residual(spine_model, stiffness)
    nothing = jnp.zeros((freed.n_markers, 3))
    in_rhythm = coupled_to_free(spine_model, poses(spine_model, 1, 6)[0])
    np.testing.assert_allclose(residual(in_rhythm, nothing), 0, atol=1e-16)
    q = np.asarray(poses(freed, 1, 7)[0])
    expected = 0.0
    for motion in LUMBAR_MOTIONS:
        rows = [spine_model.coordinate_names.index(f"{level}_{motion}") for level in LUMBAR_LEVELS]
        unit = np.zeros(spine_model.n_free)
        unit[spine_model.free_names.index(f"L5_S1_{motion}")] = 1.0
        ratios = np.asarray(ssj.expand_coordinates(spine_model, jnp.asarray(unit)))[rows]
        theta = q[[freed.free_names.index(f"{level}_{motion}") for level in LUMBAR_LEVELS]]
        expected += np.linalg.lstsq(ratios[:, None], theta, rcond=None)[1][0]
    assert expected > 0.1
    assert float(jnp.sum(residual(jnp.asarray(q), nothing) ** 2)) == pytest.approx(stiffness * expected)


def test_stiffness_says_how_far_levels_depart(spine_model) -> None:
    # 5 mm against 1 degree: one marker's worth of variance over the number of markers.
    expected = (0.005 / math.radians(1.0)) ** 2 / spine_model.n_markers
    assert rhythm_stiffness(spine_model, math.radians(1.0)) == pytest.approx(expected)
    assert rhythm_stiffness(spine_model, math.radians(1.0), 0.01) == pytest.approx(4 * expected)
    assert rhythm_residual(spine_model).stiffness == rhythm_stiffness(spine_model)


def test_equal_residuals_are_one_program(spine_model) -> None:
    again = [rhythm_residual(spine_model, stiffness) for stiffness in (1e-3, 1e-3, 1e-4)]
    assert again[0] == again[1]
    assert hash(again[0]) == hash(again[1])
    assert again[0] != again[2]


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A pelvis, six coupled lumbar levels with their true flexion ratios, and a thorax; markers on each."""

    model: ssj.SpineModel
    free: ssj.SpineModel
    setup: IKSetup
    q: jax.Array  # [T Q] in rhythm
    rhythmic: np.ndarray  # [T K 3] its markers with 5 mm of noise
    other: jax.Array  # [T F] out of rhythm
    unrhythmic: np.ndarray  # [T K 3] its markers, exact

    def solve(self, markers, stiffness: float | None, **more) -> ssj.IKSolution:
        """Coupled where the stiffness is None."""
        more = {"setup": self.setup, "tolerance": 1e-12} | more
        if stiffness is None:
            return ssj.solve_ik(self.model, markers, **more)
        pull = rhythm_residual(self.model, stiffness, FLEXION)
        return ssj.solve_ik(self.free, markers, residuals=(pull,), **more)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Trunk:
    model = ssj.load_model(trunk_osim(tmp_path_factory.mktemp("trunk") / "trunk.osim"))
    free = free_lumbar(model, FLEXION)
    rng = np.random.default_rng(0)
    time = 0.15 * np.arange(FRAMES)[:, None]
    q = 0.4 * np.sin(time + rng.uniform(0, 6, model.n_free))
    q[:, model.free_names.index("L5_S1_Flex_Ext")] *= 0.3
    q = jnp.asarray(q)
    other = np.asarray(coupled_to_free(model, q, FLEXION)).copy()
    columns = [free.free_names.index(f"{level}_Flex_Ext") for level in LUMBAR_LEVELS]
    other[:, columns] += np.deg2rad(6) * np.sin(time + rng.uniform(0, 6, len(columns)))
    assert np.all((other > np.asarray(free.lower)) & (other < np.asarray(free.upper)))
    other = jnp.asarray(other)
    exact, unrhythmic = (
        np.asarray(ssj.forward_kinematics(m, x).markers) for m, x in ((model, q), (free, other))
    )
    noisy = exact + rng.normal(0, NOISE_M, exact.shape)
    setup = IKSetup(tuple(MarkerTask(name, 1.0) for name in model.marker_names))
    return Trunk(model, free, setup, q, noisy, other, unrhythmic)


def trunk_osim(path):
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    model = osim.Model()
    model.setName("trunk")
    zero = osim.Vec3(0)
    names = ("pelvis", *(f"lumbar{i}" for i in range(5, 0, -1)), "torso", "abdomen")
    bodies = {name: osim.Body(name, 1.0, zero, osim.Inertia(1, 1, 1, 0, 0, 0)) for name in names}
    parent = model.getGround()
    for name, body in bodies.items():
        model.addBody(body)
        place = osim.Vec3(0, 0.04, 0) if name != "pelvis" else zero
        above = bodies["pelvis"] if name == "abdomen" else parent
        kind = osim.FreeJoint if name == "pelvis" else osim.PinJoint
        joint = kind(f"{name}_joint", above, place, zero, body, zero, zero)
        model.addJoint(joint)
        parent = body
        reach = 0.15 if name in ("pelvis", "torso") else 0.04
        for i, (x, y, z) in enumerate(((-1, 0.2, 0), (0.5, 1, 1), (0.5, 1, -1))):
            if name != "abdomen":
                model.addMarker(osim.Marker(f"{name}.{i}", body, osim.Vec3(reach * x, reach * y, reach * z)))
    turning = [f"{level}_Flex_Ext" for level in LUMBAR_LEVELS]
    for name, coordinate in zip(names[1:], (*turning, "Abs_r3"), strict=True):
        model.updJointSet().get(f"{name}_joint").upd_coordinates(0).setName(coordinate)
    leader = model.updCoordinateSet().get(turning[0])
    leader.setRangeMin(-RANGE)
    leader.setRangeMax(RANGE)
    leader.setDefaultClamped(True)
    for dependent, ratio in zip((*turning[1:], "Abs_r3"), (*RATIOS[1:], ABDOMEN), strict=True):
        coupler = osim.CoordinateCouplerConstraint()
        coupler.setName(f"{dependent}_con")
        independent = osim.ArrayStr()
        independent.append(turning[0])
        coupler.setIndependentCoordinateNames(independent)
        coupler.setDependentCoordinateName(dependent)
        coupler.setFunction(osim.LinearFunction(ratio, 0.0))
        model.addConstraint(coupler)
    model.finalizeConnections()
    model.printToXML(str(path))
    return path


@pytest.fixture(scope="module")
def coupled(trunk: Trunk) -> ssj.IKSolution:
    return trunk.solve(trunk.rhythmic, None)


# As good as coupled; levels that depart by 1.5 and by 8 degrees among these 21 markers; nothing at all.
STIFF, FIRM, SOFT, NONE = 1e2, 2e-3, 6e-5, 0.0


@pytest.fixture(scope="module")
def treatments(trunk: Trunk) -> dict[float, ssj.IKSolution]:
    """Motion out of rhythm and motion in rhythm, as two clips' worth of frames, by stiffness."""
    both = np.concatenate([trunk.rhythmic, trunk.unrhythmic])
    return {stiffness: trunk.solve(both, stiffness) for stiffness in (STIFF, FIRM, SOFT, NONE)}


def test_stiff_is_coupled(trunk: Trunk, coupled, treatments) -> None:
    assert (coupled.status == IKStatus.CONVERGED).all()
    stiff = treatments[STIFF]
    assert (stiff.status == IKStatus.CONVERGED).all()
    # The departure left is the markers' pull over the stiffness: of the order of 0.1 m² / 100 m².
    difference = np.abs(angles(trunk.free, stiff.q[:FRAMES]) - angles(trunk.model, coupled.q))
    assert np.rad2deg(difference.max()) < 0.01
    softer = angles(trunk.free, treatments[SOFT].q[:FRAMES]) - angles(trunk.model, coupled.q)
    assert np.rad2deg(np.abs(softer).max()) > 0.5


def test_free_follows_what_coupled_can_not(trunk: Trunk, treatments) -> None:
    free, stiff = (treatments[stiffness].marker_rmse[FRAMES:] for stiffness in (NONE, STIFF))
    assert free.max() < 1e-6
    assert stiff.mean() > 1e-3
    truth = angles(trunk.free, trunk.other)
    np.testing.assert_allclose(angles(trunk.free, treatments[NONE].q[FRAMES:]), truth, atol=1e-4)


def test_between_them_the_way_is_monotone(trunk: Trunk, treatments) -> None:
    unit = np.asarray(rhythm_residual(trunk.model, 1.0, FLEXION).matrix)
    weakening = sorted(treatments, reverse=True)
    departure = [np.mean((treatments[s].q @ unit.T) ** 2) for s in weakening]
    marker_error = [np.mean(treatments[s].marker_rmse ** 2) for s in weakening]
    assert np.all(np.diff(departure) > 0.01 * departure[-1])
    assert np.all(np.diff(marker_error) < -0.01 * marker_error[0])


def test_clips_are_solved_as_a_whole(trunk: Trunk, treatments) -> None:
    smoothing = ssj.Smoothing(acceleration=1e-9, rate_hz=50.0)
    start = coupled_to_free(trunk.model, trunk.q, FLEXION)
    clip = trunk.solve(trunk.unrhythmic, SOFT, smoothing=smoothing, initial_q=start)
    assert (clip.status == IKStatus.CONVERGED).all()
    assert clip.marker_rmse.max() < 1e-3
    # Smoother than frame by frame, for more of the frames' own objective.
    alone = jax.tree.map(lambda x: x[FRAMES:], treatments[SOFT])
    rough, smooth = (np.mean(np.diff(np.asarray(x.q), 2, axis=0) ** 2) for x in (alone, clip))
    assert smooth < rough
    assert np.sum(clip.objective) > np.sum(alone.objective)


def test_gradients_are_central_differences_of_the_solution(trunk: Trunk, treatments) -> None:
    rng = np.random.default_rng(3)
    targets = jnp.asarray(np.concatenate([trunk.rhythmic, trunk.unrhythmic]))
    mix, direction = (jnp.asarray(rng.normal(size=x.shape)) for x in (treatments[SOFT].q, targets))

    def value(markers):
        return jnp.sum(mix * trunk.solve(markers, SOFT).q)

    analytic = float(jnp.sum(jax.grad(value)(targets) * direction))
    step = 1e-5
    numeric = float(value(targets + step * direction) - value(targets - step * direction)) / (2 * step)
    assert abs(numeric) > 0.1
    assert analytic == pytest.approx(numeric, rel=1e-4)


def test_models_without_coupled_levels_are_refused(arm_model, freed) -> None:
    for model, name in ((arm_model, "arm"), (freed, freed.name)):
        with pytest.raises(
            UnsupportedModelError, match=f"No lumbar Flex_Ext angle of the model {name} follow"
        ):
            free_lumbar(model)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: free_lumbar(m, ("Flexion",)), UnknownNameError, "'Flexion'.*Flex_Ext, Lat_Bending, axial"),
        (lambda m: rhythm_residual(m, -1.0), ShapeError, "stiffness is -1.0.*from 0"),
        (lambda m: rhythm_residual(m, math.inf), ShapeError, "stiffness is inf"),
        (lambda m: rhythm_stiffness(m, 0.0), ShapeError, "deviation is 0.0.*positive"),
        (lambda m: rhythm_stiffness(m, 0.1, math.nan), ShapeError, "marker_std is nan"),
        (lambda m: coupled_to_free(m, jnp.zeros(55)), ShapeError, r"\(55,\).*coupled model's 40"),
        (lambda m: free_to_coupled(m, jnp.zeros((2, 40))), ShapeError, r"\(2, 40\).*freed model's 55"),
    ],
)
def test_wrong_arguments_are_named(spine_model, call, error, says: str) -> None:
    with pytest.raises(error, match=says):
        call(spine_model)


def test_departures_are_free_levels_with_the_same_sum(spine_model, freed) -> None:
    wide, rhythm = departing_lumbar(spine_model), rhythm_of(spine_model)
    assert wide.free_names[: spine_model.n_free] == spine_model.free_names
    assert set(wide.free_names) == set(freed.free_names)
    coupled = poses(spine_model, 20, 1)
    away = 0.1 * np.random.default_rng(2).normal(size=(20, len(rhythm.leads)))
    q = jnp.concatenate([coupled, jnp.asarray(away)], axis=1)
    own = departing_to_free(wide.coordinate_map, q)
    before, after = (ssj.forward_kinematics(m, x).markers for m, x in ((wide, q), (freed, own)))
    np.testing.assert_allclose(before, after, atol=PARITY)
    np.testing.assert_allclose(angles(wide, q).sum(-1), angles(spine_model, coupled).sum(-1), atol=PARITY)
    assert np.abs(angles(wide, q) - angles(spine_model, coupled)).max() > 0.1
    still = departing_to_free(wide.coordinate_map, q.at[:, spine_model.n_free :].set(0.0))
    np.testing.assert_allclose(still, coupled_to_free(spine_model, coupled), atol=PARITY)
    np.testing.assert_allclose(rhythm.axes[0].ratios, RATIOS)
    with pytest.raises(ShapeError, match="the map's"):
        departing_to_free(wide.coordinate_map, coupled)


def test_a_model_without_couplers_has_no_rhythm(freed) -> None:
    with pytest.raises(UnsupportedModelError, match="no rhythm to learn"):
        rhythm_of(freed)
