"""The kinematic lifter on all 37 keypoints.

Scores are of the synthetic set's test subjects, by the 2D keypoints of training and test.
"""

from simspine_jax.lifting.kinematic import KinematicOptions
from simspine_jax.training.run import Expected, OptimiserOptions, Run

RUN = Run(
    name="kinematic_full",
    model=KinematicOptions(),
    expected=Expected(
        minutes=12,
        scores={
            "detected/spine_pmpjpe_mm": 7.9,
            "detected/spine_mpjpe_mm": 21.1,
            "truth/spine_pmpjpe_mm": 6.9,
            "truth/spine_mpjpe_mm": 14.7,
        },
    ),
    optimiser=OptimiserOptions(
        learning_rate=1e-3, weight_decay=0.01, schedule="cosine", warmup=200, clip=1.0
    ),
    steps=10_000,
    average=0.999,
)
