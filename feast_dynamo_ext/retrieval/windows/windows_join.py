"""A derived view's features as of each entity row: read events, and compute each output of them.

Events are held for as many keys at once as memory has room for; the history is read once for each
such part of the keys. Entity rows and their results keep their order.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.retrieval.engines.one_pass import expanded
from feast_dynamo_ext.retrieval.engines.slots import Order
from feast_dynamo_ext.retrieval.inputs import History, MatchInput
from feast_dynamo_ext.retrieval.windows.event_outputs import EventOutputs, Moments
from feast_dynamo_ext.retrieval.windows.event_ranges import Ranges
from feast_dynamo_ext.retrieval.windows.event_rows import EventRows, Reading, events_of
from feast_dynamo_ext.series_settings import short
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST, MICROSECOND, NANOSECONDS, Axis

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import ViewPlan
    from feast_dynamo_ext.retrieval.windows.derived_plan import DerivedPlan, Output
    from feast_dynamo_ext.retrieval.windows.event_outputs import Columns, Read
    from feast_dynamo_ext.retrieval.windows.event_rows import Events

    Numbers = NDArray[np.int64]

EVENT_BYTES = 64
"""What is held for an event, at most, beside its values."""
VALUE_BYTES, OTHER_BYTES = 24, 160
"""What is held for one of its values of a fixed width, and of any other, at most."""
MANY = 64
"""Rows of history to an entity row from which values are read after keys and times."""
SIDE_BY_SIDE = 1 << 18
"""Rows from which parts of the keys are worked at side by side."""
MOST_OTHERS = 1 << 23
"""Events with other values, as texts, that are held at once: arrays of these end at 2 GB."""


def axis_of(history: History, plan: DerivedPlan) -> Axis:
    """The axis of event times that all windows are whole numbers of."""
    unit = history.axis.unit
    spans = [span for span in plan.spans if span is not None]
    whole = all((span // MICROSECOND) * 1_000 % NANOSECONDS[unit] == 0 for span in spans)
    return history.axis if whole else Axis("us")


def derived_features(
    view: ViewPlan,
    source: ParquetSource,
    entities: EntityRows,
    limits: Limits,
    read: Read,
    *,
    known: bool,
    threads: int,
    most_bytes: int,
) -> Columns:
    """The columns of a derived view's features, one row an entity row, in their order.

    Args:
        view: the plan of the view, with `derived`.
        source: the base view's history.
        entities: the entity rows.
        limits: memory, threads and spill folder of DuckDB.
        read: see `join.read_features`.
        known: whether only what was created by the entity row's time counts.
        threads: how many threads read.
        most_bytes: how much memory events may take up at once.

    Raises:
        EntityRowsError: a join key is missing or cannot be compared with the source's.
        ColumnTypeError: a value does not fit, or a sum is beyond 64 bits; names the feature.
        OfflineStoreError: the history cannot be read.
    """
    joined = _Join.from_view(view, source, entities, limits, known=known, threads=threads)
    most = _most_events(joined.plan, source, most_bytes)
    reading = replace(joined.reading, most=most, beside=joined.read_at_once)
    keys, first = joined.order.keys.size, 0
    parts: list[Columns] = []
    rows: list[Numbers] = []
    with ThreadPoolExecutor(threads) as pool:
        while first < keys:
            bounds = joined.bounds(first)
            events, end = reading.rows(first, bounds)
            alone = replace(reading, threads=max(1, threads // len(bounds)))
            doing = []
            for start, bound in itertools.pairwise([first, *bounds]):
                slots = np.arange(*joined.order.first[[min(start, end), min(bound, end)]].tolist())
                # Its rows are that part's alone, and freed by it.
                doing.append(pool.submit(_columns, joined, alone, events.pop(0), slots, read))
                rows.append(joined.order.entity[slots])
            parts.extend(done.result() for done in doing)
            first = end
        return joined.placed(parts, rows, pool)


def explain_windows(
    view: ViewPlan, source: ParquetSource, entities: EntityRows, most_bytes: int
) -> str:
    """How the features of a derived view would be computed, in words.

    Raises:
        As `derived_features`, but for what only reading shows.
    """
    plan = view.derived
    if plan is None:
        raise AssertionError(view.view)
    history = History.from_view(view, source)
    rows = MatchInput.from_entities(entities, history, created_by_entity_time=False)
    keys = Order.from_input(rows).keys.size
    passes = -(-source.rows // _most_events(plan, source, most_bytes))
    over = "one pass" if passes <= 1 else f"at most {min(passes, max(1, keys)):,} passes"
    told_apart = " and ".join(f"`{name}`" for name, _ in plan.tie_breaker) or "no tie-breaker"
    computed = [
        words
        for words in (
            _counted(sum(not each.is_list for each in plan.outputs), "aggregate"),
            _counted(sum(each.is_list for each in plan.outputs), "list"),
        )
        if words
    ]
    spans = _counted(len(plan.spans), "window")
    items = ", each item of the captured table one event" if view.tombstones is not None else ""
    return (
        f"{over} over keys and times of {source.rows:,} rows of `{plan.base}` for events of "
        f"{keys:,} keys, told apart by {told_apart}{items}; then the values of those that count: "
        f"{' and '.join(computed)} over {spans}, the longest {_span(plan.reach)}, as ranges of "
        "events in the order of time"
    )


def _most_events(plan: DerivedPlan, source: ParquetSource, most_bytes: int) -> int:
    """How many events are held at once with so much memory."""
    kinds = [source.schema.field(name).type for name, _ in plan.value_columns]
    others = sum(not pa.types.is_primitive(kind) for kind in kinds)
    values = VALUE_BYTES * (len(kinds) - others) + OTHER_BYTES * others
    most = most_bytes // (EVENT_BYTES + values)
    return max(1, min(most, MOST_OTHERS) if others else most)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}" if number else ""


def _span(span: timedelta | None) -> str:
    return "without limit" if span is None else short(span)


@dataclass(frozen=True)
class _Join:
    """What is joined: entity rows in order, and the history of their events.

    Attributes:
        plan: what is computed.
        reading: the history.
        entities: the entity rows.
        moments: their times on the axis of when events count; None where all do.
        latest: of each slot the last event time that is seen.
        has_null: which entity rows have a null among their keys.
    """

    plan: DerivedPlan
    reading: Reading
    entities: EntityRows
    moments: Numbers | None
    has_null: NDArray[np.bool_]

    @property
    def order(self) -> Order:
        """The entity rows by key and time."""
        return self.reading.order

    @classmethod
    def from_view(
        cls,
        view: ViewPlan,
        source: ParquetSource,
        entities: EntityRows,
        limits: Limits,
        *,
        known: bool,
        threads: int,
    ) -> _Join:
        """What a view joins."""
        plan = view.derived
        if plan is None:
            raise AssertionError(view.view)
        history = History.from_view(view, source)
        history = replace(history, axis=axis_of(history, plan))
        rows = MatchInput.from_entities(entities, history, created_by_entity_time=False)
        if plan.exclude_current:
            ceil = history.axis.ceil(entities.times, entities.unit)
            latest = np.where(rows.blind | (ceil == LOWEST), LOWEST, ceil - (ceil != LOWEST))
            rows = replace(rows, latest=latest)
        order = Order.from_input(rows)
        counts = known and (history.created_axis is not None or view.tombstones is not None)
        reading = Reading(
            history,
            order,
            rows.earliest[order.entity],
            rows.keys,
            counts,
            limits,
            threads,
            most=0,
        )
        moments = None
        if reading.moments is not None:
            moments = reading.moments.floor(entities.times, entities.unit)[order.entity]
        has_null = np.zeros(len(entities.times), dtype=bool)
        for key in rows.keys:
            if key.null_count:
                has_null |= np.asarray(key.is_null())
        return cls(plan, reading, entities, moments, has_null)

    def ranges(self, events: Events, slots: Numbers) -> dict[timedelta | None, Ranges]:
        """The events that count for some slots, by how far they go back."""
        axis, entity = self.reading.history.axis, self.order.entity[slots]
        key, latest = self.order.key[slots], self.order.latest[slots]
        times, unit = self.entities.times[entity], self.entities.unit
        end = events.at_or_after(key, latest + (latest != HIGHEST))
        ranges = {}
        for span in self.plan.spans:
            earliest = np.full(len(slots), LOWEST)
            if span is not None:
                earliest, _ = axis.ago(times, unit, span)
            first = events.at_or_after(key, earliest)
            ranges[span] = Ranges(first, np.maximum(first, end))
        return ranges

    @property
    def read_at_once(self) -> tuple[str, ...]:
        """Columns of values that are read with keys and times.

        Of few entity rows few values count: these are read when it is known where they are.
        """
        source = self.reading.history.source
        if len(self.order.entity) < source.rows // MANY:
            return ()
        names = [name for name, _ in self.plan.value_columns]
        return tuple(name for name in names if _is_fixed(source.schema.field(name).type))

    def bounds(self, first: int) -> list[int]:
        """The numbers of keys at which parts end that are worked at side by side."""
        order, threads = self.order, self.reading.threads
        history = self.reading.history
        # What counts of a captured table's items is found of all at once.
        if history.view.tombstones is not None or history.source.rows < SIDE_BY_SIDE:
            threads = 1
        start, end = order.first[[first, order.keys.size]].tolist()
        slots = [start + (end - start) * part // threads for part in range(1, threads)]
        bounds = np.searchsorted(order.first, slots).clip(first, order.keys.size)
        return [*bounds.tolist(), order.keys.size]

    def moments_of(self, slots: Numbers) -> Moments:
        """The times of the entity rows of some slots."""
        return Moments(self.entities.times[self.order.entity[slots]], self.entities.unit)

    def placed(
        self, parts: list[Columns], rows: list[Numbers], pool: ThreadPoolExecutor
    ) -> Columns:
        """Results of some entity rows each as columns of all of them."""
        count = len(self.entities.times)
        done = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        # Entity rows whose times nothing can be before have no slot, and no events.
        place = np.full(count, len(done))
        place[done] = np.arange(len(done))
        places = pa.array(place, mask=self.has_null)
        half = -(-count // self.reading.threads) if count > SIDE_BY_SIDE else max(1, count)
        columns: Columns = []
        for number, output in enumerate(self.plan.outputs):
            nothing = _of_no_events(output, self._type_of(output))
            chunks = [chunk for part in parts for chunk in _chunks(part[number])]
            every = pa.chunked_array([*chunks, nothing], nothing.type).combine_chunks()
            halves = [places.slice(at, half) for at in range(0, count, half)]
            columns.append(pa.chunked_array(list(pool.map(every.take, halves)), nothing.type))
            for part in parts:
                part[number] = nothing  # what is placed is freed
        return columns

    def _type_of(self, output: Output) -> pa.DataType:
        schema = self.reading.history.source.schema
        return output.arrow_type(schema.field(output.column).type if output.column else None)


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind) or pa.types.is_boolean(kind))


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _of_no_events(output: Output, kind: pa.DataType) -> pa.Array:
    if output.is_list:
        return pa.array([[]], kind)
    is_count = output.function in {"count", "count_distinct"}
    return pa.array([0 if is_count else None], kind)


def _columns(
    join: _Join, reading: Reading, pieces: list[EventRows], slots: Numbers, read: Read
) -> Columns:
    """The outputs of some keys' slots, of the rows of these keys, which are taken in pieces."""
    plan, rows = join.plan, EventRows.joined(pieces)
    pieces.clear()
    events = events_of(reading, rows)
    del rows
    ranges = join.ranges(events, slots)
    if events.since is None and plan.last is not None:
        ranges = {span: each.newest(plan.last) for span, each in ranges.items()}
    events, ranges = _covered(events, ranges[plan.reach], ranges)
    outputs = EventOutputs.read(reading.history, plan, events, read, reading.threads)
    if events.since is not None and len(slots):
        return _of_counting(join, outputs, ranges, slots)
    return outputs.of_ranges(ranges, join.moments_of(slots))


def _of_counting(
    join: _Join, outputs: EventOutputs, ranges: Mapping[timedelta | None, Ranges], slots: Numbers
) -> Columns:
    """The outputs of the events that count at their entity rows' times, part by part."""
    parts: list[list[pa.Array]] = [[] for _ in join.plan.outputs]
    for start, end in ranges[join.plan.reach].parts():
        some = slice(start, end)
        counting = {
            span: _counting(join, outputs.events, each.only(some), slots[some])
            for span, each in ranges.items()
        }
        found = outputs.of_ranges(counting, join.moments_of(slots[some]))
        for part, column in zip(parts, found, strict=True):
            part.extend(_chunks(column))
    return [pa.chunked_array(part) for part in parts]


def _counting(join: _Join, events: Events, ranges: Ranges, slots: Numbers) -> Ranges:
    """Ranges of the events that count at the times of some slots."""
    since, until, moments = events.since, events.until, join.moments
    if since is None or until is None or moments is None:
        return ranges
    of_range, event = ranges.written_out(0, len(ranges))
    moment = moments[slots].take(of_range)
    counts = (since.take(event) <= moment) & (moment < until.take(event))
    end = np.cumsum(np.bincount(of_range[counts], minlength=len(ranges)))
    first = np.append(0, end)[: len(end)]
    made = Ranges(first, end, event[counts])
    last = join.plan.last
    return made if last is None else made.newest(last)


def _covered(
    events: Events, longest: Ranges, ranges: dict[timedelta | None, Ranges]
) -> tuple[Events, dict[timedelta | None, Ranges]]:
    """The events that some range has, and the ranges among these.

    Args:
        events: in order.
        longest: the longest of each slot's ranges; first and last events ascend, as slots do.
        ranges: all ranges, by how far they go back.
    """
    if not len(longest):
        return events.only(np.empty(0, dtype=np.int64)), ranges
    first, end = longest.first, longest.end
    gap = np.maximum(first - np.append(0, end[:-1]), 0)
    if not gap.any() and end[-1] == len(events):
        return events, ranges
    # Stretches of events from one gap to the next.
    starts = np.flatnonzero(np.append(True, gap[1:] > 0))
    stops = end[np.append(starts[1:] - 1, len(end) - 1)]
    _, covered = expanded(first[starts], stops)
    left_out = np.cumsum(gap)
    return events.only(covered), {
        span: Ranges(each.first - left_out, each.end - left_out, each.events)
        for span, each in ranges.items()
    }
