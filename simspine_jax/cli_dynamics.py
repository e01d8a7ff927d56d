"""The command ``simspine dynamics``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from simspine_jax import interrupts
from simspine_jax.cli_parsing import add_output, check_suffix
from simspine_jax.errors import SimspineError

Note = Callable[[str], None]

CUTOFF_HZ = 6.0  # as `pipeline.dynamics.CUTOFF_HZ`, which takes JAX to import


def add_dynamics_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``simspine dynamics`` takes."""
    parser.add_argument("model", type=Path, metavar="MODEL", help=(
        "an OpenSim model (.osim), or a converted one (its .xml, .json or folder)"))  # fmt: skip
    parser.add_argument("motion", type=Path, metavar="MOTION", help="an OpenSim .mot or .sto")
    parser.add_argument("--external-loads", type=Path, metavar="XML", help=(
        "OpenSim's ExternalLoads, such as the ground's forces on the feet"))  # fmt: skip
    parser.add_argument("--cutoff", type=float, default=CUTOFF_HZ, metavar="HZ", help=(
        f"of the low-pass filter on the coordinates; 0 for none ({CUTOFF_HZ:g})"))  # fmt: skip
    parser.add_argument("--time", nargs=2, type=float, metavar=("START", "END"), help="seconds to give")
    parser.add_argument("--in-degrees", choices=("yes", "no"), help=(
        "what the motion file's angles are, if its header does not say it"))  # fmt: skip
    parser.add_argument("--partial", action="store_true", help=(
        "take a motion with less than half of the model's coordinates"))  # fmt: skip
    parser.add_argument("--ignore-constraints", nargs="+", action="extend", default=[], metavar="NAME", help=(
        "constraints of an .osim to leave out knowingly"))  # fmt: skip
    add_output(parser, required=True, metavar="STO", help="gets moments and forces over time")
    parser.add_argument("--quiet", action="store_true", help="print failures only")


def dynamics(arguments: argparse.Namespace, note: Note) -> int:
    """Computes the moments and forces behind a motion, writes them and prints the lumbar peaks."""
    check_suffix(arguments.out, ".sto", ".mot")
    if not arguments.cutoff >= 0:
        raise SimspineError(f"--cutoff is {arguments.cutoff:g} Hz; valid is above 0, or 0 for no filter")
    from tqdm import tqdm

    from simspine_jax.dynamics import load_dynamic_model
    from simspine_jax.io.external_loads import read_load_table
    from simspine_jax.motions import read_motion
    from simspine_jax.pipeline.dynamics import peak_table, run_dynamics, write_forces
    from simspine_jax.tables import format_table

    loads = None if arguments.external_loads is None else read_load_table(arguments.external_loads)
    model = load_dynamic_model(arguments.model, ignore_constraints=arguments.ignore_constraints)
    degrees = None if arguments.in_degrees is None else arguments.in_degrees == "yes"
    motion = read_motion(model.kinematics, arguments.motion, degrees, partial=arguments.partial)
    for remark in motion.notes:
        note(remark)
    hidden = arguments.quiet or not sys.stderr.isatty()
    with tqdm(unit="frame", disable=hidden, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            interrupts.check()
            bar.total = total
            bar.update(done - bar.n)

        result = run_dynamics(
            model,
            motion,
            loads,
            cutoff_hz=arguments.cutoff or None,
            time_range=None if arguments.time is None else tuple(arguments.time),
            source=arguments.motion.name,
            progress=progress,
        )
    write_forces(arguments.out, result)
    if not arguments.quiet:
        if result.levels:
            print(format_table(peak_table(result), "txt"), end="")
        else:
            note(f"The model {model.kinematics.name} has no lumbar joints to tabulate")
        print(f"{arguments.out}: {len(result.times)} frames of {len(result.coordinate_names)} forces")
    return 0
