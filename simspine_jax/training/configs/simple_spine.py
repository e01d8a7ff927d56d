"""SimpleBaseline3D on the fifteen keypoints of the spine."""

from simspine_jax.lifting.simple_baseline import SimpleBaselineOptions
from simspine_jax.training.run import DataOptions, Expected, OptimiserOptions, Run

RUN = Run(
    name="simple_spine",
    model=SimpleBaselineOptions(),
    expected=Expected(minutes=10),
    data=DataOptions(keypoints="spine"),
    optimiser=OptimiserOptions(learning_rate=1e-3, weight_decay=0.01),
    steps=10_000,
)
