"""The lumbar levels of a subject: in the model's rhythm, in a rhythm of its own, or free.

The model's couplers make the levels' angles about an axis fixed multiples of one. Other people share the same
motion among the levels otherwise. With a rhythm of the subject's own these multiples are part of what all of
its frames share, five numbers for each axis, as their sum stays; the prior keeps them near the model's. With
free levels each frame departs from the model's rhythm by itself, as far as a second prior lets it.

Which of them the pictures speak for is told by evidence (`fitting.evidence`), under the noise and the
accelerations that the coupled fit has found. The two levels round a vertebra without a marker are told apart
by little, and all of them by a motion that hardly bends them; then deviations stay what the prior says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array
from simspine_jax.fitting.evidence import log_evidence, power_of
from simspine_jax.fitting.solving import Fitted, Whole, descend
from simspine_jax.fitting.spread import no_spread
from simspine_jax.fitting.terms import Setting
from simspine_jax.kinematics.lumbar import Rhythm, departing_lumbar, rhythm_of

Lumbar = Literal["coupled", "rhythm", "free"]

KASS_RAFTERY = ((1.0, "not worth more than a bare mention"), (3.0, "positive"), (5.0, "strong"))
"""Logarithms of Bayes factors and what they are below them; beyond, very strong (Bayes Factors, 1995)."""


@dataclass(frozen=True)
class LumbarEvidence:
    """Evidence for the couplers and against them, up to a constant that both have in common.

    It takes keypoints' errors as independent of one another. Where they aren't, and are larger than what the
    levels' shares move, it can be strong for what is wrong.

    Attributes:
        treatment: that is compared with the coupled one.
        log_coupled: logarithm of the coupled model's evidence; NaN where one of the fits did not converge.
        log_free: likewise of the treatment's.
        power: of the data's likelihood in both.
    """

    treatment: Lumbar
    log_coupled: float
    log_free: float
    power: float

    @property
    def log_bayes_factor(self) -> float:
        """Of the treatment over the coupled model; below 0 the pictures speak for the couplers."""
        return self.log_free - self.log_coupled

    def verdict(self) -> str:
        """The Bayes factor in the words of R. Kass and A. Raftery."""
        size = abs(self.log_bayes_factor)
        if not np.isfinite(size):
            return "no evidence for or against the model's rhythm, as one of both fits did not converge"
        words = next((words for bound, words in KASS_RAFTERY if size < bound), "very strong")
        side = "against" if self.log_bayes_factor > 0 else "for"
        return f"evidence {side} the model's rhythm: {words}"


class Solved(NamedTuple):
    """A problem and where its objective is least.

    Attributes:
        setting: static part of the problem.
        whole: its arrays.
        fitted: poses and shared vector.
    """

    setting: Setting
    whole: Whole
    fitted: Fitted


def released(
    coupled: Solved,
    treatment: Lumbar,
    *,
    rhythm_share: float,
    level_std: float,
    correlation: float,
    max_steps: int,
    tolerance: float,
) -> tuple[Solved, LumbarEvidence]:
    """A coupled fit gone on with a rhythm of the subject's own or free levels, and the evidence for it.

    Args:
        coupled: fit, whose noise and accelerations stay.
        treatment: ``rhythm`` or ``free``.
        rhythm_share: deviation of each level's multiple, as a share of the model's.
        level_std: deviation of free levels from the rhythm, rad.
        correlation: frames over which errors are alike.
        max_steps: of the descent.
        tolerance: likewise.

    Raises:
        UnsupportedModelError: the model has no coupled lumbar levels.
    """
    start = _with_rhythm(coupled, rhythm_share) if treatment == "rhythm" else _with_levels(coupled, level_std)
    fitted = descend(start.setting, start.whole, *start.fitted[:2], max_steps, tolerance)
    found = start._replace(fitted=fitted)
    if not (bool(coupled.fitted.converged) and bool(fitted.converged)):
        # What a descent has still to gain would count for what comes after it.
        return found, LumbarEvidence(treatment, np.nan, np.nan, np.nan)
    both = _held(*(_unspread(p) for p in (coupled, found)))
    power = power_of(*both[0][0][:2], *coupled.fitted[:2], correlation)
    before, after = (float(log_evidence(*p[:2], *p.fitted[:2], held, power)) for p, held in both)
    return found, LumbarEvidence(treatment, before, after, float(power))


def _unspread(p: Solved) -> Solved:
    """The poses themselves: evidence counts their widths by the determinant."""
    return p._replace(whole=replace(p.whole, spread=no_spread(p.fitted.q)))


def _held(coupled: Solved, found: Solved) -> list[tuple[Solved, Array]]:
    """Both with the coordinates that are at a bound in one of them; departures have none."""
    q, other = coupled.fitted.q, found.fitted.q
    model = coupled.whole.fixed.model
    low, high = (x.astype(q.dtype) for x in (model.lower, model.upper))
    at = [(x <= low) | (x >= high) for x in (q, other[..., : q.shape[-1]])]
    both = at[0] | at[1]
    more = ((0, 0), (0, 0), (0, other.shape[-1] - q.shape[-1]))
    return [(coupled, both), (found, jnp.pad(both, more))]


def _with_rhythm(p: Solved, share: float) -> Solved:
    """The shared vector with the rhythm's numbers after those of the body."""
    model, layout = p.whole.fixed.model, p.setting.layout
    rhythm = rhythm_of(model)
    at, n = layout.n_body, len(rhythm.leads)

    def widened(x: Array, value: float = 0.0) -> Array:
        return jnp.insert(x, jnp.full(n, at), value)

    precision = np.insert(np.asarray(p.whole.prior_precision), [at] * n, 0.0, axis=0)
    precision = np.insert(precision, [at] * n, 0.0, axis=1)
    precision[at : at + n, at : at + n] = share_precision(rhythm, share)
    whole = replace(
        p.whole,
        prior_precision=jnp.asarray(precision, p.fitted.q.dtype),
        prior_mean=widened(p.whole.prior_mean),
        free=widened(p.whole.free, 1.0),
    )
    setting = replace(p.setting, layout=replace(layout, rhythm=rhythm))
    return Solved(setting, whole, p.fitted._replace(theta=widened(p.fitted.theta)))


def share_precision(rhythm: Rhythm, share: float) -> NDArray[np.float64]:
    """``[D D]`` of the rhythm's numbers: levels' multiples vary by this share of them, their sum stays."""
    precision = np.zeros((len(rhythm.leads),) * 2)
    first = 0
    for axis in rhythm.axes:
        here = slice(first, first := first + len(axis.ratios) - 1)
        scaled = axis.basis / (share * np.abs(axis.ratios))[:, None]
        precision[here, here] = scaled.T @ scaled
    return precision


def _with_levels(p: Solved, std: float) -> Solved:
    """Coordinates for departures from the rhythm, whose accelerations are as large as their leaders'."""
    q, fixed = p.fitted.q, p.whole.fixed
    leads = rhythm_of(fixed.model).leads
    none = jnp.zeros((*q.shape[:2], len(leads)), q.dtype)
    known = jnp.zeros_like(fixed.pose_precision), jnp.full(len(leads), 1 / std**2, q.dtype)
    fixed = replace(
        fixed,
        model=departing_lumbar(fixed.model),
        pose_precision=jnp.concatenate([fixed.pose_precision, none[0, 0]]),
        frame_precision=jnp.concatenate(known),
    )
    paces = p.whole.acceleration_precision
    # Departures aren't spread: the prior holds them in each frame by itself.
    wide = jnp.pad(p.whole.spread, ((0, 0), (0, 0), (0, 0), (0, len(leads))))
    whole = replace(
        p.whole,
        fixed=fixed,
        acceleration_precision=jnp.concatenate([paces, paces[:, leads]], axis=1),
        spread=wide,
    )
    return Solved(p.setting, whole, p.fitted._replace(q=jnp.concatenate([q, none], axis=-1)))
