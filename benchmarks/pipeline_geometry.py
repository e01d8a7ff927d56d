"""Triangulation, filter and scaling beside Pose2Sim and OpenSim, and how wrong the synthetic detector is."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import Workplace, require_opensim, shared_data
from simspine_jax import assets
from simspine_jax.errors import SimspineError
from simspine_jax.geometry.cameras import Cameras, projection_matrices
from simspine_jax.geometry.frames import R_yup_zup, yup_to_zup
from simspine_jax.geometry.triangulation import Triangulated, triangulate_robust, triangulate_weighted
from simspine_jax.io import read_trc
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.npz import read_npz
from simspine_jax.signal import lowpass

DEMO = "real: pose2sim_demo, four cameras, 100 frames of 21 keypoints"
# As Pose2Sim's settings for the trial have them; both sides take them from here.
MIN_CONFIDENCE, MAX_REPROJECTION_PX, MIN_VIEWS = 0.3, 15.0, 2
CUTOFF_HZ, ORDER = 6.0, 2
# What Pose2Sim's module imports for reading, writing and drawing, which the loop does not call.
NOT_CALLED = (
    "pandas", "rtoml", "c3d", "tqdm", "anytree", "anytree.importer", "matplotlib", "matplotlib.pyplot"
)  # fmt: skip
CALLS_A_ROUND = 20
SCALED = {"Body25b": "markers_static.trc", "LSTM": "markers_static_lstm.trc"}
SCALED_POSES = 50
# Every fourth trial of the synthetic set, as when the detector was fitted.
NOISE_TRIALS, NOISE_SECONDS, NOISE_RATE_HZ = 4, 4.0, 25.0
FIT_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class DemoTrial:
    """Pose2Sim's demo: what its cameras saw, and the points that it made of it, m, Z up."""

    cameras: Cameras
    keypoints: NDArray[np.float64]
    confidence: NDArray[np.float64]
    reference: NDArray[np.float64]

    def solve(self, triangulate: Callable[..., Triangulated]) -> Triangulated:
        """What one of our methods makes of it, in JAX's present precision."""
        return triangulate(self.cameras, jnp.asarray(self.keypoints), jnp.asarray(self.confidence))

    def distance_mm(self, points) -> NDArray[np.float64]:
        """From the reference; NaN where there is no point."""
        return 1e3 * np.linalg.norm(np.asarray(points, np.float64) - self.reference, axis=-1)


def demo_trial() -> DemoTrial:
    """The trial in the shared data."""
    folder = shared_data() / "pose2sim_demo"
    reference = read_trc(folder / "markers_raw.trc")
    stored = read_npz(folder / "keypoints_2d.npz")
    names = list(stored["keypoint_names"])
    values = stored["keypoints_associated"].astype(np.float64).swapaxes(0, 1)
    values = values[:, :, [names.index(name) for name in reference.names]]
    points = np.asarray(reference.positions) @ R_yup_zup
    return DemoTrial(read_cameras(folder / "calibration.toml"), values[..., :2], values[..., 2], points)


plain = partial(triangulate_weighted, min_confidence=MIN_CONFIDENCE, max_reprojection_px=MAX_REPROJECTION_PX)


def triangulation_parity(place: Workplace) -> Iterator[Measurement]:
    """Our linear method by Pose2Sim's rules beside the points that Pose2Sim stored."""
    trial = demo_trial()
    off = {}
    for bits in (32, 64):
        with jax.enable_x64(bits == 64):
            off[bits] = trial.distance_mm(trial.solve(plain).points)
    present = np.isfinite(off[32])
    detail = {"points": int(present.sum()), "float64_max_mm": float(np.nanmax(off[64]))}
    note = f"float32; {detail['points']} points, the others are gaps that Pose2Sim filled."
    failed = "" if detail["points"] == 2094 else f"{detail['points']} points instead of 2094"
    key = "pipeline/triangulation_parity_max_mm"
    yield Measurement(key, float(off[32][present].max()), DEMO, note, detail, failed)


def filter_parity(place: Workplace) -> Iterator[Measurement]:
    """Our filter on Pose2Sim's raw points beside its filtered ones."""
    folder = shared_data() / "pose2sim_demo"
    raw, wanted = (read_trc(folder / f"{name}.trc") for name in ("markers_raw", "markers"))
    values = jnp.asarray(raw.positions)
    found = lowpass(values, jnp.isfinite(values), rate_hz=raw.rate, cutoff_hz=CUTOFF_HZ, order=ORDER)
    off = 1e3 * np.linalg.norm(np.asarray(found, np.float64) - wanted.positions, axis=-1)
    note = f"float32; Butterworth, order {ORDER}, {CUTOFF_HZ:g} Hz, forwards and backwards."
    yield Measurement("pipeline/filter_parity_max_mm", float(off.max()), DEMO, note)


def robust_distance(place: Workplace) -> Iterator[Measurement]:
    """The robust method beside Pose2Sim's points, and all cameras together, which go astray."""
    trial = demo_trial()
    off = trial.distance_mm(trial.solve(triangulate_robust).points)
    together = trial.solve(partial(plain, max_reprojection_px=jnp.inf))
    present = np.isfinite(trial.distance_mm(trial.solve(plain).points))
    detail = {
        "points": int(np.isfinite(off).sum()),
        "mean_mm": float(np.nanmean(off)),
        "all_cameras_worst_mm": float(np.nanmax(trial.distance_mm(together.points))),
    }
    failed = "" if np.isfinite(off[present]).all() else "a point of Pose2Sim's is missing"
    note = "float32; lens distortion taken off, where Pose2Sim does not."
    yield Measurement("pipeline/robust_worst_point_mm", float(np.nanmax(off)), DEMO, note, detail, failed)


# --- Pose2Sim's own code ---


class Pose2SimLoop:
    """Pose2Sim's own functions, in the loop of its ``triangulate_all`` without reading and writing files."""

    def __init__(self, trial: DemoTrial) -> None:
        self.trial = trial
        self._triangulate = pose2sim_module("triangulation").triangulation_from_best_cameras
        with jax.enable_x64(True):
            self.matrices = list(np.asarray(projection_matrices(trial.cameras.astype(np.float64))))
        self.settings = {
            "triangulation": {
                "reproj_error_threshold_triangulation": MAX_REPROJECTION_PX,
                "min_cameras_for_triangulation": MIN_VIEWS,
            }
        }
        self.points: list[list[NDArray[np.float64]]] = []

    def __call__(self) -> None:
        """All frames."""
        self.points = []
        for keypoints, confidence in zip(self.trial.keypoints, self.trial.confidence, strict=True):
            x, y, likelihood = keypoints[..., 0].copy(), keypoints[..., 1].copy(), confidence.copy()
            with np.errstate(invalid="ignore"):
                low = likelihood < MIN_CONFIDENCE
                x[low] = y[low] = likelihood[low] = np.nan
            found = []
            for k in range(x.shape[1]):
                seen = np.array((x[:, k], y[:, k], likelihood[:, k]))
                # Sides that it might swap are passed too; its setting for that is off, as by default.
                swapped = np.array((x[:, k], y[:, k], likelihood[:, k]))
                found.append(self._triangulate(self.settings, seen, swapped, self.matrices, None)[0])
            self.points.append(found)


def pose2sim_module(name: str) -> ModuleType:
    """A module of Pose2Sim's wheel, with stand-ins for what it imports and the benchmark does not call."""
    for needed in ("cv2", "scipy.interpolate", "scipy.optimize"):
        if importlib.util.find_spec(needed.partition(".")[0]) is None:
            raise SkippedError(f"Pose2Sim's triangulation needs {needed}, which is not installed")
        importlib.import_module(needed)
    try:
        folder = _pose2sim_source()
    except SimspineError as error:
        raise SkippedError(str(error)) from error
    printing = np.get_printoptions()
    version = importlib.metadata.version
    own = assets.PACKAGE_VERSION
    with _stand_ins(folder), mock.patch.object(
        importlib.metadata, "version", lambda package: own if package == assets.PACKAGE else version(package)
    ):  # fmt: skip
        module = importlib.import_module(f"Pose2Sim.{name}")
    # It changes how NumPy prints.
    np.set_printoptions(**printing)
    return module


@contextlib.contextmanager
def _stand_ins(folder: Path) -> Iterator[None]:
    """The folder's modules can be imported, and modules that are not called are mocks."""
    before = {name: sys.modules.get(name) for name in NOT_CALLED}
    sys.modules.update({name: mock.MagicMock(name=name) for name in NOT_CALLED})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _pose2sim_source() -> Path:
    """Pose2Sim's Python files, from the wheel whose models the library uses; fetched on the first call."""
    folder = assets.cache_folder(f"{assets.PACKAGE}-{assets.PACKAGE_VERSION}-source")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as temporary:
        unpacked = Path(temporary) / folder.name
        with zipfile.ZipFile(assets.fetch_wheel(Path(temporary) / "wheel")) as archive:
            members = [n for n in archive.namelist() if n.startswith("Pose2Sim/") and n.endswith(".py")]
            archive.extractall(unpacked, [*members, assets.LICENCE_FILE])
        unpacked.replace(folder)
    return folder


def triangulation_speed(place: Workplace) -> Iterator[Measurement]:
    """Our linear method beside Pose2Sim's own code, on the same points by the same rules."""
    trial = demo_trial()
    if place.quick:
        trial = replace(
            trial,
            keypoints=trial.keypoints[:2], confidence=trial.confidence[:2], reference=trial.reference[:2],
        )  # fmt: skip
    loop = Pose2SimLoop(trial)
    keypoints, confidence = jnp.asarray(trial.keypoints), jnp.asarray(trial.confidence)
    cameras = trial.cameras.astype(keypoints.dtype)

    def ours() -> None:
        for _ in range(CALLS_A_ROUND):
            jax.block_until_ready(plain(cameras, keypoints, confidence))

    best = interleaved({"ours": ours, "peer": loop}, place.repeats)
    points = trial.confidence[:, 0].size
    rate, peer = CALLS_A_ROUND * points / best["ours"], points / best["peer"]
    present = np.isfinite(trial.distance_mm(trial.solve(plain).points))
    off = float(trial.distance_mm(loop.points)[present].max())
    detail = {"points_per_s": rate, "pose2sim_points_per_s": peer, "pose2sim_off_mm": off}
    note = (
        f"float32, {points} points a call, all cores; peer: triangulation_from_best_cameras of Pose2Sim "
        f"{assets.PACKAGE_VERSION} in the loop of its triangulate_all without files, float64, with mocks for "
        f"what that does not call ({', '.join(NOT_CALLED)})."
    )
    failed = "" if off < 0.01 else f"Pose2Sim's code is {off:.2g} mm off its own points"
    yield Measurement("pipeline/triangulation_vs_pose2sim", rate / peer, DEMO, note, detail, failed)


# --- scaling ---


def scaling_parity(place: Workplace) -> Iterator[Measurement]:
    """Poses of models scaled by our factors beside those of the model that OpenSim's scale tool wrote."""
    require_opensim()
    worst, detail = 0.0, {}
    for name, trajectory in SCALED.items():
        with jax.enable_x64(True):
            found = _scaled(place, name, trajectory)
        detail |= {f"{name}_{key}": value for key, value in found.items()}
        worst = max(worst, found["factors_as_inputs_m"], found["scaled_model_m"])
    note = (
        f"float64, {SCALED_POSES} poses; the generic model with our factors as inputs, and the scaled model "
        "that we write, converted."
    )
    data = "real: pose2sim_demo, static trial, " + " and ".join(
        f"Scaling_Setup_{name}.xml" for name in SCALED
    )
    yield Measurement("pipeline/scaling_parity_max_m", worst, data, note, detail)


def _scaled(place: Workplace, name: str, trajectory: str) -> dict[str, float]:
    from osim2mjcf import verify
    from osim2mjcf.opensim_scale import run_scale_tool, scale_osim

    from simspine_jax.io import read_scale_setup
    from simspine_jax.kinematics.forward import forward_kinematics
    from simspine_jax.kinematics.model import load_model
    from simspine_jax.kinematics.scaling import DEFAULT_MASS_KG, scale_by_setup

    data, generic = shared_data() / "pose2sim_demo", place.spine_source.osim
    markers = assets.fetch_spine_package() / f"Markers_{name}.xml"
    setup_path = data / f"Scaling_Setup_{name}.xml"
    setup, trial = read_scale_setup(setup_path), read_trc(data / trajectory)
    model = load_model(generic, markers)
    tool = run_scale_tool(
        setup_path, generic, data / trajectory, place.folder / f"{name}_tool.osim", markers=markers
    )
    ours = scale_by_setup(model, jnp.asarray(trial.positions), trial.names, trial.times, setup)
    factors = np.asarray(ours.factors)
    theirs = np.array([tool.factors[body] for body in model.body_names])
    written = scale_osim(
        generic, place.folder / f"{name}_ours.osim",
        dict(zip(model.body_names, factors.tolist(), strict=True)), mass_kg=DEFAULT_MASS_KG, markers=markers,
    )  # fmt: skip
    q = jnp.asarray(verify.sample_poses(model, place.size(SCALED_POSES, 2), seed=3))
    source = verify.load_osim(tool.model)
    reference = verify.opensim_poses(source, model, verify.coupled_coordinates(source, model, np.asarray(q)))
    forward = jax.jit(forward_kinematics)

    def distance(poses) -> float:
        return verify.deviation("", poses, reference).worst_m

    return {
        "factor_difference": float(np.abs(factors / theirs - 1).max()),
        "factors_as_inputs_m": distance(forward(model, q, scale_factors=ours.factors)),
        "scaled_model_m": distance(forward(load_model(written), q)),
        "generic_model_m": distance(forward(model, q)),
    }


# --- the synthetic detector ---


def detector_noise(place: Workplace) -> Iterator[Measurement]:
    """Errors by region of plain triangulation, and what a fit to the paper's mean error finds."""
    from simspine_jax.capture.noise import (
        PAPER_TRIANGULATION_M,
        PAPER_ZERO_SHOT_M,
        DetectorKind,
        fit_noise,
        make_noise,
    )
    from simspine_jax.skeleton import REGIONS

    trials = _noise_trials(place)
    seconds = place.size(int(NOISE_SECONDS), 1)
    data = (
        f"synthetic: {len(trials)} of 105 trials of {seconds} s at {NOISE_RATE_HZ:g} Hz, detector of seed 0"
    )
    tables: dict[DetectorKind, dict[str, float]] = {
        "finetuned": PAPER_TRIANGULATION_M,
        "zero_shot": PAPER_ZERO_SHOT_M,
    }
    for kind, table in tables.items():
        error = 1e3 * _keypoint_errors(trials, make_noise(0, kind))
        by_region = {region: float(error[list(ids)].mean()) for region, ids in REGIONS.items()}
        wanted = {region: 1e3 * value for region, value in table.items()}
        if kind == "finetuned":
            note = "Fine-tuned detector; in the detail its regions, and the paper's, to which it is fitted."
            detail = by_region | {f"paper_{region}": value for region, value in wanted.items()}
            yield Measurement("pipeline/detector_noise_mpjpe_mm", by_region["all"], data, note, detail)
        for region, value in by_region.items():
            detail = {"paper_mm": wanted[region]} if region in wanted else {}
            key = f"pipeline/detector_noise_mpjpe_mm/{kind}/{region}"
            yield Measurement(key, value, data, "", detail)
    table = PAPER_TRIANGULATION_M
    mean = sum(value * len(REGIONS[region]) for region, value in table.items()) / len(REGIONS["all"])
    fitted = fit_noise(
        make_noise(),
        {"all": mean},
        lambda noise: jnp.asarray(_keypoint_errors(trials, noise)),
        rounds=FIT_ROUNDS,
    )
    note = f"fit_noise to a mean of {1e3 * mean:.2f} mm over all keypoints; 1 is the detector as it is."
    yield Measurement("pipeline/detector_noise_size", float(fitted.size), data, note)


def _noise_trials(place: Workplace) -> list:
    from simspine_jax.capture import ACTION_NAMES, SUBJECT_NAMES, capture_trial, make_subject

    pairs = [(subject, action) for subject in SUBJECT_NAMES for action in ACTION_NAMES]
    chosen = pairs[:: place.size(NOISE_TRIALS, 60)]
    seconds = float(place.size(int(NOISE_SECONDS), 1))
    subjects = {name: make_subject(place.spine, name) for name in SUBJECT_NAMES}
    return [
        capture_trial(place.spine, subjects[subject], action, seconds, NOISE_RATE_HZ)
        for subject, action in chosen
    ]


def _keypoint_errors(trials: list, noise) -> NDArray[np.float64]:
    """Mean error of each keypoint, m, with this detector; the same random keys in each call."""
    total = np.concatenate([
        np.asarray(_errors(noise, jax.random.key(i), c.cameras, c.keypoints, c.keypoints_2d, c.visible))
        for i, c in enumerate(trials)
    ])  # fmt: skip
    return np.nanmean(total.astype(np.float64), axis=0)


@jax.jit
def _errors(noise, key, cameras: Cameras, keypoints, pictures, visible):
    from simspine_jax.capture.noise import detect

    points = yup_to_zup(keypoints)
    found = detect(noise, key, cameras, points, pictures, visible, NOISE_RATE_HZ)
    solved = triangulate_weighted(cameras, found.keypoints, found.confidence, undistorted=True)
    return jnp.linalg.norm(solved.points - points, axis=-1)
