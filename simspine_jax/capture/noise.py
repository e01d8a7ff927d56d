"""What a keypoint detector makes of a picture: biased, shaky, sometimes wrong, sometimes missing.

Errors are in shares of the person's scale in the picture, the root of the area of the box round the
keypoints, so that they are the same for near and far, as in the OKS metric. The parts are

* bias: each keypoint is off by a smooth function of the direction from which the person is seen; the same for
  every frame and person, mirrored for the other side of the body;
* jitter: Gaussian, correlated over `CORRELATION_S`, larger for keypoints that are hidden;
* outliers: bursts in which a keypoint goes far astray, with heavy tails;
* swaps: bursts in which left and right arm or leg change places;
* dropouts: bursts without a keypoint: NaN with confidence 0.

Probabilities and sizes are chosen; ``size`` and the factors by region are fitted to a table of triangulation
errors (`fit_noise`), by default to the paper's for its fine-tuned detector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import Cameras, camera_centers
from simspine_jax.skeleton import KEYPOINT_NAMES, N_KEYPOINTS, REGIONS, SIGMAS, SWAP

CORRELATION_S = 0.15
"""Time over which jitter keeps a share of 1/e of itself (chosen: some frames of a video)."""

BURST_S = 0.3
"""The same for outliers, swaps and dropouts."""

# Of the OKS sigma, which says how well people agree about a keypoint (chosen; the fit scales both).
_BIAS_SHARE, _JITTER_SHARE = 0.16, 0.12
_OCCLUDED_JITTER = 1.5
# How much more often a hidden keypoint is astray or missing.
_HIDDEN_RATE = 4.0
_OUTLIER_SIZE, _OUTLIER_CUT = 0.10, 5.0
_TORSO_RADIUS_M, _LIMB_RADIUS_M, _EDGE_M = 0.13, 0.06, 0.03
# Confidence falls with error in shares of the person's scale, but a detector knows its errors only partly.
_CONFIDENT, _CONFIDENCE_ERROR, _CONFIDENCE_SD, _OCCLUDED_CONFIDENCE = 0.93, 0.10, 0.05, 0.25

_SWAP_GROUPS = (
    ("shoulder", "elbow", "wrist"),
    ("hip", "knee", "ankle", "big_toe", "small_toe", "heel"),
)
# Where keypoints lie on the body's surface: the direction from which they are seen best, in (forward, right,
# up) of the person. Others are seen from everywhere, if nothing is in front of them.
_ON_THE_BACK = ("hip", "spine_01", "spine_02", "spine_03", "spine_04", "spine_05", "neck")
_SEEN_FROM = {
    "nose": (1, 0, 0),
    "left_eye": (1, -0.4, 0),
    "right_eye": (1, 0.4, 0),
    "left_ear": (0, -1, 0),
    "right_ear": (0, 1, 0),
    "left_clavicle": (1, 0, 0.3),
    "right_clavicle": (1, 0, 0.3),
    "left_latissimus": (-1, -0.5, 0),
    "right_latissimus": (-1, 0.5, 0),
    **dict.fromkeys(_ON_THE_BACK, (-1, 0, 0)),
}
_LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DetectorNoise:
    """A detector's errors; every array is in shares of the person's scale in the picture.

    Attributes:
        bias: horizontal and vertical error of each keypoint as coefficients of 1, cos and sin of the azimuth
            from which the person is seen (0 from the front, a quarter turn from the right), for size 1.
        jitter: standard deviation along each axis, for size 1.
        size: factor of all errors of position.
        dropout_rate: share of the time that a visible keypoint is missing.
        swap_rate: share of the time that arms, or legs, are swapped.
        outlier_rate: share of the time that a visible keypoint is astray.
    """

    bias: Float[Array, "K 2 3"]
    jitter: Float[Array, " K"]
    size: float | Array = 1.0
    dropout_rate: float | Array = 0.01
    swap_rate: float | Array = 0.004
    outlier_rate: float | Array = 0.01


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Detections:
    """Detected keypoints of a clip: px, NaN where there is none; confidence 0 … 1, 0 where there is none."""

    keypoints: Float[Array, "T V K 2"]
    confidence: Float[Array, "T V K"]


PAPER_TRIANGULATION_M = {"cervical": 0.03650, "thoracic": 0.04107, "lumbar": 0.03713, "body": 0.02727}
"""Mean errors of the paper's triangulation with its fine-tuned detector (its Table 3), by region."""

PAPER_ZERO_SHOT_M = {"cervical": 0.05439, "thoracic": 0.06990, "lumbar": 0.04813, "body": 0.04274}
"""The same for the detector that was not trained on the dataset."""

DetectorKind = Literal["finetuned", "zero_shot"]

# Found by `fit_noise` for the two tables: weighted triangulation of a quarter of the synthetic set.
_FITTED: dict[DetectorKind, dict[str, float]] = {
    "finetuned": {"cervical": 2.41, "thoracic": 1.17, "lumbar": 1.085, "body": 1.244},
    "zero_shot": {"cervical": 3.57, "thoracic": 1.77, "lumbar": 1.403, "body": 1.931},
}


def make_noise(seed: int = 0, kind: DetectorKind = "finetuned") -> DetectorNoise:
    """A detector; the seed picks its biases.

    Triangulated, its errors by region are those of the paper's detector of that kind: fine-tuned on the
    dataset (`PAPER_TRIANGULATION_M`) or not (`PAPER_ZERO_SHOT_M`).

    Raises:
        ShapeError: there is no such kind.
    """
    if kind not in _FITTED:
        raise ShapeError(f"kind is {kind!r}; valid are {', '.join(_FITTED)}")
    random = np.random.default_rng(seed)
    # Seen in a mirror, left is right, the azimuth changes its sign and so does the horizontal error.
    mirror = np.array([[-1, -1, 1], [1, 1, -1]])
    drawn = random.standard_normal((N_KEYPOINTS, 2, 3)) * [1.0, 0.7, 0.7]
    bias = (drawn + mirror * drawn[SWAP]) / math.sqrt(2)
    noise = DetectorNoise(
        jnp.asarray(_BIAS_SHARE * SIGMAS[:, None, None] * bias), jnp.asarray(_JITTER_SHARE * SIGMAS)
    )
    return scale_regions(noise, _FITTED[kind])


def scale_regions(noise: DetectorNoise, factors: Mapping[str, float]) -> DetectorNoise:
    """The detector with bias and jitter of some of `skeleton.REGIONS` multiplied.

    Raises:
        UnknownNameError: there is no such region.
    """
    factor = np.ones(N_KEYPOINTS)
    for region, value in factors.items():
        if region not in REGIONS:
            raise UnknownNameError("Region", region, "the vocabulary", REGIONS)
        factor[list(REGIONS[region])] *= value
    scale = jnp.asarray(factor, noise.jitter.dtype)
    return replace(noise, bias=noise.bias * scale[:, None, None], jitter=noise.jitter * scale)


def fit_noise(
    noise: DetectorNoise,
    table: Mapping[str, float],
    measure: Callable[[DetectorNoise], Float[Array, " K"]],
    rounds: int = 6,
) -> DetectorNoise:
    """The detector whose errors, after whatever ``measure`` does with them, have the means of a table.

    Each round measures and multiplies the table's regions by wanted over found; a table with the one entry
    ``"all"`` changes ``size`` alone.

    Args:
        noise: where to start.
        table: mean error by region of `skeleton.REGIONS`, in the unit of ``measure``.
        measure: mean error of each keypoint with a given detector, for example of triangulated points; the
            same random key in each call makes the fit exact.
        rounds: how often; 6 bring errors of a factor of 3 to within a per cent where outliers are few.

    Raises:
        UnknownNameError: there is no such region.
        ShapeError: a wanted or found error is not positive.
    """
    for _ in range(rounds):
        error = np.asarray(measure(noise), float)
        factors = {}
        for region, wanted in table.items():
            if region not in REGIONS:
                raise UnknownNameError("Region", region, "the vocabulary", REGIONS)
            found = error[list(REGIONS[region])].mean()
            if not (wanted > 0 and found > 0):
                raise ShapeError(f"errors of {region} are {wanted} and {found}; valid are positive numbers")
            factors[region] = float(np.clip(wanted / found, 0.2, 5.0))
        if set(factors) == {"all"}:
            noise = replace(noise, size=noise.size * factors["all"])
        else:
            noise = scale_regions(noise, factors)
    return noise


def detect(
    noise: DetectorNoise,
    key: Array,
    cameras: Cameras,
    points: Float[Array, "T K 3"],
    keypoints: Float[Array, "T V K 2"],
    visible: Bool[Array, "T V K"],
    rate_hz: float | Array,
) -> Detections:
    """What the detector reports; equal keys give equal numbers.

    Args:
        noise: the detector.
        key: JAX random key.
        cameras: V cameras.
        points: true keypoints in the cameras' world (Z up), metres.
        keypoints: their exact pictures, px.
        visible: whether a keypoint is within the picture; others are not detected.
        rate_hz: frames per second.
    """
    kind = keypoints.dtype
    frames, views, count = visible.shape
    noise = jax.tree.map(lambda leaf: jnp.asarray(leaf, kind), noise)
    scale = _person_scale(keypoints)
    hidden = occlusion(cameras, points)
    keys = jax.random.split(key, 6)

    def wander(i, shape, time_s):
        return _wander(keys[i], (frames, *shape), jnp.exp(-1 / (rate_hz * time_s)), kind)

    shake = wander(0, (views, count, 2), CORRELATION_S) * noise.jitter[:, None]
    shake = shake * (1 + _OCCLUDED_JITTER * hidden[..., None])
    astray = wander(1, (views, count, 3), BURST_S)
    is_astray = wander(2, (views, count), BURST_S) > _threshold(noise.outlier_rate, hidden)
    # A ratio of Gaussians has heavy tails.
    far = astray[..., :2] / jnp.maximum(jnp.abs(astray[..., 2:]), 1 / _OUTLIER_CUT)
    loose = shake + jnp.where(is_astray[..., None], _OUTLIER_SIZE * far, 0)
    offset = noise.size * (loose + _bias(noise.bias, cameras, points))
    swapped = wander(3, (views, len(_SWAP_GROUPS)), BURST_S) > _threshold(
        noise.swap_rate, jnp.zeros((), kind)
    )
    found = _swap(keypoints + scale[..., None, None] * offset, swapped)
    missing = wander(4, (views, count), BURST_S) > _threshold(noise.dropout_rate, hidden)
    error = noise.size * jnp.linalg.norm(loose, axis=-1)
    doubt = _CONFIDENCE_SD * jax.random.normal(keys[5], hidden.shape, kind)
    confidence = _CONFIDENT * jnp.exp(-error / _CONFIDENCE_ERROR) - _OCCLUDED_CONFIDENCE * hidden + doubt
    there = visible & ~missing & jnp.isfinite(found).all(axis=-1)
    return Detections(
        jnp.where(there[..., None], found, jnp.nan), jnp.where(there, jnp.clip(confidence, 0.02, 1.0), 0.0)
    )


def occlusion(cameras: Cameras, points: Float[Array, "T K 3"]) -> Float[Array, "T V K"]:
    """How far each keypoint is hidden by the person, 0 … 1.

    Keypoints on the surface of the trunk and head are hidden when seen from the other side; any keypoint is,
    when the ray to it passes through the trunk or a limb that it isn't part of. Trunk and limbs are capsules.

    Args:
        cameras: V cameras.
        points: keypoints in the cameras' world, metres.
    """
    center = camera_centers(cameras).astype(points.dtype)
    ray = points[:, None] - center[:, None]
    distance = jnp.linalg.norm(ray, axis=-1)
    toward = -ray / distance[..., None]
    normals = jnp.asarray([_SEEN_FROM.get(name, (0, 0, 0)) for name in KEYPOINT_NAMES], points.dtype)
    facing = jnp.einsum("tij,kj->tki", _person_axes(points), normals, precision="highest")
    turned = jnp.einsum("tki,tvki->tvk", facing, toward, precision="highest")
    hidden = jnp.where((normals != 0).any(axis=-1), jax.nn.sigmoid(-6 * (turned + 0.1)), 0.0)
    for a, b, radius in (("neck", "hip", _TORSO_RADIUS_M), *((a, b, _LIMB_RADIUS_M) for a, b in _LIMBS)):
        ends = [points[:, KEYPOINT_NAMES.index(name)] for name in (a, b)]
        if a == "neck":
            # The trunk's axis is in front of the points on the back.
            ends = [end + 0.09 * _person_axes(points)[:, :, 0] for end in ends]
        gap, before = _gap(center, ray, *ends)
        own = np.array([_belongs(name, a, b) for name in KEYPOINT_NAMES])
        inside = jax.nn.sigmoid((radius - gap) / (0.25 * _EDGE_M)) * (before > radius)
        hidden = jnp.maximum(hidden, jnp.where(own, 0.0, inside))
    return hidden


def _belongs(name: str, start: str, end: str) -> bool:
    """Whether a keypoint is on the capsule: nothing hides itself that way."""
    if start == "neck":
        on_trunk = {"shoulder", "hip", "clavicle", "latissimus", "ear", "eye"}
        return not name.startswith(("left", "right")) or name.partition("_")[2] in on_trunk
    # The foot goes with the shank.
    parts = {start, end} | ({f"{end.partition('_')[0]}_{toe}" for toe in ("big_toe", "small_toe", "heel")}
                            if end.endswith("ankle") else set())  # fmt: skip
    return name in parts


def _gap(center: Array, ray: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """Least distance between the ray to each keypoint and a segment, and how far before the keypoint."""
    length = jnp.sqrt(jnp.sum(ray**2, -1))
    u = ray / length[..., None]
    d = (end - start)[:, None, None]
    w = center[None, :, None] - start[:, None, None]
    ud, dd, uw, dw = (jnp.sum(a * b, -1) for a, b in ((u, d), (d, d), (u, w), (d, w)))
    s = jnp.clip((dw - ud * uw) / jnp.maximum(dd - ud**2, 1e-9), 0, 1)
    t = jnp.clip(s * ud - uw, 0, length)
    s = jnp.clip((dw + t * ud) / dd, 0, 1)
    nearest = w + t[..., None] * u - s[..., None] * d
    return jnp.linalg.norm(nearest, axis=-1), length - t


def _person_axes(points: Array) -> Array:
    """``[T 3 3]``, columns forward, right and up of the person, in the world."""

    def at(name):
        return points[:, KEYPOINT_NAMES.index(name)]

    right = _unit(at("right_hip") - at("left_hip")) + _unit(at("right_shoulder") - at("left_shoulder"))
    forward = _unit(jnp.cross(at("neck") - at("hip"), right))
    right = _unit(right)
    return jnp.stack([forward, right, jnp.cross(right, forward)], axis=-1)


def _unit(vector: Array) -> Array:
    return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)


def _bias(bias: Array, cameras: Cameras, points: Array) -> Array:
    """``[T V K 2]`` for size 1, from each camera's azimuth about the person."""
    toward = camera_centers(cameras).astype(points.dtype) - points[:, None, KEYPOINT_NAMES.index("hip")]
    forward, right = jnp.moveaxis(
        jnp.einsum("tij,tvi->tvj", _person_axes(points)[..., :2], toward, precision="highest"), -1, 0
    )
    length = jnp.sqrt(forward**2 + right**2)
    basis = jnp.stack([jnp.ones_like(length), forward / length, right / length], axis=-1)
    return jnp.einsum("kij,tvj->tvki", bias, basis, precision="highest")


def _person_scale(keypoints: Array) -> Array:
    """``[T V]`` root of the area of the box round the keypoints, px."""
    sides = jnp.nanmax(keypoints, axis=2) - jnp.nanmin(keypoints, axis=2)
    return jnp.sqrt(sides[..., 0] * sides[..., 1])


def _swap(keypoints: Array, swapped: Array) -> Array:
    groups = np.array(
        [
            [
                name.partition("_")[2] in group and name.startswith(("left", "right"))
                for name in KEYPOINT_NAMES
            ]
            for group in _SWAP_GROUPS
        ]
    )
    exchange = (swapped[..., None] & groups).any(axis=-2)
    # A copy: JAX remembers how it converted a constant index, which breaks a program in the other precision.
    partners = keypoints[..., SWAP.copy(), :]
    return jnp.where(exchange[..., None], partners, keypoints)


def _threshold(rate: float | Array, hidden: Array) -> Array:
    """What a standard normal number exceeds with this probability; a hidden keypoint's is larger.

    Between seen and hidden the threshold is interpolated: the inverse of the normal distribution is long
    code, and evaluated for every keypoint it would take most of the compiler's time.
    """
    rates = jnp.asarray(rate, hidden.dtype) * jnp.array([1.0, _HIDDEN_RATE], hidden.dtype)
    seen, unseen = -jax.scipy.special.ndtri(jnp.clip(rates, 1e-12, 0.5))
    return seen + (unseen - seen) * hidden


def _wander(key: Array, shape: tuple[int, ...], keep: Array, dtype) -> Array:
    """Standard normal numbers ``[T ...]`` that keep the share ``keep`` from one frame to the next."""
    draws = jax.random.normal(key, shape, dtype)
    keep = jnp.asarray(keep, dtype)

    def step(state, draw):
        state = keep * state + jnp.sqrt(1 - keep**2) * draw
        return state, state

    _, rest = lax.scan(step, draws[0], draws[1:])
    return jnp.concatenate([draws[:1], rest])
