"""Logged features: what feature servers answered, appended to where a feature service logs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast.infra.offline_stores.file_source import FileLoggingDestination

from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    OfflineStoreError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.append import write_folders
from feast_dynamo_ext.parquet.fitted import fitted
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.destinations import (
    IcebergLoggingDestination,
    found_or_made,
)
from feast_dynamo_ext.parquet.iceberg.table_schema import storable
from feast_dynamo_ext.parquet.listing import HIVE_NULL
from feast_dynamo_ext.parquet.source import uri_of
from feast_dynamo_ext.storage import files_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast import RepoConfig
    from feast.feature_logging import LoggingConfig, LoggingSource
    from feast.infra.registry.base_registry import BaseRegistry


def append_logs(
    config: RepoConfig,
    data: pa.Table | Path,
    source: LoggingSource,
    logging_config: LoggingConfig,
    registry: BaseRegistry,
) -> list[str]:
    """Append logs as new files; with `partition_by` in folders named by those columns' values.

    The columns stay in the files, so that they are read back in their own types.

    Args:
        config: the repo's config.
        data: the logs, or a file or folder of Parquet that has them.
        source: what was logged; gives the schema.
        logging_config: where to.
        registry: Feast's registry.

    Returns:
        URIs of the new files.

    Raises:
        OfflineStoreError: the destination is not a `FileLoggingDestination`.
        ColumnNotFoundError: the logs lack a column of the schema, or of `partition_by`.
        ColumnTypeError: a value does not fit the schema.
    """
    destination = logging_config.destination
    if not isinstance(destination, FileLoggingDestination | IcebergLoggingDestination):
        raise OfflineStoreError(
            f"Features are logged to a {type(destination).__name__}; S3ParquetOfflineStore "
            "writes to Feast's `FileLoggingDestination` and to `IcebergLoggingDestination`."
        )
    data_source = destination.to_data_source()
    handle, partition_by = None, []
    if isinstance(destination, IcebergLoggingDestination):
        handle = TableHandle.from_source(data_source, config)
        uri = handle.name
    else:
        uri = uri_of(data_source, config).rstrip("/")
        partition_by = destination.partition_by or []
    try:
        schema = source.get_schema(registry)
    except KeyError as error:  # of Feast's table of types
        raise OfflineStoreError(
            f"Feast has no form for logs of features of type {error.args[0]}, for example none "
            "for Uuid, Json and nested types. Log a feature service without them."
        ) from error
    logs = _typed(_table(data), schema, partition_by, uri)
    if handle is not None:
        return _append_to_table(handle, logs.select(schema.names))
    files = files_of(uri, settings_of(data_source, config))
    return write_folders(files, uri, logs.schema, _split(logs, partition_by))


def _append_to_table(handle: TableHandle, logs: pa.Table) -> list[str]:
    found_or_made(handle, storable(logs.schema))
    columns = handle.columns()
    missing = [name for name in logs.column_names if name not in columns.names]
    if missing:
        raise ColumnNotFoundError(
            f"The Iceberg table {handle.name} lacks the columns {missing} of the logs; it has "
            f"{columns.names}. Add them to the table, or log to another one."
        )
    typed = {
        column.name: fitted(
            logs.column(column.name),
            column.type,
            column.name,
            f"The logs for {handle.name}: column `{column.name}`",
            "the table",
        )
        if column.name in logs.column_names
        else pa.nulls(len(logs), column.type)
        for column in columns
    }
    handle.append(pa.table(typed, columns))
    return [handle.name]


def _table(data: pa.Table | Path) -> pa.Table:
    if not isinstance(data, Path):
        return data
    try:
        return ds.dataset(data, format="parquet").to_table()
    except (pa.ArrowException, OSError) as error:
        raise SourceReadError(f"Logs at {data} cannot be read as Parquet: {error}.") from error


def _typed(logs: pa.Table, schema: pa.Schema, partition_by: Sequence[str], uri: str) -> pa.Table:
    """Logs in the types that the feature service has; a chunk of nulls alone has none."""
    wanted = [*schema.names, *partition_by]
    missing = [name for name in dict.fromkeys(wanted) if name not in logs.column_names]
    if missing:
        raise ColumnNotFoundError(
            f"The logs for {uri} lack the columns {missing}; they have {logs.column_names}."
        )
    columns = {name: logs.column(name) for name in logs.column_names}
    typed = {}
    for column in schema:
        name = f"The logs for {uri}: column `{column.name}`"
        typed[column.name] = fitted(
            logs.column(column.name), column.type, column.name, name, "the feature service"
        )
    return pa.table(columns | typed)


def _split(logs: pa.Table, partition_by: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    if not partition_by:
        yield "", logs
        return
    levels = [
        pc.fill_null(logs.column(name).cast(pa.string()), HIVE_NULL) for name in partition_by
    ]
    keys = pa.table(levels, names=[str(at) for at in range(len(levels))])
    for values in keys.group_by(keys.column_names).aggregate([]).to_pylist():
        chosen = pa.chunked_array([pa.array([True] * len(logs))])
        for name, value in values.items():
            chosen = pc.and_(chosen, pc.equal(keys.column(name), value))
        yield "/".join(map(_folder, values.values())), logs.filter(chosen)


def _folder(value: str) -> str:
    """A folder's name that readers do not take for hidden, or for a hive column."""
    name = quote(value, safe="")
    return f"%{ord(name[0]):02X}{name[1:]}" if name[0] in "_." else name or "%"
