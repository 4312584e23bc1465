"""Entity rows from SQL over what the Feast registry names, run by DuckDB.

A statement sees feature views, data sources and saved datasets by their names, as tables with all
columns of their files, field mappings applied. It sees nothing else: DuckDB's access to files and
to the network is off.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from feast.data_source import RequestSource

from feast_dynamo_ext.columns import PUT, tombstones_of
from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.errors import EntityRowsError, FeastDynamoError
from feast_dynamo_ext.retrieval.plan import declared_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from feast.data_source import DataSource
    from feast.infra.registry.base_registry import BaseRegistry

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource


SQL = re.compile(
    r"(\s|--[^\n]*\n|/\*.*?\*/|\()*(select[\s*(\"']|(with|from)[\s(\"'])",
    re.IGNORECASE | re.DOTALL,
)

OF_THE_STATEMENT = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.ParserException,
)
"""Errors that no file has to do with."""

ROWS_AT_ONCE = 1 << 17
NAMES_SHOWN = 20


def is_sql(text: str) -> bool:
    """Whether a string is SQL: it begins with SELECT, WITH or FROM."""
    return SQL.match(text) is not None


@dataclass(frozen=True)
class Named:
    """A table of a statement.

    Attributes:
        source: its files.
        declared: types of columns that only folders' names say, where a view declares them.
    """

    source: DataSource
    declared: Mapping[str, pa.DataType] = field(default_factory=dict)


def run_sql(
    sql: str,
    sources: Mapping[str, Named],
    open_source: Callable[[DataSource], ParquetSource],
    limits: Limits,
) -> pa.Table:
    """The rows of a statement.

    Args:
        sql: one SELECT, in DuckDB's dialect; times are shown in UTC.
        sources: the tables that it may name.
        open_source: lists the files of one.
        limits: memory, threads and spill folder of DuckDB.

    Raises:
        EntityRowsError: not one SELECT, a table that is not among the sources, or a statement that
            DuckDB refuses or fails at.
        OfflineStoreError: a source that cannot be read, or no memory or disk.
    """
    files: dict[str, ParquetSource] = {}
    with connected(limits, "The SQL of the entity rows") as duck:
        try:
            duck.execute("SET enable_external_access = false; SET TimeZone = 'UTC'")
            for name in _tables(duck, sql, sources):
                named = sources[_known(name, sources)]
                opened = open_source(named.source).with_folder_types(named.declared)
                files[name] = opened.with_all_types()
                _create_view(duck, name, named.source, files[name])
            rows = duck.sql(sql).to_arrow_reader(ROWS_AT_ONCE).read_all()
        except (duckdb.OutOfMemoryException, duckdb.IOException, FeastDynamoError):
            raise
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if not isinstance(error, OF_THE_STATEMENT):
                _check_readable(files.values())
            raise EntityRowsError(
                f"Entity rows: DuckDB refuses the SQL `{_short(sql)}`: {error}. Correct the "
                f"statement; the tables that it can name are {_names(sources)}."
            ) from error
    for read in files.values():
        read.check_unchanged()
    return rows


def _check_readable(sources: Iterable[ParquetSource]) -> None:
    """Read files again, of which one may be what failed: DuckDB does not say which.

    Raises:
        SourceReadError: a file cannot be read; names it.
    """
    for source in sources:
        source.check_unchanged()
        for _ in source.scan(source.schema.names):
            pass


def named_sources(registry: BaseRegistry, project: str) -> dict[str, Named]:
    """What SQL can name: of one name a feature view, else a data source, else a saved dataset."""
    return dict(reversed(list(_named(registry, project))))


def _named(registry: BaseRegistry, project: str) -> Iterator[tuple[str, Named]]:
    views = [
        *registry.list_feature_views(project, allow_cache=True),
        *registry.list_stream_feature_views(project, allow_cache=True),
    ]
    for view in views:
        if view.batch_source:
            yield view.name, Named(view.batch_source, declared_columns(view))
    for source in registry.list_data_sources(project, allow_cache=True):
        if not isinstance(source, RequestSource):
            yield source.name, Named(getattr(source, "batch_source", None) or source)
    for dataset in registry.list_saved_datasets(project, allow_cache=True):
        yield dataset.name, Named(dataset.storage.to_data_source())


def _tables(duck: duckdb.DuckDBPyConnection, sql: str, sources: Mapping[str, Named]) -> set[str]:
    statements = duck.extract_statements(sql)
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise EntityRowsError(
            f"Entity rows: `{_short(sql)}` is not one SELECT statement. Give one, without others "
            "before or after it."
        )
    # DuckDB's own get_table_names fails at a USING, for whose columns it needs the tables.
    (parsed,) = duck.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0]
    if json.loads(parsed)["error"]:
        raise EntityRowsError(
            f"Entity rows: DuckDB refuses the SQL `{_short(sql)}`: "
            f"{json.loads(parsed)['error_message']}. Write it as one SELECT."
        )
    nodes = list(_nodes(json.loads(parsed)))
    tables = {_table(node) for node in nodes if node.get("type") == "BASE_TABLE"}
    of_with = {entry["key"] for node in nodes for entry in node.get("cte_map", {}).get("map", ())}
    unknown = sorted(name for name in tables - of_with if not _known(name, sources))
    if unknown:
        raise EntityRowsError(
            f"Entity rows: the SQL names {unknown}, which the Feast registry does not. There are "
            f"{_names(sources)}. Files are not read by SQL; give their path instead of it."
        )
    return {name for name in tables if _known(name, sources)}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """The objects of a parsed statement."""
    if isinstance(tree, dict):
        yield tree
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for part in inside:
        yield from _nodes(part)


def _table(node: Mapping[str, str]) -> str:
    names = (node["catalog_name"], node["schema_name"], node["table_name"])
    return ".".join(name for name in names if name)


def _known(name: str, sources: Mapping[str, Named]) -> str:
    """The registry's spelling of a table's name, which in SQL has no case; empty for none."""
    if name in sources:
        return name
    same = [known for known in sources if known.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else ""


def _create_view(
    duck: duckdb.DuckDBPyConnection, name: str, source: DataSource, files: ParquetSource
) -> None:
    renamed = source.field_mapping or {}
    refused = _refused(duck, files)
    known = pa.schema([column for column in files.schema if column.name not in refused])
    columns = ", ".join(
        f"{_expression(column, refused)} AS {_quoted(renamed.get(column, column))}"
        for column in files.schema.names
    )
    # As a dataset, of which DuckDB reads the columns and row groups alone that it needs; where
    # rows of a table are deleted or columns renamed, as the rows that are left.
    read = files.dataset.replace_schema(known)
    if files.parts.views is not None:
        batches = [batch.select(known.names) for batch in files.scan(known.names)]
        read = pa.Table.from_batches(batches, known)
    duck.register(f"files of {name}", read)
    tombstones = tombstones_of(source)
    puts = f" WHERE {_quoted(tombstones.change)} = '{PUT}'" if tombstones else ""
    duck.execute(
        f"CREATE TEMP VIEW {_quoted(name)} AS SELECT {columns} "  # noqa: S608 - quoted
        f"FROM {_quoted(f'files of {name}')}{puts}"
    )


def _refused(duck: duckdb.DuckDBPyConnection, files: ParquetSource) -> dict[str, str]:
    """Columns that SQL cannot read, and why; they fail a statement only where it names them."""
    names = Counter(name.lower() for name in files.schema.names)
    repeated = files.parts.repeated
    refused = {
        column.name: f"DuckDB has no type for {column.type}"
        for column in files.schema
        if not _has_type(duck, pa.schema([column]))
    }
    refused |= {
        name: "another differs from it by capitals alone, which SQL does not tell apart"
        for name in files.schema.names
        if names[name.lower()] > 1
    }
    return refused | {name: f"{path} has several" for name, path in repeated.items()}


def _has_type(duck: duckdb.DuckDBPyConnection, schema: pa.Schema) -> bool:
    try:
        duck.from_arrow(schema.empty_table())
    except duckdb.NotImplementedException:
        return False
    return True


def _expression(column: str, refused: Mapping[str, str]) -> str:
    if column not in refused:
        return _quoted(column)
    why = f"column `{column}` cannot be read by SQL: {refused[column]}".replace("'", "''")
    return f"error('{why}')"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _short(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= 80 else f"{line[:77]}..."  # noqa: PLR2004 - a line's width


def _names(sources: Mapping[str, Named]) -> str:
    names = sorted(sources)
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{names[:NAMES_SHOWN]}{more}"
