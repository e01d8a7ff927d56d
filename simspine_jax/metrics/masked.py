"""Numbers of which some are missing, and their means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from simspine_jax.arrays import Array, Bool, Float

Axes = int | tuple[int, ...] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masked:
    """Values, NaN where ``present`` is False; what is missing counts in no mean and has no derivative."""

    values: Float[Array, "*shape"]
    present: Bool[Array, "*shape"]

    @classmethod
    def of(cls, values: Float[Array, "*shape"], present: Bool[Array, "*shape"]) -> Masked:
        """The values where they are present."""
        return cls(jnp.where(present, values, jnp.nan), present)

    @property
    def filled(self) -> Float[Array, "*shape"]:
        """Zeros where missing, for sums."""
        return jnp.where(self.present, self.values, 0.0)

    def __getitem__(self, index: Any) -> Masked:
        return Masked(self.values[index], self.present[index])

    def map(self, function: Callable[[Array], Array]) -> Masked:
        """A function of each value; finite at 0, with which it is called for what is missing."""
        return Masked.of(function(self.filled), self.present)

    @partial(jax.jit, static_argnames="axis")
    def mean(self, axis: Axes = None) -> Masked:
        """Mean of what is present along axes, or of all; missing where nothing is present."""
        count = self.present.sum(axis)
        total = self.filled.sum(axis) / jnp.maximum(count, 1).astype(self.values.dtype)
        return Masked.of(total, count > 0)

    @partial(jax.jit, static_argnames="axis")
    def rms(self, axis: Axes = None) -> Masked:
        """Root of the mean square; its derivative is 0 where all values are."""
        return self.map(jnp.square).mean(axis).map(safe_sqrt)

    def coverage(self) -> Float[Array, ""]:
        """Share of values that are present."""
        return self.present.mean()


def safe_sqrt(squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root whose derivative at 0 is 0."""
    above = squared > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, squared, 1.0)), 0.0)


def safe_norm(vectors: Float[Array, "*shape n"]) -> Float[Array, "*shape"]:
    """Length of the last axis; its derivative at 0 is 0."""
    return safe_sqrt((vectors**2).sum(-1))
