"""Join keys in the few types that are compared: int64, text, bytes, and exact decimals and times.

Entity rows come from pandas, history from files; the same key may be int32 here, int64 there, a
dictionary or, with a null among them, a float. Both sides are brought to one type per family.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError

FAMILIES = (
    ("integer", pa.types.is_integer, pa.int64()),
    ("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), pa.string()),
    (
        "bytes",
        lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
        pa.binary(),
    ),
    ("boolean", pa.types.is_boolean, pa.bool_()),
    ("time", lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind), pa.int64()),
    # pandas turns integers into floats where one is missing.
    ("integer", pa.types.is_floating, pa.int64()),
    ("integer", pa.types.is_null, pa.int64()),
)


def family(kind: pa.DataType) -> str | None:
    """The family of types that a key's type belongs to, or None where it cannot be a key."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return next((name for name, matches, _ in FAMILIES if matches(kind)), None)


def comparable(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A key column in the type in which its family is compared.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit, for example 1.5 or a uint64 over 2^63 - 1.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if family(column.type) == "time":
        zone = column.type.tz if pa.types.is_timestamp(column.type) else None
        column = column.cast(pa.timestamp("us", tz=zone))
    target = next(target for _, matches, target in FAMILIES if matches(column.type))
    return pc.cast(column, target)


def compared_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a key's family is compared; of a type that can be a key."""
    name = family(kind)
    return next(target for found, _, target in FAMILIES if found == name)


def check_joinable(
    entity_column: str, entity_type: pa.DataType, source_column: str, source_type: pa.DataType
) -> None:
    """Refuse to compare, say, text with integers.

    Raises:
        ColumnTypeError: the source's column cannot be a key.
        EntityRowsError: the entity rows' column has another type than the source's.
    """
    ours, theirs = family(entity_type), family(source_type)
    if theirs is None:
        raise ColumnTypeError(
            f"Join key `{source_column}` of the source has type {source_type}, which cannot be "
            "compared exactly. Use integers or text."
        )
    if pa.types.is_null(entity_type):
        return
    if ours != theirs:
        raise EntityRowsError(
            f"Join key `{entity_column}` is {entity_type} in the entity rows, but the source's "
            f"column `{source_column}` is {source_type}. Cast it in the entity rows."
        )
