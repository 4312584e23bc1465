"""Numbers of join keys against a Python dict."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.retrieval.engines.slots import NONE, ByKey, KeyIndex

LOWEST, HIGHEST = -(2**63), 2**63 - 1
INTEGERS = {
    "near each other": st.integers(-20, 20),
    "far apart": st.integers(LOWEST, HIGHEST),
    "at the ends": st.sampled_from([LOWEST, LOWEST + 1, -1, 0, 1, HIGHEST - 1, HIGHEST]),
    "at the lower end": st.integers(LOWEST, LOWEST + 20),
    "at the upper end": st.integers(HIGHEST - 20, HIGHEST),
    "multiples of 2^40": st.integers(-50, 50).map(lambda number: number << 40),
}


def expected_groups(known, asked):
    """For each asked key which known keys it is equal to; a key with a null is equal to none."""
    return [
        [] if None in key else [at for at, other in enumerate(known) if other == key]
        for key in asked
    ]


def assert_numbered(known, asked, kinds):
    columns = [
        pa.array(column, kind)
        for column, kind in zip(zip(*known, strict=True), kinds, strict=True)
    ]
    index = KeyIndex.from_columns(columns)
    numbers = index.numbers(columns)
    distinct = {key for key in known if None not in key}
    assert index.size == len(distinct)
    assert sorted(set(numbers.tolist()) - {NONE}) == list(range(len(distinct)))
    found = index.numbers(
        [
            pa.array(column, kind)
            for column, kind in zip(zip(*asked, strict=True), kinds, strict=True)
        ]
    )
    for number, same in zip(found.tolist(), expected_groups(known, asked), strict=True):
        assert {number} == ({int(numbers[at]) for at in same} or {NONE})


@pytest.mark.parametrize("values", INTEGERS.values(), ids=INTEGERS)
@cases(60)
@given(data=st.data())
def test_integers(values, data):
    keys = st.lists(st.tuples(st.one_of(st.none(), values)), min_size=1, max_size=40)
    assert_numbered(data.draw(keys), data.draw(keys), [pa.int64()])


@cases(60)
@given(data=st.data())
def test_keys_of_three_columns(data):
    parts = st.tuples(
        st.one_of(st.none(), st.integers(0, 3)),
        st.one_of(st.none(), st.sampled_from(["", "a", "ä", "b" * 40])),
        st.one_of(st.none(), st.integers(LOWEST, HIGHEST), st.integers(0, 2)),
    )
    keys = st.lists(parts, min_size=1, max_size=25)
    assert_numbered(data.draw(keys), data.draw(keys), [pa.int64(), pa.string(), pa.int64()])


def test_a_hash_table_with_many_keys():
    generator = np.random.default_rng(7)
    known = np.unique(generator.integers(LOWEST, HIGHEST, 20_000))
    index = KeyIndex.from_columns([pa.array(known)])
    asked = np.concatenate([generator.permutation(known), generator.integers(LOWEST, HIGHEST, 9)])
    found = index.numbers([pa.array(asked)])
    assert known[found[:-9]].tolist() == asked[:-9].tolist()
    assert found[-9:].tolist() == [NONE] * 9


@pytest.mark.parametrize("keys", [[5, 9, 7], [5 << 50, 9 << 50, 7 << 50]])
def test_a_number_by_key(keys):
    index = KeyIndex.from_columns([pa.array(keys)])
    by_number = np.array([0, 0, 0, 99], dtype=np.uint64)
    by_number[index.numbers([pa.array(keys)])] = [10, 20, 30]
    by_key = ByKey.from_index(index, by_number)
    asked = pa.array([keys[1], 6, keys[0], -(2**63), 2**63 - 1, keys[2]])
    assert by_key.take([asked]).tolist() == [20, 99, 10, 99, 99, 30]
