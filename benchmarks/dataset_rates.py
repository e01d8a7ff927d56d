"""The rows of the suite ``dataset``."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import Workplace
from simspine_jax.clips import CLIP_FIELDS, Clip
from simspine_jax.datasets import (
    Batches,
    ClipSequence,
    PictureSequence,
    default_data_dir,
    frame_samples,
    open_clips,
    open_pictures,
    picture_batches,
    pictures_in_memory,
    window_samples,
)
from simspine_jax.errors import SimspineError
from simspine_jax.pictures import (
    CROP_SIZE,
    Picture,
    crop_matrix,
    inverse_map,
    map_points,
    padded_box,
    top_down,
)

CONFIG, SPLIT = "synthetic", "train"
BATCH_SIZE = 1024
BATCH_SIZES = (256, 4096, 16384)
WINDOW, WINDOW_STRIDE = 27, 9
PICTURES, PICTURE_BATCH = 256, 32
# Of 255, the mean: crops that are decoded at a half of their size differ by so much at most, others by none.
CROP_TOLERANCE = 8.0
# Of the build that only tries the code: one subject of each split.
QUICK = ("--subjects", "S1", "S9", "--actions", "Walking", "--seconds", "1")


class DatasetPlace(Workplace):
    """A built dataset, which the rows of a run share."""

    build_seconds: float | None = None

    @cached_property
    def built(self) -> Path:
        """A folder of datasets made for this run, by the command line in a process of its own."""
        folder = self.folder / "datasets"
        command = [sys.executable, "-m", "simspine_jax.cli", "dataset", "build", "--config", CONFIG]
        options = ["--data-dir", str(folder), "--quiet", *(QUICK if self.quick else ())]
        began = time.perf_counter()
        child = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        self.build_seconds = time.perf_counter() - began
        if child.returncode:
            raise SkippedError(f"The dataset can't be built here: {' '.join(child.stderr.split())[-300:]}")
        return folder

    @cached_property
    def data_dir(self) -> Path:
        """The folder to read: that of this run's build, or else the machine's."""
        if self.build_seconds is None and not self.quick:
            with contextlib.suppress(SimspineError):
                open_clips(CONFIG, SPLIT)
                return default_data_dir()
        return self.built

    @cached_property
    def clips(self) -> ClipSequence:
        """The training split."""
        return open_clips(CONFIG, SPLIT, self.data_dir)

    @cached_property
    def data(self) -> str:
        """What is read, in words."""
        frames = sum(len(clip["times"]) for clip in self.clips.stream(["times"]))
        views = len(self.clips[0].camera_names)
        return (
            f"synthetic: simspine/{CONFIG}, {SPLIT}: {len(self.clips)} clips, {frames} frames, {views} views"
        )


def build(place: DatasetPlace) -> Iterator[Measurement]:
    """The default dataset into a temporary folder."""
    folder = place.built
    clips = [clip for split in ("train", "test") for clip in open_clips(CONFIG, split, folder)]
    views = sum(clip.n_frames * len(clip.camera_names) for clip in clips)
    data = f"synthetic: {len(clips)} clips, {views} view-frames"
    note = "A process of its own, compiling included where the compile cache has nothing."
    assert place.build_seconds is not None
    yield Measurement("dataset/build_s", place.build_seconds, data, note, {"view_frames": views})


# --- peers ---


def streams(place: DatasetPlace) -> Iterator[Measurement]:
    """The stream of clips beside other ways to the same numbers; they take turns."""
    held = list(place.clips)
    frames = sum(clip.n_frames for clip in held)
    ways: dict[str, Callable[[], object]] = {
        "stream": lambda: sum(clip.n_frames for clip in place.clips),
        "numpy": lambda: sum(len(_copied(clip)) for clip in held),
    }
    missing = []
    for name, make, package in (("h5py", _h5py, "h5py"), ("tfdata", _tfdata, "tensorflow")):
        if importlib.util.find_spec(package) is None:
            missing.append(f"{package} is not installed")
        else:
            ways[name] = make(place, held)
    best = interleaved(ways, place.repeats)
    size = sum(array.nbytes for clip in held for array in _arrays(clip).values()) / frames
    for name, seconds in best.items():
        key = f"dataset/{name}_frames_per_s"
        yield Measurement(key, frames / seconds, place.data, "", {"bytes_per_frame": round(size)})
    if missing:
        raise SkippedError("; ".join(missing))


def _arrays(clip: Clip) -> dict[str, np.ndarray]:
    return {f.name: getattr(clip, f.name) for f in CLIP_FIELDS if f.shape and f.kind != "text"}


def _copied(clip: Clip) -> list[np.ndarray]:
    return [array.copy() for array in _arrays(clip).values()]


def _h5py(place: DatasetPlace, held: list[Clip]) -> Callable[[], object]:
    """A group for each clip with a dataset for each array, as the release has groups of actions."""
    import h5py

    path = place.folder / "clips.h5"
    with h5py.File(path, "w") as file:
        for number, clip in enumerate(held):
            group = file.create_group(f"{number:05d}")
            for name, array in _arrays(clip).items():
                group.create_dataset(name, data=array)

    def read() -> int:
        with h5py.File(path, "r") as file:
            return sum(len({name: stored[()] for name, stored in group.items()}) for group in file.values())

    if read() != sum(len(_arrays(clip)) for clip in held):
        raise AssertionError("h5py does not read every array")
    return read


def _tfdata(place: DatasetPlace, held: list[Clip]) -> Callable[[], object]:
    """The same records in TFRecord files, TensorFlow's own, read through TFDS as NumPy arrays."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of a name that it uses itself
    (old,) = (place.data_dir / "simspine" / CONFIG).glob("[0-9]*")
    new = place.folder / "tfrecord"
    shutil.copytree(old, new, ignore=shutil.ignore_patterns("*.array_record*"))
    described = json.loads((new / "dataset_info.json").read_text())
    described["fileFormat"] = "tfrecord"
    for split in described["splits"]:
        split["shardLengths"] = [str(sum(map(int, split["shardLengths"])))]
    (new / "dataset_info.json").write_text(json.dumps(described))
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    ours, theirs = (cast(Any, tfds.builder_from_directory(folder)) for folder in (old, new))
    records = ours.as_data_source(SPLIT, deserialize_method=raw)
    with tf.io.TFRecordWriter(str(new / f"simspine-{SPLIT}.tfrecord-00000-of-00001")) as file:
        for record in records:
            file.write(record)

    def read() -> int:
        return sum(len(clip["times"]) for clip in tfds.as_numpy(theirs.as_dataset(split=SPLIT)))

    if read() != sum(clip.n_frames for clip in held):
        raise AssertionError("tf.data does not read every frame")
    return read


# --- batches ---


def memory(place: DatasetPlace) -> Iterator[Measurement]:
    """Whole epochs of shuffled batches, waiting for the last one."""
    samples = frame_samples(place.clips, rate_hz=None, source="detected")
    sizes = (place.size(BATCH_SIZE, 64), *(place.size(size, 32) for size in BATCH_SIZES[: place.size(3, 1)]))
    ways = {f"{size}": Batches(samples, size) for size in sizes}
    windows = window_samples(place.clips, WINDOW, stride=WINDOW_STRIDE, source="detected")
    ways[f"windows_of_{WINDOW}"] = Batches(windows, place.size(256, 8))
    best = interleaved({name: partial(_epoch, batches) for name, batches in ways.items()}, place.repeats)
    count = sum(leaf[0].nbytes for leaf in _leaves(samples.frames))
    for name, batches in ways.items():
        frames = len(batches) * batches.state.batch_size * (batches.samples.length or 1)
        main = name == str(sizes[0])
        yield Measurement(
            f"dataset/memory_frames_per_s{'' if main else f'/{name}'}",
            frames / best[name],
            place.data,
            f"Batches of {batches.state.batch_size}, {count} bytes a frame.",
        )


def _leaves(tree: object) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def _epoch(batches: Batches) -> None:
    batch = None
    for batch in batches:  # noqa: B007 - the last one is waited for
        pass
    _leaves(batch)[0].block_until_ready()


def images(place: DatasetPlace) -> Iterator[Measurement]:
    """Pictures through Grain, from the built configuration or, where it isn't built, rendered now.

    TensorFlow takes turns with it where it is installed, and has its JPEG files in memory.
    """
    for package in ("cv2", "grain"):
        if importlib.util.find_spec(package) is None:
            raise SkippedError(f"{package} is not installed")
    pictures, origin = _pictures(place)
    size = place.size(PICTURE_BATCH, 2)
    batches = len(pictures) // size

    def epoch() -> None:
        for _ in picture_batches(pictures, size, epochs=1):
            pass

    ways: dict[str, Callable[[], object]] = {"grain": epoch}
    if has_peer := importlib.util.find_spec("tensorflow") is not None:
        ways["tfdata"] = _tfdata_crops(list(pictures), size)
    best = interleaved(ways, place.repeats)
    shape = f"{pictures[0].width}x{pictures[0].height}"
    data = f"synthetic: {len(pictures)} rendered pictures of about {shape} px, {origin}"
    rates = {name: batches * size / seconds for name, seconds in best.items()}
    yield Measurement("dataset/images_per_s", rates["grain"], data, f"Batches of {size}.")
    if not has_peer:
        raise SkippedError("tensorflow is not installed")
    detail = {f"{name}_images_per_s": round(rate, 1) for name, rate in rates.items()}
    ratio = rates["grain"] / rates["tfdata"]
    yield Measurement("dataset/images_vs_tfdata", ratio, data, f"Batches of {size}.", detail)


def _tfdata_crops(pictures: list[Picture], size: int) -> Callable[[], object]:
    """The same crops by tf.data and TensorFlow's own operations, shuffled and on all cores."""
    import tensorflow as tf

    maps = [inverse_map(crop_matrix(*padded_box(picture.box), CROP_SIZE)) for picture in pictures]
    corners = [map_points(onto, [[0, 0], [CROP_SIZE[1] - 1, CROP_SIZE[0] - 1]]) for onto in maps]
    # Rows before columns, as shares of the way from the first pixel's middle to the last one's.
    boxes = [
        (xy / [p.width - 1, p.height - 1])[:, ::-1].ravel() for xy, p in zip(corners, pictures, strict=True)
    ]

    def crop(jpeg: Any, box: Any) -> Any:
        pixels = tf.io.decode_jpeg(jpeg, channels=3)
        return tf.cast(tf.image.crop_and_resize(pixels[None], box[None], [0], CROP_SIZE)[0], tf.uint8)

    jpegs = [picture.jpeg for picture in pictures]
    files: Any = tf.data.Dataset.from_tensor_slices((jpegs, np.array(boxes, np.float32)))
    cropped = files.shuffle(len(pictures)).map(crop, tf.data.AUTOTUNE, deterministic=False)
    batched = cropped.batch(size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    off = np.asarray(crop(jpegs[0], boxes[0]), float) - top_down(pictures[0]).pixels
    if np.abs(off).mean() > CROP_TOLERANCE:
        raise AssertionError("TensorFlow's crop is not ours")
    return lambda: sum(len(batch) for batch in batched.as_numpy_iterator())


def _pictures(place: DatasetPlace) -> tuple[PictureSequence, str]:
    count = place.size(PICTURES, 4)
    if not place.quick:
        with contextlib.suppress(SimspineError):
            return open_pictures("synthetic_images", f"train[:{4 * count}]"), "from the built dataset"
    # In a process of its own: software rendering crashes where TensorFlow has been imported before.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        made = pool.submit(_rendered, count, place.converted).result()
    if isinstance(made, str):
        raise SkippedError(made)
    return pictures_in_memory(made), "in memory"


def _rendered(count: int, model: Path | None) -> list[Picture] | str:
    """Pictures, or why there are none."""
    from simspine_jax.capture.rendering import synthetic_pictures

    place = Workplace(model=model)
    try:
        return [picture for _, picture in synthetic_pictures(place.spine, count=count, seed=0)]
    except (SimspineError, SkippedError) as error:
        return str(error)
