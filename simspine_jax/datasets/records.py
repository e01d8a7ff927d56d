"""Records by their number, from a built dataset or from memory; TensorFlow is never imported.

A record is a serialised ``tf.train.Example`` whose features have the names of a dataclass's fields. Their
schema tells the kind and the shape of each, so a record is read field by field, and only those asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from simspine_jax.errors import FileFormatError, MissingDependencyError, SimspineError, UnknownNameError
from simspine_jax.io.files import PathLike, place
from simspine_jax.schema import Dimension, RecordField, fields_of

DATASET = "simspine"
"""What the dataset is called by TensorFlow Datasets."""

READ_AHEAD = 4
"""Records that a stream holds ready."""

READERS = 2
"""Threads of a stream: files are read outside of Python's lock."""

LOOKED_AT = 16
"""Records, spread evenly, that a digest has in full."""

Record = TypeVar("Record")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class RecordSequence(Sequence[Record], Generic[Record]):
    """Records by their number; iterating gives them in order, read ahead by threads."""

    kind: type[Record]
    fields: Mapping[str, RecordField]

    def __init__(self, kind: type[Record]) -> None:
        self.kind = kind
        self.fields = {field.name: field for field in fields_of(kind)}

    @abstractmethod
    def read(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """These fields of one record; ``index`` is from 0, and neither it nor the names are checked.

        Raises:
            FileFormatError: the record is damaged.
        """

    def where(self, index: int) -> str:
        """What a sentence calls one record."""
        return f"{self.kind.__name__} {index}"

    def digest(self) -> str:
        """Tells these records from others: their number, what `known` gives, and some in full."""
        found = hashlib.sha256(f"{len(self)}".encode())
        for part in self.known():
            found.update(hashlib.sha256(part).digest())
        for index in np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).round().astype(int).tolist():
            try:
                values = self.read(index, tuple(self.fields))
            except FileFormatError:
                values = {"damaged": index}
            for name, value in values.items():
                found.update(hashlib.sha256(name.encode() + bytes_of(value)).digest())
        return found.hexdigest()

    def known(self) -> Iterator[bytes]:
        """What is known of all records without reading them one by one."""
        yield from ()

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.kind(**self.read(range(len(self))[index], tuple(self.fields)))

    def __iter__(self) -> Iterator[Record]:
        return (self.kind(**values) for values in self.stream())

    def stream(self, fields: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Each record in order as its fields by name; those that aren't asked for are not decoded.

        Args:
            fields: names; None for all of them. Arrays may be read-only.

        Raises:
            UnknownNameError: there is no such field.
            FileFormatError: a record is damaged.
        """
        names = tuple(self.fields) if fields is None else tuple(fields)
        for name in names:
            if name not in self.fields:
                raise UnknownNameError("Field", name, f"a {self.kind.__name__.lower()}", self.fields)
        return self._ahead(names)

    def _ahead(self, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        waiting: deque[Future[dict[str, Any]]] = deque()
        rest = iter(range(len(self)))
        with ThreadPoolExecutor(READERS) as pool:
            try:
                waiting.extend(pool.submit(self.read, index, names) for index in islice(rest, READ_AHEAD))
                while waiting:
                    values = waiting.popleft().result()
                    waiting.extend(pool.submit(self.read, index, names) for index in islice(rest, 1))
                    yield values
            finally:
                for future in waiting:
                    future.cancel()


def bytes_of(value: Any) -> bytes:
    """A field's value, so that others differ."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}".encode() + value.tobytes()
    return value if isinstance(value, bytes) else repr(value).encode()


class RecordsInMemory(RecordSequence[Record]):
    """Records that are there already."""

    def __init__(self, kind: type[Record], records: Iterable[Record]) -> None:
        super().__init__(kind)
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """These fields of one record."""
        return {name: getattr(self._records[index], name) for name in names}

    def known(self) -> Iterator[bytes]:
        """All fields."""
        return (bytes_of(value) for record in self.stream() for value in record.values())

    def _ahead(self, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        return (self.read(index, names) for index in range(len(self)))


class StoredRecords(RecordSequence[Record]):
    """Records of a dataset that ``simspine dataset build`` made, its newest version.

    Args:
        kind: of the records, a dataclass of `schema.record_field`.
        config: of the dataset.
        split: ``train`` or ``test``, or a part in TensorFlow Datasets' words, such as ``train[:10%]``.
        data_dir: folder of datasets; None for `default_data_dir`.

    Raises:
        MissingDependencyError: TensorFlow Datasets or ArrayRecord is not installed.
        SimspineError: the dataset was not built there, or in a format that TensorFlow alone reads.
        UnknownNameError: it has no such split.
        FileFormatError: its description is damaged, or it holds other records.
    """

    def __init__(self, kind: type[Record], config: str, split: str, data_dir: PathLike | None) -> None:
        super().__init__(kind)
        folder = dataset_folder(config, default_data_dir() if data_dir is None else Path(data_dir))
        self._name, self._split = f"{DATASET}/{config} {folder.name}", split
        self._mend = f"build it again with: {_build_command(config, folder.parents[2])} --force"
        self._source, instructions = _data_source(folder, self._name, split, self._mend, self.fields)
        self._files = [os.fspath(i.filename) for i in instructions]
        self._ends = list(accumulate(i.take for i in instructions))
        self._skips = [i.skip for i in instructions]

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """These fields of one record; arrays are read-only."""
        from google.protobuf.message import DecodeError

        try:
            return _decode(self._source[index], names, self.fields)
        # What ArrayRecord (the first ones), protobuf and NumPy raise for damaged files.
        except (RuntimeError, IndexError, OSError, DecodeError, ValueError, KeyError) as error:
            raise self._damaged(index, error) from error

    def known(self) -> Iterator[bytes]:
        """The files' names and sizes, and which part of them it is."""
        yield f"{self._name} {self._split} {self._skips} {self._ends}".encode()
        yield from (f"{Path(file).name} {os.path.getsize(file)}".encode() for file in self._files)

    def where(self, index: int) -> str:
        """The record's file and its number there."""
        file = next(n for n, end in enumerate(self._ends) if index < end)
        record = index - ([0, *self._ends][file]) + self._skips[file]
        return (
            f"Record {record} of {place(self._files[file])} (number {index} of split {self._split} of "
            f"{self._name})"
        )

    def _damaged(self, index: int, error: Exception) -> FileFormatError:
        what = " ".join(str(error).split())[:160] or type(error).__name__
        return FileFormatError(f"{self.where(index)} is damaged ({what}); {self._mend}")


def default_data_dir() -> Path:
    """Where TensorFlow Datasets keeps datasets: ``TFDS_DATA_DIR``, or a folder in the user's home."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()


def dataset_folder(config: str, data_dir: Path) -> Path:
    """Folder of a built dataset's newest version; ``~`` is the user's home. Raises as `StoredRecords`."""
    data_dir = data_dir.expanduser()
    versions = _versions(data_dir / DATASET / config)
    if versions:
        return versions[-1]
    built = [p.name for p in sorted((data_dir / DATASET).glob("*")) if _versions(p)]
    there = f", which has {', '.join(built)}" if built else ""
    raise SimspineError(
        f"The dataset {DATASET}/{config} is not in {place(data_dir)}{there}; "
        f"build it with: {_build_command(config, data_dir)}"
    )


def _versions(folder: Path) -> list[Path]:
    """Folders of finished versions, the newest last."""
    found = [
        p for p in folder.glob("*") if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def _shortened(names: Sequence[str], most: int = 3) -> str:
    """The first of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _build_command(config: str, data_dir: Path) -> str:
    where = "" if data_dir == default_data_dir() else f" --data-dir {place(data_dir)}"
    return f"simspine dataset build --config {config}{where}"


def _data_source(
    folder: Path, name: str, split: str, mend: str, fields: Mapping[str, RecordField]
) -> tuple[Any, Sequence[Any]]:
    """TensorFlow Datasets' source of undecoded records of a split, and which files it reads."""
    try:
        import array_record  # noqa: F401
        from google.protobuf import json_format
        from tensorflow_datasets.core.decode import DeserializeMethod
        from tensorflow_datasets.core.read_only_builder import builder_from_directory
    except ImportError as error:
        missing = error.name or "tensorflow_datasets"
        raise MissingDependencyError(missing, "tfds", "Reading datasets") from None
    try:
        builder: Any = builder_from_directory(folder)
        splits, stored = builder.info.splits, set(builder.info.features)
    except (json_format.Error, ValueError, KeyError, TypeError, OSError) as error:
        raise FileFormatError(f"{place(folder)}: the dataset's description is damaged; {mend}") from error
    if lacking := [field for field in fields if field not in stored]:
        raise FileFormatError(
            f"The records of {name} in {place(folder)} have no {_shortened(lacking)}; valid is a dataset "
            "whose records are of the kind that is read (those of synthetic_images are pictures, those of "
            f"the others clips), and made by this version; if only the version is another, {mend}"
        )
    raw = DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=raw), splits[split].file_instructions
    except NotImplementedError:
        raise SimspineError(
            f"{name} in {place(folder)} is stored in a format that only TensorFlow reads; "
            f"{mend} --file-format array_record"
        ) from None
    except (ValueError, KeyError):
        raise UnknownNameError("Split", split, f"{name} in {place(folder)}", splits) from None


def _decode(record: bytes, names: Sequence[str], fields: Mapping[str, RecordField]) -> dict[str, Any]:
    """Fields of a serialised example. A wrong or missing one is a ValueError or KeyError."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore
    # The first field that has nothing but a dimension that varies tells its size.
    lengths: dict[Dimension, str] = {}
    for name, field in fields.items():
        if len(field.shape) == 1:
            lengths.setdefault(field.shape[0], name)
    flat = {name: _values(features, fields[name]) for name in names}
    sizes: dict[Any, int] = {}
    for dimension, name in lengths.items():
        if isinstance(dimension, str):
            sizes[dimension] = len(flat[name] if name in flat else _values(features, fields[name]))
    return {name: _shaped(flat[name], fields[name], sizes) for name in names}


def _values(features: Any, field: RecordField) -> Any:
    """The values of a feature in a row: an array, or a tuple of texts or files."""
    # Arrays with several open dimensions have a feature each for shape and values; the schema has the shape.
    name = field.name if field.name in features else f"{field.name}/value"
    if name not in features:
        raise KeyError(f"it has no {field.name}")
    feature = features[name]
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else ()
    if field.kind == "text":
        return tuple(value.decode("utf-8") for value in values)
    if field.kind == "jpeg":
        return tuple(values)
    if kind == "bytes_list":
        return np.frombuffer(b"".join(values), field.kind)
    return np.asarray(values, field.kind)


def _shaped(values: Any, field: RecordField, sizes: Mapping[Any, int]) -> Any:
    if field.kind not in ("text", "jpeg"):
        array = values.reshape([sizes.get(d, d) for d in field.shape])
        return array if field.shape else array.item()
    if field.shape:
        return values
    (value,) = values
    return value
