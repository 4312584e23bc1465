"""A Delta Lake table as files: which are active, and the schema, come from its log.

The library `deltalake` reads the log; the files are read as all others are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import DependencyError, SourceNotFoundError, SourceReadError
from feast_dynamo_ext.parquet.listing import TableFiles
from feast_dynamo_ext.storage import FileState

if TYPE_CHECKING:
    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.listing import Place


def read_delta(place: Place, settings: AwsSettings, source: str) -> TableFiles:
    """The newest version of a table.

    Args:
        place: the table's folder.
        settings: how S3 is reached.
        source: the source's name, for messages.

    Raises:
        DependencyError: `deltalake` is not installed.
        SourceNotFoundError: there is no table.
        SourceReadError: its log cannot be read, or it needs what is not supported: deletion
            vectors, column mapping.
    """
    deltalake = _library(source)
    try:
        table = deltalake.DeltaTable(place.uri, storage_options=_storage(place, settings))
        _check_supported(table, place.uri, source)
        added = pa.table(table.get_add_actions(flatten=True))
        schema = pa.schema(table.schema().to_arrow())
    except deltalake.exceptions.TableNotFoundError as error:
        raise SourceNotFoundError(
            f"Source `{source}`: there is no Delta table at {place.uri}: {error}. Check the path, "
            "the bucket's name and region."
        ) from error
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise SourceReadError(
            f"Source `{source}`: the log of the Delta table {place.uri} cannot be read: {error}."
        ) from error
    names = [name.partition(".")[2] for name in added.column_names if _is_partition(name)]
    partitions = {name: schema.field(name).type for name in names}
    return TableFiles(_files(place, added, names), schema, partitions)


def _library(source: str) -> Any:
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise DependencyError(
            f"Source `{source}` is a Delta table, which the library `deltalake` reads. Run "
            "`pip install 'deltalake>=1.2'`."
        ) from error
    return deltalake


def _check_supported(table: Any, uri: str, source: str) -> None:
    refused = ""
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        refused = "names its columns anew (column mapping)"
    elif "deletionVectors" in (table.protocol().reader_features or ()) and _has_vectors(table):
        refused = "has deletion vectors (run `REORG TABLE ... APPLY (PURGE)`)"
    if refused:
        raise SourceReadError(
            f"Source `{source}`: the Delta table {uri} {refused}, which S3ParquetOfflineStore "
            "does not read. Write a plain copy of the table and point the source there."
        )


def _has_vectors(table: Any) -> bool:
    from deltalake.exceptions import DeltaError

    try:
        return next(iter(table.deletion_vectors()), None) is not None
    except DeltaError:
        return True  # one that cannot be read


def _is_partition(name: str) -> bool:
    return name.startswith("partition.")


def _files(place: Place, added: pa.Table, partitions: list[str]) -> tuple[FileState, ...]:
    values = {name: added.column(f"partition.{name}").cast(pa.string()) for name in partitions}
    columns = zip(
        added.column("path").to_pylist(),
        added.column("size_bytes").to_pylist(),
        zip(*(column.to_pylist() for column in values.values()), strict=True)
        if values
        else [()] * added.num_rows,
        strict=True,
    )
    states = {file.path: file for file in place.everything()}
    found = []
    for name, size, texts in columns:
        path = f"{place.root}/{unquote(name)}"
        if path not in states or states[path].size != size:
            raise SourceReadError(
                f"{place.uri}: {path}, which the table's log names, is not there or not of "
                f"{size} bytes. Repair the table."
            )
        state = states[path]
        partition = tuple(zip(partitions, texts, strict=True))
        found.append(FileState(path, size, state.mtime_ns, state.etag, partition))
    return tuple(sorted(found, key=lambda file: file.path))


def _storage(place: Place, settings: AwsSettings) -> dict[str, str] | None:
    """What the library needs to reach S3 as the rest of this package does."""
    if not place.is_on_s3:
        return None
    session = aws.session(settings)
    credentials = session.get_credentials()
    if credentials is None:
        raise aws.no_credentials("s3", place.uri)
    frozen = credentials.get_frozen_credentials()
    endpoint = aws.endpoint_url("s3", settings, session)
    options = {
        "AWS_ACCESS_KEY_ID": frozen.access_key,
        "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
        "AWS_SESSION_TOKEN": frozen.token,
        "AWS_REGION": session.region_name,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if (endpoint or "").startswith("http://") else None,
        "proxy_url": aws.s3_proxy(settings, session),
    }
    return {name: value for name, value in options.items() if value is not None}
