"""Which slot sees a row first, against `bisect`; and which rows the bitmap drops."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pyarrow as pa
import pytest

from feast_dynamo_ext.retrieval.engines.slots import MANY, Orders, Slots
from feast_dynamo_ext.retrieval.inputs import MatchInput

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def entity_rows(keys, latest, ttl=None) -> MatchInput:
    latest = np.array(latest, dtype=np.int64)
    earliest = np.full(len(latest), LOWEST) if ttl is None else latest - ttl
    none = np.zeros(len(latest), dtype=bool)
    return MatchInput((pa.array(keys, pa.int64()),), latest, earliest, None, latest, none)


def slots_of(keys, latest, ttl=None) -> Slots:
    return Slots.from_input(entity_rows(keys, latest, ttl), Orders())


# One slot, few, some, and many: each is searched in its own way.
COUNTS = {"few": [1, 2, 0, 3], "some": [9, 1, 40, 700], "many": [1, MANY + 5, 3, 2 * MANY, 60]}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_first_slot_that_sees_a_row(counts):
    generator = np.random.default_rng(3)
    keys = np.repeat(np.arange(len(counts)), counts)
    times = generator.integers(0, 2_000, len(keys))
    shuffled = generator.permutation(len(keys))
    slots = slots_of(keys[shuffled], times[shuffled])
    by_key = {
        key: sorted(slots.order.latest[slots.order.key == number].tolist())
        for key, number in zip(
            range(len(counts)),
            slots.order.keys.numbers([pa.array(range(len(counts)))]),
            strict=True,
        )
    }
    asked_keys = generator.choice(np.flatnonzero(counts), 3_000)
    asked_times = generator.integers(-5, 2_010, 3_000)
    numbers = slots.order.keys.numbers([pa.array(asked_keys)]).astype(np.int64)
    found = slots.first_seeing(numbers, asked_times, slots.order.latest)
    within = found - slots.order.first[numbers]
    expected = [
        bisect_left(by_key[key], time)
        for key, time in zip(asked_keys.tolist(), asked_times.tolist(), strict=True)
    ]
    assert within.tolist() == expected


@pytest.mark.parametrize("ttl", [None, 0, 30, 5_000])
@pytest.mark.parametrize("shift", [0, HIGHEST - 10_000, LOWEST + 6_000])
def test_the_bitmap_drops_no_row_that_a_slot_sees(ttl, shift):
    generator = np.random.default_rng(4)
    keys, times = generator.integers(0, 50, 200), generator.integers(0, 3_000, 200) + shift
    slots = slots_of(keys, times, ttl)
    row_keys = generator.integers(-3, 60, 4_000)
    row_times = generator.integers(-5_000, 3_100, 4_000) + shift
    kept = set(slots.bitmap.rows([pa.array(row_keys)], row_times).tolist())
    seen = {
        row
        for row, (key, time) in enumerate(zip(row_keys.tolist(), row_times.tolist(), strict=True))
        for other, latest in zip(keys.tolist(), times.tolist(), strict=True)
        if key == other and (latest - ttl if ttl is not None else LOWEST) <= time <= latest
    }
    assert seen <= kept
    if ttl == 30:
        assert len(kept) < 400  # of 4,000, where 100 are seen


def test_views_of_the_same_keys_share_an_order():
    orders = Orders()
    one, other = entity_rows([1, 2], [10, 20], ttl=1), entity_rows([1, 2], [10, 20], ttl=5)
    assert Slots.from_input(one, orders).order is Slots.from_input(other, orders).order
