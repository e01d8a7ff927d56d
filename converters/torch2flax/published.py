"""Published weights of detectors, whatever file they are in, as models of this program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flax import nnx

from simspine_jax.detection.models import DETECTORS, DetectorModule, DetectorOptions, build_detector
from simspine_jax.detection.rtmpose import RTMPose, RTMPoseOptions
from simspine_jax.errors import FileFormatError, UnknownNameError
from simspine_jax.io.files import place
from torch2flax.detectors import Matched, fitting_keypoints, has_names_of, load_detector
from torch2flax.onnx_graph import OnnxGraph, onnx_agreement, read_onnx, rtmpose_weights
from torch2flax.reading import StateDict, read_state_dict

MOST_APART = 1e-3
"""Share of the largest output by which a model may differ from ONNX Runtime's before it counts as another;
float32's roundings alone give some 1e-6, weights that are exchanged some 1e-1."""


@dataclass(frozen=True, eq=False)
class Converted:
    """A detector with published weights.

    Attributes:
        model: ready for use.
        matched: what was loaded.
        folded: whether normalisations were folded into convolutions, as exporters to ONNX do.
        apart: largest difference from the outputs of ONNX Runtime, as a share of the largest output; None
            where it was not asked.
    """

    model: DetectorModule
    matched: Matched
    folded: bool = False
    apart: float | None = None


def convert_detector(name: str, path: Path) -> Converted:
    """The detector of a name with the weights of a file.

    Args:
        name: one of `DETECTORS`.
        path: ``.onnx``, ``.safetensors``, or a checkpoint of PyTorch.

    Raises:
        UnknownNameError: there is no such detector.
        FileFormatError: the file can't be read, or its weights are another detector's, which is named if it
            is known.
        SimspineError: a package that reads such files is not installed.
    """
    if name not in DETECTORS:
        raise UnknownNameError("Detector", name, "the package", DETECTORS)
    is_graph = path.suffix.lower() == ".onnx"
    content, source = read_onnx(path) if is_graph else read_state_dict(path), place(path)
    model = _empty(DETECTORS[name])
    try:
        weights, folded = _weights(content, model, source)
        matched = load_detector(model, weights, source)
    except FileFormatError:
        found = _fitting_detector(content, source, name, model)
        if found is None:
            raise
        raise FileFormatError(_advice(source, *found)) from None
    apart = None
    if isinstance(model, RTMPose) and isinstance(content, OnnxGraph):
        apart = onnx_agreement(path, model)
        if apart is not None and not apart <= MOST_APART:
            raise FileFormatError(
                f"{source}: ONNX Runtime's outputs differ from the converted {name}'s by {apart:.0e} of the "
                f"largest; valid is an RTMPose, for which this is below {MOST_APART:.0e}"
            )
    return Converted(model, matched, folded, apart)


def _fitting_detector(
    content: StateDict | OnnxGraph, source: str, wanted: str, empty: DetectorModule
) -> tuple[str, int] | None:
    """The first detector whose weights these are, but for the number of keypoints, and this number.

    Args:
        content: of a file.
        source: what it is called.
        wanted: the detector that is tried first, as some have the same weights.
        empty: this detector without numbers, as building takes seconds.

    Returns:
        None where they are of none.
    """
    tried: set[DetectorOptions] = set()
    for name, options in ((wanted, DETECTORS[wanted]), *DETECTORS.items()):
        is_graph = isinstance(content, OnnxGraph)
        kind = isinstance(options, RTMPoseOptions) if is_graph else has_names_of(options, content)
        if not kind or options in tried:
            continue
        tried.add(options)
        model = empty if options == DETECTORS[wanted] else _empty(options)
        try:
            count = fitting_keypoints(model, _weights(content, model, source)[0])
        except FileFormatError:
            continue
        if count is not None:
            return name, count
    return None


def _weights(content: StateDict | OnnxGraph, model: DetectorModule, source: str) -> tuple[StateDict, bool]:
    """Weights by published names, and whether normalisations were folded into convolutions."""
    if not isinstance(content, OnnxGraph):
        return content, False
    if not isinstance(model, RTMPose):
        raise FileFormatError(
            f"{source} is an ONNX file, of which the weights of SpinePose and RTMPose can be read; valid for "
            f"{type(model).__name__} is a checkpoint of PyTorch or .safetensors"
        )
    return rtmpose_weights(content, model)


def _empty(options: DetectorOptions) -> DetectorModule:
    """A model of shapes without numbers."""
    return nnx.eval_shape(partial(build_detector, options))


def _advice(source: str, name: str, count: int) -> str:
    valid = DETECTORS[name].keypoints
    if count != valid:
        return (
            f"{source} holds the weights of {name} with {count} keypoints; valid are the {valid} of the "
            "skeleton"
        )
    return f"{source} holds the weights of {name}; valid is the detector {name}"
