"""Entity rows from SQL over the names of the registry."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from entity_shop import START, UTC, day, days, open_shop, write
from feast import FileSource, PushSource, RequestSource
from feast.field import Field
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.saved_dataset import SavedDataset
from feast.types import Float64

from feast_dynamo_ext.errors import EntityRowsError, OfflineStoreError, SourceNotFoundError
from feast_dynamo_ext.retrieval.entity_rows.from_sql import is_sql


@pytest.fixture
def shop(open_store, tmp_path):
    return open_shop(open_store(), tmp_path)


def table_of(store, sql, features=("orders:total",), **kwargs) -> pa.Table:
    return store.get_historical_features(sql, list(features), **kwargs).to_arrow()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", True),
        ("\n -- rows\n /* of\n mine */ (select*from x)", True),
        ('with"x" AS (SELECT 1) FROM x', True),
        ("FROM orders", True),
        ("from_2024.parquet", False),
        ("selected/rows.csv", False),
        ("s3://select/from.parquet", False),
        ("DELETE FROM orders", False),
        ("from", False),
    ],
)
def test_what_is_taken_for_sql(text, expected):
    assert is_sql(text) is expected


# What a statement can name


def test_a_view_by_its_columns_after_field_mapping(shop):
    got = table_of(
        shop,
        'SELECT cid, sku, "event_timestamp" + INTERVAL 12 HOUR AS event_timestamp, items * 2 AS '
        "twice FROM baskets WHERE items < 30 ORDER BY cid",
        ["orders:total", "baskets:items"],
    )
    assert got.to_pylist() == [
        {
            "cid": cid,
            "sku": sku,
            "event_timestamp": dt.datetime(2026, 1, 2, 12),  # noqa: DTZ001 - as the files have it
            "twice": twice,
            "total": total,
            "items": items,
        }
        for cid, sku, twice, total, items in [(1, "007", 20, 1.0, 10), (2, "x", 40, 3.0, 20)]
    ]


def test_a_data_source_whose_name_needs_quotes_and_views_joined(shop):
    got = table_of(
        shop,
        """
        WITH last AS (FROM ORDERS SELECT cid, max(event_timestamp) AS event_timestamp GROUP BY cid)
        SELECT last.* FROM last SEMI JOIN "basket files" USING (cid) ORDER BY cid DESC
        """,
    )
    assert got.column("cid").to_pylist() == [2, 1]
    assert got.column("total").to_pylist() == [3.0, 2.0]


def test_a_saved_dataset_a_push_source_and_the_same_table_twice(shop, tmp_path):
    write(tmp_path, "labels", {"cid": [1, 2], "event_timestamp": days([1, 5]), "label": [0, 1]})
    storage = SavedDatasetFileStorage(path="labels")
    named = SavedDataset("my labels", ["orders:total"], ["cid"], storage)
    named.min_event_timestamp, named.max_event_timestamp = START, day(9)
    shop.registry.apply_saved_dataset(named, "p")
    pushed = PushSource(name="pushed", batch_source=FileSource(name="f", path="labels"))
    shop.registry.apply_data_source(pushed, "p")
    got = table_of(
        shop,
        'SELECT a.cid, a.event_timestamp, c.label FROM "my labels" a JOIN "my labels" b '
        "USING (cid) JOIN pushed c USING (cid) ORDER BY 1",
    )
    assert got.column("label").to_pylist() == [0, 1]
    assert got.column("total").to_pylist() == [1.0, 3.0]


def test_columns_of_all_files_and_folders(shop, tmp_path):
    (tmp_path / "orders" / "kind=new").mkdir()
    more = {"cid": [2**40], "event_timestamp": days([1]), "total": [5.0], "label": [1]}
    pq.write_table(pa.table(more), tmp_path / "orders" / "kind=new" / "a.parquet")
    got = table_of(shop, "SELECT cid, event_timestamp, label, kind FROM orders WHERE label = 1")
    assert got.to_pylist() == [
        {"cid": 2**40, "event_timestamp": day(1), "label": 1, "kind": "new", "total": 5.0}
    ]


def test_times_are_in_utc_and_keep_their_unit(shop, tmp_path):
    times = pa.array([1_767_225_600_000_000_001], pa.timestamp("ns"))
    write(tmp_path, "orders", {"cid": [1], "event_timestamp": times, "total": [1.0]})
    got = table_of(shop, "SELECT cid, event_timestamp FROM orders")
    assert got.schema.field("event_timestamp").type == pa.timestamp("ns")
    assert got.column("total").to_pylist() == [1.0]
    got = table_of(shop, "SELECT 1 AS cid, TIMESTAMPTZ '2026-01-01 00:00:01' AS event_timestamp")
    assert got.column("event_timestamp").type == UTC
    assert got.column("event_timestamp").to_pylist() == [START + dt.timedelta(seconds=1)]


# What is refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "SELECT * FROM nowhere",
            r"names \['nowhere'\], which the Feast registry does not. There are \['basket files', "
            r"'baskets', 'orders', 'rates'\]",
        ),
        ("SELECT * FROM 'orders/part-0.parquet'", r"names \['orders/part-0.parquet'\]"),
        ("SELECT * FROM information_schema.tables", r"names \['information_schema.tables'\]"),
        ("SELECT cid FRM orders", r"refuses the SQL `SELECT cid FRM orders`: Parser Error"),
        ("SELECT nope FROM orders", r"Binder Error.* \"nope\" not found"),
        ("SELECT 'x'::INT AS cid", r"Conversion Error.*'x'"),
        ("SELECT 1 AS cid; DROP TABLE orders", r"is not one SELECT statement"),
        ("FROM read_parquet('orders/part-0.parquet')", r"Permission Error: Cannot access file"),
        ("FROM read_csv('/etc/passwd')", r"Permission Error: Cannot access"),
        ("FROM glob('/*')", r"Permission Error: Cannot access"),
        ("SELECT cid, event_timestamp FROM orders WHERE cid > 9", r"rows are empty.*WHERE leaves"),
        ("SELECT cid FROM orders", r"need a column `event_timestamp`"),
        ("SELECT cid, cid, event_timestamp FROM orders", r"several columns named \['cid'\]"),
        ("SELECT NULL::TIMESTAMP AS event_timestamp, 1 AS cid", r"1 rows have no `event_time"),
        ("SELECT event_timestamp FROM orders", r"lack the join key \['cid'\]"),
    ],
)
def test_one_clear_error(shop, sql, message):
    with pytest.raises(EntityRowsError, match=message):
        shop.get_historical_features(sql, ["orders:total"])


def test_python_variables_are_not_tables(shop):
    orders_of_mine = pa.table({"cid": [1], "event_timestamp": days([1])})
    assert orders_of_mine.num_rows == 1
    with pytest.raises(EntityRowsError, match=r"names \['orders_of_mine'\]"):
        shop.get_historical_features("FROM orders_of_mine", ["orders:total"])


def test_request_sources_are_not_tables(shop):
    asked = RequestSource(name="asked", schema=[Field(name="a", dtype=Float64)])
    shop.registry.apply_data_source(asked, "p")
    with pytest.raises(EntityRowsError, match=r"names \['asked'\]"):
        shop.get_historical_features("FROM asked", ["orders:total"])


def test_a_source_without_files(shop, tmp_path):
    (tmp_path / "orders" / "part-0.parquet").unlink()
    with pytest.raises(SourceNotFoundError, match="`orders`"):
        shop.get_historical_features("FROM orders", ["orders:total"])


def test_only_what_is_named_is_opened(shop, tmp_path):
    (tmp_path / "baskets" / "part-0.parquet").write_bytes(b"broken")
    got = table_of(shop, "SELECT cid, event_timestamp FROM orders WHERE cid = 2")
    assert got.column("total").to_pylist() == [3.0]


@pytest.mark.slow
def test_the_memory_limit_counts_and_spills_are_removed(open_store, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    limits = {"memory_limit": "40MB", "threads": 1, "spill_folder": str(spill)}
    shop = open_shop(open_store(offline=limits), tmp_path)
    got = table_of(
        shop,
        """
        WITH many AS (SELECT hash(range) AS h, range AS r FROM range(3000000)),
        most AS (SELECT max(r) AS m FROM (FROM many ORDER BY h LIMIT 2900000))
        SELECT cid, event_timestamp, m FROM orders, most WHERE cid = 2
        """,
    )
    assert got.column("total").to_pylist() == [3.0]
    with pytest.raises(OfflineStoreError, match="The SQL of the entity rows ran out of memory"):
        shop.get_historical_features(
            "SELECT list(range) AS r, 1 AS cid, now() AS event_timestamp FROM range(30000000)",
            ["orders:total"],
        )
    assert list(spill.iterdir()) == []
