"""Appends of lists, maps and structs: what a push makes of the same rows, or one error."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float64,
    Int64,
    Invalid,
    Json,
    Map,
    ScalarMap,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
)
from feast.types import Decimal as DecimalType
from order_files import TIME, day, orders, write
from repos import repo_config

from feast_dynamo_ext.arrow_types import common_type
from feast_dynamo_ext.declared import declared_as
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.dynamo.encoding.values import encode_column
from feast_dynamo_ext.dynamo.layouts.packed import unpack
from feast_dynamo_ext.dynamo.push import rows_of_frame
from feast_dynamo_ext.errors import ColumnTypeError, UnsupportedTypeError
from feast_dynamo_ext.parquet.append import append_rows
from feast_dynamo_ext.parquet.source import ParquetSource

NAN = math.nan
DAY = dt.date(2026, 1, 3)
A_MAP, NULL_MAP = pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.null())
AB = Struct({"a": Int64, "b": Int64})
OPEN_STRUCT = Struct({"_value": String})  # as Feast declares structs of no fields


def frame(cells, **columns) -> pd.DataFrame:
    given = {"cid": range(len(cells)), "t": [day(2)] * len(cells), **columns}
    return pd.DataFrame({**given, "x": pd.Series(cells, dtype=object)})


def append(folder: Path, dtype, cells) -> pa.ChunkedArray:
    """The column `x` of the file that an append of cells writes, as Feast hands them over."""
    view = orders(folder / "orders", x=dtype)
    (new,) = append_rows(view, repo_config(folder), pa.Table.from_pandas(frame(cells)))
    return pq.read_table(new)["x"]


def history(folder: Path, dtype) -> pa.ChunkedArray:
    """The column `x` of all files, as materialize and retrieval read them."""
    view = orders(folder / "orders", x=dtype)
    source = ParquetSource.open(view.batch_source, repo_config(folder)).within("t", None, None)
    return pa.Table.from_batches(source.scan(["x"]))["x"]


def served(messages) -> list:
    return [feast_value_type_to_python_type(message) for message in messages]


def pushed(dtype, cells) -> list:
    _, rows = rows_of_frame(orders(Path("nowhere"), x=dtype), frame(cells))
    return served(unpack(row.values)[0] for row in rows)


def materialized(dtype, column) -> list:
    encoded = encode_column(column.combine_chunks(), declared_as(dtype), "x")
    return served(Value.FromString(message) for message in encoded.to_pylist())


def comparable(value) -> str:
    """A value as a text: NaN is equal to nothing, and maps have no order."""
    if isinstance(value, dict):
        return str(sorted((key, comparable(part)) for key, part in value.items()))
    return str([*map(comparable, value)]) if isinstance(value, list) else repr(value)


# Declared type, what rows bring, what is served of them, and what an empty folder has of them:
# the type of the column, and its values.
FIRST = [
    (Bytes, [b"\xff", None], [b"\xff", None], pa.binary(), [b"\xff", None]),
    (Bytes, ["x"], [b"x"], pa.binary(), [b"x"]),
    (Array(Bytes), [["x"]], [[b"x"]], pa.list_(pa.binary()), [[b"x"]]),
    (Map, [{"a": 1}, None], [{"a": 1}, None], A_MAP, [[("a", 1)], None]),
    (Map, [{}], [{}], NULL_MAP, [[]]),
    (Map, [{"a": None}], [{"a": None}], NULL_MAP, [[("a", None)]]),
    (Map, [{"a": {"x": 1}}], [{"a": {"x": 1}}], pa.map_(pa.string(), A_MAP),
     [[("a", [("x", 1)])]]),
    (Map, [{"a": [1]}], [{"a": [1]}], pa.map_(pa.string(), pa.list_(pa.int64())), [[("a", [1])]]),
    (Map, [{"a": 1, "b": "x"}], [{"a": 1, "b": "x"}], pa.large_string(), ['{"a": 1, "b": "x"}']),
    (Map, ['{"a": 1}', '{"b": "x"}'], [{"a": 1}, {"b": "x"}], pa.large_string(),
     ['{"a": 1}', '{"b": "x"}']),
    (Map, [b"{}"], [{}], pa.large_string(), ["{}"]),
    (Map, [{"a": day(1), "b": 1}], [{"a": day(1), "b": 1}],
     pa.struct({"a": TIME, "b": pa.int64()}), [{"a": day(1), "b": 1}]),
    (Array(Map), [[{"a": 1}, {"a": 2}], []], [[{"a": 1}, {"a": 2}], []], pa.list_(A_MAP),
     [[[("a", 1)], [("a", 2)]], []]),
    (Array(Map), [[{}]], [[{}]], pa.list_(NULL_MAP), [[[]]]),
    (Array(Map), ['[{"a": 1}, {}]'], [[{"a": 1}, {}]], pa.large_string(), ['[{"a": 1}, {}]']),
    (OPEN_STRUCT, [{"a": 1}], [{"a": 1}], A_MAP, [[("a", 1)]]),
    (AB, [{"a": 1}, {"b": 2}, None], [{"a": 1, "b": None}, {"a": None, "b": 2}, None],
     pa.struct({"a": pa.int64(), "b": pa.int64()}),
     [{"a": 1, "b": None}, {"a": None, "b": 2}, None]),
    (AB, ['{"a": 1.0}'], [{"a": 1, "b": None}], pa.struct({"a": pa.int64(), "b": pa.int64()}),
     [{"a": 1, "b": None}]),
    (AB, [{}], [{"a": None, "b": None}], pa.struct({"a": pa.int64(), "b": pa.int64()}),
     [{"a": None, "b": None}]),
    (Struct({"a": Map, "b": Bytes}), [{"a": {"k": 1}, "b": b"y"}], [{"a": {"k": 1}, "b": b"y"}],
     pa.struct({"a": A_MAP, "b": pa.binary()}), [{"a": [("k", 1)], "b": b"y"}]),
    (Array(AB), [[{"a": 1}, {"b": 2}]], [[{"a": 1, "b": None}, {"a": None, "b": 2}]],
     pa.list_(pa.struct({"a": pa.int64(), "b": pa.int64()})),
     [[{"a": 1, "b": None}, {"a": None, "b": 2}]]),
    (Json, [{"a": None}], [{"a": None}], pa.large_string(), ['{"a": null}']),
    (Json, [b'{"a": 1}'], [{"a": 1}], pa.large_string(), ['{"a": 1}']),
    (Json, [Decimal("2.50"), None], [2.5, None], pa.large_string(), ["2.50", None]),
    (DecimalType, [Decimal("2.50"), Decimal("NaN")], [Decimal("2.50"), None], pa.string(),
     ["2.50", None]),
    (Array(Array(Float64)), [[[NAN]]], [[[NAN]]], pa.list_(pa.list_(pa.float64())), [[[None]]]),
    (Array(Array(Float64)), [[[1.5, NAN], []]], [[[1.5, NAN], []]],
     pa.list_(pa.list_(pa.float64())), [[[1.5, None], []]]),
    (Set(Float64), [{NAN}], [{NAN}], pa.list_(pa.float64()), [[None]]),
    (Array(Array(Int64)), [[[]], [], None], [[[]], [], None], pa.list_(pa.list_(pa.int64())),
     [[[]], [], None]),
    (Array(Array(Int64)), ["[[1], []]"], [[[1], []]], pa.list_(pa.list_(pa.int64())),
     [[[1], []]]),
    (Array(Array(String)), [[[]]], [[[]]], pa.list_(pa.list_(pa.null())), [[[]]]),
    (Array(Array(String)), [[["a"], []]], [[["a"], []]], pa.list_(pa.list_(pa.string())),
     [[["a"], []]]),
    (Array(Array(Array(Bool))), [[[[True], []], []]], [[[[True], []], []]],
     pa.list_(pa.list_(pa.list_(pa.bool_()))), [[[[True], []], []]]),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "cells", "online", "kind", "stored"), FIRST)
def test_a_history_begins_with_what_is_declared(tmp_path, dtype, cells, online, kind, stored):
    column = append(tmp_path, dtype, cells)
    assert common_type(column.type, kind) == column.type  # Parquet has its own names inside
    assert column.to_pylist() == stored
    assert comparable(pushed(dtype, cells)) == comparable(online)
    assert comparable(materialized(dtype, column)) == comparable(online)
    assert as_declared(column, declared_as(dtype)).to_pylist() == stored


# Declared type, and appends one after the other to a folder that was empty.
LATER = [
    (Bytes, ["x"], [b"\xff"]),
    (Array(Bytes), [["x"]], [[b"\xff"]]),
    (Map, [{"a": 1}], [{"b": 2}], ['{"c": 3}', '{"d": 4}'], [{}], [None]),
    (Map, [{"a": 1, "b": "x"}], [{"a": 2}], ['{"z": [1]}'], [{"a": None}]),
    (Map, [None], [{}], [{"a": None}], [{"a": 1}], [{"b": 2}]),
    (Array(Map), [[{"a": 1}]], [[{"b": 2}]], ['[{"x": 1}, {"y": 2}]'], [[]], [[{}]]),
    (OPEN_STRUCT, [{"a": 1}], [{"b": 2}]),
    (Struct({"a": Map}), [{"a": {"k": 1}}], [{"a": {"j": 1}}], ['{"a": {"i": 2}}']),
    (Array(Array(Int64)), [[[]]], [[[1]]], ["[[2]]"]),
    (Array(Array(String)), [[[]]], [[["a"]]]),
    (Json, [{"a": 1}], [[1]], [2.5], [b"{}"], [{"a": None}]),
]


@pytest.mark.parametrize("case", LATER)
def test_later_appends_are_what_a_push_takes(tmp_path, case):
    dtype, *batches = case
    for cells in batches:
        assert materialized(dtype, append(tmp_path, dtype, cells)) == pushed(dtype, cells)
    found = materialized(dtype, history(tmp_path, dtype))
    expected = [value for cells in batches for value in pushed(dtype, cells)]
    assert sorted(map(comparable, found)) == sorted(map(comparable, expected))


# What a file has, what is declared, what is appended, and what is stored of it.
INTO = [
    (pa.array([{"a": 1}]), Map, ['{"a": 5}'], [{"a": 5}]),
    (pa.array([{"a": 1, "b": 2}]), Map, ['{"a": 5, "b": null}'], [{"a": 5, "b": None}]),
    (pa.array([{"a": 1, "b": 2}]), Map, [{"a": 5, "b": None}], [{"a": 5, "b": None}]),
    (pa.array([{"a": 1, "b": 2}]), Json, ['{"a": 5, "b": 6}'], [{"a": 5, "b": 6}]),
    (pa.array([[("a", 1)]], A_MAP), Map, ['{"b": 5}', '{"c": 6.0}'], [[("b", 5)], [("c", 6)]]),
    (pa.array([[("a", None)]], pa.map_(pa.string(), pa.null())), Map, [{"b": 5}], [[("b", 5)]]),
    (pa.array([{"a": 1}]), AB, [{"a": 5, "b": 6}], [{"a": 5, "b": 6}]),
    (pa.array([{"a": 1}]), AB, [{"a": 5}], [{"a": 5, "b": None}]),
    (pa.array([[{"a": 1}]]), Array(AB), [[{"b": 6}]], [[{"a": None, "b": 6}]]),
    (pa.array([{"a": 1, "c": 2}]), Struct({"a": Int64}), [{"a": 5, "c": 6}], [{"a": 5, "c": 6}]),
    (pa.array([[]], pa.list_(pa.null())), Array(Int64), [[5]], [[5]]),
]  # fmt: skip


@pytest.mark.parametrize(("there", "dtype", "cells", "stored"), INTO)
def test_nested_values_are_appended_to_what_is_there(tmp_path, there, dtype, cells, stored):
    write(tmp_path / "orders" / "old.parquet", x=there)
    column = append(tmp_path, dtype, cells)
    assert column.to_pylist() == stored
    if stored != [{"a": 5, "c": 6}]:  # a push takes no field that is not declared
        assert materialized(dtype, column) == pushed(dtype, cells)


def test_what_the_first_and_the_last_file_leave_open_others_say(tmp_path):
    for name in ("a", "z"):
        write(tmp_path / "orders" / f"{name}.parquet", x=pa.array([{"a": 1}]), t=[day(1)])
    append(tmp_path, AB, [{"a": 5, "b": 6}])
    old = {"a": 1, "b": None}
    assert history(tmp_path, AB).to_pylist() == [old, {"a": 5, "b": 6}, old]
    for name in ("a", "z"):
        write(tmp_path / "orders" / f"{name}.parquet", x=pa.nulls(1), t=[day(1)])
    with pytest.raises(ColumnTypeError, match="does not fit the struct<a: int64"):
        append(tmp_path, Map, [{"k": "v"}])


MORE_KEYS = "json.dumps"
REFUSED = [
    # Arrow has given each map the keys of all.
    (None, Map, [{"a": 1}, {"b": 2}], MORE_KEYS),
    (None, Map, [{"a": 1}, {}], MORE_KEYS),
    (None, Map, [{"a": {"x": 1}}, {"a": {"y": 1}}], MORE_KEYS),
    (None, Array(Map), [[{"a": 1}, {"b": 2}]], MORE_KEYS),
    (None, OPEN_STRUCT, [{"a": 1}, {"b": 2}], MORE_KEYS),
    (None, Struct({"a": Map}), [{"a": {"x": 1}}, {"a": {"y": 1}}], MORE_KEYS),
    (None, Json, [{"a": None}, {"b": 1}], MORE_KEYS),
    (None, Array(Json), [[{"a": 1}, {"b": 2}]], MORE_KEYS),
    (None, Struct({"j": Json}), [{"j": {"a": 1}}, {"j": {"b": 1}}], MORE_KEYS),
    (pa.array([{"a": 1, "b": 1}]), Map, [{"a": 1}, {"b": 2}], MORE_KEYS),
    (pa.array([{"a": 1, "b": 1}]), Json, [{"a": 1}, {"b": 2}], MORE_KEYS),
    (pa.array([[{"a": 1, "b": 1}]]), Array(Map), [[{"a": 1}, {"b": 2}]], MORE_KEYS),
    (pa.array(["{}"]), Array(Map), [[{"a": 1}, {"b": 2}]], MORE_KEYS),
    # A file's struct would.
    (pa.array([{"a": 1, "b": 1}]), Map, [{"a": 1}], "cannot be struct"),
    (pa.array([{"a": 1, "b": 1}]), Map, ['{"a": 1}'], "cannot be struct"),
    (pa.array([{"a": 1}]), Map, [{}], "cannot be struct"),
    (pa.array([{"a": 1, "b": 1}]), Json, ['{"a": 1}'], "cannot be struct"),
    (pa.array([{"a": {"x": 1, "y": 1}}]), Struct({"a": Map}), [{"a": {"x": 1}}], "other keys"),
    # What materialize and a push refuse.
    (None, Map, [5], "cannot be MAP"),
    (None, Map, [[1]], "cannot be MAP"),
    (None, Map, ["x"], "cannot be JSON"),
    (None, Map, ["5"], "cannot be JSON of maps"),
    (None, Array(Map), [[1]], "cannot be MAP"),
    (None, Array(Map), ["[1]"], "cannot be JSON of lists of maps"),
    (pa.array(["{}"]), Map, [{"a": [1, None]}], "cannot be maps as Feast keeps them"),
    (pa.array(["{}"]), Map, [{"a": {"b": []}}], "cannot be maps as Feast keeps them"),
    (pa.array(["[]"]), Array(Map), [[{"a": [[1]]}]], "cannot be maps as Feast keeps them"),
    (pa.array(["[]"]), Array(Map), [[None, {"a": 1}]], "cannot be JSON of lists of maps"),
    (pa.array([5]), Map, [5], "cannot be MAP"),
    (pa.array(["x"]), Map, ["x"], "cannot be JSON"),
    (pa.array([[1]]), Array(Map), [[1]], "cannot be MAP"),
    (None, OPEN_STRUCT, [5], "cannot be STRUCT"),
    (None, ScalarMap, [5], "cannot be SCALAR_MAP"),
    (None, Array(Array(String)), [[1]], "cannot be VALUE_LIST"),
    (pa.array([{"a": 1}]), AB, [{"a": 1, "c": 2}], r"fields \['c'\] are not declared"),
    (pa.array([[("a", 1)]], A_MAP), Map, ['{"a": "x"}'], "cannot be map"),
    (pa.array([[("a", 1)]], A_MAP), Map, [{"a": 2.5}], "cannot be int64"),
]  # fmt: skip


@pytest.mark.parametrize(("there", "dtype", "cells", "message"), REFUSED)
def test_what_would_change_is_not_appended(tmp_path, there, dtype, cells, message):
    if there is not None:
        write(tmp_path / "orders" / "old.parquet", x=there)
    with pytest.raises(ColumnTypeError, match=f"column `x` of the rows.*{message}"):
        append(tmp_path, dtype, cells)
    assert len([*tmp_path.rglob("*.parquet")]) == (there is not None)


def test_a_key_that_a_map_has_twice_is_not_written_as_json(tmp_path):
    write(tmp_path / "orders" / "old.parquet", x=pa.array(["{}"]))
    rows = pa.Table.from_pandas(frame(["{}"]))
    twice = pa.array([[("secret", 1), ("secret", 2)]], A_MAP)
    rows = rows.set_column(rows.schema.get_field_index("x"), "x", twice)
    with pytest.raises(ColumnTypeError, match=r"1 of 1 values of .* JSON \(which has no") as error:
        append_rows(orders(tmp_path / "orders", x=Map), repo_config(tmp_path), rows)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "column"),
    [
        (Map, pa.array([5])),
        (Map, pa.array([[1]])),
        (Map, pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64()))),
        (Array(Map), pa.array([[1]])),
        (OPEN_STRUCT, pa.array([5])),
        (ScalarMap, pa.array([{"a": 1}])),
        (Array(Array(String)), pa.array([[5]])),
    ],
)
def test_a_column_of_another_form_is_neither_retrieved_nor_written(dtype, column):
    message = "1 of 1 values of type .* cannot be"
    with pytest.raises(ValueError, match=message):
        as_declared(column, declared_as(dtype))
    with pytest.raises(ColumnTypeError, match=message):
        encode_column(column, declared_as(dtype), "x")


def test_fields_of_json_that_only_some_rows_have_are_their_own():
    texts = pa.array(['{"a": 1}', '{"a": 2, "c": {"d": 1}}'])
    (one, two) = materialized(AB, pa.chunked_array([texts]))
    assert one == {"a": 1, "b": None}
    assert two == {"a": 2, "b": None, "c": {"d": 1}}
    texts = pa.array(['{"a": {"x": 1}}', '{"a": {"y": 1}}'])
    found = materialized(Struct({"a": Map}), pa.chunked_array([texts]))
    assert found == [{"a": {"x": 1}}, {"a": {"y": 1}}]
    with pytest.raises(ColumnTypeError, match="keys that are not declared"):
        materialized(AB, pa.chunked_array([pa.array(['{"a": 1.0}', '{"a": 2, "c": 1}'])]))


# Declared type, what a push brings, the same as JSON texts in a file, and what is served.
JSON_INSIDE = [
    (Array(Json), [[{"a": 1}, {"b": 2}, None, "3", [4]]], ['[{"a": 1}, {"b": 2}, null, "3", [4]]'],
     [[{"a": 1}, {"b": 2}, None, 3, [4]]]),
    (Struct({"j": Json}), [{"j": {"a": 1}}, {"j": {"b": 1}}, {"j": 2.5}],
     ['{"j": {"a": 1}}', '{"j": {"b": 1}}', '{"j": 2.5}'],
     [{"j": '{"a": 1}'}, {"j": '{"b": 1}'}, {"j": "2.5"}]),
    (Array(Array(Json)), [[[{"a": 1}, {"b": 2}]]], ['[[{"a": 1}, {"b": 2}]]'],
     [[['{"a": 1}', '{"b": 2}']]]),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "cells", "texts", "online"), JSON_INSIDE)
def test_json_inside_of_others_keeps_its_own_keys(tmp_path, dtype, cells, texts, online):
    assert pushed(dtype, cells) == online
    assert pushed(dtype, texts) == online
    assert materialized(dtype, pa.chunked_array([pa.array(texts)])) == online
    assert materialized(dtype, append(tmp_path, dtype, texts)) == online


def test_a_push_takes_the_declared_fields_alone():
    message = r"`orders`: `x`: its fields \['c', 'd'\] are not declared"
    for cells in ([{"a": 1, "c": 2, "d": 3}], [json.dumps({"a": 1, "c": 2, "d": 3})]):
        with pytest.raises(ColumnTypeError, match=message):
            pushed(AB, cells)
    with pytest.raises(ColumnTypeError, match=r"`orders`: `x`: 1 of 2 values .* cannot be JSON"):
        pushed(AB, ['{"a": 1}', "{"])
    rows = frame([{"a": 1}])
    rows["x"] = pd.array([{"a": 1}], pd.ArrowDtype(pa.struct({"a": pa.int64()})))
    _, (row,) = rows_of_frame(orders(Path("nowhere"), x=AB), rows)
    assert served([unpack(row.values)[0]]) == [{"a": 1, "b": None}]
    identifier = uuid.UUID(int=7)
    assert pushed(Struct({"a": Uuid}), [{"a": identifier}]) == [{"a": identifier}]


@pytest.mark.parametrize(
    ("dtype", "cells"),
    [
        (Map, [{"a": DAY}, {"a": day(2, 5)}]),
        (Array(Map), [[{"a": day(2, 5)}, {"a": 5}]]),
        (ScalarMap, [{1: DAY, 2: day(2, 5)}]),
        (Struct({"a": UnixTimestamp}), [{"a": DAY}, {"a": day(2, 5)}]),
        (Struct({"a": Array(UnixTimestamp)}), [{"a": [day(2, 5), 5]}]),
        (Array(Array(UnixTimestamp)), [[[DAY, day(2, 5)]]]),
    ],
)
def test_times_beside_other_objects_inside_of_others_are_refused_too(dtype, cells):
    with pytest.raises(ColumnTypeError, match="`orders`: `x` holds objects of several types"):
        pushed(dtype, cells)


def test_a_history_that_begins_with_dates_takes_hours_later(tmp_path):
    view, config = orders(tmp_path / "orders", x=Int64), repo_config(tmp_path)
    for times in ([DAY], [day(4, 5)]):
        (new,) = append_rows(view, config, pa.Table.from_pandas(frame([1], t=times)))
        assert pq.read_schema(new).field("t").type == TIME


def test_columns_that_parquet_has_no_form_for_are_named(tmp_path):
    with pytest.raises(UnsupportedTypeError, match=r"no form for the columns `x` \(struct<>\)"):
        append(tmp_path, Invalid, [{}])
    assert [*tmp_path.rglob("*.parquet")] == []
