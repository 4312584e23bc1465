"""Partition keys with many writes are found in bounded memory, and said without their names."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.materialize.hot_keys import FrequentKeys, HotKeys
from feast_dynamo_ext.materialize.report import RunReport, ViewReport, as_json, as_text

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def block(keys, units, **cohorts):
    """As much of an encoded block as is counted."""
    marks = {name: ("S", pa.array(values, pa.string())) for name, values in cohorts.items()}
    rows = SimpleNamespace(keys=pa.array(keys, pa.binary()), marks=marks)
    return SimpleNamespace(rows=rows, units=np.array(units))


def test_counts_are_right_where_there_are_few_keys():
    frequent = FrequentKeys(most=3)
    frequent.add(pa.array(["a", "b", None, "a"]), np.array([1, 2, 9, 3]))
    frequent.add(pa.array(["c", "b"]), np.array([1, 1]))
    assert frequent.highest == 4
    assert FrequentKeys().highest == 0


def test_with_many_keys_a_count_is_a_share_below_at_most():
    dice = random.Random(3)  # noqa: S311 - the same each time
    keys = [dice.choice(("hot", f"k{dice.randrange(5_000)}")) for _ in range(40_000)]
    frequent, most = FrequentKeys(most=100), Counter(keys)["hot"]
    for start in range(0, len(keys), 1_000):
        part = keys[start : start + 1_000]
        frequent.add(pa.array(part), np.ones(len(part), np.int64))
    assert most - len(keys) / 100 <= frequent.highest <= most
    assert len(frequent._units) <= 100


def test_entities_and_values_of_cohorts_that_are_hot_are_said_in_report_and_json():
    hot = HotKeys()
    for _ in range(2):
        hot.add(
            block([b"a", b"a", b"b"], [20_000, 20_000, 1], g_category=["=x", None, "=y"]),
            is_series=True,
        )
    assert hot.units == {"": 80_000}
    cohorts = HotKeys()
    many = ["=books"] * 70_000 + ["=toys"] * 10
    cohorts.add(block([b"k"] * 70_010, [1] * 70_010, g_category=many), is_series=False)
    assert cohorts.units == {"category": 70_000}

    views = [
        ViewReport("purchases", "shop.purchases", START, START, "done", hot=hot.units),
        ViewReport("customers", "shop.customers", START, START, "done", hot=cohorts.units),
    ]
    said = as_text(RunReport(views))
    assert (
        "purchases: one entity took 80,000 write units, and DynamoDB takes 1,000 a second of one: "
        "1 min 20 s at least." in said
    )
    assert "customers: one value of the cohort `category` took 70,000 write units" in said
    assert "books" not in said
    found = json.loads(json.dumps(as_json(RunReport(views))))["views"]
    assert [view["hot_keys"] for view in found] == [
        [{"cohort": None, "units": 80_000}],
        [{"cohort": "category", "units": 70_000}],
    ]
