"""A training set over its event times: rows, label, and how old features were at each row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.sagemaker.column_statistics import comparable, label_numbers
from feast_dynamo_ext.timestamps import moment_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.column_statistics import Label, SplitRows


@dataclass(frozen=True)
class TimeBar:
    """A span of event times.

    Attributes:
        start: where it begins, UTC.
        rows: by split; only those that have rows there.
        label_mean: by split; only those that have rows there, and labels that are numbers.
    """

    start: datetime
    rows: Mapping[str, int]
    label_mean: Mapping[str, float]


@dataclass(frozen=True)
class OverTime:
    """Rows and label over event time; `unit` is the length of a bar, in words."""

    unit: str
    bars: tuple[TimeBar, ...]


MOST_TIME_BARS = 60
_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_MONDAY = -3 * _DAY
"""Of the week of 1970-01-01."""

_YEAR = 12


@dataclass(frozen=True)
class _Spans:
    """Spans of time, numbered: of a fixed length in microseconds, or of whole months."""

    unit: str
    micros: int = 0
    months: int = 0

    def numbers(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.micros:
            return (times - _MONDAY) // self.micros
        since = times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
        return (since + 1970 * _YEAR) // self.months

    def start(self, number: int) -> datetime:
        if self.micros:
            return moment_of(number * self.micros + _MONDAY)
        year, month = divmod(number * self.months, _YEAR)
        return datetime(max(year, 1), month + 1, 1, tzinfo=timezone.utc)


_SPANS = (
    _Spans("second", _SECOND),
    _Spans("minute", 60 * _SECOND),
    _Spans("10 minutes", 600 * _SECOND),
    _Spans("hour", 3_600 * _SECOND),
    _Spans("6 hours", 21_600 * _SECOND),
    _Spans("day", _DAY),
    _Spans("week", 7 * _DAY),
    _Spans("month", months=1),
    _Spans("quarter", months=3),
    _Spans("year", months=_YEAR),
    _Spans("10 years", months=10 * _YEAR),
    _Spans("200 years", months=200 * _YEAR),
)


def over_time(rows: SplitRows, event_time: str, label: Label) -> OverTime:
    """Rows and the label's mean, by split, in at most MOST_TIME_BARS spans of one length."""
    spans, first, last = _spans_of(rows, event_time)
    shape = len(rows.splits), last - first + 1
    counts, sums = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    for place, split in enumerate(rows.splits):
        for batch in rows.batches(split, [event_time, label.column]):
            at = spans.numbers(_times(batch)) - first
            counts[place] += np.bincount(at, minlength=shape[1])
            sums[place] += np.bincount(at, label_numbers(batch.column(1)), minlength=shape[1])
    return OverTime(
        spans.unit,
        tuple(
            _bar(spans.start(first + at), rows.splits, counts[:, at], sums[:, at])
            for at in range(shape[1])
        ),
    )


def _bar(
    start: datetime, splits: Sequence[str], counts: NDArray[np.int64], sums: NDArray[np.float64]
) -> TimeBar:
    held = {
        split: (int(count), float(total))
        for split, count, total in zip(splits, counts, sums, strict=True)
        if count
    }
    return TimeBar(
        start,
        {split: count for split, (count, _) in held.items()},
        {split: total / count for split, (count, total) in held.items() if total == total},  # noqa: PLR0124 - NaN
    )


def _times(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """The event times, which the first column has, in microseconds."""
    return numbers(comparable(batch.column(0)))


def _spans_of(rows: SplitRows, event_time: str) -> tuple[_Spans, int, int]:
    """The shortest spans that are few enough, and the numbers of the first and the last."""
    ranges = [
        (int(times.min()), int(times.max()))
        for split in rows.splits
        for times in map(_times, rows.batches(split, [event_time]))
        if len(times)
    ]
    if not ranges:
        return _SPANS[0], 0, 0
    ends = np.array([min(low for low, _ in ranges), max(high for _, high in ranges)])
    for spans in _SPANS:
        first, last = spans.numbers(ends).tolist()
        if last - first < MOST_TIME_BARS:
            return spans, first, last
    return _SPANS[-1], first, last


# Ages of features

AGE_BOUNDS = (
    (0, "younger"),
    (60, "< 1 min"),
    (3_600, "< 1 h"),
    (21_600, "< 6 h"),
    (86_400, "< 1 d"),
    (7 * 86_400, "< 7 d"),
    (30 * 86_400, "< 30 d"),
    (90 * 86_400, "< 90 d"),
    (365 * 86_400, "< 1 y"),
)
OLDER = "older"


@dataclass(frozen=True)
class Ages:
    """How old a view's row was at the entity row's time.

    Attributes:
        column: that has the event times of the view's rows.
        rows: entity rows.
        unmatched: entity rows that no row of the view was found for.
        counts: the others by age: of each of AGE_BOUNDS those below it, and the older ones.
        youngest_s: least age in seconds; negative where a feature is younger; None without any.
        oldest_s: greatest age.
    """

    column: str
    rows: int
    unmatched: int
    counts: tuple[int, ...]
    youngest_s: float | None
    oldest_s: float | None

    @property
    def younger(self) -> int:
        """Rows whose feature is of later than the entity row."""
        return self.counts[0]


def ages(batches: Iterable[pa.RecordBatch], event_time: str, columns: Sequence[str]) -> list[Ages]:
    """The ages of features, by the columns that have their event times.

    Args:
        batches: entity rows.
        event_time: of the entity row.
        columns: of the rows that features came from; null where none was found.
    """
    found = [_AgeCounts(column) for column in columns]
    for batch in batches:
        times = numbers(comparable(batch.column(event_time)))
        for counts in found:
            counts.add(times, comparable(batch.column(counts.column)))
    return [counts.ages() for counts in found]


_BOUNDS = np.array([seconds * _SECOND for seconds, _ in AGE_BOUNDS], dtype=np.int64)


class _AgeCounts:
    def __init__(self, column: str) -> None:
        self.column = column
        self._rows = self._unmatched = 0
        self._counts = np.zeros(len(_BOUNDS) + 1, dtype=np.int64)
        self._extremes: list[int] = []

    def add(self, times: NDArray[np.int64], of_features: pa.Array) -> None:
        known = np.asarray(of_features.is_valid())
        age = (times - numbers(of_features))[known]
        self._rows += len(times)
        self._unmatched += len(times) - len(age)
        bars = np.searchsorted(_BOUNDS, age, side="right")
        self._counts += np.bincount(bars, minlength=len(self._counts))
        if len(age):
            ends = [*self._extremes, int(age.min()), int(age.max())]
            self._extremes = [min(ends), max(ends)]

    def ages(self) -> Ages:
        least, most = self._extremes or (None, None)
        return Ages(
            self.column,
            self._rows,
            self._unmatched,
            tuple(self._counts.tolist()),
            None if least is None else least / _SECOND,
            None if most is None else most / _SECOND,
        )
