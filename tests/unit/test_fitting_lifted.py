"""Lifted points in a fit of one camera: derivatives beside JAX's own, and what they do to a pose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arm_captures import RATE_HZ, SEGMENTS, ArmCapture, capture_arm, on_an_arc
from numpy.typing import NDArray

from simspine_jax.errors import ShapeError
from simspine_jax.fitting.parameters import FitPriors, make_layout, make_prior, rig_of
from simspine_jax.fitting.subject import (
    Clip,
    FitOptions,
    FitStatus,
    LiftedMarkers,
    Start,
    SubjectFit,
    _lifted_data,
    _Seen,
    fit_subject,
)
from simspine_jax.fitting.terms import (
    Fixed,
    FrameData,
    LiftedData,
    Setting,
    all_lifted,
    cost_of,
    equations,
    robust_weights,
)
from simspine_jax.fitting.uncertainty import uncertainty_of
from simspine_jax.geometry.frames import R_yup_zup

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

# Of float64 sums over some hundred terms, as a share of the largest entry.
ROUNDING = 1e-10
FRAMES, ROOT = 4, 2


@pytest.fixture(scope="module", name="problem")
def random_problem(arm_model: SpineModel):
    """Lifted points without pictures, in front of a camera that is not where it was given."""
    layout = make_layout(arm_model, 1, segments=SEGMENTS, growing=True)
    prior = make_prior(arm_model, layout, FitPriors(focal=0.01, rotation_deg=20.0))
    random = np.random.default_rng(0)
    theta = jnp.asarray(random.normal(size=layout.size) / np.sqrt(np.diag(prior.precision)) * 0.5)
    q = jnp.asarray(0.4 * random.normal(size=(FRAMES, arm_model.n_free)))
    n = arm_model.n_markers
    lifted = LiftedData(
        jnp.zeros((FRAMES, n, 3)),
        jnp.asarray(random.uniform(0, 1e3, (FRAMES, n, 3)) * (random.random((FRAMES, n, 1)) < 0.8)),
        jnp.asarray([0.5, 0.1, 1.0, 1.0]),
        jnp.full(FRAMES, jnp.mean(theta[: layout.n_scales])),
        jnp.asarray([50.0, 20.0, 0.0, 70.0]),
        ROOT,
    )
    data = FrameData(
        jnp.zeros((FRAMES, 1, n, 2)), jnp.zeros((FRAMES, 1, n)), jnp.ones((FRAMES, 1)),
        jnp.zeros((FRAMES, 1, n, 2)), jnp.zeros((FRAMES, n, 3)), jnp.zeros((FRAMES, n)),
        jnp.asarray([True, True, True, False]), jnp.zeros(FRAMES), lifted,
    )  # fmt: skip
    setting = Setting(layout)
    rig = rig_of(on_an_arc(1), jnp.dtype("float64"))
    fixed = Fixed(arm_model, rig, jnp.zeros(arm_model.n_free))
    points = jax.jit(all_lifted, static_argnums=0)(setting, fixed, theta, lifted, q)
    return setting, fixed, theta, replace(data, lifted=replace(lifted, points=points)), q


def near(found, wanted) -> None:
    scale = np.abs(wanted).max()
    assert scale > 0
    np.testing.assert_allclose(found, wanted, atol=ROUNDING * scale)


def test_gradients_are_those_of_the_objective(problem) -> None:
    setting, fixed, theta, data, q = problem
    off = 0.05 * np.random.default_rng(1).normal(size=data.lifted.points.shape)
    lifted = replace(data.lifted, points=data.lifted.points + off, log_size=data.lifted.log_size + 0.2)
    data = replace(data, lifted=lifted)
    e = jax.jit(equations, static_argnums=0)(setting, fixed, theta, data, q)

    def total(theta: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.sum(cost_of(setting, fixed, theta, data, q))

    by_theta, by_q = jax.jit(jax.grad(total, (0, 1)))(theta, q)
    near(e.gradient, by_q)
    near(e.shared_gradient, by_theta)
    near(e.cost, jax.jit(cost_of, static_argnums=0)(setting, fixed, theta, data, q))
    assert e.cost[3] == 0, "a frame that doesn't count costs nothing"


def test_the_matrix_is_the_hessian_where_nothing_is_left(problem) -> None:
    setting, fixed, theta, data, q = problem
    e = jax.jit(equations, static_argnums=0)(setting, fixed, theta, data, q)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(cost_of(setting, fixed, x[q.size :], data, x[: q.size].reshape(q.shape)))

    hessian = np.asarray(jax.jit(jax.hessian(total))(jnp.concatenate([q.ravel(), theta])))
    n, atol = q.shape[1], ROUNDING * np.abs(hessian).max()
    near(e.shared_matrix, hessian[q.size :, q.size :])
    for t in range(FRAMES):
        rows = slice(n * t, n * (t + 1))
        np.testing.assert_allclose(e.matrix[t], hessian[rows, rows], atol=atol)
        np.testing.assert_allclose(e.border[t], hessian[rows, q.size :], atol=atol)


def test_size_counts_by_itself(problem) -> None:
    """A body that is larger as a whole, with offsets that grow, costs what its size says and no more."""
    setting, fixed, theta, data, q = problem
    e = jax.jit(equations, static_argnums=0)(setting, fixed, theta, data, q)
    larger = np.zeros(setting.layout.size)
    larger[: setting.layout.n_scales] = 1.0
    stiffness = larger @ np.asarray(e.shared_matrix) @ larger
    assert stiffness == pytest.approx(70.0, rel=1e-7)  # of the frames that count


def test_a_point_that_is_astray_loses_its_weight(problem) -> None:
    setting, fixed, theta, data, q = problem
    far = data.lifted.points.at[0, 5, 2].add(1.0)
    precision = jnp.full_like(data.lifted.precision, 1 / 0.05**2)
    lifted = replace(data.lifted, points=far, precision=precision)
    clips = jax.tree.map(lambda x: x[None], replace(data, lifted=lifted))
    found = jax.jit(robust_weights, static_argnums=0)(setting, fixed, theta, clips, q[None])
    weight = np.asarray(found.lifted.precision / precision)[0]
    assert weight[0, 5, 2] < 0.02  # 20 deviations off
    np.testing.assert_allclose(np.delete(weight[0], 5, axis=0), 1.0)


STD_M = np.array([0.03, 0.03, 0.06])
ALIKE = 4.0


@pytest.fixture(scope="module", name="seen")
def one_camera(arm_model: SpineModel) -> ArmCapture:
    return capture_arm(arm_model, on_an_arc(1), 0)


def lifted_of(seen: ArmCapture, root: int = 0) -> LiftedMarkers:
    """Exact points."""
    turn = np.asarray(seen.cameras.rotations)[0] @ R_yup_zup.T
    points = (seen.markers - seen.markers[:, [root]]) @ turn.T
    return LiftedMarkers(points, np.tile(STD_M, (points.shape[1], 1)), ALIKE, root)


def fitted(model: SpineModel, seen: ArmCapture, lifted: LiftedMarkers | None, noise_px: float) -> SubjectFit:
    """From poses that are far off, of a body of the size that it has."""
    off = 0.25 * np.random.default_rng(9).normal(size=seen.q.shape[1])
    clip = replace(seen.clip, lifted=lifted)
    options = FitOptions(FitPriors(bias=0.0), noise_px=noise_px, correlated=False)
    start = Start([seen.q + off], seen.scale_factors)
    return fit_subject(model, [clip], seen.cameras, RATE_HZ, start, options, segments=SEGMENTS)


def shape_error(fit: SubjectFit, seen: ArmCapture, root: int = 0) -> NDArray[np.float64]:
    """[T K] m, root-relative, after one common size."""
    found, wanted = (x - x[:, [root]] for x in (fit.markers[0], seen.markers))
    return np.linalg.norm(found * np.linalg.norm(wanted) / np.linalg.norm(found) - wanted, axis=-1)


@pytest.mark.slow
def test_exact_points_give_the_pose_where_pictures_tell_little(
    arm_model: SpineModel, seen: ArmCapture
) -> None:
    with_points = fitted(arm_model, seen, lifted_of(seen), noise_px=60.0)
    assert with_points.status == FitStatus.CONVERGED
    without = fitted(arm_model, seen, None, noise_px=60.0)
    error, blind = (shape_error(fit, seen).mean() for fit in (with_points, without))
    # Priors of sizes, offsets and accelerations pull a little.
    assert error < 0.01
    assert error < 0.5 * blind
    sure, unsure = uncertainty_of(with_points), uncertainty_of(without)
    assert np.median(sure.pose_std) < 0.9 * np.median(unsure.pose_std)


@pytest.mark.slow
def test_a_bad_lifter_is_outvoted(arm_model: SpineModel, seen: ArmCapture) -> None:
    good = lifted_of(seen)
    astray = good.points.copy()
    astray[:, 6, 2] += 1.0
    alone = shape_error(fitted(arm_model, seen, good, noise_px=2.0), seen)
    beside = shape_error(fitted(arm_model, seen, replace(good, points=astray), noise_px=2.0), seen)
    assert beside.mean() < alone.mean() + 0.005
    assert beside[:, 6].mean() < 0.03


def test_points_of_neighbours_count_as_one(seen: ArmCapture) -> None:
    size, frames = 1.25, len(seen.q)
    given = replace(lifted_of(seen), alike_markers=2.0, size_std=0.05)
    given.points[5, 3] = np.nan
    for alike, share in ((4.0, 0.125), (0.1, 0.5), (1e4, 0.5 / frames)):
        clip = replace(seen.clip, lifted=replace(given, alike_frames=alike))
        short = Clip(seen.keypoints[:9], clip.confidence[:9])
        both = _Seen.of([clip, short], 1, jnp.dtype("float64"))
        found = _lifted_data([clip, short], both, size, jnp.dtype("float64"))
        assert found is not None
        np.testing.assert_allclose(found.share, [[share] * frames, [0.0] * frames])
        precision = np.array(np.broadcast_to((size / STD_M) ** 2, given.points.shape))
        precision[:, 0], precision[5, 3] = 0.0, 0.0  # the root tells nothing
        np.testing.assert_allclose(found.precision[0], precision)
        assert (np.asarray(found.precision)[1] == 0).all()
        np.testing.assert_allclose(found.log_size, np.log(size))
        np.testing.assert_allclose(found.size_precision.sum(), 1 / 0.05**2)
        wanted = np.where(precision > 0, given.points / size, 0.0)
        np.testing.assert_allclose(found.points[0], wanted)
    assert (
        _lifted_data([short], _Seen.of([short], 1, jnp.dtype("float64")), 1.0, jnp.dtype("float64")) is None
    )


def test_what_does_not_go_together_is_refused(arm_model: SpineModel, seen: ArmCapture) -> None:
    lifted, two = lifted_of(seen), capture_arm(arm_model, on_an_arc(2), 0)
    with pytest.raises(ShapeError, match="there are 2 cameras; valid is one"):
        fit_subject(arm_model, [replace(two.clip, lifted=lifted)], two.cameras, RATE_HZ, Start([two.q]))
    clips = [replace(seen.clip, lifted=lifted_of(seen, root)) for root in (0, 1)]
    with pytest.raises(ShapeError, match="different roots"):
        fit_subject(arm_model, clips, seen.cameras, RATE_HZ, Start([seen.q] * 2))
    with pytest.raises(ShapeError, match=r"lifted points have shape \(3, 12, 3\)"):
        replace(seen.clip, lifted=replace(lifted, points=lifted.points[:3]))
    with pytest.raises(ShapeError, match="deviations above 0"):
        replace(lifted, std=np.zeros_like(lifted.std))
    with pytest.raises(ShapeError, match="root is 12"):
        replace(lifted, root=12)
    with pytest.raises(ShapeError, match="alike_frames is 0"):
        replace(lifted, alike_frames=0.0)
    with pytest.raises(ShapeError, match=r"valid is \(12, 3\)"):
        replace(lifted, std=np.ones(3))
    with pytest.raises(ShapeError, match=r"valid is \[T K 3\]"):
        replace(lifted, points=lifted.points[0])
