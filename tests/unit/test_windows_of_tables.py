"""Windows and lists over history tables and captured tables, against plain loops."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import captured
import duckdb
import pyarrow as pa
from captured import Change, Table, events_of
from examples import cases
from feast import FeatureView, Field
from feast.aggregation import Aggregation
from feast.types import Int64, UnixTimestamp
from history_tables import new_table
from history_tables import source_of as table_source
from hypothesis import given
from hypothesis import strategies as st
from repos import NoRegistry, repo_config
from series_cases import base_of, check, table_of, views_of
from series_strategies import series_cases

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.series_settings import Series

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENGINES: tuple[dict[str, Any], ...] = ({}, {"join_plan": "duckdb"})
LAST = 90


@cases(10)
@given(case=series_cases(in_table=True))
def test_a_history_table_answers_as_its_appends_say(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("table")
    empty = table_of(case, [])
    keys = tuple(f"k{at}" for at in range(len(case.keys)))
    handle = new_table(folder, "none", keys, empty.schema, ("at", "made"))
    size = max(1, -(-len(case.rows) // case.files))
    for start in range(0, len(case.rows), size):
        handle.append(table_of(case, case.rows[start : start + size]))
    source = table_source(folder, timestamp_field="at", created_timestamp_column="made")
    check(case, views_of(case, base_of(case, source)))


# Captured tables


@st.composite
def logs(draw) -> list[Change]:
    """A log of a table of orders, whose times are few, so that they are often equal."""
    table, written = Table(), 10
    for value in range(draw(st.integers(0, 24))):
        written += draw(st.sampled_from([0, 1, 1, 3]))
        item = draw(st.integers(1, 2)), draw(st.integers(1, 3))
        what = draw(st.sampled_from(["put", "put", "put", "delete", "expire"]))
        if what == "put":
            event = written + draw(st.sampled_from([-9, -4, -1, 0, 0, 6]))
            table.put(item, event, written, value)
        else:
            table.delete(item, written, expired=what == "expire")
    return table.log


def expected(
    log: Sequence[Change],
    pairs: Sequence[tuple[int, int]],
    customer_of: Any,
    span: int,
    **how: Any,
) -> dict[str, list[Any]]:
    """What the views below answer."""
    answers: dict[str, list[Any]] = {name: [] for name in ("n", "total", "newest", "values")}
    moments = {moment: events_of(log, moment, **how) for _, moment in pairs}
    for customer, moment in pairs:
        rows = [
            row
            for row in moments[moment]
            if customer_of(row) == customer and moment - span <= row.event <= moment
        ]
        rows.sort(key=lambda row: (row.event, row.item[-1]))
        values = [row.value for row in rows]
        answers["n"].append(len(values))
        answers["total"].append(sum(values) if values else None)
        answers["newest"].append(values[-1] if values else None)
        answers["values"].append(values[::-1][:3])
    return answers


def views(source: Any, name: str, span: int, deletes: str | None) -> list[FeatureView]:
    base = FeatureView(
        name=name,
        entities=[captured.CUSTOMER],
        schema=[
            Field(name="customer", dtype=Int64),
            Field(name="order", dtype=Int64),
            Field(name="value", dtype=Int64),
        ],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(series=Series(), deletes=deletes).tags(),
    )
    length = dt.timedelta(microseconds=span)
    each = [("count", "", "n"), ("sum", "value", "total"), ("last", "value", "newest")]
    made = windows(
        base,
        name=f"{name}_windows",
        aggregations=[
            Aggregation(column=column, function=function, time_window=length, name=called)
            for function, column, called in each
        ],
    )
    lists = recent(base, name=f"{name}_lists", last=3, within=length, features=["value"])
    return [made, lists]


def source_of(**more: Any) -> Any:
    return captured.source_of(
        schema=[
            Field(name="customer", dtype=Int64),
            Field(name="order", dtype=Int64),
            Field(name="bought", dtype=UnixTimestamp),
            Field(name="value", dtype=Int64),
        ],
        **more,
    )


def compare(
    folder: Path,
    source: Any,
    log: Sequence[Change],
    customer_of: Any,
    expiry: str,
    moments: Sequence[int],
    span: int,
) -> None:
    pairs = [(customer, moment) for customer in (0, 1, 2, 3) for moment in moments]
    entities = captured.entity_rows([((customer,), moment) for customer, moment in pairs])
    ends = frozenset({"delete", "expire"} if expiry == "delete" else {"delete"})
    for deletes in (None, "ignore"):
        both = views(source, f"base_{deletes}", span, deletes)
        refs = [f"{view.name}:{field.name}" for view in both for field in view.features]
        refs = [ref for ref in refs if "event_time" not in ref]
        for known in (False, True):
            right = expected(
                log, pairs, customer_of, span, ends=ends, known=known, applies=deletes is None
            )
            for engine in ENGINES:
                job = S3ParquetOfflineStore.get_historical_features(
                    repo_config(folder, catalog=captured.CATALOG, **engine),
                    both,
                    refs,
                    entities,
                    NoRegistry(),
                    "p",
                    filter_by_created_timestamp=known,
                )
                found = job.to_arrow().select([*[*right][:3], "value_last_3"]).to_pydict()
                found["values"] = found.pop("value_last_3")
                assert found == right, (deletes, known, engine)
            entity_df = entities  # noqa: F841 - the statement names it
            told = duckdb.sql(job.to_sql()).to_arrow_table().to_pydict()
            told["values"] = told["value_last_3"]
            assert {name: told[name] for name in right} == right, ("to_sql", deletes, known)


@cases(6)
@given(
    log=logs(),
    cut=st.integers(0, 24),
    expiry=st.sampled_from(["keep", "delete"]),
    span=st.sampled_from([5, 1_000]),
)
def test_an_item_is_an_event_until_it_ends(tmp_path_factory, log, cut, expiry, span):
    folder = tmp_path_factory.mktemp("log")
    source = source_of(expiry=expiry)
    keys = ("customer", "order")
    handle = captured.new_history(source, repo_config(folder, catalog=captured.CATALOG), keys)
    for part in (log[:cut], log[cut:]):
        if part:
            captured.append(handle, part, keys)
    compare(folder, source, log, lambda row: row.item[0], expiry, range(0, LAST, 3), span)


@cases(4)
@given(log=logs(), span=st.sampled_from([5, 1_000]))
def test_an_item_may_go_over_to_another_entity(tmp_path_factory, log, span):
    """The table's key is the order's number alone, and an update changes its customer."""
    folder = tmp_path_factory.mktemp("log")
    source = source_of(expiry="delete")
    alone = [
        Change((10 * row.item[0] + row.item[1],), row.event, row.written, row.change, row.value)
        for row in log
    ]
    handle = captured.new_history(
        source, repo_config(folder, catalog=captured.CATALOG), ("order",), is_strict=False
    )
    if alone:
        rows = captured.rows_of_changes(handle, alone, ("order",))
        customers = pa.array([(row.value or 0) % 3 for row in alone], pa.int64())
        at = rows.schema.get_field_index("customer")
        if at < 0:
            rows = rows.append_column("customer", customers)
        else:
            rows = rows.set_column(at, "customer", customers)
        handle.append(
            rows.select([name for name in handle.columns().names if name in rows.column_names])
        )
    compare(folder, source, alone, lambda row: row.value % 3, "delete", range(0, LAST, 3), span)
