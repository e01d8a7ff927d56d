"""SimSpine for TensorFlow Datasets: importing this registers the data set ``simspine``."""

from __future__ import annotations

from simspine_tfds.simspine_dataset_builder import Builder, SimspineConfig

__all__ = ["Builder", "SimspineConfig"]
