"""The types that join keys are compared in.

Entity rows come from pandas, history from files: the same key may be int32 here and int64 there,
or a dictionary. Both sides are brought to one type a family, exactly or not at all.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import (
    MOST_DIGITS,
    is_bytes,
    is_text,
    is_time,
    is_uuid,
    one_array,
    uuid_texts,
    without_dictionary,
)
from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError
from feast_dynamo_ext.exact import refuse_inexact_integers, without_nan

FAMILIES = (
    ("integer", pa.types.is_integer, pa.int64()),
    ("text", is_text, pa.string()),
    # As Feast's own UUIDs are.
    ("text", is_uuid, pa.string()),
    ("bytes", is_bytes, pa.binary()),
    ("boolean", pa.types.is_boolean, pa.bool_()),
    ("time", is_time, pa.int64()),
    # pandas turns integers into floats where one is missing.
    ("integer", pa.types.is_floating, pa.int64()),
    # Databases have whole numbers without an integer type, as Oracle's NUMBER.
    ("integer", pa.types.is_decimal, pa.int64()),
    ("integer", pa.types.is_null, pa.int64()),
)


def family(kind: pa.DataType) -> str | None:
    """The family of types that a key's type belongs to, or None where it cannot be a key."""
    kind = without_dictionary(kind)
    return next((name for name, matches, _ in FAMILIES if matches(kind)), None)


def comparable(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A key column in the type in which its family is compared.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit, for example 1.5 or a uint64 over 2^63 - 1, or
            a float so large that it may have been another integer.
    """
    column = column.cast(without_dictionary(column.type))
    kind = column.type
    if is_uuid(kind):
        return _texts_of_uuids(column)
    if family(kind) == "time":
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        column = column.cast(pa.timestamp("us", tz=zone))
    if pa.types.is_floating(kind):
        column = _surely_whole(column)
    if pa.types.is_decimal(kind):
        # Arrow finds any decimal of 32 or 64 bits out of the bounds of an integer.
        column = column.cast(pa.decimal256(MOST_DIGITS[256], kind.scale))
    target = next(target for _, matches, target in FAMILIES if matches(column.type))
    return pc.cast(column, target)


def _surely_whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Floats of which each was one integer alone; NaN, a missing value, becomes null."""
    array = without_nan(one_array(column))
    try:
        refuse_inexact_integers(array)
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from error
    return array


def _texts_of_uuids(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([_texts_of_uuids(chunk) for chunk in column.chunks], pa.string())
    return uuid_texts(column.storage).cast(pa.string())


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
