"""Rows as Feast's interface has them, to and from packed rows."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import RepeatedValue
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_dynamo_ext.dynamo.entity_keys import ENTITYLESS_JOIN_KEYS, ENTITYLESS_VALUES
from feast_dynamo_ext.dynamo.item import Row, RowSchema, pack, unpack
from feast_dynamo_ext.dynamo.key_encoding import KeyEncoder
from feast_dynamo_ext.type_map import FIELD_VALUE_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
        if values.keys() <= known:
            continue
        for name in values.keys() - known:
            kind = FIELD_VALUE_TYPE.get(values[name].WhichOneof("val") or "")
            extra[name] = kind or extra.get(name, "UNKNOWN")
    names = sorted(extra)
    return RowSchema(
        declared.names + tuple(names), declared.types + tuple(extra[name] for name in names)
    )


def packed_rows(view: str, schema: RowSchema, data: Iterable[FeastRow]) -> Iterator[Row]:
    """Rows of Feast, packed.

    Raises:
        EntityKeyError: a key that cannot be a key.
    """
    encoders: dict[tuple[str, ...], KeyEncoder] = {}
    for entity_key, values, event_time, created_time in data:
        # A push to a view without entities comes with no keys at all.
        join_keys = tuple(entity_key.join_keys) or ENTITYLESS_JOIN_KEYS
        encode = encoders.get(join_keys)
        if encode is None:
            encode = encoders[join_keys] = KeyEncoder(join_keys, view)
        yield Row(
            encode(entity_key.entity_values or ENTITYLESS_VALUES),
            _packed(values, schema.names),
            micros(event_time),
            None if created_time is None else micros(created_time),
        )


def _packed(values: Mapping[str, ValueProto], names: Sequence[str]) -> bytes:
    try:
        packed: bytes = RepeatedValue(val=map(values.__getitem__, names)).SerializeToString()
    except (KeyError, TypeError):
        # A row may lack a value, or have None for it.
        return pack([values.get(name) or NULL for name in names])
    return packed


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
    return EPOCH + timedelta(microseconds=stored.event_us or 0), present


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a naive datetime is taken as UTC, as Feast does."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (aware - EPOCH) // MICROSECOND
