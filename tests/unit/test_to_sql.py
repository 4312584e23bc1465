"""The SQL of a retrieval, run by a DuckDB of its own, beside the retrieval."""

from __future__ import annotations

import datetime as dt
import tempfile
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from examples import cases
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import (
    Array,
    Bool,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
)
from feast.types import Decimal as DecimalType
from hypothesis import given
from hypothesis import strategies as st
from repos import NoRegistry, repo_config
from views import customer_view, parquet_files

from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.retrieval.engines.sql_dialects import type_name

START = dt.datetime(2026, 3, 29, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)


def orders(path, ttl=None, created="created", value=Int64, **source) -> FeatureView:
    history = parquet_files(path, created_timestamp_column=created, **source)
    return customer_view(source=history, ttl=ttl, value=value)


def retrieve(folder, views, refs, frame, **more):
    return S3ParquetOfflineStore.get_historical_features(
        repo_config(folder), views, refs, frame, NoRegistry(), "p", **more
    )


def run(sql: str, entity_df=None) -> pa.Table:
    """The statement as it is, in a DuckDB whose clock is not UTC."""
    with duckdb.connect(":memory:") as duck:
        duck.execute("SET TimeZone = 'Asia/Kolkata'")
        return duck.sql(sql).to_arrow_table()  # finds the variable `entity_df`


def same(job, entity_df=None) -> dict:
    """What the retrieval gives, after it was compared with what its statement gives."""
    ours = job.to_arrow()
    theirs = run(job.to_sql(), entity_df)
    assert theirs.column_names == ours.column_names
    for name in ours.column_names:
        kind = ours.schema.field(name).type
        expected = ours.column(name)
        found = theirs.column(name)
        if pa.types.is_timestamp(kind):
            zone = kind.tz and "UTC"
            expected = expected.cast(pa.timestamp("ns", kind.tz)).cast(pa.timestamp("ns", zone))
            found = found.cast(pa.timestamp("ns", found.type.tz)).cast(pa.timestamp("ns", zone))
        assert found.to_pylist() == expected.to_pylist(), name
    return ours.to_pydict()


moments = st.integers(-5, 40).map(lambda hours: START + hours * HOUR)
keys = st.one_of(st.none(), st.integers(0, 3))
histories = st.lists(
    st.tuples(keys, st.one_of(st.none(), moments), st.one_of(st.none(), moments)),
    min_size=1,
    max_size=25,
)
zones = st.sampled_from([None, "UTC", "Europe/Berlin"])


def write_history(folder: Path, rows, unit: str, zone, files: int) -> None:
    folder.mkdir()
    kind = pa.timestamp(unit, zone)
    for number in range(files):
        part = [(*row, at) for at, row in enumerate(rows)][number::files]
        table = pa.table(
            {
                "cid": pa.array([key for key, _, _, _ in part], pa.int64()),
                "event_timestamp": pa.array([event for _, event, _, _ in part], kind),
                "created": pa.array([created for _, _, created, _ in part], kind),
                "value": pa.array([value for _, _, _, value in part], pa.int64()),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=4)


@cases(15)
@given(
    rows=histories,
    asked=st.lists(st.tuples(keys, moments), min_size=1, max_size=10),
    ttl=st.sampled_from([None, dt.timedelta(0), 3 * HOUR]),
    unit=st.sampled_from(["ms", "us", "ns"]),
    zone=zones,
    entity_zone=zones,
    files=st.integers(1, 3),
    known=st.booleans(),
)
def test_the_statement_gives_what_the_join_gives(
    rows, asked, ttl, unit, zone, entity_zone, files, known
):
    with tempfile.TemporaryDirectory() as folder:
        write_history(Path(folder) / "history", rows, unit, zone, files)
        times = pd.Series(pd.to_datetime([time for _, time in asked], utc=True))
        times = times.dt.tz_convert(entity_zone) if entity_zone else times.dt.tz_localize(None)
        frame = pd.DataFrame(
            {
                "cid": pd.array([key for key, _ in asked], dtype="Int64"),
                "event_timestamp": times,
                "note": [f"row {at}" for at in range(len(asked))],
            }
        )
        view = orders(f"{folder}/history", ttl)
        job = retrieve(folder, [view], ["orders:value"], frame, filter_by_created_timestamp=known)
        assert same(job, frame)["note"] == frame["note"].tolist()


@cases(6)
@given(
    rows=histories,
    window=st.tuples(moments, moments).map(sorted),
    unit=st.sampled_from(["ms", "us", "ns"]),
    zone=zones,
    files=st.integers(1, 3),
)
def test_the_statements_of_pulls_give_what_pulls_give(rows, window, unit, zone, files):
    with tempfile.TemporaryDirectory() as folder:
        write_history(Path(folder) / "history", rows, unit, zone, files)
        arguments = {
            "config": repo_config(folder),
            "data_source": orders(f"{folder}/history").batch_source,
            "join_key_columns": ["cid"],
            "feature_name_columns": ["value"],
            "timestamp_field": "event_timestamp",
            "created_timestamp_column": "created",
            "start_date": window[0],
            "end_date": window[1],
        }
        same(S3ParquetOfflineStore.pull_latest_from_table_or_query(**arguments))
        same(S3ParquetOfflineStore.pull_all_from_table_or_query(**arguments))


def test_names_are_quoted_and_strings_escaped(tmp_path):
    folder = tmp_path / 'o\'clock "x"'
    folder.mkdir()
    columns = {
        'c"id': ["a'b", "a'b"],
        "select": pa.array([START, START + HOUR], pa.timestamp("us", "UTC")),
        "from;--": [1, 2],
    }
    pq.write_table(pa.table(columns), folder / "it's.parquet")
    view = FeatureView(
        name="odd",
        entities=[Entity(name="customer", join_keys=['c"id'], value_type=ValueType.STRING)],
        schema=[Field(name='c"id', dtype=String), Field(name="from;--", dtype=Int64)],
        source=FileSource(path=str(folder), timestamp_field="select"),
        ttl=dt.timedelta(0),
    )
    frame = pd.DataFrame({'c"id': ["a'b", None], "event_timestamp": [pd.Timestamp(START)] * 2})
    job = retrieve(tmp_path, [view], ["odd:from;--"], frame, full_feature_names=True)
    assert same(job, frame)["odd__from;--"] == [1, None]


@pytest.mark.parametrize("known", [False, True])
def test_columns_may_be_called_as_the_statement_calls_its_own(tmp_path, known):
    """Keys k1 and k0, time c, created time t, features r, f1, lo and position."""
    moments = pa.array([START, START + HOUR, START + HOUR, None], pa.timestamp("us", "UTC"))
    created = pa.array([START, START + HOUR, START, START], pa.timestamp("us", "UTC"))
    columns = {"k1": ["a"] * 4, "k0": [1] * 4, "c": moments, "t": created}
    features = {"r": [10, 11, 12, 13], "f1": [0, 1, 2, 3], "lo": [5, 6, 7, 8]}
    columns |= features | {"position": [20, 21, 22, 23]}
    pq.write_table(pa.table(columns), tmp_path / "history.parquet")
    names = [*features, "position"]
    view = FeatureView(
        name="odd",
        entities=[
            Entity(name="one", join_keys=["k1"], value_type=ValueType.STRING),
            Entity(name="other", join_keys=["k0"], value_type=ValueType.INT64),
        ],
        schema=[
            Field(name="k1", dtype=String),
            Field(name="k0", dtype=Int64),
            *(Field(name=name, dtype=Int64) for name in names),
        ],
        source=FileSource(
            path="history.parquet", timestamp_field="c", created_timestamp_column="t"
        ),
        ttl=HOUR,
    )
    frame = pd.DataFrame(
        {
            "k0": [1, 1, 2],
            "k1": ["a"] * 3,
            "event_timestamp": [START + HOUR, START + dt.timedelta(minutes=30), START],
            "hi": [1, 2, 3],
            "entity": [4, 5, 6],
            "known": [7, 8, 9],
        }
    )
    refs = [f"odd:{name}" for name in names]
    job = retrieve(tmp_path, [view], refs, frame, filter_by_created_timestamp=known)
    found = same(job, frame)
    assert {name: found[name] for name in names} == {
        "r": [11, 10, None],
        "f1": [1, 0, None],
        "lo": [6, 5, None],
        "position": [21, 20, None],
    }
    assert (found["hi"], found["entity"], found["known"]) == ([1, 2, 3], [4, 5, 6], [7, 8, 9])


def test_partitions_mapped_fields_aliases_and_views_without_entities(tmp_path):
    for month, total in (("2026-01", 1), ("2026-02", 2)):
        (tmp_path / "spend" / f"month={month}").mkdir(parents=True)
        table = pa.table({"user": ["ann"], "at": [dt.datetime.fromisoformat(f"{month}-01")]})
        pq.write_table(
            table.append_column("total", pa.array([total])),
            tmp_path / "spend" / f"month={month}" / "a.parquet",
        )
    pq.write_table(
        pa.table(
            {"at": [dt.datetime.fromisoformat(f"2026-0{m}-01") for m in (1, 2)], "rate": [10, 20]}
        ),
        tmp_path / "rates.parquet",
    )
    spend = FeatureView(
        name="spend",
        entities=[Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)],
        schema=[
            Field(name="user_id", dtype=String),
            Field(name="amount", dtype=Int64),
            Field(name="month", dtype=String),
        ],
        source=FileSource(
            path="spend",
            timestamp_field="at",
            field_mapping={"user": "user_id", "total": "amount"},
        ),
        ttl=dt.timedelta(0),
    )
    rates = FeatureView(
        name="rates",
        entities=[],
        schema=[Field(name="rate", dtype=Int64)],
        source=FileSource(path="rates.parquet", timestamp_field="at"),
        ttl=dt.timedelta(days=40),
    )
    buyer = spend.with_name("buyer").with_join_key_map({"user_id": "buyer"})
    frame = pd.DataFrame(
        {
            "buyer": ["ann", "ann", "bob"],
            "event_timestamp": pd.to_datetime(["2026-03-01", "2026-01-15", "2026-06-01"]),
        }
    )
    refs = ["buyer:amount", "buyer:month", "rates:rate"]
    job = retrieve(tmp_path, [buyer, rates], refs, frame, full_feature_names=True)
    found = same(job, frame)
    assert found["buyer__amount"] == [2, 1, None]
    assert found["buyer__month"] == ["2026-02", "2026-01", None]
    assert found["rates__rate"] == [20, 10, None]


def test_entity_rows_of_files_are_read_by_the_statement(tmp_path):
    write_history(tmp_path / "history", [(1, START, START), (2, START, START)], "us", "UTC", 1)
    (tmp_path / "asked").mkdir()
    for number, key in enumerate([2, 1, 3]):
        pq.write_table(
            pa.table({"cid": [key], "event_timestamp": pa.array([START], pa.timestamp("us"))}),
            tmp_path / "asked" / f"{number}.parquet",
        )
    job = retrieve(tmp_path, [orders("history")], ["orders:value"], "asked")
    assert "entity_df" not in job.to_sql()
    assert same(job)["value"] == [1, 0, None]


def test_only_files_that_can_matter_are_in_the_statement(tmp_path):
    for day in range(1, 11):
        (tmp_path / "history").mkdir(exist_ok=True)
        at = pa.array([dt.datetime.fromisoformat(f"2026-01-{day:02d}")], pa.timestamp("us"))
        table = pa.table({"cid": [1], "event_timestamp": at, "created": at, "value": [day]})
        pq.write_table(table, tmp_path / "history" / f"day-{day:02d}.parquet")
    frame = pd.DataFrame({"cid": [1], "event_timestamp": [pd.Timestamp("2026-01-05 12:00")]})
    job = retrieve(
        tmp_path, [orders("history", ttl=dt.timedelta(days=2))], ["orders:value"], frame
    )
    sql = job.to_sql()
    assert [day for day in range(1, 11) if f"day-{day:02d}" in sql] == [4, 5]
    assert same(job, frame)["value"] == [5]
    long_ago = frame.assign(event_timestamp=pd.Timestamp("1999-01-01"))
    assert same(retrieve(tmp_path, [orders("history")], ["orders:value"], long_ago), long_ago)[
        "value"
    ] == [None]


def test_wide_entity_rows_keep_their_order_and_big_integers_are_exact(tmp_path):
    big = 2**53 + 1
    write_history(tmp_path / "history", [(big, START, START)], "us", "UTC", 1)
    entity_df = pa.table(
        {
            "cid": pa.array([big, big - 1] * 150_000, pa.int64()),
            "event_timestamp": pa.array([START] * 300_000, pa.timestamp("us", "UTC")),
            "at": pa.array(range(300_000)),
        }
    )
    job = retrieve(tmp_path, [orders("history")], ["orders:value"], entity_df)
    found = run(job.to_sql(), entity_df)
    assert found.column("at").equals(entity_df.column("at"))
    assert found.column("value").to_pylist() == [0, None] * 150_000


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_times_that_are_keys_are_whole_seconds(tmp_path, unit):
    kind, times = pa.timestamp(unit, "UTC"), [dt.timedelta(), dt.timedelta(microseconds=1)]
    entity = Entity(name="hour", join_keys=["hour"], value_type=ValueType.UNIX_TIMESTAMP)
    declared = FeatureView(
        name="hours",
        entities=[entity],
        schema=[Field(name="hour", dtype=UnixTimestamp), Field(name="n", dtype=Int64)],
        source=FileSource(path="hours", timestamp_field="at"),
    )
    frame = pd.DataFrame({"hour": [START], "event_timestamp": [pd.Timestamp(START)]})
    (tmp_path / "hours").mkdir()
    for more in times:
        hours = pa.array([START, START + more], pa.timestamp("us", "UTC")).cast(kind)
        at = pa.array([START, START - dt.timedelta(1)], pa.timestamp("us", "UTC"))
        table = pa.table({"hour": hours, "at": at, "n": [1, 2]})
        pq.write_table(table, tmp_path / "hours" / "part.parquet")
        job = retrieve(tmp_path, [declared], ["hours:n"], frame)
        if not more:
            assert same(job, frame)["n"] == [1]
            continue
        with pytest.raises(ColumnTypeError, match="1 of 2 times have a part below a second"):
            job.to_arrow()
        with pytest.raises(duckdb.Error, match="a time with a part below a second"):
            run(job.to_sql(), frame)


def test_keys_that_cannot_be_joined_are_refused_as_by_the_join(tmp_path):
    write_history(tmp_path / "history", [(1, START, START)], "us", "UTC", 1)
    frame = pd.DataFrame({"cid": ["one"], "event_timestamp": [pd.Timestamp(START)]})
    job = retrieve(tmp_path, [orders("history")], ["orders:value"], frame)
    with pytest.raises(EntityRowsError, match="Cast it in the entity rows"):
        job.to_sql()


def test_the_days_of_a_delta_table_are_dates(tmp_path):
    days = [dt.date(2026, 3, 28), dt.date(2026, 3, 29), None]
    table = pa.table(
        {
            "cid": pa.array([1, 2, 3]),
            "event_timestamp": pa.array([START] * 3, pa.timestamp("us", "UTC")),
            "value": pa.array(days, pa.date32()),
        }
    )
    write_deltalake(tmp_path / "orders", table, partition_by=["value"])
    view = orders(tmp_path / "orders", created="", value=UnixTimestamp, file_format=DeltaFormat())
    frame = pd.DataFrame({"cid": [3, 2, 1], "event_timestamp": [START] * 3})
    found = same(retrieve(tmp_path, [view], ["orders:value"], frame), frame)
    assert found["value"] == days[::-1]


NAN = float("nan")
UUID = "12345678-9abc-def0-1234-56789abcdef0"
CAST = [
    (Int64, pa.array([1.0, NAN, None]), [1, None, None]),
    (Int64, pa.array([2**63 - 1, 0, None], pa.uint64()), [2**63 - 1, 0, None]),
    (Int32, pa.array([-(2**31), 0, None], pa.int64()), [-(2**31), 0, None]),
    (Int64, pa.array([True, False, None]), [1, 0, None]),
    (Float64, pa.array([2**60, -1, None]), [2.0**60, -1.0, None]),
    (Float32, pa.array([0.1, 1.5, None]), [0.10000000149011612, 1.5, None]),
    (Float32, pa.array([20_000_000, 1, None]), [2e7, 1.0, None]),
    (Bool, pa.array([1, 0, None]), [True, False, None]),
    (Bool, pa.array([1.0, NAN, 0.0]), [True, None, False]),
    (Uuid, pa.array([UUID, UUID.replace("-", ""), None]), [UUID, UUID, None]),
    (Uuid, pa.array([UUID.upper(), f"{{{UUID}}}", f"urn:uuid:{UUID}"]), [UUID, UUID, UUID]),
    (Set(Uuid), pa.array([[UUID.upper(), UUID], [], None]), [[UUID], [], None]),
    (Set(Int64), pa.array([[2, 1, 2, None, None], [], None]), [[2, 1, None], [], None]),
    (Set(String), pa.array([["{", "x", "{"], [], None]), [["{", "x"], [], None]),
    (Set(Float64), pa.array([[0.5, 1.5, 0.5], [], None]), [[0.5, 1.5], [], None]),
    (Set(Int32), pa.array([[2, 1, 2], [], None], pa.list_(pa.int64())), [[2, 1], [], None]),
    (DecimalType, pa.array(["0.0000010", "-0.10", "1E+3"]), ["0.0000010", "-0.10", "1E+3"]),
    (DecimalType, pa.array(["-1.50", "1E-7", "NaN"]), ["-1.50", "1E-7", "NaN"]),
    (Json, pa.array(['[",]", "NaN"]', '"x,]"', None]), ['[",]", "NaN"]', '"x,]"', None]),
    (Json, pa.array(["true", "-1.5e+3", "[]"]), ["true", "-1.5e+3", "[]"]),
]


def declared(tmp_path, dtype, values):
    """The retrieval of a view whose file has these values of three customers, and its rows."""
    table = {
        "cid": [1, 2, 3],
        "event_timestamp": pa.array([START] * 3, pa.timestamp("us", "UTC")),
        "value": values,
    }
    (tmp_path / "orders").mkdir(parents=True)
    pq.write_table(pa.table(table), tmp_path / "orders" / "part.parquet")
    frame = pd.DataFrame({"cid": [1, 2, 3], "event_timestamp": [START] * 3})
    view = orders(tmp_path / "orders", created="", value=dtype)
    return retrieve(tmp_path, [view], ["orders:value"], frame), frame


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "values", "expected"), CAST, ids=str)
def test_features_are_in_their_declared_type(tmp_path, dtype, values, expected):
    job, frame = declared(tmp_path, dtype, values)
    assert same(job, frame)["value"] == expected
    kinds = {
        found.schema.field("value").type for found in (job.to_arrow(), run(job.to_sql(), frame))
    }
    # The name of what is inside of lists is the engine's.
    assert len({kind.value_type if pa.types.is_list(kind) else kind for kind in kinds}) == 1


def test_lists_are_in_their_declared_type(tmp_path):
    ids = [[UUID, None], [], None]
    job, frame = declared(tmp_path / "ids", Array(Uuid), pa.array(ids))
    assert same(job, frame)["value"] == ids
    numbers = [[[1]], [], None]
    job, frame = declared(tmp_path / "numbers", Array(Array(Int64)), pa.array(numbers))
    assert same(job, frame)["value"] == numbers


NESTED = [
    (Array(Int64), pa.array([[1.0, None, NAN], [], None]), [[1, None, None], [], None]),
    (Array(Float64), pa.array([[2**60, None], [], None]), [[2.0**60, None], [], None]),
    (Array(Float32), pa.array([[0.1], [], None]), [[0.10000000149011612], [], None]),
    (Array(Bool), pa.array([[1, 0, None], [], None]), [[True, False, None], [], None]),
    (Array(Array(Int64)), pa.array([[[1.0], []], [None], None]), [[[1], []], [None], None]),
    (Array(Array(Float32)), pa.array([[[0.1]], [], None]), [[[0.10000000149011612]], [], None]),
    (
        Struct({"a b": Int64, "id": Uuid, "rest": Array(Int32)}),
        pa.array([{"a b": 1.0, "id": UUID, "rest": [2], "more": "x"}, None, {"a b": None}]),
        [
            {"a b": 1, "id": UUID, "rest": [2], "more": "x"},
            None,
            {"a b": None, "id": None, "rest": None, "more": None},
        ],
    ),
    (
        Array(Struct({"a": Int64})),
        pa.array([[{"a": 1.0}, None], [], None]),
        [[{"a": 1}, None], [], None],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "values", "expected"), NESTED, ids=str)
def test_what_is_inside_is_in_its_declared_type(tmp_path, dtype, values, expected):
    job, frame = declared(tmp_path, dtype, values)
    assert same(job, frame)["value"] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (Array(Array(Int64)), pa.array([[[5.5]], [[1.0]], None])),
        (Array(Int64), pa.array([[5.5], [1.0], None])),
        (Struct({"a": Int64}), pa.array([{"a": 5.5}, {"a": 1.0}, None])),
        (Array(Struct({"a": Uuid})), pa.array([[{"a": "x"}], [{"a": UUID}], None])),
        (Int64, pa.array([5.5, 1.0, None])),
        (Int64, pa.array([2.0**63, 1.0, None])),
        (Int32, pa.array([2**31, 1, None])),
        (Float64, pa.array([2**53 + 1, 1, None])),
        (Float32, pa.array([1e300, 1.0, None])),
        (Bool, pa.array([2, 1, None])),
        (Uuid, pa.array(["x", UUID, None])),
        (DecimalType, pa.array(["1,5", "1", None])),
        (Json, pa.array(["{", "1", None])),
        (Json, pa.array(["[1,]", "1", None])),
        (Json, pa.array(["nan", "1", None])),
        (Json, pa.array(["[NaN]", "1", None])),
        (Json, pa.array(["-Infinity", "1", None])),
        (Array(Uuid), pa.array([["x", UUID], [], None])),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_an_error_of_the_statement_too(tmp_path, dtype, values):
    job, frame = declared(tmp_path, dtype, values)
    with pytest.raises(ColumnTypeError, match=r"`orders`: `value`.*1 of 2 values"):
        job.to_arrow()
    with pytest.raises(duckdb.Error):
        run(job.to_sql(), frame)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (Int64, pa.array(["7"] * 3)),
        (String, pa.array([0.5] * 3)),
        (Array(String), pa.array([[0.5]] * 3)),
        (Array(Array(Int64)), pa.array(["[[1]]"] * 3)),
        (Struct({"a": Int64}), pa.array([[("a", 1.0)]] * 3, pa.map_(pa.string(), pa.float64()))),
        (Array(Int64), pa.array([[1.0]] * 3, pa.list_(pa.float64(), 1))),
        (Set(DecimalType), pa.array([["1.1", "1.10"]] * 3)),
    ],
    ids=str,
)
def test_what_sql_casts_in_another_form_is_refused(tmp_path, dtype, values):
    job, _ = declared(tmp_path, dtype, values)
    with pytest.raises(ColumnTypeError, match=r"`orders`: `value` is declared as .*to_arrow"):
        job.to_sql()


@pytest.mark.parametrize(
    ("text", "is_map"),
    [('{"a": "[1"}', True), ("{}", True), ("[1]", False), ("not json", False), ("5", False)],
)
def test_json_of_maps_is_checked_by_the_statement(tmp_path, text, is_map):
    values = [text, "{}", None]
    job, frame = declared(tmp_path, Map, pa.array(values))
    if is_map:
        assert same(job, frame)["value"] == values
        return
    with pytest.raises(ColumnTypeError, match=r"`orders`: `value`.*1 of 2 values"):
        job.to_arrow()
    with pytest.raises(duckdb.Error, match="`value` is not MAP"):
        run(job.to_sql(), frame)


@pytest.mark.parametrize("text", ['{"a": [1]}', '{"a": 12345678901234567890}'])
def test_json_of_maps_that_sql_does_not_judge_is_refused_by_the_statement(tmp_path, text):
    job, frame = declared(tmp_path, Map, pa.array([text, "{}", None]))
    with pytest.raises(duckdb.Error, match=r"that SQL can check: use to_arrow\(\)"):
        run(job.to_sql(), frame)


@pytest.mark.parametrize("text", [" 1.10", "+1", "01", "1e5", "0.0000001", "0.5E-7"])
def test_decimals_in_other_forms_are_refused_by_the_statement(tmp_path, text):
    job, frame = declared(tmp_path, DecimalType, pa.array([text, "1", None]))
    assert job.to_arrow().column("value").to_pylist() == [str(Decimal(text)), "1", None]
    with pytest.raises(duckdb.Error, match="`value` is not DECIMAL"):
        run(job.to_sql(), frame)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (Array(Int64), pa.array(["[1]"] * 3)),
        (Set(String), pa.array([b'["a"]'] * 3)),
        (Array(Map), pa.array(["[{}]"] * 3)),
        (Map, pa.array([b"{}"] * 3)),
    ],
    ids=str,
)
def test_other_json_is_not_checked_in_sql(tmp_path, dtype, values):
    job, _ = declared(tmp_path, dtype, values)
    assert job.to_arrow().column("value").to_pylist() == values.to_pylist()
    with pytest.raises(ColumnTypeError, match=r"`orders`: `value`.*JSON in .*to_arrow"):
        job.to_sql()


PARTITION_TYPES = {
    "bool": Bool,
    "int8": Int32,
    "int64": Int64,
    "float": Float32,
    "double": Float64,
    "decimal128(10, 2)": DecimalType,
    "date32[day]": UnixTimestamp,
    "timestamp[us, tz=UTC]": UnixTimestamp,
    "timestamp[us]": UnixTimestamp,
}

PARTITIONS = [
    pytest.param(pa.bool_(), [True, False], id="bool"),
    pytest.param(pa.int8(), [-1, 7], id="int8"),
    pytest.param(pa.int64(), [2**63 - 1, 7], id="int64"),
    pytest.param(pa.float32(), [0.10000000149011612, -2.5], id="float"),
    pytest.param(pa.float64(), [0.1, -1e30], id="double"),
    pytest.param(pa.decimal128(10, 2), [Decimal("1.10"), Decimal("-2.00")], id="decimal"),
    pytest.param(pa.date32(), [START.date(), dt.date(1, 1, 1)], id="date"),
    pytest.param(
        pa.timestamp("us", "UTC"), [START, START + dt.timedelta(microseconds=1)], id="timestamp"
    ),
    pytest.param(
        pa.timestamp("us"),
        [START.replace(tzinfo=None), dt.datetime(2026, 3, 29, 2, 30)],  # noqa: DTZ001
        id="timestamp without a zone",
    ),
    pytest.param(pa.string(), ["it's 100%", "a/b=c é"], id="text"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "values"), PARTITIONS)
def test_partitions_of_a_delta_table_have_its_types(tmp_path, kind, values):
    times = pa.array([START] * 3, pa.timestamp("us", "UTC"))
    table = pa.table(
        {
            "cid": [1, 2, 3],
            "event_timestamp": times,
            "part": pa.array([*values, None], kind),
        }
    )
    write_deltalake(str(tmp_path / "orders"), table, partition_by=["part"])
    source = FileSource(
        path=str(tmp_path / "orders"),
        timestamp_field="event_timestamp",
        file_format=DeltaFormat(),
    )
    view = customer_view(source=source, part=PARTITION_TYPES.get(str(kind), String))
    frame = pd.DataFrame(
        {"cid": [2, 3, 1, 4], "event_timestamp": pd.to_datetime([START + HOUR] * 4)}
    )
    job = retrieve(tmp_path, [view], ["orders:part"], frame)
    assert same(job, frame)["part"] == [values[1], None, values[0], None]


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.float32(),
        pa.time64("us"),
        pa.decimal128(38, 9),
        pa.timestamp("us", "UTC"),
        pa.list_(pa.string()),
        pa.list_(pa.list_(pa.int64())),
        pa.struct([("a b", pa.string()), ('say "n"', pa.list_(pa.date32()))]),
        pa.map_(pa.string(), pa.struct([("x", pa.float64())])),
    ],
)
def test_types_have_the_names_that_duckdb_reads_them_by(kind):
    with duckdb.connect(":memory:") as duck:
        duck.execute("SET TimeZone = 'UTC'")
        found = duck.sql(f"SELECT CAST(NULL AS {type_name(kind)}) AS n").to_arrow_table()
    assert found.schema.field("n").type == kind
