"""The demonstration: fetch, convert, move, solve and compare, on data made with the model itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from simspine_jax.assets import PACKAGE, PACKAGE_VERSION, spine_model_path
from simspine_jax.errors import MissingDependencyError
from simspine_jax.io import MarkerTrajectory, write_trc
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.motions import Motion, read_motion, write_motion
from simspine_jax.pipeline import IKOptions, LoadedModel, open_model, run_ik
from simspine_jax.pipeline.spine import converted_spine
from simspine_jax.skeleton import LUMBAR_LEVELS, OFFICIAL_MARKER_WEIGHTS, write_paper_marker_set
from simspine_jax.viz.plots import plot_ik_summary
from simspine_jax.viz.viewer import write_html

RATE_HZ = 50.0
NOISE_M = 0.005
# OpenSim solves about ten frames a second on this model, so more would make the demonstration wait for it.
OPENSIM_FRAMES = 20
OPENSIM_TIMEOUT_S = 300


@dataclass(frozen=True)
class Accuracy:
    """How far a solution is from the truth: markers from the noisy ones, angles from the true ones."""

    solver: str
    frames: int
    marker_mm: float
    lumbar_deg: float
    all_joints_deg: float
    frames_per_second: float | None


@dataclass(frozen=True, eq=False)
class Truth:
    """The synthetic clip: true coordinates and what was made of them."""

    times: NDArray[np.float64]
    q: NDArray[np.float64]
    measured: NDArray[np.float64]  # [T K 3] m, with noise


@dataclass(frozen=True)
class DemoResult:
    """The folder that everything was written to, the rows of the table and what they were told beside it."""

    folder: Path
    rows: tuple[Accuracy, ...]
    first_seconds: float


def run(out: Path, n_frames: int, seed: int) -> DemoResult:
    """Runs the demonstration into ``out``, telling on stdout what it does.

    Raises:
        SimspineError: the model can't be fetched or converted, or a file can't be written.
    """
    print(f"model: {PACKAGE} {PACKAGE_VERSION}, 62 coordinates, with the paper's markers", flush=True)
    loaded = open_model(converted_spine())
    model = loaded.model
    truth = make_truth(model, n_frames, seed)
    markers = out / "synthetic.trc"
    write_trc(markers, MarkerTrajectory(model.marker_names, truth.times, truth.measured, RATE_HZ))
    write_motion(out / "truth.mot", model, Motion(truth.times, truth.q))
    print(
        f"motion: synthetic, {n_frames} frames at {RATE_HZ:g} Hz (seed {seed}); markers are the model's own "
        f"with {1e3 * NOISE_M:g} mm noise on each axis, so real recordings will fit less well",
        flush=True,
    )
    options = IKOptions(weights=tuple(sorted(OFFICIAL_MARKER_WEIGHTS.items())))
    result = run_ik(loaded, markers, out, options, force=True)
    print(
        f"solved: first time in {result.seconds:.1f} s, with compiling or loading what was compiled",
        flush=True,
    )
    motion = read_motion(model, result.motion)
    rows = [_ours(loaded, truth, motion, markers, options)]
    if (reference := _opensim(model, truth, markers)) is not None:
        start = Motion(motion.times[: reference.frames], motion.q[: reference.frames])
        rows += [accuracy("simspine, the same frames", model, truth, start, None), reference]
    print(format_rows(rows))
    print("all deg counts forearms and toes too, which these markers hardly show")
    print(f"motion: {result.motion}")
    _show(loaded, truth, motion, out)
    return DemoResult(out, tuple(rows), result.seconds or 0.0)


def make_truth(model: SpineModel, n_frames: int, seed: int) -> Truth:
    """A synthetic motion and its markers with noise."""
    from simspine_jax.capture import add_marker_noise, synthetic_motion

    q = synthetic_motion(model, n_frames, RATE_HZ, seed)
    markers = jax.jit(lambda m, x: ssj.forward_kinematics(m, x).markers)(model, q)
    measured = add_marker_noise(markers, NOISE_M, jax.random.key(seed))
    times = np.arange(n_frames) / RATE_HZ
    return Truth(times, np.asarray(q, np.float64), np.asarray(measured, np.float64))


def accuracy(solver: str, model: SpineModel, truth: Truth, motion: Motion, seconds: float | None) -> Accuracy:
    """Root mean squares over markers, lumbar angles and all angles, each angle modulo a full turn."""
    n = len(motion.times)
    expand = jax.jit(ssj.expand_coordinates)
    found, true = (np.asarray(expand(model, jnp.asarray(q))) for q in (motion.q, truth.q[:n]))
    turns = np.array(model.rotational)
    lumbar = np.array([name.startswith(LUMBAR_LEVELS) for name in model.coordinate_names])
    error = np.rad2deg(np.angle(np.exp(1j * (found - true)))[:, turns])
    markers = jax.jit(lambda m, x: ssj.forward_kinematics(m, x).markers)(model, jnp.asarray(motion.q))
    distance = np.linalg.norm(np.asarray(markers) - truth.measured[:n], axis=-1)
    speed = n / seconds if seconds is not None else None
    return Accuracy(solver, n, 1e3 * _rms(distance), _rms(error[:, lumbar[turns]]), _rms(error), speed)


def format_rows(rows: list[Accuracy]) -> str:
    """The table: root mean square errors, and the speed of a solve without compiling."""
    lines = [f"{'':27}{'frames':>8}{'markers mm':>12}{'lumbar deg':>12}{'all deg':>10}{'frames/s':>10}"]
    for r in rows:
        speed = f"{r.frames_per_second:.1f}" if r.frames_per_second is not None else ""
        errors = f"{r.marker_mm:12.2f}{r.lumbar_deg:12.2f}{r.all_joints_deg:10.2f}"
        lines.append(f"{r.solver:27}{r.frames:8d}{errors}{speed:>10}")
    return "\n".join(lines)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _show(loaded: LoadedModel, truth: Truth, motion: Motion, out: Path) -> None:
    """Page and plot, and where they are; without the packages for them, how to get these."""
    model, q, targets = loaded.model, jnp.asarray(motion.q), jnp.asarray(truth.measured)
    times, true_q = jnp.asarray(truth.times), jnp.asarray(truth.q)
    origin = f"synthetic motion, {1e3 * NOISE_M:g} mm marker noise"
    plot, page = out / "demo.png", out / "demo.html"
    try:
        plot_ik_summary(plot, model, times, q, targets, origin=origin, true_q=true_q)
        print(f"plot: {plot}")
        write_html(model, q, page, targets, rate_hz=RATE_HZ, meshes=loaded.sidecar)
        print(f"page with bones, to open in a browser: {page}")
    except MissingDependencyError as error:
        print(error)


def _ours(loaded: LoadedModel, truth: Truth, motion: Motion, markers: Path, options: IKOptions) -> Accuracy:
    """The motion that was written, with the speed of solving it once more."""
    with tempfile.TemporaryDirectory() as folder:
        again = run_ik(loaded, markers, folder, options)
    assert again.seconds is not None
    return accuracy(f"simspine on {jax.default_backend()}", loaded.model, truth, motion, again.seconds)


def _opensim(model: SpineModel, truth: Truth, markers: Path) -> Accuracy | None:
    """OpenSim's tool on the first frames; None where it is not installed or fails, which is told."""
    if importlib.util.find_spec("opensim") is None:
        print("OpenSim is not installed, so its own tool is not run beside it")
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_paper_marker_set(folder / "markers.xml")
        (folder / "weights.json").write_text(json.dumps(dict(OFFICIAL_MARKER_WEIGHTS)), encoding="utf-8")
        command = [
            sys.executable,
            "-P",
            "-m",
            "osim2mjcf.opensim_ik",
            str(spine_model_path()),
            str(markers.resolve()),
        ]
        command += [str(folder / "opensim.mot"), "--markers", str(folder / "markers.xml")]
        command += ["--weights", str(folder / "weights.json"), "--frames", str(OPENSIM_FRAMES)]
        try:
            child = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=True, timeout=OPENSIM_TIMEOUT_S
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"OpenSim's own tool could not be run beside it: {str(error).splitlines()[0][:200]}")
            return None
        seconds = json.loads(child.stdout.splitlines()[-1])["seconds"]
        motion = read_motion(model, folder / "opensim.mot")
    return accuracy("OpenSim, one thread", model, truth, motion, seconds)
