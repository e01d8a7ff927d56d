"""Scaled OpenSim models, written by OpenSim itself, and its scale tool to compare with.

``python -m osim2mjcf.opensim_scale MODEL.osim OUTPUT.osim REQUEST.json`` scales one model as a process of its
own and prints one JSON line, as ``python -m osim2mjcf`` does; ``simspine_jax.kinematics.isolated`` reads it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import opensim as osim

from osim2mjcf.reader import OPENSIM_ERRORS, explain, load_osim, read_frame
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError, UnknownNameError
from simspine_jax.io import ScaleSetup, read_scale_setup

Vector = Sequence[float]

# A marker that the tool's own scaling carries along, so that the factors are read in full precision: the file
# that it writes has six digits.
_PROBE = "scale_probe_of_"


@dataclass(frozen=True)
class ToolResult:
    """What OpenSim's scale tool did.

    Attributes:
        factors: by body.
        pose: all coordinates of the static pose by name, rad and m; None where no markers were placed.
        model: where the scaled model was written.
    """

    factors: dict[str, tuple[float, float, float]]
    pose: dict[str, float] | None
    model: Path


def scale_osim(
    model: str | Path,
    output: str | Path,
    factors: Mapping[str, Vector],
    *,
    mass_kg: float,
    preserve_mass_distribution: bool = True,
    markers: str | Path | None = None,
    marker_offsets: Mapping[str, Vector] | None = None,
    name: str | None = None,
) -> Path:
    """Scales an OpenSim model by OpenSim's ``Model::scale`` and writes it whole or not at all.

    Joints, markers, muscles, masses and inertias are scaled as the scale tool scales them.

    Args:
        model: the generic model (``.osim``).
        output: the scaled model to write (``.osim``).
        factors: x, y and z factors by body; bodies that are not named keep their size.
        mass_kg: of the scaled model.
        preserve_mass_distribution: whether bodies keep their shares of the mass; else their masses grow with
            their volume before the whole is brought to ``mass_kg``.
        markers: a marker set (XML) that takes the place of the model's own markers; it is scaled too.
        marker_offsets: added to the scaled markers' locations, metres in their bodies' frames.
        name: of the scaled model; default: the generic model's.

    Returns:
        The path of the scaled model.

    Raises:
        FileFormatError: OpenSim can't read the model or the marker set.
        UnknownNameError: factors or offsets name something that the model lacks.
        ShapeError: a factor or the mass is not positive, or an offset is not finite.
        SimspineError: the model can't be written.
    """
    source = load_osim(Path(model), None if markers is None else Path(markers))
    _check(source, factors, marker_offsets or {}, mass_kg, Path(model))
    scales = osim.ScaleSet()
    # As in the tool, ground and bodies that keep their size have factors too.
    for body in ("ground", *(body.getName() for body in source.getBodyList())):
        scale = osim.Scale()
        scale.setSegmentName(body)
        scale.setScaleFactors(osim.Vec3(*map(float, factors.get(body, (1, 1, 1)))))
        scale.setApply(True)
        scales.cloneAndAppend(scale)
    try:
        if not source.scale(source.initSystem(), scales, preserve_mass_distribution, float(mass_kg)):
            raise FileFormatError(f"OpenSim can't scale {model}; valid is a model that its scale tool scales")
        for marker, offset in (marker_offsets or {}).items():
            _move(source.updMarkerSet().get(marker), offset)
        if name is not None:
            source.setName(name)
        source.initSystem()
    except OPENSIM_ERRORS as error:
        raise FileFormatError(f"OpenSim can't scale {model}: {explain(error)}") from None
    return _print(source, Path(output))


def run_scale_tool(
    setup: str | Path,
    model: str | Path,
    trajectory: str | Path,
    output: str | Path,
    *,
    markers: str | Path | None = None,
    place: bool | None = None,
) -> ToolResult:
    """Runs OpenSim's own scale tool by a setup, on other files than the setup names.

    Args:
        setup: the tool's setup (XML).
        model: the generic model (``.osim``), in place of the setup's.
        trajectory: the static trial (``.trc``), in place of the setup's.
        output: the scaled model to write (``.osim``).
        markers: a marker set (XML) that takes the place of the model's own markers.
        place: whether markers are moved to the measured ones; default: as the setup says.

    Raises:
        FileFormatError: OpenSim can't read a file, or its tool fails.
        SimspineError: the model can't be written.
    """
    read: ScaleSetup = read_scale_setup(setup)
    source = load_osim(Path(model))
    try:
        if markers is not None:
            # As the tool does it, which keeps what a marker set says of fixed markers.
            source.updateMarkerSet(osim.MarkerSet(str(Path(markers).resolve())))
            source.initSystem()
        tool = osim.ScaleTool(str(Path(setup).resolve()))
        names = [body.getName() for body in source.getBodyList()]
        for body in names:
            source.addMarker(osim.Marker(_PROBE + body, source.getBodySet().get(body), osim.Vec3(1, 1, 1)))
        source.finalizeConnections()
        source.initSystem()
        scaler = tool.getModelScaler()
        scaler.setMarkerFileName(str(Path(trajectory).resolve()))
        scaler.setPrintResultFiles(False)
        mass = -1.0 if read.mass_kg is None else read.mass_kg
        if read.scaling.apply and not scaler.processModel(source, "", mass):
            raise FileFormatError(f"OpenSim's scale tool can't scale {model} by {setup}")
        factors = {body: _take_probe(source, body) for body in names}
        source.finalizeConnections()
        source.initSystem()
        placer = tool.getMarkerPlacer()
        placer.setApply(True)
        placer.setMarkerFileName(str(Path(trajectory).resolve()))
        placer.setPrintResultFiles(False)
        placed = read.placing.apply if place is None else place
        if placed and not placer.processModel(source, ""):
            raise FileFormatError(f"OpenSim's scale tool can't place the markers of {model} by {setup}")
        pose = _pose(source) if placed else None
    except OPENSIM_ERRORS as error:
        raise FileFormatError(f"OpenSim's scale tool fails on {setup}: {explain(error)}") from None
    return ToolResult(factors, pose, _print(source, Path(output)))


def _pose(source: osim.Model) -> dict[str, float]:
    state, found = source.getWorkingState(), source.getCoordinateSet()
    coordinates = [found.get(i) for i in range(found.getSize())]
    return {c.getName(): c.getValue(state) for c in coordinates}


def _take_probe(source: osim.Model, body: str) -> tuple[float, float, float]:
    """The factors of a body, which are where its probe went; the probe is taken away."""
    markers = source.updMarkerSet()
    where = markers.get(_PROBE + body).get_location()
    factors = where.get(0), where.get(1), where.get(2)
    markers.remove(markers.getIndex(_PROBE + body))
    return factors


def _check(
    source: osim.Model,
    factors: Mapping[str, Vector],
    marker_offsets: Mapping[str, Vector],
    mass_kg: float,
    path: Path,
) -> None:
    bodies = [body.getName() for body in source.getBodyList()]
    found = source.getMarkerSet()
    markers = [found.get(i).getName() for i in range(found.getSize())]
    for kind, given, valid in (("Body", factors, bodies), ("Marker", marker_offsets, markers)):
        for name in given:
            if name not in valid:
                raise UnknownNameError(kind, name, str(path), valid)
    for body, row in factors.items():
        if len(row) != 3 or not all(math.isfinite(x) and x > 0 for x in row):
            raise ShapeError(
                f"The scale factors of body '{body}' are {list(row)}; valid are three above zero"
            )
    for marker, row in marker_offsets.items():
        if len(row) != 3 or not all(map(math.isfinite, row)):
            raise ShapeError(
                f"The offset of marker '{marker}' is {list(row)}; valid are three finite numbers"
            )
    if not (math.isfinite(mass_kg) and mass_kg > 0):
        raise ShapeError(f"The mass is {mass_kg} kg; valid is one above zero")


def _move(marker: osim.Marker, offset: Vector) -> None:
    """Moves a marker by an offset in its body's frame; its own frame may be turned in the body."""
    turned = read_frame(marker.getParentFrame()).rotation.T @ np.asarray(offset, float)
    here = marker.get_location()
    marker.set_location(osim.Vec3(*(here.get(i) + float(turned[i]) for i in range(3))))


def _print(source: osim.Model, output: Path) -> Path:
    """Writes a model, which appears whole or not at all."""
    target = Path(os.path.realpath(output))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scaling-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            if not source.printToXML(str(made)) or not made.is_file():
                raise SimspineError(f"{output} can't be written; valid is a path that can be")
            os.replace(made, target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SimspineError(f"{output} can't be written ({reason}); valid is a path that can be") from None
    return Path(output)


def main(arguments: list[str] | None = None) -> int:
    """Scales and reports; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m osim2mjcf.opensim_scale", description="A scaled OpenSim model, written by OpenSim."
    )
    parser.add_argument("model", help="the generic .osim file")
    parser.add_argument("output", help="the scaled .osim to write")
    parser.add_argument("request", type=Path, help="a .json file with the other arguments of scale_osim")
    given = parser.parse_args(arguments)
    # OpenSim prints from C++ to descriptor 1, so the report keeps a descriptor of its own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:
        os.dup2(2, 1)
        try:
            request = json.loads(given.request.read_text(encoding="utf-8"))
            result = {"osim": str(scale_osim(given.model, given.output, **request))}
        except SimspineError as error:
            result = {"error": type(error).__name__, "message": str(error)}
        report.write(json.dumps(result) + "\n")
    return 2 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
