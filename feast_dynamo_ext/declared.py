"""What a feature's declared type makes of a column: the one rule of push, materialize, retrieval.

`cast_exact` knows Arrow's types; here is what Feast's value types mean beyond them: a number of
seconds is a time, 16 bytes are a UUID, a text is JSON or it is refused.
"""

from __future__ import annotations

import json
import uuid
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    SCALAR_ARROW,
    UUID_BYTES,
    is_bytes,
    is_list,
    is_number,
    is_text,
    is_time,
    is_uuid,
    plain,
    plain_type,
    uuid_texts,
)
from feast_dynamo_ext.exact import (
    cast_exact,
    check_json,
    refused,
    with_elements,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from feast_dynamo_ext.exact import Column


PLAIN_UUID = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
PLAIN_DECIMAL = r"^[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?$"


def check_texts(
    texts: pa.Array, plain_form: str, parse: Callable[[str], object], what: str
) -> None:
    """Refuse texts that cannot be parsed; most are in a plain form, which is found at once.

    Raises:
        ValueError: counts them.
    """
    if pa.types.is_string_view(texts.type):
        texts = texts.cast(pa.large_string())
    matched = pc.match_substring_regex(texts, plain_form).fill_null(True)
    if pc.all(matched).as_py():
        return
    others = texts.filter(pc.invert(matched))
    bad = sum(not _parses(text, parse) for text in others.to_pylist())
    if bad:
        raise refused(texts, what, bad)


def _parses(text: str, parse: Callable[[str], object]) -> bool:
    try:
        parse(text)
    except (ValueError, InvalidOperation):
        return False
    return True


UUIDS = {ValueType.UUID, ValueType.TIME_UUID}
WHOLE_NUMBERS = {ValueType.INT32, ValueType.INT64}
FLOATS = {ValueType.FLOAT, ValueType.DOUBLE}
SECONDS = pa.timestamp("s", "UTC")


def scalar_exact(array: pa.Array, kind: ValueType) -> pa.Array:
    """Scalars as what a value type keeps of them.

    Numbers in its own width; texts and bytes in any layout; decimals, and times in any unit, as
    they are. What is kept as text is checked for what it says.

    Args:
        array: neither a dictionary nor of Arrow's JSON type: see `plain`.
        kind: a scalar value type.

    Raises:
        ValueError: says how many values do not fit, and shows none.
    """
    if array.null_count == len(array):
        return pa.nulls(len(array), _target(kind))
    rule = SCALAR_RULES.get(kind)
    if rule is not None:
        return rule(array)
    own, target = array.type, SCALAR_ARROW[kind]
    # Any layout of texts and bytes will do.
    same = (is_text(own) and is_text(target)) or (is_bytes(own) and is_bytes(target))
    return array if same else cast_exact(array, target)


def _as_decimals(array: pa.Array) -> pa.Array:
    if is_text(array.type):
        check_texts(array, PLAIN_DECIMAL, Decimal, "decimals")
    elif not pa.types.is_decimal(array.type):
        raise refused(array, "decimals")
    return array


def _as_times(array: pa.Array) -> pa.Array:
    """Times, or numbers of seconds since 1970 UTC."""
    if is_time(array.type):
        return array
    if not is_number(array.type):
        raise refused(array, "times")
    return cast_exact(array, pa.int64()).cast(SECONDS)


def _as_zoned_times(array: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(array.type):
        raise refused(array, "times")
    return array


def _as_uuid_texts(array: pa.Array) -> pa.Array:
    own = array.type
    if is_uuid(own):
        return uuid_texts(array.storage)
    if is_bytes(own):
        sizes = pc.binary_length(array)
        if pc.all(pc.equal(sizes, UUID_BYTES)).as_py():
            return uuid_texts(array.cast(pa.binary(UUID_BYTES)))
        array = cast_exact(array, pa.large_string())
    elif not is_text(own):
        raise refused(array, "UUIDs")
    check_texts(array, PLAIN_UUID, uuid.UUID, "UUIDs")
    return array


def _as_json(array: pa.Array) -> pa.Array:
    """Texts that are JSON; numbers, lists, structs and maps are written as such."""
    if pa.types.is_nested(array.type):
        cells = array.to_pylist(maps_as_pydicts="strict")
        try:
            made = [None if cell is None else json.dumps(cell) for cell in cells]
        except TypeError as error:
            raise refused(array, "JSON") from error
        return pa.array(made, pa.large_string())
    made = array if is_text(array.type) else cast_exact(array, pa.string())
    check_json(made)
    return made


SCALARS = {
    *SCALAR_ARROW,
    *(ValueType.DECIMAL, ValueType.UNIX_TIMESTAMP, ValueType.ZONED_TIMESTAMP),
}
"""Value types of one value a row."""

# Value types that mean more than their Arrow type says.
SCALAR_RULES: dict[ValueType, Callable[[pa.Array], pa.Array]] = {
    ValueType.UUID: _as_uuid_texts,
    ValueType.TIME_UUID: _as_uuid_texts,
    ValueType.JSON: _as_json,
    ValueType.DECIMAL: _as_decimals,
    ValueType.UNIX_TIMESTAMP: _as_times,
    ValueType.ZONED_TIMESTAMP: _as_zoned_times,
}


def folder_types(columns: Iterable[Any], names: Mapping[str, str]) -> dict[str, pa.DataType]:
    """The types of columns that only folders' names say; those of open value types left out.

    Args:
        columns: fields of a view.
        names: of a field the name of its column.
    """
    kinds = {names[column.name]: column.dtype.to_value_type() for column in columns}
    return {
        name: pa.timestamp("us", "UTC") if _target(kind) == SECONDS else _target(kind)
        for name, kind in kinds.items()
        if kind in SCALARS
    }


def element_kind(kind: ValueType) -> ValueType | None:
    """The value type of a list's or set's elements, where it is a scalar."""
    for suffix in ("_LIST", "_SET"):
        if kind.name.endswith(suffix):
            element = kind.name.removesuffix(suffix)
            return next((each for each in SCALARS if each.name == element), None)
    return None


def declared_type(kind: ValueType, column: pa.DataType) -> pa.DataType:
    """The type in which a feature of a column is retrieved.

    The column's own, where what it holds is of the declared kind, also if it is wider (a double
    for a Float32, whose values are then those of a float32), or where the value type leaves the
    Arrow type open (maps, structs, UNKNOWN).

    Args:
        kind: value type that the feature is declared as.
        column: type of the column.
    """
    own = plain_type(column)
    element = element_kind(kind)
    if element is not None:
        if is_text(own) or is_bytes(own):
            return column  # JSON, which Feast parses
        inner = own.value_type if is_list(own) else pa.null()
        wanted = declared_type(element, inner) if is_list(own) else _target(element)
        return column if wanted == inner or pa.types.is_null(own) else _list_of(own, wanted)
    if kind not in SCALARS or pa.types.is_null(own) or _agrees(kind, own) or is_wider(kind, own):
        return column
    return _target(kind)


def is_wider(kind: ValueType, column: pa.DataType) -> bool:
    """Whether a type, or that of a list's elements, holds numbers that the value type cannot."""
    own, element = plain_type(column), element_kind(kind)
    if element is not None:
        return is_list(own) and is_wider(element, own.value_type)
    if kind in WHOLE_NUMBERS:
        return bool(pa.types.is_integer(own) and own.bit_width > _target(kind).bit_width)
    return bool(
        kind in FLOATS and pa.types.is_floating(own) and own.bit_width > _target(kind).bit_width
    )


def _agrees(kind: ValueType, own: pa.DataType) -> bool:
    """Whether any value of an Arrow type is one of a scalar value type, and written like it."""
    target = _target(kind)
    if kind in WHOLE_NUMBERS:
        if not pa.types.is_integer(own):
            return False
        return bool(own.bit_width + pa.types.is_unsigned_integer(own) <= target.bit_width)
    if kind in FLOATS:
        return bool(pa.types.is_floating(own) and own.bit_width <= target.bit_width)
    if kind is ValueType.DECIMAL:
        return is_text(own) or bool(pa.types.is_decimal(own))
    if kind in UUIDS and is_uuid(own):
        return True
    same_kind = next((test for test in (is_text, is_bytes, is_time) if test(target)), None)
    return own == target if same_kind is None else same_kind(own)


def _target(kind: ValueType) -> pa.DataType:
    if kind in {ValueType.UNIX_TIMESTAMP, ValueType.ZONED_TIMESTAMP}:
        return SECONDS
    return SCALAR_ARROW.get(kind, pa.string())


def _list_of(kind: pa.DataType, inner: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)


def as_declared(column: Column, kind: ValueType) -> Column:
    """A column of a feature in its `declared_type`.

    Raises:
        ValueError: says how many values do not fit, and shows none.
    """
    target = declared_type(kind, column.type)
    if target == column.type and not is_wider(kind, target):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([as_declared(chunk, kind) for chunk in column.chunks], target)
    array = plain(column)
    element = element_kind(kind)
    if element is None:
        return cast_exact(scalar_exact(array, kind), target)
    if not is_list(array.type):
        raise refused(array, target)
    return with_elements(array, lambda elements: scalar_exact(elements, element), target)
