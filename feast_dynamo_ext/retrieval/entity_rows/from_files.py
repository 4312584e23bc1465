"""Entity rows from Parquet or CSV files, S3 or local, without a pandas copy.

Parquet is read as a source's history is: its types stay as they are. CSV has no types: they are
inferred, times without a zone are taken as UTC, and join keys that Feast knows as text are text,
so that `007` stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource
from pyarrow import csv

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import EntityRowsError, FeastDynamoError, SourceReadError
from feast_dynamo_ext.parquet.listing import Place
from feast_dynamo_ext.parquet.scan import ReadErrors
from feast_dynamo_ext.parquet.source import ROW, ParquetSource
from feast_dynamo_ext.retrieval.inputs import DEFAULT_EVENT_TIME, reject_duplicate_columns

if TYPE_CHECKING:
    from collections.abc import Collection

    from feast import RepoConfig

    from feast_dynamo_ext.storage import FileState


NAME = "entity_df"
"""What messages call the files."""

CSV = (".csv", ".csv.gz", ".csv.bz2", ".csv.zst")
NEITHER = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".txt",
    ".tsv",
    ".xlsx",
    ".feather",
    ".arrow",
    ".avro",
    ".orc",
)
WHOLE_FILE = 1 << 30
"""Bytes of a CSV file that types are inferred from at a second try, where the first megabyte was
not enough."""


def read_files(path: str, config: RepoConfig, text_columns: Collection[str] = ()) -> pa.Table:
    """The rows of a file, a folder or a glob, in the order of the files' paths.

    Args:
        path: local path or s3:// URI; a relative path counts from the feature repo. What ends in
            ``.csv`` (also ``.csv.gz``, ``.csv.bz2`` or ``.csv.zst``) is CSV, all else Parquet.
        config: the repo's config.
        text_columns: columns of a CSV that are text, whatever they look like.

    Raises:
        EntityRowsError: neither Parquet nor CSV, both in one folder, or CSV that cannot be read.
        SourceNotFoundError: there is no file.
        SourceReadError: a Parquet file that cannot be read.
        AccessDeniedError: AWS does not allow to list or read it.
    """
    uri: str = FileSource.get_uri_for_file_path(config.repo_path, path)
    place = Place.from_uri(uri, config.offline_store.aws())
    files = place.files(NAME)
    of_csv = [file for file in files if file.path.lower().endswith(CSV)]
    if not of_csv:
        return _parquet(uri, files, config)
    if len(of_csv) < len(files):
        raise EntityRowsError(
            f"Entity rows from {uri}: {len(of_csv):,} of {len(files):,} files are CSV, the "
            "others are not. Name those that are meant, for example with `*.csv` or `*.parquet`."
        )
    tables = [_csv(place, file, text_columns) for file in files]
    ReadErrors(place, files).check_unchanged()
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise EntityRowsError(
            f"Entity rows from {uri}: the CSV files have columns of different types: {error}. "
            "Write them as Parquet, which keeps types."
        ) from error


def _parquet(uri: str, files: tuple[FileState, ...], config: RepoConfig) -> pa.Table:
    other = next((file.path for file in files if file.path.lower().endswith(NEITHER)), None)
    if other is not None:
        raise EntityRowsError(
            f"Entity rows from {uri}: {other} is neither Parquet nor CSV. Write the rows as "
            "one of these, or load them and pass a DataFrame or an Arrow table."
        )
    named = FileSource(name=NAME, path=uri, timestamp_field=DEFAULT_EVENT_TIME)
    source = ParquetSource.open(named, config).with_all_types()
    schema = source.schema
    rows = pa.Table.from_batches(
        source.scan(schema.names), schema.append(pa.field(ROW, pa.int64()))
    )
    source.check_unchanged()
    return rows.drop_columns(ROW)


def _csv(place: Place, file: FileState, text_columns: Collection[str]) -> pa.Table:
    try:
        with aws.s3_translated(place.uri):
            table = _read_csv(place, file, text_columns)
        reject_duplicate_columns(table.column_names)
    except FeastDynamoError:
        raise
    except pa.ArrowException as error:
        raise EntityRowsError(
            f"Entity rows from {place.uri}: {file.path} cannot be read as CSV: {error}. It needs "
            "a line of column names, and as many values in each line."
        ) from error
    except OSError as error:
        raise SourceReadError(
            f"Entity rows from {place.uri}: {file.path} cannot be read: {error}."
        ) from error
    for name, value in file.partition:
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(table)))
    return table


def _read_csv(place: Place, file: FileState, text_columns: Collection[str]) -> pa.Table:
    try:
        return _with_zones(_parse(place, file, text_columns, None))
    except pa.ArrowInvalid:
        # A value that the first megabyte gave no type for, or a file that is no CSV at all.
        return _with_zones(_parse(place, file, text_columns, WHOLE_FILE))


def _parse(
    place: Place, file: FileState, text_columns: Collection[str], block_size: int | None
) -> pa.Table:
    with place.filesystem.open_input_stream(file.path) as stream:
        return csv.read_csv(
            stream,
            csv.ReadOptions(block_size=block_size),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(text_columns, pa.string())
            ),
        )


def _with_zones(table: pa.Table) -> pa.Table:
    """Times without a zone as UTC."""
    return table.cast(
        pa.schema(
            [
                column.with_type(pa.timestamp(column.type.unit, tz="UTC"))
                if pa.types.is_timestamp(column.type)
                else column
                for column in table.schema
            ]
        )
    )
