"""Weights of markers that are learned through inverse kinematics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.fitting.weights import Seen, learn_weights, weighted_error

FRAMES, BAD = 12, 3


def seen_by(model: ssj.SpineModel, seed: int) -> Seen:
    """A marker is 5 cm beside its place in all frames, the others have 1 mm of noise."""
    random = np.random.default_rng(seed)
    q = 0.4 * random.normal(size=(FRAMES, model.n_free))
    factors = np.ones((len(model.body_names), 3))
    truth = np.asarray(ssj.forward_kinematics(model, np.clip(q, model.lower, model.upper)).markers)
    found = truth + random.normal(0, 0.001, truth.shape)
    found[:, BAD] += (0.05, 0.0, 0.0)
    return Seen(found, truth, factors)


@pytest.mark.slow
def test_a_marker_that_is_always_astray_loses_its_weight(tangle_model: ssj.SpineModel) -> None:
    scored = [n for i, n in enumerate(tangle_model.marker_names) if i != BAD]
    told = []
    learned = learn_weights(
        tangle_model, [seen_by(tangle_model, 0)], scored, steps=15, learning_rate=0.4,
        progress=lambda step, error: told.append((step, error)),
    )  # fmt: skip
    assert [step for step, _ in told] == list(range(16))
    assert learned.errors_m == tuple(error for _, error in told)
    assert learned.weights.mean() == pytest.approx(1)
    assert learned.weights.argmin() == BAD
    assert min(learned.errors_m) < 0.6 * learned.errors_m[0]
    # On frames that it hasn't seen.
    other = seen_by(tangle_model, 1)
    before = weighted_error(tangle_model, other, np.ones(tangle_model.n_markers), scored)
    assert weighted_error(tangle_model, other, learned.weights, scored) < 0.8 * before


def test_what_can_not_be_learned_from_is_refused(tangle_model: ssj.SpineModel) -> None:
    seen = seen_by(tangle_model, 0)
    with pytest.raises(ShapeError, match="0 subjects"):
        learn_weights(tangle_model, [], tangle_model.marker_names)
    with pytest.raises(ShapeError, match="0 steps"):
        learn_weights(tangle_model, [seen], tangle_model.marker_names, steps=0)
    with pytest.raises(UnknownNameError):
        learn_weights(tangle_model, [seen], ["nobody's"])


@pytest.mark.slow
def test_without_a_true_place_there_is_nothing_to_learn_from(tangle_model: ssj.SpineModel) -> None:
    seen = seen_by(tangle_model, 0)
    nowhere = replace(seen, truth=np.full_like(seen.truth, np.nan))
    with pytest.raises(ShapeError, match="true place of a scored marker"):
        learn_weights(tangle_model, [nowhere], tangle_model.marker_names, steps=1)
