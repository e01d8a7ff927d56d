"""State dicts of PyTorch, read without running anything that is in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from simspine_jax.errors import FileFormatError, MissingDependencyError, SimspineError, one_line
from simspine_jax.io.files import place, read_bytes

StateDict = Mapping[str, NDArray[Any]]

WRAPPERS: tuple[str, ...] = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep their state dict."""

PREFIXES: tuple[str, ...] = ("module.",)
"""What training on several devices puts before all names."""


_DTYPES: Mapping[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""Types that safetensors knows, by its names."""


def read_state_dict(path: Path) -> StateDict:
    """The weights in a ``.safetensors`` file, or a checkpoint of PyTorch, by name.

    Args:
        path: of the file; PyTorch's are opened with ``weights_only``, which refuses everything but numbers.

    Raises:
        FileFormatError: the file is missing, damaged, or holds no state dict.
        SimspineError: PyTorch or safetensors is needed and not installed.
    """
    read_bytes(path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SimspineError(
            f"Reading {path.name} needs the package 'torch', which is not installed; install it with: pip "
            "install torch, or give the weights as .safetensors"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader fails in all kinds of ways on damaged files
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise FileFormatError(
                f"{place(path)}: it is damaged, or holds Python objects beside its tensors, as MMEngine's "
                "epochs do, and these could run code when read; valid is its state_dict alone, saved by "
                "PyTorch or as .safetensors"
            ) from None
        raise FileFormatError(
            f"{place(path)}: it can't be read as weights ({one_line(str(error), 120)}); valid is a "
            "checkpoint of PyTorch that holds tensors alone, or .safetensors"
        ) from None
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(v, torch.Tensor) for v in found.values()):
        raise FileFormatError(f"{place(path)}: it holds no tensors by name; valid is a state dict")
    return _plain({n: v.detach().float().numpy() for n, v in found.items() if isinstance(v, torch.Tensor)})


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError, deserialize  # type: ignore[import-not-found]
    except ImportError:
        raise MissingDependencyError("safetensors", "weights", f"Reading {path.name}") from None
    try:
        return _plain({name: _values(tensor) for name, tensor in deserialize(read_bytes(path))})
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"{place(path)}: it can't be read ({one_line(str(error), 120)}); valid is a whole "
            ".safetensors file"
        ) from None


def _values(tensor: Mapping[str, Any]) -> NDArray[Any]:
    """A tensor's; those that are halves are float32 here."""
    values = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return values.astype(np.float32) if tensor["dtype"] in ("F16", "BF16") else values


def _plain(weights: StateDict) -> StateDict:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
