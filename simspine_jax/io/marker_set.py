"""OpenSim marker sets: where markers sit on the bodies of a model (``Markers_*.xml``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from simspine_jax.errors import ShapeError
from simspine_jax.io.cells import first_duplicate, is_name
from simspine_jax.io.files import PathLike, atomic_write, malformed, shown
from simspine_jax.io.xml_reader import (
    XmlElement,
    child,
    describe,
    document_object,
    name_of,
    numbers_of,
    set_objects,
    text_of,
)

MAX_LOCATION_M = 10.0
"""No body of a person is this long; millimetres that are meant as metres are beyond it."""

# What OpenSim 4.1 and later, 4.0's beta, and 3 call the body that a marker is fixed to.
_PARENT_TAGS = ("socket_parent_frame", "socket_parent_frame_connectee_name", "body")


@dataclass(frozen=True)
class MarkerDefinition:
    """A marker on a body.

    Attributes:
        name: of the marker.
        body: name of the body, or ``ground``.
        location: x, y, z in the body's frame, m; up to `MAX_LOCATION_M`.

    Raises:
        ShapeError: a name is blank or a path, or the location is none.
    """

    name: str
    body: str
    location: tuple[float, float, float]

    def __post_init__(self) -> None:
        for text in (self.name, self.body):
            if not is_name(text):
                raise ShapeError(f"{shown(text)} is no name; valid is printable text, trimmed")
        if "/" in self.body or self.body == "..":
            raise ShapeError(f"{shown(self.body)} is no body; valid is a name without a path")
        if len(self.location) != 3 or not all(abs(x) <= MAX_LOCATION_M for x in self.location):
            valid = f"three numbers up to {MAX_LOCATION_M:g} m"
            raise ShapeError(f"marker {shown(self.name)} is at {self.location}; valid is {valid}")


def read_marker_set(path: PathLike) -> tuple[MarkerDefinition, ...]:
    """Read the markers of an OpenSim 3 or 4 marker set, in the order of the file.

    Raises:
        FileFormatError: no marker set, no markers, repeated names, a marker without body or location, one
            on an offset frame (its location is not in a body's frame), or a location beyond
            `MAX_LOCATION_M`.
    """
    marker_set = document_object(path, "MarkerSet")
    markers = tuple(_read_marker(path, element) for element in set_objects(path, marker_set, "Marker"))
    if not markers:
        raise malformed(
            path, marker_set.line, "the MarkerSet has no markers", "one Marker or more in objects"
        )
    return markers


def write_marker_set(path: PathLike, markers: Sequence[MarkerDefinition]) -> None:
    """Write an OpenSim 4 marker set.

    Raises:
        ShapeError: names repeat.
        SimspineError: the file can't be written.
    """
    if (twice := first_duplicate(marker.name for marker in markers)) is not None:
        raise ShapeError(f"marker {shown(twice)} is defined twice; valid is one of each name")
    with atomic_write(path) as file:
        file.write('<?xml version="1.0" encoding="UTF-8" ?>\n<OpenSimDocument Version="40000">\n')
        file.write('\t<MarkerSet name="markerset">\n\t\t<objects>\n')
        for marker in markers:
            frame = "/ground" if marker.body == "ground" else f"/bodyset/{marker.body}"
            file.write(f"\t\t\t<Marker name={quoteattr(marker.name)}>\n")
            file.write(f"\t\t\t\t<socket_parent_frame>{escape(frame)}</socket_parent_frame>\n")
            file.write(f"\t\t\t\t<location>{' '.join(map(repr, marker.location))}</location>\n")
            file.write("\t\t\t</Marker>\n")
        file.write("\t\t</objects>\n\t\t<groups />\n\t</MarkerSet>\n</OpenSimDocument>\n")


def _read_marker(path: PathLike, element: XmlElement) -> MarkerDefinition:
    location = child(path, element, "location")
    if location is None:
        raise malformed(path, element.line, f"{describe(element)} has no location", "x y z in metres")
    x, y, z = numbers_of(path, location, 3)
    if max(abs(x), abs(y), abs(z)) > MAX_LOCATION_M:
        what = f"{describe(element)} is at {x:g} {y:g} {z:g}"
        raise malformed(path, location.line, what, f"up to {MAX_LOCATION_M:g} m")
    return MarkerDefinition(name_of(path, element), _read_body(path, element), (x, y, z))


def _read_body(path: PathLike, element: XmlElement) -> str:
    found = [item for tag in _PARENT_TAGS if (item := child(path, element, tag)) is not None]
    if len(found) != 1:
        what = f"{describe(element)} names {len(found)} bodies"
        raise malformed(path, element.line, what, f"one {' or '.join(_PARENT_TAGS)}")
    frame = text_of(found[0])
    parts = [part for part in frame.split("/") if part not in ("", "..")]
    # /bodyset/torso, ../../bodyset/torso, /ground or plain torso; a longer path leads to an offset frame.
    on_body = len(parts) == 1 or (len(parts) == 2 and parts[0] == "bodyset")
    if not on_body or not is_name(parts[-1]):
        what = f"{describe(element)} is on the frame {shown(frame)}"
        raise malformed(path, found[0].line, what, "a body, such as /bodyset/torso")
    return parts[-1]
