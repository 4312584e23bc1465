"""An Iceberg table as files: which count, what they may hold, and how each is read.

Manifests say of each file the least and the greatest values of its columns: a file that holds
nothing that is wanted is never opened. Iceberg knows columns by number, so a file may have them
under older names; and rows of a file may be deleted by their numbers, in files of their own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections import defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_list
from feast_dynamo_ext.errors import ConfigError, FeastDynamoError, SourceReadError
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.parquet.iceberg.catalog import (
    CatalogAddress,
    catalog_errors,
    file_settings,
    load_table,
    table_name,
)
from feast_dynamo_ext.parquet.iceberg.data_files import table_columns
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout
from feast_dynamo_ext.parquet.listing import (
    S3_SCHEMES,
    FileView,
    Place,
    TableFiles,
    TieBreak,
    settled,
)
from feast_dynamo_ext.storage import FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig


PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Writers put other names into files in other words."""

FIELD_ID = b"PARQUET:field_id"

# Types of columns whose value, the same in all rows of a file, is read from its partition.
PARTITION_TYPES = ("boolean", "int", "long", "string", "date")

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
    address, name = CatalogAddress.from_source(source, config), table_name(source)
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
    files = tuple(
        FileState(
            _path(task.file.file_path),
            task.file.file_size_in_bytes,
            None,
            None,
            tuple(_partition_values(table, schema, task.file)),
        )
        for task in tasks
    )
    partitions = {name for file in files for name, _ in file.partition}
    return place, TableFiles(
        files,
        columns,
        {name: columns.field(name).type for name in partitions},
        bounds=ManifestBounds(schema, {_path(task.file.file_path): task.file for task in tasks}),
        views=FileViews(source, table, schema, tasks),
        ties=None if _decides(tasks, table, schema, layout) else _ties(schema, layout),
        internal=frozenset([layout.sequence] if layout else []),
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
            f"Source `{source.name}`: the Iceberg table {table_name(source)} has no snapshot "
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
        f"Source `{source.name}`: the Iceberg table {table_name(source)} "
        f"{why}, which S3ParquetOfflineStore does not read. Rewrite the table with the engine "
        "that wrote it (`rewrite_data_files`), or write a plain copy and point a `FileSource` "
        "there."
    )


# Where files are


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


def _partition_values(table: Any, schema: Any, file: Any) -> Iterator[tuple[str, str | None]]:
    """Columns whose value is the file's partition's; files of other tables may lack them."""
    from pyiceberg.transforms import IdentityTransform

    for at, part in enumerate(table.specs()[file.spec_id].fields):
        name = schema.find_column_name(part.source_id)
        if not isinstance(part.transform, IdentityTransform) or name is None:
            continue
        kind, value = schema.find_type(part.source_id), file.partition[at]
        if str(kind) in PARTITION_TYPES and name in {column.name for column in schema.fields}:
            yield name, None if value is None else part.transform.to_human_string(kind, value)


# What files may hold


@dataclass(frozen=True)
class ManifestBounds:
    """The least and the greatest values of columns of files, as manifests say them."""

    schema: Any
    files: Mapping[str, Any]

    def range(self, path: str, column: str) -> tuple[Any, Any] | None:
        """(least, greatest) of a file's values; None where it is not said.

        Integers and texts as they are, times as numbers since 1970 in the column's unit. A text
        may be less than the least, or more than the greatest.
        """
        file = self.files[path]
        try:
            number, kind = self._column(column)
        except ValueError:
            return None
        lower, upper = (
            (bounds or {}).get(number) for bounds in (file.lower_bounds, file.upper_bounds)
        )
        if lower is None or upper is None:
            return None
        return _decoded(kind, lower), _decoded(kind, upper)

    def is_all_null(self, path: str, column: str) -> bool:
        """Whether a file surely has no value of a column."""
        file = self.files[path]
        try:
            number, _ = self._column(column)
        except ValueError:
            return False
        nulls = (file.null_value_counts or {}).get(number)
        return nulls is not None and nulls == file.record_count

    def _column(self, column: str) -> tuple[int, Any]:
        found = self.schema.find_field(column)
        if str(found.field_type) not in BOUND_TYPES:
            raise ValueError(column)
        return found.field_id, found.field_type


def _decoded(kind: Any, bound: bytes) -> Any:
    from pyiceberg.conversions import from_bytes

    value = from_bytes(kind, bound)
    return int(value) if isinstance(value, bool | np.integer) else value


# Which of equal rows wins


def _in_order(tasks: list[Any], schema: Any, layout: TableLayout | None) -> list[Any]:
    """Files in the order of their sequence, then by path."""
    if layout is None:
        return sorted(tasks, key=lambda task: _path(task.file.file_path))
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


# How a file is read


@dataclass(frozen=True)
class FileViews:
    """How the files of a table are read, each found when it is opened.

    Attributes:
        source: the source, for messages.
        table: pyiceberg's.
        schema: of the snapshot.
        tasks: plans of the files.
    """

    source: Any
    table: Any
    schema: Any
    tasks: Sequence[Any]
    _lock: Lock = field(default_factory=Lock, compare=False)
    _found: dict[str, FileView | None] = field(default_factory=dict, compare=False)
    _read: dict[str, Any] = field(default_factory=dict, compare=False)

    @functools.cached_property
    def are_plain(self) -> bool:
        """Whether all files are surely read as they stand."""
        return not self._may_differ and not any(task.delete_files for task in self.tasks)

    def of(self, fragment: Any) -> FileView | None:
        """How a file is read; None for as it stands.

        Args:
            fragment: the file, whose footer is there.

        Raises:
            SourceReadError: a nested column has another name there.
            AwsError: S3 refused to read its deletes.
        """
        if self.are_plain:
            return None
        path = fragment.path
        with self._lock:
            if path not in self._found:
                self._found[path] = self._view(fragment)
            return self._found[path]

    def _view(self, fragment: Any) -> FileView | None:
        columns = self._columns(fragment) if self._may_differ else {}
        deleted = self._deleted(fragment.path)
        return FileView(columns, deleted) if columns or len(deleted) else None

    @functools.cached_property
    def _by_path(self) -> dict[str, Any]:
        return {_path(task.file.file_path): task for task in self.tasks}

    def _deleted(self, path: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        from pyiceberg.io.pyarrow import _read_deletes

        task = self._by_path[path]
        found = [np.empty(0, dtype=np.int64)]
        for file in task.delete_files:
            if file.file_path not in self._read:
                try:
                    self._read[file.file_path] = _read_deletes(self.table.io, file)
                except FeastDynamoError:
                    raise
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise SourceReadError(
                        f"Source `{self.source.name}`: {file.file_path}, which says what rows of "
                        f"{path} are deleted, cannot be read: {error}."
                    ) from error
            positions = self._read[file.file_path].get(task.file.file_path)
            if positions is not None:
                found.append(np.asarray(positions, dtype=np.int64))
        return np.unique(np.concatenate(found))

    @functools.cached_property
    def _may_differ(self) -> bool:
        return _may_differ(self.schema, self.table.metadata.schemas)

    def _columns(self, fragment: Any) -> dict[str, str | None]:
        """Columns of the table -> their names in the file, where these are others."""
        stored = fragment.physical_schema
        found = dict(_numbered(stored)) or self._by_mapping(stored)
        if not found:
            return {}
        by_name = {name: number for number, name in found.items()}
        columns: dict[str, str | None] = {}
        for column in self.schema.fields:
            inside = found.get(column.field_id)
            if inside != column.name and (inside is not None or column.name in by_name):
                columns[column.name] = inside
            self._check_nested(column, found, fragment.path)
        return columns

    def _by_mapping(self, stored: pa.Schema) -> dict[int, str]:
        """Numbers of the columns of a file without numbers, by the table's mapping of names."""
        mapping = self.table.name_mapping()
        if mapping is None:
            return {}
        numbers = {name: part.field_id for part in mapping.root for name in part.names}
        return {numbers[name]: name for name in stored.names if name in numbers}

    def _check_nested(self, column: Any, found: Mapping[int, str], path: str) -> None:
        """Refuse columns whose fields have other names in a file.

        Raises:
            SourceReadError: names column and file.
        """
        inside = found.get(column.field_id)
        if inside is None:
            return
        for number in sorted(self.schema.field_ids):
            name = self.schema.find_column_name(number)
            if name.startswith(f"{column.name}."):
                wanted = inside + name.removeprefix(column.name)
                if found.get(number, wanted) != wanted:
                    raise _refused(
                        self.source, f"has its column `{name}` under another name in {path}"
                    )


def _may_differ(schema: Any, schemas: Iterable[Any]) -> bool:
    """Whether a file may have a column under another name, or another one under this name."""
    names = {number: schema.find_column_name(number) for number in schema.field_ids}
    numbers = {name: number for number, name in names.items()}
    if not all(PLAIN_NAME.fullmatch(column.name) for column in schema.fields):
        return True
    return any(
        names.get(number, name) != name or numbers.get(name, number) != number
        for before in schemas
        for number in before.field_ids
        for name in [before.find_column_name(number)]
    )


def _numbered(fields: Iterable[pa.Field], within: str = "") -> Iterator[tuple[int, str]]:
    """Numbers and full names of the columns of a file, as far as it has numbers."""
    for column in fields:
        name = f"{within}{column.name}"
        number = (column.metadata or {}).get(FIELD_ID)
        if number is not None:
            yield int(number), name
        yield from _numbered(_children(column.type), f"{name}.")


def _children(kind: pa.DataType) -> list[pa.Field]:
    # Under the names that Iceberg has for them; files have others too, such as `item`.
    if pa.types.is_map(kind):
        return [kind.key_field.with_name("key"), kind.item_field.with_name("value")]
    if is_list(kind):
        return [kind.value_field.with_name("element")]
    if pa.types.is_nested(kind):
        return [kind.field(at) for at in range(kind.num_fields)]
    return []
