"""Reads the features of matched rows into the order of the entity rows.

Rows are read in the order of the files. Values of a fixed width are put side by side as soon as
their batch is read, and then gathered column by column: 4 ns a value, where scattering them took
25 ns and Arrow's `take` 35 ns. All others (text, lists, maps) are left to Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.retrieval.engines.base import NO_ROW
from feast_dynamo_ext.retrieval.engines.one_pass.slots import ascending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource


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
    rows = ascending(positions)[np.count_nonzero(positions == NO_ROW) :]
    wanted = positions[rows]
    fixed = {
        field.name: _Fixed.from_type(field.type, len(wanted))
        for field in source.schema_of(columns)
        if _is_fixed(field.type)
    }
    others = [name for name in columns if name not in fixed]

    def put(batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        first, end = np.searchsorted(wanted, [start, start + batch.num_rows])
        taken = batch.take(pa.array(wanted[first:end] - start))
        for name in taken.schema.names:
            if name in fixed:
                fixed[name].put(taken.column(name), first)
        return taken.select(others)

    read = list(source.each(list(columns), put, threads, wanted))
    source.check_unchanged()
    place = np.full(len(positions), len(wanted))
    place[rows] = np.arange(len(wanted))
    is_null = positions == NO_ROW
    found = _in_order(read, source.schema_of(others), pa.array(place, mask=is_null))
    for name in list(fixed):
        found[name] = fixed.pop(name).array(place, is_null)
    return found


@dataclass(frozen=True)
class _Fixed:
    """A column of values of a fixed width, in the order of the files.

    Attributes:
        kind: Arrow's type of them.
        bits: the values; and a last one, for rows without.
        nulls: places of values that are null, in parts.
    """

    kind: pa.DataType
    bits: NDArray[np.unsignedinteger]
    nulls: list[NDArray[np.int64]]

    @classmethod
    def from_type(cls, kind: pa.DataType, rows: int) -> _Fixed:
        return cls(kind, np.zeros(rows + 1, dtype=WIDTHS[kind.bit_width]), [])

    def put(self, values: pa.Array, first: int) -> None:
        """Put values side by side, from a place on; several threads may, each into its own."""
        bits = np.frombuffer(values.buffers()[1], dtype=self.bits.dtype)
        self.bits[first : first + len(values)] = bits[values.offset : values.offset + len(values)]
        if values.null_count:
            self.nulls.append(
                first + np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
            )

    def array(self, place: NDArray[np.int64], is_null: NDArray[np.bool_]) -> pa.Array:
        """The values in these places."""
        if self.nulls:
            nulls = np.zeros(len(self.bits), dtype=bool)
            nulls[np.concatenate(self.nulls)] = True
            is_null = is_null | nulls.take(place)
        bitmap = None
        if is_null.any():
            bitmap = pa.py_buffer(np.packbits(~is_null, bitorder="little"))
        buffers = [bitmap, pa.py_buffer(self.bits.take(place, mode="clip"))]
        return pa.Array.from_buffers(self.kind, len(place), buffers)


def _is_fixed(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) and kind.bit_width in WIDTHS


def _in_order(
    read: list[pa.RecordBatch], schema: pa.Schema, place: pa.Array
) -> dict[str, pa.Array | pa.ChunkedArray]:
    if not schema.names:
        return {}
    # A null place makes a null of the column's own type.
    taken = pa.Table.from_batches(read, schema).combine_chunks().take(place)
    return dict(zip(schema.names, taken.columns, strict=True))
