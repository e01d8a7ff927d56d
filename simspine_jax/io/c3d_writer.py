"""Writes a C3D file with ezc3d, as a process of its own: ``python c3d_writer.py OUT.c3d < arrays.npz``.

ezc3d and OpenSim are both SWIG modules and share its table of C++ types in a process; once OpenSim has
handled a vector of strings, ezc3d takes none any more.
"""

from __future__ import annotations

import io
import sys

import ezc3d
import numpy as np


def write(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes points [4 K T] and residuals [1 K T] with their labels, rate, units and first frame."""
    file = ezc3d.c3d()
    point = file["parameters"]["POINT"]
    point["RATE"]["value"] = [float(arrays["rate"])]
    point["LABELS"]["value"] = [str(name) for name in arrays["labels"]]
    point["UNITS"]["value"] = (str(arrays["units"]),)
    file.add_parameter("POINT", "X_SCREEN", ("+X",))
    file.add_parameter("POINT", "Y_SCREEN", ("+Y",))
    file["data"]["points"] = arrays["points"]
    file["data"]["meta_points"]["residuals"] = arrays["residuals"]
    file["header"]["points"]["first_frame"] = int(arrays["first_frame"])
    file.write(path)


if __name__ == "__main__":
    with np.load(io.BytesIO(sys.stdin.buffer.read())) as given:
        write(sys.argv[1], dict(given))
