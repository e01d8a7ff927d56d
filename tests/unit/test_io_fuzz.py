"""Damaged files either load or give one sentence; nothing else escapes, hangs or grows."""

import importlib.util
import json
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from drawn_pictures import drawn_picture
from torch2flax.reading import read_state_dict

from simspine_jax.datasets.coco import open_coco
from simspine_jax.errors import SimspineError
from simspine_jax.io import read_ik_setup, read_marker_set, read_sto, read_trc
from simspine_jax.io.boxes import read_boxes
from simspine_jax.picture_export import export_pictures

N_MUTANTS = 400  # of each format

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


RESULTS = json.dumps(
    [{"image_id": n, "category_id": 1, "bbox": [2.5, 3.0, 40.0, 60.5], "score": 0.9} for n in range(3)],
    indent=1,
)
NAMED = json.dumps(
    {
        "images": [{"id": n, "file_name": f"img_{n}.jpg"} for n in range(3)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": n, "category_id": 1, "iscrowd": 0, "bbox": [2, 3, 40, 60]} for n in range(3)
        ],
    },
    indent=1,
)
TABLE = 'image,x,y,w,h,score\n"img_0.jpg",2,3,40,60,0.9\nimg_1.jpg,2,3,40,60,0.8\nimg_2.jpg,5,3,40,60,1\n'
MOT_BOXES = "1,1,2,3,40,60,0.9,-1,-1,-1\n2,1,2,3,40,60,0.8,-1,-1,-1\n3,1,5,3,40,60,1,-1,-1,-1\n"
YOLO = "0 0.5 0.5 0.2 0.4 0.9\n0 0.4 0.5 0.2 0.4 0.8\n2 0.4 0.5 0.2 0.4 0.8\n"


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
    check_mutants(tmp_path / f"clip{suffix}", content.encode(), read)


@dataclass(frozen=True)
class Camera:
    """Of which boxes are."""

    name: str = "cam"
    numbers: Sequence[int] | None = (0, 1, 2)
    stems: Mapping[str, int] = field(default_factory=lambda: {f"img_{n}": n for n in range(3)})


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", RESULTS), ("b.json", NAMED), ("a.csv", TABLE), ("a.txt", MOT_BOXES), ("img_1.txt", YOLO)],
    ids=["results", "annotations", "table", "MOT", "YOLO"],
)
def test_mutants_of_boxes(tmp_path: Path, name: str, content: str) -> None:
    def read(path: Path) -> object:
        return read_boxes(path.parent if content is YOLO else path, [Camera()], note=lambda text: None)

    check_mutants(tmp_path / name, content.encode(), read)


def test_mutants_of_annotations(tmp_path: Path) -> None:
    people = [drawn_picture(i) for i in range(2)]
    path, folder = tmp_path / "set.json", tmp_path / "set"
    export_pictures(path, folder, people)
    check_mutants(path, path.read_bytes(), lambda path: open_coco(path, folder))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mutants_of_weights(tmp_path: Path, suffix: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / f"w{suffix}"
    weights = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(2, dtype=torch.bfloat16)}
    if suffix == ".pth":
        torch.save({"state_dict": weights}, path)
    else:
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(
            weights, path
        )
    check_mutants(path, path.read_bytes(), read_state_dict)


def check_mutants(path: Path, valid: bytes, read: Callable[[Path], Any]) -> None:
    """Reads mutants of a file that is valid."""
    mutate = load_engine()
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
    # Some edits are of lines and elements, which files of one line don't have.
    assert outcomes["changed"] > (0.9 if b"\n" in valid else 0.8) * N_MUTANTS
    assert outcomes["loaded"] > 0.05 * N_MUTANTS
    assert outcomes["refused"] > 0.2 * N_MUTANTS


def test_mutants_repeat_by_seed_and_differ_between_seeds() -> None:
    mutate = load_engine()
    mutants = [mutate(TRC.encode(), random.Random(seed)) for seed in range(50)]
    assert mutants == [mutate(TRC.encode(), random.Random(seed)) for seed in range(50)]
    assert len(set(mutants)) > 45
    assert mutate(b"", random.Random(0)) is not None
