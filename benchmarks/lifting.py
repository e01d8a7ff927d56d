"""The suite ``lifting``: what is measured, what the project promises of it, and what gates.

Each part of the suite is a pair of metrics and workloads; a part that is measured in a module of its own
adds its pair to `PARTS`.
"""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

_metrics = partial(late, "lifting_metrics")

# Tolerances: as in the suite ``kinematics``.
_ROUNDING, _TIMES = 4.0, 0.25

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

PARTS: tuple[tuple[tuple[Metric, ...], tuple[Workload, ...]], ...] = ((METRIC_ROWS, METRIC_WORKLOADS),)

SUITE = Suite(
    "lifting",
    tuple(metric for metrics, _ in PARTS for metric in metrics),
    tuple(workload for _, workloads in PARTS for workload in workloads),
    late("workplace", "Workplace"),
)
