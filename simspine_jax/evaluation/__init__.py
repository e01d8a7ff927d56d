"""The paper's evaluations: multi-view reconstruction and monocular lifting, by region and action."""
