"""SimpleBaseline3D on the fifteen keypoints of the spine.

Scores are of the synthetic set's test subjects, by the 2D keypoints of training and test.
"""

from simspine_jax.lifting.simple_baseline import SimpleBaselineOptions
from simspine_jax.training.run import DataOptions, Expected, OptimiserOptions, Run

RUN = Run(
    name="simple_spine",
    model=SimpleBaselineOptions(),
    expected=Expected(
        minutes=10,
        scores={
            "detected/spine_pmpjpe_mm": 10.0,
            "detected/spine_mpjpe_mm": 38.3,
            "truth/spine_pmpjpe_mm": 7.2,
            "truth/spine_mpjpe_mm": 19.9,
        },
    ),
    data=DataOptions(keypoints="spine"),
    optimiser=OptimiserOptions(learning_rate=1e-3, weight_decay=0.01),
    steps=10_000,
)
