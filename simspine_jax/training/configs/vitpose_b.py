"""ViTPose-b by its published recipe: AdamW with smaller steps in early layers, 210 epochs of batches of 512.

From random weights; published ones begin with a masked autoencoder's. The curriculum is the paper's, its
switches are assumed. Steps are of the 7,500 synthetic pictures. For a GPU; the minutes are computed from the
speed of two CPU cores.
"""

from simspine_jax.detection.models import DETECTORS
from simspine_jax.training.detector_run import DetectorOptimiser, DetectorRun
from simspine_jax.training.run import COMPUTED, Expected

RUN = DetectorRun(
    name="vitpose_b",
    model=DETECTORS["vitpose_b"],
    expected=Expected(minutes=86_000, machine=COMPUTED),
    optimiser=DetectorOptimiser(
        learning_rate=5e-4,
        weight_decay=0.1,
        schedule="steps",
        drops=(170 / 210, 200 / 210),
        warmup=500,
        warmup_from=1e-3,
        clip=1.0,
        layer_decay=0.75,
    ),
    steps=3076,
    batch_size=512,
    average=None,
    save_every=250,
)
