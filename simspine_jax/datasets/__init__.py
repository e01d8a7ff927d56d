"""Clips of built datasets and batches for training, without TensorFlow.

`open_clips` reads a dataset that ``simspine dataset build`` made; `frame_samples` and `window_samples` hold
what a lifter needs of its clips; `Statistics` standardise it; `Batches` gives it shuffled on the device.
"""

from simspine_jax.datasets.batches import Batches, BatchState, shuffled
from simspine_jax.datasets.coco import open_coco
from simspine_jax.datasets.h36m import open_h36m
from simspine_jax.datasets.mixing import MixOptions, PictureMix
from simspine_jax.datasets.picture_batches import CropBatch, picture_batches
from simspine_jax.datasets.picture_files import PictureFiles
from simspine_jax.datasets.records import RecordSequence, default_data_dir
from simspine_jax.datasets.samples import Frames, Samples, frame_samples, rays_of, window_samples
from simspine_jax.datasets.sequences import (
    ClipSequence,
    PictureSequence,
    clips_in_memory,
    open_clips,
    open_pictures,
    pictures_in_memory,
)
from simspine_jax.datasets.standardising import Statistics, statistics_of

__all__ = [
    "BatchState",
    "Batches",
    "ClipSequence",
    "CropBatch",
    "Frames",
    "MixOptions",
    "PictureFiles",
    "PictureMix",
    "PictureSequence",
    "RecordSequence",
    "Samples",
    "Statistics",
    "clips_in_memory",
    "default_data_dir",
    "frame_samples",
    "open_clips",
    "open_coco",
    "open_h36m",
    "open_pictures",
    "picture_batches",
    "pictures_in_memory",
    "rays_of",
    "shuffled",
    "statistics_of",
    "window_samples",
]
