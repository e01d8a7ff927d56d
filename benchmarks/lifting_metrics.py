"""Agreement of the metrics with independent implementations, and their speed beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks import lifting_references as references
from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import SEED, Workplace
from simspine_jax.metrics.keypoints2d import (
    Detections,
    OksScores,
    People,
    average_precision,
    keypoint_mean,
    pck_auc,
)
from simspine_jax.metrics.pose3d import p_mpjpe
from simspine_jax.skeleton import N_KEYPOINTS, OKS_SUBSETS, REGIONS

CASES, POSES, FRAMES = 200, 2000, 100_000
# pycocotools and SciPy take so long for all frames that few rounds do; noise of the peer counts for us, but
# by parts of a percent over times of tens of seconds.
PEER_ROUNDS = 2
RANDOM = "synthetic: random and degenerate cases"


def oks_parity(place: Workplace) -> Iterator[Measurement]:
    """AP and AR of random and degenerate pictures beside pycocotools, all three subsets."""
    _need_pycocotools()
    worst, kinds = 0.0, set()
    with jax.enable_x64(True):
        for seed in range(place.size(CASES, 10)):
            case = references.coco_case(seed)
            for ids in OKS_SUBSETS.values():
                theirs = references.coco_numbers(references.coco_evaluator(case.detections, case.people, ids))
                ours = _numbers(average_precision(case.detections, case.people, ids=ids))
                worst = max(worst, float(np.abs(ours - theirs).max()))
            kinds |= case.kinds
    missing = set(references.KINDS) - kinds
    failed = "" if place.quick or not missing else f"no case drawn with {', '.join(sorted(missing))}"
    detail = {"cases": place.size(CASES, 10), "kinds": sorted(kinds)}
    yield Measurement("lifting/oks_parity_max", worst, RANDOM, "All ten numbers.", detail, failed)


def p_mpjpe_parity(place: Workplace) -> Iterator[Measurement]:
    """P-MPJPE of each region beside SciPy's, of small and large errors and of flat shapes."""
    predicted, truth = _poses(place.size(POSES, 50))
    predicted[1::5, ..., 2] *= 0.0  # in a plane
    worst, reflected = 0.0, 0
    with jax.enable_x64(True):
        for ids in REGIONS.values():
            found = np.asarray(p_mpjpe(jnp.asarray(predicted), jnp.asarray(truth), subset=ids).values)
            pairs = list(zip(predicted[:, ids], truth[:, ids], strict=True))
            theirs = np.array([references.scipy_p_mpjpe(*pair) for pair in pairs])
            either = np.array([references.scipy_procrustes_error(*pair) for pair in pairs])
            proper = references.needs_no_reflection(predicted[:, ids], truth[:, ids])
            off = np.concatenate([found - theirs, (found - either)[proper]])
            worst = max(worst, 1e3 * float(np.abs(off).max()))
            reflected += int((~proper).sum())
    detail = {"poses": len(truth), "better_reflected": reflected}
    note = "Rotation.align_vectors everywhere, scipy.spatial.procrustes where no reflection is better."
    yield Measurement("lifting/pmpjpe_parity_max_mm", worst, RANDOM, note, detail)


def auc_parity(place: Workplace) -> Iterator[Measurement]:
    """AUC beside the loop, with people of no size, keypoints that nobody has and distances on thresholds."""
    worst = 0.0
    with jax.enable_x64(True):
        for seed in range(place.size(CASES, 10)):
            case = references.auc_case(seed)
            theirs = references.mmpose_auc(*case)
            ours = float(keypoint_mean(pck_auc(*map(jnp.asarray, case))).values)
            worst = max(worst, abs((0.0 if np.isnan(ours) else ours) - theirs))
    yield Measurement("lifting/auc_parity_max", worst, RANDOM, "", {"cases": place.size(CASES, 10)})


def speed(place: Workplace) -> Iterator[Measurement]:
    """Each metric beside its independent implementation, on the same frames in one process."""
    _need_pycocotools()
    ratios = []
    for name, measure in (("oks_ap", _oks_speed), ("p_mpjpe", _p_mpjpe_speed), ("auc", _auc_speed)):
        measured = measure(place, f"lifting/metrics_vs_reference/{name}", place.size(FRAMES, 200))
        ratios.append(measured.value)
        yield measured
    yield Measurement("lifting/metrics_vs_reference", min(ratios), RANDOM, "Float32, all cores.")


def _oks_speed(place: Workplace, key: str, n_frames: int) -> Measurement:
    """One person a picture, found once, as lifters and detectors are evaluated with ground-truth boxes."""
    random = np.random.default_rng(SEED)
    predicted, truth = _pictures(n_frames)
    low = truth.min(axis=-2)
    boxes = np.concatenate([low, truth.max(axis=-2) - low], axis=-1)[:, None]
    labelled = random.random((n_frames, 1, N_KEYPOINTS)) < 0.9
    people = People(truth[:, None], labelled, boxes[..., 2] * boxes[..., 3], boxes)
    detections = Detections(predicted[:, None], random.random((n_frames, 1)))
    ids = OKS_SUBSETS["all"]
    evaluator = references.coco_evaluator(detections, people, ids)
    found = replace(detections, keypoints=jnp.asarray(detections.keypoints, jnp.float32))
    true = replace(people, keypoints=jnp.asarray(people.keypoints, jnp.float32))
    return _beside(
        place, key, n_frames, "pycocotools' evaluate, accumulate and summarize",
        lambda: _numbers(average_precision(found, true, ids=ids)), lambda: references.coco_numbers(evaluator),
    )  # fmt: skip


def _p_mpjpe_speed(place: Workplace, key: str, n_frames: int) -> Measurement:
    predicted, truth = _poses(n_frames, sizes=(0.05,))
    arrays = [jnp.asarray(points, jnp.float32) for points in (predicted, truth)]

    def loop() -> NDArray:
        pairs = zip(predicted, truth, strict=True)
        return np.array([references.scipy_procrustes_error(*pair) for pair in pairs])

    measured = _beside(
        place, key, n_frames, "a loop over scipy.spatial.procrustes, all 37 keypoints",
        lambda: np.asarray(p_mpjpe(*arrays).values), loop,
    )  # fmt: skip
    both = {"ours": lambda: jax.block_until_ready(p_mpjpe(*arrays)),
            "numpy": lambda: references.numpy_p_mpjpe(predicted, truth)}  # fmt: skip
    best = interleaved(both, place.repeats)
    return replace(measured, detail=measured.detail | {"batched_numpy_ratio": best["numpy"] / best["ours"]})


def _auc_speed(place: Workplace, key: str, n_frames: int) -> Measurement:
    random = np.random.default_rng(SEED)
    predicted, truth = _pictures(n_frames)
    labelled = random.random((n_frames, N_KEYPOINTS)) < 0.9
    side = random.uniform(100, 300, n_frames)
    arrays = [
        jnp.asarray(x, None if x.dtype == bool else jnp.float32) for x in (predicted, truth, labelled, side)
    ]
    return _beside(
        place, key, n_frames, "a NumPy loop over MMPose's definition",
        lambda: np.asarray(keypoint_mean(pck_auc(*arrays)).values),
        lambda: np.asarray(references.mmpose_auc(predicted, truth, labelled, side)),
    )  # fmt: skip


def _beside(
    place: Workplace,
    key: str,
    n_frames: int,
    peer: str,
    ours: Callable[[], NDArray],
    theirs: Callable[[], NDArray],
) -> Measurement:
    """The ratio of least times; the results must agree as far as float32 lets them."""
    best, result = dict.fromkeys(("ours", "peer"), np.inf), np.zeros(0)
    for _ in range(place.size(PEER_ROUNDS, 1)):
        best["ours"] = min(best["ours"], interleaved({"ours": ours}, place.repeats)["ours"])
        began = time.perf_counter()
        result = theirs()
        best["peer"] = min(best["peer"], time.perf_counter() - began)
    off = float(np.abs(ours() - result).max())
    detail = {"ours_s": best["ours"], "peer_s": best["peer"], "difference": off}
    failed = "" if off < 1e-4 else f"the two differ by {off:.2g}"
    note = f"{n_frames} frames, ours float32 on all cores; peer: {peer}, float64, one thread."
    return Measurement(key, best["peer"] / best["ours"], RANDOM, note, detail, failed)


def _poses(n: int, sizes: tuple[float, ...] = (0.01, 0.1, 1.0)) -> tuple[NDArray, NDArray]:
    """Predicted and true points spread over about a metre, somewhere in a room."""
    random = np.random.default_rng(SEED)
    truth = random.normal(scale=0.5, size=(n, N_KEYPOINTS, 3))
    size = random.choice(sizes, (n, 1, 1))
    place = random.uniform(-3, 3, (n, 1, 3))
    return truth + size * random.normal(size=truth.shape) + place, truth + place


def _pictures(n: int) -> tuple[NDArray, NDArray]:
    """Predicted and true keypoints of one person a picture, pixels."""
    random = np.random.default_rng(SEED)
    truth = 500 + random.normal(scale=80, size=(n, N_KEYPOINTS, 2))
    return truth + random.uniform(0, 40, (n, 1, 1)) * random.normal(size=truth.shape), truth


def _numbers(scores: OksScores) -> NDArray[np.float64]:
    """As pycocotools gives them: -1 where nobody counts."""
    return np.nan_to_num(np.array([getattr(scores, name) for name in vars(scores)]), nan=-1.0)


def _need_pycocotools() -> None:
    import importlib.util

    if importlib.util.find_spec("pycocotools") is None:
        raise SkippedError("pycocotools is not installed")
