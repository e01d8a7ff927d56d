"""Whole clips: the banded solve against a dense reference, gaps, batches, smoothing and derivatives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

import simspine_jax as ssj
from simspine_jax.errors import ShapeError
from simspine_jax.io.ik_setup import IKSetup, MarkerTask
from simspine_jax.kinematics.clip import CPU_FRAMES
from simspine_jax.kinematics.inverse import IKStatus

FRAMES, CLIPS = 12, 2
NOISE_M = 0.01
SMOOTHING = ssj.Smoothing(velocity=1e-7, acceleration=3e-9, rate_hz=40.0)


@dataclasses.dataclass(frozen=True)
class Clips:
    """Two clips of the arm, [2 12 12 3], with 1 cm of noise and some markers missing."""

    model: ssj.SpineModel
    setup: IKSetup
    q: np.ndarray
    markers: np.ndarray

    def solve(self, markers=None, smoothing=SMOOTHING, **more) -> ssj.IKSolution:
        markers = self.markers if markers is None else markers
        more = {"tolerance": 1e-12, "setup": self.setup} | more
        return ssj.solve_ik(self.model, markers, smoothing=smoothing, **more)


@pytest.fixture(scope="module")
def clips(arm_model) -> Clips:
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (CLIPS, 1, arm_model.n_free))
    q = 0.5 * np.sin(0.2 * np.arange(FRAMES)[:, None] + phase)
    exact = np.asarray(ssj.forward_kinematics(arm_model, q).markers)
    markers = exact + rng.normal(0, NOISE_M, exact.shape)
    markers[0, 3, 4] = markers[1, 7, 2] = np.nan
    setup = IKSetup(tuple(MarkerTask(name, 1.0) for name in arm_model.marker_names))
    return Clips(arm_model, setup, q, markers)


@pytest.fixture(scope="module")
def solved(clips: Clips) -> ssj.IKSolution:
    return clips.solve()


def dense_residuals(clips: Clips, smoothing: ssj.Smoothing, markers: np.ndarray):
    """All residuals of one clip by the definition, as a function of its stacked poses; and their Jacobian."""
    present = np.isfinite(markers).all(axis=-1)
    weights = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
    scale = jnp.sqrt(jnp.asarray(weights))[..., None]
    targets = jnp.asarray(np.nan_to_num(markers))

    def residuals(flat):
        q = flat.reshape(FRAMES, -1)
        error = scale * (ssj.forward_kinematics(clips.model, q).markers - targets)
        speed = np.sqrt(smoothing.velocity) * smoothing.rate_hz * jnp.diff(q, axis=0)
        bend = np.sqrt(smoothing.acceleration) * smoothing.rate_hz**2 * jnp.diff(q, 2, axis=0)
        return jnp.concatenate([error.ravel(), speed.ravel(), bend.ravel()])

    return jax.jit(residuals), jax.jit(jax.jacfwd(residuals))


@pytest.fixture(scope="module")
def dense(clips: Clips) -> np.ndarray:
    return np.stack([dense_solution(clips, c) for c in range(CLIPS)])


def dense_solution(clips: Clips, c: int) -> np.ndarray:
    function, jacobian = dense_residuals(clips, SMOOTHING, clips.markers[c])
    low, high = (np.tile(np.asarray(x), FRAMES) for x in (clips.model.lower, clips.model.upper))
    found = least_squares(
        lambda x: np.asarray(function(x)),
        np.clip(clips.q[c].ravel(), low + 1e-3, high - 1e-3),
        lambda x: np.asarray(jacobian(x)),
        bounds=(low, high),
        method="trf",
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=1000,
    )
    return found.x.reshape(FRAMES, -1)


def test_the_banded_solution_is_the_dense_one(clips: Clips, solved, dense) -> None:
    assert (solved.status == IKStatus.CONVERGED).all()
    np.testing.assert_allclose(solved.q, dense, atol=1e-6)
    # The penalties matter: single frames end somewhere else.
    alone = ssj.solve_ik(clips.model, clips.markers, setup=clips.setup, tolerance=1e-12)
    assert np.abs(alone.q - dense).max() > 0.02


def test_without_penalties_frames_are_on_their_own(clips: Clips) -> None:
    alone = ssj.solve_ik(clips.model, clips.markers, setup=clips.setup, tolerance=1e-12)
    together = clips.solve(smoothing=ssj.Smoothing())
    np.testing.assert_allclose(together.q, alone.q, atol=1e-6)
    np.testing.assert_allclose(together.objective, alone.objective, rtol=1e-9)


@pytest.mark.parametrize("penalty", ["velocity", "acceleration"])
def test_heavier_penalties_give_smoother_motions(clips: Clips, penalty: str) -> None:
    base = {"velocity": 1e-6, "acceleration": 1e-9}[penalty]
    order = {"velocity": 1, "acceleration": 2}[penalty]
    rough, error = [], []
    for factor in (0.0, 1.0, 100.0):
        found = clips.solve(smoothing=ssj.Smoothing(**{penalty: base * factor}, rate_hz=40.0))
        rough.append(float(np.mean(np.diff(np.asarray(found.q), order, axis=1) ** 2)))
        error.append(float(np.mean(found.objective)))
    assert rough[0] > 1.02 * rough[1] > 1.02**2 * rough[2]
    assert error[0] < error[1] < error[2]


def test_the_rate_is_the_unit_of_time(clips: Clips, solved) -> None:
    slower = ssj.Smoothing(
        velocity=SMOOTHING.velocity * 4, acceleration=SMOOTHING.acceleration * 16, rate_hz=20.0
    )
    np.testing.assert_allclose(clips.solve(smoothing=slower).q, solved.q, atol=1e-7)


def test_clips_of_different_lengths_are_solved_as_alone(clips: Clips, solved) -> None:
    markers = clips.markers.copy()
    lengths = np.array([12, 7])
    markers[1, 7:] = 5.0  # padding may hold anything
    found = clips.solve(markers, lengths=lengths)
    np.testing.assert_allclose(found.q[0], solved.q[0], atol=1e-6)
    alone = clips.solve(clips.markers[1:, :7])
    np.testing.assert_allclose(found.q[1, :7], alone.q[0], atol=1e-6)
    assert np.abs(found.q[1, :7] - solved.q[1, :7]).max() > 1e-5


def test_padding_beyond_a_clip_has_no_pose(clips: Clips) -> None:
    found = clips.solve(lengths=np.array([12, 7]))
    assert np.isnan(found.q[1, 7:]).all()
    assert (found.status[1, 7:] == IKStatus.TOO_FEW_MARKERS).all()


def test_gaps_are_bridged_but_reported(clips: Clips, solved) -> None:
    markers = clips.markers.copy()
    markers[0, 4:6] = np.nan
    markers[1, :2] = np.nan
    found = clips.solve(markers)
    gap = np.zeros((CLIPS, FRAMES), bool)
    gap[0, 4:6] = gap[1, :2] = True
    np.testing.assert_array_equal(found.status == IKStatus.TOO_FEW_MARKERS, gap)
    for values in (found.q, found.coordinates, found.markers, found.marker_rmse):
        np.testing.assert_array_equal(np.isnan(values).reshape(CLIPS, FRAMES, -1).any(axis=-1), gap)
    # The frames beside a gap feel each other through it, as the dense solution with no weights there does.
    function, jacobian = dense_residuals(clips, SMOOTHING, markers[0])
    reference = least_squares(
        lambda x: np.asarray(function(x)), clips.q[0].ravel(), lambda x: np.asarray(jacobian(x)),
        method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15,
    ).x.reshape(FRAMES, -1)  # fmt: skip
    np.testing.assert_allclose(found.q[0][~gap[0]], reference[~gap[0]], atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_the_shortest_clips(clips: Clips, frames: int) -> None:
    found = clips.solve(clips.markers[0, :frames])
    assert found.q.shape == (frames, clips.model.n_free)
    assert (found.status == IKStatus.CONVERGED).all()
    if frames == 1:
        alone = ssj.solve_ik(clips.model, clips.markers[0, :1], setup=clips.setup, tolerance=1e-12)
        np.testing.assert_allclose(found.q, alone.q, atol=1e-7)


def test_whole_turns_are_taken_out_along_time(clips: Clips) -> None:
    """A trunk that keeps turning passes 180 degrees without a jump of the penalties."""
    yaw = np.linspace(2.5, 4.5, FRAMES)
    q = np.zeros((FRAMES, clips.model.n_free))
    q[:, 2] = yaw
    markers = np.asarray(ssj.forward_kinematics(clips.model, q).markers)
    found = clips.solve(
        np.stack([markers, markers]), smoothing=ssj.Smoothing(acceleration=1e-7, rate_hz=40.0)
    )
    assert (found.status == IKStatus.CONVERGED).all()
    assert found.marker_rmse.max() < 1e-4
    assert np.abs(np.diff(np.asarray(found.q), axis=1)).max() < 0.3


def test_bounds_are_kept(clips: Clips, solved) -> None:
    elbow = clips.model.free_indices(["elbow"])[0]
    top = float(np.quantile(np.asarray(solved.q)[..., elbow], 0.6))
    bounded = dataclasses.replace(
        clips, model=dataclasses.replace(clips.model, upper=clips.model.upper.at[elbow].set(top))
    )
    solution = bounded.solve()
    assert (solution.status == IKStatus.CONVERGED).all()
    found = np.asarray(solution.q)[..., elbow]
    assert found.max() <= top
    assert (found == top).sum() > 3
    assert (found < top - 1e-3).sum() > 3
    # Nothing is lost: SciPy's bounded solver ends at the same poses, near its barrier.
    for c in range(CLIPS):
        np.testing.assert_allclose(solution.q[c], dense_solution(bounded, c), atol=2e-4)


def test_gradients_hold_where_a_bound_is_active(clips: Clips, solved) -> None:
    elbow = clips.model.free_indices(["elbow"])[0]
    top = float(np.quantile(np.asarray(solved.q)[..., elbow], 0.6))
    bounded = dataclasses.replace(
        clips, model=dataclasses.replace(clips.model, upper=clips.model.upper.at[elbow].set(top))
    )
    rng = np.random.default_rng(4)
    mix, markers = jnp.asarray(rng.normal(size=solved.q.shape)), jnp.asarray(clips.markers)
    start = bounded.solve().q
    bar = jax.grad(lambda x: jnp.sum(mix * bounded.solve(x, initial_q=start).q))(markers)
    direction = jnp.asarray(rng.normal(size=markers.shape))
    ends = [np.asarray(bounded.solve(markers + s * 1e-5 * direction, initial_q=start).q) for s in (1, -1)]
    held = [np.flatnonzero(end[..., elbow] == top).tolist() for end in (*ends, np.asarray(start))]
    assert held[0] == held[1] == held[2] != []
    numeric = float(np.sum(np.asarray(mix) * (ends[0] - ends[1]))) / 2e-5
    assert float(jnp.nansum(bar * direction)) == pytest.approx(numeric, rel=1e-4)


def test_a_clip_is_solved_the_same_among_many(clips: Clips, solved) -> None:
    # More than one group of clips, the last of them not full.
    count = 2 * (CPU_FRAMES // FRAMES) + 1
    which = np.arange(count) % CLIPS
    many = clips.solve(clips.markers[which])
    assert (many.status == IKStatus.CONVERGED).all()
    np.testing.assert_allclose(many.q, np.asarray(solved.q)[which], atol=1e-7)


@pytest.mark.parametrize("which", ["markers", "velocity", "acceleration"])
def test_gradients_are_central_differences_of_the_solution(clips: Clips, solved, which: str) -> None:
    rng = np.random.default_rng(4)
    mix = jnp.asarray(rng.normal(size=solved.q.shape))

    def value(markers, velocity, acceleration):
        smoothing = ssj.Smoothing(velocity, acceleration, 40.0)
        return jnp.sum(mix * clips.solve(markers, smoothing=smoothing, initial_q=solved.q).q)

    arguments = [
        jnp.asarray(clips.markers),
        jnp.asarray(SMOOTHING.velocity),
        jnp.asarray(SMOOTHING.acceleration),
    ]
    bars = jax.grad(value, argnums=(0, 1, 2))(*arguments)
    index = ["markers", "velocity", "acceleration"].index(which)
    assert np.isfinite(bars[index]).all()
    for _ in range(6 if which == "markers" else 1):
        direction = jnp.asarray(rng.normal(size=arguments[index].shape)) if index == 0 else arguments[index]
        step = 2e-4 if index == 0 else 1e-2
        ends = []
        for sign in (1, -1):
            moved = list(arguments)
            moved[index] = moved[index] + sign * step * direction
            ends.append(float(value(*moved)))
        numeric = (ends[0] - ends[1]) / (2 * step)
        analytic = float(jnp.nansum(bars[index] * direction))
        size = (
            float(jnp.sqrt(jnp.nansum(bars[index] ** 2) * jnp.nansum(direction**2)))
            if index == 0
            else abs(numeric)
        )
        assert abs(analytic - numeric) < 1e-4 * max(abs(numeric), 0.05 * size), (analytic, numeric)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"smoothing": {"velocity": -1.0}}, "velocity must be a finite number that is not negative"),
        (
            {"smoothing": {"acceleration": np.inf}},
            "acceleration must be a finite number",
        ),
        ({"smoothing": {"rate_hz": 0}}, "rate_hz"),
        ({"lengths": np.array([1, 2, 3])}, "lengths has 3 entries for 2 clips"),
    ],
)
def test_wrong_arguments_are_named(clips: Clips, change: dict, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        clips.solve(smoothing=ssj.Smoothing(**change.pop("smoothing", {})), **change)
