"""Records: what `simspine_jax.schema` describes, as TFDS's features, and how they lie in files.

Arrays are stored as their bytes. Without that, TFDS would widen booleans and int32 to 64 bits, narrow float64
to 32, and read each number on its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorflow_datasets.core import file_adapters, writer
from tensorflow_datasets.proto import tf_example_pb2

from simspine_jax.schema import RecordField, fields_of

WRITER_OPTIONS = "group_size:1,uncompressed"
"""A record is read on its own. Compressing saves a sixth of random numbers and halves the rate of reading."""


def feature_of(field: RecordField) -> tfds.features.FeatureConnector:
    """The feature of a field, with its documentation."""
    if field.kind == "jpeg":
        return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg", doc=field.doc)
    if field.kind == "text":
        if field.shape:
            return tfds.features.Tensor(shape=_shape(field), dtype=np.str_, doc=field.doc)
        return tfds.features.Text(doc=field.doc)
    if not field.shape:
        return tfds.features.Scalar(dtype=np.dtype(field.kind), doc=field.doc)
    return tfds.features.Tensor(
        shape=_shape(field), dtype=np.dtype(field.kind), encoding=tfds.features.Encoding.BYTES, doc=field.doc
    )


def features_of(fields: Sequence[RecordField]) -> tfds.features.FeaturesDict:
    """The features of a record."""
    return tfds.features.FeaturesDict({field.name: feature_of(field) for field in fields})


def example_of(record: Any) -> dict[str, Any]:
    """A record, a dataclass with described fields, as TFDS encodes it."""
    example = {}
    for field in fields_of(type(record)):
        value = getattr(record, field.name)
        if field.kind == "text":
            example[field.name] = np.array(value, object) if field.shape else value
        elif field.kind == "jpeg" or not field.shape:
            example[field.name] = value
        else:
            example[field.name] = np.ascontiguousarray(value, field.kind)
    return example


def field_table(fields: Sequence[RecordField]) -> str:
    """The fields of a record as a table in Markdown."""
    rows = [("field", "kind", "what"), ("---", "---", "---")]
    for field in fields:
        size = f" [{' '.join(map(str, field.shape))}]" if field.shape else ""
        rows.append((f"`{field.name}`", f"{field.kind}{size}", field.doc.replace("|", "\\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_field_tables(readme: str, records: Mapping[str, Sequence[RecordField]]) -> str:
    """A README whose tables of fields, each between ``<!-- NAME -->`` and ``<!-- end -->``, are up to date.

    Args:
        readme: to be brought up to date.
        records: the fields of each NAME.
    """
    for name, fields in records.items():
        head, start, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->\n")
        readme = f"{head}{start}{field_table(fields)}\n{end}{tail}"
    return readme


def _shape(field: RecordField) -> tuple[int | None, ...]:
    return tuple(None if isinstance(size, str) else size for size in field.shape)


class PlainExampleWriter(writer.ExampleWriter):
    """Writes equal records as equal bytes, and ArrayRecord files without compression."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Writes the examples of a shard."""
        ordered = ((key, _in_order(example)) for key, example in examples)
        if self.file_format is not file_adapters.FileFormat.ARRAY_RECORD:
            return super().write(path, ordered)
        file = array_record_module.ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
        for _, example in ordered:
            file.write(example)
        file.close()
        return None


def _in_order(example: bytes) -> bytes:
    """The same record with its features sorted; protobuf leaves their order to chance."""
    record = tf_example_pb2.Example.FromString(example)  # pyright: ignore[reportAttributeAccessIssue]
    return record.SerializeToString(deterministic=True)


class _ReadableArrayRecord(file_adapters.ArrayRecordFileAdapter):
    """ArrayRecord files as a ``tf.data.Dataset`` too, in the manner of TFDS's adapter for Parquet."""

    SUPPORTS_TF_DATA = True

    @classmethod
    def make_tf_data(cls, filename: Any, buffer_size: int | None = None) -> Any:
        """The serialized examples of a file."""
        del buffer_size  # the file is mapped into memory
        import tensorflow as tf

        def records(name: bytes) -> Iterator[bytes]:
            source = array_record_data_source.ArrayRecordDataSource([name.decode()])
            yield from (source[i] for i in range(len(source)))

        return tf.data.Dataset.from_generator(
            records, args=(filename,), output_signature=tf.TensorSpec((), tf.string)
        )


def let_tensorflow_read_array_records() -> None:
    """Adds what TFDS refuses: `tfds.load` of a data set that was prepared as ArrayRecord files.

    So the same files serve `tfds.load`, `tfds.data_source` and programs without TensorFlow.
    """
    adapters = file_adapters.ADAPTER_FOR_FORMAT
    if not adapters[file_adapters.FileFormat.ARRAY_RECORD].SUPPORTS_TF_DATA:
        adapters[file_adapters.FileFormat.ARRAY_RECORD] = _ReadableArrayRecord
