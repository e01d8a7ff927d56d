"""The kinematic lifter on all 37 keypoints."""

from simspine_jax.lifting.kinematic import KinematicOptions
from simspine_jax.training.run import Expected, OptimiserOptions, Run

RUN = Run(
    name="kinematic_full",
    model=KinematicOptions(),
    expected=Expected(minutes=20),
    optimiser=OptimiserOptions(
        learning_rate=1e-3, weight_decay=0.01, schedule="cosine", warmup=200, clip=1.0
    ),
    steps=10_000,
    average=0.999,
)
