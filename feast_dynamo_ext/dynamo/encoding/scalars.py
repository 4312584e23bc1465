"""Numbers, texts, bytes and times as Feast's Value messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value, ZonedTimestamp
from feast.value_type import ValueType

from feast_dynamo_ext.dynamo.encoding.arrays import (
    is_text,
    is_uuid,
    numbers,
    present,
    seconds,
    texts,
    uuid_texts,
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
    varints,
)
from feast_dynamo_ext.type_map import SCALAR_ARROW, VALUE_FIELD

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.encoding.protobuf import Slots

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
    return field(number, wire, number_slots(array)).only(present(array))


def text_field(number: int, array: pa.Array, kind: pa.DataType | None = None) -> Message:
    """A field of texts or bytes; nothing where the array is null."""
    return delimited(number, Message.of(texts(array, kind)), present(array))


def is_scalar(arrow: pa.DataType, kind: ValueType) -> bool:
    """Whether a column of this Arrow type is encoded here."""
    if kind is ValueType.DECIMAL:
        return is_text(arrow) or pa.types.is_decimal(arrow)
    if kind is ValueType.ZONED_TIMESTAMP:
        is_timestamp: bool = pa.types.is_timestamp(arrow)
        return is_timestamp
    return kind is ValueType.UNIX_TIMESTAMP or kind in SCALAR_ARROW


def scalar(array: pa.Array, kind: ValueType) -> Message:
    """A column of scalars as Value messages, an empty one for each null.

    Args:
        array: any column for which `is_scalar`.
        kind: value type of the feature.

    Raises:
        pyarrow.ArrowException: a value that does not fit.
    """
    number = FIELD_NUMBER[kind]
    if kind is ValueType.ZONED_TIMESTAMP:
        return _zoned(array)
    if kind is ValueType.UNIX_TIMESTAMP:
        return number_field(number, seconds(array))
    if is_uuid(array.type) and kind in {ValueType.UUID, ValueType.TIME_UUID}:
        return text_field(number, uuid_texts(array))
    target = SCALAR_ARROW.get(kind, pa.string())
    if pa.types.is_string(target):
        return text_field(number, array, pa.large_string())
    if pa.types.is_binary(target):
        return text_field(number, array.cast(pa.large_binary()))
    return number_field(number, array.cast(target))


def _zoned(array: pa.Array) -> Message:
    """Whole seconds and the zone, each left out where it is the default."""
    whole = seconds(array, toward_zero=True)
    zone = constant(_zone_name(array.type.tz or "").encode(), len(array))
    message = number_field(SECONDS_NUMBER, whole).only(numbers(whole) != 0)
    if zone.cells.shape[1]:
        message += delimited(ZONE_NUMBER, Message.of(zone))
    message = message.only(present(array))
    return delimited(FIELD_NUMBER[ValueType.ZONED_TIMESTAMP], message, present(array))


def _zone_name(zone: str) -> str:
    """As Feast names it and can read it, also where pandas has a name of its own for it."""
    if not zone.startswith(("+", "-")):
        return zone
    return "UTC" if zone[1:] == "00:00" else f"UTC{zone}"
