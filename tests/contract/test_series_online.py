"""Events of a series are kept each, and lists and aggregates are computed of them at the request.

The table is looked at by boto3; what is answered, by Python over the events that were written.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from dataclasses import dataclass
from typing import Any

import boto3
import pandas as pd
import pytest
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation
from feast.data_source import PushMode
from feast.types import Float64, Int64, String

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.dynamo.series_read import as_of
from feast_dynamo_ext.materialize import newest_rows
from feast_dynamo_ext.series import Series

pytestmark = pytest.mark.server

NUMBERS = itertools.count()
T = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)


class Clock(dt.datetime):
    """The time is T."""

    @classmethod
    def now(cls, tz=None):
        return T


@dataclass
class SeriesRepo:
    """A store with purchases, each of them kept, and views over them."""

    store: Any
    client: Any
    table: str
    push: str
    path: str

    def write(self, *purchases: tuple[Any, ...]) -> None:
        """Push (customer, days before T, number, amount, category)."""
        rows = [
            {
                "customer_id": customer,
                "event_timestamp": T - days * DAY,
                "purchase_id": number,
                "amount": amount,
                "category": category,
                "created": T - days * DAY,
            }
            for customer, days, number, amount, category in purchases
        ]
        self.store.push(self.push, pd.DataFrame(rows), to=PushMode.ONLINE)

    def materialize(self, *purchases: tuple[Any, ...]) -> None:
        """Have them as history, and materialize it."""
        rows = [
            {
                "customer_id": customer,
                "event_timestamp": T - days * DAY,
                "purchase_id": number,
                "amount": amount,
                "category": category,
                "created": T - days * DAY + late * DAY,
            }
            for customer, days, number, amount, category, late in purchases
        ]
        pd.DataFrame(rows).to_parquet(self.path)
        self.store.materialize(T - 100 * DAY, T)

    def read(self, features: list[str], *customers: int | None) -> dict[str, list[Any]]:
        rows = [{"customer_id": customer} for customer in customers]
        with as_of(T):
            return self.store.get_online_features(features, rows).to_dict()

    def items(self) -> list[dict[str, Any]]:
        found = self.client.scan(TableName=self.table)["Items"]
        return [item for item in found if "f" in item]


def views_of(name: str, path: str, **series: Any) -> list[Any]:
    source = FileSource(
        name=f"{name}_history",
        path=path,
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    push = PushSource(name=f"{name}_push", batch_source=source)
    settings = {"tie_breaker": "purchase_id", "keep_for": 90 * DAY, **series}
    base = FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="purchase_id", dtype=Int64),
            Field(name="amount", dtype=Float64),
            Field(name="category", dtype=String),
        ],
        source=push,
        ttl=dt.timedelta(0),
        tags=ViewSettings(series=Series(**settings)).tags(),
    )
    return [
        base,
        recent(
            base,
            name=f"{name}_last",
            last=3,
            features=["amount", "category"],
            fill={"category": "?"},
        ),
        windows(
            base,
            name=f"{name}_spend",
            aggregations=[
                Aggregation(column="amount", function="sum", time_window=30 * DAY),
                Aggregation(column="amount", function="mean", time_window=30 * DAY),
                Aggregation(column="category", function="count_distinct", time_window=30 * DAY),
                Aggregation(function="count", time_window=7 * DAY),
                Aggregation(column="amount", function="max", time_window=90 * DAY),
                Aggregation(function="time_since_last", time_window=90 * DAY),
            ],
        ),
    ]


@pytest.fixture
def repo(open_store, dynamodb, tmp_path):
    name = f"purchases{next(NUMBERS)}"
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    if dynamodb.name == "moto":  # it takes no binary values in PartiQL
        online["newest_wins_with"] = "put_item"
    store = open_store(f"series{next(NUMBERS)}", online=online)
    path = str(tmp_path / "history.parquet")
    store.apply([CUSTOMER, *views_of(name, path)])
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
    yield SeriesRepo(store, client, f"{store.project}.{name}", f"{name}_push", path)
    store.teardown()


def test_events_are_kept_and_listed(repo):
    repo.write(*[(1, day, day, 10.0 + day, f"c{day % 2}") for day in range(5)])
    repo.write((2, 40, 1, 5.5, None), (2, 40, 2, 6.5, "b"))
    assert len(repo.items()) == 7
    name = repo.push.removesuffix("_push")
    found = repo.read(
        [
            f"{name}_last:amount_last_3",
            f"{name}_last:category_last_3",
            f"{name}_last:event_time_last_3",
            f"{name}_spend:sum_amount_30d",
            f"{name}_spend:mean_amount_30d",
            f"{name}_spend:count_distinct_category_30d",
            f"{name}_spend:count_7d",
            f"{name}_spend:max_amount_90d",
            f"{name}_spend:time_since_last_90d",
        ],
        1,
        2,
        3,
        None,
    )
    micros = [int((T - day * DAY).timestamp() * 1e6) for day in (0, 1, 2, 40)]
    assert found == {
        "customer_id": [1, 2, 3, None],
        "amount_last_3": [[10.0, 11.0, 12.0], [6.5, 5.5], [], None],
        "category_last_3": [["c0", "c1", "c0"], ["b", "?"], [], None],
        "event_time_last_3": [micros[:3], [micros[3]] * 2, [], None],
        "sum_amount_30d": [60.0, None, None, None],
        "mean_amount_30d": [12.0, None, None, None],
        "count_distinct_category_30d": [2, 0, 0, None],
        "count_7d": [5, 0, 0, None],
        "max_amount_90d": [14.0, 6.5, None, None],
        "time_since_last_90d": [0.0, 40 * 86400.0, None, None],
    }


def test_an_event_is_one_item_however_often_it_is_written(repo):
    for amount in (1.0, 2.0):
        repo.write((1, 1, 7, amount, "a"), (1, 1, 8, amount, "a"))
    assert len(repo.items()) == 2
    name = repo.push.removesuffix("_push")
    assert repo.read([f"{name}_last:amount_last_3"], 1)["amount_last_3"] == [[2.0, 2.0]]
    assert repo.read([f"{name}:amount", f"{name}:purchase_id"], 1) == {
        "customer_id": [1],
        "amount": [2.0],
        "purchase_id": [8],
    }


def test_late_events_stand_in_their_place(repo):
    repo.write((1, 1, 2, 2.0, "a"))
    repo.write((1, 3, 1, 1.0, "b"))
    name = repo.push.removesuffix("_push")
    assert repo.read([f"{name}_last:amount_last_3"], 1)["amount_last_3"] == [[2.0, 1.0]]
    assert math.isclose(repo.read([f"{name}_spend:sum_amount_30d"], 1)["sum_amount_30d"][0], 3.0)


def test_all_events_of_a_window_are_materialized_once_each(repo, monkeypatch):
    monkeypatch.setattr(newest_rows, "datetime", Clock)
    rows = [
        (customer, day, number, float(100 * customer + number), "ab"[number % 2], 0)
        for customer in range(1, 8)
        for day in (0, 3, 50)
        for number in range(4)
    ]
    corrected = [(1, 3, 2, -1.0, None, 2), (1, 3, 2, -2.0, None, 1)]
    gone = (1, 95, 1, 1.0, "a", 0)
    for _ in range(2):
        repo.materialize(*rows, *corrected, gone)
        assert len(repo.items()) == len(rows)
    name = repo.push.removesuffix("_push")
    found = repo.read([f"{name}_spend:count_7d", f"{name}_spend:sum_amount_30d"], 1, 7)
    assert found["count_7d"] == [8, 8]
    assert found["sum_amount_30d"] == [2 * 406.0 - 102.0 - 1.0, 5612.0]
