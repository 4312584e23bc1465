"""Casts keep each value or are refused, and say how many values do not fit."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from examples import cases
from feast.type_map import python_values_to_proto_values
from feast.types import (
    Array,
    Bool,
    Float32,
    Float64,
    Int64,
    Json,
    Set,
    String,
    Struct,
    Uuid,
)
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.declared import declared_as, declared_type, is_wider, scalar_exact
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.dynamo.encoding.values import encode_column
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.exact import cast_exact, check_json

NAN, INF = float("nan"), float("inf")
UTC = dt.timezone.utc
UUID = "12345678-9abc-def0-1234-56789abcdef0"
DAY = dt.datetime(2026, 1, 2, tzinfo=UTC)
F32 = float(np.float32(0.1))

# From, to, cells, and what they are then.
CAST = [
    (pa.float64(), pa.int64(), [1.0, NAN, None, -0.0, 2.0**62], [1, None, None, 0, 2**62]),
    (pa.float32(), pa.int32(), [3.0, NAN], [3, None]),
    (pa.uint64(), pa.int64(), [2**63 - 1, None], [2**63 - 1, None]),
    (pa.decimal128(38, 0), pa.int64(), [Decimal(2**53 + 1), None], [2**53 + 1, None]),
    (pa.decimal128(5, 2), pa.int64(), [Decimal("7.00")], [7]),
    (pa.bool_(), pa.int64(), [True, False, None], [1, 0, None]),
    (pa.int64(), pa.float64(), [2**60, 2**53, -(2**63), None],
     [2.0**60, 2.0**53, -(2.0**63), None]),
    (pa.uint64(), pa.float64(), [2**63], [2.0**63]),
    (pa.int64(), pa.float32(), [20_000_000, 2**24 + 1], [2e7, 2.0**24]),
    (pa.float64(), pa.float32(), [0.1, NAN, INF, -INF, 1e-300, None],
     [F32, NAN, INF, -INF, 0.0, None]),
    (pa.float32(), pa.float64(), [0.5, NAN], [0.5, NAN]),
    (pa.float64(), pa.float16(), [0.5, NAN, INF], [0.5, NAN, INF]),
    (pa.decimal128(3, 2), pa.float64(), [Decimal("0.30"), None], [0.3, None]),
    (pa.decimal128(38, 0), pa.float64(), [Decimal(2**60)], [2.0**60]),
    (pa.decimal128(38, 17), pa.float64(), [Decimal("0.30000000000000004")], [0.30000000000000004]),
    (pa.decimal128(3, 1), pa.float32(), [Decimal("0.1")], [F32]),
    (pa.bool_(), pa.float64(), [True, None], [1.0, None]),
    (pa.float64(), pa.bool_(), [1.0, 0.0, NAN, None], [True, False, None, None]),
    (pa.int8(), pa.bool_(), [1, 0, None], [True, False, None]),
    (pa.decimal128(2, 1), pa.bool_(), [Decimal("1.0"), None], [True, None]),
    (pa.int64(), pa.decimal128(10, 2), [7, None], [Decimal("7.00"), None]),
    (pa.uint64(), pa.decimal128(20, 0), [2**64 - 1], [Decimal(2**64 - 1)]),
    (pa.float64(), pa.decimal128(10, 2), [2.25, 1.1, NAN],
     [Decimal("2.25"), Decimal("1.10"), None]),
    (pa.decimal128(10, 2), pa.decimal128(10, 1), [Decimal("1.10")], [Decimal("1.1")]),
    (pa.int64(), pa.string(), [12, None], ["12", None]),
    (pa.float64(), pa.string(), [12.0, 0.1, NAN], ["12", "0.1", None]),
    (pa.decimal128(5, 2), pa.large_string(), [Decimal("1.50")], ["1.50"]),
    (pa.bool_(), pa.string(), [True], ["true"]),
    (pa.date32(), pa.string(), [DAY.date()], ["2026-01-02"]),
    (pa.string_view(), pa.string(), ["ä", None], ["ä", None]),
    (pa.binary(), pa.string(), ["ä".encode(), None], ["ä", None]),
    (pa.string(), pa.binary(), ["ä", None], ["ä".encode(), None]),
    (pa.binary(2), pa.binary_view(), [b"ab", None], [b"ab", None]),
    (pa.large_binary(), pa.binary(2), [b"ab", None], [b"ab", None]),
    (pa.uuid(), pa.string(), [uuid.UUID(UUID), None], [UUID, None]),
    (pa.string(), pa.uuid(), [UUID, None], [uuid.UUID(UUID), None]),
    (pa.binary(16), pa.uuid(), [uuid.UUID(UUID).bytes], [uuid.UUID(UUID)]),
    (pa.string(), pa.json_(), ['{"a": 1}', None], ['{"a": 1}', None]),
    (pa.timestamp("ns"), pa.timestamp("us", "UTC"), [DAY.replace(tzinfo=None), None], [DAY, None]),
    (pa.timestamp("us", "Europe/Berlin"), pa.date32(), [DAY, None], [DAY.date(), None]),
    (pa.date32(), pa.timestamp("s", "UTC"), [DAY.date()], [DAY]),
    (pa.list_(pa.float64()), pa.list_(pa.int64()), [[1.0, None, NAN], None, []],
     [[1, None, None], None, []]),
    (pa.list_view(pa.int64()), pa.large_list(pa.float64()), [[1], None], [[1.0], None]),
    (pa.list_(pa.int64(), 2), pa.list_(pa.float64(), 2), [[1, None], None, [3, 4]],
     [[1.0, None], None, [3.0, 4.0]]),
    (pa.list_(pa.int64()), pa.list_(pa.int8(), 1), [[1], None], [[1], None]),
    (pa.struct({"a": pa.int64()}), pa.struct({"b": pa.int8(), "a": pa.float64()}),
     [{"a": 1}, None], [{"b": None, "a": 1.0}, None]),
    (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64()), [[("a", 1)], None],
     [[("a", 1.0)], None]),
    (pa.dictionary(pa.int8(), pa.float64()), pa.int64(), [1.0, NAN, 1.0], [1, None, 1]),
    (pa.int64(), pa.dictionary(pa.int8(), pa.string()), [7, None, 7], ["7", None, "7"]),
    (pa.string(), pa.int64(), [None, None], [None, None]),
    (pa.null(), pa.list_(pa.uuid()), [None], [None]),
    (pa.string(), pa.bool_(), [], []),
]  # fmt: skip

REFUSED = [
    (pa.float64(), pa.int64(), [5.5, 1.0, None], 1, 2),
    (pa.float64(), pa.int64(), [2.0**63, -(2.0**63), INF], 2, 3),
    (pa.float32(), pa.int32(), [2.0**31], 1, 1),
    (pa.int64(), pa.int32(), [2**40, 1], 1, 2),
    (pa.uint64(), pa.int64(), [2**63], 1, 1),
    (pa.decimal128(3, 1), pa.int64(), [Decimal("1.5"), Decimal("2.0")], 1, 2),
    (pa.string(), pa.int64(), ["007", None], 1, 1),
    (pa.timestamp("us"), pa.int64(), [DAY.replace(tzinfo=None)], 1, 1),
    (pa.int64(), pa.float64(), [2**53 + 1, 2**63 - 1, 1], 2, 3),
    (pa.uint64(), pa.float64(), [2**64 - 1], 1, 1),
    (pa.decimal128(38, 0), pa.float64(), [Decimal(2**53 + 1), None], 1, 1),
    (pa.string(), pa.float64(), ["1.5"], 1, 1),
    (pa.float64(), pa.float32(), [1e300, -1e300, 1.0], 2, 3),
    (pa.decimal256(50, 0), pa.float32(), [Decimal(10) ** 40], 1, 1),
    (pa.float64(), pa.float16(), [0.1, 1e10], 2, 2),
    (pa.int64(), pa.bool_(), [2, 1], 1, 2),
    (pa.float64(), pa.bool_(), [0.5], 1, 1),
    (pa.string(), pa.bool_(), ["true"], 1, 1),
    (pa.float64(), pa.decimal128(10, 2), [2.255, 1e300, 1.0], 2, 3),
    # With the digits of the scale these are more than 128 bits, and Arrow makes others of them.
    (pa.decimal128(2, 1), pa.decimal128(38, 38), [Decimal("7.5"), Decimal("0.5"), None], 1, 2),
    (pa.decimal128(30, 2), pa.decimal128(38, 30), [Decimal("680564733841.50")], 1, 1),
    (pa.int64(), pa.decimal256(76, 70), [10**18, 7], 1, 2),
    (pa.bool_(), pa.decimal128(10, 2), [True], 1, 1),
    (pa.string(), pa.decimal128(10, 2), ["1"], 1, 1),
    (pa.binary(), pa.string(), [b"\xff", b"a"], 1, 2),
    (pa.binary(), pa.binary(2), [b"abc", b"ab"], 1, 2),
    (pa.int64(), pa.binary(), [1], 1, 1),
    (pa.list_(pa.int8()), pa.string(), [[1]], 1, 1),
    (pa.string(), pa.uuid(), ["x", UUID], 1, 2),
    (pa.string(), pa.json_(), ["{", "1"], 1, 2),
    (pa.int64(), pa.timestamp("us", "UTC"), [1_767_312_000], 1, 1),
    (pa.string(), pa.timestamp("us"), ["2026-01-01"], 1, 1),
    (pa.timestamp("us"), pa.date32(), [DAY.replace(hour=5, tzinfo=None)], 1, 1),
    (pa.timestamp("ns"), pa.timestamp("us"), [np.datetime64(1, "ns")], 1, 1),
    (pa.timestamp("s"), pa.timestamp("ns"), [dt.datetime(9999, 1, 1)], 1, 1),  # noqa: DTZ001
    (pa.list_(pa.float64()), pa.list_(pa.int64()), [[5.5, 1.0]], 1, 2),
    (pa.list_(pa.int64()), pa.list_(pa.int64(), 2), [[1], [1, 2], None], 1, 2),
    (pa.int64(), pa.list_(pa.int64()), [1], 1, 1),
    (pa.struct({"a": pa.int64()}), pa.struct({"b": pa.int64()}), [{"a": 1}], 1, 1),
]  # fmt: skip


def equal(cell, other):
    if isinstance(cell, (list, tuple)):
        return len(cell) == len(other) and all(map(equal, cell, other))
    if isinstance(cell, float) and isinstance(other, float) and math.isnan(cell):
        return math.isnan(other)
    return cell == other and type(cell) is type(other)


@pytest.mark.parametrize(("source", "target", "cells", "expected"), CAST, ids=str)
def test_what_comes_back_equal_is_cast(source, target, cells, expected):
    array = pa.array(cells, source)
    for column in (array, pa.chunked_array([array.slice(0, 1), array.slice(1)], source)):
        cast = cast_exact(column, target)
        cast.validate(full=True)
        assert cast.type == target
        assert equal(cast.to_pylist(), expected)


@pytest.mark.parametrize(("source", "target", "cells", "bad", "of"), REFUSED, ids=str)
def test_what_does_not_is_refused_with_a_count(source, target, cells, bad, of):
    with pytest.raises(ValueError, match=rf"^{bad} of {of} values of type .* without a change$"):
        cast_exact(pa.array(cells, source), target)


def test_counting_of_what_is_refused_one_by_one_ends_at_a_thousand():
    with pytest.raises(ValueError, match=r"^at least 1,\d\d\d of 9,000 values of type"):
        cast_exact(pa.array([2**40] * 9_000), pa.int32())


NUMBERS = {
    pa.int8(): st.integers(-128, 127),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.decimal128(38, 5): st.decimals(-(10**20), 10**20, places=5),
    pa.decimal128(12, 0): st.decimals(-(10**11), 10**11, places=0),
}


def is_infinite(cell):
    return isinstance(cell, float) and math.isinf(cell)


def exact(cell):
    return cell if is_infinite(cell) else Fraction(cell)


@st.composite
def casts(draw):
    source = draw(st.sampled_from(sorted(NUMBERS, key=str)))
    target = draw(st.sampled_from(sorted(set(NUMBERS) - {pa.float32()}, key=str)))
    small = st.sampled_from([0, 1, 2, 2**53, 2**53 + 1, 2**60, 2**63 - 1])
    cells = st.none() | NUMBERS[source]
    if pa.types.is_int64(source):
        cells |= small
    return draw(st.lists(cells, max_size=4)), source, target


def comes_back(cell, number, source):
    """Whether a number is what it was cast from; a float's shortest decimal is that float."""
    if exact(cell) == exact(number):
        return True
    if isinstance(cell, float) and isinstance(number, Decimal):
        return source.to_pandas_dtype()(str(number)) == cell
    return isinstance(cell, Decimal) and round(Decimal(repr(number)), source.scale) == cell


@given(casts())
@cases(400)
def test_numbers_are_equal_after_a_cast_or_it_is_refused(case):
    cells, source, target = case
    array = pa.array(cells, source)
    try:
        cast = cast_exact(array, target)
    except ValueError:
        # Some value cannot be held: it is refused on its own too.
        refused = [
            cell for cell in cells if cell is not None and not is_cast(cell, source, target)
        ]
        assert refused
        for cell in refused:
            assert is_infinite(cell) or not fits(cell, target)
        return
    for cell, number in zip(cells, cast.to_pylist(), strict=True):
        assert (cell is None) == (number is None)
        assert cell is None or comes_back(cell, number, source)


def is_cast(cell, source, target):
    try:
        cast_exact(pa.array([cell], source), target)
    except ValueError:
        return False
    return True


def fits(cell, target):
    """Whether a type holds a number, by arithmetic on fractions."""
    number = Fraction(cell)
    if pa.types.is_boolean(target):
        return number in {0, 1}
    if pa.types.is_integer(target):
        limits = np.iinfo(target.to_pandas_dtype())
        return number.denominator == 1 and limits.min <= number <= limits.max
    if pa.types.is_decimal(target):
        scaled = number * 10**target.scale
        return (
            not isinstance(cell, bool)
            and scaled.denominator == 1
            and abs(scaled) < 10**target.precision
        )
    try:
        return Fraction(float(number)) == number
    except OverflowError:
        return False


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1))
)
@cases(200)
def test_a_float32_is_the_nearest(cells):
    for cell in cells:
        array = pa.array([cell])
        limit = float(np.finfo(np.float32).max)
        if abs(cell) > limit * (1 + 2**-25):
            with pytest.raises(ValueError, match=r"^1 of 1 values"):
                cast_exact(array, pa.float32())
        elif abs(cell) <= limit:
            (number,) = cast_exact(array, pa.float32()).to_pylist()
            with np.errstate(over="ignore"):
                nearest = np.float32(number)
                below, above = (
                    float(np.nextafter(nearest, np.float32(end))) for end in (-INF, INF)
                )
            distance = abs(Fraction(number) - Fraction(cell))
            assert all(
                distance <= abs(Fraction(other) - Fraction(cell))
                for other in (below, above)
                if math.isfinite(other)
            )


# Value type, Arrow type, cells, the type in which they are retrieved, and what they are then.
DECLARED = [
    ("INT64", pa.int32(), [1], pa.int32(), [1]),
    ("INT64", pa.float64(), [1.0, NAN], pa.int64(), [1, None]),
    ("INT32", pa.int64(), [1], pa.int64(), [1]),
    ("INT64", pa.uint32(), [1], pa.uint32(), [1]),
    ("INT32", pa.uint32(), [1], pa.int32(), [1]),
    ("DOUBLE", pa.float32(), [0.5], pa.float32(), [0.5]),
    ("DOUBLE", pa.int64(), [2**60], pa.float64(), [2.0**60]),
    ("FLOAT", pa.float64(), [0.1, NAN], pa.float64(), [F32, NAN]),
    ("BOOL", pa.int64(), [1], pa.bool_(), [True]),
    ("STRING", pa.int64(), [7], pa.string(), ["7"]),
    ("STRING", pa.large_string(), ["7"], pa.large_string(), ["7"]),
    ("STRING", pa.dictionary(pa.int32(), pa.string()), ["7"],
     pa.dictionary(pa.int32(), pa.string()), ["7"]),
    ("INT64", pa.dictionary(pa.int32(), pa.float64()), [7.0], pa.int64(), [7]),
    ("BYTES", pa.binary(2), [b"ab"], pa.binary(2), [b"ab"]),
    ("IMAGE_BYTES", pa.string(), ["ab"], pa.binary(), [b"ab"]),
    ("UUID", pa.binary(16), [uuid.UUID(UUID).bytes, None], pa.string(), [UUID, None]),
    ("UUID", pa.large_binary(), [uuid.UUID(UUID).bytes], pa.string(), [UUID]),
    ("UUID", pa.binary(), [UUID.encode()], pa.string(), [UUID]),
    ("TIME_UUID", pa.uuid(), [uuid.UUID(UUID)], pa.uuid(), [uuid.UUID(UUID)]),
    ("JSON", pa.float64(), [1.5, NAN], pa.string(), ["1.5", None]),
    ("JSON", pa.struct({"a": pa.int64()}), [{"a": 1}, None], pa.string(), ['{"a": 1}', None]),
    ("DECIMAL", pa.decimal128(3, 1), [Decimal("1.5")], pa.decimal128(3, 1), [Decimal("1.5")]),
    ("UNIX_TIMESTAMP", pa.date32(), [DAY.date()], pa.date32(), [DAY.date()]),
    ("UNIX_TIMESTAMP", pa.float64(), [86_400.0, NAN], pa.timestamp("s", "UTC"),
     [dt.datetime(1970, 1, 2, tzinfo=UTC), None]),
    ("INT64_LIST", pa.list_(pa.float64()), [[1.0, None], None], pa.list_(pa.int64()),
     [[1, None], None]),
    ("FLOAT_LIST", pa.list_(pa.float64(), 1), [[0.1], None], pa.list_(pa.float64(), 1),
     [[F32], None]),
    ("UUID_SET", pa.large_list(pa.binary(16)), [[uuid.UUID(UUID).bytes]],
     pa.large_list(pa.string()), [[UUID]]),
    ("DOUBLE_LIST", pa.binary(), [b"[1.5]"], pa.binary(), [b"[1.5]"]),
    ("MAP", pa.string(), ["{}"], pa.string(), ["{}"]),
    ("UNKNOWN", pa.int8(), [1], pa.int8(), [1]),
    ("INT64", pa.null(), [None], pa.null(), [None]),
    ("UUID", pa.large_binary(), [UUID.encode(), None, uuid.UUID(UUID).bytes], pa.string(),
     [UUID, None, UUID]),
    (Array(Array(Int64)), pa.list_(pa.list_(pa.float64())), [[[1.0, None], None], [], None],
     pa.list_(pa.list_(pa.int64())), [[[1, None], None], [], None]),
    (Array(Array(Int64)), pa.list_(pa.list_(pa.int32())), [[[1]]], pa.list_(pa.list_(pa.int32())),
     [[[1]]]),
    (Array(Array(Float32)), pa.large_list(pa.list_(pa.float64(), 1)), [[[0.1]]],
     pa.large_list(pa.list_(pa.float64(), 1)), [[[F32]]]),
    (Set(Array(Uuid)), pa.list_(pa.list_(pa.binary(16))), [[[uuid.UUID(UUID).bytes]]],
     pa.list_(pa.list_(pa.string())), [[[UUID]]]),
    (Array(Array(Array(Bool))), pa.list_(pa.list_(pa.list_(pa.int8()))), [[[[1, 0]]]],
     pa.list_(pa.list_(pa.list_(pa.bool_()))), [[[[True, False]]]]),
    (Array(Array(Int64)), pa.string(), ["[[1, 2]]", None], pa.string(), ["[[1, 2]]", None]),
    (Array(Array(String)), pa.list_(pa.list_(pa.int64())), [[[1]]],
     pa.list_(pa.list_(pa.int64())), [[[1]]]),
    (Struct({"a": Int64, "b": Json}), pa.struct({"a": pa.float64(), "c": pa.int8()}),
     [{"a": 1.0, "c": 1}, {"a": NAN, "c": 2}, None],
     pa.struct({"a": pa.int64(), "c": pa.int8()}),
     [{"a": 1, "c": 1}, {"a": None, "c": 2}, None]),
    (Struct({"a": Int64, "b": Int64}), pa.map_(pa.string(), pa.float64()),
     [[("a", 1.0)], None], pa.map_(pa.string(), pa.int64()), [[("a", 1)], None]),
    (Struct({"a": Int64, "b": Float64}), pa.map_(pa.string(), pa.int64()),
     [[("a", 1)], None], pa.map_(pa.string(), pa.int64()), [[("a", 1)], None]),
    (Struct({"a": Int64, "b": Float64}), pa.map_(pa.string(), pa.float64()),
     [[("a", 1.0), ("b", NAN)]], pa.map_(pa.string(), pa.float64()), [[("a", 1.0), ("b", NAN)]]),
    (Array(Struct({"a": Bool})), pa.list_(pa.struct({"a": pa.int64()})), [[{"a": 1}], None],
     pa.list_(pa.struct({"a": pa.bool_()})), [[{"a": True}], None]),
    (Struct({"_value": String}), pa.struct({"x": pa.int64()}), [{"x": 1}],
     pa.struct({"x": pa.int64()}), [{"x": 1}]),
    (Struct({"a": Array(Int64), "b": Struct({"c": Bool})}),
     pa.struct({"a": pa.list_(pa.float64()), "b": pa.struct({"c": pa.int8()})}),
     [{"a": [1.0], "b": {"c": 1}}],
     pa.struct({"a": pa.list_(pa.int64()), "b": pa.struct({"c": pa.bool_()})}),
     [{"a": [1], "b": {"c": True}}]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source", "cells", "target", "expected"), DECLARED, ids=str)
def test_a_column_is_retrieved_as_it_is_declared(kind, source, cells, target, expected):
    kind = ValueType[kind] if isinstance(kind, str) else declared_as(kind)
    assert declared_type(kind, source) == target
    column = pa.chunked_array([pa.array(cells, source)], source)
    found = as_declared(column, kind)
    found.validate(full=True)
    assert found.type == target
    assert equal(found.to_pylist(), expected)
    is_same = target == source and not is_wider(kind, source)
    assert (found is column) == is_same


NOT_DECLARED = [
    ("INT64", pa.array(["7"])),
    ("BOOL", pa.array([0.5])),
    ("DECIMAL", pa.array([1])),
    ("UNIX_TIMESTAMP", pa.array(["2026-01-01"])),
    ("ZONED_TIMESTAMP", pa.array([1])),
    # Without a zone: a push refuses them too.
    ("ZONED_TIMESTAMP", pa.array([DAY.date()])),
    ("ZONED_TIMESTAMP", pa.array([DAY.date()], pa.date64())),
    ("UUID", pa.array([1])),
    ("UUID", pa.array([b"0123456789abcde"])),
    ("JSON", pa.array([DAY])),
    ("JSON", pa.array([{"a": DAY}])),
    ("INT64_LIST", pa.array([7])),
    ("INT64_LIST", pa.array([["7"]])),
    # Texts, of the declared kind's own Arrow type, that are something else.
    ("UUID", pa.array(["x"])),
    ("TIME_UUID", pa.array(["x"]).dictionary_encode()),
    ("JSON", pa.array(["{"], pa.large_string())),
    ("DECIMAL", pa.array(["x"])),
    ("UUID_LIST", pa.array([["x"]])),
    ("JSON_LIST", pa.array([["{"]])),
    ("DECIMAL_SET", pa.array([["x"]])),
    (Array(Array(Int64)), pa.array([[[1.5]]])),
    (Array(Array(Int64)), pa.array([[[2**64 - 1]]], pa.list_(pa.list_(pa.uint64())))),
    (Array(Array(Uuid)), pa.array([[["x"]]])),
    (Array(Array(Int64)), pa.array(["[[1.5]]"])),
    (Array(Array(Int64)), pa.array([[1]])),
    (Struct({"a": Int64}), pa.array([{"a": 1.5}])),
    (Struct({"a": Int64}), pa.array([[("a", 1.5)]], pa.map_(pa.string(), pa.float64()))),
    (Struct({"a": Int64, "b": Float64}),
     pa.array([[("a", 1.5)]], pa.map_(pa.string(), pa.float64()))),
    (Struct({"a": Int64, "b": Float64}),
     pa.array([[("a", NAN)]], pa.map_(pa.string(), pa.float64()))),
    (Struct({"a": Int64}), pa.array([1])),
    (Array(Struct({"a": Json})), pa.array([[{"a": "{"}]])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "column"), NOT_DECLARED, ids=str)
def test_a_column_that_is_not_what_is_declared_is_refused(kind, column):
    with pytest.raises(ValueError, match=r"^1 of 1 values of type"):
        as_declared(column, ValueType[kind] if isinstance(kind, str) else declared_as(kind))


def test_json_for_nested_types_is_of_their_form():
    declared = declared_as(Struct({"a": Int64}))
    for text, message in (("[1]", "its JSON is not an object"), ('{"a": "x"}', "cannot be int64")):
        with pytest.raises(ValueError, match=message):
            as_declared(pa.array([text]), declared)
    with pytest.raises(ValueError, match="values of several types"):
        as_declared(pa.array(['{"a": 1}', '{"a": "x"}']), declared)


def test_numbers_in_lists_are_json_but_for_nan():
    made = scalar_exact(pa.array([[1.0, None], [2.5], None]), ValueType.JSON)
    assert made.to_pylist() == ["[1.0, null]", "[2.5]", None]
    for number in (NAN, INF, -INF):
        with pytest.raises(
            ValueError, match=r"^1 of 2 .* cannot be JSON \(which has no NaN and no"
        ):
            scalar_exact(pa.array([{"a": number}, {"a": 1.0}]), ValueType.JSON)


@pytest.mark.parametrize(
    ("kind", "column", "message"),
    [
        ("MAP", pa.array(["not json", "{}"]), "1 of 2 values of type string cannot be JSON"),
        ("MAP", pa.array(["[1]", "{}"]), "1 of 2 .* cannot be JSON of maps"),
        ("MAP", pa.array([b"\xff\x00"]), "1 of 1 values of type .*binary cannot be large_string"),
        ("STRUCT", pa.array(["5"]), "1 of 1 .* cannot be JSON of maps"),
        ("MAP_LIST", pa.array(["not json"], pa.large_string()), "1 of 1 .* cannot be JSON"),
        ("MAP_LIST", pa.array(["{}", "[{}]", "[1]"]), "2 of 3 .* cannot be JSON of lists of maps"),
        ("STRUCT_LIST", pa.array(["{}"]), "1 of 1 .* cannot be JSON of lists of maps"),
        ("INT64_LIST", pa.array(['["x"]']), "1 of 1 values of type string cannot be int64"),
        ("INT64_LIST", pa.array(["not json", None]), "1 of 1 .* cannot be JSON"),
        ("INT64_LIST", pa.array([b"{}"]), "its JSON is not a list"),
        ("INT64_LIST", pa.array(['[1, "x"]']), "its JSON holds values of several types"),
        ("INT64_SET", pa.array(["[1.5]"]), "1 of 1 values of type double cannot be int64"),
        ("STRING_LIST", pa.array(["abc"]).dictionary_encode(), "1 of 1 .* cannot be JSON"),
        ("VALUE_LIST", pa.array(["[1]"]), "its JSON is not a list of lists"),
        ("VALUE_SET", pa.array(["x"]), "1 of 1 .* cannot be JSON"),
        (Struct({"a": Array(Int64)}), pa.array([{"a": "[1]"}]), "1 of 1 .* cannot be INT64_LIST"),
    ],
)
def test_json_is_of_what_is_declared(kind, column, message):
    """Of what it says a push takes none either."""
    kind = ValueType[kind] if isinstance(kind, str) else declared_as(kind)
    with pytest.raises(ValueError, match=message):
        as_declared(pa.chunked_array([column]), kind)
    with pytest.raises(ColumnTypeError, match=message):
        encode_column(column, kind, "f")


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("MAP", pa.array(['{"a": [1, 2], "b": {"c": ["x"]}}', "{}", None])),
        ("MAP", pa.array([b'{"a": 1}'])),
        ("MAP_LIST", pa.array(["[]", '[{"a": 1}, {}]'])),
        ("MAP", pa.array(['{"a": [{"b": 1}, {"c": "x"}], "d": null, "e": 9223372036854775807}'])),
        ("INT64_LIST", pa.array(["[1, null]", "[]", None])),
        ("FLOAT_SET", pa.array([b"[0.1, NaN]"])),
        ("STRING_LIST", pa.array(['["a"]']).dictionary_encode()),
        ("VALUE_LIST", pa.array(["[[1], []]", "[]", None])),
    ],
)
def test_json_stays_the_text_that_it_is(kind, column):
    column = pa.chunked_array([column])
    assert as_declared(column, ValueType[kind]) is column


def test_seconds_say_what_was_wanted():
    with pytest.raises(ValueError, match=r"^1 of 2 .* cannot be times \(whole seconds since 1970"):
        scalar_exact(pa.array([1.5, 2.0]), ValueType.UNIX_TIMESTAMP)


@pytest.mark.parametrize(
    ("bad", "count"),
    [
        (["1,2", "[3", "4]"], 3), (["1,2"], 1), ([""], 1), (['"a', 'b"'], 2),
        (["{}", "{", "}"], 2),
        (["[1,]", "1"], 1), (["1", "2", "nan"], 1), (["\ufeff1"], 1), (["1"] * 250 + ["x"], 1),
        (["1", "NaN", '{"a": [-Infinity]}', '["NaN"]'], 2),
    ],
)  # fmt: skip
def test_each_text_is_json_of_its_own(bad, count):
    """All are parsed together: none may be made whole, or broken, by its neighbours."""
    with pytest.raises(ValueError, match=rf"^{count} of {len(bad)} values of type string"):
        check_json(pa.array(bad))
    good = ["[1, 2]", '{"a": "],["}', "null", '"x"', '"\\ud800"', None, " 1 "] * 40
    check_json(pa.array(good))
    check_json(pa.array(good).slice(3, 150))
    check_json(pa.array([], pa.string()))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("UUID", [UUID, None], [UUID[:-1] + "g", UUID.replace("-", "0")]),
        ("DECIMAL", ["1", "-1.50", "0", "-0.000000", "0.0000010", "9" * 40, None], ["", "1,5"]),
        ("JSON", ['"a"', "null", '["NaN"]', "1e5", None], ["", "{a: 1}"]),
    ],
)
@pytest.mark.parametrize("layout", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_texts_are_what_their_type_says(kind, good, bad, layout):
    array = pa.array(good, layout)
    assert scalar_exact(array, ValueType[kind]) is array
    column = pa.chunked_array([array, array])
    assert as_declared(column, ValueType[kind]) is column
    with pytest.raises(ValueError, match=r"^2 of \d values of type .* without a change$"):
        scalar_exact(pa.array([*good, *bad], layout), ValueType[kind])


FORMS = [
    ("UUID", [UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}", None],
     [UUID, UUID, UUID, UUID, None]),
    ("UUID", [UUID.upper(), None], [UUID, None]),
    ("DECIMAL", [" 1.10 ", "+1.5", ".5", "1.", "007", "1e5", "0.0000001", "1_0", "nan", None],
     ["1.10", "1.5", "0.5", "1", "7", "1E+5", "1E-7", "10", "NaN", None]),
    ("UUID_LIST", [[UUID.upper(), None], [], None], [[UUID, None], [], None]),
    ("UUID_SET", [[UUID.upper(), UUID, UUID.replace("-", "")], None], [[UUID], None]),
    ("DECIMAL_SET", [["1.10", "1.1", " 1.10", "2", None, None], []], [["1.10", "2", None], []]),
    ("STRING_SET", [["b", "a", "b"], None, ["a"]], [["b", "a"], None, ["a"]]),
    (Struct({"a": Uuid}), [{"a": UUID.upper()}, None], [{"a": UUID}, None]),
    (Array(Array(Uuid)), [[[UUID.upper()], None], None], [[[UUID], None], None]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "cells", "expected"), FORMS, ids=str)
@pytest.mark.parametrize("encoded", [False, True], ids=["", "dictionary"])
def test_each_value_has_one_form(kind, cells, expected, encoded):
    """Which is that of the online store, whose readers are given Python's UUIDs and decimals."""
    declared = ValueType[kind] if isinstance(kind, str) else declared_as(kind)
    array = pa.array(cells)
    if encoded:
        if pa.types.is_nested(array.type):
            return
        array = array.dictionary_encode()
    found = as_declared(pa.chunked_array([array, array[:0]]), declared)
    assert found.type == array.type
    assert found.to_pylist() == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (pa.array([[1, 1, None, 2, None]]), [[1, None, 2]]),
        (pa.array([[-0.0, 0.0, NAN, NAN, 1.5]]), [[-0.0, NAN, 1.5]]),
        (pa.array([[True, True]]), [[True]]),
        (pa.array([[1, 1], None], pa.list_(pa.int32(), 2)), [[1], None]),
        (pa.array([["x", "x"]], pa.large_list(pa.string_view())), [["x"]]),
        (pa.array([[DAY, DAY]]), [[DAY]]),
    ],
    ids=str,
)
def test_a_set_holds_each_element_once(cells, expected):
    kinds = {"int": "INT64", "double": "DOUBLE", "bool": "BOOL", "string_view": "STRING"}
    name = str(cells.type.value_type)
    kind = next((kinds[each] for each in kinds if name.startswith(each)), "UNIX_TIMESTAMP")
    found = as_declared(cells, ValueType[f"{kind}_SET"])
    assert equal(found.to_pylist(), expected)
    assert found.type == declared_type(ValueType[f"{kind}_SET"], cells.type)


JSON_OF_NO_MAP = [
    *('{"a": [1, "x"]}', '{"a": [1, 2.5]}', '{"a": [1, null]}', '{"a": []}', '{"a": [[1]]}'),
    *('{"a": [{"b": 1}, 2]}', '{"a": {"b": [true, 1]}}', '{"a": 9223372036854775808}'),
]


@pytest.mark.parametrize("text", JSON_OF_NO_MAP)
def test_json_that_is_no_map_of_feasts_is_refused_in_history_too(text):
    """Feast's own function, which a push and a materialization end at, is the judge."""
    with pytest.raises((ValueError, TypeError)):
        python_values_to_proto_values([json.loads(text)], ValueType.MAP)
    for kind, cell in ((ValueType.MAP, text), (ValueType.MAP_LIST, f"[{text}]")):
        column = pa.chunked_array([pa.array([cell, None])])
        with pytest.raises(ValueError, match=r"^1 of 1 values .* maps as Feast keeps them"):
            as_declared(column, kind)
        with pytest.raises(ColumnTypeError, match=r"1 of 1 values .* maps as Feast keeps them"):
            encode_column(column, kind, "f")


@st.composite
def decimals_and_types(draw):
    """A decimal, a type that holds it, and another type."""
    made = []
    for make, most in (draw(WIDTHS), draw(WIDTHS)):
        precision = draw(st.integers(1, most))
        made.append(make(precision, draw(st.integers(-3, precision))))
    kind, target = made
    digits = draw(st.integers(1, kind.precision))
    number = draw(st.integers(-(10**digits) + 1, 10**digits - 1))
    return Decimal(number).scaleb(-kind.scale, ALL_DIGITS), kind, target


WIDTHS = st.sampled_from([(pa.decimal128, 38), (pa.decimal256, 76)])
ALL_DIGITS = Context(prec=200)


@cases(400)
@given(decimals_and_types())
def test_a_decimal_is_the_same_in_another_type_or_refused(drawn):
    value, kind, target = drawn
    scaled = value.scaleb(target.scale, ALL_DIGITS)
    fits = scaled == int(scaled) and abs(scaled) < 10**target.precision
    array = pa.array([value, None], kind)
    if fits:
        assert cast_exact(array, target).to_pylist() == [value, None]
    else:
        with pytest.raises(ValueError, match="1 of 1 values"):
            cast_exact(array, target)
