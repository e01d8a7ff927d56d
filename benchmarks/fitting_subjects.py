"""Fits of subjects beside the truth, beside scale-then-IK, beside SciPy, and on the real demonstration."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.sparse import block_diag, csr_matrix, hstack, vstack
from scipy.spatial.transform import Rotation

from benchmarks.fitting_worlds import CLIPS, DATA, FRAMES, PRIORS, World, make_world, without_bias
from benchmarks.metrics import Measurement, interleaved
from benchmarks.workplace import Workplace, shared_data
from simspine_jax.capture.noise import DetectorNoise, make_noise
from simspine_jax.fitting.solving import Whole, descend
from simspine_jax.fitting.subject import FitOptions, FitStatus, SubjectFit
from simspine_jax.fitting.terms import Setting, all_expected, pose_precision, robust_cost
from simspine_jax.fitting.uncertainty import half_width, uncertainty_of
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.npz import read_npz
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.scaling import PAPER_MEASUREMENTS
from simspine_jax.pipeline.fit import ChainResult, fit_trials, run_chain, without_views
from simspine_jax.pipeline.fit_files import held_out_views
from simspine_jax.pipeline.fit_results import Angles, angles_of, lengths_found
from simspine_jax.pipeline.stages import TrialInput, Views
from simspine_jax.skeleton import KEYPOINT_SCHEMAS, REGIONS, TRC_NAMES

SEEDS, BIASED_SEEDS, COVERAGE_SEEDS = 50, 10, 15
LEVELS = (0.5, 1.0, 2.0)
"""Of the detector's errors, over the paper's."""

DIVERGED_MM = 50.0
"""Mean error of the spine beyond which a fit that says it converged is taken for lost."""

SCIPY_FRAMES, SCIPY_MOST_S = 50, 240
NEAR, TINY = 1e-4, 1e-30
SHARE = 0.9
LUMBAR = ("L5_S1_Flex_Ext", "L5_S1_Lat_Bending", "L5_S1_axial_rotation")
OUTPUTS = ("keypoints", "lumbar_angles", "lordosis", "segment_lengths")
BIASED = "a detector with constant errors of its own, fitted to the paper's table; "
UNBIASED = "a detector without constant errors, as far off as the paper's when triangulated; "
SPINE = tuple(TRC_NAMES[i] for i in REGIONS["spine"])


@dataclass(frozen=True)
class Found:
    """What is said of one seed's fit."""

    seed: int
    status: FitStatus
    length_pct: dict[str, float]
    rotation_deg: float
    relative_rotation_deg: float
    spine_mm: float
    chain_mm: float
    covered: dict[str, tuple[float, int]]  # share and how many

    @property
    def converged(self) -> bool:
        """Whether it came to an end where it should."""
        return self.status == FitStatus.CONVERGED and self.spine_mm < min(DIVERGED_MM, self.chain_mm)


def accuracy(place: Workplace) -> Iterator[Measurement]:
    """Sizes, cameras and spine of many seeds, from what the chain makes of cameras that are off."""
    found = _unbiased(place, 1.0)
    data = f"{DATA}{UNBIASED}seeds 0 to {len(found) - 1}"
    yield from _accuracy("fitting", found, data)
    lost = [f.seed for f in found if not f.converged]
    yield Measurement(
        "fitting/seeds_converged", float(len(found) - len(lost)), data,
        f"Of {len(found)}; started by the chain on the detections; converged to tolerance, spine MPJPE "
        f"below {DIVERGED_MM:g} mm and the chain's.",
        {"lost": lost, "status": {f.seed: f.status.name for f in found}},
    )  # fmt: skip


def accuracy_biased(place: Workplace) -> Iterator[Measurement]:
    """The same with the synthetic captures' detector, whose constant errors are alike for all."""
    found = _many(place, range(place.size(BIASED_SEEDS, 1)), lambda model: make_noise(), priors_bias=0.02)
    yield from _accuracy("fitting/biased_detector", found, f"{DATA}{BIASED}seeds 0 to {len(found) - 1}")


def _accuracy(key: str, found: Sequence[Found], data: str) -> Iterator[Measurement]:
    names = found[0].length_pct
    by_name = {name: fmean(abs(f.length_pct[name]) for f in found) for name in names}
    yield Measurement(
        f"{key}/segment_length_err_pct", fmean(by_name.values()), data,
        "Mean absolute error of the distances between keypoints that scaling measures; "
        + ", ".join(f"{name} {value:.2f}" for name, value in by_name.items()) + ".",
        {"mean_pct": {name: fmean(f.length_pct[name] for f in found) for name in names}},
    )  # fmt: skip
    absolute = fmean(f.rotation_deg for f in found)
    yield Measurement(
        f"{key}/camera_rotation_err_deg", fmean(f.relative_rotation_deg for f in found), data,
        "Mean over cameras, after the turn that all have in common, which keypoints can't tell from one of "
        f"the subject's; with it {absolute:.3f} degrees.",
        {"with_common_turn_deg": absolute},
    )  # fmt: skip
    ours, chain = fmean(f.spine_mm for f in found), fmean(f.chain_mm for f in found)
    yield Measurement(
        f"{key}/spine_mpjpe_ratio", ours / chain, data,
        f"{ours:.1f} mm over the {chain:.1f} mm of triangulation, scaling and inverse kinematics with the "
        "cameras as given; absolute.",
        {"worst": max(f.spine_mm / f.chain_mm for f in found)},
    )  # fmt: skip


def coverage(place: Workplace) -> Iterator[Measurement]:
    """How often 90 % intervals hold the truth, by level of noise; and how far that is from 90 % at worst."""
    shares: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    data = f"{DATA}{UNBIASED}three levels of noise"
    for level in LEVELS[1:2] if place.quick else LEVELS:
        found = _unbiased(place, level)
        for name in OUTPUTS:
            counts = [f.covered[name] for f in found]
            share = sum(s * n for s, n in counts) / sum(n for _, n in counts)
            shares[name].append(share)
            yield Measurement(
                f"fitting/coverage90/{name}/noise_{level:g}",
                share,
                data,
                f"{len(found)} seeds, errors {level:g} times the paper's.",
                {"by_seed": [round(share, 3) for share, _ in counts]},
            )
    for name, values in shares.items():
        worst = max(values, key=lambda share: abs(share - SHARE))
        yield Measurement(
            f"fitting/coverage90_off/{name}", abs(worst - SHARE), data, f"Worst of the levels: {worst:.3f}."
        )


def _unbiased(place: Workplace, level: float) -> list[Found]:
    """Fits with errors of some times the paper's, made once for accuracy and coverage."""
    seeds = range(place.size(SEEDS, 1)) if level == 1.0 else range(place.size(COVERAGE_SEEDS, 1))
    made = _MADE.setdefault(place, {})
    if level not in made:
        made[level] = _many(place, seeds, partial(without_bias, size=level), priors_bias=0.0)
    return made[level]


_MADE: WeakKeyDictionary[Workplace, dict[float, list[Found]]] = WeakKeyDictionary()


def _many(
    place: Workplace,
    seeds: Sequence[int],
    detector: Callable[[SpineModel], DetectorNoise],
    *,
    priors_bias: float,
) -> list[Found]:
    """Fits of some seeds; the detector is made for the model."""
    clips, frames = place.size(CLIPS, 2), place.size(FRAMES, 12)
    options = FitOptions(replace(PRIORS, bias=priors_bias))
    with jax.enable_x64(True):
        model = place.spine_float64()
        noise, angles = detector(model), angles_of(model)
        return [
            _found(model, seed, make_world(model, seed, noise, clips=clips, frames=frames), options, angles)
            for seed in seeds
        ]


def _found(model: SpineModel, seed: int, world: World, options: FitOptions, angles: Angles) -> Found:
    chain = run_chain(model, world.trials)
    fit = fit_trials(model, world.trials, options, chain=chain)
    truth = np.stack(world.markers)
    spine = [k for k, name in enumerate(model.marker_names) if name in SPINE]
    ours, theirs = (
        1e3 * float(np.linalg.norm(x - truth, axis=-1)[..., spine].mean())
        for x in (fit.markers, _chain_markers(model, chain))
    )
    assert fit.cameras is not None
    turned = (np.asarray(c.rotations, np.float64) for c in (fit.cameras, world.cameras))
    rotation, relative = _rotation_errors(*turned)
    lengths = _true_lengths(model, world)
    sure = uncertainty_of(fit)
    found = lengths_found(sure)
    times = half_width(SHARE)
    columns = model.free_indices(LUMBAR)
    lordosis = angles.names.index("lordosis")
    value, std = sure.of(angles.output)
    real = np.asarray(
        _outputs(
            angles.output,
            jnp.asarray(np.stack(world.q)),
            jnp.asarray(truth),
            jnp.asarray(world.scale_factors),
        )
    )
    inside = {
        "keypoints": np.abs(fit.markers - truth)
        <= times * np.sqrt(np.diagonal(sure.marker_covariance, axis1=-2, axis2=-1)),
        "lumbar_angles": np.abs(fit.q - np.stack(world.q))[..., columns]
        <= times * sure.pose_std[..., columns],
        "lordosis": np.abs(value - real)[..., lordosis] <= times * std[..., lordosis],
        "segment_lengths": np.array([abs(x.length_mm - lengths[x.name]) <= times * x.std_mm for x in found]),
    }
    return Found(
        seed, fit.status, {x.name: 100 * (x.length_mm / lengths[x.name] - 1) for x in found},
        rotation, relative, ours, theirs, {name: (float(x.mean()), x.size) for name, x in inside.items()},
    )  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _outputs(
    output: Callable[..., jax.Array], q: jax.Array, markers: jax.Array, factors: jax.Array
) -> jax.Array:
    each = jax.vmap(jax.vmap(output, in_axes=(0, 0, None)), in_axes=(0, 0, None))
    return each(q, markers, factors)


def _chain_markers(model: SpineModel, chain: ChainResult) -> NDArray[np.float64]:
    """[C T K 3] m."""
    factors = jnp.asarray(chain.size.scale_factors)
    return np.stack([np.asarray(_markers(model, jnp.asarray(m.q), factors, None)) for m in chain.motions])


@jax.jit
def _markers(model: SpineModel, q: jax.Array, factors: jax.Array, offsets: jax.Array | None) -> jax.Array:
    return forward_kinematics(model, q, scale_factors=factors, marker_offsets=offsets).markers


def _rotation_errors(ours: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """Mean angle in degrees, as it is and after the turn of the world that all cameras have in common."""
    common = Rotation.from_matrix(np.einsum("vji,vjk->vik", ours, truth)).mean().as_matrix()
    return tuple(
        float(np.rad2deg(Rotation.from_matrix(np.einsum("vij,vkj->vik", r, truth)).magnitude()).mean())
        for r in (ours, ours @ common)
    )  # type: ignore[return-value]


def _true_lengths(model: SpineModel, world: World) -> dict[str, float]:
    """mm, as `lengths_found` measures them."""
    pose = model.default_q[None]
    points = np.asarray(
        _markers(model, pose, jnp.asarray(world.scale_factors), jnp.asarray(world.marker_offsets))
    )[0]
    found = {}
    for measurement in PAPER_MEASUREMENTS:
        if pairs := [p for p in measurement.pairs if set(p) <= set(model.marker_names)]:
            ends = np.array([model.marker_indices(p) for p in pairs])
            found[measurement.name] = 1e3 * float(
                np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1).mean()
            )
    return found


# --- the real demonstration ---


def held_out(place: Workplace) -> Iterator[Measurement]:
    """The demonstration fitted on three cameras, and the fourth predicted; all four ways."""
    with jax.enable_x64(True):
        model, trial = place.spine_float64(), _demo()
        assert trial.views is not None
        pixels = {}
        for name in trial.views.cameras.names[: place.size(4, 1)]:
            seen = without_views(trial, [name])
            chain = run_chain(model, [seen])
            fit = fit_trials(model, [seen], chain=chain)
            (view,) = held_out_views(
                model, [trial], list(_chain_markers(model, chain)), [fit.markers[0]], [name]
            )
            pixels[name] = (view.chain_px, view.fit_px)
    chain_px, fit_px = (fmean(pair[i] or np.nan for pair in pixels.values()) for i in range(2))
    yield Measurement(
        "fitting/heldout_view_reprojection_ratio", fit_px / chain_px,
        "real: pose2sim_demo, 100 frames of 21 keypoints; fitted on three of four cameras, in four ways",
        f"Mean of four medians: {fit_px:.2f} px over {chain_px:.2f} px of triangulation, scaling and inverse "
        "kinematics.",
        {"px": {name: {"chain": a, "fit": b} for name, (a, b) in pixels.items()}},
    )  # fmt: skip


def _demo() -> TrialInput:
    """Pose2Sim's demonstration with its keypoints in the vocabulary's order."""
    folder = shared_data() / "pose2sim_demo"
    stored = read_npz(folder / "keypoints_2d.npz")
    values = np.asarray(stored["keypoints_associated"], np.float64).swapaxes(0, 1)
    found = np.full((*values.shape[:2], len(TRC_NAMES), 3), np.nan)
    for number, name in enumerate(KEYPOINT_SCHEMAS["BODY_25B"].markers):
        if name in TRC_NAMES:
            found[:, :, TRC_NAMES.index(name)] = values[:, :, number]
    rate = float(stored["frame_rate"])
    views = Views(read_cameras(folder / "calibration.toml"), found[..., :2], np.nan_to_num(found[..., 2]))
    return TrialInput("demo", np.arange(len(found)) / rate, rate, views)


# --- speed ---


def fit_time(place: Workplace) -> Iterator[Measurement]:
    """Seconds of a whole fit after compiling."""
    with jax.enable_x64(True):
        model = place.spine_float64()
        world = _unbiased_world(place, model, place.size(CLIPS, 2), place.size(FRAMES, 12))
        chain = run_chain(model, world.trials)
        fits: list[SubjectFit] = []

        def timed() -> None:
            fits.append(fit_trials(model, world.trials, FitOptions(PRIORS), chain=chain))

        seconds = interleaved({"fit": timed}, place.size(3, 1))["fit"]
    fit = fits[-1]
    shared = int(np.asarray(fit.whole.free).sum())
    yield Measurement(
        "fitting/fit_s", seconds, f"{DATA}{UNBIASED}seed 0",
        f"{sum(fit.lengths)} frames, 4 cameras, {model.n_free} coordinates and {shared} shared numbers: "
        "sizes, offsets, cameras, constant errors of the detector; float64, all rounds, without the start.",
    )  # fmt: skip


def against_scipy(place: Workplace) -> Iterator[Measurement]:
    """The last descent of a small fit beside SciPy's on the same residuals, from the chain's result."""
    frames, most_s = place.size(SCIPY_FRAMES, 6), place.size(SCIPY_MOST_S, 2)
    with jax.enable_x64(True):
        model = place.spine_float64()
        world = _unbiased_world(place, model, 1, frames)
        options = FitOptions(replace(PRIORS, bias=0.0))
        fit = fit_trials(model, world.trials, options)
        start = fit_trials(model, world.trials, replace(options, rounds=1, max_steps=1))
        problem = _Problem(fit.setting, fit.whole)
        q, theta = jnp.asarray(start.q), start.theta
        ours = [0.0]

        def descent() -> None:
            found = descend(fit.setting, fit.whole, q, theta, options.max_steps, options.tolerance)
            ours[0] = float(found.objective)

        seconds = interleaved({"ours": descent}, place.repeats)["ours"]
        theirs, objective, evaluations = problem.by_scipy(q, theta, (1 + NEAR) * ours[0], most_s)
    reached = objective <= (1 + NEAR) * ours[0]
    share = objective / ours[0]
    stopped = "." if reached else f", stopped there at {share:.3f} times ours, so the ratio is at least this."
    yield Measurement(
        "fitting/vs_scipy", theirs / seconds, f"{DATA}{UNBIASED}one clip of {frames} frames of seed 0",
        "Peer: scipy.optimize.least_squares, trf with lsmr, compiled residuals and exact derivatives, "
        f"to an objective a share of {NEAR:g} above ours: {theirs:.1f} s{stopped}",
        {"ours_s": seconds, "peer_s": theirs, "peer_evaluations": evaluations, "peer_over_ours": share},
    )  # fmt: skip


def _unbiased_world(place: Workplace, model: SpineModel, clips: int, frames: int) -> World:
    return make_world(model, 0, without_bias(model), clips=clips, frames=frames)


class _ReachedError(Exception):
    """SciPy is there, or took too long."""


@dataclass(frozen=True, eq=False)
class _Problem:
    """The objective of a fit as squares of residuals, for SciPy; one clip."""

    setting: Setting
    whole: Whole

    def of_frames(self, q: jax.Array, theta: jax.Array) -> jax.Array:
        """[T each] of pictures and poses; half the squares of all residuals is the objective."""
        whole, data = self.whole, self.whole.data
        off = all_expected(self.setting, whole.fixed, theta, data, q) - data.keypoints
        squared = data.precision * jnp.sum(off**2, axis=-1)
        some = squared > TINY  # where nothing is off its root has no derivative
        share = jnp.sqrt(2 * robust_cost(safe := jnp.where(some, squared, 1.0))[0] / safe)
        share = jnp.where(some, share, 1.0)
        seen = (jnp.sqrt(data.precision) * share)[..., None] * off
        pose = jnp.sqrt(pose_precision(whole.fixed, data)) * (q - whole.fixed.model.default_q)
        return jnp.concatenate([seen.reshape(q.shape[1], -1), pose[0]], axis=1)

    def of_motion(self, q: jax.Array) -> jax.Array:
        """Of accelerations and velocities; linear."""
        whole = self.whole
        bend = (q[:, 2:] - 2 * q[:, 1:-1] + q[:, :-2]) * whole.rate_hz**2
        bend = bend * jnp.sqrt(whole.acceleration_precision)[:, None]
        step = (q[:, 1:] - q[:, :-1]) * whole.rate_hz * jnp.sqrt(whole.velocity_precision)
        return jnp.concatenate([bend.ravel(), step.ravel()])

    def by_scipy(
        self, q: jax.Array, theta: jax.Array, target: float, most_s: float
    ) -> tuple[float, float, int]:
        """Seconds until the target or the limit, the least objective, and evaluations."""
        free = np.flatnonzero(np.asarray(self.whole.free))
        shape, n = q.shape, q.size
        model = self.whole.fixed.model
        root = np.linalg.cholesky(np.asarray(self.whole.prior_precision)).T
        motion = csr_matrix(np.asarray(jax.jacfwd(self.of_motion)(q)).reshape(-1, n))
        compiled = jax.jit(lambda q, theta: (self.of_frames(q, theta), self.of_motion(q)))
        derived = jax.jit(self._derivatives)
        best, count, began = [np.inf], [0], [0.0]

        def at(x: NDArray[np.float64]) -> tuple[jax.Array, jax.Array]:
            return jnp.asarray(x[:n].reshape(shape)), theta.at[free].set(x[n:])

        def function(x: NDArray[np.float64]) -> NDArray[np.float64]:
            pose, shared = at(x)
            own = root @ np.asarray(shared - self.whole.prior_mean)
            found = np.concatenate([*(np.asarray(r).ravel() for r in compiled(pose, shared)), own])
            best[0], count[0] = min(best[0], 0.5 * float(found @ found)), count[0] + 1
            if began[0] and (best[0] <= target or time.perf_counter() - began[0] > most_s):
                raise _ReachedError
            return found

        def jacobian(x: NDArray[np.float64]) -> csr_matrix:
            by_pose, by_shared = (np.asarray(d) for d in derived(*at(x)))
            frames = hstack([block_diag(list(by_pose)), by_shared.reshape(-1, len(theta))[:, free]])
            rest = block_diag([motion, root[:, free]])
            return csr_matrix(vstack([frames, rest]))

        low, high = (np.tile(np.asarray(b, np.float64), shape[1]) for b in (model.lower, model.upper))
        x = np.concatenate([np.clip(np.asarray(q).ravel(), low + 1e-9, high - 1e-9), np.asarray(theta)[free]])
        wide = np.full(len(free), np.inf)
        bounds = np.concatenate([low, -wide]), np.concatenate([high, wide])
        for compiles in (function, jacobian):  # before the clock runs
            compiles(x)
        began[0] = time.perf_counter()
        with contextlib.suppress(_ReachedError):
            least_squares(
                function,
                x,
                jacobian,  # type: ignore[arg-type]
                bounds=bounds,
                x_scale="jac",
                ftol=1e-15,
                xtol=1e-12,
                gtol=1e-12,
            )
        return time.perf_counter() - began[0], best[0], count[0]

    def _derivatives(self, q: jax.Array, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[T each Q] by each frame's own pose and [T each P] by the shared vector."""

        def along(axis: jax.Array) -> jax.Array:
            return jax.jvp(lambda q: self.of_frames(q, theta), (q,), (jnp.broadcast_to(axis, q.shape),))[1]

        by_pose = jax.lax.map(along, jnp.eye(q.shape[-1], dtype=q.dtype))
        by_shared = jax.lax.map(
            lambda axis: jax.jvp(lambda t: self.of_frames(q, t), (theta,), (axis,))[1],
            jnp.eye(len(theta), dtype=q.dtype),
        )
        return jnp.moveaxis(by_pose, 0, -1), jnp.moveaxis(by_shared, 0, -1)
