"""One schema for files whose schemas differ: columns that came, went or were widened.

A column gets the narrowest type that holds what all files hold. Arrow casts while it reads, and
fails where a value does not fit: an integer over 2**53 that is to be a double, a time that
nanoseconds cannot say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from feast_dynamo_ext.errors import ColumnTypeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from feast_dynamo_ext.parquet.footers import Footer


UNITS = ("s", "ms", "us", "ns")
MOST_DIGITS = {128: 38, 256: 76}

TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def widened(
    known: pa.Schema, files: Iterable[Footer], uri: str, of_folders: Collection[str] = ()
) -> pa.Schema:
    """A schema that holds what a schema and some files hold.

    Args:
        known: names and types so far; their order stays.
        files: their schemas.
        uri: the source, for messages.
        of_folders: columns that the folders' names say, whatever the files say.

    Raises:
        ColumnTypeError: a column has types that no type holds; names file and column.
    """
    types = {field.name: field.type for field in known}
    seen: list[pa.Schema] = [known]
    for file in files:
        if any(file.schema.equals(other) for other in seen):
            continue
        seen.append(file.schema)
        for field in file.schema:
            if field.name not in of_folders:
                types[field.name] = _with_file(types.get(field.name), field, file.path, uri)
    return pa.schema(types.items())


def _with_file(kind: pa.DataType | None, field: pa.Field, path: str, uri: str) -> pa.DataType:
    found = field.type if kind is None else common(kind, field.type)
    if found is None:
        raise ColumnTypeError(
            f"{uri}: column `{field.name}` is {field.type} in {path}, but {kind} in other files "
            "of the source, and no type holds both. Write that file again in the others' type."
        )
    return found


def check_holds(
    schema: pa.Schema, files: Iterable[Footer], uri: str, names: Collection[str]
) -> None:
    """Check that a schema holds what files have in some columns.

    Raises:
        ColumnTypeError: it does not; names file and column.
    """
    for file in files:
        for name in names:
            at = file.schema.get_field_index(name)
            if at >= 0:
                field, kind = file.schema.field(at), schema.field(name).type
                if _with_file(kind, field, file.path, uri) != kind:
                    raise ColumnTypeError(
                        f"{uri}: column `{name}` is {field.type} in {file.path}, which {kind}, "
                        "the type it has in the source's first and last file, does not hold. "
                        "Write that file again, or the first in the wider type."
                    )


def common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds both; None where there is none."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        return common(_plain(one), _plain(other))
    for rule in (_numbers, _decimals, _texts, _times, _nested):
        found = rule(one, other)
        if found is not None:
            return found
    return None


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(pa.types.is_integer, both)):
        return _integers(one, other)
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in both):
        return None
    # What a float holds exactly: halves 11 bits, singles 24; of 64 bits Arrow checks each value.
    widths = [_float_bits(kind) for kind in both]
    return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}[max(widths)]


def _float_bits(kind: pa.DataType) -> int:
    if pa.types.is_floating(kind):
        return int(kind.bit_width)
    return {8: 16, 16: 32}.get(kind.bit_width, 64)


def _integers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return max(one, other, key=lambda kind: int(kind.bit_width))
    signed, unsigned = (one, other) if pa.types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
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


def _texts(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for kinds, plain, large in (
        (TEXTS, pa.string(), pa.large_string()),
        (BYTES, pa.binary(), pa.large_binary()),
    ):
        if all(any(is_one(kind) for is_one in kinds) for kind in (one, other)):
            return large if large in (one, other) else plain
    return None


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(pa.types.is_date, both)):
        return pa.date32()
    stamps = [kind for kind in both if pa.types.is_timestamp(kind)]
    if stamps and all(kind in stamps or pa.types.is_date(kind) for kind in both):
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
    return max(units, key=UNITS.index)


def _nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    both = (one, other)
    if all(map(pa.types.is_struct, both)):
        return _structs(one, other)
    if all(map(pa.types.is_map, both)):
        key, item = common(one.key_type, other.key_type), common(one.item_type, other.item_type)
        return pa.map_(key, item) if key is not None and item is not None else None
    if all(map(_is_list, both)):
        value = common(one.value_type, other.value_type)
        large = any(map(pa.types.is_large_list, both))
        return value and (pa.large_list(value) if large else pa.list_(value))
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _structs(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = {field.name: field.type for field in one}
    for field in other:
        found = common(types[field.name], field.type) if field.name in types else field.type
        if found is None:
            return None
        types[field.name] = found
    return pa.struct(types.items())
