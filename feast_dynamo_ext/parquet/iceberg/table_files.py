"""An Iceberg table as files: which count, what they may hold, and how each is read.

Manifests say of each file the least and the greatest values of its columns: a file that holds
nothing that is wanted is never opened. Iceberg knows columns by number, so a file may have them
under older names; and rows of a file may be deleted by their numbers, in files of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_bytes
from feast_dynamo_ext.errors import ConfigError, SourceReadError
from feast_dynamo_ext.parquet.iceberg.catalog import (
    CatalogAddress,
    catalog_errors,
    file_settings,
    load_table,
    table_name,
)
from feast_dynamo_ext.parquet.iceberg.data_files import table_columns
from feast_dynamo_ext.parquet.iceberg.file_views import FileViews, file_path
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout
from feast_dynamo_ext.parquet.listing import (
    S3_SCHEMES,
    Place,
    TableFiles,
    TieBreak,
    settled,
)
from feast_dynamo_ext.storage import FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig


PARTITION_TYPES = re.compile(
    r"boolean|int|long|float|string|binary|date|timestamp|timestamptz|decimal\(.*"
)
"""Types of columns whose value, the same in all rows of a file, is read from its partition; not
doubles, of which pyiceberg writes a float32 there."""

BOUND_TYPES = ("int", "long", "string", "date", "timestamp", "timestamptz")
"""Types whose bounds are compared."""

SNAPSHOT_TAG = "feast-dynamo.snapshot"
"""Tag of a source: the id of a snapshot, or the name of an Iceberg tag or branch, to be read."""


_PINNED: ContextVar[Mapping[str, str]] = ContextVar("pinned_snapshots", default={})  # noqa: B039 - never changed


@contextlib.contextmanager
def pinned_snapshots(snapshots: Mapping[str, str]) -> Iterator[None]:
    """Read sources that are Iceberg tables as they were; also retrievals that run in the block.

    Args:
        snapshots: by names of sources: ids of snapshots, or names of tags.
    """
    token = _PINNED.set({**_PINNED.get(), **snapshots})
    try:
        yield
    finally:
        _PINNED.reset(token)


def read_iceberg(source: Any, config: RepoConfig) -> tuple[Place, TableFiles]:
    """A snapshot of a table, the current one by default, and where its files are.

    Args:
        source: Feast's `IcebergSource`; its tag `feast-dynamo.snapshot` may name another snapshot.
        config: the repo's config.

    Raises:
        DependencyError: `pyiceberg` is not installed, or what it needs for the catalog.
        ConfigError: the environment variable of the catalog's token is not set, or there is no
            such snapshot.
        SourceNotFoundError: there is no such table.
        SourceReadError: catalog or metadata cannot be read, or the table needs what is not
            supported: equality deletes, default values, files that are not Parquet.
    """
    return settled(lambda: _read(source, config))


def _read(source: Any, config: RepoConfig) -> tuple[Place, TableFiles]:
    table = load_table(source, config)
    snapshot = _snapshot(source, table)
    address, name = CatalogAddress.from_source(source, config), table_name(source, config)
    schema = _schema(table, snapshot)
    with catalog_errors(address, name):
        scan = table.scan(snapshot_id=snapshot.snapshot_id) if snapshot else table.scan()
        try:
            tasks = list(scan.plan_files())
        except (ValueError, NotImplementedError) as error:
            if "equality delete" not in str(error):
                raise
            raise _refused(
                source, "has rows that are deleted by their values (equality deletes)"
            ) from error
    _check_supported(source, schema, tasks)
    place = Place.from_uri(
        _folder(source, table, tasks), file_settings(table, config.offline_store.aws())
    )
    layout = TableLayout.from_table(table)
    tasks = _in_order(tasks, schema, layout)
    columns = table_columns(schema)
    by_path = {file_path(task.file.file_path): task.file for task in tasks}
    files = tuple(
        FileState(
            file_path(task.file.file_path),
            task.file.file_size_in_bytes,
            None,
            None,
            tuple(_partition_values(source, table, schema, columns, task.file)),
        )
        for task in tasks
    )
    partitions = {name for file in files for name, _ in file.partition}
    return place, TableFiles(
        files,
        columns,
        {name: columns.field(name).type for name in partitions},
        bounds=ManifestBounds(schema, by_path),
        views=FileViews(source, table, schema, tasks),
        ties=None if _decides(tasks, table, schema, layout) else _ties(schema, layout),
        internal=frozenset([layout.sequence] if layout else []),
        keys=TableLayout.item_keys(table),
        table_id=str(table.metadata.table_uuid),
        deletes=frozenset(file.file_path for task in tasks for file in task.delete_files),
        commits=tuple(
            (each.timestamp_ms, each.sequence_number or 0) for each in table.snapshots()
        ),
        version=str(snapshot.snapshot_id) if snapshot else "",
        summary=_summary(snapshot),
        name=name,
    )


def iceberg_columns(source: Any, config: RepoConfig) -> list[tuple[str, str]]:
    """Names of a table's columns and Iceberg's names of their types, which Feast maps.

    Raises: as `read_iceberg`.
    """
    table = load_table(source, config)
    layout = TableLayout.from_table(table)
    return [
        (column.name, str(column.field_type))
        for column in table.schema().fields
        if layout is None or column.name != layout.sequence
    ]


def _snapshot(source: Any, table: Any) -> Any:
    """The snapshot that a source wants.

    Raises:
        ConfigError: there is none.
    """
    wanted = _PINNED.get().get(source.name) or (source.tags or {}).get(SNAPSHOT_TAG)
    if wanted is None:
        return table.current_snapshot()
    found = table.snapshot_by_name(wanted)
    if found is None and re.fullmatch(r"\d{1,19}", wanted):
        found = table.snapshot_by_id(int(wanted))
    if found is None:
        known = ", ".join(sorted(table.refs())) or "none"
        raise ConfigError(
            f"Source `{source.name}`: the Iceberg table {_named(source)} has no snapshot "
            f"`{wanted}`, which is asked for (its tag `{SNAPSHOT_TAG}`, or an argument); it was "
            "expired, or never was. "
            f"Tags and branches there: {known}. `feast-dynamo table history` lists snapshots."
        )
    return found


def _summary(snapshot: Any) -> dict[str, str]:
    if snapshot is None or snapshot.summary is None:
        return {}
    return dict(snapshot.summary.additional_properties)


def _schema(table: Any, snapshot: Any) -> Any:
    """The schema of a snapshot; the current one is that of the table."""
    if snapshot is None or snapshot == table.current_snapshot() or snapshot.schema_id is None:
        return table.schema()
    return table.schemas()[snapshot.schema_id]


def _check_supported(source: Any, schema: Any, tasks: Iterable[Any]) -> None:
    refused = ""
    defaults = [field.name for field in schema.fields if field.initial_default is not None]
    if defaults:
        refused = f"has default values, of the columns {defaults}"
    elif any(task.file.file_format.name != "PARQUET" for task in tasks):
        refused = "has files that are not Parquet"
    if refused:
        raise _refused(source, refused)


def _refused(source: Any, why: str) -> SourceReadError:
    return SourceReadError(
        f"Source `{source.name}`: the Iceberg table {_named(source)} "
        f"{why}, which S3ParquetOfflineStore does not read. Rewrite the table with the engine "
        "that wrote it (`rewrite_data_files`), or write a plain copy and point a `FileSource` "
        "there."
    )


def _named(source: Any) -> str:
    return ".".join(filter(None, (source.namespace, source.iceberg_table)))


# Where files are


def _folder(source: Any, table: Any, tasks: Iterable[Any]) -> str:
    """The longest folder that all files are in, as a URI; of a table without any, its own."""
    uris = [task.file.file_path for task in tasks]
    foreign = [uri for uri in uris if not _is_known(uri)]
    if foreign or len({uri.startswith(S3_SCHEMES) for uri in uris}) > 1:
        raise _refused(source, f"has files in several places, such as {(foreign or uris)[0]}")
    scheme = "s3://" if uris and uris[0].startswith(S3_SCHEMES) else ""
    paths = [file_path(uri).rpartition("/")[0] for uri in uris]
    if not paths:
        return str(table.location())
    if scheme and len({path.partition("/")[0] for path in paths}) > 1:
        raise _refused(source, "has files in several buckets")
    return scheme + os.path.commonpath(paths)


def _is_known(uri: str) -> bool:
    return uri.startswith((*S3_SCHEMES, "file:", "/"))


def _partition_values(
    source: Any, table: Any, schema: Any, columns: pa.Schema, file: Any
) -> Iterator[tuple[str, str | None]]:
    """Columns whose value is the file's partition's; files of other tables may lack them.

    Raises:
        SourceReadError: a file lacks one whose value no partition says for certain.
    """
    from pyiceberg.transforms import IdentityTransform

    for at, part in enumerate(table.specs()[file.spec_id].fields):
        name = schema.find_column_name(part.source_id)
        if not isinstance(part.transform, IdentityTransform) or name not in columns.names:
            continue
        kind = str(schema.find_type(part.source_id))
        if PARTITION_TYPES.fullmatch(kind):
            yield name, _partition_text(file.partition[at], columns.field(name).type)
        elif file.value_counts and part.source_id not in file.value_counts:
            raise _refused(
                source, f"has files without `{name}`, a {kind} that their partition says instead"
            )


def _partition_text(value: Any, kind: pa.DataType) -> str | None:
    """A value of a partition as `partition_value` reads it; times are numbers there."""
    if is_bytes(kind):
        return None if value is None else bytes(value).decode(errors="surrogateescape")
    text: str | None = pa.scalar(value, kind).cast(pa.string()).as_py()
    return text


# What files may hold


@dataclass(frozen=True)
class ManifestBounds:
    """The least and the greatest values of columns of files, as manifests say them."""

    schema: Any
    files: Mapping[str, Any]
    _columns: dict[str, tuple[int, Any] | None] = field(
        default_factory=dict, repr=False, compare=False
    )

    def range(self, path: str, column: str) -> tuple[Any, Any] | None:
        """(least, greatest) of a file's values; None where it is not said.

        Integers and texts as they are, times as numbers since 1970 in the column's unit. A text
        may be less than the least, or more than the greatest.
        """
        file, found = self.files[path], self._column(column)
        if found is None:
            return None
        number, kind = found
        lower, upper = (
            (bounds or {}).get(number) for bounds in (file.lower_bounds, file.upper_bounds)
        )
        if lower is None or upper is None:
            return None
        return _decoded(kind, lower), _decoded(kind, upper)

    def is_all_null(self, path: str, column: str) -> bool:
        """Whether a file surely has no value of a column."""
        file, found = self.files[path], self._column(column)
        if found is None:
            return False
        nulls = (file.null_value_counts or {}).get(found[0])
        return nulls is not None and nulls == file.record_count

    def may_hold_null(self, path: str, column: str) -> bool:
        """Whether a file may have a row without a value of a column."""
        found = self._column(column)
        if found is None:
            return True
        return (self.files[path].null_value_counts or {}).get(found[0]) != 0

    def _column(self, column: str) -> tuple[int, Any] | None:
        """Number and type of a column, looked up once for all files; None: nothing is said."""
        if column not in self._columns:
            try:
                found = self.schema.find_field(column)
            except ValueError:
                found = None
            is_known = found is not None and str(found.field_type) in BOUND_TYPES
            self._columns[column] = (found.field_id, found.field_type) if is_known else None
        return self._columns[column]


def _decoded(kind: Any, bound: bytes) -> Any:
    from pyiceberg.conversions import from_bytes

    value = from_bytes(kind, bound)
    return int(value) if isinstance(value, bool | np.integer) else value


# Which of equal rows wins


def _in_order(tasks: list[Any], schema: Any, layout: TableLayout | None) -> list[Any]:
    """Files in the order of their sequence, then by path."""
    if layout is None:
        return sorted(tasks, key=lambda task: file_path(task.file.file_path))
    number = schema.find_field(layout.sequence).field_id
    return sorted(tasks, key=lambda task: (_bound(task.file, number), task.file.file_path))


def _bound(file: Any, number: int, *, upper: bool = False) -> int:
    bounds = (file.upper_bounds if upper else file.lower_bounds) or {}
    found = bounds.get(number)
    return -1 if found is None else int.from_bytes(found, "little", signed=True)


def _ties(schema: Any, layout: TableLayout | None) -> TieBreak:
    names = {column.name for column in schema.fields}
    has_sequence = layout is not None and layout.sequence in names
    return TieBreak(layout.sequence if layout and has_sequence else None)


MOST_OVERLAPPING = 32


def _decides(tasks: list[Any], table: Any, schema: Any, layout: TableLayout | None) -> bool:
    """Whether, of rows equal in keys and times, the later position has the later sequence.

    So it is where each file is sorted as the table is, and no two files that may hold equal rows
    overlap in their sequences; then positions say who wins, and nothing more is read.
    """
    if layout is None or layout.sequence not in {column.name for column in schema.fields}:
        return False
    order, number = table.sort_order().order_id, schema.find_field(layout.sequence).field_id
    by_partition: dict[Any, list[Any]] = defaultdict(list)
    within = {schema.find_field(name).field_id for name in (*layout.keys, layout.event_time)}
    specs = {task.file.spec_id for task in tasks}
    is_apart = len(specs) == 1 and all(
        part.source_id in within for spec in specs for part in table.specs()[spec].fields
    )
    for task in tasks:
        file = task.file
        # Rows without a sequence come before all others, wherever their file stands.
        has_nulls = (file.null_value_counts or {}).get(number) != 0
        if file.sort_order_id != order or _bound(file, number) < 0 or has_nulls:
            return False
        by_partition[repr(file.partition) if is_apart else ""].append(file)
    bounds = ManifestBounds(schema, {task.file.file_path: task.file for task in tasks})
    columns = [layout.event_time, *layout.keys[:1]]
    return all(_are_apart(files, number, bounds, columns) for files in by_partition.values())


def _are_apart(
    files: Sequence[Any], number: int, bounds: ManifestBounds, columns: Sequence[str]
) -> bool:
    """Whether files of a partition, by first sequence, cannot hold equal rows out of order."""
    open_: list[Any] = []
    for file in files:
        first = _bound(file, number)
        open_ = [before for before in open_ if _bound(before, number, upper=True) >= first]
        if len(open_) > MOST_OVERLAPPING:
            return False
        for before in open_:
            ranges = [
                (bounds.range(before.file_path, name), bounds.range(file.file_path, name))
                for name in columns
            ]
            if not any(a and b and (a[1] < b[0] or b[1] < a[0]) for a, b in ranges):
                return False
        open_.append(file)
    return True
