"""The command ``simspine fit``."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax.cli_parsing import add_output
from simspine_jax.cli_simulation import (
    KEYPOINT_OPTIONS,
    SYNTHETIC_OPTIONS,
    add_keypoint_arguments,
    add_many_arguments,
    add_name_arguments,
    check_schema,
    format_truth,
    open_spine,
    read_sources,
    refuse_without_effect,
)
from simspine_jax.errors import MissingDependencyError, SimspineError, listed

if TYPE_CHECKING:
    from simspine_jax.fitting.subject import FitOptions
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.pipeline import FailedTrial, LoadedModel
    from simspine_jax.pipeline.fit_lifted import FitLifter
    from simspine_jax.pipeline.fit_results import (
        FittedCamera,
        FittedLumbar,
        FittedMotion,
        FittedSubject,
    )
    from simspine_jax.pipeline.simulate import SimulatedTrial

Note = Callable[[str], None]

MAX_STEPS = 200  # as `fitting.subject.FitOptions`, which takes JAX to import
LUMBAR = ("coupled", "rhythm", "free")  # likewise

_ONE_TRIAL = (*KEYPOINT_OPTIONS, "subject", "action", "height")
_NAMES_SHOWN = 12  # of coordinates that are not seen


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine fit`` takes."""
    source = parser.add_argument_group("one trial")
    add_keypoint_arguments(source)
    add_name_arguments(source)
    source.add_argument("--height", type=float, metavar="M", help=(
        "the subject's height as measured, which sizes then have to a hundredth"))  # fmt: skip
    # What `read_sources` knows besides.
    parser.set_defaults(markers=None, static=None, mass=None)
    add_many_arguments(parser)
    model = parser.add_argument_group("model and method")
    model.add_argument("--model", type=Path, metavar="M", help=(
        "an OpenSim model with the keypoints as markers (the paper's, which is fetched)"))  # fmt: skip
    model.add_argument(
        "--marker-set", type=Path, metavar="XML", help="markers to use instead of the model's own"
    )
    model.add_argument("--fit-focal", type=float, metavar="SHARE", help=(
        "fit focal lengths too, which may be off by about this share, such as 0.01"))  # fmt: skip
    model.add_argument("--fit-delays", type=float, metavar="S", help=(
        "fit the cameras' clocks too, which may be off by about so many seconds"))  # fmt: skip
    model.add_argument("--fixed-cameras", action="store_true", help="keep places and rotations as given")
    model.add_argument("--no-offsets", action="store_true", help="keep markers where the model has them")
    model.add_argument("--no-bias", action="store_true", help="take the detector to have no constant errors")
    model.add_argument("--noise", type=float, metavar="PX", help=(
        "of the detector, instead of finding it from what remains"))  # fmt: skip
    model.add_argument("--lumbar", default="coupled", metavar="HOW", help=(
        "lumbar levels: coupled as the model ships, in a rhythm of the subject's own that all frames share, "
        "or free in each frame; the latter two with the evidence for them (coupled)"))  # fmt: skip
    model.add_argument("--max-steps", type=int, default=MAX_STEPS, metavar="N", help=(
        f"of the last round ({MAX_STEPS})"))  # fmt: skip
    model.add_argument("--hold-out", nargs="+", default=[], metavar="CAMERA", help=(
        "fit without these cameras, and tell how well they are predicted"))  # fmt: skip
    model.add_argument("--lifter", type=Path, metavar="DIR", help=(
        "folder of a training of 'simspine train': fit the pictures of one camera, with what the lifter "
        "makes of them as a prior"))  # fmt: skip
    model.add_argument("--view", metavar="CAMERA", help="that camera, where there are several")
    output = parser.add_argument_group("output")
    add_output(output, required=True, metavar="DIR", help="gets the official layout, and a folder fit")
    output.add_argument("--report", action="store_true", help=(
        "an HTML report of each subject: segment lengths with 90%% intervals, what isn't seen, and curvature "
        "and lumbar angles over time with 90%% bands, also as a picture"))  # fmt: skip
    output.add_argument("--html", action="store_true", help=(
        "also a page that plays each trial, with ellipsoids that hold its keypoints with 90%%"))  # fmt: skip
    output.add_argument("--force", action="store_true", help="redo subjects that are complete")
    output.add_argument("--quiet", action="store_true", help="print failures only")


def fit(arguments: argparse.Namespace, bars: Callable[..., Any], note: Note) -> int:
    """Fits the subjects; returns the number of subjects and trials that failed, each told on stderr."""
    check_fit_arguments(arguments)
    from simspine_jax.io.files import make_folder
    from simspine_jax.pipeline import FailedTrial
    from simspine_jax.pipeline.fit_files import run_fit

    options = read_fit_options(arguments)
    lifter = _read_lifter(arguments, note)
    loaded, osim = open_spine(arguments)
    subjects = read_sources(arguments, loaded)
    make_folder(arguments.out)
    failed: list[FailedTrial] = []
    done: list[SimulatedTrial] = []
    with bars(sum(len(s.trials) for s in subjects), arguments) as (say, _, next_trial):
        results = run_fit(
            loaded, subjects, arguments.out, options,
            hold_out=arguments.hold_out, lifter=lifter, view=arguments.view, osim=osim,
            force=arguments.force, note=note, tell=lambda line: say(f"  {line}"),
        )  # fmt: skip
        for result in results:
            if isinstance(result, FailedTrial):
                failed.append(result)
                print(f"simspine: error: {result.name}: {result.reason}", file=sys.stderr)
                continue
            for trial in result.trials:
                next_trial(True)
                done.append(trial)
            motions = _read_motions(arguments.out, result)
            say(_told(result, motions))
            _write_pages(loaded, arguments, result, motions)
    if not arguments.quiet and any(r.truth_mpjpe_mm for r in done):
        print(format_truth(done, "fitted"))
    return len(failed)


def check_fit_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what can't be done, or would have no effect, before any work.

    Raises:
        MissingDependencyError: pictures are asked for and what draws them is not installed.
        SimspineError: no source of trials is given or two, an option has no effect, or is out of range.
    """
    one = arguments.keypoints is not None
    if one + (arguments.manifest is not None) + arguments.synthetic != 1:
        raise SimspineError("Give one of --keypoints with --calibration, --manifest and --synthetic")
    if not one:
        mode = "--synthetic" if arguments.synthetic else "--manifest, which says it itself"
        refuse_without_effect(arguments, _ONE_TRIAL, f"with {mode}", "--keypoints")
    if not arguments.synthetic:
        refuse_without_effect(arguments, SYNTHETIC_OPTIONS, "without --synthetic", "--synthetic")
    check_schema(arguments.schema)
    for name in ("rate", "height", "fit_focal", "fit_delays", "noise"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise SimspineError(f"--{name.replace('_', '-')} is {value}; valid is a positive number")
    if arguments.lumbar not in LUMBAR:
        raise SimspineError(f"--lumbar is '{arguments.lumbar}'; valid are {', '.join(LUMBAR)}")
    if arguments.max_steps < 1:
        raise SimspineError(f"--max-steps is {arguments.max_steps}; valid is a whole number from 1 on")
    if len(set(arguments.hold_out)) < len(arguments.hold_out):
        raise SimspineError(f"--hold-out {' '.join(arguments.hold_out)} names a camera twice; valid is once")
    if arguments.lifter is None:
        refuse_without_effect(arguments, ("view",), "without --lifter", "--lifter")
    if arguments.view is not None and arguments.view in arguments.hold_out:
        raise SimspineError(f"--view and --hold-out both name {arguments.view}; valid is another camera")
    for asked, package, purpose in (
        (arguments.report, "matplotlib", "--report"), (arguments.html, "viser", "--html"),
    ):  # fmt: skip
        if asked and importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "viewer", purpose)


def _read_lifter(arguments: argparse.Namespace, note: Note) -> FitLifter | None:
    if arguments.lifter is None:
        return None
    from simspine_jax.cli_training import load_spine
    from simspine_jax.pipeline.fit_lifter import load_lifter

    return load_lifter(arguments.lifter, load_spine, note=note)


def read_fit_options(arguments: argparse.Namespace) -> FitOptions:
    """The fit's defaults with the command line's changes."""
    from simspine_jax.fitting.subject import FitOptions, FitPriors

    changes: dict[str, float] = {}
    if arguments.fixed_cameras:
        changes |= {"rotation_deg": 0.0, "centre_m": 0.0}
    if arguments.no_offsets:
        changes["offset_m"] = 0.0
    if arguments.no_bias:
        changes["bias"] = 0.0
    for name, value in (("focal", arguments.fit_focal), ("delay_s", arguments.fit_delays)):
        if value is not None:
            changes[name] = value
    return FitOptions(
        FitPriors(**changes), noise_px=arguments.noise, max_steps=arguments.max_steps, lumbar=arguments.lumbar
    )


def _read_motions(out: Path, result: FittedSubject) -> dict[str, FittedMotion]:
    """The motions of a subject's trials, by their names."""
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.pipeline.fit_files import fit_motion
    from simspine_jax.pipeline.fit_results import read_motion_npz

    layout = ReleaseLayout(out)
    return {t.name: read_motion_npz(fit_motion(layout, t.subject, t.action)) for t in result.trials}


def _told(result: FittedSubject, motions: Mapping[str, FittedMotion]) -> str:
    """A subject and its trials as text."""
    trials = (f"  {format_fitted_trial(trial, motions[trial.name])}" for trial in result.trials)
    return "\n".join([format_fitted(result), *trials])


def _write_pages(
    loaded: LoadedModel,
    arguments: argparse.Namespace,
    result: FittedSubject,
    motions: Mapping[str, FittedMotion],
) -> None:
    """What is asked for and not there yet, and the report anew with each page.

    Those of before a subject was redone are gone.
    """
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.pipeline.fit_files import fit_page, fit_picture, fit_report

    layout, links, news = ReleaseLayout(arguments.out), {}, False
    for trial in result.trials:
        page, picture = (path(layout, trial.subject, trial.action) for path in (fit_page, fit_picture))
        if arguments.html and not page.exists():
            _write_viewer(loaded, layout, trial, result, motions[trial.name], page)
            news = True
        if page.exists():
            links[f"{trial.name} in motion"] = page.name
        if arguments.report and not picture.exists():
            from simspine_jax.viz.figures import write_figure
            from simspine_jax.viz.fit_figure import fit_figure

            write_figure(picture, fit_figure(motions[trial.name], trial.name, trial.source))
    report = fit_report(layout, result.subject)
    if arguments.report and (news or not report.exists()):
        from simspine_jax.viz.fit_report import write_fit_report

        write_fit_report(report, result, motions, links)


def _write_viewer(
    loaded: LoadedModel,
    layout: ReleaseLayout,
    trial: SimulatedTrial,
    result: FittedSubject,
    motion: FittedMotion,
    page: Path,
) -> None:
    """Plays the fit's poses with its ellipsoids beside the points triangulated in its cameras."""
    from simspine_jax.pipeline.records import stored_trial
    from simspine_jax.viz.fit_viewer import fitted_view, write_fit_html

    points = stored_trial(layout.trial(trial.subject, trial.action)).triangulated
    view = fitted_view(loaded.model, motion, result.segments, result.markers, points)
    write_fit_html(loaded, view, page)


def format_fitted(result: FittedSubject) -> str:
    """A subject as a few lines of text."""
    state = "complete already, " if result.resumed else ""
    frames = sum(trial.n_frames for trial in result.trials)
    lines = [
        f"{result.subject}: {state}{result.status} ({result.steps} steps; trials: {len(result.trials)}, "
        f"frames: {frames}), errors alike over {result.correlation_frames:.1f} frames"
    ]
    if result.chain_px is not None and result.fit_px is not None and result.markers_px is not None:
        lines.append(
            f"  median reprojection error {result.chain_px:.2f} px before, {result.markers_px:.2f} px after, "
            f"{result.fit_px:.2f} px beside what the detector always errs by"
        )
    lines += _size_table(result)
    lines += _camera_table(result)
    if result.lumbar is not None:
        lines += _lumbar_lines(result.lumbar)
    if result.unseen:
        lines.append(f"  not seen by these cameras: {listed(result.unseen, _NAMES_SHOWN)}")
    if result.doubts:
        lines += [f"  doubtful: {doubt}" for doubt in result.doubts]
        other = "; --hold-out fits without a camera" if len(result.cameras) > 1 else ""
        lines.append(f"  deviations are too small then{other}")
    for view in result.held_out:
        if view.fit_px is None or view.chain_px is None:
            lines.append(f"  held-out camera {view.name}: it sees nothing that could be predicted")
            continue
        lines.append(
            f"  held-out camera {view.name}: {view.fit_px:.2f} px by the fit, {view.chain_px:.2f} px by the "
            f"chain, {view.fit_px / view.chain_px:.2f} of it"
        )
    return "\n".join(lines)


def _size_table(result: FittedSubject) -> list[str]:
    lengths = {length.name: length for length in result.lengths}
    rows: list[tuple[str, ...]] = [("segment", "length mm", "factor x", "y", "z")]
    for segment in result.segments:
        length = lengths.get(segment.name)
        shown = "-" if length is None else f"{length.length_mm:.1f} ± {length.std_mm:.1f}"
        spread = segment.factors_std or (None,) * 3
        rows.append((segment.name, shown, *map(_with_std, segment.factors, spread, (3,) * 3)))
    return _columns(rows)


def _lumbar_lines(lumbar: FittedLumbar) -> list[str]:
    logs = (lumbar.log_evidence_free, lumbar.log_evidence_coupled)
    free, coupled = ("-" if x is None else f"{x:.1f}" for x in logs)
    lines = [
        f"  lumbar levels {lumbar.treatment}: log evidence {free}, coupled {coupled}; {lumbar.verdict}",
        "  that takes keypoints' errors as independent, and can be for what is wrong where they are large",
    ]
    if lumbar.unmarked:
        lines.append(
            f"  no marker on {listed(lumbar.unmarked)}: the levels above and below are told apart by little; "
            "what stays as unsure as the prior was not learned"
        )
    rows: list[tuple[str, ...]] = [("level", "share %", "model's", "prior ±")]
    for level in lumbar.levels:
        shown = _with_std(100 * level.share, 100 * level.std, 1)
        rows.append((level.name, shown, f"{100 * level.model_share:.1f}", f"{100 * level.prior_std:.1f}"))
    return lines + (_columns(rows) if lumbar.levels else [])


def _camera_table(result: FittedSubject) -> list[str]:
    heading = ("camera", "turned deg", "shifted mm", "focal", "delay ms", "noise px")
    return _columns([heading, *map(_camera_row, result.cameras)])


def _camera_row(camera: FittedCamera) -> tuple[str, ...]:
    return (
        camera.name,
        _length_with_std(camera.rotation_deg, camera.rotation_std_deg, 2),
        _length_with_std(camera.shift_mm, camera.shift_std_mm, 1),
        _with_std(camera.focal_factor, camera.focal_std, 4),
        _with_std(camera.delay_ms, camera.delay_std_ms, 1),
        "-" if camera.noise_px is None else f"{camera.noise_px:.1f}",
    )


def _with_std(value: float, std: float | None, decimals: int) -> str:
    return "kept" if std is None else f"{value:.{decimals}f} ± {std:.{decimals}f}"


def _length_with_std(vector: Sequence[float], std: Sequence[float] | None, decimals: int) -> str:
    """How long a vector is, and the root mean square of its parts' deviations."""
    spread = None if std is None else math.hypot(*std) / math.sqrt(len(std))
    return _with_std(math.hypot(*vector), spread, decimals)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        lines.append("  ".join(["", f"{name:<{first}}", *right]).rstrip())
    return lines


def format_fitted_trial(trial: SimulatedTrial, motion: FittedMotion) -> str:
    """A trial in a line: frames, and means of curvature with the mean deviation of a frame."""
    import numpy as np

    parts = [f"{trial.name}: {trial.n_frames} frames, {trial.usable} usable"]
    for name in ("lordosis", "kyphosis"):
        if name in motion.angle_names and motion.used.any():
            value, std = (np.degrees(np.mean(x[motion.used])) for x in motion.angle(name))
            parts.append(f"{name} {value:.1f} ± {std:.1f} deg")
    return ", ".join(parts)
