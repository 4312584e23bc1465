"""A table of an application as a source, and a view that passes deletions over."""

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64, Int64, UnixTimestamp

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
purchases = DynamoDBTableSource(
    name="purchases",
    table="purchases",
    event_time="purchased_at",
    event_time_unit="ms",
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="purchased_at", dtype=UnixTimestamp),
        Field(name="amount", dtype=Float64),
    ],
    history="s3://my-features/history/purchases",
)
last_purchase = FeatureView(
    name="last_purchase",
    entities=[customer],
    schema=[Field(name="customer_id", dtype=Int64), Field(name="amount", dtype=Float64)],
    source=purchases,
    tags=ViewSettings(deletes="ignore").tags(),
)
