"""Where metrics are kept: per table a folder of Parquet files, on S3 or a local disk.

Each write adds a file, so that writers need not know of each other; readers take of each key the
row that was written last. When a folder has many files they are folded into one: first that is
written, then they are removed. Rows are in both for a moment, which changes nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast.monitoring.monitoring_utils import (
    MONITORING_DIR,
    monitoring_table_meta,
    normalize_monitoring_row,
)

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    AwsError,
    ColumnNotFoundError,
    OfflineStoreError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.writer import write_parts
from feast_dynamo_ext.storage import files_of
from feast_dynamo_ext.timestamps import assume_utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import Files


METRIC_TYPES = ("feature", "feature_view", "feature_service", "job")
"""Feast's types of metrics; one table each."""

WRITTEN = "written_at"
"""When a row was written, nanoseconds since 1970: of one key the newest row counts."""

BASELINE, METRIC_DATE, PROJECT = "is_baseline", "metric_date", "project_id"

TEXT, DATE, TIME = pa.string(), pa.date32(), pa.timestamp("us", "UTC")
TYPES: dict[str, pa.DataType] = {
    METRIC_DATE: DATE,
    BASELINE: pa.bool_(),
    **dict.fromkeys(("computed_at", "max_event_timestamp", "started_at", "completed_at"), TIME),
    **dict.fromkeys(("row_count", "null_count", "total_row_count", "total_features"), pa.int64()),
    **dict.fromkeys(("features_with_nulls", "total_feature_views"), pa.int64()),
    **dict.fromkeys(("null_rate", "avg_null_rate", "max_null_rate", "mean"), pa.float64()),
    **dict.fromkeys(("stddev", "min_val", "max_val"), pa.float64()),
    **dict.fromkeys(("p50", "p75", "p90", "p95", "p99"), pa.float64()),
}
"""Types of columns. All others are text; what is not text, a histogram, is kept there as JSON."""

FOLD_FROM = 64

FILES_AT_ONCE = 16
TRIES = 5


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
        rows = [{**metric, WRITTEN: written_at} for metric in unique.values()]
        columns = [
            pa.array([_as(field.type, row.get(field.name)) for row in rows], field.type)
            for field in self.schema
        ]
        return pa.table(columns, self.schema)

    def newest(self, written: pa.Table) -> pa.Table:
        """Of each key the row that was written last, in the order of writing."""
        order = [(WRITTEN, "ascending")]
        if BASELINE in self.schema.names:
            # A row that is no baseline any more keeps its time of writing, so that it replaces
            # what it was, and never what somebody else has written since.
            order.append((BASELINE, "descending"))
        rows = written.sort_by(order)
        numbered = rows.append_column("at", pa.array(range(rows.num_rows), pa.int64()))
        last = numbered.group_by(list(self.keys)).aggregate([("at", "max")])
        return rows.take(last.column("at_max").combine_chunks().sort())

    def matching(self, rows: pa.Table, filters: Mapping[str, Any]) -> pa.Table:
        """The rows that have the filters' values, a filter of None being none.

        Raises:
            ColumnNotFoundError: a filter is not of a column.
        """
        wanted = {name: value for name, value in filters.items() if value is not None}
        unknown = sorted(wanted.keys() - set(self.schema.names))
        if unknown:
            raise ColumnNotFoundError(
                f"Metrics cannot be filtered by {unknown}: {self.name} has {self.schema.names}."
            )
        for name, value in wanted.items():
            kind = self.schema.field(name).type
            rows = rows.filter(pc.field(name) == pa.scalar(_as(kind, value), kind))
        return rows


def _as(kind: pa.DataType, value: Any) -> Any:
    """A value of Feast's as its column has it; Feast passes dates and times as ISO text too."""
    if value is None:
        return None
    if kind == TEXT:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if kind == TIME:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return assume_utc(moment)
    if kind == DATE:
        return date.fromisoformat(value) if isinstance(value, str) else value
    return value


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
            if len(self.files(metric_type)) >= self.fold_from:
                rows, folded = self._read(metric_type)
                self._add(metric_type, rows)
                self._to.delete(folded)

    def save(self, metric_type: str, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Add metrics; they replace those of the same keys.

        Raises:
            AwsError: S3 refused.
        """
        rows = MetricsTable.from_type(metric_type).rows(metrics, time.time_ns())
        if rows.num_rows:
            self._add(metric_type, rows)

    def query(
        self,
        metric_type: str,
        project: str,
        filters: Mapping[str, Any],
        first: date | None = None,
        last: date | None = None,
    ) -> list[dict[str, Any]]:
        """The metrics of a project (of all, if that is empty), by ascending metric date.

        Dates are ISO text and histograms are parsed, as Feast has them.

        Raises:
            ColumnNotFoundError: a filter is not of a column.
            SourceReadError: a file cannot be read.
            AwsError: S3 refused.
        """
        table = MetricsTable.from_type(metric_type)
        rows, _ = self._read(metric_type)
        rows = table.matching(rows, {**filters, PROJECT: project or None})
        if first is not None:
            rows = rows.filter(pc.field(METRIC_DATE) >= first)
        if last is not None:
            rows = rows.filter(pc.field(METRIC_DATE) <= last)
        records = rows.sort_by(METRIC_DATE).drop_columns(WRITTEN).to_pylist()
        return [normalize_monitoring_row(record) for record in records]

    def clear_baseline(self, filters: Mapping[str, Any]) -> None:
        """Mark the features' baselines that have the filters' values as baselines no more.

        Raises: as `query`.
        """
        rows, _ = self._read("feature")
        found = MetricsTable.from_type("feature").matching(rows, {**filters, BASELINE: True})
        if found.num_rows:
            at = found.schema.get_field_index(BASELINE)
            cleared = pa.array([False] * found.num_rows)
            self._add("feature", found.set_column(at, found.schema.field(at), cleared))

    def files(self, metric_type: str) -> list[str]:
        """URIs of the files of a table."""
        found = ((uri, uri.rpartition("/")[2]) for uri in self._to.at(self._folder(metric_type)))
        return [
            uri for uri, name in found if name.startswith("part-") and name.endswith(".parquet")
        ]

    @cached_property
    def _to(self) -> Files:
        return files_of(self.uri, self.settings)

    def _folder(self, metric_type: str) -> str:
        return f"{self.uri}/{MetricsTable.from_type(metric_type).name}"

    def _add(self, metric_type: str, rows: pa.Table) -> None:
        name = f"part-{uuid.uuid4().hex}"
        write_parts(self._to, self._folder(metric_type), name, rows.schema, rows.to_batches())

    def _read(self, metric_type: str) -> tuple[pa.Table, list[str]]:
        """The newest row of each key, and the files that were read for it."""
        table, folder = MetricsTable.from_type(metric_type), self._folder(metric_type)
        filesystem, _ = aws.filesystem(self.uri, self.settings)
        for _ in range(TRIES):
            files = self.files(metric_type)
            dataset = ds.FileSystemDataset.from_paths(
                [uri.partition("://")[2] or uri for uri in files],
                schema=table.schema,
                format=ds.ParquetFileFormat(),
                filesystem=filesystem,
            )
            try:
                with aws.s3_translated(folder):
                    written = dataset.to_table(fragment_readahead=FILES_AT_ONCE)
            except FileNotFoundError:
                continue  # folded since it was listed: what it held is in a newer file
            except AwsError:
                raise  # some are OSErrors too
            except (pa.ArrowException, OSError) as error:
                raise SourceReadError(
                    f"{folder}: metrics cannot be read: {error}. Remove a file that is spoilt; "
                    "its metrics can be computed again."
                ) from error
            return table.newest(written), files
        raise SourceReadError(
            f"{folder}: files vanished while they were being read, {TRIES} times. "
            "Check what removes them, and run it again."
        )
