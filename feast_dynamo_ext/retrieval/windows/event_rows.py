"""The events of entity rows' keys, in order: read, told apart, and when each of them counts.

Of a history keys and times alone are read at first, and what no entity row can see is dropped at
once. What is left stands in the order of keys, of event times, and of tie-breakers::

    key 7   9:58 a | 10:04 b | 10:04 c | 10:15 d        key 8   9:40 e | ...

so that the events of a window are a range. Most events count from their event time on for ever.
Of others it is said from when to when they do: a row that became known later, the row of an event
that another one replaced later, an item that was deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import is_time, naming, one_array, plain, seconds
from feast_dynamo_ext.declared import name_of
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.parquet.iceberg.content_order import content_ranks
from feast_dynamo_ext.retrieval.engines.base import ascending
from feast_dynamo_ext.retrieval.engines.slots import NONE, TimeBitmapFilter
from feast_dynamo_ext.retrieval.ties import ranked_by_created, ranked_by_ties
from feast_dynamo_ext.retrieval.windows.item_puts import counting_puts
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST, Axis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.slots import Order
    from feast_dynamo_ext.retrieval.inputs import History

    Numbers = NDArray[np.int64]

MOST_BITS = 63


@dataclass(frozen=True)
class EventRows:
    """Rows of history that may be events of some entity rows' keys, in the order of the files.

    Attributes:
        key: numbers of their keys.
        time: event times.
        row: positions.
        created: created times, where they count.
        values: of columns that are read at once.
    """

    key: NDArray[np.int32]
    time: Numbers
    row: Numbers
    created: Numbers | None
    values: tuple[pa.Array, ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    def only(self, which: NDArray[np.bool_]) -> EventRows:
        """Some of them."""
        if which.all():
            return self
        created = None if self.created is None else self.created[which]
        values = tuple(each.filter(pa.array(which)) for each in self.values)
        return EventRows(self.key[which], self.time[which], self.row[which], created, values)

    def split(self, bounds: Sequence[int]) -> list[EventRows]:
        """Those of keys before each of some numbers, and not before the one before it."""
        parts, rest = [], self
        for bound in bounds[:-1]:
            is_before = rest.key < bound
            parts.append(rest.only(is_before))
            rest = rest.only(~is_before)
        return [*parts, rest]

    @classmethod
    def joined(cls, parts: Sequence[EventRows]) -> EventRows:
        """Several parts, at least one, as one."""
        created = [part.created for part in parts if part.created is not None]
        return cls(
            np.concatenate([part.key for part in parts]),
            np.concatenate([part.time for part in parts]),
            np.concatenate([part.row for part in parts]),
            np.concatenate(created) if created else None,
            tuple(map(pa.concat_arrays, zip(*(part.values for part in parts), strict=True))),
        )


@dataclass(frozen=True)
class Reading:
    """How events are read.

    Attributes:
        history: with the axis that all windows are whole numbers of.
        order: the entity rows.
        earliest: of each slot of it the first event time that is seen.
        keys: of the entity rows, as they are compared.
        known: whether only what was created by the entity row's time counts.
        limits: memory, threads and spill folder of DuckDB.
        threads: how many threads read.
        most: rows of events that are held at once; more are read in several passes.
        beside: columns of values that are read with keys and times.
    """

    history: History
    order: Order
    earliest: Numbers
    keys: tuple[pa.Array, ...]
    known: bool
    limits: Limits
    threads: int
    most: int
    beside: tuple[str, ...] = ()

    @property
    def moments(self) -> Axis | None:
        """The axis of when events count; None where all count from their event times on."""
        if self.history.view.tombstones is not None:
            return self.history.written_axis
        return self.history.created_axis if self.known else None

    def rows(self, first: int, bounds: Sequence[int]) -> tuple[list[list[EventRows]], int]:
        """Rows of the keys from a number on, as many keys as fit, and the number after them.

        They come in parts of keys, each in pieces.

        Args:
            first: number of the first key.
            bounds: the numbers of keys at which each part of the rows ends; the last of all keys.
        """
        bitmap = TimeBitmapFilter.from_order(self.order, self.earliest)
        index, end = self.order.keys, self.order.keys.size
        needs_created = self.known and self.history.view.tombstones is None
        narrow = -2 - len(self.beside)

        def some(batch: pa.RecordBatch, start: int) -> list[EventRows]:
            keys, (times, createds, *values) = batch.columns[:narrow], batch.columns[narrow:]
            # Of a row without an event time this is before all windows.
            time = times.fill_null(LOWEST).to_numpy()
            row = bitmap.rows(keys, time)
            key = index.numbers([column.take(pa.array(row)) for column in keys])
            valid = (key >= first) & (key < end) & (key != NONE)
            if times.null_count:
                valid &= times.is_valid().to_numpy(zero_copy_only=False)[row]
            created = None
            if needs_created:
                valid &= createds.is_valid().to_numpy(zero_copy_only=False)[row]
            if not valid.all():
                row, key = row[valid], key[valid]
            if needs_created:
                created = createds.fill_null(LOWEST).to_numpy().take(row)
            beside = tuple(each.take(pa.array(row)) for each in values)
            found = EventRows(key.astype(np.int32), time.take(row), row + start, created, beside)
            return found.split(bounds)

        held: list[list[EventRows]] = []
        count = 0
        history = self.history if needs_created else self.history.without_created()
        for parts in history.each(some, self.threads, self.beside):
            fresh = [part.only(part.key < end) for part in parts]
            held.append(fresh)
            count += sum(map(len, fresh))
            if count > self.most:
                every = [part for parts in held for part in parts]
                cut = _cut(every, first, end, self.most)
                if cut < end:
                    end = cut
                    held = [[part.only(part.key < end) for part in parts] for parts in held]
                    count = sum(len(part) for parts in held for part in parts)
        nothing = self._nothing(needs_created=needs_created)
        return [[nothing, *(parts[part] for parts in held)] for part in range(len(bounds))], end

    def _nothing(self, *, needs_created: bool) -> EventRows:
        none, schema = np.empty(0, dtype=np.int64), self.history.source.schema
        values = tuple(pa.array([], schema.field(name).type) for name in self.beside)
        created = none if needs_created else None
        return EventRows(none.astype(np.int32), none, none, created, values)


def _cut(held: list[EventRows], first: int, end: int, most: int) -> int:
    """The number of the key before which half of what may be held is; at least one key's."""
    counts = sum(
        (np.bincount(part.key - first, minlength=end - first) for part in held),
        np.zeros(end - first, dtype=np.int64),
    )
    fitting = int(np.searchsorted(np.cumsum(counts), most // 2, side="right"))
    return first + max(1, fitting)


@dataclass(frozen=True)
class Clock:
    """Keys and times as one number, which ascends with both.

    Attributes:
        bits: those of the time.
        start: the first time.
        times: all times in order, of which places count; None where times themselves do.
    """

    bits: int
    start: int
    times: Numbers | None

    @classmethod
    def from_rows(cls, keys: int, time: Numbers) -> Clock:
        """The clock of some times."""
        if not len(time):
            return cls(1, 0, None)
        first, last = int(time.min()), int(time.max())
        bits = (last - first + 2).bit_length()
        if keys.bit_length() + bits <= MOST_BITS:
            return cls(bits, first, None)
        times = np.unique(time)
        return cls((len(times) + 1).bit_length(), 0, times)

    def codes(self, key: NDArray[np.generic], time: Numbers) -> Numbers:
        """The numbers of events."""
        return self._code(key, time if self.times is None else np.searchsorted(self.times, time))

    def bounds(self, key: Numbers, time: Numbers) -> Numbers:
        """The numbers with which events of keys begin that are not before some times."""
        if self.times is not None:
            return self._code(key, np.searchsorted(self.times, time))
        after = min(HIGHEST, self.start + (1 << self.bits) - 2)  # after the last of all events
        return self._code(key, np.clip(time, self.start, after))

    def time(self, code: Numbers) -> Numbers:
        """The event times of numbers."""
        place = code & ((1 << self.bits) - 1)
        return place + self.start if self.times is None else self.times.take(place)

    def _code(self, key: NDArray[np.generic], time: Numbers) -> Numbers:
        found = key.astype(np.int64)
        found <<= self.bits
        found += time - self.start
        return found


@dataclass(frozen=True)
class Events:
    """Events in the order of keys, times and tie-breakers.

    Attributes:
        clock: what `code` means.
        code: keys and times.
        row: positions.
        values: of columns that were read with keys and times, by name.
        since: the first moment at which each counts; None where all count from their time on.
        until: the moment from which it does not count any more; likewise.
    """

    clock: Clock
    code: Numbers
    row: Numbers
    values: Mapping[str, pa.Array]
    since: Numbers | None = None
    until: Numbers | None = None

    def __len__(self) -> int:
        return len(self.row)

    def only(self, which: Numbers) -> Events:
        """Some of them."""
        since = None if self.since is None else self.since.take(which)
        until = None if self.until is None else self.until.take(which)
        values = {name: each.take(pa.array(which)) for name, each in self.values.items()}
        code, row = self.code.take(which), self.row.take(which)
        return Events(self.clock, code, row, values, since, until)

    def time(self, which: Numbers) -> Numbers:
        """Event times of some."""
        return self.clock.time(self.code.take(which))

    def at_or_after(self, key: Numbers, time: Numbers) -> Numbers:
        """The first event of each key that is not before a time, or the one after the key's last.

        Args:
            key: ascending numbers of keys.
            time: of each.
        """
        return np.searchsorted(self.code, self.clock.bounds(key, time))


def events_of(reading: Reading, rows: EventRows) -> Events:
    """Rows as events in order, one for each that can be told apart, and when each counts.

    Raises:
        OfflineStoreError: the history cannot be read.
        ColumnTypeError: a tie-breaker's value is none of its declared type.
    """
    view, moments = reading.history.view, reading.moments
    since = until = None
    if view.tombstones is not None:
        counting = counting_puts(
            reading.history, rows.row, reading.keys, reading.limits, known=reading.known
        )
        rows, since, until = rows.only(counting.counts), counting.since, counting.until
    elif reading.known:
        since, until = rows.created, np.full(len(rows), HIGHEST)
    clock = Clock.from_rows(reading.order.keys.size, rows.time)
    code = clock.codes(rows.key, rows.time)
    # Files are mostly in the order of time.
    by_time = bool((rows.time[1:] >= rows.time[:-1]).all())
    values = dict(zip(reading.beside, rows.values, strict=True))
    events = Events(clock, code, rows.row, values, since, until)
    del rows, values
    if (code[1:] < code[:-1]).any():
        events = events.only(ascending(code >> clock.bits if by_time else code))
    del code
    events = _told_apart(reading, events)
    if moments is None or events.since is None or events.until is None:
        return replace(events, since=None, until=None)
    return _mostly_plain(events, reading.history.axis, moments)


def _mostly_plain(events: Events, axis: Axis, moments: Axis) -> Events:
    """Events without limits, where all count from their event times on."""
    if events.since is None or events.until is None:
        return events
    if (events.until != HIGHEST).any():
        return events
    begins = np.where(events.since == LOWEST, LOWEST, axis.ceil(events.since, moments.unit))
    if (begins > events.clock.time(events.code)).any():
        return events
    return replace(events, since=None, until=None)


# Events of one key and time


def _told_apart(reading: Reading, events: Events) -> Events:
    """Events of one key and time in the order of tie-breakers; of one event the row that wins."""
    same = events.code[1:] == events.code[:-1]
    if not same.any():
        return events
    # Only rows that are equal are read for it.
    place = np.flatnonzero(np.append(same, False) | np.append(False, same))
    group = events.code[place]
    row = events.row[place]
    tie = _tie_ranks(reading.history, row, reading.threads)
    of_items = reading.history.view.tombstones is not None
    event = _numbered(group, tie)
    rank = row if of_items else _ranks(reading, event, row)
    order = np.lexsort((rank, tie, group))
    found = np.arange(len(events))
    found[place] = place[order]
    events = events.only(found)
    if of_items:
        return events  # those of one item count at different moments
    is_next = np.zeros(len(events), dtype=bool)
    event = event[order]
    is_next[place[1:]] = event[1:] == event[:-1]
    if not is_next.any():
        return events
    replaced = np.flatnonzero(is_next) - 1
    if events.since is None or events.until is None:
        kept = np.ones(len(events), dtype=bool)
        kept[replaced] = False
    else:
        events.until[replaced] = events.since[replaced + 1]
        kept = events.since < events.until
    return events.only(np.flatnonzero(kept))


def _numbered(group: Numbers, tie: Numbers) -> Numbers:
    """A number for each event: for each group and tie-breaker."""
    groups = np.unique(group, return_inverse=True)[1].astype(np.int64)
    return groups * (int(tie.max(initial=0)) + 1) + tie


def _ranks(reading: Reading, event: Numbers, row: Numbers) -> Numbers:
    """Which row of an event wins: the greatest."""
    history = reading.history
    ranks = np.zeros(len(row), dtype=np.int64)
    _, place, counts = np.unique(event, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[place] > 1)
    if len(several):
        ranked = ranked_by_created if history.source.ties is None else ranked_by_ties
        ranks[several] = ranked(history, reading.threads)(event[several], row[several])
    return ranks


def _tie_ranks(history: History, row: Numbers, threads: int) -> Numbers:
    """Numbers that order rows by the view's tie-breakers; the same for equal ones."""
    derived = history.view.derived
    if derived is None or not derived.tie_breaker:
        return np.zeros(len(row), dtype=np.int64)
    positions, index = np.unique(row, return_inverse=True)
    columns = tie_columns(history, derived.tie_breaker, positions, threads)
    found: Numbers = content_ranks(columns)[index]
    return found


def tie_columns(
    history: History,
    tie_breaker: tuple[tuple[str, Declared], ...],
    positions: Numbers,
    threads: int,
) -> pa.Table:
    """The tie-breakers at ascending positions, named in their order.

    Raises:
        ColumnTypeError: a value is none of the declared type.
    """
    source: ParquetSource = history.source
    names = [name for name, _ in tie_breaker]
    rows = pa.Table.from_batches(
        source.fetch(list(dict.fromkeys(names)), positions, threads),
        source.schema_of(list(dict.fromkeys(names))),
    )
    columns = []
    for name, kind in tie_breaker:
        column = one_array(rows.column(name))
        with naming(name, name_of(kind), column.type, history.view.view):
            columns.append(_told_apart_online(plain(as_declared(column, kind)), kind))
    return pa.table(columns, names=[f"{at:03}" for at in range(len(columns))])


def _told_apart_online(values: pa.Array, kind: Declared) -> pa.Array:
    """Tie-breakers as sort keys of items have them: seconds of times, and one zero of floats."""
    if kind is ValueType.UNIX_TIMESTAMP and is_time(values.type):
        return seconds(values)
    if pa.types.is_floating(values.type):
        return pc.add(values, pa.scalar(0.0, values.type))
    return values
