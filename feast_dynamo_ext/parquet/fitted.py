"""Values in the types of a history's files: equal to what they were, by what they are declared as.

What a push takes is taken here too, and means the same: 16 bytes are a UUID, a number of seconds
is a time. Read back by its declared type, a value is what the push wrote to the online store.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    UUID_BYTES,
    is_bytes,
    is_list,
    is_number,
    is_text,
    is_time,
    plain,
    plain_type,
)
from feast_dynamo_ext.declared import (
    LISTS,
    OPEN_KINDS,
    SCALARS,
    SECONDS,
    UUIDS,
    any_exact,
    as_json,
    element_kind,
    name_of,
    parsed_json,
    scalar_exact,
    value_type,
)
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.exact import cast_exact, check_json, refused, with_elements

if TYPE_CHECKING:
    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.exact import Column


def fitted(
    values: pa.ChunkedArray,
    kind: pa.DataType,
    name: str,
    column: str,
    there: str,
    declared: Declared | None = None,
) -> pa.ChunkedArray:
    """Values in the type of a column that is there, each equal to what it was.

    Args:
        values: the values.
        kind: the type of the column.
        name: of the column.
        column: what it is called in messages.
        there: where it is.
        declared: what the feature or join key is declared as; None where nobody says. Then no
            value is taken for one of another family.

    Raises:
        ColumnTypeError: the type is of another family, or a value would not come back equal.
    """
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), kind)])
    is_open = declared is None or value_type(declared) in OPEN_KINDS
    try:
        if is_open and _is_of_another_family(values.type, kind):
            raise refused(values, kind)
        if declared is not None:
            return stored_as(values, declared, kind)
        return cast_exact(values, kind)
    except ValueError as error:
        advice = "Cast it, so that you choose what is lost."
        if is_time(kind) and is_number(values.type) and declared is not ValueType.UNIX_TIMESTAMP:
            advice = (
                f"Say what the numbers count: `pd.to_datetime(rows['{name}'], unit=\"s\", "
                "utc=True)`."
            )
        if declared is not None:
            column += f", declared as {name_of(declared)},"
        raise ColumnTypeError(
            f"{column} is {values.type}, and does not fit the {kind} of {there}: {error}. {advice}"
        ) from error


def _is_of_another_family(given: pa.DataType, kind: pa.DataType) -> bool:
    """Whether an exact cast would change what values are: 7 is no text. Inside of lists, too."""
    given, kind = plain_type(given), plain_type(kind)
    if is_list(given) and is_list(kind):
        return _is_of_another_family(given.value_type, kind.value_type)
    if pa.types.is_struct(given) and pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        return any(
            _is_of_another_family(field.type, types.get(field.name, field.type)) for field in given
        )
    if pa.types.is_map(given) and pa.types.is_map(kind):
        return _is_of_another_family(given.key_type, kind.key_type) or _is_of_another_family(
            given.item_type, kind.item_type
        )
    return is_text(kind) and (
        is_number(given) or is_time(given) or bool(pa.types.is_boolean(given))
    )


def stored_as(column: Column, declared: Declared, target: pa.DataType) -> Column:
    """Values of a feature as a file has them; read back, they are what a push makes of them.

    Args:
        column: the values, as a push may have them.
        declared: what the feature is declared as.
        target: the type of the column in the files.

    Raises:
        ValueError: says how many values do not fit, and shows none.
    """
    if isinstance(column, pa.ChunkedArray):
        chunks = [stored_as(chunk, declared, target) for chunk in column.chunks]
        return pa.chunked_array(chunks, target)
    array = plain(column)
    if array.null_count == len(array):
        return pa.nulls(len(array), target)
    if pa.types.is_dictionary(target):
        return cast_exact(stored_as(array, declared, target.value_type), target)
    if isinstance(declared, ValueType) and declared in SCALARS:
        return _scalar_stored(array, declared, target)
    if is_list(array.type) and is_list(target) and isinstance(declared, ValueType):
        element = MAPS_OF.get(declared) or element_kind(declared) or ValueType.UNKNOWN
        return with_elements(
            array, lambda part: stored_as(part, element, target.value_type), target
        )
    return _collection_stored(array, declared, target)


MAPS_OF = {ValueType.MAP_LIST: ValueType.MAP, ValueType.STRUCT_LIST: ValueType.STRUCT}


def _collection_stored(array: pa.Array, declared: Declared, target: pa.DataType) -> pa.Array:
    """Lists, structs and maps, some of which are kept as JSON; and what nobody declared."""
    if declared is ValueType.UNKNOWN:
        return cast_exact(array, target)
    in_json, to_json = (is_text(kind) or is_bytes(kind) for kind in (array.type, target))
    if not in_json:
        array = any_exact(array, declared)
        if to_json:
            return cast_exact(_whole_json(array), target)
        if pa.types.is_struct(array.type) and pa.types.is_map(target):
            array = _map_of_struct(array, target)
        return cast_exact(array, target)
    if to_json and value_type(declared) in OPEN_KINDS:
        check_json(array)
        return cast_exact(array, target)
    parsed = parsed_json(array, lists=is_list(target) or value_type(declared) in LISTS)
    exact = any_exact(parsed, declared) if not pa.types.is_null(parsed.type) else parsed
    return cast_exact(array if to_json else exact, target)


def _scalar_stored(array: pa.Array, kind: ValueType, target: pa.DataType) -> pa.Array:
    own = array.type
    if kind is ValueType.DECIMAL and is_number(own) and pa.types.is_decimal(target):
        return cast_exact(array, target)
    exact = scalar_exact(array, kind)
    if kind in UUIDS:
        if pa.types.is_binary(target) or target in (pa.large_binary(), pa.binary(UUID_BYTES)):
            exact = cast_exact(exact, pa.uuid())
    elif kind is ValueType.JSON:
        if pa.types.is_nested(own) and not pa.types.is_nested(target):
            exact = _whole_json(array)
        elif pa.types.is_nested(target):
            in_json = is_text(own) or is_bytes(own)
            exact = parsed_json(array, lists=is_list(target)) if in_json else array
        elif is_number(target) or pa.types.is_boolean(target):
            exact = array
    elif kind is ValueType.DECIMAL:
        if is_text(exact.type) and pa.types.is_decimal(target):
            exact = _parsed_decimals(exact, target)
    elif kind is ValueType.UNIX_TIMESTAMP:
        if is_number(target):
            exact = array if is_number(own) else cast_exact(exact, SECONDS).cast(pa.int64())
    elif not (is_text(target) or is_bytes(target)):
        exact = array  # not by a float32 into a double
    stored = cast_exact(exact, target)
    scalar_exact(plain(stored), kind)  # a text is no number, even if it looks like one
    return stored


def _whole_json(array: pa.Array) -> pa.Array:
    """Maps and lists as JSON, where no key may have been added to them.

    Raises:
        ValueError: a null beside other values of a map.
    """
    if _has_null_fields(array):
        raise ValueError(
            "maps of several sets of keys came as structs, in which a key that is missing is "
            "null as well; give them as texts of JSON (`json.dumps`)"
        )
    return as_json(array)


def _has_null_fields(array: pa.Array) -> bool:
    array = plain(array)
    if is_list(array.type):
        return _has_null_fields(pc.list_flatten(array))
    if not pa.types.is_struct(array.type):
        return False
    parts = array.filter(array.is_valid()).flatten()
    return any(part.null_count or _has_null_fields(part) for part in parts)


def _map_of_struct(array: pa.StructArray, target: pa.MapType) -> pa.Array:
    """Structs, as which maps of Python come, as maps.

    Raises:
        ValueError: a null, which may stand for a missing key, or values of several types.
    """
    if _has_null_fields(array):
        raise ValueError(
            "maps of several sets of keys came as structs, in which a key that is missing is "
            "null as well; give them as lists of pairs"
        )
    names, parts = [field.name for field in array.type], array.flatten()
    if any(is_text(part.type) != is_text(target.item_type) for part in parts):
        raise refused(array, target)
    # Of each row the values of all keys, one after the other.
    rows, count = len(array), len(names)
    order = np.arange(count * rows).reshape(count, rows).T.ravel()
    items = pa.concat_arrays([cast_exact(part, target.item_type) for part in parts])
    keys = cast_exact(pa.array(names * rows, pa.string()), target.key_type)
    offsets = pa.array(np.arange(rows + 1) * count, pa.int32())
    missing = array.is_null() if array.null_count else None
    return pa.MapArray.from_arrays(
        offsets, keys, items.take(pa.array(order)), target, mask=missing
    )


def _parsed_decimals(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Texts of decimals in a type that holds each of them.

    Raises:
        ValueError: counts those that it does not hold.
    """
    cells = [None if text is None else Decimal(text) for text in texts.to_pylist()]

    def fits(cell: Decimal | None) -> bool:
        try:
            return cell is None or pa.scalar(cell, target).as_py() == cell
        except pa.ArrowException:
            return False

    bad = sum(not fits(cell) for cell in cells)
    if bad:
        raise refused(texts, target, bad)
    return pa.array(cells, target)
