"""What networks of every kind share."""

from __future__ import annotations

import jax

from simspine_jax.arrays import Array


def layer_keys(key: Array | None, count: int) -> list[Array | None]:
    """A key for each of so many layers; None where there is none to split."""
    return [None] * count if key is None else list(jax.random.split(key, count))
