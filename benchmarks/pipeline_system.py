"""Rows of the suite ``pipeline`` that need the whole chain, all on synthetic captures with known truth."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import simspine_jax as ssj
from benchmarks.kinematics_speed import spine_mjcf
from benchmarks.metrics import Measurement, interleaved
from benchmarks.workplace import Workplace, require_opensim
from simspine_jax.annotations import Quality, SpineTrial
from simspine_jax.kinematics.clip import Smoothing
from simspine_jax.kinematics.inverse import needed_markers
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline import padded_size, solving
from simspine_jax.pipeline.options import PRESETS, SimulationOptions
from simspine_jax.pipeline.sources import SubjectSource, SyntheticTrial, synthetic_subjects
from simspine_jax.pipeline.stages import (
    SubjectSize,
    TrialInput,
    find_points,
    find_size,
    pose_outputs,
    simulate_subject,
    simulate_trials,
    targets_of,
)
from simspine_jax.skeleton import AXIS_NAMES, LUMBAR_LEVELS, REGIONS

SECONDS, RATE_HZ = 4.0, 50.0
SEED = 1
"""Of the accuracy rows; the preset's constants were chosen on seed 0."""

LEAST_COVERAGE = 0.99
"""Share of values that must be there, so that leaving out what is hard improves nothing.

Triangulation alone is not held to it: what it can't see only flatters what the model is compared with.
"""

SPEED_TRIALS = (("Walking", 30.0), ("Greeting", 24.0))
PEER_FRAMES = 512
"""Of a clip of the solve alone."""

SEAM_CASES = ((50.0, 32.0, 1.0), (200.0, 8.0, 1.0), (50.0, 32.0, 100.0))
"""Rate, seconds, and how many times the preset's weight of accelerations."""

KILLS, KILL_TRIES, POLL_S = 20, 8, 0.002
PRECISION_M, OBSERVABLE_DEG = 1e-5, 0.01
_DATA = (
    f"synthetic: captures of 7 subjects, 15 actions, 4 s at 50 Hz, seed {SEED}; the preset's constants were "
    "chosen on seed 0"
)
_OFFICIAL = (
    "Assumed, as it is not released: Pose2Sim's rules for the triangulation, on undistorted keypoints, and a "
    "Laplacian weight of 0.5."
)
_NOTES = {
    "simspine": "",
    "triangulated": "The default preset's robust triangulation, before the model; what it lacks is left out.",
    "official": _OFFICIAL,
}
_FLEXION = [AXIS_NAMES.index(f"{level}_Flex_Ext") for level in LUMBAR_LEVELS]

Pairs = list[tuple[SpineTrial, SpineTrial]]  # found, true


@dataclass(frozen=True)
class _Error:
    """Of some keypoints: their mean error, and the share of them that have a value."""

    mm: float
    coverage: float


def accuracy(place: Workplace) -> Iterator[Measurement]:
    """Errors of the default preset by region and action, beside triangulation and the official preset."""
    sources = _subjects(place, seed=SEED)
    data = _DATA if not place.quick else f"synthetic: quick, seed {SEED}"
    found = {name: _simulated(place.spine, sources, PRESETS[name]) for name in ("simspine", "official")}
    yield from _distances(found, data)
    yield from _angles(found, place.spine, data)
    yield from _curvature(found["simspine"], data)


def _distances(found: Mapping[str, Pairs], data: str) -> Iterator[Measurement]:
    before = [(replace(f, keypoints=_given(f.triangulated)), t) for f, t in found["simspine"]]
    methods = {
        "simspine": _errors(found["simspine"]),
        "triangulated": _errors(before),
        "official": _errors(found["official"]),
    }
    least = {"simspine": LEAST_COVERAGE, "triangulated": 0.0, "official": LEAST_COVERAGE}
    spine = {name: errors["spine"] for name, errors in methods.items()}
    for name, error in spine.items():
        suffix = "" if name == "simspine" else f"_{name}"
        key = f"pipeline/spine_mpjpe_mm{suffix}"
        yield _covered(key, error.mm, error.coverage, data, _NOTES[name], least=least[name])
    ours, plain = spine["simspine"], spine["triangulated"]
    yield _covered(
        "pipeline/spine_mpjpe_ratio", ours.mm / plain.mm, ours.coverage, data,
        detail={"coverage_triangulated": plain.coverage},
    )  # fmt: skip
    for name, errors in methods.items():
        for part, error in errors.items():
            if part != "spine":
                key = f"pipeline/mpjpe_mm/{name}/{part}"
                yield _covered(key, error.mm, error.coverage, data, _NOTES[name], least=least[name])


def _angles(found: Mapping[str, Pairs], model: SpineModel, data: str) -> Iterator[Measurement]:
    for name, pairs in found.items():
        flexion, true = (_flexion(pairs, i) for i in (0, 1))
        degrees = _rms_deg(flexion - true)
        coverage = float(np.isfinite(flexion).all(axis=1).mean())
        suffix = "" if name == "simspine" else f"_{name}"
        note = "The worst of the six levels; see lumbar_flexion_rms_deg_zero for what a guess would give."
        yield _covered(
            f"pipeline/lumbar_flexion_rms_deg{suffix}", float(degrees.max()), coverage, data,
            f"{note} {_NOTES[name]}".strip(), dict(zip(LUMBAR_LEVELS, degrees.tolist(), strict=True)),
        )  # fmt: skip
        known = np.isfinite(flexion[:, 0])
        yield _covered(
            f"pipeline/lumbar_flexion_correlation{suffix}",
            float(np.corrcoef(flexion[known, 0], true[known, 0])[0, 1]), coverage, data,
            f"Of L5-S1 flexion with the truth, over all frames. {_NOTES[name]}".strip(),
        )  # fmt: skip
    true = _flexion(found["simspine"], 1)
    columns = [model.coordinate_names.index(AXIS_NAMES[i]) for i in _FLEXION]
    default = _rms_deg(true - np.asarray(model.default_coordinates, float)[columns])
    mean = _rms_deg(true - true.mean(axis=0))
    detail = {
        level: {"default_pose": float(a), "true_mean": float(b)}
        for level, a, b in zip(LUMBAR_LEVELS, default, mean, strict=True)
    }
    note = (
        "The worst of the six levels. Captures bend little about their means: guessing each level's true "
        f"mean gives {mean.max():.3g} (by level in the detail)."
    )
    yield Measurement("pipeline/lumbar_flexion_rms_deg_zero", float(default.max()), data, note, detail)


def _covered(
    key: str,
    value: float,
    coverage: float,
    data: str,
    note: str = "",
    detail: dict | None = None,
    least: float = LEAST_COVERAGE,
) -> Measurement:
    """A row that fails where too much of what it judges is missing."""
    failed = ""
    if not coverage >= least:
        failed = f"only {100 * coverage:.4g} % have a value; at least {100 * least:g} % must"
    return Measurement(key, value, data, note, {"coverage": coverage, **(detail or {})}, failed)


def _given(values: NDArray | None) -> NDArray:
    assert values is not None  # every synthetic trial is triangulated
    return values


def _subjects(
    place: Workplace, model: SpineModel | None = None, *, exact: bool = False, seed: int = 0
) -> tuple[SubjectSource, ...]:
    subjects, actions = (("S1",), ("Walking",)) if place.quick else ((), ())
    seconds = 1.0 if place.quick else SECONDS
    return synthetic_subjects(
        model or place.spine, seconds, RATE_HZ, seed, subjects=subjects, actions=actions, exact=exact
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


def _errors(pairs: Pairs) -> dict[str, _Error]:
    """Means over trials by region and, of all keypoints of the spine, by action."""
    parts: dict[str, list[NDArray[np.float64]]] = {}
    for found, true in pairs:
        error = 1e3 * np.linalg.norm(found.keypoints - true.keypoints, axis=-1)
        for region, ids in REGIONS.items():
            parts.setdefault(region, []).append(error[:, list(ids)])
        parts.setdefault(f"spine/{found.action}", []).append(error[:, list(REGIONS["spine"])])
    return {
        name: _Error(
            float(np.mean([float(np.nanmean(e)) if np.isfinite(e).any() else np.nan for e in errors])),
            float(np.isfinite(np.concatenate(errors)).mean()),
        )
        for name, errors in parts.items()
    }


def _flexion(pairs: Pairs, which: int) -> NDArray[np.float64]:
    """[T 6] rad, of all trials, found (0) or true (1)."""
    return np.concatenate([pair[which].coordinates[:, _FLEXION] for pair in pairs])


def _rms_deg(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[6] degrees, over the frames that have a value."""
    return np.degrees(np.sqrt(np.nanmean(errors**2, axis=0)))


def _curvature(pairs: Pairs, data: str) -> Iterator[Measurement]:
    usable = float(np.concatenate([f.usable for f, _ in pairs]).mean())
    for name, band in (("lordosis", "33 to 39"), ("kyphosis", "29 to 37")):
        values = [getattr(f, name) for f, _ in pairs]
        coverage = float(np.isfinite(np.concatenate(values)).mean())
        means = [
            np.degrees(np.nanmean(v[f.usable]))
            for v, (f, _) in zip(values, pairs, strict=True)
            if np.isfinite(v[f.usable]).any()
        ]
        truth = float(np.mean([np.degrees(np.nanmean(getattr(t, name))) for _, t in pairs]))
        note = f"By keypoints; the truth has {truth:.1f}; the paper's own data has action means of {band}."
        yield _covered(
            f"pipeline/{name}_mean_deg", float(np.mean(means)) if means else np.nan, coverage, data, note,
            {"usable": usable, "truth": truth},
        )  # fmt: skip


def oracle(place: Workplace) -> Iterator[Measurement]:
    """Exact pictures of a rigid subject whose size is known: what the chain itself loses, in float64."""
    options = replace(PRESETS["simspine"], acceleration=0.0, prior_marker_std_m=1e-6, use_confidence=False)
    keypoints, axes, unseen, repaired = [], [], [], 0
    with jax.enable_x64(True):
        model = ssj.load_model(spine_mjcf(place), dtype=jnp.dtype("float64"))
        for source in _subjects(place, model, exact=True)[: 1 if place.quick else 3]:
            for trial in source.trials[: 1 if place.quick else 5]:
                assert isinstance(trial, SyntheticTrial)
                found, true = _exactly(model, trial, options)
                keypoints.append(np.linalg.norm(found.keypoints - true.keypoints, axis=-1))
                axes.append(np.abs(_wrapped(found.coordinates - true.coordinates)))
                unseen.append(_unobservable(model, trial))
                repaired += int(((found.quality & np.uint16(Quality.INTERPOLATED)) != 0).sum())
    data = "synthetic: exact pictures of the rigid model, its scale and markers known, float64, seed 0"
    error, hidden, turned = np.concatenate(keypoints), np.concatenate(unseen), np.concatenate(axes)
    posed = np.asarray(np.isfinite(np.concatenate([error, turned], axis=1)).all(axis=1))
    failed = ""
    if not posed.all():
        failed = f"{(~posed).sum()} of {len(posed)} frames have no pose, or not all of it"
    error, hidden, turned = error[posed], hidden[posed], turned[posed]
    off = np.where(hidden, 0, np.degrees(turned))
    worst, beyond = off.max(axis=0), off.max(axis=1) > OBSERVABLE_DEG
    largest_um = 1e6 * float(np.max(error[beyond], initial=0.0))
    detail = {
        name: {"worst_deg": float(value), "frames_not_observable": int(count)}
        for name, value, count in zip(AXIS_NAMES, worst, hidden.sum(axis=0), strict=True)
    }
    off_there = f"Prior ({1e6 * options.prior_marker_std_m:g} µm of a marker) and smoothing are off here."
    note = f"All 37 keypoints, before any filter. {off_there}"
    frames = {"frames": len(posed), "without_pose": int((~posed).sum()), "interpolated": repaired}
    yield Measurement("pipeline/oracle_mpjpe_mm", float(1e3 * error.mean()), data, note, frames, failed)
    note = (
        "The worst frame of the worst axis, over frames in which the markers determine it: a marker error "
        f"of {1e6 * PRECISION_M:g} µm must not move it by {OBSERVABLE_DEG:g}°. Frames left out: "
        f"{100 * hidden.mean():.1f} %, by axis in the detail. {beyond.sum()} of {len(beyond)} frames are "
        f"beyond {OBSERVABLE_DEG:g}°, with keypoints off by {largest_um:.2g} µm at most: a second pose with "
        f"the same markers. {off_there}"
    )
    yield Measurement("pipeline/oracle_axis_max_deg", float(worst.max()), data, note, detail, failed)


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
    options = PRESETS["simspine"]
    inputs = _speed_inputs(place)
    points = [find_points(trial, options) for trial in inputs]
    size, _ = simulate_subject(place.spine, "S1", inputs, options)
    targets = [targets_of(place.spine, p, options) for p in points]
    width = min(PEER_FRAMES, padded_size(max(len(t.markers) for t in targets)))
    markers, weights, lengths = _pieces(targets, width)
    seen = np.concatenate([np.isfinite(t.markers).all(axis=-1) & (t.weights > 0) for t in targets])
    pulls = {
        "prior": ssj.Prior(options.prior_marker_std_m, options.prior_coordinate_std),
        "smoothing": Smoothing(options.velocity, options.acceleration, RATE_HZ),
        "scale_factors": jnp.asarray(size.scale_factors, jnp.float32),
        "min_markers": int(needed_markers(place.spine, seen)),
    }

    def clip_alone():
        jax.block_until_ready(ssj.solve_ik(place.spine, markers, weights=weights, lengths=lengths, **pulls))

    best = interleaved(
        {"chain": lambda: simulate_subject(place.spine, "S1", inputs, options), "clip": clip_alone},
        place.repeats,
    )
    frames = sum(len(trial.times) for trial in inputs)
    data = (
        f"synthetic: two captures of S1, four views, {' and '.join(str(len(t.times)) for t in inputs)} frames"
    )
    detail = {"chain_s": best["chain"], "clip_s": best["clip"], "frames": frames, "clips": len(lengths)}
    note = "Keypoints in, annotations out, without files; float32."
    yield Measurement("pipeline/frames_per_s", frames / best["chain"], data, note, detail)
    note = (
        "The chain triangulates, scales, solves in clips that overlap, and annotates and judges the poses. "
        "The clip solve gets the triangulated targets with the same weights, prior, smoothing and scale "
        f"factors and solves each frame once, in clips of {width} frames without overlap, the last of a "
        "trial padded."
    )
    yield Measurement("pipeline/chain_vs_clip_ik", best["clip"] / best["chain"], data, note, detail)


def _speed_inputs(place: Workplace) -> list[TrialInput]:
    """Two trials of unequal lengths of one subject."""
    shorter = 1.0 if not place.quick else 1 / 15
    sources = (
        synthetic_subjects(place.spine, shorter * seconds, RATE_HZ, subjects=("S1",), actions=(action,))
        for action, seconds in SPEED_TRIALS
    )
    return [source.trials[0].load() for (source,) in sources]


def _pieces(targets: Sequence[solving.Targets], width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Markers ``[C S K 3]``, weights ``[C S K]`` and lengths ``[C]`` of all trials cut without overlap."""
    cuts = [(t, first) for t in targets for first in range(0, len(t.markers), width)]
    n_markers = targets[0].markers.shape[1]
    markers = np.full((len(cuts), width, n_markers, 3), np.nan, np.float32)
    weights = np.zeros((len(cuts), width, n_markers), np.float32)
    lengths = np.zeros(len(cuts), np.int32)
    for row, (target, first) in enumerate(cuts):
        piece = slice(first, first + width)
        lengths[row] = n = len(target.markers[piece])
        markers[row, :n], weights[row, :n] = target.markers[piece], target.weights[piece]
    return jnp.asarray(markers), jnp.asarray(weights), jnp.asarray(lengths)


def seams(place: Workplace) -> Iterator[Measurement]:
    """Long trials solved in overlapping clips against the same in one clip."""
    # Tried on less: just more than fits in one short clip.
    clip_frames = place.size(solving.CLIP_FRAMES, 512)
    cases = SEAM_CASES if not place.quick else ((50.0, 12.0, 1.0),)
    found, failed = {}, []
    for rate_hz, seconds, times in cases:
        name = f"{rate_hz:g} Hz, {seconds:g} s" + (f", acceleration weight x {times:g}" if times != 1 else "")
        whole, cut, first_frames = _cut_and_whole(place.spine, rate_hz, seconds, times, clip_frames)
        distance = 1e3 * np.linalg.norm(cut - whole, axis=-1)
        jump = 1e3 * np.linalg.norm(np.diff(cut - whole, axis=0), axis=-1)[[f - 1 for f in first_frames]]
        found[name] = {
            "seam_max_mm": float(jump.max(initial=0.0)),
            "clips_max_mm": float(distance.max()),
            "clips_median_mm": float(np.median(distance)),
        }
        if not np.isfinite(distance).all():
            failed.append(f"{name}: frames have no pose")
        if not (first_frames and distance.max() > 0):
            failed.append(f"{name}: nothing was cut")
    data = f"synthetic: captures of S1 walking; {'; '.join(found)}"
    notes = {
        "seam_max_mm": "Change of a marker from the frame before a seam to the next, against one clip's.",
        "clips_max_mm": "Largest distance of a marker between overlapping clips and one clip.",
        "clips_median_mm": "The median of these distances.",
    }
    for key, note in notes.items():
        by_case = {name: values[key] for name, values in found.items()}
        yield Measurement(
            f"pipeline/{key}", max(by_case.values()), data, f"{note} The worst case.", by_case,
            "; ".join(failed),
        )  # fmt: skip


def _cut_and_whole(
    model: SpineModel, rate_hz: float, seconds: float, times: float, clip_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """[T M 3] markers of one clip and of several, m, and the frames with which the latter begin."""
    options = replace(PRESETS["simspine"], acceleration=times * PRESETS["simspine"].acceleration)
    source = synthetic_subjects(model, seconds, rate_hz, subjects=("S1",), actions=("Walking",))[0]
    points = find_points(source.trials[0].load(), options)
    targets = targets_of(model, points, options)
    factors = find_size(model, [points], options).scale_factors
    whole, cut = (
        pose_outputs(
            model, solving.solve_trials(model, [targets], factors, options, clip_frames=n)[0].q, factors
        ).markers
        for n in (len(targets.markers), clip_frames)
    )
    overlap = solving.overlap_frames(options, rate_hz)
    return np.asarray(whole), np.asarray(cut), solving.seams(len(targets.markers), clip_frames, overlap)


@dataclass(frozen=True)
class _Left:
    """What a killed run left behind."""

    tries: int
    files: int
    records: int


def kills(place: Workplace) -> Iterator[Measurement]:
    """``simspine simulate`` killed at random moments and run again: the same bytes as an undisturbed run."""
    count = place.size(KILLS, 1)
    if place.converted is None:
        require_opensim()
    command = [
        str(Path(sys.executable).with_name("simspine")), "simulate", "--synthetic", "--subjects", "S1", "S5",
        "--actions", "Walking", "Greeting", "--seconds", "1", "--quiet",
    ]  # fmt: skip
    if place.converted is not None:
        command += ["--model", str(place.converted)]
    whole = place.folder / "undisturbed"
    _timed(
        command, whole
    )  # converts the model and fills the compile cache, so that no kill meets a write to it
    shutil.rmtree(whole)
    begins, ends = _timed(command, whole)
    expected = _contents(whole)
    chance, left, differing = random.Random(0), [], {}
    for index in range(count):
        # Starting up is most of a run, and there is nothing to lose in it: a quarter of the kills is enough.
        early = index % 4 == 3
        wait_s = chance.uniform(0, begins if early else ends - begins)
        out, one = _killed(command, place.folder / f"killed_{index}", wait_s, early=early)
        if one is None:
            continue
        left.append(one)
        _timed(command, out)
        if (found := _contents(out)) != expected:
            names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
            differing[f"kill {index}"] = names[:5]
    survived = len(left) - len(differing)
    detail = {
        "kills": len(left), "left_files": sum(one.files > 0 for one in left),
        "left_records": sum(one.records > 0 for one in left),
        "records_left_by_each": [one.records for one in left],
        "files_left_by_each": [one.files for one in left],
        "ended_before": sum(one.tries - 1 for one in left), "files": len(expected),
        "scaled_models": sum(name.endswith(".osim") for name in expected),
        "window_s": [begins, ends], "differing": differing,
    }  # fmt: skip
    problems = []
    if len(left) < count:
        problems.append(f"only {len(left)} of {count} runs could be killed before they ended")
    if differing:
        problems.append(f"{len(differing)} of {len(left)} resumed runs differ")
    data = "synthetic: two captures of each of S1 and S5, 1 s each"
    note = (
        f"Of {count} runs that SIGKILL ended, three quarters of them after the first file was there; resumed "
        "at once; all files alike."
    )
    yield Measurement("pipeline/kills_survived", survived, data, note, detail, "; ".join(problems))


def _timed(command: Sequence[str], out: Path) -> tuple[float, float]:
    """Runs it; returns after how many seconds the first file was there, and the end."""
    began = time.perf_counter()
    child = subprocess.Popen([*command, "--out", str(out)])
    _await_file(child, out)
    first = time.perf_counter() - began
    if child.wait() != 0:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return first, time.perf_counter() - began


def _await_file(child: subprocess.Popen, out: Path) -> None:
    while child.poll() is None and not _files(out):
        time.sleep(POLL_S)


def _killed(command: Sequence[str], out: Path, wait_s: float, *, early: bool) -> tuple[Path, _Left | None]:
    """Kills a run so long after its start or, if not early, its first file; sooner where it ended before.

    Returns the folder that the killed run wrote to, and what is in it; None where each run ended by itself.
    """
    for attempt in range(KILL_TRIES):
        folder = out.with_name(f"{out.name}_{attempt}")
        child = subprocess.Popen([*command, "--out", str(folder)])
        if not early:
            _await_file(child, folder)
        try:
            child.wait(wait_s / 2**attempt)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        if child.wait() == -signal.SIGKILL:
            files = _files(folder)
            records = sum(path.suffix == ".json" and "trials" in path.parts for path in files)
            return folder, _Left(attempt + 1, len(files), records)
        if child.returncode != 0:
            raise subprocess.CalledProcessError(child.returncode, child.args)
    return out, None


def _files(folder: Path) -> list[Path]:
    """All files by their paths in the folder, those in the making too."""
    return [
        (Path(parent) / name).relative_to(folder) for parent, _, names in os.walk(folder) for name in names
    ]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): (folder / path).read_bytes() for path in _files(folder)}
