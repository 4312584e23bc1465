"""Every purchase of a customer, and what is made of them at each request."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String

from feast_dynamo_ext import Series, ViewSettings, recent, windows

MONTH = timedelta(days=30)

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
purchases = FeatureView(
    name="purchases",
    entities=[customer],
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="purchase_id", dtype=Int64),
        Field(name="price", dtype=Float64),
        Field(name="category", dtype=String),
    ],
    source=FileSource(
        name="history", path="data/purchases.parquet", timestamp_field="purchased_at"
    ),
    ttl=timedelta(0),
    tags=ViewSettings(
        series=Series(
            keep_for=timedelta(days=90),
            tie_breaker="purchase_id",  # tells two purchases of one moment apart
            orders=("price",),  # a local index
            cohorts=("category",),  # a global index
        )
    ).tags(),
)
last_purchases = recent(
    purchases,
    name="last_purchases",
    last=3,
    features=["price", "category"],
    fill={"category": ""},
)
spend = windows(
    purchases,
    name="spend",
    aggregations=[
        Aggregation(column="price", function="sum", time_window=MONTH),
        Aggregation(function="count", time_window=MONTH),
        Aggregation(column="category", function="count_distinct", time_window=MONTH),
        Aggregation(column="price", function="max", time_window=timedelta(days=90)),
    ],
)
buyer = FeatureService(name="buyer", features=[spend])
