"""The one compiler from a plan to SQL: for `to_sql`, and for the engine that runs in DuckDB.

Every statement sees history as one relation of narrow columns, and entity rows as another:

======== ======================== ============================================================
relation columns                  what they are
======== ======================== ============================================================
history  k0, k1 ..., t, c, r      keys in comparable types, event time, created time, position
entities k0, k1 ..., hi, lo,      keys, the last and the first event time that a row sees, the
         known, r                 last created time that it sees, and its number
======== ======================== ============================================================

The engine makes these relations out of Arrow batches, `to_sql` out of files; what is matched, and
which row wins, is the same text. Times are integers, as in `timestamps`, so that neither the
session's time zone nor the columns' units matter. Names of columns are quoted, never pasted.

What differs from one SQL engine to another is a `Dialect`; what a column's declared type makes of
it, see `sql_casts`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource

from feast_dynamo_ext.arrow_types import MOST_DIGITS, is_uuid, without_dictionary
from feast_dynamo_ext.columns import PUT
from feast_dynamo_ext.declared import declared_type
from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.key_types import family, has_other_keys, least_and_most
from feast_dynamo_ext.retrieval.engines.sql_casts import cast_as_declared
from feast_dynamo_ext.retrieval.engines.sql_dialects import DUCKDB, literal
from feast_dynamo_ext.retrieval.entity_rows.from_files import CSV
from feast_dynamo_ext.retrieval.eras import numbered
from feast_dynamo_ext.retrieval.inputs import (
    History,
    checked_source,
    entity_key,
    key_names,
    of_rows,
    with_tombstones,
)
from feast_dynamo_ext.retrieval.plan import PitPlan, without_eras
from feast_dynamo_ext.retrieval.windows.item_puts import items_of
from feast_dynamo_ext.retrieval.windows.windows_sql import EventsSql
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST, Axis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from feast.data_source import DataSource
    from feast.value_type import ValueType

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.sql_dialects import Dialect
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import Plan, RowsPlan, ViewPlan


# Which row wins


@dataclass(frozen=True)
class Rank:
    """One of the columns by which rows win, the greatest first.

    Attributes:
        column: its expression.
        lowest: what a null counts as, less than any value; None for a column without nulls.
        range: the least and the greatest value, where they are known.
    """

    column: str
    lowest: int | None = None
    range: tuple[int, int] | None = None

    @property
    def bits(self) -> int:
        """What a value takes in a wide integer, a null being 0."""
        least, greatest = self.range or (0, 0)
        return (greatest - least + 1).bit_length()

    def value(self) -> str:
        """The value, in a comparison of one column after the other."""
        return self.column if self.lowest is None else f"coalesce({self.column}, {self.lowest})"

    def wide(self, dialect: Dialect) -> str:
        """The value in a wide integer."""
        least, _ = self.range or (0, 0)
        return f"coalesce({dialect.cast(self.column, 'wide')} - {least} + 1, 0)"


def winner(ranks: Sequence[Rank], dialect: Dialect) -> str:
    """The position of the row of a group that has the greatest values; the last rank is position.

    DuckDB compares one wide integer two to three times as fast as a row of values (measured: 10
    million rows in 3.7 and 10.6 s), so they are put side by side in one where what is known of
    their ranges lets them fit.
    """
    position = ranks[-1].column
    if len(ranks) == 1:
        return f"max({position})"
    bits = sum(rank.bits for rank in ranks)
    if all(rank.range is not None for rank in ranks) and bits <= dialect.wide_bits:
        wide = dialect.cast("0", "wide")
        for rank in ranks:
            wide = f"({wide}) * {1 << rank.bits} + {rank.wide(dialect)}"
        return f"{dialect.max_by}({position}, {wide})"
    values = ", ".join(rank.value() for rank in ranks)
    return f"{dialect.max_by}({position}, {dialect.row}({values}))"


def _ranks(
    view: ViewPlan, lowest: int = LOWEST, *, time: bool = True, ties: bool = False
) -> list[Rank]:
    """Event time, the plan's tie-breaks, those of the source (x), position."""
    event = [Rank("h.t")] if time else []
    created = [Rank("h.c", lowest) for _ in view.tie_breaks]
    return [*event, *created, *([Rank("h.x")] if ties else []), Rank("h.r")]


# Statements on narrow columns


def usable(view: ViewPlan) -> str:
    """The condition that a row of history has an event time and all keys."""
    return " AND ".join(f"h.{name} IS NOT NULL" for name in ["t", *key_names(view)])


def between(first: int | None, last: int | None) -> str:
    """The condition first <= event time <= last; None for no limit."""
    bounds = [f"h.t >= {first}"] if first is not None else []
    bounds += [f"h.t <= {last}"] if last is not None else []
    return " AND ".join(bounds) or "true"


def load(view: ViewPlan, rows: str, condition: str) -> str:
    """The usable rows of a history that meet a condition.

    Args:
        view: its plan.
        rows: the relation of all rows.
        condition: of columns of ``h``.
    """
    columns = ", ".join(f"h.{name}" for name in [*key_names(view), "t", "c", "r"])
    return f"SELECT {columns} FROM {rows} AS h WHERE {usable(view)} AND {condition}"  # noqa: S608 - names of our own


def needed(view: ViewPlan, entities: str) -> str:
    """The condition that some entity row has a row's keys, and one of them its time or a later."""
    return (
        f"h.t <= (SELECT max(hi) FROM {entities}) "  # noqa: S608 - names of our own
        f"AND EXISTS (SELECT 1 FROM {entities} AS e WHERE {_equal('e', 'h', view)})"
    )


def match(
    view: ViewPlan,
    entities: str,
    history: str,
    dialect: Dialect,
    *,
    known: bool,
    lowest: int = LOWEST,
    ties: bool = False,
) -> str:
    """The as-of join: each entity row that sees a row, and the position of the row it sees.

    First the newest time that each entity row sees, then the winner among the rows of that time.
    Where created time counts, a newer row may have become known too late: then the winner is
    sought among all that were known.

    Args:
        view: the plan.
        entities: the relation of entity rows.
        history: the relation of usable rows.
        dialect: the SQL engine's.
        known: only rows that were created by `known` of the entity row count.
        lowest: what a null created time counts as.
        ties: whether the history has a column x, which decides before positions do.
    """
    alive = " AND h.t >= e.lo" if view.ttl else ""
    if known:
        wins = winner(_ranks(view, lowest, ties=ties), dialect)
        return (
            f"SELECT e.r AS entity, {wins} AS position\n"  # noqa: S608 - names of our own
            f"  FROM {entities} AS e JOIN {history} AS h\n"
            f"  ON {_equal('e', 'h', view)} AND h.t <= e.hi{alive} AND h.c <= e.known\n"
            f"  GROUP BY e.r"
        )
    keys = ", ".join(f"e.{key}" for key in key_names(view))
    ranks = _ranks(view, lowest, time=False, ties=ties)
    return (
        f"SELECT s.entity, {winner(ranks, dialect)} AS position\n"  # noqa: S608 - as above
        f"  FROM (\n    SELECT e.r AS entity, {keys}, h.t\n"
        f"    FROM {entities} AS e {dialect.asof_join} {history} AS h\n"
        f"    ON {_equal('e', 'h', view)} AND e.hi >= h.t\n    WHERE true{alive}\n  ) AS s\n"
        f"  JOIN {history} AS h ON {_equal('s', 'h', view)} AND s.t = h.t\n  GROUP BY s.entity"
    )


def newest(
    view: ViewPlan, rows: str, condition: str, rank: str, *, with_keys: bool = False
) -> str:
    """Of each key the position r and the event time t of its newest row, and n, its rows.

    Args:
        view: the plan.
        rows: the relation of all rows.
        condition: of columns of ``h``.
        rank: `winner` of the view's ranks.
        with_keys: whether the keys are columns too.
    """
    keys = ", ".join(f"h.{key}" for key in key_names(view))
    first = f"{keys}, " if with_keys else ""
    return (
        f"SELECT {first}{rank} AS r, max(h.t) AS t, count(*) AS n FROM {rows} AS h\n"  # noqa: S608 - names of our own
        f"  WHERE {usable(view)} AND {condition} GROUP BY {keys}"
    )


def tied_in_match(
    view: ViewPlan, matched: str, entities: str, history: str, *, known: bool
) -> str:
    """Rows equal to a winner of `match` in keys and event time, and it: group g, row r."""
    knows = f" JOIN {entities} AS e ON e.r = w.entity" if known else ""
    is_known = " AND h.c <= e.known" if known else ""
    return (
        f"SELECT w.entity AS g, h.r FROM {matched} AS w\n"  # noqa: S608 - names of our own
        f"  JOIN {history} AS n ON n.r = w.position\n"
        f"  JOIN {history} AS h ON {_equal('n', 'h', view)} AND n.t = h.t{knows}\n"
        f"  WHERE true{is_known} QUALIFY count(*) OVER (PARTITION BY w.entity) > 1"
    )


def tied_in_newest(view: ViewPlan, rows: str, found: str) -> str:
    """Rows that are equal to one of `newest` in keys and event time, and it: group g, row r."""
    return (
        f"SELECT n.r AS g, h.r FROM {rows} AS h JOIN {found} AS n\n"  # noqa: S608 - names of our own
        f"  ON {_equal('n', 'h', view)} AND n.t = h.t\n"
        f"  QUALIFY count(*) OVER (PARTITION BY n.r) > 1"
    )


def winner_within(history: History, start: datetime, end: datetime, dialect: Dialect) -> str:
    """`winner` of a history's rows in a range of time, with the ranges that footers say."""
    ranks = [Rank("h.t", None, history.event_range(start, end))]
    if history.created_axis is not None:
        ranks.append(Rank("h.c", LOWEST, history.created_range()))
    ranks.append(Rank("h.r", None, (0, max(0, history.source.rows - 1))))
    return winner(ranks, dialect)


def _equal(left: str, right: str, view: ViewPlan) -> str:
    return " AND ".join(f"{left}.{key} = {right}.{key}" for key in key_names(view))


# One statement that reads files

ENTITY_ROWS = "entity_df"
"""The table, or the variable of the Python code around, that has the entity rows."""

NUMBER = "__feast_row"
"""An entity row's number; a column of the user's of this name would be in the way."""


def statement(
    plan: Plan,
    entities: EntityRows | None,
    open_source: Callable[[DataSource], ParquetSource],
    dialect: Dialect = DUCKDB,
) -> str:
    """The SQL of a retrieval; files are listed, and footers read, but no rows.

    Args:
        plan: the retrieval.
        entities: the entity rows of a point-in-time join.
        open_source: lists the files of a source.
        dialect: the SQL engine's.

    Raises:
        EntityRowsError: entity rows that cannot be joined.
        OfflineStoreError: a source that is not there, or lacks a column.
    """
    if isinstance(plan, PitPlan):
        if entities is None:
            raise ValueError("a point-in-time join needs entity rows")
        return _point_in_time(plan, entities, open_source, dialect)
    return _rows_of_source(plan, open_source, dialect)


@dataclass(frozen=True)
class _Files:
    """One view's history, read from files by the statement.

    Attributes:
        name: of the common table expression.
        view: the view.
        source: its files.
        ns: whether times are nanoseconds, and as wide as it takes.
        dialect: the SQL engine's.
    """

    name: str
    view: ViewPlan
    source: ParquetSource
    ns: bool
    dialect: Dialect

    @classmethod
    def opened(
        cls,
        name: str,
        view: ViewPlan,
        source: ParquetSource,
        window: tuple[datetime | None, datetime | None],
        unit: str,
        dialect: Dialect,
    ) -> _Files:
        """The files of a window; times are nanoseconds where those of either side are."""
        source = checked_source(view, source)
        is_whole = view.has_eras or view.has_events_of_items
        pruned = source if is_whole else source.within(view.event_time, *window)
        # DuckDB refuses to read no files; of one that is out of range no row counts.
        source = pruned if pruned.files else source
        _check_columns(view, source)
        History.from_view(view, source)  # raises what matching would
        times = [view.event_time, *view.tie_breaks]
        units = {unit, *(Axis.from_type(source.schema.field(at).type).unit for at in times)}
        return cls(name, view, source, "ns" in units, dialect)

    @property
    def lowest(self) -> int:
        """What a null created time counts as."""
        return -(1 << self.dialect.wide_bits) + 1 if self.ns else LOWEST

    def parts(self, moment: int | str | None = None) -> list[str]:
        """The common table expressions that give the usable rows.

        Args:
            moment: of a range's end, by which deletions count; None for eras as a key.
        """
        view, inlined = self.view, self.dialect.inlined
        if not view.has_eras:
            condition = usable(view) + (" AND h.p = 1" if view.tombstones else "")
            # Around it, so that no column of the files is taken for one of ours.
            rows = f"SELECT * FROM ({self._rows()}) AS h WHERE {condition}"  # noqa: S608 - quoted
            return [f"{self.name} {inlined} (\n  {rows}\n)"]
        *keys, era = key_names(view)
        known = " AND ".join(f"h.{name} IS NOT NULL" for name in ["p", *keys])
        changes = f"(SELECT * FROM ({self._rows()}) AS h WHERE {known}) AS h"  # noqa: S608 - as above
        is_alive = "" if moment is None else f" AND h.n = {self.era('h', str(moment))}"
        rows = (
            f"SELECT *, h.n AS {era} FROM changes_{self.name} AS h "  # noqa: S608 - as above
            f"WHERE h.p = 1 AND h.t IS NOT NULL{is_alive}"
        )
        return [
            f"changes_{self.name} AS (\n  {numbered(changes, keys)}\n)",
            f"{self.name} AS (\n  {rows}\n)",
        ]

    def era(self, of: str, moment: str) -> str:
        """The era of a time, of the keys of a relation."""
        *keys, _ = key_names(self.view)
        same = " AND ".join(f"a.{key} = {of}.{key}" for key in keys)
        return (
            f"coalesce((SELECT max(a.n) FROM changes_{self.name} AS a "  # noqa: S608 - names of our own
            f"WHERE {same} AND a.ends AND a.w <= {moment}), 0)"
        )

    def _rows(self) -> str:
        """All rows: narrow columns, and features under names of our own."""
        view, quoted = self.view, self.dialect.quoted
        keys = [self.declared_key(*key) for key in view.declared_keys] or ["0"]
        columns = [f"{key} AS {name}" for key, name in zip(keys, key_names(view), strict=False)]
        columns.append(f"{self.time(view.event_time)} AS t")
        columns += self._changes()
        created = self.time(view.created_time) if view.created_time else "NULL"
        columns += [f"{created} AS c", f"{self.dialect.position} AS r"]
        columns += [f"{self.tie()} AS x"] if self.has_ties else []
        columns += [f"{self.item_key(name)} AS i{at}" for at, name in enumerate(self.item_keys)]
        columns += [f"{quoted(name)} AS {self.feature(name)}" for name in view.feature_columns]
        read = self.dialect.read_files(self.source)
        return f"SELECT {_list(columns)}\n  FROM {read}"  # noqa: S608 - quoted

    @property
    def item_keys(self) -> tuple[str, ...]:
        """Columns by which events are items of a captured table; none where they are not."""
        return items_of(self.view, self.source) if self.view.has_events_of_items else ()

    def item_key(self, column: str) -> str:
        """A key of items as it is compared; times with all their digits."""
        kind = self.source.schema.field(column).type
        if pa.types.is_timestamp(kind):
            return self.time(column)
        return self.key(self.dialect.quoted(column), kind)

    def all_rows(self) -> str:
        """All rows of a history, whether they count or not, as a relation."""
        return f"({self._rows()})"

    def _changes(self) -> list[str]:
        """What rows are, when they were written, and the table's sequence; see `eras`."""
        rule, quoted = self.view.tombstones, self.dialect.quoted
        if rule is None:
            return []
        change, ends = quoted(rule.change), ", ".join(map(literal, sorted(rule.ends)))
        sequence = next(map(quoted, self.source.internal), "NULL")
        return [
            f"CASE WHEN {change} = {literal(PUT)} THEN 1 "
            f"WHEN {change} IN ({ends}) THEN 0 END AS p",
            f"coalesce({self.time(rule.written)}, {self.lowest}) AS w",
            f"coalesce({sequence}, {LOWEST}) AS q",
        ]

    @property
    def has_ties(self) -> bool:
        """Whether positions do not say which of equal rows wins."""
        return self.source.ties is not None

    def tie(self) -> str:
        """What decides between equal rows: the sequence, then what they hold; as `ties` does."""
        schema, ties = self.source.schema, self.source.ties
        sequence = [ties.sequence] if ties is not None and ties.sequence else []
        content = sorted(name for name in schema.names if name not in self.source.internal)
        parts = []
        for name in [*sequence, *content]:
            column = self.dialect.quoted(name)
            parts += [f"{column} IS NOT NULL", column]
            if pa.types.is_floating(schema.field(name).type):
                parts.append(f"CASE WHEN {column} = 0 THEN NOT signbit({column}) END")
        return f"{self.dialect.row}({', '.join(parts)})"

    def feature(self, column: str) -> str:
        """Our name of a feature's column."""
        return f"f{self.view.feature_columns.index(column)}"

    def declared(self, history: str, column: str, kind: Declared) -> str:
        """A feature in its declared type.

        Raises:
            ColumnTypeError: the column cannot be cast in SQL as it is in a retrieval.
        """
        stored = self.source.schema.field(column).type
        expression = f"{history}.{self.feature(column)}"
        return cast_as_declared(expression, stored, kind, column, self.view.view)

    def declared_key(self, column: str, declared: ValueType) -> str:
        """A key of the history as it is compared, or an error where it could be none online.

        Raises:
            ColumnTypeError: bytes of a key that is declared as text.
        """
        stored = self.source.schema.field(column).type
        key = self.key(self.dialect.quoted(column), stored)
        if not has_other_keys(stored, declared):
            return key
        limits = least_and_most(stored, declared)
        if limits is None:
            raise ColumnTypeError(
                f"Feature view `{self.view.view}`: join key `{column}` is declared as "
                f"{declared.name} and kept in {stored}, of which SQL does not check that it is "
                "UTF-8. Declare it as Bytes, or use `to_arrow()`."
            )
        refused = literal(f"a join key is none of those that {declared.name} has")
        return (
            f"CASE WHEN {key} < {limits[0]} OR {key} > {limits[1]} "
            f"THEN {self.dialect.fail}({refused}) ELSE {key} END"
        )

    def key(self, expression: str, stored: pa.DataType, kind: pa.DataType | None = None) -> str:
        """A key as it is compared.

        Args:
            expression: the column.
            stored: its type in the history.
            kind: its type where it is read; None for the same.
        """
        kind, dialect = without_dictionary(kind or stored), self.dialect
        if family(stored) == "time":
            in_ns = pa.types.is_timestamp(kind) and kind.unit == "ns"
            return dialect.second(epoch(expression, kind, dialect, ns=in_ns), in_ns=in_ns)
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return dialect.whole(expression, kind)
        compared = dialect.cast(expression, family(stored) or "text")
        # A UUID's text, which some write in capitals.
        return f"lower({compared})" if is_uuid(without_dictionary(stored)) else compared

    def time(self, column: str) -> str:
        """A column of times as it is compared."""
        kind = self.source.schema.field(column).type
        return epoch(self.dialect.quoted(column), kind, self.dialect, ns=self.ns)


def _check_columns(view: ViewPlan, source: ParquetSource) -> None:
    """Refuse columns that a statement would take for others, or whose values it would round.

    Raises:
        OfflineStoreError: names the column.
    """
    nested = [column.name for column in source.schema if pa.types.is_nested(column.type)]
    if source.parts.views is not None or (source.ties is not None and nested):
        why = "whose files hold deleted rows or older names of columns"
        if source.parts.views is None:
            why = f"of whose equal rows the nested columns {nested} would have to decide"
        raise OfflineStoreError(
            f"Feature view `{view.view}` has no SQL: its source is an Iceberg table, {why}. Use "
            "`to_arrow()`, or rewrite the table first (`feast-dynamo table optimize`, or with the "
            "engine that made it)."
        )
    names = Counter(name.lower() for name in [*source.schema.names, "file_index", ROW_NUMBER])
    for column in dict.fromkeys([*view.narrow_columns, *view.feature_columns]):
        kind = source.schema.field(column).type
        why = ""
        if names[column.lower()] > 1:
            why = "which is not the only name there that SQL takes for the same"
        elif pa.types.is_decimal(kind) and kind.precision > MOST_DIGITS[128]:
            why = f"whose {kind.precision} digits DuckDB has no type for"
        if why:
            raise OfflineStoreError(
                f"Feature view `{view.view}` has no SQL: {source.uri} has a column `{column}`, "
                f"{why}. Use `to_arrow()`, or rename the column in the files."
            )


ROW_NUMBER = "file_row_number"


def epoch(expression: str, kind: pa.DataType, dialect: Dialect, *, ns: bool) -> str:
    """A time as an integer since 1970 UTC: microseconds, or nanoseconds as a wide integer."""
    if pa.types.is_null(kind):
        return dialect.cast("NULL", "integer")
    in_ns = pa.types.is_timestamp(kind) and kind.unit == "ns"
    if not ns:
        # DuckDB has no epoch_us of nanoseconds with a time zone.
        whole = f"{_epoch_ns(expression, dialect)} // 1000"
        return whole if in_ns else f"{dialect.epoch_us}({expression})"
    if in_ns:
        return dialect.cast(_epoch_ns(expression, dialect), "wide")
    return f"({dialect.cast(f'{dialect.epoch_us}({expression})', 'wide')} * 1000)"


def _epoch_ns(expression: str, dialect: Dialect) -> str:
    """Nanoseconds since 1970 UTC; the highest, pandas' `Timestamp.max`, is infinity to DuckDB."""
    return (
        f"coalesce({dialect.epoch_ns}({expression}), CASE WHEN {expression} IS NOT NULL THEN "
        f"CASE WHEN {expression} > TIMESTAMP '1970-01-01' THEN {HIGHEST} ELSE {-HIGHEST} END END)"
    )


def _point_in_time(
    plan: PitPlan,
    entities: EntityRows,
    open_source: Callable[[DataSource], ParquetSource],
    dialect: Dialect,
) -> str:
    rows, order = _entity_rows(entities, open_source, dialect)
    numbered = f"SELECT *, row_number() OVER ({order}) AS {NUMBER} FROM {rows}"  # noqa: S608 - quoted
    parts = [f"entity_rows AS (\n  {numbered}\n)"]
    columns = [f"e.{dialect.quoted(name)}" for name in entities.table.column_names]
    joins = ""
    for at, planned in enumerate(plan.views):
        window = planned.visible(*entities.range())
        opened = open_source(planned.source)
        view = with_tombstones(planned, opened)
        name = f"history_{at}"
        rows_of = view if view.derived is None else without_eras(view)
        files = _Files.opened(name, rows_of, opened, window, entities.unit, dialect)
        known = plan.created_by_entity_time and view.created_time is not None
        keys = f"requested_{at}"
        if view.derived is not None:
            events = _events(at, files, known=known)
            parts += [] if events.items else files.parts()
            parts.append(f"{keys} AS (\n  {_narrow_entities(files, entities)}\n)")
            history = files.all_rows() if events.items else files.name
            parts += events.parts(history, has_eras=view.has_eras)
            columns += events.columns(dialect.quoted)
            joins += events.joins(f"e.{NUMBER}")
            continue
        matched = match(
            view,
            keys,
            files.name,
            dialect,
            known=known,
            lowest=files.lowest,
            ties=files.has_ties,
        )
        parts += files.parts()
        parts.append(f"{keys} AS (\n  {_narrow_entities(files, entities)}\n)")
        parts.append(f"seen_{at} AS (\n  {matched}\n)")
        columns += [
            f"{files.declared(f'history_{at}', old, kind)} AS {dialect.quoted(new)}"
            for old, new, kind in view.declared
        ]
        joins += f"\nLEFT JOIN seen_{at} ON seen_{at}.entity = e.{NUMBER}"
        joins += f"\nLEFT JOIN history_{at} ON history_{at}.r = seen_{at}.position"
    return (
        f"WITH {', '.join(parts)}\nSELECT {_list(columns)}\nFROM entity_rows AS e{joins}\n"
        f"ORDER BY e.{NUMBER}"
    )


def _events(at: int, files: _Files, *, known: bool) -> EventsSql:
    """What is computed of the events of a derived view."""
    view, schema = files.view, files.source.schema
    if view.derived is None:
        raise AssertionError(view.view)

    def value(column: str, kind: Declared) -> tuple[str, pa.DataType]:
        stored = schema.field(column).type
        return files.declared("h", column, kind), declared_type(kind, stored)

    return EventsSql(
        at=at,
        view=view.view,
        plan=view.derived,
        keys=key_names(view),
        value=value,
        epoch_us=lambda text, kind: epoch(text, kind, files.dialect, ns=False),
        ns=files.ns,
        known=known,
        has_ties=files.has_ties,
        lowest=files.lowest,
        items=[f"i{place}" for place in range(len(files.item_keys))],
    )


def _entity_rows(
    entities: EntityRows,
    open_source: Callable[[DataSource], ParquetSource],
    dialect: Dialect,
) -> tuple[str, str]:
    """What has the entity rows, and the order that numbers them."""
    origin = entities.origin
    if origin.kind != "files" or origin.text.lower().endswith(CSV):
        return ENTITY_ROWS, ""
    files = FileSource(name=ENTITY_ROWS, path=origin.text, timestamp_field=entities.event_time)
    source = open_source(files).with_all_types()
    return dialect.read_files(source), f"ORDER BY {dialect.position}"


def _narrow_entities(files: _Files, entities: EntityRows) -> str:
    """The entity rows' keys and times, in the types that are compared."""
    view, dialect = files.view, files.dialect
    keys = []
    for ours, theirs in view.keys:
        entities.require([ours], view.view)
        kind, stored = entities.table.column(ours).type, files.source.schema.field(theirs).type
        entity_key(entities, view, ours, theirs, stored)  # raises what matching would
        # pandas makes floats of integers where one is missing; the history says what they are.
        keys.append(files.key(dialect.quoted(ours), stored, kind))
    columns = [
        f"{key} AS {name}" for key, name in zip(keys or ["0"], key_names(view), strict=False)
    ]
    kind = entities.table.column(entities.event_time).type
    time = epoch(dialect.quoted(entities.event_time), kind, dialect, ns=files.ns)
    columns += [f"{time} AS hi", f"{time} AS known", f"{NUMBER} AS r"]
    if view.ttl:
        length = view.ttl // timedelta(microseconds=1) * (1_000 if files.ns else 1)
        columns.append(f"{time} - {length} AS lo /* ttl {view.ttl} */")
    rows = f"SELECT {', '.join(columns)} FROM entity_rows"  # noqa: S608 - quoted
    if not view.has_eras:
        return rows
    *_, era = key_names(view)
    return f"SELECT e.*, {files.era('e', 'e.known')} AS {era} FROM ({rows}) AS e"  # noqa: S608 - as above


def _rows_of_source(
    plan: RowsPlan, open_source: Callable[[DataSource], ParquetSource], dialect: Dialect
) -> str:
    window, source = (plan.start, plan.end), open_source(plan.view.source)
    counted = of_rows(plan, source)
    files = _Files.opened("history", counted, source, window, "us", dialect)
    view = plan.view if plan.newest else replace(plan.view, keys=())
    condition = between(*(None if at is None else _moment(at, ns=files.ns) for at in window))
    columns = [f"h.{files.feature(old)} AS {dialect.quoted(new)}" for old, new in view.features]
    end = _END_OF_TIME if plan.end is None else _moment(plan.end, ns=files.ns)
    parts = files.parts(end)
    rest = f"WHERE {condition}"
    if plan.newest:
        rank = winner(_ranks(view, files.lowest, ties=files.has_ties), dialect)
        grouped = newest(without_eras(counted), "history", condition, rank)
        parts.append(f"newest AS (\n  {grouped}\n)")
        rest = "JOIN newest ON newest.r = h.r"
    return (
        f"WITH {', '.join(parts)}\nSELECT {_list(columns)}\nFROM history AS h\n{rest}\n"
        "ORDER BY h.r"
    )


_END_OF_TIME = "9223372036854775807"


def _moment(moment: datetime, *, ns: bool) -> int:
    return Axis("us").first_at_or_after(moment) * (1_000 if ns else 1)


def _list(columns: list[str]) -> str:
    return "\n  " + ",\n  ".join(columns)
