"""Leaks that are put into small sets, and found; and sets without any."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from split_rows import TablesBySplit

from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.sagemaker.column_statistics import label_of
from feast_dynamo_ext.sagemaker.distributions import statistics
from feast_dynamo_ext.sagemaker.leakage import Keys, leakage, worst
from feast_dynamo_ext.sagemaker.over_time import ages

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
LIMITS = Limits(memory_limit="200MB", threads=2)


def tables(rows=400):
    """A clean set: entities of one split each, in the order of time, features of no use."""
    random = np.random.default_rng(4)
    made = {}
    for at, split in enumerate(("train", "validation", "test")):
        count = rows if at == 0 else rows // 4
        days = [START + dt.timedelta(days=1_000 * at + day) for day in range(count)]
        made[split] = {
            "id": [f"{split}-{number}" for number in range(count)],
            "t": pa.array(days, pa.timestamp("us", "UTC")),
            "y": random.integers(0, 2, count),
            "a": random.random(count),
            "b": random.random(count),
            "seen": pa.array([day - dt.timedelta(hours=3) for day in days]),
        }
    return made


def findings(made, rule="random", *, keeps=False, seen=(), columns=("a", "b")):
    rows = TablesBySplit({split: pa.table(table) for split, table in made.items()}, 60)
    label = label_of(rows, "y")
    found = leakage(
        rows,
        Keys("t", ("id",), rule, keeps_entities=keeps),
        label,
        statistics(rows, columns, label, LIMITS),
        ages(rows.every(), "t", seen),
        LIMITS,
    )
    return {finding.check: finding for finding in found}


def test_a_clean_set_has_no_leak():
    found = findings(tables(), seen=["seen"])
    assert {finding.level for finding in found.values()} == {"ok"}
    assert worst(found.values()) == "ok"
    assert found["Entities in several splits"].words == "Each of 600 entities is in one split."
    assert "of 1 views, no row" in found["Features younger than their row"].words


def test_the_age_of_features_is_unknown_where_the_set_does_not_keep_it():
    found = findings(tables())["Features younger than their row"]
    assert found.level == "unknown"
    assert "does not keep the event times" in found.words


def younger(made):
    at = made["test"]["t"].to_pylist()
    at[7] += dt.timedelta(microseconds=1)
    made["test"]["seen"] = pa.array(at)
    return {"seen": ["seen"]}


def crossing(made):
    made["test"]["id"][3] = made["train"]["id"][9]
    return {}


def crossing_by_time(made):
    return crossing(made) | {"rule": "event_time"}


def crossing_by_group(made):
    return crossing(made) | {"rule": "group", "keeps": True}


def label_copy(made):
    for table in made.values():
        table["b"] = pa.array(table["y"].astype(float), mask=np.arange(len(table["y"])) % 3 == 0)
    return {}


def label_by_name(made):
    for table in made.values():
        table["Y"] = table.pop("b")
    return {"columns": ("a", "Y")}


def near_perfect(made):
    for table in made.values():
        # the lower the value, the surer the label
        table["b"] = np.where(table["b"] < 0.002, 0.5, -table["y"] + table["b"] * 0.1)
    return {}


def telling_missing(made):
    for table in made.values():
        table["b"] = pa.array(table["b"], mask=table["y"] == 1)
    return {}


def same_row(made):
    moment = made["train"]["t"][5].as_py()
    at = made["test"]["t"].to_pylist()
    made["test"]["t"], made["test"]["id"][0] = pa.array([moment, *at[1:]]), "train-5"
    return {}


def equal_features(made, count=3):
    for name in ("a", "b", "y"):
        made["test"][name][:count] = made["train"][name][:count]
    return {}


def many_equal(made):
    return equal_features(made, 90)


def later_rows(made):
    times = made["train"]["t"].to_pylist()
    made["train"]["t"] = pa.array([*times[:-1], START + dt.timedelta(days=1_000)])
    return {}


def later_by_time(made):
    return later_rows(made) | {"rule": "event_time"}


@pytest.mark.parametrize(
    ("leak", "check", "level", "words"),
    [
        (younger, "Features younger than their row", "error", "1 values are of after their"),
        (crossing, "Entities in several splits", "warning", "1 of 599 entities (0%) are in"),
        (crossing_by_time, "Entities in several splits", "note", "entities that it knows"),
        (crossing_by_group, "Entities in several splits", "error", "The rule promises that none"),
        (label_copy, "Label among the features", "error", "`b` equal the label `y` in every row"),
        (label_by_name, "Label among the features", "error", "`Y` equal the label `y`"),
        (near_perfect, "Near-perfect single features", "warning", "`b` 0.99"),
        (telling_missing, "Missing values that tell the label", "warning", "of `b`. Such a"),
        (same_row, "The same row in several splits", "error", "1 of 599 pairs of entity and"),
        (equal_features, "Equal features in several splits", "note", "3 of 200 rows outside"),
        (many_equal, "Equal features in several splits", "warning", "90 of 200 rows outside"),
        (later_rows, "Later rows train", "note", "Train has rows of after the first row"),
        (later_by_time, "Later rows train", "error", "Train has rows of after the first row"),
    ],
)
def test_each_leak_is_found_and_said(leak, check, level, words):
    made = tables()
    found = findings(made, **leak(made))
    assert found[check].level == level
    assert words in found[check].words


def test_a_set_of_one_split_is_not_compared_with_others():
    found = findings({"train": tables()["train"]})
    assert list(found) == [
        "Features younger than their row",
        "Label among the features",
        "Near-perfect single features",
        "Missing values that tell the label",
    ]


def test_the_worst_level_is_that_of_all():
    made = tables()
    found = findings(made, **same_row(made))
    assert worst(found.values()) == "error"
    assert worst([]) == "ok"
