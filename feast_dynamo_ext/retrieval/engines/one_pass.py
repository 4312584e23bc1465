"""The as-of join in one pass, in numpy: each row of history meets the slot that sees it first.

What is kept is of the size of the entity rows, however long the history is and in whatever order
it stands. Rows that nobody can see are dropped at once, most of them by their key's first and last
time; only what is left looks for its slot. Row groups are read and reduced by several threads, and
what is left of them is taken in in the order of the files. Created times are read only of rows
whose event times are equal, unless these are many.

Where the rows of a key stand together in a batch, in the order of their times, each slot looks for
its row, instead of each row for its slot: there are far fewer slots than rows, and neighbours look
at the same places. Nobody has to say that a file is sorted: each batch shows it, and what is found
is right for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.retrieval.engines.base import NO_ROW, Gap
from feast_dynamo_ext.retrieval.engines.slots import NONE, Order, Orders, Slots
from feast_dynamo_ext.retrieval.eras import with_eras
from feast_dynamo_ext.retrieval.inputs import History, MatchInput
from feast_dynamo_ext.retrieval.ties import ranked_by_created, ranked_by_ties
from feast_dynamo_ext.timestamps import LOWEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.base import Matcher
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import ViewPlan
    from feast_dynamo_ext.retrieval.ties import Ranked


@dataclass(frozen=True)
class OnePassEngine(Limits):
    """Matches in one pass over the history."""

    name: ClassVar[str] = "stream"

    def explain(self, entities: EntityRows, view: ViewPlan, source: ParquetSource) -> str:
        """See `Engine.explain`."""
        history = History.from_view(view, source)
        rows = MatchInput.from_entities(entities, history, created_by_entity_time=False)
        order = Order.from_input(rows)
        return (
            f"one pass over {source.rows:,} rows; {order.keys.size:,} keys are found by "
            f"{order.keys.method}, and their entity rows, up to {order.most:,} a key, by "
            f"{order.method}"
        )

    def matcher(self, entities: EntityRows, *, created_by_entity_time: bool) -> Matcher:
        """See `Engine.matcher`. Views of the same keys share the order of the entity rows."""
        orders = Orders()

        def matched(view: ViewPlan, source: ParquetSource, threads: int) -> NDArray[np.int64]:
            history = with_eras(History.from_view(view, source), entities, self)
            rows = MatchInput.from_entities(
                entities, history, created_by_entity_time=created_by_entity_time
            )
            return match(rows, history, threads, orders)

        return matched

    newest = Gap("one row a key of the whole history may not fit in memory; DuckDB spills it")
    within = Gap("nothing is matched, so one pass is what DuckDB makes too")


SAMPLE_ROWS = 1_024
LEAST_ROWS = 4
"""Of a run, on average, for searching in runs to be worth it."""


@dataclass(frozen=True)
class Runs:
    """Stretches of a batch with one key each, whose times do not descend: sorted runs.

    Attributes:
        first: their first rows.
        end: the rows after their last ones.
        time: event times of all rows.
    """

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    time: NDArray[np.int64]

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Runs | None:
        """The runs of a batch of narrow columns; None where they are short, or there are nulls."""
        *keys, times, _ = batch.columns
        if times.null_count or any(key.null_count for key in keys) or not batch.num_rows:
            return None
        time = times.to_numpy()
        breaks = np.empty(0, dtype=np.int64)
        for rows in (SAMPLE_ROWS, batch.num_rows):
            breaks = _breaks([key.slice(0, rows) for key in keys], time[:rows])
            if LEAST_ROWS * len(breaks) >= min(rows, batch.num_rows):
                return None
        return cls(np.append(0, breaks), np.append(breaks, batch.num_rows), time)

    def after(self, run: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each run the first of its rows that is after a time, or its end."""
        return self._passed(run, lambda rows: self.time.take(rows) <= times)

    def equal_before(
        self, run: NDArray[np.int64], row: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the same time before a row of a run.

        Returns:
            For each of them which of the `row` arguments it is before, and its row.
        """
        times = self.time.take(row)
        with_equal = np.flatnonzero(
            (row > self.first.take(run)) & (self.time.take(row - 1, mode="clip") == times)
        )
        run, row, times = (values.take(with_equal) for values in (run, row, times))
        first = self._passed(run, lambda rows: self.time.take(rows) < times)
        which, rows = expanded(first, row)
        return with_equal.take(which), rows

    def _passed(
        self,
        run: NDArray[np.int64],
        is_passed: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    ) -> NDArray[np.int64]:
        """Binary search of many runs at once."""
        found, ends = self.first.take(run), self.end.take(run)
        step = (1 << int((self.end - self.first).max(initial=0)).bit_length()) >> 1
        while step:
            next_ = np.minimum(found + step, ends)
            passed = is_passed(next_ - 1) & (found < next_)
            np.copyto(found, next_, where=passed)
            step >>= 1
        return found


def expanded(
    first: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of many ranges, and which range each is of."""
    counts = end - first
    of_range = np.repeat(np.arange(len(counts)), counts)
    begins = np.cumsum(counts) - counts
    return of_range, np.arange(len(of_range)) + (first - begins).take(of_range)


def _breaks(keys: list[pa.Array], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows with which another run begins."""
    is_new = time[1:] < time[:-1]
    for key in keys:
        if pa.types.is_int64(key.type):
            values = key.to_numpy()
            is_new |= values[1:] != values[:-1]
        else:
            differs = pc.not_equal(key.slice(1), key.slice(0, len(key) - 1))
            is_new |= differs.to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_new) + 1


MOST_EQUAL = 1 << 20
"""Rows of equal event times that are kept to be decided by created time."""


def match(
    rows: MatchInput, history: History, threads: int, orders: Orders | None = None
) -> NDArray[np.int64]:
    """For each entity row the position of the row of history it sees, or NO_ROW."""
    slots = Slots.from_input(rows, orders or Orders())
    newest: _Newest | None = None
    if history.source.ties is not None:
        newest = _with_ties(slots, history, threads)
    elif history.created_axis is not None and slots.known is None:
        newest = _without_created(slots, history, threads)
    if newest is None:
        newest = _Newest(slots)
        ties = history.created_axis is not None
        for visible in history.each(partial(_visible, slots=slots, ties=ties), threads):
            newest.take_in(visible)
    found = np.full(len(rows.latest), NO_ROW, dtype=np.int64)
    found[slots.order.entity] = newest.seen()
    return found


def _without_created(slots: Slots, history: History, threads: int) -> _Newest | None:
    """The newest rows, with created times read only where event times are equal.

    Returns:
        None where too many are.
    """
    plain = history.without_created()
    newest = _NewestByTime(slots, ranked_by_created(history, threads))
    for rows in plain.each(partial(_visible, slots=slots, ties=True), threads):
        newest.take_in(rows)
        if newest.equal_rows > MOST_EQUAL:
            return None
    newest.decide()
    return newest


def _with_ties(slots: Slots, history: History, threads: int) -> _Newest:
    """The newest rows, of which `ties` decides between those of equal event times."""
    read = history if slots.known is not None else history.without_created()
    newest = _NewestByTime(slots, ranked_by_ties(history, threads))
    for rows in read.each(partial(_visible, slots=slots, ties=True), threads):
        newest.take_in(rows)
        if newest.equal_rows > MOST_EQUAL:
            newest.decide()
    newest.decide()
    return newest


@dataclass(frozen=True)
class _Rows:
    """Rows of a batch that some slot may see.

    Attributes:
        slot: the first that sees each.
        time: event times.
        created: created times; the lowest where there is none.
        row: positions.
    """

    slot: NDArray[np.int64]
    time: NDArray[np.int64]
    created: NDArray[np.int64]
    row: NDArray[np.int64]

    def only(self, which: NDArray[np.int64]) -> _Rows:
        """Some of them."""
        columns = (self.slot, self.time, self.created, self.row)
        return _Rows(*(column.take(which) for column in columns))


def _visible(batch: pa.RecordBatch, start: int, slots: Slots, *, ties: bool) -> _Rows:
    """What is left of a batch of narrow columns.

    Args:
        batch: the columns.
        start: position of its first row.
        slots: the entity rows.
        ties: whether rows of equal event times are to be decided by created time.
    """
    runs = Runs.from_batch(batch) if slots.known is None else None
    if runs is not None:
        return _seen_in_runs(batch, runs, start, slots, ties=ties)
    *keys, times, createds = batch.columns
    row = slots.bitmap.rows(keys, _numbers(times))
    key = slots.order.keys.numbers([column.take(pa.array(row)) for column in keys])
    valid = key != NONE
    if times.null_count:
        valid &= times.is_valid().to_numpy(zero_copy_only=False)[row]
    if slots.known is not None and createds.null_count:
        valid &= createds.is_valid().to_numpy(zero_copy_only=False)[row]
    if not valid.all():
        row, key = row[valid], key[valid]
    key = key.astype(np.int64, copy=False)
    time, created = _numbers(times).take(row), _numbers(createds).take(row)
    slot = slots.first_seeing(key, time, slots.order.latest)
    if slots.known is not None:
        slot = np.maximum(slot, slots.first_seeing(key, created, slots.known))
    # The end of a key is the first slot of the next: that one does not see the row.
    seen = slot < slots.order.first.take(key + 1)
    seen &= time >= slots.earliest.take(slot, mode="clip")
    return _Rows(slot, time, created, row + start).only(np.flatnonzero(seen))


def _seen_in_runs(
    batch: pa.RecordBatch, runs: Runs, start: int, slots: Slots, *, ties: bool
) -> _Rows:
    """The same where rows of a key stand together: slots look for rows, not rows for slots."""
    *keys, _, createds = batch.columns
    firsts = pa.array(runs.first)
    key = slots.order.keys.numbers([column.take(firsts) for column in keys]).astype(np.int64)
    with_slots = np.flatnonzero(key != NONE)
    first, end = (slots.order.first.take(key[with_slots] + more) for more in (0, 1))
    of_range, slot = expanded(first, end)
    run = with_slots.take(of_range)
    row = runs.after(run, slots.order.latest.take(slot)) - 1
    seen = row >= runs.first.take(run)
    # A slot that sees the row of the one before it, in the same run, has none of its own.
    seen[1:] &= row[1:] != row[:-1]
    found = np.flatnonzero(seen)
    run, row, slot = run.take(found), row.take(found), slot.take(found)
    if ties:
        which, equal = runs.equal_before(run, row)
        row, slot = np.append(row, equal), np.append(slot, slot.take(which))
    time, created = runs.time.take(row), _numbers(createds.take(pa.array(row)))
    alive = time >= slots.earliest.take(slot)
    return _Rows(slot, time, created, row + start).only(np.flatnonzero(alive))


class _Newest:
    """The newest row of each slot's own, by event time, created time and position."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._time = np.full(len(slots), LOWEST)
        self._created = np.full(len(slots), LOWEST)
        self._row = np.full(len(slots), NO_ROW)

    def take_in(self, rows: _Rows) -> None:
        """Look at the rows of a batch."""
        before = self._time.take(rows.slot)
        rows, before = _only(rows.time >= before, rows, before)
        np.maximum.at(self._time, rows.slot, rows.time)
        rows, before = _only(rows.time == self._time.take(rows.slot), rows, before)
        is_newer = rows.time > before
        newer = rows if is_newer.all() else rows.only(np.flatnonzero(is_newer))
        self._row[newer.slot] = newer.row
        # Of several for one slot one was put there, whichever.
        is_there = self._row.take(rows.slot) == rows.row
        there = rows if is_there.all() else rows.only(np.flatnonzero(is_there))
        self._created[there.slot] = there.created
        if there is not rows:
            self._take_in_equal(rows.only(np.flatnonzero(~is_there)))

    def _take_in_equal(self, rows: _Rows) -> None:
        """Look at rows whose slots have a row of the same time already."""
        before = self._created.take(rows.slot)
        np.maximum.at(self._created, rows.slot, rows.created)
        rows, before = _only(rows.created == self._created.take(rows.slot), rows, before)
        self._row[rows.slot[rows.created > before]] = NO_ROW
        np.maximum.at(self._row, rows.slot, rows.row)

    def seen(self) -> NDArray[np.int64]:
        """For each slot the position of the row it sees, or NO_ROW."""
        slots = self._slots
        best = self._newest_so_far() if slots.known is not None else self._last_so_far()
        none = best < slots.order.first.take(slots.order.key)
        row = np.where(none, NO_ROW, self._row.take(best))
        expired = self._time.take(best) < slots.earliest
        row[expired] = NO_ROW
        return row

    def _last_so_far(self) -> NDArray[np.int64]:
        """The last slot with a row, of those up to each: rows of later slots are newer."""
        with_row = np.where(self._row == NO_ROW, -1, np.arange(len(self._row)))
        last: NDArray[np.int64] = np.maximum.accumulate(with_row)
        return last

    def _newest_so_far(self) -> NDArray[np.int64]:
        """The slot with the newest row, of those up to each.

        A newer row may have become known earlier, and so be in an earlier slot.
        """
        order = np.lexsort(self._ranks())
        order = order[self._row[order] != NO_ROW]
        rank = np.zeros(len(self._row), dtype=np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        # A higher key is more than any rank of a lower one.
        width = len(order) + 1
        best = np.maximum.accumulate(self._slots.order.key * width + rank) % width
        slots: NDArray[np.int64] = np.append(-1, order)[best]
        return slots

    def _ranks(self) -> tuple[NDArray[np.int64], ...]:
        """Columns in whose order rows of slots get newer; the last counts most."""
        return self._row, self._created, self._time


class _NewestByTime(_Newest):
    """The same by event time; rows of equal times are kept until `decide`."""

    def __init__(self, slots: Slots, ranked: Ranked) -> None:
        super().__init__(slots)
        self._ranked = ranked
        self._equal: list[_Rows] = []
        self.equal_rows = 0

    def _take_in_equal(self, rows: _Rows) -> None:
        self._equal.append(rows)
        self.equal_rows += len(rows.slot)

    def decide(self) -> None:
        """Of rows of equal times let the one of the greatest rank win."""
        found = [(rows.slot, rows.row) for rows in map(self._of_newest_time, self._equal)]
        self._equal, self.equal_rows = [], 0
        if not sum(len(slot) for slot, _ in found):
            return
        slot, row = (np.concatenate(columns) for columns in zip(*found, strict=True))
        with_equal = np.unique(slot)
        slot, row = np.append(slot, with_equal), np.append(row, self._row[with_equal])
        order = np.lexsort((self._ranked(slot, row), slot))
        last = np.append(slot[order][1:] != slot[order][:-1], True)
        self._row[slot[order][last]] = row[order][last]

    def _ranks(self) -> tuple[NDArray[np.int64], ...]:
        """Rows of several slots of a key may have equal times too."""
        there = np.flatnonzero(self._row != NO_ROW)
        key, time = self._slots.order.key[there], self._time[there]
        _, group = np.unique(np.stack([key, time]), axis=1, return_inverse=True)
        rank = np.zeros(len(self._row), dtype=np.int64)
        counts = np.bincount(group)
        equal = np.flatnonzero(counts[group] > 1)
        if len(equal):
            rank[there[equal]] = self._ranked(group[equal], self._row[there[equal]])
        return rank, self._time

    def _of_newest_time(self, rows: _Rows) -> _Rows:
        return rows.only(np.flatnonzero(rows.time == self._time.take(rows.slot)))


def _only(
    which: NDArray[np.bool_], rows: _Rows, before: NDArray[np.int64]
) -> tuple[_Rows, NDArray[np.int64]]:
    if which.all():
        return rows, before
    some = np.flatnonzero(which)
    return rows.only(some), before.take(some)


def _numbers(column: pa.Array) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.fill_null(LOWEST).to_numpy()
    return numbers
