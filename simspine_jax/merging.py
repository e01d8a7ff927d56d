"""Body markers and pseudo spine points as one marker set, with a confidence for each marker and frame.

The body markers are those of optical motion capture or of another detector; their clock and frame are kept.
The spine points are triangulated keypoints. Names that mean the same place become one marker, both are
resampled to common times, and the spine's are turned into the body's frame where the two differ.

Source: the paper's section 3.1, step 2, which concatenates Human3.6M's markers and the spine's points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.geometry.procrustes import Similarity, align
from simspine_jax.io.trc import MarkerTrajectory
from simspine_jax.skeleton import TRC_NAMES

BODY_CONFIDENCE = 1.0
"""Of body markers where none is given; the paper trusts them more than the spine's points."""

SPINE_CONFIDENCE = 0.5
"""Of spine points where none is given: the official weight of a spine marker beside a limb's."""

MIN_COMMON_MARKERS = 3
"""Fewer leave the rotation between two frames to the motion of one or two points."""

MIN_AGREEING = 0.5
"""Share of common observations that must agree with an alignment; a majority can't be outliers."""

NEAR_WEIGHT = 0.3
"""Weight, in the alignment alone, of markers that lie near a keypoint and not at it."""

MOST_FRAMES = 500
"""Frames, evenly spread, that an alignment looks at: enough to average out noise and motion."""

SPEED_SECONDS = 0.1
"""Speeds are taken over this time, so that the noise of markers doesn't drown them."""

MIN_SHARED_SECONDS = 1.0
"""An offset between clocks is looked for where so much of both recordings overlaps."""

MIN_CORRELATION = 0.6
"""Of the speeds of common markers; on the two real trials 0.94 to 1.0 with up to 10 mm of added noise."""

ROUNDING = 1e-9
"""Share of the largest variance of speeds below which it is rounding."""

TIME_ROUNDING = 1e-3
"""Times count as equal within this share of a frame; files round them."""


def _sided(short: str = "", long: str = "", both: str = "") -> tuple[str, ...]:
    """Spellings with ``{s}`` for r or l and ``{side}`` for right or left, best first."""
    names = [f"{{side}}{word}" for word in long.split()]
    for word in both.split():
        names += [f"{{s}}{word}", f"{{side}}{word}", f"{word}{{s}}", f"{word}{{side}}"]
    return (*names, *(f"{{s}}{word}" for word in short.split()))


_MIDDLE_PLACES = {
    "Neck": ("c7", "cv7"),
    "Neck_03": ("c1",),
    "Spine_05": ("t3", "tv3"),
    "Spine_04": ("t8", "tv8"),
    "Spine_02": ("l3", "lv3"),
    "Spine_01": ("l5", "lv5"),
    "Hip": ("sacr", "vsacral", "sacrum", "midsacrum"),
}
# In the skeleton of Human3.6M's BVH files a limb's name is that of the joint that it hangs from, and
# RightShoulder is the clavicle; so the first name of a row counts where a file has two.
_SIDED_PLACES = {
    "Shoulder": _sided(long="arm", both="shoulder"),
    "Elbow": _sided(long="forearm", both="elbow"),
    "Wrist": _sided(long="hand", both="wrist"),
    "Hip": _sided(long="upleg", both="hip"),
    "Knee": _sided(long="leg", both="knee"),
    "Ankle": _sided(long="foot", both="ankle"),
    "Heel": _sided(both="heel", short="hee cal"),
}
_SIDED_NEAR = {
    "Shoulder": _sided(both="acromion acromium", short="sho acr"),
    "Elbow": _sided(short="elb"),
    "Wrist": _sided(short="wri wra wrb"),
    "Knee": _sided(short="kne"),
    "Ankle": _sided(short="ank"),
    "BigToe": _sided(short="toe toetip"),
}


def _table(
    sided: Mapping[str, tuple[str, ...]], middle: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    rows = dict(middle)
    for place, names in sided.items():
        for s, side in (("r", "right"), ("l", "left")):
            rows[s.upper() + place] = tuple(name.format(s=s, side=side) for name in names)
    return rows


def _plain(name: str) -> str:
    return "".join(c for c in name.rpartition(":")[2].lower() if c.isalnum())


_OWN = {name[1:]: _sided(both=name[1:].lower()) for name in TRC_NAMES if "L" + name[1:] == name}
_PLACES, _SIDES = _table(_SIDED_PLACES, _MIDDLE_PLACES), _table(_OWN, {})
SAME_PLACE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(dict.fromkeys((*_PLACES.get(name, ()), _plain(name), *_SIDES.get(name, ()))))
        for name in TRC_NAMES
    }
)
"""Spellings, without case and punctuation, of names that mean a keypoint's own place, best first.

Skin markers beside a joint (RSHO on the acromion, RKNE on the epicondyle, LASI) are other places, and so are
levels of the spine that no keypoint has (T10): such markers keep their own names.
"""

NEAR_PLACE: Mapping[str, tuple[str, ...]] = MappingProxyType(_table(_SIDED_NEAR, {}))
"""Markers within some 5 cm of a keypoint, left and right alike, which can help to align frames."""

HUMAN36M_OVERLAP = ("Pelvis", "Hip", "Spine", "Thorax", "Neck", "Neck/Nose", "Head", "HeadTop", "Nose")
"""Joints of Human3.6M that mean other places than our keypoints of these names; the paper leaves them out.

Leave them out with ``body_mapping={name: None for name in HUMAN36M_OVERLAP if name in body.names}``.
"""


@dataclass(frozen=True)
class MergeOptions:
    """How two recordings are brought together.

    Attributes:
        method: between samples, ``"linear"`` or ``"cubic"`` (the polynomial through two on each side).
        max_gap_s: time without samples that is still crossed.
        rate_hz: of the result; None keeps the body's times.
        same_frame: whether both are in one frame already, so that nothing is aligned.
        time_offset_s: what is added to the spine's times to have the body's; None estimates it.
        max_offset_s: the largest offset that an estimate may give, either way.
        max_residual_m: how far common markers may lie apart after the alignment; skin markers lie some
            5 cm from joints.
    """

    method: Literal["linear", "cubic"] = "cubic"
    max_gap_s: float = 0.1
    rate_hz: float | None = None
    same_frame: bool = False
    time_offset_s: float | None = 0.0
    max_offset_s: float = 2.0
    max_residual_m: float = 0.05

    def __post_init__(self) -> None:
        if self.method not in ("linear", "cubic"):
            raise ShapeError(f"method is {self.method!r}; valid are 'linear' and 'cubic'")
        for name in ("max_gap_s", "max_offset_s"):
            if not getattr(self, name) >= 0:
                raise ShapeError(f"{name} is {getattr(self, name)}; valid is a number of seconds from 0")
        if not self.max_residual_m > 0:
            raise ShapeError(f"max_residual_m is {self.max_residual_m}; valid is above 0")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ShapeError(f"rate_hz is {self.rate_hz}; valid is above 0, or None for the body's times")


class FrameAlignment(NamedTuple):
    """The rigid motion from the spine's frame to the body's: ``rotation @ x + translation``."""

    rotation: NDArray[np.float64]
    """[3 3] ``R_body_spine``."""
    translation: NDArray[np.float64]
    """[3] m."""
    residual_m: float
    """Root mean square distance of the observations that agree."""
    agreeing: float
    """Their share of all common observations."""
    markers: tuple[str, ...]
    """That both have, by their names in the result."""


@dataclass(frozen=True, eq=False)
class MergedMarkers:
    """One marker set from two.

    Attributes:
        markers: in the body's frame and clock; the body's markers first.
        confidence: [T K] 0 to 1, which becomes the weight in inverse kinematics; 0 where missing.
        from_spine: [T K] whether a position is the spine recording's.
        alignment: of the frames; None where they are the same.
        time_offset_s: that was added to the spine's times.
        renamed: names in the files and in the result, where they differ.
    """

    markers: MarkerTrajectory
    confidence: NDArray[np.float64]
    from_spine: NDArray[np.bool_]
    alignment: FrameAlignment | None
    time_offset_s: float
    renamed: tuple[tuple[str, str], ...]


def merge_markers(
    body: MarkerTrajectory,
    spine: MarkerTrajectory,
    options: MergeOptions | None = None,
    *,
    body_confidence: NDArray[np.float64] | None = None,
    spine_confidence: NDArray[np.float64] | None = None,
    body_mapping: Mapping[str, str | None] | None = None,
    spine_mapping: Mapping[str, str | None] | None = None,
) -> MergedMarkers:
    """Merges two recordings over the time that both cover.

    Of a marker that both have, the one with the larger confidence over the whole trial has precedence, so
    that positions don't jump to and fro between the two; the other fills the frames where it is missing.

    Args:
        body: body markers, whose frame and clock the result has.
        spine: spine points.
        options: how.
        body_confidence: [T K] of each observation, 0 to 1; default `BODY_CONFIDENCE`.
        spine_confidence: likewise; default `SPINE_CONFIDENCE`.
        body_mapping: names in ``body`` and in the result, before all tables; None leaves a marker out.
        spine_mapping: likewise.

    Raises:
        SimspineError: too few markers in common or a bad fit, no time in common, or no offset of the clocks
            under which the motions match.
        ShapeError: a confidence of another shape or beyond 0 to 1.
        UnknownNameError: a mapping is for a marker that the recording lacks.
    """
    options = options or MergeOptions()
    body_set = _named(body, correspondence(body.names, body_mapping, body.source), body_confidence, True)
    spine_set = _named(
        spine, correspondence(spine.names, spine_mapping, spine.source), spine_confidence, False
    )
    common = _common(body_set.markers.names, spine_set.markers.names)
    offset = options.time_offset_s
    if offset is None:
        offset = _time_offset(body_set.markers, spine_set.markers, common, options)
    spine_set = spine_set._replace(markers=replace(spine_set.markers, times=spine_set.markers.times + offset))
    times, rate = _common_times(body_set.markers, spine_set.markers, options)
    sets = [_resampled(s, times, options) for s in (body_set, spine_set)]
    alignment = None
    if not options.same_frame:
        alignment = _aligned(sets[0], sets[1], common, body.source, spine.source, options.max_residual_m)
        turned = sets[1].positions @ alignment.rotation.T + alignment.translation
        sets[1] = sets[1]._replace(positions=turned)
    positions, confidence, from_spine, names = _united(*sets)
    markers = MarkerTrajectory(names, times, positions, rate, f"{body.source} and {spine.source}")
    renamed = (*body_set.renamed, *spine_set.renamed)
    return MergedMarkers(markers, confidence, from_spine, alignment, float(offset), renamed)


# --- names ---


def correspondence(
    names: Sequence[str], mapping: Mapping[str, str | None] | None = None, where: str = "the recording"
) -> dict[str, str | None]:
    """The name of each marker in the merged set: a keypoint's TRC name if it is the same place, or its own.

    Case, punctuation and a subject's prefix (``Anna:C7``) don't matter. Where two markers mean one place, the
    one of exactly that name has it, else the better one in `SAME_PLACE`; the other keeps its own name.

    Args:
        names: of a recording.
        mapping: a user's names, which override the table; None leaves a marker out.
        where: what errors call the recording.

    Raises:
        UnknownNameError: the mapping is for a marker that is not there.
        SimspineError: two markers get the same name.
    """
    mapping = mapping or {}
    for name in mapping:
        if name not in names:
            raise UnknownNameError("Marker", name, where, names)
    result: dict[str, str | None] = dict(mapping)
    taken = set(mapping.values())
    plain = {_plain(name): name for name in reversed(names) if name not in mapping}
    for place, spellings in SAME_PLACE.items():
        exact = [place] if place in names else []
        alike = [plain[spelling] for spelling in spellings if spelling in plain]
        found = next((name for name in exact + alike if name not in result), None)
        if found is not None and place not in taken:
            result[found] = place
            taken.add(place)
    for name in names:
        result.setdefault(name, name)
    kept = [(new, old) for old, new in result.items() if new is not None]
    for new, old in kept:
        others = [o for n, o in kept if n == new and o != old]
        if others:
            raise SimspineError(
                f"Markers '{old}' and '{others[0]}' of {where} would both be '{new}'; "
                "valid are names that differ"
            )
    return {name: result[name] for name in names}


class _Named(NamedTuple):
    """A recording under its names in the result."""

    markers: MarkerTrajectory
    confidence: NDArray[np.float64]  # [T K]; zero where missing
    renamed: tuple[tuple[str, str], ...]


def _named(
    recording: MarkerTrajectory,
    names: Mapping[str, str | None],
    confidence: NDArray[np.float64] | None,
    is_body: bool,
) -> _Named:
    shape = recording.present.shape
    if confidence is None:
        confidence = np.full(shape, BODY_CONFIDENCE if is_body else SPINE_CONFIDENCE)
    confidence = np.asarray(confidence, np.float64)
    if confidence.shape != shape:
        raise ShapeError(
            f"The confidence of {recording.source} has shape {confidence.shape}; valid is {shape}"
        )
    confidence = np.where(recording.present, confidence, 0.0)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ShapeError(f"The confidence of {recording.source} is not from 0 to 1 everywhere")
    kept = [(k, old, new) for k, (old, new) in enumerate(names.items()) if new is not None]
    if not kept:
        raise SimspineError(f"All markers of {recording.source} are left out; valid is at least one")
    columns = [k for k, _, _ in kept]
    # What has no confidence has no say, so it counts as missing.
    positions = np.where(confidence[..., None] > 0, recording.positions, np.nan)[:, columns]
    markers = replace(recording, names=tuple(new for _, _, new in kept), positions=positions)
    renamed = tuple((old, new) for _, old, new in kept if old != new)
    return _Named(markers, confidence[:, columns], renamed)


class _Pair(NamedTuple):
    body: int
    spine: int
    weight: float
    name: str


def _common(body: Sequence[str], spine: Sequence[str]) -> list[_Pair]:
    """Markers that both have; those that are only near each other too where they are needed."""
    same = [_Pair(body.index(name), k, 1.0, name) for k, name in enumerate(spine) if name in body]
    if len(same) >= MIN_COMMON_MARKERS:
        return same
    plain = {_plain(name): k for k, name in enumerate(body)}
    near = []
    for k, name in enumerate(spine):
        found = next((plain[s] for s in NEAR_PLACE.get(name, ()) if s in plain), None)
        if found is not None and name not in body:
            near.append(_Pair(found, k, NEAR_WEIGHT, name))
    return same + near


# --- times ---


class _Samples(NamedTuple):
    """A recording at the common times."""

    names: tuple[str, ...]
    positions: NDArray[np.float64]  # [T K 3]
    confidence: NDArray[np.float64]  # [T K]


def _common_times(
    body: MarkerTrajectory, spine: MarkerTrajectory, options: MergeOptions
) -> tuple[NDArray[np.float64], float]:
    start, end = max(body.times[0], spine.times[0]), min(body.times[-1], spine.times[-1])
    rate = body.rate if options.rate_hz is None else options.rate_hz
    margin = TIME_ROUNDING / rate
    if options.rate_hz is None:
        times = body.times[(body.times >= start - margin) & (body.times <= end + margin)]
    else:
        times = start + np.arange(max(int((end - start + margin) * rate) + 1, 0)) / rate
    if end < start - margin or not len(times):
        raise SimspineError(
            f"{body.source} has {body.times[0]:g} to {body.times[-1]:g} s and {spine.source} "
            f"{spine.times[0]:g} to {spine.times[-1]:g} s; valid are recordings that overlap"
        )
    return times, rate


def _resampled(recording: _Named, times: NDArray[np.float64], options: MergeOptions) -> _Samples:
    markers = recording.markers
    positions = resample(markers, times, method=options.method, max_gap_s=options.max_gap_s)
    confidence = np.zeros(positions.shape[:2])
    for k in range(len(markers.names)):
        seen = markers.present[:, k]
        if seen.any():
            confidence[:, k] = np.interp(times, markers.times[seen], recording.confidence[seen, k])
    return _Samples(markers.names, positions, np.where(np.isnan(positions[..., 0]), 0.0, confidence))


def resample(
    markers: MarkerTrajectory,
    times: NDArray[np.float64],
    *,
    method: Literal["linear", "cubic"] = "cubic",
    max_gap_s: float = 0.1,
) -> NDArray[np.float64]:
    """[T K 3] positions at other times, m; NaN beyond a marker's ends and in gaps longer than the horizon.

    A gap is the time between two samples of a marker beyond one step of the recording. Where cubic finds no
    second sample near enough on a side, it is linear. Nothing is filtered before the rate is lowered.
    """
    result = np.full((len(times), len(markers.names), 3), np.nan)
    for k in range(len(markers.names)):
        seen = markers.present[:, k]
        if seen.any():
            result[:, k] = _interpolated(
                markers.times[seen], markers.positions[seen, k], times, method, max_gap_s, 1 / markers.rate
            )
    return result


def _interpolated(
    known: NDArray[np.float64],
    values: NDArray[np.float64],
    times: NDArray[np.float64],
    method: str,
    max_gap_s: float,
    step: float,
) -> NDArray[np.float64]:
    """One marker's ``values`` [N 3] at times ``known``, at others."""
    margin, last = TIME_ROUNDING * step, len(known) - 1
    right = np.clip(np.searchsorted(known, times), 0, last)
    left = np.maximum(right - 1, 0)
    # The next sample after each; the allowance is for steps that are not quite even.
    bridged = np.diff(known, append=np.inf) <= max_gap_s + (1 + 0.1) * step
    nearest = np.where(np.abs(times - known[left]) <= np.abs(times - known[right]), left, right)
    at_sample = np.abs(times - known[nearest]) <= margin
    inside = (times >= known[left]) & (times <= known[right]) & bridged[left] & (left < right)
    span = np.where(right > left, known[right] - known[left], 1.0)
    share = ((times - known[left]) / span)[:, None]
    result = (1 - share) * values[left] + share * values[right]
    if method == "cubic":
        outer = np.maximum(left - 1, 0), np.minimum(right + 1, last)
        four = (left > 0) & (right < last) & bridged[outer[0]] & bridged[right]
        rows = np.flatnonzero(four & inside)
        index = np.stack([outer[0], left, right, outer[1]])[:, rows]
        result[rows] = _lagrange(known[index], values[index], times[rows])
    # Times just beyond an end of the samples, by rounding.
    result = np.where(inside[:, None], result, values[nearest])
    return np.where((inside | at_sample)[:, None], result, np.nan)


def _lagrange(
    known: NDArray[np.float64], values: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The cubic through four samples ([4 N], [4 N 3]) at each time."""
    total = np.zeros(values.shape[1:])
    for i in range(4):
        others = [j for j in range(4) if j != i]
        weight = np.prod([(times - known[j]) / (known[i] - known[j]) for j in others], axis=0)
        total += weight[:, None] * values[i]
    return total


def _time_offset(
    body: MarkerTrajectory, spine: MarkerTrajectory, common: Sequence[_Pair], options: MergeOptions
) -> float:
    """What to add to the spine's times, by the speeds of common markers, which no frame changes.

    The best correlation over all offsets, refined by a parabola through its neighbours. Motion that repeats
    itself within ``max_offset_s`` can match a whole cycle off.
    """
    what = f"The clocks of {body.source} and {spine.source}"
    if not common:
        raise SimspineError(f"{what} can't be compared without a common marker; valid is time_offset_s")
    rate = max(body.rate, spine.rate)
    first = _speeds(body, [pair.body for pair in common], rate, options)
    second = _speeds(spine, [pair.spine for pair in common], rate, options)
    score = _correlation(first, second, MIN_SHARED_SECONDS * rate * len(common))
    lags = np.arange(len(score)) - (len(second) - 1)
    offsets = body.times[0] - spine.times[0] + lags / rate
    score = np.where(np.abs(offsets) <= options.max_offset_s, score, -np.inf)
    at = int(np.argmax(score))
    if not score[at] >= MIN_CORRELATION:
        raise SimspineError(
            f"{what} can't be matched: common markers' speeds correlate by at most {max(score[at], 0):.2f} "
            f"within {options.max_offset_s:g} s; valid is {MIN_CORRELATION:g} or time_offset_s"
        )
    shift = 0.0
    if 0 < at < len(score) - 1 and np.isfinite(score[[at - 1, at + 1]]).all():
        before, peak, after = score[at - 1 : at + 2]
        shift = 0.5 * (before - after) / (before - 2 * peak + after)
    return float(offsets[at] + shift / rate)


def _speeds(
    markers: MarkerTrajectory, columns: Sequence[int], rate: float, options: MergeOptions
) -> NDArray[np.float64]:
    """[T K] m/s from the recording's start on; NaN where unknown."""
    chosen = replace(
        markers, names=tuple(map(str, range(len(columns)))), positions=markers.positions[:, columns]
    )
    times = markers.times[0] + np.arange(int(markers.duration * rate + TIME_ROUNDING) + 1) / rate
    positions = resample(chosen, times, method=options.method, max_gap_s=options.max_gap_s)
    half = max(round(SPEED_SECONDS * rate / 2), 1)
    speeds = np.full(positions.shape[:2], np.nan)
    if len(times) > 2 * half:
        apart = positions[2 * half :] - positions[: -2 * half]
        speeds[half:-half] = np.linalg.norm(apart, axis=-1) * rate / (2 * half)
    return speeds


def _correlation(
    first: NDArray[np.float64], second: NDArray[np.float64], least: float
) -> NDArray[np.float64]:
    """Of masked columns over all lags from ``1 - len(second)`` on; -inf where fewer than ``least`` overlap.

    Each column's mean over the overlap is taken off (Padfield, Masked object registration in the Fourier
    domain, IEEE TIP 21, 2012).
    """
    a_seen, b_seen = ~np.isnan(first), ~np.isnan(second)
    a, b = np.where(a_seen, first, 0.0), np.where(b_seen, second, 0.0)

    def slide(x: NDArray, y: NDArray) -> NDArray[np.float64]:
        return np.asarray(fftconvolve(x.astype(float), y[::-1].astype(float), axes=0))

    n = np.round(slide(a_seen, b_seen))
    safe = np.maximum(n, 1)
    a_sum, b_sum = slide(a, b_seen), slide(a_seen, b)
    product = (slide(a, b) - a_sum * b_sum / safe).sum(axis=1)
    a_square = (slide(a**2, b_seen) - a_sum**2 / safe).sum(axis=1)
    b_square = (slide(a_seen, b**2) - b_sum**2 / safe).sum(axis=1)
    size = np.sqrt(np.maximum(a_square, 0) * np.maximum(b_square, 0))
    # Fourier transforms leave rounding where nothing moves.
    known = (n.sum(axis=1) >= least) & (size > ROUNDING * size.max(initial=0.0))
    return np.where(known, product / np.where(known, size, 1.0), -np.inf)


# --- frames ---


def _aligned(
    body: _Samples,
    spine: _Samples,
    common: Sequence[_Pair],
    body_source: str,
    spine_source: str,
    most_m: float,
) -> FrameAlignment:
    what = f"The frames of {body_source} and {spine_source} can't be aligned"
    names = tuple(pair.name for pair in common)
    if len(common) < MIN_COMMON_MARKERS:
        raise SimspineError(
            f"{what}: they have {len(common)} markers in common ({', '.join(names) or 'none'}); valid are "
            f"{MIN_COMMON_MARKERS}, a mapping of names, or same_frame"
        )
    rows = np.unique(np.linspace(0, len(body.positions) - 1, MOST_FRAMES).astype(int))
    first, second = [pair.body for pair in common], [pair.spine for pair in common]
    target = body.positions[rows][:, first].reshape(-1, 3)
    source = spine.positions[rows][:, second].reshape(-1, 3)
    weights = np.minimum(body.confidence[rows][:, first], spine.confidence[rows][:, second])
    weights = (weights * np.array([pair.weight for pair in common])).ravel()
    seen = ~np.isnan(target[:, 0]) & ~np.isnan(source[:, 0])
    size = 1 << max(int(seen.sum()) - 1, 0).bit_length()
    padded = [
        np.concatenate([x[seen], np.zeros((size - int(seen.sum()), *x.shape[1:]))])
        for x in (source, target, weights)
    ]
    found = _robust_alignment(*map(jnp.asarray, padded), jnp.asarray(most_m))
    rotation = np.asarray(found.rotation, np.float64)
    translation = np.asarray(found.translation, np.float64)
    away = np.linalg.norm(source[seen] @ rotation.T + translation - target[seen], axis=-1)
    agree = away <= most_m
    share = float(agree.mean()) if len(away) else 0.0
    if share < MIN_AGREEING or not bool(found.determined):
        middle = f"{1e3 * np.median(away):.0f} mm" if len(away) else "unknown"
        raise SimspineError(
            f"{what}: by {', '.join(names)} they stay {middle} apart, {share:.0%} within "
            f"{1e3 * most_m:.0f} mm; valid is {MIN_AGREEING:.0%} within max_residual_m, of points that are "
            "not on a line"
        )
    residual = float(np.sqrt(np.mean(away[agree] ** 2)))
    return FrameAlignment(rotation, translation, residual, share, names)


ANNEALING = 1.4
"""By which the robust cost narrows from step to step, and how many steps; 1.4**40 spans all scales."""

ANNEALING_STEPS = 40


@jax.jit
def _robust_alignment(
    source: Float[Array, "N 3"],
    target: Float[Array, "N 3"],
    weights: Float[Array, " N"],
    scale: Float[Array, ""],
) -> Similarity:
    """Rigid alignment that points further than ``scale`` off hardly move.

    Graduated non-convexity: Geman and McClure's cost, at first so wide that it is least squares (Yang,
    Antonante, Tzoumas and Carlone, IEEE RA-L 5, 2020).
    """

    def squared(found: Similarity) -> Array:
        return jnp.where(weights > 0, jnp.sum((found.apply(source) - target) ** 2, -1), 0.0)

    start = align(source, target, weights)
    widest = jnp.maximum(2 * squared(start).max() / scale**2, 1.0)

    def step(i: Array, found: Similarity) -> Similarity:
        width = jnp.maximum(widest / ANNEALING ** (i + 1.0), 1.0) * scale**2
        return align(source, target, weights * (width / (squared(found) + width)) ** 2)

    return lax.fori_loop(0, ANNEALING_STEPS, step, start)


# --- the union ---


def _united(
    body: _Samples, spine: _Samples
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], tuple[str, ...]]:
    names = (*body.names, *(name for name in spine.names if name not in body.names))
    shape = (len(body.positions), len(names))
    positions, confidence = np.full((*shape, 3), np.nan), np.zeros(shape)
    from_spine = np.zeros(shape, bool)
    for k, name in enumerate(names):
        having = [s for s in (body, spine) if name in s.names]
        # Stable: of equal ones the body's comes first.
        having.sort(key=lambda s: -s.confidence[:, s.names.index(name)].mean())
        for samples in having:
            column = samples.names.index(name)
            fill = (confidence[:, k] == 0) & (samples.confidence[:, column] > 0)
            positions[fill, k] = samples.positions[fill, column]
            confidence[fill, k] = samples.confidence[fill, column]
            from_spine[fill, k] = samples is spine
    return positions, confidence, from_spine, names
