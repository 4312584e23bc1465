"""A feature repo with an Iceberg table and a plain file, and training sets of it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.infra.offline_stores.file_source import FileSource
from feast.types import Float64, Int64
from repos import open_repo_config, write_repo_yaml

from feast_dynamo_ext.parquet.iceberg.catalog import opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, create_table
from feast_dynamo_ext.sagemaker import TimeSplit, TrainingSet, create_training_set

if TYPE_CHECKING:
    from pathlib import Path

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
CUSTOMERS = 40
DAYS = 30


def history(days: range, more: float = 0.0) -> pa.Table:
    """Two numbers a customer and day."""
    cids = [cid for _ in days for cid in range(CUSTOMERS)]
    return pa.table(
        {
            "cid": pa.array(cids, pa.int64()),
            "event": pa.array([START + day * DAY for day in days for _ in range(CUSTOMERS)]),
            "spend": [more + cid * 0.5 + day for day in days for cid in range(CUSTOMERS)],
            "orders": [(cid * 7 + day) % 5 for day in days for cid in range(CUSTOMERS)],
        }
    )


def iceberg_source(folder: Path) -> IcebergSource:
    return IcebergSource(
        name="purchases",
        catalog_type="sql",
        endpoint=f"sqlite:///{folder}/catalog.db",
        warehouse=f"file://{folder}/warehouse",
        namespace="shop",
        table="purchases",
        timestamp_field="event",
    )


def shop(folder: Path) -> FeatureStore:
    """The repo, its views applied and their history written."""
    write_repo_yaml(folder)
    store = FeatureStore(repo_path=str(folder))
    handle = TableHandle.from_source(iceberg_source(folder), store.config)
    rows = history(range(DAYS))
    catalog = opened(handle.address, handle.settings)
    create_table(
        catalog, "shop.purchases", rows.schema, TableLayout(("cid",), "event", None, "month")
    )
    handle.append(rows)
    visits = folder / "visits.parquet"
    pq.write_table(rows.rename_columns(["cid", "event", "minutes", "clicks"]), visits)
    plain = FileSource(name="visits", path=str(visits), timestamp_field="event")
    apply(folder, view("purchases", iceberg_source(folder)), view("visits", plain))
    return store


def apply(folder: Path, *views: Any) -> None:
    """Apply views and services with Feast's local provider, as nothing is served."""
    online = {"type": "sqlite", "path": f"{folder}/online.db"}
    config = open_repo_config(folder, provider="local", online_store=online)
    FeatureStore(config=config).apply([CUSTOMER, *views])


def view(name: str, source: Any, **more: Any) -> FeatureView:
    kinds = {"spend": Float64, "orders": Int64} if name == "purchases" else {"minutes": Float64}
    fields = [Field(name=column, dtype=kind) for column, kind in kinds.items()]
    given = {"ttl": dt.timedelta(0), "online": False} | more
    return FeatureView(name=name, entities=[CUSTOMER], schema=fields, source=source, **given)


def entity_rows(rows: int = 300, seed: int = 1) -> pa.Table:
    random = np.random.default_rng(seed)
    hours = np.sort(random.choice(np.arange(12, DAYS * 24), rows))
    return pa.table(
        {
            "cid": pa.array(random.integers(0, CUSTOMERS, rows), pa.int64()),
            "event_timestamp": pa.array([START + int(hour) * DAY / 24 for hour in hours]),
            "bought": pa.array(random.integers(0, 2, rows), pa.int64()),
        }
    )


def build(
    store: FeatureStore, output: Path, rows: pa.Table | None = None, **more: Any
) -> TrainingSet:
    """A set of both views."""
    given: dict[str, Any] = {
        "entity_rows": (entity_rows() if rows is None else rows).to_pandas(),
        "features": ["purchases:spend", "purchases:orders", "visits:minutes"],
        "split": TimeSplit(START + 18 * DAY, START + 24 * DAY),
    }
    return create_training_set(
        store,
        label="bought",
        output=str(output),
        **given | more,
    )
