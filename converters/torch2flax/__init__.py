"""Published PyTorch weights as Flax models of `simspine_jax`."""
