"""The newest row of each key of a view's history, batch by batch."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.dynamo.entity_keys import join_keys
from feast_dynamo_ext.materialize.identity import source_fingerprint
from feast_dynamo_ext.offline.join.join import checked_source
from feast_dynamo_ext.offline.plan import plan_rows
from feast_dynamo_ext.offline.sources.source import ParquetSource
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from feast import RepoConfig

    from feast_dynamo_ext.materialize.window import Window


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
    def of(cls, view: Any) -> Columns:
        """The columns of a view, its source's field mapping undone."""
        source = view.batch_source
        old = {new: name for name, new in (source.field_mapping or {}).items()}
        created = source.created_timestamp_column
        return cls(
            tuple(old.get(name, name) for name in join_keys(view)),
            tuple(old.get(field.name, field.name) for field in view.features),
            old.get(source.timestamp_field, source.timestamp_field),
            old.get(created, created) or None,
        )


@dataclass(frozen=True)
class Newest:
    """The newest rows of their keys.

    Attributes:
        read: rows of the window that have keys and event time.
        expired: newest rows that are too old, and not among `rows`.
        rows: newest rows.
        batches: the rows, in the source's own columns.
    """

    read: int
    expired: int
    rows: int
    batches: Iterator[pa.RecordBatch]


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

        Of a store that does not tell its files it is never twice the same.
        """
        if self._source is None:
            return uuid.uuid4().hex
        return source_fingerprint(
            (file.path, file.size, file.etag or file.mtime_ns or 0) for file in self._source.files
        )

    @contextlib.contextmanager
    def newest(
        self,
        window: Window,
        not_before: datetime | None,
        memory_limit: str,
        scanned: Callable[[int], object] | None = None,
    ) -> Iterator[Newest]:
        """The newest rows of a window, to be read while the context lasts.

        Args:
            window: event times that count.
            not_before: newest rows before that are left out as expired.
            memory_limit: of finding them, for example `128MB`; then it spills.
            scanned: is told numbers of rows as they are looked at.

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
        plan = replace(plan, view=self._view.name)
        source = checked_source(plan, self._source)
        engine = self._config.offline_store.engine()
        threads = engine.threads or min(MOST_THREADS, os.cpu_count() or 1)
        engine = replace(engine, memory_limit=memory_limit, threads=threads)
        times = (window.start, window.end, not_before)
        with engine.newest(plan, source, *times, scanned) as found:
            batches = found.source.fetch_each(plan.feature_columns, found.positions)
            yield Newest(found.read, found.expired, found.rows, batches)

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
