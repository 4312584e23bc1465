"""The series layout: one event of a feature view as one DynamoDB item, sorted by event time.

An item is that of the packed layout, and has besides:

====  ====  ===============================================================================
name  type  meaning
====  ====  ===============================================================================
s     B     sort key: the event time, then the tie-breaker
o_F   B     of a feature F among `orders`: its value, then the event time; sort key of a local
            index; absent where the value is null
g_F   S     of a feature F among `cohorts`: its value as text, behind a `=`; partition key of a
            global index, whose sort key is s; absent where the value is null
x     N     as in the packed layout, but of `keep_for` in place of the ttl
====  ====  ===============================================================================

All bytes are in the order of the values: an event time is 8 bytes, big-endian, counted from the
lowest. So one Query has the events of a stretch of time, and two events of one microsecond are
apart by their tie-breakers.

Where an event of a captured table was deleted, an item with the keys, t, c and x alone says so for
a while: nothing that was written before c takes its place. It is no event to readers.

Schema items and control items have the sort key `00`, which is shorter than any event's.
"""

from __future__ import annotations

import base64
import struct
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from feast_dynamo_ext.dynamo.layouts import Layout
from feast_dynamo_ext.dynamo.layouts.packed import (
    KEY,
    MAX_ITEM_BYTES,
    VALUES_BYTES_THAT_FIT,
    Row,
    RowSchema,
    decode_item,
    entity_of,
    item_bytes,
    key_bytes,
    read_keys,
    split,
    to_item,
    to_schema_item,
    value_of,
)
from feast_dynamo_ext.errors import ColumnTypeError, ItemTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feast.protos.feast.types.Value_pb2 import Value

    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.series_settings import Series

SORT = "s"
CONTROL_SORT = b"\0"
CONTROL_SORT_TEXT = base64.b64encode(CONTROL_SORT).decode()

ORDER, COHORT = "o_", "g_"
"""How attributes of orders and cohorts begin, and `ORDER_INDEX`, `COHORT_INDEX` their indexes."""
ORDER_INDEX, COHORT_INDEX = "order_", "cohort_"

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_SORT_BYTES = 1_024
MAX_COHORT_BYTES = 2_048
MAX_MARKS_BYTES = 48 * 1_024
"""Of sort key, orders and cohorts of an event: 6 sort keys and 20 partition keys of indexes."""

TIE_BREAKER_ITEM = b"tie_breaker"
"""Name of the control item that says by which features events are told apart."""

LOWEST = 2**63
"""Added to an integer of 64 bits, it makes the lowest one 0."""

IN_BYTES = frozenset(
    {"INT32", "INT64", "FLOAT", "DOUBLE", "STRING", "BYTES", "BOOL", "UNIX_TIMESTAMP"}
)
"""Value types that have bytes in their order."""
INTEGERS = frozenset({"int32_val", "int64_val", "unix_timestamp_val"})
"""Fields of a value that hold an integer."""
AS_COHORTS = frozenset({"INT32", "INT64", "STRING", "BOOL"})
"""Value types by which entities can be found."""


def time_bytes(event_us: int) -> bytes:
    """An event time, microseconds since 1970 UTC, in 8 bytes in the order of time."""
    return integer_bytes(event_us)


def time_of(sort: bytes) -> int:
    """The event time of a sort key."""
    return int.from_bytes(sort[:8], "big") - LOWEST


def integer_bytes(value: int) -> bytes:
    """An integer of 64 bits in 8 bytes in its order."""
    return (value + LOWEST).to_bytes(8, "big")


def float_bytes(value: float) -> bytes:
    """A double in 8 bytes in its order; -0.0 is 0.0."""
    (bits,) = struct.unpack(">q", struct.pack(">d", value + 0.0))
    return integer_bytes(bits if bits >= 0 else -LOWEST - bits - 1)


def ended(data: bytes) -> bytes:
    """Bytes of any length, so that what follows them does not count in their order."""
    return data.replace(b"\0", b"\0\xff") + b"\0\0"


def value_bytes(value: Value, *, is_last: bool) -> bytes | None:
    """A value in bytes in its order; None of a null, and of NaN.

    Args:
        value: of a type of `IN_BYTES`.
        is_last: whether nothing follows it.
    """
    field = value.WhichOneof("val")
    if field is None:
        return None
    held = getattr(value, field)
    if field in INTEGERS:
        return integer_bytes(held)
    if field in {"string_val", "bytes_val"}:
        data = held.encode() if field == "string_val" else held
        return data if is_last else ended(data)
    if field == "bool_val":
        return bytes((held,))
    return None if held != held else float_bytes(held)  # noqa: PLR0124 - NaN


def cohort_text(value: Value) -> str | None:
    """A value as the partition key of its cohort; None of a null.

    Of a key that may not be empty, the first character is the same for all.
    """
    field = value.WhichOneof("val")
    if field is None:
        return None
    held = getattr(value, field)
    return f"={str(held).lower() if field == 'bool_val' else held}"


def cohort_mark(view: str, name: str, value: Value) -> JsonItem:
    """The attribute that puts a row into the cohort of a feature's value; none of a null.

    Raises:
        ColumnTypeError: the value is too long to be a key.
    """
    text = cohort_text(value)
    if text is None:
        return {}
    check_key_bytes(view, name, len(text.encode()), MAX_COHORT_BYTES)
    return {COHORT + name: {"S": text}}


def check_key_bytes(view: str, name: str, size: int, most: int) -> None:
    """Refuse a value that is too long to be a key.

    Raises:
        ColumnTypeError: names the view and the feature.
    """
    if size > most:
        raise ColumnTypeError(
            f"Feature view `{view}`: `{name}` of a row makes a key of {size:,} bytes; "
            f"DynamoDB's holds at most {most:,}. Shorten it."
        )


@dataclass(frozen=True)
class CohortMarker:
    """Makes the attributes of cohorts of rows of the packed layout.

    Attributes:
        view: name of the feature view, for errors.
        cohorts: (feature, position in the row's values).
    """

    view: str
    cohorts: tuple[tuple[str, int], ...]

    @classmethod
    def from_names(cls, view: str, names: Sequence[str], schema: RowSchema) -> CohortMarker:
        """Of rows of a schema."""
        return cls(view, tuple((name, schema.names.index(name)) for name in names))

    def __call__(self, row: Row | Event) -> JsonItem:
        """The attributes of a row; of a null there is none.

        Raises:
            ColumnTypeError: a value is too long to be a key.
        """
        cells = split(row.values)
        marks: JsonItem = {}
        for name, at in self.cohorts:
            marks |= cohort_mark(self.view, name, value_of(cells[at]))
        return marks


class Event(NamedTuple):
    """One event on its way into a table.

    Attributes:
        key: serialized entity key.
        values: packed values, see `packed.pack`.
        event_us: event time, microseconds since 1970 UTC.
        created_us: created time, the same, or None.
        sort: the sort key.
        marks: attributes of orders and cohorts, in DynamoDB JSON.
    """

    key: bytes
    values: bytes
    event_us: int
    created_us: int | None
    sort: bytes
    marks: JsonItem

    @property
    def age(self) -> int:
        """What decides which of two rows of one event is newer: the created time."""
        return -(2**63) if self.created_us is None else self.created_us


@dataclass(frozen=True)
class EventMaker:
    """Makes events of rows.

    Attributes:
        view: name of the feature view, for errors.
        tie_breaker: (feature, position in the row's values).
        orders: the same.
        cohorts: the same.
    """

    view: str
    tie_breaker: tuple[tuple[str, int], ...]
    orders: tuple[tuple[str, int], ...]
    cohorts: tuple[tuple[str, int], ...]

    @classmethod
    def from_series(cls, view: str, series: Series, schema: RowSchema) -> EventMaker:
        """Of rows of a schema.

        Args:
            view: name of the feature view.
            series: its settings, the tie-breaker included.
            schema: what the values of its rows stand for.
        """

        def placed(names: Sequence[str]) -> tuple[tuple[str, int], ...]:
            return tuple((name, schema.names.index(name)) for name in names)

        return cls(view, placed(series.tie_breaker), placed(series.orders), placed(series.cohorts))

    def __call__(self, row: Row) -> Event:
        """The event of a row.

        Raises:
            ColumnTypeError: a tie-breaker is null, or a sort key would be too long.
        """
        cells = split(row.values)
        sort = time = time_bytes(row.event_us)
        left = len(self.tie_breaker)
        for name, at in self.tie_breaker:
            left -= 1
            data = value_bytes(value_of(cells[at]), is_last=not left)
            if data is None:
                raise ColumnTypeError(
                    f"Feature view `{self.view}`: the tie-breaker `{name}` of an event is null, "
                    "so nothing tells it from others of its time. Nothing was written. Fill it, "
                    "or leave the row out."
                )
            sort += data
        if len(sort) > MAX_SORT_BYTES:
            names = ", ".join(name for name, _ in self.tie_breaker)
            check_key_bytes(self.view, names, len(sort), MAX_SORT_BYTES)
        marks = self._marks(cells, time) if self.orders or self.cohorts else {}
        return Event(row.key, row.values, row.event_us, row.created_us, sort, marks)

    def _marks(self, cells: Sequence[bytes], time: bytes) -> JsonItem:
        marks: JsonItem = {}
        for name, at in self.orders:
            data = value_bytes(value_of(cells[at]), is_last=False)
            if data is not None:
                check_key_bytes(self.view, name, len(data) + len(time), MAX_SORT_BYTES)
                marks[ORDER + name] = {"B": _text(data + time)}
        for name, at in self.cohorts:
            marks |= cohort_mark(self.view, name, value_of(cells[at]))
        return marks


def _text(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()


def marks_of(series: Series) -> tuple[str, ...]:
    """The attributes of orders and cohorts that events may have."""
    return (*(ORDER + name for name in series.orders), *cohort_attributes(series.cohorts))


def cohort_attributes(names: Iterable[str]) -> tuple[str, ...]:
    """The attributes of cohorts that rows may have."""
    return tuple(COHORT + name for name in names)


def newest_per_event(events: Iterable[Event]) -> list[Event]:
    """The newest row of each event; of equal ones the last, as a later call would also win."""
    newest: dict[tuple[bytes, bytes], Event] = {}
    for event in events:
        held = newest.get((event.key, event.sort))
        if held is None or event.age >= held.age:
            newest[event.key, event.sort] = event
    return list(newest.values())


def to_event_item(
    event: Any, schema: RowSchema, kept_s: int | None, view: str, kept_until_s: int | None = None
) -> JsonItem:
    """The item of an event; see `packed.to_item`.

    Raises:
        ItemTooLargeError: over DynamoDB's 400 KB an item, its entries in local indexes included.
    """
    item = to_item(event, schema, kept_s, view, kept_until_s)
    item[SORT] = {"B": _text(event.sort)}
    copies = 1
    if event.marks:
        item |= event.marks
        copies += sum(name.startswith(ORDER) for name in event.marks)
    if copies * (len(event.values) + MAX_MARKS_BYTES) > VALUES_BYTES_THAT_FIT:
        refuse_too_large_with_orders(item, view)
    return item


def refuse_too_large_with_orders(item: JsonItem, view: str) -> None:
    """Refuse an event that DynamoDB would: its entries in local indexes count with its item.

    An entry has all attributes of the item, so each order takes as much as the item does. See
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/LSI.html

    Raises:
        ItemTooLargeError: over DynamoDB's 400 KB, entries included.
    """
    orders = sum(name.startswith(ORDER) for name in item)
    size = item_bytes(item)
    if (1 + orders) * size <= MAX_ITEM_BYTES:
        return
    with_orders = f", and as much for each of its {orders} orders" if orders else ""
    fewer = ", declare fewer orders" if orders else ""
    key, sort = (a2b_base64(item[name]["B"]) for name in (KEY, SORT))
    raise ItemTooLargeError(
        f"Feature view `{view}`: the event of {sorted(entity_of(key))} at event time "
        f"{time_of(sort)} us takes {size:,} bytes{with_orders}; DynamoDB holds at most "
        f"{MAX_ITEM_BYTES:,} an item, with its entries in local indexes. Split the view{fewer}, "
        "or shorten its largest feature."
    )


def control_keys(keys: Iterable[str]) -> list[JsonItem]:
    """The keys of a BatchGetItem request, of schema items and control items."""
    return [{**key, SORT: {"B": CONTROL_SORT_TEXT}} for key in read_keys(keys)]


def to_series_schema_item(schema: RowSchema) -> JsonItem:
    """The item that says what a fingerprint's values stand for."""
    return {**to_schema_item(schema), SORT: {"B": CONTROL_SORT_TEXT}}


SERIES = Layout(key=key_bytes, put=to_event_item, read=control_keys, decode=decode_item)
