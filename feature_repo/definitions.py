"""The shop's features, as Feast objects. `feast apply` imports this file and no other here."""

from __future__ import annotations

import os
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String, UnixTimestamp

from feast_dynamo_ext import DynamoDBTableSource, Series, ViewSettings, recent, windows

BUCKET = os.environ.get("FEATURE_BUCKET", "feast-dynamo-demo")

customer = Entity(
    name="customer",
    join_keys=["customer_id"],
    value_type=ValueType.INT64,
    description="A customer of the shop.",
)

purchases = DynamoDBTableSource(
    name="purchases",
    table="purchases",
    event_time="purchased_at",
    event_time_unit="ms",
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="purchase_id", dtype=Int64),
        Field(name="purchased_at", dtype=UnixTimestamp),
        Field(name="items", dtype=Int64),
        Field(name="amount", dtype=Float64),
    ],
    history=f"s3://{BUCKET}/captured/purchases",
    partition="month",  # 127 purchases a day are little for a file
    description="The application's own table, which all else is made of; see application.py.",
)

customer_90d_source = FileSource(
    name="customer_90d_source",
    path=f"s3://{BUCKET}/history/customer_90d/",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="A row for each day a customer's 90-day numbers changed; written by history.py.",
)

customer_lifetime_source = FileSource(
    name="customer_lifetime_source",
    path=f"s3://{BUCKET}/history/customer_lifetime/",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="A row for each day a customer bought; written by history.py.",
)

customer_purchases_source = FileSource(
    name="customer_purchases_source",
    path=f"s3://{BUCKET}/history/customer_purchases/",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="The purchases themselves, a row each; written by history.py.",
)

customer_segment_source = FileSource(
    name="customer_segment_source",
    path=f"s3://{BUCKET}/history/customer_segment/",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="A row for each day a customer's segment changed; written by history.py.",
)

last_purchase = FeatureView(
    name="last_purchase",
    entities=[customer],
    ttl=timedelta(0),
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="items", dtype=Int64, description="Items of the newest purchase."),
        Field(name="amount", dtype=Float64, description="Its amount."),
    ],
    source=purchases,
    # A customer has many items in that table: deleting one must not empty the customer.
    tags=ViewSettings(deletes="ignore").tags(),
    description="The newest purchase of a customer, straight from the application's table.",
)

customer_90d = FeatureView(
    name="customer_90d",
    entities=[customer],
    # 0 means: no row ever expires. The 90 days are in the numbers, not in the life of the row: a
    # row holds until the next one, and the one that says "0 orders" is written as well. With a ttl
    # of 90 days that known 0 would turn into "unknown" for everyone who has been away for 180
    # days, and of this data of 1998 no row would be served today. Feeds that write a row each day
    # whether or not anything changed are the ones that want a ttl: a few times their interval.
    ttl=timedelta(0),
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="orders_90d", dtype=Int64, description="Orders in the last 90 days."),
        Field(name="items_90d", dtype=Int64, description="Items in those orders."),
        Field(name="spend_90d", dtype=Float64, description="Amount of those orders."),
        Field(name="mean_basket_90d", dtype=Float64, description="Spend per order; null if none."),
        Field(
            name="days_since_last_purchase",
            dtype=Int64,
            description="As of the row: up to 13 days too small when read; 90 means 90 or more.",
        ),
    ],
    source=customer_90d_source,
    description="What a customer bought in the last 90 days.",
)

customer_lifetime = FeatureView(
    name="customer_lifetime",
    entities=[customer],
    ttl=timedelta(0),  # true until the next purchase, however long that takes
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="lifetime_orders", dtype=Int64, description="Orders so far."),
        Field(name="lifetime_spend", dtype=Float64, description="Amount of those orders."),
        Field(
            name="first_purchase_age_days",
            dtype=Int64,
            description="Days from the first purchase to the newest.",
        ),
        Field(
            name="mean_gap_days",
            dtype=Float64,
            description="Mean days between days with a purchase; null until there are two.",
        ),
    ],
    source=customer_lifetime_source,
    description="What a customer bought since the first purchase.",
)

customer_purchases = FeatureView(
    name="customer_purchases",
    entities=[customer],
    ttl=timedelta(0),
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="number", dtype=Int64, description="Of the customer's purchases of that day."),
        Field(name="items", dtype=Int64, description="Items of the purchase."),
        Field(name="amount", dtype=Float64, description="Its amount."),
    ],
    source=customer_purchases_source,
    # Of data of 1998, `keep_for` would have DynamoDB delete every purchase. A shop of today keeps
    # what its longest window needs: keep_for=timedelta(days=90).
    tags=ViewSettings(series=Series(tie_breaker="number")).tags(),
    description="Every purchase of a customer, kept online by time.",
)

purchases_90d = windows(
    customer_purchases,
    name="purchases_90d",
    aggregations=[
        Aggregation(function="count", time_window=timedelta(days=90)),
        Aggregation(column="items", function="sum", time_window=timedelta(days=90)),
        Aggregation(column="amount", function="sum", time_window=timedelta(days=90)),
        Aggregation(column="amount", function="mean", time_window=timedelta(days=90)),
        Aggregation(function="time_since_last", time_window=timedelta(days=90)),
    ],
    description="What customer_90d says, computed of the purchases at the request.",
)

recent_purchases = recent(
    customer_purchases,
    name="recent_purchases",
    last=5,
    within=timedelta(days=90),
    features=["items", "amount"],
    fill={"items": 0},  # never null in this shop
    description="The last five purchases of 90 days, the newest first.",
)

customer_segment = FeatureView(
    name="customer_segment",
    entities=[customer],
    ttl=timedelta(0),
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="segment", dtype=String, description="new, returning or loyal."),
    ],
    source=customer_segment_source,
    tags=ViewSettings(cohorts=("segment",)).tags(),
    description="How often a customer has bought, by which customers are found.",
)

repurchase_v1 = FeatureService(
    name="repurchase_v1",
    features=[customer_90d, customer_lifetime],
    description="Inputs of the model that predicts a purchase within 60 days.",
)

repurchase_at_request = FeatureService(
    name="repurchase_at_request",
    features=[purchases_90d, customer_lifetime],
    description="The same inputs, those of 90 days computed at the request; see service.py.",
)
