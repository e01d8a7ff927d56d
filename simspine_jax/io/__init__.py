"""Files in and out: marker trajectories, motions, marker sets, and setups of scaling and inverse kinematics.

Arrays inside are metres, seconds and, after `to_radians`, radians; missing markers are NaN.
"""

from __future__ import annotations

from pathlib import Path

from simspine_jax.io.c3d import read_c3d, write_c3d
from simspine_jax.io.files import PathLike, atomic_write, malformed, read_text, shown
from simspine_jax.io.ik_setup import CoordinateTask, IKSetup, MarkerTask, read_ik_setup
from simspine_jax.io.marker_set import MarkerDefinition, read_marker_set, write_marker_set
from simspine_jax.io.scale_setup import (
    ManualScale,
    Measurement,
    PlacingStage,
    ScaleSetup,
    ScalingStage,
    read_scale_setup,
    write_scale_setup,
)
from simspine_jax.io.sto import Storage, read_sto, to_degrees, to_radians, write_sto
from simspine_jax.io.trc import MarkerTrajectory, read_trc, write_trc, zup_to_yup

__all__ = [
    "CoordinateTask",
    "IKSetup",
    "ManualScale",
    "MarkerDefinition",
    "MarkerTask",
    "MarkerTrajectory",
    "Measurement",
    "PlacingStage",
    "ScaleSetup",
    "ScalingStage",
    "Storage",
    "atomic_write",
    "read_c3d",
    "read_ik_setup",
    "read_marker_set",
    "read_markers",
    "read_scale_setup",
    "read_sto",
    "read_text",
    "read_trc",
    "to_degrees",
    "to_radians",
    "write_c3d",
    "write_marker_set",
    "write_scale_setup",
    "write_sto",
    "write_trc",
    "zup_to_yup",
]


def read_markers(path: PathLike) -> MarkerTrajectory:
    """Read marker trajectories by the file's suffix: ``.trc`` or ``.c3d``.

    Raises:
        FileFormatError: another suffix, or what `read_trc` or `read_c3d` raises.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".trc":
        return read_trc(path)
    if suffix == ".c3d":
        return read_c3d(path)
    raise malformed(path, None, f"the suffix is {shown(suffix)}", ".trc or .c3d")
