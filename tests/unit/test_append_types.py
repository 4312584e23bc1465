"""What appended rows may be: equal to what is stored, in the types of files and folders."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import math
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.type_map import feast_value_type_to_python_type
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    Invalid,
    Json,
    Map,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
)
from order_files import TIME, customers, day, history, orders, write
from repos import repo_config
from views import CUSTOMER

from feast_dynamo_ext import S3ParquetOfflineStore, S3ParquetSource
from feast_dynamo_ext.declared import declared_as
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.dynamo.layouts.packed import unpack
from feast_dynamo_ext.dynamo.push import rows_of_frame
from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.parquet.append import append_rows
from feast_dynamo_ext.parquet.listing import HIVE_NULL

if TYPE_CHECKING:
    from feast import FeatureStore


@pytest.fixture
def shop(open_store) -> FeatureStore:
    return open_store(online={"region": "us-east-1"})


# Values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "dtype", "appended"),
    [
        pytest.param(
            pa.array([1767225600]), Int64, pd.Timestamp("2026-01-02"), id="timestamp as an integer"
        ),
        pytest.param(
            pa.array([decimal.Decimal("1.10")], pa.decimal128(10, 2)),
            Decimal,
            2.255,
            id="2.255 as decimal(10, 2)",
        ),
        pytest.param(pa.array([1.0], pa.float32()), Float32, 1e300, id="1e300 as a float32"),
        pytest.param(pa.array([True]), Bool, 2, id="2 as a bool"),
        pytest.param(pa.array([True]), Bool, 0.5, id="0.5 as a bool"),
        pytest.param(pa.array([1]), Int64, "007", id="text as an integer"),
        pytest.param(pa.array([1.0]), Float64, 2**53 + 1, id="2^53 + 1 as a double"),
        pytest.param(pa.array([1], pa.int32()), Int32, 2**31, id="2^31 as an int32"),
        pytest.param(pa.array([b"x"]), Bytes, 7, id="integer as bytes"),
    ],
)
def test_an_append_refuses_what_would_not_come_back_equal(shop, tmp_path, stored, dtype, appended):
    old = write(tmp_path / "orders" / "old.parquet", total=stored)
    shop.apply([CUSTOMER, orders(old.parent, total=dtype)])
    rows = pd.DataFrame({"cid": [2], "t": pd.to_datetime([day(2, 5)]), "total": [appended]})
    with pytest.raises(ColumnTypeError, match="`total`"):
        shop.write_to_offline_store("orders", rows)
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize(
    ("stored", "dtype", "appended", "found"),
    [
        pytest.param(pa.array([1.5], pa.float32()), Float32, 0.1, 0.10000000149011612, id="0.1"),
        pytest.param(pa.array([1]), Int64, 2.0, 2, id="2.0 as an integer"),
        pytest.param(pa.array([True]), Bool, 1.0, True, id="1.0 as a bool"),
        pytest.param(
            pa.array([decimal.Decimal("1.10")], pa.decimal128(10, 2)),
            Decimal,
            2.25,
            decimal.Decimal("2.25"),
            id="2.25 as decimal(10, 2)",
        ),
        pytest.param(
            pa.array([day(1).date()]),
            UnixTimestamp,
            pd.Timestamp("2026-01-02", tz="UTC"),
            day(2).date(),
            id="midnight as a date",
        ),
        pytest.param(pa.array(["x"]), String, b"y", "y", id="bytes as a text"),
        pytest.param(pa.nulls(1), Int64, 7, 7, id="a value where all were null"),
    ],
)
def test_an_append_takes_what_comes_back_equal(shop, tmp_path, stored, dtype, appended, found):
    old = write(tmp_path / "orders" / "old.parquet", total=stored)
    shop.apply([CUSTOMER, orders(old.parent, total=dtype)])
    rows = pd.DataFrame({"cid": [2], "t": pd.to_datetime([day(2, 5)]), "total": [appended]})
    shop.write_to_offline_store("orders", rows)
    (new,) = set(old.parent.iterdir()) - {old}
    assert pq.read_table(new)["total"].to_pylist() == [found]


MOMENT = day(2, 5)
UUID = uuid.UUID("12345678-9abc-def0-1234-56789abcdef0")
OTHER = uuid.UUID(int=7)
CENTS = pa.decimal128(10, 2)
ID_BYTES, ID_TEXT = UUID.bytes, str(UUID)
A_MAP, A_STRUCT = pa.map_(pa.string(), pa.int64()), pa.struct({"a": pa.int64()})

# What a file has, what its column is declared as, what is appended, and what is stored of it.
AS_DECLARED = [
    (pa.array([OTHER.bytes], pa.binary(16)), Uuid, [ID_TEXT, None], [ID_BYTES, None]),
    (pa.array([OTHER.bytes]), Uuid, [ID_TEXT], [ID_BYTES]),
    (pa.array([str(OTHER)]), Uuid, [ID_BYTES, None], [ID_TEXT, None]),
    (pa.array([str(OTHER)]), Uuid, [UUID], [ID_TEXT]),
    (pa.array([OTHER.bytes], pa.binary(16)), Uuid, [UUID], [ID_BYTES]),
    (pa.array([OTHER.bytes], pa.uuid()), Uuid, [ID_TEXT], [UUID]),
    (pa.array([str(OTHER).encode()], pa.binary(36)), Uuid, [ID_BYTES], [ID_TEXT.encode()]),
    (pa.array([[OTHER.bytes]], pa.list_(pa.binary(16))), Array(Uuid), [[ID_TEXT]], [[ID_BYTES]]),
    (pa.array(["1.5"]), Decimal, [decimal.Decimal("2.50")], ["2.50"]),
    (pa.array([decimal.Decimal("1.50")], CENTS), Decimal, [decimal.Decimal("2.5"), None],
     [decimal.Decimal("2.50"), None]),
    (pa.array([decimal.Decimal("1.50")], CENTS), Decimal, ["2.5"], [decimal.Decimal("2.50")]),
    (pa.array(["{}"]), Json, [{"a": 1}, None], ['{"a": 1}', None]),
    (pa.array(["{}"]), Json, [[1, 2]], ["[1, 2]"]),
    (pa.array(["{}"]), Json, [1.5], ["1.5"]),
    (pa.array([b"{}"]), Json, ['{"a": 1}'], [b'{"a": 1}']),
    (pa.array([{"a": 1}]), Json, ['{"a": 2}'], [{"a": 2}]),
    (pa.array([{"a": 1}]), Json, [{"a": 2}], [{"a": 2}]),
    (pa.array([MOMENT], TIME), UnixTimestamp, [1767330000], [MOMENT]),
    (pa.array([MOMENT], pa.timestamp("ns")), UnixTimestamp, [1767330000.0, None],
     [pd.Timestamp(MOMENT).tz_localize(None), None]),
    (pa.array([1]), UnixTimestamp, [pd.Timestamp(MOMENT)], [1767330000]),
    (pa.array([1]), UnixTimestamp, [1767330000], [1767330000]),
    (pa.array(["1"]), String, [7], ["7"]),
    (pa.array(["1"]), String, [7.0, math.nan], ["7", None]),
    (pa.array(["1"]), String, [True], ["true"]),
    (pa.array(["1"]), String, [math.nan], [None]),
    (pa.array(["1"]), String, [None], [None]),
    (pa.array([1]), Int64, [None], [None]),
    (pa.array([["1"]]), Array(String), [[7]], [["7"]]),
    (pa.array([[1]]), Set(Int64), [{3}], [[3]]),
    (pa.array(["[1]"]), Array(Int64), [[2, 3]], ["[2, 3]"]),
    (pa.array([[1]]), Array(Int64), ["[2, 3]"], [[2, 3]]),
    (pa.array([[1.5]], pa.list_(pa.float32())), Array(Float32), [[0.5, None]], [[0.5, None]]),
    (pa.array([[[1]]]), Array(Array(Int64)), [[[2.0, None]]], [[[2, None]]]),
    (pa.array([{"a": 1}]), Struct({"a": Int64}), [{"a": 2.0}], [{"a": 2}]),
    (pa.array([[("a", 1)]], A_MAP), Map, [{"a": 2}], [[("a", 2)]]),
    (pa.array([[[("a", 1)]]], pa.list_(A_MAP)), Array(Map), [[{"a": 2}]], [[[("a", 2)]]]),
    (pa.array([str(OTHER)]).dictionary_encode(), Uuid, [ID_BYTES], [ID_TEXT]),
    (pa.array(["[1]"]).dictionary_encode(), Array(Int64), [[2, 3]], ["[2, 3]"]),
    (pa.array(["a"]), Invalid, ["b"], ["b"]),
    (pa.array([[("a", 1)]], A_MAP), Map, [{"a": 2, "b": 3}, None], [[("a", 2), ("b", 3)], None]),
]  # fmt: skip


def appended(folder, stored, dtype, cells) -> list:
    """What an append to a file with a column `x` stores of cells as a push brings them."""
    old = write(folder / "orders" / "old.parquet", x=stored)
    rows = pd.DataFrame({"cid": range(len(cells)), "t": [day(2)] * len(cells)})
    rows["x"] = pd.Series(cells)
    view = orders(old.parent, x=dtype)
    (new,) = append_rows(view, repo_config(folder), pa.Table.from_pandas(rows))
    column = pq.read_table(new)["x"]
    assert column.type == pq.read_table(old)["x"].type
    return column.to_pylist()


@pytest.mark.parametrize(("stored", "dtype", "cells", "expected"), AS_DECLARED, ids=str)
def test_values_are_appended_as_they_are_declared(tmp_path, stored, dtype, cells, expected):
    assert appended(tmp_path, stored, dtype, cells) == expected


NOT_AS_DECLARED = [
    (pa.array([str(OTHER)]), Uuid, ["x"], "1 of 1 values of type string cannot be UUIDs"),
    (pa.array([str(OTHER)]), Uuid, [b"0123456789abcde"], "cannot be UUIDs"),
    (pa.array([OTHER.bytes], pa.binary(16)), Uuid, ["x"], "cannot be UUIDs"),
    (pa.array(["1.5"]), Decimal, ["x", "1"], "1 of 2 values of type string cannot be decimals"),
    (pa.array(["1.5"]), Decimal, [1.5], "cannot be decimals"),
    (pa.array([decimal.Decimal("1.50")], CENTS), Decimal, ["2.555"], "cannot be decimal"),
    (pa.array(["{}"]), Json, ["{"], "cannot be JSON"),
    (pa.array(["{}"]), Json, [{"a": 1}, {"b": 2}], "json.dumps"),
    (pa.array([{"a": 1}]), Json, ['{"b": 1}'], "cannot be struct"),
    (pa.array([MOMENT], TIME), UnixTimestamp, [1.5], "cannot be times .whole seconds since 1970"),
    (pa.array([MOMENT], TIME), UnixTimestamp, ["2026-01-02"], "cannot be times"),
    (pa.array([1]), UnixTimestamp, [pd.Timestamp(MOMENT.replace(microsecond=5))], "without a"),
    (pa.array(["1"]), Int64, [7], "without a change"),
    (pa.array([[[1]]]), Array(Array(Int64)), [[[1.5]]], "1 of 1 values of type double"),
    (pa.array([[[1.0]]]), Array(Array(Int64)), [[[1.5]]], "1 of 1 values of type double"),
    (pa.array([{"a": 1.0}]), Struct({"a": Int64}), [{"a": 1.5}], "1 of 1 values of type double"),
    (pa.array([[("a", "1")]], pa.map_(pa.string(), pa.string())), Map, [{"a": 2}], "without a"),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "dtype", "cells", "message"), NOT_AS_DECLARED, ids=str)
def test_values_that_are_not_as_declared_are_not_appended(tmp_path, stored, dtype, cells, message):
    with pytest.raises(ColumnTypeError, match=rf"column `x` of the rows.*{message}"):
        appended(tmp_path, stored, dtype, cells)
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["old.parquet"]


def texts_of_a_push(dtype, cells) -> list:
    """What a push writes online of each cell: a text, or a list of texts."""
    rows = pd.DataFrame({"cid": range(len(cells)), "t": [day(2)] * len(cells), "x": cells})
    _, written = rows_of_frame(orders("nowhere", x=dtype), rows)
    messages = [unpack(row.values)[0] for row in written]
    fields = [message.WhichOneof("val") for message in messages]
    values = [field and getattr(message, field) for message, field in zip(messages, fields)]  # noqa: B905 - of one length
    return [list(value.val) if hasattr(value, "val") else value for value in values]


SIXTEEN_DIGITS, IN_A_DOUBLE = 1234567890123456, "1.234567890123456e+15"
IN_US, IN_DAYS = pa.array([MOMENT], TIME), pa.array([MOMENT.date()])
A_TIME = pd.Series(pd.to_datetime(["2026-01-02T03:04:05.678901Z"]))
DOUBLES, A_CENT = pa.array([1.5]), pa.array([decimal.Decimal("1.10")], CENTS)
SINGLES = pa.array([1.5], pa.float32())

# What a file has, what its column is declared as, what is given, and the text that it has online
# and in history.
ONE_TEXT = [
    (pa.array([5]), String, pd.Series([SIXTEEN_DIGITS]), ["1234567890123456"]),
    (pa.array([5]), String, pd.Series([7.0, None]), ["7", None]),
    (pa.array([5]), String, pd.array([SIXTEEN_DIGITS, None], "Int64"), ["1234567890123456", None]),
    (DOUBLES, String, pd.Series([1e15, math.nan]), ["1e+15", None]),
    (DOUBLES, String, pd.Series([7]), ["7"]),
    (SINGLES, String, pd.Series([0.1], dtype="float32"), ["0.1"]),
    (IN_US, String, A_TIME.astype("datetime64[us, UTC]"), ["2026-01-02 03:04:05.678901Z"]),
    (IN_DAYS, String, pd.Series([dt.date(2026, 1, 2)]), ["2026-01-02"]),
    (A_CENT, String, pd.Series([decimal.Decimal("7.50")]), ["7.50"]),
    (pa.array([True]), String, pd.Series([False]), ["false"]),
    (pa.array([[1]]), Array(String), pd.Series([[SIXTEEN_DIGITS]]), [["1234567890123456"]]),
    (pa.array([[0.5]]), Array(Json), pd.Series([[1e15, 2.5, 7]]), [["1e+15", "2.5", "7"]]),
    (pa.array([["1"]]), Array(Json), pd.Series([[7.0, 2.5]]), [["7", "2.5"]]),
    (pa.array([True]), Json, pd.Series([True]), ["true"]),
    (DOUBLES, Json, pd.Series([7]), ["7"]),
    (DOUBLES, Json, pd.Series([7.0, None], dtype=object), ["7", None]),
    (pa.array(["1"]), Json, pd.Series([7.0, None], dtype=object), ["7", None]),
    (pa.array(["1"]), Json, pd.Series([float(SIXTEEN_DIGITS)], dtype=object), [IN_A_DOUBLE]),
    (pa.array(["1"]), Json, pd.Series([decimal.Decimal("7.5"), decimal.Decimal("1.25")]),
     ["7.50", "1.25"]),
    (pa.array(["1"]), String, pd.Series([SIXTEEN_DIGITS, None]), [IN_A_DOUBLE, None]),
    (pa.array(["1"]), Json, pd.Series([[1, 2.5], [7], None]), ["[1.0, 2.5]", "[7.0]", None]),
    (pa.array(["1"]), Json, pd.Series([{"a": 1}, {"a": 2.5}]), ['{"a": 1.0}', '{"a": 2.5}']),
    (pa.array(["1"]), Json, pd.Series([["a", math.nan], ["b", None]]),
     ['["a", null]', '["b", null]']),
    (pa.array(["1"]), Json, pd.Series([[True, math.nan]]), ["[true, null]"]),
    (pa.array(["1"]), Json, pd.Series([[{"a": ["x", math.nan]}, math.nan]]),
     ['[{"a": ["x", null]}, null]']),
    (pa.array([["1"]]), Array(Json), pd.Series([[[1], [2.5], None]]),
     [["[1.0]", "[2.5]", "null"]]),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "dtype", "cells", "texts"), ONE_TEXT, ids=str)
def test_an_appended_value_has_one_text_online_and_in_history(
    tmp_path, stored, dtype, cells, texts
):
    found = pa.chunked_array([pa.array(appended(tmp_path, stored, dtype, cells), stored.type)])
    in_history = as_declared(found, declared_as(dtype)).to_pylist()
    if dtype == Array(Json):  # a missing element is the document null
        in_history = [["null" if text is None else text for text in cell] for cell in in_history]
    assert in_history == texts
    assert texts_of_a_push(dtype, cells) == texts


# Json inside of structs, whose numbers Arrow gives one type for an append: text, or list of texts.
INSIDE = [
    ([1, 2.5], ["1", "2.5"]),
    ([1, None], ["1", None]),
    ([[1, 2.5], [3]], ["[1.0, 2.5]", "[3.0]"]),
    ([{"b": 1}, {"b": 0.5}], ['{"b": 1.0}', '{"b": 0.5}']),
    ([["a", math.nan], ["b"]], ['["a", null]', '["b"]']),
    ([True, False], ["true", "false"]),
    (["1", '"x"'], ["1", '"x"']),
]


@pytest.mark.parametrize(("cells", "texts"), INSIDE, ids=str)
@pytest.mark.parametrize("is_list", [False, True], ids=["Struct", "list of structs"])
def test_json_inside_of_structs_has_one_text(tmp_path, cells, texts, is_list):
    given, expected = [{"a": cell} for cell in cells], [{"a": text} for text in texts]
    dtype, kind = Struct({"a": Json}), pa.struct([("a", pa.string())])
    if is_list:
        dtype, kind, given, expected = Array(dtype), pa.list_(kind), [given], [expected]
    stored = pa.nulls(1, kind)
    assert appended(tmp_path, stored, dtype, given) == expected
    rows = pd.DataFrame({"cid": 1, "t": day(2), "x": given})
    _, written = rows_of_frame(orders("nowhere", x=dtype), rows)
    found = [feast_value_type_to_python_type(unpack(row.values)[0]) for row in written]
    assert found == expected


# What a file has, what its column is declared as, what is given, the text of the first of them
# online, and how many would have another in history.
OTHER_TEXTS = [
    (pa.array([5]), String, pd.Series([SIXTEEN_DIGITS, None]), IN_A_DOUBLE, "1 of 1"),
    (pa.array([5]), String, pd.Series([1e15, 7.0]), "1e+15", "1 of 2"),
    (DOUBLES, String, pd.Series([SIXTEEN_DIGITS]), "1234567890123456", "1 of 1"),
    (DOUBLES, String, pd.Series([0.1], dtype="float32"), "0.1", "1 of 1"),
    (IN_US, String, A_TIME.astype("datetime64[ns, UTC]"), "2026-01-02 03:04:05.678901000Z",
     "1 of 1"),
    (IN_US, String, A_TIME.astype("datetime64[us, UTC]").dt.tz_convert("America/New_York"),
     "2026-01-01 22:04:05.678901-0500", "1 of 1"),
    (IN_DAYS, String, pd.Series(pd.to_datetime(["2026-01-02"])).astype("datetime64[ns]"),
     "2026-01-02 00:00:00.000000000", "1 of 1"),
    (A_CENT, String, pd.Series([decimal.Decimal("7.5")]), "7.5", "1 of 1"),
    (A_CENT, String, pd.Series([7]), "7", "1 of 1"),
    (pa.array([True]), String, pd.Series([1, 0]), "1", "2 of 2"),
    (pa.array([5]), String, pd.Series([True]), "true", "1 of 1"),
    (pa.array([OTHER.bytes], pa.uuid()), String, pd.Series([ID_TEXT.upper()]), ID_TEXT.upper(),
     "1 of 1"),
    (pa.array([[1]]), Array(String), pd.Series([[7.0, float(SIXTEEN_DIGITS)]]),
     ["7", IN_A_DOUBLE], "1 of 2"),
    (pa.array([True]), Json, pd.Series([1]), "1", "1 of 1"),
    (pa.array([5]), Json, pd.Series([True]), "true", "1 of 1"),
    (pa.array([5]), Json, pd.Series([SIXTEEN_DIGITS, None]), IN_A_DOUBLE, "1 of 1"),
    (DOUBLES, Json, pd.Series([SIXTEEN_DIGITS]), "1234567890123456", "1 of 1"),
    (A_CENT, Json, pd.Series([decimal.Decimal("7.5")]), "7.5", "1 of 1"),
    (pa.array([[0.5]]), Json, pd.Series([[1, 2]]), "[1, 2]", "1 of 1"),
    (pa.array([{"a": 0.5}]), Json, pd.Series([{"a": 7}]), '{"a": 7}', "1 of 1"),
    (pa.array([{"a": 0.5}]), Json, pd.Series(['{"a":7}', '{"a":7.5}']), '{"a":7}', "1 of 2"),
    (pa.array([{"a": 1}]), Json, pd.Series(["null", '{"a": 1}']), "null", "1 of 2"),
    (pa.array([[0.5]]), Array(Json), pd.Series([[SIXTEEN_DIGITS, 7]]), ["1234567890123456", "7"],
     "1 of 2"),
    (pa.array([[True]]), Array(Json), pd.Series([[1, 0]]), ["1", "0"], "2 of 2"),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "dtype", "cells", "text", "count"), OTHER_TEXTS, ids=str)
def test_an_append_refuses_what_would_have_another_text_in_history(
    tmp_path, stored, dtype, cells, text, count
):
    assert texts_of_a_push(dtype, cells)[0] == text
    message = rf"column `x` of the rows.* {count} values .* have another text .* Give it as "
    with pytest.raises(ColumnTypeError, match=message):
        appended(tmp_path, stored, dtype, cells)
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["old.parquet"]


SINGLE_LISTS = pa.array([[1.5]], pa.list_(pa.float32()))

# What a file has, what is declared, what is given, and how many of it a float32 would round.
ROUNDED = [
    (SINGLES, Float64, [0.1, 0.5, None], "1 of 2"),
    (SINGLES, Int64, [2**24 + 1, 2**24], "1 of 2"),
    (SINGLES, UnixTimestamp, [1767330001], "1 of 1"),
    (SINGLE_LISTS, Array(Float64), [[0.1, 0.5]], "1 of 2"),
    (SINGLE_LISTS, Set(Float64), [{0.1}], "1 of 1"),
    (SINGLE_LISTS, Array(Int64), [[2**24 + 1]], "1 of 1"),
    (pa.array([[[1.5]]], pa.list_(SINGLE_LISTS.type)), Array(Array(Float64)), [[[0.1]]], "1 of 1"),
    (pa.array([{"a": 1.5}], pa.struct({"a": pa.float32()})), Struct({"a": Float64}), [{"a": 0.1}],
     "1 of 1"),
    (pa.array([[("a", 1.5)]], pa.map_(pa.string(), pa.float32())), Map, [{"a": 0.1}], "1 of 1"),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "dtype", "cells", "count"), ROUNDED, ids=str)
def test_only_what_is_declared_as_float32_is_rounded_to_one(tmp_path, stored, dtype, cells, count):
    message = rf"column `x` of the rows.*{count} values of type .* cannot be float"
    with pytest.raises(ColumnTypeError, match=message):
        appended(tmp_path, stored, dtype, cells)
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["old.parquet"]


UNDECLARED = [
    (SINGLES, [0.1]),
    (SINGLE_LISTS, [[0.1]]),
    (pa.array([{"a": 1.5}], pa.struct({"a": pa.float32()})), [{"a": 0.1}]),
]


@pytest.mark.parametrize(("stored", "cells"), UNDECLARED, ids=str)
def test_a_column_that_no_view_declares_is_not_rounded(tmp_path, stored, cells):
    old = write(tmp_path / "orders" / "old.parquet", x=pa.array([1]), more=stored)
    rows = pd.DataFrame({"cid": 1, "t": [day(2)], "x": 1, "more": cells})
    view = orders(old.parent, x=Int64)
    with pytest.raises(
        ColumnTypeError, match=r"column `more` of the rows.*1 of 1.*cannot be float"
    ):
        append_rows(view, repo_config(tmp_path), pa.Table.from_pandas(rows))
    assert [*old.parent.iterdir()] == [old]
    rows["more"] = pd.Series([stored[0].as_py()])
    (new,) = append_rows(view, repo_config(tmp_path), pa.Table.from_pandas(rows))
    assert pq.read_table(new)["more"].to_pylist() == stored.to_pylist()


A_TENTH = 0.10000000149011612


def test_what_a_float32_holds_is_appended_to_it(tmp_path):
    for at, (stored, dtype, cells, expected) in enumerate(
        [
            (SINGLES, Float64, [0.5, math.nan, math.inf, 2**24], [0.5, None, math.inf, 2.0**24]),
            (SINGLES, Float64, pd.Series([0.1], dtype="float32"), [A_TENTH]),
            (SINGLE_LISTS, Array(Float32), [[0.1]], [[A_TENTH]]),
            (
                pa.array([{"a": 1.5}], pa.struct({"a": pa.float32()})),
                Struct({"a": Float32}),
                [{"a": 0.1}],
                [{"a": A_TENTH}],
            ),
        ]
    ):
        assert appended(tmp_path / str(at), stored, dtype, cells) == expected


NO_NAN = r"cannot be JSON \(which has no NaN and no infinity\)"
MAY_BE_NAN = "1 nulls are beside numbers in its lists, and may have been NaN"
NOT_JSON = [
    (np.array([1.0, math.nan]), MAY_BE_NAN),  # as which Feast hands it over
    ([1, math.nan], MAY_BE_NAN),
    ({"a": [0.5, math.nan]}, MAY_BE_NAN),
    (np.array([1.0, -math.inf]), NO_NAN),
    ({"a": math.inf}, NO_NAN),
    ("[1.0, NaN]", NO_NAN),
    ('{"a": Infinity}', NO_NAN),
]


@pytest.mark.parametrize(("cell", "message"), NOT_JSON, ids=str)
@pytest.mark.parametrize(
    ("dtype", "inside"),
    [
        (Json, lambda json: json),
        (Array(Json), lambda json: [json]),
        (Struct({"a": Json}), lambda json: {"a": json}),
    ],
    ids=["Json", "Array", "Struct"],
)
def test_json_has_no_nan(tmp_path, cell, message, dtype, inside):
    cells = pd.Series([inside(cell)])
    with pytest.raises(ColumnTypeError, match=f"column `x` of the rows.*{message}"):
        appended(tmp_path, pa.array([inside("1")]), dtype, cells)
    with pytest.raises(
        ColumnTypeError, match=f"`orders`: `x` is declared as .*1 of 1 .* {NO_NAN}"
    ):
        texts_of_a_push(dtype, cells)


def test_float_keys_that_may_be_another_customer_are_not_appended(tmp_path):
    old = write(tmp_path / "orders" / "old.parquet", x=[1])
    rows = pa.table({"cid": [2.0**53], "t": pa.array([day(2)], TIME), "x": [2]})
    with pytest.raises(
        ColumnTypeError, match=r"`orders`: column `cid`.*1 of 1 floats are 2\*\*53"
    ):
        append_rows(orders(old.parent, x=Int64), repo_config(tmp_path), rows)


@pytest.mark.parametrize("cell", [True, 7.5, day(1), decimal.Decimal("7.50")], ids=str)
def test_keys_that_no_reader_would_look_up_are_not_appended(tmp_path, cell):
    shop = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
    old = write(tmp_path / "orders" / "old.parquet", sid=["7"], x=[1])
    view = orders(old.parent, entity=shop, x=Int64)
    rows = pa.table({"cid": [1], "sid": [cell], "t": pa.array([day(2)], TIME), "x": [2]})
    with pytest.raises(
        ColumnTypeError, match=r"`orders`: column `sid` of the rows .* are not looked up as"
    ):
        append_rows(view, repo_config(tmp_path), rows)
    assert [path.name for path in old.parent.iterdir()] == ["old.parquet"]
    assert append_rows(view, repo_config(tmp_path), rows.set_column(1, "sid", pa.array([7])))


DATES, TIMES_THERE = ["2026-01-29", "2026-01-30"], ["2026-01-29 05:00:00", "2026-01-30 00:00:00"]
TIME_FOLDERS = [
    (String, DATES, dt.date(2026, 1, 31), "dt=2026-01-31"),
    (String, DATES, None, f"dt={HIVE_NULL}"),
    (UnixTimestamp, DATES, pd.Timestamp("2026-01-31", tz="UTC"), "dt=2026-01-31"),
    (UnixTimestamp, DATES, 1769817600, "dt=2026-01-31"),
    (None, DATES, pd.Timestamp("2026-01-31"), "dt=2026-01-31"),
    (None, DATES, dt.date(2026, 1, 31), "dt=2026-01-31"),
    (None, ["20260129", "20260130"], dt.date(2026, 1, 31), "dt=20260131"),
    (None, TIMES_THERE, pd.Timestamp("2026-01-31 05:00"), "dt=2026-01-31%2005%3A00%3A00"),
    (UnixTimestamp, TIMES_THERE, pd.Timestamp("2026-01-31"), "dt=2026-01-31%2000%3A00%3A00"),
    (UnixTimestamp, ["2026-01-29T05:00:00Z"], pd.Timestamp("2026-01-31", tz="Asia/Kolkata"),
     "dt=2026-01-30T18%3A30%3A00Z"),
]  # fmt: skip


def append_in(folder, dtype, texts, value) -> Path:
    """The new file of a row of customer 9 in a source of folders `dt=<text>`."""
    in_folders(folder / "orders", "dt", *texts)
    view = orders(folder / "orders", total=Int64, **({} if dtype is None else {"dt": dtype}))
    rows = pa.Table.from_pandas(row(9, dt=value))
    (new,) = append_rows(view, repo_config(folder), rows)
    return Path(new)


@pytest.mark.parametrize(("dtype", "texts", "value", "folder"), TIME_FOLDERS, ids=str)
def test_times_go_into_folders_that_are_named_like_those_there(
    tmp_path, dtype, texts, value, folder
):
    assert append_in(tmp_path, dtype, texts, value).parent.name == folder


@pytest.mark.parametrize("dtype", [None, String, UnixTimestamp], ids=str)
def test_hours_are_not_cut_off_for_folders_of_days(tmp_path, dtype):
    message = r"`orders`: column `dt`.*named like `dt=2026-01-\d\d`"
    with pytest.raises(ColumnTypeError, match=message):
        append_in(tmp_path, dtype, DATES, pd.Timestamp("2026-01-31 05:00"))


@pytest.mark.parametrize("texts", [DATES, TIMES_THERE], ids=str)
def test_a_folder_whose_name_is_another_text_than_a_push_writes_is_refused(tmp_path, texts):
    message = "`orders`: column `dt`.*STRING: 1 of 1 values of type timestamp.*another text"
    with pytest.raises(ColumnTypeError, match=message):
        append_in(tmp_path, String, texts, pd.Series(pd.to_datetime(["2026-01-31"])).iloc[0])


@pytest.mark.parametrize("dtype", [None, String, Bytes], ids=str)
def test_the_text_that_is_a_null_of_folders_is_refused(tmp_path, dtype):
    value = HIVE_NULL.encode() if dtype is Bytes else HIVE_NULL
    with pytest.raises(ColumnTypeError, match=f"`orders`: column `dt`.*1 of 1.*`{HIVE_NULL}`"):
        append_in(tmp_path, dtype, ["a", "b"], value)
    assert len([*(tmp_path / "orders").rglob("*.parquet")]) == 2


def test_an_append_refuses_integers_as_event_times(shop, tmp_path):
    old = write(tmp_path / "orders" / "old.parquet", total=[1])
    shop.apply([CUSTOMER, orders(old.parent, total=Int64)])
    with pytest.raises(ColumnTypeError, match=r"`t`.*unit=.s."):
        shop.write_to_offline_store(
            "orders", pd.DataFrame({"cid": [2], "t": [1767312000], "total": [9]})
        )
    assert list(old.parent.iterdir()) == [old]


LATE_ON_A_DAY = {"cid": [2], "t": pd.to_datetime([day(2, 5)]), "total": [9]}


@pytest.fixture
def orders_by_day(shop, tmp_path) -> Path:
    """The folder of `orders`, applied, whose event times are dates."""
    old = write(tmp_path / "orders" / "old.parquet", t=pa.array([day(1).date()]), total=[1])
    shop.apply([CUSTOMER, orders(old.parent, total=Int64)])
    return old.parent


def test_an_append_refuses_hours_where_event_times_are_dates(shop, orders_by_day):
    with pytest.raises(ColumnTypeError, match="`t`"):
        shop.write_to_offline_store("orders", pd.DataFrame(LATE_ON_A_DAY))
    assert [path.name for path in orders_by_day.iterdir()] == ["old.parquet"]


@pytest.mark.usefixtures("orders_by_day")
def test_no_entity_sees_a_row_that_was_appended_for_later(shop):
    with contextlib.suppress(ColumnTypeError):
        shop.write_to_offline_store("orders", pd.DataFrame(LATE_ON_A_DAY))
    assert history(shop, customers(1, 2, day_number=2, hour=1), "total") == [1, None]


def test_a_history_does_not_begin_with_times_that_nobody_can_read(shop, tmp_path):
    view = orders(tmp_path / "empty", total=Int64)
    for times in ([1767312000], ["2026-01-02"]):
        table = pa.table({"cid": [2], "t": times, "total": [9]})
        with pytest.raises(ColumnTypeError, match=r"`t` of the rows to append is .*unit=.s."):
            append_rows(view, shop.config, table)
    assert not (tmp_path / "empty").exists()


def test_logs_that_would_not_come_back_equal_are_refused(shop, tmp_path):
    old = write(tmp_path / "orders.parquet", total=[1])
    view = orders(old, total=Int64)
    logs = LoggingConfig(destination=FileLoggingDestination(path=str(tmp_path / "logs")))
    service = FeatureService(name="service", features=[view], logging_config=logs)
    shop.apply([CUSTOMER, view, service])
    source = FeatureServiceLoggingSource(service, "p")
    schema = source.get_schema(shop.registry)
    row = {
        name: pa.array([9.5]).cast(pa.float64()) if name.endswith("total") else pa.nulls(1, kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
    }
    with pytest.raises(ColumnTypeError, match=r"logs for .*column `orders__total` is double"):
        S3ParquetOfflineStore.write_logged_features(
            shop.config, pa.table(row), source, logs, shop.registry
        )
    assert not (tmp_path / "logs").exists()


def test_logs_of_types_that_feast_has_no_form_for_are_refused_by_type(shop, tmp_path):
    view = orders(write(tmp_path / "orders.parquet", x=["{}"]), x=Json)
    logs = LoggingConfig(destination=FileLoggingDestination(path=str(tmp_path / "logs")))
    service = FeatureService(name="service", features=[view], logging_config=logs)
    shop.apply([CUSTOMER, view, service])
    with pytest.raises(OfflineStoreError, match="no form for logs of features of type Json"):
        S3ParquetOfflineStore.write_logged_features(
            shop.config,
            pa.table({}),
            FeatureServiceLoggingSource(service, "p"),
            logs,
            shop.registry,
        )


# Folders


def in_folders(folder: Path, name: str, *texts: str, **more) -> None:
    """A file in a folder for each text of a hive column; customers are numbered from 1."""
    for number, text in enumerate(texts, 1):
        path = folder / f"{name}={text}" / "old.parquet"
        write(path, cid=pa.array([number]), total=pa.array([number * 10]), **more)


def row(cid: int, **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"cid": [cid], "t": pd.to_datetime([day(2)]), "total": [cid * 10]}
        | {name: [value] for name, value in columns.items()}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "texts", "values"),
    [
        pytest.param(String, ["02134", "10001"], ["02134", "10001"], id="zip codes"),
        pytest.param(String, ["7", "007"], ["7", "007"], id="alike as numbers"),
        pytest.param(Int64, ["7", "007"], [7, 7], id="numbers that are alike"),
        pytest.param(Int64, [str(2**63 - 1), "1"], [2**63 - 1, 1], id="19 digits"),
        pytest.param(Int64, ["2.0", "nan"], [2, None], id="as pandas writes them"),
        pytest.param(Int32, ["1", "2"], [1, 2], id="Int32"),
        pytest.param(Float64, ["1", "2.5"], [1.0, 2.5], id="Float64"),
        pytest.param(Bool, ["true", "false"], [True, False], id="Bool"),
        pytest.param(
            UnixTimestamp, ["2026-01-01", "2026-01-02 05:00:00Z"], [day(1), day(2, 5)], id="times"
        ),
        pytest.param(Bytes, ["a", "b"], [b"a", b"b"], id="Bytes"),
    ],
)
def test_columns_of_folders_are_read_as_they_are_declared(shop, tmp_path, dtype, texts, values):
    in_folders(tmp_path / "orders", "shop", *texts)
    shop.apply([CUSTOMER, orders(tmp_path / "orders", total=Int64, shop=dtype)])
    rows = customers(1, 2, 3)
    assert history(shop, rows, "shop", "total") == ([*values, None], [10, 20, None])
    job = shop.get_historical_features(rows, ["orders:shop"])
    with duckdb.connect(":memory:") as duck:
        duck.execute("SET TimeZone = 'Asia/Kolkata'")
        entity_df = job.entities.table  # noqa: F841 - the statement names it
        found = duck.sql(job.to_sql()).to_arrow_table()["shop"].to_pylist()
    assert found == [*values, None]


def test_a_key_of_folders_is_the_declared_text(shop, tmp_path):
    account = Entity(name="account", join_keys=["zip"], value_type=ValueType.STRING)
    in_folders(tmp_path / "orders", "zip", "02134", "10001")
    shop.apply([account, orders(tmp_path / "orders", account, total=Int64)])
    times = pa.array([day(3)] * 3, TIME)
    asked = pa.table({"zip": ["10001", "2134", "02134"], "event_timestamp": times})
    assert history(shop, asked, "total") == [20, None, 10]
    changes = shop.get_historical_features(
        None, ["orders:total"], start_date=day(1), end_date=day(2)
    ).to_arrow()
    assert changes["zip"].to_pylist() == ["02134", "10001"]
    in_sql = "SELECT zip, t AS event_timestamp FROM orders ORDER BY zip"
    assert history(shop, in_sql, "total") == [10, 20]


def test_a_folder_whose_text_is_not_of_the_declared_type_is_named(shop, tmp_path):
    in_folders(tmp_path / "orders", "shop", "7", "north")
    shop.apply([CUSTOMER, orders(tmp_path / "orders", total=Int64, shop=Int64)])
    with pytest.raises(ColumnTypeError, match=r"shop=north. is no value of type int64"):
        history(shop, customers(1), "shop")
    assert history(shop, customers(1, 2), "total") == [10, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "texts", "value", "folder"),
    [
        pytest.param(Int64, ["1", "2"], 2.0, "shop=2", id="2.0"),
        pytest.param(Int64, ["1", "2"], math.nan, f"shop={HIVE_NULL}", id="NaN"),
        pytest.param(Int64, ["01", "02"], 3, "shop=03", id="zeros"),
        pytest.param(String, ["02134", "10001"], "00501", "shop=00501", id="zip codes"),
        pytest.param(String, ["02134", "10001"], 501, "shop=501", id="an integer as a text"),
        pytest.param(Bool, ["true", "false"], 1, "shop=true", id="bool"),
        pytest.param(Float64, ["1.5", "2"], 3, "shop=3.0", id="float"),
        pytest.param(Bytes, ["a", "b"], b"c", "shop=c", id="bytes"),
    ],
)
def test_appended_rows_go_into_folders_of_the_declared_type(
    shop, tmp_path, dtype, texts, value, folder
):
    in_folders(tmp_path / "orders", "shop", *texts)
    shop.apply([CUSTOMER, orders(tmp_path / "orders", total=Int64, shop=dtype)])
    before = history(shop, customers(1, 2), "shop")
    shop.write_to_offline_store("orders", row(3, shop=value))
    (new,) = [path for path in (tmp_path / "orders").rglob("*.parquet") if "part-" in path.name]
    assert new.parent.name == folder
    expected = None if value != value else value  # noqa: PLR0124 - NaN
    expected = str(value) if dtype is String else expected
    assert history(shop, customers(1, 2, 3), "shop") == [*before, expected]
    assert history(shop, customers(1, 2, 3), "total") == [10, 20, 30]


@pytest.mark.parametrize(
    ("dtype", "texts", "value"),
    [
        pytest.param(Int64, ["1", "2"], 2.5, id="a fraction"),
        pytest.param(Int64, ["1", "2"], "3", id="text as an integer"),
        pytest.param(Bool, ["true", "false"], 2, id="2 as a bool"),
    ],
)
def test_rows_that_would_change_a_folder_column_are_refused(shop, tmp_path, dtype, texts, value):
    in_folders(tmp_path / "orders", "shop", *texts)
    shop.apply([CUSTOMER, orders(tmp_path / "orders", total=Int64, shop=dtype)])
    files = sorted((tmp_path / "orders").rglob("*"))
    with pytest.raises(ColumnTypeError, match="column `shop` of the rows to append"):
        shop.write_to_offline_store("orders", row(3, shop=value))
    assert sorted((tmp_path / "orders").rglob("*")) == files


@pytest.mark.parametrize("kind", [pa.string(), pa.date32()], ids=str)
def test_an_append_writes_a_derived_column_that_files_have_too(shop, tmp_path, kind):
    path = tmp_path / "orders" / "dt=2026-01-01" / "old.parquet"
    write(path, total=[10], dt=pa.array(["2026-01-01"]).cast(kind))
    source = S3ParquetSource(
        name="files",
        path=str(tmp_path / "orders"),
        timestamp_field="t",
        date_partition_column="dt",
    )
    view = FeatureView(
        name="orders",
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), Field(name="total", dtype=Int64)],
        source=source,
        ttl=dt.timedelta(0),
        online=False,
    )
    shop.apply([CUSTOMER, view])
    shop.write_to_offline_store("orders", row(2), reorder_columns=False)
    assert history(shop, customers(1, 2), "total") == [10, 20]
    (new,) = (tmp_path / "orders" / "dt=2026-01-02").iterdir()
    assert pq.read_schema(new).field("dt").type == kind


def test_an_append_to_partitions_that_are_columns_too_can_be_read(shop, tmp_path):
    folder = tmp_path / "orders"
    duckdb.sql(
        "COPY (SELECT 1::BIGINT cid, TIMESTAMPTZ '2026-01-01 00:00:00Z' t, 10::BIGINT total, "
        f"1::BIGINT shop) TO '{folder}' "
        "(FORMAT parquet, PARTITION_BY (shop), WRITE_PARTITION_COLUMNS true)"
    )
    shop.apply([CUSTOMER, orders(folder, total=Int64, shop=Int64)])
    assert history(shop, customers(1, 2), "total", "shop") == ([10, None], [1, None])
    shop.write_to_offline_store(
        "orders",
        pd.DataFrame({"cid": [2], "t": pd.to_datetime([day(2)]), "total": [20], "shop": [2]}),
    )
    assert history(shop, customers(1, 2), "total", "shop") == ([10, 20], [1, 2])
