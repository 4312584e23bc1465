"""Histories, entity rows and views for tests of the point-in-time join, and every plan's answer.

A case is written once and asked of every plan. Files are small and have row groups of few rows, so
that the rows of a key lie in several batches, row groups and files.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field, FileSource, RepoConfig
from feast.types import Bool, Bytes, Int64, String, UnixTimestamp
from pit_oracle import HistoryRow, seen_by
from repos import NoRegistry, repo_config

from feast_dynamo_ext.key_types import family
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SMALL_SPARK = {
    "spark.master": "local[2]",
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
}

PLANS: tuple[dict[str, Any], ...] = (
    {"join_plan": "stream", "memory_limit": "256MB"},
    # Entity rows are joined in blocks of a few.
    {"join_plan": "stream", "memory_limit": "2KB", "threads": 1},
    {"join_plan": "duckdb", "memory_limit": "256MB"},
    *(
        [{"engine": "spark", "join_plan": "auto", "spark_conf": SMALL_SPARK}]
        if "SPARK" in os.environ
        else []
    ),
)
"""Settings of the offline store; each case goes through each of them. `make test-spark` adds the
last one."""

US, MS, SECOND = 10**3, 10**6, 10**9
HOUR, DAY = 3_600 * SECOND, 86_400 * SECOND
UNIT_NS = {"s": SECOND, "ms": MS, "us": US, "ns": 1}
MOST = 2**63 - 1
MICROSECOND = dt.timedelta(microseconds=1)
MICROSECONDS = pa.timestamp("us", "UTC")


@functools.cache
def plan_config(plan: int = 0) -> RepoConfig:
    """The config of a repo whose offline store runs the given one of `PLANS`."""
    return repo_config(".", **PLANS[plan])


def of_every_plan(views, refs, entity_rows, **kwargs) -> Iterator[tuple[str, pa.Table]]:
    """The answers of all plans, with the plan's name for messages."""
    for number, plan in enumerate(PLANS):
        job = S3ParquetOfflineStore.get_historical_features(
            plan_config(number), views, refs, entity_rows, NoRegistry(), "p", **kwargs
        )
        yield str(plan), job.to_arrow()


def as_frame(table: pa.Table) -> pd.DataFrame:
    """Entity rows in pandas, in Arrow's types, so that none is widened on the way."""
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def time_array(nanoseconds: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Times in a type; they must be whole in its unit. Exact, also beyond the reach of ns."""
    if pa.types.is_date(kind):
        days = pa.array([None if ns is None else ns // DAY for ns in nanoseconds], pa.int32())
        return days.cast(pa.date32()).cast(kind)
    unit = UNIT_NS[kind.unit]
    whole = [None if ns is None else ns // unit for ns in nanoseconds]
    return pa.array(whole, pa.int64()).cast(kind)


def floored(nanoseconds: int | None, kind: pa.DataType) -> int | None:
    """A time as a type can hold it: rounded down to its unit, and kept within int64."""
    if nanoseconds is None:
        return None
    unit = DAY if pa.types.is_date(kind) else UNIT_NS[kind.unit]
    return max(-MOST, min(MOST, nanoseconds // unit)) * unit


@dataclass(frozen=True)
class ViewCase:
    """One feature view and its history.

    Attributes:
        keys: for each of its join keys the number of the entity rows' column.
        kinds: types of the join keys in its files.
        rows: its rows, in the order of the files.
        event: type of the event time.
        created: type of the created time; None where there is none.
        ttl: as Feast takes it.
        files: over how many files the rows are spread, in order.
        group: rows of a row group.
        mapped: the files have other names than the view, by a field mapping.
        renamed: the join keys have other names than the entity rows, by a join key map.
        again: the view is asked for twice, under two names; the second joins these columns.
    """

    keys: tuple[int, ...]
    kinds: tuple[pa.DataType, ...]
    rows: tuple[HistoryRow, ...]
    event: pa.DataType = MICROSECONDS
    created: pa.DataType | None = None
    ttl: dt.timedelta | None = None
    files: int = 1
    group: int = 4
    mapped: bool = False
    renamed: bool = False
    again: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Case:
    """What is asked: entity rows, as many columns of keys as `kinds`, of some views.

    Attributes:
        views: the views.
        kinds: types of the entity rows' columns of keys.
        entities: keys and time in ns of each entity row.
        event: type of the entity rows' time.
        known: `filter_by_created_timestamp`.
        full: `full_feature_names`.
    """

    views: tuple[ViewCase, ...]
    kinds: tuple[pa.DataType, ...]
    entities: tuple[tuple[tuple[Any, ...], int], ...]
    event: pa.DataType = MICROSECONDS
    known: bool = False
    full: bool = False


def check(case: Case, folder: Path) -> None:
    """Ask every plan, and compare with the oracle: rows, order, names, values and types.

    And the statement of `to_sql`: rows, order, names, and values of features.
    """
    entities = entity_table(case)
    full = case.full or any(view.again is not None for view in case.views)
    views, refs, expected = [], [], {}
    for number, view in enumerate(case.views):
        path = folder / f"view-{number}"
        write_history(view, path)
        for name, columns in _uses(number, view):
            views.append(_feature_view(number, view, path, name, columns))
            refs.append(f"{name}:value{number}")
            feature = f"{name}__value{number}" if full else f"value{number}"
            expected[feature] = _expected(case, view, columns)
    for plan, result in of_every_plan(
        views,
        refs,
        as_frame(entities),
        full_feature_names=full,
        filter_by_created_timestamp=case.known,
    ):
        assert result.column_names == [*entities.column_names, *expected], plan
        for name, column in expected.items():
            assert result.column(name).to_pylist() == column, (plan, name)
            assert result.schema.field(name).type == pa.int64(), (plan, name)
        untouched = result.select(entities.column_names)
        assert untouched.schema.types == entities.schema.types, plan
        assert untouched.equals(entities), plan
    statement = _by_statement(
        views,
        refs,
        as_frame(entities),
        full_feature_names=full,
        filter_by_created_timestamp=case.known,
    )
    assert statement.column_names == [*entities.column_names, *expected]
    for name, column in expected.items():
        assert statement.column(name).to_pylist() == column, ("to_sql", name)


def _by_statement(views, refs, entity_rows, **kwargs) -> pa.Table:
    """What a DuckDB of its own answers to `to_sql`; entity rows have DuckDB's types there."""
    job = S3ParquetOfflineStore.get_historical_features(
        plan_config(), views, refs, entity_rows, NoRegistry(), "p", **kwargs
    )
    with duckdb.connect(":memory:") as connection:
        connection.register("entity_df", job.entities.table)
        return connection.sql(job.to_sql()).to_arrow_table()


def entity_table(case: Case) -> pa.Table:
    """The entity rows, with a column that no view knows."""
    columns = {
        f"e{at}": key_array([keys[at] for keys, _ in case.entities], kind)
        for at, kind in enumerate(case.kinds)
    }
    columns["event_timestamp"] = time_array([moment for _, moment in case.entities], case.event)
    columns["note"] = pa.array([f"row {at}" for at in range(len(case.entities))])
    return pa.table(columns)


def key_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Keys in a type; those of times are given in ns."""
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return time_array(values, kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def write_history(view: ViewCase, path: Path) -> None:
    """The view's rows as files, in the order of the rows."""
    path.mkdir()
    names = names_in_files(view)
    size = -(-len(view.rows) // view.files)
    for number in range(view.files):
        start = number * size
        part = view.rows[start : start + size]
        columns = [
            *(
                key_array([row.keys[at] for row in part], kind)
                for at, kind in enumerate(view.kinds)
            ),
            pa.array(range(start, start + len(part)), pa.int64()),
            time_array([row.event for row in part], view.event),
        ]
        if view.created is not None:
            columns.append(time_array([row.created for row in part], view.created))
        table = pa.table(dict(zip(names, columns, strict=False)))
        pq.write_table(table, path / f"part-{number}.parquet", row_group_size=view.group)


def _join_keys(view: ViewCase) -> list[str]:
    return [f"j{at}" if view.renamed else f"e{column}" for at, column in enumerate(view.keys)]


def names_in_files(view: ViewCase) -> list[str]:
    """The columns of a view's files: join keys, value, event time, created time."""
    prefix = "file_" if view.mapped else ""
    return [prefix + name for name in [*_join_keys(view), "value", "at", "made"]]


def _uses(number: int, view: ViewCase) -> list[tuple[str, tuple[int, ...]]]:
    """Names under which a view is asked for, and the entity rows' columns of each."""
    if view.again is None:
        return [(f"view{number}", view.keys)]
    return [(f"view{number}_first", view.keys), (f"view{number}_second", view.again)]


def _feature_view(
    number: int, view: ViewCase, path: Path, name: str, columns: tuple[int, ...]
) -> FeatureView:
    """As a repo would define it: with the view's own names."""
    joins, value = dict(zip(_join_keys(view), view.kinds, strict=True)), f"value{number}"
    own = [*joins, value, "at", "made"]
    feature_view = FeatureView(
        name=f"view{number}",
        entities=[_entity(join, _dtype(kind)) for join, kind in joins.items()],
        schema=[
            *(Field(name=join, dtype=_dtype(kind)) for join, kind in joins.items()),
            Field(name=value, dtype=Int64),
        ],
        source=FileSource(
            name=f"source{number}",
            path=str(path.absolute()),
            timestamp_field="at",
            created_timestamp_column="" if view.created is None else "made",
            field_mapping={
                old: new for old, new in zip(names_in_files(view), own, strict=True) if old != new
            },
        ),
        ttl=view.ttl,
    )
    renamed = {join: f"e{column}" for join, column in zip(joins, columns, strict=True)}
    if view.again is not None:
        feature_view = feature_view.with_name(name)
    return feature_view.with_join_key_map(renamed if view.renamed else {})


@functools.cache
def _entity(join: str, dtype: Any) -> Entity:
    return Entity(name=f"entity_{join}", join_keys=[join], value_type=dtype.to_value_type())


def _dtype(kind: pa.DataType) -> Any:
    """What a key of an Arrow type is declared as."""
    return DTYPES[family(kind) or "text"]


DTYPES = {
    "integer": Int64,
    "text": String,
    "bytes": Bytes,
    "boolean": Bool,
    "time": UnixTimestamp,
}


def _expected(case: Case, view: ViewCase, columns: tuple[int, ...]) -> list[int | None]:
    ttl = None if view.ttl is None else (view.ttl // MICROSECOND) * US
    return [
        seen_by(
            tuple(keys[column] for column in columns),
            moment,
            view.rows,
            ttl=ttl,
            known=case.known and view.created is not None,
        )
        for keys, moment in case.entities
    ]
