"""Sources to compact, and what a retrieval finds in them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, FileSource
from feast.types import Int64
from repos import NoRegistry
from views import customer_view

from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.compaction import compaction
from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest
from feast_dynamo_ext.parquet.compaction.snapshot import Target
from feast_dynamo_ext.parquet.source import ParquetSource

if TYPE_CHECKING:
    from pathlib import Path

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
UTC = pa.timestamp("us", "UTC")


def file_source(path) -> FileSource:
    return FileSource(
        name="orders",
        path=str(path),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def orders(path) -> FeatureView:
    return customer_view(source=file_source(path), value=Int64)


def target(path) -> Target:
    return Target(file_source(path), "event_timestamp", "created", ("cid",), ("orders",))


def history(rows) -> pa.Table:
    """A table of (key, hours after START or None, created likewise, value)."""

    def moment(hours):
        return None if hours is None else START + hours * HOUR

    return pa.table(
        {
            "cid": pa.array([key for key, _, _, _ in rows], pa.int64()),
            "event_timestamp": pa.array([moment(at) for _, at, _, _ in rows], UTC),
            "created": pa.array([moment(at) for _, _, at, _ in rows], UTC),
            "value": pa.array([value for _, _, _, value in rows], pa.int64()),
        }
    )


def write(path: Path, rows, group: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(history(rows), path, row_group_size=group)


def compact(path, config, **asked):
    return compaction.run(compaction.plan(target(path), config, LayoutRequest(**asked)))


def seen(path, config, keys, hours) -> list:
    """The value that each key sees at each of some moments."""
    frame = pd.DataFrame(
        {
            "cid": pd.array([key for key in keys for _ in hours], "Int64"),
            "event_timestamp": [START + at * HOUR for _ in keys for at in hours],
        }
    )
    job = S3ParquetOfflineStore.get_historical_features(
        config, [orders(path)], ["orders:value"], frame, NoRegistry(), "p"
    )
    return job.to_arrow().column("value").to_pylist()


def opened(path, config) -> ParquetSource:
    return ParquetSource.open(file_source(path), config)


def values(path, config) -> list:
    """All values of a source, in the order of their positions."""
    return [
        value for batch in opened(path, config).scan(["value"]) for value in batch[0].to_pylist()
    ]
