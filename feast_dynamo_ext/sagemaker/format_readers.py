"""Reads the files of a training set again: CSV, RecordIO-protobuf and libsvm, as batches.

Values are those of the files: floats of a target that keeps float32 are rounded in them. What is
not as `formats` writes it is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.exact import cast_exact, without_nan
from feast_dynamo_ext.sagemaker.formats import record_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

_CELLS = 2**20
"""Cells of a batch, about."""

_HEAD_BYTES, _LENGTH_AT = 8, 4
_LINE_BYTES = 4 << 20


def read_batches(
    format: str,  # noqa: A002 - as in formats
    stream: pa.NativeFile,
    schema: pa.Schema,
    *,
    weight: bool = False,
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in order.

    Args:
        format: `csv`, `recordio` or `libsvm`.
        stream: of the file.
        schema: label, weight where there is one, features: what each becomes.
        weight: whether the second column is the weight.

    Raises:
        ValueError: the file is not as it is written, or a value is not of its column's type.
    """
    yield from _READERS[format](stream, schema, weight)


def _csv(stream: pa.NativeFile, schema: pa.Schema, _: bool) -> Iterator[pa.RecordBatch]:
    options = csv.ConvertOptions(column_types=schema, strings_can_be_null=True, null_values=[""])
    names = csv.ReadOptions(column_names=schema.names)
    yield from csv.open_csv(stream, names, convert_options=options)


def _recordio(stream: pa.NativeFile, schema: pa.Schema, _: bool) -> Iterator[pa.RecordBatch]:
    count = len(schema) - 1
    # The first frame says how long it is, and so whether it holds float32 or float64.
    head = stream.read(_HEAD_BYTES)
    if not head:
        return
    layout, empty = _layout(head, count)
    size = layout.itemsize * max(1, _CELLS // (count + 1))
    data = head + stream.read(size - len(head))
    while data:
        if len(data) % layout.itemsize:
            raise ValueError(f"its last record has {len(data) % layout.itemsize} bytes")
        frames = np.frombuffer(data, layout)
        for part in ("start", "between"):
            if not (frames[part] == empty[part]).all():
                raise ValueError(f"a record is no label with {count} features")
        yield _batch([frames["label"], *frames["features"].T], schema)
        data = stream.read(size)


def _layout(head: bytes, features: int) -> tuple[np.dtype[Any], NDArray[Any]]:
    for kind in ("float32", "float64"):
        layout, empty = record_frame(kind, features)
        if empty["start"].tobytes()[: len(head)] == head:
            return layout, empty
    length = int.from_bytes(head[_LENGTH_AT:], "little")
    raise ValueError(f"its first record has {length} bytes, which no {features} features have")


def _libsvm(stream: pa.NativeFile, schema: pa.Schema, weight: bool) -> Iterator[pa.RecordBatch]:
    names = csv.ReadOptions(column_names=["line"], block_size=_LINE_BYTES)
    # A character that is in no number.
    parse = csv.ParseOptions(delimiter="\x01", quote_char=False)
    convert = csv.ConvertOptions(column_types={"line": pa.large_string()})
    first = 1 + weight
    most = max(1, _CELLS // len(schema))
    for batch in csv.open_csv(stream, names, parse, convert):
        for start in range(0, batch.num_rows, most):
            words = pc.split_pattern(batch.column(0).slice(start, most), " ")
            counts = numbers(pc.list_value_length(words)).astype(np.int64)
            is_first = np.zeros(int(counts.sum()), bool)
            is_first[np.cumsum(counts) - counts] = True
            every = words.flatten()
            head = _split(every.filter(pa.array(is_first)), first)
            pairs = _split(every.filter(pa.array(~is_first)), 2)
            columns = np.full((len(counts), len(schema) - first), np.nan)
            places = numbers(pairs[0].cast(pa.int64()))
            if len(places) and not 0 <= places.min() <= places.max() < columns.shape[1]:
                raise ValueError(f"an index is none of its {columns.shape[1]} features")
            rows = np.repeat(np.arange(len(counts)), counts - 1)
            columns[rows, places] = numbers(pairs[1].cast(pa.float64()))
            labels = [numbers(each.cast(pa.float64())) for each in head]
            yield _batch([*labels, *columns.T], schema)


def _split(words: pa.Array, parts: int) -> list[pa.Array]:
    """The parts of words with colons between them, one array a place."""
    found = pc.split_pattern(words, ":")
    if len(words) and pc.min_max(pc.list_value_length(found)).as_py() != {
        "min": parts,
        "max": parts,
    }:
        raise ValueError(f"a line has a word that is not of {parts} parts with colons between")
    flat = found.flatten()
    return [flat.take(pa.array(np.arange(at, len(flat), parts))) for at in range(parts)]


def _batch(columns: list[NDArray[Any]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        cast_exact(without_nan(pa.array(np.ascontiguousarray(column))), kind)
        if pa.types.is_integer(kind)
        else without_nan(pa.array(np.ascontiguousarray(column))).cast(kind, safe=False)
        for column, kind in zip(columns, schema.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


_READERS: Mapping[str, Callable[..., Iterator[pa.RecordBatch]]] = {
    "csv": _csv,
    "recordio": _recordio,
    "libsvm": _libsvm,
}
