"""Maps, structs and lists of lists as Feast's Value messages.

Their parts have no declared type: Feast infers each from its Python value, and so from its Arrow
type here: any integer is an INT64, any float a DOUBLE, a NaN outside of a list is missing.
What Feast refuses only because a value is empty (an empty list in a map) is kept here.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import MapKey
from feast.value_type import ValueType

from feast_dynamo_ext.dynamo.encoding.arrays import (
    flattened,
    is_bytes,
    is_list,
    is_text,
    is_uuid,
    map_entries,
    numbers,
    plain,
    plain_type,
    present,
    seconds,
    texts,
    uuid_texts,
)
from feast_dynamo_ext.dynamo.encoding.lists import collection, runs
from feast_dynamo_ext.dynamo.encoding.protobuf import Message, constant, delimited
from feast_dynamo_ext.dynamo.encoding.scalars import (
    FIELD_NUMBER,
    number_field,
    scalar,
    text_field,
)
from feast_dynamo_ext.type_map import SCALAR_ARROW

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers

KEY, VALUE = 1, 2  # fields of a map's entries

# What Feast infers from the Python values of an Arrow type.
INFERRED: tuple[tuple[Callable[[pa.DataType], bool], ValueType], ...] = (
    (pa.types.is_integer, ValueType.INT64),
    (pa.types.is_floating, ValueType.DOUBLE),
    (pa.types.is_boolean, ValueType.BOOL),
    (is_text, ValueType.STRING),
    (is_bytes, ValueType.BYTES),
    (pa.types.is_timestamp, ValueType.UNIX_TIMESTAMP),
    (pa.types.is_decimal, ValueType.DECIMAL),
    (is_uuid, ValueType.UUID),
)

# Value type of a key -> field of MapKey. Texts are keys of a Map, not of a ScalarMap.
KEY_NUMBER: dict[ValueType, int] = {
    kind: MapKey.DESCRIPTOR.fields_by_name[f"{kind.name.lower()}_key"].number
    for _, kind in INFERRED
    if kind is not ValueType.STRING
}

MAPS = {ValueType.MAP, ValueType.STRUCT}
LISTS_OF_MAPS = {ValueType.MAP_LIST, ValueType.STRUCT_LIST}
LISTS_OF_LISTS = {ValueType.VALUE_LIST, ValueType.VALUE_SET}


def inferred_kind(arrow: pa.DataType) -> ValueType | None:
    """The value type of a scalar of this Arrow type."""
    arrow = plain_type(arrow)
    return next((kind for fits, kind in INFERRED if fits(arrow)), None)


def is_nested(arrow: pa.DataType, kind: ValueType) -> bool:
    """Whether a column of this Arrow type is encoded here."""
    if kind in MAPS:
        return _is_map(arrow)
    if kind in LISTS_OF_MAPS:
        return is_list(arrow) and _is_map(arrow.value_type)
    if kind in LISTS_OF_LISTS:
        return is_list(arrow) and _is_inner_list(arrow.value_type)
    return kind is ValueType.SCALAR_MAP and _is_scalar_map(arrow)


def _is_map(arrow: pa.DataType) -> bool:
    if pa.types.is_struct(arrow):
        names = [each.name for each in arrow]
        return len(set(names)) == len(names) and all(_is_part(each.type) for each in arrow)
    return (
        bool(pa.types.is_map(arrow))
        and is_text(plain_type(arrow.key_type))
        and _is_part(arrow.item_type)
    )


def _is_scalar_map(arrow: pa.DataType) -> bool:
    return (
        bool(pa.types.is_map(arrow))
        and inferred_kind(arrow.key_type) in KEY_NUMBER
        and _is_part(arrow.item_type)
    )


def _is_inner_list(arrow: pa.DataType) -> bool:
    return is_list(arrow) and (_is_inner_list(arrow.value_type) or _is_part(arrow))


def _is_part(arrow: pa.DataType) -> bool:
    """Whether a value inside a map can be of this type."""
    if is_list(arrow):
        return inferred_kind(arrow.value_type) is not None or _is_map(arrow.value_type)
    return pa.types.is_null(arrow) or inferred_kind(arrow) is not None or _is_map(arrow)


def nested(array: pa.Array, kind: ValueType) -> Message:
    """A column of maps, structs or lists of them as Value messages, an empty one for each null.

    Args:
        array: any column for which `is_nested`.
        kind: value type of the feature.

    Raises:
        pyarrow.ArrowException: a value that does not fit.
        ValueError: a key twice in a map, or a null in a list.
    """
    if kind in MAPS:
        message = _map(array)
    elif kind in LISTS_OF_MAPS:
        message = _maps(array)
    elif kind in LISTS_OF_LISTS:
        message = _list_of_lists(array)
    else:
        message = _scalar_map(array)
    return delimited(FIELD_NUMBER[kind], message, present(array))


def _part(array: pa.Array) -> Message:
    """Values inside a map, each as the Value message of its type."""
    array = plain(array)
    if pa.types.is_null(array.type):
        return Message.of(constant(b"", len(array)))
    if is_list(array.type):
        element = inferred_kind(array.type.value_type)
        if element is None:
            return nested(array, ValueType.MAP_LIST)
        return collection(array, ValueType[f"{element.name}_LIST"], nulls=False)
    kind = inferred_kind(array.type)
    return nested(array, ValueType.MAP) if kind is None else _scalar(array, kind)


def _scalar(array: pa.Array, kind: ValueType) -> Message:
    if kind is ValueType.UNIX_TIMESTAMP:
        return number_field(FIELD_NUMBER[kind], seconds(array, toward_zero=True))
    message = scalar(array, kind)
    if kind is ValueType.DOUBLE:
        return message.only(~np.isnan(numbers(array)))
    return message


def _map(array: pa.Array) -> Message:
    """The messages `{map<string, Value> val = 1}`, nothing for each null."""
    if pa.types.is_struct(array.type):
        return _struct(array)
    keys, values, offsets = map_entries(array)
    entries = delimited(KEY, Message.of(texts(keys, pa.large_string())))
    entries += delimited(VALUE, _part(values))
    return runs(delimited(1, entries), offsets)


def _struct(array: pa.StructArray) -> Message:
    entries = [Message.of(constant(b"", len(array)))]
    for name, values in zip([each.name for each in array.type], array.flatten(), strict=True):
        key = Message.of(constant(name.encode(), len(array)))
        entries.append(delimited(1, delimited(KEY, key) + delimited(VALUE, _part(values))))
    return reduce(add, entries).only(present(array))


def _maps(array: pa.Array) -> Message:
    """The messages `{repeated Map val = 1}`."""
    elements, offsets = flattened(array)
    if elements.null_count:
        raise ValueError("a list of maps holds a null")
    return runs(delimited(1, _map(elements)), offsets)


def _list_of_lists(array: pa.Array) -> Message:
    """The messages `{repeated Value val = 1}`; Feast has an empty Value for an empty list."""
    lists, offsets = flattened(array)
    filled = _sizes(lists) > 0
    if is_list(lists.type.value_type):
        number = FIELD_NUMBER[ValueType.VALUE_LIST]
        values = delimited(number, _list_of_lists(lists))
    else:
        values = _part(lists)
    return runs(delimited(1, values.only(filled)), offsets)


def _sizes(lists: pa.Array) -> Integers:
    _, offsets = flattened(lists)
    return np.diff(offsets)


def _scalar_map(array: pa.Array) -> Message:
    """The messages `{repeated {MapKey key = 1; Value value = 2} val = 1}`."""
    keys, values, offsets = map_entries(array)
    entries = delimited(KEY, _map_key(keys)) + delimited(VALUE, _part(values))
    return runs(delimited(1, entries), offsets)


def _map_key(keys: pa.Array) -> Message:
    kind = next(kind for fits, kind in INFERRED if fits(keys.type))
    number = KEY_NUMBER[kind]
    if kind is ValueType.UNIX_TIMESTAMP:
        return number_field(number, seconds(keys, toward_zero=True))
    if kind is ValueType.BYTES:
        return text_field(number, keys)
    if kind is ValueType.UUID:
        return text_field(number, uuid_texts(keys))
    if kind is ValueType.DECIMAL:
        return text_field(number, keys, pa.large_string())
    return number_field(number, keys.cast(SCALAR_ARROW[kind]))
