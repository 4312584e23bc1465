"""What needs each value of each range: how many are distinct, and how far they are spread.

Ranges are written out, a few million events at a time. Where they are so long that this would take
too long, distinct values are counted by place: one is the first of its kind in a range where the
one before it is before the range::

    value    a    b    a    a    c    b
    place    0    1    2    3    4    5
    before   -    -    0    2    -    1      in the range 1 to 5: places 1, 2 and 4, so three

Of all ranges at once they are counted bit by bit, with as many steps as places have bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feast_dynamo_ext.retrieval.engines.base import ascending
from feast_dynamo_ext.retrieval.windows.event_ranges import LONG, Ranges, reduced
from feast_dynamo_ext.timestamps import HIGHEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.windows.event_ranges import EventColumn

    Numbers = NDArray[np.int64]

DENSE = 8
"""Events of ranges, for each event and range, from which counting by place is worth it."""

FAR = 1e6
"""How much more the mean may be than the deviations, squared, for one pass to be exact enough."""


def distinct_values(column: EventColumn, ranges: Ranges) -> Numbers:
    """How many distinct values each range has."""
    total = int(ranges.counts.sum())
    if ranges.events is None and total > DENSE * (len(column.values) + len(ranges)):
        return _distinct_by_place(column, ranges)
    codes, width = column.codes
    found = np.zeros(len(ranges), dtype=np.int64)
    for start, end in ranges.parts():
        of_range, event = _values_of(column, ranges, start, end)
        both = of_range * width + codes.take(event)
        both.sort()
        is_new = np.append(True, both[1:] != both[:-1])[: len(both)]
        found[start:end] = np.bincount(both[is_new] // width, minlength=end - start)
    return found


def _values_of(
    column: EventColumn, ranges: Ranges, start: int, end: int
) -> tuple[Numbers, Numbers]:
    """Of some ranges which range each value is of, from 0 on, and its event."""
    of_range, place = ranges.written_out(start, end)
    event = ranges.number(place)
    if column.is_value is None:
        return of_range, event
    kept = column.is_value.take(event)
    return of_range[kept], event[kept]


def _distinct_by_place(column: EventColumn, ranges: Ranges) -> Numbers:
    codes, _ = column.codes
    count = len(codes)
    is_value = np.ones(count, dtype=bool) if column.is_value is None else column.is_value
    places = np.flatnonzero(is_value)
    places = places.take(ascending(codes.take(places)))
    same = codes.take(places[1:]) == codes.take(places[:-1])
    # One more than the place of the one before; what is no value counts nowhere.
    before = np.full(count, count + 1)
    before[places] = 0
    before[places[1:][same]] = places[:-1][same] + 1
    upto = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(is_value, out=upto[1:])
    # Before the range each value's forerunner is before it, too.
    return _less(before, ranges.end, ranges.first + 1) - upto.take(ranges.first)


def _less(values: Numbers, end: Numbers, limit: Numbers) -> Numbers:
    """For each of some places how many of the values before it are less than a limit.

    Values are parted by their bits, the highest first, as a radix sort does; the places go with
    them.
    """
    found = np.zeros(len(end), dtype=np.int64)
    first = np.zeros(len(end), dtype=np.int64)
    for bit in reversed(range(int(max(values.max(initial=0), limit.max(initial=0))).bit_length())):
        is_one = ((values >> bit) & 1).astype(bool)
        zeros = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(~is_one, out=zeros[1:])
        low, high = zeros.take(first), zeros.take(end)
        above = ((limit >> bit) & 1).astype(bool)
        found += np.where(above, high - low, 0)
        first = np.where(above, zeros[-1] + first - low, low)
        end = np.where(above, zeros[-1] + end - high, high)
        values = np.concatenate([values[~is_one], values[is_one]])
    return found


def deviations(column: EventColumn, ranges: Ranges) -> NDArray[np.float64]:
    """The standard deviation of a sample, of each range; any number of less than two values."""
    if ranges.events is None and int(ranges.counts.sum()) > LONG * len(ranges):
        found, doubtful = _deviations_by_blocks(column, ranges)
        if len(doubtful):
            found[doubtful] = _deviations(column, ranges.only(doubtful))
        return found
    return _deviations(column, ranges)


def _deviations(column: EventColumn, ranges: Ranges) -> NDArray[np.float64]:
    found = np.zeros(len(ranges))
    values = column.numbers
    # From integers the first of a range is taken before they are rounded.
    is_near = not column.is_float and (
        not len(values) or int(values.max()) - int(values.min()) < HIGHEST
    )
    if not is_near:
        values = values.astype(np.float64)
    for start, end in ranges.parts():
        of_range, event = _values_of(column, ranges, start, end)
        counts = np.bincount(of_range, minlength=end - start)
        ends = np.cumsum(counts)
        part = Ranges(ends - counts, ends)
        value = values.take(event)
        firsts = np.append(value, np.zeros(1, value.dtype)).take(part.first)
        with np.errstate(invalid="ignore", over="ignore"):
            off = (value - firsts.take(of_range)).astype(np.float64)
            off -= (_sums(off, part) / np.maximum(counts, 1)).take(of_range)
            found[start:end] = _deviation(counts, _sums(off, part), _sums(off * off, part))
    return found


def _deviations_by_blocks(
    column: EventColumn, ranges: Ranges
) -> tuple[NDArray[np.float64], Numbers]:
    """The deviations, and the ranges of which digits may be lost."""
    is_value = column.is_value
    count = len(column.values)
    values = column.numbers.astype(np.float64)
    if is_value is not None:
        values = np.where(is_value, values, 0.0)
    some = np.ones(count) if is_value is None else is_value.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        middle = values.sum() / max(1.0, some.sum())
        off = (values - middle) * some
        counts = _sums(some, ranges)
        sums, squares = _sums(off, ranges), _sums(off * off, ranges)
        found = _deviation(counts, sums, squares)
        rest = squares - sums * sums / np.maximum(counts, 1)
        is_sure = np.isfinite(rest) & (squares <= FAR * rest)
        # What integers beyond a double's digits differ by is lost before.
        is_sure &= column.is_float or float(np.abs(values).max(initial=0)) < 1 << 53
    return found, np.flatnonzero(~is_sure)


def _deviation(
    counts: NDArray[np.generic], sums: NDArray[np.float64], squares: NDArray[np.float64]
) -> NDArray[np.float64]:
    rest = squares - sums * sums / np.maximum(counts, 1)
    # Of squares beyond a double nothing can be taken away.
    rest = np.where(np.isposinf(squares), np.inf, rest)
    found: NDArray[np.float64] = np.sqrt(np.maximum(rest, 0) / np.maximum(counts - 1, 1))
    return found


def _sums(values: NDArray[np.float64], ranges: Ranges) -> NDArray[np.float64]:
    return reduced(np.add, values, ranges, 0.0)
