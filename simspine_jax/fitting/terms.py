"""The objective of a fit, its gradient and its Gauss-Newton matrix, some frames at a time.

For one frame, in units of its own deviations (half a negative log posterior)::

    sum_vk rho(|u_vk - y_vk|^2 / s_vk^2)           pictures, rho(z) = c^2 log(1 + z / c^2) / 2
      + sum_k rho(|x_k - m_k|^2 / s_k^2)           3D markers
      + h sum_k rho(|(R (x_k - x_0) / g - l_k) / s_k|^2) + ((log g - log g_l) / s_l)^2 / 2
                                                   lifted markers, see `LiftedData`
      + |(q - q0) / s_q|^2 / 2                     a weak pull to the model's default pose; where lumbar
                                                   levels are free, a pull to their rhythm
      + sum of the user's |r|^2 / 2

rho is Cauchy's (c = `ROBUST`): quadratic for errors of a deviation, and for outliers so flat that one of
twenty deviations weighs a hundredth. Its matrix is the one of iteratively reweighted least squares, which is
positive definite. The derivatives are written out: of markers by the joints' twists, of pictures by the lens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.fitting.parameters import (
    CENTRE,
    DELAY,
    FOCAL,
    PER_CAMERA,
    ROTATION,
    Layout,
    Rig,
    cross_matrix,
    left_jacobian,
    moved_rig,
)
from simspine_jax.geometry.cameras import MIN_DEPTH_M, TANGENTIAL_FACTOR, distort_xy
from simspine_jax.kinematics.coordinates import free_to_qpos
from simspine_jax.kinematics.forward import Frames, marker_positions, scaled_frames, tree_forward
from simspine_jax.kinematics.lumbar import Rhythm
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.kinematics.normal_equations import (
    build_plan,
    column_twists,
    gather_columns,
    joint_twists,
)

ROBUST = 2.0
"""Deviations at which Cauchy's loss halves an error's weight."""

BEHIND = 100.0
"""Squared deviations that a keypoint behind its camera counts as."""

Term = Callable[[Float[Array, " Q"], Float[Array, "K 3"], Float[Array, "B 3"]], Float[Array, " M"]]
"""A user's residual for one frame: (free coordinates, markers in ground, scale factors) -> in deviations."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LiftedData:
    """What a lifter makes of the pictures of one camera, of a body as large as the generic model.

    One camera hardly tells how large somebody is, and what a lifter makes of it is one guess, however many
    frames there are. So the model is divided by its own size g (the geometric mean of its factors) before it
    is compared, and the size is compared by itself.

    Attributes:
        points: l, metres from the root marker along the camera's axes.
        precision: 1 / s^2 along each of these, 1 / m^2; 0 where there is none.
        share: h, of what a frame's points would count for if each erred in its own way.
        log_size: of the lifted body, over the generic model's.
        size_precision: share of it that each frame has, 1 / s^2 over all frames.
        root: number of the root marker.
    """

    points: Float[Array, "*T K 3"]
    precision: Float[Array, "*T K 3"]
    share: Float[Array, "*T"]
    log_size: Float[Array, "*T"]
    size_precision: Float[Array, "*T"]
    root: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameData:
    """What was seen in some frames. What is missing has the precision 0 and any finite number.

    Attributes:
        keypoints: px, of the model's markers.
        precision: 1 / s^2 of each, 1 / px^2.
        size: of the person in each view, px.
        velocity: of the predicted keypoints, px/s, for delays; held fixed in a solve.
        markers: metres, ground.
        marker_precision: 1 / m^2.
        usable: frames that count.
        pull: share of the pull to the default pose that each frame has; 1 over a clip's usable frames.
        lifted: by a lifter, where one camera alone sees the subject.
    """

    keypoints: Float[Array, "*T V K 2"]
    precision: Float[Array, "*T V K"]
    size: Float[Array, "*T V"]
    velocity: Float[Array, "*T V K 2"]
    markers: Float[Array, "*T K 3"]
    marker_precision: Float[Array, "*T K"]
    usable: Bool[Array, "*T"]
    pull: Float[Array, "*T"]
    lifted: LiftedData | None = None


@dataclass(frozen=True)
class Setting:
    """What is static in a fit.

    Attributes:
        layout: of the shared vector.
        terms: the user's.
        noise_known: whether the deviations of keypoints are given, not found.
    """

    layout: Layout
    terms: tuple[Term, ...] = ()
    noise_known: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """Arrays of a fit that don't belong to frames.

    Attributes:
        model: generic.
        rig: as given.
        pose_precision: ``[Q]`` of the pull to the default pose, over a clip.
        frame_precision: ``[Q]`` likewise in every frame: of departures from the lumbar rhythm.
    """

    model: SpineModel
    rig: Rig
    pose_precision: Float[Array, " Q"]
    frame_precision: Float[Array, " Q"] | float = 0.0


class Equations(NamedTuple):
    """Cost, gradient and Gauss-Newton matrix of frames; theta's parts are summed over them."""

    cost: Float[Array, " W"]
    gradient: Float[Array, "W Q"]
    matrix: Float[Array, "W Q Q"]
    border: Float[Array, "W Q P"]
    shared_gradient: Float[Array, " P"]
    shared_matrix: Float[Array, "P P"]


def subject_frames(setting: Setting, model: SpineModel, theta: Float[Array, " P"]) -> Frames:
    """The tree of the subject of this vector."""
    layout = setting.layout
    return scaled_frames(model, layout.scale_factors(theta), layout.marker_offsets(theta), theta.dtype)


def markers_of(
    setting: Setting, model: SpineModel, theta: Float[Array, " P"], q: Float[Array, "W Q"]
) -> Float[Array, "W K 3"]:
    """The subject's markers in ground, metres."""
    frames = subject_frames(setting, model, theta)
    m, q = setting.layout.map_of(model), setting.layout.posed(theta, q)
    state = tree_forward(model.topology, frames, free_to_qpos(m, q.T))
    return jnp.moveaxis(marker_positions(model.topology, frames, state), -1, 0)


@dataclass(frozen=True)
class Seen:
    """Markers in the cameras: pixels, whether in front, and derivatives."""

    pixels: Float[Array, "W V K 2"]
    in_front: Bool[Array, "W V K"]
    by_point: Float[Array, "W V K 2 3"]
    local: Float[Array, "W V K 3"]
    by_local: Float[Array, "W V K 2 3"]
    by_focal: Float[Array, "W V K 2"] = field(repr=False)


def look(rig: Rig, points: Float[Array, "W K 3"]) -> Seen:
    """Pictures of ground points and their derivatives."""
    cameras, kind = rig.cameras, points.dtype
    away = points[:, None] - rig.centres[:, None]
    local = jnp.einsum("vij,wvkj->wvki", rig.rotations, away, precision="highest")
    depth = local[..., 2]
    front = depth > MIN_DEPTH_M
    over = 1 / jnp.where(front, depth, 1.0)
    plane = jnp.where(front[..., None], local[..., :2] * over[..., None], 0.0)
    coefficients = jnp.asarray(cameras.distortion, kind).T[:, :, None]
    factor = TANGENTIAL_FACTOR[cameras.distortion_model]
    x, y, (a, b, c, d) = distort_xy(coefficients, factor, plane[..., 0], plane[..., 1])
    focal, skew = jnp.asarray(cameras.focal_lengths, kind), jnp.asarray(cameras.skews, kind)
    lens = jnp.stack([jnp.stack([a, b], -1), jnp.stack([c, d], -1)], -2)
    zero = jnp.zeros_like(skew)
    upper = jnp.stack([jnp.stack([focal[:, 0], skew], -1), jnp.stack([zero, focal[:, 1]], -1)], -2)
    lens = jnp.einsum("vij,wvkjl->wvkil", upper, lens, precision="highest")
    # d(x/z, y/z) / d local.
    flat = jnp.concatenate(
        [jnp.broadcast_to(jnp.eye(2, dtype=kind), (*plane.shape, 2)), -plane[..., None]], axis=-1
    )
    by_local = jnp.matmul(lens, flat * over[..., None, None], precision="highest")
    spread = jnp.stack([x, y], -1) * focal[:, None]
    pixels = spread + jnp.stack([skew[:, None] * y, jnp.zeros_like(y)], -1)
    pixels = pixels + jnp.asarray(cameras.principal_points, kind)[:, None]
    by_local = jnp.where(front[..., None, None], by_local, 0.0)
    by_point = jnp.einsum("wvkij,vjl->wvkil", by_local, rig.rotations, precision="highest")
    return Seen(pixels, front, by_point, local, by_local, spread)


def robust_cost(squared: Array) -> tuple[Array, Array]:
    """Cauchy's loss of squared deviations, and the weight of each."""
    scale = ROBUST**2
    return 0.5 * scale * jnp.log1p(squared / scale), 1 / (1 + squared / scale)


def cost_of(
    setting: Setting, fixed: Fixed, theta: Float[Array, " P"], data: FrameData, q: Float[Array, "W Q"]
) -> Float[Array, " W"]:
    """The objective of each frame."""
    markers = markers_of(setting, fixed.model, theta, q)
    part = setting.layout.camera_part(theta)
    cost = jnp.zeros(len(q), q.dtype)
    if setting.layout.n_cameras:
        seen = look(moved_rig(fixed.rig, part), markers)
        cost = cost + jnp.sum(_picture_cost(setting.layout, theta, seen, data)[0], axis=(1, 2))
    cost = cost + jnp.sum(_marker_cost(markers, data)[0], axis=1)
    if data.lifted is not None:
        found = expected_lifted(setting.layout, fixed.rig, theta, markers, data.lifted.root)
        cost = cost + jnp.sum(_lifted_cost(found, data.lifted)[0], axis=1)
        cost = cost + 0.5 * data.lifted.size_precision * _size_off(setting.layout, theta, data.lifted) ** 2
    off = q - fixed.model.default_q.astype(q.dtype)
    cost = cost + 0.5 * jnp.sum(pose_precision(fixed, data) * off**2, axis=1)
    for term in setting.terms:
        pose = setting.layout.posed(theta, q)
        r = jax.vmap(term, in_axes=(0, 0, None))(pose, markers, setting.layout.scale_factors(theta))
        cost = cost + 0.5 * jnp.sum(r**2, axis=1)
    return jnp.where(data.usable, cost, 0.0)


def _picture_cost(layout: Layout, theta: Array, seen: Seen, data: FrameData) -> tuple[Array, Array, Array]:
    """Costs ``[W V K]``, precisions after reweighting, and residuals ``[W V K 2]``."""
    residual = expected_keypoints(layout, theta, seen, data) - data.keypoints
    squared = data.precision * jnp.sum(residual**2, axis=-1)
    cost, weight = robust_cost(jnp.where(seen.in_front, squared, BEHIND))
    known = data.precision > 0
    cost = jnp.where(known, cost, 0.0)
    return cost, jnp.where(known & seen.in_front, data.precision * weight, 0.0), residual


def expected_keypoints(layout: Layout, theta: Array, seen: Seen, data: FrameData) -> Float[Array, "W V K 2"]:
    """Where a detector sees the markers: with its delays and constant errors, px."""
    found = seen.pixels + layout.delays(theta)[:, None, None] * data.velocity
    if not layout.biased:
        return found
    return found + layout.biases(theta) * data.size[..., None, None]


def all_expected(
    setting: Setting, fixed: Fixed, theta: Float[Array, " P"], data: FrameData, q: Float[Array, "C T Q"]
) -> Float[Array, "C T V K 2"]:
    """`expected_keypoints` of whole clips."""
    markers = markers_of(setting, fixed.model, theta, q.reshape(-1, q.shape[-1]))
    seen = look(moved_rig(fixed.rig, setting.layout.camera_part(theta)), markers)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
    found = expected_keypoints(setting.layout, theta, seen, rows)
    return found.reshape(*q.shape[:2], *found.shape[1:])


def robust_weights(
    setting: Setting, fixed: Fixed, theta: Float[Array, " P"], data: FrameData, q: Float[Array, "C T Q"]
) -> FrameData:
    """Whole clips' data with the weights that the robust loss gives them in their precisions."""
    markers = markers_of(setting, fixed.model, theta, q.reshape(-1, q.shape[-1])).reshape(data.markers.shape)
    _, weight = robust_cost(data.marker_precision * jnp.sum((markers - data.markers) ** 2, axis=-1))
    data = replace(data, marker_precision=data.marker_precision * weight)
    if setting.layout.n_cameras:
        off = all_expected(setting, fixed, theta, data, q) - data.keypoints
        _, weight = robust_cost(data.precision * jnp.sum(off**2, axis=-1))
        data = replace(data, precision=data.precision * weight)
    if (lifted := data.lifted) is not None:
        off = all_lifted(setting, fixed, theta, lifted, q) - lifted.points
        _, weight = robust_cost(jnp.sum(lifted.precision * off**2, axis=-1))
        data = replace(data, lifted=replace(lifted, precision=lifted.precision * weight[..., None]))
    return data


def expected_lifted(
    layout: Layout, rig: Rig, theta: Array, markers: Float[Array, "W K 3"], root: int
) -> Float[Array, "W K 3"]:
    """Where a lifter puts the markers: from the root along the axes of the only camera, in generic sizes."""
    turn = moved_rig(rig, layout.camera_part(theta)).rotations[0]
    apart = (markers - markers[:, root, None]) / _body_size(layout, theta)
    return jnp.einsum("ij,wkj->wki", turn, apart, precision="highest")


def _body_size(layout: Layout, theta: Array) -> Array:
    """Of the body over the generic model's: the geometric mean of its factors."""
    return jnp.exp(jnp.mean(theta[: layout.n_scales]))


def all_lifted(
    setting: Setting, fixed: Fixed, theta: Float[Array, " P"], lifted: LiftedData, q: Float[Array, "C T Q"]
) -> Float[Array, "C T K 3"]:
    """`expected_lifted` of whole clips."""
    markers = markers_of(setting, fixed.model, theta, q.reshape(-1, q.shape[-1]))
    found = expected_lifted(setting.layout, fixed.rig, theta, markers, lifted.root)
    return found.reshape(lifted.points.shape)


def _size_off(layout: Layout, theta: Array, lifted: LiftedData) -> Float[Array, " W"]:
    """Logarithm of the body's size over the lifted one's."""
    return jnp.mean(theta[: layout.n_scales]) - lifted.log_size


def _lifted_cost(found: Array, lifted: LiftedData) -> tuple[Array, Array, Array]:
    """Costs ``[W K]``, precisions after reweighting ``[W K 3]``, and residuals."""
    residual = found - lifted.points
    cost, weight = robust_cost(jnp.sum(lifted.precision * residual**2, axis=-1))
    share = lifted.share[:, None]
    return share * cost, (share * weight)[..., None] * lifted.precision, residual


def _marker_cost(markers: Array, data: FrameData) -> tuple[Array, Array, Array]:
    residual = markers - data.markers
    cost, weight = robust_cost(data.marker_precision * jnp.sum(residual**2, axis=-1))
    return cost, data.marker_precision * weight, residual


def equations(
    setting: Setting, fixed: Fixed, theta: Float[Array, " P"], data: FrameData, q: Float[Array, "W Q"]
) -> Equations:
    """The objective of frames with its gradient and matrix."""
    markers, jacobian = marker_jacobian(setting, fixed.model, theta, q)
    sums = _pose_prior(fixed, data, q, _Sums.none(setting.layout, q))
    sums = _marker_equations(data, markers, jacobian, sums)
    if setting.layout.n_cameras:
        sums = _picture_equations(setting.layout, fixed, theta, data, markers, jacobian, sums)
    if data.lifted is not None:
        sums = _lifted_equations(setting.layout, fixed.rig, theta, data, markers, jacobian, sums)
    for term in setting.terms:
        sums = _user_equations(setting, fixed, term, theta, data, q, sums)
    return Equations(jnp.where(data.usable, sums.cost, 0.0), *sums[1:])


class _Sums(Equations):
    """Equations in the making."""

    @classmethod
    def none(cls, layout: Layout, q: Array) -> _Sums:
        width, n = q.shape
        zeros = (
            (width,),
            (width, n),
            (width, n, n),
            (width, n, layout.size),
            (layout.size,),
            (layout.size,) * 2,
        )
        return cls(*(jnp.zeros(shape, q.dtype) for shape in zeros))


def _points_added(
    sums: _Sums, jacobian: Array, pull: Float[Array, "W K 3"], metric: Float[Array, "W K 3 3"]
) -> _Sums:
    """Adds forces on points and their stiffness; the Jacobian's columns are the vector's first ones."""
    frames, n = sums.gradient.shape
    body = slice(0, jacobian.shape[-1] - n)
    blocks = jacobian.reshape(*metric.shape[:3], -1)
    pushed = jnp.einsum("wkij,wkjn->wkin", metric, blocks).reshape(frames, -1, blocks.shape[-1])
    force = pull.reshape(frames, -1)
    own, shared = jacobian[..., :n], jacobian[..., n:]
    return sums._replace(
        gradient=sums.gradient + jnp.einsum("wmn,wm->wn", own, force),
        matrix=sums.matrix + jnp.matmul(jnp.swapaxes(own, 1, 2), pushed[..., :n], precision="highest"),
        border=sums.border.at[..., body].add(
            jnp.matmul(jnp.swapaxes(own, 1, 2), pushed[..., n:], precision="highest")
        ),
        shared_gradient=sums.shared_gradient.at[body].add(jnp.einsum("wmn,wm->n", shared, force)),
        shared_matrix=sums.shared_matrix.at[body, body].add(
            jnp.einsum("wmp,wmr->pr", shared, pushed[..., n:], precision="highest")
        ),
    )


def _marker_equations(data: FrameData, markers: Array, jacobian: Array, sums: _Sums) -> _Sums:
    costs, weight, residual = _marker_cost(markers, data)
    weight = jnp.where(data.usable[:, None], weight, 0.0)
    metric = weight[..., None, None] * jnp.eye(3, dtype=markers.dtype)
    sums = sums._replace(cost=sums.cost + jnp.sum(costs, axis=1))
    return _points_added(sums, jacobian, weight[..., None] * residual, metric)


def _lifted_equations(
    layout: Layout, rig: Rig, theta: Array, data: FrameData, markers: Array, jacobian: Array, sums: _Sums
) -> _Sums:
    assert data.lifted is not None
    found = expected_lifted(layout, rig, theta, markers, data.lifted.root)
    costs, precision, residual = _lifted_cost(found, data.lifted)
    precision = jnp.where(data.usable[:, None, None], precision, 0.0)
    off = _size_off(layout, theta, data.lifted)
    sizes, each = slice(0, layout.n_scales), 1 / layout.n_scales
    pull = jnp.where(data.usable, data.lifted.size_precision, 0.0)
    sums = sums._replace(
        cost=sums.cost + jnp.sum(costs, axis=1) + 0.5 * pull * off**2,
        shared_gradient=sums.shared_gradient.at[sizes].add(each * jnp.sum(pull * off)),
        shared_matrix=sums.shared_matrix.at[sizes, sizes].add(each**2 * jnp.sum(pull)),
    )
    return _points_added(
        sums,
        _lifted_jacobian(layout, rig, theta, data.lifted.root, found, jacobian, sums.gradient.shape[1]),
        precision * residual,
        precision[..., None] * jnp.eye(3, dtype=markers.dtype),
    )


def _lifted_jacobian(
    layout: Layout, rig: Rig, theta: Array, root: int, found: Array, jacobian: Array, n: int
) -> Float[Array, "W 3K Q+S+O+8"]:
    """Of `expected_lifted` by coordinates, sizes, offsets and the camera's own numbers."""
    part = layout.camera_part(theta)
    turn = moved_rig(rig, part).rotations[0]
    blocks = jacobian.reshape(*found.shape, -1)
    blocks = (blocks - blocks[:, root, None]) / _body_size(layout, theta)
    blocks = jnp.einsum("ij,wkjn->wkin", turn, blocks, precision="highest")
    blocks = blocks.at[..., n : n + layout.n_scales].add(-found[..., None] / layout.n_scales)
    turned = -jnp.matmul(cross_matrix(found), left_jacobian(part[0, ROTATION]), precision="highest")
    by_camera = jnp.zeros((*found.shape, PER_CAMERA), found.dtype).at[..., ROTATION].set(turned)
    whole = jnp.concatenate([blocks, by_camera], axis=-1)
    return whole.reshape(len(found), -1, whole.shape[-1])


def _picture_equations(
    layout: Layout, fixed: Fixed, theta: Array, data: FrameData, markers: Array, jacobian: Array, sums: _Sums
) -> _Sums:
    frames, n = sums.gradient.shape
    part = layout.camera_part(theta)
    rig = moved_rig(fixed.rig, part)
    seen = look(rig, markers)
    costs, weight, residual = _picture_cost(layout, theta, seen, data)
    weight = jnp.where(data.usable[:, None, None], weight, 0.0)
    weighted = weight[..., None, None] * seen.by_point
    sums = _points_added(
        sums._replace(cost=sums.cost + jnp.sum(costs, axis=(1, 2))),
        jacobian,
        jnp.einsum("wvkij,wvki->wkj", weighted, residual),
        jnp.einsum("wvkij,wvkil->wkjl", weighted, seen.by_point),
    )
    by_camera, body = _by_camera(rig, seen, part, data), layout.n_body
    force = weight[..., None] * residual
    crossed = jnp.einsum("wvkip,wvkij->wvpkj", by_camera, weighted).reshape(frames, -1, jacobian.shape[1])
    here = slice(body, body + PER_CAMERA * layout.n_cameras)
    by_pose = jnp.matmul(crossed, jacobian[..., :n], precision="highest")
    by_body = jnp.einsum("wpm,wmr->pr", crossed, jacobian[..., n:], precision="highest")
    matrix = sums.shared_matrix.at[here, :body].add(by_body).at[:body, here].add(by_body.T)
    square = jnp.einsum("wvkip,wvk,wvkir->vpr", by_camera, weight, by_camera)
    for view in range(layout.n_cameras):
        at = slice(body + PER_CAMERA * view, body + PER_CAMERA * (view + 1))
        matrix = matrix.at[at, at].add(square[view])
    sums = sums._replace(
        border=sums.border.at[..., here].add(jnp.swapaxes(by_pose, 1, 2)),
        shared_gradient=sums.shared_gradient.at[here].add(
            jnp.einsum("wvkip,wvki->vp", by_camera, force).reshape(-1)
        ),
        shared_matrix=matrix,
    )
    return (
        _bias_equations(layout, data, by_camera, weighted, weight, force, jacobian, sums)
        if layout.biased
        else sums
    )


def _bias_equations(
    layout: Layout,
    data: FrameData,
    by_camera: Array,
    weighted: Array,
    weight: Array,
    force: Array,
    jacobian: Array,
    sums: _Sums,
) -> _Sums:
    """The detector's constant errors: one vector for each camera and keypoint, in sizes of the person."""
    frames, n = sums.gradient.shape
    size = data.size[..., None]
    blocks = jacobian.reshape(frames, -1, 3, jacobian.shape[-1])
    sized = weighted * size[..., None, None]
    here, body = slice(layout.size - layout.n_biases, layout.size), layout.n_body
    by_pose = jnp.einsum("wvkij,wkjn->wnvki", sized, blocks[..., :n]).reshape(frames, n, -1)
    by_body = jnp.einsum("wvkij,wkjn->vkin", sized, blocks[..., n:]).reshape(-1, body)
    own = jnp.repeat(jnp.sum(weight * size**2, axis=0).reshape(-1), 2)
    matrix = sums.shared_matrix.at[here, :body].add(by_body).at[:body, here].add(by_body.T)
    matrix = matrix.at[here, here].add(jnp.diag(own))
    across = jnp.einsum("wvkip,wvk->vkip", by_camera, weight * size)
    each = layout.n_biases // layout.n_cameras
    for view in range(layout.n_cameras):
        camera = slice(body + PER_CAMERA * view, body + PER_CAMERA * (view + 1))
        bias = slice(here.start + each * view, here.start + each * (view + 1))
        block = across[view].reshape(each, PER_CAMERA)
        matrix = matrix.at[bias, camera].add(block).at[camera, bias].add(block.T)
    return sums._replace(
        border=sums.border.at[..., here].add(by_pose),
        shared_gradient=sums.shared_gradient.at[here].add(
            jnp.sum(force * size[..., None], axis=0).reshape(-1)
        ),
        shared_matrix=matrix,
    )


def pose_precision(fixed: Fixed, data: FrameData) -> Float[Array, "*T Q"]:
    """Of each frame's pull to the default pose."""
    pull = data.pull[..., None] * fixed.pose_precision + fixed.frame_precision
    return jnp.where(data.usable[..., None], pull, 0.0)


def _pose_prior(fixed: Fixed, data: FrameData, q: Array, sums: _Sums) -> _Sums:
    off = q - fixed.model.default_q.astype(q.dtype)
    precision = pose_precision(fixed, data)
    diagonal = np.arange(q.shape[1])
    return sums._replace(
        cost=sums.cost + 0.5 * jnp.sum(precision * off**2, axis=1),
        gradient=sums.gradient + precision * off,
        matrix=sums.matrix.at[:, diagonal, diagonal].add(precision),
    )


def _user_equations(
    setting: Setting, fixed: Fixed, term: Term, theta: Array, data: FrameData, q: Array, sums: _Sums
) -> _Sums:
    """Adds a user's residual, by automatic differentiation."""
    n, layout = q.shape[1], setting.layout

    def residual(x: Array) -> Array:
        pose, whole = x[:n], x[n:]
        markers = markers_of(setting, fixed.model, whole, pose[None])[0]
        return term(layout.posed(whole, pose), markers, layout.scale_factors(whole))

    whole = jnp.concatenate([q, jnp.broadcast_to(theta, (len(q), layout.size))], axis=1)
    r = jnp.where(data.usable[:, None], jax.vmap(residual)(whole), 0.0)
    j = jnp.where(data.usable[:, None, None], jax.vmap(jax.jacfwd(residual))(whole), 0.0)
    own, shared = j[..., :n], j[..., n:]
    return sums._replace(
        cost=sums.cost + 0.5 * jnp.sum(r**2, axis=1),
        gradient=sums.gradient + jnp.einsum("wmn,wm->wn", own, r),
        matrix=sums.matrix + jnp.einsum("wmn,wmo->wno", own, own, precision="highest"),
        border=sums.border + jnp.einsum("wmn,wmp->wnp", own, shared, precision="highest"),
        shared_gradient=sums.shared_gradient + jnp.einsum("wmp,wm->p", shared, r),
        shared_matrix=sums.shared_matrix + jnp.einsum("wmp,wmr->pr", shared, shared, precision="highest"),
    )


def _by_camera(rig: Rig, seen: Seen, part: Array, data: FrameData) -> Float[Array, "W V K 2 8"]:
    """Derivatives of residuals by their camera's own numbers."""
    turned = -jnp.matmul(
        cross_matrix(seen.local), left_jacobian(part[:, ROTATION])[:, None], precision="highest"
    )
    columns = jnp.zeros((*seen.pixels.shape, PER_CAMERA), seen.pixels.dtype)
    columns = columns.at[..., ROTATION].set(jnp.matmul(seen.by_local, turned, precision="highest"))
    columns = columns.at[..., CENTRE].set(-seen.by_point)
    columns = columns.at[..., FOCAL].set(seen.by_focal[..., None])
    return columns.at[..., DELAY].set(data.velocity[..., None])


def marker_jacobian(
    setting: Setting, model: SpineModel, theta: Float[Array, " P"], q: Float[Array, "W Q"]
) -> tuple[Float[Array, "W K 3"], Float[Array, "W 3K Q+S+O+D"]]:
    """Markers in ground, and their derivatives by coordinates, sizes, offsets and rhythm."""
    layout, topology = setting.layout, model.topology
    m, free, q = layout.map_of(model), q, layout.posed(theta, q)
    frames = subject_frames(setting, model, theta)
    state = tree_forward(topology, frames, free_to_qpos(m, q.T))
    markers = marker_positions(topology, frames, state)
    plan = build_plan(m, topology)
    reference = state.position[1]
    angular, linear = column_twists(plan, m, q.T, joint_twists(topology, frames, state, reference))
    arms = markers - reference
    moved = linear[:, None] + _cross(angular[:, None], arms[None])
    moved = moved * jnp.asarray(plan.subtree, q.dtype)[:, :, None, None]
    by_pose = jnp.moveaxis(gather_columns(plan, moved, q.shape[1], axis=0), 0, -1)  # [K 3 W Q]

    def scaled(log_scales: Array) -> Array:
        whole = jnp.concatenate([log_scales, theta[layout.n_scales :]])
        return marker_positions(
            topology,
            (here := subject_frames(setting, model, whole)),
            tree_forward(topology, here, free_to_qpos(m, q.T)),
        )

    by_scale = jax.jacfwd(scaled)(theta[: layout.n_scales])  # [K 3 W S]
    bodies = np.array(topology.marker_bodies, int)
    rotations = jnp.moveaxis(state.rotation[bodies], -1, 0)  # [W K 3 3]
    spread = layout.offset_unit(theta) * jnp.asarray(layout.offset_matrix(), q.dtype)
    spread = spread.reshape(len(bodies), 3, -1)
    by_offset = jnp.einsum("wkij,kjo->wkio", rotations, spread)
    left = jnp.moveaxis(jnp.concatenate([by_pose, by_scale], axis=-1), 2, 0)  # [W K 3 Q+S]
    whole = jnp.concatenate([left, by_offset], axis=-1)
    if layout.rhythm is not None:
        whole = _by_rhythm(layout, layout.rhythm, theta, free, whole)
    return jnp.moveaxis(markers, -1, 0), whole.reshape(len(q), -1, whole.shape[-1])


def _by_rhythm(
    layout: Layout, rhythm: Rhythm, theta: Array, q: Float[Array, "W Q"], whole: Float[Array, "W K 3 X"]
) -> Float[Array, "W K 3 Y"]:
    """Derivatives by departures as those by their leaders and by the rhythm that both make them."""
    n, leads = q.shape[1], rhythm.leads
    own, departed, rest = jnp.split(whole, [n, n + len(leads)], axis=-1)
    own = own.at[..., leads].add(departed * layout.shares(theta))
    return jnp.concatenate([own, rest, departed * q[:, None, None, leads]], axis=-1)


def _cross(a: Array, b: Array) -> Array:
    """Of vectors along the third axis from the end but one: ``[M K 3 W]``."""
    ax, ay, az = jnp.moveaxis(a, 2, 0)
    bx, by, bz = jnp.moveaxis(b, 2, 0)
    return jnp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=2)
