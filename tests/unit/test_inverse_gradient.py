"""The derivative of a solution by the implicit function theorem against central differences of solves."""

from __future__ import annotations

import dataclasses

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import simspine_jax as ssj
from simspine_jax.io.ik_setup import CoordinateTask, IKSetup, MarkerTask

FRAMES = 24
# Steps that move poses by about a milliradian: truncation is then below 1e-5 of the derivative, and the
# solver's last digits too.
STEPS = {
    "markers": 1e-4,
    "weights": 3e-3,
    "coordinate_targets": 1e-3,
    "scale_factors": 3e-4,
    "marker_offsets": 1e-4,
}
TOLERANCE = 1e-4
# A pair whose derivative is a thousandth of the largest one says nothing about relative errors.
WEAK = 1e-3


@dataclasses.dataclass(frozen=True)
class Setting:
    """Solves with markers off by 2 cm, so that the exact Hessian differs from Gauss-Newton's."""

    model: ssj.SpineModel
    setup: IKSetup
    base: dict
    start: np.ndarray

    def solve(self, changes: dict, start=None):
        given = self.base | changes
        weights = given.pop("weights", None)
        setup = self.setup if weights is None else None
        if setup is None:
            given.pop("coordinate_targets", None)
        return ssj.solve_ik(
            self.model,
            given.pop("markers"),
            weights=weights,
            setup=setup,
            initial_q=self.start if start is None else start,
            tolerance=1e-12,
            **given,
        )


@pytest.fixture(scope="module")
def setting(tangle_model) -> Setting:
    """The coordinate b is bounded so that some frames end at the bound; some frames miss markers."""
    rng = np.random.default_rng(0)
    b = tangle_model.free_indices(["b"])[0]
    model = dataclasses.replace(
        tangle_model, lower=tangle_model.lower.at[b].set(-0.25), upper=tangle_model.upper.at[b].set(0.4)
    )
    phase = rng.uniform(0, 2 * np.pi, model.n_free)
    q = 0.5 * np.sin(0.3 * np.arange(FRAMES)[:, None] + phase)
    factors = rng.uniform(0.9, 1.1, (len(model.body_names), 3))
    offsets = rng.normal(0, 0.01, (model.n_markers, 3))
    exact = ssj.forward_kinematics(model, q, scale_factors=factors, marker_offsets=offsets).markers
    markers = np.array(exact) + rng.normal(0, 0.02, exact.shape)
    markers[3, 4] = markers[8, 1] = markers[8, 9] = np.nan
    markers[11] = np.nan
    tasks = (CoordinateTask("a", 0.01, value_type="manual_value", value=0.1),
             CoordinateTask("third", 0.02, value_type="manual_value", value=0.0))  # fmt: skip
    setup = IKSetup(tuple(MarkerTask(name, 1.0) for name in model.marker_names), tasks)
    base = {
        "markers": jnp.asarray(markers),
        "coordinate_targets": jnp.asarray(rng.normal(0, 0.2, (FRAMES, 2))),
        "scale_factors": jnp.asarray(factors),
        "marker_offsets": jnp.asarray(offsets),
    }
    first = Setting(model, setup, base, np.asarray(q))
    start = np.nan_to_num(first.solve({}).q)
    return dataclasses.replace(first, start=start)


def test_the_frames_are_what_the_tests_are_about(setting: Setting) -> None:
    found = setting.solve({})
    b = np.asarray(found.q)[:, setting.model.free_indices(["b"])[0]]
    assert ((b == 0.4) | (b == -0.25)).sum() >= 3
    assert np.flatnonzero(found.status == ssj.IKStatus.TOO_FEW_MARKERS).tolist() == [11]
    assert found.marker_rmse[np.arange(FRAMES) != 11].min() > 0.01


def frame_errors(setting: Setting, name: str, value, directions) -> np.ndarray:
    """Relative errors of ``d(c_t . q_t)`` for every frame t, along each direction.

    Inputs of each frame have their own gradient: one cotangent serves all frames. Shared inputs get a
    cotangent that is zero but at one frame, for every frame.
    """
    rng = np.random.default_rng(5)
    mix = jnp.asarray(rng.normal(size=setting.start.shape)).at[11].set(0)
    start = setting.solve({name: value}).q
    start = jnp.where(jnp.isfinite(start), start, 0)
    q, pull = jax.vjp(lambda x: setting.solve({name: x}, start).q, value)
    per_frame = value.ndim > 1 and value.shape[0] == FRAMES
    if per_frame:
        (bar,) = pull(mix)
        assert np.isfinite(bar).all()
        assert not np.asarray(bar[11]).any()
        axes = tuple(range(1, value.ndim))
        analytic = [np.nansum(np.asarray(bar * d), axis=axes) for d in directions]
    else:
        bars = [pull(jnp.zeros_like(mix).at[t].set(mix[t]))[0] for t in range(FRAMES)]
        assert np.isfinite(np.stack(bars)).all()
        analytic = [np.array([float(jnp.sum(bar * d)) for bar in bars]) for d in directions]
    # A frame at its bound that the step moves off it has no derivative there.
    bound = at_bound(setting, q)
    errors, step = [], STEPS[name]
    for direction, expected in zip(directions, analytic, strict=True):
        ends = [setting.solve({name: value + s * step * direction}, start).q for s in (1, -1)]
        same = (at_bound(setting, ends[0]) == bound) & (at_bound(setting, ends[1]) == bound)
        numeric = np.nansum(np.asarray((ends[0] - ends[1]) / (2 * step) * mix), axis=-1)
        strong = np.abs(numeric) > WEAK * np.abs(numeric).max()
        assert (np.abs(expected) < 1e-12)[11]
        errors.append((np.abs(expected - numeric) / np.where(strong, np.abs(numeric), np.inf))[same & strong])
    return np.concatenate(errors)


def at_bound(setting: Setting, q) -> np.ndarray:
    angle = np.asarray(q)[:, setting.model.free_indices(["b"])[0]]
    return (angle == 0.4) | (angle == -0.25)


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_central_differences_of_the_solution(setting: Setting, name: str) -> None:
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.uniform(0.5, 1.5, (FRAMES, setting.model.n_markers)))
    value = weights if name == "weights" else setting.base[name]
    directions = [jnp.asarray(rng.normal(size=value.shape)) for _ in range(2)]
    errors = frame_errors(setting, name, value, directions)
    # Five inputs, 34 and more pairs each.
    assert len(errors) >= 34
    assert errors.max() < TOLERANCE


def test_gradients_run_inside_jit(arm_model) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(0, 0.3, (6, arm_model.n_free))
    markers = jnp.asarray(ssj.forward_kinematics(arm_model, q).markers + rng.normal(0, 0.01, (6, 12, 3)))

    def total(markers):
        return jnp.sum(ssj.solve_ik(arm_model, markers, tolerance=1e-12).q ** 2)

    gradient = jax.grad(total)
    inside, outside = jax.jit(gradient)(markers), gradient(markers)
    assert np.abs(outside).max() > 0.1
    np.testing.assert_allclose(inside, outside, atol=1e-6 * float(jnp.abs(outside).max()))


def test_missing_markers_have_no_gradient(setting: Setting) -> None:
    bar = jax.grad(lambda x: jnp.nansum(setting.solve({"markers": x}).q))(setting.base["markers"])
    missing = np.isnan(np.asarray(setting.base["markers"])).any(axis=-1)
    assert not np.asarray(bar)[missing].any()
    assert np.asarray(bar)[~missing].any(axis=-1).all()


def test_all_results_can_be_differentiated(setting: Setting) -> None:
    """Through the pose and directly: the report depends on targets both ways."""

    def reported(markers):
        found = setting.solve({"markers": markers})
        return (
            jnp.nansum(found.markers * mix[..., None] + found.markers**2)
            + jnp.nansum(found.coordinates**2)
            + jnp.nansum(found.marker_rmse)
            + jnp.nansum(100 * found.objective)
        )

    mix = jnp.asarray(np.random.default_rng(0).normal(size=(FRAMES, setting.model.n_markers)))
    markers = setting.base["markers"]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=markers.shape))
    bar = jax.grad(reported)(markers)
    assert np.isfinite(bar).all()
    numeric = (reported(markers + 1e-5 * direction) - reported(markers - 1e-5 * direction)) / 2e-5
    assert float(jnp.nansum(bar * direction)) == pytest.approx(float(numeric), rel=TOLERANCE)


@pytest.mark.parametrize("smoothing", [None, ssj.Smoothing(acceleration=1e-7)], ids=["frames", "clip"])
def test_gradients_multiply_in_full_precision(tangle_model, smoothing) -> None:
    """A GPU rounds single precision to ten bits unless each product says otherwise."""
    markers = jnp.zeros((4, tangle_model.n_markers, 3))

    def total(targets: jax.Array) -> jax.Array:
        return jnp.sum(ssj.solve_ik(tangle_model, targets, smoothing=smoothing).q)

    products = list(_products(jax.make_jaxpr(jax.grad(total))(markers).jaxpr))
    assert products
    assert {product.params["precision"] for product in products} == {(jax.lax.Precision.HIGHEST,) * 2}


def _products(jaxpr):
    """Every matrix product of a program, in whatever it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _products(inner)
