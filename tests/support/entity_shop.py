"""A small shop in a registry file, for tests of entity rows: who bought what, and at which rate.

Days count from 2026-01-01 00:00 UTC.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.feature_view import DUMMY_ENTITY_FIELD
from feast.types import Float64, Int64, String
from views import CUSTOMER, customer_view, parquet_files

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureStore

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
UTC = pa.timestamp("us", tz="UTC")

PRODUCT = Entity(name="product", join_keys=["sku"], value_type=ValueType.STRING)


def day(number: float) -> dt.datetime:
    return START + dt.timedelta(days=number)


def days(numbers: list[float], kind: pa.DataType = UTC) -> pa.Array:
    return pa.array([day(number) for number in numbers], UTC).cast(kind)


ORDERS = {
    "cid": pa.array([1, 1, 2, None], pa.int32()),
    "event_timestamp": days([0, 2, 1, 1]),
    "total": [1.0, 2.0, 3.0, 4.0],
}
BASKETS = {
    "customer": pa.array([1, 2, 1], pa.int64()),
    "sku": ["007", "x", "007"],
    "at": days([1, 1, 2], pa.timestamp("ms")),
    "made": days([1, 3, 2], pa.timestamp("s")),
    "amount": pa.array([10, 20, 30], pa.int64()),
}
RATES = {"event_timestamp": days([0, 1]), "rate": [0.1, 0.2]}


def orders(ttl: dt.timedelta = dt.timedelta(0)) -> FeatureView:
    return customer_view(source=parquet_files("orders", name="orders"), ttl=ttl)


def baskets(ttl: dt.timedelta = dt.timedelta(0)) -> FeatureView:
    """Its files know the customer, the amount and the event time by other names."""
    return FeatureView(
        name="baskets",
        entities=[CUSTOMER, PRODUCT],
        schema=[
            Field(name="cid", dtype=Int64),
            Field(name="sku", dtype=String),
            Field(name="items", dtype=Int64),
        ],
        source=FileSource(
            name="basket files",
            path="baskets",
            timestamp_field="event_timestamp",
            created_timestamp_column="made",
            field_mapping={"customer": "cid", "amount": "items", "at": "event_timestamp"},
        ),
        ttl=ttl,
    )


def rates() -> FeatureView:
    rates = FeatureView(
        name="rates",
        entities=[],
        schema=[Field(name="rate", dtype=Float64)],
        source=FileSource(name="rates", path="rates", timestamp_field="event_timestamp"),
        ttl=dt.timedelta(0),
    )
    rates.entity_columns = [DUMMY_ENTITY_FIELD]  # as `feast apply` leaves it
    return rates


def write(folder: Path, name: str, columns: dict[str, Any]) -> None:
    (folder / name).mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / name / "part-0.parquet", row_group_size=2)


def open_shop(store: FeatureStore, folder: Path, *views: Any) -> FeatureStore:
    """Writes the histories and registers the views, or else all; AWS is not asked."""
    for name, columns in (("orders", ORDERS), ("baskets", BASKETS), ("rates", RATES)):
        write(folder, name, columns)
    for entity in (CUSTOMER, PRODUCT):
        store.registry.apply_entity(entity, store.project)
    for one in views or (orders(), baskets(), rates()):
        if one.batch_source is not None:
            store.registry.apply_data_source(one.batch_source, store.project)
        store.registry.apply_feature_view(one, store.project)
    return store
