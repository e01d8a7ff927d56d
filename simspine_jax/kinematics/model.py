"""The spine model as a pytree around an ``mjx.Model``, and how to load one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import FileFormatError, UnknownNameError, one_line
from simspine_jax.io.files import read_bytes
from simspine_jax.io.sidecar import VERSION, MarkerDescription, ModelDescription, read_sidecar
from simspine_jax.kinematics.coordinates import CoordinateMap, build_coordinate_map
from simspine_jax.kinematics.rest import Root, find_root, start_poses
from simspine_jax.kinematics.topology import Topology

if TYPE_CHECKING:
    from mujoco import mjx

# Part of the cache key of models converted on the fly: raise it when the converter's output changes.
CONVERTER_VERSION = 3
STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpineModel:
    """A converted OpenSim model: an ``mjx.Model`` and the exact coordinate map, ready for jit and grad.

    Lengths in metres, angles in radians, in OpenSim's ground frame (Y up). Bodies, coordinates and markers
    are in OpenSim's order; ``free_names`` are the coordinates that neither a coupler nor a lock sets.
    """

    mjx_model: mjx.Model
    lower: Float[Array, " Q"]
    upper: Float[Array, " Q"]
    default_q: Float[Array, " Q"]
    default_coordinates: Float[Array, " C"]
    parent_offset: Float[Array, "bodies 3"]
    child_offset: Float[Array, "bodies 3"]
    scale_axis: Float[Array, "N 3"]
    start_q: Float[Array, "S Q"]
    coordinate_map: CoordinateMap = field(metadata=STATIC)
    topology: Topology = field(metadata=STATIC)
    name: str = field(metadata=STATIC)
    coordinate_names: tuple[str, ...] = field(metadata=STATIC)
    free_names: tuple[str, ...] = field(metadata=STATIC)
    body_names: tuple[str, ...] = field(metadata=STATIC)
    marker_names: tuple[str, ...] = field(metadata=STATIC)
    qpos_names: tuple[str, ...] = field(metadata=STATIC)
    rotational: tuple[bool, ...] = field(metadata=STATIC)
    root: Root | None = field(metadata=STATIC)
    scalable: bool = field(metadata=STATIC, default=True)

    @property
    def n_free(self) -> int:
        """Number of free coordinates Q."""
        return len(self.free_names)

    @property
    def n_markers(self) -> int:
        """Number of markers K."""
        return len(self.marker_names)

    @property
    def dtype(self) -> jnp.dtype:
        """Floating-point type of the model's arrays."""
        return self.lower.dtype

    @property
    def marker_locations(self) -> Float[Array, "K 3"]:
        """Marker positions in their bodies, metres."""
        return self.mjx_model.site_pos[np.array(self.topology.marker_sites, int)]

    def marker_indices(self, names: Sequence[str]) -> np.ndarray:
        """Positions of the named markers in the model.

        Raises:
            UnknownNameError: the model lacks one of them.
        """
        return _indices("Marker", names, self.marker_names, f"the model {self.name}")

    def free_indices(self, names: Sequence[str]) -> np.ndarray:
        """Positions of the named coordinates among the free ones.

        Raises:
            UnknownNameError: one is not a free coordinate.
        """
        return _indices("Free coordinate", names, self.free_names, f"the model {self.name}")


def _indices(kind: str, names: Sequence[str], valid: tuple[str, ...], where: str) -> np.ndarray:
    index = {name: i for i, name in enumerate(valid)}
    for name in names:
        if name not in index:
            raise UnknownNameError(kind, name, where, valid)
    return np.array([index[name] for name in names], int)


def load_model(
    path: str | Path,
    markers: str | Path | None = None,
    *,
    ignore_constraints: Sequence[str] = (),
    dtype: jnp.dtype | None = None,
) -> SpineModel:
    """Loads a converted model, or converts an OpenSim model on the fly.

    Args:
        path: a converted model (its ``.xml``, its ``.json`` or the folder that holds one), or an ``.osim``
            file. An ``.osim`` is converted once and kept in the user's cache by content.
        markers: a marker set (XML) to use instead of the model's own markers.
        ignore_constraints: names of constraints of an ``.osim`` to leave out knowingly.
        dtype: ``float32`` or ``float64``; default: float64 if JAX has it enabled, else float32.

    Raises:
        FileFormatError: a file is missing or malformed.
        UnsupportedModelError: an ``.osim`` with elements that can't be exact.
        MissingDependencyError: an ``.osim`` was given and OpenSim is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".osim":
        mjcf = converted_path(path, markers, ignore_constraints)
        return read_converted(mjcf, None, dtype)
    return read_converted(path, markers, dtype)


def converted_path(path: Path, markers: str | Path | None, ignore_constraints: Sequence[str]) -> Path:
    """Where the conversion of ``path`` is kept; converts it first if it isn't there."""
    from simspine_jax.assets import cache_folder

    if not path.is_file():
        raise FileFormatError(f"There is no file {path}; give an OpenSim model (.osim) or a converted model")
    digest = hashlib.sha256(path.read_bytes())
    if markers is not None:
        if not Path(markers).is_file():
            raise FileFormatError(f"There is no marker set {markers}")
        digest.update(b"markers" + Path(markers).read_bytes())
    digest.update(repr((sorted(ignore_constraints), VERSION, CONVERTER_VERSION)).encode())
    target = cache_folder("models") / digest.hexdigest()[:32] / f"{path.stem}.xml"
    if not target.with_suffix(".json").exists():
        from simspine_jax.kinematics.isolated import convert_isolated

        # OpenSim works in a process of its own, a thread waits for it, and what reading its result needs is
        # imported meanwhile: here, as the import swaps the process's standard output for a moment.
        with ThreadPoolExecutor(1) as pool:
            converted = pool.submit(
                convert_isolated, path, target, markers=markers, ignore_constraints=ignore_constraints
            )
            import_mjx()
            converted.result()
    return target


def find_converted(path: Path) -> Path:
    """The sidecar of a converted model given by its MJCF, its sidecar or its folder."""
    if path.is_dir():
        found = sorted(p for p in path.glob("*.json") if p.with_suffix(".xml").exists())
        if len(found) != 1:
            raise FileFormatError(f"{path} holds {len(found)} converted models; give the .xml of one")
        return found[0]
    sidecar = path.with_suffix(".json")
    if path.suffix not in (".xml", ".json") or not sidecar.is_file():
        raise FileFormatError(
            f"{path} is not a model: give an .osim, or a converted .xml with its .json sidecar beside it"
        )
    return sidecar


def read_converted(path: Path, markers: str | Path | None, dtype: jnp.dtype | None) -> SpineModel:
    """Reads MJCF and sidecar and checks that they belong together."""
    sidecar = find_converted(path)
    description = read_sidecar(sidecar)
    mjcf = sidecar.with_suffix(".xml")
    try:
        # MuJoCo takes names in any encoding, Python only in this one.
        read_bytes(mjcf).decode()
        mj_model = mujoco.MjModel.from_xml_path(str(mjcf))
    except ValueError as error:
        raise FileFormatError(f"MuJoCo can't read {mjcf}: {one_line(str(error))}") from None
    if markers is not None:
        description = dataclasses.replace(description, markers=_read_markers(markers, description))
        mj_model = _with_sites(mjcf, description)
    return build_model(description, mj_model, str(mjcf), dtype)


def _read_markers(path: str | Path, description: ModelDescription) -> tuple[MarkerDescription, ...]:
    from simspine_jax.io.marker_set import read_marker_set

    bodies = [b.name for b in description.bodies]
    definitions = read_marker_set(path)
    for d in definitions:
        if d.body != "ground" and d.body not in bodies:
            raise UnknownNameError(
                f"Marker '{d.name}' of {path}: body", d.body, f"the model {description.name}", bodies
            )
    return tuple(MarkerDescription(d.name, d.body, tuple(map(float, d.location))) for d in definitions)


def _with_sites(mjcf: Path, description: ModelDescription) -> mujoco.MjModel:
    """The MJCF with the description's markers as its sites."""
    spec = mujoco.MjSpec.from_file(str(mjcf))
    for site in list(spec.sites):
        spec.delete(site)
    for marker in description.markers:
        body = spec.worldbody if marker.body == "ground" else spec.body(marker.body)
        body.add_site(name=marker.name, pos=marker.location)
    return spec.compile()


def build_model(
    description: ModelDescription, mj_model: mujoco.MjModel, where: str, dtype: jnp.dtype | None = None
) -> SpineModel:
    """The pytree from a description and the compiled MJCF.

    Raises:
        FileFormatError: names or numbers of the MJCF don't match the sidecar.
    """
    _check_names(description, mj_model, where)
    kind = jnp.dtype(dtype) if dtype is not None else jnp.zeros(0).dtype
    if kind not in (jnp.float32, jnp.float64):
        raise FileFormatError(f"A model can be float32 or float64, not {kind}")
    if kind == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise FileFormatError("float64 needs jax.config.update('jax_enable_x64', True) before anything else")
    topology = _build_topology(description, mj_model)
    free = [c for c in description.coordinates if c.role == "free"]
    by_name = {b.name: b for b in description.bodies}
    tree = [by_name[mj_model.body(i).name] for i in range(1, mj_model.nbody)]
    ground = np.zeros((1, 3))
    scale_axis = np.array([j.scale_axis or (np.nan,) * 3 for j in description.joint_positions]).reshape(-1, 3)
    bounds = _free_bounds(description)
    arrays = {
        "lower": bounds[0],
        "upper": bounds[1],
        "default_q": [c.default for c in free],
        "default_coordinates": [c.default for c in description.coordinates],
        "parent_offset": np.concatenate([ground, [b.parent_offset for b in tree]]) if tree else ground,
        "child_offset": np.concatenate([ground, [b.child_offset for b in tree]]) if tree else ground,
        "scale_axis": scale_axis,
    }
    coordinate_map = build_coordinate_map(description)
    axes = np.array(mj_model.jnt_axis)
    arrays["start_q"] = start_poses(
        coordinate_map, topology, axes, np.array(arrays["default_q"], float), bounds
    )
    return SpineModel(
        mjx_model=jax.tree.map(
            lambda x: x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            import_mjx().put_model(mj_model),
        ),
        **{name: jnp.asarray(np.asarray(values, float), kind) for name, values in arrays.items()},
        coordinate_map=coordinate_map,
        topology=topology,
        name=description.name,
        coordinate_names=tuple(c.name for c in description.coordinates),
        free_names=tuple(c.name for c in free),
        body_names=tuple(b.name for b in description.bodies),
        marker_names=tuple(m.name for m in description.markers),
        qpos_names=tuple(j.name for j in description.joint_positions),
        # Not "coupled": OpenSim leaves such coordinates (patella angles) in radians in its files.
        rotational=tuple(c.motion == "rotational" for c in description.coordinates),
        root=find_root(coordinate_map, topology, axes, np.array(mj_model.body_quat)),
        scalable=description.scalable,
    )


def _free_bounds(description: ModelDescription) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of the free coordinates, infinite where nothing clamps them.

    A clamped coordinate that follows a free one linearly bounds it too; ranges of coordinates that follow
    several, or by a curve, bound nothing, nor do ranges that leave no value.
    """
    free = [c for c in description.coordinates if c.role == "free"]
    place = {c.name: i for i, c in enumerate(free)}
    lower = np.array([c.minimum if c.clamped else -np.inf for c in free], float)
    upper = np.array([c.maximum if c.clamped else np.inf for c in free], float)
    for c in description.coordinates:
        factors = {name: factor for name, factor in c.value.coefficients.items() if factor != 0}
        follows = c.role == "coupled" and len(factors) == 1 and not c.value.terms
        if not (follows and c.clamped and c.minimum <= c.maximum):
            continue
        ((name, factor),) = factors.items()
        ends = sorted((end - c.value.constant) / factor for end in (c.minimum, c.maximum))
        low, high = max(lower[place[name]], ends[0]), min(upper[place[name]], ends[1])
        if low <= high:
            lower[place[name]], upper[place[name]] = low, high
    return lower, upper


def import_mjx():
    """``mujoco.mjx`` without the lines that it prints where Warp is not installed."""
    if "mujoco.mjx" in sys.modules:
        return sys.modules["mujoco.mjx"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from mujoco import mjx
    return mjx


def _check_names(description: ModelDescription, mj_model: mujoco.MjModel, where: str) -> None:
    pairs = (
        (
            "bodies",
            sorted(b.name for b in description.bodies),
            sorted(mj_model.body(i).name for i in range(1, mj_model.nbody)),
        ),
        (
            "joints",
            [j.name for j in description.joint_positions],
            [mj_model.joint(i).name for i in range(mj_model.njnt)],
        ),
        (
            "sites",
            sorted(m.name for m in description.markers),
            sorted(mj_model.site(i).name for i in range(mj_model.nsite)),
        ),
    )
    for kind, wanted, found in pairs:
        if wanted != found:
            odd = one_line((sorted(set(wanted) ^ set(found)) or ["their order"])[0])
            raise FileFormatError(
                f"{where} and its sidecar differ in their {kind}: {odd}; convert the model again"
            )
    numbers = (mj_model.body_pos, mj_model.body_quat, mj_model.jnt_axis, mj_model.jnt_pos, mj_model.site_pos)
    if not all(np.isfinite(x).all() for x in numbers):
        raise FileFormatError(f"{where} holds a number that is not finite; convert the model again")
    kinds = {int(mujoco.mjtJoint.mjJNT_HINGE): "hinge", int(mujoco.mjtJoint.mjJNT_SLIDE): "slide"}
    for i, joint in enumerate(description.joint_positions):
        if kinds.get(int(mj_model.jnt_type[i])) != joint.kind:
            raise FileFormatError(
                f"{where}: joint {one_line(joint.name)} is not the {joint.kind} that the sidecar says"
            )


def _build_topology(description: ModelDescription, mj_model: mujoco.MjModel) -> Topology:
    marker_bodies = [0 if m.body == "ground" else mj_model.body(m.body).id for m in description.markers]
    return Topology(
        parents=tuple(int(p) for p in mj_model.body_parentid),
        joint_bodies=tuple(int(b) for b in mj_model.jnt_bodyid),
        joint_is_hinge=tuple(int(t) == int(mujoco.mjtJoint.mjJNT_HINGE) for t in mj_model.jnt_type),
        body_order=tuple(int(mj_model.body(b.name).id) for b in description.bodies),
        marker_bodies=tuple(int(b) for b in marker_bodies),
        marker_sites=tuple(int(mj_model.site(m.name).id) for m in description.markers),
    )
