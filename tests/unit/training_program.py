"""A small training as a program of its own, which tests kill, give several devices or leave no room.

``python training_program.py FOLDER NAME=VALUE …`` prints a line after each step that it logs; notes go to
stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lifting_clips import make_clip

from simspine_jax.datasets import clips_in_memory
from simspine_jax.errors import SimspineError
from simspine_jax.lifting.simple_baseline import SimpleBaselineOptions
from simspine_jax.training.loop import train
from simspine_jax.training.run import Expected, OptimiserOptions, Run, with_settings

RUN = Run(
    name="small",
    model=SimpleBaselineOptions(width=64, blocks=1, dropout=0.1),
    expected=Expected(minutes=1),
    optimiser=OptimiserOptions(learning_rate=1e-2),
    steps=40,
    batch_size=32,
    seed=3,
    average=0.9,
    log_every=2,
    save_every=8,
)


def small_clips():
    """Two clips of 30 frames and four cameras."""
    return clips_in_memory([make_clip("S1"), make_clip("S5")])


def tell(done: int, means: dict[str, float]) -> None:
    """Prints where it is; with ``STEP_BY_STEP`` it then waits for a line."""
    print(done, means["loss"], flush=True)
    if "STEP_BY_STEP" in os.environ:
        sys.stdin.readline()


def main(folder: str, *settings: str) -> int:
    """Trains, and prints where it is."""
    try:
        train(
            with_settings(RUN, settings), small_clips(), Path(folder),
            progress=tell,
            note=lambda text: print("note:", text, file=sys.stderr, flush=True),
        )  # fmt: skip
    except SimspineError as error:
        print("error:", error, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
