"""Mean and deviation of each joint over a training set, and arrays standardised by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.datasets.samples import ROOT, Frames, Numbers, Samples, rays_of
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras

Inputs = Literal["pixels", "centred", "rays"]
"""2D keypoints in px, as the published lifter takes them; less the root's; or as rays of the camera."""

CHUNK = 65_536
"""Frames whose sums are made at once."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Statistics:
    """Of each keypoint over a training set: a pytree that belongs into the checkpoint.

    Standardising takes the mean off and divides by the deviation, joint by joint and coordinate by coordinate
    (Martinez et al., A simple yet effective baseline for 3d human pose estimation, 2017). The root is left
    out of the 3D targets, where it is always zero.

    Attributes:
        mean_2d: px, or as ``inputs`` says.
        std_2d: likewise; 1 where all were the same.
        mean_3d: of root-relative positions, m; 0 for the root.
        std_3d: likewise, m; 1 where all were the same.
        keypoint_names: the K keypoints.
        inputs: what the 2D keypoints are.
    """

    mean_2d: Float[Numbers, "K 2"]
    std_2d: Float[Numbers, "K 2"]
    mean_3d: Float[Numbers, "K 3"]
    std_3d: Float[Numbers, "K 3"]
    keypoint_names: tuple[str, ...] = field(metadata={"static": True})
    inputs: Inputs = field(default="pixels", metadata={"static": True})

    @property
    def root(self) -> int:
        """Which of the keypoints is the root."""
        return self.keypoint_names.index(ROOT)

    def standardise_2d(self, keypoints: Float[Numbers, "*batch K 2"]) -> Float[Numbers, "*batch K 2"]:
        """Keypoints, as ``inputs`` says, with mean 0 and deviation 1 over the training set.

        NaN stays; `inputs_of` has none.
        """
        return (keypoints - self.mean_2d) / self.std_2d

    def restore_2d(self, standardised: Float[Numbers, "*batch K 2"]) -> Float[Numbers, "*batch K 2"]:
        """Inverse of `standardise_2d`."""
        return standardised * self.std_2d + self.mean_2d

    def standardise_3d(self, relative: Float[Numbers, "*batch K 3"]) -> Float[Array, "*batch K-1 3"]:
        """Root-relative positions, m, standardised and without the root.

        NaN stays; `targets_of` has none.
        """
        return jnp.delete((relative - self.mean_3d) / self.std_3d, self.root, axis=-2)

    def restore_3d(
        self, standardised: Float[Array, "*batch K-1 3"], root: Float[Array, "*batch 3"] | None = None
    ) -> Float[Array, "*batch K 3"]:
        """Inverse of `standardise_3d`, with the root put back.

        Args:
            standardised: what `standardise_3d` or a lifter gives.
            root: its position in the camera's frame, m, to which the others are added; None for root-relative
                positions.
        """
        values = jnp.asarray(standardised)
        before, after = values[..., : self.root, :], values[..., self.root :, :]
        whole = jnp.concatenate([before, jnp.zeros_like(values[..., :1, :]), after], axis=-2)
        # The root's mean is 0 and its deviation 1, so that it stays exactly where it is.
        relative = whole * self.std_3d + self.mean_3d
        return relative if root is None else relative + root[..., None, :]

    def inputs_of(
        self, frames: Frames, cameras: Cameras
    ) -> tuple[Float[Array, "*batch K 2"], Bool[Array, "*batch K"]]:
        """The standardised 2D keypoints of a batch, finite everywhere, and where they are known.

        Unknown ones are put where they are in the mean, at 0: only the mask tells a lifter which they are.

        Args:
            frames: of `Samples.take`.
            cameras: of the same samples.

        Raises:
            ShapeError: the frames have other keypoints.
        """
        self._check(frames)
        values, mask = _inputs(frames, cameras, self.inputs)
        return jnp.where(mask[..., None], self.standardise_2d(values), 0), jnp.asarray(mask)

    def targets_of(self, frames: Frames) -> tuple[Float[Array, "*batch K-1 3"], Bool[Array, "*batch K-1"]]:
        """The standardised 3D keypoints of a batch without the root, and where they are known.

        They are finite everywhere; unknown ones are 0, and a loss is to leave them out by the mask.

        Raises:
            ShapeError: the frames have other keypoints.
        """
        self._check(frames)
        mask = jnp.delete(jnp.asarray(frames.root_relative_mask), self.root, axis=-1)
        values = self.standardise_3d(frames.root_relative)
        return jnp.where(mask[..., None], values, 0), mask

    def _check(self, frames: Frames) -> None:
        if frames.keypoint_names != self.keypoint_names:
            raise ShapeError(
                f"The frames have the keypoints {', '.join(frames.keypoint_names)}; "
                f"valid are the statistics' {', '.join(self.keypoint_names)}"
            )


def statistics_of(samples: Samples, inputs: Inputs = "pixels") -> Statistics:
    """Statistics of a training set, in one pass and in double precision; masked keypoints don't count.

    Args:
        samples: each of its frames counts once, in however many windows it lies.
        inputs: what the lifter is to take; see `Inputs`.

    Raises:
        UnknownNameError: there are no such inputs.
        ShapeError: a keypoint is known nowhere.
    """
    if inputs not in (valid := get_args(Inputs)):
        raise UnknownNameError("Inputs", inputs, "the choices", valid)
    frames = samples.frames
    flat, solid = _Moments(), _Moments()
    for first in range(0, len(frames.valid), CHUNK):
        part = jax.tree.map(lambda leaf, first=first: leaf[first : first + CHUNK], frames)
        flat.add(*_inputs(part, samples.cameras, inputs))
        solid.add(part.root_relative, part.root_relative_mask)
    names = frames.keypoint_names
    return Statistics(*flat.result(names, "2D"), *solid.result(names, "3D"), names, inputs)


def _inputs(frames: Frames, cameras: Cameras, inputs: Inputs) -> tuple[Numbers, Numbers]:
    values, mask, root = frames.keypoints_2d, frames.keypoints_2d_mask, frames.root
    if inputs == "rays":
        rays = rays_of(frames, cameras)
        return rays, mask & jnp.isfinite(rays).all(axis=-1)  # not all cameras' lenses are known
    if inputs == "centred":
        return values - values[..., root : root + 1, :], mask & mask[..., root : root + 1]
    return values, mask


class _Moments:
    """Counts, means and sums of squares of arrays that come in parts.

    Source of the merging: T. Chan, G. Golub and R. LeVeque, Updating formulae and a pairwise algorithm for
    computing sample variances, 1979.
    """

    def __init__(self) -> None:
        self._count = self._mean = self._square = np.zeros(())

    def add(self, values: Numbers, mask: Numbers) -> None:
        """[N K d] and [N K]."""
        known = np.asarray(mask)[..., None]
        numbers = np.where(known, np.asarray(values, np.float64), 0)
        count = known.sum(axis=0).astype(float)
        mean = numbers.sum(axis=0) / np.maximum(count, 1)
        square = (np.where(known, numbers - mean, 0) ** 2).sum(axis=0)
        total, step = self._count + count, mean - self._mean
        share = count / np.maximum(total, 1)
        self._square = self._square + square + step**2 * self._count * share
        self._mean = self._mean + step * share
        self._count = total

    def result(self, names: tuple[str, ...], what: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation."""
        unknown = [name for name, count in zip(names, self._count[:, 0], strict=True) if not count]
        if unknown:
            raise ShapeError(
                f"No sample knows the {what} keypoint {unknown[0]}; valid are keypoints that some knows"
            )
        std = np.sqrt(self._square / self._count)
        return self._mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
