"""Fitting a subject: derivatives beside JAX's own, covariances beside dense inverses, and what is found."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.fitting.information import covariances_of
from simspine_jax.fitting.parameters import (
    FitPriors,
    Segment,
    cameras_of,
    left_jacobian,
    make_layout,
    make_prior,
    moved_rig,
    rig_of,
    rotation_of,
)
from simspine_jax.fitting.solving import Whole, all_equations, objective
from simspine_jax.fitting.spread import no_spread
from simspine_jax.fitting.subject import (
    Clip,
    FitOptions,
    FitStatus,
    Start,
    _correlation,
    _Seen,
    fit_subject,
)
from simspine_jax.fitting.terms import (
    Fixed,
    FrameData,
    Setting,
    cost_of,
    equations,
    expected_keypoints,
    look,
    markers_of,
)
from simspine_jax.fitting.uncertainty import half_width, uncertainty_of
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.geometry.frames import yup_to_zup
from simspine_jax.kinematics.scaling import estimate_height

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

# Of float64 sums over some hundred terms, as a share of the largest entry.
ROUNDING = 1e-10

SEGMENTS = (Segment("trunk", ("trunk",)), Segment("arm", ("humerus", "radius", "hand")))
PRIORS = FitPriors(focal=0.01, delay_s=0.02)
FRAMES, VIEWS = 4, 3


@pytest.fixture(scope="module", name="cameras")
def three_cameras() -> Cameras:
    """On a quarter circle, 3 m away, with some distortion and skew, looking at the origin at 1 m (Z up)."""
    angles = np.deg2rad([0.0, 50.0, 100.0])
    centres = np.stack([3 * np.cos(angles), 3 * np.sin(angles), np.full(3, 1.2)], axis=1)
    rotations = []
    for centre in centres:
        forward = np.array([0.0, 0.0, 1.0]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotations.append(np.stack([right, np.cross(forward, right), forward]))
    rotations = np.stack(rotations)
    lens = np.tile([-0.05, 0.02, 0.001, -0.001, 0, 0, 0, 0], (VIEWS, 1))
    return Cameras(
        rotations, -np.einsum("vij,vj->vi", rotations, centres), np.full((VIEWS, 2), 1000.0),
        np.full((VIEWS, 2), 500.0), np.full(VIEWS, 2.0), lens, np.full((VIEWS, 2), 1000.0), ("a", "b", "c"),
    )  # fmt: skip


def random_poses(model: SpineModel, frames: int, seed: int = 0) -> jax.Array:
    """Smooth poses about 1 m above the ground."""
    random = np.random.default_rng(seed)
    waves = random.normal(size=(2, model.n_free)) * 0.3
    phase = np.linspace(0, 2, frames)[:, None]
    q = waves[0] * np.sin(phase) + waves[1] * np.cos(1.3 * phase)
    heights = [i for i, name in enumerate(model.free_names) if name.endswith("ty") or name.endswith("_4")]
    q[:, heights] += 1.0
    return jnp.asarray(q)


@pytest.fixture(scope="module", name="problem")
def random_problem(arm_model: SpineModel, cameras: Cameras):
    """A setting, its arrays and a point where nothing vanishes."""
    layout = make_layout(arm_model, VIEWS, segments=SEGMENTS)
    prior = make_prior(arm_model, layout, PRIORS)
    random = np.random.default_rng(0)
    theta = jnp.asarray(random.normal(size=layout.size) / np.sqrt(np.diag(prior.precision)) * 0.3)
    q = random_poses(arm_model, FRAMES)

    def term(q: jax.Array, markers: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.stack([5 * markers[1, 0] * scale[1, 1], jnp.sum(q**2)])

    setting = Setting(layout, (term,))
    rig = rig_of(cameras, jnp.dtype("float64"))
    fixed = Fixed(arm_model, rig, jnp.linspace(1.0, 4.0, arm_model.n_free))
    shape = (FRAMES, VIEWS, arm_model.n_markers)
    data = FrameData(
        jnp.zeros((*shape, 2)),
        jnp.asarray(random.uniform(0.0, 0.2, shape) * (random.random(shape) < 0.8)),
        jnp.asarray(random.uniform(100, 300, shape[:2])),
        jnp.asarray(random.normal(size=(*shape, 2)) * 20),
        jnp.zeros((FRAMES, arm_model.n_markers, 3)),
        jnp.asarray(random.uniform(0, 1e4, (FRAMES, arm_model.n_markers))),
        jnp.asarray([True, True, True, False]),
        jnp.asarray([0.5, 0.3, 0.2, 0.0]),
    )
    seen = predicted(setting, fixed, theta, data, q)
    return setting, fixed, prior, theta, seen, q


@partial(jax.jit, static_argnums=0)
def predicted(setting: Setting, fixed: Fixed, theta: jax.Array, data: FrameData, q: jax.Array) -> FrameData:
    """The data as the model itself would have them."""
    markers = markers_of(setting, fixed.model, theta, q)
    seen = look(moved_rig(fixed.rig, setting.layout.camera_part(theta)), markers)
    return replace(data, keypoints=expected_keypoints(setting.layout, theta, seen, data), markers=markers)


def noisy(data: FrameData) -> FrameData:
    random = np.random.default_rng(3)
    return replace(
        data,
        keypoints=data.keypoints + 5 * random.normal(size=data.keypoints.shape),
        markers=data.markers + 0.02 * random.normal(size=data.markers.shape),
    )


def near(found, wanted) -> None:
    scale = np.abs(wanted).max()
    assert scale > 0
    np.testing.assert_allclose(found, wanted, atol=ROUNDING * scale)


def test_a_turned_rotation_vector_follows_the_left_jacobian() -> None:
    vectors = jnp.asarray([[0.3, -0.5, 0.2], [1e-5, 2e-5, 0.0], [0.0, 0.0, 0.0], [2.0, 1.0, -1.0]])
    small = 1e-6 * jnp.asarray([0.2, -0.4, 1.0])
    moved = rotation_of(vectors + small)
    steps = jnp.einsum("bij,j->bi", left_jacobian(vectors), small)
    # What is left is of second order.
    np.testing.assert_allclose(moved, rotation_of(steps) @ rotation_of(vectors), atol=1e-11)
    assert np.isfinite(jax.jacfwd(rotation_of)(jnp.zeros(3))).all()


def test_the_rig_is_the_cameras_in_the_ground(cameras: Cameras) -> None:
    rig = rig_of(cameras, jnp.dtype("float64"))
    for name in ("rotations", "translations", "focal_lengths"):
        np.testing.assert_allclose(getattr(cameras_of(rig), name), getattr(cameras, name), atol=1e-14)
    points = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 3)) * 0.3 + [0, 1, 0])
    part = jnp.asarray(np.random.default_rng(1).normal(size=(VIEWS, 8)) * 0.02)
    moved = moved_rig(rig, part)
    wanted = project(cameras_of(moved), yup_to_zup(points)).keypoints
    np.testing.assert_allclose(look(moved, points).pixels, jnp.moveaxis(wanted, 2, 1), atol=1e-10)


def test_gradients_are_those_of_the_objective(problem) -> None:
    setting, fixed, _, theta, data, q = problem
    data = noisy(data)
    e = jax.jit(equations, static_argnums=0)(setting, fixed, theta, data, q)

    def total(theta: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.sum(cost_of(setting, fixed, theta, data, q))

    by_theta, by_q = jax.jit(jax.grad(total, (0, 1)))(theta, q)
    near(e.gradient, by_q)
    near(e.shared_gradient, by_theta)
    near(e.cost, jax.jit(cost_of, static_argnums=0)(setting, fixed, theta, data, q))
    assert e.cost[3] == 0, "a frame that doesn't count costs nothing"


def test_the_matrix_is_the_hessian_where_nothing_is_left(problem, arm_model: SpineModel) -> None:
    setting, fixed, _, theta, data, q = problem
    setting = replace(setting, terms=())
    e = jax.jit(equations, static_argnums=0)(setting, fixed, theta, data, q)

    def total(x: jax.Array) -> jax.Array:
        poses = x[: q.size].reshape(q.shape)
        return jnp.sum(cost_of(setting, fixed, x[q.size :], data, poses))

    hessian = np.asarray(jax.jit(jax.hessian(total))(jnp.concatenate([q.ravel(), theta])))
    n = arm_model.n_free
    near(e.shared_matrix, hessian[q.size :, q.size :])
    for t in range(FRAMES):
        rows = slice(n * t, n * (t + 1))
        np.testing.assert_allclose(e.matrix[t], hessian[rows, rows], atol=ROUNDING * np.abs(hessian).max())
        np.testing.assert_allclose(
            e.border[t], hessian[rows, q.size :], atol=ROUNDING * np.abs(hessian).max()
        )


def test_covariances_are_blocks_of_the_dense_inverse(problem, arm_model: SpineModel) -> None:
    setting, fixed, prior, theta, data, q = problem
    setting = replace(setting, terms=())
    n = arm_model.n_free
    clips = jax.tree.map(lambda x: x[None], data)
    whole = Whole(
        clips, fixed, jnp.asarray(prior.precision), jnp.asarray(prior.mean),
        jnp.asarray(prior.free, jnp.float64), jnp.linspace(0.01, 0.02, n)[None],
        jnp.asarray(0.3), jnp.ones((1, FRAMES), bool), jnp.asarray(5.0), no_spread(q[None]),
    )  # fmt: skip

    def total(x: jax.Array) -> jax.Array:
        return objective(setting, whole, x[: q.size].reshape(1, *q.shape), x[q.size :])

    hessian = np.asarray(jax.jit(jax.hessian(total))(jnp.concatenate([q.ravel(), theta])))
    inverse = np.linalg.inv(hessian)
    e = jax.jit(all_equations, static_argnums=0)(setting, whole, q[None], theta)
    poses, between, shared = jax.jit(covariances_of)(whole, e)
    # The condition of the matrix multiplies rounding.
    share = 1e-7
    np.testing.assert_allclose(
        shared, inverse[q.size :, q.size :], atol=share * np.abs(inverse[q.size :, q.size :]).max()
    )
    for t in range(FRAMES):
        rows = slice(n * t, n * (t + 1))
        np.testing.assert_allclose(
            poses[0, t], inverse[rows, rows], atol=share * np.abs(inverse[rows, rows]).max()
        )
        np.testing.assert_allclose(
            between[0, t], inverse[rows, q.size :], atol=share * np.abs(inverse[rows, q.size :]).max()
        )


@pytest.fixture(scope="module", name="made")
def made_subject(arm_model: SpineModel, cameras: Cameras):
    """A subject of other size in cameras that are a little off, and what they see, with 1 px of noise."""
    priors = FitPriors(bias=0.0)
    layout = make_layout(arm_model, VIEWS, segments=SEGMENTS, biased=False)
    prior = make_prior(arm_model, layout, priors)
    random = np.random.default_rng(5)
    theta = np.zeros(layout.size)
    theta[:6] = np.log([1.1, 1.08, 1.12, 0.92, 0.9, 0.94])
    rest = slice(6, layout.size)
    theta[rest] = random.normal(size=layout.size - 6) / np.sqrt(np.diag(prior.precision)[rest])
    theta = jnp.asarray(theta * prior.free)
    q = random_poses(arm_model, 40, seed=2)
    rig = rig_of(cameras, jnp.dtype("float64"))
    setting = Setting(layout)
    markers = jax.jit(markers_of, static_argnums=0)(setting, arm_model, theta, q)
    pixels = look(moved_rig(rig, layout.camera_part(theta)), markers).pixels
    keypoints = np.asarray(pixels) + random.normal(size=pixels.shape)
    keypoints[3, 1] = np.nan
    keypoints[10, 0, 2] += 300.0
    clip = Clip(keypoints, np.ones(keypoints.shape[:3]))
    return clip, np.asarray(q), np.asarray(markers), layout.scale_factors(theta), priors


def test_a_subject_is_found_from_pictures(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, markers, factors, priors = made
    start = Start([q + 0.05 * np.random.default_rng(0).normal(size=q.shape)])
    options = FitOptions(priors, acceleration_std=100.0, noise_px=1.0, correlated=False)
    fit = fit_subject(arm_model, [clip], cameras, 50.0, start, options, segments=SEGMENTS)
    assert fit.status == FitStatus.CONVERGED
    # Of a circular normal error of 1 px the median length is 1.18 px; what is fitted takes a part of it.
    assert 0.9 < np.nanmedian(fit.reprojection_px) < 1.25
    assert fit.reprojection_px[0, 10, 0, 2] > 250, "what is astray is not followed"
    lengths = np.linalg.norm(markers[:, 3] - markers[:, 6], axis=-1)
    found = np.linalg.norm(fit.markers[0, :, 3] - fit.markers[0, :, 6], axis=-1)
    np.testing.assert_allclose(found, lengths, rtol=0.01)
    sure = uncertainty_of(fit)
    # Markers that lie centimetres apart, each off by one, tell little of sizes; the fit knows how little.
    assert (np.abs(fit.scale_factors - factors) < 4 * sure.scale_std).all()
    width = half_width(0.9)
    off = np.abs(fit.markers[0] - markers)
    inside = off < width * np.sqrt(np.diagonal(sure.marker_covariance[0], axis1=-2, axis2=-1))
    # One subject's errors go together, so their share scatters widely about 0.9.
    assert 0.7 < inside.mean() <= 1
    value, std = sure.of(lambda q, markers, scale: jnp.linalg.norm(markers[3] - markers[6]))
    np.testing.assert_allclose(value[0, :, 0], found, rtol=1e-9)
    assert (np.abs(value[0, :, 0] - lengths) < 4 * std[0, :, 0]).all()
    assert (sure.observability < 0.5).all()


def test_how_fast_joints_change_is_found(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, _, _, priors = made
    options = FitOptions(priors, acceleration_std=100.0, noise_px=1.0, correlated=False, rounds=12)
    fit = fit_subject(arm_model, [clip], cameras, 50.0, Start([q]), options, segments=SEGMENTS)
    found = 1 / np.sqrt(np.asarray(fit.whole.acceleration_precision)[0])
    real = np.sqrt(np.mean(np.diff(q, 2, axis=0) ** 2, axis=0)) * 50.0**2
    # 38 accelerations, of smooth waves: not independent of one another, so that their size is known roughly.
    assert (found < 5 * real).all(), found / real
    assert (found > real / 5).all(), found / real
    kept = fit_subject(
        arm_model, [clip], cameras, 50.0, Start([q]), replace(options, adaptive=False), segments=SEGMENTS
    )
    np.testing.assert_allclose(kept.whole.acceleration_precision, 1e-4)


def test_a_pose_that_is_held_is_not_pulled_to_the_default(arm_model: SpineModel, cameras: Cameras) -> None:
    layout = make_layout(arm_model, VIEWS, segments=SEGMENTS, biased=False)
    theta = jnp.zeros(layout.size)
    q = np.array(random_poses(arm_model, 60, seed=2))
    names = list(arm_model.free_names)
    inner = [i for i in range(arm_model.n_free) if arm_model.upper[i] - arm_model.default_q[i] > 1.0][-2:]
    q[:, inner] = np.asarray(arm_model.default_q)[inner] + 0.9
    markers = jax.jit(markers_of, static_argnums=0)(Setting(layout), arm_model, theta, jnp.asarray(q))
    pixels = np.asarray(look(rig_of(cameras, jnp.dtype("float64")), markers).pixels)
    clip = Clip(pixels + 10 * np.random.default_rng(0).normal(size=pixels.shape), np.ones(pixels.shape[:3]))
    fit = fit_subject(
        arm_model, [clip], cameras, 5.0, Start([q]), FitOptions(FitPriors(bias=0.0)), segments=SEGMENTS
    )
    off = (fit.q[0] - q).mean(axis=0)
    std = uncertainty_of(fit).pose_std[0].mean(axis=0)
    for column in inner:
        assert abs(off[column]) < 3 * std[column], names[column]
        # What this subject's own draw of errors does, 0.11 at most; a pull in every frame took far more.
        assert abs(off[column]) < 0.15, names[column]


def test_a_joint_at_its_bound_does_not_spoil_its_pace(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, _, _, priors = made
    column = next(i for i in range(arm_model.n_free) if np.ptp(q[:, i]) > 0.1 and i not in (3, 4, 5))
    upper = np.array(arm_model.upper, float)
    upper[column] = np.sort(q[:, column])[-4]  # three frames would be beyond it
    bounded = replace(arm_model, upper=jnp.asarray(upper))
    options = FitOptions(priors, acceleration_std=100.0, noise_px=1.0, correlated=False, rounds=12)
    paces = []
    for model in (arm_model, bounded):
        fit = fit_subject(model, [clip], cameras, 50.0, Start([q]), options, segments=SEGMENTS)
        paces.append(1 / np.sqrt(np.asarray(fit.whole.acceleration_precision)[0, column]))
    assert paces[1] < 4 * paces[0]


def test_a_clip_is_fitted_alike_beside_shorter_ones(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, _, _, priors = made
    options = FitOptions(priors, noise_px=1.0, correlated=False)
    short = Clip(clip.keypoints[:1], clip.confidence[:1])
    fit = fit_subject(arm_model, [clip, short], cameras, 50.0, Start([q, q[:1]]), options, segments=SEGMENTS)
    assert fit.status == FitStatus.CONVERGED
    pull = np.asarray(fit.whole.data.pull)
    np.testing.assert_allclose(pull.sum(axis=1), 1.0)
    assert np.isnan(fit.q[1, 1:]).all()
    assert np.isfinite(uncertainty_of(fit).pose_std[1, 0]).all()
    alone = fit_subject(arm_model, [short], cameras, 50.0, Start([q[:1]]), options, segments=SEGMENTS)
    assert np.isfinite(alone.q).all()


def test_errors_are_alike_by_their_directions(arm_model: SpineModel) -> None:
    random = np.random.default_rng(0)
    shape = (600, VIEWS, arm_model.n_markers)
    clip = Clip(500 + 100 * random.normal(size=(*shape, 2)), np.ones(shape))
    seen = _Seen.of([clip], VIEWS, jnp.dtype("float64"))
    white = random.normal(size=(1, *shape, 2))
    # Bursts of larger errors that have nothing to do with one another.
    bursts = white * np.where(np.arange(600) // 50 % 2, 5.0, 1.0)[:, None, None, None]
    assert _correlation(seen, bursts) < 1.15
    alike = white.copy()
    for t in range(1, 600):
        alike[:, t] = 0.5 * alike[:, t - 1] + np.sqrt(0.75) * white[:, t]
    assert _correlation(seen, alike) == pytest.approx(3.0, rel=0.1)  # (1 + 0.5) / (1 - 0.5)


def test_without_pictures_nothing_is_claimed(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, *_ = made
    nothing = Clip(np.full_like(clip.keypoints, np.nan), clip.confidence)
    fit = fit_subject(arm_model, [nothing], cameras, 50.0, Start([q]), segments=SEGMENTS)
    assert fit.status == FitStatus.TOO_LITTLE_DATA
    assert np.isnan(fit.q).all()
    with pytest.raises(ShapeError, match="too little data"):
        uncertainty_of(fit)


def test_what_does_not_go_together_is_refused(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, *_ = made
    with pytest.raises(ShapeError, match=r"valid is \[T 2 12 2\]"):
        fit_subject(arm_model, [clip], cameras.select(["a", "b"]), 50.0, Start([q]))
    with pytest.raises(ShapeError, match="valid is a finite number above 0"):
        fit_subject(arm_model, [clip], cameras, 0.0, Start([q]))
    with pytest.raises(ShapeError, match="is in no segment"):
        make_layout(arm_model, 1, segments=SEGMENTS[:1])
    with pytest.raises(UnknownNameError, match="tail"):
        make_layout(arm_model, 1, segments=(*SEGMENTS, Segment("tail", ("tail",))))
    with pytest.raises(ShapeError, match="stature"):
        FitPriors(stature=0.0)
    with pytest.raises(ShapeError, match="between 0 and 1"):
        half_width(1.0)


@pytest.mark.parametrize("usable", [0, 1, 2])
def test_a_clip_that_shows_next_to_nothing_does_no_harm(
    arm_model: SpineModel, cameras: Cameras, made, usable: int
) -> None:
    clip, q, markers, _, priors = made
    keypoints = np.full_like(clip.keypoints, np.nan)
    keypoints[7 : 7 + usable] = clip.keypoints[7 : 7 + usable]
    bad = Clip(keypoints, clip.confidence)
    options = FitOptions(priors, noise_px=1.0, correlated=False)
    fit = fit_subject(arm_model, [clip, bad], cameras, 50.0, Start([q, q]), options, segments=SEGMENTS)
    assert fit.status == FitStatus.CONVERGED
    assert np.abs(fit.markers[0] - markers).max() < 0.05
    sure = uncertainty_of(fit)
    assert np.isfinite(sure.pose_std[0]).all()
    assert np.isfinite(sure.shared).all()
    assert np.isfinite(fit.q[1]).all() == (usable > 0)
    if usable:
        assert (sure.marker_std[1, -1] > 10 * sure.marker_std[1, 7]).all(), "far from what is seen"


def test_a_term_without_a_derivative_ends_in_a_status(arm_model: SpineModel, cameras: Cameras, made) -> None:
    """Its steps gain nothing, so none of them is an end, however small damping makes them."""
    clip, q, _, _, priors = made

    def backwards(q, markers, scale):
        off = 50.0 * (markers[3] - 1.0)
        return 2 * jax.lax.stop_gradient(off) - off

    options = FitOptions(priors, noise_px=1.0, correlated=False, rounds=1)
    fit = fit_subject(
        arm_model, [clip], cameras, 50.0, Start([q]), options, segments=SEGMENTS, terms=[backwards]
    )
    assert fit.status == FitStatus.FAILED


def test_what_no_prior_and_no_picture_holds_is_told(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, _, _, priors = made
    options = FitOptions(priors, noise_px=1.0, correlated=False, rounds=1)
    fit = fit_subject(arm_model, [clip], cameras, 50.0, Start([q]), options, segments=SEGMENTS)
    loose = replace(fit.whole, prior_precision=0 * fit.whole.prior_precision)
    with pytest.raises(SimspineError, match="neither data nor prior"):
        uncertainty_of(replace(fit, whole=loose))


def test_a_measured_height_is_what_sizes_have(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, _, _, priors = made
    heights = []
    for height in (None, 2.2):
        options = FitOptions(priors, noise_px=1.0, correlated=False, rounds=1, height_m=height)
        seen = replace(clip, keypoints=np.where(np.arange(3)[:, None, None] == 0, clip.keypoints, np.nan))
        fit = fit_subject(arm_model, [seen], cameras, 50.0, Start([q]), options, segments=SEGMENTS)
        heights.append(float(estimate_height(arm_model, jnp.asarray(fit.scale_factors))))
    assert heights[1] == pytest.approx(2.2, rel=0.02)
    assert abs(heights[0] - 2.2) > 0.1


def test_noise_that_is_given_keeps_intervals_as_wide(arm_model: SpineModel, cameras: Cameras, made) -> None:
    clip, q, _, factors, priors = made
    widths = []
    for noise in (1.0, 16.0):
        fixed = replace(
            priors, stature=0.0, proportion=0.0, breadth=0.0, offset_m=0.0, rotation_deg=0.0, centre_m=0.0
        )
        options = FitOptions(fixed, noise_px=noise, correlated=False, marginal=False, adaptive=False)
        fit = fit_subject(arm_model, [clip], cameras, 50.0, Start([q], factors), options, segments=SEGMENTS)
        widths.append(np.median(uncertainty_of(fit).marker_std))
    # By what remains they would be alike; smoothing over time makes the ratio less than that of the noise.
    assert widths[1] > 2 * widths[0]


def test_a_stray_keypoint_does_not_make_a_second_camera(arm_model: SpineModel, made) -> None:
    clip, *_ = made
    keypoints = np.full_like(clip.keypoints, np.nan)
    keypoints[:, 0] = clip.keypoints[:, 0]
    keypoints[5, 1, 2] = 400.0
    seen = _Seen.of([Clip(keypoints, clip.confidence)], VIEWS, jnp.dtype("float64"))
    assert seen.by_one_camera
    keypoints[::2, 1:] = np.nan
    keypoints[1::2, 1] = clip.keypoints[1::2, 1]
    keypoints[1::2, 0] = np.nan
    assert _Seen.of([Clip(keypoints, clip.confidence)], VIEWS, jnp.dtype("float64")).by_one_camera
    assert not _Seen.of([clip], VIEWS, jnp.dtype("float64")).by_one_camera
