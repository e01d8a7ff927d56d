"""HRNet-w32 by its published recipe: Adam, 210 epochs of batches of 512, from random weights.

Published weights begin with a network trained on ImageNet; the curriculum is the paper's, its switches are
assumed. Steps are of the 7,500 synthetic pictures. For a GPU; the minutes are computed from the speed of two
CPU cores.
"""

from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_run import DetectorOptimiser, DetectorRun
from simspine_jax.training.run import COMPUTED, Expected

RUN = DetectorRun(
    name="hrnet_w32",
    model=DETECTORS["hrnet_w32"],
    expected=Expected(minutes=37_000, machine=COMPUTED),
    optimiser=DetectorOptimiser(
        learning_rate=5e-4, schedule="steps", drops=(170 / 210, 200 / 210), warmup=500, warmup_from=1e-3
    ),
    steps=3076,
    batch_size=512,
    average=None,
    save_every=250,
)
