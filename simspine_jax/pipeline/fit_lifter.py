"""A trained lifter as a fit takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray

from simspine_jax.clips import cameras_in_ground
from simspine_jax.errors import SimspineError
from simspine_jax.io.files import place
from simspine_jax.io.keypoints import Keypoints2D
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.lifting.errors import FILE, LifterErrors, default_errors, read_errors
from simspine_jax.pipeline.fit_lifted import ROOT
from simspine_jax.pipeline.lift import lift_view, view_remarks
from simspine_jax.pipeline.stages import TrialInput
from simspine_jax.skeleton import TRC_NAMES
from simspine_jax.training.data import KEYPOINTS
from simspine_jax.training.loop import RUN_FILE, load_trained
from simspine_jax.training.models import LifterModule
from simspine_jax.training.run import Run

Note = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TrainedLifter:
    """See `fit_lifted.FitLifter`.

    Attributes:
        run: of the training.
        model: trained.
        errors: of its keypoints.
        digest: tells it from all others.
        note: told what makes its results doubtful.
    """

    run: Run
    model: LifterModule
    errors: LifterErrors
    digest: str
    note: Note

    def lift(self, trial: TrialInput) -> NDArray[np.float64]:
        """See `fit_lifted.FitLifter`."""
        views = trial.views
        assert views is not None
        pixels, sure = (np.asarray(x, np.float64) for x in (views.keypoints, views.confidence))
        known = np.isfinite(pixels).all(axis=-1) & np.isfinite(sure)
        view = Keypoints2D(
            views.cameras.names, TRC_NAMES, np.where(known[..., None], pixels, np.nan),
            np.where(known, sure, np.nan), trial.rate_hz,
        )  # fmt: skip
        for remark in view_remarks(self.run, self.model, view):
            self.note(f"{trial.action}: {remark}")
        with jax.enable_x64(False):  # as it was trained
            found = lift_view(self.run, self.model, view, views.cameras)
        order = [found.keypoint_names.index(name) for name in TRC_NAMES]
        positions = found.positions[:, order]
        turn = np.asarray(cameras_in_ground(views.cameras).rotations)[0]
        return (positions - positions[:, [TRC_NAMES.index(ROOT)]]) @ turn.T


def load_lifter(folder: Path, spine: Callable[[], SpineModel], *, note: Note) -> TrainedLifter:
    """The lifter of a training, with its errors as ``simspine evaluate --errors`` measured them.

    Args:
        folder: of the training.
        spine: gives the spine model in float32, for the kinematic lifter.
        note: told where errors were not measured, and what makes results doubtful.

    Raises:
        FileFormatError: the folder has no training of a lifter, or its errors are damaged.
        SimspineError: it lifts a part of the keypoints alone.
    """
    with jax.enable_x64(False):
        run, model, steps = load_trained(folder, spine, note=note)
    if (count := len(KEYPOINTS[run.data.keypoints])) < len(TRC_NAMES):
        raise SimspineError(
            f"{place(folder)}: {run.name} lifts {count} keypoints and a fit needs all {len(TRC_NAMES)}; "
            "valid is a lifter with data.keypoints=all, such as simple_full, temporal_full or kinematic_full"
        )
    path = folder / FILE
    if path.exists():
        errors = read_errors(path)
    else:
        errors = default_errors()
        note(
            f"the errors of the lifter in {place(folder)} were not measured, and those of another are taken; "
            f"'simspine evaluate {place(folder)} --errors' measures them on a built dataset"
        )
    digest = hashlib.sha256((folder / RUN_FILE).read_bytes())
    about = (steps, errors.std.tolist(), errors.alike_s, errors.alike_keypoints, errors.size_std)
    digest.update(repr(about).encode())
    for file in sorted((folder / "hashes").glob("*")):
        digest.update(file.read_bytes())
    return TrainedLifter(run, model, errors, digest.hexdigest(), note)
