"""Dynamics: how near to OpenSim's, and how fast beside OpenSim and MuJoCo's C library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import DATA, Workplace, require_opensim
from simspine_jax import dynamics
from simspine_jax.dynamics import DynamicModel, Floor, Reference, SimulationState, Springs
from simspine_jax.kinematics.model import converted_path

POSES = 50
"""Random poses in which OpenSim is asked."""
BATCH = 1024
BATCHES = (64, 1024)
ACCELERATOR_BATCHES = (1024, 4096, 16384, 65536)
OPENSIM_FRAMES = 200
STEPS = 20
STEP_S = 0.002
PASSIVE, TRACKING = (5.0, 0.5), (400.0, 20.0)
"""Stiffness and damping of each coordinate, by N m and N, rad and m."""
THREEFOLD = ("knee_angle_r", "knee_angle_l")
"""Coordinates of the spine model that turn a joint about three axes at once.

Simbody's accelerations of such joints don't follow from its own positions (in ``FunctionBased``'s Hdot the
second axis is turned by the third's rate); its mass matrix is right. They stand still where we compare.
"""
RANDOM = "synthetic: random poses, speeds and accelerations"


def mass_matrix_rel_err(place: Workplace) -> Iterator[Measurement]:
    """Mass matrix over all coordinates beside Simbody's, the largest error over the largest entry."""
    for name, model, peer in _pairs(place):
        worst = 0.0
        values, _, _ = _random_motion(model, place.size(POSES, 2), seed=0)
        ours = np.asarray(dynamics.uncoupled_mass_matrix(model, jnp.asarray(values)))
        for row, pose in zip(ours, values, strict=True):
            peer.set_pose(pose)
            worst = max(worst, _relative(row, peer.mass_matrix()))
        yield Measurement(f"fitting/mass_matrix_rel_err/{name}", worst, RANDOM, "Peer: Simbody's calcM.")


def inverse_dynamics_rel_err(place: Workplace) -> Iterator[Measurement]:
    """Generalised forces over all coordinates beside OpenSim's, the largest error over the largest force."""
    for name, model, peer in _pairs(place):
        worst = 0.0
        values, speeds, changes = _random_motion(model, place.size(POSES, 2), seed=1)
        q, qd, qdd = (jnp.asarray(x) for x in (values, speeds, changes))
        ours = np.asarray(dynamics.uncoupled_inverse_dynamics(model, q, qd, qdd).coordinates)
        for i, row in enumerate(ours):
            peer.set_pose(values[i], speeds[i])
            worst = max(worst, _relative(row, peer.inverse_dynamics(changes[i])))
        note, data = "Peer: InverseDynamicsSolver.", RANDOM
        if set(THREEFOLD) <= set(model.coordinate_names) and len(model.coordinate_names) > 40:
            note += " Both knees stand still, whose accelerations Simbody gets wrong."
            data += "; both knees stand still"
        yield Measurement(f"fitting/inverse_dynamics_rel_err/{name}", worst, data, note)


def inverse_dynamics_rate(place: Workplace) -> Iterator[Measurement]:
    """Frames of inverse dynamics a second, in one batch, beside OpenSim's solver frame by frame."""
    require_opensim()
    from osim2mjcf.opensim_dynamics import OpenSimDynamics

    count, theirs = place.size(BATCH, 16), place.size(OPENSIM_FRAMES, 4)
    model = _spine(place)
    rng = np.random.default_rng(2)
    sizes = (0.3, 1.0, 10.0)
    q, speeds, changes = (
        jnp.asarray(rng.normal(0, size, (count, model.kinematics.n_free)), model.dtype) for size in sizes
    )
    run = jax.jit(dynamics.inverse_dynamics)
    peer = OpenSimDynamics(place.spine_source.osim)
    full = rng.normal(0, 0.3, (theirs, len(peer.names)))

    def loop() -> None:
        for row in full:
            peer.set_pose(row, row)
            peer.inverse_dynamics(row)

    best = interleaved(
        {"ours": lambda: jax.block_until_ready(run(model, q, speeds, changes)), "peer": loop}, place.repeats
    )
    detail = {"frames_per_s": count / best["ours"], "peer_frames_per_s": theirs / best["peer"]}
    yield Measurement(
        "fitting/inverse_dynamics_vs_opensim",
        detail["frames_per_s"] / detail["peer_frames_per_s"],
        RANDOM,
        f"Batch {count}, {model.dtype}; peer: InverseDynamicsSolver and setting the state, one thread.",
        detail,
    )


def sim_steps_per_s(place: Workplace) -> Iterator[Measurement]:
    """Steps of forward simulation a second: bodies with passive joints that track a motion."""
    model = _spine(place)
    batches = ACCELERATOR_BATCHES if jax.default_backend() != "cpu" else BATCHES
    for batch in (4,) if place.quick else batches:
        rate = batch * STEPS / interleaved({"sim": _simulation(model, batch)}, place.repeats)["sim"]
        key = "fitting/sim_steps_per_s"
        note = f"{batch} bodies, {STEPS} steps of {STEP_S:g} s, {model.dtype}; couplers and splines exact."
        yield Measurement(
            key if batch == batches[-1] or place.quick else f"{key}/{batch}", rate, RANDOM, note
        )


def sim_with_floor(place: Workplace) -> Iterator[Measurement]:
    """What a floor under the feet costs."""
    model, batch = _spine(place), place.size(BATCH, 4)
    floor = dynamics.floor_under_feet(model)
    runs = {"floor": _simulation(model, batch, floor), "none": _simulation(model, batch)}
    best = interleaved(runs, place.repeats)
    yield Measurement(
        "fitting/sim_floor_ratio", best["none"] / best["floor"], RANDOM,
        f"{batch} bodies, {STEPS} steps, {model.dtype}; points under both feet on a floor at height 0.",
        {"steps_per_s": batch * STEPS / best["floor"]},
    )  # fmt: skip


def sim_vs_mujoco(place: Workplace) -> Iterator[Measurement]:
    """Our steps beside MuJoCo C's rollout on all cores, with its soft constraints for the couplers."""
    batch = place.size(BATCH, 4)
    model = _spine(place)
    ours, theirs = _simulation(model, batch), _rollout(place, batch)
    best = interleaved({"ours": ours, "peer": theirs}, place.repeats)
    steps = batch * STEPS
    yield Measurement(
        "fitting/sim_vs_mujoco_c",
        best["peer"] / best["ours"],
        RANDOM,
        f"{batch} bodies, {STEPS} steps; peer: mujoco.rollout, float64, all cores, the converted MJCF, whose "
        "knees' splines nothing holds; ours in " + str(model.dtype),
        {"steps_per_s": steps / best["ours"], "peer_steps_per_s": steps / best["peer"]},
    )


def _spine(place: Workplace) -> DynamicModel:
    path = place.converted or converted_path(place.spine_source.osim, None, ())
    return dynamics.load_dynamic_model(path)


def _pairs(place: Workplace) -> Iterator[tuple[str, DynamicModel, Any]]:
    """The spine model and gait2392 in float64, each with OpenSim's own."""
    require_opensim()
    from osim2mjcf.opensim_dynamics import OpenSimDynamics

    sources: dict[str, Path] = {"spine": place.spine_source.osim}
    if (gait := DATA / "gait2392" / "model.osim").is_file():
        sources["gait2392"] = gait
    for name, path in sources.items():
        with jax.enable_x64(True):
            yield name, dynamics.load_dynamic_model(path, dtype=jnp.dtype("float64")), OpenSimDynamics(path)


def _random_motion(model: DynamicModel, count: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    shape = (count, len(model.coordinate_names))
    values, speeds, changes = rng.uniform(-1, 1, shape), rng.normal(0, 3, shape), rng.normal(0, 30, shape)
    if len(model.coordinate_names) > 40:
        speeds[:, [model.coordinate_names.index(name) for name in THREEFOLD]] = 0
    return values, speeds, changes


def _relative(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _simulation(model: DynamicModel, batch: int, floor: Floor | None = None) -> Callable[[], None]:
    """A run of `STEPS` steps of bodies that start beside the pose that they track, to be timed."""
    rng = np.random.default_rng(3)
    count = model.kinematics.n_free
    rest = np.asarray(model.kinematics.start_q[0])
    start = SimulationState(
        jnp.asarray(rest + rng.normal(0, 0.05, (batch, count)), model.dtype),
        jnp.zeros((batch, count), model.dtype),
    )
    passive, tracking = (
        Springs(*(jnp.full(count, x, model.dtype) for x in pair)) for pair in (PASSIVE, TRACKING)
    )
    target = jnp.broadcast_to(jnp.asarray(rest, model.dtype), (STEPS, count))
    reference = Reference(target, jnp.zeros_like(target))
    run = partial(dynamics.simulate, keep=False, floor=floor)

    def timed() -> None:
        end = jax.block_until_ready(run(model, start, passive, tracking, reference, STEP_S))
        if not bool(jnp.isfinite(end.q).all()):
            raise SkippedError("the simulation left the finite numbers")

    return timed


def _rollout(place: Workplace, batch: int) -> Callable[[], None]:
    """The same number of steps by MuJoCo's C library, bodies over all threads."""
    from mujoco import rollout

    path = place.converted or converted_path(place.spine_source.osim, None, ())
    m = mujoco.MjModel.from_xml_path(str(path.with_suffix(".xml")))
    m.opt.timestep = STEP_S
    # Joint springs and dampers as ours; a motor for each coordinate would cost little beside the step.
    m.jnt_stiffness[:], m.dof_damping[:] = PASSIVE[0] + TRACKING[0], PASSIVE[1] + TRACKING[1]
    m.qpos_spring[:] = 0.1
    datas = [mujoco.MjData(m) for _ in range(_cores())]
    rng = np.random.default_rng(3)
    size = mujoco.mj_stateSize(m, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
    state = np.zeros((batch, size))
    state[:, 1 : 1 + m.nq] = 0.1 + rng.normal(0, 0.02, (batch, m.nq))

    def timed() -> None:
        rollout.rollout(m, datas, state, nstep=STEPS)

    return timed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
