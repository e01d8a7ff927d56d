"""Inverse kinematics of many trials of one subject: clips of few shapes, in batches, over all devices.

Trials longer than `CLIP_FRAMES` are cut into clips that overlap on both sides, so that memory does not grow
with the length of a trial. The penalties of a whole-clip solve reach only some frames far (`overlap_frames`);
what clips still differ in at a seam is faded from one to the other over half of the overlap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Int
from simspine_jax.io import IKSetup
from simspine_jax.io.ik_setup import CoordinateTask, MarkerTask
from simspine_jax.kinematics.clip import Smoothing
from simspine_jax.kinematics.inverse import IKStatus, Prior, needed_markers, solve_ik
from simspine_jax.kinematics.lumbar import free_lumbar, rhythm_residual, rhythm_stiffness
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.residuals import Residual
from simspine_jax.pipeline.ik import Progress, padded_size, quick_to_compile
from simspine_jax.pipeline.options import SimulationOptions

CLIP_FRAMES = 1024
REACH_FRAMES, REACH_WEIGHT = 96, 1e-7 * 50.0**4
"""Overlap for penalties of this weight, in units of one step; it grows with the fourth root of the weight.

A penalty on second differences is a stiff beam on springs: what happens at its end decays over a length that
goes with the fourth root of stiffness over springs.
"""

TOLERANCE = 1e-8
"""Of the solve, so that a frame ends alike in whichever clip it is; in float32 rounding stops it earlier."""

FADED = 0.2
"""Solutions that differ by more, rad or m, in a frame are two poses; between these there is nothing."""

CPU_CLIPS, ACCELERATOR_CLIPS = 4, 64
"""Clips in one call on each device."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What a trial's inverse kinematics aims at: markers in the model's order, NaN where missing."""

    markers: NDArray[np.float64]  # [T K 3] m, the model's ground frame
    weights: NDArray[np.float64]  # [T K]
    rate_hz: float


@dataclass(frozen=True, eq=False)
class Motion:
    """Free coordinates of one trial."""

    q: NDArray[np.float64]  # [T Q]; NaN without a pose
    status: NDArray[np.int64]  # [T] an IKStatus

    @property
    def has_pose(self) -> NDArray[np.bool_]:
        """[T] frames with a pose."""
        return np.asarray(np.isfinite(self.q).all(axis=1))


@dataclass(frozen=True)
class _Clip:
    """Frames ``first`` to ``end`` of a trial, of which those from ``keep`` to ``stop`` are taken.

    Around both, ``fade`` frames on each side are mixed with the neighbour's.
    """

    trial: int
    first: int
    end: int
    keep: int
    stop: int
    fade: int = 0


@dataclass(frozen=True)
class _Static:
    """What a solve is compiled for."""

    setup: IKSetup | None
    residuals: tuple[Residual, ...]
    smooth: bool
    devices: int


def treated_model(model: SpineModel, options: SimulationOptions) -> tuple[SpineModel, tuple[Residual, ...]]:
    """The model with the wanted treatment of its lumbar joints, and the pull toward their rhythm.

    Raises:
        UnsupportedModelError: the lumbar joints are to be free and the model has none that are coupled.
    """
    if options.lumbar == "coupled":
        return model, ()
    stiffness = options.stiffness
    if stiffness is None:
        stiffness = rhythm_stiffness(model, marker_std=max(options.prior_marker_std_m, 1e-6))
    return free_lumbar(model), (rhythm_residual(model, stiffness),)


def marker_weights(model: SpineModel, options: SimulationOptions) -> NDArray[np.float64]:
    """[K] weights of the model's markers."""
    weights = np.ones(model.n_markers)
    for name, weight in options.weights:
        weights[model.marker_indices([name])] = weight
    return weights


def solve_trials(
    model: SpineModel,
    trials: Sequence[Targets],
    scale_factors: NDArray[np.float64] | None,
    options: SimulationOptions,
    *,
    marker_offsets: NDArray[np.float64] | None = None,
    clip_frames: int = CLIP_FRAMES,
    progress: Progress | None = None,
) -> list[Motion]:
    """Solves all trials of a subject.

    Frames of one trial are tied by the options' penalties; with coordinate tasks each frame is OpenSim's
    objective.

    Args:
        model: the generic model, its lumbar joints coupled.
        trials: with markers in its order.
        scale_factors: [B 3] of its bodies; None for ones.
        options: weights, prior, penalties and the treatment of the lumbar joints.
        marker_offsets: [M 3] m, in the bodies' frames.
        clip_frames: longest clip that is solved as one.
        progress: told frames done and all frames, batch by batch.

    Returns:
        for each trial the free coordinates of `treated_model`.
    """
    treated, residuals = treated_model(model, options)
    n_devices = _device_count()
    setup = _opensim_objective(model, options) if options.coordinate_tasks else None
    static = _Static(setup, residuals, options.smooths, n_devices)
    prior = None
    if setup is None:
        prior = Prior(options.prior_marker_std_m, options.prior_coordinate_std)
    factors = np.ones((len(model.body_names), 3)) if scale_factors is None else scale_factors
    offsets = np.zeros((model.n_markers, 3)) if marker_offsets is None else marker_offsets
    dtype = treated.dtype
    present = [np.isfinite(t.markers).all(axis=-1) & (t.weights > 0) for t in trials]
    least = [int(needed_markers(treated, p)) for p in present]
    motions = [
        Motion(
            np.full((len(t.markers), treated.n_free), np.nan),
            np.full(len(t.markers), IKStatus.TOO_FEW_MARKERS),
        )
        for t in trials
    ]
    total, done = sum(len(t.markers) for t in trials), 0
    for clips, size in _batches(trials, least, n_devices, clip_frames, options):
        markers, weights, lengths = map(jnp.asarray, _stacked(trials, clips, size, n_devices, dtype))
        smoothing = Smoothing(options.velocity, options.acceleration, trials[clips[0].trial].rate_hz)
        q, status = _solver(static)(
            treated, markers, weights, lengths, (jnp.asarray(factors, dtype), jnp.asarray(offsets, dtype)),
            jax.tree.map(lambda x: jnp.asarray(x, dtype), (prior, smoothing)),
            jnp.asarray(least[clips[0].trial]),
        )  # fmt: skip
        for row, clip in enumerate(clips):
            _keep(treated, motions[clip.trial], clip, np.asarray(q[row], np.float64), np.asarray(status[row]))
        done += sum(clip.stop - clip.keep for clip in clips)
        if progress is not None:
            progress(done, total)
    return motions


def _opensim_objective(model: SpineModel, options: SimulationOptions) -> IKSetup:
    weights = marker_weights(model, options)
    return IKSetup(
        tuple(MarkerTask(name, float(w)) for name, w in zip(model.marker_names, weights, strict=True)),
        tuple(
            CoordinateTask(task.coordinate, task.weight, value_type="manual_value", value=task.target)
            for task in options.coordinate_tasks
            if task.coordinate in model.coordinate_names
        ),
    )


def seams(n_frames: int, longest: int, overlap: int) -> list[int]:
    """The frames of a trial from which on another clip is taken."""
    return [clip.keep for clip in _cut(0, n_frames, longest, overlap)[1:]]


def _cut(trial: int, n_frames: int, longest: int, overlap: int) -> list[_Clip]:
    """Clips of about one length, none longer than ``longest`` or what four overlaps need."""
    longest = max(longest, padded_size(4 * overlap))
    if n_frames <= longest:
        return [_Clip(trial, 0, n_frames, 0, n_frames)]
    count = -(-n_frames // (longest - 2 * overlap))
    step = -(-n_frames // count)
    return [
        _Clip(trial, max(0, keep - overlap), min(n_frames, keep + step + overlap), keep,
              min(n_frames, keep + step), overlap // 2)
        for keep in range(0, n_frames, step)
    ]  # fmt: skip


def _batches(
    trials: Sequence[Targets], least: Sequence[int], n_devices: int, longest: int, options: SimulationOptions
) -> Iterator[tuple[list[_Clip], int]]:
    """Clips of one padded size, rate and least number of markers, as many as fit in a call."""
    alike: dict[tuple[int, float, int], list[_Clip]] = {}
    for index, trial in enumerate(trials):
        count = len(trial.markers)
        overlap = overlap_frames(options, trial.rate_hz)
        clips = _cut(index, count, longest, overlap)
        size = padded_size(max(clip.end - clip.first for clip in clips))
        alike.setdefault((size, trial.rate_hz, least[index]), []).extend(clips)
    step = _clips_each() * n_devices
    for (size, *_), clips in alike.items():
        for start in range(0, len(clips), step):
            yield clips[start : start + step], size


def overlap_frames(options: SimulationOptions, rate_hz: float) -> int:
    """Frames that clips share on each side; farther from its end a clip hardly feels that it ends."""
    stiffness = options.acceleration * rate_hz**4 / REACH_WEIGHT
    # A velocity is a string on springs, whose reach goes with the square root; it is compared as a beam.
    tension = (options.velocity * rate_hz**2) ** 2 / REACH_WEIGHT**2
    return math.ceil(REACH_FRAMES * max(stiffness, tension) ** 0.25)


def _device_count() -> int:
    """Devices to spread clips over.

    On a CPU, jaxlib's batched Cholesky holds a thread of XLA's pool while it waits for another one, so that
    as many devices as threads wait for each other for ever: one thread must stay free.
    """
    count = len(jax.devices())
    if jax.default_backend() != "cpu":
        return count
    threads = int(os.environ.get("NPROC", 0)) or os.cpu_count() or 1
    return max(1, min(count, threads - 1))


def _clips_each() -> int:
    return CPU_CLIPS if jax.default_backend() == "cpu" else ACCELERATOR_CLIPS


def _stacked(
    trials: Sequence[Targets], clips: Sequence[_Clip], size: int, n_devices: int, dtype: jnp.dtype
) -> tuple[NDArray, NDArray, NDArray]:
    """Markers ``[C S K 3]``, weights ``[C S K]`` and lengths ``[C]``; C is a power of two a device."""
    a_device = -(-len(clips) // n_devices)
    count = n_devices * min(_clips_each(), 1 << (a_device - 1).bit_length())
    n_markers = trials[0].markers.shape[1]
    markers = np.full((count, size, n_markers, 3), np.nan, dtype)
    weights = np.zeros((count, size, n_markers), dtype)
    lengths = np.zeros(count, np.int32)
    for row, clip in enumerate(clips):
        n = clip.end - clip.first
        markers[row, :n] = trials[clip.trial].markers[clip.first : clip.end]
        weights[row, :n] = trials[clip.trial].weights[clip.first : clip.end]
        lengths[row] = n
    return markers, weights, lengths


def _keep(model: SpineModel, motion: Motion, clip: _Clip, q: NDArray, status: NDArray) -> None:
    """Takes a clip's frames into its trial's motion, faded into those of the clip before."""
    motion.status[clip.keep : clip.stop] = status[clip.keep - clip.first : clip.stop - clip.first]
    stop = min(clip.stop + clip.fade, clip.end)
    if clip.keep == 0:
        motion.q[:stop] = q[:stop]
        return
    seam = slice(clip.keep - clip.fade, min(clip.keep + clip.fade, clip.end))
    before, after = motion.q[seam].copy(), q[seam.start - clip.first : seam.stop - clip.first]
    turns = _turns(model, before - after)
    motion.q[seam.start : stop] = q[seam.start - clip.first : stop - clip.first] + turns
    late = ((np.arange(seam.start, seam.stop) >= clip.keep) * 1.0)[:, None]
    share = (np.arange(len(before)) + 0.5)[:, None] / len(before)
    apart = np.abs(after + turns - before).max(axis=1, keepdims=True)
    share = np.where(apart <= FADED, share, late)
    known = np.isfinite(apart)
    motion.q[seam] = np.where(known, (1 - share) * before + share * (after + turns), motion.q[seam])


def _turns(model: SpineModel, apart: NDArray) -> NDArray[np.float64]:
    """[Q] whole turns that bring the later of two solutions nearest to the earlier; 0 for bounded ones."""
    free = model.coordinate_map.free_indices
    turning = np.array([model.rotational[i] for i in free]) & np.isinf(np.asarray(model.upper))
    known = apart[np.isfinite(apart).all(axis=1)]
    if not len(known):
        return np.zeros(len(free))
    return np.where(turning, 2 * np.pi * np.round(np.median(known, axis=0) / (2 * np.pi)), 0.0)


@cache
def _solver(static: _Static) -> Callable[..., tuple[Array, Int[Array, "C T"]]]:
    """The solve of one batch of clips as one program, its clips spread over the devices."""

    def solve(model, markers, weights, lengths, size, pulls, least):
        (factors, offsets), (prior, smoothing) = size, pulls
        found = solve_ik(
            model, markers,
            weights=None if static.setup is not None else weights,
            setup=static.setup,
            prior=prior,
            scale_factors=factors,
            marker_offsets=offsets,
            residuals=static.residuals,
            smoothing=smoothing if static.smooth else None,
            lengths=lengths if static.smooth else None,
            min_markers=least,
            tolerance=TOLERANCE,
        )  # fmt: skip
        posed = found.status != IKStatus.TOO_FEW_MARKERS
        return jnp.where(posed[..., None], found.q, jnp.nan), found.status

    if static.devices == 1:
        return quick_to_compile(solve)
    mesh = Mesh(np.array(jax.devices()[: static.devices]), ("clips",))
    clips, same = PartitionSpec("clips"), PartitionSpec()
    spread = jax.shard_map(
        solve,
        mesh=mesh,
        in_specs=(same, clips, clips, clips, same, same, same),
        out_specs=(clips, clips),
        check_vma=False,
    )
    compiled = jax.jit(spread)

    def placed(model, markers, weights, lengths, *rest):
        # A loaded model lies on one device, and JAX does not move it by itself.
        by_clip = jax.device_put((markers, weights, lengths), NamedSharding(mesh, clips))
        model, rest = jax.device_put((model, rest), NamedSharding(mesh, same))
        return compiled(model, *by_clip, *rest)

    return placed
