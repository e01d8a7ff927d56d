"""The converted model's sidecar: everything that MJCF can't hold, as versioned JSON.

A converted model is two files with one stem: ``NAME.xml``, an MJCF file that plain MuJoCo opens, and
``NAME.json``, this sidecar. The sidecar holds the exact map from free coordinates to OpenSim's
coordinates and to MuJoCo's ``qpos``::

    argument_g    = affine expression in the free coordinates and in terms before g
    term_g        = function_g(argument_g)            piecewise polynomial or sine
    coordinate_c  = affine expression in the free coordinates and the terms
    qpos_n        = affine expression in the free coordinates and the terms

so that couplers (also chained and non-linear ones), locked coordinates and the splines of custom
joints are one explicit function. Lengths are in metres, angles in radians, masses in kilograms; frames
are OpenSim's (ground: Y up).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simspine_jax.errors import FileFormatError
from simspine_jax.io.files import atomic_write, read_text

FORMAT = "simspine_jax model"
VERSION = 1

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Affine:
    """``constant + sum coefficients[free] * q[free] + sum terms[g] * term_g``."""

    constant: float = 0.0
    coefficients: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PiecewisePolynomial:
    """Piece i holds from ``breaks[i]`` (included; the first piece also below it) to the next break.

    Its value at x is ``sum_k coefficients[i][k] * (x - breaks[i]) ** k``.
    """

    breaks: Vector
    coefficients: tuple[Vector, ...]
    source: str


@dataclass(frozen=True)
class Sinusoid:
    """``amplitude * sin(omega * x + phase) + offset``."""

    amplitude: float
    omega: float
    phase: float
    offset: float
    source: str


@dataclass(frozen=True)
class Term:
    """A non-linear function of an affine argument."""

    name: str
    argument: Affine
    polynomial: PiecewisePolynomial | None = None
    sinusoid: Sinusoid | None = None


@dataclass(frozen=True)
class CoordinateDescription:
    """One OpenSim coordinate.

    ``motion`` is ``rotational``, ``translational`` or ``coupled``; ``role`` is ``free``, ``coupled`` (a
    coupler sets it) or ``locked``.
    """

    name: str
    joint: str
    motion: str
    role: str
    default: float
    minimum: float
    maximum: float
    clamped: bool
    locked: bool
    value: Affine


@dataclass(frozen=True)
class JointPosition:
    """One scalar MuJoCo joint, i.e. one entry of ``qpos``.

    ``scale_axis`` is the vector whose components without their signs, weighted by the parent body's scale
    factors and summed, multiply this translation when the model is scaled; ``None`` where scaling leaves the
    value alone.
    """

    name: str
    body: str
    kind: str
    value: Affine
    scale_axis: Vector | None = None


@dataclass(frozen=True)
class BodyDescription:
    """A body; ``parent`` is ``ground`` or another body.

    ``parent_offset`` and ``child_offset`` are the joint's frame origins in the parent and in this body.
    ``inertia`` is (xx, yy, zz, xy, xz, yz) about the mass centre. ``mjcf_inertia_adjusted`` tells that
    MuJoCo would refuse mass or inertia as they are, so that the MJCF holds the nearest that it takes.
    """

    name: str
    parent: str
    parent_offset: Vector
    child_offset: Vector
    mass: float
    mass_center: Vector
    inertia: Vector
    mjcf_inertia_adjusted: bool = False


@dataclass(frozen=True)
class MarkerDescription:
    """A marker at ``location`` in ``body`` (``ground`` allowed)."""

    name: str
    body: str
    location: Vector
    fixed: bool = False


@dataclass(frozen=True)
class GeometryDescription:
    """A mesh attached to a body: the MJCF has a geom of the same file."""

    body: str
    file: str
    position: Vector
    quaternion: Vector
    scale: Vector
    color: Vector


@dataclass(frozen=True)
class UncoupledDescription:
    """The tree as a function of all coordinates, each on its own: couplers and locks are left out.

    ``joint_positions`` and ``terms`` are as the model's own, but their affine expressions are in all
    coordinates. ``axes`` are the joints' axes in their bodies. Joints that the MJCF lacks because a lock
    holds them at zero are among them. Forces over coupled and locked coordinates need this.
    """

    joint_positions: tuple[JointPosition, ...]
    axes: tuple[Vector, ...]
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True)
class ModelDescription:
    """The whole sidecar; ``notes`` says what the conversion dropped or adjusted."""

    name: str
    mjcf: str
    source: str
    source_sha256: str
    opensim_version: str
    gravity: Vector
    coordinates: tuple[CoordinateDescription, ...]
    bodies: tuple[BodyDescription, ...]
    markers: tuple[MarkerDescription, ...]
    joint_positions: tuple[JointPosition, ...]
    terms: tuple[Term, ...]
    geometry: tuple[GeometryDescription, ...] = ()
    scalable: bool = True
    notes: tuple[str, ...] = ()
    uncoupled: UncoupledDescription | None = None


def uncouple(model: ModelDescription, uncoupled: UncoupledDescription) -> ModelDescription:
    """The description with every coordinate free and unbounded, and the tree a function of all of them."""
    coordinates = tuple(
        dataclasses.replace(
            c, role="free", clamped=False, locked=False, value=Affine(coefficients={c.name: 1.0})
        )
        for c in model.coordinates
    )
    return dataclasses.replace(
        model,
        coordinates=coordinates,
        joint_positions=uncoupled.joint_positions,
        terms=uncoupled.terms,
        uncoupled=None,
    )


def write_sidecar(path: str | Path, model: ModelDescription) -> None:
    """Writes ``model`` as JSON, all digits kept."""
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(model)}
    with atomic_write(path) as stream:
        json.dump(document, stream, indent=1, allow_nan=True)
        stream.write("\n")


def read_sidecar(path: str | Path) -> ModelDescription:
    """Reads a sidecar and checks every field, name and reference in it.

    Raises:
        FileFormatError: not JSON, another format or version, a missing or wrong field.
    """
    text = read_text(path)
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise FileFormatError(f'{path} is not a converted model\'s sidecar: it lacks "format": "{FORMAT}"')
    version = document.pop("version", None)
    if version != VERSION:
        raise FileFormatError(f"{path} has version {version!r}; this program reads version {VERSION}")
    model = _decode(document, ModelDescription, str(path), "")
    _check(model, str(path))
    return model


def _decode(value: Any, kind: Any, path: str, where: str) -> Any:
    """Turns plain JSON into ``kind``, naming the field that is wrong."""

    def wrong(expected: str) -> FileFormatError:
        return FileFormatError(
            f"{path}: {where or 'the document'} must be {expected}, not {str(value)[:40]!r}"
        )

    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _decode(value, options[0], path, where)
    if dataclasses.is_dataclass(kind):
        return _decode_record(value, kind, path, where, wrong)
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong("a list")
        item = typing.get_args(kind)[0]
        return tuple(_decode(v, item, path, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("an object")
        return {k: _decode(v, float, path, f"{where}.{k}") for k, v in value.items()}
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong("a number")
        try:
            return float(value)
        except OverflowError:
            raise wrong("a number") from None
    if not isinstance(value, kind):
        raise wrong({str: "text", bool: "true or false"}.get(kind, str(kind)))
    return value


def _decode_record(value: Any, kind: Any, path: str, where: str, wrong: Any) -> Any:
    if not isinstance(value, dict):
        raise wrong("an object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise FileFormatError(f"{path}: {where or 'the document'} has an unknown field {unknown[0]!r}")
    arguments = {}
    for name, f in fields.items():
        if name in value:
            arguments[name] = _decode(value[name], hints[name], path, f"{where}.{name}".lstrip("."))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise FileFormatError(f"{path}: {where or 'the document'} lacks the field {name!r}")
    return kind(**arguments)


def _check(model: ModelDescription, path: str) -> None:
    """Refuses sidecars whose parts don't fit together."""

    def fail(message: str) -> typing.NoReturn:
        raise FileFormatError(f"{path}: {message}")

    bodies = {"ground"}
    for body in model.bodies:
        if body.name in bodies:
            fail(f"body {body.name!r} stands twice")
        bodies.add(body.name)
        lengths = (len(body.parent_offset), len(body.child_offset), len(body.mass_center), len(body.inertia))
        if lengths != (3, 3, 3, 6):
            fail(f"body {body.name!r} needs three numbers for each offset and six for its inertia")
        if not all(map(math.isfinite, (*body.parent_offset, *body.child_offset))):
            fail(f"body {body.name!r} has an offset that is not a finite number")
    for body in model.bodies:
        if body.parent not in bodies:
            fail(f"body {body.name!r} hangs from {body.parent!r}, which is not a body of the model")
    for kind, items in (("marker", model.markers), *_joint_positions(model)):
        names = [item.name for item in items]
        if len(set(names)) != len(names):
            fail(f"two {kind}s have one name")
        for item in items:
            if item.body not in bodies:
                fail(f"{kind} {item.name!r} is on {item.body!r}, which is not a body of the model")
    for marker in model.markers:
        if len(marker.location) != 3 or not all(map(math.isfinite, marker.location)):
            fail(f"marker {marker.name!r} needs a location of three finite numbers")
    if len(model.gravity) != 3 or not all(map(math.isfinite, model.gravity)):
        fail("gravity needs three finite numbers")
    _check_map(model, fail)
    if (u := model.uncoupled) is not None:
        if len(u.axes) != len(u.joint_positions) or any(len(axis) != 3 for axis in u.axes):
            fail("uncoupled needs three numbers for the axis of each joint position")
        if not all(math.isfinite(x) for axis in u.axes for x in axis):
            fail("uncoupled has an axis that is not a finite number")
        _check_map(uncouple(model, u), fail)


def _joint_positions(model: ModelDescription) -> list[tuple[str, tuple[JointPosition, ...]]]:
    found = [("joint position", model.joint_positions)]
    if model.uncoupled is not None:
        found.append(("uncoupled joint position", model.uncoupled.joint_positions))
    return found


def _numbers(term: Term) -> list[float]:
    """All numbers of a term's function."""
    if (p := term.polynomial) is not None:
        return [*p.breaks, *(x for piece in p.coefficients for x in piece)]
    s = term.sinusoid
    return [] if s is None else [s.amplitude, s.omega, s.phase, s.offset]


def _check_map(model: ModelDescription, fail: Any) -> None:
    names = [c.name for c in model.coordinates]
    if len(set(names)) != len(names):
        fail("two coordinates have one name")
    free = {c.name for c in model.coordinates if c.role == "free"}
    known: set[str] = set()

    def check(where: str, value: Affine) -> None:
        if unknown := [k for k in value.coefficients if k not in free]:
            fail(f"{where} uses {unknown[0]!r}, which is not a free coordinate")
        if unknown := [k for k in value.terms if k not in known]:
            fail(f"{where} uses the term {unknown[0]!r}, which is not defined before it")
        if not all(map(math.isfinite, (value.constant, *value.coefficients.values(), *value.terms.values()))):
            fail(f"{where} has a coefficient that is not a finite number")

    for term in model.terms:
        check(f"term {term.name!r}", term.argument)
        if (term.polynomial is None) == (term.sinusoid is None):
            fail(f"term {term.name!r} needs either a polynomial or a sinusoid")
        if (p := term.polynomial) is not None:
            increasing = all(a < b for a, b in zip(p.breaks, p.breaks[1:], strict=False))
            if (
                not p.breaks
                or len(p.breaks) != len(p.coefficients)
                or not increasing
                or not all(p.coefficients)
            ):
                fail(f"term {term.name!r} needs increasing breaks and coefficients for each piece")
        if not all(map(math.isfinite, _numbers(term))):
            fail(f"term {term.name!r} has a number that is not finite")
        if term.name in known:
            fail(f"term {term.name!r} stands twice")
        known.add(term.name)
    for c in model.coordinates:
        if c.role not in ("free", "coupled", "locked"):
            fail(f"coordinate {c.name!r} has the role {c.role!r}; valid are free, coupled and locked")
        if c.motion not in ("rotational", "translational", "coupled"):
            valid = "rotational, translational, coupled"
            fail(f"coordinate {c.name!r} has the motion {c.motion!r}; valid are {valid}")
        if not math.isfinite(c.default) or math.isnan(c.minimum) or math.isnan(c.maximum):
            fail(f"coordinate {c.name!r} has a default or range that is not a number")
        if c.role == "free" and c.clamped and c.minimum > c.maximum:
            fail(f"coordinate {c.name!r} has a minimum above its maximum")
        check(f"coordinate {c.name!r}", c.value)
    for joint in model.joint_positions:
        if joint.kind not in ("hinge", "slide"):
            fail(f"joint position {joint.name!r} has the kind {joint.kind!r}; valid are hinge and slide")
        axis = joint.scale_axis
        if axis is not None and (len(axis) != 3 or not all(map(math.isfinite, axis))):
            fail(f"joint position {joint.name!r} needs three finite numbers for its scale axis")
        check(f"joint position {joint.name!r}", joint.value)
