"""Frames of a push as rows: Feast's where these are right, exact or refused where they are not."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from examples import cases
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.passthrough_provider import PassthroughProvider
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.Value_pb2 import (
    DoubleList,
    Int64List,
    MapList,
    RepeatedValue,
    StringList,
    Value,
)
from feast.protos.feast.types.Value_pb2 import Map as FeastMap
from feast.type_map import python_values_to_proto_values
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
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
from hypothesis import given
from hypothesis import strategies as st
from views import CUSTOMER

from feast_dynamo_ext.dynamo.layouts.packed import unpack
from feast_dynamo_ext.dynamo.push import parsed_times, rows_of_frame
from feast_dynamo_ext.dynamo.write import packed_rows, schema_of_rows
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    ConfigError,
    EntityKeyError,
)

UTC = dt.timezone.utc
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
MICROS = 1_767_323_045_678_901
BIG = 2**53 + 1
UUID = "12345678-9abc-def0-1234-56789abcdef0"


def view(created: str = "", mapping: dict | None = None, **features) -> FeatureView:
    source = FileSource(
        name="files",
        path="nothing",
        timestamp_field="t",
        created_timestamp_column=created,
        field_mapping=mapping,
    )
    fields = {"cid": Int64, **features}
    return FeatureView(
        name="orders",
        entities=[CUSTOMER],
        schema=[Field(name=name, dtype=dtype) for name, dtype in fields.items()],
        source=source,
    )


def frame(**columns) -> pd.DataFrame:
    rows = len(next(iter(columns.values())))
    given = {"cid": range(1, rows + 1), "t": pd.to_datetime([MOMENT] * rows), **columns}
    return pd.DataFrame(given)


def values(dtype, cells) -> list[Value]:
    _, rows = rows_of_frame(view(n=dtype), frame(n=cells))
    return [unpack(row.values)[0] for row in rows]


def by_feast(declared, rows, field_mapping=None):
    made = PassthroughProvider._prep_rows_to_write_for_ingestion(declared, rows, field_mapping)
    schema = schema_of_rows(declared, made)
    return schema, list(packed_rows(declared.name, schema, made))


# What Feast writes of each type and is right.
RIGHT = {
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Float32: st.floats(width=32, allow_nan=False),
    Float64: st.floats(allow_nan=False),
    Bool: st.booleans(),
    String: st.text(max_size=20),
    Bytes: st.binary(min_size=1, max_size=20),
    Uuid: st.uuids().map(str),
    DecimalType: st.decimals(-(10**6), 10**6, places=2),
    Array(Int64): st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    Array(Float64): st.lists(st.floats(allow_nan=False), min_size=1, max_size=3),
    Array(String): st.lists(st.text(max_size=5), min_size=1, max_size=3),
    Map: st.fixed_dictionaries({"a": st.integers(0, 9), "b": st.text(min_size=1, max_size=3)}),
    Json: st.sampled_from(["1", '{"a": [1, null]}', '"x"']),
    UnixTimestamp: st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2200, 1, 1)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
}


@st.composite
def pushes(draw):
    kinds = draw(st.lists(st.sampled_from(list(RIGHT)), min_size=1, max_size=4))
    rows = draw(st.integers(1, 4))
    # Feast takes an integer column with a missing value for floats.
    columns = {
        f"f{at}": pd.Series(
            draw(st.lists(RIGHT[kind], min_size=rows, max_size=rows)), dtype=object
        )
        for at, kind in enumerate(kinds)
    }
    return view(**{f"f{at}": kind for at, kind in enumerate(kinds)}), frame(**columns)


@given(pushes())
@cases(150)
def test_what_feast_keeps_is_written_as_feast_writes_it(push):
    declared, rows = push
    schema, ours = rows_of_frame(declared, rows)
    expected_schema, expected = by_feast(declared, rows)
    assert schema == expected_schema
    assert [row[::2] for row in ours] == [row[::2] for row in expected]
    for row, other in zip(ours, expected, strict=True):
        # Maps have no order.
        assert RepeatedValue.FromString(row.values) == RepeatedValue.FromString(other.values)


def nested(**value) -> Value:
    return Value(list_val=RepeatedValue(val=[Value(**value)]))


def fields(**values) -> Value:
    return Value(struct_val=FeastMap(val=values))


WRITTEN = [
    (Int64, pd.Series([BIG, None], dtype=object), [Value(int64_val=BIG), Value()]),
    (Int64, np.array([5.0, np.nan]), [Value(int64_val=5), Value()]),
    (Int64, pd.array([BIG, None], "Int64"), [Value(int64_val=BIG), Value()]),
    (Int64, [True], [Value(int64_val=1)]),
    (Bool, [1.0, np.nan], [Value(bool_val=True), Value()]),
    (Bool, [1, 0], [Value(bool_val=True), Value(bool_val=False)]),
    (Float64, [2**60], [Value(double_val=2.0**60)]),
    (Float64, [0.5, np.nan], [Value(double_val=0.5), Value()]),
    (Float32, [0.1], [Value(float_val=np.float32(0.1))]),
    (Float32, [20_000_000], [Value(float_val=2e7)]),
    (String, [12.0, np.nan], [Value(string_val="12"), Value()]),
    (String, pd.array(["ä", None], "string"), [Value(string_val="ä"), Value()]),
    (UnixTimestamp, [pd.Timestamp(MOMENT), pd.NaT], [
        Value(unix_timestamp_val=1_767_323_045), Value()]),
    (UnixTimestamp, [5.0, np.nan], [Value(unix_timestamp_val=5), Value()]),
    (UnixTimestamp, [-62_135_596_800, 253_402_300_799], [
        Value(unix_timestamp_val=-62_135_596_800), Value(unix_timestamp_val=253_402_300_799)]),
    (Uuid, [uuid.UUID(UUID), None], [Value(uuid_val=UUID), Value()]),
    (Uuid, [uuid.UUID(UUID).bytes], [Value(uuid_val=UUID)]),
    (Json, [{"a": 1}, [1], None, "2"], [
        Value(json_val='{"a": 1}'), Value(json_val="[1]"), Value(), Value(json_val="2")]),
    (DecimalType, [Decimal("0.10"), None], [Value(decimal_val="0.10"), Value()]),
    (Array(Int64), [[BIG, 1], None], [Value(int64_list_val=Int64List(val=[BIG, 1])), Value()]),
    (Array(Float64), [np.array([1, 2])], [Value(double_list_val=DoubleList(val=[1.0, 2.0]))]),
    (Array(String), [["a", ""]], [Value(string_list_val=StringList(val=["a", ""]))]),
    (Array(Array(Int64)), [[[1.0, 2.0]], None], [
        nested(int64_list_val=Int64List(val=[1, 2])), Value()]),
    (Array(Array(Float32)), [[[0.1]]], [
        nested(double_list_val=DoubleList(val=[float(np.float32(0.1))]))]),
    (Array(Array(Uuid)), [[[uuid.UUID(UUID)]]], [nested(uuid_list_val=StringList(val=[UUID]))]),
    (Array(Array(Uuid)), [[[UUID]]], [nested(uuid_list_val=StringList(val=[UUID]))]),
    (Array(Uuid), [[uuid.UUID(UUID)]], [Value(uuid_list_val=StringList(val=[UUID]))]),
    (Struct({"a": Int64}), [{"a": 2.0}, None], [fields(a=Value(int64_val=2)), Value()]),
    (Struct({"a": Int64}), ['{"a": 2}'], [fields(a=Value(int64_val=2))]),
    (Array(Struct({"a": Bool})), [[{"a": 1}]], [Value(struct_list_val=MapList(
        val=[fields(a=Value(bool_val=True)).struct_val]))]),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "cells", "expected"), WRITTEN, ids=str)
def test_values_are_exact(dtype, cells, expected):
    assert values(dtype, cells) == expected


@pytest.mark.parametrize(
    ("dtype", "cells"),
    [
        (Map, [{"a": 1}, {"b": 2}, None]),
        (Map, [{"a": 1}, {"a": "x"}]),
        (Map, [{"a": {"x": 1}}, {"a": {"y": 1}}]),
        (Array(Map), [[{"a": 1}, {"b": 2}]]),
        (ScalarMap, [{1: 2.5}, {3: 4.5}, None]),
    ],
    ids=str,
)
def test_maps_keep_their_own_keys(dtype, cells):
    assert values(dtype, cells) == python_values_to_proto_values(cells, dtype.to_value_type())


@pytest.mark.parametrize(
    ("dtype", "text", "expected"),
    [
        (Array(Array(Int64)), "[[1, 2], [3]]", [[1, 2], [3]]),
        (Array(Array(String)), '[["a"], ["b", "c"]]', [["a"], ["b", "c"]]),
        (Array(Array(String)), b'[["a"]]', [["a"]]),
    ],
)
def test_json_of_lists_of_lists_is_no_list_of_characters(dtype, text, expected):
    (from_json,), (from_lists,) = values(dtype, [text]), values(dtype, [expected])
    assert from_json == from_lists
    assert len(from_json.list_val.val) == len(expected)


def test_a_python_set_is_a_set():
    (value,) = values(Set(Int64), [{3, 1}])
    assert sorted(value.int64_set_val.val) == [1, 3]


REFUSED = [
    (Int64, [5.5, np.nan], "1 of 1 values"),
    (Int64, ["7"], "1 of 1 values"),
    (Int64, [pd.Timestamp(MOMENT)], "1 of 1 values"),
    (Int32, [2**40], "1 of 1 values"),
    (Bool, [0.5], "1 of 1 values"),
    (Bool, [2], "1 of 1 values"),
    (Bool, ["true"], "1 of 1 values"),
    (Float64, [BIG], "1 of 1 values"),
    (Float64, ["1.5"], "1 of 1 values"),
    (Float32, [1e300], "1 of 1 values"),
    (Json, ["{"], "cannot be JSON"),
    (Uuid, ["x"], "cannot be UUIDs"),
    (DecimalType, ["x"], "cannot be decimals"),
    (Array(Int64), [[1, None]], "1 nulls inside of its lists"),
    (Array(String), [["a", None]], "1 nulls inside of its lists"),
    (UnixTimestamp, [1.5], r"cannot be times \(whole seconds since 1970\)"),
    (UnixTimestamp, [1_767_312_000_000, 5], "1 of 2 .* cannot be times of the years 1 to 9999"),
    (UnixTimestamp, pd.Series([MOMENT, 1_767_312_000], dtype=object), "several types"),
    (UnixTimestamp, pd.Series([MOMENT.date(), MOMENT], dtype=object), "several types"),
    (Array(UnixTimestamp), [[MOMENT, 5]], "several types"),
    (UnixTimestamp, [253_402_300_800], "cannot be times of the years 1 to 9999"),
    (Array(Array(String)), ["[5]"], "its JSON is not a list of lists"),
    (Array(Array(Int64)), [[[1.5]]], "1 of 1 values of type double"),
    (Array(Array(Int64)), [[np.array([1.0, np.nan])]], "1 nulls inside of its lists"),
    (Array(Array(Int64)), [[[2**64 - 1]]], "over 64 bits"),
    (Struct({"a": Int64}), [{"a": 1.5}], "1 of 1 values of type double"),
    (Struct({"a": Int64}), ['{"a": 1.5}'], "1 of 1 values of type double"),
    (Array(Struct({"a": Uuid})), [[{"a": "x"}]], "cannot be UUIDs"),
    (Map, [{1: 2}, {"a": 2}], "several types"),
    (Int64, pd.Series([2**70], dtype=object), "over 64 bits"),
    (Int64, pd.Series([1, "secret"], dtype=object), "several types"),
    (String, pd.Series([["a"]], dtype=object), "1 of 1 values"),
]


@pytest.mark.parametrize(("dtype", "cells", "message"), REFUSED, ids=str)
def test_what_does_not_fit_is_refused_by_view_and_column(dtype, cells, message):
    with pytest.raises(ColumnTypeError, match=rf"^Feature view `orders`: `n`.*{message}") as told:
        values(dtype, cells)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("other", [1_767_312_000, MOMENT.date()])
def test_event_times_of_several_types_are_refused(other):
    rows = frame(n=[1, 2])
    rows["t"] = pd.Series([MOMENT, other], dtype=object)
    with pytest.raises(ColumnTypeError, match=r"`orders`: column `t` .* objects of several types"):
        rows_of_frame(view(n=Int64), rows)


def test_keys_are_exact_too():
    with pytest.raises(ColumnTypeError, match=r"`orders`: `cid`.*1 of 2 floats are 2\*\*53"):
        rows_of_frame(view(n=Int64), frame(n=[1, 2], cid=[1.0, 2.0**53]))
    with pytest.raises(EntityKeyError, match=r"`orders`: 1 rows have no `cid`"):
        rows_of_frame(view(n=Int64), frame(n=[1, 2], cid=[1.0, np.nan]))
    _, (row,) = rows_of_frame(view(n=Int64), frame(n=[1], cid=[7.0]))
    _, (same,) = rows_of_frame(view(n=Int64), frame(n=[1], cid=[7]))
    assert row == same


def test_names_are_those_of_the_field_mapping():
    declared = view(mapping={"old": "n"}, n=Int64)
    rows = frame(old=[BIG])
    assert rows_of_frame(declared, rows) == by_feast(declared, rows)


def test_a_key_may_be_the_index():
    _, rows = rows_of_frame(view(n=Int64), frame(n=[1, 2]).set_index("cid"))
    assert rows == rows_of_frame(view(n=Int64), frame(n=[1, 2]))[1]


def test_a_column_that_is_missing_or_there_twice_is_named():
    with pytest.raises(ColumnNotFoundError, match=r"`orders`: the rows lack the column `n`"):
        rows_of_frame(view(n=Int64), frame(m=[1]))
    twice = pd.concat([frame(n=[1]), frame(n=[2])[["n"]]], axis=1)
    with pytest.raises(ColumnTypeError, match=r"`orders`: the rows have several columns `n`"):
        rows_of_frame(view(n=Int64), twice)


# Times


@pytest.mark.parametrize(
    "time",
    [
        pd.Timestamp(MOMENT),
        pd.Timestamp(MOMENT).tz_convert("Asia/Kolkata"),
        pd.Timestamp(MOMENT.replace(tzinfo=None)),
        MOMENT,
        "2026-01-02 03:04:05.678901",
        "2026-01-02T03:04:05.678901Z",
        "2026-01-02T08:34:05.678901+05:30",
        np.datetime64("2026-01-02T03:04:05.678901"),
        np.datetime64("2026-01-02T03:04:05.678901000"),
    ],
    ids=str,
)
def test_times_without_a_zone_are_utc(time):
    _, rows = rows_of_frame(
        view(created="made", n=Int64),
        frame(n=[1, 2], t=[time] * 2, made=pd.Series([time] * 2, dtype=object)),
    )
    assert [row.event_us for row in rows] == [MICROS] * 2
    assert [row.created_us for row in rows] == [MICROS] * 2


def test_dates_are_midnights():
    _, rows = rows_of_frame(view(n=Int64), frame(n=[1], t=[MOMENT.date()]))
    assert [row.event_us for row in rows] == [1_767_312_000_000_000]


@pytest.mark.parametrize("null", [pd.NaT, None, np.nan])
def test_a_null_created_time_is_none(null):
    made = pd.Series([MOMENT, null], dtype=object)
    _, rows = rows_of_frame(view(created="made", n=Int64), frame(n=[1, 2], made=made))
    assert [row.created_us for row in rows] == [MICROS, None]


@pytest.mark.parametrize("null", [pd.NaT, None, np.nan])
@pytest.mark.parametrize("time", [MOMENT, "2026-01-02"], ids=str)
def test_a_null_event_time_is_refused_by_row(null, time):
    times = pd.Series([time, null, time, null], dtype=object)
    message = r"`orders`: 2 of 4 rows have no event time in `t` \(row 1, 3, counted from 0\)"
    with pytest.raises(ColumnTypeError, match=message):
        rows_of_frame(view(n=Int64), frame(n=[1, 2, 3, 4], t=times))


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
        (" 9999-12-31", 253_402_214_400_000_000),
        ("2400-02-29 00:00:00+02:00", 13_574_556_000_000_000),
        ("1600-02-29", -11_670_998_400_000_000),
        ("0001-01-01", -62_135_596_800_000_000),
        ("2026-01-31T12:00:00.000001000", 1_769_860_800_000_001),
    ],
)
def test_times_of_all_years_are_read_in_texts(text, micros):
    times = pd.Series([text, None, "2026-01-01"], dtype=object)
    parsed = parsed_times("t", times, "the rows")
    assert parsed.cast(pa.int64()).to_pylist() == [micros, None, 1_767_225_600_000_000]
    assert parsed.type == pa.timestamp("us", "UTC")


def test_days_of_numpy_and_units_beside_each_other_are_times():
    days = [np.datetime64("2026-01-01"), np.datetime64("2026-01-01T01", "ms"), MOMENT, pd.NaT]
    parsed = parsed_times("t", pd.Series(days, dtype=object), "the rows")
    assert parsed.cast(pa.timestamp("us")).cast(pa.int64()).to_pylist() == [
        1_767_225_600_000_000, 1_767_229_200_000_000, MICROS, None,
    ]  # fmt: skip


FINER = "1 of . times in `t` have a part below a microsecond, .*Round them"


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1_767_323_045], r"`t` has type int64.*unit='s'"),
        ([1.5], r"`t` has type double"),
        (["yesterday"], r"`t` holds a text that is not a time"),
        (["01/02/2026"], r"`t` holds a text that is not a time"),
        ([MOMENT, "2026-01-02"], r"`t` holds .*objects of several types"),
        ([None], r"1 of 1 rows have no event time in `t`"),
        (["0000-01-01"], "1 of 1 times in `t` are not of the years 1 to 9999"),
        (["3000-02-29"], r"`t` holds a text that is not a time"),
        ([np.datetime64("12026-01-01")], r"`t` holds a text that is not a time"),
        (["2026-01-01T00:00:00.000001001"], FINER),
        ([pd.Timestamp(1_001, tz="UTC"), None], FINER),
        ([np.datetime64(1_001, "ns")], FINER),
    ],
    ids=str,
)
def test_what_is_no_event_time_is_refused_by_name(times, message):
    rows = frame(n=range(len(times)), t=pd.Series(times, dtype=object))
    with pytest.raises(ColumnTypeError, match=message):
        rows_of_frame(view(n=Int64), rows)


# On-demand views


@pytest.mark.filterwarnings("ignore:.* experimental feature.*:RuntimeWarning")
def test_an_on_demand_view_keeps_its_keys_and_what_is_missing_is_null():
    base = view(n=Int64)

    @on_demand_feature_view(
        sources=[base],
        entities=[CUSTOMER],
        schema=[Field(name=name, dtype=Int64) for name in ("cid", "twice", "thrice")],
        mode="pandas",
        write_to_online_store=True,
    )
    def more(inputs: pd.DataFrame) -> pd.DataFrame:
        return inputs

    more.entity_columns = [Field(name="cid", dtype=Int64)]
    rows = pd.DataFrame({"cid": [1, 2], "twice": [BIG, None], "n": [1, 2]}, dtype=object)
    schema, ours = rows_of_frame(more, rows)
    assert dict(zip(schema.names, schema.types, strict=True)) == {
        "twice": "INT64",
        "thrice": "INT64",
        "cid": "INT64",
    }
    written = [dict(zip(schema.names, unpack(row.values), strict=True)) for row in ours]
    assert written == [
        {"twice": Value(int64_val=BIG), "thrice": Value(), "cid": Value(int64_val=1)},
        {"twice": Value(), "thrice": Value(), "cid": Value(int64_val=2)},
    ]
    assert all(row.created_us == row.event_us for row in ours)
    expected_schema, expected = by_feast(more, rows.assign(twice=[BIG, 1]))
    assert schema == expected_schema
    assert [row.key for row in ours] == [row.key for row in expected]


def test_a_view_without_entities_has_one_key():
    declared = FeatureView(
        name="orders",
        entities=[],
        schema=[Field(name="n", dtype=Int64)],
        source=FileSource(name="files", path="nothing", timestamp_field="t"),
    )
    _, rows = rows_of_frame(declared, frame(n=[1]))
    assert rows == by_feast(declared, frame(n=[1]))[1]


def test_a_view_of_several_keys_has_feasts():
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
    declared = FeatureView(
        name="orders",
        entities=[shop, CUSTOMER],
        schema=[
            Field(name="n", dtype=Int64),
            Field(name="cid", dtype=Int64),
            Field(name="shop_id", dtype=String),
        ],
        source=FileSource(name="files", path="nothing", timestamp_field="t"),
    )
    rows = frame(n=[1, 2], shop_id=["a", "ä"])
    assert rows_of_frame(declared, rows) == by_feast(declared, rows)


def test_arrow_columns_of_pandas():
    rows = frame(
        n=pd.array([BIG, None], pd.ArrowDtype(pa.int64())),
        t=pd.array([MOMENT] * 2, pd.ArrowDtype(pa.timestamp("ns", "UTC"))),
        text=pd.array([json.dumps({}), None], pd.ArrowDtype(pa.string())),
    )
    _, (first, second) = rows_of_frame(view(n=Int64, text=Json), rows)
    assert (first.event_us, second.event_us) == (MICROS, MICROS)
    assert list(unpack(first.values)) == [Value(int64_val=BIG), Value(json_val="{}")]
    assert list(unpack(second.values)) == [Value(), Value()]


def test_vectors_are_as_long_as_their_field_says():
    declared = view(n=Array(Float64))
    declared.features = [Field(name="n", dtype=Array(Float64), vector_index=True, vector_length=2)]
    with pytest.raises(ValueError, match="Vector length 1 does not match expected 2"):
        rows_of_frame(declared, frame(n=[[1.0, 2.0], [1.0]]))
    assert len(rows_of_frame(declared, frame(n=[[1.0, 2.0]]))[1]) == 1


def test_a_view_without_a_source_of_times_is_refused():
    declared = view(n=Int64)
    declared.batch_source = None
    with pytest.raises(ConfigError, match="`orders` has no batch source"):
        rows_of_frame(declared, frame(n=[1]))
