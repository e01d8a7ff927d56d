"""SpinePose-s by RTMPose's recipe: 420 epochs of batches of 1024, from random weights.

Published weights begin with a backbone trained on other pictures, and SpinePose adds losses whose formulas
are not public; switches of the curriculum are assumed. Steps are of the 7,500 synthetic pictures. For a GPU;
the minutes are computed from the speed of two CPU cores.
"""

from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_run import DetectorOptimiser, DetectorRun
from simspine_jax.training.run import COMPUTED, Expected

RUN = DetectorRun(
    name="spinepose_s",
    model=DETECTORS["spinepose_s"],
    expected=Expected(minutes=6_600, machine=COMPUTED),
    optimiser=DetectorOptimiser(learning_rate=4e-3, weight_decay=0.0, clip=35.0),
    steps=3076,
    batch_size=1024,
    average=0.9998,
    save_every=250,
)
