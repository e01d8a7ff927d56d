"""Camera calibrations: Pose2Sim's TOML, Qualisys' ``.qca.txt``, OpenCV's YAML and XML, Human3.6M's JSON.

Importing this module imports JAX, unlike the rest of `simspine_jax.io`: it returns `Cameras`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simspine_jax.errors import MissingDependencyError, SimspineError, one_line
from simspine_jax.geometry.cameras import Cameras, DistortionModel
from simspine_jax.io.cells import first_duplicate, is_name
from simspine_jax.io.files import PathLike, atomic_write, malformed, place, read_text, shown
from simspine_jax.io.xml_reader import XmlElement, child, parse_xml, text_of

MAX_TRANSLATION_M = 1000.0
"""No camera stands a kilometre from its world's origin; millimetres that are taken for metres do."""

ROTATION_TOLERANCE = 1e-4
"""How far R'R may be from the identity: files round their matrices to five digits and more."""

QUALISYS_SUBPIXELS = 64.0
"""Qualisys writes focal lengths, centres and sensor limits in 64ths of a pixel."""

# How programs call the same thing; compared in lower case without underscores.
_KEYS = {
    "K": ("k", "matrix", "cameramatrix", "intrinsicmatrix", "intrinsics", "m"),
    "distortion": ("dist", "distortions", "distortioncoefficients", "distcoeffs", "distortion", "d"),
    "rotation": ("rot", "r", "rvec", "rotation", "rotationmatrix", "rotationvector"),
    "translation": ("t", "tvec", "translation", "translationvector"),
    "size": ("size", "imagesize", "resolution"),
    "width": ("imagewidth", "width", "w"),
    "height": ("imageheight", "height", "h"),
}
_DISTORTION_LENGTHS = (0, 4, 5, 8)


@dataclass(frozen=True)
class _Camera:
    name: str
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    distortion: NDArray[np.float64]
    size: NDArray[np.float64]


def read_cameras(path: PathLike, *, subject: str | None = None) -> Cameras:
    """Read a calibration by the suffix and content of its file; arrays are NumPy's, float64.

    - ``.toml``: a table for each camera with ``size``, ``matrix`` (K), ``distortions``, ``rotation`` (a
      rotation vector) and ``translation`` (metres), as Pose2Sim and the SIMSPINE release have it.
    - Qualisys' XML (``.qca.txt``): see `_qualisys_camera` for its conventions.
    - OpenCV's FileStorage (``.yml``, ``.yaml``, ``.xml``): K, distortion, rotation (vector or matrix) and
      translation in metres, under any of their usual names; one camera that is called like the file, a map
      for each camera, or names with the camera's behind an underscore (``K_01``, ``Rot_01``, ``T_01``).
    - ``.json``: Human3.6M's cameras of several subjects, of which ``subject`` is one; millimetres, and the
      distortion model ``"h36m"``.

    Raises:
        FileFormatError: the file is none of these, or it lacks something, names a camera twice, or holds
            numbers that can't be right: not finite, a focal length that is not positive, a rotation that
            is none, a translation beyond `MAX_TRANSLATION_M`, more distortion coefficients than eight.
        MissingDependencyError: YAML without PyYAML.
    """
    suffix = Path(path).suffix.lower()
    if subject is not None and suffix != ".json":
        raise malformed(path, None, f"it holds no subjects, such as {shown(subject)}", "no subject here")
    if suffix == ".json":
        return _human36m(path, subject)
    readers: dict[str, Callable[[PathLike], list[_Camera]]] = {
        ".toml": _read_toml,
        ".txt": _read_xml,
        ".xml": _read_xml,
        ".yml": _read_yaml,
        ".yaml": _read_yaml,
    }
    if suffix not in readers:
        valid = ".toml, .qca.txt, .xml, .yml, .yaml or .json"
        raise malformed(path, None, f"the suffix is {shown(suffix)}", valid)
    return _stacked(path, readers[suffix](path), "opencv")


def cameras_from_entries(path: PathLike, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> Cameras:
    """Cameras from names and what a file says of each under its usual keys; arrays are NumPy's, float64.

    Args:
        path: what errors name as the place.
        entries: of each camera K (px), distortion (OpenCV's order), rotation (vector or matrix), translation
            (m) and, where it is known, size (px).

    Raises:
        FileFormatError: as `read_cameras`.
    """
    return _stacked(path, [_camera(path, name, entry) for name, entry in entries], "opencv")


def write_cameras_toml(path: PathLike, cameras: Cameras) -> None:
    """Write Pose2Sim's TOML, which `read_cameras` reads back; a size that is not known is left out.

    Raises:
        SimspineError: the file can't be written, or the distortion is Human3.6M's, which TOML can't say.
    """
    if cameras.distortion_model != "opencv":
        raise SimspineError(
            f"{place(path)}: the distortion model is '{cameras.distortion_model}'; valid is 'opencv' in TOML"
        )
    vectors = Rotation.from_matrix(np.asarray(cameras.rotations, float)).as_rotvec()
    with atomic_write(path) as file:
        for v, name in enumerate(cameras.names):
            focal, center = np.asarray(cameras.focal_lengths[v]), np.asarray(cameras.principal_points[v])
            matrix = [[focal[0], cameras.skews[v], center[0]], [0, focal[1], center[1]], [0, 0, 1]]
            distortion, size = np.asarray(cameras.distortion[v], float), np.asarray(cameras.sizes[v], float)
            used = 1 + max(np.flatnonzero(distortion), default=0)
            length = next(length for length in _DISTORTION_LENGTHS[1:] if length >= used)
            label = json.dumps(name, ensure_ascii=False)
            file.write(f"[{label}]\nname = {label}\n")
            if np.isfinite(size).all():
                file.write(f"size = {_numbers(size)}\n")
            file.write(f"matrix = [{', '.join(_numbers(row) for row in matrix)}]\n")
            file.write(f"distortions = {_numbers(distortion[:length])}\n")
            file.write(f"rotation = {_numbers(vectors[v])}\n")
            file.write(f"translation = {_numbers(np.asarray(cameras.translations[v]))}\n")
            file.write("fisheye = false\n\n")


def _numbers(values: Iterable[Any]) -> str:
    return "[" + ", ".join(repr(float(value)) for value in values) + "]"


# --- one camera ---


def _stacked(path: PathLike, cameras: list[_Camera], model: DistortionModel) -> Cameras:
    if not cameras:
        raise malformed(path, None, "it holds no cameras", "at least one")
    names = tuple(camera.name for camera in cameras)
    for name in names:
        if not is_name(name):
            raise malformed(path, None, f"{shown(name)} is no camera name", "printable text, trimmed")
    if (twice := first_duplicate(names)) is not None:
        raise malformed(path, None, f"camera {shown(twice)} is there twice", "one of each name")
    intrinsics = np.stack([camera.intrinsics for camera in cameras])
    return Cameras(
        rotations=np.stack([camera.rotation for camera in cameras]),
        translations=np.stack([camera.translation for camera in cameras]),
        focal_lengths=intrinsics[:, [0, 1], [0, 1]],
        principal_points=intrinsics[:, :2, 2],
        skews=intrinsics[:, 0, 1],
        distortion=np.stack([camera.distortion for camera in cameras]),
        sizes=np.stack([camera.size for camera in cameras]),
        names=names,
        distortion_model=model,
    )


def _camera(path: PathLike, name: str, entry: Mapping[str, Any]) -> _Camera:
    """A camera from what a file says of it, under any of the usual keys."""
    found = {}
    for kind, keys in _KEYS.items():
        given = {key: value for key, value in entry.items() if key.lower().replace("_", "") in keys}
        if len(given) > 1 and kind != "rotation":
            raise malformed(path, None, f"camera {shown(name)} has {' and '.join(given)}", "one of them")
        if given:  # where both a rotation vector and a matrix are there, the first in _KEYS' order counts
            found[kind] = min(given.items(), key=lambda item: keys.index(item[0].lower().replace("_", "")))
    for kind in ("K", "distortion", "rotation", "translation"):
        if kind not in found:
            raise malformed(
                path, None, f"camera {shown(name)} has no {kind}", f"one of {', '.join(_KEYS[kind])}"
            )
    if entry.get("fisheye"):
        raise malformed(path, None, f"camera {shown(name)} has a fisheye lens", "fisheye = false")

    def numbers(kind: str, *lengths: int) -> NDArray[np.float64]:
        key, value = found[kind]
        return _array(path, name, key, value, lengths)

    rotation = numbers("rotation", 3, 9)
    size = numbers("size", 2) if "size" in found else np.full(2, np.nan)
    if "width" in found and "height" in found:
        size = np.concatenate([numbers("width", 1), numbers("height", 1)])
    return _checked(
        path,
        name,
        Rotation.from_rotvec(rotation).as_matrix() if len(rotation) == 3 else rotation.reshape(3, 3),
        numbers("translation", 3),
        numbers("K", 9).reshape(3, 3),
        numbers("distortion", *_DISTORTION_LENGTHS),
        size,
    )


def _array(path: PathLike, name: str, key: str, value: Any, lengths: tuple[int, ...]) -> NDArray[np.float64]:
    """The finite numbers of a value, flat."""
    try:
        array = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        array = np.array([np.nan])
    valid = f"{' or '.join(map(str, lengths))} finite numbers"
    if not np.isfinite(array).all() or len(array) not in lengths:
        raise malformed(path, None, f"{key} of camera {shown(name)} is {shown(str(value))}", valid)
    return array


def _checked(
    path: PathLike,
    name: str,
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    distortion: NDArray[np.float64],
    size: NDArray[np.float64],
) -> _Camera:
    def bad(what: str, valid: str) -> NoReturn:
        raise malformed(path, None, f"camera {shown(name)} has {what}", valid)

    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        bad(f"the rotation {shown(str(rotation.tolist()))}", "a rotation: orthonormal rows, determinant 1")
    if np.linalg.norm(translation) > MAX_TRANSLATION_M:
        bad(f"the translation {translation.tolist()}", f"metres, up to {MAX_TRANSLATION_M:g}")
    if (intrinsics[[0, 1], [0, 1]] <= 0).any():
        bad(f"the focal lengths {intrinsics[[0, 1], [0, 1]].tolist()}", "positive pixels")
    if intrinsics[1, 0] or intrinsics[2].tolist() != [0, 0, 1]:
        bad(f"the matrix {shown(str(intrinsics.tolist()))}", "[[fx, skew, cx], [0, fy, cy], [0, 0, 1]]")
    if (size <= 0).any():
        bad(f"the size {size.tolist()}", "a positive width and height")
    padded = np.pad(distortion, (0, 8 - len(distortion)))
    return _Camera(name, rotation, translation, intrinsics, padded, size)


# --- formats ---


def _read_toml(path: PathLike) -> list[_Camera]:
    try:
        document = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise malformed(
            path, None, f"the TOML is broken ({one_line(str(error))})", "a TOML document"
        ) from None
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    tables.pop("metadata", None)
    return [_camera(path, str(table.get("name", key)), table) for key, table in tables.items()]


def _read_xml(path: PathLike) -> list[_Camera]:
    root = parse_xml(path)
    if root.tag == "opencv_storage":
        return _storage(path, _xml_map(path, root))
    cameras = child(path, root, "cameras") if root.tag == "calibration" else None
    if cameras is None:
        valid = "'calibration' with cameras (Qualisys) or 'opencv_storage'"
        raise malformed(path, root.line, f"the document is {shown(root.tag)}", valid)
    return [_qualisys_camera(path, item) for item in cameras if isinstance(item, XmlElement)]


def _qualisys_camera(path: PathLike, camera: XmlElement) -> _Camera:
    """A camera of Qualisys Track Manager.

    ``transform`` gives the camera's centre (mm) and a rotation whose rows are the camera's axes in the
    world, the second and third pointing up and backwards where ours point down and forwards. Focal lengths
    and centres are in 64ths of a pixel; the distortion coefficients, which act on normalised coordinates,
    have no unit. (Pose2Sim's converter divides these by 64 too, which leaves nearly no distortion.) The
    picture's size is that of the video's field of view, whose last row and column are given.
    """
    name = camera.get("serial", "")

    def attributes(tag: str, keys: str) -> list[float]:
        element = child(path, camera, tag)
        given = {} if element is None else element.attrib
        return [float(_array(path, name, f"{tag} {key}", given.get(key), (1,))[0]) for key in keys.split()]

    rows = np.reshape(attributes("transform", "r11 r12 r13 r21 r22 r23 r31 r32 r33"), (3, 3))
    rotation = np.diag([1.0, -1.0, -1.0]) @ rows
    center = np.array(attributes("transform", "x y z")) / 1000
    focal_x, focal_y, center_x, center_y, skew = (
        value / QUALISYS_SUBPIXELS
        for value in attributes("intrinsic", "focalLengthU focalLengthV centerPointU centerPointV skew")
    )
    k1, k2, p1, p2, k3 = attributes(
        "intrinsic",
        "radialDistortion1 radialDistortion2 tangentalDistortion1 tangentalDistortion2 radialDistortion3",
    )
    left, top, right, bottom = attributes("fov_video", "left top right bottom")
    intrinsics = np.array([[focal_x, skew, center_x], [0, focal_y, center_y], [0, 0, 1]])
    size = np.array([right - left + 1, bottom - top + 1])
    return _checked(
        path, name, rotation, -rotation @ center, intrinsics, np.array([k1, k2, p1, p2, k3]), size
    )


def _storage(path: PathLike, document: Mapping[str, Any]) -> list[_Camera]:
    """Cameras of an OpenCV FileStorage, whichever way it keeps them apart."""
    nested = {key: value for key, value in document.items() if isinstance(value, Mapping)}
    if nested:
        return [_camera(path, str(value.get("name", key)), value) for key, value in nested.items()]
    plain = {key.lower().replace("_", "") for key in document}
    if plain & set(_KEYS["K"]):
        return [_camera(path, Path(path).name.split(".")[0], document)]
    split: dict[str, dict[str, Any]] = {}
    for key, value in document.items():
        kind, _, name = key.partition("_")
        if name and any(kind.lower() in keys for keys in _KEYS.values()):
            split.setdefault(name, {})[kind] = value
    return [_camera(path, name, entry) for name, entry in split.items()]


def _xml_map(path: PathLike, element: XmlElement) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in element:
        assert isinstance(item, XmlElement)
        if item.tag in found:
            raise malformed(path, item.line, f"{shown(item.tag)} is there twice", "one of each name")
        if item.get("type_id") == "opencv-matrix":
            data = child(path, item, "data")
            found[item.tag] = [] if data is None else text_of(data).split()
        elif len(item):
            found[item.tag] = _xml_map(path, item)
        else:
            found[item.tag] = text_of(item).split()
    return found


def _read_yaml(path: PathLike) -> list[_Camera]:
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError("pyyaml", "yaml", "Reading YAML calibrations") from None

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
        pairs = [
            (str(loader.construct_object(k)), loader.construct_object(v, deep=True)) for k, v in node.value
        ]
        if (twice := first_duplicate(key for key, _ in pairs)) is not None:
            what = f"{shown(twice)} is there twice"
            raise malformed(path, node.start_mark.line + 1, what, "one of each name")
        return dict(pairs)

    def matrix(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
        return mapping(loader, node).get("data", [])

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", matrix)
    # OpenCV writes a directive that no YAML parser but its own takes.
    lines = ["" if line.startswith("%YAML") else line for line in read_text(path).split("\n")]
    try:
        document = yaml.load("\n".join(lines), Loader)
    except (yaml.YAMLError, RecursionError) as error:
        what = f"the YAML is broken ({one_line(str(error))})"
        raise malformed(path, None, what, "a YAML document of OpenCV") from None
    if not isinstance(document, dict):
        raise malformed(path, None, f"the YAML holds a {type(document).__name__}", "names and values")
    return _storage(path, document)


def _human36m(path: PathLike, subject: str | None) -> Cameras:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twice := first_duplicate(key for key, _ in pairs)) is not None:
            raise malformed(path, None, f"{shown(twice)} is there twice", "one of each name")
        return dict(pairs)

    try:
        document = json.loads(read_text(path), object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise malformed(
            path, None, f"the JSON is broken ({one_line(str(error))})", "a JSON document"
        ) from None
    subjects, lenses = (
        document.get(key) if isinstance(document, dict) else None for key in ("cameras", "intrinsics")
    )
    if not (isinstance(subjects, dict) and isinstance(lenses, dict)):
        raise malformed(path, None, "it lacks cameras or intrinsics", "Human3.6M's cameras by subject")
    if subject not in subjects:
        given = "no subject is given" if subject is None else f"there is no subject {shown(subject)}"
        raise malformed(path, None, given, "one of " + ", ".join(subjects))
    cameras = []
    for name, pose in subjects[subject].items():
        lens = lenses.get(name)
        if not (isinstance(pose, dict) and isinstance(lens, dict)):
            raise malformed(path, None, f"camera {shown(name)} lacks pose or intrinsics", "both, as maps")
        millimetres = _array(path, name, "t_mm", pose.get("t_mm"), (3,))
        entry = {"R": pose.get("R"), "t": millimetres / 1000, "K": lens.get("K")}
        entry |= {"dist": lens.get("dist_opencv"), "size": [lens.get("width"), lens.get("height")]}
        cameras.append(_camera(path, name, entry))
    return _stacked(path, cameras, "h36m")
