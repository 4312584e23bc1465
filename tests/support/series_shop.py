"""A shop that keeps every purchase, and the newest row of each customer, on a DynamoDB."""

from __future__ import annotations

import dataclasses
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
from repos import REGION

from feast_dynamo_ext import ViewSettings, recent, windows
from feast_dynamo_ext.dynamo.series_read import as_of
from feast_dynamo_ext.errors import ThrottledError
from feast_dynamo_ext.series_settings import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
DAY = dt.timedelta(days=1)
NUMBERS = itertools.count()


def source_of(name: str, folder: Any) -> FileSource:
    return FileSource(
        name=f"{name}_history",
        path=f"{folder}/{name}.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def view_of(
    name: str,
    folder: Any,
    tags: dict[str, str],
    ttl: dt.timedelta = dt.timedelta(0),
    **features: Any,
) -> FeatureView:
    """A view of customers that is pushed to by `{name}_push`."""
    types = {"customer_id": Int64, **features}
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[Field(name=column, dtype=dtype) for column, dtype in types.items()],
        source=PushSource(name=f"{name}_push", batch_source=source_of(name, folder)),
        ttl=ttl,
        tags=tags,
    )


def purchases_view(
    name: str, folder: Any, ttl: dt.timedelta = dt.timedelta(0), **series: Any
) -> FeatureView:
    """Purchases, each of them kept."""
    settings = {"tie_breaker": "purchase_id", **series}
    tags = ViewSettings(series=Series(**settings)).tags()
    return view_of(
        name, folder, tags, ttl, purchase_id=Int64, amount=Float64, category=String, note=String
    )


def customers_view(
    name: str, folder: Any, ttl: dt.timedelta = dt.timedelta(0), *, cohorts: Any = ("segment",)
) -> FeatureView:
    """The newest row of each customer, to be found by segment."""
    tags = ViewSettings(cohorts=cohorts).tags()
    return view_of(name, folder, tags, ttl, segment=String, visits=Int64)


def lists_and_sums(base: FeatureView) -> list[FeatureView]:
    """Views of the last three events, and of windows up to 90 days."""
    sums = (
        ("amount", "sum", 30),
        ("amount", "mean", 30),
        ("category", "count_distinct", 30),
        ("", "count", 7),
        ("amount", "max", 90),
        ("", "time_since_last", 90),
    )
    return [
        recent(
            base,
            name=f"{base.name}_last",
            last=3,
            features=["amount", "category"],
            fill={"category": "?"},
        ),
        windows(
            base,
            name=f"{base.name}_spend",
            aggregations=[
                Aggregation(column=column, function=function, time_window=days * DAY)
                for column, function, days in sums
            ],
        ),
    ]


@dataclass
class ThrottledQueries:
    """A transport of which some queries are throttled.

    Attributes:
        transport: the one that the others go through.
        is_throttled: of each query in turn.
    """

    transport: Any
    is_throttled: Iterator[bool]

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Any:
        if operation == "Query" and next(self.is_throttled):
            raise ThrottledError("slow down", service="dynamodb", operation="Query")
        return await self.transport.call(operation, body, resource, timeout_s)


@dataclass
class ShortPages:
    """A transport whose queries are answered in pages of a few items, as those of 1 MB are."""

    transport: Any
    items: int

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Any:
        if operation == "Query":
            body = {**body, "Limit": min(self.items, body.get("Limit", self.items))}
        return await self.transport.call(operation, body, resource, timeout_s)


@dataclass
class SeriesShop:
    """A store with views, on a DynamoDB.

    Attributes:
        store: the feature store.
        client: boto3's.
        now: the time that events are counted back from.
        folder: of the histories.
    """

    store: Any
    client: Any
    now: dt.datetime
    folder: Any

    @classmethod
    def open(cls, open_store: Any, dynamodb: Any, folder: Any, **online: Any) -> SeriesShop:
        """Without views, of a project of its own."""
        settings = {"region": REGION, "endpoint_url": dynamodb.endpoint, **online}
        if dynamodb.name == "moto":  # it takes no binary values in PartiQL
            settings["newest_wins_with"] = "put_item"
        store = open_store(f"shop{next(NUMBERS)}", online=settings)
        client = boto3.client("dynamodb", region_name=REGION, endpoint_url=dynamodb.endpoint)
        return cls(
            store, client, dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0), folder
        )

    def apply(self, *views: Any) -> None:
        self.store.apply([CUSTOMER, *views])

    def time(self, days: float) -> dt.datetime:
        return self.now - days * DAY

    def micros(self, *days: float) -> list[int]:
        return [int(self.time(each).timestamp() * 1_000_000) for each in days]

    def table(self, view: str) -> str:
        return f"{self.store.project}.{view}"

    def read(self, features: list[str], *customers: int | None) -> dict[str, list[Any]]:
        """Features of customers as of now."""
        rows = [{"customer_id": customer} for customer in customers]
        with as_of(self.now):
            return self.store.get_online_features(features, rows).to_dict()

    def materialize(self, view: str, *purchases: tuple[Any, ...]) -> None:
        """Have (customer, days ago, number, amount, category, days late) as history, and do it."""
        rows = self.rows(("purchase_id", "amount", "category", "late"), purchases)
        frame = pd.DataFrame(rows).assign(note=None)
        frame["created"] += pd.to_timedelta(frame.pop("late"), unit="D")
        frame.to_parquet(f"{self.folder}/{view}.parquet")
        self.store.materialize(self.now - 100 * DAY, self.now)

    def buy(self, view: str, *purchases: tuple[Any, ...]) -> None:
        """Push (customer, days ago, number, amount, category, note)."""
        names = ("purchase_id", "amount", "category", "note")
        self._push(view, names, purchases)

    def visit(self, view: str, *rows: tuple[Any, ...]) -> None:
        """Push (customer, days ago, segment, visits)."""
        self._push(view, ("segment", "visits"), rows)

    def _push(self, view: str, names: tuple[str, ...], rows: Any) -> None:
        frame = pd.DataFrame(self.rows(names, rows))
        self.store.push(f"{view}_push", frame, to=PushMode.ONLINE)

    def rows(self, names: tuple[str, ...], rows: Any) -> list[dict[str, Any]]:
        return [
            {
                "customer_id": customer,
                "event_timestamp": self.time(days),
                "created": self.time(days),
                **dict(itertools.zip_longest(names, cells)),
            }
            for customer, days, *cells in rows
        ]

    def read_through(self, wrap: Callable[[Any], Any], **policy: Any) -> None:
        """Send reads through a transport around the store's own, one at a time."""
        online = self.store.provider.online_store
        connection = online.connection(self.store.config)
        reader = dataclasses.replace(
            connection.reader,
            transport=wrap(connection.transport),
            policy=dataclasses.replace(connection.reader.policy, **policy),
            workers=1,
        )
        process, _ = online._opened
        online._opened = process, dataclasses.replace(connection, reader=reader)

    def items(self, view: str) -> list[dict[str, Any]]:
        """The rows or events of a view's table."""
        found = self.client.scan(TableName=self.table(view))["Items"]
        return [item for item in found if "f" in item]
