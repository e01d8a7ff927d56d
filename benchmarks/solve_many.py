"""Solves an array of markers in a process of its own and prints its peak memory as JSON.

``python benchmarks/solve_many.py MODEL.xml MARKERS.npy``, float32, one call of ``solve_ik``.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import simspine_jax as ssj


def main(model_path: str, markers_path: str) -> dict[str, float]:
    """Frames, seconds, and the largest resident set, MB (10⁶ bytes; Linux counts in KiB)."""
    model = ssj.load_model(model_path, dtype=jnp.float32)
    markers = np.load(markers_path)
    began = time.perf_counter()
    solution = jax.block_until_ready(ssj.solve_ik(model, jnp.asarray(markers)))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    solved = int(jnp.sum(jnp.isfinite(solution.q).all(axis=-1)))
    return {"frames": len(markers), "solved": solved, "seconds": seconds, "peak_rss_mb": peak}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
