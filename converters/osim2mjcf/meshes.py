"""Bone meshes of an OpenSim model as binary STL files beside the MJCF.

A model names its meshes and where they sit; the files are in a folder of their own (``Geometry/``). OpenSim
draws ASCII ``.vtp`` (VTK PolyData), ``.stl`` and ``.obj``.
"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import opensim as osim
from scipy.spatial.transform import Rotation

from osim2mjcf.reader import read_frame
from simspine_jax.errors import FileFormatError, listed
from simspine_jax.io.files import atomic_write, read_bytes, read_text
from simspine_jax.io.sidecar import GeometryDescription

# What MuJoCo takes from an STL file.
MAX_FACES = 200_000
NAMES_TOLD = 5
STL_HEADER_BYTES = 84
STL_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def attach_meshes(
    model: osim.Model, folder: Path, output: Path
) -> tuple[tuple[GeometryDescription, ...], tuple[str, ...]]:
    """Writes the meshes that ``model`` shows to ``output`` and tells where they sit on its bodies.

    Args:
        model: with its system built.
        folder: where the mesh files are.
        output: the folder to write to; each mesh is written once.

    Returns:
        The geometry, and notes on what was left out: missing files, meshes of more than ``MAX_FACES`` faces,
        and shapes that are not meshes.

    Raises:
        FileFormatError: there is no such folder, it has none of the meshes, or one in it can't be read.
    """
    if not folder.is_dir():
        raise FileFormatError(f"There is no folder {folder}; give the one that holds the model's mesh files")
    written: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    found = []
    for mesh in _shown_meshes(model, left_out):
        name = mesh.get_mesh_file()
        if name not in written:
            written[name] = _write_mesh(folder, name, output, set(written.values()), left_out)
        if written[name]:
            found.append(_describe(mesh, written[name]))
    if not found:
        names = listed(sorted(written), NAMES_TOLD) or "it shows none"
        raise FileFormatError(
            f"{folder} has none of the model's meshes ({names}); valid is the folder that holds them, or no "
            "--meshes"
        )
    return tuple(found), tuple(_note(what, sorted(set(names))) for what, names in left_out.items())


def _note(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {listed(names, NAMES_TOLD)}"


def _shown_meshes(model: osim.Model, left_out: dict[str, list[str]]) -> Iterator[osim.Mesh]:
    for component in model.getComponentsList():
        geometry = osim.Geometry.safeDownCast(component)
        if geometry is None or not geometry.get_Appearance().get_visible():
            continue
        if (mesh := osim.Mesh.safeDownCast(geometry)) is not None:
            yield mesh
        elif osim.AnalyticGeometry.safeDownCast(geometry) is not None:
            left_out.setdefault("shapes that are not meshes were left out", []).append(geometry.getName())


def _write_mesh(
    folder: Path, name: str, output: Path, taken: set[str], left_out: dict[str, list[str]]
) -> str:
    """The name of the STL file written for the mesh ``name``; empty if it was left out."""
    path = _find(folder, name)
    if path is None:
        left_out.setdefault(f"mesh files that are not in {folder} were left out", []).append(name)
        return ""
    triangles = read_triangles(path)
    if len(triangles) > MAX_FACES:
        left_out.setdefault(f"meshes of more than {MAX_FACES} faces were left out", []).append(name)
        return ""
    target, number = f"{path.stem}.stl", 1
    while target in taken:
        number += 1
        target = f"{path.stem}_{number}.stl"
    write_stl(output / target, triangles)
    return target


def _find(folder: Path, name: str) -> Path | None:
    """A mesh by the name that the model gives it, else by its last part: models keep their authors' paths."""
    parts = PurePosixPath(name.replace("\\", "/"))
    inside = [] if parts.is_absolute() or ".." in parts.parts else [folder / parts]
    return next((path for path in (*inside, folder / parts.name) if path.is_file()), None)


def _describe(mesh: osim.Mesh, file: str) -> GeometryDescription:
    frame = read_frame(osim.PhysicalFrame.safeDownCast(mesh.getFrame()))
    look, factors = mesh.get_Appearance(), mesh.get_scale_factors()
    color = look.get_color()
    return GeometryDescription(
        body=frame.body,
        file=file,
        position=tuple(map(float, frame.position)),
        quaternion=tuple(map(float, Rotation.from_matrix(frame.rotation).as_quat(scalar_first=True))),
        scale=tuple(factors.get(i) for i in range(3)),
        color=(*(color.get(i) for i in range(3)), look.get_opacity()),
    )


def read_triangles(path: Path) -> np.ndarray:
    """Triangles ``[faces 3 3]`` (corners, then x y z) of a ``.vtp``, ``.stl`` or ``.obj`` file.

    Raises:
        FileFormatError: another ending, or the file is damaged or holds no faces.
    """
    readers = {".vtp": _read_vtp, ".stl": _read_stl, ".obj": _read_obj}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"{path} is no mesh that can be read; valid are {', '.join(readers)}")
    try:
        triangles = reader(path)
    except (ValueError, IndexError, OverflowError, ET.ParseError) as error:
        raise FileFormatError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not len(triangles) or not np.isfinite(triangles).all():
        raise FileFormatError(f"{path} is damaged: it needs one face or more, of finite numbers")
    return triangles


def _read_vtp(path: Path) -> np.ndarray:
    root = ET.fromstring(read_text(path))
    return np.concatenate([_read_piece(piece) for piece in root.iter("Piece")] or [np.zeros((0, 3, 3))])


def _read_piece(piece: ET.Element) -> np.ndarray:
    points = _numbers(piece.find("Points/DataArray")).reshape(-1, 3)
    corners: list[tuple[int, int, int]] = []
    for cell in _cells(piece.find("Polys")):
        corners += [(cell[0], cell[i], cell[i + 1]) for i in range(1, len(cell) - 1)]
    for cell in _cells(piece.find("Strips")):
        # Every other triangle of a strip runs the other way round.
        triples = zip(cell, cell[1:], cell[2:], strict=False)
        corners += [(a, c, b) if i % 2 else (a, b, c) for i, (a, b, c) in enumerate(triples)]
    return _pick(points, corners)


def _cells(element: ET.Element | None) -> list[list[int]]:
    """The point indices of each polygon or strip."""
    arrays = {} if element is None else {a.get("Name"): a for a in element.findall("DataArray")}
    if not {"connectivity", "offsets"} <= set(arrays):
        return []
    connectivity = _numbers(arrays["connectivity"]).astype(int)
    ends = _numbers(arrays["offsets"]).astype(int)
    return [connectivity[a:b].tolist() for a, b in itertools.pairwise([0, *ends])]


def _numbers(array: ET.Element | None) -> np.ndarray:
    if array is None:
        raise ValueError("it lacks an array of points")
    if array.get("format", "ascii") != "ascii":
        raise ValueError(f"its data are {array.get('format')}; only ascii can be read")
    return np.array((array.text or "").split(), float)


def _read_stl(path: Path) -> np.ndarray:
    raw = read_bytes(path)
    count = int.from_bytes(raw[STL_HEADER_BYTES - 4 : STL_HEADER_BYTES], "little")
    # A binary file may begin with "solid" too; its length tells.
    if len(raw) == STL_HEADER_BYTES + count * STL_FACE.itemsize:
        return np.frombuffer(raw, STL_FACE, count, STL_HEADER_BYTES)["corners"].astype(float)
    words = raw.decode("latin-1").split()
    if words[:1] != ["solid"]:
        raise ValueError("it is neither an ASCII nor a whole binary STL file")
    numbers = [words[i + 1 : i + 4] for i, word in enumerate(words) if word == "vertex"]
    return np.array(numbers, float).reshape(-1, 3, 3)


def _read_obj(path: Path) -> np.ndarray:
    points, corners = [], []
    for line in read_text(path).split("\n"):
        words = line.split()
        if words[:1] == ["v"]:
            points.append([float(w) for w in words[1:4]])
        elif words[:1] == ["f"]:
            indices = [int(w.split("/")[0]) for w in words[1:]]
            # Counted from 1, or from the end where negative.
            cell = [i - 1 if i > 0 else len(points) + i for i in indices]
            corners += [(cell[0], cell[i], cell[i + 1]) for i in range(1, len(cell) - 1)]
    return _pick(np.array(points, float).reshape(-1, 3), corners)


def _pick(points: np.ndarray, corners: list[tuple[int, int, int]]) -> np.ndarray:
    index = np.array(corners, int).reshape(-1, 3)
    if index.size and (index.min() < 0 or index.max() >= len(points)):
        raise ValueError(f"a face uses point {index.max()} of {len(points)}")
    return points[index]


def write_stl(path: Path, triangles: np.ndarray) -> None:
    """Writes triangles ``[faces 3 3]`` as binary STL; normals are left to the reader."""
    faces = np.zeros(len(triangles), STL_FACE)
    faces["corners"] = triangles
    with atomic_write(path, binary=True) as stream:
        stream.write(bytes(STL_HEADER_BYTES - 4) + len(faces).to_bytes(4, "little"))
        stream.write(faces.tobytes())
