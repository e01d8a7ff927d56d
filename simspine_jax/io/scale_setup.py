"""Setup files of OpenSim's scale tool."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, cast, get_args
from xml.etree import ElementTree

from simspine_jax.errors import ShapeError
from simspine_jax.io.cells import is_name
from simspine_jax.io.files import PathLike, atomic_write, malformed, shown
from simspine_jax.io.ik_setup import (
    CoordinateTask,
    IKSetup,
    MarkerTask,
    read_file_name,
    read_tasks,
    read_time_range,
)
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

ScalingStep = Literal["measurements", "manualScale"]

WHOLE_TRIAL = (-math.inf, math.inf)
_AXES = "XYZ"
# OpenSim reads no infinite times; what lies beyond these is written so, and read as infinite.
_FOREVER_S = 1e30


@dataclass(frozen=True)
class Measurement:
    """Bodies that are scaled by the distances between pairs of markers.

    Attributes:
        name: of the measurement.
        pairs: of marker names; their ratios are averaged.
        bodies: that get the ratio.
        axes: for each body the axes that get it, such as ``XYZ`` or ``Y``; default: all of them.
        apply: whether the measurement is used at all.

    Raises:
        ShapeError: a pair without two names, axes that are none, or another number of them than of bodies.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    bodies: tuple[str, ...]
    axes: tuple[str, ...] = ()
    apply: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple((str(a), str(b)) for a, b in self.pairs))
        object.__setattr__(self, "bodies", tuple(self.bodies))
        object.__setattr__(self, "axes", tuple(self.axes) or (_AXES,) * len(self.bodies))
        if len(self.axes) != len(self.bodies):
            raise ShapeError(
                f"measurement {shown(self.name)} has {len(self.axes)} entries of axes for "
                f"{len(self.bodies)} bodies; valid is one for each"
            )
        for axes in self.axes:
            if not set(axes) <= set(_AXES) or len(set(axes)) != len(axes):
                raise ShapeError(
                    f"measurement {shown(self.name)} has the axes {shown(axes)}; valid are letters of {_AXES}"
                )


@dataclass(frozen=True)
class ManualScale:
    """Scale factors of one body along x, y and z that are given and not measured."""

    body: str
    factors: tuple[float, float, float]
    apply: bool = True


@dataclass(frozen=True)
class ScalingStage:
    """How a scale tool finds and applies scale factors (``ModelScaler``).

    Attributes:
        apply: whether the model is scaled at all.
        order: of the steps, of which a later one overwrites an earlier one; without a step nothing is scaled.
        measurements: in the order of the file; a later one overwrites an earlier one.
        manual: factors that are given.
        marker_file: as written, relative to the setup; None where the setup has none.
        time_range: first and last time, s; `WHOLE_TRIAL` takes all frames.
        preserve_mass_distribution: whether bodies keep their shares of the mass.
        output_model_file: as written; None where the setup has none.
        output_scale_file: likewise.
    """

    apply: bool = True
    order: tuple[ScalingStep, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    manual: tuple[ManualScale, ...] = ()
    marker_file: str | None = None
    time_range: tuple[float, float] = WHOLE_TRIAL
    preserve_mass_distribution: bool = False
    output_model_file: str | None = None
    output_scale_file: str | None = None


@dataclass(frozen=True)
class PlacingStage:
    """How a scale tool moves the model's markers to the measured ones (``MarkerPlacer``).

    Attributes:
        apply: whether markers are moved at all.
        marker_tasks: of the static pose's inverse kinematics, each marker once.
        coordinate_tasks: likewise, each coordinate once.
        marker_file: as written, relative to the setup; None where the setup has none.
        coordinate_file: likewise.
        time_range: over which marker positions are averaged, s; `WHOLE_TRIAL` takes all frames.
        max_marker_movement: above which OpenSim warns, in the marker file's unit; None for no limit.
        output_model_file: as written; None where the setup has none.
        output_marker_file: likewise.
        output_motion_file: likewise.
    """

    apply: bool = True
    marker_tasks: tuple[MarkerTask, ...] = ()
    coordinate_tasks: tuple[CoordinateTask, ...] = ()
    marker_file: str | None = None
    coordinate_file: str | None = None
    time_range: tuple[float, float] = WHOLE_TRIAL
    max_marker_movement: float | None = None
    output_model_file: str | None = None
    output_marker_file: str | None = None
    output_motion_file: str | None = None

    @property
    def ik_setup(self) -> IKSetup:
        """The static pose's tasks as a setup of inverse kinematics."""
        return IKSetup(self.marker_tasks, self.coordinate_tasks)


@dataclass(frozen=True)
class ScaleSetup:
    """A setup of OpenSim's scale tool.

    Attributes:
        name: of the subject.
        mass_kg: None where the setup has none.
        height_mm: likewise; OpenSim does not use it.
        age_years: likewise.
        model_file: the generic model as written, relative to the setup; None where the setup has none.
        marker_set_file: likewise; it takes the place of the model's markers.
        scaling: the stage that scales.
        placing: the stage that moves markers.
    """

    name: str = "subject"
    mass_kg: float | None = None
    height_mm: float | None = None
    age_years: float | None = None
    model_file: str | None = None
    marker_set_file: str | None = None
    scaling: ScalingStage = field(default_factory=ScalingStage)
    placing: PlacingStage = field(default_factory=PlacingStage)


def read_scale_setup(path: PathLike) -> ScaleSetup:
    """Read a setup of OpenSim's scale tool, versions 3 and 4.

    A tag that is missing has OpenSim's default but for ``time_range``: without it this takes the whole trial,
    where OpenSim takes the first frame. Tasks may stand in a file of their own, other sets may not.

    Raises:
        FileFormatError: no such setup, names that are missing or repeat within a set, pairs that are not two
            markers, unknown axes or steps, factors that are not positive, and values that are not what their
            tag asks for.
    """
    tool = document_object(path, "ScaleTool")
    maker = child(path, tool, "GenericModelMaker")
    scaler, placer = (child(path, tool, tag) for tag in ("ModelScaler", "MarkerPlacer"))
    return ScaleSetup(
        name=tool.get("name", "").strip() or "subject",
        mass_kg=_read_positive(path, tool, "mass"),
        height_mm=_read_positive(path, tool, "height"),
        age_years=_read_positive(path, tool, "age"),
        model_file=None if maker is None else read_file_name(path, maker, "model_file"),
        marker_set_file=None if maker is None else read_file_name(path, maker, "marker_set_file"),
        scaling=ScalingStage() if scaler is None else _read_scaling(path, scaler),
        placing=PlacingStage() if placer is None else _read_placing(path, placer),
    )


def _read_scaling(path: PathLike, scaler: XmlElement) -> ScalingStage:
    measurement_set = _own_set(path, scaler, "MeasurementSet")
    measurements = () if measurement_set is None else set_objects(path, measurement_set, "Measurement")
    return ScalingStage(
        apply=_read_flag(path, scaler, "apply", True),
        order=_read_order(path, scaler),
        measurements=tuple(_read_measurement(path, element) for element in measurements),
        manual=tuple(_read_manual(path, scale) for scale in _members(path, scaler, "ScaleSet", "Scale")),
        marker_file=read_file_name(path, scaler, "marker_file"),
        time_range=_read_range(path, scaler),
        preserve_mass_distribution=_read_flag(path, scaler, "preserve_mass_distribution", False),
        output_model_file=read_file_name(path, scaler, "output_model_file"),
        output_scale_file=read_file_name(path, scaler, "output_scale_file"),
    )


def _read_placing(path: PathLike, placer: XmlElement) -> PlacingStage:
    tasks = child(path, placer, "IKTaskSet")
    markers, coordinates = ((), ()) if tasks is None else read_tasks(path, placer, tasks)
    movement = child(path, placer, "max_marker_movement")
    (limit,) = (-1.0,) if movement is None else numbers_of(path, movement, 1, infinite=True)
    return PlacingStage(
        apply=_read_flag(path, placer, "apply", True),
        marker_tasks=markers,
        coordinate_tasks=coordinates,
        marker_file=read_file_name(path, placer, "marker_file"),
        coordinate_file=read_file_name(path, placer, "coordinate_file"),
        time_range=_read_range(path, placer),
        max_marker_movement=limit if 0 <= limit < math.inf else None,
        output_model_file=read_file_name(path, placer, "output_model_file"),
        output_marker_file=read_file_name(path, placer, "output_marker_file"),
        output_motion_file=read_file_name(path, placer, "output_motion_file"),
    )


def _read_measurement(path: PathLike, element: XmlElement) -> Measurement:
    scales = _own_set(path, element, "BodyScaleSet")
    found = [] if scales is None else set_objects(path, scales, "BodyScale")
    return Measurement(
        name=name_of(path, element),
        pairs=tuple(
            _read_pair(path, pair) for pair in _members(path, element, "MarkerPairSet", "MarkerPair")
        ),
        bodies=tuple(name_of(path, scale) for scale in found),
        axes=tuple(_read_axes(path, scale) for scale in found),
        apply=_read_flag(path, element, "apply", True),
    )


def _read_pair(path: PathLike, element: XmlElement) -> tuple[str, str]:
    markers = child(path, element, "markers")
    names = [] if markers is None else text_of(markers).split()
    if len(names) != 2 or not all(map(is_name, names)):
        what = f"a MarkerPair has the markers {shown(' '.join(names))}"
        raise malformed(path, (markers if markers is not None else element).line, what, "two marker names")
    return names[0], names[1]


def _read_axes(path: PathLike, scale: XmlElement) -> str:
    element = child(path, scale, "axes")
    if element is None:
        raise malformed(path, scale.line, f"{describe(scale)} has no axes", "some of X Y Z")
    axes = [word.upper() for word in text_of(element).split()]
    if not axes or not set(axes) <= set(_AXES) or len(set(axes)) != len(axes):
        what = f"{describe(scale)} has the axes {shown(text_of(element))}"
        raise malformed(path, element.line, what, "some of X Y Z, each once")
    return "".join(sorted(axes))


def _read_manual(path: PathLike, element: XmlElement) -> ManualScale:
    scales, segment = (child(path, element, tag) for tag in ("scales", "segment"))
    body = "" if segment is None else text_of(segment)
    if not is_name(body):
        raise malformed(path, element.line, f"a Scale has the segment {shown(body)}", "the name of a body")
    if scales is None:
        raise malformed(path, element.line, f"the Scale of {shown(body)} has no scales", "three numbers")
    x, y, z = numbers_of(path, scales, 3)
    if min(x, y, z) <= 0:
        what = f"the Scale of {shown(body)} is {x:g} {y:g} {z:g}"
        raise malformed(path, scales.line, what, "three positive numbers")
    return ManualScale(body, (x, y, z), _read_flag(path, element, "apply", True))


def _read_order(path: PathLike, scaler: XmlElement) -> tuple[ScalingStep, ...]:
    element = child(path, scaler, "scaling_order")
    words = [] if element is None else text_of(element).split()
    valid = get_args(ScalingStep)
    for word in words:
        if word not in valid:
            line = scaler.line if element is None else element.line
            raise malformed(path, line, f"scaling_order has {shown(word)}", " or ".join(valid))
    return tuple(cast(list[ScalingStep], words))


def _read_range(path: PathLike, parent: XmlElement) -> tuple[float, float]:
    first, last = read_time_range(path, parent)
    return (-math.inf if first <= -_FOREVER_S else first), (math.inf if last >= _FOREVER_S else last)


def _read_positive(path: PathLike, tool: XmlElement, tag: str) -> float | None:
    """A number above zero; OpenSim writes -1 for one that is not known."""
    element = child(path, tool, tag)
    if element is None:
        return None
    (value,) = numbers_of(path, element, 1)
    return value if value > 0 else None


def _read_flag(path: PathLike, parent: XmlElement, tag: str, default: bool) -> bool:
    element = child(path, parent, tag)
    return default if element is None else flag_of(path, element)


def _own_set(path: PathLike, parent: XmlElement, tag: str) -> XmlElement | None:
    """A set that stands in this file."""
    found = child(path, parent, tag)
    if found is not None and (elsewhere := found.get("file", "").strip()):
        raise malformed(
            path, found.line, f"the {tag} refers to {shown(elsewhere)}", "a set in the setup itself"
        )
    return found


def _members(path: PathLike, parent: XmlElement, set_tag: str, tag: str) -> list[XmlElement]:
    """Members of a set whose members need no names."""
    found = _own_set(path, parent, set_tag)
    container = None if found is None else child(path, found, "objects")
    members = [] if container is None else [cast(XmlElement, item) for item in container]
    for member in members:
        if member.tag != tag:
            raise malformed(path, member.line, f"{set_tag} holds {shown(member.tag)}", tag)
    return members


def write_scale_setup(path: PathLike, setup: ScaleSetup) -> None:
    """Write a setup of OpenSim 4's scale tool; `read_scale_setup` gives the same setup back.

    Raises:
        SimspineError: the file can't be written.
    """
    tool = ElementTree.Element("ScaleTool", name=setup.name)
    _add(tool, "mass", -1 if setup.mass_kg is None else setup.mass_kg)
    _add(tool, "height", -1 if setup.height_mm is None else setup.height_mm)
    _add(tool, "age", -1 if setup.age_years is None else setup.age_years)
    maker = ElementTree.SubElement(tool, "GenericModelMaker")
    _add(maker, "model_file", setup.model_file)
    _add(maker, "marker_set_file", setup.marker_set_file)
    _add_scaling(tool, setup.scaling)
    _add_placing(tool, setup.placing)
    ElementTree.indent(tool, "\t")
    with atomic_write(path) as file:
        file.write('<?xml version="1.0" encoding="UTF-8" ?>\n<OpenSimDocument Version="40000">\n')
        file.write(f"{ElementTree.tostring(tool, encoding='unicode')}\n</OpenSimDocument>\n")


def _add_scaling(tool: ElementTree.Element, stage: ScalingStage) -> None:
    scaler = ElementTree.SubElement(tool, "ModelScaler")
    _add(scaler, "apply", stage.apply)
    _add(scaler, "scaling_order", " ".join(stage.order))
    measurements = _add_set(scaler, "MeasurementSet")
    for measurement in stage.measurements:
        element = ElementTree.SubElement(measurements, "Measurement", name=measurement.name)
        _add(element, "apply", measurement.apply)
        pairs, bodies = _add_set(element, "MarkerPairSet"), _add_set(element, "BodyScaleSet")
        for pair in measurement.pairs:
            _add(ElementTree.SubElement(pairs, "MarkerPair"), "markers", " ".join(pair))
        for body, axes in zip(measurement.bodies, measurement.axes, strict=True):
            _add(ElementTree.SubElement(bodies, "BodyScale", name=body), "axes", " ".join(axes))
    manual = _add_set(scaler, "ScaleSet")
    for scale in stage.manual:
        element = ElementTree.SubElement(manual, "Scale")
        _add(element, "scales", " ".join(repr(float(x)) for x in scale.factors))
        _add(element, "segment", scale.body)
        _add(element, "apply", scale.apply)
    _add(scaler, "marker_file", stage.marker_file)
    _add_range(scaler, stage.time_range)
    _add(scaler, "preserve_mass_distribution", stage.preserve_mass_distribution)
    _add(scaler, "output_model_file", stage.output_model_file)
    _add(scaler, "output_scale_file", stage.output_scale_file)


def _add_placing(tool: ElementTree.Element, stage: PlacingStage) -> None:
    placer = ElementTree.SubElement(tool, "MarkerPlacer")
    _add(placer, "apply", stage.apply)
    tasks = _add_set(placer, "IKTaskSet")
    for task in stage.marker_tasks:
        element = ElementTree.SubElement(tasks, "IKMarkerTask", name=task.name)
        _add(element, "apply", task.apply)
        _add(element, "weight", task.weight)
    for task in stage.coordinate_tasks:
        element = ElementTree.SubElement(tasks, "IKCoordinateTask", name=task.name)
        _add(element, "apply", task.apply)
        _add(element, "weight", task.weight)
        _add(element, "value_type", task.value_type)
        if task.value is not None:
            _add(element, "value", task.value)
    _add(placer, "marker_file", stage.marker_file)
    _add(placer, "coordinate_file", stage.coordinate_file)
    _add_range(placer, stage.time_range)
    _add(
        placer, "max_marker_movement", -1 if stage.max_marker_movement is None else stage.max_marker_movement
    )
    _add(placer, "output_model_file", stage.output_model_file)
    _add(placer, "output_marker_file", stage.output_marker_file)
    _add(placer, "output_motion_file", stage.output_motion_file)


def _add_set(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    return ElementTree.SubElement(ElementTree.SubElement(parent, tag), "objects")


def _add_range(parent: ElementTree.Element, time_range: tuple[float, float]) -> None:
    first, last = (max(-_FOREVER_S, min(_FOREVER_S, time)) for time in time_range)
    _add(parent, "time_range", f"{first!r} {last!r}")


def _add(parent: ElementTree.Element, tag: str, value: bool | float | str | None) -> None:
    # 'Unassigned' is what OpenSim writes for a file that is not set.
    text = "Unassigned" if value is None else value
    if not isinstance(text, str):
        text = str(text).lower() if isinstance(text, bool) else repr(float(text))
    ElementTree.SubElement(parent, tag).text = text
