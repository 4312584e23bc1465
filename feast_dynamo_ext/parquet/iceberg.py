"""An Iceberg table as files: which count, and the schema, come from its catalog and metadata.

The library `pyiceberg` reads these; the files are read as all others are, by the names of their
columns. Iceberg knows columns by number, so a file that has one under another name is refused.
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto

from feast_dynamo_ext import aws
from feast_dynamo_ext.arrow_types import LARGE_TO_PLAIN, map_type
from feast_dynamo_ext.errors import (
    ConfigError,
    DependencyError,
    FeastDynamoError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.listing import (
    S3_SCHEMES,
    Place,
    TableChangedError,
    TableFiles,
    settled,
)
from feast_dynamo_ext.parquet.scan import ReadErrors
from feast_dynamo_ext.storage import FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from feast.data_source import DataSource

    from feast_dynamo_ext.aws import AwsSettings


PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Writers put other names into files in other words."""

FIELD_ID = b"PARQUET:field_id"

# Types of columns whose value, the same in all rows of a file, is read from its partition.
PARTITION_TYPES = ("boolean", "int", "long", "string", "date")


def is_iceberg(source: DataSource) -> bool:
    """Whether a source is Feast's `IcebergSource`, or one that is made of it."""
    return bool(source.source_type() == DataSourceProto.BATCH_ICEBERG)


def read_iceberg(source: Any, settings: AwsSettings) -> tuple[Place, TableFiles]:
    """The current snapshot of a table, and where its files are.

    Args:
        source: Feast's `IcebergSource`.
        settings: how S3 and AWS' catalogs are reached.

    Raises:
        DependencyError: `pyiceberg` is not installed, or what it needs for the catalog.
        ConfigError: the environment variable of the catalog's token is not set.
        SourceNotFoundError: there is no such table.
        SourceReadError: catalog or metadata cannot be read, a file is not there, or the table
            needs what is not supported: rows deleted in files of their own, columns with another
            name in a file, default values, files that are not Parquet.
    """
    return settled(lambda: _read(source, settings))


def _read(source: Any, settings: AwsSettings) -> tuple[Place, TableFiles]:
    table = _loaded(source, settings)
    schema = table.schema()
    try:
        with aws.s3_translated(_name(source)):
            tasks = list(table.scan().plan_files())
    except FeastDynamoError:
        raise
    except Exception as error:
        raise _unreadable(source, error) from error
    _check_supported(source, schema, tasks)
    place = Place.from_uri(_folder(source, table, tasks), settings)
    files = tuple(_files(source, place, table, tasks))
    if _may_differ(schema, table.metadata.schemas):
        _check_names(source, place, schema, files)
    names = {name for file in files for name, _ in file.partition}
    columns = _columns(schema)
    return place, TableFiles(files, columns, {name: columns.field(name).type for name in names})


def iceberg_columns(source: Any, settings: AwsSettings) -> list[tuple[str, str]]:
    """Names of a table's columns and Iceberg's names of their types, which Feast maps.

    Raises: as `read_iceberg`.
    """
    fields = _loaded(source, settings).schema().fields
    return [(field.name, str(field.field_type)) for field in fields]


def _loaded(source: Any, settings: AwsSettings) -> Any:
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import (
            NoSuchNamespaceError,
            NoSuchTableError,
            NotInstalledError,
        )
    except ImportError as error:
        raise DependencyError(
            f"Source `{source.name}` is an Iceberg table, which the library `pyiceberg` reads. "
            "Run `pip install 'pyiceberg>=0.10'`."
        ) from error
    properties = _properties(source, settings)
    try:
        with (
            aws.s3_translated(_name(source)),
            aws.translated(source.catalog_type, _name(source)),
        ):
            return load_catalog(source.catalog_name, **properties).load_table(_name(source))
    except FeastDynamoError:
        raise
    except (NoSuchNamespaceError, NoSuchTableError) as error:
        raise SourceNotFoundError(
            f"Source `{source.name}`: the catalog has no table {_name(source)}: {error}. Check "
            "`namespace`, `table` and `warehouse` of the source."
        ) from error
    except (NotInstalledError, ImportError) as error:
        raise DependencyError(
            f"Source `{source.name}`: pyiceberg needs more for a catalog of the type "
            f"`{source.catalog_type}`: {error}."
        ) from error
    except Exception as error:  # each kind of catalog raises errors of its own
        raise _unreadable(source, error) from error


def _name(source: Any) -> str:
    return f"{source.namespace}.{source.iceberg_table}"


def _unreadable(source: Any, error: Exception) -> SourceReadError:
    said = " ".join(str(error).split()).rstrip(".")
    kind = TableChangedError if isinstance(error, FileNotFoundError) else SourceReadError
    return kind(
        f"Source `{source.name}`: the Iceberg table {_name(source)} "
        f"cannot be loaded: {type(error).__name__}: {said}. Check the source's catalog, and that "
        "its metadata may be read."
    )


def _properties(source: Any, settings: AwsSettings) -> dict[str, Any]:
    """What `load_catalog` is given: the source's own properties before those of the config."""
    named = {"type": source.catalog_type, "uri": source.endpoint, "warehouse": source.warehouse}
    if source.token_env_var:
        named["token"] = os.environ.get(source.token_env_var, "")
        if not named["token"]:
            raise ConfigError(
                f"Source `{source.name}` takes the catalog's token from the environment variable "
                f"`{source.token_env_var}`, which is not set. Set it."
            )
    given = {name: value for name, value in named.items() if value}
    return {**_of_aws(source, settings), **given, **source.catalog_properties}


S3 = "feast-dynamo.s3"
"""Name of the property that makes the filesystem of `file_io`."""

OWN_ACCESS = re.compile(r"py-io-impl|s3\..*|.*\.(access-key-id|profile-name)|botocore_session")
"""Properties by which a source says itself how pyiceberg reaches AWS."""


def _of_aws(source: Any, settings: AwsSettings) -> dict[str, Any]:
    """How AWS is reached: as the rest of this package does, unless the source says it itself."""
    if source.warehouse.startswith(("/", "file:")):
        return {}
    if not any(OWN_ACCESS.fullmatch(name) for name in source.catalog_properties):
        session = aws.botocore_session(settings)
        return {
            "client.region": session.get_config_variable("region"),
            # Of the catalogs of AWS: its profile's certificates and credentials.
            "botocore_session": session,
            "py-io-impl": f"{__name__}.{file_io.__name__}",
            # One for the metadata and all manifests, and none where they are not on S3.
            S3: functools.cache(lambda: aws.filesystem("s3://metadata", settings)[0]),
        }
    session = aws.session(settings)
    found = {
        "client.region": session.region_name,
        "s3.endpoint": aws.endpoint_url("s3", settings, session),
        "s3.proxy-uri": aws.s3_proxy(settings, session),
    }
    with aws.translated("s3", _name(source)):
        credentials = session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
    if frozen is not None:
        found |= {
            "client.access-key-id": frozen.access_key,
            "client.secret-access-key": frozen.secret_key,
            "client.session-token": frozen.token,
        }
    return {name: value for name, value in found.items() if value}


def file_io(properties: dict[str, Any]) -> Any:
    """The FileIO of pyiceberg's own, with the S3 of this package; `py-io-impl` names it.

    pyiceberg's S3 takes neither a CA bundle nor credentials that renew themselves.
    """
    from pyiceberg.io.pyarrow import PyArrowFileIO

    made = PyArrowFileIO(properties)
    others = made.fs_by_scheme

    def filesystem(scheme: str, host: str | None = None) -> Any:
        return properties[S3]() if f"{scheme}://" in S3_SCHEMES else others(scheme, host)

    made.fs_by_scheme = filesystem
    return made


def _check_supported(source: Any, schema: Any, tasks: Iterable[Any]) -> None:
    refused = ""
    defaults = [field.name for field in schema.fields if field.initial_default is not None]
    if defaults:
        refused = f"has default values, of the columns {defaults}"
    elif any(task.delete_files for task in tasks):
        refused = "has rows that are deleted in files of their own (run `rewrite_data_files`)"
    elif any(task.file.file_format.name != "PARQUET" for task in tasks):
        refused = "has files that are not Parquet"
    if refused:
        raise _refused(source, refused)


def _refused(source: Any, why: str) -> SourceReadError:
    return SourceReadError(
        f"Source `{source.name}`: the Iceberg table {_name(source)} "
        f"{why}, which S3ParquetOfflineStore does not read. Rewrite the table, or write a plain "
        "copy and point a `FileSource` there."
    )


def _path(uri: str) -> str:
    """The path within the filesystem."""
    if uri.startswith(S3_SCHEMES):
        return uri.partition("://")[2]
    # As it stands, like pyiceberg: a `%20` in it is one in the file's name.
    return re.sub(r"^file:(//)?", "", uri)


def _folder(source: Any, table: Any, tasks: Iterable[Any]) -> str:
    """The longest folder that all files are in, as a URI; of a table without any, its own."""
    uris = [task.file.file_path for task in tasks]
    foreign = [uri for uri in uris if not _is_known(uri)]
    if foreign or len({uri.startswith(S3_SCHEMES) for uri in uris}) > 1:
        raise _refused(source, f"has files in several places, such as {(foreign or uris)[0]}")
    scheme = "s3://" if uris and uris[0].startswith(S3_SCHEMES) else ""
    paths = [_path(uri).rpartition("/")[0] for uri in uris]
    if not paths:
        return str(table.location())
    if scheme and len({path.partition("/")[0] for path in paths}) > 1:
        raise _refused(source, "has files in several buckets")
    return scheme + os.path.commonpath(paths)


def _is_known(uri: str) -> bool:
    return uri.startswith((*S3_SCHEMES, "file:", "/"))


def _files(source: Any, place: Place, table: Any, tasks: Iterable[Any]) -> Iterator[FileState]:
    states = {file.path: file for file in place.everything()}
    for task in sorted(tasks, key=lambda task: _path(task.file.file_path)):
        path, size = _path(task.file.file_path), task.file.file_size_in_bytes
        state = states.get(path)
        if state is None or state.size != size:
            raise TableChangedError(
                f"Source `{source.name}`: {path}, which the Iceberg table "
                f"{_name(source)} names, is not there or not of {size} "
                "bytes. Repair the table."
            )
        known = tuple(_partition_values(table, task.file))
        yield FileState(path, size, state.mtime_ns, state.etag, known)


def _partition_values(table: Any, file: Any) -> Iterator[tuple[str, str | None]]:
    """Columns whose value is the file's partition's; files of other tables may lack them."""
    from pyiceberg.transforms import IdentityTransform

    for at, field in enumerate(table.specs()[file.spec_id].fields):
        name = table.schema().find_column_name(field.source_id)
        if not isinstance(field.transform, IdentityTransform) or name is None:
            continue
        kind, value = table.schema().find_type(field.source_id), file.partition[at]
        if str(kind) in PARTITION_TYPES and name in {
            field.name for field in table.schema().fields
        }:
            text = None if value is None else field.transform.to_human_string(kind, value)
            yield name, text


def _may_differ(schema: Any, schemas: Iterable[Any]) -> bool:
    """Whether a file may have a column under another name, or another one under this name."""
    names = {number: schema.find_column_name(number) for number in schema.field_ids}
    numbers = {name: number for number, name in names.items()}
    if not all(PLAIN_NAME.fullmatch(field.name) for field in schema.fields):
        return True
    return any(
        names.get(number, name) != name or numbers.get(name, number) != number
        for before in schemas
        for number in before.field_ids
        for name in [before.find_column_name(number)]
    )


def _check_names(source: Any, place: Place, schema: Any, files: tuple[FileState, ...]) -> None:
    wanted = [(number, schema.find_column_name(number)) for number in sorted(schema.field_ids)]
    reading = ReadErrors(place, files, is_table=True).of_file
    for file in files:
        with reading(file.path):
            stored = pq.read_schema(file.path, filesystem=place.filesystem)
        found = dict(_numbered(stored))
        by_name = {name: number for number, name in found.items()}
        for number, name in wanted:
            if found.get(number, name) != name or by_name.get(name, number) != number:
                raise _refused(
                    source, f"has its column `{name}` under another name in {file.path}"
                )


def _numbered(fields: Iterable[pa.Field], within: str = "") -> Iterator[tuple[int, str]]:
    """Numbers and full names of the columns of a file, as far as it has numbers."""
    for field in fields:
        name = f"{within}{field.name}"
        number = (field.metadata or {}).get(FIELD_ID)
        if number is not None:
            yield int(number), name
        yield from _numbered(_children(field.type), f"{name}.")


def _children(kind: pa.DataType) -> list[pa.Field]:
    if pa.types.is_map(kind):
        return [kind.key_field, kind.item_field]
    if pa.types.is_nested(kind):
        return [kind.field(at) for at in range(kind.num_fields)]
    return []


def _columns(schema: Any) -> pa.Schema:
    """Names and types as Parquet files have them."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    arrow = schema_to_pyarrow(schema, include_field_ids=False)
    return pa.schema([(field.name, map_type(field.type, _plain_layout)) for field in arrow])


def _plain_layout(kind: pa.DataType) -> pa.DataType:
    """Text, bytes and lists without Arrow's large layouts, which the library takes."""
    if pa.types.is_large_list(kind):
        return pa.list_(kind.value_field)
    return LARGE_TO_PLAIN.get(kind, kind)
