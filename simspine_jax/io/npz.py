"""NPZ files of plain arrays: read without pickle, written so that equal arrays give equal bytes."""

from __future__ import annotations

import io
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from simspine_jax.errors import one_line
from simspine_jax.io.cells import first_duplicate
from simspine_jax.io.files import PathLike, atomic_write, malformed, read_bytes

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first moment that a ZIP file can name."""

_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, KeyError, TypeError,
    RuntimeError, NotImplementedError, OverflowError, SyntaxError, MemoryError, tokenize.TokenError,
    UserWarning,
)  # fmt: skip
"""What zipfile and NumPy raise for damaged, encrypted or foreign content."""


def read_npz(path: PathLike, *, without: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Read the arrays of an NPZ file; they are read-only, and nothing in the file is ever unpickled.

    Args:
        path: of the file.
        without: names of arrays to pass over, such as a pickled one.

    Raises:
        FileFormatError: it is no such file, it is damaged, or an array holds Python objects.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        with zipfile.ZipFile(content) as archive, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # NumPy's at a header that it has to guess
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if (twice := first_duplicate(names)) is not None:
                raise ValueError(f"the array {twice!r} is there twice")
            members = dict(zip(names, archive.namelist(), strict=True))
            return {
                key: _array(key, archive.read(name)) for key, name in members.items() if key not in without
            }
    except _DAMAGE as error:
        what = f"it is not an NPZ file of plain arrays ({one_line(str(error), 120)})"
        raise malformed(path, None, what, "an NPZ file") from None


def write_npz(path: PathLike, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an NPZ file, uncompressed and without the time of writing; objects are pickled as NumPy does.

    Compression would save a tenth of measured numbers, and its bytes differ between versions of zlib.

    Raises:
        SimspineError: the file can't be written.
    """
    with atomic_write(path, binary=True) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array(stream, np.ascontiguousarray(array).reshape(np.shape(array)))


def _array(key: str, content: bytes) -> NDArray[Any]:
    """An array from the bytes of an NPY file, after its header and its length have been compared."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"the array {key!r} has the NPY version {version}")
    if dtype.hasobject:
        raise ValueError(f"the array {key!r} holds Python objects")
    count, start = 1, stream.tell()
    for size in shape:
        count *= size
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - start:
        raise ValueError(f"the array {key!r} has {len(content) - start} bytes for the shape {shape}")
    if not count or not dtype.itemsize:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if fortran else "C")
