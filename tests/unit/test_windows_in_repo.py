"""Derived views in a feature repo: with packed views, in services and training sets, explained."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)
from repos import NoRegistry, repo_config
from shop_sets import DAY, START, apply, build, entity_rows, iceberg_source, shop, view

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.sagemaker import load_training_set, verify
from feast_dynamo_ext.sagemaker.rebuild import rebuild
from feast_dynamo_ext.sagemaker.set_inspection import inspect
from feast_dynamo_ext.sagemaker.set_verification import changed_sources
from feast_dynamo_ext.series_settings import Series

UTC = dt.timezone.utc
HOUR = dt.timedelta(hours=1)
BUYER = Entity(name="buyer", join_keys=["buyer"], value_type=ValueType.INT64)


def history(folder: Any, **columns: list[Any]) -> FileSource:
    """Events of an hour each, one buyer, in a file."""
    count = len(next(iter(columns.values())))
    rows: dict[str, Any] = {
        "buyer": pa.array([1] * count, pa.int64()),
        "at": pa.array([START + hour * HOUR for hour in range(count)]),
        "order": pa.array(range(count), pa.int64()),
        **columns,
    }
    pq.write_table(pa.table(rows), folder / "events.parquet")
    return FileSource(name="events", path=str(folder / "events.parquet"), timestamp_field="at")


def base_of(source: FileSource, **kinds: Any) -> FeatureView:
    fields = {"buyer": Int64, "order": Int64, **kinds}
    return FeatureView(
        name="purchases",
        entities=[BUYER],
        schema=[Field(name=name, dtype=kind) for name, kind in fields.items()],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(series=Series(tie_breaker="order")).tags(),
    )


def retrieved(folder: Any, views: list[Any], rows: pa.Table | None, **more: Any) -> Any:
    refs = [
        f"{view.projection.name_to_use()}:{field.name}"
        for view in views
        for field in view.projection.features
    ]
    return S3ParquetOfflineStore.get_historical_features(
        repo_config(folder), views, refs, rows, NoRegistry(), "p", **more
    )


def at_hours(*hours: float, **columns: Any) -> pa.Table:
    given = columns or {"buyer": pa.array([1] * len(hours), pa.int64())}
    return pa.table({**given, "event_timestamp": [START + hour * HOUR for hour in hours]})


def of_amount(*functions: str, window: dt.timedelta = DAY) -> list[Aggregation]:
    return [Aggregation(column="amount", function=name, time_window=window) for name in functions]


def test_packed_and_derived_views_are_joined_in_one_request(tmp_path):
    source = history(tmp_path, amount=[1.0, 2.0, 4.0])
    base = base_of(source, amount=Float64)
    spend = windows(base, name="spend", aggregations=of_amount("sum", window=HOUR))
    last = recent(base, name="last", last=2, features=["amount"])
    rows = at_hours(2.5, 0, 9, -1)
    job = retrieved(tmp_path, [spend, base, last], rows, full_feature_names=True)
    found = job.to_arrow()
    assert found.column("spend__sum_amount_1h").to_pylist() == [4.0, 1.0, None, None]
    assert found.column("purchases__amount").to_pylist() == [4.0, 1.0, 4.0, None]
    assert found.column("last__amount_last_2").to_pylist() == [[4.0, 2.0], [1.0], [4.0, 2.0], []]
    hour = 3_600_000_000
    first = int(START.timestamp()) * 10**6
    assert found.column("last__event_time_last_2").to_pylist()[0] == [
        first + 2 * hour,
        first + hour,
    ]
    assert found.schema.field("last__event_time_last_2").type == pa.list_(pa.int64())


def test_a_projection_renames_join_keys(tmp_path):
    base = base_of(history(tmp_path, amount=[1.0, 2.0]), amount=Float64)
    spend = windows(base, name="spend", aggregations=of_amount("sum"))
    giver = spend.with_name("of_giver").with_join_key_map({"buyer": "giver"})
    rows = at_hours(3, 3, buyer=[1, 2], giver=[2, 1])
    found = retrieved(tmp_path, [spend, giver], rows, full_feature_names=True).to_arrow()
    assert found.column("spend__sum_amount_1d").to_pylist() == [3.0, None]
    assert found.column("of_giver__sum_amount_1d").to_pylist() == [None, 3.0]


def test_columns_may_have_other_names_in_the_files(tmp_path):
    history(tmp_path, amount=[1.0, 2.0, 4.0])
    source = FileSource(
        name="events",
        path=str(tmp_path / "events.parquet"),
        timestamp_field="bought",
        field_mapping={"buyer": "user", "at": "bought", "order": "number", "amount": "price"},
    )
    base = FeatureView(
        name="purchases",
        entities=[Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)],
        schema=[
            Field(name="user", dtype=Int64),
            Field(name="number", dtype=Int64),
            Field(name="price", dtype=Float64),
        ],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(series=Series(tie_breaker="number")).tags(),
    )
    total = Aggregation(column="price", function="sum", time_window=DAY)
    made = windows(base, name="spend", aggregations=[total])
    job = retrieved(tmp_path, [made], at_hours(1, user=[1]))
    assert job.to_arrow().column("sum_price_1d").to_pylist() == [3.0]
    entity_df = job.entities.table  # noqa: F841 - the statement names it
    assert duckdb.sql(job.to_sql()).fetchall()[0][-1] == 3.0


def test_both_bounds_count_and_the_event_of_the_moment_may_be_left_out(tmp_path):
    base = base_of(history(tmp_path, amount=[1.0, 2.0, 4.0]), amount=Float64)
    both = windows(base, name="both", aggregations=of_amount("sum", window=2 * HOUR))
    before = windows(
        base, name="before", aggregations=of_amount("sum", window=2 * HOUR), exclude_current=True
    )
    found = retrieved(tmp_path, [both, before], at_hours(2, 3), full_feature_names=True)
    table = found.to_arrow()
    assert table.column("both__sum_amount_2h").to_pylist() == [7.0, 6.0]
    assert table.column("before__sum_amount_2h").to_pylist() == [3.0, 6.0]


def test_a_sum_of_integers_is_exact_or_an_error(tmp_path):
    high = 2**62
    base = base_of(history(tmp_path, amount=[high, high - 1, 1]), amount=Int64)
    spend = windows(base, name="spend", aggregations=of_amount("sum", "mean"))
    found = retrieved(tmp_path, [spend], at_hours(1)).to_arrow()
    assert found.column("sum_amount_1d").to_pylist() == [2**63 - 1]
    assert found.column("mean_amount_1d").to_pylist() == [(2**63 - 1) / 2]
    with pytest.raises(ColumnTypeError, match=r"`spend`, feature `sum_amount_1d`.* 64 bits"):
        retrieved(tmp_path, [spend], at_hours(2)).to_arrow()
    mean = windows(base, name="mean", aggregations=of_amount("mean"))
    exact = retrieved(tmp_path, [mean], at_hours(2)).to_arrow()
    assert exact.column("mean_amount_1d").to_pylist() == [2**63 / 3]


def test_a_null_in_a_list_needs_a_fill(tmp_path):
    base = base_of(
        history(tmp_path, amount=[1.0, None], note=["a", None]), amount=Float64, note=String
    )
    bare = recent(base, name="bare", last=3, features=["note"])
    assert retrieved(tmp_path, [bare], at_hours(0)).to_arrow().column(
        "note_last_3"
    ).to_pylist() == [["a"]]
    with pytest.raises(ColumnTypeError, match=r"`bare`, feature `note_last_3`.*`fill="):
        retrieved(tmp_path, [bare], at_hours(1)).to_arrow()
    filled = recent(base, name="filled", last=3, features=["note", "amount"], fill={"note": "-"})
    found = retrieved(tmp_path, [filled], at_hours(1)).to_arrow()
    assert found.column("note_last_3").to_pylist() == [["-", "a"]]
    newest, oldest = found.column("amount_last_3").to_pylist()[0]
    assert (math.isnan(newest), oldest) == (True, 1.0)


def test_values_are_cast_as_the_base_view_declares_them(tmp_path):
    base = base_of(history(tmp_path, amount=[1.0, 2.0, 2.5]), amount=Int64)
    spend = windows(base, name="spend", aggregations=of_amount("sum"))
    found = retrieved(tmp_path, [spend], at_hours(1)).to_arrow().column("sum_amount_1d")
    assert (found.to_pylist(), found.type) == ([3], pa.int64())
    with pytest.raises(ColumnTypeError, match="`amount` is declared as INT64"):
        retrieved(tmp_path, [spend], at_hours(2)).to_arrow()


def test_any_type_has_a_first_and_a_last(tmp_path):
    base = base_of(
        history(tmp_path, tags=pa.array([["a"], None, ["b", "c"]], pa.list_(pa.string()))),
        tags=Array(String),
    )
    ends = [
        Aggregation(column="tags", function=name, time_window=HOUR) for name in ("first", "last")
    ]
    made = windows(base, name="ends", aggregations=ends)
    found = retrieved(tmp_path, [made], at_hours(1, 2, -1)).to_arrow()
    assert found.column("first_tags_1h").to_pylist() == [["a"], None, None]
    assert found.column("last_tags_1h").to_pylist() == [None, ["b", "c"], None]


def test_without_entity_rows_each_change_of_an_event_is_one(tmp_path):
    base = base_of(history(tmp_path, amount=[1.0, 2.0, 4.0]), amount=Float64)
    spend = windows(base, name="spend", aggregations=of_amount("sum", "count"))
    found = retrieved(
        tmp_path, [spend], None, start_date=START + HOUR, end_date=START + DAY
    ).to_arrow()
    assert found.column("event_timestamp").to_pylist() == [START + HOUR, START + 2 * HOUR]
    assert found.column("sum_amount_1d").to_pylist() == [3.0, 7.0]


def test_keys_that_do_not_fit_in_memory_are_read_in_several_passes(tmp_path):
    random = np.random.default_rng(3)
    count = 4_000
    rows = pa.table(
        {
            "buyer": pa.array(random.integers(0, 50, count), pa.int64()),
            "at": pa.array([START + int(at) * HOUR for at in random.integers(0, 500, count)]),
            "order": pa.array(range(count), pa.int64()),
            "amount": random.integers(0, 9, count).astype(float),
        }
    )
    pq.write_table(rows, tmp_path / "events.parquet", row_group_size=300)
    source = FileSource(name="e", path=str(tmp_path / "events.parquet"), timestamp_field="at")
    base = base_of(source, amount=Float64)
    made = windows(base, name="spend", aggregations=of_amount("sum", "count_distinct", "std"))
    lists = recent(base, name="lists", last=5, features=["amount"])
    asked = at_hours(*random.integers(0, 500, 300).tolist(), buyer=random.integers(0, 60, 300))
    whole = retrieved(tmp_path, [made, lists], asked).to_arrow()
    refs = [f"{view.name}:{field.name}" for view in (made, lists) for field in view.features]
    parts = S3ParquetOfflineStore.get_historical_features(
        repo_config(tmp_path, memory_limit="64KB", threads=1),
        [made, lists],
        refs,
        asked,
        NoRegistry(),
        "p",
    )
    assert " passes over keys and times of 4,000 rows" in str(parts.explain())
    assert parts.to_arrow().equals(whole)


def test_long_ranges_are_reduced_from_blocks(tmp_path):
    count = 30_000
    amount = np.random.default_rng(5).integers(-9, 9, count)
    base = base_of(history(tmp_path, amount=amount.tolist()), amount=Int64)
    made = windows(
        base, name="spend", aggregations=of_amount("sum", "min", "max", window=5_000 * DAY)
    )
    found = retrieved(tmp_path, [made], at_hours(count - 1, 5_000, 63, 64, 0)).to_arrow()
    upto = [count, 5_001, 64, 65, 1]
    assert found.column("sum_amount_5000d").to_pylist() == [int(amount[:n].sum()) for n in upto]
    assert found.column("min_amount_5000d").to_pylist() == [int(amount[:n].min()) for n in upto]
    assert found.column("max_amount_5000d").to_pylist() == [int(amount[:n].max()) for n in upto]


def test_an_explanation_says_how_windows_are_computed(tmp_path):
    base = base_of(history(tmp_path, amount=[1.0, 2.0, 4.0]), amount=Float64)
    spend = windows(base, name="spend", aggregations=of_amount("sum", "mean"))
    (explained,) = retrieved(tmp_path, [spend], at_hours(1, 2)).explain().views
    assert explained.plan == "windows"
    assert explained.rows == 3
    assert explained.why == (
        "one pass over keys and times of 3 rows of `purchases` for events of 1 keys, told apart "
        "by `order`; then the values of those that count: 2 aggregates over 1 window, the "
        "longest 1d, as ranges of events in the order of time"
    )


# With a registry


def purchases(folder: Any, **more: Any) -> FeatureView:
    tags = ViewSettings(series=Series(tie_breaker="orders")).tags()
    return view("purchases", iceberg_source(folder), tags=tags, **more)


def derived(base: FeatureView) -> list[FeatureView]:
    of_spend = [
        Aggregation(column="spend", function=function, time_window=7 * DAY)
        for function in ("sum", "mean", "count")
    ]
    return [windows(base, name="spend", aggregations=of_spend)]


@pytest.fixture
def store(tmp_path):
    made = shop(tmp_path)
    base = purchases(tmp_path)
    views = derived(base)
    service = FeatureService(name="churn", features=[base, *views])
    apply(tmp_path, base, *views, service)
    return made


def test_the_base_view_is_the_one_of_the_registry(store, tmp_path):
    # A partial apply: the derived view still carries the base as it was, without a ttl.
    apply(tmp_path, purchases(tmp_path, ttl=2 * DAY))
    rows = pa.table({"cid": [3], "event_timestamp": [START + 10 * DAY]})
    store.refresh_registry()
    job = store.get_historical_features(
        entity_df=rows.to_pandas(), features=["spend:count_spend_7d"]
    )
    assert job.to_df()["count_spend_7d"].tolist() == [3]


def test_a_base_view_without_events_is_named(store, tmp_path):
    apply(tmp_path, view("purchases", iceberg_source(tmp_path)))
    store.refresh_registry()
    rows = pa.table({"cid": [3], "event_timestamp": [START + 10 * DAY]})
    with pytest.raises(OfflineStoreError, match="`spend` is derived from the events of `purch"):
        store.get_historical_features(
            entity_df=rows.to_pandas(), features=["spend:count_spend_7d"]
        )


def test_a_training_set_of_a_service_is_verified_and_built_again(store, tmp_path):
    service = store.get_feature_service("churn")
    made = build(store, tmp_path / "set", features=service)
    manifest = made.manifest
    assert manifest.features == (
        "spend",
        "orders",
        "sum_spend_7d",
        "mean_spend_7d",
        "count_spend_7d",
    )
    assert set(manifest.provenance.view_definitions) == {"purchases", "spend"}
    aws = AwsSettings()
    assert verify(str(tmp_path / "set"), aws).ok
    assert not list(changed_sources(manifest, aws, store))
    assert rebuild(store, str(tmp_path / "set"), str(tmp_path / "again")).same_bytes
    report = inspect(load_training_set(str(tmp_path / "set"), aws), aws, Limits("200MB", 2), store)
    hours = [moment.hour for moment in entity_rows()["event_timestamp"].to_pylist()]
    ages = {each.column: each for each in report.ages}
    assert set(ages) == {"purchases__event_timestamp", "spend__event_timestamp"}
    for each in ages.values():
        assert (each.younger, each.unmatched) == (0, 0)
        assert (each.youngest_s, each.oldest_s) == (min(hours) * 3_600, max(hours) * 3_600)


def test_another_definition_of_the_base_view_is_a_change_of_the_set(store, tmp_path):
    build(store, tmp_path / "set", features=["spend:sum_spend_7d"])
    apply(tmp_path, purchases(tmp_path, ttl=2 * DAY))
    store.refresh_registry()
    manifest = load_training_set(str(tmp_path / "set"), AwsSettings()).manifest
    changes = [(each.kind, each.name) for each in changed_sources(manifest, AwsSettings(), store)]
    assert ("definition", "purchases") in changes


def test_an_on_demand_view_takes_features_of_derived_views(store, tmp_path):
    spend = store.get_feature_view("spend")

    @on_demand_feature_view(
        sources=[spend],
        schema=[Field(name="an_order", dtype=Float64)],
        mode="pandas",
    )
    def ratios(inputs: pd.DataFrame) -> pd.DataFrame:
        found = inputs["sum_spend_7d"] / inputs["count_spend_7d"]
        return pd.DataFrame({"an_order": found})

    apply(tmp_path, ratios)
    store.refresh_registry()
    rows = pa.table({"cid": [3], "event_timestamp": [START + 10 * DAY]})
    found = store.get_historical_features(
        entity_df=rows.to_pandas(), features=["ratios:an_order", "spend:mean_spend_7d"]
    ).to_df()
    assert found["an_order"].tolist() == found["mean_spend_7d"].tolist()


STORED = {
    "real": (Float32, pa.array([1.5, None, -2.25], pa.float64()), pa.list_(pa.float32())),
    "small": (Int32, pa.array([3, -4, 2**31 - 1], pa.int64()), pa.list_(pa.int32())),
    "tiny": (Int64, pa.array([1, 2, 3], pa.uint8()), pa.list_(pa.int64())),
    "whole": (Int64, pa.array([1.0, None, 3.0], pa.float64()), pa.list_(pa.int64())),
    "flag": (Bool, pa.array([True, False, True]), pa.list_(pa.bool_())),
    "raw": (Bytes, pa.array([b"\xff", b"", b"a"]), pa.list_(pa.binary())),
    "word": (String, pa.array(["b", "a", "b"]).dictionary_encode(), pa.list_(pa.string())),
    "day": (UnixTimestamp, pa.array([0, 1, 2], pa.date32()), pa.list_(pa.int64())),
}


@pytest.mark.parametrize("name", [*STORED])
def test_lists_have_the_declared_type_and_ends_the_column_s(tmp_path, name):
    dtype, values, listed = STORED[name]
    base = base_of(history(tmp_path, **{name: values}), **{name: dtype})
    fill = {"whole": -1} if name == "whole" else {}
    lists = recent(base, name="lists", last=9, features=[name], newest_first=False, fill=fill)
    ends = windows(
        base,
        name="ends",
        aggregations=[
            Aggregation(column=name, function=function, time_window=DAY)
            for function in ("first", "count", "count_distinct")
        ],
    )
    given = values.to_pylist()
    for rows in (at_hours(2), at_hours(2, 1, 2)):
        job = retrieved(tmp_path, [lists, ends, base], rows)
        found = job.to_arrow()
        made = found.column(f"{name}_last_9").to_pylist()[0]
        assert found.schema.field(f"{name}_last_9").type == listed
        packed = found.schema.field(name).type
        assert found.schema.field(f"first_{name}_1d").type == packed
        assert found.column(f"first_{name}_1d").to_pylist()[0] == given[0]
        present = [value for value in given if value is not None]
        assert found.column(f"count_{name}_1d").to_pylist()[0] == len(present)
        assert found.column(f"count_distinct_{name}_1d").to_pylist()[0] == len(set(present))
        if name == "day":
            assert made == [0, 86_400_000_000, 2 * 86_400_000_000]
        elif name == "real":
            assert (made[0], math.isnan(made[1]), made[2]) == (1.5, True, -2.25)
        else:
            assert made == [fill.get(name) if value is None else value for value in given]
        entity_df = job.entities.table  # noqa: F841 - the statement names it
        told = duckdb.sql(job.to_sql()).to_arrow_table()
        for column in (f"first_{name}_1d", f"count_{name}_1d", f"count_distinct_{name}_1d"):
            assert told.column(column).to_pylist() == found.column(column).to_pylist()
        if name != "real":
            assert told.column(f"{name}_last_9").to_pylist()[0] == made


def test_events_alone_are_counted_without_any_value(tmp_path):
    base = base_of(history(tmp_path, amount=[1.0, 2.0, 4.0]), amount=Float64)
    of_events = [
        Aggregation(function=name, time_window=DAY) for name in ("count", "time_since_last")
    ]
    made = windows(base, name="made", aggregations=of_events)
    times = recent(base, name="times", within=DAY, features=[], newest_first=False)
    found = retrieved(tmp_path, [made, times], at_hours(1.5, -1, buyer=[1, 1])).to_arrow()
    assert found.column(made.features[0].name).to_pylist() == [2, 0]
    assert found.column(made.features[1].name).to_pylist() == [1_800.0, None]
    first = int(START.timestamp()) * 10**6
    assert found.column(times.features[0].name).to_pylist() == [[first, first + 3_600 * 10**6], []]
