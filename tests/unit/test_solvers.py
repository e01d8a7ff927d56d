"""The linear algebra and the bounded Levenberg-Marquardt on problems whose answers are known otherwise."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from simspine_jax.solvers import banded
from simspine_jax.solvers.cholesky import solve_spd
from simspine_jax.solvers.levenberg_marquardt import Options, Route, Tracked, track

# Both sides solve in float64 what is conditioned below 1e4.
LINEAR = 1e-10


def dense(diagonal: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[C TQ TQ] the matrix that the blocks stand for."""
    frames, clips, n = first.shape
    matrix = np.zeros((clips, frames, n, frames, n))
    for t in range(frames):
        matrix[:, t, :, t] = diagonal[t]
        for back, values in ((1, first), (2, second)):
            if t >= back:
                matrix[:, t, :, t - back] = values[t][:, :, None] * np.eye(n)
                matrix[:, t - back, :, t] = values[t][:, :, None] * np.eye(n)
    return matrix.reshape(clips, frames * n, frames * n)


def blocks(frames: int, clips: int, n: int, coupling: str, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Positive definite; what stands before a clip's first frame is not zero, and must not count."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(frames, clips, n, n))
    first, second = rng.normal(0, 2, (2, frames, clips, n))
    first *= coupling in ("both", "first")
    second *= coupling in ("both", "second")
    diagonal = root @ np.swapaxes(root, -1, -2)
    reach = 2 * (np.abs(first).max() + np.abs(second).max())
    return diagonal + (reach + 1) * np.eye(n), first, second


@pytest.mark.parametrize("coupling", ["both", "first", "second", "none"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (2, 1, 3), (2, 2, 1), (3, 2, 5), (17, 3, 4)])
def test_banded_systems_are_solved_as_dense_ones(shape, coupling: str) -> None:
    parts = blocks(*shape, coupling)
    rhs = np.random.default_rng(1).normal(size=shape)
    x = np.asarray(jax.jit(lambda a, b: banded.solve(banded.factorise(*a), b))(parts, rhs))
    flat = np.moveaxis(rhs, 1, 0).reshape(shape[1], -1, 1)
    expected = np.linalg.solve(dense(*parts), flat).reshape(shape[1], shape[0], shape[2])
    np.testing.assert_allclose(np.moveaxis(x, 1, 0), expected, rtol=LINEAR, atol=LINEAR)


def test_the_factor_is_the_dense_cholesky_factor() -> None:
    frames, n = 6, 3
    parts = blocks(frames, 1, n, "both", seed=2)
    factor = banded.factorise(*map(jnp.asarray, parts))
    lower = np.linalg.cholesky(dense(*parts)[0]).reshape(frames, n, frames, n)
    for t in range(frames):
        np.testing.assert_allclose(factor.inverse[t, 0] @ lower[t, :, t], np.eye(n), atol=LINEAR)
        if t:
            np.testing.assert_allclose(factor.below[t, 0], lower[t, :, t - 1], atol=LINEAR)


def test_an_indefinite_clip_is_nan_and_its_neighbour_is_not() -> None:
    diagonal, first, second = blocks(5, 2, 3, "both", seed=3)
    diagonal[2, 1] -= 1e3 * np.eye(3)
    x = np.asarray(banded.solve(banded.factorise(diagonal, first, second), jnp.ones((5, 2, 3))))
    assert np.isfinite(x[:, 0]).all()
    assert np.isnan(x[:, 1]).any()


def test_many_small_systems_are_solved_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(50, 7, 7))
    matrix, rhs = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(7), rng.normal(size=(50, 7))
    x = np.asarray(solve_spd(jnp.moveaxis(matrix, 0, -1), jnp.asarray(rhs.T))).T
    np.testing.assert_allclose(x, np.linalg.solve(matrix, rhs[..., None])[..., 0], rtol=1e-9, atol=1e-9)


def test_a_matrix_that_is_not_positive_definite_gives_nan_alone() -> None:
    matrix = np.stack([np.eye(3), -np.eye(3)], axis=-1)
    x = np.asarray(solve_spd(jnp.asarray(matrix), jnp.ones((3, 2))))
    np.testing.assert_array_equal(x[:, 0], 1)
    assert np.isnan(x[:, 1]).all()


def nothing_yet(problems: int, n: int) -> Tracked:
    return Tracked.nothing(problems, jnp.full((1, n), jnp.nan))


def route(
    problems: int,
    lanes: int,
    *,
    wanted=None,
    allowed=None,
    step: int = 1,
    retry: bool = False,
    own: bool = False,
    inside: float = np.nan,
    n: int = 1,
) -> Route:
    run = -(-problems // lanes)
    begin = jnp.arange(lanes, dtype=jnp.int32) * run
    every = jnp.ones(problems, bool)
    masks = [every if mask is None else jnp.asarray(mask) for mask in (wanted, allowed)]
    end = jnp.minimum(begin + run, problems)
    direction, switches = jnp.asarray(step, jnp.int32), [jnp.asarray(x) for x in (retry, own)]
    return Route(begin, end, *masks, direction, *switches, jnp.full(n, inside))


class Linear:
    """Problems ``|A_t x - b_t|^2 / 2`` within [-0.5, 0.5]."""

    def __init__(self, problems: int = 30, rows: int = 9, n: int = 4, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.a, self.b = rng.normal(size=(problems, rows, n)), 2 * rng.normal(size=(problems, rows))
        self.n, self.problems = n, problems
        self.bounds = (jnp.full(n, -0.5), jnp.full(n, 0.5))
        a, b = jnp.asarray(self.a), jnp.asarray(self.b)

        def evaluate(q, index, bend):
            r = jnp.einsum("wmn,nw->wm", a[index], q) - b[index]
            g = jnp.einsum("wmn,wm->nw", a[index], r)
            return 0.5 * jnp.sum(r * r, axis=1), g, jnp.einsum("wmn,wmk->nkw", a[index], a[index])

        self.run = jax.jit(
            lambda start, way, initial, limit=60: track(
                evaluate, start, way, self.bounds, initial, limit, Options(tolerance=1e-14)
            )
        )


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear()


@pytest.fixture(scope="module")
def linear_answers(linear: Linear) -> np.ndarray:
    pairs = zip(linear.a, linear.b, strict=True)
    return np.stack([lsq_linear(a, b, (-0.5, 0.5), method="bvls", tol=1e-14).x for a, b in pairs])


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("lanes", [1, 4, 30])
def test_bounded_linear_least_squares_as_scipy_solves_it(linear, linear_answers, lanes, step) -> None:
    found = linear.run(jnp.zeros((4, lanes)), route(30, lanes, step=step, n=4), nothing_yet(30, 4))
    at_bound = np.abs(linear_answers) == 0.5
    assert 0.1 < at_bound.mean() < 0.9
    np.testing.assert_allclose(found.q, linear_answers, atol=1e-6)
    assert found.converged.all()
    residual = np.einsum("tmn,tn->tm", linear.a, linear_answers) - linear.b
    np.testing.assert_allclose(found.objective, 0.5 * np.sum(residual**2, axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.curvature, np.sum(linear.a**2, axis=1), rtol=1e-12)


@pytest.mark.parametrize("step", [1, -1])
def test_only_wanted_problems_are_solved(linear, linear_answers, step: int) -> None:
    wanted = np.random.default_rng(0).random(30) < 0.4
    wanted[:8] = False  # a lane with nothing to do
    found = linear.run(jnp.zeros((4, 4)), route(30, 4, wanted=wanted, step=step), nothing_yet(30, 4))
    np.testing.assert_allclose(found.q[wanted], linear_answers[wanted], atol=1e-6)
    assert np.isnan(found.q[~wanted]).all()
    assert np.isinf(found.objective[~wanted]).all()
    assert not found.iterations[~wanted].any()
    assert not found.converged[~wanted].any()


def test_too_few_iterations_leave_problems_unconverged(linear: Linear) -> None:
    found = linear.run(jnp.zeros((4, 4)), route(30, 4), nothing_yet(30, 4), 1)
    assert (found.iterations == 1).all()
    assert not found.converged.all()
    assert np.isfinite(found.q).all()


def test_results_are_kept_where_nothing_is_better(linear: Linear, linear_answers) -> None:
    first = linear.run(jnp.zeros((4, 4)), route(30, 4), nothing_yet(30, 4))
    again = linear.run(jnp.full((4, 4), 0.3), route(30, 4, step=-1), first)
    np.testing.assert_allclose(again.q, linear_answers, atol=1e-6)
    assert (again.objective <= first.objective).all()
    assert (again.iterations >= first.iterations).all()


def wells(q, index, bend):
    """Two minima at about +-1, of which +1 is the better: ``(q^2 - 1)^2 / 2 + (q - 1)^2 / 20`` in 1D."""

    def value(x):
        return 0.5 * (x**2 - 1) ** 2 + 0.05 * (x - 1) ** 2

    x = q[0]
    slope = jax.vmap(jax.grad(value))(x)
    gauss_newton = 4 * x**2 + 0.1
    full = jax.vmap(jax.hessian(value))(x)
    return value(x), slope[None], (gauss_newton + bend * (full - gauss_newton))[None, None]


@pytest.fixture(scope="module")
def solve_wells():
    bounds = (jnp.full(1, -jnp.inf), jnp.full(1, jnp.inf))
    return jax.jit(lambda start, way, initial: track(wells, start, way, bounds, initial, 50, Options()))


@pytest.fixture(scope="module")
def worse_wells(solve_wells) -> Tracked:
    """All nine in the worse minimum, but the middle one, of which the better is known."""
    worse = solve_wells(jnp.full((1, 1), -1.5), route(9, 1), nothing_yet(9, 1))
    np.testing.assert_allclose(worse.q, -0.947, atol=1e-2)
    q, f = worse.q.at[MIDDLE].set(1.0), worse.objective.at[MIDDLE].set(0.0)
    return replace(worse, q=q, objective=f)


MIDDLE = 4


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("hole", [False, True])
def test_retrying_carries_a_good_start_to_its_neighbours(solve_wells, worse_wells, step, hole: bool) -> None:
    """Through all that lie in its direction, over those that are not allowed, as long as it helps."""
    wanted, allowed = np.zeros(9, bool), np.ones(9, bool)
    allowed[MIDDLE + step] = not hole
    wanted[MIDDLE + (2 if hole else 1) * step] = True
    way = route(9, 1, wanted=wanted, allowed=allowed, step=step, retry=True)
    found = solve_wells(jnp.full((1, 1), -1.5), way, worse_wells)
    reached = (np.arange(9) * step >= MIDDLE * step) & allowed
    np.testing.assert_allclose(found.q[reached, 0], 1.0, atol=1e-3)
    np.testing.assert_array_equal(found.q[~reached], worse_wells.q[~reached])


def test_each_can_be_retried_from_its_own_place(solve_wells) -> None:
    guesses = jnp.asarray(np.where(np.arange(9) % 3, 1.4, -1.4))[:, None]
    initial = replace(nothing_yet(9, 1), q=guesses)
    found = solve_wells(jnp.full((1, 1), -1.5), route(9, 1, retry=True, own=True), initial)
    np.testing.assert_allclose(found.q[:, 0], np.where(np.arange(9) % 3, 1.0, -0.947), atol=1e-2)
    assert found.converged.all()


def test_what_a_bound_holds_in_a_worse_place_is_freed() -> None:
    """A well beyond whose rim a bound lies: from the bound the slope leads into the bound."""
    bounds = (jnp.full(1, -1.5), jnp.full(1, 2.0))

    def evaluate(q, index, bend):
        # Lowest at 1; left of -0.5 it falls again.
        x = q[0]
        value = jnp.where(x > -0.5, 0.5 * (x - 1) ** 2, 0.5 * 1.5**2 + 0.3 * (x + 0.5))
        slope = jnp.where(x > -0.5, x - 1, 0.3)
        return value + 2, slope[None], jnp.ones((1, 1, x.shape[0]))

    run = jax.jit(lambda start, way, initial: track(evaluate, start, way, bounds, initial, 50, Options()))
    stuck = run(jnp.full((1, 2), -1.2), route(6, 2), nothing_yet(6, 1))
    np.testing.assert_array_equal(stuck.q, -1.5)
    freed = run(jnp.zeros((1, 2)), route(6, 2, retry=True, own=True, inside=0.0), stuck)
    np.testing.assert_allclose(freed.q, 1.0, atol=1e-4)
    again = run(jnp.zeros((1, 2)), route(6, 2, retry=True, own=True), stuck)
    np.testing.assert_array_equal(again.q, -1.5)


@pytest.mark.parametrize("step", [1, -1])
def test_idle_lanes_take_over_what_others_have_before_them(linear: Linear, linear_answers, step: int) -> None:
    """One of four lanes owns 17 problems; beyond them lies one that is solved already."""
    begin, end = (12, 29) if step > 0 else (1, 18)
    beyond = end if step > 0 else begin - 1
    mine = (np.arange(30) >= begin) & (np.arange(30) < end)
    way = replace(
        route(30, 4, step=step, n=4, wanted=mine),
        begin=jnp.array([begin, 0, 0, 0], jnp.int32),
        end=jnp.array([end, 0, 0, 0], jnp.int32),
    )
    initial = nothing_yet(30, 4)
    initial = replace(
        initial,
        q=initial.q.at[beyond].set(linear_answers[beyond]),
        objective=initial.objective.at[beyond].set(0.0),
    )
    found = linear.run(jnp.zeros((4, 4)), way, initial)
    np.testing.assert_allclose(found.q[mine], linear_answers[mine], atol=1e-6)
    assert found.converged[mine].all()
    assert not found.iterations[~mine].any()
    # The owner goes in its direction; what another took over is gone through from the far end.
    along, against = (0, 1) if step > 0 else (1, 0)
    assert found.tried[mine, along].sum() >= 4
    assert found.tried[mine, against].sum() >= 4
    assert not found.tried[~mine].any()


def test_retries_note_from_which_neighbours_they_were(solve_wells, worse_wells) -> None:
    """What improves is worth trying from again; what was tried in vain is not."""
    wanted = np.zeros(9, bool)
    wanted[MIDDLE - 1] = True
    found = solve_wells(jnp.full((1, 1), -1.5), route(9, 1, wanted=wanted, step=-1, retry=True), worse_wells)
    np.testing.assert_allclose(found.q[: MIDDLE + 1, 0], 1.0, atol=1e-3)
    assert found.tried[:MIDDLE, 1].all()
    again = solve_wells(jnp.full((1, 1), -1.5), route(9, 1, retry=True, own=True), found)
    np.testing.assert_array_equal(again.tried, found.tried)


def test_a_hilltop_is_not_taken_for_a_solution() -> None:
    """A pendulum's potential, with Gauss-Newton's matrix far off and the full one indefinite above."""

    def evaluate(q, index, bend):
        x = q[0]
        return 1 - jnp.cos(x), jnp.sin(x)[None], (1 + bend * (jnp.cos(x) - 1))[None, None]

    bounds = (jnp.full(1, -jnp.inf), jnp.full(1, jnp.inf))
    start = jnp.radians(jnp.array([[100.0, 135.0, 150.0, 170.0]]))
    run = jax.jit(lambda s: track(evaluate, s, route(4, 4), bounds, nothing_yet(4, 1), 80, Options()))
    found = run(start)
    assert found.converged.all()
    np.testing.assert_allclose(np.remainder(found.q + np.pi, 2 * np.pi), np.pi, atol=1e-3)


def test_a_refused_point_at_the_bound_is_not_proposed_again() -> None:
    """Gauss-Newton overshoots on an arctangent to where the objective is higher."""

    def evaluate(q, index, bend):
        x = q[0]
        r, slope = jnp.arctan(10 * x), 10 / (1 + 100 * x**2)
        return 0.5 * r**2, (r * slope)[None], (slope**2)[None, None]

    bounds = (jnp.full(1, -2.0), jnp.full(1, 2.0))
    run = jax.jit(lambda s: track(evaluate, s, route(3, 3), bounds, nothing_yet(3, 1), 80, Options()))
    found = run(jnp.array([[1.1, -0.7, 1.9]]))
    np.testing.assert_allclose(found.q, 0, atol=1e-4)
    assert found.converged.all()


def test_a_curved_valley_is_followed_to_its_end() -> None:
    """Rosenbrock's function, moved for each problem; from -1.2, 1 as he did."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(0.5, 1.5, (20, 1)) * np.ones((1, 2))
    ends[:, 1] = ends[:, 0] ** 2
    peak = jnp.asarray(ends[:, 0])

    def evaluate(q, index, bend):
        def residual(x, a):
            return jnp.stack([10 * (x[1] - x[0] ** 2), a - x[0]])

        r = jax.vmap(residual, (1, 0))(q, peak[index])
        j = jax.vmap(jax.jacfwd(residual), (1, 0))(q, peak[index])
        return 0.5 * jnp.sum(r * r, axis=1), jnp.einsum("wmn,wm->nw", j, r), jnp.einsum("wmn,wmk->nkw", j, j)

    start = jnp.broadcast_to(jnp.array([[-1.2], [1.0]]), (2, 5))
    free = (jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf))
    found = jax.jit(lambda s: track(evaluate, s, route(20, 5), free, nothing_yet(20, 2), 200, Options()))(
        start
    )
    np.testing.assert_allclose(found.q, ends, atol=1e-5)
    assert found.converged.all()


def test_float32_is_kept(linear: Linear, linear_answers) -> None:
    a, b = jnp.asarray(linear.a, jnp.float32), jnp.asarray(linear.b, jnp.float32)

    def evaluate(q, index, bend):
        r = jnp.einsum("wmn,nw->wm", a[index], q) - b[index]
        g = jnp.einsum("wmn,wm->nw", a[index], r)
        return 0.5 * jnp.sum(r * r, axis=1), g, jnp.einsum("wmn,wmk->nkw", a[index], a[index])

    initial = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, nothing_yet(30, 4)
    )
    bounds = tuple(x.astype(jnp.float32) for x in linear.bounds)
    found = jax.jit(lambda s: track(evaluate, s, route(30, 4), bounds, initial, 60, Options()))(
        jnp.zeros((4, 4), jnp.float32)
    )
    assert found.q.dtype == jnp.float32
    assert found.converged.all()
    residual = np.einsum("tmn,tn->tm", linear.a, linear_answers) - linear.b
    np.testing.assert_allclose(found.objective, 0.5 * np.sum(residual**2, axis=1), rtol=1e-3)
