"""SpinePose-s on small crops of the synthetic pictures, in an hour of two CPU cores, from random weights.

Not the published recipe, which needs a GPU: crops of half the height and width, so that an hour has four
times as many of them, a higher learning rate for small batches, and hardly any augmentation, as so few epochs
don't teach more than upright crops. Labels are as wide as those of the large crops. Scores are of the
synthetic pictures' test split: of other subjects in front of other backgrounds.
"""

import dataclasses

from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.run import Expected

RUN = DetectorRun(
    name="spinepose_s_short",
    model=dataclasses.replace(DETECTORS["spinepose_s"], size=(128, 96), sigma=(4.9, 5.66)),
    expected=Expected(minutes=55, scores={"auc/all": 0.854, "auc/spine": 0.931}),
    optimiser=DetectorOptimiser(learning_rate=2e-3, warmup=150, begin=0.4, final=0.02, clip=35.0),
    curriculum=CurriculumOptions(stages=("plain",), switches=()),
    steps=3000,
    batch_size=32,
    average=0.995,
    log_every=20,
    save_every=100,
)
