"""Errors of keypoints frame by frame, and their means by action and region."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Bool, Float
from simspine_jax.errors import ShapeError
from simspine_jax.metrics.intervals import bootstrap
from simspine_jax.metrics.masked import Masked
from simspine_jax.metrics.pose3d import by_region, mpjpe, p_mpjpe
from simspine_jax.skeleton import N_KEYPOINTS, REGIONS

BLOCK = 4096
"""Frames of which errors are computed at once; the last block is padded, so that one program serves all."""


@dataclass(frozen=True, eq=False)
class FrameErrors:
    """Errors of N frames, or of frames and views, by region.

    Attributes:
        mpjpe_m: mean distance over the region's keypoints that both sides have, ``[N]`` by region.
        p_mpjpe_m: the same after the best similarity, of the region for itself.
        action: ``[N]`` names without repetition, such as ``Walking``.
        trial: ``[N]`` number of the trial.
        expected: ``[N K]`` where the truth is known.
        given: ``[N K]`` where there is a prediction besides.
        ids: of the K keypoints among the 37.
    """

    mpjpe_m: dict[str, Masked]
    p_mpjpe_m: dict[str, Masked]
    action: NDArray[np.str_]
    trial: NDArray[np.int64]
    expected: NDArray[np.bool_]
    given: NDArray[np.bool_]
    ids: tuple[int, ...]

    @property
    def regions(self) -> tuple[str, ...]:
        """Those that the keypoints make up, in the paper's order."""
        return tuple(region for region in REGIONS if region in self.mpjpe_m)  # JAX sorts keys

    def mean_mm(self, aligned: bool, region: str, action: str | None = None) -> float:
        """Mean over frames, mm; NaN where there is none.

        Args:
            aligned: P-MPJPE instead of MPJPE.
            region: of `regions`.
            action: only its frames.
        """
        errors = (self.p_mpjpe_m if aligned else self.mpjpe_m)[region]
        rows = slice(None) if action is None else self.action == action
        values = np.asarray(errors.values)[rows][np.asarray(errors.present)[rows]]
        return 1e3 * float(values.astype(np.float64).mean()) if len(values) else float("nan")

    def interval_mm(self, aligned: bool, region: str) -> tuple[float, float]:
        """Ends of the 95 % interval of the mean over all frames, by bootstrap over trials, mm."""
        found = bootstrap((self.p_mpjpe_m if aligned else self.mpjpe_m)[region], self.trial)
        return 1e3 * float(found.low), 1e3 * float(found.high)

    def coverage(self, action: str | None = None) -> float:
        """Share of the known keypoints that have a prediction."""
        rows = slice(None) if action is None else self.action == action
        return float(self.given[rows].sum() / max(int(self.expected[rows].sum()), 1))


def frame_errors(
    predicted: Float[NDArray, "N K 3"],
    truth: Float[NDArray, "N K 3"],
    known: Bool[NDArray, "N K"],
    *,
    trial: NDArray[np.int64],
    action: Sequence[str] | NDArray[np.str_] | None = None,
    ids: tuple[int, ...] = tuple(range(N_KEYPOINTS)),
    root: int | None = None,
) -> FrameErrors:
    """Compares predictions with the truth, both in one frame, m.

    Args:
        predicted: NaN where there is none.
        truth: any number where it is not known.
        known: where the truth is to be compared with.
        trial: number of each frame's trial.
        action: of each frame, without a name if not given; a repetition's number is taken off, see
            `action_name`.
        ids: of the K keypoints.
        root: position along K of the keypoint at which both are put for MPJPE; None compares places in space.

    Raises:
        ShapeError: there are no frames, or the shapes don't fit each other.
    """
    if not len(predicted):
        raise ShapeError("There are no frames to compare; valid is at least one")
    absolute, aligned = in_blocks(partial(_errors, ids=ids, root=root), predicted, truth, known)
    action = [""] * len(predicted) if action is None else action
    names = {name: action_name(name) for name in set(map(str, action))}
    return FrameErrors(
        absolute, aligned,
        np.array([names[str(name)] for name in action]), np.asarray(trial, np.int64),
        np.asarray(known), np.asarray(known) & np.isfinite(predicted).all(axis=-1), ids,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("ids", "root"))
def _errors(predicted, truth, known, *, ids: tuple[int, ...], root: int | None):
    return (
        by_region(partial(mpjpe, root=root), predicted, truth, known, ids=ids),
        by_region(p_mpjpe, predicted, truth, known, ids=ids),
    )


def in_blocks(function: Callable[..., Any], *arrays: NDArray[Any]) -> Any:
    """A function of frames over blocks of `BLOCK` frames, in float32 on the device, its results joined.

    Args:
        function: of the arrays' blocks; gives a tree of arrays, a frame a row.
        arrays: ``[N …]``; floats are padded with NaN, flags with False.
    """
    parts = []
    for first in range(0, len(arrays[0]), BLOCK):
        blocks = [values[first : first + BLOCK] for values in arrays]
        count = len(blocks[0])
        found = function(*map(_padded, blocks))
        parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found))
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def _padded(values: NDArray) -> jax.Array:
    is_number = values.dtype.kind == "f"
    whole = np.full(
        (BLOCK, *values.shape[1:]), np.nan if is_number else 0, np.float32 if is_number else values.dtype
    )
    whole[: len(values)] = values
    return jnp.asarray(whole)


def action_name(action: str) -> str:
    """The action without the number of its repetition: ``Walking`` of ``Walking 1``, ``Walking_1``."""
    return re.sub(r"[ _]\d+$", "", action.strip())
