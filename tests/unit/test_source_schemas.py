"""Files whose schemas differ are read in types that hold all of them, or not at all."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_cases import opened, put, rows_of

from feast_dynamo_ext.arrow_types import common_type
from feast_dynamo_ext.errors import ColumnNotFoundError, ColumnTypeError, SourceReadError

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone.utc)
DAY = dt.date(2026, 1, 2)
MIDNIGHT = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)

TYPES = [
    (pa.int32(), pa.int64(), pa.int64()),
    (pa.int8(), pa.uint8(), pa.int16()),
    (pa.uint32(), pa.int32(), pa.int64()),
    (pa.uint64(), pa.int64(), None),
    (pa.uint16(), pa.uint64(), pa.uint64()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.int16(), pa.float32(), pa.float32()),
    (pa.int32(), pa.float32(), pa.float64()),
    (pa.int64(), pa.float64(), pa.float64()),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
    (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string()), pa.string()),
    (pa.binary(4), pa.binary(), pa.binary()),
    (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
    (pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")),
    (pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Kolkata"), pa.timestamp("us", "UTC")),
    (pa.timestamp("us", "Asia/Tokyo"), pa.timestamp("s"), pa.timestamp("us", "Asia/Tokyo")),
    (pa.date32(), pa.timestamp("ms"), pa.timestamp("ms")),
    (pa.date32(), pa.date64(), pa.date32()),
    (pa.time32("s"), pa.time64("us"), pa.time64("us")),
    (pa.duration("s"), pa.duration("ms"), pa.duration("ms")),
    (pa.decimal128(5, 2), pa.decimal128(10, 4), pa.decimal128(10, 4)),
    (pa.decimal128(38, 0), pa.decimal128(38, 2), pa.decimal256(40, 2)),
    (pa.decimal256(76, 0), pa.decimal256(76, 2), None),
    (pa.null(), pa.list_(pa.int64()), pa.list_(pa.int64())),
    (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
    (pa.list_(pa.int32()), pa.large_list(pa.null()), pa.large_list(pa.int32())),
    (pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.list_(pa.float64())),
    (
        pa.struct([("a", pa.int32())]),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    ),
    (
        pa.map_(pa.string(), pa.int32()),
        pa.map_(pa.string(), pa.float64()),
        pa.map_(pa.string(), pa.float64()),
    ),
    (pa.string(), pa.int64(), None),
    (pa.string(), pa.binary(), None),
    (pa.bool_(), pa.int64(), None),
    (pa.timestamp("us"), pa.int64(), None),
    (pa.list_(pa.string()), pa.list_(pa.int64()), None),
    (pa.struct([("a", pa.string())]), pa.struct([("a", pa.int64())]), None),
    (pa.list_(pa.int64()), pa.int64(), None),
]


@pytest.mark.parametrize(("one", "other", "both"), TYPES)
def test_the_narrowest_type_that_holds_two(one, other, both):
    assert common_type(one, other) == both
    assert common_type(other, one) == both
    assert common_type(one, one) == one


SIMPLE = [kind for pair in TYPES for kind in pair[:2] if not pa.types.is_nested(kind)]


@given(st.sampled_from(SIMPLE), st.sampled_from(SIMPLE))
def test_what_holds_two_holds_each_of_them_again(one, other):
    both = common_type(one, other)
    if both is not None:
        again = common_type(one, both)
        # Where there are two, the type of both is a fixed point.
        assert again is not None
        assert common_type(again, other) == again


CASES = {
    "widened integers": ([pa.array([1], pa.int32()), pa.array([2**40])], [1, 2**40], pa.int64()),
    "a narrow one first": (
        [pa.array([0.5], pa.float32()), pa.array([0.1])],
        [0.5, 0.1],
        pa.float64(),
    ),
    "integers, then doubles": ([pa.array([2**53]), pa.array([0.5])], [2.0**53, 0.5], pa.float64()),
    "all null": ([pa.nulls(1), pa.array(["a"])], [None, "a"], pa.string()),
    "nulls of a list": ([pa.nulls(1), pa.array([[1]])], [None, [1]], pa.list_(pa.int64())),
    "dictionaries": (
        [pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string())],
        ["a", "b"],
        pa.large_string(),
    ),
    "units and zones": (
        [pa.array([NOON], pa.timestamp("ms")), pa.array([NOON], pa.timestamp("us", "UTC"))],
        [NOON, NOON],
        pa.timestamp("us", "UTC"),
    ),
    "dates, then times": (
        [pa.array([DAY]), pa.array([NOON], pa.timestamp("us", "UTC"))],
        [MIDNIGHT, NOON],
        pa.timestamp("us", "UTC"),
    ),
    "decimals": (
        [pa.array([Decimal("1.5")]), pa.array([Decimal("22.125")])],
        [Decimal("1.500"), Decimal("22.125")],
        pa.decimal128(5, 3),
    ),
    "structs": (
        [pa.array([{"a": 1}]), pa.array([{"a": 2, "b": "x"}])],
        [{"a": 1, "b": None}, {"a": 2, "b": "x"}],
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", [1, -1])
def test_two_files_that_differ_are_read_right(tmp_path, case, order):
    columns, values, kind = CASES[case]
    for name, column in zip("ab", columns[::order], strict=True):
        put(tmp_path / f"{name}.parquet", x=column)
    source = opened(tmp_path)
    assert source.schema.field("x").type == kind
    assert rows_of(source, "x") == {"x": values[::order]}


def write_three(folder, first, middle, last):
    for name, columns in (("a", first), ("b", middle), ("c", last)):
        put(folder / f"{name}.parquet", **columns)
    return opened(folder)


def test_a_wider_type_between_the_first_and_the_last_file(tmp_path):
    narrow = {"x": pa.array([1], pa.int32())}
    source = write_three(tmp_path, narrow, {"x": [2**40]}, narrow)
    assert source.schema.field("x").type == pa.int32()
    # Read without looking at all footers first: refused, though this value would fit.
    with pytest.raises(ColumnTypeError, match=r"`x` is int64 in .*b\.parquet.*int32"):
        rows_of(source, "x")
    for settled in (source.with_all_types(), source.within("x", None, None)):
        assert settled.schema.field("x").type == pa.int64()
        assert rows_of(settled, "x") == {"x": [1, 2**40, 1]}


def test_a_lossy_narrowing_is_never_done(tmp_path):
    narrow = {"x": pa.array([0.5], pa.float32())}
    source = write_three(tmp_path, narrow, {"x": [0.1]}, narrow)
    with pytest.raises(ColumnTypeError, match=r"`x` is double in .*b\.parquet.*float"):
        list(source.fetch(["x"], pa.array([1]).to_numpy()))
    assert rows_of(source.with_all_types(), "x") == {"x": [0.5, 0.1, 0.5]}


def test_columns_that_came_and_went(tmp_path):
    source = write_three(tmp_path, {"x": [1], "old": [1]}, {"x": [2]}, {"x": [3], "new": ["n"]})
    assert source.schema.names == ["x", "old", "new"]
    assert rows_of(source, "old", "new") == {"old": [1, None, None], "new": [None, None, "n"]}


def test_a_column_that_only_a_file_in_between_has(tmp_path):
    source = write_three(tmp_path, {"x": [1]}, {"x": [2], "mid": [5.5]}, {"x": [3]})
    assert source.schema.names == ["x"]
    assert rows_of(source.with_columns(["mid"], "A view"), "mid") == {"mid": [None, 5.5, None]}
    with pytest.raises(ColumnNotFoundError, match=r"A view names .*\['nil'\].*\['mid', 'x'\]"):
        source.with_columns(["nil"], "A view")


def test_a_column_that_is_null_in_the_first_and_the_last_file(tmp_path):
    nothing = {"x": [1], "v": pa.nulls(1)}
    source = write_three(tmp_path, nothing, {"x": [2], "v": ["text"]}, nothing)
    found = source.with_columns(["v"], "A view")
    assert found.schema.field("v").type == pa.string()
    assert rows_of(found, "v") == {"v": [None, "text", None]}


@pytest.mark.parametrize("at", ["b", "c"])
def test_types_that_do_not_go_together_name_file_and_column(tmp_path, at):
    for name in "abc":
        put(tmp_path / f"{name}.parquet", x=["one"] if name == at else [1])
    with pytest.raises(
        ColumnTypeError, match=rf"column `x` is string in .*{at}\.parquet, but int64"
    ):
        opened(tmp_path).with_all_types()
    with pytest.raises(
        ColumnTypeError, match=rf"column `x` is string in .*{at}\.parquet, but int64"
    ):
        rows_of(opened(tmp_path), "x")


def test_types_of_columns_that_nobody_asks_for_do_not_matter(tmp_path):
    source = write_three(tmp_path, {"x": [1], "y": [1]}, {"x": [2], "y": ["t"]}, {"x": [3]})
    assert rows_of(source, "x") == {"x": [1, 2, 3]}


def test_a_value_that_does_not_fit_names_file_and_column(tmp_path):
    put(tmp_path / "a.parquet", x=[2**53 + 1], y=[1])
    put(tmp_path / "b.parquet", x=[0.5], y=[1])
    message = r"a\.parquet cannot be read: .*9007199254740993.*`x` \(int64, read as double\)"
    with pytest.raises(SourceReadError, match=message):
        rows_of(opened(tmp_path), "x")
    assert rows_of(opened(tmp_path), "y") == {"y": [1, 1]}
