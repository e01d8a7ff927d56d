"""Dynamics: equations that hold by themselves, derivatives, readers and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import signal

import simspine_jax as ssj
from simspine_jax import dynamics
from simspine_jax.cli import main
from simspine_jax.dynamics import DynamicModel, ExternalWrenches, Reference, SimulationState, Springs
from simspine_jax.errors import FileFormatError, ShapeError, UnknownNameError
from simspine_jax.io import Storage, read_sto, write_sto
from simspine_jax.io.external_loads import read_external_loads, read_load_table
from simspine_jax.motions import Motion, write_motion
from simspine_jax.pipeline.dynamics import CHUNK_FRAMES, peak_table, run_dynamics, write_forces

# Rounding in float64, relative to the largest entry.
RELATIVE = 1e-11
# Central differences in float64; the bar of the project.
GRADIENT = 1e-4


def near(ours, theirs, tolerance: float = RELATIVE) -> bool:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    scale = np.abs(theirs).max()
    return scale > 0 and float(np.abs(ours - theirs).max()) <= tolerance * float(scale)


@pytest.fixture(scope="module")
def arm(arm_osim: Path) -> DynamicModel:
    """A free trunk, an arm and a hand whose angle follows the elbow's: eight free coordinates of nine."""
    return dynamics.load_dynamic_model(arm_osim)


def moving(model: DynamicModel, *batch: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(0, size, (*batch, model.kinematics.n_free)) for size in (0.6, 2.0, 10.0))


def test_forces_are_lagranges_and_the_mass_matrix_is_their_slope(arm):
    q, u, a = moving(arm)

    def energies(q):
        return dynamics.mass_matrix(arm, q), dynamics.centre_of_mass(arm, q)

    matrix, _ = energies(q)
    matrix_slope, center_slope = jax.jit(jax.jacfwd(energies))(q)  # the coordinate comes last
    lagrange = matrix @ a + jnp.einsum("ijk,k,j->i", matrix_slope, u, u)
    lagrange = lagrange - jnp.einsum("jki,j,k->i", matrix_slope, u, u) / 2
    lagrange = lagrange - arm.total_mass * arm.gravity @ center_slope
    # Forces with and without an acceleration of each coordinate alone, and of all.
    tries = np.concatenate([np.zeros((1, len(q))), np.eye(len(q)), a[None]])
    rows = np.broadcast_to(q, tries.shape), np.broadcast_to(u, tries.shape), tries
    forces = dynamics.inverse_dynamics(arm, *rows).free
    assert near(forces[-1], lagrange)
    assert near(forces[1:-1] - forces[0], matrix)
    assert near(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_mujoco_agrees_where_nothing_is_coupled(arm_osim, tmp_path):
    """The converted tree in MuJoCo C, with the coupler left out on both sides."""
    from osim2mjcf.convert import convert

    path = convert(arm_osim, tmp_path, ignore_constraints=["wrist_follows"])
    model = dynamics.load_dynamic_model(path)
    q, u, a = moving(model, seed=1)
    m = mujoco.MjModel.from_xml_path(str(path))
    m.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
    data = mujoco.MjData(m)
    place = [model.kinematics.free_names.index(name) for name in model.kinematics.qpos_names]
    data.qpos[:], data.qvel[:], data.qacc[:] = q[place], u[place], a[place]
    mujoco.mj_inverse(m, data)
    dense = np.zeros((m.nv, m.nv))
    mujoco.mj_fullM(m, data, dense)
    ours = dynamics.inverse_dynamics(model, q, u, a).free
    assert near(ours[np.array(place)], data.qfrc_inverse)
    assert near(dynamics.mass_matrix(model, q)[np.ix_(place, place)], dense)


def test_gradients_are_those_of_central_differences(arm):
    q, u, a = moving(arm, seed=2)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=arm.kinematics.n_free)

    def score(q, u, a, mass, force):
        bodies = dataclasses.replace(arm.bodies, mass=mass)
        loads = wrench(force)
        result = dynamics.inverse_dynamics(dataclasses.replace(arm, bodies=bodies), q, u, a, loads)
        return result.free @ weights + jnp.sum(result.joints.reaction_moments**2)

    arguments = [jnp.asarray(x) for x in (q, u, a, arm.bodies.mass, rng.normal(0, 10, 3))]
    gradients = jax.jit(jax.grad(score, argnums=(0, 1, 2, 3, 4)))(*arguments)
    run = jax.jit(score)
    for k, gradient in enumerate(gradients):
        way = rng.normal(size=gradient.shape)
        step = 1e-5
        ahead, behind = ([*arguments] for _ in range(2))
        ahead[k], behind[k] = arguments[k] + step * way, arguments[k] - step * way
        slope = (run(*ahead) - run(*behind)) / (2 * step)
        assert float(jnp.vdot(gradient, way)) == pytest.approx(float(slope), rel=GRADIENT)


def wrench(force, point=(0.1, 0.2, 0.3), batch: tuple[int, ...] = ()) -> ExternalWrenches:
    shape = (*batch, 1, 3)
    force, point = (jnp.broadcast_to(jnp.asarray(x, float), shape) for x in (force, point))
    return ExternalWrenches(force, point, jnp.zeros(shape), ("radius",), ("ground",), ("radius",))


def test_a_load_does_the_work_of_its_point(arm):
    q, u, a = moving(arm, seed=4)
    force, point = np.array([30.0, -20.0, 10.0]), np.array([0.1, 0.2, 0.3])
    radius = arm.kinematics.body_names.index("radius")

    def place(q):
        poses = ssj.forward_kinematics(arm.kinematics, q)
        return poses.body_positions[radius] + poses.body_rotations[radius] @ point

    bare = dynamics.inverse_dynamics(arm, q, u, a).free
    loaded = dynamics.inverse_dynamics(arm, q, u, a, wrench(force, point)).free
    assert near(bare - loaded, jax.jacfwd(place)(q).T @ force)


def test_batches_are_frames_and_float32_is_near(arm, float32):
    with jax.enable_x64(True):
        q, u, a = moving(arm, 2, 3, seed=5)
        loads = wrench((1.0, 2.0, 3.0), batch=(2, 3))
        whole = dynamics.inverse_dynamics(arm, q, u, a, loads)
        for i, j in np.ndindex(2, 3):
            single = wrench((1.0, 2.0, 3.0))
            one = dynamics.inverse_dynamics(arm, q[i, j], u[i, j], a[i, j], single)
            assert near(whole.free[i, j], one.free)
            assert near(whole.joints.reaction_moments[i, j], one.joints.reaction_moments)
        assert dynamics.mass_matrix(arm, q).shape == (2, 3, arm.kinematics.n_free, arm.kinematics.n_free)
        assert dynamics.centre_of_mass(arm, q).shape == (2, 3, 3)
        bare = np.asarray(dynamics.inverse_dynamics(arm, q, u, a).joints.coordinates)
    small = dynamics.inverse_dynamics(arm, *(x.astype(np.float32) for x in (q, u, a)))
    assert small.free.dtype == jnp.float32
    assert near(small.joints.coordinates, bare, 1e-4)


def springs(model: DynamicModel, stiffness: float, damping: float) -> Springs:
    size = model.kinematics.n_free
    return Springs(jnp.full(size, stiffness), jnp.full(size, damping))


def test_accelerations_are_the_inverse_of_forces(arm):
    q, u, a = moving(arm, 3, seed=7)
    forces = dynamics.inverse_dynamics(arm, q, u, a).free
    assert near(dynamics.accelerations(arm, q, u, forces), a, 1e-9)


def test_a_step_is_mujocos(arm_osim, tmp_path):
    """Without springs a step is MuJoCo's semi-implicit Euler step."""
    from osim2mjcf.convert import convert

    path = convert(arm_osim, tmp_path, ignore_constraints=["wrist_follows"])
    model = dynamics.load_dynamic_model(path)
    q, u, _ = moving(model, seed=8)
    m = mujoco.MjModel.from_xml_path(str(path))
    m.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
    m.opt.timestep = 0.01
    data = mujoco.MjData(m)
    place = [model.kinematics.free_names.index(name) for name in model.kinematics.qpos_names]
    data.qpos[:], data.qvel[:] = q[place], u[place]
    mujoco.mj_step(m, data, 5)
    none, still = springs(model, 0.0, 0.0), jnp.zeros((5, len(q)))
    ours = dynamics.simulate(model, SimulationState(q, u), none, none, Reference(still, still), 0.01)
    assert ours.q.shape == (5, len(q))
    assert near(ours.q[-1][np.array(place)], data.qpos, 1e-9)
    assert near(ours.speeds[-1][np.array(place)], data.qvel, 1e-9)


def test_bodies_follow_their_reference_and_fall_without_one(arm):
    steps, step = 200, 0.005
    times = step * np.arange(1, steps + 1)
    phases = np.arange(arm.kinematics.n_free)
    reference = Reference(
        jnp.asarray(0.3 * np.sin(3 * times[:, None] + phases)),
        jnp.asarray(0.9 * np.cos(3 * times[:, None] + phases)),
    )
    start = SimulationState(*(jnp.tile(x[0], (2, 1)) for x in (reference.q, reference.speeds)))
    passive = springs(arm, 1.0, 0.1)
    # Springs far stiffer than an explicit step of this length could hold.
    held = dynamics.simulate(arm, start, passive, springs(arm, 1e6, 1e4), reference, step)
    assert held.q.shape == (steps, 2, arm.kinematics.n_free)
    assert np.abs(held.q[:, 1] - reference.q).max() < 0.02
    none = springs(arm, 0.0, 0.0)
    last = dynamics.simulate(arm, start, none, none, reference, step, keep=False)
    height = dynamics.centre_of_mass(arm, start.q)[0, 1] - dynamics.centre_of_mass(arm, last.q)[0, 1]
    drop = 0.5 * 9.80665 * (steps * step) ** 2

    def rise(q, u):
        return jax.jvp(lambda q: dynamics.centre_of_mass(arm, q)[1], (q,), (u,))[1]

    drop = drop - float(rise(start.q[0], start.speeds[0])) * steps * step
    assert float(height) == pytest.approx(drop, rel=0.02)  # first order in the step
    with pytest.raises(ShapeError, match="the reference has the shapes"):
        dynamics.simulate(arm, start, none, none, Reference(reference.q, reference.speeds[1:]), step)


def test_what_does_not_fit_is_refused(arm):
    q, u, a = moving(arm)
    with pytest.raises(ShapeError, match="the last axis must be the 8 free coordinates"):
        dynamics.mass_matrix(arm, q[:-1])
    with pytest.raises(ShapeError, match=r"accelerations has shape \(7,\); it must be"):
        dynamics.inverse_dynamics(arm, q, u, a[:-1])
    with pytest.raises(ShapeError, match="force of the loads has shape"):
        dynamics.inverse_dynamics(arm, q, u, a, wrench((1.0, 0.0, 0.0), batch=(2,)))
    lost = dataclasses.replace(wrench((1.0, 0.0, 0.0)), bodies=("tail",))
    with pytest.raises(UnknownNameError, match="body 'tail' is not in the model arm"):
        dynamics.inverse_dynamics(arm, q, u, a, lost)
    scaled = dynamics.scale_dynamic_model(arm, np.full(4, 1.1))
    with pytest.raises(ShapeError, match="scaled already"):
        dynamics.scale_dynamic_model(scaled, np.full(4, 1.1))
    with pytest.raises(ShapeError, match="one per body"):
        dynamics.scale_dynamic_model(arm, np.full(3, 1.1))


def test_a_sidecar_without_the_uncoupled_tree_is_refused(arm_osim, tmp_path):
    from osim2mjcf.convert import convert

    sidecar = convert(arm_osim, tmp_path).with_suffix(".json")
    document = json.loads(sidecar.read_text())
    del document["uncoupled"]
    sidecar.write_text(json.dumps(document))
    ssj.load_model(sidecar)  # kinematics does without
    with pytest.raises(FileFormatError, match="converted without what dynamics need"):
        dynamics.load_dynamic_model(sidecar)
    document["bodies"][0]["mass"] = -1.0
    document["uncoupled"] = {"joint_positions": [], "axes": [[0, 0, 1]], "terms": []}
    sidecar.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="three numbers for the axis of each joint position"):
        dynamics.load_dynamic_model(sidecar)
    document["uncoupled"]["axes"] = []
    sidecar.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="body 'trunk' has a mass"):
        dynamics.load_dynamic_model(sidecar)


def test_scaled_masses_follow_by_gradient(arm):
    factors = np.array([[1.1, 1.1, 1.1], [0.9, 1.2, 1.0], [1.0, 0.8, 0.9], [1.3, 1.3, 1.3]])

    def total(factors):
        bodies = dynamics.scale_mass_properties(arm.bodies, factors, 70.0, preserve_mass_distribution=False)
        return jnp.sum(bodies.inertia * jnp.arange(9.0).reshape(3, 3)) + jnp.sum(bodies.mass**2)

    gradient, step = jax.grad(total)(jnp.asarray(factors)), 1e-6
    # Bodies 1 and 2: those with equal factors have another rule beside them than at them.
    for body, axis in ((1, 0), (1, 1), (2, 2)):
        change = np.zeros_like(factors)
        change[body, axis] = step
        slope = (total(factors + change) - total(factors - change)) / (2 * step)
        assert float(gradient[body, axis]) == pytest.approx(float(slope), rel=GRADIENT)


def test_derivatives_are_those_of_a_polynomial_and_a_sine():
    times = np.linspace(0, 2, 201)
    line = np.stack([1 + 2 * times, 3 * times**2], axis=1)
    found = dynamics.differentiate(times, line, None)
    # A parabola has no third derivative, so the natural spline is exact.
    assert np.allclose(found.values, line, atol=1e-12)
    assert np.allclose(found.speeds[:, 1], 6 * times, atol=1e-9)
    assert np.allclose(found.accelerations, [0, 6], atol=1e-6)
    wave = np.sin(2 * np.pi * times)[:, None]
    smooth = dynamics.differentiate(times, wave, 6.0)
    inner = slice(40, -40)
    # Two passes of third order leave 1 - (1/6)^6 of a 1 Hz wave.
    assert np.allclose(smooth.values[inner], wave[inner] / (1 + 6.0**-6), atol=2e-4)
    assert np.allclose(smooth.accelerations[inner], -((2 * np.pi) ** 2) * wave[inner], atol=0.02)


def test_the_filter_is_scipys_away_from_the_ends():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(400, 3))
    ours = dynamics.lowpass_iir(values, rate_hz=100.0, cutoff_hz=6.0)
    above, below = signal.butter(3, 6.0 / 50)
    theirs = signal.filtfilt(above, below, values, axis=0)
    assert np.allclose(ours[150:-150], theirs[150:-150], atol=1e-6)
    with pytest.raises(ShapeError, match="below half of 100 Hz"):
        dynamics.lowpass_iir(values, rate_hz=100.0, cutoff_hz=50.0)


def test_uneven_times_are_put_on_a_grid():
    even = np.linspace(0, 2, 201)
    uneven = even + 0.002 * np.sin(40 * even)
    smooth = dynamics.differentiate(uneven, np.sin(3 * uneven)[:, None], 10.0)
    inner = slice(40, -40)
    assert np.allclose(smooth.accelerations[inner, 0], -9 * np.sin(3 * uneven[inner]), atol=0.02)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.arange(5) / 10, "has 5 frames; its accelerations need at least 6"),
        (np.delete(np.arange(20) / 10, 8), r"from 0.7 to 0.9 s in one step where others take 0.1 s"),
    ],
)
def test_motions_without_accelerations_are_refused(times, message):
    with pytest.raises(ShapeError, match=message):
        dynamics.differentiate(times, np.zeros((len(times), 1)), None)


LOADS = """<OpenSimDocument Version="40000"><ExternalLoads name="loads"><objects>{}</objects>
<datafile>{}</datafile></ExternalLoads></OpenSimDocument>"""
FORCE = (
    "<ExternalForce name='{name}'>{extra}<applied_to_body>/bodyset/radius</applied_to_body>"
    "<force_identifier>f_</force_identifier><point_identifier>p_</point_identifier></ExternalForce>"
)


def write_loads(folder: Path, objects: str, columns: str = "f_x f_y f_z p_x p_y p_z") -> Path:
    names = tuple(columns.split())
    times = np.linspace(0, 1, 11)
    data = np.sin(times[:, None] + np.arange(len(names)))
    write_sto(folder / "grf.mot", Storage("grf", names, times, data, False))
    path = folder / "loads.xml"
    path.write_text(LOADS.format(objects, "grf.mot"))
    return path


def test_loads_are_read_and_interpolated(tmp_path):
    off = FORCE.format(name="off", extra="<appliesForce>false</appliesForce>")
    gone = FORCE.format(name="gone", extra="<isDisabled>true</isDisabled>")
    path = write_loads(tmp_path, FORCE.format(name="on", extra="") + off + gone)
    loads = read_external_loads(path)
    (force,) = loads.forces
    assert (force.name, force.body, force.force_body, force.torque) == ("on", "radius", "ground", None)
    table = read_load_table(path)
    sampled = dynamics.sample_loads(table, np.array([0.0, 0.55, 1.0]))
    assert np.allclose(sampled.force[:, 0, 1], np.sin(np.array([0.0, 0.55, 1.0]) + 1), atol=1e-3)
    assert np.array_equal(sampled.torque, np.zeros((3, 1, 3)))
    with pytest.raises(FileFormatError, match=r"has loads from 0 to 1 s, the motion is from 0\.5 to 1\.5 s"):
        dynamics.sample_loads(table, np.array([0.5, 1.5]))
    gap = dataclasses.replace(table, force=np.where(np.arange(11)[:, None, None] == 4, np.nan, table.force))
    with pytest.raises(FileFormatError, match=r"has a gap at 0\.4 s"):
        dynamics.sample_loads(gap, np.array([0.5]))


BAD_LOADS = {
    "PrescribedForce": ("<PrescribedForce name='p'/>", "f_x f_y f_z"),
    "has no applied_to_body": (
        "<ExternalForce name='a'><force_identifier>f_</force_identifier></ExternalForce>",
        "f_x",
    ),
    "neither a force_identifier nor a torque_identifier": (
        "<ExternalForce name='a'><applied_to_body>radius</applied_to_body></ExternalForce>",
        "f_x",
    ),
    "a point_identifier and no force_identifier": (
        FORCE.format(name="a", extra="<torque_identifier>t</torque_identifier>").replace(
            "<force_identifier>f_</force_identifier>", ""
        ),
        "f_x",
    ),
    "2 columns begin with 'f_'": (FORCE.format(name="a", extra=""), "f_x f_y p_x p_y p_z"),
    "Column beginning with 'p_' is not in": (FORCE.format(name="a", extra=""), "f_x f_y f_z"),
    "no load is switched on": ("", "f_x"),
}


@pytest.mark.parametrize(("message", "bad"), BAD_LOADS.items(), ids=BAD_LOADS.keys())
def test_bad_loads_are_refused_by_name(message, bad, tmp_path):
    with pytest.raises((FileFormatError, UnknownNameError), match=message):
        read_load_table(write_loads(tmp_path, *bad))


def test_a_clip_of_several_chunks_is_each_frames_own(arm):
    count = CHUNK_FRAMES + 3
    times = np.arange(count) / 100
    q = np.sin(times[:, None] * np.arange(1, arm.kinematics.n_free + 1))
    seen: list[tuple[int, int]] = []
    whole = run_dynamics(arm, Motion(times, q), progress=lambda *x: seen.append(x))
    result = run_dynamics(arm, Motion(times, q), time_range=(0.1, 9.0))
    assert seen == [(CHUNK_FRAMES, count), (count, count)]
    assert near(whole.forces[10:], result.forces)
    smooth = dynamics.differentiate(times, q, 6.0)
    i = 40
    one = dynamics.inverse_dynamics(arm, smooth.values[i], smooth.speeds[i], smooth.accelerations[i])
    assert result.times[i - 10] == pytest.approx(times[i])
    assert near(result.forces[i - 10], one.joints.coordinates)
    assert result.levels == ()
    assert set(result.root) == set(arm.coordinate_names[:6])


def test_the_command_writes_moments_and_tells_the_peaks(spine_osim, tmp_path, capsys):
    model = dynamics.load_dynamic_model(spine_osim)
    times = np.arange(30) / 50
    q = np.tile(np.asarray(model.kinematics.default_q, float), (30, 1))
    q[:, model.kinematics.free_indices(["L5_S1_Flex_Ext"])[0]] = -0.1 * np.sin(6 * times)
    write_motion(tmp_path / "bow.mot", model.kinematics, Motion(times, q))
    out = tmp_path / "bow_forces.sto"
    words = ["dynamics", str(spine_osim), str(tmp_path / "bow.mot"), "-o", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "L4_L5" in printed
    assert "At the root the motion needs up to" in printed
    table = read_sto(out)
    assert table.in_degrees is False
    assert "N m" in table.name
    moment = table.column("L4_L5_Flex_Ext_moment")
    reaction = table.select([f"L4_L5_IVDjnt_on_lumbar4_in_lumbar4_m{axis}" for axis in "xyz"])
    assert table.column("pelvis_ty_force").mean() == pytest.approx(float(model.total_mass) * 9.80665, rel=0.1)
    # Flexion turns about z of the joint: the moment over it is that part of the reaction.
    assert np.allclose(reaction.data[:, 2], moment, rtol=0.05, atol=1.0)
    assert main([*words, "--cutoff", "-1"]) == 2
    assert "valid is above 0, or 0 for no filter" in capsys.readouterr().err
    assert main([*words, "--time", "3", "4"]) == 2
    assert "no frame between 3 and 4 s; valid are times from 0 to 0.58 s" in capsys.readouterr().err


def test_peaks_are_those_of_the_table(spine_model, spine_osim, tmp_path):
    model = dynamics.load_dynamic_model(spine_osim)
    q = np.tile(np.asarray(model.kinematics.default_q, float), (12, 1))
    result = run_dynamics(model, Motion(np.arange(12) / 50, q), cutoff_hz=None, source="standing")
    assert [level.name for level in result.levels] == ["L5_S1", "L4_L5", "L3_L4", "L2_L3", "L1_L2", "L1_T12"]
    assert [level.body for level in result.levels][::5] == ["lumbar5", "torso"]
    table = peak_table(result)
    forces = [row[-1] for row in table.rows]
    assert forces == sorted(forces, reverse=True)  # standing, each level bears what is above it
    write_forces(tmp_path / "stand.sto", result)
    assert len(read_sto(tmp_path / "stand.sto").columns) == 62 + 6 * 6
