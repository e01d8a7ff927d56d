"""The suite ``lifting``: what is measured, what the project promises of it, and what gates.

Each part of the suite is a pair of metrics and workloads; a part that is measured in a module of its own
adds its pair to `PARTS`.
"""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

_metrics = partial(late, "lifting_metrics")

# Tolerances: as in the suite ``kinematics``.
_ROUNDING, _TIMES, _SOLVED = 4.0, 0.25, 0.1

_REFERENCES = "Time of independent implementations over ours, 100 k frames"

METRIC_ROWS = (
    Metric("lifting/oks_parity_max", "1", "lower", _ROUNDING, 1e-9,
           "Largest difference of OKS AP and AR from pycocotools, float64."),
    Metric("lifting/pmpjpe_parity_max_mm", "mm", "lower", _ROUNDING, 1e-9,
           "Largest difference of P-MPJPE from SciPy's, reflections excluded, float64, bodies of metres."),
    Metric("lifting/auc_parity_max", "1", "lower", _ROUNDING, 1e-9,
           "Largest difference of AUC from a plain NumPy loop over MMPose's definition, float64."),
    Metric("lifting/metrics_vs_reference", "ratio", "higher", _TIMES, 20.0,
           f"{_REFERENCES}: the worst metric.", is_timing=True),
    Metric("lifting/metrics_vs_reference/*", "ratio", "higher", _TIMES, 20.0,
           f"{_REFERENCES}; the metric in the key.", is_timing=True),
)  # fmt: skip

METRIC_WORKLOADS = (
    Workload(("lifting/oks_parity_max",), _metrics("oks_parity")),
    Workload(("lifting/pmpjpe_parity_max_mm",), _metrics("p_mpjpe_parity")),
    Workload(("lifting/auc_parity_max",), _metrics("auc_parity")),
    Workload(("lifting/metrics_vs_reference", "lifting/metrics_vs_reference/*"), _metrics("speed")),
)

_models = partial(late, "lifting_models")
_RUNS = [(m, s) for m in ("simple_spine", "simple_full", "temporal_full", "kinematic_full")
         for s in ("detected", "truth")]  # fmt: skip
_ERRORS = {
    "spine_pmpjpe_mm": "P-MPJPE of the 15 spine keypoints",
    "spine_mpjpe_mm": "Root-relative MPJPE of the 15 spine keypoints",
    "all_mpjpe_mm": "Root-relative MPJPE of all keypoints",
}


def _errors_of(model: str) -> list[str]:
    return [name for name in _ERRORS if model != "simple_spine" or not name.startswith("all")]


# Trained weights move with processor and number of cores, so that errors are shown and ratios are promised.
MODEL_ROWS = (
    Metric("lifting/simple_baseline_vs_pytorch", "ratio", "higher", _TIMES, 1.0,
           "Training steps per second over PyTorch's on the same cores.", is_timing=True),
    Metric("lifting/samples_per_s/*", "1/s", "higher", None, None,
           "Samples per second in training; lifter in the key.", is_timing=True),
    *(Metric(f"lifting/{m}/{s}/{name}", "mm", "lower", None, None, f"{_ERRORS[name]}; 2D {s}.")
      for m, s in _RUNS for name in _errors_of(m)),
    *(Metric(f"lifting/kinematic_vs_simple/{s}/spine_pmpjpe", "ratio", "lower", None, 0.85,
             f"Spine P-MPJPE of the kinematic lifter over SimpleBaseline3D's; 2D {s}.")
      for s in ("detected", "truth")),
    *(Metric(f"lifting/kinematic_vs_simple/{s}/all_mpjpe", "ratio", "lower", None, 1.0,
             f"Root-relative MPJPE of the kinematic lifter over SimpleBaseline3D's; 2D {s}.")
      for s in ("detected", "truth")),
    *(Metric(f"lifting/full_vs_spine/{s}/{name}", "ratio", "lower", None, 1.0,
             f"SimpleBaseline3D on all keypoints over the one on the spine's: {what} of the spine; 2D {s}.")
      for s in ("detected", "truth")
      for name, what in (("spine_pmpjpe", "P-MPJPE"), ("spine_mpjpe", "root-relative MPJPE"))),
    *(Metric(f"lifting/truth_vs_detected/{m}/spine_pmpjpe", "ratio", "lower", None, 1.0,
             "Spine P-MPJPE with exact 2D over that with detections.")
      for m in ("simple_spine", "simple_full", "temporal_full", "kinematic_full")),
    Metric("lifting/kinematic_full/limit_violations", "1", "lower", 0.0, 0.0,
           "Coordinates beyond their bounds in all predictions; kept by construction, any is a defect."),
    Metric("lifting/kinematic_full/bone_change_mm", "mm", "lower", _ROUNDING, 0.01,
           "Largest standard deviation of a rigid bone's length within a trial; kept by construction."),
    Metric("lifting/kinematic_full/lumbar_flexion_rms_deg", "deg", "lower", None, None,
           "RMS error of the worst lumbar flexion angle."),
)  # fmt: skip

_ABOUT_BODY = ("limit_violations", "bone_change_mm", "lumbar_flexion_rms_deg")

MODEL_WORKLOADS = (
    Workload(("lifting/simple_baseline_vs_pytorch",), _models("against_pytorch")),
    Workload(("lifting/samples_per_s/*",), _models("rates")),
    *(
        Workload(
            (
                *(f"lifting/{m}/{s}/{name}" for name in _errors_of(m)),
                *(f"lifting/{m}/{x}" for x in _ABOUT_BODY if (m, s) == ("kinematic_full", "detected")),
            ),
            _models("trained", model=m, source=s),
        )
        for m, s in _RUNS
    ),
    *(
        Workload(
            tuple(f"lifting/kinematic_vs_simple/{s}/{name}" for name in ("spine_pmpjpe", "all_mpjpe")),
            _models("kinematic_against_simple", source=s),
        )
        for s in ("detected", "truth")
    ),
    *(
        Workload(
            tuple(f"lifting/full_vs_spine/{s}/{name}" for name in ("spine_pmpjpe", "spine_mpjpe")),
            _models("full_against_spine", source=s),
        )
        for s in ("detected", "truth")
    ),
    *(
        Workload((f"lifting/truth_vs_detected/{m}/spine_pmpjpe",), _models("truth_against_detected", model=m))
        for m in ("simple_spine", "simple_full", "temporal_full", "kinematic_full")
    ),
)

_REGIONS = ("cervical", "thoracic", "lumbar", "spine", "body", "all")
_SOURCES_2D = {"truth": "exact pictures", "detected": "detections", "zero_shot": "zero-shot detections"}
_METHODS = {
    "weighted": "the paper's baseline, weighted linear triangulation",
    "robust": "robust triangulation",
    "model": "the model-constrained pipeline",
}
_EXACT = [("truth", method, "all") for method in ("weighted", "robust")]


def _reconstruction(source: str, method: str, region: str) -> Metric:
    is_exact = (source, method, region) in _EXACT
    return Metric(
        f"multiview/{source}/{method}/{region}_mpjpe_mm", "mm", "lower",
        _ROUNDING if is_exact else None, 0.05 if is_exact else None,
        f"Absolute MPJPE of {_METHODS[method]}; 2D {_SOURCES_2D[source]}.",
    )  # fmt: skip


# Errors of noisy keypoints are what the noise was fitted to, so that ratios are promised.
MULTIVIEW_ROWS = (
    *(_reconstruction(s, m, r) for s in _SOURCES_2D for m in _METHODS for r in _REGIONS),
    *(Metric(f"multiview/{s}/model_vs_weighted/{r}", "ratio", "lower", _SOLVED, 1.0,
             f"The model's MPJPE over the baseline's, on the points that both give; 2D {_SOURCES_2D[s]}.")
      for s in ("detected", "zero_shot") for r in _REGIONS),
)  # fmt: skip

_multiview = partial(late, "multiview")
MULTIVIEW_WORKLOADS = tuple(
    Workload(
        tuple(metric.key for metric in MULTIVIEW_ROWS if metric.key.startswith(f"multiview/{source}/")),
        _multiview("errors", source=source),
    )
    for source in _SOURCES_2D
)

PARTS: tuple[tuple[tuple[Metric, ...], tuple[Workload, ...]], ...] = (
    (METRIC_ROWS, METRIC_WORKLOADS),
    (MODEL_ROWS, MODEL_WORKLOADS),
    (MULTIVIEW_ROWS, MULTIVIEW_WORKLOADS),
)

SUITE = Suite(
    "lifting",
    tuple(metric for metrics, _ in PARTS for metric in metrics),
    tuple(workload for _, workloads in PARTS for workload in workloads),
    late("workplace", "Workplace"),
)
