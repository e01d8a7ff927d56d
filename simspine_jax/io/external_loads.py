"""External loads of OpenSim: which forces act on which body, and the file that holds them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import FileFormatError, UnknownNameError
from simspine_jax.io.files import PathLike, malformed, place, shown
from simspine_jax.io.sto import Storage, read_sto
from simspine_jax.io.xml_reader import (
    XmlElement,
    child,
    describe,
    document_object,
    flag_of,
    name_of,
    set_objects,
    text_of,
)

GROUND = "ground"


@dataclass(frozen=True)
class ExternalForce:
    """One force, torque or both from outside.

    Attributes:
        name: of the load.
        body: that it acts on.
        force: what the three columns of the force begin with; None for a torque alone.
        point: likewise of the point where it acts; None where it acts at the body's origin.
        torque: likewise of the torque; None where there is none.
        force_body: in whose axes force and torque are.
        point_body: in whose frame the point is.
    """

    name: str
    body: str
    force: str | None
    point: str | None
    torque: str | None
    force_body: str
    point_body: str


@dataclass(frozen=True)
class ExternalLoads:
    """The loads that act at once.

    Attributes:
        forces: those that are switched on, in the order of the file.
        data_file: as written, relative to the setup.
    """

    forces: tuple[ExternalForce, ...]
    data_file: str


@dataclass(frozen=True, eq=False)
class LoadTable:
    """Loads over time; NaN where the file has none.

    Attributes:
        times: [S] rising, s.
        force: [S L 3] N.
        point: [S L 3] m; zero where the load acts at its body's origin.
        torque: [S L 3] N m.
        bodies: that each load acts on.
        force_bodies: in whose axes force and torque are.
        point_bodies: in whose frame the point is.
        source: what messages call this table.
    """

    times: NDArray[np.float64]
    force: NDArray[np.float64]
    point: NDArray[np.float64]
    torque: NDArray[np.float64]
    bodies: tuple[str, ...]
    force_bodies: tuple[str, ...]
    point_bodies: tuple[str, ...]
    source: str


def read_external_loads(path: PathLike) -> ExternalLoads:
    """Read an ``ExternalLoads`` setup of OpenSim 3 or 4.

    Loads that are switched off are left out. The kinematics file and its filter, which OpenSim's other tools
    take points of application from, play no part in inverse dynamics and are not read.

    Raises:
        FileFormatError: no such setup, loads of another kind (``PrescribedForce``), with repeated names,
            without a body, a force and a torque, or with data of their own beside the setup's.
    """
    tool = document_object(path, "ExternalLoads")
    data_file = _text(path, tool, "datafile")
    if data_file is None:
        raise malformed(
            path, tool.line, "ExternalLoads names no datafile", "a .mot or .sto file with the loads"
        )
    forces = [_read_force(path, item) for item in set_objects(path, tool, "ExternalForce")]
    return ExternalLoads(tuple(f for f in forces if f is not None), data_file)


def read_load_table(path: PathLike) -> LoadTable:
    """The loads of a setup with their data over time.

    Raises:
        FileFormatError: what `read_external_loads` and `read_sto` raise, a setup without loads, and data in
            which a load has not exactly three columns.
        UnknownNameError: no column begins with what a load names.
    """
    loads = read_external_loads(path)
    if not loads.forces:
        raise malformed(path, None, "no load is switched on", "at least one ExternalForce that applies")
    table = read_sto(_beside(path, loads.data_file))
    count = table.n_frames

    def parts(name: str) -> NDArray[np.float64]:
        found = [getattr(f, name) for f in loads.forces]
        columns = [np.zeros((count, 3)) if x is None else _columns(table, x) for x in found]
        return np.stack(columns, axis=1)

    return LoadTable(
        table.times, parts("force"), parts("point"), parts("torque"),
        bodies=tuple(f.body for f in loads.forces),
        force_bodies=tuple(f.force_body for f in loads.forces),
        point_bodies=tuple(f.body if f.point is None else f.point_body for f in loads.forces),
        source=place(path),
    )  # fmt: skip


def _beside(path: PathLike, name: str) -> Path:
    """The file that a setup names; setups made on Windows may have backslashes."""
    return Path(os.path.dirname(os.fspath(path)), name.replace("\\", "/"))


def _columns(table: Storage, identifier: str) -> NDArray[np.float64]:
    """The three columns whose labels begin with the identifier, as OpenSim finds them."""
    found = [i for i, label in enumerate(table.columns) if label.startswith(identifier)]
    if not found:
        raise UnknownNameError("Column beginning with", identifier, table.source, table.columns)
    if len(found) != 3:
        labels = ", ".join(table.columns[i] for i in found[:8])
        raise FileFormatError(
            f"{table.source}: {len(found)} columns begin with {shown(identifier)} ({labels}); valid is an "
            "identifier that begins the labels of x, y and z alone"
        )
    return table.data[:, found]


def _read_force(path: PathLike, item: XmlElement) -> ExternalForce | None:
    applies, disabled = child(path, item, "appliesForce"), child(path, item, "isDisabled")
    if (applies is not None and not flag_of(path, applies)) or (
        disabled is not None and flag_of(path, disabled)
    ):
        return None
    body = _body(path, item, "applied_to_body")
    if body is None:
        raise malformed(path, item.line, f"{describe(item)} has no applied_to_body", "the name of a body")
    names = [_text(path, item, f"{kind}_identifier") for kind in ("force", "point", "torque")]
    force, point, torque = names
    if force is None and torque is None:
        what = f"{describe(item)} has neither a force_identifier nor a torque_identifier"
        raise malformed(path, item.line, what, "at least one of them")
    if force is None and point is not None:
        what = f"{describe(item)} has a point_identifier and no force_identifier"
        raise malformed(path, item.line, what, "a force where there is a point")
    return ExternalForce(
        name_of(path, item), body, force, point, torque,
        _body(path, item, "force_expressed_in_body") or GROUND,
        _body(path, item, "point_expressed_in_body") or GROUND,
    )  # fmt: skip


def _body(path: PathLike, item: XmlElement, tag: str) -> str | None:
    """A body's name, which OpenSim 4 also writes as a path (``/bodyset/calcn_r``, ``/ground``)."""
    name = _text(path, item, tag)
    return None if name is None else name.rsplit("/", 1)[-1]


def _text(path: PathLike, item: XmlElement, tag: str) -> str | None:
    element = child(path, item, tag)
    text = "" if element is None else text_of(element)
    if element is not None and text and not text.isprintable():
        raise malformed(path, element.line, f"{tag} is {shown(text)}", "printable text")
    return text if text and text.lower() != "unassigned" else None
