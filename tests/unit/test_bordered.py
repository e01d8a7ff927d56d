"""Bordered systems beside NumPy's dense ones."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.solvers.banded import factorise, log_determinant
from simspine_jax.solvers.bordered import (
    border,
    frame_covariances,
    log_determinant_bordered,
    neighbour_covariances,
    shared_covariance,
    solve_bordered,
)

# Sums of some hundred float64 products of about 1.
ROUNDING = 1e-12

T, C, Q, P = 7, 2, 4, 3


@pytest.fixture(name="system")
def random_system():
    """Blocks, and the same matrix dense with clips one after the other and the border last."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, T, C, Q))
    roots = random.normal(size=(T, C, Q, Q))
    diagonal = roots @ roots.swapaxes(-1, -2) + 8 * np.eye(Q)
    sides, corner = random.normal(size=(T, C, Q, P)), 50 * np.eye(P)
    dense = np.zeros((C * T * Q + P,) * 2)

    def rows(clip: int, frame: int) -> slice:
        start = (clip * T + frame) * Q
        return slice(start, start + Q)

    for c in range(C):
        for t in range(T):
            dense[rows(c, t), rows(c, t)] = diagonal[t, c]
            dense[rows(c, t), -P:] = sides[t, c]
            dense[-P:, rows(c, t)] = sides[t, c].T
            for by, couplings in ((1, first), (2, second)):
                if t >= by:
                    dense[rows(c, t), rows(c, t - by)] = np.diag(couplings[t, c])
                    dense[rows(c, t - by), rows(c, t)] = np.diag(couplings[t, c])
    dense[-P:, -P:] = corner
    banded = factorise(*map(jnp.asarray, (diagonal, first, second)))
    return banded, jnp.asarray(sides), jnp.asarray(corner), dense, rows


def test_solutions_are_those_of_the_dense_matrix(system) -> None:
    banded, sides, corner, dense, _ = system
    random = np.random.default_rng(1)
    frames, shared = random.normal(size=(T, C, Q)), random.normal(size=P)
    found = solve_bordered(border(banded, sides, corner), sides, jnp.asarray(frames), jnp.asarray(shared))
    wanted = np.linalg.solve(dense, np.concatenate([frames.swapaxes(0, 1).ravel(), shared]))
    np.testing.assert_allclose(np.asarray(found[0]).swapaxes(0, 1).ravel(), wanted[:-P], atol=ROUNDING)
    np.testing.assert_allclose(found[1], wanted[-P:], atol=ROUNDING)


def test_log_determinants_are_those_of_the_dense_matrix(system) -> None:
    banded, sides, corner, dense, _ = system
    for found, matrix in (
        (log_determinant(banded), dense[:-P, :-P]),
        (log_determinant_bordered(border(banded, sides, corner)), dense),
    ):
        sign, wanted = np.linalg.slogdet(matrix)
        assert sign == 1
        np.testing.assert_allclose(found, wanted, rtol=ROUNDING)


def test_covariances_are_blocks_of_the_inverse(system) -> None:
    banded, sides, corner, dense, rows = system
    factor = border(banded, sides, corner)
    whole = np.linalg.inv(dense)
    alone = np.linalg.inv(dense[:-P, :-P])
    own, shared = frame_covariances(banded), shared_covariance(factor)
    np.testing.assert_allclose(shared, whole[-P:, -P:], atol=ROUNDING)
    through = jnp.einsum("tcqp,pr,tcsr->tcqs", factor.spread, shared, factor.spread)
    for c in range(C):
        for t in range(T):
            np.testing.assert_allclose(own[t, c], alone[rows(c, t), rows(c, t)], atol=ROUNDING)
            np.testing.assert_allclose(
                own[t, c] + through[t, c], whole[rows(c, t), rows(c, t)], atol=ROUNDING
            )


def test_neighbours_covariances_are_entries_of_the_inverse(system) -> None:
    banded, _, _, dense, rows = system
    alone = np.linalg.inv(dense[:-P, :-P])
    for by, found in enumerate(neighbour_covariances(banded)):
        for c in range(C):
            for t in range(T - by):
                wanted = np.diagonal(alone[rows(c, t + by), rows(c, t)])
                np.testing.assert_allclose(found[t, c], wanted, atol=ROUNDING)
            np.testing.assert_array_equal(found[T - by :, c], 0)


def test_a_border_that_is_not_positive_definite_is_told(system) -> None:
    banded, sides, corner, _, _ = system
    assert np.isnan(border(banded, 100 * sides, corner).schur).any()
