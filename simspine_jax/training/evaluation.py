"""How good a trained lifter is: predictions of every frame of a set, and a table of their errors.

Positions are compared with the run's target: by default the truth of synthetic trials with soft tissue, which
no rigid model can reach, not the annotation that a pipeline made of them.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.datasets import ClipSequence, Samples
from simspine_jax.errors import ShapeError
from simspine_jax.lifting.errors import LifterErrors, measured_errors
from simspine_jax.lifting.kinematic import KinematicLifter
from simspine_jax.lifting.observations import Lifted, LiftedBody, Observation, root_relative
from simspine_jax.metrics.angles import keypoint_curvature_errors, limit_violations, wrapped
from simspine_jax.metrics.frames import FrameErrors, frame_errors
from simspine_jax.metrics.masked import Masked
from simspine_jax.metrics.pose3d import RIGID_BONES, bone_length_change
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES, LUMBAR_LEVELS, REGIONS
from simspine_jax.tables import Table
from simspine_jax.training.data import Rows, evaluation_samples, prepare
from simspine_jax.training.models import LifterModule
from simspine_jax.training.run import Run

BATCH = 2048
"""Frames lifted at once."""

FLEXION = tuple(f"{level}_Flex_Ext" for level in LUMBAR_LEVELS)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a lifter makes of every frame and view of a set.

    Attributes:
        lifted: ``[M …]``; sizes of a body are the same through a trial's view: their mean over all of it.
        known: ``[M]`` frames that were lifted.
        view: ``[M]`` number of the trial and view.
        trial: ``[M]`` number of the trial.
    """

    lifted: Lifted
    known: NDArray[np.bool_]
    view: NDArray[np.int64]
    trial: NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Errors by region, and what a body model adds; NaN where something can't be said of the lifter.

    Attributes:
        mpjpe_mm: root-relative, by region.
        p_mpjpe_mm: by region, each aligned for itself.
        p_mpjpe_95_mm: ends of the 95 % interval over trials.
        lumbar_flexion_rms_deg: of the worst lumbar level.
        lordosis_rms_deg: by keypoints.
        limit_violations: coordinates beyond their bounds, over all frames.
        bone_change_mm: largest standard deviation of a rigid bone's length within a trial's view.
        frames: frames and views that were compared.
    """

    mpjpe_mm: dict[str, float]
    p_mpjpe_mm: dict[str, float]
    p_mpjpe_95_mm: dict[str, tuple[float, float]]
    lumbar_flexion_rms_deg: float
    lordosis_rms_deg: float
    limit_violations: float
    bone_change_mm: float
    frames: int


def predict(
    model: LifterModule, rows: Rows, view: NDArray[np.int64], trial: NDArray[np.int64]
) -> Predictions:
    """Lifts every frame of the rows.

    Args:
        model: for single frames where the rows are, else for their windows.
        rows: of `evaluation_samples`.
        view: ``[M]`` number of each row's trial and view.
        trial: ``[M]`` number of each row's trial.
    """
    structure, state = nnx.split(model)
    count, size = len(rows), max(BATCH // (rows.length or 1), 1)
    n_rows = len(rows.seen.mask)
    parts: list[Lifted] = []
    for first in range(0, count, size):
        index = jnp.minimum(jnp.arange(first, first + size), count - 1)
        parts.append(jax.tree.map(np.asarray, _lift(structure, state, rows, index)))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    place, inside = _rows_of(rows)
    known = np.zeros(n_rows, bool)
    known[place[inside]] = True

    def scattered(leaf: NDArray) -> NDArray:
        whole = np.zeros((n_rows, *leaf.shape[inside.ndim :]), leaf.dtype)
        whole[place[inside]] = leaf[inside]
        return whole

    lifted = jax.tree.map(scattered, joined)
    if isinstance(model, KinematicLifter):
        lifted = _with_one_size(model, lifted, view, known)
    return Predictions(lifted, known, view, trial)


def _rows_of(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The row of each frame of each sample, and whether it lies in the clip."""
    start = np.asarray(rows.start, np.int64)
    if rows.length is None:
        return start, np.ones(len(start), bool)
    steps = start[:, None] + np.arange(rows.length)
    low, high = (np.asarray(x, np.int64)[:, None] for x in (rows.first, rows.last))
    return np.clip(steps, low, high), (steps >= low) & (steps <= high)


@partial(jax.jit, static_argnums=0)
def _lift(structure, state, rows: Rows, index) -> Lifted:
    seen, _ = rows.take(index)
    return nnx.merge(structure, state, copy=True)(seen)


def lift(model: LifterModule, seen: Observation) -> Lifted:
    """A trained model on one batch, compiled."""
    structure, state = nnx.split(model)
    return _lift_batch(structure, state, seen)


@partial(jax.jit, static_argnums=0)
def _lift_batch(structure, state, seen: Observation) -> Lifted:
    return nnx.merge(structure, state, copy=True)(seen)


def _with_one_size(
    model: KinematicLifter, lifted: Lifted, view: NDArray[np.int64], known: NDArray[np.bool_]
) -> Lifted:
    """The same poses with the sizes' mean over each view, so that bones keep their lengths."""
    pose = lifted.body
    assert pose is not None
    _, number = np.unique(view, return_inverse=True)
    sums = np.zeros((number.max() + 1, pose.log_scales.shape[-1]))
    counts = np.zeros(len(sums))
    np.add.at(sums, number[known], pose.log_scales[known])
    np.add.at(counts, number[known], 1)
    mean = (sums / np.maximum(counts, 1)[:, None])[number].astype(np.float32)
    structure, state = nnx.split(model)
    parts = []
    for first in range(0, len(view), BATCH):
        # The last part is filled up, so that all parts share a compiled program.
        index = np.minimum(np.arange(first, first + BATCH), len(view) - 1)
        part = jax.tree.map(lambda leaf, index=index: leaf[index], pose)
        parts.append(jax.tree.map(np.asarray, _posed(structure, state, part, mean[index])))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(view)], *parts)


@partial(jax.jit, static_argnums=0)
def _posed(structure, state, pose: LiftedBody, log_scales) -> Lifted:
    return nnx.merge(structure, state, copy=True).posed(pose, log_scales)


def evaluate(run: Run, model: LifterModule, clips: ClipSequence) -> Scores:
    """Errors of a lifter over clips.

    Args:
        run: says which keypoints, which 2D input and which target.
        model: trained.
        clips: of a split.

    Raises:
        ShapeError: no frame can be compared.
    """
    _, rows, found = predictions_of(run, model, clips)
    return score(model, found, rows)


def predictions_of(run: Run, model: LifterModule, clips: ClipSequence) -> tuple[Samples, Rows, Predictions]:
    """The frames of clips, cleaned, and what a lifter makes of them; see `evaluate`."""
    samples = evaluation_samples(run, clips)
    frames = samples.frames
    rows = prepare(samples)
    # A trial may lie in several records: sizes of a body and intervals are of trials.
    trial = np.asarray(frames.subject, np.int64) * len(samples.actions) + np.asarray(frames.action, np.int64)
    view = trial * len(samples.cameras.names) + np.asarray(frames.camera, np.int64)
    return samples, rows, predict(model, rows, view, trial)


def lifter_errors(run: Run, model: LifterModule, clips: ClipSequence, *, source: str) -> LifterErrors:
    """How far a lifter's keypoints are off along the cameras' axes, as a fit with it as prior needs to know.

    Args:
        run: says which 2D input and which target.
        model: trained, on all keypoints and not on these clips.
        clips: of a split, all of one rate.
        source: what they are, in words.

    Raises:
        ShapeError: the lifter has a part of the keypoints, or rates differ.
    """
    if run.data.keypoints != "all":
        raise ShapeError(f"{run.name} lifts the keypoints '{run.data.keypoints}'; valid is a lifter of all")
    rates = {float(clip.rate_hz) for clip in clips}
    if len(rates) != 1:
        raise ShapeError(f"The clips have {len(rates)} frame rates; valid is one")
    _, rows, found = predictions_of(run, model, clips)
    wanted, known = wanted_of(rows)
    known = known & found.known[:, None]
    truth = np.where(known[..., None], wanted, np.float32(np.nan))
    return measured_errors(np.asarray(found.lifted.keypoints), truth, found.view, rates.pop(), source)


def wanted_of(rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The rows' root-relative target ``[M K 3]``, m, and where it is known ``[M K]``."""
    root, target = rows.seen.root, jax.tree.map(np.asarray, rows.target)
    wanted = np.asarray(root_relative(jnp.asarray(target.keypoints), root))
    return wanted, target.mask & target.mask[:, root, None]


def score(model: LifterModule, found: Predictions, rows: Rows) -> Scores:
    """Errors of predictions against the rows' targets."""
    seen = rows.seen
    errors = errors_of(rows, found)
    wanted, known = wanted_of(rows)
    mask = known & found.known[:, None]
    args = (jnp.asarray(found.lifted.keypoints), jnp.asarray(wanted), jnp.asarray(mask))
    return Scores(
        {region: errors.mean_mm(False, region) for region in errors.regions},
        {region: errors.mean_mm(True, region) for region in errors.regions},
        {region: errors.interval_mm(True, region) for region in errors.regions},
        _flexion_deg(model, found, rows),
        _lordosis_deg(args, seen),
        _violations(model, found),
        _bone_change_mm(found, errors.ids),
        int(mask.any(axis=-1).sum()),
    )


def errors_of(
    rows: Rows, found: Predictions, action: Sequence[str] | NDArray[np.str_] | None = None
) -> FrameErrors:
    """Errors of predictions, root-relative; frames that weren't lifted have none.

    Args:
        rows: with the targets.
        found: of the same rows.
        action: of each frame.

    Raises:
        ShapeError: there are no frames.
    """
    wanted, known = wanted_of(rows)
    return frame_errors(
        np.where(found.known[:, None, None], found.lifted.keypoints, np.float32(np.nan)),
        wanted,
        known,
        trial=found.trial,
        action=action,
        ids=tuple(KEYPOINT_NAMES.index(name) for name in rows.seen.keypoint_names),
        root=rows.seen.root,
    )


def _flexion_deg(model: LifterModule, found: Predictions, rows: Rows) -> float:
    """Root mean square error of the worst lumbar flexion angle; couplers tell the levels from the leader."""
    if not isinstance(model, KinematicLifter) or found.lifted.body is None:
        return math.nan
    from simspine_jax.kinematics.forward import expand_coordinates

    spine = model.body.model
    full = np.asarray(expand_coordinates(spine, jnp.asarray(found.lifted.body.q)))
    columns = [spine.coordinate_names.index(name) for name in FLEXION]
    axes = [AXIS_NAMES.index(name) for name in FLEXION]
    known = np.asarray(rows.target.kinematics_mask)[:, axes] & found.known[:, None]
    error = wrapped(jnp.asarray(full[:, columns] - np.asarray(rows.target.kinematics)[:, axes]))
    worst = np.asarray(Masked.of(error, jnp.asarray(known)).rms(0).values)
    return math.degrees(float(worst.max()))


def _lordosis_deg(args: tuple, seen: Observation) -> float:
    if seen.keypoint_names != KEYPOINT_NAMES:
        return math.nan
    return math.degrees(float(keypoint_curvature_errors(*args).lordosis.rms().values))


def _violations(model: LifterModule, found: Predictions) -> float:
    if not isinstance(model, KinematicLifter) or found.lifted.body is None:
        return math.nan
    beyond = limit_violations(model.body.model, jnp.asarray(found.lifted.body.q), jnp.asarray(found.known))
    return float(np.asarray(beyond.count).sum())


def _bone_change_mm(found: Predictions, ids: tuple[int, ...]) -> float:
    """Largest standard deviation of a bone of one body within a trial's view."""
    bones = tuple((ids.index(a), ids.index(b)) for a, b in RIGID_BONES if a in ids and b in ids)
    _, number = np.unique(found.view, return_inverse=True)
    order = np.argsort(number, kind="stable")
    lengths = np.bincount(number)
    width, largest = int(lengths.max()), 0.0
    points, known = found.lifted.keypoints[order], found.known[order]
    for first, count in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        part = np.zeros((width, *points.shape[1:]), np.float32)
        there = np.zeros((width, points.shape[1]), bool)
        part[:count], there[:count] = points[first : first + count], known[first : first + count, None]
        spread = np.asarray(bone_length_change(jnp.asarray(part), jnp.asarray(there), bones=bones).filled)
        largest = max(largest, float(spread.max()))
    return 1e3 * largest


def score_table(run: Run, scores: Scores, *, split: str, source: str, steps: int) -> Table:
    """The scores as a table.

    Args:
        run: that was trained.
        scores: of it.
        split: of the dataset.
        source: what the clips are, in words.
        steps: that it was trained.
    """
    regions = list(scores.mpjpe_mm)
    low_high = {name: f"{low:.1f} to {high:.1f}" for name, (low, high) in scores.p_mpjpe_95_mm.items()}
    rows = (
        ("MPJPE, mm", *(scores.mpjpe_mm[r] for r in regions)),
        ("P-MPJPE, mm", *(scores.p_mpjpe_mm[r] for r in regions)),
        ("95 % of P-MPJPE, mm", *(low_high[r] for r in regions)),
    )
    target = "the truth of synthetic trials" if run.data.target == "truth" else "the dataset's annotation"
    extra = (
        ("RMS error of the worst lumbar flexion angle", scores.lumbar_flexion_rms_deg, "degrees"),
        ("RMS error of lordosis by keypoints", scores.lordosis_rms_deg, "degrees"),
        ("Joint limit violations", scores.limit_violations, "in all frames"),
        ("Largest standard deviation of a rigid bone's length within a trial", scores.bone_change_mm, "mm"),
    )
    notes = [f"{what}: {value:.3g} {unit}." for what, value, unit in extra if math.isfinite(value)]
    notes.append(f"MPJPE is from the root keypoint; P-MPJPE aligns each region for itself, against {target}.")
    notes.append(f"Config {run.name}, {steps} steps, seed {run.seed}; commit {commit()}.")
    columns = ("", *(f"{r.capitalize()}({len(REGIONS[r])})" for r in regions))
    return Table(
        f"{run.name}_{split}_{run.data.source}",
        f"Monocular lifting by {run.name}, {run.data.source} 2D keypoints",
        columns,
        rows,
        (0, *(1 for _ in regions)),
        f"{source}, split {split}, {scores.frames} frames and views",
        tuple(notes),
    )


def commit() -> str:
    """The commit of this program's checkout, with ``-dirty`` where files differ; ``unknown`` without one."""
    root = Path(__file__).resolve().parents[2]
    words = (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *w], capture_output=True, text=True, check=True).stdout
            for w in words
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("-dirty" if changed.strip() else "")
