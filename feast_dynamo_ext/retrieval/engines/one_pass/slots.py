"""Entity rows in the order of key and time, and which of them a row of history is seen by first.

Each entity row is a slot. The slots of a key stand in the order of their times, and a row of
history falls into the first slot of its key that is not before it::

    key 7      slot 3           slot 4                 slot 5
    --------------|----------------|----------------------|-----------> time
      rows a, b  -+   rows c, d   -+   (none)            -+  rows e: seen by nobody

Slot 3 sees the newer of a and b, slot 4 the newer of c and d, and so does slot 5, if its ttl lets
it. So one number a slot is all that is kept of a history of any length.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import check_joinable, compared_type
from feast_dynamo_ext.retrieval.engines.one_pass.key_index import NONE, ByKey, KeyIndex
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.engines.history import History
    from feast_dynamo_ext.retrieval.entity_rows.rows import EntityRows


MOST_BITS = 63


def ascending(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the numbers in ascending order; equal ones in the order of their places.

    Where a number and its place fit into one integer these are sorted, rather than places by what
    stands in them: a million take 25 ms instead of 60 to 80 ms.
    """
    count = len(numbers)
    if not count:
        return np.empty(0, dtype=np.int64)
    least, place_bits = int(numbers.min()), count.bit_length()
    if (int(numbers.max()) - least).bit_length() + place_bits > MOST_BITS:
        return np.argsort(numbers, kind="stable")
    both = numbers - least
    both <<= place_bits
    both += np.arange(count)
    both.sort()
    both &= (1 << place_bits) - 1
    return both


@dataclass(frozen=True)
class MatchInput:
    """One entry an entity row.

    Attributes:
        keys: columns of join keys, in the types that are compared.
        latest: the last event time that is seen.
        earliest: the first event time that is seen, by the ttl.
        known: the last created time that is seen; None where created time does not count.
        times: the entity rows' own times, in whatever unit: all of these ascend with them.
        blind: rows that see nothing, since all that they would see is after the end of the axis.
        order: equal for what puts the same entity rows in the same order.
    """

    keys: tuple[pa.Array, ...]
    latest: NDArray[np.int64]
    earliest: NDArray[np.int64]
    known: NDArray[np.int64] | None
    times: NDArray[np.int64]
    blind: NDArray[np.bool_]
    order: tuple[Any, ...] = ()

    @classmethod
    def from_entities(
        cls, entities: EntityRows, history: History, *, created_by_entity_time: bool
    ) -> MatchInput:
        """What entity rows ask of a history.

        Raises:
            EntityRowsError: a join key is missing or cannot be compared with the source's.
            ColumnTypeError: the source's column cannot be a key.
        """
        view, axis = history.view, history.axis
        entities.require([column for column, _ in view.keys], view.view)
        keys = [_key(entities, history, *pair) for pair in view.keys]
        if not keys:
            keys.append(pa.array(np.zeros(len(entities.times), dtype=np.int64)))
        latest = axis.floor(entities.times, entities.unit)
        earliest, beyond = np.full(len(latest), LOWEST), np.zeros(len(latest), dtype=bool)
        if view.ttl:
            earliest, beyond = axis.ago(entities.times, entities.unit, view.ttl)
            latest[beyond], earliest[beyond] = LOWEST, HIGHEST
        known = None
        if created_by_entity_time and history.created_axis is not None:
            known = history.created_axis.floor(entities.times, entities.unit)
        types = tuple((ours, key.type) for (ours, _), key in zip(view.keys, keys, strict=False))
        order = axis, types, view.ttl if beyond.any() else None
        return cls(tuple(keys), latest, earliest, known, entities.times, beyond, order)

    def table(self) -> pa.Table:
        """The columns k0, k1 ..., hi, lo, known (if it counts) and r, their row."""
        columns: dict[str, Any] = {f"k{index}": key for index, key in enumerate(self.keys)}
        columns |= {"hi": self.latest, "lo": self.earliest}
        if self.known is not None:
            columns["known"] = self.known
        columns["r"] = np.arange(len(self.latest), dtype=np.int64)
        return pa.table(columns)


def _key(entities: EntityRows, history: History, ours: str, theirs: str) -> pa.Array:
    stored = history.source.schema.field(theirs).type
    given = entities.table.column(ours).type
    check_joinable(ours, given, theirs, stored)
    if pa.types.is_null(given):
        return pa.nulls(len(entities.times), compared_type(stored))
    column = entities.key(ours, history.view.view)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


FEW, MANY = 2, 4096
"""Powers of two: keys with more slots are searched in other ways."""

ALL = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Order:
    """The entity rows that have all keys, by key and time.

    Attributes:
        keys: numbers of their keys.
        entity: which entity row each slot is.
        key: the number of its key.
        latest: the last time it sees; it ascends within a key.
        first: the first slot of each key, and the end of all.
        most: slots of the key that has most.
    """

    keys: KeyIndex
    entity: NDArray[np.int64]
    key: NDArray[np.int64]
    latest: NDArray[np.int64]
    first: NDArray[np.int64]
    most: int

    @classmethod
    def from_input(cls, asked: MatchInput) -> Order:
        """Put entity rows in order."""
        keys = KeyIndex.from_columns(asked.keys)
        numbers = keys.numbers(asked.keys).astype(np.int64)
        numbers[asked.blind] = NONE
        # By their own times: two that are one on the axis of event times may not be on the other.
        entity = _order(numbers, asked.times)
        key = numbers[entity]
        first = np.zeros(keys.size + 1, dtype=np.int64)
        np.cumsum(np.bincount(key, minlength=keys.size), out=first[1:])
        most = int(np.diff(first).max(initial=0))
        return cls(keys, entity, key, asked.latest[entity], first, most)

    @property
    def longest(self) -> int:
        """A power of two, more than half of the most slots that a key has."""
        return (1 << self.most.bit_length()) >> 1

    @property
    def way(self) -> str:
        """How slots are found within their key, in words."""
        return "binary search" if self.most <= MANY else "binary search; of hot keys by sorting"


class Orders:
    """Orders of the same entity rows, each made once. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Any, Order] = {}

    def get(self, asked: MatchInput) -> Order:
        """The order that a view needs; views of the same keys and unit of time share it."""
        with self._lock:
            if asked.order not in self._made:
                self._made[asked.order] = Order.from_input(asked)
            return self._made[asked.order]


@dataclass(frozen=True)
class Parts:
    """A stretch of time in at most 64 parts.

    Attributes:
        start: the beginning of the first part.
        shift: a part is 2^shift long.
        is_open: whether what is before the first part is part of it.
    """

    start: int
    shift: int
    is_open: bool

    @classmethod
    def from_range(cls, first: int, last: int, *, is_open: bool) -> Parts:
        """The parts from one time to another."""
        return cls(first, max(0, (last - first).bit_length() - 6), is_open)

    def numbers(self, times: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The part that each time is in; of times outside a higher number than any."""
        # What is before the start becomes the greatest, as an unsigned number.
        since = np.maximum(times, self.start) if self.is_open else times
        numbers: NDArray[np.uint64] = (since - np.int64(self.start)).view(np.uint64)
        numbers >>= np.uint64(self.shift)
        return numbers


@dataclass(frozen=True)
class TimeBitmapFilter:
    """Tells rows that no slot can see from those that some may see, by one number a key.

    The time that is asked for is cut in 64 parts, and a key's number has a bit for each: whether
    one of its slots sees any of it. This drops most rows for a tenth of what their search takes.

    Attributes:
        parts: the time.
        bits: of each key.
    """

    parts: Parts
    bits: ByKey

    @classmethod
    def from_order(cls, order: Order, earliest: NDArray[np.int64]) -> TimeBitmapFilter:
        """What the slots of an order see, from their earliest times on."""
        last = int(order.latest.max(initial=LOWEST))
        lowest = int(earliest.min(initial=last))
        # Without a limit, what is before the first entity row is one part with its time.
        first = lowest if lowest > LOWEST else int(order.latest.min(initial=last))
        parts = Parts.from_range(first, last, is_open=lowest == LOWEST)
        from_, upto = (parts.numbers(times) for times in (earliest, order.latest))
        slots = (ALL << from_) & (ALL >> (np.uint64(63) - upto))
        bits = np.zeros(order.keys.size + 1, dtype=np.uint64)
        with_slots = np.flatnonzero(np.diff(order.first))
        if len(with_slots):
            bits[with_slots] = np.bitwise_or.reduceat(slots, order.first[with_slots])
        return cls(parts, ByKey.from_index(order.keys, bits))

    def rows(self, keys: Sequence[pa.Array], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that some slot may see, and perhaps others."""
        # A shift by more than there are bits gives 0.
        bits = self.bits.take(keys) >> self.parts.numbers(times)
        bits &= np.uint64(1)
        return np.flatnonzero(bits.astype(bool))


@dataclass(frozen=True)
class Slots:
    """Entity rows in order, and what they see of one history.

    Attributes:
        order: the order.
        earliest: the first time each slot sees.
        known: the last created time it sees; None where that does not count.
        glance: which rows some slot may see.
    """

    order: Order
    earliest: NDArray[np.int64]
    known: NDArray[np.int64] | None
    glance: TimeBitmapFilter

    @classmethod
    def from_input(cls, asked: MatchInput, orders: Orders) -> Slots:
        """The slots of what is asked for."""
        order = orders.get(asked)
        earliest = asked.earliest[order.entity]
        known = None if asked.known is None else asked.known[order.entity]
        return cls(order, earliest, known, TimeBitmapFilter.from_order(order, earliest))

    def __len__(self) -> int:
        return len(self.order.entity)

    def first_seeing(
        self,
        key: NDArray[np.int64],
        time: NDArray[np.int64],
        upto: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The first slot of each key whose `upto` is not before a time; the key's end if none is.

        Args:
            key: numbers of keys.
            time: as many times.
            upto: a time of each slot, which ascends within each key.
        """
        first = self.order.first
        found, ends = first.take(key), first.take(key + 1)
        slots = ends - found
        if self.order.longest > FEW:
            hot = np.flatnonzero(slots > MANY)
            if len(hot):
                found[hot] = _by_sorting(key[hot], time[hot], upto, first)
            some = np.flatnonzero((slots > FEW) & (slots <= MANY))
            step = min(MANY, self.order.longest)
            found[some] = _advanced(found[some], ends[some], time[some], upto, step, FEW)
            # What has been found already is where a further search ends as well.
        return _advanced(found, ends, time, upto, min(FEW, self.order.longest), 0)


def _advanced(
    found: NDArray[np.int64],
    ends: NDArray[np.int64],
    time: NDArray[np.int64],
    upto: NDArray[np.int64],
    step: int,
    last_step: int,
) -> NDArray[np.int64]:
    """Binary search of many ranges at once, by steps that are powers of two and get smaller."""
    while step > last_step:
        # Are all slots before the next one before the time?
        next_ = np.minimum(found + step, ends)
        passed = (upto.take(next_ - 1, mode="clip") < time) & (found < next_)
        np.copyto(found, next_, where=passed)
        step >>= 1
    return found


def _by_sorting(
    key: NDArray[np.int64],
    time: NDArray[np.int64],
    upto: NDArray[np.int64],
    first: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The same for keys with many slots each, and so few keys: a search for ascending times."""
    found = np.empty(len(key), dtype=np.int64)
    keys, number = np.unique(key, return_inverse=True)
    by_time = np.argsort(time)
    # Numbers of 16 bits are sorted by radix.
    order = by_time[np.argsort(number[by_time].astype(np.uint16), kind="stable")]
    ends = np.cumsum(np.bincount(number, minlength=len(keys)))
    for of_key, rows in zip(keys.tolist(), np.split(order, ends[:-1]), strict=True):
        slots = upto[first[of_key] : first[of_key + 1]]
        found[rows] = first[of_key] + np.searchsorted(slots, time[rows])
    return found


def _order(key: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that have a key, by key and time.

    Two sorts of plain integers take a third of the time of one by two columns.
    """
    rows = np.flatnonzero(key != NONE)
    by_time = np.argsort(time[rows])
    ordered: NDArray[np.int64] = rows.take(by_time.take(ascending(key[rows].take(by_time))))
    return ordered
