"""A derived view's features as of each entity row: read events, and compute each output of them.

Events are held for as many keys at once as memory has room for; the history is read once for each
such part of the keys. Entity rows and their results keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.retrieval.engines.slots import Order
from feast_dynamo_ext.retrieval.inputs import History, MatchInput
from feast_dynamo_ext.retrieval.windows.event_outputs import EventOutputs, Moments
from feast_dynamo_ext.retrieval.windows.event_ranges import Ranges
from feast_dynamo_ext.retrieval.windows.event_rows import Events, Reading, read_events
from feast_dynamo_ext.series_settings import short
from feast_dynamo_ext.timestamps import LOWEST, MICROSECOND, NANOSECONDS, Axis

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

    Numbers = NDArray[np.int64]

EVENT_BYTES = 64
"""What is held for an event, at most, beside its values."""
VALUE_BYTES, OTHER_BYTES = 24, 160
"""What is held for one of its values of a fixed width, and of any other, at most."""
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
    reading = replace(joined.reading, most=_most_events(joined.plan, source, most_bytes))
    keys, first = joined.order.keys.size, 0
    parts: list[Columns] = [[] for _ in joined.plan.outputs]
    rows: list[Numbers] = []
    while first < keys:
        some, end = _Some.read(joined, reading, first)
        rows.append(joined.order.entity[some.slots][some.in_rows])
        for part, column in zip(parts, some.columns(read), strict=True):
            part.append(column)
        del some
        first = end
    return joined.placed(parts, rows)


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

    def ranges(self, events: Events, slots: Numbers, span: timedelta | None) -> Ranges:
        """The events that count for some slots."""
        history, entity = self.reading.history, self.order.entity[slots]
        earliest = np.full(len(slots), LOWEST)
        if span is not None:
            earliest, _ = history.axis.ago(self.entities.times[entity], self.entities.unit, span)
        first, end = events.between(self.order.key[slots], earliest, self.order.latest[slots])
        return Ranges(first, end)

    def placed(self, parts: list[Columns], rows: list[Numbers]) -> Columns:
        """Results of some entity rows each as columns of all of them."""
        count = len(self.entities.times)
        done = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        is_whole = len(rows) == 1 and len(done) == count
        place = np.full(count, len(done))
        place[done] = np.arange(len(done))
        columns: Columns = []
        for part, output in zip(parts, self.plan.outputs, strict=True):
            if is_whole:
                columns.append(part[0])
                continue
            # Entity rows whose times nothing can be before have no slot, and no events.
            nothing = _of_no_events(output, self._type_of(output))
            chunks = [chunk for each in part for chunk in _chunks(each)]
            every = pa.chunked_array([*chunks, nothing], nothing.type)
            columns.append(every.take(pa.array(place, mask=self.has_null)))
            part.clear()
        return columns

    def _type_of(self, output: Output) -> pa.DataType:
        schema = self.reading.history.source.schema
        return output.arrow_type(schema.field(output.column).type if output.column else None)


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _of_no_events(output: Output, kind: pa.DataType) -> pa.Array:
    if output.is_list:
        return pa.array([[]], kind)
    is_count = output.function in {"count", "count_distinct"}
    return pa.array([0 if is_count else None], kind)


@dataclass(frozen=True)
class _Some:
    """Events of some keys, and the slots of their entity rows.

    Attributes:
        join: what is joined.
        events: in order, those alone that some range has.
        ranges: of them, one a slot, by how far they go back.
        slots: numbers of the slots.
        in_rows: the places among these of the entity rows in their own order.
    """

    join: _Join
    events: Events
    ranges: Mapping[timedelta | None, Ranges]
    slots: Numbers
    in_rows: Numbers

    @classmethod
    def read(cls, join: _Join, reading: Reading, first: int) -> tuple[_Some, int]:
        """Those of keys from a number on, as many as fit, and the number after them."""
        plan, order = join.plan, join.order
        events, end = read_events(reading, first)
        slots = np.arange(*order.first[[first, end]].tolist())
        ranges = {span: join.ranges(events, slots, span) for span in plan.spans}
        if events.since is None and plan.last is not None:
            ranges = {span: each.newest(plan.last) for span, each in ranges.items()}
        events, ranges = _covered(events, ranges[plan.reach], ranges)
        return cls(join, events, ranges, slots, np.argsort(order.entity[slots])), end

    def columns(self, read: Read) -> Columns:
        """The outputs, in the order of the entity rows."""
        join, ranges = self.join, self.ranges
        history, threads = join.reading.history, join.reading.threads
        outputs = EventOutputs.read(history, join.plan, self.events, read, threads)
        if self.events.since is not None and len(self.slots):
            found = self._of_counting(outputs)
        elif outputs.listed:
            # Without a further pass over what may be many values.
            in_rows = {span: each.only(self.in_rows) for span, each in ranges.items()}
            return outputs.of_ranges(in_rows, self._moments(self.slots[self.in_rows]))
        else:
            # Ranges of neighbours are reduced faster than those of any order.
            found = outputs.of_ranges(ranges, self._moments(self.slots))
        return [column.take(pa.array(self.in_rows)) for column in found]

    def _moments(self, slots: Numbers) -> Moments:
        entities = self.join.entities
        return Moments(entities.times[self.join.order.entity[slots]], entities.unit)

    def _of_counting(self, outputs: EventOutputs) -> Columns:
        """The outputs of the events that count at their entity rows' times, part by part."""
        ranges = self.ranges
        parts: list[list[pa.Array]] = [[] for _ in self.join.plan.outputs]
        for start, end in ranges[self.join.plan.reach].parts():
            some = slice(start, end)
            counting = {
                span: self._counting(each.only(some), self.slots[some])
                for span, each in ranges.items()
            }
            found = outputs.of_ranges(counting, self._moments(self.slots[some]))
            for part, column in zip(parts, found, strict=True):
                part.extend(_chunks(column))
        return [pa.chunked_array(part) for part in parts]

    def _counting(self, ranges: Ranges, slots: Numbers) -> Ranges:
        """Ranges of the events that count at the times of some slots."""
        since, until, moments = self.events.since, self.events.until, self.join.moments
        if since is None or until is None or moments is None:
            return ranges
        of_range, event = ranges.written_out(0, len(ranges))
        moment = moments[slots].take(of_range)
        counts = (since.take(event) <= moment) & (moment < until.take(event))
        end = np.cumsum(np.bincount(of_range[counts], minlength=len(ranges)))
        first = np.append(0, end)[: len(end)]
        made = Ranges(first, end, event[counts])
        last = self.join.plan.last
        return made if last is None else made.newest(last)


def _covered(
    events: Events, longest: Ranges, ranges: dict[timedelta | None, Ranges]
) -> tuple[Events, dict[timedelta | None, Ranges]]:
    """The events that some range has, and the ranges among these."""
    count = len(events)
    covering = np.zeros(count + 1, dtype=np.int32)
    np.add.at(covering, longest.first, 1)
    np.subtract.at(covering, longest.end, 1)
    np.cumsum(covering, out=covering)
    is_covered = covering[:count] > 0
    if is_covered.all():
        return events, ranges
    upto = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(is_covered, out=upto[1:])
    return events.only(np.flatnonzero(is_covered)), {
        span: Ranges(upto.take(each.first), upto.take(each.end)) for span, each in ranges.items()
    }
