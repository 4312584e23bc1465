"""A view that keeps every event, and views of lists and windows over it."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String

from feast_dynamo_ext import Series, ViewSettings, recent, windows

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
history = FileSource(name="history", path="data/purchases.parquet", timestamp_field="purchased_at")
purchases = FeatureView(
    name="purchases",
    entities=[customer],
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="purchase_id", dtype=Int64),
        Field(name="amount", dtype=Float64),
        Field(name="category", dtype=String),
    ],
    source=PushSource(name="purchases_push", batch_source=history),
    ttl=timedelta(0),
    tags=ViewSettings(
        series=Series(keep_for=timedelta(days=90), tie_breaker="purchase_id")
    ).tags(),
)
last_purchases = recent(
    purchases,
    name="last_purchases",
    last=20,
    features=["amount", "category"],
    fill={"category": ""},
)
spend = windows(
    purchases,
    name="spend",
    aggregations=[
        Aggregation(column="amount", function="sum", time_window=timedelta(days=30)),
        Aggregation(function="count", time_window=timedelta(days=7)),
    ],
)
