"""What a feature's declared type makes of a column: the one rule of push, materialize, retrieval.

`cast_exact` knows Arrow's types; here is what Feast's types mean beyond them: a number of seconds
is a time, 16 bytes are a UUID, a text is JSON or it is refused.

Most of Feast's types are a value type. Nested types hold more than theirs says: VALUE_LIST is any
list of lists, STRUCT has no fields. So a declared type is a value type here, or the dtype of a
field where it is nested: see `declared_as`.
"""

from __future__ import annotations

import json
import uuid
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from feast.types import Array, ComplexFeastType, Set, String, Struct
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    SCALAR_ARROW,
    UUID_BYTES,
    UUID_GROUPS,
    UUID_TEXT,
    is_bytes,
    is_list,
    is_number,
    is_text,
    is_time,
    is_uuid,
    plain_type,
    uuid_texts,
)
from feast_dynamo_ext.exact import (
    cast_exact,
    check_json,
    inexact_count,
    refused,
)
from feast_dynamo_ext.timestamps import EARLIEST, LATEST, micros_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


Nested: TypeAlias = Array | Set | Struct
Declared: TypeAlias = ValueType | Nested

# What Feast makes of nested columns whose fields or elements nobody declared.
OPEN_TYPES = (Array(Array(String)), Set(Array(String)), Struct({"_value": String}),
              Array(Struct({"_value": String})))  # fmt: skip


def declared_as(dtype: Any) -> Declared:
    """What a field is declared as: its dtype where that is nested, else its value type."""
    if isinstance(dtype, Struct):
        return dtype if dtype not in OPEN_TYPES else ValueType.STRUCT
    if isinstance(dtype, (Array, Set)) and isinstance(dtype.base_type, ComplexFeastType):
        return dtype if dtype not in OPEN_TYPES else dtype.to_value_type()
    kind: ValueType = dtype.to_value_type()
    return kind


def value_type(declared: Declared) -> ValueType:
    """The value type of a declared type."""
    return declared if isinstance(declared, ValueType) else declared.to_value_type()


def name_of(declared: Declared) -> str:
    """A declared type in messages."""
    return declared.name if isinstance(declared, ValueType) else str(declared)


# Of a plain UUID's bytes, as the table below makes them: digits and hyphens.
UUID_FORM = b"-".join(b"0" * (2 * size) for size in UUID_GROUPS)
UUID_CHARACTERS = bytes(
    ord("0") if chr(byte) in "0123456789abcdef" else byte if byte == ord("-") else 0
    for byte in range(256)
)
# Texts that Python's Decimal writes as they are; it writes some others too.
PLAIN_DECIMAL = r"^-?(0(\.0{1,6}|\.0{0,5}[1-9][0-9]*)?|[1-9][0-9]*(\.[0-9]+)?)$"


def _decimal_texts(texts: pa.Array) -> pa.Array:
    """Texts of decimals as Python's Decimal writes them, which is what a reader is given.

    Most are so already, which is found at once.

    Raises:
        ValueError: counts the texts that are no decimals.
    """
    found = texts.cast(pa.large_string()) if pa.types.is_string_view(texts.type) else texts
    is_plain = pc.match_substring_regex(found, PLAIN_DECIMAL).fill_null(True)
    if pc.all(is_plain).as_py():
        return texts
    others = pc.invert(is_plain)
    made = _written_anew(found.filter(others), Decimal, "decimals", len(texts) - texts.null_count)
    return pc.replace_with_mask(found, others, made).cast(texts.type)


def _uuid_forms(texts: pa.Array) -> pa.Array:
    """Texts of UUIDs in their one form: lower case, with hyphens.

    All are checked as one run of bytes: a regular expression took three times as long.

    Raises:
        ValueError: counts the texts that are no UUIDs.
    """
    if _are_plain_uuids(texts):
        return texts
    found = texts.cast(pa.large_string()) if pa.types.is_string_view(texts.type) else texts
    if _are_plain_uuids(lower := pc.ascii_lower(found)):
        return lower.cast(texts.type)
    return _written_anew(found, uuid.UUID, "UUIDs", len(found) - found.null_count).cast(texts.type)


def _are_plain_uuids(texts: pa.Array) -> bool:
    cells = texts.cast(pa.large_binary()).drop_null()
    if not pc.all(pc.equal(pc.binary_length(cells), UUID_TEXT)).as_py():
        return False
    fixed = cells.cast(pa.binary(UUID_TEXT))
    start = fixed.offset * UUID_TEXT
    data = fixed.buffers()[1][start : start + len(fixed) * UUID_TEXT].to_pybytes()
    return bool(data.translate(UUID_CHARACTERS) == UUID_FORM * len(fixed))


def _written_anew(texts: pa.Array, parse: Callable[[str], object], what: str, of: int) -> pa.Array:
    """Texts as Python writes what they say; an error counts those that it does not read."""
    made = [text and _form(text, parse) for text in texts.to_pylist()]
    bad = made.count("")
    if bad:
        raise refused(texts, what, bad, of)
    return pa.array(made, texts.type)


def _form(text: str, parse: Callable[[str], object]) -> str:
    try:
        return str(parse(text))
    except (ValueError, InvalidOperation):
        return ""


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
        return pa.nulls(len(array), declared_arrow(kind))
    rule = SCALAR_RULES.get(kind)
    if rule is not None:
        return rule(array)
    own, target = array.type, SCALAR_ARROW[kind]
    # Any layout of texts and bytes will do.
    same = (is_text(own) and is_text(target)) or (is_bytes(own) and is_bytes(target))
    return array if same else cast_exact(array, target)


def _as_decimals(array: pa.Array) -> pa.Array:
    if is_text(array.type):
        return _decimal_texts(array)
    if not pa.types.is_decimal(array.type):
        raise refused(array, "decimals")
    return array


# The years 1 to 9999: readers are given Python's datetimes.
FIRST_S, LAST_S = (micros_of(time) // 1_000_000 for time in (EARLIEST, LATEST))


def _as_times(array: pa.Array) -> pa.Array:
    """Times, or numbers of seconds since 1970 UTC."""
    if is_time(array.type):
        return array
    if not is_number(array.type):
        raise refused(array, "times")
    try:
        whole = cast_exact(array, pa.int64())
    except ValueError as error:
        bad = inexact_count(array, lambda part: cast_exact(part, pa.int64()))
        raise refused(array, "times (whole seconds since 1970)", bad) from error
    beyond = pc.or_(pc.less(whole, FIRST_S), pc.greater(whole, LAST_S))
    if bad := pc.sum(beyond).as_py():
        raise refused(array, "times of the years 1 to 9999 (seconds since 1970)", bad)
    return whole.cast(SECONDS)


def _as_zoned_times(array: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(array.type):
        raise refused(array, "times")
    return array


def _as_uuid_texts(array: pa.Array) -> pa.Array:
    own = array.type
    if is_uuid(own):
        return uuid_texts(array.storage)
    if is_bytes(own):
        # No text of a UUID has 16 bytes, so that each says of itself what it is.
        are_bytes = pc.equal(pc.binary_length(array), UUID_BYTES)
        if pc.all(are_bytes).as_py():
            return uuid_texts(array.cast(pa.binary(UUID_BYTES)))
        array = array.cast(pa.large_binary())
        in_bytes = pc.if_else(are_bytes, array, None).cast(pa.binary(UUID_BYTES))
        in_texts = pc.if_else(are_bytes, None, array)
        array = pc.coalesce(uuid_texts(in_bytes), cast_exact(in_texts, pa.large_string()))
    elif not is_text(own):
        raise refused(array, "UUIDs")
    return _uuid_forms(array)


def _may_hold_nan(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(plain_type(kind))) or any(
        _may_hold_nan(kind.field(at).type) for at in range(kind.num_fields)
    )


def as_json(array: pa.Array) -> pa.Array:
    """Texts that are JSON; numbers, lists, structs and maps are written as such."""
    if pa.types.is_nested(array.type):
        try:
            cells = array.to_pylist(maps_as_pydicts="strict")
            made = pa.array(
                [None if cell is None else json.dumps(cell) for cell in cells], pa.large_string()
            )
        except KeyError:
            # Arrow's words show the key.
            raise refused(array, "JSON (which has no key twice)") from None
        except TypeError as error:
            raise refused(array, "JSON") from error
        if _may_hold_nan(array.type):
            check_json(made)
        return made
    made = array if is_text(array.type) else cast_exact(array, pa.string())
    check_json(made)
    return made


SCALARS = {
    *SCALAR_ARROW,
    *(ValueType.DECIMAL, ValueType.UNIX_TIMESTAMP, ValueType.ZONED_TIMESTAMP),
}
"""Value types of one value a row."""

OPEN_KINDS = {
    *(ValueType.MAP, ValueType.MAP_LIST, ValueType.SCALAR_MAP, ValueType.UNKNOWN),
    *(ValueType.STRUCT, ValueType.STRUCT_LIST, ValueType.VALUE_LIST, ValueType.VALUE_SET),
}
"""Value types that do not say what is inside."""

MAPS = {ValueType.MAP, ValueType.STRUCT}
LISTS_OF_MAPS = {ValueType.MAP_LIST, ValueType.STRUCT_LIST}
LISTS_OF_LISTS = {ValueType.VALUE_LIST, ValueType.VALUE_SET}

JSON_KINDS = {ValueType.JSON, ValueType.JSON_LIST}

LISTS = {kind for kind in ValueType if kind.name.endswith(("_LIST", "_SET"))}

CHECKED_TEXTS = {*UUIDS, ValueType.JSON, ValueType.DECIMAL}
"""Value types that say of a text what it must be."""

# Value types that mean more than their Arrow type says.
SCALAR_RULES: dict[ValueType, Callable[[pa.Array], pa.Array]] = {
    ValueType.UUID: _as_uuid_texts,
    ValueType.TIME_UUID: _as_uuid_texts,
    ValueType.JSON: as_json,
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
        name: pa.timestamp("us", "UTC")
        if declared_arrow(kind) == SECONDS
        else declared_arrow(kind)
        for name, kind in kinds.items()
        if kind in SCALARS
    }


def has_form(arrow: pa.DataType, kind: ValueType) -> bool:
    """Whether a column of an Arrow type may be lists, maps or lists of maps, as is declared.

    Texts and bytes may be JSON of them. Of a scalar value type, see `scalar_exact`.
    """
    arrow = plain_type(arrow)
    in_json = kind is not ValueType.SCALAR_MAP and (is_text(arrow) or is_bytes(arrow))
    if in_json or kind is ValueType.UNKNOWN or pa.types.is_null(arrow):
        return True
    if kind in MAPS or kind is ValueType.SCALAR_MAP:
        has_texts = pa.types.is_struct(arrow)
        if pa.types.is_map(arrow):
            has_texts = is_text(plain_type(arrow.key_type))
        is_map = pa.types.is_struct(arrow) or pa.types.is_map(arrow)
        return bool(is_map and has_texts == (kind in MAPS))
    if not is_list(arrow):
        return False
    inner = plain_type(arrow.value_type)
    if kind in LISTS_OF_MAPS:
        return not (is_text(inner) or is_bytes(inner)) and has_form(inner, ValueType.MAP)
    return kind not in LISTS_OF_LISTS or is_list(inner) or bool(pa.types.is_null(inner))


def in_json(arrow: pa.DataType, kind: ValueType) -> bool:
    """Whether a column of lists, maps or lists of these is kept as JSON, in texts or bytes."""
    own = plain_type(arrow)
    is_open = kind in MAPS | LISTS_OF_MAPS | LISTS_OF_LISTS
    return (is_open or element_kind(kind) is not None) and (is_text(own) or is_bytes(own))


def element_kind(kind: ValueType) -> ValueType | None:
    """The value type of a list's or set's elements, where it is a scalar."""
    for suffix in ("_LIST", "_SET"):
        if kind.name.endswith(suffix):
            element = kind.name.removesuffix(suffix)
            return next((each for each in SCALARS if each.name == element), None)
    return None


def is_set(kind: ValueType) -> bool:
    """Whether lists of a value type hold each element once."""
    return kind.name.endswith("_SET") and element_kind(kind) is not None


def declared_type(declared: Declared, column: pa.DataType) -> pa.DataType:
    """The type in which a feature of a column is retrieved.

    The column's own, where what it holds is of the declared kind, also if it is wider (a double
    for a Float32, whose values are then those of a float32), or where the declared type leaves
    the Arrow type open (maps, UNKNOWN).

    Args:
        declared: what the feature is declared as.
        column: type of the column.
    """
    own = plain_type(column)
    if not isinstance(declared, ValueType):
        wanted = _nested_type(declared, own)
        return column if wanted == own else wanted
    element = element_kind(declared)
    if element is not None:
        if is_text(own) or is_bytes(own):
            return column  # JSON, which Feast parses
        inner = own.value_type if is_list(own) else pa.null()
        wanted = declared_type(element, inner) if is_list(own) else declared_arrow(element)
        if is_set(declared) and pa.types.is_fixed_size_list(own):
            return pa.list_(wanted)  # of which each set may have another size
        return column if wanted == inner or pa.types.is_null(own) else list_of(own, wanted)
    is_open = declared not in SCALARS or pa.types.is_null(own)
    if is_open or _agrees(declared, own) or is_wider(declared, own):
        return column
    return declared_arrow(declared)


def _nested_type(declared: Nested, own: pa.DataType) -> pa.DataType:
    if isinstance(declared, Struct):
        kinds = {name: declared_as(kind) for name, kind in declared.fields.items()}
        if pa.types.is_struct(own):
            return pa.struct(
                [
                    field.with_type(declared_type(kinds[field.name], field.type))
                    if field.name in kinds
                    else field
                    for field in own
                ]
            )
        if pa.types.is_map(own) and len(set(kinds.values())) == 1:
            return pa.map_(own.key_type, declared_type(next(iter(kinds.values())), own.item_type))
    elif is_list(own):
        wanted = declared_type(declared_as(declared.base_type), own.value_type)
        return own if wanted == own.value_type else list_of(own, wanted)
    return own


def is_wider(declared: Declared, column: pa.DataType) -> bool:
    """Whether a type, or that of a list's elements, holds numbers that the value type cannot."""
    own = plain_type(column)
    if not isinstance(declared, ValueType):
        return any(is_wider(kind, part) for kind, part in _parts(declared, own))
    element = element_kind(declared)
    if element is not None:
        return is_list(own) and is_wider(element, own.value_type)
    width = int(declared_arrow(declared).bit_width) if declared in WHOLE_NUMBERS | FLOATS else 0
    test = pa.types.is_integer if declared in WHOLE_NUMBERS else pa.types.is_floating
    return bool(width and test(own) and own.bit_width > width)


def is_checked(declared: Declared, column: pa.DataType) -> bool:
    """Whether values of a declared kind's own Arrow type may still not be what it says."""
    own = plain_type(column)
    if not isinstance(declared, ValueType):
        if is_text(own) or is_bytes(own):
            return True
        parts = _parts(declared, own)
        # The items of a map are of one type, its keys may be declared as several.
        return not parts or any(
            is_checked(kind, part) or declared_type(kind, part) != part for kind, part in parts
        )
    element = element_kind(declared)
    if element is not None:
        if is_list(own) and (is_set(declared) or is_checked(element, own.value_type)):
            return True
        return in_json(own, declared)
    if declared in OPEN_KINDS:
        return in_json(own, declared) or not has_form(own, declared)
    return declared in CHECKED_TEXTS and is_text(own)


def _parts(declared: Nested, own: pa.DataType) -> list[tuple[Declared, pa.DataType]]:
    """What a nested type holds: what each part is declared as, and its Arrow type."""
    if isinstance(declared, Struct):
        kinds = {name: declared_as(kind) for name, kind in declared.fields.items()}
        if pa.types.is_struct(own):
            return [(kinds[part.name], part.type) for part in own if part.name in kinds]
        return [(kind, own.item_type) for kind in kinds.values()] if pa.types.is_map(own) else []
    return [(declared_as(declared.base_type), own.value_type)] if is_list(own) else []


def _agrees(kind: ValueType, own: pa.DataType) -> bool:
    """Whether any value of an Arrow type is one of a scalar value type, and written like it."""
    target = declared_arrow(kind)
    if kind in WHOLE_NUMBERS:
        if not pa.types.is_integer(own):
            return False
        return bool(own.bit_width + pa.types.is_unsigned_integer(own) <= target.bit_width)
    if kind in FLOATS:
        return bool(pa.types.is_floating(own) and own.bit_width <= target.bit_width)
    if kind is ValueType.DECIMAL:
        return is_text(own) or bool(pa.types.is_decimal(own))
    if kind is ValueType.ZONED_TIMESTAMP:
        return bool(pa.types.is_timestamp(own))  # a date has no zone
    same_kind = next((test for test in (is_text, is_bytes, is_time) if test(target)), None)
    is_same = own == target if same_kind is None else same_kind(own)
    return is_same or (kind in UUIDS and is_uuid(own))


def declared_arrow(kind: ValueType) -> pa.DataType:
    """The Arrow type of a scalar value type; texts where it has none of its own."""
    if kind in {ValueType.UNIX_TIMESTAMP, ValueType.ZONED_TIMESTAMP}:
        return SECONDS
    return SCALAR_ARROW.get(kind, pa.string())


def list_of(kind: pa.DataType, inner: pa.DataType) -> pa.DataType:
    """The type of lists of the same layout, of another type inside."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)
