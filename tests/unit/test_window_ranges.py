"""Aggregates of long ranges, which are not written out, against each range's own values."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from feast_dynamo_ext.retrieval.windows.aggregates import aggregated
from feast_dynamo_ext.retrieval.windows.event_ranges import EventColumn, Ranges, reduced

EVENTS, RANGES = 2_000, 400


def ranges(seed: int) -> Ranges:
    """Long ones, and a few empty ones."""
    random = np.random.default_rng(seed)
    first = np.sort(random.integers(0, EVENTS // 2, RANGES))
    end = np.minimum(first + random.integers(500, EVENTS, RANGES), EVENTS)
    end[::50] = first[::50]
    return Ranges(first, end)


COLUMNS = {
    "integers": lambda random: random.integers(-50, 50, EVENTS),
    "floats": lambda random: random.normal(size=EVENTS),
    "far from 0": lambda random: 1e9 + random.normal(size=EVENTS),
    "large integers": lambda random: 2**60 + random.integers(0, 9, EVENTS),
    "of several signs": lambda random: random.choice([1e16, -1e16, 0.1, 3.0], EVENTS),
    "infinite": lambda random: random.choice([math.inf, 1.0, -2.0], EVENTS),
}


@pytest.mark.parametrize("has_nulls", [False, True])
@pytest.mark.parametrize("name", [*COLUMNS])
def test_long_ranges_have_the_aggregates_of_their_values(name, has_nulls):
    random = np.random.default_rng(1)
    values = COLUMNS[name](random)
    missing = random.integers(0, 4, EVENTS) == 0 if has_nulls else np.zeros(EVENTS, dtype=bool)
    column = EventColumn(pa.array(values, mask=missing))
    asked = ranges(2)
    found = {
        function: aggregated(function, column, asked).to_pylist()
        for function in ("sum", "mean", "min", "max", "count", "count_distinct", "std")
        if not (name == "large integers" and function == "sum")
    }
    for at in range(RANGES):
        place = slice(int(asked.first[at]), int(asked.end[at]))
        some = values[place][~missing[place]].tolist()
        right = {"count": len(some), "count_distinct": len(set(some))}
        total = math.fsum(some) if isinstance(values[0], float) else sum(some)
        right |= {"sum": total, "mean": total / len(some)} if some else {}
        right |= {"min": min(some), "max": max(some)} if some else {}
        if name != "infinite":
            middle = some[0] if some else 0
            off = np.array([value - middle for value in some], dtype=float)
            right["std"] = float(np.std(off, ddof=1)) if len(some) > 1 else None
        for function, answers in found.items():
            value, expected = answers[at], right.get(function)
            if function == "std" and name == "infinite":
                continue
            if isinstance(expected, float):
                assert math.isclose(value, expected, rel_tol=1e-9), (function, at)
            else:
                assert value == expected, (function, at)


def test_ranges_in_any_order_are_reduced():
    values = np.arange(100)
    asked = Ranges(np.array([90, 3, 50, 0, 7]), np.array([100, 4, 50, 100, 60]))
    assert reduced(np.add, values, asked, 0).tolist() == [945, 3, 0, 4950, sum(range(7, 60))]
    assert reduced(np.maximum, values, asked, -1).tolist() == [99, 3, -1, 99, 59]
