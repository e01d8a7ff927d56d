"""MotionAGFormer's design on all 37 keypoints, cut down to what two CPU cores can train.

It has 2 of the extra small model's 12 layers and half of their features, and sees 25,600 windows. With a GPU,
``model.layers=12 model.features=64 model.heads=8 model.representation=512`` is the published model; its
learning rate is 5e-4. Scores are of the synthetic set's test subjects, by the 2D keypoints of training and
test.
"""

from simspine_jax.lifting.motion_agformer import MotionAGFormerOptions
from simspine_jax.training.run import Expected, OptimiserOptions, Run

RUN = Run(
    name="temporal_full",
    model=MotionAGFormerOptions(layers=2, features=32, heads=4, representation=128),
    expected=Expected(
        minutes=15,
        scores={
            "detected/spine_pmpjpe_mm": 33.0,
            "detected/spine_mpjpe_mm": 75.0,
            "truth/spine_pmpjpe_mm": 13.6,
            "truth/spine_mpjpe_mm": 41.8,
        },
    ),
    optimiser=OptimiserOptions(learning_rate=3e-3, weight_decay=0.01, schedule="cosine", warmup=50, clip=1.0),
    steps=800,
    batch_size=32,
    save_every=100,
    log_every=20,
)
