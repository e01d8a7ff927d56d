"""The fit of a subject to 3D markers beside that of nimblephysics, which AddBiomechanics is made of.

Both find sizes of bodies, offsets of markers and all poses (K. Werling et al., AddBiomechanics, 2023). The
model is gait2392, where both have the same coordinates: of the spine model nimblephysics ignores the couplers
that tie the lumbar joints, so that it would solve another problem.

Built for NumPy 1, the peer runs by a Python of its own, which `PYTHON_VARIABLE` names, as
``python -m benchmarks.fitting_nimblephysics PROBLEM.npz FOUND.npz``. That Python need not have JAX, so here
whatever needs JAX is imported where it is used.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import ROOT, Measurement, SkippedError

if TYPE_CHECKING:
    from benchmarks.workplace import Trial, Workplace
    from simspine_jax.fitting.parameters import Segment
    from simspine_jax.kinematics.model import SpineModel

KEY = "fitting/vs_nimblephysics"
PYTHON_VARIABLE = "SIMSPINE_NIMBLEPHYSICS_PYTHON"
PROBE_TIMEOUT_S = 120
SUBJECTS, QUICK_FRAMES = 3, 60
RATE_HZ = 60.0
"""Of the walk."""

LENGTHS = {
    "hip width": ("femur_r", "femur_l"), "thigh": ("femur_r", "tibia_r"), "shank": ("tibia_r", "talus_r"),
    "hindfoot": ("talus_r", "calcn_r"), "forefoot": ("calcn_r", "toes_r"), "lumbar": ("pelvis", "torso"),
}  # fmt: skip
"""Between joints, where the bodies' origins are."""

# AddBiomechanics' settings of the peer (engine.py of its server), but for `SAMPLES` and centred markers, and
# without its statistics of people's sizes, of which these subjects are not drawn.
IK_LOSS, IK_RESTARTS, ITERATIONS = 1e-5, 150, 500
ANATOMICAL_WEIGHT, TRACKING_WEIGHT = 10.0, 0.05
SPHERE_SCORE, AXIS_SCORE, JOINT_WEIGHT, HEIGHT_WEIGHT = 0.01, 0.001, 1.0, 0.1
SAMPLES = 20
"""Frames that sizes and offsets are found from: the default of the peer's pipeline for one trial.

AddBiomechanics' 150 take it four times as long; markers end as far off, and lengths a little nearer.
"""


@dataclass(frozen=True, eq=False)
class Problem:
    """A subject of known sizes who walks.

    Attributes:
        q: ``[T Q]`` free coordinates.
        scale_factors: ``[B 3]``.
        marker_offsets: ``[K 3]`` m.
        truth: ``[T K 3]`` m, markers.
        markers: the same with noise.
        origins: ``[B 3]`` m, of bodies where all coordinates are 0.
    """

    q: NDArray[np.float64]
    scale_factors: NDArray[np.float64]
    marker_offsets: NDArray[np.float64]
    truth: NDArray[np.float64]
    markers: NDArray[np.float64]
    origins: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Found:
    """What a fit made of it, as `Problem` has it, and in which time."""

    markers: NDArray[np.float64]
    origins: NDArray[np.float64]
    seconds: float


def against_nimblephysics(place: Workplace) -> Iterator[Measurement]:
    """Seconds of the peer over ours for some subjects, who take turns, and how far off both are."""
    python = peer_python()
    import jax
    import jax.numpy as jnp

    from benchmarks.workplace import NOISE_M, require_opensim
    from simspine_jax.kinematics.model import load_model
    from simspine_jax.motions import read_motion

    require_opensim()
    trial = place.trials()[0]
    with jax.enable_x64(True):
        model = load_model(trial.osim, dtype=jnp.float64)
        walk = read_motion(model, trial.converged).q
        walk = walk[: place.size(len(walk), QUICK_FRAMES)]
        problems = [make_problem(model, walk, seed) for seed in range(place.size(SUBJECTS, 1))]
        first = solve(model, problems[0]).seconds
        ours, theirs, apart, versions = [], [], [], {}
        for problem in problems:
            ours.append(solve(model, problem))
            found, off, versions = by_peer(place, python, trial, model, problem)
            theirs.append(found)
            apart.append(off)
    seconds, peer = (sum(f.seconds for f in each) for each in (ours, theirs))
    errors = {
        name: errors_of(model.body_names, problems, each) for name, each in (("ours", ours), ("peer", theirs))
    }
    yield Measurement(
        KEY, peer / seconds,
        f"synthetic: {len(problems)} subjects of gait2392's kind, sizes off by up to 15 %, each of "
        f"{model.n_markers} markers by up to 15 mm, with {1e3 * NOISE_M:g} mm noise, in the poses of a real "
        f"walk of {len(walk)} frames",
        f"Peer: MarkerFitter of nimblephysics {versions['nimblephysics']} on the same cores, with "
        f"AddBiomechanics' settings and centred markers, {SAMPLES} frames for sizes and then all for poses. "
        "It is told the subject's height, and our fit how widely all was drawn. Ours includes the poses that "
        f"it starts from and not compiling. {_told('ours', errors, seconds)} {_told('peer', errors, peer)}",
        {
            "ours_s": seconds, "peer_s": peer, "ours_first_with_compiling_s": first, **errors,
            "peer_kinematics_apart_mm": max(apart), "peer_versions": versions,
        },
    )  # fmt: skip


def _told(name: str, errors: Mapping[str, dict[str, Any]], seconds: float) -> str:
    found = errors[name]
    return (
        f"{name.capitalize()}: {seconds:.1f} s, markers {found['marker_mm']:.2f} mm and segment lengths "
        f"{found['length_pct']:.2f} % from the truth."
    )


def errors_of(bodies: Sequence[str], problems: Sequence[Problem], found: Sequence[Found]) -> dict[str, Any]:
    """Mean distance of markers from the truth, mm, and mean absolute errors of lengths, %."""
    pairs = list(zip(problems, found, strict=True))
    markers = fmean(float(np.linalg.norm(f.markers - p.truth, axis=-1).mean()) for p, f in pairs)
    lengths = {
        name: fmean(abs(100 * (_length(bodies, f, ends) / _length(bodies, p, ends) - 1)) for p, f in pairs)
        for name, ends in LENGTHS.items()
    }
    return {"marker_mm": 1e3 * markers, "length_pct": fmean(lengths.values()), "lengths_pct": lengths}


def _length(bodies: Sequence[str], where: Problem | Found, ends: tuple[str, str]) -> float:
    a, b = (where.origins[bodies.index(end)] for end in ends)
    return float(np.linalg.norm(a - b))


# --- ours ---


def make_problem(model: SpineModel, q: NDArray[np.float64], seed: int) -> Problem:
    """A subject drawn as `fitting_worlds` draws them, but with an offset of its own for each marker."""
    import jax.numpy as jnp

    from benchmarks.fitting_worlds import BREADTH, OFFSET_M, PROPORTION, STATURE
    from benchmarks.workplace import NOISE_M
    from simspine_jax.kinematics.forward import forward_kinematics

    random = np.random.default_rng([seed, 11])
    segments = segments_by_side(model.body_names)
    change = random.uniform(-STATURE, STATURE) + random.uniform(-PROPORTION, PROPORTION, (len(segments), 1))
    change = change + random.uniform(-BREADTH, BREADTH, (len(segments), 3))
    number = {body: i for i, segment in enumerate(segments) for body in segment.bodies}
    factors = np.exp(change)[[number[body] for body in model.body_names]]
    directions = random.standard_normal((model.n_markers, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    offsets = OFFSET_M * directions * random.uniform(0, 1, (model.n_markers, 1)) ** (1 / 3)
    walk, sizes, places = (jnp.asarray(x) for x in (q, factors, offsets))
    truth = np.asarray(forward_kinematics(model, walk, scale_factors=sizes, marker_offsets=places).markers)
    noisy = truth + random.normal(0, NOISE_M, truth.shape)
    return Problem(q, factors, offsets, truth, noisy, _origins(model, factors))


def segments_by_side(bodies: Sequence[str]) -> tuple[Segment, ...]:
    """Bodies that are scaled alike: the right and the left one, as the peer groups them."""
    from simspine_jax.fitting.parameters import Segment

    found: dict[str, list[str]] = {}
    for body in bodies:
        found.setdefault(body.removesuffix("_r").removesuffix("_l"), []).append(body)
    return tuple(Segment(name, tuple(members)) for name, members in found.items())


def solve(model: SpineModel, problem: Problem) -> Found:
    """Ours: frame by frame on the generic model, and from there the fit."""
    import jax.numpy as jnp

    from benchmarks.fitting_worlds import PRIORS
    from benchmarks.workplace import NOISE_M
    from simspine_jax.fitting.subject import Clip, FitOptions, Start, fit_subject
    from simspine_jax.kinematics.inverse import solve_ik

    frames, count = problem.markers.shape[:2]
    clip = Clip(np.zeros((frames, 0, count, 2)), np.zeros((frames, 0, count)), problem.markers)
    options = FitOptions(PRIORS, symmetric=False, marker_std_m=NOISE_M)
    segments = segments_by_side(model.body_names)
    began = time.perf_counter()
    start = Start([np.asarray(solve_ik(model, jnp.asarray(problem.markers)).q)])
    fit = fit_subject(model, [clip], None, RATE_HZ, start, options, segments=segments)
    seconds = time.perf_counter() - began
    return Found(fit.markers[0], _origins(model, fit.scale_factors), seconds)


def _origins(model: SpineModel, factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B 3] m, where all coordinates are 0."""
    import jax.numpy as jnp

    from simspine_jax.kinematics.forward import forward_kinematics

    pose = jnp.zeros((1, model.n_free), model.dtype)
    return np.asarray(forward_kinematics(model, pose, scale_factors=jnp.asarray(factors)).body_positions)[0]


def peer_python() -> str:
    """A Python that has nimblephysics and an old NumPy.

    Raises:
        SkippedError: there is none.
    """
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    wanted = f"name a Python that has it and NumPy below 2 in {PYTHON_VARIABLE}"
    probe = [python, "-c", "import nimblephysics, numpy; print(numpy.__version__)"]
    try:
        child = subprocess.run(
            probe, capture_output=True, text=True, errors="replace", timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = type(error).__name__
        raise SkippedError(f"nimblephysics can't be tried ({reason}); {wanted}") from None
    lines = child.stdout.split()
    if child.returncode != 0 or not lines:
        raise SkippedError(f"nimblephysics is not installed; {wanted}")
    if int(lines[-1].partition(".")[0]) >= 2:
        raise SkippedError(f"nimblephysics crashes with NumPy {lines[-1]}; {wanted}")
    return python


def by_peer(
    place: Workplace, python: str, trial: Trial, model: SpineModel, problem: Problem
) -> tuple[Found, float, dict[str, str]]:
    """The peer's result, how far off its markers are with the true sizes and poses (mm), and versions."""
    from benchmarks.peers import run_child

    given, output = place.folder / "nimblephysics_problem.npz", place.folder / "nimblephysics_found.npz"
    np.savez(
        given, osim=str(trial.osim), markers=problem.markers, names=model.marker_names,
        bodies=model.body_names, scale_factors=problem.scale_factors, q=problem.q,
        coordinates=model.free_names, marker_offsets=problem.marker_offsets,
    )  # fmt: skip
    command = [python, "-m", "benchmarks.fitting_nimblephysics", str(given), str(output)]
    run_child(command, place.folder, {**os.environ, "PYTHONPATH": str(ROOT)})
    with np.load(output) as stored:
        apart = np.linalg.norm(stored["true_markers"] - problem.truth, axis=-1)
        found = Found(stored["markers"], stored["origins"], float(stored["seconds"]))
        versions = {name: str(stored[name]) for name in ("nimblephysics", "numpy")}
    return found, 1e3 * float(apart.max()), versions


# --- the peer's process ---


def peer_main(problem: str, output: str) -> NoReturn:
    """Solves a problem by nimblephysics, and ends the process."""
    import nimblephysics as nimble  # pyright: ignore[reportMissingImports]

    with np.load(problem) as stored:
        given = dict(stored)
    names = given["names"].tolist()
    file = _read_model(nimble, str(given["osim"]), Path(output).with_suffix(".models"))
    skeleton = file.skeleton
    height, true_markers = _at_true_sizes(file, given)
    fitter = _make_fitter(nimble, file, height)
    frames = [dict(zip(names, frame, strict=True)) for frame in given["markers"]]
    began = time.perf_counter()
    settings = nimble.biomechanics.InitialMarkerFitParams()
    (found,) = fitter.runMultiTrialKinematicsPipeline([frames], settings, SAMPLES)
    seconds = time.perf_counter() - began
    if found.error:
        raise RuntimeError(str(found.errorMsg))
    skeleton.setGroupScales(found.groupScales)
    on_bodies = [found.updatedMarkerMap[name] for name in names]
    np.savez(
        output, seconds=seconds, markers=_peer_markers(skeleton, on_bodies, found.poses.T),
        origins=_peer_origins(skeleton, given["bodies"]), true_markers=true_markers,
        nimblephysics=importlib.metadata.version("nimblephysics"), numpy=np.__version__,
    )  # fmt: skip
    # The extension module crashes where its objects are let go of; by now the result is on disk.
    os._exit(0)


def _make_fitter(nimble: Any, file: Any, height: float) -> Any:
    fitter = nimble.biomechanics.MarkerFitter(file.skeleton, file.markersMap)
    fitter.setInitialIKSatisfactoryLoss(IK_LOSS)
    fitter.setInitialIKMaxRestarts(IK_RESTARTS)
    fitter.setIterationLimit(ITERATIONS)
    fitter.setTriadsToTracking()
    fitter.setRegularizeAnatomicalMarkerOffsets(ANATOMICAL_WEIGHT)
    fitter.setRegularizeTrackingMarkerOffsets(TRACKING_WEIGHT)
    fitter.setMinSphereFitScore(SPHERE_SCORE)
    fitter.setMinAxisFitScore(AXIS_SCORE)
    fitter.setMaxJointWeight(JOINT_WEIGHT)
    fitter.setExplicitHeightPrior(height, HEIGHT_WEIGHT)
    # Without it the heavy pull of offsets leaves markers three times as far off, and lengths no nearer.
    fitter.setPostprocessAnatomicalMarkerOffsets(True)
    return fitter


def _read_model(nimble: Any, osim: str, folder: Path) -> Any:
    """The model as the peer can scale it: it takes no part of a joint's translation functions for a length.

    The first step moves what is constant of them into the joint's frame. Meshes are of each body's markers:
    without any the fitter finds the model's height to be 0 and gives up.
    """
    folder.mkdir(exist_ok=True)
    rational = folder / "rational.osim"
    nimble.biomechanics.OpenSimParser.rationalizeJoints(osim, str(rational))
    file = nimble.biomechanics.OpenSimParser.parseOsim(str(rational), ignoreGeometry=True)
    file.skeleton.autogroupSymmetricSuffixes()
    points: dict[str, list[NDArray[np.float64]]] = {}
    for body, place in file.markersMap.values():
        points.setdefault(body.getName(), []).append(np.asarray(place))
    for name, places in points.items():
        path = folder / f"{name}.obj"
        path.write_text(mesh_text(places), encoding="utf-8")
        shape = nimble.dynamics.MeshShape(np.ones(3), str(path))
        file.skeleton.getBodyNode(name).createShapeNode(shape).createVisualAspect()
    return file


def mesh_text(points: Sequence[NDArray[np.float64]]) -> str:
    """A Wavefront file of triangles through the points; of a single one or two, small ones."""
    points = [*points, *(points[-1] + 1e-3 * np.eye(3)[i] for i in range(3 - len(points)))]
    vertices = ["v {:.9g} {:.9g} {:.9g}".format(*point) for point in points]
    faces = [f"f 1 {i} {i + 1}" for i in range(2, len(points))]
    return "\n".join([*vertices, *faces, ""])


def _at_true_sizes(file: Any, given: Mapping[str, NDArray[Any]]) -> tuple[float, NDArray[np.float64]]:
    """Height, m, and markers in the true poses, ``[T K 3]`` m; then the model is the generic one again."""
    skeleton, bodies = file.skeleton, given["bodies"].tolist()
    sizes = dict(zip(bodies, given["scale_factors"], strict=True))
    generic = skeleton.getBodyScales()
    skeleton.setBodyScales(np.concatenate([sizes[name] for name in _names(skeleton)]))
    # Where a marker is on its body the peer has in the generic model's size.
    on_bodies = []
    for name, offset in zip(given["names"].tolist(), given["marker_offsets"], strict=True):
        body, place = file.markersMap[name]
        on_bodies.append((body, place + offset / sizes[body.getName()]))
    coordinates = given["coordinates"].tolist()
    count = skeleton.getNumDofs()
    order = [coordinates.index(skeleton.getDofByIndex(i).getName()) for i in range(count)]
    found = skeleton.getHeight(np.zeros(count)), _peer_markers(skeleton, on_bodies, given["q"][:, order])
    skeleton.setBodyScales(generic)
    return found


def _names(skeleton: Any) -> list[str]:
    return [skeleton.getBodyNode(i).getName() for i in range(skeleton.getNumBodyNodes())]


def _peer_markers(skeleton: Any, on_bodies: Sequence[Any], poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T K 3] m."""
    found = []
    for pose in poses:
        skeleton.setPositions(pose)
        found.append(np.asarray(skeleton.getMarkerWorldPositions(list(on_bodies))).reshape(-1, 3))
    return np.stack(found)


def _peer_origins(skeleton: Any, bodies: NDArray[np.str_]) -> NDArray[np.float64]:
    """[B 3] m, where all coordinates are 0."""
    skeleton.setPositions(np.zeros(skeleton.getNumDofs()))
    places = (skeleton.getBodyNode(str(name)).getWorldTransform().translation() for name in bodies)
    return np.stack([np.asarray(place) for place in places])


if __name__ == "__main__":
    peer_main(*sys.argv[1:])
