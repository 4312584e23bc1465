"""What values are as join keys: as the online store keeps them, and as history compares them.

Entity rows come from pandas, history from files: the same key may be int32 here and int64 there,
or a dictionary. Both sides are brought to one type a family, exactly or not at all. A value that
can be a key of the one store and not of the other is a key of neither.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    MOST_DIGITS,
    is_bytes,
    is_text,
    is_time,
    is_uuid,
    one_array,
    plain,
    uuid_texts,
    without_dictionary,
)
from feast_dynamo_ext.declared import FIRST_S, LAST_S, scalar_exact
from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError
from feast_dynamo_ext.exact import (
    inexact_count,
    refuse_inexact_integers,
    refused,
    without_nan,
)

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

# Value types that Feast has a key encoding for -> families that have keys of them.
KEY_FAMILIES = {
    ValueType.STRING: {"text", "bytes", "integer"},
    ValueType.INT32: {"integer"},
    ValueType.INT64: {"integer"},
    ValueType.UNIX_TIMESTAMP: {"time", "integer"},
    ValueType.BYTES: {"bytes", "text"},
}

INT32_BITS = 32
INT32_RANGE = -(2**31), 2**31 - 1


def family(kind: pa.DataType) -> str | None:
    """The family of types that a key's type belongs to, or None where it cannot be a key."""
    kind = without_dictionary(kind)
    return next((name for name, matches, _ in FAMILIES if matches(kind)), None)


def key_exact(array: pa.Array, kind: ValueType) -> pa.Array:
    """A join key's values in its declared type, as whose text, number or second they are read.

    Stricter than features: a reader gives a key as a Python value, and of True, 1.5 or a time
    there is no one text that it would be looked up by.

    Args:
        array: neither a dictionary nor of Arrow's JSON type: see `arrow_types.plain`.
        kind: the declared type, one that Feast has a key encoding for.

    Raises:
        ValueError: says how many values cannot be keys, and shows none.
    """
    own = array.type
    if pa.types.is_floating(own):
        refuse_inexact_integers(array)
    _refuse_several_forms(own, kind)
    if kind is ValueType.UNIX_TIMESTAMP and is_time(own):
        return whole_seconds(array)
    return scalar_exact(array, kind)


def check_key_type(column: pa.DataType, kind: ValueType) -> None:
    """Refuse a column of which no value is a key of a declared type, by its type alone.

    Raises:
        ValueError: `key_exact` takes no value of that type.
    """
    own = without_dictionary(column)
    if kind not in KEY_FAMILIES or pa.types.is_null(own):
        return
    _refuse_several_forms(own, kind)
    if family(own) not in {None, *KEY_FAMILIES[kind]}:
        raise ValueError(f"values of type {own} cannot be {kind.name} without a change")


def least_and_most(column: pa.DataType, kind: ValueType) -> tuple[int, int] | None:
    """The integers that are keys of a declared type; None where a column has no others."""
    own = without_dictionary(column)
    if family(own) != "integer" or pa.types.is_null(own):
        return None
    if kind is ValueType.UNIX_TIMESTAMP:
        return FIRST_S, LAST_S
    is_signed = pa.types.is_signed_integer(own)
    is_narrow = pa.types.is_integer(own) and own.bit_width + (not is_signed) <= INT32_BITS
    return None if kind is not ValueType.INT32 or is_narrow else INT32_RANGE


def has_other_keys(column: pa.DataType, kind: ValueType) -> bool:
    """Whether only its values say if a column, whose type `check_key_type` takes, holds keys."""
    is_of_bytes = kind is ValueType.STRING and is_bytes(without_dictionary(column))
    return is_of_bytes or least_and_most(column, kind) is not None


def check_keys(array: pa.Array, kind: ValueType) -> None:
    """Refuse what `has_other_keys` doubts; integers by their ends, in a fifth of the time.

    Raises:
        ValueError: says how many values cannot be keys.
    """
    limits = least_and_most(array.type, kind)
    if limits is not None and pa.types.is_integer(array.type):
        ends = pc.min_max(array).as_py()
        if ends["min"] is None or (limits[0] <= ends["min"] and ends["max"] <= limits[1]):
            return
    key_exact(plain(array), kind)


def _refuse_several_forms(own: pa.DataType, kind: ValueType) -> None:
    if pa.types.is_boolean(own) or (kind is ValueType.STRING and _has_several_texts(own)):
        raise ValueError(
            f"values of type {own} are not looked up as what they would be written as; make a "
            "text or a whole number of each"
        )


def _has_several_texts(kind: pa.DataType) -> bool:
    has_fractions = pa.types.is_decimal(kind) and kind.scale > 0
    return has_fractions or bool(pa.types.is_floating(kind)) or is_time(kind)


def is_doubtful_key(column: pa.DataType, kind: ValueType) -> bool:
    """Whether a column that fits a join key's declared type may still hold what is no key."""
    own = without_dictionary(column)
    is_key = kind in {ValueType.STRING, ValueType.INT32, ValueType.INT64, ValueType.UNIX_TIMESTAMP}
    tests = (pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, is_time)
    return is_key and any(test(own) for test in tests)


def whole_seconds(array: pa.Array) -> pa.TimestampArray:
    """Times in seconds, the resolution of Feast's keys.

    Raises:
        ValueError: counts those with a part below a second.
    """
    zone = array.type.tz if pa.types.is_timestamp(array.type) else None
    target = pa.timestamp("s", zone)
    if pa.types.is_date64(array.type):
        array = array.cast(pa.timestamp("ms"))
    try:
        return array.cast(target)
    except pa.ArrowException:
        # Arrow's words show the value.
        bad = inexact_count(array, lambda part: part.cast(target))
        raise ValueError(
            f"{bad:,} of {len(array) - array.null_count:,} times have a part below a second, "
            "which Feast's keys do not hold; round them"
        ) from None


def comparable(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A key column in the type in which its family is compared.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit, for example 1.5, a uint64 over 2^63 - 1, a
            float so large that it may have been another integer, or a part of a second. It shows
            no value.
    """
    column = column.cast(without_dictionary(column.type))
    kind = column.type
    if is_uuid(kind):
        return _texts_of_uuids(column)
    try:
        if family(kind) == "time":
            column = whole_seconds(one_array(column))
        if pa.types.is_floating(kind):
            column = without_nan(one_array(column))
            refuse_inexact_integers(column)
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from error
    if pa.types.is_decimal(kind):
        # Arrow finds any decimal of 32 or 64 bits out of the bounds of an integer.
        column = column.cast(pa.decimal256(MOST_DIGITS[256], kind.scale))
    target = next(target for _, matches, target in FAMILIES if matches(column.type))
    try:
        return pc.cast(column, target)
    except pa.ArrowException:
        # Arrow's words show the value.
        array = one_array(column)
        bad = inexact_count(array, lambda part: part.cast(target))
        raise pa.ArrowInvalid(str(refused(array.cast(kind), target, bad))) from None


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
