"""The command ``simspine``: one sub-command a capability.

What a command needs is imported inside its function, so that ``simspine --help`` answers in a moment.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, NoReturn

from simspine_jax import __version__, interrupts
from simspine_jax.cli_benchmark import add_benchmark_arguments, benchmark
from simspine_jax.cli_dataset import add_dataset_arguments
from simspine_jax.cli_detection import add_detect_arguments, detect
from simspine_jax.cli_dynamics import add_dynamics_arguments, dynamics
from simspine_jax.cli_fit import add_fit_arguments, fit
from simspine_jax.cli_mixing import add_study_arguments
from simspine_jax.cli_parsing import Command, add_commands, add_output, check_suffix
from simspine_jax.cli_simulation import (
    add_simulate_arguments,
    add_validate_arguments,
    open_spine,
    refuse_without_effect,
    simulate,
    validate,
)
from simspine_jax.cli_training import (
    add_evaluate_arguments,
    add_lift_arguments,
    add_train_arguments,
    evaluate,
    lift,
    train,
)
from simspine_jax.errors import FileFormatError, ShapeError, SimspineError, listed, misspelt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simspine_jax.io import IKSetup
    from simspine_jax.kinematics.model import SpineModel
    from simspine_jax.motions import Motion
    from simspine_jax.pipeline import FailedTrial, IKOptions, LoadedModel, Progress, TrialResult

BAD_INPUT = 2
INTERRUPTED = 130
DEFAULT_PORT = 8080
VERIFIED_POSES = 200

MODEL_HELP = "an OpenSim model (.osim), or a converted one (its .xml, .json or folder)"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    arguments = build_parser().parse_args(argv)
    if argv is None:
        interrupts.remember()
    _keep_compiled_programs()
    try:
        return arguments.run(arguments)
    except SimspineError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Who reads our output has left, as `head` does; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        print(": ".join(["simspine: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        if argv is None:
            _leave(INTERRUPTED)
        return INTERRUPTED


def _leave(status: int) -> NoReturn:
    """Ends the process at once: Python would wait for XLA's threads, and crash while one of them compiles."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def _fail(message: str) -> int:
    print(f"simspine: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def _note(message: str) -> None:
    print(f"simspine: note: {message}", file=sys.stderr)


def _keep_compiled_programs() -> None:
    """JAX's persistent compile cache, through the environment because JAX is not imported yet."""
    from simspine_jax.assets import cache_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@contextmanager
def _precision(bits: int) -> Iterator[None]:
    import jax

    with jax.enable_x64(bits == 64):
        yield


# --- arguments -------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="simspine",
        description="OpenSim spine models in JAX: convert, solve and look. "
        "Each command tells more: simspine ik --help",
    )
    parser.add_argument("--version", action="version", version=f"simspine {__version__}")
    add_commands(parser, _COMMANDS)
    return parser


def _add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--model", required=required, type=Path, metavar="M", help=MODEL_HELP)
    parser.add_argument(
        "--marker-set", type=Path, metavar="XML", help="markers to use instead of the model's own"
    )
    _add_ignore_constraints(parser)


def _add_ignore_constraints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore-constraints",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="constraints of an .osim to leave out knowingly",
    )


def _add_in_degrees(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--in-degrees",
        choices=("yes", "no"),
        help="what the motion file's angles are, if its header does not say it",
    )


def _add_motion_reading(parser: argparse.ArgumentParser) -> None:
    _add_in_degrees(parser)
    parser.add_argument(
        "--partial", action="store_true", help="take a motion with less than half of the model's coordinates"
    )


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.osim")
    parser.add_argument(
        "--marker-set",
        "--markers",
        dest="markers",
        type=Path,
        metavar="XML",
        help="markers to use instead of the model's own",
    )
    parser.add_argument("--meshes", type=Path, metavar="DIR", help="folder of the bones' .vtp, .stl or .obj")
    _add_ignore_constraints(parser)
    parser.add_argument("--verify", action="store_true", help="compare with OpenSim over random poses")
    parser.add_argument("--poses", type=_count, metavar="N", help=f"poses to compare ({VERIFIED_POSES})")
    add_output(parser, required=True, metavar="OUT", help="the .xml to write, or a folder")


def _add_ik_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--markers",
        nargs="+",
        required=True,
        metavar="TRC",
        help=".trc or .c3d files, folders of them, or quoted patterns such as 'S1/*.trc'",
    )
    parser.add_argument("--setup", type=Path, metavar="XML", help="OpenSim's IK setup: tasks and times")
    parser.add_argument(
        "--coordinates",
        type=Path,
        metavar="MOT",
        help="values of the setup's coordinate tasks, instead of its own coordinate_file",
    )
    _add_in_degrees(parser)
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=W",
        help='weights that are not 1, or a .json ({"NAME": W}) or .csv (NAME,W) file of them',
    )
    parser.add_argument(
        "--smooth-velocity",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of velocities; whole-clip solve",
    )
    parser.add_argument(
        "--smooth-acceleration",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of accelerations, likewise",
    )
    parser.add_argument("--time", nargs=2, type=float, metavar=("START", "END"), help="seconds to solve")
    parser.add_argument("--precision", type=int, choices=(32, 64), default=32, help="bits of a number (32)")
    parser.add_argument("--html", action="store_true", help="also write a page that plays the motion")
    parser.add_argument("--plot", action="store_true", help="also write a plot of coordinates and errors")
    add_output(parser, required=True, metavar="DIR", help="gets a folder for each trial")
    parser.add_argument("--force", action="store_true", help="redo trials that are complete")
    parser.add_argument("--quiet", action="store_true", help="print failures only")


def _add_fk_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--motion", type=Path, required=True, metavar="MOT", help="an OpenSim .mot or .sto")
    add_output(parser, required=True, metavar="TRC")
    parser.add_argument("--units", choices=("m", "mm"), default="m", help="of the TRC (m)")
    _add_motion_reading(parser)


def _add_motion_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("input", type=Path, metavar="IN", help=".mot or .sto, or .npz or .csv with qpos")
    add_output(
        parser, required=True, metavar="OUT", help=".npz (time, qpos, joint_names), .csv (the same) or .mot"
    )
    _add_motion_reading(parser)


def _add_view_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, required=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--motion", type=Path, metavar="MOT", help="the motion; without it, the default pose")
    what.add_argument("--fit", type=Path, metavar="NPZ", help=(
        "a trial in the folder fit of 'simspine fit', on the subject's bones and with ellipsoids that hold "
        "its markers with 90%%; --model is the fit's (the paper's)"))  # fmt: skip
    parser.add_argument("--markers", type=Path, metavar="TRC", help="measured markers beside the model's")
    _add_motion_reading(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    add_output(where, metavar="HTML", help="one page that needs no server")
    where.add_argument("--serve", action="store_true", help="serve a live page until Ctrl-C")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"with --serve ({DEFAULT_PORT})")


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser, default=Path("demo_output"), metavar="DIR", help="(demo_output)")
    parser.add_argument("--frames", type=_count, default=500, metavar="N", help="frames at 50 Hz (500)")
    parser.add_argument("--seed", type=int, default=0, help="of motion and noise (0)")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return value


# --- commands --------------------------------------------------------------------------------------------


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts a model and, if asked, compares the result with OpenSim."""
    from simspine_jax.kinematics.isolated import convert_isolated

    output, model = arguments.out, arguments.model
    if not model.is_file():
        raise FileFormatError(f"There is no file {model}; give the path of an OpenSim model (.osim)")
    if arguments.poses is not None and not arguments.verify:
        raise SimspineError("--poses has no effect without --verify")
    target = output if output.suffix == ".xml" else output / f"{model.stem}.xml"
    if target != output and output.suffix[1:2].isalpha() and not output.is_dir():
        raise SimspineError(
            f"'{output}' is neither a folder nor a name that ends in .xml; valid is "
            f"{output.with_suffix('.xml')}, beside which the coordinate map is written as .json"
        )
    convert_isolated(
        model,
        target,
        markers=arguments.markers,
        meshes=arguments.meshes,
        ignore_constraints=arguments.ignore_constraints,
    )
    print(f"{target} and {target.with_suffix('.json').name}")
    _print_conversion_notes(target)
    if not arguments.verify:
        return 0
    from osim2mjcf.verify import format_report, verify

    report = verify(model, target, arguments.poses or VERIFIED_POSES, markers=arguments.markers)
    print(format_report(report))
    return 0 if report.passed() else _fail(f"{target} is not {model} within the tolerances above")


def _print_conversion_notes(target: Path) -> None:
    from simspine_jax.io.sidecar import read_sidecar

    for note in read_sidecar(target.with_suffix(".json")).notes:
        _note(note)


def run_ik(arguments: argparse.Namespace) -> int:
    """Solves all trials that are not complete."""
    with _precision(arguments.precision):
        from simspine_jax.io.files import make_folder
        from simspine_jax.pipeline import FailedTrial, find_trials, run_trials

        trials = find_trials(arguments.markers)
        options = _ik_options(arguments)
        make_folder(arguments.out)
        if not arguments.quiet:
            _tell_other_files(arguments, options, trials)
        loaded = _open_model(arguments)
        failed: list[FailedTrial] = []
        with _bars(len(trials), arguments) as (say, progress, next_trial):
            results = run_trials(
                loaded, trials, arguments.out, options, force=arguments.force, progress=progress
            )
            for path, result in zip(trials, results, strict=True):
                next_trial(not isinstance(result, FailedTrial))
                if isinstance(result, FailedTrial):
                    failed.append(result)
                    continue
                say(format_trial(result))
                _write_extras(loaded, result, path, html=arguments.html, plot=arguments.plot)
    for trial in failed:
        _fail(f"trial {trial.name}: {trial.reason}")
    return BAD_INPUT if failed else 0


def _tell_other_files(arguments: argparse.Namespace, options: IKOptions, trials: Sequence[Path]) -> None:
    """Notes where the setup names another model or marker file than those that are used instead."""
    if (setup := options.setup) is None:
        return
    pairs = (("model", setup.model_file, [arguments.model]), ("marker file", setup.marker_file, trials))
    for what, named, used in pairs:
        # Models go by their names without ending, as a converted one has another.
        stem = None if named is None else PureWindowsPath(named).stem
        if stem is not None and stem not in [path.stem for path in used]:
            _note(f"{arguments.setup} names the {what} {named}; used is {listed([str(p) for p in used], 3)}")


def _open_model(arguments: argparse.Namespace) -> LoadedModel:
    from simspine_jax.pipeline import open_model

    return open_model(arguments.model, arguments.marker_set, ignore_constraints=arguments.ignore_constraints)


def _ik_options(arguments: argparse.Namespace) -> IKOptions:
    from simspine_jax.io import read_ik_setup
    from simspine_jax.pipeline import IKOptions

    start, end = arguments.time or (None, None)
    setup = read_ik_setup(arguments.setup) if arguments.setup is not None else None
    return IKOptions(
        setup=setup,
        weights=read_weights(arguments.weights),
        smooth_velocity=arguments.smooth_velocity,
        smooth_acceleration=arguments.smooth_acceleration,
        start=start,
        end=end,
        precision=arguments.precision,
        coordinates=arguments.coordinates or _coordinate_file(arguments.setup, setup),
        in_degrees=_in_degrees(arguments),
        setup_file=arguments.setup,
    )


def _coordinate_file(path: Path | None, setup: IKSetup | None) -> Path | None:
    """The file that the setup's coordinate tasks take values from; None where none of them does."""
    if path is None or setup is None:
        return None
    takes = any(t.apply and t.weight > 0 and t.value_type == "from_file" for t in setup.coordinate_tasks)
    return path.parent / setup.coordinate_file if takes and setup.coordinate_file is not None else None


def _in_degrees(arguments: argparse.Namespace) -> bool | None:
    return None if arguments.in_degrees is None else arguments.in_degrees == "yes"


def read_weights(words: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Weights from ``NAME=W`` words and from files, later ones first in force.

    Raises:
        FileFormatError: a word or file that holds no weights.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, sign, value = word.rpartition("=")
        if sign:
            weights[name] = _weight(value, f"--weights {word}")
        else:
            weights.update(_weights_file(Path(word)))
    return tuple(sorted(weights.items()))


def _weights_file(path: Path) -> dict[str, float]:
    import csv
    import json

    from simspine_jax.io import read_text

    valid = 'valid are NAME=W, a .json file of {"NAME": W} and a .csv file of lines NAME,W'
    if path.suffix.lower() == ".json":
        try:
            document = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise FileFormatError(f"{path} is not JSON: {error}; {valid}") from None
        if not isinstance(document, dict):
            raise FileFormatError(f"{path} holds no names; {valid}")
        return {name: _weight(value, f"{path}: {name}") for name, value in document.items()}
    if path.suffix.lower() == ".csv":
        weights = {}
        for number, row in enumerate(csv.reader(read_text(path).splitlines()), start=1):
            if len(row) != 2:
                raise FileFormatError(f"{path}:{number}: the line has {len(row)} cells; {valid}")
            weights[row[0].strip()] = _weight(row[1], f"{path}:{number}")
        return weights
    raise FileFormatError(f"'{path}' holds no weights; {valid}")


def _weight(value: object, where: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise FileFormatError(f"{where}: {value!r} is no weight; valid is a number from 0 on") from None


@contextmanager
def _bars(
    n_trials: int, arguments: argparse.Namespace
) -> Iterator[tuple[Callable[[str], None], Progress, Callable[[bool], None]]]:
    """Progress over trials and frames on a terminal's stderr, and how to print beside it.

    An interrupt inside tells how many trials are complete.
    """
    from tqdm import tqdm

    hidden = arguments.quiet or not sys.stderr.isatty()
    complete = 0
    try:
        with (
            tqdm(total=n_trials, unit="trial", disable=hidden, position=0) as trials,
            tqdm(unit="frame", disable=hidden, position=1, leave=False) as frames,
        ):

            def say(text: str) -> None:
                if not arguments.quiet:
                    tqdm.write(text, file=sys.stdout)

            def progress(done: int, total: int) -> None:
                interrupts.check()
                frames.total = total
                frames.update(done - frames.n)

            def next_trial(is_complete: bool) -> None:
                nonlocal complete
                complete += is_complete
                interrupts.check()
                trials.update()
                frames.reset()

            yield say, progress, next_trial
    except KeyboardInterrupt:
        again = "the same command" + (" without --force" if arguments.force else "")
        raise KeyboardInterrupt(
            f"{complete} of {n_trials} trials are complete, and {again} continues"
        ) from None


def format_trial(result: TrialResult) -> str:
    """A trial as text: what was solved and how fast, then a row for each marker."""
    states = ", ".join(f"{count} {status.lower().replace('_', ' ')}" for status, count in result.status)
    if result.seconds is None:
        return f"{result.name}: complete already in {result.folder} ({result.n_frames} frames: {states})"
    speed = "compiling included" if result.compiled else f"{result.n_frames / result.seconds:.0f} frames/s"
    effort = f"{result.iterations / result.n_frames:.1f} iterations a frame"
    line = f"{result.name}: {result.n_frames} frames ({states}), {result.seconds:.2f} s, {speed}, {effort}"
    lines = [f"{line} -> {result.folder}"]
    if result.changed:
        lines.append("  options or inputs changed since the last run: solved anew")
    if result.frames_left_out:
        whole, why = result.n_frames + result.frames_left_out, "--time, or the setup's time_range, leaves out"
        lines.append(f"  {why} {result.frames_left_out} of the file's {whole} frames")
    lines += [*_marker_table(result), *_other_names(result)]
    if result.frames_without_pose:
        lines.append(f"  {len(result.frames_without_pose)} frames have no pose and no row in the .mot")
    return "\n".join(lines)


def _marker_table(result: TrialResult) -> list[str]:
    """Marker errors in columns, and in the last row those of all markers that count, each alike."""
    rows = [("marker", "weight", "RMS mm", "max mm", "frames")]
    rows += [
        (m.name, f"{m.weight:.4g}", *map(_millimetres, (m.rms_mm, m.max_mm)), str(m.frames))
        for m in result.markers
    ]
    counted = [m for m in result.markers if m.weight > 0 and m.rms_mm is not None and m.max_mm is not None]
    if n := sum(m.frames for m in counted):
        rms = (sum(m.frames * (m.rms_mm or 0.0) ** 2 for m in counted) / n) ** 0.5
        largest = max(m.max_mm or 0.0 for m in counted)
        rows.append(("all of weight > 0", "", *map(_millimetres, (rms, largest)), ""))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        lines.append("  ".join(["", f"{name:<{first}}", *right]).rstrip())
    return lines


def _millimetres(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _other_names(result: TrialResult) -> list[str]:
    """Markers that only one side has, and which of them are likely one."""
    lines = []
    for names, what in (
        (result.only_in_file, "in the file but not in the model, ignored"),
        (result.only_in_model, "in the model but not in the file"),
    ):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    slips = [(name, misspelt(name, result.only_in_model)) for name in result.only_in_file]
    return [*lines, *(f"  {name}: did you mean {other}?" for name, other in slips if other is not None)]


def _write_extras(loaded: LoadedModel, result: TrialResult, markers: Path, *, html: bool, plot: bool) -> None:
    """The page and the plot of a trial, where they are asked for and not there yet."""
    from simspine_jax.io import read_markers
    from simspine_jax.motions import read_motion
    from simspine_jax.pipeline import targets_at

    page, picture = (result.folder / f"{result.name}.{suffix}" for suffix in ("html", "png"))
    wanted = [path for path, asked in ((page, html), (picture, plot)) if asked and not path.exists()]
    if not wanted:
        return
    motion = read_motion(loaded.model, result.motion)
    targets = targets_at(loaded.model, read_markers(markers), motion.times)
    if page in wanted:
        _write_page(loaded, motion, targets, page)
    if picture in wanted:
        _write_plot(loaded, motion, targets, picture)


def _write_page(loaded: LoadedModel, motion: Motion, targets: NDArray[np.float64] | None, path: Path) -> None:
    import jax.numpy as jnp

    from simspine_jax.viz.viewer import write_html

    shown = None if targets is None else jnp.asarray(targets)
    q, meshes = jnp.asarray(motion.q), loaded.sidecar
    page = write_html(loaded.model, q, path, shown, rate_hz=motion.rate_hz, meshes=meshes)
    if page.stride > 1:
        _note(f"{path} plays {page.n_frames} of {page.n_frames_given} frames, every {page.stride}th")


def _write_plot(loaded: LoadedModel, motion: Motion, targets: NDArray[np.float64], path: Path) -> None:
    import jax.numpy as jnp

    from simspine_jax.viz.plots import plot_ik_summary

    times, q, wanted = (jnp.asarray(values) for values in (motion.times, motion.q, targets))
    plot_ik_summary(path, loaded.model, times, q, wanted, origin=path.stem)


def run_fk(arguments: argparse.Namespace) -> int:
    """Writes the markers of a motion."""
    check_suffix(arguments.out, ".trc")
    with _precision(64):
        from simspine_jax.io import write_trc
        from simspine_jax.motions import marker_trajectory

        model = _open_model(arguments).model
        motion = _read_motion(model, arguments.motion, arguments)
        if not model.n_markers:
            raise SimspineError(f"The model {model.name} has no markers; give some with --marker-set")
        trajectory = marker_trajectory(model, motion)
        write_trc(arguments.out, trajectory, units=arguments.units)
    print(f"{arguments.out}: {trajectory.n_frames} frames of {len(trajectory.names)} markers")
    return 0


def _read_motion(model: SpineModel, path: Path, arguments: argparse.Namespace) -> Motion:
    from simspine_jax.motions import read_motion, without_gaps

    motion = read_motion(model, path, _in_degrees(arguments), partial=arguments.partial)
    without_gaps(motion)  # refuses a file without any pose, before notes are told about it
    for note in motion.notes:
        _note(note)
    return motion


def run_motion(arguments: argparse.Namespace) -> int:
    """Converts a motion; the suffixes say from what to what."""
    tables, arrays = (".mot", ".sto"), (".npz", ".csv")
    source, target = arguments.input.suffix.lower(), arguments.out.suffix.lower()
    if source not in tables + arrays or target not in (".mot", *arrays):
        raise SimspineError(
            f"Can't turn '{arguments.input}' into '{arguments.out}'; valid are .mot, .sto, .npz and .csv "
            "into .mot, .npz and .csv"
        )
    with _precision(64):
        from simspine_jax.motions import read_qpos, write_motion, write_qpos

        model = _open_model(arguments).model
        if source in tables:
            motion = _read_motion(model, arguments.input, arguments)
        else:
            motion = read_qpos(model, arguments.input)
            for note in motion.notes:
                _note(note)
        write = write_qpos if target in arrays else write_motion
        write(arguments.out, model, motion)
    print(f"{arguments.out}: {len(motion.times)} frames")
    return 0


def run_view(arguments: argparse.Namespace) -> int:
    """Writes a page, or serves one until it is interrupted."""
    if arguments.out is not None:
        check_suffix(arguments.out, ".html", ".htm")
    if arguments.fit is not None:
        names = ["markers", "in_degrees", "partial"]
        names += ["ignore_constraints"] if arguments.ignore_constraints else []
        refuse_without_effect(arguments, names, "with --fit", "--motion")
        with _precision(32):
            return _view_fit(arguments)
    if arguments.model is None:
        raise SimspineError("Give --model, or --fit with a trial that was fitted to the paper's model")
    with _precision(32):
        import numpy as np

        from simspine_jax.io import read_markers
        from simspine_jax.motions import default_motion, without_gaps
        from simspine_jax.pipeline import check_units, targets_at

        loaded = _open_model(arguments)
        model, targets = loaded.model, None
        trajectory = read_markers(arguments.markers) if arguments.markers is not None else None
        if arguments.motion is not None:
            motion = without_gaps(_read_motion(model, arguments.motion, arguments))
        else:
            motion = default_motion(model, trajectory.times if trajectory is not None else None)
        if trajectory is not None:
            check_units(loaded, trajectory)
            targets = targets_at(model, trajectory, motion.times)
            if np.isnan(targets).all():
                raise SimspineError(
                    f"{arguments.markers} shows none of the model's markers at the times to view, "
                    f"{motion.times[0]:g} to {motion.times[-1]:g} s"
                )
        if arguments.out is not None:
            _write_page(loaded, motion, targets, arguments.out)
            print(arguments.out)
            return 0
        import jax.numpy as jnp

        from simspine_jax.viz.viewer import serve

        shown = None if targets is None else jnp.asarray(targets)
        q, meshes = jnp.asarray(motion.q), loaded.sidecar
        serve(model, q, shown, rate_hz=motion.rate_hz, meshes=meshes, port=arguments.port)
    return 0


def _view_fit(arguments: argparse.Namespace) -> int:
    from simspine_jax.pipeline.fit_results import read_motion_npz, read_sizes
    from simspine_jax.viz.fit_viewer import fitted_view, serve_fit, write_fit_html

    sizes = read_sizes(arguments.fit)
    motion = read_motion_npz(arguments.fit)
    loaded = open_spine(arguments)[0]
    try:
        view = fitted_view(loaded.model, motion, *sizes)
    except ShapeError as error:
        raise ShapeError(f"{arguments.fit}: {error}") from None
    if arguments.out is None:
        serve_fit(loaded, view, arguments.port)
    else:
        write_fit_html(loaded, view, arguments.out)
        print(arguments.out)
    return 0


def run_simulate(arguments: argparse.Namespace) -> int:
    """Simulates all trials that are not complete."""
    with _precision(arguments.precision):
        return BAD_INPUT if simulate(arguments, _bars, _note) else 0


def run_fit(arguments: argparse.Namespace) -> int:
    """Fits all subjects that are not complete."""
    with _precision(64):
        return BAD_INPUT if fit(arguments, _bars, _note) else 0


def run_dynamics(arguments: argparse.Namespace) -> int:
    """Computes the moments and forces behind a motion."""
    with _precision(64):
        return dynamics(arguments, _note)


def run_validate(arguments: argparse.Namespace) -> int:
    """Draws and tabulates a set of annotations."""
    with _precision(64):
        return validate(arguments)


def run_train(arguments: argparse.Namespace) -> int:
    """Trains a lifter or a detector, or goes on with a training."""
    with _precision(32):
        return train(arguments, _note)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Prints how good a trained lifter or detector is."""
    with _precision(32):
        return evaluate(arguments, _note)


def run_lift(arguments: argparse.Namespace) -> int:
    """Lifts keypoints of one camera."""
    with _precision(32):
        return lift(arguments, _note)


def run_detect(arguments: argparse.Namespace) -> int:
    """Finds keypoints in pictures and videos."""
    with _precision(32):
        return BAD_INPUT if detect(arguments, _note) else 0


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Prints the paper's tables for a dataset."""
    with _precision(32):
        return benchmark(arguments, _note)


def run_demo(arguments: argparse.Namespace) -> int:
    """Shows everything on synthetic data."""
    from simspine_jax.demo import run
    from simspine_jax.io.files import make_folder

    make_folder(arguments.out)
    with _precision(32):
        run(arguments.out, arguments.frames, arguments.seed)
    return 0


def _add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset_arguments(parser, _note)


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser, _note)


def run_study(arguments: argparse.Namespace) -> int:
    """Never runs, as `run_dataset`."""
    raise AssertionError(arguments)


def run_dataset(arguments: argparse.Namespace) -> int:
    """Never runs: each command of ``simspine dataset`` brings its own function, and one is required."""
    raise AssertionError(arguments)


_COMMANDS = (
    Command(
        "convert", _add_convert_arguments, run_convert,
        "convert an OpenSim model to MJCF and the exact coordinate map beside it",
        "simspine convert arm26.osim --verify -o arm26/arm26.xml",
    ),
    Command(
        "ik", _add_ik_arguments, run_ik,
        "solve inverse kinematics: marker files to motions, resuming where a run stopped",
        "simspine ik --model gait.osim --markers trials/ --setup IK_Setup.xml --out results",
    ),
    Command(
        "fk", _add_fk_arguments, run_fk,
        "compute a motion's marker positions by forward kinematics",
        "simspine fk --model gait.osim --motion walk.mot -o walk.trc --units mm",
    ),
    Command(
        "motion", _add_motion_arguments, run_motion,
        "turn OpenSim motions into MuJoCo's qpos and back",
        "simspine motion --model gait.osim walk.mot -o walk.npz",
    ),
    Command(
        "view", _add_view_arguments, run_view,
        "show model, motion and markers in a browser",
        "simspine view --model gait.osim --motion walk.mot -o walk.html",
    ),
    Command(
        "detect", add_detect_arguments, run_detect,
        "find the 37 keypoints in pictures and videos of one or several cameras, resuming",
        "simspine detect videos/ --weights runs/spinepose_m --video --out detected",
    ),
    Command(
        "simulate", add_simulate_arguments, run_simulate,
        "turn keypoints of calibrated cameras, or body markers, into spine annotations, resuming",
        "simspine simulate --keypoints pose/ --calibration Calib.toml --rate 60 --report --out results",
    ),
    Command(
        "fit", add_fit_arguments, run_fit,
        "fit a subject's sizes, cameras and poses to its keypoints at once, with how sure they are, resuming",
        "simspine fit --keypoints pose/ --calibration Calib.toml --rate 60 --report --html --out fitted",
    ),
    Command(
        "dynamics", add_dynamics_arguments, run_dynamics,
        "compute the joint moments and forces behind a motion, and those of each lumbar level",
        "simspine dynamics gait.osim walk.mot --external-loads grf.xml -o walk_forces.sto",
    ),
    Command(
        "validate", add_validate_arguments, run_validate,
        "draw the paper's figures and tables of curvature and range of motion for any annotations",
        "simspine validate results -o validation",
    ),
    Command(
        "dataset", _add_dataset_arguments, run_dataset,
        "build the SimSpine dataset for TensorFlow Datasets, tell what it holds, export it",
        "simspine dataset build --config synthetic",
    ),
    Command(
        "train", add_train_arguments, run_train,
        "train a detector of keypoints, or a lifter of them to 3D, resuming where a run stopped",
        "simspine train kinematic_full --out runs/kinematic_full",
    ),
    Command(
        "evaluate", add_evaluate_arguments, run_evaluate,
        "tell how good a trained lifter or detector is, by region, as a table",
        "simspine evaluate runs/kinematic_full --input truth --format md",
    ),
    Command(
        "lift", add_lift_arguments, run_lift,
        "lift the keypoints of one camera to positions and joint angles",
        "simspine lift pose.npz --checkpoint runs/kinematic_full --camera Calib.toml -o lifted/walk",
    ),
    Command(
        "benchmark", add_benchmark_arguments, run_benchmark,
        "print the paper's Tables 3 to 6 for a dataset: multi-view reconstruction and monocular lifting",
        "simspine benchmark --tables 3 4 --format md -o tables",
    ),
    Command(
        "study", _add_study_arguments, run_study,
        "repeat a study of the paper on any data: mixing of two sets of pictures, its Figure 5",
        "simspine study mixing --first tfds:synthetic_images --second h36m:frames:simspine.h5 -o study",
    ),
    Command(
        "demo", _add_demo_arguments, run_demo,
        "fetch the spine model, solve a synthetic motion and write motion, plot and page",
        "simspine demo --out demo_output",
    ),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
