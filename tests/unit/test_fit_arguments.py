"""What `simspine fit` refuses, and how its options become a fit's."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from simspine_jax.cli import build_parser, main
from simspine_jax.cli_fit import LUMBAR, MAX_STEPS, read_fit_options
from simspine_jax.fitting.lumbar import Lumbar
from simspine_jax.fitting.subject import FitOptions, FitPriors

SYNTHETIC = ("--synthetic", "--subjects", "S1", "--actions", "Walking")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "Give one of --keypoints with --calibration, --manifest and --synthetic"),
        (("--synthetic", "--keypoints", "pose"), "Give one of --keypoints"),
        (("--synthetic", "--rate", "50"), "--rate has no effect with --synthetic"),
        (("--manifest", "m.toml", "--action", "Walking"), "--action has no effect with --manifest"),
        (("--keypoints", "pose", "--seconds", "2"), "--seconds has no effect without --synthetic"),
        (("--keypoints", "pose", "--schema", "nobody"), "'nobody'"),
        (("--keypoints", "pose", "--rate", "-1"), "--rate is -1.0; valid is a positive number"),
        ((*SYNTHETIC, "--fit-focal", "0"), "--fit-focal is 0.0; valid is a positive number"),
        ((*SYNTHETIC, "--fit-delays", "nan"), "--fit-delays is nan; valid is a positive number"),
        ((*SYNTHETIC, "--noise", "inf"), "--noise is inf; valid is a positive number"),
        ((*SYNTHETIC, "--max-steps", "0"), "--max-steps is 0; valid is a whole number from 1 on"),
        ((*SYNTHETIC, "--hold-out", "a", "a"), "names a camera twice"),
        ((*SYNTHETIC, "--height", "1.8"), "--height has no effect with --synthetic"),
        (("--keypoints", "a", "--height", "-1"), "--height is -1.0; valid is a positive number"),
        ((*SYNTHETIC, "--lumbar", "stiff"), "--lumbar is 'stiff'; valid are coupled, rhythm, free"),
        ((*SYNTHETIC, "--view", "a"), "--view has no effect without --lifter"),
        ((*SYNTHETIC, "--lifter", "none", "--view", "a", "--hold-out", "a"), "both name a; valid is another"),
        ((*SYNTHETIC, "--lifter", "none"), "none is no folder of a training"),
    ],
)
def test_what_has_no_meaning_is_refused(words, told: str, tmp_path: Path, capsys) -> None:
    assert main(["fit", *words, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("simspine: error: ")
    assert told in line
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_told(tmp_path: Path, capsys) -> None:
    assert main(["fit", "--manifest", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.toml" in line


def options(*words: str) -> FitOptions:
    return read_fit_options(build_parser().parse_args(["fit", *SYNTHETIC, *words, "--out", "out"]))


def test_options_are_the_fits() -> None:
    assert options() == FitOptions()
    assert FitOptions().max_steps == MAX_STEPS
    assert options("--fixed-cameras").priors == FitPriors(rotation_deg=0.0, centre_m=0.0)
    assert options("--no-offsets", "--no-bias").priors == FitPriors(offset_m=0.0, bias=0.0)
    clocks = options("--fit-focal", "0.01", "--fit-delays", "0.02").priors
    assert clocks == FitPriors(focal=0.01, delay_s=0.02)
    given = options("--noise", "4", "--max-steps", "7")
    assert (given.noise_px, given.max_steps) == (4.0, 7)
    assert get_args(Lumbar) == LUMBAR
    assert options("--lumbar", "rhythm").lumbar == "rhythm"
