"""The Parquet files behind a Feast `FileSource`: a file, a folder or hive partitions, S3 or local.

Rows have positions: 0, 1, 2 ... over all files in the order of their paths. The join matches on
keys and times alone and keeps positions; then only the matched rows' features are read, in the
types the files have.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.file_source import FileSource
from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    FeastDynamoError,
    OfflineStoreError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.offline import scan
from feast_dynamo_ext.offline.scan import ReadingAt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from feast import RepoConfig
    from feast.data_source import DataSource
    from numpy.typing import NDArray

    from feast_dynamo_ext.aws import AwsSettings

logger = logging.getLogger(__name__)

ROW = "__row"
"""Name of the column that carries a row's position."""

HIDDEN = ("_", ".")  # _SUCCESS, _metadata, .crc and the like, by the convention of Hive and Spark


@dataclass(frozen=True)
class FileState:
    """One file as it was listed.

    Attributes:
        path: path within the filesystem.
        size: bytes.
        mtime_ns: time of its last change, nanoseconds since 1970 UTC.
    """

    path: str
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class ParquetSource:
    """The files of one source, listed once.

    Attributes:
        uri: what the source names.
        filesystem: where it is.
        files: its files, by path.
        dataset: the same as a pyarrow dataset.
        settings: how S3 was reached.
    """

    uri: str
    filesystem: fs.FileSystem
    files: tuple[FileState, ...]
    dataset: ds.Dataset
    settings: AwsSettings

    @classmethod
    def open(cls, data_source: DataSource, config: RepoConfig) -> ParquetSource:
        """List the files of a Feast data source.

        Raises:
            OfflineStoreError: not a `FileSource`, or not Parquet.
            SourceNotFoundError: no such file, folder or bucket, or a folder without files.
            SourceReadError: a file is there but is not Parquet.
            AccessDeniedError: AWS does not allow to list the folder.
        """
        uri = uri_of(data_source, config)
        settings = config.offline_store.aws()
        override = getattr(data_source, "s3_endpoint_override", None)
        if override:
            settings = replace(settings, endpoint_url=override)
        filesystem, path = aws.filesystem(uri, settings)
        files = _list_files(filesystem, path, uri, data_source.name)
        dataset = _dataset(filesystem, path, [file.path for file in files], uri)
        return cls(uri, filesystem, files, dataset, settings)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns, partition columns included."""
        return self.dataset.schema

    @property
    def rows(self) -> int:
        """How many rows the files say they have."""
        # Arrow's own count is of whole files, also where some of their row groups are left out.
        return sum(
            group.num_rows
            for fragment in self.dataset.get_fragments()
            for group in fragment.row_groups
        )

    def with_columns(self, names: Sequence[str], wanted_by: str) -> ParquetSource:
        """This source with a schema that has all of `names`.

        The schema is read from the first file; only where that lacks a column are all read.

        Raises:
            ColumnNotFoundError: no file has a column; names it, and what there is.
        """
        if set(names) <= set(self.schema.names):
            return self
        schema = pa.unify_schemas(
            [self.schema, *(part.physical_schema for part in self.dataset.get_fragments())],
            promote_options="permissive",
        )
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise ColumnNotFoundError(
                f"{wanted_by} names the columns {missing}, which no file of {self.uri} has; there "
                f"are {sorted(schema.names)}. Correct the view's schema, or add a `field_mapping` "
                "to the source."
            )
        return replace(self, dataset=self.dataset.replace_schema(schema))

    def within(self, column: str, first: datetime | None, last: datetime | None) -> ParquetSource:
        """This source without the files and row groups that hold no row of a range of time.

        Files say in their footers, and hive partitions in their paths, what they can hold; rows
        outside the range remain where they share a row group with rows inside.

        Args:
            column: a column of times.
            first: the first of the range; None for no limit.
            last: the last of it.

        Raises:
            SourceReadError: a file cannot be read.
        """
        with self._read_errors() as at:
            parts = scan.parts_within(self.dataset, column, first, last, at)
        return self if parts is None else replace(self, dataset=parts)

    def limits(self, column: str) -> pa.Array | None:
        """What footers say of a column of times: the least and the greatest value of row groups.

        Returns:
            All of them, in the source's type; none where all values are null. None where a footer
            does not say, or says what the source's type cannot hold.
        """
        return scan.limits(self.dataset, column)

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
        for batch in self._batches(self.dataset, columns):
            shaped = transform(batch) if transform else batch
            positions = np.arange(start, start + batch.num_rows, dtype=np.int64)
            start += batch.num_rows
            yield pa.RecordBatch.from_arrays(
                [*shaped.columns, pa.array(positions)], names=[*shaped.schema.names, ROW]
            )

    def fetch(
        self, columns: Sequence[str], positions: NDArray[np.int64]
    ) -> Iterator[pa.RecordBatch]:
        """The rows at the given ascending positions, in the files' own types, in order.

        Raises:
            SourceReadError: a file cannot be read, or changed since it was listed.
        """
        return self.fetch_each(columns, iter([positions]))

    def fetch_each(
        self, columns: Sequence[str], positions: Iterator[NDArray[np.int64]]
    ) -> Iterator[pa.RecordBatch]:
        """The same for positions that come in parts, which together ascend.

        Raises: as `fetch`.
        """
        start = 0
        wanted = next(positions, None)
        for batch in self._batches(self.dataset, columns):
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
        self._check_unchanged()

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """The schema of some columns."""
        return pa.schema([self.schema.field(name) for name in columns])

    def _batches(self, dataset: ds.Dataset, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._read_errors() as at:
            yield from scan.batches(dataset, columns, at)

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[ReadingAt]:
        """Errors of reading as ours, with the file that was read last."""
        at = ReadingAt(self.uri)
        try:
            with aws.s3_translated(self.uri):
                yield at
        except FeastDynamoError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise SourceReadError(
                f"{self.uri}: reading failed at or after {at.path}: {error}. Check that every "
                "file there is Parquet, whole, and of the types of the first."
            ) from error

    def _check_unchanged(self) -> None:
        infos = self.filesystem.get_file_info([file.path for file in self.files])
        for file, info in zip(self.files, infos, strict=True):
            if (info.size, info.mtime_ns) != (file.size, file.mtime_ns):
                raise SourceReadError(
                    f"{self.uri}: {file.path} changed while it was being read. Run it again; "
                    "write new files beside the old ones instead of replacing them."
                )


def uri_of(data_source: DataSource, config: RepoConfig) -> str:
    """Where a data source is; a relative path counts from the feature repo.

    Raises:
        OfflineStoreError: not a `FileSource`, or not Parquet.
    """
    if not isinstance(data_source, FileSource):
        raise OfflineStoreError(
            f"Source `{data_source.name}` is a {type(data_source).__name__}; "
            "S3ParquetOfflineStore reads Feast's `FileSource`. Export its data as "
            "Parquet and point a FileSource there."
        )
    file_format = data_source.file_format
    if not isinstance(file_format, ParquetFormat | None):
        raise OfflineStoreError(
            f"Source `{data_source.name}` has the format {type(file_format).__name__}; "
            "S3ParquetOfflineStore reads Parquet."
        )
    uri: str = FileSource.get_uri_for_file_path(config.repo_path, data_source.path)
    return uri


def _list_files(
    filesystem: fs.FileSystem, path: str, uri: str, name: str
) -> tuple[FileState, ...]:
    try:
        with aws.s3_translated(uri):
            info = filesystem.get_file_info(path)
            if info.type == fs.FileType.Directory:
                selector = fs.FileSelector(path, recursive=True)
                infos = [found for found in filesystem.get_file_info(selector) if found.is_file]
            else:
                infos = [info] if info.is_file else []
    except FeastDynamoError:
        raise
    except OSError as error:
        raise SourceReadError(f"Source `{name}`: {uri} cannot be listed: {error}.") from error
    root = path.rstrip("/")
    files = [
        FileState(found.path, found.size, found.mtime_ns)
        for found in infos
        if not any(part.startswith(HIDDEN) for part in found.path[len(root) :].split("/"))
    ]
    if not files:
        raise SourceNotFoundError(
            f"Source `{name}`: there is no file at {uri}. Check the path (a relative one counts "
            "from the feature repo), the bucket's name and region, or write the history first."
        )
    return tuple(sorted(files, key=lambda file: file.path))


def _dataset(filesystem: fs.FileSystem, path: str, files: list[str], uri: str) -> ds.Dataset:
    try:
        with aws.s3_translated(uri):
            return ds.dataset(
                files,
                format="parquet",
                filesystem=filesystem,
                partitioning=ds.HivePartitioning.discover(),
                partition_base_dir=path,
            )
    except FeastDynamoError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise SourceReadError(
            f"{uri}: {files[0]} cannot be read as Parquet: {error}. Remove it, or write it again."
        ) from error
