"""Entity keys of whole columns, as Feast serializes them (version 3).

`key_encoding.KeyEncoder` does the same for one row; property tests hold both against Feast.
"""

from __future__ import annotations

import struct
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
from feast.infra.key_encoding_utils import serialize_entity_key_prefix

from feast_dynamo_ext.dynamo.encoding.arrays import numbers, plain, seconds, texts
from feast_dynamo_ext.dynamo.encoding.protobuf import Message, constant, fixed, lengths_of
from feast_dynamo_ext.dynamo.entity_keys import ENTITYLESS_KEY
from feast_dynamo_ext.dynamo.item import MAX_KEY_BYTES, key_bytes
from feast_dynamo_ext.dynamo.key_encoding import (
    BYTES,
    ENCODINGS,
    INT32,
    INT64,
    STRING,
    UNIX_TIMESTAMP,
    KeyEncoder,
)
from feast_dynamo_ext.errors import EntityKeyError
from feast_dynamo_ext.type_map import VALUE_FIELD, check_supported, naming, to_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast.value_type import ValueType

    Column: TypeAlias = pa.Array | pa.ChunkedArray


def encode_keys(
    columns: Sequence[Column],
    kinds: Sequence[ValueType],
    join_keys: Sequence[str],
    view: str,
    rows: int,
) -> pa.LargeBinaryArray:
    """The serialized entity key of each row.

    Args:
        columns: one Arrow column a join key; none for a view without entities.
        kinds: value type of each join key.
        join_keys: their names.
        view: name of the feature view, for errors.
        rows: number of rows.

    Raises:
        EntityKeyError: a null, a key over 2,048 bytes, or a type that Feast has no key encoding
            for.
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    if not columns:
        key = key_bytes(ENTITYLESS_KEY, view)
        return Message.of(constant(key, rows)).joined()
    arrays = []
    for column, name in zip(columns, join_keys, strict=True):
        _refuse_nulls(column, name, view)
        check_supported(name, column.type, "Materialization")
        arrays.append(plain(_one_array(column)))
    if not rows:
        return pa.array([], pa.large_binary())
    if any(VALUE_FIELD[kind.name] not in ENCODINGS for kind in kinds):
        _refuse(0, arrays, kinds, join_keys, view)
    keys = _encoded(arrays, kinds, join_keys)
    for row in np.flatnonzero(lengths_of(keys) > MAX_KEY_BYTES)[:1]:
        _refuse(int(row), arrays, kinds, join_keys, view)
    return keys


def _encoded(
    arrays: Sequence[pa.Array], kinds: Sequence[ValueType], join_keys: Sequence[str]
) -> pa.LargeBinaryArray:
    prefix = serialize_entity_key_prefix(list(join_keys), 3)
    # Feast sorts the pairs by name.
    order = sorted(range(len(join_keys)), key=join_keys.__getitem__)
    parts = [Message.of(constant(prefix, len(arrays[0])))]
    parts += [_part(arrays[at], kinds[at], join_keys[at]) for at in order]
    return reduce(add, parts).joined()


def _part(array: pa.Array, kind: ValueType, name: str) -> Message:
    """The type, the length in bytes and the bytes of a join key's values."""
    field = VALUE_FIELD[kind.name]
    with naming(name, kind, array.type):
        if field == "int32_val":
            return _number(INT32, array.cast(pa.int32()))
        if field == "int64_val":
            return _number(INT64, array.cast(pa.int64()))
        if field == "unix_timestamp_val":
            return _number(UNIX_TIMESTAMP, seconds(array))
        if field == "string_val":
            return _text(STRING, texts(array, pa.large_string()))
        return _text(BYTES, array.cast(pa.large_binary()))


def _number(kind: int, array: pa.Array) -> Message:
    values = numbers(array).astype(array.type.to_pandas_dtype(), copy=False)
    head = constant(struct.pack("<II", kind, values.dtype.itemsize), len(array))
    return Message.of(head) + Message.of(fixed(values))


def _text(kind: int, array: pa.LargeBinaryArray) -> Message:
    head = constant(struct.pack("<I", kind), len(array))
    sizes = fixed(lengths_of(array).astype(np.uint32))
    return Message.of(head) + Message.of(sizes) + Message.of(array)


def _refuse_nulls(column: Column, name: str, view: str) -> None:
    if column.null_count:
        raise EntityKeyError(
            f"Feature view `{view}`: {column.null_count:,} rows have no `{name}`. Filter them "
            "out of the source: it belongs to no entity."
        )


def _refuse(
    row: int,
    arrays: Sequence[pa.Array],
    kinds: Sequence[ValueType],
    join_keys: Sequence[str],
    view: str,
) -> None:
    """Raise what the reader of this row's key would, in the same words."""
    values = [
        to_values(array.slice(row, 1), kind, name)[0]
        for array, kind, name in zip(arrays, kinds, join_keys, strict=True)
    ]
    KeyEncoder(tuple(join_keys), view)(values)


def _one_array(column: Column) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
