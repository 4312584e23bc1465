"""Columns encoded at once are what Feast's own functions make of their cells, one by one."""

from __future__ import annotations

import datetime as dt
import math
import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    BoolSet,
    BytesList,
    BytesSet,
    DoubleList,
    DoubleSet,
    FloatList,
    FloatSet,
    Int32List,
    Int32Set,
    Int64List,
    Int64Set,
    Map,
    MapKey,
    MapList,
    RepeatedValue,
    ScalarMap,
    ScalarMapEntry,
    StringList,
    StringSet,
    Value,
    ZonedTimestamp,
)
from feast.value_type import ValueType

from feast_dynamo_ext.dynamo.encoding.values import encode_column, encode_values
from feast_dynamo_ext.errors import ColumnTypeError, UnsupportedTypeError

UTC = dt.timezone.utc
BIG = 2**53 + 1  # no float holds it
UUIDS = [
    "00000000-0000-0000-0000-000000000000",
    "12345678-9abc-def0-1234-56789abcdef0",
]
MOMENT = dt.datetime(2026, 3, 29, 1, 30, 0, 999_999, tzinfo=UTC)  # 1774747800.999999
BEFORE_1970 = dt.datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)  # -1.5
IN_1960 = dt.datetime(1960, 1, 1, 0, 0, 0, 900_000, tzinfo=UTC)

# Every value type: declared type, Arrow type, cells, and the Value messages they are.
WRITTEN_OUT = [
    ("INT32", pa.int32(), [-1, 2**31 - 1, None], [
        Value(int32_val=-1), Value(int32_val=2**31 - 1), Value()]),
    ("INT32", pa.uint8(), [0, 255], [Value(int32_val=0), Value(int32_val=255)]),
    ("INT64", pa.int64(), [BIG, None, -BIG, 0], [
        Value(int64_val=BIG), Value(), Value(int64_val=-BIG), Value(int64_val=0)]),
    ("INT64", pa.uint64(), [BIG, None], [Value(int64_val=BIG), Value()]),
    ("INT64", pa.float64(), [3.0, None], [Value(int64_val=3), Value()]),
    ("INT64", pa.decimal128(38, 0), [Decimal(BIG), None], [Value(int64_val=BIG), Value()]),
    ("DOUBLE", pa.float64(), [0.0, -1.5, None], [
        Value(double_val=0.0), Value(double_val=-1.5), Value()]),
    ("DOUBLE", pa.float16(), [np.float16(1.5)], [Value(double_val=1.5)]),
    ("DOUBLE", pa.int64(), [7], [Value(double_val=7.0)]),
    ("DOUBLE", pa.int64(), [2**60], [Value(double_val=2.0**60)]),
    ("DOUBLE", pa.decimal128(5, 2), [Decimal("0.30")], [Value(double_val=0.3)]),
    ("FLOAT", pa.float32(), [0.5, None], [Value(float_val=0.5), Value()]),
    ("FLOAT", pa.float64(), [0.5, 0.1], [
        Value(float_val=0.5), Value(float_val=np.float32(0.1))]),
    ("FLOAT", pa.int64(), [20_000_000], [Value(float_val=20_000_000)]),
    ("BOOL", pa.bool_(), [True, False, None], [
        Value(bool_val=True), Value(bool_val=False), Value()]),
    ("BOOL", pa.float64(), [1.0, float("nan"), 0.0], [
        Value(bool_val=True), Value(), Value(bool_val=False)]),
    ("STRING", pa.string(), ["", "ä", None], [
        Value(string_val=""), Value(string_val="ä"), Value()]),
    ("STRING", pa.string_view(), ["ä" * 100, None], [Value(string_val="ä" * 100), Value()]),
    ("STRING", pa.int64(), [12], [Value(string_val="12")]),
    ("BYTES", pa.binary(), [b"", b"\xff", None], [
        Value(bytes_val=b""), Value(bytes_val=b"\xff"), Value()]),
    ("BYTES", pa.binary(2), [b"ab", None], [Value(bytes_val=b"ab"), Value()]),
    ("PDF_BYTES", pa.large_binary(), [b"%PDF"], [Value(bytes_val=b"%PDF")]),
    ("IMAGE_BYTES", pa.binary_view(), [b"\x89PNG"], [Value(bytes_val=b"\x89PNG")]),
    ("JSON", pa.string(), ['{"a":1}', None], [Value(json_val='{"a":1}'), Value()]),
    ("JSON", pa.list_(pa.int64()), [[1], None], [Value(json_val="[1]"), Value()]),
    ("UUID", pa.string(), [UUIDS[1], None], [Value(uuid_val=UUIDS[1]), Value()]),
    ("UUID", pa.binary(16), [uuid.UUID(UUIDS[1]).bytes, None], [
        Value(uuid_val=UUIDS[1]), Value()]),
    ("TIME_UUID", pa.large_string(), [UUIDS[1]], [Value(time_uuid_val=UUIDS[1])]),
    ("DECIMAL", pa.decimal128(9, 7), [Decimal("1.5"), Decimal("1E-7"), None], [
        Value(decimal_val="1.5000000"), Value(decimal_val="1E-7"), Value()]),
    ("DECIMAL", pa.string(), ["1.50"], [Value(decimal_val="1.50")]),
    ("UNIX_TIMESTAMP", pa.timestamp("ns", "UTC"), [MOMENT, BEFORE_1970, None], [
        Value(unix_timestamp_val=1_774_747_800), Value(unix_timestamp_val=-2), Value()]),
    ("UNIX_TIMESTAMP", pa.timestamp("s", "Europe/Berlin"), [MOMENT.replace(microsecond=0)], [
        Value(unix_timestamp_val=1_774_747_800)]),
    ("UNIX_TIMESTAMP", pa.int32(), [5], [Value(unix_timestamp_val=5)]),
    ("UNIX_TIMESTAMP", pa.date32(), [dt.date(1970, 1, 2), dt.date(1969, 12, 31), None], [
        Value(unix_timestamp_val=86_400), Value(unix_timestamp_val=-86_400), Value()]),
    ("UNIX_TIMESTAMP", pa.date64(), [dt.date(1970, 1, 2)], [Value(unix_timestamp_val=86_400)]),
    ("ZONED_TIMESTAMP", pa.timestamp("us", "Europe/Berlin"), [MOMENT, BEFORE_1970, None], [
        Value(zoned_timestamp_val=ZonedTimestamp(
            unix_timestamp=1_774_747_800, zone="Europe/Berlin")),
        Value(zoned_timestamp_val=ZonedTimestamp(unix_timestamp=-2, zone="Europe/Berlin")),
        Value()]),
    ("ZONED_TIMESTAMP", pa.timestamp("us"), [dt.datetime(1970, 1, 1), None], [  # noqa: DTZ001
        Value(zoned_timestamp_val=ZonedTimestamp()), Value()]),
    ("ZONED_TIMESTAMP", pa.timestamp("s", "+05:30"), [dt.datetime(1970, 1, 1, tzinfo=UTC)], [
        Value(zoned_timestamp_val=ZonedTimestamp(zone="UTC+05:30"))]),
    ("ZONED_TIMESTAMP", pa.timestamp("ms", "+00:00"), [dt.datetime(1970, 1, 1, tzinfo=UTC)], [
        Value(zoned_timestamp_val=ZonedTimestamp(zone="UTC"))]),
    ("INT32_LIST", pa.list_(pa.int16()), [[-1, 300], [], None], [
        Value(int32_list_val=Int32List(val=[-1, 300])),
        Value(int32_list_val=Int32List()), Value()]),
    ("INT64_LIST", pa.list_(pa.int64()), [[BIG, 0], None], [
        Value(int64_list_val=Int64List(val=[BIG, 0])), Value()]),
    ("INT64_LIST", pa.list_(pa.null()), [[], None], [Value(int64_list_val=Int64List()), Value()]),
    ("INT64_LIST", pa.list_(pa.float64()), [[1.0]], [Value(int64_list_val=Int64List(val=[1]))]),
    ("INT64_LIST", pa.string(), [f"[{BIG}]", None], [
        Value(int64_list_val=Int64List(val=[BIG])), Value()]),
    ("DOUBLE_LIST", pa.list_(pa.float32(), 2), [[0.5, 1.5], None], [
        Value(double_list_val=DoubleList(val=[0.5, 1.5])), Value()]),
    ("DOUBLE_LIST", pa.list_(pa.int64()), [[1]], [Value(double_list_val=DoubleList(val=[1.0]))]),
    ("DOUBLE_LIST", pa.binary(), [b"[0.5, 1]"], [
        Value(double_list_val=DoubleList(val=[0.5, 1.0]))]),
    ("FLOAT_LIST", pa.large_list(pa.float64()), [[0.5], []], [
        Value(float_list_val=FloatList(val=[0.5])), Value(float_list_val=FloatList())]),
    ("BOOL_LIST", pa.list_view(pa.bool_()), [[True, False], None], [
        Value(bool_list_val=BoolList(val=[True, False])), Value()]),
    ("STRING_LIST", pa.list_(pa.string()), [["a", ""], [], None], [
        Value(string_list_val=StringList(val=["a", ""])),
        Value(string_list_val=StringList()), Value()]),
    ("BYTES_LIST", pa.list_(pa.binary()), [[b"\xff", b""]], [
        Value(bytes_list_val=BytesList(val=[b"\xff", b""]))]),
    ("UUID_LIST", pa.list_(pa.string()), [UUIDS], [
        Value(uuid_list_val=StringList(val=UUIDS))]),
    ("UUID_LIST", pa.list_(pa.binary(16)), [[uuid.UUID(UUIDS[1]).bytes]], [
        Value(uuid_list_val=StringList(val=[UUIDS[1]]))]),
    ("TIME_UUID_LIST", pa.list_(pa.string()), [[UUIDS[1]]], [
        Value(time_uuid_list_val=StringList(val=[UUIDS[1]]))]),
    ("DECIMAL_LIST", pa.list_(pa.decimal128(9, 7)), [[Decimal("1E-7")]], [
        Value(decimal_list_val=StringList(val=["1E-7"]))]),
    ("JSON_LIST", pa.list_(pa.string()), [["{}", None], [], None], [
        Value(json_list_val=StringList(val=["{}", "null"])),
        Value(json_list_val=StringList()), Value()]),
    # Feast rounds those before 1970 up in lists and maps, and down in scalars.
    ("UNIX_TIMESTAMP_LIST", pa.list_(pa.timestamp("us", "UTC")), [[MOMENT, BEFORE_1970]], [
        Value(unix_timestamp_list_val=Int64List(val=[1_774_747_800, -2]))]),
    ("UNIX_TIMESTAMP_LIST", pa.list_(pa.timestamp("ns")), [[IN_1960], [BEFORE_1970]], [
        Value(unix_timestamp_list_val=Int64List(val=[-315_619_200])),
        Value(unix_timestamp_list_val=Int64List(val=[-2]))]),
    ("UNIX_TIMESTAMP_SET", pa.list_(pa.timestamp("ms")), [[IN_1960, BEFORE_1970]], [
        Value(unix_timestamp_set_val=Int64Set(val=[-315_619_200, -2]))]),
    ("VALUE_LIST", pa.list_(pa.list_(pa.timestamp("us"))), [[[IN_1960], [BEFORE_1970]]], [
        Value(list_val=RepeatedValue(val=[
            Value(unix_timestamp_list_val=Int64List(val=[-315_619_200])),
            Value(unix_timestamp_list_val=Int64List(val=[-2]))]))]),
    ("SCALAR_MAP", pa.map_(pa.timestamp("us"), pa.timestamp("us")), [[(IN_1960, BEFORE_1970)]], [
        Value(scalar_map_val=ScalarMap(val=[ScalarMapEntry(
            key=MapKey(unix_timestamp_key=-315_619_200),
            value=Value(unix_timestamp_val=-2))]))]),
    ("STRUCT_LIST", pa.list_(pa.struct({"a": pa.timestamp("us")})), [[{"a": IN_1960}]], [
        Value(struct_list_val=MapList(val=[Map(
            val={"a": Value(unix_timestamp_val=-315_619_200)})]))]),
    ("UNKNOWN", pa.timestamp("us"), [IN_1960], [Value(unix_timestamp_val=-315_619_200)]),
    ("UNIX_TIMESTAMP_LIST", pa.list_(pa.int64()), [[7]], [
        Value(unix_timestamp_list_val=Int64List(val=[7]))]),
    ("INT32_SET", pa.list_(pa.int32()), [[5, 5], [], None], [
        Value(int32_set_val=Int32Set(val=[5])), Value(int32_set_val=Int32Set()), Value()]),
    ("INT64_SET", pa.list_(pa.int64()), [[BIG, BIG - 1, BIG]], [
        Value(int64_set_val=Int64Set(val=[BIG, BIG - 1]))]),
    ("DOUBLE_SET", pa.list_(pa.float64()), [[0.5, 0.5]], [
        Value(double_set_val=DoubleSet(val=[0.5]))]),
    ("FLOAT_SET", pa.list_(pa.float32()), [[0.5]], [Value(float_set_val=FloatSet(val=[0.5]))]),
    ("BOOL_SET", pa.list_(pa.bool_()), [[True, True, False]], [
        Value(bool_set_val=BoolSet(val=[True, False]))]),
    ("STRING_SET", pa.list_(pa.string()), [["a", "", "a"], ["a"]], [
        Value(string_set_val=StringSet(val=["a", ""])),
        Value(string_set_val=StringSet(val=["a"]))]),
    ("BYTES_SET", pa.list_(pa.binary()), [[b"a", b"a"]], [
        Value(bytes_set_val=BytesSet(val=[b"a"]))]),
    ("UUID_SET", pa.list_(pa.string()), [UUIDS], [Value(uuid_set_val=StringSet(val=UUIDS))]),
    ("TIME_UUID_SET", pa.list_(pa.string()), [UUIDS], [
        Value(time_uuid_set_val=StringSet(val=UUIDS))]),
    ("DECIMAL_SET", pa.list_(pa.decimal128(3, 1)), [[Decimal("1.5"), Decimal("1.5")]], [
        Value(decimal_set_val=StringSet(val=["1.5"]))]),
    ("UNIX_TIMESTAMP_SET", pa.list_(pa.timestamp("s")), [[dt.datetime(1970, 1, 2)]], [  # noqa: DTZ001
        Value(unix_timestamp_set_val=Int64Set(val=[86_400]))]),
    ("MAP", pa.map_(pa.string(), pa.int32()), [[("a", 1), ("b", None)], [], None], [
        Value(map_val=Map(val={"a": Value(int64_val=1), "b": Value()})),
        Value(map_val=Map()), Value()]),
    ("MAP", pa.map_(pa.string(), pa.float32()), [[("a", 0.5), ("nan", float("nan"))]], [
        Value(map_val=Map(val={"a": Value(double_val=0.5), "nan": Value()}))]),
    ("MAP", pa.struct({"a": pa.timestamp("us", "UTC"), "b": pa.list_(pa.string())}),
     [{"a": BEFORE_1970, "b": ["x"]}, {"a": None, "b": None}, None], [
        Value(map_val=Map(val={
            "a": Value(unix_timestamp_val=-2),
            "b": Value(string_list_val=StringList(val=["x"]))})),
        Value(map_val=Map(val={"a": Value(), "b": Value()})), Value()]),
    ("MAP", pa.map_(pa.string(), pa.list_(pa.map_(pa.string(), pa.bool_()))),
     [[("a", [[("b", True)]])]], [
        Value(map_val=Map(val={"a": Value(map_list_val=MapList(
            val=[Map(val={"b": Value(bool_val=True)})]))}))]),
    ("MAP", pa.string(), ['{"a": {"b": [1.5]}}', None], [
        Value(map_val=Map(val={"a": Value(map_val=Map(val={
            "b": Value(double_list_val=DoubleList(val=[1.5]))}))})), Value()]),
    ("MAP_LIST", pa.list_(pa.map_(pa.string(), pa.string())), [[[("a", "x")], []], [], None], [
        Value(map_list_val=MapList(val=[Map(val={"a": Value(string_val="x")}), Map()])),
        Value(map_list_val=MapList()), Value()]),
    ("STRUCT", pa.struct({"a": pa.int64(), "b": pa.decimal128(3, 1)}),
     [{"a": BIG, "b": Decimal("1.5")}, {"a": None, "b": None}, None], [
        Value(struct_val=Map(val={"a": Value(int64_val=BIG), "b": Value(decimal_val="1.5")})),
        Value(struct_val=Map(val={"a": Value(), "b": Value()})), Value()]),
    ("STRUCT", pa.string(), ['{"a": 1}'], [
        Value(struct_val=Map(val={"a": Value(int64_val=1)}))]),
    ("STRUCT_LIST", pa.list_(pa.struct({"a": pa.int64()})), [[{"a": 1}], [], None], [
        Value(struct_list_val=MapList(val=[Map(val={"a": Value(int64_val=1)})])),
        Value(struct_list_val=MapList()), Value()]),
    ("SCALAR_MAP", pa.map_(pa.int32(), pa.string()), [[(2, "b"), (1, None)], [], None], [
        Value(scalar_map_val=ScalarMap(val=[
            ScalarMapEntry(key=MapKey(int64_key=2), value=Value(string_val="b")),
            ScalarMapEntry(key=MapKey(int64_key=1), value=Value())])),
        Value(scalar_map_val=ScalarMap()), Value()]),
    ("SCALAR_MAP", pa.map_(pa.bool_(), pa.struct({"a": pa.int64()})), [[(False, {"a": 1})]], [
        Value(scalar_map_val=ScalarMap(val=[ScalarMapEntry(
            key=MapKey(bool_key=False),
            value=Value(map_val=Map(val={"a": Value(int64_val=1)})))]))]),
    ("VALUE_LIST", pa.list_(pa.list_(pa.int64())), [[[BIG], [], None], [], None], [
        Value(list_val=RepeatedValue(val=[
            Value(int64_list_val=Int64List(val=[BIG])), Value(int64_list_val=Int64List()),
            Value()])),
        Value(list_val=RepeatedValue()), Value()]),
    ("VALUE_LIST", pa.list_(pa.list_(pa.list_(pa.string()))), [[[["a"], None], []]], [
        Value(list_val=RepeatedValue(val=[
            Value(list_val=RepeatedValue(val=[
                Value(string_list_val=StringList(val=["a"])), Value()])),
            Value(list_val=RepeatedValue())]))]),
    ("VALUE_SET", pa.list_(pa.list_(pa.bool_())), [[[True, True], [True]]], [
        Value(set_val=RepeatedValue(val=[
            Value(bool_list_val=BoolList(val=[True, True])),
            Value(bool_list_val=BoolList(val=[True]))]))]),
    ("UNKNOWN", pa.int64(), [3, None], [Value(int64_val=3), Value()]),
    ("NULL", pa.null(), [None, None], [Value(), Value()]),
]  # fmt: skip
IDS = [f"{kind}-{arrow}"[:60] for kind, arrow, *_ in WRITTEN_OUT]


def parsed(encoded):
    encoded.validate(full=True)
    assert encoded.type == pa.large_binary()
    assert not encoded.null_count
    return [Value.FromString(cell) for cell in encoded.to_pylist()]


@pytest.mark.parametrize(("kind", "arrow", "cells", "expected"), WRITTEN_OUT, ids=IDS)
def test_a_column_written_out(kind, arrow, cells, expected):
    encoded = encode_column(pa.array(cells, arrow), ValueType[kind], "f")
    assert parsed(encoded) == expected
    if "map" not in str(arrow) and "struct" not in str(arrow) and "{" not in str(cells):
        assert encoded.to_pylist() == [value.SerializeToString() for value in expected]


@pytest.mark.parametrize(("kind", "arrow", "cells", "expected"), WRITTEN_OUT, ids=IDS)
def test_any_layout_of_a_column_gives_the_same(kind, arrow, cells, expected):
    whole = pa.array([*cells, *cells[::-1], *cells], arrow)
    inner = whole.slice(len(cells) - 1, len(cells) + 2)
    values = [*expected, *expected[::-1], *expected][len(cells) - 1 :][: len(cells) + 2]
    assert parsed(encode_column(inner, ValueType[kind], "f")) == values
    chunked = pa.chunked_array([inner.slice(0, 1), inner.slice(0, 0), inner.slice(1)])
    assert parsed(encode_column(chunked, ValueType[kind], "f")) == values
    assert parsed(encode_column(inner.slice(0, 0), ValueType[kind], "f")) == []
    assert parsed(encode_column(pa.chunked_array([], arrow), ValueType[kind], "f")) == []


@pytest.mark.parametrize("kind", list(ValueType), ids=lambda kind: kind.name)
def test_a_column_without_a_type_is_all_missing(kind):
    assert parsed(encode_column(pa.nulls(2), kind, "f")) == [Value(), Value()]


def test_every_value_type_is_written_out_above():
    assert {kind for kind, *_ in WRITTEN_OUT} == {kind.name for kind in ValueType}


def test_dictionaries_are_looked_up():
    texts = pa.array(["a", None, "b", "a"]).dictionary_encode()
    expected = [Value(string_val="a"), Value(), Value(string_val="b"), Value(string_val="a")]
    assert parsed(encode_column(texts, ValueType.STRING, "f")) == expected
    lists = pa.ListArray.from_arrays([0, 2, 4], pa.array(["a", "b", "a", "a"]).dictionary_encode())
    assert parsed(encode_column(lists, ValueType.STRING_LIST, "f")) == [
        Value(string_list_val=StringList(val=["a", "b"])),
        Value(string_list_val=StringList(val=["a", "a"])),
    ]


def test_uuids_of_16_bytes_are_texts():
    known = pa.array([uuid.UUID(UUIDS[1]).bytes, None], pa.uuid())
    assert parsed(encode_column(known, ValueType.UUID, "f")) == [
        Value(uuid_val=UUIDS[1]),
        Value(),
    ]
    lists = pa.ListArray.from_arrays([0, 1], known)
    assert parsed(encode_column(lists, ValueType.UUID_LIST, "f")) == [
        Value(uuid_list_val=StringList(val=[UUIDS[1]]))
    ]
    struct = pa.StructArray.from_arrays([known], ["id"])
    assert parsed(encode_column(struct.slice(1), ValueType.STRUCT, "f")) == [
        Value(struct_val=Map(val={"id": Value()}))
    ]
    assert parsed(encode_column(struct, ValueType.STRUCT, "f"))[0] == Value(
        struct_val=Map(val={"id": Value(uuid_val=UUIDS[1])})
    )


def test_json_documents_are_texts():
    documents = pa.array(["[1]", None], pa.json_())
    assert parsed(encode_column(documents, ValueType.JSON, "f")) == [
        Value(json_val="[1]"),
        Value(),
    ]


def test_nanoseconds_in_lists_and_zones():
    # Feast refuses the lists, and gives zones of pandas a name that it cannot read.
    times = pa.array([1_500_000_000, None], pa.timestamp("ns", "+05:30"))
    lists = pa.ListArray.from_arrays([0, 1], times)
    assert parsed(encode_column(lists, ValueType.UNIX_TIMESTAMP_LIST, "f")) == [
        Value(unix_timestamp_list_val=Int64List(val=[1]))
    ]
    zoned = ZonedTimestamp(unix_timestamp=1, zone="UTC+05:30")
    assert parsed(encode_column(times, ValueType.ZONED_TIMESTAMP, "f")) == [
        Value(zoned_timestamp_val=zoned),
        Value(),
    ]


def test_a_set_keeps_the_first_of_equal_values_in_their_order():
    texts = pa.array([["a", "b"], ["b", "a", "b"]])
    assert parsed(encode_column(texts, ValueType.STRING_SET, "f"))[1] == Value(
        string_set_val=StringSet(val=["b", "a"])
    )
    zeros = pa.array([[-0.0, 0.0, 1.0]])
    (zero,) = parsed(encode_column(zeros, ValueType.DOUBLE_SET, "f"))
    assert [str(number) for number in zero.double_set_val.val] == ["-0.0", "1.0"]


def test_what_is_empty_inside_of_a_map_is_kept():
    # Feast refuses both, since it has no first value to infer a type from.
    arrow = pa.struct({"list": pa.list_(pa.int64()), "bytes": pa.binary()})
    column = pa.array([{"list": [], "bytes": b""}], arrow)
    assert parsed(encode_column(column, ValueType.MAP, "f")) == [
        Value(
            map_val=Map(
                val={"list": Value(int64_list_val=Int64List()), "bytes": Value(bytes_val=b"")}
            )
        )
    ]


def test_a_null_list_hides_the_elements_under_it():
    offsets = pa.array([0, 2, 4], pa.int32())
    hidden = pa.ListArray.from_arrays(
        offsets, pa.array([1, 2, 3, 4]), mask=pa.array([True, False])
    )
    assert parsed(encode_column(hidden, ValueType.INT64_LIST, "f")) == [
        Value(),
        Value(int64_list_val=Int64List(val=[3, 4])),
    ]


@pytest.mark.parametrize("arrow", [pa.float32(), pa.float64(), pa.null()], ids=str)
@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 1)])
def test_a_null_inside_a_list_or_set_of_floats_is_nan(make, arrow):
    column = pa.array([[None], None], make(arrow))
    for kind in ("DOUBLE_LIST", "FLOAT_LIST", "DOUBLE_SET", "FLOAT_SET"):
        listed, missing = parsed(encode_column(column, ValueType[kind], "f"))
        (number,) = getattr(listed, kind.lower() + "_val").val
        assert math.isnan(number)
        assert missing == Value()


def test_a_null_inside_a_list_of_floats_is_nan_further_inside():
    (value,) = parsed(encode_column(pa.array([[[1.5, None]]]), ValueType.VALUE_LIST, "f"))
    first, second = value.list_val.val[0].double_list_val.val
    assert first == 1.5
    assert math.isnan(second)


NULL_INSIDE = [
    ("INT32_LIST", pa.int32()), ("INT64_LIST", pa.int64()), ("INT64_LIST", pa.null()),
    ("INT64_LIST", pa.float64()), ("BOOL_LIST", pa.bool_()), ("STRING_LIST", pa.string()),
    ("BYTES_LIST", pa.binary()), ("UUID_LIST", pa.string()), ("UUID_LIST", pa.binary(16)),
    ("TIME_UUID_LIST", pa.string()), ("DECIMAL_LIST", pa.decimal128(3, 1)),
    ("UNIX_TIMESTAMP_LIST", pa.timestamp("us")), ("BOOL_SET", pa.bool_()),
    ("STRING_SET", pa.string()),
]  # fmt: skip


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 1)])
@pytest.mark.parametrize(("kind", "arrow"), NULL_INSIDE, ids=str)
def test_a_null_inside_of_any_other_list_is_refused(make, kind, arrow):
    column = pa.array([[None], None], make(arrow))
    message = rf"^Feature view `v`: `f` is declared as {kind}.*: 1 nulls inside of its "
    with pytest.raises(ColumnTypeError, match=message):
        encode_column(column, ValueType[kind], "f", "v")


REFUSED = [
    (pa.array([1.5]), "INT64", r"`f` is declared as INT64.*double"),
    (pa.array([2**40]), "INT32", r"`f` is declared as INT32"),
    (pa.array([2**63], pa.uint64()), "INT64", r"`f` is declared as INT64.*uint64"),
    (pa.array(["x"]), "DOUBLE", r"`f` is declared as DOUBLE.*string"),
    (pa.array([BIG]), "DOUBLE", r"`f` is declared as DOUBLE.*int64"),
    (pa.array(["12"]), "INT64", r"`f` is declared as INT64.*1 of 1 values of type string"),
    (pa.array([0.5, 1.0]), "BOOL", r"`f` is declared as BOOL.*1 of 2 values of type double"),
    (pa.array([2]), "BOOL", r"`f` is declared as BOOL"),
    (pa.array([1e300]), "FLOAT", r"`f` is declared as FLOAT"),
    (pa.array(["{"]), "JSON", r"`f` is declared as JSON.*cannot be JSON"),
    (pa.array(["x"]), "UUID", r"`f` is declared as UUID.*cannot be UUIDs"),
    (pa.array([b"x"]), "UUID", r"`f` is declared as UUID.*cannot be UUIDs"),
    (pa.array(["x"]), "DECIMAL", r"`f` is declared as DECIMAL.*cannot be decimals"),
    (pa.array([0], pa.timestamp("us")), "INT64", r"`f` is declared as INT64.*timestamp"),
    (pa.array(["abc"]), "STRING_LIST", r"`f` is declared as STRING_LIST.*string"),
    (pa.array(["5"]), "INT64_LIST", r"`f` is declared as INT64_LIST.*not a list"),
    (pa.array(['["x", 5]']), "INT64_LIST", r"`f` is declared as INT64_LIST.*several types"),
    (pa.array(["[true, null]"]), "BOOL_LIST", r"`f` is declared as BOOL_LIST.*1 nulls inside"),
    (pa.array([[1, None]]), "UNKNOWN", r"`f` is declared as UNKNOWN.*1 nulls inside"),
    (pa.array([b"\xff"]), "STRING", r"`f` is declared as STRING.*binary"),
    (pa.array(["x"]), "INT64_LIST", r"`f` is declared as INT64_LIST.*string"),
    (pa.array([["x"]]), "INT64_LIST", r"`f` is declared as INT64_LIST"),
    (pa.array([[BIG]]), "DOUBLE_LIST", r"`f` is declared as DOUBLE_LIST"),
    (pa.array([[2**40]]), "INT32_LIST", r"`f` is declared as INT32_LIST"),
    (pa.array([["x", None]]), "STRING_SET", r"`f` is declared as STRING_SET.*1 nulls inside"),
    (pa.array([["x"]]), "JSON_LIST", r"`f` is declared as JSON_LIST.*cannot be JSON"),
    (pa.array(["x"]), "UNIX_TIMESTAMP", r"`f` is declared as UNIX_TIMESTAMP.*string"),
    (pa.array([1]), "ZONED_TIMESTAMP", r"`f` is declared as ZONED_TIMESTAMP.*int64"),
    (pa.array([1]), "DECIMAL", r"`f` is declared as DECIMAL.*int64"),
    (pa.array([1]), "NULL", r"`f` is declared as NULL"),
    (pa.array([1]), "MAP", r"`f` is declared as MAP"),
    (pa.array([{"a": [1, None]}]), "MAP", r"`f` is declared as MAP.*1 nulls inside of its lists"),
    (pa.array([[{"a": 1}, None]]), "MAP_LIST", r"`f` is declared as MAP_LIST.*holds a null"),
    (pa.array([[[1, None]]]), "VALUE_LIST", r"`f` is declared as VALUE_LIST.*1 nulls inside"),
    (pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())), "MAP",
     r"`f` is declared as MAP.*a map has a key twice"),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "SCALAR_MAP",
     r"`f` is declared as SCALAR_MAP.*map<string, int64>"),
    (pa.array([[(1, 1)]], pa.map_(pa.int64(), pa.int64())), "MAP", r"`f` is declared as MAP"),
    (pa.array([{"a": dt.date(2026, 1, 1)}]), "STRUCT", r"`f` is declared as STRUCT"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "kind", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(column, kind, message):
    with pytest.raises(ColumnTypeError, match=message):
        encode_column(column, ValueType[kind], "f")
    with pytest.raises(ColumnTypeError, match=message):
        encode_values([pa.array([1]), column], [ValueType.INT64, ValueType[kind]], ["g", "f"])


def test_a_type_that_feast_lacks_is_refused_by_name():
    with pytest.raises(UnsupportedTypeError, match=r"column `f` is a duration"):
        encode_column(pa.array([1], pa.duration("s")), ValueType.INT64, "f")


def test_a_text_that_is_not_utf8_is_refused():
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    with pytest.raises(ColumnTypeError, match=r"`f` is declared as STRING.*UTF8"):
        encode_column(broken, ValueType.STRING, "f")
