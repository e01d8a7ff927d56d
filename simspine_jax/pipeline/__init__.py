"""Files in, results out: the stages composed, with records that let a killed run resume."""

from __future__ import annotations

from simspine_jax.pipeline.ik import (
    LEAST_PADDED_FRAMES,
    FailedTrial,
    IKOptions,
    LoadedModel,
    MarkerError,
    Progress,
    TrialResult,
    check_units,
    find_trials,
    match_markers,
    open_model,
    padded_size,
    run_ik,
    run_trials,
    select_times,
    targets_at,
)

__all__ = [
    "LEAST_PADDED_FRAMES",
    "FailedTrial",
    "IKOptions",
    "LoadedModel",
    "MarkerError",
    "Progress",
    "TrialResult",
    "check_units",
    "find_trials",
    "match_markers",
    "open_model",
    "padded_size",
    "run_ik",
    "run_trials",
    "select_times",
    "targets_at",
]
