"""What matching needs of a view's history: keys in comparable types, times as integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import comparable, compared_type, family
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.timestamps import LOWEST, Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import ViewPlan


T = TypeVar("T")

TOGETHER = 1 << 20
"""Rows of a batch whose keys are no integers."""

# A missing created time is older than any.
CREATED = "coalesce(h.c, -9223372036854775808)"


@dataclass(frozen=True)
class History:
    """A view's history as the narrow columns k0, k1 ..., t, c and r.

    Attributes:
        view: which columns are keys and times.
        source: the history.
        axis: of t.
        created_axis: of c; None where there is no created time.
        scanned: called with numbers of rows as they are read.
    """

    view: ViewPlan
    source: ParquetSource
    axis: Axis
    created_axis: Axis | None
    scanned: Callable[[int], object] | None = None

    @classmethod
    def from_view(cls, view: ViewPlan, source: ParquetSource) -> History:
        """The history of a view.

        Raises:
            ColumnTypeError: a column that is no time, or cannot be a key.
        """
        where = f"Feature view `{view.view}`, source {source.uri}"
        schema = source.schema
        event_type = schema.field(view.event_time).type
        check_time(view.event_time, event_type, where)
        created_axis = None
        if view.created_time:
            created_type = schema.field(view.created_time).type
            # Of a column without any value, files do not say what its values would be.
            if not pa.types.is_null(created_type):
                check_time(view.created_time, created_type, where)
            created_axis = Axis.from_type(created_type)
        for _, column in view.keys:
            if family(schema.field(column).type) is None:
                raise ColumnTypeError(
                    f"{where}: join key `{column}` has type {schema.field(column).type}, which "
                    "cannot be compared exactly. Use integers or text."
                )
        return cls(view, source, Axis.from_type(event_type, view.ttl), created_axis)

    def reader(self, failures: list[Exception]) -> pa.RecordBatchReader:
        """The narrow columns of all rows; what reading raises is also put into `failures`."""
        empty = pa.RecordBatch.from_pylist([], self.source.schema_of(self.view.narrow_columns))
        schema = self._narrow(empty).schema.append(pa.field(ROW, pa.int64()))
        return pa.RecordBatchReader.from_batches(schema, self._batches(failures))

    def _batches(self, failures: list[Exception]) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.source.scan(self.view.narrow_columns, self._narrow):
                yield batch
                if self.scanned is not None:
                    self.scanned(batch.num_rows)
        except Exception as error:
            failures.append(error)
            raise

    def each(self, work: Callable[[pa.RecordBatch, int], T], threads: int) -> Iterator[T]:
        """What a function makes of the narrow columns; see `ParquetSource.each`."""
        # Arrow makes its hash table of the entity rows' keys anew for each batch.
        types = [self.source.schema.field(column).type for _, column in self.view.keys]
        together = 0 if all(compared_type(kind) == pa.int64() for kind in types) else TOGETHER
        return self.source.each(
            self.view.narrow_columns,
            lambda rows, at: work(self._narrow(rows), at),
            threads,
            together=together,
        )

    def without_created(self) -> History:
        """The same with all created times null, which are not read."""
        return replace(self, view=replace(self.view, created_time=None), created_axis=None)

    def created(self, positions: NDArray[np.int64], threads: int) -> NDArray[np.int64]:
        """The created times at ascending positions; the lowest where there is none."""
        if self.view.created_time is None or self.created_axis is None:
            return np.full(len(positions), LOWEST)
        columns = [self.view.created_time]
        rows = self.source.fetch(columns, positions, threads)
        column = pa.Table.from_batches(rows, self.source.schema_of(columns)).column(0)
        times: NDArray[np.int64] = self.created_axis.cast(column).fill_null(LOWEST).to_numpy()
        return times

    def event_range(self, start: datetime, end: datetime) -> tuple[int, int]:
        """The least and the greatest t that a row between start and end can have."""
        first, last = self.axis.first_at_or_after(start), self.axis.last_at_or_before(end)
        least, greatest = self._limits(self.view.event_time, self.axis) or (first, last)
        return max(first, least), min(last, greatest)

    def created_range(self) -> tuple[int, int] | None:
        """The least and the greatest c; None where the files do not say them."""
        if self.view.created_time is None or self.created_axis is None:
            return 0, 0
        return self._limits(self.view.created_time, self.created_axis)

    def _limits(self, column: str, axis: Axis) -> tuple[int, int] | None:
        limits = self.source.limits(column)
        if limits is None:
            return None
        numbers = axis.cast(limits).to_numpy()
        return (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)

    def between(self, start: datetime | None, end: datetime | None) -> str:
        """The condition start <= t <= end."""
        bounds = []
        if start is not None:
            bounds.append(f"t >= {self.axis.first_at_or_after(start)}")
        if end is not None:
            bounds.append(f"t <= {self.axis.last_at_or_before(end)}")
        return " AND ".join(bounds) or "true"

    def _narrow(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [self._key(batch, column) for _, column in self.view.keys]
        if not columns:
            columns = [pa.array(np.zeros(batch.num_rows, dtype=np.int64))]
        columns.append(self._event_time(batch.column(self.view.event_time)))
        if self.created_axis is not None:
            columns.append(self.created_axis.cast(batch.column(self.view.created_time)))
        else:
            columns.append(pa.nulls(batch.num_rows, pa.int64()))
        return pa.RecordBatch.from_arrays(columns, names=[*key_names(self.view), "t", "c"])

    def _event_time(self, times: pa.Array) -> pa.Array:
        try:
            return self.axis.cast(times)
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"Feature view `{self.view.view}`, source {self.source.uri}: column "
                f"`{self.view.event_time}` holds a time beyond what {self.axis.unit} can say, "
                f"which the view's ttl is told in: {error}. Correct that time, or give the view a "
                "ttl of whole seconds."
            ) from error

    def _key(self, batch: pa.RecordBatch, column: str) -> pa.Array:
        try:
            return comparable(batch.column(column))
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"Feature view `{self.view.view}`, source {self.source.uri}: join key `{column}` "
                f"holds a value that cannot be compared exactly: {error}. Use 64-bit integers or "
                "text."
            ) from error


def key_names(view: ViewPlan) -> list[str]:
    """Names of the key columns; a view without entities joins on a constant one."""
    return [f"k{index}" for index in range(max(1, len(view.keys)))]
