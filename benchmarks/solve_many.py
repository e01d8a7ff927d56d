"""Solves an array of markers in a process of its own and prints its peak memory as JSON.

``python benchmarks/solve_many.py MODEL.xml MARKERS.npy``, float32, one call of ``solve_ik``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import simspine_jax as ssj


def main(model_path: str, markers_path: str) -> dict[str, float]:
    """Frames, seconds, and the largest resident set, MB (10⁶ bytes)."""
    model = ssj.load_model(model_path, dtype=jnp.float32)
    markers = np.load(markers_path)
    began = time.perf_counter()
    solution = jax.block_until_ready(ssj.solve_ik(model, jnp.asarray(markers)))
    seconds = time.perf_counter() - began
    solved = int(jnp.sum(jnp.isfinite(solution.q).all(axis=-1)))
    return {"frames": len(markers), "solved": solved, "seconds": seconds, "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """Largest resident set of this process since it began its own program, MB.

    ``getrusage`` would not do: its figure begins with the resident set of the process that forked this one.
    """
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024 / 1e6


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
