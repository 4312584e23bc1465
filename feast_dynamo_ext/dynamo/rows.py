"""Rows as Feast's interface has them, to and from packed rows."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_dynamo_ext.dynamo.item import Row, RowSchema, key_bytes, pack, unpack
from feast_dynamo_ext.type_map import FIELD_VALUE_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast_dynamo_ext.dynamo.response import Stored, ViewRead

NULL = ValueProto()
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)

FeastRow = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]
"""Entity key, values by feature name, event time, created time: as Feast writes rows."""

ReadRow = tuple[datetime | None, dict[str, ValueProto] | None]
"""Event time and values by feature name, or (None, None): as Feast reads rows."""


def schema_of_rows(view: Any, data: Iterable[FeastRow]) -> RowSchema:
    """The view's schema, and any further values that rows carry (on-demand views do)."""
    declared = RowSchema.of(view)
    known = set(declared.names)
    extra: dict[str, str] = {}
    for _, values, _, _ in data:
        for name in values.keys() - known:
            kind = FIELD_VALUE_TYPE.get(values[name].WhichOneof("val") or "")
            extra[name] = kind or extra.get(name, "UNKNOWN")
    names = sorted(extra)
    return RowSchema(
        declared.names + tuple(names), declared.types + tuple(extra[name] for name in names)
    )


def packed_row(view: str, schema: RowSchema, row: FeastRow) -> Row:
    """A row of Feast, packed.

    Raises:
        EntityKeyError: its key cannot be a key.
    """
    entity_key, values, event_time, created_time = row
    return Row(
        key=key_bytes(entity_key, view),
        values=pack([values.get(name) or NULL for name in schema.names]),
        event_us=micros(event_time),
        created_us=None if created_time is None else micros(created_time),
    )


def read_row(view: ViewRead, stored: Stored) -> ReadRow:
    """What was found for a key, as Feast's `online_read` answers it."""
    if stored.packed is None:
        return None, None
    values = unpack(b"".join(stored.cells()))
    present = {
        name: value
        for name, value, column in zip(view.requested, values, stored.layout.columns, strict=True)
        if column is not None
    }
    return stored.event_time.ToDatetime(tzinfo=timezone.utc), present


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a naive datetime is taken as UTC, as Feast does."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (aware - EPOCH) // MICROSECOND
