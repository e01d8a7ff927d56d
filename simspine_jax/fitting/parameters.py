"""What all frames of a subject share: sizes, marker offsets, cameras and their clocks; as one vector.

The vector holds, one after the other, logarithms of scale factors by segment and axis; marker offsets;
changes of the lumbar rhythm where it is learned (`kinematics.lumbar.Rhythm`); for each camera a rotation
vector (applied after the given rotation), a shift of its centre, the logarithm of a factor of its focal
lengths and a delay of its clock; and the detector's constant errors by camera and marker.
It is zero for the generic model, the given cameras and a detector without such errors; the prior has 0 too,
but for what a measured height says of sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.kinematics.coordinates import CoordinateMap
from simspine_jax.kinematics.lumbar import Rhythm
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.scaling import PAPER_MEASUREMENTS, Measurement, estimate_height

PER_CAMERA = 8
"""Numbers of a camera in the vector: rotation, centre, focal length, delay."""

ROTATION, CENTRE, FOCAL, DELAY = slice(0, 3), slice(3, 6), slice(6, 7), slice(7, 8)
"""Where they are among these."""


@dataclass(frozen=True)
class FitPriors:
    """How far parameters may be from where they start: standard deviations of normal distributions.

    Attributes:
        stature: of the size of the whole body over the generic model's, as a share.
        proportion: of a segment's size over the whole body's, as a share.
        breadth: of a segment's factor along one axis over its size, as a share.
        offset_m: of a marker from its place on the scaled model, along each axis.
        rotation_deg: of a camera about each axis.
        centre_m: of a camera's place along each axis.
        focal: of a focal length, as a share; 0 keeps it.
        delay_s: of a camera's clock; 0 keeps it.
        bias: of a keypoint's constant error in a view, as a share of the person's size there; 0 for none.
        rhythm: of a lumbar level's ratio, as a share of the model's, where the rhythm is learned.

    A deviation of 0 keeps what it is of; the whole body's cannot be 0 unless all sizes are kept.
    """

    stature: float = 0.1
    proportion: float = 0.05
    breadth: float = 0.05
    offset_m: float = 0.015
    rotation_deg: float = 1.0
    centre_m: float = 0.01
    focal: float = 0.0
    delay_s: float = 0.0
    bias: float = 0.02
    rhythm: float = 0.3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise ShapeError(f"The deviation {name} is {value}; valid is a finite number from 0 on")
        if self.stature == 0 and (self.proportion or self.breadth):
            raise ShapeError("The stature is kept but segments are not; valid is a stature above 0")


@dataclass(frozen=True)
class Segment:
    """Bodies that are scaled alike.

    Attributes:
        name: of the segment.
        bodies: of the model.
    """

    name: str
    bodies: tuple[str, ...]


def segments_of(
    model: SpineModel, measurements: Sequence[Measurement] = PAPER_MEASUREMENTS
) -> tuple[Segment, ...]:
    """The segments of a set of measurements, both sides as one; bodies of none of them make one more."""
    found, taken = [], set()
    for measurement in measurements:
        bodies = tuple(b for b in measurement.bodies if b in model.body_names)
        if bodies:
            found.append(Segment(measurement.name, bodies))
            taken.update(bodies)
    rest = tuple(b for b in model.body_names if b not in taken)
    return (*found, Segment("rest", rest)) if rest else tuple(found)


@dataclass(frozen=True)
class Layout:
    """How the vector is laid out.

    Attributes:
        segments: scaled alike, each along its three axes.
        markers: for each group of offsets the number of its first marker, and of its mirror image or -1.
        n_markers: of the model.
        n_cameras: of the rig.
        body_segment: the segment of each body.
        biased: whether the detector's constant errors are found, one vector for each camera and marker.
        growing: whether the vector's offsets are of the generic model's size and grow with the body. One
            camera leaves size and distance open; offsets in metres would ask for smaller and nearer people
            there, as those that look the same are then shorter. Where metres are seen, growing ones would
            ask for larger people.
        rhythm: of the lumbar levels, where it is learned: the vector has a number for each departure, by
            which the leader's coordinate is multiplied.
    """

    segments: tuple[Segment, ...]
    markers: tuple[tuple[int, int], ...]
    n_markers: int
    n_cameras: int
    body_segment: tuple[int, ...]
    biased: bool = True
    growing: bool = False
    rhythm: Rhythm | None = None

    @property
    def n_scales(self) -> int:
        """Numbers that say sizes."""
        return 3 * len(self.segments)

    @property
    def n_offsets(self) -> int:
        """Numbers that say marker offsets."""
        return 3 * len(self.markers)

    @property
    def n_body(self) -> int:
        """Numbers that say sizes, offsets and rhythm."""
        return self.n_scales + self.n_offsets + self.n_shares

    @property
    def n_shares(self) -> int:
        """Numbers that say the rhythm."""
        return 0 if self.rhythm is None else len(self.rhythm.leads)

    @property
    def size(self) -> int:
        """P."""
        return self.n_body + PER_CAMERA * self.n_cameras + self.n_biases

    @property
    def n_biases(self) -> int:
        """Numbers that say the detector's constant errors."""
        return 2 * self.n_cameras * self.n_markers if self.biased else 0

    def scale_factors(self, theta: Float[Array, " P"]) -> Float[Array, "B 3"]:
        """Factors of the model's bodies."""
        return jnp.exp(theta[: self.n_scales].reshape(-1, 3))[np.array(self.body_segment, int)]

    def marker_offsets(self, theta: Float[Array, " P"]) -> Float[Array, "K 3"]:
        """Offsets of the model's markers in their bodies, metres."""
        matrix = jnp.asarray(self.offset_matrix(), theta.dtype)
        offsets = matrix @ theta[self.n_scales : self.n_scales + self.n_offsets]
        return self.offset_unit(theta) * offsets.reshape(self.n_markers, 3)

    def shares(self, theta: Float[Array, " P"]) -> Float[Array, " D"]:
        """Changes of the rhythm: departures for each radian of their leader."""
        return theta[self.n_body - self.n_shares : self.n_body]

    def posed(self, theta: Float[Array, " P"], q: Float[Array, "*W Q"]) -> Float[Array, "*W Q+D"]:
        """Poses with the departures of the subject's rhythm, where one is learned."""
        if self.rhythm is None:
            return q
        return jnp.concatenate([q, q[..., self.rhythm.leads] * self.shares(theta)], axis=-1)

    def map_of(self, model: SpineModel) -> CoordinateMap:
        """The map of such poses."""
        return model.coordinate_map if self.rhythm is None else self.rhythm.coordinate_map

    def offset_unit(self, theta: Float[Array, " P"]) -> Float[Array, ""]:
        """What the vector's offsets are in, metres: 1, or the geometric mean of the factors if they grow."""
        return jnp.exp(jnp.mean(theta[: self.n_scales])) if self.growing else jnp.ones((), theta.dtype)

    def offset_matrix(self) -> NDArray[np.float64]:
        """``[3K 3O]``: from the vector's offsets to those of all markers; left ones are mirror images."""
        matrix = np.zeros((self.n_markers, 3, len(self.markers), 3))
        for group, (first, mirrored) in enumerate(self.markers):
            matrix[first, :, group] = np.eye(3)
            if mirrored >= 0:
                matrix[mirrored, :, group] = np.diag([1.0, 1.0, -1.0])
        return matrix.reshape(3 * self.n_markers, self.n_offsets)

    def camera_part(self, theta: Float[Array, " P"]) -> Float[Array, "V 8"]:
        """The cameras' numbers."""
        return theta[self.n_body : self.size - self.n_biases].reshape(self.n_cameras, PER_CAMERA)

    def biases(self, theta: Float[Array, " P"]) -> Float[Array, "V K 2"]:
        """The detector's constant errors, in sizes of the person."""
        return theta[self.size - self.n_biases :].reshape(self.n_cameras, self.n_markers, 2)

    def delays(self, theta: Float[Array, " P"]) -> Float[Array, " V"]:
        """How much later than the frames' times each camera took its pictures, s."""
        return self.camera_part(theta)[:, DELAY][:, 0]

    def names(self, model: SpineModel, cameras: Sequence[str]) -> tuple[str, ...]:
        """Of the vector's numbers, for reports."""
        scales = [f"{s.name} {axis}" for s in self.segments for axis in "xyz"]
        offsets = [f"{model.marker_names[first]} {axis}" for first, _ in self.markers for axis in "xyz"]
        kinds = (
            "rotation x",
            "rotation y",
            "rotation z",
            "centre x",
            "centre y",
            "centre z",
            "focal",
            "delay",
        )
        return (*scales, *offsets, *(f"{camera} {kind}" for camera in cameras for kind in kinds))


@dataclass(frozen=True, eq=False)
class Prior:
    """Of the shared vector.

    Attributes:
        precision: ``[P P]`` of the normal distribution.
        free: ``[P]`` what is fitted; the rest stays 0.
        mean: ``[P]`` of the distribution.
    """

    precision: NDArray[np.float64]
    free: NDArray[np.bool_]
    mean: NDArray[np.float64]


def make_layout(
    model: SpineModel,
    n_cameras: int,
    *,
    symmetric: bool = True,
    biased: bool = True,
    growing: bool = False,
    segments: Sequence[Segment] | None = None,
) -> Layout:
    """The layout of a subject's vector.

    Args:
        model: the generic model.
        n_cameras: of the rig; 0 where only markers are fitted.
        symmetric: whether offsets of left and right markers (``LKnee``, ``RKnee``) mirror each other.
        biased: whether the detector's constant errors are found.
        growing: whether offsets grow with the body; see `Layout`.
        segments: default: those of `segments_of`.

    Raises:
        UnknownNameError: a body isn't the model's.
        ShapeError: a body is in two segments, or in none.
    """
    segments = segments_of(model) if segments is None else tuple(segments)
    groups = _marker_groups(model.marker_names, symmetric)
    bodies = _body_segments(model, segments)
    return Layout(segments, groups, model.n_markers, n_cameras, bodies, biased, growing)


def make_prior(
    model: SpineModel, layout: Layout, deviations: FitPriors, fixed_markers: Sequence[str] = ()
) -> Prior:
    """The prior of a subject's vector.

    Args:
        model: the generic model.
        layout: of the vector.
        deviations: of its parts.
        fixed_markers: that have no offset.

    Raises:
        UnknownNameError: a marker isn't the model's.
    """
    fixed = set(model.marker_indices(fixed_markers).tolist())
    rotation = deviations.rotation_deg * np.pi / 180
    camera = [rotation] * 3 + [deviations.centre_m] * 3 + [deviations.focal, deviations.delay_s]
    offsets = [0.0 if fixed.intersection(group) else deviations.offset_m for group in layout.markers]
    biases = np.full(layout.n_biases, deviations.bias)
    spread = np.concatenate([np.repeat(offsets, 3), np.tile(camera, layout.n_cameras), biases])
    n_scales = layout.n_scales
    free = np.concatenate([np.full(n_scales, deviations.stature > 0), spread > 0])
    precision = np.eye(layout.size)
    if deviations.stature > 0:
        precision[:n_scales, :n_scales] = np.linalg.inv(_scale_covariance(len(layout.segments), deviations))
    rest = np.arange(n_scales, layout.size)
    precision[rest, rest] = 1 / np.where(spread > 0, spread, 1.0) ** 2
    return Prior(precision, free, np.zeros(layout.size))


def with_height(model: SpineModel, layout: Layout, prior: Prior, height_m: float, std: float) -> Prior:
    """The prior with what a measured height says of sizes, to first order in their logarithms.

    Args:
        model: the generic model.
        layout: of the vector.
        prior: without it.
        height_m: as measured.
        std: by which the height of a body of such sizes may differ from it, as a share.
    """
    generic = jnp.zeros(layout.size, model.dtype)
    log_height, slope = jax.value_and_grad(
        lambda theta: jnp.log(estimate_height(model, layout.scale_factors(theta)))
    )(generic)
    slope = np.asarray(slope, np.float64) * prior.free / std
    precision = prior.precision + np.outer(slope, slope)
    taller = (np.log(height_m) - float(log_height)) / std
    return Prior(
        precision, prior.free, np.linalg.solve(precision, prior.precision @ prior.mean + slope * taller)
    )


_LEAST_SHARE = 1e-4
"""Of a size: deviations of 0 stand for this, so that the covariance can be inverted."""


def _scale_covariance(n_segments: int, priors: FitPriors) -> NDArray[np.float64]:
    whole, part, axis = (max(x, _LEAST_SHARE) for x in (priors.stature, priors.proportion, priors.breadth))
    ones = np.ones((3, 3))
    covariance = np.full((3 * n_segments, 3 * n_segments), whole**2)
    covariance += np.kron(np.eye(n_segments), part**2 * ones)
    return covariance + axis**2 * np.eye(3 * n_segments)


def _body_segments(model: SpineModel, segments: Sequence[Segment]) -> tuple[int, ...]:
    found = np.full(len(model.body_names), -1)
    for number, segment in enumerate(segments):
        for body in segment.bodies:
            if body not in model.body_names:
                raise UnknownNameError("Body", body, f"the model {model.name}", model.body_names)
            index = model.body_names.index(body)
            if found[index] >= 0:
                raise ShapeError(
                    f"The body {body} is in the segments {segments[found[index]].name} and {segment.name}; "
                    "valid is one of them"
                )
            found[index] = number
    if (found < 0).any():
        left = model.body_names[int(np.argmax(found < 0))]
        raise ShapeError(f"The body {left} is in no segment; valid are segments that cover all bodies")
    return tuple(found.tolist())


def _marker_groups(names: Sequence[str], symmetric: bool) -> tuple[tuple[int, int], ...]:
    """Markers whose offsets are one, by number: each alone, or the right one with its left partner."""
    groups = []
    for index, name in enumerate(names):
        right, left = "R" + name[1:], "L" + name[1:]
        if symmetric and name.startswith("L") and right in names:
            continue
        partner = names.index(left) if symmetric and name.startswith("R") and left in names else -1
        groups.append((index, partner))
    return tuple(groups)


def rotation_of(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Rotation matrices of rotation vectors (Rodrigues), with Taylor's series near none."""
    square = jnp.sum(vector**2, axis=-1)[..., None, None]
    small = square < 1e-6
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    first = jnp.where(small, 1 - square / 6, jnp.sin(angle) / angle)
    second = jnp.where(small, 0.5 - square / 24, (1 - jnp.cos(angle)) / angle**2)
    cross = cross_matrix(vector)
    eye = jnp.eye(3, dtype=vector.dtype)
    return eye + first * cross + second * jnp.matmul(cross, cross, precision="highest")


def left_jacobian(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J of exp(w + d) = exp(J d) exp(w) to first order (T. Barfoot, State Estimation for Robotics, 7.1.5)."""
    square = jnp.sum(vector**2, axis=-1)[..., None, None]
    small = square < 1e-6
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    first = jnp.where(small, 0.5 - square / 24, (1 - jnp.cos(angle)) / angle**2)
    second = jnp.where(small, 1 / 6 - square / 120, (angle - jnp.sin(angle)) / angle**3)
    cross = cross_matrix(vector)
    eye = jnp.eye(3, dtype=vector.dtype)
    return eye + first * cross + second * jnp.matmul(cross, cross, precision="highest")


def cross_matrix(v: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """``[v]``, with ``[v] x = v x x``."""
    x, y, z = jnp.moveaxis(v, -1, 0)
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rig:
    """Cameras in the model's ground (Y up): ``x_camera = R (x - c)``.

    Attributes:
        rotations: R, ground to camera.
        centres: c, metres.
        cameras: lenses; their own rotations and translations are of the world they were given in (Z up).
    """

    rotations: Float[Array, "V 3 3"]
    centres: Float[Array, "V 3"]
    cameras: Cameras


def rig_of(cameras: Cameras, dtype: jnp.dtype) -> Rig:
    """Cameras of a Z-up world in the model's ground."""
    cameras = cameras.astype(dtype)
    turn = jnp.asarray(R_yup_zup, dtype)
    rotations = jnp.matmul(jnp.asarray(cameras.rotations), turn.T, precision="highest")
    centres = -jnp.einsum("vji,vj->vi", rotations, jnp.asarray(cameras.translations), precision="highest")
    return Rig(rotations, centres, cameras)


def moved_rig(rig: Rig, part: Float[Array, "V 8"]) -> Rig:
    """The rig with a vector's numbers applied."""
    turns = rotation_of(part[:, ROTATION])
    focal = jnp.asarray(rig.cameras.focal_lengths) * jnp.exp(part[:, FOCAL])
    return Rig(
        jnp.matmul(turns, rig.rotations, precision="highest"),
        rig.centres + part[:, CENTRE],
        replace(rig.cameras, focal_lengths=focal),
    )


def cameras_of(rig: Rig) -> Cameras:
    """The rig as cameras of a Z-up world: inverse of `rig_of`."""
    turn = jnp.asarray(R_yup_zup, rig.rotations.dtype)
    rotations = jnp.matmul(rig.rotations, turn, precision="highest")
    translations = -jnp.einsum("vij,vj->vi", rig.rotations, rig.centres, precision="highest")
    return replace(rig.cameras, rotations=rotations, translations=translations)
