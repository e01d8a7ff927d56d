"""What the training of a detector is: a frozen description, as `run.Run` is of a lifter's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from simspine_jax.detection.curriculum import STAGES, SWITCH_SHARES, Curriculum
from simspine_jax.detection.hrnet import HRNetOptions
from simspine_jax.detection.models import DetectorOptions, PixelOptions
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.io.files import PathLike
from simspine_jax.training.run import Expected, check_counts, load_config, read_run_as, write_run

MODELS: Mapping[str, type[Any]] = {
    "rtmpose": RTMPoseOptions,
    "hrnet": HRNetOptions,
    "vitpose": ViTPoseOptions,
}
"""Kinds of detectors, as run files call them, and their options."""


PUBLISHED = PixelOptions()
"""What most published weights see: RGB, normalised as for ImageNet."""


@dataclass(frozen=True)
class PictureOptions:
    """What a detector is trained on: one set of pictures, or two that are mixed.

    Attributes:
        config: of a built dataset, one of pictures.
        split: of it, or a part in TensorFlow Datasets' words, such as ``train[:10%]``.
        source: another set in its place, in the words of `datasets.sources`, such as a COCO file and its
            folder.
        second: a set that is mixed in, in the same words; None for none.
        mode: of mixing; see `datasets.mixing.MixOptions`, the three of them.
        share: of the second set.
        fraction: of the second set that is used.
    """

    config: str = "synthetic_images"
    split: str = "train"
    source: str | None = None
    second: str | None = None
    mode: Literal["batch", "epoch"] = "batch"
    share: float = 0.5
    fraction: float = 0.02


@dataclass(frozen=True)
class CurriculumOptions:
    """Stages of augmentation one after the other; see `detection.curriculum`.

    Attributes:
        stages: names, one or more.
        switches: share of the run after which each stage but the first begins: epoch 210 of 420 is 0.5.
    """

    stages: tuple[Literal["hard", "medium", "easy", "plain"], ...] = ("hard", "medium", "easy")
    switches: tuple[float, ...] = SWITCH_SHARES

    def built(self) -> Curriculum:
        """The curriculum itself.

        Raises:
            SimspineError: the switches aren't one less than the stages, or don't rise.
        """
        return Curriculum(tuple(STAGES[name] for name in self.stages), self.switches)


@dataclass(frozen=True)
class DetectorOptimiser:
    """Adam with weight decay apart from gradients (AdamW) and its learning rate.

    Attributes:
        learning_rate: after warming up.
        weight_decay: on matrices and kernels; not on biases, normalisation and other vectors. With 0 it is
            Adam.
        schedule: ``steps`` for a tenth at each of ``drops``, ``cosine`` from ``begin`` down to ``final``.
        drops: shares of the run.
        begin: share of the run after which the cosine begins.
        final: share of the learning rate at the end of ``cosine``.
        warmup: steps in which the learning rate rises.
        warmup_from: share of the learning rate at the first step.
        clip: largest norm of a gradient; None for no limit.
        layer_decay: what the learning rate of each layer of a transformer is of the next one's; None for the
            same everywhere.
    """

    learning_rate: float
    weight_decay: float = 0.0
    schedule: Literal["steps", "cosine"] = "cosine"
    drops: tuple[float, ...] = ()
    begin: float = 0.5
    final: float = 0.05
    warmup: int = 1000
    warmup_from: float = 1e-5
    clip: float | None = None
    layer_decay: float | None = None


@dataclass(frozen=True)
class DetectorRun:
    """A training of a detector from start to end.

    Attributes:
        name: of its folder.
        model: which detector, and its sizes.
        expected: cost and score.
        optimiser: how it learns.
        pixels: what it sees of a crop; a part of its weights.
        data: what it learns from, where nothing else is given.
        curriculum: augmentation.
        steps: of the optimiser.
        batch_size: crops of a step, over all devices.
        seed: of the first weights, the order of the data, augmentation and dropped paths.
        average: of the weights and of the statistics of batches over steps: share that is kept in each; None
            for none.
        compute: arithmetic of hidden layers; weights are always float32.
        log_every: steps.
        save_every: steps.
        keep: checkpoints.

    Raises:
        SimspineError: a count, the average, the curriculum or the layer decay can't be.
    """

    name: str
    model: DetectorOptions
    expected: Expected
    optimiser: DetectorOptimiser
    pixels: PixelOptions = PUBLISHED
    data: PictureOptions = PictureOptions()
    curriculum: CurriculumOptions = CurriculumOptions()
    steps: int = 10_000
    batch_size: int = 64
    seed: int = 0
    average: float | None = 0.9998
    compute: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 50
    save_every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        check_counts(self)
        self.curriculum.built()
        decay = self.optimiser.layer_decay
        if decay is not None and not (isinstance(self.model, ViTPoseOptions) and 0 < decay <= 1):
            raise SimspineError(
                f"optimiser.layer_decay of the run {self.name} is {decay}; valid are 0 to 1 for a "
                "transformer, and none for others"
            )


def load_detector_run(config: str) -> DetectorRun:
    """A detector's run by the name of a config of the package, or by the path of a Python file.

    Raises:
        UnknownNameError: there is no such config.
        FileFormatError: the file can't be run, or has no `DetectorRun` called RUN.
    """
    run = load_config(config)
    if not isinstance(run, DetectorRun):
        raise FileFormatError(f"{config}: its RUN is none of a detector; valid is RUN = DetectorRun(...)")
    return run


def write_detector_run(path: PathLike, run: DetectorRun) -> None:
    """Writes the run as JSON."""
    write_run(path, run, MODELS)


def read_detector_run(path: PathLike) -> DetectorRun:
    """A run that `write_detector_run` wrote.

    Raises:
        FileFormatError: it is missing, damaged, of another version of this program, or none of a detector.
    """
    return read_run_as(path, DetectorRun, MODELS, "a detector")
