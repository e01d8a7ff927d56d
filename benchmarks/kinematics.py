"""The suite ``kinematics``: what is measured, what the project promises of it, and what gates."""

from __future__ import annotations

from functools import partial
from typing import Literal

from benchmarks.metrics import Metric, Suite, Workload, late

_speed, _accuracy, _system = (partial(late, f"kinematics_{part}") for part in ("speed", "accuracy", "system"))

# Tolerances: rounding errors move severalfold with the order of sums, ratios of times scatter by a fifth, and
# solutions agree to what the solver's tolerance leaves open.
_ROUNDING, _TIMES, _SOLVED, _OBJECTIVE = 4.0, 0.25, 0.1, 0.001


def _error(key: str, unit: str, tolerance: float | None, bar: float | None, note: str) -> Metric:
    return Metric(f"kinematics/{key}", unit, "lower", tolerance, bar, note)


def _count(key: str, direction: Literal["higher", "lower"], bar: float | None, note: str) -> Metric:
    tolerance = None if bar is None else 0.0
    return Metric(f"kinematics/{key}", "files", direction, tolerance, bar, note)


def _rate(key: str, bar: float | None, note: str) -> Metric:
    return Metric(f"kinematics/{key}", "1/s", "higher", None, bar, note, is_timing=True)


def _speedup(key: str, bar: float | None, note: str) -> Metric:
    return Metric(f"kinematics/{key}", "ratio", "higher", _TIMES, bar, note, is_timing=True)


def _cost(key: str, bar: float, note: str) -> Metric:
    return Metric(f"kinematics/{key}", "ratio", "lower", _TIMES, bar, note, is_timing=True)


def _resource(key: str, unit: str, bar: float, note: str) -> Metric:
    return Metric(f"kinematics/{key}", unit, "lower", None, bar, note, is_timing=True)


_POSITION = "Largest distance of a body or marker from OpenSim's."
_ROTATION = "Largest entry of the difference from OpenSim's rotation matrices."
_CONVERGED = "Our objective over that of OpenSim's converged solution, worst frame."
_COLD = "simspine ik, process start to exit, nothing cached."
_CACHED = "simspine ik, process start to exit, with its caches."

METRICS = (
    _error("fk_parity_f64_max_m", "m", _ROUNDING, 1e-9, _POSITION),
    _error("fk_parity_f32_max_m", "m", _ROUNDING, 5e-6, _POSITION),
    _error("fk_parity_f64_max_rotation", "1", _ROUNDING, 1e-9, _ROTATION),
    _error("fk_parity_f32_max_rotation", "1", _ROUNDING, None, _ROTATION),
    _rate("fk_poses_per_s", 2e5, "Forward kinematics, levels engine, float32."),
    _rate("fk_poses_per_s_mjx", None, "Forward kinematics, mjx engine, float32."),
    _rate("fk_poses_per_s/*", None, "Forward kinematics, float32; engine and batch in the key."),
    _speedup("fk_vs_mujoco_c", 1.0, "Poses per second over a loop on MuJoCo C."),
    _speedup("fk_vs_opensim", None, "Poses per second over a loop on OpenSim."),
    _rate("ik_frames_per_s", None, "Per-frame inverse kinematics, project default."),
    _rate("ik_frames_per_s/*", None, "The same on an accelerator; frames in the key."),
    _speedup("ik_vs_opensim_tool", 150.0, "Frames per second over OpenSim's tool, same objective."),
    _speedup("ik_vs_opensim_tool/*", None, "Likewise on a real trial."),
    _error("ik_vs_opensim_tool_objective_ratio_max", "ratio", _OBJECTIVE, 1.001, "Objectives, worst frame."),
    _error("ik_objective_ratio_max", "ratio", _OBJECTIVE, 1.001, _CONVERGED),
    _error("ik_objective_ratio_max/*", "ratio", _OBJECTIVE, 1.001, _CONVERGED),
    # Solutions of equal objective share the error out differently: a trial's whole error is what must not be
    # larger, to one part in ten thousand, a micrometre of a centimetre.
    _error("ik_marker_rmse_ratio/*", "ratio", _OBJECTIVE, 1.0001, "Marker errors, whole trial, unweighted."),
    _error("ik_marker_rmse_ratio_max/*", "ratio", 0.01, None, "Marker errors, worst frame, unweighted."),
    _cost("clip_ik_cost_ratio", 3.0, "Time of the whole-clip solve over the per-frame solve."),
    _rate("clip_ik_frames_per_s/*", None, "Whole-clip solve on an accelerator; frames in the key."),
    _cost("ik_gradient_cost_ratio", 3.0, "Time of solve and backward pass over the solve."),
    _error("ik_gradient_rel_err", "1", _ROUNDING, 1e-4, "Gradient against central differences, worst input."),
    _error("lumbar_flexion_rms_deg", "deg", _SOLVED, 0.5, "RMS error of the worst lumbar flexion angle."),
    _error("lumbar_flexion_rms_deg_official", "deg", None, None, "The same with the official setup."),
    _error("lumbar_marker_rmse_mm", "mm", _SOLVED, None, "RMS distance to the noisy markers."),
    _error("lumbar_marker_rmse_mm_official", "mm", None, None, "The same with the official setup."),
    _resource("cold_start_s", "s", 20.0, _COLD),
    _resource("cold_start_s/*", "s", 20.0, _COLD),
    _resource("cached_start_s", "s", 6.0, _CACHED),
    _resource("cached_start_s/*", "s", 6.0, _CACHED),
    _resource("peak_rss_mb_100k_frames", "MB", 3000.0, "Peak memory of solving 100,000 frames."),
    _count("fuzz_inputs_tried", "higher", 2000.0, "Damaged files tried; one that escapes fails the row."),
    _count("fuzz_inputs_loaded", "higher", None, "Damaged files that loaded."),
    _count("fuzz_inputs_refused", "higher", None, "Damaged files refused in one sentence."),
    _count("fuzz_inputs_crashed", "lower", None, "Damaged models that crash OpenSim."),
    _count("fuzz_inputs_escaped", "lower", 0.0, "Damaged files that ended otherwise."),
)


def _workload(run, *keys: str) -> Workload:
    return Workload(tuple(f"kinematics/{key}" for key in keys), run)


WORKLOADS = (
    _workload(_accuracy("parity", bits=64), "fk_parity_f64_max_m", "fk_parity_f64_max_rotation"),
    _workload(_accuracy("parity", bits=32), "fk_parity_f32_max_m", "fk_parity_f32_max_rotation"),
    _workload(_speed("fk_rates"), "fk_poses_per_s", "fk_poses_per_s_mjx", "fk_poses_per_s/*"),
    _workload(_speed("fk_vs_mujoco"), "fk_vs_mujoco_c"),
    _workload(_speed("fk_vs_opensim"), "fk_vs_opensim"),
    _workload(_speed("ik_rate"), "ik_frames_per_s", "ik_frames_per_s/*"),
    _workload(_speed("ik_vs_opensim"), "ik_vs_opensim_tool", "ik_vs_opensim_tool_objective_ratio_max"),
    _workload(
        _accuracy("real_trials"),
        "ik_objective_ratio_max/*",
        "ik_marker_rmse_ratio/*",
        "ik_marker_rmse_ratio_max/*",
        "ik_objective_ratio_max",
    ),
    _workload(_accuracy("real_trials_tool"), "ik_vs_opensim_tool/*"),
    _workload(_speed("clip_cost"), "clip_ik_cost_ratio", "clip_ik_frames_per_s/*"),
    _workload(_speed("gradient_cost"), "ik_gradient_cost_ratio"),
    _workload(_accuracy("gradient_error"), "ik_gradient_rel_err"),
    _workload(_accuracy("lumbar", official=False), "lumbar_flexion_rms_deg", "lumbar_marker_rmse_mm"),
    _workload(
        _accuracy("lumbar", official=True),
        "lumbar_flexion_rms_deg_official",
        "lumbar_marker_rmse_mm_official",
    ),
    _workload(_system("starts"), "cold_start_s/*", "cached_start_s/*", "cold_start_s", "cached_start_s"),
    _workload(_system("peak_memory"), "peak_rss_mb_100k_frames"),
    _workload(
        _system("fuzz"),
        "fuzz_inputs_tried",
        "fuzz_inputs_loaded",
        "fuzz_inputs_refused",
        "fuzz_inputs_crashed",
        "fuzz_inputs_escaped",
    ),
)


SUITE = Suite("kinematics", METRICS, WORKLOADS, late("workplace", "Workplace"))
