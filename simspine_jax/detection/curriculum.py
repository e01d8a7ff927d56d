"""The paper's curriculum of augmentation: hard, medium and easy stages (Supplementary A).

What the paper kept are the kinds of changes in each stage; its numbers are lost. Those here are **assumed**:

===============================  =============================================================
number                           from
===============================  =============================================================
scale, rotation of hard, medium  MMPose's RTMPose, first and second pipeline (COCO, 256x192)
shift of medium: 0               the same, second pipeline
hole: probability 1 and 0.5      the same; one hole of 0.2 to 0.4
blurs: 0.1                       the same
half body, flip, shift of hard   MMPose's defaults
colours                          MMPose's defaults of PhotometricDistortion
scale, rotation, shift of easy   nothing: less than those of medium
switches                         nothing: half and four fifths of the training (`SWITCH_SHARES`)
===============================  =============================================================

A stage changes the crops that the host makes and the program of the device. A training that switches keeps
its place in the data: an iterator of `datasets.picture_batches` with the next stage's crop continues where
``set_state`` puts it, for the order does not depend on the crops.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from simspine_jax.arrays import Array, Float, Int
from simspine_jax.detection.augmentation import DrawnCrop, Geometry
from simspine_jax.detection.photometric import Colours, Hole, augment
from simspine_jax.errors import SimspineError
from simspine_jax.pictures import CROP_SIZE

SWITCH_SHARES = (0.5, 0.8)
"""Of the training, after which the medium and the easy stage begin; assumed."""


@dataclass(frozen=True)
class Stage:
    """What is done to the crops of a part of the training.

    Attributes:
        name: for logs.
        geometry: of the map from the picture, on the host.
        blur: probability of a box blur, and of a median blur, on the host.
        colours: changed on the device; None for none.
        hole: likewise.
    """

    name: str
    geometry: Geometry
    blur: float = 0.0
    colours: Colours | None = None
    hole: Hole | None = None

    def crop(self, size: tuple[int, int] = CROP_SIZE, *, udp: bool = False) -> DrawnCrop:
        """Makes the crops on the host: the ``crop`` of `datasets.picture_batches`.

        Args:
            size: height and width, px.
            udp: see `pictures.crop_matrix`.
        """
        return DrawnCrop(self.geometry, self.blur, size, udp)

    def augment(self, pixels: Int[Array, "B h w 3"], keys: Array) -> Float[Array, "B h w 3"]:
        """Crops as detectors take them in training; see `photometric.augment`."""
        return augment(pixels, keys, colours=self.colours, hole=self.hole)


HARD = Stage("hard", Geometry(), blur=0.1, colours=Colours(), hole=Hole())
"""Strong changes of place, colours and occlusion, for invariance."""

MEDIUM = Stage(
    "medium",
    Geometry(scale=(0.75, 1.25), rotation_deg=60.0, shift=0.0),
    blur=0.1,
    hole=Hole(probability=0.5),
)
"""Milder changes of place and fewer holes, for stable geometry."""

EASY = Stage("easy", Geometry(half_body=0.0, scale=(0.9, 1.1), rotation_deg=30.0, shift=0.0))
"""Mirror images, scale and rotation only, to refine positions."""

PLAIN = Stage("plain", Geometry(half_body=0.0, scale=(0.9, 1.1), rotation_deg=0.0, shift=0.05))
"""Mirror images, and boxes that are a little off; not of the paper, for trainings of a few epochs."""

PAPER_STAGES = (HARD, MEDIUM, EASY)

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in (*PAPER_STAGES, PLAIN)}
"""By name, as runs of trainings have them."""


@dataclass(frozen=True)
class Curriculum:
    """Stages one after the other.

    Attributes:
        stages: one or more.
        switches: share of the training after which each stage but the first begins: epoch 210 of 420 is 0.5.
    """

    stages: tuple[Stage, ...]
    switches: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise((0.0, *self.switches, 1.0)))
        if not self.stages or len(self.switches) != len(self.stages) - 1 or not rising:
            raise SimspineError(
                f"Shares {self.switches} can't be the switches of {len(self.stages)} stages; "
                f"valid are {max(len(self.stages) - 1, 0)}, rising, above 0 and below 1"
            )

    def number(self, share: float) -> int:
        """Which of the stages, from 0, a training is in of which this share is done."""
        return bisect_right(self.switches, share)

    def at(self, share: float) -> Stage:
        """The stage that a training is in of which this share is done."""
        return self.stages[self.number(share)]
