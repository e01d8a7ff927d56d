"""SpinePose-s on the synthetic pictures in an hour of two CPU cores, from random weights.

Not the published recipe, which needs a GPU: few steps of small batches, a higher learning rate for their
size, and hardly any augmentation, as so few epochs don't teach more than upright crops.
"""

from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_run import CurriculumOptions, DetectorOptimiser, DetectorRun
from simspine_jax.training.run import Expected

RUN = DetectorRun(
    name="spinepose_s_short",
    model=DETECTORS["spinepose_s"],
    expected=Expected(minutes=55),
    optimiser=DetectorOptimiser(learning_rate=1e-3, warmup=100, begin=0.3, final=0.02, clip=35.0),
    curriculum=CurriculumOptions(stages=("plain",), switches=()),
    steps=2400,
    batch_size=16,
    average=0.99,
    log_every=20,
    save_every=100,
)
