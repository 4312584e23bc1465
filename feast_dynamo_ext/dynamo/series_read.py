"""What a request for features finds in series: one Query an entity, whatever hangs on it.

All derived views of one base view share the Query of an entity: it goes as far back as the one
that goes furthest, and ends early where only the newest events are wanted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from binascii import a2b_base64
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from google.protobuf.message import DecodeError

from feast_dynamo_ext.arrow_types import VALUE_FIELD
from feast_dynamo_ext.dynamo.batch_get import incomplete_error
from feast_dynamo_ext.dynamo.entity_events import EntityEvents, NullInListError, aggregate, listed
from feast_dynamo_ext.dynamo.layouts.packed import (
    CREATED_TIME,
    FINGERPRINT,
    VALUES,
    split,
    unpack,
)
from feast_dynamo_ext.dynamo.query import EntityQuery, Queries, Stretch, sort_time
from feast_dynamo_ext.dynamo.read import (
    NOT_FOUND,
    OUTSIDE_MAX_AGE,
    PRESENT,
    UNREAD,
    status_entries,
    time_entry,
    vector_head,
)
from feast_dynamo_ext.errors import ItemFormatError
from feast_dynamo_ext.series_settings import Recent, RecentFeature, WindowFeature, Windows
from feast_dynamo_ext.timestamps import MICROSECOND, micros_of, moment_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.query import QueryResult
    from feast_dynamo_ext.dynamo.read import ReadRow, ViewRead
    from feast_dynamo_ext.dynamo.retry import RetryPolicy
    from feast_dynamo_ext.dynamo.schemas import Column, SchemaCache
    from feast_dynamo_ext.dynamo.views import KnownDerived, KnownView
    from feast_dynamo_ext.errors import IncompleteReadError

logger = logging.getLogger(__name__)

_AS_OF: ContextVar[int | None] = ContextVar("as_of", default=None)


@contextlib.contextmanager
def as_of(moment: datetime) -> Iterator[None]:
    """Reads of series in the block are as of a moment: of events that were there by then.

    For comparisons with training sets: an event that was written again, or deleted, since then is
    not as it was.
    """
    token = _AS_OF.set(micros_of(moment))
    try:
        yield
    finally:
        _AS_OF.reset(token)


@dataclass(frozen=True)
class RowAnswer:
    """What one row of a request is answered.

    Attributes:
        values: of the requested features.
        status: of all of them.
        event_us: event time of the newest event; None without one.
    """

    values: tuple[Value, ...]
    status: int
    event_us: int | None


class SeriesAnswers:
    """What a request found in series."""

    def __init__(
        self, result: QueryResult, book: SchemaCache, now_us: int, *, is_past: bool
    ) -> None:
        self._result, self._book, self._now_us = result, book, now_us
        self._is_past = is_past
        self._queries = {(query.table, query.key): query for query in result.found}

    def rows_of(self, read: ViewRead) -> list[RowAnswer]:
        """What each row of the request found in one view."""
        answered: dict[str, RowAnswer] = {}
        nothing = (Value(),) * len(read.requested)
        missing = RowAnswer(nothing, NOT_FOUND, None)
        rows = []
        for key in read.rows:
            if key is None:
                rows.append(missing)
                continue
            if key not in answered:
                answered[key] = self._answered(read, key, nothing)
            rows.append(answered[key])
        return rows

    def _answered(self, read: ViewRead, key: str, nothing: tuple[Value, ...]) -> RowAnswer:
        view, unread = read.view, RowAnswer(nothing, UNREAD, None)
        query = self._queries.get((view.table, key))
        if query is None:
            return unread
        try:
            if view.derived is None:
                return self._newest(read, self._result.found[query], nothing)
            return self._derived(read, view.derived, self._result.found[query])
        except UNEXPLAINED as error:
            self._book.warn(view.table, explained(view, error))
            return unread

    def _newest(
        self, read: ViewRead, items: Sequence[JsonItem], nothing: tuple[Value, ...]
    ) -> RowAnswer:
        """The newest event, as views that keep the newest rows answer it."""
        items = self._known(items)
        if not items:
            return RowAnswer(nothing, NOT_FOUND, None)
        event_us, view = sort_time(items[0]), read.view
        if event_us < view.oldest_us(self._now_us / 1_000_000) and not view.with_expired:
            return RowAnswer(nothing, OUTSIDE_MAX_AGE, event_us)
        columns = values_of(items[:1], read.requested, view, self._book)
        values = (columns[name][0] if name in columns else Value() for name in read.requested)
        return RowAnswer(tuple(values), PRESENT, event_us)

    def _derived(
        self, read: ViewRead, derived: KnownDerived, items: Sequence[JsonItem]
    ) -> RowAnswer:
        view, now_us = read.view, self._now_us
        items = self._known(items)[::-1]  # the oldest first
        features = [derived.features[name] for name in read.requested]
        needed = dict.fromkeys(each.column for each in features if each.column)
        columns = python_values_of(
            items,
            tuple(needed),
            view,
            self._book,
            times_by=1_000_000 if isinstance(derived.definition, Recent) else 1,
        )
        for name in needed:
            columns.setdefault(name, [None] * len(items))
        oldest = None if view.ttl_s is None else now_us - view.ttl_s * 1_000_000
        events = EntityEvents([sort_time(item) for item in items], columns, oldest)
        values = tuple(_computed(each, derived, events, now_us) for each in features)
        return RowAnswer(values, PRESENT, events.times[-1] if items else None)

    def _known(self, items: Sequence[JsonItem]) -> Sequence[JsonItem]:
        """Of a read of the past, events that had been written by then."""
        return written_by(items, self._now_us) if self._is_past else items


def written_by(items: Sequence[JsonItem], moment_us: int) -> list[JsonItem]:
    """The events that had been written by a moment."""
    return [item for item in items if _created_us(item) <= moment_us]


def _created_us(item: JsonItem) -> int:
    found = item.get(CREATED_TIME)
    return -(2**63) if found is None else int(found["N"])


UNEXPLAINED = (
    *(ItemFormatError, NullInListError, OverflowError),
    *(IndexError, KeyError, DecodeError),
)
"""What events raise whose values are not what their schema says."""


def explained(view: KnownView, error: Exception) -> ItemFormatError:
    """One of them as an error that names the view and says what to do."""
    if isinstance(error, ItemFormatError):
        return error
    if isinstance(error, NullInListError):
        why = f"an event's {error}. Declare one: recent(..., fill={{...}})."
    elif isinstance(error, OverflowError):
        why = "a sum of integers has more than 64 bits. Aggregate a Float64."
    else:
        why = "an event's values are not in this store's layout. Write the view again."
    return ItemFormatError(f"Feature view `{view.answers_as}`: {why}")


def _computed(
    feature: WindowFeature | RecentFeature,
    derived: KnownDerived,
    events: EntityEvents,
    now_us: int,
) -> Value:
    kind = derived.types[feature.name]
    what = derived.definition
    if isinstance(feature, RecentFeature):
        recent: Any = what
        values = listed(feature, recent, events, now_us, kind)
        made = Value()
        getattr(made, VALUE_FIELD[kind]).val.extend(values)
        if not values:
            getattr(made, VALUE_FIELD[kind]).SetInParent()
        return made
    windows: Any = what
    value = aggregate(feature, windows, events, now_us)
    return Value() if value is None else Value(**{VALUE_FIELD[kind]: value})


# Values of events


def values_of(
    items: Sequence[JsonItem], names: tuple[str, ...], view: KnownView, book: SchemaCache
) -> dict[str, Sequence[Value]]:
    """The values of features of events, in their order.

    Raises:
        ItemFormatError: an item that nobody can explain.
    """
    return {name: unpack(column) for name, column in _columns(items, names, view, book).items()}


def python_values_of(
    items: Sequence[JsonItem],
    names: tuple[str, ...],
    view: KnownView,
    book: SchemaCache,
    *,
    times_by: int = 1,
) -> dict[str, list[Any]]:
    """The same as Python has them; None of a null.

    Args:
        items: the events.
        names: of features.
        view: theirs.
        book: what their values stand for.
        times_by: by what times of features are multiplied, which are whole seconds.

    Raises: as `values_of`.
    """
    columns = _columns(items, names, view, book).items()
    return {name: _python_values(column, len(items), times_by) for name, column in columns}


def _columns(
    items: Sequence[JsonItem], names: tuple[str, ...], view: KnownView, book: SchemaCache
) -> dict[str, bytes]:
    """The values of each feature as a message that has them all; none without items."""
    if not names or not items:
        return {}
    places: dict[str, list[Column | None]] = {}  # most events are of one schema
    cells: list[list[bytes]] = []
    for item in items:
        fingerprint = item[FINGERPRINT]["B"] if FINGERPRINT in item else ""
        columns = places.get(fingerprint)
        if columns is None:
            columns = book.columns_of(view.table, item, view.schema, names)
            places[fingerprint] = columns
        stored = split(a2b_base64(item[VALUES]["B"]))
        cells.append([NULL_CELL if each is None else each.cell_of(stored) for each in columns])
    return {
        name: b"".join(column)
        for name, column in zip(names, zip(*cells, strict=True), strict=True)
    }


TIME_FIELD = VALUE_FIELD["UNIX_TIMESTAMP"]
NULL_CELL = RepeatedValue(val=[Value()]).SerializeToString()
DOUBLE_CELL = RepeatedValue(val=[Value(double_val=1.0)]).SerializeToString()
DOUBLES = np.dtype(
    {"names": ["double"], "formats": ["<f8"], "offsets": [3], "itemsize": len(DOUBLE_CELL)}
)


def _python_values(column: bytes, count: int, times_by: int) -> list[Any]:
    size = len(DOUBLE_CELL)
    if len(column) == size * count and all(
        column[at::size] == DOUBLE_CELL[at : at + 1] * count for at in range(size - 8)
    ):
        doubles: list[Any] = np.frombuffer(column, DOUBLES)["double"].tolist()
        return doubles
    values: list[Any] = []
    for value in unpack(column):
        field = value.WhichOneof("val")
        found: Any = None if field is None else getattr(value, field)
        values.append(found * times_by if field == TIME_FIELD else found)
    return values


# The reads of a request


def queries_of(reads: Sequence[ViewRead], now_us: int) -> list[EntityQuery]:
    """One query for each table and entity."""
    by_table: dict[str, list[ViewRead]] = {}
    for one in reads:
        by_table.setdefault(one.view.table, []).append(one)
    queries = []
    for table, asked in by_table.items():
        stretch = _stretch(asked, now_us)
        consistent = any(one.view.consistent for one in asked)
        keys = dict.fromkeys(key for one in asked for key in one.rows if key is not None)
        queries += [EntityQuery(table, key, stretch, consistent) for key in keys]
    return queries


def _stretch(reads: Sequence[ViewRead], now_us: int) -> Stretch:
    """What all views of one base need of an entity."""
    firsts: list[int | None] = []
    limits: list[int | None] = []
    for one in reads:
        if one.view.derived is None:
            firsts.append(None)
            limits.append(1)
            continue
        what = one.view.derived.definition
        features = [one.view.derived.features[name] for name in one.requested]
        if isinstance(what, Windows):
            windows = [each.window for each in features if isinstance(each, WindowFeature)]
            firsts.append(now_us - max(windows) // MICROSECOND)
            limits.append(None)
        else:
            firsts.append(None if what.within is None else now_us - what.within // MICROSECOND)
            # One more for each that may be of the very moment is not known: all are read then.
            limits.append(None if what.exclude_current else what.last)
        if one.view.ttl_s is not None and firsts[-1] is not None:
            firsts[-1] = max(firsts[-1], now_us - one.view.ttl_s * 1_000_000)
    first = None if None in firsts else min(each for each in firsts if each is not None)
    limit = None if None in limits else max(each for each in limits if each is not None)
    return Stretch(first, now_us, limit)


async def read_series(
    reads: Sequence[ViewRead], connection: Connection, *, may_be_partial: bool
) -> SeriesAnswers:
    """Read the events that all views of a request need, together.

    Args:
        reads: of derived views, and of views that keep every event.
        connection: the way to DynamoDB.
        may_be_partial: answer what was read when the deadline comes, instead of failing.

    Raises:
        IncompleteReadError: entities were left unread, and the answer may not be partial.
        TableTakenError: a table is another view's or project's.
        AwsError: AWS refused a request.
    """
    now_us, is_past = read_moment()
    result = await fetch_events(
        reads, queries_of(reads, now_us), connection, may_be_partial=may_be_partial
    )
    return SeriesAnswers(result, connection.schemas, now_us, is_past=is_past)


def read_moment() -> tuple[int, bool]:
    """As of when reads are, microseconds since 1970 UTC, and whether that is a past moment."""
    past_us = _AS_OF.get()
    return int(time.time() * 1_000_000) if past_us is None else past_us, past_us is not None


async def fetch_events(
    reads: Sequence[ViewRead],
    queries: Sequence[EntityQuery],
    connection: Connection,
    *,
    may_be_partial: bool,
) -> QueryResult:
    """Run queries, and see to it that what their events' values stand for is known.

    Args:
        reads: whose queries they are.
        queries: distinct ones.
        connection: the way to DynamoDB.
        may_be_partial: answer what was read when the deadline comes, instead of failing.

    Raises: as `read_series`.
    """
    book, reader = connection.schemas, connection.reader
    for one in reads:
        book.learn(one.view.table, one.view.schema)
    started_s = reader.policy.clock()
    if unknown := connection.answered.unknown([one.view for one in reads]):
        await connection.answered.refuse_anothers(unknown, reader, started_s, is_series=True)
    runner = Queries(reader.transport, reader.policy, reader.workers)
    result = await runner.run(queries, started_s)
    if result.unread:
        error = incomplete(result, reads, reader.policy)
        if not may_be_partial:
            raise error from result.cause
        logger.warning("%s They are marked INVALID (on_partial: mark).", error)
    found: dict[str, list[JsonItem]] = {}
    for query, items in result.found.items():
        found.setdefault(query.table, []).extend(items)
    await book.fetch_missing_of_series(found, reader, started_s)
    return result


def incomplete(
    result: QueryResult, reads: Sequence[ViewRead], policy: RetryPolicy
) -> IncompleteReadError:
    """The error that entities are left unread, naming tables and counts."""
    views = {one.view.table: one.view.answers_as for one in reads}
    unread: dict[str, int] = {}
    for query in result.unread:
        unread[query.table] = unread.get(query.table, 0) + 1
    what = ", ".join(
        f"events of {count} entities of feature view {views[table]} (table {table})"
        for table, count in sorted(unread.items())
    )
    return incomplete_error(what, unread, policy, result.cause)


def read_row(view: ViewRead, row: RowAnswer) -> ReadRow:
    """What was found for a key, as Feast's `online_read` answers it.

    Raises:
        ItemFormatError: an event cannot be explained, which there is no status to say.
    """
    if row.status == UNREAD:
        raise ItemFormatError(
            f"Table `{view.view.table}` holds an event of these keys that cannot be explained: "
            "see the log. Write the view again with `feast materialize`."
        )
    if row.status != PRESENT:
        return None, None
    return moment_of(row.event_us or 0), dict(zip(view.requested, row.values, strict=True))


def add_rows(
    response: GetOnlineFeaturesResponse, rows: Sequence[RowAnswer], names: Sequence[str]
) -> None:
    """Append one feature vector per requested feature.

    Args:
        response: the answer to extend.
        rows: what each row of the request is answered.
        names: the names under which the features are answered.
    """
    response.metadata.feature_names.val.extend(names)
    tail = status_entries(tuple(row.status for row in rows))
    tail += b"".join([time_entry(row.event_us) for row in rows])
    for at in range(len(names)):
        values: bytes = RepeatedValue(val=[row.values[at] for row in rows]).SerializeToString()
        response.MergeFromString(vector_head(len(values) + len(tail)) + values + tail)
