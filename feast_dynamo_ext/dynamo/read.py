"""One request for features: what it asks of each view, one read for all of them, its answer.

The answer is Feast's GetOnlineFeaturesResponse, one feature vector at a time. Each vector is put
together as bytes (see `Stored.cells`) and parsed by protobuf once.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from feast_dynamo_ext.dynamo.batch_get import TableKeys
from feast_dynamo_ext.dynamo.keys import text
from feast_dynamo_ext.dynamo.layouts.packed import (
    FINGERPRINT,
    PACKED,
    split,
    uniform_columns,
    unpack,
    varint,
)
from feast_dynamo_ext.dynamo.views import keys_of_request
from feast_dynamo_ext.errors import ItemFormatError, RequestTooLargeError
from feast_dynamo_ext.timestamps import moment_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    from feast_dynamo_ext.dynamo.batch_get import ReadResult
    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.schemas import Column, SchemaCache
    from feast_dynamo_ext.dynamo.views import KnownView


logger = logging.getLogger(__name__)

FeatureVector = GetOnlineFeaturesResponse.FeatureVector

# Looked up once: protobuf's enums resolve a name at each use.
UNREAD, PRESENT, NOT_FOUND, OUTSIDE_MAX_AGE = (
    int(FieldStatus.Value(name)) for name in ("INVALID", "PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE")
)
MOST_PROJECTIONS = 1_000
"""Kinds of requests of one view that are remembered: services ask for a few, anybody for any."""

NULL_CELL: bytes = RepeatedValue(val=[Value()]).SerializeToString()
TIME_TAG: bytes = FeatureVector(event_timestamps=[Timestamp()]).SerializeToString()[:1]
VECTOR_TAG: bytes = GetOnlineFeaturesResponse(results=[FeatureVector()]).SerializeToString()[:1]


ReadRow = tuple[datetime | None, dict[str, Value] | None]
"""Event time and values by feature name, or (None, None): as Feast reads rows."""


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


def refuse_too_many(rows: int, most: int | None) -> None:
    """Check the size of a request.

    Raises:
        RequestTooLargeError: it has more rows than it may.
    """
    if most is not None and rows > most:
        raise RequestTooLargeError(
            f"A request for features of {rows:,} entity rows: `max_rows_per_request` allows "
            f"{most:,}. Send several, or raise it in online_store of feature_store.yaml."
        )


def of_columns(
    views: Sequence[KnownView],
    requested: Sequence[Sequence[str]],
    values: Mapping[str, Sequence[Value]],
) -> list[ViewRead]:
    """What a request of columns asks of each view.

    Args:
        views: the views.
        requested: feature names of each view.
        values: the request's columns: join keys, all of one length.

    Raises:
        EntityKeyError: there are no rows, a join key is missing, or a key cannot be a key.
    """
    count = max(map(len, values.values()), default=0)
    # Views of one entity share their keys, and with them what the reader makes of them.
    keys: dict[int, tuple[str | None, ...]] = {}
    reads = []
    for view, names in zip(views, requested, strict=True):
        rows = keys.get(view.key_kind)
        if rows is None:
            rows = keys[view.key_kind] = keys_of_request(view, values, count)
        reads.append(ViewRead(view, tuple(names), rows))
    return reads


def of_keys(
    view: KnownView, keys: Sequence[EntityKey], requested: Sequence[str] | None
) -> ViewRead:
    """What a request of entity keys asks of a view; of no names, all its features.

    Raises:
        EntityKeyError: a key that cannot be a key.
    """
    rows = tuple(text(_key(view, key)) for key in keys)
    names = view.schema.names if view.derived is None else view.derived.features
    return ViewRead(view, tuple(requested or names), rows)


def _key(view: KnownView, key: EntityKey) -> bytes:
    values = dict(zip(key.join_keys, key.entity_values, strict=False))
    names = view.encode.join_keys
    if values.keys() != set(names):
        return PACKED.key(key, view.answers_as)
    return view.encode([values[name] for name in names])


@dataclass(frozen=True)
class Answers:
    """What a request found, for all its views."""

    result: ReadResult
    book: SchemaCache
    now_s: float

    def rows_of(self, read: ViewRead) -> list[Stored]:
        """What each row of the request found in one view."""
        table = read.view.table
        unread = self.result.unread.get(table, ())
        return read_items(read, self.result.found[table], self.book, self.now_s, unread)


async def read(
    reads: Sequence[ViewRead], connection: Connection, *, may_be_partial: bool
) -> Answers:
    """Read all views of a request together.

    Args:
        reads: what is asked of each view.
        connection: the way to DynamoDB.
        may_be_partial: answer what was read when the deadline comes, instead of failing.

    Raises:
        IncompleteReadError: keys were left unread, and the answer may not be partial.
        TableTakenError: a table is another view's or project's.
        AwsError: AWS refused the request.
    """
    book, reader = connection.schemas, connection.reader
    for one in reads:
        book.learn(one.view.table, one.view.schema)
    started_s = reader.policy.clock()
    if unknown := connection.answered.unknown([one.view for one in reads]):
        await connection.answered.refuse_anothers(unknown, reader, started_s)
    result = await reader.read_partial(_wanted(reads), started_s)
    if result.unread:
        error = reader.incomplete(result)
        if not may_be_partial:
            raise error from result.cause
        logger.warning("%s They are marked INVALID (on_partial: mark).", error)
    await book.fetch_missing(result.found, reader, started_s)
    return Answers(result, book, time.time())


def _wanted(reads: Sequence[ViewRead]) -> list[TableKeys]:
    """The distinct keys of each table."""
    by_table: dict[str, list[ViewRead]] = {}
    for one in reads:
        by_table.setdefault(one.view.table, []).append(one)
    distinct: dict[int, tuple[str, ...]] = {}
    wanted = []
    for table, asked in by_table.items():
        keys = [_distinct(one.rows, distinct) for one in asked]
        merged = keys[0] if len(keys) == 1 else tuple(dict.fromkeys(sum(keys, ())))
        consistent = any(one.view.consistent for one in asked)
        wanted.append(TableKeys(table, merged, consistent, asked[0].view.answers_as))
    return wanted


def _distinct(rows: tuple[str | None, ...], known: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    if id(rows) not in known:
        known[id(rows)] = tuple(dict.fromkeys(row for row in rows if row is not None))
    return known[id(rows)]


@dataclass(frozen=True, eq=False)
class ItemProjection:
    """What rows of one kind answer for the requested features.

    Attributes:
        columns: where each feature is among a row's values; None where it is not.
        statuses: each feature's status.
    """

    columns: tuple[Column | None, ...]
    statuses: tuple[int, ...]

    @classmethod
    def from_columns(
        cls, columns: Sequence[Column | None], status: int = PRESENT
    ) -> ItemProjection:
        """What rows that are there answer."""
        statuses = (NOT_FOUND if column is None else status for column in columns)
        return cls(tuple(columns), tuple(statuses))

    @staticmethod
    @lru_cache(1_024)
    def without_values(count: int, status: int) -> ItemProjection:
        """Of rows that have nothing to answer."""
        return ItemProjection((None,) * count, (status,) * count)

    @cached_property
    def positions(self) -> list[int] | None:
        """Where the features are, if all are there and of the current type."""
        positions = [column.position for column in self.columns if column and not column.widen]
        return positions if len(positions) == len(self.columns) else None


class Stored(NamedTuple):
    """What one row of a request found.

    Attributes:
        packed: the item's packed values; None where there is nothing to answer.
        projection: what they answer.
        event_us: the item's event time, microseconds since 1970 UTC; None without item.
    """

    packed: bytes | None
    projection: ItemProjection
    event_us: int | None

    def cells(self) -> list[bytes]:
        """The requested features, each as an entry of field 1."""
        if self.packed is None:
            return [NULL_CELL] * len(self.projection.columns)
        stored = split(self.packed)
        positions = self.projection.positions
        if positions is not None:
            return [stored[position] for position in positions]
        return [
            NULL_CELL if column is None else column.cell_of(stored)
            for column in self.projection.columns
        ]

    def is_sound(self) -> bool:
        """Whether the values are what the projection takes them for."""
        try:
            return len(unpack(b"".join(self.cells()))) == len(self.projection.columns)
        except (IndexError, DecodeError):
            return False


def unreadable(features: int) -> Stored:
    """A row that is there, or may be, and that nobody can read."""
    return Stored(None, ItemProjection.without_values(features, UNREAD), None)


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
    """
    view = asked.view
    count = len(asked.requested)
    found: dict[str | None, Stored] = {}
    projections: dict[tuple[str, bool], ItemProjection] = {}
    oldest_us = view.oldest_us(now_s)
    for key, item in items.items():
        try:
            fingerprint, packed, event_us = PACKED.decode(item, view.table)
            is_expired = event_us < oldest_us
            projection = projections.get((fingerprint, is_expired))
            if projection is None:
                projection = _projection(asked, item, book, is_expired=is_expired)
                projections[fingerprint, is_expired] = projection
        except ItemFormatError as error:  # its neighbours are answered
            book.warn(view.table, error)
            found[key] = unreadable(count)
            continue
        is_answered = not is_expired or view.with_expired
        found[key] = Stored(packed if is_answered else None, projection, event_us)
    if unread:
        found.update((key, unreadable(count)) for key in unread)
    missing = Stored(None, ItemProjection.without_values(count, NOT_FOUND), None)
    return [found.get(key, missing) for key in asked.rows]


def _projection(
    asked: ViewRead, item: JsonItem, book: SchemaCache, *, is_expired: bool
) -> ItemProjection:
    view = asked.view
    if is_expired and not view.with_expired:
        return ItemProjection.without_values(len(asked.requested), OUTSIDE_MAX_AGE)
    # What a fingerprint stands for never changes, nor does the view.
    key = (item[FINGERPRINT]["B"], asked.requested, is_expired)
    projection: ItemProjection | None = view.projections.get(key)
    if projection is None:
        columns = book.columns_of(view.table, item, view.schema, asked.requested)
        projection = ItemProjection.from_columns(
            columns, OUTSIDE_MAX_AGE if is_expired else PRESENT
        )
        if len(view.projections) >= MOST_PROJECTIONS:
            view.projections.clear()
        view.projections[key] = projection
    return projection


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
    try:
        _add_vectors(response, rows)
    except (IndexError, DecodeError):
        # Somebody else's bytes under a fingerprint of ours. Looked for only now: it costs time.
        del response.results[len(response.metadata.feature_names.val) - len(names) :]
        _add_vectors(response, [row if row.is_sound() else unreadable(len(names)) for row in rows])


def _add_vectors(response: GetOnlineFeaturesResponse, rows: Sequence[Stored]) -> None:
    projection = rows[0].projection
    is_even = all(row.projection is projection for row in rows)
    columns = _columns(rows, is_even=is_even)
    times = b"".join([time_entry(row.event_us) for row in rows])
    by_feature: list[tuple[int, ...]]
    if is_even:
        by_feature = [(status,) * len(rows) for status in projection.statuses]
    else:
        by_feature = [*zip(*[row.projection.statuses for row in rows], strict=True)]
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
    positions = rows[0].projection.positions
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


def read_row(view: ViewRead, stored: Stored) -> ReadRow:
    """What was found for a key, as Feast's `online_read` answers it.

    Raises:
        ItemFormatError: the item cannot be explained, which there is no status to say.
    """
    is_lost = stored.projection.statuses[:1] == (UNREAD,)
    if is_lost or (stored.packed is not None and not stored.is_sound()):
        raise ItemFormatError(
            f"Table `{view.view.table}` holds an item of these keys that cannot be explained. "
            "Write the view again with `feast materialize`."
        )
    if stored.packed is None:
        return None, None
    values = unpack(b"".join(stored.cells()))
    present = {
        name: value
        for name, value, column in zip(
            view.requested, values, stored.projection.columns, strict=True
        )
        if column is not None
    }
    return moment_of(stored.event_us or 0), present
