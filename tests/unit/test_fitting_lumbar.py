"""A rhythm of the subject's own and free levels: derivatives, what is learned, evidence, and what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from column_captures import FRAMES, PRIORS, RATE_HZ, RATIOS, column_markers, fit_column, write_column

from simspine_jax.cli_fit import format_fitted
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.fitting.evidence import log_evidence
from simspine_jax.fitting.information import Powers, as_expected
from simspine_jax.fitting.lumbar import LumbarEvidence
from simspine_jax.fitting.solving import all_equations, objective
from simspine_jax.fitting.subject import FitOptions, SubjectFit
from simspine_jax.fitting.uncertainty import uncertainty_of
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.lumbar import free_lumbar
from simspine_jax.pipeline.fit_files import poses_of
from simspine_jax.pipeline.fit_results import (
    Angles,
    FittedLevel,
    FittedLumbar,
    FittedSubject,
    lumbar_found,
    motions_found,
    read_subject_json,
    write_subject_json,
)
from simspine_jax.skeleton import LUMBAR_LEVELS

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

MODEL = np.array(RATIOS)
# L5-S1 turns twice as much as the model's, the others less in proportion; the sum stays.
OTHER = np.concatenate([[2.0], MODEL[1:] * (1 - 1 / MODEL[1:].sum())])
NOISE_M = 0.003
OPTIONS = FitOptions(PRIORS, marker_std_m=NOISE_M, acceleration_std=20.0, adaptive=False, rounds=1)
RHYTHM, FREE = (replace(OPTIONS, lumbar=how) for how in ("rhythm", "free"))
# Sums of float64 in another order, over conditions of some thousands.
ROUNDING = 1e-8


@pytest.fixture(scope="module", name="column")
def column_model(tmp_path_factory: pytest.TempPathFactory) -> SpineModel:
    from simspine_jax.kinematics.model import load_model

    path = tmp_path_factory.mktemp("column") / "column.osim"
    write_column(path)
    return load_model(path)


@pytest.fixture(scope="module", name="other")
def other_fit(column: SpineModel) -> SubjectFit:
    """Of a subject in another rhythm."""
    return fit_column(column, column_markers(column, OTHER, noise_m=NOISE_M), RHYTHM)


@pytest.fixture(scope="module", name="loose")
def loose_fit(column: SpineModel) -> SubjectFit:
    """Of levels that wander from the model's rhythm."""
    markers = column_markers(column, MODEL, wander=np.radians(2.0), noise_m=NOISE_M)
    return fit_column(column, markers, FREE)


def evidence_of(fit: SubjectFit) -> LumbarEvidence:
    assert fit.lumbar is not None
    return fit.lumbar


def found_of(fit: SubjectFit) -> FittedLumbar:
    found = lumbar_found(uncertainty_of(fit))
    assert found is not None
    return found


def test_another_rhythm_is_learned_and_the_evidence_is_for_it(other: SubjectFit) -> None:
    found = found_of(other)
    assert [level.name for level in found.levels] == [f"{level}_Flex_Ext" for level in LUMBAR_LEVELS]
    share, std, known, prior = (
        np.array([getattr(level, name) for level in found.levels])
        for name in ("share", "std", "model_share", "prior_std")
    )
    true = OTHER / OTHER.sum()
    np.testing.assert_allclose(known, MODEL / MODEL.sum())
    assert np.abs(share - true).sum() < 0.5 * np.abs(known - true).sum()
    assert (np.abs(share - true) < 4 * std).all()
    assert (std < 0.7 * prior).all(), "markers on all levels tell of each"
    assert share.sum() == pytest.approx(1.0)
    assert found.log_bayes_factor > 10
    assert found.verdict == "evidence against the model's rhythm: very strong"
    assert found.unmarked == ()


@pytest.mark.parametrize("options", [RHYTHM, FREE])
def test_the_models_rhythm_is_told_where_it_is_true(column: SpineModel, options: FitOptions) -> None:
    markers = [column_markers(column, MODEL, noise_m=NOISE_M, seed=seed) for seed in range(5)]
    factors = [evidence_of(fit_column(column, m, options)).log_bayes_factor for m in markers]
    assert np.mean(factors) < -1
    assert np.sum(np.array(factors) < 0) >= 4


def test_levels_that_wander_are_found_where_they_are_free(column: SpineModel, loose: SubjectFit) -> None:
    evidence = evidence_of(loose)
    assert evidence.log_bayes_factor > 5
    assert evidence.verdict().startswith("evidence against")
    assert found_of(loose).levels == ()
    seen = column_markers(column, MODEL, wander=np.radians(2.0), noise_m=NOISE_M)
    coupled = fit_column(column, seen, OPTIONS)
    assert coupled.lumbar is None
    true = column_markers(column, MODEL, wander=np.radians(2.0), noise_m=0.0)
    off = [np.abs(fit.markers[0] - true).mean() for fit in (loose, coupled)]
    assert off[0] < off[1]


def test_departures_that_only_priors_tell_of_are_not_seen(column: SpineModel, loose: SubjectFit) -> None:
    """However small their deviations are, which a prior of 2 degrees makes them."""
    data, names = loose.whole.data, loose.whole.fixed.model.free_names
    told = uncertainty_of(loose).observability
    faint = replace(data, marker_precision=1e-9 * data.marker_precision)
    sure = uncertainty_of(replace(loose, whole=replace(loose.whole, data=faint)))
    assert set(names[column.n_free :]) <= set(sure.unseen())
    np.testing.assert_allclose(sure.observability[column.n_free :], 1.0, atol=1e-3)
    assert (told[: column.n_free] < 0.1).all()
    assert ((told[column.n_free :] > 0.5) & (told[column.n_free :] < 0.95)).all()


@pytest.mark.parametrize(
    "options", [replace(RHYTHM, priors=replace(PRIORS, rhythm=1e-4)), replace(FREE, lumbar_std=1e-5)]
)
def test_without_deviation_both_are_the_coupled_model(column: SpineModel, options: FitOptions) -> None:
    evidence = evidence_of(fit_column(column, column_markers(column, OTHER, noise_m=NOISE_M), options))
    # What the coupled descent has left over to gain is the rest.
    assert evidence.log_free == pytest.approx(evidence.log_coupled, abs=0.01)


def test_derivatives_by_the_rhythm_are_those_of_the_objective(other: SubjectFit) -> None:
    setting, whole, q = other.setting, other.whole, jnp.asarray(other.q)
    layout, theta = setting.layout, other.theta + 0.01
    e = jax.jit(all_equations, static_argnums=0)(setting, whole, q, theta)
    by_q, by_theta = jax.jit(jax.grad(lambda q, t: objective(setting, whole, q, t), (0, 1)))(q, theta)
    np.testing.assert_allclose(e.gradient, by_q, atol=ROUNDING * np.abs(by_q).max())
    np.testing.assert_allclose(e.shared_gradient, by_theta, atol=ROUNDING * np.abs(by_theta).max())
    assert np.abs(layout.shares(by_theta)).min() > 0


@pytest.mark.slow
def test_evidence_is_that_of_the_dense_matrix(loose: SubjectFit) -> None:
    setting, whole, q, theta, power = loose.setting, loose.whole, jnp.asarray(loose.q), loose.theta, 1.5
    still = replace(whole, data=as_expected(setting, whole, q, theta, Powers(power, power)))
    blind = replace(
        still, data=replace(still.data, marker_precision=jnp.zeros_like(still.data.marker_precision))
    )
    point = jnp.concatenate([q.ravel(), theta])

    @jax.jit
    def total(problem: Any, x: jax.Array) -> jax.Array:
        return objective(setting, problem, x[: q.size].reshape(q.shape), x[q.size :])

    kept = np.concatenate([np.ones(q.size), np.asarray(whole.free)]) > 0
    second = jax.jit(jax.hessian(total, argnums=1))
    matrix, prior = (np.asarray(second(w, point))[np.ix_(kept, kept)] for w in (still, blind))
    # The body's place has no prior, so it has no part in what is known beforehand.
    root = np.tile(np.arange(q.shape[-1]) < 6, FRAMES)
    known = np.concatenate([~root, np.ones(len(matrix) - q.size, bool)])
    costs = np.array([float(total(w, point)) for w in (whole, still)])
    first = jax.jit(jax.grad(total, argnums=1))
    slopes = [np.asarray(first(w, point))[kept] for w in (whole, still)]
    gradient = power * (slopes[0] - slopes[1]) + slopes[1]
    wanted = -(power * (costs[0] - costs[1]) + costs[1]) + 0.5 * (
        gradient[: q.size] @ np.linalg.solve(matrix[: q.size, : q.size], gradient[: q.size])
        - np.linalg.slogdet(matrix)[1]
        + np.linalg.slogdet(prior[np.ix_(known, known)])[1]
    )
    found = log_evidence(setting, whole, q, theta, jnp.zeros(q.shape, bool), power)
    np.testing.assert_allclose(found, wanted, rtol=ROUNDING)


@pytest.mark.parametrize("how", ["other", "loose"])
def test_files_hold_each_levels_own_angle(column: SpineModel, how: str, request) -> None:
    fit: SubjectFit = request.getfixturevalue(how)
    freed = free_lumbar(column, ("Flex_Ext",))
    times = [np.arange(FRAMES) / RATE_HZ]
    (motion,) = motions_found(uncertainty_of(fit), Angles((), lambda q, markers, scale: q), times)
    assert motion.free_names == freed.free_names
    placed = forward_kinematics(
        freed, jnp.asarray(motion.q), scale_factors=jnp.asarray(fit.scale_factors),
        marker_offsets=jnp.asarray(fit.marker_offsets),
    ).markers  # fmt: skip
    np.testing.assert_allclose(placed, fit.markers[0], atol=1e-9)
    np.testing.assert_allclose(poses_of(fit, 0).q, motion.q, atol=1e-12)
    assert (motion.q_std > 0).all()


def test_a_subjects_lumbar_levels_come_back_and_are_told(tmp_path: Path) -> None:
    levels = (FittedLevel("L5_S1_Flex_Ext", 0.2, 0.02, 0.14, 0.04),)
    lumbar = FittedLumbar("rhythm", -5.0, -1.0, 4.0, "evidence against it: strong", ("lumbar2",), levels)
    subject = FittedSubject(
        "S1", "converged", 3, 1.0, None, None, None, 1.0, (), (), (), (), (), (), (), (), lumbar
    )
    path, key = tmp_path / "S1.json", {"version": "1"}
    for result in (subject, replace(subject, lumbar=None)):
        write_subject_json(path, result, key, [])
        back = read_subject_json(path, key, tmp_path, [])
        assert back is not None
        assert replace(back, resumed=False) == result
    text = format_fitted(subject)
    assert "lumbar levels rhythm: log evidence -1.0, coupled -5.0; evidence against it: strong" in text
    assert "no marker on lumbar2" in text
    assert "20.0 ± 2.0" in text


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (0.5, "bare mention"),
        (-2.0, "for the model's rhythm: positive"),
        (4.0, "against the model's rhythm: strong"),
        (-9.0, "for the model's rhythm: very strong"),
    ],
)
def test_bayes_factors_have_words(factor: float, words: str) -> None:
    assert words in LumbarEvidence("free", 1.0, 1.0 + factor, 1.0).verdict()


def test_treatments_that_are_none_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="coupled, rhythm, free"):
        FitOptions(lumbar="stiff")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="rhythm's deviation is 0"):
        FitOptions(replace(PRIORS, rhythm=0.0), lumbar="rhythm")
    with pytest.raises(ShapeError, match="lumbar_std"):
        FitOptions(lumbar_std=0.0)
