"""Detectors' networks: sizes, agreement with PyTorch, and speed beside PyTorch and ONNX Runtime."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from benchmarks.metrics import Measurement, SkippedError, interleaved
from benchmarks.workplace import SEED, Workplace
from simspine_jax.detection.cspnext import CSPNeXtOptions
from simspine_jax.detection.hrnet import HRNetOptions
from simspine_jax.detection.inference import network_outputs
from simspine_jax.detection.models import DETECTORS, DetectorModule, DetectorOptions, build_detector
from simspine_jax.detection.rtmpose import RTMPoseOptions
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.lifting.simple_baseline import count_parameters
from simspine_jax.training.detector_evaluation import BATCH

PUBLISHED_M = {"spinepose_s": "5.975", "spinepose_m": "14.340", "spinepose_l": "28.664",
               "hrnet_w32": "28.54", "vitpose_b": "90.0"}  # fmt: skip
"""Millions of weights with 37 keypoints, as they are printed."""

AGREEMENT = 1e-4  # of outputs through up to a hundred layers in float32, as a share of the largest

QUICK_SIZE = (64, 96)
QUICK: Mapping[str, DetectorOptions] = {
    **dict.fromkeys(DETECTORS, RTMPoseOptions(CSPNeXtOptions(0.1, 0.25), size=QUICK_SIZE)),
    "hrnet_w32": HRNetOptions(width=8, modules=(1, 1, 1), size=QUICK_SIZE),
    "vitpose_b": ViTPoseOptions(width=32, layers=2, heads=2, size=QUICK_SIZE),
}
"""Small models that try the code."""


def options_of(place: Workplace, model: str) -> DetectorOptions:
    """Sizes of one of `DETECTORS` in this run."""
    return QUICK[model] if place.quick else DETECTORS[model]


def parameters(place: Workplace, model: str) -> Iterator[Measurement]:
    """Weights of a detector, from its shapes alone."""
    del place
    count = count_parameters(nnx.eval_shape(partial(build_detector, DETECTORS[model]))) / 1e6
    published = PUBLISHED_M.get(model)
    data, key = "none: shapes of the model", f"detection/{model}/params_m"
    if published is None:
        yield Measurement(
            key, count, data, "None is published with 37 keypoints; the sizes are SpinePose-m's."
        )
        return
    digits = len(published.partition(".")[2])
    failed = "" if f"{count:.{digits}f}" == published else f"it is {count:.4f}; published is {published}"
    yield Measurement(key, count, data, f"Published is {published}.", failed=failed)


# --- a detector here and in PyTorch ---

Outputs = list[NDArray[np.float32]]
"""Of a detector, each with the places that a keypoint may be at on the last axis."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A detector here and in PyTorch, with the same random weights and statistics of batches.

    Attributes:
        structure: of ours.
        state: its weights.
        module: theirs.
    """

    structure: nnx.GraphDef[DetectorModule]
    state: Any
    module: Any

    def ours(self, pictures: NDArray[np.float32]) -> Outputs:
        """Of pictures ``[B h w 3]``."""
        found = jax.tree.map(np.asarray, network_outputs(self.structure, self.state, jnp.asarray(pictures)))
        if isinstance(found, tuple):
            return list(found)
        return [np.moveaxis(found.reshape(len(found), -1, found.shape[-1]), -1, 1)]

    def theirs(self, pictures: NDArray[np.float32]) -> Outputs:
        """The same by PyTorch."""
        import torch  # pyright: ignore[reportMissingImports]

        found = _inferred(self.module, torch.from_numpy(channels_first(pictures)))
        return as_ours([x.numpy() for x in (found if isinstance(found, tuple) else (found,))])


def _inferred(module: Any, pictures: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    with torch.inference_mode():
        return module(pictures)


def as_ours(found: Sequence[NDArray[np.float32]]) -> Outputs:
    """Of ``[B K w]`` and ``[B K h]``, or of maps ``[B K h w]``."""
    return [x.reshape(*x.shape[:2], -1) for x in found]


def channels_first(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """As PyTorch and ONNX take them."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


def make_pair(options: DetectorOptions) -> Pair:
    """With weights of `detection_references.peer`.

    Raises:
        SkippedError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise SkippedError("PyTorch is not installed")
    from torch2flax.detectors import load_detector

    from benchmarks.detection_references import peer

    module = peer(options, SEED)
    model = nnx.eval_shape(partial(build_detector, options))
    load_detector(model, {name: value.numpy() for name, value in module.state_dict().items()})
    return Pair(*nnx.split(model), module)


def noise(count: int, options: DetectorOptions) -> tuple[NDArray[np.float32], str]:
    """Pictures of random numbers ``[B h w 3]``, and what they are in words."""
    height, width = options.size
    pictures = np.random.default_rng(SEED).normal(size=(count, height, width, 3)).astype(np.float32)
    what = f"{count} x {height}x{width} random numbers as pictures"
    return pictures, f"synthetic: {what}, random weights and statistics of batches, seed {SEED}"


def apart(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference as a share of the largest output."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def parity(place: Workplace, model: str) -> Iterator[Measurement]:
    """Outputs of a detector beside PyTorch's."""
    options = options_of(place, model)
    pair, (pictures, data) = make_pair(options), noise(1, options)
    ours, theirs = pair.ours(pictures), pair.theirs(pictures)
    moved = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(ours, theirs, strict=True))
    detail = {"maxima_elsewhere": moved}
    yield Measurement(f"detection/{model}/parity_rel", apart(ours, theirs), data, f"{_pytorch()}.", detail)


def _pytorch() -> str:
    import torch  # pyright: ignore[reportMissingImports]

    return f"PyTorch {torch.__version__}"


# --- speed ---

Ways = dict[str, Callable[[], object]]
PEERS = {"pytorch": ("pytorch", "pytorch_channels_last"), "onnxruntime": ("onnxruntime",)}
"""Ways of each to compute the same, of which the fastest counts."""


def speeds(place: Workplace, model: str) -> Iterator[Measurement]:
    """Pictures per second, and over the peers', who take turns with ours."""
    options, batch = options_of(place, model), place.size(BATCH, 2)
    pictures, data = noise(batch, options)
    missing = missing_peers()
    if "pytorch" in missing:
        network, peers = nnx.split(build_detector(options)), {}
    else:
        pair = make_pair(options)
        network, peers = (pair.structure, pair.state), _peers(place, pair, pictures, missing)
    held = jax.device_put(pictures)
    best = interleaved(
        {"jax": lambda: jax.block_until_ready(network_outputs(*network, held)), **peers}, place.repeats
    )
    detail = {"images_per_s": {name: round(batch / seconds, 2) for name, seconds in best.items()}}
    note, key = f"Batches of {batch}, without flip test and decoding.", f"detection/{model}"
    yield Measurement(f"{key}/images_per_s", batch / best["jax"], data, note, detail)
    for name in [name for name in PEERS if name not in missing]:
        ratio = min(best[way] for way in PEERS[name]) / best["jax"]
        yield Measurement(f"{key}/vs_{name}", ratio, data, f"{note} {_about(name)}", detail)
    if missing:
        raise SkippedError("; ".join(dict.fromkeys(missing.values())))


def _about(peer: str) -> str:
    if peer == "pytorch":
        return f"{_pytorch()}, eager, in inference mode, the faster of two layouts in memory."
    import onnxruntime  # pyright: ignore[reportMissingImports]

    return f"ONNX Runtime {onnxruntime.__version__} on PyTorch's export, normalisations folded."


def missing_peers() -> dict[str, str]:
    """Those of `PEERS` that can't be measured here, and why."""
    if jax.default_backend() != "cpu":
        why = f"JAX runs on a {jax.default_backend()} here and the peers on the CPU"
        return dict.fromkeys(PEERS, f"{why}; JAX_PLATFORMS=cpu compares them")
    if importlib.util.find_spec("torch") is None:
        return dict.fromkeys(PEERS, "PyTorch is not installed")
    absent = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    return {"onnxruntime": f"{' and '.join(absent)} can't be imported"} if absent else {}


def _peers(place: Workplace, pair: Pair, pictures: NDArray[np.float32], missing: Mapping[str, str]) -> Ways:
    """Ways of the peers, on as many threads as there are cores.

    Raises:
        AssertionError: they don't give our outputs.
    """
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(_cores())
    inputs, wanted = channels_first(pictures), pair.ours(pictures)
    module, tensor, last = copy.deepcopy(pair.module), torch.from_numpy(inputs), torch.channels_last
    ways: Ways = {
        "pytorch": partial(_inferred, pair.module, tensor),
        "pytorch_channels_last": partial(
            _inferred, module.to(memory_format=last), tensor.to(memory_format=last)
        ),
    }
    _require_same(pair.theirs(pictures), wanted, "PyTorch's")
    if "onnxruntime" not in missing:
        session = _session(pair.module, place.folder / "network.onnx", inputs.shape[2:])
        ways["onnxruntime"] = partial(session.run, None, {"input": inputs})
        _require_same(as_ours(session.run(None, {"input": inputs})), wanted, "ONNX Runtime's")
    return ways


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session(module: Any, path: Path, size: tuple[int, int]) -> Any:
    """ONNX Runtime on what PyTorch exports."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    from benchmarks.detection_references import export_onnx

    export_onnx(module, path, size)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _cores()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _require_same(theirs: Outputs, ours: Outputs, whose: str) -> None:
    if not apart(ours, theirs) <= AGREEMENT:
        raise AssertionError(f"{whose} outputs are not ours")
