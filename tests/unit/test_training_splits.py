"""Split rules against what each means, a row at a time in plain Python."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import (
    ColumnSplit,
    GroupSplit,
    NoSplit,
    RandomSplit,
    StratifiedSplit,
    TimeFractions,
    TimeSplit,
)
from feast_dynamo_ext.sagemaker.split import split_from_manifest

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
THREE = {"train": 0.5, "validation": 0.25, "test": 0.25}
TWO = {"train": 0.7, "test": 0.3}


def times_at(hours) -> pa.Array:
    return pa.array([START + hour * HOUR for hour in hours], pa.timestamp("us", "UTC"))


def assign(rule, *columns: pa.Array, size: int | None = None) -> list[str | None]:
    """The split of each row, given in pieces of a size; None is left out."""
    rows = len(columns[0])
    size = size or max(1, rows)
    pieces = [
        rule.narrow([column.slice(at, size) for column in columns], at)
        for at in range(0, rows, size)
    ]
    narrowed = pa.concat_arrays(pieces)
    assert narrowed.nbytes <= 8 * rows + 8 * len(pieces)
    read = split_from_manifest(json.loads(json.dumps(rule.as_manifest())))
    assert read == rule
    places = read.assign(narrowed)
    assert places.dtype == np.int8
    return [None if place < 0 else rule.splits[place] for place in places]


HOURS = st.lists(st.integers(0, 50), min_size=1, max_size=40)


@cases(200)
@given(
    hours=HOURS,
    first=st.one_of(st.none(), st.integers(-5, 55)),
    second=st.integers(1, 60),
    embargo=st.integers(0, 20),
    size=st.integers(1, 9),
)
def test_time_with_an_embargo_and_two_or_three_parts(hours, first, second, embargo, size):
    bounds = {"validation": first, "test": None if first is None else first + second}
    if first is None:
        bounds = {"validation": None, "test": second}
    elif second % 3 == 0:
        bounds = {"validation": first, "test": None}
    given = {f"{k}_from": START + v * HOUR for k, v in bounds.items() if v is not None}
    rule = TimeSplit(**given, embargo=embargo * HOUR)

    def by_hand(hour):
        last, found = None, "train"
        for name, bound in bounds.items():
            if bound is None:
                continue
            if hour >= bound:
                found = name
            elif last is None:
                last = bound
        return None if last is not None and last - embargo <= hour < last else found

    expected = [by_hand(hour) for hour in hours]
    if set(rule.splits) <= set(expected):
        assert assign(rule, times_at(hours), size=size) == expected
    else:
        with pytest.raises(TrainingSetError, match=r"The split leaves .* empty"):
            assign(rule, times_at(hours), size=size)


@cases(200)
@given(hours=HOURS, fractions=st.sampled_from([TWO, THREE]), embargo=st.integers(0, 9))
def test_time_by_fractions_keeps_equal_times_together(hours, fractions, embargo):
    rule = TimeFractions(fractions, embargo * HOUR)
    ordered, reached, bounds = sorted(hours), Fraction(0), []
    for part in list(fractions.values())[:-1]:
        reached += Fraction(str(part))
        bounds.append(ordered[int(len(hours) * reached)])

    def by_hand(hour):
        place = sum(hour >= bound for bound in bounds)
        near = place < len(bounds) and bounds[place] - embargo <= hour
        return None if near else rule.splits[place]

    expected = [by_hand(hour) for hour in hours]
    if set(rule.splits) <= set(expected):
        assert assign(rule, times_at(hours)) == expected
    else:
        with pytest.raises(TrainingSetError, match="empty"):
            assign(rule, times_at(hours))


MASK = 2**64 - 1


def mix(value: int) -> int:
    """SplitMix64's output of a state, from its authors' C code."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_splitmix_gives_its_known_first_numbers():
    # Of seed 1234567, as of the reference implementation.
    assert mix(1234567) == 6457827717110365317
    assert mix(1234567 + 0x9E3779B97F4A7C15) == 3203168211198807973


KEYS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5))


def by_hash(seed: int, keys) -> Fraction:
    found = mix(seed & MASK)
    for key in keys:
        if isinstance(key, int):
            hashed = mix(key & MASK)
        else:
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            hashed = int.from_bytes(digest, "big")
        found = mix(found ^ hashed)
    return Fraction(found, 2**64)


@cases(100)
@given(
    rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=4)), min_size=1),
    seed=st.integers(-3, 3),
    size=st.integers(1, 9),
)
def test_groups_are_split_by_a_hash_that_stays(rows, seed, size):
    rule = GroupSplit(THREE, ("id", "shop"), seed)
    columns = [pa.array([row[0] for row in rows]), pa.array([row[1] for row in rows], pa.string())]
    expected = []
    for row in rows:
        place = by_hash(seed, row)
        expected.append("train" if place < 0.5 else "validation" if place < 0.75 else "test")
    if set(expected) == set(THREE):
        assert assign(rule, *columns, size=size) == expected
    else:
        with pytest.raises(TrainingSetError, match="empty"):
            assign(rule, *columns, size=size)


def test_an_entity_never_crosses_also_when_rows_are_added():
    ids = np.random.default_rng(3).integers(0, 2_000, 20_000)
    rule = GroupSplit(TWO, "id")
    found = assign(rule, pa.array(ids), size=7_000)
    of_entity = defaultdict(set)
    for entity, split in zip(ids.tolist(), found, strict=True):
        of_entity[entity].add(split)
    assert {len(splits) for splits in of_entity.values()} == {1}
    assert assign(rule, pa.array([*ids, 5_000, 5_001]))[: len(ids)] == found
    entities = Counter(next(iter(splits)) for splits in of_entity.values())
    assert abs(entities["train"] / len(of_entity) - 0.7) < 0.04


def test_group_hashes_do_not_depend_on_the_width_of_integers():
    ids = list(range(300))
    wide, narrow = pa.array(ids, pa.int64()), pa.array(ids, pa.int16())
    assert assign(GroupSplit(TWO, "id"), wide) == assign(GroupSplit(TWO, "id"), narrow)
    assert assign(GroupSplit(TWO, "id", 1), wide) != assign(GroupSplit(TWO, "id"), wide)


@cases(60)
@given(rows=st.integers(4, 500), seed=st.integers(0, 5), size=st.integers(1, 99))
def test_random_parts_have_their_rows_and_stay_the_same(rows, seed, size):
    rule = RandomSplit(THREE, seed)
    column = pa.array(range(rows))
    found = assign(rule, column, size=size)
    drawn = sorted(range(rows), key=lambda row: mix(row ^ mix(seed)))
    first, second = int(rows * 0.5 + 0.5), int(rows * 0.75 + 0.5)
    expected = dict.fromkeys(drawn[:first], "train") | dict.fromkeys(
        drawn[first:second], "validation"
    )
    assert found == [expected.get(row, "test") for row in range(rows)]


@cases(60)
@given(labels=st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=12, max_size=200))
def test_stratified_parts_keep_the_balance_of_the_label(labels):
    rule = StratifiedSplit(THREE)
    assert rule.columns("event_timestamp", "y") == ("y",)
    found = assign(rule, pa.array(labels), size=50)
    counts = Counter(zip(labels, found, strict=True))
    for value, rows in Counter(labels).items():
        for split, part in THREE.items():
            assert abs(counts[value, split] - rows * part) <= 1


def test_too_many_strata():
    with pytest.raises(TrainingSetError, match=r"1,001 distinct values, too many to keep"):
        assign(StratifiedSplit(THREE), pa.array(np.arange(1001) / 7))


def test_a_column_names_the_split():
    names = pa.array(["test", "train", "train"]).dictionary_encode()
    assert assign(ColumnSplit("fold"), names) == ["test", "train", "train"]
    rule = ColumnSplit("fold", {"train": [0, 1], "test": 2})
    assert rule.splits == ("train", "test")
    assert assign(rule, pa.array([2, 1, 0]), size=2) == ["test", "train", "train"]
    with pytest.raises(TrainingSetError, match="`fold` names no split in 2 of 3 rows"):
        assign(rule, pa.array([2, 7, None]))
    with pytest.raises(TrainingSetError, match="leaves test empty"):
        assign(rule, pa.array([1, 0]))
    with pytest.raises(TrainingSetError, match="names no split"):
        assign(rule, pa.array([True, False]))


def test_without_a_split_all_rows_train():
    assert assign(NoSplit(), times_at([1, 2])) == ["train", "train"]
    with pytest.raises(TrainingSetError, match="leaves train empty"):
        NoSplit().assign(pa.nulls(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomSplit({"train": 1.0}), "`fractions` are {'train': 1.0}: name `train`"),
        (lambda: RandomSplit({"train": 0.5, "test": 0.4}), "which add up to 1"),
        (lambda: RandomSplit({"train": 0.5, "dev": 0.5}), "name `train` and one or both of"),
        (lambda: RandomSplit({}), "`fractions` are {}"),
        (lambda: GroupSplit(TWO), "needs `by`"),
        (TimeSplit, "needs `validation_from`, `test_from` or both"),
        (lambda: TimeSplit(START, embargo=-HOUR), "`embargo` is"),
        (lambda: ColumnSplit("x", {"test": [1]}), "name `train` and one or both"),
        (lambda: ColumnSplit("x", {"train": [1], "test": [1]}), "in it and in no other"),
    ],
)
def test_rules_that_cannot_be(make, words):
    with pytest.raises(TrainingSetError) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1, None]), "which is missing in 1 of 2 rows"),
        (pa.array([[1]]), "cannot be split by `id` of type list"),
    ],
)
def test_groups_need_a_key_in_each_row(column, words):
    with pytest.raises(TrainingSetError) as caught:
        GroupSplit(TWO, "id").narrow([column], 0)
    assert words in str(caught.value)
