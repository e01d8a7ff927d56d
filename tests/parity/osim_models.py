"""OpenSim models built by chance from every joint, function and constraint that the converter takes."""

import re
from pathlib import Path

import numpy as np
import opensim as osim

osim.Logger.setLevelString("Off")

JOINTS = ("Weld", "Pin", "Slider", "Universal", "Ball", "Gimbal", "Free", "Planar", "Custom")
FUNCTIONS = (
    "Constant",
    "Linear",
    "Polynomial",
    "Multiplier",
    "SimmSpline",
    "GCVSpline1",
    "GCVSpline3",
    "GCVSpline5",
    "GCVSpline7",
    "PiecewiseLinear",
    "PiecewiseConstant",
    "Sine",
    "Step",
)


def vec3(values) -> osim.Vec3:
    return osim.Vec3(*map(float, values))


def body(name: str, rng: np.random.Generator) -> osim.Body:
    inertia = osim.Inertia(*map(float, 0.1 + 0.05 * rng.random(3)), 0, 0, 0)
    return osim.Body(name, float(rng.uniform(0.5, 2)), vec3(rng.normal(0, 0.05, 3)), inertia)


def function(kind: str, rng: np.random.Generator) -> osim.Function:
    """A function with values of the size of an angle or a bone, for arguments of the size of an angle."""
    knots = np.sort(rng.uniform(-2, 2, 8)) + np.linspace(-1, 1, 8)
    values = rng.normal(0, 0.4, 8)
    if kind == "Constant":
        return osim.Constant(float(rng.normal(0, 0.4)))
    if kind == "Linear":
        return osim.LinearFunction(float(rng.normal(0, 0.7)), float(rng.normal(0, 0.2)))
    if kind == "Polynomial":
        return osim.PolynomialFunction(osim.Vector.createFromMat(rng.normal(0, 0.1, int(rng.integers(1, 6)))))
    if kind == "Multiplier":
        inner = function(str(rng.choice(FUNCTIONS)), rng)
        outer = osim.MultiplierFunction(inner, float(rng.normal(0, 0.7)))
        inner._markAdopted()
        return outer
    if kind == "Sine":
        return osim.Sine(*map(float, rng.normal(0, (0.5, 1.5, 1, 0.3))))
    if kind == "Step":
        return osim.StepFunction(float(knots[2]), float(knots[5]), float(values[0]), float(values[1]))
    if kind.startswith("GCVSpline"):
        spline = osim.GCVSpline()
        spline.setDegree(int(kind[-1]))
    else:
        spline = getattr(osim, kind if kind == "SimmSpline" else f"{kind}Function")()
    for x, y in zip(knots, values, strict=True):
        spline.addPoint(float(x), float(y))
    return spline


def names_array(names) -> osim.ArrayStr:
    array = osim.ArrayStr()
    for name in names:
        array.append(name)
    return array


def spatial_transform(prefix: str, rng: np.random.Generator, kinds=FUNCTIONS) -> osim.SpatialTransform:
    """Axes in any direction and of any length; one to four coordinates, some on several axes."""
    transform = osim.SpatialTransform()
    coordinates = [f"{prefix}_q{i}" for i in range(int(rng.integers(1, 5)))]
    axes = rng.permutation(6)
    for i, axis_index in enumerate(axes):
        axis = transform.updTransformAxis(int(axis_index))
        axis.setAxis(vec3(rng.normal(0, 1, 3) * rng.uniform(0.3, 2)))
        if i < len(coordinates):
            names = [coordinates[i]]
        elif rng.random() < 0.5:
            names = [str(rng.choice(coordinates))]
        else:
            names = []
        if names and rng.random() < 0.2 and len(coordinates) > 1:
            names = list(dict.fromkeys([*names, str(rng.choice(coordinates))]))
        axis.setCoordinateNames(names_array(names))
        if len(names) > 1:
            axis.set_function(osim.LinearFunction(osim.ArrayDouble(0.3, 3)))
        elif not names:
            axis.set_function(osim.Constant(float(rng.choice([0.0, 0.4, -0.2]))))
        elif rng.random() < 0.5:
            axis.set_function(osim.LinearFunction(1.0, 0.0))
        else:
            axis.set_function(function(str(rng.choice(kinds)), rng))
    return transform


def joint(kind: str, name: str, parent, child, rng: np.random.Generator, kinds=FUNCTIONS) -> osim.Joint:
    """A joint between two frames, in turned and shifted offset frames of its own."""
    placement = [vec3(rng.normal(0, size, 3)) for size in (0.3, 0.7, 0.3, 0.7)]
    frames = (name, parent, placement[0], placement[1], child, placement[2], placement[3])
    if kind == "Custom":
        return osim.CustomJoint(*frames, spatial_transform(name, rng, kinds))
    return getattr(osim, f"{kind}Joint")(*frames)


def offset_frame(name: str, base, rng: np.random.Generator) -> osim.PhysicalOffsetFrame:
    rotation = osim.Rotation()
    rotation.setRotationToBodyFixedXYZ(vec3(rng.normal(0, 0.8, 3)))
    frame = osim.PhysicalOffsetFrame(name, base, osim.Transform(rotation, vec3(rng.normal(0, 0.2, 3))))
    base.addComponent(frame)
    return frame


def coupler(model, name: str, dependent: str, independents, function_, factor: float = 1.0) -> None:
    constraint = osim.CoordinateCouplerConstraint()
    constraint.setName(name)
    constraint.setDependentCoordinateName(dependent)
    constraint.setIndependentCoordinateNames(names_array(independents))
    constraint.setFunction(function_)
    osim.PropertyHelper.setValueDouble(factor, constraint.updPropertyByName("scale_factor"))
    model.addConstraint(constraint)


def coordinate_names(model) -> list[str]:
    found = model.getCoordinateSet()
    return [found.get(i).getName() for i in range(found.getSize())]


def random_tree(seed: int) -> osim.Model:
    """A tree of three to ten bodies with couplers, locks, offset frames and reversed joints."""
    rng = np.random.default_rng(seed)
    model = osim.Model()
    model.setName(f"tree{seed}")
    places = [model.getGround()]
    for i in range(int(rng.integers(3, 11))):
        link = body(f"b{i}", rng)
        model.addBody(link)
        far = link
        near = places[int(rng.integers(max(0, len(places) - 4), len(places)))]
        for k in range(int(rng.integers(0, 3))):
            far = offset_frame(f"b{i}_f{k}", far, rng)
        ends = (far, near) if rng.random() < 0.25 else (near, far)
        model.addJoint(joint(str(rng.choice(JOINTS)), f"j{i}", *ends, rng))
        for k in range(int(rng.integers(0, 3))):
            place = far if rng.random() < 0.5 else link
            model.addMarker(osim.Marker(f"b{i}_m{k}", place, vec3(rng.normal(0, 0.2, 3))))
        places += [link, far]
    model.addMarker(osim.Marker("on_ground", model.getGround(), vec3(rng.normal(0, 0.2, 3))))
    model.finalizeConnections()
    constrain(model, rng)
    return model


def constrain(model, rng: np.random.Generator) -> None:
    """Locks, prescribes, bounds and couples some coordinates; couplers follow couplers."""
    found = model.updCoordinateSet()
    names = [str(n) for n in rng.permutation(coordinate_names(model))]
    fixed: set[str] = set()
    for name in names:
        coordinate = found.get(name)
        draw = rng.random()
        coordinate.setDefaultValue(float(rng.uniform(-0.5, 0.5)))
        if draw < 0.1:
            coordinate.setDefaultLocked(True)
            fixed.add(name)
        elif draw < 0.2:
            coordinate.setPrescribedFunction(osim.Constant(float(rng.uniform(-0.5, 0.5))))
            coordinate.setDefaultIsPrescribed(True)
            fixed.add(name)
        elif draw < 0.4:
            coordinate.setRangeMin(-0.7)
            coordinate.setRangeMax(1.2)
            coordinate.setDefaultClamped(True)
    for i, name in enumerate(names[1:], start=1):
        if name in fixed or rng.random() > 0.35:
            continue
        if rng.random() < 0.25 and i > 1:
            independents = [str(n) for n in rng.permutation(names[:i])[:2]]
            coefficients = osim.ArrayDouble(0.0, 3)
            for k in range(3):
                coefficients.set(k, float(rng.normal(0, 0.5)))
            law = osim.LinearFunction(coefficients)
        else:
            independents = [str(rng.choice(names[:i]))]
            law = function(str(rng.choice(FUNCTIONS)), rng)
        coupler(model, f"couple_{name}", name, independents, law, float(rng.choice([1.0, 0.5, -2.0])))
    model.finalizeConnections()


def save(model, path: Path) -> Path:
    """Writes the model; both OpenSim and the converter then read the file."""
    model.finalizeConnections()
    model.printToXML(str(path))
    # GCVSpline.addPoint leaves weights and coefficients uninitialised; OpenSim reads the weights and works
    # the coefficients out again, but both must be numbers.
    text = re.sub(r"(?<=<weights>)[^<]*", lambda found: "1 " * len(found[0].split()), path.read_text())
    text = re.sub(r"<GCVSpline.*?</GCVSpline>", _without_coefficients, text, flags=re.DOTALL)
    path.write_text(text)
    return path


def _without_coefficients(spline: re.Match) -> str:
    return re.sub(r"(?<=<coefficients>)[^<]*", lambda found: "0 " * len(found[0].split()), spline[0])
