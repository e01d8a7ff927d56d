"""The released code's last step: the simulated spine chain is fitted to the prediction and blended with it.

The release stretches the simulated chain onto the predicted line from hip to neck and takes a fifth of a
Laplacian-smoothed prediction into it. Its smoothing weights are not published: one pass of half weight is
assumed here. Its synthetic latissimus points are left as the model has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simspine_jax.skeleton import KEYPOINT_NAMES

CHAIN = ("hip", "spine_01", "spine_02", "spine_03", "spine_04", "spine_05", "neck", "neck_02", "neck_03")
"""The spine from below; hip and neck are what the chain is stretched between."""

SMOOTHING = 0.5
"""How far a point goes to the middle of its neighbours (assumed)."""

_IDS = [KEYPOINT_NAMES.index(name) for name in CHAIN]
_HIP, _NECK = CHAIN.index("hip"), CHAIN.index("neck")


def blend_chain(
    simulated: NDArray[np.float64], predicted: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Keypoints ``[T 37 3]`` whose spine is stretched onto the prediction and blended with it.

    Frames in which the prediction lacks hip or neck stay as simulated. Points that it lacks, and their
    neighbours, are stretched and not blended.
    """
    chain, seen = simulated[:, _IDS], predicted[:, _IDS]
    stretched = _stretched(chain, seen)
    smooth = _smoothed(seen)
    blended = np.where(np.isfinite(smooth), (1 - share) * stretched + share * smooth, stretched)
    result = simulated.copy()
    result[:, _IDS] = np.where(np.isfinite(blended), blended, chain)
    return result


def _stretched(chain: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chain turned by the shortest way and scaled, so that hip and neck lie on the prediction's."""
    old, new = chain[:, _NECK] - chain[:, _HIP], seen[:, _NECK] - seen[:, _HIP]
    lengths = [np.linalg.norm(v, axis=-1, keepdims=True) for v in (old, new)]
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = old / lengths[0], new / lengths[1]
        scale = lengths[1] / lengths[0]
    offset = chain - chain[:, _HIP, None]
    cross, cosine = np.cross(a, b)[:, None], np.sum(a * b, axis=-1)[:, None, None]
    turned = cosine * offset + np.cross(cross, offset)
    turned += cross * np.sum(cross * offset, axis=-1, keepdims=True) / (1 + cosine)
    return seen[:, _HIP, None] + scale[:, None] * turned


def _smoothed(points: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = 0.5 * (points[:, :-2] + points[:, 2:])
    result = points.copy()
    result[:, 1:-1] += SMOOTHING * (middle - points[:, 1:-1])
    return result
