"""What the SIMSPINE paper reports in its Tables 3 to 6, mm, on Human3.6M's pictures and test subjects.

Source: the paper's section 4.2 (Tables 3 and 4) and 4.3 (Tables 5 and 6). The headings of Tables 3, 4 and 6
are lost in the text at hand; `skeleton` says how the regions were found again. The numbers were measured on
another dataset than any that this project makes, so that they show what the paper has, never a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from simspine_jax.skeleton import REGIONS

DATASET = "Human3.6M"
"""Of whose pictures the paper's numbers are."""

ACTIONS: tuple[str, ...] = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Photo", "Posing", "Purchases", "Sitting",
    "SittingDown", "Smoking", "Waiting", "WalkDog", "WalkTogether", "Walking",
)  # fmt: skip
"""Rows of Table 3 and columns of Table 5, in the paper's order."""

SHORT_ACTIONS: Mapping[str, str] = MappingProxyType(
    dict(
        zip(
            ACTIONS,
            ("Direct", "Discuss", "Eating", "Greet", "Phone", "Photo", "Pose", "Purchase", "Sit", "SitD",
             "Smoke", "Wait", "WalkD", "WalkT", "Walk"),
            strict=True,
        )
    )
)  # fmt: skip
"""As the columns of Table 5 are headed."""

MULTIVIEW_REGIONS: tuple[str, ...] = tuple(REGIONS)
"""Columns of Tables 3 and 4."""

LIFTING_REGIONS: tuple[str, ...] = ("cervical", "thoracic", "lumbar", "spine")
"""Columns of Table 6, once for each error."""

Numbers = tuple[float, ...]


class Lifting(NamedTuple):
    """A row of Tables 5 and 6: the keypoints that a lifter is trained on, and which 2D it gets."""

    keypoints: str
    source: str


TABLE_3_ACTIONS: Mapping[str, Numbers] = MappingProxyType(
    {
        "Directions": (33.69, 39.86, 40.16, 37.88, 27.63, 31.79),
        "Discussion": (36.35, 40.55, 41.44, 39.39, 28.33, 32.81),
        "Eating": (38.47, 43.04, 35.40, 39.48, 27.44, 32.32),
        "Greeting": (30.66, 35.19, 33.73, 33.29, 25.57, 28.70),
        "Phoning": (42.41, 44.64, 39.14, 42.43, 27.23, 33.40),
        "Photo": (36.40, 42.13, 42.27, 40.25, 30.35, 34.37),
        "Posing": (33.48, 37.46, 40.14, 36.85, 28.02, 31.60),
        "Purchases": (34.81, 35.67, 39.63, 36.44, 26.64, 30.61),
        "Sitting": (40.94, 43.16, 31.21, 39.23, 25.42, 31.02),
        "SittingDown": (34.85, 35.95, 23.63, 32.30, 23.31, 26.95),
        "Smoking": (38.51, 44.83, 35.66, 40.28, 27.26, 32.54),
        "Waiting": (35.17, 37.40, 33.22, 35.54, 24.78, 29.14),
        "WalkDog": (35.53, 41.44, 40.83, 39.31, 29.49, 33.47),
        "WalkTogether": (34.05, 43.88, 40.40, 39.68, 29.28, 33.50),
        "Walking": (33.02, 43.80, 41.53, 39.60, 29.06, 33.33),
    }
)
"""Table 3: MPJPE of weighted triangulation from the fine-tuned detector (SpinePose-m-ft), by action."""

TABLE_3_MEANS: Mapping[str, Numbers] = MappingProxyType(
    {
        "truth": (12.36, 8.80, 5.09, 9.00, 7.07, 7.85),
        "detected": (36.50, 41.07, 37.13, 38.50, 27.27, 31.82),
        "zero_shot": (54.39, 69.90, 48.13, 58.92, 42.74, 49.30),
    }
)
"""Table 3: means over all actions for ground-truth 2D, the fine-tuned and the zero-shot detector."""

TABLE_4_MEANS: Mapping[str, Numbers] = MappingProxyType(
    {
        "truth": (0.33, 0.43, 0.06, 0.67, 1.81, 1.79),
        "detected": (19.68, 20.67, 12.21, 26.67, 24.21, 29.53),
        "zero_shot": (26.88, 23.40, 9.92, 39.01, 42.25, 46.48),
    }
)
"""Table 4: P-MPJPE, each region aligned for itself; the paper has no rows by action."""

_SPINE_DETECTED, _FULL_DETECTED = Lifting("spine only", "detected"), Lifting("full body", "detected")
_SPINE_TRUTH, _FULL_TRUTH = Lifting("spine only", "truth"), Lifting("full body", "truth")

TABLE_5_ACTIONS: Mapping[Lifting, Numbers] = MappingProxyType(
    {
        _SPINE_DETECTED: (
            16.58, 17.92, 17.79, 18.32, 21.81, 19.74, 15.69, 17.70, 19.28, 22.32, 18.43, 18.82, 18.91, 16.24,
            15.96,
        ),
        _FULL_DETECTED: (
            15.55, 16.40, 14.45, 15.98, 19.84, 17.66, 14.25, 15.68, 15.97, 19.23, 16.38, 17.17, 17.41, 12.24,
            12.12,
        ),
        _SPINE_TRUTH: (
            15.66, 17.01, 16.05, 17.43, 20.64, 18.34, 14.87, 16.40, 17.91, 22.10, 16.92, 17.78, 17.96, 15.39,
            15.28,
        ),
        _FULL_TRUTH: (
            11.56, 13.05, 11.36, 13.61, 18.06, 14.61, 10.60, 12.39, 13.64, 17.36, 13.25, 14.47, 14.51, 9.15,
            9.98,
        ),
    }
)  # fmt: skip
"""Table 5: P-MPJPE of the fifteen spine keypoints by SimpleBaseline3D, by action."""

TABLE_5_MEANS: Mapping[Lifting, float] = MappingProxyType(
    {_SPINE_DETECTED: 18.58, _FULL_DETECTED: 16.28, _SPINE_TRUTH: 17.52, _FULL_TRUTH: 13.48}
)
"""Table 5: its last column, the average."""

TABLE_6_ALIGNED: Mapping[Lifting, Numbers] = MappingProxyType(
    {
        _SPINE_DETECTED: (12.98, 14.29, 3.32, 18.58),
        _FULL_DETECTED: (12.81, 10.12, 3.51, 16.28),
        _SPINE_TRUTH: (12.03, 13.45, 3.32, 17.52),
        _FULL_TRUTH: (10.94, 7.98, 2.03, 13.48),
    }
)
"""Table 6: P-MPJPE by region."""

TABLE_6_ROOTED: Mapping[Lifting, Numbers] = MappingProxyType(
    {
        _SPINE_DETECTED: (96.88, 75.96, 18.83, 67.70),
        _FULL_DETECTED: (100.50, 72.61, 18.16, 67.39),
        _SPINE_TRUTH: (77.93, 58.70, 15.54, 53.60),
        _FULL_TRUTH: (39.24, 26.97, 7.76, 25.94),
    }
)
"""Table 6: root-relative MPJPE by region."""
