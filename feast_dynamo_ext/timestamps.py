"""Times as integers, compared exactly whatever their units and zones are.

The join never compares timestamps of different resolution: each view is joined on the axis of its
own column (integers in that column's unit, since 1970 UTC), and the bounds of each entity row are
brought onto that axis by rounding inwards, which keeps every comparison exact::

    event_time <= entity_time           <=>  t <= floor(entity_time / unit)
    event_time >= entity_time - ttl     <=>  t >= ceil((entity_time - ttl) / unit)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import ColumnTypeError

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray


NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EARLIEST = datetime.min.replace(tzinfo=timezone.utc)
LATEST = datetime.max.replace(tzinfo=timezone.utc)
LOWEST, HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Axis:
    """Integers in `unit` since 1970 UTC.

    Attributes:
        unit: ``s``, ``ms``, ``us`` or ``ns``.
    """

    unit: str

    @classmethod
    def from_type(cls, kind: pa.DataType, ttl: timedelta | None = None) -> Axis:
        """The axis of a time column: its own unit, or microseconds where the ttl needs them."""
        unit = kind.unit if pa.types.is_timestamp(kind) else "s"
        if ttl and (ttl // MICROSECOND) * 1_000 % NANOSECONDS[unit]:
            unit = "us"
        return cls(unit)

    def cast(self, column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        """A timestamp or date column on this axis, as int64; naive times are UTC."""
        zone = column.type.tz if pa.types.is_timestamp(column.type) else None
        return column.cast(pa.timestamp(self.unit, tz=zone)).cast(pa.int64())

    def floor(self, times: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
        """Times of another unit on this axis, rounded down; saturating."""
        step = NANOSECONDS[self.unit] // NANOSECONDS[unit]
        return times // step if step else self._finer(times, unit)

    def ceil(self, times: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
        """Times of another unit on this axis, rounded up; saturating."""
        step = NANOSECONDS[self.unit] // NANOSECONDS[unit]
        return -(-np.maximum(times, -HIGHEST) // step) if step else self._finer(times, unit)

    def _finer(self, times: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
        """Times of a coarser unit; what is beyond this axis is at its very ends."""
        factor = NANOSECONDS[unit] // NANOSECONDS[self.unit]
        most = HIGHEST // factor
        within = np.clip(times, -most, most) * factor
        return np.where(times > most, HIGHEST, np.where(times < -most, LOWEST, within))

    def ago(
        self, times: NDArray[np.int64], unit: str, span: timedelta
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Times less a span, rounded up, and which of them are after the end of this axis.

        Args:
            times: of another unit.
            unit: that unit.
            span: a ttl this axis was made for.
        """
        theirs, ours = NANOSECONDS[unit], NANOSECONDS[self.unit]
        # First in their unit: a time after the end of this axis may be before it, less the span.
        whole, rest = divmod((span // MICROSECOND) * 1_000, theirs)
        past, rest = minus(times, whole), rest // ours
        if theirs <= ours:
            return self.ceil(past, unit), np.zeros(len(times), dtype=bool)
        factor = theirs // ours
        beyond = past > (HIGHEST + rest) // factor
        at_end = ~beyond & (past > HIGHEST // factor)
        found = minus(self.ceil(past, unit), rest)
        found[at_end] = (past[at_end].astype(np.uint64) * factor - rest).astype(np.int64)
        return found, beyond

    def first_at_or_after(self, moment: datetime) -> int:
        """The first point of this axis that is not before a moment."""
        return int(self.ceil(np.array([micros_of(moment)]), "us")[0])

    def last_at_or_before(self, moment: datetime) -> int:
        """The last point of this axis that is not after a moment."""
        return int(self.floor(np.array([micros_of(moment)]), "us")[0])


def minus(times: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Times - length, saturating at the lowest int64."""
    if length > HIGHEST:
        return np.full_like(times, LOWEST)
    return np.where(times < LOWEST + length, LOWEST, times - length)


def micros(name: str, column: pa.Array | pa.ChunkedArray, where: str) -> pa.Int64Array:
    """Microseconds since 1970 UTC, the resolution of items, of timestamps or dates.

    Finer times are refused: of two rows of one microsecond the table could not say which is newer,
    and an older row would replace a newer one.

    Raises:
        ColumnTypeError: counts times that items cannot hold.
    """
    axis = Axis.from_type(column.type)
    values = axis.cast(column)
    ticks = values.fill_null(0).to_numpy(zero_copy_only=False)
    times = Axis("us").floor(ticks, axis.unit)
    if axis.unit == "ns" and (finer := np.count_nonzero(times * 1_000 != ticks)):
        raise ColumnTypeError(
            f"{where}: {finer:,} of {len(times):,} times in `{name}` have a part below a "
            "microsecond, which the online store does not hold. Round them, so that you choose "
            f"which of two rows is newer (pandas: `rows['{name}'].dt.floor('us')`)."
        )
    if len(times) and not (times.min() >= EARLIEST_US and times.max() <= LATEST_US):
        beyond = np.count_nonzero((times < EARLIEST_US) | (times > LATEST_US))
        raise ColumnTypeError(
            f"{where}: {beyond:,} of {len(times):,} times in `{name}` are not of the years 1 to "
            "9999. Check the unit of what they were made from."
        )
    return pa.array(times, pa.int64(), mask=np.asarray(values.is_null()))


def check_time(column: str, kind: pa.DataType, where: str) -> None:
    """Refuse a column that does not hold times.

    Raises:
        ColumnTypeError: names the column and the way out.
    """
    if pa.types.is_null(kind):
        raise ColumnTypeError(
            f"{where}: column `{column}` is null in all rows, so it has no type. Fill it with "
            "times, or give it a type of time."
        )
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        # Without a unit pandas takes numbers as nanoseconds, which is 1970 for all but these.
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        unit = "unit='s', " if is_number else ""
        of_numbers = " for seconds since 1970, `unit='ms'` for milliseconds" if is_number else ""
        raise ColumnTypeError(
            f"{where}: column `{column}` has type {kind}, not a timestamp or date. Parse it first "
            f"(pandas: `pd.to_datetime(frame['{column}'], {unit}utc=True)`{of_numbers}); text and "
            "plain numbers are not guessed at."
        )


def assume_utc(moment: datetime) -> datetime:
    """The moment; one without a zone is taken as UTC, as Feast does."""
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def micros_of(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a moment without a zone is taken as UTC."""
    return (assume_utc(moment) - EPOCH) // MICROSECOND


EARLIEST_US, LATEST_US = micros_of(EARLIEST), micros_of(LATEST)


def moment_of(micros: int) -> datetime:
    """The moment, in UTC, so many microseconds after 1970.

    Raises:
        OverflowError: a moment outside the years 1 to 9999.
    """
    return EPOCH + timedelta(microseconds=micros)


def has_mixed_times(cells: Collection[Any]) -> bool:
    """Whether Python's times stand beside other objects, or dates beside moments.

    Arrow takes the type of the first: it makes microseconds of a number of seconds, and cuts off
    the hours of a moment.
    """
    return _are_mixed(set(map(type, cells)), cells)


def _are_mixed(types: set[type], cells: Collection[Any]) -> bool:
    types = {kind for kind in types if kind.__name__ not in MISSING_TYPES}
    times = {kind for kind in types if issubclass(kind, (date, np.datetime64))}
    dates = {kind for kind in times if not issubclass(kind, (datetime, np.datetime64))}
    others = types - times
    if dates and dates != times:
        return True
    return bool(times and others) and any(
        type(cell) in others and not (isinstance(cell, float) and math.isnan(cell))
        for cell in cells
    )


def times_of_objects(cells: Collection[Any]) -> pa.Array | None:
    """Python's and NumPy's times as an array; None for what Arrow does right, and for no times.

    Arrow takes no days of NumPy's, no two of its units, and cuts off the nanoseconds of pandas'.

    Raises:
        TypeError: a mixture, see `has_mixed_times`.
        ValueError: a time beyond the years 1 to 9999, or of nanoseconds beyond 1677 to 2262.
    """
    types = set(map(type, cells))
    if _are_mixed(types, cells):
        raise TypeError
    of_numpy = any(issubclass(kind, np.datetime64) for kind in types)
    of_pandas = any(kind.__name__ == "Timestamp" for kind in types)
    # NaT's are no number.
    if not of_numpy and not (
        of_pandas and any(getattr(cell, "nanosecond", 0) > 0 for cell in cells)
    ):
        return None
    import pandas as pd

    moments = [None if pd.isna(cell) else pd.Timestamp(cell) for cell in cells]
    finer = [moment.nanosecond if moment is not None else 0 for moment in moments]
    zones = pa.array([moment and moment.to_pydatetime(warn=False) for moment in moments])
    if pa.types.is_null(zones.type):
        return pa.nulls(len(zones), pa.timestamp("us"))
    if not any(finer):
        return zones
    whole = [
        None if moment is None else 1_000 * micros_of(moment.to_pydatetime(warn=False)) + finer
        for moment, finer in zip(moments, finer, strict=True)
    ]
    try:
        return pa.array(whole, pa.int64()).cast(pa.timestamp("ns", zones.type.tz))
    except (pa.ArrowException, OverflowError):
        raise ValueError("times of nanoseconds beyond the years 1678 to 2261") from None


MISSING_TYPES = {"NoneType", "NaTType", "NAType"}
