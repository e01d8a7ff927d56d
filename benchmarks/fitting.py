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
    Metric("fitting/sim_floor_ratio", "ratio", "higher", _TIMES, None,
           "Steps a second with contact of feet and floor over those without.", is_timing=True),
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
    Workload(("fitting/sim_floor_ratio",), _dynamics("sim_with_floor")),
    Workload(("fitting/sim_vs_mujoco_c",), _dynamics("sim_vs_mujoco")),
)

LEARNING_ROWS = (
    Metric("fitting/learned_weights_spine_ratio", "ratio", "lower", _SOLVED, 1.0,
           "Spine MPJPE with marker weights learned through inverse kinematics over that with equal ones, on "
           "subjects and motions that they were not learned from."),
)  # fmt: skip
LEARNING_WORKLOADS = (Workload(("fitting/learned_weights_spine_ratio",), _learning("learned_weights")),)

_OUTPUTS = ("keypoints", "lumbar_angles", "lordosis", "segment_lengths")
_CAMERAS_OFF = "the cameras given are off by 1 degree and 10 mm"

SUBJECT_ROWS = (
    Metric("fitting/segment_length_err_pct", "%", "lower", _SOLVED, 1.0,
           f"Mean absolute error of segment lengths; {_CAMERAS_OFF}."),
    Metric("fitting/camera_rotation_err_deg", "deg", "lower", _SOLVED, 0.1,
           f"Mean error of cameras' rotations beside one another, without the turn of all; {_CAMERAS_OFF}."),
    Metric("fitting/spine_mpjpe_ratio", "ratio", "lower", _SOLVED, 0.6,
           f"Spine MPJPE over that of triangulation, scaling and inverse kinematics; {_CAMERAS_OFF}."),
    Metric("fitting/seeds_converged", "seeds", "higher", 0.02, 50,
           "Of 50 fits, started by the chain on the detections, those that converge."),
    Metric("fitting/biased_detector/segment_length_err_pct", "%", "lower", _SOLVED, None,
           "The same with a detector whose errors are partly constant, as the captures' is."),
    Metric("fitting/biased_detector/camera_rotation_err_deg", "deg", "lower", _SOLVED, None, "Likewise."),
    Metric("fitting/biased_detector/spine_mpjpe_ratio", "ratio", "lower", _SOLVED, 0.6, "Likewise."),
    *(Metric(f"fitting/coverage90/{name}/*", "1", "higher", None, None,
             "Share of the truth that 90 % intervals hold, with the level of noise in the key.")
      for name in _OUTPUTS),
    *(Metric(f"fitting/coverage90_off/{name}", "1", "lower", None, 0.03,
             "Largest distance of that share from 0.9 over three levels of noise.")
      for name in _OUTPUTS),
    Metric("fitting/heldout_view_reprojection_ratio", "ratio", "lower", _SOLVED, 0.8,
           "Median reprojection error in a camera that had no part, over that of the chain; four ways."),
    Metric("fitting/fit_s", "s", "lower", None, 60, "A fit of 500 frames in four cameras.", is_timing=True),
    Metric("fitting/vs_scipy", "ratio", "higher", _TIMES, 50,
           "SciPy's time to the same objective over ours.", is_timing=True),
    Metric("fitting/vs_nimblephysics", "ratio", "higher", _TIMES, None,
           "Its marker fitter's time over ours, to 3D markers on gait2392.", is_timing=True),
)  # fmt: skip
_subjects = partial(late, "fitting_subjects")

SUBJECT_WORKLOADS = (
    Workload(
        tuple(f"fitting/{name}" for name in (
            "segment_length_err_pct", "camera_rotation_err_deg", "spine_mpjpe_ratio", "seeds_converged"
        )),
        _subjects("accuracy"),
    ),
    Workload(
        tuple(f"fitting/biased_detector/{name}" for name in (
            "segment_length_err_pct", "camera_rotation_err_deg", "spine_mpjpe_ratio"
        )),
        _subjects("accuracy_biased"),
    ),
    Workload(
        (*(f"fitting/coverage90/{name}/*" for name in _OUTPUTS),
         *(f"fitting/coverage90_off/{name}" for name in _OUTPUTS)),
        _subjects("coverage"),
    ),
    Workload(("fitting/heldout_view_reprojection_ratio",), _subjects("held_out")),
    Workload(("fitting/fit_s",), _subjects("fit_time")),
    Workload(("fitting/vs_scipy",), _subjects("against_scipy")),
    Workload(("fitting/vs_nimblephysics",), late("fitting_nimblephysics", "against_nimblephysics")),
)  # fmt: skip

LUMBAR_ROWS = (
    Metric("fitting/lumbar_rhythm_share_err_ratio", "ratio", "lower", _SOLVED, 1.0,
           "Error of lumbar levels' learned shares in the motion over that of the model's; subjects in other "
           "rhythms, little noise."),
    Metric("fitting/lumbar_evidence_right", "subjects", "higher", None, None,
           "Of ten, those for whom the evidence is for the model's rhythm or against it as is true."),
    Metric("fitting/lumbar_rhythm_share_err_ratio/paper_noise", "ratio", "lower", _SOLVED, None,
           "The first at the paper's noise."),
    Metric("fitting/lumbar_evidence_right/paper_noise", "subjects", "higher", None, None, "Likewise."),
)  # fmt: skip
_lumbar = partial(late, "fitting_lumbar")
LUMBAR_WORKLOADS = tuple(
    Workload(
        (f"fitting/lumbar_rhythm_share_err_ratio{suffix}", f"fitting/lumbar_evidence_right{suffix}"),
        _lumbar(f"rhythm_{noise}_noise"),
    )
    for noise, suffix in (("low", ""), ("paper", "/paper_noise"))
)

MONOCULAR_ROWS = (
    Metric("fitting/monocular_spine_mpjpe_ratio", "ratio", "lower", _SOLVED, 1.0,
           "Root-relative spine MPJPE of a fit to one camera's detections with a lifter as prior, over that "
           "of the lifter alone."),
    Metric("fitting/monocular_spine_pmpjpe_ratio", "ratio", "lower", _SOLVED, 1.0,
           "The same after alignment of the spine."),
    *(Metric(f"fitting/coverage90/monocular_{name}", "1", "higher", None, None,
             "Share of root-relative coordinates that 90 % intervals of that fit hold.")
      for name in ("keypoints", "spine")),
)  # fmt: skip
MONOCULAR_WORKLOADS = (
    Workload(tuple(metric.key for metric in MONOCULAR_ROWS), late("fitting_monocular", "monocular")),
)

PARTS: tuple[tuple[tuple[Metric, ...], tuple[Workload, ...]], ...] = (
    (SUBJECT_ROWS, SUBJECT_WORKLOADS),
    (LUMBAR_ROWS, LUMBAR_WORKLOADS),
    (DYNAMICS_ROWS, DYNAMICS_WORKLOADS),
    (LEARNING_ROWS, LEARNING_WORKLOADS),
    (MONOCULAR_ROWS, MONOCULAR_WORKLOADS),
)

SUITE = Suite(
    "fitting",
    tuple(metric for metrics, _ in PARTS for metric in metrics),
    tuple(workload for _, workloads in PARTS for workload in workloads),
    late("workplace", "Workplace"),
)
