"""The suite ``pipeline``: what is measured, what the project promises of it, and what gates.

Rows that stand on one stage are in ``pipeline_geometry``; those that need the whole chain come after them.
"""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

_geometry = partial(late, "pipeline_geometry")
_system = partial(late, "pipeline_system")

# Tolerances: as in the suite ``kinematics``.
_ROUNDING, _TIMES, _SOLVED = 4.0, 0.25, 0.1


def _error(key: str, unit: str, tolerance: float | None, bar: float | None, note: str) -> Metric:
    return Metric(f"pipeline/{key}", unit, "lower", tolerance, bar, note)


def _speedup(key: str, bar: float | None, note: str) -> Metric:
    return Metric(f"pipeline/{key}", "ratio", "higher", _TIMES, bar, note, is_timing=True)


_FITTED = "Mean error of plain triangulation of what the synthetic detector finds"

METRICS = (
    _error("triangulation_parity_max_mm", "mm", _ROUNDING, 0.01, "Largest distance from Pose2Sim's points."),
    _error("filter_parity_max_mm", "mm", _ROUNDING, 0.01, "Largest distance from Pose2Sim's filter."),
    _speedup("triangulation_vs_pose2sim", 200.0, "Points per second over Pose2Sim's own code, same rules."),
    _error("robust_worst_point_mm", "mm", _SOLVED, 25.0, "The same of the robust method."),
    _error("scaling_parity_max_m", "m", _ROUNDING, 1e-6, "Largest distance from OpenSim's scaled model."),
    # The paper's level is what the detector is fitted to: no less is better, so nothing gates.
    _error("detector_noise_mpjpe_mm", "mm", None, None, f"{_FITTED}, all keypoints."),
    _error("detector_noise_mpjpe_mm/*", "mm", None, None, f"{_FITTED}; detector and region in the key."),
    _error("detector_noise_size", "1", None, None, "Size that a new fit to the paper's mean error gives it."),
    _error("oracle_mpjpe_mm", "mm", _ROUNDING, 0.05, "Error of the chain on exact pictures, size known."),
    _error("oracle_axis_max_deg", "deg", _ROUNDING, 0.01, "Largest error of an observable axis there."),
    _error("spine_mpjpe_mm", "mm", _SOLVED, None, "Mean error of the 15 spine keypoints after the model."),
    _error("spine_mpjpe_mm_triangulated", "mm", None, None, "The same of the triangulated points."),
    _error("spine_mpjpe_mm_official", "mm", None, None, "The same of the official preset."),
    _error("spine_mpjpe_ratio", "ratio", _SOLVED, 0.6, "After the model over triangulated."),
    _error("mpjpe_mm/*", "mm", None, None, "Mean error by method and region, and of the spine by action."),
    _error("lumbar_flexion_rms_deg", "deg", _SOLVED, 3.0, "RMS error of the worst lumbar flexion angle."),
    _error("lumbar_flexion_rms_deg_official", "deg", None, None, "The same of the official preset."),
    _error(
        "lumbar_flexion_rms_deg_zero", "deg", None, None, "The same of guessing the model's default pose."
    ),
    Metric("pipeline/lumbar_flexion_correlation", "1", "higher", None, None, "L5-S1 flexion with the truth."),
    Metric("pipeline/lumbar_flexion_correlation_official", "1", "higher", None, None, "Likewise, official."),
    _error("lordosis_mean_deg", "deg", None, None, "Mean lumbar lordosis, L1-S1, of usable frames."),
    _error("kyphosis_mean_deg", "deg", None, None, "Mean thoracic kyphosis, T3-T12, of usable frames."),
    Metric(
        "pipeline/frames_per_s", "1/s", "higher", None, None, "The whole chain without files.", is_timing=True
    ),
    _speedup("chain_vs_clip_ik", 0.6, "Rate of the chain over that of its whole-clip solve."),
    _error("seam_max_mm", "mm", None, 0.1, "What a seam between clips adds to a marker's next step."),
    _error("clips_max_mm", "mm", None, None, "Markers of long trials in clips against one clip, anywhere."),
    _error("clips_median_mm", "mm", None, None, "The median of that."),
    Metric(
        "pipeline/kills_survived", "1", "higher", 0.0, 20.0, "Killed runs that resumed to the same bytes."
    ),
)


def _workload(run, *keys: str) -> Workload:
    return Workload(tuple(f"pipeline/{key}" for key in keys), run)


WORKLOADS = (
    _workload(_geometry("triangulation_parity"), "triangulation_parity_max_mm"),
    _workload(_geometry("filter_parity"), "filter_parity_max_mm"),
    _workload(_geometry("triangulation_speed"), "triangulation_vs_pose2sim"),
    _workload(_geometry("robust_distance"), "robust_worst_point_mm"),
    _workload(_geometry("scaling_parity"), "scaling_parity_max_m"),
    _workload(
        _geometry("detector_noise"),
        "detector_noise_mpjpe_mm",
        "detector_noise_mpjpe_mm/*",
        "detector_noise_size",
    ),
    _workload(_system("oracle"), "oracle_mpjpe_mm", "oracle_axis_max_deg"),
    _workload(
        _system("accuracy"),
        "spine_mpjpe_mm",
        "spine_mpjpe_mm_triangulated",
        "spine_mpjpe_mm_official",
        "spine_mpjpe_ratio",
        "mpjpe_mm/*",
        "lumbar_flexion_rms_deg",
        "lumbar_flexion_rms_deg_official",
        "lumbar_flexion_rms_deg_zero",
        "lumbar_flexion_correlation",
        "lumbar_flexion_correlation_official",
        "lordosis_mean_deg",
        "kyphosis_mean_deg",
    ),
    _workload(_system("throughput"), "frames_per_s", "chain_vs_clip_ik"),
    _workload(_system("seams"), "seam_max_mm", "clips_max_mm", "clips_median_mm"),
    _workload(_system("kills"), "kills_survived"),
)

SUITE = Suite("pipeline", METRICS, WORKLOADS, late("workplace", "Workplace"))
