"""A subject's scale factors from distances between markers.

Two methods share one result. ``"opensim"`` does what OpenSim's scale tool does with a static trial: for each
pair of markers the mean distance over all frames is divided by the distance on the model in its default pose,
and a measurement is the mean of its pairs' ratios. ``"robust"`` is for a trial in which the subject moves and
markers go missing: it takes slow frames in which a pair is extended, and their trimmed mean.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.io.scale_setup import ManualScale, Measurement, ScaleSetup, ScalingStep
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel

Method = Literal["opensim", "robust"]
STATIC = {"static": True}

TRIM_FRACTION = 0.25
"""Left off at each end of the sorted distances, as the official code does."""
EXTENDED_QUANTILE, EXTENDED_SHARE, NOISE_STDS = 0.75, 0.95, 2.0
"""A pair is extended where it is at least ``EXTENDED_SHARE`` as long as its upper quartile, less its noise.

So a pair on one bone keeps its frames, however noisy, and one across the trunk loses those of a deep bend.
The noise is ``NOISE_STDS`` standard deviations, which come from differences between neighbouring frames.
The subject has to be upright in a quarter of the frames.
"""
SLOW_QUANTILE = 0.5
"""Of the extended frames those are used whose markers move no faster than the median."""

PROPORTION_STD = 0.03
"""Of segment lengths over stature between adults (chosen; anthropometric tables give a few per cent)."""

# Where a factor comes from.
_DEFAULT, _MEASURED, _GIVEN = range(3)

DEFAULT_MASS_KG = 70.0
"""The mass that the official code gives to every subject."""
GENERIC_HEIGHT_M = 1.71
"""The generic model's height: in its default pose the paper's Head marker is so high above the ground."""


def _both(a: str, b: str) -> tuple[tuple[str, str], ...]:
    return ("L" + a, "L" + b), ("R" + a, "R" + b)


def _sides(*bodies: str) -> tuple[str, ...]:
    return tuple(f"{body}_{side}" for body in bodies for side in "rl")


PAPER_MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "torso",
        _both("Shoulder", "Hip"),
        ("lumbar5", "lumbar4", "lumbar3", "lumbar2", "lumbar1", "torso"),
    ),
    Measurement("arm", _both("Shoulder", "Elbow"), _sides("humerus")),
    Measurement("forearm", _both("Elbow", "Wrist"), _sides("ulna", "radius", "hand")),
    Measurement("thigh", _both("Hip", "Knee"), _sides("femur", "patella")),
    Measurement("shank", _both("Knee", "Ankle"), _sides("tibia")),
    Measurement("foot", _both("Heel", "BigToe"), _sides("talus", "calcn", "toes")),
    Measurement("head", (("Head", "Nose"), ("Head", "Neck")), ("head",)),
    Measurement("pelvis", (("RHip", "LHip"),), ("pelvis", "sacrum")),
)
"""The measurements that the paper's pipeline scales its model by; left and right are averaged in them."""


class ScaleStatus(enum.IntEnum):
    """Whether a measurement could be taken, and why not."""

    MEASURED = 0
    SWITCHED_OFF = 1
    NO_PAIRS = 2
    NOT_ON_MODEL = 3
    """The model lacks a marker of the measurement, or has both markers of a pair at one place."""
    NOT_IN_TRIAL = 4
    MISSING_IN_FRAMES = 5
    """A marker is missing in a frame (``"opensim"``), or no pair is ever seen (``"robust"``)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaleResult:
    """What `scale_factors` finds; lengths in metres, NaN where a pair could not be measured.

    Attributes:
        factors: of each body along its axes, in the model's order; 1 where nothing says otherwise.
        measured: where a measurement (and not a given factor or the default) set the factor.
        ratios: of each measurement, NaN where it could not be taken.
        status: of each measurement, a `ScaleStatus`.
        trial_lengths: of each pair, over the frames used.
        model_lengths: of each pair, in the model's default pose.
        frames_used: of each pair.
        measurement_names: in the order given.
        pairs: of all measurements, one after another, each with its measurement's name.
        ignored_bodies: that are named but not in the model; OpenSim passes over them too.
    """

    factors: Float[Array, "B 3"]
    measured: Bool[Array, "B 3"]
    ratios: Float[Array, " M"]
    status: Int[Array, " M"]
    trial_lengths: Float[Array, " P"]
    model_lengths: Float[Array, " P"]
    frames_used: Int[Array, " P"]
    measurement_names: tuple[str, ...] = field(metadata=STATIC)
    pairs: tuple[tuple[str, str, str], ...] = field(metadata=STATIC)
    ignored_bodies: tuple[str, ...] = field(metadata=STATIC)


@dataclass(frozen=True)
class _Plan:
    """What names decide: for each pair its markers on the model and in the trial (-1 where it lacks one)."""

    on_model: tuple[tuple[int, int], ...]
    in_trial: tuple[tuple[int, int], ...]
    pair_measurements: tuple[int, ...]
    switched_on: tuple[bool, ...]
    method: Method


def frames_between(times: Float[np.ndarray, " T"], time_range: tuple[float, float]) -> slice:
    """The frames of a time range as OpenSim takes them: out to the nearest frames around its ends.

    Args:
        times: increasing, s.
        time_range: first and last time, s; may be infinite.
    """
    times = np.asarray(times, float)
    first, last = time_range
    # Times are written with few digits.
    before, after = np.flatnonzero(times <= first + 1e-9), np.flatnonzero(times >= last - 1e-9)
    start = int(before[-1]) if len(before) else 0
    after = after[after >= start]
    return slice(start, int(after[0]) + 1 if len(after) else len(times))


def measurement_distances(
    markers: Float[Array, "T K 3"], marker_names: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Float[Array, "T P"]:
    """Distances between pairs of markers in every frame, metres; NaN where a marker is missing.

    Raises:
        ShapeError: markers and names don't go together.
        UnknownNameError: a pair names a marker that the trial lacks.
    """
    markers = _as_markers(markers, marker_names)
    index = {name: i for i, name in enumerate(marker_names)}
    for name in (name for pair in pairs for name in pair):
        if name not in index:
            raise UnknownNameError("Marker", name, "the trial", marker_names)
    places = np.array([[index[a], index[b]] for a, b in pairs], int).reshape(-1, 2)
    return _distances(markers, places)


def scale_factors(
    model: SpineModel,
    markers: Float[Array, "T K 3"],
    marker_names: Sequence[str],
    measurements: Sequence[Measurement] = PAPER_MEASUREMENTS,
    *,
    manual: Sequence[ManualScale] = (),
    order: Sequence[ScalingStep] = ("measurements", "manualScale"),
    method: Method = "robust",
    symmetric: bool = False,
) -> ScaleResult:
    """The factors that scale a generic model to the subject of a trial; differentiable in ``markers``.

    The factors are `forward_kinematics`' ``scale_factors``. A later measurement overwrites an earlier one on
    the same body and axis, as does a later step of ``order``.

    Args:
        model: the generic model with its markers.
        markers: positions over time at one rate, metres; NaN where a marker is missing.
        marker_names: of ``markers``; those that the model lacks are passed over.
        measurements: taken in this order.
        manual: factors that are given.
        order: of the two kinds.
        method: ``"opensim"`` averages over all frames, and drops a measurement of which a marker is missing
            in any of them, as OpenSim does. ``"robust"`` takes slow frames in which a pair is extended and
            their trimmed mean, and drops only the pairs that it can't measure.
        symmetric: gives bodies of both sides (``_r``, ``_l``) the mean of what was measured on them; factors
            that are given stay.

    Raises:
        ShapeError: markers and names don't go together, or ``method`` or ``order`` is unknown.
    """
    markers = _as_markers(markers, marker_names)
    if method not in get_args(Method):
        raise ShapeError(f"method {method!r} is unknown; valid are {' and '.join(get_args(Method))}")
    if unknown := [step for step in order if step not in get_args(ScalingStep)]:
        raise ShapeError(f"step {unknown[0]!r} is unknown; valid are {' and '.join(get_args(ScalingStep))}")
    plan = _plan(model, marker_names, measurements, method)
    default_pose = forward_kinematics(model, model.default_q.astype(markers.dtype)).markers
    ratios, status, trial, on_model, used = _measure(plan, default_pose, markers)
    factors, origin = _apply(model, measurements, manual, tuple(order), ratios, status)
    if symmetric:
        factors, origin = _average_sides(model.body_names, factors, origin)
    named = [body for m in measurements if m.apply for body in m.bodies]
    named += [scale.body for scale in manual if scale.apply]
    return ScaleResult(
        factors, origin == _MEASURED, ratios, status, trial, on_model, used,
        measurement_names=tuple(m.name for m in measurements),
        pairs=tuple((m.name, *pair) for m in measurements for pair in m.pairs),
        ignored_bodies=tuple(dict.fromkeys(body for body in named if body not in model.body_names)),
    )  # fmt: skip


def scale_by_setup(
    model: SpineModel,
    markers: Float[Array, "T K 3"],
    marker_names: Sequence[str],
    times: Float[np.ndarray, " T"],
    setup: ScaleSetup,
) -> ScaleResult:
    """`scale_factors` as OpenSim's scale tool would find them by this setup.

    Args:
        model: the generic model with the setup's marker set.
        markers: of the setup's marker file, metres; NaN where a marker is missing.
        marker_names: of ``markers``.
        times: of the frames, s.
        setup: see `read_scale_setup`; its stage that places markers is left to `place_markers`.

    Raises:
        ShapeError: markers, names and times don't go together.
    """
    markers = _as_markers(markers, marker_names)
    if np.shape(times) != markers.shape[:1]:
        raise ShapeError(f"times has shape {np.shape(times)} for {len(markers)} frames")
    stage = setup.scaling
    return scale_factors(
        model,
        markers[frames_between(times, stage.time_range)],
        marker_names,
        stage.measurements,
        manual=stage.manual,
        order=stage.order if stage.apply else (),
        method="opensim",
    )


def shrink_to_stature(
    model: SpineModel,
    result: ScaleResult,
    measurements: Sequence[Measurement] = PAPER_MEASUREMENTS,
    *,
    marker_std_m: float,
    stature: float | None = None,
    proportion_std: float = PROPORTION_STD,
) -> Float[Array, "B 3"]:
    """Scale factors that trust each measurement as far as its markers deserve; the rest is the stature.

    A detector's keypoints are off the model's markers by centimetres, always in the same direction, so that
    no mean over frames helps: pairs that are near each other then give proportions that no adult has. Taken
    as normal, a measurement's ratio has the variance ``2 (marker_std_m / length)^2`` of its keypoints and
    ``proportion_std^2`` of people; the factors are the posterior means given the person's stature, which
    itself is the mean of the ratios weighted by their precision (empirical Bayes).

    Args:
        model: the generic model.
        result: of `scale_factors` with these measurements, all of whose factors may stem from them.
        measurements: as given to `scale_factors`.
        marker_std_m: how far along a line markers lie from where the model has them, metres.
        stature: the subject's height over the generic model's, where it is known.
        proportion_std: of a segment's length over the stature, between adults.

    Raises:
        ShapeError: no measurement could be taken and no stature is given.
    """
    taken = np.asarray(result.status) == ScaleStatus.MEASURED
    if stature is None and not taken.any():
        raise ShapeError("No measurement could be taken, so the subject's size is not known")
    starts = np.cumsum([0, *(len(m.pairs) for m in measurements)])
    lengths = np.asarray(result.model_lengths)
    length = np.array([np.nanmean(lengths[a:b]) for a, b in itertools.pairwise(starts)])
    ratios = np.where(taken, np.asarray(result.ratios, float), 1.0)
    noise = 2 * (marker_std_m / np.where(taken, length, 1.0)) ** 2
    precision = np.where(taken, 1 / (noise + proportion_std**2), 0.0)
    size = float(np.sum(precision * ratios) / np.sum(precision)) if stature is None else float(stature)
    believed = size + proportion_std**2 / (noise + proportion_std**2) * (ratios - size)
    factors = np.full((len(model.body_names), 3), size)
    for measurement, value, known in zip(measurements, believed, taken, strict=True):
        for body in measurement.bodies if known and measurement.apply else ():
            if body in model.body_names:
                factors[model.body_names.index(body)] = value
    return jnp.asarray(factors, result.factors.dtype)


def estimate_height(
    model: SpineModel,
    scale_factors: Float[Array, "B #3"],
    generic_height_m: float = GENERIC_HEIGHT_M,
) -> Float[Array, ""]:
    """The subject's height, metres, from the scaled model.

    The generic model stands for a person of ``generic_height_m``; the subject is as much taller as the
    scaled model's markers reach over a greater height in the default pose, where the model stands upright.
    Only ratios count, so that it does not matter how far from crown and sole the markers are.

    Raises:
        ShapeError: the model has no markers, or ``scale_factors`` don't fit it.
    """
    if model.n_markers < 2:
        raise ShapeError(f"The model {model.name} has {model.n_markers} markers; its height needs two")

    def reach(factors: Array | None) -> Array:
        heights = forward_kinematics(model, model.default_q, scale_factors=factors).markers[:, 1]
        return jnp.max(heights) - jnp.min(heights)

    return generic_height_m * reach(jnp.asarray(scale_factors)) / reach(None)


def trimmed_mean(
    values: Float[Array, "T *rest"], mask: Bool[Array, "T *rest"], fraction: float = TRIM_FRACTION
) -> Float[Array, "*rest"]:
    """Mean over the first axis of the values in ``mask``, without the ``fraction`` of them at each end.

    The number left off is rounded down, as in SciPy's ``trim_mean``; NaN where ``mask`` is empty.
    """
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=0)
    count = jnp.sum(mask, axis=0)
    cut = jnp.floor(fraction * count).astype(count.dtype)
    rank = jnp.arange(values.shape[0]).reshape(-1, *[1] * (values.ndim - 1))
    kept = (rank >= cut) & (rank < count - cut)
    # Infinite places are taken out before the sum, so that their derivatives are zeros and not NaN.
    total = jnp.sum(jnp.where(kept, ordered, 0), axis=0)
    return jnp.where(count > 0, total / jnp.maximum(count - 2 * cut, 1), jnp.nan)


def usable_frames(
    markers: Float[Array, "T K 3"], places: Int[np.ndarray, "P 2"], lengths: Float[Array, "T P"]
) -> Bool[Array, "T P"]:
    """Frames in which each pair is extended and its markers are slow; see `EXTENDED_SHARE`, `SLOW_QUANTILE`.

    Every pair that is seen at all keeps a frame.

    Args:
        markers: positions at one rate, metres; NaN where missing.
        places: the two markers of each pair.
        lengths: of each pair, NaN where missing.
    """
    # Choosing frames is no matter for derivatives.
    markers, lengths = lax.stop_gradient((markers, lengths))
    seen = jnp.isfinite(lengths)
    reference = _order_statistic(lengths, seen, EXTENDED_QUANTILE)
    extended = seen & (lengths >= EXTENDED_SHARE * reference - NOISE_STDS * _noise(lengths))
    speed = jnp.sum(_speeds(markers)[:, places], axis=-1)
    return extended & (speed <= _order_statistic(speed, extended, SLOW_QUANTILE))


def _speeds(markers: Float[Array, "T K 3"]) -> Float[Array, "T K"]:
    """How far each marker moves from and to the neighbouring frames; infinite where none of them shows it."""
    step = jnp.linalg.norm(jnp.diff(markers, axis=0), axis=-1)
    gap = jnp.full((1, markers.shape[1]), jnp.nan, markers.dtype)
    around = jnp.stack([jnp.concatenate([gap, step]), jnp.concatenate([step, gap])])
    known = jnp.isfinite(around)
    mean = jnp.sum(jnp.where(known, around, 0), axis=0) / jnp.maximum(jnp.sum(known, axis=0), 1)
    return jnp.where(known.any(axis=0), mean, jnp.inf)


def _noise(lengths: Float[Array, "T P"]) -> Float[Array, " P"]:
    """Standard deviation of a frame's noise, from the median step between frames; 0 where there is none."""
    step = jnp.abs(jnp.diff(lengths, axis=0, append=jnp.nan))
    known = jnp.isfinite(step)
    # Of a normal distribution the median absolute value is 0.6745 standard deviations.
    noise = _order_statistic(step, known, 0.5) / (0.6745 * np.sqrt(2))
    return jnp.where(known.any(axis=0), noise, 0)


def _order_statistic(
    values: Float[Array, "T P"], mask: Bool[Array, "T P"], fraction: float
) -> Float[Array, " P"]:
    """The value in ``mask`` that the fraction of them does not exceed, without interpolation."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=0)
    place = jnp.floor(fraction * jnp.maximum(jnp.sum(mask, axis=0) - 1, 0)).astype(int)
    return jnp.take_along_axis(ordered, place[None], axis=0)[0]


def _as_markers(markers, marker_names: Sequence[str]) -> Array:
    markers = jnp.asarray(markers)
    if not jnp.issubdtype(markers.dtype, jnp.floating):
        markers = markers.astype(float)
    if markers.ndim != 3 or markers.shape[1:] != (len(marker_names), 3) or len(markers) == 0:
        raise ShapeError(
            f"markers has shape {markers.shape}; it must be (frames, {len(marker_names)}, 3), the named "
            "markers in their order, with at least one frame"
        )
    if len(set(marker_names)) != len(marker_names):
        raise ShapeError("marker_names has a name twice; valid is one of each")
    return markers


def _distances(
    points: Float[Array, "*batch K 3"], places: Int[np.ndarray, "P 2"]
) -> Float[Array, "*batch P"]:
    here = jnp.all(jnp.isfinite(points), axis=-1)
    # Missing points are taken out first and zero roots left out, so that no derivative is NaN.
    points = jnp.where(here[..., None], points, 0)
    between = points[..., places[:, 0], :] - points[..., places[:, 1], :]
    squared = jnp.sum(between**2, axis=-1)
    apart = squared > 0
    length = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)
    return jnp.where(here[..., places[:, 0]] & here[..., places[:, 1]], length, jnp.nan)


def _plan(
    model: SpineModel, marker_names: Sequence[str], measurements: Sequence[Measurement], method: Method
) -> _Plan:
    def places(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
        index = {name: i for i, name in enumerate(names)}
        return tuple((index.get(a, -1), index.get(b, -1)) for m in measurements for a, b in m.pairs)

    return _Plan(
        on_model=places(model.marker_names),
        in_trial=places(marker_names),
        pair_measurements=tuple(i for i, m in enumerate(measurements) for _ in m.pairs),
        switched_on=tuple(m.apply for m in measurements),
        method=method,
    )


@partial(jax.jit, static_argnums=0, inline=True)
def _measure(
    plan: _Plan, default_pose: Float[Array, "K 3"], markers: Float[Array, "T K 3"]
) -> tuple[Array, Array, Array, Array, Array]:
    """Ratios and status of the measurements; lengths in trial and model and frame counts of the pairs."""
    on_model, in_trial = (np.array(p, int).reshape(-1, 2) for p in (plan.on_model, plan.in_trial))
    on, there = on_model.min(axis=1) >= 0, in_trial.min(axis=1) >= 0
    # A trial or model may hold no marker at all, which then no pair refers to.
    nowhere = jnp.full((1, 3), jnp.nan, markers.dtype)
    default_pose = jnp.concatenate([default_pose, nowhere])
    markers = jnp.concatenate([markers, jnp.broadcast_to(nowhere, (len(markers), 1, 3))], axis=1)
    model_lengths = _distances(default_pose, np.where(on[:, None], on_model, -1))
    places = np.where(there[:, None], in_trial, -1)
    lengths = _distances(markers, places)
    seen = jnp.isfinite(lengths)
    if plan.method == "opensim":
        used, enough = seen, seen.all(axis=0)
        trial_lengths = jnp.where(enough, jnp.mean(jnp.where(seen, lengths, 0), axis=0), jnp.nan)
    else:
        used = usable_frames(markers, places, lengths)
        enough = seen.any(axis=0)
        trial_lengths = trimmed_mean(jnp.where(seen, lengths, 0), used)
    fits = jnp.asarray(on) & (model_lengths > 0)
    pair_status = jnp.where(enough, ScaleStatus.MEASURED, ScaleStatus.MISSING_IN_FRAMES)
    pair_status = jnp.where(there, pair_status, ScaleStatus.NOT_IN_TRIAL)
    pair_status = jnp.where(fits, pair_status, ScaleStatus.NOT_ON_MODEL)
    good = pair_status == ScaleStatus.MEASURED
    pair_ratios = jnp.where(good, trial_lengths, 0) / jnp.where(fits, model_lengths, 1)
    ratios, status = _average_pairs(plan, pair_ratios, pair_status)
    frames = jnp.where(good, jnp.sum(used, axis=0), 0)
    return ratios, status, jnp.where(good, trial_lengths, jnp.nan), model_lengths, frames


def _average_pairs(
    plan: _Plan, pair_ratios: Float[Array, " P"], pair_status: Int[Array, " P"]
) -> tuple[Float[Array, " M"], Int[Array, " M"]]:
    """Means of the pairs' ratios: of all pairs (as OpenSim) or of those that could be measured."""
    rows = jnp.arange(len(plan.switched_on))[:, None]
    belongs = rows == jnp.asarray(plan.pair_measurements, int)
    good = belongs & (pair_status == ScaleStatus.MEASURED)
    count = jnp.sum(good, axis=1)
    complete = count == belongs.sum(axis=1)
    measured = complete if plan.method == "opensim" else count > 0
    # Of several reasons the one with the largest number is told.
    reason = jnp.max(jnp.where(belongs, pair_status, 0), axis=1, initial=0)
    status = jnp.where(measured, ScaleStatus.MEASURED, reason)
    status = jnp.where(belongs.any(axis=1), status, ScaleStatus.NO_PAIRS)
    status = jnp.where(np.array(plan.switched_on, bool), status, ScaleStatus.SWITCHED_OFF)
    mean = jnp.sum(jnp.where(good, pair_ratios, 0), axis=1) / jnp.maximum(count, 1)
    return jnp.where(status == ScaleStatus.MEASURED, mean, jnp.nan), status


def _apply(
    model: SpineModel,
    measurements: Sequence[Measurement],
    manual: Sequence[ManualScale],
    order: tuple[ScalingStep, ...],
    ratios: Float[Array, " M"],
    status: Int[Array, " M"],
) -> tuple[Float[Array, "B 3"], Int[Array, "B 3"]]:
    """Factors and where each comes from, steps and measurements in their order."""
    row = {name: i for i, name in enumerate(model.body_names)}
    factors = jnp.ones((len(row), 3), ratios.dtype)
    origin = jnp.full((len(row), 3), _DEFAULT)
    for step in order:
        for i, m in enumerate(measurements if step == "measurements" else ()):
            reached = np.zeros((len(row), 3), bool)
            for body, axes in zip(m.bodies, m.axes, strict=True):
                if body in row:
                    reached[row[body]] |= [axis in axes for axis in "XYZ"]
            here = reached & (status[i] == ScaleStatus.MEASURED)
            factors, origin = jnp.where(here, ratios[i], factors), jnp.where(here, _MEASURED, origin)
        for scale in manual if step == "manualScale" else ():
            if scale.apply and scale.body in row:
                factors = factors.at[row[scale.body]].set(jnp.asarray(scale.factors, factors.dtype))
                origin = origin.at[row[scale.body]].set(_GIVEN)
    return factors, origin


def other_side(body: str) -> str:
    """The body on the other side of one that ends in ``_r`` or ``_l``; else the body itself."""
    return {"_r": body[:-2] + "_l", "_l": body[:-2] + "_r"}.get(body[-2:], body)


def _average_sides(
    body_names: tuple[str, ...], factors: Float[Array, "B 3"], origin: Int[Array, "B 3"]
) -> tuple[Float[Array, "B 3"], Int[Array, "B 3"]]:
    """Means of both sides where both were measured, the other side's where only that one was."""
    row = {name: i for i, name in enumerate(body_names)}
    partner = np.array([row.get(other_side(name), i) for i, name in enumerate(body_names)], int)
    here = jnp.equal(origin, _MEASURED)
    there = here[partner]
    total = jnp.where(here, factors, 0) + jnp.where(there, factors[partner], 0)
    changed = (here | there) & (origin != _GIVEN)
    mean = total / jnp.maximum(here.astype(factors.dtype) + there, 1)
    return jnp.where(changed, mean, factors), jnp.where(changed, _MEASURED, origin)
