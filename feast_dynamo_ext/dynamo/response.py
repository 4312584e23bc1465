"""From items to Feast's GetOnlineFeaturesResponse, one feature vector at a time.

Each vector is put together as bytes (see `cells`) and parsed by protobuf once.
"""

from __future__ import annotations

from binascii import a2b_base64
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.timestamp_pb2 import Timestamp

from feast_dynamo_ext.arrow_types import FIELD_VALUE_TYPE
from feast_dynamo_ext.columns import ENTITYLESS_JOIN_KEYS, ENTITYLESS_VALUES
from feast_dynamo_ext.dynamo.keys import KeyEncoder
from feast_dynamo_ext.dynamo.layouts.packed import (
    EVENT_TIME,
    FINGERPRINT,
    VALUES,
    Row,
    RowSchema,
    pack,
    split,
    uniform_columns,
    unpack,
    varint,
)
from feast_dynamo_ext.errors import ItemFormatError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.schemas import Column, SchemaCache
    from feast_dynamo_ext.dynamo.views import KnownView


FeatureVector = GetOnlineFeaturesResponse.FeatureVector

# Looked up once: protobuf's enums resolve a name at each use.
UNREAD, PRESENT, NOT_FOUND, OUTSIDE_MAX_AGE = (
    int(FieldStatus.Value(name)) for name in ("INVALID", "PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE")
)
MOST_LAYOUTS = 1_000
"""Kinds of requests of one view that are remembered: services ask for a few, anybody for any."""

NULL_CELL: bytes = RepeatedValue(val=[Value()]).SerializeToString()
TIME_TAG: bytes = FeatureVector(event_timestamps=[Timestamp()]).SerializeToString()[:1]
VECTOR_TAG: bytes = GetOnlineFeaturesResponse(results=[FeatureVector()]).SerializeToString()[:1]


class ViewRead(NamedTuple):
    """What a request asks of one view.

    Attributes:
        view: the view.
        requested: feature names, in the order of the answer.
        rows: the key of each row of the request, in base64; None where a join key is null.
    """

    view: KnownView
    requested: tuple[str, ...]
    rows: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """What rows of one kind answer for the requested features.

    Attributes:
        columns: where each feature is among a row's values; None where it is not.
        statuses: each feature's status.
    """

    columns: tuple[Column | None, ...]
    statuses: tuple[int, ...]

    @classmethod
    def from_columns(cls, columns: Sequence[Column | None], status: int = PRESENT) -> Layout:
        """The layout of rows that are there."""
        statuses = (NOT_FOUND if column is None else status for column in columns)
        return cls(tuple(columns), tuple(statuses))

    @staticmethod
    @lru_cache(1_024)
    def without_values(count: int, status: int) -> Layout:
        """The layout of rows that have nothing to answer."""
        return Layout((None,) * count, (status,) * count)

    @cached_property
    def positions(self) -> list[int] | None:
        """Where the features are, if all are there and of the current type."""
        positions = [column.position for column in self.columns if column and not column.widen]
        return positions if len(positions) == len(self.columns) else None


class Stored(NamedTuple):
    """What one row of a request found.

    Attributes:
        packed: the item's packed values; None where there is nothing to answer.
        layout: what they answer.
        event_us: the item's event time, microseconds since 1970 UTC; None without item.
    """

    packed: bytes | None
    layout: Layout
    event_us: int | None

    def cells(self) -> list[bytes]:
        """The requested features, each as an entry of field 1."""
        if self.packed is None:
            return [NULL_CELL] * len(self.layout.columns)
        stored = split(self.packed)
        positions = self.layout.positions
        if positions is not None:
            return [stored[position] for position in positions]
        return [
            NULL_CELL if column is None else column.cell_of(stored)
            for column in self.layout.columns
        ]


def read_items(
    asked: ViewRead,
    items: Mapping[str, JsonItem],
    book: SchemaCache,
    now_s: float,
    unread: Collection[str] = (),
) -> list[Stored]:
    """What each row of a request found, in the order of the request.

    Args:
        asked: what was asked.
        items: the items that were found, by key.
        book: what items' values stand for.
        now_s: seconds since 1970 UTC.
        unread: keys that could not be read.

    Raises:
        ItemFormatError: an item is not in this store's layout.
    """
    view = asked.view
    found: dict[str | None, Stored] = {}
    layouts: dict[tuple[str, bool], Layout] = {}
    oldest_us = view.oldest_us(now_s)
    for key, item in items.items():
        try:
            fingerprint = item[FINGERPRINT]["B"]
            packed = a2b_base64(item[VALUES]["B"])
            event_us = int(item[EVENT_TIME]["N"])
        except (KeyError, ValueError) as error:
            raise _format_error(view.table, item) from error
        is_expired = event_us < oldest_us
        layout = layouts.get((fingerprint, is_expired))
        if layout is None:
            layout = _layout(asked, item, book, is_expired=is_expired)
            layouts[fingerprint, is_expired] = layout
        is_answered = not is_expired or view.with_expired
        found[key] = Stored(packed if is_answered else None, layout, event_us)
    count = len(asked.requested)
    if unread:
        lost = Stored(None, Layout.without_values(count, UNREAD), None)
        found.update((key, lost) for key in unread)
    missing = Stored(None, Layout.without_values(count, NOT_FOUND), None)
    return [found.get(key, missing) for key in asked.rows]


def _layout(asked: ViewRead, item: JsonItem, book: SchemaCache, *, is_expired: bool) -> Layout:
    view = asked.view
    if is_expired and not view.with_expired:
        return Layout.without_values(len(asked.requested), OUTSIDE_MAX_AGE)
    # What a fingerprint stands for never changes, nor does the view.
    key = (item[FINGERPRINT]["B"], asked.requested, is_expired)
    layout: Layout | None = view.layouts.get(key)
    if layout is None:
        columns = book.columns_of(view.table, item, view.schema, asked.requested)
        layout = Layout.from_columns(columns, OUTSIDE_MAX_AGE if is_expired else PRESENT)
        if len(view.layouts) >= MOST_LAYOUTS:
            view.layouts.clear()
        view.layouts[key] = layout
    return layout


def _format_error(table: str, item: JsonItem) -> ItemFormatError:
    return ItemFormatError(
        f"Table `{table}` holds an item that is not in this store's layout "
        f"(attributes {sorted(item)}). Write the view again with `feast "
        "materialize`, or point `table_name_template` to tables that only this store writes."
    )


def add_view(
    response: GetOnlineFeaturesResponse, rows: Sequence[Stored], names: Sequence[str]
) -> None:
    """Append one feature vector per requested feature.

    Args:
        response: the answer to extend.
        rows: what each row of the request found.
        names: the names under which the features are answered.
    """
    response.metadata.feature_names.val.extend(names)
    layout = rows[0].layout
    is_even = all(row.layout is layout for row in rows)
    columns = _columns(rows, is_even=is_even)
    times = b"".join([time_entry(row.event_us) for row in rows])
    by_feature: list[tuple[int, ...]]
    if is_even:
        by_feature = [(status,) * len(rows) for status in layout.statuses]
    else:
        by_feature = [*zip(*[row.layout.statuses for row in rows], strict=True)]
    tails = {statuses: status_entries(statuses) + times for statuses in {*by_feature}}
    response.MergeFromString(
        b"".join(
            [
                vector_head(len(values) + len(tails[statuses])) + values + tails[statuses]
                for values, statuses in zip(columns, by_feature, strict=True)
            ]
        )
    )


def _columns(rows: Sequence[Stored], *, is_even: bool) -> Iterable[bytes]:
    """Each requested feature of all rows, as entries of field 1."""
    if len(rows) == 1:
        return rows[0].cells()
    positions = rows[0].layout.positions
    if is_even and positions and rows[0].packed is not None:
        columns = uniform_columns([row.packed or b"" for row in rows], positions)
        if columns is not None:
            return columns
    return map(b"".join, zip(*(row.cells() for row in rows), strict=True))


@lru_cache(4_096)
def vector_head(size: int) -> bytes:
    """What stands before a feature vector of a size in the response."""
    return VECTOR_TAG + varint(size)


@lru_cache(1_024)
def status_entries(statuses: tuple[int, ...]) -> bytes:
    """The statuses of a feature's rows, as `FeatureVector.statuses`."""
    entries: bytes = FeatureVector(statuses=cast("Any", statuses)).SerializeToString()
    return entries


# Rows that were written together often have one event time.
@lru_cache(16_384)
def time_entry(event_us: int | None) -> bytes:
    """An event time as an entry of `FeatureVector.event_timestamps`; none is 1970."""
    if event_us is None:
        return TIME_TAG + b"\0"
    seconds, micros = divmod(event_us, 1_000_000)
    data: bytes = Timestamp(seconds=seconds, nanos=micros * 1_000).SerializeToString()
    # At most 17 bytes: the length takes one.
    return TIME_TAG + bytes((len(data),)) + data


def add_version(response: GetOnlineFeaturesResponse, view: Any) -> None:
    """Append which version of a feature view answered, once a view."""
    name = view.projection.name_alias or view.projection.name
    if all(entry.name != name for entry in response.metadata.feature_view_metadata):
        response.metadata.feature_view_metadata.add(
            name=name, version=getattr(view, "current_version_number", 0) or 0
        )


NULL = ValueProto()
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)

FeastRow = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]
"""Entity key, values by feature name, event time, created time: as Feast writes rows."""

ReadRow = tuple[datetime | None, dict[str, ValueProto] | None]
"""Event time and values by feature name, or (None, None): as Feast reads rows."""


def schema_of_rows(view: Any, data: Iterable[FeastRow]) -> RowSchema:
    """The view's schema, and any further values that rows carry (on-demand views do)."""
    declared = RowSchema.from_view(view)
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
