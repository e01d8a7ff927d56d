"""Reads an OpenSim model through the OpenSim API into plain data that the MJCF writer takes."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import mujoco
import numpy as np
import opensim as osim

from osim2mjcf.functions import TermTable, apply, combine, is_constant
from simspine_jax.errors import FileFormatError, UnknownNameError, UnsupportedModelError, one_line
from simspine_jax.io.sidecar import Affine, CoordinateDescription, MarkerDescription, Term

X, Y, Z = np.eye(3)
# Axes of the joints with fixed axes: (rotations, translations), in the order of their coordinates.
# OpenSim sets Simbody to Euler angles, so that Ball, Gimbal and Free rotate body-fixed about x, y, z.
FIXED_AXES: dict[str, list[tuple[str, np.ndarray]]] = {
    "WeldJoint": [],
    "PinJoint": [("hinge", Z)],
    "SliderJoint": [("slide", X)],
    "UniversalJoint": [("hinge", X), ("hinge", Y)],
    "BallJoint": [("hinge", X), ("hinge", Y), ("hinge", Z)],
    "GimbalJoint": [("hinge", X), ("hinge", Y), ("hinge", Z)],
    "FreeJoint": [("hinge", X), ("hinge", Y), ("hinge", Z), ("slide", X), ("slide", Y), ("slide", Z)],
    "PlanarJoint": [("hinge", Z), ("slide", X), ("slide", Y)],
}
AXIS_LABELS = ("rotation1", "rotation2", "rotation3", "translation1", "translation2", "translation3")
# What OpenSim's Python raises: its C++ exceptions, and names in a file that are not UTF-8.
OPENSIM_ERRORS = (RuntimeError, UnicodeDecodeError)
# Models begin with their tag, so that a piece of the file tells.
PEEKED_BYTES = 100_000
BLANK_OR_MARK = b" \t\r\n\xef\xbb\xbf"  # white space and UTF-8's byte order mark
OTHER_DOCUMENTS = {
    "InverseKinematicsTool": "an inverse kinematics setup",
    "ScaleTool": "a scale setup",
    "MarkerSet": "a marker set",
    "mujoco": "an MJCF, which is converted already",
}
OTHER_FILES = {
    ".trc": "a marker file",
    ".c3d": "a marker file",
    ".mot": "a motion",
    ".sto": "a motion",
    ".json": "JSON",
}
MOTIONS = {1: "rotational", 2: "translational", 3: "coupled"}


@dataclass(frozen=True)
class Axis:
    """One scalar motion of a joint, about or along ``direction`` in the joint's parent frame.

    ``label`` is the coordinate's name where the motion is the coordinate itself, else the axis' name.
    """

    label: str
    kind: str
    direction: np.ndarray
    value: Affine
    scale_axis: tuple[float, ...] | None


@dataclass(frozen=True)
class Frame:
    """A frame fixed to a body: ``R_body_frame`` and the position of its origin in the body."""

    body: str
    rotation: np.ndarray
    position: np.ndarray
    plain: bool


@dataclass(frozen=True)
class Joint:
    """A joint from its parent frame to its child frame, as OpenSim's file has them."""

    name: str
    path: str
    parent: Frame
    child: Frame
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Body:
    """Mass properties; the inertia is (xx, yy, zz, xy, xz, yz) about the mass centre."""

    name: str
    mass: float
    mass_center: tuple[float, ...]
    inertia: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """Everything of an OpenSim model that kinematics and dynamics need.

    ``uncoupled_joints`` have all coordinates on their own, whatever couplers and locks say.
    """

    name: str
    path: Path
    sha256: str
    gravity: tuple[float, ...]
    bodies: tuple[Body, ...]
    joints: tuple[Joint, ...]
    coordinates: tuple[CoordinateDescription, ...]
    terms: tuple[Term, ...]
    markers: tuple[MarkerDescription, ...]
    notes: tuple[str, ...]
    scalable: bool
    model: osim.Model
    uncoupled_joints: tuple[Joint, ...]
    uncoupled_terms: tuple[Term, ...]


def quiet() -> None:
    """Keeps OpenSim from printing and from leaving ``opensim.log`` in the working folder."""
    osim.Logger.setLevelString("Off")
    osim.Logger.removeFileSink()


def explain(error: BaseException) -> str:
    """The message of an OpenSim exception without the places in its source, as one line."""
    text = re.sub(r"std::exception in '[^']*':", "", str(error))
    text = re.sub(r"\s*(Thrown at .*|In Object .*|\(Required condition .*)", "", text)
    text = re.sub(r"SimTK Exception thrown at \S+:|Error detected by Simbody method", "", text)
    return one_line(text) or type(error).__name__


def load_osim(path: Path, marker_file: Path | None = None) -> osim.Model:
    """Opens a model, replaces its markers by those of ``marker_file`` if given, and builds its system.

    Raises:
        FileFormatError: OpenSim can't read or build it.
    """
    quiet()
    if not path.is_file():
        raise FileFormatError(f"There is no file {path}; give the path of an OpenSim model (.osim)")
    _refuse_other_files(path)
    try:
        model = osim.Model(str(path.resolve()))
        if loose := _frames_without_parent(model):
            raise FileFormatError(f"{path}: the frame {loose[0]} lacks its socket_parent")
        if marker_file is not None:
            _replace_markers(model, marker_file)
        model.initSystem()
    except OPENSIM_ERRORS as error:
        raise FileFormatError(f"OpenSim can't read {path}: {explain(error)}") from None
    return model


def _refuse_other_files(path: Path) -> None:
    """Refuses what is no OpenSim model by its first tags; what OpenSim says of it would not help."""
    with path.open("rb") as stream:
        content = stream.read(PEEKED_BYTES)
    tags: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda tag, _: tags.append(tag)
    with contextlib.suppress(expat.ExpatError, ValueError):
        parser.Parse(content)
    held = tags[1:2] if tags[:1] == ["OpenSimDocument"] else tags[:1]
    if held and held[0] != "Model":
        kind = f"{OTHER_DOCUMENTS.get(held[0], 'XML')} ({held[0]})"
    elif not tags and not content.lstrip(BLANK_OR_MARK).startswith(b"<"):
        kind = OTHER_FILES.get(path.suffix.lower(), "no XML")
    else:
        return
    raise FileFormatError(f"{path} is not an OpenSim model: it is {kind}; valid is a model's .osim file")


def _frames_without_parent(model: osim.Model) -> list[str]:
    """Offset frames that hang on nothing: OpenSim 4.6 searches for their base without end."""
    frames = [osim.PhysicalOffsetFrame.safeDownCast(c) for c in model.getComponentsList()]
    return [
        f.getAbsolutePathString()
        for f in frames
        if f is not None and not f.getSocket("parent").getConnecteePath()
    ]


def _replace_markers(model: osim.Model, marker_file: Path) -> None:
    """Puts the file's markers in place of the model's own."""
    from simspine_jax.io.marker_set import read_marker_set

    definitions = read_marker_set(marker_file)
    bodies = {body.getName(): body for body in model.getBodyList()}
    model.updMarkerSet().clearAndDestroy()
    for definition in definitions:
        if definition.body == "ground":
            frame = model.getGround()
        elif definition.body in bodies:
            frame = bodies[definition.body]
        else:
            raise UnknownNameError(
                f"Marker '{definition.name}' of {marker_file}: body",
                definition.body,
                f"the model {model.getName()}",
                bodies,
            )
        marker = osim.Marker(definition.name, frame, osim.Vec3(*map(float, definition.location)))
        model.addMarker(marker)
    model.finalizeConnections()


# What is not finite is reported at the end, by name.
@np.errstate(invalid="ignore", over="ignore")
def read_model(
    path: str | Path, markers: str | Path | None = None, ignore_constraints: Collection[str] = ()
) -> Source:
    """Reads ``path`` (any version that OpenSim opens) and checks that all of it can be exact.

    Raises:
        FileFormatError: OpenSim can't read the file.
        UnsupportedModelError: elements that have no exact form, all named in one message.
    """
    path = Path(path)
    model = load_osim(path, Path(markers) if markers is not None else None)
    problems: list[str] = []
    notes: list[str] = []
    table = TermTable()
    couplers = _read_couplers(model, set(ignore_constraints), problems, notes)
    coordinates, expressions = _read_coordinates(model, couplers, table, problems)
    joints = [_read_joint(joint, expressions, table, problems) for joint in model.getJointList()]
    alone, alone_table = {name: Affine(coefficients={name: 1.0}) for name in expressions}, TermTable()
    # What can't be exact here has been told above.
    uncoupled = [_read_joint(joint, alone, alone_table, []) for joint in model.getJointList()]
    halves = _split_bodies(model)
    problems += _loops(joints, [b.getName() for b in model.getBodyList() if b.getName() not in halves])
    marker_list, markers_plain = _read_markers(model)
    frames_plain = all(j.parent.plain and j.child.plain for j in joints)
    gravity = model.getGravity()
    source = Source(
        name=model.getName() or path.stem,
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        gravity=tuple(gravity.get(i) for i in range(3)),
        bodies=tuple(_read_body(b) for b in model.getBodyList()),
        joints=tuple(joints),
        coordinates=tuple(coordinates),
        terms=tuple(table.terms),
        markers=marker_list,
        notes=tuple(notes),
        scalable=frames_plain
        and markers_plain
        and not _reversed(joints)
        and not _couples_translations(coordinates),
        model=model,
        uncoupled_joints=tuple(uncoupled),
        uncoupled_terms=tuple(alone_table.terms),
    )
    problems += _unusable_numbers(source)
    if problems:
        listed = "; ".join(problems)
        raise UnsupportedModelError(f"{path} can't be converted exactly: {listed}")
    return source


def _unusable_numbers(source: Source) -> list[str]:
    """Where numbers are not finite, or larger than MuJoCo takes."""
    parts: list[tuple[str, list]] = [("gravity", [source.gravity])]
    parts += [(f"body {b.name}", [b.mass, b.mass_center, b.inertia]) for b in source.bodies]
    parts += [(f"marker {m.name}", [m.location]) for m in source.markers]
    parts += [(f"coordinate {c.name}", [c.default]) for c in source.coordinates]
    for joint in source.joints:
        frames = [x for f in (joint.parent, joint.child) for x in (f.position, f.rotation)]
        parts.append((f"joint {joint.path}", frames))
        for axis in joint.axes:
            values = [axis.value.constant, list(axis.value.coefficients.values())]
            parts.append((f"axis {axis.label} of {joint.path}", [axis.direction, *values]))
    # Ranges may be infinite.
    parts += [
        (f"range of {c.name}", [0.0 if np.isinf(x) else x for x in (c.minimum, c.maximum)])
        for c in source.coordinates
    ]
    return [
        f"{where} holds a number that is not finite or beyond {mujoco.mjMAXVAL:g}"
        for where, numbers in parts
        if not all(np.all(np.abs(np.asarray(n, float)) <= mujoco.mjMAXVAL) for n in numbers)
    ]


def read_frame(frame: osim.PhysicalFrame) -> Frame:
    """Where a frame sits on the body that carries it."""
    base = frame.findBaseFrame()
    transform = frame.findTransformInBaseFrame()
    rotation = np.array([[transform.R().get(i, j) for j in range(3)] for i in range(3)])
    position = np.array([transform.p().get(i) for i in range(3)])
    offset = osim.PhysicalOffsetFrame.safeDownCast(frame)
    # One offset from its body scales as OpenSim scales it; a chain of turned offsets does not.
    plain = offset is None or offset.getParentFrame().getAbsolutePathString() == base.getAbsolutePathString()
    name = "ground" if base.getAbsolutePathString() == "/ground" else base.getName()
    return Frame(name, rotation, position, plain)


def _read_body(body: osim.Body) -> Body:
    center, inertia = body.get_mass_center(), body.get_inertia()
    numbers = tuple(inertia.get(i) for i in range(6))
    if np.isfinite(numbers).all():
        # What OpenSim computes with: it takes a massless body's inertia as zero, whatever the file says.
        parts = body.getInertia().getMoments(), body.getInertia().getProducts()
        numbers = tuple(part.get(i) for part in parts for i in range(3))
    return Body(body.getName(), body.get_mass(), tuple(center.get(i) for i in range(3)), numbers)


def _split_bodies(model: osim.Model) -> set[str]:
    """Bodies that OpenSim made itself, to cut loops open."""
    own = model.getBodySet()
    return {b.getName() for b in model.getBodyList()} - {own.get(i).getName() for i in range(own.getSize())}


def _read_couplers(
    model: osim.Model, ignored: set[str], problems: list[str], notes: list[str]
) -> dict[str, tuple[osim.CoordinateCouplerConstraint, list[str]]]:
    """Couplers by dependent coordinate; whatever else constrains the model goes to ``problems``."""
    couplers: dict[str, tuple[osim.CoordinateCouplerConstraint, list[str]]] = {}
    seen: set[str] = set()
    halves = _split_bodies(model)
    for component in model.getComponentsList():
        constraint = osim.Constraint.safeDownCast(component)
        if constraint is None:
            continue
        name, kind = constraint.getName(), constraint.getConcreteClassName()
        if kind == "WeldConstraint" and any(name.startswith(half) for half in halves):
            continue  # OpenSim's own, for a loop that is reported as such
        seen.add(name)
        if name in ignored:
            notes.append(f"{kind} {name} was left out on request")
        elif not constraint.get_isEnforced():
            notes.append(f"{kind} {name} is not enforced in the model and was left out")
        elif kind == "CoordinateCouplerConstraint":
            coupler = osim.CoordinateCouplerConstraint.safeDownCast(constraint)
            names = coupler.getIndependentCoordinateNames()
            dependent = coupler.getDependentCoordinateName()
            if dependent in couplers:
                problems.append(
                    f"{kind} {name} sets {dependent}, which {couplers[dependent][0].getName()} sets too"
                )
            couplers[dependent] = (coupler, [names.get(i) for i in range(names.getSize())])
        elif kind == "WeldConstraint" and _weld_is_redundant(model, constraint):
            notes.append(f"WeldConstraint {name} joins bodies that the joints already hold together")
        else:
            problems.append(
                f"{kind} at {constraint.getAbsolutePathString()} (--ignore-constraints {name} drops it)"
            )
    if unknown := sorted(ignored - seen):
        raise UnknownNameError("Constraint", unknown[0], f"the model {model.getName()}", sorted(seen))
    return couplers


def _weld_is_redundant(model: osim.Model, constraint: osim.Constraint) -> bool:
    """Whether weld joints alone already hold the two frames together, one upon the other."""
    weld = osim.WeldConstraint.safeDownCast(constraint)
    sockets = [weld.getSocket(s).getConnecteeAsObject() for s in ("frame1", "frame2")]
    frames = [osim.PhysicalFrame.safeDownCast(s) for s in sockets]
    group = {frames[0].findBaseFrame().getName()}
    for _ in range(model.getNumJoints()):
        for joint in model.getJointList():
            ends = {
                joint.getParentFrame().findBaseFrame().getName(),
                joint.getChildFrame().findBaseFrame().getName(),
            }
            if joint.numCoordinates() == 0 and joint.getConcreteClassName() == "WeldJoint" and group & ends:
                group |= ends
    if frames[1].findBaseFrame().getName() not in group:
        return False
    state = model.getWorkingState()
    model.realizePosition(state)
    between = frames[0].findTransformBetween(state, frames[1])
    offset = max(abs(between.p().get(i)) for i in range(3))
    turn = max(abs(between.R().get(i, j) - (i == j)) for i in range(3) for j in range(3))
    return offset < 1e-9 and turn < 1e-9


def _locked_value(coordinate: osim.Coordinate, problems: list[str]) -> float | None:
    """The constant that locks or prescribes a coordinate; ``None`` for one that moves."""
    where = coordinate.getAbsolutePathString()
    if coordinate.get_prescribed():
        function = coordinate.getPrescribedFunction()
        if function.getConcreteClassName() == "Constant":
            return function.calcValue(osim.Vector(1, 0.0))
        problems.append(f"coordinate {where} is prescribed as a function of time")
        return coordinate.get_default_value()
    return coordinate.get_default_value() if coordinate.get_locked() else None


def _read_coordinates(
    model: osim.Model,
    couplers: dict[str, tuple[osim.CoordinateCouplerConstraint, list[str]]],
    table: TermTable,
    problems: list[str],
) -> tuple[list[CoordinateDescription], dict[str, Affine]]:
    """Every coordinate in OpenSim's order, with its value as an expression in the free ones."""
    found = model.getCoordinateSet()
    by_name = {found.get(i).getName(): found.get(i) for i in range(found.getSize())}
    for c in (found.get(i) for i in range(found.getSize())):
        path, other = c.getAbsolutePathString(), by_name[c.getName()].getAbsolutePathString()
        if path != other:
            problems.append(f"coordinates {path} and {other} have one name")
    locked = {name: _locked_value(c, problems) for name, c in by_name.items()}
    expressions: dict[str, Affine] = {}

    def resolve(name: str, above: tuple[str, ...]) -> Affine:
        if name in expressions:
            return expressions[name]
        if name in above:
            problems.append(
                f"the couplers of {' -> '.join((*above[above.index(name) :], name))} form a circle"
            )
            return Affine()
        value = locked[name]
        if value is not None:
            result = Affine(value)
            if name in couplers:
                problems.append(f"coordinate {name} is both locked and set by {couplers[name][0].getName()}")
        elif name in couplers:
            coupler, independents = couplers[name]
            path = coupler.getAbsolutePathString()
            if unknown := [n for n in independents if n not in by_name]:
                raise UnknownNameError(f"Coupler {path}: coordinate", unknown[0], "the model", by_name)
            arguments = [resolve(n, (*above, name)) for n in independents]
            factor = osim.PropertyHelper.getValueDouble(coupler.getPropertyByName("scale_factor"))
            result = combine(0.0, [(factor, _apply(coupler.getFunction(), arguments, table, path, problems))])
        else:
            result = Affine(coefficients={name: 1.0})
        expressions[name] = result
        return result

    descriptions = []
    for name, c in by_name.items():
        value = resolve(name, ())
        role = "locked" if locked[name] is not None else "coupled" if name in couplers else "free"
        descriptions.append(
            CoordinateDescription(
                name=name,
                joint=c.getJoint().getName(),
                motion=MOTIONS.get(c.getMotionType(), "coupled"),
                role=role,
                default=c.get_default_value(),
                minimum=c.getRangeMin(),
                maximum=c.getRangeMax(),
                clamped=c.get_clamped(),
                locked=role == "locked",
                value=value,
            )
        )
    return descriptions, expressions


def _apply(
    function: osim.Function, arguments: list[Affine], table: TermTable, where: str, problems: list[str]
) -> Affine:
    try:
        return apply(function, arguments, table, where)
    except UnsupportedModelError as error:
        problems.append(str(error))
        return Affine()


def _read_joint(joint: osim.Joint, values: dict[str, Affine], table: TermTable, problems: list[str]) -> Joint:
    kind, path = joint.getConcreteClassName(), joint.getAbsolutePathString()
    names = [joint.get_coordinates(i).getName() for i in range(joint.numCoordinates())]
    axes: list[Axis] = []
    if kind == "CustomJoint":
        transform = osim.CustomJoint.safeDownCast(joint).getSpatialTransform()
        axes = [
            _read_custom_axis(transform.getTransformAxis(i), i, values, table, path, problems)
            for i in range(6)
        ]
    elif kind in FIXED_AXES:
        axes = [
            Axis(name, kind_, direction, values[name], None)
            for name, (kind_, direction) in zip(names, FIXED_AXES[kind], strict=True)
        ]
    else:
        problems.append(f"joint class {kind} at {path}")
    # An axis that stays at zero moves nothing.
    axes = [a for a in axes if not is_constant(a.value) or a.value.constant != 0.0]
    slides = [a for a in axes if a.kind == "slide"]
    hinges = [a for a in axes if a.kind == "hinge"]
    return Joint(
        joint.getName(),
        path,
        read_frame(joint.getParentFrame()),
        read_frame(joint.getChildFrame()),
        (*slides, *hinges),
    )


def _read_custom_axis(
    axis: osim.TransformAxis,
    index: int,
    values: dict[str, Affine],
    table: TermTable,
    path: str,
    problems: list[str],
) -> Axis:
    count = axis.getCoordinateNames().size()
    names = [axis.get_coordinates(i) for i in range(count)]
    direction = axis.getAxis()
    vector = np.array([direction.get(i) for i in range(3)])
    function = axis.getFunction()
    value = _apply(function, [values[n] for n in names], table, f"{path}/{axis.getName()}", problems)
    length = float(np.linalg.norm(vector))
    if length == 0.0:
        if not is_constant(value) or value.constant != 0.0:
            problems.append(f"{path}/{axis.getName()} has an axis of length zero")
        vector, length = X, 1.0
    scale_axis = None
    if index >= 3 and not _is_degree_of_freedom(function):
        scale_axis = tuple(map(float, vector))
    kind = "hinge" if index < 3 else "slide"
    label = names[0] if count == 1 and _is_degree_of_freedom(function) else AXIS_LABELS[index]
    return Axis(label, kind, vector / length, value, scale_axis)


def _is_degree_of_freedom(function: osim.Function) -> bool:
    """OpenSim's scaling leaves a translation alone where its function is the identity."""
    linear = osim.LinearFunction.safeDownCast(function)
    if linear is None or function.getConcreteClassName() != "LinearFunction":
        return False
    coefficients = linear.getCoefficients()
    return coefficients.get(0) == 1.0 and coefficients.get(1) == 0.0


def spanning_tree(
    joints: list[Joint] | tuple[Joint, ...],
) -> list[tuple[Joint, bool]]:
    """Joints from ground outwards, breadth first; the flag tells that the child is nearer to ground."""
    reached, order, pending = {"ground"}, [], deque(["ground"])
    used: set[str] = set()
    while pending:
        body = pending.popleft()
        for joint in joints:
            ends = (joint.parent.body, joint.child.body)
            if joint.path in used or body not in ends:
                continue
            other = ends[1] if ends[0] == body else ends[0]
            if other in reached:
                continue
            used.add(joint.path)
            reached.add(other)
            order.append((joint, ends[0] != body))
            pending.append(other)
    return order


def _reversed(joints: list[Joint]) -> bool:
    return any(backwards for _, backwards in spanning_tree(joints))


def _couples_translations(coordinates: list[CoordinateDescription]) -> bool:
    """Whether a coupler sets a translation: OpenSim then scales the coupler, and so the coordinate."""
    return any(c.role == "coupled" and c.motion == "translational" for c in coordinates)


def _loops(joints: list[Joint], bodies: list[str]) -> list[str]:
    tree = spanning_tree(joints)
    used = {joint.path for joint, _ in tree}
    reached = {end for joint, _ in tree for end in (joint.parent.body, joint.child.body)}
    problems = [f"joint {j.path} closes a kinematic loop" for j in joints if j.path not in used]
    return problems + [f"body {b} is not joined to ground" for b in bodies if b not in reached]


def _read_markers(model: osim.Model) -> tuple[tuple[MarkerDescription, ...], bool]:
    markers, plain = [], True
    found = model.getMarkerSet()
    for i in range(found.getSize()):
        marker = found.get(i)
        frame = read_frame(marker.getParentFrame())
        offset = marker.get_location()
        location = frame.position + frame.rotation @ np.array([offset.get(k) for k in range(3)])
        plain &= bool(np.allclose(frame.rotation, np.eye(3), atol=0))
        markers.append(
            MarkerDescription(marker.getName(), frame.body, tuple(map(float, location)), marker.get_fixed())
        )
    return tuple(markers), plain
