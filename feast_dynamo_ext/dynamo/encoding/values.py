"""Columns of features as Feast's Value messages, and rows of them as items keep them.

Numbers of a list are packed: their bytes follow each other without tags, so that a column of
lists needs nothing but its elements' bytes, cut where the lists start.

Their parts have no declared type: Feast infers each from its Python value, and so from its Arrow
type here: any integer is an INT64, any float a DOUBLE, a NaN outside of a list is missing.
What Feast refuses only because a value is empty (an empty list in a map) is kept here, and an
empty list in a list, of which it makes a null.

Where Feast's own `python_values_to_proto_values` keeps a value, the bytes are its own and those of
`packed.pack`, save for the order of maps' entries and of sets, which in Feast is that of hash
tables. Which values fit a type is the rule of `declared`, not Feast's: it rounds, overflows,
and writes zeros and empty texts for nulls inside of lists. Float lists hold NaN for them.
A time is the second that it is in, wherever it stands: Feast rounds those before 1970 up inside
of lists and maps.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import MapKey, Value, ZonedTimestamp
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    SCALAR_ARROW,
    VALUE_FIELD,
    check_supported,
    is_bytes,
    is_list,
    is_text,
    is_uuid,
    naming,
    numbers,
    plain,
    plain_type,
    present,
    seconds,
    texts,
    uuid_texts,
)
from feast_dynamo_ext.declared import (
    LISTS_OF_LISTS,
    LISTS_OF_MAPS,
    MAPS,
    SCALARS,
    element_kind,
    has_form,
    in_json,
    name_of,
    scalar_exact,
    value_type,
)
from feast_dynamo_ext.declared_values import (
    codes_of,
    first_of_equal,
    maps_of,
    nested_exact,
    parsed_json,
)
from feast_dynamo_ext.dynamo.encoding.protobuf import (
    FIXED32,
    FIXED64,
    VARINT,
    Message,
    constant,
    delimited,
    field,
    fixed,
    grouped,
    offsets_of,
    varints,
)
from feast_dynamo_ext.exact import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers, Slots

    Column: TypeAlias = pa.Array | pa.ChunkedArray


def flattened(array: pa.Array) -> tuple[pa.Array, Integers]:
    """The elements of all lists, and where those of each list start and the last ones end.

    A null has no elements.
    """
    lengths = numbers(pc.list_value_length(array)).astype(np.int64)
    return pc.list_flatten(array), offsets_of(lengths)


def rows_of(offsets: Integers) -> Integers:
    """Of each element, the row of its list."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def map_entries(array: pa.MapArray) -> tuple[pa.Array, pa.Array, Integers]:
    """The keys and the values of all maps, and where those of each map start.

    Raises:
        ValueError: a map that has a key twice.
    """
    entry = pa.struct([pa.field("key", array.type.key_type, nullable=False),
                       pa.field("value", array.type.item_type)])  # fmt: skip
    entries, offsets = flattened(array.cast(pa.list_(entry)))
    keys, values = entries.flatten()
    keys = plain(keys)
    codes, count = codes_of(uuid_texts(keys.storage) if is_uuid(keys.type) else keys)
    if len(np.unique(rows_of(offsets) * count + codes)) < len(codes):
        raise ValueError("a map has a key twice")
    return keys, values, offsets


# Feast's value type -> number of its field of the Value message.
FIELD_NUMBER: dict[ValueType, int] = {
    kind: Value.DESCRIPTOR.fields_by_name[VALUE_FIELD[kind.name]].number
    for kind in ValueType
    if kind.name in VALUE_FIELD
}
SECONDS_NUMBER, ZONE_NUMBER = (field.number for field in ZonedTimestamp.DESCRIPTOR.fields)

WIRE = {pa.float64(): FIXED64, pa.float32(): FIXED32}


def number_slots(array: pa.Array) -> Slots:
    """Numbers as protobuf writes them, a zero for each null."""
    values = numbers(array)
    return varints(values) if pa.types.is_integer(array.type) else fixed(values)


def number_field(number: int, array: pa.Array) -> Message:
    """A field of int32, int64, float32, float64 or bool; nothing where the array is null."""
    wire = WIRE.get(array.type, VARINT)
    return field(number, wire, number_slots(array)).masked(present(array))


def text_field(number: int, array: pa.Array, kind: pa.DataType | None = None) -> Message:
    """A field of texts or bytes; nothing where the array is null."""
    return delimited(number, Message.from_part(texts(array, kind)), present(array))


def scalar(array: pa.Array, kind: ValueType) -> Message:
    """A column of scalars as Value messages, an empty one for each null.

    Args:
        array: any column that is neither a dictionary nor of Arrow's JSON type.
        kind: a scalar value type.

    Raises:
        ValueError: a value that does not fit.
        pyarrow.ArrowException: a text that is not UTF-8.
    """
    number = FIELD_NUMBER[kind]
    array = scalar_exact(array, kind)
    if kind is ValueType.ZONED_TIMESTAMP:
        return _zoned(array)
    if kind is ValueType.UNIX_TIMESTAMP:
        return number_field(number, seconds(array))
    target = SCALAR_ARROW.get(kind, pa.string())
    if pa.types.is_string(target):
        return text_field(number, array, pa.large_string())
    if pa.types.is_binary(target):
        return text_field(number, array)
    return number_field(number, array)


def _zoned(array: pa.Array) -> Message:
    """Whole seconds and the zone, each left out where it is the default."""
    whole = seconds(array)
    zone = constant(_zone_name(array.type.tz or "").encode(), len(array))
    message = number_field(SECONDS_NUMBER, whole).masked(numbers(whole) != 0)
    if zone.cells.shape[1]:
        message += delimited(ZONE_NUMBER, Message.from_part(zone))
    message = message.masked(present(array))
    return delimited(FIELD_NUMBER[ValueType.ZONED_TIMESTAMP], message, present(array))


def _zone_name(zone: str) -> str:
    """As Feast names it and can read it, also where pandas has a name of its own for it."""
    if not zone.startswith(("+", "-")):
        return zone
    return "UTC" if zone[1:] == "00:00" else f"UTC{zone}"


COLLECTIONS: dict[ValueType, ValueType] = {
    kind: element for kind in ValueType if (element := element_kind(kind)) in FIELD_NUMBER
}
"""Value type of a list or set of scalars -> that of its elements."""


def collection(array: pa.Array, kind: ValueType) -> Message:
    """A column of lists or sets as Value messages, an empty one for each null.

    Args:
        array: lists of any layout.
        kind: a value type of `COLLECTIONS`.

    Raises:
        ValueError: a value that does not fit, or a null that Feast's lists cannot hold.
        pyarrow.ArrowException: a text that is not UTF-8.
    """
    elements, offsets = flattened(array)
    element, is_set = COLLECTIONS[kind], kind.name.endswith("_SET")
    elements = scalar_exact(plain(elements), element)
    if elements.null_count:
        elements = _without_nulls(elements, element, is_set=is_set)
    elements = _as_written(elements, element)
    if is_set:
        # In their order; Feast's order of a set is Python's, so any.
        first, sizes = first_of_equal(elements, np.diff(offsets), element)
        elements, offsets = elements.take(pa.array(first)), offsets_of(sizes)
    return delimited(FIELD_NUMBER[kind], repeated(elements, offsets), present(array))


def _without_nulls(elements: pa.Array, kind: ValueType, *, is_set: bool) -> pa.Array:
    if kind is ValueType.JSON:
        return elements.fill_null("null")  # which is JSON
    if pa.types.is_floating(elements.type):
        return elements.fill_null(float("nan"))
    raise ValueError(
        f"{elements.null_count:,} nulls inside of its {'sets' if is_set else 'lists'}, where "
        "Feast has no null. Take them out, or declare a list of floats, which holds NaN"
    )


def _as_written(elements: pa.Array, kind: ValueType) -> pa.Array:
    """Elements as one of the types that `repeated` takes."""
    if kind is ValueType.UNIX_TIMESTAMP:
        return seconds(elements)
    target = SCALAR_ARROW.get(kind, pa.string())
    if pa.types.is_string(target):
        return texts(elements, pa.large_string())
    return texts(elements) if pa.types.is_binary(target) else elements


def _from_json(array: pa.Array, kind: ValueType) -> Message:
    """Lists, or lists of lists, that are kept as JSON in texts or bytes."""
    lists = parsed_json(array, lists=True, declared=kind)
    if not is_list(lists.type):
        return _missing(len(lists))
    if kind in COLLECTIONS:
        return collection(lists, kind)
    lists = _typed(lists)
    if not is_nested(lists.type, kind):
        # Feast would take a text for a list of its characters.
        raise ValueError("its JSON is not a list of lists")
    return nested(lists, kind)


def _typed(lists: pa.Array) -> pa.Array:
    """Lists of lists; those that are all empty are of texts, as where nobody declares more."""
    inner = lists.type.value_type
    is_empty = pa.types.is_null(inner) or (is_list(inner) and pa.types.is_null(inner.value_type))
    return lists.cast(pa.list_(pa.list_(pa.string()))) if is_empty else lists


def _missing(rows: int) -> Message:
    return Message.from_part(constant(b"", rows))


def repeated(elements: pa.Array, offsets: Integers) -> Message:
    """The messages `{repeated T val = 1}`: Int64List, StringList and their like.

    Args:
        elements: int32, int64, float32, float64, bool or large_binary, without nulls.
        offsets: where each row's elements start, and where the last ones end.
    """
    if pa.types.is_large_binary(elements.type):
        return concat_by_row(delimited(1, Message.from_part(elements)), offsets)
    packed = grouped(number_slots(elements).to_array(), offsets)
    return delimited(1, Message.from_part(packed), np.diff(offsets) > 0)


def concat_by_row(elements: Message, offsets: Integers) -> Message:
    """Each row's elements, one after another."""
    return Message.from_part(grouped(elements.to_array(), offsets))


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
        return len(set(names)) == len(names) and all(_is_inner_type(each.type) for each in arrow)
    return (
        bool(pa.types.is_map(arrow))
        and is_text(plain_type(arrow.key_type))
        and _is_inner_type(arrow.item_type)
    )


def _is_scalar_map(arrow: pa.DataType) -> bool:
    return (
        bool(pa.types.is_map(arrow))
        and inferred_kind(arrow.key_type) in KEY_NUMBER
        and _is_inner_type(arrow.item_type)
    )


def _is_inner_list(arrow: pa.DataType) -> bool:
    return is_list(arrow) and (_is_inner_list(arrow.value_type) or _is_inner_type(arrow))


def _is_inner_type(arrow: pa.DataType) -> bool:
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


def _inner_values(array: pa.Array) -> Message:
    """Values inside a map, each as the Value message of its type."""
    array = plain(array)
    if pa.types.is_null(array.type):
        return _missing(len(array))
    if is_list(array.type):
        element = inferred_kind(array.type.value_type)
        if element is None:
            return nested(array, ValueType.MAP_LIST)
        return collection(array, ValueType[f"{element.name}_LIST"])
    kind = inferred_kind(array.type)
    return nested(array, ValueType.MAP) if kind is None else _scalar(array, kind)


def _scalar(array: pa.Array, kind: ValueType) -> Message:
    if kind is ValueType.UNIX_TIMESTAMP:
        return number_field(FIELD_NUMBER[kind], seconds(array))
    message = scalar(array, kind)
    if kind is ValueType.DOUBLE:
        return message.masked(~np.isnan(numbers(array)))
    return message


def _map(array: pa.Array) -> Message:
    """The messages `{map<string, Value> val = 1}`, nothing for each null."""
    if pa.types.is_struct(array.type):
        return _struct(array)
    keys, values, offsets = map_entries(array)
    entries = delimited(KEY, Message.from_part(texts(keys, pa.large_string())))
    entries += delimited(VALUE, _inner_values(values))
    return concat_by_row(delimited(1, entries), offsets)


def _struct(array: pa.StructArray) -> Message:
    entries = [Message.from_part(constant(b"", len(array)))]
    for name, values in zip([each.name for each in array.type], array.flatten(), strict=True):
        key = Message.from_part(constant(name.encode(), len(array)))
        entries.append(delimited(1, delimited(KEY, key) + delimited(VALUE, _inner_values(values))))
    return reduce(add, entries).masked(present(array))


def _maps(array: pa.Array) -> Message:
    """The messages `{repeated Map val = 1}`."""
    elements, offsets = flattened(array)
    if elements.null_count:
        raise ValueError("a list of maps holds a null")
    return concat_by_row(delimited(1, _map(elements)), offsets)


def _list_of_lists(array: pa.Array) -> Message:
    """The messages `{repeated Value val = 1}`; Feast would make a null of an empty list."""
    lists, offsets = flattened(array)
    if is_list(lists.type.value_type):
        number = FIELD_NUMBER[ValueType.VALUE_LIST]
        values = delimited(number, _list_of_lists(lists), present(lists))
    else:
        values = _inner_values(lists)
    return concat_by_row(delimited(1, values), offsets)


def _scalar_map(array: pa.Array) -> Message:
    """The messages `{repeated {MapKey key = 1; Value value = 2} val = 1}`."""
    keys, values, offsets = map_entries(array)
    entries = delimited(KEY, _map_key(keys)) + delimited(VALUE, _inner_values(values))
    return concat_by_row(delimited(1, entries), offsets)


def _map_key(keys: pa.Array) -> Message:
    kind = next(kind for fits, kind in INFERRED if fits(keys.type))
    number = KEY_NUMBER[kind]
    if kind is ValueType.UNIX_TIMESTAMP:
        return number_field(number, seconds(keys))
    if kind is ValueType.BYTES:
        return text_field(number, keys)
    if kind is ValueType.UUID:
        return text_field(number, uuid_texts(keys.storage))
    if kind is ValueType.DECIMAL:
        return text_field(number, keys, pa.large_string())
    return number_field(number, scalar_exact(keys, kind))


def encode_column(
    column: Column, kind: Declared, name: str, view: str = ""
) -> pa.LargeBinaryArray:
    """A column as serialized Value messages, an empty one for each null.

    Args:
        column: any Arrow column.
        kind: what the feature is declared as.
        name: name of the feature, for errors.
        view: name of its view, for errors.

    Raises:
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    check_supported(name, column.type, f"Feature view `{view}`")
    return _one_array_of(
        [_values(chunk, kind, name, view).to_array() for (chunk,) in _aligned([column])]
    )


def encode_values(
    columns: Sequence[Column], kinds: Sequence[Declared], names: Sequence[str], view: str = ""
) -> pa.LargeBinaryArray:
    """Rows as serialized `RepeatedValue` messages: the values of an item.

    Args:
        columns: one Arrow column a feature, at least one, all of the same length.
        kinds: what each feature is declared as: see `declared.declared_as`.
        names: name of each feature, for errors.
        view: name of their view, for errors.

    Raises:
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    for column, name in zip(columns, names, strict=True):
        check_supported(name, column.type, f"Feature view `{view}`")
    return _one_array_of(
        [
            reduce(
                add,
                [
                    delimited(1, _values(chunk, kind, name, view))
                    for chunk, kind, name in zip(chunks, kinds, names, strict=True)
                ],
            ).to_array()
            for chunks in _aligned(columns)
        ]
    )


def _values(array: pa.Array, declared: Declared, name: str, view: str) -> Message:
    array = plain(array)
    with naming(name, name_of(declared), array.type, view):
        if not isinstance(declared, ValueType):
            array = nested_exact(array, declared)
        kind = value_type(declared)
        message = _by_column(array, kind)
        return _cell_by_cell(array, kind) if message is None else message


def _cell_by_cell(array: pa.Array, kind: ValueType) -> Message:
    """By Feast's own function: maps and structs kept as JSON texts, and what it refuses."""
    if kind not in FIELD_NUMBER:
        raise ValueError("Feast's Value message has no field of that type")
    if not has_form(array.type, kind):
        raise refused(array, kind.name)
    cells = (
        maps_of(array, lists=kind in LISTS_OF_MAPS) if in_json(array.type, kind) else _cells(array)
    )
    try:
        values: list[Value] = python_values_to_proto_values(cells, kind)
    except Exception as error:  # noqa: BLE001 - it raises bare ones too
        # Feast's words show the value.
        raise ValueError(f"Feast cannot write it ({type(error).__name__})") from None
    encoded = [value.SerializeToString() for value in values]
    return Message.from_part(pa.array(encoded, pa.large_binary()))


def _cells(array: pa.Array) -> list[Any]:
    """Python values, with Arrow's maps as dicts."""
    if not _holds_map(array.type):
        cells: list[Any] = array.to_pylist()
        return cells
    return array.to_pylist(maps_as_pydicts="strict")  # type: ignore[no-any-return]


def _holds_map(kind: pa.DataType) -> bool:
    return pa.types.is_map(kind) or any(
        _holds_map(kind.field(i).type) for i in range(kind.num_fields)
    )


def _by_column(array: pa.Array, kind: ValueType) -> Message | None:
    """The Value messages of a column; None where they are made cell by cell."""
    if pa.types.is_null(array.type):
        return _missing(len(array))
    if kind in SCALARS:
        return scalar(array, kind)
    if kind in COLLECTIONS or kind in LISTS_OF_LISTS:
        if is_text(array.type) or is_bytes(array.type):
            return _from_json(array, kind)
        if kind in COLLECTIONS:
            return collection(array, kind) if is_list(array.type) else None
        if is_list(array.type):
            array = _typed(array)
    if kind is ValueType.UNKNOWN:
        # As Feast infers it, from the Arrow type in place of the first value.
        return _inner_values(array) if _is_inner_type(array.type) else None
    return nested(array, kind) if is_nested(array.type, kind) else None


def _aligned(columns: Sequence[Column]) -> list[list[pa.Array]]:
    """The columns in batches of which each has one array, without a copy."""
    if not any(isinstance(column, pa.ChunkedArray) for column in columns):
        return [list(columns)]
    table = pa.table(list(columns), names=[str(at) for at in range(len(columns))])
    return [batch.columns for batch in table.to_batches()]


def _one_array_of(parts: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays([*parts, pa.array([], pa.large_binary())])
