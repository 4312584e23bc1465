"""What a plan is run on: entity rows, history, and both as the narrow columns that are matched.

Types stay as they are. Only Arrow's view layouts (`string_view`, which Polars exports) become the
plain ones, since neither Arrow's `take` nor its Parquet writer knows them. For matching, keys are
brought to one type a family and times to integers, on both sides alike; see `timestamps`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    check_supported,
    is_text,
    is_uuid,
    one_array,
    without_dictionary,
    without_view_layouts,
)
from feast_dynamo_ext.columns import PUT
from feast_dynamo_ext.errors import ColumnTypeError, ConfigError, EntityRowsError
from feast_dynamo_ext.key_types import (
    check_joinable,
    check_key_type,
    check_keys,
    comparable,
    compared_type,
    family,
    has_other_keys,
)
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.retrieval.plan import without_eras
from feast_dynamo_ext.retrieval.spark.relations import collected, is_spark_frame
from feast_dynamo_ext.timestamps import (
    EPOCH,
    HIGHEST,
    LOWEST,
    MICROSECOND,
    Axis,
    check_time,
    times_of_objects,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import RowsPlan, ViewPlan


T = TypeVar("T")

DEFAULT_EVENT_TIME = "event_timestamp"

NOT_HELD = (pa.ArrowException, TypeError, OverflowError)
"""What Arrow raises for objects that it has no type for."""

TOGETHER = 1 << 20
"""Rows of a batch whose keys are no integers."""

FORMS = (
    "a pandas DataFrame, an Arrow table, reader or dataset, a Polars or Spark DataFrame, a "
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
    return _without_views(table)


def reject_duplicate_columns(names: Sequence[str]) -> None:
    """Refuse columns of one name.

    Raises:
        EntityRowsError: names them.
    """
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise EntityRowsError(f"Entity rows have several columns named {repeated}. Rename them.")


def _pandas(frame: pd.DataFrame) -> pa.Table:
    reject_duplicate_columns(list(frame.columns))
    if DEFAULT_EVENT_TIME in frame.index.names and DEFAULT_EVENT_TIME not in frame.columns:
        raise EntityRowsError(
            f"Entity rows: `{DEFAULT_EVENT_TIME}` is an index of the DataFrame, not a column. "
            "Make columns of the index with `frame.reset_index()`."
        )
    try:
        for name in frame.select_dtypes(object):
            times = _object_times(name, frame[name].to_numpy())
            if times is not None:
                frame = frame.copy(deep=False)
                of_arrow = pd.arrays.ArrowExtensionArray(times)
                frame[name] = pd.Series(of_arrow, index=frame.index)
        return pa.Table.from_pandas(frame, preserve_index=False)
    except NOT_HELD:
        # The words of Arrow show the value.
        raise EntityRowsError(
            f"Entity rows: {_not_held(frame)}. Give each column one type; numbers of more than 64 "
            "bits as `decimal.Decimal` or text."
        ) from None


def _object_times(name: str, cells: NDArray[np.object_]) -> pa.Array | None:
    try:
        return times_of_objects(cells)
    except TypeError:
        raise EntityRowsError(
            f"Entity rows: column `{name}` holds times beside other objects, or dates beside "
            "times of day. Give the column one type, for example with `pd.to_datetime`."
        ) from None
    except ValueError:
        raise EntityRowsError(
            f"Entity rows: column `{name}` holds a time beyond the years 1 to 9999, or of "
            "nanoseconds beyond 1678 to 2261. Correct it, or round the column to microseconds."
        ) from None


def _not_held(frame: pd.DataFrame) -> str:
    """The column that Arrow refuses, which its errors do not always name, and what it holds."""
    for at, name in enumerate(frame.columns):
        column = frame.iloc[:, at]
        if not _is_held(column):
            types = sorted({type(cell).__name__ for cell in column if cell is not None})
            return f"column `{name}` cannot be held by Arrow: it has {' and '.join(types)}"
    return "a column cannot be held by Arrow"


def _is_held(column: pd.Series) -> bool:
    try:
        pa.Array.from_pandas(column)
    except NOT_HELD:
        return False
    return True


def _arrow(frame: Any) -> pa.Table:
    try:
        if isinstance(frame, ds.Dataset):
            return frame.to_table()
        if is_spark_frame(frame):
            return collected(frame)
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


def _without_views(table: pa.Table) -> pa.Table:
    schema = without_view_layouts(table.schema)
    return table if schema.equals(table.schema) else table.cast(schema)


LOOK = {
    "memory": "how they were made",
    "files": "that the files hold what they should",
    "sql": "what the statement's WHERE leaves",
}


@dataclass(frozen=True)
class Origin:
    """Where entity rows come from.

    Attributes:
        kind: ``memory`` (an object), ``files``, ``sql``, or ``changes`` (there were none: every
            change of a range of time).
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
        table: the rows, all columns.
        event_time: name of the column that says of which moment each row is.
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
        return cls.of_checked(table, event_time, origin)

    @classmethod
    def of_checked(cls, table: pa.Table, event_time: str, origin: Origin = MEMORY) -> EntityRows:
        """Entity rows that were checked before."""
        column = table.column(event_time)
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
        """The first and last moment of the rows, in microseconds, rounded outwards.

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


def checked_source(view: ViewPlan, source: ParquetSource) -> ParquetSource:
    """The source with all columns that a view needs.

    Raises:
        ColumnNotFoundError: no file has one of them.
        ColumnTypeError: a folder's name is no value of the type that the view declares, or a
            join key's column has a type of which no value is a key of its declared type.
        UnsupportedTypeError: a feature's column has a type that Feast cannot carry.
    """
    wanted = f"Feature view `{view.view}`"
    times = [view.event_time, *([view.created_time] if view.created_time else [])]
    names = list(dict.fromkeys([*view.narrow_columns, *view.feature_columns]))
    declared = {name: view.folder_types[name] for name in names if name in view.folder_types}
    complete = source.with_folder_types(declared).with_columns(names, wanted, times)
    for column in view.feature_columns:
        check_supported(column, complete.schema.field(column).type, wanted)
    for column, kind in view.declared_keys:
        with _keys_of(view, source, column, kind):
            check_key_type(complete.schema.field(column).type, kind)
    return complete


def with_tombstones(view: ViewPlan, source: ParquetSource) -> ViewPlan:
    """A plan as the rows of a source need it: without tombstones where there are none.

    Args:
        view: the plan.
        source: all files of a snapshot; each says in the table's log whether it has puts alone.

    Raises:
        ConfigError: deletions are to end features of an entity that has several items.
    """
    rule = view.tombstones
    if rule is None:
        return view
    if view.derived is not None:
        return _of_items(view, source)
    keys, items = {column for _, column in view.keys}, source.item_keys
    if rule.is_applied and items and keys != set(items):
        raise ConfigError(
            f"Feature view `{view.view}` has the join keys {sorted(keys)}, but an item of the "
            f"table that its source captures is known by {list(items)}: deleting one of several "
            'items would end the features of their entity. Say `deletes="ignore"` in the view\'s '
            "`ViewSettings`, or give it the table's keys."
        )
    if source.holds_only(rule.change, PUT):
        return replace(view, tombstones=None)
    return view


def _of_items(view: ViewPlan, source: ParquetSource) -> ViewPlan:
    """A plan over events that are items: these are told apart by the table's key by default."""
    if view.derived is None or view.derived.tie_breaker:
        return view
    beside = {view.event_time, *(theirs for _, theirs in view.keys)}
    breaker = tuple((name, ValueType.UNKNOWN) for name in source.item_keys if name not in beside)
    columns = dict(zip(view.feature_columns, view.kinds, strict=True))
    more = [name for name, _ in breaker if name not in columns]
    return replace(
        view,
        features=(*view.features, *((name, name) for name in more)),
        kinds=(*view.kinds, *(ValueType.UNKNOWN for _ in more)),
        derived=replace(view.derived, tie_breaker=breaker),
    )


def of_rows(plan: RowsPlan, source: ParquetSource) -> ViewPlan:
    """The columns of a plan of rows, as the rows of a source need it.

    Deletions count as of the end of the range: of the newest rows where their keys are those of
    items, of all rows always. The keys are then those of items.
    """
    view, items = plan.view, source.item_keys
    rule = view.tombstones
    if rule is None or source.holds_only(rule.change, PUT):
        return replace(view, tombstones=None)
    if not items or (plan.newest and {column for _, column in view.keys} != set(items)):
        return without_eras(view)
    if plan.newest or not rule.is_applied:
        return view
    return replace(view, keys=tuple((name, name) for name in items), key_kinds=())


@contextlib.contextmanager
def _keys_of(
    view: ViewPlan, source: ParquetSource, column: str, kind: ValueType
) -> Iterator[None]:
    """Names the column where its type, or a value, is no key of its declared type."""
    try:
        yield
    except ValueError as error:
        raise ColumnTypeError(
            f"Feature view `{view.view}`, source {source.uri}: join key `{column}` is declared "
            f"as {kind.name}, and could not be looked up online: {error}. Correct the column, or "
            "the key's type in the entity and the view."
        ) from error


@dataclass(frozen=True)
class EraKeys:
    """The eras of rows and of entity rows, 0 where nothing is said; see `eras`.

    Attributes:
        rows: ascending positions of the rows of later eras.
        numbers: the era of each of them.
        entity: the era of each entity row.
    """

    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    entity: NDArray[np.int64]

    def of_rows(self, start: int, count: int) -> pa.Array:
        """The eras of rows from a position on."""
        found = np.zeros(count, dtype=np.int64)
        first, end = np.searchsorted(self.rows, [start, start + count])
        found[self.rows[first:end] - start] = self.numbers[first:end]
        return pa.array(found)


@dataclass(frozen=True)
class History:
    """A view's history as narrow columns: one side of the as-of join.

    They are the keys k0, k1 ..., the event time t, the created time c, and the position. Rows that
    do not count, as tombstones, have no t.

    Attributes:
        view: which columns are keys and times.
        source: the history.
        axis: of t.
        created_axis: of c; None where there is no created time.
        scanned: called with numbers of rows as they are read.
        eras: a further key, where deletions end what an entity sees.
        hidden: ascending positions of rows that do not count.
        left_out: called with numbers of rows that have an event time and do not count.
    """

    view: ViewPlan
    source: ParquetSource
    axis: Axis
    created_axis: Axis | None
    scanned: Callable[[int], object] | None = None
    eras: EraKeys | None = None
    hidden: NDArray[np.int64] | None = None
    left_out: Callable[[int], object] | None = None

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
        """The narrow columns of all rows, for DuckDB; see `texts_as_bytes`.

        What reading raises is also put into `failures`.
        """
        return self._reader(self.view.narrow_columns, self._narrow, failures)

    def changes(self, failures: list[Exception], *, of_items: bool) -> pa.RecordBatchReader:
        """What `eras` needs of all rows, for DuckDB: k0, k1 ..., t, w, p, q and the position.

        They are keys, event time, the time of writing, 1 for a put and 0 for what ends an item (or
        null for what does neither), and the sequence.

        Args:
            failures: what reading raises.
            of_items: whether keys are compared with each other alone, and no join keys.
        """
        narrow = partial(self._change, of_items=of_items)
        return self._reader([*self._change_columns], narrow, failures)

    def _reader(
        self,
        columns: list[str],
        narrow: Callable[[pa.RecordBatch, int], pa.RecordBatch],
        failures: list[Exception],
    ) -> pa.RecordBatchReader:
        empty = pa.RecordBatch.from_pylist([], self.source.schema_of(columns))
        schema = _texts_as_bytes(narrow(empty, 0)).schema.append(pa.field(ROW, pa.int64()))
        return pa.RecordBatchReader.from_batches(schema, self._batches(columns, narrow, failures))

    def _batches(
        self,
        columns: list[str],
        narrow: Callable[[pa.RecordBatch, int], pa.RecordBatch],
        failures: list[Exception],
    ) -> Iterator[pa.RecordBatch]:
        start = 0

        def shaped(batch: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal start
            start += batch.num_rows
            return _texts_as_bytes(narrow(batch, start - batch.num_rows))

        try:
            for batch in self.source.scan(columns, shaped):
                yield batch
                if self.scanned is not None:
                    self.scanned(batch.num_rows)
        except Exception as error:
            failures.append(error)
            raise

    def each(
        self, work: Callable[[pa.RecordBatch, int], T], threads: int, beside: Sequence[str] = ()
    ) -> Iterator[T]:
        """What a function makes of the narrow columns; see `ParquetSource.each`.

        Args:
            work: the function.
            threads: how many threads read and work.
            beside: columns of the source that follow the narrow ones, as they are.
        """
        narrow = self.view.narrow_columns

        def given(rows: pa.RecordBatch, at: int) -> T:
            columns = self._narrow(rows, at)
            for number, name in enumerate(beside):
                columns = columns.append_column(f"v{number}", rows.column(name))
            return work(columns, at)

        # Arrow makes its hash table of the entity rows' keys anew for each batch.
        types = [self.source.schema.field(column).type for _, column in self.view.keys]
        together = 0 if all(compared_type(kind) == pa.int64() for kind in types) else TOGETHER
        columns = list(dict.fromkeys([*narrow, *beside]))
        return self.source.each(columns, given, threads, together=together)

    def without_created(self) -> History:
        """This history with all created times null, which are not read."""
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

    def _keys(self, batch: pa.RecordBatch) -> list[pa.Array]:
        columns = [self._key(batch, *key) for key in self.view.declared_keys]
        return columns or [pa.array(np.zeros(batch.num_rows, dtype=np.int64))]

    def _narrow(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        columns = self._keys(batch)
        if self.eras is not None:
            columns.append(self.eras.of_rows(start, batch.num_rows))
        columns.append(self._counted(batch, start))
        if self.created_axis is not None:
            columns.append(self.created_axis.cast(batch.column(self.view.created_time)))
        else:
            columns.append(pa.nulls(batch.num_rows, pa.int64()))
        names = key_names(self.view)[: len(columns) - 2]
        return pa.RecordBatch.from_arrays(columns, names=[*names, "t", "c"])

    def _counted(self, batch: pa.RecordBatch, start: int) -> pa.Array:
        """Event times, null where a row does not count."""
        found = times = self._event_time(batch.column(self.view.event_time))
        rule = self.view.tombstones
        if rule is not None:
            is_put = pc.equal(batch.column(rule.change), PUT)
            found = pc.if_else(is_put, times, pa.scalar(None, times.type))
        if self.hidden is not None:
            found = _without(found, self.hidden, start)
        if self.left_out is not None:
            self.left_out(found.null_count - times.null_count)
        return found

    @property
    def _change_columns(self) -> dict[str, None]:
        view, rule = self.view, self.view.tombstones
        keys = (column for _, column in view.keys)
        written = [rule.written, rule.change] if rule else []
        return dict.fromkeys([*keys, view.event_time, *written, *sorted(self.source.internal)])

    def _change(self, batch: pa.RecordBatch, _: int, *, of_items: bool) -> pa.RecordBatch:
        rule = self.view.tombstones
        if rule is None:
            raise ValueError("a history without tombstones has no changes of its items")
        columns = self._item_keys(batch) if of_items else self._keys(batch)
        change, count = batch.column(rule.change), batch.num_rows
        ends = pc.is_in(change, pa.array(sorted(rule.ends), change.type))
        put, end = (pa.scalar(number, pa.int8()) for number in (1, 0))
        kinds = pc.case_when(pc.make_struct(pc.equal(change, PUT), ends), put, end)
        written = self.written_axis.cast(batch.column(rule.written)).fill_null(LOWEST)
        sequence = pa.array(np.full(count, LOWEST))
        for name in self.source.internal:
            sequence = batch.column(name).cast(pa.int64()).fill_null(LOWEST)
        columns += [self._event_time(batch.column(self.view.event_time)), written, kinds, sequence]
        names = key_names(self.view)[: len(columns) - 4]
        return pa.RecordBatch.from_arrays(columns, names=[*names, "t", "w", "p", "q"])

    def _item_keys(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Keys of items; times with all their digits, of which join keys have whole seconds."""
        return [
            batch.column(column).cast(pa.int64())
            if pa.types.is_timestamp(batch.schema.field(column).type)
            else self._key(batch, column, kind)
            for column, kind in self.view.declared_keys
        ]

    @property
    def written_axis(self) -> Axis:
        """Of the times of writing."""
        rule = self.view.tombstones
        if rule is None:
            raise ValueError("a history without tombstones has no times of writing")
        return Axis.from_type(self.source.schema.field(rule.written).type)

    def _event_time(self, times: pa.Array) -> pa.Array:
        try:
            return self.axis.cast(times)
        except pa.ArrowException:
            # Arrow's words show the value.
            raise ColumnTypeError(
                f"Feature view `{self.view.view}`, source {self.source.uri}: column "
                f"`{self.view.event_time}` holds a time beyond what {self.axis.unit} can say, "
                "the unit of the view's ttl. Correct that time, or give the view a ttl of whole "
                "seconds."
            ) from None

    def _key(self, batch: pa.RecordBatch, column: str, kind: ValueType) -> pa.Array:
        if has_other_keys(batch.schema.field(column).type, kind):
            with _keys_of(self.view, self.source, column, kind):
                check_keys(batch.column(column), kind)
        try:
            return comparable(batch.column(column))
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"Feature view `{self.view.view}`, source {self.source.uri}: join key `{column}` "
                f"holds a value that cannot be compared exactly: {error}. Use 64-bit integers or "
                "text."
            ) from error


def _without(times: pa.Array, hidden: NDArray[np.int64], start: int) -> pa.Array:
    """Times, null at hidden positions."""
    first, end = np.searchsorted(hidden, [start, start + len(times)])
    if first == end:
        return times
    is_hidden = np.zeros(len(times), dtype=bool)
    is_hidden[hidden[first:end] - start] = True
    return pc.if_else(pa.array(is_hidden), pa.scalar(None, times.type), times)


def _texts_as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [texts_as_bytes(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def texts_as_bytes(column: pa.Array) -> pa.Array:
    """Texts as their bytes, which are equal where they are; any other column as it is.

    DuckDB refuses a text that is not UTF-8, which files may hold.
    """
    return column.cast(pa.binary()) if pa.types.is_string(column.type) else column


def key_names(view: ViewPlan) -> list[str]:
    """Names of the key columns; a view without entities joins on a constant one.

    The last is the era, where deletions end what an entity sees.
    """
    return [f"k{index}" for index in range(max(1, len(view.keys)) + view.has_eras)]


@dataclass(frozen=True)
class MatchInput:
    """Entity rows as narrow columns, one entry a row: the other side of the as-of join.

    Attributes:
        keys: columns of join keys, in the types that are compared.
        latest: the last event time that is seen.
        earliest: the first event time that is seen, by the ttl.
        known: the last created time that is seen; None where created time does not count.
        times: the entity rows' own times, in whatever unit: all of these ascend with them.
        blind: rows that see nothing, since all that they would see is after the end of the axis.
        order: equal for what puts the same entity rows in the same order.
    """

    keys: tuple[pa.Array, ...]
    latest: NDArray[np.int64]
    earliest: NDArray[np.int64]
    known: NDArray[np.int64] | None
    times: NDArray[np.int64]
    blind: NDArray[np.bool_]
    order: tuple[Any, ...] = ()

    @classmethod
    def from_entities(
        cls, entities: EntityRows, history: History, *, created_by_entity_time: bool
    ) -> MatchInput:
        """Entity rows as they are compared with a history.

        Raises:
            EntityRowsError: a join key is missing or cannot be compared with the source's.
            ColumnTypeError: the source's column cannot be a key.
        """
        view, axis = history.view, history.axis
        entities.require([column for column, _ in view.keys], view.view)
        stored = history.source.schema
        keys = [
            one_array(entity_key(entities, view, ours, theirs, stored.field(theirs).type))
            for ours, theirs in view.keys
        ]
        if not keys:
            keys.append(pa.array(np.zeros(len(entities.times), dtype=np.int64)))
        latest = axis.floor(entities.times, entities.unit)
        earliest, beyond = np.full(len(latest), LOWEST), np.zeros(len(latest), dtype=bool)
        if view.ttl:
            earliest, beyond = axis.ago(entities.times, entities.unit, view.ttl)
            latest[beyond], earliest[beyond] = LOWEST, HIGHEST
        known = None
        if created_by_entity_time and history.created_axis is not None:
            known = history.created_axis.floor(entities.times, entities.unit)
        types = tuple((ours, key.type) for (ours, _), key in zip(view.keys, keys, strict=False))
        # Entity rows of one history are in its eras, and in no other's.
        eras = id(history.eras) if history.eras is not None else None
        if history.eras is not None:
            keys.append(pa.array(history.eras.entity))
        order = axis, types, view.ttl if beyond.any() else None, eras
        return cls(tuple(keys), latest, earliest, known, entities.times, beyond, order)

    def table(self) -> pa.Table:
        """The columns k0, k1 ..., hi, lo, known (if it counts) and r, their row; see `sql`.

        Keys are as `History.reader` has them.
        """
        columns: dict[str, Any] = {
            f"k{index}": texts_as_bytes(key) for index, key in enumerate(self.keys)
        }
        columns |= {"hi": self.latest, "lo": self.earliest}
        if self.known is not None:
            columns["known"] = self.known
        columns["r"] = np.arange(len(self.latest), dtype=np.int64)
        return pa.table(columns)


def entity_key(
    entities: EntityRows, view: ViewPlan, ours: str, theirs: str, stored: pa.DataType
) -> pa.Array | pa.ChunkedArray:
    """A join key of the entity rows as it is compared with a source's column.

    Args:
        entities: the entity rows.
        view: the view, which says what its keys are declared as.
        ours: the entity rows' column.
        theirs: the source's column.
        stored: its type.

    Raises:
        EntityRowsError: there is no such column, or it cannot be compared with the source's.
        ColumnTypeError: the source's column cannot be a key.
    """
    entities.require([ours], view.view)
    kind = entities.table.column(ours).type
    check_joinable(ours, kind, theirs, stored)
    if pa.types.is_null(kind):
        return pa.nulls(len(entities.times), compared_type(stored))
    column = entities.key(ours, view.view)
    declared = dict(view.declared_keys)[theirs]
    given = entities.table.column(ours)
    if has_other_keys(kind, declared):
        try:
            check_keys(one_array(given), declared)
        except ValueError as error:
            raise EntityRowsError(
                f"Feature view `{view.view}`: join key `{ours}` of the entity rows is declared as "
                f"{declared.name}, and no row of the view has such a key: {error}. Correct them, "
                "or take these rows out."
            ) from None
    if is_uuid(without_dictionary(stored)) and is_text(without_dictionary(kind)):
        return pc.ascii_lower(column)  # a UUID has one text, but some write its digits in capitals
    return column
