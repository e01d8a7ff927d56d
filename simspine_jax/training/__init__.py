"""Training: one run a file in `configs`, its loop, checkpoints, logs and evaluation."""
