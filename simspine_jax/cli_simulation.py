"""The commands ``simspine simulate`` and ``simspine validate``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax.errors import SimspineError

if TYPE_CHECKING:
    from simspine_jax.annotations import SpineTrial
    from simspine_jax.pipeline import FailedTrial, LoadedModel
    from simspine_jax.pipeline.options import SimulationOptions
    from simspine_jax.pipeline.simulate import OsimSource, SimulatedTrial
    from simspine_jax.pipeline.sources import SubjectSource

SYNTHETIC_SECONDS, SYNTHETIC_RATE_HZ = 10.0, 50.0
REGIONS_SHOWN = ("cervical", "thoracic", "lumbar", "spine", "body", "all")


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine simulate`` takes."""
    source = parser.add_argument_group("one trial")
    source.add_argument("--keypoints", type=Path, metavar="PATH", help=(
        "2D detections: a folder with a folder of OpenPose or SpinePose JSON a camera, a folder with a "
        "COCO results file for each, or an .npz"))  # fmt: skip
    source.add_argument("--calibration", type=Path, metavar="FILE", help=(
        "cameras: Pose2Sim's or the release's .toml, Qualisys' .qca.txt, OpenCV's .yml or .xml, or "
        "h36m_cameras.json"))  # fmt: skip
    source.add_argument("--markers", type=Path, metavar="TRC", help="body markers, beside or instead of them")
    source.add_argument("--rate", type=float, metavar="HZ", help="of keypoint files that don't say it")
    source.add_argument(
        "--cameras-in-order", action="store_true", help="cameras go by order, not by name, in both files"
    )
    source.add_argument("--schema", metavar="NAME", help="order of keypoints, such as BODY_25B")
    source.add_argument(
        "--static", type=Path, metavar="PATH", help="a static trial to scale by (.trc, or as --keypoints)"
    )
    source.add_argument("--subject", default="S1", help="name in the output, and in h36m_cameras.json (S1)")
    source.add_argument("--action", metavar="NAME", help="name in the output (that of the input)")
    source.add_argument("--height", type=float, metavar="M", help="the subject's height, if known")
    source.add_argument("--mass", type=float, metavar="KG", help="the subject's mass, if known")
    many = parser.add_argument_group("many trials instead")
    many.add_argument("--manifest", type=Path, metavar="TOML", help="subjects, trials and their files")
    many.add_argument("--synthetic", action="store_true", help="synthetic captures with known truth")
    many.add_argument(
        "--subjects", nargs="+", default=[], metavar="S", help="of the synthetic set (all seven)"
    )
    many.add_argument("--actions", nargs="+", default=[], metavar="A", help="likewise (all fifteen)")
    many.add_argument("--seconds", type=float, default=SYNTHETIC_SECONDS, help="of each synthetic trial (10)")
    many.add_argument("--seed", type=int, default=0, help="of the synthetic set (0)")
    model = parser.add_argument_group("model and method")
    model.add_argument("--model", type=Path, metavar="M", help=(
        "an OpenSim model with the keypoints as markers (the paper's, which is fetched)"))  # fmt: skip
    model.add_argument(
        "--marker-set", type=Path, metavar="XML", help="markers to use instead of the model's own"
    )
    model.add_argument("--scaled", action="store_true", help="the model is the subject's own: don't scale it")
    model.add_argument(
        "--preset", default="simspine", help="'simspine', or 'official' as the released code (simspine)"
    )
    model.add_argument("--lumbar", default="coupled", metavar="HOW", help=(
        "'coupled' as the model ships, 'free' (18 axes with a pull to the rhythm), or that pull's stiffness, "
        "m^2/rad^2"))  # fmt: skip
    model.add_argument(
        "--smooth-acceleration", type=float, metavar="W", help="weight in the whole-clip solve"
    )
    model.add_argument("--smooth-velocity", type=float, metavar="W", help="likewise of velocities")
    model.add_argument("--marker-std", type=float, metavar="MM", help=(
        "how far keypoints lie from the model's markers; 0 believes every proportion"))  # fmt: skip
    model.add_argument("--max-gap", type=float, metavar="S", help="gaps up to here are filled (0.2)")
    model.add_argument("--precision", type=int, choices=(32, 64), default=32, help="bits of a number (32)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the official layout")
    output.add_argument("--report", action="store_true", help="an HTML report of each trial and of the set")
    output.add_argument("--html", action="store_true", help="also a page that plays each trial")
    output.add_argument("--force", action="store_true", help="redo trials that are complete")
    output.add_argument("--quiet", action="store_true", help="print failures only")


def add_validate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine validate`` takes."""
    parser.add_argument("input", type=Path, metavar="IN", help=(
        "a folder that 'simspine simulate' wrote, a release's folder, or its .h5"))  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--formats", nargs="+", metavar="F", help="of html png svg pdf txt md csv tex")
    parser.add_argument("--subjects", nargs="+", default=None, metavar="S", help="only these")
    parser.add_argument("--actions", nargs="+", default=None, metavar="A", help="only these")
    parser.add_argument("--quiet", action="store_true", help="print nothing")


def simulate(arguments: argparse.Namespace, bars: Callable[..., Any], note: Callable[[str], None]) -> int:
    """Runs the simulation; returns the number of trials that failed, each told on stderr."""
    from simspine_jax.pipeline import FailedTrial
    from simspine_jax.pipeline.simulate import run_simulation

    options = read_options(arguments)
    loaded, osim = _model(arguments)
    subjects = read_sources(arguments, loaded)
    failed: list[FailedTrial] = []
    done: list[SimulatedTrial] = []
    with bars(sum(len(s.trials) for s in subjects), quiet=arguments.quiet) as (say, progress, next_trial):
        results = run_simulation(
            loaded, subjects, arguments.out, options,
            osim=osim, force=arguments.force, progress=progress, note=note,
        )  # fmt: skip
        for result in results:
            next_trial()
            if isinstance(result, FailedTrial):
                failed.append(result)
                print(f"simspine: error: trial {result.name}: {result.reason}", file=sys.stderr)
                continue
            done.append(result)
            say(format_simulated(result))
            _write_pages(loaded, arguments, result, note)
    if not arguments.quiet and any(r.truth_mpjpe_mm for r in done):
        print(format_truth(done))
    if arguments.report and done:
        report = _write_set_report(arguments.out, done)
        if not arguments.quiet:
            print(report)
    return len(failed)


def read_options(arguments: argparse.Namespace) -> SimulationOptions:
    """The preset with the command line's changes.

    Raises:
        SimspineError: an option is out of range.
    """
    from simspine_jax.pipeline.options import preset

    changes: dict[str, Any] = {"scale": not arguments.scaled}
    if arguments.lumbar not in ("coupled", "free"):
        try:
            changes["stiffness"] = float(arguments.lumbar)
        except ValueError:
            raise SimspineError(
                f"--lumbar is '{arguments.lumbar}'; valid are 'coupled', 'free' and a stiffness such as 1e-3"
            ) from None
        changes["lumbar"] = "free"
    else:
        changes["lumbar"] = arguments.lumbar
    given = {
        "acceleration": arguments.smooth_acceleration,
        "velocity": arguments.smooth_velocity,
        "marker_std_m": None if arguments.marker_std is None else arguments.marker_std / 1e3,
        "max_gap_s": arguments.max_gap,
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    return preset(arguments.preset, **changes)


def _model(arguments: argparse.Namespace) -> tuple[LoadedModel, OsimSource | None]:
    from simspine_jax.pipeline import open_model
    from simspine_jax.pipeline.simulate import OsimSource
    from simspine_jax.pipeline.spine import converted_spine, paper_markers

    if arguments.model is None:
        if arguments.marker_set is not None:
            raise SimspineError("--marker-set goes with --model; the paper's model has the paper's markers")
        from simspine_jax.assets import spine_model_path

        return open_model(converted_spine()), OsimSource(spine_model_path(), paper_markers())
    is_osim = arguments.model.suffix.lower() == ".osim"
    osim = OsimSource(arguments.model, arguments.marker_set) if is_osim else None
    return open_model(arguments.model, arguments.marker_set), osim


def read_sources(arguments: argparse.Namespace, loaded: LoadedModel) -> tuple[SubjectSource, ...]:
    """The subjects that the arguments name.

    Raises:
        SimspineError: they name none, or two kinds at once.
    """
    from simspine_jax.pipeline.sources import FileTrial, SubjectSource, read_manifest, synthetic_subjects

    one = arguments.keypoints is not None or arguments.markers is not None
    if one + (arguments.manifest is not None) + arguments.synthetic != 1:
        raise SimspineError(
            "Give either --keypoints and --calibration and/or --markers, or --manifest, or --synthetic"
        )
    if arguments.manifest is not None:
        return read_manifest(arguments.manifest)
    if arguments.synthetic:
        return synthetic_subjects(
            loaded.model, arguments.seconds, SYNTHETIC_RATE_HZ, arguments.seed,
            subjects=arguments.subjects, actions=arguments.actions,
        )  # fmt: skip
    for name in ("rate", "height", "mass"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise SimspineError(f"--{name} is {value}; valid is a positive number")
    shared = {
        "calibration": arguments.calibration, "rate_hz": arguments.rate, "schema": arguments.schema,
        "calibration_subject": _calibration_subject(arguments),
        "cameras_in_order": arguments.cameras_in_order,
    }  # fmt: skip
    first = next(path for path in (arguments.keypoints, arguments.markers) if path is not None)
    name = arguments.action or first.stem
    trial = FileTrial(name, arguments.keypoints, markers=arguments.markers, **shared)
    static = None
    if arguments.static is not None:
        is_markers = arguments.static.suffix.lower() in (".trc", ".c3d")
        where = {"markers": arguments.static} if is_markers else {"keypoints": arguments.static}
        static = FileTrial("static", **where, **shared)
    return (SubjectSource(arguments.subject, (trial,), static, arguments.height, arguments.mass),)


def _calibration_subject(arguments: argparse.Namespace) -> str | None:
    path = arguments.calibration
    return arguments.subject if path is not None and path.suffix.lower() == ".json" else None


def format_simulated(result: SimulatedTrial) -> str:
    """A trial as a few lines of text."""
    state = "complete already" if result.resumed else f"{result.usable} usable, {result.repaired} repaired"
    lines = [f"{result.name}: {result.n_frames} frames, {state}"]
    if result.faults:
        lines.append("  not usable: " + ", ".join(f"{count} {what}" for what, count in result.faults))
    measures = (
        ("lordosis", result.lordosis_deg, "deg"), ("kyphosis", result.kyphosis_deg, "deg"),
        ("marker RMS", result.marker_rms_mm, "mm"),
    )  # fmt: skip
    lines.append("  " + ", ".join(f"{n} {v:.1f} {u}" for n, v, u in measures if v is not None))
    if result.reprojection_px:
        errors = ", ".join(f"{name} {error:.1f}" for name, error in result.reprojection_px)
        lines.append(f"  median reprojection error, px: {errors}")
    return "\n".join(lines)


def format_truth(results: list[SimulatedTrial]) -> str:
    """Mean errors against the synthetic truth by region, before and after the model."""
    head = "synthetic truth, MPJPE mm  " + " ".join(f"{name:>9}" for name in REGIONS_SHOWN)
    lines = [head]
    for name, field in (("triangulated", "triangulated_mpjpe_mm"), ("simulated", "truth_mpjpe_mm")):
        rows = [dict(getattr(r, field)) for r in results if getattr(r, field)]
        means = [
            sum(row[region] for row in rows) / len(rows)
            if rows and all(region in row for row in rows)
            else None
            for region in REGIONS_SHOWN
        ]
        cells = (f"{mean:9.2f}" if mean is not None else f"{'-':>9}" for mean in means)
        lines.append(f"{name:<26} " + " ".join(cells))
    return "\n".join(lines)


def _write_pages(
    loaded: LoadedModel, arguments: argparse.Namespace, result: SimulatedTrial, note: Callable[[str], None]
) -> None:
    """Report and viewer page of a trial, where they are asked for and not there yet."""
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.io.trials import read_trial

    layout = ReleaseLayout(arguments.out)
    stored = layout.trial(result.subject, result.action)
    folder = arguments.out / "reports" / stored.parent.name
    page, report = folder / f"{result.name}_viewer.html", folder / f"{result.name}.html"
    fresh = arguments.force or not result.resumed
    wanted = [p for p, asked in ((page, arguments.html), (report, arguments.report)) if asked]
    if not wanted or not (fresh or any(not p.exists() for p in wanted)):
        return
    trial = read_trial(stored)
    if page in wanted:
        _write_viewer(loaded, trial, page, arguments, note)
    if report in wanted:
        from simspine_jax.viz.report import write_trial_report

        write_trial_report(report, trial, {"Viewer": page.name} if page.exists() else None)


def _write_viewer(loaded: LoadedModel, trial: Any, page: Path, arguments: argparse.Namespace, note) -> None:
    """Plays the scaled model's motion beside the triangulated points."""
    import json

    import jax.numpy as jnp
    import numpy as np

    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.skeleton import AXIS_NAMES, TRC_NAMES
    from simspine_jax.viz.viewer import write_html

    model = loaded.model
    if arguments.lumbar != "coupled":
        note(f"{page.name} shows the coupled model's nearest pose")
    posed = np.isfinite(trial.keypoints).any(axis=(1, 2))
    if not posed.any() or not set(model.free_names) <= set(AXIS_NAMES):
        note(f"{page.name} is not written: there is no pose to show")
        return
    about = json.loads(ReleaseLayout(arguments.out).model(trial.subject).with_suffix(".json").read_text())
    factors = jnp.asarray([about["scale_factors"][body] for body in model.body_names], model.dtype)
    q = trial.coordinates[posed][:, [AXIS_NAMES.index(name) for name in model.free_names]]
    shown = None
    if trial.triangulated is not None:
        names = [TRC_NAMES.index(n) if n in TRC_NAMES else None for n in model.marker_names]
        missing = np.full((posed.sum(), 3), np.nan)
        seen = [missing if i is None else trial.triangulated[posed][:, i] for i in names]
        shown = jnp.asarray(np.stack(seen, axis=1), model.dtype)
    write_html(
        model, jnp.asarray(q, model.dtype), page, shown,
        rate_hz=trial.rate_hz, meshes=loaded.sidecar, scale_factors=factors,
    )  # fmt: skip


def _write_set_report(out: Path, results: list[SimulatedTrial]) -> Path:
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.io.trials import read_trial
    from simspine_jax.viz.report import write_set_report

    layout = ReleaseLayout(out)
    stored = [layout.trial(r.subject, r.action) for r in results]
    path = out / "reports" / "report.html"
    links = {r.name: f"{s.parent.name}/{r.name}.html" for r, s in zip(results, stored, strict=True)}
    write_set_report(path, (read_trial(p) for p in stored), links)
    return path


def validate(arguments: argparse.Namespace) -> int:
    """Draws and tabulates a set of annotations."""
    from tqdm import tqdm

    from simspine_jax.io.release import find_release, read_release
    from simspine_jax.io.trials import find_trials_in, read_trial
    from simspine_jax.viz.validate import DEFAULT_FORMATS, run_validation

    path: Path = arguments.input
    if not path.exists():
        raise SimspineError(f"There is no {path}; give a folder of 'simspine simulate' or a release")
    if path.is_dir() and (path / "trials").is_dir():
        chosen = [
            t for t in find_trials_in(path)
            if arguments.subjects in (None, []) or t.subject in arguments.subjects
        ]  # fmt: skip
        chosen = [t for t in chosen if arguments.actions is None or t.action in arguments.actions]
        if not chosen:
            raise SimspineError(f"{path} has no trials of these subjects and actions")
        count, trials = len(chosen), (read_trial(t.path) for t in chosen)
    else:
        selected = find_release(path).select(arguments.subjects, arguments.actions)
        count = len(selected)
        trials = read_release(path, subjects=arguments.subjects, actions=arguments.actions)
    hidden = arguments.quiet or not sys.stderr.isatty()
    with tqdm(total=count, unit="trial", disable=hidden) as bar:

        def step(trial: SpineTrial) -> None:
            bar.update()

        written = run_validation(trials, arguments.out, tuple(arguments.formats or DEFAULT_FORMATS), step)
    if not arguments.quiet:
        print(f"{len(written)} files in {arguments.out}, such as {written[0].name}")
    return 0
