"""Synthetic subjects in motion, for tests, benchmarks and training where no recording may be shared."""

from __future__ import annotations

from simspine_jax.capture.motion import MotionKind, add_marker_noise, synthetic_motion

__all__ = ["MotionKind", "add_marker_noise", "synthetic_motion"]
