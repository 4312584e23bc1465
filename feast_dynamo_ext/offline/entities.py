"""Entity rows: what a training set is asked for, one row an example."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from feast_dynamo_ext.errors import EntityRowsError
from feast_dynamo_ext.offline.keys import comparable
from feast_dynamo_ext.offline.times import check_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

DEFAULT_EVENT_TIME = "event_timestamp"


@dataclass(frozen=True)
class EntityRows:
    """Checked entity rows.

    Attributes:
        table: the rows as given, all columns.
        event_time: name of the column that says at which moment each row asks.
        times: that column as int64 in `unit` since 1970 UTC.
        unit: ``s``, ``ms``, ``us`` or ``ns``.
    """

    table: pa.Table
    event_time: str
    times: NDArray[np.int64]
    unit: str

    @classmethod
    def of(cls, frame: Any) -> EntityRows:
        """Check entity rows.

        Args:
            frame: a pandas DataFrame with join keys, an event time, and any further columns.

        Raises:
            EntityRowsError: not a DataFrame, empty, no event time, a null in it, or columns that
                Arrow cannot hold.
            ColumnTypeError: the event time is not a timestamp.
        """
        if not isinstance(frame, pd.DataFrame):
            raise EntityRowsError(
                f"Entity rows must be a pandas DataFrame, not {type(frame).__name__}. For SQL or "
                "a path, load it first, for example with `pandas.read_parquet`."
            )
        if frame.empty:
            raise EntityRowsError(
                "The entity rows are empty, so there is nothing to join features to. Check how "
                "the DataFrame was made."
            )
        event_time = _event_time_column(frame)
        table = _arrow(frame)
        column = table.column(event_time)
        check_time(event_time, column.type, "Entity rows")
        if column.null_count:
            raise EntityRowsError(
                f"Entity rows: {column.null_count:,} rows have no `{event_time}`; a point-in-time "
                "join needs one in each. Drop or fill them."
            )
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        times = column.cast(pa.int64()).to_numpy()
        return cls(table, event_time, times, column.type.unit)

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
        """The first and last moment that is asked for."""
        bounds = pa.array([self.times.min(), self.times.max()]).cast(
            pa.timestamp(self.unit, tz="UTC")
        )
        first, last = bounds.cast(pa.timestamp("us", tz="UTC"), safe=False).to_pylist()
        return first.astimezone(timezone.utc), last.astimezone(timezone.utc)


def _event_time_column(frame: pd.DataFrame) -> str:
    if DEFAULT_EVENT_TIME in frame.columns:
        return DEFAULT_EVENT_TIME
    times = [
        str(name)
        for name, kind in frame.dtypes.items()
        if pd.api.types.is_datetime64_any_dtype(kind)
    ]
    if len(times) != 1:
        raise EntityRowsError(
            f"Entity rows need a column `{DEFAULT_EVENT_TIME}`, or exactly one other column of "
            f"timestamps; they have {list(frame.columns)}, of which {times} are timestamps."
        )
    return times[0]


def _arrow(frame: pd.DataFrame) -> pa.Table:
    doubled = frame.columns[frame.columns.duplicated()].tolist()
    if doubled:
        raise EntityRowsError(f"Entity rows have several columns named {doubled}. Rename them.")
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise EntityRowsError(
            f"Entity rows: a column cannot be held by Arrow: {error}. Give each column one type."
        ) from error
