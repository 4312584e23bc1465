"""Lists and sets of scalars as Feast's Value messages.

Numbers of a list are packed: their bytes follow each other without tags, so that a column of
lists needs nothing but its elements' bytes, cut where the lists start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from feast.value_type import ValueType

from feast_dynamo_ext.dynamo.encoding.arrays import (
    codes_of,
    flattened,
    is_bytes,
    is_list,
    is_text,
    is_uuid,
    plain,
    plain_type,
    present,
    rows_of,
    seconds,
    texts,
    uuid_texts,
)
from feast_dynamo_ext.dynamo.encoding.protobuf import (
    Message,
    delimited,
    grouped,
    offsets_of,
)
from feast_dynamo_ext.dynamo.encoding.scalars import FIELD_NUMBER, number_slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers

LOWEST = np.iinfo(np.int64).min


def _is_text_or_uuid(kind: pa.DataType) -> bool:
    return is_text(kind) or is_uuid(kind)


def _is_text_or_decimal(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_decimal(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_integer(kind))


# Value type of an element -> which Arrow types Feast takes for it (unlike scalars, it casts none),
# and what Arrow casts them to, exactly or not at all. Texts are None.
ELEMENTS: dict[ValueType, tuple[Callable[[pa.DataType], bool], pa.DataType | None]] = {
    ValueType.INT32: (pa.types.is_integer, pa.int32()),
    ValueType.INT64: (pa.types.is_integer, pa.int64()),
    ValueType.DOUBLE: (pa.types.is_floating, pa.float64()),
    ValueType.FLOAT: (pa.types.is_floating, pa.float32()),
    ValueType.BOOL: (pa.types.is_boolean, pa.bool_()),
    ValueType.UNIX_TIMESTAMP: (_is_time, pa.int64()),
    ValueType.BYTES: (is_bytes, None),
    ValueType.STRING: (is_text, None),
    ValueType.UUID: (_is_text_or_uuid, None),
    ValueType.TIME_UUID: (_is_text_or_uuid, None),
    ValueType.DECIMAL: (_is_text_or_decimal, None),
}
COLLECTIONS: dict[ValueType, ValueType] = {
    ValueType[f"{element.name}_{suffix}"]: element
    for element in ELEMENTS
    for suffix in ("LIST", "SET")
}
"""Value type of a list or set -> that of its elements."""


def is_collection(arrow: pa.DataType, kind: ValueType) -> bool:
    """Whether a column of this Arrow type is encoded here."""
    if kind not in COLLECTIONS or not is_list(arrow):
        return False
    element = plain_type(arrow.value_type)
    fits, _ = ELEMENTS[COLLECTIONS[kind]]
    return bool(pa.types.is_null(element) or fits(element))


def collection(array: pa.Array, kind: ValueType, *, nulls: bool = True) -> Message:
    """A column of lists or sets as Value messages, an empty one for each null.

    Args:
        array: any column for which `is_collection`.
        kind: value type of the feature.
        nulls: whether a list may hold nulls: Feast writes zeros and empty texts for them where a
            feature is a list, and refuses them in a list that is inside of something else.

    Raises:
        pyarrow.ArrowException: a value that does not fit.
        ValueError: a null where there may be none.
    """
    elements, offsets = flattened(array)
    elements = plain(elements)
    is_set = kind.name.endswith("_SET")
    # Of sets, Feast takes nulls of booleans alone.
    may_be_null = kind is ValueType.BOOL_SET if is_set else nulls
    if elements.null_count and not may_be_null:
        raise ValueError(f"a {'set' if is_set else 'list'} holds a null")
    elements = _as_element(elements, COLLECTIONS[kind])
    if is_set:
        elements, offsets = _distinct(elements, offsets)
    return delimited(FIELD_NUMBER[kind], repeated(elements, offsets), present(array))


def _as_element(elements: pa.Array, kind: ValueType) -> pa.Array:
    """Elements as one of the types that `repeated` takes, with Feast's stand-ins for nulls."""
    _, target = ELEMENTS[kind]
    if pa.types.is_null(elements.type):
        elements = elements.cast(target or pa.large_string())
    if kind is ValueType.UNIX_TIMESTAMP:
        return seconds(elements, toward_zero=True).fill_null(LOWEST)
    if target is not None:
        return elements.cast(target).fill_null(False if kind is ValueType.BOOL else 0)
    if is_uuid(elements.type):
        return texts(uuid_texts(elements))
    return texts(elements, None if kind is ValueType.BYTES else pa.large_string())


def _distinct(elements: pa.Array, offsets: Integers) -> tuple[pa.Array, Integers]:
    """The first of each row's equal elements; Feast's order of a set is Python's, so any."""
    codes, count = codes_of(elements)
    rows = rows_of(offsets)
    _, first = np.unique(rows * count + codes, return_index=True)
    first.sort()
    sizes = np.bincount(rows[first], minlength=len(offsets) - 1)
    return elements.take(pa.array(first)), offsets_of(sizes)


def repeated(elements: pa.Array, offsets: Integers) -> Message:
    """The messages `{repeated T val = 1}`: Int64List, StringList and their like.

    Args:
        elements: int32, int64, float32, float64, bool or large_binary, without nulls.
        offsets: where each row's elements start, and where the last ones end.
    """
    if pa.types.is_large_binary(elements.type):
        return runs(delimited(1, Message.of(elements)), offsets)
    packed = grouped(number_slots(elements).joined(), offsets)
    return delimited(1, Message.of(packed), np.diff(offsets) > 0)


def runs(elements: Message, offsets: Integers) -> Message:
    """Each row's elements, one after another."""
    return Message.of(grouped(elements.joined(), offsets))
