"""A precomputed service's vectors: one item an entity, from the views' rows to Feast's answer.

====  ====  ===============================================================================
name  type  meaning
====  ====  ===============================================================================
k     B     see `service_spec`
v     B     the values of all views in the order of the spec, one `RepeatedValue` message
h     B     the event time of each view's row, microseconds since 1970 UTC: an int64 a view,
            little-endian; the least int64 for no row
l     B     a byte for each feature, 1 where the view's row was written before the view had
            it; absent where that is so nowhere
f     B     fingerprint of the service's spec: a vector of another spec is not read
x     N     the latest expiry of the rows, if all of them have one (DynamoDB's TTL attribute)
====  ====  ===============================================================================

A vector is nothing but the views' rows side by side, so it answers what reading the views would:
values past their view's ttl are OUTSIDE_MAX_AGE and null, times are the rows' event times. An
entity without a vector is read from the views themselves.
"""

from __future__ import annotations

import base64
import struct
from binascii import a2b_base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.dynamo.cells import split
from feast_dynamo_ext.dynamo.item import (
    EVENT_TIME,
    EXPIRY,
    FINGERPRINT,
    KEY,
    MAX_ITEM_BYTES,
    VALUES,
    item_bytes,
)
from feast_dynamo_ext.dynamo.reader import TableKeys
from feast_dynamo_ext.dynamo.response import (
    NULL_CELL,
)
from feast_dynamo_ext.errors import ItemFormatError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.reader import Found, Reader, ReadResult
    from feast_dynamo_ext.dynamo.schemas import SchemaBook
    from feast_dynamo_ext.dynamo.services.spec import ServiceSpec, ServiceView

HEAD, LACKS = "h", "l"
NO_ROW, UNREAD_ROW = -(2**63), -(2**63) + 1
"""Instead of an event time: there is no row, or it could not be read."""

VOID_FINGERPRINT = base64.b64encode(bytes(8)).decode()


@dataclass(frozen=True)
class Vector:
    """One entity's values of all views.

    Attributes:
        packed: the values of all views.
        head: event time of each view's row, packed.
        lacks: which features the views' rows lack; empty for none.
    """

    packed: bytes
    head: bytes
    lacks: bytes = b""

    @classmethod
    def empty(cls, spec: ServiceSpec, instead: int = NO_ROW) -> Vector:
        """The vector of an entity that is in no view, or whose rows could not be read."""
        return cls(NULL_CELL * spec.width, struct.pack("<q", instead) * len(spec.views))


Rows = tuple["JsonItem | None", ...]
"""An entity's rows, one a view of the service; None where a view has none."""


def rows_of(spec: ServiceSpec, key: str, found: Found) -> Rows:
    """The rows of an entity key (base64) among those found."""
    return tuple([found[view.table].get(key) for view in spec.views])


def vector_of(
    spec: ServiceSpec, rows: Rows, book: SchemaBook, unread: Collection[str] = ()
) -> Vector:
    """The vector of an entity.

    Args:
        spec: the service.
        rows: the entity's rows.
        book: what the rows' values stand for.
        unread: tables whose row could not be read.

    Raises:
        ItemFormatError: a row is not in this store's layout.
    """
    packed, times, lacks = [], [], []
    for view, row in zip(spec.views, rows, strict=True):
        if row is None:
            packed.append(NULL_CELL * len(view.schema.names))
            times.append(UNREAD_ROW if view.table in unread else NO_ROW)
            lacks.append(bytes(len(view.schema.names)))
            continue
        values, event_us, lacking = _values(view, row, book)
        packed.append(values)
        times.append(event_us)
        lacks.append(lacking)
    head, lack = struct.pack(f"<{len(times)}q", *times), b"".join(lacks)
    return Vector(b"".join(packed), head, lack if any(lack) else b"")


def _values(view: ServiceView, row: JsonItem, book: SchemaBook) -> tuple[bytes, int, bytes]:
    """What the service takes of a row, its event time, and which features the row lacks."""
    try:
        columns = book.columns_of(view.table, row, view.schema, view.schema.names)
        cells = split(a2b_base64(row[VALUES]["B"]))
        event_us = int(row[EVENT_TIME]["N"])
    except KeyError as error:
        raise ItemFormatError(
            f"Table `{view.table}` holds an item that is not in this store's layout (attributes "
            f"{sorted(row)}). Write the view again with `feast materialize`."
        ) from error
    wanted = [NULL_CELL if column is None else column.cell_of(cells) for column in columns]
    return b"".join(wanted), event_us, bytes([column is None for column in columns])


def to_item(spec: ServiceSpec, vector_key: str, rows: Rows, book: SchemaBook) -> JsonItem:
    """The item of an entity's vector; where it would be too large, one no reader takes for it."""
    vector = vector_of(spec, rows, book)
    item: JsonItem = {
        KEY: {"B": vector_key},
        VALUES: {"B": base64.b64encode(vector.packed).decode()},
        HEAD: {"B": base64.b64encode(vector.head).decode()},
        FINGERPRINT: {"B": spec.fingerprint_text},
    }
    if vector.lacks:
        item[LACKS] = {"B": base64.b64encode(vector.lacks).decode()}
    there = [row for row in rows if row is not None]
    if there and all(EXPIRY in row for row in there):
        item[EXPIRY] = {"N": str(max(int(row[EXPIRY]["N"]) for row in there))}
    if item_bytes(item) > MAX_ITEM_BYTES:
        return {KEY: {"B": vector_key}, FINGERPRINT: {"B": VOID_FINGERPRINT}}
    return item


def from_item(spec: ServiceSpec, item: JsonItem) -> Vector | None:
    """The inverse of `to_item`; None where the item is a vector of another spec."""
    if item[FINGERPRINT]["B"] != spec.fingerprint_text:
        return None
    lacks = a2b_base64(item[LACKS]["B"]) if LACKS in item else b""
    return Vector(a2b_base64(item[VALUES]["B"]), a2b_base64(item[HEAD]["B"]), lacks)


@dataclass(frozen=True)
class VectorRead:
    """What a request asks of a service.

    Attributes:
        spec: the service.
        rows: each row's entity key in base64; None where a join key is null.
        consistent: strongly consistent reads.
        mark: answer what could not be read as unread, instead of failing.
    """

    spec: ServiceSpec
    rows: tuple[str | None, ...]
    consistent: bool = False
    mark: bool = False

    async def run(self, reader: Reader, book: SchemaBook) -> tuple[list[Vector], int]:
        """The vector of each row, and how many entities were read from the views instead.

        Raises:
            IncompleteReadError: keys were left unread at the deadline, and `mark` is off.
            ItemFormatError: an item is not in this store's layout.
        """
        spec = self.spec
        keys = {key: spec.vector_key(key) for key in self.rows if key is not None}
        wanted = tuple([key for key in keys.values() if key is not None])
        result = await self._read(reader, [TableKeys(spec.home, wanted, self.consistent)])
        items, unread = result.found[spec.home], set(result.unread.get(spec.home, ()))
        held: dict[str | None, Vector] = {}
        for key, vector_key in keys.items():
            item = items.get(vector_key or "")
            vector = from_item(spec, item) if item else None
            if vector is not None:
                held[key] = vector
            elif vector_key in unread:
                held[key] = Vector.empty(spec, UNREAD_ROW)
        missing = tuple([key for key in keys if key not in held])
        if missing:
            held.update(await self._from_views(missing, reader, book))
        nothing = Vector.empty(spec)
        return [held.get(key, nothing) for key in self.rows], len(missing)

    async def _from_views(
        self, keys: tuple[str, ...], reader: Reader, book: SchemaBook
    ) -> dict[str, Vector]:
        spec = self.spec
        wanted = [TableKeys(table, keys, self.consistent) for table in spec.tables]
        result = await self._read(reader, wanted)
        await book.fetch_missing(result.found, reader)
        lost: dict[str, set[str]] = {}
        for table, unread in result.unread.items():
            for key in unread:
                lost.setdefault(key, set()).add(table)
        return {
            key: vector_of(spec, rows_of(spec, key, result.found), book, lost.get(key, ()))
            for key in keys
        }

    async def _read(self, reader: Reader, wanted: Sequence[TableKeys]) -> ReadResult:
        result = await reader.read_what_answers(wanted)
        if result.unread and not self.mark:
            raise reader.incomplete(result) from result.cause
        return result
