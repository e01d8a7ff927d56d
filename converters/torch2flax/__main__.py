"""``python -m torch2flax WEIGHTS -o DIR``: a training folder from published weights.

With ``--config NAME`` they are of SimpleBaseline3D, a lifter. PyTorch's checkpoints don't hold the means and
deviations that keypoints are standardised with, so these are taken of the config's training set; they must be
those that the weights were trained with.

With ``--detector NAME`` they are of a detector: a checkpoint of PyTorch, .safetensors, or for SpinePose and
RTMPose .onnx. Published weights have learned of RGB, as their configs say (``bgr_to_rgb=True``), though the
packages spinepose and rtmlib show them OpenCV's BGR. Weights that were trained with BGR want ``--order BGR``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from simspine_jax.errors import SimspineError

BAD_INPUT = 2


def main(words: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m torch2flax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help=".pth, .pt, .safetensors or .onnx")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--config", metavar="NAME", help="of a lifter, such as simple_full")
    kind.add_argument("--detector", metavar="NAME", help="such as spinepose_s")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of datasets, for a lifter")
    parser.add_argument("--order", choices=("RGB", "BGR"), help="of a detector's colours; default: RGB")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    given = parser.parse_args(words)
    if given.order and given.config:
        parser.error("--order is of detectors; valid is with --detector")
    if given.data_dir and given.detector:
        parser.error("--data-dir is for lifters; valid is with --config")
    try:
        (_convert_detector if given.detector else _convert_lifter)(given)
    except SimspineError as error:
        print(f"torch2flax: error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{given.out}: evaluate it with 'simspine evaluate {given.out}'")
    if given.detector:
        print(f"{given.out}: use it with 'simspine detect PICTURES --weights {given.out} -o out'")
    return 0


def _convert_lifter(given: argparse.Namespace) -> None:
    from simspine_jax.datasets import open_clips, statistics_of
    from simspine_jax.lifting.simple_baseline import SimpleBaseline
    from simspine_jax.training.data import training_samples
    from simspine_jax.training.loop import keep_model
    from simspine_jax.training.models import build_lifter
    from simspine_jax.training.run import load_run
    from torch2flax.reading import read_state_dict
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


def _convert_detector(given: argparse.Namespace) -> None:
    from simspine_jax.detection.models import PixelOptions
    from simspine_jax.training.detectors import keep_detector, load_detector_run
    from torch2flax.published import convert_detector

    converted = convert_detector(given.detector, given.weights)
    pixels = PixelOptions(given.order or "RGB")
    run = dataclasses.replace(load_detector_run(given.detector), pixels=pixels)
    keep_detector(run, converted.model, given.out)
    print(f"{given.weights}: {converted.matched}")
    print(converted.matched.table())
    print(f"colours: {pixels.order}, of 255 less {pixels.mean} and over {pixels.std}")
    if converted.folded:
        print(
            "normalisations were folded into convolutions: outputs are the same, but no training can go on "
            "from these weights"
        )
    if converted.apart is not None:
        print(f"outputs differ from ONNX Runtime's by {converted.apart:.1e} of the largest")


if __name__ == "__main__":
    sys.exit(main())
