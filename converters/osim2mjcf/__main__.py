"""One conversion as a process of its own: ``python -m osim2mjcf MODEL OUTPUT``.

The result is one JSON line on standard output: ``{"mjcf": path}``, or ``{"error": class, "message": text}``
with exit status 2. ``simspine_jax.kinematics.isolated`` reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from simspine_jax.errors import MissingDependencyError, SimspineError


def main(arguments: list[str] | None = None) -> int:
    """Converts and reports; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m osim2mjcf", description="OpenSim model to MJCF and sidecar."
    )
    parser.add_argument("model", help="the .osim file")
    parser.add_argument("output", help="the .xml to write, or a folder")
    parser.add_argument("--markers", help="a marker set that takes the place of the model's markers")
    parser.add_argument("--meshes", help="the folder of the bones' meshes")
    parser.add_argument(
        "--ignore-constraint",
        action="append",
        default=[],
        metavar="NAME",
        help="a constraint to leave out knowingly",
    )
    given = parser.parse_args(arguments)
    # OpenSim prints from C++ to descriptor 1, so the report keeps a descriptor of its own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:
        os.dup2(2, 1)
        try:
            result = {"mjcf": _convert(given)}
        except SimspineError as error:
            result = {"error": type(error).__name__, "message": str(error)}
        report.write(json.dumps(result) + "\n")
    return 2 if "error" in result else 0


def _convert(given: argparse.Namespace) -> str:
    try:
        from osim2mjcf.convert import convert
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opensim":
            raise
        raise MissingDependencyError("opensim", "opensim", "Converting an OpenSim model") from None
    target = convert(
        given.model,
        given.output,
        markers=given.markers,
        meshes=given.meshes,
        ignore_constraints=given.ignore_constraint,
    )
    return str(target)


if __name__ == "__main__":
    sys.exit(main())
