"""Orders, in a folder a day that says which event times it holds, and labels beside them."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import Float64, Int64
from feast.value_type import ValueType

from feast_dynamo_ext import S3ParquetSource

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
orders = FeatureView(
    name="orders",
    entities=[customer],
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="orders_90d", dtype=Int64),
        Field(name="spend_90d", dtype=Float64),
    ],
    source=S3ParquetSource(
        name="orders_source",
        path="s3://my-features/history/orders",
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        date_partition_column="dt",  # folders dt=2026-01-31; the format is %Y-%m-%d by default
    ),
    ttl=timedelta(days=7),
)
returns = FileSource(
    name="returns",
    path="s3://my-features/history/returns",
    timestamp_field="event_timestamp",
)
