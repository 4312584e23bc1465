"""A hash of what an Arrow table says, not of how its memory is laid out.

The bytes of Arrow's own IPC stream would not do: they hold whatever lies under a null, the
dictionaries a column happens to have, padding, and rows beyond a slice. So each column is hashed
as its name, its type, and for each 65,536 rows which of them are valid and the values of those.
The result depends on what the rows and columns hold and on their order, and on nothing else: not
on chunks, slices, schema metadata, dictionary encoding or the version of pyarrow.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from hashlib import _Hash

_ROWS = 65_536


def hash_table(table: pa.Table) -> str:
    """SHA-256, in hex, of a table's columns, types, values and order of rows."""
    digest = hashlib.sha256(f"rows {table.num_rows}\n".encode())
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(f"{field.name!r} {_plain(field.type)}\n".encode())
        for start in range(0, table.num_rows, _ROWS):
            _update(digest, _contiguous(column.slice(start, _ROWS)))
    return digest.hexdigest()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


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
    elif _is_text_or_bytes(kind):
        _update_bytes(digest, array.cast(pa.large_binary()))
    else:
        _update_fixed(digest, array)


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )


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
