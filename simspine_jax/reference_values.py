"""Ranges of motion and curvature of healthy people from the literature, each with how well it is known.

The status of a value goes wherever the value is shown. Many were recalled and could not be read in their
sources, or their page names none: figures and tables leave these out unless they are asked for. Degrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

RECALLED = "recalled, unverified"
SECONDARY = "secondary: read in a public repository that cites the primary source"
SECONDARY_PAGE = "secondary"
VERIFIED = "verified: read in the cited abstract/page excerpt"

Kind = Literal["value", "range", "mean and SD"]


class ReferenceValue(NamedTuple):
    """A value, a range from low to high, or a mean and standard deviation, degrees.

    Attributes:
        what: the measure, in words.
        degrees: one number, or two for a range or a mean with its standard deviation.
        kind: which of them.
        status: how well the number is known.
        source: who reports it.
        limits: lowest and highest reported, where they are known.
        sides: 1 where the value is the motion to one side, 2 where it is the whole arc.
    """

    what: str
    degrees: tuple[float, ...]
    kind: Kind
    status: str
    source: str
    limits: tuple[float, float] | None = None
    sides: Literal[1, 2] = 2

    def shown(self) -> str:
        """The numbers: ``12``, ``20 to 40`` or ``33.2 ± 12.1``."""
        joint = {"value": "", "range": " to ", "mean and SD": " ± "}[self.kind]
        return joint.join(f"{number:g}" for number in self.degrees)

    @property
    def is_sound(self) -> bool:
        """Whether it was read where a primary source reports or is cited for it."""
        return self.status not in (RECALLED, SECONDARY_PAGE) and self.source not in _WITHOUT_PRIMARY


def shown_values(values: Iterable[ReferenceValue], *, unverified: bool = False) -> list[ReferenceValue]:
    """Those that are to be shown: with ``unverified`` all, else the sound ones."""
    return [value for value in values if unverified or value.is_sound]


NONE_SOUND = "no verified reference value"
"""What is said where all that is known is left out."""

_PANJABI = "White and Panjabi, Clinical Biomechanics of the Spine, 2nd ed. 1990"
_RADIOGRAPHS = "a radiographic study of 42 intact lumbar spines, as a public repository transcribes it"
_WITHOUT_PRIMARY = (_RADIOGRAPHS,)

# Level (as `skeleton.LUMBAR_LEVELS` has it): flexion and extension, bending, rotation; each with its limits.
_LUMBAR = {
    "L1_T12": ((12, (6, 20)), (8, (5, 10)), (2, None)),
    "L1_L2": ((12, (5, 16)), (6, (3, 8)), (2, None)),
    "L2_L3": ((14, (8, 18)), (6, (3, 10)), (2, None)),
    "L3_L4": ((15, (6, 17)), (8, (4, 12)), (2, None)),
    "L4_L5": ((16, (9, 21)), (6, (3, 9)), (2, None)),
    "L5_S1": ((17, (10, 24)), (3, (2, 6)), (1, None)),
}
MOTIONS: tuple[str, ...] = ("flexion/extension", "lateral bending", "axial rotation")
"""The three rotations of a level, in the order of `kinematics.curvature.vertebral_rotations`."""


def level_label(level: str) -> str:
    """``L4-L5`` of ``L4_L5``; ``T12-L1`` of the model's ``L1_T12``."""
    return "T12-L1" if level == "L1_T12" else level.replace("_", "-")


def _lumbar(level: str, motion: int) -> ReferenceValue:
    value, limits = _LUMBAR[level][motion]
    second_hand = motion == 2 and level != "L1_T12"
    return ReferenceValue(
        f"{level_label(level)} {MOTIONS[motion]}, {'whole arc' if motion == 0 else 'one side'}",
        (value,), "value", SECONDARY if second_hand else RECALLED, _PANJABI, limits, 2 if motion == 0 else 1,
    )  # fmt: skip


LUMBAR_ROM: Mapping[tuple[str, str], ReferenceValue] = MappingProxyType(
    {(level, name): _lumbar(level, i) for level in _LUMBAR for i, name in enumerate(MOTIONS)}
)
"""Range of motion by lumbar level and motion: the whole arc of flexion and extension, else one side."""

LUMBAR_CONFLICT = (
    "The first edition of 1978 is often quoted with 17 and 20 degrees of flexion/extension at L4-L5 and "
    "L5-S1 and 5 degrees of axial rotation at L5-S1 (recalled, unverified), so compare with a tolerance."
)
"""What is said against `LUMBAR_ROM`."""

LUMBAR_FLEXION_RADIOGRAPHIC: Mapping[str, ReferenceValue] = MappingProxyType(
    {
        level: ReferenceValue(
            f"{level_label(level)} flexion/extension, whole arc", (value,), "value", SECONDARY, _RADIOGRAPHS
        )
        for level, value in {
            "L1_L2": 11.9, "L2_L3": 14.5, "L3_L4": 15.3, "L4_L5": 18.2, "L5_S1": 17.0,
        }.items()
    }
)  # fmt: skip
"""A second opinion on flexion and extension."""

LUMBAR_FLEXION_PEARCY = ReferenceValue(
    "flexion/extension of each lumbar level, whole arc, approximately", (14,), "value", VERIFIED,
    "Pearcy, Portek and Shepherd, Spine 9 (1984) 294-297, abstract",
)  # fmt: skip

_NECK_SOURCE = "anatomystandard.com, range of motion of the spine (meta-analysis, young men)"
NECK_ROM: Mapping[str, ReferenceValue] = MappingProxyType(
    {
        "flexion/extension": ReferenceValue(
            "C0-C7 flexion/extension, whole arc", (127,), "value", VERIFIED, _NECK_SOURCE
        ),
        "lateral bending": ReferenceValue(
            "C0-C7 lateral bending, one side", (49,), "value", VERIFIED, _NECK_SOURCE, sides=1
        ),
        "axial rotation": ReferenceValue(
            "neck axial rotation, one side", (80,), "value", RECALLED, "AAOS, general clinical", sides=1
        ),
    }
)
"""Range of motion of the whole neck."""

LORDOSIS: tuple[ReferenceValue, ...] = (
    ReferenceValue(
        "lordosis L1-S1, means of actions", (33, 39), "range", VERIFIED,
        "SIMSPINE paper, its own simulated data",
    ),
    ReferenceValue("lordosis, normal adults", (33.2, 12.1), "mean and SD", RECALLED, "Lin et al. 1992"),
    ReferenceValue(
        "lordosis T12-S1, standing, 627 healthy", (49.8, 11.2), "mean and SD", VERIFIED,
        "PMC6680033, abstract",
    ),
    ReferenceValue(
        "lordosis T12-S1, recumbent, 627 healthy", (36.8, 13.2), "mean and SD", VERIFIED,
        "PMC6680033, abstract",
    ),
    ReferenceValue(
        "lordosis L4-S1, standing", (34.2, 8.3), "mean and SD", VERIFIED, "PMC6680033, abstract"
    ),
    ReferenceValue(
        "lordosis, standing, 30 men", (48.5, 8.7), "mean and SD", VERIFIED,
        "Cho et al., Asian Spine J. 9 (2015) 762, abstract",
    ),
    ReferenceValue("lordosis, adults", (45, 70), "range", SECONDARY_PAGE, "mitchmedical.us, without primary"),
)  # fmt: skip
"""The first is the paper's own, the second what it cites."""

KYPHOSIS: tuple[ReferenceValue, ...] = (
    ReferenceValue(
        "kyphosis T3-T12, means of actions", (29, 37), "range", VERIFIED,
        "SIMSPINE paper, its own simulated data",
    ),
    ReferenceValue("kyphosis, about", (20, 40), "range", RECALLED, "Fon, Pitt and Thies 1980"),
    ReferenceValue(
        "kyphosis, normal", (20, 40), "range", VERIFIED,
        "Zappala et al., J. Orthop. Surg. Res. 16 (2021) 447, background",
    ),
    ReferenceValue(
        "kyphosis, Scoliosis Research Society", (20, 60), "range", VERIFIED, "quoted by Zappala et al. 2021"
    ),
    ReferenceValue(
        "kyphosis T2-T12, adults", (30, 50), "range", SECONDARY_PAGE, "mitchmedical.us, without primary"
    ),
    ReferenceValue(
        "kyphosis, men, by a surface device", (42.8, 8.8), "mean and SD", VERIFIED,
        "Lang-Tapia et al., J. Appl. Biomech. 27 (2011) 143, abstract",
    ),
    ReferenceValue(
        "kyphosis, women, by a surface device", (40.4, 9.5), "mean and SD", VERIFIED,
        "Lang-Tapia et al., J. Appl. Biomech. 27 (2011) 143, abstract",
    ),
)  # fmt: skip
"""The first is the paper's own, the second what it cites."""

MODEL_FLEXION_RATIOS: Mapping[str, float] = MappingProxyType(
    {"L5_S1": 1.0, "L4_L5": 1.8571, "L3_L4": 1.6429, "L2_L3": 1.1429, "L1_L2": 0.9286, "L1_T12": 0.5714}
)
"""What the spine model's couplers make of L5-S1's flexion at each level, as the model is shipped.

Not a measurement: where the joints are coupled, the shares of the levels are these whatever the data say.
"""

ALL: tuple[ReferenceValue, ...] = (
    *LORDOSIS, *KYPHOSIS, *LUMBAR_ROM.values(), *LUMBAR_FLEXION_RADIOGRAPHIC.values(), LUMBAR_FLEXION_PEARCY,
    *NECK_ROM.values(),
)  # fmt: skip
"""Every value of the literature that is here."""
