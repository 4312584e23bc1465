"""A retrieval as one statement that DuckDB runs on its own, with the same rows in the same order.

Times are compared as integers, as in `times`, so that neither the session's time zone nor the
columns' units matter: microseconds since 1970 UTC, or nanoseconds where a column has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource
from pyarrow import fs

from feast_dynamo_ext.arrow_types import check_joinable, family
from feast_dynamo_ext.retrieval.engines.history import CREATED, History
from feast_dynamo_ext.retrieval.engines.one_pass.join import checked_source
from feast_dynamo_ext.retrieval.entity_rows.from_files import CSV
from feast_dynamo_ext.retrieval.plan import PointInTime, window
from feast_dynamo_ext.timestamps import Axis

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from feast.data_source import DataSource

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.entity_rows.rows import EntityRows
    from feast_dynamo_ext.retrieval.plan import Query, SourceRows, ViewPlan


WIDE_BITS = 127
"""Of DuckDB's HUGEINT, without its sign."""


def winner(history: History, start: datetime, end: datetime) -> str:
    """The position and time of the newest row of a group, as r and t.

    Rows are compared as (t, c, r). DuckDB compares one wide integer two to three times as fast as
    a struct (measured: 10 million rows in 3.7 and 10.6 s), so the three are put side by side in
    one of 127 bits where what is known of their ranges lets them fit.
    """
    created = _Part("h.c", history.created_range()) if history.created_axis else None
    times = _Part("h.t", history.event_range(start, end))
    rows = _Part("h.r", (0, max(0, history.source.rows - 1)))
    parts = [times, *([created] if created else []), rows]
    if any(part.range is None for part in parts) or sum(part.bits for part in parts) > WIDE_BITS:
        newest = f"max((h.t, {CREATED}, h.r))"
        return f"struct_extract({newest}, 3) AS r, struct_extract({newest}, 1) AS t"
    wide = "0::HUGEINT"
    for part in parts:
        wide = f"({wide}) * {1 << part.bits} + {part.sql}"
    return f"arg_max(h.r, {wide}) AS r, max(h.t) AS t"


@dataclass(frozen=True)
class _Part:
    """One of the numbers that are compared; a null counts as less than any."""

    name: str
    range: tuple[int, int] | None

    @property
    def bits(self) -> int:
        least, greatest = self.range or (0, 0)
        return (greatest - least + 1).bit_length()

    @property
    def sql(self) -> str:
        least, _ = self.range or (0, 0)
        return f"coalesce({self.name}::HUGEINT - {least} + 1, 0)"


ENTITY_ROWS = "entity_df"
"""The table, or the variable of the Python code around, that has the entity rows."""

# Names of our own begin with this; a column of the user's that does so too would be in the way.
OWN = "__feast_"
ROW, TIME, CREATED_COLUMN = f"{OWN}row", f"{OWN}time", f"{OWN}created"
FILE, IN_FILE = f"{OWN}file", f"{OWN}file_row"

CAST = {"integer": "BIGINT", "text": "VARCHAR", "bytes": "BLOB", "boolean": "BOOLEAN"}


def statement(query: Query, open_source: Callable[[DataSource], ParquetSource]) -> str:
    """The SQL of a retrieval; files are listed, and footers read, but no rows.

    Raises:
        EntityRowsError: entity rows that cannot be joined.
        OfflineStoreError: a source that is not there, or lacks a column.
    """

    def pruned(view: ViewPlan) -> ParquetSource:
        source = checked_source(view, open_source(view.source))
        found = source.within(view.event_time, *window(query, view))
        # DuckDB refuses to read no files; of one that is out of range no row counts.
        return found if found.files else source

    if isinstance(query, PointInTime):
        return _point_in_time(query, pruned, _given(query.entities, open_source))
    return _source_rows(query, pruned(query.view))


def quoted(name: str) -> str:
    """A name of a column."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string."""
    return "'" + text.replace("'", "''") + "'"


def read_parquet(source: ParquetSource) -> str:
    """The call that reads a source's files, in the order of their paths."""
    on_s3 = isinstance(source.filesystem, fs.S3FileSystem)
    paths = [f"s3://{file.path}" if on_s3 else file.path for file in source.files]
    # Files of an Iceberg table have what its partitions tell as well.
    inside = {name for part in source.parts.fragments[:1] for name in part.physical_schema.names}
    types = ", ".join(
        f"{quoted(name)}: {_of_folder(source.schema.field(name).type)}"
        for name in sorted(source.parts.of_folders - inside)
    )
    listed = ",\n    ".join(literal(path) for path in paths)
    hive = (
        f"hive_partitioning = true, hive_types = {{{types}}}"
        if types
        else ("hive_partitioning = false")
    )
    return f"read_parquet([\n    {listed}\n  ], union_by_name = true, {hive})"


def _of_folder(kind: pa.DataType) -> str:
    """The type of a column that folders' names say."""
    if pa.types.is_integer(kind):
        return "BIGINT"
    return "DATE" if pa.types.is_date(kind) else "VARCHAR"


@dataclass(frozen=True)
class _History:
    """One view's history, as a part of the statement.

    Attributes:
        name: of the common table expression.
        view: the view.
        source: its files.
        ns: whether times are nanoseconds.
    """

    name: str
    view: ViewPlan
    source: ParquetSource
    ns: bool

    @property
    def keys(self) -> list[str]:
        return [f"{OWN}key_{at}" for at in range(len(self.view.keys))]

    def sql(self) -> str:
        """Rows that can be matched: keys, times, place and features under names of our own."""
        view, schema = self.view, self.source.schema
        columns = [
            f"{_key(quoted(column), schema.field(column).type)} AS {name}"
            for name, (_, column) in zip(self.keys, view.keys, strict=True)
        ]
        columns.append(f"{self._time(view.event_time)} AS {TIME}")
        created = self._time(view.created_time) if view.created_time else "NULL"
        columns += [f"{created} AS {CREATED_COLUMN}", f"file_index AS {FILE}"]
        columns.append(f"file_row_number AS {IN_FILE}")
        columns += [f"{quoted(name)} AS {self.feature(name)}" for name in view.feature_columns]
        return f"SELECT {_list(columns)}\n  FROM {read_parquet(self.source)}"  # noqa: S608 - quoted

    def feature(self, column: str) -> str:
        return f"{OWN}feature_{self.view.feature_columns.index(column)}"

    def _time(self, column: str) -> str:
        return _time(quoted(column), self.source.schema.field(column).type, ns=self.ns)


def _given(
    entities: EntityRows, open_source: Callable[[DataSource], ParquetSource]
) -> tuple[str, str]:
    """What has the entity rows, and the order that numbers them."""
    origin = entities.origin
    if origin.kind != "files" or origin.text.lower().endswith(CSV):
        return ENTITY_ROWS, ""
    files = FileSource(name=ENTITY_ROWS, path=origin.text, timestamp_field=entities.event_time)
    return read_parquet(
        open_source(files).with_all_types()
    ), "ORDER BY file_index, file_row_number"


def _point_in_time(
    query: PointInTime, pruned: Callable[[ViewPlan], ParquetSource], given: tuple[str, str]
) -> str:
    plan, entities, (rows, order) = query.plan, query.entities, given
    numbered = f"SELECT *, row_number() OVER ({order}) AS {ROW} FROM {rows}"  # noqa: S608 - quoted
    parts = [f"entity_rows AS (\n  {numbered}\n)"]
    columns = [f"e.{quoted(name)}" for name in entities.table.column_names]
    joins = ""
    for at, view in enumerate(plan.views):
        history = _history(f"history_{at}", view, pruned(view), entities.unit)
        known = plan.created_by_entity_time and view.created_time is not None
        parts.append(f"{history.name} AS (\n  {history.sql()}\n)")
        match = _match_known(history, entities) if known else _match(history, entities)
        parts.append(f"seen_{at} AS (\n  {match}\n)")
        columns += [
            f"seen_{at}.{history.feature(old)} AS {quoted(new)}" for old, new in view.features
        ]
        joins += f"\nLEFT JOIN seen_{at} ON seen_{at}.{ROW} = e.{ROW}"
    return (
        f"WITH {', '.join(parts)}\nSELECT {_list(columns)}\nFROM entity_rows AS e{joins}\n"
        f"ORDER BY e.{ROW}"
    )


def _history(name: str, view: ViewPlan, source: ParquetSource, unit: str) -> _History:
    History.from_view(view, source)  # raises what matching would
    times = [view.event_time, *([view.created_time] if view.created_time else [])]
    units = {unit, *(Axis.from_type(source.schema.field(column).type).unit for column in times)}
    return _History(name, view, source, "ns" in units)


def _match(history: _History, entities: EntityRows) -> str:
    """First one row a key and time, the winner; then the last that each entity row sees."""
    partition = ", ".join([*history.keys, TIME])
    return (
        f"SELECT e.{ROW}, h.*\n  FROM {_asking(history, entities)} AS e\n"  # noqa: S608 - quoted
        f"  ASOF JOIN (\n    SELECT * FROM {history.name} WHERE {_usable(history)}\n"
        f"    QUALIFY row_number() OVER (PARTITION BY {partition} ORDER BY {_newest(time=False)})"
        f" = 1\n  ) AS h\n  ON {_equal(history)} AND e.{TIME} >= h.{TIME}"
        f"{_alive(history, 'WHERE')}"
    )


def _match_known(history: _History, entities: EntityRows) -> str:
    """Of the rows that were created by the entity row's time, the newest."""
    return (
        f"SELECT e.{ROW}, h.*\n  FROM {_asking(history, entities)} AS e\n"  # noqa: S608 - quoted
        f"  JOIN {history.name} AS h\n  ON {_equal(history)} AND h.{TIME} <= e.{TIME}"
        f" AND h.{CREATED_COLUMN} <= e.{TIME}{_alive(history, 'AND')}\n"
        f"  QUALIFY row_number() OVER (PARTITION BY e.{ROW} ORDER BY {_newest('h.')}) = 1"
    )


def _asking(history: _History, entities: EntityRows) -> str:
    """The entity rows' keys and time, in the types that are compared."""
    columns = [ROW]
    for name, (ours, theirs) in zip(history.keys, history.view.keys, strict=True):
        entities.require([ours], history.view.view)
        kind, stored = entities.table.column(ours).type, history.source.schema.field(theirs).type
        check_joinable(ours, kind, theirs, stored)
        # pandas makes floats of integers where one is missing; the history says what they are.
        columns.append(f"{_key(quoted(ours), stored, kind)} AS {name}")
    kind = entities.table.column(entities.event_time).type
    columns.append(f"{_time(quoted(entities.event_time), kind, ns=history.ns)} AS {TIME}")
    return f"(SELECT {', '.join(columns)} FROM entity_rows)"  # noqa: S608 - quoted


def _alive(history: _History, word: str) -> str:
    ttl = history.view.ttl
    if not ttl:
        return ""
    length = ttl // timedelta(microseconds=1) * (1_000 if history.ns else 1)
    return f"\n  {word} h.{TIME} >= e.{TIME} - {length} /* ttl {ttl} */"


def _source_rows(query: SourceRows, source: ParquetSource) -> str:
    view = query.view
    history = _history("history", view, source, "us")
    bounds = [f"{TIME} >= {_moment(query.start, ns=history.ns)}"] if query.start else []
    bounds += [f"{TIME} <= {_moment(query.end, ns=history.ns)}"] if query.end else []
    conditions = " AND ".join([_usable(history), *bounds])
    newest = ""
    if query.newest:
        partition = f"PARTITION BY {', '.join(history.keys)} " if history.keys else ""
        newest = f"\nQUALIFY row_number() OVER ({partition}ORDER BY {_newest()}) = 1"
    columns = [f"{history.feature(old)} AS {quoted(new)}" for old, new in view.features]
    return (
        f"WITH history AS (\n  {history.sql()}\n)\nSELECT {_list(columns)}\nFROM history\n"
        f"WHERE {conditions}{newest}\nORDER BY {FILE}, {IN_FILE}"
    )


def _newest(of: str = "", *, time: bool = True) -> str:
    """The order in which rows win: event time, created time, then the later row."""
    event = f"{of}{TIME} DESC, " if time else ""
    return f"{event}{of}{CREATED_COLUMN} DESC NULLS LAST, {of}{FILE} DESC, {of}{IN_FILE} DESC"


def _usable(history: _History) -> str:
    return " AND ".join(f"{name} IS NOT NULL" for name in [TIME, *history.keys])


def _equal(history: _History) -> str:
    # A view without entities has no keys: all entity rows ask the same.
    return " AND ".join(f"e.{key} = h.{key}" for key in history.keys) or "true"


def _key(expression: str, stored: pa.DataType, kind: pa.DataType | None = None) -> str:
    if family(stored) == "time":
        return _time(expression, kind or stored, ns=False)
    return f"CAST({expression} AS {CAST[family(stored) or 'text']})"


def _time(expression: str, kind: pa.DataType, *, ns: bool) -> str:
    if pa.types.is_null(kind):
        return "CAST(NULL AS BIGINT)"
    if not ns:
        # There is no epoch_us of nanoseconds with a time zone.
        in_ns = pa.types.is_timestamp(kind) and kind.unit == "ns"
        return f"epoch_ns({expression}) // 1000" if in_ns else f"epoch_us({expression})"
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return f"CAST(epoch_ns({expression}) AS HUGEINT)"
    return f"(CAST(epoch_us({expression}) AS HUGEINT) * 1000)"


def _moment(moment: datetime, *, ns: bool) -> str:
    number = Axis("us").first_at_or_after(moment) * (1_000 if ns else 1)
    return f"{number} /* {moment.isoformat()} */"


def _list(columns: list[str]) -> str:
    return "\n  " + ",\n  ".join(columns)
