"""MotionAGFormer's extra small model on all 37 keypoints."""

from simspine_jax.lifting.motion_agformer import MotionAGFormerOptions
from simspine_jax.training.run import Expected, OptimiserOptions, Run

RUN = Run(
    name="temporal_full",
    model=MotionAGFormerOptions(),
    expected=Expected(minutes=120),
    optimiser=OptimiserOptions(
        learning_rate=5e-4, weight_decay=0.01, schedule="cosine", warmup=100, clip=1.0
    ),
    steps=1_500,
    batch_size=8,
    save_every=200,
    log_every=20,
)
