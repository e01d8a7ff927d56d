"""Curves of a training as TensorBoard reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simspine_jax.errors import MissingDependencyError


class Logs:
    """Event files in a folder.

    Args:
        folder: made if missing.
        step: where the training goes on; what an earlier run logged from there on is hidden.

    Raises:
        MissingDependencyError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise MissingDependencyError("tensorboardX", "training", "Training") from None
        self._writer = SummaryWriter(str(folder), purge_step=step if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name after so many steps."""
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
