"""The newest row of each key of a view's history, batch by batch, encoded for the table."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.columns import (
    WRITTEN,
    join_keys,
    stored_names,
    stored_times,
    tombstones_of,
)
from feast_dynamo_ext.declared import declared_as
from feast_dynamo_ext.dynamo.encoding.marks import cohort_texts
from feast_dynamo_ext.dynamo.encoding.requests import (
    Deletions,
    EncodedRows,
    refuse_too_large,
)
from feast_dynamo_ext.dynamo.encoding.sort_keys import EventColumns
from feast_dynamo_ext.dynamo.encoding.values import encode_values
from feast_dynamo_ext.dynamo.keys import encode_keys
from feast_dynamo_ext.dynamo.layouts.packed import RowSchema
from feast_dynamo_ext.dynamo.layouts.series import cohort_attributes
from feast_dynamo_ext.dynamo.views import kept_seconds, ttl_seconds
from feast_dynamo_ext.dynamo.write import latest_event_us, refuse_future
from feast_dynamo_ext.errors import OfflineStoreError, WindowError
from feast_dynamo_ext.materialize.checkpoint import Position, source_fingerprint
from feast_dynamo_ext.materialize.spool import Spool, bucket_count
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore, engine_for
from feast_dynamo_ext.online_store import write_order
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.changed_events import changed_events
from feast_dynamo_ext.retrieval.changed_rows import changed_rows
from feast_dynamo_ext.retrieval.inputs import checked_source, with_tombstones
from feast_dynamo_ext.retrieval.plan import declared_columns, plan_rows
from feast_dynamo_ext.timestamps import (
    EARLIEST,
    Axis,
    assume_utc,
    micros,
    micros_of,
    moment_of,
)
from feast_dynamo_ext.view_settings import ViewSettings, series_in, view_tombstones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from feast import RepoConfig
    from feast.infra.common.materialization_job import MaterializationTask
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.dynamo.encoding.requests import Order
    from feast_dynamo_ext.retrieval.plan import ViewPlan


logger = logging.getLogger(__name__)

CLOCK_TOLERANCE = timedelta(minutes=1)
"""By which an end may be ahead of this machine's clock."""


@dataclass(frozen=True)
class Window:
    """Event times from `start` to `end`, both included."""

    start: datetime
    end: datetime

    @property
    def micros(self) -> tuple[int, int]:
        """Both as microseconds since 1970 UTC."""
        return micros_of(self.start), micros_of(self.end)


def is_to_come(end: datetime, now: datetime) -> bool:
    """Whether a time has not come, by more than clocks may differ."""
    return assume_utc(end) > now + CLOCK_TOLERANCE


def refuse_end_to_come(end: datetime, now: datetime) -> None:
    """Refuse the end of an incremental run that has not come.

    Raises:
        WindowError: it has not, see `is_to_come`.
    """
    if is_to_come(end, now):
        raise WindowError(
            f"The end of the incremental materialization, {assume_utc(end).isoformat()}, is in "
            f"the future: it is {now.isoformat(timespec='seconds')}. Feast would note all up to "
            "then as done, and rows that are yet to come would be left out. Pass the current time."
        )


def window_of(task: MaterializationTask, lookback_s: int, *, is_incremental: bool) -> Window:
    """The event times that a task of Feast's reads.

    An incremental run starts where the last one ended. Rows that came into history since then with
    an earlier event time would never be read, so it starts `lookback_s` before that.

    Raises:
        WindowError: an incremental run to a time before its start.
    """
    start, end = assume_utc(task.start_time), assume_utc(task.end_time)
    if not is_incremental:
        return Window(start, end)
    view = task.feature_view.name
    if start > end and task.feature_view.most_recent_end_time is None:
        raise WindowError(
            f"Feature view `{view}`: its first incremental materialization starts at "
            f"{start.isoformat()}, as its ttl says, which is after the end, {end.isoformat()}. To "
            "write older rows, use `feast materialize` with their start and end."
        )
    if start > end:
        raise WindowError(
            f"Feature view `{view}` is materialized up to {start.isoformat()} already, which is "
            f"after {end.isoformat()}. To write rows before that again, use `feast materialize` "
            "with their start and end."
        )
    return Window(_before(start, lookback_s), end)


def _before(moment: datetime, seconds: int) -> datetime:
    return moment - timedelta(seconds=min(seconds, (moment - EARLIEST) // timedelta(seconds=1)))


ENDED = "_feast_ended_at"
"""Column of deleted events: when each was ended."""

MOST_THREADS = 4
"""Of finding the newest rows, unless the offline store says. Each thread of DuckDB needs memory of
its own: with 16 of them, 128 MB were not enough, with 8 they were."""


@dataclass(frozen=True)
class Columns:
    """What a view's columns are called in its source.

    Attributes:
        keys: join keys, in the order of `entity_keys.join_keys`.
        features: features, in the order of the view.
        event_time: event time.
        created_time: created time, or None.
    """

    keys: tuple[str, ...]
    features: tuple[str, ...]
    event_time: str
    created_time: str | None

    @classmethod
    def from_view(cls, view: Any) -> Columns:
        """The columns of a view, its source's field mapping undone."""
        stored = stored_names(view.batch_source)
        return cls(
            tuple(stored[name] for name in join_keys(view)),
            tuple(stored[field.name] for field in view.features),
            *stored_times(view.batch_source),
        )


def takes_rows_as_they_are(view: Any) -> bool:
    """Whether rows go from a view's source to its table online as they are."""
    return bool(
        view.online
        and not view.offline
        and not getattr(view, "source_views", None)
        and getattr(view, "feature_transformation", None) is None
        and not getattr(view, "aggregations", None)
    )


@dataclass(frozen=True)
class Newest:
    """The newest rows of their keys.

    Attributes:
        read: rows of the window that have keys and event time.
        expired: newest rows that are too old, and not among `rows`.
        rows: newest rows.
        batches: the rows, in the source's own columns.
        incomplete: rows that were looked at and lack a key or the event time; 0 where another
            offline store leaves them out.
        whole: where no row was read, the source with all of its files; None otherwise.
        deletions: how many rows say that their entities are to be deleted online.
        deleted: these rows, their keys and times of writing; to be read after `batches`.
    """

    read: int
    expired: int
    rows: int
    batches: Iterator[pa.RecordBatch]
    incomplete: int = 0
    whole: ParquetSource | None = None
    deletions: int = 0
    deleted: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))


MOST_FOOTERS = 200
"""Files whose footers are read to say why there was nothing to read."""


def say_why_nothing(
    view: Any, window: Window, newest: Newest, *, is_incremental: bool = False
) -> None:
    """Say in words why no row of a view is written: counts alone look like success.

    An incremental run that finds nothing new is as it should be: that is information, for which no
    footers are read.
    """
    if newest.rows or newest.deletions:
        return
    level = logging.WARNING
    if newest.expired:
        why = (
            f"each of its {newest.expired:,} entities' newest rows is past the view's ttl of "
            f"{view.ttl}, so nothing is written. Is the source up to date? To serve rows of that "
            "age, raise the ttl, or set `expired: value` for the view or in feature_store.yaml."
        )
    else:
        start, end = (assume_utc(time) for time in (window.start, window.end))
        why = f"no row of its source is from {start.isoformat()} to {end.isoformat()}"
        rows, last = None, None
        if newest.incomplete:
            why += f" and has its join keys; {newest.incomplete:,} rows lack a key or event time"
        elif is_incremental and view.most_recent_end_time:
            level = logging.INFO
        else:
            rows, last = _extent(view, newest.whole)
        if rows == 0:
            why = "its source holds no rows"
        why += ", so nothing is written."
        if last is not None:
            why += f" Its newest event time is {last.isoformat()}."
    logger.log(level, "feature view %s: %s", view.name, why)


def _extent(view: Any, source: ParquetSource | None) -> tuple[int | None, datetime | None]:
    """How many rows a source has, and the newest's event time, as its files' footers say."""
    if source is None or len(source.files) > MOST_FOOTERS:
        return None, None
    try:
        limits = source.limits(stored_times(view.batch_source)[0])
        if limits is None or not len(limits):
            return source.rows, None
        axis = Axis.from_type(limits.type)
        last = Axis("us").floor(axis.cast(limits).to_numpy(), axis.unit).max()
        return source.rows, moment_of(int(last))
    except (OfflineStoreError, OverflowError):
        # A file outside of the window, which is none of this run's; or a year after 9999.
        return None, None


class History:
    """The history of one view, as its offline store has it now."""

    def __init__(
        self, config: RepoConfig, offline_store: Any, view: Any, columns: Columns
    ) -> None:
        self._config, self._store = config, offline_store
        self._view, self._columns = view, columns
        self._source: ParquetSource | None = None
        if isinstance(offline_store, S3ParquetOfflineStore):
            self._source = ParquetSource.open(view.batch_source, config)

    @property
    def fingerprint(self) -> str:
        """What changes when a file is added, replaced or removed.

        Of a store that has no list of files it is never twice the same.
        """
        if self._source is None:
            return uuid.uuid4().hex
        return source_fingerprint(
            (file.path, file.size, file.etag or file.mtime_ns or 0) for file in self._source.files
        )

    @property
    def position(self) -> Position | None:
        """Of a captured table: how far its history is read with this; None of any other."""
        table = self._source.table if self._source is not None else None
        if table is None or tombstones_of(self._view.batch_source) is None:
            return None
        return Position.from_commits(table.table_id, table.commits, time.time() * 1_000)

    @contextlib.contextmanager
    def newest(
        self,
        window: Window,
        not_before: datetime | None,
        memory_limit: str,
        scanned: Callable[[int], object] | None = None,
        since: Position | None = None,
    ) -> Iterator[Newest]:
        """The newest rows of a window, to be read while the context lasts.

        Args:
            window: event times that count.
            not_before: newest rows before that are left out as expired.
            memory_limit: of finding them, for example `128MB`; then it spills.
            scanned: called with numbers of rows as they are looked at.
            since: of a captured table: rows that came after this count too.

        Raises:
            OfflineStoreError: the history cannot be read; see the subclasses.
        """
        if self._source is None:
            yield self._by_job(window, not_before)
            return
        columns = self._columns
        plan = plan_rows(
            self._view.batch_source,
            columns.keys,
            columns.features,
            columns.event_time,
            columns.created_time,
        )
        plan = replace(
            plan,
            view=self._view.name,
            folder_types=declared_columns(self._view),
            tombstones=view_tombstones(self._view),
        )
        source = checked_source(plan, self._source)
        engine = engine_for(self._config.offline_store, "newest")
        threads = engine.threads or min(MOST_THREADS, os.cpu_count() or 1)
        engine = replace(engine, memory_limit=memory_limit, threads=threads)
        if plan.tombstones is not None:
            known = self.position
            is_same = since is not None and known is not None and since.history == known.history
            number = since.sequence if since is not None and is_same else None
            with self._changed(plan, source, engine, window, not_before, number, scanned) as found:
                yield found
            return
        times = (window.start, window.end, not_before)
        with engine.newest(plan, source, *times, scanned) as found:
            batches = found.source.fetch_each(plan.feature_columns, found.positions)
            whole = None if found.read else source
            yield Newest(found.read, found.expired, found.rows, batches, found.incomplete, whole)

    @contextlib.contextmanager
    def every(
        self,
        window: Window,
        not_before: datetime | None,
        memory_limit: str,
        scanned: Callable[[int], object] | None = None,
    ) -> Iterator[Newest]:
        """All rows of a window that have keys and event time, to be read while the context lasts.

        Args:
            window: event times that count.
            not_before: rows before that are counted as expired and left out.
            memory_limit: of finding them.
            scanned: called with numbers of rows as they are looked at.

        Raises:
            OfflineStoreError: the history cannot be read; see the subclasses. Or it is of another
                offline store.
        """
        plan, source = self._plan_of_events()
        engine = replace(
            engine_for(self._config.offline_store, "within"), memory_limit=memory_limit
        )
        start, end = assume_utc(window.start), assume_utc(window.end)
        source = source.within(plan.event_time, start, end)
        if scanned is not None:
            scanned(0)
        positions = engine.within(plan, source, start, end)
        expired = 0
        if not_before is not None and not_before > start:
            kept = engine.within(plan, source, not_before, end)
            expired, positions = len(positions) - len(kept), kept
        batches = source.fetch_each(plan.feature_columns, iter((positions,)))
        read = len(positions) + expired
        yield Newest(
            read,
            expired,
            len(positions),
            _with_keys(batches, self._columns.keys, self._view.name),
            whole=None if read else self._source,
        )

    @contextlib.contextmanager
    def changed_events(
        self,
        window: Window,
        events: EventColumns,
        not_before: datetime | None,
        memory_limit: str,
        scanned: Callable[[int], object] | None = None,
        since: Position | None = None,
    ) -> Iterator[Newest]:
        """Of a captured table, whose items are events: what changed in the window.

        Args:
            window: event times and times of writing that count.
            events: which columns tell events apart.
            not_before: events before that are counted as expired and left out.
            memory_limit: of finding them.
            scanned: called with numbers of rows as they are looked at.
            since: rows that came after this count too.

        Raises:
            OfflineStoreError: the history cannot be read; see the subclasses. Or it is of another
                offline store.
        """
        plan, source = self._plan_of_events()
        engine = engine_for(self._config.offline_store, "newest")
        threads = engine.threads or min(MOST_THREADS, os.cpu_count() or 1)
        engine = replace(engine, memory_limit=memory_limit, threads=threads)
        known = self.position
        is_same = since is not None and known is not None and since.history == known.history
        number = since.sequence if since is not None and is_same else None
        breaker = [events.stored[name] for name in events.series.tie_breaker]
        start, end = assume_utc(window.start), assume_utc(window.end)
        with changed_events(
            plan, breaker, source, start, end, engine, not_before, number, scanned
        ) as (found, ended):
            columns = self._columns
            of_event = list(dict.fromkeys([*columns.keys, *breaker, columns.event_time]))
            gone = source.fetch_each(of_event, ended.positions)
            yield Newest(
                found.read,
                found.expired,
                found.rows,
                _with_keys(
                    source.fetch_each(plan.feature_columns, found.positions),
                    columns.keys,
                    self._view.name,
                ),
                whole=None if found.read else source,
                deletions=found.deletions,
                deleted=_with_times(gone, ended.written, source, of_event),
            )

    def _plan_of_events(self) -> tuple[ViewPlan, ParquetSource]:
        """What is read of a view that keeps every event, and its source.

        Raises:
            OfflineStoreError: it is of another offline store, or lacks a column.
        """
        columns = self._columns
        if self._source is None:
            raise OfflineStoreError(
                f"Feature view `{self._view.name}` keeps every event, and its history is of an "
                "offline store that gives the newest rows alone. Set `offline_store: type: "
                "feast_dynamo_ext.S3ParquetOfflineStore`."
            )
        plan = plan_rows(
            self._view.batch_source,
            columns.keys,
            columns.features,
            columns.event_time,
            columns.created_time,
        )
        plan = replace(
            plan,
            view=self._view.name,
            folder_types=declared_columns(self._view),
            tombstones=view_tombstones(self._view),
        )
        return plan, checked_source(plan, self._source)

    @contextlib.contextmanager
    def _changed(
        self,
        plan: ViewPlan,
        source: ParquetSource,
        limits: Limits,
        window: Window,
        not_before: datetime | None,
        since: int | None,
        scanned: Callable[[int], object] | None,
    ) -> Iterator[Newest]:
        """Of a captured table: what changed in the window, however late it came."""
        with_tombstones(plan, source)  # refuses keys that are not the table's
        start, end = assume_utc(window.start), assume_utc(window.end)
        with changed_rows(plan, source, start, end, limits, not_before, since, scanned) as found:
            batches = found.source.fetch_each(plan.feature_columns, found.positions)
            rows = plan.tombstones.written if plan.tombstones else WRITTEN
            gone = list(dict.fromkeys([*self._columns.keys, rows]))
            deleted = found.source.fetch_each(gone, found.deleted)
            whole = None if found.read else source
            yield Newest(
                found.read,
                found.expired,
                found.rows,
                batches,
                whole=whole,
                deletions=found.deletions,
                deleted=deleted,
            )

    def _by_job(self, window: Window, not_before: datetime | None) -> Newest:
        """By the offline store's own method, which other stores keep in memory whole."""
        columns = self._columns
        table = self._store.pull_latest_from_table_or_query(
            config=self._config,
            data_source=self._view.batch_source,
            join_key_columns=list(columns.keys),
            feature_name_columns=list(columns.features),
            timestamp_field=columns.event_time,
            created_timestamp_column=columns.created_time,
            start_date=window.start,
            end_date=window.end,
        ).to_arrow()
        kept = table
        if not_before is not None:
            times = table.column(columns.event_time)
            limit = pa.scalar(not_before).cast(pa.timestamp("us", "UTC"))
            zoned = times.cast(pa.timestamp(getattr(times.type, "unit", "us"), "UTC"))
            kept = table.filter(pc.greater_equal(zoned, limit))
        expired = table.num_rows - kept.num_rows
        return Newest(table.num_rows, expired, kept.num_rows, iter(kept.to_batches()))


def _with_times(
    batches: Iterator[pa.RecordBatch],
    written: NDArray[np.int64],
    source: ParquetSource,
    columns: list[str],
) -> Iterator[pa.RecordBatch]:
    """The rows, with a column of times behind the others."""
    kind, start = source.schema.field(WRITTEN).type, 0
    for batch in batches:
        part = written[start : start + batch.num_rows]
        start += batch.num_rows
        times = pa.array(part, pa.int64()).cast(kind)
        yield batch.select(columns).append_column(ENDED, times)


def _with_keys(
    batches: Iterator[pa.RecordBatch], keys: tuple[str, ...], view: str
) -> Iterator[pa.RecordBatch]:
    """Rows that have all of their join keys; says how many have not."""
    left_out = 0
    for batch in batches:
        is_there = None
        for key in keys:
            column = batch.column(key)
            if column.null_count:
                there = column.is_valid()
                is_there = there if is_there is None else pc.and_(is_there, there)
        if is_there is None:
            yield batch
        else:
            kept = batch.filter(is_there)
            left_out += batch.num_rows - kept.num_rows
            yield kept
    if left_out:
        logger.warning(
            "feature view %s: %d rows lack a join key, and are left out", view, left_out
        )


@dataclass(frozen=True)
class Encoder:
    """Encodes the rows of one view.

    Attributes:
        view: the feature view.
        columns: what its columns are called in the batches.
        schema: what encoded values stand for.
        kept_s: seconds after their event times that DynamoDB keeps rows; None for no limit.
        order: which row of an entity wins online.
        events: makes the sort keys of a series; None where the newest row of each entity is kept.
        cohorts: features by which entities can be found.
    """

    view: Any
    columns: Columns
    schema: RowSchema
    kept_s: int | None
    order: Order = "event"
    events: EventColumns | None = None
    cohorts: tuple[str, ...] = ()

    @classmethod
    def from_view(cls, config: RepoConfig, view: Any, columns: Columns) -> Encoder:
        """The encoder of a view as it is declared now."""
        schema, kept_s = RowSchema.from_view(view), kept_seconds(config, view)
        series, events = series_in(config, view), None
        if series is not None:
            kinds = {field.name: field.dtype.to_value_type() for field in view.features}
            stored = stored_names(view.batch_source)
            events = EventColumns(view.name, series, kinds, {name: stored[name] for name in kinds})
        cohorts = ViewSettings.from_view(view).cohorts
        return cls(view, columns, schema, kept_s, write_order(view), events, cohorts)

    @property
    def mark_types(self) -> dict[str, str]:
        """Further attributes of rows, and DynamoDB's types of them; see `EncodedRows.marks`."""
        if self.events is not None:
            return self.events.mark_types
        return dict.fromkeys(cohort_attributes(self.cohorts), "S")

    def __call__(self, batch: pa.RecordBatch) -> EncodedRows:
        """Encode a batch.

        Raises:
            EntityKeyError: a key that cannot be one.
            ColumnTypeError: a value does not fit the declared type.
            ItemTooLargeError: a row over 400 KB.
        """
        columns, features = self.columns, self.view.features
        created, where = columns.created_time, f"Feature view `{self.view.name}`"
        event_us = micros(columns.event_time, batch.column(columns.event_time), where)
        rows = EncodedRows(
            self.keys_of(batch),
            encode_values(
                [batch.column(name) for name in columns.features],
                [declared_as(field.dtype) for field in features],
                [field.name for field in features],
                self.view.name,
            ),
            event_us,
            micros(created, batch.column(created), where) if created else None,
            self.schema,
            self.kept_s,
            self.order,
            self._marks(batch, event_us),
        )
        refuse_too_large(rows, self.view.name)
        return rows

    def _marks(
        self, batch: pa.RecordBatch, event_us: pa.Int64Array
    ) -> dict[str, tuple[str, pa.Array]]:
        if self.events is not None:
            return self.events.marks(batch, event_us)
        if not self.cohorts:
            return {}
        at = {field.name: place for place, field in enumerate(self.view.features)}
        found = {}
        for name, attribute in zip(self.cohorts, self.mark_types, strict=True):
            column = batch.column(self.columns.features[at[name]])
            kind = self.view.features[at[name]].dtype.to_value_type()
            found[attribute] = "S", cohort_texts(column, kind, name, self.view.name)
        return found

    def deletions(self, batch: pa.RecordBatch) -> Deletions:
        """Encode rows of `Newest.deleted`.

        Raises:
            EntityKeyError: a key that cannot be one.
        """
        name, where = batch.schema.names[-1], f"Feature view `{self.view.name}`"
        written_us = micros(name, batch.column(name), where)
        if self.events is None:
            return Deletions(self.keys_of(batch), written_us)
        event_time = self.columns.event_time
        event_us = micros(event_time, batch.column(event_time), where)
        sorts = self.events.sort_keys(batch, event_us)
        return Deletions(self.keys_of(batch), written_us, sorts)

    def not_before(self) -> datetime | None:
        """The first event time at which a row is not past its ttl now.

        None where no row is left out: the view has no ttl, or answers such rows too. Of a series
        the first that is kept.
        """
        if self.events is not None:
            if self.kept_s is None:
                return None
            return _before(datetime.now(tz=timezone.utc).replace(microsecond=0), self.kept_s)
        ttl_s = ttl_seconds(self.view)
        if ttl_s is None or self.kept_s is None:
            return None
        now = datetime.now(tz=timezone.utc).replace(microsecond=0)
        return now - timedelta(seconds=ttl_s)

    def keys_of(self, batch: pa.RecordBatch) -> pa.LargeBinaryArray:
        """Serialized entity keys of rows.

        Raises:
            EntityKeyError: a key that cannot be one.
        """
        names = join_keys(self.view)
        kinds = {column.name: column.dtype.to_value_type() for column in self.view.entity_columns}
        return encode_keys(
            [batch.column(name) for name in self.columns.keys],
            [kinds[name] for name in names],
            names,
            self.view.name,
            batch.num_rows,
        )


@dataclass(frozen=True)
class ViewReading:
    """Reads the rows of one view.

    Attributes:
        history: where they are.
        encoder: packs them.
        window: event times that count.
        memory_limit: of finding the newest rows.
        rows_per_bucket: rows that a key bucket should have at most.
        spill_folder: where rows are kept on disk; None for the system's temporary folder.
        latest_us: last event time that may be written, in microseconds; None for no limit.
        since: how far an incremental run before this one came in the history of a captured table.
    """

    history: History
    encoder: Encoder
    window: Window
    memory_limit: str
    rows_per_bucket: int
    spill_folder: str | None
    latest_us: int | None = None
    since: Position | None = None

    @classmethod
    def from_task(
        cls,
        config: RepoConfig,
        offline_store: Any,
        view: Any,
        window: Window,
        *,
        memory_limit: str,
        rows_per_bucket: int,
    ) -> ViewReading:
        """Of a view as it is now; its source's files are listed.

        Raises:
            OfflineStoreError: they cannot be.
        """
        columns = Columns.from_view(view)
        return cls(
            History(config, offline_store, view, columns),
            Encoder.from_view(config, view, columns),
            window,
            memory_limit,
            rows_per_bucket,
            getattr(config.offline_store, "spill_folder", None),
            latest_event_us(config),
        )

    @property
    def leaves_out_expired(self) -> bool:
        """Whether rows past their ttl are left out, where the view has one."""
        return self.encoder.kept_s is not None or ttl_seconds(self.encoder.view) is None

    def rows(self, found: Callable[[Newest], object]) -> Iterator[EncodedRows]:
        """The newest rows that are not past their ttl, encoded, in the order of the files.

        Args:
            found: called with what there is, before the first rows.

        Raises:
            OfflineStoreError: the history cannot be read; see the subclasses.
            EntityKeyError: a key that cannot be one.
            ColumnTypeError: a value does not fit its feature's type.
            ItemTooLargeError: a row over 400 KB.
            WindowError: after the last row, where event times are too far ahead.
        """
        with self._newest() as newest:
            found(newest)
            yield from self._encoded(newest.batches)

    def _encoded(self, batches: Iterator[pa.RecordBatch]) -> Iterator[EncodedRows]:
        """The rows, encoded; rows from the future are counted, and refused after the last."""
        latest, rows, ahead = self.latest_us, 0, 0
        if latest is not None and self.window.micros[1] <= latest:
            latest = None
        for batch in batches:
            encoded = self.encoder(batch)
            if latest is not None:
                rows += len(encoded)
                ahead += int((encoded.event_us.to_numpy() > latest).sum())
            yield encoded
        refuse_future(ahead, rows, self.encoder.view.name)

    def spooled(
        self,
        buckets: int | None,
        done: frozenset[int],
        found: Callable[[Newest], object],
        looked_at: Callable[[int], object],
    ) -> Spool:
        """All rows, on disk by key bucket.

        Args:
            buckets: number of key buckets; None for as many as the number of rows suggests.
            done: buckets whose rows are not kept.
            found: as in `rows`.
            looked_at: called with numbers of rows, while newest rows are looked for, and then 0
                between batches; what it raises ends the reading.

        Raises: as `rows`.
        """
        encoder = self.encoder
        with self._newest(looked_at) as newest, contextlib.ExitStack() as undo:
            found(newest)
            count = buckets or bucket_count(newest.rows + newest.deletions, self.rows_per_bucket)
            spool = Spool(
                encoder.schema,
                encoder.kept_s,
                count,
                done,
                self.spill_folder,
                encoder.order,
                encoder.mark_types,
            )
            undo.enter_context(spool)
            for rows in self._encoded(_each(newest.batches, lambda: looked_at(0))):
                spool.add(rows)
            for batch in _each(newest.deleted, lambda: looked_at(0)):
                spool.add_deletions(encoder.deletions(batch))
            spool.finish()
            undo.pop_all()
        return spool

    def _newest(
        self, scanned: Callable[[int], object] | None = None
    ) -> contextlib.AbstractContextManager[Newest]:
        not_before = self.encoder.not_before()
        events = self.encoder.events
        if events is not None and view_tombstones(self.encoder.view) is not None:
            return self.history.changed_events(
                self.window, events, not_before, self.memory_limit, scanned, self.since
            )
        if events is not None:
            return self.history.every(self.window, not_before, self.memory_limit, scanned)
        return self.history.newest(self.window, not_before, self.memory_limit, scanned, self.since)


def _each(batches: Iterator[pa.RecordBatch], before: Callable[[], object]) -> Iterator[Any]:
    for batch in batches:
        before()
        yield batch
