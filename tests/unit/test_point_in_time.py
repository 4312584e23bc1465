"""The point-in-time join against a plain Python loop, on generated histories and entity rows."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from examples import cases
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, Invalid, String
from hypothesis import example, given
from hypothesis import strategies as st
from pit_cases import PLANS
from repos import NoRegistry, repo_config
from views import customer_view, parquet_files

from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

START = dt.datetime(2026, 3, 29, tzinfo=dt.timezone.utc)  # the day clocks change in Europe
ZONES = ["UTC", "America/New_York", "Asia/Kolkata", "Europe/Berlin"]

# Few distinct moments and keys, so that ties, duplicates and exact bounds are common.
moments = st.integers(-5, 40).map(lambda hours: START + dt.timedelta(hours=hours))
keys = st.one_of(st.none(), st.integers(0, 3))
history_rows = st.lists(
    st.tuples(keys, st.one_of(st.none(), moments), st.one_of(st.none(), moments), st.integers()),
    max_size=30,
).map(lambda rows: [(k, t, c, i) for i, (k, t, c, _) in enumerate(rows)])
entity_rows = st.lists(st.tuples(keys, moments), min_size=1, max_size=12)
ttls = st.sampled_from([None, dt.timedelta(0), dt.timedelta(hours=3), dt.timedelta(hours=20)])
units = st.sampled_from(["s", "ms", "us", "ns"])


def sees(key, moment, history, ttl, known):
    """What one entity row sees, by the definition, row by row. History is in file order."""
    best = None
    for position, (k, t, c, value) in enumerate(history):
        if key is None or k != key or t is None or t > moment:
            continue
        if ttl and t < moment - ttl:
            continue
        if known and (c is None or c > moment):
            continue
        rank = (t, c or dt.datetime.min.replace(tzinfo=dt.timezone.utc), position)
        if best is None or rank > best[0]:
            best = (rank, value)
    return None if best is None else best[1]


def feature_view(path: str, ttl, **source) -> FeatureView:
    history = parquet_files(path, created_timestamp_column="created", **source)
    return customer_view(source=history, ttl=ttl, value=Int64)


def retrieve(folder, views, refs, frame, **kwargs) -> pa.Table:
    """The answer of the first plan; that of every other plan must be the same."""
    first, *others = (
        S3ParquetOfflineStore.get_historical_features(
            repo_config(folder, **plan), views, refs, frame, NoRegistry(), "p", **kwargs
        ).to_arrow()
        for plan in PLANS
    )
    for other in others:
        assert other.schema.equals(first.schema)
        assert other.to_pylist() == first.to_pylist()
    return first


def write_history(folder: Path, history, unit: str, zone, files: int) -> list:
    """Writes rows over several files; returns them in the order of the files' paths."""
    folder.mkdir()
    ordered = []
    kind = pa.timestamp(unit, tz=zone)
    for number in range(files):
        part = history[number::files]
        ordered += part
        table = pa.table(
            {
                "cid": pa.array([k for k, _, _, _ in part], pa.int64()),
                "event_timestamp": pa.array([t for _, t, _, _ in part], kind),
                "created": pa.array([c for _, _, c, _ in part], kind),
                "value": pa.array([v for _, _, _, v in part], pa.int64()),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=4)
    return ordered


@cases(150)
@given(
    history=history_rows,
    entities=entity_rows,
    ttl=ttls,
    unit=units,
    zone=st.sampled_from([None, *ZONES]),
    entity_zone=st.sampled_from([None, *ZONES]),
    entity_unit=units,
    files=st.integers(1, 3),
    known=st.booleans(),
)
@example(  # two rows of one moment: the one created later wins, though it stands first
    history=[(1, START, START + dt.timedelta(hours=1), 7), (1, START, START, 8)],
    entities=[(1, START)],
    ttl=None,
    unit="us",
    zone=None,
    entity_zone=None,
    entity_unit="ns",
    files=1,
    known=False,
)
def test_equals_a_plain_loop(
    history, entities, ttl, unit, zone, entity_zone, entity_unit, files, known
):
    with tempfile.TemporaryDirectory() as folder:
        ordered = write_history(Path(folder) / "history", history, unit, zone, files)
        times = pd.Series(pd.to_datetime([t for _, t in entities], utc=True))
        times = times.dt.tz_convert(entity_zone) if entity_zone else times.dt.tz_localize(None)
        frame = pd.DataFrame(
            {
                "cid": pd.array([k for k, _ in entities], dtype="Int64"),
                "event_timestamp": times.dt.as_unit(entity_unit),
                "note": [f"row {index}" for index in range(len(entities))],
            }
        )
        result = retrieve(
            folder,
            [feature_view("history", ttl)],
            ["orders:value"],
            frame,
            filter_by_created_timestamp=known,
        )
        expected = [sees(key, moment, ordered, ttl, known) for key, moment in entities]
        assert result.column("value").to_pylist() == expected
        assert result.column("note").to_pylist() == frame["note"].tolist()
        assert result.schema.field("value").type == pa.int64()
        returned = result.to_pandas()
        pd.testing.assert_frame_equal(returned[frame.columns.tolist()], frame)


@cases(60)
@given(
    history=history_rows,
    window=st.tuples(moments, moments).map(sorted),
    unit=units,
    zone=st.sampled_from([None, "Europe/Berlin"]),
    files=st.integers(1, 3),
)
def test_pull_latest_and_pull_all_equal_a_plain_loop(history, window, unit, zone, files):
    start, end = window
    with tempfile.TemporaryDirectory() as folder:
        ordered = write_history(Path(folder) / "history", history, unit, zone, files)
        config, view = repo_config(folder, **PLANS[0]), feature_view("history", None)
        arguments = {
            "config": config,
            "data_source": view.batch_source,
            "join_key_columns": ["cid"],
            "feature_name_columns": ["value"],
            "timestamp_field": "event_timestamp",
            "created_timestamp_column": "created",
            "start_date": start,
            "end_date": end,
        }
        latest = S3ParquetOfflineStore.pull_latest_from_table_or_query(**arguments).to_arrow()
        everything = S3ParquetOfflineStore.pull_all_from_table_or_query(**arguments).to_arrow()

    within = [row for row in ordered if row[1] is not None and start <= row[1] <= end]
    assert everything.column("value").to_pylist() == [value for _, _, _, value in within]
    expected = {
        key: sees(key, end, within, None, known=False)
        for key in {k for k, _, _, _ in within if k is not None}
    }
    found = latest.to_pydict()
    assert dict(zip(found["cid"], found["value"], strict=True)) == expected
    assert latest.num_rows == len(expected)


def one_file(folder: Path, **columns) -> str:
    path = folder / "history.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_the_ttl_bound_is_inclusive_to_the_nanosecond(tmp_path):
    path = one_file(
        tmp_path, cid=[1], event_timestamp=pa.array([START], pa.timestamp("us")), value=[5]
    )
    view = feature_view(path, dt.timedelta(hours=1))
    view.batch_source.created_timestamp_column = ""
    at_bound = pd.Timestamp(START) + pd.Timedelta(hours=1)
    frame = pd.DataFrame(
        {"cid": [1, 1], "event_timestamp": [at_bound, at_bound + pd.Timedelta(nanoseconds=1)]}
    )
    result = retrieve(tmp_path, [view], ["orders:value"], frame)
    assert result.column("value").to_pylist() == [5, None]


def test_hive_partitions_field_mapping_and_one_view_under_two_names(tmp_path):
    for month, key in (("2026-01", "ann"), ("2026-02", "bob")):
        (tmp_path / "history" / f"month={month}").mkdir(parents=True)
        pq.write_table(
            pa.table(
                {
                    "user": pa.array([key]).dictionary_encode(),
                    "at": pa.array([dt.datetime.fromisoformat(f"{month}-01")], pa.timestamp("ms")),
                    "total": [len(month)],
                }
            ),
            tmp_path / "history" / f"month={month}" / "a.parquet",
        )
    entity = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="spend",
        entities=[entity],
        schema=[
            Field(name="user_id", dtype=String),
            Field(name="amount", dtype=Int64),
            Field(name="month", dtype=String),
        ],
        source=FileSource(
            path="history",
            timestamp_field="at",
            field_mapping={"user": "user_id", "total": "amount"},
        ),
        ttl=dt.timedelta(0),
    )
    buyer = view.with_name("buyer_spend").with_join_key_map({"user_id": "buyer"})
    seller = view.with_name("seller_spend").with_join_key_map({"user_id": "seller"})
    frame = pd.DataFrame(
        {
            "buyer": ["ann", "bob"],
            "seller": ["bob", "carl"],
            "event_timestamp": pd.to_datetime(["2026-03-01", "2026-01-15"], utc=True),
        }
    )
    result = retrieve(
        tmp_path,
        [buyer, seller],
        ["buyer_spend:amount", "buyer_spend:month", "seller_spend:amount"],
        frame,
        full_feature_names=True,
    )
    assert result.drop_columns("event_timestamp").to_pydict() == {
        "buyer": ["ann", "bob"],
        "seller": ["bob", "carl"],
        "buyer_spend__amount": [7, None],
        "buyer_spend__month": ["2026-01", None],
        "seller_spend__amount": [7, None],
    }


def test_a_view_without_entities_and_columns_of_every_type_come_through_untouched(tmp_path):
    columns = {
        "event_timestamp": pa.array([START], pa.timestamp("ns", tz="UTC")),
        "wide": pa.array([2**53 + 1], pa.int64()),
        "unsigned": pa.array([2**63 + 1], pa.uint64()),
        "price": pa.array(["12345678901234567890.12"]).cast(pa.decimal128(38, 2)),
        "tags": pa.array([["a", None, ""]]),
        "none_at_all": pa.array([[]], pa.list_(pa.int32())),
        "counts": pa.array([{"x": 1}], pa.map_(pa.string(), pa.int64())),
        "place": pa.array([{"lat": 1.5, "name": "x"}]),
        "moment": pa.array([1], pa.timestamp("ns", tz="Asia/Kolkata")),
        "kind": pa.array(["b"]).dictionary_encode(),
        "raw": pa.array([b"\x00\xff"]),
    }
    path = one_file(tmp_path, **columns)
    names = [name for name in columns if name != "event_timestamp"]
    view = FeatureView(
        name="globals",
        entities=[],
        schema=[Field(name=name, dtype=Invalid) for name in names],
        source=FileSource(path=path, timestamp_field="event_timestamp"),
        ttl=dt.timedelta(0),
    )
    frame = pd.DataFrame({"event_timestamp": [pd.Timestamp(START)] * 2})
    result = retrieve(tmp_path, [view], [f"globals:{name}" for name in names], frame)
    for name in names:
        assert result.schema.field(name).type == columns[name].type, name
        assert result.column(name).to_pylist() == columns[name].to_pylist() * 2, name
