"""Subjects whose lumbar levels move in the model's rhythm, and in others: what is learned of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.fitting_worlds import CLIPS, DATA, FRAMES, PRIORS, make_world, without_bias
from benchmarks.metrics import Measurement
from benchmarks.workplace import Workplace
from simspine_jax.capture.noise import DetectorNoise
from simspine_jax.fitting.lumbar import share_precision
from simspine_jax.fitting.subject import FitOptions
from simspine_jax.fitting.uncertainty import half_width, uncertainty_of
from simspine_jax.kinematics.lumbar import rhythm_of
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pipeline.fit import fit_trials
from simspine_jax.pipeline.fit_results import lumbar_found

SUBJECTS = 5
"""In the model's rhythm, and as many in others; seeds from here on."""

FIRST_SEED = 200

BENDS_DEG = {"L5_S1_Flex_Ext": 20.0, "L5_S1_Lat_Bending": 15.0, "L5_S1_axial_rotation": 8.0}
"""Amplitudes of the whole lumbar spine's slow bending about each axis, besides what the actions have.

The actions bend it by 2 degrees, which tells next to nothing of how the levels share that.
"""

SHARE = 0.9
LOW, PAPER = 0.1, 1.0
"""Errors of the detector, over the paper's."""


@dataclass(frozen=True)
class Learned:
    """What was found of one subject.

    Attributes:
        other: whether its rhythm is another than the model's.
        learned: [L] error of the learned shares.
        known: [L] error of the model's.
        inside: [L] whether the learned shares' 90 % intervals hold the truth.
        log_bayes_factor: of a rhythm of its own over the model's.
    """

    other: bool
    learned: NDArray[np.float64]
    known: NDArray[np.float64]
    inside: NDArray[np.bool_]
    log_bayes_factor: float

    @property
    def right(self) -> bool:
        """Whether the evidence is for what is true."""
        return (self.log_bayes_factor > 0) == self.other


def rhythm_low_noise(place: Workplace) -> Iterator[Measurement]:
    """Rhythms learned from a detector that errs by a tenth of the paper's, and what the evidence says."""
    yield from _rows(place, LOW, "")


def rhythm_paper_noise(place: Workplace) -> Iterator[Measurement]:
    """The same at the paper's errors."""
    yield from _rows(place, PAPER, "/paper_noise")


def _rows(place: Workplace, level: float, suffix: str) -> Iterator[Measurement]:
    count = place.size(SUBJECTS, 1)
    with jax.enable_x64(True):
        model = place.spine_float64()
        noise = without_bias(model, level)
        found = [
            _learned(place, model, seed, noise, other=other)
            for seed in range(FIRST_SEED, FIRST_SEED + count)
            for other in (False, True)
        ]
    others = [f for f in found if f.other]
    data = (
        f"{DATA}a detector without constant errors, errors {level:g} times the paper's; {count} subjects in "
        f"the model's rhythm and {count} whose levels' ratios are drawn from the fit's prior, 30 % off; "
        "all bend their lumbar spines to and fro, by 20, 15 and 8 degrees about three axes"
    )
    learned, known = (100 * fmean(float(np.abs(x).mean()) for x in xs) for xs in (
        [f.learned for f in others], [f.known for f in others]
    ))  # fmt: skip
    factors = {other: [round(f.log_bayes_factor, 2) for f in found if f.other == other] for other in (0, 1)}
    yield Measurement(
        f"fitting/lumbar_rhythm_share_err_ratio{suffix}", learned / known, data,
        f"Mean absolute error of shares in the motion about three axes: {learned:.2f} % of the whole where "
        f"learned and {known:.2f} % the model's; the other subjects alone.",
        {"inside_90": fmean(float(f.inside.mean()) for f in others)},
    )  # fmt: skip
    yield Measurement(
        f"fitting/lumbar_evidence_right{suffix}", float(sum(f.right for f in found)), data,
        f"Of {len(found)}; by the sign of the logarithm of the Bayes factor, a rhythm of its own over the "
        "model's.",
        {"log_bayes_factors_model": factors[0], "log_bayes_factors_other": factors[1]},
    )  # fmt: skip


def _learned(place: Workplace, model: SpineModel, seed: int, noise: DetectorNoise, *, other: bool) -> Learned:
    rhythm = rhythm_of(model)
    change = np.zeros(len(rhythm.leads))
    if other:
        precision = share_precision(rhythm, PRIORS.rhythm)
        drawn = np.random.default_rng([seed, 9]).standard_normal(len(change))
        change = np.asarray(np.linalg.solve(np.linalg.cholesky(precision).T, drawn), np.float64)
    mover = _with_change(model, change)
    leaders = {model.free_names[axis.leader]: sum(axis.ratios) for axis in rhythm.axes}
    bends = {name: np.deg2rad(BENDS_DEG[name]) / whole for name, whole in leaders.items()}
    clips, frames = place.size(CLIPS, 2), place.size(FRAMES, 12)
    world = make_world(mover, seed, noise, clips=clips, frames=frames, bends=bends)
    fit = fit_trials(model, world.trials, FitOptions(replace(PRIORS, bias=0.0), lumbar="rhythm"))
    found = lumbar_found(uncertainty_of(fit))
    assert found is not None
    assert found.log_bayes_factor is not None, f"seed {seed}: {found.verdict}"
    true = np.concatenate([
        np.array([mover.coordinate_map.full_matrix[c, axis.leader] for c in axis.coordinates])
        / sum(axis.ratios)
        for axis in rhythm.axes
    ])  # fmt: skip
    share, std, known = (
        np.array([getattr(level, name) for level in found.levels]) for name in ("share", "std", "model_share")
    )
    inside = np.abs(share - true) <= half_width(SHARE) * std
    return Learned(other, share - true, known - true, inside, found.log_bayes_factor)


def _with_change(model: SpineModel, change: NDArray[np.float64]) -> SpineModel:
    """The model with other couplers: its rhythm, and departures from it for each radian of the leader."""
    rhythm, m = rhythm_of(model), model.coordinate_map
    wide = rhythm.coordinate_map
    spread = np.zeros((len(change), model.n_free))
    spread[np.arange(len(change)), rhythm.leads] = change
    full, qpos = (x[:, : model.n_free] + x[:, model.n_free :] @ spread for x in (
        wide.full_matrix, wide.qpos_matrix
    ))  # fmt: skip
    return replace(model, coordinate_map=replace(m, full_matrix=full, qpos_matrix=qpos))
