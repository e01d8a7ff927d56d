"""The spine model as the last layer of a network: coordinates and sizes in, 37 keypoints out.

Forward kinematics with other scale factors in each frame costs many times that with one set for all, so
rotations and positions are taken apart here. Rotations don't depend on the sizes: they come from
`forward_kinematics`. Given these, each keypoint is a sum over the bodies between it and the pelvis of
constant vectors, stretched by the body's factors and turned with it, and of the slides of the knees. The
result is that of `forward_kinematics` with ``scale_factors``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.capture.tissue import FACE_M
from simspine_jax.errors import UnsupportedModelError
from simspine_jax.kinematics.forward import expand_qpos, forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.skeleton import KEYPOINT_NAMES, PAPER_MARKERS, TRC_NAMES


class SizeGroup(NamedTuple):
    """What is longer or shorter in some people: bodies with the axes along which they grow together."""

    name: str
    most: float
    axes: tuple[tuple[str, str], ...]


_SPINE = "lumbar5 lumbar4 lumbar3 lumbar2 lumbar1 torso Abdomen"
_LIMBS = "femur patella tibia humerus ulna radius hand"

SIZE_GROUPS: tuple[SizeGroup, ...] = (
    SizeGroup("stature", 1.25, (("", "xyz"),)),
    SizeGroup("breadth", 1.2, ((f"pelvis sacrum {_SPINE} {_LIMBS}", "xz"), ("talus calcn toes", "z"))),
    SizeGroup("trunk", 1.15, ((_SPINE, "y"),)),
    SizeGroup("shoulders", 1.15, ((_SPINE, "z"),)),
    SizeGroup("pelvis", 1.15, (("pelvis sacrum", "z"),)),
    SizeGroup("thigh", 1.15, (("femur patella", "y"),)),
    SizeGroup("shank", 1.15, (("tibia", "y"),)),
    SizeGroup("foot", 1.15, (("talus calcn toes", "x"),)),
    SizeGroup("upper arm", 1.15, (("humerus", "y"),)),
    SizeGroup("forearm", 1.15, (("ulna radius hand", "y"),)),
    SizeGroup("head", 1.2, (("head", "xyz"),)),
)
"""Groups of scale factors with the largest factor of each, the same on both sides; chosen.

The model's stature is 1.71 m, so that a factor of 1.25 goes from 1.37 to 2.14 m; other proportions vary by
2 to 3 per cent between adults, and groups multiply.
"""

MOST_OFFSET_M = 0.03
"""How far keypoints may lie from the published markers in their bodies; chosen."""


@dataclass(frozen=True, eq=False)
class SpineBody:
    """A spine model with the paper's markers, its constants gathered for batches of frames.

    Equal only to itself, so that it can be a static part of a network.

    Args:
        model: float32, with the paper's markers.

    Raises:
        UnknownNameError: the model lacks a marker or body.
        UnsupportedModelError: its pelvis doesn't move freely, or OpenSim would scale it otherwise.
    """

    model: SpineModel

    def __post_init__(self) -> None:
        if self.model.root is None or not self.model.scalable:
            raise UnsupportedModelError(
                f"The model {self.model.name} can't be a lifter's body; valid is one with a free pelvis and "
                "no reversed joints, such as the paper's"
            )

    @cached_property
    def internal(self) -> np.ndarray:
        """Free coordinates but for the pelvis' place in space."""
        root = self.model.root
        assert root is not None
        return np.setdiff1d(np.arange(self.model.n_free), [*root.slides, *root.hinges])

    @cached_property
    def log_most(self) -> np.ndarray:
        """``[G]`` of the groups: bounds of the logarithms of sizes."""
        return np.array([math.log(group.most) for group in SIZE_GROUPS], np.float32)

    def scale_factors(self, log_scales: Float[Array, "*batch G"]) -> Float[Array, "*batch B 3"]:
        """Factors of the bodies along their axes."""
        flat = jnp.einsum("bag,...g->...ba", self._members, log_scales, precision="highest")
        return jnp.exp(flat)

    def keypoints(
        self,
        q: Float[Array, "*batch Q"],
        log_scales: Float[Array, "*batch G"],
        offsets: Float[Array, "K 3"],
    ) -> Float[Array, "*batch K 3"]:
        """The 37 keypoints from the root keypoint, in the pelvis' frame, m.

        Args:
            q: free coordinates, rad; those of the pelvis in space must be zero.
            log_scales: of `SIZE_GROUPS`.
            offsets: of the keypoints in their bodies from where `SpineModel` and `FACE_M` have them, m.
        """
        scale = self.scale_factors(log_scales)
        turns = forward_kinematics(self.model, q).body_rotations
        bodies, directions, weights, reach = self._slides
        moved = expand_qpos(self.model, q)[..., self._slide_joints]
        moved = moved * jnp.einsum("ja,...ja->...j", weights, scale[..., bodies, :])
        slid = jnp.einsum("...jia,ja,...j->...ji", turns[..., bodies, :, :], directions, moved)
        stretched = turns * scale[..., None, :]
        fixed = _gathered(stretched, self._chains)
        own = jnp.einsum("...kia,ka->...ki", turns[..., self._bodies, :, :], offsets)
        points = fixed + own + jnp.einsum("...ji,jk->...ki", slid, reach)
        root = TRC_NAMES.index("Hip")
        return points - points[..., root, None, :]

    @cached_property
    def _bodies(self) -> np.ndarray:
        """``[K]`` the body of each keypoint."""
        places = {m.name: m.body for m in PAPER_MARKERS}
        return np.array([self.model.body_names.index(places.get(name, "head")) for name in TRC_NAMES])

    @cached_property
    def _locations(self) -> np.ndarray:
        """``[K 3]`` of the keypoints in their bodies."""
        # Not `marker_locations`, whose indexing would be traced where this is first asked for in a program.
        sites = np.array(self.model.topology.marker_sites, int)
        markers = np.asarray(self.model.mjx_model.site_pos)[sites]
        names = [name for name in TRC_NAMES if name in {m.name for m in PAPER_MARKERS}]
        column = dict(zip(names, self.model.marker_indices(names), strict=True))
        return np.array(
            [
                markers[column[trc]] if trc in column else FACE_M[name]
                for trc, name in zip(TRC_NAMES, KEYPOINT_NAMES, strict=True)
            ]
        )

    @cached_property
    def _members(self) -> np.ndarray:
        """``[B 3 G]``: which group stretches which axis of a body."""
        names = self.model.body_names
        members = np.zeros((len(names), 3, len(SIZE_GROUPS)), np.float32)
        for g, group in enumerate(SIZE_GROUPS):
            for bodies, axes in group.axes:
                wanted = {b + side for b in bodies.split() for side in ("", "_r", "_l")}
                for b, name in enumerate(names):
                    if name in wanted or not bodies:
                        members[b, ["xyz".index(axis) for axis in axes], g] = 1
        return members

    @cached_property
    def _paths(self) -> list[list[int]]:
        """Of each body, itself and those between it and ground, in MuJoCo's numbering."""
        parents, paths = self.model.topology.parents, []
        for body in range(len(parents)):
            path = []
            while body > 0:
                path.append(body)
                body = parents[body]
            paths.append(path)
        return paths

    @cached_property
    def _opensim(self) -> dict[int, int]:
        """OpenSim's number of MuJoCo's bodies."""
        return {number: i for i, number in enumerate(self.model.topology.body_order)}

    @cached_property
    def _chains(self) -> np.ndarray:
        """``[B 3 K]``: what each keypoint has of each body's axes, m."""
        model, order = self.model, self.model.topology.body_order
        above, below = np.asarray(model.parent_offset), np.asarray(model.child_offset)
        chains = np.zeros((len(order), 3, len(TRC_NAMES)), np.float32)
        for k, body in enumerate(self._bodies):
            chains[body, :, k] += self._locations[k]
            for c in self._paths[order[body]]:
                chains[self._opensim[c], :, k] -= below[c]
                if (parent := model.topology.parents[c]) > 0:
                    chains[self._opensim[parent], :, k] += above[c]
        return chains

    @cached_property
    def _slide_joints(self) -> np.ndarray:
        """Joints along which bodies slide, but for the pelvis."""
        topology, root = self.model.topology, self.model.root
        assert root is not None
        return np.array(
            [
                j
                for j, (body, hinge) in enumerate(
                    zip(topology.joint_bodies, topology.joint_is_hinge, strict=True)
                )
                if not hinge and body != root.body
            ],
            int,
        )

    @cached_property
    def _slides(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each of them: the parent, the direction in it, weights of its factors, keypoints below."""
        model, topology = self.model, self.model.topology
        axes, scale_axes = np.asarray(model.mjx_model.jnt_axis), np.asarray(model.scale_axis)
        rest = _rotations(np.asarray(model.mjx_model.body_quat))
        parents, directions, weights = [], [], []
        reach = np.zeros((len(self._slide_joints), len(TRC_NAMES)), np.float32)
        for row, joint in enumerate(self._slide_joints):
            body = topology.joint_bodies[joint]
            parents.append(self._opensim[topology.parents[body]])
            directions.append(rest[body] @ axes[joint])
            weights.append(np.abs(scale_axes[joint]))
            for k, own in enumerate(self._bodies):
                reach[row, k] = body in self._paths[topology.body_order[own]]
        if np.isnan(weights).any():
            raise UnsupportedModelError(
                f"The model {model.name} has a slide that does not scale with its body; valid are those that "
                "do"
            )
        return np.array(parents, int), np.array(directions, np.float32), np.array(weights, np.float32), reach


def _gathered(
    stretched: Float[Array, "*batch B 3 3"], chains: Float[np.ndarray, "B 3 K"]
) -> Float[Array, "*batch K 3"]:
    """Sum over bodies b and their axes a of ``stretched[b, i, a] * chains[b, a, k]``: one matrix product."""
    rows = jnp.moveaxis(stretched, -2, -3).reshape(*stretched.shape[:-3], 3, -1)
    columns = jnp.asarray(chains).reshape(-1, chains.shape[-1])
    return jnp.swapaxes(jnp.matmul(rows, columns, precision="highest"), -1, -2)


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """``[n 3 3]`` of unit quaternions, the real part first."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(np.roll(quaternions, -1, axis=-1)).as_matrix()
