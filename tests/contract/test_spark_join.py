"""Joins on Spark against a plain loop, and what they give beside Arrow: `engine: spark`."""

from __future__ import annotations

import datetime as dt
import gc
import runpy
import tempfile
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pit_cases
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import series_cases
from examples import cases
from feast import FileSource
from feast.types import Array, Float64, Int64, String
from hypothesis import given
from pit_cases import HOUR, MICROSECONDS, SMALL_SPARK, Case, ViewCase, check
from pit_oracle import HistoryRow
from pit_strategies import cases_of
from repos import REGION, NoRegistry, repo_config
from series_strategies import series_cases as generated_series
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

pytestmark = [
    pytest.mark.server,
    # PySpark's own.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]

ON_SPARK = {"engine": "spark", "spark_conf": SMALL_SPARK}
NOW = 500_000 * HOUR
START = dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc)


@pytest.fixture(scope="module", autouse=True)
def spark_alone():
    """Each case is asked of Spark alone: other tests ask the other plans."""
    plans = pit_cases.PLANS
    pit_cases.PLANS = series_cases.PLANS = (ON_SPARK,)
    pit_cases.plan_config.cache_clear()
    yield
    pit_cases.PLANS = series_cases.PLANS = plans
    pit_cases.plan_config.cache_clear()
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        active.stop()
        # Else its sockets are found open in tests of others, whenever they are collected.
        gateway, SparkContext._gateway, SparkContext._jvm = SparkContext._gateway, None, None
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()
        gc.collect()


@cases(6)
@given(case=cases_of())
def test_views_keys_and_times_of_all_kinds_equal_plain_loops(case):
    with tempfile.TemporaryDirectory() as folder:
        check(case, Path(folder))


@cases(6)
@given(case=generated_series())
def test_windows_and_lists_are_those_of_the_definition(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("series")
    series_cases.write_rows(case, folder)
    base = series_cases.base_of(case, series_cases.file_source(folder, case))
    series_cases.check(case, series_cases.views_of(case, base), sql=False)


def rows_of(*rows):
    """Rows of history: keys, hours from now, and hours from now of the created time."""
    return tuple(
        HistoryRow(keys, NOW + event * HOUR, None if created is None else NOW + created * HOUR)
        for keys, event, created in rows
    )


def test_what_others_get_wrong(tmp_path):
    """Keys alike as joined text, ties, rows created late, expired, of the future, asked twice."""
    history = rows_of(
        (("a", "b-c"), -2, -2),
        (("a-b", "c"), -1, -1),
        (("x", "y"), -5, -4),
        (("x", "y"), -5, -3),  # of one moment, created later
        (("x", "y"), -5, None),
        (("x", "y"), -4, 5),  # known too late
        (("x", "y"), 1, 1),  # of the future
        (("old", "row"), -30 * 24, -30 * 24),
    )
    asked = (("a", "b-c"), ("a-b", "c"), ("x", "y"), ("x", "y"), ("old", "row"), (None, "y"))
    kinds = (pa.string(), pa.string())
    for known in (False, True):
        for ttl in (None, dt.timedelta(days=7)):
            view = ViewCase((0, 1), kinds, history, created=MICROSECONDS, ttl=ttl, files=2)
            folder = tmp_path / f"{known}-{ttl}"
            folder.mkdir()
            case = Case((view,), kinds, tuple((keys, NOW) for keys in asked), known=known)
            check(case, folder)


def test_event_and_created_time_in_two_units(tmp_path):
    kinds = (pa.int64(),)
    history = rows_of(((1,), -3, -3), ((1,), -2, 1), ((1,), -1, -1), ((2,), -1, 0))
    view = ViewCase(
        (0,), kinds, history, event=pa.timestamp("ns"), created=pa.timestamp("s", "Asia/Tokyo")
    )
    asked = tuple(((key,), NOW + at * HOUR) for key in (1, 2) for at in (-2, -1, 0, 1))
    check(Case((view,), kinds, asked, event=pa.timestamp("ms"), known=True), tmp_path)


def test_views_of_one_key_are_one_pass_and_others_join_beside(tmp_path):
    kinds = (pa.int64(), pa.string())
    one = ViewCase((0,), kinds[:1], rows_of(((1,), -2, None), ((2,), -1, None)), ttl=None)
    two = ViewCase((0,), kinds[:1], rows_of(((1,), -9, None)), ttl=dt.timedelta(hours=3))
    three = ViewCase((1,), kinds[1:], rows_of((("a",), -1, None)), event=pa.timestamp("ns"))
    nobody = ViewCase((), (), rows_of(((), -1, None), ((), -2, None)))
    asked = tuple((keys, NOW) for keys in ((1, "a"), (2, "b"), (None, "a"), (1, None)))
    check(Case((one, two, three, nobody), kinds, asked), tmp_path)


@pytest.fixture
def shop(tmp_path):
    """Purchases of 50 customers over two files, a view of them, and entity rows."""
    rng = np.random.default_rng(7)
    folder = tmp_path / "history"
    folder.mkdir()
    for number in range(2):
        count = 3_000
        hours = rng.integers(0, 24 * 30, count)
        table = pa.table(
            {
                "cid": rng.integers(0, 50, count),
                "event_timestamp": pa.array([START + dt.timedelta(hours=int(h)) for h in hours]),
                "value": pa.array(rng.integers(0, 99, count), mask=rng.random(count) < 0.2),
                "vector": pa.array([[float(at), 0.5] for at in range(count)]),
                "note": pa.array([f"row {number}.{at}" for at in range(count)]),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=500)
    schema = {"value": Int64, "vector": Array(Float64), "note": String}
    view = customer_view(source=parquet_files(folder), ttl=dt.timedelta(days=3), schema=schema)
    times = [START + dt.timedelta(minutes=int(m)) for m in rng.integers(0, 60 * 24 * 35, 700)]
    entities = pd.DataFrame({"cid": rng.integers(0, 55, 700), "event_timestamp": times})
    return view, entities


def asked(folder, view, entities, **offline):
    return S3ParquetOfflineStore.get_historical_features(
        repo_config(folder, **offline),
        [view],
        [f"{view.name}:{field.name}" for field in view.features],
        entities,
        NoRegistry(),
        "p",
    )


def test_the_answer_is_that_of_one_machine_in_each_form(tmp_path, shop, monkeypatch):
    monkeypatch.setattr("feast_dynamo_ext.retrieval.spark.rows.BLOCK_ROWS", 200)
    monkeypatch.setattr("feast_dynamo_ext.retrieval.spark.source_parts.PART_BYTES", 60_000)
    view, entities = shop
    expected = asked(tmp_path, view, entities).to_arrow()
    job = asked(tmp_path, view, entities, staging_location="out", **ON_SPARK)
    assert job.to_arrow().equals(expected)
    batches = list(job.to_arrow_batches(max_rows=64))
    assert pa.Table.from_batches(batches).equals(expected)
    assert max(batch.num_rows for batch in batches) <= 64

    frame = job.to_spark_df()
    assert frame.columns == expected.column_names
    assert frame.rdd.getNumPartitions() == 4
    found = pa.Table.from_pylist([row.asDict() for row in frame.collect()])
    for name in ("cid", "value", "vector", "note"):
        assert found.column(name).to_pylist() == expected.column(name).to_pylist()

    explained = job.explain()
    assert [(view.plan, view.files) for view in explained.views] == [("spark", 2)]
    assert "sorted by keys and time together" in str(explained)

    uris = job.to_remote_storage()
    written = pa.concat_tables([pq.read_table(uri) for uri in uris])
    assert written.equals(expected.cast(written.schema))


def test_the_lines_of_the_page_run(shop, tmp_path, open_store):
    view, entities = shop
    offline = {**ON_SPARK, "staging_location": str(tmp_path / "joined")}
    store = open_store("spark_page", offline=offline)
    store.registry.apply_entity(CUSTOMER, store.project)
    store.registry.apply_feature_view(view, store.project)
    page = Path(__file__).parents[2] / "docs" / "snippets" / "spark.py"
    features = ["orders:value", "orders:note"]
    joined = runpy.run_path(str(page))["joined"]
    frame, files, table = joined(store, entities, features)
    assert frame.count() == table.num_rows == len(entities)
    assert sum(pq.read_metadata(file).num_rows for file in files) == len(entities)


def test_entity_rows_are_a_spark_frame_too(tmp_path, shop):
    view, entities = shop
    first = asked(tmp_path, view, entities, **ON_SPARK).to_spark_df()
    frame = first.select("cid", "event_timestamp")
    again = asked(tmp_path, view, frame, **ON_SPARK).to_arrow()
    expected = asked(tmp_path, view, entities).to_arrow()
    for name in ("cid", "event_timestamp", "value", "note"):
        assert again.column(name).to_pylist() == expected.column(name).to_pylist()


def test_history_on_s3_is_read_by_executors(tmp_path, shop, moto_endpoint):
    view, entities = shop
    client = boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint)
    client.create_bucket(Bucket="spark-history")
    for path in sorted((tmp_path / "history").iterdir()):
        client.upload_file(str(path), "spark-history", f"orders/{path.name}")
    client.close()
    away = customer_view(
        source=FileSource(
            name="away",
            path="s3://spark-history/orders/",
            timestamp_field="event_timestamp",
            s3_endpoint_override=moto_endpoint,
        ),
        ttl=view.ttl,
        schema={"value": Int64, "vector": Array(Float64), "note": String},
    )
    found = asked(tmp_path, away, entities, region=REGION, **ON_SPARK).to_arrow()
    assert found.equals(asked(tmp_path, view, entities).to_arrow())


def test_what_an_executor_refuses_is_said_as_on_one_machine(tmp_path):
    table = pa.table(
        {
            "cid": [1, 2],
            "event_timestamp": pa.array([START, START]),
            "value": pa.array(["7", "many"]),
        }
    )
    pq.write_table(table, tmp_path / "words.parquet")
    view = customer_view(source=parquet_files(tmp_path / "words.parquet"), value=Int64)
    entities = pd.DataFrame({"cid": [2], "event_timestamp": [START]})
    with pytest.raises(ColumnTypeError) as here:
        asked(tmp_path, view, entities).to_arrow()
    with pytest.raises(ColumnTypeError) as there:
        asked(tmp_path, view, entities, **ON_SPARK).to_arrow()
    assert str(there.value) == str(here.value)


def test_a_file_that_is_gone_fails_the_join_and_names_it(tmp_path, shop):
    view, entities = shop
    job = asked(tmp_path, view, entities, **ON_SPARK)
    result = job.result()
    (tmp_path / "history" / "part-1.parquet").unlink()
    with pytest.raises(OfflineStoreError, match="part-1"):
        list(result.batches())
