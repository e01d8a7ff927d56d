"""Masses, mass matrix, centre of mass and inverse dynamics are OpenSim's."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax import dynamics
from simspine_jax.dynamics import DynamicModel
from simspine_jax.io import read_sto
from simspine_jax.io.external_loads import read_load_table
from simspine_jax.kinematics.isolated import scale_isolated
from simspine_jax.motions import Motion, write_motion
from simspine_jax.pipeline.dynamics import run_dynamics

osim = pytest.importorskip("opensim")
from opensim_loads import random_motion, write_loads  # noqa: E402
from osim2mjcf.opensim_dynamics import OpenSimDynamics  # noqa: E402

# Rounding over some thirty bodies in double precision, relative to the largest entry; the bar is 1e-6.
RELATIVE = 1e-12
# Central differences of Simbody's mass matrix with steps of 1e-6.
DIFFERENCED = 1e-6
# OpenSim writes scaled models with so many digits.
SIX_DIGITS = 2e-6
# One coordinate turns the spine model's knees about three axes, which Simbody's accelerations get wrong.
THREEFOLD = ("knee_angle_r", "knee_angle_l")
# OpenSim writes results with eight digits; splines and filters come from other libraries.
TOOL = 1e-6
FRAMES = 8


def near(ours, theirs, tolerance: float = RELATIVE) -> bool:
    """Whether two arrays agree relative to the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    scale = np.abs(theirs).max()
    return scale > 0 and float(np.abs(ours - theirs).max()) <= tolerance * float(scale)


@pytest.fixture(scope="module", params=["gait2392", "spine"])
def pair(request) -> tuple[DynamicModel, OpenSimDynamics, Path]:
    if request.param == "spine":
        path = request.getfixturevalue("spine_osim")
    else:
        path = request.getfixturevalue("shared_data") / "gait2392" / "model.osim"
    return dynamics.load_dynamic_model(path), OpenSimDynamics(path), path


def motion_of(model: DynamicModel, peer: OpenSimDynamics, seed: int) -> tuple[np.ndarray, ...]:
    """Poses over and beyond the coordinates' ranges; knees that Simbody gets wrong stand still."""
    values, speeds, changes = random_motion(model.coordinate_names, np.random.default_rng(seed), FRAMES)
    if len(peer.names) > 40:
        speeds[:, [peer.names.index(name) for name in THREEFOLD]] = 0
    return values, speeds, changes


def test_masses_are_opensims(pair):
    model, peer, _ = pair
    assert model.coordinate_names == tuple(peer.names)
    assert model.kinematics.body_names == tuple(b.getName() for b in peer.bodies)
    for i, body in enumerate(peer.bodies):
        center, inertia = body.getMassCenter(), body.getInertia()
        numbers = [part.get(k) for part in (inertia.getMoments(), inertia.getProducts()) for k in range(3)]
        tensor = model.bodies.inertia[i]
        six = [*np.diag(tensor), tensor[0, 1], tensor[0, 2], tensor[1, 2]]
        assert model.bodies.mass[i] == body.getMass()
        assert model.bodies.center[i].tolist() == [center.get(k) for k in range(3)]
        assert [float(x) for x in six] == numbers
        assert np.array_equal(tensor, tensor.T)


def test_mass_matrix_and_inverse_dynamics_of_all_coordinates(pair):
    model, peer, _ = pair
    values, speeds, changes = motion_of(model, peer, seed=1)
    matrices = dynamics.uncoupled_mass_matrix(model, values)
    forces = dynamics.uncoupled_inverse_dynamics(model, values, speeds, changes).coordinates
    for i in range(FRAMES):
        peer.set_pose(values[i], speeds[i])
        assert near(matrices[i], peer.mass_matrix())
        assert near(forces[i], peer.inverse_dynamics(changes[i]))


def test_joint_reactions_are_simbodys(pair):
    model, peer, _ = pair
    values, speeds, changes = motion_of(model, peer, seed=2)
    ours = dynamics.uncoupled_inverse_dynamics(model, values, speeds, changes)
    for i in range(2):
        peer.set_pose(values[i], speeds[i])
        force, moment = peer.reactions(changes[i])
        assert near(ours.reaction_forces[i], force)
        assert near(ours.reaction_moments[i], moment)


def test_free_coordinates_fold_the_couplers_in(pair):
    """Forces over the free coordinates do the work of all: J^T tau with OpenSim's tau and couplers."""
    model, peer, _ = pair
    rng = np.random.default_rng(3)
    kinematics = model.kinematics
    q, speed, change = (rng.normal(0, size, kinematics.n_free) for size in (0.3, 1.0, 10.0))
    if len(peer.names) > 40:
        speed[kinematics.free_indices(THREEFOLD)] = 0
    ours = dynamics.inverse_dynamics(model, q, speed, change)
    step = 1e-4

    def full(t: float) -> np.ndarray:
        return np.asarray(ssj.expand_coordinates(kinematics, q + t * speed + t**2 / 2 * change))

    values = full(0)
    slope = (full(step) - full(-step)) / (2 * step)
    bend = (full(step) - 2 * values + full(-step)) / step**2
    peer.set_pose(values, slope)
    forces = peer.inverse_dynamics(bend)
    # Differences of the map: the couplers are linear, so only rounding is left, over the square of the step.
    assert near(ours.joints.coordinates, forces, 1e-6)
    jacobian = jax.jacfwd(lambda x: ssj.expand_coordinates(kinematics, x))(q)
    assert near(ours.free, jacobian.T @ forces, 1e-6)
    assert near(dynamics.mass_matrix(model, q), jacobian.T @ peer.mass_matrix() @ jacobian)
    assert near(dynamics.centre_of_mass(model, q), peer.centre_of_mass())


def test_lagranges_equations_with_simbodys_mass_matrix(pair):
    """Also where Simbody's own accelerations are wrong, forces are those of Simbody's own kinetic energy."""
    model, peer, _ = pair
    values, speeds, _ = random_motion(model.coordinate_names, np.random.default_rng(4), 1)
    q, u, step = values[0], speeds[0], 1e-6

    def matrix(at: np.ndarray) -> np.ndarray:
        peer.set_pose(at)
        return peer.mass_matrix()

    slopes = np.stack(
        [(matrix(q + step * e) - matrix(q - step * e)) / (2 * step) for e in np.eye(len(q))], axis=-1
    )
    lagrange = np.einsum("ijk,k,j->i", slopes, u, u) - np.einsum("jki,j,k->i", slopes, u, u) / 2
    still = np.zeros_like(u)
    ours = dynamics.uncoupled_inverse_dynamics(model, q, u, still).coordinates
    ours = ours - dynamics.uncoupled_inverse_dynamics(model, q, still, still).coordinates
    assert near(ours, lagrange, DIFFERENCED)
    peer.set_pose(q, u)
    theirs = peer.inverse_dynamics(still)
    peer.set_pose(q)
    theirs = theirs - peer.inverse_dynamics(still)
    # If this fails, Simbody was mended: then nothing needs to stand still above.
    assert near(theirs, lagrange, DIFFERENCED) == (len(peer.names) < 40)


def test_external_loads(pair, tmp_path):
    model, _, path = pair
    loads = write_loads(tmp_path)
    peer = OpenSimDynamics(path, loads)
    values, speeds, changes = motion_of(model, peer, seed=5)
    times = np.linspace(0.013, 0.447, FRAMES)
    wrenches = dynamics.sample_loads(read_load_table(loads), times)
    ours = dynamics.uncoupled_inverse_dynamics(model, values, speeds, changes, wrenches).coordinates
    bare = dynamics.uncoupled_inverse_dynamics(model, values, speeds, changes).coordinates
    for i in range(FRAMES):
        peer.set_pose(values[i], speeds[i], times[i])
        theirs = peer.inverse_dynamics(changes[i])
        assert near(ours[i], theirs)
        assert not near(bare[i], theirs, 1e-3)


@pytest.mark.parametrize("preserve", [True, False])
def test_scaled_masses_are_the_scale_tools(pair, preserve, tmp_path):
    model, _, path = pair
    names = model.kinematics.body_names
    rng = np.random.default_rng(6)
    factors = rng.uniform(0.8, 1.2, (len(names), 3))
    factors[::3] = factors[::3, :1]  # bodies that keep their shape have a rule of their own
    target = tmp_path / "scaled.osim"
    request = dict(zip(names, factors.tolist(), strict=True))
    scale_isolated(path, target, request, mass_kg=68.5, preserve_mass_distribution=preserve)
    peer = OpenSimDynamics(target)
    scaled = dynamics.scale_dynamic_model(model, factors, 68.5, preserve_mass_distribution=preserve)
    assert near(scaled.total_mass, peer.model.getTotalMass(peer.state))
    for i, body in enumerate(peer.bodies):
        moments, products = body.getInertia().getMoments(), body.getInertia().getProducts()
        assert scaled.bodies.mass[i] == pytest.approx(body.getMass(), rel=SIX_DIGITS)
        diagonal = np.diag(scaled.bodies.inertia[i])
        assert diagonal == pytest.approx([moments.get(k) for k in range(3)], rel=SIX_DIGITS)
        assert scaled.bodies.inertia[i][0, 1] == pytest.approx(products.get(0), rel=SIX_DIGITS)
    values, speeds, changes = motion_of(model, peer, seed=7)
    peer.set_pose(values[0], speeds[0])
    ours = dynamics.uncoupled_inverse_dynamics(scaled, values[0], speeds[0], changes[0]).coordinates
    assert near(ours, peer.inverse_dynamics(changes[0]), 1e-5)
    assert near(dynamics.uncoupled_mass_matrix(scaled, values[0]), peer.mass_matrix(), 1e-5)


def test_the_tool_filters_and_differentiates_alike(shared_data, tmp_path):
    """OpenSim's InverseDynamicsTool as a whole: filter, splines, loads, forces."""
    path = shared_data / "gait2392" / "model.osim"
    model = dynamics.load_dynamic_model(path)
    rng = np.random.default_rng(9)
    # Times that are exact in binary: OpenSim puts samples at other times on a grid before it filters.
    times = np.arange(32) / 64
    phases, noise = (rng.uniform(0, 6, model.kinematics.n_free), rng.normal(0, 0.01, (32, 1)))
    q = 0.3 * np.sin(9 * times[:, None] + phases) + noise
    motion, loads = tmp_path / "walk.mot", write_loads(tmp_path)
    write_motion(motion, model.kinematics, Motion(times, q))
    tool = osim.InverseDynamicsTool()
    tool.setModelFileName(str(path))
    tool.setCoordinatesFileName(str(motion))
    tool.setExternalLoadsFileName(str(loads))
    tool.setLowpassCutoffFrequency(6.0)
    tool.setStartTime(float(times[0]))
    tool.setEndTime(float(times[-1]))
    tool.setResultsDir(str(tmp_path))
    tool.setOutputGenForceFileName("tool.sto")
    excluded = osim.ArrayStr()
    excluded.append("Muscles")
    tool.setExcludedForces(excluded)
    assert tool.run()
    theirs = read_sto(tmp_path / "tool.sto")
    ours = run_dynamics(model, Motion(times, q), read_load_table(loads), cutoff_hz=6.0)
    assert np.allclose(ours.times, theirs.times, atol=1e-9)
    for i, (name, angle) in enumerate(zip(ours.coordinate_names, ours.rotational, strict=True)):
        column = theirs.column(f"{name}_{'moment' if angle else 'force'}")
        assert near(ours.forces[:, i], column, TOOL), name
