"""What a user meets around the mathematics: starting times, memory, and damaged files."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzzing import FuzzCounts, describe, fuzz_converter, fuzz_sidecar, mutant
from benchmarks.kinematics_speed import spine_mjcf
from benchmarks.metrics import Measurement
from benchmarks.mutations import mutate
from benchmarks.peers import run_child
from benchmarks.workplace import RATE_HZ, SYNTHETIC, Workplace, require_opensim, shared_data
from simspine_jax.assets import simple_model_path
from simspine_jax.errors import SimspineError
from simspine_jax.io import (
    MarkerTrajectory,
    Storage,
    read_ik_setup,
    read_marker_set,
    read_sto,
    read_trc,
    write_sto,
    write_trc,
)
from simspine_jax.kinematics.isolated import convert_isolated

START_FRAMES = 250
MANY_FRAMES = 100_000
IO_MUTANTS, CONVERTER_MUTANTS, SIDECAR_MUTANTS = 400, 300, 400  # io: of each of four formats
# A mutant of a few kilobytes reads in well under a millisecond; longer is a hang.
MUTANT_TIME_LIMIT_S = 2.0
# What would let a child find programs or switches of this process.
_NOT_INHERITED = ("JAX_", "SIMSPINE_CACHE", "XLA_FLAGS")


def starts(place: Workplace) -> Iterator[Measurement]:
    """Wall time of ``simspine ik`` as a process, with an empty cache and then with its own."""
    require_opensim()
    cold, cached = {}, {}
    clip = place.clip(place.size(START_FRAMES, 40))
    trc = place.folder / "start.trc"
    write_trc(
        trc, MarkerTrajectory(place.spine.marker_names, clip.times, clip.markers.astype(np.float64), RATE_HZ)
    )
    spine, gait = place.spine_source, shared_data() / "gait2392"
    trials = {
        "spine": ["--model", str(spine.osim), "--marker-set", str(spine.markers), "--markers", str(trc)]
    }
    if not place.quick:
        setup = ["--setup", str(gait / "IK_Setup.xml")]
        trials["gait2392"] = [
            "--model",
            str(gait / "model.osim"),
            "--markers",
            str(gait / "markers.trc"),
            *setup,
        ]
    data = {"spine": SYNTHETIC, "gait2392": "real: gait2392, markers.trc"}
    for name, arguments in trials.items():
        cold[name] = _start(place, name, arguments, "cold")
        cached[name] = min(_start(place, name, arguments, f"cached{i}") for i in range(place.size(3, 1)))
        yield Measurement(f"kinematics/cold_start_s/{name}", cold[name], data[name])
        yield Measurement(f"kinematics/cached_start_s/{name}", cached[name], data[name])
    note = "From the .osim with an empty cache: conversion, compiling, solving, writing. The slower of: "
    basis = "; ".join(data[name] for name in trials)
    yield Measurement("kinematics/cold_start_s", max(cold.values()), basis, note + ", ".join(trials), cold)
    note = "The same once more, into another folder, with what the first run cached. The slower of: "
    yield Measurement(
        "kinematics/cached_start_s", max(cached.values()), basis, note + ", ".join(trials), cached
    )


def _start(place: Workplace, name: str, arguments: list[str], run: str) -> float:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
    environment |= {"SIMSPINE_CACHE": str(place.folder / f"cache_{name}"), "JAX_PLATFORMS": _platform()}
    command = [str(Path(sys.executable).with_name("simspine")), "ik", *arguments]
    began = time.perf_counter()
    run_child([*command, "--out", str(place.folder / f"{run}_{name}"), "--quiet"], place.folder, environment)
    return time.perf_counter() - began


def _platform() -> str:
    """The platform that this process measures, where the environment names one."""
    return os.environ.get("JAX_PLATFORMS", "")


def peak_memory(place: Workplace) -> Iterator[Measurement]:
    """Peak memory of a process that solves many frames in one call."""
    n = place.size(MANY_FRAMES, 64)
    markers = place.folder / "many.npy"
    np.save(markers, place.clip(n).markers)
    script = Path(__file__).with_name("solve_many.py")
    child = run_child([sys.executable, "-P", str(script), str(spine_mjcf(place)), str(markers)], place.folder)
    found = json.loads(child.stdout.splitlines()[-1])
    failed = "" if found["solved"] == n else f"only {found['solved']} of {n} frames have a pose"
    note = f"{n} frames in one call, compiling included; of the process, not of the accelerator."
    yield Measurement(
        "kinematics/peak_rss_mb_100k_frames", found["peak_rss_mb"], SYNTHETIC, note, found, failed
    )


def fuzz(place: Workplace) -> Iterator[Measurement]:
    """Damaged files of every format: each loads or ends in one `SimspineError` sentence."""
    require_opensim()
    counts: dict[str, FuzzCounts] = {}
    for name, (path, read) in _valid_files(place).items():
        counts[name] = _fuzz_reader(path, read, place.size(IO_MUTANTS, 20))
    osim = _stripped_model(place)
    counts["osim"] = fuzz_converter(place.size(CONVERTER_MUTANTS, 6), 0, osim)
    counts["sidecar"] = fuzz_sidecar(place.size(SIDECAR_MUTANTS, 6), 0, spine_mjcf(place))
    unisolated = [seed for seed in counts["osim"].crashed if not _isolation_holds(place, osim, seed)]
    data = "synthetic: seeded damage to valid files: " + ", ".join(counts)
    escaped = [f"{name}: {text}" for name, c in counts.items() for text in c.escaped]
    escaped += [f"{name}: seed {seed} hung" for name, c in counts.items() for seed in c.hung]
    escaped += [
        f"{name}: seed {seed} crashed" for name, c in counts.items() if name != "osim" for seed in c.crashed
    ]
    escaped += [f"osim: seed {seed} crashed and isolation gave no sentence" for seed in unisolated]
    detail = {name: {"tried": c.mutants, "changed": c.changed, "loaded": c.loaded, "refused": c.refused,
                     "crashed": len(c.crashed)} for name, c in counts.items()}  # fmt: skip
    failed = f"{len(escaped)} escaped; the first: {escaped[0]}" if escaped else ""
    total = {
        field: sum(entry[field] for entry in detail.values())
        for field in ("tried", "loaded", "refused", "crashed")
    }
    yield Measurement("kinematics/fuzz_inputs_tried", total["tried"], data, "", detail, failed)
    for field in ("loaded", "refused", "crashed"):
        note = (
            "Crashes of OpenSim's own reader, which isolation turns into a sentence."
            if field == "crashed"
            else ""
        )
        yield Measurement(f"kinematics/fuzz_inputs_{field}", total[field], data, note)
    yield Measurement(
        "kinematics/fuzz_inputs_escaped", len(escaped), data, "", {"escaped": escaped[:20]}, failed
    )


def _fuzz_reader(path: Path, read: Callable[[Path], Any], n: int) -> FuzzCounts:
    valid, counts = path.read_bytes(), FuzzCounts()
    read(path)
    for seed in range(n):
        content = mutate(valid, random.Random(seed))
        counts.changed += content != valid
        path.write_bytes(content)
        began = time.perf_counter()
        outcome = describe(lambda: read(path))
        counts.count(seed, outcome if time.perf_counter() - began < MUTANT_TIME_LIMIT_S else "hang")
    return counts


def _valid_files(place: Workplace) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """A small file of each format that the library reads, written by the library or by hand."""
    folder = place.folder / "valid"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    times = np.arange(5) / 50
    positions = rng.normal(size=(5, 3, 3))
    positions[2, 1] = np.nan
    write_trc(folder / "a.trc", MarkerTrajectory(("C7", "R.ASIS", "L.Heel"), times, positions, 50.0))
    columns = ("pelvis_tilt", "pelvis_tx", "knee_angle_r")
    write_sto(folder / "a.mot", Storage("Coordinates", columns, times, rng.normal(size=(5, 3)), True))
    (folder / "markers.xml").write_bytes(place.paper_markers.read_bytes())
    (folder / "setup.xml").write_text(_SETUP, encoding="utf-8")
    return {
        "trc": (folder / "a.trc", read_trc),
        "mot": (folder / "a.mot", read_sto),
        "marker set": (folder / "markers.xml", read_marker_set),
        "IK setup": (folder / "setup.xml", read_ik_setup),
    }


_SETUP = """<?xml version="1.0" encoding="UTF-8" ?>
<OpenSimDocument Version="40000">
	<InverseKinematicsTool name="trial">
		<IKTaskSet>
			<objects>
				<IKMarkerTask name="C7"><apply>true</apply><weight>0.5</weight></IKMarkerTask>
				<IKMarkerTask name="R.ASIS"><apply>false</apply><weight>2</weight></IKMarkerTask>
				<IKCoordinateTask name="knee_angle_r">
					<apply>true</apply><weight>10</weight>
					<value_type>manual_value</value_type><value>0.1</value>
				</IKCoordinateTask>
			</objects>
		</IKTaskSet>
		<constraint_weight>Inf</constraint_weight>
		<accuracy>1e-5</accuracy>
		<time_range> 0.5 2.5</time_range>
		<marker_file>walk.trc</marker_file>
	</InverseKinematicsTool>
</OpenSimDocument>
"""


def _stripped_model(place: Workplace) -> Path:
    """The simple model without its muscles, which the converter doesn't read."""
    import opensim as osim

    osim.Logger.setLevelString("Off")
    osim.Logger.removeFileSink()
    model = osim.Model(str(simple_model_path()))
    model.updForceSet().clearAndDestroy()
    model.finalizeConnections()
    path = place.folder / "simple.osim"
    model.printToXML(str(path))
    return path


def _isolation_holds(place: Workplace, valid: Path, seed: int) -> bool:
    """Whether a model that OpenSim crashes on is refused in a sentence by the conversion that users call."""
    broken = place.folder / f"broken_{seed}.osim"
    broken.write_bytes(mutant(valid.read_bytes(), seed))
    try:
        convert_isolated(broken, place.folder / "broken" / f"{seed}.xml")
    except SimspineError:
        return True
    return False
