"""MotionAGFormer's extra small model on all 37 keypoints.

The run is short, 2,400 windows, so that it ends in a quarter of an hour without a GPU, and far from what the
design can do; with one, set ``steps`` and ``batch_size`` higher.
"""

from simspine_jax.lifting.motion_agformer import MotionAGFormerOptions
from simspine_jax.training.run import Expected, OptimiserOptions, Run

RUN = Run(
    name="temporal_full",
    model=MotionAGFormerOptions(),
    expected=Expected(minutes=15),
    optimiser=OptimiserOptions(
        learning_rate=5e-4, weight_decay=0.01, schedule="cosine", warmup=100, clip=1.0
    ),
    steps=600,
    batch_size=4,
    save_every=100,
    log_every=20,
)
