"""Rows of the suite ``pipeline`` that need the whole chain, all on synthetic captures with known truth."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from benchmarks.kinematics_speed import spine_mjcf
from benchmarks.metrics import Measurement, interleaved
from benchmarks.workplace import Workplace
from simspine_jax.annotations import SpineTrial
from simspine_jax.kinematics.clip import Smoothing
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.options import PRESETS, SimulationOptions
from simspine_jax.pipeline.sources import SubjectSource, SyntheticTrial, synthetic_subjects
from simspine_jax.pipeline.stages import SubjectSize, find_points, simulate_subject, simulate_trials
from simspine_jax.skeleton import AXIS_NAMES, LUMBAR_LEVELS, REGIONS

SECONDS, RATE_HZ = 4.0, 50.0
KILLS = 20
PRECISION_M, OBSERVABLE_DEG = 1e-5, 0.01
_DATA = "synthetic: captures of 7 subjects, 15 actions, 4 s at 50 Hz, seed 0"
_FLEXION = [AXIS_NAMES.index(f"{level}_Flex_Ext") for level in LUMBAR_LEVELS]

Pairs = list[tuple[SpineTrial, SpineTrial]]  # found, true


def accuracy(place: Workplace) -> Iterator[Measurement]:
    """Errors of the default preset by region and action, beside triangulation and the official preset."""
    sources = _subjects(place)
    data = _DATA if not place.quick else "synthetic: quick"
    found = {name: _simulated(place.spine, sources, PRESETS[name]) for name in ("simspine", "official")}
    ours = _errors(found["simspine"])
    plain = _errors([(replace(f, keypoints=_given(f.triangulated)), t) for f, t in found["simspine"]])
    theirs = _errors(found["official"])
    note = "The default preset's robust triangulation, before the model."
    yield Measurement("pipeline/spine_mpjpe_mm", ours["spine"], data)
    yield Measurement("pipeline/spine_mpjpe_mm_triangulated", plain["spine"], data, note)
    yield Measurement("pipeline/spine_mpjpe_mm_official", theirs["spine"], data)
    yield Measurement("pipeline/spine_mpjpe_ratio", ours["spine"] / plain["spine"], data)
    for name, errors in (("simspine", ours), ("triangulated", plain), ("official", theirs)):
        for part, value in errors.items():
            if part != "spine":
                yield Measurement(f"pipeline/mpjpe_mm/{name}/{part}", value, data)
    for name, pairs in found.items():
        degrees = _flexion_rms(pairs)
        suffix = "" if name == "simspine" else f"_{name}"
        detail = dict(zip(LUMBAR_LEVELS, degrees.tolist(), strict=True))
        note = (
            "The worst of the six levels. Captures bend little about their means, so zero would be near too."
        )
        yield Measurement(
            f"pipeline/lumbar_flexion_rms_deg{suffix}", float(degrees.max()), data, note, detail
        )
        yield Measurement(
            f"pipeline/lumbar_flexion_correlation{suffix}", _correlation(pairs), data,
            "Of L5-S1 flexion with the truth, over all frames.",
        )  # fmt: skip
    yield from _curvature(found["simspine"], data)


def _given(values: NDArray | None) -> NDArray:
    assert values is not None  # every synthetic trial is triangulated
    return values


def _subjects(
    place: Workplace, model: SpineModel | None = None, *, exact: bool = False
) -> tuple[SubjectSource, ...]:
    subjects, actions = (("S1",), ("Walking",)) if place.quick else ((), ())
    seconds = 1.0 if place.quick else SECONDS
    return synthetic_subjects(
        model or place.spine, seconds, RATE_HZ, subjects=subjects, actions=actions, exact=exact
    )


def _simulated(model: SpineModel, sources: Sequence[SubjectSource], options: SimulationOptions) -> Pairs:
    pairs: Pairs = []
    for source in sources:
        inputs = [trial.load() for trial in source.trials]
        _, found = simulate_subject(model, source.name, inputs, options)
        pairs += [(f, _true(t)) for f, t in zip(found, source.trials, strict=True)]
    return pairs


def _true(trial) -> SpineTrial:
    assert isinstance(trial, SyntheticTrial)
    return trial.truth()


def _errors(pairs: Pairs) -> dict[str, float]:
    """MPJPE, mm, by region and, of all keypoints of the spine, by action."""
    regions: dict[str, list[float]] = {}
    for found, true in pairs:
        error = 1e3 * np.linalg.norm(found.keypoints - true.keypoints, axis=-1)
        for region, ids in REGIONS.items():
            regions.setdefault(region, []).append(float(np.nanmean(error[:, list(ids)])))
        spine = float(np.nanmean(error[:, list(REGIONS["spine"])]))
        regions.setdefault(f"spine/{found.action}", []).append(spine)
    return {name: float(np.mean(values)) for name, values in regions.items()}


def _flexion_rms(pairs: Pairs) -> NDArray[np.float64]:
    """[6] degrees."""
    errors = np.concatenate([f.coordinates[:, _FLEXION] - t.coordinates[:, _FLEXION] for f, t in pairs])
    return np.degrees(np.sqrt(np.nanmean(errors**2, axis=0)))


def _correlation(pairs: Pairs) -> float:
    found, true = (np.concatenate([pair[i].coordinates[:, _FLEXION[0]] for pair in pairs]) for i in (0, 1))
    known = np.isfinite(found)
    return float(np.corrcoef(found[known], true[known])[0, 1])


def _curvature(pairs: Pairs, data: str) -> Iterator[Measurement]:
    for name, band in (("lordosis", "33 to 39"), ("kyphosis", "29 to 37")):
        means = [np.degrees(np.nanmean(getattr(f, name)[f.usable])) for f, _ in pairs if f.usable.any()]
        truth = float(np.mean([np.degrees(np.nanmean(getattr(t, name))) for _, t in pairs]))
        note = f"By keypoints; the truth has {truth:.1f}; the paper's own data has action means of {band}."
        yield Measurement(f"pipeline/{name}_mean_deg", float(np.mean(means)), data, note)


def oracle(place: Workplace) -> Iterator[Measurement]:
    """Exact pictures of a rigid subject whose size is known: what the chain itself loses, in float64."""
    options = replace(PRESETS["simspine"], acceleration=0.0, prior_marker_std_m=1e-6, use_confidence=False)
    keypoints, axes, unseen = [], [], []
    with jax.enable_x64(True):
        model = ssj.load_model(spine_mjcf(place), dtype=jnp.dtype("float64"))
        for source in _subjects(place, model, exact=True)[: 1 if place.quick else 3]:
            for trial in source.trials[: 1 if place.quick else 5]:
                assert isinstance(trial, SyntheticTrial)
                found, true = _exactly(model, trial, options)
                keypoints.append(np.linalg.norm(found.keypoints - true.keypoints, axis=-1))
                axes.append(np.abs(_wrapped(found.coordinates - true.coordinates)))
                unseen.append(_unobservable(model, trial))
    data = "synthetic: exact pictures of the rigid model, its scale and markers known, float64"
    error = np.concatenate(keypoints)
    hidden = np.concatenate(unseen)
    off = np.where(hidden, 0, np.degrees(np.concatenate(axes)))
    worst, beyond = off.max(axis=0), off.max(axis=1) > OBSERVABLE_DEG
    largest_um = 1e6 * float(np.nanmax(error[beyond], initial=0.0))
    detail = {
        name: {"worst_deg": float(value), "frames_not_observable": int(count)}
        for name, value, count in zip(AXIS_NAMES, worst, hidden.sum(axis=0), strict=True)
    }
    note = "All 37 keypoints, before any filter."
    yield Measurement("pipeline/oracle_mpjpe_mm", float(1e3 * np.nanmean(error)), data, note)
    note = (
        "The worst frame of the worst axis, over frames in which the markers determine it: a marker error "
        f"of {1e6 * PRECISION_M:g} µm must not move it by {OBSERVABLE_DEG:g}°. Frames left out: "
        f"{100 * hidden.mean():.1f} %, by axis in the detail. {beyond.sum()} of {len(beyond)} frames are "
        f"beyond {OBSERVABLE_DEG:g}°, with keypoints off by {largest_um:.2g} µm at most: a second pose with "
        "the same markers."
    )
    yield Measurement("pipeline/oracle_axis_max_deg", float(worst.max()), data, note, detail)


def _unobservable(model: SpineModel, trial: SyntheticTrial) -> NDArray[np.bool_]:
    """[T 62] where an axis hardly moves markers, by the true pose's Jacobian; lengths are no angles."""
    subject = trial.capture.subject

    def markers(q):
        poses = ssj.forward_kinematics(
            model, q, scale_factors=subject.scale_factors, marker_offsets=subject.marker_offsets
        )
        return poses.markers.ravel()

    @jax.jit
    @jax.vmap
    def spread(q):
        """Standard deviation of each coordinate, rad, at markers of `PRECISION_M`."""
        jacobian, follow = jax.jacfwd(markers)(q), jax.jacfwd(lambda x: ssj.expand_coordinates(model, x))(q)
        values, vectors = jnp.linalg.eigh(jacobian.T @ jacobian)
        scaled = (follow @ vectors) / jnp.sqrt(jnp.maximum(values, 1e-18))
        return PRECISION_M * jnp.linalg.norm(scaled, axis=-1)

    lengths = np.array([not turns for turns in model.rotational])
    return (np.degrees(np.asarray(spread(jnp.asarray(trial.capture.q)))) > OBSERVABLE_DEG) | lengths


def _wrapped(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _exactly(
    model: SpineModel, trial: SyntheticTrial, options: SimulationOptions
) -> tuple[SpineTrial, SpineTrial]:
    """The trial solved with the subject's own factors and marker places."""
    subject = trial.capture.subject
    size = SubjectSize(np.asarray(subject.scale_factors, float), subject.height_m, subject.mass_kg)
    size = replace(size, marker_offsets=np.asarray(subject.marker_offsets, float))
    loaded = trial.load()
    points = find_points(loaded, options)
    found = simulate_trials(model, trial.subject, [loaded], [points], size, options)[0]
    return found, trial.truth()


def throughput(place: Workplace) -> Iterator[Measurement]:
    """Frames per second of the whole chain, beside the whole-clip solve alone on the same targets."""
    from simspine_jax.pipeline.stages import targets_of

    options = PRESETS["simspine"]
    source = synthetic_subjects(
        place.spine, 2.0 if place.quick else 10.24, RATE_HZ, subjects=("S1",), actions=("Walking", "Greeting")
    )[0]
    inputs = [trial.load() for trial in source.trials]
    points = [find_points(trial, options) for trial in inputs]
    size, _ = simulate_subject(place.spine, "S1", inputs, options)
    targets = [targets_of(place.spine, p, options) for p in points]
    markers, weights = (jnp.asarray(np.stack([getattr(t, n) for t in targets]), jnp.float32)
                        for n in ("markers", "weights"))  # fmt: skip
    prior = ssj.Prior(options.prior_marker_std_m, options.prior_coordinate_std)
    smoothing = Smoothing(0.0, options.acceleration, RATE_HZ)
    factors = jnp.asarray(size.scale_factors, jnp.float32)

    def clip_alone():
        jax.block_until_ready(
            ssj.solve_ik(
                place.spine,
                markers,
                weights=weights,
                prior=prior,
                smoothing=smoothing,
                scale_factors=factors,
                lengths=jnp.full(len(markers), markers.shape[1]),
            )
        )

    best = interleaved(
        {"chain": lambda: simulate_subject(place.spine, "S1", inputs, options), "clip": clip_alone},
        place.repeats,
    )
    frames = sum(len(trial.times) for trial in inputs)
    data = "synthetic: two captures of S1, four views"
    detail = {"chain_s": best["chain"], "clip_s": best["clip"], "frames": frames}
    note = "Keypoints in, annotations out, without files; float32."
    yield Measurement("pipeline/frames_per_s", frames / best["chain"], data, note, detail)
    note = "The chain's rate over that of the whole-clip solve of the same targets."
    yield Measurement("pipeline/chain_vs_clip_ik", best["clip"] / best["chain"], data, note, detail)


def seams(place: Workplace) -> Iterator[Measurement]:
    """A long trial solved in overlapping clips against the same in one clip."""
    from simspine_jax.pipeline import solving
    from simspine_jax.pipeline.stages import pose_outputs, targets_of

    options = PRESETS["simspine"]
    seconds = 4.0 if place.quick else 32.0
    source = synthetic_subjects(place.spine, seconds, RATE_HZ, subjects=("S1",), actions=("Walking",))[0]
    trial = source.trials[0].load()
    targets = [targets_of(place.spine, find_points(trial, options), options)]
    sizes = (128 if place.quick else solving.CLIP_FRAMES, len(trial.times))
    factors = np.ones((len(place.spine.body_names), 3))
    markers = [
        pose_outputs(
            place.spine,
            solving.solve_trials(place.spine, targets, None, options, clip_frames=n)[0].q,
            factors,
        ).markers
        for n in sizes
    ]
    apart = 1e3 * np.linalg.norm(np.asarray(markers[0]) - np.asarray(markers[1]), axis=-1)
    data = f"synthetic: a capture of S1 walking, {seconds:g} s"
    note = f"Largest distance of a marker between clips of {sizes[0]} frames and one of {sizes[1]}."
    yield Measurement("pipeline/seam_max_mm", float(np.nanmax(apart)), data, note)


def kills(place: Workplace) -> Iterator[Measurement]:
    """``simspine simulate`` killed at random moments and run again: the same bytes as an undisturbed run."""
    count = place.size(KILLS, 1)
    command = [
        str(Path(sys.executable).with_name("simspine")), "simulate", "--synthetic", "--subjects", "S1",
        "--actions", "Walking", "Greeting", "--seconds", "1", "--quiet", "--model", str(spine_mjcf(place)),
    ]  # fmt: skip
    environment = {**os.environ, "SIMSPINE_CACHE": str(place.folder / "cache_kills")}
    whole = place.folder / "undisturbed"
    _run([*command, "--out", str(whole)], environment)  # fills the compile cache
    shutil.rmtree(whole)
    began = time.perf_counter()
    _run([*command, "--out", str(whole)], environment)
    seconds, expected = time.perf_counter() - began, _contents(whole)
    chance, survived, early = random.Random(0), 0, 0
    for index in range(count):
        out = place.folder / f"killed_{index}"
        child = subprocess.Popen([*command, "--out", str(out)], env=environment)
        try:
            # Most of a run is starting up, where there is nothing to lose.
            child.wait(chance.uniform(0.3, 1.0) * seconds)
            early += 1
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        _run([*command, "--out", str(out)], environment)
        survived += _contents(out) == expected
        shutil.rmtree(out)
    detail = {"kills": count, "ended_before": early, "files": len(expected)}
    failed = "" if survived == count else f"{count - survived} of {count} resumed runs differ"
    data = "synthetic: two captures of S1, 1 s each"
    yield Measurement("pipeline/kills_survived", survived, data, "Of 20; all files alike.", detail, failed)


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, check=True, capture_output=True)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
