"""Append the day after the last one, once, wherever a run stops."""

from datetime import date, datetime, timedelta, timezone

import pyarrow as pa
from feast import FeatureStore

from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.ledger import Progress


def rows_of(day: date, columns: pa.Schema) -> pa.Table:
    """What your job computes: a table, or an iterator of record batches."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=timezone.utc)
    row = {"customer_id": 4, "event_timestamp": noon}
    return pa.Table.from_pylist([row], schema=columns)


store = FeatureStore("feature_repo")
source = store.get_feature_view("customer_orders").batch_source
table = TableHandle.from_source(source, store.config)
before = table.state("daily orders")  # None at first
day = date.fromisoformat(before or "2026-01-10") + timedelta(days=1)
progress = Progress("daily orders", before=before, after=str(day))
table.append(rows_of(day, table.columns()), f"daily orders {day}", progress)
