"""Feast's value types and Arrow's, as tables; and the types that join keys are compared in.

Sources: `feast/protos/feast/types/Value.proto` and `feast.type_map` of Feast 0.67.

Entity rows come from pandas, history from files; the same key may be int32 here, int64 there, a
dictionary or, with a null among them, a float. Both sides are brought to one type per family.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import VALUE_TYPE_TO_PROTO_VALUE_MAP, python_values_to_proto_values
from feast.value_type import ValueType

from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError, UnsupportedTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Value type name -> field of Feast's Value message. Feast's own table lacks the last four.
VALUE_FIELD: dict[str, str] = {
    **{kind.name: field for kind, field in VALUE_TYPE_TO_PROTO_VALUE_MAP.items()},
    "PDF_BYTES": "bytes_val",
    "IMAGE_BYTES": "bytes_val",
    "ZONED_TIMESTAMP": "zoned_timestamp_val",
    "UNKNOWN": "null_val",
}

# Field of Feast's Value message -> the value type that it is read back as.
FIELD_VALUE_TYPE: dict[str, str] = {
    **{field: kind.name for kind, field in VALUE_TYPE_TO_PROTO_VALUE_MAP.items()},
    "zoned_timestamp_val": "ZONED_TIMESTAMP",
}

# Scalars that Arrow casts exactly or refuses: value type -> Arrow type. int64 stays int64 with
# nulls in it (Feast goes through float there and rounds above 2^53).
SCALAR_ARROW: dict[ValueType, pa.DataType] = {
    ValueType.INT32: pa.int32(),
    ValueType.INT64: pa.int64(),
    ValueType.DOUBLE: pa.float64(),
    ValueType.FLOAT: pa.float32(),
    ValueType.BOOL: pa.bool_(),
    ValueType.STRING: pa.string(),
    ValueType.JSON: pa.string(),
    ValueType.UUID: pa.string(),
    ValueType.TIME_UUID: pa.string(),
    ValueType.BYTES: pa.binary(),
    ValueType.PDF_BYTES: pa.binary(),
    ValueType.IMAGE_BYTES: pa.binary(),
}

# Arrow types that no Feast value type can carry.
UNSUPPORTED_ARROW: tuple[tuple[str, Callable[[pa.DataType], bool]], ...] = (
    ("duration", pa.types.is_duration),
    ("time of day", pa.types.is_time),
    ("interval", pa.types.is_interval),
    ("union", pa.types.is_union),
)


def check_supported(column: str, kind: pa.DataType, where: str) -> None:
    """Refuse an Arrow type that no Feast value can carry.

    Raises:
        UnsupportedTypeError: names the column, its type and the way out.
    """
    for name, matches in UNSUPPORTED_ARROW:
        if matches(kind):
            raise UnsupportedTypeError(
                f"{where}: column `{column}` is a {name} ({kind}), which Feast has no type for. "
                "Store it as a number (and say the unit in its name) or as text."
            )


def to_values(column: pa.ChunkedArray | pa.Array, kind: ValueType, name: str) -> list[Value]:
    """A column as Feast values, one a row; a null is an empty Value.

    Args:
        column: any Arrow column.
        kind: value type of the feature.
        name: name of the feature, for errors.

    Raises:
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    check_supported(name, column.type, "Materialization")
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    with naming(name, kind, column.type):
        return _to_values(column, kind)


# What Arrow, Feast and protobuf raise for a value that does not fit.
REFUSALS = (
    pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError, AssertionError,
    KeyError,
)  # fmt: skip


@contextmanager
def naming(name: str, kind: ValueType, arrow: pa.DataType) -> Iterator[None]:
    """Name the feature where one of its values does not fit.

    Raises:
        ColumnTypeError: names the feature, what it is declared as and what its column is.
    """
    try:
        yield
    except REFUSALS as error:
        raise ColumnTypeError(
            f"Feature `{name}` is declared as {kind.name}, but its column of type {arrow} "
            f"holds a value that does not fit: {error}. Correct the feature's dtype, or cast the "
            "column in the source."
        ) from error


def _to_values(column: pa.ChunkedArray | pa.Array, kind: ValueType) -> list[Value]:
    field = VALUE_FIELD[kind.name]
    if kind == ValueType.UNIX_TIMESTAMP:
        return _scalars(_seconds(column), field)
    if kind == ValueType.DECIMAL and pa.types.is_decimal(column.type):
        return _scalars(column.cast(pa.string()), field)
    if kind in SCALAR_ARROW:
        return _scalars(column.cast(SCALAR_ARROW[kind]), field)
    values: list[Value] = python_values_to_proto_values(_plain(column), kind)
    return values


def _scalars(column: pa.ChunkedArray | pa.Array, field: str) -> list[Value]:
    return [Value() if cell is None else Value(**{field: cell}) for cell in column.to_pylist()]


def _seconds(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Whole seconds since 1970 UTC, the resolution of Feast's UNIX_TIMESTAMP; floored."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    floored = pc.floor_temporal(column, unit="second")
    return floored.cast(pa.timestamp("s", tz=column.type.tz)).cast(pa.int64())


def _plain(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Python values, with Arrow's maps as dicts."""
    if not _holds_map(column.type):
        cells: list[Any] = column.to_pylist()
        return cells
    return column.to_pylist(maps_as_pydicts="strict")  # type: ignore[no-any-return]


def _holds_map(kind: pa.DataType) -> bool:
    return pa.types.is_map(kind) or any(
        _holds_map(kind.field(i).type) for i in range(kind.num_fields)
    )


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
