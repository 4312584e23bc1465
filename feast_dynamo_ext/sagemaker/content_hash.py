"""Hashes of what tables hold, which do not depend on how they are laid out.

The bytes of Arrow's own IPC stream would not do: they hold whatever lies under a null, the
dictionaries a column happens to have, padding, and rows beyond a slice. `hash_table` hashes each
column as its name, its type, and for each 65,536 rows which of them are valid and the values of
those. The result depends on what the rows and columns hold and on their order, and on nothing
else: not on chunks, slices, schema metadata, dictionary encoding or the version of pyarrow.
`ColumnHash` does the same for a column that comes in pieces.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import BYTES_TYPES, TEXT_TYPES, without_dictionary

if TYPE_CHECKING:
    from hashlib import _Hash


_ROWS = 65_536


def hash_table(table: pa.Table) -> str:
    """SHA-256, in hex, of a table's columns, types, values and order of rows."""
    digest = hashlib.sha256(f"rows {table.num_rows}\n".encode())
    for name, kind, column in zip(
        table.column_names, table.schema.types, table.columns, strict=True
    ):
        digest.update(f"{name!r} {without_dictionary(kind)}\n".encode())
        for start in range(0, table.num_rows, _ROWS):
            _update(digest, _contiguous(column.slice(start, _ROWS)))
    return digest.hexdigest()


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    # Chunks of a dictionary column have dictionaries of their own: decode before joining them.
    chunks = [
        chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
        for chunk in column.chunks
    ]
    return pa.concat_arrays(chunks)


def _update(digest: _Hash, array: pa.Array) -> None:
    kind = array.type
    if isinstance(kind, pa.ExtensionType):
        _update(digest, array.storage)
        return
    if pa.types.is_dictionary(kind):
        _update(digest, array.dictionary_decode())
        return
    digest.update(_bits(array.is_valid()))
    if not pa.types.is_null(kind):
        _update_values(digest, array.drop_null())


def _update_values(digest: _Hash, array: pa.Array) -> None:
    kind = array.type
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _update(digest, child)
    elif pa.types.is_map(kind):
        _update_values(digest, array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    elif pa.types.is_nested(kind):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy())
        _update(digest, array.flatten())
    elif pa.types.is_boolean(kind):
        digest.update(_bits(array))
    elif kind in (*TEXT_TYPES, *BYTES_TYPES):
        _update_bytes(digest, array.cast(pa.large_binary()))
    else:
        _update_fixed(digest, array)


def _bits(array: pa.BooleanArray) -> bytes:
    return np.packbits(array.to_numpy(zero_copy_only=False)).tobytes()


def _update_bytes(digest: _Hash, array: pa.LargeBinaryArray) -> None:
    digest.update(pc.binary_length(array).to_numpy())
    _, offsets, data = array.buffers()
    if len(array) and data is not None:
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        digest.update(memoryview(data)[ends[0] : ends[-1]])


def _update_fixed(digest: _Hash, array: pa.Array) -> None:
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    if len(array) and data is not None:
        start = array.offset * width
        digest.update(memoryview(data)[start : start + len(array) * width])


class ColumnHash:
    """SHA-256 of one column that comes in pieces, of whatever sizes."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        """Nothing was added yet.

        Args:
            name: the column's.
            kind: numbers, booleans, texts or times.
        """
        self._name, self._kind, self._rows = name, kind, 0
        # Apart, so that neither depends on where a piece ends.
        self._nulls, self._lengths, self._values = (hashlib.sha256() for _ in range(3))

    def add(self, array: pa.Array) -> None:
        """Add the rows that come next."""
        if array.null_count:
            missing = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
            self._nulls.update((missing + self._rows).astype("<i8").tobytes())
            array = array.drop_null()
            self._rows += len(missing)
        self._rows += len(array)
        if pa.types.is_boolean(array.type):
            self._values.update(array.cast(pa.uint8()).to_numpy())
        elif array.type in TEXT_TYPES:
            data = array.cast(pa.large_binary())
            self._lengths.update(pc.binary_length(data).to_numpy().astype("<i8"))
            _, offsets, bytes_ = data.buffers()
            if len(data) and bytes_ is not None:
                ends = np.frombuffer(offsets, np.int64)[data.offset : data.offset + len(data) + 1]
                self._values.update(memoryview(bytes_)[ends[0] : ends[-1]])
        else:
            _update_fixed(self._values, array)

    def hexdigest(self) -> str:
        """Of the name, the type, the number of rows and what they hold, in order."""
        about = f"{self._name!r} {self._kind} rows {self._rows}\n".encode()
        parts = (self._nulls.digest(), self._lengths.digest(), self._values.digest())
        return hashlib.sha256(about + b"".join(parts)).hexdigest()
