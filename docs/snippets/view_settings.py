"""A view with settings of its own, and a service that is read from one item an entity."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64, Int64
from feast.value_type import ValueType

from feast_dynamo_ext import TableSettings, ViewSettings

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
orders = FeatureView(
    name="orders",
    entities=[customer],
    schema=[Field(name="orders_90d", dtype=Int64), Field(name="spend_90d", dtype=Float64)],
    source=FileSource(path="s3://my-features/history/orders", timestamp_field="event_timestamp"),
    ttl=timedelta(days=90),
    tags={
        "team": "growth",
        **ViewSettings(
            consistent_reads=True,
            expired="value",
            write_mode="newest_wins",
            table=TableSettings(deletion_protection=True, point_in_time_recovery=True),
        ).tags(),
    },
)
churn = FeatureService(name="churn", features=[orders], precompute_online=True)
