"""Aggregates and lists of an entity's events, as of one moment; see `WindowFeature`.

Events stand in the order of their sort keys, the oldest first. A null is no value, nor is NaN.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.timestamps import MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.series_settings import Recent, RecentFeature, WindowFeature, Windows

SECOND_US = 1_000_000
FLOATS = frozenset({"FLOAT_LIST", "DOUBLE_LIST"})


@dataclass(frozen=True)
class EntityEvents:
    """The events of one entity up to a moment, the oldest first.

    Attributes:
        times: event times, microseconds since 1970 UTC.
        columns: values by feature; None where null.
        oldest_us: the first event time that is within the ttl; None for no limit.
    """

    times: Sequence[int]
    columns: Mapping[str, Sequence[Any]]
    oldest_us: int | None = None

    def within(self, first_us: int | None, last_us: int, *, exclude_last: bool) -> slice:
        """The places of the events from a moment to another, both included."""
        limits = [each for each in (first_us, self.oldest_us) if each is not None]
        start = bisect_left(self.times, max(limits)) if limits else 0
        end = (bisect_left if exclude_last else bisect_right)(self.times, last_us)
        return slice(start, max(start, end))


class NullInListError(ValueError):
    """A null in a list without a `fill`: Feast's lists hold none.

    Attributes:
        feature: the list.
    """

    def __init__(self, feature: RecentFeature) -> None:
        """See the class."""
        super().__init__(f"`{feature.column}` is null, and `{feature.name}` has no `fill`")
        self.feature = feature


def aggregate(feature: WindowFeature, windows: Windows, events: EntityEvents, now_us: int) -> Any:
    """One aggregate of the events of its window; None for null.

    Raises:
        OverflowError: a sum of integers of more than 64 bits.
    """
    first_us = now_us - feature.window // MICROSECOND
    found = events.within(first_us, now_us, exclude_last=windows.exclude_current)
    if not feature.column:
        times = events.times[found]
        if feature.function == "count":
            return len(times)
        return (now_us - times[-1]) / SECOND_US if times else None
    column = events.columns[feature.column][found]
    if feature.function in {"first", "last"}:
        return column[0 if feature.function == "first" else -1] if column else None
    values = [each for each in column if each is not None and each == each]  # noqa: PLR0124 - NaN
    if feature.function == "count":
        return len(values)
    if feature.function == "count_distinct":
        return len(set(values))
    return FUNCTIONS[feature.function](values) if values else None


def _sum(values: Sequence[Any]) -> Any:
    if isinstance(values[0], int):
        total = sum(values)
        if not -(2**63) <= total < 2**63:
            raise OverflowError(total)
        return total
    return _fsum(values)


def _fsum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # an infinity, or beyond a double
        return float(sum(values))


def _mean(values: Sequence[Any]) -> float:
    total = sum(values) if isinstance(values[0], int) else _fsum(values)
    return float(total / len(values))


def _std(values: Sequence[Any]) -> float | None:
    count = len(values)
    if count < 2:  # noqa: PLR2004 - of a sample
        return None
    # From the first, as training has it: what large values differ by is not rounded away.
    off = [float(each - values[0]) for each in values]
    mean = _mean(off)
    # By products: a power of a float beyond a double's range is an error in Python.
    squares = _fsum([(each - mean) * (each - mean) for each in off])
    return math.sqrt(squares / (count - 1))


FUNCTIONS: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "sum": _sum,
    "mean": _mean,
    "min": min,
    "max": max,
    "std": _std,
}


def listed(
    feature: RecentFeature, recent: Recent, events: EntityEvents, now_us: int, kind: str
) -> list[Any]:
    """The list of one feature's values.

    Args:
        feature: the list.
        recent: the view's definition.
        events: the entity's.
        now_us: as of when, microseconds since 1970 UTC.
        kind: name of the list's value type.

    Raises:
        NullInListError: a null, and nothing that stands for it.
    """
    first_us = None if recent.within is None else now_us - recent.within // MICROSECOND
    found = events.within(first_us, now_us, exclude_last=recent.exclude_current)
    if recent.last is not None:
        found = slice(max(found.start, found.stop - recent.last), found.stop)
    column = events.columns[feature.column] if feature.column else events.times
    values = list(column[found])
    if recent.newest_first:
        values.reverse()
    if feature.column and None in values:
        fill: Any = math.nan if kind in FLOATS and feature.fill is None else feature.fill
        if fill is None:
            raise NullInListError(feature)
        if kind == "BYTES_LIST" and isinstance(fill, str):
            fill = fill.encode()
        values = [fill if each is None else each for each in values]
    return values
