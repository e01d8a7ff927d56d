"""Gradient and Hessian from the tree's structure against automatic differentiation of the plain objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.kinematics.coordinates import free_to_full
from simspine_jax.kinematics.forward import forward_kinematics, scaled_frames
from simspine_jax.kinematics.residuals import Slice, Structure, normal_equations, objective

# float64 through two orders of evaluation; measured 1e-15 of the largest entry.
TOLERANCE = 1e-10
WIDTH = 7


def a_residual(q, markers):
    """Bends in both arguments."""
    return jnp.stack([0.3 * jnp.sin(q[0] * q[1]), 2.0 * jnp.sum((markers[0] - markers[-1]) ** 2), q[-1] ** 2])


class Case:
    """A model, random data far from its solution, and both ways to differentiate them."""

    def __init__(self, model, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.model = model
        rows = tuple(range(0, len(model.coordinate_names), 2))
        self.structure = Structure(rows, (a_residual,))
        self.q = jnp.asarray(rng.normal(0, 0.8, (model.n_free, WIDTH)))
        weights = rng.uniform(0, 1, (model.n_markers, WIDTH)) * (rng.random((model.n_markers, WIDTH)) < 0.8)
        factors = rng.uniform(0.8, 1.2, (len(model.body_names), 3)) if model.scalable else None
        offsets = rng.normal(0, 0.02, (model.n_markers, 3))
        self.data = Slice(
            jnp.asarray(rng.normal(0, 0.6, (model.n_markers, 3, WIDTH))),
            jnp.asarray(weights),
            jnp.asarray(rng.normal(0, 0.6, (len(rows), WIDTH))),
            jnp.asarray(rng.uniform(0.1, 1, len(rows))),
            scaled_frames(model, factors, offsets, jnp.float64),
        )
        self.factors, self.offsets = factors, offsets

    def plain(self, q):
        return objective(self.model, self.structure, self.data, q)

    def residuals(self, q1, frame: int):
        """All residuals of a frame, written down by the definition: F is half the sum of their squares."""
        d, model = self.data, self.model
        markers = forward_kinematics(
            model, q1, scale_factors=self.factors, marker_offsets=self.offsets
        ).markers
        coordinates = free_to_full(model.coordinate_map, q1)[np.array(self.structure.task_rows)]
        error = jnp.sqrt(d.weights[:, frame, None]) * (markers - d.targets[..., frame])
        task = jnp.sqrt(d.task_weights) * (coordinates - d.task_targets[:, frame])
        return jnp.concatenate([error.ravel(), task, a_residual(q1, markers)])


@pytest.fixture(scope="module", params=["tangle_model", "arm_model"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.getfixturevalue(request.param))


def close(found, expected) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


@pytest.fixture(scope="module")
def equations(case: Case):
    """With ``bend`` and without it, in one program."""

    def both(q, bend):
        return (
            normal_equations(case.model, case.structure, case.data, q, bend),
            normal_equations(case.model, case.structure, case.data, q),
        )

    return jax.jit(both)


@pytest.fixture(scope="module")
def references(case: Case):
    """F, gradient and Hessian of each frame by automatic differentiation, and the residuals' Jacobian."""

    def total(q):
        return jnp.sum(case.plain(q))

    gradient = jax.grad(total)

    @jax.jit
    def everything(q):
        # Frames are independent: a tangent that moves all frames gives a column of every frame's Hessian.
        columns = jax.vmap(lambda e: jax.jvp(gradient, (q,), (jnp.broadcast_to(e[:, None], q.shape),))[1])
        jacobian = jnp.stack([jax.jacfwd(case.residuals)(q[:, w], w) for w in range(3)], axis=-1)
        values = jnp.stack([0.5 * jnp.sum(case.residuals(q[:, w], w) ** 2) for w in range(3)])
        return case.plain(q), gradient(q), columns(jnp.eye(q.shape[0])), jacobian, values

    return everything(case.q)


def test_the_objective_is_half_the_sum_of_squares(references) -> None:
    value, _, _, _, written = references
    assert close(value[:3], written) < TOLERANCE


def test_value_and_gradient(case: Case, equations, references) -> None:
    for f, g, _ in equations(case.q, jnp.ones(WIDTH)):
        assert close(f, references[0]) < TOLERANCE
        assert close(g, references[1]) < TOLERANCE


def test_without_bend_the_matrix_is_gauss_newtons(case: Case, equations, references) -> None:
    jacobian = references[3]
    expected = jnp.einsum("mqw,mpw->qpw", jacobian, jacobian)
    given, none = equations(case.q, jnp.zeros(WIDTH))
    assert close(none[2][..., :3], expected) < TOLERANCE
    assert close(given[2], none[2]) < TOLERANCE


def test_with_bend_the_matrix_is_the_hessian(case: Case, equations, references) -> None:
    found = equations(case.q, jnp.ones(WIDTH))[0][2]
    assert close(found, references[2]) < TOLERANCE
    assert close(found, jnp.swapaxes(found, 0, 1)) < TOLERANCE
    # The residuals are large enough to tell the two matrices apart.
    assert close(equations(case.q, jnp.zeros(WIDTH))[0][2], references[2]) > 0.05


def test_bend_is_each_frames_own_share(case: Case, equations) -> None:
    share = jnp.linspace(0, 1, WIDTH)
    ends = [equations(case.q, x * jnp.ones(WIDTH))[0][2] for x in (0, 1)]
    mixed = equations(case.q, share)[0][2]
    assert close(mixed, (1 - share) * ends[0] + share * ends[1]) < TOLERANCE
