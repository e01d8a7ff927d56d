"""Training detectors on the loop of the lifters, and what they are afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from simspine_jax.arrays import Array
from simspine_jax.datasets import (
    BatchState,
    CropBatch,
    PictureSequence,
    RecordSequence,
    open_pictures,
    picture_batches,
)
from simspine_jax.datasets.mixing import MixOptions, PictureMix
from simspine_jax.datasets.picture_batches import Cropper
from simspine_jax.datasets.sources import SourceText, open_source
from simspine_jax.detection.layers import Norm
from simspine_jax.detection.models import DetectorModule, build_detector, codec_of
from simspine_jax.detection.photometric import sample_keys
from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.io.files import PathLike, make_folder, place
from simspine_jax.training.checkpoints import FOLDER, Checkpoints, Note
from simspine_jax.training.detector_run import (
    DetectorRun,
    load_detector_run,
    read_detector_run,
    write_detector_run,
)
from simspine_jax.training.detector_step import initial_detector_state, make_detector_step
from simspine_jax.training.loop import RUN_FILE, Learner, Progress, Trained, check_same, train_learner
from simspine_jax.training.state import DATA_AXIS, TrainState, assembled, check_batch, data_mesh

__all__ = [
    "CropIterator",
    "CropSource",
    "DetectorRun",
    "keep_detector",
    "load_detector_run",
    "load_trained_detector",
    "open_crops",
    "train_detector",
]


class CropIterator(Protocol):
    """Batches without end, which can be gone on with."""

    def __next__(self) -> CropBatch:
        """The next batch."""
        ...

    def get_state(self) -> Any:
        """JSON that tells the next batch."""
        ...

    def set_state(self, state: Any) -> None:
        """Goes to the batch that a state tells."""
        ...


class CropSource(Protocol):
    """What a detector is trained on: pictures of one set, or of several that are mixed."""

    @property
    def count(self) -> int:
        """Crops of an epoch."""
        ...

    def batches(self, batch_size: int, seed: int, crop: Cropper) -> CropIterator:
        """Shuffled batches from the first on; their order doesn't depend on ``crop``."""
        ...


@dataclass(frozen=True, eq=False)
class OneSet:
    """The `CropSource` of one set of pictures."""

    pictures: PictureSequence

    @property
    def count(self) -> int:
        """Of the pictures."""
        return len(self.pictures)

    def batches(self, batch_size: int, seed: int, crop: Cropper) -> CropIterator:
        """By `datasets.picture_batches`."""
        return picture_batches(self.pictures, batch_size, seed, crop=crop)


def open_crops(
    run: DetectorRun, data_dir: PathLike | None = None, *, note: Note = print
) -> PictureSequence | CropSource:
    """What a run is trained on, for `train_detector`.

    Args:
        run: says what.
        data_dir: of built datasets; None for `records.default_data_dir`.
        note: told what is left out of it.

    Raises:
        SimspineError: a set can't be opened or mixed.
    """
    options = run.data

    def opened(text: str) -> PictureSequence:
        return open_source(SourceText.of(text), "train", data_dir=data_dir, note=note)

    first = (
        open_pictures(options.config, options.split, data_dir)
        if options.source is None
        else opened(options.source)
    )
    if options.second is None:
        return first
    mix = MixOptions(options.mode, options.share, options.fraction)
    return PictureMix.of(first, opened(options.second), mix, run.seed)


class DetectorLearner:
    """A detector on crops that the host makes; see `loop.Learner`."""

    def __init__(self, run: DetectorRun, source: CropSource, structure: nnx.GraphDef[DetectorModule]) -> None:
        self.structure, self.mesh = structure, data_mesh()
        check_batch(run.batch_size, source.count, self.mesh)
        self._run, self._source, self._curriculum = run, source, run.curriculum.built()
        self._step = make_detector_step(structure, run, self.mesh)
        self._done, self._stage, self._last = 0, -1, None
        self._batches: CropIterator | None = None

    def begin(self, done: int, place: Any) -> None:
        """See `Learner`."""
        self._done = done
        self._open(place)

    def _open(self, place: Any) -> None:
        """Opens the batches of the stage that the next step is in, from the place that is told."""
        self._stage = self._curriculum.number(self._done / self._run.steps)
        model, stage = self._run.model, self._curriculum.stages[self._stage]
        crop = stage.crop(model.size, udp=codec_of(model).udp)
        self._batches = self._source.batches(self._run.batch_size, self._run.seed, crop)
        if place is not None:
            self._batches.set_state(place)

    def step(self, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """See `Learner`."""
        assert self._batches is not None
        if self._curriculum.number(self._done / self._run.steps) != self._stage:
            self._open(self._batches.get_state())
        batch = next(self._batches)
        shared = NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))
        parts = (batch.pixels, batch.keypoints, batch.labelled, batch.index)
        pixels, keypoints, labelled, index = jax.device_put(parts, shared)
        # A crop that comes again does so in another step, which is all that keys need of an epoch.
        keys = sample_keys(self._run.seed, self._done, index)
        crops = self._curriculum.stages[self._stage].augment(pixels, keys)
        # No more than a step waits for the device, or crops would fill the memory.
        jax.block_until_ready(self._last)
        state, told = self._step(state, crops, keypoints, labelled)
        self._done, self._last = self._done + 1, told["loss"]
        return state, told

    def data(self, done: int) -> BatchState:
        """See `Learner`."""
        run, count = self._run, self._source.count
        epoch, crop = divmod(done * run.batch_size, count)
        return BatchState(run.seed, epoch, crop // run.batch_size, count, run.batch_size)

    def place(self) -> Any:
        """See `Learner`."""
        assert self._batches is not None
        return self._batches.get_state()


def train_detector(
    run: DetectorRun,
    source: PictureSequence | CropSource,
    folder: Path,
    *,
    start: Path | None = None,
    progress: Progress | None = None,
    note: Note = print,
) -> Trained[DetectorModule]:
    """Trains, or goes on with a training that was stopped, which ends with the same numbers.

    Args:
        run: what to train, and how.
        source: of crops.
        folder: gets ``run.json``, checkpoints and curves.
        start: folder of a training whose weights to begin with; None for random ones. A training that goes
            on has its own.
        progress: told about steps and losses.
        note: told of damaged checkpoints.

    Raises:
        SimspineError: the folder holds another run or can't be written, the loss is no number any more, the
            data don't do, or the weights to begin with are of another detector.
    """
    make_folder(folder)
    first = None
    if (folder / RUN_FILE).exists():
        check_same(folder, read_detector_run(folder / RUN_FILE), run)
    elif start is not None:
        # Before the run is written: weights that don't do leave no folder that holds another run.
        first = _begun_with(start, run, note)
    write_detector_run(folder / RUN_FILE, run)
    crops = OneSet(source) if isinstance(source, RecordSequence) else source

    def begun() -> tuple[Learner, TrainState]:
        model = first
        if model is None:
            model = _built(run) if start is None else _begun_with(start, run, note)
        structure, state = initial_detector_state(model, run)
        return DetectorLearner(run, crops, structure), state

    return train_learner(run, begun, folder, progress=progress, note=note)


def _built(run: DetectorRun) -> DetectorModule:
    dtype = jnp.dtype(run.compute) if run.compute != "float32" else None
    return build_detector(run.model, dtype=dtype, seed=run.seed)


def _folded(model: DetectorModule) -> bool:
    """Whether the model's normalisations do nothing at all."""
    norms = [part for _, part in nnx.iter_modules(model) if isinstance(part, Norm)]
    return (
        bool(norms)
        and all(bool((norm.mean[...] == 0).all()) and bool((norm.scale[...] == 1).all()) for norm in norms)
        and any(bool((norm.bias[...] != 0).any()) for norm in norms)
    )


def _begun_with(folder: Path, run: DetectorRun, note: Note) -> DetectorModule:
    """The run's own detector with the weights of another training."""
    kept, other, _ = load_trained_detector(folder, note=note)
    if kept.pixels != run.pixels:
        raise SimspineError(
            f"{place(folder)} holds a detector that sees {kept.pixels} and the run {run.name} sees "
            f"{run.pixels}; valid are weights that see the same"
        )
    if _folded(other):
        raise SimspineError(
            f"{place(folder)} holds weights whose normalisations were folded into convolutions, as those of "
            "ONNX files are; in a training they would be normalised away. Valid are weights of a training or "
            "of a PyTorch checkpoint"
        )
    model = _built(run)
    wanted, given = (dict(nnx.to_flat_state(nnx.state(m))) for m in (model, other))
    shapes = [{path: leaf.get_value().shape for path, leaf in s.items()} for s in (wanted, given)]
    if odd := [path for path in {**shapes[0], **shapes[1]} if shapes[0].get(path) != shapes[1].get(path)]:
        name = ".".join(map(str, odd[0]))
        raise SimspineError(
            f"{place(folder)} holds another detector than the run {run.name}: {len(odd)} of its arrays have "
            f"another shape, such as {name}; valid are weights of the same detector and size of crops"
        )
    nnx.update(model, nnx.state(other))
    return model


def keep_detector(run: DetectorRun, model: DetectorModule, folder: Path, *, note: Note = print) -> None:
    """Writes a detector that was not trained here as the first checkpoint of a training.

    Args:
        run: that it belongs to.
        model: with its weights.
        folder: of the training; it must not hold another.
        note: told of damaged checkpoints.

    Raises:
        SimspineError: the folder holds a training or can't be written.
    """
    make_folder(folder)
    if (folder / RUN_FILE).exists():
        raise SimspineError(f"{place(folder)} holds a training; valid is a new folder")
    write_detector_run(folder / RUN_FILE, run)
    checkpoints = Checkpoints(folder / FOLDER, keep=run.keep, note=note)
    state = initial_detector_state(model, run)[1]
    checkpoints.save(state, BatchState(run.seed, 0, 0, 0, run.batch_size))
    checkpoints.close()


def load_trained_detector(folder: Path, *, note: Note = print) -> tuple[DetectorRun, DetectorModule, int]:
    """A trained detector by the folder of its training, with its run and how many steps it was trained.

    Args:
        folder: of the training.
        note: told of damaged checkpoints.

    Raises:
        FileFormatError: there is no run of a detector or no good checkpoint.
    """
    run = read_detector_run(folder / RUN_FILE)
    structure, like = shapes_of(run)
    checkpoints = Checkpoints(folder / FOLDER, keep=run.keep, read_only=True, note=note)
    restored = checkpoints.restore(like)
    checkpoints.close()
    if restored is None:
        raise FileFormatError(
            f"{place(folder)}: it has no checkpoint yet; valid is a training that saved one"
        )
    return run, assembled(structure, restored), int(restored.step)


def shapes_of(run: DetectorRun) -> tuple[nnx.GraphDef[DetectorModule], TrainState]:
    """A state of the run as shapes, without its numbers, and the model's structure."""
    abstract = nnx.eval_shape(lambda: _built(run))
    found: list[nnx.GraphDef[DetectorModule]] = []

    def state(model: DetectorModule) -> TrainState:
        structure, whole = initial_detector_state(model, run)
        found.append(structure)
        return whole

    shapes = jax.eval_shape(state, abstract)
    return found[0], shapes
