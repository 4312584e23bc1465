"""How Arrow's values travel through Spark: there and back they are the same."""

from __future__ import annotations

import datetime as dt
import decimal

import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.retrieval.spark.carried import carried_type, carry, restore, spark_type

SCALARS = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 2**8 - 1),
    pa.uint16(): st.integers(0, 2**16 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.large_binary(): st.binary(max_size=5),
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.date32(): st.dates(),
    pa.date64(): st.dates(dt.date(1700, 1, 1), dt.date(2200, 1, 1)),
    pa.time32("ms"): st.integers(0, 86_399_999),
    pa.time64("us"): st.times(),
    pa.duration("ns"): st.integers(-(2**62), 2**62),
    pa.timestamp("s"): st.integers(-(2**40), 2**40),
    pa.timestamp("ns", "Asia/Kolkata"): st.integers(-(2**62), 2**62),
    pa.decimal128(10, 2): st.decimals(-9999, 9999, places=2),
    pa.decimal128(38, 0): st.integers(-(10**37), 10**37).map(decimal.Decimal),
    pa.decimal256(60, 3): st.decimals(-9999, 9999, places=3),
    pa.null(): st.none(),
}


@st.composite
def arrays(draw, depth: int = 2) -> pa.Array:
    kind, values = draw(typed(depth))
    rows = draw(st.lists(st.one_of(st.none(), values), max_size=6))
    array = pa.array(rows, kind)
    cut = draw(st.integers(0, len(array)))  # as a part of a larger one
    return array.slice(cut) if draw(st.booleans()) else array


@st.composite
def typed(draw, depth: int):
    """A type, and a strategy of its values."""
    shape = draw(st.sampled_from(["scalar", *(["list", "struct", "map"] if depth else [])]))
    if shape == "scalar":
        kind = draw(st.sampled_from([*SCALARS]))
        return kind, SCALARS[kind]
    inner, values = draw(typed(depth - 1))
    cell = st.one_of(st.none(), values)
    if shape == "struct":
        return pa.struct([("a b", inner), ("c", pa.int64())]), st.fixed_dictionaries(
            {"a b": cell, "c": st.integers(0, 9)}
        )
    if shape == "map":
        pairs = st.dictionaries(st.text(max_size=3), cell, max_size=3).map(lambda d: [*d.items()])
        return pa.map_(pa.string(), inner), pairs
    made = draw(st.sampled_from(["list", "large", "fixed"]))
    if made == "fixed":
        return pa.list_(inner, 2), st.lists(cell, min_size=2, max_size=2)
    return (pa.list_ if made == "list" else pa.large_list)(inner), st.lists(cell, max_size=3)


@cases(300)
@given(array=arrays())
def test_values_are_the_same_there_and_back(array):
    carried = carry(array)
    assert carried.type == carried_type(array.type)
    assert spark_type(carried.type)
    again = restore(carried, array.type)
    again.validate(full=True)
    assert again.type == array.type
    assert again.equals(array), (array, again)


def test_dictionaries_come_back_as_plain_values():
    array = pa.array(["a", None, "a"]).dictionary_encode()
    assert restore(carry(array), array.type).equals(pa.array(["a", None, "a"]))


def test_a_uuid_keeps_its_type():
    array = pa.array([b"0123456789abcdef", None], pa.uuid())
    assert restore(carry(array), array.type).equals(array)


def test_text_that_is_not_utf_8_keeps_its_bytes():
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    array = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    assert carry(array).to_pylist() == [b"\xff\xfe"]
    assert restore(carry(array), array.type).cast(pa.binary()).to_pylist() == [b"\xff\xfe"]


@pytest.mark.parametrize("kind", [pa.run_end_encoded(pa.int32(), pa.int64())])
def test_what_cannot_travel_is_named(kind):
    with pytest.raises(TypeError, match="run_end_encoded"):
        carried_type(kind)
