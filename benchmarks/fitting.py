"""The suite ``fitting``: subjects fitted to pictures, what is learned through fits, and dynamics."""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

# Tolerances: as in the suite ``kinematics``.
_ROUNDING, _TIMES, _SOLVED = 4.0, 0.25, 0.1

_dynamics, _learning = partial(late, "fitting_dynamics"), partial(late, "fitting_learning")

_PEERS = ("spine", "gait2392")

DYNAMICS_ROWS = (
    *(Metric(f"fitting/mass_matrix_rel_err/{name}", "1", "lower", _ROUNDING, 1e-6,
             "Largest error of the mass matrix over all coordinates, over its largest entry.")
      for name in _PEERS),
    *(Metric(f"fitting/inverse_dynamics_rel_err/{name}", "1", "lower", _ROUNDING, 1e-6,
             "Largest error of generalised forces over the largest force.")
      for name in _PEERS),
    Metric("fitting/inverse_dynamics_vs_opensim", "ratio", "higher", _TIMES, None,
           "Frames of inverse dynamics a second over OpenSim's.", is_timing=True),
    Metric("fitting/sim_steps_per_s", "1/s", "higher", None, None,
           "Steps of forward simulation a second over all bodies, the largest batch.", is_timing=True),
    Metric("fitting/sim_steps_per_s/*", "1/s", "higher", None, None,
           "The same with the number of bodies in the key.", is_timing=True),
    Metric("fitting/sim_vs_mujoco_c", "ratio", "higher", _TIMES, None,
           "Steps a second over those of MuJoCo C's rollout.", is_timing=True),
)  # fmt: skip

DYNAMICS_WORKLOADS = (
    Workload(
        tuple(f"fitting/mass_matrix_rel_err/{name}" for name in _PEERS), _dynamics("mass_matrix_rel_err")
    ),
    Workload(
        tuple(f"fitting/inverse_dynamics_rel_err/{name}" for name in _PEERS),
        _dynamics("inverse_dynamics_rel_err"),
    ),
    Workload(("fitting/inverse_dynamics_vs_opensim",), _dynamics("inverse_dynamics_rate")),
    Workload(("fitting/sim_steps_per_s", "fitting/sim_steps_per_s/*"), _dynamics("sim_steps_per_s")),
    Workload(("fitting/sim_vs_mujoco_c",), _dynamics("sim_vs_mujoco")),
)

LEARNING_ROWS = (
    Metric("fitting/learned_weights_spine_ratio", "ratio", "lower", _SOLVED, 1.0,
           "Spine MPJPE with marker weights learned through inverse kinematics over that with equal ones, on "
           "subjects and motions that they were not learned from."),
)  # fmt: skip
LEARNING_WORKLOADS = (Workload(("fitting/learned_weights_spine_ratio",), _learning("learned_weights")),)

PARTS: tuple[tuple[tuple[Metric, ...], tuple[Workload, ...]], ...] = (
    (DYNAMICS_ROWS, DYNAMICS_WORKLOADS),
    (LEARNING_ROWS, LEARNING_WORKLOADS),
)

SUITE = Suite(
    "fitting",
    tuple(metric for metrics, _ in PARTS for metric in metrics),
    tuple(workload for _, workloads in PARTS for workload in workloads),
    late("workplace", "Workplace"),
)
