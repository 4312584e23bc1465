"""Sort keys are in the order of events, row by row and column by column alike."""

from __future__ import annotations

import base64
import math

import pyarrow as pa
import pytest
from examples import cases
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.arrow_types import VALUE_FIELD
from feast_dynamo_ext.dynamo.encoding.sort_keys import EventColumns
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, pack
from feast_dynamo_ext.dynamo.layouts.series import (
    EventMaker,
    newest_per_event,
    time_bytes,
    time_of,
    value_bytes,
)
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.series_settings import Series

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": INT64,
    "DOUBLE": st.floats(allow_nan=False),
    "FLOAT": st.floats(allow_nan=False, width=32),
    "STRING": st.text(max_size=5) | st.text("\0a", max_size=3),
    "BYTES": st.binary(max_size=5),
    "BOOL": st.booleans(),
}
ARROW = {
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "DOUBLE": pa.float64(),
    "FLOAT": pa.float32(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "BOOL": pa.bool_(),
}


def value(kind: str, held) -> Value:
    return Value() if held is None else Value(**{VALUE_FIELD[kind]: held})


def in_order(kind: str, held):
    """What Python compares as the values are in order."""
    return held.encode() if kind == "STRING" else held


@cases()
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_times_are_in_order(one, other):
    assert (time_bytes(one) < time_bytes(other)) == (one < other)
    assert time_of(time_bytes(one)) == one


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("is_last", [True, False])
def test_values_are_in_order_whatever_follows(kind, is_last):
    after = b"" if is_last else b"\x00\xff"

    @cases()
    @given(VALUES[kind], VALUES[kind])
    def check(one, other):
        keys = [value_bytes(value(kind, held), is_last=is_last) + after for held in (one, other)]
        ordered = [in_order(kind, held) for held in (one, other)]
        assert (keys[0] < keys[1]) == (ordered[0] < ordered[1])
        assert (keys[0] == keys[1]) == (ordered[0] == ordered[1])

    check()


def test_of_what_is_missing_there_are_no_bytes():
    assert value_bytes(Value(), is_last=True) is None
    assert value_bytes(value("DOUBLE", math.nan), is_last=True) is None


@st.composite
def tables(draw):
    """Types of three features, and rows of event times and values."""
    kinds = {name: draw(st.sampled_from(sorted(VALUES))) for name in "abc"}
    cohort = draw(st.sampled_from(["INT32", "INT64", "STRING", "BOOL"]))
    kinds["d"] = cohort
    row = st.tuples(
        INT64,
        VALUES[kinds["a"]],
        VALUES[kinds["b"]],
        st.none() | VALUES[kinds["c"]],
        st.none() | VALUES[cohort],
    )
    return kinds, draw(st.lists(row, min_size=1, max_size=6))


@cases()
@given(tables())
def test_columns_and_rows_make_the_same_keys(made):
    kinds, rows = made
    series = Series(tie_breaker=("a", "b"), orders=("c",), cohorts=("d",))
    schema = RowSchema(tuple(kinds), tuple(kinds.values()))
    make = EventMaker.from_series("v", series, schema)
    events = [
        make(
            Row(
                b"k",
                pack(
                    [value(kind, held) for kind, held in zip(kinds.values(), values, strict=True)]
                ),
                at,
                None,
            )
        )
        for at, *values in rows
    ]
    columns = EventColumns(
        "v",
        series,
        {name: ValueType[kind] for name, kind in kinds.items()},
        {name: name for name in kinds},
    )
    batch = pa.record_batch(
        {
            name: pa.array([row[at + 1] for row in rows], ARROW[kind])
            for at, (name, kind) in enumerate(kinds.items())
        }
    )
    times = pa.array([at for at, *_ in rows], pa.int64())
    assert columns.sort_keys(batch, times).to_pylist() == [event.sort for event in events]
    marks = columns.marks(batch, times)
    for at, event in enumerate(events):
        found = {
            name: {kind: base64.b64encode(held).decode() if kind == "B" else held}
            for name, (kind, array) in marks.items()
            if (held := array[at].as_py()) is not None
        }
        assert found == event.marks
    ordered = sorted(
        rows, key=lambda row: (row[0], in_order(kinds["a"], row[1]), in_order(kinds["b"], row[2]))
    )
    by_key = sorted(zip(events, rows, strict=True), key=lambda pair: pair[0].sort)
    assert [row[0] for _, row in by_key] == [row[0] for row in ordered]


def test_a_tie_breaker_that_is_null_is_refused_both_ways():
    series = Series(tie_breaker="a")
    make = EventMaker.from_series("v", series, RowSchema(("a",), ("INT64",)))
    with pytest.raises(ColumnTypeError, match="the tie-breaker `a` of an event is null"):
        make(Row(b"k", pack([Value()]), 1, None))
    columns = EventColumns("v", series, {"a": ValueType.INT64}, {"a": "a"})
    batch = pa.record_batch({"a": pa.array([None, 1], pa.int64())})
    with pytest.raises(ColumnTypeError, match="the tie-breaker `a` of 1 events is null"):
        columns.sort_keys(batch, pa.array([1, 2], pa.int64()))


def test_a_key_that_is_too_long_is_refused_both_ways():
    series = Series(tie_breaker="a")
    make = EventMaker.from_series("v", series, RowSchema(("a",), ("STRING",)))
    make(Row(b"k", pack([value("STRING", "x" * 1_016)]), 1, None))
    with pytest.raises(ColumnTypeError, match=r"a key of 1,025 bytes; DynamoDB's holds at most"):
        make(Row(b"k", pack([value("STRING", "x" * 1_017)]), 1, None))
    columns = EventColumns("v", series, {"a": ValueType.STRING}, {"a": "a"})
    batch = pa.record_batch({"a": ["x" * 1_017]})
    with pytest.raises(ColumnTypeError, match=r"a key of 1,025 bytes; DynamoDB's holds at most"):
        columns.sort_keys(batch, pa.array([1], pa.int64()))


def test_of_one_event_the_newest_row_stays():
    make = EventMaker.from_series("v", Series(tie_breaker="a"), RowSchema(("a",), ("INT64",)))
    rows = [
        Row(b"k", pack([value("INT64", number)]), 5, created)
        for number, created in ((1, 3), (1, 2), (2, None), (1, None), (2, None))
    ]
    kept = newest_per_event(map(make, rows))
    assert [(event.values, event.created_us) for event in kept] == [
        (rows[0].values, 3),
        (rows[4].values, None),
    ]
