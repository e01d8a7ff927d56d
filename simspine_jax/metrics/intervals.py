"""Confidence intervals by bootstrap over clips.

Frames of a clip are alike, so that a thousand frames say less than a thousand clips would: the clip is the
unit. Each resample draws as many clips as there are, with replacement, and takes the mean over all examples
of those drawn, so that the estimate is the mean that a table shows, also where clips differ in length.

Source: B. Efron, Better bootstrap confidence intervals, JASA 82 (1987), for the bias-corrected and
accelerated interval (BCa).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr, ndtri
from numpy.typing import ArrayLike

from simspine_jax.arrays import Array, Float, Int
from simspine_jax.errors import ShapeError
from simspine_jax.metrics.masked import Masked, safe_sqrt

RESAMPLES = 2000
"""Efron and Tibshirani (An Introduction to the Bootstrap, 1993) ask for 1000 and more."""

_BLOCK = 256  # resamples at a time, which bounds memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: over all examples; NaN where nothing is present.
        low: lower end; NaN where fewer than two clips have values, of which no spread can be known.
        high: upper end, likewise.
        clips: how many have values.
    """

    estimate: Float[Array, "*metrics"]
    low: Float[Array, "*metrics"]
    high: Float[Array, "*metrics"]
    clips: Int[Array, "*metrics"]


def bootstrap(
    scores: Masked,
    clips: ArrayLike,
    *,
    statistic: Literal["mean", "rms"] = "mean",
    method: Literal["bca", "percentile"] = "bca",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Confidence interval of the mean, or root mean square, of per-example scores.

    Args:
        scores: ``[N *metrics]``, an example a row; those of all regions or levels share the resamples.
        clips: N labels of any kind; equal ones are of one clip.
        statistic: what is estimated.
        method: BCa corrects the percentile interval for bias and skewness.
        confidence: share of such intervals that should hold the truth, above 0 and below 1.
        resamples: how many are drawn.
        seed: of the draws.

    Raises:
        ShapeError: there is not one label an example, or a number or choice is not valid.
    """
    labels = np.asarray(clips)
    if scores.values.ndim < 1 or labels.shape != scores.values.shape[:1]:
        raise ShapeError(f"clips has shape {labels.shape}; valid is one label for each of the examples "
                         f"of {scores.values.shape}")  # fmt: skip
    if statistic not in ("mean", "rms") or method not in ("bca", "percentile"):
        raise ShapeError(
            f"statistic is {statistic} and method {method}; valid are mean or rms, bca or percentile"
        )
    if not 0 < confidence < 1 or resamples < 1:
        raise ShapeError(
            f"confidence is {confidence} and resamples {resamples}; valid is between 0 and 1, from 1"
        )
    unique, index = np.unique(labels, return_inverse=True)
    if statistic == "rms":
        scores = scores.map(jnp.square)
    sums, counts = _clip_sums(scores, jnp.asarray(index), max(len(unique), 1))
    key = jax.random.key(seed)
    corrected = method == "bca"
    found = _interval(sums, counts, key, confidence, resamples=resamples, corrected=corrected)
    if statistic == "rms":
        ends = (
            jnp.where(jnp.isnan(x), jnp.nan, safe_sqrt(x)) for x in (found.estimate, found.low, found.high)
        )
        estimate, low, high = ends
        found = Interval(estimate, low, high, found.clips)
    shape = scores.values.shape[1:]
    return jax.tree.map(lambda x: x.reshape(shape), found)


@partial(jax.jit, static_argnames=("n_clips",))
def _clip_sums(scores: Masked, index: Array, n_clips: int) -> tuple[Array, Array]:
    """Sum and number of what is present, [clips metrics]."""
    n, *metrics = scores.values.shape
    shape = (n, math.prod(metrics))
    sums = jax.ops.segment_sum(scores.filled.reshape(shape), index, n_clips)
    counts = jax.ops.segment_sum(scores.present.reshape(shape).astype(sums.dtype), index, n_clips)
    return sums, counts


@partial(jax.jit, static_argnames=("resamples", "corrected"))
def _interval(
    sums: Array, counts: Array, key: Array, confidence: Array | float, *, resamples: int, corrected: bool
) -> Interval:
    n_clips = len(sums)
    estimate = _ratio(sums.sum(0), counts.sum(0))

    def resample(key: Array) -> Array:
        drawn = jax.random.randint(key, (n_clips,), 0, n_clips)
        times = jnp.zeros(n_clips, sums.dtype).at[drawn].add(1)
        return _ratio(*(jnp.dot(times, x, precision="highest") for x in (sums, counts)))

    drawn = lax.map(resample, jax.random.split(key, resamples), batch_size=min(_BLOCK, resamples))
    ends = jnp.stack([(1 - confidence) / 2, (1 + confidence) / 2]).astype(sums.dtype)
    shares = jnp.broadcast_to(ends[:, None], (2, sums.shape[1]))
    if corrected:
        shares = _corrected(shares, drawn, estimate, sums, counts)
    low, high = jax.vmap(jnp.nanquantile, (1, 1), 1)(drawn, shares)
    clips = (counts > 0).sum(0)
    low, high = (jnp.where(clips > 1, end, jnp.nan) for end in (low, high))
    return Interval(estimate, low, high, clips)


def _ratio(total: Array, count: Array) -> Array:
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _corrected(shares: Array, drawn: Array, estimate: Array, sums: Array, counts: Array) -> Array:
    """Efron's shares for the two ends; the given ones where all resamples lie on one side of the estimate."""
    known = jnp.isfinite(drawn)
    below = (jnp.where(known, drawn < estimate, False).sum(0) + (known & (drawn <= estimate)).sum(0)) / 2
    share = below / jnp.maximum(known.sum(0), 1)
    usable = (share > 0) & (share < 1)
    bias = ndtri(jnp.where(usable, share, 0.5))
    without = _ratio(sums.sum(0) - sums, counts.sum(0) - counts)
    used = (counts > 0) & jnp.isfinite(without)
    middle = jnp.where(used, without, 0.0).sum(0) / jnp.maximum(used.sum(0), 1)
    off = jnp.where(used, middle - without, 0.0)
    spread = (off**2).sum(0)
    skew = jnp.where(spread > 0, (off**3).sum(0) / (6 * jnp.where(spread > 0, spread, 1.0) ** 1.5), 0.0)
    z = bias + ndtri(shares)
    return jnp.where(usable, ndtr(bias + z / (1 - skew * z)), shares)
