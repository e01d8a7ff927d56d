"""What decides a simulation's result besides its data: the project's own preset and the official one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.skeleton import OFFICIAL_COORDINATE_TASKS, OFFICIAL_MARKER_WEIGHTS, CoordinateTarget

Triangulation = Literal["robust", "weighted"]
Lumbar = Literal["coupled", "free"]


@dataclass(frozen=True)
class SimulationOptions:
    """Settings of every stage. Metres, radians, seconds; frequencies in Hz.

    The defaults of ``marker_std_m``, the prior and ``acceleration`` were chosen on synthetic captures of seed
    0; the figures that the benchmarks print are of seed 1. ``optical_std_m`` is a guess.

    Attributes:
        preset: that these stem from.
        triangulation: see `geometry.triangulation`.
        max_gap_s: gaps of triangulated points up to here are interpolated, and frames without a pose or
            with a rejected one likewise.
        scale: whether the generic model is scaled to the subject.
        marker_std_m: how far along a line keypoints lie from the model's markers, always alike; see
            `kinematics.scaling.shrink_to_stature`. 0 takes the measured proportions as they are.
        optical_std_m: the same for body markers.
        weights: (marker, weight) for markers whose weight is not 1.
        use_confidence: whether a marker's confidence in a frame multiplies its weight.
        coordinate_tasks: pulls of OpenSim's objective; with them it is OpenSim's, frame by frame.
        prior_marker_std_m: see `kinematics.inverse.Prior`.
        prior_coordinate_std: likewise.
        velocity: weight of velocities in the whole-clip solve; see `kinematics.clip.Smoothing`.
        acceleration: likewise of accelerations.
        lumbar: ``coupled`` as the model ships, or ``free``: 18 axes that a stiffness pulls to the rhythm.
        stiffness: of that pull, m²/rad²; None for the default of `kinematics.lumbar` at this noise, 0 for
            none; the larger, the nearer to ``coupled``.
        output_cutoff_hz: of the zero-phase low-pass over free coordinates and blended points; 0 for none.
        blend: share of the smoothed prediction in the final spine chain.
        mass_kg: of every subject whose mass is not given; None for an estimate by the model's size.
    """

    preset: str = "simspine"
    triangulation: Triangulation = "robust"
    max_gap_s: float = 0.2
    scale: bool = True
    marker_std_m: float = 0.025
    optical_std_m: float = 0.005
    weights: tuple[tuple[str, float], ...] = ()
    use_confidence: bool = True
    coordinate_tasks: tuple[CoordinateTarget, ...] = ()
    prior_marker_std_m: float = 0.02
    prior_coordinate_std: float = 0.5
    velocity: float = 0.0
    acceleration: float = 1e-7
    lumbar: Lumbar = "coupled"
    stiffness: float | None = None
    output_cutoff_hz: float = 0.0
    blend: float = 0.0
    mass_kg: float | None = None

    def __post_init__(self) -> None:
        for name, valid in (("triangulation", get_args(Triangulation)), ("lumbar", get_args(Lumbar))):
            if getattr(self, name) not in valid:
                raise UnknownNameError(name.capitalize(), getattr(self, name), "the choices", valid)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not (math.isfinite(value) and value >= 0):
                raise SimspineError(f"{field.name} is {value}; valid is a finite number from 0 on")
        if self.stiffness is not None and self.lumbar == "coupled":
            raise SimspineError(
                "The couplers hold the lumbar rhythm; a stiffness goes with free lumbar joints"
            )
        if self.blend > 1:
            raise SimspineError(f"blend is {self.blend}; valid is a share from 0 to 1")
        if self.smooths and self.coordinate_tasks:
            raise SimspineError(
                "Coordinate tasks make OpenSim's objective, which doesn't smooth; give either"
            )

    @property
    def smooths(self) -> bool:
        """Whether clips are solved as a whole."""
        return self.velocity > 0 or self.acceleration > 0


PRESETS: Mapping[str, SimulationOptions] = MappingProxyType(
    {
        "simspine": SimulationOptions(),
        # The released setup: its weights, coordinate task, mass, filter and blending. What it does with
        # detections is not released; Pose2Sim's triangulation and measured proportions stand in.
        "official": SimulationOptions(
            preset="official",
            triangulation="weighted",
            marker_std_m=0.0,
            optical_std_m=0.0,
            weights=tuple(OFFICIAL_MARKER_WEIGHTS.items()),
            use_confidence=False,
            coordinate_tasks=OFFICIAL_COORDINATE_TASKS,
            acceleration=0.0,
            output_cutoff_hz=5.0,
            blend=0.2,
            mass_kg=70.0,
        ),
    }
)
"""``simspine`` is the default and the best; ``official`` compares with the released code."""


def preset(name: str, **changes: Any) -> SimulationOptions:
    """A preset with some settings changed.

    Raises:
        UnknownNameError: there is no such preset.
        SimspineError: a setting is out of range.
    """
    if name not in PRESETS:
        raise UnknownNameError("Preset", name, "the presets", PRESETS)
    return dataclasses.replace(PRESETS[name], **changes)
