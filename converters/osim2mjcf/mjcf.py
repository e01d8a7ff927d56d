"""Writes the tree as MJCF and describes it in the sidecar.

OpenSim's body pose is ``X_parent_F · (I, t) · R1 R2 R3 · inv(X_body_M)``: the translation is along axes
of F, the rotations are body-fixed. MuJoCo applies a body's joints in order, axes and anchors in the body:
slides first, then hinges, with ``axis = R_BM a`` and ``pos = p_BM``. A joint whose child is nearer to
ground is the inverse: hinges in opposite order with opposite sense, then slides.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from osim2mjcf.functions import combine
from osim2mjcf.reader import AXIS_LABELS, Body, Joint, Source, spanning_tree
from simspine_jax.io.sidecar import BodyDescription, GeometryDescription, JointPosition, UncoupledDescription

# The least mass (kg) and inertia (kg m²) that the MJCF gives to bodies that OpenSim has massless.
LEAST_MASS, LEAST_INERTIA = 1e-6, 1e-9


@dataclass(frozen=True)
class Placement:
    """A body's place in the tree: its fixed transform and its scalar joints in MuJoCo's order."""

    body: str
    parent: str
    position: np.ndarray
    rotation: np.ndarray
    parent_offset: np.ndarray
    child_offset: np.ndarray
    joints: tuple[tuple[JointPosition, np.ndarray], ...]


def place_bodies(source: Source) -> list[Placement]:
    """Every body with its joints, depth first as MuJoCo orders them."""
    return _place_all(source.joints)


def describe_uncoupled(source: Source) -> UncoupledDescription:
    """The same tree with all coordinates on their own, for the sidecar."""
    joints = [joint for p in _place_all(source.uncoupled_joints) for joint in p.joints]
    return UncoupledDescription(
        tuple(joint for joint, _ in joints),
        tuple(_floats(axis) for _, axis in joints),
        source.uncoupled_terms,
    )


def _place_all(joints: tuple[Joint, ...]) -> list[Placement]:
    used: set[str] = set()
    placements = [_place(joint, backwards, used) for joint, backwards in spanning_tree(joints)]
    children: dict[str, list[Placement]] = {}
    for p in placements:
        children.setdefault(p.parent, []).append(p)
    ordered: list[Placement] = []
    stack = list(reversed(children.get("ground", [])))
    while stack:
        p = stack.pop()
        ordered.append(p)
        stack.extend(reversed(children.get(p.body, [])))
    return ordered


def _place(joint: Joint, backwards: bool, used: set[str]) -> Placement:
    near, far = (joint.child, joint.parent) if backwards else (joint.parent, joint.child)
    rotation = near.rotation @ far.rotation.T
    axes = list(reversed(joint.axes)) if backwards else list(joint.axes)
    scalar = []
    for axis in axes:
        value = combine(0.0, [(-1.0, axis.value)]) if backwards else axis.value
        name = _joint_name(joint, axis.label, used)
        scale = None if backwards else axis.scale_axis
        scalar.append((JointPosition(name, far.body, axis.kind, value, scale), far.rotation @ axis.direction))
    return Placement(
        far.body,
        near.body,
        near.position - rotation @ far.position,
        rotation,
        near.position,
        far.position,
        tuple(scalar),
    )


def _joint_name(joint: Joint, label: str, used: set[str]) -> str:
    """A coordinate's own name where the axis is the coordinate, else joint and axis."""
    name = f"{joint.name}_{label}" if label in AXIS_LABELS else label
    while name in used:
        name = f"{joint.name}_{name}"
    used.add(name)
    return name


def describe_bodies(source: Source, placements: list[Placement]) -> tuple[BodyDescription, ...]:
    """The sidecar's bodies, in OpenSim's order."""
    by_name = {p.body: p for p in placements}
    return tuple(
        BodyDescription(
            name=b.name,
            parent=by_name[b.name].parent,
            parent_offset=_floats(by_name[b.name].parent_offset),
            child_offset=_floats(by_name[b.name].child_offset),
            mass=b.mass,
            mass_center=b.mass_center,
            inertia=b.inertia,
            mjcf_inertia_adjusted=_inertial(b)[2],
        )
        for b in source.bodies
    )


def write_mjcf(source: Source, placements: list[Placement], geometry: tuple[GeometryDescription, ...]) -> str:
    """The MJCF document."""
    root = ET.Element("mujoco", model=source.name)
    ET.SubElement(
        root, "compiler", angle="radian", autolimits="true", inertiafromgeom="false", meshdir="meshes"
    )
    ET.SubElement(root, "option", gravity=_text(source.gravity))
    _write_visuals(root, geometry)
    world = ET.SubElement(root, "worldbody")
    ET.SubElement(world, "light", pos="2 4 2", dir="-1 -2 -1")
    elements = {"ground": world}
    bodies = {b.name: b for b in source.bodies}
    limits = {c.name: (c.minimum, c.maximum) for c in source.coordinates if c.clamped and c.role == "free"}
    for p in placements:
        quaternion = Rotation.from_matrix(p.rotation).as_quat(scalar_first=True)
        element = ET.SubElement(
            elements[p.parent], "body", name=p.body, pos=_text(p.position), quat=_text(quaternion)
        )
        elements[p.body] = element
        _write_inertial(element, bodies[p.body])
        for joint, axis in p.joints:
            attributes = {"name": joint.name, "type": joint.kind, "axis": _text(axis)}
            if joint.kind == "hinge":
                attributes["pos"] = _text(p.child_offset)
            if joint.name in limits and limits[joint.name][0] < limits[joint.name][1]:
                attributes["range"] = _text(limits[joint.name])
            ET.SubElement(element, "joint", attributes)
    for g in geometry:
        ET.SubElement(
            elements[g.body],
            "geom",
            type="mesh",
            mesh=_mesh_name(g),
            pos=_text(g.position),
            quat=_text(g.quaternion),
            rgba=_text(g.color),
            contype="0",
            conaffinity="0",
            group="2",
        )
    for m in source.markers:
        ET.SubElement(elements[m.body], "site", name=m.name, pos=_text(m.location), size="0.008")
    _write_couplers(root, placements)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _write_visuals(root: ET.Element, geometry: tuple[GeometryDescription, ...]) -> None:
    # A floor and a sky are left to the user; a viewer without them still shows the bones.
    if not geometry:
        return
    asset = ET.SubElement(root, "asset")
    for name, g in {_mesh_name(g): g for g in geometry}.items():
        # The shell's inertia is not used (inertiafromgeom is false), but it compiles for open surfaces.
        ET.SubElement(asset, "mesh", name=name, file=g.file, scale=_text(g.scale), inertia="shell")


def _mesh_name(g: GeometryDescription) -> str:
    return "_".join([g.file, *(f"{s:.9g}" for s in g.scale)]) if g.scale != (1.0, 1.0, 1.0) else g.file


def _write_couplers(root: ET.Element, placements: list[Placement]) -> None:
    """MuJoCo's own, soft couplers for its simulation, where one joint follows another linearly."""
    joints = [joint for p in placements for joint, _ in p.joints]
    alone = {j.name for j in joints if j.value.coefficients == {j.name: 1.0}}
    rows = []
    for joint in joints:
        coefficients = joint.value.coefficients
        if (
            joint.value.terms
            or joint.name in alone
            or len(coefficients) > 1
            or not alone.issuperset(coefficients)
        ):
            continue
        attributes, slope = {"joint1": joint.name}, 0.0
        if coefficients:
            ((attributes["joint2"], slope),) = coefficients.items()
        rows.append(attributes | {"polycoef": _text((joint.value.constant, slope, 0, 0, 0))})
    if rows:
        equality = ET.SubElement(root, "equality")
        for attributes in rows:
            ET.SubElement(equality, "joint", attributes)


def _inertial(body: Body) -> tuple[float, np.ndarray, bool]:
    """Mass and inertia that MuJoCo takes: positive, with eigenvalues that a real body can have."""
    xx, yy, zz, xy, xz, yz = body.inertia
    tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    values, vectors = np.linalg.eigh(tensor)
    wanted = np.maximum(values, LEAST_INERTIA)
    wanted[2] = min(wanted[2], wanted[0] + wanted[1])
    mass = max(body.mass, LEAST_MASS)
    if mass == body.mass and np.allclose(wanted, values, rtol=1e-12, atol=0):
        return mass, tensor, False
    return mass, vectors @ np.diag(wanted) @ vectors.T, True


def _write_inertial(element: ET.Element, body: Body) -> None:
    mass, tensor, _ = _inertial(body)
    upper = (tensor[0, 0], tensor[1, 1], tensor[2, 2], tensor[0, 1], tensor[0, 2], tensor[1, 2])
    ET.SubElement(
        element, "inertial", pos=_text(body.mass_center), mass=repr(float(mass)), fullinertia=_text(upper)
    )


def _floats(values) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _text(values) -> str:
    return " ".join(repr(float(v)) for v in values)
