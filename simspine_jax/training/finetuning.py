"""The paper's way to a spine detector: fine-tuning of published weights on two sets of pictures at once."""

from __future__ import annotations

from dataclasses import replace

from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_run import DetectorRun, PictureOptions, load_detector_run
from simspine_jax.training.run import COMPUTED, Expected

OUTDOOR = 33_000
"""Pictures of SpineTrack's training split (SIMSPINE, section 4.4)."""

EPOCHS, BATCH = 10, 256
"""Of the outdoor pictures, as published; crops of a batch, assumed."""

SHARE, FRACTION = 0.5, 0.02
"""Of SimSpine in each batch, and what of SimSpine is used at all, as published."""

GENTLER = 0.1
"""Of the learning rate from random weights; assumed, as the paper's isn't told."""


def finetuning(name: str) -> DetectorRun:
    """The fine-tuned row of one of `DETECTORS` in the paper's Table 2.

    Optimiser and loss are those of its training from random weights, the curriculum's three stages have its
    shares. The pictures are the user's: ``--set data.source=…`` and ``data.second=…`` name them, and
    ``--weights`` the published weights that ``torch2flax`` has imported.
    """
    base = load_detector_run(name)
    steps = EPOCHS * OUTDOOR // round(BATCH * (1 - SHARE))
    crops = steps * BATCH / (base.steps * base.batch_size)
    return replace(
        base,
        name=f"{name}_ft",
        model=DETECTORS[name],
        expected=Expected(minutes=round(base.expected.minutes * crops, -2), machine=COMPUTED),
        optimiser=replace(
            base.optimiser, learning_rate=GENTLER * base.optimiser.learning_rate, warmup=steps // 20
        ),
        data=PictureOptions(
            source="spinetrack/train.json:spinetrack/images", second="h36m:h36m_frames:simspine_release",
            share=SHARE, fraction=FRACTION,
        ),
        steps=steps,
        batch_size=BATCH,
    )  # fmt: skip
