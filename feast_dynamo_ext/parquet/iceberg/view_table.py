"""A feature view's history table: its columns, layout and name, and the source that names it.

Columns are those of the view, under their names in its files, in Iceberg's types. Where there is a
history in Parquet files, the table has all columns of these, and none is narrower than theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID
from feast.types import from_feast_to_pyarrow_type
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    SCALAR_ARROW,
    common_type,
    is_bytes,
    is_list,
    is_text,
    is_uuid,
    plain_type,
)
from feast_dynamo_ext.columns import join_keys, stored_names, stored_times
from feast_dynamo_ext.declared import (
    FLOATS,
    OPEN_KINDS,
    WHOLE_NUMBERS,
    declared_as,
    declared_type,
    element_kind,
    is_wider,
)
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    ConfigError,
    DestinationExistsError,
    SourceNotFoundError,
)
from feast_dynamo_ext.parquet.iceberg.catalog import (
    CatalogAddress,
    catalog_errors,
    file_settings,
    is_iceberg,
    opened,
    source_fields,
    table_name,
)
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.table_schema import (
    SEQUENCE,
    WIDER,
    TableLayout,
    create_table,
)
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig
    from feast.data_source import DataSource

    from feast_dynamo_ext.declared import Declared


TIMES = pa.timestamp("us", "UTC")

PARTITION_BYTES = 32 << 20
"""Of a partition, at least; smaller ones make many small files."""

IMPORTED = "feast-dynamo.imported-files"
"""Property of a table: the file that lists what was imported into it."""


# Names


GLUE_NAME = re.compile(r"[a-z0-9_]{1,255}")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,254}")


def name_of_table(view: Any, config: RepoConfig, table: str | None = None) -> str:
    """Namespace and table of a view, as the catalog of the offline store's block has them.

    Args:
        view: the feature view.
        config: the repo's config.
        table: of the table, instead of the view's name.

    Raises:
        ConfigError: the catalog takes no such name.
    """
    return full_name(f"Feature view `{view.name}`", table or view.name, config, "`--table %s`")


def full_name(subject: str, table: str, config: RepoConfig, advice: str) -> str:
    """Namespace and table in the catalog of the offline store's block.

    Args:
        subject: whose the table is, for messages.
        table: its name.
        config: the repo's config.
        advice: where another name is given, with `%s` for it.

    Raises:
        ConfigError: the catalog takes no such name.
    """
    found = config.offline_store.catalog_config()
    is_glue = found.type == "glue" or found.properties.get("rest.signing-name") in {
        "s3tables",
        "glue",
    }
    given = {
        "namespace": (found.namespace or config.project, "`catalog: {namespace: %s}`"),
        "table": (table, advice),
    }
    for what, (name, where) in given.items():
        if not (GLUE_NAME if is_glue else PLAIN_NAME).fullmatch(name):
            right = re.sub(r"\W", "_", name, flags=re.ASCII)[:255]
            right = right.lower() if is_glue else right
            letters = "lower-case letters" if is_glue else "letters"
            raise ConfigError(
                f"{subject}: its table would have the {what} `{name}`, but the "
                f"catalog takes {letters}, digits and underscores, at most 255. "
                f"Give another with {where % right}."
            )
    return f"{given['namespace'][0]}.{given['table'][0]}"


def handle_of(view: Any, config: RepoConfig, table: str | None = None) -> TableHandle:
    """The table of a view: its source's, or the one that `plan_table` names.

    Raises:
        ConfigError: there is no catalog, or it takes no such name.
    """
    if is_iceberg(view.batch_source) and table is None:
        return TableHandle.from_source(view.batch_source, config)
    name = name_of_table(view, config, table)
    return TableHandle(CatalogAddress.from_config(config), name, config.offline_store.aws())


# Types


def table_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of a table's column that holds what an Arrow type holds.

    Nanoseconds become microseconds, unsigned integers signed ones, and decimals have 38 digits: a
    value that is not held is refused when it is written.

    Returns:
        None where Iceberg has none: durations, intervals, nulls and the like.
    """
    kind = plain_type(kind)
    if is_list(kind):
        inner = table_type(kind.value_type)
        return inner and pa.list_(pa.field("element", inner))
    if pa.types.is_struct(kind):
        inside = [(part.name, table_type(part.type)) for part in kind]
        found = inside and all(each for _, each in inside)
        return pa.struct([pa.field(*part) for part in inside]) if found else None
    if pa.types.is_map(kind):
        key, item = table_type(kind.key_type), table_type(kind.item_type)
        return pa.map_(key, item) if key and item else None
    kind = WIDER.get(kind, kind)
    return next((become(kind) for matches, become in TABLE_TYPES if matches(kind)), None)


MOST_DIGITS = 38
"""Of a decimal of Iceberg."""


def _decimal(kind: pa.DataType) -> pa.DataType | None:
    is_kept = 0 <= kind.scale <= MOST_DIGITS
    return pa.decimal128(min(kind.precision, MOST_DIGITS), kind.scale) if is_kept else None


SAME = (
    *(pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
    *(pa.date32(), pa.time64("us")),
)

# What matches a type -> that of a table.
TABLE_TYPES: tuple[tuple[Any, Any], ...] = (
    (lambda kind: kind in SAME, lambda kind: kind),
    (is_uuid, lambda kind: kind),
    (is_text, lambda _: pa.string()),
    (pa.types.is_fixed_size_binary, lambda kind: kind),
    (is_bytes, lambda _: pa.binary()),
    (pa.types.is_decimal, _decimal),
    (pa.types.is_timestamp, lambda kind: TIMES if kind.tz else pa.timestamp("us")),
)


def column_type(dtype: Any, own: pa.DataType | None) -> pa.DataType:
    """The type of a declared column in a table.

    Args:
        dtype: of the field.
        own: the type in the files that are there, or None. Where it is wider than what is
            declared, it stays, and so does what is inside of maps that nobody declared.
    """
    declared = declared_as(dtype)
    wanted = _declared_type(declared)
    if own is None or pa.types.is_null(own):
        kept: pa.DataType | None = wanted
    elif wanted is None:
        kept = own
    elif isinstance(declared, ValueType) and _is_number(declared):
        kept = own if is_wider(declared, own) else wanted
    else:
        kept = declared_type(declared, own)
    kinds = (table_type(kind) for kind in (kept, wanted) if kind is not None)
    # What is open is kept as JSON.
    return next((kind for kind in kinds if kind is not None), pa.string())


def _declared_type(declared: Declared) -> pa.DataType | None:
    """The Arrow type of a declared type; None where it leaves that open."""
    if not isinstance(declared, ValueType):
        try:
            return from_feast_to_pyarrow_type(declared)
        except ValueError:
            return None
    if declared in OPEN_KINDS:
        return None
    element = element_kind(declared)
    kind = SCALAR_ARROW.get(element or declared, pa.string())
    if (element or declared) in {ValueType.UNIX_TIMESTAMP, ValueType.ZONED_TIMESTAMP}:
        kind = TIMES
    return kind if element is None else pa.list_(kind)


def _is_number(declared: ValueType) -> bool:
    return (element_kind(declared) or declared) in WHOLE_NUMBERS | FLOATS


# What a table is made as


@dataclass(frozen=True)
class Extent:
    """How much history there is.

    Attributes:
        size: bytes of its files.
        first_us: its first event time, microseconds since 1970; None where that is not known.
        last_us: its last.
    """

    size: int = 0
    first_us: int | None = None
    last_us: int | None = None

    @property
    def days(self) -> float | None:
        """Between the first and the last event time, at least one."""
        if self.first_us is None or self.last_us is None:
            return None
        return max(1.0, (self.last_us - self.first_us) / 86_400e6)


@dataclass(frozen=True)
class NewTable:
    """A table to be made for a view.

    Attributes:
        view: name of the view.
        handle: catalog and name.
        columns: names and types, without the sequence.
        layout: keys, times and partition.
        why: of the partition, in words.
        declared: what columns are declared as.
    """

    view: str
    handle: TableHandle
    columns: pa.Schema
    layout: TableLayout
    why: str
    declared: Mapping[str, Declared] = field(default_factory=dict)


def plan_table(
    view: Any,
    config: RepoConfig,
    *,
    readers: Sequence[Any] = (),
    there: pa.Schema | None = None,
    extent: Extent | None = None,
    table: str | None = None,
    partition: str | None = None,
) -> NewTable:
    """What a view's table is made as.

    Args:
        view: the view.
        config: the repo's config.
        readers: further views of the same source, whose columns the table has too.
        there: names and types of the columns in the files that are there.
        extent: how much there is in these.
        table: name of the table; the view's by default.
        partition: one of `PARTITIONS`; by default by what there is.

    Raises:
        ConfigError: there is no catalog, or it takes no such name; the source names no event time.
        ColumnTypeError: two views declare a column so that no type holds both, or names of
            columns differ in case only.
    """
    source = view.batch_source
    stored, found = stored_names(source), {column.name: column.type for column in there or []}
    event_time, created = stored_times(source)
    if not event_time:
        raise ConfigError(
            f"Feature view `{view.name}`: its source `{source.name}` names no `timestamp_field`, "
            "by which a table is sorted and partitioned. Name it, and run `feast apply`."
        )
    keys = tuple(stored[key] for key in join_keys(view))
    types: dict[str, pa.DataType] = {}
    kinds: dict[str, Declared] = {}
    for reader in (view, *readers):
        for name, dtype in declared_columns(reader):
            if declared_as(dtype) is ValueType.SCALAR_MAP and name not in found:
                raise ColumnTypeError(
                    f"Feature view `{reader.name}` declares `{name}` as ScalarMap, and no file "
                    "says of which type its keys are. Declare Map, whose keys are texts, or write "
                    f"a first Parquet file and use `feast-dynamo table import {view.name}`."
                )
            kind = column_type(dtype, found.get(name))
            both = common_type(types.get(name, kind), kind)
            if both is None:
                raise ColumnTypeError(
                    f"Feature view `{reader.name}` declares the column `{name}` as {kind}, but "
                    f"`{view.name}`, which has the same source, as {types[name]}. Declare it "
                    "alike in both."
                )
            types[name] = both
            kinds.setdefault(name, declared_as(dtype))
    for name in filter(None, (event_time, created)):
        types[name] = TIMES
        kinds.pop(name, None)
    derived = getattr(source, "derived_columns", {})
    for name, kind in found.items():
        own = table_type(kind)
        if name not in types and name not in derived and own is not None:
            types[name] = own
    first = dict.fromkeys([*keys, *filter(None, (event_time, created)), *types])
    _check_columns(view, first)
    chosen, why = (partition, "as asked") if partition else partition_for(extent or Extent())
    return NewTable(
        view.name,
        handle_of(view, config, table),
        pa.schema([(name, types[name]) for name in first]),
        TableLayout(keys, event_time, created, chosen),
        why,
        kinds,
    )


def _check_columns(view: Any, names: Iterable[str]) -> None:
    """Refuse columns that catalogs take for one, or for the sequence.

    Raises:
        ColumnTypeError: names them.
    """
    alike = {SEQUENCE: SEQUENCE}
    for name in names:
        other = alike.setdefault(name.lower(), name)
        if other == SEQUENCE:
            raise ColumnTypeError(
                f"Feature view `{view.name}`: its table would have the column `{name}`, which is "
                "named as the one by which tables keep the order of rows. Rename it."
            )
        if other != name:
            raise ColumnTypeError(
                f"Feature view `{view.name}`: its table would have the columns `{other}` and "
                f"`{name}`, whose names differ in case only, and which most catalogs take for "
                "one. Rename one."
            )


def declared_columns(view: Any) -> list[tuple[str, Any]]:
    """Names in the source, and Feast's types, of what a view declares."""
    stored = stored_names(view.batch_source)
    columns = {column.name: column for column in [*view.entity_columns, *view.features]}
    return [
        (stored[name], column.dtype) for name, column in columns.items() if name != DUMMY_ENTITY_ID
    ]


def partition_for(extent: Extent) -> tuple[str, str]:
    """How a history is partitioned, and why.

    By day where a day has what is worth a file of its own, else by month; what is small in all
    and grows slowly has none.
    """
    if not extent.size:
        return "month", "there is no history yet"
    of_day = None if extent.days is None else extent.size / extent.days
    if of_day is None:
        chosen = "month" if extent.size >= PARTITION_BYTES else "none"
        return chosen, f"{_mb(extent.size)}; the files do not say of which days"
    said = f"{_mb(extent.size)}, about {_mb(of_day)} a day"
    if of_day >= PARTITION_BYTES:
        return "day", said
    return ("month" if max(extent.size, of_day * 30) >= PARTITION_BYTES else "none"), said


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def make(new: NewTable) -> Any:
    """Make a table.

    Returns:
        It, as pyiceberg has it.

    Raises:
        DestinationExistsError: it is there already.
        OfflineStoreError: a column has the name of the sequence, or the catalog refuses.
    """
    from pyiceberg.exceptions import TableAlreadyExistsError

    handle = new.handle
    with catalog_errors(handle.address, handle.name):
        catalog = opened(handle.address, handle.settings)
        try:
            return create_table(catalog, handle.name, new.columns, new.layout)
        except TableAlreadyExistsError as error:
            raise DestinationExistsError(
                f"Feature view `{new.view}`: the table {handle.name} is there already. Give "
                "another name with `--table`, or `feast-dynamo table drop` it."
            ) from error


# The source in definitions.py


IMPORT_LINE = "from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource"


def source_code(source: DataSource, name: str, config: RepoConfig) -> str:
    """The source of a table of our catalog, to be pasted in place of the one that a view has.

    Args:
        source: the view's own.
        name: namespace and table.
        config: the repo's config.
    """
    found = config.offline_store.catalog_config()
    endpoint, warehouse = source_fields(found)
    namespace, _, table = name.rpartition(".")
    given = {
        "name": source.name,
        "catalog_type": found.type,
        "endpoint": endpoint,
        "warehouse": warehouse,
        "namespace": namespace,
        "table": table,
        "token_env_var": found.token_env_var,
        "catalog_properties": dict(found.properties),
        "timestamp_field": source.timestamp_field,
        "created_timestamp_column": source.created_timestamp_column,
        "field_mapping": dict(source.field_mapping or {}),
        "description": source.description,
        "tags": dict(source.tags or {}),
        "owner": source.owner,
    }
    lines = [
        f"    {key}={_literal(value)},"
        for key, value in given.items()
        if value or key == "warehouse"
    ]
    return "\n".join([IMPORT_LINE, "", "IcebergSource(", *lines, ")"])


def _literal(value: str | dict[str, str]) -> str:
    """As `ruff format` writes it."""
    if isinstance(value, dict):
        inside = (f"{_literal(key)}: {_literal(cell)}" for key, cell in value.items())
        return f"{{{', '.join(inside)}}}"
    text = repr(value)
    is_plain = text.startswith("'") and '"' not in text and "\\'" not in text
    return f'"{text[1:-1]}"' if is_plain else text


# The end of a table


def readers_of(views: Iterable[Any], handle: TableHandle, config: RepoConfig) -> list[str]:
    """Names of the views whose source is a table."""

    def names_it(source: Any) -> bool:
        if source is None or not is_iceberg(source):
            return False
        if table_name(source, config) != handle.name:
            return False
        return CatalogAddress.from_source(source, config).identity == handle.address.identity

    return sorted(view.name for view in views if names_it(getattr(view, "batch_source", None)))


def drop(handle: TableHandle, *, purge: bool = False) -> int:
    """Take a table out of its catalog.

    Args:
        handle: the table.
        purge: delete the files that its metadata lists, too; no others.

    Returns:
        How many files were deleted here; a server that deletes them itself says no number.

    Raises:
        SourceNotFoundError: there is none.
        DestinationError: a disk refused; what is left is in no table. AwsError: S3 did.
    """
    with catalog_errors(handle.address, handle.name):
        catalog = opened(handle.address, handle.settings)
        from pyiceberg.exceptions import BadRequestError

        table = catalog.load_table(handle.name)
        listed = sorted(set(_listed(table))) if purge else []
        # First, so that nobody reads a table that lacks files.
        try:
            catalog.drop_table(handle.name)
        except BadRequestError:
            # S3 Tables drops a table with its files alone, which nobody else may delete.
            if not purge:
                raise
            catalog.purge_table(handle.name)
            listed = []
    if listed:
        files_of(listed[0], file_settings(table, handle.settings)).delete(listed)
    return len(listed)


def _listed(table: Any) -> Iterator[str]:
    """All files that a table's metadata lists, those of data, manifests and metadata alike."""
    metadata, io = table.metadata, table.io
    for snapshot in metadata.snapshots:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(io):
            yield manifest.manifest_path
            for entry in manifest.fetch_manifest_entry(io, discard_deleted=False):
                yield entry.data_file.file_path
    yield from (file.statistics_path for file in metadata.statistics)
    yield from (file.statistics_path for file in metadata.partition_statistics)
    yield from (log.metadata_file for log in metadata.metadata_log)
    if IMPORTED in table.properties:
        yield table.properties[IMPORTED]
    yield table.metadata_location


def exists(handle: TableHandle) -> bool:
    """Whether there is a table of a name."""
    try:
        handle.load()
    except SourceNotFoundError:
        return False
    return True
