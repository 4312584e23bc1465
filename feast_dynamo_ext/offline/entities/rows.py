"""Entity rows: what a training set is asked for, one row an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import EntityRowsError
from feast_dynamo_ext.offline.entities.tables import DEFAULT_EVENT_TIME, as_table
from feast_dynamo_ext.offline.keys import comparable
from feast_dynamo_ext.offline.times import EPOCH, MICROSECOND, Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

LOOK = {
    "memory": "how they were made",
    "files": "that the files hold what they should",
    "sql": "what the statement's WHERE leaves",
}


@dataclass(frozen=True)
class Origin:
    """Where entity rows come from.

    Attributes:
        kind: ``memory`` (given as an object), ``files``, ``sql``, or ``changes`` (none were given:
            every change of a range of time).
        text: the URI of the files, or the SQL; empty for the others.
        window: the first and the last moment of the range of the changes; None for the others.
    """

    kind: Literal["memory", "files", "sql", "changes"] = "memory"
    text: str = ""
    window: tuple[datetime, datetime] | None = None

    def __str__(self) -> str:
        return f" from {self.text}" if self.kind == "files" else ""


MEMORY = Origin()


@dataclass(frozen=True)
class EntityRows:
    """Checked entity rows.

    Attributes:
        table: the rows as given, all columns.
        event_time: name of the column that says at which moment each row asks.
        times: that column as int64 in `unit` since 1970 UTC.
        unit: ``s``, ``ms``, ``us`` or ``ns``.
        origin: where they come from.
    """

    table: pa.Table
    event_time: str
    times: NDArray[np.int64]
    unit: str
    origin: Origin = MEMORY

    @classmethod
    def of(cls, frame: Any, origin: Origin = MEMORY) -> EntityRows:
        """Check entity rows.

        Args:
            frame: rows in memory, in any of the forms of `as_table`: join keys, an event time, and
                any further columns.
            origin: where they come from, for messages. Only ``changes`` may be no rows.

        Raises:
            EntityRowsError: not rows, empty, no event time, a null in it, or columns that Arrow
                cannot hold.
            ColumnTypeError: the event time is not a timestamp.
        """
        table = as_table(frame)
        if not table.num_rows and origin.kind != "changes":
            raise EntityRowsError(
                f"The entity rows{origin} are empty, so there is nothing to join features to. "
                f"Check {LOOK[origin.kind]}."
            )
        event_time = _event_time_column(table.schema, origin)
        column = table.column(event_time)
        check_time(event_time, column.type, f"Entity rows{origin}")
        if column.null_count:
            raise EntityRowsError(
                f"Entity rows{origin}: {column.null_count:,} rows have no `{event_time}`; a "
                "point-in-time join needs one in each. Drop or fill them."
            )
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        times = column.cast(pa.int64()).to_numpy()
        return cls(table, event_time, times, column.type.unit, origin)

    @property
    def other_columns(self) -> list[str]:
        """Every column but the event time: join keys, and what else the rows carry."""
        return [name for name in self.table.column_names if name != self.event_time]

    def key(self, column: str, view: str) -> pa.ChunkedArray:
        """A join key's column, in the type that is compared.

        Raises:
            EntityRowsError: there is no such column, or a value in it that cannot be a key.
        """
        self.require([column], view)
        try:
            return comparable(self.table.column(column))
        except (pa.ArrowException, StopIteration) as error:
            raise EntityRowsError(
                f"Entity rows: join key `{column}` of feature view `{view}` has type "
                f"{self.table.column(column).type}, which cannot be compared exactly with the "
                f"source: {error}. Cast it to integers or text."
            ) from error

    def require(self, columns: Sequence[str], view: str) -> None:
        """Refuse entity rows that lack a join key.

        Raises:
            EntityRowsError: names the join key, the view and the columns that are there.
        """
        missing = [column for column in columns if column not in self.table.column_names]
        if missing:
            raise EntityRowsError(
                f"Entity rows lack the join key {missing} of feature view `{view}`; they have "
                f"{self.table.column_names}. Add it, or leave the view's features out."
            )

    def range(self) -> tuple[datetime, datetime]:
        """The first and last moment that is asked for, in microseconds, rounded outwards.

        Of changes the range that they are of, also where there are none.

        Raises:
            EntityRowsError: the year of one is not one of 1 to 9999.
        """
        if self.origin.window is not None:
            return self.origin.window
        ends = np.array([self.times.min(), self.times.max()])
        micros = Axis("us")
        try:
            first = EPOCH + int(micros.floor(ends, self.unit)[0]) * MICROSECOND
            last = EPOCH + int(micros.ceil(ends, self.unit)[1]) * MICROSECOND
        except OverflowError as error:
            raise EntityRowsError(
                f"Entity rows{self.origin}: a time in `{self.event_time}` is outside the years 1 "
                "to 9999. Check the unit of what they were made from."
            ) from error
        return first, last


def _event_time_column(schema: pa.Schema, origin: Origin) -> str:
    if DEFAULT_EVENT_TIME in schema.names:
        return DEFAULT_EVENT_TIME
    times: list[str] = [column.name for column in schema if pa.types.is_timestamp(column.type)]
    if len(times) != 1:
        raise EntityRowsError(
            f"Entity rows{origin} need a column `{DEFAULT_EVENT_TIME}`, or exactly one other "
            f"column of timestamps; they have {schema.names}, of which {times} are timestamps."
        )
    return times[0]
