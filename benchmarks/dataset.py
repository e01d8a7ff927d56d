"""The suite ``dataset``: building the default dataset, and the rates at which its records reach a training.

All rows of a run are of one dataset. It is built into a temporary folder where ``dataset/build_s`` is asked
for; else the one in ``TFDS_DATA_DIR`` (or ``~/tensorflow_datasets``) is read, if it is there. A pose frame is
one time step of a clip with all of its fields: both annotations, the truth, four views and their masks, about
5 kB. A sample is one frame of one view with what a lifter needs, about 1.3 kB. Files are in the system's
cache: what is measured is unpacking, not a disk.
"""

from __future__ import annotations

from functools import partial

from benchmarks.metrics import Metric, Suite, Workload, late

_rates = partial(late, "dataset_rates")


def _rate(name: str, bar: float | None, note: str) -> Metric:
    return Metric(f"dataset/{name}", "1/s", "higher", None, bar, note, is_timing=True)


METRICS = (
    Metric(
        "dataset/build_s", "s", "lower", None, 600.0,
        "`simspine dataset build` of the default configuration, from nothing.", is_timing=True,
    ),
    _rate("stream_frames_per_s", 100_000.0, "Pose frames streamed as clips with all fields, one process."),
    _rate("h5py_frames_per_s", None, "The same fields of the same clips by plain h5py, uncompressed."),
    _rate("numpy_frames_per_s", None, "The same fields copied in memory by NumPy, one thread: a ceiling."),
    _rate("tfdata_frames_per_s", None, "The same clips by tf.data through TFDS, from TFRecord files."),
    _rate("memory_frames_per_s", 1_000_000.0, "Samples in shuffled batches from memory, on the device."),
    _rate("memory_frames_per_s/*", None, "The same by the size of a batch, or of windows."),
    _rate("images_per_s", 500.0, "Pictures decoded and cropped to 256x192, in shuffled batches."),
    Metric(
        "dataset/images_vs_tfdata", "x", "higher", None, None,
        "Its rate over tf.data's with TensorFlow's decode_jpeg and crop_and_resize.", is_timing=True,
    ),
)  # fmt: skip


def _workload(run, *keys: str) -> Workload:
    return Workload(tuple(f"dataset/{key}" for key in keys), run)


WORKLOADS = (
    _workload(_rates("build"), "build_s"),
    _workload(
        _rates("streams"),
        "stream_frames_per_s",
        "h5py_frames_per_s",
        "numpy_frames_per_s",
        "tfdata_frames_per_s",
    ),
    _workload(_rates("memory"), "memory_frames_per_s", "memory_frames_per_s/*"),
    _workload(_rates("images"), "images_per_s", "images_vs_tfdata"),
)

SUITE = Suite("dataset", METRICS, WORKLOADS, late("dataset_rates", "DatasetPlace"))
