"""Setup files of OpenSim's inverse kinematics tool."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from simspine_jax.io.files import PathLike, malformed, shown
from simspine_jax.io.xml_reader import (
    XmlElement,
    child,
    describe,
    document_object,
    flag_of,
    name_of,
    numbers_of,
    set_objects,
    text_of,
)

ValueType = Literal["default_value", "manual_value", "from_file"]

DEFAULT_ACCURACY = 1e-5
"""What OpenSim 4.6 takes where a setup has no ``accuracy``."""


@dataclass(frozen=True)
class MarkerTask:
    """How much a marker counts in inverse kinematics.

    Attributes:
        name: of the marker.
        weight: not negative; OpenSim's default is 0.
        apply: whether the task is used at all.
    """

    name: str
    weight: float
    apply: bool = True


@dataclass(frozen=True)
class CoordinateTask:
    """How much a coordinate is pulled to a value in inverse kinematics.

    Attributes:
        name: of the coordinate.
        weight: not negative; OpenSim's default is 0.
        apply: whether the task is used at all.
        value_type: pulled to the model's default, to ``value``, or to the values of the coordinate file.
        value: as written, rad or m; None where the setup has none.
    """

    name: str
    weight: float
    apply: bool = True
    value_type: ValueType = "default_value"
    value: float | None = None


@dataclass(frozen=True)
class IKSetup:
    """A setup of OpenSim's inverse kinematics.

    Attributes:
        marker_tasks: in the order of the file, each marker once.
        coordinate_tasks: in the order of the file, each coordinate once.
        constraint_weight: inf where constraints are enforced.
        accuracy: of the optimiser, as OpenSim defines it.
        time_range: first and last time, s; (-inf, inf) takes the whole trial.
        model_file: as written, relative to the setup; None where the setup has none.
        marker_file: likewise.
        coordinate_file: likewise.
        output_motion_file: likewise.
    """

    marker_tasks: tuple[MarkerTask, ...] = ()
    coordinate_tasks: tuple[CoordinateTask, ...] = ()
    constraint_weight: float = math.inf
    accuracy: float = DEFAULT_ACCURACY
    time_range: tuple[float, float] = (-math.inf, math.inf)
    model_file: str | None = None
    marker_file: str | None = None
    coordinate_file: str | None = None
    output_motion_file: str | None = None


def read_ik_setup(path: PathLike) -> IKSetup:
    """Read a setup of OpenSim 3 or 4, or a file that holds only its ``IKTaskSet``.

    Tasks are also followed into the file that ``<IKTaskSet file="…">`` names. A tag that is missing has
    OpenSim's default, after the document's own ``<defaults>``. One default differs: without ``time_range``
    this reads the whole trial, which is what OpenSim documents; OpenSim 4.6 stops at 2 s.

    Raises:
        FileFormatError: no such setup, tasks of another kind or with repeated names, weights that are
            negative or not finite, and values that are not what the tag asks for.
    """
    tool = document_object(path, "InverseKinematicsTool", "IKTaskSet")
    if tool.tag == "IKTaskSet":
        markers, coordinates = read_tasks(path, tool, tool)
        return IKSetup(markers, coordinates)
    task_set = child(path, tool, "IKTaskSet")
    markers, coordinates = ((), ()) if task_set is None else read_tasks(path, tool, task_set)
    return IKSetup(
        marker_tasks=markers,
        coordinate_tasks=coordinates,
        constraint_weight=_read_constraint_weight(path, tool),
        accuracy=_read_accuracy(path, tool),
        time_range=read_time_range(path, tool),
        model_file=read_file_name(path, tool, "model_file"),
        marker_file=read_file_name(path, tool, "marker_file"),
        coordinate_file=read_file_name(path, tool, "coordinate_file"),
        output_motion_file=read_file_name(path, tool, "output_motion_file"),
    )


def read_tasks(
    path: PathLike, tool: XmlElement, task_set: XmlElement
) -> tuple[tuple[MarkerTask, ...], tuple[CoordinateTask, ...]]:
    """The tasks of an ``IKTaskSet`` of a tool, also where it names another file."""
    if elsewhere := task_set.get("file", "").strip():
        if tool is task_set:
            what = f"the IKTaskSet refers on to {shown(elsewhere)}"
            raise malformed(path, task_set.line, what, "tasks in objects")
        other = Path(os.path.dirname(os.fspath(path)), elsewhere)
        task_set = document_object(other, "IKTaskSet")
        return read_tasks(other, task_set, task_set)
    defaults = _read_defaults(path, tool)
    marker_tasks: list[MarkerTask] = []
    coordinate_tasks: list[CoordinateTask] = []
    for task in set_objects(path, task_set, "IKMarkerTask", "IKCoordinateTask"):
        fallback = defaults.get(task.tag)
        if task.tag == "IKMarkerTask":
            marker_tasks.append(MarkerTask(*_read_task(path, task, fallback)))
        else:
            coordinate_tasks.append(_read_coordinate_task(path, task, fallback))
    return tuple(marker_tasks), tuple(coordinate_tasks)


def _read_defaults(path: PathLike, tool: XmlElement) -> dict[str, XmlElement]:
    """The task of each kind whose values stand for those that other tasks leave out."""
    tasks: dict[str, XmlElement] = {}
    for block in tool.iter("defaults"):
        for task in block:
            tasks.setdefault(task.tag, cast(XmlElement, task))
    return tasks


def _read_task(path: PathLike, task: XmlElement, fallback: XmlElement | None) -> tuple[str, float, bool]:
    weight, apply = (_property(path, task, fallback, tag) for tag in ("weight", "apply"))
    (value,) = (0.0,) if weight is None else numbers_of(path, weight, 1)
    if value < 0:
        raise malformed(path, task.line, f"{describe(task)} has the weight {value:g}", "zero or more")
    return name_of(path, task), value, True if apply is None else flag_of(path, apply)


def _read_coordinate_task(path: PathLike, task: XmlElement, fallback: XmlElement | None) -> CoordinateTask:
    kind, value = (_property(path, task, fallback, tag) for tag in ("value_type", "value"))
    value_type = "default_value" if kind is None else text_of(kind)
    if value_type not in get_args(ValueType):
        what = f"{describe(task)} has the value_type {shown(value_type)}"
        raise malformed(path, task.line, what, " or ".join(get_args(ValueType)))
    number = None if value is None else numbers_of(path, value, 1)[0]
    if value_type == "manual_value" and number is None:
        what = f"{describe(task)} has the value_type manual_value and no value"
        raise malformed(path, task.line, what, "a number")
    return CoordinateTask(*_read_task(path, task, fallback), cast(ValueType, value_type), number)


def _property(path: PathLike, task: XmlElement, fallback: XmlElement | None, tag: str) -> XmlElement | None:
    own = child(path, task, tag)
    return own if own is not None or fallback is None else child(path, fallback, tag)


def _read_constraint_weight(path: PathLike, tool: XmlElement) -> float:
    element = child(path, tool, "constraint_weight")
    if element is None or text_of(element).lower() in ("", "unassigned"):
        return math.inf
    (weight,) = numbers_of(path, element, 1, infinite=True)
    if weight < 0:
        raise malformed(path, element.line, f"constraint_weight is {weight:g}", "zero or more, or Inf")
    return weight


def _read_accuracy(path: PathLike, tool: XmlElement) -> float:
    element = child(path, tool, "accuracy")
    if element is None:
        return DEFAULT_ACCURACY
    (accuracy,) = numbers_of(path, element, 1)
    if accuracy <= 0:
        raise malformed(path, element.line, f"accuracy is {accuracy:g}", "a positive number")
    return accuracy


def read_time_range(path: PathLike, tool: XmlElement) -> tuple[float, float]:
    """First and last time of a tool, s; (-inf, inf) where it has none."""
    element = child(path, tool, "time_range")
    if element is None or not text_of(element):
        return -math.inf, math.inf
    first, last = numbers_of(path, element, 2, infinite=True)
    if first > last:
        what = f"time_range is {first:g} to {last:g} s"
        raise malformed(path, element.line, what, "a start before its end")
    return first, last


def read_file_name(path: PathLike, tool: XmlElement, tag: str) -> str | None:
    """The file that a tag of a tool names; None where it names none."""
    element = child(path, tool, tag)
    name = "" if element is None else text_of(element)
    if element is not None and not name.isprintable() and name:
        raise malformed(path, element.line, f"{tag} is {shown(name)}", "a file name on one line")
    # OpenSim writes 'Unassigned' for a file that is not set.
    return name if name and name.lower() != "unassigned" else None
