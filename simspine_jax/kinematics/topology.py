"""The static shape of a kinematic tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Topology:
    """The tree in MuJoCo's numbering: body 0 is ground, bodies and joints run depth first."""

    parents: tuple[int, ...]  # of each body; ground is its own parent
    joint_bodies: tuple[int, ...]
    joint_is_hinge: tuple[bool, ...]
    body_order: tuple[int, ...]  # MuJoCo's id of each body in OpenSim's order
    marker_bodies: tuple[int, ...]  # MuJoCo's body id of each marker
    marker_sites: tuple[int, ...]  # MuJoCo's site id of each marker

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Bodies by their distance from ground, ground left out."""
        depth = [0] * len(self.parents)
        for body in range(1, len(self.parents)):
            depth[body] = depth[self.parents[body]] + 1
        return tuple(
            tuple(b for b in range(1, len(depth)) if depth[b] == level) for level in range(1, max(depth) + 1)
        )

    @cached_property
    def ancestors(self) -> np.ndarray:
        """``[bodies, bodies]``: whether the second is the first or hangs below it."""
        result = np.eye(len(self.parents), dtype=bool)
        for body in range(1, len(self.parents)):
            result[:, body] |= result[:, self.parents[body]]
        return result
