"""``python -m torch2flax WEIGHTS --config NAME -o DIR``: a training folder from PyTorch weights.

PyTorch's checkpoints don't hold the means and deviations that keypoints are standardised with, so these are
taken of the config's training set; they must be those that the weights were trained with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from simspine_jax.errors import SimspineError
from torch2flax.reading import read_state_dict

BAD_INPUT = 2


def main(words: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m torch2flax", description=__doc__)
    parser.add_argument("weights", type=Path, help=".pth, .pt or .safetensors of SimpleBaseline3D")
    parser.add_argument("--config", required=True, help="such as simple_full")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    given = parser.parse_args(words)
    try:
        _convert(given)
    except SimspineError as error:
        print(f"torch2flax: error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{given.out}: evaluate it with 'simspine evaluate {given.out}'")
    return 0


def _convert(given: argparse.Namespace) -> None:
    from simspine_jax.datasets import open_clips, statistics_of
    from simspine_jax.lifting.simple_baseline import SimpleBaseline
    from simspine_jax.training.data import training_samples
    from simspine_jax.training.loop import keep_model
    from simspine_jax.training.models import build_lifter
    from simspine_jax.training.run import load_run
    from torch2flax.simple_baseline import load_simple_baseline

    run, weights = load_run(given.config), read_state_dict(given.weights)
    samples = training_samples(run, open_clips(run.data.config, "train", given.data_dir))
    model = build_lifter(run, statistics_of(samples), None)
    if not isinstance(model, SimpleBaseline):
        raise SimspineError(
            f"The config {given.config} is no SimpleBaseline3D; valid are simple_spine, simple_full"
        )
    load_simple_baseline(model, weights, str(given.weights))
    keep_model(run, model, given.out, len(samples))


if __name__ == "__main__":
    sys.exit(main())
