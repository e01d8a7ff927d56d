"""Damaged files either load or give one sentence; nothing else escapes, hangs or grows."""

import importlib.util
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simspine_jax.errors import SimspineError
from simspine_jax.io import read_ik_setup, read_marker_set, read_sto, read_trc

N_MUTANTS = 400  # of each format, 1600 in all

# A mutant of a few kilobytes reads in well under a millisecond; this leaves room for a busy machine.
MAX_SECONDS = 2.0

# Files here are below 10 kB; a header that claims 10⁹ markers must not be believed.
MAX_BYTES = 50_000_000

TRC = (
    "PathFileType\t4\t(X/Y/Z)\twalk.trc\n"
    "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames\n"
    "60.00\t60.00\t4\t3\tmm\t60.00\t1\t4\n"
    "Frame#\tTime\tR.ASIS\t\t\tL.ASIS\t\t\tV.Sacral\t\t\n"
    "\t\tX1\tY1\tZ1\tX2\tY2\tZ2\tX3\tY3\tZ3\n\n"
    "1\t0.000\t617.24\t1055.27\t170.78\t639.60\t1044.25\t-88.90\t430.86\t1051.26\t29.96\n"
    "2\t0.017\t617.99\t1053.21\t168.51\t\t\t\t432.34\t1050.23\t26.84\n"
    "3\t0.033\t620.29\t1051.77\t165.85\t643.59\t1041.06\t-94.30\t434.09\t1049.34\t23.81\n"
    "4\t0.050\t621.54\t1050.55\t163.53\t646.75\t1040.35\t-96.86\t436.27\t1048.70\t20.95\n"
)
MOT = (
    "Coordinates\nversion=1\nnRows=4\nnColumns=4\ninDegrees=yes\n\nUnits are S.I. units\n\nendheader\n"
    "time\tpelvis_tilt\tpelvis_tx\tknee_angle_r\n"
    "      0.50000000\t      4.83381475\t      0.58979323\t    -19.88375960\n"
    "      0.51700000\t      4.81381475\t      0.59979323\t    -18.88375960\n"
    "      0.53300000\t      4.80381475\t      0.60979323\t    -17.88375960\n"
    "      0.55000000\t      4.79381475\t      0.61979323\t    -1.688375960e+01\n"
)
MARKERS = """<?xml version="1.0" encoding="UTF-8" ?>
<OpenSimDocument Version="40000">
	<!-- markers -->
	<MarkerSet name="markerset">
		<objects>
			<Marker name="Nose">
				<socket_parent_frame>/bodyset/head</socket_parent_frame>
				<location>0.116266 0.0126096 0.000152885</location>
				<fixed>true</fixed>
			</Marker>
			<Marker name="C7">
				<body>torso</body>
				<location>-0.0127516 0.366307 -0.000509</location>
			</Marker>
		</objects>
		<groups />
	</MarkerSet>
</OpenSimDocument>
"""
SETUP = """<?xml version="1.0" encoding="UTF-8" ?>
<OpenSimDocument Version="30000">
	<InverseKinematicsTool name="subject01">
		<model_file>subject01.osim</model_file>
		<constraint_weight>Inf</constraint_weight>
		<accuracy>1e-005</accuracy>
		<IKTaskSet>
			<objects>
				<IKMarkerTask name="C7"><apply>true</apply><weight>0.5</weight></IKMarkerTask>
				<IKCoordinateTask name="knee_angle_r">
					<apply>true</apply>
					<weight>10</weight>
					<value_type>manual_value</value_type>
					<value>0.1</value>
				</IKCoordinateTask>
			</objects>
			<groups />
		</IKTaskSet>
		<marker_file>walk.trc</marker_file>
		<time_range> 0.5 2.5</time_range>
		<output_motion_file>walk.mot</output_motion_file>
	</InverseKinematicsTool>
</OpenSimDocument>
"""


def load_engine() -> Callable[[bytes, random.Random], bytes]:
    """`benchmarks` is no package that tests can import, so its file is loaded by its path."""
    path = Path(__file__).parents[2] / "benchmarks" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mutate


@pytest.mark.parametrize(
    ("suffix", "content", "read"),
    [
        (".trc", TRC, read_trc),
        (".mot", MOT, read_sto),
        (".markers.xml", MARKERS, read_marker_set),
        (".setup.xml", SETUP, read_ik_setup),
    ],
    ids=["trc", "mot", "marker set", "IK setup"],
)
def test_mutants_load_or_are_refused_in_one_sentence(
    tmp_path: Path, suffix: str, content: str, read: Callable[[Path], Any]
) -> None:
    mutate = load_engine()
    valid = content.encode()
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(valid)
    read(path)
    outcomes: Counter[str] = Counter()
    tracemalloc.start()
    try:
        for seed in range(N_MUTANTS):
            mutant = mutate(valid, random.Random(seed))
            outcomes["changed"] += mutant != valid
            path.write_bytes(mutant)
            start = time.perf_counter()
            try:
                read(path)
                message = None
            except SimspineError as error:
                message = str(error)
            assert time.perf_counter() - start < MAX_SECONDS, f"seed {seed}"
            assert message is None or (message.isprintable() and 0 < len(message) < 1000), f"seed {seed}"
            outcomes["loaded" if message is None else "refused"] += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES
    # The mutants reached both ends: harmless damage, and damage that must be refused.
    assert outcomes["changed"] > 0.9 * N_MUTANTS
    assert outcomes["loaded"] > 0.05 * N_MUTANTS
    assert outcomes["refused"] > 0.2 * N_MUTANTS


def test_mutants_repeat_by_seed_and_differ_between_seeds() -> None:
    mutate = load_engine()
    mutants = [mutate(TRC.encode(), random.Random(seed)) for seed in range(50)]
    assert mutants == [mutate(TRC.encode(), random.Random(seed)) for seed in range(50)]
    assert len(set(mutants)) > 45
    assert mutate(b"", random.Random(0)) is not None
