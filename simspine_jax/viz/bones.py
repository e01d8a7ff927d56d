"""What is drawn for a body: its bone meshes, or capsules where a model comes without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from simspine_jax.errors import FileFormatError
from simspine_jax.io.files import read_bytes
from simspine_jax.io.sidecar import GeometryDescription, read_sidecar
from simspine_jax.kinematics.forward import Poses
from simspine_jax.kinematics.model import SpineModel, find_converted

CAPSULE_COLOR = (0.80, 0.75, 0.66)
CAPSULE_RADIUS_M = 0.014
_MESH_FOLDER = "meshes"
_RING = 12
_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_STL_HEADER = 84


@dataclass(frozen=True, eq=False)
class BodyMesh:
    """A surface fixed to a body: vertices [V, 3] in the body's frame, m; faces int [F, 3]; RGB 0 … 1."""

    body: str
    vertices: np.ndarray
    faces: np.ndarray
    color: tuple[float, float, float]


def read_bones(converted: str | Path) -> tuple[BodyMesh, ...]:
    """The bone meshes that a converted model was given; none if it was converted without.

    Args:
        converted: the model's ``.xml`` or ``.json``, the folder that holds it, or its ``meshes`` folder.

    Raises:
        FileFormatError: there is no converted model, or a mesh is missing or no binary STL.
    """
    path = Path(converted)
    sidecar = find_converted(path.parent if path.name == _MESH_FOLDER and path.is_dir() else path)
    folder = sidecar.parent / _MESH_FOLDER
    return _joined(_read_bone(folder, geometry) for geometry in read_sidecar(sidecar).geometry)


def _joined(meshes: Iterable[BodyMesh]) -> tuple[BodyMesh, ...]:
    """One mesh for each body and colour: a browser draws thirty meshes far faster than a hundred."""
    groups: dict[tuple, list[BodyMesh]] = {}
    for mesh in meshes:
        groups.setdefault((mesh.body, mesh.color), []).append(mesh)
    joined = []
    for (body, color), group in groups.items():
        starts = np.cumsum([0, *(len(mesh.vertices) for mesh in group[:-1])])
        faces = [mesh.faces + start for mesh, start in zip(group, starts, strict=True)]
        vertices = [mesh.vertices for mesh in group]
        joined.append(BodyMesh(body, np.concatenate(vertices), np.concatenate(faces), color))
    return tuple(joined)


def _read_bone(folder: Path, geometry: GeometryDescription) -> BodyMesh:
    vertices, faces = read_stl(folder / geometry.file)
    turn = Rotation.from_quat(geometry.quaternion, scalar_first=True)
    placed = turn.apply(vertices * np.array(geometry.scale)) + np.array(geometry.position)
    red, green, blue = geometry.color[:3]
    return BodyMesh(geometry.body, placed, faces, (red, green, blue))


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3], each once, and faces int [F, 3] of a binary STL file, the kind that MuJoCo takes.

    Raises:
        FileFormatError: the file is missing, or its size is not what its number of triangles says.
    """
    raw = read_bytes(path)
    count = int.from_bytes(raw[_STL_HEADER - 4 : _STL_HEADER], "little")
    if len(raw) != _STL_HEADER + count * _STL_TRIANGLE.itemsize or count == 0:
        raise FileFormatError(f"{path} is not a mesh; valid is a binary STL file with at least one triangle")
    corners = np.frombuffer(raw, _STL_TRIANGLE, offset=_STL_HEADER)["corners"].reshape(-1, 3)
    vertices, faces = np.unique(corners, axis=0, return_inverse=True)
    return vertices.astype(float), faces.reshape(-1, 3)


def capsule_figure(model: SpineModel, rest: Poses) -> tuple[BodyMesh, ...]:
    """Capsules from each body's origin to those of its children, and from a last body to its markers.

    Lengths are those of the one pose ``rest``: where a joint also translates, others leave a small gap.
    """
    positions, rotations = np.asarray(rest.body_positions), np.asarray(rest.body_rotations)
    markers = np.asarray(rest.markers)
    index = {body: i for i, body in enumerate(model.topology.body_order)}
    ends: dict[int, list[np.ndarray]] = {i: [] for i in range(len(positions))}
    for body, i in index.items():
        if (parent := model.topology.parents[body]) in index:
            ends[index[parent]].append(positions[i])
    for marker, body in enumerate(model.topology.marker_bodies):
        if body in index and body not in model.topology.parents:
            ends[index[body]].append(markers[marker])
    capsules: list[BodyMesh] = []
    for i, points in ends.items():
        for point in points:
            vertices, faces = _capsule((point - positions[i]) @ rotations[i])
            capsules.append(BodyMesh(model.body_names[i], vertices, faces, CAPSULE_COLOR))
    return _joined(capsules)


def _capsule(end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A capsule from the origin to ``end``: a sphere of rings about the y axis, cut in half and drawn out."""
    length = float(np.linalg.norm(end))
    half = np.linspace(0, np.pi / 2, _RING // 2)
    polar = np.concatenate([half, half + np.pi / 2])
    around = np.arange(_RING) * 2 * np.pi / _RING
    polar, around = (grid.ravel() for grid in np.meshgrid(polar, around, indexing="ij"))
    sphere = np.stack(
        [np.sin(polar) * np.cos(around), -np.cos(polar), np.sin(polar) * np.sin(around)], axis=1
    )
    vertices = CAPSULE_RADIUS_M * sphere
    vertices[len(vertices) // 2 :, 1] += length
    if length > 0:
        vertices = Rotation.align_vectors([end / length], [[0.0, 1.0, 0.0]])[0].apply(vertices)
    return vertices, _grid_faces(len(vertices) // _RING)


def _grid_faces(n_rings: int) -> np.ndarray:
    """Triangles, seen counter-clockwise from outside, between neighbouring rings of vertices."""
    low = np.arange(n_rings - 1)[:, None] * _RING + np.arange(_RING)
    low_next = np.arange(n_rings - 1)[:, None] * _RING + (np.arange(_RING) + 1) % _RING
    high, high_next = low + _RING, low_next + _RING
    triangles = np.stack([np.stack([low, high, low_next], -1), np.stack([low_next, high, high_next], -1)], -2)
    return triangles.reshape(-1, 3)
