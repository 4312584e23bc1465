"""Reads the features of matched rows into the order of the entity rows.

Values of a fixed width are put where they belong as soon as their batch is read; nothing of them
is held twice. All others (text, lists, maps) are collected in the order of the files and then put
in the order of the entity rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.offline.engine import NO_ROW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.offline.source import ParquetSource

WIDTHS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def read_features(
    source: ParquetSource, columns: Sequence[str], positions: NDArray[np.int64], threads: int
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The values of some columns, by name, in the types that the source has.

    Args:
        source: the history.
        columns: names of the columns.
        positions: for each row of the result a position, or NO_ROW for nulls.
        threads: how many threads read.

    Raises:
        SourceReadError: a file cannot be read, or changed since it was listed.
    """
    # NO_ROW is less than any position.
    rows = np.argsort(positions)[np.count_nonzero(positions == NO_ROW) :]
    wanted = positions[rows]
    kinds = {name: source.schema.field(name).type for name in columns}
    matched = positions != NO_ROW
    fixed = {name: _Fixed.of(kind, matched) for name, kind in kinds.items() if _is_fixed(kind)}
    others = [name for name in columns if name not in fixed]

    def put(batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        first, end = np.searchsorted(wanted, [start, start + batch.num_rows])
        taken = batch.take(pa.array(wanted[first:end] - start))
        for name, values in fixed.items():
            values.put(taken.column(name), rows[first:end])
        return taken.select(others)

    read = list(source.each(list(columns), put, threads, wanted))
    source.check_unchanged()
    found = {name: values.array() for name, values in fixed.items()}
    return {**found, **_in_order(read, source.schema_of(others), rows, len(positions))}


@dataclass(frozen=True)
class _Fixed:
    """A column of values of a fixed width, to be filled.

    Attributes:
        kind: Arrow's type of them.
        bits: the values.
        matched: the rows that will have one.
        nulls: rows of these whose value is null, in parts.
    """

    kind: pa.DataType
    bits: NDArray[np.unsignedinteger]
    matched: NDArray[np.bool_]
    nulls: list[NDArray[np.int64]]

    @classmethod
    def of(cls, kind: pa.DataType, matched: NDArray[np.bool_]) -> _Fixed:
        return cls(kind, np.zeros(len(matched), dtype=WIDTHS[kind.bit_width]), matched, [])

    def put(self, values: pa.Array, rows: NDArray[np.int64]) -> None:
        """Put values into rows; several threads may, each into rows of its own."""
        bits = np.frombuffer(values.buffers()[1], dtype=self.bits.dtype)
        self.bits[rows] = bits[values.offset : values.offset + len(values)]
        if values.null_count:
            self.nulls.append(rows[values.is_null().to_numpy(zero_copy_only=False)])

    def array(self) -> pa.Array:
        valid = self.matched
        if self.nulls:
            valid = valid.copy()
            valid[np.concatenate(self.nulls)] = False
        bitmap = None
        if not valid.all():
            bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
        buffers = [bitmap, pa.py_buffer(self.bits)]
        return pa.Array.from_buffers(self.kind, len(self.bits), buffers)


def _is_fixed(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) and kind.bit_width in WIDTHS


def _in_order(
    read: list[pa.RecordBatch], schema: pa.Schema, rows: NDArray[np.int64], length: int
) -> dict[str, pa.ChunkedArray]:
    if not schema.names:
        return {}
    table = pa.Table.from_batches(read, schema).combine_chunks()
    place = np.full(length, NO_ROW)
    place[rows] = np.arange(len(rows))
    # A null index makes a null of the column's own type.
    taken = table.take(pa.array(place, mask=place == NO_ROW))
    return dict(zip(schema.names, taken.columns, strict=True))
