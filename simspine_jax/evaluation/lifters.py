"""Trained lifters on a split: their errors frame by frame, and which trainings a folder holds.

Positions are relative to the root keypoint along the camera's axes, so that MPJPE is root-relative, as the
paper's section 4.3 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from simspine_jax.clips import Clip
from simspine_jax.datasets import ClipSequence, RecordSequence
from simspine_jax.errors import ShapeError
from simspine_jax.evaluation.angles import AngleErrors, angle_errors
from simspine_jax.evaluation.views import Reference
from simspine_jax.kinematics.forward import expand_coordinates
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.metrics.angles import vertebral_angles
from simspine_jax.metrics.frames import FrameErrors
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES
from simspine_jax.training.checkpoints import FOLDER, Checkpoints
from simspine_jax.training.data import Rows
from simspine_jax.training.evaluation import Predictions, errors_of, predictions_of, wanted_of
from simspine_jax.training.loop import RUN_FILE, check_same_run, load_trained
from simspine_jax.training.run import Run, load_run, with_settings

Input2D = Literal["detected", "truth"]
INPUTS: tuple[Input2D, ...] = ("detected", "truth")
"""2D keypoints that lifters are trained and evaluated on, in the order of the paper's tables."""

CONFIGS: tuple[str, ...] = ("simple_spine", "simple_full", "temporal_full", "kinematic_full")
"""The package's runs, from the paper's baselines on."""

Note = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class LifterErrors:
    """A trained lifter and its errors.

    Attributes:
        name: of the training's folder.
        run: that was trained.
        source: 2D keypoints that it was evaluated on.
        steps: that it was trained; fewer than the run's where it is not finished.
        errors: of every frame and view, root-relative.
        angles: of the spine; of a lifter without a body, curvature alone; None of one without all keypoints.
    """

    name: str
    run: Run
    source: Input2D
    steps: int
    errors: FrameErrors
    angles: AngleErrors | None = None


def trainings(runs: Path) -> tuple[Path, ...]:
    """The folders of trainings in a folder and below, those of the package's runs first; none if it lacks."""
    found = [path.parent for path in runs.rglob(RUN_FILE)]
    return tuple(sorted(found, key=lambda folder: _place(folder.name)))


def _place(name: str) -> tuple[int, int, str]:
    """Where the paper's tables would have a training: by its 2D, then by its lifter."""
    first = next((i for i, config in enumerate(CONFIGS) if name.startswith(config)), len(CONFIGS))
    second = next((i for i, source in enumerate(INPUTS) if name.endswith(source)), len(INPUTS))
    return second, first, name


def package_runs(config: str, target: Reference) -> Iterator[tuple[str, Run]]:
    """The package's four runs with each kind of 2D, each by the name of its folder.

    Args:
        config: of the dataset that they learn from.
        target: what of it they learn.
    """
    for name in CONFIGS:
        for source in INPUTS:
            settings = (f"data.config={config}", f"data.source={source}", f"data.target={target}")
            yield f"{name}_{source}", with_settings(load_run(name), settings)


def is_finished(folder: Path, run: Run) -> bool:
    """Whether a folder holds this training, with all of its steps done.

    Raises:
        SimspineError: it holds another training, or its run is damaged.
    """
    if not (folder / RUN_FILE).exists() or not (folder / FOLDER).is_dir():
        return False
    check_same_run(folder, run)
    checkpoints = Checkpoints(folder / FOLDER, keep=run.keep, read_only=True, note=lambda _: None)
    done = checkpoints.steps
    checkpoints.close()
    return bool(done) and done[-1] >= run.steps


def training_errors(
    folder: Path,
    clips: ClipSequence,
    spine: Callable[[], SpineModel],
    *,
    target: Reference,
    source: Input2D | None = None,
    note: Note = print,
) -> LifterErrors:
    """Errors of the training in a folder.

    Args:
        folder: of it.
        clips: of a split.
        spine: gives the spine model; called for lifters of all keypoints.
        target: what the clips hold to compare with.
        source: 2D keypoints; None for those of the training.
        note: told of damaged checkpoints.

    Raises:
        FileFormatError: there is no run or no good checkpoint.
        ShapeError: no frame can be compared.
    """
    run, model, steps = load_trained(folder, spine, note=note)
    used = source or run.data.source
    run_here = replace(run, data=replace(run.data, source=used, target=target))
    samples, rows, found = predictions_of(run_here, model, clips)
    whole = rows.seen.keypoint_names == KEYPOINT_NAMES
    angles = _angle_errors(spine(), rows, found) if whole else None
    action = np.array(samples.actions)[np.asarray(samples.frames.action)]
    return LifterErrors(folder.name, run, used, steps, errors_of(rows, found, action), angles)


def _angle_errors(spine: SpineModel, rows: Rows, found: Predictions) -> AngleErrors:
    known, body = found.known[:, None], found.lifted.body
    rotations = q = None
    if body is not None:
        full = np.where(known, np.asarray(expand_coordinates(spine, jnp.asarray(body.q))), np.nan)
        axes = full[:, [spine.coordinate_names.index(name) for name in AXIS_NAMES]]
        rotations, q = np.asarray(vertebral_angles(jnp.asarray(axes))), np.where(known, body.q, np.nan)
    true = np.where(rows.target.kinematics_mask, rows.target.kinematics, np.nan)
    wanted, there = wanted_of(rows)
    return angle_errors(
        spine,
        rotations,
        np.asarray(vertebral_angles(jnp.asarray(true))),
        np.where(known[..., None], found.lifted.keypoints, np.nan),
        np.where(there[..., None], wanted, np.nan),
        q,
    )


def target_of_clips(clips: ClipSequence) -> Reference:
    """What clips are compared with: the truth, where they have it, or else the annotation.

    Raises:
        ShapeError: some clips have a truth and others have none.
    """
    masks = [values["true_keypoints_3d_mask"].any() for values in clips.stream(["true_keypoints_3d_mask"])]
    if any(masks) and not all(masks):
        raise ShapeError(
            f"{sum(masks)} of the {len(masks)} clips have a truth, and the others an annotation alone; valid "
            "are clips of one kind, chosen by subjects and actions"
        )
    return "truth" if masks and all(masks) else "annotation"


class ChosenClips(RecordSequence[Clip]):
    """Some clips of a sequence, read where they are needed.

    Args:
        clips: all of them.
        places: of those to take, in their order.
    """

    def __init__(self, clips: ClipSequence, places: Sequence[int]) -> None:
        super().__init__(Clip)
        self._clips, self._places = clips, tuple(places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int, names: Sequence[str]) -> dict:
        """These fields of one clip."""
        return self._clips.read(self._places[index], names)
