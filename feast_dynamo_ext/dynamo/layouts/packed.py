"""The packed layout: one row of a feature view as one DynamoDB item.

An item's packed values are entries of `RepeatedValue.val`, field 1; a feature vector's values are
`FeatureVector.values`, field 1 too and of the same type. So a column is made of slices of the
items' bytes, and protobuf parses it once, in C: 13 us for 100 rows, where copying Value objects
takes 174 us (docs/explanation/decisions/d01-one-packed-item-per-row.md).

====  ====  ===============================================================================
name  type  meaning
====  ====  ===============================================================================
k     B     partition key: the serialized entity key (version 3, reversible)
v     B     the values in the order of the row's schema, one `RepeatedValue` message of Feast
t     N     event time, microseconds since 1970 UTC
c     N     created time, the same; absent where the source has none
f     B     fingerprint of the schema: which names and types the values stand for
x     N     seconds since 1970 UTC from which DynamoDB may delete the item (its TTL attribute): a
            day after the row is past its view's ttl, or after it was written where that is
            later; absent where the view has no ttl, or answers the values of such rows
g_F   S     of a feature F among the view's `cohorts`: see `layouts.series`
====  ====  ===============================================================================

A table also holds one schema item per fingerprint, so that a reader with a newer definition of
the view can still tell what an old item's values stand for. Its key starts with four 0xff bytes,
which as a serialized entity key would mean 4,294,967,295 join keys.
"""

from __future__ import annotations

import base64
import hashlib
import json
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from google.protobuf.message import DecodeError

from feast_dynamo_ext.dynamo.layouts import Layout
from feast_dynamo_ext.errors import EntityKeyError, ItemFormatError, ItemTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from feast.protos.feast.types.EntityKey_pb2 import EntityKey


LONG_VARINT = 0x80
"""A length of 128 bytes or more takes more than one byte."""

MIN_ROWS_FOR_NUMPY = 6


def split(packed: bytes) -> list[bytes]:
    """The entries of a message that has field 1 alone, each with its tag and length."""
    cells = []
    start, end = 0, len(packed)
    while start < end:
        length, at = packed[start + 1], start + 2
        if length >= LONG_VARINT:
            length, at = read_varint(packed, start + 1)
        stop = at + length
        cells.append(packed[start:stop])
        start = stop
    return cells


def value_of(cell: bytes) -> Value:
    """The value that an entry of `split` is."""
    at = 2 if cell[1] < LONG_VARINT else read_varint(cell, 1)[1]
    value: Value = Value.FromString(cell[at:])
    return value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < LONG_VARINT:
            return value, at
        shift += 7


def varint(number: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    if number < LONG_VARINT:
        return bytes((number,))
    data = bytearray()
    while number >= LONG_VARINT:
        data.append(number & 0x7F | LONG_VARINT)
        number >>= 7
    data.append(number)
    return bytes(data)


def uniform_columns(rows: Sequence[bytes], positions: Sequence[int]) -> list[bytes] | None:
    """Columns of rows that all have the same shape, as rows of doubles do.

    Args:
        rows: packed values of each row.
        positions: which entries are wanted.

    Returns:
        The entries of all rows at each position, joined; None where shapes differ, or rows are
        too few to be worth it.
    """
    first = rows[0]
    if len(rows) < MIN_ROWS_FOR_NUMPY or any(len(row) != len(first) for row in rows):
        return None
    stored = split(first)
    ends = list(accumulate(map(len, stored)))
    starts = [0, *ends]
    table = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)
    # Tags and lengths at the same places in all rows: then so are the values.
    headers = [
        byte
        for start, cell in zip(starts, stored, strict=False)
        for byte in range(start, start + _header_bytes(cell))
    ]
    if not (table[:, headers] == table[0, headers]).all():
        return None
    return [table[:, starts[at] : ends[at]].tobytes() for at in positions]


def _header_bytes(cell: bytes) -> int:
    """Bytes of tag and length before an entry's value."""
    return 2 if cell[1] < LONG_VARINT else read_varint(cell, 1)[1]


KEY, VALUES, EVENT_TIME, CREATED_TIME, FINGERPRINT, EXPIRY = "k", "v", "t", "c", "f", "x"
SCHEMA = "s"
# No entity key starts so: see above.
RESERVED_PREFIX = b"\xff\xff\xff\xff"
SCHEMA_KEY_PREFIX = RESERVED_PREFIX + b"schema:"

OWNER_ITEM = b"owner"
"""Name of the control item that says whose a table is: `project` and `view`, as text."""

# Service limits, https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_KEY_BYTES = 2_048
MAX_ITEM_BYTES = 400 * 1_024
VALUES_BYTES_THAT_FIT = MAX_ITEM_BYTES - 2 * MAX_KEY_BYTES

JsonItem = dict[str, dict[str, str]]
"""An item as DynamoDB's JSON protocol has it: {attribute: {type: text}}."""


DecodedItem = tuple[str, bytes, int]
"""An item's schema fingerprint in base64, its packed values, its event time in microseconds."""


@dataclass(frozen=True)
class RowSchema:
    """The names and value types that a row's packed values stand for, in order.

    Attributes:
        names: feature names.
        types: names of Feast's `ValueType`, one a feature.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        """The schema as canonical JSON, as its schema item keeps it."""
        return json.dumps(list(zip(self.names, self.types, strict=True)), separators=(",", ":"))

    @cached_property
    def fingerprint(self) -> bytes:
        """The first 8 bytes of the SHA-256 of `text`."""
        return hashlib.sha256(self.text.encode()).digest()[:8]

    @cached_property
    def fingerprint_text(self) -> str:
        """The fingerprint in base64, as items carry it."""
        return base64.b64encode(self.fingerprint).decode()

    @classmethod
    def from_view(cls, view: Any) -> RowSchema:
        """The schema of a feature view as it is declared now."""
        return cls(
            tuple(field.name for field in view.features),
            tuple(field.dtype.to_value_type().name for field in view.features),
        )

    @classmethod
    def parse(cls, text: str) -> RowSchema:
        """The inverse of `text`."""
        pairs = json.loads(text)
        return cls(tuple(name for name, _ in pairs), tuple(kind for _, kind in pairs))


class Row(NamedTuple):
    """One row on its way into a table.

    Attributes:
        key: serialized entity key.
        values: packed values, see `pack`.
        event_us: event time, microseconds since 1970 UTC.
        created_us: created time, the same, or None.
    """

    key: bytes
    values: bytes
    event_us: int
    created_us: int | None

    @property
    def age(self) -> tuple[int, int]:
        """What decides which of two rows of one key is newer: event time, then created time."""
        return self.event_us, -(2**63) if self.created_us is None else self.created_us


def newest_per_key(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each key; of equal ones the last, as a later call would also win."""
    newest: dict[bytes, Row] = {}
    for row in rows:
        held = newest.get(row.key)
        if held is None or row.age >= held.age:
            newest[row.key] = row
    return list(newest.values())


def last_written_per_key(rows: Iterable[Row]) -> list[Row]:
    """The row of each key that was written last; of equal ones the last of the call.

    A row that does not say when it was written counts as written at its event time.
    """
    last: dict[bytes, tuple[int, Row]] = {}
    for row in rows:
        written = row.event_us if row.created_us is None else row.created_us
        held = last.get(row.key)
        if held is None or written >= held[0]:
            last[row.key] = written, row
    return [row for _, row in last.values()]


def pack(values: Sequence[Value]) -> bytes:
    """Values in schema order as one message; a null is an empty Value."""
    packed: bytes = RepeatedValue(val=values).SerializeToString()
    return packed


def unpack(packed: bytes) -> Sequence[Value]:
    """The inverse of `pack`."""
    values: Sequence[Value] = RepeatedValue.FromString(packed).val
    return values


def key_bytes(entity_key: EntityKey, view: str) -> bytes:
    """The serialized entity key, checked to fit a partition key.

    Raises:
        EntityKeyError: over 2,048 bytes, or a type that Feast has no key encoding for.
    """
    try:
        key: bytes = serialize_entity_key(entity_key, entity_key_serialization_version=3)
    except (ValueError, TypeError) as error:
        raise EntityKeyError(
            f"Feature view `{view}`: an entity key of {list(entity_key.join_keys)} cannot be "
            "serialized: join keys must be String, Bytes, Int32, Int64 or UnixTimestamp, "
            "and not null."
        ) from error
    if len(key) > MAX_KEY_BYTES:
        raise EntityKeyError(
            f"Feature view `{view}`: an entity key of {list(entity_key.join_keys)} takes "
            f"{len(key):,} bytes; DynamoDB's partition key holds at most {MAX_KEY_BYTES:,}. "
            "Use a shorter join key, for example a hash of it, in source and requests."
        )
    return key


def entity_of(key: bytes) -> dict[str, Any]:
    """The join keys and their values of a serialized entity key."""
    entity_key = deserialize_entity_key(key, entity_key_serialization_version=3)
    return {
        name: getattr(value, value.WhichOneof("val"))
        for name, value in zip(entity_key.join_keys, entity_key.entity_values, strict=True)
    }


def to_item(
    row: Row,
    schema: RowSchema,
    kept_s: int | None,
    view: str,
    kept_until_s: int | None = None,
    marks: JsonItem | None = None,
) -> JsonItem:
    """The item of a row.

    Args:
        row: the row.
        schema: what its values stand for.
        kept_s: seconds after its event time that it is kept; None for no limit.
        view: name of the feature view, for errors.
        kept_until_s: when it is kept until at least, in seconds since 1970 UTC.
        marks: its attributes of cohorts, if any.

    Raises:
        ItemTooLargeError: over DynamoDB's 400 KB an item.
    """
    item: JsonItem = {
        KEY: {"B": b2a_base64(row.key, newline=False).decode()},
        VALUES: {"B": b2a_base64(row.values, newline=False).decode()},
        EVENT_TIME: {"N": str(row.event_us)},
        FINGERPRINT: {"B": schema.fingerprint_text},
    }
    if row.created_us is not None:
        item[CREATED_TIME] = {"N": str(row.created_us)}
    if kept_s:
        until_s = expiry_s(row.event_us, kept_s)
        item[EXPIRY] = {"N": str(until_s if kept_until_s is None else max(until_s, kept_until_s))}
    fitting = VALUES_BYTES_THAT_FIT
    if marks:
        item |= marks
        fitting -= item_bytes(marks)
    if len(row.values) > fitting and item_bytes(item) > MAX_ITEM_BYTES:
        raise ItemTooLargeError(
            f"Feature view `{view}`: the row of {sorted(entity_of(row.key))} at event time "
            f"{row.event_us} us takes {item_bytes(item):,} bytes; DynamoDB holds at most "
            f"{MAX_ITEM_BYTES:,} an item. Split the view, or shorten its largest feature."
        )
    return item


def read_keys(keys: Iterable[str]) -> list[JsonItem]:
    """The keys of a BatchGetItem request, of partition keys in base64."""
    return [{KEY: {"B": key}} for key in keys]


def decode_item(item: JsonItem, table: str) -> DecodedItem:
    """What a row's item holds.

    Args:
        item: as DynamoDB's JSON has it.
        table: the table that holds it, for errors.

    Raises:
        ItemFormatError: the item is not in this layout.
    """
    try:
        return item[FINGERPRINT]["B"], a2b_base64(item[VALUES]["B"]), int(item[EVENT_TIME]["N"])
    except (KeyError, ValueError) as error:
        raise ItemFormatError(
            f"Table `{table}` holds an item that is not in this store's layout "
            f"(attributes {sorted(item)}). Write the view again with `feast "
            "materialize`, or point `table_name_template` to tables that only this store writes."
        ) from error


def cells_of(packed: bytes, table: str) -> list[bytes]:
    """The entries of an item's packed values.

    Raises:
        ItemFormatError: they are no such message.
    """
    try:
        cells = split(packed)
        unpack(b"".join(cells))
    except (IndexError, DecodeError) as error:
        raise ItemFormatError(
            f"Table `{table}` holds an item whose values are not in this store's layout. Write "
            "the view again with `feast materialize`."
        ) from error
    return cells


def refuse_too_large(
    rows: Iterable[Row], schema: RowSchema, kept_s: int | None, view: str
) -> None:
    """Raise what `to_item` would raise for one of the rows, before any of them is written.

    Raises: as `to_item`.
    """
    for row in rows:
        if len(row.values) > VALUES_BYTES_THAT_FIT:
            to_item(row, schema, kept_s, view)


def expiry_s(event_us: int, kept_s: int) -> int:
    """The first whole second at which a row is older than that (that age itself still counts)."""
    return event_us // 1_000_000 + kept_s + 1


def item_bytes(item: Mapping[str, Mapping[str, str]]) -> int:
    """Size of an item by DynamoDB's rule: names and values, numbers at half a byte a digit.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: Mapping[str, str]) -> int:
    ((kind, text),) = value.items()
    if kind == "B":
        return len(base64.b64decode(text))
    if kind == "N":
        return (len(text.lstrip("-")) + 1) // 2 + 1 + text.startswith("-")
    return len(text.encode())


def schema_key(fingerprint: bytes) -> str:
    """The key of a fingerprint's schema item, in base64."""
    return base64.b64encode(SCHEMA_KEY_PREFIX + fingerprint).decode()


def to_schema_item(schema: RowSchema) -> JsonItem:
    """The item that says what a fingerprint's values stand for."""
    return {KEY: {"B": schema_key(schema.fingerprint)}, SCHEMA: {"S": schema.text}}


PACKED = Layout(key=key_bytes, put=to_item, read=read_keys, decode=decode_item)
