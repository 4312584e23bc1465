"""Columns of features as Feast's Value messages, and rows of them as items keep them.

The bytes are those of Feast's own `python_values_to_proto_values` and of `item.pack`, save for
the order of maps' entries and of sets, which in Feast is that of hash tables.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
from feast.value_type import ValueType

from feast_dynamo_ext.dynamo.encoding.arrays import plain
from feast_dynamo_ext.dynamo.encoding.lists import collection, is_collection
from feast_dynamo_ext.dynamo.encoding.nested import is_nested, nested
from feast_dynamo_ext.dynamo.encoding.protobuf import Message, constant, delimited
from feast_dynamo_ext.dynamo.encoding.scalars import is_scalar, scalar
from feast_dynamo_ext.type_map import check_supported, naming, to_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    Column: TypeAlias = pa.Array | pa.ChunkedArray

CELL_BY_CELL: tuple[ValueType, ...] = (
    ValueType.JSON_LIST,  # each text is parsed, to refuse those that are not JSON
    ValueType.UNKNOWN,  # Feast infers the type from the first value that is not empty
)
"""Value types that go Feast's way, a Python object a cell.

So do columns whose Arrow type leaves the meaning to each cell: maps, structs and lists that are
kept as JSON texts, and types that Feast refuses, which it then does in its own words.
"""


def encode_column(column: Column, kind: ValueType, name: str) -> pa.LargeBinaryArray:
    """A column as serialized Value messages, an empty one for each null.

    Args:
        column: any Arrow column.
        kind: value type of the feature.
        name: name of the feature, for errors.

    Raises:
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    check_supported(name, column.type, "Materialization")
    return _concatenated([_values(chunk, kind, name).joined() for (chunk,) in _aligned([column])])


def encode_values(
    columns: Sequence[Column], kinds: Sequence[ValueType], names: Sequence[str]
) -> pa.LargeBinaryArray:
    """Rows as serialized `RepeatedValue` messages: the values of an item.

    Args:
        columns: one Arrow column a feature, at least one, all of the same length.
        kinds: value type of each feature.
        names: name of each feature, for errors.

    Raises:
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    for column, name in zip(columns, names, strict=True):
        check_supported(name, column.type, "Materialization")
    return _concatenated(
        [
            reduce(
                add,
                [
                    delimited(1, _values(chunk, kind, name))
                    for chunk, kind, name in zip(chunks, kinds, names, strict=True)
                ],
            ).joined()
            for chunks in _aligned(columns)
        ]
    )


def _values(array: pa.Array, kind: ValueType, name: str) -> Message:
    array = plain(array)
    with naming(name, kind, array.type):
        message = _by_column(array, kind)
    if message is not None:
        return message
    cells = [value.SerializeToString() for value in to_values(array, kind, name)]
    return Message.of(pa.array(cells, pa.large_binary()))


def _by_column(array: pa.Array, kind: ValueType) -> Message | None:
    """The Value messages of a column; None where they are made cell by cell."""
    if pa.types.is_null(array.type):
        return Message.of(constant(b"", len(array)))
    if kind in CELL_BY_CELL:
        return None
    if is_scalar(array.type, kind):
        return scalar(array, kind)
    if is_collection(array.type, kind):
        return collection(array, kind)
    return nested(array, kind) if is_nested(array.type, kind) else None


def _aligned(columns: Sequence[Column]) -> list[list[pa.Array]]:
    """The columns in batches of which each has one array, without a copy."""
    if not any(isinstance(column, pa.ChunkedArray) for column in columns):
        return [list(columns)]
    table = pa.table(list(columns), names=[str(at) for at in range(len(columns))])
    return [batch.columns for batch in table.to_batches()]


def _concatenated(parts: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays([*parts, pa.array([], pa.large_binary())])
