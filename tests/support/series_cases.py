"""Histories of series, views over them and entity rows, for tests of windows and lists."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field, FileSource
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String, UnixTimestamp
from pit_cases import PLANS, UNIT_NS, key_array, plan_config, time_array
from repos import NoRegistry
from series_oracle import Row, aggregate, counting, listed

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.series_settings import Series

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

US = pa.timestamp("us", "UTC")
MICROSECOND = dt.timedelta(microseconds=1)

FUNCTIONS = {
    "amount": ("sum", "mean", "min", "max", "count", "count_distinct", "std", "first", "last"),
    "pieces": ("sum", "mean", "min", "max", "count", "count_distinct", "std", "first", "last"),
    "note": ("min", "max", "count", "count_distinct", "first", "last"),
    "sent": ("min", "max", "count", "count_distinct", "first", "last"),
}
"""Of each column of the events all functions that take it."""

FILLS = {"pieces": -1, "note": "none", "sent": 0}
TIE_TYPES = {
    "number": (Int64, pa.int64()),
    "text": (String, pa.string()),
    "ratio": (Float64, pa.float64()),
    "moment": (UnixTimestamp, US),
}
KEY_TYPES = {"int64": Int64, "string": String}


@dataclass(frozen=True)
class SeriesCase:
    """What is asked of one series.

    Attributes:
        rows: the history.
        keys: Arrow types of the join keys.
        entities: keys and time in ns of each entity row.
        spans: windows, in microseconds.
        ties: kinds of the tie-breakers, of `TIE_TYPES`.
        event: type of the event time.
        created: type of the created time; None where there is none.
        entity_time: type of the entity rows' time.
        ttl: in microseconds.
        last: how many events are listed.
        within: of lists, in microseconds.
        newest_first: order of lists.
        exclude_current: of both views.
        known: `filter_by_created_timestamp`.
        files: over how many files the rows are spread.
    """

    rows: tuple[Row, ...]
    keys: tuple[pa.DataType, ...]
    entities: tuple[tuple[tuple[Any, ...], int], ...]
    spans: tuple[int, ...]
    ties: tuple[str, ...] = ("number",)
    event: pa.DataType = US
    created: pa.DataType | None = US
    entity_time: pa.DataType = US
    ttl: int | None = None
    last: int | None = 2
    within: int | None = None
    newest_first: bool = True
    exclude_current: bool = False
    known: bool = False
    files: int = 1


def write_rows(case: SeriesCase, folder: Path) -> None:
    """The history as files of small row groups."""
    folder.mkdir(exist_ok=True)
    size = max(1, -(-len(case.rows) // case.files))
    for number in range(case.files):
        part = case.rows[number * size : (number + 1) * size]
        pq.write_table(table_of(case, part), folder / f"part-{number}.parquet", row_group_size=4)


def table_of(case: SeriesCase, rows: Sequence[Row]) -> pa.Table:
    """Rows with the columns that the view names."""
    columns = {
        f"k{at}": key_array([row.keys[at] for row in rows], kind)
        for at, kind in enumerate(case.keys)
    }
    for at, tie in enumerate(case.ties):
        columns[f"tie{at}"] = pa.array([row.tie[at] for row in rows], TIE_TYPES[tie][1])
    columns["at"] = time_array([row.event for row in rows], case.event)
    if case.created is not None:
        columns["made"] = time_array([row.created for row in rows], case.created)
    kinds = {"amount": pa.float64(), "pieces": pa.int64(), "note": pa.string(), "sent": US}
    for name, kind in kinds.items():
        columns[name] = pa.array([row.values[name] for row in rows], kind)
    return pa.table(columns)


def base_of(case: SeriesCase, source: Any) -> FeatureView:
    """The view whose events they are."""
    joins = {f"k{at}": _dtype(kind) for at, kind in enumerate(case.keys)}
    ties = {f"tie{at}": TIE_TYPES[tie][0] for at, tie in enumerate(case.ties)}
    values = {"amount": Float64, "pieces": Int64, "note": String, "sent": UnixTimestamp}
    return FeatureView(
        name="events",
        entities=[
            Entity(name=f"entity_{name}", join_keys=[name], value_type=kind.to_value_type())
            for name, kind in joins.items()
        ],
        schema=[Field(name=name, dtype=kind) for name, kind in (joins | ties | values).items()],
        source=source,
        ttl=None if case.ttl is None else dt.timedelta(microseconds=case.ttl),
        tags=ViewSettings(series=Series(tie_breaker=tuple(ties))).tags(),
    )


def _dtype(kind: pa.DataType) -> Any:
    return KEY_TYPES["string" if pa.types.is_string(kind) else "int64"]


def views_of(case: SeriesCase, base: FeatureView) -> tuple[FeatureView, FeatureView]:
    """A view of all aggregates, and one of all lists."""
    most = case.ttl or math.inf
    spans = [span for span in case.spans if span <= most]
    of_columns = [
        Aggregation(
            column=column,
            function=function,
            time_window=span * MICROSECOND,
            name=f"{function}_{column}_{span}",
        )
        for span in spans
        for column, functions in FUNCTIONS.items()
        for function in functions
    ]
    of_events = [
        Aggregation(function=name, time_window=span * MICROSECOND, name=f"{name}__{span}")
        for span in spans
        for name in ("count", "time_since_last")
    ]
    made = windows(
        base,
        name="spend",
        aggregations=[*of_columns, *of_events],
        exclude_current=case.exclude_current,
    )
    lists = recent(
        base,
        name="latest",
        last=case.last,
        within=None if case.within is None else case.within * MICROSECOND,
        features=[*FUNCTIONS],
        newest_first=case.newest_first,
        exclude_current=case.exclude_current,
        fill=FILLS,
    )
    return made, lists


def file_source(folder: Path, case: SeriesCase) -> FileSource:
    """The files of a folder."""
    return FileSource(
        name="events_source",
        path=str(folder.absolute()),
        timestamp_field="at",
        created_timestamp_column="" if case.created is None else "made",
    )


def entity_table(case: SeriesCase) -> pa.Table:
    """The entity rows."""
    columns = {
        f"k{at}": key_array([keys[at] for keys, _ in case.entities], kind)
        for at, kind in enumerate(case.keys)
    }
    moments = [moment for _, moment in case.entities]
    return pa.table({**columns, "event_timestamp": time_array(moments, case.entity_time)})


def expected(case: SeriesCase) -> dict[str, list[Any]]:
    """All features by their names in the result."""
    found: dict[str, list[Any]] = {}
    most = math.inf if case.ttl is None else case.ttl
    known = case.known and case.created is not None
    for keys, moment in case.entities:
        is_null = None in keys

        def events(span: float, keys: tuple[Any, ...] = keys, moment: int = moment) -> list[Row]:
            rows = counting(
                case.rows,
                keys,
                moment,
                span=None if span == math.inf else int(span) * 1_000,
                exclude_current=case.exclude_current,
                known=known,
            )
            return [replace(row, values=_in_seconds(row.values)) for row in rows]

        for span in (span for span in case.spans if span <= most):
            rows = events(min(span, most))
            for column, functions in {**FUNCTIONS, "": ("count", "time_since_last")}.items():
                for function in functions:
                    value = aggregate(function, column, rows, moment)
                    name = f"{function}_{column}_{span}"
                    found.setdefault(name, []).append(None if is_null else value)
        rows = events(min(most, math.inf if case.within is None else case.within))
        for column in (*FUNCTIONS, ""):
            fill = float("nan") if column == "amount" else FILLS.get(column)
            made = listed(column, rows, last=case.last, newest_first=case.newest_first, fill=fill)
            if column == "sent":
                made = [_micros(value) for value in made]
            name = f"list_{column}"
            found.setdefault(name, []).append(None if is_null else made)
    return found


def _in_seconds(values: dict[str, Any]) -> dict[str, Any]:
    """Values as events have them: Feast's times are whole seconds."""
    sent = values["sent"]
    return {**values, "sent": None if sent is None else sent.replace(microsecond=0)}


def _micros(value: Any) -> int:
    if not isinstance(value, dt.datetime):
        return int(value)
    return (value - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)) // MICROSECOND


def check(case: SeriesCase, views: Sequence[FeatureView], *, sql: bool = True) -> None:
    """Ask every plan of a history that is there, and compare with the oracle."""
    answers = expected(case)
    refs = [f"{view.name}:{field.name}" for view in views for field in view.features]
    names = {field.name: _expected_name(field.name) for view in views for field in view.features}
    entities = entity_table(case)
    for number, plan in enumerate(PLANS):
        job = S3ParquetOfflineStore.get_historical_features(
            plan_config(number),
            [*views],
            refs,
            entities,
            NoRegistry(),
            "p",
            filter_by_created_timestamp=case.known,
        )
        found = job.to_arrow()
        assert found.column_names == [*entities.column_names, *names], plan
        assert found.select(entities.column_names).equals(entities)
        compare(found, names, answers, plan)
        for name, wanted in names.items():
            if wanted.startswith("list_"):
                kind = {"amount": pa.float64(), "note": pa.string()}.get(wanted[5:], pa.int64())
                assert found.schema.field(name).type == pa.list_(kind), name
    if sql and not _has_far_numbers(case):
        with duckdb.connect(":memory:") as connection:
            connection.register("entity_df", entities)
            compare(connection.sql(job.to_sql()).to_arrow_table(), names, answers, "to_sql")


def _has_far_numbers(case: SeriesCase) -> bool:
    """Whether sums lose digits in DuckDB, which adds doubles, and deviations of integers do."""
    amounts = {abs(row.values["amount"] or 0) for row in case.rows}
    return any(amount > 1e12 for amount in amounts) or any(
        abs(row.values["pieces"] or 0) > 2**50 for row in case.rows
    )


def compare(
    found: pa.Table, names: dict[str, str], answers: dict[str, list[Any]], message: Any
) -> None:
    """Columns against the oracle's: floats within 1e-9, all else exact."""
    for name, wanted in names.items():
        for at, (value, right) in enumerate(
            zip(found.column(name).to_pylist(), answers[wanted], strict=True)
        ):
            assert same(value, right), (message, name, at, value, right)


def same(value: Any, right: Any) -> bool:
    """Whether a value is what it should be."""
    if isinstance(right, list):
        return (
            isinstance(value, list) and len(value) == len(right) and all(map(same, value, right))
        )
    if isinstance(right, float) and isinstance(value, float):
        if math.isnan(right):
            return math.isnan(value)
        return math.isclose(value, right, rel_tol=1e-9, abs_tol=1e-9)
    return type(value) is type(right) and value == right


def _expected_name(name: str) -> str:
    """The oracle's name of a feature: lists are named by column and suffix."""
    for column in FUNCTIONS:
        if name.startswith(f"{column}_"):
            return f"list_{column}"
    return "list_" if name.startswith("event_time_") else name


def ns(units: int, unit: str = "us") -> int:
    """So many units in nanoseconds."""
    return units * UNIT_NS[unit]
