"""OpenSim's own inverse kinematics, as a process of its own, to compare with.

``python -m osim2mjcf.opensim_ik MODEL.osim MARKERS.trc OUT.mot`` prints one JSON line: how long the tool ran.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import opensim as osim

from osim2mjcf.reader import load_osim
from simspine_jax.io import read_markers

# OpenSim 4.6's own default, spelt out because the comparison rests on it.
ACCURACY = 1e-5


def solve(
    model: Path,
    trajectory: Path,
    output: Path,
    marker_set: Path | None,
    weights: dict[str, float],
    frames: int,
) -> float:
    """Solves the first frames of a marker file into a motion file; returns the seconds that it took.

    Markers without a weight count as 1. Loading the model is not timed.

    Raises:
        FileFormatError: a file can't be read.
    """
    source = load_osim(model, marker_set)
    times = read_markers(trajectory).times
    tool = osim.InverseKinematicsTool()
    tool.setModel(source)
    tool.setMarkerDataFileName(str(trajectory.resolve()))
    tool.setOutputMotionFileName(str(output.resolve()))
    tool.setStartTime(float(times[0]))
    tool.setEndTime(float(times[min(frames, len(times)) - 1]))
    tool.set_accuracy(ACCURACY)
    tool.set_report_errors(False)
    tasks = tool.getIKTaskSet()
    for i in range(source.getMarkerSet().getSize()):
        name = source.getMarkerSet().get(i).getName()
        task = osim.IKMarkerTask()
        task.setName(name)
        task.setApply(True)
        task.setWeight(weights.get(name, 1.0))
        tasks.cloneAndAppend(task)
    began = time.perf_counter()
    tool.run()
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> int:
    """Solves and reports; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m osim2mjcf.opensim_ik", description="OpenSim's IK tool, timed."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("trajectory", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--markers", type=Path, help="a marker set that takes the place of the model's markers"
    )
    parser.add_argument("--weights", type=Path, help="a .json file of weights by marker")
    parser.add_argument("--frames", type=int, default=sys.maxsize, help="solve only the first ones")
    given = parser.parse_args(arguments)
    weights = json.loads(given.weights.read_text(encoding="utf-8")) if given.weights is not None else {}
    seconds = solve(given.model, given.trajectory, given.output, given.markers, weights, given.frames)
    print(json.dumps({"seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
