"""Aggregates over ranges of events, for many ranges at once.

Ranges are reduced where they stand, by `reduceat`: a nanosecond for each event of each range.
Where ranges are long they are reduced from blocks of blocks, so that none takes more than a few
hundred steps::

    |..........|################|################|......|      a range
     its begin  whole blocks of 64, of 4,096 ...   its end

No sum is a difference of sums up to two places, so that what is far away changes no digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_time, numbers, plain
from feast_dynamo_ext.declared_values import codes_of
from feast_dynamo_ext.retrieval.engines.one_pass import expanded
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

BLOCK = 64
LONG = 256
"""Events of a range, on average, from which blocks are worth it."""

AT_ONCE = 1 << 22
"""Events that are looked at at once where ranges are written out."""

HALF = 32
EXACT = 2**53


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


class SumOverflowError(ValueError):
    """A sum of integers is beyond 64 bits."""


def aggregated(function: str, column: EventColumn | None, ranges: Ranges) -> pa.Array:
    """An aggregate of each range, see `series.WindowFeature`.

    Args:
        function: any but `time_since_last`.
        column: what is aggregated; None for events as such.
        ranges: of events.

    Raises:
        SumOverflowError: a sum of integers is beyond 64 bits.
    """
    return pa.array(ranges.counts) if column is None else AGGREGATES[function](column, ranges)


def _first(column: EventColumn, ranges: Ranges) -> pa.Array:
    place = ranges.number(ranges.first)
    return column.values.take(pa.array(place, mask=ranges.counts == 0))


def _last(column: EventColumn, ranges: Ranges) -> pa.Array:
    place = ranges.number(ranges.end - 1)
    return column.values.take(pa.array(place, mask=ranges.counts == 0))


def _count(column: EventColumn, ranges: Ranges) -> pa.Array:
    return pa.array(_counts(column, ranges))


def _min(column: EventColumn, ranges: Ranges) -> pa.Array:
    return _extreme(np.minimum, math.inf if column.is_float else HIGHEST, column, ranges)


def _max(column: EventColumn, ranges: Ranges) -> pa.Array:
    return _extreme(np.maximum, -math.inf if column.is_float else LOWEST, column, ranges)


def _extreme(function: np.ufunc, nothing: float, column: EventColumn, ranges: Ranges) -> pa.Array:
    values = _filled(column, ranges.of(column.numbers), ranges, nothing)
    found = reduced(function, values, ranges, nothing)
    return column.of_numbers(found, _counts(column, ranges) == 0)


def _sum(column: EventColumn, ranges: Ranges) -> pa.Array:
    values = _filled(column, ranges.of(column.numbers), ranges, 0)
    sums = _float_sums(values, ranges) if column.is_float else _integer_sums(values, ranges)
    return pa.array(sums, mask=_counts(column, ranges) == 0)


def _mean(column: EventColumn, ranges: Ranges) -> pa.Array:
    counts = _counts(column, ranges)
    values = _filled(column, ranges.of(column.numbers), ranges, 0)
    if column.is_float:
        means = _float_sums(values, ranges) / np.maximum(counts, 1)
    else:
        means = _integer_means(values, ranges, counts)
    return pa.array(means, mask=counts == 0)


def _count_distinct(column: EventColumn, ranges: Ranges) -> pa.Array:
    return pa.array(_distinct(column, ranges))


def _std_of(column: EventColumn, ranges: Ranges) -> pa.Array:
    return pa.array(_std(column, ranges), mask=_counts(column, ranges) < LEAST_OF_STD)


LEAST_OF_STD = 2
AGGREGATES: dict[str, Callable[[EventColumn, Ranges], pa.Array]] = {
    "sum": _sum,
    "count": _count,
    "mean": _mean,
    "min": _min,
    "max": _max,
    "count_distinct": _count_distinct,
    "std": _std_of,
    "first": _first,
    "last": _last,
}


def _filled(
    column: EventColumn, values: NDArray[Any], ranges: Ranges, fill: float
) -> NDArray[Any]:
    """Values of events, with what changes nothing in the place of those that are none."""
    if column.is_value is None:
        return values
    return np.where(ranges.of(column.is_value), values, fill)


def _counts(column: EventColumn, ranges: Ranges) -> Numbers:
    if column.is_value is None:
        return ranges.counts
    is_value = ranges.of(column.is_value)
    upto = np.zeros(len(is_value) + 1, dtype=np.int64)
    np.cumsum(is_value, out=upto[1:])
    return upto.take(ranges.end) - upto.take(ranges.first)


# Sums

TOLERANCE = 1e-10
UNIT = 2.0**-53


def _float_sums(values: NDArray[np.float64], ranges: Ranges) -> NDArray[np.float64]:
    """Sums as of `math.fsum`: where rounding could show, they are made by it."""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = reduced(np.add, values, ranges, 0.0)
        sizes = sums
        if len(values) and float(values.min()) < 0:
            sizes = reduced(np.add, np.abs(values), ranges, 0.0)
        # Each addition is off by at most half a unit in the last place of what is there.
        error = ranges.counts * UNIT * np.abs(sizes)
        doubtful = np.flatnonzero((error > TOLERANCE * np.abs(sums)) & np.isfinite(sizes))
    for at in doubtful.tolist():
        sums[at] = math.fsum(values[ranges.first[at] : ranges.end[at]])
    return sums


def _integer_sums(values: Numbers, ranges: Ranges) -> Numbers:
    if _fits(values, ranges):
        return reduced(np.add, values, ranges, 0)
    high, low = _halves(values, ranges)
    high = high + (low >> HALF)
    most = 1 << (HALF - 1)
    if ((high >= most) | (high < -most)).any():
        raise SumOverflowError
    return (high << HALF) + (low & ((1 << HALF) - 1))


def _integer_means(values: Numbers, ranges: Ranges, counts: Numbers) -> NDArray[np.float64]:
    some = np.maximum(counts, 1)
    if _fits(values, ranges):
        sums = reduced(np.add, values, ranges, 0)
        means: NDArray[np.float64] = sums / some
        large = np.flatnonzero(np.abs(sums) >= EXACT)
        means[large] = [int(sums[at]) / int(some[at]) for at in large]
        return means
    high, low = _halves(values, ranges)
    sums_of = zip(high.tolist(), low.tolist(), some.tolist(), strict=True)
    return np.array([((one << HALF) + other) / count for one, other, count in sums_of])


def _fits(values: Numbers, ranges: Ranges) -> bool:
    if not len(values) or not len(ranges):
        return True
    most = max(abs(int(values.min())), abs(int(values.max())))
    return most * int(ranges.counts.max()) <= HIGHEST


def _halves(values: Numbers, ranges: Ranges) -> tuple[Numbers, Numbers]:
    """Sums of the upper and of the lower halves of integers, which fit for 2^31 of them."""
    high = reduced(np.add, values >> HALF, ranges, 0)
    return high, reduced(np.add, values & ((1 << HALF) - 1), ranges, 0)


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


# What needs each value of each range


def _distinct(column: EventColumn, ranges: Ranges) -> Numbers:
    codes, width = column.codes
    found = np.zeros(len(ranges), dtype=np.int64)
    for start, end in ranges.parts():
        of_range, place = ranges.written_out(start, end)
        event = ranges.number(place)
        if column.is_value is not None:
            kept = column.is_value.take(event)
            of_range, event = of_range[kept], event[kept]
        both = of_range * width + codes.take(event)
        both.sort()
        is_new = np.append(True, both[1:] != both[:-1])[: len(both)]
        found[start:end] = np.bincount(both[is_new] // width, minlength=end - start)
    return found


def _std(column: EventColumn, ranges: Ranges) -> NDArray[np.float64]:
    found = np.zeros(len(ranges))
    values = column.numbers
    # From integers the first of a range is taken before they are rounded.
    near = not column.is_float and (
        not len(values) or int(values.max()) - int(values.min()) < HIGHEST
    )
    if not near:
        values = values.astype(np.float64)
    for start, end in ranges.parts():
        of_range, place = ranges.written_out(start, end)
        event = ranges.number(place)
        if column.is_value is not None:
            kept = column.is_value.take(event)
            of_range, event = of_range[kept], event[kept]
        counts = np.bincount(of_range, minlength=end - start)
        ends = np.cumsum(counts)
        part = Ranges(ends - counts, ends)
        value = values.take(event)
        firsts = np.append(value, np.zeros(1, value.dtype)).take(part.first)
        with np.errstate(invalid="ignore", over="ignore"):
            off = (value - firsts.take(of_range)).astype(np.float64)
            off -= (_reduce_add(off, part) / np.maximum(counts, 1)).take(of_range)
            rest = _reduce_add(off, part)
            squares = _reduce_add(off * off, part) - rest * rest / np.maximum(counts, 1)
            found[start:end] = np.sqrt(np.maximum(squares, 0) / np.maximum(counts - 1, 1))
    return found


def _reduce_add(values: NDArray[np.float64], ranges: Ranges) -> NDArray[np.float64]:
    return reduced(np.add, values, ranges, 0.0)
