"""Columns as other programs write them: Arrow's newer types, keys of rare types, rare names."""

from __future__ import annotations

import decimal
import uuid
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, ValueType
from feast.types import Array, Bytes, Decimal, Float32, Int64, String
from order_files import TIME, customers, day, history, orders, write
from views import CUSTOMER

from feast_dynamo_ext import S3ParquetOfflineStore
from feast_dynamo_ext.arrow_types import plain_type
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    EntityRowsError,
    FeastDynamoError,
    OfflineStoreError,
    UnsupportedTypeError,
)
from feast_dynamo_ext.key_types import family

if TYPE_CHECKING:
    from feast import FeatureStore

NAMED = Entity(name="customer", join_keys=["cid"], value_type=ValueType.STRING)


@pytest.fixture(params=["stream", "duckdb"])
def shop(open_store, request) -> FeatureStore:
    return open_store(online={"region": "us-east-1"}, offline={"join_plan": request.param})


@pytest.fixture
def one_shop(open_store) -> FeatureStore:
    return open_store(online={"region": "us-east-1"})


def latest(store: FeatureStore, column: str = "total") -> list:
    """The newest rows of all keys: what materialize reads."""
    source = store.get_feature_view("orders").batch_source
    job = S3ParquetOfflineStore.pull_latest_from_table_or_query(
        store.config, source, ["cid"], [column], "t", None, day(1), day(31)
    )
    return job.to_arrow().column(column).to_pylist()


def by_sql(store: FeatureStore, entity_df: pa.Table, feature: str = "total") -> list:
    """What the statement of a retrieval gives."""
    statement = store.get_historical_features(entity_df, [f"orders:{feature}"]).to_sql()
    with duckdb.connect(":memory:") as duck:
        return duck.sql(statement).to_arrow_table().column(feature).to_pylist()


# Views of texts, bytes and lists


LAYOUTS = [
    pytest.param(pa.string_view(), "x", String, pa.string(), id="string_view"),
    pytest.param(pa.binary_view(), b"x", Bytes, pa.binary(), id="binary_view"),
    pytest.param(
        pa.list_(pa.string_view()), ["x"], Array(String), pa.list_(pa.string()), id="list of views"
    ),
    pytest.param(
        pa.list_view(pa.int64()), [1, 2], Array(Int64), pa.list_view(pa.int64()), id="list_view"
    ),
]


@pytest.mark.parametrize(("written", "value", "dtype", "read"), LAYOUTS)
def test_view_layouts_of_texts_are_read_as_the_plain_ones(
    one_shop, tmp_path, written, value, dtype, read
):
    path = write(tmp_path / "orders.parquet", total=pa.array([value, None], written))
    one_shop.apply([CUSTOMER, orders(path, total=dtype)])
    job = one_shop.get_historical_features(customers(1, 2, 3), ["orders:total"])
    column = job.to_arrow()["total"]
    assert column.to_pylist() == [value, None, None]
    assert element_free(column.type) == element_free(read)
    assert latest(one_shop) == [value, None]


def element_free(kind: pa.DataType) -> str:
    """A type without the names of lists' elements, which Parquet does not keep."""
    return str(kind).replace("element: ", "item: ")


def test_view_layouts_of_entity_rows_are_plain_in_the_answer(one_shop, tmp_path):
    path = write(tmp_path / "orders.parquet", total=[1])
    one_shop.apply([CUSTOMER, orders(path, total=Int64)])
    notes = pa.array(["a", None], pa.string_view())
    sizes = pa.array([[1, 2], None], pa.list_view(pa.int8()))
    rows = customers(1, 2).append_column("note", notes).append_column("sizes", sizes)
    answer = one_shop.get_historical_features(rows, ["orders:total"]).to_arrow()
    answer.validate(full=True)
    assert answer.schema.field("note").type == pa.string()
    assert answer["note"].to_pylist() == ["a", None]
    assert answer["sizes"].to_pylist() == [[1, 2], None]


def test_views_of_lists_that_arrow_cannot_gather_or_cast_are_refused(one_shop, tmp_path):
    views = pa.array([["x"]], pa.list_view(pa.string_view()))
    path = write(tmp_path / "orders" / "1.parquet", total=views)
    one_shop.apply([CUSTOMER, orders(path.parent, total=Array(String))])
    with pytest.raises(UnsupportedTypeError, match="`total` is list_view"):
        history(one_shop, customers(1), "total")
    write(path, total=pa.array([["x"]], pa.list_view(pa.string())))
    write(path.with_name("2.parquet"), total=pa.array([["x"]], pa.list_(pa.string())))
    with pytest.raises(ColumnTypeError, match=r"`total` is list<.*2\.parquet, but list_view<"):
        history(one_shop, customers(1), "total")


# Keys


FIRST, SECOND = uuid.UUID(int=0xA), uuid.UUID("ffffffff-0000-4000-8000-00000000abcd")
KEYS = [
    pytest.param(pa.string_view(), pa.string(), ["a", "b"], ["a", "b"], id="string_view"),
    pytest.param(pa.string(), pa.string_view(), ["a", "b"], ["a", "b"], id="of string_view"),
    pytest.param(pa.binary_view(), pa.binary(), [b"a", b"b"], [b"a", b"b"], id="binary_view"),
    pytest.param(pa.binary(2), pa.binary(), [b"aa", b"bb"], [b"aa", b"bb"], id="fixed size"),
    pytest.param(pa.binary(), pa.binary(2), [b"aa", b"bb"], [b"aa", b"bb"], id="of fixed size"),
    pytest.param(pa.uuid(), pa.uuid(), [FIRST, SECOND], [FIRST, SECOND], id="UUID"),
    pytest.param(pa.uuid(), pa.string(), [FIRST, SECOND], [str(FIRST), str(SECOND)], id="text"),
    pytest.param(
        pa.uuid(), pa.string(), [FIRST, SECOND], [str(FIRST), str(SECOND).upper()], id="capitals"
    ),
    pytest.param(pa.string(), pa.uuid(), [str(FIRST), str(SECOND)], [FIRST, SECOND], id="of UUID"),
    pytest.param(pa.decimal128(38, 0), pa.int64(), [1, 2**62], [1, 2**62], id="decimal"),
    pytest.param(pa.decimal256(76, 0), pa.int64(), [1, 2**62], [1, 2**62], id="decimal256"),
    pytest.param(pa.int64(), pa.decimal128(38, 2), [1, 2**62], [1, 2**62], id="of decimal"),
    pytest.param(pa.decimal32(9, 0), pa.decimal64(18, 0), [1, 2], [1, 2], id="small decimals"),
    pytest.param(
        pa.float64(), pa.int64(), [1, 2**53 - 1], [1, 2**53 - 1], id="the last exact double"
    ),
    pytest.param(
        pa.int64(), pa.float32(), [1, 2**24 - 1], [1, 2**24 - 1], id="the last exact float32"
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "asked", "theirs", "ours"), KEYS)
def test_keys_of_rare_types_are_compared(shop, tmp_path, stored, asked, theirs, ours):
    path = write(
        tmp_path / "orders.parquet", cid=pa.array([*theirs, None], stored), total=[1, 2, 3]
    )
    compared = {"text": ValueType.STRING, "bytes": ValueType.BYTES, "integer": ValueType.INT64}
    customer = Entity(
        name="customer", join_keys=["cid"], value_type=compared[family(plain_type(stored))]
    )
    shop.apply([customer, orders(path, customer, total=Int64)])
    entities = customers(*ours[::-1], None, kind=asked)
    assert history(shop, entities, "total") == [2, 1, None]
    assert sorted(latest(shop)) == [1, 2]
    if not pa.types.is_decimal256(stored):  # which DuckDB reads as doubles
        assert by_sql(shop, entities) == [2, 1, None]


def test_uuids_of_pandas_are_keys(one_shop, tmp_path):
    path = write(
        tmp_path / "orders.parquet", cid=pa.array([FIRST, SECOND], pa.uuid()), total=[1, 2]
    )
    one_shop.apply([NAMED, orders(path, NAMED, total=Int64)])
    frame = pd.DataFrame({"cid": [SECOND, FIRST], "event_timestamp": pd.to_datetime([day(3)] * 2)})
    assert history(one_shop, frame, "total") == [2, 1]


INEXACT = [
    pytest.param(pa.float64(), float(2**53), id="2^53 as a double"),
    pytest.param(pa.float32(), float(2**24), id="2^24 as a float32"),
    pytest.param(pa.float16(), np.float16(2**11), id="2^11 as a half"),
    pytest.param(pa.float64(), -float(2**53), id="-2^53 as a double"),
    pytest.param(pa.float64(), 1.5, id="a fraction"),
    pytest.param(pa.float64(), float("inf"), id="infinity"),
    pytest.param(pa.decimal128(10, 1), decimal.Decimal("1.5"), id="a fraction of a decimal"),
    pytest.param(pa.decimal128(38, 0), 2**63, id="a decimal of more than 64 bits"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "key"), INEXACT)
def test_keys_that_may_be_another_integer_are_refused(shop, tmp_path, kind, key):
    ours = write(tmp_path / "ours.parquet", total=[7])
    shop.apply([CUSTOMER, orders(ours, total=Int64)])
    with pytest.raises(EntityRowsError, match="`cid`"):
        history(shop, customers(key, kind=kind), "total")
    job = shop.get_historical_features(customers(key, kind=kind), ["orders:total"])
    with pytest.raises(EntityRowsError, match="`cid`"):
        job.to_sql()
    with pytest.raises(EntityRowsError, match="`cid`"):
        job.explain()
    theirs = write(tmp_path / "theirs.parquet", cid=pa.array([key], kind), total=[7])
    shop.apply([CUSTOMER, orders(theirs, total=Int64)])
    with pytest.raises(ColumnTypeError, match="`cid`"):
        history(shop, customers(1), "total")
    with pytest.raises(ColumnTypeError, match="`cid`"):
        latest(shop)
    with pytest.raises(duckdb.Error, match=r"join key|out of range"):
        by_sql(shop, customers(1))


def test_nan_as_a_key_is_a_missing_one(shop, tmp_path):
    path = write(tmp_path / "orders.parquet", cid=[1.0, float("nan")], total=[1, 2])
    shop.apply([CUSTOMER, orders(path, total=Int64)])
    entities = customers(float("nan"), 1, kind=pa.float64())
    assert history(shop, entities, "total") == [None, 1]
    assert latest(shop) == [1]
    assert by_sql(shop, entities) == [None, 1]


def not_utf8(*texts: bytes) -> pa.Array:
    binary = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


def test_keys_that_are_not_utf_8_are_compared_by_their_bytes(shop, tmp_path):
    keys = not_utf8(b"\xff\xfe", b"ok")
    path = write(tmp_path / "orders.parquet", cid=keys, total=[1, 2])
    shop.apply([NAMED, orders(path, NAMED, total=Int64)])
    times = pa.array([day(3)] * 3, TIME)
    asked = not_utf8(b"ok", b"\xff\xfe", b"\xff")
    entities = pa.table({"cid": asked, "event_timestamp": times})
    assert history(shop, entities, "total") == [2, 1, None]
    assert latest(shop) == [1, 2]
    changes = shop.get_historical_features(
        None, ["orders:total"], start_date=day(1), end_date=day(2)
    )
    assert changes.to_arrow()["total"].to_pylist() == [2, 1]


# Columns that nobody asks for


UNREAD = [
    pytest.param(pa.array([[np.float16(0.5)]], pa.list_(pa.float16())), id="float16"),
    pytest.param(pa.array([decimal.Decimal(1)], pa.decimal256(50, 0)), id="decimal256"),
]


@pytest.mark.parametrize("unread", UNREAD)
def test_entity_sql_reads_beside_columns_that_duckdb_does_not_know(one_shop, tmp_path, unread):
    path = write(tmp_path / "orders.parquet", total=[7], unread=unread)
    one_shop.apply([CUSTOMER, orders(path, total=Int64)])
    assert history(one_shop, "SELECT cid, t AS event_timestamp FROM orders", "total") == [7]
    counted = "SELECT 1::BIGINT AS cid, max(t) AS event_timestamp, count(*) n FROM orders"
    assert history(one_shop, counted, "total") == [7]
    with pytest.raises(EntityRowsError, match="`unread` cannot be read by SQL: DuckDB has"):
        history(one_shop, "SELECT *, t AS event_timestamp FROM orders", "total")


def test_a_half_and_a_decimal_of_76_digits_are_retrieved(shop, tmp_path):
    digits = decimal.Decimal("9" * 76)
    path = write(
        tmp_path / "orders.parquet",
        half=pa.array([np.float16(0.5)]),
        many=pa.array([digits], pa.decimal256(76, 0)),
    )
    shop.apply([CUSTOMER, orders(path, half=Float32, many=Decimal)])
    job = shop.get_historical_features(customers(1, 2), ["orders:half", "orders:many"])
    answer = job.to_arrow()
    assert answer["half"].to_pylist() == [0.5, None]
    assert answer["many"].to_pylist() == [digits, None]
    with pytest.raises(OfflineStoreError, match="`many`, whose 76 digits"):
        job.to_sql()
    assert by_sql(shop, customers(1), "half") == [0.5]


# Names


@pytest.mark.slow
def test_two_columns_of_one_name_are_refused_where_they_are_asked_for(shop, tmp_path):
    times = pa.array([day(1)], TIME)
    columns = [pa.array([1]), times, pa.array([5]), pa.array([6]), pa.array([7])]
    table = pa.Table.from_arrays(columns, names=["cid", "t", "twice", "total", "twice"])
    pq.write_table(table, tmp_path / "orders.parquet")
    shop.apply([CUSTOMER, orders(tmp_path / "orders.parquet", total=Int64, twice=Int64)])
    assert history(shop, customers(1, 2), "total") == [6, None]
    assert latest(shop) == [6]
    assert by_sql(shop, customers(1)) == [6]
    assert history(shop, "SELECT cid, t AS event_timestamp FROM orders", "total") == [6]
    several = r"orders\.parquet has several columns named `twice`"
    with pytest.raises(ColumnTypeError, match=several):
        history(shop, customers(1), "twice")
    with pytest.raises(ColumnTypeError, match=several):
        latest(shop, "twice")
    with pytest.raises(FeastDynamoError, match=r"`?twice`?.*several|several.*`twice`"):
        history(shop, "SELECT cid, t AS event_timestamp, twice AS note FROM orders", "total")


def test_names_that_differ_by_capitals_alone_are_told_apart_or_refused(shop, tmp_path):
    path = write(tmp_path / "orders.parquet", Total=[1], total=[2], other=[3])
    shop.apply([CUSTOMER, orders(path, Total=Int64, total=Int64, other=Int64)])
    assert history(shop, customers(1), "Total", "total") == ([1], [2])
    with pytest.raises(OfflineStoreError, match="column `Total`, which is not the only name"):
        by_sql(shop, customers(1), "Total")
    assert by_sql(shop, customers(1), "other") == [3]
    statement = "SELECT cid, t AS event_timestamp, {} AS note FROM orders"
    assert history(shop, statement.format("other"), "other") == [3]
    with pytest.raises(EntityRowsError, match="capitals alone"):
        history(shop, statement.format("total"), "other")


# Numbers of Python


@pytest.mark.parametrize("values", [[1, 2**70], ["x", 2**70], [2**63, -1]], ids=str)
def test_objects_that_arrow_cannot_hold_are_refused_by_column(one_shop, tmp_path, values):
    path = write(tmp_path / "orders.parquet", total=[7])
    one_shop.apply([CUSTOMER, orders(path, total=Int64)])
    frame = pd.DataFrame(
        {
            "cid": [1, 2],
            "event_timestamp": pd.to_datetime([day(3)] * 2),
            "note": pd.Series(values, dtype=object),
        }
    )
    with pytest.raises(EntityRowsError, match="column `note` cannot be held by Arrow"):
        history(one_shop, frame, "total")
