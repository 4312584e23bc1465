"""Runs of a key with ascending times, against a look at each row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.retrieval.engines.one_pass import LEAST_ROWS, SAMPLE_ROWS, Runs, expanded


def batch_of(keys, times) -> pa.RecordBatch:
    none = pa.nulls(len(times), pa.int64())
    columns = [*keys, pa.array(times, pa.int64()), none]
    names = [*(f"k{index}" for index in range(len(keys))), "t", "c"]
    return pa.RecordBatch.from_arrays(columns, names=names)


def runs_by_hand(keys, times) -> list[tuple[int, int]]:
    breaks = [
        row
        for row in range(1, len(times))
        if keys[row] != keys[row - 1] or times[row] < times[row - 1]
    ]
    return list(zip([0, *breaks], [*breaks, len(times)], strict=True))


stretches = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from("ab"),
        st.lists(st.integers(0, 9), min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=12,
)


@given(stretches, st.randoms(use_true_random=False))
@cases(200)
def test_runs_and_what_is_found_in_them(stretches, random):
    rows = [(one, two, time) for one, two, times in stretches for time in sorted(times)]
    ones, twos, times = zip(*rows, strict=True)
    batch = batch_of([pa.array(ones, pa.int64()), pa.array(twos)], times)
    expected = runs_by_hand(list(zip(ones, twos, strict=True)), times)
    runs = Runs.from_batch(batch)
    if LEAST_ROWS * (len(expected) - 1) >= len(rows):
        assert runs is None
        return
    assert list(zip(runs.first.tolist(), runs.end.tolist(), strict=True)) == expected

    asked = [(random.randrange(len(expected)), random.randrange(-1, 11)) for _ in range(30)]
    run, time = (np.array(values) for values in zip(*asked, strict=True))
    after = runs.after(run, time)
    for number, latest, found in zip(run.tolist(), time.tolist(), after.tolist(), strict=True):
        first, end = expected[number]
        assert found == first + sum(times[row] <= latest for row in range(first, end))

    some = np.flatnonzero(after > runs.first[run])
    which, equal = runs.equal_before(run[some], after[some] - 1)
    found = sorted(zip(which.tolist(), equal.tolist(), strict=True))
    assert found == [
        (index, row)
        for index, last in enumerate((after[some] - 1).tolist())
        for row in range(expected[run[some][index]][0], last)
        if times[row] == times[last]
    ]


def test_no_runs_where_rows_stand_in_any_order():
    generator = np.random.default_rng(1)
    keys = pa.array(generator.integers(0, 50, 5_000))
    assert Runs.from_batch(batch_of([keys], generator.integers(0, 1_000, 5_000))) is None


def test_no_runs_after_a_sorted_beginning():
    times = [*range(SAMPLE_ROWS), *range(20_000, 0, -1)]
    assert Runs.from_batch(batch_of([pa.array([7] * len(times))], times)) is None


def test_no_runs_with_nulls_or_without_rows():
    times = list(range(20))
    assert Runs.from_batch(batch_of([pa.array([1] * 19 + [None])], times)) is None
    assert Runs.from_batch(batch_of([pa.array([1] * 20)], [*times[:-1], None])) is None
    assert Runs.from_batch(batch_of([pa.array([], pa.int64())], [])) is None


def test_ranges():
    of_range, numbers = expanded(np.array([3, 7, 7]), np.array([5, 7, 10]))
    assert of_range.tolist() == [0, 0, 2, 2, 2]
    assert numbers.tolist() == [3, 4, 7, 8, 9]
