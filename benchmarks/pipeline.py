"""The suite ``pipeline``: what is measured, what the project promises of it, and what gates.

Rows that stand on one stage are in ``pipeline_geometry``; those that need the whole chain come after them.
"""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

_geometry = partial(late, "pipeline_geometry")

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
)

SUITE = Suite("pipeline", METRICS, WORKLOADS, late("workplace", "Workplace"))
