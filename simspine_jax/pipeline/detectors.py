"""Detectors for use: those of a training, and published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from flax import nnx
from numpy.typing import NDArray

from simspine_jax.detection.codecs import Found
from simspine_jax.detection.inference import Detector
from simspine_jax.detection.models import DETECTORS, DetectorModule, PixelOptions
from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.io.files import malformed, read_bytes, shown
from simspine_jax.pipeline.records import digest_of

WEIGHT_SUFFIXES = (".onnx", ".pt", ".pth", ".safetensors")
"""Of published weights."""

Order = Literal["RGB", "BGR"]


@dataclass(frozen=True, eq=False)
class Crops:
    """A batch of crops, and what each of them shows.

    Attributes:
        pixels: uint8 [B h w 3], RGB.
        matrices: [B 2 3], px of the picture to px of the crop.
        views: the camera of each; the last one's is repeated where a batch is filled up.
        frames: the number of each one's frame, likewise.
    """

    pixels: NDArray[np.uint8]
    matrices: NDArray[np.float64]
    views: Sequence[str]
    frames: Sequence[int]


class Finder(Protocol):
    """What finds keypoints in crops."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the crops, px."""
        ...

    @property
    def udp(self) -> bool:
        """How crops are made for it; see `pictures.crop_matrix`."""
        ...

    @property
    def digest(self) -> str:
        """Tells it from all others."""
        ...

    def find(self, crops: Crops) -> Found:
        """Keypoints in px of the crops, and scores."""
        ...


@dataclass(frozen=True, eq=False)
class LoadedDetector:
    """A detector as a `Finder`.

    Attributes:
        detector: itself.
        name: for people.
        digest: of its weights and of how it is used.
    """

    detector: Detector
    name: str
    digest: str

    @property
    def size(self) -> tuple[int, int]:
        """See `Finder`."""
        return self.detector.size

    @property
    def udp(self) -> bool:
        """See `Finder`."""
        return self.detector.codec.udp

    def find(self, crops: Crops) -> Found:
        """See `Finder`."""
        return self.detector(crops.pixels)


def open_detector(
    weights: Path,
    name: str | None = None,
    order: Order | None = None,
    *,
    flip: bool = True,
    note: Callable[[str], None] = print,
) -> LoadedDetector:
    """A detector by its weights.

    Args:
        weights: the folder of a training, or a file of published weights.
        name: of `DETECTORS`; published weights don't say what they are of, and need it.
        order: of the colours that published weights expect; default: RGB.
        flip: whether to test crops and their mirror images.
        note: told of damaged checkpoints and of what was read.

    Raises:
        FileFormatError: there are no such weights, or they can't be read.
        UnknownNameError: there is no such detector.
        SimspineError: a name or an order is given for a training, which says both, or no name for a file.
    """
    if weights.is_dir():
        if name is not None or order is not None:
            option = "--detector" if name is not None else "--order"
            raise SimspineError(
                f"{option} has no effect on {weights}, the folder of a training, which says it itself; it "
                f"goes with a file ({', '.join(WEIGHT_SUFFIXES)})"
            )
        return _trained(weights, flip, note)
    if weights.suffix.lower() not in WEIGHT_SUFFIXES:
        what = f"the ending is {shown(weights.suffix)}" if weights.exists() else "there is no such folder"
        raise malformed(
            weights, None, what, f"the folder of a training, or a file in {', '.join(WEIGHT_SUFFIXES)}"
        )
    if not weights.exists():
        raise malformed(weights, None, "there is no such file", "published weights")
    if name is None:
        raise SimspineError(
            f"{weights} doesn't say which detector it is of; give --detector, one of {', '.join(DETECTORS)}"
        )
    if name not in DETECTORS:
        raise UnknownNameError("Detector", name, "the package", DETECTORS)
    return _published(weights, name, order or "RGB", flip, note)


def _trained(folder: Path, flip: bool, note: Callable[[str], None]) -> LoadedDetector:
    from simspine_jax.training.detectors import load_trained_detector
    from simspine_jax.training.loop import RUN_FILE

    run, model, steps = load_trained_detector(folder, note=note)
    detector = Detector.of(model, run.model, run.pixels, flip=flip)
    digest = digest_of(read_bytes(folder / RUN_FILE), repr((steps, flip)).encode(), *_weights(model))
    return LoadedDetector(detector, f"{run.name} after {steps} steps", digest)


def _weights(model: DetectorModule) -> Iterator[bytes]:
    """Their bytes in the order of their names: two imports have the same run and number of steps."""
    for _, leaf in sorted(nnx.to_flat_state(nnx.state(model)), key=lambda pair: str(pair[0])):
        yield np.asarray(leaf.get_value()).tobytes()


def _published(
    weights: Path, name: str, order: Order, flip: bool, note: Callable[[str], None]
) -> LoadedDetector:
    from torch2flax.published import convert_detector

    digest = digest_of(read_bytes(weights), repr((name, order, flip)).encode())
    converted = convert_detector(name, weights)
    note(f"{weights}: {converted.matched}; colours as {order}")
    detector = Detector.of(converted.model, DETECTORS[name], PixelOptions(order), flip=flip)
    return LoadedDetector(detector, name, digest)
