"""A floor under bodies: its law, its derivatives, and bodies that come to rest and slide as they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax import dynamics
from simspine_jax.dynamics import DynamicModel, Floor, Reference, SimulationState, Springs
from simspine_jax.dynamics.contact import points_of
from simspine_jax.errors import ShapeError, UnknownNameError

GRAVITY = 9.80665
STEP_S = 0.002
CORNERS = [[x, -0.1, z] for x in (-0.4, 0.4) for z in (-0.4, 0.4)]


@pytest.fixture(scope="module")
def arm(arm_osim: Path) -> DynamicModel:
    """A free trunk with an arm; 4 kg."""
    return dynamics.load_dynamic_model(arm_osim)


@pytest.fixture(scope="module")
def floor() -> Floor:
    """Four corners of the trunk touch it, so far apart that the arm doesn't tip it over."""
    return Floor(jnp.asarray(CORNERS), bodies=("trunk",) * 4)


def held(model: DynamicModel) -> tuple[Springs, Springs]:
    """Passive joints without springs, and an arm that is held while the root is free."""
    inner = np.array([float(not name.startswith("trunk")) for name in model.kinematics.free_names])
    none = jnp.zeros(len(inner))
    return Springs(none, none), Springs(jnp.asarray(1e4 * inner), jnp.asarray(100 * inner))


def resting(model: DynamicModel, height: float) -> np.ndarray:
    """The default pose with the trunk at this height."""
    q = np.array(model.kinematics.default_q)
    moved = dynamics.centre_of_mass(model, jnp.asarray(np.tile(q, (len(q), 1)) + 0.1 * np.eye(len(q))))
    rise = np.asarray(moved - dynamics.centre_of_mass(model, jnp.asarray(q)))
    q[int(np.argmin(np.abs(rise - [0, 0.1, 0]).sum(axis=1)))] += height
    return q


def run(model: DynamicModel, floor: Floor | None, q: np.ndarray, speeds: np.ndarray, steps: int):
    target = Reference(jnp.tile(jnp.asarray(q), (steps, 1)), jnp.zeros((steps, len(q))))
    start = SimulationState(jnp.asarray(q), jnp.asarray(speeds))
    return dynamics.simulate(model, start, *held(model), target, STEP_S, floor=floor)


def test_points_and_their_derivatives(arm: DynamicModel) -> None:
    floor = Floor(jnp.asarray([[0.1, 0.2, 0.3], [0.0, -0.1, 0.05]]), bodies=("trunk", "hand"))
    q = jnp.asarray(np.random.default_rng(0).normal(0, 0.5, (arm.kinematics.n_free, 3)))
    _, jacobian = points_of(arm, floor, q)
    step = 1e-6
    for column in range(len(q)):
        ends = [points_of(arm, floor, q.at[column].add(sign * step))[0] for sign in (1, -1)]
        np.testing.assert_allclose(jacobian[:, :, column], (ends[0] - ends[1]) / (2 * step), atol=1e-8)
    scaled = replace(arm, scale_factors=jnp.full((len(arm.kinematics.body_names), 3), 2.0))
    twice, _ = points_of(scaled, replace(floor, points=2 * floor.points), jnp.zeros_like(q))
    once, _ = points_of(arm, floor, jnp.zeros_like(q))
    np.testing.assert_allclose(twice, 2 * once, atol=1e-12)


def test_a_body_that_falls_comes_to_rest_under_its_weight(arm: DynamicModel, floor: Floor) -> None:
    q = resting(arm, 0.12)
    out = run(arm, floor, q, np.zeros(len(q)), 800)
    contacts = dynamics.contact_forces(arm, floor, out.q, out.speeds)
    vertical = np.asarray(contacts.forces)[..., 1]
    assert vertical[:5].max() == 0, "nor does it act from afar"
    assert vertical[-100:].sum(axis=1) == pytest.approx(4.0 * GRAVITY, rel=0.01)
    assert np.abs(out.speeds[-1]).max() < 1e-2
    depth = -np.asarray(contacts.positions)[-1, :, 1]
    np.testing.assert_allclose(depth * floor.stiffness, vertical[-1], rtol=0.02)


@pytest.mark.parametrize("step_s", [0.002, 0.01])
def test_a_floor_does_not_hold_back_what_leaves_it(arm: DynamicModel, floor: Floor, step_s: float) -> None:
    q = resting(arm, 0.1 - 0.001)  # a millimetre deep
    target = np.asarray(dynamics.centre_of_mass(arm, jnp.asarray(q)))
    up = np.zeros(len(q))
    rises = [jax.jvp(lambda x: dynamics.centre_of_mass(arm, x), (jnp.asarray(q),), (row,))[1]
             for row in jnp.eye(len(q))]  # fmt: skip
    up[int(np.argmin([np.abs(np.asarray(r) - [0, 1, 0]).sum() for r in rises]))] = 1.0
    steps = round(0.1 / step_s)
    reference = Reference(jnp.tile(jnp.asarray(q), (steps, 1)), jnp.zeros((steps, len(q))))
    start = SimulationState(jnp.asarray(q), jnp.asarray(up))
    ends = [
        dynamics.simulate(arm, start, *held(arm), reference, step_s, floor=under, keep=False)
        for under in (floor, None)
    ]
    rise = [float(dynamics.centre_of_mass(arm, end.q)[1]) - target[1] for end in ends]
    # The push of the millimetre, 0.2 J on 4 kg at 1 m/s, adds less than 0.05 m/s.
    assert rise[0] == pytest.approx(rise[1], abs=0.1 * 0.05 + 1e-4)
    assert rise[0] > rise[1] - 1e-6, "nothing held it back"


def test_friction_stops_a_body_as_coulombs(arm: DynamicModel, floor: Floor) -> None:
    q = resting(arm, 0.1)
    settled = run(arm, floor, q, np.zeros(len(q)), 300)
    pose, moving = np.array(settled.q[-1]), np.zeros(len(q))
    start = np.asarray(dynamics.centre_of_mass(arm, jnp.asarray(pose)))
    slides = [jax.jvp(lambda x: dynamics.centre_of_mass(arm, x), (jnp.asarray(pose),), (row,))[1]
              for row in jnp.eye(len(q))]  # fmt: skip
    moving[int(np.argmin([np.abs(np.asarray(s) - [1, 0, 0]).sum() for s in slides]))] = 1.0
    slippery = replace(floor, friction=0.2)
    out = run(arm, slippery, pose, moving, 600)
    way = np.asarray(dynamics.centre_of_mass(arm, out.q))[-1, 0] - start[0]
    assert way == pytest.approx(1.0 / (2 * 0.2 * GRAVITY), rel=0.1)
    free = run(arm, replace(floor, friction=1e-9), pose, moving, 600)
    assert np.asarray(dynamics.centre_of_mass(arm, free.q))[-1, 0] - start[0] == pytest.approx(1.2, rel=0.01)


def test_bodies_in_a_batch_are_each_alone(arm: DynamicModel, floor: Floor) -> None:
    q = np.stack([resting(arm, height) for height in (0.08, 0.3)])
    speeds = np.zeros_like(q)
    both = run_batch(arm, floor, q, speeds)
    for row in range(2):
        one = run(arm, floor, q[row], speeds[row], 50)
        np.testing.assert_allclose(both.q[:, row], one.q, atol=1e-12)
    forces = dynamics.contact_forces(arm, floor, both.q, both.speeds).forces
    assert forces.shape == (50, 2, 4, 3)
    assert float(jnp.abs(forces[:, 1]).max()) == 0


def run_batch(model: DynamicModel, floor: Floor, q: np.ndarray, speeds: np.ndarray) -> SimulationState:
    target = Reference(jnp.tile(jnp.asarray(q), (50, 1, 1)), jnp.zeros((50, *q.shape)))
    start = SimulationState(jnp.asarray(q), jnp.asarray(speeds))
    return dynamics.simulate(model, start, *held(model), target, STEP_S, floor=floor)


def test_what_touches_no_floor_is_refused(arm: DynamicModel) -> None:
    with pytest.raises(ShapeError, match=r"shape \(4, 3\); valid is \(1, 3\)"):
        Floor(jnp.asarray(CORNERS), bodies=("trunk",))
    q = jnp.asarray(arm.kinematics.default_q)
    with pytest.raises(UnknownNameError, match="tail"):
        dynamics.contact_forces(arm, Floor(jnp.zeros((1, 3)), bodies=("tail",)), q, q)
    with pytest.raises(UnknownNameError, match="calcn_r"):
        dynamics.floor_under_feet(arm)
    with pytest.raises(UnknownNameError, match="ground"):
        dynamics.contact_forces(arm, Floor(jnp.zeros((1, 3)), bodies=("ground",)), q, q)
    with pytest.raises(ShapeError, match="height of the floor is nan"):
        Floor(jnp.zeros((1, 3)), float("nan"), bodies=("trunk",))
    for name in ("stiffness", "friction", "slip_speed"):
        with pytest.raises(ShapeError, match=f"{name} of the floor is -1"):
            Floor(jnp.zeros((1, 3)), bodies=("trunk",), **{name: -1.0})


@pytest.mark.slow
def test_the_spine_models_feet_bear_its_weight(spine_osim: Path) -> None:
    from simspine_jax.kinematics.model import converted_path, load_model

    load_model(spine_osim)  # converts it
    model = dynamics.load_dynamic_model(converted_path(spine_osim, None, ()))
    floor = dynamics.floor_under_feet(model)
    names = list(model.kinematics.free_names)
    q = np.array(model.kinematics.start_q[0])
    soles, _ = points_of(model, floor, jnp.asarray(q)[:, None])
    q[names.index("pelvis_ty")] -= float(soles[:, 1].mean())
    inner = np.array([float(not name.startswith("pelvis")) for name in names])
    none = jnp.zeros(len(q))
    target = Reference(jnp.tile(jnp.asarray(q), (150, 1)), jnp.zeros((150, len(q))))
    out = dynamics.simulate(
        model, SimulationState(jnp.asarray(q), none), Springs(none, none),
        Springs(jnp.asarray(500 * inner), jnp.asarray(30 * inner)), target, STEP_S, floor=floor,
    )  # fmt: skip
    contacts = dynamics.contact_forces(model, floor, out.q, out.speeds)
    weight = float(model.total_mass) * GRAVITY
    assert np.asarray(contacts.forces)[-50:, :, 1].sum(axis=1) == pytest.approx(weight, rel=0.05)
    assert np.asarray(contacts.positions)[..., 1].min() > -0.015
