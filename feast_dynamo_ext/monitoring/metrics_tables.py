"""Where metrics are kept: per table a folder of Parquet files, on S3 or a local disk.

Each write adds a file, so that writers need not know of each other; readers take of each key the
row that was written last. When a folder has many files they are folded into one: first that is
written, then they are removed. Rows are in both for a moment, which changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast.monitoring.monitoring_utils import (
    MONITORING_DIR,
    monitoring_table_meta,
    normalize_monitoring_row,
)

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    FeastDynamoError,
    OfflineStoreError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.writer import write_parts
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast import RepoConfig
    from pyarrow import fs

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import Files


METRIC_TYPES = ("feature", "feature_view", "feature_service", "job")
"""Feast's types of metrics; one table each."""

WRITTEN = "written_at"
"""When a row was written, nanoseconds since 1970: of one key the newest row counts."""

BASELINE, METRIC_DATE, PROJECT = "is_baseline", "metric_date", "project_id"

TEXT, DATE, TIME = pa.string(), pa.date32(), pa.timestamp("us", "UTC")
OF_TIME = ("computed_at", "max_event_timestamp", "started_at", "completed_at")
OF_COUNTS = (
    *("row_count", "null_count", "total_row_count"),
    *("total_features", "features_with_nulls", "total_feature_views"),
)
OF_FLOATS = (
    *("null_rate", "avg_null_rate", "max_null_rate", "mean", "stddev", "min_val", "max_val"),
    *("p50", "p75", "p90", "p95", "p99"),
)
TYPES: dict[str, pa.DataType] = {
    METRIC_DATE: DATE,
    BASELINE: pa.bool_(),
    **dict.fromkeys(OF_TIME, TIME),
    **dict.fromkeys(OF_COUNTS, pa.int64()),
    **dict.fromkeys(OF_FLOATS, pa.float64()),
}
"""Types of columns. All others are text; what is not text, a histogram, is kept there as JSON."""


@dataclass(frozen=True)
class MetricsTable:
    """One of the tables.

    Attributes:
        name: its name, and that of its folder.
        schema: its columns, and `WRITTEN`.
        keys: the columns of which each combination has one row.
    """

    name: str
    schema: pa.Schema
    keys: tuple[str, ...]

    @classmethod
    def from_type(cls, metric_type: str) -> MetricsTable:
        """The table of one of `METRIC_TYPES`.

        Raises:
            OfflineStoreError: there is no such type.
        """
        if metric_type not in METRIC_TYPES:
            raise OfflineStoreError(
                f"There are no metrics of type `{metric_type}`; Feast has "
                f"{', '.join(METRIC_TYPES)}."
            )
        name, columns, keys = monitoring_table_meta(metric_type)
        fields = [(column, TYPES.get(column, TEXT)) for column in columns]
        return cls(name, pa.schema([*fields, (WRITTEN, pa.int64())]), tuple(keys))

    def rows(self, metrics: Sequence[Mapping[str, Any]], written_at: int) -> pa.Table:
        """Feast's metrics as rows; of equal keys the last. What is no column is left out."""
        unique = {tuple(metric.get(key) for key in self.keys): metric for metric in metrics}
        fields = [field for field in self.schema if field.name != WRITTEN]
        columns = [
            pa.array(
                [_as(field, metric.get(field.name)) for metric in unique.values()], field.type
            )
            for field in fields
        ]
        written = pa.array([written_at] * len(unique), pa.int64())
        return pa.table([*columns, written], self.schema)

    def newest(self, written: pa.Table) -> pa.Table:
        """Of each key the row that was written last, in the order of writing."""
        order = [(WRITTEN, "ascending")]
        if BASELINE in self.schema.names:
            # A row that is no baseline any more keeps its time of writing, so that it replaces
            # what it was, and never what somebody else has written since.
            order.append((BASELINE, "descending"))
        rows = written.take(pc.sort_indices(written, order))
        numbered = rows.append_column("at", pa.array(range(rows.num_rows), pa.int64()))
        last = numbered.group_by(list(self.keys)).aggregate([("at", "max")])
        return rows.take(last.column("at_max").combine_chunks().sort())

    def matching(
        self,
        rows: pa.Table,
        filters: Mapping[str, Any],
        first: date | None = None,
        last: date | None = None,
    ) -> pa.Table:
        """The rows that have the filters' values, a filter of None being none.

        Args:
            rows: rows of this table.
            filters: values by column.
            first: first metric date that counts.
            last: last metric date that counts.

        Raises:
            ColumnNotFoundError: a filter is not of a column.
        """
        wanted = {name: value for name, value in filters.items() if value is not None}
        unknown = sorted(wanted.keys() - set(self.schema.names))
        if unknown:
            raise ColumnNotFoundError(
                f"Metrics cannot be filtered by {unknown}: {self.name} has {self.schema.names}."
            )
        condition = pc.scalar(True)
        for name, value in wanted.items():
            field = self.schema.field(name)
            condition &= pc.field(name) == pa.scalar(_as(field, value), field.type)
        if first is not None:
            condition &= pc.field(METRIC_DATE) >= first
        if last is not None:
            condition &= pc.field(METRIC_DATE) <= last
        return rows.filter(condition)

    def metrics(self, rows: pa.Table) -> list[dict[str, Any]]:
        """Rows as Feast's metrics by ascending date: dates as ISO text, histograms parsed."""
        ordered = rows.take(pc.sort_indices(rows, [(METRIC_DATE, "ascending")]))
        records = ordered.drop_columns(WRITTEN).to_pylist()
        return [normalize_monitoring_row(record) for record in records]


def _as(field: pa.Field, value: Any) -> Any:
    """A value of Feast's as its column has it; Feast passes dates and times as ISO text too."""
    if value is None:
        return None
    if field.type == TEXT:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if field.type == TIME:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    if field.type == DATE:
        return date.fromisoformat(value) if isinstance(value, str) else value
    return value


FOLD_FROM = 64

FILES_AT_ONCE = 16
TRIES = 5


@dataclass(frozen=True)
class MetricsStorage:
    """The metrics of a feature repo.

    Attributes:
        uri: the folder of the tables' folders.
        settings: how to reach S3.
        fold_from: files of a table from which on they are folded.
    """

    uri: str
    settings: AwsSettings
    fold_from: int = FOLD_FROM

    @classmethod
    def from_config(cls, config: RepoConfig) -> MetricsStorage:
        """Where `monitoring_location` says; a folder of the feature repo otherwise."""
        location = getattr(config.offline_store, "monitoring_location", None) or MONITORING_DIR
        if not urlparse(location).scheme:
            location = str(Path(config.repo_path or ".") / location)
        return cls(location.rstrip("/"), config.offline_store.aws())

    def prepare(self) -> None:
        """Check that all tables can be listed, and fold those of many files.

        Raises:
            AwsError: S3 refused.
        """
        for metric_type in METRIC_TYPES:
            self._fold(MetricsTable.from_type(metric_type))

    def save(self, metric_type: str, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Add metrics; they replace those of the same keys.

        Raises:
            AwsError: S3 refused.
        """
        table = MetricsTable.from_type(metric_type)
        if metrics:
            self._add(table, table.rows(metrics, time.time_ns()))

    def query(
        self,
        metric_type: str,
        project: str,
        filters: Mapping[str, Any],
        first: date | None = None,
        last: date | None = None,
    ) -> list[dict[str, Any]]:
        """The metrics of a project (of all, if that is empty), by metric date.

        Raises:
            ColumnNotFoundError: a filter is not of a column.
            SourceReadError: a file cannot be read.
            AwsError: S3 refused.
        """
        table = MetricsTable.from_type(metric_type)
        rows, _ = self._read(table)
        wanted = {**filters, PROJECT: project or None}
        return table.metrics(table.matching(rows, wanted, first, last))

    def clear_baseline(self, filters: Mapping[str, Any]) -> None:
        """Mark the features' baselines that have the filters' values as baselines no more.

        Raises: as `query`.
        """
        table = MetricsTable.from_type("feature")
        rows, _ = self._read(table)
        found = table.matching(rows, {**filters, BASELINE: True})
        if found.num_rows:
            at = found.schema.get_field_index(BASELINE)
            cleared = pa.array([False] * found.num_rows)
            self._add(table, found.set_column(at, found.schema.field(at), cleared))

    def files(self, metric_type: str) -> list[str]:
        """URIs of the files of a table."""
        return self._files(MetricsTable.from_type(metric_type))

    def _folder(self, table: MetricsTable) -> str:
        return f"{self.uri}/{table.name}"

    def _add(self, table: MetricsTable, rows: pa.Table) -> None:
        folder = self._folder(table)
        name = f"part-{uuid.uuid4().hex}"
        write_parts(self._to, folder, name, rows.schema, rows.to_batches())

    def _fold(self, table: MetricsTable) -> None:
        if len(self._files(table)) < self.fold_from:
            return
        rows, folded = self._read(table)
        self._add(table, rows)
        self._to.delete(folded)

    def _read(self, table: MetricsTable) -> tuple[pa.Table, list[str]]:
        """The newest row of each key, and the files that were read for it."""
        filesystem, _ = aws.filesystem(self.uri, self.settings)
        for _ in range(TRIES):
            files = self._files(table)
            try:
                with self._errors(table):
                    parts = _tables(filesystem, files, table.schema)
            except FileNotFoundError:
                continue  # folded since it was listed: what it held is in a newer file
            return table.newest(pa.concat_tables([table.schema.empty_table(), *parts])), files
        raise SourceReadError(
            f"{self._folder(table)}: files vanished while they were being read, {TRIES} times. "
            "Check what removes them, and run it again."
        )

    @cached_property
    def _to(self) -> Files:
        return files_of(self.uri, self.settings)

    def _files(self, table: MetricsTable) -> list[str]:
        """URIs of the table's files."""
        return [uri for uri in self._to.at(self._folder(table)) if _is_part(uri)]

    @contextlib.contextmanager
    def _errors(self, table: MetricsTable) -> Iterator[None]:
        folder = self._folder(table)
        try:
            with aws.s3_translated(folder):
                yield
        except (FeastDynamoError, FileNotFoundError):
            raise
        except (pa.ArrowException, OSError) as error:
            raise SourceReadError(f"{folder}: metrics cannot be read: {error}.") from error


def _tables(filesystem: fs.FileSystem, files: Sequence[str], schema: pa.Schema) -> list[pa.Table]:
    def read(uri: str) -> pa.Table:
        path = uri.partition("://")[2] or uri
        try:
            return pq.ParquetFile(path, filesystem=filesystem).read().select(schema.names)
        except pa.ArrowException as error:
            raise SourceReadError(
                f"{uri} is no file of metrics: {error}. Remove it; its metrics can be computed "
                "again."
            ) from error

    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        return list(threads.map(read, files))


def _is_part(uri: str) -> bool:
    name = uri.rpartition("/")[2]
    return name.startswith("part-") and name.endswith(".parquet")
