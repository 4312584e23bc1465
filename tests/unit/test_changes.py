"""Retrieval without entity rows: every change of a range of time."""

from __future__ import annotations

import datetime as dt
import random
from collections import defaultdict

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from entity_shop import PRODUCT, START, UTC, baskets, day, days, open_shop, orders, rates, write
from feast import Entity, FeatureView, Field, FileSource
from feast.types import Bool, Bytes, Float64, Int64, String
from views import CUSTOMER

from feast_dynamo_ext.errors import EntityRowsError, OfflineStoreError, SourceReadError

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def shop(open_store, tmp_path):
    return open_shop(open_store(), tmp_path)


def job_of(store, features, start=None, end=None, **kwargs):
    return store.get_historical_features(
        features=features, start_date=start, end_date=end, **kwargs
    )


def rows_of(store, features, start=None, end=None, **kwargs) -> list[tuple]:
    table = job_of(store, features, start, end, **kwargs).to_arrow()
    return [tuple(row.values()) for row in table.to_pylist()]


# What counts


def test_one_row_a_change_by_event_time_then_keys_in_the_types_of_the_files(shop):
    job = job_of(shop, ["orders:total"], day(0), day(9))
    table = job.to_arrow()
    assert table.schema.names == ["cid", "event_timestamp", "total"]
    assert [column.type for column in table.columns] == [pa.int32(), UTC, pa.float64()]
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (1, day(0), 1.0),
        (2, day(1), 3.0),
        (1, day(2), 2.0),
    ]
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (day(0), day(9))
    assert job.entities.origin.kind == "changes"


def test_the_bounds_belong_to_the_range_and_what_was_before_is_seen(shop, tmp_path):
    assert rows_of(shop, ["orders:total"], day(1), day(2)) == [(2, day(1), 3.0), (1, day(2), 2.0)]
    late = day(1) + dt.timedelta(microseconds=1)
    assert rows_of(shop, ["orders:total"], late, day(2) - HOUR) == []
    # The basket of day 2 sees the order of that day, which was before the range of the other.
    assert rows_of(shop, ["baskets:items", "orders:total"], day(1.5), day(2)) == [
        (1, "007", day(2).replace(tzinfo=dt.timezone.utc), 30, 2.0)
    ]


def test_views_of_fewer_keys_and_of_none_are_joined_and_mapped_names_are_undone(shop):
    job = job_of(shop, ["rates:rate", "orders:total", "baskets:items"], day(0), day(9))
    table = job.to_arrow()
    assert table.schema.field("event_timestamp").type == pa.timestamp("ms", tz="UTC")
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (1, "007", day(1), 0.2, 1.0, 10),
        (2, "x", day(1), 0.2, 3.0, 20),
        (1, "007", day(2), 0.2, 2.0, 30),
    ]
    assert job.metadata.keys == ["cid", "sku"]


def test_views_without_entities_alone(shop):
    assert rows_of(shop, ["rates:rate"], day(0), day(9)) == [(day(0), 0.1), (day(1), 0.2)]


def test_views_of_the_same_keys_are_united_and_each_change_counts_once(open_store, tmp_path):
    visits = FeatureView(
        name="visits",
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), Field(name="pages", dtype=Int64)],
        source=FileSource(name="visits", path="visits", timestamp_field="at"),
        ttl=dt.timedelta(days=1),
    )
    shop = open_shop(open_store(), tmp_path, orders(), visits)
    times = days([0, 0, 1, 3], pa.timestamp("ns"))
    write(tmp_path, "visits", {"cid": [3, 1, 1, 1], "at": times, "pages": [1, 2, 3, 4]})
    job = job_of(shop, ["orders:total", "visits:pages"], day(0), day(9))
    table = job.to_arrow()
    assert [column.type for column in table.columns][:2] == [
        pa.int64(),
        pa.timestamp("ns", tz="UTC"),
    ]
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (1, day(0), 1.0, 2),
        (3, day(0), None, 1),
        (1, day(1), 1.0, 3),
        (2, day(1), 3.0, None),
        (1, day(2), 2.0, 3),
        (1, day(3), 2.0, 4),
    ]


def test_what_was_not_yet_created_is_no_change_of_what_was_known(shop):
    features = ["baskets:items"]
    assert rows_of(shop, features, day(0), day(9), filter_by_created_timestamp=True) == [
        (1, "007", day(1), 10),
        (1, "007", day(2), 30),
    ]
    assert len(rows_of(shop, features, day(0), day(9))) == 3


def test_a_range_without_changes_is_no_rows_of_the_same_schema(shop):
    features = ["baskets:items", "orders:total", "rates:rate"]
    some, none = (
        job_of(shop, features, start, start + dt.timedelta(days=9)).to_arrow()
        for start in (day(0), day(100))
    )
    assert none.num_rows == 0
    assert none.schema == some.schema


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("s"), pa.timestamp("ns", tz="UTC")])
def test_times_of_every_kind(shop, tmp_path, kind):
    times = days([0, 1, 2], kind)
    write(tmp_path, "orders", {"cid": [1, 1, 2], "event_timestamp": times, "total": [1.0, 2, 3]})
    assert rows_of(shop, ["orders:total"], day(1), day(2)) == [(1, day(1), 2.0), (2, day(2), 3.0)]


def keyed(name, feature, kind) -> FeatureView:
    """A view of customers whose key is declared as one of Feast's types."""
    customer = Entity(name="customer", join_keys=["cid"], value_type=kind.to_value_type())
    return FeatureView(
        name=name,
        entities=[customer],
        schema=[Field(name="cid", dtype=kind), Field(name=feature, dtype=Float64)],
        source=FileSource(name=name, path=name, timestamp_field="event_timestamp"),
    )


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (pa.array(["a", "ü"]).dictionary_encode(), String),
        (pa.array(["", "b"], pa.large_string()), String),
        (pa.array([b"\x00", b"\xff"]), Bytes),
        (pa.array([False, True]), Bool),
        (pa.array([0, 2**63 - 1], pa.uint64()), Int64),
        (pa.array([-(2**63), 5], pa.int64()), Int64),
    ],
    ids=lambda part: str(getattr(part, "type", part)),
)
def test_keys_keep_their_type(open_store, tmp_path, keys, kind):
    shop = open_shop(open_store(), tmp_path, keyed("orders", "total", kind))
    write(tmp_path, "orders", {"cid": keys, "event_timestamp": days([0, 0]), "total": [1.0, 2.0]})
    table = job_of(shop, ["orders:total"], day(0), day(0)).to_arrow()
    assert table.column("cid").combine_chunks().equals(keys)
    assert table.column("total").to_pylist() == [1.0, 2.0]


def test_many_rows_in_many_files_against_a_plain_loop(shop, tmp_path):
    chance = random.Random(7)  # noqa: S311 - to be repeated, not secret
    rows = [(chance.randrange(50), chance.randrange(400), at) for at in range(5_000)]
    for number in range(5):
        part = rows[number::5]
        table = {
            "cid": [cid for cid, _, _ in part],
            "event_timestamp": pa.array([START + hour * HOUR for _, hour, _ in part], UTC),
            "total": [float(at) for _, _, at in part],
        }
        path = tmp_path / "orders" / f"part-{number}.parquet"
        pq.write_table(pa.table(table), path, row_group_size=97)
    newest = defaultdict(list)
    for place, (cid, hour, at) in enumerate(sorted(rows, key=lambda row: row[2] % 5)):
        if 100 <= hour <= 300:
            newest[hour, cid].append((place, float(at)))
    assert rows_of(shop, ["orders:total"], START + 100 * HOUR, START + 300 * HOUR) == [
        (cid, START + hour * HOUR, max(seen)[1]) for (hour, cid), seen in sorted(newest.items())
    ]


def test_the_memory_limit_counts_and_spills_are_removed(open_store, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    limits = {"memory_limit": "20MB", "threads": 1, "spill_folder": str(spill)}
    shop = open_shop(open_store(offline=limits), tmp_path)
    many = 250_000
    columns = {
        "cid": pa.array(range(many)),
        "event_timestamp": days([0]).take(pa.array([0] * many)),
        "total": pa.array([1.0] * many),
    }
    pq.write_table(pa.table(columns), tmp_path / "orders" / "part-0.parquet")
    job = job_of(shop, ["orders:total"], day(0), day(1))
    assert job.entities.table.column("cid").to_pylist() == list(range(many))
    assert list(spill.iterdir()) == []


# The range


def test_naive_bounds_are_utc_whatever_the_zone_of_others(shop):
    naive = dt.datetime(2026, 1, 2)  # noqa: DTZ001 - is what is tested
    other = day(2).astimezone(dt.timezone(dt.timedelta(hours=9)))
    assert rows_of(shop, ["orders:total"], naive, other) == [(2, day(1), 3.0), (1, day(2), 2.0)]


def test_without_a_start_the_longest_ttl_before_the_end(open_store, tmp_path):
    views = orders(dt.timedelta(days=1)), baskets(dt.timedelta(hours=1)), rates()
    shop = open_shop(open_store(), tmp_path, *views)
    job = job_of(shop, ["orders:total", "rates:rate"], end=day(2))
    assert job.entities.range() == (day(1), day(2))
    # At day 2 the order of day 0 is too old; at day 1 it would not have been.
    assert [row[:3] for row in rows_of(shop, ["orders:total"], end=day(2))] == [
        (2, day(1), 3.0),
        (1, day(2), 2.0),
    ]


def test_without_an_end_until_now(open_store, tmp_path):
    shop = open_shop(open_store(), tmp_path, orders(dt.timedelta(days=1)))
    before = dt.datetime.now(tz=dt.timezone.utc)
    job = shop.get_historical_features(features=["orders:total"], start_date=day(0))
    _, end = job.entities.range()
    # Feast's own default is the local clock's time without its zone.
    assert abs(end - before) < dt.timedelta(hours=15)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (None, day(1), "needs a `start_date`: no view of the request has a ttl"),
        (day(2), day(1), "`start_date` 2026-01-03 00:00:00.* is after `end_date`"),
        ("2026-01-01", day(1), "`start_date` is a str. Give a datetime"),
        (day(0), dt.date(2026, 1, 1), "`end_date` is a date. Give a datetime"),
        (pd.NaT, day(1), "`start_date` is a NaTType. Give a datetime"),
        (day(0), pd.Timestamp(10**9 + 1), "`end_date` has a part below a microsecond"),
    ],
)
def test_a_range_that_cannot_be(shop, start, end, message):
    with pytest.raises(EntityRowsError, match=message):
        job_of(shop, ["orders:total"], start, end)


# What is refused


def test_keys_that_no_view_has_together(open_store, tmp_path):
    products = FeatureView(
        name="products",
        entities=[PRODUCT],
        schema=[Field(name="sku", dtype=String), Field(name="price", dtype=Float64)],
        source=FileSource(name="products", path="orders", timestamp_field="event_timestamp"),
    )
    shop = open_shop(open_store(), tmp_path, orders(), products)
    with pytest.raises(
        EntityRowsError,
        match=r"no view has all the join keys \['cid', 'sku'\].*`orders` has \['cid",
    ):
        job_of(shop, ["orders:total", "products:price"], day(0), day(1))


def test_keys_of_different_types(open_store, tmp_path):
    shop = open_shop(open_store(), tmp_path, orders(), keyed("named", "price", String))
    write(tmp_path, "named", {"cid": ["1"], "event_timestamp": days([0]), "price": [1.0]})
    with pytest.raises(EntityRowsError, match="`cid` is int32 in `orders`; string in `named`"):
        job_of(shop, ["orders:total", "named:price"], day(0), day(1))


def test_a_broken_file(shop, tmp_path):
    path = tmp_path / "orders" / "part-0.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"\x00" * 9)
    with pytest.raises(SourceReadError, match=r"part-0\.parquet"):
        job_of(shop, ["orders:total"], day(0), day(1))


def test_a_spill_folder_that_is_not_there(open_store, tmp_path):
    shop = open_shop(open_store(offline={"spill_folder": str(tmp_path / "none")}), tmp_path)
    with pytest.raises(OfflineStoreError, match="Point `spill_folder`"):
        job_of(shop, ["orders:total"], day(0), day(1))
