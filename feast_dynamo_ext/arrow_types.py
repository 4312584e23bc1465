"""What this package knows of Arrow's types, for all sides: kinds, conversions, Feast's names.

Tables of types; arrays in the few shapes that code handles; the type that holds two others;
Feast's value types. The types that join keys are compared in are in `key_types`.

Sources: `feast/protos/feast/types/Value.proto` and `feast.type_map` of Feast 0.67.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.type_map import VALUE_TYPE_TO_PROTO_VALUE_MAP
from feast.value_type import ValueType

from feast_dynamo_ext.errors import ColumnTypeError, UnsupportedTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray


TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
SECONDS_PER_DAY = 86_400

# What other programs write of Arrow's newer or larger layouts -> the plain layout. Arrow cannot
# gather the values of a view layout, nor write it to all formats.
VIEW_TO_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
LARGE_TO_PLAIN = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}

EXACT_BITS = {16: 11, 32: 24, 64: 53}
"""Of a float's width: below 2 to the power of this, no two integers become the same float."""

LIST_TESTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return kind in TEXT_TYPES


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, of fixed length or not."""
    return kind in BYTES_TYPES or bool(pa.types.is_fixed_size_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return any(test(kind) for test in LIST_TESTS)


def is_list_view(kind: pa.DataType) -> bool:
    """Whether a column holds lists in one of Arrow's view layouts."""
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def is_uuid(kind: pa.DataType) -> bool:
    """Whether a column holds UUIDs as 16 bytes each (Parquet's and Arrow's UUID)."""
    return getattr(kind, "extension_name", None) == "arrow.uuid"


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers: integers, floats or decimals."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def is_time(kind: pa.DataType) -> bool:
    """Whether a column holds moments: timestamps or dates."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def without_dictionary(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values; any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def map_type(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type with each type inside it, and then itself, replaced by what `change` returns."""

    def changed(field: pa.Field) -> pa.Field:
        return field.with_type(map_type(field.type, change))

    if pa.types.is_dictionary(kind):
        values = map_type(kind.value_type, change)
        kind = pa.dictionary(kind.index_type, values, kind.ordered)
    elif pa.types.is_struct(kind):
        kind = pa.struct([changed(field) for field in kind])
    elif pa.types.is_map(kind):
        # As fields: what Iceberg calls them is in their metadata.
        kind = pa.map_(changed(kind.key_field), changed(kind.item_field), kind.keys_sorted)
    elif pa.types.is_fixed_size_list(kind):
        kind = pa.list_(changed(kind.value_field), kind.list_size)
    elif pa.types.is_large_list(kind):
        kind = pa.large_list(changed(kind.value_field))
    elif pa.types.is_list(kind):
        kind = pa.list_(changed(kind.value_field))
    return change(kind)


def map_schema(schema: pa.Schema, change: Callable[[pa.DataType], pa.DataType]) -> pa.Schema:
    """The same columns, each type replaced as by `map_type`."""
    fields = [field.with_type(map_type(field.type, change)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def without_view_layouts(schema: pa.Schema) -> pa.Schema:
    """The same columns, with texts and bytes in the plain layouts.

    Views of lists stay, and what is in them: Arrow 26 makes lists of them that end beyond their
    memory.
    """
    # A look at the text takes 4 us, one at each of 50 columns 270 us; a source has many footers.
    if "_view" not in schema.to_string():
        return schema
    return map_schema(schema, lambda kind: VIEW_TO_PLAIN.get(kind, kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain`'s answer."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if getattr(kind, "extension_name", None) == "arrow.json":
        return kind.storage_type
    return kind


def plain(array: pa.Array) -> pa.Array:
    """Without dictionary, and JSON documents as the texts that they are."""
    if pa.types.is_dictionary(array.type):
        return plain(pc.cast(array, array.type.value_type))
    return array if plain_type(array.type) == array.type else array.storage


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array; without a copy where it is one already."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def present(array: pa.Array) -> NDArray[np.bool_] | None:
    """Which elements are not null; None for all of them."""
    if not array.null_count:
        return None
    mask: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return mask


def numbers(array: pa.Array) -> NDArray[Any]:
    """The numbers of an array, with a zero for each null."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    filled = array.fill_null(0) if array.null_count else array
    values: NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return values


def texts(array: pa.Array, kind: pa.DataType | None = None) -> pa.LargeBinaryArray:
    """The bytes of texts or bytes, with nothing for each null.

    Args:
        array: the column.
        kind: what it is cast to first: Arrow turns numbers into texts; None for bytes as they are.

    Raises:
        pyarrow.ArrowInvalid: a text that is not UTF-8.
    """
    data = array.cast(pa.large_binary()) if is_text(array.type) or is_bytes(array.type) else array
    if kind is not None:
        # Only the cast from bytes looks at them: files may hold texts that are none.
        data = data.cast(kind)
    return data.cast(pa.large_binary()).fill_null(b"")


def seconds(array: pa.Array) -> pa.Int64Array:
    """Whole seconds since 1970 UTC, the resolution of Feast's timestamps, rounded down.

    Args:
        array: whole numbers (taken as seconds), dates or timestamps of any unit and zone.
    """
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    if pa.types.is_date32(array.type):
        return pc.multiply(array.cast(pa.int32()).cast(pa.int64()), SECONDS_PER_DAY)
    if not (pa.types.is_timestamp(array.type) or pa.types.is_date64(array.type)):
        raise ValueError(f"{array.type} is not a time")
    per_second = PER_SECOND["ms" if pa.types.is_date64(array.type) else array.type.unit]
    ticks = numbers(array.cast(pa.int64()))
    whole = ticks // per_second
    missing = None if array.null_count == 0 else ~present(array)  # type: ignore[operator]
    return pa.array(whole, mask=missing)


UUID_BYTES = 16
HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), "S2")
UUID_GROUPS = (4, 2, 2, 2, 6)  # bytes between the hyphens
UUID_TEXT = 36


def uuid_texts(storage: pa.FixedSizeBinaryArray) -> pa.LargeStringArray:
    """UUIDs of 16 bytes as texts."""
    filled = storage.fill_null(bytes(UUID_BYTES))
    rows = len(storage)
    data = np.frombuffer(filled.buffers()[1], np.uint8)[UUID_BYTES * filled.offset :]
    digits = HEX[data[: UUID_BYTES * rows]].view(np.uint8).reshape(rows, 2 * UUID_BYTES)
    cells = np.full((rows, UUID_TEXT), ord("-"), np.uint8)
    for group, (start, size) in enumerate(
        zip(np.cumsum((0, *UUID_GROUPS)), UUID_GROUPS, strict=False)
    ):
        cells[:, 2 * start + group : 2 * (start + size) + group] = digits[
            :, 2 * start : 2 * (start + size)
        ]
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * UUID_TEXT)
    made = pa.Array.from_buffers(pa.large_string(), rows, [None, ends, pa.py_buffer(cells)])
    return pc.if_else(storage.is_valid(), made, None) if storage.null_count else made


MOST_DIGITS = {128: 38, 256: 76}  # of decimals, by their bits


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds both; None where there is none.

    Arrow casts to it while it reads, and fails where a value does not fit: an integer over 2**53
    that is to be a double, a time that nanoseconds cannot say.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        return common_type(without_dictionary(one), without_dictionary(other))
    for rule in (_number_type, _decimal_type, _text_type, _time_type, _nested_type):
        found = rule(one, other)
        if found is not None:
            return found
    return None


def _number_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(pa.types.is_integer, both)):
        return _integer_type(one, other)
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in both):
        return None
    # What a float holds exactly: halves 11 bits, singles 24; of 64 bits Arrow checks each value.
    widths = [_float_bits(kind) for kind in both]
    return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}[max(widths)]


def _float_bits(kind: pa.DataType) -> int:
    if pa.types.is_floating(kind):
        return int(kind.bit_width)
    return {8: 16, 16: 32}.get(kind.bit_width, 64)


def _integer_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return max(one, other, key=lambda kind: int(kind.bit_width))
    signed, unsigned = (one, other) if pa.types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _decimal_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_decimal(one) and pa.types.is_decimal(other)):
        return None
    scale = max(one.scale, other.scale)
    precision = max(one.precision - one.scale, other.precision - other.scale) + scale
    width = max(128, one.bit_width, other.bit_width)
    if precision > MOST_DIGITS[width]:
        width = 256
    if precision > MOST_DIGITS[width]:
        return None
    return (pa.decimal128 if width == 128 else pa.decimal256)(precision, scale)  # noqa: PLR2004 - bits


def _text_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(is_text, both)):
        return pa.large_string() if pa.large_string() in both else pa.string()
    if all(map(is_bytes, both)):
        return pa.large_binary() if pa.large_binary() in both else pa.binary()
    return None


def _time_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(pa.types.is_date, both)):
        return pa.date32()
    stamps = [kind for kind in both if pa.types.is_timestamp(kind)]
    if stamps and all(map(is_time, both)):
        # Times without a zone are UTC.
        zones = {kind.tz for kind in stamps} - {None}
        zone = "UTC" if len(zones) > 1 else next(iter(zones), None)
        return pa.timestamp(_finest(stamps), zone)
    if all(map(pa.types.is_duration, both)):
        return pa.duration(_finest(both))
    if all(map(pa.types.is_time, both)):
        unit = _finest(both)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    return None


def _finest(kinds: Iterable[pa.DataType]) -> str:
    units: list[str] = [kind.unit for kind in kinds]
    return max(units, key=list(PER_SECOND).index)


def _nested_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(pa.types.is_struct, both)):
        return _struct_type(one, other)
    if all(map(pa.types.is_map, both)):
        key = common_type(one.key_type, other.key_type)
        item = common_type(one.item_type, other.item_type)
        return pa.map_(key, item) if key is not None and item is not None else None
    if all(map(is_list, both)):
        if any(map(is_list_view, both)):
            return None  # see `without_view_layouts`
        value = common_type(one.value_type, other.value_type)
        large = any(map(pa.types.is_large_list, both))
        return value and (pa.large_list(value) if large else pa.list_(value))
    return None


def _struct_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = {field.name: field.type for field in one}
    for field in other:
        found = common_type(types[field.name], field.type) if field.name in types else field.type
        if found is None:
            return None
        types[field.name] = found
    return pa.struct(types.items())


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
    if is_list_view(kind) and kind.value_type in VIEW_TO_PLAIN:
        raise UnsupportedTypeError(
            f"{where}: column `{column}` is {kind}, of which Arrow cannot gather rows. Write it "
            f"as {pa.list_(VIEW_TO_PLAIN[kind.value_type])}."
        )


# What Arrow, Feast and protobuf raise for a value that does not fit.
REFUSALS = (
    pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError, AssertionError,
    KeyError,
)  # fmt: skip


@contextmanager
def naming(name: str, kind: ValueType | str, arrow: pa.DataType, view: str = "") -> Iterator[None]:
    """Name the feature or join key, and its view, where one of its values does not fit.

    Raises:
        ColumnTypeError: names the feature, what it is declared as and what its column is.
    """
    try:
        yield
    except REFUSALS as error:
        where = f"Feature view `{view}`: " if view else ""
        declared = kind if isinstance(kind, str) else kind.name
        raise ColumnTypeError(
            f"{where}`{name}` is declared as {declared}, but its column of type {arrow} "
            f"holds a value that does not fit: {error}. Correct the dtype in the view, or cast "
            "the column in the source."
        ) from error
