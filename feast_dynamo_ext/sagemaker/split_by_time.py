"""Splits by event time, so that no model sees later rows: at instants, or by fractions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import numbers, one_array, plain
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.split_rule import LEFT_OUT, OfFractions, empty_splits
from feast_dynamo_ext.timestamps import assume_utc, micros_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class TimeSplit:
    """Splits rows by event time at one or two instants.

    A row trains if its event time is before `validation_from`, validates from there to before
    `test_from`, and tests from `test_from` on. Without one of the two there is no such split.

    Attributes:
        validation_from: first instant of validation; a naive datetime is UTC.
        test_from: first instant of test, later than `validation_from`.
        embargo: rows so long before the next split's first instant are left out, so that what a
            label was made of does not reach into it.

    Raises:
        TrainingSetError: the two are not in order, or are not datetimes.
    """

    validation_from: datetime | None = None
    test_from: datetime | None = None
    embargo: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        for name in ("validation_from", "test_from"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _utc(name, getattr(self, name)))
        if self.validation_from is None and self.test_from is None:
            raise TrainingSetError(
                "A split by time needs `validation_from`, `test_from` or both: without them all "
                "rows train, which is the rule `none`."
            )
        if None not in (self.validation_from, self.test_from) and not (
            self.validation_from < self.test_from  # type: ignore[operator]
        ):
            raise TrainingSetError(
                f"The split's `test_from` ({_iso(self.test_from)}) must be later than its "
                f"`validation_from` ({_iso(self.validation_from)})."
            )
        _check_embargo(self.embargo)

    @property
    def splits(self) -> tuple[str, ...]:
        """See `SplitRule.splits`."""
        return ("train", *(name for name, _ in self._boundaries))

    @property
    def _boundaries(self) -> list[tuple[str, datetime]]:
        given = {"validation": self.validation_from, "test": self.test_from}
        return [(name, instant) for name, instant in given.items() if instant is not None]

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (event_timestamp,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: the event times."""
        _ticks(columns[0])
        return plain(columns[0])

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`.

        Instants are compared as integers, so that a row one nanosecond before a boundary is
        before it.
        """
        ticks, unit = _ticks(narrowed)
        bounds = [_boundary(instant, unit) for _, instant in self._boundaries]
        assigned = _by_time(numbers(ticks), bounds, _length(self.embargo, unit))
        self._refuse_empty(empty_splits(self.splits, assigned), narrowed)
        return assigned

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`: ISO 8601 instants in UTC."""
        instants = {f"{name}_from": instant.isoformat() for name, instant in self._boundaries}
        return {"rule": "event_time"} | instants | _embargo_json(self.embargo)

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> TimeSplit:
        """The inverse of `as_manifest`."""
        instants = {
            name: datetime.fromisoformat(values[name])
            for name in ("validation_from", "test_from")
            if values.get(name) is not None
        }
        return cls(**instants, embargo=_embargo_of(values))

    def masks(self, event_times: pa.Array | pa.ChunkedArray) -> dict[str, pa.BooleanArray]:
        """One boolean mask per split, in the order of the rows; each row is in exactly one.

        Instants are compared as integers, so that a row one nanosecond before a boundary is
        before it.

        Args:
            event_times: timestamps of any unit, without a time zone in UTC; or dates, which are
                their midnights.

        Raises:
            TrainingSetError: no timestamps, event times that are missing, or an empty split.
        """
        assigned = self.assign(one_array(event_times))
        return {name: pa.array(assigned == place) for place, name in enumerate(self.splits)}

    def _refuse_empty(self, empty: Sequence[str], event_times: pa.Array) -> None:
        if not empty:
            return
        rows = len(event_times)
        first, last = event_range(event_times) if rows else ("", "")
        found = f"{rows} rows run from {first} to {last}" if rows else "there are no rows"
        starts = [f"{name} starts at {instant.isoformat()}" for name, instant in self._boundaries]
        starts[1:] = [text.replace(" starts", "") for text in starts[1:]]
        raise TrainingSetError(
            f"The split leaves {' and '.join(empty)} empty: {found}, {' and '.join(starts)}. "
            "Move the boundaries into the range of the rows, or bring rows of that time."
        )


@dataclass(frozen=True)
class TimeFractions(OfFractions):
    """Splits rows by event time, so that each split has its part of them.

    Rows of one event time are all in the later of the splits that they might be in.

    Attributes:
        embargo: as of `TimeSplit`.
    """

    embargo: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_embargo(self.embargo)

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (event_timestamp,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: the event times."""
        _ticks(columns[0])
        return plain(columns[0])

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        array, unit = _ticks(narrowed)
        ticks = numbers(array)
        if not len(ticks):
            return self._refuse_empty(np.zeros(0, np.int8))
        places = [int(len(ticks) * bound) for bound in self._bounds]
        ordered = np.partition(ticks, places)
        bounds = [int(ordered[place]) for place in places]
        return self._refuse_empty(_by_time(ticks, bounds, _length(self.embargo, unit)))

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        return {"rule": "event_time_fractions", "fractions": dict(self.fractions)} | (
            _embargo_json(self.embargo)
        )

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> TimeFractions:
        """The inverse of `as_manifest`."""
        return cls(values["fractions"], _embargo_of(values))


def refuse_untimed(event_times: pa.Array | pa.ChunkedArray) -> None:
    """Refuse rows without an event time.

    Raises:
        TrainingSetError: counts them; or the column holds no times.
    """
    _ticks(event_times)


def event_range(event_times: pa.Array | pa.ChunkedArray) -> tuple[str, str]:
    """First and last of at least one event time, as ISO 8601 in UTC with every digit it has."""
    ticks, unit = _ticks(event_times)
    bounds = pc.min_max(ticks)
    return _text(bounds["min"], unit), _text(bounds["max"], unit)


def _text(ticks: pa.Int64Scalar, unit: str) -> str:
    text: str = ticks.cast(pa.timestamp(unit)).cast(pa.string()).as_py()
    return text.replace(" ", "T") + "+00:00"


def _ticks(event_times: pa.Array | pa.ChunkedArray) -> tuple[pa.Int64Array, str]:
    if pa.types.is_date(event_times.type):
        event_times = event_times.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(event_times.type):
        raise TrainingSetError(
            f"The event timestamp column holds {event_times.type}, not timestamps or dates. "
            "Cast it to a timestamp before writing the training set."
        )
    if event_times.null_count:
        raise TrainingSetError(
            f"The event timestamp is missing in {event_times.null_count} of {len(event_times)} "
            "rows, which belong to no split. Drop these rows or give them a time."
        )
    ticks = event_times.cast(pa.int64())
    if isinstance(ticks, pa.ChunkedArray):
        ticks = pa.concat_arrays(ticks.chunks) if ticks.num_chunks else pa.array([], pa.int64())
    return ticks, event_times.type.unit


def _boundary(instant: datetime, unit: str) -> int:
    """The smallest tick at or after an instant: rounding down would move rows over a boundary."""
    return -(-micros_of(instant) * _TICKS_PER_S[unit] // 10**6)


def _by_time(ticks: NDArray[np.int64], bounds: Sequence[int], embargo: int) -> NDArray[np.int8]:
    """The split of each time, and LEFT_OUT so little before the next one."""
    assigned = np.zeros(len(ticks), np.int8)
    for place, bound in enumerate(bounds):
        # Nanoseconds end in the year 2262; a later boundary is after every row.
        later = ticks >= bound if bound <= _INT64_MAX else np.zeros(len(ticks), bool)
        first = max(bound - embargo, _INT64_MIN)
        near = ticks >= first if first <= _INT64_MAX else np.zeros(len(ticks), bool)
        assigned[near & ~later & (assigned == place)] = LEFT_OUT
        assigned[later] = place + 1
    return assigned


def _length(embargo: timedelta, unit: str) -> int:
    """Ticks of an embargo, rounded up."""
    return -(-(embargo // timedelta(microseconds=1)) * _TICKS_PER_S[unit] // 10**6)


def _check_embargo(embargo: timedelta) -> None:
    if not isinstance(embargo, timedelta) or embargo < timedelta(0):
        raise TrainingSetError(f"The split's `embargo` is {embargo!r}: it must be a timedelta.")


def _embargo_json(embargo: timedelta) -> dict[str, float]:
    return {"embargo_s": embargo.total_seconds()} if embargo else {}


def _embargo_of(values: Mapping[str, Any]) -> timedelta:
    return timedelta(seconds=values.get("embargo_s", 0))


def _iso(instant: datetime | None) -> str:
    return instant.isoformat() if instant else ""


def _utc(name: str, instant: datetime) -> datetime:
    if not isinstance(instant, datetime):
        raise TrainingSetError(f"The split's `{name}` is {instant!r}: it must be a datetime.")
    return assume_utc(instant).astimezone(timezone.utc)
