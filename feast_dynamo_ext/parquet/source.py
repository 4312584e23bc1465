"""The Parquet files behind a data source: a file, a folder, a glob, hive partitions, Delta.

Rows have positions: 0, 1, 2 ... over all files in the order of their paths. The join matches on
keys and times alone and keeps positions; then only the matched rows' features are read, in the
types the files have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from feast.data_format import DeltaFormat, ParquetFormat
from feast.infra.offline_stores.file_source import FileSource

from feast_dynamo_ext.arrow_types import without_view_layouts
from feast_dynamo_ext.columns import join_keys, stored_names, stored_times
from feast_dynamo_ext.errors import ColumnNotFoundError, OfflineStoreError
from feast_dynamo_ext.parquet import scan
from feast_dynamo_ext.parquet.dataset import SourceDataset
from feast_dynamo_ext.parquet.delta import read_delta
from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg
from feast_dynamo_ext.parquet.iceberg.table_files import iceberg_columns, read_iceberg
from feast_dynamo_ext.parquet.listing import DatePartitioned, Periods, Place
from feast_dynamo_ext.parquet.scan import ReadErrors
from feast_dynamo_ext.storage import settings_of
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow.dataset as ds
    from feast import RepoConfig
    from feast.data_source import DataSource
    from numpy.typing import NDArray
    from pyarrow import fs

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.listing import TableFiles, TieBreak
    from feast_dynamo_ext.storage import FileState


T = TypeVar("T")

ROW = "__row"
"""Name of the column that carries a row's position."""


@dataclass(frozen=True)
class ParquetSource:
    """The files of one source, listed once.

    Attributes:
        parts: its files, and their row groups that count.
        settings: how S3 was reached.
    """

    parts: SourceDataset
    settings: AwsSettings

    @classmethod
    def open(cls, data_source: DataSource, config: RepoConfig) -> ParquetSource:
        """List the files of a Feast data source, and read the footers of the first and the last.

        Raises:
            OfflineStoreError: a kind of source or a format that this store does not read.
            SourceNotFoundError: no such file, folder or bucket, or a folder without files.
            SourceReadError: a file is there but is not Parquet.
            ColumnTypeError: the first and the last file have types that do not go together.
            DependencyError: a Delta or Iceberg table, and what reads its log is not installed.
            AccessDeniedError: AWS does not allow to list the folder, or to read a file.
        """
        settings = config.offline_store.aws()
        if is_iceberg(data_source):
            _check_own_credentials(data_source)
            return cls(SourceDataset.of_table(*read_iceberg(data_source, config)), settings)
        settings = settings_of(data_source, config)
        place = Place.from_uri(uri_of(data_source, config), settings)
        if isinstance(getattr(data_source, "file_format", None), DeltaFormat):
            table = read_delta(place, data_source.name, config.offline_store.spill_folder)
            return cls(SourceDataset.of_table(place, table), settings)
        files = place.files(data_source.name)
        return cls(SourceDataset.of_files(place, files, _periods(data_source, place)), settings)

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.parts.place

    @property
    def uri(self) -> str:
        """What the source names."""
        return self.parts.place.uri

    @property
    def filesystem(self) -> fs.FileSystem:
        """Where it is."""
        return self.parts.place.filesystem

    @property
    def files(self) -> tuple[FileState, ...]:
        """Its files in the order of their rows' positions; after `within`, those that are left."""
        return self.parts.files

    @property
    def dataset(self) -> ds.FileSystemDataset:
        """The same as a pyarrow dataset."""
        return self.parts.dataset

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns, partition columns included."""
        return self.parts.schema

    @property
    def of_folders(self) -> frozenset[str]:
        """Columns that the folders' names say, and not the files."""
        return self.parts.of_folders

    @property
    def rows(self) -> int:
        """How many rows the files say they have."""
        # Arrow's own count is of whole files, also where some of their row groups are left out.
        if self.parts.views is not None:
            groups = scan.row_groups(self.dataset, self._read_errors().of_file, self.parts.views)
            return sum(group.rows for group in groups)
        return sum(
            group.num_rows for fragment in self.parts.fragments for group in fragment.row_groups
        )

    @property
    def ties(self) -> TieBreak | None:
        """Decides between equal rows; None where the later position wins."""
        return self.parts.table.ties if self.parts.table else None

    @property
    def internal(self) -> frozenset[str]:
        """Columns that are no one's features, as the sequence of a history table."""
        return self.parts.table.internal if self.parts.table else frozenset()

    @property
    def item_keys(self) -> tuple[str, ...]:
        """Columns by which rows of a history table that we made are of one item, or entity."""
        return self.parts.table.keys if self.parts.table else ()

    def holding_any(self, ranges: Mapping[str, tuple[int | None, int | None]]) -> ParquetSource:
        """This source without the files that hold no value of any of some ranges.

        Args:
            ranges: the least and the greatest value by column, as a table's log has them: whole
                numbers, or ticks since 1970 in the column's unit; None for no limit.
        """
        bounds = self.parts.table.bounds if self.parts.table else None
        if bounds is None:
            return self

        def may_hold(path: str, column: str) -> bool:
            said, (least, greatest) = bounds.range(path, column), ranges[column]
            return said is None or (
                (greatest is None or said[0] <= greatest) and (least is None or said[1] >= least)
            )

        kept = {file.path for file in self.files if any(may_hold(file.path, c) for c in ranges)}
        return self if len(kept) == len(self.files) else replace(self, parts=self.parts.only(kept))

    def holds_only(self, column: str, value: str) -> bool:
        """Whether a table's log says that a column of texts has one value in all of its rows.

        It is said of each file that the snapshot has, so it holds whoever wrote them.
        """
        bounds = self.parts.table.bounds if self.parts.table else None
        return bounds is not None and all(
            bounds.range(file.path, column) == (value, value)
            and not bounds.may_hold_null(file.path, column)
            for file in self.files
        )

    @property
    def table(self) -> TableFiles | None:
        """What a table's log says; None where there is none."""
        return self.parts.table

    def with_columns(
        self, names: Sequence[str], wanted_by: str, times: Sequence[str] = ()
    ) -> ParquetSource:
        """This source with a schema that has all of `names`.

        Those of `times` are named by the source itself, not by a view's schema.

        Only where the first and the last file lack a column are the footers of all read.

        Raises:
            ColumnNotFoundError: no file has a column; names it, and what there is.
            ColumnTypeError: a column has types that do not go together.
        """
        known = {field.name for field in self.schema if not pa.types.is_null(field.type)}
        if set(names) <= known:
            return self
        source = self.with_all_types()
        missing = [name for name in names if name not in source.schema.names]
        if missing:
            correct = "the view's schema, or add a `field_mapping` to the source"
            if set(missing) <= set(times):
                correct = "`timestamp_field` or `created_timestamp_column` of the source"
            raise ColumnNotFoundError(
                f"{wanted_by} names the columns {missing}, which no file of {self.uri} has; there "
                f"are {sorted(source.schema.names)}. Correct {correct}."
            )
        return source

    def with_folder_types(self, declared: Mapping[str, pa.DataType]) -> ParquetSource:
        """This source with columns that only folders' names say in the types of a declaration.

        Raises:
            ColumnTypeError: a folder's name is no value of its column's type.
        """
        return replace(self, parts=self.parts.with_folder_types(declared))

    def with_all_types(self) -> ParquetSource:
        """This source with the columns of all files, in types that hold what each file holds.

        Raises:
            ColumnTypeError: a column has types that do not go together.
            SourceReadError: a file cannot be read.
        """
        return replace(self, parts=self.parts.with_all_types())

    def within(self, column: str, first: datetime | None, last: datetime | None) -> ParquetSource:
        """This source without the files and row groups that hold no row of a range of time.

        Files say in their folders' names and in their footers what they can hold; rows outside the
        range remain where they share a row group with rows inside. A file that is left out by its
        folder's name is not opened. The schema is then that of all files that are left, at least.

        Args:
            column: a column of times.
            first: the first of the range; None for no limit.
            last: the last of it.

        Raises:
            ColumnTypeError: a column has types that do not go together.
            SourceReadError: a file cannot be read, or its folder's name is not of the format.
        """
        return replace(self, parts=self.parts.within(column, first, last))

    @property
    def has_bounds(self) -> bool:
        """Whether a table's log says what its files may hold."""
        return self.parts.table is not None and self.parts.table.bounds is not None

    def with_keys(self, keys: Mapping[str, pa.Array | pa.ChunkedArray]) -> ParquetSource:
        """This source without the files that hold none of some keys, as a table's log says.

        Args:
            keys: join keys by the source's columns, in the types that are compared; see
                `key_types.comparable`. No file is opened.
        """
        return replace(self, parts=self.parts.with_keys(keys))

    def limits(self, column: str) -> pa.Array | None:
        """What footers say of a column of times: the least and the greatest value of row groups.

        Returns:
            All of them, in the source's type; none where all values are null. None where a footer
            does not say, or says what the source's type cannot hold.
        """
        return self.parts.limits(column)

    def scan(
        self,
        columns: Sequence[str],
        transform: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """All rows, with their positions in the column `ROW`, batch by batch in order.

        Args:
            columns: names of the columns to read.
            transform: applied to each batch before the positions are added.

        Raises:
            SourceReadError: a file cannot be read.
        """
        start = 0
        for batch in self._batches(columns):
            shaped = transform(batch) if transform else batch
            positions = np.arange(start, start + batch.num_rows, dtype=np.int64)
            start += batch.num_rows
            yield pa.RecordBatch.from_arrays(
                [*shaped.columns, pa.array(positions)], names=[*shaped.schema.names, ROW]
            )

    def each(
        self,
        columns: Sequence[str],
        work: Callable[[pa.RecordBatch, int], T],
        threads: int,
        wanted: NDArray[np.int64] | None = None,
        together: int = 0,
    ) -> Iterator[T]:
        """What a function makes of all rows, batch by batch, in order; see `scan.each`.

        Raises:
            SourceReadError: a file cannot be read.
        """
        dataset, reading = self.parts.readable(columns), self._read_errors().of_file
        yield from scan.each(
            dataset, columns, work, threads, reading, wanted, together, self.parts.views
        )

    def fetch(
        self, columns: Sequence[str], positions: NDArray[np.int64], threads: int = 1
    ) -> Iterator[pa.RecordBatch]:
        """The rows at the given ascending positions, in the files' own types, in order.

        Raises:
            SourceReadError: a file cannot be read, or changed since it was listed.
        """

        def wanted(batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
            first, end = np.searchsorted(positions, [start, start + batch.num_rows])
            return batch.take(pa.array(positions[first:end] - start))

        yield from self.each(columns, wanted, threads, positions)
        self.check_unchanged()

    def fetch_each(
        self, columns: Sequence[str], positions: Iterator[NDArray[np.int64]]
    ) -> Iterator[pa.RecordBatch]:
        """The same for positions that come in parts, which together ascend.

        Raises: as `fetch`.
        """
        start = 0
        wanted = next(positions, None)
        for batch in self._batches(columns):
            end = start + batch.num_rows
            while wanted is not None:
                upto = int(np.searchsorted(wanted, end))
                if upto:
                    yield batch.take(pa.array(wanted[:upto] - start))
                wanted = wanted[upto:] if upto < len(wanted) else next(positions, None)
                if wanted is not None and len(wanted) and wanted[0] >= end:
                    break
            start = end
            if wanted is None:
                break
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Refuse what was read if a file is no longer what it was when it was listed.

        Raises:
            SourceReadError: names the file.
        """
        self._read_errors().check_unchanged()

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """The schema of some columns."""
        return pa.schema([self.schema.field(name) for name in columns])

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        dataset, reading = self.parts.readable(columns), self._read_errors().of_file
        yield from scan.batches(dataset, columns, reading, self.parts.views)

    def _read_errors(self) -> ReadErrors:
        parts = self.parts
        files = (*parts.files, *parts.left_out)
        return ReadErrors(parts.place, files, self._other_types, is_table=parts.of_log)

    def _other_types(self, path: str) -> str:
        """Columns of a file that the source has in other types: what a failed cast is about."""
        stored = [part.physical_schema for part in self.parts.fragments if part.path == path]
        others = [
            f"`{field.name}` ({field.type}, read as {self.schema.field(field.name).type})"
            for schema in stored[:1]
            for field in without_view_layouts(schema)
            if field.name in self.schema.names and field.type != self.schema.field(field.name).type
        ]
        return f" Columns of other types there: {', '.join(others)}." if others else ""


def uri_of(data_source: DataSource, config: RepoConfig) -> str:
    """Where a data source is; a relative path counts from the feature repo.

    Raises:
        OfflineStoreError: a kind of source or a format that this store does not read.
    """
    if is_iceberg(data_source):
        raise OfflineStoreError(
            f"Source `{data_source.name}` is an Iceberg table, whose files are those that its "
            "metadata names. Here a folder is needed: a `FileSource` or an `S3ParquetSource`."
        )
    if not isinstance(data_source, (FileSource, DatePartitioned)):
        raise OfflineStoreError(
            f"Source `{data_source.name}` is a {type(data_source).__name__}; "
            "S3ParquetOfflineStore reads Feast's `FileSource` and `IcebergSource`, and its own "
            "`S3ParquetSource`. Export its data as Parquet and point one of these there."
        )
    _check_own_credentials(data_source)
    file_format = getattr(data_source, "file_format", None)
    if not isinstance(file_format, ParquetFormat | DeltaFormat | None):
        raise OfflineStoreError(
            f"Source `{data_source.name}` has the format {type(file_format).__name__}; "
            "S3ParquetOfflineStore reads Parquet and Delta."
        )
    path: str = data_source.path
    if path.startswith("file://"):  # which Feast takes for a relative path
        return path
    uri: str = FileSource.get_uri_for_file_path(config.repo_path, path)
    return uri


def _check_own_credentials(data_source: DataSource) -> None:
    if data_source.connection_ref is not None:
        raise OfflineStoreError(
            f"Source `{data_source.name}` has a `connection_ref`, whose credentials "
            "S3ParquetOfflineStore does not use: all sources are read with those of the "
            "`offline_store` block of feature_store.yaml. Set `profile` or `role_arn` there, and "
            "remove `connection_ref`."
        )


def columns_of(data_source: DataSource, config: RepoConfig) -> list[tuple[str, str]]:
    """Names and types of the columns that rows of a source bring.

    Columns of all files and of hive folders, but for those that follow from the event time: no row
    that is appended has to say them, and no view gets them for features unless it names them.
    Types are Arrow's; those of an Iceberg table its own, as Feast wants them.

    Raises:
        OfflineStoreError: the source cannot be read; see the subclasses.
    """
    if is_iceberg(data_source):
        _check_own_credentials(data_source)
        return iceberg_columns(data_source, config)
    schema = ParquetSource.open(data_source, config).with_all_types().schema
    derived = getattr(data_source, "derived_columns", {})
    return [(column.name, str(column.type)) for column in schema if column.name not in derived]


def check_times(data_source: DataSource, config: RepoConfig) -> ParquetSource:
    """Check that a source's files are there, with its columns of time; the source.

    Raises:
        OfflineStoreError: they are not; see the subclasses.
    """
    names = [name for name in stored_times(data_source) if name]
    source = ParquetSource.open(data_source, config)
    return source.with_columns(names, f"Source `{data_source.name}`")


def check_columns(source: ParquetSource, view: Any) -> None:
    """Check that a view's keys and features are columns of its source.

    Views that compute their features of other columns are not checked.

    Raises:
        OfflineStoreError: they are not; see the subclasses.
    """
    is_computed = ViewSettings.from_view(view).derived is not None
    if (
        is_computed
        or getattr(view, "feature_transformation", None)
        or getattr(view, "aggregations", None)
    ):
        return
    stored = stored_names(view.batch_source)
    names = [stored[name] for name in (*join_keys(view), *(one.name for one in view.features))]
    source.with_columns(names, f"Feature view `{view.name}`")


def _periods(data_source: DataSource, place: Place) -> Periods | None:
    if not isinstance(data_source, DatePartitioned) or not data_source.folder_format:
        return None
    column, _ = stored_times(data_source)
    return Periods(column, data_source.folder_format, place.root)
