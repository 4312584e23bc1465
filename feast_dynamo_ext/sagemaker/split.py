"""Which rows train, validate and test: by event time, so that no model sees later rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.timestamps import assume_utc, micros_of

SPLITS = ("train", "validation", "test")

_TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class TimeSplit:
    """Splits rows by event time at two instants.

    A row trains if its event time is before `validation_from`, validates from there to before
    `test_from`, and tests from `test_from` on.

    Attributes:
        validation_from: first instant of validation; a naive datetime is UTC.
        test_from: first instant of test, later than `validation_from`.

    Raises:
        TrainingSetError: the two are not in order, or are not datetimes.
    """

    validation_from: datetime
    test_from: datetime

    def __post_init__(self) -> None:
        for name in ("validation_from", "test_from"):
            object.__setattr__(self, name, _utc(name, getattr(self, name)))
        if not self.validation_from < self.test_from:
            raise TrainingSetError(
                f"The split's `test_from` ({self.test_from.isoformat()}) must be later than its "
                f"`validation_from` ({self.validation_from.isoformat()})."
            )

    def as_manifest(self) -> dict[str, str]:
        """The rule as it stands in a manifest: ISO 8601 instants in UTC."""
        return {
            "rule": "event_time",
            "validation_from": self.validation_from.isoformat(),
            "test_from": self.test_from.isoformat(),
        }

    @classmethod
    def from_manifest(cls, values: dict[str, Any]) -> TimeSplit:
        """The inverse of `as_manifest`."""
        return cls(
            datetime.fromisoformat(values["validation_from"]),
            datetime.fromisoformat(values["test_from"]),
        )

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
        ticks, unit = _ticks(event_times)
        after_train = _at_or_after(ticks, _boundary(self.validation_from, unit))
        in_test = _at_or_after(ticks, _boundary(self.test_from, unit))
        masks = {
            "train": pc.invert(after_train),
            "validation": pc.and_not(after_train, in_test),
            "test": in_test,
        }
        self._refuse_empty(masks, event_times)
        return masks

    def _refuse_empty(
        self, masks: dict[str, pa.BooleanArray], event_times: pa.Array | pa.ChunkedArray
    ) -> None:
        empty = [split for split in SPLITS if masks[split].true_count == 0]
        if not empty:
            return
        rows = len(event_times)
        first, last = event_range(event_times) if rows else ("", "")
        found = f"{rows} rows run from {first} to {last}" if rows else "there are no rows"
        raise TrainingSetError(
            f"The split leaves {' and '.join(empty)} empty: {found}, validation starts at "
            f"{self.validation_from.isoformat()} and test at {self.test_from.isoformat()}. "
            "Move the boundaries into the range of the rows, or bring rows of that time."
        )


def checked_split(split: TimeSplit | None) -> TimeSplit:
    """The split, which nobody can guess.

    Raises:
        TrainingSetError: there is none, or it is something else.
    """
    if isinstance(split, TimeSplit):
        return split
    given = "missing" if split is None else f"a {type(split).__name__}"
    raise TrainingSetError(
        f"`split` is {given}: it says which event times train, validate and test the model. Pass "
        "`TimeSplit(validation_from=..., test_from=...)`, two instants."
    )


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


def _at_or_after(ticks: pa.Int64Array, boundary: int) -> pa.BooleanArray:
    # Nanoseconds end in the year 2262; a later boundary is after every row.
    if boundary > _INT64_MAX:
        return pa.repeat(pa.scalar(value=False), len(ticks))
    return pc.greater_equal(ticks, pa.scalar(max(boundary, _INT64_MIN), pa.int64()))


def _utc(name: str, instant: datetime) -> datetime:
    if not isinstance(instant, datetime):
        raise TrainingSetError(f"The split's `{name}` is {instant!r}: it must be a datetime.")
    return assume_utc(instant).astimezone(timezone.utc)
