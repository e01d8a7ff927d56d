"""Scores of 2D keypoints: share of correct ones (PCK), its area under the curve, and COCO's OKS, AP and AR.

Positions are in pixels. A keypoint counts where it is labelled and its true position is not NaN; a labelled
one that was not predicted (NaN) is a miss. PCK and AUC count, so their derivatives are 0 or don't exist; OKS
is smooth in the predicted positions.

**PCK and AUC** need a normaliser and thresholds, and a score says nothing without them. The paper divides by
the shorter side of the person's box (`shorter_side`); its thresholds are not known. MMPose's AUC is the mean
over the thresholds 0, 0.05, …, 0.95, where a distance must be *below* the threshold: nothing is below 0, so a
perfect prediction scores `AUC_CEILING`. MMPose averages over people first and over keypoints then
(`keypoint_mean`), which is another number than the mean over people where some keypoints are not labelled.

**OKS** is ``mean_k exp(-d_k^2 / (2 area (2 sigma_k)^2))`` over the labelled keypoints. AP and AR are COCO's,
with its thresholds 0.50:0.05:0.95, 101 recall points, at most 20 detections a picture, and its rules for
crowds and for people without labels. Subsets of keypoints keep the person's area.

Sources: COCO's keypoint evaluation (``pycocotools.cocoeval``); MMPose's ``keypoint_auc``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError
from simspine_jax.metrics.masked import Masked, safe_norm
from simspine_jax.skeleton import OKS_SUBSETS, SIGMAS

MMPOSE_THRESHOLDS: tuple[float, ...] = tuple(i / 20 for i in range(20))
"""Of MMPose's AUC."""

AUC_CEILING = 0.95
"""What a perfect prediction scores with `MMPOSE_THRESHOLDS`."""

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's, by which AP and AR are averaged."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's recall points, at which precision is read."""

MAX_DETECTIONS = 20
"""COCO's: of each picture so many count, those of highest score."""

AREAS = {"all": (0.0, 1e5**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
"""COCO's ranges of a person's area, square pixels, ends included."""

# The best that COCO's matching asks of an OKS, and what it adds to areas and counts so that none is zero.
_HIGHEST_BAR, _TINY = 1 - 1e-10, np.spacing(1)


def shorter_side(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """The shorter side of boxes (x, y, width, height): the paper's normaliser."""
    return jnp.minimum(boxes[..., 2], boxes[..., 3])


@jax.jit
def pck(
    predicted: Float[Array, "*batch K 2"],
    truth: Float[Array, "*batch K 2"],
    labelled: Bool[Array, "*batch K"],
    normaliser: Float[Array, "*batch"],
    threshold: Float[Array, ""] | float,
) -> Masked:
    """1 for each keypoint whose distance over the normaliser is below the threshold, else 0: ``[*batch K]``.

    People whose normaliser is not above 0 are left out.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    far, counts = _normalised(predicted, truth, labelled, normaliser)
    return Masked.of((far < threshold).astype(far.dtype), counts)


@partial(jax.jit, static_argnames=("thresholds",))
def pck_auc(
    predicted: Float[Array, "*batch K 2"],
    truth: Float[Array, "*batch K 2"],
    labelled: Bool[Array, "*batch K"],
    normaliser: Float[Array, "*batch"],
    *,
    thresholds: tuple[float, ...] = MMPOSE_THRESHOLDS,
) -> Masked:
    """Share of the thresholds that each keypoint's normalised distance is below: ``[*batch K]``.

    Its mean is the mean of `pck` over the thresholds; evenly spaced ones make that the area under the curve.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    far, counts = _normalised(predicted, truth, labelled, normaliser)
    below = sum(((far < t).astype(far.dtype) for t in thresholds), jnp.zeros_like(far))
    return Masked.of(below / len(thresholds), counts)


def keypoint_mean(scores: Masked) -> Masked:
    """MMPose's average of ``[*batch K]``: over people first, then over the keypoints that anyone has."""
    return scores.mean(tuple(range(scores.values.ndim - 1))).mean()


@partial(jax.jit, static_argnames=("ids",))
def oks(
    predicted: Float[Array, "*batch K 2"],
    truth: Float[Array, "*batch K 2"],
    labelled: Bool[Array, "*batch K"],
    area: Float[Array, "*batch"],
    *,
    ids: tuple[int, ...] = OKS_SUBSETS["all"],
) -> Masked:
    """Similarity of each prediction to its person, 0 to 1; missing where no keypoint of ``ids`` is labelled.

    Args:
        predicted: pixels; K is more than the highest of ``ids``.
        truth: likewise.
        labelled: which keypoints of the person are.
        area: of the person, square pixels, whatever the subset.
        ids: keypoints that count, as `skeleton.OKS_SUBSETS` has them.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    predicted, truth, labelled = _checked(predicted, truth, labelled)
    predicted, truth, labelled = _only(ids, predicted), _only(ids, truth), labelled[..., np.array(ids, int)]
    seen = jnp.isfinite(predicted).all(-1)
    offset = jnp.where((seen & labelled)[..., None], predicted - truth, 0.0)
    terms = _similarity((offset**2).sum(-1), area, ids)
    return Masked.of(jnp.where(seen, terms, 0.0), labelled).mean(-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class People:
    """The people in each picture, padded to the same number G.

    Attributes:
        keypoints: true positions, pixels.
        labelled: which of them are known.
        area: square pixels.
        boxes: x, y, width, height, pixels.
        crowd: entries that stand for many people, which no detection is wrong to match; none if not given.
        present: False for padding; all present if not given.
    """

    keypoints: Float[Array | np.ndarray, "images G K 2"]
    labelled: Bool[Array | np.ndarray, "images G K"]
    area: Float[Array | np.ndarray, "images G"]
    boxes: Float[Array | np.ndarray, "images G 4"]
    crowd: Bool[Array | np.ndarray, "images G"] | None = None
    present: Bool[Array | np.ndarray, "images G"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Detections:
    """The people found in each picture, padded to the same number D, in any order.

    Attributes:
        keypoints: predicted positions, pixels.
        scores: of each detection as a whole.
        area: square pixels, which tells in which of `AREAS` a false detection counts; if not given, that of
            the rectangle around the keypoints that are evaluated.
        present: False for padding; all present if not given.
    """

    keypoints: Float[Array | np.ndarray, "images D K 2"]
    scores: Float[Array | np.ndarray, "images D"]
    area: Float[Array | np.ndarray, "images D"] | None = None
    present: Bool[Array | np.ndarray, "images D"] | None = None


@dataclass(frozen=True)
class OksScores:
    """COCO's ten numbers, 0 to 1; NaN where nobody counts."""

    ap: float
    ap50: float
    ap75: float
    ap_medium: float
    ap_large: float
    ar: float
    ar50: float
    ar75: float
    ar_medium: float
    ar_large: float


def average_precision(
    detections: Detections, people: People, *, ids: tuple[int, ...] = OKS_SUBSETS["all"]
) -> OksScores:
    """COCO's AP and AR over OKS.

    A person without a labelled keypoint among ``ids`` counts neither as found nor as missed. OKS and matching
    are computed in JAX's precision, what follows in float64: in float32 the numbers differ from COCO's only
    where an OKS lies within rounding of a threshold.

    Args:
        detections: of all pictures.
        people: in the same pictures.
        ids: keypoints that count, as `skeleton.OKS_SUBSETS` has them.

    Raises:
        ShapeError: the shapes don't fit each other.
    """
    _check_pictures(detections, people, ids)
    scores, keypoints, present, area = _ranked(detections)
    shape = np.shape(people.area)
    crowd = np.zeros(shape, bool) if people.crowd is None else people.crowd
    there = np.ones(shape, bool) if people.present is None else people.present
    found = _match(keypoints, present, area, people, crowd, there, ids)
    matched, neutral, counted = map(np.asarray, found)
    order = np.argsort(-scores[present], kind="stable")
    matched, neutral = (np.moveaxis(x[present][order], 0, -1) for x in (matched, neutral))
    return _summary(*_precision_and_recall(matched, neutral, counted))


@partial(jax.jit, static_argnames=("ids",))
def oks_matrix(
    predicted: Float[Array, "*batch D K 2"],
    truth: Float[Array, "*batch G K 2"],
    labelled: Bool[Array, "*batch G K"],
    area: Float[Array, "*batch G"],
    boxes: Float[Array, "*batch G 4"],
    *,
    ids: tuple[int, ...] = OKS_SUBSETS["all"],
) -> Float[Array, "*batch D G"]:
    """OKS of each detection with each person, by COCO's rule also of people without labels.

    For those, distances count from the box doubled about its centre line: from ``x - width`` to
    ``x + 2 width``, likewise in height.
    """
    columns = np.array(ids, int)
    return _matrix(_only(ids, predicted), _only(ids, truth), labelled[..., columns], area, boxes, ids)


def _matrix(
    predicted: Array, truth: Array, labelled: Array, area: Array, boxes: Array, ids: tuple[int, ...]
) -> Array:
    predicted, truth = predicted[..., :, None, :, :], truth[..., None, :, :, :]
    labelled = labelled & jnp.isfinite(truth[..., 0, :, :, :]).all(-1)
    some = labelled.any(-1)
    corner, size = boxes[..., None, :, None, :2], boxes[..., None, :, None, 2:]
    below, above = corner - size - predicted, predicted - (corner + 2 * size)
    outside = jnp.maximum(below, 0.0) + jnp.maximum(above, 0.0)
    unlabelled = ~some[..., None, :, None]
    offset = jnp.where(unlabelled[..., None], outside, predicted - truth)
    counts = labelled[..., None, :, :] | unlabelled
    terms = _similarity((offset**2).sum(-1), area[..., None, :], ids)
    terms = jnp.where(counts & jnp.isfinite(predicted).all(-1), terms, 0.0)
    return terms.sum(-1) / counts.sum(-1)


def _similarity(squared: Array, area: Array, ids: tuple[int, ...]) -> Array:
    """COCO's exponential, with its order of operations, so that ties stay ties."""
    variances = jnp.asarray((2 * SIGMAS[np.array(ids, int)]) ** 2, squared.dtype)
    return jnp.exp(-(squared / variances / (area[..., None] + _TINY) / 2))


def _only(ids: tuple[int, ...], points: Array) -> Array:
    return points[..., np.array(ids, int), :]


def _checked(predicted: Array, truth: Array, labelled: Array) -> tuple[Array, Array, Array]:
    predicted, truth, labelled = jnp.asarray(predicted), jnp.asarray(truth), jnp.asarray(labelled)
    if predicted.shape != truth.shape or predicted.ndim < 2 or predicted.shape[-1] != 2:
        raise ShapeError(
            f"predicted has shape {predicted.shape} and truth {truth.shape}; valid is [..., K, 2] for both"
        )
    if labelled.shape != predicted.shape[:-1] or labelled.dtype != bool:
        raise ShapeError(
            f"labelled is {labelled.dtype} {labelled.shape}; valid is bool {predicted.shape[:-1]}"
        )
    return predicted, truth, labelled & jnp.isfinite(truth).all(-1)


def _normalised(predicted: Array, truth: Array, labelled: Array, normaliser: Array) -> tuple[Array, Array]:
    """Distances over the normaliser, infinite where nothing was predicted, and which of them count."""
    predicted, truth, labelled = _checked(predicted, truth, labelled)
    normaliser = jnp.asarray(normaliser)
    if normaliser.shape != labelled.shape[:-1]:
        raise ShapeError(f"normaliser has shape {normaliser.shape}; valid is {labelled.shape[:-1]}")
    usable = normaliser > 0
    divisor = jnp.where(usable, normaliser, 1.0)[..., None, None]
    seen = jnp.isfinite(predicted).all(-1)
    counts = labelled & usable[..., None]
    offset = jnp.where((seen & counts)[..., None], predicted - truth, 0.0) / divisor
    return jnp.where(seen, safe_norm(offset), jnp.inf), counts


def _check_pictures(detections: Detections, people: People, ids: tuple[int, ...]) -> None:
    found, true = np.shape(detections.keypoints), np.shape(people.keypoints)
    last = (true[-2], 2) if len(true) == 4 else ()
    if len(found) != 4 or found[2:] != last or found[0] != true[0]:
        raise ShapeError(f"detections have shape {found} and people {true}; valid is [images, D or G, K, 2]")
    if true[2] <= max(ids):
        raise ShapeError(f"there are {true[2]} keypoints; the subset needs more than {max(ids)}")
    for name, value, shape in (
        ("scores", detections.scores, found[:2]),
        ("area of the detections", detections.area, found[:2]),
        ("present of the detections", detections.present, found[:2]),
        ("labelled", people.labelled, true[:3]),
        ("area", people.area, true[:2]),
        ("boxes", people.boxes, (*true[:2], 4)),
        ("crowd", people.crowd, true[:2]),
        ("present", people.present, true[:2]),
    ):
        if value is not None and np.shape(value) != shape:
            raise ShapeError(f"{name} has shape {np.shape(value)}; valid is {shape}")


def _ranked(detections: Detections) -> tuple[NDArray, Array | NDArray, NDArray, Array | NDArray | None]:
    """Scores, keypoints, presence and area of those that count, highest score first in each picture."""
    scores, keypoints, area = np.asarray(detections.scores, np.float64), detections.keypoints, detections.area
    present = np.ones(scores.shape, bool) if detections.present is None else np.asarray(detections.present)
    if scores.shape[1] < 2:
        return scores, keypoints, present, area
    order = np.argsort(np.where(present, -scores, np.inf), axis=1, kind="stable")[:, :MAX_DETECTIONS]
    scores, present = (np.take_along_axis(x, order, axis=1) for x in (scores, present))
    area = None if area is None else np.take_along_axis(np.asarray(area), order, axis=1)
    return scores, np.take_along_axis(np.asarray(keypoints), order[..., None, None], axis=1), present, area


def _extent(keypoints: Array) -> Array:
    """Area of the rectangle around the keypoints; 0 where there are none."""
    seen = jnp.isfinite(keypoints).all(-1, keepdims=True)
    low = jnp.where(seen, keypoints, jnp.inf).min(-2)
    high = jnp.where(seen, keypoints, -jnp.inf).max(-2)
    return jnp.where(jnp.isfinite(low), high - low, 0.0).prod(-1)


@partial(jax.jit, static_argnames=("ids",))
def _match(
    keypoints: Float[Array, "I D K 2"],
    present: Bool[Array, "I D"],
    area: Float[Array, "I D"] | None,
    people: People,
    crowd: Bool[Array, "I G"],
    there: Bool[Array, "I G"],
    ids: tuple[int, ...],
) -> tuple[Bool[Array, "I D A H"], Bool[Array, "I D A H"], Int[Array, " A"]]:
    """Which detections match somebody, which count neither way, and how many people count.

    Detections are by falling score. At each of `OKS_THRESHOLDS` a detection takes the person of highest OKS
    that is free, the last of equal ones; those that don't count (of other size, crowds, without labels) only
    if no other reaches the threshold. A crowd is never taken.
    """
    size, boxes = jnp.asarray(people.area), jnp.asarray(people.boxes)
    keypoints, truth = (_only(ids, jnp.asarray(points)) for points in (keypoints, people.keypoints))
    area = _extent(keypoints) if area is None else area
    labelled = jnp.asarray(people.labelled)[..., np.array(ids, int)] & jnp.isfinite(truth).all(-1)
    similarity = _matrix(keypoints, truth, labelled, size, boxes, ids)
    low, high = (jnp.array(ends, similarity.dtype)[:, None] for ends in zip(*AREAS.values(), strict=True))
    other_size = (size[:, None] < low) | (size[:, None] > high)
    skipped = other_size | (crowd | ~labelled.any(-1))[:, None]
    odd_size = (area[..., None] < low[:, 0]) | (area[..., None] > high[:, 0])
    bars = jnp.asarray(np.minimum(OKS_THRESHOLDS, _HIGHEST_BAR), similarity.dtype)
    matched, passed = jax.vmap(partial(_match_picture, bars))(similarity, present, skipped, crowd, there)
    neutral = passed | (~matched & odd_size[..., None])
    return matched, neutral, (there[:, None] & ~skipped).sum((0, 2))


def _match_picture(
    bars: Array, similarity: Array, present: Array, skipped: Array, crowd: Array, there: Array
) -> tuple[Array, Array]:
    """[D A H] of one picture: whether each detection is matched, and whether with one that doesn't count."""
    n_people = similarity.shape[-1]
    regular = (~skipped)[:, None, :]

    def step(taken: Array, detection: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        value, exists = detection
        open_ = exists & there & (~taken | crowd) & (value >= bars[:, None])
        first = open_ & regular
        counts = first.any(-1, keepdims=True)
        best = jnp.where(jnp.where(counts, first, open_), value, -1.0)
        last = best == best.max(-1, keepdims=True)
        index = (jnp.arange(n_people) * last).max(-1, keepdims=True)
        hit = open_.any(-1, keepdims=True)
        taken = taken | (hit & (jnp.arange(n_people) == index))
        return taken, (hit[..., 0], (hit & ~counts)[..., 0])

    start = jnp.zeros((len(AREAS), len(bars), n_people), bool)
    if n_people == 0:
        nothing = jnp.zeros((len(similarity), *start.shape[:2]), bool)
        return nothing, nothing
    return lax.scan(step, start, (similarity, present))[1]


def _precision_and_recall(
    matched: NDArray[np.bool_], neutral: NDArray[np.bool_], counted: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [A H R] at `RECALLS` and final recall [A H], NaN where nobody counts.

    Args:
        matched: [A H n] by falling score over all pictures.
        neutral: likewise; detections that count neither way.
        counted: [A] people that count.
    """
    sizes, bars, n = matched.shape
    right = np.cumsum(matched & ~neutral, axis=-1, dtype=np.float64)
    wrong = np.cumsum(~matched & ~neutral, axis=-1, dtype=np.float64)
    precision = right / (wrong + right + _TINY)
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    recall = right / np.where(counted > 0, counted, np.nan)[:, None, None]
    read = np.zeros((sizes, bars, len(RECALLS)))
    for a, h in np.ndindex(sizes, bars):
        place = np.searchsorted(recall[a, h], RECALLS)
        read[a, h, place < n] = precision[a, h, place[place < n]]
    read[counted == 0] = np.nan
    return read, recall[..., -1] if n else np.where(counted > 0, 0.0, np.nan)[:, None].repeat(bars, 1)


def _summary(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> OksScores:
    every, medium, large = range(len(AREAS))
    half, three_quarters = 0, 5
    numbers = [
        by[chosen].mean()
        for by in (precision, recall)
        for chosen in (every, (every, half), (every, three_quarters), medium, large)
    ]
    return OksScores(*map(float, numbers))
