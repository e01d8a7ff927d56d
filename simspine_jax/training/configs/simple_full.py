"""SimpleBaseline3D on all 37 keypoints.

Scores are of the synthetic set's test subjects, by the 2D keypoints of training and test.
"""

from simspine_jax.lifting.simple_baseline import SimpleBaselineOptions
from simspine_jax.training.run import DataOptions, Expected, OptimiserOptions, Run

RUN = Run(
    name="simple_full",
    model=SimpleBaselineOptions(),
    expected=Expected(
        minutes=10,
        scores={
            "detected/spine_pmpjpe_mm": 9.5,
            "detected/spine_mpjpe_mm": 33.3,
            "truth/spine_pmpjpe_mm": 8.2,
            "truth/spine_mpjpe_mm": 21.6,
        },
    ),
    data=DataOptions(keypoints="all"),
    optimiser=OptimiserOptions(learning_rate=1e-3, weight_decay=0.01),
    steps=10_000,
)
