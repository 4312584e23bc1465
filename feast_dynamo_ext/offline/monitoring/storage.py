"""Where metrics are kept: per table a folder of Parquet files, on S3 or a local disk.

Each write adds a file, so that writers need not know of each other; readers take of each key the
row that was written last. When a folder has many files they are folded into one: first that is
written, then they are removed. Rows are in both for a moment, which changes nothing.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from feast.monitoring.monitoring_utils import MONITORING_DIR

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import FeastDynamoError, SourceReadError
from feast_dynamo_ext.offline.monitoring.tables import (
    BASELINE,
    METRIC_TYPES,
    PROJECT,
    MetricsTable,
)
from feast_dynamo_ext.offline.writing.destination import files_of
from feast_dynamo_ext.offline.writing.parquet import write_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from feast import RepoConfig
    from pyarrow import fs

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.offline.writing.destination import Files

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
    def of(cls, config: RepoConfig) -> MetricsStorage:
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
            self._fold(MetricsTable.of(metric_type))

    def save(self, metric_type: str, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Add metrics; they replace those of the same keys.

        Raises:
            AwsError: S3 refused.
        """
        table = MetricsTable.of(metric_type)
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
        table = MetricsTable.of(metric_type)
        rows, _ = self._read(table)
        wanted = {**filters, PROJECT: project or None}
        return table.metrics(table.matching(rows, wanted, first, last))

    def clear_baseline(self, filters: Mapping[str, Any]) -> None:
        """Mark the features' baselines that have the filters' values as baselines no more.

        Raises: as `query`.
        """
        table = MetricsTable.of("feature")
        rows, _ = self._read(table)
        found = table.matching(rows, {**filters, BASELINE: True})
        if found.num_rows:
            at = found.schema.get_field_index(BASELINE)
            cleared = pa.array([False] * found.num_rows)
            self._add(table, found.set_column(at, found.schema.field(at), cleared))

    def files(self, metric_type: str) -> list[str]:
        """URIs of the files of a table."""
        return self._files(MetricsTable.of(metric_type))

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
