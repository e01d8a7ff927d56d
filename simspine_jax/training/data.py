"""A dataset's samples as a training and an evaluation hold them: on the device, cleaned, by number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Int
from simspine_jax.datasets import ClipSequence, Samples, frame_samples, window_samples
from simspine_jax.errors import ShapeError
from simspine_jax.lifting.observations import Observation, Target, observe, target_of
from simspine_jax.skeleton import KEYPOINT_NAMES, REDUCED_NAMES
from simspine_jax.training.run import DataOptions, Run

KEYPOINTS = {"spine": REDUCED_NAMES, "all": KEYPOINT_NAMES}
"""What `DataOptions.keypoints` stands for."""

PREPARED = 16_384
"""Frames whose rays are computed at once."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Rows:
    """All frames of a set once, and the samples that are made of them.

    Attributes:
        seen: ``[M …]``.
        target: ``[M …]``.
        start: the row of each sample, or of a window's first frame, which may lie before the clip.
        first: of each sample's clip and view.
        last: likewise.
        length: of the windows; None for single frames.
    """

    seen: Observation
    target: Target
    start: Int[Array, " N"]
    first: Int[Array, " N"]
    last: Int[Array, " N"]
    length: int | None = field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: Int[Array, " B"]) -> tuple[Observation, Target]:
        """Samples by number, ``[B …]``, or ``[B length …]`` with all that is outside of the clip masked."""
        if self.length is None:
            rows = self.start[index]
            return jax.tree.map(lambda leaf: leaf[rows], (self.seen, self.target))
        steps = self.start[index][:, None] + jnp.arange(self.length, dtype=jnp.int32)
        rows = jnp.clip(steps, self.first[index][:, None], self.last[index][:, None])
        seen, target = jax.tree.map(lambda leaf: leaf[rows], (self.seen, self.target))
        inside = (rows == steps)[..., None]
        return (
            replace(seen, mask=seen.mask & inside, confidence=seen.confidence * inside),
            replace(target, mask=target.mask & inside, kinematics_mask=target.kinematics_mask & inside),
        )


def training_samples(run: Run, clips: ClipSequence) -> Samples:
    """The samples that a run is trained on.

    Raises:
        ShapeError: nothing is left, or the clips have too few frames per second.
    """
    options = run.data
    if run.frames is None:
        return frame_samples(clips, rate_hz=options.rate_hz, **_choices(options))
    return window_samples(clips, run.frames, stride=options.stride, centred=True, **_choices(options))


def evaluation_samples(run: Run, clips: ClipSequence) -> Samples:
    """Every frame of the clips once: single frames, or windows side by side.

    Raises:
        ShapeError: as in `training_samples`.
    """
    if run.frames is None:
        return frame_samples(clips, rate_hz=None, **_choices(run.data))
    return window_samples(clips, run.frames, stride=run.frames, **_choices(run.data))


def _choices(options: DataOptions):
    return {
        "keypoints": KEYPOINTS[options.keypoints],
        "source": options.source,
        "target": options.target,
    }


def prepare(samples: Samples) -> Rows:
    """The samples cleaned and with rays, on the default device.

    Raises:
        ShapeError: no target has a place in front of its camera.
    """
    if not np.asarray(samples.frames.keypoints_3d_mask).any():
        raise ShapeError(
            "No camera of the samples has a known place, so nothing is known in front of it; "
            "valid are samples of calibrated cameras"
        )
    count = len(samples.frames.valid)
    parts = []
    for first in range(0, count, PREPARED):
        # The last part is filled up, so that all parts share a compiled program.
        rows = np.minimum(np.arange(first, first + min(PREPARED, count)), count - 1)
        frames = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], samples.frames)
        parts.append(jax.tree.map(np.asarray, (observe(frames, samples.cameras), target_of(frames))))
    seen, target = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:count]), *parts)
    start, first, last = (jnp.asarray(x) for x in (samples.start, samples.first, samples.last))
    return Rows(seen, target, start, first, last, samples.length)
