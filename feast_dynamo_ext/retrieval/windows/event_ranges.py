"""Columns of events, ranges of them, and functions over the values of many ranges at once.

Ranges are reduced where they stand, by `reduceat`: a nanosecond for each event of each range.
Where ranges are long they are reduced from blocks of blocks, so that none takes more than a few
hundred steps::

    |..........|################|################|......|      a range
     its begin  whole blocks of 64, of 4,096 ...   its end

No sum is a difference of sums up to two places, so that what is far away changes no digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_time, numbers, plain
from feast_dynamo_ext.declared_values import codes_of
from feast_dynamo_ext.retrieval.engines.one_pass import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

BLOCK = 64
LONG = 256
"""Events of a range, on average, from which blocks are worth it."""

AT_ONCE = 1 << 22
"""Events that are looked at at once where ranges are written out."""


@dataclass(frozen=True, eq=False)
class Ranges:
    """Ranges of events, one a row of the result.

    Attributes:
        first: the first event of each.
        end: the one after its last.
        events: which events the numbers of `first` and `end` are; None for all, in order.
    """

    first: Numbers
    end: Numbers
    events: Numbers | None = None

    def __len__(self) -> int:
        return len(self.first)

    @property
    def counts(self) -> Numbers:
        """Events of each range."""
        return self.end - self.first

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """What there is of each event, where the ranges' numbers are."""
        return values if self.events is None else values.take(self.events)

    def number(self, place: Numbers) -> Numbers:
        """The events at some numbers of the ranges; any event at those of empty ones."""
        if self.events is None:
            return place
        return self.events.take(place, mode="clip") if len(self.events) else np.zeros_like(place)

    def only(self, which: Numbers | slice) -> Ranges:
        """Some of them."""
        return Ranges(self.first[which], self.end[which], self.events)

    def newest(self, count: int) -> Ranges:
        """The last events of each range."""
        return Ranges(np.maximum(self.first, self.end - count), self.end, self.events)

    def parts(self) -> Iterator[tuple[int, int]]:
        """Stretches of ranges with so many events that they can be written out."""
        upto = np.cumsum(self.counts)
        start = 0
        while start < len(self):
            before = int(upto[start - 1]) if start else 0
            end = int(np.searchsorted(upto, before + AT_ONCE, side="right"))
            yield start, max(start + 1, end)
            start = max(start + 1, end)

    def written_out(self, start: int, end: int) -> tuple[Numbers, Numbers]:
        """Of some ranges which range each event is of, from 0 on, and its number."""
        return expanded(self.first[start:end], self.end[start:end])


@dataclass(frozen=True, eq=False)
class EventColumn:
    """Values of a column, one an event.

    Attributes:
        values: in their declared type.
    """

    values: pa.Array

    @cached_property
    def is_value(self) -> NDArray[np.bool_] | None:
        """Which of them are values: no nulls, and not NaN; None for all."""
        array = plain(self.values)
        missing = np.asarray(array.is_null()) if array.null_count else None
        if pa.types.is_floating(array.type):
            is_nan = np.isnan(numbers(array))
            if is_nan.any():
                missing = is_nan if missing is None else missing | is_nan
        return None if missing is None else ~missing

    @cached_property
    def is_float(self) -> bool:
        """Whether they are floats."""
        return bool(pa.types.is_floating(plain(self.values).type))

    @cached_property
    def sums(self) -> dict[Ranges, NDArray[Any]]:
        """Sums of ranges that were asked for: a mean has use for them again."""
        return {}

    @cached_property
    def numbers(self) -> NDArray[Any]:
        """Numbers in the values' order: int64 or float64, of texts their places among all."""
        array = plain(self.values)
        if self.is_float:
            return numbers(array).astype(np.float64)
        if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
            return numbers(array).astype(np.int64)
        if is_time(array.type):
            if pa.types.is_date32(array.type):
                array = array.cast(pa.int32())
            return numbers(array.cast(pa.int64()))
        return self._ordered[0]

    @cached_property
    def codes(self) -> tuple[Numbers, int]:
        """Numbers that are equal where values are, and more than the greatest of them."""
        array = plain(self.values)
        return (np.zeros(len(array), dtype=np.int64), 1) if _is_null(array) else codes_of(array)

    @cached_property
    def _ordered(self) -> tuple[Numbers, pa.Array]:
        array = plain(self.values)
        if _is_null(array):
            return np.zeros(len(array), dtype=np.int64), array.slice(0, 0)
        encoded = array.dictionary_encode()
        texts = encoded.dictionary
        order = pc.sort_indices(texts.cast(pa.large_binary()))
        rank = np.empty(len(texts), dtype=np.int64)
        rank[np.asarray(order)] = np.arange(len(texts))
        codes = numbers(encoded.indices).astype(np.int64)
        return rank.take(codes) if len(rank) else codes, texts.take(order)

    def of_numbers(self, found: NDArray[Any], missing: NDArray[np.bool_]) -> pa.Array:
        """Values that some of `numbers` stand for; null where they are missing."""
        own = self.values.type
        array = plain(self.values)
        if _is_null(array):
            return pa.nulls(len(found), own)
        filled = np.where(missing, 0, found)
        if self.is_float or pa.types.is_integer(array.type):
            return pa.array(filled, mask=missing).cast(array.type)
        if is_time(array.type):
            ticks = pa.array(filled, mask=missing)
            if pa.types.is_date32(array.type):
                ticks = ticks.cast(pa.int32())
            return ticks.cast(array.type)
        return self._ordered[1].take(pa.array(filled, mask=missing)).cast(array.type)


def _is_null(array: pa.Array) -> bool:
    return bool(pa.types.is_null(array.type))


# Functions over ranges


def reduced(
    function: np.ufunc, values: NDArray[Any], ranges: Ranges, nothing: float
) -> NDArray[Any]:
    """A function over the values of each range.

    Args:
        function: of two numbers.
        values: where the ranges' numbers are.
        ranges: which; empty ones give `nothing`.
        nothing: what changes no value.
    """
    first, end = ranges.first, ranges.end
    if len(ranges) and int(ranges.counts.sum()) > LONG * len(ranges):
        return _by_blocks(function, values, first, end, nothing)
    return _reduceat(function, values, first, end, nothing)


def _reduceat(
    function: np.ufunc, values: NDArray[Any], first: Numbers, end: Numbers, nothing: float
) -> NDArray[Any]:
    found = np.full(len(first), nothing, dtype=values.dtype)
    some = np.flatnonzero(end > first)
    if not len(some):
        return found
    ends = np.empty(2 * len(some), dtype=np.int64)
    ends[::2], ends[1::2] = first[some], end[some]
    # The last range may end with the values; what is between two ranges is reduced too.
    padded = np.append(values, np.array(nothing, dtype=values.dtype))
    found[some] = function.reduceat(padded, ends)[::2]
    return found


def _by_blocks(
    function: np.ufunc, values: NDArray[Any], first: Numbers, end: Numbers, nothing: float
) -> NDArray[Any]:
    begin, stop = -(-first // BLOCK), end // BLOCK
    has_blocks = begin < stop
    if not has_blocks.any():
        return _reduceat(function, values, first, end, nothing)
    size = -(-len(values) // BLOCK) * BLOCK
    padded = np.full(size, nothing, dtype=values.dtype)
    padded[: len(values)] = values
    blocks = function.reduce(padded.reshape(-1, BLOCK), axis=1)
    whole = np.where(has_blocks, begin, 0), np.where(has_blocks, stop, 0)
    found = _by_blocks(function, blocks, *whole, nothing)
    head = _reduceat(function, values, first, np.where(has_blocks, begin * BLOCK, end), nothing)
    tail = _reduceat(function, values, np.where(has_blocks, stop * BLOCK, end), end, nothing)
    both: NDArray[Any] = function(function(head, found), tail)
    return both
