"""The conversion as one call: a model file in, an MJCF and its sidecar out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import mujoco
import opensim as osim

from osim2mjcf.mjcf import describe_bodies, describe_uncoupled, place_bodies, write_mjcf
from osim2mjcf.reader import read_model
from simspine_jax.errors import UnsupportedModelError, one_line
from simspine_jax.io.files import atomic_write
from simspine_jax.io.sidecar import ModelDescription, write_sidecar


def convert(
    model: str | Path,
    output: str | Path,
    *,
    markers: str | Path | None = None,
    meshes: str | Path | None = None,
    ignore_constraints: Collection[str] = (),
) -> Path:
    """Converts an OpenSim model; returns the path of the MJCF.

    Args:
        model: an ``.osim`` file of any version that OpenSim reads.
        output: the MJCF to write (``.xml``), or a folder, which then gets ``<model name>.xml``. The sidecar
            stands beside it with the ending ``.json``.
        markers: a marker set (XML) that takes the place of the model's own markers.
        meshes: a folder with the bones' ``.vtp``, ``.stl`` or ``.obj`` files; they are written to
            ``meshes/`` beside the MJCF and attached to it.
        ignore_constraints: names of constraints to leave out knowingly.

    Raises:
        FileFormatError: OpenSim can't read the model or the marker set.
        UnsupportedModelError: the model holds elements that can't be exact; all are named.
    """
    source = read_model(model, markers, ignore_constraints)
    output = Path(output)
    target = output if output.suffix == ".xml" else output / f"{Path(model).stem}.xml"
    geometry, notes = (), ()
    if meshes is not None:
        from osim2mjcf.meshes import attach_meshes

        geometry, notes = attach_meshes(source.model, Path(meshes), target.parent / "meshes")
    placements = place_bodies(source)
    document = write_mjcf(source, placements, geometry)
    description = ModelDescription(
        name=source.name,
        mjcf=target.name,
        source=Path(model).name,
        source_sha256=source.sha256,
        opensim_version=osim.GetVersion(),
        gravity=source.gravity,
        coordinates=source.coordinates,
        bodies=describe_bodies(source, placements),
        markers=source.markers,
        joint_positions=tuple(joint for p in placements for joint, _ in p.joints),
        terms=source.terms,
        geometry=geometry,
        scalable=source.scalable,
        notes=(*source.notes, *notes),
        uncoupled=describe_uncoupled(source),
    )
    with atomic_write(target) as stream:
        stream.write(document)
        stream.flush()
        # Before the file gets its name, so that nothing is left of a model that MuJoCo refuses.
        try:
            mujoco.MjModel.from_xml_path(stream.name)
        except ValueError as error:
            raise UnsupportedModelError(
                f"MuJoCo refuses the converted {model}: {one_line(str(error))}"
            ) from None
    write_sidecar(target.with_suffix(".json"), description)
    return target
