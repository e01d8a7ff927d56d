"""The paper's spine model with its markers, fetched and converted once a machine."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from simspine_jax.assets import PACKAGE_VERSION, cache_folder, geometry_path, spine_model_path
from simspine_jax.io.sidecar import VERSION
from simspine_jax.kinematics.isolated import convert_isolated
from simspine_jax.kinematics.model import CONVERTER_VERSION
from simspine_jax.skeleton import write_paper_marker_set


def paper_markers() -> Path:
    """The paper's markers as an OpenSim marker set, in the cache."""
    path = cache_folder("models") / f"paper_markers-{PACKAGE_VERSION}.xml"
    if not path.is_file():
        write_paper_marker_set(path)
    return path


def converted_spine() -> Path:
    """The spine model with the paper's markers and bones, converted once a machine."""
    with tempfile.TemporaryDirectory() as folder:
        markers = Path(folder) / "paper_markers.xml"
        write_paper_marker_set(markers)
        key = repr((PACKAGE_VERSION, VERSION, CONVERTER_VERSION, markers.read_bytes()))
        name = f"spine-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        target = cache_folder("models") / name / "spine.xml"
        if not target.with_suffix(".json").exists():
            source = spine_model_path()
            print("converting the OpenSim model and its bones", flush=True)
            convert_isolated(source, target, markers=markers, meshes=geometry_path())
    return target
