"""Synthetic subjects in motion, for tests, benchmarks and training where no recording may be shared."""

from __future__ import annotations

from simspine_jax.capture.actions import ACTION_NAMES, PAPER_CURVATURE_DEG, action_motion
from simspine_jax.capture.capture import Capture, capture_set, capture_trial, check_seed, count_frames
from simspine_jax.capture.motion import MotionKind, add_marker_noise, synthetic_motion
from simspine_jax.capture.noise import Detections, DetectorNoise, detect, fit_noise, make_noise
from simspine_jax.capture.rigs import make_rig
from simspine_jax.capture.subjects import SUBJECT_NAMES, Subject, make_subject, make_subjects

__all__ = [
    "ACTION_NAMES",
    "PAPER_CURVATURE_DEG",
    "SUBJECT_NAMES",
    "Capture",
    "Detections",
    "DetectorNoise",
    "MotionKind",
    "Subject",
    "action_motion",
    "add_marker_noise",
    "capture_set",
    "capture_trial",
    "check_seed",
    "count_frames",
    "detect",
    "fit_noise",
    "make_noise",
    "make_rig",
    "make_subject",
    "make_subjects",
    "synthetic_motion",
]
