"""A store that keeps every purchase, and views of lists and windows over them."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation
from feast.data_source import PushMode
from feast.types import Float64, Int64, String

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.dynamo.series_read import as_of
from feast_dynamo_ext.series_settings import Series

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NUMBERS = itertools.count()
T = dt.datetime.now(dt.timezone.utc).replace(minute=0, second=0, microsecond=0)
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)


@dataclass
class SeriesRepo:
    """A store with purchases, each of them kept, and views over them."""

    store: Any
    client: Any
    table: str
    name: str
    path: str

    def write(self, *purchases: tuple[Any, ...]) -> None:
        """Push (customer, days before T, number, amount, category)."""
        frame = _frame((*purchase, 0) for purchase in purchases)
        self.store.push(f"{self.name}_push", frame, to=PushMode.ONLINE)

    def materialize(self, *purchases: tuple[Any, ...]) -> None:
        """Have them as history, and materialize it."""
        _frame(purchases).to_parquet(self.path)
        self.store.materialize(T - 100 * DAY, T)

    def read(self, features: list[str], *customers: int | None) -> dict[str, list[Any]]:
        rows = [{"customer_id": customer} for customer in customers]
        with as_of(T):
            return self.store.get_online_features(features, rows).to_dict()

    def items(self) -> list[dict[str, Any]]:
        found = self.client.scan(TableName=self.table)["Items"]
        return [item for item in found if "f" in item]


def _frame(purchases: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """Rows of (customer, days before T, number, amount, category, days until it was created)."""
    return pd.DataFrame(
        [
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
    )


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


def series_repo(open_store: Any, dynamodb: Any, folder: Path, **series: Any) -> SeriesRepo:
    """A store with purchases of its own."""
    name = f"purchases{next(NUMBERS)}"
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    if dynamodb.name == "moto":  # it takes no binary values in PartiQL
        online["newest_wins_with"] = "put_item"
    store = open_store(f"series{next(NUMBERS)}", online=online)
    path = str(folder / "history.parquet")
    store.apply([CUSTOMER, *views_of(name, path, **series)])
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
    return SeriesRepo(store, client, f"{store.project}.{name}", name, path)
