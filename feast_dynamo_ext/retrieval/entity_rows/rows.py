"""Entity rows: one row an example, in memory as an Arrow table, wherever they came from.

Types stay as they are. Only Arrow's view layouts (`string_view`, which Polars exports) become the
plain ones, since neither Arrow's `take` nor its Parquet writer knows them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from feast_dynamo_ext.arrow_types import comparable
from feast_dynamo_ext.errors import EntityRowsError
from feast_dynamo_ext.timestamps import EPOCH, MICROSECOND, Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray


DEFAULT_EVENT_TIME = "event_timestamp"

PLAIN = (
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary_view, pa.binary()),
)

FORMS = (
    "a pandas DataFrame, an Arrow table, reader or dataset, a Polars DataFrame or LazyFrame, a "
    "path or s3:// URI of Parquet or CSV, SQL that begins with SELECT, WITH or FROM, or None with "
    "`start_date` and `end_date`"
)


def as_table(frame: Any) -> pa.Table:
    """Rows in memory as an Arrow table.

    Args:
        frame: a pandas DataFrame; an Arrow table, record batch, reader or dataset; a Polars
            DataFrame or LazyFrame; or another object with Arrow's PyCapsule interface.

    Raises:
        EntityRowsError: none of these, several columns of one name, or a column that Arrow cannot
            hold.
    """
    table = _pandas(frame) if isinstance(frame, pd.DataFrame) else _arrow(frame)
    reject_duplicate_columns(table.column_names)
    return _plain(table)


def reject_duplicate_columns(names: Sequence[str]) -> None:
    """Refuse columns of one name.

    Raises:
        EntityRowsError: names them.
    """
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise EntityRowsError(f"Entity rows have several columns named {doubled}. Rename them.")


def _pandas(frame: pd.DataFrame) -> pa.Table:
    reject_duplicate_columns(list(frame.columns))
    if DEFAULT_EVENT_TIME in frame.index.names and DEFAULT_EVENT_TIME not in frame.columns:
        raise EntityRowsError(
            f"Entity rows: `{DEFAULT_EVENT_TIME}` is an index of the DataFrame, not a column. "
            "Make columns of the index with `frame.reset_index()`."
        )
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise EntityRowsError(
            f"Entity rows: a column cannot be held by Arrow: {error}. Give each column one type."
        ) from error


def _arrow(frame: Any) -> pa.Table:
    try:
        if isinstance(frame, ds.Dataset):
            return frame.to_table()
        if not _exports_arrow(frame) and callable(getattr(frame, "collect", None)):
            frame = frame.collect()  # a Polars LazyFrame
        if _exports_arrow(frame):
            return pa.table(frame)
    except (pa.ArrowException, OSError) as error:
        raise EntityRowsError(
            f"Entity rows: reading the {type(frame).__name__} failed: {error}. Check what it "
            "reads from."
        ) from error
    raise EntityRowsError(f"Entity rows must be {FORMS}, not {type(frame).__name__}.")


def _exports_arrow(frame: Any) -> bool:
    # A class has the method too, but nothing to export.
    return not isinstance(frame, type) and any(
        hasattr(frame, name) for name in ("__arrow_c_stream__", "__arrow_c_array__")
    )


def _plain(table: pa.Table) -> pa.Table:
    schema = pa.schema(
        [column.with_type(_plain_type(column.type)) for column in table.schema],
        metadata=table.schema.metadata,
    )
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    for matches, plain in PLAIN:
        if matches(kind):
            return plain
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain_type(kind.value_type), kind.ordered)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return kind


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
    def from_frame(cls, frame: Any, origin: Origin = MEMORY) -> EntityRows:
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
