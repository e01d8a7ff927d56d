"""Accuracy: parity with OpenSim, real trials, recovery of the lumbar spine, and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from benchmarks.metrics import Measurement, interleaved
from benchmarks.peers import objective_and_rmse, opensim_tool_with_setup
from benchmarks.workplace import SYNTHETIC, Trial, Workplace, official_setup, require_opensim
from simspine_jax.io import read_markers
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel, load_model
from simspine_jax.motions import read_motion
from simspine_jax.pipeline import targets_at
from simspine_jax.skeleton import LUMBAR_LEVELS

POSES = 200
LUMBAR_FRAMES = 2000
# Steps of the differences (m, 1, 1, m). They are central and of the fourth order: along weak
# directions a solution bends so much that no step of the second order is both fine enough and above what the
# solver leaves open.
STEPS = {"targets": 3e-5, "weights": 2e-3, "scale_factors": 6e-5, "marker_offsets": 3e-5}
STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))
# Differences can't resolve a slope that by chance is below this share of the slopes' root mean square.
WEAK = 1e-3
# Differences with the step and with half of it that disagree by more than this say nothing: one of the solves
# behind them lacks its last iterations.
RESOLVED = 3e-5
KEPT_SHARE = 0.9
# Consecutive frames, in runs, so that neighbours help each other's solve as they do in use.
GRADIENT_RUNS, GRADIENT_RUN = 32, 4
DIRECTIONS = 2


def parity(place: Workplace, bits: int) -> Iterator[Measurement]:
    """Largest distance from OpenSim of any body or marker, over models, engines and poses."""
    require_opensim()
    from osim2mjcf.verify import compare, levels

    engines: dict[str, Callable] = {"levels": levels}
    if not place.quick:
        engines["mjx"] = partial(forward_kinematics, engine="mjx")
    poses = place.size(POSES, 10)
    position, rotation = {}, {}
    for name, source in place.sources().items():
        with jax.enable_x64(bits == 64):
            model = load_model(source.osim, source.markers, dtype=jnp.float64 if bits == 64 else jnp.float32)
            for engine, run in engines.items():
                found = compare(source.osim, model, run, poses=poses, seed=7, markers=source.markers)
                position[f"{name}/{engine}"] = found.worst_m
                rotation[f"{name}/{engine}"] = found.worst_rotation
    data = "synthetic: random admissible poses of " + ", ".join(place.sources())
    note = f"{poses} poses a model; engines: {', '.join(engines)}."
    yield Measurement(f"kinematics/fk_parity_f{bits}_max_m", max(position.values()), data, note, position)
    yield Measurement(
        f"kinematics/fk_parity_f{bits}_max_rotation", max(rotation.values()), data, note, rotation
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Reference:
    """A real trial at the times of OpenSim's converged solution; float64."""

    model: SpineModel
    targets: NDArray[np.float64]
    q: NDArray[np.float64]


def _reference(trial: Trial) -> _Reference:
    model = load_model(trial.osim, dtype=jnp.float64)
    motion = read_motion(model, trial.converged)
    return _Reference(model, targets_at(model, read_markers(trial.markers), motion.times), motion.q)


def real_trials(place: Workplace) -> Iterator[Measurement]:
    """Our objective over that of OpenSim's converged solution, the worst frame of each trial and of all."""
    require_opensim()
    worst, rmse = {}, {}
    for trial in place.trials():
        setup, data = trial.read_setup, _data(trial)
        with jax.enable_x64(True):
            reference = _reference(trial)
            theirs = objective_and_rmse(reference.model, setup, reference.targets, reference.q)
        solved = ssj.solve_ik(
            load_model(trial.osim, dtype=jnp.float32),
            jnp.asarray(reference.targets, jnp.float32),
            setup=setup,
        )
        with jax.enable_x64(True):
            q = np.asarray(solved.q, np.float64)
            ours = objective_and_rmse(reference.model, setup, reference.targets, q)
        ratio = ours[0] / theirs[0]
        worst[trial.name], rmse[trial.name] = float(np.max(ratio)), float(np.max(ours[1] / theirs[1]))
        whole = _rms(ours[1]) / _rms(theirs[1])
        detail = {
            "frames": len(q), "median": float(np.median(ratio)), "worst_frame": int(np.argmax(ratio)),
            "marker_rmse_mm": 1e3 * _rms(ours[1]), "opensim_marker_rmse_mm": 1e3 * _rms(theirs[1]),
        }  # fmt: skip
        yield Measurement(
            f"kinematics/ik_objective_ratio_max/{trial.name}", worst[trial.name], data, "", detail
        )
        yield Measurement(f"kinematics/ik_marker_rmse_ratio_max/{trial.name}", rmse[trial.name], data)
        yield Measurement(f"kinematics/ik_marker_rmse_ratio/{trial.name}", whole, data)
    data = "real: " + ", ".join(worst)
    yield Measurement("kinematics/ik_objective_ratio_max", max(worst.values()), data, "", worst)


def _data(trial: Trial) -> str:
    return f"real: {trial.name}, {trial.markers.name} with {trial.setup.name}"


def real_trials_tool(place: Workplace) -> Iterator[Measurement]:
    """Frames per second over those of OpenSim's own tool on each real trial, taking turns."""
    require_opensim()
    for trial in place.trials():
        setup = trial.read_setup
        with jax.enable_x64(True):
            reference = _reference(trial)
            motion = read_motion(reference.model, trial.converged)
        model, markers = (
            load_model(trial.osim, dtype=jnp.float32),
            jnp.asarray(reference.targets, jnp.float32),
        )
        n = len(motion.times) if not place.quick else 8
        output = place.folder / f"{trial.name}.mot"
        ours, theirs = [], []

        def solve(model=model, markers=markers, setup=setup) -> None:
            jax.block_until_ready(ssj.solve_ik(model, markers, setup=setup))

        for _ in range(place.size(2, 1)):
            ours.append(interleaved({"ik": solve}, place.repeats)["ik"])
            theirs.append(
                opensim_tool_with_setup(trial, output, float(motion.times[0]), float(motion.times[n - 1]))
            )
        with jax.enable_x64(True):
            found = read_motion(reference.model, output)
            n = len(found.times)
            targets = targets_at(reference.model, read_markers(trial.markers), found.times)
            objective = objective_and_rmse(reference.model, setup, targets, found.q)[0]
            best = objective_and_rmse(reference.model, setup, reference.targets[:n], reference.q[:n])[0]
        rates = len(markers) / min(ours), n / min(theirs)
        detail = {
            "frames_per_s": rates[0], "opensim_frames_per_s": rates[1], "opensim_frames": n,
            "opensim_objective_ratio_max": float(np.max(objective / best)),
        }  # fmt: skip
        note = (
            f"The setup's objective on both sides; a short trial of {len(markers)} frames, where a batch "
            "gains least. The detail's objective ratio is the tool's at accuracy 1e-5 over the converged one."
        )
        yield Measurement(
            f"kinematics/ik_vs_opensim_tool/{trial.name}", rates[0] / rates[1], _data(trial), note, detail
        )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def lumbar(place: Workplace, official: bool) -> Iterator[Measurement]:
    """Root mean square error of the worst lumbar flexion angle, and the markers' error."""
    model, clip = place.spine, place.clip(place.size(LUMBAR_FRAMES, 40))
    setup = official_setup(True) if official else None
    solution = ssj.solve_ik(model, jnp.asarray(clip.markers), setup=setup)
    true = np.asarray(jax.jit(ssj.expand_coordinates)(model, jnp.asarray(clip.q, jnp.float32)))
    error = np.rad2deg(np.asarray(solution.coordinates) - true)
    # Angles count modulo a turn, and a frame without a pose makes the value NaN, which fails the row.
    levels = {f"{level}_Flex_Ext": 0.0 for level in LUMBAR_LEVELS}
    for name in levels:
        column = error[:, model.coordinate_names.index(name)]
        levels[name] = _rms((column + 180) % 360 - 180)
    suffix = "_official" if official else ""
    note = (
        "Official weights and coordinate task, which freezes lumbar flexion."
        if official
        else "Default weights."
    )
    worst = max(levels, key=levels.__getitem__)
    detail = levels | {
        "true_range_deg": float(np.ptp(np.rad2deg(true[:, model.coordinate_names.index(worst)])))
    }
    yield Measurement(f"kinematics/lumbar_flexion_rms_deg{suffix}", levels[worst], SYNTHETIC, note, detail)
    rmse = 1e3 * _rms(np.asarray(solution.marker_rmse))
    noise = "5 mm noise on each axis is 8.7 mm a marker before the pose takes its share."
    yield Measurement(f"kinematics/lumbar_marker_rmse_mm{suffix}", rmse, SYNTHETIC, noise)


def gradient_error(place: Workplace) -> Iterator[Measurement]:
    """Derivatives of the solution against central differences of solutions, in float64."""
    with jax.enable_x64(True):
        yield from _gradient_error(place)


def _gradient_error(place: Workplace) -> Iterator[Measurement]:
    model = place.spine_float64()
    runs = place.size(GRADIENT_RUNS, 2)
    clip = place.clip(runs * 40)
    index = (np.arange(runs)[:, None] * 40 + np.arange(GRADIENT_RUN)).ravel()
    markers = jnp.asarray(clip.markers[index], jnp.float64)
    rng = np.random.default_rng(5)
    inputs = {
        "targets": markers,
        "weights": jnp.asarray(rng.uniform(0.5, 2.0, markers.shape[:2])),
        "scale_factors": jnp.asarray(rng.uniform(0.95, 1.05, (len(model.body_names), 3))),
        "marker_offsets": jnp.asarray(rng.normal(0, 0.002, markers.shape[1:])),
    }
    cotangent = jnp.asarray(rng.normal(size=(len(markers), model.n_free)))
    shown = np.asarray(cotangent)

    def tight(theta: dict, guess: jax.Array) -> jax.Array:
        given = {name: value for name, value in theta.items() if name != "targets"}
        options = {"tolerance": 1e-16, "max_iterations": 400, "initial_q": guess}
        return ssj.solve_ik(model, theta["targets"], **given, **options).q

    q = tight(inputs, jnp.asarray(clip.q[index]))
    q, pull = jax.vjp(lambda theta: tight(theta, q), inputs)
    origin = np.asarray(q)
    low, high = np.asarray(model.lower), np.asarray(model.upper)

    def held(q: np.ndarray) -> np.ndarray:
        return (q <= low) | (q >= high)

    # The gradient of each frame's own sum, so that frames are judged one by one.
    whole = pull(cotangent)[0]
    framewise = [pull(jnp.zeros_like(cotangent).at[t].set(cotangent[t]))[0] for t in range(len(markers))]
    errors, kept, apart, unresolved, pairs = {}, {}, 0, 0, 0
    for name, value in inputs.items():
        per_frame = name in ("targets", "weights")
        relative = []
        for _ in range(DIRECTIONS):
            direction = rng.normal(size=value.shape)
            if per_frame:
                slope = np.sum(np.asarray(whole[name]) * direction, axis=tuple(range(1, direction.ndim)))
            else:
                slope = np.array([float(np.sum(np.asarray(g[name]) * direction)) for g in framewise])
            difference, half, same = (
                np.zeros(len(markers)),
                np.zeros(len(markers)),
                np.ones(len(markers), bool),
            )
            for (steps, share), part in product(STENCIL, (1.0, 0.5)):
                step = part * STEPS[name]
                end = np.asarray(tight(inputs | {name: value + steps * step * jnp.asarray(direction)}, q))
                same &= (held(end) == held(origin)).all(axis=1)
                slopes = difference if part == 1.0 else half
                slopes += share / step * np.sum(shown * (end - origin), axis=1)
            # Where a solve failed nothing can be compared, and the pair counts as unresolved.
            known = np.isfinite(slope) & np.isfinite(difference) & np.isfinite(half)
            size = np.where(known, np.maximum(np.abs(slope), np.abs(difference)), 0.0)
            size = np.maximum(size, WEAK * _rms(size[known & same]))
            resolved = known & (np.abs(difference - half) <= RESOLVED * size)
            # A coordinate that leaves its bound or comes to it within the step has no derivative there.
            apart += int(np.sum(~same))
            unresolved += int(np.sum(same & ~resolved))
            relative.append((np.abs(slope - difference) / size)[same & resolved])
        flat = np.concatenate(relative)
        pairs += len(flat)
        errors[name], kept[name] = float(np.max(flat)), float(np.median(flat))
    detail = {f"{name}_max": v for name, v in errors.items()} | {
        f"{name}_median": v for name, v in kept.items()
    }
    note = (
        f"{len(markers)} frames, {DIRECTIONS} random directions each, a random sum of the coordinates; "
        f"relative to the larger of the two slopes, at least {WEAK:g} of their root mean square; "
        f"{pairs} pairs. Left out: {apart} where a coordinate comes to a bound or leaves it within the step, "
        f"{unresolved} where differences with the step and half of it disagree by more than {RESOLVED:g}."
    )
    detail |= {"pairs": pairs, "at_a_bound": apart, "unresolved": unresolved}
    failed = "" if pairs >= KEPT_SHARE * (pairs + apart + unresolved) else "too few pairs can be compared"
    yield Measurement("kinematics/ik_gradient_rel_err", max(errors.values()), SYNTHETIC, note, detail, failed)
