"""Models that the tests of the kinematics share: loaded once, so that compiled programs are shared too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel


@pytest.fixture(scope="session")
def arm_model(arm_osim: Path) -> SpineModel:
    """A free trunk, shoulder and elbow, and a wrist that follows: 8 free coordinates, 12 markers."""
    from simspine_jax.kinematics.model import load_model

    return load_model(arm_osim)


@pytest.fixture(scope="session")
def tangle_model(tmp_path_factory: pytest.TempPathFactory) -> SpineModel:
    """Every kind of dependence in one small model.

    A free trunk; a custom joint of two coordinates, of which one turns, slides by a spline and slides by a
    sine; a hinge that follows a spline of that coordinate, and one that follows a polynomial of that hinge.
    """
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    from simspine_jax.kinematics.model import load_model

    model = osim.Model()
    model.setName("tangle")
    parent, joints = model.getGround(), []
    for i in range(4):
        body = osim.Body(f"b{i}", 1.0, osim.Vec3(0), osim.Inertia(1, 1, 1, 0, 0, 0))
        model.addBody(body)
        near, far = osim.Vec3(0.02, 0.3 * min(i, 1), 0.01), osim.Vec3(0.01, -0.02, 0.03)
        turned = osim.Vec3(0.2, -0.3, 0.4)
        frames = (f"j{i}", parent, near, turned, body, far, turned)
        if i == 0:
            joint = osim.FreeJoint(*frames)
        elif i == 1:
            joint = osim.CustomJoint(*frames, _bent_transform(osim))
        else:
            joint = osim.PinJoint(*frames)
        model.addJoint(joint)
        joints.append(joint)
        for k, (x, z) in enumerate(((0.05, 0), (-0.03, 0.04), (0, -0.05))):
            model.addMarker(osim.Marker(f"b{i}.{k}", body, osim.Vec3(x, 0.1 + 0.02 * k, z)))
        parent = body
    for i, name in ((2, "second"), (3, "third")):
        model.updJointSet().get(f"j{i}").upd_coordinates(0).setName(name)
    spline = _spline(osim, (-2, -1, 0, 1, 2), (0.5, -0.2, 0.1, 0.4, -0.3))
    polynomial = osim.PolynomialFunction(osim.Vector.createFromMat(_floats((0.3, -0.5, 0.2))))
    for independent, dependent, law in (("a", "second", spline), ("second", "third", polynomial)):
        coupler = osim.CoordinateCouplerConstraint()
        coupler.setName(f"{dependent}_follows")
        names = osim.ArrayStr()
        names.append(independent)
        coupler.setIndependentCoordinateNames(names)
        coupler.setDependentCoordinateName(dependent)
        coupler.setFunction(law)
        model.addConstraint(coupler)
    model.finalizeConnections()
    path = tmp_path_factory.mktemp("tangle") / "tangle.osim"
    model.printToXML(str(path))
    return load_model(path)


def _floats(values):
    import numpy as np

    return np.array(values, float)


def _spline(osim, x, y):
    spline = osim.SimmSpline()
    for a, b in zip(x, y, strict=True):
        spline.addPoint(float(a), float(b))
    return spline


def _bent_transform(osim):
    """Coordinate a turns, slides by a spline and slides by a sine; b turns about an oblique axis."""
    transform = osim.SpatialTransform()
    laws = {
        0: ((1, 0.2, 0), "a", osim.LinearFunction(1.0, 0.0)),
        1: ((0, 1, 0.3), "b", osim.LinearFunction(1.0, 0.0)),
        2: ((0.3, 0, 1), "", osim.Constant(0.2)),
        3: ((1, 0, 0), "a", _spline(osim, (-2, -1, 0, 1, 2), (0.05, 0.02, 0.0, 0.03, -0.02))),
        4: ((0, 1, 0), "a", osim.Sine(0.04, 1.5, 0.3, 0.01)),
        5: ((0, 0, 1), "", osim.Constant(0.02)),
    }
    for index, (direction, name, law) in laws.items():
        axis = transform.updTransformAxis(index)
        axis.setAxis(osim.Vec3(*map(float, direction)))
        names = osim.ArrayStr()
        if name:
            names.append(name)
        axis.setCoordinateNames(names)
        axis.set_function(law)
    return transform
