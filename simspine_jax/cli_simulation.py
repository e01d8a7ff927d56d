"""The commands ``simspine simulate`` and ``simspine validate``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simspine_jax.cli_parsing import add_output
from simspine_jax.errors import MissingDependencyError, SimspineError, UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simspine_jax.annotations import SpineTrial
    from simspine_jax.arrays import Array, Float
    from simspine_jax.kinematics.model import SpineModel
    from simspine_jax.pipeline import FailedTrial, LoadedModel
    from simspine_jax.pipeline.options import SimulationOptions
    from simspine_jax.pipeline.simulate import OsimSource, SimulatedTrial
    from simspine_jax.pipeline.sources import SubjectSource
    from simspine_jax.tables import Table

SYNTHETIC_SECONDS, SYNTHETIC_RATE_HZ, SYNTHETIC_SEED = 10.0, 50.0, 0
REGIONS_SHOWN = ("cervical", "thoracic", "lumbar", "spine", "body", "all")

# What has an effect in one mode only; a default would hide whether it was given, so these have none.
KEYPOINT_OPTIONS = ("calibration", "rate", "schema", "cameras_in_order")
_TRIAL_OPTIONS = (*KEYPOINT_OPTIONS, "static", "subject", "action", "height", "mass")
SYNTHETIC_OPTIONS = ("subjects", "actions", "seconds", "seed")
_MARKER_SUFFIXES = (".trc", ".c3d")


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine simulate`` takes."""
    source = parser.add_argument_group("one trial")
    add_keypoint_arguments(source)
    source.add_argument("--markers", type=Path, metavar="TRC", help="body markers, beside or instead of them")
    source.add_argument(
        "--static", type=Path, metavar="PATH", help="a static trial to scale by (.trc, or as --keypoints)"
    )
    add_name_arguments(source)
    source.add_argument("--height", type=float, metavar="M", help="the subject's height, if known")
    source.add_argument("--mass", type=float, metavar="KG", help="the subject's mass, if known")
    add_many_arguments(parser)
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
        "how far keypoints and body markers lie from the model's markers when it is scaled; 0 believes every "
        "proportion"))  # fmt: skip
    model.add_argument("--max-gap", type=float, metavar="S", help="gaps up to here are filled (0.2)")
    model.add_argument("--precision", type=int, choices=(32, 64), default=32, help="bits of a number (32)")
    output = parser.add_argument_group("output")
    add_output(output, required=True, metavar="DIR", help="gets the official layout")
    output.add_argument("--report", action="store_true", help="an HTML report of each trial and of the set")
    output.add_argument("--html", action="store_true", help="also a page that plays each trial")
    output.add_argument("--quality-format", choices=("csv", "parquet"), default="csv", help=(
        "of the table of findings: 'parquet' writes that beside the CSV (csv)"))  # fmt: skip
    output.add_argument("--force", action="store_true", help="redo trials that are complete")
    output.add_argument("--quiet", action="store_true", help="print failures only")


def add_keypoint_arguments(source: Any) -> None:
    """Keypoints of one trial and their cameras, for a group of a parser."""
    source.add_argument("--keypoints", type=Path, metavar="PATH", help=(
        "2D detections: a folder with a folder of OpenPose or SpinePose JSON a camera, a folder with a "
        "COCO results file for each, or an .npz"))  # fmt: skip
    source.add_argument("--calibration", type=Path, metavar="FILE", help=(
        "cameras: Pose2Sim's or the release's .toml, Qualisys' .qca.txt, OpenCV's .yml or .xml, or "
        "h36m_cameras.json"))  # fmt: skip
    source.add_argument("--rate", type=float, metavar="HZ", help="of keypoint files that don't say it")
    source.add_argument(
        "--cameras-in-order", action="store_true", help="cameras go by order, not by name, in both files"
    )
    source.add_argument("--schema", metavar="NAME", help="order of keypoints, such as BODY_25B")


def add_name_arguments(source: Any) -> None:
    """What one trial is called, for a group of a parser."""
    source.add_argument("--subject", metavar="NAME", help="name in the output, and in h36m_cameras.json (S1)")
    source.add_argument("--action", metavar="NAME", help="name in the output (that of the input)")


def add_many_arguments(parser: argparse.ArgumentParser) -> None:
    """Sources of many trials."""
    many = parser.add_argument_group("many trials instead")
    many.add_argument("--manifest", type=Path, metavar="TOML", help="subjects, trials and their files")
    many.add_argument("--synthetic", action="store_true", help="synthetic captures with known truth")
    many.add_argument("--subjects", nargs="+", metavar="S", help="of the synthetic set (all seven)")
    many.add_argument("--actions", nargs="+", metavar="A", help="likewise (all fifteen)")
    many.add_argument("--seconds", type=float, metavar="S", help="of each synthetic trial (10)")
    many.add_argument("--seed", type=int, metavar="N", help="of the synthetic set (0)")


def add_validate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine validate`` takes."""
    parser.add_argument("input", type=Path, metavar="IN", help=(
        "a folder that 'simspine simulate' wrote, a release's folder, or its .h5"))  # fmt: skip
    add_output(parser, required=True, metavar="DIR")
    parser.add_argument("--formats", nargs="+", metavar="F", help="of html png svg pdf txt md csv tex")
    parser.add_argument("--subjects", nargs="+", default=None, metavar="S", help="only these")
    parser.add_argument("--actions", nargs="+", default=None, metavar="A", help="only these")
    parser.add_argument("--unverified", action="store_true", help=(
        "also show values of the literature that are recalled or without a primary source"))  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing")


def simulate(arguments: argparse.Namespace, bars: Callable[..., Any], note: Callable[[str], None]) -> int:
    """Runs the simulation; returns the number of trials that failed, each told on stderr."""
    from simspine_jax.io.files import make_folder
    from simspine_jax.pipeline import FailedTrial
    from simspine_jax.pipeline.simulate import run_simulation

    check_arguments(arguments)
    options = read_options(arguments)
    loaded, osim = open_spine(arguments)
    subjects = read_sources(arguments, loaded)
    make_folder(arguments.out)
    failed: list[FailedTrial] = []
    done: list[SimulatedTrial] = []
    with bars(sum(len(s.trials) for s in subjects), arguments) as (say, progress, next_trial):
        results = run_simulation(
            loaded, subjects, arguments.out, options,
            osim=osim, force=arguments.force, quality_format=arguments.quality_format, progress=progress,
            note=note,
        )  # fmt: skip
        for result in results:
            next_trial(not isinstance(result, FailedTrial))
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


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what can't be done, or would have no effect, before any work.

    Raises:
        MissingDependencyError: a page is asked for and what draws it is not installed.
        SimspineError: no source of trials is given or two, an option has no effect, or is out of range.
    """
    one = arguments.keypoints is not None or arguments.markers is not None
    if one + (arguments.manifest is not None) + arguments.synthetic != 1:
        raise SimspineError(
            "Give either --keypoints and --calibration and/or --markers, or --manifest, or --synthetic"
        )
    if not one:
        mode = "--synthetic" if arguments.synthetic else "--manifest, which says it itself"
        refuse_without_effect(arguments, _TRIAL_OPTIONS, f"with {mode}", "--keypoints or --markers")
    if not arguments.synthetic:
        refuse_without_effect(arguments, SYNTHETIC_OPTIONS, "without --synthetic", "--synthetic")
    if one and not _reads_keypoints(arguments):
        refuse_without_effect(arguments, KEYPOINT_OPTIONS, "on markers", "--keypoints")
    check_schema(arguments.schema)
    if arguments.scaled:
        refuse_without_effect(
            arguments, ("static", "marker_std"), "with --scaled", "a model that is to be scaled"
        )
    for name in ("rate", "height", "mass"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise SimspineError(f"--{name} is {value}; valid is a positive number")
    for asked, package, purpose in (
        (arguments.report, "matplotlib", "--report"), (arguments.html, "viser", "--html"),
    ):  # fmt: skip
        if asked and importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "viewer", purpose)


def refuse_without_effect(arguments: argparse.Namespace, names: Sequence[str], here: str, valid: str) -> None:
    """Refuses options that were given and would do nothing.

    Raises:
        SimspineError: names the first.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value is not False:
            option = name.replace("_", "-")
            raise SimspineError(f"--{option} has no effect {here}; it goes with {valid}")


def check_schema(name: str | None) -> None:
    """Here, because an NPZ names its keypoints, so that nothing else would look at the schema.

    Raises:
        UnknownNameError: with the names that are valid.
    """
    from simspine_jax.io.keypoints import KEYPOINT_SCHEMAS

    if name is not None and name not in KEYPOINT_SCHEMAS:
        raise UnknownNameError("Schema", name, "the schemas", KEYPOINT_SCHEMAS)


def _reads_keypoints(arguments: argparse.Namespace) -> bool:
    static = arguments.static
    return arguments.keypoints is not None or (static is not None and not _is_markers(static))


def _is_markers(path: Path) -> bool:
    return path.suffix.lower() in _MARKER_SUFFIXES


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
    spread = None if arguments.marker_std is None else arguments.marker_std / 1e3
    given = {
        "acceleration": arguments.smooth_acceleration,
        "velocity": arguments.smooth_velocity,
        "marker_std_m": spread,
        "optical_std_m": spread,
        "max_gap_s": arguments.max_gap,
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    return preset(arguments.preset, **changes)


def open_spine(arguments: argparse.Namespace) -> tuple[LoadedModel, OsimSource | None]:
    """The model that the arguments name, or the paper's, and what scaled copies are made of.

    Raises:
        SimspineError: it can't be read, or has no spine.
    """
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
    loaded = open_model(arguments.model, arguments.marker_set)
    _check_bodies(arguments.model, loaded.model)
    return loaded, osim


def _check_bodies(path: Path, model: SpineModel) -> None:
    from simspine_jax.kinematics.curvature import SPINE_BODIES

    if missing := [body for body in SPINE_BODIES if body not in model.body_names]:
        raise SimspineError(
            f"{path} lacks the bodies {', '.join(missing)}; valid is a model with {', '.join(SPINE_BODIES)} "
            "and the keypoints as markers, as the paper's, which is taken without --model; 'simspine ik' "
            "solves any model"
        )


def read_sources(arguments: argparse.Namespace, loaded: LoadedModel) -> tuple[SubjectSource, ...]:
    """The subjects that the arguments name, which `check_arguments` has passed.

    Raises:
        SimspineError: the manifest, or a name of the synthetic set, is wrong.
    """
    from simspine_jax.pipeline.sources import (
        FileTrial,
        SubjectSource,
        action_from,
        read_manifest,
        synthetic_subjects,
    )

    if arguments.manifest is not None:
        return read_manifest(arguments.manifest)
    if arguments.synthetic:
        return synthetic_subjects(
            loaded.model,
            SYNTHETIC_SECONDS if arguments.seconds is None else arguments.seconds,
            SYNTHETIC_RATE_HZ,
            SYNTHETIC_SEED if arguments.seed is None else arguments.seed,
            subjects=arguments.subjects or (),
            actions=arguments.actions or (),
        )
    subject = "S1" if arguments.subject is None else arguments.subject
    shared = {
        "calibration": arguments.calibration, "rate_hz": arguments.rate, "schema": arguments.schema,
        "calibration_subject": _calibration_subject(arguments.calibration, subject),
        "cameras_in_order": arguments.cameras_in_order,
    }  # fmt: skip
    first = next(path for path in (arguments.keypoints, arguments.markers) if path is not None)
    name = action_from(first) if arguments.action is None else arguments.action
    with_views = shared if arguments.keypoints is not None else {}
    trial = FileTrial(name, arguments.keypoints, markers=arguments.markers, **with_views)
    static = None
    if arguments.static is not None and _is_markers(arguments.static):
        static = FileTrial("static", markers=arguments.static)
    elif arguments.static is not None:
        static = FileTrial("static", arguments.static, **shared)
    return (SubjectSource(subject, (trial,), static, arguments.height, arguments.mass),)


def _calibration_subject(path: Path | None, subject: str) -> str | None:
    return subject if path is not None and path.suffix.lower() == ".json" else None


def format_simulated(result: SimulatedTrial) -> str:
    """A trial as a few lines of text."""
    from simspine_jax.statistics import spine_words

    state = "complete already, " if result.resumed else ""
    frames = f"{result.n_frames} frames, {state}{result.usable} usable, {result.repaired} repaired"
    lines = [f"{result.name}: {frames}, {result.gaps_filled} short gaps of markers filled"]
    if result.truth_mpjpe_mm:
        lines.append(f"  {result.source}: not measured on people")
    if result.faults:
        faults = ", ".join(f"{what} {before}, {after}" for what, before, after in result.faults)
        lines.append(f"  frames with faults before and after repair: {faults}")
    lines.append(f"  {format_size(result)}")
    if result.spine_seen is not None and result.back_seen is not None:
        lines.append(f"  spine keypoints seen: {spine_words(result.spine_seen, result.back_seen)}")
    for how, lordosis, kyphosis in (
        ("by keypoints (compares with the paper's)", result.lordosis_deg, result.kyphosis_deg),
        ("by bodies (rigid thorax: kyphosis constant)", result.body_lordosis_deg, result.body_kyphosis_deg),
    ):
        if lordosis is not None and kyphosis is not None:
            lines.append(f"  lordosis {lordosis:.1f}, kyphosis {kyphosis:.1f} deg {how}")
    if result.marker_rms_mm is not None:
        lines.append(f"  marker RMS {result.marker_rms_mm:.1f} mm")
    if result.reprojection_px:
        errors = ", ".join(f"{name} {error:.1f}" for name, error in result.reprojection_px)
        lines.append(f"  median reprojection error, px: {errors}")
    return "\n".join(lines)


def format_size(result: SimulatedTrial) -> str:
    """Height and mass of the subject, and how they are known."""
    height = "" if result.height_m is None else f"height {result.height_m:.2f} m ({result.height_from}), "
    return f"{height}mass {result.mass_kg:.1f} kg ({result.mass_from})"


def truth_rows(results: Sequence[SimulatedTrial]) -> dict[str, dict[str, float]]:
    """Mean errors against the synthetic truth by region, mm, before and after the model."""
    rows = {}
    for name, field in (("triangulated", "triangulated_mpjpe_mm"), ("simulated", "truth_mpjpe_mm")):
        errors = [dict(getattr(r, field)) for r in results if getattr(r, field)]
        known = [region for region in REGIONS_SHOWN if errors and all(region in e for e in errors)]
        rows[name] = {region: sum(e[region] for e in errors) / len(errors) for region in known}
    return rows


def format_truth(results: Sequence[SimulatedTrial], made: str = "simulated") -> str:
    """`truth_rows` as text; ``made`` says how the results were."""
    lines = ["synthetic truth, MPJPE mm  " + " ".join(f"{name:>9}" for name in REGIONS_SHOWN)]
    for name, means in truth_rows(results).items():
        cells = (f"{means[r]:9.2f}" if r in means else f"{'-':>9}" for r in REGIONS_SHOWN)
        shown = made if name == "simulated" else name
        lines.append(f"{shown:<26} " + " ".join(cells))
    return "\n".join(lines)


def _truth_tables(results: Sequence[SimulatedTrial]) -> list[Table]:
    """The same for a report; nothing where no trial has a truth."""
    from simspine_jax.statistics import SYNTHETIC_NOTICE, counted
    from simspine_jax.validation import truth_table

    known = [result for result in results if result.truth_mpjpe_mm]
    if not known:
        return []
    source = known[0].source if len(known) == 1 else counted(len(known), "synthetic trial")
    return [truth_table(truth_rows(known), source, [SYNTHETIC_NOTICE])]


def _write_pages(
    loaded: LoadedModel, arguments: argparse.Namespace, result: SimulatedTrial, note: Callable[[str], None]
) -> None:
    """Report and viewer page of a trial, where they are asked for and not there yet."""
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.pipeline.records import stored_trial
    from simspine_jax.pipeline.simulate import trial_pages

    layout = ReleaseLayout(arguments.out)
    # Pages of before it was redone are gone: those that are there are about this result.
    report, page = trial_pages(layout, result.subject, result.action)
    wanted = [p for p, asked in ((page, arguments.html), (report, arguments.report)) if asked]
    if all(p.exists() for p in wanted):
        return
    trial = stored_trial(layout.trial(result.subject, result.action))
    if page in wanted:
        _write_viewer(loaded, trial, page, arguments, note)
    if report in wanted:
        from simspine_jax.viz.report import write_trial_report

        links = {"Viewer": page.name} if page.exists() else None
        facts = {"Height and mass": format_size(result)}
        write_trial_report(report, trial, links, facts=facts, tables=_truth_tables([result]))


def _write_viewer(loaded: LoadedModel, trial: Any, page: Path, arguments: argparse.Namespace, note) -> None:
    """Plays the scaled model's motion beside the triangulated points."""
    import json

    import jax.numpy as jnp
    import numpy as np

    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.skeleton import AXIS_NAMES, TRC_NAMES
    from simspine_jax.viz.viewer import write_html

    model, free = loaded.model, arguments.lumbar != "coupled"
    posed = np.isfinite(trial.keypoints).any(axis=(1, 2))
    if not posed.any() or not set(model.free_names) <= set(AXIS_NAMES):
        note(f"{page.name} is not written: there is no pose to show")
        return
    if free:
        note(f"{page.name} shows the coupled model's nearest pose")
    about = json.loads(ReleaseLayout(arguments.out).model(trial.subject).with_suffix(".json").read_text())
    factors = jnp.asarray([about["scale_factors"][body] for body in model.body_names], model.dtype)
    q = coupled_poses(model, trial.coordinates[posed], free=free)
    shown = None
    if trial.triangulated is not None:
        names = [TRC_NAMES.index(n) if n in TRC_NAMES else None for n in model.marker_names]
        missing = np.full((posed.sum(), 3), np.nan)
        seen = [missing if i is None else trial.triangulated[posed][:, i] for i in names]
        shown = jnp.asarray(np.stack(seen, axis=1), model.dtype)
    write_html(
        model, q, page, shown,
        rate_hz=trial.rate_hz, meshes=loaded.sidecar, scale_factors=factors,
    )  # fmt: skip


def coupled_poses(model: SpineModel, axes: NDArray[np.float64], *, free: bool) -> Float[Array, "T Q"]:
    """[T Q] the coupled model's free coordinates from kinematic axes [T 62], rad and m.

    Args:
        model: coupled.
        axes: in the order of `skeleton.AXIS_NAMES`.
        free: whether the axes' lumbar joints are free; then it is the nearest pose.
    """
    import jax.numpy as jnp

    from simspine_jax.kinematics.lumbar import free_lumbar, free_to_coupled
    from simspine_jax.skeleton import AXIS_NAMES

    names = free_lumbar(model).free_names if free else model.free_names
    q = jnp.asarray(axes[:, [AXIS_NAMES.index(name) for name in names]], model.dtype)
    return free_to_coupled(model, q) if free else q


def _write_set_report(out: Path, results: list[SimulatedTrial]) -> Path:
    from simspine_jax.io.layout import ReleaseLayout
    from simspine_jax.pipeline.records import stored_trial
    from simspine_jax.pipeline.simulate import set_page, trial_pages
    from simspine_jax.viz.report import write_set_report

    layout, path = ReleaseLayout(out), set_page(ReleaseLayout(out))
    pages = {r.name: trial_pages(layout, r.subject, r.action)[0] for r in results}
    sizes = {r.subject: f"{r.subject}: {format_size(r)}" for r in results}
    write_set_report(
        path,
        (stored_trial(layout.trial(r.subject, r.action)) for r in results),
        {name: page.relative_to(path.parent).as_posix() for name, page in pages.items()},
        facts={"Height and mass": "; ".join(sizes.values())},
        tables=_truth_tables(results),
    )
    return path


def validate(arguments: argparse.Namespace) -> int:
    """Draws and tabulates a set of annotations."""
    from tqdm import tqdm

    from simspine_jax.io.files import make_folder
    from simspine_jax.io.release import Release, ReleaseTrial, find_release, read_release
    from simspine_jax.io.trials import find_trials_in
    from simspine_jax.pipeline.records import stored_trial, with_remarks
    from simspine_jax.statistics import counted
    from simspine_jax.viz.validate import DEFAULT_FORMATS, run_validation

    path: Path = arguments.input
    if not path.exists():
        raise SimspineError(f"There is no {path}; give a folder of 'simspine simulate' or a release")
    make_folder(arguments.out)
    if path.is_dir() and (path / "trials").is_dir():
        stored = {
            ReleaseTrial(t.subject, t.action, t.path.stem.removeprefix(f"{t.subject}_")): t.path
            for t in find_trials_in(path)
        }
        selected = Release(path, "folder", tuple(stored)).select(arguments.subjects, arguments.actions)
        count, trials = len(selected), (stored_trial(stored[t]) for t in selected)
    else:
        release = find_release(path)
        selected = release.select(arguments.subjects, arguments.actions)
        count = len(selected)
        trials = read_release(path, subjects=arguments.subjects, actions=arguments.actions)
        trials = with_remarks(release.path, trials) if release.form == "hdf5" else trials
    if not count:
        raise SimspineError(f"{path} has no trials of these subjects with these actions together")
    hidden = arguments.quiet or not sys.stderr.isatty()
    with tqdm(total=count, unit="trial", disable=hidden) as bar:

        def step(trial: SpineTrial) -> None:
            bar.update()

        formats = tuple(arguments.formats or DEFAULT_FORMATS)
        written = run_validation(trials, arguments.out, formats, step, unverified=arguments.unverified)
    if not arguments.quiet:
        print(f"{counted(len(written), 'file')} in {arguments.out}, such as {written[0].name}")
    return 0
