"""Aggregates of ranges of events, each a function of a column and ranges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.retrieval.windows.event_ranges import reduced
from feast_dynamo_ext.retrieval.windows.value_scans import deviations, distinct_values
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.windows.event_ranges import EventColumn, Ranges

    Numbers = NDArray[np.int64]

HALF = 32
EXACT = 2**53


class SumOverflowError(ValueError):
    """A sum of integers is beyond 64 bits."""


def aggregated(function: str, column: EventColumn | None, ranges: Ranges) -> pa.Array:
    """An aggregate of each range, see `series_settings.WindowFeature`.

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
    sums: NDArray[Any]
    of_floats = column.is_float
    sums = _float_sums(column, values, ranges) if of_floats else _integer_sums(values, ranges)
    return pa.array(sums, mask=_counts(column, ranges) == 0)


def _mean(column: EventColumn, ranges: Ranges) -> pa.Array:
    counts = _counts(column, ranges)
    values = _filled(column, ranges.of(column.numbers), ranges, 0)
    if column.is_float:
        means = _float_sums(column, values, ranges) / np.maximum(counts, 1)
    else:
        means = _integer_means(values, ranges, counts)
    return pa.array(means, mask=counts == 0)


def _count_distinct(column: EventColumn, ranges: Ranges) -> pa.Array:
    return pa.array(distinct_values(column, ranges))


def _std_of(column: EventColumn, ranges: Ranges) -> pa.Array:
    return pa.array(deviations(column, ranges), mask=_counts(column, ranges) < LEAST_OF_STD)


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


def _float_sums(
    column: EventColumn, values: NDArray[np.float64], ranges: Ranges
) -> NDArray[np.float64]:
    """Sums as of `math.fsum`: where rounding could show, they are made by it."""
    if ranges not in column.sums:
        column.sums[ranges] = _sums_of_floats(values, ranges)
    return column.sums[ranges]


def _sums_of_floats(values: NDArray[np.float64], ranges: Ranges) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        sums = reduced(np.add, values, ranges, 0.0)
        some = np.arange(len(ranges))
        greatest = max(-float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        largest = ranges.counts * np.float64(greatest)
        if np.isfinite(largest).all():
            # Most are seen to be good by the greatest of all values, without a look at each.
            some = _doubtful(sums, largest, ranges.counts)
        if len(some):
            looked_at = ranges.only(some)
            sizes = reduced(np.add, np.abs(values), looked_at, 0.0)
            some = some[_doubtful(sums[some], sizes, looked_at.counts)]
    for at in some.tolist():
        sums[at] = math.fsum(values[ranges.first[at] : ranges.end[at]])
    return sums


def _doubtful(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], counts: Numbers
) -> NDArray[np.intp]:
    """Sums that rounding may show in: each addition is off by half a unit in the last place.

    Args:
        sums: of ranges.
        sizes: of each the sum of its absolute values, or more.
        counts: how many values each has.
    """
    error = counts * UNIT * sizes
    return np.flatnonzero((error > TOLERANCE * np.abs(sums)) & np.isfinite(sizes))


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
