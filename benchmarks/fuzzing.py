"""Damaged models: each loads, or ends in one `SimspineError` with a message of one line.

OpenSim runs in forks of a process that has it loaded, as it can crash on what it reads; a crash is counted,
since isolated conversion makes it an error. Our own readers run in one process and must never crash.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A conversion takes a tenth of a second; the machine may be busy.
TIME_LIMIT_S = 60.0
MEMORY_LIMIT_BYTES = 8 << 30
MAX_MESSAGE = 1000


@dataclass
class FuzzCounts:
    """What became of the mutants.

    ``crashed`` and ``hung`` hold their seeds; ``escaped`` describes what ended neither way: another
    exception, or a message that is no printable line.
    """

    mutants: int = 0
    changed: int = 0
    loaded: int = 0
    refused: int = 0
    crashed: list[int] = field(default_factory=list)
    hung: list[int] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)

    def count(self, seed: int, outcome: str | None) -> None:
        """Counts one mutant by what ``describe`` gave, or by ``crash`` or ``hang``."""
        self.mutants += 1
        if outcome == "loaded":
            self.loaded += 1
        elif outcome == "refused":
            self.refused += 1
        elif outcome == "crash":
            self.crashed.append(seed)
        elif outcome == "hang":
            self.hung.append(seed)
        else:
            self.escaped.append(f"seed {seed}: {outcome}")


def fuzz_converter(n: int, seed: int, model: Path) -> FuzzCounts:
    """Converts ``n`` mutants of an OpenSim model; mutant i has the seed ``seed + i``."""
    return _in_process("osim", n, seed, model)


def fuzz_sidecar(n: int, seed: int, converted: Path) -> FuzzCounts:
    """Loads ``n`` mutants of a converted model (``.xml``): its sidecar damaged, or its MJCF, in turn."""
    return _in_process("sidecar", n, seed, converted)


def mutant(content: bytes, seed: int) -> bytes:
    """The mutant of one seed."""
    from benchmarks.mutations import mutate

    return mutate(content, random.Random(seed))


def _in_process(kind: str, n: int, seed: int, model: Path) -> FuzzCounts:
    command = [sys.executable, "-m", "benchmarks.fuzzing", kind, str(n), str(seed), str(model.resolve())]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    # MuJoCo leaves its log in the working folder.
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-5:]
        raise RuntimeError(f"fuzzing {kind} died with status {child.returncode}: {' | '.join(last)}")
    return FuzzCounts(**json.loads(child.stdout.splitlines()[-1]))


def describe(action: Callable[[], object]) -> str:
    """Runs ``action``: ``loaded``, ``refused``, or what else it raised."""
    from simspine_jax.errors import SimspineError

    try:
        action()
    except SimspineError as error:
        message = str(error)
        good = message.isprintable() and 0 < len(message) < MAX_MESSAGE
        return "refused" if good else f"message {message[:300]!r}"
    except Exception as error:  # whatever it is, it is the finding
        trace, where = error.__traceback__, ""
        while trace is not None:
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        return f"{type(error).__name__} at {where}: {str(error)[:200]!r}"
    return "loaded"


def _convert_mutants(n: int, seed: int, model: Path) -> FuzzCounts:
    from osim2mjcf import convert

    from simspine_jax.io.sidecar import read_sidecar

    content, counts = model.read_bytes(), FuzzCounts()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.osim"
        for i in range(seed, seed + n):
            data = mutant(content, i)
            counts.changed += data != content
            path.write_bytes(data)
            counts.count(
                i, _forked(lambda: read_sidecar(convert(path, path.parent / "out").with_suffix(".json")))
            )
    return counts


def _forked(action: Callable[[], object]) -> str:
    """What ``describe`` says of ``action`` in a fork of this process, or ``crash``, or ``hang``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(writer, describe(action).encode("utf-8", "replace")[:4000])
        # No clean-up: OpenSim's objects may be broken.
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        ready, _, _ = select.select([stream], [], [], TIME_LIMIT_S)
        if not ready:
            os.kill(child, signal.SIGKILL)
        outcome = stream.read().decode()
    os.waitpid(child, 0)
    return "hang" if not ready else outcome or "crash"


def _load_mutants(n: int, seed: int, converted: Path) -> FuzzCounts:
    from simspine_jax.kinematics.model import load_model

    mjcf, sidecar = converted.read_bytes(), converted.with_suffix(".json").read_bytes()
    counts = FuzzCounts()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / converted.name
        for i in range(seed, seed + n):
            damaged, valid = (sidecar, mjcf) if i % 2 else (mjcf, sidecar)
            data = mutant(damaged, i)
            counts.changed += data != damaged
            path.write_bytes(valid if i % 2 else data)
            path.with_suffix(".json").write_bytes(data if i % 2 else valid)
            counts.count(i, describe(lambda: load_model(path)))
    return counts


if __name__ == "__main__":
    work = {"osim": _convert_mutants, "sidecar": _load_mutants}[sys.argv[1]]
    print(json.dumps(asdict(work(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))))
