"""OpenSim's own inverse kinematics with a setup file, as a process of its own; prints its seconds as JSON.

``python benchmarks/opensim_setup_ik.py MODEL.osim SETUP.xml MARKERS.trc OUT.mot START END``. It imports
nothing of ours: it is the reference. Only the tool's run is timed, not loading the model.
"""

from __future__ import annotations

import json
import sys
import time

import opensim as osim

# OpenSim 4.6's own default.
ACCURACY = 1e-5


def solve(model: str, setup: str, markers: str, output: str, start: float, end: float) -> float:
    """Seconds that the tool takes for a trial from ``start`` to ``end``, s; absolute paths only."""
    osim.Logger.setLevelString("Off")
    osim.Logger.removeFileSink()
    source = osim.Model(model)
    source.initSystem()
    tool = osim.InverseKinematicsTool(setup, False)
    tool.setModel(source)
    tool.setMarkerDataFileName(markers)
    tool.setOutputMotionFileName(output)
    tool.setStartTime(start)
    tool.setEndTime(end)
    tool.set_accuracy(ACCURACY)
    tool.set_report_errors(False)
    began = time.perf_counter()
    tool.run()
    return time.perf_counter() - began


if __name__ == "__main__":
    *paths, first, last = sys.argv[1:]
    print(json.dumps({"seconds": solve(*paths, float(first), float(last))}))  # pyright: ignore[reportCallIssue]
