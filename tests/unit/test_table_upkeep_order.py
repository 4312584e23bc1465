"""The order of rows by what they hold, which decides where nothing else does."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.parquet.iceberg.content_order import content_ranks

DAY = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
MAP = pa.map_(pa.string(), pa.int64())
STRUCT = pa.struct([("b", pa.int8()), ("a", pa.string())])

# Type -> values in their order, nulls first.
ASCENDING = [
    (pa.int64(), [None, -(2**63), -1, 0, 2**63 - 1]),
    (pa.int32(), [None, -5, 7]),
    (pa.uint64(), [None, 0, 2**64 - 1]),
    (pa.bool_(), [None, False, True]),
    (pa.float64(), [None, -np.inf, -1.5, -5e-324, -0.0, 0.0, 5e-324, 2.0, np.inf, np.nan]),
    (pa.float32(), [None, -1.5, -0.0, 0.0, 0.25, np.nan]),
    (pa.float16(), [None, np.float16(-1), np.float16(0.5)]),
    (pa.string(), [None, "", "B", "a", "ab", "b", "é", "\U0001f600"]),
    (pa.string_view(), [None, "", "B", "a"]),
    (pa.large_binary(), [None, b"", b"\x00", b"\x00\x00", b"\x7f", b"\x80"]),
    (pa.binary(2), [None, b"\x00\x01", b"\xff\x00"]),
    (pa.decimal128(20, 2), [None, Decimal("-1.50"), Decimal("-0.01"), Decimal(0), Decimal("9")]),
    (pa.timestamp("us", "UTC"), [None, DAY, DAY + dt.timedelta(microseconds=1)]),
    (pa.timestamp("ns"), [None, DAY, DAY + dt.timedelta(microseconds=1)]),
    (pa.date32(), [None, dt.date(1960, 1, 1), dt.date(2026, 1, 1)]),
    (pa.time64("us"), [None, dt.time(1), dt.time(2)]),
    (pa.duration("us"), [None, dt.timedelta(-1), dt.timedelta(0)]),
    (pa.list_(pa.int64()), [None, [], [None], [None, 3], [1], [1, None], [1, -9], [2]]),
    (pa.large_list(pa.string()), [None, [], ["a"], ["a", "a"], ["b"]]),
    (pa.list_(pa.float64(), 2), [None, [-1.0, 0.0], [0.0, -1.0], [0.0, np.nan]]),
    (pa.list_view(pa.int64()), [None, [], [1], [1, 2], [2]]),
    (pa.list_(pa.list_(pa.int8())), [None, [], [[]], [[], [1]], [[1]], [[1], []]]),
    (STRUCT, [None, {"a": None, "b": 7}, {"a": "x", "b": None}, {"a": "x", "b": 1}]),
    (pa.list_(STRUCT), [None, [], [{"a": "x", "b": 1}], [{"a": "x", "b": 2}]]),
    (MAP, [None, [], [("a", None)], [("a", 1)], [("b", 3), ("a", 1)], [("b", 1), ("a", 2)]]),
    (pa.uuid(), [None, bytes(16), b"\x80" + bytes(15)]),
    (pa.dictionary(pa.int8(), pa.string()), [None, "a", "b"]),
]


@pytest.mark.parametrize(("kind", "values"), ASCENDING, ids=[str(kind) for kind, _ in ASCENDING])
def test_values_of_each_type_have_their_order(kind, values):
    up = pa.array(values, kind)
    down = pa.array(values[::-1], kind)
    assert content_ranks(pa.table({"v": up})).tolist() == list(range(len(values)))
    expected = [*range(len(values)), *reversed(range(len(values)))]
    # Padded, sliced, and in chunks of different sizes.
    padded = pa.chunked_array([pa.array([*values[-2:], *values], kind).slice(2), down.slice(0, 1)])
    column = pa.chunked_array([*padded.chunks, down.slice(1)])
    assert content_ranks(pa.table({"v": column})).tolist() == expected
    # A second column decides where the first is equal; columns of nulls decide nothing.
    flat = pa.table(
        {
            "w": column,
            "z": pa.array(range(len(expected), 0, -1)),
            "a": pa.array([5] * len(expected)),
            "b": pa.nulls(len(expected)),
        }
    )
    assert len(set(content_ranks(flat))) == len(expected)
    ranks = content_ranks(flat)
    assert all(ranks[at] > ranks[len(expected) - 1 - at] for at in range(len(values)))
    assert content_ranks(flat.select(["b", "z", "a", "w"])).tolist() == ranks.tolist()


def test_entries_of_a_map_have_no_order():
    maps = pa.array([[("b", 1), ("a", 2)], [("a", 2), ("b", 1)]], MAP)
    assert content_ranks(pa.table({"m": maps})).tolist() == [0, 0]


def test_what_lies_under_a_null_does_not_count():
    hidden = pa.StructArray.from_arrays(
        [pa.array([1, 2, 3])], names=["n"], mask=pa.array([True, False, True])
    )
    assert content_ranks(pa.table({"s": hidden})).tolist() == [0, 1, 0]


def test_all_nans_are_one():
    bits = np.array([0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001], dtype=np.uint64)
    assert content_ranks(pa.table({"v": bits.view(np.float64)})).tolist() == [0, 0, 0]


def test_tables_without_rows_or_columns():
    assert content_ranks(pa.table({"v": pa.array([], pa.int64())})).tolist() == []
    assert content_ranks(pa.table({"v": pa.nulls(3)})).tolist() == [0, 0, 0]
    assert content_ranks(pa.table({"v": [1, 2]}).select([])).tolist() == [0, 0]


ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 2)),
        st.one_of(st.none(), st.sampled_from([0.5, -0.0, 0.0])),
        st.one_of(st.none(), st.text("ab", max_size=2)),
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 1)), max_size=2)),
    ),
    max_size=30,
)


@cases(60)
@given(rows=ROWS, seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 30))
def test_ranks_belong_to_rows_not_to_their_places(rows, seed, cut):
    kinds = {
        "n": pa.int64(),
        "f": pa.float64(),
        "t": pa.string(),
        "l": pa.list_(pa.int8()),
    }
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    table = pa.table(
        {
            name: pa.array(part, kind)
            for (name, kind), part in zip(kinds.items(), columns, strict=True)
        }
    )
    ranks = content_ranks(table)
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = table.take(pa.array(order, pa.int64()))
    pieces = pa.concat_tables([shuffled.slice(0, cut), shuffled.slice(cut)])
    encoded = pieces.set_column(2, "t", pc.dictionary_encode(pieces["t"]))
    assert content_ranks(encoded).tolist() == ranks[order].tolist()
    by_rank: dict[int, set[str]] = {}
    for rank, row in zip(ranks, rows, strict=True):
        by_rank.setdefault(int(rank), set()).add(repr(row))
    assert sorted(by_rank) == list(range(len(set(map(repr, rows)))))
    assert all(len(same) == 1 for same in by_rank.values())
