"""Speeds and accelerations of measured motions, as OpenSim's inverse dynamics tool takes them.

Samples are padded, filtered and put on a quintic spline; its derivatives are the speeds and accelerations.
On the host, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from scipy.interpolate import make_interp_spline

from simspine_jax.errors import ShapeError

LEAST_FRAMES = 6
"""A quintic spline goes through no fewer samples."""
LARGEST_JITTER = 0.5
"""Of a step: a motion whose steps differ by more has gaps."""
EVEN = 1e-3
"""Of a step: times that are off an even grid by no more were rounded when they were written."""
FILTER_ORDER = 3
"""Of one pass of OpenSim's ``Signal::LowpassIIR``; there are two, one backwards."""


@dataclass(frozen=True, eq=False)
class CoordinateMotion:
    """A motion with its derivatives, by rad, m and s.

    Attributes:
        times: [T] s.
        values: [T Q].
        speeds: [T Q].
        accelerations: [T Q].
    """

    times: NDArray[np.float64]
    values: NDArray[np.float64]
    speeds: NDArray[np.float64]
    accelerations: NDArray[np.float64]


def differentiate(
    times: NDArray[np.float64], values: NDArray[np.float64], cutoff_hz: float | None
) -> CoordinateMotion:
    """Smooth values, speeds and accelerations of samples.

    The spline is a natural one (its third and fourth derivatives vanish at both ends), as OpenSim's GCVSpline
    of degree 5 is without smoothing. Where the samples are filtered, they are first padded by half of
    their number at both ends, turned over about the end samples, and the spline goes through the padding too.
    Samples at uneven times are put on an even grid before they are filtered.

    Args:
        times: [T] rising, s.
        values: [T Q] finite.
        cutoff_hz: where one pass of the filter has lost 3 dB; None to leave the samples as they are.

    Raises:
        ShapeError: too few samples, gaps between them, values that are not finite, or a cutoff at or above
            half the sampling rate.
    """
    times, values = np.asarray(times, np.float64), np.asarray(values, np.float64)
    _check(times, values)
    knots, samples = times, values
    if cutoff_hz is not None:
        knots, samples = _evenly(times, values)
        step = (knots[-1] - knots[0]) / (len(knots) - 1)
        padding = len(knots) // 2
        knots = knots[0] + step * np.arange(-padding, len(knots) + padding)
        samples = lowpass_iir(_padded(samples, padding), rate_hz=1 / step, cutoff_hz=cutoff_hz)
    ends = [(3, np.zeros(values.shape[1])), (4, np.zeros(values.shape[1]))]
    spline = make_interp_spline(knots, samples, k=5, bc_type=(ends, ends))
    return CoordinateMotion(times, *(np.asarray(spline(times, nu=order)) for order in range(3)))


def lowpass_iir(values: NDArray[np.float64], *, rate_hz: float, cutoff_hz: float) -> NDArray[np.float64]:
    """OpenSim's low-pass filter: a Butterworth filter of third order, forwards and then backwards.

    Each pass leaves its first three samples as they are, so what is filtered should be padded. For masked
    signals there is `simspine_jax.signal.lowpass`.

    Args:
        values: [T Q], evenly sampled, at least four samples.
        rate_hz: samples per second.
        cutoff_hz: where one pass has lost 3 dB.

    Raises:
        ShapeError: too few samples, or a cutoff that is not between 0 and half the rate.
    """
    if not 0 < cutoff_hz < rate_hz / 2:
        raise ShapeError(f"The cutoff is {cutoff_hz:g} Hz; valid is above 0 and below half of {rate_hz:g} Hz")
    if len(values) <= FILTER_ORDER:
        raise ShapeError(f"{len(values)} samples can't be filtered; valid are at least {FILTER_ORDER + 1}")
    above, below = np.asarray(signal.butter(FILTER_ORDER, cutoff_hz / (rate_hz / 2)))
    for _ in range(2):
        head = values[:FILTER_ORDER]
        state = np.stack([signal.lfiltic(above, below, c[::-1], c[::-1]) for c in head.T], axis=1)
        rest, _ = signal.lfilter(above, below, values[FILTER_ORDER:], axis=0, zi=state)
        values = np.concatenate([head, rest])[::-1]
    return values


def _padded(values: NDArray[np.float64], padding: int) -> NDArray[np.float64]:
    before = 2 * values[0] - values[padding:0:-1]
    after = 2 * values[-1] - values[-2 : -2 - padding : -1]
    return np.concatenate([before, values, after])


def _evenly(
    times: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and values on an even grid from the first to the last time."""
    even = np.linspace(times[0], times[-1], len(times))
    if np.abs(even - times).max() <= EVEN * (even[1] - even[0]):
        return even, values
    ends = [(3, np.zeros(values.shape[1])), (4, np.zeros(values.shape[1]))]
    return even, np.asarray(make_interp_spline(times, values, k=5, bc_type=(ends, ends))(even))


def _check(times: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    if values.ndim != 2 or times.shape != values.shape[:1]:
        raise ShapeError(f"values has shape {values.shape} for times of shape {times.shape}; valid is [T Q]")
    if len(times) < LEAST_FRAMES:
        raise ShapeError(
            f"The motion has {len(times)} frames; its accelerations need at least {LEAST_FRAMES}"
        )
    if not np.isfinite(values).all():
        frame = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise ShapeError(f"The motion has no pose at {times[frame]:g} s; its accelerations need all frames")
    steps = np.diff(times)
    middle = float(np.median(steps))
    if (odd := np.flatnonzero(np.abs(steps - middle) > LARGEST_JITTER * middle)).size:
        start, end = times[odd[0]], times[odd[0] + 1]
        raise ShapeError(
            f"The motion goes from {start:g} to {end:g} s in one step where others take {middle:g} s; "
            "accelerations need frames without gaps"
        )
