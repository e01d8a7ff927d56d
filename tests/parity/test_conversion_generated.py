"""Models built by chance, converted, and held against OpenSim: every joint, function and constraint class.

Each model is compared in random admissible poses (free angles beyond a full turn): our forward kinematics,
and MuJoCo's own with the converted MJCF as a second opinion.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

osim = pytest.importorskip("opensim")

from osim2mjcf import convert  # noqa: E402
from osim2mjcf import verify as parity  # noqa: E402
from osim_models import (  # noqa: E402
    FUNCTIONS,
    JOINTS,
    body,
    coordinate_names,
    coupler,
    function,
    joint,
    names_array,
    offset_frame,
    random_tree,
    save,
    vec3,
)

from simspine_jax import errors  # noqa: E402
from simspine_jax.kinematics.forward import expand_coordinates, forward_kinematics  # noqa: E402
from simspine_jax.kinematics.model import load_model  # noqa: E402

POSES = 50


def check(model, folder, poses=POSES, engine="levels"):
    """Converts ``model``, compares it with OpenSim in ``poses`` poses and returns the loaded conversion."""
    path = save(model, folder / f"{model.getName()}.osim")
    converted = convert(path, folder / "converted")
    loaded = load_model(converted, dtype=jnp.float64)
    source = parity.load_osim(path)
    q = parity.sample_poses(loaded, poses, seed=1)
    wanted = parity.coupled_coordinates(source, loaded, q)
    reference = parity.opensim_poses(source, loaded, wanted)
    full = np.asarray(expand_coordinates(loaded, q))
    assert np.all(np.abs(full - wanted) <= parity.FLOAT64_TOLERANCE_M * np.maximum(1, np.abs(wanted)))
    size = max(1.0, np.abs(reference.body_positions).max())
    qpos = np.asarray(parity.expand_qpos(loaded, q))
    by_c = parity.mujoco_poses(parity.mujoco.MjModel.from_xml_path(str(converted)), loaded, qpos)
    run = jax.jit(forward_kinematics, static_argnames="engine")
    for found in (run(loaded, q, engine=engine), by_c):
        difference = parity.deviation("", found, reference)
        assert difference.within(parity.FLOAT64_TOLERANCE_M * size), difference
    return loaded


def two_bodies(kind, seed=0, kinds=FUNCTIONS):
    """A free body that carries another by a joint of ``kind``, each with a marker."""
    rng = np.random.default_rng(seed)
    model = osim.Model()
    model.setName("two")
    near, far = body("near", rng), body("far", rng)
    model.addBody(near)
    model.addBody(far)
    model.addJoint(joint("Free", "root", model.getGround(), near, rng))
    model.addJoint(joint(kind, "j", near, far, rng, kinds))
    for link in (near, far):
        model.addMarker(osim.Marker(f"on_{link.getName()}", link, vec3(rng.normal(0, 0.2, 3))))
    model.finalizeConnections()
    return model, near, far


@pytest.mark.parametrize("kind", JOINTS)
def test_joint_classes(kind, tmp_path):
    model, _, _ = two_bodies(kind)
    loaded = check(model, tmp_path)
    assert loaded.coordinate_names == tuple(coordinate_names(model))


@pytest.mark.parametrize("kind", JOINTS)
def test_reversed_joints(kind, tmp_path):
    rng = np.random.default_rng(3)
    model = osim.Model()
    model.setName("reversed")
    near, far = body("near", rng), body("far", rng)
    model.addBody(far)
    model.addBody(near)
    model.addJoint(joint(kind, "inner", far, near, rng))
    model.addJoint(joint("Custom", "outer", near, model.getGround(), rng))
    model.addMarker(osim.Marker("m", far, osim.Vec3(0.1, 0.2, 0.3)))
    loaded = check(model, tmp_path)
    assert not loaded.scalable


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_in_joints_and_couplers(kind, tmp_path):
    """The function moves a joint's axis, and a coordinate by a coupler that a second coupler follows."""
    rng = np.random.default_rng(5)
    model, _, far = two_bodies("Custom", seed=5, kinds=(kind,))
    model.addBody(last := body("last", rng))
    model.addJoint(joint("Universal", "k", far, last, rng))
    # A function for sure, beside those that the joint drew.
    transform = osim.SpatialTransform()
    for i in (0, 1):
        transform.updTransformAxis(i).setCoordinateNames(names_array([f"c{i}"]))
        transform.updTransformAxis(i).set_function(osim.LinearFunction(1.0, 0.0))
    transform.updTransformAxis(4).setCoordinateNames(names_array(["c0"]))
    transform.updTransformAxis(4).set_function(function(kind, rng))
    model.addBody(tip := body("tip", rng))
    zero = osim.Vec3(0)
    model.addJoint(osim.CustomJoint("c", last, zero, zero, tip, zero, zero, transform))
    model.finalizeConnections()
    # Two polynomials of degree 7 far beyond their knots would be angles of a million radians.
    leader = model.updCoordinateSet().get("c0")
    leader.setRangeMin(-2.0)
    leader.setRangeMax(2.0)
    leader.setDefaultClamped(True)
    coupler(model, "first", "k_coord_0", ["c0"], function(kind, rng), 0.7)
    coupler(model, "second", "k_coord_1", ["k_coord_0"], function(kind, rng))
    loaded = check(model, tmp_path)
    assert {"k_coord_0", "k_coord_1"}.isdisjoint(loaded.free_names)


def test_chained_couplers_agree_with_opensims_assembly(tmp_path):
    """OpenSim's own solver, given the free coordinates, finds the coupled ones where the map puts them."""
    rng = np.random.default_rng(8)
    model, _, far = two_bodies("Ball")
    model.addBody(last := body("last", rng))
    model.addJoint(joint("Ball", "k", far, last, rng))
    model.finalizeConnections()
    coefficients = osim.ArrayDouble(0.1, 3)
    coefficients.set(0, 0.5)
    coefficients.set(1, -0.3)
    coupler(model, "sum", "j_coord_2", ["j_coord_0", "j_coord_1"], osim.LinearFunction(coefficients))
    coupler(model, "spline", "k_coord_0", ["j_coord_2"], function("SimmSpline", rng), 0.5)
    coupler(model, "line", "k_coord_1", ["k_coord_0"], osim.LinearFunction(2.0, 0.1), -2.0)
    model.finalizeConnections()
    loaded = check(model, tmp_path)
    model.set_assembly_accuracy(1e-12)
    state = model.initSystem()
    found = model.getCoordinateSet()
    free = [i for i in range(found.getSize()) if found.get(i).getName() in loaded.free_names]
    for q in rng.uniform(-0.5, 0.5, (3, loaded.n_free)):
        for i, value in zip(free, q, strict=True):
            found.get(i).setLocked(state, False)
            found.get(i).setValue(state, float(value), False)
            # Locked, so that the solver moves only those that couplers set.
            found.get(i).setLocked(state, True)
        model.assemble(state)
        solved = np.array([found.get(i).getValue(state) for i in range(found.getSize())])
        # The solver's own accuracy, not that of the map.
        np.testing.assert_allclose(np.asarray(expand_coordinates(loaded, q)), solved, atol=1e-6)


def test_locked_and_prescribed_coordinates_are_constants(tmp_path):
    model, _, _ = two_bodies("Gimbal")
    found = model.updCoordinateSet()
    found.get("j_coord_0").setDefaultValue(0.3)
    found.get("j_coord_0").setDefaultLocked(True)
    found.get("j_coord_1").setPrescribedFunction(osim.Constant(-0.4))
    found.get("j_coord_1").setDefaultIsPrescribed(True)
    loaded = check(model, tmp_path)
    assert {"j_coord_0", "j_coord_1"}.isdisjoint(loaded.free_names)
    full = dict(zip(loaded.coordinate_names, expand_coordinates(loaded, loaded.default_q), strict=True))
    assert float(full["j_coord_0"]) == 0.3
    assert float(full["j_coord_1"]) == -0.4


def test_markers_on_nested_offset_frames_and_ground(tmp_path):
    rng = np.random.default_rng(4)
    model, _, far = two_bodies("Pin")
    frame = offset_frame("shelf", far, rng)
    nested = offset_frame("box", frame, rng)
    model.addMarker(osim.Marker("in_box", nested, osim.Vec3(0.1, 0, 0.2)))
    model.addMarker(osim.Marker("on_floor", model.getGround(), osim.Vec3(1, 0, 2)))
    model.addBody(last := body("last", rng))
    model.addJoint(joint("Custom", "k", nested, last, rng))
    loaded = check(model, tmp_path)
    assert {"in_box", "on_floor"} <= set(loaded.marker_names)


def test_a_body_without_a_joint_floats(tmp_path):
    """OpenSim gives it a free joint of its own."""
    rng = np.random.default_rng(6)
    model = osim.Model()
    model.setName("floating")
    base, tip = body("base", rng), body("tip", rng)
    model.addBody(tip)
    model.addBody(base)
    model.addJoint(joint("Pin", "pin", base, tip, rng))
    assert check(model, tmp_path).n_free == 7


def notes_of(converted):
    return json.loads(converted.with_suffix(".json").read_text())["notes"]


def test_redundant_and_unenforced_constraints_are_noted(tmp_path):
    model, near, far = two_bodies("Weld")
    here = osim.Transform()
    state = model.initSystem()
    model.realizePosition(state)
    between = near.findTransformBetween(state, far)
    model.addConstraint(osim.WeldConstraint("held", near, here, far, between))
    idle = osim.PointConstraint(near, osim.Vec3(0.1), far, osim.Vec3(0.2))
    idle.setName("idle")
    idle.set_isEnforced(False)
    model.addConstraint(idle)
    path = save(model, tmp_path / "m.osim")
    text = " ".join(notes_of(convert(path, tmp_path)))
    assert "idle is not enforced" in text
    assert "held joins bodies that the joints already hold together" in text


def tree_seeds():
    """Thirty-six trees: the first twelve in every run."""
    return [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 36))]


@pytest.mark.parametrize("seed", tree_seeds())
def test_random_trees(seed, tmp_path):
    check(random_tree(seed), tmp_path)


def test_random_trees_reach_every_kind():
    """The draws of the test above hold every joint class, and chains, locks and reversed joints."""
    kinds, functions, reversed_joints, nested = set(), set(), 0, 0
    for seed in range(12):
        model = random_tree(seed)
        model.initSystem()
        for j in model.getJointList():
            kinds.add(j.getConcreteClassName())
            child = j.getChildFrame().findBaseFrame().getName()
            parent = j.getParentFrame().findBaseFrame().getName()
            reversed_joints += child == "ground" or (parent != "ground" and int(parent[1:]) > int(child[1:]))
        for component in model.getComponentsList():
            if (frame := osim.PhysicalOffsetFrame.safeDownCast(component)) is not None:
                above = frame.getParentFrame()
                nested += above.getAbsolutePathString() != above.findBaseFrame().getAbsolutePathString()
            if (c := osim.CoordinateCouplerConstraint.safeDownCast(component)) is not None:
                functions.add(c.getFunction().getConcreteClassName())
    assert kinds == {f"{kind}Joint" for kind in JOINTS}
    assert len(functions) >= 9
    assert reversed_joints >= 5
    assert nested >= 5


@pytest.mark.parametrize("seed", [0, 3])
def test_mjx_engine_gives_the_same_numbers(seed, tmp_path):
    path = save(random_tree(seed), tmp_path / "tree.osim")
    loaded = load_model(convert(path, tmp_path), dtype=jnp.float64)
    q = parity.sample_poses(loaded, 3, seed=2)
    ours = jax.jit(forward_kinematics)(loaded, q)
    theirs = forward_kinematics(loaded, q, engine="mjx")
    assert parity.deviation("mjx", theirs, ours).within(1e-12)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_float32(seed, tmp_path):
    path = save(random_tree(seed), tmp_path / "tree.osim")
    loaded = load_model(convert(path, tmp_path), dtype=jnp.float32)
    assert parity.compare(path, loaded, poses=POSES).within(parity.FLOAT32_TOLERANCE_M)


REFUSED_JOINTS = {
    "EllipsoidJoint": lambda a, b, z: osim.EllipsoidJoint("odd", a, z, z, b, z, z, osim.Vec3(1, 2, 3)),
    "ScapulothoracicJoint": lambda a, b, z: osim.ScapulothoracicJoint(
        "odd", a, z, z, b, z, z, osim.Vec3(1, 2, 3), osim.Vec2(0.1, 0.1), 0.1
    ),
    "ConstantCurvatureJoint": lambda a, b, z: osim.ConstantCurvatureJoint(
        "odd", a, z, z, b, z, z, osim.Vec3(1, 1, 1), 1.0
    ),
}


@pytest.mark.parametrize("kind", REFUSED_JOINTS)
def test_joint_classes_without_an_exact_form_are_refused(kind, tmp_path):
    model, _, far = two_bodies("Weld")
    model.addBody(last := body("last", np.random.default_rng(0)))
    model.addJoint(REFUSED_JOINTS[kind](far, last, osim.Vec3(0)))
    with pytest.raises(errors.UnsupportedModelError, match=f"joint class {kind} at /jointset/odd"):
        convert(save(model, tmp_path / "m.osim"), tmp_path)


def bad_constraints(near, far):
    """One of each constraint class that has no exact form."""
    found = [
        osim.PointConstraint(near, osim.Vec3(0.1), far, osim.Vec3(0.2)),
        osim.ConstantDistanceConstraint(near, osim.Vec3(0.1), far, osim.Vec3(0.2), 1.0),
        osim.PointOnLineConstraint(near, osim.Vec3(1, 0, 0), osim.Vec3(0), far, osim.Vec3(0)),
        osim.WeldConstraint("weld", near, osim.Transform(), far, osim.Transform()),
    ]
    for i, constraint in enumerate(found):
        constraint.setName(f"bad{i}")
    return found


def test_all_problems_are_named_in_one_message(tmp_path):
    model, near, far = two_bodies("Ball")
    for constraint in bad_constraints(near, far):
        model.addConstraint(constraint)
    found = model.updCoordinateSet()
    found.get("j_coord_0").setPrescribedFunction(osim.LinearFunction(1.0, 0.0))
    found.get("j_coord_0").setDefaultIsPrescribed(True)
    coupler(model, "one", "j_coord_1", ["j_coord_2"], osim.LinearFunction(1.0, 0.0))
    coupler(model, "two", "j_coord_2", ["j_coord_1"], osim.LinearFunction(2.0, 0.1))
    expression = osim.ExpressionBasedFunction("x*x", names_vector(["x"]))
    coupler(model, "three", "root_coord_5", ["root_coord_4"], expression)
    path = save(model, tmp_path / "m.osim")
    with pytest.raises(errors.UnsupportedModelError) as caught:
        convert(path, tmp_path)
    message = str(caught.value)
    for part in (
        "PointConstraint at /constraintset/bad0",
        "ConstantDistanceConstraint at /constraintset/bad1",
        "PointOnLineConstraint at /constraintset/bad2",
        "WeldConstraint at /constraintset/bad3",
        "/jointset/j/j_coord_0 is prescribed as a function of time",
        "j_coord_1 -> j_coord_2 -> j_coord_1 form a circle",
        "/constraintset/three: the function class ExpressionBasedFunction",
    ):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "m.xml").exists()


def names_vector(names):
    vector = osim.StdVectorString()
    for name in names:
        vector.append(name)
    return vector


def test_constraints_are_left_out_on_request(tmp_path):
    model, near, far = two_bodies("Ball")
    for constraint in bad_constraints(near, far):
        model.addConstraint(constraint)
    path = save(model, tmp_path / "m.osim")
    names = [f"bad{i}" for i in range(4)]
    notes = notes_of(convert(path, tmp_path, ignore_constraints=names))
    assert len([n for n in notes if n.endswith("was left out on request")]) == 4
    with pytest.raises(errors.UnknownNameError, match=r"'bad9' is not in the model two; .* has: bad0, bad1"):
        convert(path, tmp_path, ignore_constraints=["bad9"])


def test_loops_are_refused(tmp_path):
    model, _, far = two_bodies("Ball")
    model.addJoint(joint("Pin", "back", model.getGround(), far, np.random.default_rng(0)))
    with pytest.raises(errors.UnsupportedModelError, match=r"closes a kinematic loop$"):
        convert(save(model, tmp_path / "m.osim"), tmp_path)


def test_two_couplers_of_one_coordinate_are_refused(tmp_path):
    model, _, _ = two_bodies("Ball")
    for name in ("one", "two"):
        coupler(model, name, "j_coord_1", ["j_coord_2"], osim.LinearFunction(1.0, 0.0))
    with pytest.raises(errors.UnsupportedModelError, match="two sets j_coord_1, which one sets too"):
        convert(save(model, tmp_path / "m.osim"), tmp_path)
